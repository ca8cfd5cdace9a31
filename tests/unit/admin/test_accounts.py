"""Accounts by the admin API: which there are, by pages, without a token; and their end."""

import logging
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.unit.admin.house import House

from tollhouse.core.identity import Event
from tollhouse.gateway.account_list import AccountList, Names, listed_id

pytestmark = pytest.mark.anyio


class Kept(NamedTuple):
    host: str = "login.example.com"
    scopes: tuple[str, ...] = ("read", "write")
    since: float = 1_750_000_000.0
    agent: str = "desk"


class Files:
    """A server, and whose accounts it has."""

    def __init__(self, name: str, *subs: str) -> None:
        self.name = name
        self.kept = dict.fromkeys(subs, Kept())

    async def account(self, sub: str) -> Kept | None:
        return self.kept.get(sub)

    async def disconnect(self, sub: str) -> Event | None:
        return None if self.kept.pop(sub, None) is None else Event("account.disconnected", subject=sub)


@pytest.fixture
async def there(tmp_path: Path) -> tuple[House, Files]:
    house = House(tmp_path)
    files, notes = Files("files", "ada", "bob", "eve"), Files("notes", "ada")
    for service in (files, notes):
        for sub in (*service.kept, "gone"):
            await Names(house.state.values, service.name).add(sub)
    house.accounts = AccountList([notes, files], house.state.values)
    return house, files


async def test_the_list_has_pages(there: tuple[House, Files]) -> None:
    house, _ = there
    status, first, _ = await house.ask("GET", "/api/accounts?limit=3")
    assert status == 200
    assert [(one["server"], one["user"]) for one in first["accounts"]] == [
        ("files", "ada"), ("files", "bob"), ("files", "eve"),
    ]  # fmt: skip
    _, last, _ = await house.ask("GET", f"/api/accounts?limit=3&cursor={first['next']}")
    assert [(one["server"], one["user"]) for one in last["accounts"]] == [("notes", "ada")]
    assert last["next"] is None
    assert last["accounts"][0] == {
        "id": listed_id("notes", "ada"),
        "server": "notes",
        "user": "ada",
        "host": "login.example.com",
        "scopes": ["read", "write"],
        "since": "2025-06-15T15:06:40Z",
        "agent": "desk",
    }


async def test_one_is_ended_once(there: tuple[House, Files], caplog: pytest.LogCaptureFixture) -> None:
    house, files = there
    id = listed_id("files", "bob")
    with caplog.at_level(logging.INFO, "tollhouse.admin"):
        status, said, _ = await house.ask("DELETE", f"/api/accounts/{id}")
        assert (status, said["user"], said["server"]) == (200, "bob", "files")
        assert list(files.kept) == ["ada", "eve"]
        assert (await house.ask("DELETE", f"/api/accounts/{id}"))[0] == 404
    assert f"accounts.disconnect by eve from 127.0.0.1: {id}, of user 'bob' at 'files'" in caplog.text
    _, left, _ = await house.ask("GET", "/api/accounts")
    assert [one["user"] for one in left["accounts"]] == ["ada", "eve", "ada"]


@pytest.mark.parametrize("id", ["nothing", listed_id("files", "gone"), listed_id("other", "ada"), "-", "a" * 64])
async def test_what_is_no_account_is_not_found(there: tuple[House, Files], id: str) -> None:
    house, files = there
    assert (await house.ask("DELETE", f"/api/accounts/{id}"))[0] == 404
    assert len(files.kept) == 3


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("cursor=!!!", 400),
        ("cursor=WyJmaWxlcyJd", 400),  # ["files"]
        ("cursor=WzEsMl0", 400),  # [1,2]
        ("limit=0", 400),
        ("user=ada", 400),
        ("cursor=WyJ6IiwieiJd", 200),  # ["z","z"]
    ],
)
async def test_a_forged_cursor_leads_nowhere(there: tuple[House, Files], query: str, status: int) -> None:
    house, _ = there
    found, said, _ = await house.ask("GET", f"/api/accounts?{query}")
    assert found == status
    assert status != 200 or said == {"accounts": [], "next": None}


async def test_without_such_servers_there_are_none(tmp_path: Path) -> None:
    house = House(tmp_path)
    status, said, _ = await house.ask("GET", "/api/accounts")
    assert (status, said["code"]) == (409, "conflict")
    assert (await house.ask("DELETE", "/api/accounts/x"))[0] == 409


async def test_nobody_without_a_key_is_answered(there: tuple[House, Files]) -> None:
    house, files = there
    for method, path in (("GET", "/api/accounts"), ("DELETE", f"/api/accounts/{listed_id('files', 'bob')}")):
        assert (await house.ask(method, path, key="another-key-of-32-characters-----"))[0] == 401
    assert len(files.kept) == 3
