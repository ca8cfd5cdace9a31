"""Counters in this process's memory: for one worker, lost when it ends.

Rule: nothing here suspends, so an admission is atomic. Every table has a bound, and beyond it new keys share one
bucket until old ones have lapsed: who floods a limiter with keys is limited together, and the others keep theirs.
"""

from collections.abc import Sequence
from math import inf

from tollhouse.core.clock import Clock
from tollhouse.store.base import Charge, Verdict

__all__ = ["MemoryCounter"]

_SHARED = "\0"
"""The bucket of the keys that have no place. No key of a policy has this name: keys are text of requests."""

_SWEPT = 512
"""Keys looked at in one turn of the clock."""

_SLACK = 1e-9
"""Seconds: sums of floats must not refuse the last unit of a burst."""


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

    async def admit(self, id: str, charges: Sequence[Charge]) -> Verdict:
        now = self._clock.now
        tables = self._tables
        behind: list[float] = []
        writes: list[tuple[dict[str, float], str, float]] = []
        for charge in charges:
            rate, key = charge.rate, charge.key
            ahead = charge.amount * rate.step
            table = tables.get(rate.name)
            if table is None:
                table = tables[rate.name] = {}
            tat = table.get(key)
            if tat is None and len(table) >= self._limit:
                key = _SHARED
                tat = table.get(key)
            if tat is not None and tat > now:
                ahead += tat - now
            if ahead > rate.tolerance + _SLACK and charge.amount:
                return self._refuse(charges, len(behind), ahead - rate.tolerance, now)
            behind.append(ahead)
            writes.append((table, key, now + ahead))
        for table, key, tat in writes:
            table[key] = tat
        return Verdict(-1, 0.0, behind)

    def _refuse(self, charges: Sequence[Charge], index: int, wait: float, now: float) -> Verdict:
        charge = charges[index]
        if charge.amount > charge.rate.burst:
            wait = inf
        return Verdict(index, wait, [max(0.0, self._tat(c, now) - now) for c in charges])

    def _tat(self, charge: Charge, now: float) -> float:
        table = self._tables.get(charge.rate.name, {})
        tat = table.get(charge.key)
        if tat is None:
            tat = now if len(table) < self._limit else table.get(_SHARED, now)
        return tat

    def settle(self, id: str, charges: Sequence[Charge], amounts: Sequence[int]) -> None:
        now = self._clock.now
        for charge, amount in zip(charges, amounts, strict=True):
            change = (amount - charge.amount) * charge.rate.step
            tat = self._tat(charge, now)
            if change < 0.0:
                tat += change  # a TAT in the past is read as now
            elif change > 0.0:
                tat = max(tat, now) + change
            else:
                continue
            table = self._tables.setdefault(charge.rate.name, {})
            key = charge.key
            if key not in table:
                if tat <= now:
                    continue
                if len(table) >= self._limit:
                    key = _SHARED
            table[key] = tat

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
