"""The tasks that work for one MCP server.

Rule: each has an owner, that knows how many there are, hears how they end, and at its own end waits for them or cancels
them.
"""

import asyncio
import logging
from collections.abc import Coroutine
from time import monotonic
from typing import Any

from tollhouse.backends.mcp.heal import UNAVAILABLE, said
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire import jsonrpc

__all__ = ["Working"]

log = logging.getLogger("tollhouse.backends.mcp")

_MAX_TASKS = 1024
_ENDING = 10.0  # seconds for children and sessions to end
_WARN_EVERY = 10.0
_OUTAGE = 60.0  # seconds without a word of it after which an outage is another one
_REASONS = 8  # of one outage that are logged


class Working:
    """The owner. name: the server's, for messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._warned = -_WARN_EVERY
        self._outage: set[str] = set()  # why the server cannot be reached, as far as the log knows
        self._outage_at = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._cut: set[asyncio.Task[Any]] = set()  # of those, the ones that need not come to their end

    @property
    def streams(self) -> int:
        """How many tasks there may be beyond the bound: every session may have one for its stream."""
        return 0

    def later(self, work: Coroutine[Any, Any, Any], *, cut: bool = False, always: bool = False) -> bool:
        """`spawn`, for work that nobody waits for and whose failure concerns nobody but the log. False: it is not done,
        because far too much is."""
        try:
            task = self.spawn(self.quietly(work), cut=cut, always=always)
        except Failure as failure:
            work.close()
            now = monotonic()
            if now - self._warned > _WARN_EVERY:
                self._warned = now
                log.warning("mcp server %s: %s", self.name, said(failure))
            return False
        task.set_name(f"mcp {self.name}")
        return True

    def spawn(self, work: Coroutine[Any, Any, Any], *, cut: bool = False, always: bool = False) -> "asyncio.Task[Any]":
        """Run `work` as a task of this server; `finish` waits for it, or cancels it if `cut`. always: something else
        bounds how many of its kind there are. Raises Failure 503 when far too many run."""
        if not always and len(self._tasks) - self.streams >= _MAX_TASKS:
            work.close()
            raise Failure(
                503,
                Reason.UPSTREAM_FAILURE,
                f"{self.name}: too much is waiting for the server",
                retry=True,
                reached=False,
            )
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        if cut:
            self._cut.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        self._cut.discard(task)
        if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), Failure):
            log.error("mcp server %s: internal error", self.name, exc_info=task.exception())

    async def quietly(self, work: Coroutine[Any, Any, Any]) -> None:
        """Work whose failure concerns nobody but the log."""
        try:
            await work
        except Failure as failure:
            if self.news(failure):
                log.info("mcp server %s: %s", self.name, said(failure))
        except jsonrpc.Malformed as problem:
            log.info("mcp server %s: %s", self.name, problem)

    def news(self, failure: Failure) -> bool:
        """Whether the log is to have it: that the server cannot be reached it says once, of each reason, until
        `reached`."""
        if failure.reached:
            return True
        now = monotonic()
        if now - self._outage_at > _OUTAGE:
            self._outage.clear()
        self._outage_at = now
        why = said(failure)
        known = why in self._outage or (self._outage and failure.code == UNAVAILABLE)
        if known or len(self._outage) >= _REASONS:
            return False
        self._outage.add(why)
        return True

    def reached(self) -> None:
        """The server is up."""
        if self._outage:
            self._outage.clear()
            log.info("mcp server %s: it is reached again", self.name)

    async def patiently(self, task: "asyncio.Task[Any]", deadline: float, why: str) -> Any:
        """The result of a task that others may wait for too. Raises Failure."""
        done, _ = await asyncio.wait([task], timeout=max(0.0, deadline - monotonic()))
        if not done:
            raise Failure(504, Reason.TIMEOUT, f"{self.name}: {why}", retry=True)
        if task.cancelled():
            raise self.removed()
        error = task.exception()
        if isinstance(error, Failure):  # each waiter its own: a raised one refers back to who raises it
            raise error.copy()
        return task.result()

    def removed(self) -> Failure:
        return Failure(
            503,
            Reason.UPSTREAM_FAILURE,
            f"{self.name}: the server was removed",
            code=UNAVAILABLE,
            retry=True,
            reached=False,
        )

    async def finish(self) -> None:
        """Cancel what need not come to its end, and wait for the rest; whatever is late is cancelled too."""
        for task in self._cut:
            task.cancel()
        while self._tasks:
            _, late = await asyncio.wait(list(self._tasks), timeout=_ENDING)
            for task in late:  # whatever it is: nobody waits for ever
                task.cancel()
