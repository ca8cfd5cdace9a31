"""What tokens cost: Rates at one time, and a Schedule of Rates over time.

Rule: money is a whole number. A rate is femto-dollars (1e-15 USD) for one token, a price for a million tokens with nine
decimals; a call's cost is summed up in those and rounded once, half up, to nano-dollars. What has no rate of its own
costs what it is a part of: cached tokens as input, reasoning as output. A cost that is not known is None, never 0.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from math import inf
from typing import NamedTuple, Self

from tollhouse.core.call import Usage

__all__ = ["FREE", "KINDS", "Period", "Rates", "Schedule", "midnight"]

KINDS = (
    "input", "output", "cache_read", "cache_write", "cache_write_1h", "reasoning", "audio_input", "audio_output",
    "image_input", "image_output", "request",
)  # fmt: skip
"""What has a rate: tokens by kind (core.call.Usage), and `request`, a call itself."""

_DAY = 86_400
_NANO = 1_000_000
_HALF = _NANO // 2


class Rates:
    """What one model's tokens cost. rates: femto-dollars by kind. tiers: from the highest down, a number of prompt
    tokens, cached ones included, and the Rates of a call with more than that, for all of its tokens."""

    __slots__ = (
        "_known", "audio_input_more", "audio_output_more", "cache_read", "cache_write", "cache_write_1h_more",
        "complete", "image_input_more", "image_output_more", "input", "output", "reasoning_more", "request", "tiers",
    )  # fmt: skip

    def __init__(self, rates: Mapping[str, int], tiers: Mapping[int, Mapping[str, int]] | None = None) -> None:
        """tiers: by the number of tokens, the rates that are others there. Raises ValueError for a kind that there is
        not."""
        if unknown := rates.keys() - set(KINDS):
            raise ValueError(f"no kinds of tokens: {', '.join(sorted(unknown))}")
        get = rates.get
        self.input = prompt = get("input", 0)
        self.output = answer = get("output", 0)
        self.complete = "input" in rates and "output" in rates
        self._known = "input" in rates, "output" in rates
        self.cache_read = get("cache_read", prompt)
        self.cache_write = get("cache_write", prompt)
        # Of tokens that are counted within another kind: what they cost more than that, or less.
        self.cache_write_1h_more = get("cache_write_1h", self.cache_write) - self.cache_write
        self.reasoning_more = get("reasoning", answer) - answer
        self.audio_input_more = get("audio_input", prompt) - prompt
        self.image_input_more = get("image_input", prompt) - prompt
        self.audio_output_more = get("audio_output", answer) - answer
        self.image_output_more = get("image_output", answer) - answer
        self.request = get("request", 0)
        higher = sorted((tiers or {}).items(), reverse=True)
        self.tiers: tuple[tuple[int, Rates], ...] = tuple((n, Rates({**rates, **others})) for n, others in higher)

    @property
    def has_output(self) -> bool:
        """Whether tokens of answer have a rate."""
        return self._known[1]

    def cost(self, usage: Usage) -> int | None:
        """Nano-dollars; None where tokens were used that have no rate."""
        prompt = usage.input + usage.cache_read + usage.cache_write
        rates = self
        for above, tier in self.tiers:
            if prompt > above:
                rates = tier
                break
        if not rates.complete and ((prompt and not rates._known[0]) or (usage.output and not rates._known[1])):
            return None
        total = usage.input * rates.input + usage.output * rates.output + rates.request
        if prompt != usage.input:
            total += usage.cache_read * rates.cache_read + usage.cache_write * rates.cache_write
            total += usage.cache_write_1h * rates.cache_write_1h_more
        total += usage.reasoning * rates.reasoning_more
        if usage.audio_input or usage.audio_output:
            total += usage.audio_input * rates.audio_input_more + usage.audio_output * rates.audio_output_more
        if usage.image_input or usage.image_output:
            total += usage.image_input * rates.image_input_more + usage.image_output * rates.image_output_more
        return (total + _HALF) // _NANO


FREE = Rates(dict.fromkeys(KINDS, 0))
"""Of what runs on our own machine."""


class Period(NamedTuple):
    """When Rates hold. since: unix seconds. daily: from and until, seconds of the UTC day; until may be the smaller."""

    since: float = -inf
    daily: tuple[int, int] | None = None

    @classmethod
    def of(cls, text: str) -> Self:
        """A date like 2026-11-01 (UTC), a time of day like 16:30-00:30, or "" for always."""
        if not text:
            return cls()
        if len(text) == 11 and text[5] == "-":
            begin, end = (int(t[:2]) * 3600 + int(t[3:]) * 60 for t in text.split("-"))
            return cls(daily=(begin, end))
        return cls(since=midnight(date.fromisoformat(text)))

    def holds(self, at: float) -> bool:
        if at < self.since:
            return False
        if self.daily is None:
            return True
        begin, end = self.daily
        now = at % _DAY
        return begin <= now < end if begin <= end else now >= begin or now < end

    def changes(self, at: float) -> float:
        """The first time after `at` when it may begin or end to hold."""
        if at < self.since:
            return self.since
        if self.daily is None:
            return inf
        today = at - at % _DAY
        return min(t for day in (today, today + _DAY) for s in self.daily if (t := day + s) > at)


def midnight(day: date) -> float:
    """Unix seconds at which a date begins, UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()


class Schedule:
    """Rates over time: of those that hold the last counts, and where none does the first."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Sequence[tuple[Period, Rates | None]]) -> None:
        """entries: at least one. None: no price is known then."""
        self._entries = tuple(entries)

    def at(self, at: float) -> tuple[Rates | None, float]:
        """The Rates at that time, and until when they hold. Unix seconds."""
        until = min(period.changes(at) for period, _ in self._entries)
        for period, rates in reversed(self._entries):
            if period.holds(at):
                return rates, until
        return self._entries[0][1], until
