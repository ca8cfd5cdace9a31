"""The ledger that a configuration names, and how a command reads it.

Rule: which database it is, is known here and nowhere above. A command sees what a dead process left in its journal as
well; asking makes no ledger where there is none.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Final

from tollhouse.config.ledger import LedgerSpec
from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Failure, Problem, Reason
from tollhouse.ledger.audit_reader import AuditReader
from tollhouse.ledger.audit_sqlite import SqliteAudit
from tollhouse.ledger.base import Ledger, LedgerError
from tollhouse.ledger.keys import KeyLedger
from tollhouse.ledger.keys_sqlite import SqliteKeys
from tollhouse.ledger.ship import catch_up
from tollhouse.ledger.sqlite import SqliteLedger

__all__ = [
    "NothingRecorded", "alone", "audit_of", "caught_up", "check_ledger", "journal_of", "keys_of", "ledger_of",
    "sink_of",
]  # fmt: skip

_PATIENCE: Final = 10.0  # seconds that one waits for another


class NothingRecorded(LedgerError):
    """There is no ledger yet."""


def journal_of(ledger: Path) -> Path:
    """The directory of the journals that are shipped to the ledger whose files stand beside that one."""
    return ledger.with_name(ledger.name + ".journal")


def check_ledger(spec: LedgerSpec | None) -> None:
    """Whether the files that it names can be used. Raises ConfigError."""
    if spec is not None and spec.tls:
        try:
            spec.tls.context()
        except ValueError as error:
            raise ConfigError([Problem(str(error), path="ledger.tls")]) from None


def ledger_of(config: Config) -> Ledger:
    """The ledger, not open yet. Raises ConfigError where none is named, or its certificates cannot be used."""
    spec = _named(config)
    check_ledger(spec)
    if spec.is_postgres:
        from tollhouse.ledger.postgres import PostgresLedger  # of an extra  # noqa: PLC0415

        return PostgresLedger(spec.place)
    return SqliteLedger(spec.file)


def keys_of(config: Config) -> KeyLedger:
    """The API keys in it. Raises ConfigError where none is named."""
    spec = _named(config)
    if spec.is_postgres:
        from tollhouse.ledger.postgres_keys import PostgresKeys  # noqa: PLC0415

        return PostgresKeys(spec.place)
    return SqliteKeys(spec.file)


def audit_of(config: Config) -> AuditReader:
    """A reader of its audit records, to be closed. Raises LedgerError where it cannot be read; ConfigError where none
    is named."""
    spec = _named(config)
    if spec.is_postgres:
        from tollhouse.ledger.postgres_audit import PostgresAudit  # noqa: PLC0415

        return PostgresAudit(spec.place)
    return SqliteAudit(spec.file)


def sink_of(config: Config) -> str:
    """What it is called in metrics."""
    return "postgres" if _named(config).is_postgres else "sqlite"


@contextmanager
def caught_up(config: Config) -> Iterator[Ledger]:
    """The ledger, open, with what a dead process left. Raises LedgerError; ConfigError where none is named."""
    spec = _named(config)
    journal = journal_of(spec.file)
    _see(spec, journal)
    ledger = ledger_of(config)
    ledger.open()
    try:
        catch_up(journal, ledger)
        yield ledger
    finally:
        ledger.close()


@contextmanager
def alone(config: Config) -> Iterator[None]:
    """Nobody else is here who has come by this, on whatever machine that shares the ledger: for who reads something and
    writes what follows from it. Raises Failure 503 where somebody is for too long; LedgerError; ConfigError where none
    is named."""
    spec = _named(config)
    directory = journal_of(spec.file)
    _see(spec, directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise LedgerError(f"{directory} cannot be used: {error.strerror}") from None
    try:
        end = monotonic() + _PATIENCE
        while not _taken(held):
            if monotonic() > end:
                raise Failure(503, Reason.INTERNAL, "somebody else corrects the ledger; try again", retry_after=5.0)
            sleep(0.02)
        if not spec.is_postgres:
            yield
            return
        from tollhouse.ledger.postgres_connection import connect, translating  # of an extra  # noqa: PLC0415

        with closing(connect(spec.place)) as db:
            with translating(spec.place):
                mine = f"{spec.place.schema} tollhouse alone"
                db.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (mine,))
            yield
    finally:
        os.close(held)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _named(config: Config) -> LedgerSpec:
    if config.ledger is None:
        raise ConfigError([Problem("no ledger is named; write one, like sqlite:tollhouse.db", path="ledger")])
    return config.ledger


def _see(spec: LedgerSpec, journal: Path) -> None:
    """Raises NothingRecorded."""
    if not journal.exists() and not _is_there(spec):
        where = f"no {spec.file}" if not spec.is_postgres else f"no ledger in {spec.place}"
        raise NothingRecorded(f"nothing is recorded yet: there is {where}")


def _is_there(spec: LedgerSpec) -> bool:
    if spec.is_postgres:
        from tollhouse.ledger.postgres import is_there  # noqa: PLC0415

        return is_there(spec.place)
    return spec.file.exists()
