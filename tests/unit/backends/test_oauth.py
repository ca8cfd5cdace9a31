import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest
from pydantic import ValidationError
from tests.unit.backends.tokens import Asked, Time, World, answer, endpoint, ready, rest, token, until
from tests.unit.net.upstreams import client

from tollhouse.backends.oauth import OAuthSpec, oauth_credential
from tollhouse.core.errors import Failure
from tollhouse.net.client import OriginError

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def world(said: Any = None, **fields: Any) -> AsyncIterator[World]:
    async with endpoint({"/token": said or token()}) as it, client() as asks:
        time = Time()
        fields = {"client_id": "me & co", "client_secret": "s3cr3t:+/", **fields}
        spec = OAuthSpec(token_url=it.url + "/token", **fields)
        credential = oauth_credential("up", spec, asks, time.clock)
        try:
            yield World(it, credential, time)
        finally:
            await credential.close()


async def test_basic() -> None:
    async with world(scopes=["a", "b"], audience="https://api", resource="https://r") as it:
        assert await ready(it.credential) == b"authorization: Bearer tok-1\r\n"
        (asked,) = it.endpoint.asked
        assert asked.method == "POST"
        assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
        assert base64.b64decode(asked.headers["authorization"].removeprefix("Basic ")) == b"me+%26+co:s3cr3t%3A%2B%2F"
        assert asked.form == {
            "grant_type": "client_credentials", "scope": "a b", "audience": "https://api", "resource": "https://r"
        }  # fmt: skip


async def test_post() -> None:
    async with world(client_auth="post") as it:
        await ready(it.credential)
        (asked,) = it.endpoint.asked
        assert "authorization" not in asked.headers
        assert asked.form == {
            "grant_type": "client_credentials", "client_id": "me & co", "client_secret": "s3cr3t:+/"
        }  # fmt: skip


async def test_it_is_renewed_while_requests_go_on() -> None:
    go = asyncio.Event()
    count = 0

    async def said(_: Asked) -> bytes:
        nonlocal count
        count += 1
        if count > 1:
            await go.wait()
        return token(f"tok-{count}", 1000)

    async with world(said) as it:
        it.credential.start()
        await until(lambda: it.credential.settled)
        await it.time.pass_(800)
        await until(lambda: count == 2)
        began = monotonic()
        for _ in range(1000):
            assert it.credential.settled
            assert it.credential.lines == b"authorization: Bearer tok-1\r\n"
        await ready(it.credential)
        assert monotonic() - began < 1
        go.set()
        await until(lambda: b"tok-2" in it.credential.lines)


async def test_a_storm_asks_once() -> None:
    async with world() as it:
        await asyncio.gather(*(ready(it.credential) for _ in range(300)))
        assert len(it.endpoint.asked) == 1


@pytest.mark.parametrize(
    "said",
    [
        answer({"error": "invalid_client", "error_description": "s3cr3t:+/ is wrong, s3cr3t%3A%2B%2F"}, 401),
        answer(b"<html>", 500),
        answer(b"<html>"),
        answer({"access_token": "x"}, 201),
        token("x", 0),
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{",
        b"garbage\r\n\r\n",
        b"",
    ],
)
async def test_an_endpoint_that_fails(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with world(said or (lambda _: b"")) as it:
            with pytest.raises(Failure) as failure:
                await ready(it.credential)
            assert failure.value.status == 503
            assert failure.value.retry
            assert len([r for r in caplog.records if r.name.startswith("tollhouse")]) == 1
            assert "Traceback" not in caplog.text
            for text in (caplog.text, failure.value.message, failure.value.detail, repr(it.credential)):
                assert "s3cr3t" not in text
            it.endpoint.answers["/token"] = token("good")
            await it.time.pass_(3)
            await until(lambda: it.credential.settled)
            assert b"good" in it.credential.lines


async def test_close_while_the_endpoint_thinks() -> None:
    async def said(_: Asked) -> bytes:
        await asyncio.sleep(30)
        return b""

    async with world(said) as it:
        it.credential.start()
        await until(lambda: it.endpoint.asked)
        await it.credential.close()
        await rest()
        assert not it.credential.settled
        with pytest.raises(Failure):
            await ready(it.credential)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"token_url": "nowhere"}, "not a URL"),
        ({"token_url": "https://u:p@x/"}, "must not carry"),
        ({"client_secret": ""}, "empty"),
        ({"client_secret": "é"}, "ASCII"),
        ({"client_id": ""}, "match"),
        ({"scopes": ["a b"]}, "item of its own"),
        ({"scopes": [""]}, "item of its own"),
        ({"audience": ""}, "at least 1"),
        ({"client_auth": "jwt"}, "basic"),
        ({"tls": {}, "token_url": "http://127.0.0.1/t"}, "no effect"),
        ({"who": 1}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], says: str) -> None:
    good = {"token_url": "https://x/t", "client_id": "c", "client_secret": "hidden-one"}
    with pytest.raises(ValidationError, match=says) as error:
        OAuthSpec(**{**good, **fields})
    assert "hidden-one" not in str(error.value)


async def test_tls_files_are_looked_at_when_it_is_made() -> None:
    spec = OAuthSpec(token_url="https://x/t", client_id="c", client_secret="s", tls={"ca": "/nowhere.pem"})
    async with client() as asks:
        with pytest.raises(OriginError, match="nowhere"):
            oauth_credential("up", spec, asks, Time().clock)
