"""OpenAI chat completions: how a stream is written, event by event."""

from typing import Any

import msgspec
from tests.strategies.forms import raw

from tollhouse.core.call import Usage
from tollhouse.wire.llm.codec.openai_chat import OpenAIChatCodec
from tollhouse.wire.llm.model import (
    ArgumentsDelta,
    Began,
    Chat,
    Citation,
    CitationDelta,
    Ended,
    Event,
    LogprobsDelta,
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

CODEC = OpenAIChatCodec()
LOGPROBS = [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}]
HEAD = {"id": "i", "created": 5, "model": "m"}
DONE = "[DONE]"


def wrote(*batches: list[Event], usage: bool = True) -> list[Any]:
    """The data of what is written: parsed, and with the head taken off."""
    encoder = CODEC.encoder(Chat("chat", "m", [], stream=True, include_usage=usage))
    out = b"".join(encoder.write(events) for events in batches) + encoder.end()
    found = []
    for block in split(out):
        name, data = parse(block)
        assert name == b""
        if data == b"[DONE]":
            found.append(DONE)
            continue
        one = msgspec.json.decode(data)
        assert one.pop("object") == "chat.completion.chunk"
        found.append(one)
    return found


def said(delta: dict[str, Any], finish: str | None = None, index: int = 0, logprobs: Any = None) -> dict[str, Any]:
    return {**HEAD, "choices": [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]}


def test_every_event_is_written() -> None:
    cited = Citation("url", None, "u")
    found = wrote(
        [Began("i", "m", 5)],
        [PartBegan(0, Thinking()), ThinkingDelta(0, "2+"), ThinkingDelta(0, "2"), SignatureDelta(0, "s"), PartEnded(0)],
        [PartBegan(1, Thinking(sealed="e")), PartEnded(1)],
        [PartBegan(2, Thinking("bare")), PartEnded(2)],
        [PartBegan(3, Text("I ")), TextDelta(3, "look"), PartEnded(3)],
        [PartBegan(4, Text("")), TextDelta(4, "."), LogprobsDelta(4, raw(LOGPROBS)), CitationDelta(4, cited)],
        [CitationDelta(4, Citation("char")), LogprobsDelta(4, raw([])), PartEnded(4)],
        [PartBegan(5, ToolCall("a", "f", "")), ArgumentsDelta(5, "{"), ArgumentsDelta(5, "}"), PartEnded(5)],
        [PartBegan(6, ToolCall("b", "g", "{}", "s")), SignatureDelta(6, "t"), PartEnded(6)],
        [PartBegan(7, Refusal("N")), RefusalDelta(7, "o"), PartEnded(7)],
        [PartBegan(8, Opaque("messages", "server_tool_use", raw({}))), ArgumentsDelta(8, "{}"), PartEnded(8)],
        [Used(Usage(4, 2)), Ended("tool_calls")],
    )
    assert found == [
        said({"role": "assistant", "reasoning_content": "2+"}),
        said({"reasoning_content": "2"}),
        said({"reasoning_details": [{"type": "reasoning.text", "text": "2+2", "signature": "s", "index": 0}]}),
        said({"reasoning_details": [{"type": "reasoning.encrypted", "data": "e", "index": 1}]}),
        said({"reasoning_content": "bare"}),
        said({"content": "I "}),
        said({"content": "look"}),
        said({"content": "."}, logprobs={"content": LOGPROBS, "refusal": None}),
        said({}, logprobs={"content": [], "refusal": None}),
        said(
            {
                "annotations": [
                    {
                        "index": 0,
                        "type": "url_citation",
                        "url_citation": {"url": "u", "title": "", "start_index": 6, "end_index": 7},
                    }
                ]
            }
        ),
        said({"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
        said({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}),
        said({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}),
        said(
            {
                "tool_calls": [
                    {
                        "index": 1,
                        "id": "b",
                        "type": "function",
                        "function": {"name": "g", "arguments": "{}"},
                        "extra_content": {"google": {"thought_signature": "s"}},
                    }
                ]
            }
        ),
        said({"tool_calls": [{"index": 1, "extra_content": {"google": {"thought_signature": "t"}}}]}),
        said({"refusal": "N"}),
        said({"refusal": "o"}),
        said({}, "tool_calls"),
        {
            **HEAD,
            "choices": [],
            "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6},
        },
        DONE,
    ]


def test_a_call_without_arguments_has_an_object_of_none() -> None:
    found = wrote(
        [Began("i", "m", 5), PartBegan(0, ToolCall("a", "f", "")), PartEnded(0)],
        [PartBegan(1, ToolCall("b", "g", "")), ArgumentsDelta(1, "{"), ArgumentsDelta(1, "}"), PartEnded(1)],
        [Ended("tool_calls")],
    )
    told = [c["delta"]["tool_calls"][0] for one in found[:-1] for c in one["choices"] if "tool_calls" in c["delta"]]
    assert [(call["index"], call["function"]["arguments"]) for call in told] == [
        (0, ""),
        (0, "{}"),
        (1, ""),
        (1, "{"),
        (1, "}"),
    ]


def test_usage_is_told_to_who_asked() -> None:
    assert wrote([Began("i", "m", 5), Used(Usage(1, 1)), Ended()], usage=False) == [
        said({"role": "assistant", "content": ""}, "stop"),
        DONE,
    ]


def test_choices_are_written_apart() -> None:
    found = wrote(
        [Began("i", "m", 5), PartBegan(0, Text(""), 1), TextDelta(0, "a", 1)],
        [PartBegan(0, Text("")), TextDelta(0, "b"), Ended(choice=1), Ended(choice=0)],
    )
    assert found[:2] == [
        said({"role": "assistant", "content": "a"}, index=1),
        said({"role": "assistant", "content": "b"}),
    ]
    assert [one["choices"][0]["index"] for one in found[2:4]] == [1, 0]
