"""Endpoints with chosen servers and tools, tools under other names, and questions between eras, in a whole gateway."""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from tests.fixtures.gateway import Gateway

NEW = "2026-07-28"
CHILD = str(Path(__file__).parents[1] / "fixtures/mcp_child.py")


def ask(url: str, method: str, params: Any = None, capabilities: Any = None) -> Any:
    """A stateless agent's request: what is answered, of an event stream the last message."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": NEW,
        "io.modelcontextprotocol/clientCapabilities": capabilities or {},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**(params or {}), "_meta": meta}}
    headers = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": NEW,
        "mcp-method": method,
    }
    if method == "tools/call":
        headers["mcp-name"] = params["name"]
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            data = answer.read()
    except urllib.error.HTTPError as error:
        data = error.read()
    lines = [line[6:] for line in data.split(b"\n") if line.startswith(b"data: {")]
    return json.loads(lines[-1] if lines else data)


def test_endpoints_and_overrides(tmp_path: Path) -> None:
    server = {"command": sys.executable, "args": [CHILD]}
    tools = {"echo": {"name": "say", "arguments": {"message": {"rename": "words"}}}}
    config = {
        "server": {"listen": "127.0.0.1:0", "metrics": None},
        "mcp": {
            "input_timeout": "1m",
            "servers": {"a": {**server, "tools": tools}, "b": {**server, "bridge": False}},
            "endpoints": [
                {"path": "/mcp/few", "servers": ["a", "b"], "tools": {"allow": ["a__*", "b__pid"], "deny": ["*die"]}}
            ],
        },
    }
    with Gateway(yaml.safe_dump(config), tmp_path) as gateway:
        few = f"{gateway.url}/mcp/few"
        names = {tool["name"] for tool in ask(few, "tools/list")["result"]["tools"]}
        assert {"a__say", "b__pid"} <= names
        assert not names & {"a__die", "b__echo", "a__echo"}
        assert ask(few, "tools/call", {"name": "b__echo", "arguments": {}})["error"]["code"] == -32602
        call = {"name": "a__say", "arguments": {"words": "hi"}}
        assert ask(few, "tools/call", call)["result"]["content"][0]["text"] == "hi"
        assert ask(f"{gateway.url}/mcp", "tools/call", call)["result"]["content"][0]["text"] == "hi"

        can = {"elicitation": {"form": {}}}
        question = {"method": "elicitation/create", "params": {"message": "m", "requestedSchema": {"type": "object"}}}
        call = {"name": "ask", "arguments": question}
        alone = f"{gateway.url}/mcp/a"
        asked = ask(alone, "tools/call", call, can)["result"]
        assert asked["resultType"] == "input_required"
        (key,) = asked["inputRequests"]
        answers = {"requestState": asked["requestState"], "inputResponses": {key: {"action": "decline"}}}
        told = ask(alone, "tools/call", {**call, **answers}, can)
        assert json.loads(told["result"]["content"][0]["text"]) == {"action": "decline"}
        assert ask(f"{gateway.url}/mcp/b", "tools/call", call, can)["error"]["code"] == -32021
