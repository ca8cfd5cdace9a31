"""Rate limits: requests, calls and tokens per caller, model, tool, address or anything CEL can name.

Rule: all or nothing. A request is admitted by every limit or taken from none, in one step of the counter. Tokens are
not known before the answer: an estimate is taken first, and corrected in the request's `ends` to what was used; it is
given back when the call failed or nobody was asked. A refusal says which limit, and when to come back.

Where the counter's state is in this process (`Buckets`) nothing waits: limits are taken from one by one, and given back
to when a later one refuses, before anybody else can have looked. Else one `admit` asks for all of them. When that
cannot be asked, the answer is 503, unless every limit that it is about says `on_error: allow`.

Limits of LLM and MCP run on the call floor, where the model or tool is known; those of plain routes on the request
floor. Both are this one class.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from math import ceil, inf
from random import random
from secrets import token_hex
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tollhouse.core.call import Call, Context, ModelCall, Principal, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.expr import Expression, Undecided
from tollhouse.core.forwarded import network_of
from tollhouse.core.handler import Handler
from tollhouse.core.http import End, Ending, Request, Response
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Duration, Spec
from tollhouse.observe.families import Families
from tollhouse.policies.base import EVERYWHERE, Kind, Layer, Parts, wrong
from tollhouse.store.base import Buckets, Charge, Counter, Rate

__all__ = ["LIMITS", "LIMITS_ROUTE", "LimitSpec", "Limits"]

Key = Callable[[Call], str | None]
"""Whose bucket a call takes from; None when the limit does not concern it."""

_LONGEST_KEY = 256


def _user(call: Call) -> str | None:
    principal = call.principal
    return ANONYMOUS if principal is None else principal.user or _itself(principal)


def _key(call: Call) -> str | None:
    principal = call.principal
    return ANONYMOUS if principal is None else principal.key or _itself(principal)


def _agent(call: Call) -> str | None:
    principal = call.principal
    return ANONYMOUS if principal is None else principal.agent or _itself(principal)


def _org(call: Call) -> str | None:
    principal = call.principal
    return "" if principal is None else principal.org


ANONYMOUS = "\0anonymous"


def _itself(principal: Principal) -> str:
    # No user can have this name, or one could empty the bucket of a caller who has none.
    return "\0" + principal.id


def _model(call: Call) -> str | None:
    # The configured name: asking for ever new names under a `*` must not give ever new buckets.
    return (call.label or None) if isinstance(call, ModelCall) else None


def _tool(call: Call) -> str | None:
    if isinstance(call, ToolCall) and call.server and call.method == "tools/call":
        return f"{call.server}/{call.name}"
    return None  # a name that no server has is nobody's: those who guess must not share a bucket


def _server(call: Call) -> str | None:
    return (call.server or None) if isinstance(call, ToolCall) else None


def _ip(call: Call) -> str | None:
    return network_of(call.context.client or call.request.peer)


def _tokens(call: Call) -> int:
    return (call.estimate or 1) if type(call) is ModelCall and call.model else 0


def _calls(call: Call) -> int:
    if isinstance(call, ModelCall):
        return 1 if call.model else 0
    # A later round carries on a call that was counted.
    return 1 if isinstance(call, ToolCall) and call.server and call.method == "tools/call" and not call.round else 0


_KEYS: dict[str, Key] = {
    "user": _user,
    "key": _key,
    "org": _org,
    "agent": _agent,
    "model": _model,
    "tool": _tool,
    "server": _server,
    "ip": _ip,
}


def _per(value: str) -> str:
    if value not in _KEYS:
        try:
            Expression(value)
        except ValueError as error:
            raise ValueError(f"neither one of {', '.join(_KEYS)} nor a CEL expression: {error}") from None
    return value


class LimitSpec(Spec):
    """So many requests, calls or tokens in a window, for each of something."""

    per: Annotated[str, AfterValidator(_per)] = Field(
        description="user, key, org, agent, model, tool, server, ip (IPv6: its /64), or a CEL expression",
        examples=["user", "model", 'request.headers["x-team"]'],
    )
    requests: int | None = Field(default=None, ge=1, description="whatever arrives, MCP's lists and pings included")
    calls: int | None = Field(default=None, ge=1, description="calls of models and tools")
    tokens: int | None = Field(default=None, ge=1, description="tokens of models, in and out")
    window: Duration = Field(gt=0.0, le=86400.0 * 31, description="the time in which so many come back")
    burst: int | None = Field(default=None, ge=1, description="how many at once; default: all of them")
    name: str = Field(
        default="", max_length=64, pattern=r"^[A-Za-z0-9_.:-]*$", description="in headers, metrics and errors"
    )
    headers: bool = Field(default=False, description="also answers say what is left, in the header RateLimit")
    on_error: Literal["deny", "allow"] = Field(
        default="deny",
        description="what happens while a shared `state` cannot be asked: deny answers 503, allow counts nothing",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(n is not None for n in (self.requests, self.calls, self.tokens)) != 1:
            raise ValueError("a limit has exactly one of `requests`, `calls`, `tokens`")
        return self

    @property
    def unit(self) -> str:
        return "requests" if self.requests is not None else "calls" if self.calls is not None else "tokens"

    @property
    def amount(self) -> int:
        return self.requests or self.calls or self.tokens or 0


class _Limit:
    """One limit, ready to be asked."""

    __slots__ = (
        "_item", "allows", "always", "amount", "buckets", "hits", "key", "most", "name", "near", "over", "policy",
        "rate", "shown", "tokens", "unasked", "unit", "warn",
    )  # fmt: skip

    def __init__(
        self, spec: LimitSpec, name: str, rate: Rate, descriptor: str, families: Families, buckets: Buckets | None
    ) -> None:
        self.name = name
        self.unit = spec.unit
        self.always = spec.unit == "requests"  # concerns every call, with one unit
        self.tokens = spec.unit == "tokens"
        self.amount = _tokens if self.tokens else _calls  # units where it is not `always` one; 0: not its business
        self.rate = rate
        self.most = rate.most
        self.buckets = buckets
        self.key = _KEYS.get(spec.per) or _expression(spec.per)
        self.warn = rate.tolerance * 0.8
        self.shown = spec.headers
        self.allows = spec.on_error == "allow"  # what cannot be asked
        self.policy = b'"%b";q=%d;w=%d' % (name.encode(), rate.amount, max(1, round(rate.window)))
        self._item = b'"%b";r=%%d;t=%%d' % name.encode()
        self.hits = families.limit_hits.child(descriptor)
        self.over = families.limit_over.child(descriptor)
        self.near = families.limit_near.child(descriptor)
        self.unasked = families.limit_unasked.child(descriptor)

    def left(self, behind: float) -> int:
        """Units that could be taken now."""
        rate = self.rate
        return max(int((rate.tolerance - behind) / rate.step + 1e-6), 0)

    def state(self, behind: float) -> bytes:
        """The limit's item of the header RateLimit: what is left, and when all of it is."""
        return self._item % (self.left(behind), ceil(behind))


def _expression(source: str) -> Key:
    expression = Expression(source)

    def key(call: Call) -> str | None:
        try:
            return expression.text(call, _LONGEST_KEY)
        except Undecided:
            # Without the header or claim it is about, everybody is in one bucket, not in none.
            return None if expression.apart(call) else ""

    return key


def _used(context: Context, ending: Ending) -> int:
    """The tokens that a request's answer came to; -1 where nobody counted, so that the estimate stays."""
    usage = context.usage
    if usage is not None:
        return usage.input + usage.output + usage.cache_read + usage.cache_write
    if ending.gone and context.upstream_began:
        return -1  # the caller did not wait: what was asked is worked on, and to be paid for, all the same
    return 0 if ending.status >= 400 else -1  # whatever ended it, there was no answer to pay for


def _settle(context: Context, buckets: Buckets, key: str, reserved: int, further: End | None, ending: Ending) -> None:
    """Correct tokens that were taken on an estimate, for the request's `ends`. further: those of another limit."""
    used = _used(context, ending)
    if used >= 0:
        buckets.move(key, used - reserved)
    if further is not None:
        further(ending)


def _settle_far(context: Context, counter: Counter, id: str, charges: Sequence[Charge], ending: Ending) -> None:
    """The same, of a counter that `admit` was asked of."""
    used = _used(context, ending)
    if used >= 0:
        counter.settle(id, charges, [used] * len(charges))


class Limits:
    """The limits that are in force for one chain."""

    def __init__(self, limits: Sequence[_Limit], counter: Counter) -> None:
        self._limits = tuple(limits)
        self._counter = counter
        self._here = all(limit.buckets is not None for limit in limits)
        self._shows = any(limit.shown for limit in limits)

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 429, and 503 where the counter cannot be asked."""
        if not self._here:
            return self._far(call, next)
        states: list[bytes] | None = [] if self._shows else None
        reserved = self._take(call, states)
        if reserved is not None:
            call.request.ends.append(reserved)
        return _told(next(call), states) if states else next(call)

    def handle_request(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """The same for a plain route, where nothing is reserved. Raises the same."""
        call = Call(request, request.context)
        if not self._here:
            return self._far_request(call, next)
        states: list[bytes] | None = [] if self._shows else None
        self._take(call, states)
        return _shown(next(request), states) if states else next(request)

    async def _far(self, call: Call, next: Handler[Call, Reply]) -> Reply:
        states: list[bytes] = []
        reserved = await self._ask(call, states)
        if reserved is not None:
            call.request.ends.append(reserved)
        return await _told(next(call), states)

    async def _far_request(self, call: Call, next: Handler[Request, Response]) -> Response:
        states: list[bytes] = []
        await self._ask(call, states)
        return await _shown(next(call.request), states)

    def _take(self, call: Call, states: list[bytes] | None) -> End | None:
        """Take from every limit that `call` concerns, without waiting: what corrects it at the end, if anything does.
        states: gets the items of the header."""
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
            if limit.tokens:
                reserved = partial(_settle, call.context, limit.buckets, key, amount, reserved)  # type: ignore[arg-type]
            if states is not None and limit.shown:
                states.append(limit.state(ahead))
        for limit in near:
            limit.near.value += 1
        return reserved

    def _give_back(self, call: Call, refusing: _Limit, key: str, amount: int, ahead: float) -> Failure:
        """One refused: nothing is taken from those before it, and those after it were asked all the same."""
        before = True
        for limit, charge in self._concerned(call):
            before = before and limit is not refusing
            if before:
                limit.buckets.move(charge.key, -charge.amount)  # type: ignore[union-attr]
            else:
                limit.hits.value += 1
        rate = refusing.rate
        wait = inf if amount > rate.burst else ahead - rate.tolerance
        return _refusal(refusing, Charge(rate, key, amount), wait, ahead - amount * rate.step)

    async def _ask(self, call: Call, states: list[bytes]) -> End | None:
        """`_take`, of a counter that has to be waited for."""
        concerned = self._concerned(call)
        if not concerned:
            return None
        # Several admissions may be part of one request, whose id its caller may have chosen.
        id = f"{call.context.request_id}.{token_hex(8)}"
        for limit, _ in concerned:
            limit.hits.value += 1
        try:
            verdict = await self._counter.admit(id, [charge for _, charge in concerned])
        except Failure:
            if not all(limit.allows for limit, _ in concerned):
                raise
            for limit, _ in concerned:
                limit.unasked.inc()
            return None
        if verdict.refused >= 0:
            limit, charge = concerned[verdict.refused]
            raise _refusal(limit, charge, verdict.wait, verdict.behind[verdict.refused])
        for (limit, _), ahead in zip(concerned, verdict.behind, strict=True):
            if ahead > limit.warn:
                limit.near.value += 1
            if limit.shown:
                states.append(limit.state(ahead))
        tokens = [charge for limit, charge in concerned if limit.tokens]
        return partial(_settle_far, call.context, self._counter, id, tokens) if tokens else None

    def _concerned(self, call: Call) -> list[tuple[_Limit, Charge]]:
        """The limits that `call` concerns, and what it takes from each."""
        concerned = []
        for limit in self._limits:
            amount = 1 if limit.always else limit.amount(call)
            key = limit.key(call) if amount else None
            if key is not None:
                concerned.append((limit, Charge(limit.rate, key, amount)))
        return concerned


async def _told(answer: Awaitable[Reply], states: list[bytes]) -> Reply:
    reply = await answer
    if states:
        reply.headers = [*reply.headers, (b"ratelimit", b", ".join(states))]
    return reply


async def _shown(answer: Awaitable[Response], states: list[bytes]) -> Response:
    response = await answer
    if states:
        response.headers = [*response.headers, (b"ratelimit", b", ".join(states))]
    return response


def _refusal(limit: _Limit, charge: Charge, wait: float, behind: float) -> Failure:
    """The answer 429. wait: seconds until it would fit. behind: how far its bucket's TAT is ahead of now."""
    limit.over.inc()
    rate = limit.rate
    allowed = f"{rate.amount} {limit.unit} in {_seconds(rate.window)}"
    headers = [(b"ratelimit-policy", limit.policy), (b"ratelimit", limit.state(behind))]
    detail = f"limit {rate.name} key {charge.key!r}"
    if wait == inf:
        message = (
            f"this request needs about {charge.amount} {limit.unit}, and the limit `{limit.name}` ({allowed}) "
            f"never allows more than {rate.burst} at once; ask for less"
        )
        return Failure(
            429, Reason.RATE_LIMIT, message, code="rate_limit_exceeded", detail=detail, headers=tuple(headers)
        )
    left = limit.left(behind)
    state = "is used up"
    if left:
        state = f"has {left} {limit.unit} left, and this request may need {charge.amount}"
    # Up to a tenth later, so that those who were refused together do not come back together.
    after = ceil(wait * (1.0 + 0.1 * random())) or 1  # noqa: S311 - spreads load
    headers.append((b"retry-after", b"%d" % after))
    return Failure(
        429,
        Reason.RATE_LIMIT,
        f"the limit `{limit.name}` ({allowed}) {state}; try again in {after} s",
        code="rate_limit_exceeded",
        detail=detail,
        retry_after=float(after),
        headers=tuple(headers),
    )


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
    for layer in layers:
        specs: tuple[LimitSpec, ...] = layer.spec
        for number, spec in enumerate(specs):
            _check(layer, number, spec)
            if parts.entrance == "http" and (spec.unit != "requests" or spec.per in _NEVER["route"]):
                continue  # of the top: it is about models and tools
            per = spec.per if spec.per in _KEYS else "expression"
            name = _unused(spec.name or f"{per}-{spec.unit}", names)
            # Not the amount: raising a limit must not empty everybody's bucket.
            rate = _unused(f"{layer.where}/{spec.name or spec.per}/{spec.unit}/{spec.window:g}", rates)
            descriptor = name if layer.level == "top" else f"{layer.where.replace(' ', ':')}/{name}"
            made = Rate(rate, spec.amount, spec.window, spec.burst)
            limits.append(_Limit(spec, name, made, descriptor, parts.families, parts.counter.buckets(made)))
    return limits


def _check(layer: Layer, number: int, spec: LimitSpec) -> None:
    path = f"limits[{number}]"
    if spec.per in _NEVER.get(layer.level, ()):
        raise wrong(layer, path, f"`per: {spec.per}` can have no effect on a {layer.level}")
    if layer.level != "top" and layer.level != "model" and spec.unit == "tokens":
        raise wrong(layer, path, f"`tokens` can have no effect on a {layer.level}: only models use tokens")
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
    return Limits(_limits(layers, parts), parts.counter).handle


def _build_route(layers: tuple[Layer, ...], parts: Parts) -> Any:
    limits = _limits(layers, parts)
    return Limits(limits, parts.counter).handle_request if limits else None


LIMITS: Kind[Call, Reply] = Kind(
    "limits", EVERYWHERE - {"route"}, adds=True, build=_build, entrances=frozenset(("llm", "mcp"))
)
LIMITS_ROUTE: Kind[Request, Response] = Kind(
    "limits", frozenset(("top", "route")), adds=True, build=_build_route, entrances=frozenset(("http",))
)
