"""Programs of others: what they can do, and what they cannot do to us."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tollhouse.core.errors import Failure
from tollhouse.net.program import Limits, Outcome, Programs

pytest.importorskip("pydantic_monty", reason="the extra `code` is not installed")
pytestmark = pytest.mark.anyio

QUICK = Limits(cpu=0.5, wall=5.0, memory=16 << 20, output=2000, calls=10)


class Host:
    """Tools: `echo` gives its arguments, `bad` fails, `slow` does not end. asked: what was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.cancelled = 0

    async def __call__(self, what: str, arguments: bytes) -> bytes:
        given = json.loads(arguments)
        self.asked.append((what, given))
        if what == "find":
            return json.dumps({"tools": [{"name": "echo", "query": given[0]}]}).encode()
        told = []
        for name, values in given:
            if name == "slow":
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            if name == "huge":
                told.append({"value": "x" * (2 << 20)})
            elif name == "refused":
                raise ValueError("no more of this")
            else:
                told.append({"error": "it failed"} if name == "bad" else {"value": values})
        return json.dumps(told).encode()


@asynccontextmanager
async def programs(limit: int = 4) -> AsyncIterator[Programs]:
    made = Programs(limit)
    try:
        yield made
    finally:
        await made.close()
        assert not len(made)


async def run(code: str, limits: Limits = QUICK, host: Host | None = None) -> Outcome:
    async with programs() as made:
        return await made.run(code, limits, host or Host())


GOOD = {
    "print(1 + 1)": "2\n",
    "print(call_tool('echo', {'a': [1, None, 'é']}))": "{'a': [1, None, 'é']}\n",
    "print(call_tool('echo', a=1, b={'c': 2})['b']['c'])": "2\n",
    "print(call_tool('echo', name='n', arguments=1))": "{'name': 'n', 'arguments': 1}\n",
    "print(call_tool(name='echo', arguments={'a': 1}))": "{'a': 1}\n",
    "print(call_tool('echo', {'name': 'n'}), call_tool('echo', None))": "{'name': 'n'} {}\n",
    "print(call_tools([('echo', {'a': 1}), ('bad', {})]))": "[{'value': {'a': 1}}, {'error': 'it failed'}]\n",
    "print(call_tools([('echo',)]))": "[{'value': {}}]\n",
    "try:\n    call_tool('bad')\nexcept RuntimeError as e:\n    print('no:', e)": "no: it failed\n",
    "print(find_tools('words')['tools'][0]['query'])": "words\n",
    "import json, re, math, datetime\nprint(json.loads('[1]'), re.sub('a', 'b', 'a'), math.floor(1.5))": "[1] b 1\n",
    "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f(10))": "55\n",
    "print(sum(call_tool('echo', {'n': n})['n'] for n in range(5)))": "10\n",
    "import time\ntime.sleep(100)\nprint('awake')": "awake\n",
    "42": "",
    "": "",
    "x = 1 \\": None,  # a line that goes on into ours: not Python, and no harm
}


async def test_what_programs_can_do() -> None:
    async with programs() as made:
        for code, printed in GOOD.items():
            outcome = await made.run(code, QUICK, Host())
            assert outcome == Outcome(printed) if printed is not None else outcome.error, code


BAD = {
    "while True: pass": "TimeoutError",
    "while True:\n    try:\n        while True: pass\n    except BaseException: pass": "TimeoutError",
    "x = 7\nfor i in range(60): x = x * x": "Error",
    "a = []\nwhile True: a.append('x' * 1000)": "MemoryError",
    "'x' * 10 ** 12": "MemoryError",
    "10 ** 10 ** 9": "MemoryError",
    "print(f'{1:>1000000000}')": "MemoryError",
    "[0] * 10 ** 10": "MemoryError",
    "def f(n): return f(n + 1)\nf(0)": "RecursionError",
    "a = []\nfor i in range(5000): a = [a]\ncall_tool('echo', {'a': a})": "RecursionError",
    "a = {}\na['a'] = a\ncall_tool('echo', a)": "Error",
    "a = [0] * 1000\nb = [a] * 1000\nc = [b] * 1000\ncall_tool('echo', {'c': c})": "Error",
    "call_tool('echo', {'a': 'x' * 3000000})": "Error",
    "call_tool('huge')": "at most",
    "call_tool('refused')": "no more of this",
    "for i in range(20): call_tool('echo')": "10 times",
    "().__class__.__bases__[0].__subclasses__()": "AttributeError",
    "(lambda: 0).__globals__": "AttributeError",
    "call_tool.__code__": "AttributeError",
    "import socket": "ModuleNotFoundError",
    "import subprocess": "ModuleNotFoundError",
    "import ctypes": "ModuleNotFoundError",
    "import tollhouse": "ModuleNotFoundError",
    "__import__('os').system('id')": "Error",
    "import os\nos.system('id')": "Error",
    "import os\nprint(os.environ['PATH'])": "Error",
    "import os\nos.listdir('/')": "Error",
    "open('/etc/passwd').read()": "Error",
    "open('x', 'w').write('x')": "Error",
    "from pathlib import Path\nPath('/proc/self/environ').read_text()": "Error",
    "import sys\nsys.exit(3)": "",
    "_host('call', 'x' * 5000000)": "the sandbox ended",
    "_host('call', 7)": "NameError",
    "_host('call', '[[\"echo\", 7]]'); _host('nothing', 'not json')": "Error",
    "unknown_function([0] * 100000)": "NameError",
    "raise ValueError('mine')": "ValueError: mine",
    "this is no python": "Error",
    "(" * 5000: "Error",
    "eval('(' * 5000 + ')' * 5000)": "Error",
    "exec('while True: pass')": "TimeoutError",
    "import re\nre.match('(a*)*b', 'a' * 100)\nwhile True: pass": "TimeoutError",
    "import asyncio\nasync def f():\n    while True: await asyncio.sleep(0)\nawait f()": "Error",
    "raise BaseException('x' * 1000000)": "",
    "\0": "",
    "\ud7ff" * 10: "",
}


async def test_what_programs_cannot_do() -> None:
    async with programs() as made:

        async def one(code: str, says: str) -> None:
            outcome = await made.run(code, QUICK, Host())
            assert outcome.error, code
            assert says in outcome.error, (code, outcome)
            assert len(outcome.error) <= 4000
            assert "/tollhouse/" not in outcome.error

        for code, says in BAD.items():
            await one(code, says)
        assert (await made.run("print('well')", QUICK, Host())).output == "well\n"


async def test_output_is_cut() -> None:
    outcome = await run("for i in range(1000): print('x' * 100)\ncall_tool('echo')")
    assert (len(outcome.output), outcome.cut, outcome.error) == (2000, True, "")
    endless = await run("while True: print('x' * 100)")
    assert (len(endless.output), endless.cut) == (2000, True)
    assert "TimeoutError" in endless.error
    kept = await run("print('before')\nraise ValueError('after')")
    assert kept.output == "before\n"
    assert "after" in kept.error


async def test_a_program_that_waits_is_ended() -> None:
    host = Host()
    began = time.monotonic()
    outcome = await run("call_tool('slow')", Limits(cpu=5.0, wall=0.5), host)
    assert "TimeoutError" in outcome.error
    assert time.monotonic() - began < 4
    assert host.cancelled == 1


async def test_who_cancels_ends_it() -> None:
    host = Host()
    async with programs() as made:
        task = asyncio.create_task(made.run("call_tool('slow')", Limits(), host))
        while not host.asked:
            await asyncio.sleep(0.005)
        (child,) = made._running
        group = child.root
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert host.cancelled == 1
        async with asyncio.timeout(5):
            while not _gone(group):
                await asyncio.sleep(0.01)


def _gone(group: int) -> bool:
    """No process of the group is left, but those nobody has waited for."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != b"Z":
            return False
    return True


@pytest.mark.parametrize("name", [b"monty", b"python"])
async def test_a_crash_is_an_error_of_the_program(name: bytes) -> None:
    host = Host()
    async with programs() as made:
        task = asyncio.create_task(made.run("while True: call_tool('echo')", Limits(calls=1000, wall=5), host))
        while not host.asked:
            await asyncio.sleep(0.005)
        (child,) = made._running
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                head, _, fields = stat.read_bytes().rpartition(b")")
            except OSError:
                continue
            if int(fields.split()[2]) == child.root and (b"(" + name) in head:
                os.kill(int(stat.parent.name), signal.SIGSEGV)
        outcome = await task
        assert outcome.error
        assert (await made.run("print(1)", QUICK, host)).output == "1\n"


async def test_several_at_once() -> None:
    async with programs(2) as made:
        outcomes = await asyncio.gather(*(made.run(f"print({n})", QUICK, Host(), f"{n}") for n in range(8)))
        assert [outcome.output for outcome in outcomes] == [f"{n}\n" for n in range(8)]


async def test_too_many_are_refused() -> None:
    host = Host()
    async with programs(1) as made:
        slow = "call_tool('slow')"
        tasks = [asyncio.create_task(made.run(slow, Limits(wall=60), host, f"{n}")) for n in range(17)]
        while not host.asked:
            await asyncio.sleep(0.005)
        with pytest.raises(Failure, match="too many programs") as refused:
            await made.run("print(1)", QUICK, host)
        assert refused.value.status == 503
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def test_one_caller_leaves_room_for_others() -> None:
    host = Host()
    async with programs(4) as made:
        slow = [asyncio.create_task(made.run("call_tool('slow')", Limits(wall=60), host, "ada")) for _ in range(6)]
        while len(host.asked) < 2:
            await asyncio.sleep(0.005)
        with pytest.raises(Failure, match="this caller has 6 programs") as refused:
            await made.run("print(1)", QUICK, host, "ada")
        assert refused.value.status == 429
        assert (await made.run("print(2)", QUICK, host, "bob")).output == "2\n"
        assert len(made) == 2  # of hers two run, and the others wait for those
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)
        assert not made._of


async def test_the_child_knows_nothing_of_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "s3cret")
    host = Host()
    async with programs() as made:
        task = asyncio.create_task(made.run("call_tool('slow')", Limits(), host))
        while not host.asked:
            await asyncio.sleep(0.005)
        (child,) = made._running
        seen = 0
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if int((environ.parent / "stat").read_bytes().rpartition(b")")[2].split()[2]) != child.root:
                    continue
                seen += 1
                assert b"s3cret" not in environ.read_bytes()
            except PermissionError:
                pass
            except OSError:
                continue
        assert seen == 2
        task.cancel()
        await asyncio.wait([task])
