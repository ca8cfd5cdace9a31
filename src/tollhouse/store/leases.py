"""Leases: a worker that asks for one key again and again takes a slice of its rate at once, and asks the server less.

Rule: what is leased is taken at the server when it is leased, so that it is never given twice. A slice is a hundredth
of the burst, and less where less is left: at most a half of it, shared by all workers. It is used within a tenth of the
window, and what is not is given back. So with K workers, over any interval, up to K slices more than burst + rate *
length may be admitted (they were taken before it began), and up to K slices may stand unused.

Only keys that this worker asked for more than 50 times in the last second have leases, and only rates of which a
hundredth of the burst is a unit or more.
"""

from collections.abc import Sequence

from tollhouse.core.clock import Clock
from tollhouse.store.base import Charge, Rate, Verdict

__all__ = ["Leases"]

_HOT = 50  # times a second
_KEYS = 10_000  # whose askers are counted, and who may have leases
_PART = 100
_OF_WINDOW = 10.0

_Place = tuple[str, str]


class _Lease:
    """units: left of it. behind: how far ahead the server's TAT was, and when it said so."""

    __slots__ = ("asked", "behind", "rate", "units", "until")

    def __init__(self, rate: Rate, behind: float, asked: float) -> None:
        self.rate = rate
        self.units = 0
        self.until = 0.0
        self.behind = behind
        self.asked = asked


class Leases:
    """Those of one worker."""

    __slots__ = ("_clock", "_counts", "_leases", "_second")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counts: dict[_Place, int] = {}
        self._leases: dict[_Place, _Lease] = {}  # of the keys that are hot
        self._second = clock.now

    def __len__(self) -> int:
        return len(self._leases)

    def take(self, charges: Sequence[Charge]) -> Verdict | None:
        """Take all charges from leases; None, and nothing is taken, where one of them has too little."""
        counts, leases = self._counts, self._leases
        now = self._clock.now
        enough = True
        for charge in charges:
            place = (charge.rate.name, charge.key)
            seen = counts.get(place)
            if seen is not None:
                counts[place] = seen + 1
            elif len(counts) < _KEYS:
                counts[place] = 1
            lease = leases.get(place)
            if lease is None or lease.units < charge.amount or lease.until <= now:
                enough = False
            elif lease.rate.step != charge.rate.step:
                enough = False  # the rate is another one since
        if not enough or not charges:
            return None
        behind = []
        for charge in charges:
            lease = leases[charge.rate.name, charge.key]
            lease.units -= charge.amount
            behind.append(max(lease.behind - (now - lease.asked), 0.0))
        return Verdict(-1, 0.0, behind)

    def wanted(self, charges: Sequence[Charge], nodes: int) -> list[Charge] | None:
        """The charges, with a slice more for each key that is hot; None where none is. nodes: workers, 0: not known."""
        if not self._leases or not nodes:
            return None
        wanted = []
        more = 0
        for charge in charges:
            rate = charge.rate
            lease = self._leases.get((rate.name, charge.key))
            units = 0
            if lease is not None and charge.amount:
                left = rate.tolerance - max(lease.behind - (self._clock.now - lease.asked), 0.0)
                units = min(rate.burst // _PART, int(left / rate.step) // (2 * nodes))
            more += max(units, 0)
            wanted.append(Charge(rate, charge.key, charge.amount + max(units, 0)))
        return wanted if more else None

    def told(self, charges: Sequence[Charge], asked: Sequence[Charge], verdict: Verdict) -> list[tuple[Charge, int]]:
        """What the server said to `asked`, which were `charges` with slices. What is left of an old slice whose life
        a new one does not prolong is given back: charges, and what they come to."""
        now = self._clock.now
        back: list[tuple[Charge, int]] = []
        for charge, one, behind in zip(charges, asked, verdict.behind, strict=True):
            lease = self._leases.get((charge.rate.name, charge.key))
            if lease is None:
                if one.amount > charge.amount:
                    back.append((one, charge.amount))
                continue
            lease.behind, lease.asked = behind, now
            if verdict.refused < 0 and one.amount > charge.amount:
                if lease.units and lease.rate.step != charge.rate.step:
                    back.append((Charge(lease.rate, charge.key, lease.units), 0))
                    lease.units = 0
                lease.rate = charge.rate
                lease.units += one.amount - charge.amount
                lease.until = now + charge.rate.window / _OF_WINDOW
        return back

    def turn(self) -> list[tuple[Charge, int]]:
        """Of the clock: what has not been used of slices whose time is over, to be given back."""
        now = self._clock.now
        back = [self._given_back(place) for place, lease in self._leases.items() if lease.units and lease.until <= now]
        if now - self._second >= 1.0:
            hot = {place for place, seen in self._counts.items() if seen > _HOT * (now - self._second)}
            cold = self._leases.keys() - hot
            back += [self._given_back(place) for place in cold if self._leases[place].units]
            for place in cold:
                del self._leases[place]
            for place in hot - self._leases.keys():
                self._leases[place] = _Lease(_NONE, _FULL, now)
            self._counts.clear()
            self._second = now
        return back

    def end(self) -> list[tuple[Charge, int]]:
        """All that was not used, to be given back."""
        return [self._given_back(place) for place, lease in self._leases.items() if lease.units]

    def _given_back(self, place: _Place) -> tuple[Charge, int]:
        lease = self._leases[place]
        units, lease.units = lease.units, 0
        return Charge(lease.rate, place[1], units), 0


_NONE = Rate("", 1, 1.0)  # of a key of which nothing was leased yet
_FULL = 1e18  # behind: the next answer tells how much there is, and the one after it may have a slice
