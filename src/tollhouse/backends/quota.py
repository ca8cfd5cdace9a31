"""What a provider allows, kept to before it has to refuse: requests and tokens, counted for all nodes together.

Rule: a call goes out when everything that it needs has been taken, in one step of the counter. One that does not fit
waits for its turn where that is short, by class and then in order; else somebody else is asked, or the caller told when
to come again. What a call has really used corrects what was taken for it. A counter that cannot be asked holds up
nobody: the provider refuses for itself then.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import translate
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from math import ceil, inf
from re import compile as compiled
from secrets import token_hex
from time import monotonic
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from tollhouse.core.call import Context, ModelCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.expr import Cel, Expression, Undecided
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Duration, Spec
from tollhouse.store.base import Charge, Counter, Rate

__all__ = ["PROVIDER_QUOTA", "Outcome", "Quota", "QuotaLimitSpec", "QuotaSpec"]

log = logging.getLogger("tollhouse.backends")

PROVIDER_QUOTA: Final = "provider_quota"
"""The code of the Failure of a call that would pass what the provider allows."""

Outcome = Literal["admitted", "queued", "refused", "unasked"]
"""What became of a call: queued ones were admitted after they had waited."""

_UNITS = ("requests", "tokens", "input_tokens", "output_tokens")
_HIGH, _NORMAL, _LOW = 0, 1, 2
_CLASSES = {"high": _HIGH, "normal": _NORMAL, "low": _LOW}
_NAMES = 1000  # models whose limits are remembered
_DOUBT = 10  # times what the provider allows at most is no call's


class QuotaLimitSpec(Spec):
    """One limit that the provider has. Exactly one of `requests`, `tokens`, `input_tokens`, `output_tokens`."""

    requests: int | None = Field(default=None, ge=1, description="calls")
    tokens: int | None = Field(default=None, ge=1, description="tokens, in and out together")
    input_tokens: int | None = Field(default=None, ge=1, description="tokens of requests")
    output_tokens: int | None = Field(default=None, ge=1, description="tokens of answers")
    window: Duration = Field(default=60.0, gt=0.0, le=86400.0 * 31, description="the time in which so many come back")
    burst: int | None = Field(default=None, ge=1, description="how many at once; default: all of them")
    model: str = Field(default="*", min_length=1, max_length=256, description="for which of its models; * is any text")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(getattr(self, unit) is not None for unit in _UNITS) != 1:
            raise ValueError("a limit has exactly one of `requests`, `tokens`, `input_tokens`, `output_tokens`")
        return self

    @property
    def unit(self) -> str:
        return next(unit for unit in _UNITS if getattr(self, unit) is not None)


class QuotaSpec(Spec):
    """What a provider allows, and who waits for it how long."""

    limits: tuple[QuotaLimitSpec, ...] = Field(min_length=1, description="what the provider allows")
    max_wait: Duration = Field(
        default=2.0, ge=0.0, le=300.0, description="seconds that a call may wait for its turn; 0: none does"
    )
    queue: int = Field(default=100, ge=1, le=10_000, description="calls that may wait, in each worker")
    priority: Cel | None = Field(
        default=None,
        description='CEL that says a call\'s class: "high", "normal" or "low"; anything else is normal',
        examples=['principal.org == "batch" ? "low" : "normal"'],
    )
    low: float = Field(
        default=0.8, gt=0.0, le=1.0, description="the part of each limit that calls of class low may use up"
    )


class _Limit:
    """One limit, for calls of class low and for others: the same bucket, of which the former may not fill all."""

    __slots__ = ("_most", "_rates", "fits", "unit", "words")

    def __init__(self, provider: str, spec: QuotaLimitSpec, low: float) -> None:
        amount: int = getattr(spec, spec.unit)
        self.unit = spec.unit
        self._most = amount
        self.fits = compiled(translate(spec.model)).match
        self.words = f"{amount} {spec.unit.replace('_', ' ')} in {spec.window:g} s"
        name = f"quota/{provider}/{spec.unit}/{spec.window:g}/{spec.model}"
        whole = Rate(name, amount, spec.window, spec.burst)
        part = Rate(name, amount, spec.window, max(1, int(whole.burst * low)))
        self._rates = (whole, whole, part)

    def charge(self, call: ModelCall, rank: int) -> Charge:
        return Charge(self._rates[rank], "", self._amount(call))

    def _amount(self, call: ModelCall) -> int:
        if self.unit == "requests":
            return 1
        if self.unit == "tokens":
            return call.estimate
        output: int = min(call.dialect.output_bound(call.fields), call.estimate)
        return output if self.unit == "output_tokens" else call.estimate - output

    def used(self, context: Context, uncounted: int) -> int:
        """What a call that went out came to; `uncounted` tokens where nobody has counted, or what cannot be: a debt of
        that would shut everybody out for long."""
        usage = context.usage
        if self.unit == "requests":
            return 1
        if usage is None:
            return uncounted
        used = usage.total
        if self.unit != "tokens":
            used = usage.output if self.unit == "output_tokens" else used - usage.output
        if used > _DOUBT * max(self._most, uncounted):
            log.warning(
                "a provider tells %d tokens of a call, where it allows %s; %d are counted", used, self.words, uncounted
            )
            return uncounted
        return used


class _Lane:
    """The limits that are the same for some models, and the calls that wait for them: (class, number, to be set when
    it may be its turn)."""

    __slots__ = ("limits", "queue")

    def __init__(self, limits: tuple[_Limit, ...]) -> None:
        self.limits = limits
        self.queue: list[tuple[int, int, asyncio.Event]] = []

    def leave(self, me: tuple[int, int, asyncio.Event]) -> None:
        """Whoever is first now looks for himself."""
        if self.queue[0] is me:
            heappop(self.queue)
        else:
            self.queue.remove(me)
            heapify(self.queue)
        if self.queue:
            self.queue[0][2].set()


class Quota:
    """Of one provider. told: what became of each call, and seconds that it has waited."""

    def __init__(
        self, provider: str, spec: QuotaSpec, counter: Counter, told: Callable[[Outcome, float], None]
    ) -> None:
        self._provider = provider
        self._counter = counter
        self._told = told
        self._max_wait = spec.max_wait
        self._room = spec.queue
        self._priority = Expression(spec.priority) if spec.priority is not None else None
        self._limits = tuple(_Limit(provider, limit, spec.low) for limit in spec.limits)
        self._by_model: dict[str, _Lane] = {}
        self._lanes: dict[tuple[_Limit, ...], _Lane] = {}
        self._number = count()

    def before(self, handle: Handler[ModelCall, Reply], model: Callable[[ModelCall], str]) -> Handler[ModelCall, Reply]:
        """`handle` behind the provider's limits. model: the name that it asks the provider for."""
        return partial(self._handle, handle, model)

    async def _handle(
        self, handle: Handler[ModelCall, Reply], model: Callable[[ModelCall], str], call: ModelCall
    ) -> Reply:
        """Raises Failure 429 with the code `provider_quota`, and what `handle` raises."""
        lane = self._lane(model(call))
        if not lane.limits:
            return await handle(call)
        id, charges = await self._admitted(lane, call)
        if not charges:
            return await handle(call)
        try:
            reply = await handle(call)
        except BaseException as error:
            if isinstance(error, Failure) and not error.sent and not error.reached:
                self._counter.settle(id, charges, [0] * len(charges))
            else:
                self._settle(lane, id, charges, call.context, isinstance(error, Failure))
            raise
        reply.ends.append(partial(self._ended, lane, id, charges, call.context))
        return reply

    # ---- taking
    async def _admitted(self, lane: _Lane, call: ModelCall) -> tuple[str, Sequence[Charge]]:
        """What was taken, and as which admission; nothing where the counter could not be asked."""
        rank = self._class(call)
        charges = [limit.charge(call, rank) for limit in lane.limits]
        began = monotonic()
        id, wait = "", 0.0
        try:
            if not lane.queue or lane.queue[0][0] > rank:
                id, wait = await self._ask(charges)
                if id:
                    self._told("admitted", 0.0)
                    return id, charges
            ends = min(began + self._max_wait, call.context.deadline)
            if wait > ends - began or len(lane.queue) >= self._room:
                raise self._refusal(lane, charges, wait)
            id = await self._turn(lane, rank, charges, ends)
        except Failure as failure:
            if failure.code == PROVIDER_QUOTA:
                self._told("refused", monotonic() - began)
                raise
            self._told("unasked", monotonic() - began)
            return "", ()
        self._told("queued", monotonic() - began)
        return id, charges

    async def _ask(self, charges: Sequence[Charge]) -> tuple[str, float]:
        """The id of the admission, or "" and the seconds until it would fit. Raises Failure 503."""
        id = f"quota.{token_hex(12)}"
        verdict = await self._counter.admit(id, charges)
        return ("", verdict.wait) if verdict.refused >= 0 else (id, 0.0)

    async def _turn(self, lane: _Lane, rank: int, charges: Sequence[Charge], ends: float) -> str:
        """Wait for it, until `ends`."""
        me = (rank, next(self._number), asyncio.Event())
        heappush(lane.queue, me)
        turn = me[2]
        try:
            while True:
                turn.clear()
                wait = 0.0
                if lane.queue[0] is me:
                    id, wait = await self._ask(charges)
                    if id:
                        return id
                left = ends - monotonic()
                if wait > left:
                    raise self._refusal(lane, charges, wait)
                # Who was first may not be any more when it wakes: then it waits on behind those that passed it.
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait if lane.queue[0] is me else left):
                        await turn.wait()
        finally:
            lane.leave(me)

    def _refusal(self, lane: _Lane, charges: Sequence[Charge], wait: float) -> Failure:
        limits = " and ".join(limit.words for limit in lane.limits)
        if wait == inf:
            needs = max(charge.amount for charge in charges)
            why, after = f"this call needs about {needs} tokens, which never fit; ask for less", None
        else:
            after = float(ceil(wait) or 1)
            why = f"try again in {after:g} s"
        return Failure(
            429,
            Reason.RATE_LIMIT,
            f"the provider's limit ({limits}) is used up: {why}",
            code=PROVIDER_QUOTA,
            detail=f"quota of the provider {self._provider!r}",
            retry=True,
            retry_after=after,
            reached=False,
        )

    # ---- what it came to
    def _ended(self, lane: _Lane, id: str, charges: Sequence[Charge], context: Context, ending: Ending) -> None:
        self._settle(lane, id, charges, context, ending.status >= 400)

    def _settle(self, lane: _Lane, id: str, charges: Sequence[Charge], context: Context, refused: bool) -> None:
        """refused: the provider has answered nothing that it counts tokens of."""
        used = [
            limit.used(context, 0 if refused else charge.amount)
            for limit, charge in zip(lane.limits, charges, strict=True)
        ]
        self._counter.settle(id, charges, used)

    # ---- which
    def _lane(self, model: str) -> _Lane:
        lane = self._by_model.get(model)
        if lane is None:
            limits = tuple(limit for limit in self._limits if limit.fits(model) is not None)
            lane = self._lanes.setdefault(limits, _Lane(limits))
            if len(self._by_model) >= _NAMES:
                self._by_model.clear()
            self._by_model[model] = lane
        return lane

    def _class(self, call: ModelCall) -> int:
        if self._priority is None:
            return _NORMAL
        try:
            return _CLASSES.get(self._priority.text(call), _NORMAL)
        except Undecided:
            return _NORMAL
