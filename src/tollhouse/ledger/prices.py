"""What a call cost: the operator's own prices first, then the catalogue's.

Rule: a price belongs to whoever asks for it, and to the service tier that answered. The catalogue prices a model at the
provider whose address the configured provider has; the same name at another address is another model, at a price that
only the operator can tell. Unknown is None, never 0, and never the price of another tier; what runs on our own machine
costs 0. What was found is remembered, bounded, until prices change.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from math import inf
from time import time
from typing import Annotated, NamedTuple, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from tollhouse.core.call import Context, Share
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.core.spec import Spec
from tollhouse.ledger.catalogue import Catalogue
from tollhouse.ledger.rates import FREE, Rates, Schedule, midnight

__all__ = ["Origin", "PriceSpec", "Prices", "TierSpec"]

_REMEMBERED = 10_000
_LONGEST = 256  # of a name that is remembered
_VENDORS = {"azure": "azure", "bedrock": "aws", "gemini": "google", "vertex": "google"}
"""Kinds of providers that can only be one."""

Usd = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=9, allow_inf_nan=False)]


def _one_star(value: str) -> str:
    if value.count("*") > 1:
        raise ValueError("the name of a model has at most one `*`")
    return value


class _RatesSpec(Spec):
    """USD for a million tokens."""

    input: Usd | None = Field(default=None, description="USD for a million tokens, those from the cache not included")
    output: Usd | None = Field(default=None, description="USD for a million tokens, reasoning included")
    cache_read: Usd | None = Field(default=None, description="tokens the provider had in its cache; else as input")
    cache_write: Usd | None = Field(default=None, description="tokens that went into its cache; else as input")
    cache_write_1h: Usd | None = Field(default=None, description="those of them kept for an hour; else as cache_write")
    reasoning: Usd | None = Field(default=None, description="tokens of thoughts; else as output")
    audio_input: Usd | None = Field(default=None, description="tokens of sound; else as input")
    audio_output: Usd | None = Field(default=None, description="tokens of sound; else as output")
    image_input: Usd | None = Field(default=None, description="tokens of pictures; else as input")
    image_output: Usd | None = Field(default=None, description="tokens of pictures; else as output")

    def rates(self) -> dict[str, int]:
        """Femto-dollars by kind, of those that are set."""
        told = ((name, getattr(self, name)) for name in _RatesSpec.model_fields)
        return {name: int(usd * 10**9) for name, usd in told if usd is not None}


class TierSpec(_RatesSpec):
    """What is others for a call with a long prompt, for all of its tokens."""

    tokens: int = Field(gt=0, description="in calls with more prompt tokens than this, cached ones included")

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if not self.rates():
            raise ValueError("no price is set here")
        return self


class PriceSpec(_RatesSpec):
    """A price of the operator's own, in the place of the catalogue's."""

    model_config = ConfigDict(serialize_by_alias=True)

    provider: str | None = Field(default=None, description="the name of a provider, or a kind; absent: any")
    model: Annotated[str, AfterValidator(_one_star)] = Field(
        min_length=1, max_length=256, description="as the provider calls it; exact, or with one *"
    )
    like: str | None = Field(
        default=None, description="priced as in the catalogue, by this provider of it", examples=["openai"]
    )
    tier: str | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="of calls that this service tier answered (flex, priority, batch); * for any; absent: the usual",
        examples=["flex"],
    )
    start: date | None = Field(default=None, alias="from", description="from this day on (UTC); absent: ever since")
    over: tuple[TierSpec, ...] = Field(default=(), description="prices of calls with long prompts")
    request: Usd | None = Field(default=None, description="USD for a call, beside its tokens")

    @model_validator(mode="after")
    def _priced(self) -> Self:
        own = [*self.rates(), *(["request"] if self.request is not None else []), *self.over]
        if self.like is not None and own:
            raise ValueError("`like` takes the catalogue's prices: leave the others out, or `like`")
        if self.like is None and self.input is None and self.output is None and self.request is None:
            raise ValueError("no price is set here: set `input` and `output`, `request`, or `like`")
        if self.like is not None and self.tier is not None:
            raise ValueError("`like` takes the catalogue's prices of every tier: leave `tier` out, or `like`")
        if len({tier.tokens for tier in self.over}) != len(self.over):
            raise ValueError("two of `over` begin at the same number of tokens")
        return self

    def schedule(self) -> Rates:
        rates = self.rates()
        if self.request is not None:
            rates["request"] = int(self.request * 10**15)
            rates.setdefault("input", 0)
            rates.setdefault("output", 0)
        return Rates(rates, {tier.tokens: tier.rates() for tier in self.over})


class Origin(NamedTuple):
    """Where a configured provider's prices come from: its kind, and the address of its API, "" for none."""

    kind: str
    url: str = ""


class _Override:
    """A PriceSpec, ready."""

    __slots__ = ("_after", "_before", "_exact", "like", "provider", "rank", "rates", "since", "tier")

    def __init__(self, spec: PriceSpec, number: int) -> None:
        name = spec.model.lower()
        self._before, star, self._after = name.partition("*")
        self._exact = not star
        self.provider = spec.provider
        self.like = spec.like
        self.tier = (spec.tier or "").lower()
        self.rates = None if spec.like is not None else spec.schedule()
        self.since = -inf if spec.start is None else midnight(spec.start)
        self.rank = (self._exact, len(name), spec.provider is not None, self.tier != "*", self.since, number)
        """The highest counts: a whole name before a pattern, the longer pattern, one provider, one tier, the latest."""

    def fits(self, name: str) -> bool:
        if self._exact:
            return name == self._before
        enough = len(name) >= len(self._before) + len(self._after)
        return enough and name.startswith(self._before) and name.endswith(self._after)


class _Found(NamedTuple):
    rates: Rates | None
    until: float


class Prices:
    """Prices for the providers of one configuration. catalogue: None knows the overrides only."""

    def __init__(
        self, catalogue: Catalogue | None, providers: Mapping[str, Origin], overrides: Sequence[PriceSpec] = ()
    ) -> None:
        """providers: by their configured names. Raises ConfigError for an override that can have no effect."""
        problems = []
        kinds = {origin.kind for origin in providers.values()}
        listed = catalogue.providers if catalogue is not None else []
        for n, spec in enumerate(overrides):
            if spec.provider is not None and spec.provider not in providers and spec.provider not in kinds:
                message = f"no provider has the name or the kind `{spec.provider}`"
                problems.append(Problem(message, path=f"prices[{n}].provider"))
            if spec.like is not None and spec.like not in listed:
                message = f"the catalogue has no provider `{spec.like}`; it has {', '.join(listed)}"
                problems.append(Problem(message, path=f"prices[{n}].like"))
        if problems:
            raise ConfigError(problems)
        self._catalogue = catalogue
        self._providers = dict(providers)
        self._overrides = [_Override(spec, n) for n, spec in enumerate(overrides)]
        self._known: dict[tuple[str, str, str, str], _Found] = {}

    def cost(self, context: Context) -> int | None:
        """Nano-dollars of what the call used, also put in the context; None while it has used nothing, or no price is
        known."""
        usage = context.usage
        if usage is None:
            return None
        cost = context.cost_nano
        if cost is not None:
            return cost
        if context.shares:
            cost = context.cost_nano = self._sum(context.shares)
            return cost
        rates = self._rates(context.backend, context.model_answered, context.model_sent, usage.tier)
        if rates is not None:
            cost = context.cost_nano = rates.cost(usage)
        return cost

    def _sum(self, shares: Iterable[Share]) -> int | None:
        """Each at the price of who used it; None as soon as one of them is not known."""
        cost = 0
        for backend, answered, sent, usage in shares:
            if usage.total:
                rates = self._rates(backend, answered, sent, usage.tier)
                spent = None if rates is None else rates.cost(usage)
                if spent is None:
                    return None
                cost += spent
        return cost

    def _rates(self, backend: str, answered: str, sent: str, tier: str) -> Rates | None:
        key = (backend, answered, sent, tier)
        found = self._known.get(key)
        if found is None or (found.until != inf and time() >= found.until):
            found = self._find(key, time())
        return found.rates

    def rates(self, provider: str, model: str, at: float, tier: str = "") -> Rates | None:
        """What the model costs at the configured provider at that time (unix seconds), in that service tier; None: not
        known."""
        return self._look(provider, (model,), at, tier).rates

    def _find(self, key: tuple[str, str, str, str], at: float) -> _Found:
        provider, answered, sent, tier = key
        found = self._look(provider, tuple(dict.fromkeys(name for name in (answered, sent) if name)), at, tier)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        if len(answered) <= _LONGEST and len(sent) <= _LONGEST:
            self._known[key] = found
        return found

    def _look(self, provider: str, models: Sequence[str], at: float, tier: str) -> _Found:
        """models: the names it may go by, the surest first. A price of the usual tier is none of another one's: where
        the operator has only told that, none is known."""
        origin = self._providers.get(provider)
        if origin is None or not models:
            return _Found(None, inf)
        names = [name.lower() for name in models]
        until = inf
        best: _Override | None = None
        other: _Override | None = None  # what the operator says of another tier
        for override in self._overrides:
            if override.provider not in (None, provider, origin.kind) or not any(map(override.fits, names)):
                continue
            if at < override.since:
                until = min(until, override.since)
            elif override.tier not in (tier, "*") and override.like is None:
                if other is None or override.rank > other.rank:
                    other = override
            elif best is None or override.rank > best.rank:
                best = override
        if best is not None and best.like is None:
            return _Found(best.rates, until)
        if tier and other is not None and (best is None or other.rank > best.rank):
            return _Found(None, until)  # a price of their own, and for this tier none
        if origin.kind == "local" and best is None:
            return _Found(FREE, until)
        place = best.like if best is not None else self._place(origin)
        schedule = self._listed(place, names, tier)
        if schedule is None:
            return _Found(None, until)
        rates, changes = schedule.at(at)
        return _Found(rates, min(until, changes))

    def _place(self, origin: Origin) -> str | None:
        vendor = _VENDORS.get(origin.kind)
        if vendor is not None or self._catalogue is None:
            return vendor
        return self._catalogue.provider_at(origin.url) if origin.url else None

    def _listed(self, place: str | None, models: Sequence[str], tier: str) -> Schedule | None:
        if place is None or self._catalogue is None:
            return None
        for model in models:
            schedule = self._catalogue.find(place, model, tier)
            if schedule is not None:
                return schedule
        return None
