"""Bedrock ConverseStream and the neutral model: event by event, cut, failed, and folded into the whole answer."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.eventstream import frame, parse, split
from tollhouse.wire.llm.codec.converse import ConverseCodec
from tollhouse.wire.llm.codec.converse_stream import ConverseDecoder
from tollhouse.wire.llm.converse import BedrockConverse
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.llm.model import (
    ArgumentsDelta,
    Began,
    Chat,
    Choice,
    Citation,
    CitationDelta,
    Ended,
    Event,
    Image,
    Media,
    Opaque,
    Part,
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

CODEC = ConverseCodec()
DIALECT = BedrockConverse()
CHAT = Chat("chat", "m", [])


def event(name: str, value: Any) -> tuple[bytes, bytes]:
    return name.encode(), msgspec.json.encode(value)


def delta(index: int, value: Any) -> tuple[bytes, bytes]:
    return event("contentBlockDelta", {"contentBlockIndex": index, "delta": value, "p": "abcdefgh"})


STREAM = [
    event("messageStart", {"role": "assistant", "p": "ab"}),
    delta(0, {"reasoningContent": {"text": "H"}}),
    delta(0, {"reasoningContent": {"text": "m."}}),
    delta(0, {"reasoningContent": {"signature": "c2ln"}}),
    event("contentBlockStop", {"contentBlockIndex": 0}),
    delta(1, {"reasoningContent": {"redactedContent": "c2VhbGVk"}}),
    event("contentBlockStop", {"contentBlockIndex": 1}),
    event(
        "contentBlockStart",
        {"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "s1", "name": "web", "type": "server_tool_use"}}},
    ),
    delta(2, {"toolUse": {"input": "{}"}}),
    event("contentBlockStop", {"contentBlockIndex": 2}),
    delta(3, {"text": "It "}),
    delta(3, {"text": "rains."}),
    delta(3, {"citation": {"title": "W", "location": {"web": {"url": "https://x/"}}}}),
    event("contentBlockStop", {"contentBlockIndex": 3}),
    event("contentBlockStart", {"contentBlockIndex": 4, "start": {"toolUse": {"toolUseId": "t1", "name": "umbrella"}}}),
    delta(4, {"toolUse": {"input": ""}}),
    delta(4, {"toolUse": {"input": '{"open"'}}),
    delta(4, {"toolUse": {"input": ":true}"}}),
    event("contentBlockStop", {"contentBlockIndex": 4}),
    event("messageStop", {"stopReason": "tool_use"}),
    event("somethingNew", {"x": 1}),
    event(
        "metadata",
        {"usage": {"inputTokens": 10, "outputTokens": 20, "totalTokens": 30}, "metrics": {"latencyMs": 321}},
    ),
]
MEANING: list[list[Event]] = [
    [Began("", "")],
    [PartBegan(0, Thinking()), ThinkingDelta(0, "H")],
    [ThinkingDelta(0, "m.")],
    [SignatureDelta(0, "c2ln")],
    [PartEnded(0)],
    [],
    [PartBegan(1, Thinking(sealed="c2VhbGVk")), PartEnded(1)],
    [],
    [],
    [],
    [PartBegan(2, Text("")), TextDelta(2, "It ")],
    [TextDelta(2, "rains.")],
    [CitationDelta(2, Citation("url", "W", "https://x/"))],
    [PartEnded(2)],
    [PartBegan(3, ToolCall("t1", "umbrella", ""))],
    [],
    [ArgumentsDelta(3, '{"open"')],
    [ArgumentsDelta(3, ":true}")],
    [PartEnded(3)],
    [Ended("tool_calls", None, "tool_use")],
    [],
    [Used(Usage(10, 20))],
]


def decoded(events: list[tuple[bytes, bytes]]) -> tuple[list[Event], ConverseDecoder]:
    decoder = CODEC.decoder()
    assert isinstance(decoder, ConverseDecoder)
    return [found for name, data in events for found in decoder.read(name, data)], decoder


def folded(events: list[Event]) -> Choice:
    """The answer that a stream of parts in order tells."""
    choice = Choice([])
    for one in events:
        if isinstance(one, PartBegan):
            choice.parts.append(one.value)
        elif isinstance(one, Ended):
            choice.stop, choice.stop_sequence, choice.detail = one.stop, one.stop_sequence, one.detail
        elif not isinstance(one, (Began, PartEnded, Used)):
            part: Any = choice.parts[one.part]
            if isinstance(one, ArgumentsDelta):
                part.arguments += one.text
            elif isinstance(one, CitationDelta):
                part.citations = [*(part.citations or ()), one.citation]
            elif isinstance(one, SignatureDelta):
                part.signature = (part.signature or "") + one.signature
            elif isinstance(one, (TextDelta, ThinkingDelta, RefusalDelta)):
                part.text += one.text
    return choice


def test_event_by_event() -> None:
    decoder = CODEC.decoder()
    for (name, data), meaning in zip(STREAM, MEANING, strict=True):
        assert not decoder.finished
        assert decoder.read(name, data) == meaning
    assert decoder.finished


def test_the_stream_is_the_answer() -> None:
    answer = {
        "output": {
            "message": {
                "role": "assistant",
                "content": [
                    {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "c2ln"}}},
                    {"reasoningContent": {"redactedContent": "c2VhbGVk"}},
                    {
                        "citationsContent": {
                            "content": [{"text": "It rains."}],
                            "citations": [{"title": "W", "location": {"web": {"url": "https://x/"}}}],
                        }
                    },
                    {"toolUse": {"toolUseId": "t1", "name": "umbrella", "input": {"open": True}}},
                ],
            }
        },
        "stopReason": "tool_use",
        "usage": {"inputTokens": 10, "outputTokens": 20, "totalTokens": 30},
        "metrics": {"latencyMs": 321},
    }
    whole = CODEC.decode_answer(msgspec.json.encode(answer))
    events, _ = decoded(STREAM)
    assert folded(events) == whole.choices[0]
    assert [e.usage for e in events if isinstance(e, Used)] == [whole.usage]


def test_what_was_written_is_read_again() -> None:
    events, _ = decoded(STREAM)
    encoder = CODEC.encoder(CHAT)
    sent = b"".join(encoder.write([one]) for one in events) + encoder.end()
    again, decoder = decoded(DIALECT.events(sent))
    assert decoder.finished
    assert folded(again) == folded(events)
    assert Used(Usage(10, 20)) in again
    together = CODEC.encoder(CHAT)
    assert together.write(decoded(STREAM)[0]) + together.end() == sent


def test_pictures_are_written() -> None:
    long = "A" * (3 << 20) + "YWI="
    events: list[Event] = [
        PartBegan(0, Image(Media("image/png", "YWI="))),
        PartEnded(0),
        PartBegan(1, Image(Media(url="https://a/b.png"))),
        PartEnded(1),
        PartBegan(2, Image(Media("image/jpeg", long))),
        PartEnded(2),
    ]
    encoder = CODEC.encoder(CHAT)
    sent = encoder.write(events) + encoder.end()
    names = [name for name, _ in DIALECT.events(sent)]
    assert names[:3] == [b"contentBlockStart", b"contentBlockDelta", b"contentBlockStop"]
    assert names.count(b"contentBlockDelta") == 1 + 4
    again, _ = decoded(DIALECT.events(sent))
    assert folded(again).parts == [Image(Media("image/png", "YWI=")), Image(Media("image/jpeg", long))]


def test_the_form_of_what_is_written() -> None:
    encoder = CODEC.encoder(CHAT)
    events: list[Event] = [
        Began("id", "model"),
        Used(Usage(1, 0)),
        PartBegan(0, Opaque("messages", "server_tool_use", msgspec.Raw(b"{}"))),
        PartEnded(0),
        PartBegan(1, Text("")),
        PartEnded(1),
        PartBegan(2, Text("a")),
        TextDelta(2, "b"),
        TextDelta(2, "other", 1),
        PartBegan(3, Thinking("h", "s")),
        PartBegan(4, Thinking(sealed="gA-_")),
        PartEnded(4),
        PartBegan(5, ToolCall("c", "f", "{}", "sig")),
        SignatureDelta(5, "sig"),
        PartEnded(5),
        PartBegan(6, Refusal("")),
        RefusalDelta(6, "No."),
        Used(Usage(1, 2, cache_write=3, cache_write_1h=3)),
        Ended("stop_sequence", "END"),
    ]
    sent = encoder.write(events) + encoder.end()
    said = [(parse(m).headers[":event-type"], msgspec.json.decode(parse(m).payload)) for m in split(sent)]
    assert said == [
        ("messageStart", {"role": "assistant"}),
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "a"}}),
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "b"}}),
        ("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"reasoningContent": {"text": "h"}}}),
        ("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"reasoningContent": {"signature": "s"}}}),
        ("contentBlockStart", {"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "c", "name": "f"}}}),
        ("contentBlockDelta", {"contentBlockIndex": 2, "delta": {"toolUse": {"input": "{}"}}}),
        ("contentBlockStop", {"contentBlockIndex": 2}),
        ("contentBlockDelta", {"contentBlockIndex": 3, "delta": {"text": "No."}}),
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("contentBlockStop", {"contentBlockIndex": 1}),
        ("contentBlockStop", {"contentBlockIndex": 3}),
        ("messageStop", {"stopReason": "stop_sequence", "additionalModelResponseFields": {"stop_sequence": "END"}}),
        (
            "metadata",
            {
                "usage": {
                    "inputTokens": 1,
                    "outputTokens": 2,
                    "totalTokens": 6,
                    "cacheWriteInputTokens": 3,
                    "cacheDetails": [{"ttl": "1h", "inputTokens": 3}],
                },
                "metrics": {"latencyMs": 0},
            },
        ),
    ]
    assert all(parse(m).headers[":message-type"] == "event" for m in split(sent))


def test_a_stream_without_its_end() -> None:
    at = [name for name, _ in STREAM].index(b"messageStop")
    _, decoder = decoded(STREAM[:at])
    assert (decoder.stopped, decoder.finished) == (False, False)
    _, decoder = decoded(STREAM[: at + 1])
    assert (decoder.stopped, decoder.finished) == (True, False)


def test_blocks_without_their_stops_end_with_the_message() -> None:
    events, _ = decoded([delta(0, {"text": "a"}), delta(1, {"text": "b"}), event("messageStop", {})])
    assert events[-3:] == [PartEnded(0), PartEnded(1), Ended("stop", None, "end_turn")]


def test_a_block_that_changes_its_kind_is_two() -> None:
    events, _ = decoded(
        [
            delta(0, {"reasoningContent": {"text": "h"}}),
            delta(0, {"reasoningContent": {"redactedContent": "AAAA"}}),
            delta(0, {"text": "a"}),
            delta(0, {"toolUse": {"input": "{}"}}),
            event("contentBlockStop", {"contentBlockIndex": 0}),
            event("contentBlockStop", {"contentBlockIndex": 0}),
        ]
    )
    parts: list[Part] = [Thinking("h"), Thinking(sealed="AAAA"), Text("a")]
    assert folded(events).parts == parts
    assert [e.part for e in events if isinstance(e, PartEnded)] == [0, 1, 2]


def test_bytes_in_pieces() -> None:
    events, _ = decoded(
        [
            event("contentBlockStart", {"contentBlockIndex": 0, "start": {"image": {"format": "png"}}}),
            delta(0, {"image": {"source": {"bytes": "YQ=="}}}),
            delta(0, {"image": {"source": {"bytes": "Yg=="}}}),
            event("contentBlockStop", {"contentBlockIndex": 0}),
        ]
    )
    assert events == [PartBegan(0, Image(Media("image/png", "YWI="))), PartEnded(0)]
    with pytest.raises(Failure, match="base64"):
        decoded([*(delta(0, {"reasoningContent": {"redactedContent": "!"}}) for _ in "ab"), event("messageStop", {})])


def test_the_stop_sequence() -> None:
    told = {"stopReason": "stop_sequence", "additionalModelResponseFields": {"stop_sequence": "END"}}
    assert decoded([event("messageStop", told)])[0] == [Ended("stop_sequence", "END", "stop_sequence")]
    odd = {"stopReason": "stop_sequence", "additionalModelResponseFields": ["END"]}
    assert decoded([event("messageStop", odd)])[0] == [Ended("stop_sequence", None, "stop_sequence")]


@pytest.mark.parametrize(
    ("name", "status", "retry"),
    [
        ("internalServerException", 502, True),
        ("modelStreamErrorException", 502, True),
        ("validationException", 400, False),
        ("throttlingException", 429, True),
        ("serviceUnavailableException", 503, True),
        ("modelTimeoutException", 504, True),
        ("exceptionOfTomorrowException", 502, True),
    ],
)
def test_exceptions(name: str, status: int, retry: bool) -> None:
    data = b'{"message":"too bad","originalStatusCode":418,"originalMessage":"teapot"}'
    raw = frame(name.encode(), data, kind=b"exception")
    ((found, payload),) = DIALECT.events(raw)
    with pytest.raises(StreamFailure) as caught:
        CODEC.decoder().read(found, payload)
    failure = caught.value
    assert (failure.status, failure.retry, failure.words) == (status, retry, raw)
    assert failure.detail == f"{name}: too bad (the model: 418 teapot)"
    assert "too bad" not in failure.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_any_event_is_read_or_refused(data: st.DataObject) -> None:
    decoder = CODEC.decoder()
    for name, payload in STREAM:
        value = msgspec.json.decode(payload)
        holder = value
        while isinstance(holder, dict) and holder:
            key = data.draw(st.sampled_from(sorted(holder)))
            if not isinstance(holder[key], dict) or not data.draw(st.booleans()):
                if data.draw(st.integers(0, 3)) == 0:
                    holder[key] = data.draw(json_values)
                break
            holder = holder[key]
        try:
            CODEC.encoder(CHAT).write(decoder.read(name, msgspec.json.encode(value)))
        except Failure as failure:
            if failure.status != 502:
                raise
            return


@pytest.mark.parametrize(
    "data", [b"", b"x", b"[]", b'{"delta":{"text":"\xff"}}', b'{"delta":{"text":"\\ud800"}}', b"{" * 9]
)
@pytest.mark.parametrize("name", sorted({name for name, _ in STREAM} - {b"somethingNew", b"messageStart"}))
def test_events_that_are_none(name: bytes, data: bytes) -> None:
    if name != b"contentBlockDelta" and data.startswith(b'{"delta'):
        return
    with pytest.raises(Failure) as caught:
        CODEC.decoder().read(name, data)
    assert caught.value.status == 502
