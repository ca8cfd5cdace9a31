import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, RSAKey
from pydantic import TypeAdapter, ValidationError
from tests.unit.backends.tokens import Endpoint, answer, endpoint
from tests.unit.net.upstreams import client

from tollhouse.backends.token import (
    Asker,
    LiveFile,
    checked_url,
    members,
    read_file,
    read_token,
    seconds_until,
    signing_key,
    text_of,
    token_of,
)
from tollhouse.core.errors import Failure
from tollhouse.core.spec import Reading

pytestmark = pytest.mark.anyio


def said(**fields: Any) -> bytes:
    return json.dumps({"access_token": "a.b-c", **fields}).encode()


def test_answers_of_token_endpoints() -> None:
    lease = token_of(said(token_type="bEaReR", expires_in=3599), "it")
    assert (lease.value, lease.seconds) == ("a.b-c", 3599)
    assert token_of(said(expires_in="3599"), "it").seconds == 3599  # a text, as some write it
    assert token_of(said(), "it").seconds == 600
    assert token_of(said(expires_in=1e11), "it").seconds == 1e9
    assert token_of(said(expires_on="1"), "it").seconds < 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"access_token":NaN}',
        b'{"access_token":"\xff"}',
        b"[" * 5000,
        said(access_token=None),
        said(access_token=""),
        said(access_token="a b"),
        said(access_token="a\r\nx: y"),
        said(access_token="\ud800"),
        said(access_token="é"),
        said(access_token="a" * 40_000),
        said(token_type="mac"),
        said(token_type=7),
        said(expires_in="soon"),
        said(expires_in=[]),
        said(expires_in=True),
        said(expires_in="nan"),
        b'{"access_token":"x","expires_in":1' + b"0" * 400 + b"}",
    ],
)
def test_answers_that_are_none(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it ") as error:
        token_of(body, "it")
    assert "a b" not in str(error.value)


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists)


@given(st.binary(max_size=200) | VALUES.map(lambda value: said(access_token=value, expires_in=value)))
def test_no_answer_is_another_exception(body: bytes) -> None:
    try:
        token_of(body, "it")
    except ValueError:
        pass


def test_times_of_expiry() -> None:
    assert seconds_until("2000-01-01T00:00:00Z", "it") < 0
    assert seconds_until("2999-01-01T00:00:00.123456789Z", "it") > 0
    assert seconds_until("2999-01-01T00:00:00", "it") > 0
    for wrong in (None, 5, "", "soon", "\ud800", [], "2999-13-01T00:00:00Z"):
        with pytest.raises(ValueError, match="it has a time"):
            seconds_until(wrong, "it")


@pytest.mark.parametrize(
    "url",
    [
        "https://sts.googleapis.com/v1/token",
        "http://127.0.0.1:99/x",
        "http://localhost/x",
        "http://[::1]/x",
        "http://169.254.169.254/x",
        "http://[fd00:ec2::23]/x",
        "http://metadata.google.internal/x",
    ],
)
def test_where_secrets_may_go(url: str) -> None:
    assert checked_url(url, "it") == url


@pytest.mark.parametrize(
    "url",
    [None, 5, "", "x", "ftp://a/b", "http://example.com/x", "http://10.0.0.1/", "http://127.0.0.1.example.com/",
     "https://user:pw@example.com/", "http://2130706433/", "https://a b/", "http://169.254.169.254@example.com/"],
)  # fmt: skip
def test_where_they_may_not(url: Any) -> None:
    with pytest.raises(ValueError, match=r"^it ") as error:
        checked_url(url, "it")
    assert "pw" not in str(error.value)


async def test_files_are_read_again_and_bounded(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("abc\n")
    assert await read_token(str(file)) == "abc"
    file.write_text("def")
    assert await read_token(str(file)) == "def"
    for wrong in (b"", b"  \n", b"a b", b"\xff\xfe", b"x" * 40_000):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match="does not hold a token"):
            await read_token(str(file))
    file.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        await read_file(str(file))
    with pytest.raises(ValueError, match="none cannot be read: No such file"):
        await read_token(str(tmp_path / "none"))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="not a file"):
        await read_file(str(pipe))


def test_a_live_file_is_not_watched(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x")
    reading = Reading(str(tmp_path))
    adapter: TypeAdapter[str] = TypeAdapter(LiveFile)
    assert adapter.validate_python("token", context=reading) == str(tmp_path / "token")
    assert not reading.files
    for wrong in ("none", "", "a" * 5000, "a\0b"):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong, context=reading)


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
def test_keys_that_sign() -> None:
    key = RSAKey.generate_key(2048)
    pem = key.as_pem(private=True).decode()
    assert signing_key(pem, "it").is_private
    for wrong, says in (
        ("", "no PEM"),
        (key.as_pem(private=False).decode(), "no PEM"),
        (pem[:400] + pem[500:], "not an RSA"),
        (pem.replace("PRIVATE", "ENCRYPTED PRIVATE"), "encrypted"),
        (ECKey.generate_key("P-256").as_pem(private=True).decode(), "not an RSA"),
        (RSAKey.generate_key(1024).as_pem(private=True).decode(), "2048 bits"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not an RSA"),
    ):
        with pytest.raises(ValueError, match=f"^it .*{says}"):
            signing_key(wrong, "it")


SECRET = "s3cr3t"
LONG = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJhIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"error": "invalid_client", "error_description": "Bad secret."}, "invalid_client: Bad secret."),
        ({"error": {"status": "PERMISSION_DENIED", "message": "no"}}, "PERMISSION_DENIED: no"),
        ({"error": {"code": 403, "message": "no"}}, "403: no"),
        ({"Code": "Failed", "Message": "x"}, "Failed: x"),
        (b"<E><Error><Code>ExpiredToken</Code><Message>old</Message></Error></E>", "ExpiredToken: old"),
        (b"<html>cut", ""),
        (b"\xff\xfe", ""),
        (b"", ""),
        ({"error": "x", "error_description": f"your {SECRET} and {LONG}"}, "x: your *** and ***"),
        ({"error": LONG[:30]}, "***"),
        ({"error": SECRET, "error_description": ["x"]}, "***"),
        ({"error": "a\r\nb\x1b[0m", "error_description": "é" * 5}, "a b [0m"),
        ({"error": "x", "error_description": "word " * 100}, "x: " + "word " * 60),
        ({"error": []}, ""),
    ],
)
async def test_errors_say_why_without_secrets(body: Any, says: str) -> None:
    async with endpoint({"/t": answer(body, 400, b"retry-after: 7\r\n")}) as it, client() as asks:
        with pytest.raises(Failure) as failure:
            await Asker(asks).post(it.url + "/t", {"client_secret": SECRET, "assertion": LONG}, hidden=(SECRET,))
        assert failure.value.message == f"{it.url}/t answered 400"
        assert failure.value.detail == says.strip()
        assert failure.value.retry_after == 7.0


async def cut(it: Endpoint) -> None:
    it.answers["/t"] = b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{"


async def silent(it: Endpoint) -> None:
    it.answers["/t"] = b""


async def garbage(it: Endpoint) -> None:
    it.answers["/t"] = b"\x00\x01 nonsense\r\n\r\n"


async def large(it: Endpoint) -> None:
    it.answers["/t"] = answer(b"x" * 300_000)


async def redirect(it: Endpoint) -> None:
    it.answers["/t"] = answer(b"", 302, b"location: /other\r\n")


@pytest.mark.parametrize("how", [cut, silent, garbage, large, redirect])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_endpoints_that_answer_badly(how: Callable[[Endpoint], Any], method: str) -> None:
    async with endpoint({}) as it, client() as asks:
        await how(it)
        with pytest.raises(Failure) as failure:
            await Asker(asks).ask(it.url + "/t?key=1", method=method, timeout=2.0)
        assert failure.value.status in (502, 504)
        assert len(it.asked) == 1


async def test_a_slow_endpoint_is_left() -> None:
    async def slow(_: Any) -> bytes:
        await asyncio.sleep(30)
        return b""

    async with endpoint({"/t": slow}) as it, client() as asks:
        with pytest.raises(Failure) as failure:
            await Asker(asks).ask(it.url + "/t", timeout=0.1)
        assert failure.value.status == 504


async def test_a_marker_is_looked_for() -> None:
    async with endpoint({"/t": answer({})}) as it, client() as asks:
        with pytest.raises(ValueError, match="lacks metadata-flavor"):
            await Asker(asks).ask(it.url + "/t", marker=(b"metadata-flavor", b"Google"))


async def test_what_is_beside_us_is_not_asked_through_a_proxy() -> None:
    async with endpoint({"/t": answer({})}) as it, client() as asks:
        assert await Asker(asks, proxy="http://127.0.0.1:1").ask(it.url + "/t") == b"{}"
        with pytest.raises(Failure):
            await Asker(asks, proxy="http://127.0.0.1:1").ask("http://token.invalid/t")


def test_members() -> None:
    assert text_of(members('{"a":"b"}', "it"), "a", "it") == "b"
    for wrong in ("", "[]", "\ud800", '{"a":'):
        with pytest.raises(ValueError, match=r"^it is not"):
            members(wrong, "it")
