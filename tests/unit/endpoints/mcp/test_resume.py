"""Agents that lose their connection and come back, over real sockets: streams, answers, and sessions elsewhere."""

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Stream, child, gateway
from tests.fixtures.mcp_raw import STREAM, Asked, Old, answer, chunk, events, upstream
from tests.unit.endpoints.mcp.test_session import KEY, Node

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.clock import Clock
from tollhouse.wire.mcp.sealed import Seals

pytestmark = pytest.mark.anyio

SPECS: dict[str, Any] = {"c": child()}


def raw(body: bytes) -> list[tuple[str, str]]:
    """(id, data) of each event of a stream."""
    found = []
    for event in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line and line[0] != ":")
        if "data" in fields or "id" in fields:
            found.append((fields.get("id", ""), fields.get("data", "")))
    return found


async def some(stream: Stream, count: int) -> list[tuple[str, str]]:
    """The next events of a stream that is open."""
    found: list[tuple[str, str]] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found += raw(await stream.chunk())
    return found


def progress(asked: Asked, n: int) -> bytes:
    token = asked.body["params"]["_meta"]["progressToken"]
    params = {"progressToken": token, "progress": n}
    return events({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})


def done(asked: Asked, text: str = "done") -> bytes:
    return events({"jsonrpc": "2.0", "id": asked.id, "result": {"content": [{"type": "text", "text": text}]}})


CALL = {"name": "slow", "arguments": {}, "_meta": {"progressToken": "t"}}


class Slow(Old):
    """Its tool says one thing of progress, and the rest when it is told to."""

    def __init__(self) -> None:
        super().__init__(tools_call=self.call)
        self.go = asyncio.Event()

    def call(self, asked: Asked) -> Any:
        return [
            STREAM,
            chunk(progress(asked, 1)),
            self.go.wait(),
            chunk(progress(asked, 2) + done(asked)),
            b"0\r\n\r\n",
        ]


@pytest.mark.parametrize("revision", ["2025-03-26", "2025-06-18", "2025-11-25"])
async def test_a_call_goes_on_without_its_agent(revision: str) -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent(revision=revision)
        stream = await agent.start("tools/call", CALL)
        await stream.head()
        primed = revision == "2025-11-25"
        first = await some(stream, 2 if primed else 1)
        assert all(id for id, _ in first)
        assert [data for _, data in first if not data] == ([""] if primed else [])
        await stream.close()
        slow.go.set()
        last = first[-1][0]
        again = await running.open(None, agent.headers | {"last-event-id": last}, method="GET")
        await again.head()
        rest = [json.loads(data) for _, data in raw(await again.body()) if data]
        assert [message.get("params", {}).get("progress") for message in rest] == [2, None]
        assert rest[-1]["result"]["content"][0]["text"] == "done"
        assert rest[-1]["id"] == agent.ids
        assert not server.calls("notifications/cancelled")
        await again.close()
        other = await running.agent(revision=revision)
        stolen = await running.open(None, other.headers | {"last-event-id": last}, method="GET")
        await stolen.head()
        assert "done" not in str(await some(stolen, 3))
        await stolen.close()


async def test_an_agent_that_cancels_while_away() -> None:
    slow = Slow()
    async with upstream(slow) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        stream = await agent.start("tools/call", CALL)
        await stream.head()
        await some(stream, 2)
        await stream.close()
        await agent.tell("notifications/cancelled", {"requestId": agent.ids})
        async with asyncio.timeout(10):
            while not server.calls("notifications/cancelled"):
                await asyncio.sleep(0.01)
        assert not next(iter(running.sessions._open.values())).calls


async def test_a_server_that_hangs_up_to_be_asked_again() -> None:
    """SEP-1699: who can come back is let go as well, who cannot waits here."""
    calls: list[Asked] = []

    def call(asked: Asked) -> Any:
        calls.append(asked)
        return [STREAM, chunk(b"id: e1\nretry: 10\ndata: \n\n"), b"0\r\n\r\n"]

    def get(asked: Asked) -> Any:
        if asked.headers.get("last-event-id") != "e1":
            return answer(405)
        return [STREAM, chunk(b"id: e2\n" + done(calls[-1])), b"0\r\n\r\n"]

    script = Old(tools_call=call)
    script.get = get
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        stream = await agent.start("tools/call", CALL)
        await stream.head()
        body = await stream.body()
        primed, *rest = raw(body)
        assert b"retry: " in body
        assert primed[0]
        assert [data for _, data in rest if data] == []
        again = await running.open(None, agent.headers | {"last-event-id": primed[0]}, method="GET")
        await again.head()
        assert "done" in str(raw(await again.body()))
        for each in (stream, again):
            await each.close()
        older = await running.agent(revision="2025-06-18")
        whole = await older.ask("tools/call", CALL)
        assert whole.text == "done"


async def test_get_streams_are_read_on() -> None:
    async with gateway(SPECS) as running:
        agent = await running.agent()
        stream = await running.open(None, agent.headers, method="GET")
        await stream.head()
        ((primed, nothing),) = await some(stream, 1)
        assert nothing == ""
        running.sessions.changed("c", "notifications/tools/list_changed")
        await some(stream, 1)
        await stream.close()
        async with asyncio.timeout(10):
            while next(iter(running.sessions._open.values())).busy:
                await asyncio.sleep(0.01)
        running.sessions.changed("c", "notifications/prompts/list_changed")
        await asyncio.sleep(0.4)
        again = await running.open(None, agent.headers | {"last-event-id": primed}, method="GET")
        await again.head()
        methods = [json.loads(data)["method"] for _, data in await some(again, 2)]
        assert methods == ["notifications/tools/list_changed", "notifications/prompts/list_changed"]
        running.sessions.finish_streams()
        assert b"retry: 500" in await again.body()
        await again.close()


async def test_an_answer_that_nobody_waits_for() -> None:
    async with gateway(SPECS) as running:
        agent = await running.agent({"roots": {}})
        for id in (1, "x", f"{running.sessions.rings.node}-1", "other-1"):
            assert (await agent.answer(id, {})).status == 400
        stream = await agent.start("tools/call", {"name": "ask", "arguments": {"method": "roots/list"}})
        await stream.head()
        asked = await stream.next()
        foreign = await running.agent({"roots": {}})
        assert (await foreign.answer(asked["id"], {"roots": []})).status == 400
        assert (await agent.answer(asked["id"], {"roots": []})).status == 202
        assert (await agent.answer(asked["id"], {"roots": []})).status == 400
        assert (await stream.next())["id"] == agent.ids
        await stream.close()


async def test_two_workers_are_one_to_the_agent() -> None:
    """An agent opens at one worker, goes on at the other, is asked at one and answers at the other."""
    clock = Clock()
    one = Node(clock)
    two = Node(clock, one)
    async with AsyncExitStack() as stack:
        a, b = [
            await stack.enter_async_context(gateway(SPECS, limits={"state": node, "seals": Seals([KEY])}))
            for node in (one, two)
        ]
        agent = await a.agent({"roots": {}}, who="ada")
        assert (await b.send(agent.request("ping"), agent.headers)).status == 200
        assert (await b.send(agent.request("ping"), agent.headers | {"x-who": "bob"})).status == 404
        stream = await agent.start("tools/call", {"name": "ask", "arguments": {"method": "roots/list"}})
        await stream.head()
        asked = await stream.next()
        reply = {"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}}
        assert (await b.send(reply, agent.headers)).status == 202
        assert (await b.send(reply, agent.headers)).status == 400
        assert (await stream.next())["id"] == agent.ids
        await stream.close()
        call = await agent.start("tools/call", {"name": "never", "arguments": {}})
        session = next(iter(a.sessions._open.values()))
        async with asyncio.timeout(10):
            while not session.calls:
                await asyncio.sleep(0.01)
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": agent.ids}}
        assert (await b.send(cancelled, agent.headers)).status == 202
        await call.head()
        assert b"ClientGone" in await call.body()
        await call.close()
        assert (await b.send(None, agent.headers, method="DELETE")).status == 204
        assert (await agent.ask("ping")).status == 404
        assert (await b.send(agent.request("ping"), agent.headers)).status == 404
