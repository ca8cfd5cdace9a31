"""A connection to PostgreSQL, and what its errors mean.

Rule: errors of the driver become LedgerErrors here, in the server's words without what they were about: neither a
record nor a password is in them. A server that says nothing is given up, whatever TCP thinks of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import errors, pq

from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.postgres_place import Place

__all__ = ["Connection", "connect", "in_one", "plain", "rolled_back", "translating"]

Row = tuple[Any, ...]

_OLDEST: Final = 130000
_GRACE: Final = 2.0
"""Seconds that a server has, beyond its own limit for a statement, to say that the limit was reached."""
_UNREADABLE: Final = "␀"

_SETTINGS: Final = """
SELECT set_config('search_path', %s, false), set_config('timezone', 'UTC', false),
  set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false),
  set_config('idle_in_transaction_session_timeout', %s, false),
  CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', false) END,
  current_setting('server_encoding'), current_setting('server_version_num')::int
"""


class Connection(psycopg.Connection[Row]):
    """In autocommit. deadline: seconds after which a statement that nothing is heard of is given up, and the connection
    with it."""

    deadline: float | None = None

    def wait(self, gen: Any, interval: float = 0.5, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.deadline if timeout is None else timeout)
        except errors._WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError("the server does not answer") from None


def connect(place: Place) -> Connection:
    """Raises LedgerError."""
    with translating(place):
        db = Connection.connect(autocommit=True, **place.options())
        try:
            db.deadline = place.timeout + _GRACE
            ms = str(int(place.timeout * 1000))
            row = db.execute(_SETTINGS, (f'"{place.schema}"', ms, ms, str(int(place.timeout * 4000)))).fetchone()
            assert row is not None
            encoding, version = row[-2:]
            if encoding != "UTF8":
                raise LedgerError(f"{place}: its encoding is {encoding}; make the database with UTF8", lasting=True)
            if version < _OLDEST:
                raise LedgerError(f"{place}: PostgreSQL 13 or newer is needed", lasting=True)
        except BaseException:
            db.close()
            raise
    return db


@contextmanager
def translating(place: Place) -> Iterator[None]:
    """Errors of the driver as LedgerErrors."""
    try:
        yield
    except psycopg.Error as error:
        said = error.diag.message_primary or " ".join(str(error).split())
        if isinstance(error, psycopg.DataError):
            said = f"{type(error).__name__}, of a value that is not told"
        if place.password:
            said = said.replace(place.password, "...")
        raise LedgerError(f"{place}: {said}", lasting=_is_lasting(error)) from None


@contextmanager
def in_one(db: Connection) -> Iterator[None]:
    """One transaction."""
    db.execute("BEGIN")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        rolled_back(db)
        raise


def rolled_back(db: Connection) -> None:
    """What is open is undone: by the server itself where it cannot be told."""
    if db.info.transaction_status in (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR):
        with suppress(psycopg.Error):
            db.execute("ROLLBACK")


def plain(text: str) -> str:
    """A text that PostgreSQL can have: it knows no NUL."""
    return text.replace("\x00", _UNREADABLE) if "\x00" in text else text


def _is_lasting(error: psycopg.Error) -> bool:
    return isinstance(error, (psycopg.ProgrammingError, errors.InvalidAuthorizationSpecification))
