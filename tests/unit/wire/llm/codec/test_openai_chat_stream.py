"""OpenAI chat completions: how a stream is read, event by event, and that what is written is read again."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies.forms import WRONG, changed, places, plain, raw, refused, written

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec.openai_chat import OpenAIChatCodec
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.llm.fold import fold
from tollhouse.wire.llm.model import (
    ArgumentsDelta,
    Began,
    Chat,
    Citation,
    CitationDelta,
    Ended,
    Event,
    LogprobsDelta,
    PartBegan,
    PartEnded,
    Refusal,
    RefusalDelta,
    SignatureDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    Used,
)
from tollhouse.wire.sse import parse, split

CODEC = OpenAIChatCodec()
CHAT = Chat("chat", "m", [], stream=True, include_usage=True)
LOGPROBS = [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}]


def chunk(
    delta: dict[str, Any] | None = None, *, finish: str | None = None, index: int = 0, **more: Any
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta or {}, "logprobs": more.pop("logprobs", None), "finish_reason": finish}
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 17, "model": "gpt-x"}
    return {**head, "choices": [choice], **more}


def call(
    index: int | None, id: str | None = None, name: str | None = None, arguments: str | None = None
) -> dict[str, Any]:
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v is not None}
    form: dict[str, Any] = {"function": function}
    if index is not None:
        form["index"] = index
    if id is not None:
        form.update(id=id, type="function")
    return {"tool_calls": [form]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}}
DONE = "[DONE]"


def read(*chunks: Any) -> list[Event]:
    decoder = CODEC.decoder()
    events: list[Event] = []
    for one in chunks:
        events += decoder.read(b"", one.encode() if isinstance(one, str) else msgspec.json.encode(one))
    assert decoder.finished == (DONE in chunks)
    return events


TEXT = [
    chunk({"role": "assistant", "content": "", "refusal": None}),
    chunk({"content": "Hi"}),
    chunk({"content": " there"}),
    chunk(finish="stop"),
    USAGE,
    DONE,
]


def test_a_text() -> None:
    assert read(*TEXT) == [
        Began("chatcmpl-1", "gpt-x", 17),
        PartBegan(0, Text("")),
        TextDelta(0, "Hi"),
        TextDelta(0, " there"),
        PartEnded(0),
        Ended("stop", None, "stop"),
        Used(Usage(9, 3)),
    ]


CALLS = [
    chunk({"role": "assistant", "content": None, **call(0, "a", "f", "")}),
    chunk(call(0, arguments='{"x":')),
    chunk(call(0, arguments="1}")),
    chunk(call(1, "b", "g", "")),
    chunk(call(1, arguments="{}")),
    chunk(finish="tool_calls"),
    DONE,
]


def test_calls() -> None:
    assert read(*CALLS)[1:] == [
        PartBegan(0, ToolCall("a", "f", "")),
        ArgumentsDelta(0, '{"x":'),
        ArgumentsDelta(0, "1}"),
        PartEnded(0),
        PartBegan(1, ToolCall("b", "g", "")),
        ArgumentsDelta(1, "{}"),
        PartEnded(1),
        Ended("tool_calls", None, "tool_calls"),
    ]


@pytest.mark.parametrize(
    "chunks, calls",
    [
        pytest.param(
            [chunk(call(0, "a", "f", "{}")), chunk(call(0, "b", "f", "{}"))], [("a", "{}"), ("b", "{}")], id="one index"
        ),
        pytest.param(
            [chunk(call(None, "a", "f", "{")), chunk(call(None, None, None, "}")), chunk(call(None, "b", "f", "{}"))],
            [("a", "{}"), ("b", "{}")],
            id="no index",
        ),
        pytest.param([chunk(call(None, None, "f", "{}"))], [("call_chatcmpl-1_0_0", "{}")], id="no id"),
        pytest.param(
            [chunk(call(0, "a", "f", "{")), chunk(call(0, "a", "f", "}"))], [("a", "{}")], id="id in every chunk"
        ),
        pytest.param(
            [chunk(call(3, "a", "f", "{}")), chunk(call(5, "b", "f", "{}")), chunk(call(3, arguments=""))],
            [("a", "{}"), ("b", "{}")],
            id="gaps",
        ),
    ],
)
def test_how_other_servers_count_calls(chunks: list[Any], calls: list[tuple[str, str]]) -> None:
    answer = fold(read(*chunks, chunk(finish="stop"), DONE), "chat")
    assert [(c.id, c.arguments) for c in answer.choices[0].parts if isinstance(c, ToolCall)] == calls
    assert answer.choices[0].stop == "tool_calls"


def test_a_call_that_goes_on_too_late() -> None:
    with pytest.raises(Failure, match="a call goes on after another part has begun"):
        read(chunk(call(0, "a", "f", "{")), chunk(call(1, "b", "f", "{}")), chunk(call(0, arguments="}")))


def test_thoughts_and_their_proofs() -> None:
    assert read(
        chunk({"reasoning_content": "2"}),
        chunk({"reasoning": "+2"}),
        chunk({"reasoning_details": [{"type": "reasoning.text", "signature": "s"}]}),
        chunk({"reasoning_details": [{"type": "reasoning.encrypted", "data": "e", "id": "r"}]}),
        chunk({"reasoning": "is", "reasoning_details": [{"type": "reasoning.summary", "summary": "is", "index": 2}]}),
        chunk({"content": "4"}),
        chunk(finish="stop"),
    )[1:] == [
        PartBegan(0, Thinking()),
        ThinkingDelta(0, "2"),
        ThinkingDelta(0, "+2"),
        SignatureDelta(0, "s"),
        PartEnded(0),
        PartBegan(1, Thinking(sealed="e", id="r")),
        PartEnded(1),
        PartBegan(2, Thinking()),
        ThinkingDelta(2, "is"),
        PartEnded(2),
        PartBegan(3, Text("")),
        TextDelta(3, "4"),
        PartEnded(3),
        Ended("stop", None, "stop"),
    ]


def test_thoughts_as_parts_of_the_content() -> None:
    assert read(
        chunk({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "2+2"}]}]}),
        chunk({"content": [{"type": "text", "text": "4"}, {"type": "reference", "reference_ids": [1]}]}),
        chunk({"content": "!"}),
        chunk(finish="stop"),
    )[1:-1] == [
        PartBegan(0, Thinking()),
        ThinkingDelta(0, "2+2"),
        PartEnded(0),
        PartBegan(1, Text("")),
        TextDelta(1, "4"),
        TextDelta(1, "!"),
        PartEnded(1),
    ]


def test_a_refusal_log_probs_and_citations() -> None:
    cited = {"type": "url_citation", "url_citation": {"url": "u", "title": "t", "start_index": 0, "end_index": 2}}
    assert read(
        chunk({"content": "Hi"}, logprobs={"content": LOGPROBS, "refusal": None}),
        chunk({"annotations": [cited]}),
        chunk({"refusal": "No"}),
        chunk(finish="stop"),
        chunk({"content": "too late"}),
        chunk(finish="length"),
    )[2:] == [
        TextDelta(0, "Hi"),
        LogprobsDelta(0, raw(LOGPROBS)),
        CitationDelta(0, Citation("url", "t", "u", begin=0, end=2)),
        PartEnded(0),
        PartBegan(1, Refusal("")),
        RefusalDelta(1, "No"),
        PartEnded(1),
        Ended("refusal", None, "stop"),
    ]


def test_several_choices() -> None:
    answer = fold(
        read(
            chunk({"content": "a"}),
            chunk({"content": "b"}, index=1),
            chunk({"content": "c"}),
            chunk(finish="stop"),
            chunk(finish="length", index=1),
        ),
        "chat",
    )
    assert [(plain(c.parts), c.stop) for c in answer.choices] == [
        (plain([Text("ac")]), "stop"),
        (plain([Text("b")]), "length"),
    ]


def test_a_signed_call() -> None:
    signed = {"index": 0, "extra_content": {"google": {"thought_signature": "s"}}}
    answer = fold(read(chunk(call(0, "a", "f", "{}")), chunk({"tool_calls": [signed]}), chunk(finish="stop")), "chat")
    assert answer.choices[0].parts == [ToolCall("a", "f", "{}", "s")]


@pytest.mark.parametrize(
    "name, data, status, detail",
    [
        (b"", b'{"error":{"message":"slow down","type":"rate_limit_error"}}', 429, "rate_limit_error: slow down"),
        (b"", b'{"error":{"message":"no","code":429}}', 429, "429: no"),
        (b"", b'{"error":{"message":"broken","type":"server_error","code":"x"}}', 502, "server_error x: broken"),
        (b"", b'{"error":"broken"}', 502, "error: broken"),
        (b"error", b'{"message":"broken"}', 502, "error: broken"),
        (b"error", b'{"error":{"message":"broken"}}', 502, "error: broken"),
        (b"", b'{"error":[1]}', 502, "error"),
    ],
)
def test_an_error_in_a_stream(name: bytes, data: bytes, status: int, detail: str) -> None:
    decoder = CODEC.decoder()
    with pytest.raises(StreamFailure) as raised:
        decoder.read(name, data)
    assert raised.value.status == status
    assert raised.value.detail.startswith(detail)
    assert data in raised.value.words


def test_no_error_in_a_stream() -> None:
    assert read({"error": None, **chunk({"content": "a"})})[-1] == TextDelta(0, "a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"[]",
        b'"text"',
        b'{"choices":[{"delta":{"content":5}}]}',
        b'{"choices":[{"delta":{"content":[5]}}]}',
        b'{"choices":[{"delta":{"content":[{}]}}]}',
        b'{"choices":[{"delta":{"content":"\xff"}}]}',
        b'{"choices":[{"delta":{"content":"\\ud800"}}]}',
        b'{"created":NaN}',
        b'{"choices":' + b"[" * 5000,
    ],
)
def test_what_is_no_chunk(data: bytes) -> None:
    with pytest.raises(Failure) as raised:
        CODEC.decoder().read(b"", data)
    assert raised.value.status == 502


def test_a_stream_that_is_cut() -> None:
    decoder = CODEC.decoder()
    events = [e for one in TEXT[:3] for e in decoder.read(b"", msgspec.json.encode(one))]
    assert not decoder.finished
    answer = fold(events, "chat")
    assert answer.choices[0].parts == [Text("Hi there")]
    assert answer.choices[0].stop == "error"


def test_what_is_written_is_read_again() -> None:
    events = [
        *read(*TEXT[:3]),
        PartEnded(0),
        *[PartBegan(1, ToolCall("a", "f", "")), ArgumentsDelta(1, '{"é":"\\u0000"}'), PartEnded(1)],
        Ended("tool_calls", None, "tool_calls"),
        Used(Usage(9, 3)),
    ]
    encoder = CODEC.encoder(CHAT)
    decoder = CODEC.decoder()
    out = encoder.write(events) + encoder.end()
    again = [event for block in split(out) for event in decoder.read(*parse(block))]
    assert decoder.finished
    assert plain(fold(again, "chat")) == plain(fold(events, "chat"))


STREAM = [*TEXT[:-1], *CALLS[:-1]]


@given(st.integers(0, len(STREAM) - 1), st.data())
@settings(max_examples=200, deadline=None)
def test_a_changed_stream_is_read_or_refused(n: int, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(list(places(STREAM[n]))))
    decoder = CODEC.decoder()
    encoder = CODEC.encoder(CHAT)
    with refused(429, 502):
        for number, one in enumerate(STREAM):
            form = changed(one, place, data.draw(WRONG)) if number == n else one
            encoder.write(decoder.read(b"", written(form)))
        encoder.end()
