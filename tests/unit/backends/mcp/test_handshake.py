"""Which era and revision a server speaks, over real sockets."""

import json
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import child, gateway
from tests.fixtures.mcp_raw import STREAM, Asked, Changing, Old, answer, chunk, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec

pytestmark = pytest.mark.anyio


def discovered(asked: Asked) -> bytes:
    capabilities: Any = {"tools": {}}
    return result(asked, {"supportedVersions": ["2026-07-28"], "capabilities": capabilities, "resultType": "complete"})


async def test_an_id_in_an_error_is_no_session() -> None:
    refused = {"code": -32600, "message": "no"}

    def initialize(asked: Asked) -> Any:
        return answer(400, {"jsonrpc": "2.0", "id": asked.id, "error": refused}, mcp_session_id="stolen")

    script = Old(initialize=initialize)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        answered = await (await running.agent()).call("echo")
        assert "refused 'initialize'" in answered.message["error"]["message"]
        assert not any("mcp-session-id" in asked.headers for asked in server.asked)


@pytest.mark.parametrize("method", ["initialize", "tools/list", "tools/call"])
async def test_a_result_that_is_no_object_is_the_servers_fault(method: str) -> None:
    script = Old(**{method.replace("/", "_"): lambda asked: result(asked, ["params"])})
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless()
        answered = await (agent.ask("tools/list") if method == "tools/list" else agent.call("echo"))
        error = answered.message["error"]
        assert error["code"] == -32603
        assert "params" not in error["message"]


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


async def test_a_server_that_changes_its_era_and_back() -> None:
    script = Changing("new")
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agents = [await running.agent(), running.stateless()]
        for era, text in (("new", "new"), ("old", "ok"), ("new", "new"), ("old", "ok")):
            script.era = era
            for agent in agents:
                assert (await agent.call("echo")).text == text
            assert running.servers.all[0].new is (era == "new")
        probes = len(server.calls("server/discover"))
        for agent in agents:
            await agent.call("echo")
        assert len(server.calls("server/discover")) == probes  # found out once, and remembered


async def test_a_slow_start_is_no_old_server() -> None:
    """It says nothing to the probe for five seconds, and then that it speaks no `initialize`."""
    async with gateway({"c": child("asleep")}) as running:
        assert (await running.stateless().call("echo", {"message": "hi"})).text == "hi"
        assert running.servers.all[0].new is True


@pytest.mark.parametrize("revision", ["2025-03-26", "2024-11-05"])
async def test_an_older_revision(revision: str) -> None:
    """Named in an error, with what it speaks; of 2025-03-26 answers may come as batches."""
    offered: list[str] = []

    def initialize(asked: Asked) -> Any:
        wanted = asked.body["params"]["protocolVersion"]
        offered.append(wanted)
        if wanted != revision:
            error = {"code": -32602, "message": "Unsupported protocol version", "data": {"supported": [revision]}}
            return answer(200, {"jsonrpc": "2.0", "id": asked.id, "error": error})
        value = {"protocolVersion": revision, "capabilities": {"tools": {}}, "serverInfo": {"name": "x"}}
        return result(asked, value, mcp_session_id="s-1")

    def call(asked: Asked) -> Any:
        last = {"jsonrpc": "2.0", "id": asked.id, "result": {"content": [{"type": "text", "text": "old"}]}}
        note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "error", "data": "x"}}
        said = json.dumps([note, last] if revision == "2025-03-26" else last).encode()
        return [STREAM, chunk(b"data: %b\n\n" % said), b"0\r\n\r\n"]

    script = Old(initialize=initialize, tools_call=call)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        answered = await (await running.agent()).call("echo")
        assert answered.text == "old"
        assert offered == ["2025-11-25", revision]
        assert len(answered.messages) == (2 if revision == "2025-03-26" else 1)
        assert server.calls("tools/call")[0].headers["mcp-protocol-version"] == revision
