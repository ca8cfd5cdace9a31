"""OpenAI responses: the documented forms and the neutral model, both ways."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies.forms import changed, plain, raw, refused

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.openai_responses import OpenAIResponsesCodec, ResponsesChat
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.llm.model import (
    Answer,
    ArgumentsDelta,
    Audio,
    Began,
    Cache,
    Chat,
    Choice,
    Citation,
    CitationDelta,
    Document,
    Ended,
    Event,
    Format,
    Image,
    Json,
    LogprobsDelta,
    Media,
    Message,
    Opaque,
    OpaqueTool,
    Part,
    PartBegan,
    PartEnded,
    Reasoning,
    Refusal,
    RefusalDelta,
    SignatureDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    Used,
)
from tollhouse.wire.sse import parse, split

Raw = msgspec.Raw
CODEC = OpenAIResponsesCodec()
HI = [Message("user", [Text("hi")])]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def decode(body: dict[str, Any]) -> ResponsesChat:
    fields = msgspec.json.decode(json.dumps(body), type=dict[str, Raw])
    chat = CODEC.decode(fields, model=body.get("model", "m"), stream=body.get("stream", False))
    assert isinstance(chat, ResponsesChat)
    return chat


def encode(chat: Chat) -> tuple[dict[str, Any], list[str]]:
    lost = Lost()
    fields = CODEC.encode(chat, lost, model=chat.model, max_output=4096)
    assert all(isinstance(value, Raw) for value in fields.values())
    return plain(fields), lost.places


def conversation(*items: dict[str, Any]) -> dict[str, Any]:
    return {"input": list(items)}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return conversation({"role": "user", "content": list(parts)})


CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a":1}'}

# body, what is said of the Chat; `input` is "hi" where it is not said. The first form is what is written again.
SHAPES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("a text", conversation({"role": "user", "content": "hi"}), {"messages": HI}),
    (
        "instructions",
        {"instructions": "be brief", **conversation({"role": "user", "content": "hi"})},
        {"messages": [Message("system", [Text("be brief")]), *HI]},
    ),
    (
        "instructions in the input",
        conversation({"role": "system", "content": "a"}, {"role": "developer", "content": "b"}),
        {"messages": [Message("system", [Text("a")]), Message("developer", [Text("b")])]},
    ),
    (
        "texts with a cache mark",
        user(
            {"type": "input_text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}},
            {"type": "input_text", "text": "b", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "12h"}},
        ),
        {"messages": [Message("user", [Text("a", Cache()), Text("b", Cache("1h"))])]},
    ),
    (
        "a picture by URL",
        user({"type": "input_image", "image_url": "http://x/y.png", "detail": "low"}),
        {"messages": [Message("user", [Image(Media(url="http://x/y.png"), "low")])]},
    ),
    (
        "a picture as base64",
        user({"type": "input_text", "text": "see"}, {"type": "input_image", "image_url": "data:image/png;base64,aGk="}),
        {"messages": [Message("user", [Text("see"), Image(Media("image/png", "aGk="))])]},
    ),
    (
        "a picture by id",
        user({"type": "input_image", "file_id": "file_1", "detail": "auto"}),
        {"messages": [Message("user", [Image(Media(file="file_1"), "auto")])]},
    ),
    (
        "files",
        user(
            {"type": "input_file", "file_data": "data:application/pdf;base64,aGk=", "filename": "a.pdf"},
            {"type": "input_file", "file_data": "aGk=", "filename": "b.pdf"},
            {"type": "input_file", "file_url": "http://x/c.pdf", "detail": "low"},
            {"type": "input_file", "file_id": "file_1"},
        ),
        {
            "messages": [
                Message(
                    "user",
                    [
                        Document(Media("application/pdf", "aGk="), "a.pdf"),
                        Document(Media(data="aGk="), "b.pdf"),
                        Document(Media(url="http://x/c.pdf"), extra={"detail": raw("low")}),
                        Document(Media(file="file_1")),
                    ],
                )
            ]
        },
    ),
    (
        "sound",
        user({"type": "input_audio", "input_audio": {"data": "aGk=", "format": "mp3"}}),
        {"messages": [Message("user", [Audio(Media("audio/mpeg", "aGk="))])]},
    ),
    (
        "content of a kind to come",
        user({"type": "input_smell", "x": [1]}),
        {
            "messages": [
                Message("user", [Opaque("responses", "input_smell content", raw({"type": "input_smell", "x": [1]}))])
            ]
        },
    ),
    (
        "a turn of the model's: thought, text, calls; and their results",
        conversation(
            {"role": "user", "content": "hi"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}], "id": "rs_1"}
            | {"encrypted_content": "gAAAA"},
            {"role": "assistant", "content": "so"},
            CALL,
            {**CALL, "call_id": "c2", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {
                "type": "function_call_output",
                "call_id": "c2",
                "output": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "http://x"}],
            },
        ),
        {
            "messages": [
                *HI,
                Message(
                    "assistant",
                    [
                        Thinking("hm", id="rs_1", extra={"encrypted_content": raw("gAAAA")}),
                        Text("so"),
                        ToolCall("c1", "f", '{"a":1}'),
                        ToolCall("c2", "f", "{}"),
                    ],
                ),
                Message("tool", [ToolResult("c1", [Text("one")])]),
                Message("tool", [ToolResult("c2", [Text("a"), Image(Media(url="http://x"))])]),
            ]
        },
    ),
    (
        "what the model said, with citations and a refusal",
        conversation(
            {
                "role": "assistant",
                "content": [
                    {
                        "type": "output_text",
                        "text": "see x",
                        "annotations": [
                            {"type": "url_citation", "url": "http://x", "title": "X", "start_index": 1, "end_index": 5}
                        ],
                    },
                    {"type": "refusal", "refusal": "no"},
                ],
                "phase": "commentary",
            }
        ),
        {
            "messages": [
                Message(
                    "assistant",
                    [Text("see x", citations=[Citation("url", "X", "http://x", begin=1, end=5)]), Refusal("no")],
                    extra={"phase": raw("commentary")},
                )
            ]
        },
    ),
    (
        "a citation of a file",
        conversation(
            {
                "role": "assistant",
                "content": [
                    {
                        "type": "output_text",
                        "text": "x",
                        "annotations": [{"type": "file_citation", "file_id": "f", "filename": "n", "index": 1}],
                    }
                ],
            }
        ),
        {
            "messages": [
                Message(
                    "assistant",
                    [
                        Text(
                            "x",
                            extra={
                                "annotations": raw(
                                    [{"type": "file_citation", "file_id": "f", "filename": "n", "index": 1}]
                                )
                            },
                        )
                    ],
                )
            ]
        },
    ),
    (
        "two phases are two messages",
        conversation(
            {"role": "assistant", "content": "a", "phase": "commentary"},
            {"role": "assistant", "content": "b", "phase": "final_answer"},
        ),
        {
            "messages": [
                Message("assistant", [Text("a")], extra={"phase": raw("commentary")}),
                Message("assistant", [Text("b")], extra={"phase": raw("final_answer")}),
            ]
        },
    ),
    (
        "thoughts of others",
        conversation(
            {
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": "hm"}],
                "encrypted_content": "signature:S",
            },
            {"type": "reasoning", "summary": [], "encrypted_content": "sealed:X"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "open"}]},
        ),
        {
            "messages": [
                Message("assistant", [Thinking("hm", signature="S"), Thinking(sealed="X"), Thinking("open")]),
            ]
        },
    ),
    (
        "a thought in pieces",
        conversation(
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}],
                "content": [{"type": "reasoning_text", "text": "c"}],
            }
        ),
        {
            "messages": [
                Message(
                    "assistant",
                    [
                        Thinking(
                            "c\n\na\n\nb",
                            id="rs_1",
                            extra={
                                "summary": raw(
                                    [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}]
                                ),
                                "content": raw([{"type": "reasoning_text", "text": "c"}]),
                            },
                        )
                    ],
                )
            ]
        },
    ),
    (
        "a thought that is stored",
        conversation({"type": "reasoning", "id": "rs_1", "summary": []}),
        {
            "messages": [
                Message(
                    "assistant",
                    [Opaque("responses", "reasoning", raw({"type": "reasoning", "id": "rs_1", "summary": []}))],
                )
            ]
        },
    ),
    (
        "a call that is signed, and what only this API says of it",
        conversation(
            {**CALL, "namespace": "n", "extra_content": {"google": {"thought_signature": "S"}}},
            {"type": "function_call_output", "call_id": "c1", "output": "", "name": "f", "x": 1},
        ),
        {
            "messages": [
                Message("assistant", [ToolCall("c1", "f", '{"a":1}', "S", extra={"namespace": raw("n")})]),
                Message("tool", [ToolResult("c1", [Text("")], "f", extra={"x": raw(1)})]),
            ]
        },
    ),
    (
        "items only this API has",
        conversation(
            {"type": "item_reference", "id": "msg_1"},
            {"type": "custom_tool_call", "call_id": "c", "name": "n", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "c", "output": "y"},
            {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}},
        ),
        {
            "messages": [
                Message(
                    "user", [Opaque("responses", "item_reference", raw({"type": "item_reference", "id": "msg_1"}))]
                ),
                Message(
                    "assistant",
                    [
                        Opaque(
                            "responses",
                            "custom_tool_call",
                            raw({"type": "custom_tool_call", "call_id": "c", "name": "n", "input": "x"}),
                        )
                    ],
                ),
                Message(
                    "tool",
                    [
                        Opaque(
                            "responses",
                            "custom_tool_call_output",
                            raw({"type": "custom_tool_call_output", "call_id": "c", "output": "y"}),
                        )
                    ],
                ),
                Message(
                    "assistant",
                    [
                        Opaque(
                            "responses",
                            "web_search_call",
                            raw(
                                {
                                    "type": "web_search_call",
                                    "id": "ws_1",
                                    "status": "completed",
                                    "action": {"type": "search"},
                                }
                            ),
                        )
                    ],
                ),
            ]
        },
    ),
    (
        "tools",
        {
            "tools": [
                {"type": "function", "name": "f", "description": "d", "parameters": SCHEMA, "strict": True},
                {"type": "function", "name": "g", "defer_loading": True},
                {"type": "web_search", "filters": {"allowed_domains": ["x"]}},
                {"type": "custom", "name": "c"},
            ]
        },
        {
            "tools": [
                Tool("f", "d", raw(SCHEMA), True),
                Tool("g", extra={"defer_loading": raw(True)}),
                OpaqueTool(
                    "responses", "web_search", raw({"type": "web_search", "filters": {"allowed_domains": ["x"]}})
                ),
                OpaqueTool("responses", "custom", raw({"type": "custom", "name": "c"})),
            ]
        },
    ),
    ("no tool", {"tool_choice": "none"}, {"tool_choice": ToolChoice("none")}),
    ("this tool", {"tool_choice": {"type": "function", "name": "f"}}, {"tool_choice": ToolChoice("required", ("f",))}),
    (
        "one of these tools",
        {
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "f"}, {"type": "function", "name": "g"}],
            }
        },
        {"tool_choice": ToolChoice("auto", ("f", "g"))},
    ),
    (
        "a tool of the service",
        {"tool_choice": {"type": "file_search"}},
        {"extra": {"tool_choice": raw({"type": "file_search"})}},
    ),
    (
        "one of these, some of them the service's",
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp", "server_label": "s"}]}},
        {
            "extra": {
                "tool_choice": raw(
                    {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp", "server_label": "s"}]}
                )
            }
        },
    ),
    ("any JSON", {"text": {"format": {"type": "json_object"}}}, {"format": Format("json")}),
    ("plain text", {"text": {"format": {"type": "text"}}}, {"format": Format("text")}),
    (
        "a schema",
        {
            "text": {
                "format": {
                    "type": "json_schema",
                    "name": "n",
                    "description": "d",
                    "schema": SCHEMA,
                    "strict": False,
                    "x": 1,
                },
                "verbosity": "low",
            }
        },
        {
            "format": Format("schema", "n", raw(SCHEMA), False, "d", {"x": raw(1)}),
            "extra": {"text": {"verbosity": raw("low")}},
        },
    ),
    (
        "reasoning",
        {"reasoning": {"effort": "high", "summary": "concise", "context": "all_turns"}},
        {"reasoning": Reasoning(effort="high", summary="concise", shown=True, extra={"context": raw("all_turns")})},
    ),
    (
        "log-probs",
        {"include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 3},
        {
            "logprobs": True,
            "top_logprobs": 3,
            "extra": {"include": raw(["message.output_text.logprobs", "reasoning.encrypted_content"])},
        },
    ),
    (
        "numbers",
        {"max_output_tokens": 9, "temperature": 0.5, "top_p": 1, "parallel_tool_calls": False, "user": "u"},
        {"max_output": 9, "temperature": 0.5, "top_p": 1, "parallel": False, "user": "u"},
    ),
    (
        "what is no loss elsewhere",
        {
            "store": False,
            "background": False,
            "truncation": "disabled",
            "service_tier": "auto",
            "prompt_cache_key": "k",
            "text": {"verbosity": "medium"},
            "stream_options": {"include_obfuscation": False},
        },
        {
            "extra": {
                "store": raw(False),
                "background": raw(False),
                "truncation": raw("disabled"),
                "service_tier": raw("auto"),
                "prompt_cache_key": raw("k"),
                "text": {"verbosity": raw("medium")},
                "stream_options": raw({"include_obfuscation": False}),
            }
        },
    ),
    (
        "what is a loss elsewhere",
        {
            "store": True,
            "background": True,
            "truncation": "auto",
            "previous_response_id": "resp_1",
            "conversation": {"id": "conv_1"},
            "metadata": {"a": "b"},
            "something_new": [1],
        },
        {
            "extra": {
                "store": raw(True),
                "background": raw(True),
                "truncation": raw("auto"),
                "previous_response_id": raw("resp_1"),
                "conversation": raw({"id": "conv_1"}),
                "metadata": raw({"a": "b"}),
                "something_new": raw([1]),
            }
        },
    ),
    ("a stream", {"stream": True}, {"stream": True}),
]


@pytest.mark.parametrize("body, said", [pytest.param(*rest, id=name) for name, *rest in SHAPES])
def test_a_request_is_read_and_written(body: dict[str, Any], said: dict[str, Any]) -> None:
    body = {"model": "m", **conversation({"role": "user", "content": "hi"}), **body}
    expected = ResponsesChat("responses", "m", HI, include_usage=True)
    expected = msgspec.structs.replace(expected, instructed="instructions" in body, **said)
    chat = decode(body)
    assert plain(chat) == plain(expected)
    assert encode(chat) == (body, [])


@pytest.mark.parametrize(
    "body, again",
    [
        ({"input": "hi"}, conversation({"role": "user", "content": "hi"})),
        (
            conversation({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}),
            conversation({"role": "user", "content": "hi"}),
        ),
        (
            conversation(
                {
                    "id": "msg_1",
                    "type": "message",
                    "status": "completed",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}],
                },
                {"id": "msg_2", "type": "message", "role": "assistant", "content": "b", "status": None},
                {**CALL, "id": "fc_1", "status": "completed", "caller": {"type": "direct"}},
                {"type": "function_call_output", "id": "o", "call_id": "c1", "output": "x", "status": "completed"},
            ),
            conversation(
                {
                    "role": "assistant",
                    "content": [
                        {"type": "output_text", "text": "a", "annotations": []},
                        {"type": "output_text", "text": "b", "annotations": []},
                    ],
                },
                {**CALL, "caller": {"type": "direct"}},
                {"type": "function_call_output", "call_id": "c1", "output": "x"},
            ),
        ),
        (conversation({"id": "msg_1"}), conversation({"type": "item_reference", "id": "msg_1"})),
        ({"input": "hi", "tool_choice": None, "text": None, "reasoning": None, "temperature": None}, {}),
    ],
)
def test_what_is_written_otherwise(body: dict[str, Any], again: dict[str, Any]) -> None:
    again = {"model": "m", **conversation({"role": "user", "content": "hi"}), **again}
    written, lost = encode(decode({"model": "m", **body}))
    assert (written, lost) == (again, [])
    assert plain(decode(written)) == plain(decode({"model": "m", **body}))


@pytest.mark.parametrize(
    "name, lost",
    [
        ("what is no loss elsewhere", set()),
        ("log-probs", set()),
        ("a schema", {"text.verbosity"}),
        (
            "what is a loss elsewhere",
            {"store", "background", "truncation", "previous_response_id", "conversation", "metadata", "something_new"},
        ),
    ],
)
def test_what_is_lost_elsewhere(name: str, lost: set[str]) -> None:
    body = next(body for found, body, _ in SHAPES if found == name)
    found = Lost(CODEC.quiet)
    found.fields(decode({"input": "hi", **body}).extra)
    assert set(found.places) == lost


def test_a_prompt_may_be_stored() -> None:
    chat = decode({"model": "m", "prompt": {"id": "p"}})
    assert chat.messages == []
    assert encode(chat)[0] == {"model": "m", "input": [], "prompt": {"id": "p"}}


@pytest.mark.parametrize(
    "body, problem",
    [
        ({}, "input: is missing"),
        ({"input": 5}, "input: must be a list of objects"),
        ({"input": [1]}, "input: must be a list of objects"),
        (conversation({"role": "wizard", "content": "x"}), "input[0].role: 'wizard' is not a role"),
        (conversation({"role": "user"}), "input[0].content: is missing"),
        (conversation({"role": "user", "content": [{"text": "x"}]}), "input[0].content[0].type: is missing"),
        (user({"type": "input_text", "text": 1}), "input[0].content[0].text: must be a string"),
        (user({"type": "input_image"}), "input[0].content[0].image_url: is missing"),
        (user({"type": "input_image", "image_url": "data:image/png,x"}), "image_url: a data: URL must hold base64"),
        (user({"type": "input_image", "image_url": "data:image/png;base64,a?"}), "image_url: a data: URL must hold"),
        (user({"type": "input_file", "file_data": "a?"}), "file_data: must be base64"),
        (user({"type": "input_audio", "input_audio": {"data": "!", "format": "wav"}}), "data: must be base64"),
        (user({"type": "input_file"}), "input[0].content[0].file_data: is missing"),
        (conversation({"type": "function_call", "name": "f"}), "input[0].call_id: is missing"),
        (conversation({"type": "reasoning", "summary": "x"}), "input[0].summary: must be a list of objects"),
        ({"input": "x", "tools": [{"name": "f"}]}, "tools[0].type: is missing"),
        ({"input": "x", "tool_choice": "any"}, "tool_choice: 'any' is not one of auto, none, required"),
        ({"input": "x", "tool_choice": {"type": "allowed_tools"}}, "tool_choice.tools: is missing"),
        ({"input": "x", "tool_choice": 5}, "tool_choice: must be an object"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type: 'xml' is not one of"),
        ({"input": "x", "include": [1]}, "include: must be a list of strings"),
        ({"input": "x", "max_output_tokens": "9"}, "max_output_tokens: must be an integer"),
        ({"input": "x", "reasoning": {"effort": 5}}, "reasoning.effort: must be a string"),
    ],
)
def test_what_is_wrong_is_named(body: dict[str, Any], problem: str) -> None:
    with pytest.raises(Failure) as raised:
        decode(body)
    assert raised.value.status == 400
    assert problem in raised.value.message


# ---- from another API


def foreign(*messages: Message, dialect: str = "messages", **more: Any) -> Chat:
    return Chat(dialect, "m", list(messages) or HI, **more)


def test_what_comes_from_another_api_is_neither_stored_nor_strict() -> None:
    chat = foreign(tools=[Tool("f")], format=Format("schema", schema=raw(SCHEMA)), logprobs=True)
    chat.reasoning = Reasoning(budget=4000, shown=True)
    body, lost = encode(chat)
    assert lost == []
    assert body == {
        "model": "m",
        "input": [{"role": "user", "content": "hi"}],
        "tools": [
            {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}
        ],
        "text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": False}},
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
    }


def test_a_conversation_of_another_api() -> None:
    body, lost = encode(
        foreign(
            Message("system", [Text("be brief", Cache("1h"))]),
            Message("user", [Text("see", Cache()), Image(Media("image/png", "aGk=")), Document(Media(data="aGk="))]),
            Message(
                "assistant",
                [
                    Thinking("hm", signature="responses:rs_1:gAAAA"),
                    Thinking(sealed="responses::gBBBB"),
                    Text(""),
                    Text("so"),
                    ToolCall("c1", "f", "{}", signature="S"),
                ],
            ),
            Message("user", [ToolResult("c1", [Text("a"), Json(Raw(b'{"b":1}'))], error=True), Text("and?")]),
            Message("user", [Document(Media(text="a text"))]),
        )
    )
    assert lost == []
    assert body["instructions"] == "be brief"
    assert body["input"] == [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "see"},
                {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "auto"},
                {"type": "input_file", "file_data": "data:application/pdf;base64,aGk=", "filename": "file.pdf"},
            ],
        },
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "id": "rs_1",
            "encrypted_content": "gAAAA",
        },
        {"type": "reasoning", "summary": [], "encrypted_content": "gBBBB"},
        {"role": "assistant", "content": "so"},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": '{"b":1}'}],
        },
        {"role": "user", "content": "and?"},
        {"role": "user", "content": "a text"},
    ]


@pytest.mark.parametrize(
    "chat, places",
    [
        (foreign(stop=["x"], seed=1, top_k=2, n=2, frequency_penalty=0.5), {"stop", "seed", "top_k", "n"}),
        (foreign(stop=[], n=1, frequency_penalty=0, presence_penalty=0.0, logprobs=False, parallel=True), set()),
        (foreign(extra={"service_tier": raw("flex")}), {"service_tier"}),
        (foreign(Message("user", [Text("x")], name="bob")), {"messages[0].name"}),
        (foreign(Message("assistant", [Thinking("hm", signature="S")])), {"a thought that is not of this API"}),
        (foreign(Message("assistant", [Thinking("hm")])), {"messages[0].parts[0]: a thought"}),
        (foreign(Message("user", [Audio(Media("audio/wav", "aGk="))])), {"messages[0].parts[0]: sound"}),
        (foreign(Message("user", [Image(Media(file="f"))])), {"a picture by another service's file id"}),
        (foreign(Message("user", [Document(Media(file="f"))])), {"a document by another service's file id"}),
        (foreign(Message("user", [Document(Media(url="u"), context="c", citations=True)])), {"context", "citations"}),
        (foreign(Message("assistant", [Image(Media(url="u"))])), {"image in the model's turn"}),
        (foreign(Message("user", [Opaque("messages", "x", raw({}))])), {"messages[0].parts[0]: x"}),
        (foreign(Message("assistant", [Text("x", citations=[Citation("page")])])), {"parts[0].citations"}),
        (foreign(tools=[OpaqueTool("messages", "bash", raw({}))]), {"tools[0]: bash"}),
        (foreign(tools=[Tool("f", extra={"x": raw(1)})]), {"tools[0].x"}),
    ],
)
def test_what_cannot_be_said(chat: Chat, places: set[str]) -> None:
    lost = encode(chat)[1]
    assert len(lost) >= len(places)
    assert bool(lost) == bool(places)
    for place in places:
        assert any(place in found for found in lost), (place, lost)


def test_what_the_two_apis_of_one_service_share() -> None:
    extra = {
        "service_tier": raw("flex"),
        "metadata": raw({"a": "b"}),
        "verbosity": raw("low"),
        "prediction": raw({"x": 1}),
    }
    body, lost = encode(foreign(Message("user", [Image(Media(file="f"))]), dialect="chat", extra=extra))
    assert lost == ["prediction"]
    assert (body["service_tier"], body["metadata"], body["text"]) == ("flex", {"a": "b"}, {"verbosity": "low"})
    assert body["input"][0]["content"][0]["file_id"] == "f"


# ---- answers

ANSWER: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1700000000,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "model": "m-1",
    "output": [
        {
            "id": "rs_1",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "encrypted_content": "gAAAA",
        },
        {
            "id": "msg_1",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [
                {
                    "type": "output_text",
                    "text": "see x",
                    "annotations": [
                        {"type": "url_citation", "url": "http://x", "title": "X", "start_index": 1, "end_index": 5}
                    ],
                    "logprobs": [{"token": "see x", "logprob": -0.5, "bytes": [1], "top_logprobs": []}],
                }
            ],
        },
        {"id": "fc_1", "type": "function_call", "status": "completed", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"id": "ws_1", "type": "web_search_call", "status": "completed"},
    ],
    "usage": {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 17,
    },
    "temperature": 1.0,
    "something_new": {"a": 1},
}
USAGE = Usage(5, 7, 4, 1, 3)


def test_an_answer() -> None:
    answer = CODEC.decode_answer(json.dumps(ANSWER).encode())
    assert (answer.id, answer.model, answer.created, answer.usage) == ("resp_1", "m-1", 1700000000, USAGE)
    choice = answer.choices[0]
    assert (choice.stop, choice.detail) == ("tool_calls", "completed")
    assert plain(choice.logprobs) == ANSWER["output"][1]["content"][0]["logprobs"]
    assert plain(choice.parts) == plain(
        [
            Thinking("hm", "responses:rs_1:gAAAA", id="rs_1"),
            Text("see x", citations=[Citation("url", "X", "http://x", begin=1, end=5)]),
            ToolCall("c1", "f", "{}"),
            Opaque("responses", "web_search_call", raw(ANSWER["output"][3])),
        ]
    )
    again = json.loads(CODEC.encode_answer(answer, decode({"input": "hi"})))
    ids = [item.pop("id") for item in again["output"]]
    assert ids == ["rs_1", "msg_1_1", "fc_1_2", "ws_1"]
    for item, given_ in zip(again["output"], ANSWER["output"], strict=True):
        assert item == {name: value for name, value in given_.items() if name != "id"}
    assert {name: again[name] for name in ANSWER if name != "output"} == {
        name: value for name, value in ANSWER.items() if name != "output"
    }


@pytest.mark.parametrize(
    "more, stop, detail",
    [
        ({}, "stop", "completed"),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            "length",
            "max_output_tokens",
        ),
        ({"status": "incomplete"}, "length", "incomplete"),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
            "content_filter",
            "content_filter",
        ),
        ({"status": "incomplete", "incomplete_details": {"reason": "steered"}}, "pause", "steered"),
    ],
)
def test_why_an_answer_ended(more: dict[str, Any], stop: str, detail: str) -> None:
    body = {**ANSWER, "output": [ANSWER["output"][1]], **more}
    answer = CODEC.decode_answer(json.dumps(body).encode())
    assert (answer.choices[0].stop, answer.choices[0].detail) == (stop, detail)
    again = json.loads(CODEC.encode_answer(answer, decode({"input": "hi"})))
    told = more.get("incomplete_details") or ({"reason": "max_output_tokens"} if more else None)
    assert (again["status"], again["incomplete_details"]) == (body["status"], told)


@pytest.mark.parametrize(
    "body, status",
    [
        ({**ANSWER, "error": {"code": "rate_limit_exceeded", "message": "slow down"}, "status": "failed"}, 429),
        ({**ANSWER, "error": {"code": "server_error", "message": "x"}}, 502),
        ({**ANSWER, "status": "cancelled"}, 502),
        ({**ANSWER, "status": "queued"}, 502),
        ({**ANSWER, "output": None}, 502),
        ({**ANSWER, "output": [{}]}, 502),
        ({**ANSWER, "output": [{"type": "message", "content": 5}]}, 502),
        ([], 502),
        ({"error": "no"}, 502),
    ],
)
def test_what_is_no_answer(body: Any, status: int) -> None:
    with pytest.raises(Failure) as raised:
        CODEC.decode_answer(json.dumps(body).encode())
    assert raised.value.status == status
    assert raised.value.retry


def test_the_answer_of_another_api_repeats_what_was_asked() -> None:
    chat = decode(
        {
            "model": "m",
            "instructions": "be brief",
            "input": "hi",
            "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}],
            "text": {"format": {"type": "json_object"}, "verbosity": "low"},
            "reasoning": {"effort": "low"},
            "max_output_tokens": 99,
            "metadata": {"a": "b"},
            "store": True,
        }
    )
    parts: list[Part] = [
        Thinking("hm", "S"),
        Thinking(sealed="X"),
        Text("a"),
        Text("b"),
        ToolCall("c1", "f", "", "G"),
        Image(Media("image/png", "aGk=")),
        Json(Raw(b"1")),
        Opaque("messages", "x", raw({})),
    ]
    answer = Answer("messages", "msg_01", "c", [Choice(parts, "length")], 5, USAGE)
    form = json.loads(CODEC.encode_answer(answer, chat))
    assert form["output"] == [
        {
            "id": "rs_msg_01_0",
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "hm"}],
            "encrypted_content": "signature:S",
        },
        {"id": "rs_msg_01_1", "type": "reasoning", "summary": [], "encrypted_content": "sealed:X"},
        {
            "id": "msg_msg_01_2",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "a", "annotations": [], "logprobs": []},
                {"type": "output_text", "text": "b", "annotations": [], "logprobs": []},
            ],
        },
        {
            "id": "fc_msg_01_3",
            "type": "function_call",
            "status": "completed",
            "call_id": "c1",
            "name": "f",
            "arguments": "{}",
            "extra_content": {"google": {"thought_signature": "G"}},
        },
        {
            "id": "ig_msg_01_4",
            "type": "image_generation_call",
            "status": "completed",
            "result": "aGk=",
            "output_format": "png",
        },
    ]
    assert (form["status"], form["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert form["usage"] == ANSWER["usage"]
    for name, value in {
        "instructions": "be brief",
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA, "strict": True}],
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": None},
        "max_output_tokens": 99,
        "metadata": {"a": "b"},
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "store": False,
        "object": "response",
    }.items():
        assert form[name] == value


@pytest.mark.parametrize(
    "stop, parts, status",
    [
        ("stop", [Text("x")], "completed"),
        ("refusal", [Refusal("no")], "completed"),
        ("refusal", [], "incomplete"),
        ("context_window", [Text("x")], "incomplete"),
        ("pause", [Text("x")], "completed"),
        ("error", [ToolCall("c", "f", "{")], "failed"),
    ],
)
def test_how_an_end_is_told(stop: Any, parts: list[Part], status: str) -> None:
    form = json.loads(CODEC.encode_answer(Answer("chat", "", "m", [Choice(parts, stop)]), decode({"input": "hi"})))
    assert form["status"] == status
    assert (form["error"] is not None) == (status == "failed")
    assert (form["incomplete_details"] is not None) == (status == "incomplete")
    for item in form["output"]:
        assert item["status"] == ("completed" if status == "completed" else "incomplete")


# ---- streams


def read(*events: dict[str, Any]) -> list[Event]:
    decoder = CODEC.decoder()
    found: list[Event] = []
    for event in events:
        found += decoder.read(b"", json.dumps(event).encode())
    return found


def at(kind: str, place: int = 0, content: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", "output_index": place, "content_index": content, "item_id": "x", **more}


CREATED = {"type": "response.created", "response": {"id": "r", "model": "m", "created_at": 5}, "sequence_number": 0}
ENDED = {"type": "response.completed", "response": ANSWER}
PART = {"type": "output_text", "text": "", "annotations": []}
MESSAGE = {"type": "message", "role": "assistant", "content": []}
LOGPROBS = [{"token": "a", "logprob": -0.5}]


def test_a_stream_event_by_event() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    decoder = CODEC.decoder()
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    for event, expected in (
        (CREATED, [Began("r", "m", 5)]),
        ({"type": "response.in_progress", "response": {}}, []),
        (at("output_item.added", item=thought), []),
        (at("reasoning_summary_part.added", summary_index=0, part={"type": "summary_text", "text": ""}), []),
        (
            at("reasoning_summary_text.delta", summary_index=0, delta="a", obfuscation="xx"),
            [PartBegan(0, Thinking(id="rs_1")), ThinkingDelta(0, "a")],
        ),
        (at("reasoning_summary_text.done", summary_index=0, text="a"), []),
        (
            at("reasoning_summary_text.delta", summary_index=1, delta="b"),
            [ThinkingDelta(0, "\n\n"), ThinkingDelta(0, "b")],
        ),
        (
            at("output_item.done", item={**thought, "encrypted_content": "gAAAA"}),
            [SignatureDelta(0, "responses:rs_1:gAAAA"), PartEnded(0)],
        ),
        (at("output_item.added", 1, item=search), []),
        (at("web_search_call.searching", 1), []),
        (
            at("output_item.done", 1, item=search),
            [PartBegan(1, Opaque("responses", "web_search_call", raw(search))), PartEnded(1)],
        ),
        (at("output_item.added", 2, item=MESSAGE), []),
        (at("content_part.added", 2, part=PART), [PartBegan(2, Text(""))]),
        (at("output_text.delta", 2, delta="a", logprobs=[]), [TextDelta(2, "a")]),
        (
            at("output_text.delta", 2, delta="é", logprobs=LOGPROBS),
            [TextDelta(2, "é"), LogprobsDelta(2, raw(LOGPROBS))],
        ),
        (
            at("output_text.annotation.added", 2, annotation={"type": "url_citation", "url": "u", "end_index": 2}),
            [CitationDelta(2, Citation("url", url="u", end=2))],
        ),
        (at("output_text.annotation.added", 2, annotation={"type": "file_path", "file_id": "u"}), []),
        (at("output_text.done", 2, text="aé"), []),
        (at("content_part.done", 2, part={**PART, "text": "aé"}), [PartEnded(2)]),
        (at("content_part.added", 2, 1, part={"type": "refusal", "refusal": ""}), [PartBegan(3, Refusal(""))]),
        (at("refusal.delta", 2, 1, delta="no"), [RefusalDelta(3, "no")]),
        (at("refusal.done", 2, 1, refusal="no"), []),
        (at("output_item.done", 2, item=MESSAGE), []),
        (
            at("output_item.added", 3, item={**CALL, "arguments": ""}),
            [PartBegan(4, ToolCall("c1", "f", ""))],
        ),
        (at("function_call_arguments.delta", 3, delta="{"), [ArgumentsDelta(4, "{")]),
        (at("function_call_arguments.done", 3, arguments="{}"), []),
        (at("output_item.done", 3, item={**CALL, "arguments": "{}"}), [PartEnded(4)]),
        ({"type": "response.something_new", "delta": {"a": 1}}, []),
        (ENDED, [PartEnded(3), Used(USAGE), Ended("tool_calls", None, "completed")]),
    ):
        assert plain(decoder.read(b"", json.dumps(event).encode())) == plain(expected)
        assert decoder.finished == (event is ENDED)
    assert decoder.read(b"", b"[DONE]") == []


def test_a_stream_that_announces_nothing() -> None:
    events = read(
        at("output_text.delta", delta="a"),
        at("output_item.done", 0, item={**MESSAGE, "content": [{**PART, "text": "a"}, {**PART, "text": "b"}]}),
        at("output_item.done", 1, item=CALL),
        at("output_item.done", 2, item={"type": "reasoning", "encrypted_content": "g"}),
        at("output_item.done", 3, item={"type": "reasoning", "id": "rs_1"}),
        at("reasoning_text.delta", 4, delta="hm"),
        {"type": "response.incomplete", "response": {"incomplete_details": {"reason": "max_output_tokens"}}},
    )
    assert plain(events) == plain(
        [
            Began("", ""),
            PartBegan(0, Text("")),
            TextDelta(0, "a"),
            PartEnded(0),
            PartBegan(1, Text("")),
            TextDelta(1, "b"),
            PartEnded(1),
            PartBegan(2, ToolCall("c1", "f", "")),
            ArgumentsDelta(2, '{"a":1}'),
            PartEnded(2),
            PartBegan(3, Thinking(sealed="responses::g")),
            PartEnded(3),
            PartBegan(4, Thinking()),
            ThinkingDelta(4, "hm"),
            PartEnded(4),
            Ended("length", None, "max_output_tokens"),
        ]
    )


@pytest.mark.parametrize(
    "event, status, detail",
    [
        ({"type": "error", "code": "rate_limit_exceeded", "message": "slow"}, 429, "rate_limit_exceeded: slow"),
        ({"type": "error", "code": None, "message": "x", "sequence_number": 3}, 502, "error: x"),
        ({"type": "error", "error": {"type": "server_error", "code": None, "message": "y"}}, 502, "server_error: y"),
        (
            {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "z"}}},
            502,
            "server_error: z",
        ),
        ({"type": "error", "error": 5}, 502, "error: "),
    ],
)
def test_an_error_in_a_stream(event: dict[str, Any], status: int, detail: str) -> None:
    with pytest.raises(StreamFailure) as raised:
        read(CREATED, event)
    failure = raised.value
    assert (failure.status, failure.detail) == (status, detail)
    name, data = parse(failure.words)
    assert (name.decode(), json.loads(data)) == (event["type"], event)


@pytest.mark.parametrize(
    "events",
    [
        [{"type": 5}],
        [at("output_text.delta", delta=5)],
        [at("output_text.delta", delta="a") | {"output_index": "x"}],
        [at("output_item.added", item=5)],
        [at("output_item.done", item={"type": "message", "content": "x"})],
        [at("function_call_arguments.delta", delta="{")],
        [at("content_part.added", part=PART), at("content_part.done", part=PART), at("output_text.delta", delta="a")],
    ],
)
def test_what_is_no_stream(events: list[dict[str, Any]]) -> None:
    with pytest.raises(Failure) as raised:
        read(*events)
    assert raised.value.status == 502


def written(*batches: list[Event], body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    encoder = CODEC.encoder(decode(body or {"input": "hi"}))
    raw_ = b"".join(encoder.write(batch) for batch in batches) + encoder.end()
    found = []
    for n, event in enumerate(split(raw_)):
        name, data = parse(event)
        form = json.loads(data)
        assert form["type"] == name.decode()
        assert form["sequence_number"] == n
        found.append(form)
    return found


def test_every_event_of_a_stream_is_written() -> None:
    cited = Citation("url", "X", "http://x")
    events = written(
        [Began("resp_1", "m", 5)],
        [PartBegan(0, Thinking())],
        [ThinkingDelta(0, "hm")],
        [SignatureDelta(0, "S"), PartEnded(0)],
        [PartBegan(1, Text("")), TextDelta(1, "a")],
        [TextDelta(1, "b"), LogprobsDelta(1, raw(LOGPROBS))],
        [CitationDelta(1, cited), PartEnded(1)],
        [PartBegan(2, Refusal("")), RefusalDelta(2, "no"), PartEnded(2)],
        [PartBegan(3, ToolCall("c1", "f", ""))],
        [ArgumentsDelta(3, "{}")],
        [PartEnded(3)],
        [Used(USAGE), Ended("tool_calls")],
        body={"input": "hi", "instructions": "be brief"},
    )
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.annotation.added",
        "output_text.done",
        "content_part.done",
        "content_part.added",
        "refusal.delta",
        "refusal.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["instructions"] == "be brief"
    assert events[4] == {
        "type": "response.reasoning_summary_text.delta",
        "item_id": "rs_1_0",
        "output_index": 0,
        "summary_index": 0,
        "delta": "hm",
        "sequence_number": 4,
    }
    place = {"item_id": "msg_1_1", "output_index": 1, "content_index": 0}
    assert events[10] == {
        "type": "response.output_text.delta",
        **place,
        "delta": "a",
        "logprobs": [],
        "sequence_number": 10,
    }
    assert events[11]["logprobs"] == LOGPROBS
    annotation = {"type": "url_citation", "url": "http://x", "title": "X", "start_index": 0, "end_index": 2}
    assert events[12]["annotation"] == annotation
    text = {"type": "output_text", "text": "ab", "annotations": [annotation], "logprobs": LOGPROBS}
    assert events[14] == {"type": "response.content_part.done", **place, "part": text, "sequence_number": 14}
    assert events[21] == {
        "type": "response.function_call_arguments.delta",
        "item_id": "fc_1_2",
        "output_index": 2,
        "delta": "{}",
        "sequence_number": 21,
    }
    response = events[-1]["response"]
    assert response["usage"] == ANSWER["usage"]
    assert [item["type"] for item in response["output"]] == ["reasoning", "message", "function_call"]
    assert response["output"][1] == events[19]["item"]
    assert response["output"][1]["content"] == [text, {"type": "refusal", "refusal": "no"}]


def test_calls_side_by_side_are_not_over_too_early() -> None:
    events = written(
        [Began("r", "m"), PartBegan(0, ToolCall("c1", "f", "")), ArgumentsDelta(0, '{"a"'), PartEnded(0)],
        [PartBegan(1, ToolCall("c2", "g", "")), ArgumentsDelta(0, ":1}"), ArgumentsDelta(1, "{}"), PartEnded(1)],
        [Ended("tool_calls")],
    )
    output = events[-1]["response"]["output"]
    assert [(call["call_id"], call["arguments"], call["status"]) for call in output] == [
        ("c1", '{"a":1}', "completed"),
        ("c2", "{}", "completed"),
    ]


def test_a_stream_that_is_cut_short_by_its_bound() -> None:
    events = written(
        [Began("r", "m"), PartBegan(0, Text("")), TextDelta(0, "a"), PartEnded(0)],
        [PartBegan(1, ToolCall("c1", "f", "")), ArgumentsDelta(1, '{"a"'), PartEnded(1), Ended("length")],
    )
    assert events[-1]["type"] == "response.incomplete"
    response = events[-1]["response"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_a_stream_with_nothing_in_it() -> None:
    assert [event["type"] for event in written()] == ["response.created", "response.in_progress", "response.completed"]


def test_what_a_stream_leaves_out() -> None:
    events = written(
        [Began("r", "m"), Began("s", "n"), PartBegan(0, Text("")), TextDelta(0, "a")],
        [TextDelta(0, "other", 1), PartBegan(0, Text(""), 1), LogprobsDelta(0, raw({"a": 1})), TextDelta(9, "?")],
        [PartBegan(1, Json(Raw(b"1"))), PartEnded(1), PartEnded(0), PartEnded(0), TextDelta(0, "late")],
        [ArgumentsDelta(0, "x"), LogprobsDelta(0, raw(LOGPROBS)), Ended("stop", choice=1)],
    )
    assert events[-1]["response"]["output"][0]["content"] == [
        {"type": "output_text", "text": "a", "annotations": [], "logprobs": []}
    ]


def test_arguments_and_log_probs_in_one_batch() -> None:
    events = written(
        [Began("r", "m"), PartBegan(0, Text("")), TextDelta(0, "a"), PartBegan(1, ToolCall("c", "f", ""))],
        [ArgumentsDelta(1, "{}"), LogprobsDelta(1, raw(LOGPROBS)), LogprobsDelta(0, raw(LOGPROBS))],
        [Ended("tool_calls")],
    )
    assert events[-1]["response"]["output"][1]["arguments"] == "{}"


TEXTS = st.text(max_size=4)
URL = Citation("url", "t", "http://x", begin=0, end=1)
PARTS = st.lists(
    st.one_of(
        st.builds(Text, TEXTS, citations=st.sampled_from([None, [URL]])),
        st.builds(Refusal, TEXTS),
        st.builds(ToolCall, st.just("c"), st.just("f"), st.sampled_from(["{}", '{"a":1}'])),
        st.builds(Thinking, st.text(min_size=1, max_size=3), st.sampled_from([None, "S"])),
        st.builds(Thinking, sealed=st.just("X")),
        st.just(Opaque("responses", "web_search_call", raw({"type": "web_search_call", "id": "w"}))),
    ),
    max_size=6,
)


def streamed(parts: list[Part]) -> list[list[Event]]:
    """Parts as another API streams them, each text in pieces."""
    batches: list[list[Event]] = [[Began("resp_1", "m", 5)]]
    deltas: dict[type, Any] = {
        Text: TextDelta,
        Refusal: RefusalDelta,
        Thinking: ThinkingDelta,
        ToolCall: ArgumentsDelta,
    }
    for n, part in enumerate(parts):
        empty, text = part, ""
        if isinstance(part, ToolCall):
            empty, text = ToolCall(part.id, part.name, ""), part.arguments
        elif isinstance(part, (Text, Refusal, Thinking)) and part.text:
            empty, text = type(part)(""), part.text
        elif isinstance(part, Text):
            empty = Text("")
        batches.append([PartBegan(n, empty)])
        batches += [[deltas[type(part)](n, piece)] for piece in text]
        ends: list[Event] = [PartEnded(n)]
        if isinstance(part, Text) and part.citations:
            ends[:0] = [CitationDelta(n, c) for c in part.citations]
        if isinstance(part, Thinking) and part.signature:
            ends.insert(0, SignatureDelta(n, part.signature))
        batches.append(ends)
    batches.append([Used(USAGE), Ended("stop")])
    return batches


@given(PARTS)
def test_a_stream_folded_is_the_whole_answer(parts: list[Part]) -> None:
    chat = decode({"input": "hi"})
    events = written(*streamed(parts))
    whole = CODEC.encode_answer(Answer("chat", "resp_1", "m", [Choice(parts, "stop")], 5, USAGE), chat)
    assert events[-1]["response"] == json.loads(whole)
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]


@given(PARTS)
def test_a_stream_is_read_as_the_whole_answer_is(parts: list[Part]) -> None:
    events = written(*streamed(parts))
    answer = CODEC.decode_answer(json.dumps(events[-1]["response"]).encode())
    folded: list[Any] = []
    for event in read(*events):
        if isinstance(event, PartBegan):
            assert event.part == len(folded)
            folded.append(event.value)
        elif isinstance(event, ArgumentsDelta):
            folded[event.part].arguments += event.text
        elif isinstance(event, SignatureDelta):
            folded[event.part].signature = event.signature
        elif isinstance(event, CitationDelta):
            folded[event.part].citations = [*(folded[event.part].citations or ()), event.citation]
        elif isinstance(event, (TextDelta, ThinkingDelta, RefusalDelta)):
            folded[event.part].text += event.text
    assert plain(folded) == plain(answer.choices[0].parts)


# ---- whatever comes


VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["function", "user"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, at_: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [at_] if at_ else []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += places(inner, (*at_, key))
    return found


ALL: dict[str, Any] = {"model": "m"}
for _, _body, _said in SHAPES:
    for _name, _value in _body.items():
        ALL[_name] = ALL.get(_name, []) + _value if isinstance(_value, list) else _value


@given(st.sampled_from(places(ALL)), VALUES | st.just(...))
@settings(max_examples=300)
def test_a_changed_request_is_read_or_refused(place: tuple[Any, ...], new: Any) -> None:
    data = json.dumps(changed(ALL, place, new)).encode()
    try:
        fields = msgspec.json.decode(data, type=dict[str, Raw])
    except msgspec.DecodeError:
        return  # no JSON: it is refused before it comes here
    with refused(400):
        chat = CODEC.decode(fields, model="m", stream=False)
        encode(chat)
        encode(Chat("chat", "m", chat.messages, tools=chat.tools, extra=chat.extra, reasoning=chat.reasoning))
        CODEC.encode_answer(Answer("chat", "", "", []), chat)


@given(st.sampled_from(places(ANSWER)), VALUES | st.just(...))
@settings(max_examples=200)
def test_a_changed_answer_is_read_or_refused(place: tuple[Any, ...], new: Any) -> None:
    data = json.dumps(changed(ANSWER, place, new)).encode()
    with refused(429, 502):
        CODEC.encode_answer(CODEC.decode_answer(data), decode({"input": "hi"}))


STREAM = written(
    *streamed([Thinking("hm", "S"), Thinking(sealed="X"), Text("a", citations=[URL]), ToolCall("c", "f", "{}")])
)


@given(st.integers(0, len(STREAM) - 1), st.data())
@settings(max_examples=300)
def test_a_changed_stream_is_read_or_refused(n: int, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(places(STREAM[n])))
    events = [*STREAM]
    events[n] = changed(events[n], place, data.draw(VALUES | st.just(...)))
    decoder, encoder = CODEC.decoder(), CODEC.encoder(decode({"input": "hi"}))
    with refused(429, 502):
        for event in events:
            encoder.write(decoder.read(b"", json.dumps(event).encode()))
        encoder.end()


@given(st.binary(max_size=40) | st.sampled_from([b"[" * 5000, b'{"type":' + b"[" * 5000, b'{"type":"\\ud800"}']))
def test_garbage_is_refused(data: bytes) -> None:
    with refused(502):
        CODEC.decode_answer(data)
    with refused(502):
        CODEC.decoder().read(b"", data)


def test_text_that_is_not_utf_8() -> None:
    with refused(400):
        CODEC.decode({"input": Raw(b'"\xff"')}, model="m", stream=False)
    bad = Raw(b'{"a":"\xff"}')
    body, lost = encode(foreign(Message("tool", [ToolResult("c", [Json(bad)])])))
    assert (body["input"][0]["output"], lost) == ('{"a":"\ufffd"}', [])


@pytest.mark.parametrize("name", ["input", "tools", "text", "metadata", "reasoning", "include"])
def test_a_request_nested_too_deeply(name: str) -> None:
    for depth in (*range(100, 900, 90), *range(900, 1000, 2), 5000):
        deep = b'{"verbosity":%b%b,"format":{"type":"text"}}' % (b"[" * depth, b"]" * depth)
        with refused(400):
            chat = CODEC.decode({"input": Raw(b'"hi"'), name: Raw(deep)}, model="m", stream=False)
            CODEC.encode(chat, Lost(), model="m", max_output=9)
            CODEC.encode_answer(Answer("chat", "", "", []), chat)
