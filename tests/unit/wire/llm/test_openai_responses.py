"""OpenAI responses: answers and streams pass through, whole and cut anywhere."""

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.llm.openai_responses import OpenAIResponses, ResponsesReader
from tollhouse.wire.sse import Framer, frame, parse

RESPONSES = OpenAIResponses()
COUNTS = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 2},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 29,
}
USAGE = Usage(10, 9, 8, 2, 4)
RESPONSE = {"id": "resp_1", "object": "response", "model": "gpt-5-2026", "status": "completed", "usage": COUNTS}


def event(kind: str, **fields: Any) -> bytes:
    return frame(json.dumps({"type": kind, "sequence_number": 1, **fields}, ensure_ascii=False).encode(), kind.encode())


def delta(kind: str, text: str) -> bytes:
    return event(f"response.{kind}.delta", item_id="x", output_index=0, delta=text, obfuscation="abc")


CREATED = event("response.created", response={**RESPONSE, "status": "in_progress", "usage": None})
TEXT = 'Toll “houses” \\n"x" 😀'
STREAM = b"".join(
    [
        CREATED,
        b": keep alive\n\n",
        event("response.in_progress", response={**RESPONSE, "usage": None}),
        event("response.output_item.added", output_index=0, item={"type": "message", "content": []}),
        *(delta("output_text", piece) for piece in TEXT),
        event("response.output_text.done", text=TEXT),
        event("response.shell_call_output_content.delta", delta={"stdout": "x"}),
        event("response.completed", response=RESPONSE),
    ]
)


@given(st.lists(st.integers(0, 1 << 16), max_size=20))
def test_a_stream_passes_byte_for_byte(places: list[int]) -> None:
    framer, reader = Framer(), RESPONSES.reader(strip=True)
    at = sorted({p % (len(STREAM) + 1) for p in places} | {0, len(STREAM)})
    out = b""
    for a, b in pairwise(at):
        block = framer.feed(STREAM[a:b])
        if block:
            out += reader.read(block)
    assert out + framer.rest() == STREAM
    assert reader.usage == USAGE
    assert reader.counted
    assert reader.finished
    assert reader.failure is None
    assert reader.model == "gpt-5-2026"
    assert reader.text == len(TEXT.encode())


def read(*blocks: bytes) -> ResponsesReader:
    reader = RESPONSES.reader(strip=False)
    for block in blocks:
        reader.read(block)
    return reader


@pytest.mark.parametrize(
    "kind, size",
    [
        ("output_text", 3),
        ("refusal", 3),
        ("function_call_arguments", 3),
        ("reasoning_summary_text", 3),
        ("reasoning_text", 3),
        ("custom_tool_call_input", 3),
        ("mcp_call_arguments", 3),
        ("audio.transcript", 3),
        ("audio", 0),
    ],
)
def test_what_text_is_counted(kind: str, size: int) -> None:
    reader = read(delta(kind, "aé"), delta(kind, "aé") * 2)
    assert reader.began
    assert reader.text == 3 * size


def test_text_in_an_event_of_another_form_is_counted() -> None:
    assert read(event("response.output_text.delta", delta="abc", response=5)).text == 3
    assert read(frame(b'{"type":["x"],"delta":"a\\"bc"}', b"response.output_text.delta")).text == 5
    assert read(frame(b'{"type":["x"],"delta":"abc"}', b"response.audio.delta")).text == 0


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
@pytest.mark.parametrize(
    "response, usage",
    [
        (RESPONSE, USAGE),
        ({**RESPONSE, "usage": None}, None),
        ({**RESPONSE, "usage": {"input_tokens": -1}}, None),
        (5, None),
    ],
)
def test_what_ends_a_stream(kind: str, response: Any, usage: Usage | None) -> None:
    reader = read(CREATED, event(kind, response=response))
    assert reader.finished
    assert (reader.usage, reader.counted) == (usage, usage is not None)


def test_a_stream_that_is_cut_has_not_ended() -> None:
    reader = read(CREATED, delta("output_text", "a"))
    assert (reader.began, reader.finished, reader.usage, reader.counted) == (True, False, None, False)
    assert not read(b": ping\n\n").began


@pytest.mark.parametrize(
    "block, status, detail",
    [
        (event("error", code="rate_limit_exceeded", message="slow down", param=None), 429, "rate_limit_exceeded: slow"),
        (event("error", error={"type": "server_error", "code": None, "message": "x"}), 502, "server_error: x"),
        (event("error", error={"type": "tokens", "code": "insufficient_quota"}), 429, "insufficient_quota: "),
        (
            event("response.failed", response={"error": {"code": "server_error", "message": "y"}}),
            502,
            "server_error: y",
        ),
        (event("response.failed", response=5), 502, "error: "),
        (b"event: error\ndata: no JSON\n\n", 502, "error: "),
        (b'data: {"type":"error","code":429}\n\n', 429, "error: "),
    ],
)
def test_an_error_is_taken_out_and_told_in_its_own_words(block: bytes, status: int, detail: str) -> None:
    reader = RESPONSES.reader(strip=False)
    said = delta("output_text", "a")
    assert reader.read(CREATED + said + block + said) == CREATED + said
    failure = reader.failure
    assert isinstance(failure, StreamFailure)
    assert (failure.status, failure.words) == (status, block)
    assert failure.detail.startswith(detail)
    assert failure.retry
    assert RESPONSES.last_words(failure) == block


def test_an_error_before_all_else_lets_another_try() -> None:
    assert not read(event("error", code="server_error", message="x")).began


def test_a_failed_response_still_tells_what_it_used() -> None:
    reader = read(event("response.failed", response={**RESPONSE, "error": {"code": "server_error"}}))
    assert reader.usage == USAGE
    assert reader.counted


def test_our_own_error_in_a_stream() -> None:
    words = RESPONSES.last_words(Failure(429, Reason.RATE_LIMIT, "too much", code="rate_limit_exceeded"))
    name, data = parse(words)
    told = {"code": "rate_limit_exceeded", "message": "too much", "param": None}
    assert name == b"error"
    assert json.loads(data) == {
        "type": "error",
        "sequence_number": 0,
        **told,
        "error": {"type": "rate_limit_error", **told},
    }
    reader = read(words)
    assert reader.failure is not None
    assert reader.failure.status == 429


@pytest.mark.parametrize(
    "body, expected",
    [
        (json.dumps(RESPONSE), (USAGE, "gpt-5-2026")),
        ('{"model":"m"}', (None, "m")),
        ('{"model":"m","usage":null}', (None, "m")),
        ('{"model":"m","usage":{}}', (None, "m")),
        ('{"usage":{"input_tokens":"x"}}', (None, "")),
        ("<html>", (None, "")),
        ("[" * 5000, (None, "")),
    ],
)
def test_the_usage_of_a_whole_answer(body: str, expected: tuple[Usage | None, str]) -> None:
    assert RESPONSES.answer(body.encode()) == expected


def test_requests() -> None:
    asked = RESPONSES.decode(b'{"model":"m","input":"hi","stream":true,"max_output_tokens":77}')
    assert (asked.model, asked.stream) == ("m", True)
    assert RESPONSES.output_bound(asked.fields) == 77
    assert RESPONSES.usage_options(asked.fields) is None
    assert (RESPONSES.family, RESPONSES.operation, RESPONSES.path) == ("openai", "responses", b"/responses")
    with pytest.raises(Failure):
        RESPONSES.decode(b'{"model":"m","Input":"hi"}')


@given(st.binary(max_size=60) | st.sampled_from([b'{"type":5}', b'{"response":[]}', b"[" * 5000]), st.booleans())
def test_whatever_comes_passes(data: bytes, named: bool) -> None:
    block = frame(data.replace(b"\n", b"").replace(b"\r", b""), b"response.completed" if named else b"")
    reader = RESPONSES.reader(strip=True)
    out = reader.read(block)
    assert out == (block if reader.failure is None else b"")


def test_the_fields_are_those_that_came() -> None:
    body = b'{"model":"m","input":[{"role":"user","content":"\\u0061"}],"x":1.0}'
    asked = RESPONSES.decode(body)
    assert msgspec.json.encode(asked.fields) == body
