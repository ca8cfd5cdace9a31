"""The call of a stateless agent that can be asked things, over Streamable HTTP.

Rule: a server may ask on the stream outside of calls before it has begun to answer: what it asks then is this call's,
if no other runs. Only such calls have a task of their own.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tollhouse.backends.mcp.heal import CALL_LOST
from tollhouse.backends.mcp.http_exchange import Exchanging
from tollhouse.backends.mcp.messages import Messages
from tollhouse.backends.mcp.session import Expired
from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Source
from tollhouse.core.reply import Reply

__all__ = ["Early", "interactive"]

_Outcome = Reply | Failure | Expired


async def interactive(
    call: ToolCall, ask: Callable[[], Awaitable[Reply]], early: "list[Early]", session: Exchanging
) -> Reply:
    """The answer that `ask` gets to `call`, or before it the first question. early: the calls of the session that are
    not being answered yet. Raises as `ask` does."""
    mine = Early(call)
    task = mine.task = session.upstream.spawn(_carried(ask), cut=True)
    early.append(mine)
    try:
        await asyncio.wait((task, mine.asked), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        task.cancel()
        raise
    finally:
        if task.done() or not mine.asked.done():
            early.remove(mine)
    if not mine.asked.done():
        mine.close()
        outcome = task.result()
        if isinstance(outcome, Reply):
            return outcome
        raise outcome
    call.answer = session.tell
    first = await mine.first()
    task.add_done_callback(partial(_answered, mine, early))
    return mine.reply(first)


async def _carried(ask: Callable[[], Awaitable[Reply]]) -> _Outcome:
    try:
        return await ask()
    except (Failure, Expired) as problem:
        return problem.with_traceback(None)


def _answered(mine: "Early", early: "list[Early]", task: "asyncio.Task[_Outcome]") -> None:
    """The server has begun to answer a call within which it has asked already."""
    if mine in early:
        early.remove(mine)
    mine.begun(None if task.cancelled() else task.result())


class Early(Messages):
    """A call within which the server may ask before it answers: then Sink of the answer. task: carries it. asked: done
    with the first question."""

    __slots__ = ("_answer", "asked", "task")

    def __init__(self, call: ToolCall) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop.create_future(), call)
        self.asked: asyncio.Future[None] = loop.create_future()
        self.task: asyncio.Task[Any] | None = None
        self._answer: Source | None = None

    def push(self, message: bytes, *, droppable: bool = False) -> None:
        super().push(message, droppable=droppable)
        if not self.asked.done():
            self.asked.set_result(None)

    def begun(self, outcome: "_Outcome | None") -> None:
        if self.over:
            if isinstance(outcome, Reply) and outcome.source is not None:
                outcome.source.close()
        elif isinstance(outcome, Reply):
            self.push(outcome.first)
            self._answer = outcome.source
            if outcome.source is None:
                self.finish()
            else:
                outcome.source.start(self)
        elif isinstance(outcome, Failure):
            self.finish(outcome)
        else:
            why = "the server forgot the session in which it had asked" if outcome is not None else "it was removed"
            self.finish(Failure(502, Reason.UPSTREAM_FAILURE, why, code=CALL_LOST, sent=True))

    def send(self, data: bytes) -> None:
        self.push(data)

    def end(self, failure: Failure | None = None) -> None:
        self._answer = None
        self.finish(failure)

    def quit(self, call: ToolCall | None) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.close()
        elif self.task is not None:
            self.task.cancel()

    def allow(self, seconds: float) -> None:
        answer = self._answer
        if isinstance(answer, Messages):
            answer.allow(seconds)

    def expire(self) -> None:
        """Never watched: the exchange has the deadline."""
