"""What providers ask for their models: a table that comes with the package, made by scripts/prices of genai-prices.

Rule: nothing is fetched. The table is one JSON object; a provider's models are decoded when one of them is first asked
for, and none before.

    {"source": "genai-prices 0.2.3", "notice": its licence, "providers": {"openai": {
      "url": a regular expression: what the addresses of its API begin with,
      "also": providers whose models it has too,
      "models": [[match, prices], [match, prices, {"flex": prices}], ...]}}}

match: a list of which one must be true, each a list of which all must be: "=name", "^start", "$end", "~part", or
"/regular expression"; all in lower case. The first model that matches counts. prices: a list of [when, rates], when as
in `Period.of`; rates: femto-dollars by kind, and under a number the rates that are others in a call with more prompt
tokens than that. No rates: it has a price, but tokens do not say it. Prices of service tiers stand third, under the
tier's name (`core.call.Usage.tier`); a tier that is not there has no price that is known.
"""

import re
from datetime import date
from pathlib import Path
from typing import Any, Self

import msgspec

from tollhouse.ledger.rates import Period, Rates, Schedule

__all__ = ["Catalogue"]

_FILE = Path(__file__).with_name("catalogue.json")
_COMPACT_DATE = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=[-:]|$)")
_LONGEST = 256

_Prices = list[tuple[str, dict[str, int | dict[str, int]]]]


class _Model(msgspec.Struct, array_like=True, gc=False):
    match: list[list[str]]
    prices: _Prices
    tiers: dict[str, _Prices] = {}


class _Provider(msgspec.Struct):
    url: str
    also: list[str]
    models: msgspec.Raw


class _Table(msgspec.Struct):
    source: str
    notice: str
    providers: dict[str, _Provider]


class Catalogue:
    """The table, as JSON. Raises msgspec.DecodeError for what is none."""

    def __init__(self, table: bytes) -> None:
        decoded = msgspec.json.decode(table, type=_Table)
        self.source = decoded.source
        """The package it was made of, and its version."""
        self._providers = decoded.providers
        self._models: dict[str, list[_Model]] = {}

    @classmethod
    def load(cls) -> Self:
        """The one that comes with the package; it is read from a file."""
        return cls(_FILE.read_bytes())

    @property
    def providers(self) -> list[str]:
        return list(self._providers)

    def provider_at(self, url: str) -> str | None:
        """The provider whose API is at that address."""
        return next((name for name, provider in self._providers.items() if re.match(provider.url, url)), None)

    def find(self, provider: str, model: str, tier: str = "") -> Schedule | None:
        """What a model costs there in that service tier; None when it is not known. model: as the provider calls it, in
        any case."""
        entry = self._providers.get(provider)
        if entry is None or len(model) > _LONGEST:
            return None
        name = model.lower()
        with_date = _COMPACT_DATE.sub(_dashed, name)
        for asked in (name, with_date) if with_date != name else (name,):
            for place in (provider, *entry.also):
                for candidate in self._of(place):
                    if any(all(_fits(term, asked) for term in terms) for terms in candidate.match):
                        prices = candidate.tiers.get(tier) if tier else candidate.prices
                        return None if prices is None else _schedule(prices)
        return None

    def _of(self, provider: str) -> list[_Model]:
        models = self._models.get(provider)
        if models is None:
            entry = self._providers[provider]
            models = self._models[provider] = msgspec.json.decode(entry.models, type=list[_Model])
        return models


def _fits(term: str, name: str) -> bool:
    text = term[1:]
    match term[0]:
        case "=":
            return name == text
        case "^":
            return name.startswith(text)
        case "$":
            return name.endswith(text)
        case "~":
            return text in name
        case _:
            return re.search(text, name) is not None


def _dashed(found: re.Match[str]) -> str:
    """-20251231 as -2025-12-31, where there is such a day."""
    try:
        return f"-{date(*map(int, found.groups())).isoformat()}"
    except ValueError:
        return found[0]


def _schedule(prices: _Prices) -> Schedule:
    return Schedule([(Period.of(when), _rates(rates)) for when, rates in prices])


def _rates(told: dict[str, Any]) -> Rates | None:
    if not told:
        return None
    tiers = {int(name): rates for name, rates in told.items() if isinstance(rates, dict)}
    return Rates({name: rate for name, rate in told.items() if not isinstance(rate, dict)}, tiers)
