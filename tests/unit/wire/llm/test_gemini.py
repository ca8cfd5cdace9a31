"""Gemini passed through: paths, requests, answers, streams whole and cut anywhere, errors."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.llm.gemini import GeminiBatchEmbed, GeminiCount, GeminiEmbed, GeminiGenerate, GenerateReader
from tollhouse.wire.llm.system import System

Raw = msgspec.Raw

GENERATE = GeminiGenerate()
EMBED, BATCH, COUNT = GeminiEmbed(), GeminiBatchEmbed(), GeminiCount()


def event(*parts: dict[str, Any], usage: dict[str, int] | None = None, **more: Any) -> bytes:
    body: dict[str, Any] = {"candidates": [{"content": {"parts": list(parts), "role": "model"}, **more}]}
    if usage is not None:
        body["usageMetadata"] = usage
    return b"data: %b\r\n\r\n" % msgspec.json.encode({**body, "modelVersion": "gemini-x", "responseId": "r"})


STREAM = b"".join(
    (
        event({"text": "Hm", "thought": True}, usage={"promptTokenCount": 5}),
        event({"text": "H\u00e9 \n"}),
        event({"text": "ho"}, {"functionCall": {"name": "f", "args": {"a": 1}}}),
        event({"text": "."}, finishReason="STOP", usage={"promptTokenCount": 5, "candidatesTokenCount": 2}),
    )
)
SAID = len("HmH\u00e9 \nho.".encode()) + len(b'{"name":"f","args":{"a":1}}')


def read(data: bytes, at: list[int]) -> tuple[bytes, GenerateReader]:
    framer, reader = GENERATE.framer(), GENERATE.reader(strip=False)
    out = b""
    for a, b in pairwise(sorted({p % (len(data) + 1) for p in at} | {0, len(data)})):
        block = framer.feed(data[a:b])
        if block and reader.failure is None:
            out += reader.read(block)
    return out + framer.rest(), reader


@given(st.lists(st.integers(0, 1 << 16), max_size=20))
def test_a_stream_passes_byte_for_byte(at: list[int]) -> None:
    for stream in (STREAM, STREAM.replace(b"\r\n", b"\n")):
        out, reader = read(stream, at)
        assert out == stream
        assert reader.usage == Usage(5, 2)
        assert (reader.began, reader.finished, reader.counted, reader.model) == (True, True, True, "gemini-x")
        assert reader.text == SAID


def test_pieces_that_are_alike() -> None:
    reader = GENERATE.reader(strip=False)
    for text in ("one", "two \u00e9", 'th"ree'):
        block = event({"text": text}).replace(b"\r\n", b"\n")
        assert reader.read(block) == block
    assert reader.text == len('onetwo \u00e9th"ree'.encode())
    assert (reader.finished, reader.counted) == (False, False)


def test_a_stream_is_whole_when_all_candidates_have_ended() -> None:
    reader = GENERATE.reader(strip=False)
    reader.read(b'data: {"candidates":[{"index":0},{"index":1,"finishReason":"STOP"}]}\n\n')
    assert not reader.finished
    reader.read(b'data: {"candidates":[{"index":0,"finishReason":"MAX_TOKENS"}]}\n\n')
    assert (reader.finished, reader.counted) == (True, False)
    reader.read(b'data: {"usageMetadata":{"promptTokenCount":1}}\n\n')
    assert (reader.counted, reader.usage) == (True, Usage(1))


def test_a_prompt_that_was_blocked() -> None:
    reader = GENERATE.reader(strip=False)
    reader.read(b'data: {"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":1}}\n\n')
    assert (reader.finished, reader.counted, reader.usage) == (True, True, Usage(1))


def test_an_error_in_a_stream_ends_it() -> None:
    error = b'data: {"error":{"code":503,"message":"busy","status":"UNAVAILABLE"}}\n\n'
    first = event({"text": "a"})
    reader = GENERATE.reader(strip=False)
    assert reader.read(first + error + first) == first
    assert isinstance(reader.failure, StreamFailure)
    assert (reader.failure.status, reader.failure.words) == (503, error)
    assert reader.failure.detail == "UNAVAILABLE: busy"
    assert GENERATE.last_words(reader.failure) == error


def test_what_is_not_understood_passes() -> None:
    reader = GENERATE.reader(strip=False)
    for block in (b": comment\n\n", b"data: [1]\n\n", b'data: {"candidates":5}\n\n'):
        assert reader.read(block) == block
    assert (reader.began, reader.finished, reader.failure) == (True, False, None)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (b"/v1beta/models/gemini-2.5-flash:generateContent", ("gemini-2.5-flash", False)),
        (b"/v1/models/gemini-2.5-flash:streamGenerateContent", ("gemini-2.5-flash", True)),
        (b"/v1alpha/models/claude%2Fopus:generateContent", ("claude/opus", False)),
        (b"/v1beta/models/claude/opus:generateContent", ("claude/opus", False)),
        (b"/v1beta/models/qwen3:8b:generateContent", ("qwen3:8b", False)),
        (b"/v1beta/models/qwen3%3A8b:generateContent", ("qwen3:8b", False)),
        (b"/v1beta/models/m:countTokens", None),
        (b"/v1beta/models/:generateContent", None),
        (b"/v1beta/models/m", None),
        (b"/v1beta/models/m:generateContent/x", None),
        (b"/v2/models/m:generateContent", None),
        (b"/v1beta/models/%ff:generateContent", None),
        (b"/v1beta/models/\xff:generateContent", None),
    ],
)
def test_paths(path: bytes, place: tuple[str, bool] | None) -> None:
    assert GENERATE.read_target(path) == place


def test_paths_of_what_is_not_streamed() -> None:
    assert EMBED.read_target(b"/v1beta/models/e:embedContent") == ("e", False)
    assert BATCH.read_target(b"/v1beta/models/e:batchEmbedContents") == ("e", False)
    assert COUNT.read_target(b"/v1beta/models/m:countTokens") == ("m", False)
    for dialect in (EMBED, BATCH, COUNT):
        assert dialect.read_target(b"/v1beta/models/m:generateContent") is None
        assert dialect.read_target(b"/v1beta/models/m:") is None


@pytest.mark.parametrize(
    ("model", "stream", "path"),
    [
        ("gemini-2.5-flash", False, b"/models/gemini-2.5-flash:generateContent"),
        ("gemini-2.5-flash", True, b"/models/gemini-2.5-flash:streamGenerateContent?alt=sse"),
        ("models/m", False, b"/models/m:generateContent"),
        ("tunedModels/m", False, b"/tunedModels/m:generateContent"),
        ("a b?\u00e9\r\n", False, b"/models/a%20b%3F%C3%A9%0D%0A:generateContent"),
    ],
)
def test_targets(model: str, stream: bool, path: bytes) -> None:
    assert GENERATE.target(model, stream=stream) == path


def test_a_stream_is_answered_as_events_only() -> None:
    path = b"/v1beta/models/m:streamGenerateContent"
    for query in (b"?alt=sse", b"?key=a&$alt=sse", b"?alt=json&alt=sse"):
        GENERATE.refuse(Request(b"POST", path + query, Headers()))
    GENERATE.refuse(Request(b"POST", b"/v1beta/models/m:generateContent", Headers()))
    for query in (b"", b"?alt=json", b"?alt=sse&alt=json"):
        with pytest.raises(Failure, match="alt=sse") as caught:
            GENERATE.refuse(Request(b"POST", path + query, Headers()))
        assert caught.value.status == 400


def test_a_request() -> None:
    body = b'{"contents":[{"parts":[{"text":"Hi"}]}],"generationConfig":{"maxOutputTokens":50,"candidateCount":2}}'
    asked = GENERATE.decode(body, model="m", stream=True)
    assert (asked.model, asked.stream) == ("m", True)
    assert GENERATE.encode(asked.fields, body) == body
    assert GENERATE.output_bound(asked.fields) == 100
    for raw, bound in ((b'{"max_output_tokens":7}', 7), (b'{"maxOutputTokens":"x"}', 1024), (b"{}", 1024)):
        assert GENERATE.output_bound({"generation_config": Raw(raw)}) == bound


@pytest.mark.parametrize(
    "body",
    [
        b'{"contents":[],"Contents":[]}',
        b'{"systemInstruction":{},"system_instruction":{}}',
        b'{"SYSTEM_INSTRUCTION":{}}',
        b'{"cachedContent":"a","cached_content":"b"}',
        b"[]",
        b"{",
    ],
)
def test_requests_that_are_refused(body: bytes) -> None:
    with pytest.raises(Failure) as caught:
        GENERATE.decode(body, model="m", stream=False)
    assert caught.value.status == 400


def test_a_system_text() -> None:
    fields = {"contents": Raw(b"[]")}
    GENERATE.with_system(fields, System("Be brief."))
    assert bytes(fields["systemInstruction"]) == b'{"parts":[{"text":"Be brief."}]}'
    fields = {"system_instruction": Raw(b'{"parts":[{"text":"Own."}]}')}
    GENERATE.with_system(fields, System("Be brief."))
    assert list(fields) == ["system_instruction"]
    assert bytes(fields["system_instruction"]) == b'{"parts":[{"text":"Be brief."},{"text":"Own."}]}'


def test_an_answer() -> None:
    body = (
        b'{"candidates":[],"modelVersion":"gemini-x","usageMetadata":{"promptTokenCount":9,"cachedContentTokenCount":4,'
        b'"candidatesTokenCount":2,"thoughtsTokenCount":3}}'
    )
    assert GENERATE.answer(body) == (Usage(5, 5, 4, 0, 3), "gemini-x")
    for broken in (b"", b"[]", b'{"usageMetadata":{"promptTokenCount":"x"}}', b'{"modelVersion":5}'):
        assert GENERATE.answer(broken) == (None, "")


def sent(dialect: GeminiEmbed | GeminiBatchEmbed | GeminiCount, body: dict[str, Any]) -> Any:
    """As the backend makes it: with the provider's name for the model."""
    raw = msgspec.json.encode(body)
    fields = dialect.decode(raw, model="smart", stream=False).fields
    return msgspec.json.decode(dialect.encode({**fields, "model": Raw(b'"real"')}, raw))


def test_a_body_names_the_model_as_the_path_does() -> None:
    content = {"parts": [{"text": "a"}]}
    assert sent(EMBED, {"model": "models/smart", "content": content}) == {"model": "models/real", "content": content}
    assert sent(BATCH, {"requests": [{"model": "models/smart", "content": content}]}) == {
        "requests": [{"model": "models/real", "content": content}]
    }
    assert sent(BATCH, {"requests": 5}) == {"requests": 5}
    assert sent(COUNT, {"contents": [content]}) == {"contents": [content]}
    asked = {"model": "models/smart", "contents": [content]}
    assert sent(COUNT, {"generateContentRequest": asked}) == {
        "generateContentRequest": {"model": "models/real", "contents": [content]}
    }
    assert sent(COUNT, {"generate_content_request": 5}) == {"generate_content_request": 5}


def test_what_counts_and_embeds_uses_no_output() -> None:
    assert COUNT.answer(b'{"totalTokens":9}') == (Usage(), "")
    assert COUNT.estimate(b"x" * 4000, {}) == 0
    assert EMBED.answer(b'{"embedding":{"values":[1]},"usageMetadata":{"promptTokenCount":9}}') == (Usage(9), "")
    assert EMBED.answer(b'{"embedding":{"values":[1]}}') == (None, "")
    for dialect in (EMBED, BATCH, COUNT):
        assert (dialect.output_bound({}), dialect.said(b"{}")) == (0, 0)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (
            (
                b'{"error":{"code":400,"status":"INVALID_ARGUMENT",'
                b'"message":"The input token count (9) exceeds the maximum number of tokens allowed (5)."}}'
            ),
            "context_length_exceeded",
        ),
        (b'{"error":{"code":404,"message":"no such model","status":"NOT_FOUND"}}', "NOT_FOUND"),
        (b'[{"error":{"code":400,"message":"odd","status":"INVALID_ARGUMENT"}}]', "INVALID_ARGUMENT"),
        (b"[]", ""),
        (b"<html>", ""),
        (b'{"error":"x"}', ""),
    ],
)
def test_complaints(body: bytes, told: str) -> None:
    assert GENERATE.complaint(body)[0] == told


def test_errors() -> None:
    failure = Failure(429, Reason.RATE_LIMIT, "Slow down.", code="rate_limit_exceeded", retry_after=2.5)
    told = {
        "error": {
            "code": 429,
            "message": "Slow down.",
            "status": "RESOURCE_EXHAUSTED",
            "details": [
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "RATE_LIMIT_EXCEEDED",
                    "domain": "tollhouse",
                },
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "2.500s"},
                {"@type": "type.googleapis.com/google.rpc.RequestInfo", "requestId": "id-1"},
            ],
        }
    }
    assert msgspec.json.decode(GENERATE.error(failure, "id-1")) == told
    assert GENERATE.error_event(failure, "id-1") == b"data: %b\n\n" % GENERATE.error(failure, "id-1")
    for status, word in ((400, "INVALID_ARGUMENT"), (413, "INVALID_ARGUMENT"), (504, "DEADLINE_EXCEEDED")):
        plain = Failure(status, Reason.INVALID_REQUEST, "x")
        assert msgspec.json.decode(GENERATE.error(plain, ""))["error"] == {
            "code": status,
            "message": "x",
            "status": word,
        }
