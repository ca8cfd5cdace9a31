import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.backends.tokens import Time, ready, rest

from tollhouse.backends.renewal import Lease, Renewed
from tollhouse.core.clock import FOREVER
from tollhouse.core.errors import Failure, Reason

pytestmark = pytest.mark.anyio


class Source:
    """Leases for 1,000 seconds, or what a test says. hold: a fetch waits until it is set."""

    def __init__(self) -> None:
        self.fetches = 0
        self.seconds: float = 1000.0
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.cancelled = 0

    async def __call__(self) -> Lease[str]:
        self.fetches += 1
        number = self.fetches
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.error is not None:
            raise self.error
        return Lease(f"t{number}", self.seconds)


def render(value: str) -> bytes:
    return b"k: %b\r\n" % value.encode()


@asynccontextmanager
async def renewed(source: Source, time: Time, spread: Callable[[], float] = lambda: 0.0) -> AsyncIterator[Renewed[str]]:
    it = Renewed(source, render, "up", time.clock, spread=spread)
    try:
        yield it
    finally:
        await it.close()


def at_once(it: Renewed[str]) -> None:
    """`ready` returns without waiting."""
    with pytest.raises(StopIteration):
        it.ready(monotonic() + 5).send(None)


async def test_the_first_request_waits_and_the_next_do_not() -> None:
    time, source = Time(), Source()
    async with renewed(source, time) as it:
        assert not it.settled
        assert await ready(it) == b"k: t1\r\n"
        assert it.settled
        assert it.value == "t1"
        at_once(it)
        assert source.fetches == 1


async def test_start_fetches_before_anybody_asks() -> None:
    time, source = Time(), Source()
    async with renewed(source, time) as it:
        it.start()
        it.start()
        await rest()
        assert it.settled
        assert source.fetches == 1


@pytest.mark.parametrize(
    ("life", "due"),
    [(3600.0, 2880.0), (1500.0, 1200.0), (1000.0, 700.0), (600.0, 300.0), (300.0, 150.0), (60.0, 30.0)],
)
async def test_when_it_is_renewed(life: float, due: float) -> None:
    for chance in (0.0, 1.0):
        time, source = Time(), Source()
        source.seconds = life
        async with renewed(source, time, lambda chance=chance: chance) as it:  # type: ignore[misc]
            it.start()
            await rest()
            began = time.now
            while source.fetches == 1:
                await time.pass_(1)
                assert it.settled
            assert due * (1 - chance / 10) <= time.now - began <= due + 2


async def test_what_does_not_end_is_not_renewed() -> None:
    time, source = Time(), Source()
    source.seconds = FOREVER
    async with renewed(source, time) as it:
        it.start()
        await rest()
        await time.pass_(1e7, 1e5)
        assert it.settled
        assert source.fetches == 1


async def test_nobody_waits_while_it_is_renewed() -> None:
    time, source = Time(), Source()
    async with renewed(source, time) as it:
        await ready(it)
        source.hold = asyncio.Event()
        await time.pass_(800)
        assert source.fetches == 2
        at_once(it)
        assert it.lines == b"k: t1\r\n"
        source.hold.set()
        await rest()
        assert it.lines == b"k: t2\r\n"
        assert it.ends == pytest.approx(1700 + 1000 - 10, abs=2)


async def test_a_storm_makes_one_fetch() -> None:
    time, source = Time(), Source()
    source.hold = asyncio.Event()
    async with renewed(source, time) as it:
        storm = [asyncio.create_task(ready(it)) for _ in range(500)]
        await rest()
        for task in storm[:100]:
            task.cancel()  # who leaves does not end it for the others
        await rest()
        source.hold.set()
        got = await asyncio.gather(*storm, return_exceptions=True)
        assert sum(line == b"k: t1\r\n" for line in got) == 400
        assert source.fetches == 1


async def test_a_storm_on_a_failing_source_makes_one_fetch() -> None:
    time, source = Time(), Source()
    source.error = Failure(502, Reason.UPSTREAM_FAILURE, "no", detail="why not")
    async with renewed(source, time) as it:
        for _ in range(3):
            got = await asyncio.gather(*(ready(it) for _ in range(100)), return_exceptions=True)
            for failure in got:
                assert isinstance(failure, Failure)
                assert (failure.status, failure.retry, failure.code) == (503, True, "upstream_credentials")
                assert failure.detail == "no: why not"
                assert "why" not in failure.message
            assert len({id(failure) for failure in got}) == 100  # one exception in many tasks would collect frames
        assert source.fetches == 1
        source.error = None
        await time.pass_(3)
        assert it.settled
        at_once(it)


async def test_a_request_that_has_no_time_to_wait() -> None:
    time, source = Time(), Source()
    source.hold = asyncio.Event()
    async with renewed(source, time) as it:
        with pytest.raises(Failure) as failure:
            await it.ready(monotonic() + 0.01)
        assert (failure.value.status, failure.value.reason) == (504, Reason.TIMEOUT)
        with pytest.raises(Failure):
            await it.ready(monotonic() - 1)
        source.hold.set()
        await rest()
        assert it.settled


async def test_failures_back_off_and_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    time, source = Time(), Source()
    async with renewed(source, time) as it:
        await ready(it)
        source.error = OSError("cut https://host/path?secret=1 off")
        with caplog.at_level(logging.INFO):
            await time.pass_(985)
            assert it.settled
            at_once(it)
            assert 5 < source.fetches < 60
            assert [r.levelname for r in caplog.records] == ["WARNING"]
            assert "cut https://host/path off; the last ones are good for another 2" in caplog.text
            await time.pass_(10)
            assert not it.settled
            assert [r.levelname for r in caplog.records] == ["WARNING", "ERROR"]
            with pytest.raises(Failure) as failure:
                await ready(it)
            assert 0 <= (failure.value.retry_after or 0.0) <= 61
            source.error = None
            await time.pass_(65)
            assert it.settled
            assert [r.levelname for r in caplog.records] == ["WARNING", "ERROR", "INFO"]


async def test_a_retry_after_is_kept_to() -> None:
    time, source = Time(), Source()
    source.error = Failure(502, Reason.UPSTREAM_FAILURE, "no", retry_after=120.0)
    async with renewed(source, time) as it:
        it.start()
        await rest()
        await time.pass_(119)
        assert source.fetches == 1
        await time.pass_(5)
        assert source.fetches == 2
        assert not it.settled


async def test_a_bug_in_a_fetch_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    time, source = Time(), Source()
    source.error = KeyError("x")
    async with renewed(source, time) as it:
        with pytest.raises(Failure) as failure:
            await ready(it)
        assert failure.value.detail == "a KeyError"
        assert "Traceback" in caplog.text


@pytest.mark.parametrize("seconds", [0.0, -5.0, float("nan")])
async def test_what_has_expired_on_arrival(seconds: float) -> None:
    time, source = Time(), Source()
    source.seconds = seconds
    async with renewed(source, time) as it:
        with pytest.raises(Failure) as failure:
            await ready(it)
        assert "clock" in failure.value.detail


async def test_what_has_expired_on_its_way() -> None:
    time, source = Time(), Source()
    source.seconds = 20.0
    source.hold = asyncio.Event()
    async with renewed(source, time) as it:
        it.start()
        await rest()
        await time.pass_(19)
        source.hold.set()
        await rest()
        assert not it.settled
        source.hold = None
        await time.pass_(3)
        assert it.settled


async def test_a_refused_one_is_renewed_and_worth_waiting_for() -> None:
    time, source = Time(), Source()
    async with renewed(source, time) as it:
        first = await ready(it)
        assert not it.refused(first, 401, None)  # it has just come: another would be no better
        await time.pass_(100)
        assert not it.refused(first, 403, None)
        assert not it.refused(first, 429, 1.0)
        source.hold = asyncio.Event()
        assert it.refused(first, 401, None)
        assert it.refused(first, 401, None)
        waiting = asyncio.create_task(ready(it))
        await rest()
        assert not waiting.done()
        assert it.settled  # who was not refused does not wait
        source.hold.set()
        assert await waiting == b"k: t2\r\n"
        assert it.refused(first, 401, None)  # another is there
        assert not it.refused(it.lines, 401, None)
        assert source.fetches == 2
        at_once(it)


async def test_a_refused_one_that_cannot_be_renewed_stays() -> None:
    time, source = Time(), Source()
    async with renewed(source, time) as it:
        first = await ready(it)
        await time.pass_(100)
        source.error = ValueError("no")
        assert it.refused(first, 401, None)
        assert await ready(it) == first
        assert not it.refused(first, 401, None)
        assert source.fetches == 2


async def test_refusals_do_not_decide_how_often_it_is_asked() -> None:
    time, source = Time(), Source()
    async with renewed(source, time) as it:
        await ready(it)
        for _ in range(300):
            it.refused(it.lines, 401, None)
            await time.pass_(1)
        assert source.fetches <= 11


async def test_close_while_it_is_fetched() -> None:
    time, source = Time(), Source()
    source.hold = asyncio.Event()
    it = Renewed(source, render, "up", time.clock)
    waiting = asyncio.create_task(ready(it))
    await rest()
    await it.close()
    assert source.cancelled == 1
    with pytest.raises(Failure) as failure:
        await waiting
    assert failure.value.status == 503
    with pytest.raises(Failure):
        await ready(it)
    it.start()
    assert not it.refused(it.lines, 401, None)
    await it.close()
    await time.pass_(5000, 50)
    assert source.fetches == 1


async def test_close_while_nothing_happens() -> None:
    time, source = Time(), Source()
    it = Renewed(source, render, "up", time.clock)
    await ready(it)
    await it.close()
    await time.pass_(5000, 50)
    assert source.fetches == 1
    assert not it.settled


async def test_a_fetch_that_hangs_is_given_up() -> None:
    time, source = Time(), Source()
    source.hold = asyncio.Event()
    it = Renewed(source, render, "up", time.clock, timeout=0.05)
    with pytest.raises(Failure) as failure:
        await ready(it)
    assert failure.value.status == 503
    assert failure.value.detail == "nothing came within 0.05 seconds"
    assert source.cancelled == 1
    await it.close()


async def test_it_leaves_nothing_for_the_collector() -> None:
    time, source = Time(), Source()
    async with renewed(source, time) as it:
        await ready(it)
        gc.collect()
        for _ in range(20):
            await time.pass_(700, 7)
        assert source.fetches > 15
        assert gc.collect() == 0


def test_nothing_shows_the_value() -> None:
    assert "hidden" not in repr(Lease("hidden", 5.0))


STEPS = st.lists(
    st.tuples(
        st.floats(0.5, 400),  # time passes
        st.sampled_from(["good", "fails", "hangs"]),  # how a fetch goes from now on
        st.sampled_from([None, None, 401, 403, 429]),  # a refusal
        st.floats(5, 5000),  # the life of what is fetched
    ),
    max_size=25,
)


@given(STEPS, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_request_never_waits_while_the_last_one_is_good(
    steps: list[tuple[float, str, int | None, float]], chance: float
) -> None:
    async def run() -> None:
        time, source = Time(), Source()
        ends = 0.0
        doubted = False

        async def fetch() -> Lease[str]:
            nonlocal ends
            asked, seconds = time.clock.now, source.seconds
            lease = await source()
            ends = asked + seconds - min(10.0, seconds / 10)
            return Lease(lease.value, seconds)

        it = Renewed(fetch, render, "up", time.clock, spread=lambda: chance)
        it.start()
        await rest()
        for later, how, refusal, life in steps:
            source.seconds = life
            source.error = ValueError("no") if how == "fails" else None
            if how == "hangs":
                source.hold = source.hold or asyncio.Event()
            elif source.hold is not None:
                source.hold.set()
                source.hold = None
            if refusal is not None and it.refused(it.lines, refusal, None):
                doubted = True
            await rest()
            await time.pass_(later, 20)
            doubted = doubted and source.hold is not None
            if time.now < ends:
                assert it.settled
                assert it.lines
                if not doubted:
                    at_once(it)
            assert it.ends >= time.now or not it.settled
        await it.close()

    asyncio.run(run())
