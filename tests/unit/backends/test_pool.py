"""Which target is asked, and who is asked next: over real sockets, with health by the clock."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.unit.backends.calls import DONE, EVENT, HEAD, World, always, answer, call, chunk, stream, taken, world
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.backends.llm import LLMBackend, Provider, Timeouts
from tollhouse.backends.pool import Member, PassiveHealthSpec, Pool, PoolSpec
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm import EMBEDDINGS, MESSAGES

pytestmark = pytest.mark.anyio

DEAD = "http://127.0.0.1:1"
BROKEN = answer(b"{}", 500)


def count(play: Callable[[Peer], Any], counter: Counter[str], name: str) -> Callable[[Peer], Any]:
    async def counted(peer: Peer) -> None:
        counter[name] += 1
        await play(peer)

    return counted


def targets(*names: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"provider": name, "model": "m", **fields} for name in names]


async def answered_by(pool: Pool, **fields: Any) -> str:
    it = call(fields)
    await taken(await pool.handle(it))
    return it.context.backend


async def test_another_target_is_asked_when_one_fails() -> None:
    async with upstream(always(BROKEN)) as bad, upstream(always(answer())) as good, world() as it:
        it.openai(bad.url(), "bad")
        it.openai(good.url(), "good")
        pool = it.pool(targets=targets("bad", "good"), balance="round_robin", health={"failures": 100})
        for _ in range(6):
            asked = call()
            await pool.handle(asked)
            assert asked.context.backend == "good"
            assert asked.context.fallback == ""
        assert bad.connections == 1
        assert it.clock.now > 0


async def test_each_target_is_asked_once_and_the_last_failure_is_the_callers() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(b"{}", 503), seen)) as up, world() as it:
        for name in ("a", "b", "c"):
            it.openai(up.url(), name)
        pool = it.pool(targets=targets("a", "b", "c"))
        asked = call()
        with pytest.raises(Failure) as caught:
            await pool.handle(asked)
        assert (caught.value.status, caught.value.reason) == (503, Reason.UPSTREAM_FAILURE)
        assert len(seen) == 3
        assert asked.context.attempts == 3


async def test_what_is_wrong_with_the_request_is_not_tried_again() -> None:
    seen: list[tuple[bytes, bytes]] = []
    page = answer(b"<html>", 404, b"")
    async with upstream(always(page, seen)) as up, world() as it:
        it.openai(up.url(), "a")
        it.openai(up.url(), "b")
        pool = it.pool(targets=targets("a", "b"))
        with pytest.raises(Failure, match="404"):
            await pool.handle(call())
        assert len(seen) == 1


async def test_a_stream_fails_over_before_its_first_event_and_not_after() -> None:
    async def dies_early(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(b": wait\n\n"))
        await asyncio.sleep(0.01)
        peer.cut()

    async def dies_late(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await asyncio.sleep(0.01)
        peer.cut()

    async with upstream(dies_early) as early, upstream(dies_late) as late, world() as it:
        it.openai(early.url(), "early")
        it.openai(late.url(), "late")
        pool = it.pool(targets=[*targets("early"), *targets("late", weight=0)], health={"failures": 1})
        out, failure = await taken(await pool.handle(call({"stream": True})))
        assert out == EVENT
        assert failure is not None
        assert failure.reason is Reason.UPSTREAM_FAILURE
        early_one, late_one = pool.members
        assert early_one.until > it.clock.now
        assert late_one.until > it.clock.now  # what dies in the middle is ill too


async def test_fallback_in_order_with_notice() -> None:
    async with upstream(always(answer())) as up, world() as it:
        it.openai(DEAD, "dead")
        it.openai(DEAD, "dead2")
        it.openai(up.url(), "spare")
        pool = it.pool(
            targets=targets("dead"),
            fallback=[{"provider": "dead2"}, {"provider": "spare", "model": "s\u00e9", "notice": True}],
        )
        asked = call()
        reply = await pool.handle(asked)
        assert asked.context.fallback == "spare/s\u00e9"
        assert (b"x-tollhouse-fallback", b"spare/s\\xe9") in reply.headers
        assert asked.context.attempts == 3


async def test_a_fallback_without_notice_is_silent() -> None:
    async with upstream(always(answer())) as up, world() as it:
        it.openai(DEAD, "dead")
        it.openai(up.url(), "spare")
        pool = it.pool(targets=targets("dead"), fallback=[{"provider": "spare"}])
        asked = call()
        reply = await pool.handle(asked)
        assert asked.context.fallback == "spare"
        assert reply.headers == [(b"content-type", b"application/json")]


async def test_an_ejected_target_is_left_alone_then_tried_by_one() -> None:
    state = {"well": False}

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer() if state["well"] else BROKEN)

    async with upstream(play) as ill, upstream(always(answer())) as up, world() as it:
        it.openai(ill.url(), "ill")
        it.openai(up.url(), "up")
        health = {"failures": 2, "eject": "100ms", "max": "1s"}
        pool = it.pool(targets=[*targets("ill"), *targets("up", weight=0)], health=health)
        member = pool.members[0]
        for _ in range(2):
            assert await answered_by(pool) == "up"
        assert member.until > it.clock.now
        asked = call()
        await pool.handle(asked)
        assert asked.context.attempts == 1  # it was not asked
        while member.until > it.clock.now:
            await asyncio.sleep(0.01)
        first = member.until
        assert await answered_by(pool) == "up"  # one probe, which fails: out again, for longer
        assert member.until - it.clock.now > 0.1
        assert member.until > first
        state["well"] = True
        while member.until > it.clock.now:
            await asyncio.sleep(0.01)
        assert await answered_by(pool) == "ill"
        assert member.until == 0.0


async def test_while_one_probes_others_keep_away() -> None:
    gate = asyncio.Event()
    slow = 0

    async def play(peer: Peer) -> None:
        nonlocal slow
        while True:
            await peer.request()
            slow += 1
            await gate.wait()
            await peer.send(answer())

    async with upstream(play) as ill, upstream(always(answer())) as up, world() as it:
        it.openai(ill.url(), "ill")
        it.openai(up.url(), "up")
        pool = it.pool(targets=[*targets("ill"), *targets("up", weight=0)], health={"failures": 1, "eject": "5s"})
        member = pool.members[0]
        member.failed(Failure(502, Reason.UPSTREAM_FAILURE, "x"), it.clock.now - 10, PassiveHealthSpec(failures=1))
        probe = asyncio.create_task(pool.handle(call()))
        while not slow:
            await asyncio.sleep(0.005)
        for _ in range(5):
            assert await answered_by(pool) == "up"
        gate.set()
        await probe
        assert slow == 1
        assert await answered_by(pool) == "ill"


async def test_a_limited_target_rests_as_long_as_it_says() -> None:
    limited = answer(b"{}", 429, b"retry-after: 30\r\n")
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(limited, seen)) as bad, upstream(always(answer())) as up, world() as it:
        it.openai(bad.url(), "bad")
        it.openai(up.url(), "up")
        pool = it.pool(targets=[*targets("bad"), *targets("up", weight=0)])
        for _ in range(5):
            assert await answered_by(pool) == "up"
        assert len(seen) == 1
        assert 25 < pool.members[0].until - it.clock.now <= 30


async def test_the_last_target_is_never_left_out() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(b"{}", 429, b"retry-after: 30\r\n"), seen)) as up, world() as it:
        it.openai(up.url(), "a")
        it.openai(up.url(), "b")
        for names in (["a"], ["a", "b"]):
            seen.clear()
            pool = it.pool(targets=targets(*names), health={"failures": 1})
            for _ in range(3):
                with pytest.raises(Failure) as caught:
                    await pool.handle(call())
                assert caught.value.status == 429
            assert len(seen) == 3 * len(names)


async def test_nobody_left() -> None:
    limited = answer(b"{}", 429, b"retry-after: 30\r\n")
    async with upstream(always(limited)) as up, world() as it:
        it.openai(up.url(), "a")
        it.openai(up.url(), "b")
        pool = it.pool(targets=targets("a"), fallback=[{"provider": "b"}])
        with pytest.raises(Failure) as caught:
            await pool.handle(call())
        assert caught.value.status == 429
        with pytest.raises(Failure) as caught:
            await pool.handle(call())
        failure = caught.value
        assert (failure.status, failure.reason) == (503, Reason.NO_HEALTHY_BACKEND)
        assert failure.retry_after is not None
        assert 25 < failure.retry_after <= 30


async def test_nobody_else_is_asked_when_the_time_is_over() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    seen: list[tuple[bytes, bytes]] = []
    async with upstream(silent) as slow, upstream(always(answer(), seen)) as up, world() as it:
        it.openai(slow.url(), "slow")
        it.openai(up.url(), "up")
        pool = it.pool(targets=targets("slow"), fallback=[{"provider": "up"}], timeout={"total": "200ms"})
        with pytest.raises(Failure) as caught:
            await pool.handle(call())
        assert caught.value.reason is Reason.TIMEOUT
        assert seen == []


async def test_a_first_event_that_does_not_come_fails_over() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        await peer.closed()

    async with upstream(silent) as slow, upstream(always(stream(EVENT, DONE))) as up, world() as it:
        it.openai(slow.url(), "slow")
        it.openai(up.url(), "up")
        fields = {"timeout": {"first_event": "150ms"}, "targets": [*targets("slow"), *targets("up", weight=0)]}
        out, failure = await taken(await it.pool(**fields).handle(call({"stream": True})))
        assert out == EVENT + DONE
        assert failure is None


async def test_a_dialect_that_no_target_speaks() -> None:
    async with world() as it:
        it.openai(DEAD, "o")
        it.provider("a", kind="anthropic", base_url=DEAD, api_key="k")
        it.provider("l", kind="local")
        with pytest.raises(
            Failure, match=r"kind openai; ask for it at /v1/chat/completions or /v1/embeddings"
        ) as caught:
            await it.pool(targets=targets("o")).handle(call(dialect=MESSAGES))
        assert (caught.value.status, caught.value.code) == (400, "unsupported_operation")
        with pytest.raises(Failure, match=r"kind anthropic; ask for it at /v1/messages"):
            await it.pool(targets=targets("a")).handle(call())
        with pytest.raises(Failure, match=r"kind local; ask for it at /v1/chat/completions"):
            await it.pool(targets=targets("l")).handle(call(dialect=EMBEDDINGS))
        assert it.pool(targets=targets("o", "a")).speaks == {"chat", "embeddings", "messages"}


async def test_only_targets_that_speak_the_dialect_are_asked() -> None:
    async with upstream(always(answer())) as up, world() as it:
        it.openai(up.url(), "o")
        it.provider("a", kind="anthropic", base_url=up.url(), api_key="k")
        pool = it.pool(targets=targets("o", "a"))
        for _ in range(8):
            for dialect, backend in ((MESSAGES, "a"), (EMBEDDINGS, "o")):
                asked = call(dialect=dialect)
                await pool.handle(asked)
                assert asked.context.backend == backend


class Nowhere(Provider):
    """A provider that is never asked: for choosing alone."""


def chooser(weights: list[float], balance: str) -> tuple[Pool, list[Member]]:
    clock = Clock()
    provider = Nowhere("n", "openai", frozenset({"chat"}), clock, asks_usage=False)
    members = [Member(LLMBackend(provider, f"m{n}", Timeouts()), w) for n, w in enumerate(weights)]
    return Pool("smart", members, (), clock, balance=balance), members


def picked(pool: Pool, count: int, tried: tuple[Member, ...] = ()) -> Counter[str]:
    lane = pool._lane(call())
    found = (pool._pick(lane, pool._clock.now, tried) for _ in range(count))
    return Counter(member.backend.label for member in found if member is not None)


async def test_weights() -> None:
    pool, _ = chooser([3, 1, 0], "weighted")
    found = picked(pool, 4000)
    assert 2800 < found["n/m0"] < 3200
    assert found["n/m2"] == 0


async def test_weights_of_calls() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(), seen)) as up, world() as it:
        it.openai(up.url())
        targets = [{"provider": "up", "model": f"m-{n}", "weight": weight} for n, weight in enumerate((3, 1, 0, 2))]
        pool = it.pool(targets=targets)
        pool.members[3].until = 1e18  # its share goes to the others, as theirs is
        for _ in range(400):
            await pool.handle(call())
        found = Counter(msgspec.json.decode(body)["model"] for _, body in seen)
        assert 240 < found["m-0"] < 360
        assert found["m-0"] + found["m-1"] == 400


async def test_round_robin() -> None:
    pool, _ = chooser([1, 1, 1], "round_robin")
    assert picked(pool, 9) == {"n/m0": 3, "n/m1": 3, "n/m2": 3}


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 7.0]), min_size=1, max_size=5),
    st.sampled_from(["weighted", "round_robin"]),
    st.sets(st.integers(0, 4)),
    st.sets(st.integers(0, 4)),
)
async def test_who_is_well_and_was_not_tried_is_chosen(
    weights: list[float], balance: str, out: set[int], tried: set[int]
) -> None:
    pool, members = chooser(weights, balance)
    for n in out & set(range(len(members))):
        members[n].until = 1e18
    was = tuple(members[n] for n in tried if n < len(members))
    lane = pool._lane(call())
    member = pool._pick(lane, pool._clock.now, was)
    fresh = [m for m in members if m not in was]
    well = [m for m in fresh if m.until < 1e18]
    if not fresh:
        assert member is None
    else:
        assert member in (well or fresh)
    if member is not None and any(m.weight for m in well):
        assert balance == "round_robin" or member.weight


@given(st.lists(st.sampled_from(["fail", "limit", "ok", "wait"]), max_size=40))
def test_a_member_is_never_out_longer_than_it_may(steps: list[str]) -> None:
    health = PassiveHealthSpec(failures=2, eject="1s", max="8s")
    provider = Nowhere("n", "openai", frozenset({"chat"}), Clock(), asks_usage=False)
    member = Member(LLMBackend(provider, "m", Timeouts()))
    now = 100.0
    for step in steps:
        if step == "fail":
            member.failed(Failure(502, Reason.UPSTREAM_FAILURE, "x"), now, health)
        elif step == "limit":
            member.failed(Failure(429, Reason.UPSTREAM, "x", retry_after=600.0), now, health)
        elif step == "ok":
            member.succeeded()
        else:
            now += 3.0
        assert member.until <= now + 8.0


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"targets": []}, "at least 1 item"),
        ({"targets": targets("a", weight=0)}, "every target has weight 0"),
        ({"targets": [*targets("a"), *targets("b", weight=2)], "balance": "round_robin"}, "no effect"),
        ({"targets": targets("a"), "balance": "least_latency"}, "weighted"),
        ({"targets": targets("a"), "timeout": {"total": "0s"}}, "greater than 0"),
        ({"targets": targets("a"), "health": {"eject": "10s", "max": "1s"}}, "shorter"),
        ({"targets": targets("a", weight=-1)}, "greater than or equal to 0"),
    ],
)
def test_bad_specs_say_what_would_be_right(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        PoolSpec(**fields)


async def test_an_unknown_provider_is_a_key_error() -> None:
    it = World(1.0)
    with pytest.raises(KeyError):
        it.pool()
