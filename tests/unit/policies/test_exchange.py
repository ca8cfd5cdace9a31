"""Exchange: what goes out with a call, what is used again, and what a caller is told who gets no token."""

import asyncio
import gc
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from time import time
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError
from tests.fixtures.accounts import Connected
from tests.unit.policies.floor import answer, counted, layer, parts, request, respond, tool, who

from tollhouse.core.call import Actor, Call, Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure, Reason
from tollhouse.core.handler import compose
from tollhouse.core.http import Request, Response
from tollhouse.core.identity import ACCOUNT_NEEDED, Exchanger, Minted, Target
from tollhouse.core.reply import Reply
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.mint import Mint
from tollhouse.issuer.spec import KeysSpec
from tollhouse.policies.base import Parts
from tollhouse.policies.exchange import EXCHANGE, EXCHANGE_ROUTE, MOST, exchange
from tollhouse.policies.exchange_spec import ExchangeSpec, ToolExchangeSpec
from tollhouse.store.memory import MemoryState
from tollhouse.store.revocation import Revocations
from tollhouse.wire.jose import Keys, Token, parse, verify

pytestmark = pytest.mark.anyio

ISSUER = "https://auth.example.com"
SHOP = "https://shop.example.com/mcp"
REFUSED = Failure(502, Reason.UPSTREAM_FAILURE, "no", code="upstream_credentials")


class Makers:
    """Of one configuration."""

    def __init__(self, own: Exchanger | None) -> None:
        self.generation = object()
        self.identity = None
        self.own = own

    def of(self, who: Any) -> Exchanger | None:
        return self.own if who is None else Elsewhere()


class Made(NamedTuple):
    token: bytes
    jti: str
    expires: float


class Elsewhere:
    """An issuer that has to be asked first."""

    version = 0

    def __init__(self, failure: Failure | None = None) -> None:
        self.asked = 0
        self.failure = failure

    async def exchanged(self, principal: Principal, target: Target) -> Minted:
        await asyncio.sleep(0)
        self.asked += 1
        if self.failure is not None:
            raise self.failure.copy()
        return Made(b"remote-%d" % self.asked, "", time() + target.ttl)


@pytest.fixture
def keys() -> Iterator[SigningKeys]:
    state = MemoryState(Clock())
    made = SigningKeys(state.values, KeysSpec())
    asyncio.run(made.load())
    yield made
    asyncio.run(state.close())


@pytest.fixture
def p(keys: SigningKeys) -> Parts:
    return parts(
        entrance="mcp", upstream=SHOP, exchangers=Makers(Mint(ISSUER, keys)), public_url="https://gw.example.com"
    )


def spec(**values: Any) -> Any:
    return ExchangeSpec.model_validate(values)


def ada(*scopes: str, **more: Any) -> Principal:
    values: dict[str, Any] = {
        "issuer": ISSUER, "subject": "ada", "client": "agent-1", "expires": time() + 600, "token": b"the-caller's-own",
        "claims": {"exp": time() + 600}, "scopes": frozenset(scopes),
    }  # fmt: skip
    return who("jwt", "ada", **(values | more))


class Upstream:
    """Remembers what it was shown, and fails as it is told."""

    def __init__(self, *failures: Failure | None) -> None:
        self.failures = list(failures)
        self.shown: list[bytes] = []

    async def handle(self, call: Call) -> Reply:
        self.shown.append(call.credential)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure.copy()
        return await answer(call)


async def sent(p: Parts, principal: Principal, *layers: Any, upstream: Upstream | None = None, **call: Any) -> bytes:
    """What the upstream was shown last."""
    made = EXCHANGE.make(tuple(layers) or (layer(spec()),), p)
    assert made is not None
    upstream = upstream or Upstream()
    await compose((made,), upstream.handle)(tool(principal=principal, **call))
    return upstream.shown[-1]


def claims(field: bytes, keys: SigningKeys) -> dict[str, Any]:
    scheme, _, value = field.partition(b" ")
    token = parse(value)
    assert scheme == b"Bearer"
    assert isinstance(token, Token)
    assert verify(token, Keys.parse(keys.public())) is None
    return token.claims


# ---- what goes out


async def test_a_call_goes_out_with_a_token_of_its_own(p: Parts, keys: SigningKeys) -> None:
    said = claims(await sent(p, ada("mcp")), keys)
    assert (said["iss"], said["sub"], said["aud"]) == (ISSUER, "ada", SHOP)
    assert said["act"] == {"iss": ISSUER, "sub": "agent-1"}
    assert said["exp"] - said["iat"] == 5
    assert "scope" not in said


async def test_its_id_is_known_to_who_writes_it_down(p: Parts, keys: SigningKeys) -> None:
    call = tool(principal=ada())
    made = EXCHANGE.make((layer(spec()),), p)
    assert made is not None
    await compose((made,), answer)(call)
    assert call.context.token_jti == claims(call.credential, keys)["jti"]


async def test_what_goes_out_is_in_no_repr(p: Parts) -> None:
    call = tool(principal=ada())
    made = EXCHANGE.make((layer(spec()),), p)
    assert made is not None
    await compose((made,), answer)(call)
    call.context.credential = call.credential
    secret = call.credential.rpartition(b" ")[2].decode()
    shown = repr([call, call.context, call.principal, call.principal.minted if call.principal else None])
    assert secret not in shown
    assert "the-caller's-own" not in shown


async def test_a_chain_that_is_too_long_is_refused(p: Parts) -> None:
    with pytest.raises(Failure) as caught:
        await sent(p, ada(actors=tuple(Actor(ISSUER, f"agent-{number}") for number in range(2, 12))))
    assert caught.value.status == 403


@pytest.mark.parametrize(
    ("audience", "method", "expected"),
    [
        ("server", "tools/call", SHOP),
        ("tool", "tools/call", f"{SHOP}#search"),
        ("tool", "resources/read", SHOP),
        ("urn:shop", "tools/call", "urn:shop"),
    ],
)
async def test_audiences(p: Parts, keys: SigningKeys, audience: str, method: str, expected: str) -> None:
    field = await sent(p, ada(), layer(spec(audience=audience)), method=method)
    assert claims(field, keys)["aud"] == expected


async def test_a_tools_name_is_no_other_audience(p: Parts, keys: SigningKeys) -> None:
    field = await sent(p, ada(), layer(spec(audience="tool")), name="x#y /../z\r\n")
    assert claims(field, keys)["aud"] == f"{SHOP}#x%23y%20%2F..%2Fz%0D%0A"


async def test_a_name_that_is_too_long_is_not_cut_to_anothers(p: Parts) -> None:
    await sent(p, ada(), layer(spec(audience="tool")), name="x" * 256)
    with pytest.raises(Failure) as caught:
        await sent(p, ada(), layer(spec(audience="tool")), name="x" * 256 + "y")
    assert caught.value.status == 400


async def test_impersonation_names_the_user_alone_and_hides_nobody(p: Parts, keys: SigningKeys) -> None:
    impersonating = layer(spec(mode="impersonation"))
    assert "act" not in claims(await sent(p, ada(), impersonating), keys)
    for principal in (ada(actors=(Actor(ISSUER, "other"),)), ada(claims={"may_act": {"sub": "agent-1"}})):
        with pytest.raises(Failure) as caught:
            await sent(p, principal, impersonating)
        assert caught.value.status == 403


async def test_who_acted_before_is_named_inside(p: Parts, keys: SigningKeys) -> None:
    said = claims(await sent(p, ada(actors=(Actor(ISSUER, "other"),))), keys)
    assert said["act"] == {"iss": ISSUER, "sub": "agent-1", "act": {"iss": ISSUER, "sub": "other"}}


async def test_no_token_outlives_its_subject(p: Parts, keys: SigningKeys) -> None:
    ends = int(time()) + 3
    said = claims(await sent(p, ada(claims={"exp": ends}, expires=ends + 5.0)), keys)
    assert said["exp"] <= ends


@pytest.mark.parametrize(
    ("mints", "held", "expected"),
    [
        (None, {"mcp"}, "shop.read"),
        (None, {"mcp", "write"}, "shop.read shop.write"),
        (None, set(), ""),
        (("shop.read",), {"mcp", "write"}, "shop.read"),
        (("shop.write", "shop.read"), {"mcp", "write"}, "shop.read shop.write"),
    ],
)
async def test_scopes_follow_from_the_callers(
    p: Parts, keys: SigningKeys, mints: Any, held: set[str], expected: str
) -> None:
    layers = [layer(spec(scopes={"shop.read": ["mcp"], "shop.write": ["mcp", "write"]}))]
    if mints is not None:
        layers.append(layer(ToolExchangeSpec(mints=mints), "tool", "shop/search"))
    assert claims(await sent(p, ada(*held), *layers), keys).get("scope", "") == expected


async def test_who_lacks_a_scope_is_told_all_that_the_call_needs(p: Parts) -> None:
    layers = (
        layer(spec(scopes={"shop.write": ["write", "mcp"]})),
        layer(ToolExchangeSpec(mints=("shop.write",)), "tool", "shop/search"),
    )
    with pytest.raises(Failure) as caught:
        await sent(replace(p, scopes=("tools",)), ada("mcp"), *layers)
    failure = caught.value
    [(name, challenge)] = failure.headers
    assert (failure.status, failure.code, name) == (403, "insufficient_scope", b"www-authenticate")
    assert b'error="insufficient_scope", scope="mcp tools write"' in challenge


async def test_a_tool_narrows_and_lengthens(p: Parts, keys: SigningKeys) -> None:
    layers = (
        layer(spec(ttl="10s", audience="urn:all")),
        layer(spec(audience="server"), "server", "shop"),
        layer(ToolExchangeSpec.model_validate({"ttl": "1m", "reuse": "never"}), "tool", "shop/search"),
    )
    principal = ada()
    said = claims(await sent(p, principal, *layers), keys)
    assert (said["aud"], said["exp"] - said["iat"]) == (SHOP, 60)
    assert not principal.minted


async def test_a_key_in_somebodys_name(p: Parts, keys: SigningKeys) -> None:
    said = claims(await sent(p, who("key", "ci", user="bob", key="ci")), keys)
    assert (said["sub"], said["amr"], said["act"]["sub"]) == ("bob", ["key"], "key:ci")


# ---- what is used again


async def test_equal_calls_share_a_token_in_the_first_half_of_its_life(p: Parts) -> None:
    principal = ada()
    now = time()
    wanted = exchange((layer(spec(ttl="10s")),), p)
    assert wanted is not None
    wanted._now = lambda: now  # a clock
    upstream = Upstream()
    chain = compose((wanted.handle,), upstream.handle)
    await chain(tool(principal=principal))
    now += 4.0
    await chain(tool("other", principal=principal))
    assert upstream.shown[0] == upstream.shown[1]
    now += 1.5
    await chain(tool(principal=principal))
    assert upstream.shown[2] != upstream.shown[0]
    assert counted(p, "exchanges_total") == {("made",): 2.0, ("cached",): 1.0}


async def test_nobody_gets_anothers(p: Parts, keys: SigningKeys) -> None:
    first = await sent(p, ada())
    second = await sent(p, ada(subject="bob"))
    assert claims(first, keys)["sub"] == "ada"
    assert claims(second, keys)["sub"] == "bob"


async def test_another_configuration_and_other_keys_make_new_ones(p: Parts, keys: SigningKeys) -> None:
    principal = ada()
    first = await sent(p, principal)
    assert await sent(p, principal) == first
    assert p.exchangers is not None
    another = replace(p, exchangers=Makers(p.exchangers.of(None)))
    second = await sent(another, principal)
    assert second != first
    before = keys.version
    await keys.rotate()
    assert keys.version != before
    assert await sent(another, principal) != second


async def test_of_two_issuers_each_makes_its_own(p: Parts) -> None:
    """For one audience, as servers behind one API have it."""
    principal, red, blue = ada(), Elsewhere(), Elsewhere()
    red.asked, blue.asked = 100, 200
    makers = Makers(red)
    p = replace(p, exchangers=makers)
    same = layer(spec(audience="urn:api"))
    first = await sent(p, principal, same)
    assert p.exchangers is not None
    makers.own = blue  # of another server, in the same configuration
    second = await sent(p, principal, same)
    assert (first, second) == (b"Bearer remote-101", b"Bearer remote-201")
    assert await sent(p, principal, same) == second


async def test_who_is_revoked_while_a_token_is_made_gets_none(p: Parts) -> None:
    state = MemoryState(Clock())
    revocations = Revocations(state, Clock())
    principal, bob = ada(jti="j-1"), ada(jti="j-2", subject="bob")

    class Slow(Elsewhere):
        async def exchanged(self, principal: Principal, target: Target) -> Minted:
            await revocations.revoke("jti", "j-1", time() + 600)
            return await super().exchanged(principal, target)

    slow = Slow()
    p = replace(p, revocations=revocations, exchangers=Makers(slow))
    upstream = Upstream()
    with pytest.raises(Failure) as caught:
        await sent(p, principal, upstream=upstream)
    assert (caught.value.status, caught.value.code) == (401, "invalid_token")
    assert not upstream.shown
    assert not principal.minted
    made = exchange((layer(spec()),), p)
    assert made is not None
    with pytest.raises(Failure):
        made.credential(principal)
    assert await sent(p, bob) == b"Bearer remote-2"  # whom it does not concern
    await state.close()


async def test_never_is_never(p: Parts) -> None:
    principal = ada()
    fields = {await sent(p, principal, layer(spec(reuse="never"))) for _ in range(3)}
    assert len(fields) == 3
    assert not principal.minted


async def test_what_is_remembered_is_bounded(p: Parts) -> None:
    principal = ada()
    for number in range(2 * MOST):
        await sent(p, principal, layer(spec(audience="tool")), name=f"tool-{number}")
    assert len(principal.minted) == MOST


async def test_what_was_revoked_gets_none_although_one_is_remembered(p: Parts) -> None:
    state = MemoryState(Clock())
    revocations = Revocations(state, Clock())
    p = replace(p, revocations=revocations)
    principal, bob = ada(jti="j-1"), ada(jti="j-2", subject="bob")
    await sent(p, principal)
    before = await sent(p, bob)
    await revocations.revoke("jti", "j-1", time() + 600)
    with pytest.raises(Failure) as caught:
        await sent(p, principal)
    assert (caught.value.status, caught.value.code) == (401, "invalid_token")
    assert not principal.minted
    assert await sent(p, bob) == before  # whom it does not concern
    await state.close()


# ---- an upstream that refuses


async def test_a_remembered_token_that_is_refused_is_made_afresh_once(p: Parts) -> None:
    principal = ada()
    await sent(p, principal)
    upstream = Upstream(REFUSED)
    await sent(p, principal, upstream=upstream)
    first, second = upstream.shown
    assert first != second
    with pytest.raises(Failure):
        await sent(p, principal, upstream=(stubborn := Upstream(REFUSED, REFUSED, REFUSED)))
    assert len(stubborn.shown) == 2


async def test_a_new_token_that_is_refused_is_refused(p: Parts) -> None:
    upstream = Upstream(REFUSED)
    with pytest.raises(Failure):
        await sent(p, ada(), upstream=upstream)
    assert len(upstream.shown) == 1


async def test_what_may_have_been_carried_out_is_not_made_again(p: Parts) -> None:
    forbidden = Failure(502, Reason.UPSTREAM_FAILURE, "no", code="upstream_credentials", sent=True)
    principal = ada()
    await sent(p, principal)
    upstream = Upstream(forbidden)
    with pytest.raises(Failure):
        await sent(p, principal, upstream=upstream)
    assert len(upstream.shown) == 1


# ---- who gets none


@pytest.mark.parametrize("principal", [None, Principal("anonymous", source="anonymous")])
async def test_nobody_knows_who_it_is(p: Parts, principal: Principal | None) -> None:
    upstream = Upstream()
    made = EXCHANGE.make((layer(spec()),), p)
    assert made is not None
    call = tool()
    call.principal = principal
    with pytest.raises(Failure) as caught:
        await compose((made,), upstream.handle)(call)
    assert caught.value.status == 401
    assert b"resource_metadata" in caught.value.headers[0][1]
    assert not upstream.shown


async def test_who_is_about_to_expire_is_told_to_get_another(p: Parts) -> None:
    with pytest.raises(Failure) as caught:
        await sent(p, ada(claims={"exp": time() + 0.5}))
    failure = caught.value
    assert (failure.status, failure.code) == (401, "invalid_token")
    assert b'error="invalid_token"' in failure.headers[0][1]
    assert b'resource_metadata="https://gw.example.com/.well-known/' in failure.headers[0][1]


async def test_an_issuer_that_is_down_is_no_reason_to_send_the_callers_own(p: Parts) -> None:
    down = Failure(503, Reason.OVERLOADED, "down", retry_after=1.0)
    upstream = Upstream()
    with pytest.raises(Failure) as caught:
        await sent(replace(p, exchangers=Makers(Elsewhere(down))), ada(), upstream=upstream)
    assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
    assert not upstream.shown


async def test_one_that_has_to_be_asked(p: Parts) -> None:
    issuer = Elsewhere()
    p = replace(p, exchangers=Makers(issuer))
    principal = ada()
    assert await sent(p, principal) == await sent(p, principal) == b"Bearer remote-1"
    assert await sent(p, principal, upstream=Upstream(REFUSED)) == b"Bearer remote-2"
    assert issuer.asked == 2


# ---- beside calls, and on plain routes


async def test_what_belongs_to_a_session(p: Parts, keys: SigningKeys) -> None:
    made = exchange((layer(spec(audience="tool", scopes={"shop.read": ["mcp"]})),), p)
    assert made is not None
    principal = ada("mcp")
    field = made.credential(principal)
    assert isinstance(field, bytes)
    said = claims(field, keys)
    assert (said["aud"], said["scope"]) == (SHOP, "shop.read")
    with pytest.raises(Failure):
        made.credential(None)
    remote = exchange((layer(spec()),), replace(p, exchangers=Makers(Elsewhere())))
    assert remote is not None
    waiting = remote.credential(principal)
    assert isinstance(waiting, Awaitable)
    assert await waiting == b"Bearer remote-1"


async def test_a_route_gets_tokens_where_it_says_so(p: Parts, keys: SigningKeys) -> None:
    route = replace(p, entrance="http", upstream="https://plain.example.com")
    assert EXCHANGE_ROUTE.make((layer(spec()),), route) is None
    policy = EXCHANGE_ROUTE.make((layer(spec(ttl="9s")), layer(spec(), "route", "plain")), route)
    assert policy is not None
    asked = request(principal=ada())
    await compose((policy,), respond)(asked)
    said = claims(asked.context.credential, keys)
    assert (said["aud"], said["exp"] - said["iat"]) == ("https://plain.example.com", 9)
    with pytest.raises(Failure) as caught:
        await compose((policy,), respond)(request())
    assert caught.value.status == 401


async def test_a_route_waits_for_an_issuer_and_forgets_what_its_service_refuses(p: Parts) -> None:
    issuer, principal = Elsewhere(), ada()
    route = replace(p, entrance="http", upstream="https://plain.example.com", exchangers=Makers(issuer))
    policy = EXCHANGE_ROUTE.make((layer(spec(), "route", "plain"),), route)
    assert policy is not None
    status = 200

    async def service(asked: Request) -> Response:
        return Response(status, [])

    async def shown() -> bytes:
        asked = request(principal=principal)
        await compose((policy,), service)(asked)
        return bytes(asked.context.credential)

    assert await shown() == await shown() == b"Bearer remote-1"
    status = 401
    assert await shown() == b"Bearer remote-1"
    assert not principal.minted
    status = 403  # which is about something else
    assert await shown() == await shown() == b"Bearer remote-2"


async def test_what_fails_for_another_reason_is_not_tried_again(p: Parts) -> None:
    principal = ada()
    await sent(p, principal)
    for failure in (Failure(503, Reason.NO_HEALTHY_BACKEND, "no"), Failure(502, Reason.UPSTREAM_FAILURE, "no")):
        upstream = Upstream(failure)
        with pytest.raises(Failure):
            await sent(p, principal, upstream=upstream)
        assert len(upstream.shown) == 1


# ---- the caller's own, where that is meant


PASSING = layer(spec(mode="passthrough"), "server", "shop")


@pytest.mark.parametrize("audience", [SHOP, ["https://gw.example.com/mcp", SHOP]])
async def test_a_token_that_was_made_for_the_server_goes_there(p: Parts, audience: Any) -> None:
    principal = ada(claims={"aud": audience})
    assert await sent(p, principal, layer(spec()), PASSING) == b"Bearer the-caller's-own"
    assert not principal.minted


@pytest.mark.parametrize(
    "more",
    [
        {"claims": {"aud": "https://gw.example.com/mcp"}},
        {"claims": {"aud": f"{SHOP}/"}},
        {"claims": {}},
        {"claims": {"aud": None}},
        {"claims": {"aud": SHOP}, "token": b""},
        {"claims": {"aud": SHOP}, "proof": "a-thumbprint"},
    ],
)
async def test_no_other_does(p: Parts, more: Any) -> None:
    upstream = Upstream()
    with pytest.raises(Failure) as caught:
        await sent(p, ada(**more), PASSING, upstream=upstream)
    assert caught.value.status == 403
    assert not upstream.shown


@pytest.mark.parametrize(
    "layers",
    [
        (layer(spec(mode="passthrough")),),
        (layer(spec(mode="passthrough")), layer(spec(), "server", "shop")),
        (PASSING, layer(ToolExchangeSpec(reuse="never"), "tool", "shop/t")),
        (layer(spec(mode="passthrough", audience="tool"), "server", "shop"),),
        (layer(spec(audience="tool")), PASSING),
    ],
)
def test_where_it_cannot_be(p: Parts, layers: Any) -> None:
    with pytest.raises(ConfigError):
        EXCHANGE.make(layers, p)


# ---- configuration


def test_where_nothing_is_exchanged_there_is_no_policy(p: Parts) -> None:
    off = layer(spec(mode="off"), "server", "shop")
    assert EXCHANGE.make((layer(spec()), off), p) is None
    assert EXCHANGE.make((layer(spec()),), replace(p, upstream="")) is None
    assert EXCHANGE.make((layer(spec(mode="off")), layer(spec(), "server", "shop")), p) is not None


def elsewhere(**more: Any) -> Any:
    return layer(spec(issuer="https://a.example", client_id="g", client_secret="s", **more))


@pytest.mark.parametrize(
    ("narrower", "message"),
    [
        (layer(ToolExchangeSpec(mints=("x",)), "tool", "shop/t"), "'x' is not among `exchange.scopes`"),
        (elsewhere(kind="keycloak", mode="delegation"), "do not name the agent"),
        (elsewhere(kind="entra_obo", ttl="9s"), "has no effect with `kind: entra_obo`"),
        (elsewhere(kind="keycloak", audience="tool"), "no tokens for single tools"),
    ],
)
def test_what_cannot_be(p: Parts, narrower: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EXCHANGE.make((layer(spec()), narrower), p)


def test_there_must_be_somebody_to_make_them(p: Parts) -> None:
    with pytest.raises(ConfigError, match="no `issuer`"):
        EXCHANGE.make((layer(spec()),), replace(p, exchangers=Makers(None)))


@pytest.mark.parametrize(
    "values",
    [
        {"client_id": "x"},
        {"issuer": "self", "kind": "keycloak"},
        {"issuer": "https://a.example"},
        {"issuer": "a.example", "client_id": "g", "client_secret": "s"},
        {"mode": "off", "ttl": "5s"},
        {"mode": "passthrough", "ttl": "5s"},
        {"mode": "passthrough", "issuer": "self"},
        {"ttl": "0.5s"},
        {"audience": "two words"},
        {"client_secret": "two words", "issuer": "https://a.example", "client_id": "g"},
    ],
)
def test_what_has_no_effect_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(**values)


# ---- accounts
ADA = "jwt:ada"


def at(p: Parts, accounts: Connected, server: str = "files") -> Parts:
    known = {"files": accounts}
    return replace(p, accounts=known.get, server=server)


async def through(p: Parts, principal: Principal, upstream: Upstream, *layers: Any) -> None:
    made = EXCHANGE.make(layers, p)
    assert made is not None
    await compose((made,), upstream.handle)(tool(principal=principal))


async def test_a_server_with_accounts_gets_their_tokens_whatever_is_said_at_the_top(p: Parts) -> None:
    accounts, upstream = Connected(ADA), Upstream()
    for layers in ((), (layer(spec()),), (layer(spec(mode="off")),)):
        await through(at(p, accounts), ada(), upstream, *layers)
    assert upstream.shown == [b"Bearer token-of-jwt:ada"] * 3
    assert EXCHANGE.make((), at(p, accounts, "other")) is None  # and no other server does


async def test_a_caller_without_an_account_is_told_and_nothing_is_sent(p: Parts) -> None:
    upstream = Upstream()
    with pytest.raises(Failure) as caught:
        await through(at(p, Connected()), ada(), upstream)
    assert (caught.value.status, caught.value.code) == (403, ACCOUNT_NEEDED)
    assert upstream.shown == []


async def test_what_is_remembered_of_an_account_is_for_its_server_alone(p: Parts) -> None:
    """Two servers may stand behind one URL."""
    one, other = Connected(), Connected()
    one.connect(ADA, b"one")
    other.connect(ADA, b"other")
    known, upstream, principal = {"one": one, "other": other}, Upstream(), ada()
    for server in ("one", "other", "one"):
        await through(replace(p, accounts=known.get, server=server), principal, upstream)
    assert upstream.shown == [b"Bearer one", b"Bearer other", b"Bearer one"]


async def test_an_account_that_is_gone_is_not_remembered(p: Parts) -> None:
    accounts, upstream, principal = Connected(ADA), Upstream(), ada()
    q = at(p, accounts)
    await through(q, principal, upstream)
    accounts.disconnect(ADA)
    with pytest.raises(Failure, match="no account"):
        await through(q, principal, upstream)
    accounts.connect(ADA, b"new")
    await through(q, principal, upstream)
    assert upstream.shown == [b"Bearer token-of-jwt:ada", b"Bearer new"]


async def test_a_refused_token_of_an_account_is_told_and_another_is_tried_once(p: Parts) -> None:
    class Renewing(Connected):
        def refused(self, principal: Principal, token: bytes) -> None:
            self.refusals.append(token)
            self.connect(principal.id, b"renewed-%d" % len(self.refusals))

    accounts, principal = Renewing(ADA), ada()
    upstream = Upstream(REFUSED, None)
    await through(at(p, accounts), principal, upstream)
    assert upstream.shown == [b"Bearer token-of-jwt:ada", b"Bearer renewed-1"]
    assert accounts.refusals == [b"token-of-jwt:ada"]
    upstream = Upstream(REFUSED, REFUSED)
    with pytest.raises(Failure, match="no"):
        await through(at(p, accounts), principal, upstream)
    assert len(upstream.shown) == 2
    sent = Failure(502, Reason.UPSTREAM_FAILURE, "403", code="upstream_credentials", sent=True)
    upstream = Upstream(sent)
    with pytest.raises(Failure, match="403"):
        await through(at(p, accounts), principal, upstream)
    assert len(upstream.shown) == 1  # it may have been carried out


async def test_a_server_that_wants_more_scopes_has_its_user_asked(p: Parts) -> None:
    class Lacking(Connected):
        async def lacks(self, principal: Principal, scopes: tuple[str, ...]) -> Failure | None:
            needed = Failure(403, Reason.AUTHORIZATION, "more", code=ACCOUNT_NEEDED)
            return needed if "admin" in scopes else None

    for scopes, status in ((("admin",), 403), (("read",), 502)):
        wants = Failure(502, Reason.UPSTREAM_FAILURE, "no", code="upstream_credentials", sent=True, scopes=scopes)
        upstream = Upstream(wants)
        with pytest.raises(Failure) as caught:
            await through(at(p, Lacking(ADA)), ada(), upstream)
        assert caught.value.status == status
        assert len(upstream.shown) == 1


async def test_an_account_that_ended_asks_for_another_within_the_call(p: Parts) -> None:
    accounts, upstream = Connected(ADA), Upstream(REFUSED)
    with pytest.raises(Failure) as caught:
        await through(at(p, accounts), ada(), upstream)
    assert caught.value.code == ACCOUNT_NEEDED
    assert not caught.value.sent


async def test_what_is_asked_beside_calls_is_renewed_too(p: Parts) -> None:
    accounts, principal = Connected(ADA), ada()
    made = exchange((), at(p, accounts))
    assert made is not None
    assert made.credential(principal) == b"Bearer token-of-jwt:ada"
    with pytest.raises(Failure, match="no account"):
        made.credential(principal, b"Bearer token-of-jwt:ada")
    assert accounts.refusals == [b"token-of-jwt:ada"]


def test_a_call_leaves_no_cycle(p: Parts) -> None:
    made = EXCHANGE.make((layer(spec()),), p)
    assert made is not None
    chain = compose((made,), answer)
    principal = ada()

    async def calls() -> int:
        await chain(tool(principal=principal))
        while gc.collect():  # what earlier tests have left may leave more
            pass
        gc.disable()
        try:
            for _ in range(100):
                await chain(tool(principal=principal))
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(calls()) == 0
