"""The endpoint against agents of both eras, good and bad, over real sockets."""

import asyncio
import json
from typing import Any

import pytest
from tests.fixtures.garbage import collected
from tests.fixtures.mcp_gateway import NEW, child, gateway, until
from tests.fixtures.mcp_raw import Old, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.call import ToolCall

pytestmark = pytest.mark.anyio

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
SPECS: dict[str, Any] = {"c": child()}


# ---- what is refused before anything is asked
DEEP = b"[" * 60_000
HOSTILE: list[tuple[Any, int, int]] = [
    (b"", 400, -32700),
    (b"{", 400, -32700),
    (b"\xff\xfe", 400, -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + DEEP, 400, -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\xff"}}', 400, -32700),
    ([PING], 400, -32600),
    ([], 400, -32600),
    (7, 400, -32600),
    ({"id": 1, "method": "ping"}, 400, -32600),
    ({"jsonrpc": "2.0", "id": None, "method": "ping"}, 400, -32600),
    ({"jsonrpc": "2.0", "id": {"a": 1}, "method": "ping"}, 400, -32600),
    ({"jsonrpc": "2.0", "id": "x" * 1000, "method": "ping"}, 400, -32600),
    ({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "nothing/here"}, 200, -32601),
    ({"jsonrpc": "2.0", "id": 1, "method": "server/discover"}, 200, -32601),
    ({"jsonrpc": "2.0", "id": 1, "method": "tools/call"}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": 7}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "c", "_meta": 7}}, 200, -32602),
    (
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "c", "_meta": {"progressToken": {}}}},
        200,
        -32602,
    ),
    ({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"cursor": "forged"}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"cursor": 7}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "logging/setLevel", "params": {"level": "loud"}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "completion/complete", "params": {"ref": 7}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "completion/complete", "params": {"ref": {}}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "completion/complete", "params": {"ref": {"name": "x"}}}, 200, -32602),
    (
        {"jsonrpc": "2.0", "id": 1, "method": "completion/complete", "params": {"ref": {"type": [], "name": "x"}}},
        200,
        -32602,
    ),
    (
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "completion/complete",
            "params": {"ref": {"type": "ref/resource", "name": "x"}},
        },
        200,
        -32602,
    ),
    ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "c", "Name": "d"}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "c", "argumentſ": {}}}, 200, -32602),
    (
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "completion/complete",
            "params": {"ref": {"type": "ref/prompt", "name": "x", "NAME": "y"}},
        },
        200,
        -32602,
    ),
    ({"jsonrpc": "2.0", "id": 1, "method": "m" * 128}, 200, -32601),
    ({"jsonrpc": "2.0", "id": 1, "method": "m" * 129}, 200, -32601),
    ({"jsonrpc": "2.0", "method": "m" * 129}, 400, -32601),
    ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "n" * 257}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "prompts/get", "params": {"name": "n" * 257}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": "u" * 8193}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "resources/subscribe", "params": {"uri": "u" * 8193}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "resources/unsubscribe", "params": {"uri": "u" * 8193}}, 200, -32602),
    (
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "completion/complete",
            "params": {"ref": {"type": "ref/prompt", "name": "n" * 257}},
        },
        200,
        -32602,
    ),
    (
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "completion/complete",
            "params": {"ref": {"type": "ref/resource", "uri": "u" * 8193}},
        },
        200,
        -32602,
    ),
    ({"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {}}, 200, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}}, 400, -32602),
    ({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 7}}, 400, -32602),
    (
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "x", "capabilities": 7}},
        200,
        -32602,
    ),
]


async def test_hostile_input() -> None:
    methods: list[str] = []

    async def admit(call: ToolCall) -> None:
        methods.append(call.method)
        methods.append(call.context.mcp_method)

    async with gateway(SPECS, admit=admit) as running:
        agent = await running.agent()
        for body, status, code in HOSTILE:
            answer = await running.send(body, agent.headers | {"content-type": "application/json"})
            assert answer.error == (status, code), body
            assert set(answer.message) - {"id"} == {"jsonrpc", "error"}
            assert "Traceback" not in answer.body.decode()
        assert (await agent.ask("ping")).message["result"] == {}
        assert len(running.sessions) == 1
        assert max(map(len, methods)) == 128


HTTP: list[tuple[str, dict[str, str], int]] = [
    ("POST", {"accept": "application/json"}, 406),
    ("POST", {"accept": "text/event-stream"}, 406),
    ("POST", {"accept": "text/html"}, 406),
    ("POST", {"accept": "application/json;q=1, text/event-stream;q=0.5"}, 200),
    ("POST", {"accept": "*/*"}, 200),
    ("POST", {"content-type": "text/plain"}, 415),
    ("POST", {"content-type": "-"}, 415),
    ("POST", {"content-type": "application/json; charset=utf-8"}, 200),
    ("POST", {"origin": "https://app.example.com"}, 200),  # judged on the request floor, for every entrance
    ("POST", {"mcp-session-id": "-"}, 400),
    ("POST", {"mcp-session-id": "forged"}, 404),
    ("POST", {"mcp-session-id": "\xff"}, 404),
    ("POST", {"mcp-session-id": ""}, 404),
    ("POST", {"mcp-protocol-version": "-"}, 200),
    ("POST", {"mcp-protocol-version": "2025-03-26"}, 200),
    ("POST", {"mcp-protocol-version": "2025-06-18"}, 200),
    ("POST", {"mcp-protocol-version": "1999-01-01"}, 400),
    ("POST", {"mcp-protocol-version": "\xff"}, 400),
    ("GET", {"mcp-session-id": "-"}, 400),
    ("GET", {"mcp-session-id": "forged"}, 404),
    ("GET", {"accept": "application/json"}, 406),
    ("GET", {"mcp-protocol-version": NEW}, 405),
    ("DELETE", {"mcp-session-id": "forged"}, 404),
    ("DELETE", {"mcp-protocol-version": NEW}, 405),
    ("PUT", {}, 405),
    ("PATCH", {}, 405),
]


async def test_what_http_must_be() -> None:
    async with gateway(SPECS) as running:
        agent = await running.agent()
        for method, headers, status in HTTP:
            body = PING if method == "POST" else None
            answer = await running.send(body, agent.headers | headers, method=method)
            assert answer.status == status, (method, headers)
            if status == 405:
                assert "POST" in answer.headers["allow"]


async def test_a_body_too_large() -> None:
    async with gateway(SPECS, max_body=1000) as running:
        answer = await running.send({"x": "y" * 1001})
        assert answer.error == (413, -32603)


# ---- sessions
async def test_initialize() -> None:
    async with gateway({"c": child(), "d": child()}) as running:
        for asked, given in (("2025-06-18", "2025-06-18"), ("2025-11-25", "2025-11-25"), ("2024-11-05", "2025-11-25")):
            agent = await running.agent(revision=asked)
            assert agent.revision == given
            assert len(agent.id) >= 32
            assert agent.opening["serverInfo"] == {"name": "tollhouse", "version": "0"}
        before = agent.opening["capabilities"]
        assert before == {
            "tools": {"listChanged": True}, "prompts": {"listChanged": True},
            "resources": {"listChanged": True, "subscribe": True}, "completions": {}, "logging": {},
        }  # fmt: skip
        await agent.ask("tools/list")
        assert set((await running.agent()).opening["capabilities"]) == {"tools", "resources", "logging"}


async def test_a_session_is_its_principals_at_its_endpoint() -> None:
    async with gateway({"c": child(), "d": child()}) as running:
        ada = await running.agent(who="ada")
        assert (await ada.ask("ping")).status == 200
        for headers, path in (({"x-who": "bob"}, "/mcp"), ({"x-who": "-"}, "/mcp"), ({}, "/mcp/c")):
            answer = await running.send(PING, ada.headers | headers, path=path)
            forged = await running.send(PING, ada.headers | headers | {"mcp-session-id": "x" * 32}, path=path)
            assert answer.status == 404
            assert answer.body == forged.body
        stolen = ada.headers | {"x-who": "bob"}
        assert (await running.send(None, stolen, method="GET")).status == 404
        assert (await running.send(None, stolen, method="DELETE")).status == 404
        assert (await ada.ask("ping")).status == 200


async def test_the_end_of_a_session() -> None:
    async with gateway(SPECS) as running:
        agent = await running.agent()
        stream = await agent.listen()
        call = await agent.start("tools/call", {"name": "never", "arguments": {}})
        await until(lambda: next(iter(running.sessions._open.values())).calls)
        assert await agent.end() == 204
        assert await stream.next() is None
        await call.head()
        assert json.loads(await call.body())["error"]["data"]["reason"] == "ClientGone"
        assert (await agent.ask("ping")).status == 404
        assert (await agent.tell("notifications/initialized")).status == 404
        assert await agent.end() == 404
        assert len(running.sessions) == 0
        await stream.close()
        await call.close()


async def test_idle_sessions_end() -> None:
    async with gateway(SPECS, limits={"timeout": 0.2}) as running:
        idle, listening = await running.agent(), await running.agent()
        stream = await listening.listen()
        await until(lambda: len(running.sessions) == 1)
        assert (await idle.ask("ping")).status == 404
        assert (await listening.ask("ping")).status == 200
        await stream.close()
        await until(lambda: len(running.sessions) == 0)


async def test_sessions_are_bounded() -> None:
    async with gateway(SPECS, limits={"limit_each": 2, "limit": 3}) as running:
        first, second = await running.agent(who="a"), await running.agent(who="a")
        await first.ask("ping")
        await asyncio.sleep(0.15)  # the clock is coarse
        await first.ask("ping")
        streams = [await first.listen()]
        await running.agent(who="a")
        assert (await second.ask("ping")).status == 404  # the one that was idle longest
        third = await running.agent(who="a")
        streams.append(await third.listen())
        body = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        answer = await running.send({**PING, "method": "initialize", "params": body}, {"x-who": "a"})
        assert answer.error == (200, -32603)
        assert answer.message["error"]["data"]["reason"] == "RateLimit"
        assert (await (await running.agent(who="b")).ask("ping")).status == 200
        assert len(running.sessions) == 3
        for stream in streams:
            await stream.close()


async def test_messages_wait_for_the_next_stream_and_stand_on_one() -> None:
    async with gateway(SPECS) as running:
        agent = await running.agent()
        await agent.call("log")
        note = {"method": "notifications/message", "params": {"level": "info", "data": "hello"}, "jsonrpc": "2.0"}
        streams = [await agent.listen(), await agent.listen()]
        assert await streams[0].next() == note
        running.sessions.changed("c", "notifications/tools/list_changed")
        running.sessions.changed("other", "notifications/prompts/list_changed")
        assert (await streams[1].next())["method"] == "notifications/tools/list_changed"
        running.sessions.all_changed()
        methods = {(await streams[1].next())["method"] for _ in range(3)}
        assert methods == {f"notifications/{kind}/list_changed" for kind in ("tools", "prompts", "resources")}
        running.sessions.finish_streams()
        assert await streams[0].next() is None
        for stream in streams:
            await stream.close()


async def test_updates_reach_who_subscribed() -> None:
    async with gateway({"c": child(), "d": child()}) as running:
        one, other = await running.agent(), await running.agent()
        streams = [await one.listen(), await other.listen()]
        assert (await one.ask("resources/subscribe", {"uri": "c+x:y"})).message["result"] == {}
        assert (await streams[0].next())["params"] == {"uri": "c+x:y"}
        assert (await one.ask("resources/unsubscribe", {"uri": "c+x:y"})).message["result"] == {}
        assert (await other.ask("resources/subscribe", {"uri": "d+x:y"})).message["result"] == {}
        assert (await streams[1].next())["params"] == {"uri": "d+x:y"}
        for stream in streams:
            await stream.close()


# ---- the stateless era
def with_meta(method: str, params: Any = None, **meta: Any) -> Any:
    fields = {"io.modelcontextprotocol/protocolVersion": NEW, "io.modelcontextprotocol/clientCapabilities": {}}
    kept = {key: value for key, value in (fields | meta).items() if value is not ...}
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**(params or {}), "_meta": kept}}


V = "io.modelcontextprotocol/protocolVersion"
LIST = {"mcp-protocol-version": NEW, "mcp-method": "tools/list"}
CALL = {"mcp-protocol-version": NEW, "mcp-method": "tools/call", "mcp-name": "echo"}
ECHO = {"name": "echo", "arguments": {}}
STATELESS: list[tuple[Any, dict[str, str], tuple[int, int] | None]] = [
    (with_meta("tools/list"), LIST, None),
    (with_meta("tools/list"), LIST | {"mcp-session-id": "whatever", "last-event-id": "7"}, None),
    (with_meta("tools/call", ECHO), CALL, None),
    (with_meta("tools/call", ECHO), CALL | {"mcp-name": "=?base64?ZWNobw==?="}, None),
    (with_meta("tools/list"), LIST | {"mcp-method": "-"}, (400, -32020)),
    (with_meta("tools/list"), LIST | {"mcp-method": "Tools/List"}, (400, -32020)),
    (with_meta("tools/list"), LIST | {"mcp-protocol-version": "-"}, (400, -32020)),
    (with_meta("tools/list"), LIST | {"mcp-protocol-version": "2025-11-25"}, (400, -32020)),
    (with_meta("tools/call", ECHO), CALL | {"mcp-name": "-"}, (400, -32020)),
    (with_meta("tools/call", ECHO), CALL | {"mcp-name": "other"}, (400, -32020)),
    (with_meta("tools/call", ECHO), CALL | {"mcp-name": "=?base64?!?="}, (400, -32020)),
    (with_meta("tools/call", ECHO), CALL | {"mcp-name": "=?base64?ZWNobx==?="}, (400, -32020)),
    (with_meta("tools/call", ECHO), CALL | {"mcp-name": "echo\r\nmcp-name: echo"}, (400, -32020)),
    (with_meta("tools/call", ECHO), CALL | {"mcp-name": "echo\r\nMcp-Name: other"}, (400, -32020)),
    (with_meta("tools/call", {"name": "\u00e9"}), CALL | {"mcp-name": "\u00e9"}, (400, -32020)),
    (with_meta("tools/call", {"name": "\u00e9"}), CALL | {"mcp-name": "=?base64?w6k=?="}, (400, -32602)),
    (with_meta("tools/list", **{V: "2030-01-01"}), LIST | {"mcp-protocol-version": "2030-01-01"}, (400, -32022)),
    (with_meta("tools/list", **{V: ...}), LIST, (400, -32602)),
    (with_meta("tools/list", **{V: 7}), LIST, (400, -32020)),
    (with_meta("tools/list", **{"io.modelcontextprotocol/clientCapabilities": ...}), LIST, (400, -32602)),
    (with_meta("tools/list", **{"io.modelcontextprotocol/clientCapabilities": 7}), LIST, (400, -32602)),
    (with_meta("tools/list", **{"io.modelcontextprotocol/logLevel": "loud"}), LIST, (400, -32602)),
    ({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, LIST, (400, -32602)),
    ({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": []}}, LIST, (400, -32602)),
    ([PING], LIST, (400, -32600)),
    ({"jsonrpc": "2.0", "id": 1, "result": {}}, LIST, (400, -32600)),
    (with_meta("ping"), LIST | {"mcp-method": "ping"}, (404, -32601)),
    (with_meta("logging/setLevel"), LIST | {"mcp-method": "logging/setLevel"}, (404, -32601)),
    (with_meta("resources/subscribe"), LIST | {"mcp-method": "resources/subscribe"}, (404, -32601)),
    (with_meta("nothing"), LIST | {"mcp-method": "nothing"}, (404, -32601)),
    (with_meta("tools/call", {"name": 7}), CALL, (400, -32602)),
    (with_meta("tools/call", {"name": "gone"}), CALL | {"mcp-name": "gone"}, (400, -32602)),
    (with_meta("tools/list", {"cursor": "x"}), LIST, (400, -32602)),
]


async def test_what_a_stateless_request_must_be() -> None:
    async with gateway(SPECS) as running:
        for body, headers, error in STATELESS:
            answer = await running.send(body, headers)
            if error is None:
                assert (answer.status, answer.message["result"]["resultType"]) == (200, "complete")
                assert "mcp-session-id" not in answer.headers
            else:
                assert answer.error == error, (body, headers)
        assert len(running.sessions) == 0
        note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        assert (await running.send(note, {"mcp-protocol-version": NEW})).status == 202
        unsupported = await running.send(with_meta("tools/list", **{V: "x"}), LIST | {"mcp-protocol-version": "x"})
        assert unsupported.message["error"]["data"] == {
            "supported": [NEW, "2025-11-25", "2025-06-18", "2025-03-26"],
            "requested": "x",
        }


async def test_duplicate_routing_headers() -> None:
    async with gateway(SPECS) as running:
        answer = await running.send(with_meta("tools/list"), LIST | {"Mcp-Method": "tools/list"})
        assert answer.error == (400, -32020)


async def test_discover() -> None:
    async with gateway(SPECS) as running:
        result = (await running.stateless().ask("server/discover")).message["result"]
        assert result["supportedVersions"] == [NEW, "2025-11-25", "2025-06-18", "2025-03-26"]
        assert result["resultType"] == "complete"
        assert result["cacheScope"] == "private"
        assert result["ttlMs"] >= 0
        assert result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "tollhouse"
        assert result["capabilities"]["resources"] == {"listChanged": True, "subscribe": True}


async def test_lists_say_how_long_they_hold() -> None:
    async with gateway(SPECS) as running:
        result = (await running.stateless().ask("tools/list")).message["result"]
        assert 50_000 < result["ttlMs"] <= 60_000
        assert result["cacheScope"] == "private"
        assert "ttlMs" not in (await (await running.agent()).ask("tools/list")).message["result"]


async def test_arguments_repeated_in_headers_are_checked() -> None:
    schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}
    script = Old(tools_list=lambda asked: result(asked, {"tools": [{"name": "echo", "inputSchema": schema}]}))
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        await running.stateless().ask("tools/list")
        body = with_meta("tools/call", {"name": "echo", "arguments": {"region": "eu"}})
        assert (await running.send(body, CALL)).error == (400, -32020)
        assert (await running.send(body, CALL | {"mcp-param-region": "us"})).error == (400, -32020)
        answer = await running.send(body, CALL | {"mcp-param-region": "eu", "mcp-param-other": "x"})
        assert answer.text == "ok"
        assert not any(name.startswith("mcp-param") for name in server.calls("tools/call")[0].headers)


async def test_a_subscription_ends_in_good_order() -> None:
    async with gateway(SPECS) as running:
        agent = running.stateless()
        stream = await agent.start("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        await stream.head()
        assert (await stream.next())["method"] == "notifications/subscriptions/acknowledged"
        running.sessions.finish_streams()
        last = await stream.next()
        assert (last["id"], last["result"]["resultType"]) == (agent.ids, "complete")
        assert await stream.next() is None
        await stream.close()


# ---- names and rules
async def test_names_and_conflicts() -> None:
    specs = {"one": child(), "two": child()}
    for prefix, expected in (("auto", "one__echo"), ("always", "one__echo"), ("never", "echo")):
        async with gateway(specs, prefix=prefix) as running:
            agent = await running.agent()
            names = [tool["name"] for tool in (await agent.ask("tools/list")).message["result"]["tools"]]
            assert names[0] == expected
            assert len(names) == len(set(names)) == (28 if prefix != "never" else 14)
            assert (await agent.call(expected, {"message": "hi"})).text == "hi"
            for unknown in ("three__echo", "one__", "__echo", "", "nothing", "one__nothing"):
                assert (await agent.call(unknown)).error == (200, -32602), unknown
            alone = await running.agent(path="/mcp/two")
            assert (await alone.call("echo", {"message": "alone"})).text == "alone"


async def test_what_may_not_be_called_is_not_listed() -> None:
    probes: list[ToolCall] = []

    def permitted(call: ToolCall) -> bool:
        probes.append(call)
        return call.name == "echo" or (call.principal is not None and call.principal.id == "ada")

    async with gateway({"c": child(), "d": child()}, permitted=permitted) as running:
        for _ in range(2):
            bob = (await (await running.agent(who="bob")).ask("tools/list")).message["result"]["tools"]
            assert [tool["name"] for tool in bob] == ["c__echo", "d__echo"]
            ada = (await running.stateless(who="ada").ask("tools/list")).message["result"]["tools"]
            assert len(ada) == 28
        assert {(probe.method, probe.server) for probe in probes} == {("tools/call", "c"), ("tools/call", "d")}


# ---- nothing is left
async def test_no_garbage_is_made() -> None:
    async with gateway(SPECS) as running:
        agent, stateless = await running.agent(), running.stateless()

        async def everything() -> None:
            for one in (agent, stateless):
                await one.call("echo", {"message": "x"})
                await one.call("progress", {}, _meta={"progressToken": 1})
                await one.ask("tools/list")
                stream = await one.start("tools/call", {"name": "never", "arguments": {}})
                await asyncio.sleep(0.02)
                await stream.close()
            (await agent.listen()).writer.close()

        await everything()
        await asyncio.sleep(0.1)
        ours = ("tollhouse.endpoints", "tollhouse.backends", "tollhouse.wire", "tollhouse.core")
        with collected() as found:
            await everything()
            await asyncio.sleep(0.1)
        assert not {type(thing).__qualname__ for thing in found if type(thing).__module__.startswith(ours)}
