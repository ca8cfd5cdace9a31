"""How long records are kept: what is older goes, in small steps, from the shipper's thread.

Rule: nothing is deleted that is not asked for. The oldest goes first; each step is a short transaction, and between two
of them what waits to be shipped is shipped. Audit records go only after a record of their own, in the ledger before
them, has said up to where (`audit.Chain.cut`): so the chains that are left can still be verified.
"""

import logging
from collections.abc import Callable, Sequence
from time import monotonic, time
from typing import NamedTuple

from tollhouse.ledger.base import Cuts, Ledger
from tollhouse.ledger.records import Anchor

__all__ = ["Kept", "Retention"]

log = logging.getLogger("tollhouse.ledger")

_DAY = 86400


class Kept(NamedTuple):
    """Seconds for which usage records, hourly sums and audit records are kept; None: for ever."""

    usage: float | None = None
    rollup: float | None = None
    audit: float | None = None


class Retention:
    """`step` is for the shipper (`ship.Shipper`), and for its thread.

    kept: as is configured now. say: writes the record of a cut to the audit; the seq that the journal gave it, None
    where it could not be written, and then nothing is cut. shipped: the last seq that is in the ledger. every: seconds
    between two looks. most: rows of a step.
    """

    def __init__(
        self,
        kept: Callable[[], Kept],
        say: Callable[[Sequence[Anchor]], int | None],
        shipped: Callable[[], int],
        *,
        every: float = 3600.0,
        most: int = 1000,
        now: Callable[[], float] = time,
    ) -> None:
        self.deleted = 0
        """Rows, until now."""
        self._kept = kept
        self._say = say
        self._shipped = shipped
        self._every = every
        self._most = most
        self._now = now
        self._due = 0.0
        self._cuts: Cuts | None = None
        self._anchors: Sequence[Anchor] = ()
        self._said = 0

    def step(self, ledger: Ledger) -> bool:
        """One step, if there is anything to do; whether there is more. Raises LedgerError."""
        if self._cuts is not None:
            return self._went(ledger.prune(self._cuts, self._most)) or self._usage_done(ledger)
        if self._anchors:
            if self._shipped() < self._said:
                return False  # the next time
            if self._went(ledger.cut_audit(self._anchors, self._most)):
                return True
            self._anchors = ()
            return False
        if monotonic() < self._due:
            return False
        self._due = monotonic() + self._every
        kept = self._kept()
        self._cuts = Cuts(self._before(kept.usage), self._before(kept.rollup))
        return True

    def _usage_done(self, ledger: Ledger) -> bool:
        self._cuts = None
        kept = self._kept().audit
        if kept is None:
            return False
        # By whole days: each cut is a record more.
        before = int((self._now() - kept) // _DAY * _DAY * 1e6)
        anchors = ledger.audit_before(before)
        if not anchors:
            return False
        said = self._say(anchors)
        if said is None:
            log.error("audit records that are old enough are not deleted: that could not be recorded")
            return False
        self._anchors, self._said = anchors, said
        return True

    def _went(self, rows: int) -> bool:
        self.deleted += rows
        return rows > 0

    def _before(self, kept: float | None) -> int | None:
        return None if kept is None else int((self._now() - kept) * 1e6)
