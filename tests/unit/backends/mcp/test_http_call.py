"""Answers that come as a stream, over real sockets: how they begin, are taken up again, and end."""

import asyncio
from time import monotonic
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Gateway, gateway, sessions, until
from tests.fixtures.mcp_raw import CUT, STREAM, Asked, Old, answer, chunk, events, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.http_call import marked
from tollhouse.core.errors import Failure

pytestmark = pytest.mark.anyio


def quiet(running: Gateway) -> bool:
    return all(not session.active and not session.streaming for session in sessions(running))


async def test_notifications_before_the_answer_make_a_stream() -> None:
    gate = asyncio.Event()
    contexts: list[Any] = []

    def seen(call: Any, next: Any) -> Any:
        contexts.append(call.context)
        return next(call)

    def call(asked: Asked) -> Any:
        token = asked.body["params"]["_meta"]["progressToken"]
        note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}}
        last = {"jsonrpc": "2.0", "id": asked.id, "result": {"content": []}}
        body = events(note)
        return [
            STREAM,
            chunk(b"id: 1\ndata: \n\n"),
            chunk(body[:20]),
            chunk(body[20:]),
            gate.wait(),
            chunk(events(last)),
            b"0\r\n\r\n",
        ]

    script = Old(tools_call=call)
    async with (
        upstream(script) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, policies=[seen]) as running,
    ):
        for agent in (await running.agent(), running.stateless()):
            params = {"name": "echo", "_meta": {"progressToken": 5}}
            stream = await agent.start("tools/call", params)
            await stream.head()
            assert stream.headers["content-type"] == "text/event-stream"
            assert (await stream.next())["params"] == {"progressToken": 5, "progress": 1}
            before = monotonic()
            gate.set()
            assert (await stream.next())["id"] == agent.ids
            assert await stream.next() is None
            await stream.close()
            assert before <= contexts[-1].upstream_ended <= monotonic()  # the server's time, not the gateway's
            gate.clear()
        assert quiet(running)
        assert server.closed <= 1  # connections are kept, also after a stream


async def test_a_stream_of_one_event_is_answered_as_json() -> None:
    def call(asked: Asked) -> Any:
        last = {"jsonrpc": "2.0", "id": asked.id, "result": {"content": []}}
        unwanted = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progress": 1}}
        return [STREAM, chunk(events(unwanted)), chunk(events(last)), b"0\r\n\r\n"]

    script = Old(tools_call=call)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        for _ in range(3):
            assert not (await agent.call("echo")).notes
        assert quiet(running)
        assert server.closed == 0


async def test_a_stream_that_fails_after_it_began_says_so() -> None:
    def call(asked: Asked) -> Any:
        token = asked.body["params"]["_meta"]["progressToken"]
        note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}}
        return [STREAM, chunk(events(note)), asyncio.sleep(0.05), CUT]

    script = Old(tools_call=call)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        answered = await agent.call("echo", _meta={"progressToken": 5})
        assert answered.streamed
        assert answered.message["id"] == agent.ids
        assert answered.message["error"]["data"]["reason"] == "call_lost"
        assert quiet(running)


async def test_leaving_cancels_a_waiting_call_and_a_flowing_one() -> None:
    def call(asked: Asked) -> Any:
        if asked.body["params"]["name"] == "waits":
            return None
        token = asked.body["params"]["_meta"]["progressToken"]
        note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}}
        return [STREAM, chunk(events(note)), asyncio.sleep(600)]

    script = Old(tools_call=call)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless()
        waits = await agent.start("tools/call", {"name": "waits"})
        await until(lambda: len(server.calls("tools/call")) == 1)
        await waits.close()
        await until(lambda: len(server.calls("notifications/cancelled")) == 1)
        flows = await agent.start("tools/call", {"name": "flows", "_meta": {"progressToken": 1}})
        await flows.head()
        await flows.next()
        await flows.close()
        await until(lambda: len(server.calls("notifications/cancelled")) == 2)
        cancelled = [asked.body["params"]["requestId"] for asked in server.calls("notifications/cancelled")]
        assert cancelled == [asked.id for asked in server.calls("tools/call")]
        await until(lambda: quiet(running))


async def test_an_agent_cancels_a_flowing_call() -> None:
    def call(asked: Asked) -> Any:
        token = asked.body["params"]["_meta"]["progressToken"]
        note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}}
        return [STREAM, chunk(events(note)), asyncio.sleep(600)]

    script = Old(tools_call=call)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        stream = await agent.start("tools/call", {"name": "flows", "_meta": {"progressToken": 1}})
        await stream.head()
        await stream.next()
        await agent.tell("notifications/cancelled", {"requestId": agent.ids})
        assert await stream.next() is None
        await stream.close()
        await until(lambda: len(server.calls("notifications/cancelled")) == 1)
        await until(lambda: quiet(running))


@pytest.mark.parametrize(
    ("raw", "event", "retry"),
    [
        (b"data: {}\n\n", b"before", None),
        (b"id: 7\ndata: \n\n", b"7", None),
        (b"event: message\nid:a b\nretry: 1500\ndata: {}\n\n", b"a b", 1.5),
        (b"id\ndata: x\n\n", b"before", None),
        (b"id:\ndata: x\n\n", b"", None),
        (b"id: a\0b\ndata: x\n\n", b"before", None),
        (b"id: a\x01b\ndata: x\n\n", b"before", None),
        (b"retry: soon\ndata: x\n\n", b"before", None),
        (b'data: {"x":"id: 9"}\r\nid: 3\r\nretry: 999999\r\n\r\n', b"3", 30.0),
        (b"id: " + b"x" * 2000 + b"\n\n", b"", None),
    ],
)
def test_event_ids(raw: bytes, event: bytes, retry: float | None) -> None:
    assert marked(raw, b"before", None) == (event, retry)


async def test_a_stream_that_ends_after_an_event_id_is_taken_up_again() -> None:
    """The server closes it to be asked again; the first time it is silent there, as some are."""
    gets: list[Asked] = []
    call_id = [0]

    def call(asked: Asked) -> Any:
        call_id[0] = asked.id
        return [STREAM, chunk(b"id: e-1\nretry: 20\ndata: \n\n"), b"0\r\n\r\n"]

    def get(asked: Asked) -> Any:
        if "last-event-id" not in asked.headers:
            return answer(405)
        gets.append(asked)
        if len(gets) == 1:
            return [STREAM, asyncio.sleep(600)]
        if len(gets) == 2:
            return [STREAM, chunk(b"id: e-2\ndata: \n\n"), b"0\r\n\r\n"]
        last = {"jsonrpc": "2.0", "id": call_id[0], "result": {"content": [{"type": "text", "text": "resumed"}]}}
        return [STREAM, chunk(b"id: e-3\n" + events(last)), b"0\r\n\r\n"]

    script = Old(tools_call=call)
    script.get = get
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless()
        assert (await agent.call("echo")).text == "resumed"
        assert [asked.headers["last-event-id"] for asked in gets] == ["e-1", "e-1", "e-2"]
        assert {asked.headers["mcp-session-id"] for asked in gets} == {"s-1"}
        assert len(server.calls("tools/call")) == 1
        await until(lambda: all(not session.active and not session.streaming for session in sessions(running)))


async def test_a_stream_that_cannot_be_taken_up_again() -> None:
    def call(asked: Asked) -> Any:
        return [STREAM, chunk(b"id: e-1\nretry: 10\ndata: \n\n"), b"0\r\n\r\n"]

    script = Old(tools_call=call)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        answered = await running.stateless().call("echo")
        assert answered.message["error"]["data"]["reason"] == "call_lost"
        assert len(server.calls("tools/call")) == 1


async def test_a_resumed_call_ends_at_its_deadline() -> None:
    def call(asked: Asked) -> Any:
        return [STREAM, chunk(b"id: e-1\nretry: 10\ndata: \n\n"), b"0\r\n\r\n"]

    script = Old(tools_call=call)
    script.get = lambda asked: [STREAM, asyncio.sleep(600)]
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url, timeout=0.5)}) as running:
        answered = await running.stateless().call("echo")
        assert answered.message["error"]["data"]["reason"] == "Timeout"
        await until(lambda: all(not session.active for session in sessions(running)))


async def test_a_request_of_our_own_ends_at_its_deadline() -> None:
    """Also when its answer is a stream that is to be taken up again."""
    script = Old(ping=lambda asked: [STREAM, chunk(b"id: e-1\nretry: 10\ndata: \n\n"), b"0\r\n\r\n"])
    script.get = lambda asked: [STREAM, asyncio.sleep(600)]
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        await running.stateless().call("echo")
        session = sessions(running)[0]
        with pytest.raises(Failure, match="in time"):
            async with asyncio.timeout(5):
                await session.ask("ping", {}, 0.3)
        assert not session.active


async def test_a_task_that_resumes_ends_with_its_call() -> None:
    ids = [0]

    def call(asked: Asked) -> Any:
        ids[0] = asked.id
        return [STREAM, chunk(b"id: e-1\nretry: 20\ndata: \n\n"), b"0\r\n\r\n"]

    def get(asked: Asked) -> Any:
        if "last-event-id" not in asked.headers:
            return answer(405)
        last = {"jsonrpc": "2.0", "id": ids[0], "result": {"content": []}}
        return [STREAM, chunk(b"id: e-2\nretry: 20000\n" + events(last)), b"0\r\n\r\n"]

    script = Old(tools_call=call)
    script.get = get
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        assert "result" in (await running.stateless().call("echo")).message
        await until(lambda: not running.servers.all[0]._tasks)


@pytest.mark.parametrize(
    "noise",
    [
        events({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "error", "data": "x"}}),
        events({"jsonrpc": "2.0", "id": "a", "method": "sampling/createMessage", "params": {}}),
        b": here\n\n",
    ],
    ids=["notifications", "questions", "comments"],
)
async def test_a_flood_before_the_answer_ends_the_call(noise: bytes) -> None:
    """And what others ask of other servers is answered meanwhile."""

    def call(asked: Asked) -> Any:
        return [STREAM, *[chunk(noise * 500) for _ in range(400)]]

    async with (
        upstream(Old(tools_call=call)) as flooding,
        upstream(Old()) as good,
        gateway({"f": HttpServerSpec(url=flooding.url), "g": HttpServerSpec(url=good.url)}) as running,
    ):
        agent, other = await running.agent(), await running.agent()
        flooded = asyncio.ensure_future(agent.ask("tools/call", {"name": "f__echo"}))
        while not flooded.done():
            began = monotonic()
            assert (await other.ask("tools/call", {"name": "g__echo"})).message["result"]["content"]
            assert monotonic() - began < 1.5
        assert "far too much" in (await flooded).message["error"]["message"]
        await until(lambda: quiet(running))


async def test_a_server_that_says_at_once_is_asked_again_after_a_pause() -> None:
    """`retry: 0` on streams that say nothing must not become a loop."""
    script = Old(tools_call=lambda asked: [STREAM, chunk(b"id: 1\nretry: 0\ndata: \n\n"), b"0\r\n\r\n"])
    script.get = lambda asked: [STREAM, chunk(b"retry: 0\n\n"), b"0\r\n\r\n"]
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        stream = await agent.listen()
        call = await agent.start("tools/call", {"name": "echo"})
        await asyncio.sleep(1.0)
        assert len([asked for asked in server.asked if asked.http == "GET"]) < 25
        await call.close()
        await stream.close()
