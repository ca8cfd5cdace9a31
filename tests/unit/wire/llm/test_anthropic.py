"""Anthropic messages: golden answers and streams, whole and cut anywhere."""

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request
from tollhouse.wire.llm import MESSAGES
from tollhouse.wire.llm.anthropic import MessagesReader
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.sse import Framer

GOLDEN = Path(__file__).parent / "golden"
cuts = st.lists(st.integers(0, 1 << 16), max_size=20)


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def read(data: bytes, places: list[int]) -> tuple[bytes, MessagesReader]:
    framer, reader = Framer(), MESSAGES.reader(strip=False)
    at = sorted({p % (len(data) + 1) for p in places} | {0, len(data)})
    out = b""
    for a, b in pairwise(at):
        block = framer.feed(data[a:b])
        if block and reader.failure is None:
            out += reader.read(block)
    return out + framer.rest(), reader


@given(cuts)
def test_a_stream_passes_byte_for_byte(places: list[int]) -> None:
    data = golden("anthropic_stream.sse")
    out, reader = read(data, places)
    assert out == data
    assert reader.usage == Usage(25, 57, 2000, 100, 5)
    assert reader.counted
    assert reader.finished
    assert reader.model == "claude-sonnet-4-5-20250929"
    assert reader.text == len('Toll houses “collect” \\n"tolls" \U0001f6a7.{"city": "Paris"}'.encode())


@pytest.mark.parametrize(
    "delta, size",
    [
        ('{"type":"text_delta","text":"abc"}', 3),
        ('{"type":"thinking_delta","thinking":"ab\u00e9"}', 4),
        ('{"type":"input_json_delta","partial_json":"{\\"a\\":1}"}', 7),
        ('{"type":"signature_delta","signature":"abc"}', 0),
        ('{"type":"text_delta","text":{"text":"odd"}}', 3),  # not of the usual form
    ],
)
def test_text_is_counted_alone_and_among_others(delta: str, size: int) -> None:
    said = b'{"type":"content_block_delta","index":0,"delta":%b}' % delta.encode()
    block = b"event: content_block_delta\ndata: %b\n\n" % said
    reader = MESSAGES.reader(strip=False)
    for written in (block, block, block * 2, block.replace(b": ", b":", 2), block.replace(b"\n", b"\r\n")):
        assert reader.read(written) == written
    assert reader.began
    assert reader.text == 6 * size


@pytest.mark.parametrize("name", [b"content_block_delta", b"error"])
def test_an_error_event_is_one_by_its_type_or_its_name(name: bytes) -> None:
    reader = MESSAGES.reader(strip=False)
    reader.read(b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n')
    kind = b"error" if name != b"error" else b"content_block_delta"
    block = b'event: %b\ndata: {"type":"%b","error":{"type":"overloaded_error","message":"m"}}\n\n' % (name, kind)
    assert reader.read(block) == b""
    assert reader.failure is not None
    assert reader.failure.status == 503


@given(cuts)
def test_an_error_of_the_upstream_is_kept_as_its_last_words(places: list[int]) -> None:
    data = golden("anthropic_stream_error.sse")
    out, reader = read(data, places)
    assert isinstance(reader.failure, StreamFailure)
    assert reader.failure.status == 503
    assert reader.failure.detail == "overloaded_error: Overloaded"
    assert out + MESSAGES.last_words(reader.failure, "req_1") == data
    assert not reader.finished
    assert not reader.counted
    assert reader.usage == Usage(25, 1, 2000, 100)


def test_a_ping_is_no_beginning() -> None:
    reader = MESSAGES.reader(strip=False)
    for block in (b'event: ping\ndata: {"type": "ping"}\n\n', b'data: {"type": "ping"}\n\n', b": hello\n\n"):
        assert reader.read(block) == block
        assert not reader.began


def test_message_stop_in_the_text_does_not_end_it() -> None:
    reader = MESSAGES.reader(strip=False)
    said = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": '"type":"message_stop"'}}
    block = b"event: content_block_delta\ndata: %b\n\n" % msgspec.json.encode(said)
    assert reader.read(block) == block
    assert not reader.finished


def test_a_delta_replaces_only_what_it_names() -> None:
    reader = MESSAGES.reader(strip=False)
    reader.read(
        b'data: {"type":"message_start","message":{"usage":{"input_tokens":3,"cache_read_input_tokens":4}}}\n\n'
        b'data: {"type":"message_delta","usage":{"output_tokens":5,"input_tokens":6}}\n\n'
    )
    assert reader.usage == Usage(6, 5, 4)


@given(st.binary(max_size=300))
def test_no_stream_breaks_the_reader(data: bytes) -> None:
    MESSAGES.reader(strip=False).read(b'event: message_start\ndata: {"usage":' + data + b"\n\n")


def test_answer() -> None:
    usage = Usage(25, 503, 2000, 100, 100)
    assert MESSAGES.answer(golden("anthropic_answer.json")) == (usage, "claude-sonnet-4-5-20250929")


@pytest.mark.parametrize("body", [b"", b"[]", b'{"usage":7}', b'{"usage":{}}', b"[" * 5000])
def test_an_answer_that_does_not_say(body: bytes) -> None:
    assert MESSAGES.answer(body) == (None, "")


def test_decode() -> None:
    body = b'{"model":"claude","max_tokens":100,"messages":[]}'
    asked = MESSAGES.decode(body)
    assert (asked.model, asked.stream) == ("claude", False)
    assert MESSAGES.estimate(body, asked.fields) == len(body) // 4 + 100
    assert MESSAGES.usage_options(asked.fields) is None


@pytest.mark.parametrize(
    "status, kind",
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_error_object(status: int, kind: str) -> None:
    request = Request(b"POST", b"/", Headers())
    request.context.request_id = "req-1"
    response = MESSAGES.render(Failure(status, Reason.INTERNAL, "no"), request)
    assert response.status == status
    assert msgspec.json.decode(response.body) == {
        "type": "error",
        "error": {"type": kind, "message": "no"},
        "request_id": "req-1",
    }
    assert response.headers == [(b"content-type", b"application/json"), (b"request-id", b"req-1")]


def test_last_words() -> None:
    assert MESSAGES.last_words(Failure(504, Reason.TIMEOUT, "late"), "r1") == (
        b'event: error\ndata: {"type":"error","error":{"type":"timeout_error","message":"late"},"request_id":"r1"}\n\n'
    )
