import base64
import hashlib
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from pydantic import ValidationError
from tests.unit.backends.tokens import Asked, Time, World, answer, endpoint, ready, token, until
from tests.unit.net.upstreams import client

from tollhouse.backends.entra import EntraAuthSpec, entra_credential
from tollhouse.core.errors import ConfigError, Failure
from tollhouse.core.spec import Reading

pytestmark = pytest.mark.anyio

PATH = "/tenant-1/oauth2/v2.0/token"
SCOPE = "https://cognitiveservices.azure.com/.default"
WHO = {"tenant": "tenant-1", "client_id": "app-1"}


@asynccontextmanager
async def world(answers: dict[str, Any], env: dict[str, str] | None = None, **fields: Any) -> AsyncIterator[World]:
    async with endpoint(answers) as it, client() as asks:
        time = Time()
        if not fields.get("managed_identity"):
            fields.setdefault("authority", it.url)
        elif fields.get("metadata_url") == "here":
            fields["metadata_url"] = it.url
        env = {name: value.replace("HERE", it.url) for name, value in (env or {}).items()}
        credential = entra_credential("up", EntraAuthSpec(**fields), asks, time.clock, env=env)
        try:
            yield World(it, credential, time)
        finally:
            await credential.close()


class Pair:
    """A certificate, its key and their files."""

    def __init__(self, directory: Path, number: int) -> None:
        self.key = RSAKey.generate_key(2048)
        pem = self.key.as_pem(private=True).decode()
        self.der = b"certificate %d" % number  # only its digest is used
        certificate = ssl.DER_cert_to_PEM_cert(self.der)
        self.both = directory / f"both{number}.pem"
        self.both.write_text(pem + certificate + ssl.DER_cert_to_PEM_cert(b"an authority's"))
        self.certificate = directory / f"certificate{number}.pem"
        self.certificate.write_text(certificate)
        self.only_key = directory / f"key{number}.pem"
        self.only_key.write_text(pem)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Pair]:
    directory = tmp_path_factory.mktemp("pairs")
    return [Pair(directory, number) for number in range(2)]


async def test_a_secret() -> None:
    async with world({PATH: token(ext_expires_in=3600)}, **WHO, client_secret="s~cret.8Q") as it:
        assert await ready(it.credential) == b"authorization: Bearer tok-1\r\n"
        assert it.endpoint.asked[0].form == {
            "grant_type": "client_credentials", "client_id": "app-1", "scope": SCOPE, "client_secret": "s~cret.8Q"
        }  # fmt: skip


@pytest.mark.parametrize("apart", [False, True])
async def test_a_certificate(pairs: list[Pair], apart: bool) -> None:
    pair = pairs[0]
    files = (
        {"certificate": str(pair.certificate), "key": str(pair.only_key)} if apart else {"certificate": str(pair.both)}
    )
    async with world({PATH: token()}, **WHO, **files, scope="api://x/.default") as it:
        await ready(it.credential)
        form = it.endpoint.asked[0].form
        assert form["client_assertion_type"] == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        assert form["scope"] == "api://x/.default"
        assert "client_secret" not in form
        proof = jwt.decode(form["client_assertion"], pair.key, algorithms=["PS256"])
        digest = base64.urlsafe_b64encode(hashlib.sha256(pair.der).digest()).rstrip(b"=").decode()
        assert proof.header == {"alg": "PS256", "typ": "JWT", "x5t#S256": digest}
        claims = proof.claims
        assert claims["aud"] == it.endpoint.url + PATH
        assert claims["iss"] == claims["sub"] == "app-1"
        assert claims["nbf"] == claims["iat"] <= time.time()
        assert 200 < claims["exp"] - time.time() <= 300
        assert len(claims["jti"]) > 16


async def test_another_certificate_is_seen(pairs: list[Pair], tmp_path: Path) -> None:
    file = tmp_path / "both.pem"
    file.write_bytes(pairs[0].both.read_bytes())
    async with world({PATH: token()}, **WHO, certificate=str(file)) as it:
        await ready(it.credential)
        file.write_bytes(pairs[1].both.read_bytes())
        await it.time.pass_(100)
        assert it.credential.refused(it.credential.lines, 401, None)
        await ready(it.credential)
        first, second = (asked.form["client_assertion"] for asked in it.endpoint.asked)
        jwt.decode(first, pairs[0].key, algorithms=["PS256"])
        jwt.decode(second, pairs[1].key, algorithms=["PS256"])


async def test_workload_identity(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("fed-1\n")
    said = {PATH: lambda asked: token("for-" + asked.form["client_assertion"], 1000)}
    async with world(said, **WHO, token_file=str(file)) as it:
        it.credential.start()
        await until(lambda: it.credential.settled)
        assert it.credential.lines == b"authorization: Bearer for-fed-1\r\n"
        file.write_text("fed-2\n")
        await it.time.pass_(800)
        await until(lambda: b"fed-2" in it.credential.lines)
        file.unlink()
        await it.time.pass_(100)
        assert it.credential.refused(it.credential.lines, 401, None)
        assert b"fed-2" in await ready(it.credential)


async def test_the_identity_of_a_machine() -> None:
    fields = {"access_token": "vm", "expires_in": "86399", "expires_on": "1", "token_type": "Bearer"}
    answers = {"/metadata/identity/oauth2/token": answer(fields)}
    async with world(answers, managed_identity=True, metadata_url="here", client_id="mi-1") as it:
        assert await ready(it.credential) == b"authorization: Bearer vm\r\n"
        (asked,) = it.endpoint.asked
        assert asked.headers["metadata"] == "true"
        assert asked.query == {
            "api-version": "2018-02-01", "resource": "https://cognitiveservices.azure.com", "client_id": "mi-1"
        }  # fmt: skip


async def test_the_identity_of_an_app() -> None:
    fields = {"access_token": "app", "expires_on": str(int(time.time()) + 5000)}
    env = {"IDENTITY_ENDPOINT": "HERE/msi/token", "IDENTITY_HEADER": "proof-1"}
    async with world({"/msi/token": answer(fields)}, env, managed_identity=True) as it:
        assert await ready(it.credential) == b"authorization: Bearer app\r\n"
        (asked,) = it.endpoint.asked
        assert asked.headers["x-identity-header"] == "proof-1"
        assert asked.query == {"api-version": "2019-08-01", "resource": "https://cognitiveservices.azure.com"}
        assert 4900 < it.credential.ends - it.time.now < 5000


async def test_errors_have_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    def echo(asked: Asked) -> bytes:
        text = f"AADSTS7000215: Invalid client secret provided: {asked.form['client_secret']}. Trace ID: 1"
        return answer({"error": "invalid_client", "error_description": text, "error_codes": [7000215]}, 401)

    async with world({PATH: echo}, **WHO, client_secret="s~cret.8Q") as it:
        with pytest.raises(Failure) as failure:
            await ready(it.credential)
        assert "AADSTS7000215" in failure.value.detail
        assert "AADSTS7000215" in caplog.text
        for text in (caplog.text, failure.value.detail, failure.value.message, repr(it.credential)):
            assert "s~cret" not in text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "name one proof"),
        ({**WHO}, "name one proof"),
        ({**WHO, "client_secret": "hidden", "token_file": "/x"}, "here are client_secret, token_file"),
        ({"client_secret": "hidden"}, "`tenant` and `client_id`"),
        ({"tenant": "a/b", "client_id": "c", "client_secret": "hidden"}, "match"),
        ({**WHO, "client_secret": "hidden", "key": "/x"}, "no effect"),
        ({**WHO, "client_secret": "hidden", "metadata_url": "http://x"}, "no effect"),
        ({**WHO, "client_secret": "hidden", "authority": "https://x/y"}, "alone"),
        ({**WHO, "client_secret": "hidden", "scope": "a b"}, "item of its own"),
        ({"managed_identity": True, "tenant": "t"}, "no effect"),
        ({"managed_identity": True, "scope": "https://x/read"}, "end `scope`"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as error:
        EntraAuthSpec(**fields)
    assert "hidden" not in str(error.value)


def test_certificate_files_that_cannot_be_used(pairs: list[Pair]) -> None:
    pair = pairs[0]

    def read(**files: str) -> EntraAuthSpec:
        return EntraAuthSpec.model_validate({**WHO, **files}, context=Reading(str(pair.both.parent)))

    assert read(certificate="both0.pem").certificate == str(pair.both)
    for files, says in (
        ({"certificate": "none.pem"}, "no file"),
        ({"certificate": "key0.pem"}, "no PEM certificate"),
        ({"certificate": "certificate0.pem"}, "no PEM private key"),
        ({"certificate": "both0.pem", "key": "certificate0.pem"}, "no PEM private key"),
    ):
        with pytest.raises(ValidationError, match=says):
            read(**files)


async def test_a_key_that_is_none_shows_when_it_is_made(pairs: list[Pair], tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    spec = EntraAuthSpec(**WHO, certificate=str(pairs[0].certificate), key=str(key))
    async with client() as asks:
        with pytest.raises(ConfigError, match=r"^providers\.up\.auth: .* is not an RSA private key"):
            entra_credential("up", spec, asks, Time().clock)
