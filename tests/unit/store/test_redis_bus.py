"""The bus on Valkey when its connection is lost: it comes back by itself, and says what may be lacking."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from tests.fixtures.valkey import Proxy, Valkey, valkey

from tollhouse.core.errors import Failure
from tollhouse.store.redis import connects
from tollhouse.store.redis_bus import RedisBus
from tollhouse.store.redis_server import Server
from tollhouse.store.spec import place_of

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one


@asynccontextmanager
async def bus(port: int, **settings: Any) -> AsyncIterator[RedisBus]:
    place = place_of(f"redis://127.0.0.1:{port}")
    connect = connects(place, 2.0)
    publisher = Server(connect, place.nodes, name=str(place), timeout=2.0, lines=1)
    listening = partial(connect, place.nodes[0])
    made = RedisBus(publisher, listening, **{"name": str(place), "prefix": "p", "timeout": 2.0, **settings})
    try:
        yield made
    finally:
        await made.close()
        await publisher.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_cut_is_told_once_to_each_and_every_topic_is_heard_again(server: Valkey) -> None:
    async with Proxy(server.port) as proxy, bus(proxy.port) as one, bus(server.port) as other:
        gaps: list[str] = []
        heard: list[bytes] = []
        for n in range(30):
            one.subscribe(f"t{n}", heard.append, partial(gaps.append, f"t{n}"))
        end = one.subscribe("ended", heard.append, partial(gaps.append, "ended"))
        await one.ready()
        end()
        for times in (1, 2, 3):
            proxy.cut()
            await until(lambda times=times: len(gaps) == 30 * times)
            heard.clear()
            for n in range(30):
                await other.publish(f"t{n}", b"%d" % n)
            await until(lambda: len(heard) == 30)
        assert sorted(gaps) == sorted([f"t{n}" for n in range(30)] * 3)


async def test_a_gap_is_told_when_messages_come_again(server: Valkey) -> None:
    """What is published from within `on_gap` is delivered: so whoever reads anew then misses nothing."""
    async with Proxy(server.port) as proxy, bus(proxy.port) as one, bus(server.port) as other:
        heard: list[bytes] = []
        tasks: list[asyncio.Task[None]] = []

        def gap() -> None:
            tasks.append(asyncio.get_running_loop().create_task(other.publish("t", b"after")))

        one.subscribe("t", heard.append, gap)
        await one.ready()
        await other.publish("t", b"before")
        await until(lambda: heard)
        for times in range(1, 6):
            proxy.cut()
            await until(lambda times=times: len(heard) == 1 + times)
        assert heard == [b"before", *[b"after"] * 5]
        await asyncio.gather(*tasks)


async def test_a_connection_that_has_gone_silent_is_noticed(tmp_path: Any) -> None:
    with valkey(tmp_path) as own:
        async with bus(own.port, quiet=0.2, timeout=0.3) as one:
            gaps: list[str] = []
            heard: list[bytes] = []
            one.subscribe("t", heard.append, partial(gaps.append, "t"))
            await one.ready()
            await asyncio.sleep(0.7)  # it is asked, and answers
            assert gaps == []
            own.pause()
            await until(lambda: one._pending)
            with pytest.raises(Failure):
                await one.ready()
            with pytest.raises(Failure):
                await one.publish("t", b"lost")
            own.go_on()
            await until(lambda: gaps)
            await one.publish("t", b"after")
            await until(lambda: heard)
            assert heard[-1] == b"after"


async def test_subscribing_while_nobody_is_there(tmp_path: Any) -> None:
    own = Valkey(tmp_path)
    async with bus(own.port, timeout=0.2) as one:
        gaps: list[str] = []
        heard: list[bytes] = []
        one.subscribe("t", heard.append, partial(gaps.append, "t"))
        with pytest.raises(Failure):
            await one.ready()
        own.start()
        try:
            await until(lambda: not one._pending)
            await one.publish("t", b"m")
            await until(lambda: heard)
            assert gaps == []  # it had never heard anything
        finally:
            own.kill()


async def test_coming_and_going(server: Valkey) -> None:
    """Subscriptions that begin and end all the time: what is published after one began is always heard."""
    async with bus(server.port) as one:

        async def come_and_go(topic: str) -> None:
            for n in range(60):
                heard: list[bytes] = []
                ends = [one.subscribe(topic, heard.append) for _ in range(1 + n % 2)]
                if n % 5 == 0:
                    for end in ends:
                        end()
                    continue
                await one.publish(topic, b"%d" % n)
                if n % 3:
                    # What the round before published without waiting may still be on its way.
                    await until(lambda heard=heard, ends=ends, n=n: heard.count(b"%d" % n) == len(ends))
                for end in ends:
                    end()

        # Two on one topic hear each other, so each has its own.
        await asyncio.gather(*(come_and_go(f"t{n}") for n in range(6)))
        await until(lambda: not one._asked)
        assert server.do("PUBSUB", "CHANNELS", "p:b:*") == []


async def test_who_comes_back_before_the_server_has_answered_still_waits_for_it(server: Valkey) -> None:
    async with bus(server.port) as one:
        one.subscribe("other", print)
        await one.ready()
        end = one.subscribe("t", print)
        while "t" not in one._asked:
            await asyncio.sleep(0)
        assert one._unanswered
        end()
        one.subscribe("t", print)
        assert one._pending == {"t"}
        await one.ready()
        assert server.do("PUBSUB", "NUMSUB", "p:b:t") == [b"p:b:t", 1]
