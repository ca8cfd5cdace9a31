"""Hedged first event: where one target is slow to begin a stream, a second is asked too, and the first event wins.

Rule: whoever loses is cancelled, waited for, and what it cost is estimated and added to the call's usage. The second
one has a call of its own with a Context of its own, so that neither writes over what the other has found out.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Literal

import msgspec
from pydantic import Field

from tollhouse.backends.balance import Member
from tollhouse.core.call import Context, ModelCall, Share, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Duration, Spec

__all__ = ["Hedge", "HedgeSpec", "added", "share", "shared", "taken_over", "twin"]

_KEPT = 100  # first events that the percentile is of
_ENOUGH = 20
_CARRIED = ("backend", "provider", "upstream_began", "upstream_ended", "first_event", "model_answered", "model_sent")

_Runs = dict[asyncio.Task[Reply], tuple[Member, ModelCall]]


class HedgeSpec(Spec):
    """When a second target is asked for the same stream."""

    after: Duration | Literal["p95"] = Field(
        description="without a first event for so long; p95: longer than 19 of 20 of the last 100 streams took"
    )


class Hedge:
    """When to ask a second target."""

    __slots__ = ("_after", "_seen", "_since", "_slowest")

    def __init__(self, spec: HedgeSpec) -> None:
        self._after = None if isinstance(spec.after, str) else spec.after
        self._seen: deque[float] = deque(maxlen=_KEPT)
        self._since = 0
        self._slowest: float | None = None

    @property
    def after(self) -> float | None:
        """Seconds; None while too little is known."""
        return self._slowest if self._after is None else self._after

    def note(self, seconds: float) -> None:
        """A stream's first event came after so long."""
        if self._after is not None:
            return
        self._seen.append(seconds)
        self._since += 1
        if len(self._seen) >= _ENOUGH and (self._slowest is None or self._since >= _ENOUGH):
            self._since = 0
            self._slowest = sorted(self._seen)[len(self._seen) * 95 // 100]

    async def ask(
        self,
        call: ModelCall,
        member: Member,
        second: Callable[[], Member | None],
        failed: Callable[[Member, Failure], bool],
    ) -> tuple[Member, Reply] | None:
        """Who has answered, and what; None when nobody has. second: whom else to ask, asked when it is time. failed:
        told of each Failure; False: it is raised. Raises what else the members raise."""
        loop = asyncio.get_running_loop()
        runs: _Runs = {loop.create_task(_run(member, call)): (member, call)}
        context = call.context
        # An error that is raised refers to this frame: nothing in it may refer to the error then.
        errors: list[BaseException] = []
        done: set[asyncio.Task[Reply]]
        left: set[asyncio.Task[Reply]]
        run: asyncio.Task[Reply] | None = None
        try:
            done, left = await asyncio.wait(runs, timeout=self.after)
            if not done and (other := second()) is not None:
                copied = twin(call)
                runs[loop.create_task(_run(other, copied))] = (other, copied)
            left = set(runs)
            while left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                for run in done:
                    error = run.exception()
                    if error is None:
                        return await self._won(runs, run, context)
                    if not (isinstance(error, Failure) and failed(runs[run][0], error)):
                        errors.append(error)
                    del error
                if errors:
                    raise errors.pop()
            return None
        finally:
            await _ended(runs)
            runs.clear()
            errors.clear()
            done = left = set()
            run = None

    async def _won(
        self,
        runs: _Runs,
        winner: asyncio.Task[Reply],
        context: Context,
    ) -> tuple[Member, Reply]:
        reply = winner.result()
        member, call = runs.pop(winner)
        await _ended(runs)
        lost = []
        for run, (asked, other) in runs.items():
            used = other.context.usage
            if used is None and run.cancelled():
                used = Usage(asked.backend.prompt(other), 0, estimated=True)
            if used is not None:
                other.context.usage = used
                lost.append(share(other.context))
            other.context.usage = None
        self.note(call.context.first_event - call.context.upstream_began)
        context.attempts += call.context is context and len(runs)
        if call.context is not context:
            taken_over(context, call.context)
            context.attempts = call.context.attempts
            reply.ends.append(partial(_settle, context, call.context))
        reply.ends += [partial(shared, context, one) for one in lost]
        return member, reply


def twin(call: ModelCall) -> ModelCall:
    """The same call, with a Context of its own."""
    context = copy(call.context)
    context.usage = None
    return msgspec.structs.replace(call, context=context)


def taken_over(context: Context, other: Context) -> None:
    """What the other has found out about who answers."""
    for name in _CARRIED:
        setattr(context, name, getattr(other, name))


def added(one: Usage | None, other: Usage | None) -> Usage | None:
    """What both have used. It is an estimate as soon as there are two."""
    if one is None or other is None:
        return one if other is None else other
    sums = {n: getattr(one, n) + getattr(other, n) for n in one.__struct_fields__ if n not in ("estimated", "tier")}
    return Usage(**sums, estimated=True, tier=one.tier or other.tier)


def share(context: Context) -> Share:
    """What the target that was asked last has used."""
    usage = context.usage
    return Share(context.backend, context.model_answered, context.model_sent, usage if usage is not None else Usage())


def shared(context: Context, other: Share, _: Ending | None = None) -> None:
    """What another target has used for the same call comes to the call's usage, at a price of its own."""
    own = context.usage
    if not context.shares and own is not None:
        context.shares = (share(context),)
    context.shares += (other,)
    context.usage = added(own, other.usage)


def _settle(context: Context, other: Context, _: Ending) -> None:
    taken_over(context, other)
    context.usage = other.usage


async def _run(member: Member, call: ModelCall) -> Reply:
    return await member.handle(call)


async def _ended(runs: _Runs) -> None:
    """Cancel those that are under way, and wait for them; one that has just answered is not wanted."""
    for run in runs:
        run.cancel()
    if runs:
        await asyncio.wait(runs)
    for run in runs:
        if not run.cancelled() and run.exception() is None:
            run.result().close(Ending(499, Reason.CLIENT_GONE, gone=True))
