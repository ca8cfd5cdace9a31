"""Budgets: what may be spent in a window of the calendar, or in a span that rolls; per organisation, team, user.

Rule: what is spent is the sum of the ledger's records, and what calls under way may come to is held before they are
made, so a hard budget is not passed. A call whose caller bounds its answer is held at what it can cost at most; one
without a bound as `reserve` says. Changing an amount changes no account, and a new window is another one: nothing is
reset, and nothing is spent twice.

Budgets are a party of the admission: several of them (organisation, team, user) are nested by standing beside each
other, since all must hold.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from math import ceil, inf
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tollhouse.core.call import Call, ModelCall, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Spec
from tollhouse.policies.admission import Taking, joined
from tollhouse.policies.base import Kind, Layer, Parts, wrong
from tollhouse.policies.grace import Grace
from tollhouse.policies.quotes import can_shorten, several_of, spent_of, tier_asked, worth
from tollhouse.policies.whose import TAGS, WHOSE, Key, calls, checked_per, key_of
from tollhouse.policies.windows import CALENDAR, RollingSpec, Word, checked_window, checked_zone, clock_of
from tollhouse.store.base import Draw, Verdict, Window

__all__ = ["BUDGETS", "BudgetSpec", "Budgets", "allowance_of", "usual_name", "window_seconds"]

_PER: Final = ("org", "team", "user", "key", "agent", "model", "tool", "server", "tag", "all")
_UNITS: Final = ("usd", "tokens", "input_tokens", "output_tokens", "calls")
_SHORTEST: Final = 16  # tokens: an answer that is cut shorter than that is none
_MOST: Final = 2**53 - 1
_DRAWN: Final = 100  # accounts of one call
_KEYS: Final = 10_000  # that callers make up, in one window and worker
_PATIENCE: Final = 60.0  # seconds that it makes sense for a client to wait in
_FINAL: Final = (b"x-should-retry", b"false")
"""Clients of OpenAI's and Anthropic's kind make a call again after 429 unless they are told not to."""
_OTHERS: Final = "\x01others"
_LONGEST: Final = 256


def _per(value: str) -> str:
    return checked_per(value, _PER)


class BudgetSpec(Spec):
    """So much in a window, for each of something."""

    per: Annotated[str, AfterValidator(_per)] = Field(
        description="org, team, user, key, agent, model, tool, server, tag, all (one for everybody), or a CEL "
        "expression",
        examples=["org", "team", "user", 'request.headers["x-project"]'],
    )
    usd: Decimal | None = Field(
        default=None, ge=Decimal("0.000001"), le=9_000_000, allow_inf_nan=False, description="what models cost"
    )
    tokens: int | None = Field(default=None, ge=1, le=_MOST, description="tokens of models, in and out")
    input_tokens: int | None = Field(default=None, ge=1, le=_MOST, description="tokens of prompts, cached ones too")
    output_tokens: int | None = Field(default=None, ge=1, le=_MOST, description="tokens of answers, thoughts included")
    calls: int | None = Field(default=None, ge=1, le=_MOST, description="calls of models and tools")
    window: Annotated[
        Word | RollingSpec,
        BeforeValidator(
            checked_window,
            json_schema_input_type=Literal["hour", "day", "week", "month", "quarter", "year", "1h", "1d", "1w"]
            | RollingSpec,
        ),
    ] = Field(description=f"{', '.join(CALENDAR)} (1h, 1d, 1w) of the calendar, or {{rolling: 30d}}")
    zone: Annotated[str, AfterValidator(checked_zone)] = Field(
        default="UTC", description="the time zone whose calendar it is", examples=["Europe/Berlin"]
    )
    soft: float | None = Field(
        default=None, gt=0.0, lt=1.0, description="the part of it from which on callers are warned, like 0.8"
    )
    on_exceed: Literal["deny", "warn", "fallback"] = Field(
        default="deny", description="deny (429), warn (header, log and metric alone), or ask `fallback` instead"
    )
    fallback: str | None = Field(
        default=None, min_length=1, max_length=256, description="the model that is asked instead; it must fit as well"
    )
    reserve: Literal["max", "cap", "estimate"] = Field(
        default="estimate",
        description="for an answer that the caller does not bound: estimate (what 19 of 20 had, more as it grows), max "
        "(`max_output`), or cap (as max, but the answer is bounded by what is left)",
    )
    max_output: int = Field(
        default=32_768, ge=1, le=1 << 20, description="tokens that no answer is longer than, for `reserve`"
    )
    unpriced: Literal["deny", "allow"] | None = Field(
        default=None,
        description="calls of models whose price is not known: deny (the default where `usd` is denied), allow",
    )
    name: str = Field(
        default="", max_length=64, pattern=r"^[A-Za-z0-9_.:-]*$", description="in headers, metrics and errors"
    )
    on_store_failure: Literal["deny", "local", "allow"] = Field(
        default="deny",
        description="what happens while a shared `state` cannot be asked: deny answers 503, local lets pass what is in "
        "the worker's `grace`, allow everything; both count later",
    )
    grace: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="with `on_store_failure: local`, the part of it that each worker lets pass on its own, like 0.01",
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(getattr(self, unit) is not None for unit in _UNITS) != 1:
            raise ValueError(f"a budget has exactly one of {', '.join(f'`{unit}`' for unit in _UNITS)}")
        if (self.fallback is not None) != (self.on_exceed == "fallback"):
            raise ValueError("`fallback` names the model of `on_exceed: fallback`: both, or neither")
        if self.zone != "UTC" and isinstance(self.window, RollingSpec):
            raise ValueError("`zone` has no effect on a window that rolls; leave it out")
        if self.unpriced is not None and self.usd is None:
            raise ValueError("`unpriced` has an effect with `usd` alone; leave it out")
        if (self.grace is not None) != (self.on_store_failure == "local"):
            raise ValueError("`grace` is how much `on_store_failure: local` lets pass: both, or neither")
        if self.grace is not None and self.on_exceed == "warn":
            raise ValueError("a budget that only warns needs no `grace`; write `on_store_failure: allow`")
        given = self.model_fields_set
        if self.usd is None and self.unit not in ("tokens", "output_tokens") and given & {"reserve", "max_output"}:
            raise ValueError(f"`reserve` and `max_output` have no effect with `{self.unit}`; leave them out")
        if self.on_exceed == "warn" and given & {"reserve", "max_output"}:
            raise ValueError("`reserve` and `max_output` have no effect with `on_exceed: warn`; leave them out")
        if "max_output" in given and self.reserve == "estimate":
            raise ValueError("`max_output` has an effect with `reserve: max` or `cap`; say one of them")
        return self

    @property
    def unit(self) -> str:
        return next(unit for unit in _UNITS if getattr(self, unit) is not None)

    @property
    def amount(self) -> int:
        """In units that are counted: of money nano-dollars."""
        value = getattr(self, self.unit)
        return int(value * 10**9) if isinstance(value, Decimal) else int(value)


def window_seconds(spec: BudgetSpec) -> float:
    """How long what is drawn in a window counts from the window's start."""
    if isinstance(spec.window, RollingSpec):
        return spec.window.rolling * 1.1
    return {"hour": 3600.0, "day": 90_000.0, "week": 691_200.0, "month": 2_764_800.0, "quarter": 8_035_200.0}.get(
        spec.window, 31_708_800.0
    )


def allowance_of(spec: BudgetSpec, where: str) -> str:
    """The identity of a budget's allowance: not its amount. where: the scope it stands in."""
    window = clock_of(spec.window, spec.zone).name
    return f"{spec.unit}:{where}/{spec.name or spec.per}:{window}".replace("|", "!")


class _Budget:
    """One budget, ready to be drawn on."""

    __slots__ = (
        "_begun", "_chosen", "_clock", "_count", "_fallbacks", "_hard", "_key", "_limit", "_of_tags", "_refused",
        "_seen", "_spec", "_unasked", "_unpriced", "_warned", "allowance", "amount", "fallback", "grace", "header",
        "name", "on_store_failure", "unit",
    )  # fmt: skip

    def __init__(self, spec: BudgetSpec, name: str, allowance: str, descriptor: str, parts: Parts) -> None:
        self._spec = spec
        self.name = name
        self.header = name.encode()
        self.unit = spec.unit
        self.amount = spec.amount
        self.allowance = allowance
        self.fallback = spec.fallback or ""
        self.on_store_failure: str = spec.on_store_failure
        self.grace: Grace | None = None
        if spec.grace is not None:  # one for all chains, and what is given stays given when the configuration changes
            most = int(spec.amount * spec.grace)
            self.grace = parts.shared(("grace", allowance, most), lambda: Grace(most))
        self._clock = clock_of(spec.window, spec.zone)
        self._hard = spec.on_exceed != "warn"
        self._limit = self.amount if self._hard else None
        self._of_tags = spec.per == "tag"
        self._chosen = spec.per not in _PER or self._of_tags  # by callers
        self._seen: set[str] = set()
        self._begun = 0
        self._key: Key = _everybody if spec.per == "all" else key_of(spec.per) if not self._of_tags else _everybody
        unpriced = spec.unpriced or ("deny" if self._hard else "allow")
        self._unpriced = unpriced == "deny" and self.unit == "usd"
        checks = parts.families.budget_checks
        self._count = checks.child(descriptor, "admitted")
        self._warned = checks.child(descriptor, "warned")
        self._refused = checks.child(descriptor, "refused")
        self._fallbacks = checks.child(descriptor, "fallback")
        self._unasked = checks.child(descriptor, "unasked")

    def ask(self, call: Call, taking: Taking) -> None:
        """Raises Failure 429 where a price is not known."""
        if self.unit == "calls":
            if not calls(call):
                return
        elif not isinstance(call, ModelCall) or not call.model:
            return
        keys: tuple[str | None, ...] = call.context.tags if self._of_tags else (self._key(call),)
        if not keys or keys[0] is None:
            return
        amount, sized = self._amount(call, taking)
        if amount < 0:
            return
        start, end, earlier = self._clock.at(taking.now)
        if self._chosen:
            keys = self._bounded(keys, start)
        for key in keys:
            if key is not None:
                draw = Draw(self.allowance, key, min(amount, _MOST), self._limit, Window(start, end), earlier)
                taking.draw(self, draw, sized)
        if self.unit == "usd":
            taking.nano = max(taking.nano, amount)

    def _bounded(self, keys: tuple[str | None, ...], start: int) -> tuple[str | None, ...]:
        """Whoever makes up ever new keys gets one account for all of them, and the others keep theirs."""
        if start != self._begun:
            self._begun = start
            self._seen.clear()
        bounded: dict[str | None, None] = {}
        for key in keys:
            if key is not None and key not in self._seen:
                if len(self._seen) >= _KEYS:
                    key = _OTHERS
                else:
                    self._seen.add(key)
            bounded[key] = None
        return tuple(bounded)

    def _amount(self, call: Call, taking: Taking) -> tuple[int, Callable[[int], int] | None]:
        """What is held, and what that is with so many tokens of answer, where it may grow; -1 for what is free."""
        unit = self.unit
        if unit == "calls":
            return 1, None
        assert isinstance(call, ModelCall)
        quote = taking.quoted(call)
        if unit == "usd":
            if quote.rates is None and self._unpriced:
                raise self._without_price(call)
            if quote.free:
                return -1, None
        output, grows = quote.output, False
        if taking.most >= 0:
            output = taking.most
        elif output < 0:
            grows = self._hard and self._spec.reserve == "estimate"
            output = taking.likely(call) if self._spec.reserve == "estimate" else self._spec.max_output
        if unit == "input_tokens":
            return worth(unit, quote, output), None
        if grows:
            taking.grows = max(taking.grows, output)
        return worth(unit, quote, output), partial(worth, unit, quote)

    # ---- what came of it
    def drew(self, draw: Draw, used: int, taking: Taking) -> None:
        self._count.value += 1
        if self.grace is not None:
            self.grace.end(draw)
        soft = self._spec.soft
        over = used > self.amount
        if over or (soft is not None and used > self.amount * soft):
            self._warned.value += 1
            taking.warned = taking.warned or f"budget {self.name}"
            taking.fields.append((b"x-tollhouse-budget", self._state(draw, used)))

    def unasked(self) -> None:
        self._unasked.value += 1

    def spent(self, usage: Usage | None, cost_nano: int | None, counts: bool) -> int:
        return spent_of(self.unit, usage, cost_nano, counts)

    def fewer(self, call: ModelCall, draw: Draw, verdict: Verdict, taking: Taking) -> bool:
        """With `reserve: cap`: as many tokens of answer as there is room for, where that is worth asking for."""
        if self._spec.reserve != "cap" or self.unit in ("calls", "input_tokens") or not can_shorten(call):
            return False
        left = self.amount - verdict.used[verdict.draw]
        quote = taking.quoted(call)
        none = worth(self.unit, quote, 0)
        thousand = worth(self.unit, quote, 1000) - none
        most = (left - none) * 1000 // thousand - 1 if thousand > 0 else -1
        if most < _SHORTEST * several_of(call):
            return False
        taking.most = min(most, self._spec.max_output)
        return True

    def refused(self, call: Call, draw: Draw, verdict: Verdict) -> Failure:
        """429, with what is left and until when."""
        if self.fallback and not call.context.fallback:
            self._fallbacks.value += 1
        else:
            self._refused.value += 1
        call.context.limit = f"budget {self.name}"
        used = verdict.used[verdict.draw] if len(verdict.used) > verdict.draw >= 0 else self.amount
        left = max(self.amount - used, 0)
        said = f"has {self._said(left)} left, and this call may come to {self._said(draw.amount)}"
        if left == 0:
            said = "is used up"
        if draw.amount > self.amount:
            said = f"never allows a call that may come to {self._said(draw.amount)}; ask for less"
        return self._failure(said, draw, used, verdict.wait if draw.amount <= self.amount else inf)

    def cut(self, draw: Draw) -> Failure:
        return self._failure("is used up in the middle of the answer", draw, self.amount, inf)

    def _failure(self, said: str, draw: Draw, used: int, wait: float) -> Failure:
        headers = [(b"x-tollhouse-budget", self._state(draw, used))]
        if wait > _PATIENCE:
            headers.append(_FINAL)
        message = f"the budget `{self.name}` ({self._said(self.amount)} in {_span(self._spec)}) {said}"
        after: float | None = None
        if wait != inf:
            after = float(ceil(wait) or 1)
            headers.append((b"retry-after", b"%d" % after))
            message += f"; its window ends {_moment(draw.window.end)}"
        return Failure(
            429,
            Reason.BUDGET,
            message,
            code="budget_exceeded",
            detail=f"budget {draw.allowance} key {draw.key!r}",
            retry_after=after,
            headers=tuple(headers),
        )

    def _without_price(self, call: ModelCall) -> Failure:
        self._refused.value += 1
        call.context.limit = f"budget {self.name}"
        tier = tier_asked(call)
        what = f"{call.model[:100]!r}" + (f" in the service tier {tier!r}" if tier else "")
        message = f"the price of the model {what} is not known, and the budget `{self.name}` is in USD"
        detail = f"budget {self.allowance}: set `prices` for the model, or `unpriced: allow`"
        return Failure(429, Reason.BUDGET, message, code="price_unknown", detail=detail, headers=(_FINAL,))

    def _state(self, draw: Draw, used: int) -> bytes:
        """Of the header x-tollhouse-budget: what is left of how much, and when the window ends."""
        left = max(self.amount - used, 0)
        if self.unit == "usd":
            shown = b"left=%s;of=%s" % (_dollars(left).encode(), _dollars(self.amount).encode())
        else:
            shown = b"left=%d;of=%d" % (left, self.amount)
        return b'"%b";unit=%b;%b;until=%d' % (self.header, self.unit.encode(), shown, draw.window.end)

    def _said(self, amount: int) -> str:
        return f"{_dollars(amount)} USD" if self.unit == "usd" else f"{amount} {self.unit.replace('_', ' ')}"


def _everybody(_: Call) -> str | None:
    return ""


def _dollars(nano: int) -> str:
    whole = f"{nano / 1e9:.6f}".rstrip("0").rstrip(".")
    return whole if whole not in ("", "0") or nano == 0 else "0.000001"


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _span(spec: BudgetSpec) -> str:
    if isinstance(spec.window, RollingSpec):
        seconds = spec.window.rolling
        return f"{seconds / 86400:g} d" if seconds >= 86400 else f"{seconds / 3600:g} h"
    return f"a {spec.window}"


class Budgets:
    """The budgets that are in force for one chain: a Party of the admission."""

    quick = None

    def __init__(self, budgets: tuple[_Budget, ...]) -> None:
        self._budgets = budgets

    def ask(self, call: Call, taking: Taking) -> None:
        for budget in self._budgets:
            budget.ask(call, taking)


# What a budget cannot be about, by the scope it stands in.
_NEVER = {"model": ("tool", "server"), "server": ("model",), "tool": ("model",), "endpoint": ("model",)}
_OF_TOOLS = frozenset(("server", "tool", "endpoint"))


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    budgets: list[_Budget] = []
    drawn = 0
    names: set[str] = set()
    taken: set[str] = set()
    for layer in layers:
        specs: tuple[BudgetSpec, ...] = layer.spec
        for number, spec in enumerate(specs):
            path = f"budgets[{number}]"
            if spec.per in _NEVER.get(layer.level, ()):
                raise wrong(layer, path, f"`per: {spec.per}` can have no effect on {layer.one}")
            if layer.level in _OF_TOOLS and spec.unit != "calls":
                raise wrong(layer, path, f"`{spec.unit}` can have no effect on {layer.one}: only models cost")
            if layer.level in _OF_TOOLS and spec.on_exceed == "fallback":
                raise wrong(layer, path, f"`fallback` can have no effect on {layer.one}: it names a model")
            drawn += TAGS if spec.per == "tag" else 1
            if drawn > _DRAWN:
                message = f"one call would draw on more than {_DRAWN} accounts here: a budget of tags counts {TAGS}"
                raise wrong(layer, path, message)
            allowance = allowance_of(spec, layer.where)
            if allowance in taken:
                message = "there is one before it of the same `per`, unit and window: give one of them a `name`"
                raise wrong(layer, path, message)
            taken.add(allowance)
            name = spec.name or usual_name(spec)
            while name in names:
                name += "-2"
            names.add(name)
            descriptor = name if layer.level == "top" else f"{layer.where.replace(' ', ':')}/{name}"
            budgets.append(_Budget(spec, name, allowance, descriptor, parts))
    return Budgets(tuple(budgets))


def usual_name(spec: BudgetSpec) -> str:
    """What a budget is called that is given no name: `user-usd-day`."""
    per = spec.per if spec.per in WHOSE or spec.per in _PER else "expression"
    window = "rolling" if isinstance(spec.window, RollingSpec) else spec.window
    return f"{per}-{spec.unit.replace('_', '-')}-{window}"


BUDGETS: Kind[Call, Reply] = Kind(
    "budgets",
    frozenset(("top", "model", "server", "tool", "endpoint")),
    adds=True,
    build=_build,
    entrances=frozenset(("llm", "mcp")),
    joins=joined,
)
