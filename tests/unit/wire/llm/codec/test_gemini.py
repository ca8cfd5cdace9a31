"""Gemini requests and the neutral model: every shape both ways, both spellings, what is lost, and wrong input."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies.forms import WRONG, changed, decode, encode, places, plain, raw, refused
from tests.strategies.forms import written as wire

from tollhouse.core.errors import Failure
from tollhouse.wire.llm import CODECS
from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.gemini import GeminiCodec
from tollhouse.wire.llm.codec.gemini_parts import signed
from tollhouse.wire.llm.model import (
    Audio,
    Chat,
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

CODEC = GeminiCodec()
ASKED: dict[str, Any] = {"role": "user", "parts": [{"text": "Hi"}]}
HI = Message("user", [Text("Hi")])
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def of(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"contents": [ASKED, {"role": role, "parts": list(parts)}]}


def said(role: Any, *parts: Part) -> dict[str, Any]:
    return {"messages": [HI, Message(role, list(parts))]}


def config(**fields: Any) -> dict[str, Any]:
    return {"contents": [ASKED], "generationConfig": fields}


def tools(*entries: Any, **more: Any) -> dict[str, Any]:
    return {"contents": [ASKED], "tools": list(entries), **more}


def chat(**fields: Any) -> Chat:
    """As read from a Gemini request."""
    return Chat("generate", "m", fields.pop("messages", [HI]), include_usage=True, **fields)


def other(**fields: Any) -> Chat:
    """As read from another API's."""
    return Chat(fields.pop("dialect", "chat"), "m", fields.pop("messages", [HI]), **fields)


def written(asked: Chat, model: str = "gemini-2.5-flash") -> tuple[dict[str, Any], list[str]]:
    lost = Lost()
    fields = CODEC.encode(asked, lost, model=model, max_output=4096)
    return msgspec.json.decode(msgspec.json.encode(fields)), lost.places


WEATHER = {"name": "weather", "description": "Tells it", "parametersJsonSchema": SCHEMA}
TOOL = Tool("weather", "Tells it", raw(SCHEMA))
CALL = {"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Rome"}}}

SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({"contents": [ASKED]}, {"messages": [HI]}),
    "turns": (
        {"contents": [ASKED, {"role": "model", "parts": [{"text": "Yes?"}]}, ASKED]},
        {"messages": [HI, Message("assistant", [Text("Yes?")]), HI]},
    ),
    "neighbours": ({"contents": [ASKED, ASKED]}, {"messages": [HI, HI]}),
    "system": (
        {"systemInstruction": {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]}, "contents": [ASKED]},
        {"messages": [Message("system", [Text("Be brief."), Text("Be kind.")]), HI]},
    ),
    "picture": (
        of("user", {"text": "What?"}, {"inlineData": {"mimeType": "image/png", "data": "iVBORw=="}}),
        said("user", Text("What?"), Image(Media("image/png", "iVBORw=="))),
    ),
    "picture by URI": (
        of("user", {"fileData": {"mimeType": "image/png", "fileUri": "https://x.test/files/a"}}),
        said("user", Image(Media("image/png", url="https://x.test/files/a"))),
    ),
    "picture with a name": (
        of("user", {"inlineData": {"mimeType": "image/png", "data": "AAAA", "displayName": "a.png"}}),
        said("user", Image(Media("image/png", "AAAA"), extra={"inlineData": {"displayName": raw("a.png")}})),
    ),
    "sound": (
        of("user", {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}),
        said("user", Audio(Media("audio/wav", "AAAA"))),
    ),
    "document": (
        of("user", {"fileData": {"mimeType": "application/pdf", "fileUri": "gs://b/r.pdf", "displayName": "r"}}),
        said("user", Document(Media("application/pdf", url="gs://b/r.pdf"), "r")),
    ),
    "video with what is beside it": (
        of(
            "user",
            {
                "fileData": {"fileUri": "https://youtu.be/x"},
                "videoMetadata": {"startOffset": "2s", "fps": 1},
                "mediaResolution": {"level": "MEDIA_RESOLUTION_LOW"},
            },
        ),
        said(
            "user",
            Document(
                Media(url="https://youtu.be/x"),
                extra={
                    "videoMetadata": raw({"startOffset": "2s", "fps": 1}),
                    "mediaResolution": raw({"level": "MEDIA_RESOLUTION_LOW"}),
                },
            ),
        ),
    ),
    "a picture of the model's, with its proof": (
        of("model", {"inlineData": {"mimeType": "image/png", "data": "AAAA"}, "thoughtSignature": "c2ln"}),
        said("assistant", Image(Media("image/png", "AAAA"), extra={"thoughtSignature": raw("c2ln")})),
    ),
    "a thought picture": (
        of("model", {"inlineData": {"mimeType": "image/png", "data": "AAAA"}, "thought": True}),
        said("assistant", Image(Media("image/png", "AAAA"), extra={"thought": raw(True)})),
    ),
    "call": (
        of("model", {"text": "Let me see."}, CALL),
        said("assistant", Text("Let me see."), ToolCall("c1", "weather", '{"city":"Rome"}')),
    ),
    "call with its proof": (
        of("model", {**CALL, "thoughtSignature": "c2ln"}),
        said("assistant", ToolCall("c1", "weather", '{"city":"Rome"}', "c2ln")),
    ),
    "call with what is beside it": (
        of("model", {"functionCall": {"id": "c", "name": "f", "args": {}, "new": 1}, "partMetadata": {"a": 1}}),
        said(
            "assistant",
            ToolCall("c", "f", "{}", extra={"functionCall": {"new": raw(1)}, "partMetadata": raw({"a": 1})}),
        ),
    ),
    "result": (
        of("user", {"functionResponse": {"id": "c1", "name": "weather", "response": {"sky": "blue"}}}),
        said("user", ToolResult("c1", [Json(raw({"sky": "blue"}))], "weather")),
    ),
    "result that is a text": (
        of("user", {"functionResponse": {"id": "c1", "name": "weather", "response": {"output": "blue"}}}),
        said("user", ToolResult("c1", [Text("blue")], "weather")),
    ),
    "result that is an error": (
        of("user", {"functionResponse": {"id": "c1", "name": "weather", "response": {"error": "no"}}}),
        said("user", ToolResult("c1", [Text("no")], "weather", True)),
    ),
    "result of another form": (
        of(
            "user",
            {"functionResponse": {"id": "1", "name": "f", "response": {"result": "x"}}},
            {"functionResponse": {"id": "2", "name": "f", "response": {"output": {"a": 1}}}},
            {"functionResponse": {"id": "3", "name": "f", "response": {"output": "a", "error": "b"}}},
            {"functionResponse": {"id": "4", "name": "f", "response": {}}},
        ),
        said(
            "user",
            ToolResult("1", [Json(raw({"result": "x"}))], "f"),
            ToolResult("2", [Json(raw({"output": {"a": 1}}))], "f"),
            ToolResult("3", [Json(raw({"output": "a", "error": "b"}))], "f"),
            ToolResult("4", [Json(raw({}))], "f"),
        ),
    ),
    "result with media": (
        of(
            "user",
            {
                "functionResponse": {
                    "id": "c1",
                    "name": "f",
                    "response": {"output": "see"},
                    "parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}],
                    "scheduling": "SILENT",
                    "willContinue": False,
                }
            },
        ),
        said(
            "user",
            ToolResult(
                "c1",
                [Text("see"), Image(Media("image/png", "AAAA"))],
                "f",
                extra={"functionResponse": {"scheduling": raw("SILENT"), "willContinue": raw(False)}},
            ),
        ),
    ),
    "thoughts": (
        of(
            "model",
            {"text": "Hm.", "thought": True},
            {"text": "So.", "thought": True, "thoughtSignature": "c2ln"},
            {"text": "Yes.", "thoughtSignature": "c2lnMg=="},
        ),
        said(
            "assistant",
            Thinking("Hm."),
            Thinking("So.", extra={"thoughtSignature": raw("c2ln")}),
            Text("Yes.", extra={"thoughtSignature": raw("c2lnMg==")}),
        ),
    ),
    "code that the provider ran": (
        of(
            "model",
            {"executableCode": {"language": "PYTHON", "code": "1+1"}, "thoughtSignature": "c2ln"},
            {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}},
        ),
        said(
            "assistant",
            Opaque(
                "generate",
                "executableCode",
                raw({"executableCode": {"language": "PYTHON", "code": "1+1"}, "thoughtSignature": "c2ln"}),
            ),
            Opaque(
                "generate",
                "codeExecutionResult",
                raw({"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}}),
            ),
        ),
    ),
    "a text with what is beside it": (
        of("user", {"text": "Hi", "partMetadata": {"a": 1}}),
        said("user", Text("Hi", extra={"partMetadata": raw({"a": 1})})),
    ),
    "tools": (
        tools(
            {"functionDeclarations": [WEATHER, {"name": "now"}]},
            {"googleSearch": {}},
            {"codeExecution": {}},
        ),
        {
            "tools": [
                TOOL,
                Tool("now"),
                OpaqueTool("generate", "googleSearch", raw({"googleSearch": {}})),
                OpaqueTool("generate", "codeExecution", raw({"codeExecution": {}})),
            ]
        },
    ),
    "a tool with what it answers": (
        tools({"functionDeclarations": [{"name": "f", "responseJsonSchema": {}, "behavior": "BLOCKING"}]}),
        {"tools": [Tool("f", extra={"responseJsonSchema": raw({}), "behavior": raw("BLOCKING")})]},
    ),
    "any tool": (
        tools({"functionDeclarations": [WEATHER]}, toolConfig={"functionCallingConfig": {"mode": "ANY"}}),
        {"tools": [TOOL], "tool_choice": ToolChoice("required")},
    ),
    "one tool": (
        tools(
            {"functionDeclarations": [WEATHER]},
            toolConfig={"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}},
        ),
        {"tools": [TOOL], "tool_choice": ToolChoice("required", ("weather",))},
    ),
    "no tool": (
        tools({"functionDeclarations": [WEATHER]}, toolConfig={"functionCallingConfig": {"mode": "NONE"}}),
        {"tools": [TOOL], "tool_choice": ToolChoice("none")},
    ),
    "some tools, whose arguments fit": (
        tools(
            {"functionDeclarations": [WEATHER]},
            toolConfig={"functionCallingConfig": {"mode": "VALIDATED", "allowedFunctionNames": ["weather"]}},
        ),
        {"tools": [TOOL], "tool_choice": ToolChoice("auto", ("weather",))},
    ),
    "tools whose arguments fit": (
        tools(
            {"functionDeclarations": [WEATHER]},
            toolConfig={
                "functionCallingConfig": {"mode": "VALIDATED", "streamFunctionCallArguments": True},
                "retrievalConfig": {"languageCode": "de"},
            },
        ),
        {
            "tools": [TOOL],
            "tool_choice": ToolChoice("auto"),
            "extra": {
                "toolConfig": {
                    "functionCallingConfig": {"mode": raw("VALIDATED"), "streamFunctionCallArguments": raw(True)},
                    "retrievalConfig": raw({"languageCode": "de"}),
                }
            },
        },
    ),
    "settings": (
        config(
            temperature=0.5,
            topP=0.9,
            topK=40,
            candidateCount=2,
            maxOutputTokens=100,
            stopSequences=["END"],
            seed=7,
            presencePenalty=0.1,
            frequencyPenalty=-0.2,
            responseLogprobs=True,
            logprobs=3,
        ),
        {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "n": 2,
            "max_output": 100,
            "stop": ["END"],
            "seed": 7,
            "presence_penalty": 0.1,
            "frequency_penalty": -0.2,
            "logprobs": True,
            "top_logprobs": 3,
        },
    ),
    "JSON": (config(responseMimeType="application/json"), {"format": Format("json")}),
    "plain text": (config(responseMimeType="text/plain"), {"format": Format("text")}),
    "a schema": (
        config(responseMimeType="application/json", responseJsonSchema=SCHEMA),
        {"format": Format("schema", schema=raw(SCHEMA))},
    ),
    "one of several words": (
        config(responseMimeType="text/x.enum", responseJsonSchema={"type": "string", "enum": ["a", "b"]}),
        {
            "format": Format(
                "schema",
                schema=raw({"type": "string", "enum": ["a", "b"]}),
                extra={"responseMimeType": raw("text/x.enum")},
            )
        },
    ),
    "a budget": (
        config(thinkingConfig={"thinkingBudget": -1, "includeThoughts": True}),
        {"reasoning": Reasoning(budget=-1, shown=True)},
    ),
    "a level": (
        config(thinkingConfig={"thinkingLevel": "HIGH", "new": 1}),
        {"reasoning": Reasoning("high", extra={"new": raw(1)})},
    ),
    "what only this API has": (
        {
            "contents": [ASKED],
            "safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}],
            "cachedContent": "cachedContents/a",
            "labels": {"team_name": "a_b"},
            "generationConfig": {"responseModalities": ["TEXT"], "speechConfig": {"languageCode": "de-DE"}},
        },
        {
            "extra": {
                "safetySettings": raw([{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]),
                "cachedContent": raw("cachedContents/a"),
                "labels": raw({"team_name": "a_b"}),
                "generationConfig": {
                    "responseModalities": raw(["TEXT"]),
                    "speechConfig": raw({"languageCode": "de-DE"}),
                },
            }
        },
    ),
    "unknown everywhere": (
        {
            "systemInstruction": {"parts": [{"text": "a", "n1": 1}], "n2": 1},
            "contents": [{"role": "user", "parts": [{"text": "b", "n3": 1}], "n4": 1}],
            "n5": 1,
            "generationConfig": {"n6": 1, "thinkingConfig": {"thinkingBudget": 1, "n7": 1}},
            "toolConfig": {"functionCallingConfig": {"mode": "AUTO", "n8": 1}, "n9": 1},
        },
        {
            "messages": [
                Message("system", [Text("a", extra={"n1": raw(1)})], extra={"n2": raw(1)}),
                Message("user", [Text("b", extra={"n3": raw(1)})], extra={"n4": raw(1)}),
            ],
            "reasoning": Reasoning(budget=1, extra={"n7": raw(1)}),
            "tool_choice": ToolChoice("auto"),
            "extra": {
                "n5": raw(1),
                "generationConfig": {"n6": raw(1)},
                "toolConfig": {"functionCallingConfig": {"n8": raw(1)}, "n9": raw(1)},
            },
        },
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_both_ways(shape: str) -> None:
    body, fields = SHAPES[shape]
    found = decode(CODEC, body)
    assert plain(found) == plain(chat(**fields))
    assert written(found) == (body, [])


def snake(value: Any) -> Any:
    """A request as clients of Python write it, but for what is not of the API: arguments, schemas, labels."""
    if isinstance(value, list):
        return [snake(v) for v in value]
    if not isinstance(value, dict):
        return value
    kept = ("args", "response", "parametersJsonSchema", "responseJsonSchema", "labels", "partMetadata")
    found = {}
    for name, inner in value.items():
        spelt = "".join("_" + c.lower() if c.isupper() else c for c in name)
        found[spelt] = inner if name in kept else snake(inner)
    return found


KEPT_AS_THEY_CAME = {
    "what only this API has",
    "video with what is beside it",
    "call with what is beside it",
    "a text with what is beside it",
    "code that the provider ran",
    "tools whose arguments fit",
}
"""What is not known there, rides along in the spelling it had."""


@pytest.mark.parametrize("shape", sorted(SHAPES.keys() - KEPT_AS_THEY_CAME))
def test_the_other_spelling_means_the_same(shape: str) -> None:
    body, fields = SHAPES[shape]
    found = decode(CODEC, snake(body))
    if shape == "tools":
        found.tools = [t for t in found.tools or () if isinstance(t, Tool)]
        fields = {"tools": fields["tools"][:2]}
    assert plain(found) == plain(chat(**fields))


@pytest.mark.parametrize(
    "system",
    [
        "Be brief.",
        {"text": "Be brief."},
        {"parts": {"text": "Be brief."}},
        {"role": "system", "parts": [{"text": "Be brief."}]},
        [{"text": "Be brief."}],
        ["Be brief."],
    ],
)
def test_instructions_in_other_forms(system: Any) -> None:
    if isinstance(system, dict) and "role" in system:
        system = {**system, "role": "user"}
    found = decode(CODEC, {"systemInstruction": system, "contents": [ASKED]})
    assert plain(found.messages) == plain([Message("system", [Text("Be brief.")]), HI])


def test_one_alone_is_a_list_of_one() -> None:
    body = {"contents": {"parts": {"text": "Hi"}}, "tools": {"functionDeclarations": {"name": "f"}}}
    assert plain(decode(CODEC, body)) == plain(chat(tools=[Tool("f")]))


def test_calls_without_an_id_get_one_and_their_results_the_same() -> None:
    calls = [{"functionCall": {"name": n, "args": {"n": k}}} for k, n in enumerate("ffg")]
    calls.append({"functionCall": {"name": "f", "args": {}, "id": "call_1"}})
    results = [{"functionResponse": {"name": n, "response": {"output": str(k)}}} for k, n in enumerate("gff")]
    results.append({"functionResponse": {"name": "f", "id": "call_1", "response": {}}})
    body = {"contents": [ASKED, {"role": "model", "parts": calls}, {"role": "function", "parts": results}]}
    _, asked, told = decode(CODEC, body).messages
    assert [p.id for p in asked.parts if isinstance(p, ToolCall)] == ["call_2", "call_3", "call_4", "call_1"]
    assert [p.id for p in told.parts if isinstance(p, ToolResult)] == ["call_4", "call_2", "call_3", "call_1"]
    assert told.role == "user"


def test_the_empty_text_of_a_streams_end_is_left_out() -> None:
    body = of("model", {"text": "a"}, {"text": ""}, {"text": "", "thoughtSignature": "c2ln"})
    parts = decode(CODEC, body).messages[1].parts
    assert plain(parts) == plain([Text("a"), Text("", extra={"thoughtSignature": raw("c2ln")})])
    assert plain(decode(CODEC, of("model", {"text": ""})).messages[1].parts) == plain([Text("")])


def test_a_result_is_told_without_escapes() -> None:
    part = rb'{"functionResponse":{"name":"f","response":{"a":"18 \u00b0C","b":[1.5,null]}}}'
    found = CODEC.decode({"contents": Raw(b'[{"parts":[%b]}]' % part)}, model="m", stream=False)
    (result,) = found.messages[0].parts
    assert isinstance(result, ToolResult)
    (value,) = result.parts
    assert isinstance(value, Json)
    assert bytes(value.value).decode() == '{"a":"18 \u00b0C","b":[1.5,null]}'


@pytest.mark.parametrize(("data", "read"), [("-_-_", "+/+/"), ("AA", "AA=="), ("_-A", "/+A="), ("AAAA", "AAAA")])
def test_bytes_in_the_alphabet_of_urls(data: str, read: str) -> None:
    (part,) = decode(CODEC, of("user", {"inline_data": {"mime_type": "image/png", "data": data}})).messages[1].parts
    assert plain(part) == plain(Image(Media("image/png", read)))


@pytest.mark.parametrize(
    ("older", "schema"),
    [
        ({"type": "STRING", "format": "date-time"}, {"type": "string", "format": "date-time"}),
        ({"type": "STRING", "nullable": True}, {"type": ["string", "null"]}),
        ({"type": "INTEGER", "nullable": False}, {"type": "integer"}),
        ({"type": "TYPE_UNSPECIFIED", "description": "any"}, {"description": "any"}),
        (
            {"type": "STRING", "format": "enum", "enum": ["a", "b"], "nullable": True},
            {"type": ["string", "null"], "format": "enum", "enum": ["a", "b", None]},
        ),
        (
            {"anyOf": [{"type": "STRING"}, {"type": "NUMBER"}], "nullable": True},
            {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]},
        ),
        (
            {"type": "ARRAY", "items": {"type": "BOOLEAN"}, "minItems": "1", "maxItems": "9"},
            {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 9},
        ),
        (
            {
                "type": "OBJECT",
                "properties": {
                    "type": {"type": "STRING", "min_length": 1},
                    "nullable": {"any_of": [{"type": "NULL"}, {"ref": "#/defs/a"}]},
                },
                "required": ["type"],
                "property_ordering": ["nullable", "type", "gone"],
                "additional_properties": {"type": "INTEGER"},
                "defs": {"a": {"type": "STRING", "example": "x", "default": "STRING"}},
            },
            {
                "type": "object",
                "properties": {
                    "nullable": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]},
                    "type": {"type": "string", "minLength": 1},
                },
                "required": ["type"],
                "additionalProperties": {"type": "integer"},
                "$defs": {"a": {"type": "string", "examples": ["x"], "default": "STRING"}},
            },
        ),
    ],
)
def test_the_older_schema(older: dict[str, Any], schema: dict[str, Any]) -> None:
    found = decode(CODEC, tools({"functionDeclarations": [{"name": "f", "parameters": older}]}))
    assert found.tools is not None
    (tool,) = found.tools
    assert isinstance(tool, Tool)
    assert tool.parameters is not None
    assert msgspec.json.encode(schema) == bytes(tool.parameters)  # the order of properties too
    form = decode(CODEC, config(responseMimeType="application/json", responseSchema=older)).format
    assert plain(form) == plain(Format("schema", schema=raw(schema)))


# ---- requests of others


def test_a_request_of_another_api() -> None:
    asked = other(
        messages=[
            Message("system", [Text("Be brief.")]),
            Message("developer", [Text("Be kind.")]),
            HI,
            Message("user", [Text(""), Text("Rome?")]),
            Message("assistant", [Thinking("Hm.", "foreign"), ToolCall("c1", "weather", '{"city":"Rome"}', "c2ln")]),
            Message("tool", [ToolResult("c1", [Text("21"), Text(" C")])]),
            Message("tool", [ToolResult("c2", [Json(raw([1])), Text("x")], "other", True)]),
            Message("assistant", []),
            Message("assistant", [Refusal("No."), Json(raw({"a": 1}))]),
        ],
        tools=[Tool("weather", "Tells it", raw(SCHEMA), True), Tool("now")],
        tool_choice=ToolChoice("required", ("weather",)),
        max_output=9,
        parallel=True,
    )
    assert written(asked) == (
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Hi"}, {"text": "Rome?"}]},
                {
                    "role": "model",
                    "parts": [{"text": "Hm.", "thought": True}, {**CALL, "thoughtSignature": "c2ln"}],
                },
                {
                    "role": "user",
                    "parts": [
                        {"functionResponse": {"id": "c1", "name": "weather", "response": {"output": "21 C"}}},
                        {"functionResponse": {"id": "c2", "name": "other", "response": {"error": [[1], "x"]}}},
                    ],
                },
                {"role": "model", "parts": [{"text": "No."}, {"text": '{"a":1}'}]},
            ],
            "tools": [{"functionDeclarations": [WEATHER, {"name": "now"}]}],
            "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}},
            "generationConfig": {"maxOutputTokens": 9},
        },
        [],
    )


def test_calls_that_a_third_generation_model_did_not_make_are_marked() -> None:
    turns = [
        HI,
        Message("assistant", [Text("a"), ToolCall("1", "f"), ToolCall("2", "f")]),
        Message("assistant", [ToolCall("3", "f")]),
        Message("tool", [ToolResult("1", [])]),
        Message("assistant", [ToolCall("4", "f", signature="c2ln"), ToolCall("5", "f")]),
    ]
    for model, proofs in (
        ("gemini-2.5-flash", [None, None, None, "c2ln", None]),
        ("gemini-3-flash-preview", ["skip_thought_signature_validator", None, None, "c2ln", None]),
        ("gemini-flash-latest", ["skip_thought_signature_validator", None, None, "c2ln", None]),
        ("a-tuned-one", ["skip_thought_signature_validator", None, None, "c2ln", None]),
        ("publishers/google/models/gemini-10-pro", ["skip_thought_signature_validator", None, None, "c2ln", None]),
    ):
        body, lost = written(other(messages=turns), model)
        assert lost == []
        called = [p for c in body["contents"] for p in c["parts"] if "functionCall" in p]
        assert [p.get("thoughtSignature") for p in called] == proofs


def test_a_thought_of_another_comes_back_whole() -> None:
    """Bytes to Google's SDK, which may write them in the other alphabet; a stream's pieces are put together again."""
    signature, seal = "ErUBCkYI/+\u00e9", "responses:rs_1:gAAA_-="
    told = [signed(Thinking("", signature)), signed(Thinking(sealed=seal))]
    assert told == [signed(Thinking("", one)) for one in told]
    assert told[0] is not None
    assert told[1] is not None
    proof, sealed = (one.replace("+", "-").replace("/", "_").rstrip("=") for one in told if one)
    pieces: list[list[dict[str, Any]]] = [
        [{"text": "I ", "thought": True}],
        [{"text": "think.", "thought": True}],
        [{"text": "", "thought": True, "thoughtSignature": proof}, {"text": "Yes."}],
        [{"text": "", "thought": True, "thoughtSignature": sealed}],
        [{"text": "Mine.", "thought": True, "thoughtSignature": "c2ln"}],
    ]
    found = decode(CODEC, {"contents": [ASKED, *({"role": "model", "parts": parts} for parts in pieces)]})
    assert [(m.role, m.parts) for m in found.messages[1:]] == [
        ("assistant", [Thinking("I think.", signature), Text("Yes.")]),
        ("assistant", [Thinking(sealed=seal)]),
        ("assistant", [Thinking("Mine.", extra={"thoughtSignature": raw("c2ln")})]),
    ]
    again, lost = encode(CODEC, found)
    assert lost == []
    assert plain(decode(CODEC, again)) == plain(found)


@pytest.mark.parametrize(
    ("model", "reasoning", "form"),
    [
        ("gemini-2.5-pro", Reasoning("medium"), {"thinkingBudget": 8192, "includeThoughts": True}),
        ("gemini-2.5-pro", Reasoning("max"), {"thinkingBudget": 24576, "includeThoughts": True}),
        ("gemini-2.5-pro", Reasoning("none"), {"thinkingBudget": 128}),
        ("gemini-2.5-flash", Reasoning("none"), {"thinkingBudget": 0}),
        ("gemini-2.5-pro", Reasoning(budget=-1, shown=False), {"thinkingBudget": -1, "includeThoughts": False}),
        ("gemini-2.5-pro", Reasoning(budget=30000), {"thinkingBudget": 30000, "includeThoughts": True}),
        ("gemini-2.5-pro", Reasoning(summary="auto"), {"includeThoughts": True}),
        ("gemini-3-pro", Reasoning("medium"), {"thinkingLevel": "MEDIUM", "includeThoughts": True}),
        ("gemini-3-pro", Reasoning("xhigh"), {"thinkingLevel": "HIGH", "includeThoughts": True}),
        ("gemini-3-pro", Reasoning("none"), {"thinkingLevel": "LOW", "includeThoughts": False}),
        ("gemini-3-flash", Reasoning("none"), {"thinkingLevel": "MINIMAL", "includeThoughts": False}),
        ("gemini-3-pro", Reasoning(budget=2048), {"thinkingLevel": "LOW", "includeThoughts": True}),
        ("gemini-3-pro", Reasoning(budget=-1, shown=True), {"includeThoughts": True}),
        ("gemini-3-pro", Reasoning(), None),
    ],
)
def test_reasoning_of_others(model: str, reasoning: Reasoning, form: dict[str, Any] | None) -> None:
    body, lost = written(other(reasoning=reasoning), model)
    assert body.get("generationConfig", {}).get("thinkingConfig") == form
    assert lost == []


def test_media_of_others() -> None:
    parts: list[Part] = [
        Image(Media("image/png", "AAAA"), "auto"),
        Image(Media(url="https://x.test/a.jpeg?s=1")),
        Image(Media(url="https://x.test/a")),
        Document(Media("application/pdf", "AAAA"), "report.pdf"),
        Document(Media(data="AAAA")),
        Document(Media("text/plain", text="abc"), "t"),
        Audio(Media("audio/mpeg", "AAAA")),
    ]
    body, lost = written(other(messages=[Message("user", parts)]))
    assert lost == []
    assert body["contents"][0]["parts"] == [
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://x.test/a.jpeg?s=1"}},
        {"fileData": {"fileUri": "https://x.test/a"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "AAAA"}},
        {"inlineData": {"mimeType": "application/octet-stream", "data": "AAAA"}},
        {"text": "abc"},
        {"inlineData": {"mimeType": "audio/mpeg", "data": "AAAA"}},
    ]


def test_a_format_is_described_in_its_schema() -> None:
    body, lost = written(other(format=Format("schema", "city", raw({"type": "object"}), True, "a city")))
    assert lost == []
    assert body["generationConfig"] == {
        "responseMimeType": "application/json",
        "responseJsonSchema": {"type": "object", "description": "a city"},
    }


@pytest.mark.parametrize(
    ("values", "lost"),
    [
        ({"n": 1, "frequency_penalty": 0.0, "logprobs": False, "top_logprobs": 0, "parallel": True}, []),
        ({"temperature": 1.7, "top_k": 3, "n": 2, "logprobs": True, "top_logprobs": 5, "seed": -4}, []),
        ({"seed": 2**40, "user": "ada"}, ["seed: more than 31 bits", "user"]),
        ({"parallel": False}, []),
        ({"parallel": False, "tools": [TOOL]}, ["parallel"]),
        ({"tool_choice": ToolChoice("auto")}, []),
        ({"format": Format("json")}, []),
        ({"reasoning": Reasoning("immense")}, ["reasoning.effort: immense"]),
        ({"extra": {"service_tier": raw("flex"), "store": raw(None)}}, ["service_tier"]),
        ({"tools": [OpaqueTool("responses", "web_search", raw({}))]}, ["tools[0]: web_search"]),
        ({"messages": [Message("user", [Text("x")], "ada")]}, ["messages[0].name"]),
        (said("user", Image(Media(file="f1"))), ["messages[1].parts[0]: a file by its id at another provider"]),
        (said("user", Image(Media("image/png", "AAAA"), "high")), ["messages[1].parts[0].detail"]),
        (said("user", Opaque("messages", "search_result", raw({}))), ["messages[1].parts[0]: search_result"]),
        (said("assistant", Thinking("Hm.", "sig")), []),
        (said("assistant", Thinking(sealed="c2VhbGVk")), ["messages[1].parts[0]: a sealed thought"]),
        (
            said("system", Text("Now in French.")),
            ["messages[1]: that these instructions come after the first turn"],
        ),
        ({"messages": [Message("user", [Text("x")], extra={"new": raw(1)}), HI]}, ["messages[0].new"]),
    ],
)
def test_what_is_lost(values: dict[str, Any], lost: list[str]) -> None:
    assert written(other(**values))[1] == lost


def test_what_callers_often_say_is_no_loss_elsewhere() -> None:
    body: dict[str, Any] = {
        "contents": [
            ASKED,
            {"role": "model", "parts": [{"text": "a", "thoughtSignature": "c2ln"}, CALL]},
            {"role": "user", "parts": [{"functionResponse": {"name": "weather", "response": {"output": "x"}}}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "weather", "parameters": {"type": "OBJECT"}}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "VALIDATED", "streamFunctionCallArguments": True}},
        "generationConfig": {"responseModalities": ["TEXT"], "candidateCount": 1, "maxOutputTokens": 5},
    }
    for name in ("chat", "responses", "messages", "converse"):
        assert encode(CODECS[name], decode(CODEC, body), CODEC)[1] == []


def test_arguments_that_are_no_object_are_refused() -> None:
    for arguments in ("[1]", "{", "\ud800"):
        with pytest.raises(Failure, match=r"messages\[1\]\.parts\[0\]\.arguments") as caught:
            written(other(**said("assistant", ToolCall("1", "f", arguments))))
        assert caught.value.status == 400


# ---- wrong input


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "contents"),
        ({"contents": "Hi"}, "contents"),
        ({"contents": [1]}, "contents"),
        ({"contents": [{"role": "system", "parts": []}]}, r"contents\[0\]\.role"),
        ({"contents": [{"parts": "Hi"}]}, r"contents\[0\]\.parts"),
        (of("user", {"text": 1}), r"contents\[1\]\.parts\[0\]\.text"),
        (of("user", {"inlineData": {"data": "?!"}}), r"inlineData\.data"),
        (of("user", {"inlineData": {"mimeType": "image/png"}}), r"inlineData\.data"),
        (of("user", {"fileData": {}}), r"fileData\.fileUri"),
        (of("model", {"functionCall": {"args": {}}}), r"functionCall\.name"),
        (of("model", {"functionCall": {"name": "f", "args": []}}), r"functionCall\.args"),
        (of("user", {"functionResponse": {"name": "f", "response": "x"}}), r"functionResponse\.response"),
        ({"contents": [ASKED], "systemInstruction": 5}, "systemInstruction"),
        ({"contents": [ASKED], "systemInstruction": [5]}, r"systemInstruction\[0\]"),
        ({"contents": [ASKED], "tools": [{"functionDeclarations": [{}]}]}, r"functionDeclarations\[0\]\.name"),
        ({"contents": [ASKED], "toolConfig": {"functionCallingConfig": {"mode": "MAYBE"}}}, r"mode"),
        (config(topK=1.5), r"generationConfig\.topK"),
        (config(maxOutputTokens="9"), r"generationConfig\.maxOutputTokens"),
        (config(responseSchema=[]), r"generationConfig\.responseSchema"),
        (config(thinkingConfig={"thinkingBudget": "x"}), r"thinkingConfig\.thinkingBudget"),
    ],
)
def test_wrong_input_names_its_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(Failure, match=field) as caught:
        decode(CODEC, body)
    assert caught.value.status == 400


@settings(max_examples=300)
@given(st.data())
def test_any_request_is_read_or_refused(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from([body for body, _ in SHAPES.values()]))
    body = changed(body, data.draw(st.sampled_from(list(places(body)))), data.draw(WRONG))
    try:
        fields = msgspec.json.decode(wire(body), type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # refused by the dialect
    with refused(400):
        found = CODEC.decode(fields, model="m", stream=False)
        for name in ("chat", "responses", "messages", "converse"):
            with refused(400):
                CODECS[name].encode(found, Lost(), model="m", max_output=1000)
        once = CODEC.encode(found, Lost(), model="gemini-3-pro", max_output=1)
        again = CODEC.decode(once, model="m", stream=False)
        twice = CODEC.encode(again, Lost(), model="gemini-3-pro", max_output=1)
        assert msgspec.json.encode(twice) == msgspec.json.encode(once)
