"""ledger.sqlite: the conformance suite, and what is its own."""

import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance.ledger import JOURNAL, OTHER_JOURNAL, T0, LedgerConformance, entry

from tollhouse.ledger.base import Entry, Ledger, LedgerError
from tollhouse.ledger.records import USAGE, UsageRecord, identify
from tollhouse.ledger.rows import LABELS, Facts, Labels, digested
from tollhouse.ledger.sqlite import SqliteLedger
from tollhouse.ledger.sqlite_tables import MIGRATIONS


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


def test_usual_and_unusual_rows_of_one_batch_are_stored_and_summed_up_alike(tmp_path: Path) -> None:
    seldom = (
        "cache_read", "cache_write", "reasoning", "cache_write_1h", "audio_input", "audio_output", "image_input",
        "image_output",
    )  # fmt: skip
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    entries = []
    for n in range(1, 401):  # more than two full statements of usual rows, one of each kind of others between them
        more: dict[str, int] = {seldom[n // 9 % len(seldom)]: n} if n % 9 == 0 else {}
        if n % 3:
            more["cost_nano"] = n * 1000
        entries.append(entry(n, n * 20, org=f"o{n // 40 % 2}", input=n % 7, output=n % 5, bytes_out=n, **more))
    assert ledger.ship(JOURNAL, entries) == 400
    ledger.close()
    names = ("input", "output", "cost_nano", *seldom)
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in names)
    priced = "sum(cost_nano IS NULL AND input + output + cache_read + cache_write > 0)"
    by_hand = f"SELECT admitted_at / 3600000000, org, count(*), {sums}, {priced} FROM usage GROUP BY 1, 2 ORDER BY 1, 2"
    kept = f"SELECT hour, org, sum(requests), {sums}, sum(unpriced) FROM usage_hour GROUP BY 1, 2 ORDER BY 1, 2"
    assert rows(tmp_path / "l.db", by_hand) == rows(tmp_path / "l.db", kept)
    got = rows(tmp_path / "l.db", f"SELECT seq, org, bytes_out, {', '.join(names)} FROM usage ORDER BY seq")
    for n, row in enumerate(got, 1):
        told = dict(zip(names, row[3:], strict=True))
        assert row[:3] == (n, f"o{n // 40 % 2}", n)
        assert (told["input"], told["output"], told["cost_nano"]) == (n % 7, n % 5, n * 1000 if n % 3 else None)
        assert {name for name in seldom if told[name]} == ({seldom[n // 9 % len(seldom)]} if n % 9 == 0 else set())


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
    ledger = SqliteLedger(path, busy=60.0)
    ledger.open()
    ledger.ship(JOURNAL, [entry(1)])
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    assert ledger.usage(T0, T0 + 1)[0].requests == 1
    assert time.monotonic() - began < 20.0
    writer.close()
    ledger.close()


def test_the_halves_are_the_record() -> None:
    """Facts and labels have together the fields of a record, in its order, with its defaults."""
    shown = {f.name: (f.default, f.default_factory) for f in msgspec.structs.fields(UsageRecord)}
    parts = {f.name: f for part in (Facts, Labels) for f in msgspec.structs.fields(part)}
    assert set(parts) == (set(shown) - {"id"}) | {"labels"}
    for name in set(shown) - {"id", "journal", "outcome"}:
        assert (parts[name].default, parts[name].default_factory) == shown[name], name
    order = [name for name in shown if name not in {"id", "journal", "seq"}]
    assert order == [name for name in parts if name not in {"labels", "journal", "seq"}]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [',"outcome":', '","outcome":"ok', '\\","outcome":', "}", "{"]
)
numbers = st.integers(0, 1 << 40)


@settings(max_examples=60, deadline=None)
@given(
    records=st.lists(
        st.builds(
            UsageRecord,
            admitted_at=st.integers(0, 1 << 50),
            ended_at=st.integers(0, 1 << 50),
            request_id=texts,
            outcome=texts,
            reason=texts,
            org=texts,
            user=texts,
            tool=texts,
            model_asked=texts,
            input=numbers,
            output=numbers,
            cache_read=numbers,
            cost_nano=st.none() | numbers,
            status=st.integers(0, 599),
            attempt=st.integers(1, 3),
            stream=st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    first=st.integers(1, 1 << 33),
    times=st.integers(1, 40),
)
def test_what_goes_in_comes_out(
    records: list[UsageRecord], first: int, times: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is in a record, in statements of many rows and of one: `usage` shows it, its id, and its sums."""
    path = tmp_path_factory.mktemp("out") / "l.db"
    ledger = SqliteLedger(path)
    ledger.open()
    sent = records * times
    entries = [Entry(n, USAGE, msgspec.json.encode(r)) for n, r in enumerate(sent, first)]
    assert ledger.ship(JOURNAL, entries) == len(sent)
    assert ledger.rejected() == 0
    got = rows(path, "SELECT * FROM usage ORDER BY seq")
    for n, (r, row) in enumerate(zip(sent, got, strict=True), first):
        r.id, r.journal, r.seq = identify(JOURNAL, n, r.admitted_at), JOURNAL, n
        assert row == tuple(
            msgspec.json.encode(value).decode() if isinstance(value, tuple) else value
            for value in msgspec.structs.astuple(r)
        )
    (total,) = ledger.usage(0, 1 << 40)
    assert (total.requests, total.input, total.output) == (
        len(sent),
        sum(r.input for r in sent),
        sum(r.output for r in sent),
    )
    ledger.close()


def test_a_body_written_in_another_way(tmp_path: Path) -> None:
    """Fields in another order, unknown ones, or without an outcome, as another version may write them."""
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    bodies = [
        b'{"org":"a","admitted_at":7000000,"ended_at":2,"outcome":"cut","input":5}',
        b'{"admitted_at":7000001,"ended_at":2,"org":"a","input":6}',
        b'{"admitted_at":7000002,"ended_at":2,"input":7,"new":[1],"outcome":"cut","org":"a","newer":{"outcome":"x"}}',
        b' { "admitted_at" : 7000003 , "ended_at" : 2 , "outcome" : "cut" , "org" : "a", "input" : 8 } ',
        b'{"admitted_at":7000004,"ended_at":2,"outcome":"cut","org":"a"} trailing',
    ]
    assert ledger.ship(JOURNAL, [Entry(n, USAGE, body) for n, body in enumerate(bodies, 1)]) == 4
    assert ledger.rejected() == 1
    assert ledger.ship(JOURNAL, [Entry(9, USAGE, bodies[0])]) == 1
    ledger.close()
    assert rows(tmp_path / "l.db", "SELECT seq, org, outcome, input FROM usage ORDER BY seq") == [
        (1, "a", "cut", 5), (2, "a", "ok", 6), (3, "a", "cut", 7), (4, "a", "cut", 8), (9, "a", "cut", 5),
    ]  # fmt: skip
    assert rows(tmp_path / "l.db", "SELECT count(*) FROM usage_labels") == [(2,)]


def test_labels_are_stored_once(tmp_path: Path) -> None:
    ledgers = [SqliteLedger(tmp_path / "l.db") for _ in range(2)]
    for n, ledger in enumerate(ledgers):
        ledger.open()
        ledger.ship(f"{n}" * 32, [entry(k, org=f"o{k % 3}") for k in range(1, 121)])
    for ledger in ledgers:
        ledger.close()
    assert rows(tmp_path / "l.db", "SELECT count(*) FROM usage_labels") == [(3,)]
    assert rows(tmp_path / "l.db", "SELECT count(*) FROM usage") == [(240,)]


def test_labels_of_a_batch_that_was_rolled_back_are_not_remembered(tmp_path: Path) -> None:
    """The batch's new labels were given numbers, then it was looked at row by row."""
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    ledger.ship(JOURNAL, [entry(1, org="a")])
    assert ledger.ship(JOURNAL, [entry(2, org="b"), Entry(3, USAGE, b"{"), entry(4, org="c")]) == 2
    assert ledger.ship(JOURNAL, [entry(5, org="c"), entry(6, org="b"), entry(7, org="d")]) == 3
    ledger.close()
    got = rows(tmp_path / "l.db", "SELECT seq, org FROM usage ORDER BY seq")
    assert got == [(1, "a"), (2, "b"), (4, "c"), (5, "c"), (6, "b"), (7, "d")]


def test_poison_in_the_middle_of_a_large_batch(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    batch = [entry(n) for n in range(1, 401)]
    batch[222] = entry(223, input=1 << 62)
    batch[333] = entry(334, tool="x", admitted_at=-1)
    assert ledger.ship(JOURNAL, batch) == 398
    assert ledger.rejected() == 2
    ledger.close()
    assert rows(tmp_path / "l.db", "SELECT count(*), min(seq), max(seq) FROM usage") == [(398, 1, 400)]
    assert rows(tmp_path / "l.db", "SELECT seq FROM rejected") == [(223,), (334,)]


def test_more_labels_than_are_remembered(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    for start in (1, 6001, 12001):
        assert ledger.ship(JOURNAL, [entry(start + n, 0, user=f"u{n % 9000}") for n in range(6000)]) == 6000
    assert ledger.usage(T0, T0 + 1)[0].requests == 18000
    assert len(ledger.usage(T0, T0 + 1, ["user"])) == 6000
    ledger.close()


def test_long_labels_are_cut(tmp_path: Path) -> None:
    """They are kept for ever, and who calls chooses some of them."""
    ledger = SqliteLedger(tmp_path / "l.db")
    ledger.open()
    long = [entry(n, tool=f"{n}" + "x" * 500_000, org="o" * 256) for n in (1, 2)]
    assert ledger.ship(JOURNAL, long) == 2
    assert ledger.ship(JOURNAL, [entry(3, tool="1" + "x" * 600_000, org="o" * 256)]) == 1
    assert ledger._numbers == {}  # too large to be remembered
    found = ledger.usage(T0, T0 + 3600, ["org", "tool"])
    assert [(row.by, row.requests) for row in found] == [
        (("o" * 256, "1" + "x" * 254 + "…"), 2),
        (("o" * 256, "2" + "x" * 254 + "…"), 1),
    ]
    ledger.close()
    assert (tmp_path / "l.db").stat().st_size < 200_000


def test_a_file_of_the_first_tables_is_brought_up(tmp_path: Path) -> None:
    """Records that an earlier version has stored stay, with none of the kinds that it did not know."""
    path = tmp_path / "l.db"
    db = sqlite3.connect(path)
    db.executescript(MIGRATIONS[0])
    db.execute("CREATE TABLE migrations (version INTEGER PRIMARY KEY, at INTEGER NOT NULL)")
    db.execute("INSERT INTO migrations VALUES (1, 0)")
    db.execute("INSERT INTO journals VALUES (1, ?, 1)", (JOURNAL,))
    db.execute(
        "INSERT INTO usage_labels VALUES (1, x'00', 'ok', '', 200, 1, 'a', '', '', '', '', '', '', '', 'm', 'm', "
        "'openai', '', '', '', 0, 0)"
    )
    db.execute("INSERT INTO usage_facts VALUES (1, 1, 1, 7200000000, 7200000001, '', 5, 6, 0, 0, 0, 9, 1, 2, 3, 4, 5)")
    db.execute("INSERT INTO usage_sums VALUES (2, 1, 1, 5, 6, 0, 0, 0, 9, 0)")
    db.commit()
    db.close()
    ledger = SqliteLedger(path)
    ledger.open()
    record = UsageRecord(
        admitted_at=7_200_000_002, ended_at=7_200_000_003, outcome="ok", status=200, org="a", model_asked="m",
        model_answered="m", provider="openai", input=1, output=2, audio_input=1, cost_nano=1,
    )  # fmt: skip
    assert ledger.ship(JOURNAL, [Entry(2, USAGE, msgspec.json.encode(record))]) == 1
    (row,) = ledger.usage(0, 1 << 40)
    assert (row.requests, row.input, row.output, row.audio_input, row.image_output, row.cost_nano) == (
        2,
        6,
        8,
        1,
        0,
        10,
    )
    assert rows(path, "SELECT seq, input, audio_input, cost_nano FROM usage ORDER BY seq") == [
        (1, 5, 0, 9),
        (2, 1, 1, 1),
    ]
    assert rows(path, "SELECT requests, audio_input FROM usage_hour") == [(1, 0), (1, 1)]
    ledger.close()


def test_a_file_of_the_tables_before_control_is_brought_up(tmp_path: Path) -> None:
    """Its records are found by what is new of them, its journals have their last place, and their labels their digests:
    a call of the same labels gets the same number."""
    path = tmp_path / "l.db"
    db = sqlite3.connect(path)
    for script in MIGRATIONS[:4]:
        db.executescript(script)
    db.execute("CREATE TABLE migrations (version INTEGER PRIMARY KEY, at INTEGER NOT NULL)")
    db.executemany("INSERT INTO migrations VALUES (?, 0)", [(n,) for n in range(1, 5)])
    db.execute("INSERT INTO journals VALUES (1, ?, 0)", (JOURNAL,))
    db.execute("INSERT INTO journals VALUES (2, ?, 4)", (OTHER_JOURNAL,))  # of audit records alone
    digest, values = digested(Labels(outcome="ok", user="ada", model_asked="m"))
    labels = dict(zip(LABELS, values, strict=True))
    old = [name for name in LABELS if name not in ("tags", "guard", "cached")]
    marks = ", ".join("?" * (len(old) + 2))
    db.execute(f"INSERT INTO usage_labels VALUES ({marks})", (1, digest, *(labels[name] for name in old)))
    facts = (
        "INSERT INTO usage_facts VALUES (1, ?, 1, ?, 7200000001, 'q', 5, 6, 0, 0, 0, 9, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0)"
    )
    db.executemany(facts, [(n, 7_200_000_000 + n) for n in (1, 2, 3)])
    db.execute("INSERT INTO usage_sums VALUES (2, 1, 3, 15, 18, 0, 0, 0, 27, 0, 0, 0, 0, 0, 0)")
    db.commit()
    db.close()
    ledger = SqliteLedger(path)
    ledger.open()
    assert ledger.positions() == {JOURNAL: 3}
    assert ledger.spent("usd", 0, 1 << 50, {"user": "ada", "tag": ""}, {JOURNAL: 2}) == 18
    (row,) = ledger.usage(0, 1 << 40, ["run", "tag", "user"])
    assert (row.by, row.requests, row.cost_nano) == (("", "", "ada"), 3, 27)
    record = UsageRecord(admitted_at=7_200_000_009, ended_at=7_200_000_010, outcome="ok", user="ada", model_asked="m")
    assert ledger.ship("3" * 32, [Entry(1, USAGE, msgspec.json.encode(record))]) == 1
    assert rows(path, "SELECT count(*) FROM usage_labels") == [(1,)]
    assert [row.requests for row in ledger.usage(0, 1 << 40, ["tag"])] == [4]
    assert rows(path, "SELECT draws, tags, run_id FROM usage LIMIT 1") == [("[]", "[]", "")]
    ledger.close()
