"""ledger.rates: whole numbers, tiers, times; and what must hold of every cost."""

from datetime import UTC, datetime
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Usage
from tollhouse.ledger.rates import FREE, KINDS, Period, Rates, Schedule

USD = 10**9  # a dollar for a million tokens, as a rate


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_a_cost_is_whole_nano_dollars_rounded_once_half_up() -> None:
    rates = Rates({"input": 500_000, "output": 1})  # half a nano-dollar a token
    assert rates.cost(Usage(1, 0)) == 1
    assert rates.cost(Usage(3, 0)) == 2
    assert rates.cost(Usage(0, 499_999)) == 0
    assert rates.cost(Usage(0, 500_000)) == 1
    assert rates.cost(Usage(1, 499_999)) == 1


def test_what_has_no_rate_costs_what_it_is_a_part_of() -> None:
    rates = Rates({"input": 2 * USD, "output": 8 * USD})
    assert rates.cost(Usage(10, 20, 30, 40, 5, False, 7, 1, 2, 3, 4)) == (10 + 30 + 40) * 2_000 + 20 * 8_000


def test_every_kind_has_its_rate() -> None:
    dollars = (2, 8, 1, 3, 4, 9, 5, 10, 6, 11, 1000)  # in the order of KINDS
    rates = Rates({kind: usd * USD for kind, usd in zip(KINDS, dollars, strict=True)})
    usage = Usage(100, 200, 30, 40, 20, cache_write_1h=10, audio_input=7, audio_output=5, image_input=3, image_output=2)
    expected = 90 * 2_000 + 7 * 5_000 + 3 * 6_000  # prompt: text, sound, pictures
    expected += 30 * 1_000 + 30 * 3_000 + 10 * 4_000  # cache: read, written for minutes and for an hour
    expected += (200 - 20 - 5 - 2) * 8_000 + 20 * 9_000 + 5 * 10_000 + 2 * 11_000
    assert rates.cost(usage) == expected + 1_000_000  # and a tenth of a cent for the call


def test_tokens_without_a_rate_make_the_cost_unknown() -> None:
    embeddings = Rates({"input": USD})
    assert embeddings.cost(Usage(7, 0)) == 7_000
    assert embeddings.cost(Usage(7, 1)) is None
    assert Rates({"output": USD}).cost(Usage(0, 1, cache_read=1)) is None
    assert Rates({"request": 5 * 10**12}).cost(Usage()) == 5_000_000


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="inputs"):
        Rates({"inputs": 1})


def test_a_long_prompt_makes_every_token_dearer() -> None:
    rates = Rates(
        {"input": USD, "output": 2 * USD, "cache_read": 0}, {100: {"input": 3 * USD}, 200: {"input": 5 * USD}}
    )
    assert rates.cost(Usage(100, 10)) == 100_000 + 20_000
    assert rates.cost(Usage(101, 10)) == 303_000 + 20_000
    assert rates.cost(Usage(1, 10, cache_read=100)) == 3_000 + 20_000
    assert rates.cost(Usage(201, 0)) == 1_005_000


usages = st.builds(
    lambda i, o, r, w, parts: Usage(
        i, o, r, w, min(parts[0], o),
        cache_write_1h=min(parts[1], w),
        audio_input=(a := min(parts[2], i)),
        image_input=min(parts[3], i - a),
        audio_output=(b := min(parts[4], o - min(parts[0], o))),
        image_output=min(parts[5], o - min(parts[0], o) - b),
    ),
    *[st.integers(0, 1 << 24)] * 4,
    st.tuples(*[st.integers(0, 1 << 24)] * 6),
)  # fmt: skip
tables = st.dictionaries(st.sampled_from(KINDS), st.integers(0, 10**12), min_size=1).map(
    lambda d: {"input": 10**9, "output": 10**9} | d
)


@given(tables, usages, st.integers(1, 1 << 20))
def test_more_of_a_kind_never_costs_less(table: dict[str, int], usage: Usage, more: int) -> None:
    """Of each kind by itself: a token of sound is also a token of input."""
    rates = Rates(table)
    before = rates.cost(usage)
    assert before is not None
    assert before >= 0
    for kind, whole in (
        ("input", ""), ("output", ""), ("cache_read", ""), ("cache_write", ""), ("reasoning", "output"),
        ("cache_write_1h", "cache_write"), ("audio_input", "input"), ("audio_output", "output"),
        ("image_input", "input"), ("image_output", "output"),
    ):  # fmt: skip
        fields = {name: getattr(usage, name) for name in Usage.__struct_fields__}
        for name in filter(None, (kind, whole)):
            fields[name] += more
        after = rates.cost(Usage(**fields))
        assert after is not None
        assert after >= before


@given(tables, usages)
def test_what_is_free_costs_nothing(table: dict[str, int], usage: Usage) -> None:
    assert FREE.cost(usage) == 0
    assert Rates(table).cost(Usage()) == (table.get("request", 0) + 500_000) // 10**6


def test_periods() -> None:
    always, day = Period.of(""), Period.of("2026-11-01")
    assert always.holds(0)
    assert always.changes(0) == inf
    assert not day.holds(at("2026-10-31T23:59:59"))
    assert day.holds(at("2026-11-01"))
    assert day.changes(at("2026-10-31T12:00")) == at("2026-11-01")
    assert day.changes(at("2026-11-01")) == inf
    night = Period.of("16:30-00:30")
    assert night.holds(at("2026-11-01T16:30"))
    assert night.holds(at("2026-11-01T00:29:59"))
    assert not night.holds(at("2026-11-01T00:30"))
    assert night.changes(at("2026-11-01T17:00")) == at("2026-11-02T00:30")
    assert night.changes(at("2026-11-01T00:30")) == at("2026-11-01T16:30")
    noon = Period.of("11:00-13:00")
    assert noon.holds(at("2026-11-01T12:00"))
    assert not noon.holds(at("2026-11-01T13:00"))


def test_the_last_period_that_holds_counts() -> None:
    first, second, night = Rates({"input": 1}), Rates({"input": 2}), Rates({"input": 3})
    schedule = Schedule(
        [(Period.of("2025-01-01"), first), (Period.of("2026-11-01"), second), (Period.of("16:30-00:30"), night)]
    )
    assert schedule.at(at("2020-01-01T12:00")) == (first, at("2020-01-01T16:30"))
    assert schedule.at(at("2026-10-31T12:00")) == (first, at("2026-10-31T16:30"))
    assert schedule.at(at("2026-10-31T20:00")) == (night, at("2026-11-01"))
    assert schedule.at(at("2026-11-01T12:00")) == (second, at("2026-11-01T16:30"))


@given(st.floats(1.5e9, 2e9), st.sampled_from(["", "2026-11-01", "16:30-00:30", "01:00-04:00"]))
def test_nothing_changes_before_it_is_said_to(now: float, text: str) -> None:
    period = Period.of(text)
    until = period.changes(now)
    assert until > now
    for share in (0.1, 0.5, 0.99):
        then = now + share * (min(until, now + 1e6) - now)
        assert period.holds(then) == period.holds(now)
