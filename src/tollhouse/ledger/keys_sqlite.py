"""API keys in the SQLite ledger.

Rule: who follows asks the file whether anybody has written to it, which costs some microseconds; only then it reads.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from time import time
from typing import Any

from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.keys import COLUMNS, IssuedKey, KeyLedger, KeyTable, following
from tollhouse.ledger.sqlite import SqliteLedger

__all__ = ["SqliteKeys"]

_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)


class SqliteKeys(KeyLedger):
    """The keys in the ledger at `path`."""

    def __init__(self, path: Path, now: Callable[[], float] = time) -> None:
        super().__init__(now)
        self._path = path
        self._reader: sqlite3.Connection | None = None
        self._data_version = -1

    def changes(self, after: int) -> list[IssuedKey] | None:
        try:
            db = self._reader
            if db is None:
                db = self._reader = self._connect()
            version = int(db.execute("PRAGMA data_version").fetchone()[0])
            if version == self._data_version:
                return None
            found = following(_Table(db), after)
            self._data_version = version  # of before the reading: what came in between is read again
            return found
        except sqlite3.Error as error:
            self.close()
            raise LedgerError(f"{self._path}: {error}") from error

    def close(self) -> None:
        reader, self._reader = self._reader, None
        self._data_version = -1
        if reader is not None:
            reader.close()

    def _connect(self) -> sqlite3.Connection:
        ledger = SqliteLedger(self._path)
        ledger.open()  # which makes the tables
        ledger.close()
        db = sqlite3.connect(self._path, timeout=5.0, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA synchronous = FULL")
        return db

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(self._connect()) as db:
                yield db
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: {error}") from error

    @contextmanager
    def _open(self) -> Iterator[KeyTable]:
        with self._opened() as db:
            yield _Table(db)

    @contextmanager
    def _writing(self) -> Iterator[KeyTable]:
        with self._opened() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield _Table(db)
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


class _Table:
    __slots__ = ("_db",)

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def rows(self, where: str, values: Sequence[Any] = ()) -> list[Sequence[Any]]:
        return self._db.execute(f"SELECT {_NAMES} FROM api_keys WHERE {where}", values).fetchall()  # noqa: S608

    def do(self, statement: str, values: Sequence[Any] = ()) -> None:
        self._db.execute(statement, values)
