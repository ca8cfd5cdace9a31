"""ledger.postgres_schema: tables that are made once, by whoever comes first, and a partition for each month."""

import threading
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conformance.ledger import JOURNAL, T0, entry
from tests.fixtures.postgres import Postgres

from tollhouse.ledger.base import Entry, LedgerError
from tollhouse.ledger.postgres import PostgresLedger
from tollhouse.ledger.postgres_place import Place, place_of
from tollhouse.ledger.postgres_schema import begin_of, migrations, month_of

MONTH = 31 * 86400


@pytest.fixture
def database(server: Postgres) -> str:
    return server.fresh()


@pytest.fixture
def place(server: Postgres, database: str) -> Place:
    return place_of(server.url(database))


def partitions(server: Postgres, database: str) -> dict[str, int]:
    """Records in each month's partition."""
    query = (
        "SELECT tableoid::regclass::text, count(*) FROM usage_facts GROUP BY 1 UNION ALL "
        "SELECT inhrelid::regclass::text, 0 FROM pg_inherits WHERE inhparent = 'usage_facts'::regclass"
    )
    found: dict[str, int] = {}
    for name, count in server.do(database, query):
        short = name.removeprefix("tollhouse.").removeprefix("usage_facts_")
        found[short] = found.get(short, 0) + count
    return found


def shipped(place: Place, entries: list[Entry], now: float = T0) -> PostgresLedger:
    ledger = PostgresLedger(place, now=lambda: now)
    ledger.open()
    assert ledger.ship(JOURNAL, entries) == len(entries)
    return ledger


@given(st.integers(0, 1 << 53))
def test_a_month_has_a_beginning_and_an_end(at: int) -> None:
    month = month_of(at)
    assert begin_of(month) <= at < begin_of(month + 1)
    moment = datetime.fromtimestamp(begin_of(month) / 1e6, UTC)
    assert (moment.day, moment.hour, moment.year * 12 + moment.month - 1) == (1, 0, month)


def test_many_open_a_new_database_at_once(server: Postgres, database: str, place: Place) -> None:
    failures: list[Exception] = []
    start = threading.Barrier(6)

    def work(n: int) -> None:
        ledger = PostgresLedger(place, now=lambda: T0)
        try:
            start.wait()
            ledger.open()
            ledger.ship(f"{n:032x}", [entry(1)])
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
    assert server.do(database, "SELECT count(*) FROM usage") == [(6,)]
    assert server.do(database, "SELECT version FROM migrations ORDER BY 1") == [
        (n,) for n in range(1, len(migrations()) + 1)
    ]


def test_tables_of_a_newer_version_are_left_alone(server: Postgres, database: str, place: Place) -> None:
    shipped(place, []).close()
    server.do(database, "INSERT INTO migrations VALUES (999, 0)")
    with pytest.raises(LedgerError, match="newer version") as caught:
        PostgresLedger(place).open()
    assert caught.value.lasting


def view(version: int) -> str:
    """The view of usage as that version made it."""
    script = migrations()[version - 1]
    return script[script.index("CREATE VIEW usage AS") : script.index("CREATE VIEW usage_hour")]


def test_tables_of_an_older_version_get_what_is_new(server: Postgres, database: str, place: Place) -> None:
    shipped(place, [entry(1)]).close()
    for what in ("VIEW audit_records", "FUNCTION audit_members", "TABLE audit", "TABLE audit_chains", "TABLE api_keys"):
        server.do(database, f"DROP {what}")
    server.do(database, "DROP VIEW usage CASCADE")
    server.do(database, "ALTER TABLE usage_facts DROP COLUMN raw_usage")
    server.do(database, view(1))
    server.do(database, "GRANT SELECT ON usage TO PUBLIC")
    server.do(database, "CREATE VIEW own AS SELECT request_id FROM usage")
    server.do(database, "DELETE FROM migrations WHERE version >= 2")
    shipped(place, [entry(2)]).close()
    assert server.do(database, "SELECT count(*) FROM usage") == [(2,)]
    assert server.do(database, "SELECT DISTINCT raw_usage FROM usage") == [("",)]
    # Rights, and what somebody has built on it, stay.
    assert server.do(database, "SELECT has_table_privilege('public', 'usage', 'SELECT')") == [(True,)]
    assert server.do(database, "SELECT count(*) FROM own") == [(2,)]
    assert server.do(database, "SELECT count(*) FROM audit_records") == [(0,)]
    assert server.do(database, "SELECT count(*) FROM api_keys") == [(0,)]


def test_two_ledgers_in_one_database(place: Place) -> None:
    one, two = shipped(place, [entry(1)]), shipped(place._replace(schema="other"), [entry(1), entry(2)])
    assert (one.usage(T0, T0 + 1)[0].requests, two.usage(T0, T0 + 1)[0].requests) == (1, 2)
    one.close()
    two.close()


def test_who_may_make_no_schema_uses_one_that_is_there(server: Postgres, database: str) -> None:
    role = f"modest_{database}"
    server.do("postgres", f"CREATE ROLE {role} LOGIN PASSWORD 'modest'")
    url = server.url(database, password="modest").replace("tollhouse:", f"{role}:", 1)
    with pytest.raises(LedgerError, match="permission denied"):
        PostgresLedger(place_of(url)).open()
    server.do(database, f"CREATE SCHEMA tollhouse AUTHORIZATION {role}")
    shipped(place_of(url), [entry(1)]).close()


def test_months_are_there_before_their_time(server: Postgres, database: str, place: Place) -> None:
    shipped(place, [entry(1)]).close()
    assert partitions(server, database) == {"default": 0, "2026_11": 1, "2026_12": 0, "2027_01": 0}
    names = {
        name for (name,) in server.do(database, "SELECT relname FROM pg_class WHERE relname LIKE 'usage_draws_2%'")
    }
    assert {"usage_draws_2026_11", "usage_draws_2026_12", "usage_draws_2027_01"} <= names


def test_months_are_made_as_soon_as_it_takes_writes(server: Postgres, database: str, place: Place) -> None:
    ledger = PostgresLedger(place, now=lambda: T0)
    ledger.open()
    assert ledger._db is not None
    ledger._db.execute("SET default_transaction_read_only = on")
    with pytest.raises(LedgerError, match="read-only"):
        ledger.ship(JOURNAL, [entry(1)])
    ledger._db.execute("SET default_transaction_read_only = off")
    assert ledger.ship(JOURNAL, [entry(1)]) == 1
    ledger.close()
    assert partitions(server, database) == {"default": 0, "2026_11": 1, "2026_12": 0, "2027_01": 0}


def test_records_of_long_ago_get_their_month(server: Postgres, database: str, place: Place) -> None:
    shipped(place, [entry(1, -14 * MONTH), entry(2), entry(3, -2 * MONTH)]).close()
    found = partitions(server, database)
    assert {name: count for name, count in found.items() if count} == {"2025_09": 1, "2026_09": 1, "2026_11": 1}


def test_a_clock_that_is_years_away_makes_no_months_and_is_told(
    server: Postgres, database: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = shipped(place, [entry(1, -40 * 365 * 86400), entry(2, 2000 * MONTH), entry(3)])
    assert partitions(server, database)["default"] == 2
    assert ledger.ship(JOURNAL, [entry(4)]) == 1
    assert ledger.astray == 2
    assert "2 usage records are in no month's partition" in caplog.text
    assert ledger.usage(0, T0 + 400 * 365 * 86400)[0].requests == 4
    ledger.close()


def test_what_was_astray_moves_when_its_month_is_made(server: Postgres, database: str, place: Place) -> None:
    draws = (("usd:top|ada|0", 5),)
    shipped(place, [entry(1, 8 * MONTH, draws=draws), entry(2)]).close()  # of a clock that is ahead of ours
    assert partitions(server, database)["default"] == 1
    later = shipped(place, [entry(3, 8 * MONTH)], now=T0 + 8 * MONTH)
    assert partitions(server, database)["default"] == 0
    assert partitions(server, database)["2027_07"] == 2
    assert server.do(database, "SELECT count(*) FROM usage_draws_default") == [(0,)]
    assert later.astray == 0
    assert later.ship(JOURNAL, [entry(1, 8 * MONTH)]) == 0
    assert later.usage(T0, T0 + 12 * MONTH)[0].requests == 3
    later.close()


def test_who_may_make_no_partitions_loses_nothing(
    server: Postgres, database: str, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    shipped(place, []).close()
    role = f"writer_{database}"
    server.do("postgres", f"CREATE ROLE {role} LOGIN PASSWORD 'writer'")
    server.do(database, f"GRANT USAGE ON SCHEMA tollhouse TO {role}")
    server.do(database, f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tollhouse TO {role}")
    url = server.url(database, password="writer").replace("tollhouse:", f"{role}:", 1)
    ledger = shipped(place_of(url), [entry(1)])
    assert "partitions of 2026-11 cannot be made: permission denied" in caplog.text
    assert partitions(server, database)["default"] == 1
    ledger.close()
    owner = shipped(place, [entry(2)])  # who may, puts it right
    assert partitions(server, database)["2026_11"] == 2
    owner.close()
