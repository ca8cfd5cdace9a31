"""What a child leaves behind, twice forked and in a session of its own, ends with it: real processes."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tollhouse.core.errors import Failure
from tollhouse.net import reaper
from tollhouse.net.process import Child, clean_environment, spawn, taken
from tollhouse.net.reaper import descendants

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux gives orphans to who asks for them"),
]

# A child that starts a daemon as daemons are started, says the daemon's number and its own, and goes on as told.
DAEMON = """
import os, sys, time
read, write = os.pipe()
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    for number in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    os.write(write, b"%d" % os.getpid())
    os.close(write)
    time.sleep(600)
    os._exit(0)
os.wait()
os.close(write)
print(os.read(read, 20).decode(), os.getpid(), flush=True)
"""
WAITS = DAEMON + "sys.stdin.read()"


class Heard:
    def __init__(self) -> None:
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()
        self.end: asyncio.Future[tuple[int | None, str]] = asyncio.get_running_loop().create_future()
        self.errors: list[str] = []

    def line(self, data: bytes) -> None:
        self.lines.put_nowait(data)

    def exited(self, code: int | None, why: str) -> None:
        self.end.set_result((code, why))

    async def pids(self) -> list[int]:
        async with asyncio.timeout(10):
            return [int(pid) for pid in (await self.lines.get()).split()]

    async def ended(self) -> tuple[int | None, str]:
        async with asyncio.timeout(10):
            return await self.end


async def start(heard: Heard, *command: str, **more: Any) -> Child:
    return await spawn(
        command, heard, stderr=heard.errors.append, reaped=True, **{"env": clean_environment({}), **more}
    )


async def start_python(heard: Heard, program: str, **more: Any) -> Child:
    return await start(heard, sys.executable, "-u", "-c", program, **more)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(*pids: int) -> bool:
    end = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(map(alive, pids))


async def test_a_daemon_ends_with_the_child_that_is_closed() -> None:
    heard = Heard()
    child = await start_python(heard, WAITS)
    daemon, server = await heard.pids()
    assert os.getsid(daemon) not in (os.getsid(server), os.getsid(child.pid))
    assert set(descendants(child.root)) == {daemon, server}
    await child.close()
    assert not alive(daemon)  # before it has ended for us, it has
    assert not alive(server)
    assert (child.code, child.root) == (0, 0)
    assert heard.end.result() == (None, "it was closed")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_daemon_ends_with_the_child_that_is_killed(number: int) -> None:
    heard = Heard()
    child = await start_python(heard, WAITS)
    daemon, server = await heard.pids()
    os.kill(server, number)
    assert await heard.ended() == (-number, f"it was killed by signal {number:d}")
    assert not alive(daemon)
    await child.close()


async def test_a_daemon_ends_with_the_child_that_exits() -> None:
    heard = Heard()
    child = await start_python(heard, DAEMON + "sys.exit(7)")
    daemon, _ = await heard.pids()
    assert await heard.ended() == (7, "it exited with code 7")
    assert not alive(daemon)
    await child.close()


async def test_the_stubborn_end_too() -> None:
    heard = Heard()
    stubborn = "import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
    child = await start_python(heard, stubborn + DAEMON + "time.sleep(600)")
    pids = await heard.pids()
    await child.close(grace=0.1)
    assert not any(map(alive, pids))
    assert child.code == -9


async def test_who_is_told_to_end_may_do_it_in_order() -> None:
    heard = Heard()
    polite = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(5))\nprint(0)\ntime.sleep(600)"
    child = await start_python(heard, polite)
    await heard.pids()
    await child.close(grace=0.2)
    assert child.code == 5


async def test_a_close_that_is_cancelled_leaves_nothing() -> None:
    heard = Heard()
    child = await start_python(heard, DAEMON + "time.sleep(600)")
    pids = await heard.pids()
    closing = asyncio.create_task(child.close(grace=30))
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    assert await asyncio.to_thread(gone, *pids)
    await child.close()


@pytest.mark.parametrize("command", ["no-such-program-here", "/", "/etc/passwd"])
async def test_what_cannot_start(command: str) -> None:
    with pytest.raises(Failure) as caught:
        await start(Heard(), command)
    assert (caught.value.status, caught.value.retry, caught.value.reached) == (503, False, False)
    assert command in caught.value.detail


@pytest.mark.parametrize("command", ["it", "./it", "bin/../it"])
async def test_a_program_is_looked_for_from_where_it_is_to_run(tmp_path: Path, command: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "it").write_text("#!/bin/sh\necho 42\n")
    (tmp_path / "it").chmod(0o755)
    heard = Heard()
    child = await start(heard, command, cwd=str(tmp_path), env={"PATH": "bin:."})
    assert await heard.pids() == [42]
    await child.close()


async def test_what_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("nothing that the kernel knows")
    (tmp_path / "it").chmod(0o755)
    heard = Heard()
    child = await start(heard, "./it", cwd=str(tmp_path))
    assert await heard.ended() == (127, "it exited with code 127")
    assert "cannot start './it'" in heard.errors[0]
    await child.close()


async def test_the_child_is_as_if_nothing_were_above_it(tmp_path: Path) -> None:
    """Its environment, its arguments, its directory, its signals and its file descriptors."""
    program = (
        "import os, signal, sys\n"
        "print(sorted(os.environb), sys.argv[1:], os.getcwd(), flush=True)\n"
        "print(signal.pthread_sigmask(0, ()), open('/proc/self/status').read().split('SigIgn:')[1].split()[0])\n"
        "print(sorted(os.listdir('/proc/self/fd')), os.getsid(0) == os.getpid() == os.getpgid(0))"
    )
    for reaped in (True, False):
        heard = Heard()
        child = await spawn(
            (sys.executable, "-S", "-c", program, "ä", ""),
            heard,
            env={"PYTHONCOERCECLOCALE": "0", "X": "ä"},
            cwd=str(tmp_path),
            stderr=heard.errors.append,
            reaped=reaped,
        )
        await heard.ended()
        said = [heard.lines.get_nowait().decode() for _ in range(3)]
        assert said[0] == f"[b'PYTHONCOERCECLOCALE', b'X'] ['ä', ''] {tmp_path}"
        blocked, ignored = said[1].split(" ")
        assert (blocked, int(ignored, 16) & 0x7FFF_FFFF) == ("set()", 0x100_1000)  # Python's own: SIGPIPE and SIGXFSZ
        fds, leads = said[2].rsplit(" ", 1)
        assert leads == "True"
        assert not reaped or fds == "['0', '1', '2', '3']"  # the last is that of the list
        await child.close()


async def test_what_it_takes_is_counted_with_all_that_has_left_its_session() -> None:
    heard = Heard()
    child = await start_python(heard, WAITS)
    pids = await heard.pids()
    page = os.sysconf("SC_PAGE_SIZE")

    def resident(pid: int) -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page

    found = taken([child.root, 1 << 30])
    assert found.keys() == {child.root}
    assert found[child.root].memory == pytest.approx(sum(map(resident, pids)), rel=0.1)
    await child.close()


async def test_what_is_left_behind_and_ends_is_no_zombie() -> None:
    heard = Heard()
    leaves = "import os, sys\nif not os.fork():\n    if os.fork():\n        os._exit(0)\n    os._exit(0)\nos.wait()\n"
    child = await start_python(heard, leaves + "print(os.getpid(), flush=True)\nsys.stdin.read()")
    (server,) = await heard.pids()
    async with asyncio.timeout(10):
        while descendants(child.root) != [server]:
            await asyncio.sleep(0.01)
    await child.close()


GATEWAY = """
import asyncio, sys, uvloop
from tollhouse.net.process import *
class L:
    def line(self, data): print(data.decode(), child.pid, flush=True)
    def exited(self, code, why): pass
async def main():
    global child
    child = await spawn([sys.executable, "-u", "-c", sys.argv[1]], L(), env={}, stderr=print, reaped=True)
    await asyncio.sleep(600)
uvloop.run(main())
"""


async def test_nothing_is_left_when_the_gateway_is_killed() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", GATEWAY, WAITS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as gateway:
        assert gateway.stdout is not None
        pids = [int(pid) for pid in gateway.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(alive, pids))
        gateway.kill()
    assert gone(*pids)


async def test_the_child_ends_with_its_reaper() -> None:
    """Which nobody should kill."""
    heard = Heard()
    child = await start_python(heard, "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    (server,) = await heard.pids()
    os.kill(child.pid, signal.SIGKILL)
    assert await heard.ended() == (-9, "it was killed by signal 9")
    assert await asyncio.to_thread(gone, server)
    await child.close()


def test_no_reaper_without_who_asked_for_it() -> None:
    """It was started by one that has gone meanwhile."""
    command = [sys.executable, "-I", "-S", reaper.__file__, "1", "true"]
    assert subprocess.run(command, check=False).returncode == 1
