"""Agents that open a link and wait for what comes of it: the official SDKs of two languages in both eras, before a
server at which their user has no account yet."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from mcp_types import ElicitResult
from tests.fixtures.account_house import Agent, House, Somebody, agent, house
from tests.fixtures.identity import Storage
from tests.fixtures.identity_node import run
from tests.fixtures.mcp_suite import needs_node

pytestmark = pytest.mark.anyio


async def disconnect_all(there: House) -> None:
    _, listed = await there.operate("GET", "/api/accounts")
    for account in listed["accounts"]:
        assert (await there.operate("DELETE", f"/api/accounts/{account['id']}"))[0] == 200


class AtOnce(Agent):
    """It agrees before its user has been anywhere: he goes there in his own time."""

    async def elicited(self, context: Any, params: Any) -> ElicitResult:
        self.links.append(params.url)
        self.errand = asyncio.create_task(self._house.connect(self._who, params.url))
        return ElicitResult(action="accept")


async def node(there: House, who: Somebody, token: str, sdk: int, mode: str, *answers: dict[str, Any]) -> Any:
    """What a TypeScript agent hears of one call for each answer that its user gives to the link."""
    left = list(answers)
    errands = []

    async def errand(said: dict[str, Any]) -> Any:
        answer = left.pop(0)
        if answer["action"] == "accept":
            errands.append(asyncio.create_task(there.connect(who, said["link"])))
        return {"answer": answer}

    settings = {
        "sdk": sdk,
        "url": f"{there.ours.url}/mcp/notes",
        "token": token,
        "mode": mode,
        "calls": [["echo", {"message": f"number {number}"}] for number in range(len(answers))],
    }
    found = await run("account.mjs", settings, errand)
    await asyncio.gather(*errands)
    assert left == []
    return found


@needs_node
async def test_agents_that_wait_while_their_user_connects(tmp_path: Path) -> None:
    async with asyncio.timeout(150), house(tmp_path) as there:
        ada = there.somebody("ada", "grace")
        storage = Storage()
        for mode in ("legacy", "2026-07-28"):
            async with agent(there, ada, mode=mode, storage=storage, kind=AtOnce) as desk:
                assert await desk.says("echo", message=mode) == (False, mode)
                assert len(desk.links) == 1
                assert isinstance(desk, AtOnce)
                await desk.errand
            await disconnect_all(there)
        assert storage.tokens is not None
        token = storage.tokens.access_token
        declined, agreed = {"action": "decline"}, {"action": "accept"}
        for sdk, mode in ((1, "legacy"), (2, "legacy"), (2, "2026-07-28")):
            found = await node(there, ada, token, sdk, mode, declined, agreed)
            refused, said = found["said"]
            assert refused["failed"], (sdk, mode)
            assert "did not agree" in refused["text"]
            assert (said["failed"], said["text"]) == (False, "number 1"), (sdk, mode)
            assert len(found["links"]) == 2
            if mode == "legacy":  # and hears which of its questions is done with
                assert found["completed"] == [found["links"][1]["elicitationId"]]
            await disconnect_all(there)
