"""Throttle: who fails to prove who it is waits longer and longer before it may try again.

Rule: only failures count, and they are counted in this worker alone: a client that proves itself costs two looks into
a dict and no trip to a store. Beyond its bound what was refused longest ago is forgotten.
"""

from collections.abc import Callable, Iterable

from tollhouse.core.forwarded import network_of
from tollhouse.core.http import Request

__all__ = ["Throttle", "address_of"]


class Throttle:
    """A rate of failures (GCRA) for each key. amount: failures that are free at once; window: seconds until they all
    are again. now: seconds. limit: keys that are remembered."""

    __slots__ = ("_ahead", "_limit", "_now", "_step", "_tolerance")

    def __init__(self, now: Callable[[], float], amount: int = 10, window: float = 60.0, limit: int = 20_000) -> None:
        self._now = now
        self._step = window / amount
        self._tolerance = window
        self._limit = limit
        self._ahead: dict[str, float] = {}  # key -> its theoretical arrival time

    def wait(self, keys: Iterable[str]) -> float:
        """Seconds until one of `keys` may try again; 0.0 when all may."""
        if not self._ahead:
            return 0.0
        now = self._now()
        return max((self._ahead.get(key, 0.0) + self._step - now - self._tolerance for key in keys), default=0.0)

    def failed(self, keys: Iterable[str]) -> None:
        """It was not who it said it is."""
        now = self._now()
        for key in keys:
            tat = self._ahead.pop(key, 0.0)
            self._ahead[key] = min(max(tat, now) + self._step, now + self._tolerance)
        while len(self._ahead) > self._limit:
            del self._ahead[next(iter(self._ahead))]

    def __len__(self) -> int:
        return len(self._ahead)


def address_of(request: Request) -> str:
    """Who asks, as limits know it: an IPv4 address, or the /64 that an IPv6 one is in, which is one household's."""
    return network_of(request.context.client or request.peer)
