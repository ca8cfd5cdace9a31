"""The shipper: takes records from the journal to the ledger, in a thread of its own.

Rule: at least once from the journal, at most once into the ledger, because a batch and the journal's position are one
transaction. A segment is deleted only after everything in it is stored. Nothing here is waited for by a request:
while the ledger is away the journal grows, up to its bound.

At start, and every `adopt_every` seconds, the journals of processes that are gone are shipped and deleted as well.
What a journal leaves open at its end (`intents`) is shipped behind its last record, and only then its files may go.
"""

import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import NamedTuple

from tollhouse.ledger.base import Entry, Ledger, LedgerError
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import AUDIT
from tollhouse.ledger.segment import Reader, claim, journals, lock_path, next_path, segments, spare_path

__all__ = ["Adopted", "Shipper", "adopt", "catch_up"]

log = logging.getLogger("tollhouse.ledger")


class Shipper:
    """Ships one process's journal. `start`, then `stop` before `journal.close`.

    ledger: used by the shipper's thread alone, which opens and closes it. batch: records in one transaction.
    interval: seconds between looks at the journal. upkeep: is given the ledger in this thread, whenever all is shipped,
    for one short step of other work; whether there is more of it. Counts are plain numbers, to be read at any time.
    """

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        *,
        batch: int = 2000,
        interval: float = 0.5,
        adopt_every: float = 60.0,
        slowest: float = 5.0,
        upkeep: Callable[[Ledger], bool] | None = None,
    ) -> None:
        self.position = 0
        """The last seq of the journal that is in the ledger."""
        self.shipped = 0
        """Records newly stored, adopted ones included."""
        self.audits = 0
        """Audit records of these."""
        self.adopted = 0
        """Records of these that came from journals of dead processes."""
        self.damaged = 0
        """Segments that broke off where they must not."""
        self.missing = 0
        """Records that are gone with that."""
        self.rejected = 0
        """Entries that the ledger could not store and keeps aside."""
        self.failures = 0
        """Times the ledger could not be used."""
        self.error = ""
        """Why, the last time; "" when it works."""
        self.caught_up = Event()
        """Set once what processes that were gone at the start had left is in the ledger."""
        self._journal = journal
        self._ledger = ledger
        self._batch = batch
        self._interval = interval
        self._adopt_every = adopt_every
        self._slowest = slowest
        self._upkeep = upkeep
        self._ending = Event()
        self._drained = False
        self._even = monotonic()
        self._adopt_at = 0.0
        self._reader: Reader | None = None
        self._thread: Thread | None = None

    @property
    def journal(self) -> str:
        return self._journal.id

    @property
    def directory(self) -> Path:
        """Where this machine's journals are."""
        return self._journal.directory

    @property
    def lag(self) -> float:
        """Seconds since all there was had been shipped, so that what waits is no older; 0 when nothing waits."""
        return 0.0 if self._journal.seq <= self.position else monotonic() - self._even

    def start(self) -> None:
        self._even = monotonic()
        self._thread = Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """Seal the journal, ship what is left, close the ledger. False when that did not succeed in time: the rest is
        in the journal's files and the next process ships it. Blocks up to `timeout`: not for the event loop."""
        self._journal.seal()
        self._ending.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(timeout)
        return self._drained

    def _run(self) -> None:
        pause, is_open = self._interval, False
        while True:
            ending = self._ending.is_set()
            try:
                if not is_open:
                    self._ledger.open()
                    is_open = True
                self._ship(ending)
                self.error = ""  # it may have been opened, and take nothing
                if monotonic() >= self._adopt_at and not ending:
                    self._adopt()
                    self._adopt_at = monotonic() + self._adopt_every
                    self.caught_up.set()
                if self._upkeep is not None and not ending:
                    while self._upkeep(self._ledger) and not self._ending.is_set():
                        self._ship(False)
                pause = self._interval
                self._drained = ending
            except Exception as error:  # the thread's root: whatever it is, the records wait and are tried again
                self.failures += 1
                expected = isinstance(error, LedgerError | OSError)
                said = str(error) or type(error).__name__
                if said != self.error or not expected:
                    why = None if expected else error
                    log.warning("the ledger cannot be used, records stay in the journal: %s", error, exc_info=why)
                self.error = said
                self._drop_reader()
                self._ledger.close()
                is_open = False
                pause = min(pause * 2, self._slowest)
            if ending:
                break
            self._ending.wait(pause)
        self._drop_reader()
        self._ledger.close()

    def _ship(self, ending: bool) -> None:
        """Everything the journal has now."""
        journal = self._journal
        reader = self._reader
        if journal.seq <= self.position and not ending:
            self._even = monotonic()
            if reader is not None and reader.done:
                self._clear(reader)  # what had to be kept
            return
        if reader is None:
            self.position = self._ledger.position(journal.id)
            reader = self._reader = Reader(journal.directory, journal.id, self.position, live=True)
        if ending:
            reader.end()
        while True:
            looked = monotonic()
            entries = reader.read(self._batch)
            read = len(entries)
            if ending and read < self._batch:
                entries += journal.lost()
            if entries:
                self.shipped += self._ledger.ship(journal.id, entries)
                self.audits += _audits(entries)
                self.position = journal.shipped = entries[-1].seq
                self._clear(reader)
            if read < self._batch:
                self._even = looked  # these were all there were then
                break  # what came meanwhile is for the next look: small transactions cost as much as large ones
        self._clear(reader)
        self._count(reader)
        reader.damaged = reader.missing = 0
        self.rejected = self._ledger.rejected()
        if ending:
            self._ledger.forget(journal.id)

    def _clear(self, reader: Reader) -> None:
        """Delete the segments that are shipped whole."""
        keeps = self._journal.keeps
        while reader.done and (not keeps or reader.done[0][0] < keeps or not reader.live):
            number, path = reader.done[0]
            path.unlink(missing_ok=True)
            self._journal.release(number)
            del reader.done[0]

    def _count(self, damage: "Reader | Adopted") -> None:
        if damage.damaged or damage.missing:
            log.error(
                "journal %s: %d damaged segments, %d records missing", damage.journal, damage.damaged, damage.missing
            )
        self.damaged += damage.damaged
        self.missing += damage.missing

    def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _adopt(self) -> None:
        with closing(adopt(self._journal.directory, self._ledger, batch=self._batch)) as steps:
            for step in steps:
                self.shipped += step.stored
                self.adopted += step.stored
                self.audits += step.audits
                self._count(step)
                self._ship(False)  # a long journal of the dead must not hold up the living
                if self._ending.is_set():
                    return


class Adopted(NamedTuple):
    """One step of an adoption: records newly stored, audit records of these, and damage found at the journal's end."""

    journal: str
    stored: int
    damaged: int = 0
    missing: int = 0
    audits: int = 0


def _audits(entries: Sequence[Entry]) -> int:
    return [entry.kind for entry in entries].count(AUDIT)


def adopt(directory: Path, ledger: Ledger, *, batch: int = 2000) -> Generator[Adopted, None, None]:
    """Ship the journals in `directory` whose process is gone, and delete them. A step is one batch, or the end of one
    journal. Raises LedgerError; what is then not shipped stays. A journal that cannot be read is left and logged.

    `ledger` must be open.
    """
    for journal in journals(directory):
        try:
            lock = claim(directory, journal)
            if lock is None:
                continue
            try:
                yield from _adopt_one(directory, journal, ledger, batch)
            finally:
                os.close(lock)
        except OSError as error:
            log.error("journal %s cannot be read and is left: %s", journal, error)


def catch_up(directory: Path, ledger: Ledger) -> int:
    """Ship what processes that are gone have left in `directory`; how many records that were.

    For a command that is about to look at the ledger: what a gateway that was killed had not shipped then counts. The
    journals of living gateways are theirs. `ledger` must be open. Raises LedgerError.
    """
    with closing(adopt(directory, ledger)) as steps:
        return sum(step.stored for step in steps)


def _adopt_one(directory: Path, journal: str, ledger: Ledger, batch: int) -> Generator[Adopted, None, None]:
    reader = Reader(directory, journal, ledger.position(journal), live=False)
    try:
        while entries := reader.read(batch):
            yield Adopted(journal, ledger.ship(journal, entries), audits=_audits(entries))
        left = [] if reader.begun is None else reader.begun.lost()
        if left:
            log.info("journal %s: %d calls died with their process; what they held is charged", journal, len(left))
        for at in range(0, len(left), batch):
            yield Adopted(journal, ledger.ship(journal, left[at : at + batch]))
        for _, path in reader.done:
            path.unlink(missing_ok=True)
        if not segments(directory, journal):
            ledger.forget(journal)
            spare_path(directory, journal).unlink(missing_ok=True)
            next_path(directory, journal).unlink(missing_ok=True)
            lock_path(directory, journal).unlink(missing_ok=True)
        yield Adopted(journal, 0, reader.damaged, reader.missing)
    finally:
        reader.close()
