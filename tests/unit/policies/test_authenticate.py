"""Who is calling: keys, tokens from real issuers' documents, challenges, and what is remembered."""

import asyncio
import gc
import json
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from time import time
from typing import Any

import pytest
from joserfc import jwt as jose
from joserfc.jwk import ECKey, RSAKey
from tests.unit.policies.floor import Shelf, layer, parts, request, respond

from tollhouse.core.call import Principal
from tollhouse.core.errors import ConfigError, Failure, Reason
from tollhouse.core.handler import compose
from tollhouse.core.http import Headers, Known, Request
from tollhouse.policies import jwt as jwt_module
from tollhouse.policies.authenticate import (
    AUTHENTICATE,
    AuthenticateSpec,
    metadata_path,
    resource_metadata,
)
from tollhouse.policies.base import Parts
from tollhouse.policies.jwks import KeySource
from tollhouse.policies.jwt import Issuers, JwtSpec
from tollhouse.wire.jose import Keys, Token, parse

pytestmark = pytest.mark.anyio

ISSUER = "https://idp.example.com"
KEY = ECKey.generate_key("P-256", {"kid": "one"})
NEXT = ECKey.generate_key("P-256", {"kid": "two"})


def jwks(*keys: Any) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}


def issuer(**more: Any) -> dict[str, Any]:
    return {"issuer": ISSUER, "audiences": ["tollhouse"], "jwks": jwks(KEY)} | more


def token(key: Any = KEY, header: dict[str, Any] | None = None, **claims: Any) -> bytes:
    values = {"iss": ISSUER, "aud": "tollhouse", "sub": "ada", "exp": int(time()) + 600} | claims
    values = {name: value for name, value in values.items() if value is not None}
    fields = {"alg": "ES256", "kid": key.kid} | (header or {})
    return jose.encode(fields, values, key, algorithms=[fields["alg"]]).encode()


class Door:
    """An authentication policy with a handler behind it."""

    def __init__(self, spec: dict[str, Any] | None, p: Parts | None = None, **more: Any) -> None:
        self.parts = p or parts(**more)
        layers = () if spec is None else (layer(AuthenticateSpec.model_validate(spec)),)
        policy = AUTHENTICATE.make(layers, self.parts)
        assert policy is not None
        self.handler = compose((policy,), respond)

    async def enter(self, *headers: tuple[bytes, bytes], target: bytes = b"/mcp") -> Principal:
        asked = request(b"POST", target, *headers)
        await self.handler(asked)
        principal = asked.context.principal
        assert principal is not None
        return principal

    async def refused(self, *headers: tuple[bytes, bytes], target: bytes = b"/mcp") -> Failure:
        with pytest.raises(Failure) as caught:
            await self.enter(*headers, target=target)
        return caught.value


def bearer(credential: bytes) -> tuple[bytes, bytes]:
    return (b"authorization", b"Bearer " + credential)


CI = {
    "name": "ci", "key": "sk-ci-0123456789", "user": "ci-bot", "org": "platform", "agent": "runner",
    "groups": ["bots"], "email": "ci@example.com", "metadata": {"tier": "gold"},
}  # fmt: skip


# ---- keys


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer sk-ci-0123456789"),
        (b"authorization", b"bearer   sk-ci-0123456789"),
        (b"x-api-key", b"sk-ci-0123456789"),
        (b"api-key", b"sk-ci-0123456789"),
    ],
)
@pytest.mark.parametrize("hashed", [False, True])
async def test_a_key_is_taken_from_where_sdks_put_it(header: tuple[bytes, bytes], hashed: bool) -> None:
    key = dict(CI)
    if hashed:
        key["key_hash"] = sha256(str(key.pop("key")).encode()).hexdigest()
    principal = await Door({"keys": [key]}).enter((b"host", b"x"), header)
    assert (principal.id, principal.source, principal.key) == ("key:ci", "key", "ci")
    assert (principal.user, principal.org, principal.agent) == ("ci-bot", "platform", "runner")
    assert (principal.email, principal.groups, principal.claims) == ("ci@example.com", ("bots",), {"tier": "gold"})


async def test_the_same_key_is_the_same_principal() -> None:
    door = Door({"keys": [CI]})
    assert await door.enter(bearer(b"sk-ci-0123456789")) is await door.enter((b"x-api-key", b"sk-ci-0123456789"))


async def test_authorization_comes_before_the_others() -> None:
    door = Door({"keys": [CI, {"name": "two", "key": "sk-two-0123456789"}]})
    both = ((b"x-api-key", b"sk-ci-0123456789"), bearer(b"sk-two-0123456789"))
    assert (await door.enter(*both)).key == "two"
    assert (await door.refused((b"x-api-key", b"sk-ci-0123456789"), bearer(b"wrong"))).status == 401
    keys = ((b"api-key", b"sk-two-0123456789"), (b"x-api-key", b"sk-ci-0123456789"))
    assert (await door.enter(*keys)).key == "ci"


async def test_a_head_that_comes_again_is_its_reader_s_alone() -> None:
    known = Known()

    async def enter(door: Door, *headers: tuple[bytes, bytes]) -> str:
        asked = request(b"POST", b"/x", *headers)
        asked.known = known
        try:
            await door.handler(asked)
        except Failure as failure:
            return str(failure.status)
        assert asked.context.principal is not None
        return asked.context.principal.id

    first = Door({"keys": [CI]})
    assert await enter(first, bearer(b"sk-ci-0123456789")) == "key:ci"
    assert known.digest == sha256(b"sk-ci-0123456789").digest()
    assert await enter(first) == "key:ci"  # nothing is read again
    assert await enter(Door({"keys": [CI]})) == "401"  # but by another configuration
    other = Door({"keys": [{"name": "two", "key": "sk-two-0123456789"}]})
    for _ in range(2):
        assert await enter(other, bearer(b"sk-ci-0123456789")) == "401"
    assert await enter(first, bearer(b"sk-ci-0123456789")) == "key:ci"


@pytest.mark.parametrize("mode", ["strict", "optional"])
@pytest.mark.parametrize(
    "header",
    [
        bearer(b"sk-ci-0123456780"),
        bearer(b""),
        bearer(b"a.b.c"),
        (b"x-api-key", b""),
        (b"authorization", b"Basic eDp5"),
    ],
)
async def test_a_bad_credential_is_refused_in_both_modes(mode: str, header: tuple[bytes, bytes]) -> None:
    failure = await Door({"mode": mode, "keys": [CI]}).refused(header)
    assert (failure.status, failure.reason) == (401, Reason.API_KEY_AUTH)
    assert dict(failure.headers)[b"www-authenticate"].startswith(b'Bearer error="')
    assert "sk-ci" not in failure.message + failure.detail


async def test_no_credential() -> None:
    failure = await Door({"keys": [CI]}).refused()
    assert (failure.status, failure.reason, failure.code) == (401, Reason.API_KEY_AUTH, "credential_required")
    assert dict(failure.headers)[b"www-authenticate"] == b"Bearer"
    anonymous = await Door({"mode": "optional", "keys": [CI]}).enter()
    assert (anonymous.id, anonymous.source, anonymous.user) == ("anonymous", "anonymous", "")


@pytest.mark.parametrize("spec", [None, {"mode": "optional"}])
async def test_without_configuration_everybody_is_anonymous(spec: dict[str, Any] | None) -> None:
    assert (await Door(spec).enter(bearer(b"whatever"))).source == "anonymous"


@pytest.mark.parametrize(
    "spec, said",
    [
        ({}, "nobody could call"),
        ({"keys": [{"name": "x"}]}, "either `key` or `key_hash`"),
        ({"keys": [CI | {"key_hash": "0" * 64}]}, "either `key` or `key_hash`"),
        ({"keys": [{"name": "x", "key": "short"}]}, "at least 8"),
        ({"keys": [{"name": "x", "key": "with space 123"}]}, "visible ASCII"),
        ({"keys": [{"name": "x", "key_hash": "AB"}]}, "pattern"),
        ({"jwt": [issuer(audiences=[])]}, "at least 1"),
        ({"jwt": [issuer(algorithms=["HS256"])]}, "ES256"),
        ({"jwt": [issuer(algorithms=["none"])]}, "ES256"),
        ({"jwt": [issuer(jwks={"keys": []})]}, "no public key"),
        ({"jwt": [issuer(jwks="https://ada:sk-ci-pw@idp.example.com/keys")]}, "no user and password"),
    ],
)
def test_bad_configuration(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        AuthenticateSpec.model_validate(spec)
    assert "sk-ci" not in str(caught.value)


@pytest.mark.parametrize(
    "spec, said",
    [
        ({"keys": [CI, CI | {"key": "sk-other-012345"}]}, "two keys are called `ci`"),
        ({"keys": [CI, CI | {"name": "two"}]}, "`ci` and `two` are the same key"),
        ({"jwt": [issuer(), issuer(audiences=["x"])]}, "named twice"),
        ({"jwt": [issuer(jwks="/nowhere/jwks.json")]}, "cannot use the keys in '/nowhere/jwks.json'"),
    ],
)
def test_what_shows_only_when_building(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Door(spec)
    assert "top: authenticate" in str(caught.value)
    assert "sk-ci" not in str(caught.value)


# ---- tokens


async def test_a_token_says_who_it_is() -> None:
    claims = {
        "org": "acme", "client_id": "agent-1", "email": "ada@example.com", "groups": ["dev", 5, "ops"],
        "extra": {"a": 1},
    }  # fmt: skip
    credential = token(**claims)
    door = Door({"jwt": [issuer()]})
    principal = await door.enter(bearer(credential))
    assert (principal.id, principal.source) == (f"jwt:{ISSUER}|ada", "jwt")
    assert (principal.user, principal.org, principal.agent) == ("ada", "acme", "agent-1")
    assert (principal.email, principal.groups) == ("ada@example.com", ("dev", "ops"))
    assert principal.claims["extra"] == {"a": 1}
    assert time() + 600 < principal.expires < time() + 720
    assert await door.enter(bearer(credential)) is principal  # remembered
    assert await door.enter((b"x-api-key", credential)) is principal


@pytest.mark.parametrize(
    "mapping, claims, field, value",
    [
        ({"user": "email"}, {"email": "a@b"}, "user", "a@b"),
        ({"user": ["upn", "email"]}, {"email": "a@b"}, "user", "a@b"),
        ({"org": "https://x.example/org"}, {"https://x.example/org": "o"}, "org", "o"),
        ({"org": "tenant.name"}, {"tenant": {"name": "o"}}, "org", "o"),
        ({"org": "tenant.name"}, {"tenant": "o"}, "org", ""),
        ({"org": "n"}, {"n": 7}, "org", "7"),
        ({"org": "n"}, {"n": True}, "org", ""),
        ({"org": "n"}, {"n": "x" * 1000}, "org", "x" * 256),
        ({}, {"act": {"sub": "bot"}, "client_id": "app"}, "agent", "bot"),
        ({"groups": "scp"}, {"scp": "read"}, "groups", ("read",)),
        ({"groups": "none"}, {}, "groups", ()),
    ],
)
async def test_claims_are_mapped(mapping: dict[str, Any], claims: dict[str, Any], field: str, value: Any) -> None:
    principal = await Door({"jwt": [issuer(claims=mapping)]}).enter(bearer(token(**claims)))
    assert getattr(principal, field) == value


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda: token(exp=int(time()) - 100), "has expired"),
        (lambda: token(aud="other"), "another audience"),
        (lambda: token(iss="https://evil.example.com"), "issuer is not accepted"),
        (lambda: token(iss=None), "issuer is not accepted"),
        (lambda: token(nbf=int(time()) + 1000), "not valid yet"),
        (lambda: token(exp=None), "`exp`"),
        (lambda: token(sub=None), "whom it speaks for"),
        (lambda: token(sub=5), "whom it speaks for"),
        (lambda: token(sub="a" * 257), "at most 256"),  # cut, two of them could be one principal
        (lambda: token(sub=None, user="a" * 257), "at most 256"),
        (lambda: token(sub=None, user=10**300), "at most 256"),
        (lambda: token(NEXT), "does not publish"),
        (lambda: token(ECKey.generate_key("P-256", {"kid": "one"})), "signature is not valid"),
        (lambda: token(header={"typ": "dpop+jwt"}), "another kind of token"),
        (lambda: token(RSAKey.generate_key(2048, {"kid": "r"}), {"alg": "RS512"}), "algorithm that is not accepted"),
        (lambda: b"not-a-token", "not a signed JSON Web Token"),
        (lambda: b"a" * 20_000, "larger than 16 KiB"),
    ],
)
async def test_bad_tokens(change: Callable[[], bytes], said: str) -> None:
    failure = await Door({"jwt": [issuer()]}).refused(bearer(change()))
    assert (failure.status, failure.reason, failure.code) == (401, Reason.JWT_AUTH, "invalid_token")
    assert said in failure.message
    challenge = dict(failure.headers)[b"www-authenticate"].decode()
    assert challenge.startswith('Bearer error="invalid_token", error_description="')
    assert challenge.count('"') % 2 == 0


async def test_keys_and_tokens_side_by_side() -> None:
    door = Door({"keys": [CI], "jwt": [issuer()]})
    assert (await door.enter(bearer(b"sk-ci-0123456789"))).source == "key"
    assert (await door.enter(bearer(token()))).source == "jwt"
    assert (await door.refused(bearer(b"unknown"))).reason == Reason.API_KEY_AUTH
    assert (await door.refused(bearer(b"a.b.c"))).reason == Reason.JWT_AUTH


async def test_issuers_do_not_stand_in_for_each_other() -> None:
    other = issuer(issuer="https://other.example.com", jwks=jwks(NEXT))
    door = Door({"jwt": [issuer(), other]})
    assert (await door.enter(bearer(token()))).source == "jwt"
    assert (await door.enter(bearer(token(NEXT, iss="https://other.example.com")))).source == "jwt"
    assert (await door.refused(bearer(token(NEXT)))).status == 401
    assert (await door.refused(bearer(token(iss="https://other.example.com")))).status == 401


async def test_a_remembered_token_expires() -> None:
    now = time()
    p = parts()
    issuers = Issuers([JwtSpec.model_validate(issuer())], p, now=lambda: now)
    credential = token(exp=int(now) + 100)
    digest = sha256(credential).digest()
    principal = await issuers.verify(credential, digest)
    assert isinstance(principal, Principal)
    assert issuers.remembered(digest) is principal
    now += 159  # within the leeway
    assert issuers.remembered(digest) is principal
    now += 2
    assert issuers.remembered(digest) is None


async def test_a_long_token_is_checked_again_after_five_minutes() -> None:
    now = time()
    issuers = Issuers([JwtSpec.model_validate(issuer())], parts(), now=lambda: now)
    credential = token(exp=int(now) + 100_000)
    digest = sha256(credential).digest()
    first = await issuers.verify(credential, digest)
    now += 301
    assert issuers.remembered(digest) is None
    second = await issuers.verify(credential, digest)
    assert second is not first
    assert issuers.remembered(digest) is second


async def test_what_is_remembered_is_bounded_and_refusals_are_not_remembered() -> None:
    shelf = Shelf()
    issuers = Issuers([JwtSpec.model_validate(issuer())], parts(shared=shelf))
    [seen] = shelf.parts.values()
    for n in range(25):
        assert not isinstance(await issuers.verify(token(aud="other"), b"%d" % n), Principal)
    assert seen == {}
    principal = await issuers.verify(token(), b"real")
    assert isinstance(principal, Principal)
    for n in range(3 * jwt_module._REMEMBERED):
        issuers._remember(b"%d" % n, time() + 100, principal)
    assert len(seen) <= jwt_module._REMEMBERED
    assert issuers.remembered(b"%d" % (3 * jwt_module._REMEMBERED - 1)) is principal


async def test_verified_tokens_outlive_a_configuration_that_says_the_same() -> None:
    p = parts()
    credential = token()
    principal = await Door({"jwt": [issuer()]}, p).enter(bearer(credential))
    assert await Door({"jwt": [issuer()], "mode": "optional"}, p).enter(bearer(credential)) is principal
    assert (await Door({"jwt": [issuer(audiences=["other"])]}, p).refused(bearer(credential))).status == 401


# ---- challenges and metadata


async def test_before_mcp_the_challenge_names_the_metadata() -> None:
    spec = {"jwt": [issuer()], "resource_metadata": {"scopes": ["mcp", "read"]}}
    door = Door(spec, entrance="mcp", public_url="https://gw.example.com")
    where = 'resource_metadata="https://gw.example.com/.well-known/oauth-protected-resource/mcp/shop"'
    failure = await door.refused(target=b"/mcp/shop?x=1")
    assert dict(failure.headers)[b"www-authenticate"].decode() == f'Bearer scope="mcp read", {where}'
    failure = await door.refused(bearer(token(aud="other")), target=b"/mcp/shop")
    challenge = dict(failure.headers)[b"www-authenticate"].decode()
    assert challenge.startswith('Bearer error="invalid_token", error_description="')
    assert challenge.endswith(where)
    other = await Door(spec, entrance="llm", public_url="https://gw.example.com").refused()
    assert b"resource_metadata" not in dict(other.headers)[b"www-authenticate"]


@pytest.mark.parametrize("path", [b'/a"b', b"/a\\b", b"/\xff", b"/a\x01b"])
async def test_a_strange_path_stays_out_of_the_challenge(path: bytes) -> None:
    door = Door({"jwt": [issuer()]}, entrance="mcp", public_url="https://gw.example.com")
    challenge = dict((await door.refused(target=path)).headers)[b"www-authenticate"]
    assert challenge == b'Bearer resource_metadata="https://gw.example.com/.well-known/oauth-protected-resource"'


async def test_the_metadata_document() -> None:
    told = {"scopes": ["mcp"], "name": "Tools", "documentation": "https://docs.example.com"}
    spec = AuthenticateSpec.model_validate({"jwt": [issuer()], "resource_metadata": told})
    handler = resource_metadata(spec, "https://gw.example.com/mcp")
    assert handler is not None
    response = await handler(Request(b"GET", b"/.well-known/oauth-protected-resource/mcp", Headers()))
    assert json.loads(response.body) == {
        "resource": "https://gw.example.com/mcp",
        "authorization_servers": [ISSUER],
        "bearer_methods_supported": ["header"],
        "scopes_supported": ["mcp"],
        "resource_name": "Tools",
        "resource_documentation": "https://docs.example.com",
    }
    assert dict(response.headers)[b"access-control-allow-origin"] == b"*"
    assert (await handler(Request(b"OPTIONS", b"/", Headers()))).status == 204
    with pytest.raises(Failure, match="only read"):
        await handler(Request(b"POST", b"/", Headers()))
    assert metadata_path("/mcp") == "/.well-known/oauth-protected-resource/mcp"
    assert metadata_path("/") == "/.well-known/oauth-protected-resource"
    assert resource_metadata(AuthenticateSpec.model_validate({"keys": [CI]}), "https://x") is None


# ---- where keys come from


class Idp:
    """An issuer that serves a document; real sockets."""

    def __init__(self) -> None:
        self.document: Any = jwks(KEY)
        self.status = 200
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        await self.gate.wait()
        body = json.dumps(self.document).encode()
        writer.write(
            b"HTTP/1.1 %d x\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (self.status, len(body), body)
        )
        await writer.drain()
        writer.close()


@asynccontextmanager
async def idp() -> AsyncIterator[tuple[Idp, str]]:
    it = Idp()
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    async with server:
        yield it, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"


async def test_keys_come_from_the_issuers_url_once_for_all_who_wait() -> None:
    async with idp() as (it, url):
        door = Door({"jwt": [issuer(jwks=url)]})
        it.gate.clear()
        waiting = [asyncio.ensure_future(door.enter(bearer(token(n=n)))) for n in range(10)]
        waiting[0].cancel()
        while not it.asked:
            await asyncio.sleep(0)
        waiting[1].cancel()  # who leaves does not take it from the others
        it.gate.set()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(one, Principal) for one in done] == [False, False] + [True] * 8
        assert it.asked == 1
        await door.enter(bearer(token(n=11)))
        assert it.asked == 1
        await door.parts.shared.close()  # type: ignore[attr-defined]


async def test_without_any_keys_the_answer_is_503_and_the_issuer_is_left_alone() -> None:
    async with idp() as (it, url):
        it.status = 500
        door = Door({"jwt": [issuer(jwks=url)]})
        for _ in range(3):
            failure = await door.refused(bearer(token()))
            assert (failure.status, failure.reason) == (503, Reason.JWT_AUTH)
            assert url not in failure.message
        assert it.asked == 1
        # What can be refused without keys is.
        assert (await door.refused(bearer(token(aud="x")))).status == 401


class Source:
    """A KeySource whose time and document the test moves."""

    def __init__(self, refresh: float = 300.0) -> None:
        self.now = 1000.0
        self.document: bytes | Exception = json.dumps(jwks(KEY)).encode()
        self.read = 0
        self.source = KeySource(self.load, "there", refresh, clock=lambda: self.now)

    async def load(self) -> bytes:
        self.read += 1
        await asyncio.sleep(0)
        if isinstance(self.document, Exception):
            raise self.document
        return self.document

    async def keys(self, key: Any = KEY) -> Keys:
        parsed = parse(token(key))
        assert isinstance(parsed, Token)
        return await self.source.keys(parsed)

    async def settle(self) -> None:
        while self.source._flight is not None:
            await asyncio.sleep(0)


async def test_old_keys_are_read_again_in_the_background() -> None:
    it = Source()
    first = await it.keys()
    it.now += 299
    assert await it.keys() is first
    assert it.read == 1
    it.now += 2
    assert await it.keys() is first  # did not wait
    await it.settle()
    assert it.read == 2
    assert await it.keys() is not first
    assert it.read == 2


@pytest.mark.parametrize("error", [OSError("down"), Failure(502, Reason.UPSTREAM_FAILURE, "x"), RuntimeError("a bug")])
async def test_the_last_good_keys_serve_while_the_issuer_is_down(error: Exception, caplog: Any) -> None:
    it = Source()
    first = await it.keys()
    it.document = error
    for n in range(2, 6):
        it.now += 1000
        assert await it.keys() is first
        await it.settle()
        assert it.read == n
        assert await it.keys() is first
        await it.settle()
        assert it.read == n  # a source that failed is left alone for a while
    assert "there" in caplog.text
    it.document = b'{"keys": []}'
    it.now += 1000
    assert await it.keys() is first
    await it.settle()
    it.document = json.dumps(jwks(KEY, NEXT)).encode()
    it.now += 1000
    await it.keys()
    await it.settle()
    assert len(await it.keys()) == 2


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", [10**400, -(10**400), 1e308], ids=["huge", "below", "float"])
async def test_a_forged_token_with_a_time_beyond_numbers_is_refused(claim: str, value: float) -> None:
    claims = {"iss": ISSUER, "aud": "tollhouse", "sub": "ada", "exp": int(time()) + 600} | {claim: value}
    parts = ({"alg": "ES256", "kid": "one"}, claims)
    forged = b".".join(urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts) + b".Zm9yZ2Vk"
    failure = await Door({"jwt": [issuer()]}).refused(bearer(forged))
    assert (failure.status, failure.reason) == (401, Reason.JWT_AUTH)


@pytest.mark.parametrize("error", [OSError("down"), RuntimeError("a bug")])
async def test_keys_of_a_day_ago_serve_no_longer(error: Exception) -> None:
    it = Source()
    first = await it.keys()
    it.document = error
    it.now += 86_390
    assert await it.keys() is first
    await it.settle()
    it.now += 10
    for _ in range(2):
        with pytest.raises(Failure, match="keys cannot be had") as caught:
            await it.keys()
        assert (caught.value.status, caught.value.reason) == (503, Reason.JWT_AUTH)
    assert it.read == 3  # and the issuer is left alone for a while
    it.document = json.dumps(jwks(KEY, NEXT)).encode()
    it.now += 5
    assert len(await it.keys()) == 2  # waited for, after a day without tokens as well
    it.now += 86_400
    assert await it.keys() is not first
    assert it.read == 5


async def test_what_may_be_secret_in_a_url_of_keys_is_not_logged(caplog: Any) -> None:
    async with idp() as (it, url):
        it.status = 500
        door = Door({"jwt": [issuer(jwks=f"{url}?token=SECRET#SECRET")]})
        failure = await door.refused(bearer(token()))
        assert failure.detail == f"no keys from {url}"
        assert f"cannot read the keys at {url}: it answered 500" in caplog.text
        await door.parts.shared.close()  # type: ignore[attr-defined]
    # And with a failure that names the URL itself, or where it was sent to.
    for said in (f"{url}?token=SECRET", "https://ada:SECRET@idp.example.com/x?SECRET"):
        where = Source()
        where.document = Failure(504, Reason.TIMEOUT, "late", detail=f"at {said} it ended")
        where.source._where = url
        with pytest.raises(Failure):
            await where.keys()
    assert "https://idp.example.com/x it ended" in caplog.text
    assert "SECRET" not in caplog.text


async def test_an_unknown_key_is_looked_for_at_most_once_in_ten_seconds() -> None:
    it = Source()
    await it.keys()
    for _ in range(5):
        await it.keys(NEXT)
    assert it.read == 1  # just read
    it.now += 11
    it.document = json.dumps(jwks(KEY, NEXT)).encode()
    found = await asyncio.gather(*(it.keys(NEXT) for _ in range(5)))
    assert it.read == 2
    assert all(len(keys) == 2 for keys in found)
    stranger = ECKey.generate_key("P-256", {"kid": "three"})
    for _ in range(20):
        it.now += 1
        await it.keys(stranger)
        await it.settle()
    assert it.read == 4


async def test_close_ends_a_reading() -> None:
    it = Source()
    gate = asyncio.Event()

    async def hang() -> bytes:
        await gate.wait()
        return b""

    it.source._load = hang
    waiting = asyncio.ensure_future(it.keys())
    while it.source._flight is None:
        await asyncio.sleep(0)
    await it.source.close()
    assert it.source._flight is None
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await it.source.close()


async def test_keys_from_a_file_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(jwks(KEY)))
    door = Door({"jwt": [issuer(jwks=str(file))]})
    assert (await door.enter(bearer(token()))).source == "jwt"
    file.write_text(json.dumps(jwks(KEY, NEXT)))
    [source] = [part for part in door.parts.shared.parts.values() if isinstance(part, KeySource)]  # type: ignore[attr-defined]
    source._clock = lambda: 1e12
    assert (await door.enter(bearer(token(NEXT)))).source == "jwt"
    file.write_text("{")
    with pytest.raises(ConfigError, match="not a JWK Set"):
        Door({"jwt": [issuer(jwks=str(file))]})


async def test_no_cycles() -> None:
    door = Door({"keys": [CI], "jwt": [issuer()]})
    headers = (bearer(b"sk-ci-0123456789"), bearer(token()), bearer(b"wrong"))

    async def ask() -> None:
        for header in headers:
            try:
                await door.handler(request(b"POST", b"/", header))
            except Failure as failure:
                failure.__traceback__ = None

    await ask()
    gc.collect()
    await ask()
    assert gc.collect() == 0
