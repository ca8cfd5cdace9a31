"""Records in the state: by id, one key an operation, and no secret in a key."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tollhouse.core.clock import Clock
from tollhouse.issuer.records import Code, Pushed, UserInfo
from tollhouse.store.memory import MemoryValues
from tollhouse.store.table import Held, Table

pytestmark = pytest.mark.anyio

CODE = Code("agent-1", "https://a.example/cb", "c" * 43, ("mcp",), (), "ada", UserInfo(email="ada@a.example"), 5)


class Kept(MemoryValues):
    """A store whose keys can be looked at."""

    __slots__ = ()

    @property
    def names(self) -> list[str]:
        return list(self._entries)


@pytest.fixture
def values() -> Iterator[Kept]:
    made = Kept(Clock())
    yield made
    made.close()


async def test_a_record_comes_back_as_it_was(values: Kept) -> None:
    table = Table(values, "iss:c:", Code, hashed=True)
    await table.put("secret", CODE, 60.0)
    held = await table.get("secret")
    assert held is not None
    assert held.value == CODE
    assert held.id == "secret"
    assert await table.get("other") is None


async def test_of_two_who_swap_one_wins(values: Kept) -> None:
    table = Table(values, "iss:c:", Code, hashed=True)
    assert await table.add("secret", CODE, 60.0)
    assert not await table.add("secret", CODE, 60.0)
    held = await table.get("secret")
    assert held is not None
    won = await asyncio.gather(*(table.swap(held, replace(CODE, redeemed=f"f{n}"), 60.0) for n in range(8)))
    assert won.count(True) == 1
    again = await table.get("secret")
    assert again is not None
    assert again.value.redeemed == "f0"
    assert not await table.swap(held, CODE, 60.0)


async def test_of_many_who_take_one_gets_it(values: Kept) -> None:
    table = Table(values, "iss:c:", Code, hashed=True)
    await table.put("secret", CODE, 60.0)
    taken = await asyncio.gather(*(table.take("secret") for _ in range(8)))
    assert [one for one in taken if one is not None] == [CODE]
    assert not await table.remove("secret")


async def test_a_secret_id_is_in_no_key(values: Kept) -> None:
    await Table(values, "iss:c:", Code, hashed=True).put("a-secret-code-of-somebody", CODE, 60.0)
    await Table(values, "iss:cl:", Code).put("agent-1", CODE, 60.0)
    assert not any("a-secret" in name for name in values.names)
    assert sorted(map(len, values.names)) == [len("iss:cl:agent-1"), len("iss:c:") + 43]
    assert "iss:cl:agent-1" in values.names


@pytest.mark.parametrize("id", ["", "k" * 257, "k" * 100_000])
async def test_ids_from_outside_that_cannot_be_there(values: Kept, id: str) -> None:
    table = Table(values, "iss:cl:", Code)
    assert await table.get(id) is None
    assert await table.take(id) is None
    assert await table.remove(id) is False
    for wrong in (table.put(id, CODE, 60.0), table.add(id, CODE, 60.0), table.swap(Held(CODE, b"", id), CODE, 60.0)):
        with pytest.raises(ValueError, match="1 to 256 characters"):
            await wrong
    hashed = Table(values, "iss:c:", Code, hashed=True)
    if id:
        await hashed.put(id, CODE, 60.0)
        assert await hashed.take(id) == CODE
    else:
        assert await hashed.get(id) is None


async def test_what_cannot_be_read_is_left_aside(values: Kept, caplog: pytest.LogCaptureFixture) -> None:
    table = Table(values, "iss:par:", Pushed)
    for raw in (b"", b"\xc1", b"{}", b"\x91" * 5000, b"\x80"):
        await values.put("iss:par:x", raw, 60.0)
        assert await table.get("x") is None
        assert not await table.add("x", Pushed((), "a"), 60.0)
        assert await table.take("x") is None
    assert "a record under 'iss:par:' in the state cannot be read" in caplog.text


async def test_a_member_of_a_later_release_is_passed_over(values: Kept) -> None:
    await values.put("iss:par:x", b"\x83\xa6params\x90\xa9client_id\xa1a\xa3new\x01", 60.0)
    held = await Table(values, "iss:par:", Pushed).get("x")
    assert held is not None
    assert held.value == Pushed((), "a")


@given(st.text(max_size=300))
def test_any_text_is_an_id(id: str) -> None:
    async def run() -> None:
        values = Kept(Clock())
        for table in (Table(values, "a:", Pushed), Table(values, "b:", Pushed, hashed=True)):
            if id and (len(id) <= 256 or table is not None):
                try:
                    await table.put(id, Pushed((), "a"), 60.0)
                except ValueError:
                    assert len(id) > 256
                else:
                    assert await table.take(id) == Pushed((), "a")
        values.close()

    asyncio.run(run())
