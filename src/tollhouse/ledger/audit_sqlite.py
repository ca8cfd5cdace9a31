"""Audit records in SQLite: how they are put away, and how they are read again.

Rule: a record is kept as the bytes that were written, because these are what its hash covers; the columns beside them
only find it, and whoever verifies compares them with it. What is deleted is deleted by `audit_cut` alone.

Tables:
    audit         one row a record: journal (the number of the chain's journal), n, at (microseconds), body
    audit_chains  the last record of each chain, to be named by those that begin later
View:
    audit_records one row a record, with its members as columns
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tollhouse.ledger.audit_reader import TEXTS, AuditReader, Linked, place_in
from tollhouse.ledger.base import Entry, LedgerError

__all__ = ["TABLES", "SqliteAudit", "put_away"]

TABLES: Final = f"""
CREATE TABLE audit (
  journal INTEGER NOT NULL, n INTEGER NOT NULL, at INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (journal, n)
) WITHOUT ROWID;
CREATE INDEX audit_at ON audit (at);
CREATE TABLE audit_chains (
  journal INTEGER PRIMARY KEY, n INTEGER NOT NULL, hash TEXT NOT NULL, at INTEGER NOT NULL
);
CREATE VIEW audit_records AS SELECT j.journal AS chain, a.n, a.at,
  {", ".join(f"coalesce(json_extract(a.body, '$.{name}'), '') AS {name}" for name in TEXTS)},
  coalesce(json_extract(a.body, '$.actors'), '[]') AS actors,
  coalesce(json_extract(a.body, '$.status'), 0) AS status,
  coalesce(json_extract(a.body, '$.took_us'), 0) AS took_us
  FROM audit a CROSS JOIN journals j ON j.number = a.journal
"""  # noqa: S608

_THERE = "SELECT body FROM audit WHERE journal = ? AND n = ?"
_AT_ONCE: Final = 64
"""Rows in a statement: while SQLite takes them the interpreter is free for the event loop (as `sqlite._AT_ONCE`)."""
_PUT = "INSERT INTO audit VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_ROWS = ", ".join(f"(?1, ?{n}, ?{n + 1}, ?{n + 2})" for n in range(2, 2 + 3 * _AT_ONCE, 3))
_PUT_MANY = f"INSERT INTO audit VALUES {_ROWS} ON CONFLICT DO NOTHING"  # noqa: S608
_HEAD = (
    "INSERT INTO audit_chains VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE "
    "SET n = excluded.n, hash = excluded.hash, at = excluded.at WHERE excluded.n > n"
)


def put_away(db: sqlite3.Connection, journal: int, entries: Sequence[Entry]) -> tuple[int, list[tuple[Entry, str]]]:
    """Store these, within the transaction that is open: how many are new, and those that cannot be, with why. One that
    is there already, byte for byte, is neither."""
    stored = 0
    wrong: list[tuple[Entry, str]] = []
    found: list[tuple[Entry, Linked, str]] = []
    head: Linked | None = None
    for entry in entries:
        try:
            found.append((entry, place_in(entry.body), entry.body.decode()))
        except ValueError as error:
            wrong.append((entry, _why(error)))
    many = len(found) - len(found) % _AT_ONCE
    for first in range(0, many, _AT_ONCE):
        rows = found[first : first + _AT_ONCE]
        if not _put_many(db, journal, rows):
            many = first  # one of these is there already, or cannot be: which, is seen one by one
            break
        stored += _AT_ONCE
        head = rows[-1][1]
    for entry, placed, text in found[many:]:
        try:
            new = db.execute(_PUT, (journal, placed.n, placed.at, text)).rowcount == 1
        except (OverflowError, sqlite3.IntegrityError, sqlite3.DataError) as error:
            wrong.append((entry, _why(error)))
            continue
        if new:
            stored += 1
            head = placed
        elif db.execute(_THERE, (journal, placed.n)).fetchone()[0] != text:
            wrong.append((entry, f"another record has the place {placed.n} of its chain"))
    if head is not None:
        db.execute(_HEAD, (journal, head.n, head.hash, head.at))
    return stored, wrong


def _put_many(db: sqlite3.Connection, journal: int, rows: Sequence[tuple[Entry, Linked, str]]) -> bool:
    """Store these in one statement, if none of them is there: whether all are stored. Else none is."""
    values: list[int | str] = [journal]
    for _, placed, text in rows:
        values += (placed.n, placed.at, text)
    db.execute("SAVEPOINT rows")
    try:
        whole = db.execute(_PUT_MANY, values).rowcount == len(rows)
    except (OverflowError, sqlite3.IntegrityError, sqlite3.DataError):
        whole = False
    if not whole:
        db.execute("ROLLBACK TO rows")
    db.execute("RELEASE rows")
    return whole


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


class SqliteAudit(AuditReader):
    """Reads what is in the file."""

    member = "json_extract(a.body, '$.{}')"

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise LedgerError(f"{path}: {error}") from error

    def close(self) -> None:
        self._db.close()

    def _ask(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: {error}") from error
