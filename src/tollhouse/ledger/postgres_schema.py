"""The tables of a ledger in PostgreSQL: how they are made and brought up, and their months.

Rule: migrations are plain SQL with a number, each applied once, by whoever comes first; what has been released is never
changed. Records have a partition for each month, made ahead. One whose month has none is in the default partition, is
never lost, and is moved when its month is made; how many are there is known, because it should be none.
"""

import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.resources import files
from time import monotonic, time
from typing import Final

import psycopg
from psycopg import errors

from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.postgres_connection import Connection, in_one
from tollhouse.ledger.postgres_place import Place

__all__ = ["MONTHLY", "Months", "begin_of", "migrations", "month_of", "set_up"]

log = logging.getLogger("tollhouse.ledger")

MONTHLY: Final = ("usage_facts", "usage_draws")
"""Tables that have partitions."""

_AHEAD: Final = 3
"""Months that are there before their time, this one included."""
_BEHIND: Final = 60
"""The oldest month that is made for records which come late."""
_LOOK: Final = 3600.0
_LONGER: Final = 5
_MANY: Final = 100_000
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || ' tollhouse tables', 0))"


def migrations() -> list[str]:
    """The SQL of each version, from 1 on."""
    found = {
        int(path.name.partition("_")[0]): path.read_text(encoding="utf-8")
        for path in (files("tollhouse.ledger") / "postgres_migrations").iterdir()
        if path.name.endswith(".sql")
    }
    return [found[number] for number in range(1, len(found) + 1)]


def set_up(db: Connection, place: Place) -> None:
    """Make the tables, or bring them up; where they are as they should be, this asks one question. Raises LedgerError
    for tables of a newer version; psycopg.Error."""
    scripts = migrations()
    if _version(db, place, len(scripts)) == len(scripts):
        return
    patience = place.timeout * _LONGER  # another one may be at it
    deadline, db.deadline = db.deadline, patience + place.timeout
    try:
        with in_one(db):
            for limit in ("statement_timeout", "lock_timeout"):
                db.execute(f"SET LOCAL {limit} = {int(patience * 1000)}".encode())
            # The schema may not be there yet, nor may one that is be made again by whoever may make none.
            db.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s || ' tollhouse schema', 0))", (place.schema,))
            if db.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (place.schema,)).fetchone() is None:
                db.execute(f'CREATE SCHEMA "{place.schema}"'.encode())
            db.execute(_LOCK)
            db.execute("CREATE TABLE IF NOT EXISTS migrations (version integer PRIMARY KEY, at bigint NOT NULL)")
            for number in range(_version(db, place, len(scripts)) + 1, len(scripts) + 1):
                db.execute(scripts[number - 1].encode())
                db.execute("INSERT INTO migrations VALUES (%s, %s)", (number, int(time() * 1e6)))
    finally:
        db.deadline = deadline


def _version(db: Connection, place: Place, newest: int) -> int:
    row = db.execute("SELECT to_regclass(%s)", (f'"{place.schema}".migrations',)).fetchone()
    if row is None or row[0] is None:
        return 0
    row = db.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()
    assert row is not None
    version = int(row[0])
    if version > newest:
        raise LedgerError(
            f"{place} was written by a newer version of tollhouse (tables of version {version}, this one knows "
            f"{newest}); upgrade, or name another schema",
            lasting=True,
        )
    return version


def month_of(at: int) -> int:
    """The month, counted from the year 0, of a time in microseconds."""
    moment = datetime.fromtimestamp(at // 1_000_000, UTC)
    return moment.year * 12 + moment.month - 1


def begin_of(month: int) -> int:
    """When it begins, in microseconds."""
    return int(datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


class Months:
    """The months that have partitions. now: unix seconds. astray: records in the default partition, when that was
    looked at last."""

    def __init__(self, now: Callable[[], float] = time, astray: int = 0) -> None:
        self.now = now
        self.astray = astray
        self._known: set[int] = set()
        self._refused: set[int] = set()
        self._from = self._until = 0
        self._look_at = 0.0

    def ahead(self, db: Connection) -> None:
        """Make those that will be needed, once an hour. Raises psycopg.OperationalError where the server is gone."""
        if monotonic() < self._look_at:
            return
        self._refused.clear()
        this = month_of(int(self.now() * 1e6))
        self._make(db, range(this, this + _AHEAD))
        self._look_at = monotonic() + _LOOK
        self._from = self._until = begin_of(this)
        while month_of(self._until) in self._known:
            self._until = begin_of(month_of(self._until) + 1)
        query = f"SELECT count(*) FROM (SELECT FROM usage_facts_default LIMIT {_MANY}) AS r"  # noqa: S608
        row = db.execute(query.encode()).fetchone()
        self.astray = row[0] if row is not None else 0
        if self.astray:
            log.warning("%d usage records are in no month's partition, but in usage_facts_default", self.astray)

    def cover(self, db: Connection, times: Iterable[int], low: int, high: int) -> None:
        """See that records of these times (microseconds; low and high: the first and the last) have a partition, as far
        as they can: not those of a clock that is years away."""
        if self._from <= low and high < self._until:
            return
        this = month_of(int(self.now() * 1e6))
        first, last = begin_of(this - _BEHIND), begin_of(this + _AHEAD)
        wanted = {month_of(at) for at in times if first <= at < last} - self._known - self._refused
        if wanted:
            self._make(db, sorted(wanted))
        if not (first <= low and high < last):
            self._look_at = 0.0  # some go astray: it is said soon

    def _make(self, db: Connection, months: Iterable[int]) -> None:
        for month in months:
            if month in self._known or month in self._refused:
                continue
            try:
                with in_one(db):
                    db.execute(_LOCK)
                    for table in MONTHLY:
                        _attach(db, table, month)
            except psycopg.Error as error:
                if db.closed or isinstance(error, errors.ReadOnlySqlTransaction):
                    raise  # nothing can be stored at all now
                log.error(
                    "the partitions of %d-%02d cannot be made: %s",
                    month // 12,
                    month % 12 + 1,
                    error.diag.message_primary,
                )
                self._refused.add(month)  # its records are in the default partition; in an hour it is tried again
            else:
                self._known.add(month)


def _attach(db: Connection, table: str, month: int) -> None:
    name = f"{table}_{month // 12}_{month % 12 + 1:02d}"
    row = db.execute("SELECT to_regclass(%s)", (name,)).fetchone()
    if row is not None and row[0] is not None:
        return
    begin, end = begin_of(month), begin_of(month + 1)
    # Made apart and then attached: nobody who writes to other months has to wait.
    db.execute(f"LOCK TABLE {table}_default IN ACCESS EXCLUSIVE MODE".encode())
    db.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS)".encode())
    db.execute(
        f"WITH moved AS (DELETE FROM {table}_default WHERE admitted_at >= {begin} AND admitted_at < {end} RETURNING *) "  # noqa: S608
        f"INSERT INTO {name} SELECT * FROM moved".encode()
    )
    db.execute(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ({begin}) TO ({end})".encode())
