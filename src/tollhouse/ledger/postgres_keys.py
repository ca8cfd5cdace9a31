"""API keys in the PostgreSQL ledger.

Rule: who writes keys holds a lock until all can see what was written, so that changes are seen in the order of their
numbers, and who follows misses none.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from time import time
from typing import Any, Final

from tollhouse.ledger.keys import COLUMNS, IssuedKey, KeyLedger, KeyTable, following
from tollhouse.ledger.postgres_connection import Connection, connect, in_one, plain, translating
from tollhouse.ledger.postgres_place import Place
from tollhouse.ledger.postgres_schema import set_up

__all__ = ["PostgresKeys"]

_NAMES: Final = ", ".join(f'"{name}"' for name in COLUMNS)
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || ' tollhouse keys', 0))"


class PostgresKeys(KeyLedger):
    """The keys in the ledger at `place`."""

    def __init__(self, place: Place, now: Callable[[], float] = time) -> None:
        super().__init__(now)
        self._place = place
        self._reader: Connection | None = None

    def changes(self, after: int) -> list[IssuedKey] | None:
        try:
            db = self._reader
            if db is None:
                db = self._reader = self._connect()
            with translating(self._place):
                return following(_Table(db), after)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _connect(self) -> Connection:
        db = connect(self._place)
        try:
            with translating(self._place):
                set_up(db, self._place)
        except BaseException:
            db.close()
            raise
        return db

    @contextmanager
    def _open(self) -> Iterator[KeyTable]:
        with closing(self._connect()) as db, translating(self._place):
            yield _Table(db)

    @contextmanager
    def _writing(self) -> Iterator[KeyTable]:
        with closing(self._connect()) as db, translating(self._place), in_one(db):
            db.execute(_LOCK)
            yield _Table(db)


class _Table:
    __slots__ = ("_db",)

    def __init__(self, db: Connection) -> None:
        self._db = db

    def rows(self, where: str, values: Sequence[Any] = ()) -> list[Sequence[Any]]:
        query = f"SELECT {_NAMES} FROM api_keys WHERE {where}"  # noqa: S608
        found = self._db.execute(query.replace("?", "%s").encode(), _plain(values) or None)
        return [*found.fetchall()]

    def do(self, statement: str, values: Sequence[Any] = ()) -> None:
        self._db.execute(statement.replace("?", "%s").encode(), _plain(values))


def _plain(values: Sequence[Any]) -> list[Any]:
    return [plain(value) if isinstance(value, str) else value for value in values]
