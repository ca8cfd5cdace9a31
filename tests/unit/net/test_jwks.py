"""Others' keys are read once for all who wait, and no more often than they must be; when they cannot be had the last
good ones serve for a while."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.policies.authenticate.door import KEY, NEXT, idp, jwks, token

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.net.client import Client
from tollhouse.net.jwks import Document, FixedKeys, KeySource, key_source
from tollhouse.wire.jose import Keys, Token, parse

pytestmark = pytest.mark.anyio


class Source:
    """A KeySource whose time and document the test moves."""

    def __init__(self, refresh: float | None = 300.0) -> None:
        self.now = 1000.0
        self.max_age: float | None = None
        self.document: bytes | Exception = json.dumps(jwks(KEY)).encode()
        self.read = 0
        self.source = KeySource(self.load, "there", refresh, clock=lambda: self.now)

    async def load(self) -> Document:
        self.read += 1
        await asyncio.sleep(0)
        if isinstance(self.document, Exception):
            raise self.document
        return Document(self.document, self.max_age)

    async def keys(self, key: Any = KEY) -> Keys:
        return await self.source.keys(parsed(key))

    async def settle(self) -> None:
        while self.source._flight is not None:
            await asyncio.sleep(0)


async def test_old_keys_are_read_again_in_the_background() -> None:
    it = Source()
    first = await it.keys()
    it.now += 299
    assert await it.keys() is first
    assert it.read == 1
    it.now += 2
    assert await it.keys() is first  # did not wait
    await it.settle()
    assert it.read == 2
    assert await it.keys() is first  # the same document is the same keys: what was checked with them still holds
    it.document = json.dumps(jwks(NEXT)).encode()
    it.now += 301
    await it.keys()
    await it.settle()
    assert await it.keys(NEXT) is not first
    assert it.read == 3


@pytest.mark.parametrize("error", [OSError("down"), Failure(502, Reason.UPSTREAM_FAILURE, "x"), RuntimeError("a bug")])
async def test_the_last_good_keys_serve_while_the_issuer_is_down(error: Exception, caplog: Any) -> None:
    it = Source()
    first = await it.keys()
    it.document = error
    for n in range(2, 6):
        it.now += 1000
        assert await it.keys() is first
        await it.settle()
        assert it.read == n
        assert await it.keys() is first
        await it.settle()
        assert it.read == n  # a source that failed is left alone for a while
    assert "there" in caplog.text
    it.document = b'{"keys": []}'
    it.now += 1000
    assert await it.keys() is first
    await it.settle()
    it.document = json.dumps(jwks(KEY, NEXT)).encode()
    it.now += 1000
    await it.keys()
    await it.settle()
    assert len(await it.keys()) == 2


@pytest.mark.parametrize("error", [OSError("down"), RuntimeError("a bug")])
async def test_keys_of_a_day_ago_serve_no_longer(error: Exception) -> None:
    it = Source()
    first = await it.keys()
    it.document = error
    it.now += 86_390
    assert await it.keys() is first
    await it.settle()
    it.now += 10
    for _ in range(2):
        with pytest.raises(Failure, match="keys cannot be had") as caught:
            await it.keys()
        assert (caught.value.status, caught.value.reason) == (503, Reason.JWT_AUTH)
    assert it.read == 3  # and the issuer is left alone for a while
    it.document = json.dumps(jwks(KEY, NEXT)).encode()
    it.now += 5
    assert len(await it.keys()) == 2  # waited for
    it.now += 86_400
    assert len(await it.keys()) == 2  # and again after a day without tokens
    assert it.read == 5


async def test_unknown_keys_are_looked_for_three_times_in_thirty_seconds() -> None:
    it = Source()
    await it.keys()
    it.document = json.dumps(jwks(KEY, NEXT)).encode()
    found = await asyncio.gather(*(it.keys(NEXT) for _ in range(5)))
    assert it.read == 2  # at once, and once for all who wait
    assert all(len(keys) == 2 for keys in found)
    one = parsed()
    for n in range(10_000):
        await it.source.keys(Token(one.algorithm, f"k{n}", None, one.claims, b"", b""))
        await it.settle()
    assert it.read == 4
    it.now += 31
    await it.source.keys(Token(one.algorithm, "k1", None, one.claims, b"", b""))
    assert it.read == 5
    await it.source.keys(Token(one.algorithm, "k1", None, one.claims, b"", b""))
    assert it.read == 5  # in vain a moment ago
    assert len(it.source._unknown) <= 256


@pytest.mark.parametrize("max_age, fresh", [(None, 300), (0.0, 60), (600.0, 600), (1e6, 3600)])
async def test_keys_are_fresh_as_long_as_their_answer_says(max_age: float | None, fresh: float) -> None:
    it = Source(None)
    it.max_age = max_age
    await it.keys()
    it.now += fresh - 1
    await it.keys()
    await it.settle()
    assert it.read == 1
    it.now += 2
    await it.keys()
    await it.settle()
    assert it.read == 2


async def test_close_ends_a_reading() -> None:
    it = Source()
    gate = asyncio.Event()

    async def hang() -> Document:
        await gate.wait()
        return Document(b"")

    it.source._load = hang
    waiting = asyncio.ensure_future(it.keys())
    while it.source._flight is None:
        await asyncio.sleep(0)
    await it.source.close()
    assert it.source._flight is None
    with pytest.raises(Failure) as error:  # whoever waits was not cancelled
        await waiting
    assert error.value.status == 503
    await it.source.close()


async def test_what_may_be_secret_in_a_failure_is_not_logged(caplog: Any) -> None:
    for said in ("http://127.0.0.1/jwks?token=SECRET", "https://ada:SECRET@idp.example.com/x?SECRET"):
        where = Source()
        where.document = Failure(504, Reason.TIMEOUT, "late", detail=f"at {said} it ended")
        with pytest.raises(Failure):
            await where.keys()
    assert "https://idp.example.com/x it ended" in caplog.text
    assert "SECRET" not in caplog.text


def parsed(key: Any = KEY) -> Token:
    made = parse(token(key))
    assert isinstance(made, Token)
    return made


async def test_a_place_of_ones_own_may_be_local_and_one_from_outside_may_not() -> None:
    async with idp() as (it, url):
        client = Client(Clock())
        source = key_source(url, client, lambda: 1000.0, guarded=False)
        assert (await source.keys(parsed())).knows(parsed())
        await source.close()
        it.requests.clear()
        outside = key_source(url, client, lambda: 1000.0, guarded=True)
        with pytest.raises(Failure, match="keys cannot be had"):
            await outside.keys(parsed())
        assert it.asked == 0
        with pytest.raises(ValueError, match="names no file"):
            key_source("/etc/passwd", client, lambda: 1000.0, guarded=True)
        await client.close()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "x"}]}'])
async def test_a_file_that_has_none(tmp_path: Path, content: str) -> None:
    file = tmp_path / "jwks.json"
    file.write_text(content)
    source = key_source(str(file), Client(Clock()), lambda: 1000.0, guarded=False)
    with pytest.raises(Failure) as failure:
        await source.keys(parsed())
    assert failure.value.status == 503


async def test_a_file_and_keys_written_here(tmp_path: Path) -> None:
    document = jwks(KEY)
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(document))
    places: list[tuple[str | dict[str, Any], type[object]]] = [(str(file), KeySource), (document, FixedKeys)]
    for where, kind in places:
        source = key_source(where, Client(Clock()), lambda: 1000.0, guarded=False)
        assert (await source.keys(parsed())).knows(parsed())
        assert isinstance(source, kind)
        await source.close()
