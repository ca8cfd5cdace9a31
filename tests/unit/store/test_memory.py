"""The memory counter: the common suite, that it never suspends, and its bounds."""

from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from tests.conformance.counter import Bench, CounterSuite, Direct, admit

from tollhouse.core.clock import SLICES, Clock
from tollhouse.store.base import Buckets, Charge, Counter, Rate, Verdict
from tollhouse.store.memory import MemoryCounter

T = TypeVar("T")


class Memory:
    """Runs without a loop: whatever suspended would fail here."""

    def __init__(self, limit: int = 100_000) -> None:
        self.now = 1_000_000.0
        self.clock = Clock(source=lambda: self.now)
        self.counter = MemoryCounter(self.clock, limit)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            work.send(None)
        except StopIteration as done:
            value: T = done.value
            return value
        raise AssertionError("it suspended")

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.clock.turn()

    def sweep(self) -> None:
        for _ in range(10 * SLICES):
            self.clock.turn()


class TestMemory(CounterSuite):
    @contextmanager
    def bench(self) -> Iterator[Bench]:
        yield Memory()


class TestMemoryBuckets(CounterSuite):
    @contextmanager
    def bench(self) -> Iterator[Bench]:
        memory = Memory()
        memory.counter = Direct(memory.counter)  # type: ignore[assignment]
        yield memory


class Exact:
    """A Counter that keeps to the ids, as one on the network must: what is asked again is answered again and taken
    once, and only what was admitted is settled, once."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._answered: dict[str, Verdict] = {}
        self._open: dict[str, list[tuple[str, str, int]]] = {}

    def buckets(self, rate: Rate) -> Buckets | None:
        return self._counter.buckets(rate)

    async def admit(self, id: str, charges: Sequence[Charge]) -> Verdict:
        if id not in self._answered:
            verdict = self._answered[id] = await self._counter.admit(id, charges)
            if verdict.refused < 0:
                self._open[id] = [(charge.rate.name, charge.key, charge.amount) for charge in charges]
        return self._answered[id]

    def settle(self, id: str, charges: Sequence[Charge], amounts: Sequence[int]) -> None:
        assert self._open.pop(id) == [(charge.rate.name, charge.key, charge.amount) for charge in charges]
        self._counter.settle(id, charges, amounts)


class TestExact(CounterSuite):
    """The suite asks as the contract says a caller does."""

    @contextmanager
    def bench(self) -> Iterator[Bench]:
        memory = Memory()
        memory.counter = Exact(memory.counter)  # type: ignore[assignment]
        yield memory


def test_what_has_lapsed_is_forgotten() -> None:
    it = Memory()
    short, long = Rate("short", 1, 10.0), Rate("long", 1, 1000.0)
    for n in range(2000):
        admit(it, Charge(short, f"k{n}", 1), Charge(long, f"k{n % 10}", 0))
        admit(it, Charge(long, f"k{n % 10}", 1))
    assert len(it.counter) == 2010
    it.advance(5.0)
    it.sweep()
    assert len(it.counter) == 2010
    it.advance(6.0)
    it.sweep()
    assert len(it.counter) == 10
    assert admit(it, Charge(long, "k1", 1)).refused == 0
    it.advance(1000.0)
    it.sweep()
    assert len(it.counter) == 0


def test_a_turn_looks_at_few() -> None:
    it = Memory()
    for n in range(3000):
        admit(it, Charge(Rate("r", 1, 1.0), f"k{n}", 1))
    it.now += 10
    it.clock.turn()
    assert 3000 - 512 <= len(it.counter) < 3000


@pytest.mark.parametrize("rates", [1, 700])
def test_many_rates_are_swept_too(rates: int) -> None:
    it = Memory()
    for n in range(rates):
        admit(it, Charge(Rate(f"r{n}", 1, 1.0), "k", 1))
    it.advance(2.0)
    it.sweep()
    assert len(it.counter) == 0


def test_beyond_the_bound_new_keys_share_one_bucket() -> None:
    it = Memory(limit=3)
    rate = Rate("r", 2, 60.0)
    for key in "abc":
        assert admit(it, Charge(rate, key, 1)).refused == -1
    assert [admit(it, Charge(rate, key, 1)).refused for key in "defg"] == [-1, -1, 0, 0]
    assert admit(it, Charge(rate, "a", 1)).refused == -1  # those who were there keep theirs
    assert len(it.counter) == 4
    it.counter.settle("1", [Charge(rate, "d", 1)], [0])
    assert admit(it, Charge(rate, "z", 1)).refused == -1
    it.advance(200.0)
    it.sweep()
    assert [admit(it, Charge(rate, key, 1)).refused for key in "xyz"] == [-1] * 3


def test_close_lets_go_of_the_clock() -> None:
    it = Memory()
    it.run(it.counter.close())
    it.clock.turn()
    admit(it, Charge(Rate("r", 1, 1.0), "k", 1))
    it.advance(5.0)
    it.sweep()
    assert len(it.counter) == 1


@pytest.mark.parametrize("wrong", [(0, 1.0, None), (1, 0.0, None), (1, 1.0, 0)])
def test_a_rate_has_something_to_give(wrong: tuple[int, float, int | None]) -> None:
    with pytest.raises(ValueError, match="at least one unit"):
        Rate("r", *wrong)
