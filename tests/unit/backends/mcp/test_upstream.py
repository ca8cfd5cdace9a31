"""Who shares a session with a server: real sockets, real children."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Gateway, child, gateway, sessions, until
from tests.fixtures.mcp_raw import Asked, Changing, Old, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.stdio import StdioServerSpec

pytestmark = pytest.mark.anyio


CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"


def keys(running: Gateway) -> set[Any]:
    return {session.key[0] for session in sessions(running)}


@pytest.mark.parametrize(
    ("mode", "count", "kinds"),
    [
        ("auto", 3, {"agent", "principal"}),
        ("exclusive", 3, {"agent", "principal"}),
        ("principal", 1, {"principal"}),
        ("shared", 1, {"shared"}),
    ],
)
async def test_who_shares_a_session(mode: Any, count: int, kinds: set[str]) -> None:
    async with (
        upstream(Old()) as server,
        gateway({"u": HttpServerSpec(url=server.url, session=mode)}) as running,
    ):
        for agent in (await running.agent(who="ada"), await running.agent(who="ada"), running.stateless(who="ada")):
            assert (await agent.call("echo")).text == "ok"
        assert len(server.calls("initialize")) == count
        assert keys(running) == kinds
        await running.stateless(who="bob").call("echo")
        assert len(server.calls("initialize")) == count + (mode != "shared")


async def test_exclusive_children() -> None:
    async with gateway({"c": child(session="exclusive")}) as running:
        pids = {(await (await running.agent(who="ada")).call("pid")).text for _ in range(2)}
        assert len(pids) == 2


async def test_a_server_without_sessions_is_shared() -> None:
    """It gives no id, so it knows none of them from another; but profiles are kept apart all the same."""

    def initialize(asked: Asked) -> Any:
        value = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "x"}}
        return result(asked, value)

    async with (
        upstream(Old(initialize=initialize)) as server,
        gateway({"u": HttpServerSpec(url=server.url)}) as running,
    ):
        for who in ("ada", "bob", "eve"):
            for agent in (await running.agent(who=who), running.stateless(who=who)):
                assert (await agent.call("echo")).text == "ok"
        assert len(server.calls("initialize")) == 1
        await (await running.agent({"roots": {}})).call("echo")
        assert len(server.calls("initialize")) == 2
        assert {session.key for session in sessions(running)} == {("shared", "", 0, 0), ("shared", "", 1, 0)}


async def test_stateless_agents_have_sessions_by_what_they_can_be_asked() -> None:
    async with upstream(Old()) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        declarations: list[Any] = [{}, {"roots": {}}, {"elicitation": {}}, {"roots": {}}]
        for declared in declarations:
            assert (await running.stateless(who="ada").call("echo", _meta={CAPABILITIES: declared})).text == "ok"
        told = [asked.body["params"]["capabilities"] for asked in server.calls("initialize")]
        assert told == [{}, {"roots": {}}, {"elicitation": {}}]


async def test_a_stateless_server_is_told_what_this_agent_can_be_asked() -> None:
    async with upstream(Changing("new")) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        await (await running.agent({"elicitation": {}})).call("echo")
        await running.stateless().call("echo")
        await running.stateless().call("echo", _meta={CAPABILITIES: {"roots": {"listChanged": True}}})
        told = [asked.body["params"]["_meta"][CAPABILITIES] for asked in server.calls("tools/call")]
        assert told == [{"elicitation": {"form": {}}}, {}, {"roots": {}}]


async def test_calls_of_a_child_that_can_be_asked_never_overlap() -> None:
    declared: Any = {CAPABILITIES: {"roots": {}}}
    async with gateway({"c": child(max_children=3)}) as running:
        agent = running.stateless(who="ada")
        await agent.call("echo")
        ask = {"method": "roots/list"}
        asked = await asyncio.gather(*(running.stateless(who="ada").call("ask", ask, _meta=declared) for _ in range(2)))
        assert {answered.message["result"]["resultType"] for answered in asked} == {"input_required"}
        busy = [session for session in sessions(running) if session.active]
        assert len(busy) == 2
        assert all(session._carrying == 1 for session in busy)
        assert (await agent.call("echo", {"message": "beside"})).text == "beside"
        third = await running.stateless(who="ada").call("ask", ask, _meta=declared)  # an idle child makes room
        assert third.message["result"]["resultType"] == "input_required"
        running.servers.all[0]._room.patience = 0.1
        refused = await running.stateless(who="ada").call("ask", ask, _meta=declared)
        assert "in use" in refused.message["error"]["message"]


async def test_equal_ids_and_tokens_of_agents_do_not_meet() -> None:
    async with gateway({"c": child()}) as running:
        one, other = await running.agent(who="ada"), await running.agent(who="ada")
        assert one.ids == other.ids
        waiting = asyncio.create_task(one.call("never", _meta={"progressToken": 1}))
        await until(lambda: sessions(running) and sessions(running)[0].active == 1)
        answered = await other.call("progress", _meta={"progressToken": 1})
        assert len(answered.messages) == 3
        assert one.ids == other.ids
        await other.tell("notifications/cancelled", {"requestId": one.ids})  # its own, which has ended
        assert sessions(running)[0].active == 1
        await one.tell("notifications/cancelled", {"requestId": one.ids})
        assert not any("method" in message for message in (await waiting).messages)


TURNING = """
import json, os, sys
old = not os.path.exists(sys.argv[1])
open(sys.argv[1], "a").close()
for line in sys.stdin:
    asked = json.loads(line)
    method, value = asked.get("method"), None
    if old and method == "initialize":
        value = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "x"}}
    elif not old and method == "server/discover":
        value = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
    elif method == "tools/list":
        value = {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}
    elif method == "tools/call":
        value = {"content": [{"type": "text", "text": "old" if old else "new"}]}
    if "id" in asked:
        answer = {"jsonrpc": "2.0", "id": asked["id"]}
        answer.update({"error": {"code": -32601, "message": "?"}} if value is None else {"result": value})
        print(json.dumps(answer), flush=True)
    if old and method == "tools/call":
        break
"""


async def test_a_child_that_comes_back_in_the_new_era_is_nobodys_alone(tmp_path: Path) -> None:
    spec = StdioServerSpec(command=sys.executable, args=("-c", TURNING, str(tmp_path / "old")))
    can = {CAPABILITIES: {"roots": {}}}
    async with gateway({"c": spec}) as running:
        server = running.servers.all[0]
        agent = running.stateless(who="ada")
        assert (await agent.call("echo", _meta=can)).text == "old"
        await until(lambda: not list(server.sessions))
        assert (await agent.call("echo", _meta=can)).text == "new"
        assert server.new
        assert not server._claimed
