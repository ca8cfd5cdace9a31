"""What policies ask of a store: counters that several workers may share.

Rule: every contract here can be kept by one process (`memory`) and by a server on the network alike, and one suite
(`tests/conformance`) proves both. So whatever decides may suspend, and whatever happens at the end of an answer may
not: a store on the network keeps it and sends it in batches. A store whose state is in this process shows it as
`Buckets`, so that its callers need not even be coroutines.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

__all__ = ["Buckets", "Charge", "Counter", "Rate", "Verdict"]

_SLACK = 1e-4  # of a unit: sums of floats must not refuse the last one of a burst


class Rate:
    """So many units in a window, as GCRA: the theoretical arrival time (TAT) of a key moves by `step` seconds for each
    unit, and may be at most `tolerance` seconds ahead of now.

    name: what holds the state; equal names share it. amount: units that come back in `window` seconds. burst: units
    that can be taken at once, `amount` when not given. most: `tolerance` and a trifle; what is further is refused.
    """

    __slots__ = ("amount", "burst", "most", "name", "step", "tolerance", "window")

    def __init__(self, name: str, amount: int, window: float, burst: int | None = None) -> None:
        if amount < 1 or window <= 0 or (burst is not None and burst < 1):
            raise ValueError("a rate has at least one unit, a window above 0 and a burst of at least one")
        self.name = name
        self.amount = amount
        self.window = window
        self.burst = amount if burst is None else burst
        self.step = window / amount
        self.tolerance = self.step * self.burst
        self.most = self.tolerance + max(1e-9, self.step * _SLACK)


class Charge(msgspec.Struct, gc=False):
    """`amount` units (0 or more) taken from `key` under `rate`."""

    rate: Rate
    key: str
    amount: int


class Verdict(msgspec.Struct, gc=False):
    """refused: the index of the charge that did not fit, or -1. wait: seconds until it would, infinite when it is
    larger than the burst. behind: for each charge how many seconds its TAT is ahead of now, after taking it, or, where
    something was refused, as it is."""

    refused: int
    wait: float
    behind: list[float]


class Buckets(Protocol):
    """All keys of one Rate, kept in this process. Nothing here suspends or raises."""

    def take(self, key: str, amount: int) -> float:
        """Take `amount` units (1 or more) and say how many seconds the key's TAT is ahead of now then. Where that is
        above the rate's `most` they did not fit, and nothing was taken."""
        ...

    def move(self, key: str, units: int) -> None:
        """Take so many more, fit or not; below 0 is given back, which never makes a burst larger than the rate's."""
        ...


class Counter(Protocol):
    """Rates, all or nothing."""

    def buckets(self, rate: Rate) -> Buckets | None:
        """The rate's state, where it is in this process: what is taken and moved there, `admit` and `settle` see. None
        where one has to wait for it."""
        ...

    async def admit(self, id: str, charges: Sequence[Charge]) -> Verdict:
        """Take every charge, or none when one of them does not fit.

        The charges have different (rate name, key). id: of this admission, which no other one has: a store on the
        network that lost an answer asks its server again with it, and nothing is taken twice.
        """
        ...

    def settle(self, id: str, charges: Sequence[Charge], amounts: Sequence[int]) -> None:
        """What the charges admitted as `id` really came to: more is taken, less given back, and what is given back
        never makes a burst larger than the rate's. At most once for each admission; never raises, never waits."""
        ...
