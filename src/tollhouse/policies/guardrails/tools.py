"""Guards before and behind MCP servers, and tools of HTTP APIs.

Rule: a message is looked at whole, and leaves whole: what a server says within a call (its answer, progress, log lines,
questions to the agent) passes in its order. JSON stays JSON.
"""

import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.policies.guardrails.acts import Acts, Counts
from tollhouse.policies.guardrails.answers import Answers
from tollhouse.policies.guardrails.asking import Asked, entries_of
from tollhouse.policies.guardrails.between import Between
from tollhouse.policies.guardrails.failures import asked_about, looked_at
from tollhouse.policies.guardrails.plan import Plan
from tollhouse.policies.guardrails.requests import Requests
from tollhouse.policies.guardrails.turned_back import Making, TurnedBack
from tollhouse.wire import jsonrpc
from tollhouse.wire.guard.llm.texts import FieldTexts, Texts
from tollhouse.wire.guard.mcp import message_texts, request_texts

__all__ = ["Passing", "ToolAnswers", "ToolRequests"]

log = logging.getLogger("tollhouse.policies.guardrails")

_TRACED = re.compile(rb'"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"').fullmatch  # numbers, not words
_AHEAD = 16  # messages that wait for a check before the server is paused


Outgoing = Callable[[ToolCall, bytes, Callable[[bytes], None]], None]
"""`core.call.ToolCall.outgoing`"""


class ToolRequests(Requests[ToolCall]):
    """What goes out to servers, and what of their answers is turned back."""

    def __init__(self, plan: Plan, counts: Counts, making: Making, back: TurnedBack | None) -> None:
        super().__init__(plan, counts, making, back)
        self._answers = Answers(plan) if plan.patterns or any(not check.whole for check in plan.checks) else None

    async def close(self) -> None:
        """Nobody asks any more."""
        if self._answers is not None:
            await self._answers.close()

    def handle(self, call: ToolCall, next: Handler[Any, Reply]) -> Awaitable[Reply]:
        """Raises Failure: 403 for what is refused, 503 where a guard could not run."""
        if call.connects:
            return next(call)  # the tool is ours
        plan = self._plan
        acts = Acts(call.context, "request", self._counts)
        if plan.reversible:
            acts.make = partial(self._making, call)
        if self._answers is not None:
            call.outgoing = _one_more(call.outgoing, partial(self._answers.looked_at, acts))
        return self._looked_at(call, next, acts)

    def _read(self, call: ToolCall) -> FieldTexts:
        return request_texts(call.method, _fields(call))

    def _put(self, call: ToolCall, fields: dict[str, Any]) -> None:
        meta = fields.pop("_meta", None)
        if meta is not None:
            kept = {key: value for key, value in (call.meta or {}).items() if _is_traced(key, value)}
            call.meta = {**kept, **jsonrpc.decode_fields(meta)}
        if fields:
            call.asked = call.asked or (call.name, call.arguments)
            if "uri" in fields:  # it is told beside the parameters, too
                call.name = jsonrpc.decode_string(fields["uri"]) or call.name
            call.params.update(fields)
            call.decoded = None
            if len(call.arguments):
                call.context.arguments = call.arguments

    def _is_followed(self, acts: Acts) -> bool:
        return self._plan.reversible

    async def _followed(self, call: ToolCall, answer: Awaitable[Reply], acts: Acts) -> Reply:
        reply = await answer
        # What the agent answers to questions of the server, while it streams, may be masked as well.
        if self._back is not None and (acts.placeholders is not None or reply.source is not None):
            Passing(partial(_turned_back, call.method, self._back, acts), None).over(reply)
        return reply


class ToolAnswers:
    """What comes back from servers."""

    def __init__(self, plan: Plan, counts: Counts) -> None:
        self._plan = plan
        self._counts = counts

    async def handle(self, call: ToolCall, next: Handler[Any, Reply]) -> Reply:
        """Raises Failure: 403 for what is refused, 503 where a guard could not run."""
        if call.connects:
            return await next(call)
        plan = self._plan
        acts = Acts(call.context, "response", self._counts)
        try:
            reply = await next(call)
        except Failure as failure:
            raise await self._failed(failure.with_traceback(None), call, acts) from None
        passing = Passing(partial(_looked_at, call.method, plan, acts), acts, checks=plan.checks, call=call, plan=plan)
        if plan.checks and reply.first:
            await passing.over_checked(reply)
        else:
            passing.over(reply)
        return reply

    async def _failed(self, failure: Failure, call: ToolCall, acts: Acts) -> Failure:
        """What is said of a call that failed. Raises Failure where that is refused."""
        try:
            return await asked_about(looked_at(failure, self._plan, acts), self._plan, acts, call)
        finally:
            acts.done()


Look = Callable[[bytes], tuple[Texts | None, dict[Any, str]]]
"""The texts of a message, and those that are others; None for one that passes as it is. Raises Failure."""


class Passing(Between):
    """The messages of a Reply on their way: Source for who reads, Sink of the server. look: at each. checks: that are
    asked about what is left, by `call` under `plan`."""

    __slots__ = ("_call", "_checks", "_look", "_plan", "_queue")

    def __init__(
        self,
        look: Look,
        acts: Acts | None,
        *,
        checks: Sequence[Asked] = (),
        call: ToolCall | None = None,
        plan: Plan | None = None,
    ) -> None:
        super().__init__(acts)
        self._look = look
        self._checks = tuple(checks)
        self._call = call
        self._plan = plan
        self._queue: deque[bytes] = deque()

    def over(self, reply: Reply) -> None:
        """Stand between the Reply and whoever gets it. Raises Failure; the Reply is closed then."""
        try:
            first = self._begun(reply)
            reply.first = self._looked_at(first) if first else b""
        except Failure as failure:
            self._close(reply, failure)
            raise
        self._whole(reply)

    async def over_checked(self, reply: Reply) -> None:
        """The same, with the checks asked about the first message before it is given out."""
        try:
            first = self._begun(reply)
            reply.first = await self._checked(first) if first else b""
        except Failure as failure:
            self._close(reply, failure)
            raise
        except BaseException:  # its caller has left
            if self._acts is not None:
                self._acts.done()
            reply.close(Ending(499, Reason.CLIENT_GONE, gone=True))
            raise
        self._whole(reply)

    def _begun(self, reply: Reply) -> bytes:
        first = reply.first
        for tap in reply.taps or ():
            first = tap(first) if first else first
        if reply.source is not None:
            self._source, reply.source = reply.source, self
            reply.taps = self.taps
        else:
            reply.taps = None
        return first

    def _whole(self, reply: Reply) -> None:
        if self._acts is None:
            return
        if reply.source is None:
            self._acts.done()
        else:
            reply.ends.insert(0, self._settle)

    def _close(self, reply: Reply, failure: Failure) -> None:
        if self._acts is not None:
            self._acts.done()
        reply.close(Ending(failure.status, failure.reason, 0, failure))

    # ---- Sink
    def send(self, data: bytes) -> None:
        if self._sink is None:
            return
        if self._checks:
            self._queue.append(data)
            self._go_on()
            return
        try:
            self._give(self._looked_at(data) if data else data)
        except Failure as failure:
            self._refuse(failure.copy())

    def end(self, failure: Failure | None = None) -> None:
        self._source = None
        self._ended = True
        self._failure = failure = self._worded(failure)
        if not self._queue and self._task is None:
            self._over(failure)

    def _worded(self, failure: Failure | None) -> Failure | None:
        """Why the server's stream has ended, as it may be told."""
        if failure is None or self._plan is None or self._acts is None:
            return failure
        try:
            return looked_at(failure, self._plan, self._acts)
        except Failure as refused:
            return refused.copy()

    def _give(self, data: bytes) -> None:
        for tap in self.taps if data else ():
            data = tap(data)
        if self._sink is not None:
            self._sink.send(data)

    def _looked_at(self, data: bytes) -> bytes:
        texts, changed = self._look(data)
        return data if texts is None else texts.replaced(changed)

    async def _checked(self, data: bytes) -> bytes:
        texts, changed = self._look(data)
        if texts is None:
            return data
        if texts.pieces and self._plan is not None and self._acts is not None and self._call is not None:
            changed |= await self._plan.ask(self._checks, entries_of(texts, changed), self._acts, self._call)
        return texts.replaced(changed)

    # ---- what has to be waited for
    def _go_on(self) -> None:
        self._begin()
        self._hold()

    def _is_behind(self) -> bool:
        return len(self._queue) >= _AHEAD

    async def _work(self) -> None:
        while self._queue:
            data = self._queue.popleft()
            self._give(await self._checked(data) if data else data)
            self._wake()

    def _drop(self) -> None:
        self._queue.clear()


def _looked_at(method: str, plan: Plan, acts: Acts, message: bytes) -> tuple[Texts, dict[Any, str]]:
    return plan.looked_at(acts, message_texts, method, message)


def _turned_back(method: str, back: TurnedBack, acts: Acts, message: bytes) -> tuple[Texts | None, dict[Any, str]]:
    placeholders = acts.placeholders
    if placeholders is None:
        return None, {}
    try:
        texts = message_texts(method, message)
    except ValueError:
        return None, {}
    return texts, back.new(texts, placeholders)


def _one_more(first: Outgoing | None, then: Outgoing) -> Outgoing:
    """A call that another tool answers goes on with what the first one's guards do."""
    return (
        then if first is None else lambda call, message, send: first(call, message, lambda told: then(call, told, send))
    )


def _fields(call: ToolCall) -> dict[str, msgspec.Raw]:
    """What goes out: with what of `_meta` agents and servers have agreed on between them, as one more field."""
    meta = call.meta
    if not meta:
        return call.params
    own = {key: value for key, value in meta.items() if not _is_traced(key, value)}
    if not own:
        return call.params
    return {**call.params, "_meta": msgspec.Raw(jsonrpc.encode_fields(own))}


def _is_traced(key: str, value: msgspec.Raw) -> bool:
    return key == "traceparent" and _TRACED(bytes(value)) is not None
