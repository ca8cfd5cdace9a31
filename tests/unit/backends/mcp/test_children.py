"""What children may take, and that nothing of them is left however the gateway ends."""

import asyncio
from pathlib import Path
from time import monotonic

import pytest
from tests.fixtures.mcp_gateway import Gateway, child, gateway, sessions, until

from tollhouse.backends.mcp.stdio import StdioServerSpec

pytestmark = pytest.mark.anyio

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only /proc says what a process takes")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def weighed(running: Gateway) -> None:
    """As the clock does it every two seconds."""
    running.servers.expire()
    assert running.servers._weighing is not None
    await running.servers._weighing


@linux
async def test_a_child_that_takes_too_much_memory() -> None:
    async with gateway({"c": child(max_memory=64 << 20)}) as running:
        agent = await running.agent()
        await agent.call("echo")
        await weighed(running)
        first = sessions(running)[0]
        assert not first.lost
        waiting = asyncio.create_task(agent.call("never"))
        await until(lambda: first.active == 1)
        assert (await agent.call("eat", {"size": 80 << 20})).text == "ate"
        await weighed(running)
        assert "MiB of memory" in (await waiting).message["error"]["message"]
        assert (await agent.call("echo", {"message": "again"})).text == "again"
        assert sessions(running)[0] is not first


@linux
async def test_a_child_that_takes_too_much_time() -> None:
    async with gateway({"c": child(max_cpu=0.5)}) as running:
        agent = await running.agent()
        await agent.call("echo")
        first = sessions(running)[0]
        waiting = asyncio.create_task(agent.call("spin"))
        async with asyncio.timeout(10):
            while not first.lost:
                await weighed(running)
                await asyncio.sleep(0.05)
        assert "processor time" in (await waiting).message["error"]["message"]


async def test_an_old_child_is_replaced_when_it_is_free() -> None:
    async with gateway({"c": child(max_age=0.05)}) as running:
        agent = await running.agent(who="ada")
        await agent.ask("logging/setLevel", {"level": "error"})
        pid = (await agent.call("pid")).text
        first = sessions(running)[0]
        waiting = asyncio.create_task(agent.call("never"))
        await until(lambda: first.active == 1)
        number = agent.ids
        await asyncio.sleep(0.2)
        await weighed(running)
        assert not first.lost  # its call has not ended
        assert (await agent.call("pid")).text != pid
        assert len(sessions(running)) == 2
        assert {session.level for session in sessions(running)} == {"error"}
        await agent.tell("notifications/cancelled", {"requestId": number})
        await waiting
        await until(lambda: first.closed)
        assert len(sessions(running)) == 1


@linux
async def test_nothing_is_left_of_a_server_that_makes_daemons() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        for way in ("die", "end"):
            pid = int((await agent.call("daemon")).text)
            assert alive(pid)
            if way == "die":
                await agent.call("die")
            else:
                await agent.end()
                await until(lambda: not sessions(running) and not running.servers.all[0]._tasks)
            assert not alive(pid)


async def test_a_child_that_has_answered_is_started_again_at_once() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        for _ in range(3):
            await agent.call("echo")
            restarts = sessions(running)[0].restarts
            await agent.call("die")
            assert restarts.wait == 0
        assert (await agent.call("echo", {"message": "again"})).text == "again"
        assert sessions(running)[0].restarts is restarts


async def test_a_child_that_dies_without_an_answer_is_started_later() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        await agent.ask("tools/list")
        restarts = sessions(running)[0].restarts
        began = monotonic()
        for n in range(4):
            assert restarts._dead == max(0, n - 1)
            await agent.call("die")
        assert monotonic() - began > 0.1 + 0.2  # before the third and the fourth


def test_specs() -> None:
    spec = StdioServerSpec.model_validate({"command": "x", "max_memory": "256MiB", "max_cpu": "1h", "max_age": "1d"})
    assert (spec.max_memory, spec.max_cpu, spec.max_age) == (256 << 20, 3600.0, 86400.0)
    assert spec.watched
    assert not StdioServerSpec(command="x").watched
    assert StdioServerSpec(command="x").trusted()


async def test_a_child_takes_its_place_until_it_has_ended() -> None:
    """So that agents who come and go have no more children than there may be."""
    async with gateway({"c": child("lingers", max_children=2)}) as running:
        seen: list[int] = []

        async def visit() -> None:
            agent = await running.agent({"elicitation": {}})
            seen.append(int((await agent.call("pid")).text))
            assert sum(map(alive, seen)) <= 2
            await agent.end()

        for _ in range(3):
            await asyncio.gather(visit(), visit())
        assert len(set(seen)) == 6
