"""Deleting from PostgreSQL what has been kept for as long as it has to be.

Rule: a month that is over goes as a whole, with its table; of others the oldest rows go, some in a step. Several
workers may do it at once: none waits for a row that another one is deleting. Labels stay, because writers remember
their numbers, and so do journals' names.
"""

import logging
import re
from typing import Final

from psycopg import errors

from tollhouse.ledger.base import Cuts
from tollhouse.ledger.postgres_connection import Connection, in_one
from tollhouse.ledger.postgres_schema import MONTHLY, begin_of
from tollhouse.ledger.records import USAGE
from tollhouse.ledger.rows import HOUR_US

__all__ = ["prune"]

log = logging.getLogger("tollhouse.ledger")

_NAME: Final = re.compile(r"usage_facts_(\d+)_(\d\d)")
_PATIENCE: Final = "SET LOCAL lock_timeout = '1s'"
"""Who reads the table keeps it from being dropped, and all who write wait behind who wants to drop it."""

_TABLES: Final = (
    "SELECT c.relname, greatest(c.reltuples, 1)::bigint FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
    "WHERE i.inhparent = to_regclass('usage_facts')"
)
_FACTS: Final = (
    "DELETE FROM usage_facts WHERE admitted_at < %s AND (admitted_at, journal, seq) IN (SELECT admitted_at, journal, "
    "seq FROM usage_facts WHERE admitted_at < %s ORDER BY admitted_at LIMIT %s FOR UPDATE SKIP LOCKED) "
    "RETURNING journal, seq, admitted_at"
)
_DRAWS: Final = (
    "DELETE FROM usage_draws d USING unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS g (journal, seq, admitted_at) "
    "WHERE d.journal = g.journal AND d.seq = g.seq AND d.admitted_at = g.admitted_at"
)
_SUMS: Final = (
    "DELETE FROM usage_sums WHERE (hour, labels) IN (SELECT hour, labels FROM usage_sums WHERE hour < %s "
    "ORDER BY hour LIMIT %s FOR UPDATE SKIP LOCKED)"
)
_REJECTED: Final = (
    "DELETE FROM rejected WHERE (journal, seq) IN (SELECT journal, seq FROM rejected WHERE kind = %s AND at < %s "
    "LIMIT %s FOR UPDATE SKIP LOCKED)"
)


def prune(db: Connection, cuts: Cuts, most: int) -> int:
    """See `base.Ledger.prune`. Of a month that goes as a whole the rows are not counted, but as its statistics say."""
    if cuts.usage is not None:
        dropped = _drop(db, cuts.usage)
        if dropped:
            return dropped
    gone = 0
    with in_one(db):
        if cuts.usage is not None:
            rows = db.execute(_FACTS, (cuts.usage, cuts.usage, most)).fetchall()
            if rows:
                db.execute(_DRAWS, [list(column) for column in zip(*rows, strict=True)])
                gone += len(rows)
            else:
                # What a closed journal had is older than when it was last written to.
                closed = "UPDATE journals SET last = 0 WHERE seq = 0 AND last > 0 AND last_at < %s"
                db.execute(closed, (cuts.usage,))
            gone += db.execute(_REJECTED, (USAGE, cuts.usage, most)).rowcount
        if cuts.rollup is not None:
            gone += db.execute(_SUMS, (cuts.rollup // HOUR_US, most)).rowcount
    return gone


def _drop(db: Connection, before: int) -> int:
    """Drop the oldest month that is over before then; about how many records it had."""
    found: list[tuple[int, str, int]] = []
    for name, rows in db.execute(_TABLES).fetchall():
        match = _NAME.fullmatch(name)
        if match is not None:
            month = int(match[1]) * 12 + int(match[2]) - 1
            if begin_of(month + 1) <= before:
                found.append((month, name.removeprefix("usage_facts_"), rows))
    if not found:
        return 0
    _, name, rows = min(found)
    try:
        with in_one(db):
            db.execute(_PATIENCE)
            for table in MONTHLY:
                db.execute(f"DROP TABLE IF EXISTS {table}_{name}".encode())
    except (errors.LockNotAvailable, errors.InsufficientPrivilege) as error:
        log.info("the records of %s go one by one: %s", name, error.diag.message_primary)
        return 0
    return int(rows)
