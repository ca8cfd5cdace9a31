"""Sealed values and messages: nobody reads them, moves them or makes them, and secrets can be rotated."""

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.store.crypt import OVERHEAD, Box, SealedBus, SealedValues
from tollhouse.store.memory import MemoryBus, MemoryValues

pytestmark = pytest.mark.anyio

ONE, TWO, THREE = b"1" * 32, b"2" * 32, b"3" * 40


@given(name=st.text(max_size=40), content=st.binary(max_size=300))
def test_what_is_sealed_opens_for_its_name(name: str, content: bytes) -> None:
    box = Box([ONE, TWO], "a value")
    sealed = box.seal(name, content)
    assert len(sealed) == len(content) + OVERHEAD
    assert len(content) < 4 or content not in sealed
    assert box.seal(name, content) != sealed
    assert box.open(name, sealed) == content
    assert box.open(name + "x", sealed) is None


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_changed_bit_is_noticed(at: int, bit: int) -> None:
    box = Box([ONE], "a value")
    sealed = bytearray(box.seal("k", b"content"))
    sealed[at % len(sealed)] ^= 1 << bit
    assert box.open("k", bytes(sealed)) is None


@given(junk=st.binary(max_size=200))
def test_junk_is_nothing(junk: bytes) -> None:
    box = Box([ONE], "a value")
    assert box.open("k", junk) is None
    sealed = box.seal("k", b"")
    assert box.open("k", sealed[:5] + junk) is None


def test_kinds_are_apart(caplog: pytest.LogCaptureFixture) -> None:
    assert Box([ONE], "a message").open("k", Box([ONE], "a value").seal("k", b"x")) is None
    assert "a message in the state cannot be decrypted" in caplog.text


def test_secrets_are_rotated(caplog: pytest.LogCaptureFixture) -> None:
    old, both, swapped, new = (Box(keys, "a value") for keys in ([ONE], [ONE, TWO], [TWO, ONE], [TWO, THREE]))
    for sealed in (old.seal("k", b"x"), both.seal("k", b"x"), swapped.seal("k", b"x")):
        assert both.open("k", sealed) == b"x"
        assert swapped.open("k", sealed) == b"x"
    assert old.open("k", both.seal("k", b"x")) == b"x"  # the first one seals
    for _ in range(3):
        assert new.open("k", old.seal("k", b"x")) is None
    assert caplog.text.count("no `encryption_key` opens it") == 1  # not each time
    assert "x" * 32 not in caplog.text


async def sealed_values() -> tuple[MemoryValues, Callable[..., SealedValues]]:
    inner = MemoryValues(Clock())
    return inner, lambda *secrets: SealedValues(inner, secrets)


async def test_the_store_sees_nothing() -> None:
    inner, sealed = await sealed_values()
    values = sealed(ONE)
    await values.put("k", b"a long content that would be seen", 60.0)
    raw = await inner.get("k")
    assert raw is not None
    assert b"content" not in raw
    await inner.put("other", raw, 60.0)
    assert await values.get("other") is None
    assert await values.take("other") is None
    assert await values.get("k") == b"a long content that would be seen"


async def test_values_live_through_a_rotation() -> None:
    _, sealed = await sealed_values()
    old, both, new = sealed(ONE), sealed(TWO, ONE), sealed(TWO)
    await old.put("k", b"1", 60.0)
    assert await both.get("k") == b"1"
    assert await both.swap("k", b"1", b"2", 60.0) is True
    assert await new.get("k") == b"2"
    assert await old.get("k") is None
    assert await old.add("k", b"3", 60.0) is False  # something is there, whatever it is
    assert await old.claim("k", b"3", 60.0) == b""
    assert await new.claim("k", b"3", 60.0) == b"2"
    assert await old.swap("k", b"2", b"3", 60.0) is False
    assert await old.touch("k", 60.0) is True


class Busy(MemoryValues):
    """Somebody else writes the same value, sealed anew, before each swap."""

    def __init__(self, times: int) -> None:
        super().__init__(Clock())
        self.left = times
        self.again: Any = None

    async def swap(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        if self.left:
            self.left -= 1
            await self.again()
        return await super().swap(key, old, new, ttl)


@pytest.mark.parametrize(("times", "works"), [(3, True), (99, False)])
async def test_a_swap_under_writers(times: int, works: bool) -> None:
    inner = Busy(times)
    values = SealedValues(inner, [ONE])
    await values.put("k", b"1", 60.0)
    inner.again = lambda: values.put("k", b"1", 60.0)
    if works:
        assert await values.swap("k", b"1", b"2", 60.0) is True
        assert await values.get("k") == b"2"
    else:
        with pytest.raises(Failure):
            await values.swap("k", b"1", b"2", 60.0)


async def test_messages_that_are_not_ours_are_not_delivered() -> None:
    inner = MemoryBus()
    bus, other = SealedBus(inner, [ONE]), SealedBus(inner, [TWO])
    heard: list[bytes] = []
    raw: list[bytes] = []
    end = bus.subscribe("t", heard.append)
    inner.subscribe("t", raw.append)
    await bus.ready()
    await bus.publish("t", b"a message")
    await other.publish("t", b"of others")
    await inner.publish("t", b"forged")
    await inner.publish("t", os.urandom(100))
    assert heard == [b"a message"]
    assert not any(b"message" in message for message in raw)
    await inner.publish("u", raw[0])
    end()
    await bus.publish("t", b"more")
    assert heard == [b"a message"]
