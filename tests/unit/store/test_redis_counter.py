"""The counter on Valkey: the common suite under a clock that the test moves, and what a lost answer must not do."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conformance.allowances import AllowanceSuite, WithDraw
from tests.conformance.counter import Bench, CounterSuite
from tests.fixtures.valkey import Proxy, Valkey, valkey
from tests.unit.store.timed import timed

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.net.timer import Timer
from tollhouse.store.base import Charge, Rate
from tollhouse.store.redis import RedisState, connects
from tollhouse.store.redis_allowances import SCRIPTS
from tollhouse.store.redis_counter import RedisCounter
from tollhouse.store.redis_server import Server
from tollhouse.store.spec import StateSpec, place_of

T = TypeVar("T")

PREFIXES = (f"p{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one


class Moved:
    """The clock stands in a key."""

    def __init__(self, server: Valkey, loop: asyncio.AbstractEventLoop, port: int = 0) -> None:
        self._loop = loop
        self._clock = Clock()
        prefix = next(PREFIXES)
        self._key = f"{{{prefix}}}now"
        self._now = 1_800_000_000.0
        place = place_of(f"redis://127.0.0.1:{port or server.port}")
        self._raw = Server(connects(place, 5.0), place.nodes, name=str(place), timeout=5.0, lines=1)
        self.counter: Any = RedisCounter(
            self._raw,
            self._clock,
            prefix=prefix,
            node="n",
            patience=1.0,
            admit=timed(self._key, "admit.lua"),
            settle=timed(self._key, "settle.lua"),
            draws={name: timed(self._key, "hold.lua", f"{name}.lua") for name in SCRIPTS},
        )
        self.advance(0.0)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def after_what_is_owed() -> T:
            await self.counter.flush()
            return await work

        return self._loop.run_until_complete(after_what_is_owed())

    def advance(self, seconds: float) -> None:
        self._now += seconds
        # Keys must not lapse by the server's own time, which stands still here.
        self._loop.run_until_complete(self._raw.ask("put", (b"SET", self._key.encode(), b"%.6f" % self._now)))

    def tick(self) -> None:
        self._clock.now += 1.0
        self._loop.run_until_complete(self.counter.flush())

    def close(self) -> None:
        self._loop.run_until_complete(self.counter.close())
        self._loop.run_until_complete(self._raw.close())


class TestRedis(CounterSuite):
    @pytest.fixture(autouse=True)
    def with_server(self, server: Valkey) -> Iterator[None]:
        self.server = server
        self.loop = asyncio.new_event_loop()
        yield
        self.loop.close()

    @contextmanager
    def bench(self) -> Iterator[Bench]:
        made = Moved(self.server, self.loop)
        try:
            yield made
        finally:
            made.close()


class TestRedisWithDraw(TestRedis):
    @contextmanager
    def bench(self) -> Iterator[Bench]:
        with super().bench() as made:
            made.counter = WithDraw(made.counter)  # type: ignore[assignment]
            yield made


class TestRedisDraws(AllowanceSuite):
    @pytest.fixture(autouse=True)
    def with_server(self, server: Valkey) -> Iterator[None]:
        self.server = server
        self.loop = asyncio.new_event_loop()
        yield
        self.loop.close()

    @contextmanager
    def bench(self) -> Iterator[Any]:
        made = Moved(self.server, self.loop)
        try:
            yield made
        finally:
            made.close()


# ---- answers that get lost

STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 30.0),  # that pass
        st.integers(0, 12),  # units of one bucket
        st.integers(0, 12),  # and of the other
        st.none() | st.integers(0, 30),  # what it came to
        st.booleans(),  # the answer to the admission gets lost
        st.booleans(),  # that to the correction
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_gets_lost_everything_counts_once(
    server: Valkey, steps: list[tuple[float, int, int, int | None, bool, bool]]
) -> None:
    """Against a model of two buckets that knows nothing of networks."""
    loop = asyncio.new_event_loop()
    proxy = Proxy(server.port)
    loop.run_until_complete(proxy.__aenter__())
    it = Moved(server, loop, proxy.port)
    rates = (Rate("one", 20, 100.0), Rate("other", 10, 100.0))
    tats = [0.0, 0.0]
    now = 0.0
    try:
        for n, (passed, one, other, actual, lost, lost_too) in enumerate(steps):
            now += passed
            it.advance(passed)
            charges = [Charge(rate, "k", units) for rate, units in zip(rates, (one, other), strict=True)]
            proxy.swallow = lambda sent, lost=lost: lost and b"}:a:" in sent
            verdict = it.run(it.counter.admit(f"id-{n}", charges))
            before = [max(tat - now, 0.0) for tat in tats]
            after = [b + c.amount * c.rate.step for b, c in zip(before, charges, strict=True)]
            fits = [not c.amount or a <= c.rate.tolerance + 1e-4 for a, c in zip(after, charges, strict=True)]
            if all(fits):
                assert verdict.refused == -1
                assert verdict.behind == pytest.approx(after, abs=1e-3)
                tats = [now + a if a > b else t for a, b, t in zip(after, before, tats, strict=True)]
                if actual is not None:
                    it.counter.settle(f"id-{n}", charges, [actual, actual])
                    proxy.swallow = lambda sent, lost=lost_too: lost and b"}:s:" in sent
                    it.run(asyncio.sleep(0))
                    moves = [(actual - c.amount) * c.rate.step for c in charges]
                    tats = [max(t, now) + m for t, m in zip(tats, moves, strict=True)]
            else:
                assert verdict.refused == fits.index(False)
                assert verdict.behind == pytest.approx(before, abs=1e-3)
    finally:
        it.close()
        loop.run_until_complete(proxy.__aexit__())
        loop.close()


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    one = Clock()
    timer = Timer(one)
    timer.start()
    yield one
    timer.stop()


def spec(port: int, **settings: Any) -> StateSpec:
    return StateSpec(url=f"redis://127.0.0.1:{port}", prefix=next(PREFIXES), **{"timeout": 5.0, **settings})


async def ahead(state: RedisState, rate: Rate, key: str = "a") -> float:
    """Seconds that the bucket is ahead of now."""
    return (await state.counter.admit(f"look-{next(PREFIXES)}", [Charge(rate, key, 0)])).behind[0]


@pytest.mark.anyio
async def test_an_admission_whose_answer_is_lost_takes_once(server: Valkey, clock: Clock) -> None:
    rate = Rate("r", 10, 1000.0)
    async with Proxy(server.port) as proxy:
        state = RedisState(spec(proxy.port), clock)
        assert await ahead(state, rate) == 0.0
        proxy.swallow = lambda sent: b"id-1" in sent
        verdict = await state.counter.admit("id-1", [Charge(rate, "a", 3)])
        assert proxy.swallowed == 1
        assert verdict.refused == -1
        assert verdict.behind == pytest.approx([300.0])
        assert await ahead(state, rate) == pytest.approx(300.0, abs=1.0)
        await state.close()


@pytest.mark.anyio
async def test_a_refusal_whose_answer_is_lost_is_one(server: Valkey, clock: Clock) -> None:
    rate = Rate("r", 1, 1000.0)
    async with Proxy(server.port) as proxy:
        state = RedisState(spec(proxy.port), clock)
        assert (await state.counter.admit("id-0", [Charge(rate, "a", 1)])).refused == -1
        proxy.swallow = lambda sent: b"id-1" in sent
        assert (await state.counter.admit("id-1", [Charge(rate, "a", 1)])).refused == 0
        assert proxy.swallowed == 1
        await state.close()


@pytest.mark.anyio
async def test_corrections_whose_answer_is_lost_are_made_once(server: Valkey, clock: Clock) -> None:
    rate = Rate("tokens", 1000, 1000.0)
    async with Proxy(server.port) as proxy:
        state = RedisState(spec(proxy.port), clock)
        charges = [Charge(rate, "a", 100)]
        await state.counter.admit("id-1", charges)
        state.counter.settle("id-0", charges, [100])  # right as it was
        state.counter.settle("id-1", charges, [40])
        proxy.swallow = lambda sent: b":s:" in sent
        await state.counter.flush()
        assert proxy.swallowed == 1
        assert await ahead(state, rate) == pytest.approx(40.0, abs=1.0)
        await state.close()


@pytest.mark.anyio
async def test_corrections_wait_for_the_server_and_are_made_once(server: Valkey, clock: Clock) -> None:
    """Also those of a batch that may have been done before the connection broke twice."""
    rate = Rate("tokens", 1000, 1000.0)
    async with Proxy(server.port) as proxy:
        state = RedisState(spec(proxy.port), clock)
        charges = [Charge(rate, "a", 100), Charge(rate, "b", 100)]
        await state.counter.admit("id-1", charges)
        state.counter.settle("id-1", charges, [150, 0])
        left = 2

        def twice(sent: bytes) -> bool:
            nonlocal left
            left -= b":s:" in sent
            if left == 1:
                asyncio.get_running_loop().call_soon(setattr, proxy, "swallow", twice)
            return b":s:" in sent

        proxy.swallow = twice
        with pytest.raises(Failure):
            await state.counter.flush()
        assert proxy.swallowed == 2
        await state.counter.flush()
        assert await ahead(state, rate) == pytest.approx(150.0, abs=1.0)
        assert await ahead(state, rate, "b") == 0.0
        await state.close()


@pytest.mark.anyio
async def test_corrections_go_out_by_the_clock(server: Valkey, clock: Clock) -> None:
    rate = Rate("tokens", 1000, 1000.0)
    state = RedisState(spec(server.port), clock)
    charges = [Charge(rate, "a", 100)]
    for n in range(50):
        await state.counter.admit(f"id-{n}", charges)
        state.counter.settle(f"id-{n}", charges, [2])
    async with asyncio.timeout(10):
        while await ahead(state, rate) > 101.0:
            await asyncio.sleep(0.01)
    await state.close()


@pytest.mark.anyio
async def test_what_is_owed_at_the_end_is_sent(server: Valkey) -> None:
    rate = Rate("tokens", 1000, 1000.0)
    what = spec(server.port)
    one, other = RedisState(what, Clock()), RedisState(what, Clock())
    charges = [Charge(rate, "a", 100)]
    await one.counter.admit("id", charges)
    one.counter.settle("id", charges, [1])
    await one.close()
    assert await ahead(other, rate) == pytest.approx(1.0, abs=0.5)
    await other.close()


@pytest.mark.anyio
async def test_what_is_owed_has_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    place = place_of("redis://127.0.0.1:1")
    server = Server(connects(place, 1.0), place.nodes, name=str(place), timeout=1.0, lines=1)
    counter = RedisCounter(server, Clock(), prefix="p", node="n", patience=1.0)
    rate = Rate("tokens", 1000, 1000.0)
    for n in range(20_010):
        counter.settle("id", [Charge(rate, f"k{n}", 5)], [0])
    assert len(counter._owed) == 20_000
    assert caplog.text.count("further corrections are dropped") == 1
    counter.settle("id", [Charge(rate, "k0", 5)], [0])  # has its place
    await counter.close()
    assert "corrections of limits are lost" in caplog.text
    await server.close()


@pytest.mark.anyio
async def test_scripts_that_the_server_has_forgotten_are_told_again(server: Valkey, clock: Clock) -> None:
    state = RedisState(spec(server.port), clock)
    rate = Rate("r", 10, 1000.0)
    await state.counter.admit("id-0", [Charge(rate, "a", 1)])
    server.do("SCRIPT", "FLUSH")
    verdicts = await asyncio.gather(*(state.counter.admit(f"id-{n}", [Charge(rate, "a", 1)]) for n in range(1, 10)))
    assert [verdict.refused for verdict in verdicts] == [-1] * 9
    assert await state.values.swap("k", b"a", b"b", 1.0) is False
    await state.close()


@pytest.mark.anyio
async def test_names_of_callers_are_in_no_key(server: Valkey, clock: Clock) -> None:
    what = spec(server.port)
    state = RedisState(what, clock)
    await state.counter.admit("id-0", [Charge(Rate("top/user/requests/60", 10, 1000.0), "ada@example.com", 1)])
    keys = [key for key in server.do("KEYS", "*") if what.prefix.encode() in key]
    assert len([key for key in keys if not key.endswith(b":n")]) == 2
    assert not any(b"ada@" in key or b"example" in key for key in keys)
    await state.close()


@pytest.mark.anyio
async def test_everything_a_counter_writes_lapses(server: Valkey, clock: Clock) -> None:
    what = spec(server.port)
    state = RedisState(what, clock)
    charges = [Charge(Rate("r", 1000, 1000.0), "a", 1)]
    await state.counter.admit("id", charges)
    state.counter.settle("id", charges, [900])
    await state.counter.flush()
    for key in server.do("KEYS", "*"):
        if what.prefix.encode() in key:
            assert 0 < server.do("PTTL", key) <= 86_400_000
    await state.close()
