import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import RSAKey
from pydantic import ValidationError
from tests.unit.backends.tokens import Asked, Endpoint, Time, World, answer, endpoint, ready, token, until
from tests.unit.net.upstreams import client

from tollhouse.backends.google import GoogleAuthSpec, google_credential
from tollhouse.core.errors import ConfigError, Failure
from tollhouse.core.spec import Reading

pytestmark = pytest.mark.anyio

CLOUD = "https://www.googleapis.com/auth/cloud-platform"
KEY = RSAKey.generate_key(2048)
OTHER = RSAKey.generate_key(2048)
PEM = KEY.as_pem(private=True).decode()


def service_account(url: str = "https://oauth2.googleapis.com/token", **more: Any) -> dict[str, Any]:
    return {
        "type": "service_account",
        "project_id": "p",
        "private_key_id": "key-1",
        "private_key": PEM,
        "client_email": "gw@p.iam.gserviceaccount.com",
        "token_uri": url,
        **more,
    }


def user(**more: Any) -> dict[str, Any]:
    return {"type": "authorized_user", "client_id": "c", "client_secret": "hush", "refresh_token": "1//r", **more}


def federated(url: str, source: Any, **more: Any) -> dict[str, Any]:
    return {
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/k",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": url + "/sts",
        "credential_source": source,
        **more,
    }


def impersonated(value: str = "as-sa", seconds: float = 3600) -> bytes:
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return answer({"accessToken": value, "expireTime": until.strftime("%Y-%m-%dT%H:%M:%SZ")})


@asynccontextmanager
async def world(it: Endpoint, **fields: Any) -> AsyncIterator[World]:
    if isinstance(fields.get("credentials_json"), dict):
        fields["credentials_json"] = json.dumps(fields["credentials_json"])
    async with client() as asks:
        time = Time()
        credential = google_credential("up", GoogleAuthSpec(**fields), asks, time.clock)
        try:
            yield World(it, credential, time)
        finally:
            await credential.close()


async def test_a_service_account() -> None:
    async with endpoint({"/token": token()}) as up:
        url = up.url + "/token"
        async with world(up, credentials_json=service_account(url), scopes=["s1", "s2"]) as it:
            assert await ready(it.credential) == b"authorization: Bearer tok-1\r\n"
            form = up.asked[0].form
            assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
            proof = jwt.decode(form["assertion"], KEY, algorithms=["RS256"])
            assert proof.header == {"alg": "RS256", "typ": "JWT", "kid": "key-1"}
            claims = proof.claims
            assert claims.pop("exp") - claims["iat"] == 3600
            assert -30 < claims.pop("iat") - time.time() <= -10 + 1
            assert claims == {"iss": "gw@p.iam.gserviceaccount.com", "scope": "s1 s2", "aud": url}


async def test_a_file_is_read_again_when_it_is_renewed(tmp_path: Path) -> None:
    count = 0

    def said(asked: Asked) -> bytes:
        nonlocal count
        count += 1
        return token(f"tok-{count}", 1000)

    file = tmp_path / "sa.json"
    async with endpoint({"/token": said}) as up:
        account = service_account(up.url + "/token")
        file.write_text(json.dumps(account))
        async with world(up, credentials=str(file)) as it:
            it.credential.start()
            await until(lambda: it.credential.settled)
            file.write_text(json.dumps(account | {"private_key": OTHER.as_pem(private=True).decode()}))
            await it.time.pass_(800)
            await until(lambda: b"tok-2" in it.credential.lines)
            jwt.decode(up.asked[1].form["assertion"], OTHER, algorithms=["RS256"])
            file.write_text("{")
            await it.time.pass_(100)
            assert it.credential.refused(it.credential.lines, 401, None)
            assert b"tok-2" in await ready(it.credential)  # a bad file does not take away what is good
            file.write_text(json.dumps(account))
            await it.time.pass_(100)
            await until(lambda: b"tok-3" in it.credential.lines)
            jwt.decode(up.asked[2].form["assertion"], KEY, algorithms=["RS256"])


async def test_a_user() -> None:
    async with endpoint({"/token": token("u", 3599)}) as up:
        fields = user(token_uri=up.url + "/token", quota_project_id="billing-1")
        async with world(up, credentials_json=fields) as it:
            lines = await ready(it.credential)
            assert lines == b"authorization: Bearer u\r\nx-goog-user-project: billing-1\r\n"
            assert up.asked[0].form == {
                "grant_type": "refresh_token", "client_id": "c", "client_secret": "hush", "refresh_token": "1//r"
            }  # fmt: skip


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("place", ["file", "url"])
async def test_a_federated_identity(tmp_path: Path, form: str, place: str) -> None:
    subject = "sub-1" if form == "text" else json.dumps({"id_token": "sub-1", "other": 1})
    file = tmp_path / "subject"
    file.write_text(subject + "\n")
    async with endpoint({"/sts": token("sts"), "/subject": answer(subject.encode())}) as up:
        source: dict[str, Any] = {"file": str(file)} if place == "file" else {
            "url": up.url + "/subject?resource=1", "headers": {"Metadata": "True"}
        }  # fmt: skip
        if form == "json":
            source["format"] = {"type": "json", "subject_token_field_name": "id_token"}
        async with world(up, credentials_json=federated(up.url, source)) as it:
            assert await ready(it.credential) == b"authorization: Bearer sts\r\n"
            if place == "url":
                assert up.asked[0].headers["metadata"] == "True"
            asked = up.asked[-1].form
            assert asked == {
                "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
                "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/k",
                "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
                "scope": CLOUD,
                "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
                "subject_token": "sub-1",
            }


async def test_a_projected_token_rotates(tmp_path: Path) -> None:
    file = tmp_path / "subject"
    file.write_text("sub-1")

    def said(asked: Asked) -> bytes:
        return token("for-" + asked.form["subject_token"], 1000)

    async with endpoint({"/sts": said}) as up, world(up, credentials_json=federated(up.url, {"file": str(file)})) as it:
        assert b"for-sub-1" in await ready(it.credential)
        file.write_text("sub-2")
        await it.time.pass_(100)
        assert it.credential.refused(it.credential.lines, 401, None)
        assert b"for-sub-2" in await ready(it.credential)


async def test_a_federated_identity_impersonates(tmp_path: Path) -> None:
    file = tmp_path / "subject"
    file.write_text("sub-1")
    async with endpoint({"/sts": token("sts"), "/as": impersonated(seconds=1800)}) as up:
        fields = federated(
            up.url,
            {"file": str(file)},
            service_account_impersonation_url=up.url + "/as",
            service_account_impersonation={"token_lifetime_seconds": 1800},
            workforce_pool_user_project="wp",
        )
        async with world(up, credentials_json=fields, scopes=["s1"]) as it:
            assert await ready(it.credential) == b"authorization: Bearer as-sa\r\n"
            exchange, generate = up.asked
            assert exchange.form["scope"] == CLOUD
            assert json.loads(exchange.form["options"]) == {"userProject": "wp"}
            assert generate.headers["authorization"] == "Bearer sts"
            assert json.loads(generate.body) == {"scope": ["s1"], "lifetime": "1800s", "delegates": []}
            assert 1750 < it.credential.ends - it.time.now < 1800


async def test_an_impersonated_account_with_a_source() -> None:
    async with endpoint({"/token": token("own"), "/as": impersonated()}) as up:
        fields = {
            "type": "impersonated_service_account",
            "service_account_impersonation_url": up.url + "/as",
            "delegates": ["d@p.iam.gserviceaccount.com"],
            "source_credentials": user(token_uri=up.url + "/token"),
        }
        async with world(up, credentials_json=fields) as it:
            assert await ready(it.credential) == b"authorization: Bearer as-sa\r\n"
            assert up.asked[1].headers["authorization"] == "Bearer own"
            assert json.loads(up.asked[1].body)["delegates"] == ["d@p.iam.gserviceaccount.com"]


async def test_the_metadata_server() -> None:
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    fields = {"access_token": "vm", "expires_in": 3000, "token_type": "Bearer"}
    said = answer(fields, 200, b"Metadata-Flavor: Google\r\n")
    async with endpoint({path: said}) as up, world(up, metadata=True, metadata_url=up.url) as it:
        assert await ready(it.credential) == b"authorization: Bearer vm\r\n"
        assert up.asked[0].headers["metadata-flavor"] == "Google"
        assert up.asked[0].query == {"scopes": CLOUD}


async def test_what_only_looks_like_a_metadata_server() -> None:
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    async with endpoint({path: token("evil")}) as up, world(up, metadata=True, metadata_url=up.url) as it:
        with pytest.raises(Failure) as failure:
            await ready(it.credential)
        assert "lacks metadata-flavor" in failure.value.detail


@pytest.mark.parametrize(
    "said",
    [
        answer({"accessToken": "x"}),
        answer({"accessToken": "x", "expireTime": "soon"}),
        answer({"expireTime": "2999-01-01T00:00:00Z"}),
        answer({"error": {"status": "PERMISSION_DENIED", "message": "own-token-of-the-caller is no good"}}, 403),
        pytest.param(impersonated(seconds=-5), id="expired"),
        answer(b"[]"),
    ],
)
async def test_an_impersonation_that_fails(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with endpoint({"/token": token("own-token-of-the-caller"), "/as": said}) as up:
        fields = {
            "type": "impersonated_service_account",
            "service_account_impersonation_url": up.url + "/as",
            "source_credentials": user(token_uri=up.url + "/token"),
        }
        async with world(up, credentials_json=fields) as it:
            with pytest.raises(Failure) as failure:
                await ready(it.credential)
            assert failure.value.status == 503
            assert "own-token" not in caplog.text + failure.value.detail
            assert "Traceback" not in caplog.text


async def test_secrets_are_not_repeated(caplog: pytest.LogCaptureFixture) -> None:
    def echo(asked: Asked) -> bytes:
        return answer({"error": "invalid_grant", "error_description": "you sent " + asked.body.decode()}, 400)

    async with endpoint({"/token": echo}) as up:
        for fields in (service_account(up.url + "/token"), user(token_uri=up.url + "/token")):
            async with world(up, credentials_json=fields) as it:
                with pytest.raises(Failure) as failure:
                    await ready(it.credential)
                text = caplog.text + failure.value.detail + repr(it.credential)
                assert "invalid_grant" in text
                assert "hush" not in text
                assert "eyJ" not in text
                assert "PRIVATE" not in text


BAD = [
    ("{", "not JSON"),
    ("[]", "not a JSON object"),
    ({}, "`type` must be"),
    ({"type": "gdch_service_account"}, "`type` must be"),
    (service_account(client_email=None), "client_email"),
    (service_account(private_key=None), "private_key"),
    (service_account(private_key="x"), "private_key in .* has no PEM"),
    (service_account(private_key_id=5), "private_key_id"),
    (service_account("http://example.com/token"), "token_uri .*https only"),
    (service_account("nowhere"), "not a URL"),
    (user(refresh_token=""), "refresh_token"),
    (user(quota_project_id="a\r\nb"), "quota_project_id"),
    (federated("http://127.0.0.1:1", None), "credential_source"),
    (federated("http://example.com", {"file": "/x"}), "token_url .*https only"),
    (federated("https://x", {"environment_id": "aws1"}), "not supported here"),
    (federated("https://x", {"executable": {"command": "x"}}), "not supported here"),
    (federated("https://x", {"file": 5}), "not the name of a file"),
    (federated("https://x", {"url": "http://10.0.0.1/x"}), "https only"),
    (federated("https://x", {"url": "https://x", "headers": {"A": "b\r\nc"}}), "cannot be sent"),
    (federated("https://x", {"url": "https://x", "headers": {"Host": "b"}}), "cannot be sent"),
    (federated("https://x", {"file": "/x", "format": {"type": "xml"}}), "text or json"),
    (federated("https://x", {"file": "/x", "format": {"type": "json"}}), "subject_token_field_name"),
    (federated("https://x", {"file": "/x"}, service_account_impersonation_url="http://a/"), "https only"),
    (federated("https://x", {"file": "/x"}, service_account_impersonation_url="https://a/",
               service_account_impersonation={"token_lifetime_seconds": 5}), "from 600"),
    ({"type": "impersonated_service_account"}, "source_credentials"),
    ({"type": "impersonated_service_account",
      "source_credentials": {"type": "impersonated_service_account"}}, "source_credentials"),
    ({"type": "impersonated_service_account", "source_credentials": user(),
      "service_account_impersonation_url": "https://a/", "delegates": [5]}, "delegates"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "says"), BAD)
def test_credential_files_that_cannot_be_used(fields: Any, says: str, tmp_path: Path) -> None:
    text = fields if isinstance(fields, str) else json.dumps(fields)
    with pytest.raises(ValidationError, match=says) as error:
        GoogleAuthSpec(credentials_json=text)
    assert "hush" not in str(error.value)
    assert "BEGIN" not in str(error.value)
    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(ValidationError, match=says):
        GoogleAuthSpec.model_validate({"credentials": "c.json"}, context=Reading(str(tmp_path)))


async def test_a_key_that_is_none_shows_when_it_is_made() -> None:
    fields = service_account(private_key="-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    spec = GoogleAuthSpec(credentials_json=json.dumps(fields))
    async with client() as asks:
        with pytest.raises(ConfigError, match=r"^providers\.up\.auth: .* is not an RSA private key"):
            google_credential("up", spec, asks, Time().clock)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "name one source"),
        ({"metadata": True, "credentials_json": "{}"}, "name one source"),
        ({"credentials_json": json.dumps(user()), "metadata_url": "http://x"}, "no effect"),
        ({"metadata": True, "metadata_url": "http://x/y"}, "no path"),
        ({"metadata": True, "impersonate": "who"}, "match"),
        ({"metadata": True, "impersonate": "a@b/c"}, "match"),
        ({"metadata": True, "scopes": []}, "at least 1"),
        ({"metadata": True, "scopes": ["a b"]}, "item of its own"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        GoogleAuthSpec(**fields)


async def test_impersonation_from_the_configuration() -> None:
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    fields = {"access_token": "vm-own-token", "expires_in": 3000}
    async with endpoint({path: answer(fields, 200, b"metadata-flavor: Google\r\n")}) as up, client() as asks:
        spec = GoogleAuthSpec(metadata=True, metadata_url=up.url, impersonate="gw@p.iam.gserviceaccount.com")
        credential = google_credential("up", spec, asks, Time().clock, proxy="http://127.0.0.1:1")
        with pytest.raises(Failure):  # Google's own address is asked through the proxy, which is not there
            await ready(credential)
        assert len(up.asked) == 1
        await credential.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
GOOD = [
    service_account(),
    user(),
    federated("https://x", {"file": "/x", "format": {"type": "json", "subject_token_field_name": "a"}}),
    federated("https://x", {"url": "https://x", "headers": {"a": "b"}}, service_account_impersonation_url="https://y"),
]


@given(st.sampled_from(GOOD), st.data())
def test_no_file_is_another_exception(fields: dict[str, Any], data: st.DataObject) -> None:
    fields = json.loads(json.dumps(fields))
    place = fields
    if isinstance(fields.get("credential_source"), dict) and data.draw(st.booleans()):
        place = fields["credential_source"]
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    try:
        GoogleAuthSpec(credentials_json=json.dumps(fields))
    except ValidationError:
        pass
