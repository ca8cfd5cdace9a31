"""What an endpoint offers: overrides, selections, conflicts of names, how lists may be kept; over real sockets."""

import json
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import NEW, child, gateway
from tests.fixtures.mcp_raw import Asked, Old, answer, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.wire.mcp.overrides import Argument, Override, Overrides, Selection

pytestmark = pytest.mark.anyio


async def names_of(agent: Any) -> list[str]:
    return [tool["name"] for tool in (await agent.ask("tools/list")).message["result"]["tools"]]


async def test_an_override_is_seen_and_called_by_its_name() -> None:
    own = Overrides({"echo": Override("say", "Say it.", {"message": Argument("words", hidden=False)})})
    for path, name in (("/mcp", "c__say"), ("/mcp/c", "say")):
        async with gateway({"c": child(), "d": child()}, overrides={"c": own}) as running:
            for agent in (await running.agent(path=path), running.stateless(path)):
                assert (await names_of(agent))[0] == name
                assert (await agent.call(name, {"words": "hi"})).text == "hi"
                assert (await agent.call(name.replace("say", "echo"))).message["error"]["code"] == -32602
                assert (await agent.call(name, {"message": "hi"})).message["error"]["code"] == -32602


async def test_hidden_arguments_are_the_gateways_to_set() -> None:
    own = Overrides({"echo": Override("", "", {"message": Argument(hidden=True, default=b'"always"')})})
    async with gateway({"c": child()}, overrides={"c": own}) as running:
        agent = running.stateless()
        assert (await agent.call("echo")).text == "always"
        assert (await agent.ask("tools/call", {"name": "echo"})).text == "always"
        assert (await agent.call("echo", {"message": "mine"})).error == (400, -32602)


async def test_headers_of_an_overridden_tool() -> None:
    """The agent repeats what it sees, the server gets what it knows."""
    properties = {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "kind": {"type": "string", "x-mcp-header": "K"},
    }
    tool = {"name": "echo", "inputSchema": {"type": "object", "properties": properties}}

    def script(asked: Asked) -> Any:
        if asked.method == "server/discover":
            value = {"supportedVersions": [NEW], "capabilities": {"tools": {}}, "resultType": "complete"}
            return result(asked, value)
        if asked.method == "tools/list":
            return result(asked, {"tools": [tool], "resultType": "complete", "ttlMs": 1000})
        return result(asked, {"content": [{"type": "text", "text": "ok"}], "resultType": "complete"})

    arguments = {"region": Argument(name="place"), "kind": Argument(hidden=True, default=b'"k1"')}
    own = Overrides({"echo": Override("say", "", arguments)})
    async with (
        upstream(script) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, overrides={"u": own}) as running,
    ):
        agent = running.stateless()
        await agent.ask("tools/list")
        assert (await agent.call("say", {"place": "eu"})).error == (400, -32020)
        agent.headers["mcp-param-region"] = "eu"
        assert (await agent.call("say", {"place": "eu"})).text == "ok"
        told = server.calls("tools/call")[-1]
        assert told.headers["mcp-name"] == "echo"
        assert told.headers["mcp-param-region"] == "eu"
        assert told.headers["mcp-param-k"] == "k1"
        assert told.body["params"]["arguments"] == {"region": "eu", "kind": "k1"}


async def test_a_selection_is_all_there_is() -> None:
    chosen = Selection(["c__*"], ["*die*", "env"])
    async with gateway({"c": child(), "d": child()}, selection=chosen) as running:
        for agent in (await running.agent(), running.stateless()):
            names = await names_of(agent)
            assert "c__echo" in names
            assert not {"c__die", "c__env", "d__echo"} & set(names)
            for gone in ("c__die", "c__env", "d__echo"):
                assert (await agent.call(gone)).message["error"]["code"] == -32602
            assert (await agent.call("c__echo", {"message": "x"})).text == "x"


async def test_conflicts_of_names_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway({"c": child(), "d": child()}, prefix="never") as running:
        agent = running.stateless()
        await agent.ask("tools/list")
        await agent.ask("tools/list")
        said = [record.message for record in caplog.records if "'echo'" in record.message]
        what = "tool 'echo' of server d is hidden: server c, which stands before it, has one of that name"
        assert said == [f"mcp endpoint /mcp: {what}"]


def stateless(*, scope: str, **tool: Any) -> Any:
    def script(asked: Asked) -> Any:
        if asked.method == "server/discover":
            return result(asked, {"supportedVersions": [NEW], "capabilities": {"tools": {}}, "resultType": "complete"})
        if asked.method == "tools/list":
            tools = [{"name": "echo", "inputSchema": {"type": "object"}, **tool}]
            return result(asked, {"tools": tools, "resultType": "complete", "ttlMs": 60000, "cacheScope": scope})
        value = {"content": [], "structuredContent": [1, 2], "resultType": "complete"}
        return result(asked, value) if asked.method == "tools/call" else answer(400)

    return script


async def test_what_may_be_kept_by_whom() -> None:
    for scope, permitted, said in (
        ("public", None, "public"),
        ("private", None, "private"),
        ("public", lambda call: True, "private"),
    ):
        async with (
            upstream(stateless(scope=scope)) as server,
            gateway({"u": HttpServerSpec(url=server.url)}, permitted=permitted) as running,
        ):
            told = (await running.stateless().ask("tools/list")).message["result"]
            assert told["cacheScope"] == said
            assert 50_000 < told["ttlMs"] <= 60_000
    async with upstream(Old()) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        assert (await running.stateless().ask("tools/list")).message["result"]["cacheScope"] == "private"


async def test_structured_content_that_is_no_object() -> None:
    async with (
        upstream(stateless(scope="public", outputSchema={"type": "array"})) as server,
        gateway({"u": HttpServerSpec(url=server.url)}) as running,
    ):
        new = running.stateless()
        assert "outputSchema" in (await new.ask("tools/list")).message["result"]["tools"][0]
        assert (await new.call("echo")).message["result"]["structuredContent"] == [1, 2]
        for revision in ("2025-06-18", "2025-11-25"):
            old = await running.agent(revision=revision)
            assert "outputSchema" not in (await old.ask("tools/list")).message["result"]["tools"][0]
            told = (await old.call("echo")).message["result"]
            assert [json.loads(block["text"]) for block in told.pop("content")] == [[1, 2]]
            assert told == {}


async def test_an_answer_as_a_stream_for_who_prefers_that() -> None:
    async with gateway({"c": child()}) as running:
        agent = running.stateless()
        agent.headers["accept"] = "text/event-stream, application/json"
        told = await agent.ask("tools/list")
        assert told.streamed
        assert json.dumps(told.message["result"]["tools"])
        refused = await agent.call("nothing")
        assert not refused.streamed
        assert refused.status == 400


async def test_initialize_that_says_it_is_stateless() -> None:
    async with gateway({"c": child()}) as running:
        agent = running.stateless()
        assert (await agent.ask("initialize", {"protocolVersion": NEW, "capabilities": {}})).error == (404, -32601)


UI = "io.modelcontextprotocol/ui"
HTML = {"mimeTypes": ["text/html;profile=mcp-app"]}


def with_extensions(extensions: Any) -> Any:
    """A stateless server that declares them."""

    def script(asked: Asked) -> Any:
        if asked.method == "server/discover":
            capabilities = {"tools": {}, "extensions": extensions}
            return result(asked, {"supportedVersions": [NEW], "capabilities": capabilities, "resultType": "complete"})
        if asked.method == "tools/list":
            tools = [{"name": "echo", "inputSchema": {"type": "object"}}]
            return result(asked, {"tools": tools, "resultType": "complete", "ttlMs": 60000})
        return result(asked, {"content": [{"type": "text", "text": "ok"}], "resultType": "complete"})

    return script


async def test_extensions_of_one_server_pass_and_of_several_only_what_is_drawn() -> None:
    declared = {"elicitation": {}, "extensions": {UI: HTML, "com.example/x": {"a": 1}}}
    meta = {"io.modelcontextprotocol/clientCapabilities": declared}
    async with (
        upstream(with_extensions({UI: HTML, "com.example/x": {}})) as one,
        upstream(with_extensions({"com.example/y": {}})) as other,
        gateway({"u": HttpServerSpec(url=one.url), "v": HttpServerSpec(url=other.url)}) as running,
    ):
        await running.stateless().ask("tools/list")
        for path, name, offers, told in (
            ("/mcp", "u__echo", {UI: HTML}, {UI: HTML}),
            ("/mcp/u", "echo", {UI: HTML, "com.example/x": {}}, {UI: HTML, "com.example/x": {"a": 1}}),
        ):
            agent = running.stateless(path)
            assert (await agent.ask("server/discover")).message["result"]["capabilities"]["extensions"] == offers
            assert (await running.agent(path=path)).opening["capabilities"]["extensions"] == offers
            assert (await agent.call(name, _meta=meta)).text == "ok"
            seen = one.calls("tools/call")[-1].body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
            assert seen == {"elicitation": {"form": {}}, "extensions": told}
            old = await running.agent(declared, path=path)
            assert (await old.call(name)).text == "ok"
            seen = one.calls("tools/call")[-1].body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
            assert seen == {"elicitation": {"form": {}}, "extensions": told}


async def test_a_server_with_sessions_is_told_that_its_agent_draws() -> None:
    async with upstream(Old()) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent({"extensions": {UI: HTML}})
        assert (await agent.call("echo")).text == "ok"
        asked = [call.body["params"]["capabilities"] for call in server.calls("initialize")]
        assert {"extensions": {UI: HTML}} in asked


async def test_an_error_to_no_known_request_has_no_id() -> None:
    async with gateway({"c": child()}) as running:
        for body in (b"{", b"[]", b'{"jsonrpc":"2.0","id":null,"method":"ping"}'):
            told = (await running.send(body)).message
            assert "id" not in told
            assert told["error"]["code"] in (-32700, -32600)


async def test_a_cursor_goes_on_at_another_worker_after_a_tool_was_added_and_for_nobody_else() -> None:
    """It says after which tool of which server the list goes on, to whoever has the key."""
    tools = [{"name": f"t{number}", "inputSchema": {"type": "object"}} for number in range(4)]

    def script(asked: Asked) -> Any:
        if asked.method == "tools/list":
            return result(asked, {"tools": tools, "resultType": "complete", "ttlMs": 0})
        return with_extensions({})(asked)

    async with (
        upstream(script) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, page=2) as one,
        gateway({"u": HttpServerSpec(url=server.url)}, page=2) as other,
    ):
        first = (await one.stateless(who="ada").ask("tools/list")).message["result"]
        assert [tool["name"] for tool in first["tools"]] == ["t0", "t1"]
        tools.insert(1, {"name": "new", "inputSchema": {"type": "object"}})
        cursor = {"cursor": first["nextCursor"]}
        second = (await other.stateless(who="ada").ask("tools/list", cursor)).message["result"]
        assert [tool["name"] for tool in second["tools"]] == ["t2", "t3"]
        for agent in (other.stateless(who="bob"), other.stateless(), other.stateless("/mcp/u", who="ada")):
            assert (await agent.ask("tools/list", cursor)).error == (400, -32602)
        assert (await other.stateless(who="ada").ask("prompts/list", cursor)).error == (400, -32602)
