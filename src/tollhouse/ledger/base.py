"""What a ledger is: a sink that takes records in order, once each, and can be asked what was used.

Rule: a Ledger is used by one thread at a time (the Shipper's, or a command's) and may block; nothing of it runs in
the event loop. `ship` is one transaction: the records, their sums and the journal's position, or nothing of them.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from tollhouse.ledger.records import Anchor, UsageRecord

__all__ = ["BY", "TIMES", "UNITS", "Cuts", "Entry", "Ledger", "LedgerError", "Post", "Unit", "UsageRow"]


class LedgerError(Exception):
    """The ledger cannot be used now (locked, unreachable, full) or at all. `lasting`: trying again does not help."""

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A record as it stands in a journal: its number, its kind (`records.USAGE`) and its encoded body."""

    seq: int
    kind: int
    body: bytes


BY: Final[tuple[str, ...]] = (
    "org", "team", "user", "key", "agent", "route", "model", "answered", "provider", "backend", "server", "tool",
    "operation", "outcome", "reason", "guard", "cached", "tag", "run", "hour", "day", "week", "month",
)  # fmt: skip
"""What usage can be grouped by. `model` is the one asked for, `answered` the one that did. `tag`: a call with several
tags is in the group of each, one with none in that of "". Times are UTC, as RFC 3339 text; a week begins on Monday."""

TIMES: Final = frozenset(("hour", "day", "week", "month"))
"""Of BY, those that a record cannot be found by."""

Unit = Literal["usd", "tokens", "input_tokens", "output_tokens", "calls"]
"""What is spent. usd: nano-dollars. input_tokens: all that went in, cached or not. calls: those that were let in."""

UNITS: Final[tuple[Unit, ...]] = ("usd", "tokens", "input_tokens", "output_tokens", "calls")


class Post(NamedTuple):
    """What one record took from allowances. hold: the one it releases, "" where it had none (an adjustment)."""

    seq: int
    hold: str
    draws: tuple[tuple[str, int], ...]


class Cuts(NamedTuple):
    """Microseconds since 1970 before which records, and hourly sums, go; None: they stay."""

    usage: int | None = None
    rollup: int | None = None


class UsageRow(msgspec.Struct, frozen=True):
    """Sums of one group. by: the group's values, in the order asked. unpriced: requests that used tokens at no known
    price, so that `cost_nano` has nothing of them.

    errors: requests that failed by no fault of the caller (upstream_error, timeout, cut, error, lost). saved_nano: what
    answers from the cache would have cost. withheld: tokens that guards kept back. Adjustments are in the sums, and are
    no requests.
    """

    by: tuple[str, ...]
    requests: int
    errors: int
    input: int
    output: int
    cache_read: int
    cache_write: int
    reasoning: int
    cost_nano: int
    unpriced: int
    cache_write_1h: int
    audio_input: int
    audio_output: int
    image_input: int
    image_output: int
    saved_nano: int = 0
    withheld: int = 0


class Ledger(Protocol):
    """A place where records end up. Every method raises LedgerError when the store cannot do it."""

    def open(self) -> None:
        """Connect, and create or migrate the tables. Other processes may do the same at the same time."""
        ...

    def close(self) -> None: ...

    def position(self, journal: str) -> int:
        """The seq up to which (inclusive) this journal is in the ledger; 0 when nothing is."""
        ...

    def ship(self, journal: str, entries: Sequence[Entry]) -> int:
        """Store entries, rising in seq, and move the position to the last one; how many records were new.

        What is at or below the position, or there already by its id, is skipped. An entry that cannot be stored for
        its own sake goes to the rejected ones, with its bytes, and does not stop the others.
        """
        ...

    def forget(self, journal: str) -> None:
        """This journal is shipped whole, deleted, and never comes back: its position is not needed any more."""
        ...

    def rejected(self) -> int:
        """How many entries could not be stored."""
        ...

    @property
    def astray(self) -> int:
        """Records that stand where no month expects them, as was last seen; 0 where months have no place of their own.
        Costs nothing to ask, at any time."""
        ...

    def usage(
        self,
        since: int,
        until: int,
        by: Sequence[str] = (),
        *,
        where: Sequence[tuple[str, str]] = (),
        order: str = "",
        top: int = 0,
    ) -> list[UsageRow]:
        """Sums over records admitted in [since, until), unix seconds, in whole hours: since is rounded down, until up.

        by: names of BY. where: (name of BY, value); of one name any of its values, of several names all. order: a
        member of UsageRow, the greatest first; "": by the groups' values. top: at most so many rows, 0 for all.
        Raises ValueError for what there is not.
        """
        ...

    def records(
        self, since_us: int, until_us: int, where: Sequence[tuple[str, str]] = (), most: int = 100
    ) -> list[UsageRecord]:
        """The newest records admitted in [since_us, until_us), the newest first; `draws` is empty (`posts` has them).

        where: as of `usage`, and raises what that does.
        """
        ...

    # ---- for budgets
    def identity(self) -> str:
        """Which ledger it is: the same for all who use it, and for no other one."""
        ...

    def positions(self) -> dict[str, int]:
        """Of each journal that has usage records here, the last seq stored: also of those that are shipped whole and
        forgotten."""
        ...

    def spent(
        self,
        unit: Unit,
        since_us: int,
        until_us: int,
        where: Mapping[str, str],
        upto: Mapping[str, int] | None = None,
    ) -> int:
        """Sum over records admitted in [since_us, until_us), to the microsecond, adjustments included.

        where: names of BY. upto: only records at or below that seq of their journal, none of a journal that it does
        not name; None: all. Raises ValueError for a name that there is not.
        """
        ...

    def spent_each(
        self,
        unit: Unit,
        bounds: Sequence[int],
        by: Sequence[str],
        keys: Sequence[tuple[str, ...]],
        where: Mapping[str, str],
        upto: Mapping[str, int],
    ) -> dict[tuple[str, ...], list[int]]:
        """`spent` of many keys at once, in one look at the records: for each key, values of `by` in its order, what it
        comes to in each span [bounds[n], bounds[n + 1]), microseconds, rising; a key of which there is nothing may be
        left out. by: names of BY but `tag`. Raises what `spent` does."""
        ...

    def drawn(self, field: str, upto: Mapping[str, int] | None = None) -> int:
        """Sum of what records drew on the fields that begin with `field`. upto: as of `spent`."""
        ...

    def posts(self, journal: str, after: int, most: int) -> list[Post]:
        """The next records of a journal, in its order, that drew on anything: those above the seq `after`."""
        ...

    def closed(self, journals: Collection[str]) -> set[str]:
        """Those of them that are shipped whole and forgotten: what they had is here, as long as it is kept."""
        ...

    def next_field(self, first: str, before: str) -> str:
        """The first field from `first` on, and before `before`, that any record drew on; "" where there is none. Found
        by an index, whatever else was drawn."""
        ...

    def run_began(self, run: str, since_us: int) -> tuple[int, str] | None:
        """When the first call of a run was admitted, of those since then that were let in, and the run that began it;
        None where there is none."""
        ...

    # ---- what is kept only so long
    def prune(self, cuts: Cuts, most: int = 1000) -> int:
        """Delete up to about `most` rows of what is older, in one short transaction; how many that were. 0: nothing is
        left to be deleted."""
        ...

    def audit_before(self, before_us: int) -> list[Anchor]:
        """Up to where each audit chain would be deleted whose records of before then go; and of each that was cut
        before, up to where. Empty when nothing is to be deleted."""
        ...

    def cut_audit(self, anchors: Sequence[Anchor], most: int = 1000) -> int:
        """Delete up to `most` records of these chains, up to these records and with them; how many that were. To be
        said in a chain before (`audit.Chain.cut`): else what is gone has been taken away."""
        ...
