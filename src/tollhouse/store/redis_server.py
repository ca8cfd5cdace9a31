"""Commands to a Valkey or Redis server or cluster: many callers, few connections.

Rule: what callers ask for in one turn of the loop goes out in one write, and each hears its own answer. What may have
been done is not asked again, unless whoever asked has said that it may be (`again`); what did not leave is. Nobody
waits longer than twice `timeout`, and while nobody answers, one call in a while tries and the others fail at once.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, perf_counter
from typing import Any

from redis.exceptions import ConnectionError as LostError
from redis.exceptions import NoScriptError, RedisError

from tollhouse.store.base import unavailable
from tollhouse.store.redis_cluster import ClusterLine, Slots
from tollhouse.store.redis_line import Connect, Job, Line, Node, Script, SingleLine

__all__ = ["Observe", "Server"]

log = logging.getLogger("tollhouse.store")

Observe = Callable[[str, str, float], None]
"""Told of each operation: what it was, "ok" or "failed", seconds."""

_BATCH = 128  # commands in one write, at most
_BATCH_BYTES = 1 << 20
_QUEUE = 10_000
_DOWN = 3  # losses in a row after which nobody waits any more,
_PROBE = 0.5  # but for one call in so many seconds
_QUIET = 60.0  # seconds between two complaints about refusals


class Server:
    """Runs commands. lines: connections at a time (of a cluster: to each node). slots: of a cluster. name: for logs."""

    def __init__(
        self,
        connect: Connect,
        nodes: Sequence[Node],
        *,
        name: str,
        timeout: float,
        lines: int,
        slots: Slots | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._connect = connect
        self._nodes = tuple(nodes)
        self._name = name
        self._timeout = timeout
        self._lines = lines
        self._slots = slots
        self._observe = observe
        self._jobs: deque[Job] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._called = 0  # lines that have been called and have not looked yet
        self._losses = 0  # in a row
        self._try_at = 0.0
        self._is_well = True
        self._complained = -_QUIET
        self._is_closed = False

    async def ask(
        self,
        operation: str,
        command: Sequence[bytes],
        *,
        key: bytes = b"",
        again: bool = False,
        script: Script | None = None,
    ) -> Any:
        """The server's answer. operation: what metrics call it. key: what a cluster finds the node by. again: it may be
        done twice. script: `command` then is what stands behind it in EVAL. Raises Failure 503."""
        began = perf_counter()
        try:
            answer = await self._put(Job(command, key, again, script, monotonic() + self._timeout, _future()))
        except Exception:
            if self._observe is not None:
                self._observe(operation, "failed", perf_counter() - began)
            raise
        if self._observe is not None:
            self._observe(operation, "ok", perf_counter() - began)
        return answer

    async def close(self) -> None:
        """Whoever waits still hears that it is closed."""
        self._is_closed = True
        while self._jobs:
            self._jobs.popleft().fail(f"{self._name}: closed")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _put(self, job: Job) -> "asyncio.Future[Any]":
        if self._is_closed:
            raise unavailable(f"{self._name}: closed", reached=False)
        if self._losses >= _DOWN:
            now = monotonic()
            if now < self._try_at:
                raise unavailable(f"{self._name}: does not answer", reached=False)
            self._try_at = now + max(_PROBE, self._timeout)
        if len(self._jobs) >= _QUEUE:
            raise unavailable(f"{self._name}: {_QUEUE} commands wait already", reached=False)
        self._jobs.append(job)
        self._call()
        return job.future

    def _call(self) -> None:
        """Have as many lines come as there is work for."""
        if len(self._jobs) <= self._called * _BATCH or self._is_closed:
            return
        if self._idle:
            self._called += 1
            self._idle.pop().set_result(None)
        elif len(self._tasks) < self._lines:
            self._called += 1
            line: Line
            if self._slots is None:
                line = SingleLine(self._connect(self._nodes[0]))
            else:
                line = ClusterLine(self._connect, self._nodes, self._slots, self._timeout / 2)
            task = asyncio.get_running_loop().create_task(self._serve(line))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, line: Line) -> None:
        self._called -= 1
        try:
            while True:
                jobs = self._next()
                if jobs:
                    await self._run(line, jobs)
                else:
                    idle: asyncio.Future[None] = _future()
                    self._idle.append(idle)
                    await idle
                    self._called -= 1
        finally:
            await line.drop()

    def _next(self) -> list[Job]:
        jobs: list[Job] = []
        size = 0
        now = monotonic()
        while self._jobs and len(jobs) < _BATCH and size < _BATCH_BYTES:
            job = self._jobs.popleft()
            if job.future.done():  # whoever asked has gone
                continue
            if job.deadline < now:
                job.fail(f"{self._name}: no connection was free in {self._timeout:g} s")
                continue
            size += sum(map(len, job.command))
            jobs.append(job)
        return jobs

    async def _run(self, line: Line, jobs: list[Job]) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await line.run(jobs, self._answered)
        except (RedisError, OSError) as error:
            await line.drop()
            self._lost(jobs, str(error) or f"no answer in {self._timeout:g} s")
        except asyncio.CancelledError:
            for job in jobs:
                job.fail(f"{self._name}: closed")
            raise
        except Exception as error:  # as a task's root: whoever waits must hear of it, and the line goes on
            log.exception("commands to %s failed", self._name)
            await line.drop()
            self._lost(jobs, repr(error))
        else:
            self._losses = 0
            if not self._is_well:
                self._is_well = True
                log.warning("the state at %s answers again", self._name)

    def _lost(self, jobs: list[Job], cause: str) -> None:
        self._losses += 1
        now = monotonic()
        if self._losses >= _DOWN:
            self._try_at = now + _PROBE
        if self._is_well:
            self._is_well = False
            log.error("the state at %s is not reached: %s", self._name, cause)
        for job in reversed(jobs):
            self._try_again(job, cause)

    def _try_again(self, job: Job, cause: str) -> None:
        """One whose connection is lost: before all others, or not at all."""
        if job.future.done():
            return
        if (job.again or not job.is_sent) and not job.tries and monotonic() < job.deadline:
            job.tries += 1
            job.ran_before |= job.is_sent
            job.is_sent = False
            job.ask = None
            self._jobs.appendleft(job)
            self._call()
        else:
            job.fail(f"{self._name}: {cause}")

    def _answered(self, job: Job, answer: Any) -> None:
        if not isinstance(answer, Exception):
            if not job.future.done():
                job.future.set_result(answer)
        elif isinstance(answer, NoScriptError) and not job.whole:
            job.whole = True
            job.is_sent = False
            self._jobs.appendleft(job)
            self._call()
        elif isinstance(answer, LostError):
            self._try_again(job, str(answer))
        else:
            self._complain(str(answer))
            job.is_sent = False  # it was refused
            job.fail(f"{self._name}: {answer}")

    def _complain(self, refusal: str) -> None:
        now = monotonic()
        if now - self._complained >= _QUIET:
            self._complained = now
            log.error("the state at %s refuses a command: %s", self._name, refusal)


def _future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()
