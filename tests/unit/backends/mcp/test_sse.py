"""Servers with HTTP+SSE, the transport of 2024-11-05: a stream, and a place to post to that it names."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fixtures.gone import until_gone
from tests.fixtures.mcp_gateway import gateway, sessions, until
from tests.fixtures.mcp_raw import STREAM, answer, chunk

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.upstream import Upstream

pytestmark = pytest.mark.anyio


class Legacy:
    """asked: (number of its stream, message). endpoint: what a stream names, with its number at {n}."""

    def __init__(self, endpoint: str = "/messages?session={n}") -> None:
        self.endpoint = endpoint
        self.asked: list[tuple[int, Any]] = []
        self.streams: dict[int, asyncio.StreamWriter] = {}
        self.opened = 0
        self.url = ""
        self.running = 0
        self.most = 0
        self.shown: list[str] = []  # the field `authorization` of each request
        self.refuses = "\n"  # what no stream is given for
        self.tasks: set[asyncio.Task[None]] = set()

    def methods(self) -> list[str]:
        return [message.get("method", "") for _, message in self.asked]

    def say(self, n: int, message: Any) -> None:
        self.streams[n].write(chunk(b"event: message\r\ndata: " + json.dumps(message).encode() + b"\r\n\r\n"))

    def cut(self) -> None:
        for writer in self.streams.values():
            writer.transport.abort()
        self.streams.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        with until_gone(writer):
            try:
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                    headers = {n.lower(): v for n, v in (line.split(": ", 1) for line in head[1:-2])}
                    self.shown.append(headers.get("authorization", ""))
                    method, path, _ = head[0].split()
                    body = await reader.readexactly(int(headers.get("content-length", 0)))
                    if self.shown[-1] == self.refuses:
                        writer.write(answer(401))
                        continue
                    if method == "GET":
                        self.opened += 1
                        self.streams[self.opened] = writer
                        said = self.endpoint.format(n=self.opened).encode()
                        writer.write(STREAM + chunk(b"event: endpoint\ndata: %b\n\n" % said))
                        continue
                    n = int(path.rpartition("=")[2]) if "=" in path else 0
                    if n not in self.streams:
                        writer.write(answer(404 if "=" in path else 405))
                        continue
                    writer.write(answer(202))
                    self.hear(n, json.loads(body))
            finally:
                self.tasks.discard(task)

    def hear(self, n: int, message: Any) -> None:
        self.asked.append((n, message))
        id, method = message.get("id"), message.get("method")
        if method == "initialize":
            value: Any = {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": {"name": "l"}}
        elif method == "tools/list":
            hints = {"readOnlyHint": True}
            value = {"tools": [{"name": name, "inputSchema": {}, "annotations": hints} for name in ("echo", "slow")]}
        elif method == "tools/call":
            name = message["params"]["name"]
            if name == "never":
                return
            if name == "cut" and self.opened == n:
                self.cut()
                return
            if name == "ask":
                self.running += 1
                self.most = max(self.most, self.running)
                self.say(n, {"jsonrpc": "2.0", "id": "q", "method": "roots/list"})
                return
            value = {"content": [{"type": "text", "text": json.dumps(message["params"].get("arguments"))}]}
        elif method is None:
            self.running -= 1
            call = next(m for s, m in reversed(self.asked) if s == n and m.get("method") == "tools/call")
            id, value = call["id"], {"content": [{"type": "text", "text": json.dumps(message.get("result"))}]}
        else:
            return
        self.say(n, {"jsonrpc": "2.0", "id": id, "result": value})


@asynccontextmanager
async def legacy(endpoint: str = "/messages?session={n}", path: str = "/sse") -> AsyncIterator[Legacy]:
    running = Legacy(endpoint)
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{path}"
    try:
        yield running
    finally:
        server.close()
        for task in list(running.tasks):
            task.cancel()
        if running.tasks:
            await asyncio.wait(running.tasks)


@pytest.mark.parametrize(
    ("path", "more"), [("/sse", {}), ("/mcp", {"transport": "sse"}), ("/mcp", {}), ("/sse?key=1", {})]
)
async def test_calls_over_a_stream(path: str, more: Any) -> None:
    """By its path, by configuration, or because it takes nothing else."""
    async with legacy(path=path) as server, gateway({"u": HttpServerSpec(url=server.url, **more)}) as running:
        for agent in (await running.agent(), running.stateless()):
            assert (await agent.call("echo", {"a": "é\n"})).text == '{"a": "\\u00e9\\n"}'
            assert len((await agent.ask("tools/list")).message["result"]["tools"]) == 2
        assert "server/discover" not in server.methods()  # no server of the new era has this transport
        assert {session.features.revision for session in sessions(running)} == {"2024-11-05"}
        assert running.servers.all[0].new is False


@pytest.mark.parametrize("endpoint", ["http://127.0.0.2:1/messages", "https://other.example/x", "ftp://x", "http://["])
async def test_a_place_at_another_origin_is_not_believed(endpoint: str) -> None:
    async with legacy(endpoint) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        answered = await running.stateless().call("echo")
        assert "cannot be used" in answered.message["error"]["message"]
        assert not server.asked


async def test_a_full_address_of_its_own_is_fine() -> None:
    async with legacy() as server:
        server.endpoint = server.url.replace("/sse", "/deep/messages?session={n}")
        async with gateway({"u": HttpServerSpec(url=server.url)}) as running:
            assert (await running.stateless().call("echo")).text == "{}"


async def test_a_stream_that_ends_loses_its_calls_and_no_more() -> None:
    async with legacy() as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        await agent.ask("tools/list")
        waiting = asyncio.create_task(agent.call("never"))
        await until(lambda: "tools/call" in server.methods())
        server.cut()
        assert (await waiting).message["error"]["data"]["reason"] == "call_lost"
        assert (await agent.call("echo")).text == "{}"
        assert server.opened >= 3  # of the catalogue, and two of the agent


async def test_a_server_that_has_forgotten_the_stream() -> None:
    async with legacy() as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        assert (await agent.call("echo")).text == "{}"
        server.streams.clear()  # the connection stays open, and what is posted is answered with 404
        assert (await agent.call("echo")).text == "{}"
        assert server.opened == 2


async def test_one_that_can_be_asked_runs_alone() -> None:
    """On one stream nothing says which call a question belongs to: so there is never a second one."""
    async with legacy() as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        capabilities: Any = {"io.modelcontextprotocol/clientCapabilities": {"roots": {}}}
        await running.stateless(who="ada").call("echo")
        answers = await asyncio.gather(
            *(running.stateless(who="ada").call("ask", _meta=capabilities) for _ in range(3))
        )
        kinds = {answered.message["result"].get("resultType") for answered in answers}
        assert kinds == {"input_required"}
        streams = [n for n, message in server.asked if message.get("method") == "tools/call"]
        assert len(streams[1:]) == len(set(streams[1:])) == 3


async def test_idle_streams_are_closed() -> None:
    async with legacy() as server, gateway({"u": HttpServerSpec(url=server.url, idle_timeout=0.0)}) as running:
        await running.stateless().call("echo")
        upstream = running.servers.all[0]
        await asyncio.sleep(0.1)
        upstream.expire()
        await until(lambda: upstream.idle)
        await until(lambda: not server.tasks or all(w.transport.is_closing() for w in server.streams.values()))


async def test_a_stream_that_is_refused_is_asked_for_once_more_by_another_credential() -> None:
    told: list[bytes] = []

    def renewed(principal: Any, refused: bytes = b"") -> bytes:
        if refused:
            told.append(refused)
        return b"Bearer new" if told else b"Bearer old"

    async with legacy() as server, gateway({"l": HttpServerSpec(url=server.url)}) as running:
        server.refuses = "Bearer old"
        [upstream] = running.servers.all
        assert isinstance(upstream, Upstream)
        upstream.bears = renewed
        assert (await (await running.agent(who="ada")).call("echo")).text
        assert server.shown[:2] == ["Bearer old", "Bearer new"]
        assert told == [b"Bearer old"]


async def test_all_messages_say_on_whose_behalf() -> None:
    async def exchanged(call: Any, next: Any) -> Any:
        call.credential = f"Bearer call-of-{call.principal.id}".encode()
        return await next(call)

    async with legacy() as server, gateway({"l": HttpServerSpec(url=server.url)}, policies=(exchanged,)) as running:
        [upstream] = running.servers.all
        assert isinstance(upstream, Upstream)
        upstream.bears = lambda principal, refused=b"": f"Bearer own-of-{principal.id if principal else ''}".encode()
        for who in ("ada", "bob"):
            agent = await running.agent(who=who)
            assert (await agent.call("echo")).text
    assert len(server.streams) == 2
    for who in ("ada", "bob"):
        assert server.shown.count(f"Bearer call-of-{who}") == 1
        assert server.shown.count(f"Bearer own-of-{who}") >= 3  # the stream, its opening
    assert all(shown.endswith(("ada", "bob")) for shown in server.shown)
