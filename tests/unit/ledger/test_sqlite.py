"""ledger.sqlite: the conformance suite, and what is its own."""

import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.conformance.ledger import JOURNAL, T0, LedgerConformance, entry

from tollhouse.ledger.base import Entry, Ledger, LedgerError
from tollhouse.ledger.records import USAGE, UsageRecord
from tollhouse.ledger.sqlite import SqliteLedger


class TestConformance(LedgerConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Ledger]:
        return lambda: SqliteLedger(tmp_path / "ledger.db")


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def test_each_field_of_a_record_is_a_column(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    ledger.ship(JOURNAL, [entry(7, ttft_us=42, stream=True, tool="t")])
    ledger.close()
    columns = [str(r[1]) for r in rows(tmp_path / "l.db", "PRAGMA table_info(usage)")]
    assert columns == list(UsageRecord.__struct_fields__)
    got = rows(tmp_path / "l.db", "SELECT id, journal, seq, admitted_at, ttft_us, stream, tool, cost_nano FROM usage")
    assert len(str(got[0][0])) == 36
    assert got[0][1:] == (JOURNAL, 7, (T0 + 7) * 1_000_000, 42, 1, "t", None)


def test_the_hourly_sums_are_the_sums_of_the_rows(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    for start in range(1, 300, 50):
        ledger.ship(JOURNAL, [entry(n, n * 97, org=f"o{n % 3}", input=n) for n in range(start, start + 50)])
    ledger.close()
    by_hand = "SELECT admitted_at / 3600000000, org, count(*), sum(input) FROM usage GROUP BY 1, 2 ORDER BY 1, 2"
    kept = "SELECT hour, org, sum(requests), sum(input) FROM usage_hour GROUP BY 1, 2 ORDER BY 1, 2"
    assert rows(tmp_path / "l.db", by_hand) == rows(tmp_path / "l.db", kept)


def test_rejected_entries_keep_their_bytes(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    ledger.ship(JOURNAL, [Entry(1, USAGE, b"\xff\x00{")])
    ledger.close()
    ((seq, body, why),) = rows(tmp_path / "l.db", "SELECT seq, body, why FROM rejected")
    assert (seq, body) == (1, b"\xff\x00{")
    assert "Error" in str(why)


def test_the_file_is_private(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "deep" / "l.db")
    ledger.open()
    ledger.close()
    assert stat.S_IMODE((tmp_path / "deep" / "l.db").stat().st_mode) == 0o600


def test_tables_of_a_newer_version_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    ledger = SqliteLedger(path)
    ledger.open()
    ledger.close()
    db = sqlite3.connect(path)
    db.execute("INSERT INTO migrations VALUES (999, 0)")
    db.commit()
    db.close()
    with pytest.raises(LedgerError, match="newer version") as caught:
        SqliteLedger(path).open()
    assert caught.value.lasting


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(LedgerError, match=r"l\.db") as caught:
        SqliteLedger(path).open()
    assert caught.value.lasting


def test_a_locked_database_is_an_error_that_passes(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    ledger = SqliteLedger(path, busy=0.05)
    ledger.open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match="locked") as caught:
        ledger.ship(JOURNAL, [entry(1)])
    assert not caught.value.lasting
    other.execute("ROLLBACK")
    other.close()
    assert ledger.ship(JOURNAL, [entry(1)]) == 1
    ledger.close()


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    failures: list[Exception] = []
    start = threading.Barrier(6)

    def work(n: int) -> None:
        ledger = SqliteLedger(path)
        try:
            start.wait()
            ledger.open()
            for seq in range(1, 6):
                ledger.ship(f"{n:x}" * 32, [entry(seq)])
        except LedgerError as error:
            failures.append(error)
        finally:
            ledger.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert rows(path, "SELECT count(*) FROM usage") == [(30,)]
    assert rows(path, "SELECT sum(requests) FROM usage_hour") == [(30,)]


def test_readers_do_not_wait_for_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    ledger = SqliteLedger(path)
    ledger.open()
    ledger.ship(JOURNAL, [entry(1)])
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    assert ledger.usage(T0, T0 + 1)[0].requests == 1
    assert time.monotonic() - began < 1.0
    writer.close()
    ledger.close()
