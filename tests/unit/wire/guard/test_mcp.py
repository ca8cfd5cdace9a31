"""wire.guard.mcp: every text of MCP's messages, of its kind; a result's structure and its copy become the same."""

import json
from base64 import b64decode, b64encode
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
         [("names", "f", False), ("arguments", '{"q": "x"}', True), ("other", '{"progressToken": "p"}', True)]),
        ("tools/call", {"name": "f", "arguments": {}}, [("names", "f", False)]),
        ("prompts/get", {"name": "f", "arguments": {"q": "x"}},
         [("names", "f", False), ("arguments", '{"q": "x"}', True)]),
        ("tasks/update", {"taskId": "t", "inputResponses": {"q": {"action": "accept"}}},
         [("other", '{"q": {"action": "accept"}}', True)]),
        ("resources/read", {"uri": "file:///x"}, [("arguments", "file:///x", False)]),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "f"}, "argument": {"name": "a", "value": "x"}},
         [("names", "f", False), ("names", "a", False), ("arguments", "x", False)]),
        ("completion/complete", {"ref": {"type": "ref/resource", "uri": "f:///{a}"}, "argument": {"name": "a"}},
         [("arguments", "f:///{a}", False), ("names", "a", False)]),
        ("what/ever", {"a": "x", "b": ["y"], "c": 1}, [("other", "x", False), ("other", '["y"]', True)]),
    ],
)  # fmt: skip
def test_requests(method: str, params: Any, pieces: list[tuple[str, str, bool]]) -> None:
    texts = request_texts(method, _fields(json.dumps(params).encode()))
    assert found(texts) == pieces
    assert texts.replaced({}) == {}


def test_arguments_stay_json(patterns: PatternSet) -> None:
    texts = request_texts("tools/call", _fields(json.dumps({"name": "f", "arguments": {"q": KEY, "n": CARD}}).encode()))
    (_, piece) = texts.pieces
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
        ("tasks/get", {"taskId": "4111111111111111", "status": "working", "createdAt": "2026-01-01T00:00:00Z",
                       "statusMessage": KEY}, ["results"]),
        ("tasks/get", {"status": "completed", "result": {"content": [{"type": "text", "text": KEY}]}}, ["results"]),
        ("tasks/result", {"content": [{"type": "text", "text": KEY}]}, ["results"]),
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
        ("notifications/message", {"level": "info", "logger": KEY, "data": {"a": KEY}}, ["results", "results"]),
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
    assert [piece.kind for piece in texts.pieces] == [
        "names", *["descriptions"] * 3, "names", *["descriptions"] * 2,
    ]  # fmt: skip
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


def resource(blob: str, **more: Any) -> bytes:
    return result({"contents": [{"uri": "u", "blob": blob, **more}]})


@pytest.mark.parametrize("text", [f"caf\u00e9 {KEY}\r\n\t\x1b[0m", f'{{"a": "{KEY}"}}', KEY])
def test_a_text_in_base64_is_looked_at(patterns: PatternSet, text: str) -> None:
    texts = message_texts("resources/read", resource(b64encode(text.encode()).decode(), mimeType="text/plain"))
    assert [piece.text for piece in texts.pieces] == ["u", text]
    assert texts.opaque == {}
    told = masked(texts, patterns)["result"]["contents"][0]
    assert b64decode(told["blob"]).decode() == text.replace(KEY, '<"key">')
    assert texts.replaced({}) == resource(b64encode(text.encode()).decode(), mimeType="text/plain")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", b"\xff\xfe", b"a\0b"])
def test_a_file_in_base64_is_not(data: bytes) -> None:
    texts = message_texts("resources/read", resource(b64encode(data).decode()))
    assert ([piece.text for piece in texts.pieces], texts.opaque) == (["u"], {"file": 1})


def test_a_blob_that_is_no_base64_is_a_text(patterns: PatternSet) -> None:
    texts = message_texts("resources/read", resource(f"it is {KEY}"))
    assert masked(texts, patterns)["result"]["contents"][0]["blob"] == 'it is <"key">'
    assert [piece.text for piece in message_texts("resources/read", resource("")).pieces] == ["u"]
    odd = result({"contents": [{"uri": "u", "blob": [KEY]}]})
    assert KEY not in json.dumps(masked(message_texts("resources/read", odd), patterns))


def asks(**questions: Any) -> dict[str, Any]:
    return {"resultType": "input_required", "inputRequests": questions, "requestState": KEY}


@pytest.mark.parametrize("method", ["tools/call", "prompts/get", "resources/read", "tasks/get"])
def test_questions_in_the_middle_of_a_request(patterns: PatternSet, method: str) -> None:
    sampling = {"messages": [{"role": "user", "content": {"type": "text", "text": KEY}}], "systemPrompt": KEY}
    form = {"message": KEY, "requestedSchema": {"type": "object", "title": KEY}}
    value = asks(
        one={"method": "sampling/createMessage", "params": sampling},
        two={"method": "elicitation/create", "params": form},
        three={"method": "what/ever", "params": {"a": KEY}},
        four={"method": "roots/list"},
    )
    texts = message_texts(method, result(value))
    kinds = ["text", "system", "results", "descriptions", "other"]
    assert [piece.kind for piece in texts.pieces] == kinds
    new = {piece.key: piece.masked(patterns, mask) for piece in texts.pieces if piece.kind != "names"}
    told = json.loads(texts.replaced(new))["result"]
    assert told["requestState"] == KEY  # it is sealed for the agent, and the server's own when it comes back
    assert KEY not in json.dumps(told["inputRequests"])
    assert told["inputRequests"]["two"]["params"]["requestedSchema"]["title"] == '<"key">'


def test_a_question_says_nothing_of_what_stands_beside_it() -> None:
    message = {"result": asks(one={"method": "roots/list"}), "method": "elicitation/create", "params": {"message": "m"}}
    texts = message_texts("tools/call", json.dumps({"jsonrpc": "2.0", "id": 1, **message}).encode())
    assert [piece.kind for piece in texts.pieces] == ["results"]


@pytest.mark.parametrize(
    "item",
    [
        {"type": "text", "text": "t", "annotations": {"audience": ["user"], "note": KEY}},
        {"type": "text", "text": "t", "mimeType": KEY},
        {"type": "resource_link", "uri": f"https://x.org/?k={KEY}", "name": "n"},
        {"type": "resource_link", "uri": "u", "name": "n", "icons": [{"src": f"https://x.org/{KEY}"}]},
        {"type": "resource_link", "uri": "u", "name": "n", "icons": [{"src": "u", "mimeType": f"a {KEY}"}]},
        {"type": "resource", "resource": {"uri": "u", "text": "t", "annotations": {"note": KEY}}},
        {"type": "resource", "resource": {"uri": "u", "text": "t", "_meta": {"note": KEY}}},
        {"type": "text", "text": "t", "_meta": {"note": KEY}},
    ],
)  # fmt: skip
def test_what_stands_beside_a_text(patterns: PatternSet, item: Any) -> None:
    for method, value in (
        ("tools/call", {"content": [item]}),
        ("tasks/result", {"content": [item]}),
        ("prompts/get", {"messages": [{"role": "user", "content": item}]}),
    ):
        assert KEY not in json.dumps(masked(message_texts(method, result(value)), patterns))


def test_usual_words_are_no_texts() -> None:
    item = {"type": "resource", "resource": {"uri": "u", "mimeType": "text/html;charset=utf-8", "text": "t"}}
    icon = {"type": "resource_link", "uri": "v", "icons": [{"src": "data:image/png;base64,AAAA", "sizes": ["1x1"]}]}
    texts = message_texts("tools/call", result({"content": [item, icon], "isError": False, "resultType": "complete"}))
    assert [piece.text for piece in texts.pieces] == ["u", "t", "v"]


@pytest.mark.parametrize("method", ["notifications/tasks/status", "notifications/resources/updated"])
def test_what_has_changed(patterns: PatternSet, method: str) -> None:
    params = {"taskId": "4111111111111111", "status": "working", "statusMessage": KEY, "uri": KEY}
    message = json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()
    told = masked(message_texts("", message), patterns)["params"]
    assert KEY not in json.dumps(told)
    if method.endswith("status"):
        assert told["taskId"] == "4111111111111111"
