"""The Gemini API as a provider, and as what callers speak, over real sockets."""

from typing import Any

import msgspec
import pytest
from pydantic import TypeAdapter, ValidationError
from tests.unit.backends.calls import always, answer, call, stream, taken, world
from tests.unit.backends.providers.scripted import SLOW, named_by_path
from tests.unit.net.upstreams import upstream

from tollhouse.backends.llm import LLMBackend
from tollhouse.backends.providers import ProviderSpec
from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import CHAT, GEMINI, GENERATE, MESSAGES
from tollhouse.wire.llm.dialect import Dialect

pytestmark = pytest.mark.anyio

_, BATCH, EMBED, COUNT = GEMINI

ANSWER = (
    b'{"candidates":[{"content":{"role":"model","parts":[{"text":"Paris."}]},"finishReason":"STOP","index":0}],'
    b'"usageMetadata":{"promptTokenCount":10,"cachedContentTokenCount":4,"candidatesTokenCount":2,'
    b'"thoughtsTokenCount":3,"totalTokenCount":15},"modelVersion":"gemini-2.5-flash","responseId":"r1"}'
)
EVENTS = (
    (
        b'data: {"candidates":[{"content":{"parts":[{"text":"Hm.","thought":true}]}}],'
        b'"modelVersion":"m","responseId":"r"}\r\n\r\n'
    ),
    b'data: {"candidates":[{"content":{"role":"model","parts":[{"text":"Pa"}]},"index":0}],"responseId":"r1"}\r\n\r\n',
    (
        b'data: {"candidates":[{"content":{"role":"model","parts":[{"text":"ris"}]},"finishReason":"STOP","index":0}],'
        b'"usageMetadata":{"promptTokenCount":10,"candidatesTokenCount":2,"thoughtsTokenCount":3},"responseId":"r1"}\r\n'
        b"\r\n"
    ),
)
ASKED: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "capital of France?"}]}]}


def configured(url: str) -> dict[str, Any]:
    return {"kind": "gemini", "base_url": url.rstrip("/") + "/v1beta", "api_key": "k"}


async def test_passed_through() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(ANSWER), seen)) as up, world() as it:
        asked = named_by_path(GENERATE, ASKED, "smart")
        reply = await LLMBackend(it.provider("g", **configured(up.url())), "gemini-2.5-flash", SLOW).handle(asked)
        assert reply.first == ANSWER
        assert asked.context.usage == Usage(6, 5, 4, 0, 3)
        assert asked.context.model_answered == "gemini-2.5-flash"
    head, body = seen[0]
    assert head.startswith(b"POST /v1beta/models/gemini-2.5-flash:generateContent HTTP/1.1\r\n")
    assert b"x-goog-api-key: k\r\n" in head
    assert msgspec.json.decode(body) == ASKED


async def test_a_stream_passed_through() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(stream(*EVENTS), seen)) as up, world() as it:
        asked = named_by_path(GENERATE, ASKED, "smart", stream=True)
        made = it.provider("g", **configured(up.url()))
        told, failure = await taken(await LLMBackend(made, "gemini-2.5-flash", SLOW).handle(asked))
        assert (told, failure) == (b"".join(EVENTS), None)
        assert asked.context.usage == Usage(10, 5, reasoning=3)
    assert seen[0][0].startswith(b"POST /v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse HTTP/1.1\r\n")


async def test_a_stream_that_is_cut() -> None:
    async with upstream(always(stream(*EVENTS[:2]))) as up, world() as it:
        made = it.provider("g", **configured(up.url()))
        _, failure = await taken(
            await LLMBackend(made, "m", SLOW).handle(named_by_path(GENERATE, ASKED, "smart", stream=True))
        )
        assert failure is not None
        assert failure.status == 502


async def test_a_caller_of_another_api() -> None:
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(ANSWER), seen)) as up, world() as it:
        made = it.provider("g", **configured(up.url()))
        asked = call({"messages": [{"role": "user", "content": "capital of France?"}], "max_tokens": 9}, dialect=CHAT)
        reply = await LLMBackend(made, "gemini-2.5-flash", SLOW).handle(asked)
        told = msgspec.json.decode(reply.first)
        assert told["choices"][0]["message"]["content"] == "Paris."
        assert told["usage"]["prompt_tokens"] == 10
        assert asked.context.usage == Usage(6, 5, 4, 0, 3)
    assert seen[0][0].startswith(b"POST /v1beta/models/gemini-2.5-flash:generateContent HTTP/1.1\r\n")
    assert msgspec.json.decode(seen[0][1]) == {**ASKED, "generationConfig": {"maxOutputTokens": 9}}


async def test_a_stream_for_a_caller_of_another_api() -> None:
    async with upstream(always(stream(*EVENTS))) as up, world() as it:
        made = it.provider("g", **configured(up.url()))
        asked = call(
            {"messages": [{"role": "user", "content": "?"}], "max_tokens": 9, "stream": True}, dialect=MESSAGES
        )
        told, failure = await taken(await LLMBackend(made, "gemini-2.5-flash", SLOW).handle(asked))
        assert failure is None
        assert b'"thinking_delta","thinking":"Hm."' in told.replace(b" ", b"")
        assert b'"text":"ris"' in told.replace(b" ", b"")
        assert b"message_stop" in told
        assert asked.context.usage == Usage(10, 5, reasoning=3)


async def test_a_caller_of_this_api_at_another_provider() -> None:
    body = (
        b'{"id":"c1","object":"chat.completion","created":1,"model":"gpt","choices":[{"index":0,"message":{"role":'
        b'"assistant","content":"Paris."},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2}}'
    )
    seen: list[tuple[bytes, bytes]] = []
    async with upstream(always(answer(body), seen)) as up, world() as it:
        reply = await LLMBackend(it.openai(up.url()), "gpt", SLOW).handle(
            named_by_path(GENERATE, {**ASKED, "systemInstruction": {"parts": [{"text": "Be brief."}]}}, "smart")
        )
        told = msgspec.json.decode(reply.first)
        assert told["candidates"][0]["content"] == {"role": "model", "parts": [{"text": "Paris."}]}
        assert told["usageMetadata"]["totalTokenCount"] == 9
    assert msgspec.json.decode(seen[0][1])["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "capital of France?"},
    ]


async def test_embeddings_and_counts() -> None:
    content = {"parts": [{"text": "a"}]}
    bodies: tuple[tuple[Dialect, dict[str, Any], bytes, bytes, dict[str, Any]], ...] = (
        (EMBED, {"content": content}, b"embedContent", b'{"embedding":{"values":[0.1]}}', {"model": "models/real"}),
        (
            BATCH,
            {"requests": [{"model": "models/smart", "content": content}]},
            b"batchEmbedContents",
            b'{"embeddings":[{"values":[0.1]}]}',
            {"requests": [{"model": "models/real", "content": content}]},
        ),
        (COUNT, ASKED, b"countTokens", b'{"totalTokens":5}', {}),
    )
    for dialect, body, method, told, changed in bodies:
        seen: list[tuple[bytes, bytes]] = []
        async with upstream(always(answer(told), seen)) as up, world() as it:
            asked = named_by_path(dialect, body, "smart")
            reply = await LLMBackend(it.provider("g", **configured(up.url())), "real", SLOW).handle(asked)
            assert reply.first == told
            assert asked.context.usage is not None
            assert asked.context.usage.output == 0
        assert seen[0][0].startswith(b"POST /v1beta/models/real:%b HTTP/1.1\r\n" % method)
        assert msgspec.json.decode(seen[0][1]) == {**body, **changed}


async def test_refusals() -> None:
    refused = b'{"error":{"code":400,"message":"contents is not specified","status":"INVALID_ARGUMENT"}}'
    async with upstream(always(answer(refused, 400))) as up, world() as it:
        made = it.provider("g", **configured(up.url()))
        own = await LLMBackend(made, "m", SLOW).handle(named_by_path(GENERATE, ASKED, "smart"))
        assert (own.status, own.first) == (400, refused)
        reply = await LLMBackend(made, "m", SLOW).handle(call({"messages": [{"role": "user", "content": "?"}]}))
        assert msgspec.json.decode(reply.first)["error"]["message"] == "contents is not specified"
    too_long = (
        b'{"error":{"code":400,"message":"The input token count (9) exceeds the maximum number of tokens allowed '
        b'(5).","status":"INVALID_ARGUMENT"}}'
    )
    async with upstream(always(answer(too_long, 400))) as up, world() as it:
        with pytest.raises(Failure) as caught:
            await LLMBackend(it.provider("g", **configured(up.url())), "m", SLOW).handle(
                named_by_path(GENERATE, ASKED, "smart")
            )
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, "api_key is missing"),
        ({"api_key": "k", "headers": {"X-Goog-Api-Key": "k"}}, "both the credential"),
        ({"base_url": "http://127.0.0.1:1/v1beta/models", "api_key": "k"}, "leave /models out"),
        ({"base_url": "http://127.0.0.1:1/v1beta?x=1"}, "has no query"),
    ],
)
def test_what_cannot_be(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TypeAdapter(ProviderSpec).validate_python({"kind": "gemini", **fields})
