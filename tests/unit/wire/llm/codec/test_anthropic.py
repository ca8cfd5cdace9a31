"""Anthropic messages: the documented forms of requests and whole answers, and the neutral model, both ways."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies.forms import BYTES, WRONG, Place, changed, decode, encode, places, plain, raw, refused, written

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.anthropic import AnthropicCodec
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
CODEC = AnthropicCodec()
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
HI = {"role": "user", "content": "hi"}
MARK = {"cache_control": {"type": "ephemeral"}}

CITED: dict[str, tuple[dict[str, Any], Citation]] = {
    "char": (
        {
            "type": "char_location",
            "cited_text": "q",
            "document_index": 0,
            "document_title": "D",
            "start_char_index": 1,
            "end_char_index": 2,
            "file_id": "f",
        },
        Citation("char", "D", None, 0, 1, 2, "q", extra={"file_id": raw("f")}),
    ),
    "page": (
        {
            "type": "page_location",
            "cited_text": "q",
            "document_index": 3,
            "document_title": None,
            "start_page_number": 1,
            "end_page_number": 2,
        },
        Citation("page", None, None, 3, 1, 2, "q"),
    ),
    "block": (
        {
            "type": "content_block_location",
            "cited_text": "q",
            "document_index": 3,
            "document_title": "D",
            "start_block_index": 1,
            "end_block_index": 2,
        },
        Citation("block", "D", None, 3, 1, 2, "q"),
    ),
    "url": (
        {
            "type": "web_search_result_location",
            "cited_text": "q",
            "url": "https://x.test",
            "title": "X",
            "encrypted_index": "e",
        },
        Citation("url", "X", "https://x.test", quote="q", extra={"encrypted_index": raw("e")}),
    ),
    "search": (
        {
            "type": "search_result_location",
            "cited_text": "q",
            "source": "s",
            "title": "X",
            "search_result_index": 1,
            "start_block_index": 0,
            "end_block_index": 1,
        },
        Citation("search", "X", "s", 1, 0, 1, "q"),
    ),
    "another": ({"type": "dream_location", "depth": 3}, Citation("dream_location", extra={"depth": raw(3)})),
}

# A block in the API's form, and what it means. It is written again as it came.
BLOCKS: dict[str, tuple[dict[str, Any], Part]] = {
    "text with a marker": ({"type": "text", "text": "a", **MARK}, Text("a", Cache())),
    "text with a marker for an hour": (
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h", "a": 1}},
        Text("a", Cache("1h"), extra={"cache_control": {"a": raw(1)}}),
    ),
    "citations": (
        {"type": "text", "text": "a", "citations": [form for form, _ in CITED.values()]},
        Text("a", citations=[cited for _, cited in CITED.values()]),
    ),
    "picture as data": (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        Image(Media("image/png", "aGk=")),
    ),
    "picture by URL": (
        {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}, **MARK},
        Image(Media(url="https://x.test/a.png"), cache=Cache()),
    ),
    "picture by id": (
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
        Image(Media(file="file_1")),
    ),
    "picture with more": (
        {"type": "image", "source": {"type": "url", "url": "https://x.test", "a": 1}, "transformations": {"b": 2}},
        Image(
            Media(url="https://x.test"),
            extra={"transformations": raw({"b": 2}), "source": {"a": raw(1)}},
        ),
    ),
    "document": (
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
            "title": "T",
            "context": "C",
            "citations": {"enabled": True},
            **MARK,
        },
        Document(Media("application/pdf", "aGk="), "T", "C", True, Cache()),
    ),
    "document as text": (
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "t"}},
        Document(Media("text/plain", text="t")),
    ),
    "document by URL": (
        {"type": "document", "source": {"type": "url", "url": "https://x.test/a.pdf"}},
        Document(Media(url="https://x.test/a.pdf")),
    ),
    "document by id": (
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        Document(Media(file="file_1")),
    ),
    "document in blocks": (
        {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "a"}]}, "title": "T"},
        Opaque(
            "messages",
            "document",
            raw(
                {
                    "type": "document",
                    "source": {"type": "content", "content": [{"type": "text", "text": "a"}]},
                    "title": "T",
                }
            ),
        ),
    ),
    "search result": (
        {"type": "search_result", "source": "s", "title": "t", "content": []},
        Opaque("messages", "search_result", raw({"type": "search_result", "source": "s", "title": "t", "content": []})),
    ),
    "call": (
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bonn"}, **MARK},
        ToolCall("toolu_1", "weather", '{"city":"Bonn"}', cache=Cache()),
    ),
    "call by a program": (
        {"type": "tool_use", "id": "t", "name": "f", "input": {}, "caller": {"type": "direct"}},
        ToolCall("t", "f", "{}", extra={"caller": raw({"type": "direct"})}),
    ),
    "result": (
        {"type": "tool_result", "tool_use_id": "t", "content": "sunny", "is_error": True, **MARK},
        ToolResult("t", [Text("sunny")], error=True, cache=Cache()),
    ),
    "result in blocks": (
        {
            "type": "tool_result",
            "tool_use_id": "t",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                {"type": "tool_reference", "tool_name": "f"},
            ],
        },
        ToolResult(
            "t",
            [
                Text("a"),
                Image(Media("image/png", "aGk=")),
                Opaque("messages", "tool_reference", raw({"type": "tool_reference", "tool_name": "f"})),
            ],
        ),
    ),
    "result of nothing": ({"type": "tool_result", "tool_use_id": "t", "content": []}, ToolResult("t", [])),
    "thought": ({"type": "thinking", "thinking": "hm", "signature": "s"}, Thinking("hm", "s")),
    "thought that is not told": ({"type": "thinking", "thinking": "", "signature": "s"}, Thinking("", "s")),
    "sealed thought": ({"type": "redacted_thinking", "data": "e"}, Thinking(sealed="e")),
    "what the provider ran": (
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
        Opaque(
            "messages",
            "server_tool_use",
            raw({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}}),
        ),
    ),
}

# A field of a request in the API's form, and what it means.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sampling": (
        {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["a"]},
        {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": ["a"]},
    ),
    "stream": ({"stream": True}, {"stream": True}),
    "user": ({"metadata": {"user_id": "u", "a": 1}}, {"user": "u", "extra": {"metadata": {"a": raw(1)}}}),
    "tool": (
        {"tools": [{"name": "f", "description": "d", "input_schema": SCHEMA, "strict": True, **MARK, "a": 1}]},
        {"tools": [Tool("f", "d", raw(SCHEMA), True, Cache(), {"a": raw(1)})]},
    ),
    "tool of the provider's": (
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}]},
        {
            "tools": [
                OpaqueTool(
                    "messages",
                    "web_search_20250305",
                    raw({"type": "web_search_20250305", "name": "web_search", "max_uses": 3}),
                )
            ]
        },
    ),
    "auto": (
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        {"tool_choice": ToolChoice("auto"), "parallel": False},
    ),
    "any": (
        {"tool_choice": {"type": "any", "disable_parallel_tool_use": False}},
        {"tool_choice": ToolChoice("required"), "parallel": True},
    ),
    "none": ({"tool_choice": {"type": "none"}}, {"tool_choice": ToolChoice("none")}),
    "one tool": (
        {"tool_choice": {"type": "tool", "name": "f", "a": 1}},
        {"tool_choice": ToolChoice("required", ("f",)), "extra": {"tool_choice": {"a": raw(1)}}},
    ),
    "budget": (
        {"thinking": {"type": "enabled", "budget_tokens": 2048, "display": "omitted"}},
        {"reasoning": Reasoning(budget=2048, shown=False)},
    ),
    "no thought": ({"thinking": {"type": "disabled"}}, {"reasoning": Reasoning(budget=0)}),
    "adaptive": (
        {"thinking": {"type": "adaptive", "display": "summarized", "a": 1}, "output_config": {"effort": "max"}},
        {"reasoning": Reasoning("max", -1, True, extra={"a": raw(1)})},
    ),
    "thought of its own kind": (
        {"thinking": {"type": "between_tools"}},
        {"extra": {"thinking": raw({"type": "between_tools"})}},
    ),
    "JSON of a schema": (
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA, "a": 1}, "b": 2}},
        {
            "format": Format("schema", schema=raw(SCHEMA), extra={"a": raw(1)}),
            "extra": {"output_config": {"b": raw(2)}},
        },
    ),
    "its own": (
        {"container": "c", "service_tier": "standard_only", "cache_control": {"type": "ephemeral"}},
        {
            "extra": {
                "container": raw("c"),
                "service_tier": raw("standard_only"),
                "cache_control": raw({"type": "ephemeral"}),
            }
        },
    ),
}

# Messages of a request, and what they mean.
CONVERSATIONS: dict[str, tuple[dict[str, Any], list[Message]]] = {
    "instructions": (
        {"system": "Be brief.", "messages": [HI]},
        [Message("system", [Text("Be brief.")]), Message("user", [Text("hi")])],
    ),
    "instructions in blocks": (
        {"system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", **MARK}], "messages": [HI]},
        [Message("system", [Text("a"), Text("b", Cache())]), Message("user", [Text("hi")])],
    ),
    "instructions in between": (
        {"messages": [HI, {"role": "assistant", "content": "yes?"}, {"role": "system", "content": "Hurry."}]},
        [Message("user", [Text("hi")]), Message("assistant", [Text("yes?")]), Message("system", [Text("Hurry.")])],
    ),
    "neighbours": (
        {"messages": [HI, {"role": "user", "content": "there", "a": 1}]},
        [Message("user", [Text("hi")]), Message("user", [Text("there")], extra={"a": raw(1)})],
    ),
    "nothing": ({"messages": [{"role": "user", "content": []}]}, [Message("user", [])]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_read_and_written(name: str) -> None:
    form, meant = BLOCKS[name]
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": [form]}]}
    chat = decode(CODEC, body)
    assert plain(chat.messages) == plain([Message("user", [meant])])
    assert encode(CODEC, chat) == (body, [])


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_is_read_and_written(name: str) -> None:
    fields, meant = CONVERSATIONS[name]
    body = {"model": "m", "max_tokens": 9, **fields}
    chat = decode(CODEC, body)
    assert plain(chat.messages) == plain(meant)
    assert encode(CODEC, chat) == (body, [])


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_read_and_written(name: str) -> None:
    fields, meant = FIELDS[name]
    body = {"model": "m", "max_tokens": 9, "messages": [HI], **fields}
    chat = decode(CODEC, body)
    expected = Chat("messages", "m", [Message("user", [Text("hi")])], max_output=9, include_usage=True)
    for field, value in meant.items():
        setattr(expected, field, value)
    assert plain(chat) == plain(expected)
    assert encode(CODEC, chat) == (body, [])


@pytest.mark.parametrize(
    "body, again",
    [
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, {}),
        ({"system": [{"type": "text", "text": "a"}]}, {"system": "a"}),
        (
            {"tools": [{"type": "custom", "name": "f"}]},
            {"tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]},
        ),
        ({"thinking": None, "tool_choice": None, "metadata": None, "system": None}, {}),
        (
            {"messages": [HI, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]},
            {
                "messages": [
                    HI,
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": []}]},
                ]
            },
        ),
    ],
)
def test_what_is_written_otherwise(body: dict[str, Any], again: dict[str, Any]) -> None:
    start = {"model": "m", "max_tokens": 9, "messages": [HI]}
    assert encode(CODEC, decode(CODEC, {**start, **body})) == ({**start, **again}, [])


def block(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [fields]}]}


@pytest.mark.parametrize(
    "body, problem",
    [
        ({"messages": None}, "messages: is missing: it must be a list of messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role: 'boss' is not a role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content: must be a string or a list of blocks"),
        ({"system": 5}, "system: must be a string or a list of blocks"),
        (block(type="text"), "messages[0].content[0].text: is missing"),
        (block(type="text", text="a", citations=[{}]), "messages[0].content[0].citations[0].type: is missing"),
        (block(type="text", text="a", cache_control=5), "messages[0].content[0].cache_control: must be an object"),
        (block(type="image"), "messages[0].content[0].source: is missing"),
        (
            block(type="image", source={"type": "base64", "media_type": "image/png", "data": "no!"}),
            "messages[0].content[0].source.data: must be base64",
        ),
        (
            block(type="image", source={"type": "base64", "data": "aGk="}),
            "messages[0].content[0].source.media_type: is",
        ),
        (block(type="tool_use", name="f", input={}), "messages[0].content[0].id: is missing"),
        (block(type="tool_use", id="t", name="f", input=[]), "messages[0].content[0].input: must be an object"),
        (block(type="tool_result"), "messages[0].content[0].tool_use_id: is missing"),
        (block(type="redacted_thinking"), "messages[0].content[0].data: is missing"),
        ({"max_tokens": "9"}, "max_tokens: must be an integer"),
        ({"tools": [{}]}, "tools[0].name: is missing"),
        ({"tools": [{"name": "f", "input_schema": "x"}]}, "tools[0].input_schema: must be an object"),
        ({"tool_choice": "auto"}, "tool_choice: must be an object"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type: 'some' is not one of"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens: is missing"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type: 'xml' is not json_schema"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema: is missing"),
        ({"stop_sequences": "x"}, "stop_sequences: must be a list of strings"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id: must be a string"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], problem: str) -> None:
    with pytest.raises(Failure) as raised:
        decode(CODEC, {"model": "m", "max_tokens": 9, "messages": [HI], **body})
    assert raised.value.status == 400
    assert raised.value.message.startswith(problem)


# A part of another API's request, the block it becomes (None: none), and what is lost.
PDF = {"type": "base64", "media_type": "application/pdf", "data": "aGk="}
FOREIGN: list[tuple[Part, Any, list[str]]] = [
    (Text(""), None, []),
    (Text("a", Cache("30m")), {"type": "text", "text": "a", **MARK}, []),
    (Text("a", citations=[Citation("url")]), {"type": "text", "text": "a"}, [".citations"]),
    (
        Image(Media("image/jpg", "aGk="), "auto"),
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "aGk="}},
        [],
    ),
    (
        Image(Media(url="http://x/a.png"), "low"),
        {"type": "image", "source": {"type": "url", "url": "http://x/a.png"}},
        [".detail"],
    ),
    (Image(Media("image/tiff", "aGk=")), None, [": a picture of type image/tiff"]),
    (Image(Media(data="aGk=")), None, [": a picture of type unknown"]),
    (Image(Media(url="gs://x/a.png")), None, [": a picture by a URL that is not of the web"]),
    (Image(Media(file="f")), None, [": a file by its id at another provider"]),
    (Audio(Media("audio/wav", "aGk=")), None, [": sound"]),
    (Document(Media(data="aGk="), "T"), {"type": "document", "source": PDF, "title": "T"}, []),
    (
        Document(Media("text/csv", "aGk=")),
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hi"}},
        [],
    ),
    (Document(Media("text/plain", "/w==")), None, [": a document of type text/plain"]),
    (Document(Media("video/mp4", "aGk=")), None, [": a document of type video/mp4"]),
    (Document(Media("video/mp4", url="https://x")), None, [": a document of type video/mp4 by URL"]),
    (Json(raw({"a": 1})), {"type": "text", "text": '{"a":1}'}, []),
    (Refusal("No."), {"type": "text", "text": "No."}, []),
    (Thinking("hm"), None, [": a thought without a signature"]),
    (Thinking("hm", ""), None, [": a thought without a signature"]),
    (Thinking("hm", "s"), {"type": "thinking", "thinking": "hm", "signature": "s"}, []),
    (Thinking(sealed="e"), {"type": "redacted_thinking", "data": "e"}, []),
    (Thinking("hm", "responses:rs_1:e"), None, [": a thought of another provider's"]),
    (Thinking(sealed="responses:rs_1:e"), None, [": a thought of another provider's"]),
    (Opaque("chat", "hologram", raw({})), None, [": hologram"]),
    (
        ToolCall("a.b:0", "f", '{"é": [1e999]}', "s", extra={"x": raw(1)}),
        {"type": "tool_use", "id": "a_b_0", "name": "f", "input": {"é": [float("inf")]}},
        [".x"],
    ),
]


@pytest.mark.parametrize("part, form, lost", FOREIGN)
def test_what_another_api_says(part: Part, form: Any, lost: list[str]) -> None:
    chat = Chat("chat", "m", [Message("assistant", [Text("so"), part])])
    found = Lost()
    fields = CODEC.encode(chat, found, model="m", max_output=9)
    if isinstance(part, ToolCall):
        form = {**form, "input": None}
        said = bytes(fields["messages"]).replace(b'{"\xc3\xa9":[1e999]}', b"null")
    else:
        said = bytes(fields["messages"])
    first = {"type": "text", "text": "so"}
    content = "so" if form is None else [first, form]
    assert msgspec.json.decode(said) == [{"role": "assistant", "content": content}]
    assert found.places == ["messages[0].parts[1]" + place for place in lost]


def test_turns_of_another_api() -> None:
    chat = Chat(
        "chat",
        "m",
        [
            Message("developer", [Text("a")]),
            Message("system", [Text("b")], "ops"),
            Message("user", [Text("go")]),
            Message("user", []),
            Message("assistant", [Text(""), ToolCall("1", "f"), ToolCall("2", "g")]),
            Message("user", [Text("wait")]),
            Message("tool", [ToolResult("1", [Text("x")])]),
            Message("tool", [ToolResult("2", [Json(raw([1])), Text("")], error=True)]),
            Message("user", [Text("and?")], extra={"z": raw(1)}),
            Message("assistant", [Text("")]),
            Message("system", [Text("Hurry.")]),
        ],
    )
    body, lost = encode(CODEC, chat)
    assert body["system"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert body["messages"] == [
        {"role": "user", "content": "go"},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "1", "name": "f", "input": {}},
                {"type": "tool_use", "id": "2", "name": "g", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "x"},
                {"type": "tool_result", "tool_use_id": "2", "content": "[1]", "is_error": True},
                {"type": "text", "text": "wait"},
                {"type": "text", "text": "and?"},
            ],
        },
        {"role": "system", "content": "Hurry."},
    ]
    assert lost == ["messages[1].name", "messages[8].z"]


TOOLS: list[Tool | OpaqueTool] = [Tool("f"), Tool("g"), Tool("h")]


@pytest.mark.parametrize(
    "fields, body, lost",
    [
        ({}, {"max_tokens": 4096}, []),
        ({"temperature": 1.5}, {"max_tokens": 4096}, ["temperature: outside of 0 to 1"]),
        ({"temperature": 1}, {"max_tokens": 4096, "temperature": 1.0}, []),
        ({"n": 1, "logprobs": False, "frequency_penalty": 0.0, "top_logprobs": 0}, {"max_tokens": 4096}, []),
        (
            {"n": 2, "logprobs": True, "seed": 0, "presence_penalty": 1.0},
            {"max_tokens": 4096},
            ["presence_penalty", "n", "logprobs", "seed"],
        ),
        ({"reasoning": Reasoning("none")}, {"max_tokens": 4096, "thinking": {"type": "disabled"}}, []),
        (
            {"reasoning": Reasoning("low", shown=True)},
            {
                "max_tokens": 4096 + 2048,
                "thinking": {"type": "enabled", "budget_tokens": 2048, "display": "summarized"},
            },
            [],
        ),
        (
            {"reasoning": Reasoning("high"), "max_output": 3000},
            {"max_tokens": 3000, "thinking": {"type": "enabled", "budget_tokens": 1500}},
            [],
        ),
        (
            {"reasoning": Reasoning("high"), "max_output": 1200},
            {"max_tokens": 1200, "thinking": {"type": "enabled", "budget_tokens": 1024}},
            [],
        ),
        (
            {"reasoning": Reasoning("low"), "max_output": 1024},
            {"max_tokens": 1024},
            ["reasoning: a bound of 1024 on the answer leaves no room for thought (1,024 at least)"],
        ),
        (
            {"reasoning": Reasoning(budget=100), "max_output": 3000},
            {"max_tokens": 3000, "thinking": {"type": "enabled", "budget_tokens": 1024}},
            [],
        ),
        ({"reasoning": Reasoning(budget=-1)}, {"max_tokens": 4096, "thinking": {"type": "adaptive"}}, []),
        ({"reasoning": Reasoning("utmost")}, {"max_tokens": 4096}, ["reasoning.effort: utmost"]),
        ({"reasoning": Reasoning(shown=True)}, {"max_tokens": 4096}, []),
        ({"format": Format("text")}, {"max_tokens": 4096}, []),
        ({"format": Format("text", extra={"mime": raw("x")})}, {"max_tokens": 4096}, ["format.mime"]),
        ({"format": Format("json")}, {"max_tokens": 4096}, ["format: JSON without a schema"]),
        (
            {"format": Format("schema", "w", raw({"type": "object"}), True, "d")},
            {
                "max_tokens": 4096,
                "output_config": {"format": {"type": "json_schema", "schema": {"type": "object", "description": "d"}}},
            },
            [],
        ),
        (
            {"format": Format("schema", "w", raw({"description": "e"}), True, "d")},
            {"max_tokens": 4096, "output_config": {"format": {"type": "json_schema", "schema": {"description": "e"}}}},
            [],
        ),
        ({"parallel": False}, {"max_tokens": 4096}, []),
        ({"user": "u"}, {"max_tokens": 4096, "metadata": {"user_id": "u"}}, []),
        ({"extra": {"logit_bias": raw({"5": 1})}}, {"max_tokens": 4096}, ["logit_bias"]),
    ],
)
def test_wishes_of_another_api(fields: dict[str, Any], body: dict[str, Any], lost: list[str]) -> None:
    chat = Chat("chat", "m", [Message("user", [Text("hi")])])
    for name, value in fields.items():
        setattr(chat, name, value)
    assert encode(CODEC, chat) == ({"model": "m", "messages": [HI], **body}, lost)


@pytest.mark.parametrize(
    "choice, parallel, form, names",
    [
        (None, None, None, "fgh"),
        (None, True, None, "fgh"),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}, "fgh"),
        (ToolChoice("auto"), True, {"type": "auto"}, "fgh"),
        (ToolChoice("none"), False, {"type": "none"}, "fgh"),
        (ToolChoice("required"), None, {"type": "any"}, "fgh"),
        (
            ToolChoice("required", ("g",)),
            False,
            {"type": "tool", "name": "g", "disable_parallel_tool_use": True},
            "fgh",
        ),
        (ToolChoice("required", ("f", "g")), None, {"type": "any"}, "fg"),
        (ToolChoice("auto", ("h",)), None, {"type": "auto"}, "h"),
    ],
)
def test_which_tools_may_be_called(
    choice: ToolChoice | None, parallel: bool | None, form: dict[str, Any] | None, names: str
) -> None:
    chat = Chat("chat", "m", [], tools=TOOLS, tool_choice=choice, parallel=parallel)
    body, lost = encode(CODEC, chat)
    assert body.get("tool_choice") == form
    assert "".join(tool["name"] for tool in body["tools"]) == names
    assert lost == []


@pytest.mark.parametrize(
    "arguments", ["[]", "no", '{"a":NaN}', "{", '"\\ud800"', '{"a":' + "[" * 50_000 + "]" * 50_000 + "}"]
)
def test_arguments_that_are_no_object(arguments: str) -> None:
    chat = Chat("chat", "m", [Message("assistant", [Text("x"), ToolCall("a", "f", arguments)])])
    with pytest.raises(Failure) as raised:
        CODEC.encode(chat, Lost(), model="m", max_output=9)
    assert raised.value.status == 400
    assert raised.value.message == "messages[0].parts[1].arguments: must be the JSON text of an object"


def test_what_says_nothing_is_not_lost() -> None:
    body = {
        "messages": [HI],
        "service_tier": "auto",
        "speed": "standard",
        "cache_control": {"type": "ephemeral"},
        "tools": [{"name": "f", "input_schema": {}, "eager_input_streaming": True, "defer_loading": False}],
    }
    chat = decode(CODEC, body)
    lost = Lost(CODEC.quiet)
    lost.fields(chat.extra)
    assert chat.tools is not None
    lost.fields(chat.tools[0].extra)  # type: ignore[union-attr]
    lost.fields({"caller": raw({"type": "direct"}), "defer_loading": raw(True)}, "x.")
    assert lost.places == ["x.defer_loading"]


# ---- whole answers

ANSWER: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "e"},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
        {"type": "text", "text": "So.", "citations": [CITED["char"][0], CITED["url"][0]]},
        {
            "type": "tool_use",
            "id": "toolu_1",
            "name": "weather",
            "input": {"city": "Bonn"},
            "caller": {"type": "direct"},
        },
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "cache_creation_input_tokens": 5,
        "cache_read_input_tokens": 7,
        "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 2},
        "output_tokens": 20,
        "output_tokens_details": {"thinking_tokens": 4},
    },
    "container": {"id": "c"},
}


def test_an_answer() -> None:
    answer = CODEC.decode_answer(msgspec.json.encode(ANSWER))
    call = ToolCall("toolu_1", "weather", '{"city":"Bonn"}', extra={"caller": raw({"type": "direct"})})
    ran = Opaque("messages", "server_tool_use", raw(ANSWER["content"][2]))
    assert plain(answer) == plain(
        Answer(
            "messages",
            "msg_1",
            "claude-x",
            [
                Choice(
                    [
                        Thinking("hm", "s"),
                        Thinking(sealed="e"),
                        ran,
                        Text("So.", citations=[CITED["char"][1], CITED["url"][1]]),
                        call,
                    ],
                    "tool_calls",
                    detail="tool_use",
                )
            ],
            0,
            Usage(10, 20, 7, 5, 4, cache_write_1h=2),
            {"container": raw({"id": "c"})},
        )
    )
    assert msgspec.json.decode(CODEC.encode_answer(answer, Chat("messages", "m", []))) == ANSWER


@pytest.mark.parametrize(
    "reason, stop",
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("stop_sequence", "stop_sequence"),
        ("tool_use", "tool_calls"),
        ("pause_turn", "pause"),
        ("refusal", "refusal"),
        ("model_context_window_exceeded", "context_window"),
        ("what_is_new", "stop"),
        (None, "stop"),
    ],
)
def test_why_an_answer_ended(reason: str | None, stop: str) -> None:
    answer = CODEC.decode_answer(msgspec.json.encode({"content": [], "stop_reason": reason, "stop_sequence": "x"}))
    assert (answer.choices[0].stop, answer.choices[0].stop_sequence) == (stop, "x")
    again = msgspec.json.decode(CODEC.encode_answer(answer, Chat("messages", "m", [])))
    assert again["stop_reason"] == (reason or "end_turn")


def test_an_answer_of_another_api() -> None:
    answer = Answer(
        "chat",
        "chatcmpl-1",
        "gpt",
        [
            Choice(
                [
                    Thinking("hm"),
                    Text(""),
                    Text("So.", citations=[Citation("url", None, "https://x")], extra={"a": raw(1)}),
                    Refusal("No."),
                    Image(Media("image/png", "aGk=")),
                    ToolCall("call_1", "f", "", "sig", extra={"a": raw(1)}),
                    Opaque("chat", "custom", raw({})),
                ],
                "content_filter",
                logprobs=raw([]),
                extra={"a": raw(1)},
            ),
            Choice([Text("other")]),
        ],
        5,
        None,
        {"system_fingerprint": raw("x")},
    )
    assert msgspec.json.decode(CODEC.encode_answer(answer, Chat("messages", "m", []))) == {
        "id": "chatcmpl-1",
        "type": "message",
        "role": "assistant",
        "model": "gpt",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {
                "type": "text",
                "text": "So.",
                "citations": [
                    {
                        "type": "web_search_result_location",
                        "url": "https://x",
                        "title": None,
                        "cited_text": "",
                        "encrypted_index": "",
                    }
                ],
            },
            {"type": "text", "text": "No."},
            {"type": "tool_use", "id": "call_1", "name": "f", "input": {}},
        ],
        "stop_reason": "refusal",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    }


def test_arguments_that_were_cut_with_the_answer() -> None:
    cut = Answer("chat", "i", "m", [Choice([ToolCall("c", "f", '{"a":')], "length")])
    found = msgspec.json.decode(CODEC.encode_answer(cut, Chat("messages", "m", [])))
    assert found["content"] == [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]
    cut.choices[0].stop = "tool_calls"
    with pytest.raises(Failure) as raised:
        CODEC.encode_answer(cut, Chat("messages", "m", []))
    assert raised.value.status == 502


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"type":"error","error":{"type":"api_error","message":"no"}}',
        b'{"content":{}}',
        b'{"content":["x"]}',
        b'{"content":[{"type":"tool_use","name":"f"}]}',
        b'{"content":[{"type":"tool_use","id":"a","name":"f","input":"x"}]}',
        b'{"content":[{"type":"text","text":"\xff"}]}',
        b'{"content":[{"type":"tool_use","id":"a","name":"f","input":{"a":"\xff"}}]}',
        b'{"content":[{"type":"text","text":"\\ud800"}]}',
        b'{"content":[],"stop_reason":5}',
        b'{"content":' + b"[" * 5000,
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(Failure) as raised:
        CODEC.decode_answer(body)
    assert raised.value.status == 502


# ---- whatever is wrong, it is a Failure

ALL: dict[str, Any] = {
    "model": "m",
    "max_tokens": 9,
    "system": [{"type": "text", "text": "s", **MARK}],
    "messages": [HI, {"role": "user", "content": [form for form, _ in BLOCKS.values()]}],
}
for _fields, _ in FIELDS.values():
    ALL |= _fields


@given(st.sampled_from(list(places(ALL))), WRONG | st.just(...))
@settings(max_examples=300, deadline=None)
def test_a_changed_request_is_read_or_refused(place: Place, new: Any) -> None:
    try:
        fields = msgspec.json.decode(written(changed(ALL, place, new)), type=dict[str, Raw])
    except (msgspec.DecodeError, RecursionError):
        return  # no JSON object at all: never comes here
    chat = None
    with refused(400):
        chat = CODEC.decode(fields, model="m", stream=True)
        CODEC.encode(chat, Lost(), model="m", max_output=9)
    if chat is None or new == BYTES:  # those ride along where nobody looks
        return
    again, lost = encode(CODEC, chat)
    assert lost == []
    assert encode(CODEC, decode(CODEC, again)) == (again, [])


@given(st.sampled_from(list(places(ANSWER))), WRONG | st.just(...))
@settings(max_examples=200, deadline=None)
def test_a_changed_answer_is_read_or_refused(place: Place, new: Any) -> None:
    with refused(502):
        answer = CODEC.decode_answer(written(changed(ANSWER, place, new)))
        CODEC.encode_answer(answer, Chat("messages", "m", []))
