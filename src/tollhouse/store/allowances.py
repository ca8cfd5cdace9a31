"""Allowances: what somebody may spend (a budget, a cap of a run) or hold (a number of calls at once).

Rule: an allowance is two integers, spent and held; how much may come together is said with each call and stored
nowhere. A call holds what it may come to (`Draw`) before it is made, and is posted with what it came to. The ledger is
the truth, and these numbers a copy of it with a position: `spent` is the sum of the records of each journal up to the
seq that was posted last. Hence a posting that comes twice counts once, what was lost comes again, and a store that was
emptied is filled anew (`store.seeding`).

A **field** is one key's state of one allowance in one window, named by all three. Another window or another kind of
allowance is another field: nothing is ever reset.
"""

import logging
from collections.abc import Mapping, Sequence
from math import inf
from operator import lt
from typing import NamedTuple

import msgspec

__all__ = [
    "GRACE",
    "MOST_UNITS",
    "WHOLE",
    "Draw",
    "Opening",
    "Posting",
    "Window",
    "kept_until",
    "life",
    "must_be_amounts",
    "must_live",
    "parts_of",
    "sound",
]

log = logging.getLogger("tollhouse.store")

MOST_UNITS = 2**53 - 1
"""Of one amount or limit: what a number of Lua's holds exactly. In nano-dollars 9.007 million USD."""

GRACE = 3600
"""Seconds that a field is kept after it has ceased to count: calls that began in its window may still end."""

_MOST_SLOTS = 100
_LONGEST = 31 * 86400.0
_DIGITS = 12
_LATEST = 10**_DIGITS


class Window(NamedTuple):
    """From `start` up to and without `end`: unix seconds, by the store's clock."""

    start: int
    end: int


WHOLE = Window(0, 0)
"""The whole life of the key. A field of this window is always filled from the ledger before it is drawn on first: what
ends after a while (a run) has the rolling window of `life` instead, which is not."""


class Draw(msgspec.Struct, gc=False):
    """One call's hold on one allowance.

    allowance: identity of it: unit, scope and kind of window, not the amount; has no "|". Those of one name share
    state. key: whose. amount: units held (nano-dollars, tokens, calls); 0 counts as 1. limit: what is spent and held
    may come to this, together with `amount`; None: it is only counted. window: of now, as the caller reckons. earlier:
    rising starts of the slots before `window` that count too, of a rolling window: each ends where the next one begins,
    the last one at `window.start`. kept: False is for what is only ever held, never spent; it has no window.
    """

    allowance: str
    key: str
    amount: int
    limit: int | None
    window: Window = WHOLE
    earlier: tuple[int, ...] = ()
    kept: bool = True
    field: str = ""
    """What it is spent from; it follows from the others, and is asked for several times a call."""

    def __post_init__(self) -> None:
        self.field = f"{self.allowance}|{self.key}|{self.window[0]}"

    @property
    def slots(self) -> list[tuple[str, Window]]:
        """All fields that count, with their windows, the earliest first."""
        starts = (*self.earlier, self.window.start)
        ends = (*starts[1:], self.window.end)
        name = f"{self.allowance}|{self.key}|"
        return [(f"{name}{start}", Window(start, end)) for start, end in zip(starts, ends, strict=True)]

    def check(self) -> None:
        """Raises ValueError for what no store takes."""
        amount, limit = self.amount, self.limit
        if type(amount) is not int or not 0 <= amount <= MOST_UNITS:
            raise ValueError(f"units of an allowance are an integer of 0 to {MOST_UNITS}")
        if limit is not None and (type(limit) is not int or not 0 <= limit <= MOST_UNITS):
            raise ValueError(f"a limit is an integer of 0 to {MOST_UNITS}, or None")
        if "|" in self.allowance:
            raise ValueError('an allowance has no "|" in its name')
        start, end = self.window
        if end and self.kept:
            if not 0 <= start < end < _LATEST:
                raise ValueError("a window is unix seconds, and ends after its start")
        elif self.window != WHOLE or self.earlier:
            raise ValueError("what is never spent has no window")
        if self.earlier:
            starts = (*self.earlier, start)
            if len(starts) > _MOST_SLOTS or starts[0] < 0 or not all(map(lt, starts, starts[1:])):
                raise ValueError(f"a rolling window has at most {_MOST_SLOTS} slots, whose starts rise")


class Posting(msgspec.Struct, gc=False):
    """The end of a call, as its journal has it. id: of its admission, "" for none. amounts: what is added to which
    field; below 0 only for a correction."""

    seq: int
    id: str
    amounts: tuple[tuple[str, int], ...] = ()


class Opening(msgspec.Struct, gc=False):
    """A field that waits to be told what was spent before. upto: what `spent` has of each journal already, as of the
    opening: what is to be told is the sum of the records up to there, and none of a journal that is not named. token:
    which opening it is. age: seconds since the store began anew, when all that it had was lost."""

    field: str
    window: Window
    upto: Mapping[str, int]
    token: str
    age: float = inf


def life(at: float, seconds: int) -> tuple[Window, tuple[int, ...]]:
    """`window` and `earlier` for a key that lives up to so many seconds: all that it drew is in them, and it needs no
    filling. at: unix seconds."""
    start = int(at) // seconds * seconds
    return Window(start, start + seconds), (start - seconds,)


def parts_of(field: str) -> tuple[str, int]:
    """The allowance of a field, and the start of its window. Raises ValueError for what is no field."""
    allowance, bar, rest = field.partition("|")
    _, other, start = rest.rpartition("|")
    if not bar or not other or not start.isascii() or not start.isdigit() or len(start) > _DIGITS:
        raise ValueError("not the name of a field")
    return allowance, int(start)


def kept_until(draw: Draw) -> float:
    """Unix time until which a draw's field is kept: as long as it may count in a rolling window."""
    start, end = draw.window
    if not end:
        return inf
    return end + (start - draw.earlier[0] if draw.earlier else 0) + GRACE


def must_be_amounts(amounts: Sequence[tuple[str, int]]) -> None:
    """Raises ValueError for what can be posted nowhere."""
    for field, amount in amounts:
        if type(amount) is not int or not -MOST_UNITS <= amount <= MOST_UNITS:
            raise ValueError(f"what is posted is an integer of at most {MOST_UNITS}, either way")
        parts_of(field)


def must_live(lives: float) -> None:
    """Raises ValueError for a time that no hold lives."""
    if not 0.0 < lives <= _LONGEST:
        raise ValueError(f"a hold lives for more than 0 s and up to {_LONGEST:.0f}")


def sound(posting: Posting) -> Posting:
    """The posting, without its amounts if these can be posted nowhere: what stands in a journal all the same must not
    stop what comes after it."""
    try:
        must_be_amounts(posting.amounts)
    except ValueError as error:
        log.error("the record %d is counted as nothing: %s", posting.seq, error)
        return Posting(posting.seq, posting.id)
    return posting
