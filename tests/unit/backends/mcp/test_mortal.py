"""A server that is killed and started again every second, under fifty agents."""

import asyncio
import sys
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import gateway

from tollhouse.backends.mcp.http import HttpServerSpec

pytestmark = pytest.mark.anyio

PROGRAM = str(Path(__file__).parents[3] / "fixtures" / "mcp_mortal.py")
AGENTS = 50


async def start(port: int) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", PROGRAM, str(port), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    process_port = int(await process.stdout.readline())
    assert port in (0, process_port)
    process.port = process_port  # type: ignore[attr-defined]
    return process


async def reap(process: asyncio.subprocess.Process) -> None:
    process.kill()
    await process.wait()


async def kill_again_and_again(process: asyncio.subprocess.Process, end: float, lives: list[int]) -> Any:
    port = process.port  # type: ignore[attr-defined]
    while monotonic() < end:
        await asyncio.sleep(1.0)
        await reap(process)
        process = await start(port)
        lives.append(process.pid)
    return process


@pytest.mark.parametrize("seconds", [pytest.param(7), pytest.param(60, marks=pytest.mark.soak)])
async def test_every_harmless_call_succeeds(seconds: int) -> None:
    """And of the others each one that fails says that it may have been carried out."""
    process = await start(0)
    url = f"http://127.0.0.1:{process.port}/mcp"  # type: ignore[attr-defined]
    lives: list[int] = []
    outcomes = Counter[str]()
    recovered = Counter[str]()
    end = monotonic() + seconds

    async def one(agent: Any, number: int) -> None:
        n = 0
        while monotonic() < end:
            n += 1
            tool = "write" if number % 10 == 0 else "read"
            answered = (await agent.call(tool, {"say": f"{number}-{n}"})).message
            if "result" in answered:
                assert answered["result"]["content"][0]["text"] == f"{number}-{n}"
                outcomes[tool] += 1
            else:
                outcomes[f"{tool} {answered['error']['data']['reason']}"] += 1
            await asyncio.sleep(0.05)

    async with gateway({"u": HttpServerSpec(url=url)}) as running:
        server = running.servers.all[0]
        server._on_recovery = lambda cause: recovered.update((cause,))
        agents = [await running.agent() for _ in range(AGENTS // 2)]
        agents += [running.stateless(who=f"a{n}") for n in range(AGENTS // 2)]
        await agents[0].ask("tools/list")
        killer = asyncio.create_task(kill_again_and_again(process, end, lives))
        try:
            await asyncio.gather(*(one(agent, number) for number, agent in enumerate(agents)))
        finally:
            process = await killer
            await reap(process)
    assert len(lives) >= seconds // 2
    assert outcomes["read"] > AGENTS * len(lives)
    assert {outcome for outcome in outcomes if " " in outcome} <= {"write call_lost"}
    assert recovered["expired"] > AGENTS
