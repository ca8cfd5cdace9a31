"""Servers behind a URL, the whole path: real sockets, a scripted server, and one made with the `mcp` package."""

import asyncio
import json
from time import monotonic
from typing import Any

import pytest
from pydantic import ValidationError
from tests.fixtures.mcp_gateway import Gateway, gateway, http_server
from tests.fixtures.mcp_raw import STREAM, TOOLS, Asked, Old, answer, chunk, events, result, upstream
from tests.unit.net.upstreams import stand_still

from tollhouse.backends.mcp_http import HttpServerSpec
from tollhouse.core.errors import Failure

pytestmark = pytest.mark.anyio


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def sessions(running: Gateway) -> list[Any]:
    return [session for server in running.servers.all for session in server.sessions]


def quiet(running: Gateway) -> bool:
    return all(not session.active and not session._streaming for session in sessions(running))


@pytest.mark.parametrize("arguments", [(), ("--old",), ("--old", "--json")])
async def test_a_real_server(arguments: tuple[str, ...]) -> None:
    with http_server(*arguments) as url:
        async with gateway({"py": HttpServerSpec(url=url)}) as running:
            for agent in (await running.agent(), running.stateless()):
                assert (await agent.call("echo", {"message": "hé"})).text == "hé"
                assert (await agent.call("boom")).message["result"]["isError"]
                names = [tool["name"] for tool in (await agent.ask("tools/list")).message["result"]["tools"]]
                assert names[0] == "echo"
                read = (await agent.ask("resources/read", {"uri": "note://by/ada"})).message["result"]
                assert read["contents"][0]["text"] == "a note by ada"
                templates = (await agent.ask("resources/templates/list")).message["result"]["resourceTemplates"]
                assert templates[0]["uriTemplate"] == "note://by/{name}"
                prompt = (await agent.ask("prompts/get", {"name": "greet", "arguments": {"name": "ada"}})).message
                assert prompt["result"]["messages"][0]["content"]["text"] == "Greet ada."
                complete = {"ref": {"type": "ref/prompt", "name": "greet"}, "argument": {"name": "name", "value": "x"}}
                said = (await agent.ask("completion/complete", complete)).message["result"]
                assert said["completion"]["values"] == ["xa", "xb"]
                progress = await agent.call("count", {"to": 2}, _meta={"progressToken": "t"})
                assert progress.text == "counted to 2"
                if "--json" not in arguments:
                    assert [note["params"]["progress"] for note in progress.messages[:-1]] == [1, 2]
                    assert {note["params"]["progressToken"] for note in progress.messages[:-1]} == {"t"}
            assert quiet(running)


async def test_sessions_are_the_agents_own_and_end_with_them() -> None:
    script = Old()
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agents = [await running.agent() for _ in range(2)]
        for agent in agents:
            assert (await agent.call("echo")).text == "ok"
            assert (await agent.call("echo")).text == "ok"
        used = [asked.headers["mcp-session-id"] for asked in server.calls("tools/call")]
        assert used == ["s-1", "s-1", "s-2", "s-2"]
        assert {asked.headers["mcp-protocol-version"] for asked in server.calls("tools/call")} == {"2025-11-25"}
        assert len(server.calls("server/discover")) == 1  # the era is found out once
        await agents[0].end()
        await until(lambda: any(asked.http == "DELETE" for asked in server.asked))
        ended = next(asked for asked in server.asked if asked.http == "DELETE")
        assert ended.headers["mcp-session-id"] == "s-1"
        assert len(sessions(running)) == 1


async def test_what_the_server_is_told_of_the_agent() -> None:
    async with upstream(Old()) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent({"sampling": {}, "experimental": {"secret": {}}})
        agent.ids = 50
        meta = {"progressToken": "agents-own", "com.example/x": 1, "io.modelcontextprotocol/y": 2}
        await agent.call("echo", {"a": 1}, _meta=meta, task=7)
        told = server.calls("initialize")[0].body["params"]
        assert told["capabilities"] == {"sampling": {}}
        assert told["clientInfo"]["name"] == "tollhouse"
        call = server.calls("tools/call")[0]
        assert isinstance(call.id, int)
        assert call.id != agent.ids
        params = call.body["params"]
        assert params["_meta"] == {"com.example/x": 1, "progressToken": call.id}
        assert (params["name"], params["arguments"]) == ("echo", {"a": 1})
        assert "x-who" not in call.headers
        assert call.headers["accept"] == "application/json, text/event-stream"


async def test_configured_headers() -> None:
    async with upstream(Old()) as server:
        spec = HttpServerSpec(url=server.url, headers={"Authorization": "Bearer secret", "User-Agent": "me"})
        async with gateway({"u": spec}) as running:
            await running.stateless().call("echo")
        for asked in server.asked:
            assert (asked.headers["authorization"], asked.headers["user-agent"]) == ("Bearer secret", "me")


async def test_an_expired_session_is_opened_anew_unseen() -> None:
    def call(asked: Asked) -> Any:
        return answer(404) if asked.headers["mcp-session-id"] == "s-1" else result(asked, {"content": []})

    async with upstream(Old(tools_call=call)) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        assert (await agent.call("echo")).message["result"] == {"content": []}
        assert [asked.headers["mcp-session-id"] for asked in server.calls("tools/call")] == ["s-1", "s-2"]
        assert len(sessions(running)) == 1


async def test_a_server_that_forgets_every_session() -> None:
    script = Old(tools_call=lambda asked: answer(404))
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        answered = await (await running.agent()).call("echo")
        assert "forgot" in answered.message["error"]["message"]
        assert len(server.calls("tools/call")) == 2


@pytest.mark.parametrize(("forgotten", "calls"), [(True, 2), (False, 1)])
async def test_a_400_is_an_expiry_only_if_a_ping_fails_too(forgotten: bool, calls: int) -> None:
    no = {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": "Bad Request: no valid session"}}

    def call(asked: Asked) -> Any:
        return answer(400, no) if asked.headers["mcp-session-id"] == "s-1" else result(asked, {"content": []})

    def ping(asked: Asked) -> Any:
        return answer(400, no) if forgotten else result(asked, {})

    script = Old(tools_call=call, ping=ping)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        answered = (await (await running.agent()).call("echo")).message
        assert len(server.calls("tools/call")) == calls
        assert ("result" in answered) == forgotten


async def test_an_id_in_an_error_is_no_session() -> None:
    refused = {"code": -32600, "message": "no"}

    def initialize(asked: Asked) -> Any:
        return answer(400, {"jsonrpc": "2.0", "id": asked.id, "error": refused}, mcp_session_id="stolen")

    script = Old(initialize=initialize)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        answered = await (await running.agent()).call("echo")
        assert "refused 'initialize'" in answered.message["error"]["message"]
        assert not any("mcp-session-id" in asked.headers for asked in server.asked)


BAD: dict[str, Any] = {
    "no json": lambda asked: answer(200, b"<html>", content_type="text/html"),
    "empty": lambda asked: answer(200),
    "another id": lambda asked: answer(200, {"jsonrpc": "2.0", "id": 10**6, "result": {}}),
    "a request": lambda asked: answer(200, {"jsonrpc": "2.0", "id": asked.id, "method": "x"}),
    "a batch": lambda asked: answer(200, [{"jsonrpc": "2.0", "id": asked.id, "result": {}}]),
    "no object": lambda asked: result(asked, [1]),
    "unknown type": lambda asked: result(asked, {"resultType": "input_required"}),
    "bad utf-8": lambda asked: answer(200, b'{"jsonrpc":"2.0","id":%d,"result":{"a":"\xff"}}' % asked.id),
    "deep": lambda asked: answer(200, b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (asked.id, b"[" * 50_000)),
    "500": lambda asked: answer(500, b"secret stack trace"),
    "401": lambda asked: answer(401, b"who are you?"),
    "202 without an answer": lambda asked: answer(202),
    "302": lambda asked: answer(302, location="http://127.0.0.1:1/"),
    "cut": lambda asked: [b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", CUT],
    "stream without an answer": lambda asked: [STREAM, chunk(b": hi\n\n"), b"0\r\n\r\n"],
    "garbled stream": lambda asked: [STREAM, chunk(b"data: {nope\n\n"), b"0\r\n\r\n"],
    "stream that is cut": lambda asked: [STREAM, chunk(b"data: {"), CUT],
}


class _Cut:
    def __await__(self) -> Any:
        raise ConnectionError
        yield


CUT = _Cut()


@pytest.mark.parametrize("name", BAD)
async def test_bad_answers_become_clear_errors(name: str) -> None:
    script = Old(tools_call=BAD[name])
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        for agent in (await running.agent(), running.stateless()):
            answered = await agent.call("echo")
            assert answered.message["id"] == agent.ids
            assert answered.error == (200, -32603)
            text = answered.body.decode()
            assert "secret" not in text
            assert "Traceback" not in text
            assert answered.headers["x-tollhouse-reason"] == "UpstreamFailure"
        assert len([session for session in sessions(running) if session.active]) == 0


@pytest.mark.parametrize(("harmless", "worked", "calls"), [(False, 0.0, 1), (True, 0.0, 2), (True, 0.5, 1)])
async def test_a_kept_connection_that_closes(harmless: bool, worked: float, calls: int) -> None:
    """The close may have crossed the call; then a tool that says it may is called again. What was worked on is not."""

    def call(asked: Asked) -> Any:
        if len(server.calls("tools/call")) > 1:
            return result(asked, {"content": [{"type": "text", "text": "ok"}]})
        return [asyncio.sleep(worked), CUT]

    tools = [{**TOOLS[0], "annotations": {"idempotentHint": harmless, "readOnlyHint": False}}]
    script = Old(tools_call=call, tools_list=lambda asked: result(asked, {"tools": tools}))
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        await agent.ask("tools/list")
        if not worked:
            stand_still(running.clock)
        answered = await agent.call("echo")
        assert len(server.calls("tools/call")) == calls
        assert ("result" in answered.message) == (calls > 1)


@pytest.mark.parametrize(
    ("status", "ours", "code", "retry", "sent", "after"),
    [
        (401, 502, "upstream_credentials", False, True, None),
        (403, 502, "upstream_credentials", False, True, None),
        (429, 429, "rate_limit_exceeded", True, False, 7.0),
        (503, 503, None, True, True, 7.0),
        (502, 502, None, True, True, None),
    ],
)
async def test_a_refusal_says_what_is_known(
    status: int, ours: int, code: str | None, retry: bool, sent: bool, after: float | None
) -> None:
    """That it was reached, above all: what answered is not asked again as if nothing had been sent."""
    failures: list[Failure] = []

    async def seen(call: Any, next: Any) -> Any:
        try:
            return await next(call)
        except Failure as failure:
            failures.append(failure)
            raise

    script = Old(tools_call=lambda asked: answer(status, b"busy", retry_after="7"))
    async with (
        upstream(script) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, policies=(seen,)) as running,
    ):
        answered = await (await running.agent()).call("echo")
        assert answered.error == (200, -32603)
        [failure] = failures
        assert (failure.status, failure.code, failure.retry, failure.sent, failure.retry_after) == (
            ours, code, retry, sent, after,
        )  # fmt: skip
        assert failure.reached
        assert "busy" not in answered.body.decode()


async def test_waiting_for_a_list_is_the_servers_time() -> None:
    contexts: list[Any] = []

    async def admit(call: Any) -> None:
        contexts.append(call.context)

    def listed(asked: Asked) -> Any:
        return [asyncio.sleep(0.05), result(asked, {"tools": TOOLS})]

    async with (
        upstream(Old(tools_list=listed)) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, admit=admit) as running,
    ):
        agent = await running.agent()
        for _ in range(2):
            assert "result" in (await agent.ask("tools/list")).message
        first, second = contexts[-2:]
        assert first.upstream_ended - first.upstream_began >= 0.05
        assert (second.upstream_began, second.upstream_ended) == (0.0, 0.0)  # from memory


async def test_a_server_that_is_down() -> None:
    async with upstream(Old()) as server:
        url = server.url
    async with gateway({"u": HttpServerSpec(url=url)}) as running:
        answered = await running.stateless().call("echo")
        assert answered.error == (200, -32603)
        assert answered.headers["x-tollhouse-reason"] == "UpstreamFailure"


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
            assert not (await agent.call("echo")).streamed
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
        assert answered.message["error"]["data"]["reason"] == "UpstreamFailure"
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
        agent = await running.agent()
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
        await until(lambda: not next(iter(running.sessions._open.values())).calls)


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


async def test_a_timeout() -> None:
    script = Old(tools_call=lambda asked: None)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url, timeout=0.3)}) as running:
        answered = await running.stateless().call("echo")
        assert answered.message["error"]["data"]["reason"] == "Timeout"


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


def discovered(asked: Asked) -> bytes:
    capabilities: Any = {"tools": {}}
    return result(asked, {"supportedVersions": ["2026-07-28"], "capabilities": capabilities, "resultType": "complete"})


async def test_headers_to_a_stateless_server_are_our_own() -> None:
    schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
    bad = {"type": "object", "properties": {"n": {"type": "number", "x-mcp-header": "N"}}}
    tools = [{"name": "é", "inputSchema": schema}, {"name": "bad", "inputSchema": bad}]

    def call(asked: Asked) -> Any:
        if asked.headers.get("mcp-param-region") != "eu":
            error = {"code": -32020, "message": "Mcp-Param-Region is missing"}
            return answer(400, {"jsonrpc": "2.0", "id": asked.id, "error": error})
        return result(asked, {"content": [], "resultType": "complete"})

    script = Old(server_discover=discovered, tools_call=call, tools_list=lambda asked: result(asked, {"tools": tools}))
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}, prefix="always") as running:
        agent = await running.agent()
        assert "result" in (await agent.call("u__é", {"region": "eu"})).message  # the schema was fetched meanwhile
        assert len(server.calls("tools/call")) == 2
        assert "result" in (await agent.call("u__é", {"region": "eu"})).message
        assert len(server.calls("tools/call")) == 3
        last = server.calls("tools/call")[-1]
        assert (last.headers["mcp-method"], last.headers["mcp-name"]) == ("tools/call", "=?base64?w6k=?=")
        assert "mcp-session-id" not in last.headers
        assert last.body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] == {}
        listed = (await agent.ask("tools/list")).message["result"]["tools"]
        assert [tool["name"] for tool in listed] == ["u__é"]
        assert not server.calls("initialize")


async def test_a_server_that_changes_its_era() -> None:
    era = ["new"]

    def discover(asked: Asked) -> Any:
        return discovered(asked) if era[0] == "new" else answer(400, b"?")

    def call(asked: Asked) -> Any:
        if "mcp-session-id" in asked.headers or era[0] == "new":
            return result(asked, {"content": []})
        error = {"code": -32022, "message": "Unsupported", "data": {"supported": ["2025-11-25"], "requested": "x"}}
        return answer(400, {"jsonrpc": "2.0", "id": asked.id, "error": error})

    script = Old(server_discover=discover, tools_call=call)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless()
        assert "result" in (await agent.call("echo")).message
        era[0] = "old"
        assert "result" in (await agent.call("echo")).message
        assert running.servers.all[0].new is False


@pytest.mark.parametrize("status", [400, 404, 405, 406])
async def test_eras_are_told_apart(status: int) -> None:
    script = Old(server_discover=lambda asked: answer(status, b"?"))
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        assert (await running.stateless().call("echo")).text == "ok"
        assert len(server.calls("initialize")) == 1


async def test_an_outage_proves_no_era() -> None:
    up = [False]

    def discover(asked: Asked) -> Any:
        return discovered(asked) if up[0] else answer(503, b"?")

    script = Old(server_discover=discover)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless()
        assert "error" in (await agent.call("echo")).message
        assert not server.calls("initialize")
        up[0] = True
        assert "result" in (await agent.call("echo")).message
        assert running.servers.all[0].new is True


async def test_one_handshake_however_many_wait() -> None:
    async with upstream(Old()) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless()
        answers = await asyncio.gather(*(running.stateless().call("echo") for _ in range(20)), agent.ask("tools/list"))
        assert all("result" in answered.message for answered in answers)
        assert len(server.calls("initialize")) == 2  # the principal's, and the catalogue's


async def test_lists_of_many_pages() -> None:
    def pages(asked: Asked) -> Any:
        cursor = int(asked.body["params"].get("cursor", "0"))
        tools = [{"name": f"t{cursor}", "inputSchema": {}}]
        return result(asked, {"tools": tools} | ({"nextCursor": str(cursor + 1)} if cursor < 4 else {}))

    def endless(asked: Asked) -> Any:
        return result(asked, {"tools": TOOLS, "nextCursor": "same"})

    async with upstream(Old(tools_list=pages)) as server, upstream(Old(tools_list=endless)) as other:
        specs = {"u": HttpServerSpec(url=server.url), "v": HttpServerSpec(url=other.url)}
        async with gateway(specs, page=2) as running:
            agent = await running.agent()
            names: list[str] = []
            cursor: dict[str, Any] = {}
            for _ in range(10):
                said = (await agent.ask("tools/list", cursor)).message["result"]
                names += [tool["name"] for tool in said["tools"]]
                if "nextCursor" not in said:
                    break
                cursor = {"cursor": said["nextCursor"]}
            assert names == [f"u__t{n}" for n in range(5)] + ["v__echo", "v__echo"]
            assert len(other.calls("tools/list")) == 2
            foreign = await running.stateless(who="eve").ask("tools/list", cursor)
            assert foreign.error == (400, -32602)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"url": "ftp://x"},
        {"url": "not a url"},
        {"url": "http://user:pw@x/"},
        {"url": "http://x", "headers": {"Host": "y"}},
        {"url": "http://x", "headers": {"Mcp-Session-Id": "y"}},
        {"url": "http://x", "headers": {"a b": "y"}},
        {"url": "http://x", "headers": {"a": "y\r\nb: c"}},
        {"url": "http://x", "headers": {"a": ""}},
        {"url": "http://x", "headers": {"Mcp-Param-Region": "y"}},
        {"url": "http://x", "headers": {"Authorization": "y", "authorization": "z"}},
        {"url": "http://x", "command": "y"},
        {"url": "http://x", "tls": {"verifyy": False}},
    ],
)
def test_specs(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        HttpServerSpec.model_validate(wrong)
    assert HttpServerSpec.model_validate(
        {"url": "https://x/mcp", "tls": {"verify": False}, "headers": json.loads("{}")}
    )


def test_header_values_are_secret() -> None:
    spec = HttpServerSpec.model_validate({"url": "http://x", "headers": {"Authorization": "Bearer hush"}})
    assert "hush" not in f"{spec!r}{spec.headers}{spec.model_dump_json()}"
