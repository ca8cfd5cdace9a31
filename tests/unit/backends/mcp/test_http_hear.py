"""What servers behind a URL say outside of calls, over real sockets."""

import asyncio
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import gateway, until
from tests.fixtures.mcp_raw import STREAM, Old, chunk, events, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec

pytestmark = pytest.mark.anyio


async def test_the_stream_beside_calls() -> None:
    """What the server says there reaches the agent's stream; what it asks there is asked, or refused."""
    said: list[Any] = [
        {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "error", "data": "x"}},
        {"jsonrpc": "2.0", "id": "a", "method": "ping"},
        {"jsonrpc": "2.0", "id": "b", "method": "roots/list"},
        {"jsonrpc": "2.0", "id": "c", "method": "sampling/createMessage", "params": {}},
        {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": "x:unwanted"}},
        {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": "x:wanted"}},
    ]
    gate = asyncio.Event()
    script = Old(resources_subscribe=lambda asked: result(asked, {}))
    script.get = lambda asked: [STREAM, gate.wait(), chunk(b"data: {nope\n\n" + events(*said)), asyncio.sleep(600)]
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent({"roots": {}})
        stream = await agent.listen()
        assert (await agent.ask("resources/subscribe", {"uri": "x:wanted"})).message["result"] == {}
        gate.set()
        assert (await stream.next())["method"] == "notifications/message"
        roots = await stream.next()
        assert roots["method"] == "roots/list"
        await agent.answer(roots["id"], {"roots": []})
        assert (await stream.next())["params"] == {"uri": "x:wanted"}
        await until(lambda: len([a for a in server.asked if a.http == "POST" and not a.method]) == 3)
        answers = {asked.id: asked.body for asked in server.asked if asked.http == "POST" and not asked.method}
        assert answers["a"]["result"] == {}
        assert answers["b"]["result"] == {"roots": []}
        assert answers["c"]["error"]["code"] == -32601
        await stream.close()


async def test_changes_of_lists() -> None:
    gate = asyncio.Event()
    changed = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
    script = Old()
    script.get = lambda asked: [STREAM, gate.wait(), chunk(events(changed, changed)), asyncio.sleep(600)]
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        stateless = running.stateless()
        stream = await agent.listen()
        listen = await stateless.start(
            "subscriptions/listen", {"notifications": {"toolsListChanged": True, "other": 1}}
        )
        await listen.head()
        acknowledged = await listen.next()
        assert acknowledged["params"]["notifications"] == {"toolsListChanged": True}
        assert acknowledged["params"]["_meta"] == {"io.modelcontextprotocol/subscriptionId": stateless.ids}
        await agent.ask("tools/list")
        await agent.ask("tools/list")
        assert len(server.calls("tools/list")) == 1
        gate.set()
        assert (await stream.next())["method"] == changed["method"]
        told = await listen.next()
        assert told["method"] == changed["method"]
        assert told["params"]["_meta"] == {"io.modelcontextprotocol/subscriptionId": stateless.ids}
        await agent.ask("tools/list")
        assert len(server.calls("tools/list")) == 2
        await stream.close()
        await listen.close()
        await until(lambda: not running.sessions._subscriptions)
