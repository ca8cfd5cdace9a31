"""Usage by the admin API: what was used, seats that are cheaper, records, and corrections."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.admin.house import House

from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import UsageRecord
from tollhouse.ledger.sqlite import SqliteLedger

pytestmark = pytest.mark.anyio

SEATS = (
    "subscriptions: [{name: max, usd: 100, models: ['claude-*']}, {name: year, usd: 600, per: year, models: ['*']}]\n"
)
NOW = int(datetime.now(UTC).timestamp() * 1e6)


def record(n: int, **fields: Any) -> UsageRecord:
    given: dict[str, Any] = {
        "admitted_at": NOW - n * 1000, "ended_at": NOW, "outcome": "ok", "request_id": f"r{n}", "user": "ada",
        "org": "o", "model_asked": "smart", "model_answered": "claude-x", "input": 10,
    }  # fmt: skip
    return UsageRecord(**(given | fields))


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Four calls, left in the journal of a process that is gone."""
    journal = Journal(tmp_path / "keys.db.journal")
    journal.open()
    journal.append(
        record(
            1, cost_nano=130_000_000_000, draws=(("usd:top/user:month|ada|1", 130_000_000_000), ("calls:x|ada|1", 1))
        )
    )
    journal.append(record(2, user="bob", cost_nano=2_500_000_000, tags=("a", "b")))
    journal.append(record(3, user="bob", draws=(("usd:top/user:month|bob|1", 0),)))
    journal.append(record(4, user="=cmd", model_answered="gpt", outcome="timeout", run_id="run-1", input=0))
    journal.close()
    return House(tmp_path, SEATS)


async def test_by_what_is_asked(house: House) -> None:
    status, told, _ = await house.ask("GET", "/api/usage?by=user,model&since=2h")
    assert status == 200
    assert [
        (one["by"], one["requests"], one["errors"], one["input"], one["unpriced"], one["usd"]) for one in told["usage"]
    ] == [
        ({"user": "=cmd", "model": "smart"}, 1, 1, 0, 0, "0.000000"),
        ({"user": "ada", "model": "smart"}, 1, 0, 10, 0, "130.000000"),
        ({"user": "bob", "model": "smart"}, 2, 0, 20, 1, "2.500000"),
    ]
    assert told["since"] < told["until"]
    _, told, _ = await house.ask("GET", "/api/usage?by=user&order=usd&top=1")
    assert [one["by"]["user"] for one in told["usage"]] == ["ada"]
    _, told, _ = await house.ask("GET", "/api/usage?by=run")
    assert [(one["by"]["run"], one["requests"]) for one in told["usage"]] == [("", 3), ("run-1", 1)]
    _, told, _ = await house.ask("GET", "/api/usage?where=user%3Dbob&where=user%3Dada&where=tag%3Da")
    assert [(one["by"], one["requests"]) for one in told["usage"]] == [({}, 1)]
    _, told, _ = await house.ask("GET", "/api/usage?since=2020-01-01&until=2020-01-02")
    assert told["usage"] == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("by=colour", "cannot group by colour"),
        ("since=yesterday", "not a time: 'yesterday'"),
        ("where=user", "not a condition: 'user'"),
        ("where=hour%3D1", "not a condition"),
        ("order=size", "cannot order by size"),
        ("top=-1", "`top` is a number of rows"),
        ("by=user&by=org", "of the query only"),
        ("format=csv", "of the query only"),
        ("limit=5", "of the query only"),
    ],
)
async def test_what_cannot_be_asked(query: str, problem: str, house: House) -> None:
    status, told, _ = await house.ask("GET", f"/api/usage?{query}")
    assert status == 400
    assert problem in told["title"]


async def test_nothing_is_recorded_yet(tmp_path: Path) -> None:
    house = House(tmp_path, SEATS)
    for path in ("", "/seats", "/records"):
        status, told, _ = await house.ask("GET", f"/api/usage{path}")
        assert status == 200
        assert [] in told.values()
    status, _, _ = await house.ask("POST", "/api/usage/0-1/adjust", {"usd": 1})
    assert status == 404


async def test_seats(house: House) -> None:
    status, told, _ = await house.ask("GET", "/api/usage/seats?since=30d")
    assert status == 200
    users = [(one["user"], one["seat"], one["usd"], one["unpriced"]) for one in told["users"]]
    assert users == [("ada", "year", "130.000000", 0), ("bob", None, "2.500000", 1), ("=cmd", None, "0.000000", 0)]
    assert 80 < float(told["users"][0]["saving_usd"]) < 82  # 130 less a twelfth of 600 for thirty days


async def test_seats_where_none_is_sold(tmp_path: Path) -> None:
    status, told, _ = await House(tmp_path).ask("GET", "/api/usage/seats")
    assert status == 409
    assert "no subscription is named" in told["title"]


async def test_records(house: House) -> None:
    status, told, _ = await house.ask("GET", "/api/usage/records?where=user%3Dbob")
    assert status == 200
    first, second = told["records"]
    assert (first["request_id"], first["usd"], first["tags"]) == ("r2", "2.500000", ["a", "b"])
    assert (second["request_id"], second["usd"], second["tags"]) == ("r3", None, [])
    assert (second["estimated"], second["raw_usage"]) == (False, "")
    _, told, _ = await house.ask("GET", "/api/usage/records?top=1")
    assert [one["request_id"] for one in told["records"]] == ["r1"]
    status, _, _ = await house.ask("GET", "/api/usage/records?top=1001")
    assert status == 400


async def test_a_price_that_became_known_later(house: House, tmp_path: Path) -> None:
    _, told, _ = await house.ask("GET", "/api/usage/records?where=user%3Dbob")
    id = told["records"][1]["id"]
    status, made, _ = await house.ask("POST", f"/api/usage/{id}/adjust", {"usd": "0.75", "note": "invoice 7"})
    assert (status, made) == (200, {"id": id, "before": None, "after": "0.750000"})
    _, told, _ = await house.ask("GET", "/api/usage?by=user&where=user%3Dbob")
    (bob,) = told["usage"]
    assert (bob["requests"], bob["usd"], bob["unpriced"], bob["input"]) == (2, "3.250000", 0, 20)
    # again: from what it is now
    status, made, _ = await house.ask("POST", f"/api/usage/{id}/adjust", {"usd": 0.5})
    assert made == {"id": id, "before": "0.750000", "after": "0.500000"}
    status, made, _ = await house.ask("POST", f"/api/usage/{id}/adjust", {"usd": "0.5"})
    assert made["before"] == made["after"] == "0.500000"
    _, told, _ = await house.ask("GET", "/api/usage/records?where=user%3Dbob&top=10")
    assert [one["usd"] for one in told["records"] if one["adjust_of"] == id] == ["-0.250000", "0.750000"]
    ledger = SqliteLedger(tmp_path / "keys.db")
    ledger.open()
    assert ledger.drawn("usd:top/user:month|bob|1") == 500_000_000  # and so budgets hear of it
    assert len(ledger.positions()) == 3  # the first journal, and one of each correction
    ledger.close()


async def test_only_money_is_corrected(house: House, tmp_path: Path) -> None:
    _, told, _ = await house.ask("GET", "/api/usage/records?where=user%3Dada")
    id = told["records"][0]["id"]
    await house.ask("POST", f"/api/usage/{id}/adjust", {"usd": 100})
    ledger = SqliteLedger(tmp_path / "keys.db")
    ledger.open()
    assert ledger.drawn("usd:top/user:month|ada|1") == 100_000_000_000
    assert ledger.drawn("calls:x|ada|1") == 1
    assert ledger.spent("usd", 0, 1 << 52, {"user": "ada"}) == 100_000_000_000
    assert ledger.spent("calls", 0, 1 << 52, {"user": "ada"}) == 1
    ledger.close()


@pytest.mark.parametrize(
    ("id", "body", "status"),
    [
        ("01234567-89ab-7cde-8f01-23456789abcd", {"usd": 1}, 404),
        ("nonsense", {"usd": 1}, 404),
        ("01234567-89ab-7cde-8f01-23456789abcd", {"usd": -1}, 400),
        ("01234567-89ab-7cde-8f01-23456789abcd", {"usd": "NaN"}, 400),
        ("01234567-89ab-7cde-8f01-23456789abcd", {"usd": 1e30}, 400),
        ("01234567-89ab-7cde-8f01-23456789abcd", {"usd": "a lot"}, 400),
        ("01234567-89ab-7cde-8f01-23456789abcd", {}, 400),
    ],
)
async def test_what_cannot_be_corrected(id: str, body: Any, status: int, house: House) -> None:
    found, _, _ = await house.ask("POST", f"/api/usage/{id}/adjust", body)
    assert found == status


async def test_the_document_says_what_can_be_asked(house: House) -> None:
    _, told, _ = await house.ask("GET", "/openapi.json")
    parameters = told["paths"]["/api/usage"]["get"]["parameters"]
    assert [one["name"] for one in parameters] == ["by", "since", "until", "where", "order", "top"]
    assert parameters[3]["schema"] == {"type": "array", "items": {"type": "string"}}


async def test_several_at_once(house: House) -> None:
    """One of them takes over what a dead process has left; nothing of it counts twice."""
    answers = await asyncio.gather(*(house.ask("GET", "/api/usage?by=org") for _ in range(6)))
    assert {status for status, _, _ in answers} == {200}
    assert all(sum(row["requests"] for row in told["usage"]) in (0, 4) for _, told, _ in answers)
    _, told, _ = await house.ask("GET", "/api/usage?by=org")
    assert [row["requests"] for row in told["usage"]] == [4]


async def test_corrections_at_once_come_to_what_was_said_last(house: House) -> None:
    _, told, _ = await house.ask("GET", "/api/usage/records?where=user%3Dbob")
    id = told["records"][0]["id"]
    asked = [house.ask("POST", f"/api/usage/{id}/adjust", {"usd": 7}) for _ in range(6)]
    made = [answer for status, answer, _ in await asyncio.gather(*asked) if status == 200]
    assert len(made) == 6
    assert sorted(one["before"] for one in made) == ["2.500000", *["7.000000"] * 5]
    _, told, _ = await house.ask("GET", "/api/usage?by=user&where=user%3Dbob")
    assert told["usage"][0]["usd"] == "7.000000"


async def test_a_correction_that_is_on_its_way_is_known(house: House, tmp_path: Path) -> None:
    """Some gateway has taken it over, and the ledger has not got it yet."""
    _, told, _ = await house.ask("GET", "/api/usage/records?where=user%3Dbob")
    one = told["records"][0]
    ledger = SqliteLedger(tmp_path / "keys.db")
    ledger.open()
    (found,) = [record for record in ledger.records(0, 1 << 52) if record.id == one["id"]]
    ledger.close()
    late = Journal(tmp_path / "keys.db.journal")
    late.open()
    late.append(msgspec.structs.replace(found, id="", journal="", seq=0, cost_nano=500_000_000, adjust_of=one["id"]))
    status, made, _ = await house.ask("POST", f"/api/usage/{one['id']}/adjust", {"usd": 1})
    assert (status, made["before"], made["after"]) == (200, "3.000000", "1.000000")
    late.close()
    _, told, _ = await house.ask("GET", "/api/usage?by=user&where=user%3Dbob")
    assert told["usage"][0]["usd"] == "1.000000"
