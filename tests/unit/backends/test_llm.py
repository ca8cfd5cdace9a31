"""One model at one provider, over real sockets: what is sent, what comes back, and everything that goes wrong."""

import asyncio
import gzip
from time import monotonic
from typing import Any

import msgspec
import pytest
from pydantic import TypeAdapter, ValidationError
from tests.fixtures.garbage import collected
from tests.unit.backends.calls import (
    ANSWER,
    DONE,
    EVENT,
    HEAD,
    USAGE,
    Taker,
    always,
    answer,
    call,
    chunk,
    stream,
    taken,
    world,
)
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.backends.llm import LLMBackend, retry_after
from tollhouse.backends.provider import Timeouts
from tollhouse.backends.providers import ProviderSpec
from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Headers, finish
from tollhouse.wire.llm import CHAT, EMBEDDINGS, MESSAGES
from tollhouse.wire.llm.dialect import StreamFailure

pytestmark = pytest.mark.anyio

FAST = Timeouts(total=5.0, first_event=0.15, idle=0.15, connect=1.0)
SLOW = Timeouts(total=5.0, first_event=5.0, idle=5.0, connect=5.0)


def fields_of(head: bytes) -> dict[bytes, bytes]:
    lines = head.rstrip(b"\r\n").split(b"\r\n")[1:]
    return dict(line.split(b": ", 1) for line in lines)


# ---- what is sent
async def test_the_request_of_an_openai_provider() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(), seen)) as up, world() as it:
        made = it.openai(up.url("/api/v1/"), api_key="sk-ours\n", organization="org-1", headers={"X-Tier": "gold"})
        trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        headers = [
            (b"authorization", b"Bearer callers"),
            (b"cookie", b"a=b"),
            (b"traceparent", trace),
            (b"x-forwarded-for", b"10.0.0.1"),
            (b"anthropic-beta", b"not-for-openai"),
        ]
        body = b'{"messages":[{"content":"\\u00e9 \xc3\xa9"}], "model" : "smart","future":{"x": [1, 2]}, "seed":1e2}'
        it_call = call(body, headers=headers)
        it_call.context.request_id = "req-7"
        await LLMBackend(made, "gpt-4o", SLOW).handle(it_call)
    head, sent = seen[0]
    assert head.startswith(b"POST /api/v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % up.port)
    fields = fields_of(head)
    assert fields.pop(b"host") == b"127.0.0.1:%d" % up.port
    assert fields == {
        b"authorization": b"Bearer sk-ours",
        b"openai-organization": b"org-1",
        b"x-tier": b"gold",
        b"content-type": b"application/json",
        b"accept": b"application/json, text/event-stream",
        b"accept-encoding": b"identity",
        b"user-agent": b"tollhouse",
        b"traceparent": trace,
        b"x-request-id": b"req-7",
        b"content-length": b"%d" % len(sent),
    }
    # Every value byte for byte, but for the model.
    assert sent == b'{"messages":[{"content":"\\u00e9 \xc3\xa9"}],"model":"gpt-4o","future":{"x": [1, 2]},"seed":1e2}'
    assert bytes(it_call.fields["model"]) == b'"smart"'


@pytest.mark.parametrize(
    "headers, version",
    [([], b"2023-06-01"), ([(b"anthropic-version", b"2026-10-21")], b"2026-10-21")],
)
async def test_the_request_of_an_anthropic_provider(headers: list[tuple[bytes, bytes]], version: bytes) -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(), seen)) as up, world() as it:
        made = it.provider("a", kind="anthropic", base_url=up.url(), api_key="sk-ant")
        headers = [*headers, (b"anthropic-beta", b"files-api-2025-04-14"), (b"x-api-key", b"callers")]
        await LLMBackend(made, "claude", SLOW).handle(call(dialect=MESSAGES, headers=headers))
    head, sent = seen[0]
    assert head.startswith(b"POST /v1/messages HTTP/1.1\r\n")
    fields = fields_of(head)
    assert fields[b"x-api-key"] == b"sk-ant"
    assert fields[b"anthropic-version"] == version
    assert fields[b"anthropic-beta"] == b"files-api-2025-04-14"
    assert b"authorization" not in fields
    assert sent == b'{"model":"claude"}'


@pytest.mark.parametrize(
    "pattern, target, asked, sent",
    [
        ("smart", "gpt-4o", "smart", "gpt-4o"),
        ("smart", None, "smart", "smart"),
        ("openai/*", "*", "openai/gpt-4o", "gpt-4o"),
        ("openai/*", None, "openai/gpt-4o", "openai/gpt-4o"),
        ("*-fast", "fast-*-v2", "gpt-fast", "fast-gpt-v2"),
        ("*", "*", 'a"b\u00e9', 'a"b\u00e9'),
        ("openai/*", "gpt-4o", "openai/x", "gpt-4o"),
    ],
)
async def test_the_model_is_mapped(pattern: str, target: str | None, asked: str, sent: str) -> None:
    async with world() as it:
        made = it.openai("http://127.0.0.1:9")
        backend = LLMBackend(made, target, SLOW, pattern=pattern)
        assert backend.model(call({"model": asked})) == sent


@pytest.mark.parametrize("bounded, sent", [(False, "max_completion_tokens"), (True, "max_tokens")])
async def test_a_bound_of_ours_has_the_name_that_the_provider_knows(bounded: bool, sent: str) -> None:
    """Who does not know it would answer at any length. What a caller writes stays."""
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(), seen)) as up, world() as it:
        asked = call({"max_completion_tokens": 40, "messages": []})
        asked.bounded = bounded
        await taken(await LLMBackend(it.openai(up.url()), "m", SLOW).handle(asked))
    body = msgspec.json.decode(seen[0][1])
    assert {name: value for name, value in body.items() if name.startswith("max_")} == {sent: 40}


async def test_usage_is_asked_for_and_taken_out_again() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(stream(EVENT, USAGE + DONE), seen)) as up, world() as it:
        backend = LLMBackend(it.openai(up.url()), "m", SLOW)
        asked = call({"stream": True, "stream_options": {"include_obfuscation": False}})
        assert await taken(await backend.handle(asked)) == (EVENT + DONE, None)
        assert asked.context.usage == Usage(3, 4)
        assert asked.context.model_answered == "m-1"
        assert 0 < asked.context.upstream_began <= asked.context.first_event <= asked.context.upstream_ended

        wanted = call({"stream": True, "stream_options": {"include_usage": True}})
        assert await taken(await backend.handle(wanted)) == (EVENT + USAGE + DONE, None)
        assert wanted.context.usage == Usage(3, 4)

        backend = LLMBackend(it.openai(up.url(), "plain", stream_usage=False), "m", SLOW)
        await taken(await backend.handle(call({"stream": True})))
        assert up.connections == 2  # one of each provider: their pools are their own
    sent = [msgspec.json.decode(body).get("stream_options") for _, body in seen]
    assert sent == [{"include_obfuscation": False, "include_usage": True}, {"include_usage": True}, None]


# ---- what comes back
async def test_a_whole_answer() -> None:
    headers = (
        b"content-type: application/json; charset=utf-8\r\n"
        b"openai-processing-ms: 12\r\nopenai-organization: org-secret\r\n"
        b"x-ratelimit-remaining-tokens: 7\r\nx-request-id: req_up\r\nset-cookie: a=b\r\nserver: cloud\r\n"
    )
    async with upstream(always(answer(ANSWER, headers=headers))) as up, world() as it:
        asked = call()
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(asked)
    assert reply.first == ANSWER
    assert reply.source is None
    assert sorted(reply.headers) == [
        (b"content-type", b"application/json; charset=utf-8"),
        (b"openai-processing-ms", b"12"),
        (b"x-ratelimit-remaining-tokens", b"7"),
        (b"x-upstream-request-id", b"req_up"),
    ]
    context = asked.context
    assert context.usage == Usage(3, 4)
    assert (context.provider, context.backend, context.model_answered) == ("openai", "up", "m-1")
    assert context.attempts == 1


async def test_an_answer_without_usage_is_estimated() -> None:
    async with upstream(always(answer(b'{"choices":[]}'))) as up, world() as it:
        asked = call({"messages": "x" * 400, "max_tokens": 5})
        await LLMBackend(it.openai(up.url()), "m", SLOW).handle(asked)
        assert asked.context.usage == Usage(len(asked.body) // 4, 4, estimated=True)
        embedded = call({"input": "x" * 400}, dialect=EMBEDDINGS)
        await LLMBackend(it.openai(up.url()), "m", SLOW).handle(embedded)
        assert embedded.context.usage == Usage(len(embedded.body) // 4, 0, estimated=True)


async def test_a_compressed_answer_is_read_and_a_compressed_stream_refused() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        headers = b"content-type: application/json\r\ncontent-encoding: gzip\r\n"
        await peer.send(answer(gzip.compress(ANSWER), headers=headers))
        await peer.request()
        await peer.send(HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n") + chunk(gzip.compress(EVENT)))
        await peer.closed()

    async with upstream(play) as up, world() as it:
        backend = LLMBackend(it.openai(up.url()), "m", SLOW)
        reply = await backend.handle(call())
        assert reply.first == ANSWER
        assert reply.headers == [(b"content-type", b"application/json")]
        with pytest.raises(Failure, match="compressed"):
            await backend.handle(call({"stream": True}))
        await up.until_left(1)


@pytest.mark.parametrize(
    "status, headers, ours, after",
    [
        (429, b"retry-after: 7\r\n", 429, 7.0),
        (429, b"retry-after-ms: 1500\r\nretry-after: 9\r\n", 429, 1.5),
        (429, b"", 429, None),
        (500, b"", 502, None),
        (503, b"retry-after: 3\r\n", 503, 3.0),
        (504, b"", 504, None),
        (529, b"", 503, None),
        (408, b"", 504, None),
        (401, b"", 502, None),
        (402, b"", 502, None),
        (403, b"", 502, None),
        (302, b"location: /elsewhere\r\n", 502, None),
        (201, b"", 502, None),
        (202, b"", 502, None),
    ],
)
async def test_an_answer_that_another_target_may_do_better(
    status: int, headers: bytes, ours: int, after: float | None
) -> None:
    async with upstream(always(answer(b'{"error":{"message":"org-secret"}}', status, headers))) as up, world() as it:
        with pytest.raises(Failure) as caught:
            await LLMBackend(it.openai(up.url(), api_key="sk-ours"), "m", SLOW).handle(call())
    failure = caught.value
    assert (failure.status, failure.retry, failure.retry_after) == (ours, True, after)
    assert "org-secret" not in failure.message
    assert "org-secret" in failure.detail
    assert "sk-ours" not in str(failure) + failure.detail
    assert failure.reason is (Reason.UPSTREAM if status == 429 else Reason.UPSTREAM_FAILURE)


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
async def test_an_answer_about_the_request_is_the_callers(status: int) -> None:
    body = b'{"error": {"message": "too many \\u0065",  "type": "invalid_request_error"}}'
    async with upstream(always(answer(body, status))) as up, world() as it:
        asked = call({"stream": True})
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(asked)
    assert (reply.status, reply.first, reply.source) == (status, body, None)
    assert asked.context.usage is None


async def test_an_answer_that_is_not_of_the_dialect() -> None:
    page = b"<html>nginx</html>"
    async with upstream(always(answer(page, 404, b"content-type: text/html\r\n"))) as up, world() as it:
        with pytest.raises(Failure, match="status 404") as caught:
            await LLMBackend(it.openai(up.url()), "m", SLOW).handle(call())
        assert not caught.value.retry
    async with upstream(always(answer(page, 200, b"content-type: text/html\r\n"))) as up, world() as it:
        with pytest.raises(Failure, match="not JSON") as caught:
            await LLMBackend(it.openai(up.url()), "m", SLOW).handle(call())
        assert caught.value.status == 502


# ---- streams that go wrong
async def test_a_stream_cut_anywhere_gives_the_same() -> None:
    data = stream(EVENT, EVENT + USAGE, DONE)

    async def play(peer: Peer) -> None:
        for size in (1, 2, 3, 7, 50, 1000):
            await peer.request()
            for at in range(0, len(data), size):
                await peer.send(data[at : at + size])
                await asyncio.sleep(0)

    async with upstream(play) as up, world() as it:
        backend = LLMBackend(it.openai(up.url()), "m", SLOW)
        for _ in range(6):
            asked = call({"stream": True})
            assert await taken(await backend.handle(asked)) == (EVENT + EVENT + DONE, None)
            assert asked.context.usage == Usage(3, 4)
        assert up.connections == 1


@pytest.mark.parametrize(
    "tail, complete",
    [
        (chunk(EVENT) + b"0\r\n\r\n", False),  # no [DONE]
        (chunk(b'data: {"choices":[{"delta":{"content":"half'), False),  # within an event
        (chunk(b'data: {"choices":[]}') + b"0\r\n\r\n", False),
        (chunk(b"data: [DONE]") + b"0\r\n\r\n", True),  # without its blank line
        (chunk(b"data: [DONE]\n") + b"0\r\n\r\n", True),
        (chunk(DONE), True),  # then no end of the body
        (chunk(DONE + b": bye\n\n") + b"0\r\n\r\n", True),
    ],
)
async def test_a_stream_without_its_end_was_cut(tail: bytes, complete: bool) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await asyncio.sleep(0.01)
        await peer.send(tail)
        await asyncio.sleep(0.01)
        peer.cut()

    async with upstream(play) as up, world() as it:
        asked = call({"stream": True, "max_tokens": 9})
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(asked)
        out, failure = await taken(reply)
    assert out.endswith(b"\n\n")
    if complete:
        assert failure is None
        assert DONE in out
    else:
        assert failure is not None
        assert (failure.status, failure.reason) == (502, Reason.UPSTREAM_FAILURE)
        events = out.count(b"abcd")
        assert asked.context.usage == Usage(len(asked.body) // 4, events, estimated=True)


async def test_an_error_event_is_passed_on_as_last_words() -> None:
    raw = b'data: {"error": {"message": "boom", "code": 500}}\n\n'

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await asyncio.sleep(0.01)
        await peer.send(chunk(EVENT + raw + DONE) + b"0\r\n\r\n")

    async with upstream(play) as up, world() as it:
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(call({"stream": True}))
        out, failure = await taken(reply)
    assert out == EVENT + EVENT
    assert isinstance(failure, StreamFailure)
    assert CHAT.last_words(failure) == raw
    assert failure.detail == "error: boom"


@pytest.mark.parametrize("wait", [0.0, 0.02])
async def test_an_error_before_the_first_event_may_be_retried(wait: float) -> None:
    raw = b'data: {"error": {"message": "overloaded", "type": "rate_limit_error"}}\n\n'

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(b": hello\n\n"))
        await asyncio.sleep(wait)
        await peer.send(chunk(raw))
        await peer.closed()

    async with upstream(play) as up, world() as it:
        with pytest.raises(StreamFailure) as caught:
            await LLMBackend(it.openai(up.url()), "m", SLOW).handle(call({"stream": True}))
        assert (caught.value.status, caught.value.retry) == (429, True)
        await up.until_left(1)


async def test_comments_are_not_the_first_event() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        for _ in range(3):
            await peer.send(chunk(b": wait\n\n"))
            await asyncio.sleep(0.01)
        await peer.send(chunk(EVENT[:20]))
        await asyncio.sleep(0.01)
        await peer.send(chunk(EVENT[20:]))
        await peer.send(chunk(DONE) + b"0\r\n\r\n")

    async with upstream(play) as up, world() as it:
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(call({"stream": True}))
        assert reply.first.startswith(b": wait\n\n: wait\n\n: wait\n\n" + EVENT)
        assert await taken(reply) == (b": wait\n\n" * 3 + EVENT + DONE, None)


@pytest.mark.parametrize("said", [b"", HEAD, HEAD + chunk(b": wait\n\n"), HEAD + chunk(EVENT[:-1])])
async def test_no_first_event_in_time(said: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(said)
        await peer.closed()

    async with upstream(play) as up, world() as it:
        asked = call({"stream": True})
        with pytest.raises(Failure) as caught:
            await LLMBackend(it.openai(up.url()), "m", FAST).handle(asked)
        assert (caught.value.status, caught.value.reason, caught.value.retry) == (504, Reason.TIMEOUT, True)
        await up.until_left(1)


async def test_pings_do_not_extend_the_time_for_the_first_event() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        while True:
            await peer.send(chunk(b": wait\n\n"))
            await asyncio.sleep(0.02)

    async with upstream(play) as up, world() as it:
        began = monotonic()
        with pytest.raises(Failure, match="no event in time"):
            await LLMBackend(it.openai(up.url()), "m", FAST).handle(call({"stream": True}))
        assert monotonic() - began < 2.0
        await up.until_left(1)


async def test_a_whole_answer_may_take_longer_than_a_first_event() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0.3)
        await peer.send(answer())

    async with upstream(play) as up, world() as it:
        reply = await LLMBackend(it.openai(up.url()), "m", FAST).handle(call())
        assert reply.first == ANSWER


@pytest.mark.parametrize("first_event", [0.15, 5.0])
async def test_a_stream_that_falls_silent(first_event: float) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await peer.closed()

    async with upstream(play) as up, world() as it:
        timeouts = Timeouts(total=5.0, first_event=first_event, idle=0.15)
        reply = await LLMBackend(it.openai(up.url()), "m", timeouts).handle(call({"stream": True}))
        out, failure = await taken(reply)
        assert out == EVENT
        assert failure is not None
        assert (failure.status, failure.reason) == (504, Reason.TIMEOUT)
        await up.until_left(1)


@pytest.mark.parametrize("first_event", [0.15, 5.0])
async def test_a_slow_client_is_not_a_silent_upstream(first_event: float) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await asyncio.sleep(0.05)
        await peer.send(chunk(DONE) + b"0\r\n\r\n")

    async with upstream(play) as up, world() as it:
        timeouts = Timeouts(total=5.0, first_event=first_event, idle=0.15)
        reply = await LLMBackend(it.openai(up.url()), "m", timeouts).handle(call({"stream": True}))
        taker = Taker()
        assert reply.source is not None
        reply.source.start(taker)
        reply.source.pause()
        await asyncio.sleep(0.5)
        reply.source.resume()
        await taker.ended
        assert taker.failure is None


async def test_thinking_after_the_head_is_time_for_the_first_event() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        await asyncio.sleep(0.4)
        await peer.send(chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n")

    async with upstream(play) as up, world() as it:
        timeouts = Timeouts(total=5.0, first_event=5.0, idle=0.15)
        reply = await LLMBackend(it.openai(up.url()), "m", timeouts).handle(call({"stream": True}))
        assert await taken(reply) == (EVENT + DONE, None)


async def test_the_total_time_ends_a_stream() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        while True:
            await peer.send(chunk(EVENT))
            await asyncio.sleep(0.02)

    async with upstream(play) as up, world() as it:
        backend = LLMBackend(it.openai(up.url()), "m", Timeouts(total=0.3))
        out, failure = await taken(await backend.handle(call({"stream": True})))
        assert out
        assert failure is not None
        assert failure.reason is Reason.TIMEOUT


async def test_an_event_has_a_bound() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        while True:
            await peer.send(chunk(b"x" * 100_000))

    async with upstream(play) as up, world() as it:
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(call({"stream": True}))
        out, failure = await taken(reply)
        assert out == EVENT
        assert failure is not None
        assert "one event" in failure.message
        await up.until_left(1)


# ---- the client's side of a stream
async def test_the_client_leaves() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT) + chunk(EVENT))
        await peer.closed()

    async with upstream(play) as up, world() as it:
        asked = call({"stream": True, "max_tokens": 9})
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(asked)
        taker = Taker()
        assert reply.source is not None
        reply.source.start(taker)
        await taker.until(len(EVENT) * 2 - len(reply.first))
        reply.source.close()
        reply.source.close()
        finish(reply.ends, Ending(499, Reason.CLIENT_GONE, gone=True))
        assert asked.context.usage == Usage(len(asked.body) // 4, 2, estimated=True)
        assert asked.context.upstream_ended > 0
        await up.until_left(1)
        assert not taker.ended.done()


async def test_a_reply_that_nobody_takes() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await peer.closed()

    async with upstream(play) as up, world() as it:
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(call({"stream": True}))
        reply.close(Ending(403, Reason.GUARDRAIL))
        await up.until_left(1)


async def test_a_caller_that_gives_up_while_waiting() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(b": wait\n\n"))
        await peer.closed()

    async with upstream(play) as up, world() as it:
        backend = LLMBackend(it.openai(up.url()), "m", SLOW)
        task = asyncio.create_task(backend.handle(call({"stream": True})))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await up.until_left(1)


async def test_a_caller_that_gives_up_on_a_kept_connection() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer())
        await peer.request()
        asked.set()
        await peer.closed()

    asked = asyncio.Event()
    async with upstream(play) as up, world() as it:
        backend = LLMBackend(it.openai(up.url()), "m", SLOW)
        await backend.handle(call())
        assert backend.provider.faces["chat"].pool.idle == 1
        task = asyncio.create_task(backend.handle(call()))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend.provider.faces["chat"].pool.open == 0
        await up.until_left(1)


async def test_a_kept_connection_that_has_died_is_replaced() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer())
        await peer.request()

    async with upstream(play) as up, world() as it:
        backend = LLMBackend(it.openai(up.url()), "m", SLOW)
        for _ in range(3):
            assert (await backend.handle(call())).first == ANSWER
        assert up.connections == 3


async def test_an_answer_that_is_cut_on_a_kept_connection() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer())
        await peer.request()
        await peer.send(answer()[:-1])

    async with upstream(play) as up, world() as it:
        backend = LLMBackend(it.openai(up.url()), "m", SLOW)
        await backend.handle(call())
        with pytest.raises(Failure) as raised:
            await backend.handle(call())
        assert (raised.value.status, raised.value.retry, raised.value.sent) == (502, True, True)


async def test_the_estimate_is_made_when_it_is_asked_for() -> None:
    it = call({"max_tokens": 7, "messages": []})
    assert it.estimate == CHAT.estimate(it.body, it.fields) == len(it.body) // 4 + 7
    it.fields.clear()
    assert it.estimate == len(it.body) // 4 + 7  # once


async def test_back_pressure_reaches_the_upstream() -> None:
    sent = 0

    async def play(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        for _ in range(400):
            await peer.send(chunk(b": " + b"x" * 100_000 + b"\n\n"))
            sent += 1
        await peer.send(chunk(DONE) + b"0\r\n\r\n")

    async with upstream(play) as up, world() as it:
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(call({"stream": True}))
        taker = Taker()
        assert reply.source is not None
        reply.source.start(taker)
        reply.source.pause()
        stood = -1
        while stood != sent:
            stood = sent
            await asyncio.sleep(0.1)
        assert stood < 300
        reply.source.resume()
        await taker.ended
        assert taker.failure is None
        assert sum(map(len, taker.parts)) + len(reply.first) == len(EVENT) + 400 * 100_004 + len(DONE)


async def test_taps_see_what_comes_after_the_first() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await asyncio.sleep(0.01)
        await peer.send(chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n")

    async with upstream(play) as up, world() as it:
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(call({"stream": True}))
        assert reply.taps is not None
        reply.taps.append(lambda block: block.replace(b"abcd", b"****"))
        out, failure = await taken(reply)
        assert out == EVENT + EVENT.replace(b"abcd", b"****") + DONE
        assert failure is None


async def test_a_tap_ends_a_stream() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(EVENT))
        await asyncio.sleep(0.01)
        await peer.send(chunk(EVENT))
        await peer.closed()

    def guard(block: bytes) -> bytes:
        raise Failure(403, Reason.GUARDRAIL, "no")

    async with upstream(play) as up, world() as it:
        reply = await LLMBackend(it.openai(up.url()), "m", SLOW).handle(call({"stream": True}))
        assert reply.taps is not None
        reply.taps.append(guard)
        out, failure = await taken(reply)
        assert out == EVENT
        assert failure is not None
        assert failure.reason is Reason.GUARDRAIL
        await up.until_left(1)


async def test_nothing_waits_for_the_collector() -> None:
    cut = HEAD + chunk(EVENT)
    told = b'data: {"error": {"message": "boom"}}\n\n'
    plays = [answer(), stream(EVENT, DONE), answer(b"{}", 500), cut, HEAD + chunk(told), stream(EVENT + told)]

    async def play(peer: Peer) -> None:
        for data in plays[peer.number % len(plays) :]:
            await peer.request()
            await peer.send(data)
            if data is cut:
                break

    async with upstream(play) as up, world() as it:
        backend = LLMBackend(it.openai(up.url()), "m", SLOW)

        async def once(streamed: bool) -> None:
            try:
                await taken(await backend.handle(call({"stream": streamed})))
            except Failure:
                pass

        for _ in range(4):
            await once(True)
        await asyncio.sleep(0.05)
        with collected() as found:
            for _ in range(30):
                await once(True)
            await asyncio.sleep(0.05)
    assert not [
        it for it in found if type(it).__module__.startswith("tollhouse.")
    ]  # what the test's own upstream leaves is not counted


# ---- Specs
@pytest.mark.parametrize(
    "fields, says",
    [
        ({"kind": "openai"}, "api_key is missing"),
        ({"kind": "anthropic"}, "api_key is missing"),
        ({"kind": "anthropic", "base_url": "http://h/v1"}, "leave /v1 out"),
        ({"kind": "openai", "base_url": "h:80"}, "not a URL"),
        ({"kind": "openai", "base_url": "http://h/v1?x=1"}, "no query"),
        ({"kind": "openai", "api_key": "a b"}, "not an API key"),
        ({"kind": "openai", "api_key": " "}, "not an API key"),
        ({"kind": "openai", "api_key": "k", "headers": {"host": "x"}}, "gateway's own"),
        ({"kind": "openai", "api_key": "k", "headers": {"a b": "x"}}, "not a header name"),
        ({"kind": "openai", "api_key": "k", "headers": {"a": "x\r\ny: z"}}, "characters that a header cannot have"),
        ({"kind": "openai", "api_key": "k", "headers": {"a": "x", "A": "y"}}, "named twice"),
        ({"kind": "openai", "api_key": "k", "tls": {"key": "k.pem"}}, "without `cert`"),
        ({"kind": "openai", "api_key": "k", "nonsense": 1}, "Extra inputs"),
        ({"kind": "llama"}, "kind"),
    ],
)
def test_bad_specs_say_what_would_be_right(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        TypeAdapter(ProviderSpec).validate_python(fields)


def test_secrets_are_not_shown() -> None:
    spec = TypeAdapter(ProviderSpec).validate_python({"kind": "openai", "api_key": "sk-1", "headers": {"x": "hush"}})
    assert "sk-1" not in repr(spec)
    assert "hush" not in repr(spec)


def test_a_fingerprint_changes_with_a_secret_and_shows_none() -> None:
    def digest(**fields: Any) -> str:
        return str(TypeAdapter(ProviderSpec).validate_python({"kind": "openai", **fields}).fingerprint())

    one = digest(api_key="k1", headers={"x": "a", "y": "b"})
    assert one == digest(api_key="k1\n", headers={"x": "a", "y": "b"})
    others = {digest(api_key="k2"), digest(api_key="k1"), digest(api_key="k1", headers={"x": "c", "y": "b"}), one}
    assert len(others) == 4
    assert "k1" not in one


@pytest.mark.parametrize(
    "value, seconds",
    [(b"5", 5.0), (b"0", 0.0), (b"-3", 0.0), (b"nan", None), (b"soon", None), (b"1e9", 86_400.0), (b"", None)],
)
def test_retry_after(value: bytes, seconds: float | None) -> None:
    assert retry_after(Headers([(b"retry-after", value)])) == seconds


def test_retry_after_as_a_date() -> None:
    assert retry_after(Headers([(b"retry-after", b"Wed, 21 Oct 2015 07:28:00 GMT")])) == 0.0
    assert retry_after(Headers([(b"retry-after", b"Wed, 21 Oct 2099 07:28:00 GMT")])) == 86_400.0
