"""The attacks on tokens, one test each: the table is in test_identity_attacks.py."""

import asyncio
import hmac
import json
import os
import re
import secrets
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from joserfc.jwk import ECKey
from tests.fixtures.auth_provider import PASSWORD, Browser
from tests.fixtures.besieged import (
    API,
    EC,
    FLOODED,
    RSA,
    SECRET,
    Besieged,
    Trap,
    besieged,
    claims,
    encoded,
    is_bad,
    refused,
    signed,
    written,
)  # fmt: skip
from tests.fixtures.gateway import within
from tests.fixtures.issuer import claims_of, dpop_proof, new_key

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    with besieged(tmp_path_factory.mktemp("besieged")) as it:
        yield it


@pytest.fixture
def it(house: Besieged) -> Iterator[Besieged]:
    """The gateway; afterwards its log is looked at."""
    house.begin()
    house.keep(PASSWORD, SECRET)
    yield house
    house.end()


# ---- tokens


async def test_a_token_is_for_one_place(it: Besieged) -> None:
    """RFC 8707, RFC 9068: one token opens the endpoint that it names; an id_token opens nothing."""
    told = await it.tokens()
    assert it.mcp(told["access_token"]).status_code == 200
    is_bad(it.mcp(told["access_token"], "/mcp/support"))
    is_bad(it.mcp(told["access_token"], "/mcp/shop"))
    is_bad(it.call(told["access_token"]))
    is_bad(it.mcp(told["id_token"]))
    is_bad(it.mcp(signed(EC, {"typ": "JWT"})))  # another's, whose access tokens say what they are
    answer = it.http.get("/oauth/userinfo", headers={"authorization": f"Bearer {told['access_token']}"})
    is_bad(answer)
    other = await it.tokens(it.flow(resource=f"{it.url}/mcp/support"))
    assert it.mcp(other["access_token"], "/mcp/support").status_code == 200
    is_bad(it.mcp(other["access_token"]))
    is_bad(it.mcp((await it.tokens(it.flow(resource=API, scope="read")))["access_token"]))
    for aud in ("other", f"{it.url}/mcp/", ["other"], [{"tollhouse": 1}], {"tollhouse": True}, None, ""):
        is_bad(it.mcp(signed(aud=aud)))
    for resource in ("https://evil.example/mcp", f"{it.url}/mcp#x", f"{it.url}/mcp/../mcp/support"):
        async with Browser(it) as ada:
            await ada.get(it.flow(resource=resource).url)
            assert "invalid_target" in (ada.left or ada.response.text)
    assert it.mcp(signed()).status_code == 200


async def test_a_signature_is_one(it: Besieged) -> None:
    """RFC 8725 3.1: an algorithm is what the issuer's keys are for, and none is none."""
    ours = (await it.tokens())["access_token"]
    head, body, signature = ours.split(".")
    header = json.loads(_decoded(head))
    published = it.http.get("/oauth/jwks").json()["keys"]
    assert it.mcp(ours).status_code == 200
    for name in ("none", "None", "NONE", "nOnE", "", None):
        for said in (claims(), claims_of(ours)):
            bare = f"{encoded({'alg': name, 'typ': 'at+jwt', 'kid': 'ec'})}.{encoded(said)}."
            is_bad(it.mcp(bare))
            is_bad(it.mcp(bare + signature))
    public = [
        (said, kid, material)
        for said, key, kid in ((claims(), RSA, "rsa"), (claims(), EC, "ec"))
        for material in (key.as_pem(private=False), key.as_der(private=False), written(key.as_dict(private=False)))
    ] + [(claims_of(ours), key["kid"], written(key)) for key in published]
    for name, digest in (("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")):
        for said, kid, material in public:
            text = f"{encoded({'alg': name, 'typ': 'at+jwt', 'kid': kid})}.{encoded(said)}"
            is_bad(it.mcp(f"{text}.{encoded(hmac.digest(material, text.encode(), digest))}"))
    is_bad(it.mcp(f"{head}.{encoded({**claims_of(ours), 'sub': 'bob'})}.{signature}"))
    is_bad(it.mcp(f"{encoded({**header, 'typ': 'jwt'})}.{body}.{signature}"))
    is_bad(it.mcp(f"{head}.{body}.{encoded(b'')}"))
    is_bad(it.mcp(f"{head}.{body}.{encoded(bytes(64))}"))
    is_bad(it.mcp(signed(ECKey.generate_key("P-256", {"kid": "ec"}))))
    is_bad(it.mcp(signed(RSA, {"kid": "ec"})))
    is_bad(it.mcp(signed(EC, {"kid": "rsa"})))
    assert it.mcp(signed(RSA)).status_code == 200


async def test_a_header_names_no_place(it: Besieged) -> None:
    """RFC 8725 3.10: a `kid` is a name among those that the issuer has published; other places are not looked at."""
    trap, began, before = Trap(), time.monotonic(), it.there.count("/idp/jwks")
    mine = ECKey.generate_key("P-256", {"kid": "mine"})
    place = f"http://127.0.0.1:{trap.port}/jwks"
    for header in (
        {"jku": place}, {"x5u": place}, {"jku": f"{it.there.url}/idp/jwks"}, {"x5c": ["AAAA"]}, {"x5t": "AAAA"},
        {"crit": ["exp"]}, {"b64": False}, {"crit": ["b64"], "b64": False}, {"zip": "DEF"},
    ):  # fmt: skip
        is_bad(it.mcp(signed(mine, header)))
        if "x5t" not in header and "zip" not in header:
            is_bad(it.mcp(signed(EC, header)))  # a good signature makes it no better
    for kid in ("../../../../dev/null", "/dev/null", "' OR 1=1 --", place, "ec\0", "ec\r\nx: y", "e" * 900, "", "EC"):
        is_bad(it.mcp(signed(mine, {"kid": kid})))
        is_bad(it.mcp(signed(ECKey.generate_key("P-256", {"kid": kid}))))
    for odd in (5, ["ec"], {"ec": 1}, True):
        is_bad(it.mcp(signed(EC, {"kid": odd})))
    assert trap.close() == 0
    assert it.there.count("/idp/jwks") - before <= _readings(began)
    assert it.mcp(signed()).status_code == 200


async def test_a_token_brings_no_key(it: Besieged) -> None:
    """CVE-2018-0114: whoever signs with a key that is in the token has signed nothing."""
    for name in ("P-256", "P-384"):
        mine = ECKey.generate_key(name, {"kid": "ec"})
        algorithm = {"P-256": "ES256", "P-384": "ES384"}[name]
        for header in (
            {"jwk": mine.as_dict(private=False)},
            {"jwk": mine.as_dict(private=False), "kid": None},
            {"jwk": {**EC.as_dict(private=False), "kid": "mine"}, "kid": "mine"},
            {"jwks": {"keys": [mine.as_dict(private=False)]}},
        ):
            is_bad(it.mcp(signed(mine, {"alg": algorithm, **header})))
    is_bad(it.mcp(signed(EC, {"jwk": EC.as_dict(private=False)})))
    assert it.mcp(signed()).status_code == 200


async def test_huge_tokens_cost_little(it: Besieged) -> None:
    began = _cpu(it)
    deep = b"[" * 3000 + b"]" * 3000
    bombs = [
        signed(payload=b'{"iss":"https://idp.example.com","aud":' + deep + b"}"),
        signed(payload=b'{"exp":' + b"9" * 5000 + b"}"),
        signed(payload=deep),
        encoded(deep) + ".e30.AA",
        "." * 7000,
        "e30." * 2000,
        "A" * 8100,
        "A" * 7000 + ".e30.AA",
    ]
    for bomb in bombs * 5:
        is_bad(it.mcp(bomb))
    for size in (13_000, 60_000):
        assert it.mcp("A" * size + ".e30.AA").status_code in (401, 431)
        assert it.mcp(signed(pad="x" * size)).status_code in (401, 431)
    for size in (70_000, 400_000):
        big = "A" * size
        for name, field in (("introspect", "token"), ("revoke", "token"), ("token", "refresh_token")):
            form = {"client_id": "app", "client_secret": SECRET, "grant_type": "refresh_token", field: big}
            assert it.http.post(f"/oauth/{name}", data=form).status_code in (400, 413)
    assert _cpu(it) - began < 2.0
    assert it.mcp(signed()).status_code == 200


async def test_clocks_may_differ_so_much_and_no_more(it: Besieged) -> None:
    """RFC 7519 4.1.4 (half a minute for others' tokens), RFC 9449 11.1 (a minute), RFC 7523 3."""
    now = int(time.time())
    for good in ({"exp": now - 15}, {"iat": now + 15}, {"nbf": now + 15}, {"iat": now - 10**6}, {"iat": None}):
        assert it.mcp(signed(**good)).status_code == 200, good
    for bad in ({"exp": now - 45}, {"iat": now + 60}, {"nbf": now + 60}):
        is_bad(it.mcp(signed(**bad)))
    key = new_key()
    for off, error in (
        (-45, "invalid_grant"),
        (45, "invalid_grant"),
        (-75, "invalid_dpop_proof"),
        (90, "invalid_dpop_proof"),
    ):
        proof = dpop_proof(key, _node(it), "token", iat=int(time.time()) + off)
        form = {"grant_type": "refresh_token", "refresh_token": "x", "client_id": "native"}
        refused(it.token({"dpop": proof}, **form), error)


async def test_a_token_has_its_time(it: Besieged) -> None:
    """RFC 7519 4.1.4-6: an end, in the future; a beginning, in the past; and numbers that are times."""
    now = int(time.time())
    for bad in (
        {"exp": None}, {"exp": now - 3600}, {"exp": 0}, {"exp": -1}, {"exp": str(now + 600)}, {"exp": True},
        {"exp": [now + 600]}, {"exp": 10**400}, {"exp": 1e300}, {"exp": {"$gt": 0}},
        {"nbf": now + 3600}, {"nbf": "0"}, {"nbf": 10**400}, {"iat": now + 3600}, {"iat": "0"}, {"iat": -(10**400)},
    ):  # fmt: skip
        is_bad(it.mcp(signed(**bad)))
    for text in (b"NaN", b"Infinity", b"1e999", b'"9999999999"', b"null"):
        is_bad(it.mcp(signed(payload=written(claims(exp=None))[:-1] + b',"exp":' + text + b"}")))
    twice = written(claims(exp=now - 3600))[:-1] + b',"exp":%d}' % (now + 600)
    once = it.mcp(signed(payload=twice)).status_code
    assert once in (200, 401)  # of two equal claims one is read, by all alike
    soon = signed(exp=int(time.time()) - 25)
    assert it.mcp(soon).status_code == 200
    within(15, lambda: it.mcp(soon).status_code == 401)  # what is remembered ends as well


async def test_unknown_keys_are_not_looked_for_on_and_on(it: Besieged) -> None:
    good = {"iss": FLOODED}
    assert it.mcp(signed(**good)).status_code == 200
    began, before = time.monotonic(), it.there.count("/flooded/jwks")
    async with httpx.AsyncClient(base_url=it.url, timeout=60) as http:

        async def one(n: int) -> int:
            token = signed(EC, {"kid": f"k{n}-{secrets.token_hex(4)}"}, **good)
            return (await http.post("/mcp", json={}, headers={"authorization": f"Bearer {token}"})).status_code

        found = await asyncio.gather(*(one(n) for n in range(300)))
    assert set(found) == {401}
    assert it.there.count("/flooded/jwks") - before <= _readings(began)
    assert it.mcp(signed(**good)).status_code == 200


async def test_a_token_stands_in_no_address(it: Besieged) -> None:
    """OAuth 2.1 5.1.1, MCP authorization: a query ends up in logs and histories, so no token in it is taken."""
    ours, theirs = (await it.tokens())["access_token"], it.kept(signed())
    for path in ("/mcp", "/v1/models", "/oauth/userinfo"):
        for token in (ours, theirs):
            answer = it.http.post(path, params={"access_token": token}, json={})
            assert answer.status_code in (400, 401, 404, 405, 415), path
            assert answer.status_code != 200
            answer = it.http.get(path, params={"access_token": token}, headers={"authorization": f"Bearer {token}"})
            assert answer.status_code >= 400
        answer = it.mcp(token, f"/mcp?x=1&access_token={token}")
        assert answer.status_code == 400  # although it is in the field, too
    form = {"access_token": ours}
    assert it.http.post("/oauth/userinfo", data=form).status_code == 401
    for name in ("code", "state", "id_token_hint", "request_uri", "client_secret", "login_hint", "user_code"):
        it.http.get(
            "/oauth/nothing", params={name: it.kept(secrets.token_urlsafe(24)) if name != "request_uri" else "x"}
        )
    text = it.end()
    assert "access_token=***" in text


# ---- proofs


async def test_a_proof_counts_once_and_for_one_thing(it: Besieged) -> None:
    """RFC 9449 4.3 and 11.1."""
    key, other = new_key(), new_key()
    flow = it.flow(client_id="native", redirect_uri="http://127.0.0.1:5/cb", resource=f"{it.url}/mcp")
    async with Browser(it) as ada:
        code = await it.code(ada, flow)
    proof = it.kept(dpop_proof(key, _node(it), "token"))
    form = {"grant_type": "authorization_code", "client_id": "native", "code": code, "code_verifier": flow.verifier,
            "redirect_uri": "http://127.0.0.1:5/cb"}  # fmt: skip
    told = it.token({"dpop": proof}, **form).json()
    assert told["token_type"] == "DPoP"
    token, refresh = told["access_token"], {"client_id": "native", "grant_type": "refresh_token"}
    refused(it.token({"dpop": proof}, refresh_token=told["refresh_token"], **refresh), "invalid_dpop_proof")
    elses = dpop_proof(other, _node(it), "token")
    refused(it.token({"dpop": elses}, refresh_token=told["refresh_token"], **refresh), "invalid_grant")
    refused(it.token(refresh_token=told["refresh_token"], **refresh), "invalid_grant")

    def at(**changed: Any) -> str:
        """A proof for the token at /mcp."""
        said = {"htu": f"{it.url}/mcp", "ath": _ath(token), **changed}
        return it.kept(
            dpop_proof(changed.pop("key", key), _node(it), "token", **{n: v for n, v in said.items() if n != "key"})
        )

    good = at()
    assert it.mcp(token, scheme="DPoP", dpop=good).status_code == 200
    for scheme, headers in (
        ("DPoP", {"dpop": good}),
        ("DPoP", {}),
        ("Bearer", {}),
        ("Bearer", {"dpop": at()}),
        ("DPoP", {"dpop": at(htu=f"{it.url}/mcp/shop")}),
        ("DPoP", {"dpop": at(htu=f"{it.url.replace('http', 'https')}/mcp")}),
        ("DPoP", {"dpop": at(htm="GET")}),
        ("DPoP", {"dpop": at(ath=_ath("another"))}),
        ("DPoP", {"dpop": at(ath="")}),
        ("DPoP", {"dpop": at(key=other)}),
        ("DPoP", {"dpop": at(iat=int(time.time()) - 120)}),
        ("DPoP", {"dpop": at().rsplit(".", 1)[0] + "." + encoded(bytes(64))}),
        ("DPoP", {"dpop": signed()}),
    ):
        answer = it.mcp(token, scheme=scheme, **headers)
        assert answer.status_code == 401, headers
        assert "DPoP" in answer.headers["www-authenticate"]
    assert it.mcp(token, scheme="DPoP", dpop=at()).status_code == 200


# ---- claims


async def test_a_claim_writes_no_field_and_no_line(it: Besieged) -> None:
    """CWE-113, CWE-117: what another issuer says of somebody is a value, wherever it goes."""
    inject = 'x\r\nx-admin: yes\r\n\r\n{"time":"now","forged":true}'
    before = len(it.there.asked)
    for changed in (
        {"sub": inject}, {"email": inject}, {"groups": [inject]}, {"client_id": inject}, {"org": inject},
        {"scope": inject}, {"jti": inject}, {"iss": inject}, {"sub": "a\nb"}, {"sub": "a\0b"}, {"sub": "a\x1b[31mb"},
        {"sub": "a\u2028b"}, {"sub": "\ud800"}, {"note": inject}, {"note": "\ud800"}, {"note": "x" * 9000},
    ):  # fmt: skip
        token = signed(aud=it.url, **changed)
        status = it.call(signed(**{"aud": "tollhouse", **changed})).status_code
        assert status in (200, 400, 401, 403), (changed, status)
        assert it.call(token).status_code == 401  # its `aud` is another
    refused(it.http.post("/oauth/token", data={"grant_type": inject, "client_id": inject}), "invalid_request")
    async with Browser(it) as ada:
        for params in ({"state": inject}, {"scope": inject}, {"nonce": inject}, {"login_hint": inject}):
            assert (await ada.get(it.flow(**params).url)).status_code == 400
            assert ada.left == ""
    for _, fields, _ in it.there.asked[before:]:
        assert "x-admin" not in {name.lower() for name, _ in fields}
    text = it.end()
    assert not re.search(r"^(x-admin|\{\"time\":\"now\")", text, re.MULTILINE)
    assert '"forged":true}' not in text
    assert it.call(signed()).status_code == 200
    assert dict(it.there.asked[-1][1])["x-user"] == "ada"


def _node(it: Besieged) -> Any:
    """The gateway as one that proofs are for."""
    return SimpleNamespace(url=it.url, parts=SimpleNamespace(now=time.time))


def _decoded(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _ath(token: str) -> str:
    return encoded(sha256(token.encode()).digest())


def _cpu(it: Besieged) -> float:
    """Seconds of work that the gateway has done."""
    fields = Path(f"/proc/{it.gateway.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _readings(began: float) -> int:
    """How often keys may be read because of unknown ones: three times in half a minute."""
    return 3 * (1 + int((time.monotonic() - began) / 30))
