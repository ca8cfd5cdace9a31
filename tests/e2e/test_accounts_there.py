"""What a server and its issuer do to an account: they want more of it than its user has agreed to (MCP authorization,
step-up), and they end it."""

import asyncio
from pathlib import Path
from time import time

import pytest
from tests.fixtures.account_house import THEIRS, agent, house
from tests.fixtures.gateway import until

pytestmark = pytest.mark.anyio

STRICT = THEIRS.replace(
    'one: {{url: "{tools}"}}', 'one: {{url: "{tools}", tools: {{echo: {{requires: [write]}}}}}}'
).replace("Use the notes", "Use the notes, write: Write in them")


async def test_its_user_is_asked_for_what_is_lacking_and_anew_when_it_ended(tmp_path: Path) -> None:
    assert STRICT.count("write") == 2
    async with asyncio.timeout(150), house(tmp_path, there=STRICT) as there:
        ada = there.somebody("ada", "grace")
        async with agent(there, ada) as desk:
            # He connects what the server has named for all, and the tool wants more.
            failed, said = await desk.says("echo", message="hello")
            assert failed
            assert "/oauth/upstream/start?l=" in said
            assert len(desk.links) == 1
            (account,) = (await there.operate("GET", "/api/accounts"))[1]["accounts"]
            assert account["scopes"] == ["mcp", "offline_access"]
            # The next call asks for both, and goes on.
            assert await desk.says("echo", message="hello") == (False, "hello")
            assert len(desk.links) == 2
            (account,) = (await there.operate("GET", "/api/accounts"))[1]["accounts"]
            assert account["scopes"] == ["mcp", "offline_access", "write"]
            assert await desk.says("echo", message="again") == (False, "again")
            assert len(desk.links) == 2
            # He takes it back there, and nobody tells us: a list finds it out as well as a call.
            assert "echo" in await desk.tools()
            await ada.press(f"{there.notes.url}/oauth/grants", "Take it back")
            taken = time()
            desk.action = "decline"
            assert (await desk.says("add", a=1, b=2))[0]
            assert len(desk.links) == 3
            assert await desk.tools() == {"connect"}
            assert (await there.operate("GET", "/api/accounts"))[1]["accounts"] == []
            # Tokens say in whole seconds when they were made: those of the second in which he took it back are over.
            await until(lambda: time() > taken + 1.1, 5)
            desk.action = "accept"
            await desk.says("echo", message="back")
            assert await desk.says("echo", message="back") == (False, "back")
        async with agent(there, ada) as desk:
            assert "echo" in await desk.tools()
            await ada.press(f"{there.notes.url}/oauth/grants", "Take it back")
            assert await desk.tools() == {"connect"}
        async with agent(there, ada) as desk:
            assert await desk.tools() == {"connect"}
