"""The transport of 2024-11-05: two endpoints over one session, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import INFO, Gateway, Stream, child, until

from tollhouse.backends.mcp.servers import Servers
from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Request, Response
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.bridge import Bridge
from tollhouse.endpoints.mcp.endpoint import McpEndpoint, Server, render
from tollhouse.endpoints.mcp.session import Sessions
from tollhouse.endpoints.mcp.sse import HttpSse
from tollhouse.net.client import Client
from tollhouse.net.listen import Address, Listener, bind
from tollhouse.net.server import Server as HttpServer
from tollhouse.net.timer import Timer
from tollhouse.wire.mcp.catalogue import Cursors
from tollhouse.wire.mcp.sealed import Seals

pytestmark = pytest.mark.anyio


class Place(Gateway):
    http_sse: HttpSse


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    client, streams = Client(clock), Client(clock)
    seals = Seals()
    sessions = Sessions(clock, seals=seals)
    servers = Servers(clock, client, streams, info=INFO, on_change=sessions.changed)
    upstream = servers.get("c", child())
    bridge = Bridge(clock, seals)
    one = {"c": Server("c", upstream, upstream.handle)}
    endpoint = McpEndpoint("/mcp", one, sessions, clock, cursors=Cursors(seals), bridge=bridge, info=INFO)
    http_sse = HttpSse("/mcp", endpoint.handle, clock, end=sessions.end_by_id)
    handlers = {b"/mcp": endpoint.handle, b"/mcp/sse": http_sse.stream, b"/mcp/messages": http_sse.message}

    async def handler(request: Request) -> Response:
        request.render = render
        who = request.header(b"x-who")
        if who is not None:
            request.context.principal = Principal(who.decode(), source="key")
        return await handlers[request.path](request)

    http = HttpServer(handler, clock)
    listener = Listener(http, bind(Address("127.0.0.1", 0)))
    await listener.start()
    try:
        running = Place(listener.port, sessions, servers, clock)
        running.http_sse, running.reached = http_sse, one
        yield running
    finally:
        bridge.close()
        await sessions.closed()
        listener.stop()
        http.abort()
        await http.wait_closed()
        await servers.close()
        await client.close()
        await streams.close()
        timer.stop()
        assert len(sessions) == len(http_sse) == 0


class Agent:
    """An agent of 2024-11-05."""

    def __init__(self, running: Place, stream: Stream, target: str, headers: dict[str, str]) -> None:
        self.running = running
        self.stream = stream
        self.target = target
        self.headers = headers
        self.ids = 0

    async def post(self, message: Any) -> int:
        return (await self.running.send(message, {"accept": "*/*"} | self.headers, path=self.target)).status

    async def ask(self, method: str, params: Any = None) -> Any:
        self.ids += 1
        body = {"jsonrpc": "2.0", "id": self.ids, "method": method, "params": params or {}}
        assert await self.post(body) == 202
        return await self.stream.next()


async def agent(running: Place, who: str = "", capabilities: Any = None) -> Agent:
    headers = {"x-who": who} if who else {}
    stream = await running.open(None, headers | {"accept": "text/event-stream"}, path="/mcp/sse", method="GET")
    await stream.head()
    assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
    first = await stream.chunk()
    assert first.startswith(b"event: endpoint\ndata: /mcp/messages?session_id=")
    one = Agent(running, stream, first.split(b"data: ")[1].strip().decode(), headers)
    info = {"name": "old", "version": "1"}
    params = {"protocolVersion": "2024-11-05", "capabilities": capabilities or {}, "clientInfo": info}
    opening = await one.ask("initialize", params)
    assert opening["result"]["protocolVersion"] == "2024-11-05"
    assert await one.post({"jsonrpc": "2.0", "method": "notifications/initialized"}) == 202
    return one


async def test_a_conversation() -> None:
    async with place() as running:
        one = await agent(running)
        assert (await one.ask("ping"))["result"] == {}
        assert len((await one.ask("tools/list"))["result"]["tools"]) > 5
        said = await one.ask("tools/call", {"name": "echo", "arguments": {"message": "hi"}})
        assert said["result"]["content"][0]["text"] == "hi"
        assert (await one.ask("nothing/here"))["error"]["code"] == -32601
        assert len(running.sessions) == 1
        running.sessions.changed("c", "notifications/tools/list_changed")
        assert (await one.stream.next())["method"] == "notifications/tools/list_changed"
        await one.stream.close()
        async with asyncio.timeout(10):
            while len(running.sessions):
                await asyncio.sleep(0.01)


async def test_progress_and_questions_come_on_the_stream() -> None:
    async with place() as running:
        one = await agent(running, capabilities={"roots": {}})
        first = await one.ask("tools/call", {"name": "progress", "arguments": {}, "_meta": {"progressToken": "t"}})
        assert (first["method"], first["params"]["progressToken"]) == ("notifications/progress", "t")
        assert (await one.stream.next())["method"] == "notifications/progress"
        assert (await one.stream.next())["id"] == one.ids
        asked = await one.ask("tools/call", {"name": "ask", "arguments": {"method": "roots/list"}})
        assert asked["method"] == "roots/list"
        assert await one.post({"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}}) == 202
        assert (await one.stream.next())["id"] == one.ids
        await one.stream.close()


async def test_a_call_is_cancelled_and_a_stream_ends_with_calls_on_it() -> None:
    async with place() as running:
        one = await agent(running)
        body = {"jsonrpc": "2.0", "id": 77, "method": "tools/call", "params": {"name": "never", "arguments": {}}}
        assert await one.post(body) == 202
        session = next(iter(running.sessions._open.values()))
        async with asyncio.timeout(10):
            while not session.calls:
                await asyncio.sleep(0.01)
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 77}}
        assert await one.post(cancelled) == 202
        assert (await one.stream.next())["error"]["data"]["reason"] == "ClientGone"
        assert await one.post(body | {"id": 78}) == 202
        await one.stream.close()
        async with asyncio.timeout(10):
            while len(running.sessions) or len(running.http_sse):
                await asyncio.sleep(0.01)
        assert not session.calls


async def test_what_is_refused() -> None:
    async with place() as running:
        one = await agent(running, who="ada")
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        for target, headers in (
            ("/mcp/messages", {"x-who": "ada"}),
            ("/mcp/messages?session_id=", {"x-who": "ada"}),
            ("/mcp/messages?session_id=forged", {"x-who": "ada"}),
            (one.target, {"x-who": "bob"}),
            (one.target, {}),
        ):
            assert (await running.send(ping, headers, path=target)).status == 404, (target, headers)
        for body in (b"{", b"[]", b"7", json.dumps([ping]).encode()):
            answer = await running.send(body, one.headers | {"content-type": "application/json"}, path=one.target)
            assert answer.status == 400, body
        assert (await running.send(None, {}, path=one.target, method="GET")).status == 405
        assert (await running.send(ping, {}, path="/mcp/sse")).status == 405
        assert (await one.ask("ping"))["result"] == {}
        await one.stream.close()


async def test_one_caller_leaves_room_for_others() -> None:
    async with place() as gateway:
        http_sse = gateway.http_sse
        http_sse.limit_each = 2
        streams = [await gateway.open(None, {}, method="GET", path="/mcp/sse") for _ in range(2)]
        for stream in streams:
            await stream.head()
        refused = await gateway.send(None, method="GET", path="/mcp/sse")
        assert refused.status == 429
        other = await gateway.open(None, {"x-who": "bob"}, method="GET", path="/mcp/sse")
        await other.head()
        assert other.status == 200
        for stream in (*streams, other):
            await stream.close()
        await until(lambda: not http_sse._open and not http_sse._of and len(http_sse.holders) == 0)


async def test_a_stream_ends_with_its_credential() -> None:
    async with place() as gateway:
        http_sse = gateway.http_sse
        stream = await gateway.open(None, {"x-who": "bob"}, method="GET", path="/mcp/sse")
        await stream.head()
        await stream.event()
        http_sse.holders.end("bob", Failure(401, Reason.JWT_AUTH, "gone"))
        assert await stream.event() is None
        await stream.close()
        assert not http_sse._open


async def test_before_initialize_there_is_no_session() -> None:
    async with place() as running:
        stream = await running.open(None, {"accept": "text/event-stream"}, path="/mcp/sse", method="GET")
        await stream.head()
        target = (await stream.chunk()).split(b"data: ")[1].strip().decode()
        one = Agent(running, stream, target, {})
        assert (await one.ask("ping"))["error"]["code"] == -32600
        running.http_sse.finish()
        assert await stream.next() is None
        await stream.close()


async def test_another_configuration_serves_the_same_streams() -> None:
    async with place() as running:
        one = await agent(running)
        before = running.http_sse.endpoint
        asked: list[bytes] = []

        async def after(request: Request) -> Response:
            asked.append(request.path)
            return await before(request)

        running.http_sse.serve(after)
        assert (await one.ask("ping"))["result"] == {}
        assert asked == [b"/mcp"]
        await one.stream.close()


async def test_rules_see_the_agents_own_fields() -> None:
    seen: list[dict[bytes, bytes]] = []

    async with place() as running:
        one = await agent(running)
        endpoint = running.http_sse.endpoint

        async def watched(request: Request) -> Response:
            seen.append(dict(request.headers))
            return await endpoint(request)

        running.http_sse.serve(watched)
        one.headers = {"x-team": "red", "mcp-session-id": "another", "mcp-protocol-version": "2026-07-28"}
        assert (await one.ask("ping"))["result"] == {}
        assert seen[0][b"x-team"] == b"red"
        assert seen[0][b"mcp-session-id"] != b"another"
        assert b"mcp-protocol-version" not in seen[0]
        assert b"content-length" not in seen[0]


async def test_what_is_due_at_the_end_of_a_message_runs_when_the_agent_leaves() -> None:
    ended: list[Ending] = []
    waits = asyncio.Event()

    async def slow(request: Request) -> Response:
        request.ends.append(ended.append)
        waits.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with place() as running:
        one = await agent(running)
        running.http_sse.serve(slow)
        assert await one.post({"jsonrpc": "2.0", "id": 9, "method": "ping"}) == 202
        await waits.wait()
        await one.stream.close()
        async with asyncio.timeout(10):
            while not ended:
                await asyncio.sleep(0.01)
        assert (ended[0].status, ended[0].gone) == (499, True)


async def test_a_message_ends_with_its_run() -> None:
    """As of the run as its chain has found out."""

    def of_run(call: ToolCall) -> Awaitable[Reply]:
        call.context.run_id = (call.request.header(b"x-run") or b"").decode()
        return chain(call)

    async with place() as running:
        (server,) = running.reached.values()
        chain, server.chain = server.chain, of_run
        one = await agent(running)
        one.headers["x-run"] = "one"
        body = {"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": {"name": "never", "arguments": {}}}
        assert await one.post(body) == 202
        one.headers["x-run"] = "other"
        assert await one.post(body | {"id": "b"}) == 202
        holders = running.http_sse.holders

        def runs() -> set[str]:
            return {held.context.run_id for held in holders._all() if held.context is not None}

        await until(lambda: runs() == {"one", "other"})
        holders.end_run("one", Failure(403, Reason.AUTHORIZATION, "the run was stopped", code="run_stopped"))
        told = await one.stream.next()
        assert (told["id"], told["error"]["message"]) == ("a", "the run was stopped")
        await until(lambda: runs() == {"other"})
        await one.stream.close()
