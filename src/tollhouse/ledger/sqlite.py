"""The ledger in one SQLite file: what a single machine needs, with nothing beside it.

Rule: one transaction a batch (BEGIN IMMEDIATE): records, hourly sums and the journal's position. WAL, so that reading
never waits for writing, and synchronous=FULL, because a committed batch lets its journal segment be deleted. Several
workers may write to one file; each waits up to `busy` seconds for its turn, in its shipper's thread.

Tables (times in microseconds since 1970, UTC):
    usage      one row a UsageRecord; the column names are the record's. Ids begin with the time: a range of ids is a
               range of time, so no further index is kept
    usage_hour sums by hour (hours since 1970) and who, what and outcome; kept in the same transaction as `usage`
    positions  journal -> last seq stored
    rejected   entries that could not be stored, with their bytes and why
    migrations version -> when it was applied
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

import msgspec

from tollhouse.ledger.base import BY, Entry, LedgerError, UsageRow
from tollhouse.ledger.records import USAGE, Outcome, UsageRecord, identify

__all__ = ["SqliteLedger"]

_USAGE_1 = """
CREATE TABLE usage (
  id TEXT PRIMARY KEY, journal TEXT NOT NULL, seq INTEGER NOT NULL,
  admitted_at INTEGER NOT NULL, ended_at INTEGER NOT NULL, request_id TEXT NOT NULL, attempt INTEGER NOT NULL,
  org TEXT NOT NULL, team TEXT NOT NULL, user TEXT NOT NULL, key TEXT NOT NULL, agent TEXT NOT NULL,
  route TEXT NOT NULL, dialect TEXT NOT NULL, operation TEXT NOT NULL,
  model_asked TEXT NOT NULL, model_answered TEXT NOT NULL, provider TEXT NOT NULL, backend TEXT NOT NULL,
  server TEXT NOT NULL, tool TEXT NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL, status INTEGER NOT NULL,
  input INTEGER NOT NULL, output INTEGER NOT NULL, cache_read INTEGER NOT NULL, cache_write INTEGER NOT NULL,
  reasoning INTEGER NOT NULL, estimated INTEGER NOT NULL, cost_nano INTEGER,
  ttft_us INTEGER NOT NULL, total_us INTEGER NOT NULL, upstream_us INTEGER NOT NULL,
  bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, stream INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE usage_hour (
  hour INTEGER NOT NULL, org TEXT NOT NULL, team TEXT NOT NULL, user TEXT NOT NULL, key TEXT NOT NULL,
  agent TEXT NOT NULL, route TEXT NOT NULL, model TEXT NOT NULL, provider TEXT NOT NULL, server TEXT NOT NULL,
  tool TEXT NOT NULL, outcome TEXT NOT NULL,
  requests INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL, cache_read INTEGER NOT NULL,
  cache_write INTEGER NOT NULL, reasoning INTEGER NOT NULL, cost_nano INTEGER NOT NULL, unpriced INTEGER NOT NULL,
  PRIMARY KEY (hour, org, team, user, key, agent, route, model, provider, server, tool, outcome)
) WITHOUT ROWID;
CREATE TABLE positions (journal TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE rejected (
  journal TEXT NOT NULL, seq INTEGER NOT NULL, kind INTEGER NOT NULL, body BLOB NOT NULL, why TEXT NOT NULL,
  at INTEGER NOT NULL, PRIMARY KEY (journal, seq)
) WITHOUT ROWID;
"""

_MIGRATIONS: tuple[str, ...] = (_USAGE_1,)
"""Applied in order, each once; what has been released is never changed."""

_COLUMNS = UsageRecord.__struct_fields__
_INSERT = f"INSERT INTO usage ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))}) ON CONFLICT DO NOTHING"  # noqa: S608
_GROUP = (
    "hour", "org", "team", "user", "key", "agent", "route", "model", "provider", "server", "tool", "outcome",
)  # fmt: skip
_SUMS = ("requests", "input", "output", "cache_read", "cache_write", "reasoning", "cost_nano", "unpriced")
_ADD = (
    f"INSERT INTO usage_hour ({', '.join(_GROUP + _SUMS)}) VALUES ({', '.join('?' * len(_GROUP + _SUMS))}) "  # noqa: S608
    f"ON CONFLICT DO UPDATE SET {', '.join(f'{s} = {s} + excluded.{s}' for s in _SUMS)}"
)
_POSITION = "INSERT INTO positions VALUES (?, ?) ON CONFLICT DO UPDATE SET seq = excluded.seq"
_REJECT = "INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_ERRORS = ", ".join(
    f"'{o}'" for o in (Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.CUT, Outcome.ERROR, Outcome.LOST)
)
_ADMITTED = _COLUMNS.index("admitted_at")
_COST = _COLUMNS.index("cost_nano")
_WHO = itemgetter(*(_COLUMNS.index({"model": "model_asked"}.get(name, name)) for name in _GROUP[1:]))
_TOKENS = itemgetter(*(_COLUMNS.index(name) for name in _SUMS[1:6]))
_HOUR_US = 3_600_000_000
_TIMES = {
    "hour": "strftime('%Y-%m-%dT%H:00:00Z', hour * 3600, 'unixepoch')",
    "day": "strftime('%Y-%m-%dT00:00:00Z', hour * 3600, 'unixepoch')",
}

Row = tuple[Any, ...]


class SqliteLedger:
    """A `base.Ledger` in the file `path`. busy: seconds to wait for another writer."""

    def __init__(self, path: Path | str, *, busy: float = 5.0) -> None:
        self.path = Path(path)
        self._busy = busy
        self._db: sqlite3.Connection | None = None
        self._decode: Callable[[bytes], UsageRecord] = msgspec.json.Decoder(UsageRecord).decode

    def open(self) -> None:
        if self._db is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self.path.touch(mode=0o600)
            # One thread at a time is the contract of Ledger, not one thread for ever.
            db = sqlite3.connect(self.path, timeout=self._busy, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{self.path}: {error}") from error
        try:
            self._set_up(db)
        except sqlite3.Error as error:
            db.close()
            raise _translated(self.path, error) from error
        except LedgerError:
            db.close()
            raise
        self._db = db

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def position(self, journal: str) -> int:
        try:
            return self._position(self._open(), journal)
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error

    def ship(self, journal: str, entries: Sequence[Entry]) -> int:
        db = self._open()
        try:
            return self._whole(db, journal, entries)
        except _UNUSUAL:
            pass  # look at each
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error
        try:
            return self._one_by_one(db, journal, entries)
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error

    def forget(self, journal: str) -> None:
        try:
            self._open().execute("DELETE FROM positions WHERE journal = ?", (journal,))
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error

    def rejected(self) -> int:
        try:
            return int(self._open().execute("SELECT count(*) FROM rejected").fetchone()[0])
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error

    def usage(self, since: int, until: int, by: Sequence[str] = ()) -> list[UsageRow]:
        for name in by:
            if name not in BY:
                raise ValueError(f"usage cannot be grouped by {name!r}; by {', '.join(BY)} it can")
        group = [_TIMES.get(name, name) for name in by]
        sums = ", ".join(f"sum({s})" for s in _SUMS)
        query = (
            f"SELECT {''.join(g + ', ' for g in group)}{sums}, sum(requests * (outcome IN ({_ERRORS}))) "  # noqa: S608
            "FROM usage_hour WHERE hour >= ? AND hour < ?"
        )
        if group:
            numbers = ", ".join(str(n + 1) for n in range(len(group)))
            query += f" GROUP BY {numbers} ORDER BY {numbers}"
        try:
            rows = self._open().execute(query, (since // 3600, -(-until // 3600))).fetchall()
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error
        n = len(group)
        return [
            UsageRow(tuple(r[:n]), r[n], r[n + 8], *r[n + 1 : n + 8])
            for r in rows
            if r[n] is not None  # sums over nothing
        ]

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise LedgerError(f"{self.path}: not open")
        return self._db

    def _set_up(self, db: sqlite3.Connection) -> None:
        give_up = monotonic() + self._busy
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError:
                # Turning WAL on needs the file alone, and SQLite does not wait for that.
                if monotonic() >= give_up:
                    raise
                sleep(0.02)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute("CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, at INTEGER NOT NULL)")
            version = db.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()[0]
            if version > len(_MIGRATIONS):
                raise LedgerError(
                    f"{self.path} was written by a newer version of tollhouse (tables of version {version}, this one "
                    f"knows {len(_MIGRATIONS)}); upgrade, or use another file",
                    lasting=True,
                )
            for number, script in enumerate(_MIGRATIONS[version:], version + 1):
                for statement in script.split(";"):
                    db.execute(statement)
                db.execute("INSERT INTO migrations VALUES (?, ?)", (number, int(time() * 1e6)))
            db.execute("COMMIT")
        except BaseException:
            _roll_back(db)
            raise

    @staticmethod
    def _position(db: sqlite3.Connection, journal: str) -> int:
        row = db.execute("SELECT seq FROM positions WHERE journal = ?", (journal,)).fetchone()
        return 0 if row is None else int(row[0])

    def _row(self, journal: str, entry: Entry) -> Row:
        """The columns of one entry. Raises one of _POISON when it is not a record this table can hold."""
        if entry.kind != USAGE:
            raise ValueError(f"unknown kind of record: {entry.kind}")
        record = self._decode(entry.body)
        record.journal = journal
        record.seq = entry.seq
        record.id = identify(journal, entry.seq, record.admitted_at)
        return msgspec.structs.astuple(record)

    def _whole(self, db: sqlite3.Connection, journal: str, entries: Sequence[Entry]) -> int:
        """The usual case: all are new and good."""
        sums: dict[Row, list[int]] = {}
        position = 0

        def rows() -> Any:
            # Row by row while SQLite takes them: between two steps the interpreter is free for the event loop.
            for entry in entries:
                if entry.seq > position:
                    row = self._row(journal, entry)
                    _sum_up(sums, row)
                    yield row

        db.execute("BEGIN IMMEDIATE")
        try:
            position = self._position(db, journal)
            before = db.total_changes
            db.executemany(_INSERT, rows())
            stored = db.total_changes - before
            if stored != sum(s[0] for s in sums.values()):
                raise _Doubtful  # some were there already; which ones is not known
            db.executemany(_ADD, [(*group, *values) for group, values in sums.items()])
            self._advance(db, journal, position, entries)
            db.execute("COMMIT")
        except BaseException:
            _roll_back(db)
            raise
        return stored

    def _one_by_one(self, db: sqlite3.Connection, journal: str, entries: Sequence[Entry]) -> int:
        """With rows that are there already, or cannot be stored."""
        sums: dict[Row, list[int]] = {}
        stored = 0
        db.execute("BEGIN IMMEDIATE")
        try:
            position = self._position(db, journal)
            for entry in entries:
                if entry.seq <= position:
                    continue
                try:
                    row = self._row(journal, entry)
                    new = db.execute(_INSERT, row).rowcount == 1
                except _POISON as error:
                    why = f"{type(error).__name__}: {error}"[:500]
                    db.execute(_REJECT, (journal, entry.seq, entry.kind, entry.body, why, int(time() * 1e6)))
                    continue
                if new:
                    stored += 1
                    _sum_up(sums, row)
            db.executemany(_ADD, [(*group, *values) for group, values in sums.items()])
            self._advance(db, journal, position, entries)
            db.execute("COMMIT")
        except BaseException:
            _roll_back(db)
            raise
        return stored

    @staticmethod
    def _advance(db: sqlite3.Connection, journal: str, position: int, entries: Sequence[Entry]) -> None:
        if entries and entries[-1].seq > position:
            db.execute(_POSITION, (journal, entries[-1].seq))


class _Doubtful(Exception):
    """The batch must be looked at row by row."""


_POISON: tuple[type[Exception], ...] = (
    ValueError,  # not JSON, wrong types, an unknown kind (msgspec's errors are ValueErrors)
    OverflowError,  # an integer above 64 bits
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
)


_UNUSUAL: tuple[type[Exception], ...] = (_Doubtful, *_POISON)


def _sum_up(sums: dict[Row, list[int]], row: Row) -> None:
    """Add one row of `usage` to the sums of its hour and group."""
    cost = row[_COST]
    group = (row[_ADMITTED] // _HOUR_US, *_WHO(row))
    tokens = _TOKENS(row)
    have = sums.get(group)
    if have is None:
        sums[group] = [1, *tokens, cost or 0, cost is None]
        return
    have[0] += 1
    for n, count in enumerate(tokens, 1):
        have[n] += count
    have[6] += cost or 0
    have[7] += cost is None


def _roll_back(db: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        if db.in_transaction:
            db.execute("ROLLBACK")


def _translated(path: Path, error: sqlite3.Error) -> LedgerError:
    lasting = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
    return LedgerError(f"{path}: {error}", lasting=lasting)
