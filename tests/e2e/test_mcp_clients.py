"""MCP clients as people have them, through a running gateway: the Python SDK at every revision, the TypeScript SDK and
the Inspector; behind it server-everything over stdio, the demo, and a Python server over HTTP of either era."""

import asyncio
import json
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPError
from tests.fixtures.gateway import Gateway
from tests.fixtures.mcp_gateway import http_server
from tests.fixtures.mcp_suite import MODULES, NODE, NODE_FILES, needs_node

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0}}
mcp:
  servers:
    demo: {{command: {python}, args: [-m, tollhouse.demo]}}
    old: {{url: "{old}"}}
    new: {{url: "{new}"}}
    json: {{url: "{json}"}}
    {everything}
authenticate:
  keys: [{{name: ci, key: agent-secret, user: ada}}, {{name: other, key: other-secret, user: bob}}]
authorize:
  rules: [{{deny: 'principal.user == "bob" && mcp.tool.name == "echo"'}}]
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    everything = ""
    if NODE is not None and MODULES.exists():
        program = MODULES / ".bin" / "mcp-server-everything"
        everything = f"everything: {{command: {NODE}, args: [{program}, stdio]}}"
    with http_server("--old") as old, http_server() as new, http_server("--old", "--json") as plain:
        config = CONFIG.format(python=sys.executable, old=old, new=new, json=plain, everything=everything)
        with Gateway(config, tmp_path_factory.mktemp("gateway")) as gateway:
            yield gateway


class Ear:
    """The Python client and what it heard."""

    def __init__(self) -> None:
        self.logs: list[Any] = []
        self.heard: list[Any] = []

    async def on_log(self, params: Any) -> None:
        self.logs.append(params.data)

    async def on_message(self, message: Any) -> None:
        self.heard.append(message)

    async def elicit(self, context: Any, params: Any) -> Any:
        return types.ElicitResult(action="accept", content={"name": "Ada"})

    async def sample(self, context: Any, params: Any) -> Any:
        return types.CreateMessageResult(
            role="assistant", content=types.TextContent(type="text", text="sampled"), model="m"
        )

    async def roots(self, context: Any) -> Any:
        return types.ListRootsResult(roots=[types.Root(uri="file:///root", name="root")])  # type: ignore[arg-type]


def text(result: Any) -> str:
    found: str = result.content[0].text
    return found


@pytest.fixture(params=["2025-06-18", "2025-11-25", "2026-07-28"])
def revision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    asked: str = request.param
    if asked == "2025-06-18":  # the client's own constant: it knows no other way to ask for less than its newest
        monkeypatch.setattr("mcp.client.session.LATEST_HANDSHAKE_VERSION", asked)
    return asked


@asynccontextmanager
async def agent(
    gateway: Gateway, path: str, revision: str, ear: Ear | None = None, key: str = "agent-secret"
) -> AsyncIterator[Client]:
    """A connected client. ear: hears, and answers what servers ask; without one the client can be asked nothing."""
    http = create_mcp_http_client(headers={"authorization": f"Bearer {key}"})
    transport = streamable_http_client(gateway.url + path, http_client=http)
    able: dict[str, Any] = {}
    if ear is not None:
        able = {
            "logging_callback": ear.on_log,
            "message_handler": ear.on_message,
            "elicitation_callback": ear.elicit,
            "sampling_callback": ear.sample,
            "list_roots_callback": ear.roots,
        }
    mode: Any = revision if revision == "2026-07-28" else "legacy"
    async with http, Client(transport, mode=mode, **able) as client:
        assert client.protocol_version == revision
        yield client


async def test_all_servers_as_one(running: Gateway, revision: str) -> None:
    async with agent(running, "/mcp", revision) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert {"demo__weather", "old__count", "new__count", "json__count"} <= names
        for server in ("demo", "old", "new", "json"):
            assert text(await client.call_tool(f"{server}__echo", {"message": "hé"})) == "hé"
        uris = {str(resource.uri) for resource in (await client.list_resources()).resources}
        assert {"demo+demo://palette", "old+note://one"} <= uris
        read = await client.read_resource("demo+demo://palette")
        assert "coral" in read.contents[0].text  # type: ignore[union-attr]
        assert str(read.contents[0].uri) == "demo+demo://palette"
        templates = {template.uri_template for template in (await client.list_resource_templates()).resource_templates}
        assert "new+note://by/{name}" in templates
        prompts = {prompt.name for prompt in (await client.list_prompts()).prompts}
        assert {"demo__summary", "old__greet"} <= prompts
        greeting = await client.get_prompt("old__greet", {"name": "Ada"})
        assert greeting.messages[0].content.text == "Greet Ada."  # type: ignore[union-attr]
        with pytest.raises(MCPError, match="Unknown tool"):
            await client.call_tool("nobody__echo", {})


@pytest.mark.parametrize("server", ["old", "new", "json"])
async def test_one_server_alone(running: Gateway, revision: str, server: str) -> None:
    ear = Ear()
    async with agent(running, f"/mcp/{server}", revision, ear) as client:
        assert text(await client.call_tool("echo", {"message": "hi"})) == "hi"
        assert (await client.call_tool("boom", {})).is_error
        steps: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            steps.append(done)

        assert text(await client.call_tool("count", {"to": 3}, progress_callback=progress)) == "counted to 3"
        if server != "json":  # an answer in JSON has no room for progress
            assert steps == [1, 2, 3]
        reference = types.PromptReference(type="ref/prompt", name="greet")
        completion = await client.complete(reference, {"name": "name", "value": "x"})
        assert completion.completion.values == ["xa", "xb"]


@pytest.mark.parametrize("server", ["old", "new"])
async def test_logs(running: Gateway, server: str) -> None:
    ear = Ear()
    async with agent(running, f"/mcp/{server}", "2025-11-25", ear) as client:
        await client.set_logging_level("warning")
        assert text(await client.call_tool("chat", {})) == "logged"
        assert ear.logs == ["two"]


async def test_a_server_asks_its_agent(running: Gateway, revision: str) -> None:
    async with agent(running, "/mcp", revision, Ear()) as client:
        assert text(await client.call_tool("old__ask_name", {})) == "hello Ada"
        assert "sampled" in text(await client.call_tool("old__sample", {}))


async def test_cancelling_reaches_the_server(running: Gateway, revision: str) -> None:
    async with agent(running, "/mcp/new", revision) as client:
        before = (await client.call_tool("seen", {})).structured_content or {}
        with anyio.move_on_after(0.3):
            await client.call_tool("wait", {"seconds": 30})
        async with asyncio.timeout(10):
            while True:
                now = (await client.call_tool("seen", {})).structured_content or {}
                if len(now["cancelled"]) > len(before["cancelled"]):
                    break
                await asyncio.sleep(0.02)


async def test_rules_filter_lists_and_calls_alike(running: Gateway, revision: str) -> None:
    async with agent(running, "/mcp", revision, key="other-secret") as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert "demo__echo" not in names
        assert "demo__weather" in names
        with pytest.raises(MCPError):
            await client.call_tool("demo__echo", {"message": "x"})
        assert not (await client.call_tool("demo__weather", {"city": "Oslo"})).is_error


GUARDED = """
server: {{listen: 127.0.0.1:0, metrics: null}}
mcp: {{servers: {{demo: {{command: {python}, args: [-m, tollhouse.demo]}}}}}}
authenticate:
  keys: [{{name: ci, key: agent-secret, user: ada}}, {{name: other, key: other-secret, user: bob}}]
authorize:
  rules: [{{deny: 'principal.user == "bob"'}}]
limits: [{{per: key, requests: 8, window: 1h}}]
"""


async def test_rules_and_limits_see_what_reaches_no_server(tmp_path: Path, revision: str) -> None:
    with Gateway(GUARDED.format(python=sys.executable), tmp_path) as gateway:
        async with agent(gateway, "/mcp", revision) as client:
            await client.list_tools()  # from now on the server's instructions are known
        with pytest.raises((MCPError, BaseExceptionGroup)):
            async with agent(gateway, "/mcp", revision, key="other-secret") as client:
                await client.list_tools()
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        opening = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
        headers = {"accept": "application/json, text/event-stream", "authorization": "Bearer other-secret"}
        status, given, body = gateway.exchange("POST", "/mcp", opening, headers)
        assert (status, json.loads(body)["error"]["data"]) == (200, {"reason": "permission_denied"})
        assert "mcp-session-id" not in given
        assert b"weather" not in body
        headers["authorization"] = "Bearer agent-secret"
        said = [gateway.exchange("POST", "/mcp", opening, headers)[1].get("x-tollhouse-reason") for _ in range(9)]
        assert said[-1] == "RateLimit"
        assert gateway.exchange("GET", "/mcp", None, headers)[0] == 429


async def test_who_has_no_key(running: Gateway) -> None:
    status, body = running.ask("POST", "/mcp", b"{}", {"content-type": "application/json"})
    assert status == 401
    assert json.loads(body)["jsonrpc"] == "2.0"


async def test_counted(running: Gateway) -> None:
    async with agent(running, "/mcp", "2025-11-25") as client:
        await client.call_tool("demo__add", {"a": 1, "b": 2})
    with urllib.request.urlopen(f"{running.metrics_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    assert any(line.startswith("tollhouse_mcp_requests") and 'resource="add"' in line for line in lines)
    assert any(line.startswith("tollhouse_mcp_sessions") and 'side="agent"' in line for line in lines)


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1, cwd=NODE_FILES)
    async with asyncio.timeout(60):
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode() + out.decode()
    return out.decode()


@pytest.fixture
def open_gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Without keys: the TypeScript programs are told of none."""
    program = MODULES / ".bin" / "mcp-server-everything"
    with http_server("--old") as old, http_server() as new:
        config = f"""
server: {{listen: 127.0.0.1:0, metrics: null}}
mcp:
  servers:
    everything: {{command: "{NODE}", args: ["{program}", stdio]}}
    old: {{url: "{old}"}}
    new: {{url: "{new}"}}
"""
        with Gateway(config, tmp_path) as gateway:
            yield gateway


@needs_node
async def test_the_typescript_sdk(open_gateway: Gateway) -> None:
    steps = [
        ["everything__get-sum", {"a": 1, "b": 2}],
        ["everything__trigger-long-running-operation", {"duration": 0.3, "steps": 3}],
        ["everything__trigger-sampling-request", {"prompt": "x", "maxTokens": 5}],
        ["everything__trigger-elicitation-request", {}],
        ["everything__get-roots-list", {}],
        ["old__ask_name", {}],
        ["old__chat", {}],
        ["new__count", {"to": 2}],
    ]
    out = json.loads(await run(str(NODE), "client.mjs", f"{open_gateway.url}/mcp", json.dumps(steps)))
    assert (out["revision"], out["session"], out["ping"]) == ("2025-11-25", True, {})
    assert {"everything__echo", "old__echo", "new__echo"} <= set(out["tools"])
    assert any(uri.startswith("everything+demo://") for uri in out["resources"])
    assert "old__greet" in out["prompts"]
    said = {name: result["content"][0]["text"] for name, result in out["said"].items()}
    assert "3" in said["everything__get-sum"]
    assert "sampled" in said["everything__trigger-sampling-request"]
    assert "file:///root" in said["everything__get-roots-list"]
    assert "Ada" in json.dumps(out["said"]["everything__trigger-elicitation-request"])
    assert said["old__ask_name"] == "hello Ada"
    assert out["progress"] == [1, 2, 3, 1, 2]
    assert {"one", "two"} <= {log for log in out["logs"] if isinstance(log, str)}


@needs_node
async def test_the_inspector(open_gateway: Gateway) -> None:
    inspector = str(MODULES / ".bin" / "mcp-inspector")
    to = (str(NODE), inspector, "--cli", f"{open_gateway.url}/mcp", "--transport", "http")
    assert "everything__echo" in await run(*to, "--method", "tools/list")
    call = ("--method", "tools/call", "--tool-name", "everything__echo", "--tool-arg", "message=hi")
    assert "Echo: hi" in await run(*to, *call)
    alone = (*to[:3], f"{open_gateway.url}/mcp/old", *to[4:])
    assert "note://one" in await run(*alone, "--method", "resources/list")
