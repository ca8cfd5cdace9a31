"""Guards before and behind MCP servers, and tools of HTTP APIs.

Rule: a message is looked at whole, and leaves whole: what a server says within a call (its answer, progress, log lines,
questions to the agent) passes in its order. JSON stays JSON.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending, Sink, Source
from tollhouse.core.reply import Reply, Tap
from tollhouse.policies.guardrails.acts import Acts, Counts
from tollhouse.policies.guardrails.asking import Asked, Entry
from tollhouse.policies.guardrails.beside import beside
from tollhouse.policies.guardrails.plan import Plan
from tollhouse.policies.guardrails.turned_back import Making, TurnedBack
from tollhouse.wire import jsonrpc
from tollhouse.wire.guard.llm.texts import FieldTexts, Texts
from tollhouse.wire.guard.mcp import message_texts, request_texts
from tollhouse.wire.guard.placeholders import Placeholders

__all__ = ["Passing", "ToolAnswers", "ToolRequests"]

log = logging.getLogger("tollhouse.policies.guardrails")

_TRACE = frozenset(("traceparent", "tracestate"))  # numbers of `_meta` that anything might match
_AHEAD = 16  # messages that wait for a check before the server is paused


class ToolRequests:
    """What goes out to servers, and what of their answers is turned back."""

    def __init__(self, plan: Plan, counts: Counts, making: Making, back: TurnedBack | None) -> None:
        self._plan = plan
        self._counts = counts
        self._making = making
        self._back = back
        self._first = tuple(check for check in plan.checks if not check.parallel)
        self._beside = tuple(check for check in plan.checks if check.parallel)

    def handle(self, call: ToolCall, next: Handler[Any, Reply]) -> Awaitable[Reply]:
        """Raises Failure: 403 for what is refused, 503 where a guard could not run."""
        if call.connects:
            return next(call)  # the tool is ours
        plan = self._plan
        acts = Acts(call.context, "request", self._counts)
        if plan.reversible:
            acts.make = partial(self._making, call)
        if plan.patterns:
            call.outgoing = partial(_outgoing, plan, acts)
        try:
            try:
                texts = request_texts(call.method, _fields(call))
            except ValueError as error:
                raise acts.overfull(f"the request cannot be read: {error}") from None
            if not texts.pieces and not texts.opaque:
                _put(call, texts.replaced({}))
                return next(call)
            if texts.opaque:
                acts.unseen(f"{next_kind(texts)} in the request", passes=plan.opaque)
            changed = plan.scan(texts.pieces, acts)
            if plan.checks:
                return self._asked(call, next, acts, texts, changed)
            _put(call, texts.replaced(changed))
        except Failure:
            acts.done()
            raise
        acts.done()
        if acts.placeholders is not None:
            return self._followed(call, next(call), acts.placeholders)
        return next(call)

    async def _asked(
        self, call: ToolCall, next: Handler[Any, Reply], acts: Acts, texts: FieldTexts, changed: dict[Any, str]
    ) -> Reply:
        try:
            entries = _entries(texts, changed)
            if self._first:
                changed |= await self._plan.ask(self._first, entries, acts, call)
            _put(call, texts.replaced(changed))
            if self._beside:
                asked = self._plan.ask(self._beside, entries, acts, call)
                return await self._followed(call, beside(asked, next, call), acts.placeholders)
        finally:
            acts.done()
        return await self._followed(call, next(call), acts.placeholders)

    async def _followed(self, call: ToolCall, answer: Awaitable[Reply], placeholders: Placeholders | None) -> Reply:
        reply = await answer
        if placeholders is not None and self._back is not None:
            Passing(partial(_turned_back, call.method, self._back, placeholders), None).over(reply)
        return reply


class ToolAnswers:
    """What comes back from servers."""

    def __init__(self, plan: Plan, counts: Counts) -> None:
        self._plan = plan
        self._counts = counts

    async def handle(self, call: ToolCall, next: Handler[Any, Reply]) -> Reply:
        """Raises Failure: 403 for what is refused, 503 where a guard could not run."""
        reply = await next(call)
        if call.connects:
            return reply
        plan = self._plan
        acts = Acts(call.context, "response", self._counts)
        passing = Passing(partial(_looked_at, call.method, plan, acts), acts, checks=plan.checks, call=call, plan=plan)
        if plan.checks and reply.first:
            await passing.over_checked(reply)
        else:
            passing.over(reply)
        return reply


Look = Callable[[bytes], tuple[Texts | None, dict[Any, str]]]
"""The texts of a message, and those that are others; None for one that passes as it is. Raises Failure."""


class Passing:
    """The messages of a Reply on their way: Source for who reads, Sink of the server. look: at each. checks: that are
    asked about what is left, by `call` under `plan`."""

    __slots__ = (
        "_acts", "_call", "_checks", "_ended", "_failure", "_look", "_paused", "_plan", "_queue", "_sink", "_source",
        "_task", "taps",
    )  # fmt: skip

    def __init__(
        self,
        look: Look,
        acts: Acts | None,
        *,
        checks: Sequence[Asked] = (),
        call: ToolCall | None = None,
        plan: Plan | None = None,
    ) -> None:
        self._look = look
        self._acts = acts
        self._checks = tuple(checks)
        self._call = call
        self._plan = plan
        self._queue: deque[bytes] = deque()
        self._source: Source | None = None
        self._sink: Sink | None = None
        self._task: asyncio.Task[None] | None = None
        self._paused = False
        self._ended = False
        self._failure: Failure | None = None
        self.taps: list[Tap] = []

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

    @property
    def behind(self) -> Source | None:
        """What it stands before (`core.reply.innermost`)."""
        return self._source

    # ---- Source
    def start(self, sink: Sink) -> None:
        self._sink = sink
        if self._source is not None:
            self._source.start(self)

    def pause(self) -> None:
        self._paused = True
        if self._source is not None:
            self._source.pause()

    def resume(self) -> None:
        self._paused = False
        if self._source is not None and len(self._queue) < _AHEAD:
            self._source.resume()

    def close(self) -> None:
        self._sink = None
        self._queue.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        source, self._source = self._source, None
        if source is not None:
            source.close()

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
        self._failure = failure
        if not self._queue and self._task is None:
            self._over(failure)

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
            changed |= await self._plan.ask(self._checks, _entries(texts, changed), self._acts, self._call)
        return texts.replaced(changed)

    # ---- what has to be waited for
    def _go_on(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._ask(), name="guards of an answer")
        if len(self._queue) >= _AHEAD and self._source is not None:
            self._source.pause()

    async def _ask(self) -> None:
        try:
            while self._queue:
                data = self._queue.popleft()
                self._give(await self._checked(data) if data else data)
                if self._source is not None and not self._paused and len(self._queue) < _AHEAD:
                    self._source.resume()
            self._task = None
            if self._ended:
                self._over(self._failure)
        except Failure as failure:
            self._task = None
            self._refuse(failure.copy())
        except Exception:  # a task's root: the agent must get an end all the same, and nothing unlooked at
            log.exception("a guard failed on an answer")
            self._task = None
            self._refuse(Failure(500, Reason.INTERNAL, "internal error"))

    # ---- the end
    def _refuse(self, failure: Failure) -> None:
        self._queue.clear()
        source, self._source = self._source, None
        if source is not None:
            source.close()
        self._over(failure)

    def _over(self, failure: Failure | None) -> None:
        sink, self._sink = self._sink, None
        self.taps = []
        self._failure = None
        if sink is not None:
            sink.end(failure)

    def _settle(self, _: Ending) -> None:
        if self._acts is not None:
            self._acts.done()


def _looked_at(method: str, plan: Plan, acts: Acts, message: bytes) -> tuple[Texts, dict[Any, str]]:
    try:
        texts = message_texts(method, message)
    except ValueError as error:
        raise acts.overfull(f"the answer cannot be read: {error}") from None
    if texts.opaque:
        acts.unseen(f"{next_kind(texts)} in the answer", passes=plan.opaque)
    return texts, plan.scan(texts.pieces, acts)


def _turned_back(
    method: str, back: TurnedBack, placeholders: Placeholders, message: bytes
) -> tuple[Texts | None, dict[Any, str]]:
    try:
        texts = message_texts(method, message)
    except ValueError:
        return None, {}
    return texts, back.new(texts, placeholders)


def _outgoing(plan: Plan, acts: Acts, message: bytes) -> bytes:
    """A response of the agent's to what the server asks within the call: masked, or an error in its place. Patterns
    alone look at it: the server waits."""
    try:
        texts = message_texts("", message)
        return texts.replaced(plan.scan(texts.pieces, acts))
    except Failure as failure:
        told = failure.message
    except ValueError:
        told = "the answer cannot be read"
    return jsonrpc.error(bytes(jsonrpc.decode(message).id), jsonrpc.INTERNAL_ERROR, told)


def _entries(texts: Texts | FieldTexts, changed: dict[Any, str]) -> list[Entry]:
    return [Entry(piece.key, piece.kind, changed.get(piece.key, piece.text), piece.json) for piece in texts.pieces]


def _fields(call: ToolCall) -> dict[str, msgspec.Raw]:
    """What goes out: with what of `_meta` agents and servers have agreed on between them, as one more field."""
    meta = call.meta
    if meta is None or _TRACE.issuperset(meta):
        return call.params
    own = {key: value for key, value in meta.items() if key not in _TRACE}
    return {**call.params, "_meta": msgspec.Raw(jsonrpc.encode_fields(own))}


def _put(call: ToolCall, fields: dict[str, Any]) -> None:
    meta = fields.pop("_meta", None)
    if meta is not None:
        call.meta = {**(call.meta or {}), **jsonrpc.decode_fields(meta)}
    if fields:
        call.params.update(fields)
        call.decoded = None
        if len(call.arguments):
            call.context.arguments = call.arguments


def next_kind(texts: Texts | FieldTexts) -> str:
    """The first kind of what cannot be looked at."""
    return next(iter(texts.opaque))
