from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.unit.backends.tokens import Asked, Endpoint, Time, answer, endpoint, ready, until
from tests.unit.net.upstreams import client

from tollhouse.backends.aws import AccessKeys, AWSAuthSpec, _from_xml, _sections, aws_credential, sts_url
from tollhouse.backends.sigv4 import AWSCredentials
from tollhouse.core.clock import FOREVER
from tollhouse.core.errors import Failure

pytestmark = pytest.mark.anyio

ROLE = "arn:aws:iam::123456789012:role/gw"
ACCESS = "AKIAIOSFODNN7EXAMPLE"
IMDS = "/latest/meta-data/iam/security-credentials/"


def expiration(seconds: float = 3600) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def sts(number: str = "1", action: str = "AssumeRole", seconds: float = 3600) -> bytes:
    return answer(
        f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>'
        f"<AssumedRoleUser><Arn>arn</Arn></AssumedRoleUser><Credentials><AccessKeyId>ASIA{number}</AccessKeyId>"
        f"<SecretAccessKey>se/cr+et{number}</SecretAccessKey><SessionToken>tok/en+{number}==</SessionToken>"
        f"<Expiration>{expiration(seconds)}</Expiration></Credentials></{action}Result></{action}Response>".encode()
    )


def document(number: str = "1", seconds: float = 3600, **more: Any) -> bytes:
    return answer(
        {
            "AccessKeyId": f"ASIA{number}",
            "SecretAccessKey": f"secret{number}",
            "Token": f"token{number}",
            "Expiration": expiration(seconds),
            **more,
        }
    )


def machine(keys: bytes) -> dict[str, Any]:
    return {"/latest/api/token": answer(b"imds-session"), IMDS: answer(b"the-role\n"), IMDS + "the-role": keys}


class World:
    def __init__(self, it: Endpoint, credential: AccessKeys, time: Time) -> None:
        self.endpoint = it
        self.credential = credential
        self.time = time

    async def keys(self) -> AWSCredentials:
        await ready(self.credential)
        assert self.credential.value is not None
        return self.credential.value

    async def fails(self) -> Failure:
        with pytest.raises(Failure) as failure:
            await ready(self.credential)
        assert failure.value.status == 503
        return failure.value


@asynccontextmanager
async def world(
    answers: dict[str, Any] | None = None, env: dict[str, str] | None = None, **fields: Any
) -> AsyncIterator[World]:
    async with endpoint(answers or {}) as it, client() as asks:
        time = Time()
        fields.setdefault("sts_url", it.url)
        fields.setdefault("metadata_url", it.url)
        env = {name: value.replace("HERE", it.url) for name, value in (env or {}).items()}
        spec = AWSAuthSpec(**fields)
        credential = aws_credential("up", spec, asks, time.clock, region="eu-west-1", env=env)
        try:
            yield World(it, credential, time)
        finally:
            await credential.close()


async def test_keys_of_the_configuration() -> None:
    async with world(access_key_id=ACCESS, secret_access_key=" wJalr/K7 ") as it:
        keys = await it.keys()
        assert (keys.access_key, keys.secret_key, keys.token) == (ACCESS, "wJalr/K7", "")
        assert it.credential.ends == FOREVER
        assert it.credential.lines == b""
        assert "wJalr" not in repr(keys) + repr(it.credential)
    async with world(access_key_id=ACCESS, secret_access_key="s", session_token="t") as it:
        assert (await it.keys()).token == "t"
        assert it.credential.lines == b"x-amz-security-token: t\r\n"


async def test_the_environment_comes_first() -> None:
    env = {"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
    async with world(machine(document()), env) as it:
        assert await it.keys() == AWSCredentials("AKIAENV", "s", "t")
        assert not it.endpoint.asked
    async with world(machine(document()), {"AWS_ACCESS_KEY_ID": "AKIAENV"}) as it:
        assert "AWS_SECRET_ACCESS_KEY is not" in (await it.fails()).detail
    async with world(source="environment") as it:
        assert "environment" in (await it.fails()).detail


async def test_web_identity(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("web-1")
    env = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(file), "AWS_ROLE_ARN": ROLE, "AWS_ROLE_SESSION_NAME": "me"}

    def said(asked: Asked) -> bytes:
        return sts(asked.form["WebIdentityToken"][-1], "AssumeRoleWithWebIdentity", 1000)

    async with world({"/": said}, env) as it:
        it.credential.start()
        await until(lambda: it.credential.settled)
        assert it.credential.value == AWSCredentials("ASIA1", "se/cr+et1", "tok/en+1==")
        asked = it.endpoint.asked[0]
        assert asked.form == {
            "Action": "AssumeRoleWithWebIdentity", "Version": "2011-06-15", "RoleArn": ROLE, "RoleSessionName": "me",
            "WebIdentityToken": "web-1",
        }  # fmt: skip
        assert "authorization" not in asked.headers
        file.write_text("web-2")
        await it.time.pass_(800)
        await until(lambda: it.credential.value == AWSCredentials("ASIA2", "se/cr+et2", "tok/en+2=="))
    async with world({"/": said}, token_file=str(file), role=ROLE, duration=900.0) as it:
        assert (await it.keys()).access_key == "ASIA2"
        assert it.endpoint.asked[0].form["DurationSeconds"] == "900"
    async with world({"/": said}, {"AWS_WEB_IDENTITY_TOKEN_FILE": str(file)}) as it:
        assert "AWS_ROLE_ARN is not" in (await it.fails()).detail


async def test_a_role_is_assumed_with_a_signed_request() -> None:
    fields = {"access_key_id": ACCESS, "secret_access_key": "s", "role": ROLE, "external_id": "x1"}
    async with world({"/": sts()}, **fields) as it:
        assert (await it.keys()).token == "tok/en+1=="
        (asked,) = it.endpoint.asked
        assert asked.form == {
            "Action": "AssumeRole", "Version": "2011-06-15", "RoleArn": ROLE, "RoleSessionName": "tollhouse",
            "ExternalId": "x1",
        }  # fmt: skip
        proof = asked.headers["authorization"]
        assert proof.startswith(f"AWS4-HMAC-SHA256 Credential={ACCESS}/")
        assert "/eu-west-1/sts/aws4_request, SignedHeaders=content-type;host;x-amz-date, " in proof
        assert asked.headers["host"] == f"127.0.0.1:{it.endpoint.up.port}"


FILES = {
    "config": """
[default]
region = eu-west-1
[profile keys]
aws_access_key_id = AKIACONFIG
aws_secret_access_key = other
s3 =
  max_concurrent_requests = 2
[profile role]
role_arn = arn:aws:iam::1:role/r
source_profile = keys
external_id = e1
duration_seconds = 1200
[profile self]
role_arn = arn:aws:iam::1:role/s
source_profile = self
[profile round]
role_arn = arn:aws:iam::1:role/s
source_profile = about
[profile about]
role_arn = arn:aws:iam::1:role/s
source_profile = round
[profile web]
role_arn = arn:aws:iam::1:role/w
web_identity_token_file = ~/token
[profile machine]
role_arn = arn:aws:iam::1:role/m
credential_source = Ec2InstanceMetadata
[profile odd]
role_arn = arn:aws:iam::1:role/m
credential_source = Moon
[profile mfa]
role_arn = arn:aws:iam::1:role/m
source_profile = keys
mfa_serial = arn:aws:iam::1:mfa/x
[profile "sso one"]
sso_session = s
[profile empty]
""",
    "credentials": """
[default]
aws_access_key_id = AKIADEFAULT
aws_secret_access_key = secret-d
aws_session_token = session-d
[keys]
aws_access_key_id = AKIASHARED
aws_secret_access_key = secret-s
[self]
aws_access_key_id = AKIASELF
aws_secret_access_key = secret-self
""",
}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    (tmp_path / ".aws").mkdir()
    for name, content in FILES.items():
        (tmp_path / ".aws" / name).write_text(content)
    (tmp_path / "token").write_text("web-7")
    return {"HOME": str(tmp_path)}


async def test_profiles(home: dict[str, str]) -> None:
    async with world({}, home) as it:
        assert await it.keys() == AWSCredentials("AKIADEFAULT", "secret-d", "session-d")
    async with world({}, home, profile="keys") as it:
        assert await it.keys() == AWSCredentials("AKIASHARED", "secret-s")
    async with world({}, {**home, "AWS_PROFILE": "keys"}) as it:
        assert (await it.keys()).access_key == "AKIASHARED"
    async with world({"/": sts()}, home, profile="role") as it:
        assert (await it.keys()).access_key == "ASIA1"
        form = it.endpoint.asked[0].form
        assert (form["ExternalId"], form["DurationSeconds"]) == ("e1", "1200")
        assert "AKIASHARED/" in it.endpoint.asked[0].headers["authorization"]
    async with world({"/": sts()}, home, profile="self") as it:
        assert (await it.keys()).access_key == "ASIA1"
        assert "AKIASELF/" in it.endpoint.asked[0].headers["authorization"]
    async with world({"/": sts()}, home, profile="web") as it:
        assert (await it.keys()).access_key == "ASIA1"
        assert it.endpoint.asked[0].form["WebIdentityToken"] == "web-7"
    async with world({"/": sts("9"), **machine(document())}, home, profile="machine") as it:
        assert (await it.keys()).access_key == "ASIA9"
        assert it.endpoint.asked[-1].headers["x-amz-security-token"] == "token1"


@pytest.mark.parametrize(
    ("profile", "says"),
    [
        ("none", "no AWS profile 'none'"),
        ("round", "leads back"),
        ("odd", "credential_source with one of"),
        ("mfa", "mfa_serial"),
        ("sso one", "sso_session"),
        ("empty", "neither keys nor a role"),
    ],
)
async def test_profiles_that_cannot_be_used(home: dict[str, str], profile: str, says: str) -> None:
    async with world({}, home, profile=profile) as it:
        assert says in (await it.fails()).detail


async def test_changed_files_are_seen_after_a_refusal(home: dict[str, str]) -> None:
    async with world({}, home, profile="default") as it:
        await it.keys()
        first = it.credential.lines
        file = Path(home["HOME"]) / ".aws" / "credentials"
        file.write_text(file.read_text().replace("session-d", "session-e"))
        await it.time.pass_(100)
        assert it.credential.refused(first, 403, None)
        assert (await it.keys()).token == "session-e"
        assert it.credential.refused(first, 403, None)
        file.write_text("aws_secret_access_key = hush\n[x")
        await it.time.pass_(100)
        assert it.credential.refused(it.credential.lines, 403, None)
        assert (await it.keys()).token == "session-e"


async def test_files_that_are_none_say_nothing_of_what_is_in_them(
    home: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    (Path(home["HOME"]) / ".aws" / "credentials").write_text("aws_secret_access_key = hush\n[x")
    async with world({}, home) as it:
        assert "is not an INI file" in (await it.fails()).detail
        assert "hush" not in caplog.text


async def test_the_container(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("pod-1\n")
    env = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "HERE/v1/credentials"}
    async with world(
        {"/v1/credentials": document()}, {**env, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(file)}
    ) as it:
        assert await it.keys() == AWSCredentials("ASIA1", "secret1", "token1")
        assert it.endpoint.asked[0].headers["authorization"] == "pod-1"
    async with world({"/v1/credentials": document()}, {**env, "AWS_CONTAINER_AUTHORIZATION_TOKEN": "t"}) as it:
        await it.keys()
        assert it.endpoint.asked[0].headers["authorization"] == "t"
    for uri in ("http://10.0.0.1/x", "http://example.com/x"):
        async with world({}, {"AWS_CONTAINER_CREDENTIALS_FULL_URI": uri}) as it:
            assert "https only" in (await it.fails()).detail
    async with world({}, {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "@10.0.0.1/x"}) as it:
        assert "slash" in (await it.fails()).detail
    async with world(machine(document()), env) as it:  # it is there and fails: nobody else is asked
        assert "answered 404" in (await it.fails()).detail
        assert len(it.endpoint.asked) == 1


async def test_the_machine() -> None:
    async with world(machine(document(Code="Success"))) as it:
        assert await it.keys() == AWSCredentials("ASIA1", "secret1", "token1")
        put, *gets = it.endpoint.asked
        assert put.method == "PUT"
        assert put.headers["x-aws-ec2-metadata-token-ttl-seconds"] == "21600"
        assert put.headers["content-length"] == "0"
        assert [asked.headers["x-aws-ec2-metadata-token"] for asked in gets] == ["imds-session"] * 2
        assert 3500 < it.credential.ends - it.time.now < 3600


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({}, "metadata service any: http://127.0.0.1"),
        ({**machine(b""), IMDS: answer(b"")}, "names no role"),
        ({**machine(b""), IMDS: answer(b"../../x")}, "names no role"),
        (machine(answer({"Code": "AssumeRoleUnauthorizedAccess", "Message": "m"})), "AssumeRoleUnauthorizedAccess"),
        (machine(answer(b"<html>")), "not JSON"),
        (machine(document(SecretAccessKey=5)), "SecretAccessKey"),
        (machine(document(Token="a\r\nb")), "Token"),
        (machine(document(Expiration=None)), "time of expiry"),
        (machine(document(seconds=-60)), "expired already"),
    ],
)
async def test_machines_without_keys(answers: dict[str, Any], says: str, caplog: pytest.LogCaptureFixture) -> None:
    async with world(answers) as it:
        assert says in (await it.fails()).detail
        assert "Traceback" not in caplog.text


async def test_the_metadata_service_can_be_switched_off() -> None:
    env = {"AWS_EC2_METADATA_DISABLED": "true"}
    async with world({}, env, metadata_url="http://169.254.169.254") as it:
        assert "switched off" in (await it.fails()).detail
    env = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "HERE/"}
    async with world(machine(document()), env, metadata_url="http://169.254.169.254", source="instance") as it:
        assert (await it.keys()).access_key == "ASIA1"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (
            answer(b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>not for hush-key</Message>", 403),
            "AccessDenied: not for ***",
        ),
        (answer(b"<a/>"), "no credentials"),
        (answer(b"<a>"), "not XML"),
        (answer(b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), "not XML"),
        (answer(b'<?xml version="1.0" encoding="x-none"?><Credentials/>'), "AccessKeyId"),
        (answer(b"<Credentials><AccessKeyId>a b</AccessKeyId></Credentials>"), "AccessKeyId"),
        (answer(b"<a>" * 50_000), "not XML"),
        (answer(b"<a>" * 20_000 + b"</a>" * 20_000), "no credentials"),
        (answer(b"\xff"), "not XML"),
        (sts(seconds=-1), "expired already"),
    ],
)
async def test_answers_of_sts_that_are_none(said: bytes, says: str, caplog: pytest.LogCaptureFixture) -> None:
    async with world({"/": said}, access_key_id=ACCESS, secret_access_key="hush-key", role=ROLE) as it:
        assert says in (await it.fails()).detail
        assert "hush" not in caplog.text
        assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"access_key_id": ACCESS}, "go together"),
        ({"session_token": "t"}, "no effect"),
        ({"access_key_id": "short", "secret_access_key": "hidden"}, "at least 16"),
        ({"access_key_id": ACCESS, "secret_access_key": "hidden", "profile": "p"}, "both say"),
        ({"profile": "p", "source": "instance"}, "both say"),
        ({"token_file": "/x"}, "needs `role`"),
        ({"role": "gw"}, "match"),
        ({"external_id": "x1"}, "no effect"),
        ({"token_file": "/x", "role": ROLE, "external_id": "x1"}, "no effect"),
        ({"role": ROLE, "duration": 60.0}, "900"),
        ({"sts_url": "https://x/y"}, "alone"),
        ({"region": "eu/west"}, "match"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as error:
        AWSAuthSpec(**fields)
    assert "hidden" not in str(error.value)


@given(st.binary(max_size=100) | st.text(max_size=60).map(lambda t: f"<Credentials><A>{t}</A></Credentials>".encode()))
def test_no_xml_is_another_exception(body: bytes) -> None:
    try:
        _from_xml(body)
    except ValueError:
        pass


@given(
    content=st.text(max_size=80)
    | st.lists(st.sampled_from(["[a]", "b = c", " d", "[", "]", "=", "#", "[]", ""])).map("\n".join)
)
def test_no_profile_file_is_another_exception(content: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "ini"
    file.write_text(content)
    try:
        _sections(str(file))
    except ValueError:
        pass


def test_the_endpoint_of_sts() -> None:
    assert sts_url("us-east-1") == "https://sts.us-east-1.amazonaws.com"
    assert sts_url("cn-north-1") == "https://sts.cn-north-1.amazonaws.com.cn"
