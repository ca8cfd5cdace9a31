"""A worker's share of rates while the server that counts cannot be asked.

Rule: what all workers admit apart and what the server admits before and after is together never more than the rate
allows. When a worker loses the server, each key's bucket here is empty, and fills at the rate divided by the workers
there are: what had been left at the server is not given a second time. When it finds the server again it takes away
there what has been left of each key that it has admitted: what came back meanwhile was given here.

So over any interval of t seconds, with an outage in it or not, at most burst + rate * t units are admitted, if all
workers lose the server and find it again together. One that finds it first may admit a burst more, until the others do:
they look 16 times a second. If only k of K lose it, the others go on with the whole rate: k/K * rate * (length of the
outage) more. A worker that never heard of the others has no share.
"""

from collections.abc import Sequence

from tollhouse.core.clock import Clock
from tollhouse.store.base import REFUSED, Charge, Rate, Verdict

__all__ = ["Apart"]

_KEYS = 20_000  # beyond it further keys have no share: none could be taken away again
_IDS = 20_000


class Apart:
    """What one worker admits while it is apart."""

    __slots__ = ("_buckets", "_clock", "_ids", "since")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], tuple[float, Rate]] = {}  # TAT of each (rate name, key)
        self._ids: dict[str, None] = {}  # of admissions: what is settled of them is no matter of the server's
        self.since = -1.0
        """When the server was lost, by the clock; below 0: it is there."""

    def admit(self, id: str, charges: Sequence[Charge], nodes: int) -> Verdict:
        """nodes: workers that share the rates; 0: nobody knows."""
        now = self._clock.now
        if self.since < 0.0:
            self.since = now
        behind: list[float] = []
        for charge in charges:
            rate = charge.rate
            place = (rate.name, charge.key)
            tat = self._tat(place, rate)
            ahead = max(tat - now, 0.0) + charge.amount * rate.step * nodes
            full = place not in self._buckets and len(self._buckets) >= _KEYS
            if charge.amount and (not nodes or full or ahead > rate.most):
                wait = max(ahead - rate.tolerance, rate.step) if nodes and not full else rate.window
                return Verdict(len(behind), wait, [self._behind(one) for one in charges], REFUSED)
            behind.append(ahead)
        for charge, ahead in zip(charges, behind, strict=True):
            self._buckets[charge.rate.name, charge.key] = (now + ahead, charge.rate)
        if len(self._ids) >= _IDS:
            del self._ids[next(iter(self._ids))]
        self._ids[id] = None
        return Verdict(-1, 0.0, behind)

    def settle(
        self, id: str, charges: Sequence[Charge], amounts: Sequence[int], nodes: int
    ) -> list[tuple[Charge, int]]:
        """Correct what was admitted here as `id`: what is still to be corrected at the server."""
        if id not in self._ids:
            return list(zip(charges, amounts, strict=True))
        del self._ids[id]
        owed = []
        for charge, amount in zip(charges, amounts, strict=True):
            place = (charge.rate.name, charge.key)
            bucket = self._buckets.get(place)
            if self.since >= 0.0 and bucket is not None:
                moved = max(bucket[0], self._clock.now) + (amount - charge.amount) * charge.rate.step * nodes
                self._buckets[place] = (moved, charge.rate)
            elif amount > charge.amount:
                owed.append((charge, amount))
        return owed

    def admitted(self) -> list[Charge]:
        """All keys that something was admitted of, a burst of each: what is to be taken away at the server."""
        return [Charge(rate, key, rate.burst) for (_, key), (_, rate) in self._buckets.items()]

    def end(self) -> None:
        """The server is there again, and what there is to be taken away was."""
        self._buckets.clear()
        self.since = -1.0

    def _tat(self, place: tuple[str, str], rate: Rate) -> float:
        bucket = self._buckets.get(place)
        return self.since + rate.tolerance if bucket is None else bucket[0]

    def _behind(self, charge: Charge) -> float:
        return max(self._tat((charge.rate.name, charge.key), charge.rate) - self._clock.now, 0.0)
