"""A stateless agent's call that waits for an answer, while the gateway's configuration changes under it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
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
