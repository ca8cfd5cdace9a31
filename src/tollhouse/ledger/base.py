"""What a ledger is: a sink that takes records in order, once each, and can be asked what was used.

Rule: a Ledger is used by one thread at a time (the Shipper's, or a command's) and may block; nothing of it runs in
the event loop. `ship` is one transaction: the records, their sums and the journal's position, or nothing of them.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

__all__ = ["BY", "Entry", "Ledger", "LedgerError", "UsageRow"]


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


BY: tuple[str, ...] = (
    "org", "team", "user", "key", "agent", "route", "model", "provider", "server", "tool", "outcome", "hour", "day",
)  # fmt: skip
"""What usage can be grouped by. `model` is the one asked for; `hour` and `day` are UTC, as RFC 3339 text."""


class UsageRow(msgspec.Struct, frozen=True):
    """Sums of one group. by: the group's values, in the order asked. unpriced: requests that used tokens at no known
    price, so that `cost_nano` has nothing of them.

    errors: requests that failed by no fault of the caller (upstream_error, timeout, cut, error, lost).
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

    def usage(self, since: int, until: int, by: Sequence[str] = ()) -> list[UsageRow]:
        """Sums over records admitted in [since, until), unix seconds, in whole hours: since is rounded down, until up.

        by: names of BY; raises ValueError for another one. Rows come in the order of their group's values.
        """
        ...
