"""What the agents of a user see of a server before he has an account there, and hear when he gets one or loses it,
whichever of two workers they are connected to; all real, as in test_accounts."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fixtures.account_house import OURS, House, agent, house
from tests.fixtures.identity import Storage
from tests.fixtures.valkey import valkey

pytestmark = pytest.mark.anyio

AGENTS = 6  # over two workers: hardly ever all at one


class Session:
    """An agent that lists tools, and listens."""

    def __init__(self, there: House, token: str) -> None:
        headers = {"accept": "application/json, text/event-stream", "authorization": f"Bearer {token}"}
        self.http = httpx.AsyncClient(base_url=there.ours.url, headers=headers, timeout=20)
        self.heard: asyncio.Queue[str] = asyncio.Queue()

    async def post(self, method: str, params: Any) -> httpx.Response:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return await self.http.post("/mcp/notes", json=body)

    async def listen(self, opened: asyncio.Event) -> None:
        async with self.http.stream("GET", "/mcp/notes", timeout=None) as stream:
            assert stream.status_code == 200
            opened.set()
            async for line in stream.aiter_lines():
                if line.startswith("data: {"):
                    self.heard.put_nowait(json.loads(line[6:])["method"])

    async def changed(self) -> None:
        """Return once the list of tools is said to be another."""
        async with asyncio.timeout(15):
            while await self.heard.get() != "notifications/tools/list_changed":
                pass

    async def settled(self) -> None:
        """Have heard of everything: nothing comes for a while."""
        with suppress(TimeoutError):
            while True:
                async with asyncio.timeout(1):
                    await self.heard.get()

    async def tools(self) -> list[str]:
        listed = (await self.post("tools/list", {})).json()["result"]["tools"]
        return [tool["name"] for tool in listed]


@asynccontextmanager
async def listening(there: House, token: str) -> AsyncIterator[Session]:
    made = Session(there, token)
    async with made.http:
        about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}
        begun = await made.post("initialize", about)
        assert begun.json()["result"]["capabilities"]["tools"] == {"listChanged": True}
        made.http.headers["mcp-session-id"] = begun.headers["mcp-session-id"]
        opened = asyncio.Event()
        listens = asyncio.create_task(made.listen(opened))
        try:
            async with asyncio.timeout(10):
                await opened.wait()
            yield made
        finally:
            listens.cancel()
            await asyncio.wait((listens,))


async def test_all_of_a_users_agents_hear_of_his_account(tmp_path: Path) -> None:
    with valkey(tmp_path) as server:
        config = OURS.replace("file:tollhouse.state", server.url).replace("metrics:", "workers: 2\n  metrics:")
        async with asyncio.timeout(120), house(tmp_path, config) as there, AsyncExitStack() as stack:
            tokens = []
            for name, theirs in (("ada", "grace"), ("bob", "heidi")):
                who, storage = there.somebody(name, theirs), Storage()
                async with agent(there, who, asks=False, storage=storage) as desk:
                    assert await desk.tools() == {"connect"}
                    failed, said = await desk.says("connect")
                    assert not failed
                assert storage.tokens is not None
                tokens.append((who, said.partition("http")[2].split()[0], storage.tokens.access_token))
            (ada, link, token), (_, _, other) = tokens
            alls = [await stack.enter_async_context(listening(there, token)) for _ in range(AGENTS)]
            bob = await stack.enter_async_context(listening(there, other))
            for one in (*alls, bob):
                assert await one.tools() == ["connect"]
            assert "is connected" in await there.connect(ada, f"http{link}")
            for one in alls:
                await one.changed()
                assert "echo" in await one.tools()
                assert "connect" not in await one.tools()
            # It is good for what it was made for, and so is what was listed with it.
            text = there.ours.config.read_text()
            assert "oauth: on" in text
            for setting, seen in (("{resource: none}", "connect"), ("on", "echo")):
                await there.ours.change(text.replace("oauth: on", f"oauth: {setting}"))
                for one in alls:
                    await one.changed()
                async with asyncio.timeout(10):
                    while not all([seen in await one.tools() for one in alls]):
                        await asyncio.sleep(0.1)
            await asyncio.gather(*(one.settled() for one in (*alls, bob)))
            _, listed = await there.operate("GET", "/api/accounts")
            (account,) = listed["accounts"]
            assert (await there.operate("DELETE", f"/api/accounts/{account['id']}"))[0] == 200
            for one in alls:
                await one.changed()
                assert await one.tools() == ["connect"]
            assert await bob.tools() == ["connect"]
            assert bob.heard.empty()
