"""ledger.retention: what is older than asked goes, in steps, and nothing else."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from time import time

import pytest
from tests.conformance.ledger import HOUR, JOURNAL, OTHER_JOURNAL, T0, entry

from tollhouse.ledger.base import Entry
from tollhouse.ledger.records import AUDIT, Anchor
from tollhouse.ledger.retention import Kept, Retention
from tollhouse.ledger.sqlite import SqliteLedger

DAY = 24 * HOUR


@pytest.fixture
def ledger(tmp_path: Path) -> SqliteLedger:
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    return ledger


class Says:
    """In the place of the process's chain."""

    def __init__(self, seq: int | None = 1) -> None:
        self.seq = seq
        self.said: list[Sequence[Anchor]] = []

    def __call__(self, anchors: Sequence[Anchor]) -> int | None:
        self.said.append(anchors)
        return self.seq


def run(ledger: SqliteLedger, kept: Kept, now: float, *, most: int = 7, says: Says | None = None) -> int:
    retention = Retention(lambda: kept, says or Says(), lambda: 99, most=most, now=lambda: now)
    while retention.step(ledger):
        pass
    return retention.deleted


def count(ledger: SqliteLedger, table: str) -> int:
    db = sqlite3.connect(ledger.path)
    try:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        db.close()


def test_records_go_with_their_draws_and_sums_stay(ledger: SqliteLedger) -> None:
    ledger.ship(JOURNAL, [entry(n, n * HOUR, draws=(("f", n), ("g", 1))) for n in range(1, 101)])
    assert run(ledger, Kept(usage=2 * DAY), T0 + 100 * HOUR) == 51
    assert count(ledger, "usage") == 49
    assert count(ledger, "usage_draws") == 98
    assert ledger.drawn("f") == sum(range(52, 101))
    assert ledger.spent("calls", 0, 1 << 52, {}) == 49
    assert ledger.usage(T0, T0 + 100 * DAY)[0].requests == 100


def test_sums_go_by_the_hour(ledger: SqliteLedger) -> None:
    ledger.ship(JOURNAL, [entry(n + 1, n * HOUR, org=f"o{n % 2}") for n in range(100)])
    assert run(ledger, Kept(rollup=2 * DAY), T0 + 100 * HOUR + 30) == 52
    assert ledger.usage(T0, T0 + 100 * DAY)[0].requests == 48
    assert count(ledger, "usage") == 100


def test_nothing_goes_that_is_not_asked_for(ledger: SqliteLedger) -> None:
    ledger.ship(JOURNAL, [entry(n + 1, n * HOUR) for n in range(100)])
    ledger.ship(OTHER_JOURNAL, [Entry(1, AUDIT, b'{"n":1,"prev":"x","at":1,"hash":"h"}')])
    says = Says()
    assert run(ledger, Kept(), T0 + 1000 * DAY, says=says) == 0
    assert run(ledger, Kept(usage=2000 * DAY, rollup=2000 * DAY), T0 + 1000 * DAY, says=says) == 0
    assert (count(ledger, "usage"), count(ledger, "audit")) == (100, 1)
    assert says.said == []


def test_a_step_is_small(ledger: SqliteLedger) -> None:
    ledger.ship(JOURNAL, [entry(n) for n in range(1, 31)])
    retention = Retention(lambda: Kept(usage=DAY), Says(), lambda: 0, most=10, now=lambda: T0 + 3.0 * DAY)
    left = []
    while retention.step(ledger):
        left.append(count(ledger, "usage"))
    assert left == [30, 20, 10, 0]
    assert not retention.step(ledger)  # it looks again in an hour


def test_places_of_closed_journals_go_with_their_records(ledger: SqliteLedger) -> None:
    ledger.ship(JOURNAL, [entry(1)])
    ledger.ship(OTHER_JOURNAL, [entry(1)])
    ledger.forget(JOURNAL)
    run(ledger, Kept(usage=DAY), T0 + 3 * DAY)
    later = max(time(), T0) + 3 * DAY  # by the clock, it was written to just now
    run(ledger, Kept(usage=DAY), later)
    assert ledger.positions() == {OTHER_JOURNAL: 1}  # which may go on


def test_rejected_usage_goes_and_rejected_audit_stays(ledger: SqliteLedger) -> None:
    ledger.ship(JOURNAL, [Entry(1, 1, b"{"), Entry(2, AUDIT, b"{")])
    assert ledger.rejected() == 2
    run(ledger, Kept(usage=DAY), 1e11)
    assert ledger.rejected() == 1


def audited(ledger: SqliteLedger) -> None:
    """Of two days, by the clock of T0."""
    bodies = [b'{"n":%d,"prev":"x","at":%d,"hash":"h%d"}' % (n, (T0 + n * HOUR) * 1_000_000, n) for n in range(1, 49)]
    ledger.ship(JOURNAL, [Entry(n, AUDIT, body) for n, body in enumerate(bodies, 1)])


def test_audit_records_go_when_it_was_said(ledger: SqliteLedger) -> None:
    audited(ledger)
    says = Says()
    assert run(ledger, Kept(audit=DAY), T0 + 48 * HOUR, says=says) == 21  # whole days: T0 is at two o'clock
    assert says.said == [[Anchor(JOURNAL, 21, "h21")]]
    says.said.clear()
    assert run(ledger, Kept(audit=DAY), T0 + 49 * HOUR, says=says) == 0
    assert says.said == []


def test_audit_records_stay_when_that_cannot_be_said(ledger: SqliteLedger) -> None:
    audited(ledger)
    assert run(ledger, Kept(audit=DAY), T0 + 48 * HOUR, says=Says(None)) == 0
    assert count(ledger, "audit") == 48


def test_audit_records_stay_until_what_was_said_is_in_the_ledger(ledger: SqliteLedger) -> None:
    audited(ledger)
    shipped = [4]
    retention = Retention(lambda: Kept(audit=DAY), Says(5), lambda: shipped[0], most=50, now=lambda: T0 + 48.0 * HOUR)
    for _ in range(5):
        while retention.step(ledger):
            pass
    assert count(ledger, "audit") == 48
    shipped[0] = 5
    while retention.step(ledger):
        pass
    assert count(ledger, "audit") == 27
