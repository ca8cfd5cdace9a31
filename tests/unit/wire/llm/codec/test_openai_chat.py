"""OpenAI chat completions: the documented forms of requests and whole answers, and the neutral model, both ways."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies.forms import BYTES, WRONG, Place, changed, decode, encode, places, plain, raw, refused, written

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec import Lost
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
CODEC = OpenAIChatCodec()
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
HI = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bonn"}'}}

# A message in the API's form, and what it means. It is written again as it came.
MESSAGES: dict[str, tuple[dict[str, Any], Message]] = {
    "text": (HI, Message("user", [Text("hi")])),
    "instructions": ({"role": "system", "content": "Be brief."}, Message("system", [Text("Be brief.")])),
    "developer": ({"role": "developer", "content": "Be brief."}, Message("developer", [Text("Be brief.")])),
    "name": ({"role": "user", "content": "hi", "name": "ada"}, Message("user", [Text("hi")], "ada")),
    "two texts": (
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        Message("user", [Text("a"), Text("b")]),
    ),
    "nothing": ({"role": "user", "content": ""}, Message("user", [Text("")])),
    "picture by URL": (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}]},
        Message("user", [Image(Media(url="https://x.test/a.png"))]),
    ),
    "picture as data": (
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}}],
        },
        Message("user", [Image(Media("image/png", "aGk="), "low")]),
    ),
    "sound": (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "aGk=", "format": "mp3"}}]},
        Message("user", [Audio(Media("audio/mpeg", "aGk="))]),
    ),
    "sound of another form": (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "aGk=", "format": "flac"}}]},
        Message("user", [Audio(Media("audio/flac", "aGk="))]),
    ),
    "file": (
        {
            "role": "user",
            "content": [
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGk="}}
            ],
        },
        Message("user", [Document(Media("application/pdf", "aGk="), "a.pdf")]),
    ),
    "file without a type": (
        {"role": "user", "content": [{"type": "file", "file": {"filename": "a.pdf", "file_data": "aGk="}}]},
        Message("user", [Document(Media(data="aGk="), "a.pdf")]),
    ),
    "file by id": (
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]},
        Message("user", [Document(Media(file="file-1"))]),
    ),
    "file by URL": (
        {"role": "user", "content": [{"type": "file", "file": {"file_data": "https://x.test/a.pdf"}}]},
        Message("user", [Document(Media(url="https://x.test/a.pdf"))]),
    ),
    "cache marker": (
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        Message("user", [Text("a", Cache())]),
    ),
    "cache marker for an hour": (
        {
            "role": "user",
            "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        },
        Message("user", [Text("a", Cache("1h"))]),
    ),
    "cache breakpoint": (
        {"role": "user", "content": [{"type": "text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}]},
        Message("user", [Text("a", Cache(), extra={"prompt_cache_breakpoint": raw({"mode": "explicit"})})]),
    ),
    "a part nobody knows": (
        {"role": "user", "content": [{"type": "hologram", "hologram": {"depth": 3}}]},
        Message("user", [Opaque("chat", "hologram", raw({"type": "hologram", "hologram": {"depth": 3}}))]),
    ),
    "fields nobody knows": (
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "https://x.test/a", "a": 1}, "b": [2]}],
            "c": {"d": None, "e": 3},
        },
        Message(
            "user",
            [Image(Media(url="https://x.test/a"), extra={"b": raw([2]), "image_url": {"a": raw(1)}})],
            extra={"c": raw({"d": None, "e": 3})},
        ),
    ),
    "answer": ({"role": "assistant", "content": "hello"}, Message("assistant", [Text("hello")])),
    "refusal": (
        {"role": "assistant", "content": None, "refusal": "I will not."},
        Message("assistant", [Refusal("I will not.")]),
    ),
    "refusal as a part": (
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Hm."}, {"type": "refusal", "refusal": "I will not."}],
        },
        Message("assistant", [Text("Hm."), Refusal("I will not.")]),
    ),
    "call": (
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        Message("assistant", [ToolCall("call_1", "weather", '{"city":"Bonn"}')]),
    ),
    "text and calls": (
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
        Message(
            "assistant",
            [
                Text("I look."),
                ToolCall("call_1", "weather", '{"city":"Bonn"}'),
                ToolCall("call_2", "weather", '{"city":"Bonn"}'),
            ],
        ),
    ),
    "call of another kind": (
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "sql", "input": "select"}}],
        },
        Message(
            "assistant",
            [
                Opaque(
                    "chat", "custom", raw({"id": "c", "type": "custom", "custom": {"name": "sql", "input": "select"}})
                )
            ],
        ),
    ),
    "signed call": (
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{**CALL, "extra_content": {"google": {"thought_signature": "s", "a": 1}, "b": 2}}],
        },
        Message(
            "assistant",
            [
                ToolCall(
                    "call_1",
                    "weather",
                    '{"city":"Bonn"}',
                    "s",
                    extra={"extra_content": {"b": raw(2), "google": {"a": raw(1)}}},
                )
            ],
        ),
    ),
    "thought": (
        {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"},
        Message("assistant", [Thinking("2 and 2"), Text("4")]),
    ),
    "proved thoughts": (
        {
            "role": "assistant",
            "content": "4",
            "reasoning_content": "2 and 2",
            "reasoning_details": [
                {"type": "reasoning.text", "text": "2 and 2", "signature": "s", "format": "f", "index": 0},
                {"type": "reasoning.encrypted", "data": "e", "id": "r", "index": 1},
            ],
        },
        Message(
            "assistant",
            [
                Thinking("2 and 2", "s", extra={"format": raw("f")}),
                Thinking(sealed="e", id="r"),
                Text("4"),
            ],
        ),
    ),
    "thought summed up": (
        {
            "role": "assistant",
            "content": "4",
            "reasoning_content": "sums",
            "reasoning_details": [{"type": "reasoning.summary", "summary": "sums", "index": 0}],
        },
        Message("assistant", [Thinking("sums", extra={"type": raw("reasoning.summary")}), Text("4")]),
    ),
    "sound that was answered": (
        {"role": "assistant", "content": None, "audio": {"id": "a"}},
        Message("assistant", [], extra={"audio": raw({"id": "a"})}),
    ),
    "result": (
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        Message("tool", [ToolResult("call_1", [Text("sunny")])]),
    ),
    "result in parts": (
        {
            "role": "tool",
            "tool_call_id": "call_1",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        Message("tool", [ToolResult("call_1", [Text("a"), Text("b")])]),
    ),
    "result of a function": (
        {"role": "function", "name": "weather", "content": "sunny"},
        Message("tool", [ToolResult("", [Text("sunny")], "weather")]),
    ),
}

# A field of a request in the API's form, and what it means.
FIELDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bound": ({"max_completion_tokens": 9}, {"max_output": 9}),
    "sampling": (
        {"temperature": 0.5, "top_p": 0.9, "frequency_penalty": 0.1, "presence_penalty": -0.1, "seed": 0, "n": 2},
        {
            "temperature": 0.5,
            "top_p": 0.9,
            "frequency_penalty": 0.1,
            "presence_penalty": -0.1,
            "seed": 0,
            "n": 2,
        },
    ),
    "top_k": ({"top_k": 5}, {"top_k": 5}),
    "stop": ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
    "log-probs": ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
    "user": ({"user": "u"}, {"user": "u"}),
    "stream": ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True, "include_usage": True}),
    "stream options": (
        {"stream": True, "stream_options": {"include_usage": False, "include_obfuscation": False}},
        {
            "stream": True,
            "include_usage": False,
            "extra": {"stream_options": {"include_obfuscation": raw(False)}},
        },
    ),
    "tool": (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "weather", "description": "d", "parameters": SCHEMA, "strict": True},
                }
            ]
        },
        {"tools": [Tool("weather", "d", raw(SCHEMA), True)]},
    ),
    "tool with nothing": ({"tools": [{"type": "function", "function": {"name": "now"}}]}, {"tools": [Tool("now")]}),
    "tool with a marker and more": (
        {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "now", "a": 1},
                    "cache_control": {"type": "ephemeral"},
                    "b": 2,
                }
            ]
        },
        {"tools": [Tool("now", cache=Cache(), extra={"b": raw(2), "function": {"a": raw(1)}})]},
    ),
    "tool of another kind": (
        {"tools": [{"type": "custom", "custom": {"name": "sql"}}]},
        {"tools": [OpaqueTool("chat", "custom", raw({"type": "custom", "custom": {"name": "sql"}}))]},
    ),
    "no tools": ({"tools": []}, {"tools": []}),
    "auto": ({"tool_choice": "auto"}, {"tool_choice": ToolChoice("auto")}),
    "none": ({"tool_choice": "none"}, {"tool_choice": ToolChoice("none")}),
    "required": (
        {"tool_choice": "required", "parallel_tool_calls": False},
        {"tool_choice": ToolChoice("required"), "parallel": False},
    ),
    "one tool": (
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tool_choice": ToolChoice("required", ("f",))},
    ),
    "some tools": (
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
            }
        },
        {"tool_choice": ToolChoice("auto", ("f",))},
    ),
    "one of another kind": (
        {"tool_choice": {"type": "custom", "custom": {"name": "sql"}}},
        {"extra": {"tool_choice": raw({"type": "custom", "custom": {"name": "sql"}})}},
    ),
    "some of another kind": (
        {
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "custom", "custom": {"name": "sql"}}]},
            }
        },
        {
            "extra": {
                "tool_choice": raw(
                    {
                        "type": "allowed_tools",
                        "allowed_tools": {"mode": "auto", "tools": [{"type": "custom", "custom": {"name": "sql"}}]},
                    }
                )
            }
        },
    ),
    "text": ({"response_format": {"type": "text"}}, {"format": Format("text")}),
    "JSON": ({"response_format": {"type": "json_object"}}, {"format": Format("json")}),
    "JSON of a schema": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "w", "description": "d", "schema": SCHEMA, "strict": True, "a": 1},
            }
        },
        {"format": Format("schema", "w", raw(SCHEMA), True, "d", {"json_schema": {"a": raw(1)}})},
    ),
    "a form nobody knows": (
        {"response_format": {"type": "grammar", "grammar": "x"}},
        {"extra": {"response_format": raw({"type": "grammar", "grammar": "x"})}},
    ),
    "effort": ({"reasoning_effort": "high"}, {"reasoning": Reasoning("high")}),
    "its own": (
        {"logit_bias": {"5": -100}, "metadata": {"a": "b"}, "store": True, "verbosity": "low"},
        {
            "extra": {
                "logit_bias": raw({"5": -100}),
                "metadata": raw({"a": "b"}),
                "store": raw(True),
                "verbosity": raw("low"),
            }
        },
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_read_and_written(name: str) -> None:
    form, meant = MESSAGES[name]
    body = {"model": "m", "messages": [form]}
    chat = decode(CODEC, body)
    assert plain(chat.messages) == plain([meant])
    assert encode(CODEC, chat) == (body, [])


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_read_and_written(name: str) -> None:
    fields, meant = FIELDS[name]
    body = {"model": "m", "messages": [HI], **fields}
    chat = decode(CODEC, body)
    expected = Chat("chat", "m", [Message("user", [Text("hi")])])
    for field, value in meant.items():
        setattr(expected, field, value)
    assert plain(chat) == plain(expected)
    assert encode(CODEC, chat) == (body, [])


@pytest.mark.parametrize(
    "body, again",
    [
        ({"max_tokens": 5}, {"max_completion_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_completion_tokens": 6}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"messages": [{**HI, "content": [{"type": "text", "text": "hi"}]}]}, {}),
        (
            {"messages": [{**HI, "cache_control": {"type": "ephemeral"}}]},
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}],
                    }
                ]
            },
        ),
        (
            {"messages": [{"role": "assistant", "content": "4", "reasoning": "2+2"}]},
            {"messages": [{"role": "assistant", "content": "4", "reasoning_content": "2+2"}]},
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [CALL], "refusal": None, "annotations": []}]},
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL], "annotations": []}]},
        ),
        ({"tools": [{"function": {"name": "f"}}]}, {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ({"tool_choice": None, "response_format": None, "n": None, "user": None}, {}),
    ],
)
def test_what_is_written_otherwise(body: dict[str, Any], again: dict[str, Any]) -> None:
    start = {"model": "m", "messages": [HI]}
    written_again, lost = encode(CODEC, decode(CODEC, {**start, **body}))
    assert (written_again, lost) == ({**start, **again}, [])


def test_a_thought_and_its_proof_are_told_side_by_side() -> None:
    form = {
        "role": "assistant",
        "content": "4",
        "reasoning_content": "2+2",
        "reasoning_details": [{"type": "reasoning.text", "signature": "s"}],
    }
    assert decode(CODEC, {"messages": [form]}).messages[0].parts[0] == Thinking("2+2", "s")


def test_the_bound_of_other_servers() -> None:
    chat = Chat("chat", "m", [], max_output=7)
    assert encode(OpenAIChatCodec("max_tokens"), chat)[0]["max_tokens"] == 7


@pytest.mark.parametrize(
    "body, problem",
    [
        ({"messages": None}, "messages: is missing: it must be a list of messages"),
        ({"messages": {}}, "messages: must be a list of objects"),
        ({"messages": ["hi"]}, "messages: must be a list of objects"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role: is missing: it must be a string"),
        ({"messages": [{**HI, "role": "boss"}]}, "messages[0].role: 'boss' is not a role"),
        ({"messages": [HI, {"role": "user"}]}, "messages[1].content: is missing"),
        ({"messages": [{**HI, "content": 5}]}, "messages[0].content: must be a string or a list of parts"),
        ({"messages": [{**HI, "content": [{}]}]}, "messages[0].content[0].type: is missing"),
        (
            {"messages": [{**HI, "content": [{"type": "text", "text": 5}]}]},
            "messages[0].content[0].text: must be a str",
        ),
        ({"messages": [{**HI, "content": [{"type": "image_url"}]}]}, "messages[0].content[0].image_url: is missing"),
        (
            {"messages": [{**HI, "content": [{"type": "image_url", "image_url": {"url": "data:image/png,x"}}]}]},
            "messages[0].content[0].image_url.url: a data: URL must hold base64",
        ),
        (
            {
                "messages": [
                    {**HI, "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,a b"}}]}
                ]
            },
            "messages[0].content[0].image_url.url: a data: URL must hold base64",
        ),
        (
            {"messages": [{**HI, "content": [{"type": "input_audio", "input_audio": {"format": "wav", "data": "%"}}]}]},
            "messages[0].content[0].input_audio.data: must be base64",
        ),
        (
            {"messages": [{**HI, "content": [{"type": "file", "file": {"file_data": "%"}}]}]},
            "messages[0].content[0].file.file_data: must be base64",
        ),
        ({"messages": [{**HI, "content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0].file.file_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function: is missing"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
            "messages[0].tool_calls[0].id: is missing",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id: is missing"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].name: is missing"),
        ({"temperature": "hot"}, "temperature: must be a number"),
        ({"max_tokens": 1.5}, "max_tokens: must be an integer"),
        ({"stop": [1]}, "stop: must be a list of strings"),
        ({"tools": [{"type": "function"}]}, "tools[0].function: is missing"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters: must be an object"),
        ({"tool_choice": "some"}, "tool_choice: 'some' is not one of"),
        ({"tool_choice": 5}, "tool_choice: must be an object"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools: is missing"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
            "tool_choice.allowed_tools.tools: must be a list of at least one tool",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: is missing"),
        ({"response_format": {}}, "response_format.type: is missing"),
        ({"stream_options": True}, "stream_options: must be an object"),
        ({"reasoning_effort": 3}, "reasoning_effort: must be a string"),
        ({"user": {}}, "user: must be a string"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], problem: str) -> None:
    with pytest.raises(Failure) as raised:
        decode(CODEC, {"model": "m", "messages": [HI], **body})
    assert raised.value.status == 400
    assert raised.value.message.startswith(problem)


# A part of another API's request, the message it becomes here (None: none), and what is lost.
FOREIGN: list[tuple[list[Part], Any, list[str]]] = [
    ([Text("a", Cache("1h"))], "a", []),
    ([Text("a", citations=[Citation("char")])], "a", ["messages[0].parts[0].citations"]),
    ([Text("a", extra={"b": raw(1)})], "a", ["messages[0].parts[0].b"]),
    (
        [Image(Media("image/png", "aGk="))],
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}],
        [],
    ),
    ([Image(Media(file="f"))], None, ["messages[0].parts[0]: a file by its id at another provider"]),
    ([Image(Media(data="aGk="))], None, ["messages[0].parts[0]: a picture of unknown type"]),
    (
        [Audio(Media("audio/x-wav", "aGk="))],
        [{"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}}],
        [],
    ),
    ([Audio(Media("audio/ogg", "aGk="))], None, ["messages[0].parts[0]: sound other than wav and mp3 as base64"]),
    (
        [Audio(Media("audio/wav", url="https://x"))],
        None,
        ["messages[0].parts[0]: sound other than wav and mp3 as base64"],
    ),
    (
        [Document(Media("application/pdf", "aGk="), "a.pdf")],
        [{"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"}}],
        [],
    ),
    ([Document(Media(url="https://x/a.pdf"))], None, ["messages[0].parts[0]: a document by URL"]),
    (
        [Document(Media("text/plain", text="t"), "T", "C", True)],
        "T\n\nt",
        ["messages[0].parts[0].context", "messages[0].parts[0].citations"],
    ),
    ([Document(Media("text/csv", "aGk="))], "hi", []),
    ([Document(Media("text/csv", "/w=="))], None, ["messages[0].parts[0]: a document of type text/csv"]),
    ([Document(Media("video/mp4", "aGk="))], None, ["messages[0].parts[0]: a document of type video/mp4"]),
    ([Json(raw({"a": 1}))], '{"a":1}', []),
    ([Opaque("messages", "search_result", raw({}))], None, ["messages[0].parts[0]: search_result"]),
]


@pytest.mark.parametrize("parts, content, lost", FOREIGN)
def test_what_another_api_says(parts: list[Part], content: Any, lost: list[str]) -> None:
    body, places_ = encode(CODEC, Chat("messages", "m", [Message("user", parts)]))
    assert body["messages"] == ([] if content is None else [{"role": "user", "content": content}])
    assert places_ == lost


def test_a_turn_of_results_of_another_api() -> None:
    chat = Chat(
        "messages",
        "m",
        [
            Message("user", [Text("go")]),
            Message(
                "assistant", [Thinking("hm"), Thinking("x", "sig"), ToolCall("a", "f"), ToolCall("b", "g", "{}", "s")]
            ),
            Message(
                "user",
                [
                    ToolResult("a", [Text("1"), Text("2")], error=True, cache=Cache()),
                    ToolResult("b", [Image(Media("image/png", "aGk=")), Json(raw([1]))], "g"),
                    Text("and?"),
                ],
            ),
        ],
    )
    body, lost = encode(CODEC, chat)
    assert body["messages"][1:] == [
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        {
            "role": "tool",
            "tool_call_id": "a",
            "content": [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}],
        },
        {"role": "tool", "tool_call_id": "b", "content": "[1]"},
        {"role": "user", "content": "and?"},
    ]
    assert lost == [
        "messages[1].parts[1]: a thought",
        "messages[2].parts[1].parts[0]: a tool's result that is not text",
    ]


@pytest.mark.parametrize(
    "fields, body, lost",
    [
        ({"top_k": 4}, {}, ["top_k"]),
        ({"reasoning": Reasoning(budget=0)}, {"reasoning_effort": "none"}, []),
        ({"reasoning": Reasoning(budget=-1)}, {}, []),
        ({"reasoning": Reasoning(budget=5000)}, {"reasoning_effort": "medium"}, []),
        ({"reasoning": Reasoning("high", -1)}, {"reasoning_effort": "high"}, []),
        ({"reasoning": Reasoning(extra={"a": raw(1)})}, {}, ["reasoning.a"]),
        ({"format": Format("schema", schema=raw({}))}, None, []),
        ({"include_usage": True}, {}, []),
        ({"include_usage": True, "stream": True}, {"stream": True, "stream_options": {"include_usage": True}}, []),
        (
            {
                "tools": [OpaqueTool("messages", "web_search", raw({}))],
                "tool_choice": ToolChoice("auto"),
                "parallel": True,
            },
            {},
            ["tools[0]: web_search"],
        ),
        ({"extra": {"metadata": {"a": raw(1)}, "b": raw(None), "c": raw([])}}, {}, ["metadata.a"]),
    ],
)
def test_wishes_of_another_api(fields: dict[str, Any], body: dict[str, Any] | None, lost: list[str]) -> None:
    chat = Chat("messages", "m", [Message("user", [Text("hi")])])
    for name, value in fields.items():
        setattr(chat, name, value)
    found, places_ = encode(CODEC, chat)
    if body is not None:
        assert found == {"model": "m", "messages": [HI], **body}
    assert places_ == lost


def test_what_says_nothing_is_not_lost() -> None:
    body = {
        "messages": [{**HI, "prompt_cache_breakpoint": {"mode": "explicit"}}],
        "store": False,
        "modalities": ["text"],
        "service_tier": "auto",
        "prompt_cache_key": "k",
        "stream_options": {"include_obfuscation": True},
        "metadata": {},
    }
    chat = decode(CODEC, body)
    lost = Lost(CODEC.quiet)
    lost.fields(chat.extra)
    lost.fields(chat.messages[0].extra)
    assert lost.places == []
    chat = decode(CODEC, {**body, "store": True, "modalities": ["text", "audio"]})
    lost.fields(chat.extra)
    assert lost.places == ["store", "modalities"]


# ---- whole answers

LOGPROBS = [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}]
ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "gpt-x",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "See the page.",
                "refusal": None,
                "annotations": [
                    {
                        "type": "url_citation",
                        "url_citation": {"url": "https://x.test", "title": "X", "start_index": 4, "end_index": 12},
                    }
                ],
                "tool_calls": [CALL],
            },
            "logprobs": {"content": LOGPROBS, "refusal": None},
            "finish_reason": "tool_calls",
        },
        {
            "index": 1,
            "message": {"role": "assistant", "content": None, "refusal": "No."},
            "logprobs": None,
            "finish_reason": "stop",
        },
    ],
    "usage": {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 60},
        "completion_tokens_details": {"reasoning_tokens": 5},
    },
    "service_tier": "default",
}


def test_an_answer() -> None:
    answer = CODEC.decode_answer(msgspec.json.encode(ANSWER))
    cited = Citation("url", "X", "https://x.test", begin=4, end=12)
    assert plain(answer) == plain(
        Answer(
            "chat",
            "chatcmpl-1",
            "gpt-x",
            [
                Choice(
                    [Text("See the page.", citations=[cited]), ToolCall("call_1", "weather", '{"city":"Bonn"}')],
                    "tool_calls",
                    logprobs=raw(LOGPROBS),
                    detail="tool_calls",
                ),
                Choice([Refusal("No.")], "refusal", detail="stop"),
            ],
            1700000000,
            Usage(40, 20, 60, 0, 5),
            {"service_tier": raw("default")},
        )
    )
    assert msgspec.json.decode(CODEC.encode_answer(answer, Chat("chat", "m", []))) == ANSWER


@pytest.mark.parametrize(
    "message, parts",
    [
        ({"content": ""}, []),
        ({"content": None}, []),
        ({"content": [{"type": "text", "text": "a"}]}, [Text("a")]),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "t"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            [Thinking("t"), Text("a")],
        ),
        ({"content": "a", "reasoning_content": "t"}, [Thinking("t"), Text("a")]),
        ({"content": "a", "reasoning": "t"}, [Thinking("t"), Text("a")]),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}, {"function": {"name": "g"}}]},
            [ToolCall("call_x_0_0", "f", '{"a":1}'), ToolCall("call_x_0_1", "g")],
        ),
    ],
)
def test_answers_of_other_servers(message: dict[str, Any], parts: list[Part]) -> None:
    answer = CODEC.decode_answer(msgspec.json.encode({"choices": [{"message": message, "finish_reason": "stop"}]}))
    assert plain(answer.choices[0].parts) == plain(parts)
    assert answer.choices[0].stop == ("tool_calls" if "tool_calls" in message else "stop")


def test_an_answer_of_another_api() -> None:
    answer = Answer(
        "messages",
        "msg_1",
        "claude",
        [
            Choice(
                [
                    Thinking("hm", "sig"),
                    Thinking(sealed="e"),
                    Text("It is "),
                    Text("so.", citations=[Citation("url", None, "https://x.test"), Citation("char", document=0)]),
                    ToolCall("c", "f", "{}", "s", extra={"caller": raw({"type": "direct"})}),
                    Opaque("messages", "server_tool_use", raw({})),
                ],
                "tool_calls",
            )
        ],
        1,
        Usage(1, 2),
        {"container": raw({})},
    )
    found = msgspec.json.decode(CODEC.encode_answer(answer, Chat("chat", "m", [])))
    assert found["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "It is so.",
                "refusal": None,
                "annotations": [
                    {
                        "type": "url_citation",
                        "url_citation": {"url": "https://x.test", "title": "", "start_index": 6, "end_index": 9},
                    }
                ],
                "reasoning_content": "hm",
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "hm", "signature": "sig", "index": 0},
                    {"type": "reasoning.encrypted", "data": "e", "index": 1},
                ],
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "function": {"name": "f", "arguments": "{}"},
                        "extra_content": {"google": {"thought_signature": "s"}},
                    }
                ],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        }
    ]
    assert "container" not in found
    # What was told comes back as it was: the thought has its proof.
    message = decode(CODEC, {"messages": [found["choices"][0]["message"]]}).messages[0]
    assert message.parts[:2] == [Thinking("hm", "sig"), Thinking(sealed="e")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"error":{"message":"no"}}',
        b'{"choices":[{}]}',
        b'{"choices":[{"message":{"tool_calls":[{"function":{}}]}}]}',
        b'{"choices":[{"message":{"content":5}}]}',
        b'{"choices":[{"message":{"content":"\xff"}}]}',
        b'{"choices":[{"message":{"content":"\\ud800"}}]}',
        b'{"choices":NaN}',
        b'{"choices":[],"created":"now"}',
        b'{"choices":' + b"[" * 5000,
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    with pytest.raises(Failure) as raised:
        CODEC.decode_answer(body)
    assert raised.value.status == 502


# ---- whatever is wrong, it is a Failure

ALL: dict[str, Any] = {"model": "m", "messages": [form for form, _ in MESSAGES.values()]}
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
        CODEC.encode_answer(answer, Chat("chat", "m", []))


CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "é"},
        {"role": "developer", "content": ""},
        {"role": "assistant", "content": None, "tool_calls": [CALLED, {**CALLED, "id": "c2"}]},
        {"role": "assistant", "content": "x", "tool_calls": [], "refusal": None, "audio": None},
        {"role": "assistant", "tool_calls": [{**CALLED, "function": {"name": "f", "arguments": ""}}]},
        {"role": "assistant"},
        {"role": "assistant", "tool_calls": None, "content": ""},
        {"role": "tool", "tool_call_id": "c1", "content": "r"},
        {"role": "tool", "tool_call_id": "", "content": ""},
    ],
)
def test_the_usual_message_is_read_in_one_go_as_any_other(message: dict[str, Any]) -> None:
    found = decode(CODEC, {"messages": [message]})
    slowly = decode(CODEC, {"messages": [{**message, "odd": 1}]})
    for one in slowly.messages:
        assert one.extra == {"odd": raw(1)}
        one.extra = None
    assert found.messages == slowly.messages


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "user"}, r"messages\[1\].content: is missing"),
        ({"role": "user", "content": None}, r"messages\[1\].content: is missing"),
        ({"role": "tool", "content": "x"}, r"messages\[1\].tool_call_id: is missing"),
        ({"role": "assistant", "tool_calls": [{**CALLED, "id": ""}]}, r"messages\[1\].tool_calls\[0\].id: is missing"),
        ({"role": "assistant", "tool_calls": [{**CALLED, "function": {"arguments": ""}}]}, r"function.name: is miss"),
        ({"role": "assistant", "content": 5}, r"messages\[1\].content: must be"),
    ],
)  # fmt: skip
def test_a_wrong_message_among_usual_ones(message: dict[str, Any], said: str) -> None:
    with pytest.raises(Failure, match=said):
        decode(CODEC, {"messages": [{"role": "user", "content": "a"}, message]})


def test_a_call_or_result_where_it_is_not_usual_rides_along() -> None:
    found = decode(CODEC, {"messages": [{"role": "user", "content": "a", "tool_call_id": "c1"}]})
    assert found.messages == [Message("user", [Text("a")], extra={"tool_call_id": raw("c1")})]
