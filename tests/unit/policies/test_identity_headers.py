"""The header that says who calls: what it says, that nobody else writes it, and that it is no token."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from time import time
from typing import Any

import pytest
from pydantic import ValidationError
from tests.unit.policies.floor import answer, layer, parts, request, respond, tool, who

from tollhouse.core.call import Actor, Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure
from tollhouse.core.handler import compose
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.mint import Mint
from tollhouse.issuer.spec import KeysSpec
from tollhouse.policies.base import Parts
from tollhouse.policies.identity_headers import IDENTITY, IDENTITY_ROUTE, Identity, IdentitySpec
from tollhouse.store.memory import MemoryState
from tollhouse.wire.jose import Keys, Token, check_claims, parse, verify

pytestmark = pytest.mark.anyio

ISSUER = "https://auth.example.com"
PLAIN = "https://plain.example.com"


class Makers:
    def __init__(self, mint: Mint | None) -> None:
        self.generation = object()
        self._mint = mint
        self.identity = None if mint is None else mint.identity

    def of(self, who: Any) -> Mint | None:
        return self._mint


@pytest.fixture
def keys() -> Iterator[SigningKeys]:
    state = MemoryState(Clock())
    made = SigningKeys(state.values, KeysSpec())
    asyncio.run(made.load())
    yield made
    asyncio.run(state.close())


@pytest.fixture
def p(keys: SigningKeys) -> Parts:
    return parts(upstream=PLAIN, exchangers=Makers(Mint(ISSUER, keys)))


def ada(**more: Any) -> Principal:
    values: dict[str, Any] = {
        "issuer": ISSUER, "subject": "ada", "client": "agent-1", "email": "ada@example.com", "org": "acme",
        "groups": ("dev", "\r\nx: y"),
        "scopes": frozenset(("b", "a")), "expires": time() + 86_400, "claims": {"exp": time() + 86_400},
    }  # fmt: skip
    return who("jwt", "ada", **(values | more))


async def told(
    p: Parts, principal: Principal | None, *fields: tuple[bytes, bytes], **spec: Any
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The header line, and what is left of what the caller has sent."""
    policy = IDENTITY_ROUTE.make((layer(IdentitySpec.model_validate(spec)),), p)
    assert policy is not None
    asked = request(b"GET", b"/x", *fields, principal=principal)
    await compose((policy,), respond)(asked)
    return asked.context.identity, list(asked.headers)


def read(line: bytes, keys: SigningKeys) -> Token:
    name, _, value = line.partition(b": ")
    token = parse(value.removesuffix(b"\r\n"))
    assert name == b"x-tollhouse-identity"
    assert line.count(b"\r") == 1
    assert isinstance(token, Token)
    assert verify(token, Keys.parse(keys.public())) is None
    return token


async def test_what_it_says(p: Parts, keys: SigningKeys) -> None:
    token = read((await told(p, ada()))[0], keys)
    said = token.claims
    assert token.typ == "identity+jwt"
    assert said["exp"] - said["iat"] == 60
    assert {name: said[name] for name in said if name not in ("iat", "exp", "jti")} == {
        "iss": ISSUER, "sub": "ada", "aud": PLAIN, "email": "ada@example.com", "org": "acme", "client_id": "agent-1",
        "groups": ["dev", "\r\nx: y"], "scope": "a b", "act": {"iss": ISSUER, "sub": "agent-1"},
    }  # fmt: skip


async def test_it_is_no_access_token(p: Parts, keys: SigningKeys) -> None:
    token = read((await told(p, ada()))[0], keys)
    assert check_claims(token, issuer=ISSUER, audiences=[PLAIN], now=time(), types=["at+jwt", "JWT"]) is not None


async def test_another_issuers_user_is_nobody_of_ours(p: Parts, keys: SigningKeys) -> None:
    said = read((await told(p, ada(issuer="https://idp.example.net")))[0], keys).claims
    assert said["sub"] != "ada"
    assert said["sub_id"]["iss"] == "https://idp.example.net"


async def test_who_acts_is_named(p: Parts, keys: SigningKeys) -> None:
    said = read((await told(p, ada(actors=(Actor(ISSUER, "other"),))))[0], keys).claims
    assert (said["act"]["sub"], said["act"]["act"]["sub"]) == ("agent-1", "other")


async def test_it_ends_with_the_callers_token(p: Parts, keys: SigningKeys) -> None:
    ends = time() + 10
    assert read((await told(p, ada(claims={"exp": ends})))[0], keys).claims["exp"] <= ends
    with pytest.raises(Failure) as caught:
        await told(p, ada(claims={"exp": time() + 0.5}))
    assert caught.value.status == 401


@pytest.mark.parametrize("principal", [None, Principal("anonymous", source="anonymous"), ada()])
async def test_nobody_else_writes_it(p: Parts, principal: Principal | None) -> None:
    forged = [
        (b"x-tollhouse-identity", b"a"), (b"x_tollhouse_identity", b"b"), (b"x-tollhouse_identity", b"c"),
        (b"x-tollhouse-identity", b"d"), (b"x.tollhouse.identity", b"e"), (b"x!tollhouse~identity", b"f"),
    ]  # fmt: skip
    line, left = await told(p, principal, *forged, (b"x-other", b"d"))
    assert left == [(b"x-other", b"d")]
    assert bool(line) == (principal is not None and principal.source != "anonymous")


async def test_it_is_signed_once_in_half_its_life(p: Parts, keys: SigningKeys) -> None:
    principal = ada()
    first = (await told(p, principal))[0]
    assert (await told(p, principal))[0] == first
    assert (await told(p, principal, ttl="30s"))[0] != first
    again = replace(p, exchangers=Makers(Mint(ISSUER, keys)))
    assert (await told(again, principal))[0] != first


async def test_not_longer_than_half_its_life_nor_than_the_keys(p: Parts, keys: SigningKeys) -> None:
    now = time()
    made = Identity(IdentitySpec(ttl=10.0), layer(IdentitySpec()), p, lambda: now)
    principal = ada()

    async def line() -> bytes:
        asked = request(b"GET", b"/x", principal=principal)
        await compose((made.handle_request,), respond)(asked)
        return bytes(asked.context.identity)

    first = await line()
    now += 4.0
    assert await line() == first
    now += 1.5
    second = await line()
    assert second != first
    await keys.rotate()
    assert await line() != second


class Revoked:
    """What this worker knows to be revoked."""

    epoch = 0

    def __init__(self) -> None:
        self.asked: list[Principal] = []
        self.all = False

    def revoked(self, principal: Principal) -> bool:
        self.asked.append(principal)
        return self.all


async def test_of_who_was_revoked_while_his_call_waited_nothing_is_said(p: Parts) -> None:
    view, principal = Revoked(), ada()
    p = replace(p, revocations=view)
    for _ in range(3):
        await told(p, principal)
    assert len(view.asked) == 1  # and again only when anything was revoked
    view.epoch = 1
    await told(p, principal)
    await told(p, principal)
    assert len(view.asked) == 2
    view.epoch, view.all = 2, True
    with pytest.raises(Failure) as caught:
        await told(p, principal)
    assert (caught.value.status, caught.value.code) == (401, "invalid_token")
    with pytest.raises(Failure):
        await told(p, ada())


async def test_tools_of_http_apis(p: Parts, keys: SigningKeys) -> None:
    server = layer(IdentitySpec(audience="urn:api"), "server", "api")
    policy = IDENTITY.make((layer(IdentitySpec()), server), replace(p, entrance="mcp"))
    assert policy is not None
    call = tool(principal=ada())
    await compose((policy,), answer)(call)
    assert read(call.identity, keys).claims["aud"] == "urn:api"


async def test_of_nobody_it_is_empty_where_arguments_may_become_fields(p: Parts) -> None:
    policy = IDENTITY.make((layer(IdentitySpec()),), replace(p, entrance="mcp"))
    assert policy is not None
    call = tool(principal=Principal("anonymous", source="anonymous"))
    await compose((policy,), answer)(call)
    assert call.identity == b"x-tollhouse-identity: \r\n"


def test_where_there_is_none(p: Parts) -> None:
    off = layer(IdentitySpec(mode="off"), "route", "a")
    assert IDENTITY_ROUTE.make((layer(IdentitySpec()), off), p) is None
    assert IDENTITY_ROUTE.make((layer(IdentitySpec()),), replace(p, upstream="")) is None
    with pytest.raises(ConfigError, match="no `issuer`"):
        IDENTITY_ROUTE.make((layer(IdentitySpec()),), replace(p, exchangers=Makers(None)))


@pytest.mark.parametrize(
    "header", ["authorization", "host", "x-forwarded-for", "x-api-key", "x-request-id", "x-é", "x-a\r\nx-b", "x-", ""]
)
def test_names_that_it_cannot_have(header: str) -> None:
    with pytest.raises(ValidationError):
        IdentitySpec(header=header)
