"""Servers behind a URL, the whole path: real sockets, a scripted server, and one made with the `mcp` package."""

import asyncio
import socket
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Gateway, gateway, http_server, sessions, until
from tests.fixtures.mcp_raw import CUT, STREAM, TOOLS, Asked, Old, answer, chunk, result, upstream
from tests.unit.net.upstreams import stand_still

from tollhouse.backends.mcp.http import HttpServerSpec

pytestmark = pytest.mark.anyio


def quiet(running: Gateway) -> bool:
    return all(not session.active and not session.streaming for session in sessions(running))


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


def discovered(asked: Asked) -> bytes:
    capabilities: Any = {"tools": {}}
    return result(asked, {"supportedVersions": ["2026-07-28"], "capabilities": capabilities, "resultType": "complete"})


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
        assert "forgets every session" in answered.message["error"]["message"]
        assert len(server.calls("tools/call")) == len(server.calls("initialize")) == 4


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


@pytest.mark.parametrize(
    ("harmless", "worked", "calls"), [(False, 0.0, 1), (False, 0.5, 1), (True, 0.0, 2), (True, 0.5, 2)]
)
async def test_a_kept_connection_that_closes(harmless: bool, worked: float, calls: int) -> None:
    """Whether it crossed the call or broke under it: a tool that says it may be is called again, and no other."""

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


async def test_a_server_that_is_down() -> None:
    with socket.socket() as held:  # nobody else gets its port meanwhile
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/mcp"
        async with gateway({"u": HttpServerSpec(url=url)}) as running:
            answered = await running.stateless().call("echo")
            assert answered.error == (200, -32603)
            assert answered.headers["x-tollhouse-reason"] == "UpstreamFailure"


async def test_a_timeout() -> None:
    script = Old(tools_call=lambda asked: None)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url, timeout=0.3)}) as running:
        answered = await running.stateless().call("echo")
        assert answered.message["error"]["data"]["reason"] == "Timeout"


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
