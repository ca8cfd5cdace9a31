"""A worker's journal as it is configured, and its alarm: how much of its bound is used, told before it is reached.

Rule: looked at by the clock, once a second; nothing of it is in the way of a request. What the other journals in the
directory have, of this machine's other workers and of those that are gone, counts as well: the bound is the disk's.
"""

import logging
import os
from collections.abc import Callable

from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.gateway.ledger import journal_of
from tollhouse.ledger.base import Ledger
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.ship import Shipper
from tollhouse.observe.families import Families

__all__ = ["JournalWatch", "measured", "opened_journal"]

log = logging.getLogger("tollhouse.ledger")

_SEGMENT = 64 << 20
_EVERY = 16  # turns of the clock
_HIGH, _LOW = 0.8, 0.6
_REMEMBERED = 60  # looks after which something was dropped that it still counts as now


def opened_journal(config: Config) -> Journal:
    """A new journal of the ledger, open. Raises ConfigError."""
    file, spec = config.ledger_file, config.journal
    assert file is not None
    journal = Journal(
        journal_of(file),
        segment_size=min(_SEGMENT, spec.max // 8),  # so that few records are lost at a time
        max_size=spec.max,
        drop=spec.full == "drop",
        fsync="off" if spec.sync_every is None else "group",
        fsync_interval=spec.sync_every or 0.0,
    )
    try:
        journal.open()
    except OSError as error:
        message = f"the ledger's journal cannot be written in {journal.directory}: {error.strerror}"
        raise ConfigError([Problem(message, path="ledger")]) from None
    return journal


def measured(families: Families, journal: Journal, shipper: Shipper, ledger: Ledger, sink: str) -> None:
    """Have the metrics read them. sink: what the ledger is called there."""
    families.ledger_lag.reads(lambda: shipper.lag, sink)
    families.journal_bytes.reads(lambda: float(journal.size), "journal")
    families.ledger_records.reads(lambda: float(shipper.shipped - shipper.audits), "usage", sink)
    families.ledger_records.reads(lambda: float(shipper.audits), "audit", sink)
    families.ledger_errors.reads(lambda: float(shipper.rejected), "rejected", sink)
    families.ledger_errors.reads(lambda: float(ledger.astray), "astray", sink)
    families.ledger_errors.reads(lambda: float(shipper.damaged), "damaged", "journal")
    families.ledger_errors.reads(lambda: float(journal.failures), "failed", "journal")
    families.ledger_errors.reads(lambda: float(journal.dropped), "dropped", "journal")
    families.journal_limit.reads(lambda: float(journal.max_size), "journal")


class JournalWatch:
    """state: "" where all is well, "filling" (above 80 % of the bound), "full" (calls are refused), "dropping" (records
    were lost within the last minute)."""

    def __init__(self, journal: Journal, waits_for: Callable[[], str]) -> None:
        """waits_for: why the ledger takes nothing now, "" when it does."""
        self.state = ""
        self._journal = journal
        self._waits_for = waits_for
        self._turns = 0
        self._dropped = 0
        self._quiet = _REMEMBERED

    def turn(self) -> None:
        """For `Clock.every_turn`."""
        self._turns += 1
        if self._turns % _EVERY == 1:
            self.look()

    def look(self) -> None:
        """Look now."""
        journal = self._journal
        try:
            journal.others = max(0, _bytes_in(journal) - journal.size)
        except OSError as error:
            log.error("the journal's directory cannot be read: %s", error)
        share = (journal.size + journal.others) / journal.max_size
        dropped, self._dropped = journal.dropped - self._dropped, journal.dropped
        self._quiet = 0 if dropped else self._quiet + 1
        if dropped or self._quiet < _REMEMBERED:
            state = "dropping"
        elif journal.full:
            state = "full"
        elif share >= (_LOW if self.state else _HIGH):
            state = "filling"
        else:
            state = ""
        if state == self.state:
            return
        self.state = state
        self._tell(state, share)

    def _tell(self, state: str, share: float) -> None:
        journal = self._journal
        used = f"{(journal.size + journal.others) / 2**20:.0f} of {journal.max_size / 2**20:.0f} MiB"
        why = self._waits_for()
        because = f"; the ledger: {why}" if why else ""
        if state == "full":
            what = "its disk is full" if journal.no_space else f"{used}"
            log.error("the journal is full (%s): calls are refused until there is room%s", what, because)
        elif state == "dropping":
            log.error("the journal is full (%s): the oldest records are lost, %d until now%s",
                      used, journal.dropped, because)  # fmt: skip
        elif state == "filling":
            log.warning("the journal fills up (%s)%s", used, because)
        else:
            log.info("the journal has room again (%s)", used)


def _bytes_in(journal: Journal) -> int:
    """Of the segments in the journal's directory. Raises OSError."""
    total = 0
    with os.scandir(journal.directory) as found:
        for one in found:
            if one.name.endswith(".seg"):
                try:
                    total += one.stat().st_size
                except FileNotFoundError:
                    pass  # shipped meanwhile
    return total
