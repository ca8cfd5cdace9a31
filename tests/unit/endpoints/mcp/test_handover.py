"""Calls whose agent comes back to another worker than the one that holds them: two endpoints, one bus between them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from tests.fixtures.mcp_gateway import Gateway, gateway
from tests.fixtures.mcp_raw import upstream
from tests.unit.endpoints.mcp.test_bridge import ADA, DECLARED, Asks, ask, needed, retry, text, until

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.clock import Clock
from tollhouse.endpoints.mcp import handover as its
from tollhouse.store.memory import MemoryBus, MemoryCounter, MemoryValues

pytestmark = pytest.mark.anyio


class Bus(MemoryBus):
    """drops: what never arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.drops: Callable[[str, bytes], bool] = lambda topic, message: False
        self.values = MemoryValues(Clock())

    async def publish(self, topic: str, message: bytes) -> None:
        if not self.drops(topic, message):
            await super().publish(topic, message)


class Worker:
    """A State of two workers in one process."""

    shared = True
    keys = (b"k" * 32,)

    def __init__(self, node: str, bus: Bus) -> None:
        self.node = node
        self.bus = bus
        self.values = bus.values
        self.counter = MemoryCounter(Clock())

    async def close(self) -> None: ...


@asynccontextmanager
async def workers(script: Any, **more: Any) -> AsyncIterator[tuple[Gateway, Gateway, Bus]]:
    bus = Bus()
    async with upstream(script) as server:
        specs: Any = {"u": HttpServerSpec(url=server.url)}
        async with (
            gateway(specs, bridging={"state": Worker("one", bus)}, **more) as one,
            gateway(specs, bridging={"state": Worker("two", bus)}, **more) as other,
        ):
            for running in (one, other):
                await running.stateless().ask("tools/list")
            yield one, other, bus


def answers(asked: Any) -> dict[str, Any]:
    return dict.fromkeys(asked["inputRequests"], ADA)


async def test_a_retry_at_another_worker() -> None:
    script = Asks()
    async with workers(script) as (one, other, _):
        asked = needed(await one.stateless(who="ada").call("echo", _meta=DECLARED))
        told = await retry(other.stateless(who="ada"), asked, answers(asked))
        assert json.loads(told.text) == {"q": ADA}
        assert script.calls == 1
        assert not len(one.bridge)
        again = await retry(other.stateless(who="ada"), asked, answers(asked))
        assert again.error == (400, -32602)
        assert (await retry(other.stateless(who="bob"), asked, answers(asked))).error == (400, -32602)


async def test_rounds_at_changing_workers() -> None:
    script = Asks(ask(1), ask(2, "roots/list", {}))
    async with workers(script) as (one, other, _):
        asked = needed(await one.stateless().call("echo", _meta=DECLARED))
        first, second = asked["inputRequests"]
        asked = needed(await retry(other.stateless(), asked, {first: ADA}))
        assert list(asked["inputRequests"]) == [second]
        told = await retry(one.stateless(), asked, {second: {"roots": []}})
        assert json.loads(told.text) == {"1": ADA, "2": {"roots": []}}


async def test_one_of_two_retries_at_two_workers_wins() -> None:
    async with workers(Asks()) as (one, other, _):
        asked = needed(await one.stateless().call("echo", _meta=DECLARED))
        told = await asyncio.gather(*(retry(at.stateless(), asked, answers(asked)) for at in (one, other)))
        assert sorted(one.status for one in told) == [200, 400]


class Large(Asks):
    async def wait(self) -> None:
        await super().wait()
        self.told = {"q": "x" * (3 << 20)}


async def test_a_large_result_comes_whole_or_not_at_all() -> None:
    script = Large()
    async with workers(script) as (one, other, bus):
        asked = needed(await one.stateless().call("echo", _meta=DECLARED))
        told = await retry(other.stateless(), asked, answers(asked))
        assert len(json.loads(told.text)["q"]) == 3 << 20
        script.told.clear()
        asked = needed(await one.stateless().call("echo", _meta=DECLARED))
        count = [0]

        def drops(topic: str, message: bytes) -> bool:
            count[0] += topic.startswith("mcp.r.")
            return topic.startswith("mcp.r.") and count[0] == 5

        bus.drops = drops
        lost = await retry(other.stateless(), asked, answers(asked))
        assert lost.message["error"]["data"]["reason"] == "call_lost"


async def test_a_worker_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(its, "_ACK", 0.1)
    hint = {"annotations": {"readOnlyHint": True}}
    for tool, calls in (({}, 1), (hint, 2)):
        script = Asks(tools=[{"name": "echo", "inputSchema": {"type": "object"}, **tool}])
        async with workers(script) as (one, other, bus):
            asked = needed(await one.stateless().call("echo", _meta=DECLARED))
            bus.drops = lambda topic, message: topic == "mcp.h.one"
            await bus.values.remove("mcp.a.one")
            told = await retry(other.stateless(), asked, answers(asked))
            if tool:  # what was answered before is not asked again
                assert json.loads(told.text) == {"q": ADA}
            else:
                assert told.message["error"]["data"]["reason"] == "call_lost"
            assert script.calls == calls


async def test_a_worker_that_dies_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(its, "_SILENCE", 0.3)

    class Slow(Asks):
        async def wait(self) -> None:
            await super().wait()
            await asyncio.sleep(60)

    async with workers(Slow()) as (one, other, bus):
        asked = needed(await one.stateless().call("echo", _meta=DECLARED))
        bus.drops = lambda topic, message: topic.startswith("mcp.r.") and b"\x00" not in message[:3]
        told = await retry(other.stateless(), asked, answers(asked))
        assert told.message["error"]["data"]["reason"] == "call_lost"


async def test_who_leaves_the_other_worker_cancels_the_call() -> None:
    class Slow(Asks):
        async def wait(self) -> None:
            await super().wait()
            await asyncio.sleep(60)

    script = Slow()
    async with workers(script) as (one, other, _):
        asked = needed(await one.stateless().call("echo", _meta=DECLARED))
        params = {"name": "echo", "arguments": {}, "requestState": asked["requestState"], "_meta": DECLARED}
        stream = await other.stateless().start("tools/call", params | {"inputResponses": answers(asked)})
        await until(lambda: script.told)
        await stream.close()
        await until(lambda: script.cancelled)
        await until(lambda: not len(one.bridge))


async def test_what_cannot_be_read_is_left() -> None:
    async with workers(Asks()) as (one, _, bus):
        for message in (b"", b"\xff", msgspec.msgpack.encode([7]), msgspec.msgpack.encode([1, "nobody"])):
            await bus.publish("mcp.w.one", message)
        asked = needed(await one.stateless().call("echo", _meta=DECLARED))
        assert (await retry(one.stateless(), asked, answers(asked))).text
        assert text("x")


async def test_a_worker_that_lives_and_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody goes on in its place; the agent may ask again."""
    monkeypatch.setattr(its, "_ACK", 0.02)
    script = Asks()
    async with workers(script) as (one, other, bus):
        asked = needed(await one.stateless().call("echo", _meta=DECLARED))
        bus.drops = lambda topic, message: topic == "mcp.h.one"
        told = await retry(other.stateless(), asked, answers(asked))
        assert told.message["error"]["data"]["reason"] == "state_unavailable"
        bus.drops = lambda topic, message: False
        told = await retry(other.stateless(), asked, answers(asked))
        assert json.loads(told.text) == {"q": ADA}
        assert script.calls == 1


class Short(Asks):
    async def wait(self) -> None:
        await super().wait()
        self.told = {"q": len(self.told["q"]["content"]["name"])}


async def test_answers_that_no_message_can_hold() -> None:
    script = Short()
    async with workers(script) as (one, other, bus):
        asked = needed(await one.stateless().call("echo", _meta=DECLARED))
        large = {"action": "accept", "content": {"name": "x" * (6 << 20)}}
        told = await retry(other.stateless(), asked, dict.fromkeys(asked["inputRequests"], large))
        assert json.loads(told.text) == {"q": 6 << 20}
        script.told.clear()
        asked = needed(await one.stateless().call("echo", _meta=DECLARED))
        count = [0]

        def drops(topic: str, message: bytes) -> bool:
            count[0] += topic == "mcp.h.one"
            return topic == "mcp.h.one" and count[0] == 3

        bus.drops = drops
        told = await retry(other.stateless(), asked, dict.fromkeys(asked["inputRequests"], large))
        assert json.loads(told.text) == {"q": 6 << 20}
        assert count[0] > 8


async def test_a_worker_leaves_while_it_carries() -> None:
    """What may be repeated begins again where its agent is; other calls are lost."""
    for tool, calls in (({}, 1), ({"annotations": {"readOnlyHint": True}}, 2)):
        script = Asks(ask(1), tools=[{"name": "echo", "inputSchema": {"type": "object"}, **tool}])
        async with workers(script) as (one, other, _):
            asked = needed(await one.stateless().call("echo", _meta=DECLARED))
            script.holds = asyncio.Event()
            retried = asyncio.create_task(retry(other.stateless(), asked, answers(asked)))
            async with asyncio.timeout(10):
                while not script.told:
                    await asyncio.sleep(0.01)
            await one.bridge.closed()
            script.holds.set()
            told = await retried
            if tool:
                assert json.loads(told.text) == {"1": ADA}
            else:
                assert told.message["error"]["data"]["reason"] == "call_lost"
            assert script.calls == calls
