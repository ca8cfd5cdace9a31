"""The usual forms are read a shorter way, and mean the same as the long way says."""

from typing import Any

import msgspec
import pytest
from tests.strategies.forms import decode, plain

from tollhouse.core.errors import Failure
from tollhouse.wire.llm import CODECS

CHAT, MESSAGES = CODECS["chat"], CODECS["messages"]
SCHEMA = {"type": "object", "properties": {"ort": {"type": "string", "description": "Köln"}}}

ASKED: list[list[dict[str, Any]]] = [
    [],
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": ""},
        {"role": "user", "content": "Grüße \U0001f600 \u0000"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "No."},
    ],
]
TOOLS: list[list[dict[str, Any]]] = [
    [],
    [{"name": "f"}],
    [{"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}, {"name": "g", "parameters": None}],
]
CONTENT: list[list[dict[str, Any]]] = [
    [],
    [{"type": "text", "text": "Hi", "citations": None}],
    [{"type": "text", "text": "é"}, {"type": "tool_use", "id": "1", "name": "f", "input": {"a": [1.50, "ö"]}}],
]


@pytest.mark.parametrize("messages", ASKED)
@pytest.mark.parametrize("tools", TOOLS)
def test_requests_of_chat(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> None:
    short = {"messages": messages, "tools": [{"type": "function", "function": f} for f in tools]}
    long = {
        "messages": [{**m, "name": None} for m in messages],
        "tools": [{"type": "function", "function": {**f, "cache": None}} for f in tools],
    }
    assert plain(decode(CHAT, short)) == plain(decode(CHAT, long))


@pytest.mark.parametrize("reason", ["end_turn", "max_tokens", "something_new", None])
@pytest.mark.parametrize("content", CONTENT)
def test_answers_of_messages(content: list[dict[str, Any]], reason: str | None) -> None:
    short = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 2, "service_tier": "standard", "more": {}},
    }
    found = MESSAGES.decode_answer(msgspec.json.encode(short))
    long = MESSAGES.decode_answer(msgspec.json.encode({**short, "new": 1}))
    assert long.extra is not None
    long.extra = None
    assert plain(found) == plain(long)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "nobody", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": 5}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [], "tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0]"),
        ({"messages": [], "tools": [{"type": "function", "function": {"name": 5}}]}, "tools[0].function.name"),
        ({"messages": [], "tools": 5}, "tools"),
    ],
)
def test_what_is_wrong_is_named_all_the_same(body: dict[str, Any], field: str) -> None:
    with pytest.raises(Failure) as failed:
        decode(CHAT, body)
    assert failed.value.status == 400
    assert failed.value.message.startswith(field)


def test_what_is_no_text_is_refused() -> None:
    broken = b'[{"type":"function","function":{"name":"f","parameters":{"a":"\xff"}}}]'
    fields = {"messages": msgspec.Raw(b"[]"), "tools": msgspec.Raw(broken)}
    with pytest.raises(Failure, match="UTF-8"):
        CHAT.decode(fields, model="m", stream=False)
    answer = (
        b'{"id":"1","model":"m","usage":{},"content":[{"type":"tool_use","id":"1","name":"f","input":{"a":"\xff"}}]}'
    )
    with pytest.raises(Failure):
        MESSAGES.decode_answer(answer)
