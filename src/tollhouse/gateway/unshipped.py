"""What the journals of this machine have and the ledger has not got yet: a ledger in memory, fed from their files.

Rule: the files are only read, whoever writes or ships them; the same queries as the ledger's tell what they come to. It
is read when somebody has to know and the ledger is behind (it takes nothing, or a process that is gone has left
something), and is bounded: beyond MOST records nobody knows, and that is said.

A sum is of (`after`, `upto`] of each journal, so that it does not matter what was shipped meanwhile: the files are read
first, then the ledger is asked where it is. What has been deleted from the files by then is in it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from tollhouse.ledger.base import Entry, Ledger, Post
from tollhouse.ledger.records import USAGE, UsageRecord
from tollhouse.ledger.segment import Reader, journals
from tollhouse.ledger.sqlite import MEMORY, SqliteLedger

__all__ = ["MOST", "Unshipped"]

log = logging.getLogger("tollhouse.gateway")

MOST: Final = 300_000
"""Records that are read; some 200 bytes each."""

_BATCH = 2000


class Unshipped:
    """To be used by one thread at a time. directory: of the journals; it need not be there."""

    def __init__(self, directory: Path, most: int = MOST) -> None:
        self._directory = directory
        self._most = most
        self._readers: dict[str, Reader] = {}
        self._begins: dict[str, int] = {}  # where each journal's reader began
        self._ledger: SqliteLedger | None = None
        self._count = 0

    @property
    def is_open(self) -> bool:
        """Whether files are being read."""
        return bool(self._readers)

    def __len__(self) -> int:
        """Records that are read."""
        return self._count

    def read(self, positions: Mapping[str, int]) -> bool:
        """Read what the files have got above these positions, which are the ledger's: whether that is all of it. Raises
        LedgerError."""
        if self._count and self._is_in(positions):
            self._forget()  # and read on: a segment may be long
        if not self._read(positions):
            if all(positions.get(journal, 0) <= begin for journal, begin in self._begins.items()):
                return False
            self.close()  # some of it is shipped: there is room
            return self._read(positions)
        return True

    def tidy(self, positions: Mapping[str, int]) -> None:
        """Let go of the files and of what was read, if the ledger has got all of it."""
        if self._is_in(positions):
            self.close()

    def ends(self) -> dict[str, int]:
        """Of each journal that has a usage record here, the last one's seq."""
        return {} if self._ledger is None else self._ledger.positions()

    def sum(
        self, question: Callable[[Ledger, Mapping[str, int]], int], after: Mapping[str, int], upto: Mapping[str, int]
    ) -> int:
        """What the records above `after` up to `upto` come to, of the journals of `upto`. question: a sum up to
        positions. Raises LedgerError."""
        ledger = self._ledger
        if ledger is None or not upto:
            return 0
        before = {journal: after.get(journal, 0) for journal in upto}
        return question(ledger, upto) - question(ledger, before)

    def posts(self, journal: str, after: int, most: int) -> list[Post]:
        """As of a Ledger."""
        return [] if self._ledger is None else self._ledger.posts(journal, after, most)

    def run_began(self, run: str, since_us: int) -> tuple[int, str] | None:
        """As of a Ledger."""
        return None if self._ledger is None else self._ledger.run_began(run, since_us)

    def records(self, since_us: int, until_us: int, most: int) -> list[UsageRecord]:
        """As of a Ledger, of any labels."""
        return [] if self._ledger is None else self._ledger.records(since_us, until_us, (), most)

    def close(self) -> None:
        """Forget what was read; it may be read again."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        self._begins.clear()
        self._forget()

    def _is_in(self, positions: Mapping[str, int]) -> bool:
        return all(positions.get(journal, 0) >= end for journal, end in self.ends().items())

    def _forget(self) -> None:
        ledger, self._ledger, self._count = self._ledger, None, 0
        if ledger is not None:
            ledger.close()

    def _read(self, positions: Mapping[str, int]) -> bool:
        whole = True
        for journal in journals(self._directory):
            try:
                whole &= self._read_one(journal, positions.get(journal, 0))
            except FileNotFoundError:
                self._drop(journal)  # shipped, and deleted meanwhile: the ledger has it
            except OSError as error:
                log.warning("the journal %s cannot be read: %s", journal, error)
                self._drop(journal)
                whole = False
        return whole

    def _read_one(self, journal: str, position: int) -> bool:
        reader = self._readers.get(journal)
        if reader is None:
            reader = self._readers[journal] = Reader(self._directory, journal, position, live=True)
            self._begins[journal] = position
        while self._count < self._most:
            entries = reader.read(_BATCH)
            reader.done.clear()
            if not entries:
                return True
            self._put(journal, [entry for entry in entries if entry.kind == USAGE])
        return False

    def _put(self, journal: str, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        if self._ledger is None:
            self._ledger = SqliteLedger(MEMORY)
            self._ledger.open()
        self._ledger.ship(journal, entries)
        self._count += len(entries)

    def _drop(self, journal: str) -> None:
        reader = self._readers.pop(journal, None)
        if reader is not None:
            with suppress(OSError):
                reader.close()
