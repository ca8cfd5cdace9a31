"""What servers behind a URL say outside of calls, over real sockets."""

import asyncio
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import gateway, until
from tests.fixtures.mcp_raw import STREAM, Asked, Old, answer, chunk, events, result, upstream

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
        await until(lambda: not running.sessions.subscriptions)


def updated(uri: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": uri}}


async def test_a_server_that_tells_only_who_listens_loses_nothing() -> None:
    """It is subscribed to once our stream is open there, and what it says then waits for the agent's first stream."""
    heard, subscribed = asyncio.Event(), asyncio.Event()

    def subscribe(asked: Asked) -> Any:
        subscribed.set()
        return result(asked, {"listened": heard.is_set()})

    async def slowly() -> None:
        await asyncio.sleep(0.2)
        heard.set()

    script = Old(resources_subscribe=subscribe)
    script.get = lambda asked: [
        slowly(), STREAM, subscribed.wait(), chunk(events(updated("x:1"))), asyncio.sleep(600)
    ]  # fmt: skip
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        assert (await agent.ask("resources/subscribe", {"uri": "x:1"})).message["result"] == {"listened": True}
        await until(lambda: any(session._backlog for session in running.sessions._open.values()))
        stream = await agent.listen()
        assert (await stream.next())["params"] == {"uri": "x:1"}
        await stream.close()


async def test_without_a_stream_a_server_is_subscribed_to_at_once() -> None:
    script = Old(resources_subscribe=lambda asked: result(asked, {}))
    script.get = lambda asked: answer(405)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        async with asyncio.timeout(2):
            assert (await agent.ask("resources/subscribe", {"uri": "x:1"})).message["result"] == {}


async def test_who_subscribed_looks_again_after_a_stream_that_cannot_be_read_on() -> None:
    script = Old(resources_subscribe=lambda asked: result(asked, {}))
    lost = asyncio.Event()
    streams: list[Any] = [[STREAM, lost.wait(), b"0\r\n\r\n"]]
    script.get = lambda asked: streams.pop() if streams else [STREAM, asyncio.sleep(600)]
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        stream = await agent.listen()
        assert (await agent.ask("resources/subscribe", {"uri": "x:1"})).message["result"] == {}
        lost.set()
        assert (await stream.next())["params"] == {"uri": "x:1"}
        await stream.close()
