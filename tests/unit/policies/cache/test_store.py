"""What is kept beyond a request: entries in memory and in a state, purges, and a state that is slow, gone or lies."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures.valkey import Valkey, valkey
from tests.unit.policies.cache.house import Sunk, asked, over, state, streamed
from tests.unit.policies.cache.node import Node, nodes
from tests.unit.policies.floor import counted

from tollhouse.core.clock import Clock
from tollhouse.core.reply import Reply
from tollhouse.policies.cache.entry import Entry, opened, packed
from tollhouse.policies.cache.memory import Memory
from tollhouse.policies.cache.purges import KEY, Purges, lines_of, purge, purge_line
from tollhouse.store.memory import MemoryState

pytestmark = pytest.mark.anyio

BLOCKS = [b"data: %d\n\n" % n for n in range(3)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    """A server to be maltreated."""
    with valkey(tmp_path) as one:
        yield one


def entry(key: bytes = b"k" * 20, ttl: float = 60.0, size: int = 10, **more: Any) -> Entry:
    values: dict[str, Any] = {"generation": 0, "headers": [], "blocks": [b"x" * size], "times": [0], "model": "smart"}
    return Entry(key, more.pop("at", time.time()), ttl, **values | more)


# ---- entries
@given(st.binary(max_size=200), st.booleans(), st.lists(st.text(max_size=5), max_size=3))
def test_what_is_packed_comes_back(body: bytes, stream: bool, tags: list[str]) -> None:
    one = entry(blocks=[body, b"b"], times=[0, 7], stream=stream, tags=tuple(tags), headers=[(b"a", b"b")])
    assert opened(packed(one), one.key) == one


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(0, 255))
def test_what_is_damaged_is_not_there(noise: bytes, at: int, byte: int) -> None:
    assert opened(noise, b"k" * 20) is None
    good = bytearray(packed(entry()))
    good[at % len(good)] = byte
    found = opened(bytes(good), b"k" * 20)  # anything but another shape
    assert found is None or (found.key == b"k" * 20 and len(found.blocks) == len(found.times) and found.ttl > 0)
    assert opened(packed(entry(key=b"other")), b"k" * 20) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttl": float("inf")}, {"ttl": float("nan")}, {"ttl": -1.0}, {"cost": 1 << 63}, {"cost": -2}, {"tokens": -1},
        {"blocks": [], "times": []}, {"times": []}, {"headers": [(b"content-type", b"x\r\nset-cookie: a=b")]},
        {"headers": [(b"a\nb", b"x")]},
    ],
)  # fmt: skip
def test_what_none_of_ours_would_be_is_not_there(wrong: dict[str, Any]) -> None:
    values = {"ttl": 60.0} | wrong
    assert opened(packed(entry(ttl=values.pop("ttl"), **values)), b"k" * 20) is None


# ---- memory
def test_the_last_used_ones_stay() -> None:
    gone: list[int] = []
    memory = Memory(Clock(), 10_000, lambda: gone.append(1))
    for n in range(4):
        memory.put(entry(b"%d" % n, size=1900))
    assert len(memory) == 4
    assert memory.get(b"0") is not None
    memory.put(entry(b"4", size=1900))
    assert memory.get(b"0") is not None
    assert memory.get(b"1") is None
    assert gone == [1]
    memory.put(entry(b"huge", size=2600))
    assert memory.get(b"huge") is None
    assert len(memory) == 4


@given(st.lists(st.tuples(st.sampled_from("pgdr"), st.integers(0, 5), st.integers(0, 3000)), max_size=60))
def test_its_size_is_what_is_in_it(steps: list[tuple[str, int, int]]) -> None:
    now = [0.0]
    clock = Clock(source=lambda: now[0])
    memory = Memory(clock, 9000)
    for what, key, size in steps:
        name = b"%d" % key
        if what == "p":
            memory.put(entry(name, size=size, ttl=1.0 + size))
        elif what == "g":
            memory.get(name)
        elif what == "d":
            memory.drop(name)
        else:
            now[0] += size
            clock.turn()
        assert memory.size == sum(kept.weight for kept in memory._kept.values()) <= 9000


def test_what_lapsed_goes_by_itself() -> None:
    now = [0.0]
    clock = Clock(source=lambda: now[0])
    memory = Memory(clock, 100_000)
    for n in range(5):
        memory.put(entry(b"%d" % n, ttl=5.0))
    now[0] = 6.0
    clock.turn()
    assert len(memory) == memory.size == 0


@pytest.mark.parametrize("jump, found", [(86400.0, True), (-86400.0, False), (-30.0, True)])
async def test_another_node_s_clock_that_goes_wrong(server: Valkey, jump: float, found: bool) -> None:
    async with nodes(server) as (one, other):
        await one.house.ask()
        await one.written()
        ((name, kept),) = one.store.memory._kept.items()
        shifted = msgspec.structs.replace(kept.entry, at=time.time() + jump)
        await one.state.values.put(f"cache:{name.hex()}", packed(shifted), 60.0)
        reply = await other.house.ask()
        assert (state(reply) == "hit") is found
        if found:
            assert dict(reply.headers)[b"age"] == (b"0" if jump > 0 else b"30")


# ---- nodes
async def test_nodes_share_what_is_kept(server: Valkey) -> None:
    async with nodes(server) as (one, other):
        first = await one.house.ask()
        await one.written()
        call = asked()
        again = await other.house.ask(call)
        assert (again.first, state(again)) == (first.first, "hit")
        assert call.context.cached == "exact"
        assert call.context.saved_nano == 35
        assert not other.house.upstream.calls
        assert state(await other.house.ask()) == "hit"  # from memory now
        reply, source = streamed(BLOCKS[0])
        one.house.upstream.answers.append(reply)
        call = asked(stream=True)
        got = await one.house.handler(call)
        Sunk(got)
        source.say(*BLOCKS[1:])
        source.end()
        over(call, got)
        await one.written()
        late = asked(stream=True)
        sunk = Sunk(await other.house.handler(late))
        assert sunk.data == b"".join(BLOCKS)
        assert sunk.over


async def test_what_is_kept_there_is_sealed(server: Valkey) -> None:
    async with nodes(server, 2, encryption_key="0123456789abcdef0123456789abcdef") as (one, other):
        one.house.upstream.answers.append(Reply(200, [], b"the plain answer"))
        await one.house.ask()
        await one.written()
        with server.client() as client:
            values = [client.get(key) for key in client.scan_iter("*cache:*")]
        assert values
        assert not any(b"the plain answer" in (value or b"") for value in values)
        assert state(await other.house.ask()) == "hit"


async def test_a_value_that_was_tampered_with_is_a_miss(server: Valkey) -> None:
    async with nodes(server) as (one, other):
        await one.house.ask()
        await one.written()
        with server.client() as client:
            for key in client.scan_iter("*cache:*"):
                client.set(key, b"\1garbage", ex=60)
        assert state(await other.house.ask()) == "stored"
        assert counted(other.parts, "cache_state_failures_total") == {("read",): 1}


async def test_a_state_that_is_gone_is_counted_and_costs_nobody_an_answer(own: Valkey) -> None:
    async with nodes(own, 1, timeout="300ms") as (node,):
        await node.house.ask()
        await node.written()
        own.kill()
        node.store.memory.drop_all(lambda _: True)
        assert state(await node.house.ask()) == "stored"
        assert counted(node.parts, "cache_state_failures_total")[("get",)] == 1
        began = time.monotonic()
        for n in range(20):  # it is left alone now
            assert state(await node.house.ask(text=str(n))) == "stored"
        assert time.monotonic() - began < 3.0
        assert counted(node.parts, "cache_state_failures_total")[("dropped",)] == 21
        own.start()
        node.house.time.advance(3)
        assert state(await node.house.ask(text="back")) == "stored"
        await node.written()
        with own.client() as client:
            assert len(list(client.scan_iter("*cache:*"))) >= 1


async def test_a_state_that_hangs_is_left_alone(own: Valkey) -> None:
    async with nodes(own, 1, timeout="300ms") as (node,):
        await node.house.ask()
        await node.written()
        own.pause()
        try:
            began = time.monotonic()
            for n in range(30):
                assert state(await node.house.ask(text=str(n))) == "stored"
            assert time.monotonic() - began < 6.0
        finally:
            own.go_on()


async def test_killed_while_it_is_written(server: Valkey) -> None:
    async with nodes(server) as (one, other):
        await one.house.ask()
        for task in tuple(one.store._tasks):
            task.cancel()
        await asyncio.gather(*one.store._tasks, return_exceptions=True)
        reply = await other.house.ask()
        assert reply.first == b'{"n":1}'
        assert one.store._writing == 0


# ---- purges
@pytest.mark.parametrize(
    "line, good",
    [
        ("all", False), ("model:smart", False), ("model:other", True), ("user:ada", False), ("user:bob", True),
        ("org:acme", False), ("key:k1", False), ("tag:docs", False), ("tag:other", True), ("server:smart", True),
    ],
)  # fmt: skip
async def test_what_a_purge_concerns(line: str, good: bool) -> None:
    one = MemoryState(Clock())
    purges = Purges(one)
    purges.start()
    try:
        kept = entry(user="ada", org="acme", owner="k1", tags=("docs",))
        assert purges.good(kept)
        number = await purge(one, line)
        assert purges.good(kept) is good
        assert purges.good(entry(user="ada", org="acme", tags=("docs",), generation=number))
    finally:
        await purges.close()
        await one.close()


def test_what_there_is_to_purge_by() -> None:
    assert purge_line("all") == "all"
    assert purge_line("tag", "x") == "tag:x"
    for what, name in (("all", "x"), ("tag", ""), ("tag", "x" * 257), ("nothing", "x")):
        with pytest.raises(ValueError, match=r"purge by|name"):
            purge_line(what, name)  # type: ignore[arg-type]
    assert lines_of(entry(server="shop", model="")) == ["all", "server:shop"]


@pytest.mark.timed
async def test_a_purge_is_in_force_on_every_node_within_a_second(server: Valkey) -> None:
    async with nodes(server) as (one, other):
        await one.house.ask()
        await one.written()
        assert state(await other.house.ask()) == "hit"
        await other.state.bus.ready()
        await one.state.bus.ready()
        began = time.monotonic()
        await purge(one.state, "tag:docs")
        while other.store.purges.latest == 0 or one.store.purges.latest == 0:
            assert time.monotonic() - began < 1.0
            await asyncio.sleep(0.005)
        assert state(await other.house.ask()) == "stored"
        assert len(other.store.memory) == 1
        await other.written()
        assert state(await one.house.ask()) == "hit"  # the new one


async def test_an_answer_that_was_asked_for_before_a_purge_is_not_given_after_it(server: Valkey) -> None:
    async with nodes(server, 1) as (node,):
        node.house.upstream.gate.clear()
        task = asyncio.ensure_future(node.house.handler(asked()))
        while not node.house.upstream.calls:
            await asyncio.sleep(0.001)
        node.store.purges.apply({"all": await purge(node.state, "all")})
        node.house.upstream.gate.set()
        await task
        assert state(await node.house.ask()) == "stored"
        assert len(node.house.upstream.calls) == 2


async def test_who_asks_after_a_purge_rides_in_no_flight_from_before_it(server: Valkey) -> None:
    async with nodes(server, 1) as (node,):
        node.house.upstream.gate.clear()
        first = asyncio.ensure_future(node.house.handler(asked()))
        while not node.house.upstream.calls:
            await asyncio.sleep(0.001)
        node.store.purges.apply({"all": await purge(node.state, "all")})
        second = asyncio.ensure_future(node.house.handler(asked()))
        while len(node.house.upstream.calls) < 2:
            await asyncio.sleep(0.001)
        node.house.upstream.gate.set()
        assert (await first).first != (await second).first
        assert state(await node.house.ask()) == "hit"


async def test_a_node_that_missed_it_reads_it_from_the_state(server: Valkey) -> None:
    async with nodes(server, 1) as (node,):
        await node.state.values.put(KEY, b'{"all":7}', 60.0)
        node.store.purges._wake.set()
        while not node.store.purges.latest:
            await asyncio.sleep(0.005)
        node.store.purges._told(b"not JSON")
        for number in (b"3", b"-1", b"1" + b"0" * 30, b"1e30", b"null"):
            node.store.purges._told(b'{"all":%b}' % number)
        assert node.store.purges.latest == 7


async def test_a_new_node_gives_nothing_that_was_purged_before_it_came(server: Valkey) -> None:
    async with nodes(server, 1) as (one,):
        await one.house.ask()
        await one.written()
        await purge(one.state, "all")
        late = Node(server.url, one.prefix)
        try:
            assert state(await late.house.ask()) == "stored"
        finally:
            await late.close()


async def test_a_clock_that_ran_ahead_brings_nothing_back() -> None:
    one = MemoryState(Clock())
    purges = Purges(one)
    first = await purge(one, "user:ada")
    ahead = {"user:ada": first, "tag:x": first + 10 * 365 * 86_400_000}
    await one.values.put(KEY, msgspec.json.encode(ahead), 60.0)
    await purge(one, "tag:y")
    purges.apply(msgspec.json.decode(await one.values.get(KEY) or b"{}", type=dict[str, int]))
    assert not purges.good(entry(user="ada", generation=first - 1))
    await one.close()


async def test_purges_at_once_are_all_in_force_and_numbers_only_rise(server: Valkey) -> None:
    async with nodes(server, 2) as (one, other):
        found = await asyncio.gather(
            *(purge(node.state, f"tag:t{n}") for n in range(4) for node in (one, other)), purge(one.state, "all")
        )
        assert len(set(found)) == 9
        again = await purge(one.state, "all")
        assert again > max(found)


async def test_too_many_purges_become_one_for_all() -> None:
    one = MemoryState(Clock())
    for n in range(3):
        await purge(one, f"tag:{n}")
    many = {f"tag:{n}": 10**13 + n for n in range(2000)}
    purges = Purges(one)
    purges.apply(many)
    assert not purges.good(entry(tags=("5",)))
    assert purges.good(entry(tags=("none",)))
    purges.apply({"tag:one-more": 10**13 + 5000})
    assert not purges.good(entry(tags=("none",)))
    await one.close()
