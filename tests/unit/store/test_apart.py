"""A worker's share of rates while the server is away: what it admits, and the bound on what all admit together."""

import asyncio
from collections.abc import AsyncIterator
from itertools import accumulate, count
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fixtures.valkey import Valkey

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.net.timer import Timer
from tollhouse.store.apart import Apart
from tollhouse.store.base import REFUSED, Charge, Rate
from tollhouse.store.memory import MemoryCounter
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec

IDS = map(str, count())
RATE = Rate("r", 100, 100.0)


class Time:
    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(source=lambda: self.now)

    def set(self, now: float) -> None:
        self.now = now
        self.clock.turn()


@pytest.fixture
def time() -> Time:
    return Time()


def take(apart: Apart, amount: int, nodes: int = 4, key: str = "a", rate: Rate = RATE) -> Any:
    return apart.admit(next(IDS), [Charge(rate, key, amount)], nodes)


def test_it_begins_with_nothing_and_fills_with_its_share(time: Time) -> None:
    apart = Apart(time.clock)
    verdict = take(apart, 1)
    assert (verdict.happened, verdict.refused) == (REFUSED, 0)
    assert verdict.wait == pytest.approx(4.0)
    time.set(1004.0)
    assert take(apart, 1).refused == -1
    assert take(apart, 1).refused == 0
    time.set(1044.0)
    assert [take(apart, 5).refused for _ in range(3)] == [-1, -1, 0]
    time.set(100_000.0)
    assert take(apart, 26).refused == 0  # a share of the burst
    assert take(apart, 25).refused == -1


def test_a_key_that_comes_later_has_what_came_back_since(time: Time) -> None:
    apart = Apart(time.clock)
    take(apart, 1)
    time.set(1040.0)
    assert take(apart, 10, key="b").refused == -1
    assert take(apart, 1, key="b").refused == 0


def test_who_knows_of_no_others_has_no_share(time: Time) -> None:
    apart = Apart(time.clock)
    time.set(5000.0)
    assert take(apart, 1, nodes=0).refused == 0
    assert take(apart, 0, nodes=0).refused == -1


def test_all_or_nothing(time: Time) -> None:
    apart = Apart(time.clock)
    take(apart, 1)
    time.set(1040.0)
    charges = [Charge(RATE, "a", 5), Charge(Rate("narrow", 4, 100.0), "a", 2)]
    for _ in range(5):
        assert apart.admit(next(IDS), charges, 4).refused == 1
    assert take(apart, 10).refused == -1


def test_keys_have_a_bound(time: Time) -> None:
    apart = Apart(time.clock)
    take(apart, 1)
    time.set(10_000.0)
    for n in range(20_000):
        assert take(apart, 1, key=str(n)).refused == -1
    assert take(apart, 1, key="one more").refused == 0
    assert take(apart, 1, key="0").refused == -1
    assert len(apart.admitted()) == 20_000


def test_what_was_admitted_apart_is_settled_apart(time: Time) -> None:
    apart = Apart(time.clock)
    take(apart, 1)
    time.set(1080.0)
    charge = Charge(RATE, "a", 20)
    assert apart.admit("one", [charge], 4).refused == -1
    assert apart.settle("one", [charge], [5], 4) == []
    assert take(apart, 16).refused == 0
    assert take(apart, 15).refused == -1
    assert apart.settle("another", [charge], [5], 4) == [(charge, 5)]
    time.set(2000.0)
    for id in ("less", "more"):
        assert apart.admit(id, [charge], 4).refused == -1
        time.set(time.now + 1000.0)
    apart.end()
    # Of what the server never counted nothing is given back there.
    assert apart.settle("less", [charge], [5], 4) == []
    assert apart.settle("more", [charge], [25], 4) == [(charge, 25)]


STEPS = st.lists(
    st.tuples(st.floats(0.0, 20.0), st.integers(0, 2), st.integers(1, 8), st.integers(0, 9)), min_size=5, max_size=60
)


@settings(max_examples=400, deadline=None)
@given(steps=STEPS, amount=st.integers(3, 40), burst=st.integers(3, 40))
def test_together_they_never_admit_more_than_the_rate(
    steps: list[tuple[float, int, int, int]], amount: int, burst: int
) -> None:
    """Three workers and a server that comes and goes: over any interval at most burst + rate * length."""
    time = Time()
    rate = Rate("r", amount, 60.0, burst)
    server = MemoryCounter(time.clock)
    buckets = server.buckets(rate)
    workers = [Apart(time.clock) for _ in range(3)]
    is_away = False
    taken: list[tuple[float, int]] = []
    for passed, who, units, turn in steps:
        time.set(time.now + passed)
        if turn == 0 and not is_away:
            is_away = True
        elif turn == 1 and is_away:
            is_away = False
            for worker in workers:
                for charge in worker.admitted():
                    behind = buckets.ahead(charge.key)
                    buckets.move(charge.key, 0)
                    tables = server._tables["r"]
                    tables[charge.key] = time.clock.now + max(behind, charge.rate.tolerance)
                worker.end()
        if is_away:
            fits = take(workers[who], units, 3, "k", rate).refused < 0
        else:
            fits = buckets.take("k", units) <= rate.most
        if fits:
            taken.append((time.now, units))
    for first in range(len(taken)):
        sums = accumulate(units for _, units in taken[first:])
        for (at, _), total in zip(taken[first:], sums, strict=True):
            assert total <= burst + (at - taken[first][0]) / rate.step + 1e-3


# ---- with a server


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    one = Clock()
    timer = Timer(one)
    timer.start()
    yield one
    timer.stop()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_the_server_goes_and_comes_back(tmp_path: Path, clock: Clock) -> None:
    valkey = Valkey(tmp_path)
    valkey.start()
    rate = Rate("r", 1000, 10.0)
    what = StateSpec(url=valkey.url, prefix="p", timeout=1.0)
    one, other = RedisState(what, clock), RedisState(what, clock)
    charge = Charge(rate, "a", 1)
    assert one.counter.admit_apart("before", [charge]).refused == 0  # it has heard of nobody
    one.counter._apart.end()
    await asyncio.gather(one.counter.admit("1", [charge]), other.counter.admit("2", [charge]))
    await until(lambda: one.counter.nodes == 2 == other.counter.nodes)
    valkey.kill()
    with pytest.raises(Failure):
        await one.counter.admit("3", [charge])
    assert one.counter.admit_apart("3", [charge]).refused == 0
    await until(lambda: one.counter.admit_apart("4", [charge]).refused < 0)
    with pytest.raises(Failure):
        await asyncio.wait_for(one.counter.admit("5", [charge]), 20)
    valkey.start()
    await until(lambda: one.counter._apart.since < 0)  # by itself
    # What came back meanwhile was given: also to whoever noticed nothing.
    refused = await other.counter.admit("6", [Charge(rate, "a", 900)])
    assert refused.refused == 0
    assert 0 < refused.wait < inf
    # A key that nobody was admitted of has all of it.
    assert (await other.counter.admit("7", [Charge(rate, "b", 1000)])).refused == -1
    await one.close()
    await other.close()
    valkey.kill()
