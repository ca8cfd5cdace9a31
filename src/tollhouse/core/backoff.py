"""When to try again: how long to wait, and whether everybody may.

Rule: retries help one request and hurt a failing upstream. So each waits a random time that grows (full jitter), and
all of them together have a budget that grows with the requests, not with the failures.
"""

from collections.abc import Callable
from random import random
from time import monotonic

__all__ = ["Backoff", "RetryBudget"]


class Backoff:
    """Full jitter: before the n-th repetition anything between nothing and `base` * 2^(n-1) seconds, at most `most`."""

    __slots__ = ("base", "most")

    def __init__(self, base: float, most: float = 10.0) -> None:
        self.base = base
        self.most = most

    def delay(self, repetition: int, at_least: float | None = None) -> float:
        """Seconds to wait before repetition 1, 2, ... at_least: what the upstream asked for (Retry-After); then the
        jitter comes on top, so that those who were told the same do not come back together."""
        jitter = random() * min(self.most, self.base * 2.0 ** min(repetition - 1, 30))  # noqa: S311 - spreads load
        return jitter if at_least is None else at_least + jitter


class RetryBudget:
    """Repetitions are at most `share` of the requests, and `floor` a second beside that, whatever comes at once up to
    `reserve`. clock: monotonic seconds."""

    __slots__ = ("_at", "_clock", "_left", "_reserve", "floor", "share")

    def __init__(
        self,
        share: float = 0.2,
        floor: float = 10.0,
        reserve: float = 100.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.share = share
        self.floor = floor
        self._reserve = reserve
        self._clock = clock
        self._left = floor
        self._at = clock()

    def request(self) -> None:
        """A request came (its repetitions do not count)."""
        left = self._left + self.share
        self._left = left if left < self._reserve else self._reserve

    def retry(self) -> bool:
        """Whether one more repetition is allowed; it is spent then."""
        now = self._clock()
        self._left = min(self._reserve, self._left + (now - self._at) * self.floor)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
