"""More MCP programs that people have, through a running gateway: the Python SDK 1.x, FastMCP, the TypeScript SDK 2 and
mcp-remote as agents; behind it server-filesystem, server-memory, and the fixture server of each era and transport."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
import yaml
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from tests.fixtures.gateway import Gateway
from tests.fixtures.mcp_suite import FIXTURE, MODULES, NODE, NODE_FILES, ROOT, fixture_server, needs_node

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent
AGENTS: dict[str, tuple[Path, Path, list[str], str]] = {
    # name: (interpreter, program, more arguments, the revision that it comes to)
    "mcp1": (ROOT / ".cache/mcp1/bin/python", HERE / "agents" / "mcp1.py", [], "2025-11-25"),
    "fastmcp": (ROOT / ".cache/fastmcp/bin/python", HERE / "agents" / "fastmcp_client.py", [], "2026-07-28"),
    "typescript-legacy": (Path(NODE or ""), NODE_FILES / "client2.mjs", ["legacy"], "2025-11-25"),
    "typescript-auto": (Path(NODE or ""), NODE_FILES / "client2.mjs", ["auto"], "2026-07-28"),
    "typescript-2026-07-28": (Path(NODE or ""), NODE_FILES / "client2.mjs", ["2026-07-28"], "2026-07-28"),
}
SERVERS = ("old", "new", "old-stdio", "new-stdio")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The fixture server of either era over either transport, and the two npm servers."""
    where = tmp_path_factory.mktemp("gateway")
    (where / "files").mkdir()
    (where / "files" / "hello.txt").write_text("hello from a file", encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT)}
    with fixture_server("--era", "old") as old, fixture_server("--era", "new") as new:
        servers: dict[str, Any] = {"old": {"url": old}, "new": {"url": new}}
        for era in ("old", "new"):
            arguments = [*FIXTURE[1:], "--era", era, "--stdio"]
            servers[f"{era}-stdio"] = {"command": FIXTURE[0], "args": arguments, "env": environment}
        if MODULES.exists():
            files = [str(MODULES / ".bin" / "mcp-server-filesystem"), str(where / "files")]
            servers["files"] = {"command": NODE, "args": files}
            memory = {"MEMORY_FILE_PATH": str(where / "memory.jsonl")}
            servers["memory"] = {"command": NODE, "args": [str(MODULES / ".bin" / "mcp-server-memory")], "env": memory}
        config = {"server": {"listen": "127.0.0.1:0", "metrics": None}, "mcp": {"servers": servers}}
        with Gateway(yaml.safe_dump(config), where) as gateway:
            yield gateway


async def run(agent: str, url: str, steps: list[Any]) -> dict[str, Any]:
    interpreter, program, more, _ = AGENTS[agent]
    if not interpreter.is_file() or (program.suffix == ".mjs" and not MODULES.exists()):
        pytest.skip("run scripts/setup test: it installs this agent")
    command = (str(interpreter), str(program), url, json.dumps(steps), *more)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1, env=environment)
    async with asyncio.timeout(60):
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    found: dict[str, Any] = json.loads(out)
    return found


async def elicit(context: Any, params: Any) -> Any:
    return types.ElicitResult(action="accept", content={"name": "Ada", "ok": True, "color": "blue"})


@pytest.mark.parametrize("era, mode", [("old", "auto"), ("new", "auto"), ("both", "legacy"), ("both", "2026-07-28")])
async def test_the_fixture_over_stdio_is_what_the_sdk_expects(era: str, mode: Any) -> None:
    """Without a gateway. Over HTTP the conformance suite says so."""
    start = StdioServerParameters(command=FIXTURE[0], args=[*FIXTURE[1:], "--stdio", "--era", era], cwd=ROOT)
    async with asyncio.timeout(30), Client(stdio_client(start), mode=mode, elicitation_callback=elicit) as client:
        said = await client.call_tool("test_input_required_result_elicitation", {})
        assert said.content == [types.TextContent(type="text", text="Hello, Ada!")]


@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agent(running: Gateway, agent: str) -> None:
    steps: list[Any] = []
    for server in SERVERS:
        steps += [
            [f"{server}__echo", {"message": f"hé {server}"}],
            [f"{server}__test_tool_with_progress", {}],
            [f"{server}__test_elicitation", {"message": "Who?"}],
            [f"{server}__test_sampling", {"prompt": "x"}],
            [f"{server}__test_input_required_result_list_roots", {}],
            [f"{server}__test_image_content", {}],
            [f"{server}__test_error_handling", {}],
        ]
    out = await run(agent, f"{running.url}/mcp", steps)
    assert out["revision"] == AGENTS[agent][3]
    for server in SERVERS:
        said = {name.partition("__")[2]: parts for name, parts in out["said"].items() if name.startswith(f"{server}__")}
        assert f"{server}__echo" in out["tools"]
        assert f"{server}+test://static-text" in out["resources"]
        assert f"{server}__test_simple_prompt" in out["prompts"]
        assert said["echo"] == [f"hé {server}"]
        assert "ada@example.com" in said["test_elicitation"][0]
        assert "sampled" in said["test_sampling"][0]
        assert "file:///root" in said["test_input_required_result_list_roots"][0]
        assert said["test_image_content"] == ["image"]
        assert "intentionally" in said["test_error_handling"][0]
    # The TypeScript SDK reports the rounds of a question as progress, too.
    assert [done for done in out["progress"] if done != 1] == [0, 50, 100] * len(SERVERS)


@asynccontextmanager
async def remote(url: str, home: Path, **able: Any) -> AsyncIterator[Client]:
    """The Python SDK, which starts mcp-remote, which speaks to the gateway."""
    program = [str(MODULES / ".bin" / "mcp-remote"), url, "--allow-http", "--transport", "http-only"]
    start = StdioServerParameters(command=str(NODE), args=program, env={"HOME": str(home)})
    async with asyncio.timeout(60), Client(stdio_client(start), **able) as client:
        yield client


@needs_node
async def test_mcp_remote(running: Gateway, tmp_path: Path) -> None:
    async with remote(f"{running.url}/mcp", tmp_path) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        for server in SERVERS:
            assert f"{server}__echo" in names
            result = await client.call_tool(f"{server}__echo", {"message": server})
            assert result.content == [types.TextContent(type="text", text=server)]


@needs_node
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_the_filesystem_and_memory_servers(running: Gateway, mode: Any) -> None:
    folder = str(running.where / "files")
    async with Client(f"{running.url}/mcp", mode=mode) as client:
        read = await client.call_tool("files__read_text_file", {"path": f"{folder}/hello.txt"})
        assert "hello from a file" in read.content[0].text  # type: ignore[union-attr]
        path = f"{folder}/{mode}.txt"
        assert not (await client.call_tool("files__write_file", {"path": path, "content": "written"})).is_error
        assert Path(path).read_text(encoding="utf-8") == "written"
        outside = await client.call_tool("files__read_text_file", {"path": sys.executable})
        assert outside.is_error
        entity = {"name": f"Ada {mode}", "entityType": "person", "observations": ["writes programs"]}
        assert not (await client.call_tool("memory__create_entities", {"entities": [entity]})).is_error
        found = await client.call_tool("memory__search_nodes", {"query": mode})
        assert f"Ada {mode}" in found.content[0].text  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
@pytest.mark.parametrize("server", SERVERS)
async def test_every_pair_of_eras(running: Gateway, server: str, mode: Any) -> None:
    async with Client(f"{running.url}/mcp/{server}", mode=mode, elicitation_callback=elicit) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert tools["echo"].annotations is not None
        read = await client.read_resource("test://template/7/data")
        assert '"id": "7"' in read.contents[0].text  # type: ignore[union-attr]
        prompt = await client.get_prompt("test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})
        assert "arg1='a'" in prompt.messages[0].content.text  # type: ignore[union-attr]
        asked = await client.get_prompt("test_input_required_result_prompt")
        assert "context" in asked.messages[0].content.text  # type: ignore[union-attr]
        said = await client.call_tool("test_input_required_result_elicitation", {})
        assert said.content[0].text == "Hello, Ada!"  # type: ignore[union-attr]
        said = await client.call_tool("test_input_required_result_multi_round", {})
        assert said.content[0].text == "Ada likes blue"  # type: ignore[union-attr]
        said = await client.call_tool("test_structured", {"a": 2, "b": 3})
        assert said.structured_content == {"sum": 5}
