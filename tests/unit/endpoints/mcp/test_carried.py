"""Calls that go on without their agents' connections (2025-11-25), over real sockets."""

import asyncio
import json
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Gateway, Stream, gateway, until
from tests.fixtures.mcp_gateway import Old as Agent
from tests.fixtures.mcp_raw import CUT, Asked, Old, answer, result, upstream
from tests.unit.endpoints.mcp.test_resume import raw, some

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.call import Call
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.carried import Carried
from tollhouse.wire import jsonrpc

pytestmark = pytest.mark.anyio

CALL = {"name": "slow", "arguments": {}}


class Slow(Old):
    """Its tool answers in one piece, when it is told to. `asked`: how often it was called."""

    def __init__(self, last: Any = None) -> None:
        super().__init__(tools_call=self.call)
        self.go = asyncio.Event()
        self.asked = 0
        self.last = last

    def call(self, asked: Asked) -> Any:
        self.asked += 1
        done = result(asked, {"content": [{"type": "text", "text": "done"}]}) if self.last is None else self.last
        return [self.go.wait(), done]


def specs(url: str) -> dict[str, Any]:
    return {"u": HttpServerSpec(url=url)}


async def read_on(running: Gateway, agent: Agent, last: str) -> list[Any]:
    """The messages after event `last`, to the end of their stream."""
    again = await running.open(None, agent.headers | {"last-event-id": last}, method="GET")
    await again.head()
    async with asyncio.timeout(10):
        rest = [json.loads(data) for _, data in raw(await again.body()) if data]
    await again.close()
    return rest


async def begun(agent: Agent) -> tuple[Stream, str]:
    """A call that takes its time, and the id that its stream begins with."""
    stream = await agent.start("tools/call", CALL)
    await stream.head()
    assert stream.headers["content-type"] == "text/event-stream"
    (first,) = await some(stream, 1)
    assert first[1] == ""
    return stream, first[0]


async def test_a_call_that_has_said_nothing_yet_is_read_on() -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway(specs(server.url)) as running:
        agent = await running.agent()
        stream, id = await begun(agent)
        await stream.close()
        slow.go.set()
        (message,) = await read_on(running, agent, id)
        assert message["id"] == agent.ids
        assert message["result"]["content"][0]["text"] == "done"
        assert not server.calls("notifications/cancelled")
        assert slow.asked == 1
        (session,) = running.sessions._open.values()
        assert not session.calls


async def test_who_stays_reads_it_to_its_end() -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway(specs(server.url)) as running:
        agent = await running.agent()
        stream, _ = await begun(agent)
        slow.go.set()
        assert (await stream.next())["result"]["content"][0]["text"] == "done"
        assert await stream.event() is None
        await stream.close()


async def test_who_leaves_before_anything_was_sent_has_not_cancelled() -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway(specs(server.url)) as running:
        agent = await running.agent()
        stream = await agent.start("tools/call", CALL)
        await until(lambda: slow.asked)
        await stream.close()
        (session,) = running.sessions._open.values()
        await until(lambda: session.tracks)
        slow.go.set()
        await until(lambda: not session.calls)
        assert not server.calls("notifications/cancelled")
        assert not session.tracks  # nobody knows an id to come back with


async def test_cancelling_ends_it_at_the_server() -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway(specs(server.url)) as running:
        agent = await running.agent()
        stream, _ = await begun(agent)
        await agent.tell("notifications/cancelled", {"requestId": agent.ids})
        assert await stream.event() is None
        await stream.close()
        early = await agent.start("tools/call", CALL)
        await until(lambda: slow.asked == 2)
        await agent.tell("notifications/cancelled", {"requestId": agent.ids})
        await early.head()
        assert json.loads(await early.body())["error"]["data"]["reason"] == "ClientGone"
        await early.close()
        await until(lambda: len(server.calls("notifications/cancelled")) == 2)
        await until(lambda: not running.sessions._ending)


@pytest.mark.parametrize("last", [answer(500, b"oh"), CUT, answer(200, b"{}")])
async def test_a_failure_is_told_on_the_stream(last: Any) -> None:
    slow = Slow(last)
    async with upstream(slow) as server, gateway(specs(server.url)) as running:
        agent = await running.agent()
        stream, _ = await begun(agent)
        slow.go.set()
        assert (await stream.next())["error"]["code"] == -32603
        assert await stream.event() is None
        await stream.close()


async def test_the_end_of_a_session_ends_its_calls() -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway(specs(server.url)) as running:
        agent = await running.agent()
        stream, _ = await begun(agent)
        assert await agent.end() == 204
        assert await stream.event() is None
        await stream.close()
        await until(lambda: not running.sessions._ending)
        await until(lambda: any(asked.http == "DELETE" for asked in server.asked))


@pytest.mark.parametrize("revision", ["2025-03-26", "2025-06-18"])
async def test_agents_that_cannot_come_back_get_one_answer(revision: str) -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway(specs(server.url)) as running:
        agent = await running.agent(revision=revision)
        stream = await agent.start("tools/call", CALL)
        await until(lambda: slow.asked)
        await asyncio.sleep(0.4)  # longer than others wait for the first event
        slow.go.set()
        await stream.head()
        assert stream.headers["content-type"] == "application/json"
        await stream.close()


@pytest.mark.parametrize("leaves", [True, False])
async def test_what_becomes_due_after_the_agent_left_is_done(leaves: bool) -> None:
    slow = Slow()
    due: list[Ending] = []

    async def policy(call: Call, next: Handler[Call, Reply]) -> Reply:
        reply = await next(call)
        call.request.ends.append(due.append)
        reply.ends.append(due.append)
        return reply

    async with upstream(slow) as server, gateway(specs(server.url), policies=(policy,)) as running:
        agent = await running.agent()
        stream, _ = await begun(agent)
        (session,) = running.sessions._open.values()
        if leaves:
            await stream.close()
            await until(lambda: not any(track.is_read for track in session.tracks.values()))
        slow.go.set()
        await until(lambda: len(due) == 2)
        assert not session.calls
        await stream.close()
    assert len(due) == 2


async def test_so_many_go_on_unread() -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway(specs(server.url)) as running:
        agent = await running.agent()
        (session,) = running.sessions._open.values()
        for n in range(66):
            stream = await agent.start("tools/call", CALL)
            await until(lambda n=n: slow.asked == n + 1)
            await stream.close()
            await until(lambda: all(not track.is_read for track in session.tracks.values()))
        await until(lambda: len(server.calls("notifications/cancelled")) == 2)
        slow.go.set()
        await until(lambda: not session.calls)


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_answered_in_the_very_turn_in_which_a_stream_begins_is_told(fails: bool) -> None:
    gate = asyncio.Event()

    async def waits(call: Call, next: Handler[Call, Reply]) -> Reply:
        await gate.wait()
        if fails:
            raise Failure(502, Reason.UPSTREAM_FAILURE, "what came")
        return Reply(200, [], jsonrpc.result(0, b'{"content":[{"type":"text","text":"what came"}]}'))

    async with upstream(Slow()) as server, gateway(specs(server.url), policies=(waits,)) as running:
        agent = await running.agent()
        stream = await agent.start("tools/call", CALL)
        (session,) = running.sessions._open.values()
        await until(lambda: session.calls)
        (call,) = session.calls.values()
        gate.set()
        assert isinstance(call.answer, Carried)
        call.answer.expire()  # the clock, before the call's own task has its turn
        await stream.head()
        assert b"what came" in await stream.body()
        await stream.close()
        assert not session.calls


async def test_requests_of_one_id_are_answered_and_ended_both() -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway(specs(server.url)) as running:
        agent = await running.agent()
        (session,) = running.sessions._open.values()
        begins = agent.ids
        streams = []
        for n in range(8):
            agent.ids = begins
            streams.append(await agent.start("tools/call", CALL))
            await until(lambda n=n: slow.asked == n + 1)
        agent.ids = begins
        assert (await agent.call("slow")).error == (400, -32600)
        for stream in streams[2:]:
            await stream.close()
        assert (await agent.tell("notifications/cancelled", {"requestId": agent.ids})).status == 202
        await until(lambda: not session.calls)
        await until(lambda: len(server.calls("notifications/cancelled")) == 8)
        for stream in streams[:2]:
            await stream.close()
        for _ in range(2):
            agent.ids = begins
            streams.append(await agent.start("tools/call", CALL))
        await until(lambda: slow.asked == 10)
        assert await agent.end() == 204
        await until(lambda: not any("Carried" in str(task.get_coro()) for task in asyncio.all_tasks()))
