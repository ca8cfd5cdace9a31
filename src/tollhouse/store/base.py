"""What is asked of a store: counters, values by key and messages that several workers may share.

Rule: every contract here can be kept by one process (`memory`) and by a server on the network alike, and one suite
(`tests/conformance`) proves both. So whatever decides may suspend, and whatever happens at the end of an answer may
not: a store on the network keeps it and sends it in batches. A store whose state is in this process shows it as
`Buckets`, so that its callers need not even be coroutines.

Whatever suspends may raise `Failure` 503 with the code "state_unavailable": the store cannot be reached, is too slow,
or has no room. Its `sent` says whether what was asked may have been done all the same.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from tollhouse.core.errors import Failure, Reason

__all__ = [
    "LARGEST",
    "Buckets",
    "Bus",
    "Charge",
    "Counter",
    "KeyValue",
    "Rate",
    "State",
    "Verdict",
    "must_fit",
    "unavailable",
]

LARGEST = 4 << 20
"""Bytes of one value or message, at most."""

_LONGEST = 512
_MOST = 400 * 86400.0

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


class KeyValue(Protocol):
    """Values that are forgotten after a while. Keys are text of up to 512 characters, values at most LARGEST bytes, and
    `ttl` is seconds, above 0. Each method is one step that nobody can come in between."""

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, value: bytes, ttl: float) -> None: ...

    async def add(self, key: str, value: bytes, ttl: float) -> bool:
        """Put it there if nothing is: whether nothing was. Of several who add one key, one hears True."""
        ...

    async def swap(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        """Put `new` in the place of `old`, if that is what is there: whether it was."""
        ...

    async def touch(self, key: str, ttl: float) -> bool:
        """Let what is there live for `ttl` from now: whether something is."""
        ...

    async def remove(self, key: str) -> bool:
        """Whether something was there."""
        ...

    async def take(self, key: str) -> bytes | None:
        """Get and remove. Of several who take one key, one gets its value."""
        ...


class Bus(Protocol):
    """Messages to whoever subscribes now, in this worker and in others: each at most once, those of one publisher in
    their order, and nothing is kept for later. Topics are text of up to 512 characters, messages at most LARGEST
    bytes."""

    async def publish(self, topic: str, message: bytes) -> None:
        """Returns when it is on its way. Whoever answers it finds the subscriptions that this worker made before."""
        ...

    def subscribe(
        self, topic: str, deliver: Callable[[bytes], None], on_gap: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Have each message given to `deliver`, which does not wait: what ends that. on_gap: told that messages may
        have been lost, once those that come after are delivered again."""
        ...

    async def ready(self) -> None:
        """Return when all subscriptions that were made are in force."""
        ...


class State(Protocol):
    """What one worker shares with others, or has for itself.

    shared: others have it too. node: random, of this worker since its start. keys: secrets of 32 bytes or more that
    all have who share it, at least one: the first one seals, all open.
    """

    @property
    def values(self) -> KeyValue: ...

    @property
    def bus(self) -> Bus: ...

    @property
    def counter(self) -> Counter: ...

    @property
    def shared(self) -> bool: ...

    @property
    def node(self) -> str: ...

    @property
    def keys(self) -> tuple[bytes, ...]: ...

    async def close(self) -> None: ...


def must_fit(name: str, content: bytes = b"", ttl: float = 1.0, largest: int = LARGEST) -> None:
    """Raises ValueError for a key, a topic or a time that no store takes, Failure for what is too large to keep."""
    if not 0 < len(name) <= _LONGEST or not 0.0 < ttl <= _MOST:
        raise ValueError(
            f"a key or topic has 1 to {_LONGEST} characters, and lives for more than 0 s and up to 400 days"
        )
    if len(content) > largest:
        raise unavailable(f"{len(content)} bytes are more than the {largest} that one value may have", reached=False)


def unavailable(detail: str, *, sent: bool = False, reached: bool = True) -> Failure:
    """The Failure of a store that cannot do what it is asked now. detail: the cause, for the log."""
    return Failure(
        503,
        Reason.OVERLOADED,
        "the gateway's state is not available at the moment; try again in a second",
        code="state_unavailable",
        detail=detail,
        retry_after=1.0,
        sent=sent,
        reached=reached,
    )
