"""When to try again: how long to wait, and whether everybody may.

Rule: retries help one request and hurt a failing upstream. So each waits a random time that grows (full jitter), and
all of them together have a budget that grows with the requests, not with the failures.
"""

from collections.abc import Callable
from math import exp
from random import random
from time import monotonic

from tollhouse.core.errors import Failure, Reason

__all__ = ["Backoff", "Recent", "RetryBudget", "cause"]

_INSTANT = 1e-6  # seconds


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


class Recent:
    """About how many in the last `window` seconds, each counting for less as it gets older. To count one is to add it
    to `fresh`; time is looked at only when somebody wants to know."""

    __slots__ = ("_at", "_sum", "_window", "fresh")

    def __init__(self, window: float, now: float) -> None:
        self._window = window
        self._sum = 0.0
        self._at = now
        self.fresh = 0

    def value(self, now: float) -> float:
        passed = now - self._at
        fresh, self.fresh = self.fresh, 0
        if passed > _INSTANT:
            # Those that are fresh are taken to have come evenly.
            kept = exp(-passed / self._window)
            self._sum = self._sum * kept + fresh * (1.0 - kept) * self._window / passed
            self._at = now
        else:
            self._sum += fresh
        return self._sum

    def clear(self, now: float) -> None:
        self._sum, self._at, self.fresh = 0.0, now, 0


class RetryBudget:
    """Repetitions are at most `share` of the requests, and `floor` a second beside that; `saved` are allowed at once.
    What was not used in about `memory` seconds is lost. clock: monotonic seconds."""

    __slots__ = ("_at", "_clock", "_left", "_requests", "floor", "memory", "share")

    def __init__(
        self,
        share: float = 0.2,
        floor: float = 10.0,
        memory: float = 10.0,
        saved: float = 10.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.share = share
        self.floor = floor
        self.memory = memory
        self._clock = clock
        self._requests = 0
        self._left = saved
        self._at = clock()

    def request(self) -> None:
        """A request came (its repetitions do not count)."""
        self._requests += 1

    def retry(self) -> bool:
        """Whether one more repetition is allowed; it is spent then."""
        now = self._clock()
        passed = now - self._at
        came, self._requests = self._requests * self.share, 0
        if passed > _INSTANT:
            kept = exp(-passed / self.memory)
            self._left = self._left * kept + (came / passed + self.floor) * self.memory * (1.0 - kept)
            self._at = now
        else:
            self._left += came
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


def cause(failure: Failure) -> str:
    """Why a call is made again: a word of `retry.on`, and the `reason` of the retries metric."""
    if failure.reason == Reason.TIMEOUT:
        return "timeout"
    if not failure.reached and failure.status != 429:  # which is our own word for what the upstream would say
        return "connect"
    return "credentials" if failure.code == "upstream_credentials" else str(failure.status)
