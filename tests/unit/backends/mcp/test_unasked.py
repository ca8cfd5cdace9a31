"""Servers that say more than they are asked for: real sockets, real children."""

import asyncio
import json

import pytest
from tests.fixtures.mcp_gateway import child, gateway, sessions, until
from tests.fixtures.mcp_raw import STREAM, Old, chunk, events, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.spec import McpServerSpec
from tollhouse.backends.mcp.unasked import Flood
from tollhouse.wire import jsonrpc

pytestmark = pytest.mark.anyio


CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"


def test_floods() -> None:
    flood = Flood()
    assert {flood.count(1.0) for _ in range(200)} == {0}
    assert flood.count(1.5) == 1
    assert flood.count(2.5) == 0
    flood = Flood()
    said = [flood.count(float(second)) for second in range(1, 8) for _ in range(300)]
    assert said.index(2) == 5 * 300
    flood = Flood()
    assert [flood.count(1.0) for _ in range(5001)][-1] == 2


async def test_a_flood_is_dammed_and_its_server_left_alone() -> None:
    note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "error", "data": "x"}}
    gate = asyncio.Event()
    script = Old()
    script.get = lambda asked: [STREAM, gate.wait(), chunk(events(*[note] * 6000)), asyncio.sleep(600)]
    async with upstream(script) as loud, upstream(Old()) as quiet:
        specs: dict[str, McpServerSpec] = {"loud": HttpServerSpec(url=loud.url), "quiet": HttpServerSpec(url=quiet.url)}
        async with gateway(specs) as running:
            agent = await running.agent()
            assert (await agent.call("loud__echo")).text == "ok"
            gate.set()
            await until(lambda: not list(running.servers.all[0].sessions))
            refused = (await agent.call("loud__echo")).message["error"]
            assert refused["data"]["reason"] == "server_unavailable"
            assert refused["data"]["retryAfter"] > 20
            assert (await agent.call("quiet__echo")).text == "ok"


async def test_garbage_on_a_childs_output_is_dammed_too() -> None:
    async with gateway({"c": child()}) as running:
        session_of = running.servers.all[0]
        agent = await running.agent()
        assert (await agent.call("echo", {"message": "a"})).text == "a"
        session = sessions(running)[0]
        for _ in range(5001):
            session.line(b"what is this")
        assert session.lost
        assert json.loads((await agent.call("echo")).body)["error"]["data"]["reason"] == "server_unavailable"
        await until(lambda: session_of.idle)


async def test_what_a_server_asks_outside_of_any_call() -> None:
    """Roots, right after it was told that it is initialized: nobody could answer."""
    roots = {"jsonrpc": "2.0", "id": "r", "method": "roots/list"}
    sampling = {"jsonrpc": "2.0", "id": "s", "method": "sampling/createMessage", "params": {}}
    body = b"".join(b"data: %b\n\n" % json.dumps(message).encode() for message in (roots, sampling))
    script = Old()
    script.get = lambda asked: [STREAM, chunk(body), asyncio.sleep(600)]
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless(who="ada")
        assert (await agent.call("echo", _meta={CAPABILITIES: {"roots": {}}})).text == "ok"
        await until(lambda: len([a for a in server.asked if a.http == "POST" and not a.method]) == 2)
        said = {
            asked.id: asked.body["error"]["code"] for asked in server.asked if asked.http == "POST" and not asked.method
        }
        assert said == {"r": -32603, "s": -32601}


async def test_updates_that_could_not_be_put_off_for_want_of_room() -> None:
    async with gateway({"c": child()}) as running:
        server = running.servers.all[0]
        agent = await running.agent()
        ears = await agent.listen()
        await agent.ask("resources/subscribe", {"uri": "x:1"})
        await ears.next()
        session = sessions(running)[0]
        much = [server.spawn(asyncio.sleep(600), cut=True) for _ in range(1025)]
        update = jsonrpc.notification("notifications/resources/updated", b'{"uri":"x:1"}')
        for _ in range(201):
            session.received(update)
        assert not session._pending
        for task in much:
            task.cancel()
        await asyncio.wait(much)
        session.received(update)
        assert session._pending
        await until(lambda: not session._pending)
        await ears.close()
