"""A call whose agent may lose its connection and come back (2025-11-25): it runs in a task of its own.

Rule: an agent that leaves has not cancelled its request; only `notifications/cancelled` does that. What is answered
soon is answered as any other call. What takes its time is answered by a stream before there is anything to say, so that
the agent has an id to come back with; and it goes on whether it is read or not, as far as its session has room.
"""

import asyncio
import logging
from collections.abc import Callable

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending, Response, finish
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.agent import Session
from tollhouse.endpoints.mcp.in_flight import InFlight
from tollhouse.endpoints.mcp.replay import ResumableAnswer
from tollhouse.endpoints.mcp.request import Asking, Refused
from tollhouse.wire import jsonrpc

__all__ = ["Carried", "over"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_SOON = 0.25  # seconds within which most tools answer: before that nothing is sent, and an answer may be plain JSON

Hold = Callable[["ResumableAnswer"], None]
"""Writes down for whom it is there, until it has ended."""

Told = Callable[[Reply], tuple[Reply, bytes | None]]
"""What a server's Reply is to the agent, and its first message as the agent is told it. Raises Failure."""


class Carried:
    """`call`, put to `chain` for the session of `asking`. Timed until its answer begins. told, hold: see their types.
    Made within the task of the request, which must `wait`."""

    __slots__ = (
        "_answer", "_asking", "_clock", "_ending", "_hold", "_in_flight", "_problem", "_reply", "_session", "_task",
        "_told", "_waiter", "deadline",
    )  # fmt: skip

    def __init__(
        self,
        asking: Asking,
        session: Session,
        in_flight: InFlight,
        clock: Clock,
        chain: Handler[ToolCall, Reply],
        call: ToolCall,
        told: Told,
        hold: Hold,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._asking = asking
        self._session = session
        self._in_flight = in_flight
        self._clock = clock
        self._told = told
        self._hold = hold
        self._ending = session.ending
        self._answer: ResumableAnswer | None = None
        self._reply: Reply | None = None
        self._problem: Failure | Refused | jsonrpc.Malformed | None = None
        self._waiter: asyncio.Future[None] | None = loop.create_future()
        self._task: asyncio.Task[None] | None = loop.create_task(self._run(chain, call))
        in_flight.task, in_flight.answer = None, self
        self.deadline = clock.now + _SOON
        clock.hurry(self)  # which is enough for so short a time

    async def wait(self) -> Reply | Response:
        """What the server has answered soon, else the stream on which it will be told. Raises as the call does."""
        waiter = self._waiter
        assert waiter is not None
        try:
            await waiter
        except asyncio.CancelledError:
            self._left()
            raise
        finally:
            self._waiter = None
        problem, self._problem = self._problem, None
        if problem is not None:
            try:
                raise problem
            finally:
                del problem
        reply, self._reply = self._reply, None
        if reply is not None:
            return reply
        assert self._answer is not None
        return self._answer.response()

    # ---- the task
    async def _run(self, chain: Handler[ToolCall, Reply], call: ToolCall) -> None:
        try:
            reply = await chain(call)
        except asyncio.CancelledError:  # by the agent, or by the end of its session, who have nobody wait for this
            self._failed(Failure(499, Reason.CLIENT_GONE, "the request was cancelled"))
        except (Failure, Refused, jsonrpc.Malformed) as problem:
            self._failed(problem.with_traceback(None))
        except Exception:  # the root of a task: the agent waits for what it says
            log.exception("mcp: a call could not be answered")
            self._failed(Failure(500, Reason.INTERNAL, "internal error"))
        else:
            self._came(reply)

    def _came(self, reply: Reply) -> None:
        if self._done():
            self._reply = reply
            self._wake()
            return
        answer = self._answer
        assert answer is not None
        try:
            reply, first = self._told(reply)
        except Failure as failure:
            answer.end(failure.with_traceback(None))
        else:
            answer.follow(reply, first)

    def _failed(self, problem: Failure | Refused | jsonrpc.Malformed) -> None:
        answer = self._answer
        if self._done():
            self._problem = problem
            self._wake()
        elif answer is None or answer.over:
            pass
        elif isinstance(problem, Failure):
            answer.end(problem)
        else:
            data = problem.data if isinstance(problem, Refused) else None
            answer.close_with(jsonrpc.error(self._asking.id, problem.code, problem.message, data))

    def _done(self) -> bool:
        """The work is done: whether the request still waits for it."""
        self._task = None
        if self._in_flight.answer is self:
            self._in_flight.answer = None
        return self._awaited()

    def _awaited(self) -> bool:
        self.deadline = FOREVER
        self._clock.drop(self)
        return self._waiter is not None and not self._waiter.done()

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.set_result(None)

    def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            self._ending(task)

    def cut(self, failure: Failure) -> None:
        """The agent has cancelled its request, or its session ends, before there was an answer."""
        if self._awaited():
            self._problem = failure
            self._wake()
        self._stop()

    def lapse(self, failure: Failure) -> None:
        """Who asked is no longer good: the request ends with that."""
        self._asking.request.context.stopped = failure.copy()
        self.cut(failure)

    # ---- its answer
    def expire(self) -> None:
        """It takes its time."""
        if self._waiter is not None and not self._waiter.done() and self._session.open:
            self._begin()
            self._waiter.set_result(None)

    def _begin(self) -> ResumableAnswer:
        self.deadline = FOREVER
        self._clock.drop(self)
        asking, in_flight = self._asking, self._in_flight
        request = asking.request
        left: list[Ending] = []  # how the exchange ended, where that was before the call
        request.ends.append(left.append)

        def ended(failure: Failure | None) -> None:
            context = request.context
            if not context.mcp_outcome:
                context.mcp_outcome = "cancelled"
            over(asking, in_flight)
            if left and request.ends:  # what became due for the request after its end
                reason = failure.reason if failure is not None else Reason.UPSTREAM
                try:
                    finish(request.ends, Ending(200, reason, 0, failure))
                except Failure as unsettled:
                    log.error("the end of a call could not be settled: %s", unsettled.detail or unsettled.message)

        tell, failed = asking.tell, asking.failed
        answer = self._answer = self._session.answer(
            None, None, id=asking.id, tell=tell, failed=failed, ended=ended, call=asking.call, token=asking.token,
            stop=self._stop,
        )  # fmt: skip
        in_flight.answer = answer
        self._hold(answer)
        return answer

    def _left(self) -> None:
        """The request is answered by nobody else: its connection is gone, or it was stopped."""
        reply, self._reply = self._reply, None
        over_already = self._problem is not None or (reply is not None and reply.source is None)
        if over_already or not self._session.open or self._asking.request.context.stopped is not None:
            self._stop()
            if reply is not None:
                reply.close(Ending(499, Reason.CLIENT_GONE, gone=True))
            over(self._asking, self._in_flight)
            return
        answer = self._answer
        if answer is None:
            answer = self._begin()
            answer.is_known = False
        answer.begin()
        if not answer.left():
            if reply is not None:
                reply.close(Ending(499, Reason.CLIENT_GONE, gone=True))
        elif reply is not None:
            self._came(reply)


def over(asking: Asking, in_flight: InFlight | None) -> None:
    """The request is answered, or will not be."""
    told, asking.over = asking.over, None
    if told is not None:
        told(asking.request.context.mcp_outcome == "ok")
    session = asking.session
    if in_flight is None or session is None:
        return
    latest = session.calls.get(asking.id)
    if latest is not None:
        left = latest.without(in_flight)
        if left is None:
            del session.calls[asking.id]
        else:
            session.calls[asking.id] = left
        session.touch()
