"""Issuers elsewhere: what they are asked, that they are asked once, and which of their answers are believed."""

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import time
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet
from tests.fixtures.foreign_issuer import Asked, foreign_issuer
from tests.fixtures.issuer import API, CLIENTS, MCP, RESOURCES, SECRET, issuing
from tests.fixtures.listening import listening

from tollhouse.backends.exchange import Elsewhere, ElsewhereSettings
from tollhouse.core.call import Actor, Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.identity import Target
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer

pytestmark = pytest.mark.anyio

SHOP = "https://shop.example.com/mcp"
TARGET = Target(SHOP, ("read",), 5.0, True)
ALONE = Target(SHOP, ("read",), 5.0, False)
TOKEN = "urn:ietf:params:oauth:token-type:access_token"
GOOD = {"access_token": "opaque-1", "issued_token_type": TOKEN, "token_type": "Bearer", "expires_in": 60}


def ada(**more: Any) -> Principal:
    values: dict[str, Any] = {
        "issuer": "https://idp.example.net", "subject": "ada", "client": "agent-1", "user": "ada",
        "expires": time() + 600, "token": b"the-callers-own", "claims": {"aud": "gateway"},
    }  # fmt: skip
    return Principal("jwt:ada", source="jwt", **(values | more))


@asynccontextmanager
async def client(url: str, vouch: Any = None, **more: Any) -> AsyncIterator[Elsewhere]:
    values = {"kind": "rfc8693", "token_endpoint": f"{url}/token", "client_id": "gateway", "client_secret": SECRET}
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    http = Client(clock)
    made = Elsewhere(ElsewhereSettings(url, **(values | more)), http, vouch)
    try:
        yield made
    finally:
        await made.close()
        await http.close()
        timer.stop()


def says(value: Any, status: int = 200, **headers: str) -> Callable[[Asked], Any]:
    return lambda asked: (status, value, headers)


def unsigned(**claims: Any) -> str:
    """A JWT as it comes from the issuer itself: who gets it asks for the signature."""
    return ".".join(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, claims, {}))


async def refused(issuer: Elsewhere, principal: Principal, target: Target = TARGET) -> Failure:
    with pytest.raises(Failure) as caught:
        await issuer.exchanged(principal, target)
    return caught.value


# ---- what is asked


async def test_what_is_asked() -> None:
    async with foreign_issuer(says({**GOOD, "scope": "read"})) as there, client(there.url) as issuer:
        minted = await issuer.exchanged(ada(), TARGET)
        await issuer.exchanged(ada(), Target(f"{SHOP}#buy", (), 30.0, True))
    assert minted.token == b"opaque-1"
    assert 0 < minted.expires - time() <= 5.0  # ours is shorter
    first, second = there.forms
    assert first == {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": "the-callers-own", "subject_token_type": TOKEN, "requested_token_type": TOKEN,
        "resource": SHOP, "scope": "read", "requested_ttl": "5",
    }  # fmt: skip
    assert (second["audience"], second["requested_ttl"]) == (f"{SHOP}#buy", "30")
    assert "resource" not in second
    assert there.asked[0].headers["authorization"].startswith("Basic ")
    assert there.connections == 1  # it is kept


async def test_the_secret_in_the_form() -> None:
    async with foreign_issuer(says(GOOD)) as there, client(there.url, basic=False) as issuer:
        await issuer.exchanged(ada(), TARGET)
    assert (there.forms[0]["client_id"], there.forms[0]["client_secret"]) == ("gateway", SECRET)
    assert "authorization" not in there.asked[0].headers


async def test_where_its_token_endpoint_is() -> None:
    def script(asked: Asked) -> Any:
        if asked.path.startswith("/.well-known/oauth-authorization-server"):
            return 404, b"", {}
        if asked.path == "/.well-known/openid-configuration":
            return 200, {"issuer": there.url, "token_endpoint": f"{there.url}/there"}, {}
        return 200, GOOD, {}

    async with foreign_issuer(script) as there, client(there.url, token_endpoint="") as issuer:
        for scope in ("a", "b"):
            await issuer.exchanged(ada(), Target(SHOP, (scope,), 5.0, True))
    assert [asked.path for asked in there.asked][-2:] == ["/there", "/there"]
    assert len(there.asked) == 4  # it was looked for once


async def test_it_is_looked_for_again_and_stays_when_nobody_says_where_it_is() -> None:
    says_where = ["/a", "/a", "/b", ""]

    def script(asked: Asked) -> Any:
        if not asked.path.startswith("/.well-known"):
            return 200, GOOD, {}
        where = says_where.pop(0) if asked.path.endswith("server") else ""
        return (200, {"issuer": there.url, "token_endpoint": f"{there.url}{where}"}, {}) if where else (404, b"", {})

    async with foreign_issuer(script) as there, client(there.url, token_endpoint="") as issuer:
        for number in range(4):
            await issuer.exchanged(ada(), Target(SHOP, (f"{number}",), 5.0, True))
            issuer._found_at = 0.0  # a clock
    assert [asked.path for asked in there.asked if asked.method == "POST"] == ["/a", "/a", "/b", "/b"]


@pytest.mark.parametrize(
    "metadata",
    [
        b"no",
        {"issuer": "https://other.example.com", "token_endpoint": "https://other.example.com/token"},
        {"token_endpoint": "http://x.example"},
        {"issuer": "THERE"},
        {"issuer": "THERE", "token_endpoint": "ftp://x.example"},
        {"issuer": "THERE", "token_endpoint": "THERE/token\r\nx-admin: yes"},
        {"issuer": "THERE", "token_endpoint": "http://[bad"},
        {"issuer": "THERE", "token_endpoint": "http://user:password@x.example/token"},
    ],
)
async def test_metadata_that_is_not_its_own(metadata: Any) -> None:
    def script(asked: Asked) -> Any:
        value = {k: v.replace("THERE", there.url) for k, v in metadata.items()} if type(metadata) is dict else metadata
        return 200, value, {}

    async with foreign_issuer(script) as there, client(there.url, token_endpoint="") as issuer:
        assert (await refused(issuer, ada())).status == 503
    assert not there.forms  # nothing was told to anybody


async def test_who_has_no_token_is_vouched_for_or_gets_none() -> None:
    key = Principal("key:ci", source="key", user="bob")
    async with foreign_issuer(says(GOOD)) as there:
        async with client(there.url, lambda principal: b"we-know-" + principal.user.encode()) as issuer:
            await issuer.exchanged(key, TARGET)
        async with client(there.url) as issuer:
            assert (await refused(issuer, key)).status == 403
    [form] = there.forms
    assert (form["subject_token"], form["subject_token_type"].rpartition(":")[2]) == ("we-know-bob", "jwt")


async def test_nobody_who_acts_is_hidden() -> None:
    async with foreign_issuer(says(GOOD)) as there, client(there.url) as issuer:
        for principal in (
            ada(actors=(Actor("", "x"),)), ada(claims={"may_act": {}}), ada(claims={"act": {"sub": "x"}}),
        ):  # fmt: skip
            assert (await refused(issuer, principal, ALONE)).status == 403
        assert not there.asked
    noted = Principal("key:ci", source="key", claims={"act": "ive"})  # what the configuration says about a key
    async with foreign_issuer(says(GOOD)) as there, client(there.url, lambda principal: b"our-word") as issuer:
        assert (await issuer.exchanged(noted, ALONE)).token == b"opaque-1"


async def test_at_keycloak() -> None:
    said = {**GOOD, "access_token": unsigned(aud="shop", exp=time() + 300, jti="j-1"), "scope": "read profile"}
    target = Target("shop", ("read",), 5.0, False)
    async with foreign_issuer(says(said)) as there, client(there.url, kind="keycloak") as issuer:
        minted = await issuer.exchanged(ada(), target)
    assert (minted.jti, minted.expires > time() + 30) == ("j-1", True)
    assert (there.forms[0]["audience"], there.forms[0]["scope"]) == ("shop", "read")
    assert not {"resource", "requested_ttl"} & set(there.forms[0])


async def test_at_entra() -> None:
    said = {"access_token": unsigned(aud="1", exp=time() + 3600), "token_type": "Bearer", "expires_in": 3599}
    target = Target("api://shop", ("Read",), 5.0, False)
    mine = ada(claims={"aud": "api://gateway"})
    async with foreign_issuer(says(said)) as there, client(there.url, kind="entra_obo", basic=False) as issuer:
        minted = await issuer.exchanged(mine, target)
        await issuer.exchanged(ada(claims={"aud": "gateway", "idtyp": "app"}, token=b"app"), target)
        assert (await refused(issuer, ada(claims={"aud": "other"}, token=b"other"), target)).status == 403
    first, second = there.forms
    assert minted.expires > time() + 500  # its life is Entra's to say, within the caller's own
    assert first["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    assert (first["assertion"], first["requested_token_use"]) == ("the-callers-own", "on_behalf_of")
    assert first["scope"] == "api://shop/Read"
    assert (second["grant_type"], second["scope"]) == ("client_credentials", "api://shop/.default")


async def test_what_entra_wants_to_ask_reaches_the_user() -> None:
    claims = '{"access_token":{"polids":{"essential":true,"values":["p-1"]}}}'
    error = {"error": "interaction_required", "error_description": "AADSTS50076", "claims": claims}
    async with foreign_issuer(says(error, 400)) as there, client(there.url, kind="entra_obo", basic=False) as issuer:
        failure = await refused(issuer, ada(), ALONE)
    assert failure.status == 401
    [(_, challenge)] = failure.headers
    assert challenge.startswith(b'Bearer error="insufficient_claims", claims="eyJ')


# ---- once


async def test_equal_ones_are_asked_for_once() -> None:
    there_now, go = asyncio.Event(), asyncio.Event()

    async def slow(asked: Asked) -> Any:
        there_now.set()
        await go.wait()
        return 200, {**GOOD, "access_token": f"for-{asked.form['subject_token']}"}, {}

    async with foreign_issuer(slow) as there, client(there.url) as issuer:
        tasks = [asyncio.ensure_future(issuer.exchanged(ada(), TARGET)) for _ in range(5)]
        other = asyncio.ensure_future(issuer.exchanged(ada(token=b"bobs"), TARGET))
        await there_now.wait()
        tasks[0].cancel()  # who asked first leaves
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        while len(there.asked) < 2:
            await asyncio.sleep(0)
        go.set()
        tokens = {(await task).token for task in tasks[1:]}
        bobs = (await other).token
    assert len(there.forms) == 2
    assert (tokens, bobs) == ({b"for-the-callers-own"}, b"for-bobs")


async def test_two_of_one_name_are_two() -> None:
    """What another service says of a caller (`ext_authz`) may differ where his id does not."""
    here = [Principal("ext:ada", source="ext", user="ada", org=org) for org in ("red", "blue")]
    both = asyncio.Event()

    async def slow(asked: Asked) -> Any:
        if len(there.asked) == 2:
            both.set()
        await both.wait()
        return 200, {**GOOD, "access_token": f"of-{asked.form['subject_token']}"}, {}

    async with foreign_issuer(slow) as there, client(there.url, lambda principal: principal.org.encode()) as issuer:
        tokens = await asyncio.wait_for(asyncio.gather(*(issuer.exchanged(one, TARGET) for one in here)), 5.0)
    assert [minted.token for minted in tokens] == [b"of-red", b"of-blue"]


async def test_one_caller_leaves_room_for_others() -> None:
    go = asyncio.Event()

    async def slow(asked: Asked) -> Any:
        await go.wait()
        return 200, GOOD, {}

    async with foreign_issuer(slow) as there, client(there.url) as issuer:
        many = [Target(f"{SHOP}#{number}", (), 5.0, True) for number in range(64)]
        tasks = [asyncio.ensure_future(issuer.exchanged(ada(), target)) for target in many]
        await asyncio.sleep(0)
        again = asyncio.ensure_future(issuer.exchanged(ada(), many[0]))  # which is under way
        assert (await refused(issuer, ada())).status == 503
        other = asyncio.ensure_future(issuer.exchanged(ada(token=b"bobs"), TARGET))
        go.set()
        assert {minted.token for minted in await asyncio.gather(*tasks, again, other)} == {b"opaque-1"}
        assert (await issuer.exchanged(ada(), TARGET)).token == b"opaque-1"
        assert not issuer._each


async def test_when_all_have_left_nothing_is_left() -> None:
    arrived = asyncio.Event()

    async def never(asked: Asked) -> Any:
        arrived.set()
        await asyncio.Event().wait()

    async with foreign_issuer(never) as there, client(there.url) as issuer:
        task = asyncio.ensure_future(issuer.exchanged(ada(), TARGET))
        await arrived.wait()
        task.cancel()
        await asyncio.wait((task,))
        [flight] = issuer._flights.values()
        await issuer.close()
        assert flight.cancelled()
        assert not issuer._flights
        assert not issuer._each


# ---- what goes wrong


async def test_one_that_is_down_is_left_alone_for_a_moment_and_then_asked_again() -> None:
    answers: list[Any] = [(503, b"", {"retry-after": "0"}), (200, GOOD, {})]
    async with foreign_issuer(lambda asked: answers.pop(0)) as there, client(there.url) as issuer:
        failure = await refused(issuer, ada())
        assert (failure.status, failure.retry_after, failure.reason) == (503, 1.0, "ExtAuth")
        assert (await refused(issuer, ada())).status == 503
        assert len(there.asked) == 1
        issuer._not_before -= 1.0  # a clock
        assert (await issuer.exchanged(ada(), TARGET)).token == b"opaque-1"


BAD = {**GOOD, "token_type": "N_A"}


@pytest.mark.parametrize(
    "answer", [(200, BAD, {}), (403, b"<html>", {"retry-after": "30"}), (413, b"", {}), (400, {"error": "so"}, {})]
)
async def test_what_one_caller_brings_about_keeps_nobody_else_waiting(answer: Any) -> None:
    def script(asked: Asked) -> Any:
        return answer if asked.form["subject_token"] == "malus" else (200, GOOD, {})

    async with foreign_issuer(script) as there, client(there.url) as issuer:
        for _ in range(3):
            failure = await refused(issuer, ada(token=b"malus"))
            assert (failure.status, failure.code) == (503, "temporarily_unavailable")
            assert (await issuer.exchanged(ada(), TARGET)).token == b"opaque-1"
    assert len(there.asked) == 6


@pytest.mark.parametrize("answer", [(401, b"", {}), (400, {"error": "unauthorized_client"}, {}), (429, b"", {})])
async def test_what_is_no_callers_fault_is_not_asked_for_again_at_once(answer: Any) -> None:
    async with foreign_issuer(lambda asked: answer) as there, client(there.url) as issuer:
        for token in (b"one", b"two"):
            assert (await refused(issuer, ada(token=token))).status == 503
    assert len(there.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_nobody_is_sent_on_to_somebody_else(status: int) -> None:
    """Who would get the caller's token, and our secret."""
    async with foreign_issuer(says(GOOD)) as other:
        moved = (status, b"", {"location": f"{other.url}/token"})
        async with foreign_issuer(lambda asked: moved) as there, client(there.url) as issuer:
            assert (await refused(issuer, ada())).status == 503
    assert not other.asked


async def test_one_that_answers_a_byte_at_a_time_has_no_more_time() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 4000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.05)

    async with listening(drip) as url, client(url) as issuer:
        assert (await asyncio.wait_for(refused(issuer, ada()), 20.0)).status == 503


async def test_a_dead_one() -> None:
    async with foreign_issuer(lambda asked: None) as there, client(there.url) as issuer:
        assert (await refused(issuer, ada())).status == 503
    async with client(there.url) as issuer:
        assert (await refused(issuer, ada())).status == 503


async def test_a_slow_one_is_not_waited_for() -> None:
    async def never(asked: Asked) -> Any:
        await asyncio.Event().wait()

    began = time()
    async with foreign_issuer(never) as there, client(there.url) as issuer:
        assert (await refused(issuer, ada())).status == 503
    assert 1.5 < time() - began < 8.0


LIES: list[dict[str, Any]] = [
    {"access_token": None},
    {"access_token": ""},
    {"access_token": "two words"},
    {"access_token": "x\r\nx-admin: yes"},
    {"access_token": "x" * 9000},
    {"token_type": "N_A"},
    {"token_type": "DPoP"},
    {"issued_token_type": None},
    {"issued_token_type": "urn:ietf:params:oauth:token-type:id_token"},
    {"issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
    {"scope": "read write"},
    {"scope": ["read"]},
    {"expires_in": 0},
    {"expires_in": -5},
    {"expires_in": True},
    {"expires_in": "soon"},
    {"expires_in": 1e300},
    {"access_token": unsigned(aud="https://other.example.com", act={"sub": "agent-1"})},
    {"access_token": unsigned(aud=[SHOP, "account"], act={"sub": "agent-1"})},
    {"access_token": unsigned(aud=[], act={"sub": "agent-1"})},
    {"access_token": unsigned(act={"sub": "agent-1"})},
    {"access_token": unsigned(aud=SHOP)},  # which hides the agent
    {"access_token": unsigned(aud=SHOP, act="agent-1")},
    {"access_token": unsigned(aud=SHOP, act={"sub": "agent-1"}, exp=1)},
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: str(lie)[:50])
async def test_a_lying_one_is_not_believed(lie: dict[str, Any]) -> None:
    said = {name: value for name, value in {**GOOD, **lie}.items() if value is not None}
    async with foreign_issuer(says(said)) as there, client(there.url) as issuer:
        failure = await refused(issuer, ada())
    assert failure.status == 503
    assert str(lie.get("access_token") or "-" * 99) not in failure.detail + failure.message


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"a":' * 5000, json.dumps(GOOD).encode() + b" " * 70_000])
async def test_what_is_no_answer(body: bytes) -> None:
    async with foreign_issuer(says(body)) as there, client(there.url) as issuer:
        assert (await refused(issuer, ada())).status == 503


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        ("invalid_request", 400, 401),  # the subject's token (RFC 8693 section 2.2.2)
        ("invalid_grant", 400, 401),
        ("invalid_scope", 400, 403),
        ("invalid_target", 400, 403),
        ("invalid_client", 401, 503),  # ours is the fault
        ("unauthorized_client", 400, 503),
        ("temporarily_unavailable", 503, 503),
        ("slow_down", 429, 503),
    ],
)
async def test_refusals(error: str, status: int, expected: int) -> None:
    said = {"error": error, "error_description": f"no: {SECRET}"}
    async with foreign_issuer(says(said, status)) as there, client(there.url) as issuer:
        failure = await refused(issuer, ada())
    assert failure.status == expected
    assert SECRET not in failure.detail + failure.message


def test_a_secret_is_in_no_repr() -> None:
    settings = ElsewhereSettings("https://a.example", "rfc8693", "", "gateway", SECRET)
    assert SECRET not in repr(settings)


# ---- our own auth provider, over HTTP


async def test_our_own_over_http() -> None:
    clients = [*CLIENTS, {"id": "other", "secret": SECRET, "grants": ["token_exchange"]}]
    clients[3] = {**CLIENTS[3], "token_exchange": {"targets": [{"audience": SHOP, "scopes": {"read": ["mcp"]}}]}}
    async with issuing(clients=clients) as node:
        form = {"grant_type": "client_credentials", "resource": MCP, "scope": "mcp"}
        given = (await node.token("robot", **form)).json()["access_token"]
        read = await node.issuer.tokens.read(given.encode())
        assert read is not None
        read.token = given.encode()
        async with client(f"{node.url}", token_endpoint="") as issuer:
            minted = await issuer.exchanged(read, TARGET)
            wider = await refused(issuer, read, Target(SHOP, ("write",), 5.0, True))
            elsewhere = await refused(issuer, read, Target(API, (), 5.0, True))
        async with client(node.url, token_endpoint=f"{node.url}/oauth/token", client_id="other") as thief:
            stolen = await refused(thief, read)
        keys = KeySet.import_key_set((await node.http.get(f"{node.url}/oauth/jwks")).json())
    said = jwt.decode(minted.token.decode(), keys, algorithms=["ES256"]).claims
    assert (said["aud"], said["sub"], said["scope"], said["client_id"]) == (SHOP, "robot", "read", "gateway")
    assert said["exp"] - said["iat"] == 5
    assert minted.jti == said["jti"]
    assert (wider.status, elsewhere.status) == (403, 403)
    assert stolen.status == 401  # binding: it was not made for that client
    assert set(RESOURCES) == {MCP, API}
