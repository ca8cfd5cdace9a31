"""Limits: requests, calls, tokens and money in a window, and calls at once; per caller, model, tool or by CEL.

Rule: a limit is a rate (GCRA), never a counter that is reset; calls at once are an allowance that is only held. What is
not known before the answer (tokens, money) is taken on an estimate, and corrected in the request's `ends` to what was
used; it is given back when the call failed or nobody was asked. A refusal says which limit, and when to come back.

Limits are one party of the admission (`admission`), which takes from all of them or from none. Where they stand alone
and are rates in this process (`Buckets`) nothing has to be gathered: they are taken from one by one, and given back to
when a later one refuses, before anybody else can have looked.

Limits of LLM and MCP run on the call floor, where the model or tool is known; those of plain routes on the request
floor. Both are this one class.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from math import ceil, inf
from random import random
from time import time
from typing import Any, Final

from tollhouse.core.call import Call, Context, ModelCall, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import End, Ending, Request, Response
from tollhouse.core.reply import Reply
from tollhouse.observe.families import Families
from tollhouse.policies.admission import Taking, joined, joined_route
from tollhouse.policies.base import EVERYWHERE, Kind, Layer, Parts, wrong
from tollhouse.policies.limit_headers import Left, Style, fields_of, policy_item
from tollhouse.policies.limit_spec import LimitSpec
from tollhouse.policies.quotes import Quotes, tier_asked
from tollhouse.policies.whose import WHOSE, calls, key_of
from tollhouse.store.base import Buckets, Charge, Draw, Rate, Verdict
from tollhouse.wire.llm.tokens import MOST_OUTPUT

__all__ = ["LIMITS", "LIMITS_ROUTE", "LimitSpec", "Limits"]

_OF_MODELS: Final = frozenset(("tokens", "input_tokens", "output_tokens", "usd"))
_MICRO: Final = 1000  # nano-dollars in the unit that money is limited in
_PATIENCE: Final = 60.0  # seconds that clients wait; told to come back later they come at once
_FINAL: Final = (b"x-should-retry", b"false")


def _tokens(call: Call) -> int:
    return (call.estimate or 1) if type(call) is ModelCall and call.model else 0


def _input(call: Call) -> int:
    if type(call) is not ModelCall or not call.model:
        return 0
    return max(call.estimate - _bound(call), 1)


def _output(call: Call) -> int:
    if type(call) is not ModelCall or not call.model:
        return 0
    return _bound(call) or 1


def _bound(call: ModelCall) -> int:
    """Output tokens of the call's estimate."""
    return 0 if call.dialect is None or not call.estimate else call.dialect.output_bound(call.fields)


def _dollars(quotes: Quotes | None) -> Callable[[Call], int]:
    def amount(call: Call) -> int:
        if type(call) is not ModelCall or not call.model or quotes is None:
            return 0
        quote = quotes.of(call)
        if quote.rates is None and tier_asked(call):
            quote = quotes.at_usual_price(call, quote)  # a limit needs no more than an estimate
        if quote.free:
            return 0
        output = quote.output if quote.output >= 0 else quotes.likely(call.label)
        return -(-quote.cost(quote.estimate, output) // _MICRO) or 1

    return amount


_AMOUNTS: dict[str, Callable[[Call], int]] = {
    "calls": calls, "tokens": _tokens, "input_tokens": _input, "output_tokens": _output,
}  # fmt: skip


def _total(usage: Usage) -> int:
    return usage.input + usage.output + usage.cache_read + usage.cache_write


def _prompt(usage: Usage) -> int:
    return usage.input + usage.cache_read + usage.cache_write


def _answer(usage: Usage) -> int:
    return usage.output


_CANNOT_BE: Final = 16 * MOST_OUTPUT  # tokens of one call: a debt of more would shut its caller out for years
_USED: dict[str, Callable[[Usage], int]] = {"tokens": _total, "input_tokens": _prompt, "output_tokens": _answer}


class _Limit:
    """One limit, ready to be asked. rate: None for one of calls at once, which has an allowance instead."""

    __slots__ = (
        "_doubted", "_quotes", "_spent", "allowance", "always", "amount", "buckets", "fallback", "header", "hits",
        "key", "most", "name", "near", "on_store_failure", "over", "policy", "rate", "settles", "shown", "style",
        "unasked_count", "unit", "units", "warn", "window",
    )  # fmt: skip
    grace = None

    def __init__(
        self,
        spec: LimitSpec,
        name: str,
        identity: str,
        descriptor: str,
        parts: Parts,
        *,
        of_requests: bool,
    ) -> None:
        families: Families = parts.families
        self.name = name
        self.unit = unit = spec.unit
        self.units = spec.amount
        self.fallback = ""
        self.always = unit == "requests" or (unit == "concurrent" and of_requests)  # concerns every call
        self.settles = unit in _OF_MODELS
        self._quotes = parts.quotes
        self._doubted = families.budget_doubts.child()
        self._spent = _USED.get(unit)
        # Units where it is not `always` one; 0: not its business.
        self.amount = _dollars(parts.quotes) if unit == "usd" else _AMOUNTS.get(unit, calls)
        self.window = spec.window or 0.0
        self.allowance = identity if spec.window is None else ""
        self.rate: Rate | None = None
        self.buckets: Buckets | None = None
        self.most = self.warn = 0.0
        if spec.window is not None:
            self.rate = Rate(identity, spec.amount, spec.window, spec.burst)
            self.most = self.rate.most
            self.warn = self.rate.tolerance * 0.8
            self.buckets = parts.counter.buckets(self.rate)
        self.key = key_of(spec.per)
        self.style: Style = spec.headers
        self.shown = spec.headers != "off"
        self.on_store_failure: str = spec.on_store_failure
        self.header = name.encode()
        self.policy = policy_item(self.header, spec.amount, self.window)
        self.hits = families.limit_hits.child(descriptor)
        self.over = families.limit_over.child(descriptor)
        self.near = families.limit_near.child(descriptor)
        self.unasked_count = families.limit_unasked.child(descriptor)

    # ---- as a rate
    def left(self, ahead: float) -> int:
        """Units that could be taken now."""
        rate = self.rate
        assert rate is not None
        return max(int((rate.tolerance - ahead) / rate.step + 1e-6), 0)

    def told(self, ahead: float) -> Left:
        return Left(self.header, self.unit, self.style, self.units, self.left(ahead), ahead, self.window)

    def took(self, ahead: float, taking: Taking) -> None:
        self.hits.value += 1
        if ahead > self.warn:
            self.near.value += 1
        if self.shown:
            taking.shown.append(self.told(ahead))

    def refusal(self, call: Call, charge: Charge, verdict: Verdict, index: int) -> Failure:
        self.hits.value += 1
        return _refusal(self, charge, verdict.wait, verdict.behind[index], call.context)

    def used(self, call: Call, ending: Ending) -> int:
        return self.used_by(call.context, ending) if self.settles else -1

    def used_by(self, context: Context, ending: Ending) -> int:
        """Units that a request's answer came to; -1 where nobody counted, so that the estimate stays."""
        usage = context.usage
        if usage is not None:
            if usage.total > _CANNOT_BE:
                self._doubted.value += 1
                return -1
            if self._spent is not None:
                return self._spent(usage)
            cost = None if self._quotes is None else self._quotes.cost(context)
            return -1 if cost is None else -(-cost // _MICRO)
        if ending.gone and context.upstream_began:
            return -1  # the caller did not wait: what was asked is worked on, and to be paid for, all the same
        return 0 if ending.status >= 400 else -1  # whatever ended it, there was no answer to pay for

    def unasked(self) -> None:
        self.hits.value += 1
        self.unasked_count.value += 1

    # ---- as an allowance
    def drew(self, draw: Draw, used: int, taking: Taking) -> None:
        self.hits.value += 1
        if used * 5 > self.units * 4:
            self.near.value += 1
        if self.shown:
            left = max(self.units - used, 0)
            taking.shown.append(Left(self.header, self.unit, self.style, self.units, left, 0.0, 0.0))

    def spent(self, usage: Usage | None, cost_nano: int | None, counts: bool) -> int:
        return 0

    def fewer(self, call: ModelCall, draw: Draw, verdict: Verdict, taking: Taking) -> bool:
        return False

    def cut(self, draw: Draw) -> Failure:
        return self._full(draw, self.units)

    def refused(self, call: Call, draw: Draw, verdict: Verdict) -> Failure:
        self.hits.value += 1
        self.over.inc()
        call.context.limit = f"limit {self.name}"
        return self._full(draw, verdict.used[verdict.draw] if len(verdict.used) > verdict.draw >= 0 else self.units)

    def _full(self, draw: Draw, used: int) -> Failure:
        message = f"the limit `{self.name}` ({self.units} at once) is reached; try again when one of them has ended"
        left = b'"%b";r=%d' % (self.header, max(self.units - used, 0))
        return Failure(
            429,
            Reason.RATE_LIMIT,
            message,
            code="rate_limit_exceeded",
            detail=f"limit {draw.allowance} key {draw.key!r}",
            retry_after=1.0,
            headers=((b"ratelimit-policy", self.policy), (b"ratelimit", left), (b"retry-after", b"1")),
        )


def _settle(limit: _Limit, context: Context, key: str, reserved: int, further: End | None, ending: Ending) -> None:
    """Correct what was taken on an estimate, for the request's `ends`. further: that of another limit."""
    used = limit.used_by(context, ending)
    if used >= 0:
        limit.buckets.move(key, used - reserved)  # type: ignore[union-attr]
    if further is not None:
        further(ending)


class Limits:
    """The limits that are in force for one chain: a Party of the admission, and quick where they are rates here."""

    def __init__(self, limits: Sequence[_Limit]) -> None:
        self._limits = tuple(limits)
        self._here = all(limit.buckets is not None for limit in limits)
        self._shows = any(limit.shown for limit in limits)

    @property
    def quick(self) -> "Limits | None":
        return self if self._here else None

    def ask(self, call: Call, taking: Taking) -> None:
        for limit in self._limits:
            amount = 1 if limit.always else limit.amount(call)
            key = limit.key(call) if amount else None
            if key is None:
                continue
            if limit.rate is not None:
                taking.charge(limit, Charge(limit.rate, key, amount))
            else:
                taking.draw(limit, Draw(limit.allowance, key, 1, limit.units, kept=False))

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 429."""
        told: list[Left] | None = [] if self._shows else None
        reserved = self._take(call, told)
        if reserved is not None:
            call.request.ends.append(reserved)
        return _told(next(call), told, call.context.dialect) if told else next(call)

    def handle_request(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """The same for a plain route, where nothing is reserved. Raises the same."""
        told: list[Left] | None = [] if self._shows else None
        self._take(Call(request, request.context), told)
        return _shown(next(request), told) if told else next(request)

    def _take(self, call: Call, told: list[Left] | None) -> End | None:
        """Take from every limit that `call` concerns, without waiting: what corrects it at the end, if anything does.
        told: gets what the answer's head says."""
        reserved: End | None = None
        near: tuple[_Limit, ...] = ()
        for limit in self._limits:
            amount = 1 if limit.always else limit.amount(call)
            if not amount:
                continue
            key = limit.key(call)
            if key is None:
                continue
            ahead = limit.buckets.take(key, amount)  # type: ignore[union-attr]
            if ahead > limit.warn:
                if ahead > limit.most:
                    raise self._give_back(call, limit, key, amount, ahead)
                near = (*near, limit)
            limit.hits.value += 1
            if limit.settles:
                reserved = partial(_settle, limit, call.context, key, amount, reserved)
            if told is not None and limit.shown:
                told.append(limit.told(ahead))
        for limit in near:
            limit.near.value += 1
        return reserved

    def _give_back(self, call: Call, refusing: _Limit, key: str, amount: int, ahead: float) -> Failure:
        """One refused: nothing is taken from those before it, and those after it were asked all the same."""
        taking = Taking(None, 0.0)
        self.ask(call, taking)
        before = True
        for limit, charge in zip(self._limits_of(taking), taking.charges, strict=True):
            before = before and limit is not refusing
            if before:
                limit.buckets.move(charge.key, -charge.amount)  # type: ignore[union-attr]
            else:
                limit.hits.value += 1
        rate = refusing.rate
        assert rate is not None
        wait = inf if amount > rate.burst else ahead - rate.tolerance
        return _refusal(refusing, Charge(rate, key, amount), wait, ahead - amount * rate.step, call.context)

    def _limits_of(self, taking: Taking) -> list[_Limit]:
        return [limit for limit in taking.limits if isinstance(limit, _Limit)]


async def _told(answer: Awaitable[Reply], told: Sequence[Left], dialect: str) -> Reply:
    reply = await answer
    reply.headers = [*reply.headers, *fields_of(told, dialect, time())]
    return reply


async def _shown(answer: Awaitable[Response], told: Sequence[Left]) -> Response:
    response = await answer
    response.headers = [*response.headers, *fields_of(told, "", time())]
    return response


def _refusal(limit: _Limit, charge: Charge, wait: float, behind: float, context: Context) -> Failure:
    """The answer 429. wait: seconds until it would fit. behind: how far its bucket's TAT is ahead of now. context: of
    what is refused."""
    limit.over.inc()
    context.limit = f"limit {limit.name}"
    rate = charge.rate
    allowed = f"{_amount(limit.unit, rate.amount)} in {_seconds(rate.window)}"
    state = b'"%b";r=%d;t=%d' % (limit.header, limit.left(behind), ceil(behind))
    headers = [(b"ratelimit-policy", limit.policy), (b"ratelimit", state)]
    if limit.style == "dialect":
        headers += fields_of([limit.told(behind)], context.dialect, time())
    detail = f"limit {rate.name} key {charge.key!r}"
    if wait == inf:
        message = (
            f"this request needs about {_amount(limit.unit, charge.amount)}, and the limit `{limit.name}` ({allowed}) "
            f"never allows more than {_amount(limit.unit, rate.burst, short=True)} at once; ask for less"
        )
        return Failure(
            429, Reason.RATE_LIMIT, message, code="rate_limit_exceeded", detail=detail, headers=(*headers, _FINAL)
        )
    left = limit.left(behind)
    said = "is used up"
    if left:
        needed = _amount(limit.unit, charge.amount, short=True)
        said = f"has {_amount(limit.unit, left)} left, and this request may need {needed}"
    # Up to a tenth later, so that those who were refused together do not come back together.
    after = ceil(wait * (1.0 + 0.1 * random())) or 1  # noqa: S311 - spreads load
    headers.append((b"retry-after", b"%d" % after))
    if after > _PATIENCE:
        headers.append(_FINAL)
    return Failure(
        429,
        Reason.RATE_LIMIT,
        f"the limit `{limit.name}` ({allowed}) {said}; try again in {after} s",
        code="rate_limit_exceeded",
        detail=detail,
        retry_after=float(after),
        headers=tuple(headers),
    )


def _amount(unit: str, amount: int, *, short: bool = False) -> str:
    if unit == "usd":
        return f"{amount / 1e6:.6f}".rstrip("0").rstrip(".") + " USD"
    return str(amount) if short else f"{amount} {unit.replace('_', ' ')}"


def _seconds(window: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if window >= size and window % size == 0:
            return f"{window / size:g} {unit}"
    return f"{window:g} s"


# What a limit cannot be about, by the scope it stands in.
_NEVER = {
    "model": ("tool", "server"),
    "server": ("model",),
    "tool": ("model",),
    "endpoint": ("model",),
    "route": ("model", "tool", "server"),
}


def _limits(layers: tuple[Layer, ...], parts: Parts) -> list[_Limit]:
    limits: list[_Limit] = []
    names: set[str] = set()
    rates: set[str] = set()
    http = parts.entrance == "http"
    for layer in layers:
        specs: tuple[LimitSpec, ...] = layer.spec
        for number, spec in enumerate(specs):
            _check(layer, number, spec)
            if http and (spec.unit not in ("requests", "concurrent") or spec.per in _NEVER["route"]):
                continue  # of the top: it is about models and tools
            if http and spec.unit == "concurrent" and layer.level == "top":
                continue  # calls of models and tools
            per = spec.per if spec.per in WHOSE else "expression"
            name = _unused(spec.name or f"{per}-{spec.unit.replace('_', '-')}", names)
            # Not the amount: raising a limit must not empty everybody's bucket.
            if spec.window is None:
                identity = _unused(f"concurrent:{layer.where}/{spec.name or spec.per}".replace("|", "!"), rates)
            else:
                identity = _unused(f"{layer.where}/{spec.name or spec.per}/{spec.unit}/{spec.window:g}", rates)
            descriptor = name if layer.level == "top" else f"{layer.where.replace(' ', ':')}/{name}"
            limits.append(_Limit(spec, name, identity, descriptor, parts, of_requests=http))
    return limits


def _check(layer: Layer, number: int, spec: LimitSpec) -> None:
    path = f"limits[{number}]"
    if spec.per in _NEVER.get(layer.level, ()):
        raise wrong(layer, path, f"`per: {spec.per}` can have no effect on {layer.one}")
    if layer.level != "top" and layer.level != "model" and spec.unit in _OF_MODELS:
        raise wrong(layer, path, f"`{spec.unit}` can have no effect on {layer.one}: only models use tokens")
    if layer.level == "route" and spec.unit == "calls":
        raise wrong(layer, path, "`calls` can have no effect on a route; write `requests`")


def _unused(name: str, names: set[str]) -> str:
    made, n = name, 1
    while made in names:
        n += 1
        made = f"{name}-{n}"
    names.add(made)
    return made


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    return Limits(_limits(layers, parts))


def _build_route(layers: tuple[Layer, ...], parts: Parts) -> Any:
    limits = _limits(layers, parts)
    return Limits(limits) if limits else None


LIMITS: Kind[Call, Reply] = Kind(
    "limits", EVERYWHERE - {"route"}, adds=True, build=_build, entrances=frozenset(("llm", "mcp")), joins=joined
)
LIMITS_ROUTE: Kind[Request, Response] = Kind(
    "limits",
    frozenset(("top", "route")),
    adds=True,
    build=_build_route,
    entrances=frozenset(("http",)),
    joins=joined_route,
)
