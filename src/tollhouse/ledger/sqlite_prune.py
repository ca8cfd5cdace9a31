"""Deleting from SQLite what has been kept for as long as it has to be.

Rule: the oldest first, some rows a step, within the transaction that is open: who writes next waits for no more than a
step. Labels stay, because writers remember their numbers, and so do journals' names.
"""

import sqlite3

from tollhouse.ledger.base import Cuts
from tollhouse.ledger.records import USAGE
from tollhouse.ledger.rows import HOUR_US

__all__ = ["prune"]

_OLDEST = (
    "SELECT admitted_at, journal, seq FROM usage_facts WHERE admitted_at < ? ORDER BY admitted_at, journal, seq LIMIT ?"
)
_SUMS = "SELECT hour, labels FROM usage_sums WHERE hour < ? ORDER BY hour, labels LIMIT ?"
_REJECTED = (
    "DELETE FROM rejected WHERE (journal, seq) IN (SELECT journal, seq FROM rejected WHERE kind = ? AND at < ? LIMIT ?)"
)


def prune(db: sqlite3.Connection, cuts: Cuts, most: int) -> int:
    """See `base.Ledger.prune`."""
    gone = 0
    if cuts.usage is not None:
        rows = db.execute(_OLDEST, (cuts.usage, most)).fetchall()
        if rows:
            db.executemany("DELETE FROM usage_draws WHERE journal = ? AND seq = ?", [row[1:] for row in rows])
            last = "DELETE FROM usage_facts WHERE (admitted_at, journal, seq) <= (?, ?, ?)"
            gone += db.execute(last, rows[-1]).rowcount
        else:
            # What a closed journal had is older than when it was last written to.
            db.execute("UPDATE journals SET last = 0 WHERE seq = 0 AND last > 0 AND last_at < ?", (cuts.usage,))
        gone += db.execute(_REJECTED, (USAGE, cuts.usage, most)).rowcount
    if cuts.rollup is not None:
        rows = db.execute(_SUMS, (cuts.rollup // HOUR_US, most)).fetchall()
        if rows:
            gone += db.execute("DELETE FROM usage_sums WHERE (hour, labels) <= (?, ?)", rows[-1]).rowcount
    return gone
