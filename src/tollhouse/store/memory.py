"""Counters in this process's memory: for one worker, lost when it ends.

Rule: nothing here suspends, so an admission is atomic. Every table has a bound, and beyond it new keys share one
bucket until old ones have lapsed: who floods a limiter with keys is limited together, and the others keep theirs.
"""

from collections.abc import Sequence
from math import inf

from tollhouse.core.clock import Clock
from tollhouse.store.base import Charge, Rate, Verdict

__all__ = ["MemoryCounter"]

_SHARED = "\0"
"""The bucket of the keys that have no place. No key of a policy has this name: keys are text of requests."""

_SWEPT = 512
"""Keys looked at in one turn of the clock."""


class MemoryCounter:
    """A `store.base.Counter`. limit: keys each rate may have."""

    __slots__ = ("_clock", "_keys", "_limit", "_names", "_tables")

    def __init__(self, clock: Clock, limit: int = 100_000) -> None:
        self._clock = clock
        self._limit = limit
        self._tables: dict[str, dict[str, float]] = {}  # rate name -> key -> TAT
        self._names: list[str] = []  # rates still to be swept; the last one is being swept,
        self._keys: list[str] = []  # and these of its keys are still to be looked at
        clock.every_turn(self._sweep)

    async def close(self) -> None:
        self._clock.remove(self._sweep)

    def __len__(self) -> int:
        """Keys remembered."""
        return sum(map(len, self._tables.values()))

    def buckets(self, rate: Rate) -> "_Buckets":
        return _Buckets(rate, self._clock, self._tables, self._limit)

    async def admit(self, id: str, charges: Sequence[Charge]) -> Verdict:
        behind: list[float] = []
        for charge in charges:
            rate, amount = charge.rate, charge.amount
            ahead = self.buckets(rate).take(charge.key, amount)
            if amount and ahead > rate.most:
                self.settle(id, charges[: len(behind)], [0] * len(behind))
                wait = inf if amount > rate.burst else ahead - rate.tolerance
                return Verdict(len(behind), wait, [self.buckets(c.rate).ahead(c.key) for c in charges])
            behind.append(ahead)
        return Verdict(-1, 0.0, behind)

    def settle(self, id: str, charges: Sequence[Charge], amounts: Sequence[int]) -> None:
        for charge, amount in zip(charges, amounts, strict=True):
            self.buckets(charge.rate).move(charge.key, amount - charge.amount)

    def _sweep(self) -> None:
        """Forget what has lapsed, some of it in each turn: a TAT in the past says no more than none."""
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

    __slots__ = ("_clock", "_limit", "_most", "_name", "_step", "_tables")

    def __init__(self, rate: Rate, clock: Clock, tables: dict[str, dict[str, float]], limit: int) -> None:
        self._clock = clock
        self._limit = limit
        self._most = rate.most
        self._name = rate.name
        self._step = rate.step
        self._tables = tables

    def take(self, key: str, amount: int) -> float:
        table = self._tables.get(self._name)
        if table is None:
            table = self._tables[self._name] = {}
        tat = table.get(key)
        if tat is None and len(table) >= self._limit:
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
            tat = now if len(table) < self._limit else table.get(_SHARED, now)
        return max(0.0, tat - now)
