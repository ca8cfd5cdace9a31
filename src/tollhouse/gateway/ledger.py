"""The ledger that a configuration names, and how a command reads it.

Rule: a command sees what a dead process left in its journal as well; asking makes no ledger where there is none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.ship import catch_up
from tollhouse.ledger.sqlite import SqliteLedger

__all__ = ["NothingRecorded", "caught_up", "journal_of"]


class NothingRecorded(LedgerError):
    """There is no ledger yet."""


def journal_of(ledger: Path) -> Path:
    """The directory of the journals that are shipped to the ledger in that file."""
    return ledger.with_name(ledger.name + ".journal")


@contextmanager
def caught_up(path: Path) -> Iterator[SqliteLedger]:
    """The ledger in that file, open, with what a dead process left. Raises LedgerError."""
    journal = journal_of(path)
    if not path.exists() and not journal.exists():
        raise NothingRecorded(f"nothing is recorded yet: there is no {path}")
    ledger = SqliteLedger(path)
    ledger.open()
    try:
        catch_up(journal, ledger)
        yield ledger
    finally:
        ledger.close()
