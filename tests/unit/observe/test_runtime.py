"""observe.runtime: lag, tasks, connections."""

import asyncio

import pytest

from tollhouse.core.clock import Clock
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.observe.runtime import Runtime

pytestmark = pytest.mark.anyio


async def test_lag_is_what_a_turn_comes_late() -> None:
    now = [100.0]
    clock = Clock(1.0, lambda: now[0])
    families = Families(Metrics())
    runtime = Runtime(clock, families, worker="3")
    runtime.start()
    for step in (0.0625, 0.0625, 0.0625 + 0.3, 0.05):
        now[0] += step
        clock.turn()
    lag = families.loop_lag.child("3")
    assert sum(lag.counts) == 3  # the first turn has nothing before it
    assert lag.sum == pytest.approx(0.3)
    runtime.stop()
    clock.turn()
    assert sum(lag.counts) == 3


async def test_tasks_are_counted_when_asked() -> None:
    metrics = Metrics()
    families = Families(metrics)
    runtime = Runtime(Clock(), families)
    runtime.start()
    before = families.alive_tasks.child("0").get()
    sleeping = [asyncio.create_task(asyncio.sleep(60)) for _ in range(5)]
    assert families.alive_tasks.child("0").get() == before + 5
    for task in sleeping:
        task.cancel()
    await asyncio.gather(*sleeping, return_exceptions=True)
    assert families.alive_tasks.child("0").get() == before
    assert families.workers.child("0").get() == 1
    runtime.stop()


async def test_connections() -> None:
    metrics = Metrics()
    runtime = Runtime(Clock(), Families(metrics))
    runtime.connections(lambda: 7.0, "127.0.0.1:8080", "tollhouse", "main", "http")
    assert b'listener="main",protocol="http"} 7\n' in metrics.render()[1]
