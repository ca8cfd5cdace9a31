"""Audit records in SQLite: how they are put away, and how they are read again.

Rule: a record is kept as the bytes that were written, because these are what its hash covers; the columns beside them
only find it, and whoever verifies compares them with it. Nothing here is ever deleted.

Tables:
    audit         one row a record: journal (the number of the chain's journal), n, at (microseconds), body
    audit_chains  the last record of each chain, to be named by those that begin later
View:
    audit_records one row a record, with its members as columns
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from tollhouse.ledger.audit import Anchor, AuditRecord
from tollhouse.ledger.base import Entry, LedgerError
from tollhouse.ledger.records import AUDIT, identify

__all__ = ["TABLES", "AuditReader", "Placed", "Row", "put_away"]

_TEXTS = (
    "operation", "request_id", "principal", "source", "user", "org", "agent", "client", "key", "issuer", "jti",
    "minted", "session", "address", "route", "server", "target", "backend", "arguments_hash", "arguments", "decision",
    "rule", "approver", "outcome", "reason", "subject", "audience",
)  # fmt: skip

TABLES: Final = f"""
CREATE TABLE audit (
  journal INTEGER NOT NULL, n INTEGER NOT NULL, at INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (journal, n)
) WITHOUT ROWID;
CREATE INDEX audit_at ON audit (at);
CREATE TABLE audit_chains (
  journal INTEGER PRIMARY KEY, n INTEGER NOT NULL, hash TEXT NOT NULL, at INTEGER NOT NULL
);
CREATE VIEW audit_records AS SELECT j.journal AS chain, a.n, a.at,
  {", ".join(f"coalesce(json_extract(a.body, '$.{name}'), '') AS {name}" for name in _TEXTS)},
  coalesce(json_extract(a.body, '$.actors'), '[]') AS actors,
  coalesce(json_extract(a.body, '$.status'), 0) AS status,
  coalesce(json_extract(a.body, '$.took_us'), 0) AS took_us
  FROM audit a CROSS JOIN journals j ON j.number = a.journal
"""  # noqa: S608

_THERE = "SELECT body FROM audit WHERE journal = ? AND n = ?"
_AT_ONCE: Final = 64
"""Rows in a statement: while SQLite takes them the interpreter is free for the event loop (as `sqlite._AT_ONCE`)."""
_PUT = "INSERT INTO audit VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_PUT_MANY = f"INSERT INTO audit VALUES {', '.join(['(?, ?, ?, ?)'] * _AT_ONCE)} ON CONFLICT DO NOTHING"  # noqa: S608
_HEAD = (
    "INSERT INTO audit_chains VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE "
    "SET n = excluded.n, hash = excluded.hash, at = excluded.at WHERE excluded.n > n"
)
_OF_CHAIN = "SELECT n, at, body FROM audit WHERE journal = (SELECT number FROM journals WHERE journal = ?)"
_PAGE = 1000


class Placed(msgspec.Struct, gc=False):
    """What of a record says where it belongs."""

    n: int
    prev: str
    at: int
    hash: str
    operation: str = ""
    seal: str = ""
    anchors: tuple[Anchor, ...] = ()


_placed = msgspec.json.Decoder(Placed).decode


class Row(NamedTuple):
    """A record as it is stored."""

    n: int
    at: int
    body: bytes


def put_away(db: sqlite3.Connection, journal: int, entries: Sequence[Entry]) -> tuple[int, list[tuple[Entry, str]]]:
    """Store these, within the transaction that is open: how many are new, and those that cannot be, with why. One that
    is there already, byte for byte, is neither."""
    stored = 0
    wrong: list[tuple[Entry, str]] = []
    found: list[tuple[Entry, Placed, str]] = []
    head: Placed | None = None
    for entry in entries:
        try:
            found.append((entry, _placed(entry.body), entry.body.decode()))
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


def _put_many(db: sqlite3.Connection, journal: int, rows: Sequence[tuple[Entry, Placed, str]]) -> bool:
    """Store these in one statement, if none of them is there: whether all are stored. Else none is."""
    values = [value for _, placed, text in rows for value in (journal, placed.n, placed.at, text)]
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


class AuditReader:
    """Reads what is in the file, and changes nothing. Every method raises LedgerError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        except sqlite3.Error as error:
            raise LedgerError(f"{path}: {error}") from error

    def close(self) -> None:
        self._db.close()

    def chains(self) -> list[str]:
        """Those that have records here or are said to have had some, the oldest first."""
        found = self._ask(
            "SELECT j.journal FROM journals j WHERE j.number IN (SELECT journal FROM audit_chains) "
            "OR EXISTS (SELECT 1 FROM audit a WHERE a.journal = j.number) ORDER BY j.number"
        )
        return [row[0] for row in found]

    def strays(self) -> int:
        """Records whose chain has no name any more."""
        return int(self._ask("SELECT count(*) FROM audit WHERE journal NOT IN (SELECT number FROM journals)")[0][0])

    def heads(self, limit: int) -> list[Anchor]:
        """The last records of the chains that were written to last."""
        found = self._ask(
            "SELECT j.journal, c.n, c.hash FROM audit_chains c JOIN journals j ON j.number = c.journal "
            "ORDER BY c.at DESC LIMIT ?",
            limit,
        )
        return [Anchor(*row) for row in found]

    def head(self, chain: str) -> Anchor | None:
        """The last record of a chain, as was noted when it was put away."""
        found = self._ask(
            "SELECT c.n, c.hash FROM audit_chains c JOIN journals j ON j.number = c.journal WHERE j.journal = ?", chain
        )
        return Anchor(chain, *found[0]) if found else None

    def rows(self, chain: str, after: int = 0) -> Iterator[Row]:
        """The records of a chain, by number."""
        while True:  # by the page: no transaction is held open that would keep the file's log from being cut
            page = self._ask(f"{_OF_CHAIN} AND n > ? ORDER BY n LIMIT ?", chain, after, _PAGE)
            yield from map(_row, page)
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    def at(self, chain: str, n: int) -> Row | None:
        """One record."""
        found = self._ask(f"{_OF_CHAIN} AND n = ?", chain, n)
        return _row(found[0]) if found else None

    def rejected(self) -> int:
        """Records that could not be put away, and lie among the rejected."""
        return int(self._ask("SELECT count(*) FROM rejected WHERE kind = ?", AUDIT)[0][0])

    def newest(self, since: int, *, limit: int, where: Sequence[tuple[str, str]] = ()) -> list[AuditRecord]:
        """The newest records since then (unix seconds), the oldest of them first. where: members and what they are."""
        for name, _ in where:
            if name not in _TEXTS:
                raise ValueError(f"records cannot be found by {name!r}")
        asked = "".join(f" AND json_extract(a.body, '$.{name}') = ?" for name, _ in where)
        found = self._ask(
            "SELECT j.journal, a.body FROM audit a CROSS JOIN journals j ON j.number = a.journal "  # noqa: S608
            f"WHERE a.at >= ?{asked} ORDER BY a.at DESC, a.journal, a.n DESC LIMIT ?",
            since * 1_000_000,
            *(value for _, value in where),
            limit,
        )
        records = []
        for chain, body in reversed(found):
            try:
                record = msgspec.json.decode(body, type=AuditRecord)
            except (msgspec.MsgspecError, TypeError):
                continue  # `verify` says which one that is
            record.chain = chain
            record.id = identify(record.chain, record.n, record.at)
            records.append(record)
        return records

    def _ask(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"{self._path}: {error}") from error


def _row(found: tuple[Any, ...]) -> Row:
    n, at, body = found
    return Row(n, at, body.encode() if isinstance(body, str) else b"")
