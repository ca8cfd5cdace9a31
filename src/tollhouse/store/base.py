"""What is asked of a store: counters, values by key and messages that several workers may share.

Rule: every contract here can be kept by one process (`memory`) and by a server on the network alike, and one suite
(`tests/conformance`) proves both. So whatever decides may suspend, and whatever happens at the end of an answer may
not: a store on the network keeps it and sends it in batches. A store whose state is in this process shows it as
`Buckets`, so that its callers need not even be coroutines.

Whatever suspends may raise `Failure` 503 with the code "state_unavailable": the store cannot be reached, is too slow,
or has no room. Its `sent` says whether what was asked may have been done all the same.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Final, Literal, Protocol

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.store.allowances import (
    MOST_UNITS,
    WHOLE,
    Draw,
    Opening,
    Posting,
    Window,
    life,
)

__all__ = [
    "ADMITTED",
    "LARGEST",
    "MOST_UNITS",
    "OPEN",
    "REFUSED",
    "WHOLE",
    "WINDOW",
    "Allowances",
    "Buckets",
    "Bus",
    "Charge",
    "Counter",
    "Draw",
    "Happened",
    "History",
    "KeyValue",
    "Logs",
    "Opening",
    "Posting",
    "Rate",
    "State",
    "Verdict",
    "Window",
    "life",
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
    together: keys that a store in memory has no room for share one bucket; else nothing is known of them.
    """

    __slots__ = ("amount", "burst", "most", "name", "step", "together", "tolerance", "window")

    def __init__(
        self, name: str, amount: int, window: float, burst: int | None = None, *, together: bool = True
    ) -> None:
        if amount < 1 or window <= 0 or (burst is not None and burst < 1):
            raise ValueError("a rate has at least one unit, a window above 0 and a burst of at least one")
        self.name = name
        self.amount = amount
        self.window = window
        self.burst = amount if burst is None else burst
        self.step = window / amount
        self.tolerance = self.step * self.burst
        self.most = self.tolerance + max(1e-9, self.step * _SLACK)
        self.together = together

    def wait(self, behind: float, amount: int) -> float:
        """Seconds until `amount` units fit where the TAT is `behind` seconds ahead of now; infinite when they never
        do."""
        return inf if amount > self.burst else max(behind + amount * self.step - self.tolerance, 0.0)


class Charge(msgspec.Struct, gc=False):
    """`amount` units (0 or more) taken from `key` under `rate`."""

    rate: Rate
    key: str
    amount: int


Happened = Literal["admitted", "refused", "window", "open"]
ADMITTED: Final = "admitted"
REFUSED: Final = "refused"  # by a charge or a draw that did not fit
WINDOW: Final = "window"  # a draw's window is not the one of the store's time: reckon again by `at`
OPEN: Final = "open"  # a draw's field is not filled yet, or is being filled: see `store.seeding.seed`


class Verdict(msgspec.Struct, gc=False):
    """What came of an admission. Only "admitted" took anything.

    refused: the index of the charge that did not fit, or -1. wait: seconds until what was refused would fit, infinite
    when it never does by itself; of a draw, until its window ends. behind: for each charge how many seconds its TAT is
    ahead of now, after taking it, or, where it was not taken, as it is; may be empty where a draw decided.

    at: the store's unix time of the admission, 0.0 for one without draws. draw: the index of the draw that did not
    fit, whose window is another or that is not filled, or -1. used: for each draw what is spent and held in its window,
    this call's included where it was admitted; what is left is `limit - used`. Empty where it was not looked at.
    """

    refused: int
    wait: float
    behind: list[float]
    happened: Happened = ADMITTED
    at: float = 0.0
    draw: int = -1
    used: list[int] = []


class Buckets(Protocol):
    """All keys of one Rate, kept in this process. Nothing here suspends or raises."""

    def take(self, key: str, amount: int) -> float:
        """Take `amount` units (1 or more) and say how many seconds the key's TAT is ahead of now then. Where that is
        above the rate's `most` they did not fit, and nothing was taken."""
        ...

    def move(self, key: str, units: int) -> None:
        """Take so many more, fit or not; below 0 is given back, which never makes a burst larger than the rate's."""
        ...


class Allowances(Protocol):
    """All allowances, kept in this process: `Counter`'s methods of the same names, which here do not suspend. Raises
    Failure 503 where there is no room, ValueError for amounts that no store takes.

    accounts: keys that something is known of, of each allowance. size: bytes that these take, at most. refused: times
    that there was no room for one more."""

    @property
    def accounts(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def refused(self) -> int: ...

    def admit(self, id: str, charges: Sequence[Charge], draws: Sequence[Draw] = (), lives: float = 60.0) -> Verdict: ...

    def top_up(self, id: str, draws: Sequence[Draw], lives: float = 60.0) -> Verdict: ...

    def renew(self, ids: Sequence[str], lives: float = 60.0) -> int: ...


class History(Protocol):
    """What a Counter is filled from and made to catch up with: the ledger, as `store.seeding` asks it. Whatever it
    raises ends the attempt."""

    @property
    def is_stuck(self) -> bool:
        """Whether nothing is on its way into the ledger."""
        ...

    async def positions(self, deep: bool = False) -> Mapping[str, int]:
        """For each journal that there ever was the seq up to which its records can be asked for. deep: also of those
        that are known here and are not in the ledger yet, which takes longer."""
        ...

    async def posts(self, journal: str, after: int, most: int) -> Sequence[Posting]:
        """The first `most` records of a journal with a seq above `after`, rising: those that drew on anything."""
        ...

    async def spent(self, asked: Sequence[tuple[Draw, Window, Mapping[str, int]]]) -> Sequence[int]:
        """For each what the records come to that were admitted in the window (WHOLE: ever), for the draw's allowance
        and key: of a journal in the mapping those up to that seq, of others none."""
        ...


class Counter(Protocol):
    """Rates and allowances, all or nothing.

    A call with draws: `admit`; `top_up` and `renew` while it lasts; `post` when its record is in the journal, or
    `void` when there is none. Whoever draws says once what allowances there are (`know`), gives the History
    (`follow`), and has filled what answers OPEN (`store.seeding.seed`).
    """

    def buckets(self, rate: Rate) -> Buckets | None:
        """The rate's state, where it is in this process: what is taken and moved there, `admit` and `settle` see. None
        where one has to wait for it."""
        ...

    def allowances(self) -> Allowances | None:
        """What can be drawn on, where it is in this process; None where one has to wait for it."""
        ...

    async def admit(
        self, id: str, charges: Sequence[Charge], draws: Sequence[Draw] = (), lives: float = 60.0
    ) -> Verdict:
        """Take every charge and hold every draw, or none when one of them does not fit.

        The charges have different (rate name, key), the draws different (allowance, key). id: of this admission, which
        no other one has: a store on the network that lost an answer asks its server again with it, and nothing is
        taken twice; with draws the caller may too, while the hold lives. lives: seconds that the hold lives unless it
        is renewed: a little more than the call can take. Raises ValueError for amounts that no store takes.
        """
        ...

    def admit_apart(self, id: str, charges: Sequence[Charge]) -> Verdict:
        """Take every charge from this worker's own share of the rates, or none: for when `admit` has just raised
        Failure, and it is better to go on with less than not at all. What is admitted before, meanwhile and after
        stays within the rates, as `store.apart` says. Never raises, never waits."""
        ...

    def settle(self, id: str, charges: Sequence[Charge], amounts: Sequence[int]) -> None:
        """What the charges admitted as `id` really came to: more is taken, less given back, and what is given back
        never makes a burst larger than the rate's. At most once for each admission; never raises, never waits. Draws
        are ended by `post` or `void`."""
        ...

    async def top_up(self, id: str, draws: Sequence[Draw], lives: float = 60.0) -> Verdict:
        """Let the hold `id` have the draws' amounts in all: as large as that, not by so much larger, so that asking
        twice does no more. Windows are those of the admission, whatever time it is. A hold that has lapsed is made
        again. Where it is refused nothing changes. Raises what `admit` does."""
        ...

    async def renew(self, ids: Sequence[str], lives: float = 60.0) -> int:
        """Let these holds live for so many seconds from now: how many of them are still there."""
        ...

    def void(self, id: str) -> None:
        """The call is not made, or leaves no record: nothing is held any more, soon. Its charges are for `settle`.
        Never raises, never waits."""
        ...

    def post(
        self, journal: str, seq: int, id: str, amounts: Sequence[tuple[str, int]] = (), soon: bool = False
    ) -> None:
        """The end of a call, once its record is in the journal: `amounts` are added to the fields (`Draw.field`; not
        of those that are only held), and nothing is held any more. For each usage record of this worker's journal, in
        their order, those without draws too: the position says what is counted. Each seq counts once, whatever comes
        twice. soon: somebody may wait for what was held (calls at once). Never raises, never waits; what a store on
        the network cannot be told is fetched from the History again."""
        ...

    async def posted(self, journal: str, previous: int, last: int, postings: Sequence[Posting]) -> int:
        """Post at once: all that the journal has above `previous` up to `last`, rising. The position after that. One
        below `previous` says that the store has lost, or never had, what is between: nothing was done, and postings
        from that position on are wanted."""
        ...

    async def journals(self) -> Mapping[str, int] | None:
        """The position of each journal: what of it is counted. None where nothing has been opened yet."""
        ...

    async def opening(self, draw: Draw, positions: Mapping[str, int], again: bool = False) -> list[Opening]:
        """The fields of a draw that are to be filled, and are from now on by the caller; none where all are filled or
        another caller began less than 10 s ago. positions: of the History, asked before; a store that was empty begins
        with them. again: also fields that are filled, to be filled anew; they can be drawn on meanwhile."""
        ...

    async def seed(self, opening: Opening, amount: int) -> int | None:
        """Fill a field with what was spent up to `opening.upto`: by how much it had been too high, 0 for one that was
        new. None, and nothing is done, where it is not waiting for this opening any more."""
        ...

    def know(self, allowances: Mapping[str, float]) -> None:
        """The allowances that there are now, by name, with the seconds for which a field is to be kept after its
        window's start (0.0: for as long as one may); replaces what was said before. A field whose window begins after
        all nodes have known its allowance begins at 0 and is not filled. Never raises, never waits."""
        ...

    def follow(self, history: History) -> None:
        """Where postings are to be had again that the store has lost."""
        ...

    @property
    def nodes(self) -> int:
        """The workers that shared this counter in the last ten minutes, as far as that is known; 0: not at all."""
        ...


class KeyValue(Protocol):
    """Values that are forgotten after a while. Keys are text of up to 512 characters, values at most LARGEST bytes, and
    `ttl` is seconds, above 0. Each method is one step that nobody can come in between."""

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, value: bytes, ttl: float) -> None: ...

    async def add(self, key: str, value: bytes, ttl: float) -> bool:
        """Put it there if nothing is: whether nothing was. Of several who add one key, one hears True."""
        ...

    async def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        """The same, for who wants to know what is there: None if nothing was, and this is there now. b"" where what is
        there cannot be read, or a store that is full would not take this. Asked twice if an answer is lost, so no
        other caller has this value."""
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


class Logs(Protocol):
    """Lists that several workers append to, and each reads on from where it was. Keys, values and `ttl` as KeyValue's;
    all of a list lives for `ttl` after the last append, and its oldest values go beyond about `most` of them."""

    async def append(self, key: str, value: bytes, ttl: float, most: int) -> None: ...

    async def since(self, key: str, after: bytes, most: int) -> tuple[bytes, list[bytes]]:
        """The first `most` values behind the position `after` (b"" for the beginning) that can be read, and the
        position behind them."""
        ...


class State(Protocol):
    """What one worker shares with others, or has for itself.

    logs: None where no other has it. shared: others have it too. node: random, of this worker since its start. keys:
    secrets of 32 bytes or more that all have who share it, at least one: the first one seals, all open.
    """

    @property
    def values(self) -> KeyValue: ...

    @property
    def bus(self) -> Bus: ...

    @property
    def counter(self) -> Counter: ...

    @property
    def logs(self) -> Logs | None: ...

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
