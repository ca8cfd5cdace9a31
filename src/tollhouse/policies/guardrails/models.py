"""Guards before and behind models.

Rule: what cannot be read is not passed on. A request is looked at whole before anything of it is sent; an answer that
streams is looked at as it comes (`streams`), any other before it is given out.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from tollhouse.core.call import Context, ModelCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.policies.guardrails.acts import Acts, Counts
from tollhouse.policies.guardrails.asking import entries_of
from tollhouse.policies.guardrails.continued import Continued, before, names
from tollhouse.policies.guardrails.failures import of_provider
from tollhouse.policies.guardrails.plan import Plan
from tollhouse.policies.guardrails.requests import Requests
from tollhouse.policies.guardrails.segments import Room
from tollhouse.policies.guardrails.stages import Stage, Watching, Windowed
from tollhouse.policies.guardrails.streams import Guarded
from tollhouse.policies.guardrails.turned_back import Making, TurnedBack
from tollhouse.wire.guard.llm import answer_texts, request_texts, stream_texts, supports, supports_stream
from tollhouse.wire.guard.llm.forms import OTHER
from tollhouse.wire.guard.llm.texts import FieldTexts, Texts
from tollhouse.wire.guard.placeholders import Placeholders

__all__ = ["ModelAnswers", "ModelRequests"]

_FLAGS = b"x-tollhouse-guardrails"
_PATIENCE = 0.25  # seconds that an answer waits until others can go on with it
_SOUND = frozenset(("speech",))  # APIs whose answers are sound


class ModelRequests(Requests[ModelCall]):
    """What goes out to models, and what of its answer is turned back. making, back, memory: for masks that are."""

    def __init__(
        self, plan: Plan, counts: Counts, making: Making, back: TurnedBack | None, memory: Continued | None = None
    ) -> None:
        super().__init__(plan, counts, making, back)
        self._memory = memory

    def handle(self, call: ModelCall, next: Handler[Any, Reply]) -> Awaitable[Reply]:
        """Raises Failure: 403 for what is refused, 503 where a guard could not run."""
        plan = self._plan
        acts = Acts(call.context, "request", self._counts)
        if not supports(call.operation):
            return _unread(call, next, acts, passes=plan.unsupported)
        if plan.reversible:
            acts.make = partial(self._making, call)
            if self._memory is not None and (ids := before(call)):
                return self._going_on(call, next, acts, self._memory, ids)
        return self._looked_at(call, next, acts)

    async def _going_on(
        self, call: ModelCall, next: Handler[Any, Reply], acts: Acts, memory: Continued, ids: Sequence[str]
    ) -> Reply:
        """A request that goes on with what the provider has kept."""
        assert call.principal is not None
        values = await memory.fetch(call.principal, ids)
        if values:
            acts.placeholders = self._making(call)
            acts.placeholders.restore(values)
        return await self._looked_at(call, next, acts)

    def _read(self, call: ModelCall) -> FieldTexts:
        return request_texts(call.operation, call.fields)

    def _put(self, call: ModelCall, fields: dict[str, Any]) -> None:
        if not fields:
            return
        call.fields.update(fields)
        # What was worked out of the fields before.
        call.chat = None
        call.reserve = None
        if call.dialect is not None:
            call.body = call.dialect.encode(call.fields, call.body)

    def _is_followed(self, acts: Acts) -> bool:
        return bool(acts.flags) or acts.placeholders is not None

    async def _followed(self, call: ModelCall, answer: Awaitable[Reply], acts: Acts) -> Reply:
        reply = await answer
        if acts.flags:
            reply.headers = [*reply.headers, (_FLAGS, ", ".join(acts.flags).encode("ascii", "replace"))]
        placeholders = acts.placeholders
        if placeholders is not None and self._back is not None and reply.status == 200:
            kept = partial(self._keep, call, placeholders) if call.operation == "responses" else None
            written = _turn_back(call, reply, self._back, placeholders, kept)
            if written is not None:
                await asyncio.wait((written,), timeout=_PATIENCE)
        return reply

    def _keep(self, call: ModelCall, placeholders: Placeholders, answer: str) -> "asyncio.Task[None] | None":
        """The answer's id is known: who goes on with it finds his values."""
        ids = names(call, answer)
        if not ids or self._memory is None or call.principal is None:
            return None
        return self._memory.keep(call.principal, ids, placeholders.dump())


class ModelAnswers:
    """What comes back from models. room: of all answers that wait for checks."""

    def __init__(self, plan: Plan, counts: Counts, room: Room | None = None) -> None:
        self._plan = plan
        self._counts = counts
        self._room = room or Room()

    async def handle(self, call: ModelCall, next: Handler[Any, Reply]) -> Reply:
        """Raises Failure: 403 for what is refused, 503 where a guard could not run."""
        plan = self._plan
        can = supports_stream if call.stream else supports
        if not can(call.operation):
            return await _unread(call, next, Acts(call.context, "response", self._counts), passes=plan.unsupported)
        try:
            reply = await next(call)
        except Failure as failure:
            if not plan.patterns:
                raise
            # It is no answer, and nothing is told of it but what was found; somebody else may be asked.
            aside = Acts(Context(), "response", self._counts)
            raise of_provider(failure.with_traceback(None), plan, aside) from None
        acts = Acts(call.context, "response", self._counts)
        if reply.status != 200:
            return self._refused(reply, acts)
        if reply.source is not None:
            if not supports_stream(call.operation):  # nobody has asked for one
                return self._unasked(reply, acts)
            texts = stream_texts(call.operation)
            stages = _stages(plan, acts)
            worded = partial(of_provider, plan=plan, acts=acts) if plan.patterns else None
            Guarded(
                texts,
                stages,
                acts,
                checks=plan.checks,
                call=call,
                passes=plan.opaque,
                room=self._room,
                worded=worded,
            ).over(reply)
            return reply
        try:
            reply.first = await self._looked_at(call, reply, acts)
        except Failure as failure:
            reply.close(Ending(failure.status, failure.reason, 0, failure))
            raise
        except BaseException:  # its caller has left
            reply.close(Ending(499, Reason.CLIENT_GONE, gone=True))
            raise
        finally:
            acts.done()
        if acts.flags:
            reply.headers = [*reply.headers, (_FLAGS, ", ".join(acts.flags).encode("ascii", "replace"))]
        return reply

    def _unasked(self, reply: Reply, acts: Acts) -> Reply:
        """A stream of an API whose streams cannot be read. Raises Failure, unless it passes."""
        try:
            acts.unseen("a stream of this API", passes=self._plan.unsupported)
        except Failure as failure:
            reply.close(Ending(failure.status, failure.reason, 0, failure))
            raise
        finally:
            acts.done()
        return reply

    def _refused(self, reply: Reply, acts: Acts) -> Reply:
        """The provider's refusal: no answer to be judged, but patterns see to what it says."""
        if reply.source is not None or not reply.first or not self._plan.patterns:
            return reply
        try:
            texts = Texts(OTHER, reply.first)
            reply.first = texts.replaced(self._plan.scan(texts.pieces, acts))
        except (Failure, ValueError) as error:
            failure = error if isinstance(error, Failure) else acts.overfull(f"the refusal cannot be read: {error}")
            reply.close(Ending(failure.status, failure.reason, 0, failure))
            raise failure from None
        finally:
            acts.done()
        return reply

    async def _looked_at(self, call: ModelCall, reply: Reply, acts: Acts) -> bytes:
        plan = self._plan
        for tap in reply.taps or ():
            reply.first = tap(reply.first)
        reply.taps = None
        if call.operation in _SOUND:
            acts.unseen("sound", passes=plan.opaque)
            return reply.first
        texts, changed = plan.looked_at(acts, answer_texts, call.operation, reply.first)
        if plan.checks:
            entries = entries_of(texts, changed)
            changed |= await plan.ask(plan.checks, entries, acts, call)
        return texts.replaced(changed)


def _stages(plan: Plan, acts: Acts) -> Sequence[Stage]:
    stages: list[Stage] = []
    for one in plan.patterns:
        if one.fate == "count":
            stages.append(Watching(one.set, one.mask(acts), one.kinds))
        else:
            stages.append(Windowed(one.set, one.mask(acts), one.kinds, fixed=one.fate == "mask"))
    return stages


def _unread(call: ModelCall, next: Handler[Any, Reply], acts: Acts, *, passes: bool) -> Awaitable[Reply]:
    """A call of an API that cannot be read. Raises Failure, unless it passes."""
    try:
        acts.unseen(f"the API {call.operation or 'of this path'}", passes=passes)
    finally:
        acts.done()
    return next(call)


class _Answer(msgspec.Struct, gc=False):
    id: str = ""


_answer = msgspec.json.Decoder(_Answer).decode

Kept = Callable[[str], "asyncio.Task[None] | None"]
"""Told of an answer's id; gives who writes it down where others find it."""


def _turn_back(
    call: ModelCall, reply: Reply, back: TurnedBack, placeholders: Placeholders, kept: Kept | None
) -> "asyncio.Task[None] | None":
    if reply.source is None:
        for tap in reply.taps or ():
            reply.first = tap(reply.first)
        reply.taps = None
        try:
            reply.first = back.whole(answer_texts(call.operation, reply.first), placeholders)
            return None if kept is None else kept(_answer(reply.first).id)
        except ValueError:
            pass  # it is as it came: nothing was put back
    elif supports_stream(call.operation):
        texts = stream_texts(call.operation)
        texts.begun = kept
        Guarded(texts, [back.stage(placeholders)], None).over(reply)
    return None
