"""A server that is killed and started again every second, under fifty agents, whatever it is reached over."""

import asyncio
import logging
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Gateway, gateway, sessions, until
from tests.fixtures.mortal import Mortal, OverHttp, OverStdio, mortal

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.spec import McpServerSpec
from tollhouse.backends.mcp.stdio import StdioServerSpec

pytestmark = pytest.mark.anyio

AGENTS = 50
SECONDS = 4


def spec_of(how: dict[str, object]) -> McpServerSpec:
    return (HttpServerSpec if "url" in how else StdioServerSpec).model_validate(how)


class Agents:
    """They call one after the other. outcomes: of each tool, or tool and reason. slowest: seconds of a call."""

    def __init__(self, seconds: float) -> None:
        self.end = monotonic() + seconds
        self.outcomes = Counter[str]()
        self.slowest = 0.0

    async def work(self, agent: Any, number: int) -> None:
        n = 0
        while monotonic() < self.end:
            n += 1
            tool = "write" if number % 10 == 0 else "read"
            began = monotonic()
            answered = (await agent.call(tool, {"say": f"{number}-{n}"})).message
            self.slowest = max(self.slowest, monotonic() - began)
            if "result" in answered:
                assert answered["result"]["content"][0]["text"] == f"{number}-{n}"
                self.outcomes[tool] += 1
            else:
                self.outcomes[f"{tool} {answered['error']['data']['reason']} {answered['error']['message']}"] += 1
            await asyncio.sleep(0.05)


async def worry(running: Gateway, victim: Mortal, seconds: float) -> Agents:
    """Half of the agents have a session, half have none; each caller is two of either kind."""
    agents = [await running.agent(who=f"a{n // 8}") for n in range(AGENTS // 2)]
    agents += [running.stateless(who=f"a{n // 8}") for n in range(AGENTS // 2)]
    await agents[0].ask("tools/list")
    at_work = Agents(seconds)

    async def kill() -> None:
        while monotonic() < at_work.end:
            await asyncio.sleep(1.0)
            await victim.kill()

    async with asyncio.TaskGroup() as group:
        group.create_task(kill())
        for number, agent in enumerate(agents):
            group.create_task(at_work.work(agent, number))
    return at_work


@pytest.mark.parametrize(
    ("transport", "era", "recoveries"),
    [
        ("http", "old", {"expired"}),
        ("http", "new", set()),
        ("sse", "old", {"server_restart"}),
        ("stdio", "old", {"server_restart"}),
        ("stdio", "new", {"server_restart"}),
    ],
)
async def test_every_harmless_call_succeeds(transport: str, era: str, recoveries: set[str], tmp_path: Path) -> None:
    """And of the others each one that fails says that it may have been carried out."""
    victim = mortal(transport, era, tmp_path)
    recovered = Counter[str]()
    try:
        async with gateway({"u": spec_of(await victim.start())}) as running:
            server: Any = running.servers.all[0]
            server._on_recovery = lambda cause: recovered.update((cause,))
            at_work = await worry(running, victim, SECONDS)
    finally:
        await victim.end()
    assert victim.lives >= SECONDS // 2
    assert at_work.outcomes["read"] > AGENTS * victim.lives
    assert {" ".join(outcome.split()[:2]) for outcome in at_work.outcomes if " " in outcome} <= {"write call_lost"}
    assert set(recovered) == recoveries
    assert at_work.slowest < SECONDS


@pytest.mark.parametrize("era", ["old", "new"])
async def test_nobody_notices_a_child_that_dies_while_it_starts(era: str, tmp_path: Path) -> None:
    """Neither the very first one, nor one that takes the place of another. Nothing was carried out, so no tool fails,
    whatever it does."""
    victim = OverStdio(era, tmp_path, 0.3)
    async with gateway({"u": spec_of(await victim.start())}) as running:
        agents: list[Any] = [await running.agent(who="a") for _ in range(AGENTS // 2)]
        agents += [running.stateless(who="a") for _ in range(AGENTS // 2)]
        for kills in (1, 3):
            calls = [asyncio.ensure_future(agent.call("write", {"say": str(n)})) for n, agent in enumerate(agents)]
            for _ in range(kills):
                await victim.kill_next()
            answers = [answered.message for answered in await asyncio.gather(*calls)]
            assert [answer for answer in answers if "result" not in answer] == []
            before = sessions(running)
            await victim.kill()
            await until(lambda before=before: all(session.lost for session in before))


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_an_outage_is_one_line_of_the_log(transport: str, caplog: pytest.LogCaptureFixture) -> None:
    """However many calls try it, and however many sessions end there."""
    caplog.set_level(logging.INFO)
    victim = OverHttp(transport, "old")
    try:
        async with gateway({"u": spec_of(await victim.start())}) as running:
            agents: list[Any] = [await running.agent() for _ in range(20)]
            for agent in agents:
                await agent.call("read")
            await victim.end()
            calls = [asyncio.ensure_future(agent.call("read", {"say": "hi"})) for agent in agents[:-5]]
            for agent in agents[-5:]:
                await agent.end()
            await asyncio.sleep(0.5)
            await victim.start()
            assert [answered.text for answered in await asyncio.gather(*calls)] == ["hi"] * len(calls)
    finally:
        await victim.end()
    lines = [one.message for one in caplog.records if "could not be reached" in one.message]
    assert len(lines) == 1
    assert [one.message for one in caplog.records if "again" in one.message] == ["mcp server u: it is reached again"]
