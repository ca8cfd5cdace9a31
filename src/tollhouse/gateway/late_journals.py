"""Journals that the counter has counted and the ledger has not got: which of them there is a point in waiting for.

Rule: what is on its way is waited for, and who begins an account meanwhile is refused. Of one that is closed the ledger
has all that it ever will, though records that are too old were deleted. Two more kinds never come. A journal
of a gateway that shares the state and has another ledger: each gateway says in the state which ledger its journal is
shipped to. And a journal on a disk that is lost: it has stood still for a minute while the ledger took our own records;
should it come after all, the next reconciliation puts right what was filled without it.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from math import inf
from time import monotonic

from tollhouse.gateway.ledger_history import LedgerHistory
from tollhouse.ledger.ship import Shipper
from tollhouse.store.base import KeyValue, unavailable

__all__ = ["LateJournals"]

log = logging.getLogger("tollhouse.gateway")

_LOST = 60.0  # seconds
_KEPT = 30 * 86400.0
_TOLD = 60.0  # seconds between two times that it is said which ledger ours is


class LateJournals:
    """shipper: of our own journal. values: shared by all who share the counter; None where nobody does."""

    def __init__(
        self,
        history: LedgerHistory,
        shipper: Shipper | None,
        values: KeyValue | None,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._history = history
        self._shipper = shipper
        self._values = values
        self._now = now
        self._standing: dict[str, tuple[int, float]] = {}  # where a journal is, and since when
        self._lost: set[str] = set()
        self._others: set[str] = set()  # of another ledger
        self._identity = ""
        self._told = -inf

    async def tell(self) -> None:
        """Say which ledger our journal is shipped to, now and then. Raises Failure 503 and LedgerError."""
        if self._values is None or self._shipper is None or self._now() - self._told < _TOLD:
            return
        self._identity = self._identity or await self._history.identity()
        await self._values.put(_key(self._shipper.journal), self._identity.encode(), _KEPT)
        self._told = self._now()

    async def left_out(self, behind: Mapping[str, int]) -> Collection[str]:
        """Those of the journals that nobody waits for to fill an account. behind: how far each has come. Raises Failure
        503 and LedgerError."""
        closed = await self._history.closed(behind)
        left = {name: at for name, at in behind.items() if name not in closed}
        others = await self._of_others(left)
        return closed | others | self._that_are_lost({name: at for name, at in left.items() if name not in others})

    async def left_out_of_comparing(self, behind: Mapping[str, int]) -> Collection[str]:
        """The same to put accounts right by the ledger: only where all that was counted should be in it."""
        closed = await self._history.closed(behind)
        left = {name: at for name, at in behind.items() if name not in closed}
        if await self._of_others(left):
            raise unavailable("gateways with another ledger spend from the same budgets: nothing can be compared")
        return closed | self._that_are_lost({name: at for name, at in left.items() if at})

    async def _of_others(self, behind: Mapping[str, int]) -> set[str]:
        """Those that are shipped to another ledger."""
        if self._values is None:
            return set()
        for journal, position in behind.items():
            if position or journal in self._others:
                continue
            told = await self._values.get(_key(journal))
            if told is None:
                continue
            self._identity = self._identity or await self._history.identity()
            if told != self._identity.encode():
                if not self._others:
                    log.warning(
                        "gateways with another ledger share the state: what they have spent is not known where an "
                        "account is filled; let them have one ledger"
                    )
                self._others.add(journal)
        return self._others & behind.keys()

    def _that_are_lost(self, behind: Mapping[str, int]) -> set[str]:
        now = self._now()
        if self._history.is_stuck:
            self._standing.clear()
            return set()
        standing = {}
        for journal, position in behind.items():
            there = self._standing.get(journal)
            standing[journal] = there if there is not None and there[0] == position else (position, now)
        self._standing = standing
        lost = {journal for journal, (_, since) in standing.items() if now - since >= _LOST}
        for journal in lost - self._lost:
            log.error("records of the journal %s above %d do not come to the ledger, and count nowhere",
                      journal, behind[journal])  # fmt: skip
        self._lost = lost
        return lost


def _key(journal: str) -> str:
    return f"ledger-of:{journal}"
