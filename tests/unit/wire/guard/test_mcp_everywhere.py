"""wire.guard.mcp: a secret in any place of any message is seen, but where nobody's words can be."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tollhouse.wire.guard.llm.texts import Texts
from tollhouse.wire.guard.mcp import entry_texts, message_texts, request_texts
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import pattern

SECRET = "sk-ant-api03-Ab3dEf6hIj9kLm2nOp5q"
SEALED = {
    "requestState", "taskId", "nextCursor", "id", "jsonrpc", "method", "progressToken", "elicitationId", "requestId",
    "toolUseId",
}  # fmt: skip
"""Ids, and what the gateway seals, makes or matches."""
NUMBERS = {"size", "total", "progress", "priority", "hasMore", "isError", "required", "ttlMs", "pollIntervalMs"}

ANNOTATIONS = {"audience": ["user"], "priority": 0.5, "lastModified": "2026-01-01T00:00:00Z"}
ICONS = [{"src": "https://example.org/i.png", "mimeType": "image/png", "sizes": ["48x48"], "theme": "dark"}]
META = {"org.example/x": {"y": ["z"]}}
TEXT = {"type": "text", "text": "t", "annotations": ANNOTATIONS, "_meta": META}
IMAGE = {"type": "image", "data": "AAAA", "mimeType": "image/png", "annotations": ANNOTATIONS, "_meta": META}
AUDIO = {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"}
INSIDE = {"uri": "file:///a", "mimeType": "text/plain", "text": "t", "_meta": META, "annotations": ANNOTATIONS}
BLOB = {"uri": "file:///b", "mimeType": "text/plain", "blob": "aGVsbG8=", "_meta": META}
LINK = {
    "type": "resource_link", "uri": "file:///c", "name": "n", "title": "t", "description": "d",
    "mimeType": "text/plain", "size": 1, "icons": ICONS, "annotations": ANNOTATIONS, "_meta": META,
}  # fmt: skip
CONTENT = [
    TEXT, IMAGE, AUDIO, LINK, {"type": "resource", "resource": INSIDE, "annotations": ANNOTATIONS},
    {"type": "resource", "resource": BLOB}, {"type": "tool_use", "id": "1", "name": "f", "input": {"a": "b"}},
    {"type": "tool_result", "toolUseId": "1", "content": [TEXT], "structuredContent": {"a": "b"}, "isError": False},
    {"type": "later", "what": {"ever": "x"}},
]  # fmt: skip
SCHEMA = {"type": "object", "title": "t", "properties": {"a": {"type": "string", "enum": ["x"], "default": "x"}}}
SAMPLING = {
    "messages": [{"role": "user", "content": one} for one in (TEXT, [TEXT, IMAGE])], "systemPrompt": "s",
    "modelPreferences": {"hints": [{"name": "m"}]}, "includeContext": "none", "maxTokens": 1, "stopSequences": ["s"],
    "metadata": {"a": "b"}, "tools": [{"name": "f", "description": "d", "inputSchema": SCHEMA}], "_meta": META,
}  # fmt: skip
FORM = {"mode": "form", "message": "m", "requestedSchema": SCHEMA, "_meta": META}
URL = {"mode": "url", "message": "m", "url": "https://example.org/", "elicitationId": "e"}
ASKS = {
    "inputRequests": {
        "a": {"method": "sampling/createMessage", "params": SAMPLING},
        "b": {"method": "elicitation/create", "params": FORM},
        "c": {"method": "elicitation/create", "params": URL},
        "d": {"method": "later/one", "params": {"x": "y"}},
    },
    "requestState": "s",
    "resultType": "input_required",
}  # fmt: skip
CALLED = {"content": CONTENT, "structuredContent": {"a": ["b"]}, "isError": False, "_meta": META}
TASK = {
    "taskId": "t", "status": "working", "statusMessage": "m", "createdAt": "2026-01-01T00:00:00Z",
    "lastUpdatedAt": "2026-01-01T00:00:00Z", "ttl": 1, "pollInterval": 1, "later": "x",
}  # fmt: skip
RESULTS: dict[str, Any] = {
    "tools/call": CALLED | ASKS,
    "prompts/get": {"description": "d", "messages": [{"role": "user", "content": one} for one in CONTENT]} | ASKS,
    "resources/read": {"contents": [INSIDE, BLOB], "_meta": META} | ASKS,
    "completion/complete": {"completion": {"values": ["a"], "total": 1, "hasMore": False}, "_meta": META},
    "tasks/result": CALLED,
    "tasks/get": TASK | ASKS | {"result": CALLED, "error": {"code": 1, "message": "m", "data": {"a": "b"}}},
    "tasks/update": TASK,
    "tasks/cancel": TASK,
    "resources/subscribe": {"_meta": META, "x": "y"},
    "later/one": {"x": ["y"]},
}
SAID: dict[str, Any] = {
    "notifications/progress": {"progressToken": "p", "progress": 1, "total": 2, "message": "m", "_meta": META},
    "notifications/message": {"level": "info", "logger": "l", "data": {"a": ["b"]}, "_meta": META},
    "notifications/resources/updated": {"uri": "file:///a", "title": "t", "_meta": META},
    "notifications/tasks/status": TASK,
    "notifications/tasks": TASK | {"result": CALLED},
    "notifications/cancelled": {"requestId": "r", "reason": "r"},
    "notifications/elicitation/complete": {"elicitationId": "e"},
    "sampling/createMessage": SAMPLING,
    "elicitation/create": FORM,
    "roots/list": {"_meta": META},
    "later/one": {"x": ["y"]},
}
ENTRIES: dict[str, Any] = {
    "tool": {
        "name": "f", "title": "t", "description": "d", "inputSchema": SCHEMA, "outputSchema": SCHEMA, "icons": ICONS,
        "annotations": {"title": "t", "readOnlyHint": True}, "execution": {"taskSupport": "optional"}, "_meta": META,
    },
    "prompt": {"name": "p", "description": "d", "arguments": [{"name": "a", "title": "t", "description": "d"}]},
    "resource": {"uri": "file:///a", "name": "n", "title": "t", "mimeType": "text/plain", "_meta": META},
    "template": {"uriTemplate": "file:///{a}", "name": "n", "description": "d", "annotations": ANNOTATIONS},
}  # fmt: skip
ASKED: dict[str, Any] = {
    "tools/call": {
        "name": "f", "arguments": {"a": ["b"]}, "_meta": META, "inputResponses": {"a": {"content": {"b": "c"}}},
    },
    "prompts/get": {"name": "p", "arguments": {"a": "b"}},
    "resources/read": {"uri": "file:///a"},
    "resources/subscribe": {"uri": "file:///a"},
    "completion/complete": {
        "ref": {"type": "ref/prompt", "name": "p", "uri": "file:///{a}"}, "argument": {"name": "a", "value": "b"},
        "context": {"arguments": {"c": "d"}},
    },
    "tasks/update": {"taskId": "t", "inputResponses": {"a": {"content": {"b": "c"}}}},
    "later/one": {"x": ["y"]},
}  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every string, number and name within a value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in SEALED | NUMBERS:
                yield from places(inner, (*at, name))
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            yield from places(inner, (*at, n))
    elif isinstance(value, str):
        yield at


def spoilt(value: Any, at: tuple[Any, ...]) -> Any:
    """The value with the secret there."""
    if not at:
        return SECRET
    made = value.copy()
    made[at[0]] = spoilt(value[at[0]], at[1:])
    return made


def objects(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every object within a value."""
    if isinstance(value, dict):
        yield at
        for name, inner in value.items():
            if name not in SEALED:
                yield from objects(inner, (*at, name))
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            yield from objects(inner, (*at, n))


def named(value: Any, at: tuple[Any, ...]) -> Any:
    """The value with the secret as the name of one more member there."""
    if not at:
        return {**value, SECRET: 1}
    made = value.copy()
    made[at[0]] = named(value[at[0]], at[1:])
    return made


def cases(some: dict[str, Any], found: Any = places) -> list[Any]:
    return [pytest.param(name, at, id=f"{name}:{'.'.join(map(str, at))}") for name in some for at in found(some[name])]


def sees(texts: Any) -> bool:
    return any(SECRET in piece.text for piece in texts.pieces)


@pytest.mark.parametrize(("name", "at"), cases(RESULTS))
def test_results(name: str, at: tuple[Any, ...]) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "result": spoilt(RESULTS[name], at)}
    assert sees(message_texts(name, json.dumps(message).encode()))


@pytest.mark.parametrize(("name", "at"), cases(SAID))
def test_what_a_server_says_by_itself(name: str, at: tuple[Any, ...]) -> None:
    message = {"jsonrpc": "2.0", "method": name, "params": spoilt(SAID[name], at)}
    assert sees(message_texts("tools/call", json.dumps(message).encode()))


@pytest.mark.parametrize(("name", "at"), cases(ENTRIES))
def test_entries(name: str, at: tuple[Any, ...]) -> None:
    assert sees(entry_texts(json.dumps(spoilt(ENTRIES[name], at)).encode()))


@pytest.mark.parametrize(("name", "at"), cases(ASKED))
def test_requests(name: str, at: tuple[Any, ...]) -> None:
    fields = msgspec.json.decode(json.dumps(spoilt(ASKED[name], at)), type=dict[str, msgspec.Raw])
    assert sees(request_texts(name, fields))


# ---- names of members, and values of other types
PATTERNS = PatternSet([pattern("key", "sk-ant-[A-Za-z0-9-]{10,}")])
ODD: list[Any] = [[SECRET], {"a": {SECRET: 1}}, {"type": "text", "text": SECRET}]


def left(texts: Texts) -> Any:
    """The value, masked; names are for rules that reject."""
    if any(SECRET in piece.text for piece in texts.pieces if piece.kind == "names"):
        return ""
    new = {piece.key: piece.masked(PATTERNS, lambda rule, text: "[KEY]") for piece in texts.pieces}
    changed = {piece.key: new[piece.key] for piece in texts.pieces if piece.text != new[piece.key]}
    return json.dumps(json.loads(texts.replaced(changed)))


@pytest.mark.parametrize(("name", "at"), cases(RESULTS, objects))
def test_names_of_members(name: str, at: tuple[Any, ...]) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "result": named(RESULTS[name], at)}
    assert SECRET not in left(message_texts(name, json.dumps(message).encode()))


@pytest.mark.parametrize(("name", "at"), cases(SAID, objects))
def test_names_of_members_of_what_a_server_says_by_itself(name: str, at: tuple[Any, ...]) -> None:
    message = {"jsonrpc": "2.0", "method": name, "params": named(SAID[name], at)}
    assert SECRET not in left(message_texts("tools/call", json.dumps(message).encode()))


@pytest.mark.parametrize(("name", "at"), cases(ENTRIES, objects))
def test_names_of_members_of_entries(name: str, at: tuple[Any, ...]) -> None:
    assert SECRET not in left(entry_texts(json.dumps(named(ENTRIES[name], at)).encode()))


@pytest.mark.parametrize(("name", "at"), cases(ASKED, objects))
def test_names_of_members_of_requests(name: str, at: tuple[Any, ...]) -> None:
    fields = msgspec.json.decode(json.dumps(named(ASKED[name], at)), type=dict[str, msgspec.Raw])
    assert sees(request_texts(name, fields))


@pytest.mark.parametrize("value", ODD, ids=str)
def test_values_of_other_types(value: Any) -> None:
    def spoil(whole: Any, at: tuple[Any, ...]) -> Any:
        if not at:
            return value
        made = whole.copy()
        made[at[0]] = spoil(whole[at[0]], at[1:])
        return made

    for some, made in (
        (RESULTS, lambda name, whole: {"jsonrpc": "2.0", "id": 1, "result": whole}),
        (SAID, lambda name, whole: {"jsonrpc": "2.0", "method": name, "params": whole}),
    ):
        for name, whole in some.items():
            for at in (*places(whole), *objects(whole)):
                message = json.dumps(made(name, spoil(whole, at))).encode()
                assert SECRET not in left(message_texts(name, message)), (name, at)
