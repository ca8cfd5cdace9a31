"""A second target for a stream whose first event is late: over real sockets."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError
from tests.fixtures.garbage import collected
from tests.unit.backends.calls import DONE, EVENT, HEAD, USAGE, World, always, answer, call, chunk, stream, taken, world
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.backends.hedge import Hedge, HedgeSpec, added
from tollhouse.backends.pool import Pool
from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.core.http import Ending

pytestmark = pytest.mark.anyio

OTHER = EVENT.replace(b"abcd", b"efgh")


def late(gone: list[int], data: bytes = b"") -> Callable[[Peer], Any]:
    """An upstream that begins only when the test is over, and notes who leaves."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + data)
        await peer.closed()
        gone.append(peer.number)

    return play


def hedged(it: World, *names: str, after: str = "20ms", **fields: Any) -> Pool:
    targets = [{"provider": name, "model": "m", "weight": 0 if n else 1} for n, name in enumerate(names)]
    return it.pool(targets=targets, hedge={"after": after}, **fields)


@pytest.mark.parametrize("begun", [b"", chunk(b": wait\n\n")])
async def test_the_first_event_wins_and_the_loser_is_left(begun: bytes) -> None:
    gone: list[int] = []
    async with (
        upstream(late(gone, begun)) as slow,
        upstream(always(stream(OTHER, USAGE, DONE))) as quick,
        world() as it,
    ):
        it.openai(slow.url(), "slow")
        it.openai(quick.url(), "quick")
        pool = hedged(it, "slow", "quick")
        asked = call({"stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "word " * 100}]})
        reply = await pool.handle(asked)
        assert dict(reply.headers)[b"x-tollhouse-attempts"] == b"slow/m, quick/m"
        out, failure = await taken(reply)
        assert (out, failure) == (OTHER + DONE, None)
        context = asked.context
        assert (context.backend, context.attempts, context.tried) == ("quick", 2, "slow/m, quick/m")
        assert context.first_event > context.upstream_began > 0
        assert context.usage is not None
        assert context.usage.estimated
        assert context.usage.input > 3 + 50  # both were asked
        assert context.usage.output == 4
        assert [(one.backend, one.model_sent, one.usage.output) for one in context.shares] == [
            ("quick", "m", 4), ("slow", "m", 0)
        ]  # fmt: skip
        assert [one.usage.input for one in context.shares] == [3, context.usage.input - 3]
        await slow.until_left(1)
        assert gone == [0]
        assert all(m.health.until == 0.0 and not m.health.troubled for m in pool.members)


async def test_the_first_may_still_win() -> None:
    asked = asyncio.Event()
    gone: list[int] = []

    async def second(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.closed()
        gone.append(peer.number)

    async def first(peer: Peer) -> None:
        await peer.request()
        await asked.wait()
        await peer.send(stream(EVENT, USAGE, DONE))

    async with upstream(first) as one, upstream(second) as other, world() as it:
        it.openai(one.url(), "one")
        it.openai(other.url(), "other")
        made = call({"stream": True})
        reply = await hedged(it, "one", "other").handle(made)
        assert await taken(reply) == (EVENT + DONE, None)
        assert (made.context.backend, made.context.attempts) == ("one", 2)
        assert made.context.usage is not None
        assert made.context.usage.estimated
        await other.until_left(1)
        assert gone == [0]


async def test_who_is_quick_is_not_hedged() -> None:
    async with upstream(always(stream(EVENT, USAGE, DONE))) as one, upstream(always(answer())) as other, world() as it:
        it.openai(one.url(), "one")
        it.openai(other.url(), "other")
        pool = hedged(it, "one", "other", after="5s")
        made = call({"stream": True})
        await taken(await pool.handle(made))
        assert made.context.usage == Usage(3, 4)
        await pool.handle(call())  # whole answers never are
        assert other.connections == 0


@pytest.mark.parametrize("second", ["bad", "good"])
async def test_one_fails_and_the_other_answers(second: str) -> None:
    gate = asyncio.Event()

    async def slow(peer: Peer) -> None:
        await peer.request()
        await gate.wait()
        await peer.send(stream(EVENT, DONE) if second == "bad" else answer(b"{}", 500))

    async def other(peer: Peer) -> None:
        await peer.request()
        gate.set()
        if second == "bad":
            await peer.send(answer(b"{}", 500))
        else:
            await asyncio.sleep(0.05)
            await peer.send(stream(EVENT, DONE))

    async with upstream(slow) as one, upstream(other) as two, world() as it:
        it.openai(one.url(), "one")
        it.openai(two.url(), "two")
        made = call({"stream": True})
        reply = await hedged(it, "one", "two").handle(made)
        assert (await taken(reply))[0] == EVENT + DONE
        assert made.context.backend == ("one" if second == "bad" else "two")
        assert set(made.context.tried.split(", ")) == {"one/m", "two/m"}


async def test_when_both_fail_the_others_are_asked() -> None:
    async def slow(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.05)
        await peer.send(answer(b"{}", 500))

    async with upstream(slow) as bad, upstream(always(stream(EVENT, DONE))) as up, world() as it:
        for name in ("a", "b"):
            it.openai(bad.url(), name)
        it.openai(up.url(), "spare")
        pool = hedged(it, "a", "b", fallback=[{"provider": "spare"}])
        made = call({"stream": True})
        assert (await taken(await pool.handle(made)))[0] == EVENT + DONE
        assert made.context.fallback == "spare"
        alone = hedged(it, "a", "b")
        with pytest.raises(Failure, match="answered 500"):
            await alone.handle(call({"stream": True}))


async def test_the_budget_bounds_it() -> None:
    gone: list[int] = []
    async with upstream(late(gone)) as slow, upstream(always(stream(EVENT, DONE))) as quick, world() as it:
        it.openai(slow.url(), "slow")
        it.openai(quick.url(), "quick")
        pool = hedged(it, "slow", "quick", timeout={"first_event": "200ms"})
        pool._budget.floor = pool._budget.share = 0.0
        while pool._budget.retry():
            pass
        with pytest.raises(Failure, match="no event in time"):
            await pool.handle(call({"stream": True}))
        assert quick.connections == 0


async def test_a_caller_who_leaves_takes_both_along() -> None:
    gone: list[int] = []
    async with upstream(late(gone)) as slow, upstream(late(gone)) as other, world() as it:
        it.openai(slow.url(), "slow")
        it.openai(other.url(), "other")
        pool = hedged(it, "slow", "other")
        task = asyncio.ensure_future(pool.handle(call({"stream": True})))
        async with asyncio.timeout(5):
            while not other.connections:
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await slow.until_left(1)
        await other.until_left(1)


async def test_nothing_is_left_to_the_collector() -> None:
    gone: list[int] = []

    async def run(pool: Pool) -> None:
        reply = await pool.handle(call({"stream": True}))
        await taken(reply)

    async def fails(pool: Pool) -> None:
        try:
            await pool.handle(call({"stream": True}))
        except Failure:
            pass

    page = answer(b"<html>", 404, b"")
    async with (
        upstream(late(gone)) as slow,
        upstream(always(stream(EVENT, DONE))) as quick,
        upstream(always(page)) as bad,
        world() as it,
    ):
        it.openai(slow.url(), "slow")
        it.openai(quick.url(), "quick")
        it.openai(bad.url(), "bad")
        good, wrong = hedged(it, "slow", "quick"), hedged(it, "slow", "bad")
        for _ in range(2):
            await run(good)
            await fails(wrong)
        await asyncio.sleep(0.02)
        with collected() as found:
            for _ in range(3):
                await run(good)
                await fails(wrong)
            await asyncio.sleep(0.02)
        assert not [o for o in found if type(o).__module__.startswith("tollhouse") or isinstance(o, BaseException)]


def test_the_percentile() -> None:
    hedge = Hedge(HedgeSpec(after="p95"))
    for n in range(19):
        hedge.note(0.1)
        assert hedge.after is None, n
    hedge.note(5.0)
    assert hedge.after == 5.0
    for _ in range(40):
        hedge.note(0.2)
    assert hedge.after == 0.2
    assert Hedge(HedgeSpec(after=2.0)).after == 2.0


@pytest.mark.parametrize("after", ["p50", "soon", None])
def test_bad_specs(after: Any) -> None:
    with pytest.raises(ValidationError):
        HedgeSpec(after=after)


def test_sums_are_estimates() -> None:
    assert added(None, None) is None
    assert added(Usage(1), None) == Usage(1)
    assert added(Usage(1, 2, 3), Usage(4, 5, 6)) == Usage(5, 7, 9, estimated=True)
    assert Ending(200, "Upstream").failure is None
