"""Leases: what they save, and the bound on what all workers admit with them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import accumulate, count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.valkey import Valkey, valkey

from tollhouse.core.clock import Clock
from tollhouse.net.timer import Timer
from tollhouse.store.base import Charge, Rate, Verdict
from tollhouse.store.leases import Leases
from tollhouse.store.memory import MemoryCounter
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec

IDS = map(str, count())


class Worker:
    """Asks a server in this process as RedisCounter asks one on the network."""

    def __init__(self, clock: Clock, server: MemoryCounter, nodes: int = 2) -> None:
        self.leases = Leases(clock)
        self.server = server
        self.nodes = nodes
        self.asked = 0

    def admit(self, charges: list[Charge]) -> Verdict:
        leased = self.leases.take(charges)
        if leased is not None:
            return leased
        asked = self.leases.wanted(charges, self.nodes)
        if asked is not None:
            verdict = self._ask(asked)
            self.give_back(self.leases.told(charges, asked, verdict))
            if verdict.refused < 0:
                return verdict
        verdict = self._ask(charges)
        self.leases.told(charges, charges, verdict)
        return verdict

    def turn(self) -> None:
        self.give_back(self.leases.turn())

    def give_back(self, corrections: list[tuple[Charge, int]]) -> None:
        for charge, amount in corrections:
            self.server.settle("", [charge], [amount])

    def _ask(self, charges: list[Charge]) -> Verdict:
        self.asked += 1
        return self.server.allowances().admit(next(IDS), charges)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(source=lambda: self.now)
        self.server = MemoryCounter(self.clock)

    def advance(self, seconds: float, *workers: Worker) -> None:
        self.now += seconds
        self.clock.turn()
        for worker in workers:
            worker.turn()


def heated(time: Time, worker: Worker, rate: Rate, key: str = "a") -> None:
    for _ in range(60):
        worker.admit([Charge(rate, key, 1)])
    time.advance(1.0, worker)


def test_a_hot_key_is_asked_for_less() -> None:
    time = Time()
    worker = Worker(time.clock, time.server)
    rate = Rate("r", 10_000, 100.0)
    heated(time, worker, rate)
    assert worker.asked == 60
    for _ in range(404):
        assert worker.admit([Charge(rate, "a", 1)]).refused == -1
    assert worker.asked == 60 + 1 + 4  # the first one tells how much there is; then slices of 100
    # All of it is known to the server.
    assert time.server.buckets(rate).ahead("a") == pytest.approx((60 + 1 + 404 - 1) * rate.step - 1.0, abs=1.1)


def test_what_is_not_used_is_given_back() -> None:
    time = Time()
    worker = Worker(time.clock, time.server)
    rate = Rate("r", 10_000, 100.0)
    heated(time, worker, rate)
    worker.admit([Charge(rate, "a", 1)])
    worker.admit([Charge(rate, "a", 1)])
    assert time.server.buckets(rate).ahead("a") > 1.0
    time.advance(5.0, worker)  # cold
    assert len(worker.leases) == 0
    time.advance(1.0, worker)
    assert time.server.buckets(rate).ahead("a") == 0.0


def test_a_slice_ends_with_its_time() -> None:
    time = Time()
    worker = Worker(time.clock, time.server)
    rate = Rate("r", 10_000, 1.0)
    heated(time, worker, rate)
    worker.admit([Charge(rate, "a", 1)])
    worker.admit([Charge(rate, "a", 1)])
    asked = worker.asked
    worker.admit([Charge(rate, "a", 1)])
    assert worker.asked == asked
    time.now += 0.2
    time.clock.turn()
    worker.admit([Charge(rate, "a", 1)])
    assert worker.asked == asked + 1


def test_cold_keys_small_rates_and_workers_alone_lease_nothing() -> None:
    time = Time()
    worker = Worker(time.clock, time.server)
    small, large = Rate("small", 99, 1.0), Rate("large", 10_000, 1.0)
    heated(time, worker, small)
    for _ in range(49):
        worker.admit([Charge(large, "cold", 1)])
    time.advance(1.0, worker)
    unknown = Worker(time.clock, time.server, nodes=0)
    heated(time, unknown, large)
    for one, rate, key in ((worker, small, "a"), (worker, large, "cold"), (unknown, large, "a")):
        before = one.asked
        for _ in range(10):
            one.admit([Charge(rate, key, 1)])
        assert one.asked == before + 10


def test_a_rate_that_was_changed_is_asked_for() -> None:
    time = Time()
    worker = Worker(time.clock, time.server)
    rate = Rate("r", 10_000, 100.0)
    heated(time, worker, rate)
    for _ in range(3):
        worker.admit([Charge(rate, "a", 1)])
    asked = worker.asked
    worker.admit([Charge(Rate("r", 5_000, 100.0), "a", 1)])
    assert worker.asked == asked + 1


STEPS = st.lists(st.tuples(st.floats(0.0, 1.5), st.integers(0, 1), st.integers(1, 90)), min_size=5, max_size=40)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, amount=st.sampled_from([100, 200, 1000]), burst=st.none() | st.integers(100, 300))
def test_together_they_admit_a_slice_each_more_at_most(
    steps: list[tuple[float, int, int]], amount: int, burst: int | None
) -> None:
    time = Time()
    rate = Rate("r", amount, 10.0, burst)
    workers = [Worker(time.clock, time.server) for _ in range(2)]
    taken: list[tuple[float, int]] = []
    for passed, who, calls in steps:
        time.advance(passed, *workers)
        fit = sum(workers[who].admit([Charge(rate, "k", 1)]).refused < 0 for _ in range(calls))
        if fit:
            taken.append((time.now, fit))
    slices = 2 * (rate.burst // 100)
    for first in range(len(taken)):
        sums = accumulate(units for _, units in taken[first:])
        for (at, _), total in zip(taken[first:], sums, strict=True):
            assert total <= rate.burst + slices + (at - taken[first][0]) / rate.step + 1e-3


# ---- on a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    one = Clock()
    timer = Timer(one)
    timer.start()
    yield one
    timer.stop()


@pytest.mark.anyio
async def test_workers_that_lease_share_a_rate(server: Valkey, clock: Clock) -> None:
    """Two of them ask as fast as they can until nothing is left: they get what there is, in far fewer round trips."""
    asked = 0

    def observe(operation: str, outcome: str, seconds: float) -> None:
        nonlocal asked
        asked += operation == "admit"

    what = StateSpec(url=server.url, prefix="leases", timeout=5.0)
    one, other = RedisState(what, clock, observe=observe), RedisState(what, clock, observe=observe)
    rate = Rate("r", 20_000, 10_000.0)
    admitted = calls = 0

    async def ask(state: Any) -> None:
        nonlocal admitted, calls
        while True:
            calls += 1
            verdict = await state.counter.admit(next(IDS), [Charge(rate, "a", 1)])
            if verdict.refused >= 0:
                return
            admitted += 1
            if calls % 50 == 0:
                await asyncio.sleep(0)  # a lease does not suspend

    async def heat(state: Any) -> None:
        """Ask often enough until a slice was had, and the other worker is known of."""
        nonlocal admitted
        leases = state.counter._leases
        while state.counter.nodes < 2 or not any(lease.units for lease in leases._leases.values()):
            assert (await state.counter.admit(next(IDS), [Charge(rate, "a", 1)])).refused < 0
            admitted += 1
            await asyncio.sleep(0.002)

    async with asyncio.timeout(60):
        await asyncio.gather(heat(one), heat(other))
        before = asked
        await asyncio.gather(*(ask(state) for state in (one, other) for _ in range(10)))
    # All but the rest of a slice each was to be had; the rate gives some more meanwhile.
    assert 20_000 - 2 * 200 <= admitted <= 20_000 + 120
    assert asked - before < calls / 4
    await one.close()
    await other.close()
