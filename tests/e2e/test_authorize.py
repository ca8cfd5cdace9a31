"""Rules, policies and approvals in a running gateway: files that change, operators elsewhere, what is logged."""

import asyncio
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.forked import run
from tests.fixtures.gateway import Gateway, answer_of, until
from tests.unit.policies.authorize.test_opa import server

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0}}
ledger: sqlite:tollhouse.db
telemetry: {{access_log: {{path: access.log}}}}
providers: {{local: {{kind: local}}}}
models:
  - {{name: small, targets: [{{provider: local}}]}}
  - {{name: dear, targets: [{{provider: local}}], authorize: {{rules: [{{allow: "true"}}]}}}}
mcp: {{servers: {{tools: {{command: "{python}", args: ["{child}"]}}}}}}
authorize:
{rego}
  rules:
    - {{name: careful, approve: 'mcp.tool.name == "echo" && mcp.arguments.message == "pay"'}}
    - {{name: quiet, deny: 'mcp.tool.name == "pid"', shadow: true}}
  approvals: {{timeout: 60s}}
"""
REGO = "  rego: {file: policy.rego}"
POLICY = 'package tollhouse\nallow if input.llm.model != "%s"\nallow if not input.llm\n'
INFO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "e2e", "version": "1"}}


def config(rego: str = "") -> str:
    return CONFIG.format(python=sys.executable, child=ROOT / "fixtures" / "mcp_child.py", rego=rego)


def session(gateway: Gateway) -> dict[str, str]:
    headers = {"accept": "application/json, text/event-stream"}
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": INFO}
    status, found, _ = gateway.exchange("POST", "/mcp", body, headers)
    assert status == 200
    return headers | {"mcp-session-id": found["mcp-session-id"], "mcp-protocol-version": "2025-06-18"}


def call(gateway: Gateway, headers: dict[str, str], name: str, message: str) -> Any:
    params = {"name": name, "arguments": {"message": message}}
    body = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}
    return answer_of(gateway.ask("POST", "/mcp", body, headers)[1])


async def test_an_operator_approves_a_call(tmp_path: Path) -> None:
    with Gateway(config(), tmp_path) as gateway:
        agent = session(gateway)
        assert call(gateway, agent, "echo", "hi")["result"]["content"][0]["text"] == "hi"
        for action, expected in (("approve", "pay"), ("deny", None)):
            waiting = asyncio.create_task(asyncio.to_thread(call, gateway, agent, "echo", "pay"))
            listed: list[Any] = []

            def look(listed: list[Any] = listed) -> bool:
                said = run(tmp_path, "approvals", "list", "--json").stdout
                listed[:] = [json.loads(line) for line in said.splitlines()]
                return bool(listed)

            await until(look)
            assert (listed[0]["what"], json.loads(listed[0]["arguments"])) == ("tools/echo", {"message": "pay"})
            assert "tollhouse_approvals_waiting 1" in gateway.metrics()
            done = run(tmp_path, "approvals", action, listed[0]["id"], "--by", "eve")
            assert done.returncode == 0, done.stderr
            answer = await waiting
            if expected:
                assert answer["result"]["content"][0]["text"] == expected
            else:
                assert answer["error"]["data"]["reason"] == "not_approved"
        assert run(tmp_path, "approvals", "list").stdout == "no call waits for approval\n"
        call(gateway, agent, "pid", "")
        await until(lambda: len(gateway.lines()) >= 5)
        lines = [line for line in gateway.lines() if line.get("mcp_method") == "tools/call"]
        told = [(line.get("rule"), line.get("approver"), line.get("shadow")) for line in lines]
        assert told == [
            (None, None, None),
            ("top: careful", "operator:eve", None),
            ("top: careful", "operator:eve", None),
            (None, None, "top: quiet"),
        ]


def models(gateway: Gateway) -> list[str]:
    return sorted(one["id"] for one in json.loads(gateway.get("/v1/models")[1])["data"])


async def test_a_policy_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    if find_spec("regopy") is None:
        pytest.skip("the extra `rego` is not installed")
    policy = tmp_path / "policy.rego"
    policy.write_text(POLICY % "small")
    with Gateway(config(REGO), tmp_path) as gateway:
        assert models(gateway) == ["dear"]
        for hidden, left in (("dear", ["small"]), ("none", ["dear", "small"])):
            since = gateway.log.stat().st_size
            fresh = tmp_path / "fresh"
            fresh.write_text(POLICY % hidden)
            fresh.replace(policy)
            await gateway.logged(r"configuration \d+ serves", since)
            assert models(gateway) == left  # also of models that are as they were
        since = gateway.log.stat().st_size
        fresh.write_text("package tollhouse\nallow if {")
        fresh.replace(policy)
        await gateway.logged(r"authorize\.rego: .*this is unclosed", since)
        assert models(gateway) == ["dear", "small"]  # the last good one serves


async def test_lists_show_what_a_policy_server_lets_be_listed(tmp_path: Path) -> None:
    def says(asked: Any) -> Any:
        if asked.get("llm"):
            return {"result": asked["llm"]["model"] == "dear"}
        return {"result": asked.get("mcp", {}).get("tool", {}).get("name", "echo") == "echo"}

    async with server() as opa:
        opa.says = says
        with Gateway(config(f'  opa: {{url: "{opa.url}", cache: 60s}}'), tmp_path) as gateway:
            for _ in range(2):
                assert await asyncio.to_thread(models, gateway) == ["dear"]
            status, _ = await asyncio.to_thread(gateway.get, "/v1/models/small")
            assert status == 404
            agent = await asyncio.to_thread(session, gateway)
            body = {"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}}
            _, listed = await asyncio.to_thread(gateway.ask, "POST", "/mcp", body, agent)
            assert [tool["name"] for tool in json.loads(listed)["result"]["tools"]] == ["echo"]
            refused = await asyncio.to_thread(call, gateway, agent, "env", "")
            assert refused["error"]["data"]["reason"] == "permission_denied"
