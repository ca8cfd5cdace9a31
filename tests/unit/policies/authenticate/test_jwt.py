"""Tokens: whom they speak for, where they are good, and which are refused for good."""

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from time import time
from typing import Any

import pytest
from joserfc.jwk import ECKey
from tests.unit.policies.authenticate.door import ISSUER, KEY, NEXT, Door, bearer, idp, issuer, jwks, token
from tests.unit.policies.floor import Shelf, parts

from tollhouse.core.call import Actor, Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Reason
from tollhouse.policies.authenticate import AuthenticateSpec, resource_metadata
from tollhouse.policies.base import OwnIssuer
from tollhouse.store.memory import MemoryState
from tollhouse.store.revocation import Revocations
from tollhouse.wire.jose import Keys, Token

pytestmark = pytest.mark.anyio

GATEWAY = "https://gw.example.com"


def at(path: str, **more: Any) -> dict[str, Any]:
    return {"entrance": "mcp", "public_url": GATEWAY, "resource": f"{GATEWAY}{path}"} | more


def audience(**more: Any) -> dict[str, Any]:
    spec = issuer(**more)
    del spec["audiences"]
    return spec


async def test_a_principal_has_all_that_the_token_says() -> None:
    credential = token(
        header={"typ": "at+jwt"},
        client_id="agent-1", scope="mcp files:read", jti="j1", sid="s1", gid="g1", iat=int(time()),
        act={"sub": "agent-1", "iss": ISSUER, "act": {"sub": "outer"}},
    )  # fmt: skip
    ada = await Door({"jwt": [issuer()]}).enter(bearer(credential))
    assert (ada.issuer, ada.subject, ada.client) == (ISSUER, "ada", "agent-1")
    assert ada.scopes == {"mcp", "files:read"}
    assert ada.actors == (Actor(ISSUER, "agent-1"), Actor("", "outer"))
    assert (ada.jti, ada.sid, ada.family, ada.proof) == ("j1", "s1", "g1", "")
    assert ada.token == credential
    assert abs(ada.issued - time()) < 5
    assert credential.decode() not in repr(ada)


@pytest.mark.parametrize(
    "claims",
    [
        {"act": "agent"},
        {"act": {"iss": "x"}},
        {"act": {"sub": ""}},
        {"act": {"sub": 5}},
        {"act": {"sub": "a", "act": []}},
        {"act": {"sub": "a\r\nb"}},
        {"cnf": {"kid": "x"}},
        {"cnf": "x"},
        {"cnf": {"jkt": "short"}},
        {"cnf": {"jkt": "A" * 43, "x5t#S256": "B" * 43}},
        {"sub": "ada\r\nx-admin: 1"},
        {"sub": "ada\x00"},
    ],
)
async def test_a_token_whose_claims_cannot_be_understood_is_refused(claims: dict[str, Any]) -> None:
    failure = await Door({"jwt": [issuer()]}).refused(bearer(token(**claims)))
    assert (failure.status, failure.code) == (401, "invalid_token")
    assert "\r" not in failure.message


async def test_a_chain_of_actors_has_an_end() -> None:
    chain: dict[str, Any] = {"sub": "a"}
    for _ in range(9):
        chain = {"sub": "a", "act": chain}
    door = Door({"jwt": [issuer()]})
    assert len((await door.enter(bearer(token(act=chain)))).actors) == 10
    assert (await door.refused(bearer(token(act={"sub": "a", "act": chain})))).status == 401


async def test_the_endpoint_is_the_audience_and_no_other_one() -> None:
    spec, shelf = {"jwt": [audience()]}, Shelf()
    one = Door(spec, parts(shared=shelf, **at("/mcp")))
    other = Door(spec, parts(shared=shelf, **at("/mcp/shop")))
    credential = token(aud=f"{GATEWAY}/mcp")
    ada = await one.enter(bearer(credential))
    for _ in range(2):
        assert (await other.refused(bearer(credential))).message == "the token is meant for another audience"
        assert await one.enter(bearer(credential)) is ada
    for wrong in (f"{GATEWAY}/mcp/", f"{GATEWAY}/MCP", f"{GATEWAY}/mcp#tool", GATEWAY, "", ["x"], None):
        assert (await one.refused(bearer(token(aud=wrong)))).status == 401
    both = token(aud=[f"{GATEWAY}/mcp", f"{GATEWAY}/mcp/shop"])
    assert await one.enter(bearer(both)) is await other.enter(bearer(both))  # checked once
    llm = Door(spec, parts(public_url=GATEWAY, entrance="llm"))
    assert (await llm.enter(bearer(token(aud=GATEWAY)))).user == "ada"
    assert (await llm.refused(bearer(credential))).status == 401


def test_without_any_uri_an_audience_must_be_named() -> None:
    with pytest.raises(ConfigError, match="`audiences` is needed"):
        Door({"jwt": [audience()]})


def own_issuer(keys: Callable[[], Keys], later: Callable[[], Keys] | None = None) -> OwnIssuer:
    """later: the keys that the state has."""

    async def find(token: Token) -> Keys:
        return (later or keys)()

    return OwnIssuer("https://auth.example.com", keys, ("ES256",), find)


async def test_a_key_of_our_own_that_another_node_made_is_looked_for() -> None:
    known = [Keys.parse(json.dumps(jwks(KEY)).encode())]

    def look() -> Keys:
        known[0] = Keys.parse(json.dumps(jwks(KEY, NEXT)).encode())
        return known[0]

    own = own_issuer(lambda: known[0], look)
    door = Door({"mode": "strict"}, parts(issuer=own, **at("/mcp")))
    credential = token(NEXT, {"typ": "at+jwt"}, iss=own.url, aud=f"{GATEWAY}/mcp")
    ada = await door.enter(bearer(credential))
    assert (ada.user, await door.enter(bearer(credential)) is ada) == ("ada", True)


async def test_our_own_issuer_needs_no_entry() -> None:
    keys = [Keys.parse(json.dumps(jwks(KEY)).encode())]
    own = own_issuer(lambda: keys[0])
    p = parts(issuer=own, **at("/mcp"))
    door = Door({"mode": "strict"}, p)
    credential = token(header={"typ": "at+jwt"}, iss=own.url, aud=f"{GATEWAY}/mcp")
    ada = await door.enter(bearer(credential))
    assert ada.id == "jwt:https://auth.example.com|ada"
    assert await door.enter(bearer(credential)) is ada
    # An ID token is none, nor what another endpoint, another issuer or another algorithm made.
    for bad in (
        token(header={"typ": "JWT"}, iss=own.url, aud=f"{GATEWAY}/mcp"),
        token(header={"typ": "at+jwt"}, iss=own.url, aud=f"{GATEWAY}/mcp/shop"),
        token(header={"typ": "at+jwt"}, aud=f"{GATEWAY}/mcp"),
    ):
        assert (await door.refused(bearer(bad))).status == 401
    spec = AuthenticateSpec.model_validate({"jwt": [issuer()]})
    handler = resource_metadata(spec, p)
    assert handler is not None
    from tests.unit.policies.floor import request

    document = json.loads((await handler(request(b"GET", b"/"))).body)
    assert document["authorization_servers"] == [own.url, ISSUER]
    keys[0] = Keys.parse(json.dumps(jwks(NEXT)).encode())  # the key was dropped
    assert (
        await door.refused(bearer(credential))
    ).message == "the token is signed with a key that its issuer does not publish"
    with pytest.raises(ConfigError, match="gateway's own"):
        Door({"jwt": [issuer(issuer=own.url)]}, parts(issuer=own, **at("/mcp")))


async def test_our_own_clocks_differ_by_five_seconds_at_most() -> None:
    own = own_issuer(lambda: KEYS)
    door = Door({"mode": "strict"}, parts(issuer=own, **at("/mcp")))
    made = {"header": {"typ": "at+jwt"}, "iss": own.url, "aud": f"{GATEWAY}/mcp"}
    assert (await door.enter(bearer(token(**made, exp=int(time()) - 3)))).user == "ada"
    assert (await door.refused(bearer(token(**made, exp=int(time()) - 7)))).message == "the token has expired"
    assert (await door.refused(bearer(token(**made, iat=int(time()) + 10)))).message == "the token is not valid yet"


KEYS = Keys.parse(json.dumps(jwks(KEY)).encode())


async def test_what_is_revoked_is_refused_at_once() -> None:
    clock = Clock()
    revocations = Revocations(MemoryState(clock), clock)
    await revocations.load()
    door = Door({"jwt": [issuer()]}, parts(revocations=revocations))
    credential, other = token(jti="one", iat=int(time())), token(jti="two", iat=int(time()))
    for one in (credential, other):
        assert (await door.enter(bearer(one))).user == "ada"
    await revocations.revoke("jti", "one", time() + 600)
    assert (await door.refused(bearer(credential))).message == "the token has been revoked"
    assert (await door.enter(bearer(other))).jti == "two"
    await revocations.revoke("sub", "ada", time() + 600, issuer=ISSUER)
    assert (await door.refused(bearer(other))).message == "the token has been revoked"


async def test_a_withdrawn_key_is_forgotten_with_all_that_it_signed() -> None:
    async with idp() as (it, url):
        it.document = jwks(KEY, NEXT)
        door = Door({"jwt": [issuer(jwks=url)]})
        old, new = token(), token(NEXT)
        for one in (old, new):
            assert (await door.enter(bearer(one))).user == "ada"
        it.document = jwks(NEXT)
        assert (
            await door.refused(bearer(token(ECKey.generate_key("P-256", {"kid": "x"}))))
        ).status == 401  # looked again
        assert (await door.enter(bearer(new))).user == "ada"
        assert (await door.refused(bearer(old))).status == 401
        await door.close()


async def test_a_bad_signature_is_checked_once_in_ten_seconds() -> None:
    good = token()
    bad = good[:-8] + (b"AAAAAAAA" if good[-8:] != b"AAAAAAAA" else b"BBBBBBBB")
    shelf = Shelf()
    door = Door({"jwt": [issuer()]}, parts(shared=shelf))
    for _ in range(3):
        assert (await door.refused(bearer(bad))).message == "the token's signature is not valid"
    [refused] = [part for key, part in shelf.parts.items() if key[0] == "refused tokens"]  # type: ignore[index]
    assert len(refused) == 1
    assert refused.find(sha256(bad).digest(), object()) is None  # with other keys it is another question


@pytest.mark.parametrize(
    "kind, name, claims, expected",
    [
        (
            "entra", "https://login.microsoftonline.com/11111111-2222-3333-4444-555555555555/v2.0",
            {"scp": "read write", "azp": "app", "tid": "t", "preferred_username": "ada@x", "groups": ["g"]},
            {"user": "ada@x", "org": "t", "client": "app", "scopes": {"read", "write"}, "groups": ("g",)},
        ),
        ("okta", ISSUER, {"scp": ["read"], "cid": "c1"}, {"scopes": {"read"}, "client": "c1", "agent": "c1"}),
        ("auth0", ISSUER, {"scope": "read", "azp": "a1", "org_id": "o"}, {"org": "o", "client": "a1"}),
        (
            "keycloak", ISSUER,
            {"scope": "read", "azp": "k", "preferred_username": "ada", "realm_access": {"roles": ["dev"]}},
            {"user": "ada", "groups": ("dev",), "client": "k", "subject": "ada"},
        ),
    ],
)  # fmt: skip
async def test_identity_providers_have_ways_of_their_own(
    kind: str, name: str, claims: dict[str, Any], expected: dict[str, Any]
) -> None:
    door = Door({"jwt": [issuer(kind=kind, issuer=name, audiences=["A" * 8, "tollhouse"])]})
    found = await door.enter(bearer(token(iss=name, **claims)))
    assert {name: getattr(found, name) for name in expected} == expected


async def test_entra_has_two_issuers_and_two_ways_to_write_an_application() -> None:
    tenant, app = "11111111-2222-3333-4444-555555555555", "99999999-8888-7777-6666-555555555555"
    v2, v1 = f"https://login.microsoftonline.com/{tenant}/v2.0", f"https://sts.windows.net/{tenant}/"
    door = Door({"jwt": [issuer(kind="entra", issuer=v2, audiences=[f"api://{app}"])]})
    two = await door.enter(bearer(token(iss=v2, aud=app)))
    one = await door.enter(bearer(token(iss=v1, aud=f"api://{app}")))
    assert one.id == two.id == f"jwt:{v2}|ada"
    other = v1.replace("1111-", "2222-", 1)
    assert (await door.refused(bearer(token(iss=other, aud=app)))).status == 401


async def test_what_is_written_goes_before_what_is_usual() -> None:
    door = Door({"jwt": [issuer(kind="okta", claims={"user": "email"})]})
    found = await door.enter(bearer(token(email="a@b", cid="c1")))
    assert (found.user, found.client) == ("a@b", "c1")


async def test_an_issuer_is_found_by_its_metadata() -> None:
    async with idp() as (it, _):
        for where, path in (
            ("/.well-known/oauth-authorization-server", ""),
            ("/.well-known/openid-configuration", ""),
            ("/.well-known/oauth-authorization-server/tenant", "/tenant"),
            ("/tenant/.well-known/openid-configuration", "/tenant"),
        ):
            name = it.url + path
            it.requests.clear()
            it.documents = {where: {"issuer": name, "jwks_uri": f"{it.url}/keys"}, "/keys": jwks(KEY)}
            door = Door({"jwt": [issuer(issuer=name, jwks=None, discovery=True)]})
            assert (await door.enter(bearer(token(iss=name)))).user == "ada"
            assert it.requests[-1][0] == "/keys"
            await door.close()


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://evil.example.com", "jwks_uri": "{url}/keys"},
        {"issuer": "{url}/", "jwks_uri": "{url}/keys"},
        {"issuer": "{url}"},
        {"issuer": "{url}", "jwks_uri": "file:///etc/passwd"},
        {"issuer": "{url}", "jwks_uri": "http://169.254.169.254/keys"},
        {"issuer": "{url}", "jwks_uri": "http://127.0.0.1:1/keys"},
        b"[]",
        b"{",
    ],
)
async def test_metadata_of_somebody_else_is_not_believed(document: Any) -> None:
    async with idp() as (it, _):
        if isinstance(document, dict):
            document = {name: value.replace("{url}", it.url) for name, value in document.items()}
        it.documents = {"/.well-known/oauth-authorization-server": document, "/keys": jwks(KEY)}
        door = Door({"jwt": [issuer(issuer=it.url, jwks=None, discovery=True)]})
        failure = await door.refused(bearer(token(iss=it.url)))
        assert (failure.status, failure.reason) == (503, Reason.JWT_AUTH)
        assert not any(target == "/keys" for target, _, _ in it.requests)
        await door.close()


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"Zm9yZ2Vk") -> bytes:
    parts = (urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims))
    return b".".join((*parts, signature))


async def test_a_token_names_one_issuer() -> None:
    """Two claims `iss` in one token: who is asked for keys is who is checked (attack 27)."""
    body = b'{"iss":"https://evil.example.com","iss":"%b","aud":"tollhouse","sub":"ada","exp":%d}' % (
        ISSUER.encode(), int(time()) + 600,
    )  # fmt: skip
    header = urlsafe_b64encode(json.dumps({"alg": "ES256", "kid": "one"}).encode()).rstrip(b"=")
    credential = b".".join((header, urlsafe_b64encode(body).rstrip(b"="), b"Zm9yZ2Vk"))
    other = issuer(issuer="https://evil.example.com", jwks=jwks(NEXT))
    failure = await Door({"jwt": [issuer(), other]}).refused(bearer(credential))
    assert failure.status == 401


async def test_principals_of_two_issuers_are_two() -> None:
    other = issuer(issuer="https://other.example.com", jwks=jwks(NEXT))
    door = Door({"jwt": [issuer(), other]})
    one = await door.enter(bearer(token()))
    two = await door.enter(bearer(token(NEXT, iss="https://other.example.com")))
    assert isinstance(one, Principal)
    assert one.id != two.id
