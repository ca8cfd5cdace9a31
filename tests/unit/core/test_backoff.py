"""Waiting, and the budget of retries."""

import pytest

from tollhouse.core.backoff import Backoff, RetryBudget


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
    budget = Budget(floor=0.0)
    assert spent(budget) == 0
    for _ in range(101):
        budget.request()
    assert spent(budget) == 20


def test_and_ten_a_second() -> None:
    budget = Budget()
    assert spent(budget) == 10
    budget.now += 0.5
    assert spent(budget) == 5
    budget.now += 1e6
    assert spent(budget) == 100  # what is saved up is bounded


@pytest.mark.parametrize("requests", [10, 100_000])
def test_what_is_saved_up_is_bounded(requests: int) -> None:
    budget = Budget()
    for _ in range(requests):
        budget.request()
    assert spent(budget) <= 100
