"""Stateless agents that listen, on servers of both eras, over real sockets."""

import asyncio
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import NEW, Gateway, child, gateway, until
from tests.fixtures.mcp_raw import STREAM, Asked, Old, answer, chunk, events, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.errors import Failure, Reason
from tollhouse.endpoints.mcp import listen as its
from tollhouse.wire import jsonrpc

pytestmark = pytest.mark.anyio

ID = "io.modelcontextprotocol/subscriptionId"


async def listen(running: Gateway, *uris: str, who: str = "", **more: Any) -> tuple[Any, Any, Any]:
    """(agent, stream, what is acknowledged)."""
    agent = running.stateless(who=who)
    stream = await agent.start("subscriptions/listen", {"notifications": {"resourceSubscriptions": list(uris), **more}})
    await stream.head()
    told = await stream.next()
    assert told["method"] == "notifications/subscriptions/acknowledged"
    assert told["params"]["_meta"] == {ID: agent.ids}
    return agent, stream, told["params"]["notifications"]


async def test_updates_of_an_old_server() -> None:
    async with gateway({"c": child(), "d": child()}) as running:
        agent, stream, agreed = await listen(running, "c+x:y", "d+z:1", "nobody+x:y", toolsListChanged=True)
        assert agreed == {"toolsListChanged": True, "resourceSubscriptions": ["c+x:y", "d+z:1"]}
        seen = [await stream.next() for _ in range(2)]
        assert {one["params"]["uri"] for one in seen} == {"c+x:y", "d+z:1"}
        assert {one["params"]["_meta"][ID] for one in seen} == {agent.ids}
        await stream.close()
        await until(lambda: all(not session.agents for one in running.servers.all for session in one.sessions))


async def test_who_leaves_takes_nobody_elses_subscription() -> None:
    async with gateway({"c": child()}) as running:
        _, one, _ = await listen(running, "x:y", who="ada")
        _, other, _ = await listen(running, "x:y", who="ada")
        assert (await one.next())["params"]["uri"] == "x:y"
        await one.close()
        await until(lambda: sum(len(s.agents) for up in running.servers.all for s in up.sessions) == 1)
        session = next(iter(running.servers.all[0].sessions))
        data = jsonrpc.notification("notifications/resources/updated", b'{"uri":"x:y#part"}')
        assert (await other.next())["params"]["uri"] == "x:y"
        session.hear(data, jsonrpc.decode(data))
        assert (await other.next())["params"]["uri"] == "x:y#part"
        await other.close()


async def test_a_server_that_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Old(resources_subscribe=lambda asked: None)
    specs: Any = {"c": child()}
    async with upstream(script) as server, gateway(specs | {"dead": HttpServerSpec(url=server.url)}) as running:
        await (await listen(running, "c+x:y"))[1].close()  # its start is part of the time
        monkeypatch.setattr(its, "_IN_TIME", 0.3)
        _, stream, agreed = await listen(running, "dead+a:b", "c+x:y")
        assert agreed == {"resourceSubscriptions": ["c+x:y"]}
        assert (await stream.next())["params"]["uri"] == "c+x:y"
        await stream.close()


async def test_what_may_not_be_read_is_not_heard_of() -> None:
    async def policy(call: Any, next: Any) -> Any:
        if call.name == "x:secret":
            raise Failure(403, Reason.AUTHORIZATION, "no")
        return await next(call)

    async with gateway({"c": child()}, policies=[policy]) as running:
        _, stream, agreed = await listen(running, "x:secret", "x:y")
        assert agreed == {"resourceSubscriptions": ["x:y"]}
        await stream.close()


async def test_a_server_that_refuses() -> None:
    def refuse(asked: Asked) -> bytes:
        error = {"code": -32602, "message": "no such resource"}
        return answer(200, {"jsonrpc": "2.0", "id": asked.id, "error": error})

    async with (
        upstream(Old(resources_subscribe=refuse)) as server,
        gateway({"u": HttpServerSpec(url=server.url)}) as running,
    ):
        _, stream, agreed = await listen(running, "x:y")
        assert agreed == {}
        await stream.close()


@pytest.mark.parametrize("uris", ["x", [7], {"x": 1}, ["u" * 8193], [f"u:{n}" for n in range(1001)]])
async def test_what_cannot_be_listened_to(uris: Any) -> None:
    async with gateway({"c": child()}) as running:
        told = await running.stateless().ask("subscriptions/listen", {"notifications": {"resourceSubscriptions": uris}})
        assert told.error == (400, -32602)


async def test_the_end_of_a_listener_ends_what_servers_do_for_it() -> None:
    ended: list[str] = []
    listener = its.Listener({}, wrap=False)
    listener.on_end("a", lambda: ended.append("a"))
    listener.on_end("b", lambda: ended.append("b"))
    listener.forget("b")
    listener.end()
    listener.end()
    listener.on_end("c", lambda: ended.append("c"))
    assert ended == ["a", "c"]


async def test_subscriptions_over_http_are_the_servers_sessions() -> None:
    subscribed = []

    def subscribe(asked: Asked) -> bytes:
        subscribed.append(asked.body["params"]["uri"])
        return result(asked, {})

    async with (
        upstream(Old(resources_subscribe=subscribe)) as server,
        gateway({"u": HttpServerSpec(url=server.url)}) as running,
    ):
        _, stream, agreed = await listen(running, "x:1", "x:2", "x:1")
        assert sorted(subscribed) == ["x:1", "x:2"]
        assert agreed == {"resourceSubscriptions": ["x:1", "x:2"]}
        await stream.close()
        await until(lambda: any(one.http == "DELETE" for one in server.asked))


# ---- stateless servers
class Tells:
    """A stateless server that tells of `agrees` and of its tools, on every stream that is open."""

    def __init__(self, *agrees: str) -> None:
        self.agrees = agrees
        self.streams: list[asyncio.Queue[Any]] = []
        self.filters: list[Any] = []
        self.ended = 0

    def __call__(self, asked: Asked) -> Any:
        if asked.http != "POST":
            return answer(405)
        if asked.method == "server/discover":
            capabilities = {"tools": {"listChanged": True}, "resources": {"subscribe": True}}
            return result(asked, {"supportedVersions": [NEW], "capabilities": capabilities, "resultType": "complete"})
        if asked.method == "tools/list":
            return result(asked, {"tools": [], "resultType": "complete", "ttlMs": 60000, "cacheScope": "public"})
        if asked.method == "subscriptions/listen":
            return self.run(asked)
        return answer(404, {"jsonrpc": "2.0", "id": asked.id, "error": {"code": -32601, "message": "no"}})

    def run(self, asked: Asked) -> Any:
        wanted = asked.body["params"]["notifications"]
        self.filters.append(wanted)
        meta = {ID: asked.id}
        agreed = dict(wanted)
        agreed["resourceSubscriptions"] = [uri for uri in wanted.get("resourceSubscriptions", []) if uri in self.agrees]
        said = {"notifications": agreed, "_meta": meta}
        yield STREAM + chunk(events({"jsonrpc": "2.0", "method": ACKNOWLEDGED, "params": said}))
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self.streams.append(queue)
        held: list[Any] = []

        async def take() -> None:
            held.append(await queue.get())

        while True:
            yield take()
            message = held.pop()
            if message is None:
                self.streams.remove(queue)
                yield chunk(b"")
                return
            message["params"]["_meta"] = meta
            yield chunk(events(message))

    def tell(self, method: str, **params: Any) -> None:
        for stream in self.streams[-1:]:
            stream.put_nowait({"jsonrpc": "2.0", "method": method, "params": params})


ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
UPDATED = "notifications/resources/updated"


async def test_one_stream_for_all_agents() -> None:
    script = Tells("x:1", "x:2")
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        old = await running.agent()
        get = await old.listen()
        _, stream, agreed = await listen(running, "x:1", "x:no")
        assert agreed == {"resourceSubscriptions": ["x:1"]}
        assert (await old.ask("resources/subscribe", {"uri": "x:2"})).message["result"] == {}
        refused = await old.ask("resources/subscribe", {"uri": "x:no"})
        assert refused.message["error"]["code"] == -32602
        script.tell(UPDATED, uri="x:1")
        script.tell(UPDATED, uri="x:2", extra=1)
        assert (await stream.next())["params"]["uri"] == "x:1"
        assert (await get.next())["params"] == {"uri": "x:2", "extra": 1}
        await until(lambda: script.filters[-1] == {"toolsListChanged": True, "resourceSubscriptions": ["x:1", "x:2"]})
        assert (await old.ask("resources/unsubscribe", {"uri": "x:2"})).message["result"] == {}
        await until(lambda: script.filters[-1] == {"toolsListChanged": True, "resourceSubscriptions": ["x:1"]})
        await stream.close()
        await until(lambda: script.filters[-1] == {"toolsListChanged": True})
        await get.close()


async def test_changes_of_a_stateless_servers_lists() -> None:
    script = Tells()
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless()
        stream = await agent.start("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        await stream.head()
        await stream.next()
        await agent.ask("tools/list")
        await until(lambda: script.streams)
        script.tell("notifications/tools/list_changed")
        assert (await stream.next())["method"] == "notifications/tools/list_changed"
        await agent.ask("tools/list")
        assert len(server.calls("tools/list")) == 2
        await stream.close()


async def test_a_stream_that_is_lost_is_opened_again_and_told() -> None:
    script = Tells("x:1")
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        _, stream, _ = await listen(running, "x:1")
        await until(lambda: script.streams)
        for queue in script.streams:
            queue.put_nowait(None)
        assert (await stream.next())["params"]["uri"] == "x:1"  # look again
        assert len(script.filters) >= 2
        await stream.close()


async def test_one_listener_of_two_that_leaves() -> None:
    script = Tells("x:1")
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        _, one, _ = await listen(running, "x:1")
        _, other, _ = await listen(running, "x:1")
        await one.close()
        await asyncio.sleep(0.1)
        script.tell(UPDATED, uri="x:1")
        assert (await other.next())["params"]["uri"] == "x:1"
        assert script.filters[-1]["resourceSubscriptions"] == ["x:1"]
        await other.close()
