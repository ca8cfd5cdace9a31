"""Gemini's answers and the neutral model: whole ones both ways, why they ended, what they cite, and wrong ones."""

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
from tollhouse.wire.llm.model import (
    Answer,
    Audio,
    Chat,
    Choice,
    Citation,
    Document,
    Image,
    Media,
    Opaque,
    Part,
    Refusal,
    Stop,
    Text,
    Thinking,
    ToolCall,
)

CODEC = GeminiCodec()
CHAT = Chat("generate", "m", [])

GROUNDING = {
    "webSearchQueries": ["rain"],
    "groundingChunks": [
        {"web": {"uri": "https://a.test/", "title": "A"}},
        {"retrievedContext": {"uri": "https://b.test/", "title": "B"}},
        {"image": {}},
    ],
    "groundingSupports": [
        {
            "segment": {"startIndex": 5, "endIndex": 14, "text": "regnet es"},
            "groundingChunkIndices": [0, 1, 9, -1, "x"],
        },
        {"groundingChunkIndices": [0]},
        {"segment": {"partIndex": 1, "endIndex": 4}, "groundingChunkIndices": [1]},
    ],
}
ANSWER: dict[str, Any] = {
    "candidates": [
        {
            "content": {
                "role": "model",
                "parts": [
                    {"text": "Hm.", "thought": True},
                    {"text": "H\u00fct regnet es.", "thoughtSignature": "c2ln"},
                    {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
                    {"functionCall": {"id": "c1", "name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"},
                    {"executableCode": {"language": "PYTHON", "code": "1"}},
                ],
            },
            "finishReason": "STOP",
            "index": 0,
            "safetyRatings": [{"category": "X", "probability": "LOW"}],
            "groundingMetadata": GROUNDING,
            "citationMetadata": {"citations": [{"startIndex": 0, "endIndex": 4, "uri": "https://c.test/"}]},
            "avgLogprobs": -0.1,
        },
        {"content": {"role": "model", "parts": [{"text": "cut"}]}, "finishReason": "MAX_TOKENS", "index": 1},
    ],
    "usageMetadata": {
        "promptTokenCount": 10,
        "cachedContentTokenCount": 4,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 7,
        "totalTokenCount": 37,
    },
    "modelVersion": "gemini-2.5-flash",
    "responseId": "r1",
    "createTime": "2026-01-01T00:00:00Z",
}


def test_an_answer_both_ways() -> None:
    answer = CODEC.decode_answer(msgspec.json.encode(ANSWER))
    first, second = answer.choices
    cited = [
        Citation("url", "A", "https://a.test/", quote="regnet es", begin=4, end=13),
        Citation("url", "B", "https://b.test/", quote="regnet es", begin=4, end=13),
        Citation("url", "B", "https://b.test/", begin=0, end=3),
        Citation("url", None, "https://c.test/", begin=0, end=3),
    ]
    parts: list[Part] = [
        Thinking("Hm."),
        Text("H\u00fct regnet es.", citations=cited, extra={"thoughtSignature": raw("c2ln")}),
        Image(Media("image/png", "AAAA")),
        ToolCall("c1", "f", '{"a":1}', "c2ln"),
        Opaque("generate", "executableCode", raw({"executableCode": {"language": "PYTHON", "code": "1"}})),
    ]
    assert plain(first.parts) == plain(parts)
    assert (first.stop, first.detail) == ("tool_calls", "STOP")
    assert (second.stop, second.detail) == ("length", "MAX_TOKENS")
    assert answer.usage == Usage(6, 27, 4, 0, 7)
    assert (answer.id, answer.model) == ("r1", "gemini-2.5-flash")
    assert set(answer.extra or {}) == {"createTime"}
    assert msgspec.json.decode(CODEC.encode_answer(answer, CHAT)) == ANSWER


@pytest.mark.parametrize(
    ("reason", "stop", "calls"),
    [
        ("STOP", "stop", "tool_calls"),
        ("FINISH_REASON_UNSPECIFIED", "stop", "tool_calls"),
        ("MAX_TOKENS", "length", "length"),
        ("CONTINUATION", "pause", "pause"),
        ("SAFETY", "content_filter", "content_filter"),
        ("RECITATION", "content_filter", "content_filter"),
        ("MODEL_ARMOR", "content_filter", "content_filter"),
        ("MALFORMED_FUNCTION_CALL", "error", "error"),
        ("OTHER", "error", "error"),
        ("something new", "content_filter", "content_filter"),
    ],
)
def test_why_it_ended(reason: str, stop: Stop, calls: Stop) -> None:
    for part, expected in (({"text": "a"}, stop), ({"functionCall": {"name": "f"}}, calls)):
        body = {"candidates": [{"content": {"parts": [part]}, "finishReason": reason}]}
        (choice,) = CODEC.decode_answer(msgspec.json.encode(body)).choices
        assert (choice.stop, choice.detail) == (expected, reason)


def test_calls_without_an_id_get_one() -> None:
    calls = [{"functionCall": {"name": "f"}}, {"functionCall": {"name": "f", "id": "own"}}]
    body = {"responseId": "r", "candidates": [{"content": {"parts": calls}}] * 2}
    answer = CODEC.decode_answer(msgspec.json.encode(body))
    ids = [p.id for c in answer.choices for p in c.parts if isinstance(p, ToolCall)]
    assert ids == ["call_r_0_0", "own", "call_r_1_0", "own"]


def test_a_prompt_that_was_blocked() -> None:
    body = {"promptFeedback": {"blockReason": "SAFETY", "safetyRatings": []}, "usageMetadata": {"promptTokenCount": 3}}
    answer = CODEC.decode_answer(msgspec.json.encode(body))
    assert plain(answer.choices) == plain([Choice([], "content_filter", detail="SAFETY")])
    assert answer.usage == Usage(3)
    told = msgspec.json.decode(CODECS["chat"].encode_answer(answer, Chat("chat", "m", [])))
    assert told["choices"][0]["finish_reason"] == "content_filter"


def test_log_probs() -> None:
    result = {
        "chosenCandidates": [{"token": "H\u00e9", "logProbability": -0.5}, {"token": "!"}],
        "topCandidates": [{"candidates": [{"token": "H\u00e9", "logProbability": -0.5}, {"token": "A"}]}],
    }
    body = {"candidates": [{"content": {"parts": [{"text": "H\u00e9!"}]}, "logprobsResult": result}]}
    (choice,) = CODEC.decode_answer(msgspec.json.encode(body)).choices
    assert plain(choice.logprobs) == [
        {
            "token": "H\u00e9",
            "logprob": -0.5,
            "bytes": [72, 195, 169],
            "top_logprobs": [
                {"token": "H\u00e9", "logprob": -0.5, "bytes": [72, 195, 169]},
                {"token": "A", "logprob": 0.0, "bytes": [65]},
            ],
        },
        {"token": "!", "logprob": 0.0, "bytes": [33], "top_logprobs": []},
    ]
    told = msgspec.json.decode(CODEC.encode_answer(Answer("chat", "", "", [choice]), CHAT))
    assert told["candidates"][0]["logprobsResult"] == {
        "chosenCandidates": [{"token": "H\u00e9", "logProbability": -0.5}, {"token": "!", "logProbability": 0.0}],
        "topCandidates": [
            {"candidates": [{"token": "H\u00e9", "logProbability": -0.5}, {"token": "A", "logProbability": 0.0}]},
            {"candidates": []},
        ],
    }


def test_an_answer_of_others() -> None:
    parts: list[Part] = [
        Thinking("Hm.", "sig"),
        Thinking(sealed="c2VhbGVk"),
        Text("\u00e9\u00e9"),
        Text("It r\u00e4ins.", citations=[Citation("url", "W", "https://x/", begin=0, end=6), Citation("char")]),
        Refusal("No."),
        Opaque("messages", "server_tool_use", raw({})),
        ToolCall("c", "f", ""),
        Image(Media("image/png", "AAAA")),
        Image(Media("image/png", url="https://x.test/a.png")),
        Audio(Media("audio/wav", "AAAA")),
        Document(Media(file="f1")),
    ]
    answer = Answer("chat", "id", "gpt", [Choice(parts, "refusal")], 5, Usage(6, 27, 4, 0, 7), {"x": raw(1)})
    assert msgspec.json.decode(CODEC.encode_answer(answer, CHAT)) == {
        "candidates": [
            {
                "content": {
                    "role": "model",
                    "parts": [
                        {"text": "Hm.", "thought": True, "thoughtSignature": "c2lnbmF0dXJlOnNpZw=="},
                        {"text": "", "thought": True, "thoughtSignature": "c2VhbGVkOmMyVmhiR1Zr"},
                        {"text": "\u00e9\u00e9"},
                        {"text": "It r\u00e4ins."},
                        {"text": "No."},
                        {"functionCall": {"id": "c", "name": "f", "args": {}}},
                        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
                        {"fileData": {"mimeType": "image/png", "fileUri": "https://x.test/a.png"}},
                        {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}},
                    ],
                },
                "finishReason": "SAFETY",
                "index": 0,
                "citationMetadata": {
                    "citations": [{"uri": "https://x/", "title": "W", "startIndex": 4, "endIndex": 11}]
                },
            }
        ],
        "usageMetadata": ANSWER["usageMetadata"],
        "modelVersion": "gpt",
        "responseId": "id",
    }


def test_a_call_that_was_cut() -> None:
    call = ToolCall("c", "f", '{"a":')
    told = CODEC.encode_answer(Answer("chat", "", "", [Choice([call], "length")]), CHAT)
    assert msgspec.json.decode(told)["candidates"][0]["content"]["parts"][0]["functionCall"]["args"] == {}
    with pytest.raises(Failure) as caught:
        CODEC.encode_answer(Answer("chat", "", "", [Choice([call])]), CHAT)
    assert caught.value.status == 502


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"candidates":[]}',
        b'{"candidates":[{"content":{"parts":' + b"[" * 100_000,
        b'{"candidates":[{"content":{"parts":[{"text":"\\ud800"}]}}]}',
        b'{"candidates":[{"content":{"parts":[{"text":"\xff"}]}}]}',
        b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{"a":"\xff"}}}]}}]}',
        b'{"candidates":NaN}',
    ],
)
def test_answers_that_are_none(body: bytes) -> None:
    with pytest.raises(Failure) as caught:
        CODEC.decode_answer(body)
    assert caught.value.status == 502


@settings(max_examples=300)
@given(st.data())
def test_any_answer_is_read_or_refused(data: st.DataObject) -> None:
    body = changed(ANSWER, data.draw(st.sampled_from(list(places(ANSWER)))), data.draw(WRONG))
    try:
        answer = CODEC.decode_answer(wire(body))
        for name, codec in CODECS.items():
            if codec.kind == "chat":
                codec.encode_answer(answer, Chat(name, "m", []))
    except Failure as failure:
        if failure.status != 502:
            raise
