"""State in this process's memory: for one worker, lost when it ends.

Rule: nothing here suspends, so whatever is done is done in one step. Every table has a bound. Beyond it new keys of a
rate share one bucket until old ones have lapsed: who floods a limiter with keys is limited together, and the others
keep theirs. Values beyond it are refused: one that was promised is not pushed out.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from math import inf
from time import time

from tollhouse.core.clock import Clock
from tollhouse.store.allowances import Draw, Opening, Posting
from tollhouse.store.base import REFUSED, Charge, History, Rate, Verdict, must_fit, unavailable
from tollhouse.store.memory_allowances import MemoryAllowances
from tollhouse.store.topics import Topics

__all__ = ["MemoryBus", "MemoryCounter", "MemoryState", "MemoryValues"]

_SHARED = "\0"
"""The bucket of the keys that have no place. No key of a policy has this name: keys are text of requests."""

_SWEPT = 512
"""Keys looked at in one turn of the clock."""


class MemoryCounter:
    """A `store.base.Counter`. limit: keys each rate may have. wall: unix time, which windows go by."""

    __slots__ = ("_allowances", "_clock", "_keys", "_limit", "_names", "_tables")

    nodes = 1

    def __init__(self, clock: Clock, limit: int = 100_000, wall: Callable[[], float] = time) -> None:
        self._clock = clock
        self._allowances = MemoryAllowances(clock, self._take, wall)
        self._limit = limit
        self._tables: dict[str, dict[str, float]] = {}  # rate name -> key -> TAT
        self._names: list[str] = []  # rates still to be swept; the last one is being swept,
        self._keys: list[str] = []  # and these of its keys are still to be looked at
        clock.every_turn(self._sweep)

    async def close(self) -> None:
        self._clock.remove(self._sweep)

    def __len__(self) -> int:
        """Keys remembered."""
        return sum(map(len, self._tables.values())) + len(self._allowances)

    def buckets(self, rate: Rate) -> "_Buckets":
        return _Buckets(rate, self._clock, self._tables, self._limit)

    def allowances(self) -> MemoryAllowances:
        return self._allowances

    async def admit(
        self, id: str, charges: Sequence[Charge], draws: Sequence[Draw] = (), lives: float = 60.0
    ) -> Verdict:
        return self._allowances.admit(id, charges, draws, lives)

    def settle(self, id: str, charges: Sequence[Charge], amounts: Sequence[int]) -> None:
        for charge, amount in zip(charges, amounts, strict=True):
            self.buckets(charge.rate).move(charge.key, amount - charge.amount)

    def admit_apart(self, id: str, charges: Sequence[Charge]) -> Verdict:
        return self._take(charges)

    async def top_up(self, id: str, draws: Sequence[Draw], lives: float = 60.0) -> Verdict:
        return self._allowances.top_up(id, draws, lives)

    async def renew(self, ids: Sequence[str], lives: float = 60.0) -> int:
        return self._allowances.renew(ids, lives)

    def void(self, id: str) -> None:
        self._allowances.void(id)

    def post(
        self, journal: str, seq: int, id: str, amounts: Sequence[tuple[str, int]] = (), soon: bool = False
    ) -> None:
        self._allowances.post(journal, seq, id, amounts)

    async def posted(self, journal: str, previous: int, last: int, postings: Sequence[Posting]) -> int:
        return self._allowances.posted(journal, previous, last, postings)

    async def journals(self) -> Mapping[str, int] | None:
        return self._allowances.journals()

    async def opening(self, draw: Draw, positions: Mapping[str, int], again: bool = False) -> list[Opening]:
        return self._allowances.opening(draw, positions, again)

    async def seed(self, opening: Opening, amount: int) -> int | None:
        return self._allowances.seed(opening, amount)

    def know(self, allowances: Mapping[str, float]) -> None:
        self._allowances.know(allowances)

    def follow(self, history: History) -> None:
        return  # nothing is lost here that would have to be had again

    def _take(self, charges: Sequence[Charge]) -> Verdict:
        behind: list[float] = []
        for charge in charges:
            rate, amount = charge.rate, charge.amount
            ahead = self.buckets(rate).take(charge.key, amount)
            if amount and ahead > rate.most:
                self.settle("", charges[: len(behind)], [0] * len(behind))
                wait = inf if amount > rate.burst else ahead - rate.tolerance
                return Verdict(len(behind), wait, [self.buckets(c.rate).ahead(c.key) for c in charges], REFUSED)
            behind.append(ahead)
        return Verdict(-1, 0.0, behind)

    def _sweep(self) -> None:
        """Forget what has lapsed, some of it in each turn: a TAT in the past says no more than none."""
        self._allowances.turn()
        now = self._clock.now
        left = _SWEPT
        if not self._names:
            self._names = list(self._tables)
        while left > 1 and (self._keys or self._names):
            left -= 1
            if not self._keys:
                self._keys = list(self._tables[self._names[-1]])
            table = self._tables[self._names[-1]]
            part, self._keys[-left:] = self._keys[-left:], []
            left -= len(part)
            for key in part:
                if table[key] <= now:
                    del table[key]
            if not self._keys:
                name = self._names.pop()
                if not table:
                    del self._tables[name]


class _Buckets:
    """A `store.base.Buckets`. The table is asked for by name each time: one that has lapsed is let go of."""

    __slots__ = ("_clock", "_limit", "_most", "_name", "_step", "_tables", "_together")

    def __init__(self, rate: Rate, clock: Clock, tables: dict[str, dict[str, float]], limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._most = rate.most
        self._name = rate.name
        self._step = rate.step
        self._tables = tables
        self._together = rate.together

    def take(self, key: str, amount: int) -> float:
        table = self._tables.get(self._name)
        if table is None:
            table = self._tables[self._name] = {}
        tat = table.get(key)
        if tat is None and len(table) >= self._limit:
            if not self._together:
                return amount * self._step
            key = _SHARED
            tat = table.get(key)
        now = self._clock.now
        ahead = amount * self._step
        if tat is not None and tat > now:
            ahead += tat - now
        if ahead <= self._most:
            table[key] = now + ahead
        return ahead

    def move(self, key: str, units: int) -> None:
        table = self._tables.get(self._name)
        if table is None:
            table = self._tables[self._name] = {}
        tat = table.get(key)
        if tat is None and len(table) >= self._limit:
            if not self._together:
                return
            key = _SHARED
            tat = table.get(key)
        if units > 0:
            now = self._clock.now
            table[key] = units * self._step + (now if tat is None or tat < now else tat)
        elif tat is not None:
            table[key] = tat + units * self._step  # a TAT in the past is read as now

    def ahead(self, key: str) -> float:
        """Seconds that the key's TAT is ahead of now."""
        table = self._tables.get(self._name, {})
        now = self._clock.now
        tat = table.get(key)
        if tat is None:
            tat = now if len(table) < self._limit or not self._together else table.get(_SHARED, now)
        return max(0.0, tat - now)


class MemoryState:
    """A `store.base.State`. keys: secrets; with none a random one is made."""

    shared = False
    logs = None

    def __init__(self, clock: Clock, keys: Sequence[bytes] = ()) -> None:
        self.values = MemoryValues(clock)
        self.bus = MemoryBus()
        self.counter = MemoryCounter(clock)
        self.node = os.urandom(8).hex()
        self.keys = tuple(keys) or (os.urandom(32),)

    async def close(self) -> None:
        self.values.close()
        await self.counter.close()


_ENTRY = 300
"""Bytes that an entry takes besides its key and its value, about."""


class MemoryValues:
    """A `store.base.KeyValue`. limit: entries; room: bytes, with what each entry takes besides its value."""

    __slots__ = ("_clock", "_entries", "_keys", "_limit", "_room", "size")

    def __init__(self, clock: Clock, limit: int = 500_000, room: int = 256 << 20) -> None:
        self._clock = clock
        self._limit = limit
        self._room = room
        self._entries: dict[str, tuple[bytes, float]] = {}  # and when it is forgotten
        self._keys: list[str] = []  # still to be looked at
        self.size = 0  # bytes
        clock.every_turn(self._sweep)

    def close(self) -> None:
        self._clock.remove(self._sweep)

    def __len__(self) -> int:
        """Entries remembered."""
        return len(self._entries)

    async def get(self, key: str) -> bytes | None:
        must_fit(key)
        return self._value(key)

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        must_fit(key, value, ttl)
        self._set(key, value, ttl)

    async def add(self, key: str, value: bytes, ttl: float) -> bool:
        must_fit(key, value, ttl)
        if self._value(key) is not None:
            return False
        self._set(key, value, ttl)
        return True

    async def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        must_fit(key, value, ttl)
        there = self._value(key)
        if there is None:
            self._set(key, value, ttl)
        return there

    async def swap(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        must_fit(key, new, ttl)
        if self._value(key) != old:
            return False
        self._set(key, new, ttl)
        return True

    async def touch(self, key: str, ttl: float) -> bool:
        must_fit(key, ttl=ttl)
        value = self._value(key)
        if value is None:
            return False
        self._entries[key] = (value, self._clock.now + ttl)
        return True

    async def remove(self, key: str) -> bool:
        return await self.take(key) is not None

    async def take(self, key: str) -> bytes | None:
        must_fit(key)
        value = self._value(key)
        self._drop(key)
        return value

    def _value(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        return None if entry is None or entry[1] <= self._clock.now else entry[0]

    def _set(self, key: str, value: bytes, ttl: float) -> None:
        more = len(key) + len(value) + _ENTRY
        entry = self._entries.get(key)
        if entry is not None:
            more -= len(key) + len(entry[0]) + _ENTRY
        if self._is_full(more, entry is None):
            self._sweep()
            if self._is_full(more, key not in self._entries):
                raise unavailable("the state in memory is full", reached=False)
            return self._set(key, value, ttl)  # the sweep may have taken what was there
        self.size += more
        self._entries[key] = (value, self._clock.now + ttl)
        return None

    def _is_full(self, more: int, is_new: bool) -> bool:
        return (more > 0 and self.size + more > self._room) or (is_new and len(self._entries) >= self._limit)

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size -= len(key) + len(entry[0]) + _ENTRY

    def _sweep(self) -> None:
        """Forget what has lapsed, some of it in each turn."""
        now = self._clock.now
        if not self._keys:
            self._keys = list(self._entries)
        part, self._keys[-_SWEPT:] = self._keys[-_SWEPT:], []
        for key in part:
            entry = self._entries.get(key)
            if entry is not None and entry[1] <= now:
                self._drop(key)


class MemoryBus:
    """A `store.base.Bus`. Messages are delivered before `publish` returns: there are never any to keep."""

    __slots__ = ("_topics",)

    def __init__(self) -> None:
        self._topics = Topics()

    async def publish(self, topic: str, message: bytes) -> None:
        must_fit(topic, message)
        self._topics.deliver(topic, message)

    def subscribe(
        self, topic: str, deliver: Callable[[bytes], None], on_gap: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        must_fit(topic)
        return self._topics.add(topic, deliver, on_gap)

    async def ready(self) -> None:
        return
