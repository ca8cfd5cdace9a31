"""The same, asked of several nodes at once: one asks, and what the others wait for, how long, and what they pay."""

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.fixtures.valkey import Valkey, valkey
from tests.unit.policies.cache.house import Sunk, asked, gone, over, state, streamed
from tests.unit.policies.cache.node import Node, nodes
from tests.unit.policies.cache.test_store import entry
from tests.unit.policies.floor import counted

from tollhouse.core.call import ModelCall, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.policies.cache.claims import CLAIMED
from tollhouse.policies.cache.entry import packed
from tollhouse.policies.cache.purges import purge

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one


async def until(met: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not met():
            await asyncio.sleep(0.002)


async def begun(node: Node, call: ModelCall | None = None) -> "asyncio.Task[Reply]":
    """It asks its upstream, which does not answer yet."""
    node.house.upstream.gate.clear()
    before = len(node.house.upstream.calls)
    task = asyncio.ensure_future(node.house.ask(call or asked()))
    await until(lambda: len(node.house.upstream.calls) > before)
    return task


async def waiting(node: Node, call: ModelCall | None = None) -> "asyncio.Task[Reply]":
    """It has seen that another one asks."""
    before = node.done.count("claim")
    task = asyncio.ensure_future(node.house.ask(call or asked()))
    await until(lambda: node.done.count("claim") > before)
    return task


def key_of(server: Valkey, node: Node) -> bytes:
    with server.client() as client:
        (key,) = [key for key in client.scan_iter(f"{node.prefix}:v:cache:*") if b"purged" not in key]
    found: bytes = key
    return found


@pytest.mark.parametrize("settings", [{}, {"encryption_key": "0123456789abcdef0123456789abcdef"}])
async def test_the_same_at_two_nodes_is_asked_once(server: Valkey, settings: Any) -> None:
    async with nodes(server, **settings) as (one, other):
        first = await begun(one)
        call = asked()
        riders = [await waiting(other, call), asyncio.ensure_future(other.house.ask())]
        one.house.upstream.gate.set()
        answer = await first
        for rider in riders:
            reply = await rider
            assert (reply.first, state(reply)) == (answer.first, "hit")
        assert not other.house.upstream.calls
        assert (call.context.cached, call.context.usage, call.context.saved_nano) == ("exact", Usage(), 35)
        assert (call.context.cache, first.result().headers[-1]) == ("", (b"x-tollhouse-cache", b"stored"))
        assert len(one.store.claims) == len(other.store.claims) == 0


async def test_a_miss_is_one_round_trip_and_a_hit_none(server: Valkey) -> None:
    async with nodes(server, 1) as (node,):
        before = len(node.done)
        await node.house.ask()
        assert [what for what in node.done[before:] if what != "put"] == ["claim"]
        await node.written()
        before = len(node.done)
        assert state(await node.house.ask()) == "hit"
        assert node.done[before:] == []


@pytest.mark.parametrize(
    "answer",
    [Failure(502, Reason.UPSTREAM_FAILURE, "x"), Reply(400, [], b"{}"), Reply(200, [], b"x" * 5000)],
)
async def test_where_there_is_no_answer_to_keep_the_others_ask_at_once(server: Valkey, answer: Any) -> None:
    async with nodes(server, 3, exact={"max_size": 1024}) as made:
        one, *others = made
        one.house.upstream.answers.append(answer)
        first = await begun(one)
        riders = [await waiting(node) for node in others]
        began = time.monotonic()
        one.house.upstream.gate.set()
        await asyncio.gather(first, return_exceptions=True)
        assert {state(await rider) for rider in riders} <= {"stored", "hit"}
        assert time.monotonic() - began < 2.9  # and not the three seconds of a claim
        assert 1 <= sum(len(node.house.upstream.calls) for node in others) <= 2


async def test_who_leaves_lets_go_at_once(server: Valkey) -> None:
    async with nodes(server) as (one, other):
        first = await begun(one)
        rider = await waiting(other)
        first.cancel()
        async with asyncio.timeout(2):
            assert state(await rider) == "stored"
        await asyncio.wait((first,))
        assert not one.store.flights


async def test_a_node_that_has_died_is_waited_for_no_longer_than_its_claim_stands(server: Valkey) -> None:
    async with nodes(server) as (one, other):
        task = await begun(one)
        with server.client() as client:
            key = key_of(server, one)
            assert 2000 < client.pttl(key) <= 3000
            client.pexpire(key, 300)
        rider = await waiting(other)
        async with asyncio.timeout(3):
            assert state(await rider) == "stored"
        task.cancel()
        await asyncio.wait((task,))
        await one.written()
        assert state(await other.house.ask()) == "hit"  # its claim is another's now


async def test_a_claim_is_renewed_while_it_is_asked(server: Valkey) -> None:
    async with nodes(server, 1) as (node,):
        task = await begun(node)
        with server.client() as client:
            key = key_of(server, node)
            client.pexpire(key, 1000)
            node.house.time.advance(1.1)
            await until(lambda: int(client.pttl(key)) > 2000)
            node.house.upstream.gate.set()
            await task
            await node.written()
            assert client.pttl(key) > 50_000
            node.house.time.advance(1.1)
            assert client.pttl(key) > 50_000


async def test_nobody_waits_longer_than_he_wants_to(server: Valkey) -> None:
    async with nodes(server, exact={"single_flight": {"nodes": "200ms"}}) as (one, other):
        first = await begun(one)
        began = time.monotonic()
        assert state(await other.house.ask()) == "stored"
        assert 0.15 < time.monotonic() - began < 10.0
        one.house.upstream.gate.set()
        await first
    async with nodes(server) as (one, other):  # and half of the time that he has is for asking himself
        for text in ("by his deadline", "by the model's"):
            late = asked(text)
            if text == "by his deadline":
                late.context.deadline = time.monotonic() + 1.0
            else:
                other.house.behind.total = 1.0
            first = await begun(one, asked(text))
            async with asyncio.timeout(5):
                assert state(await other.house.ask(late)) == "stored"
            one.house.upstream.gate.set()
            await first


@pytest.mark.parametrize("flight", [False, {"nodes": "0s"}])
async def test_nobody_waits_where_that_is_not_wanted(server: Valkey, flight: Any) -> None:
    async with nodes(server, exact={"single_flight": flight}) as (one, other):
        first = await begun(one)
        assert state(await other.house.ask()) == "stored"
        one.house.upstream.gate.set()
        await first
        assert "claim" not in one.done + other.done


async def test_one_that_asked_before_a_purge_is_not_waited_for(server: Valkey) -> None:
    async with nodes(server) as (one, other):
        first = await begun(one)
        other.store.purges.apply({"all": await purge(other.state, "all")})
        async with asyncio.timeout(2):
            assert state(await other.house.ask()) == "stored"
        one.house.upstream.gate.set()
        await first
        assert (await other.house.ask()).first == b'{"n":1}'


@pytest.mark.parametrize("size", [10, 100_000])
async def test_what_was_purged_is_in_nobody_s_way(server: Valkey, size: int) -> None:
    async with nodes(server) as (one, other):
        one.house.upstream.answers.append(Reply(200, [], b"x" * size))
        await one.house.ask()
        await one.written()
        lines = {"all": await purge(one.state, "all")}
        for node in (one, other):
            node.store.purges.apply(lines)
        first = await begun(one)
        rider = asyncio.ensure_future(other.house.ask())
        if size > 1000:  # what is sent twice to be replaced is not that large
            assert state(await rider) == "stored"
        one.house.upstream.gate.set()
        await asyncio.gather(first, rider)
        assert len(other.house.upstream.calls) == (size > 1000)


async def test_a_stream_is_asked_for_by_each_node_unless_it_is_to_wait(server: Valkey) -> None:
    blocks = [b"data: %d\n\n" % n for n in range(3)]
    for waits in (False, True):
        flight = {"streams": "5s"} if waits else {}
        async with nodes(server, exact={"single_flight": flight}) as (one, other):
            sources = []
            for node in (one, other):
                reply, source = streamed(blocks[0])
                node.house.upstream.answers.append(reply)
                sources.append(source)
            call = asked(stream=True)
            reply = await one.house.handler(call)
            first = Sunk(reply)
            late = asked(stream=True)
            task = asyncio.ensure_future(other.house.handler(late))
            if waits:
                await until(lambda: "claim" in other.done)
            else:
                second = await task
                assert state(second) == "miss"
                gone(late, second)
            sources[0].say(*blocks[1:])
            sources[0].end()
            over(call, reply)
            assert first.data == b"".join(blocks)
            if waits:
                sunk = Sunk(await task)
                assert (sunk.data, sunk.over) == (b"".join(blocks), True)
                assert not other.house.upstream.calls


async def test_a_stream_that_grows_too_large_lets_the_others_go(server: Valkey) -> None:
    async with nodes(server, exact={"max_size": 1024, "single_flight": {"streams": "20s"}}) as (one, other):
        reply, source = streamed(b"data: 0\n\n")
        one.house.upstream.answers.append(reply)
        call = asked(stream=True)
        reply = await one.house.handler(call)
        Sunk(reply)
        task = asyncio.ensure_future(other.house.handler(asked(stream=True)))
        await until(lambda: "claim" in other.done)
        source.say(b"x" * 2000)
        one.house.time.advance(1.1)
        async with asyncio.timeout(2):
            await task
        source.end()
        over(call, reply)


async def test_what_stands_there_and_is_none_of_ours(server: Valkey) -> None:
    async with nodes(server, exact={"single_flight": {"nodes": "300ms"}}) as (one, other):
        await one.house.ask()
        await one.written()
        ((name, _),) = one.store.memory._kept.items()
        for garbage in (b"", b"junk", b"\1junk", packed(entry(key=b"x" * 20)), CLAIMED, CLAIMED + b"junk"):
            await other.state.values.put(f"cache:{name.hex()}", garbage, 60.0)
            for node in (one, other):
                node.store.memory.drop_all(lambda _: True)
            async with asyncio.timeout(3):
                assert state(await other.house.ask()) == "stored"
            await other.written()
            assert not other.store.flights


async def test_those_under_way_are_in_no_writer_s_way(server: Valkey) -> None:
    async with nodes(server) as (one, other):
        tasks = [await begun(one, asked(text=str(n))) for n in range(300)]
        meanwhile = one.house.chain({"exact": {"ttl": "1m"}}, one.parts, other.house.upstream.handle)
        await meanwhile(asked(text="first"))
        while one.store._writes:
            await asyncio.sleep(0.001)
        assert state(await other.house.ask(text="first")) == "hit"
        one.house.upstream.gate.set()
        await asyncio.gather(*tasks)
        assert not one.store.flights


async def test_a_server_that_is_slow_is_left_alone_and_nobody_is_waited_for(tmp_path: Path) -> None:
    with valkey(tmp_path) as own:
        async with nodes(own, 2) as (one, other):
            first = await begun(one)
            own.pause()
            rider = asyncio.ensure_future(other.house.ask())
            await asyncio.sleep(0.4)
            own.go_on()
            async with asyncio.timeout(5):
                assert state(await rider) == "stored"
            assert counted(other.parts, "cache_state_failures_total")[("slow",)] == 1
            before = len(other.done)
            assert state(await other.house.ask(text="more")) == "stored"
            assert other.done[before:] == []
            one.house.upstream.gate.set()
            await first


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
async def test_a_server_that_is_full(tmp_path: Path, policy: str) -> None:
    with valkey(tmp_path) as own:
        async with nodes(own, 2) as (one, other):
            await one.house.ask()
            await one.written()
            own.do("CONFIG", "SET", "maxmemory-policy", policy)
            own.do("CONFIG", "SET", "maxmemory", "1")
            if policy == "noeviction":
                assert state(await other.house.ask()) == "hit"  # what is there is found all the same
            for n in range(3):
                assert state(await other.house.ask(text=str(n))) == "stored"
                await other.written()
            assert not other.store.flights
            if policy == "noeviction":
                failures = counted(other.parts, "cache_state_failures_total")
                assert failures[("put",)] >= 1


async def test_any_order_of_nodes_that_ask_leave_and_fail(server: Valkey) -> None:
    """Each caller has an answer or his failure, nobody waits for ever, and nothing is held on to."""
    for seed in range(12):
        random = Random(seed)
        async with nodes(server, 3, exact={"single_flight": {"nodes": "1s"}}) as made:
            for node in made:
                node.house.upstream.gate.clear()
                if random.random() < 0.4:
                    node.house.upstream.answers.append(Failure(502, Reason.UPSTREAM_FAILURE, "x"))
            tasks = []
            for _ in range(15):
                node = random.choice(made)
                what = random.random()
                if what < 0.6:
                    tasks.append(asyncio.ensure_future(node.house.handler(asked(text=random.choice("ab")))))
                elif what < 0.8 and tasks:
                    random.choice(tasks).cancel()
                else:
                    node.house.upstream.gate.set()
                await asyncio.sleep(random.choice((0.0, 0.0, 0.003)))
            for node in made:
                node.house.upstream.gate.set()
            async with asyncio.timeout(10):
                done = await asyncio.gather(*tasks, return_exceptions=True)
            for result in done:
                assert isinstance(result, (Reply, asyncio.CancelledError, Failure)), (seed, result)
            for node in made:
                await node.written()
                assert not node.store.flights
                assert len(node.store.claims) == 0


async def all_kinds(node: Node, number: int) -> None:
    """A whole answer, a stream and a failure."""
    await node.house.ask(text=f"whole {number}")
    reply, source = streamed(b"data: 0\n\n")
    node.house.upstream.answers += [reply, Failure(502, Reason.UPSTREAM_FAILURE, "x")]
    call = asked(str(number), stream=True)
    got = await node.house.handler(call)
    Sunk(got)
    source.say(b"data: 1\n\n")
    source.end()
    over(call, got)
    fails = asked(f"fails {number}")
    with contextlib.suppress(Failure):
        await node.house.handler(fails)
    over(fails)
    await node.written()
    node.house.upstream.calls.clear()


async def test_nothing_of_a_request_waits_for_the_collector(server: Valkey) -> None:
    async with nodes(server, 1, exact={"single_flight": {"streams": "5s"}}) as (node,):
        await all_kinds(node, 0)  # the server knows the scripts then
        gc.collect()
        gc.disable()
        try:
            for number in range(1, 4):
                await all_kinds(node, number)
            await asyncio.sleep(0)
            assert gc.collect() == 0
        finally:
            gc.enable()
