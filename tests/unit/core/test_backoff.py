"""Waiting, and the budget of retries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.backoff import Backoff, Recent, RetryBudget, cause
from tollhouse.core.errors import Failure, Reason


def test_waits_grow_and_are_spread() -> None:
    backoff = Backoff(0.1, most=1.0)
    for repetition, most in ((1, 0.1), (2, 0.2), (3, 0.4), (4, 0.8), (5, 1.0), (1000, 1.0)):
        waits = [backoff.delay(repetition) for _ in range(200)]
        assert 0.0 <= min(waits) < most * 0.2
        assert most * 0.8 < max(waits) <= most


def test_what_was_asked_for_is_the_least() -> None:
    waits = [Backoff(0.1).delay(1, 5.0) for _ in range(100)]
    assert 5.0 <= min(waits) < max(waits) <= 5.1


class Budget(RetryBudget):
    def __init__(self, **more: float) -> None:
        self.now = 0.0
        super().__init__(clock=lambda: self.now, **more)


def spent(budget: RetryBudget) -> int:
    n = 0
    while budget.retry():
        n += 1
    return n


def test_a_fifth_of_the_requests() -> None:
    budget = Budget(floor=0.0, saved=0.0)
    assert spent(budget) == 0
    for _ in range(101):
        budget.request()
    assert spent(budget) == 20


def test_and_ten_a_second() -> None:
    budget = Budget()
    assert spent(budget) == 10
    budget.now += 0.5
    assert spent(budget) in (4, 5)
    budget.now += 1e6
    assert spent(budget) == 100  # what is saved up is bounded


def test_what_is_saved_up_is_of_the_last_seconds() -> None:
    budget = Budget()
    for _ in range(1_000_000):
        budget.request()
    budget.now += 1000.0  # 1,000 a second
    assert 2000 <= spent(budget) <= 2100
    budget.now += 1e6
    assert spent(budget) == 100


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.0, 30.0), st.integers(0, 30)), max_size=40))
def test_repetitions_are_never_more_than_promised(steps: list[tuple[int, float, int]]) -> None:
    budget = Budget()
    requests = repetitions = 0
    for came, passed, wanted in steps:
        for _ in range(came):
            budget.request()
        requests += came
        budget.now += passed
        repetitions += sum(budget.retry() for _ in range(wanted))
        assert repetitions <= 10 + 0.2 * requests + 10.0 * budget.now + 1e-6


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0.0, 30.0)), max_size=40))
def test_recent_counts_what_is_recent(steps: list[tuple[int, float]]) -> None:
    recent, now, came = Recent(30.0, 0.0), 0.0, 0
    for count, passed in steps:
        recent.fresh += count
        came += count
        now += passed
        assert 0.0 <= recent.value(now) <= came + 1e-6
    recent.clear(now)
    assert recent.value(now) == 0.0


def test_recent_of_an_even_stream_is_what_came_in_the_window() -> None:
    recent = Recent(30.0, 0.0)
    for second in range(1, 600):
        recent.fresh += 10
        if second % 7 == 0:
            recent.value(float(second))
    assert recent.value(600.0) == pytest.approx(300.0, rel=0.05)
    assert recent.value(700.0) < 15.0


@pytest.mark.parametrize(
    "failure, word",
    [
        (Failure(504, Reason.TIMEOUT, "x"), "timeout"),
        (Failure(502, Reason.UPSTREAM_FAILURE, "x", reached=False), "connect"),
        (Failure(502, Reason.UPSTREAM_FAILURE, "x", code="upstream_credentials"), "credentials"),
        (Failure(429, Reason.UPSTREAM, "x"), "429"),
        (Failure(503, Reason.UPSTREAM_FAILURE, "x"), "503"),
    ],
)
def test_the_cause_of_a_repetition(failure: Failure, word: str) -> None:
    assert cause(failure) == word
