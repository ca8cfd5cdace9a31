"""ledger.postgres: the conformance suite against a real server, and what is its own."""

import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.ledger import HOUR, JOURNAL, OTHER_JOURNAL, T0, LedgerConformance, entry
from tests.fixtures.postgres import PASSWORD, Postgres

from tollhouse.ledger.base import BY, Cuts, Entry, Ledger, LedgerError, Post
from tollhouse.ledger.postgres import PostgresLedger, is_there
from tollhouse.ledger.postgres_place import Place, place_of
from tollhouse.ledger.records import USAGE, UsageRecord, identify
from tollhouse.ledger.sqlite import SqliteLedger


class TestConformance(LedgerConformance):
    nul = "␀"

    @pytest.fixture
    def make(self, server: Postgres) -> Callable[[], Ledger]:
        place = place_of(server.url(server.fresh()))
        return lambda: PostgresLedger(place)


@pytest.fixture
def database(server: Postgres) -> str:
    return server.fresh()


@pytest.fixture
def place(server: Postgres, database: str) -> Place:
    return place_of(server.url(database))


@pytest.fixture
def ledger(place: Place) -> Iterator[PostgresLedger]:
    one = PostgresLedger(place, now=lambda: T0)
    one.open()
    yield one
    one.close()


def test_each_field_of_a_record_is_a_column(server: Postgres, database: str, ledger: PostgresLedger) -> None:
    ledger.ship(JOURNAL, [entry(7, ttft_us=42, stream=True, tool="t", tags=("a", "b"), draws=(("usd:x|y|0", 9),))])
    columns = server.do(database, "SELECT column_name FROM information_schema.columns WHERE table_name = 'usage' "
                                  "ORDER BY ordinal_position")  # fmt: skip
    fields = [name for name in UsageRecord.__struct_fields__ if name != "raw_usage"]
    assert [name for (name,) in columns] == [*fields, "raw_usage"]  # the last one came later
    [got] = server.do(database, "SELECT id, journal, seq, ttft_us, stream, tool, cost_nano, tags, draws FROM usage")
    assert got[0] == identify(JOURNAL, 7, (T0 + 7) * 1_000_000)
    assert got[1:8] == (JOURNAL, 7, 42, 1, "t", None, '["a","b"]')
    assert msgspec.json.decode(got[8]) == [["usd:x|y|0", 9]]


@given(seq=st.integers(1, (1 << 34) - 1), at=st.integers(0, 1 << 53))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_id_is_that_of_the_record(
    server: Postgres, database: str, ledger: PostgresLedger, seq: int, at: int
) -> None:
    body = msgspec.json.encode(UsageRecord(admitted_at=at, ended_at=at, outcome="ok"))
    ledger.forget(JOURNAL)
    ledger.ship(JOURNAL, [Entry(seq, USAGE, body)])
    query = "SELECT id FROM usage WHERE seq = %s AND admitted_at = %s"
    assert server.do(database, query, (seq, at)) == [(identify(JOURNAL, seq, at),)]


# ---- the same as SQLite
_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
_labels = st.fixed_dictionaries(
    {},
    optional={
        "org": st.sampled_from(["", "a", "b", "ä\t\\N\n"]),
        "user": _texts.map(lambda text: text.replace("\x00", "0")),
        "outcome": st.sampled_from(["ok", "denied", "upstream_error"]),
        "tags": st.lists(st.sampled_from(["x", "y", "\\u0000"]), max_size=2, unique=True).map(tuple),
        "estimated": st.booleans(),
        "status": st.integers(0, 599),
    },
)
_counts = st.integers(0, 1 << 40)
_facts = st.fixed_dictionaries(
    {},
    optional={
        "input": _counts, "output": _counts, "cache_read": _counts, "reasoning": _counts, "image_output": _counts,
        "cost_nano": st.none() | st.integers(-(1 << 50), 1 << 50), "saved_nano": _counts,
        "request_id": _texts.map(lambda text: text.replace("\x00", "0")), "run_id": st.sampled_from(["", "r1", "r2"]),
        "draws": st.lists(st.tuples(st.sampled_from(["usd:a|b|0", "tokens:a|b|0"]), _counts), max_size=2,
                          unique_by=lambda draw: draw[0]).map(tuple),
    },
)  # fmt: skip
_records = st.builds(lambda labels, facts, n: (n, {**labels, **facts}), _labels, _facts, st.integers(0, 5 * HOUR))
_poison = st.sampled_from([b"{", b"{}", b'{"admitted_at":-1,"ended_at":0,"outcome":"ok"}', b"\xff\x00"])


@given(
    batches=st.lists(
        st.lists(st.tuples(st.booleans(), _records | _poison), max_size=6), min_size=1, max_size=5
    )
)  # fmt: skip
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_databases_keep_and_answer_the_same(
    server: Postgres, database: str, tmp_path: Path, batches: list[list[tuple[bool, Any]]]
) -> None:
    server.do(database, "DROP SCHEMA IF EXISTS tollhouse CASCADE")
    path = tmp_path / f"{time.monotonic_ns()}.db"
    ledgers = [PostgresLedger(place_of(server.url(database)), now=lambda: T0), SqliteLedger(path)]
    for one in ledgers:
        one.open()
    seq = {JOURNAL: 0, OTHER_JOURNAL: 0}
    for batch in batches:
        for journal, have in seq.copy().items():
            entries = []
            for other, what in batch:
                if other == (journal == OTHER_JOURNAL):
                    n = have + len(entries) + 1
                    entries.append(Entry(n, USAGE, what) if isinstance(what, bytes) else entry(n, what[0], **what[1]))
            seq[journal] += len(entries)
            again = [one.ship(journal, entries) for one in ledgers]
            assert again[0] == again[1]
            assert [one.ship(journal, entries) for one in ledgers] == [0, 0]
    shown = 'SELECT id, journal, seq, request_id, "user", org, tags, input, cost_nano, status, run_id FROM usage'
    sums = 'SELECT hour, "user", org, tags, requests, input, cost_nano, unpriced, saved_nano FROM usage_hour'
    with sqlite3.connect(path) as db:
        for query in (shown, sums):
            assert sorted(map(repr, server.do(database, query))) == sorted(map(repr, db.execute(query).fetchall()))
    db.close()
    for by in (("org", "tag"), ("user",), ("hour", "outcome"), ("run",), ("month",)):
        answers = [one.usage(T0, T0 + 6 * HOUR, by) for one in ledgers]
        assert answers[0] == answers[1]
    upto = {JOURNAL: 3}
    for where in ({}, {"org": "a"}, {"tag": "x"}, {"run": "r1"}):
        spent = [one.spent("usd", T0 * 10**6, (T0 + HOUR) * 10**6, where, upto) for one in ledgers]
        assert spent[0] == spent[1]
    assert ledgers[0].drawn("usd:") == ledgers[1].drawn("usd:")
    assert ledgers[0].posts(JOURNAL, 0, 3) == ledgers[1].posts(JOURNAL, 0, 3)
    assert ledgers[0].positions() == ledgers[1].positions()
    assert ledgers[0].rejected() == ledgers[1].rejected()
    for one in ledgers:
        one.close()


# ---- what cannot be stored
def test_rejected_entries_keep_their_bytes(server: Postgres, database: str, ledger: PostgresLedger) -> None:
    ledger.ship(JOURNAL, [Entry(1, USAGE, b"\xff\x00{"), Entry(2, 77, b"{}")])
    rows = server.do(database, "SELECT journal, seq, kind, body, why FROM rejected ORDER BY seq")
    assert [row[:4] for row in rows] == [(JOURNAL, 1, 1, b"\xff\x00{"), (JOURNAL, 2, 77, b"{}")]
    assert rows[1][4] == "ValueError: unknown kind of record: 77"


def test_poison_in_the_middle_of_a_large_batch(server: Postgres, database: str, ledger: PostgresLedger) -> None:
    batch = [entry(n) for n in range(1, 1001)]
    batch[222] = entry(223, input=1 << 62)
    batch[333] = entry(334, tool="x", admitted_at=-1)
    assert ledger.ship(JOURNAL, batch) == 998
    assert ledger.rejected() == 2
    assert server.do(database, "SELECT count(*), min(seq), max(seq) FROM usage") == [(998, 1, 1000)]
    assert server.do(database, "SELECT seq FROM rejected ORDER BY seq") == [(223,), (334,)]
    assert ledger.usage(T0, T0 + HOUR)[0].requests == 998


def test_a_row_that_the_database_does_not_take_stops_no_other(
    server: Postgres, database: str, ledger: PostgresLedger
) -> None:
    ledger.ship(JOURNAL, [])
    server.do(database, "ALTER TABLE usage_facts ADD CONSTRAINT ours CHECK (input <> 13)")
    assert ledger.ship(JOURNAL, [entry(n, input=n) for n in range(1, 101)]) == 99
    assert server.do(database, "SELECT seq, why FROM rejected")[0][0] == 13
    assert "ours" in server.do(database, "SELECT why FROM rejected")[0][0]
    assert ledger.usage(T0, T0 + HOUR)[0].input == sum(range(1, 101)) - 13


def test_texts_of_any_kind_and_length(server: Postgres, database: str, ledger: PostgresLedger) -> None:
    awkward = "a\tb\nc\rd\\N\\.\"'{},\u00e9\U0001f600␀ %s ?"
    long = "x" * 100_000
    entries = [
        entry(1, request_id=awkward, run_id=awkward, tool=awkward, tags=(awkward, "\x00")),
        entry(2, request_id="\\.", org="\x00"),
        entry(3, request_id="nul\x00", run_id="nul\x00", hold="\x00", draws=(("usd:\x00|a|0", 1),)),
        entry(4, request_id=long, run_id=long, tool=long, draws=((f"usd:{long}|a|0", 2),)),
    ]
    assert ledger.ship(JOURNAL, entries) == 4
    rows = server.do(database, "SELECT request_id, run_id, tool FROM usage ORDER BY seq")
    assert rows[0] == (awkward, awkward, awkward)
    assert rows[1][0] == "\\."
    assert rows[2][:2] == ("nul␀", "nul␀")
    assert len(rows[3][0]) < 1000
    assert len(rows[3][2]) == 256
    assert {row.by[0] for row in ledger.usage(T0, T0 + HOUR, ["tag"])} == {"", "␀", awkward}
    assert [row.requests for row in ledger.usage(T0, T0 + HOUR, where=[("run", long)])] == [1]
    assert ledger.spent("calls", 0, 1 << 60, {"run": "nul\x00"}) == 1
    assert ledger.spent("calls", 0, 1 << 60, {"org": "\x00"}) == 1
    assert ledger.drawn(f"usd:{long}|a|0") == 2
    assert ledger.posts(JOURNAL, 2, 1) == [Post(3, "␀", (("usd:␀|a|0", 1),))]


def test_a_field_that_a_record_names_twice(ledger: PostgresLedger) -> None:
    twice = (("calls:a|b|0", 2), ("usd:a|b|0", 7), ("calls:a|b|0", 3))
    assert ledger.ship(JOURNAL, [entry(1, draws=twice), entry(2, draws=twice)]) == 2
    assert ledger.ship(OTHER_JOURNAL, [entry(1, draws=twice), Entry(2, USAGE, b"{")]) == 1
    assert (ledger.drawn("calls:"), ledger.drawn("usd:")) == (15, 21)
    assert ledger.posts(JOURNAL, 1, 9) == [Post(2, "req-2", (("calls:a|b|0", 5), ("usd:a|b|0", 7)))]


def test_more_labels_than_are_remembered(ledger: PostgresLedger) -> None:
    for start in (1, 5001, 10001):
        batch = [entry(start + n, 0, user=f"u{(start + n) % 9000}") for n in range(5000)]
        assert ledger.ship(JOURNAL, batch) == 5000
    assert len(ledger._numbers) <= 8192
    rows = ledger.usage(T0, T0 + 1, ["user"])
    assert (len(rows), sum(row.requests for row in rows)) == (9000, 15000)


# ---- several at a time, and a server that goes away
def test_many_ship_at_once_and_nobody_waits_for_ever(place: Place, ledger: PostgresLedger) -> None:
    """The same labels and hours, in every order: sums of all, and no deadlock."""
    failures: list[Exception] = []

    def work(n: int) -> None:
        mine = PostgresLedger(place._replace(timeout=20.0), now=lambda: T0)
        try:
            mine.open()
            for batch in range(10):
                entries = []
                for k in range(40):
                    seq = batch * 40 + k + 1
                    user = (k if n % 2 else 39 - k) + batch
                    entries.append(entry(seq, (user * 977) % (4 * HOUR), user=f"u{user}", draws=(("calls:a|b|0", 1),)))
                mine.ship(f"{n:032x}", entries)
        except LedgerError as error:
            failures.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert ledger.usage(T0, T0 + 5 * HOUR)[0].requests == 2000
    assert ledger.drawn("calls:") == 2000
    assert sum(row.requests for row in ledger.usage(T0, T0 + 5 * HOUR, ["user"])) == 2000


def test_a_server_that_is_killed_and_comes_back(server: Postgres, ledger: PostgresLedger) -> None:
    assert ledger.ship(JOURNAL, [entry(1)]) == 1
    server.kill()
    try:
        for _ in range(2):
            with pytest.raises(LedgerError) as caught:
                ledger.ship(JOURNAL, [entry(2)])
            assert not caught.value.lasting
            assert PASSWORD not in str(caught.value)
            ledger.close()
            with pytest.raises(LedgerError):
                ledger.open()
    finally:
        server.start()
    ledger.open()
    assert ledger.position(JOURNAL) == 1
    assert ledger.ship(JOURNAL, [entry(1), entry(2)]) == 1
    assert ledger.usage(T0, T0 + HOUR)[0].requests == 2


def test_a_line_that_was_lost_is_made_anew_when_it_is_asked_next(server: Postgres, ledger: PostgresLedger) -> None:
    """Who only asks (budgets) need not know that there are lines."""
    ledger.ship(JOURNAL, [entry(1)])
    server.kill()
    try:
        for _ in range(2):
            with pytest.raises(LedgerError):
                ledger.positions()
    finally:
        server.start()
    assert ledger.positions() == {JOURNAL: 1}
    assert ledger.ship(JOURNAL, [entry(2, user="somebody new")]) == 1


def test_a_database_that_takes_no_writes(server: Postgres, database: str, ledger: PostgresLedger) -> None:
    ledger.ship(JOURNAL, [entry(1)])
    server.do("postgres", f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    ledger.close()
    ledger.open()
    with pytest.raises(LedgerError, match="read-only transaction") as caught:
        ledger.ship(JOURNAL, [entry(2, user="somebody new")])
    assert not caught.value.lasting
    assert ledger.usage(T0, T0 + HOUR)[0].requests == 1  # reading goes on
    server.do("postgres", f"ALTER DATABASE {database} RESET default_transaction_read_only")
    ledger.close()
    ledger.open()
    assert ledger.ship(JOURNAL, [entry(2, user="somebody new")]) == 1


def test_what_fails_in_the_middle_leaves_nothing(server: Postgres, database: str, ledger: PostgresLedger) -> None:
    """The sums cannot be stored: neither are the records, and the position stays."""
    ledger.ship(JOURNAL, [entry(1)])
    server.do(database, "ALTER TABLE usage_sums RENAME TO sums_elsewhere")
    with pytest.raises(LedgerError):
        ledger.ship(JOURNAL, [entry(2), Entry(3, USAGE, b"{")])
    server.do(database, "ALTER TABLE sums_elsewhere RENAME TO usage_sums")
    assert (ledger.position(JOURNAL), ledger.rejected()) == (1, 0)
    assert ledger.ship(JOURNAL, [entry(2), Entry(3, USAGE, b"{")]) == 1
    assert ledger.usage(T0, T0 + HOUR)[0].requests == 2


def test_another_that_holds_the_journal_is_waited_for_so_long(
    server: Postgres, database: str, place: Place, ledger: PostgresLedger
) -> None:
    ledger.ship(JOURNAL, [entry(1)])
    impatient = PostgresLedger(place._replace(timeout=1.0))
    impatient.open()
    with server.connect(database) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM tollhouse.journals FOR UPDATE")
        with pytest.raises(LedgerError, match="timeout"):
            impatient.ship(JOURNAL, [entry(2)])
        other.execute("ROLLBACK")
    assert impatient.ship(JOURNAL, [entry(2)]) == 1
    impatient.close()


def test_whether_it_is_there(place: Place) -> None:
    assert not is_there(place)
    with pytest.raises(LedgerError, match="not open"):
        PostgresLedger(place).rejected()
    ledger = PostgresLedger(place)
    ledger.open()
    ledger.close()
    assert is_there(place)


# ---- what is kept only so long
def test_months_go_as_a_whole_and_days_row_by_row(server: Postgres, database: str, ledger: PostgresLedger) -> None:
    day = 86400
    entries = [entry(n, (1 - n) * 5 * day, draws=(("usd:a|b|0", n),)) for n in range(1, 21)]  # until mid of August
    ledger.ship(JOURNAL, entries)
    cut = Cuts(usage=(T0 - 30 * day) * 10**6, rollup=(T0 - 60 * day) * 10**6)
    while ledger.prune(cut, 3):
        pass
    kept = [seq for (seq,) in server.do(database, "SELECT seq FROM usage ORDER BY seq")]
    assert kept == list(range(1, 8))
    assert server.do(database, "SELECT count(*) FROM usage_draws") == [(len(kept),)]
    names = {name for (name,) in server.do(database, "SELECT relname FROM pg_class WHERE relname LIKE 'usage_facts_20%'"
                                                     " AND relkind = 'r'")}  # fmt: skip
    assert names == {"usage_facts_2026_10", "usage_facts_2026_11", "usage_facts_2026_12", "usage_facts_2027_01"}
    oldest = server.do(database, "SELECT min(hour) FROM usage_sums")[0][0]
    assert oldest * HOUR >= T0 - 60 * day
    assert ledger.positions() == {JOURNAL: 20}


def test_a_month_that_somebody_reads_is_not_waited_for(server: Postgres, database: str, ledger: PostgresLedger) -> None:
    ledger.ship(JOURNAL, [entry(1, -100 * 86400), entry(2)])
    with server.connect(database) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM tollhouse.usage_facts")
        assert ledger.prune(Cuts(usage=T0 * 10**6), 10) == 1  # its row has gone by itself
        reader.execute("ROLLBACK")
    assert server.do(database, "SELECT seq FROM usage") == [(2,)]
    assert ledger.prune(Cuts(usage=T0 * 10**6), 10) == 1
    assert ledger.prune(Cuts(usage=T0 * 10**6), 10) == 0


def test_who_asks_while_a_month_is_made_asks_again(server: Postgres, database: str, ledger: PostgresLedger) -> None:
    """It takes the tables in the other order than the view: whoever waits first is told of a deadlock."""
    ledger.ship(JOURNAL, [entry(1, draws=(("f", 5),))])
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
    found: list[Post] = []
    with server.connect(database) as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE tollhouse.usage_facts_default IN ACCESS EXCLUSIVE MODE")
        asking = threading.Thread(target=lambda: found.extend(ledger.posts(JOURNAL, 0, 10)))
        asking.start()
        until = time.monotonic() + 10
        while server.do("postgres", waiting, (database,)) != [(1,)]:
            assert time.monotonic() < until
            time.sleep(0.01)
        other.execute("LOCK TABLE tollhouse.usage_draws_default IN ACCESS EXCLUSIVE MODE")  # once that has been told
        other.execute("COMMIT")
        asking.join(10)
    assert [post.draws for post in found] == [(("f", 5),)]


def test_every_group_can_be_asked_for(ledger: PostgresLedger) -> None:
    ledger.ship(JOURNAL, [entry(1, run_id="r", tags=("x",))])
    for name in BY:
        assert [row.requests for row in ledger.usage(T0, T0 + HOUR, [name])] == [1]


def test_the_recipes_of_the_guide(server: Postgres, database: str, ledger: PostgresLedger) -> None:
    now = int(time.time()) - T0
    more: dict[str, Any] = {"run_id": "r1", "team": "search", "tags": ("x",), "stream": True, "cost_nano": 10**9}
    ledger.ship(JOURNAL, [entry(1, now, **more), entry(2, now, cached="exact", saved_nano=5 * 10**8)])
    guide = Path(__file__).parents[3] / "docs" / "guide" / "ledger.md"
    [block] = re.findall(r"^```postgresql\n(.*?)^```", guide.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    recipes = [text for text in block.split(";\n") if text.strip()]
    answers = [server.do(database, recipe) for recipe in recipes]
    assert [row[2:] for row in answers[0]] == [(1, Decimal("0.5"))]
    assert [(run, user, models, tools) for run, user, models, tools, _ in answers[1]] == [("r1", "ada", 1, 0)]
    assert answers[2] == [("smart", 0.0, 0.0)]
    assert [(tag, int(usd)) for tag, usd in answers[3]] == [("x", 1)]
    assert answers[4] == []
