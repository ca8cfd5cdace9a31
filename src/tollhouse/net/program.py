"""A program of somebody else's, run in a sandbox that lives as long as the program does.

Rule: nothing of it runs in this process, which sees only lines of bounded length and number. Each program has a
process of its own, behind two walls: an interpreter that has no files, no network and no way to other code, in a
child of `program_child`, which has given up all that it could (`net.wall`). What it asks for is answered here.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

import tollhouse
from tollhouse.core.errors import Failure, Reason
from tollhouse.net.process import Child, Keeper, spawn

__all__ = ["Limits", "Outcome", "Programs"]

log = logging.getLogger("tollhouse.net.program")

Host = Callable[[str, bytes], Awaitable[bytes]]
"""Answers what a program asks for: (what, raw JSON of its arguments) to raw JSON. Raises ValueError with a text for the
program."""

_WAITING = 16
_WAITING_EACH = 4
_MAX_LINE = 4 << 20
_MAX_ASKED = 1 << 20
_LONGEST_WAIT = 10.0


class Limits(msgspec.Struct, frozen=True):
    """cpu, wall: seconds; wall counts the answers it waits for. memory: bytes of its values. output: characters that
    it may print. calls: how often it may ask."""

    cpu: float = 5.0
    wall: float = 30.0
    memory: int = 64 << 20
    output: int = 32_000
    calls: int = 50


class Outcome(msgspec.Struct):
    """error: why it did not come to its end, for who wrote it; "" when it did. cut: it printed more."""

    output: str = ""
    error: str = ""
    cut: bool = False


class _Line(msgspec.Struct):
    ask: str = ""
    arguments: str = ""
    fault: str = ""
    files: bool | None = None
    output: str | None = None
    error: str = ""
    cut: bool = False


_line = msgspec.json.Decoder(_Line)


class _Run:
    """Listener of one program's child."""

    __slots__ = ("_lines", "_ready", "why")

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._ready: asyncio.Future[None] | None = None
        self.why = ""

    async def next(self) -> _Line:
        """What it says next. Raises EOFError when that is nothing, ValueError when it is not ours."""
        while not self._lines:
            if self.why:
                raise EOFError(self.why)
            self._ready = asyncio.get_running_loop().create_future()
            await self._ready
        return _line.decode(self._lines.pop(0))

    def line(self, data: bytes) -> None:
        # It waits for an answer to each line that asks: more than a few at once are not of its protocol.
        if len(self._lines) < 8:
            self._lines.append(data)
        self._wake()

    def exited(self, code: int | None, why: str) -> None:
        self.why = why or "it exited"
        self._wake()

    def _wake(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)


class _Share:
    """What one caller has. count: running and waiting."""

    __slots__ = ("count", "turns")

    def __init__(self, limit: int) -> None:
        self.count = 0
        self.turns = asyncio.Semaphore(limit)


class Programs:
    """Those of one worker. limit: run at once; a few more wait for their turn, and others are refused. Of one caller
    half as many run at once, so that one alone never keeps the others from theirs."""

    def __init__(self, limit: int = 4) -> None:
        self._running_each = max(1, limit // 2)
        self._each = self._running_each + _WAITING_EACH
        self._of: dict[str, _Share] = {}
        self._turns = asyncio.Semaphore(limit)
        self._waiting = 0
        self._keeper = Keeper()
        self._told = False
        self._running: set[Child] = set()

    def __len__(self) -> int:
        return len(self._running)

    async def run(self, code: str, limits: Limits, host: Host, caller: str = "") -> Outcome:
        """Run `code` of `caller` to its end. Raises Failure 429 when that caller has enough of them, 503 when no
        program can be run now, or none at all."""
        share = self._of.get(caller)
        if share is None:
            share = self._of[caller] = _Share(self._running_each)
        if share.count >= self._each:
            raise Failure(429, Reason.RATE_LIMIT, f"this caller has {self._each} programs running or waiting already")
        share.count += 1
        try:
            await _turn(share.turns)
            try:
                return await self._in_turn(code, limits, host)
            finally:
                share.turns.release()
        finally:
            share.count -= 1
            if not share.count:
                del self._of[caller]

    async def _in_turn(self, code: str, limits: Limits, host: Host) -> Outcome:
        if self._turns.locked() and self._waiting >= _WAITING:
            raise _busy()
        self._waiting += 1
        try:
            await _turn(self._turns)
        finally:
            self._waiting -= 1
        try:
            return await self._run(code, limits, host)
        finally:
            self._turns.release()

    async def _run(self, code: str, limits: Limits, host: Host) -> Outcome:
        run = _Run()
        child = await spawn(
            (sys.executable, "-P", "-s", "-B", "-m", "tollhouse.net.program_child"),
            run,
            env={"PYTHONPATH": str(Path(tollhouse.__file__).parent.parent), "LC_ALL": "C.UTF-8"},
            cwd="/",
            max_line=_MAX_LINE,
            stderr=_note,
            keeper=self._keeper,
        )
        self._running.add(child)
        try:
            async with asyncio.timeout(limits.wall):
                wanted: dict[str, Any] = {"code": code, "cpu": limits.cpu, "memory": limits.memory}
                _tell(child, {**wanted, "output": limits.output, "calls": limits.calls})
                return await self._serve(run, child, limits, host)
        except TimeoutError:
            return Outcome(error=f"TimeoutError: the program was ended after {limits.wall:g} s, calls included")
        except EOFError as end:
            log.info("a program's process ended: %s", end)
            return Outcome(error="the sandbox ended: the program took more than it may")
        except msgspec.MsgspecError:
            log.warning("a program's process said what is not of its protocol")
            return Outcome(error="the sandbox ended")
        finally:
            child.kill("its program has ended")
            self._running.discard(child)
            await asyncio.shield(child.close(1.0))

    async def _serve(self, run: _Run, child: Child, limits: Limits, host: Host) -> Outcome:
        asked = 0
        while True:
            said = await run.next()
            if said.fault:
                message = "programs cannot be run here"
                raise Failure(503, Reason.INTERNAL, message, detail=repr(said.fault[:500]))
            if said.output is not None:
                return Outcome(output=said.output, error=said.error, cut=said.cut)
            if said.files is not None:
                self._stands(said.files)
                continue
            asked += 1
            told: dict[str, Any]
            try:
                if asked > limits.calls:
                    raise ValueError(f"a program may ask {limits.calls} times")
                if len(said.arguments) > _MAX_ASKED:
                    raise ValueError(f"arguments of more than {_MAX_ASKED} bytes")
                value = await host(said.ask, said.arguments.encode())
                if len(value) > _MAX_ASKED:
                    raise ValueError(f"the answer has {len(value)} bytes: at most {_MAX_ASKED}")
                told = {"value": value.decode()}
            except ValueError as error:
                told = {"error": str(error)}
            _tell(child, told)

    def _stands(self, files: bool) -> None:
        if not files and not self._told:
            self._told = True
            log.warning("programs run without Landlock: this kernel has none, so one wall less keeps them from files")

    async def close(self) -> None:
        """End all of them."""
        for child in list(self._running):
            child.kill("the gateway ends")
        for child in list(self._running):
            await child.close(1.0)
        self._keeper.close()


async def _turn(turns: asyncio.Semaphore) -> None:
    """Have one of `turns`. Raises Failure 503 when that takes long."""
    try:
        async with asyncio.timeout(_LONGEST_WAIT):
            await turns.acquire()
    except TimeoutError:
        raise _busy() from None


def _tell(child: Child, what: dict[str, Any]) -> None:
    """Raises EOFError when it is not there any more, or does not read."""
    try:
        child.send(msgspec.json.encode(what))
    except Failure as failure:
        raise EOFError(failure.message) from None


def _busy() -> Failure:
    message = "too many programs run at once: try again"
    return Failure(503, Reason.OVERLOADED, message, retry=True, retry_after=1.0)


def _note(line: str) -> None:
    log.debug("a program's process: %s", line)
