"""What tasks of servers with sessions ask (2025-11-25), for stateless agents, who find it by `tasks/get`.

Rule: such a server asks on the stream of `tasks/result`, so that stream is held while a task needs input, by the worker
that began the task; requests that come to another one are put to it there (`task_away`). A key stands for one
question for ever: where a stream was lost, what is asked on the next one has other keys.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure
from tollhouse.core.http import Source
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.told import tell, unsupported
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import capabilities, mrtr

__all__ = ["Inputs"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_GATHER = 0.02  # seconds in which questions that come together are shown together
_ASKED = 2.0  # seconds for a server to ask what it says it needs
_QUESTIONS = 64

Open = Callable[[], Awaitable[tuple[ToolCall, Reply]]]
"""Opens the stream of `tasks/result`: the call it is of, which takes answers, and what comes. Raises Failure."""


class Inputs:
    """Of one worker. timeout: gives the seconds that a task may wait for its agent. limit, limit_each: streams held at
    once, in all and for one principal."""

    def __init__(self, clock: Clock, *, timeout: Callable[[], float], limit: int = 1000, limit_each: int = 16) -> None:
        self.timeout = timeout
        self._clock = clock
        self._limit = limit
        self._limit_each = limit_each
        self._pending: dict[str, _Pending] = {}
        self._of: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._pending)

    async def questions(self, task: str, profile: int, principal: str, open: Open) -> dict[str, mrtr.InputRequest]:
        """What `task` (our id) asks now; {} when it has not asked yet, or no more can be held. profile: what may be
        asked. Raises Failure."""
        pending = self._pending.get(task)
        if pending is None:
            if len(self._pending) >= self._limit or self._of.get(principal, 0) >= self._limit_each:
                log.warning("mcp: no more tasks are held for answers: %d in all", len(self._pending))
                return {}
            pending = self._pending[task] = _Pending(self, task, profile, principal)
            self._of[principal] = self._of.get(principal, 0) + 1
            self._clock.watch(pending)
            work = pending.work = asyncio.get_running_loop().create_task(pending.run(open), name="mcp task input")
            self._tasks.add(work)
            work.add_done_callback(self._tasks.discard)
        pending.deadline = self._clock.now + self.timeout()
        await pending.has_asked()
        if pending.failure is not None:
            raise pending.failure.copy()
        return pending.questions()

    def answer(self, task: str, answers: dict[str, msgspec.Raw]) -> None:
        """The agent's answers by key. Those to what is not asked, or not any more, are ignored."""
        pending = self._pending.get(task)
        if pending is not None:
            pending.deadline = self._clock.now + self.timeout()
            pending.answer(answers)

    def let_go(self, pending: "_Pending") -> None:
        if self._pending.pop(pending.task, None) is not None:
            self._clock.drop(pending)
            left = self._of.pop(pending.principal) - 1
            if left:
                self._of[pending.principal] = left

    async def closed(self) -> None:
        for pending in list(self._pending.values()):
            pending.close()
        if self._tasks:
            await asyncio.wait(list(self._tasks))


class _Pending:
    """One task that needs input: Sink of its `tasks/result`. Timed: its agent does not come."""

    __slots__ = (
        "_asked", "_call", "_of", "_open", "_over", "_prefix", "_source", "_started", "deadline", "failure",
        "principal", "profile", "task", "work",
    )  # fmt: skip

    def __init__(self, of: Inputs, task: str, profile: int, principal: str) -> None:
        self.task = task
        self.profile = profile
        self.principal = principal
        self.deadline = FOREVER
        self.failure: Failure | None = None
        self.work: asyncio.Task[None] | None = None
        self._of = of
        self._prefix = secrets.token_urlsafe(6)
        self._asked = 0
        self._open: dict[str, tuple[bytes, mrtr.InputRequest]] = {}
        self._started = asyncio.Event()
        self._over = False
        self._call: ToolCall | None = None
        self._source: Source | None = None

    async def run(self, open: Open) -> None:
        try:
            call, reply = await open()
        except Failure as failure:
            self.failure = failure.with_traceback(None)
            self.close()
            return
        except Exception:  # the root of a task: who waits for it sees that nothing was asked
            log.exception("mcp: a task cannot be asked what it needs")
            self.close()
            return
        self._call = call
        self._source = reply.source
        if reply.first:
            self.send(reply.first)
        if self._source is not None:
            self._source.start(self)
        else:
            self.close()

    async def has_asked(self) -> None:
        """Return once it asks something, or does not do so for a while."""
        if self._started.is_set():
            return
        try:
            async with asyncio.timeout(_ASKED):
                await self._started.wait()
            await asyncio.sleep(_GATHER)
        except TimeoutError:
            pass

    def questions(self) -> dict[str, mrtr.InputRequest]:
        return {key: request for key, (_, request) in self._open.items()}

    def answer(self, answers: dict[str, msgspec.Raw]) -> None:
        for key in [key for key in answers if key in self._open]:
            id, _ = self._open.pop(key)
            tell(self._call, jsonrpc.result(id, answers[key]))

    # ---- Sink
    def send(self, data: bytes) -> None:
        if self._over or not data:
            return
        try:
            message = jsonrpc.decode(data)
            if message.is_request:
                self._take(message)
            elif message.is_response:
                self.close()  # it is done: what came of it is asked for by who wants it
        except jsonrpc.Malformed as problem:
            log.warning("mcp: a task asks what cannot be read: %s", problem.message)
            self.close()

    def end(self, failure: Failure | None = None) -> None:
        self._source = None
        self.close()

    def _take(self, message: jsonrpc.Message) -> None:
        id = bytes(message.id)
        if not capabilities.allows(self.profile, message.method, message.params):
            tell(self._call, unsupported(message))
            return
        request = mrtr.as_input_request(message)
        if len(self._open) >= _QUESTIONS:
            tell(self._call, mrtr.given_up(id, message.method))
            return
        self._asked += 1
        self._open[f"{self._prefix}-{self._asked}"] = (id, request)
        self._started.set()

    # ---- the end
    def expire(self) -> None:
        for id, request in self._open.values():
            tell(self._call, mrtr.given_up(id, request.method))
        self.close()

    def close(self) -> None:
        if self._over:
            return
        self._over = True
        self.deadline = FOREVER
        self._open.clear()
        self._call = None
        self._started.set()
        source, self._source = self._source, None
        if source is not None:
            source.close()
        work, self.work = self.work, None
        if work is not None and work is not asyncio.current_task():
            work.cancel()
        self._of.let_go(self)
