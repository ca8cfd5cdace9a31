"""MCP servers that come and go in the configuration file while agents with real clients work: each hears that its lists
have changed, sees the new ones, and loses no call at the servers that stay."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ResourcesListChanged, ToolsListChanged
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.mcp_gateway import http_server
from tests.fixtures.mcp_suite import fixture_server

pytestmark = pytest.mark.anyio

OLD, NEW = "2025-11-25", "2026-07-28"
CHILD = {"command": sys.executable, "args": [str(Path(__file__).parents[1] / "fixtures/mcp_child.py")]}
DEMO = {"command": sys.executable, "args": ["-m", "tollhouse.demo"]}


def config(servers: dict[str, Any], **more: Any) -> str:
    top = {"server": {"listen": "127.0.0.1:0", "metrics": None}}
    return yaml.safe_dump({**top, "mcp": {"prefix": "always", "servers": servers, **more}})


class Agent:
    """A connected client. heard: the methods or kinds of all it was told that lists have changed."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.heard: list[str] = []

    async def tools(self) -> set[str]:
        return {tool.name for tool in (await self.client.list_tools()).tools}

    async def call(self, name: str, **arguments: Any) -> str:
        result = await self.client.call_tool(name, arguments)
        assert not result.is_error, result
        return str(result.content[0].text)  # type: ignore[union-attr]

    async def told(self, what: str, since: int = 0) -> None:
        await until(lambda: what in self.heard[since:], why=lambda: f"not told of {what}: {self.heard}")


@asynccontextmanager
async def agent(gateway: Gateway, path: str, era: str) -> AsyncIterator[Agent]:
    """It listens: on the stream of its session, or by a subscription."""
    http = create_mcp_http_client()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(http)
        made: Agent

        async def on_message(message: Any) -> None:
            made.heard.append(getattr(message, "method", type(message).__name__))

        mode: Any = era if era == NEW else "legacy"
        transport = streamable_http_client(gateway.url + path, http_client=http)
        client = Client(transport, mode=mode, message_handler=on_message)
        made = Agent(client)
        await stack.enter_async_context(client)
        assert client.protocol_version == era
        if era == NEW:
            listening = client.listen(tools_list_changed=True, resources_list_changed=True)
            subscription = await stack.enter_async_context(listening)

            async def listen() -> None:
                names = {ToolsListChanged: "tools", ResourcesListChanged: "resources"}
                async for event in subscription:
                    made.heard.append(f"notifications/{names[type(event)]}/list_changed")

            task = asyncio.create_task(listen())
            stack.push_async_callback(_cancelled, task)
        yield made


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


TOOLS, RESOURCES = "notifications/tools/list_changed", "notifications/resources/list_changed"


@pytest.mark.parametrize("era", [OLD, NEW])
async def test_servers_come_and_go(tmp_path: Path, era: str) -> None:
    with http_server() as url:
        web = {"url": url}
        async with (
            serving(config({"a": CHILD}), tmp_path) as gateway,
            agent(gateway, "/mcp", era) as one,
            agent(gateway, "/mcp/a", era) as alone,
        ):
            before = await one.tools()
            assert "a__echo" in before
            assert all(name.startswith("a__") for name in before)
            own = await alone.tools()

            # A program and a server with a URL come.
            since = len(one.heard)
            await gateway.change(config({"a": CHILD, "demo": DEMO, "web": web}))
            await one.told(TOOLS, since)
            await one.told(RESOURCES, since)
            names = await one.tools()
            assert {"a__echo", "demo__echo", "web__echo"} <= names
            assert before <= names
            for name in ("a__echo", "demo__echo", "web__echo"):
                assert "hi" in await one.call(name, message="hi")
            uris = {str(resource.uri) for resource in (await one.client.list_resources()).resources}
            assert "demo+demo://palette" in uris
            children = gateway.children()

            # One of them goes: its tools, its resources, and its process.
            since = len(one.heard)
            await gateway.change(config({"a": CHILD, "web": web}))
            await one.told(TOOLS, since)
            names = await one.tools()
            assert not any(name.startswith("demo__") for name in names)
            assert {"a__echo", "web__echo"} <= names
            with pytest.raises(MCPError, match="Unknown tool"):
                await one.client.call_tool("demo__echo", {"message": "hi"})
            uris = {str(resource.uri) for resource in (await one.client.list_resources()).resources}
            assert not any(uri.startswith("demo+") for uri in uris)
            await until(lambda: len(gateway.children()) < len(children))

            # It comes back as something else, under the same name.
            since = len(one.heard)
            await gateway.change(config({"a": CHILD, "web": web, "demo": CHILD}))
            await one.told(TOOLS, since)
            names = await one.tools()
            assert "demo__pid" in names
            assert "demo__weather" not in names
            assert await one.call("demo__pid") != await one.call("a__pid")

            # What a server alone shows never was another.
            assert await alone.tools() == own
            assert await alone.call("echo", message="hi") == "hi"
            assert "Traceback" not in gateway.text()


@pytest.mark.parametrize("era", [OLD, NEW])
async def test_what_is_chosen_of_them_changes(tmp_path: Path, era: str) -> None:
    """Tools of an endpoint, names of tools, and rules: the same message, and the list is as the new settings say."""
    servers: dict[str, Any] = {"a": CHILD, "b": CHILD}
    few = {"path": "/mcp/few", "servers": ["a"]}
    async with (
        serving(config(servers, endpoints=[few]), tmp_path) as gateway,
        agent(gateway, "/mcp/few", era) as one,
    ):
        assert "a__die" in await one.tools()
        changes: list[tuple[dict[str, Any], Callable[[set[str]], bool]]] = [
            ({**few, "tools": {"deny": ["*die"]}}, lambda names: "a__die" not in names and "a__echo" in names),
            ({**few, "tools": {"allow": ["a__echo"]}}, lambda names: names == {"a__echo"}),
            ({**few, "servers": ["a", "b"]}, lambda names: {"a__echo", "b__echo"} <= names),
        ]
        for changed, right in changes:
            since = len(one.heard)
            await gateway.change(config(servers, endpoints=[changed]))
            await one.told(TOOLS, since)
            assert right(await one.tools())
        since = len(one.heard)
        renamed = {**servers, "a": {**CHILD, "tools": {"echo": {"name": "say"}}}}
        await gateway.change(config(renamed, endpoints=[changed]))
        await one.told(TOOLS, since)
        names = await one.tools()
        assert "a__say" in names
        assert "a__echo" not in names
        since = len(one.heard)
        rules = yaml.safe_dump({"authorize": {"rules": [{"deny": 'mcp.server == "a" && mcp.tool.name == "echo"'}]}})
        await gateway.change(config(renamed, endpoints=[changed]) + rules)
        await one.told(TOOLS, since)
        assert "a__say" not in await one.tools()


async def test_no_call_is_lost_at_servers_that_stay(tmp_path: Path) -> None:
    """Four agents call all the time, two of each era, one call of each takes as long as all of it, and five times
    another server comes or goes."""
    with fixture_server("--era", "old") as old, http_server() as new:
        stay = {"a": CHILD, "old": {"url": old}, "new": {"url": new}}
        async with AsyncExitStack() as stack:
            gateway = await stack.enter_async_context(serving(config(stay), tmp_path))
            agents = [
                await stack.enter_async_context(agent(gateway, "/mcp", era)) for era in (OLD, NEW) for _ in range(2)
            ]
            over = asyncio.Event()
            calls = [0] * len(agents)

            async def work(number: int, one: Agent) -> None:
                while not over.is_set():
                    for name in ("a__echo", "new__echo"):
                        said = f"{number}-{calls[number]}"
                        assert await one.call(name, message=said) == said
                        calls[number] += 1

            async def long(one: Agent) -> str:
                return await one.call("new__wait", seconds=3)

            tasks = [asyncio.create_task(work(number, one)) for number, one in enumerate(agents)]
            slow = [asyncio.create_task(long(one)) for one in agents]
            for n in range(5):
                more = {f"more{n}": DEMO if n % 2 else CHILD} if n != 3 else {}
                had = list(calls)
                await gateway.change(config(stay | more))
                await until(lambda had=had: all(now > then + 2 for now, then in zip(calls, had, strict=True)))  # type: ignore[misc]
            over.set()
            await asyncio.gather(*tasks)
            assert await asyncio.gather(*slow) == ["waited"] * len(agents)
            for one in agents:
                await one.told(TOOLS)
                assert "more4__echo" in await one.tools()
            assert "Traceback" not in gateway.text()
