"""Anthropic messages: the stream, event by event, both ways."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies.forms import WRONG, changed, places, plain, raw, refused, written

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec.anthropic import AnthropicCodec
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
    Image,
    LogprobsDelta,
    Media,
    Opaque,
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

CODEC = AnthropicCodec()
CHAT = Chat("messages", "m", [], stream=True)


def start(index: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


BEGIN = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 7,
            "cache_creation_input_tokens": 0,
            "output_tokens": 1,
        },
    },
}
END = [
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 20, "output_tokens_details": {"thinking_tokens": 5}},
    },
    {"type": "message_stop"},
]
CITED = {
    "type": "char_location",
    "cited_text": "q",
    "document_index": 0,
    "document_title": "D",
    "start_char_index": 1,
    "end_char_index": 2,
}
STREAM = [
    BEGIN,
    start(0, type="thinking", thinking="", signature=""),
    delta(0, "thinking_delta", thinking="h"),
    delta(0, "thinking_delta", thinking="m"),
    delta(0, "signature_delta", signature="s"),
    stop(0),
    start(1, type="redacted_thinking", data="e"),
    stop(1),
    {"type": "ping"},
    start(2, type="text", text=""),
    delta(2, "text_delta", text=""),
    delta(2, "text_delta", text="So."),
    delta(2, "citations_delta", citation=CITED),
    stop(2),
    start(3, type="server_tool_use", id="s", name="web_search", input={}),
    delta(3, "input_json_delta", partial_json='{"query":'),
    delta(3, "input_json_delta", partial_json='"q"}'),
    stop(3),
    start(4, type="tool_use", id="t", name="weather", input={}),
    delta(4, "input_json_delta", partial_json=""),
    delta(4, "input_json_delta", partial_json='{"city":'),
    delta(4, "input_json_delta", partial_json=' "Bonn"}'),
    stop(4),
    *END,
]
WHOLE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "e"},
        {"type": "text", "text": "So.", "citations": [CITED]},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
        {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "Bonn"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "cache_read_input_tokens": 7,
        "cache_creation_input_tokens": 0,
        "output_tokens": 20,
        "output_tokens_details": {"thinking_tokens": 5},
    },
}


def read(*events: dict[str, Any]) -> list[Event]:
    decoder = CODEC.decoder()
    return [e for one in events for e in decoder.read(one["type"].encode(), msgspec.json.encode(one))]


def wrote(*batches: list[Event]) -> list[dict[str, Any]]:
    encoder = CODEC.encoder(CHAT)
    out = b"".join(encoder.write(events) for events in batches) + encoder.end()
    found = []
    for block in split(out):
        name, data = parse(block)
        one = msgspec.json.decode(data)
        assert one["type"].encode() == name
        found.append(one)
    return found


def test_a_stream_event_by_event() -> None:
    assert plain(read(*STREAM)) == plain(
        [
            Began("msg_1", "claude-x"),
            Used(Usage(10, 1, 7)),
            PartBegan(0, Thinking()),
            ThinkingDelta(0, "h"),
            ThinkingDelta(0, "m"),
            SignatureDelta(0, "s"),
            PartEnded(0),
            PartBegan(1, Thinking(sealed="e")),
            PartEnded(1),
            PartBegan(2, Text("")),
            TextDelta(2, "So."),
            CitationDelta(2, Citation("char", "D", None, 0, 1, 2, "q")),
            PartEnded(2),
            PartBegan(
                3,
                Opaque(
                    "messages",
                    "server_tool_use",
                    raw({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}}),
                ),
            ),
            PartEnded(3),
            PartBegan(4, ToolCall("t", "weather", "")),
            ArgumentsDelta(4, '{"city":'),
            ArgumentsDelta(4, ' "Bonn"}'),
            PartEnded(4),
            Used(Usage(10, 20, 7, reasoning=5)),
            Ended("tool_calls", None, "tool_use"),
        ]
    )


def test_a_stream_folded_is_the_whole_answer() -> None:
    folded = fold(read(*STREAM), "messages")
    whole = CODEC.decode_answer(msgspec.json.encode(WHOLE))
    call = folded.choices[0].parts[4]
    assert isinstance(call, ToolCall)
    call.arguments = call.arguments.replace(" ", "")
    assert plain(folded) == plain(whole)


def test_a_stream_is_written_as_it_came() -> None:
    events = [one for one in STREAM if one["type"] != "ping" and one.get("delta", {}).get("partial_json") != ""]
    events = [one for one in events if one.get("delta", {}).get("text") != ""]
    decoder = CODEC.decoder()
    batches = [decoder.read(b"", msgspec.json.encode(one)) for one in events]
    assert decoder.finished
    whole = start(3, **WHOLE["content"][3])  # what the provider ran is told at once
    expected = [*events[:12], whole, stop(3), *events[16:-2], *END]
    expected[-2] = {
        **END[0],
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 7,
            "output_tokens": 20,
            "output_tokens_details": {"thinking_tokens": 5},
        },
    }
    assert wrote(*batches) == expected


def test_blocks_that_begin_with_something() -> None:
    events = read(
        BEGIN,
        start(0, type="text", text="So", citations=None),
        delta(0, "text_delta", text="."),
        stop(0),
        start(1, type="tool_use", id="t", name="f", input={"a": 1}),
        stop(1),
        start(2, type="tool_use", id="u", name="g", input={}),
        stop(2),
        start(3, type="thinking", thinking="hm", signature="s"),
        stop(3),
        *END,
    )
    assert fold(events, "messages").choices[0].parts == [
        Text("So."),
        ToolCall("t", "f", '{"a":1}'),
        ToolCall("u", "g", "{}"),
        Thinking("hm", "s"),
    ]
    assert wrote(events)[1:-2] == [
        start(0, type="text", text=""),
        delta(0, "text_delta", text="So"),
        delta(0, "text_delta", text="."),
        stop(0),
        start(1, type="tool_use", id="t", name="f", input={}),
        delta(1, "input_json_delta", partial_json='{"a":1}'),
        stop(1),
        start(2, type="tool_use", id="u", name="g", input={}),
        stop(2),
        start(3, type="thinking", thinking="", signature="s"),
        delta(3, "thinking_delta", thinking="hm"),
        stop(3),
    ]


def test_a_stream_that_is_cut() -> None:
    decoder = CODEC.decoder()
    events = [e for one in STREAM[:4] for e in decoder.read(b"", msgspec.json.encode(one))]
    assert not decoder.finished
    assert fold(events, "messages").choices[0].parts == [Thinking("hm")]


@pytest.mark.parametrize(
    "name, data, status, detail",
    [
        (
            b"error",
            b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}',
            503,
            "overloaded_error: busy",
        ),
        (b"", b'{"type":"error","error":{"type":"rate_limit_error","message":"slow"}}', 429, "rate_limit_error: slow"),
        (b"error", b'{"type":"error","error":{"type":"timeout_error","message":""}}', 504, "timeout_error: "),
        (b"error", b'{"error":{"type":"api_error","message":"x"}}', 502, "api_error: x"),
        (b"error", b"broken", 502, "error: "),
        (b"error", b'{"type":"error","error":5}', 502, "error: "),
    ],
)
def test_an_error_in_a_stream(name: bytes, data: bytes, status: int, detail: str) -> None:
    with pytest.raises(StreamFailure) as raised:
        CODEC.decoder().read(name, data)
    assert raised.value.status == status
    assert raised.value.detail == detail
    assert raised.value.words == b"event: error\ndata: %b\n\n" % data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"type":5}',
        b'{"type":"message_start"}',
        b'{"type":"content_block_start","index":0}',
        b'{"type":"content_block_start","index":0,"content_block":{}}',
        b'{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","name":"f"}}',
        b'{"type":"content_block_start","content_block":{"type":"tool_use","id":"a","name":"f","input":{"a":"\xff"}}}',
        b'{"type":"content_block_delta","delta":{"citation":5}}',
        b'{"type":"content_block_delta","delta":{"citation":{}}}',
        b'{"type":"content_block_delta","delta":{"text":"\xff"}}',
        b'{"type":"content_block_delta","delta":{"text":"\\ud800"}}',
        b'{"type":' + b"[" * 5000,
    ],
)
def test_what_is_no_event(data: bytes) -> None:
    with pytest.raises(Failure) as raised:
        CODEC.decoder().read(b"", data)
    assert raised.value.status == 502


def test_the_input_of_a_tool_of_the_providers_that_is_no_json() -> None:
    with pytest.raises(Failure) as raised:
        read(start(0, type="server_tool_use", input={}), delta(0, "input_json_delta", partial_json="{"), stop(0))
    assert raised.value.status == 502


def test_what_has_no_meaning_here() -> None:
    assert read({"type": "ping"}, {"type": "content_block_delta"}, {"type": "of_the_future"}) == []
    assert read(delta(0, "of_the_future", news=1), {"type": "message_delta", "delta": {}}) == []


# ---- writing


def test_what_another_api_says() -> None:
    found = wrote(
        [],
        [Began("i", "m", 5)],
        [PartBegan(0, Text("")), TextDelta(0, "a"), LogprobsDelta(0, raw([])), PartEnded(0)],
        [PartBegan(1, Image(Media("image/png", "aGk="))), PartEnded(1)],
        [PartBegan(2, Opaque("generate", "executableCode", raw({}))), ArgumentsDelta(2, "x"), PartEnded(2)],
        [PartBegan(0, Text(""), 1), TextDelta(0, "other", 1), PartEnded(0, 1), Ended(choice=1)],
        [PartBegan(3, ToolCall("c", "f", "{}", "sig")), SignatureDelta(3, "t"), ArgumentsDelta(3, ""), PartEnded(3)],
        [PartBegan(4, Refusal("N")), RefusalDelta(4, "o")],
        [CitationDelta(4, Citation("url", None, "u"))],
        [Ended("content_filter"), Used(Usage(3, 4))],
        [TextDelta(9, "of a part that never began"), PartEnded(9)],
    )
    cited = {
        "type": "web_search_result_location",
        "url": "u",
        "title": None,
        "cited_text": "",
        "encrypted_index": "",
    }
    assert found[0]["message"]["usage"]["input_tokens"] == 0
    assert found[1:] == [
        start(0, type="text", text=""),
        delta(0, "text_delta", text="a"),
        stop(0),
        start(1, type="tool_use", id="c", name="f", input={}),
        delta(1, "input_json_delta", partial_json="{}"),
        delta(1, "input_json_delta", partial_json=""),
        stop(1),
        start(2, type="text", text=""),
        delta(2, "text_delta", text="N"),
        delta(2, "text_delta", text="o"),
        delta(2, "citations_delta", citation=cited),
        stop(2),
        {
            "type": "message_delta",
            "delta": {"stop_reason": "refusal", "stop_sequence": None},
            "usage": {
                "input_tokens": 3,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 4,
            },
        },
        {"type": "message_stop"},
    ]


def test_a_stream_with_nothing_in_it() -> None:
    found = wrote([Began("i", "m"), Used(Usage(2, 0, 1))])
    assert [one["type"] for one in found] == ["message_start", "message_delta", "message_stop"]
    assert found[0]["message"]["usage"]["cache_read_input_tokens"] == 1
    assert found[1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


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
