"""Bedrock Converse and the neutral model: every shape both ways, what is lost, answers, and wrong input."""

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies.forms import raw

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.anthropic import AnthropicCodec
from tollhouse.wire.llm.codec.converse import ConverseCodec
from tollhouse.wire.llm.codec.openai_chat import OpenAIChatCodec
from tollhouse.wire.llm.model import (
    Answer,
    Audio,
    Cache,
    Chat,
    Choice,
    Citation,
    Document,
    Format,
    Image,
    Json,
    Media,
    Message,
    Opaque,
    OpaqueTool,
    Part,
    Reasoning,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)

Raw = msgspec.Raw

CODEC = ConverseCodec()
CLAUDE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
NOVA = "us.amazon.nova-2-lite-v1:0"
LLAMA = "meta.llama3-1-70b-instruct-v1:0"
PROFILE = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abcdefghijkl"
ASKED: dict[str, Any] = {"role": "user", "content": [{"text": "Hi"}]}
HI = Message("user", [Text("Hi")])
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)


def fields(body: dict[str, Any]) -> dict[str, Raw]:
    return msgspec.json.decode(encoded(body), type=dict[str, Raw])


def plain(value: Any) -> Any:
    """Comparable, with raw JSON read."""
    return msgspec.json.decode(encoded(value))


def decoded(body: dict[str, Any]) -> Chat:
    return CODEC.decode(fields(body), model="m", stream=False)


def written(chat: Chat, model: str = CLAUDE) -> tuple[dict[str, Any], list[str]]:
    lost = Lost()
    body = CODEC.encode(chat, lost, model=model, max_output=4096)
    return plain(body), lost.places


def user(*parts: Part) -> dict[str, Any]:
    return {"messages": [Message("user", list(parts))]}


def of_user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def of_assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [ASKED, {"role": "assistant", "content": list(blocks)}]}


def assistant(*parts: Part) -> dict[str, Any]:
    return {"messages": [HI, Message("assistant", list(parts))]}


S3 = {"s3Location": {"uri": "s3://bucket/key.png", "bucketOwner": "123456789012"}}
SPEC = {"name": "weather", "description": "Tells it", "inputSchema": {"json": SCHEMA}}
TOOL = Tool("weather", "Tells it", raw(SCHEMA))
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({"messages": [ASKED]}, {"messages": [HI]}),
    "turns": (
        {"messages": [ASKED, {"role": "assistant", "content": [{"text": "Yes?"}]}, ASKED]},
        {"messages": [HI, Message("assistant", [Text("Yes?")]), HI]},
    ),
    "system": (
        {"system": [{"text": "Be brief."}, {"text": "Be kind."}], "messages": [ASKED]},
        {"messages": [Message("system", [Text("Be brief."), Text("Be kind.")]), HI]},
    ),
    "system with a marker": (
        {"system": [{"text": "Long."}, {"cachePoint": {"type": "default"}}], "messages": [ASKED]},
        {"messages": [Message("system", [Text("Long.", Cache())]), HI]},
    ),
    "system turn": (
        {"messages": [ASKED, {"role": "system", "content": [{"text": "Now in French."}]}]},
        {"messages": [HI, Message("system", [Text("Now in French.")])]},
    ),
    "picture": (
        of_user({"text": "What?"}, {"image": {"format": "png", "source": {"bytes": "iVBORw=="}}}),
        user(Text("What?"), Image(Media("image/png", "iVBORw=="))),
    ),
    "picture of an odd format": (
        of_user({"image": {"format": "bmp", "source": {"bytes": "AAAA"}}}),
        user(Image(Media("image/bmp", "AAAA"))),
    ),
    "picture in S3": (
        of_user({"image": {"format": "png", "source": S3}}),
        user(Opaque("converse", "image in S3", raw({"image": {"format": "png", "source": S3}}))),
    ),
    "document": (
        of_user(
            {"document": {"format": "pdf", "name": "report", "source": {"bytes": "JVBERg=="}}},
            {"text": "Sum it up."},
        ),
        user(Document(Media("application/pdf", "JVBERg=="), "report"), Text("Sum it up.")),
    ),
    "document as text, to be cited": (
        of_user(
            {
                "document": {
                    "format": "txt",
                    "name": "notes",
                    "source": {"text": "abc"},
                    "context": "minutes",
                    "citations": {"enabled": True},
                }
            }
        ),
        user(Document(Media("text/plain", text="abc"), "notes", "minutes", True)),
    ),
    "document without a format": (
        of_user({"document": {"name": "notes", "source": {"text": "abc"}}}),
        user(Document(Media(text="abc"), "notes")),
    ),
    "document of blocks": (
        of_user({"document": {"name": "n", "source": {"content": [{"text": "a"}]}}}),
        user(Opaque("converse", "document", raw({"document": {"name": "n", "source": {"content": [{"text": "a"}]}}}))),
    ),
    "video": (
        of_user({"video": {"format": "three_gp", "source": {"bytes": "AAAA"}}}),
        user(Document(Media("video/3gpp", "AAAA"))),
    ),
    "sound": (
        of_user({"audio": {"format": "mp3", "source": {"bytes": "AAAA"}}}),
        user(Audio(Media("audio/mpeg", "AAAA"))),
    ),
    "markers": (
        of_user(
            {"text": "a"},
            {"cachePoint": {"type": "default", "ttl": "1h"}},
            {"image": {"format": "png", "source": {"bytes": "AAAA"}}},
            {"cachePoint": {"type": "default"}},
            {"text": "b"},
        ),
        user(Text("a", Cache("1h")), Image(Media("image/png", "AAAA"), cache=Cache()), Text("b")),
    ),
    "marker with nothing before it": (
        of_user({"cachePoint": {"type": "default"}}, {"text": "b"}),
        user(Text("", Cache()), Text("b")),
    ),
    "marker of a kind to come": (
        of_user({"text": "b"}, {"cachePoint": {"type": "eternal"}}),
        user(Text("b"), Opaque("converse", "cachePoint", raw({"cachePoint": {"type": "eternal"}}))),
    ),
    "call": (
        of_assistant(
            {"text": "Let me see."}, {"toolUse": {"toolUseId": "t1", "name": "weather", "input": {"city": "Rome"}}}
        ),
        assistant(Text("Let me see."), ToolCall("t1", "weather", '{"city":"Rome"}')),
    ),
    "call of a provider's tool": (
        of_assistant({"toolUse": {"toolUseId": "t1", "name": "grounding", "input": {}, "type": "server_tool_use"}}),
        assistant(
            Opaque(
                "converse",
                "server_tool_use",
                raw({"toolUse": {"toolUseId": "t1", "name": "grounding", "input": {}, "type": "server_tool_use"}}),
            )
        ),
    ),
    "results": (
        of_user(
            {"toolResult": {"toolUseId": "t1", "content": [{"text": "21"}, {"json": {"c": 21}}], "status": "success"}},
            {"toolResult": {"toolUseId": "t2", "content": [{"text": "no"}], "status": "error"}},
            {"toolResult": {"toolUseId": "t3", "content": []}},
        ),
        user(
            ToolResult("t1", [Text("21"), Json(raw({"c": 21}))], error=False),
            ToolResult("t2", [Text("no")], error=True),
            ToolResult("t3", []),
        ),
    ),
    "result with media": (
        of_user(
            {
                "toolResult": {
                    "toolUseId": "t1",
                    "content": [
                        {"image": {"format": "jpeg", "source": {"bytes": "AAAA"}}},
                        {"document": {"format": "md", "name": "d", "source": {"bytes": "AAAA"}}},
                        {"searchResult": {"source": "u", "title": "t", "content": [{"text": "x"}]}},
                    ],
                }
            },
            {"cachePoint": {"type": "default"}},
        ),
        user(
            ToolResult(
                "t1",
                [
                    Image(Media("image/jpeg", "AAAA")),
                    Document(Media("text/markdown", "AAAA"), "d"),
                    Opaque(
                        "converse",
                        "searchResult",
                        raw({"searchResult": {"source": "u", "title": "t", "content": [{"text": "x"}]}}),
                    ),
                ],
                cache=Cache(),
            )
        ),
    ),
    "thoughts": (
        of_assistant(
            {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "c2ln"}}},
            {"reasoningContent": {"redactedContent": "c2VhbGVk"}},
            {"text": "So."},
        ),
        assistant(Thinking("Hm.", "c2ln"), Thinking(sealed="c2VhbGVk"), Text("So.")),
    ),
    "cited text": (
        of_assistant(
            {
                "citationsContent": {
                    "content": [{"text": "It rains."}],
                    "citations": [
                        {
                            "title": "Weather",
                            "sourceContent": [{"text": "rain"}],
                            "location": {"documentChar": {"documentIndex": 0, "start": 3, "end": 7}},
                        },
                        {"location": {"web": {"url": "https://example.com/a"}}},
                        {"location": {"documentPage": {"documentIndex": 1, "start": 2, "end": 3}}},
                        {"location": {"documentChunk": {"documentIndex": 1, "start": 2, "end": 3}}},
                        {
                            "source": "kb://1",
                            "location": {"searchResultLocation": {"searchResultIndex": 1, "start": 0, "end": 2}},
                        },
                        {"title": "T", "new": 1},
                    ],
                }
            }
        ),
        assistant(
            Text(
                "It rains.",
                citations=[
                    Citation("char", "Weather", None, 0, 3, 7, "rain"),
                    Citation("url", None, "https://example.com/a"),
                    Citation("page", None, None, 1, 2, 3),
                    Citation("block", None, None, 1, 2, 3),
                    Citation("search", None, "kb://1", 1, 0, 2),
                    Citation("search", "T", extra={"new": raw(1)}),
                ],
            )
        ),
    ),
    "guarded content": (
        of_user({"guardContent": {"text": {"text": "x", "qualifiers": ["query"]}}}),
        user(
            Opaque("converse", "guardContent", raw({"guardContent": {"text": {"text": "x", "qualifiers": ["query"]}}}))
        ),
    ),
    "search result": (
        of_user({"searchResult": {"source": "u", "title": "t", "content": [{"text": "x"}]}}),
        user(
            Opaque(
                "converse",
                "searchResult",
                raw({"searchResult": {"source": "u", "title": "t", "content": [{"text": "x"}]}}),
            )
        ),
    ),
    "tool added": (
        {"messages": [ASKED, {"role": "system", "content": [{"toolAddition": {"tool": {"name": "x"}}}]}]},
        {
            "messages": [
                HI,
                Message("system", [Opaque("converse", "toolAddition", raw({"toolAddition": {"tool": {"name": "x"}}}))]),
            ]
        },
    ),
    "inference": (
        {
            "messages": [ASKED],
            "inferenceConfig": {"maxTokens": 100, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"]},
        },
        {"messages": [HI], "max_output": 100, "temperature": 0.5, "top_p": 0.9, "stop": ["END"]},
    ),
    "tools": (
        {
            "messages": [ASKED],
            "toolConfig": {
                "tools": [
                    {"toolSpec": SPEC},
                    {"toolSpec": {**SPEC, "name": "other", "strict": True}},
                    {"cachePoint": {"type": "default", "ttl": "5m"}},
                    {"systemTool": {"name": "nova_grounding"}},
                ],
                "toolChoice": {"auto": {}},
            },
        },
        {
            "messages": [HI],
            "tools": [
                TOOL,
                Tool("other", "Tells it", raw(SCHEMA), True, Cache("5m")),
                OpaqueTool("converse", "systemTool", raw({"systemTool": {"name": "nova_grounding"}})),
            ],
            "tool_choice": ToolChoice("auto"),
        },
    ),
    "any tool": (
        {"messages": [ASKED], "toolConfig": {"tools": [{"toolSpec": SPEC}], "toolChoice": {"any": {}}}},
        {"messages": [HI], "tools": [TOOL], "tool_choice": ToolChoice("required")},
    ),
    "one tool": (
        {
            "messages": [ASKED],
            "toolConfig": {"tools": [{"toolSpec": SPEC}], "toolChoice": {"tool": {"name": "weather"}}},
        },
        {"messages": [HI], "tools": [TOOL], "tool_choice": ToolChoice("required", ("weather",))},
    ),
    "schema": (
        {
            "messages": [ASKED],
            "outputConfig": {
                "textFormat": {
                    "type": "json_schema",
                    "structure": {
                        "jsonSchema": {"schema": '{"type": "object"}', "name": "city", "description": "one of them"}
                    },
                }
            },
        },
        {
            "messages": [HI],
            "format": Format("schema", "city", Raw(b'{"type": "object"}'), description="one of them"),
        },
    ),
    "effort": (
        {"messages": [ASKED], "outputConfig": {"effort": "high"}},
        {"messages": [HI], "reasoning": Reasoning("high")},
    ),
    "thinking and top_k": (
        {
            "messages": [ASKED],
            "additionalModelRequestFields": {
                "top_k": 50,
                "thinking": {"type": "enabled", "budget_tokens": 2000},
                "anthropic_beta": ["x"],
            },
        },
        {
            "messages": [HI],
            "top_k": 50,
            "reasoning": Reasoning(budget=2000),
            "extra": {"additionalModelRequestFields": raw({"anthropic_beta": ["x"]})},
        },
    ),
    "adaptive thinking": (
        {
            "messages": [ASKED],
            "additionalModelRequestFields": {"thinking": {"type": "adaptive", "display": "omitted", "new": 1}},
        },
        {"messages": [HI], "reasoning": Reasoning(budget=-1, shown=False, extra={"thinking": raw({"new": 1})})},
    ),
    "no thinking": (
        {"messages": [ASKED], "additionalModelRequestFields": {"thinking": {"type": "disabled"}}},
        {"messages": [HI], "reasoning": Reasoning(budget=0)},
    ),
    "thinking of a kind to come": (
        {"messages": [ASKED], "additionalModelRequestFields": {"thinking": {"type": "dream"}}},
        {"messages": [HI], "reasoning": Reasoning(extra={"thinking": raw({"type": "dream"})})},
    ),
    "what only this API has": (
        {
            "messages": [ASKED],
            "guardrailConfig": {"guardrailIdentifier": "g1", "guardrailVersion": "1", "trace": "enabled"},
            "promptVariables": {"a": {"text": "b"}},
            "additionalModelResponseFieldPaths": ["/stop_sequence"],
            "requestMetadata": {"team": "x"},
            "performanceConfig": {"latency": "optimized"},
            "serviceTier": {"type": "flex"},
        },
        {
            "messages": [HI],
            "extra": {
                "guardrailConfig": raw({"guardrailIdentifier": "g1", "guardrailVersion": "1", "trace": "enabled"}),
                "promptVariables": raw({"a": {"text": "b"}}),
                "additionalModelResponseFieldPaths": raw(["/stop_sequence"]),
                "requestMetadata": raw({"team": "x"}),
                "performanceConfig": raw({"latency": "optimized"}),
                "serviceTier": raw({"type": "flex"}),
            },
        },
    ),
    "unknown fields at every level": (
        {
            "new": 1,
            "messages": [
                {
                    "role": "user",
                    "new": 2,
                    "content": [
                        {"text": "a", "new": 3},
                        {"image": {"format": "png", "source": {"bytes": "AAAA"}, "new": 4}},
                        {"image": {"format": "png", "source": {"bytes": "AAAA", "new": 5}}},
                        {"document": {"format": "pdf", "name": "d", "source": {"bytes": "AAAA"}, "new": 6}},
                        {"toolResult": {"toolUseId": "t", "content": [{"new": 7}], "new": 8}},
                        {"reasoningContent": {"reasoningText": {"text": "x", "new": 9}}},
                        {"toolUse": {"toolUseId": "t", "name": "n", "input": {}, "new": 10}},
                        {"new": 11},
                        {"citationsContent": {"content": [{"new": 1}], "citations": []}},
                        {},
                    ],
                }
            ],
            "inferenceConfig": {"new": 12},
            "toolConfig": {"tools": [{"toolSpec": {**SPEC, "new": 13}}, {"new": {}}], "new": 14},
            "outputConfig": {"new": 15},
        },
        {
            "messages": [
                Message(
                    "user",
                    [
                        Text("a", extra={"new": raw(3)}),
                        Image(Media("image/png", "AAAA"), extra={"new": raw(4)}),
                        Opaque(
                            "converse",
                            "image",
                            raw({"image": {"format": "png", "source": {"bytes": "AAAA", "new": 5}}}),
                        ),
                        Document(Media("application/pdf", "AAAA"), "d", extra={"new": raw(6)}),
                        ToolResult("t", [Opaque("converse", "new", raw({"new": 7}))], extra={"new": raw(8)}),
                        Thinking("x", extra={"new": raw(9)}),
                        ToolCall("t", "n", extra={"new": raw(10)}),
                        Opaque("converse", "new", raw({"new": 11})),
                        Opaque(
                            "converse",
                            "citationsContent",
                            raw({"citationsContent": {"content": [{"new": 1}], "citations": []}}),
                        ),
                        Opaque("converse", "an empty block", raw({})),
                    ],
                    extra={"new": raw(2)},
                )
            ],
            "tools": [
                Tool("weather", "Tells it", raw(SCHEMA), extra={"new": raw(13)}),
                OpaqueTool("converse", "new", raw({"new": {}})),
            ],
            "extra": {
                "inferenceConfig": raw({"new": 12}),
                "toolConfig": raw({"new": 14}),
                "outputConfig": raw({"new": 15}),
                "new": raw(1),
            },
        },
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_request_both_ways(name: str) -> None:
    body, values = SHAPES[name]
    chat = Chat("converse", "m", include_usage=True, **values)
    assert plain(decoded(body)) == plain(chat)
    back, lost = written(chat)
    assert back == body
    assert lost == []
    assert written(decoded(body), LLAMA) == (body, [])


# ---- what others ask, in the words of this API


def other(**values: Any) -> Chat:
    values.setdefault("messages", [HI])
    return Chat(values.pop("dialect", "chat"), "m", **values)


def test_turns_alternate_and_instructions_stand_first() -> None:
    chat = other(
        messages=[
            Message("system", [Text("a")]),
            Message("developer", [Text("b", Cache())]),
            HI,
            Message("user", [Text("and"), Text("")]),
            Message("assistant", [ToolCall("1", "f"), ToolCall("2", "g", '{"x":1}', "signature")]),
            Message("tool", [ToolResult("1", [Text("one")])]),
            Message("tool", [ToolResult("2", [Json(raw([2])), Json(raw({"y": 2}))], "g", True, Cache("1h"))]),
            Message("assistant", []),
            Message("system", [Text("now")]),
        ],
        tools=[Tool("f"), Tool("g", "")],
    )
    empty = {"type": "object", "properties": {}}
    body, lost = written(chat)
    assert lost == []
    assert body == {
        "system": [{"text": "a"}, {"text": "b"}, {"cachePoint": {"type": "default"}}],
        "messages": [
            {"role": "user", "content": [{"text": "Hi"}, {"text": "and"}]},
            {
                "role": "assistant",
                "content": [
                    {"toolUse": {"toolUseId": "1", "name": "f", "input": {}}},
                    {"toolUse": {"toolUseId": "2", "name": "g", "input": {"x": 1}}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"toolResult": {"toolUseId": "1", "content": [{"text": "one"}]}},
                    {
                        "toolResult": {
                            "toolUseId": "2",
                            "content": [{"text": "[2]"}, {"json": {"y": 2}}],
                            "status": "error",
                        }
                    },
                    {"cachePoint": {"type": "default", "ttl": "1h"}},
                ],
            },
            {"role": "system", "content": [{"text": "now"}]},
        ],
        "toolConfig": {
            "tools": [
                {"toolSpec": {"name": "f", "inputSchema": {"json": empty}}},
                {"toolSpec": {"name": "g", "inputSchema": {"json": empty}}},
            ]
        },
    }


@pytest.mark.parametrize(("model", "marked"), [(CLAUDE, True), (NOVA, True), (PROFILE, True), (LLAMA, False)])
def test_markers_go_to_models_that_take_them_and_are_never_lost(model: str, marked: bool) -> None:
    tool = Tool("f", cache=Cache())
    chat = other(messages=[Message("user", [Text("a", Cache()), ToolResult("1", [Text("b", Cache())])])], tools=[tool])
    body, lost = written(chat, model)
    assert lost == []
    assert encoded(body).count(b"cachePoint") == (3 if marked else 0)


CALLED = [HI, Message("assistant", [ToolCall("1", "f")]), Message("tool", [ToolResult("1", [Text("x")])])]


def test_no_tools_to_be_called() -> None:
    body, lost = written(other(tools=[TOOL], tool_choice=ToolChoice("none"), parallel=False))
    assert "toolConfig" not in body
    assert lost == []
    for tools, choice in ((None, None), ([TOOL], ToolChoice("none"))):
        body, lost = written(other(messages=CALLED, tools=tools, tool_choice=choice))
        spec = body["toolConfig"]["tools"][0]["toolSpec"]
        assert (spec["name"], len(body["toolConfig"]["tools"])) == ("f", 1)
        assert "do not call" in spec["description"]
        assert "toolChoice" not in body["toolConfig"]
        assert lost == []


@pytest.mark.parametrize(
    ("choice", "names", "form"),
    [
        (ToolChoice("auto"), ["a", "b", "c"], {"auto": {}}),
        (ToolChoice("required"), ["a", "b", "c"], {"any": {}}),
        (ToolChoice("required", ("b",)), ["a", "b", "c"], {"tool": {"name": "b"}}),
        (ToolChoice("required", ("b", "c")), ["b", "c"], {"any": {}}),
        (ToolChoice("auto", ("a",)), ["a"], {"auto": {}}),
    ],
)
def test_tool_choice(choice: ToolChoice, names: list[str], form: dict[str, Any]) -> None:
    body, lost = written(other(tools=[Tool(n) for n in "abc"], tool_choice=choice))
    assert [t["toolSpec"]["name"] for t in body["toolConfig"]["tools"]] == names
    assert body["toolConfig"]["toolChoice"] == form
    assert lost == []


@pytest.mark.parametrize(
    ("model", "reasoning", "more", "output"),
    [
        (CLAUDE, Reasoning("medium"), {"thinking": {"type": "enabled", "budget_tokens": 8192}}, None),
        (CLAUDE, Reasoning(budget=5), {"thinking": {"type": "enabled", "budget_tokens": 1024}}, None),
        (
            CLAUDE,
            Reasoning(budget=-1, shown=True),
            {"thinking": {"type": "enabled", "budget_tokens": 8192, "display": "summarized"}},
            None,
        ),
        ("anthropic.claude-opus-5", Reasoning("none"), {"thinking": {"type": "disabled"}}, None),
        ("anthropic.claude-opus-4-7", Reasoning("minimal"), {"thinking": {"type": "adaptive"}}, {"effort": "low"}),
        (CLAUDE, Reasoning("none"), None, None),
        (CLAUDE, Reasoning(budget=0), None, None),
        (NOVA, Reasoning("minimal"), {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "low"}}, None),
        (NOVA, Reasoning(budget=8192), {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "medium"}}, None),
        ("openai.gpt-oss-120b-1:0", Reasoning("xhigh"), {"reasoning_effort": "high"}, None),
        ("us.openai.gpt-5.2", Reasoning("xhigh"), {"reasoning": {"effort": "xhigh"}}, None),
        (LLAMA, Reasoning("xhigh"), None, {"effort": "xhigh"}),
        (PROFILE, Reasoning(budget=2048), None, {"effort": "low"}),
        (LLAMA, Reasoning("none"), None, None),
        (LLAMA, Reasoning(budget=-1), None, None),
    ],
)
def test_reasoning_in_the_words_of_the_family(
    model: str, reasoning: Reasoning, more: dict[str, Any] | None, output: dict[str, Any] | None
) -> None:
    body, lost = written(other(reasoning=reasoning), model)
    assert body.get("additionalModelRequestFields") == more
    assert body.get("outputConfig") == output
    assert lost == []


def test_a_budget_fits_in_the_bound() -> None:
    body, lost = written(other(reasoning=Reasoning("high"), max_output=4000))
    assert body["additionalModelRequestFields"] == {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    assert (body["inferenceConfig"], lost) == ({"maxTokens": 4000}, [])
    body, lost = written(other(reasoning=Reasoning("high"), max_output=100))
    assert "additionalModelRequestFields" not in body
    assert lost == ["reasoning: a bound of 100 on the answer leaves no room for thought (1,024 at least)"]


@pytest.mark.parametrize(
    ("model", "more", "lost"),
    [
        (CLAUDE, {"top_k": 5}, []),
        (NOVA, {"inferenceConfig": {"topK": 5}}, []),
        (LLAMA, None, ["top_k"]),
    ],
)
def test_top_k(model: str, more: dict[str, Any] | None, lost: list[str]) -> None:
    body, places = written(other(top_k=5), model)
    assert (body.get("additionalModelRequestFields"), places) == (more, lost)


def test_a_schema() -> None:
    form = Format("schema", "city", raw(SCHEMA), True)
    body, lost = written(other(format=form))
    structure = body["outputConfig"]["textFormat"]["structure"]["jsonSchema"]
    assert structure["name"] == "city"
    assert msgspec.json.decode(structure["schema"]) == SCHEMA
    assert lost == []


def test_a_messages_caller_is_told_its_stop_sequence() -> None:
    body, lost = written(other(dialect="messages", stop=["END"]))
    assert (body["additionalModelResponseFieldPaths"], lost) == (["/stop_sequence"], [])
    assert "additionalModelResponseFieldPaths" not in written(other(dialect="messages", stop=["END"]), LLAMA)[0]


def test_media_of_others() -> None:
    chat = other(
        messages=[
            Message(
                "user",
                [
                    Image(Media("image/jpg", "AAAA"), "auto"),
                    Image(Media(url="s3://b/k.png", type="image/png")),
                    Document(Media("application/pdf", "AAAA"), "Q3/report_final.pdf"),
                    Document(Media("application/pdf", "AAAA"), "Q3 report final pdf"),
                    Document(Media(data="AAAA")),
                    Document(Media(text="abc"), "\u00e9"),
                    Document(Media("video/mp4", "AAAA"), "film"),
                    Audio(Media("audio/wav", "AAAA")),
                ],
            )
        ]
    )
    body, lost = written(chat)
    assert lost == []
    assert body["messages"][0]["content"] == [
        {"image": {"format": "jpeg", "source": {"bytes": "AAAA"}}},
        {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://b/k.png"}}}},
        {"document": {"format": "pdf", "name": "Q3 report final pdf", "source": {"bytes": "AAAA"}}},
        {"document": {"format": "pdf", "name": "Q3 report final pdf 2", "source": {"bytes": "AAAA"}}},
        {"document": {"format": "pdf", "name": "document", "source": {"bytes": "AAAA"}}},
        {"document": {"format": "txt", "name": "document 2", "source": {"text": "abc"}}},
        {"video": {"format": "mp4", "source": {"bytes": "AAAA"}}},
        {"audio": {"format": "wav", "source": {"bytes": "AAAA"}}},
    ]


@pytest.mark.parametrize(
    ("values", "lost"),
    [
        ({"temperature": 1.5}, ["temperature: outside of 0 to 1"]),
        ({"temperature": 1.0, "n": 1, "frequency_penalty": 0.0, "logprobs": False, "parallel": True}, []),
        (
            {"n": 2, "presence_penalty": 1.0, "logprobs": True, "top_logprobs": 3},
            ["presence_penalty", "n", "logprobs", "top_logprobs"],
        ),
        ({"seed": 1, "user": "ada"}, ["seed"]),
        ({"user": "{}"}, ["user: with characters that request metadata does not take, or too long"]),
        ({"parallel": False}, []),
        ({"parallel": False, "tools": [TOOL]}, ["parallel"]),
        ({"format": Format("json")}, ["format: JSON without a schema"]),
        ({"format": Format("text")}, []),
        ({"reasoning": Reasoning("immense")}, ["reasoning.effort: immense"]),
        ({"extra": {"service_tier": raw("flex"), "store": raw(None)}}, ["service_tier"]),
        ({"tools": [OpaqueTool("responses", "web_search", raw({}))]}, ["tools[0]: web_search"]),
        ({"messages": [Message("user", [Text("x")], "ada")]}, ["messages[0].name"]),
        (user(Image(Media(url="https://x/y.png"))), ["messages[0].parts[0]: a picture by URL"]),
        (user(Text("a"), Image(Media(file="f1"))), ["messages[0].parts[1]: a picture by file id"]),
        (user(Image(Media("image/bmp", "AAAA"))), ["messages[0].parts[0]: a picture of type image/bmp"]),
        (user(Image(Media("image/png", "AAAA"), "high")), ["messages[0].parts[0].detail"]),
        (user(Document(Media(url="https://x/y.pdf"))), ["messages[0].parts[0]: a document by URL"]),
        (
            user(Document(Media("application/zip", "AAAA"))),
            ["messages[0].parts[0]: a document of type application/zip"],
        ),
        (user(Opaque("generate", "executableCode", raw({}))), ["messages[0].parts[0]: executableCode"]),
        (
            user(ToolResult("1", [Audio(Media("audio/wav", "AAAA"))])),
            ["messages[0].parts[0].parts[0]: Audio in a tool's result"],
        ),
        (assistant(Thinking("Hm.")), ["messages[1].parts[0]: a thought without a signature"]),
        (assistant(Thinking("Hm.", "sig"), Thinking(sealed="c2VhbGVk")), []),
        (assistant(Thinking(sealed="gA-_")), ["messages[1].parts[0]: a sealed thought of another API"]),
        (
            {"messages": [Message("system", [Image(Media("image/png", "AAAA"))]), HI]},
            ["messages[0].parts[0]: Image among instructions"],
        ),
    ],
)
def test_what_is_lost(values: dict[str, Any], lost: list[str]) -> None:
    assert written(other(**values))[1] == lost


def test_arguments_that_are_no_object_are_refused() -> None:
    for arguments in ("[1]", "{", "\ud800"):
        with pytest.raises(Failure, match=r"messages\[1\]\.parts\[0\]\.arguments") as caught:
            written(other(**assistant(ToolCall("1", "f", arguments))))
        assert caught.value.status == 400


# ---- answers

ANSWER: dict[str, Any] = {
    "output": {
        "message": {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "c2ln"}}},
                {"text": "Rain."},
                {"toolUse": {"toolUseId": "t1", "name": "weather", "input": {"city": "Rome"}}},
            ],
        }
    },
    "stopReason": "tool_use",
    "usage": {
        "inputTokens": 10,
        "outputTokens": 20,
        "totalTokens": 37,
        "cacheReadInputTokens": 5,
        "cacheWriteInputTokens": 2,
        "cacheDetails": [{"ttl": "5m", "inputTokens": 2}],
    },
    "metrics": {"latencyMs": 321},
    "trace": {"guardrail": {"inputAssessment": {}}},
    "additionalModelResponseFields": {"stop_sequence": None},
}


def test_an_answer_both_ways() -> None:
    answer = CODEC.decode_answer(encoded(ANSWER))
    parts: list[Part] = [Thinking("Hm.", "c2ln"), Text("Rain."), ToolCall("t1", "weather", '{"city":"Rome"}')]
    assert plain(answer.choices) == plain([Choice(parts, "tool_calls", detail="tool_use")])
    assert answer.usage == Usage(10, 20, 5, 2)
    assert set(answer.extra or {}) == {"metrics", "trace", "additionalModelResponseFields"}
    assert msgspec.json.decode(CODEC.encode_answer(answer, other())) == ANSWER


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("stop_sequence", "stop_sequence"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("malformed_tool_use", "error"),
        ("model_context_window_exceeded", "context_window"),
        ("something new", "stop"),
    ],
)
def test_why_it_stopped(reason: str, stop: str) -> None:
    body = {**ANSWER, "stopReason": reason, "additionalModelResponseFields": {"stop_sequence": "END"}}
    answer = CODEC.decode_answer(encoded(body))
    assert answer.choices[0].stop == stop
    assert answer.choices[0].stop_sequence == "END"
    assert msgspec.json.decode(CODEC.encode_answer(answer, other())) == body


def test_an_answer_of_others() -> None:
    parts: list[Part] = [
        Thinking("Hm."),
        Thinking(sealed="c2VhbGVk"),
        Thinking(sealed="gA-_"),
        Text(""),
        Text("It rains.", citations=[Citation("url", "W", "https://x/")]),
        Refusal("No."),
        Opaque("messages", "server_tool_use", raw({})),
        ToolCall("c", "f", ""),
        Image(Media("image/png", "AAAA")),
    ]
    answer = Answer("chat", "id", "gpt", [Choice(parts, "refusal", "END")], extra={"system_fingerprint": raw("x")})
    assert msgspec.json.decode(CODEC.encode_answer(answer, other())) == {
        "output": {
            "message": {
                "role": "assistant",
                "content": [
                    {"reasoningContent": {"reasoningText": {"text": "Hm."}}},
                    {"reasoningContent": {"redactedContent": "c2VhbGVk"}},
                    {
                        "citationsContent": {
                            "content": [{"text": "It rains."}],
                            "citations": [{"title": "W", "location": {"web": {"url": "https://x/"}}}],
                        }
                    },
                    {"text": "No."},
                    {"toolUse": {"toolUseId": "c", "name": "f", "input": {}}},
                    {"image": {"format": "png", "source": {"bytes": "AAAA"}}},
                ],
            }
        },
        "stopReason": "content_filtered",
        "usage": {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0},
        "metrics": {"latencyMs": 0},
        "additionalModelResponseFields": {"stop_sequence": "END"},
    }
    broken = Answer("chat", "", "", [Choice([ToolCall("c", "f", "{")])])
    with pytest.raises(Failure) as caught:
        CODEC.encode_answer(broken, other())
    assert caught.value.status == 502


def test_a_place_on_the_web_says_its_domain_in_its_url() -> None:
    web = {"url": "https://example.com/a", "domain": "example.com"}
    body = of_assistant({"citationsContent": {"content": [{"text": "x"}], "citations": [{"location": {"web": web}}]}})
    (part,) = decoded(body).messages[1].parts
    assert isinstance(part, Text)
    assert plain(part.citations) == plain([Citation("url", None, "https://example.com/a")])
    odd = of_assistant(
        {"citationsContent": {"content": [{"text": "x"}], "citations": [{"location": {"web": {**web, "new": 1}}}]}}
    )
    assert written(decoded(odd)) == (odd, [])


# ---- wrong input


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [1]}, "messages"),
        ({"messages": [{"content": []}]}, r"messages\[0\]\.role"),
        ({"messages": [{"role": "tool", "content": []}]}, r"messages\[0\]\.role"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]\.content"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, r"messages\[0\]\.content"),
        (of_user({"text": 1}), r"messages\[0\]\.content\[0\]\.text"),
        (of_user({"image": {"source": {}}}), r"content\[0\]\.image\.format"),
        (of_user({"image": {"format": "png"}}), r"content\[0\]\.image\.source"),
        (of_user({"toolUse": {"toolUseId": "1", "name": "x", "input": []}}), r"toolUse\.input"),
        (of_user({"toolUse": {"toolUseId": "1", "input": {}}}), r"toolUse\.name"),
        (of_user({"toolResult": {"toolUseId": "1", "content": [], "status": "odd"}}), r"toolResult\.status"),
        ({"messages": [ASKED], "system": "x"}, "system"),
        ({"messages": [ASKED], "inferenceConfig": {"maxTokens": "9"}}, r"inferenceConfig\.maxTokens"),
        ({"messages": [ASKED], "toolConfig": {"toolChoice": {"none": {}}}}, r"toolConfig\.toolChoice"),
        ({"messages": [ASKED], "toolConfig": {"tools": [{"toolSpec": {"name": "x"}}]}}, r"toolSpec\.inputSchema"),
        ({"messages": [ASKED], "additionalModelRequestFields": {"thinking": {"type": "enabled"}}}, "budget_tokens"),
        (
            {
                "messages": [ASKED],
                "outputConfig": {"textFormat": {"type": "json_schema", "structure": {"jsonSchema": {"schema": "{"}}}},
            },
            r"jsonSchema\.schema",
        ),
        ({"messages": [ASKED], "outputConfig": {"textFormat": {"type": "x"}}}, r"textFormat\.structure"),
    ],
)
def test_wrong_input_names_its_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(Failure, match=field) as caught:
        decoded(body)
    assert caught.value.status == 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "type", "json", "bytes", "x", "cachePoint"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Everything in it that can be replaced: (holder, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((value, key), *places(inner))]


@st.composite
def mutated(draw: st.DrawFn, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    body: dict[str, Any] = plain(draw(st.sampled_from(bodies)))
    for _ in range(draw(st.integers(1, 3))):
        found = places(body)
        if found:
            holder, key = draw(st.sampled_from(found))
            holder[key] = draw(json_values)
    return body


def unless_refused(status: int, call: Callable[[], Any]) -> Any:
    """What `call` gives, None for a Failure of that status; anything else is an error."""
    try:
        return call()
    except Failure as failure:
        if failure.status != status:
            raise
        return None


@settings(max_examples=300)
@given(mutated([body for body, _ in SHAPES.values()]))
def test_any_request_is_read_or_refused(body: dict[str, Any]) -> None:
    chat = unless_refused(400, lambda: decoded(body))
    if chat is None:
        return
    once = unless_refused(400, lambda: written(chat)[0])
    if once is not None:
        assert written(decoded(once))[0] == once
    for codec in (AnthropicCodec(), OpenAIChatCodec()):
        unless_refused(400, partial(codec.encode, chat, Lost(), model="m", max_output=1000))


@settings(max_examples=300)
@given(mutated([ANSWER, {**ANSWER, "output": {"message": SHAPES["cited text"][0]["messages"][1]}}]))
def test_any_answer_is_read_or_refused(body: dict[str, Any]) -> None:
    answer = unless_refused(502, lambda: CODEC.decode_answer(encoded(body)))
    if answer is not None:
        CODEC.encode_answer(answer, other())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"output":{"message":{"content":' + b"[" * 100_000,
        b'{"output":{"message":{"role":"assistant","content":[{"text":"\\ud800"}]}}}',
        b'{"output":{"message":{"role":"assistant","content":[{"text":"\xff"}]}}}',
        b'{"output":{"message":{"role":"assistant","content":[{"toolUse":{"toolUseId":"1","name":"x","input":{"a":"\xff"}}}]}}}',
        b'{"output":{"message":NaN}}',
        b'{"output":null}',
    ],
)  # fmt: skip
def test_answers_that_are_none(body: bytes) -> None:
    with pytest.raises(Failure) as caught:
        CODEC.decode_answer(body)
    assert caught.value.status == 502


@pytest.mark.parametrize(
    "block",
    [
        b'{"text":"\\ud800"}',
        b'{"text":"\xff"}',
        b'{"toolUse":{"toolUseId":"1","name":"x","input":{"a":"\xff"}}}',
        b'{"toolResult":{"toolUseId":"1","content":' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
    ],
)
def test_requests_that_are_none(block: bytes) -> None:
    with pytest.raises(Failure) as caught:
        CODEC.decode({"messages": Raw(b'[{"role":"user","content":[%b]}]' % block)}, model="m", stream=False)
    assert caught.value.status == 400
