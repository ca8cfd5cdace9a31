"""A stateless agent's call that waits for an answer, while the gateway's configuration changes under it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fixtures import mcp_gateway
from tests.fixtures.gateway import Gateway, serving
from tests.fixtures.mcp_suite import fixture_server

pytestmark = pytest.mark.anyio

NEW = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
META = {f"{PREFIX}protocolVersion": NEW, f"{PREFIX}clientCapabilities": {"elicitation": {}}}
YES = {"action": "accept", "content": {"username": "ada", "email": "a@example.com"}}


async def call(gateway: Gateway, name: str, **more: Any) -> tuple[int, Any]:
    params = {"name": name, "arguments": {"message": "Who?"}, "_meta": META, **more}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": NEW,
        "mcp-method": "tools/call",
        "mcp-name": name,
    }
    status, data = await asyncio.to_thread(gateway.ask, "POST", "/mcp/u", body, headers)
    if not data.startswith(b"{"):
        data = [line[6:] for line in data.splitlines() if line.startswith(b"data: {")][-1]
    return status, json.loads(data)


async def test_a_call_that_waits_outlives_its_configuration(tmp_path: Path) -> None:
    """It goes on at the server it was made at, whether the policies change, or the server itself."""
    with fixture_server("--era", "old") as url:
        server: dict[str, Any] = {"url": url}
        config: dict[str, Any] = {
            "server": {"listen": "127.0.0.1:0", "metrics": None},
            "mcp": {"servers": {"u": server}},
        }
        async with serving(yaml.safe_dump(config), tmp_path) as gateway:
            for change in ({"input_timeout": "4m"}, {"servers": {"u": {**server, "timeout": "4m"}}}):
                _, told = await call(gateway, "test_elicitation")
                asked = told["result"]
                assert asked["resultType"] == "input_required"
                config["mcp"].update(change)
                await gateway.change(yaml.safe_dump(config))
                answers = dict.fromkeys(asked["inputRequests"], YES)
                more = {"inputResponses": answers, "requestState": asked["requestState"]}
                status, told = await call(gateway, "test_elicitation", **more)
                assert status == 200
                assert "action=accept" in told["result"]["content"][0]["text"], told
            assert "Traceback" not in gateway.text()


OPENING = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}


class Agent(mcp_gateway.Old):
    """An agent that shows a key."""

    def __init__(self, gateway: Gateway, key: str) -> None:
        port = int(gateway.url.rpartition(":")[2])
        super().__init__(mcp_gateway.Gateway(port, None, None, None), "/mcp", {"x-api-key": key})  # type: ignore[arg-type]

    async def begin(self) -> None:
        answer = await self.ask("initialize", OPENING)
        self.headers |= {"mcp-session-id": answer.headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}


class Stateless(mcp_gateway.New, Agent):
    pass


async def test_what_a_key_has_opened_ends_when_it_is_taken_out(tmp_path: Path) -> None:
    """Sessions, their streams and calls, HTTP+SSE streams and subscriptions; and nobody else's."""
    keys = [{"name": name, "key": f"{name}-secret-0123"} for name in ("ada", "bob")]
    child = mcp_gateway.child()
    config: dict[str, Any] = {
        "server": {"listen": "127.0.0.1:0", "metrics": None},
        "authenticate": {"keys": keys},
        "mcp": {"legacy_sse": True, "servers": {"u": {"command": child.command, "args": list(child.args)}}},
    }
    async with serving(yaml.safe_dump(config), tmp_path) as gateway:
        ada, bob = Agent(gateway, "ada-secret-0123"), Agent(gateway, "bob-secret-0123")
        new = Stateless(gateway, "ada-secret-0123")
        await ada.begin()
        await bob.begin()
        stream, others = await ada.listen(), await bob.listen()
        call = await ada.start("tools/call", {"name": "never", "arguments": {}})
        await call.head()
        subscription = await new.start("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
        await subscription.head()
        await subscription.next()
        sse = await ada.gateway.open(None, {"x-api-key": "ada-secret-0123"}, path="/mcp/sse", method="GET")
        await sse.head()
        await sse.event()
        config["authenticate"]["keys"] = keys[1:]
        await gateway.change(yaml.safe_dump(config))
        async with asyncio.timeout(10):
            assert (await call.next() or {}).get("error", {}).get("data", {}).get("reason") == "credential_revoked"
            assert (await stream.body()).count(b"data: {") <= 3  # lists that another configuration may have changed
            assert b"complete" in await subscription.body()
            assert await sse.event() is None
        assert (await ada.ask("ping")).status == 401
        assert "result" in (await bob.ask("ping")).message
        config["authenticate"]["keys"] = keys
        await gateway.change(yaml.safe_dump(config))
        assert (await ada.ask("ping")).status == 404
        for each in (stream, others, call, subscription, sse):
            await each.close()
        assert "Traceback" not in gateway.text()
