"""Admission: all that a call takes from limits, budgets and caps of runs is taken in one step of the counter, or none.

Rule: limits, budgets and runs do not know each other. Each is a `Party` that says what a call takes; this policy asks
the counter once for all of them, and tells each what came of it. Where the counter is in this process nothing waits;
elsewhere it is one round trip. A refusal consumes nothing anywhere.

When the counter cannot be asked, what happens is what the takers say (`on_store_failure`): one that denies is enough
for a 503; limits that are `local` take from this worker's share, budgets from its grace; the others let the call
pass. What it spends of allowances is posted in any case.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from secrets import token_hex
from time import time
from typing import Any, Protocol

from tollhouse.core.call import Call, ModelCall
from tollhouse.core.errors import Failure
from tollhouse.core.handler import Handler, Policy
from tollhouse.core.http import Ending, Request, Response
from tollhouse.core.reply import Reply
from tollhouse.policies.base import Opens, Parts
from tollhouse.policies.grace import Grace, within
from tollhouse.policies.holds import LIVES, Drawer, Growing, Held, Holds, disbelieve, passed_on
from tollhouse.policies.limit_headers import Left, fields_of
from tollhouse.policies.quotes import Quote, Quotes, shorten
from tollhouse.store.base import (
    ADMITTED,
    OPEN,
    REFUSED,
    Charge,
    Counter,
    Draw,
    Verdict,
    unavailable,
)

__all__ = ["Admission", "Allowance", "Fallback", "Limit", "Party", "Quick", "Taking", "joined", "joined_route"]

_BEYOND, _SLACK = 2, 256  # times a bound, and tokens besides, from which on a provider does not keep to it
_AGAIN = 100  # times that a window or an opening is tried again; who opens waits a little each time


class Limit(Protocol):
    """What charges are taken from."""

    on_store_failure: str

    def refusal(self, call: Call, charge: Charge, verdict: Verdict, index: int) -> Failure:
        """It did not fit. index: of the charge."""
        ...

    def took(self, ahead: float, taking: "Taking") -> None:
        """It was taken. ahead: seconds that the key's TAT is ahead of now."""
        ...

    def used(self, call: Call, ending: Ending) -> int:
        """Units that the call came to; -1 where what was taken stays."""
        ...

    def unasked(self) -> None:
        """The counter could not be asked, and the call passes."""
        ...


class Allowance(Drawer, Protocol):
    """What draws are held of."""

    on_store_failure: str
    fallback: str
    """A model that is asked instead where it refuses; "" for none."""

    @property
    def grace(self) -> Grace | None:
        """What passes while the counter cannot be asked, where that is `local`."""
        ...

    def refused(self, call: Call, draw: Draw, verdict: Verdict) -> Failure:
        """It did not fit."""
        ...

    def fewer(self, call: ModelCall, draw: Draw, verdict: Verdict, taking: "Taking") -> bool:
        """Whether the call may be asked with a shorter answer, which `taking.most` says then."""
        ...

    def drew(self, draw: Draw, used: int, taking: "Taking") -> None:
        """It is held. used: what is spent and held then."""
        ...

    def unasked(self) -> None: ...


class Quick(Protocol):
    """Admits calls by itself."""

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]: ...

    def handle_request(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]: ...


class Party(Protocol):
    """Limits, budgets or runs, of one chain. quick: what admits where nobody else is asked and nothing waits, None
    where there is no such way."""

    @property
    def quick(self) -> Quick | None: ...

    def ask(self, call: Call, taking: "Taking") -> None:
        """Put what the call takes into `taking`. Raises Failure for what needs no counter to be refused."""
        ...


class Fallback(Exception):
    """A budget is spent, and another model is to be asked."""

    def __init__(self, model: str, failure: Failure) -> None:
        super().__init__(model)
        self.model = model
        self.failure = failure


class Taking:
    """What one call takes. now: unix seconds by the counter's clock, as far as it is known. most: output tokens that
    the call is asked with at most, where that is less than its caller allows; -1 for that. shown, fields: what the
    answer's head says. warned: what its caller is warned of, for `Context.limit`. grows: what draws come to by tokens
    of answer, for a stream without a bound."""

    __slots__ = (
        "_quotes", "allowances", "charges", "draws", "fields", "grows", "limits", "most", "nano", "now", "quote",
        "shown", "sized", "warned",
    )  # fmt: skip

    def __init__(self, quotes: Quotes | None, now: float, most: int = -1) -> None:
        self._quotes = quotes
        self.now = now
        self.most = most
        self.nano = 0
        self.quote: Quote | None = None
        self.charges: list[Charge] = []
        self.limits: list[Limit] = []
        self.draws: list[Draw] = []
        self.allowances: list[Allowance] = []
        self.sized: list[Callable[[int], int] | None] = []
        self.shown: list[Left] = []
        self.fields: list[tuple[bytes, bytes]] = []
        self.grows = 0
        self.warned = ""

    def charge(self, limit: Limit, charge: Charge) -> None:
        self.limits.append(limit)
        self.charges.append(charge)

    def draw(self, allowance: Allowance, draw: Draw, sized: Callable[[int], int] | None = None) -> None:
        """sized: what it comes to with so many tokens of answer, where that is not known to be the most."""
        self.allowances.append(allowance)
        self.draws.append(draw)
        self.sized.append(sized)

    def quoted(self, call: ModelCall) -> Quote:
        """What the call may cost, found once."""
        quote = self.quote
        if quote is None:
            quotes = self._quotes
            if quotes is None:
                estimate = call.estimate
                quote = Quote(estimate, estimate, -1, True, None)
            else:
                quote = quotes.of(call)
            self.quote = quote
        return quote

    def likely(self, call: ModelCall) -> int:
        return 0 if self._quotes is None else self._quotes.likely(call.label)


class Admission:
    """The parties of one chain. inside: the call chain of a model past what records it, by its name; for fallbacks."""

    def __init__(
        self,
        parties: Sequence[Party],
        counter: Counter,
        holds: Holds | None,
        quotes: Quotes | None = None,
        opens: Opens | None = None,
        inside: Callable[[str], Handler[ModelCall, Reply] | None] | None = None,
        clock: Callable[[], float] = time,
    ) -> None:
        self._parties = tuple(parties)
        self._counter = counter
        self._here = counter.allowances()
        self._holds = holds
        self._quotes = quotes
        self._opens = opens
        self._inside = inside
        self._clock = clock
        self._ahead = 0.0  # of the counter's clock before ours, as it was last heard

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 429 where something does not fit, 403 for what is stopped, 503 where the counter cannot be
        asked."""
        taking = self._gathered(call)
        if not taking.charges and not taking.draws:
            return self._go_on(call, taking, next)
        here = self._here
        if here is None:
            return self._far(call, taking, next)
        id = _id(call)
        verdict = here.admit(id, taking.charges, taking.draws, LIVES)
        if verdict.happened != ADMITTED:
            return self._far(call, taking, next, id, verdict)
        self._admitted(call, taking, id, verdict)
        return self._go_on(call, taking, next)

    def handle_request(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """The same for a plain route. Raises the same."""
        return self._far_request(Call(request, request.context), next)

    async def _far_request(self, call: Call, next: Handler[Request, Response]) -> Response:
        taking = self._gathered(call)
        if taking.charges or taking.draws:
            taking = await self._asked(call, taking)
        response = await next(call.request)
        told = [*fields_of(taking.shown, "", self._clock()), *taking.fields]
        if told:
            response.headers = [*response.headers, *told]
        return response

    async def _far(
        self,
        call: Call,
        taking: Taking,
        next: Handler[Call, Reply],
        id: str = "",
        verdict: Verdict | None = None,
    ) -> Reply:
        try:
            taking = await self._asked(call, taking, id, verdict)
        except Fallback as instead:
            return await self._instead(call, instead)
        return await self._go_on(call, taking, next)

    # ---- asking
    def _gathered(self, call: Call, most: int = -1) -> Taking:
        taking = Taking(self._quotes, self._clock() + self._ahead, most)
        for party in self._parties:
            party.ask(call, taking)
        return taking

    async def _asked(self, call: Call, taking: Taking, id: str = "", verdict: Verdict | None = None) -> Taking:
        """Ask until it is decided. id, verdict: of the first time, where it was asked already. Gives what was taken in
        the end. Raises Failure, and Fallback."""
        for _ in range(_AGAIN):
            if verdict is None:
                id = id or _id(call)
                try:
                    verdict = await self._admit(id, taking)
                except Failure:
                    if not self._passes(call, taking):
                        raise
                    self._apart(call, taking)
                    return taking
            if verdict.at:
                self._ahead = verdict.at - self._clock()
            if verdict.happened == ADMITTED:
                self._admitted(call, taking, id, verdict)
                return taking
            if verdict.happened == OPEN:
                try:
                    await self._open(taking)
                except Failure:
                    if not self._passes(call, taking):
                        raise
                    return taking
            else:
                id = ""  # another admission
                refused = verdict.happened == REFUSED
                taking = self._again(call, taking, verdict) if refused else self._gathered(call, taking.most)
            verdict = None
        if self._passes(call, taking):
            return taking
        raise unavailable("allowances are being filled, and it takes too long", reached=False)

    async def _admit(self, id: str, taking: Taking) -> Verdict:
        here = self._here
        if here is not None:
            return here.admit(id, taking.charges, taking.draws, LIVES)
        if not taking.draws:
            return await self._counter.admit(id, taking.charges)
        try:
            return await self._counter.admit(id, taking.charges, taking.draws, LIVES)
        except Failure as failure:
            if failure.sent:
                self._counter.void(id)  # it may have been done
            raise

    async def _open(self, taking: Taking) -> None:
        """Have what is not filled yet filled. Raises Failure 503 where that cannot be."""
        if self._opens is None:
            raise unavailable("allowances cannot be filled: nobody reads the ledger", reached=False)
        await self._opens([draw for draw in taking.draws if draw.kept])

    def _again(self, call: Call, taking: Taking, verdict: Verdict) -> Taking:
        """What is asked instead of what was refused. Raises Failure, and Fallback."""
        if verdict.refused >= 0:
            n = verdict.refused
            raise taking.limits[n].refusal(call, taking.charges[n], verdict, n)
        allowance, draw = taking.allowances[verdict.draw], taking.draws[verdict.draw]
        if isinstance(call, ModelCall) and taking.most < 0 and allowance.fewer(call, draw, verdict, taking):
            return self._gathered(call, taking.most)
        if allowance.fallback and isinstance(call, ModelCall) and not call.context.fallback:
            raise Fallback(allowance.fallback, allowance.refused(call, draw, verdict))
        raise allowance.refused(call, draw, verdict)

    def _passes(self, call: Call, taking: Taking) -> bool:
        """Whether the call may pass though the counter cannot be asked; that is counted then. What it spends is posted
        all the same."""
        takers: list[Any] = [*taking.limits, *taking.allowances]
        if any(taker.on_store_failure == "deny" for taker in takers):
            return False
        pairs = zip(taking.allowances, taking.draws, strict=True)
        if not within([(one.grace, draw) for one, draw in pairs if one.grace is not None]):
            return False
        for taker in takers:
            if taker.on_store_failure == "allow":
                taker.unasked()
        for one in taking.allowances:
            if one.grace is not None:
                one.unasked()
        if taking.draws and self._holds is not None:
            self._hold(self._holds, call, taking, _id(call), taking.now)
        taking.grows = 0
        taking.sized.clear()
        return True

    def _hold(self, holds: Holds, call: Call, taking: Taking, id: str, at: float) -> None:
        held = call.hold = holds.add(id, taking.draws, taking.allowances)
        held.at, held.nano = int(at * 1e6), taking.nano
        quote = taking.quote
        if quote is not None and isinstance(call, ModelCall):
            held.most = quote.most()
            output = taking.most if taking.most >= 0 else quote.output
            held.likely = quote.input, output if output >= 0 else taking.likely(call)
        # The last of all ends: whoever records the call posts it before, and then nothing is left to do.
        call.request.ends.insert(0, partial(_let_go, held, self._quotes, call))

    def _apart(self, call: Call, taking: Taking) -> None:
        """Take what may be taken from this worker's share. Raises Failure 429."""
        there = [
            (limit, charge)
            for limit, charge in zip(taking.limits, taking.charges, strict=True)
            if limit.on_store_failure == "local"
        ]
        if not there:
            return
        id = _id(call)
        charges = [charge for _, charge in there]
        verdict = self._counter.admit_apart(id, charges)
        if (n := verdict.refused) >= 0:
            if call.hold is not None:
                call.hold.release()
            raise there[n][0].refusal(call, charges[n], verdict, n)
        for (limit, _), ahead in zip(there, verdict.behind, strict=True):
            limit.took(ahead, taking)
        limits = tuple(limit for limit, _ in there)
        call.request.ends.append(partial(_settle, self._counter, id, call, limits, charges))

    # ---- what follows
    def _admitted(self, call: Call, taking: Taking, id: str, verdict: Verdict) -> None:
        for limit, ahead in zip(taking.limits, verdict.behind, strict=True):
            limit.took(ahead, taking)
        if taking.draws:
            for allowance, draw, used in zip(taking.allowances, taking.draws, verdict.used, strict=True):
                allowance.drew(draw, used, taking)
            if taking.warned:
                call.context.limit = taking.warned
            if verdict.at:
                self._ahead = verdict.at - self._clock()
            if self._holds is not None:
                self._hold(self._holds, call, taking, id, verdict.at)
        if taking.limits:
            call.request.ends.append(partial(_settle, self._counter, id, call, tuple(taking.limits), taking.charges))

    def _go_on(self, call: Call, taking: Taking, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        if taking.most >= 0 and isinstance(call, ModelCall):
            shorten(call, taking.most)
        grows = isinstance(call, ModelCall) and call.stream and any(taking.sized) and isinstance(call.hold, Held)
        if not (taking.shown or taking.fields or grows):
            return next(call)
        return self._told(call, taking, next)

    async def _told(self, call: Call, taking: Taking, next: Handler[Call, Reply]) -> Reply:
        reply = await next(call)
        told = [*fields_of(taking.shown, call.context.dialect, self._clock()), *taking.fields]
        if told:
            reply.headers = [*reply.headers, *told]
        held, holds, taps = call.hold, self._holds, reply.taps
        if not any(taking.sized) or taps is None or reply.source is None or holds is None:
            return reply
        if isinstance(held, Held) and isinstance(call, ModelCall):
            amounts = partial(_sizes, tuple(taking.sized))
            bound = taking.most if taking.most >= 0 else taking.quoted(call).output
            if taking.grows:
                taps.append(Growing(holds, held, taking.grows, bound, amounts, call.context).tap)
            elif bound >= 0:  # what is counted here is an estimate: twice as much is more than was allowed
                taps.append(Growing(holds, held, _BEYOND * bound + _SLACK, -1, amounts, call.context).tap)
        return reply

    async def _instead(self, call: Call, instead: Fallback) -> Reply:
        """Another model's chain, past what records the call; it admits the call by its own price, once."""
        handler = self._inside(instead.model) if self._inside is not None else None
        name = instead.model
        instead.with_traceback(None)
        if handler is None or not isinstance(call, ModelCall):
            raise instead.failure
        call.context.fallback = name
        call.context.model_asked = call.model = call.label = name
        reply = await handler(call)
        reply.headers = [*reply.headers, (b"x-tollhouse-fallback", name.encode("ascii", "replace"))]
        return reply


def _sizes(sized: Sequence[Callable[[int], int] | None], tokens: int) -> list[int | None]:
    return [None if size is None else size(tokens) for size in sized]


def _id(call: Call) -> str:
    # Several admissions may be part of one request, whose id its caller may have chosen.
    return f"{call.context.request_id}.{token_hex(8)}"


def _let_go(held: Held, quotes: Quotes | None, call: Call, _: Ending) -> None:
    held.release()
    usage = call.context.usage
    if quotes is not None and usage is not None and isinstance(call, ModelCall):
        quotes.note(call.label, usage.output)


def _settle(
    counter: Counter, id: str, call: Call, limits: Sequence[Limit], charges: Sequence[Charge], ending: Ending
) -> None:
    """Correct what was taken on an estimate."""
    context, hold = call.context, call.hold
    usage = context.usage
    if usage is not None and hold is not None:
        believed = hold.believed(usage, passed_on(context, ending.bytes_out))
        if believed is not usage:
            disbelieve(context, believed)
    corrected: list[Charge] = []
    amounts: list[int] = []
    for limit, charge in zip(limits, charges, strict=True):
        used = limit.used(call, ending)
        if used >= 0 and used != charge.amount:
            corrected.append(charge)
            amounts.append(used)
    if corrected:
        counter.settle(id, corrected, amounts)


def joined(parties: Sequence[Party], parts: Parts) -> Policy[Call, Reply]:
    """The policy of a call chain's parties: `Kind.joins`."""
    if len(parties) == 1 and (quick := parties[0].quick) is not None:
        return quick.handle
    return _of(parties, parts).handle


def joined_route(parties: Sequence[Party], parts: Parts) -> Policy[Request, Response]:
    """The same of a plain route."""
    if len(parties) == 1 and (quick := parties[0].quick) is not None:
        return quick.handle_request
    return _of(parties, parts).handle_request


def _of(parties: Sequence[Party], parts: Parts) -> Admission:
    return Admission(parties, parts.counter, parts.holds, parts.quotes, parts.opens, parts.inside)
