"""Entries in this process: the last used ones, in so many bytes.

Rule: nothing here waits. What was not used for longest goes first; what is no longer good goes when it is met, or
looked for. Time is monotonic, so that a clock that is set makes nothing older or younger.
"""

from collections.abc import Callable
from typing import NamedTuple

from tollhouse.core.clock import Clock
from tollhouse.policies.cache.entry import Entry

__all__ = ["Kept", "Memory"]

_SWEPT = 256
"""Entries looked at in one turn of the clock."""


class Kept(NamedTuple):
    """since, until: monotonic seconds when it was whole, and when it is not good any more."""

    entry: Entry
    since: float
    until: float
    weight: int


class Memory:
    """room: bytes. Answers of more than a quarter of it are not taken: one of them would push out all others.
    evicted: told of each that had to go."""

    def __init__(self, clock: Clock, room: int, evicted: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._room = room
        self._evicted = evicted
        self._kept: dict[bytes, Kept] = {}  # the last used one at the end
        self._looked: list[bytes] = []
        self.size = 0
        clock.every_turn(self._sweep)

    def close(self) -> None:
        self._clock.remove(self._sweep)
        self._kept.clear()
        self._looked.clear()
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> Kept | None:
        """What is there and good."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        if kept.until <= self._clock.now:
            self.size -= kept.weight
            return None
        self._kept[key] = kept
        return kept

    def put(self, entry: Entry, age: float = 0.0) -> Kept:
        """age: seconds since it was whole."""
        now = self._clock.now
        weight = entry.weight
        kept = Kept(entry, now - age, now + entry.ttl - age, weight)
        self.drop(entry.key)
        if weight * 4 > self._room or kept.until <= now:
            return kept
        self._kept[entry.key] = kept
        self.size += weight
        while self.size > self._room:
            self.drop(next(iter(self._kept)))
            self._evicted()
        return kept

    def drop(self, key: bytes) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.size -= kept.weight

    def drop_all(self, gone: Callable[[Entry], bool]) -> None:
        """Let go of all for which that is true."""
        for key in [key for key, kept in self._kept.items() if gone(kept.entry)]:
            self.drop(key)

    def _sweep(self) -> None:
        """Let go of what has lapsed, some of it in each turn."""
        now = self._clock.now
        if not self._looked:
            self._looked = list(self._kept)
        part, self._looked[-_SWEPT:] = self._looked[-_SWEPT:], []
        for key in part:
            kept = self._kept.get(key)
            if kept is not None and kept.until <= now:
                self.drop(key)
