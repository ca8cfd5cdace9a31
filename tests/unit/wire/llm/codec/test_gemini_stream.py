"""Gemini's stream and the neutral model: event by event, folded, cut, failed, and wrong."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies.forms import WRONG, changed, places, plain, raw
from tests.strategies.forms import written as wire

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import CODECS
from tollhouse.wire.llm.codec.gemini import GeminiCodec
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.llm.fold import fold, unfold
from tollhouse.wire.llm.model import (
    Answer,
    ArgumentsDelta,
    Began,
    Chat,
    Choice,
    Citation,
    CitationDelta,
    Ended,
    Event,
    Image,
    LogprobsDelta,
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
from tollhouse.wire.sse import parse, split

CODEC = GeminiCodec()
CHAT = Chat("generate", "m", [], stream=True)


def piece(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An event with these parts of one candidate."""
    top = {name: more.pop(name) for name in ("usageMetadata",) if name in more}
    candidate = {"content": {"role": "model", "parts": list(parts)}, "index": 0, **more}
    return {"candidates": [candidate], **top, "modelVersion": "gemini-x", "responseId": "r1"}


def read(*bodies: Any) -> list[Event]:
    decoder = CODEC.decoder()
    return [event for body in bodies for event in decoder.read(b"", msgspec.json.encode(body))]


def write(*blocks: list[Event]) -> list[dict[str, Any]]:
    encoder = CODEC.encoder(CHAT)
    stream = b"".join([*(encoder.write(block) for block in blocks), encoder.end()])
    return [msgspec.json.decode(parse(event)[1]) for event in split(stream)]


USAGE = {"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 3, "totalTokenCount": 10}
EVENTS = (
    piece({"text": "Hm", "thought": True}, usageMetadata={"promptTokenCount": 5}),
    piece({"text": ".", "thought": True}, {"text": "Let me "}),
    piece({"text": "see."}),
    piece({"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"}),
    piece({"functionCall": {"name": "g", "args": {}, "id": "own"}}),
    piece({"text": "So", "thoughtSignature": "c2lnMg=="}),
    piece({"text": "", "thoughtSignature": "c2lnMw=="}, finishReason="STOP", usageMetadata=USAGE),
)
READ: list[Event] = [
    Began("r1", "gemini-x"),
    PartBegan(0, Thinking()),
    ThinkingDelta(0, "Hm"),
    Used(Usage(5)),
    ThinkingDelta(0, "."),
    PartEnded(0),
    PartBegan(1, Text("")),
    TextDelta(1, "Let me "),
    TextDelta(1, "see."),
    PartEnded(1),
    PartBegan(2, ToolCall("call_r1_0_0", "f", "", "c2ln")),
    ArgumentsDelta(2, '{"a":1}'),
    PartEnded(2),
    PartBegan(3, ToolCall("own", "g", "")),
    ArgumentsDelta(3, "{}"),
    PartEnded(3),
    PartBegan(4, Text("")),
    TextDelta(4, "So"),
    SignatureDelta(4, "c2lnMg=="),
    SignatureDelta(4, "c2lnMw=="),
    PartEnded(4),
    Ended("tool_calls", None, "STOP"),
    Used(Usage(5, 5, reasoning=3)),
]


def test_event_by_event() -> None:
    assert read(*EVENTS) == READ
    decoder = CODEC.decoder()
    for n, body in enumerate(EVENTS):
        decoder.read(b"", msgspec.json.encode(body))
        assert decoder.finished == (n + 1 == len(EVENTS))


def test_a_stream_folded_is_the_answer() -> None:
    parts: list[dict[str, Any]] = [
        {"text": "Hm.", "thought": True, "thoughtSignature": "c2ln"},
        {"text": "H\u00e9 ho."},
        {"functionCall": {"name": "f", "args": {"a": [1]}}, "thoughtSignature": "c2ln"},
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"executableCode": {"code": "1", "language": "PYTHON"}},
    ]
    grounding = {
        "groundingChunks": [{"web": {"uri": "https://a.test/", "title": "A"}}],
        "groundingSupports": [{"segment": {"startIndex": 4, "endIndex": 6}, "groundingChunkIndices": [0]}],
    }
    whole = CODEC.decode_answer(
        msgspec.json.encode(piece(*parts, finishReason="STOP", usageMetadata=USAGE, groundingMetadata=grounding))
    )
    events = read(
        piece({"text": "Hm", "thought": True}),
        piece({"text": ".", "thought": True, "thoughtSignature": "c2ln"}),
        piece({"text": "H\u00e9 "}),
        piece({"text": "ho."}, groundingMetadata=grounding),
        piece(groundingMetadata=grounding),
        piece(*parts[2:], finishReason="STOP", usageMetadata=USAGE),
    )
    for choice in whole.choices:
        choice.extra = None
    assert plain(fold(events, "generate")) == plain(whole)


def test_several_candidates() -> None:
    def candidate(index: int, text: str, **more: Any) -> dict[str, Any]:
        return {"content": {"parts": [{"text": text}]}, "index": index, **more}

    bodies = (
        {"candidates": [candidate(0, "a"), candidate(1, "b")]},
        {"candidates": [candidate(1, "c", finishReason="MAX_TOKENS")]},
        {"candidates": [candidate(0, "d", finishReason="STOP")]},
    )
    decoder = CODEC.decoder()
    events: list[Event] = []
    for body in bodies:
        assert not decoder.finished
        events += decoder.read(b"", msgspec.json.encode(body))
    assert decoder.finished
    folded = fold(events, "generate")
    assert plain(folded.choices) == plain(
        [Choice([Text("ad")], "stop", detail="STOP"), Choice([Text("bc")], "length", detail="MAX_TOKENS")]
    )
    written = write(events)
    assert [c["candidates"][0]["index"] for c in written[:-1]] == [0, 1, 1, 0]
    assert [(c["index"], c["finishReason"]) for c in written[-1]["candidates"]] == [(0, "STOP"), (1, "MAX_TOKENS")]


def test_a_prompt_that_was_blocked() -> None:
    decoder = CODEC.decoder()
    body = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 2}}
    assert decoder.read(b"", msgspec.json.encode(body)) == [
        Began("", ""),
        Used(Usage(2)),
        Ended("content_filter", None, "SAFETY"),
    ]
    assert decoder.finished


def test_log_probs() -> None:
    result = {"chosenCandidates": [{"token": "a", "logProbability": -1.5}]}
    events = read(piece({"text": "a"}, logprobsResult=result), piece(logprobsResult={}, finishReason="STOP"))
    (told,) = [e for e in events if isinstance(e, LogprobsDelta)]
    assert plain(told.logprobs) == [{"token": "a", "logprob": -1.5, "bytes": [97], "top_logprobs": []}]
    form = {"chosenCandidates": [{"token": "a", "logProbability": -1.5}], "topCandidates": [{"candidates": []}]}
    together = write([TextDelta(0, "a"), told])
    assert together[0]["candidates"][0]["logprobsResult"] == form
    apart = write([TextDelta(0, "a")], [told])
    assert apart[1]["candidates"][0]["logprobsResult"] == form


def call(name: str | None = None, *pieces: dict[str, Any], more: bool | None = None, **fields: Any) -> dict[str, Any]:
    """A part with some of a call."""
    inner: dict[str, Any] = dict(fields)
    if name is not None:
        inner["name"] = name
    if pieces:
        inner["partialArgs"] = list(pieces)
    if more is not None:
        inner["willContinue"] = more
    return {"functionCall": inner}


def test_arguments_in_pieces() -> None:
    events = read(
        piece({**call("f", more=True, id="c1"), "thoughtSignature": "c2ln"}),
        piece(call(None, {"jsonPath": "$.city", "stringValue": "New ", "willContinue": True}, more=True)),
        piece(call(None, {"jsonPath": "$.city", "stringValue": "York", "willContinue": False}, more=True)),
        piece(
            call(
                None,
                {"jsonPath": "$.days[0].n", "numberValue": 3},
                {"jsonPath": "$.days[0].share", "numberValue": 0.5},
                {"jsonPath": "$['days'][1]['a b']", "boolValue": True},
                {"jsonPath": '$["it\'s"]', "nullValue": "NULL_VALUE"},
                more=True,
            )
        ),
        piece(call()),
        piece(call("g", {"jsonPath": "$.x", "stringValue": "1"}, args={"y": 2})),
        piece(call("h", more=True)),
        piece({"text": "a"}),
        piece(call(more=False)),
        piece({"text": "b"}, finishReason="STOP"),
    )
    (choice,) = fold(events, "generate").choices
    arguments = {"city": "New York", "days": [{"n": 3, "share": 0.5}, {"a b": True}], "it's": None}
    assert plain(choice.parts) == plain(
        [
            ToolCall("c1", "f", msgspec.json.encode(arguments).decode(), "c2ln"),
            ToolCall("call_r1_0_1", "g", '{"y":2,"x":"1"}'),
            ToolCall("call_r1_0_2", "h", "{}"),
            Text("ab"),
        ]
    )
    assert choice.stop == "tool_calls"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "$",
        "city",
        "$.",
        "$..a",
        "$[*]",
        "$.a[1]",
        "$.list[2]",
        "$[0]",
        "$.a.b.c[9999999]",
        "$" + ".a" * 65,
        "$.s.t",
    ],
)
def test_places_of_arguments_that_cannot_be(path: str) -> None:
    pieces: list[dict[str, Any]] = [
        {"jsonPath": "$.list[0]", "stringValue": "x"},
        {"jsonPath": "$.s", "stringValue": "x"},
        {"jsonPath": path, "boolValue": True},
    ]
    with pytest.raises(Failure) as caught:
        read(piece(call("f", *pieces)))
    assert caught.value.status == 502


def test_an_error_in_the_stream() -> None:
    body = {"error": {"code": 429, "message": "Quota.", "status": "RESOURCE_EXHAUSTED"}}
    with pytest.raises(StreamFailure) as caught:
        read(EVENTS[0], body)
    assert (caught.value.status, caught.value.detail) == (429, "RESOURCE_EXHAUSTED: Quota.")
    assert caught.value.words == b"data: %b\n\n" % msgspec.json.encode(body)
    with pytest.raises(StreamFailure) as caught:
        read({"error": {"code": 500}})
    assert caught.value.status == 502


def test_what_is_written_is_read_again() -> None:
    parts: list[Part] = [
        Thinking("Hm.", "c2ln"),
        Text("H\u00e9."),
        ToolCall("c1", "f", '{"a":1}', "c2ln"),
        ToolCall("c2", "g", "{}"),
        Image(Media("image/png", "AAAA")),
        Opaque("generate", "executableCode", raw({"executableCode": {"code": "1"}})),
    ]
    answer = Answer("generate", "r", "m", [Choice(parts, "tool_calls", detail="STOP")], usage=Usage(4, 5, 1, 0, 2))
    bodies = write(*([event] for event in unfold(answer)))
    parts[0] = Thinking("Hm.", "c2lnbmF0dXJlOmMybG4=")  # another provider's, in base64
    assert plain(fold(read(*bodies), "generate")) == plain(answer)
    assert all(body["responseId"] == "r" and body["modelVersion"] == "m" for body in bodies)
    assert bodies[-1]["candidates"] == [
        {"content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": "STOP", "index": 0}
    ]


def test_a_stream_of_others() -> None:
    bodies = write(
        [Began("c1", "gpt", 5), PartBegan(0, Refusal("")), RefusalDelta(0, "No.")],
        [PartEnded(0), PartBegan(1, Text("\u00e9")), TextDelta(1, "a")],
        [PartEnded(1), PartBegan(2, Text("")), TextDelta(2, "\u00e9b")],
        [CitationDelta(2, Citation("url", "T", "https://x/", begin=1, end=2)), CitationDelta(2, Citation("char"))],
        [PartEnded(2), PartBegan(3, Opaque("messages", "x", raw({}))), PartEnded(3)],
        [PartBegan(4, ToolCall("t", "f", '{"a"')), ArgumentsDelta(4, ":1}"), SignatureDelta(4, "c2ln"), PartEnded(4)],
        [Used(Usage(1, 2)), Ended("content_filter")],
    )
    parts = [p for body in bodies for c in body["candidates"] for p in c["content"]["parts"]]
    assert parts == [
        {"text": "No."},
        {"text": "\u00e9"},
        {"text": "a"},
        {"text": "\u00e9b"},
        {"text": ""},
        {"functionCall": {"id": "t", "name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"},
        {"text": ""},
    ]
    (cited,) = [b["candidates"][0]["citationMetadata"] for b in bodies if "citationMetadata" in b["candidates"][0]]
    assert cited == {"citations": [{"uri": "https://x/", "title": "T", "startIndex": 5, "endIndex": 6}]}
    assert bodies[-1] == {
        "candidates": [
            {
                "content": {"role": "model", "parts": [{"text": ""}]},
                "finishReason": "SAFETY",
                "index": 0,
            }
        ],
        "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 2, "totalTokenCount": 3},
        "modelVersion": "gpt",
        "responseId": "c1",
    }


def test_a_call_that_was_cut() -> None:
    begun: list[Event] = [PartBegan(0, ToolCall("t", "f", "")), ArgumentsDelta(0, '{"a":'), PartEnded(0)]
    bodies = write([*begun, Ended("length")])
    assert bodies[0]["candidates"][0]["content"]["parts"] == [{"functionCall": {"id": "t", "name": "f", "args": {}}}]
    assert bodies[1]["candidates"][0]["finishReason"] == "MAX_TOKENS"
    with pytest.raises(Failure) as caught:
        write([*begun, Ended("tool_calls")])
    assert caught.value.status == 502


def test_a_stream_that_is_cut_is_not_finished() -> None:
    decoder = CODEC.decoder()
    for body in EVENTS[:-1]:
        decoder.read(b"", msgspec.json.encode(body))
        assert not decoder.finished


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[DONE]",
        b"[]",
        b"{",
        b'{"candidates":{}}',
        b'{"candidates":[{"index":"x"}]}',
        b'{"candidates":[{"content":{"parts":[1]}}]}',
        b'{"candidates":[{"content":{"parts":[{"text":"\\ud800"}]}}]}',
        b'{"candidates":[{"content":{"parts":[{"text":"\xff"}]}}]}',
        b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":[]}}]}}]}',
        b'{"candidates":[{"content":{"parts":' + b"[" * 100_000,
    ],
)
def test_events_that_are_none(data: bytes) -> None:
    with pytest.raises(Failure) as caught:
        CODEC.decoder().read(b"", data)
    assert caught.value.status == 502


WILD = (
    *EVENTS,
    piece(
        call("f", {"jsonPath": "$.a", "stringValue": "x"}, {"jsonPath": "$.b[0]", "numberValue": 1}, more=True),
        {"text": "a", "partMetadata": {}},
        citationMetadata={"citations": [{"uri": "https://x/", "startIndex": 1}]},
        logprobsResult={"chosenCandidates": [{"token": "a"}], "topCandidates": [{"candidates": [{"token": "b"}]}]},
        groundingMetadata={
            "groundingChunks": [{"web": {"uri": "https://a.test/"}}],
            "groundingSupports": [{"segment": {"endIndex": 1}, "groundingChunkIndices": [0]}],
        },
    ),
    {"error": {"code": 429, "message": "x", "status": "y"}},
)


@settings(max_examples=300)
@given(st.data())
def test_any_event_is_read_or_refused(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(WILD))
    body = changed(body, data.draw(st.sampled_from(list(places(body)))), data.draw(WRONG))
    decoder = CODEC.decoder()
    chats = {name: codec for name, codec in CODECS.items() if codec.kind == "chat"}
    encoders = [codec.encoder(Chat(name, "m", [], stream=True)) for name, codec in chats.items()]
    try:
        for event in (msgspec.json.encode(EVENTS[2]), wire(body), msgspec.json.encode(EVENTS[-1])):
            events = decoder.read(b"", event)
            for encoder in encoders:
                encoder.write(events)
        for encoder in encoders:
            encoder.end()
    except Failure as failure:
        if failure.status not in (429, 502, 503, 504):
            raise
