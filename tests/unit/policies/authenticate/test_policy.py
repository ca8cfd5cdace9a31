"""Who is calling: keys, tokens from real issuers' documents, challenges, and what is remembered."""

import asyncio
import gc
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from time import time
from typing import Any

import pytest
from joserfc.jwk import ECKey, RSAKey
from tests.unit.policies.authenticate.door import ISSUER, KEY, NEXT, Door, bearer, idp, issuer, jwks, token
from tests.unit.policies.floor import parts, request

from tollhouse.core.call import Principal
from tollhouse.core.errors import ConfigError, Failure, Reason
from tollhouse.core.http import Headers, Known, Request
from tollhouse.net.jwks import KeySource
from tollhouse.policies.authenticate import AuthenticateSpec, metadata_path, resource_metadata
from tollhouse.policies.authenticate.jwt import Issuers, JwtSpec

pytestmark = pytest.mark.anyio

CI = {
    "name": "ci", "key": "sk-ci-0123456789", "user": "ci-bot", "org": "platform", "agent": "runner",
    "groups": ["bots"], "email": "ci@example.com", "metadata": {"tier": "gold"},
}  # fmt: skip
PASSWORDS = {"users": [{"name": "ada", "secret_hash": "0" * 64}]}


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
    ],
)
async def test_a_bad_credential_is_refused_in_both_modes(mode: str, header: tuple[bytes, bytes]) -> None:
    failure = await Door({"mode": mode, "keys": [CI]}).refused(header)
    assert (failure.status, failure.reason) == (401, Reason.API_KEY_AUTH)
    assert dict(failure.headers)[b"www-authenticate"].startswith(b'Bearer error="')
    assert "sk-ci" not in failure.message + failure.detail


@pytest.mark.parametrize("mode", ["strict", "optional"])
@pytest.mark.parametrize(
    ("spec", "value", "understood"),
    [
        ({"keys": [CI]}, b"Basic eDp5", "`Authorization: Bearer` and `x-api-key`"),
        ({"keys": [CI]}, b"Negotiate YII", "`Authorization: Bearer` and `x-api-key`"),
        ({"keys": [CI]}, b"DPoP a.b.c", "`Authorization: Bearer` and `x-api-key`"),
        ({"basic": PASSWORDS}, b"Bearer a.b.c", "`Authorization: Basic`"),
        ({"basic": PASSWORDS}, b"Digest x", "`Authorization: Basic`"),
        (
            {"keys": [CI], "basic": PASSWORDS},
            b"Digest x",
            "`Authorization: Bearer`, `x-api-key` and `Authorization: Basic`",
        ),
    ],
)
async def test_a_scheme_that_is_not_taken_is_no_error_of_another(
    mode: str, spec: dict[str, Any], value: bytes, understood: str
) -> None:
    failure = await Door({"mode": mode, **spec}).refused((b"authorization", value))
    assert (failure.status, failure.code) == (401, "credential_required")
    assert failure.message == f"only {understood} are understood"
    said = [text for name, text in failure.headers if name == b"www-authenticate"]
    assert said
    assert not any(b"error" in text for text in said)


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
        ({"keys": [{"name": "x"}]}, "either `key` or `key_hash`"),
        ({"keys": [CI | {"key_hash": "0" * 64}]}, "either `key` or `key_hash`"),
        ({"keys": [{"name": "x", "key": "short"}]}, "at least 8"),
        ({"keys": [{"name": "x", "key": "with space 123"}]}, "visible ASCII"),
        ({"keys": [{"name": "x", "key_hash": "AB"}]}, "pattern"),
        ({"jwt": [issuer(audiences=[])]}, "would accept no token"),
        ({"jwt": [issuer(jwks=None)]}, "either `jwks` or `discovery"),
        ({"jwt": [issuer(discovery=True)]}, "either `jwks` or `discovery"),
        ({"jwt": [issuer(jwks=None, discovery=True, issuer="idp")]}, "an issuer that is a URL"),
        ({"jwt": [issuer(refresh="1m")]}, "no effect on keys that are written here"),
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
        ({}, "nobody could call"),
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
    assert time() + 86_400 < principal.expires < time() + 86_520
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
    assert issuers.find(digest) is principal
    now += 129  # within the leeway
    assert issuers.find(digest) is principal
    now += 2
    assert issuers.find(digest) is None


async def test_a_long_token_is_checked_again_after_five_minutes() -> None:
    now = time()
    issuers = Issuers([JwtSpec.model_validate(issuer())], parts(), now=lambda: now)
    credential = token(exp=int(now) + 100_000)
    digest = sha256(credential).digest()
    first = await issuers.verify(credential, digest)
    now += 301
    assert issuers.find(digest) is None
    second = await issuers.verify(credential, digest)
    assert second is not first
    assert issuers.find(digest) is second


async def test_verified_tokens_outlive_a_configuration_that_says_the_same() -> None:
    p = parts()
    credential = token()
    principal = await Door({"jwt": [issuer()]}, p).enter(bearer(credential))
    assert await Door({"jwt": [issuer()], "mode": "optional"}, p).enter(bearer(credential)) is principal
    assert (await Door({"jwt": [issuer(audiences=["other"])]}, p).refused(bearer(credential))).status == 401


# ---- challenges and metadata


async def test_before_mcp_the_challenge_names_the_metadata() -> None:
    spec = {"jwt": [issuer()], "resource_metadata": {"scopes": ["mcp", "read"]}}
    gateway = {"public_url": "https://gw.example.com", "resource": "https://gw.example.com/mcp/shop"}
    door = Door(spec, entrance="mcp", **gateway)
    where = 'resource_metadata="https://gw.example.com/.well-known/oauth-protected-resource/mcp/shop"'
    failure = await door.refused(target=b"/mcp/shop?x=1")
    assert dict(failure.headers)[b"www-authenticate"].decode() == f'Bearer scope="mcp read", {where}'
    failure = await door.refused(bearer(token(aud="other")), target=b"/mcp/shop")
    challenge = dict(failure.headers)[b"www-authenticate"].decode()
    assert challenge.startswith('Bearer error="invalid_token", error_description="')
    assert challenge.endswith(where)
    other = await Door(spec, entrance="llm", **gateway).refused()
    assert b"resource_metadata" not in dict(other.headers)[b"www-authenticate"]


async def test_the_metadata_document() -> None:
    told = {"scopes": ["mcp"], "name": "Tools", "documentation": "https://docs.example.com"}
    spec = AuthenticateSpec.model_validate({"jwt": [issuer()], "resource_metadata": told})
    handler = resource_metadata(spec, parts(resource="https://gw.example.com/mcp"))
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
    assert resource_metadata(AuthenticateSpec.model_validate({"keys": [CI]}), parts(resource="https://x")) is None


# ---- where keys come from


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


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", [10**400, -(10**400), 1e308], ids=["huge", "below", "float"])
async def test_a_forged_token_with_a_time_beyond_numbers_is_refused(claim: str, value: float) -> None:
    claims = {"iss": ISSUER, "aud": "tollhouse", "sub": "ada", "exp": int(time()) + 600} | {claim: value}
    parts = ({"alg": "ES256", "kid": "one"}, claims)
    forged = b".".join(urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts) + b".Zm9yZ2Vk"
    failure = await Door({"jwt": [issuer()]}).refused(bearer(forged))
    assert (failure.status, failure.reason) == (401, Reason.JWT_AUTH)


async def test_what_may_be_secret_in_a_url_of_keys_is_not_logged(caplog: Any) -> None:
    async with idp() as (it, url):
        it.status = 500
        door = Door({"jwt": [issuer(jwks=f"{url}?token=SECRET#SECRET")]})
        failure = await door.refused(bearer(token()))
        assert failure.detail == f"no keys from {url}"
        assert f"cannot read the keys at {url}: it answered 500" in caplog.text
        await door.parts.shared.close()  # type: ignore[attr-defined]
    assert "SECRET" not in caplog.text


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
