"""How issuers elsewhere know us: a key that signs, and a token of our own that says who acts."""

import json
from base64 import urlsafe_b64decode
from pathlib import Path
from time import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from joserfc import jwt
from joserfc.jwk import KeySet, import_key
from tests.fixtures.foreign_issuer import Asked, foreign_issuer
from tests.fixtures.issuer import CLIENTS, MCP, claims_of, issuing
from tests.unit.backends.exchange.test_client import ALONE, GOOD, SHOP, TARGET, TOKEN, ada, client, refused, says

from tollhouse.backends.exchange import ElsewhereSettings
from tollhouse.config.parse import parse
from tollhouse.core.errors import ConfigError
from tollhouse.core.identity import Target
from tollhouse.gateway.build import validate
from tollhouse.wire.jwt import signer_of

pytestmark = pytest.mark.anyio

EC = ec.generate_private_key(ec.SECP256R1())
KEYS: dict[str, Any] = {
    "ES256": EC,
    "RS256": rsa.generate_private_key(65537, 2048),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
OTHER = [ec.generate_private_key(ec.SECP384R1()), EC.public_key(), b"", b"no key", None]
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def pem(key: Any, password: str = "") -> bytes:
    if isinstance(key, bytes):
        return key
    if not hasattr(key, "private_bytes"):
        return bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    hidden = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden))


@pytest.mark.parametrize("alg", KEYS)
async def test_a_key_signs_for_the_issuer_once_and_is_not_sent(alg: str) -> None:
    async with foreign_issuer(says(GOOD)) as there, client(there.url, client_secret="", key=pem(KEYS[alg])) as issuer:
        for scope in ("a", "b"):
            await issuer.exchanged(ada(), Target(SHOP, (scope,), 5.0, True))
    jtis = set()
    for asked in there.asked:
        assert "authorization" not in asked.headers
        assert (asked.form["client_id"], asked.form["client_assertion_type"]) == ("gateway", ASSERTION)
        assert "client_secret" not in asked.form
        said = asked.form["client_assertion"]
        kind: Any = {"EdDSA": "OKP", "RS256": "RSA"}.get(alg, "EC")
        public = import_key(pem(KEYS[alg].public_key()), kind)
        claims = jwt.decode(said, public, algorithms=[alg]).claims
        assert (claims["iss"], claims["sub"], claims["aud"]) == ("gateway", "gateway", there.url)
        assert 0 < claims["exp"] - time() <= 60
        jtis.add(claims["jti"])
    assert len(jtis) == 2


async def test_its_name_there_and_older_issuers() -> None:
    more: dict[str, Any] = {"client_secret": "", "key": pem(EC), "kid": "key-7", "to_endpoint": True}
    async with foreign_issuer(says(GOOD)) as there, client(there.url, **more) as issuer:
        await issuer.exchanged(ada(), TARGET)
    said = there.forms[0]["client_assertion"]
    assert claims_of(said)["aud"] == f"{there.url}/token"
    head = said.split(".")[0]
    assert json.loads(urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"] == "key-7"


@pytest.mark.parametrize("key", OTHER, ids=lambda key: type(key).__name__)
def test_what_is_no_key_to_sign_with(key: Any) -> None:
    given = pem(EC, "password") if key is None else pem(key)
    with pytest.raises(ValueError, match="not a private key in PEM") as caught:
        signer_of(given)
    assert caught.value.__cause__ is None
    assert "password" not in str(caught.value).replace("without a password", "")


def test_a_key_is_in_no_repr() -> None:
    settings = ElsewhereSettings("https://a.example", "rfc8693", "", "gateway", "", key=pem(EC))
    assert "PRIVATE" not in repr(settings)


# ---- who acts


class Two:
    """Answers tokens of ours, and exchanges."""

    def __init__(self, life: int = 60) -> None:
        self.life = life
        self.given = 0
        self.refuses = False

    def __call__(self, asked: Asked) -> Any:
        if asked.form["grant_type"] == "client_credentials":
            self.given += 1
            own = {"access_token": f"own-{self.given}", "token_type": "Bearer", "expires_in": self.life}
            return 200, own, {}
        if self.refuses:
            return 400, {"error": "invalid_request"}, {}
        return 200, GOOD, {}


async def test_our_own_token_says_who_acts_and_is_got_once() -> None:
    async with foreign_issuer(Two()) as there, client(there.url, actor=True) as issuer:
        for number in range(3):
            await issuer.exchanged(ada(), Target(SHOP, (f"s{number}",), 5.0, True))
        await issuer.exchanged(ada(), ALONE)
    own, *exchanges, alone = there.forms
    assert own == {"grant_type": "client_credentials"}
    for form in exchanges:
        assert (form["actor_token"], form["actor_token_type"]) == ("own-1", TOKEN)
    assert not {"actor_token", "actor_token_type"} & alone.keys()  # nobody is named there


async def test_it_is_renewed_before_it_ends_and_after_a_refusal() -> None:
    there_says = Two()
    async with foreign_issuer(there_says) as there, client(there.url, actor=True) as issuer:
        await issuer.exchanged(ada(), TARGET)
        now = [time()]
        issuer._now = issuer._actor._now = lambda: now[0]  # type: ignore[union-attr] # a clock
        for later, count in ((47.0, 1), (49.0, 2)):
            now[0] = time() + later
            await issuer.exchanged(ada(), Target(SHOP, (f"s{later}",), 5.0, True))
            assert there_says.given == count
        there_says.refuses = True
        assert (await refused(issuer, ada())).status == 401
        there_says.refuses = False
        await issuer.exchanged(ada(), TARGET)
    assert there.forms[-1]["actor_token"] == "own-3"


@pytest.mark.parametrize(
    ("status", "own"),
    [
        (401, {"error": "invalid_client"}), (500, {}), (200, {}),
        (200, {"access_token": "a b", "token_type": "Bearer"}),
        (200, {"access_token": "x", "token_type": "DPoP"}), (200, GOOD | {"expires_in": -1}), (200, b"no"),
    ],
)  # fmt: skip
async def test_without_one_nothing_is_exchanged(status: int, own: Any) -> None:
    async with foreign_issuer(says(own, status)) as there, client(there.url, actor=True) as issuer:
        assert (await refused(issuer, ada())).status == 503
    assert [form["grant_type"] for form in there.forms] == ["client_credentials"]


async def test_our_own_auth_provider_knows_both() -> None:
    """By the same key: our token, which names us as who acts, and the exchange."""
    signer = signer_of(pem(EC))
    own = {
        "id": "gateway", "jwks": {"keys": [signer.jwk]}, "grants": ["token_exchange", "client_credentials"],
        "serves": [MCP], "audiences": [MCP],
        "token_exchange": {"targets": [{"audience": SHOP, "scopes": {"read": ["mcp"]}}]},
    }  # fmt: skip
    async with issuing(clients=[*CLIENTS[:3], own]) as node:
        form = {"grant_type": "client_credentials", "resource": MCP, "scope": "mcp"}
        given = (await node.token("robot", **form)).json()["access_token"]
        subject = await node.issuer.tokens.read(given.encode())
        assert subject is not None
        subject.token = given.encode()
        async with client(node.url, token_endpoint="", client_secret="", key=pem(EC), actor=True) as issuer:
            minted = await issuer.exchanged(subject, TARGET)
        keys = KeySet.import_key_set((await node.http.get(f"{node.url}/oauth/jwks")).json())
    said = jwt.decode(minted.token.decode(), keys, algorithms=["ES256"]).claims
    assert said["sub"] == "robot"
    assert said["act"]["sub"] == "gateway"


# ---- how it is configured


CONFIG = """
authenticate: {{jwt: [{{issuer: "https://idp.example.com", audiences: [x], jwks: "http://127.0.0.1:1/keys"}}]}}
mcp: {{servers: {{shop: {{url: "http://127.0.0.1:1/mcp"}}}}}}
exchange: {{issuer: "https://auth.example.com", client_id: gateway, {0}}}
"""


def problem(text: str, where: Path) -> str:
    try:
        validate(parse(CONFIG.format(text), str(where / "t.yaml"), {}).config)
    except ConfigError as error:
        return str(error)
    return ""


def test_settings(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(pem(EC))
    (tmp_path / "none.pem").write_text("no key")
    key = "client_auth: private_key_jwt, client_key: key.pem"
    good = [
        key,
        f"{key}, client_key_id: k1, assertion_audience: token_endpoint, actor_token: true",
        f"{key}, kind: keycloak",
        "client_secret: x, actor_token: true",
    ]
    for text in good:
        assert problem(text, tmp_path) == "", text
    bad = {
        "client_auth: private_key_jwt": "write `client_id` and `client_key`",
        "client_key: key.pem": "write `client_id` and `client_secret`",
        f"{key}, client_secret: x": "`client_secret` has no effect",
        "client_secret: x, client_key_id: k": "`client_key_id` has no effect",
        "client_secret: x, assertion_audience: issuer": "`assertion_audience` has no effect",
        f"{key}, kind: entra_obo": "not for `kind: entra_obo`",
        "client_secret: x, actor_token: true, mode: impersonation": "`actor_token` has no effect",
        "client_secret: x, actor_token: true, kind: keycloak": "`actor_token` has no effect",
        "client_auth: private_key_jwt, client_key: none.pem": "not a private key in PEM",
        "client_auth: private_key_jwt, client_key: not-there.pem": "not-there.pem",
    }
    for text, why in bad.items():
        assert why in problem(text, tmp_path), text
