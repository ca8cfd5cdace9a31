"""Clients prove who they are by the method they are registered with, and by no other (attack 44)."""

import secrets
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from tests.fixtures.issuer import MCP, SECRET, Node, basic, claims_of, dpop_proof, issuing, new_key, signed

from tollhouse.wire.oauth import ASSERTION_TYPE

pytestmark = pytest.mark.anyio
KEY = new_key()
GRANTS = ["client_credentials"]


def certificate(name: str) -> bytes:
    """Self-signed, in DER."""
    key = generate_private_key(SECP256R1())
    subject = x509.Name.from_rfc4514_string(name)
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1))
    return made.sign(key, SHA256()).public_bytes(Encoding.DER)


MINE, OTHER = certificate("CN=agent,O=acme"), certificate("CN=agent,O=evil")
CLIENTS: list[dict[str, Any]] = [
    {"id": "any", "secret": SECRET, "grants": GRANTS},
    {"id": "basic", "secret": SECRET, "auth_method": "client_secret_basic", "grants": GRANTS},
    {"id": "post", "secret_hash": sha256(SECRET.encode()).hexdigest(), "auth_method": "client_secret_post",
     "grants": GRANTS},
    {"id": "signing", "jwks": {"keys": [KEY.jwk]}, "grants": GRANTS},
    {"id": "older", "jwks": {"keys": [KEY.jwk]}, "assertion_audience": "token_endpoint", "grants": GRANTS},
    {"id": "named", "tls_subject": "CN=agent,O=acme", "grants": GRANTS},
    {"id": "pinned", "tls_thumbprint": sha256(MINE).hexdigest(), "grants": GRANTS},
    {"id": "open", "redirect_uris": ["https://app.example.com/cb"]},
    {"id": "odd:%+", "secret": SECRET, "grants": GRANTS},
]  # fmt: skip


async def ask(node: Node, headers: Any = None, **form: str) -> tuple[int, dict[str, Any]]:
    response = await node.token("", headers, grant_type="client_credentials", resource=MCP, **form)
    return response.status_code, response.json()


@pytest.mark.parametrize(
    ("client", "by_basic", "by_post"),
    [("any", 200, 200), ("basic", 200, 401), ("post", 401, 200), ("odd:%+", 200, 200), ("signing", 401, 401),
     ("named", 401, 401), ("open", 401, 401), ("unknown", 401, 401)],
)  # fmt: skip
async def test_a_secret_comes_the_way_that_was_registered(client: str, by_basic: int, by_post: int) -> None:
    async with issuing(clients=CLIENTS) as node:
        status, answer = await ask(node, {"authorization": basic(client)})
        assert status == by_basic
        if status == 401:
            assert answer["error"] == "invalid_client"
        assert (await ask(node, client_id=client, client_secret=SECRET))[0] == by_post
        assert (await ask(node, {"authorization": basic(client, SECRET[:-1] + "x")}))[0] == 401
        assert (await ask(node, client_id=client))[0] == (400 if client == "open" else 401)


async def test_unknown_clients_and_wrong_secrets_hear_the_same() -> None:
    async with issuing(clients=CLIENTS) as node:
        answers = [
            await ask(node, {"authorization": basic("any", "wrong-wrong-wrong-wrong-wrong-wrong")}),
            await ask(node, {"authorization": basic("nobody")}),
            await ask(node, client_id="signing"),
            await ask(node, client_id="nobody"),
        ]
        assert all(answer == answers[0] for answer in answers)


def assertion(node: Node, client: str = "signing", **changed: Any) -> dict[str, str]:
    now = int(node.parts.now())
    claims = {
        "iss": client,
        "sub": client,
        "aud": node.url,
        "jti": secrets.token_hex(8),
        "iat": now,
        "exp": now + 120,
        **changed,
    }
    typ = claims.pop("typ", "JWT")
    token = signed(changed.pop("key", KEY), {k: v for k, v in claims.items() if v is not None and k != "key"}, typ)
    return {"client_assertion": token, "client_assertion_type": ASSERTION_TYPE}


async def test_a_signature_proves_who_it_is() -> None:
    async with issuing(clients=CLIENTS) as node:
        assert (await ask(node, **assertion(node)))[0] == 200
        assert (await ask(node, **assertion(node, typ="client-authentication+jwt")))[0] == 200
        older = assertion(node, "older", aud=f"{node.url}/oauth/token")
        assert (await ask(node, client_id="older", **older))[0] == 200


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": ["{url}"]},
        {"aud": ["{url}", "https://other.example.com"]},
        {"aud": "https://other.example.com"},
        {"aud": "{url}/"},
        {"aud": "{url}/oauth/token"},
        {"aud": None},
        {"exp": 1},
        {"exp": None},
        {"exp": 10**10},
        {"jti": None},
        {"jti": ""},
        {"jti": 5},
        {"typ": "at+jwt"},
        {"typ": "oauth-id-jag+jwt"},
        {"nbf": 10**10},
        {"key": new_key()},
    ],
)
async def test_an_assertion_that_does_not_fit(changed: dict[str, Any]) -> None:
    """Attack 44: above all one whose audience is a list, which another server could use against us."""
    async with issuing(clients=CLIENTS) as node:

        def here(value: Any) -> Any:
            if isinstance(value, list):
                return [here(one) for one in value]
            return value.replace("{url}", node.url) if isinstance(value, str) else value

        status, answer = await ask(node, **assertion(node, **{name: here(value) for name, value in changed.items()}))
        assert (status, answer["error"]) == (401, "invalid_client")


async def test_an_assertion_is_good_once() -> None:
    """Attack 44."""
    async with issuing(clients=CLIENTS) as node:
        form = assertion(node)
        assert (await ask(node, **form))[0] == 200
        assert (await ask(node, **form))[0] == 401


@pytest.mark.parametrize(
    ("client", "shown", "status"),
    [("named", MINE, 200), ("named", OTHER, 401), ("named", b"", 401), ("named", b"junk", 401), ("pinned", MINE, 200),
     ("pinned", OTHER, 401), ("pinned", b"", 401)],
)  # fmt: skip
async def test_a_certificate_proves_who_it_is_and_binds_the_token(client: str, shown: bytes, status: int) -> None:
    async with issuing(clients=CLIENTS, certificate=[shown]) as node:
        got, answer = await ask(node, client_id=client)
        assert got == status
        if got == 200:
            bound = claims_of(answer["access_token"])["cnf"]
            assert bound == {"x5t#S256": urlsafe_b64encode(sha256(shown).digest()).decode().rstrip("=")}


async def test_who_fails_often_waits_and_others_do_not() -> None:
    async with issuing(clients=CLIENTS) as node:
        wrong = {"authorization": basic("any", "wrong-wrong-wrong-wrong-wrong-wrong")}
        statuses = [(await ask(node, wrong))[0] for _ in range(12)]
        assert statuses[:10] == [401] * 10
        assert statuses[10:] == [429] * 2
        assert (await ask(node, {"authorization": basic("basic")}))[0] == 200
        node.wait(7)
        assert (await ask(node, {"authorization": basic("any")}))[0] == 200


async def test_an_address_that_tries_many_names_waits() -> None:
    async with issuing(clients=CLIENTS) as node:
        statuses = [(await ask(node, client_id=f"nobody-{n}"))[0] for n in range(400)]
        assert statuses[:300] == [401] * 300
        assert 429 in statuses[300:]  # one comes back every fifth of a second


async def test_tokens_of_a_bound_client_need_a_key() -> None:
    clients = [{**CLIENTS[0], "dpop_bound": True}]
    async with issuing(clients=clients) as node:
        shown = {"authorization": basic("any")}
        status, answer = await ask(node, shown)
        assert (status, answer["error"]) == (400, "invalid_dpop_proof")
        proof = dpop_proof(KEY, node, "token")
        status, answer = await ask(node, {**shown, "dpop": proof})
        assert (status, answer["token_type"]) == (200, "DPoP")
        assert claims_of(answer["access_token"])["cnf"].keys() == {"jkt"}
        status, answer = await ask(node, {**shown, "dpop": proof})
        assert (status, answer["error"]) == (400, "invalid_dpop_proof")
        for changed in ({"htu": f"{node.url}/oauth/revoke"}, {"htm": "GET"}, {"iat": 1}, {"jti": ""}):
            status, answer = await ask(node, {**shown, "dpop": dpop_proof(KEY, node, "token", **changed)})
            assert (status, answer["error"]) == (400, "invalid_dpop_proof")


async def test_a_nonce_that_is_shown_must_be_good() -> None:
    async with issuing(clients=CLIENTS) as node:
        shown = {"authorization": basic("any")}
        form = {"grant_type": "client_credentials", "resource": MCP}
        old = await node.token("", {**shown, "dpop": dpop_proof(KEY, node, "token", nonce="old")}, **form)
        assert (old.status_code, old.json()["error"]) == (400, "use_dpop_nonce")
        good = dpop_proof(KEY, node, "token", nonce=old.headers["dpop-nonce"])
        assert (await node.token("", {**shown, "dpop": good}, **form)).status_code == 200
