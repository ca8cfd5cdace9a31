"""Children: lines both ways, bounds, and that nothing of them is left."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tollhouse.core.errors import Failure
from tollhouse.net.process import INHERITED, Child, Keeper, clean_environment, spawn

pytestmark = pytest.mark.anyio

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only there is seen who is alive")

UPPER = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"


class Heard:
    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.end: tuple[int | None, str] | None = None
        self.something = asyncio.Event()
        self.errors: list[str] = []

    def line(self, data: bytes) -> None:
        self.lines.append(data)
        self.something.set()

    def exited(self, code: int | None, why: str) -> None:
        assert self.end is None
        self.end = (code, why)
        self.something.set()

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.something.clear()
                await self.something.wait()


async def start(heard: Heard, *command: str, **more: Any) -> Child:
    more.setdefault("env", clean_environment({}))
    return await spawn(command, heard, stderr=heard.errors.append, **more)


async def start_python(heard: Heard, program: str, **more: Any) -> Child:
    return await start(heard, sys.executable, "-u", "-c", program, **more)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def gone(pid: int) -> bool:
    end = time.monotonic() + 5
    while alive(pid) and time.monotonic() < end:
        await asyncio.sleep(0.01)
    return not alive(pid)


async def test_lines_both_ways() -> None:
    heard = Heard()
    child = await start_python(heard, UPPER)
    child.send(b"one")
    child.send(b"two" * 100_000)
    await heard.until(lambda: len(heard.lines) == 2)
    assert heard.lines == [b"ONE", b"TWO" * 100_000]
    assert child.running
    await child.close()
    assert not child.running
    assert heard.end == (None, "it was closed")
    assert child.code == 0
    with pytest.raises(Failure) as caught:
        child.send(b"three")
    assert caught.value.status == 502


async def test_line_ends_and_empty_lines() -> None:
    heard = Heard()
    child = await start_python(heard, "import sys; sys.stdout.write('a\\r\\n\\nb\\nunfinished')")
    await heard.until(lambda: heard.end is not None)
    assert heard.lines == [b"a", b"b"]
    assert heard.end == (0, "it exited with code 0")
    await child.close()


@pytest.mark.parametrize("program", ["print('x' * 3000)", "import sys; sys.stdout.write('x' * 3_000_000)"])
async def test_a_line_too_long_ends_the_child(program: str) -> None:
    heard = Heard()
    child = await start_python(heard, f"{program}\nimport time; time.sleep(60)", max_line=2000)
    child.send(b"x")
    await heard.until(lambda: heard.end is not None)
    assert heard.end is not None
    assert "more than 2000 bytes" in heard.end[1]
    assert heard.lines == []
    assert await gone(child.pid)
    await child.close()


async def test_lines_up_to_the_bound_pass() -> None:
    heard = Heard()
    child = await start_python(heard, "print('x' * 200_000)\nprint('y')", max_line=200_000)
    await heard.until(lambda: heard.end is not None)
    assert [len(line) for line in heard.lines] == [200_000, 1]
    await child.close()


async def test_exit_and_signal_are_told() -> None:
    heard = Heard()
    child = await start_python(heard, "import sys; sys.stderr.write('oh no\\nbad'); sys.exit(3)")
    await heard.until(lambda: heard.end is not None)
    assert heard.end == (3, "it exited with code 3")
    assert heard.errors == ["oh no", "bad"]
    await child.close()
    heard = Heard()
    child = await start_python(heard, "import os; os.kill(os.getpid(), 9)")
    await heard.until(lambda: heard.end is not None)
    assert heard.end == (-9, "it was killed by signal 9")
    await child.close()


async def test_error_lines_are_bounded() -> None:
    heard = Heard()
    child = await start_python(heard, "import sys; sys.stderr.write('e' * 100_000)")
    await heard.until(lambda: heard.end is not None)
    assert sum(map(len, heard.errors)) <= 100_000
    assert max(map(len, heard.errors)) <= 4096
    await child.close()


@pytest.mark.parametrize("command", ["no-such-program-here", "/", "/etc/passwd"])
async def test_what_cannot_start(command: str) -> None:
    with pytest.raises(Failure) as caught:
        await start(Heard(), command)
    assert caught.value.status == 503
    assert caught.value.detail


async def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(Failure):
        await start_python(Heard(), "pass", cwd="/no/such/folder")


async def test_only_a_clean_environment_is_seen() -> None:
    os.environ["SECRET_OF_THE_GATEWAY"] = "x"
    try:
        env = clean_environment({"GIVEN": "1", "HOME": "/elsewhere"})
    finally:
        del os.environ["SECRET_OF_THE_GATEWAY"]
    assert "SECRET_OF_THE_GATEWAY" not in env
    assert (env["GIVEN"], env["HOME"]) == ("1", "/elsewhere")
    assert set(env) <= {*INHERITED, "GIVEN"}
    heard = Heard()
    child = await start_python(heard, "import os; print(*sorted(os.environ))", env={"ONLY": "this"})
    await heard.until(lambda: heard.end is not None)
    assert b"ONLY" in heard.lines[0].split()
    assert set(heard.lines[0].split()) <= {b"ONLY", b"LC_CTYPE"}
    await child.close()


async def test_the_stubborn_are_killed_with_their_children() -> None:
    heard = Heard()
    script = "trap '' TERM; sleep 600 & echo $!; while true; do sleep 600; done"
    child = await start(heard, "sh", "-c", script)
    await heard.until(lambda: heard.lines)
    grandchild = int(heard.lines[0])
    assert alive(grandchild)
    began = time.monotonic()
    await child.close(grace=0.1)
    assert time.monotonic() - began < 2
    assert await gone(grandchild)
    assert await gone(child.pid)
    assert child.code == -9


async def test_what_a_child_leaves_behind_goes_with_it() -> None:
    heard = Heard()
    child = await start(heard, "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!")
    await heard.until(lambda: heard.end is not None)
    assert await gone(int(heard.lines[0]))
    await child.close()


async def test_close_twice_and_after_exit() -> None:
    heard = Heard()
    child = await start_python(heard, "pass")
    await asyncio.gather(child.close(), child.close())
    await child.close()


async def test_once_it_has_exited_its_number_is_not_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel gives the number to others then."""
    heard = Heard()
    child = await start_python(heard, "pass")
    await heard.until(lambda: heard.end is not None)
    signalled: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "killpg", lambda *given: signalled.append(given))
    await child.close()
    await child.close()
    assert signalled == []
    assert child.code == 0


async def test_a_child_that_does_not_read() -> None:
    heard = Heard()
    child = await start_python(heard, "import time; time.sleep(60)")
    for _ in range(9):
        child.send(b"x" * (1 << 20))
        await asyncio.sleep(0)  # what is written in one turn of the loop is not counted before its end
    with pytest.raises(Failure) as caught:
        child.send(b"x" * (1 << 20))
    assert caught.value.status == 503
    await child.close(grace=0.1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child of its parent's death")
async def test_children_die_with_a_killed_gateway() -> None:
    program = (
        "import asyncio, sys, uvloop\n"
        "from tollhouse.net.process import *\n"
        "class L:\n"
        "    def line(self, data): pass\n"
        "    def exited(self, code, why): pass\n"
        "async def main():\n"
        "    child = await spawn(['sleep', '600'], L(), env=clean_environment({}), stderr=print)\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "uvloop.run(main())\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env) as gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        assert alive(pid)
        gateway.kill()
    assert await gone(pid)


@linux
async def test_what_a_keeper_knows_of_ends_with_a_killed_gateway() -> None:
    """Also what children started, which the kernel does not tell."""
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
async def test_a_keeper_ends_when_it_is_told_and_begins_anew() -> None:
    keeper = Keeper()
    first = await start(Heard(), "sleep", "600", keeper=keeper)
    shell = keeper._shell
    assert shell is not None
    assert keeper._groups == {first.pid}
    shell.kill()
    shell.wait()
    second = await start(Heard(), "sleep", "600", keeper=keeper)
    assert keeper._shell is not None
    assert keeper._shell is not shell
    assert keeper._groups == {first.pid, second.pid}
    for child in (first, second):
        await child.close(grace=0.05)
    assert keeper._groups == set()
    keeper.close()
    assert keeper._shell is None
