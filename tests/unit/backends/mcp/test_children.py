"""What children may take, and that nothing of them is left however the gateway ends."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.fixtures.mcp_gateway import Gateway, child, gateway, sessions, until

from tollhouse.backends.mcp.stdio import StdioServerSpec
from tollhouse.net.process import taken

pytestmark = pytest.mark.anyio

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only /proc says what a process takes")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
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
async def test_what_children_take_is_counted_with_theirs() -> None:
    script = "sh -c 'sleep 60' & wait"
    process = await asyncio.create_subprocess_exec("sh", "-c", script, start_new_session=True)
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        await until(lambda: taken([process.pid])[process.pid].memory > int(fields[21]) * page + (256 << 10))
        assert taken([1 << 30]) == {}
    finally:
        os.killpg(process.pid, 9)
        await process.wait()


@linux
async def test_nothing_is_left_of_children_when_the_gateway_is_killed() -> None:
    """Nor of what they started, which the kernel does not tell."""
    program = (
        "import asyncio, os, uvloop\n"
        "from tollhouse.net.process import *\n"
        "class L:\n"
        "    def line(self, data): print(int(data), flush=True)\n"
        "    def exited(self, code, why): pass\n"
        "async def main():\n"
        "    keeper = Keeper()\n"
        "    over = await spawn(['true'], L(), env={}, stderr=print, keeper=keeper)\n"
        "    await over.close()\n"
        "    script = 'sleep 600 </dev/null >/dev/null 2>&1 & echo $!; wait'\n"
        "    child = await spawn(['sh', '-c', script], L(), env={}, stderr=print, keeper=keeper)\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "uvloop.run(main())\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        assert all(alive(pid) for pid in pids)
        process.kill()
    end = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < end:
        await asyncio.sleep(0.01)
    assert not any(alive(pid) for pid in pids)


@linux
async def test_the_keeper_ends_with_the_servers_and_begins_anew() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        await agent.call("echo")
        keeper = running.servers._keeper
        shell = keeper._shell
        assert shell is not None
        assert len(keeper._groups) == 1
        shell.kill()
        shell.wait()
        await (await running.agent({"roots": {}})).call("echo")
        assert keeper._shell is not None
        assert keeper._shell is not shell
        assert len(keeper._groups) == 2
    assert (keeper._shell, keeper._groups) == (None, set())


async def test_a_child_that_lives_for_moments_is_started_later_each_time() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        for n in range(3):
            await agent.call("echo")
            assert sessions(running)[0].short == n
            await agent.call("die")


def test_specs() -> None:
    spec = StdioServerSpec.model_validate({"command": "x", "max_memory": "256MiB", "max_cpu": "1h", "max_age": "1d"})
    assert (spec.max_memory, spec.max_cpu, spec.max_age) == (256 << 20, 3600.0, 86400.0)
    assert spec.watched
    assert not StdioServerSpec(command="x").watched
    assert StdioServerSpec(command="x").trusted()
