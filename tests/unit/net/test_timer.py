"""The timer: turns its clock from start to stop, late or not, and whatever happens in a turn."""

import asyncio
from time import monotonic, sleep

import pytest

from tollhouse.core.clock import Clock
from tollhouse.net.timer import Timer

pytestmark = pytest.mark.anyio


async def turns(clock: Clock, count: int) -> None:
    """Until the clock was turned that often."""
    seen = asyncio.Semaphore(0)
    clock.every_turn(seen.release)
    async with asyncio.timeout(5):
        for _ in range(count):
            await seen.acquire()
    clock.remove(seen.release)


async def test_it_turns_every_tick_from_start_to_stop() -> None:
    clock = Clock(0.16)
    ran: list[float] = []
    clock.every_turn(lambda: ran.append(monotonic()))
    timer = Timer(clock)
    timer.start()
    assert len(ran) == 1, "at once"
    await turns(clock, 5)
    assert ran[5] - ran[0] >= 5 * clock.tick * 0.8
    assert clock.now == pytest.approx(monotonic(), abs=0.5)
    timer.stop()
    timer.stop()
    before = len(ran)
    await asyncio.sleep(5 * clock.tick)
    assert len(ran) == before


async def test_a_failing_hook_does_not_stop_time() -> None:
    clock = Clock(0.16)

    def bad() -> None:
        raise RuntimeError("a bug")

    clock.every_turn(bad)
    timer = Timer(clock)
    timer.start()
    try:
        await turns(clock, 3)
    finally:
        timer.stop()


async def test_lag_is_how_late_the_last_turn_was() -> None:
    clock = Clock(0.16)
    timer = Timer(clock)
    timer.start()
    try:
        assert timer.lag == pytest.approx(0.0, abs=0.05)
        lags: list[float] = []
        clock.every_turn(lambda: lags.append(timer.lag))
        sleep(0.2)  # something holds the loop
        await turns(clock, 1)
        assert max(lags) > 0.1
    finally:
        timer.stop()
