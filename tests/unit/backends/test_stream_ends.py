"""What ends a stream in each API, and what the lack of its last event means. Over real sockets, in the API of the
provider and translated.

A stream that the upstream ends in good order is whole as soon as the answer has said why it stopped, in every choice;
what is missing then is the end mark, which is written for the caller, and perhaps the usage, which is estimated.
"""

from typing import Any

import msgspec
import pytest
from tests.unit.backends.calls import always, call, stream, taken, world
from tests.unit.backends.providers.scripted import (
    CHAT_STREAM,
    CONVERSE_STREAM,
    EVENT_STREAM,
    HELLO,
    MESSAGE_STREAM,
    SLOW,
    named_by_path,
    sse,
    streamed,
)
from tests.unit.net.upstreams import upstream

from tollhouse.backends.llm import LLMBackend
from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import CHAT, CODECS, CONVERSE, GENERATE, MESSAGES, RESPONSES
from tollhouse.wire.llm.dialect import Dialect

pytestmark = pytest.mark.anyio

RESPONSE = {"id": "r1", "object": "response", "created_at": 1, "model": "m-1", "output": []}
RESPONSE_STREAM = (
    sse({"type": "response.created", "response": {**RESPONSE, "status": "in_progress"}}, "response.created"),
    sse({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "Hi."},
        "response.output_text.delta"),
    sse({"type": "response.output_text.done", "output_index": 0, "content_index": 0, "text": "Hi."},
        "response.output_text.done"),
    sse({"type": "response.completed",
         "response": {**RESPONSE, "status": "completed", "usage": {"input_tokens": 7, "output_tokens": 2}}},
        "response.completed"),
)  # fmt: skip
GENERATE_STREAM = (
    sse({"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": "H"}]}}], "modelVersion": "m-1"}),
    sse({"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": "i."}]}, "finishReason": "STOP"}],
         "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 2}, "modelVersion": "m-1"}),
)  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], Dialect]] = {
    "chat": ({"kind": "openai"}, CHAT),
    "responses": ({"kind": "openai", "responses": True}, RESPONSES),
    "messages": ({"kind": "anthropic", "api_key": "k"}, MESSAGES),
    "generate": ({"kind": "gemini", "api_key": "k"}, GENERATE),
    "converse": ({"kind": "bedrock", "api_key": "k", "region": "eu-central-1"}, CONVERSE),
}
STREAMS = {
    "chat": CHAT_STREAM,
    "responses": RESPONSE_STREAM,
    "messages": MESSAGE_STREAM,
    "generate": GENERATE_STREAM,
    "converse": CONVERSE_STREAM,
}
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"messages": HELLO},
    "responses": {"input": "hello"},
    "messages": {"messages": HELLO, "max_tokens": 9},
    "generate": {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    "converse": {"messages": [{"role": "user", "content": [{"text": "hello"}]}]},
}


async def told(api: str, asker: str, *events: bytes) -> tuple[bytes, Failure | None, Usage]:
    """What a caller of `asker` gets of a provider of `api` that sends these events, and then its end."""
    provider, _ = KINDS[api]
    dialect = KINDS[asker][1]
    if dialect in (GENERATE, CONVERSE):
        asked = named_by_path(dialect, BODIES[asker], "m-1", stream=True)
    else:
        asked = call({**BODIES[asker], "stream": True}, dialect=dialect)
    kind = EVENT_STREAM if api == "converse" else b"text/event-stream"
    async with upstream(always(streamed(*events, kind=kind))) as up, world() as it:
        made = it.provider("p", base_url=up.url("").rstrip("/"), **provider)
        if api == "chat":
            made.take([made.faces["chat"]])
        elif api == "responses" and asker != "responses":
            made.take([made.faces["responses"]])
        out, failure = await taken(await LLMBackend(made, "m-1", SLOW).handle(asked))
    assert asked.context.usage is not None
    return out, failure, asked.context.usage


def whole(out: bytes, asker: str) -> str:
    """The text of an answer that its client takes for whole."""
    dialect = KINDS[asker][1]
    decoder = CODECS[dialect.operation].decoder()
    events = [event for name, data in dialect.events(out) for event in decoder.read(name, data)]
    texts = [getattr(event, "text", "") or getattr(getattr(event, "value", None), "text", "") for event in events]
    assert decoder.finished or (asker == "converse" and decoder.stopped)
    return "".join(texts)


ENOUGH = {"chat": 2, "messages": 5, "generate": 2, "converse": 4}
"""Events with which nothing of the answer is missing."""


@pytest.mark.parametrize("asker", list(KINDS))
@pytest.mark.parametrize("api", list(KINDS))
async def test_a_whole_stream(api: str, asker: str) -> None:
    out, failure, usage = await told(api, asker, *STREAMS[api])
    assert failure is None
    assert whole(out, asker) == "Hi."
    assert usage == Usage(7, 2)


@pytest.mark.parametrize("asker", list(KINDS))
@pytest.mark.parametrize("api", list(ENOUGH))
async def test_an_answer_that_has_said_why_it_stopped_is_whole(api: str, asker: str) -> None:
    out, failure, usage = await told(api, asker, *STREAMS[api][: ENOUGH[api]])
    assert failure is None
    assert whole(out, asker) == "Hi."
    if api in ("messages", "generate"):  # there the usage comes with the reason
        assert usage == Usage(7, 2)
    else:
        assert usage.estimated
        assert usage.input > 0
        assert usage.output == 1


@pytest.mark.parametrize("asker", list(KINDS))
@pytest.mark.parametrize("api", list(KINDS))
async def test_without_a_reason_it_was_cut(api: str, asker: str) -> None:
    enough = ENOUGH.get(api, 4)
    out, failure, usage = await told(api, asker, *STREAMS[api][: enough - 1])
    assert failure is not None
    assert failure.status == 502
    assert usage.estimated
    for end in (b"[DONE]", b"message_stop", b"messageStop", b"response.completed", b'"finishReason"'):
        assert end not in out


async def test_the_end_mark_is_written_in_the_providers_place() -> None:
    out, failure, _ = await told("chat", "chat", *CHAT_STREAM[:2])
    assert (out, failure) == (b"".join(CHAT_STREAM[:2]) + b"data: [DONE]\n\n", None)
    out, failure, _ = await told("messages", "messages", *MESSAGE_STREAM[:5])
    assert (out, failure) == (b"".join(MESSAGE_STREAM), None)


async def test_every_choice_must_have_stopped() -> None:
    def part(index: int, reason: str | None) -> bytes:
        choice = {"index": index, "delta": {"content": "a"}, "finish_reason": reason}
        return sse({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})

    for asker in ("chat", "messages"):
        _, failure, _ = await told("chat", asker, part(0, None), part(1, None), part(1, "stop"))
        assert failure is not None
    _, failure, _ = await told("chat", "chat", part(0, None), part(1, None), part(1, "stop"), part(0, "length"))
    assert failure is None


@pytest.mark.parametrize("asker", ["chat", "messages"])
async def test_an_empty_reason_is_none(asker: str) -> None:
    def part(text: str, reason: str) -> bytes:
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        return sse({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})

    out, failure, _ = await told("chat", asker, part("H", ""), part("i.", ""), part("", "stop"), sse(b"[DONE]"))
    assert failure is None
    assert whole(out, asker) == "Hi."
    _, failure, _ = await told("chat", asker, part("H", ""), part("i.", ""))
    assert failure is not None


async def test_the_last_events_blank_line_may_be_missing() -> None:
    out, failure, _ = await told("chat", "chat", CHAT_STREAM[0], CHAT_STREAM[1].rstrip())
    assert failure is None
    assert whole(out, "chat") == "Hi."
    out, failure, _ = await told("messages", "chat", *MESSAGE_STREAM[:4], MESSAGE_STREAM[4].rstrip())
    assert failure is None
    assert whole(out, "chat") == "Hi."


async def test_half_an_event_after_the_reason_is_not_passed_on() -> None:
    out, failure, usage = await told("chat", "chat", *CHAT_STREAM[:2], b'data: {"id":"c1","usage":{"prompt_to')
    assert (out, failure) == (b"".join(CHAT_STREAM[:2]) + b"data: [DONE]\n\n", None)
    assert usage.estimated
    out, failure, _ = await told("chat", "messages", *CHAT_STREAM[:2], b'data: {"id":"c1","usage":{"prompt_to')
    assert failure is None


@pytest.mark.parametrize("asker", ["chat", "messages"])
async def test_a_connection_that_breaks_is_no_end(asker: str) -> None:
    dialect = KINDS[asker][1]
    broken = stream(*CHAT_STREAM[:2]).removesuffix(b"0\r\n\r\n")

    async def play(peer: Any) -> None:
        await peer.request()
        await peer.send(broken)
        peer.writer.write_eof()

    async with upstream(play) as up, world() as it:
        asked = call({**BODIES[asker], "stream": True}, dialect=dialect)
        _, failure = await taken(await LLMBackend(it.openai(up.url()), "m-1", SLOW).handle(asked))
    assert failure is not None
    assert failure.status == 502


async def test_an_error_after_the_reason_is_an_error() -> None:
    error = sse({"error": {"message": "boom", "code": 500}})
    for asker in ("chat", "messages"):
        with pytest.raises(Failure, match="the provider failed"):
            await told("chat", asker, *CHAT_STREAM[:2], error)


def test_the_streams_are_what_the_apis_say() -> None:
    assert msgspec.json.decode(CHAT_STREAM[1][6:])["choices"][0]["finish_reason"] == "stop"
    assert b"message_delta" in MESSAGE_STREAM[4]
    assert b"messageStop" in CONVERSE_STREAM[3]
