"""What every Counter must do. A store's own test subclasses CounterSuite and says how one is made; one that shows its
state as Buckets runs the suite a second time through them (`Direct`).

class TestMemory(CounterSuite):
    @contextmanager
    def counter(self): ...
"""

from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate, count
from math import inf
from typing import Any, Protocol, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tollhouse.store.base import Buckets, Charge, Counter, Rate, Verdict

T = TypeVar("T")

IDS = map(str, count(1))  # of admissions: no two have the same, whatever counter they are for


class Bench(Protocol):
    """A counter whose time the test moves."""

    counter: Counter

    def run(self, work: Coroutine[Any, Any, T]) -> T: ...

    def advance(self, seconds: float) -> None: ...


class Direct:
    """A Counter that is asked through its Buckets alone: all that is said of `admit` and `settle` is true of them."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def buckets(self, rate: Rate) -> Buckets:
        buckets = self._counter.buckets(rate)
        assert buckets is not None
        return buckets

    async def admit(self, id: str, charges: Sequence[Charge]) -> Verdict:
        behind: list[float] = []
        for charge in charges:
            rate = charge.rate
            ahead = self.buckets(rate).take(charge.key, charge.amount) if charge.amount else 0.0
            if ahead > rate.most:
                for taken in charges[: len(behind)]:
                    self.buckets(taken.rate).move(taken.key, -taken.amount)
                wait = inf if charge.amount > rate.burst else ahead - rate.tolerance
                refused = len(behind)
                return Verdict(refused, wait, [*behind, ahead - charge.amount * rate.step])
            behind.append(ahead)
        return Verdict(-1, 0.0, behind)

    def settle(self, id: str, charges: Sequence[Charge], amounts: Sequence[int]) -> None:
        for charge, amount in zip(charges, amounts, strict=True):
            self.buckets(charge.rate).move(charge.key, amount - charge.amount)


class CounterSuite:
    def bench(self) -> AbstractContextManager[Bench]:
        raise NotImplementedError

    @pytest.fixture
    def it(self) -> Any:
        with self.bench() as bench:
            yield bench

    def test_a_burst_and_then_one_at_a_time(self, it: Bench) -> None:
        rate = Rate("r", 6, 60.0)
        assert [admit(it, Charge(rate, "a", 1)).refused for _ in range(6)] == [-1] * 6
        verdict = admit(it, Charge(rate, "a", 1))
        assert verdict.refused == 0
        assert verdict.wait == pytest.approx(10.0, abs=0.01)
        assert verdict.behind == pytest.approx([60.0], abs=0.01)
        it.advance(9.9)
        assert admit(it, Charge(rate, "a", 1)).refused == 0
        it.advance(0.2)
        assert admit(it, Charge(rate, "a", 1)).refused == -1
        assert admit(it, Charge(rate, "a", 1)).refused == 0

    def test_keys_and_rates_do_not_share(self, it: Bench) -> None:
        one, other = Rate("one", 1, 60.0), Rate("other", 1, 60.0)
        for rate, key in ((one, "a"), (one, "b"), (other, "a")):
            assert admit(it, Charge(rate, key, 1)).refused == -1
            assert admit(it, Charge(rate, key, 1)).refused == 0

    def test_rates_of_one_name_share(self, it: Bench) -> None:
        assert admit(it, Charge(Rate("r", 10, 60.0), "a", 8)).refused == -1
        assert admit(it, Charge(Rate("r", 10, 60.0), "a", 3)).refused == 0  # as after a change of configuration

    def test_a_burst_may_be_smaller_than_the_amount(self, it: Bench) -> None:
        rate = Rate("r", 60, 60.0, burst=2)
        assert [admit(it, Charge(rate, "a", 1)).refused for _ in range(3)] == [-1, -1, 0]
        it.advance(1.01)
        assert [admit(it, Charge(rate, "a", 1)).refused for _ in range(2)] == [-1, 0]

    def test_what_is_larger_than_the_burst_never_fits(self, it: Bench) -> None:
        verdict = admit(it, Charge(Rate("r", 10, 60.0), "a", 11))
        assert verdict.refused == 0
        assert verdict.wait == inf
        assert verdict.behind == [0.0]

    def test_a_refusal_takes_nothing_from_any(self, it: Bench) -> None:
        wide, narrow = Rate("wide", 10, 60.0), Rate("narrow", 1, 60.0)
        assert admit(it, Charge(wide, "a", 1), Charge(narrow, "a", 1)).refused == -1
        for _ in range(20):
            assert admit(it, Charge(wide, "a", 1), Charge(narrow, "a", 1)).refused == 1
        assert [admit(it, Charge(wide, "a", 1)).refused for _ in range(10)] == [-1] * 9 + [0]

    def test_behind_tells_how_full_each_is(self, it: Bench) -> None:
        one, other = Rate("one", 10, 100.0), Rate("other", 4, 100.0)
        verdict = admit(it, Charge(one, "a", 3), Charge(other, "a", 1))
        assert verdict.behind == pytest.approx([30.0, 25.0], abs=0.01)

    def test_nothing_is_free(self, it: Bench) -> None:
        rate = Rate("r", 1, 60.0)
        assert admit(it, Charge(rate, "a", 1)).refused == -1
        assert admit(it, Charge(rate, "a", 0)).refused == -1

    def test_settle_gives_back_and_takes_more(self, it: Bench) -> None:
        rate = Rate("tokens", 100, 100.0)
        charge = Charge(rate, "a", 80)
        first, verdict = admit_as(it, charge)
        assert verdict.refused == -1
        it.counter.settle(first, [charge], [30])
        assert admit(it, Charge(rate, "a", 71)).refused == 0
        more = Charge(rate, "a", 70)
        second, verdict = admit_as(it, more)
        assert verdict.refused == -1
        it.counter.settle(second, [more], [170])  # the bucket is now 100 behind its limit
        verdict = admit(it, Charge(rate, "a", 1))
        assert verdict.refused == 0
        assert verdict.wait == pytest.approx(101.0, abs=0.01)

    def test_what_is_given_back_late_makes_no_burst(self, it: Bench) -> None:
        rate = Rate("tokens", 100, 100.0)
        charge = Charge(rate, "a", 100)
        id, verdict = admit_as(it, charge)
        assert verdict.refused == -1
        it.advance(1000.0)
        it.counter.settle(id, [charge], [0])
        assert [admit(it, Charge(rate, "a", 50)).refused for _ in range(3)] == [-1, -1, 0]

    def test_a_debt_after_all_had_lapsed_counts(self, it: Bench) -> None:
        rate = Rate("tokens", 100, 100.0)
        charge = Charge(rate, "a", 1)
        id, verdict = admit_as(it, charge)
        assert verdict.refused == -1
        it.advance(1000.0)
        it.counter.settle(id, [charge], [101])
        assert admit(it, Charge(rate, "a", 1)).refused == 0

    def test_settle_of_several(self, it: Bench) -> None:
        one, other = Charge(Rate("one", 10, 60.0), "a", 10), Charge(Rate("other", 10, 60.0), "b", 10)
        id, verdict = admit_as(it, one, other)
        assert verdict.refused == -1
        it.counter.settle(id, [one, other], [0, 10])
        assert admit(it, one).refused == -1
        assert admit(it, other).refused == 0

    def test_buckets_are_the_same_state(self, it: Bench) -> None:
        rate = Rate("r", 10, 60.0)
        buckets = it.counter.buckets(rate)
        if buckets is None:
            return
        assert buckets.take("a", 6) == pytest.approx(36.0)
        assert admit(it, Charge(rate, "a", 5)).refused == 0
        id, verdict = admit_as(it, Charge(rate, "a", 4))
        assert verdict.refused == -1
        assert buckets.take("a", 1) > rate.most
        it.counter.settle(id, [Charge(rate, "a", 4)], [0])
        assert buckets.take("a", 4) <= rate.most

    # Run by each subclass, with its own bench: nothing is shared between the executors.
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(
        amount=st.integers(1, 50),
        window=st.sampled_from([0.5, 1.0, 60.0, 3600.0]),
        burst=st.none() | st.integers(1, 50),
        steps=st.lists(st.tuples(st.floats(0.0, 1.5), st.integers(1, 20), st.integers(0, 40) | st.none()), max_size=30),
    )
    def test_no_interval_sees_more_than_burst_and_rate(
        self, amount: int, window: float, burst: int | None, steps: list[tuple[float, int, int | None]]
    ) -> None:
        """GCRA's bound, with settling: over any interval, what was admitted in it is at most burst + rate * length,
        where each admission counts as what it settled to (see limits research: plus what is under way)."""
        rate = Rate("r", amount, window, burst)
        with self.bench() as it:
            now = 0.0
            taken: list[tuple[float, int]] = []
            for share, units, actual in steps:
                it.advance(share * window)
                now += share * window
                charge = Charge(rate, "k", units)
                id, verdict = admit_as(it, charge)
                model = fits(rate, taken, now, units)
                if model is not None:
                    assert (verdict.refused == -1) is model
                if verdict.refused == -1:
                    if actual is not None and actual <= units:
                        it.counter.settle(id, [charge], [actual])
                        units = actual
                    taken.append((now, units))
            for first in range(len(taken)):
                sums = accumulate(units for _, units in taken[first:])
                for (at, _), total in zip(taken[first:], sums, strict=True):
                    assert total <= rate.burst + (at - taken[first][0]) / rate.step + 1e-3


def fits(rate: Rate, taken: list[tuple[float, int]], now: float, units: int) -> bool | None:
    """Whether GCRA takes `units` now; None when it is too close to say."""
    tat = 0.0
    for at, amount in taken:
        tat = max(tat, at) + amount * rate.step
    spare = rate.tolerance - max(0.0, tat - now) - units * rate.step
    return None if abs(spare) < 1e-3 * rate.step else spare > 0


def admit(it: Bench, *charges: Charge) -> Verdict:
    return admit_as(it, *charges)[1]


def admit_as(it: Bench, *charges: Charge) -> tuple[str, Verdict]:
    """The id of a new admission, and what came of it."""
    id = next(IDS)
    return id, it.run(it.counter.admit(id, charges))
