"""What agents answer to questions that servers ask within a call.

Rule: it goes out as every request does, or an error in its place: the server gets an answer, whatever guards say.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure
from tollhouse.policies.guardrails.acts import Acts
from tollhouse.policies.guardrails.asking import Asked, entries_of
from tollhouse.policies.guardrails.plan import Plan
from tollhouse.policies.stop import stop
from tollhouse.wire import jsonrpc
from tollhouse.wire.guard.llm.texts import Texts
from tollhouse.wire.guard.mcp import message_texts

__all__ = ["Answers", "refused"]

log = logging.getLogger("tollhouse.policies.guardrails")

_MOST = 256  # that are looked at at once


class Answers:
    """Of one chain."""

    __slots__ = ("_checks", "_plan", "_tasks")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._checks: Sequence[Asked] = tuple(check for check in plan.checks if not check.whole)
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Nobody answers any more."""
        await stop(self._tasks)

    def looked_at(self, acts: Acts, call: ToolCall, message: bytes, send: Callable[[bytes], None]) -> None:
        """`core.call.ToolCall.outgoing`, with what is noted of that call."""
        try:
            texts = message_texts("", message)
            changed = self._plan.scan(texts.pieces, acts)
        except (Failure, ValueError) as error:
            send(refused(message, error))
            return
        if not self._checks or not texts.pieces:
            send(texts.replaced(changed))
        elif len(self._tasks) >= _MOST:
            send(refused(message, ValueError("too many answers are looked at")))
        else:
            work = self._asked(call, acts, texts, changed, message, send)
            task = asyncio.get_running_loop().create_task(work, name="guards of an agent's answer")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _asked(
        self,
        call: ToolCall,
        acts: Acts,
        texts: Texts,
        changed: dict[Any, str],
        message: bytes,
        send: Callable[[bytes], None],
    ) -> None:
        try:
            changed |= await self._plan.ask(self._checks, entries_of(texts, changed), acts, call)
            told = texts.replaced(changed)
        except Failure as failure:
            told = refused(message, failure)
        except Exception:  # a task's root: the server waits for an answer
            log.exception("a guard failed on an agent's answer")
            told = refused(message, ValueError("internal error"))
        send(told)


def refused(message: bytes, error: Failure | ValueError) -> bytes:
    """An error in the place of an agent's answer."""
    told = error.message if isinstance(error, Failure) else "the answer cannot be looked at"
    return jsonrpc.error(bytes(jsonrpc.decode(message).id), jsonrpc.INTERNAL_ERROR, told)
