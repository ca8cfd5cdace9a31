"""Streams that are kept, that come again, and that several have at once."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from tests.unit.policies.cache.house import House, Stream, Sunk, asked, gone, over, state, streamed

from tollhouse.core.call import ModelCall, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.policies.cache.broadcast import Replay

pytestmark = pytest.mark.anyio

BLOCKS = [b"data: %d\n\n" % n for n in range(4)]
CUT = Failure(502, Reason.UPSTREAM_FAILURE, "cut")


@pytest.fixture
async def house() -> AsyncIterator[House]:
    one = House(max_size=4096)
    yield one
    await one.close()


async def opened(house: House, count: int = 1) -> tuple[Stream, list[ModelCall], list[Reply]]:
    """So many ask for the same stream; its first block has come."""
    reply, source = streamed(BLOCKS[0])
    house.upstream.answers.append(reply)
    calls = [asked(stream=True) for _ in range(count)]
    replies = await asyncio.gather(*(house.handler(call) for call in calls))
    assert len(house.upstream.calls) == 1
    return source, calls, list(replies)


async def test_a_whole_stream_comes_again(house: House) -> None:
    source, (call,), (reply,) = await opened(house)
    assert state(reply) == "miss"
    sunk = Sunk(reply)
    source.say(*BLOCKS[1:])
    source.end()
    over(call, reply)
    assert sunk.over
    assert sunk.data == b"".join(BLOCKS)
    assert call.context.usage == Usage(3, 4)
    again_call = asked(stream=True)
    again = await house.handler(again_call)
    assert again.source is not None
    assert state(again) == "hit"
    sunk = Sunk(again)
    assert sunk.over
    assert sunk.failure is None
    assert sunk.data == b"".join(BLOCKS)
    assert again_call.context.usage == Usage()
    assert again_call.context.saved_nano == 35


async def test_a_whole_answer_is_no_stream(house: House) -> None:
    await house.ask()
    reply, _ = streamed(BLOCKS[0])
    house.upstream.answers.append(reply)
    assert state(await house.handler(asked(stream=True))) == "miss"


async def test_a_cut_stream_is_not_kept(house: House) -> None:
    source, (call,), (reply,) = await opened(house)
    sunk = Sunk(reply)
    source.say(BLOCKS[1])
    source.end(CUT)
    over(call, reply)
    assert sunk.failure is CUT
    assert house.upstream.settled[0].failure is CUT
    house.upstream.answers.append(streamed(BLOCKS[0])[0])
    assert state(await house.handler(asked(stream=True))) == "miss"


async def test_a_stream_that_says_it_has_failed_is_not_kept(house: House) -> None:
    source, (call,), (reply,) = await opened(house)
    sunk = Sunk(reply)
    source.say(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"error"}]}\n\n', b"data: [DONE]\n\n")
    source.end()
    over(call, reply)
    assert sunk.over
    house.upstream.answers.append(streamed(BLOCKS[0])[0])
    assert state(await house.handler(asked(stream=True))) == "miss"


async def test_a_stream_that_another_one_has_ended_is_not_kept(house: House) -> None:
    source, (call,), (reply,) = await opened(house)
    Sunk(reply)
    call.context.attempts += 1  # the first one broke, and another target has gone on
    source.say(*BLOCKS[1:])
    source.end()
    over(call, reply)
    house.upstream.answers.append(streamed(BLOCKS[0])[0])
    assert state(await house.handler(asked(stream=True))) == "miss"


async def test_a_stream_that_was_left_is_not_kept(house: House) -> None:
    source, (call,), (reply,) = await opened(house)
    Sunk(reply)
    source.say(BLOCKS[1])
    gone(call, reply)
    assert source.closed
    assert house.upstream.settled[0].gone
    assert call.context.usage == Usage(3, 4)
    house.upstream.answers.append(streamed(BLOCKS[0])[0])
    assert state(await house.handler(asked(stream=True))) == "miss"


async def test_a_huge_stream_passes_and_is_not_kept(house: House) -> None:
    source, (call,), (reply,) = await opened(house)
    sunk = Sunk(reply)
    for _ in range(5):
        source.say(b"x" * 1000)
    late = asked(stream=True)
    house.upstream.answers.append(streamed(BLOCKS[0])[0])
    assert state(await house.handler(late)) == "miss"  # it cannot be had from its beginning any more
    source.end()
    over(call, reply)
    assert sunk.over
    assert len(sunk.data) == 5000 + len(BLOCKS[0])
    assert len(house.upstream.calls) == 2


async def test_several_have_one_stream_and_who_comes_late_all_of_it(house: House) -> None:
    source, calls, replies = await opened(house, 2)
    assert [state(reply) for reply in replies] == ["miss", "hit"]
    sunk = [Sunk(reply) for reply in replies]
    source.say(BLOCKS[1], BLOCKS[2])
    late = asked(stream=True)
    reply = await house.handler(late)
    sunk.append(Sunk(reply))
    assert sunk[2].data == b"".join(BLOCKS[:3])
    source.say(BLOCKS[3])
    source.end()
    for one, got in zip([*calls, late], [*replies, reply], strict=True):
        over(one, got)
    assert {one.data for one in sunk} == {b"".join(BLOCKS)}
    assert [one.context.usage for one in (*calls, late)] == [Usage(3, 4), Usage(), Usage()]
    assert [one.context.saved_nano for one in (*calls, late)] == [0, 35, 35]
    assert len(house.upstream.settled) == 1


async def test_who_asked_first_leaves_and_the_others_have_all_of_it(house: House) -> None:
    source, calls, replies = await opened(house, 2)
    sunk = [Sunk(reply) for reply in replies]
    source.say(BLOCKS[1])
    gone(calls[0], replies[0])
    assert not source.closed
    assert not house.upstream.settled
    assert calls[0].context.usage == Usage()
    source.say(*BLOCKS[2:])
    source.end()
    over(calls[1], replies[1])
    assert sunk[1].data == b"".join(BLOCKS)
    assert sunk[0].data == b"".join(BLOCKS[:2])
    assert (calls[1].context.usage, calls[1].context.cached) == (Usage(3, 4), "")
    again = await house.handler(asked(stream=True))
    assert state(again) == "hit"


async def test_a_follower_leaves_and_nothing_else_happens(house: House) -> None:
    source, calls, replies = await opened(house, 2)
    sunk = Sunk(replies[0])
    Sunk(replies[1])
    gone(calls[1], replies[1])
    source.say(*BLOCKS[1:])
    source.end()
    over(calls[0], replies[0])
    assert sunk.data == b"".join(BLOCKS)
    assert calls[0].context.usage == Usage(3, 4)
    assert calls[1].context.usage == Usage()


async def test_all_leave_and_the_upstream_is_let_go(house: House) -> None:
    source, calls, replies = await opened(house, 3)
    for reply in replies:
        Sunk(reply)
    used = []
    for call, reply in zip(calls, replies, strict=True):
        assert not source.closed
        gone(call, reply)
        used.append(call.context.usage)
    assert source.closed
    assert len(house.upstream.settled) == 1
    assert used == [Usage(), Usage(), Usage(3, 4)]


async def test_who_is_slow_holds_nobody_up_until_there_is_too_much(house: House) -> None:
    house = House(max_size="1MiB")
    source, calls, replies = await opened(house, 2)
    slow, quick = Sunk(replies[0]), Sunk(replies[1])
    slow.slow = True
    assert slow.source is not None
    slow.source.pause()
    block = b"x" * 65536
    source.say(block)
    assert len(quick.data) > 65536 > len(slow.data)
    assert {source.paused} == {False}
    source.say(*[block] * 5)
    assert {source.paused} == {True}
    slow.slow = False
    slow.source.resume()
    assert {source.paused} == {False}
    source.end()
    for call, reply in zip(calls, replies, strict=True):
        over(call, reply)
    assert slow.data == quick.data
    assert slow.over
    await house.close()


async def test_who_left_at_the_end_of_the_answer_has_had_it(house: House) -> None:
    source, calls, replies = await opened(house, 2)
    for reply in replies:
        Sunk(reply)
    source.say(*BLOCKS[1:])
    source.end()
    ending = Ending(499, Reason.CLIENT_GONE, gone=True)
    over(calls[1], replies[1], ending)
    assert not ending.gone
    assert ending.status == 200
    over(calls[0], replies[0])


async def test_each_one_s_taps_are_his_own(house: House) -> None:
    source, calls, replies = await opened(house, 2)
    assert replies[0].taps is not None
    assert replies[1].taps is not None

    def refuse(data: bytes) -> bytes:
        raise Failure(400, Reason.GUARDRAIL, "no")

    replies[1].taps.append(lambda data: data.upper())
    both = [Sunk(reply) for reply in replies]
    replies[0].taps.append(refuse)
    source.say(*BLOCKS[1:])
    source.end()
    assert both[0].failure is not None
    assert both[1].failure is None
    assert both[1].data == b"".join(BLOCKS).upper()
    assert (await house.handler(asked(stream=True))).first == b"".join(BLOCKS)
    for call, reply in zip(calls, replies, strict=True):
        over(call, reply)


async def test_what_the_upstream_s_taps_make_of_it_is_kept(house: House) -> None:
    reply, source = streamed(b"data: a secret\n\n")
    source.taps.append(lambda data: data.replace(b"secret", b"[key]"))
    house.upstream.answers.append(reply)
    call = asked(stream=True)
    got = await house.handler(call)
    Sunk(got)
    source.say(b"data: secret\n\n")
    source.end()
    over(call, got)
    assert (await house.handler(asked(stream=True))).first == b"data: a [key]\n\ndata: [key]\n\n"


async def test_paced_as_it_came_first() -> None:
    sent: list[tuple[float, bytes]] = []
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    class Sink:
        def send(self, data: bytes) -> None:
            sent.append((loop.time() - began, data))

        def end(self, failure: Failure | None = None) -> None:
            done.set()

    replay = Replay(BLOCKS, [0, 20, 40, 60])
    began = loop.time()
    replay.start(Sink())
    assert not sent
    async with asyncio.timeout(5):
        await done.wait()
    assert [data for _, data in sent] == BLOCKS[1:]
    assert all(at >= due for (at, _), due in zip(sent, (0.019, 0.039, 0.059), strict=True))


async def test_a_paced_one_waits_for_who_is_slow_and_ends_when_it_is_left() -> None:
    replay = Replay(BLOCKS, [0, 0, 0, 0])
    sunk = Sunk(Reply(200, [], b""))
    replay.pause()
    replay.start(sunk)
    assert not sunk.data
    replay.resume()
    assert sunk.data == b"".join(BLOCKS[1:])
    assert sunk.over
    replay = Replay(BLOCKS, [0, 100_000, 100_000, 100_000])
    replay.start(sunk)
    handle = replay._handle
    assert handle is not None
    replay.close()
    assert handle.cancelled()


async def test_times_are_kept_for_a_paced_one() -> None:
    house = House(replay="paced")
    source, (call,), (reply,) = await opened(house)
    Sunk(reply)
    source.say(*BLOCKS[1:])
    source.end()
    over(call, reply)
    again = await house.handler(asked(stream=True))
    assert again.first == BLOCKS[0]
    store = house.shelf.parts[("cache", 64 << 20)]
    (kept,) = store.memory._kept.values()
    assert kept.entry.blocks == BLOCKS
    assert len(kept.entry.times) == 4
    await house.close()


async def test_nothing_of_a_request_waits_for_the_collector(house: House) -> None:
    gc.collect()
    gc.disable()
    try:
        for number in range(3):
            call = asked(str(number), stream=True)
            reply, source = streamed(BLOCKS[0])
            house.upstream.answers.append(reply)
            got = await house.handler(call)
            sunk = Sunk(got)
            source.say(*BLOCKS[1:])
            source.end()
            over(call, got)
            await house.ask(text=str(number))
            await house.ask(text=str(number))
            del call, reply, source, got, sunk
            house.upstream.calls.clear()
        await asyncio.sleep(0)
        assert gc.collect() == 0
    finally:
        gc.enable()
