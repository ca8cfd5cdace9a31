"""The attacks on whoever takes tokens, one test each, by their numbers in the threat table of RFC 9700 and MCP: what is
refused, with which error, and that nothing of it goes anywhere."""

import hmac
import json
from base64 import urlsafe_b64encode
from hashlib import sha256
from time import perf_counter, time
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, RSAKey
from tests.unit.policies.authenticate.door import ISSUER, KEY, Door, bearer, idp, issuer, jwks, token
from tests.unit.policies.floor import parts

from tollhouse.core.errors import Failure
from tollhouse.observe.access_log import redact

pytestmark = pytest.mark.anyio

GATEWAY = "https://gw.example.com"
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})


def encoded(part: Any) -> bytes:
    return urlsafe_b64encode(part if isinstance(part, bytes) else json.dumps(part).encode()).rstrip(b"=")


def claims(**more: Any) -> dict[str, Any]:
    return {"iss": ISSUER, "aud": "tollhouse", "sub": "ada", "exp": int(time()) + 600} | more


def door(**more: Any) -> Door:
    return Door({"jwt": [issuer(jwks=jwks(KEY, RSA))]}, **more)


def refused_well(failure: Failure, credential: bytes) -> None:
    assert failure.status == 401
    text = failure.message + failure.detail + repr(failure.headers)
    assert credential.decode() not in text
    assert b'error="invalid_token"' in dict(failure.headers)[b"www-authenticate"]


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", ""])
async def test_18_no_algorithm(name: str) -> None:
    for signature in (b"", b"AA"):
        forged = encoded({"alg": name, "kid": "one"}) + b"." + encoded(claims()) + b"." + signature
        refused_well(await door().refused(bearer(forged)), forged)


async def test_19_the_public_key_as_a_shared_secret() -> None:
    for name in ("HS256", "HS384", "HS512"):
        signed = encoded({"alg": name, "kid": "rsa"}) + b"." + encoded(claims())
        for secret in (RSA.as_pem(private=False), json.dumps(RSA.as_dict(private=False)).encode()):
            digest = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}[name]
            forged = signed + b"." + encoded(hmac.digest(secret, signed, digest))
            refused_well(await door().refused(bearer(forged)), forged)


def signed_with(key: Any, header: dict[str, Any]) -> bytes:
    fields = {"alg": "ES256", "kid": "one"} | header
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    return jws.serialize_compact(fields, json.dumps(claims()), key, registry=registry).encode()


async def test_20_a_key_that_the_token_brings() -> None:
    own = ECKey.generate_key("P-256")
    forged = signed_with(own, {"jwk": own.as_dict(private=False)})
    refused_well(await door().refused(bearer(forged)), forged)


async def test_21_a_place_that_the_token_names() -> None:
    async with idp() as (it, url):
        own = ECKey.generate_key("P-256", {"kid": "one"})
        it.document = jwks(own)
        for header in ({"jku": url}, {"x5u": url}, {"jku": url, "kid": "x"}):
            forged = signed_with(own, header)
            refused_well(await door().refused(bearer(forged)), forged)
        assert it.asked == 0


@pytest.mark.parametrize("kid", ["../../../../dev/null", "x' OR '1'='1", "http://127.0.0.1:1/x", "a\x00b", "k" * 900])
async def test_22_a_key_id_is_a_name_and_nothing_else(kid: str) -> None:
    async with idp() as (it, url):
        opened = Door({"jwt": [issuer(jwks=url)]})
        await opened.enter(bearer(token()))
        forged = signed_with(ECKey.generate_key("P-256"), {"kid": kid})
        refused_well(await opened.refused(bearer(forged)), forged)
        assert it.asked <= 2
        assert {target for target, _, _ in it.requests} == {"/jwks"}
        await opened.close()


async def test_23_an_id_token_is_no_access_token() -> None:
    forged = token(header={"typ": "JWT"}, aud="client-1", azp="client-1", nonce="n")
    refused_well(await door().refused(bearer(forged)), forged)
    for typ in ("dpop+jwt", "logout+jwt", "oauth-id-jag+jwt", "secevent+jwt", "at+JWT2"):
        forged = token(header={"typ": typ})
        refused_well(await door().refused(bearer(forged)), forged)


async def test_24_a_token_for_another_endpoint() -> None:
    spec = issuer()
    del spec["audiences"]
    for path, other in (("/mcp", "/mcp/shop"), ("/mcp/shop", "/mcp"), ("/mcp", "/mcp2"), ("/mcp", "/mcp/")):
        opened = Door({"jwt": [spec]}, entrance="mcp", public_url=GATEWAY, resource=GATEWAY + path)
        forged = token(aud=GATEWAY + other)
        failure = await opened.refused(bearer(forged), target=path.encode())
        refused_well(failure, forged)
        assert "another audience" in failure.message


@pytest.mark.parametrize(
    "times",
    [
        {"exp": 0}, {"exp": -1}, {"exp": "9999999999"}, {"exp": True}, {"exp": None}, {"exp": [9999999999]},
        {"exp": 10**400}, {"exp": {}}, {"iat": "now"}, {"iat": 9999999999}, {"nbf": 9999999999}, {"nbf": "x"},
        {"nbf": None}, {"iat": False},
    ],
)  # fmt: skip
async def test_25_times_that_are_none_or_wrong(times: dict[str, Any]) -> None:
    forged = jws.serialize_compact({"alg": "ES256", "kid": "one"}, json.dumps(claims(**times)), KEY).encode()
    refused_well(await door().refused(bearer(forged)), forged)


async def test_26_huge_and_deep_tokens_cost_little() -> None:
    deep = b'{"a":' * 5000 + b"1" + b"}" * 5000
    head = encoded({"alg": "ES256", "kid": "one"})
    opened = door()
    for forged in (
        b"a" * 60_000,
        head + b"." + encoded(deep) + b".AAAA",
        b"." * 16_000,
        head + b"." + b"A" * 60_000 + b".A",
    ):
        began = perf_counter()
        for _ in range(20):
            assert (await opened.refused(bearer(forged))).status == 401
        assert perf_counter() - began < 2.0


async def test_27_of_two_equal_claims_one_reader_reads() -> None:
    body = b'{"iss":"%b","sub":"ada","sub":"root","aud":"tollhouse","exp":%d}' % (ISSUER.encode(), int(time()) + 600)
    made = jws.serialize_compact({"alg": "ES256", "kid": "one"}, body, KEY).encode()
    try:
        found = await door().enter(bearer(made))
    except Failure as failure:
        refused_well(failure, made)
    else:
        assert found.subject == found.user == found.claims["sub"]


async def test_28_a_flood_of_unknown_keys() -> None:
    async with idp() as (it, url):
        opened = Door({"jwt": [issuer(jwks=url)]})
        await opened.enter(bearer(token()))
        good = token().split(b".")
        for n in range(500):
            forged = b".".join((encoded({"alg": "ES256", "kid": f"k{n}"}), good[1], good[2]))
            assert (await opened.refused(bearer(forged))).status == 401
        assert it.asked <= 4  # the first, and three in thirty seconds
        await opened.close()


@pytest.mark.parametrize("entrance", ["mcp", "llm"])
async def test_29_a_token_in_the_query(entrance: str) -> None:
    credential = token().decode()
    opened = door(entrance=entrance, public_url=GATEWAY)
    for query in (f"access_token={credential}", f"a=b&access_token={credential}"):
        failure = await opened.refused(target=b"/mcp?" + query.encode())
        assert (failure.status, failure.code) == (400, "invalid_request")
        assert b'error="invalid_request"' in dict(failure.headers)[b"www-authenticate"]
        # Nor does a good one in its place help.
        assert (await opened.refused(bearer(credential.encode()), target=b"/mcp?" + query.encode())).status == 400
        assert credential not in redact(query)
    assert (await opened.enter(bearer(credential.encode()), target=b"/mcp?my_access_token=1")).user == "ada"
    # A plain service's parameters are its own; as a credential they count for nothing.
    service = Door({"jwt": [issuer()]}, entrance="http")
    assert (await service.refused(target=b"/x?access_token=" + credential.encode())).status == 401


async def test_two_authorizations_are_malformed() -> None:
    failure = await door().refused(bearer(token()), bearer(token()))
    assert (failure.status, failure.code) == (400, "invalid_request")


async def test_38_a_token_that_is_known_and_revoked() -> None:
    from tollhouse.core.clock import Clock
    from tollhouse.store.memory import MemoryState
    from tollhouse.store.revocation import Revocations

    clock = Clock()
    revocations = Revocations(MemoryState(clock), clock)
    await revocations.load()
    opened = Door({"jwt": [issuer()]}, parts(revocations=revocations))
    credential = token(gid="family", iat=int(time()))
    await opened.enter(bearer(credential))
    await revocations.revoke("gid", "family", time() + 600)
    refused_well(await opened.refused(bearer(credential)), credential)


async def test_47_all_unknown_keys_are_refused_in_the_same_words() -> None:
    opened = Door({"keys": [{"name": "ci", "key": "sk-ci-0123456789"}]})
    said = {
        repr((await opened.refused(bearer(shown))).headers)
        for shown in (b"x", b"sk-ci-0123456780", b"sk-ci", b"y" * 500)
    }
    assert len(said) == 1


async def test_49_names_that_would_end_a_line() -> None:
    for value in ("ada\r\nx-admin: true", "ada\x00", "ada\nfake log line"):
        made = token(sub=value)
        refused_well(await door().refused(bearer(made)), made)
        found = await door().enter(bearer(token(org=value, email=value, client_id=value)))
        assert (found.org, found.email, found.agent, found.client) == ("", "", "", "")


async def test_a_digest_is_what_is_kept() -> None:
    opened = Door({"keys": [{"name": "ci", "key_hash": sha256(b"sk-0123456789").hexdigest()}]})
    assert (await opened.enter(bearer(b"sk-0123456789"))).key == "ci"
    assert (await opened.refused(bearer(sha256(b"sk-0123456789").hexdigest().encode()))).status == 401
