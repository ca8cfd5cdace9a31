"""Bedrock Converse passed through: paths, requests, answers, binary streams whole and cut anywhere, errors."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request
from tollhouse.wire.eventstream import frame, parse, sealed, text_headers
from tollhouse.wire.llm.converse import BedrockConverse, ConverseReader
from tollhouse.wire.llm.dialect import StreamFailure

CONVERSE = BedrockConverse()
ARN = "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.anthropic.claude-sonnet-4-5-20250929-v1:0"
DELTAS = ['{"text":"H\u00e9 \\n"}', '{"toolUse":{"input":"{}"}}', '{"reasoningContent":{"text":"hm"}}', '{"text":5}']
METADATA = (
    b'{"usage":{"inputTokens":10,"outputTokens":20,"totalTokens":35,"cacheReadInputTokens":5},'
    b'"metrics":{"latencyMs":9}}'
)
STREAM = b"".join(
    (
        frame(b"messageStart", b'{"role":"assistant"}'),
        *(
            frame(b"contentBlockDelta", b'{"contentBlockIndex":0,"delta":%b,"p":"abc"}' % delta.encode())
            for delta in DELTAS
        ),
        frame(b"contentBlockStop", b'{"contentBlockIndex":0}'),
        frame(b"messageStop", b'{"stopReason":"end_turn"}'),
        frame(b"metadata", METADATA),
    )
)


def read(data: bytes, places: list[int]) -> tuple[bytes, ConverseReader]:
    framer, reader = CONVERSE.framer(), CONVERSE.reader(strip=False)
    at = sorted({p % (len(data) + 1) for p in places} | {0, len(data)})
    out = b""
    for a, b in pairwise(at):
        block = framer.feed(data[a:b])
        if block and reader.failure is None:
            out += reader.read(block)
    return out + framer.rest(), reader


@given(st.lists(st.integers(0, 1 << 16), max_size=20))
def test_a_stream_passes_byte_for_byte(places: list[int]) -> None:
    out, reader = read(STREAM, places)
    assert out == STREAM
    assert reader.usage == Usage(10, 20, 5)
    assert (reader.began, reader.finished, reader.counted) == (True, True, True)
    assert reader.text == len("H\u00e9 \n{}hm".encode())


def test_a_stream_is_whole_without_its_metadata() -> None:
    _, reader = read(STREAM[: -len(frame(b"metadata", METADATA))], [])
    assert (reader.finished, reader.counted, reader.usage) == (True, False, None)
    _, reader = read(STREAM[:400], [])
    assert not reader.finished


def test_an_exception_ends_what_passes() -> None:
    began = frame(b"messageStart", b'{"role":"assistant"}')
    words = frame(b"throttlingException", b'{"message":"slow down"}', kind=b"exception")
    out, reader = read(began + words + STREAM, [])
    assert out == began
    failure = reader.failure
    assert isinstance(failure, StreamFailure)
    assert (failure.status, failure.words, failure.detail) == (429, words, "throttlingException: slow down")
    assert CONVERSE.last_words(failure) == words


@pytest.mark.parametrize("data", [b"<html>", b'{"delta":{"text":"a\xff"}}', b'{"delta":{"text":"a"},"x":NaN}'])
def test_an_event_that_is_no_json_ends_what_passes(data: bytes) -> None:
    began = frame(b"messageStart", b'{"role":"assistant"}')
    out, reader = read(began + frame(b"contentBlockDelta", data) + STREAM, [])
    assert (out, reader.finished) == (began, False)
    assert reader.failure is not None
    assert (reader.failure.status, reader.failure.retry) == (502, True)
    # What is only of another form passes.
    passed = began + frame(b"contentBlockDelta", b'{"delta":5}')
    assert read(passed, [])[0] == passed


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (frame(b"odd", b"", kind=b"exception"), b"error"),
        (
            sealed(text_headers({b":message-type": b"error", b":error-code": b"E1", b":error-message": b"bad"}), b""),
            b"error",
        ),
        (frame(b"somethingNew", b""), b"somethingNew"),
        (frame(b"messageStart", b"{}", content_type=b"text/plain"), b"messageStart"),
        (sealed(b"", b"x"), b""),
    ],
)
def test_other_messages(message: bytes, name: bytes) -> None:
    ((found, data),) = CONVERSE.events(message)
    assert found == name
    assert data
    _, reader = read(message, [])
    assert (reader.failure is not None) == (name == b"error")


def test_a_damaged_stream_is_the_providers_failure() -> None:
    damaged = bytearray(STREAM)
    damaged[-20] ^= 1
    reader = CONVERSE.reader(strip=False)
    out = reader.read(bytes(damaged))
    assert STREAM.startswith(out)
    assert reader.failure is not None
    assert (reader.failure.status, reader.finished) == (502, True)
    with pytest.raises(Failure, match="checksum"):
        CONVERSE.events(bytes(damaged))


@pytest.mark.parametrize("model", ["anthropic.claude-3-haiku-20240307-v1:0", ARN, "my model/\u00e9"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_path_names_the_model(model: str, stream: bool) -> None:
    path = CONVERSE.target(model, stream=stream)
    assert path.count(b"/") == 3
    assert b":" not in path
    assert CONVERSE.read_target(path) == (model, stream)


def test_paths() -> None:
    assert CONVERSE.target("a:0", stream=True) == b"/model/a%3A0/converse-stream"
    assert CONVERSE.read_target(b"/model/a:0/converse") == ("a:0", False)
    for path in (
        b"/model//converse",
        b"/model/a/invoke",
        b"/v1/converse",
        b"/model/%ff/converse",
        b"/model/\xff/converse",
    ):
        assert CONVERSE.read_target(path) is None


def test_a_request() -> None:
    body = b'{"messages":[],"inferenceConfig":{"maxTokens":7},"x":{"a":1}}'
    asked = CONVERSE.decode(body, model="m", stream=True)
    assert (asked.model, asked.stream, list(asked.fields)) == ("m", True, ["messages", "inferenceConfig", "x"])
    assert CONVERSE.output_bound(asked.fields) == 7
    for config in (b"{}", b"[]", b'{"maxTokens":-1}', b'{"maxTokens":"x"}'):
        assert CONVERSE.output_bound({"inferenceConfig": msgspec.Raw(config)}) == 1024
    assert CONVERSE.output_bound({}) == 1024


@pytest.mark.parametrize(
    ("body", "model", "code"),
    [
        (b"[]", "m", "invalid_json"),
        (b"{", "m", "invalid_json"),
        (b"\xff", "m", "invalid_json"),
        (b'{"a":' + b"[" * 100_000, "m", "invalid_json"),
        (b'{"Messages":[]}', "m", "ambiguous_field"),
        (b'{"messages":[],"inferenceconfig":{}}', "m", "ambiguous_field"),
    ],
)
def test_requests_that_are_refused(body: bytes, model: str, code: str) -> None:
    with pytest.raises(Failure) as caught:
        CONVERSE.decode(body, model=model)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_an_answer() -> None:
    assert CONVERSE.answer(METADATA) == (Usage(10, 20, 5), "")
    for body in (b"{}", b"<html>", b'{"usage":{}}', b'{"usage":5}', b"[" * 100_000):
        assert CONVERSE.answer(body) == (None, "")


@pytest.mark.parametrize(
    ("status", "kind", "event"),
    [
        (400, "ValidationException", "validationException"),
        (401, "AccessDeniedException", "validationException"),
        (403, "AccessDeniedException", "validationException"),
        (404, "ResourceNotFoundException", "validationException"),
        (413, "ValidationException", "validationException"),
        (429, "ThrottlingException", "throttlingException"),
        (500, "InternalServerException", "internalServerException"),
        (502, "InternalServerException", "modelStreamErrorException"),
        (503, "ServiceUnavailableException", "serviceUnavailableException"),
        (504, "ModelTimeoutException", "internalServerException"),
    ],
)
def test_errors(status: int, kind: str, event: str) -> None:
    failure = Failure(status, Reason.UPSTREAM_FAILURE, "it failed", retry_after=1.5)
    request = Request(b"POST", b"/model/m/converse", Headers())
    request.context.request_id = "r1"
    response = CONVERSE.render(failure, request)
    assert response.status == status
    assert response.body == b'{"message":"it failed"}'
    headers = dict(response.headers)
    assert headers[b"x-amzn-errortype"] == kind.encode()
    assert headers[b"x-amzn-requestid"] == b"r1"
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"retry-after"] == b"2"
    told = parse(CONVERSE.error_event(failure, "r1"))
    assert told.headers[":message-type"] == "exception"
    assert told.headers[":exception-type"] == event
    assert told.payload == b'{"message":"it failed"}'


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b'{"message":"Input is too long for requested model."}', "context_length_exceeded"),
        (b'{"message":"odd"}', ""),
        (b"{}", ""),
        (b"<html>", ""),
        (b'{"message":5}', ""),
    ],
)
def test_what_a_refusal_is_about(body: bytes, complaint: str) -> None:
    code, message = CONVERSE.complaint(body)
    assert code == complaint
    assert message in body.decode()


def test_its_streams_are_known_by_their_type() -> None:
    assert CONVERSE.streamed(Headers([(b"content-type", b"application/vnd.amazon.eventstream")]))
    assert not CONVERSE.streamed(Headers([(b"content-type", b"application/json")]))
    assert not CONVERSE.streamed(Headers())
