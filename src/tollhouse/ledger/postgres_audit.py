"""Audit records in PostgreSQL: how they are put away, and how they are read again.

Rule: as in SQLite, a record is kept as the text that was written; its columns only find it. Nothing here is changed or
deleted.
"""

from collections.abc import Sequence
from typing import Any, Final

from psycopg import errors

from tollhouse.ledger.audit_reader import AuditReader, Linked, place_in
from tollhouse.ledger.base import Entry, LedgerError
from tollhouse.ledger.postgres_connection import Connection, connect, translating
from tollhouse.ledger.postgres_place import Place

__all__ = ["PostgresAudit", "put_away"]

_PUT: Final = (
    "INSERT INTO audit (journal, n, at, body) "
    "SELECT %s, * FROM unnest(%s::bigint[], %s::bigint[], %s::text[]) ON CONFLICT DO NOTHING RETURNING n"
)
_THERE: Final = "SELECT n, body FROM audit WHERE journal = %s AND n = ANY(%s)"
_HEAD: Final = (
    "INSERT INTO audit_chains AS c VALUES (%s, %s, %s, %s) ON CONFLICT (journal) DO UPDATE "
    "SET n = excluded.n, hash = excluded.hash, at = excluded.at WHERE excluded.n > c.n"
)

Found = tuple[Entry, Linked, str]


def put_away(db: Connection, journal: int, entries: Sequence[Entry]) -> tuple[int, list[tuple[Entry, str]]]:
    """Store these, within the transaction that is open: how many are new, and those that cannot be, with why. One that
    is there already, byte for byte, is neither."""
    wrong: list[tuple[Entry, str]] = []
    found: list[Found] = []
    for entry in entries:
        try:
            found.append((entry, place_in(entry.body), entry.body.decode()))
        except ValueError as error:
            wrong.append((entry, _why(error)))
    stored = _put(db, journal, found, wrong)
    if stored:
        head = stored[-1]
        db.execute(_HEAD, (journal, head.n, head.hash, head.at))
    return len(stored), wrong


def _put(db: Connection, journal: int, rows: Sequence[Found], wrong: list[tuple[Entry, str]]) -> list[Linked]:
    """Those that are new; what cannot be stored is added to `wrong`."""
    if not rows:
        return []
    values = [place.n for _, place, _ in rows], [place.at for _, place, _ in rows], [text for _, _, text in rows]
    db.execute("SAVEPOINT audits")
    try:
        new = {row[0] for row in db.execute(_PUT, (journal, *values)).fetchall()}
    except (OverflowError, ValueError, errors.DataError, errors.IntegrityError) as error:
        db.execute("ROLLBACK TO audits")
        if len(rows) == 1:
            wrong.append((rows[0][0], _why(error)))
            return []
        half = len(rows) // 2
        return _put(db, journal, rows[:half], wrong) + _put(db, journal, rows[half:], wrong)
    db.execute("RELEASE audits")
    if len(new) < len(rows):
        others = [place.n for _, place, _ in rows]
        there: dict[int, str] = dict(db.execute(_THERE, (journal, others)).fetchall())
        for entry, place, text in rows:
            if there.get(place.n) != text:
                wrong.append((entry, f"another record has the place {place.n} of its chain"))
    stored: list[Linked] = []
    for _, place, _ in rows:
        if place.n in new:
            new.discard(place.n)  # of two with one place, the first
            stored.append(place)
    return stored


def _why(error: Exception) -> str:
    said = error.diag.message_primary if isinstance(error, errors.Error) else str(error)
    return f"{type(error).__name__}: {said}"[:500]


class PostgresAudit(AuditReader):
    """Reads what is in the database."""

    member = "audit_members(a.body) ->> '{}'"

    def __init__(self, place: Place) -> None:
        self._place = place
        self._db = connect(place)

    def close(self) -> None:
        self._db.close()

    def _ask(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        with translating(self._place):
            try:
                return self._db.execute(query.replace("?", "%s").encode(), values or None).fetchall()
            except errors.UndefinedTable:
                message = f"{self._place}: there is no ledger in its schema {self._place.schema!r} yet"
                raise LedgerError(message) from None
