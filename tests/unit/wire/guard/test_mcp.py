"""wire.guard.mcp: every text of MCP's messages, of its kind; a result's structure and its copy become the same."""

import json
from typing import Any

import msgspec
import pytest

from tollhouse.wire.guard.llm.texts import Texts
from tollhouse.wire.guard.mcp import entry_texts, message_texts, request_texts
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule, pattern

KEY = "sk-ABCDEFGHIJKLMNOPQRSTUVWX"
CARD = 4111111111111111
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


@pytest.fixture(scope="module")
def patterns() -> PatternSet:
    return PatternSet([pattern("key", r"\bsk-[A-Za-z0-9]{20,}"), pattern("card", r"\b4[0-9]{15}\b")])


def mask(rule: Rule, text: str) -> str:
    return f'<"{rule.name}">'


def found(texts: Any) -> list[tuple[str, str, bool]]:
    return [(piece.kind, piece.text, piece.json) for piece in texts.pieces]


def masked(texts: Texts, patterns: PatternSet) -> Any:
    new: dict[Any, str] = {piece.key: piece.masked(patterns, mask) for piece in texts.pieces}
    return json.loads(texts.replaced(new))


def result(value: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "result": value}).encode()


@pytest.mark.parametrize(
    ("method", "params", "pieces"),
    [
        ("tools/call", {"name": "f", "arguments": {"q": "x"}, "_meta": {"progressToken": "p"}},
         [("arguments", '{"q": "x"}', True), ("other", '{"progressToken": "p"}', True)]),
        ("tools/call", {"name": "f", "arguments": {}}, []),
        ("prompts/get", {"name": "f", "arguments": {"q": "x"}}, [("arguments", '{"q": "x"}', True)]),
        ("resources/read", {"uri": "file:///x"}, [("arguments", "file:///x", False)]),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "f"}, "argument": {"name": "a", "value": "x"}},
         [("arguments", "x", False)]),
        ("what/ever", {"a": "x", "b": ["y"], "c": 1}, [("other", "x", False), ("other", '["y"]', True)]),
    ],
)  # fmt: skip
def test_requests(method: str, params: Any, pieces: list[tuple[str, str, bool]]) -> None:
    texts = request_texts(method, _fields(json.dumps(params).encode()))
    assert found(texts) == pieces
    assert texts.replaced({}) == {}


def test_arguments_stay_json(patterns: PatternSet) -> None:
    texts = request_texts("tools/call", _fields(json.dumps({"name": "f", "arguments": {"q": KEY, "n": CARD}}).encode()))
    (piece,) = texts.pieces
    told = texts.replaced({piece.key: piece.masked(patterns, mask)})
    assert json.loads(bytes(told["arguments"])) == {"q": '<"key">', "n": 1111111111111111}
    assert told.keys() == {"arguments"}


def test_results_of_tools(patterns: PatternSet) -> None:
    content = [
        {"type": "text", "text": f"it is {KEY}", "annotations": {"audience": ["user"]}},
        {"type": "image", "data": "AAAA", "mimeType": "image/png"},
        {"type": "resource", "resource": {"uri": "file:///x", "mimeType": "text/plain", "text": KEY}},
        {"type": "resource", "resource": {"uri": "file:///y", "blob": "AAAA"}},
        {"type": "resource_link", "uri": "file:///z", "name": "z", "description": KEY},
        {"type": "dream", "of": KEY},
    ]
    texts = message_texts("tools/call", result({"content": content, "isError": False, "_meta": {"a": KEY}}))
    assert texts.opaque == {"image": 1, "file": 1}
    assert {piece.kind for piece in texts.pieces} == {"results", "other"}
    told = masked(texts, patterns)["result"]
    assert told["content"][0]["text"] == 'it is <"key">'
    assert told["content"][2]["resource"]["text"] == '<"key">'
    assert told["content"][4]["description"] == '<"key">'
    assert told["content"][5]["of"] == '<"key">'
    assert told["_meta"] == {"a": '<"key">'}
    assert told["content"][1] == content[1]


@pytest.mark.parametrize("indent", [None, 2])
def test_what_is_structured_and_its_copy_become_the_same(patterns: PatternSet, indent: int | None) -> None:
    value = {"q": f'"{KEY}"', "n": CARD, "of": [{"k": 1.5}]}
    content = [{"type": "text", "text": json.dumps(value, indent=indent)}, {"type": "text", "text": f"{{{KEY}}}"}]
    texts = message_texts("tools/call", result({"content": content, "structuredContent": value}))
    assert [piece.json for piece in texts.pieces] == [True, False, True]
    told = masked(texts, patterns)["result"]
    assert told["structuredContent"] == {"q": '"<"key">"', "n": 1111111111111111, "of": [{"k": 1.5}]}
    assert json.loads(told["content"][0]["text"]) == told["structuredContent"]
    assert told["content"][1]["text"] == '{<"key">}'


@pytest.mark.parametrize(
    ("method", "value", "kinds"),
    [
        ("prompts/get", {"description": "d", "messages": [
            {"role": "user", "content": {"type": "text", "text": KEY}},
            {"role": "user", "content": {"type": "resource", "resource": {"uri": "u", "text": KEY}}}]},
         ["descriptions", "results", "results", "results"]),
        ("resources/read", {"contents": [{"uri": "u", "text": KEY}, {"uri": "u", "blob": "AAAA"}]},
         ["results", "results", "results"]),
        ("completion/complete", {"completion": {"values": [KEY, "x"], "total": 2}}, ["results", "results"]),
        ("tools/list", {"tools": [{"name": "f", "description": KEY, "inputSchema": {"type": "object", "d": KEY},
                                   "annotations": {"title": KEY}}], "nextCursor": "c"},
         ["names", "descriptions", "descriptions", "descriptions"]),
        ("initialize", {"protocolVersion": "x", "instructions": KEY, "serverInfo": {"name": "s", "version": "1"}},
         ["descriptions"]),
        ("tasks/get", {"status": KEY}, ["results"]),
    ],
)  # fmt: skip
def test_results_of_other_methods(patterns: PatternSet, method: str, value: Any, kinds: list[str]) -> None:
    texts = message_texts(method, result(value))
    assert [piece.kind for piece in texts.pieces] == kinds
    assert KEY not in json.dumps(masked(texts, patterns))


@pytest.mark.parametrize(
    ("method", "params", "kinds"),
    [
        ("notifications/progress", {"progressToken": "p", "progress": 1, "message": KEY}, ["results"]),
        ("notifications/message", {"level": "info", "logger": "l", "data": {"a": KEY}}, ["results"]),
        ("notifications/message", {"level": "info", "data": KEY}, ["results"]),
        ("notifications/what", {"a": KEY}, ["other"]),
        ("sampling/createMessage", {"messages": [{"role": "user", "content": {"type": "text", "text": KEY}}],
                                    "systemPrompt": KEY, "maxTokens": 9}, ["text", "system"]),
        ("elicitation/create", {"message": KEY, "requestedSchema": {"type": "object", "title": KEY}},
         ["results", "descriptions"]),
    ],
)  # fmt: skip
def test_what_a_server_says_meanwhile(patterns: PatternSet, method: str, params: Any, kinds: list[str]) -> None:
    message = json.dumps({"jsonrpc": "2.0", "id": 4, "method": method, "params": params}).encode()
    texts = message_texts("tools/call", message)
    assert [piece.kind for piece in texts.pieces] == kinds
    told = masked(texts, patterns)
    assert KEY not in json.dumps(told)
    assert told["method"] == method
    assert texts.replaced({}) is message


def test_errors(patterns: PatternSet) -> None:
    message = json.dumps({"jsonrpc": "2.0", "id": 4, "error": {"code": -1, "message": KEY, "data": [KEY]}}).encode()
    texts = message_texts("tools/call", message)
    assert [piece.kind for piece in texts.pieces] == ["results", "results"]
    assert masked(texts, patterns)["error"] == {"code": -1, "message": '<"key">', "data": ['<"key">']}


def test_entries_of_lists(patterns: PatternSet) -> None:
    entry = {
        "name": "f",
        "title": f"t {KEY}",
        "description": KEY,
        "inputSchema": {"type": "object", "properties": {"q": {"description": KEY}}},
        "arguments": [{"name": "a", "description": KEY, "required": True}],
        "icons": [{"src": "https://x.org"}],
    }
    texts = entry_texts(json.dumps(entry).encode())
    assert [piece.kind for piece in texts.pieces] == ["names", *["descriptions"] * 3, "names", "descriptions"]
    told = masked(texts, patterns)
    assert KEY not in json.dumps(told)
    assert told["inputSchema"] == {"type": "object", "properties": {"q": {"description": '<"key">'}}}
    assert told["icons"] == entry["icons"]


@pytest.mark.parametrize("wrong", [b"", b"[]", b"x", b'"x"'])
def test_what_is_no_message(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="JSON object"):
        message_texts("tools/call", wrong)
    with pytest.raises(ValueError, match="JSON object"):
        entry_texts(wrong)
