"""What is known of a call's usage when nobody tells it: too late, left, never sent, or a stream that is no JSON."""

import asyncio

import pytest
from tests.unit.backends.calls import DONE, EVENT, HEAD, always, answer, call, chunk, stream, taken, world
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.backends.llm import LLMBackend
from tollhouse.backends.provider import Timeouts
from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import RESPONSES, SPEECH

pytestmark = pytest.mark.anyio

SLOW = Timeouts(total=5.0, first_event=5.0, idle=5.0, connect=5.0)
FAST = Timeouts(total=0.15, first_event=0.15, idle=0.15, connect=5.0)
ASKED = {"messages": [{"role": "user", "content": "x" * 400}], "max_tokens": 50}
PROMPT = 115  # of a body of about 460 bytes


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.closed()


@pytest.mark.parametrize("streams", [False, True])
async def test_usage_of_nothing_beside_an_answer_is_not_believed(streams: bool) -> None:
    """An answer that was asked for and has a text is never free."""
    zeros = b'"usage":{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'
    whole = b'{"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hello you"}}],%b}' % zeros
    last = b'data: {"model":"m","choices":[],%b}\n\n' % zeros
    play = stream(EVENT, last, DONE) if streams else answer(whole)
    async with upstream(always(play)) as up, world() as it:
        asked = call({**ASKED, "stream": streams})
        await taken(await LLMBackend(it.openai(up.url()), "m", SLOW).handle(asked))
    usage = asked.context.usage
    assert usage is not None
    assert usage.estimated
    assert usage.output > 0
    assert abs(usage.input - PROMPT) < 10


async def test_sound_of_which_no_usage_is_told_is_not_free() -> None:
    async with upstream(always(answer(b"\xff\xf3" * 4000))) as up, world() as it:
        asked = call({"input": "hello there " * 50, "voice": "alloy"}, dialect=SPEECH)
        await taken(await LLMBackend(it.openai(up.url()), "m", SLOW).handle(asked))
    usage = asked.context.usage
    assert usage is not None
    assert (usage.estimated, usage.output) == (True, 802)


@pytest.mark.parametrize("status", ["queued", "in_progress"])
async def test_an_answer_that_is_made_in_the_background_is_paid_as_far_as_it_may_go(status: str) -> None:
    told = b'{"id":"r","object":"response","model":"m","status":"%b","output":[],"usage":null}' % status.encode()
    async with upstream(always(answer(told))) as up, world() as it:
        asked = call({"input": "think", "background": True, "max_output_tokens": 5000}, dialect=RESPONSES)
        await taken(await LLMBackend(it.openai(up.url(), responses=True), "m", SLOW).handle(asked))
    usage = asked.context.usage
    assert usage is not None
    assert (usage.estimated, usage.output) == (True, 5000)


@pytest.mark.parametrize("status", [504, 524])
@pytest.mark.parametrize("streams", [False, True])
async def test_a_provider_that_says_it_was_too_late_has_read_the_request(status: int, streams: bool) -> None:
    async with upstream(always(answer(b"<html>", status))) as up, world() as it:
        asked = call({**ASKED, "stream": streams})
        with pytest.raises(Failure) as failure:
            await LLMBackend(it.openai(up.url()), "m", SLOW).handle(asked)
    assert failure.value.sent
    usage = asked.context.usage
    assert usage is not None
    assert (usage.estimated, usage.output) == (True, 0)
    assert abs(usage.input - PROMPT) < 10


async def test_other_errors_of_a_provider_cost_nothing() -> None:
    async with upstream(always(answer(b"<html>", 503))) as up, world() as it:
        asked = call(ASKED)
        with pytest.raises(Failure):
            await LLMBackend(it.openai(up.url()), "m", SLOW).handle(asked)
    assert asked.context.usage is None


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("head", [b"", HEAD])
async def test_an_answer_that_we_did_not_wait_for(streams: bool, head: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(head)
        await peer.closed()

    async with upstream(play) as up, world() as it:
        asked = call({**ASKED, "stream": streams})
        with pytest.raises(Failure) as failure:
            await LLMBackend(it.openai(up.url()), "m", FAST).handle(asked)
    assert failure.value.status == 504
    usage = asked.context.usage
    assert usage is not None
    assert usage.estimated
    assert usage.output == (0 if streams else 50)  # a whole answer is worked on to its end


@pytest.mark.parametrize("kept", [False, True])
async def test_who_leaves_while_the_provider_is_at_work_is_charged(kept: bool) -> None:
    came = asyncio.Event()

    async def play(peer: Peer) -> None:
        if kept:
            await peer.request()
            await peer.send(answer())
        await peer.request()
        came.set()
        await peer.closed()

    async with upstream(play) as up, world() as it:
        backend = LLMBackend(it.openai(up.url()), "m", SLOW)
        if kept:
            await backend.handle(call(ASKED))
        asked = call(ASKED)
        task = asyncio.create_task(backend.handle(asked))
        async with asyncio.timeout(5):
            await came.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    usage = asked.context.usage
    assert usage is not None
    assert (usage.estimated, usage.output) == (True, 50)
    assert asked.context.upstream_began > 0


async def test_who_leaves_before_anything_was_sent_is_not() -> None:
    async def mute(peer: Peer) -> None:
        await peer.closed()  # the TLS handshake is never answered

    async with upstream(mute) as up, world() as it:
        asked = call(ASKED)
        made = it.openai(up.url(scheme="https"), tls={"verify": False})
        task = asyncio.create_task(LLMBackend(made, "m", SLOW).handle(asked))
        async with asyncio.timeout(5):
            while not up.connections:
                await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert asked.context.usage is None
    assert asked.context.upstream_began == 0.0  # so that limits give back what they took


async def test_a_stream_that_is_no_json() -> None:
    async with upstream(always(stream(b"data: <html>\n\n", DONE))) as up, world() as it:
        with pytest.raises(Failure, match="not JSON") as failure:
            await LLMBackend(it.openai(up.url()), "m", SLOW).handle(call({"stream": True}))
    assert (failure.value.status, failure.value.retry) == (502, True)
    begun = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await begun.wait()
        await peer.send(chunk(b"data: oops\n\n" + EVENT + DONE) + b"0\r\n\r\n")
        await peer.closed()

    async with upstream(play) as up, world() as it:
        asked = call({"stream": True})
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(asked)
        begun.set()
        body, ended = await taken(reply)
    assert body == EVENT
    assert ended is not None
    assert (ended.status, ended.detail) == (502, "in it is b'oops'")
    assert asked.context.usage is not None
    assert asked.context.usage == Usage(asked.context.usage.input, 1, estimated=True)
