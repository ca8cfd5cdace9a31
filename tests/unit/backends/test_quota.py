"""What a provider allows, kept to by calls over real sockets: who goes out, who waits, who is told to come again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from pydantic import ValidationError
from tests.fixtures.valkey import valkey
from tests.unit.backends.calls import DONE, EVENT, World, always, answer, call, stream, taken, world
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.backends.pool import Pool
from tollhouse.backends.quota import PROVIDER_QUOTA, Outcome, Quota, QuotaSpec
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.store.base import Counter
from tollhouse.store.memory import MemoryCounter
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec

pytestmark = pytest.mark.anyio

ASKS = {"messages": [{"role": "user", "content": "x" * 40}], "max_completion_tokens": 100}


class Told:
    """What a Quota tells of its calls."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.waits: list[float] = []

    def __call__(self, outcome: Outcome, waited: float) -> None:
        self.outcomes.append(outcome)
        self.waits.append(waited)


def bounded(it: World, name: str, told: Told, counter: Counter | None = None, **spec: Any) -> None:
    """Give a provider of that world a quota."""
    made = QuotaSpec(**spec)
    it.providers[name].quota = Quota(name, made, counter or MemoryCounter(it.clock), told)


@asynccontextmanager
async def one(answers: Any = None, seen: list[Any] | None = None, **spec: Any) -> AsyncIterator[tuple[Pool, Told]]:
    """A model whose only provider has that quota."""
    told = Told()
    async with upstream(answers or always(answer(), seen)) as up, world() as it:
        it.openai(up.url())
        bounded(it, "up", told, **spec)
        yield it.pool(), told


async def refused(asked: Awaitable[Reply]) -> Failure:
    with pytest.raises(Failure) as caught:
        await asked
    return caught.value


async def test_what_does_not_fit_is_not_sent() -> None:
    seen: list[Any] = []
    async with one(seen=seen, limits=[{"requests": 2, "window": "60s"}], max_wait="0s") as (pool, told):
        for _ in range(2):
            await taken(await pool.handle(call(ASKS)))
        failure = await refused(pool.handle(call(ASKS)))
        assert (failure.status, failure.reason, failure.code) == (429, Reason.RATE_LIMIT, PROVIDER_QUOTA)
        assert failure.retry_after == 30.0
        assert "2 requests in 60 s" in failure.message
        assert len(seen) == 2
        assert told.outcomes == ["admitted", "admitted", "refused"]


async def test_a_short_wait_is_waited_for() -> None:
    async with one(limits=[{"requests": 20, "window": "2s", "burst": 1}], max_wait="1s") as (pool, told):
        began = monotonic()
        await asyncio.gather(*[pool.handle(call(ASKS)) for _ in range(4)])
        assert monotonic() - began >= 0.25  # three further ones, a tenth of a second apart; the clock has ticks
        assert sorted(told.outcomes) == ["admitted", "queued", "queued", "queued"]


@pytest.mark.timed
async def test_a_long_wait_is_told_at_once() -> None:
    async with one(limits=[{"requests": 1, "window": "60s"}], max_wait="1s") as (pool, _):
        await pool.handle(call(ASKS))
        began = monotonic()
        await refused(pool.handle(call(ASKS)))
        assert monotonic() - began < 0.5


@pytest.mark.timed
async def test_nobody_waits_beyond_the_deadline() -> None:
    async with one(limits=[{"requests": 1, "window": "2s"}], max_wait="60s") as (pool, _):
        await pool.handle(call(ASKS))
        began = monotonic()
        await refused(pool.handle(call(ASKS, deadline=monotonic() + 0.3)))
        assert monotonic() - began < 1.0


async def test_tokens_are_estimated_and_corrected() -> None:
    """A call is estimated at more than half of 200 tokens, and its answer says 7."""
    async with one(limits=[{"tokens": 200, "window": "1h"}], max_wait="0s") as (pool, _):
        for _ in range(10):
            await taken(await pool.handle(call(ASKS)))


@pytest.mark.parametrize(("unit", "fitting"), [("input_tokens", 49), ("output_tokens", 37)])
async def test_tokens_in_and_out_are_limited_apart(unit: str, fitting: int) -> None:
    """An answer says 3 tokens in and 4 out; of 247 the last call takes what it may use."""
    async with one(limits=[{unit: 247, "window": "1h"}], max_wait="0s") as (pool, _):
        done = 0
        with pytest.raises(Failure):
            for _ in range(100):
                await taken(await pool.handle(call(ASKS)))
                done += 1
        assert done >= fitting


async def test_usage_that_cannot_be_shuts_nobody_out() -> None:
    absurd = b'{"model":"m","choices":[],"usage":{"prompt_tokens":3000000000,"completion_tokens":4}}'
    async with one(always(answer(absurd)), limits=[{"tokens": 1000, "window": "1s"}], max_wait="2s") as (pool, told):
        for _ in range(8):
            await taken(await pool.handle(call(ASKS)))
        assert "refused" not in told.outcomes


async def test_a_stream_is_corrected_at_its_end() -> None:
    usage = EVENT.replace(b'"choices"', b'"usage":{"prompt_tokens":3,"completion_tokens":4},"choices"')
    play = always(stream(EVENT, usage, DONE))
    async with one(play, limits=[{"tokens": 200, "window": "1h"}], max_wait="0s") as (pool, _):
        reply = await pool.handle(call({**ASKS, "stream": True}))
        await refused(pool.handle(call({**ASKS, "stream": True})))  # while the first one's is an estimate
        await taken(reply)
        for _ in range(5):
            await taken(await pool.handle(call({**ASKS, "stream": True})))


async def test_what_failed_gives_its_tokens_back_and_not_its_request() -> None:
    limits = [{"tokens": 200, "window": "1h"}, {"requests": 3, "window": "1h"}]
    async with one(always(answer(b"{}", 500)), limits=limits, max_wait="0s") as (pool, told):
        for _ in range(3):
            assert (await refused(pool.handle(call(ASKS)))).code != PROVIDER_QUOTA
        assert (await refused(pool.handle(call(ASKS)))).code == PROVIDER_QUOTA
        assert told.outcomes == ["admitted"] * 3 + ["refused"]


async def test_what_was_never_sent_takes_nothing() -> None:
    told = Told()
    async with world() as it:
        it.openai("http://127.0.0.1:1", "up")
        bounded(it, "up", told, limits=[{"requests": 1, "window": "1h"}], max_wait="0s")
        pool = it.pool(health={"failures": 100})
        for _ in range(3):
            assert (await refused(pool.handle(call(ASKS)))).code != PROVIDER_QUOTA


async def test_more_than_ever_fits_is_said_so() -> None:
    async with one(limits=[{"tokens": 50, "window": "1m"}], max_wait="60s") as (pool, _):
        failure = await refused(pool.handle(call(ASKS)))
        assert failure.retry_after is None
        assert "never fit" in failure.message


async def test_somebody_else_is_asked_and_nobody_is_taken_for_ill() -> None:
    told = Told()
    async with upstream(always(answer())) as a, upstream(always(answer())) as b, world() as it:
        it.openai(a.url(), "a")
        it.openai(b.url(), "b")
        bounded(it, "a", told, limits=[{"requests": 1, "window": "1h"}], max_wait="0s")
        pool = it.pool(
            targets=[{"provider": "a", "model": "m"}], fallback=[{"provider": "b", "model": "m"}], name="smart"
        )
        backends = []
        for _ in range(3):
            asked = call(ASKS)
            await taken(await pool.handle(asked))
            backends.append(asked.context.backend)
        assert backends == ["a", "b", "b"]
        assert pool.members[0].health.usable(it.clock.now)


async def test_the_important_go_first() -> None:
    order: list[str] = []

    async def play(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            order.append(head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode())
            await peer.send(answer())

    limits = [{"requests": 10, "window": "1s", "burst": 1}]
    priority = 'request.headers["x-class"]'
    async with one(play, limits=limits, max_wait="10s", priority=priority) as (pool, _):

        async def ask(name: str, rank: str) -> None:
            asked = call(ASKS, headers=[(b"x-class", rank.encode())])
            asked.context.request_id = name
            await taken(await pool.handle(asked))

        calls = [asyncio.create_task(ask("first", "normal"))]
        for name, rank in (("l1", "low"), ("n1", "normal"), ("n2", "nonsense"), ("h1", "high"), ("h2", "high")):
            await asyncio.sleep(0)
            calls.append(asyncio.create_task(ask(name, rank)))
        await asyncio.gather(*calls)
        assert order == ["first", "h1", "h2", "n1", "n2", "l1"]


async def test_the_unimportant_leave_a_part_to_others() -> None:
    limits = [{"requests": 10, "window": "1h"}]
    async with one(limits=limits, max_wait="0s", priority='request.headers["x-class"]') as (pool, _):
        for _ in range(8):
            await pool.handle(call(ASKS, headers=[(b"x-class", b"low")]))
        await refused(pool.handle(call(ASKS, headers=[(b"x-class", b"low")])))
        for _ in range(2):
            await pool.handle(call(ASKS))
        await refused(pool.handle(call(ASKS)))


@pytest.mark.timed
async def test_who_leaves_the_queue_holds_up_nobody() -> None:
    async with one(limits=[{"requests": 4, "window": "1s", "burst": 1}], max_wait="10s") as (pool, told):
        await pool.handle(call(ASKS))
        waiting = [asyncio.ensure_future(pool.handle(call(ASKS))) for _ in range(3)]
        await asyncio.sleep(0.02)
        waiting[0].cancel()  # the first of them
        waiting[1].cancel()
        began = monotonic()
        await waiting[2]
        assert monotonic() - began < 0.6
        assert told.outcomes == ["admitted", "queued"]


async def test_the_queue_is_bounded() -> None:
    async with one(limits=[{"requests": 4, "window": "1s", "burst": 1}], max_wait="10s", queue=2) as (pool, told):
        await pool.handle(call(ASKS))
        waiting = [asyncio.ensure_future(pool.handle(call(ASKS))) for _ in range(3)]
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in done] == [Reply, Reply, Failure]
        assert told.outcomes.count("refused") == 1


async def test_limits_are_of_models() -> None:
    told = Told()
    async with upstream(always(answer())) as up, world() as it:
        it.openai(up.url())
        bounded(it, "up", told, limits=[{"requests": 1, "window": "1h", "model": "gpt-*"}], max_wait="0s")
        pool = it.pool(name="*", targets=[{"provider": "up", "model": "*"}])
        for _ in range(3):
            await pool.handle(call({**ASKS, "model": "other"}))
        await pool.handle(call({**ASKS, "model": "gpt-4"}))
        assert (await refused(pool.handle(call({**ASKS, "model": "gpt-5"})))).code == PROVIDER_QUOTA
        assert told.outcomes == ["admitted", "refused"]


async def test_nodes_count_together_and_go_on_without_their_store(tmp_path: Path) -> None:
    with valkey(tmp_path) as server:
        async with upstream(always(answer())) as up, world() as it, world() as other:
            told = Told()
            states = []
            for there in (it, other):
                state = RedisState(StateSpec.model_validate({"url": server.url}), there.clock)
                states.append(state)
                there.openai(up.url())
                bounded(there, "up", told, state.counter, limits=[{"requests": 4, "window": "1h"}], max_wait="0s")
            pools = [there.pool() for there in (it, other)]
            for n in range(4):
                await pools[n % 2].handle(call(ASKS))
            for one_of_them in pools:
                assert (await refused(one_of_them.handle(call(ASKS)))).code == PROVIDER_QUOTA
            server.kill()
            await pools[0].handle(call(ASKS))
            assert told.outcomes[-1] == "unasked"
            for state in states:
                await state.close()


@pytest.mark.parametrize(
    "spec",
    [
        {"limits": []},
        {"limits": [{"window": "1m"}]},
        {"limits": [{"requests": 1, "tokens": 1}]},
        {"limits": [{"requests": 0}]},
        {"limits": [{"requests": 1}], "priority": "1 +"},
        {"limits": [{"requests": 1}], "low": 0},
    ],
)
def test_what_cannot_be_meant_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QuotaSpec(**spec)
