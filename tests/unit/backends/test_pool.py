"""Which target is asked, and who is asked next: over real sockets, with health by the clock."""

import asyncio
import gc
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.unit.backends.calls import DONE, EVENT, HEAD, USAGE, World, always, answer, call, chunk, stream, taken, world
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.backends.balance import Balance, InTurn, Weighted
from tollhouse.backends.health import Health, PassiveHealthSpec
from tollhouse.backends.llm import LLMBackend
from tollhouse.backends.pool import Member, Pool, PoolSpec, pool
from tollhouse.backends.provider import Provider, Timeouts
from tollhouse.core.call import Context, ModelCall, Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.wire.llm import CHAT, EMBEDDINGS, MESSAGES
from tollhouse.wire.llm.dialect import Dialect

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
        assert early_one.health.until > it.clock.now
        assert late_one.health.until > it.clock.now  # what dies in the middle is ill too


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
        assert reply.headers == [(b"content-type", b"application/json"), (b"x-tollhouse-attempts", b"dead/m, spare")]


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
        assert member.health.until > it.clock.now
        asked = call()
        await pool.handle(asked)
        assert asked.context.attempts == 1  # it was not asked
        while member.health.until > it.clock.now:
            await asyncio.sleep(0.01)
        first = member.health.until
        assert await answered_by(pool) == "up"  # one probe, which fails: out again, for longer
        assert member.health.until - it.clock.now > 0.1
        assert member.health.until > first
        state["well"] = True
        while member.health.until > it.clock.now:
            await asyncio.sleep(0.01)
        assert await answered_by(pool) == "ill"
        assert member.health.until == 0.0


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
        member.health.failed(it.clock.now - 10)
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
        assert 25 < pool.members[0].health.until - it.clock.now <= 30


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
        pool = it.pool(targets=targets("slow"), fallback=[{"provider": "up"}])
        with pytest.raises(Failure) as caught:
            await pool.handle(call(deadline=monotonic() + 0.2))
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
        with pytest.raises(Failure, match=r"kind anthropic; ask for it at .*/v1/messages") as caught:
            await it.pool(targets=targets("a")).handle(call(dialect=EMBEDDINGS))
        assert (caught.value.status, caught.value.code) == (400, "unsupported_operation")
        with pytest.raises(Failure, match=r"kind local; ask for it at .*/v1/chat/completions"):
            await it.pool(targets=targets("l")).handle(call(dialect=EMBEDDINGS))


async def test_only_targets_that_speak_the_dialect_are_asked() -> None:
    async with upstream(always(answer())) as up, world() as it:
        it.openai(up.url(), "o")
        it.provider("a", kind="anthropic", base_url=up.url(), api_key="k")
        pool = it.pool(targets=targets("o", "a"))
        for _ in range(8):
            asked = call(dialect=EMBEDDINGS)
            await pool.handle(asked)
            assert asked.context.backend == "o"


# ---- who is asked at all
async def test_conditions_choose_the_pool() -> None:
    async with upstream(always(answer())) as up, upstream(always(BROKEN)) as bad, world() as it:
        it.openai(bad.url(), "bad")
        for name in ("long", "gold", "plain"):
            it.openai(up.url(), name)
        pool = it.pool(
            targets=[
                *targets("plain"),
                *targets("long", when="llm.tokens > 5000"),
                *targets("gold", "bad", when='llm.metadata.tier == "gold"'),
            ]
        )
        gold = {"metadata": {"tier": "gold"}}
        for _ in range(8):
            assert await answered_by(pool) == "plain"
            assert await answered_by(pool, max_tokens=9000) == "long"
            assert await answered_by(pool, **gold) == "gold"
        both = {await answered_by(pool, max_tokens=9000, **gold) for _ in range(40)}
        assert both == {"long", "gold"}


async def test_nobody_is_for_the_call() -> None:
    async with upstream(always(answer())) as up, world() as it:
        it.openai(up.url())
        it.openai(up.url(), "spare")
        for fallback in ([], [{"provider": "spare"}]):
            pool = it.pool(targets=targets("up", when="llm.tools"), fallback=fallback)
            with pytest.raises(Failure) as caught:
                await pool.handle(call())
            assert (caught.value.status, caught.value.code) == (400, "no_target")
            assert await answered_by(pool, tools=[{"type": "function"}]) == "up"


async def test_a_caller_stays_and_comes_back() -> None:
    state = {"well": True}

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer() if state["well"] else BROKEN)

    async def ask(pool: Pool) -> str:
        it = call()
        it.principal = it.context.principal = Principal("key:a", source="key", user="ada")
        await taken(await pool.handle(it))
        return it.context.backend

    async with upstream(play) as one, upstream(play) as other, world() as it:
        it.openai(one.url(), "one")
        it.openai(other.url(), "other")
        pool = it.pool(targets=targets("one", "other"), sticky="user", health={"slow_start": "0s", "max": "10s"})
        home = await ask(pool)
        assert [await ask(pool) for _ in range(10)] == [home] * 10
        mine = next(m for m in pool.members if m.backend.provider.name == home)
        mine.health.until = it.clock.now + 1e9
        away = await ask(pool)
        assert away != home
        assert [await ask(pool) for _ in range(5)] == [away] * 5
        mine.health.until = 0.0
        assert await ask(pool) == home


# ---- what another model may answer
def refusal(code: str, message: str = "no") -> bytes:
    error = {"error": {"message": message, "type": "invalid_request_error", "code": code}}
    return answer(msgspec.json.encode(error), 400)


TOO_LONG = refusal("context_length_exceeded")
FORBIDDEN = refusal("content_filter")


@pytest.mark.parametrize(
    "refused, on, asked",
    [
        (TOO_LONG, ["context_window"], True),
        (TOO_LONG, ["content_policy"], False),
        (TOO_LONG, ["failure"], False),
        (TOO_LONG, ["failure", "context_window"], True),
        (FORBIDDEN, ["content_policy"], True),
        (FORBIDDEN, ["context_window"], False),
        (refusal("invalid_value"), ["context_window", "content_policy", "failure"], False),
        (refusal("", "This model's maximum context length is 8192 tokens"), ["context_window"], True),
    ],
)
async def test_what_a_fallback_is_for(refused: bytes, on: list[str], asked: bool) -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(refused)) as up, upstream(always(answer(), seen)) as long, world() as it:
        it.openai(up.url(), "a")
        it.openai(up.url(), "b")
        it.openai(long.url(), "long")
        for names in (["a"], ["a", "b"]):
            seen.clear()
            pool = it.pool(targets=targets(*names), fallback=[{"provider": "long", "on": on, "notice": True}])
            made = call()
            reply = await pool.handle(made)
            assert (reply.status, len(seen)) == ((200, 1) if asked else (400, 0))
            if asked:
                assert made.context.fallback == "long"
                assert made.context.attempts == 2
                assert made.context.tried.endswith("/m, long")
            else:
                assert reply.first == refused.partition(b"\r\n\r\n")[2]  # byte for byte
                assert made.context.attempts == 1
            assert all(m.health.until == 0.0 for m in pool.members)


async def test_a_refusal_is_the_answer_when_nobody_else_takes_it() -> None:
    state = [BROKEN, TOO_LONG, answer(b"<html>", 404, b"")]

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(state[0])

    async with upstream(always(TOO_LONG)) as up, upstream(play) as other, world() as it:
        it.openai(up.url())
        it.openai(other.url(), "other")
        pool = it.pool(targets=targets("up"), fallback=[{"provider": "other", "on": ["context_window"]}])
        while state:
            reply = await pool.handle(call())
            assert reply.status == 400
            assert reply.first == TOO_LONG.partition(b"\r\n\r\n")[2]
            state.pop(0)


def filtered(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "finish_reason": "content_filter", "message": message}]
    usage = {"prompt_tokens": 7, "completion_tokens": 0}
    return answer(msgspec.json.encode({"model": "m", "choices": choices, "usage": usage}))


BLOCKED = b'{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":7,"totalTokenCount":7}}'


async def test_a_stop_by_a_filter_is_an_answer_once_something_was_said() -> None:
    async with upstream(always(filtered("So far"))) as up, world() as it:
        it.openai(up.url())
        it.openai(DEAD, "dead")
        pool = it.pool(targets=targets("up"), fallback=[{"provider": "dead", "on": ["content_policy", "failure"]}])
        made = call()
        assert (await pool.handle(made)).status == 200
        assert made.context.backend == "up"


@pytest.mark.parametrize("on, asked", [("content_policy", True), ("context_window", False), ("failure", False)])
async def test_an_answer_that_was_withheld_is_a_refusal(on: str, asked: bool) -> None:
    async with upstream(always(filtered(""))) as up, upstream(always(answer())) as other, world() as it:
        it.openai(up.url())
        it.openai(other.url(), "other")
        pool = it.pool(targets=targets("up"), fallback=[{"provider": "other", "on": [on]}])
        made = call()
        reply = await pool.handle(made)
        context = made.context
        assert (reply.status, context.backend) == (200, "other" if asked else "up")
        assert context.usage is not None
        if asked:  # both are paid, each at its own price
            assert context.fallback == "other"
            assert [(one.backend, one.usage.input, one.usage.output) for one in context.shares] == [
                ("other", 3, 4), ("up", 7, 0)
            ]  # fmt: skip
            assert (context.usage.input, context.usage.output) == (10, 4)
        else:
            assert reply.first == filtered("").partition(b"\r\n\r\n")[2]
            assert (context.usage.input, context.shares) == (7, ())
        assert all(m.health.until == 0.0 and not m.health.troubled for m in pool.members)


@pytest.mark.parametrize("taken_by", ["other", "nobody"])
async def test_a_blocked_prompt_is_a_refusal_also_of_a_stream(taken_by: str) -> None:
    """Gemini says it in the first event, and nothing after it."""
    other = BROKEN if taken_by == "nobody" else stream(EVENT, USAGE, DONE)
    async with (
        upstream(always(stream(b"data: %b\n\n" % BLOCKED))) as up,
        upstream(always(other)) as second,
        world() as it,
    ):
        it.provider(name="up", kind="gemini", base_url=up.url(), api_key="k")
        it.openai(second.url(), "second")
        pool = it.pool(targets=targets("up"), fallback=[{"provider": "second", "on": ["content_policy"]}])
        made = call({"stream": True, "messages": [{"role": "user", "content": "no"}]})
        reply = await pool.handle(made)
        context = made.context
        assert context.tried == "up/m, second"
        if taken_by == "nobody":
            assert reply.source is None
            assert b'"finish_reason":"content_filter"' in reply.first
            assert reply.first.endswith(DONE)
            assert dict(reply.headers)[b"content-type"].startswith(b"text/event-stream")
            assert context.usage is not None
            assert context.usage.input == 7
        else:
            out, failure = await taken(reply)
            assert failure is None
            assert out == EVENT + DONE
            assert context.usage is not None
            assert [(one.backend, one.usage.input) for one in context.shares] == [("second", 3), ("up", 7)]


def message_events(*between: bytes, stop: str) -> bytes:
    """A stream of Anthropic's API."""
    start = {
        "id": "a",
        "type": "message",
        "role": "assistant",
        "model": "c",
        "content": [],
        "usage": {"input_tokens": 7},
    }
    ended = {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 0}}
    return stream(
        b'event: message_start\ndata: {"type":"message_start","message":%b}\n\n' % msgspec.json.encode(start),
        b'event: ping\ndata: {"type":"ping"}\n\n',
        *between,
        b"event: message_delta\ndata: %b\n\n" % msgspec.json.encode(ended),
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    )


SAID = tuple(
    b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), msgspec.json.encode(event))
    for event in (
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "So"}},
        {"type": "content_block_stop", "index": 0},
    )
)


@pytest.mark.parametrize("dialect", [MESSAGES, CHAT])
@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("said", [(), SAID])
async def test_a_stream_that_is_withheld_after_its_head_is_a_refusal(
    dialect: Dialect, pieces: int, said: tuple[bytes, ...]
) -> None:
    """Anthropic begins the message, and says then that it refuses."""
    whole = message_events(*said, stop="refusal")
    size = -(-len(whole) // pieces)

    async def play(peer: Peer) -> None:
        await peer.request()
        for at in range(0, len(whole), size):
            await peer.send(whole[at : at + size])
            await asyncio.sleep(0.01)
        await peer.closed()

    async with upstream(play) as up, upstream(always(ANTHROPIC_STREAM)) as second, world() as it:
        it.provider(name="up", kind="anthropic", base_url=up.url(), api_key="k")
        it.provider(name="second", kind="anthropic", base_url=second.url(), api_key="k")
        pool = it.pool(targets=targets("up"), fallback=[{"provider": "second", "on": ["content_policy"]}])
        asked = {"stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": "no"}]}
        made = call(asked, dialect=dialect)
        out, failure = await taken(await pool.handle(made))
        assert failure is None
        assert made.context.tried == ("" if said else "up/m, second")
        assert b'"So"' in out


ANTHROPIC_STREAM = message_events(*SAID, stop="end_turn")


async def test_a_stream_that_waits_for_its_first_word_passes_what_is_long() -> None:
    """Sound and pictures are no words."""
    long = b"data: %b\n\n" % msgspec.json.encode(
        {"choices": [{"index": 0, "delta": {"audio": {"data": "A" * 20_000}}}]}
    )
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(long))
        await go.wait()
        await peer.send(chunk(DONE) + b"0\r\n\r\n")
        await peer.closed()

    async with upstream(play) as up, world() as it:
        it.openai(up.url())
        it.openai(DEAD, "dead")
        pool = it.pool(targets=targets("up"), fallback=[{"provider": "dead", "on": ["content_policy"]}])
        reply = await pool.handle(call({"stream": True}))
        assert reply.first == long
        go.set()
        assert await taken(reply) == (long + DONE, None)


@pytest.mark.parametrize("answered", [True, False])
async def test_what_was_used_in_vain_is_counted_too(answered: bool) -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        await peer.closed()

    good = always(stream(EVENT, USAGE, DONE))
    async with upstream(silent) as slow, upstream(good if answered else silent) as up, world() as it:
        it.openai(slow.url(), "slow")
        it.openai(up.url(), "up")
        pool = it.pool(timeout={"first_event": "150ms"}, targets=[*targets("slow"), *targets("up", weight=0)])
        made = call({"stream": True, "messages": [{"role": "user", "content": "x" * 400}]})
        if answered:
            _, failure = await taken(await pool.handle(made))
            assert failure is None
        else:
            with pytest.raises(Failure) as caught:
                await pool.handle(made)
            assert caught.value.status == 504
        context = made.context
        assert context.usage is not None
        in_vain = [one.usage.input for one in context.shares if one.usage.estimated]
        assert [one.backend for one in context.shares] == (["up", "slow"] if answered else ["slow", "up"])
        assert len(in_vain) == (1 if answered else 2)
        assert context.usage.input == sum(in_vain) + 3 * answered > 50


async def test_a_refusal_stays_the_providers_where_no_fallback_speaks_the_operation() -> None:
    async with upstream(always(TOO_LONG)) as up, world() as it:
        it.openai(up.url())
        it.provider(name="claude", kind="anthropic", base_url=DEAD, api_key="k")
        pool = it.pool(targets=targets("up"), fallback=[{"provider": "claude", "on": ["context_window"]}])
        reply = await pool.handle(call({"input": "x"}, dialect=EMBEDDINGS))
        assert (reply.status, reply.first) == (400, TOO_LONG.partition(b"\r\n\r\n")[2])


ANTHROPIC = answer(
    b'{"id":"a","type":"message","role":"assistant","model":"c","content":[{"type":"text","text":"hi"}],'
    b'"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":4}}'
)


async def test_who_cannot_be_told_is_passed_over() -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "logit_bias": {"1": 1}}
    async with upstream(always(answer())) as up, upstream(always(ANTHROPIC)) as claude, world() as it:
        it.openai(up.url(), "o")
        it.provider("a", kind="anthropic", base_url=claude.url().rstrip("/"), api_key="k")
        specs: tuple[dict[str, Any], ...] = (
            {"targets": [*targets("a"), *targets("o", weight=0)]},
            {"targets": targets("a"), "fallback": [{"provider": "o"}]},
        )
        for spec in specs:
            pool = it.pool(**spec)
            for _ in range(3):
                made = call(body)
                reply = await pool.handle(made)
                assert (made.context.backend, made.context.attempts, made.context.tried) == ("o", 1, "")
                assert dict(reply.headers).keys() <= {b"content-type", b"x-tollhouse-fallback"}
            assert pool.members[0].health.until == 0.0
            assert not pool.members[0].health.troubled
        alone = it.pool(targets=targets("a"), fallback=[{"provider": "a"}])
        with pytest.raises(Failure, match="logit_bias") as caught:
            await alone.handle(call(body))
        assert (caught.value.status, caught.value.code) == (400, "not_expressible")
        assert claude.connections == 0


# ---- each step is named
async def test_steps_are_named_and_counted() -> None:
    steps: list[tuple[str, str]] = []

    def retried(context: Context, why: str) -> None:
        steps.append((context.backend, why))

    async with upstream(always(BROKEN)) as bad, upstream(always(answer())) as up, world() as it:
        it.openai(DEAD, "dead")
        it.openai(bad.url(), "bad")
        it.openai(up.url(), "spare")
        fields = {
            "targets": [*targets("dead"), *targets("bad", weight=0)],
            "fallback": [{"provider": "spare", "notice": True}],
        }
        spec = PoolSpec.model_validate(fields)
        made = pool("smart", spec, it.providers, it.clock, retried=retried)
        asked = call()
        reply = await made.handle(asked)
        assert dict(reply.headers)[b"x-tollhouse-attempts"] == b"dead/m, bad/m, spare"
        assert dict(reply.headers)[b"x-tollhouse-fallback"] == b"spare"
        assert asked.context.tried == "dead/m, bad/m, spare"
        assert asked.context.attempts == 3
        assert steps == [("dead", "connect"), ("bad", "502")]


async def test_a_failure_names_who_was_asked() -> None:
    async with upstream(always(BROKEN)) as bad, world() as it:
        it.openai(bad.url(), "a")
        it.openai(bad.url(), "b")
        made = it.pool(targets=targets("a", "b"), balance="round_robin")
        asked = call()
        for names in (b"a/m, b/m", b"a/m, b/m, a/m, b/m"):  # again, as `retry` asks
            with pytest.raises(Failure) as caught:
                await made.handle(asked)
            found = dict(caught.value.headers)[b"x-tollhouse-attempts"].split(b", ")
            assert sorted(found) == sorted(names.split(b", "))


# ---- promises
async def test_a_target_that_is_gone_costs_one_connect_and_no_more() -> None:
    seen: list[tuple[bytes, bytes]] = []
    connects: list[str] = []
    async with upstream(always(answer(), seen)) as up, world() as it:
        it.openai(DEAD, "dead")
        it.openai(up.url(), "up")
        made = it.pool(targets=[*targets("dead"), *targets("up", weight=0)])
        dead = made.members[0]
        handle = dead.handle

        async def watched(asked: ModelCall) -> Reply:
            connects.append(asked.context.request_id)
            return await handle(asked)

        dead.handle = watched
        attempts = []
        for _ in range(50):
            asked = call()
            await made.handle(asked)
            attempts.append(asked.context.attempts)
        assert attempts == [2] + [1] * 49
        assert len(connects) == 1
        assert len(seen) == 50


async def test_one_of_three_dies_under_load_and_nobody_notices() -> None:
    stop = asyncio.Event()
    came: Counter[str] = Counter()

    def serve(name: str) -> Callable[[Peer], Any]:
        async def play(peer: Peer) -> None:
            while True:
                await peer.request()
                came[name] += 1
                await asyncio.sleep(0.01)
                if name == "a" and stop.is_set():
                    peer.cut()
                    return
                await peer.send(answer())

        return play

    async with upstream(serve("a")) as a, upstream(serve("b")) as b, upstream(serve("c")) as c, world() as it:
        for name, one in (("a", a), ("b", b), ("c", c)):
            it.openai(one.url(), name)
        made = it.pool(targets=targets("a", "b", "c"))

        async def client() -> Counter[str]:
            found: Counter[str] = Counter()
            for n in range(20):
                if n == 5:
                    stop.set()
                found[await answered_by(made)] += 1
            return found

        total = sum(await asyncio.gather(*(client() for _ in range(30))), Counter[str]())
        assert total.total() == 600
        assert came.total() <= 600 + 100
        assert made.members[0].health.until > 0.0


@pytest.mark.parametrize("fallback", [[], ["d"], ["d", "e"]])
@pytest.mark.parametrize("failing", [BROKEN, answer(b"{}", 429), answer(b"<html>")])
async def test_a_storm_is_not_multiplied(fallback: list[str], failing: bytes) -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(failing, seen)) as up, world() as it:
        for name in "abcde":
            it.openai(up.url(), name)
        made = it.pool(
            targets=targets("a", "b", "c"), fallback=[{"provider": name} for name in fallback], health={"eject": "50ms"}
        )
        began = it.clock.now

        async def client() -> int:
            for _ in range(100):
                asked = call()
                for _ in range(3):  # as `retry` does, within what the budget allows
                    with pytest.raises(Failure):
                        await made.handle(asked)
                    if asked.context.budget is None or not asked.context.budget.retry():
                        break
            return 100

        calls = sum(await asyncio.gather(*(client() for _ in range(20))))
        passed = it.clock.now - began
        fallbacks = 20 * 5 * len(fallback) * 2  # those under way until a fallback is left out
        assert len(seen) <= 1.2 * calls + 100 + 10 * passed + fallbacks


async def test_the_last_ones_are_asked_all_the_same() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(BROKEN, seen)) as up, world() as it:
        for name in "abc":
            it.openai(up.url(), name)
        for spec in (
            {"targets": targets("a", "b")},
            {"targets": targets("a"), "fallback": [{"provider": "b"}]},
            {"targets": targets("a"), "fallback": [{"provider": "b"}, {"provider": "c", "on": ["context_window"]}]},
        ):
            made = it.pool(health={"failures": 1}, **spec)
            with pytest.raises(Failure):
                await made.handle(call())
            assert all(m.health.until > it.clock.now for m in made.members[:2])
            seen.clear()
            for n in range(3):
                with pytest.raises(Failure, match="answered 500"):
                    await made.handle(call())
                assert len(seen) >= n + 1


async def test_many_failures_among_answers_eject() -> None:
    number = 0

    async def play(peer: Peer) -> None:
        nonlocal number
        while True:
            await peer.request()
            number += 1
            await peer.send(BROKEN if number % 5 < 3 else answer())

    async with upstream(play) as flaky, upstream(always(answer())) as up, world() as it:
        it.openai(flaky.url(), "flaky")
        it.openai(up.url(), "up")
        made = it.pool(targets=[*targets("flaky"), *targets("up", weight=0)], health={"minimum": 10})
        for _ in range(40):
            await made.handle(call())
        assert 10 <= number <= 12
        assert made.members[0].health.until > it.clock.now


async def test_our_own_bound_is_no_fault_of_the_target() -> None:
    member = chooser([1])[1][0]
    for _ in range(50):
        member.failed(Failure(503, Reason.OVERLOADED, "x", code="pool_exhausted", retry=True, reached=False), 1.0)
    assert member.health.until == 0.0


# ---- what is no answer
EVENTS_TYPE = b"content-type: text/event-stream\r\n"


@pytest.mark.parametrize(
    "streamed, said",
    [
        (False, answer(b"<html>busy</html>", 200, b"content-type: text/html\r\n")),
        (False, answer(b"<html>busy</html>")),
        (False, answer(b"")),
        (False, answer(b"[]")),
        (False, answer(b'{"model":"m","choices":[')),
        (False, answer(b'{"model":"m","choices":[],"x":NaN}')),
        (False, answer(b'{"model":"m","x":"\xff\xfe","usage":{"prompt_tokens":3}}')),
        (False, answer(b'{"error":{"message":"overloaded","type":"server_error"}}')),
        (False, answer(b'{"error":"overloaded"}')),
        (False, b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
        (False, b"SSH-2.0-x\r\n\r\n"),
        (True, answer(b"<html>busy</html>", 200, EVENTS_TYPE)),
        (True, answer(b"<html>busy</html>", 200, b"content-type: text/html\r\n")),
        (True, answer()),
        (True, answer(b'{"error":{"message":"overloaded"}}')),
        (True, answer(b'{"error":{"message":"overloaded"}}', 200, EVENTS_TYPE)),
        (True, answer(b'data: {"error":{"message":"overloaded"}}\n\n', 200, EVENTS_TYPE)),
        (True, answer(b'data: {"choices":[{"del', 200, EVENTS_TYPE)),
        (True, answer(b": hi\n\n", 200, EVENTS_TYPE)),
        (True, answer(b"", 200, EVENTS_TYPE)),
    ],
)
async def test_what_is_no_answer_is_a_failure_of_the_target(streamed: bool, said: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(said)
        peer.writer.write_eof()

    good = stream(EVENT, DONE) if streamed else answer()
    async with upstream(play) as bad, upstream(always(good)) as up, world() as it:
        it.openai(bad.url(), "bad")
        it.openai(up.url(), "up")
        pool = it.pool(targets=targets("bad"))
        with pytest.raises(Failure) as caught:
            await pool.handle(call({"stream": streamed}))
        assert (caught.value.status, caught.value.reason) == (502, Reason.UPSTREAM_FAILURE)
        assert caught.value.retry
        pool = it.pool(targets=[*targets("bad"), *targets("up", weight=0)], health={"failures": 1})
        assert await answered_by(pool, stream=streamed) == "up"
        assert pool.members[0].health.until > it.clock.now


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","choices":[],"error":null}',
        b'{"object":"response","output":[],"error":{"message":"the model failed"}}',
        b'{"model":"m","choices":[{"message":{"content":"\xc3\xa9"}}]}',
    ],
)
async def test_what_is_an_answer_all_the_same(body: bytes) -> None:
    async with upstream(always(answer(body))) as up, world() as it:
        it.openai(up.url())
        assert (await it.pool().handle(call())).first == body


# ---- active checks
@pytest.mark.parametrize(
    "odd", [b"<html>", EVENT[6:-2].replace(b"abcd", b"ab\xff"), EVENT[6:-2].replace(b'"m-1"', b"NaN")]
)
async def test_garbage_in_a_stream_ends_it_and_is_a_failure_of_the_target(odd: bytes) -> None:
    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(HEAD + chunk(EVENT))
            await asyncio.sleep(0.02)
            await peer.send(b"".join(map(chunk, (EVENT, b"data: %b\n\n" % odd, USAGE, DONE))) + b"0\r\n\r\n")

    async with upstream(play) as up, world() as it:
        it.openai(up.url())
        it.openai(DEAD, "other")
        pool = it.pool(targets=[*targets("up"), *targets("other", weight=0)], health={"failures": 2})
        out, failure = await taken(await pool.handle(call({"stream": True})))
        assert failure is not None
        assert (failure.status, failure.reason) == (502, Reason.UPSTREAM_FAILURE)
        assert (out, odd in out) == (EVENT * 2, False)
        member = pool.members[0]
        assert (member.health.until, member.health.troubled) == (0.0, True)
        await taken(await pool.handle(call({"stream": True})))
        assert member.health.until > 0.0


async def test_checks_leave_out_and_bring_back() -> None:
    state = {"well": False}
    heads: list[bytes] = []

    async def play(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            if head.startswith(b"GET"):
                heads.append(head)
                await peer.send(answer(b"{}", 200 if state["well"] else 503))
            else:
                await peer.send(answer())

    check = {"path": "/models", "interval": "10ms", "unhealthy": 2, "healthy": 2}
    async with upstream(play) as ill, upstream(always(answer())) as up, world() as it:
        it.openai(ill.url("/v1"), "ill", api_key="sk-1")
        it.openai(up.url("/v1"), "up")
        made = it.pool(targets=[*targets("ill"), *targets("up", weight=0)], health={"check": check, "slow_start": "0s"})
        assert made.checked
        assert await answered_by(made) == "ill"
        made.start()
        async with asyncio.timeout(5):
            while not made.members[0].health.down:
                await asyncio.sleep(0.005)
            assert await answered_by(made) == "up"
            state["well"] = True
            while made.members[0].health.down:
                await asyncio.sleep(0.005)
        assert await answered_by(made) == "ill"
        await made.close()
        assert heads[0].startswith(b"GET /v1/models HTTP/1.1\r\nhost: ")
        assert b"\r\nauthorization: Bearer sk-1\r\n" in heads[0]
        before = len(heads)
        await asyncio.sleep(0.03)
        assert len(heads) == before


async def test_who_all_checks_call_down_is_asked_all_the_same() -> None:
    async with upstream(always(answer(b"{}", 404))) as up, world() as it:
        it.openai(up.url())
        it.openai(up.url(), "other")
        made = it.pool(targets=targets("up", "other"), health={"check": {"interval": "5ms", "unhealthy": 1}})
        made.start()
        async with asyncio.timeout(5):
            while not all(m.health.down for m in made.members):
                await asyncio.sleep(0.005)
        assert (await made.handle(call())).status == 404
        await made.close()


class Nowhere(Provider):
    """A provider that is never asked: for choosing alone."""

    def answers(self, operation: str, translatable: bool) -> bool:
        return True


def chooser(weights: list[float], balance: type[Balance] = Weighted) -> tuple[Pool, list[Member]]:
    clock = Clock()
    provider = Nowhere("n", "openai", clock)
    members = [
        Member(LLMBackend(provider, f"m{n}", Timeouts()), Health(PassiveHealthSpec()), w) for n, w in enumerate(weights)
    ]
    return Pool("smart", members, (), clock, balance=balance), members


def picked(pool: Pool, count: int, tried: tuple[Member, ...] = ()) -> Counter[str]:
    lane = pool._lane(call())
    found = (pool._pick(lane, lane.members, call(), pool._clock.now, tried) for _ in range(count))
    return Counter(member.backend.label for member in found if member is not None)


async def test_weights() -> None:
    pool, _ = chooser([3, 1, 0])
    found = picked(pool, 4000)
    assert 2800 < found["n/m0"] < 3200
    assert found["n/m2"] == 0


async def test_weights_of_calls() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(), seen)) as up, world() as it:
        it.openai(up.url())
        targets = [{"provider": "up", "model": f"m-{n}", "weight": weight} for n, weight in enumerate((3, 1, 0, 2))]
        pool = it.pool(targets=targets)
        pool.members[3].health.until = 1e18  # its share goes to the others, as theirs is
        for _ in range(400):
            await pool.handle(call())
        found = Counter(msgspec.json.decode(body)["model"] for _, body in seen)
        assert 240 < found["m-0"] < 360
        assert found["m-0"] + found["m-1"] == 400


async def test_round_robin() -> None:
    pool, _ = chooser([1, 1, 1], InTurn)
    assert picked(pool, 9) == {"n/m0": 3, "n/m1": 3, "n/m2": 3}


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 7.0]), min_size=1, max_size=5),
    st.sampled_from([Weighted, InTurn]),
    st.sets(st.integers(0, 4)),
    st.sets(st.integers(0, 4)),
)
async def test_who_is_well_and_was_not_tried_is_chosen(
    weights: list[float], balance: type[Balance], out: set[int], tried: set[int]
) -> None:
    pool, members = chooser(weights, balance)
    for n in out & set(range(len(members))):
        members[n].health.until = 1e18
    was = tuple(members[n] for n in tried if n < len(members))
    lane = pool._lane(call())
    member = pool._pick(lane, lane.members, call(), pool._clock.now, was)
    fresh = [m for m in members if m not in was]
    well = [m for m in fresh if m.health.until < 1e18]
    if not fresh:
        assert member is None
    else:
        assert member in (well or fresh)
    if member is not None and any(m.weight for m in well):
        assert balance is InTurn or member.weight


@given(st.lists(st.sampled_from(["fail", "limit", "ok", "wait"]), max_size=40))
def test_a_member_is_never_out_longer_than_it_may(steps: list[str]) -> None:
    provider = Nowhere("n", "openai", Clock())
    health = Health(PassiveHealthSpec(failures=2, eject=1.0, max=8.0), spread=0.2)
    member = Member(LLMBackend(provider, "m", Timeouts()), health)
    now = 100.0
    for step in steps:
        if step == "fail":
            member.failed(Failure(502, Reason.UPSTREAM_FAILURE, "x", retry=True), now)
        elif step == "limit":
            member.failed(Failure(429, Reason.UPSTREAM, "x", retry=True, retry_after=600.0), now)
        elif step == "ok":
            health.succeeded()
        else:
            now += 3.0
        assert member.health.until <= now + 8.0


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"targets": []}, "at least 1 item"),
        ({"targets": targets("a", weight=0)}, "every target has weight 0"),
        ({"targets": [*targets("a"), *targets("b", weight=2)], "balance": "round_robin"}, "no effect"),
        ({"targets": targets("a"), "balance": "fastest"}, "weighted"),
        ({"targets": targets("a"), "timeout": {"total": "0s"}}, "greater than 0"),
        ({"targets": targets("a"), "health": {"eject": "10s", "max": "1s"}}, "shorter"),
        ({"targets": targets("a", "b"), "sticky": "team"}, "neither one of user, org, key nor a CEL"),
        ({"targets": targets("a", "b"), "sticky": "user", "balance": "round_robin"}, "no effect with sticky"),
        ({"targets": targets("a", when="llm.nothing")}, "unknown field"),
        ({"targets": targets("a"), "fallback": [{"provider": "b", "on": []}]}, "at least 1 item"),
        ({"targets": targets("a"), "health": {"error_rate": 0}}, "greater than 0"),
        ({"targets": targets("a"), "health": {"error_rate": None, "minimum": 3}}, "`minimum` has no effect"),
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


async def test_a_provider_that_is_gone_is_found_out_once_for_all_its_models() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(), seen)) as up, world() as it:
        it.openai(DEAD, "dead")
        it.openai(up.url(), "up")
        pools = [it.pool(f"m-{n}", targets=targets("dead"), fallback=[{"provider": "up"}]) for n in range(20)]
        attempts = []
        for pool in pools * 2:
            asked = call()
            await pool.handle(asked)
            attempts.append(asked.context.attempts)
        assert attempts == [2] + [1] * 39
        # What is gone with its configuration is not kept.
        provider = it.providers["dead"]
        assert len(provider.known) == 20
        del pools, pool
        gc.collect()
        assert len(provider.known) == 0


async def test_one_model_that_fails_says_nothing_of_the_others() -> None:
    async with upstream(always(BROKEN)) as bad, upstream(always(answer())) as up, world() as it:
        it.openai(bad.url(), "bad")
        it.openai(up.url(), "up")
        one, other = (
            it.pool(name, targets=targets("bad"), fallback=[{"provider": "up"}], health={"failures": 1})
            for name in ("one", "other")
        )
        await one.handle(call())
        assert one.members[0].health.until > 0.0
        assert other.members[0].health.until == 0.0


async def test_a_place_that_is_gone_says_nothing_of_the_other_places() -> None:
    async with world() as it:
        made = it.provider(
            "v",
            kind="vertex",
            project="p",
            api_key="k",
            places=[{"when": 'llm.model == "x"', "region": "us-east5"}],
        )
        pools = [it.pool(name, targets=targets("v")) for name in ("a", "b")]
        made.unreached(pools[0].members[0].health, it.clock.now)
        assert pools[1].members[0].health.until == 0.0


async def test_one_that_comes_back_gets_its_share_little_by_little() -> None:
    came: Counter[str] = Counter()
    async with upstream(always(answer())) as up, world() as it:
        for name in "ab":
            it.openai(up.url(), name)
        pool = it.pool(targets=targets("a", "b"), health={"slow_start": "1h", "eject": "1ms"})
        back = pool.members[0].health
        back.failed(it.clock.now, outright=True)
        while back.until > it.clock.now:
            await asyncio.sleep(0.01)
        while back.until:  # until one has tried it
            await pool.handle(call())
        for _ in range(300):
            came[await answered_by(pool)] += 1
        assert 0 < came["a"] < 75  # of ten calls one, or a little more
        assert came["b"] > 225
