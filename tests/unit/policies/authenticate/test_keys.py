"""Keys of the ledger at the door, and what a key may be used for."""

from pathlib import Path
from typing import Any

import pytest
from tests.unit.policies.authenticate.door import Door, bearer
from tests.unit.policies.floor import answer, layer, model, parts, request, respond, tool, who

from tollhouse.core.call import Call
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import compose
from tollhouse.ledger.key_follower import KeyFollower
from tollhouse.ledger.keys import NewKey
from tollhouse.ledger.keys_sqlite import SqliteKeys
from tollhouse.policies.authenticate import ACCESS, ACCESS_ROUTE, AuthenticateSpec, may_use
from tollhouse.policies.authenticate.access import access_of
from tollhouse.store.memory import MemoryState
from tollhouse.store.revocation import Revocations

pytestmark = pytest.mark.anyio


async def test_a_key_of_the_ledger_opens_the_door_until_it_has_ended(tmp_path: Path) -> None:
    ledger = SqliteKeys(tmp_path / "l.db")
    secret, _ = ledger.create(
        NewKey(name="ci", user="bob", org="o", agent="runner", email="b@x", groups=("g",), metadata={"tier": "gold"})
    )
    other, _ = ledger.create(NewKey(name="other", scopes=("mcp",)))
    follower = KeyFollower(ledger)
    follower.look()
    door = Door({"issued": True}, parts(issued=follower))
    bob = await door.enter(bearer(secret.encode()))
    assert (bob.id, bob.source, bob.user, bob.org, bob.agent, bob.email) == (
        "key:ci",
        "key",
        "bob",
        "o",
        "runner",
        "b@x",
    )
    assert (bob.groups, bob.claims) == (("g",), {"tier": "gold"})
    assert await door.enter((b"x-api-key", secret.encode())) is bob
    assert (await door.enter(bearer(other.encode()))).scopes == {"mcp"}
    ledger.revoke("ci")
    assert await door.enter(bearer(secret.encode())) is bob  # nobody has looked
    follower.look()
    failure = await door.refused(bearer(secret.encode()))
    assert (failure.status, failure.reason, failure.code) == (401, Reason.API_KEY_AUTH, "invalid_api_key")
    assert secret not in failure.message + failure.detail
    assert (await door.enter(bearer(other.encode()))).key == "other"
    ledger.close()


async def test_an_expired_key_is_no_key(tmp_path: Path) -> None:
    now = [1000.0]
    ledger = SqliteKeys(tmp_path / "l.db", now=lambda: now[0])
    secret, _ = ledger.create(NewKey(name="ci", expires_at=1))
    follower = KeyFollower(ledger)
    follower.look()
    assert (await Door({"issued": True}, parts(issued=follower)).refused(bearer(secret.encode()))).status == 401
    gone = {"name": "old", "key": "sk-0123456789", "expires": "2001-01-01T00:00:00Z"}
    good = {"name": "new", "key": "sk-9876543210", "expires": "2999-01-01"}
    door = Door({"keys": [gone, good]})
    assert (await door.refused(bearer(b"sk-0123456789"))).status == 401
    assert (await door.enter(bearer(b"sk-9876543210"))).key == "new"
    ledger.close()


async def test_a_gateway_that_has_only_the_state_hears_that_a_key_has_ended(tmp_path: Path) -> None:
    clock = Clock()
    revocations = Revocations(MemoryState(clock), clock)
    await revocations.load()
    ledger = SqliteKeys(tmp_path / "l.db")
    secret, key = ledger.create(NewKey(name="ci"))
    again, _ = ledger.create(NewKey(name="ci"))
    follower = KeyFollower(ledger)
    follower.look()
    door = Door({"issued": True}, parts(issued=follower, revocations=revocations))
    for one in (secret, again):
        assert (await door.enter(bearer(one.encode()))).key == "ci"
    await revocations.revoke("jti", f"thk_{key.id}", 2e9)
    assert (await door.refused(bearer(secret.encode()))).status == 401
    assert (await door.enter(bearer(again.encode()))).key == "ci"
    ledger.close()


@pytest.mark.parametrize(
    "text, said",
    [("thk_abcdefgh_short", "mistyped or cut off"), ("thk_", "mistyped or cut off"), ("sk-1234", "not known")],
)
async def test_what_is_wrong_with_a_key(text: str, said: str, tmp_path: Path) -> None:
    ledger = SqliteKeys(tmp_path / "l.db")
    follower = KeyFollower(ledger)
    follower.look()
    failure = await Door({"issued": True}, parts(issued=follower)).refused(bearer(text.encode()))
    assert said in failure.message
    assert failure.status == 401
    ledger.close()


async def test_a_name_in_the_configuration_goes_before_one_in_the_ledger(tmp_path: Path) -> None:
    ledger = SqliteKeys(tmp_path / "l.db")
    secret, _ = ledger.create(NewKey(name="ci", user="mallory"))
    follower = KeyFollower(ledger)
    follower.look()
    spec = {"issued": True, "keys": [{"name": "ci", "key": "sk-0123456789", "user": "ada"}]}
    door = Door(spec, parts(issued=follower))
    assert (await door.refused(bearer(secret.encode()))).status == 401
    assert (await door.enter(bearer(b"sk-0123456789"))).user == "ada"
    ledger.close()


# ---- what it is for


def bounded(**bounds: Any) -> Any:
    names = ("models", "servers", "tools", "routes")
    principal = who("key", "ci")
    principal.access = access_of(*(bounds.get(name) for name in names))
    return principal


@pytest.mark.parametrize(
    "bounds, models, tools",
    [
        ({}, {"smart": True}, {"shop/buy": True}),
        ({"models": ("gpt-*",)}, {"gpt-4": True, "smart": False, "": True}, {"shop/buy": False, "/": False}),
        ({"servers": ("shop",)}, {"smart": False, "": False}, {"shop/buy": True, "files/read": False, "/": True}),
        ({"tools": ("buy",)}, {"smart": False}, {"shop/buy": True, "shop/sell": False}),
        ({"tools": ("shop__*",)}, {}, {"shop/buy": True, "files/buy": False}),
        ({"servers": ("shop",), "tools": ("b*",)}, {}, {"shop/buy": True, "shop/sell": False, "files/buy": False}),
        ({"models": ("*",), "servers": ("*",)}, {"a": True}, {"x/y": True}),
        ({"routes": ("r",)}, {"a": False}, {"x/y": False}),
        ({"models": ()}, {"a": False, "": False}, {"x/y": False}),
        ({"models": ("a.c",)}, {"abc": False, "a.c": True, "a.cd": False}, {}),
    ],
)
async def test_what_a_key_is_for(bounds: dict[str, Any], models: dict[str, bool], tools: dict[str, bool]) -> None:
    spec = AuthenticateSpec.model_validate({"issued": True})
    policy = ACCESS.make((layer(spec),), parts(entrance="llm"))
    assert policy is not None
    chain = compose((policy,), answer)
    principal = bounded(**bounds)

    async def ask(call: Call, expected: bool) -> None:
        assert may_use(call) is expected
        if expected:
            assert (await chain(call)).status == 200
            return
        with pytest.raises(Failure) as caught:
            await chain(call)
        failure = caught.value
        assert (failure.status, failure.reason, failure.code) == (403, Reason.AUTHORIZATION, "permission_denied")
        assert call.context.rule == "key "

    for _ in range(2):  # the second time it is remembered
        for name, expected in models.items():
            await ask(model(name, principal), expected)
        for name, expected in tools.items():
            server, _, one = name.partition("/")
            call = tool(one, principal, server=server, method="tools/call" if one else "tools/list")
            await ask(call, expected)


@pytest.mark.parametrize("method", ["prompts/get", "resources/read", "resources/subscribe"])
def test_a_key_for_tools_alone_opens_nothing_else(method: str) -> None:
    assert not may_use(tool("x", bounded(tools=("*",)), method=method))
    assert may_use(tool("x", bounded(tools=("*",), servers=("shop",)), method=method))
    assert not may_use(tool("x", bounded(tools=("*",), servers=("files",)), method=method))
    assert may_use(tool("x", bounded(tools=("*",)), method="tasks/get"))


async def test_routes_are_by_their_names() -> None:
    spec = AuthenticateSpec.model_validate({"keys": [{"name": "x", "key": "sk-0123456789", "routes": ["rep*"]}]})
    policy = ACCESS_ROUTE.make((layer(spec),), parts(entrance="http"))
    assert policy is not None
    chain = compose((policy,), respond)
    asked = request(principal=bounded(routes=("rep*",)))
    asked.context.route = "reports"
    assert (await chain(asked)).status == 200
    asked.context.route = "billing"
    with pytest.raises(Failure, match="may not be used"):
        await chain(asked)
    asked.context.principal = bounded(models=("*",))
    asked.context.route = "reports"
    with pytest.raises(Failure):
        await chain(asked)


def test_where_no_key_has_bounds_nobody_asks() -> None:
    spec = AuthenticateSpec.model_validate({"keys": [{"name": "x", "key": "sk-0123456789"}]})
    for entrance in ("llm", "mcp"):
        assert ACCESS.make((layer(spec),), parts(entrance=entrance)) is None
    assert ACCESS_ROUTE.make((layer(spec),), parts(entrance="http")) is None
