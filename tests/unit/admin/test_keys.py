"""API keys by the admin API: made, shown page by page, ended, and nothing else ended."""

from pathlib import Path
from typing import Any

import pytest
from tests.unit.admin.house import House

from tollhouse.admin.operation import cursor
from tollhouse.core.call import Principal
from tollhouse.ledger.key_follower import KeyFollower
from tollhouse.ledger.keys import NewKey
from tollhouse.ledger.keys_sqlite import SqliteKeys

pytestmark = pytest.mark.anyio


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_a_key_is_shown_once_and_has_what_was_said(house: House, tmp_path: Path) -> None:
    said = {
        "name": "ci", "user": "bob", "org": "o", "agent": "a", "email": "e@x", "groups": ["g"], "scopes": ["s"],
        "metadata": {"n": [1, {"deep": None}]}, "models": ["m*"], "servers": [], "routes": ["r"],
        "expires_at": "2099-01-01T02:00:00+02:00",
    }  # fmt: skip
    status, made, _ = await house.ask("POST", "/api/keys", said)
    assert status == 201
    assert {**said, "expires_at": "2099-01-01T00:00:00Z", "tools": None} == {n: made[n] for n in (*said, "tools")}
    assert made["key"].startswith(f"{made['id']}_")
    follower = KeyFollower(SqliteKeys(tmp_path / "keys.db"))
    follower.start()
    try:
        assert len(follower) == 1
    finally:
        follower.stop()
    _, shown, _ = await house.ask("GET", f"/api/keys/{made['id']}")
    assert "key" not in shown
    assert (await house.ask("GET", f"/api/keys/{made['id'][4:]}"))[1] == shown
    assert (await house.ask("GET", "/api/keys"))[1] == {"keys": [shown], "next": None}


async def test_pages_have_every_key_once_also_while_keys_are_made(house: House, tmp_path: Path) -> None:
    ledger = SqliteKeys(tmp_path / "keys.db", now=lambda: 1_800_000_000.0)
    made = {ledger.create(NewKey(name=f"k{n}"))[1].id for n in range(7)}  # within one second
    seen: list[str] = []
    target: str | None = "/api/keys?limit=3"
    later = SqliteKeys(tmp_path / "keys.db", now=lambda: 1_800_000_001.0)
    while target:
        status, told, _ = await house.ask("GET", target)
        assert status == 200
        seen += [key["id"][4:] for key in told["keys"]]
        target = told["next"] and f"/api/keys?limit=3&cursor={told['next']}"
        if len(seen) == 3:
            late = later.create(NewKey(name="late"))[1].id
    assert sorted(seen) == sorted({*made, late})
    assert len(seen) == 8
    assert seen[-1] == late


async def test_ending_one_ends_that_one_alone_and_says_so_again(house: House, tmp_path: Path) -> None:
    _, first, _ = await house.ask("POST", "/api/keys", {"name": "ci", "user": "bob"})
    # Another one whose name is the first one's id.
    _, named, _ = await house.ask("POST", "/api/keys", {"name": first["id"][4:], "user": "eve"})
    status, told, _ = await house.ask("DELETE", f"/api/keys/{first['id']}")
    assert (status, told["state"], told["id"]) == (200, "ended", first["id"])
    assert (await house.ask("GET", f"/api/keys/{named['id']}"))[1]["state"] == "good"
    holder = Principal("key:ci", source="key", key="ci", jti=first["id"])
    other = Principal("key:x", source="key", key=first["id"][4:], jti=named["id"])
    assert house.revocations.revoked(holder)  # at once, before the ledger is read again
    assert not house.revocations.revoked(other)
    assert (await house.ask("DELETE", f"/api/keys/{first['id']}"))[1] == told
    assert (await house.ask("DELETE", "/api/keys/ci"))[0] == 404
    assert (await house.ask("GET", "/api/keys/ci"))[0] == 404


async def test_what_cannot_be_made(house: House, tmp_path: Path) -> None:
    async def said(one: House, body: Any) -> tuple[int, str]:
        status, told, _ = await one.ask("POST", "/api/keys", body)
        return status, told["title"]

    assert (await house.ask("POST", "/api/keys", {"name": "ci", "user": "bob"}))[0] == 201
    status, why = await said(house, {"name": "ci", "user": "eve"})
    assert (status, "is in use for bob" in why) == (409, True)
    house.config = house.config.model_copy(update={"authenticate": None})
    status, why = await said(house, {"name": "other"})
    assert (status, "`issued: true`" in why) == (409, True)
    house.config = house.config.model_copy(update={"ledger": None})
    status, why = await said(house, {"name": "other"})
    assert (status, "name one" in why) == (409, True)
    assert (await house.ask("GET", "/api/keys"))[0] == 409


async def test_a_time_that_has_no_year_makes_no_key(house: House) -> None:
    """Else the key would be in the ledger, and no list could be shown any more."""
    status, told, _ = await house.ask("POST", "/api/keys", {"name": "ci", "expires_at": "9999-12-31T23:59:59-12:00"})
    assert (status, told["code"]) == (400, "invalid_request")
    assert "after the year 9999" in told["title"]
    assert (await house.ask("GET", "/api/keys"))[1] == {"keys": [], "next": None}
    status, told, _ = await house.ask("POST", "/api/keys", {"name": "ci", "expires_at": "9999-12-31T23:59:59Z"})
    assert (status, told["expires_at"]) == (201, "9999-12-31T23:59:59Z")


@pytest.mark.parametrize("second", [1 << 63, -(1 << 63) - 1, 10**30])
async def test_a_cursor_beyond_what_the_ledger_compares_is_none(house: House, second: int) -> None:
    status, told, _ = await house.ask("GET", f"/api/keys?cursor={cursor(second, 'a')}")
    assert (status, told["title"]) == (400, "`cursor` is none that this list has given")
