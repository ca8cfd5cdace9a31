"""Accounts, joined: whose a call is, one party as long as nothing changes, what is recorded, and the command."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.valkey import valkey

from tollhouse.backends.accounts.kept import Kept, account_id
from tollhouse.backends.accounts.records import AccountRecord
from tollhouse.cli import main
from tollhouse.config.parse import parse
from tollhouse.config.spec import Config
from tollhouse.core.call import Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure
from tollhouse.core.http import Headers, Request
from tollhouse.core.identity import Event
from tollhouse.gateway.account_list import AccountList, Names, listed_id
from tollhouse.gateway.accounts import ConnectedAccounts, Logins, listed, unsealed
from tollhouse.gateway.assembly import Assembly, Fixtures
from tollhouse.gateway.build import Builder
from tollhouse.gateway.keep import Keep
from tollhouse.gateway.operate import Operations
from tollhouse.gateway.state import opened_state
from tollhouse.issuer.subject import federated
from tollhouse.ledger.catalogue import Catalogue
from tollhouse.net.client import Client
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.store.base import State
from tollhouse.store.memory import MemoryState

pytestmark = pytest.mark.anyio

URL = "https://gw.example.com"
IDP = "https://idp.example.com"
HASH = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzb21l$AAAAAAAAAAAAAAAAAAAAAA"
SECRET = "0123456789abcdef0123456789abcdef"
KEY = "8yE2kq0c1nYtqkZfVnX0mJm6c2o5S1d9Qw3Gx7Lh4Ts="
OAUTH = "{issuer: 'http://127.0.0.1:9', token_endpoint: 'http://127.0.0.1:9/t', client_id: us, scopes: [read]}"


def text_of(*servers: str, more: str = "", oauth: str = OAUTH, upstream: str = "") -> str:
    listed = ", ".join(f"{name}: {{url: 'https://{name}.example.com/mcp', oauth: {oauth}}}" for name in servers)
    robot = f"{{id: robot, secret: {SECRET}, grants: [client_credentials]}}"
    return (
        f"authenticate: {{keys: [{{name: ci, key: {SECRET}}}]}}\n"
        f"issuer: {{url: '{URL}', users: [{{name: ada, password_hash: '{HASH}'}}], clients: [{robot}]{upstream}}}\n"
        f"mcp: {{servers: {{{listed or 'a: {command: x}'}}}}}\n{more}"
    )


def config_of(*servers: str, **more: str) -> Config:
    return parse(text_of(*servers, **more), "t.yaml", {}).config


def record(server: str = "files", sub: str = "ada", **changed: Any) -> AccountRecord:
    now = time.time()
    fields: dict[str, Any] = {
        "sub": sub,
        "url": f"https://{server}.example.com/mcp",
        "issuer": "http://127.0.0.1:9",
        "token_endpoint": "http://127.0.0.1:9/t",
        "revocation_endpoint": "",
        "resource": f"https://{server}.example.com/mcp",
        "client_id": "us",
        "secret": "",
        "method": "none",
        "registered": False,
        "access": "an-access-token",
        "refresh": "",
        "made": now,
        "expires": now + 3600,
        "scopes": ("read",),
        "since": 1_750_000_000.0,
        "agent": "desk",
        **changed,
    }
    return AccountRecord(**fields)


async def connect(state: State, server: str = "files", sub: str = "ada", **changed: Any) -> None:
    """As one that was connected before."""
    await Names(state.values, server).add(sub)
    await Kept(state.values).put(account_id(server, sub), record(server, sub, **changed))


class House:
    """What a process has once. keep: what outlives configurations."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.state = MemoryState(self.clock)
        self.families = Families(Metrics())
        self.client = Client(self.clock)
        self.fixtures = Fixtures(self.clock, self.families, self.client, self.state, Operations(self.families.metrics))
        self.keep = Keep()

    def made(self, config: Config) -> tuple[ConnectedAccounts, Assembly]:
        assembly = Assembly(self.fixtures, config, self.keep.tenure(), [], Catalogue.load)
        accounts = ConnectedAccounts(assembly)
        assert assembly.problems == []
        return accounts, assembly

    @property
    def metrics(self) -> str:
        return self.families.metrics.render()[1].decode()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    yield house
    await house.keep.close()
    await house.client.close()
    await house.state.close()


# ---- whose


def somebody(source: str = "jwt", issuer: str = URL, subject: str = "ada", **more: Any) -> Principal:
    return Principal(f"{source}:{issuer}|{subject}", source=source, issuer=issuer, subject=subject, **more)


UPSTREAM = f", upstream: [{{issuer: '{IDP}', client_id: us}}]"
FOREIGN = federated(IDP, "123")


@pytest.mark.parametrize(
    ("principal", "sub"),
    [
        (somebody(), "ada"),
        (somebody(user="ada@example.com", client="desk"), "ada"),
        (somebody(subject=FOREIGN), FOREIGN),  # by our own token
        (somebody(issuer=IDP, subject="123"), FOREIGN),  # by the very one that vouches at the login
        (somebody("opaque"), "ada"),
        (somebody("oidc", IDP, "123"), FOREIGN),
        (somebody(issuer=IDP, subject="ada"), federated(IDP, "ada")),  # no user of ours
        (somebody(subject="robot", client="robot"), ""),  # a client that speaks for itself
        (somebody(subject="mallory"), ""),  # who is in the configuration no more
        (somebody(issuer="https://other.example.com"), ""),  # whoever that is cannot log in here
        (somebody(issuer=f"{URL}/"), ""),
        (somebody(issuer="", subject="ada"), ""),
        (somebody(subject=""), ""),
        (Principal("key:ci", source="key", user="ada"), ""),
        (Principal("key:ci", source="key", user="ada", issuer=URL, subject="ada"), ""),
        (Principal("basic:ada", source="basic", user="ada"), ""),
        (Principal("mtls:ada", source="mtls", user="ada", issuer=URL, subject="ada"), ""),
        (Principal("ext:ada", source="ext", user="ada", issuer=URL, subject="ada"), ""),
        (Principal("anonymous", source="anonymous"), ""),
    ],
)
def test_whose_a_call_is(principal: Principal, sub: str) -> None:
    spec = config_of("files", upstream=UPSTREAM).issuer
    assert spec is not None
    assert Logins(spec).subject(principal) == sub


def test_without_a_provider_for_the_login_nobody_of_one_can_have_an_account() -> None:
    spec = config_of("files").issuer
    assert spec is not None
    assert Logins(spec).subject(somebody(subject=FOREIGN)) == ""
    assert Logins(spec).subject(somebody(issuer=IDP, subject="123")) == ""


# ---- one of each


async def test_a_server_has_accounts_if_it_says_so(house: House) -> None:
    accounts, assembly = house.made(config_of("files", "notes"))
    files, notes = accounts.of("files"), accounts.of("notes")
    assert files is not None
    assert notes is not None
    assert files is not notes
    assert accounts.of("other") is None
    assert accounts.services is not None
    assert [service.name for service in accounts.services.all()] == ["files", "notes"]
    assert house.made(config_of())[0].services is None
    assembly.connect(accounts.of)
    parts = assembly.parts("mcp").accounts
    assert parts is not None
    assert parts("files") is files


async def test_it_is_the_same_as_long_as_nothing_about_it_changes(house: House) -> None:
    before, _ = house.made(config_of("files", "notes"))
    same, _ = house.made(config_of("files", more="timeout: {total: 9s}\n"))
    assert same.of("files") is before.of("files")
    other, _ = house.made(config_of("files", oauth="on"))
    assert other.of("files") is not before.of("files")
    assert same.key != other.key
    # Who can log in is other people: whose calls are is, too.
    third, _ = house.made(config_of("files", upstream=UPSTREAM))
    assert third.of("files") is not before.of("files")


async def test_the_pages_go_with_them(house: House) -> None:
    builder = Builder(house.fixtures)
    tenure = house.keep.tenure()
    try:
        for servers, statuses in ((("files",), [405, 405, 404]), ((), [404, 404, 404])):
            router = builder.router(Assembly(house.fixtures, config_of(*servers), tenure, [], Catalogue.load))
            for path, status in zip((b"start", b"callback/files", b"callback/notes"), statuses, strict=True):
                with pytest.raises(Failure) as error:
                    router.find(Request(b"PUT", b"/oauth/upstream/" + path, Headers([])))
                assert error.value.status == status
    finally:
        tenure.end()
        await builder.close()


async def test_our_document_names_every_address(house: House) -> None:
    accounts, _ = house.made(config_of("files", "notes"))
    assert accounts.services is not None
    document = accounts.services.client_metadata()
    assert document is not None
    assert document["client_id"] == f"{URL}/oauth/upstream/client"
    assert document["redirect_uris"] == [f"{URL}/oauth/upstream/callback/{name}" for name in ("files", "notes")]


async def test_a_link_is_opened_by_the_server_it_is_for(house: House) -> None:
    accounts, _ = house.made(config_of("files", "notes"))
    notes, services = accounts.of("notes"), accounts.services
    assert notes is not None
    assert services is not None
    link = notes.link(somebody(client="desk"))
    assert link.startswith(f"{URL}/oauth/upstream/start?l=")
    found = services.opened(link.partition("l=")[2])
    assert found is not None
    assert (found[0].name, found[1].sub, found[1].agent) == ("notes", "ada", "desk")
    assert services.opened("nothing") is None
    with pytest.raises(Failure) as error:
        notes.link(Principal("key:ci", source="key", user="ada"))
    assert error.value.status == 403


# ---- what is told


class Recorded:
    """In the place of an Audit: what it was told without a request."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def happened(self, event: Event) -> None:
        self.events.append(event)


async def test_what_a_page_does_it_records_itself_and_nothing_else_is_lost(house: House) -> None:
    accounts, _ = house.made(config_of("files"))
    assert accounts.services is not None
    service: Any = accounts.services.find("files")
    audit = Recorded()
    service.recorded_by(audit)
    await connect(house.state)
    event = await service.disconnect("ada")
    assert (event.operation, event.subject, event.audience, event.client) == (
        "account.disconnected", "ada", "files", "desk",
    )  # fmt: skip
    assert audit.events == []
    assert await service.disconnect("ada") is None
    service.told(Event("account.disconnected", subject="bob", audience="files"))  # its issuer has ended it
    assert [event.subject for event in audit.events] == ["bob"]
    service.recorded_by(None)
    service.told(Event("account.disconnected", subject="bob", audience="files"))
    assert 'accounts_total{server="files",outcome="disconnected"} 1' in house.metrics


# ---- whether it is encrypted


def test_what_would_not_be_encrypted_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "kept in 'tollhouse.state' as they are" in unsealed(config_of("files"))
    sealed = f"state: {{url: 'file:own.state', encryption_key: '{KEY}'}}\n"
    assert unsealed(config_of("files", more=sealed)) == ""
    assert unsealed(config_of()) == ""
    (tmp_path / "t.yaml").write_text(text_of("files"))
    assert main(["check", "t.yaml"]) == 0
    told = capsys.readouterr()
    assert told.out == "t.yaml: fine\n"
    assert told.err.startswith("t.yaml: warning: the tokens of accounts")
    (tmp_path / "t.yaml").write_text(text_of("files", more=sealed))
    assert main(["check", "t.yaml"]) == 0
    assert capsys.readouterr().err == ""


async def test_the_gateway_says_so_in_its_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    _, assembly = house.made(config_of("files"))
    with caplog.at_level(logging.WARNING, "tollhouse.gateway"):
        for start in assembly.starts:
            start()
    assert "as they are" in caplog.text


# ---- the list


def listed_of(house: House, *servers: str) -> AccountList:
    accounts, _ = house.made(config_of(*servers))
    assert accounts.listed is not None
    return accounts.listed


async def test_the_list_is_by_server_and_user_and_has_pages(house: House) -> None:
    for server, sub in (("notes", "ada"), ("files", "bob"), ("files", "ada"), ("files", "u_x")):
        await connect(house.state, server, sub)
    found = listed_of(house, "notes", "files")
    everybody = [("files", "ada"), ("files", "bob"), ("files", "u_x"), ("notes", "ada")]
    assert [(one.server, one.user) for one in await found.page(("", ""), 10)] == everybody
    assert [(one.server, one.user) for one in await found.page(("", ""), 2)] == everybody[:2]
    assert [(one.server, one.user) for one in await found.page(everybody[1], 2)] == everybody[2:]
    assert await found.page(everybody[3], 2) == []
    (one,) = await found.page(("files", "u_x"), 9)
    assert (one.host, one.scopes, one.since, one.agent) == ("127.0.0.1:9", ("read",), 1_750_000_000.0, "desk")
    assert "an-access-token" not in repr(one)
    assert await found.find(one.id) == one
    assert await found.find("nothing") is None


async def test_who_has_no_account_any_more_is_left_out_and_forgotten(house: House) -> None:
    await Names(house.state.values, "files").add("ada")  # who was about to, and did not
    await connect(house.state, "files", "bob")
    await connect(house.state, "files", "eve", url="https://elsewhere.example.com/mcp")  # made for another place
    found = listed_of(house, "files")
    assert [one.user for one in await found.page(("", ""), 10)] == ["bob"]
    assert await Names(house.state.values, "files").all() == ["bob"]
    (one,) = await found.page(("", ""), 10)
    assert await found.disconnect(one)
    assert not await found.disconnect(one)
    assert await found.page(("", ""), 10) == []


async def test_names_that_come_at_once_are_all_there(house: House) -> None:
    names = Names(house.state.values, "files")
    subs = [f"user-{n}" for n in range(60)]
    await asyncio.gather(*(names.add(sub) for sub in subs))
    assert await names.all() == sorted(subs)
    await names.add("user-1")
    await names.forget(["user-1", "nobody"])
    assert await names.all() == sorted(set(subs) - {"user-1"})


async def test_a_list_that_cannot_be_read_is_as_none(house: House) -> None:
    names = Names(house.state.values, "files")
    await names.add("ada")
    for part in range(8):
        await house.state.values.put(f"up:x:files:{part}", b"\xc1", 60.0)
    assert await names.all() == []
    await names.add("bob")
    assert await names.all() == ["bob"]


# ---- `tollhouse accounts`


@pytest.fixture(params=["file", "valkey"])
def there(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """A configuration whose state has two accounts."""
    monkeypatch.chdir(tmp_path)
    if request.param == "valkey":
        (tmp_path / "valkey").mkdir()
        with valkey(tmp_path / "valkey") as server:
            yield filled(f"state: {{url: '{server.url}', encryption_key: '{KEY}'}}\n")
    else:
        yield filled(f"state: {{url: 'file:own.state', encryption_key: '{KEY}'}}\nledger: sqlite:own.db\n")


def filled(more: str) -> Config:
    Path("tollhouse.yaml").write_text(text_of("files", "notes", more=more))
    config = config_of("files", "notes", more=more)

    async def fill() -> None:
        async with opened_state(config.state, config.state.file) as (state, _):
            await connect(state, "files", "ada")
            await connect(state, "notes", "bob\x1b[31m")

    asyncio.run(fill())
    return config


def test_the_command_lists_and_disconnects(there: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accounts", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    id = listed_id("files", "ada")
    assert lines[0] == f"{id}  files  ada  at 127.0.0.1:9  since 2025-06-15T15:06:40+00:00  read"
    assert "\x1b" not in lines[1]
    assert main(["accounts", "list", "--json", "--user", "ada"]) == 0
    (one,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (one["id"], one["server"], one["user"], one["scopes"]) == (id, "files", "ada", ["read"])
    assert main(["accounts", "list", "--server", "notes"]) == 0
    assert "files" not in capsys.readouterr().out
    assert main(["accounts", "disconnect", id]) == 0
    assert capsys.readouterr().out == "disconnected ada from files\n"
    assert main(["accounts", "disconnect", id]) == 1
    assert "there is no account" in capsys.readouterr().err
    assert main(["accounts", "disconnect"]) == 2
    assert "say which account" in capsys.readouterr().err
    assert main(["accounts", "list", "--server", "files"]) == 0
    assert capsys.readouterr().out == "no account is connected\n"
    if there.ledger is not None:
        assert main(["audit", "list", "--json"]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        deeds = [(one["operation"], one["outcome"]) for one in records if "admin" in one["operation"]]
        assert deeds == [("admin.accounts.disconnect", "ok"), ("admin.accounts.disconnect", "invalid")]
        assert "'ada' at 'files'" in next(one["target"] for one in records if "admin" in one["operation"])


def test_without_such_servers_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tollhouse.yaml").write_text(text_of())
    assert main(["accounts", "list"]) == 2
    assert "no server here has `oauth`" in capsys.readouterr().err


def test_a_file_that_a_gateway_has_is_not_opened_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = filled(f"state: {{url: 'file:own.state', encryption_key: '{KEY}'}}\n")

    async def meanwhile() -> None:
        async with opened_state(config.state, config.state.file):
            with pytest.raises(ConfigError):
                await asyncio.to_thread(listed, config)

    asyncio.run(meanwhile())
