"""gateway.usage: questions as they are written, and money as it is shown. (The rest with the commands and the API.)"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.gateway.usage import asked, usd

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def test_a_question() -> None:
    found = asked(by="org, user", since="2d", until="1d", where=["user=a=b", "tag="], order="usd", top=5, now=NOW)
    assert found.since == NOW - timedelta(days=2)
    assert found.until == NOW - timedelta(days=1)
    assert (found.by, found.where) == (("org", "user"), (("user", "a=b"), ("tag", "")))
    assert (found.order, found.top) == ("cost_nano", 5)
    assert asked(now=NOW).until == NOW


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        ({"by": "x"}, "cannot group by x"),
        ({"since": ""}, "not a time: ''"),
        ({"until": "x"}, "not a time: 'x'"),
        ({"where": ["x=1"]}, "not a condition: 'x=1'"),
        ({"order": "by"}, "cannot order by by"),
        ({"top": -1}, "not negative"),
    ],
)
def test_no_question(question: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        asked(**question)  # type: ignore[arg-type]


@given(st.integers(-(1 << 60), 1 << 60))
def test_money_is_exact(nano: int) -> None:
    text = usd(nano)
    assert Decimal(text) * 10**9 == nano
    assert len(text.partition(".")[2]) >= 6


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.000000"), (1, "0.000000001"), (1_500_000_000, "1.500000"), (-250_000_000, "-0.250000"), (10, "0.00000001")],
)
def test_money(nano: int, text: str) -> None:
    assert usd(nano) == text
