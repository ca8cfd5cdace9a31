"""State in memory: the common suite of counters, that nothing suspends, and the bounds."""

from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from tests.conformance.allowances import NOW, AllowanceSuite, DirectDraws, WithDraw
from tests.conformance.counter import Bench, CounterSuite, Direct, admit

from tollhouse.core.clock import SLICES, Clock
from tollhouse.core.errors import Failure
from tollhouse.store.base import Buckets, Charge, Counter, Draw, Rate, Verdict, Window
from tollhouse.store.memory import MemoryCounter, MemoryState, MemoryValues
from tollhouse.store.memory_allowances import MemoryAllowances
from tollhouse.store.topics import Topics

T = TypeVar("T")


class Memory:
    """Runs without a loop: whatever suspended would fail here."""

    def __init__(self, limit: int = 100_000) -> None:
        self.now = 1_000_000.0
        self.clock = Clock(source=lambda: self.now)
        self.counter: Any = MemoryCounter(self.clock, limit, wall=lambda: self.now - 1_000_000.0 + NOW)

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

    def tick(self) -> None:
        self.sweep()

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


class TestMemoryWithDraw(CounterSuite):
    @contextmanager
    def bench(self) -> Iterator[Bench]:
        memory = Memory()
        memory.counter = WithDraw(memory.counter)
        yield memory


class TestMemoryDraws(AllowanceSuite):
    @contextmanager
    def bench(self) -> Iterator[Any]:
        yield Memory()


class TestMemoryAllowances(AllowanceSuite):
    @contextmanager
    def bench(self) -> Iterator[Any]:
        memory = Memory()
        memory.counter = DirectDraws(memory.counter)
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


def test_beyond_the_bound_nothing_is_known_of_keys_that_have_nothing_in_common() -> None:
    it = Memory(limit=3)
    rate = Rate("same", 2, 60.0, together=False)
    for key in "abc":
        assert admit(it, Charge(rate, key, 1)).refused == -1
    assert [admit(it, Charge(rate, key, 1)).refused for key in "dededed"] == [-1] * 7
    assert admit(it, Charge(rate, "d", 3)).refused == 0  # which never fits
    assert [admit(it, Charge(rate, "a", 1)).refused for _ in "12"] == [-1, 0]
    it.counter.settle("1", [Charge(rate, "d", 1)], [9])
    assert len(it.counter) == 3


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


# ---- values and messages (tests/conformance/test_stores.py has the rest)


class Values:
    """Values whose time the test moves; nothing suspends."""

    def __init__(self, **bounds: int) -> None:
        self.now = 1_000.0
        self.clock = Clock(source=lambda: self.now)
        self.values = MemoryValues(self.clock, **bounds)

    def turn(self, seconds: float, turns: int = 1) -> None:
        self.now += seconds
        for _ in range(turns):
            self.clock.turn()


def done(work: Coroutine[Any, Any, T]) -> T:
    return Memory().run(work)


def test_values_that_have_lapsed_are_swept() -> None:
    it = Values()
    for n in range(2000):
        done(it.values.put(f"k{n}", b"v" * 100, 10.0 if n % 2 else 100.0))
    full = it.values.size
    it.turn(11.0, 10)
    assert len(it.values) == 1000
    assert it.values.size == pytest.approx(full / 2, rel=0.01)
    it.turn(100.0, 10)
    assert (len(it.values), it.values.size) == (0, 0)


def test_values_have_a_bound_in_number() -> None:
    it = Values(limit=3)
    for key in "abc":
        done(it.values.put(key, b"v", 10.0))
    for refused in (it.values.put("d", b"v", 10.0), it.values.add("d", b"v", 10.0)):
        with pytest.raises(Failure, match="not available"):
            done(refused)
    done(it.values.put("a", b"w", 10.0))  # has its place
    assert done(it.values.swap("b", b"v", b"w", 10.0)) is True
    assert done(it.values.remove("c")) is True
    done(it.values.put("d", b"v", 10.0))
    it.now += 11.0
    it.clock.now = it.now  # nothing is swept yet: there is room all the same
    done(it.values.put("e", b"v", 10.0))
    assert len(it.values) == 1


def test_values_have_a_bound_in_bytes() -> None:
    it = Values(room=10_000)
    done(it.values.put("a", bytes(5000), 10.0))
    with pytest.raises(Failure):
        done(it.values.put("b", bytes(5000), 10.0))
    with pytest.raises(Failure):
        done(it.values.put("a", bytes(10_000), 10.0))
    assert done(it.values.get("a")) == bytes(5000)
    done(it.values.put("a", bytes(9000), 10.0))
    done(it.values.put("a", bytes(10), 10.0))
    done(it.values.put("b", bytes(5000), 10.0))
    assert it.values.size < 10_000


def test_the_state_of_a_process() -> None:
    clock = Clock()
    state = MemoryState(clock, (b"k" * 32,))
    assert state.keys == (b"k" * 32,)
    assert not state.shared
    assert len(MemoryState(clock).keys[0]) == 32
    done(state.close())


def test_gaps_are_told_once_to_those_who_may_lack_something(caplog: pytest.LogCaptureFixture) -> None:
    emptied: list[str] = []
    topics = Topics(emptied.append)
    told: list[str] = []

    def fail() -> None:
        told.append("fail")
        raise RuntimeError

    topics.add("t", told.append, fail)  # type: ignore[arg-type]
    end = topics.add("t", print, lambda: told.append("t"))
    topics.add("u", print, None)
    topics.regained()
    topics.lost()
    topics.add("t", print, lambda: told.append("later"))
    topics.regained()
    topics.regained()
    assert told == ["fail", "t"]
    assert "a gap on 't'" in caplog.text
    topics.lost()
    end()
    topics.regained()
    assert told == ["fail", "t", "fail", "later"]
    assert emptied == []


def test_who_has_an_allowance_spends_on_when_there_is_no_room_for_more() -> None:
    now = [float(NOW)]
    clock = Clock()
    table = MemoryAllowances(clock, lambda charges: Verdict(-1, 0.0, []), wall=lambda: now[0], limit=3)
    table.know({"usd:x": 3600.0})
    table.opening(Draw("usd:x", "", 1, None, Window(NOW - 600, NOW + 60)), {}, again=False)
    now[0] += 60
    new = Window(NOW + 60, NOW + 3660)
    a, b, c, d = [Draw("usd:x", key, 1, 100, new) for key in "abcd"]
    for n in range(12):
        draw = (a, b, c)[n % 3]
        assert table.admit(f"id{n}", (), [draw]).used == [1 + n // 3]
        table.post("j", n + 1, f"id{n}", [(draw.field, 1)])
    with pytest.raises(Failure) as caught:
        table.admit("new", (), [a, d])
    assert caught.value.status == 503
    at_once = Draw("concurrent:x", "a", 1, 1, kept=False)
    assert table.admit("last", (), [a, at_once]).used == [5, 1]
