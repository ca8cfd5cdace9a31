"""wire.guard.llm.forms, objects, texts: only what changed is another, and nothing is passed over."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.wire.guard.llm import answer_texts, request_texts
from tollhouse.wire.guard.llm.forms import SKIP, Json, JsonText, Link, Opaque, Text
from tollhouse.wire.guard.llm.objects import Choice, Each, Object, Tagged
from tollhouse.wire.guard.llm.texts import FieldTexts, Texts
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule, pattern

FORM = Object(
    {
        "id": SKIP,
        "text": Text(),
        "link": Link("image"),
        "args": JsonText("arguments"),
        "value": Json("results"),
        "sound": Opaque("audio"),
        "many": Each(Tagged("type", {"a": Object({"type": SKIP, "a": Text("system")})}, missing="a")),
        "either": Choice(text=Text(), many=Each(Choice(text=Text()))),
    }
)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def seen(source: bytes) -> list[tuple[str, str, bool]]:
    return [(piece.kind, piece.text, piece.json) for piece in Texts(FORM, source).pieces]


def upper(texts: Texts) -> bytes:
    return texts.replaced({piece.key: piece.text.upper() for piece in texts.pieces})


@pytest.mark.parametrize(
    ("source", "pieces"),
    [
        ('{"id": "x", "text": "a\\nb"}', [("text", "a\nb", False)]),
        ('{"text": null, "args": "", "value": {}, "many": []}', []),
        ('{"args": "{\\"a\\": 1}"}', [("arguments", '{"a": 1}', True)]),
        ('{"args": "{\'a\': 1}"}', [("arguments", "{'a': 1}", False)]),
        ('{"value": {"a": 1.0}}', [("results", '{"a": 1.0}', True)]),
        ('{"value": "x"}', [("results", '"x"', True)]),
        ('{"value": 12, "more": 12, "some": true}', [("results", "12", True)]),
        ('{"many": [{"a": "x"}, {"type": "b", "b": ["y"]}]}',
         [("system", "x", False), ("other", '{"type": "b", "b": ["y"]}', True)]),
        ('{"many": {"a": "x"}}', [("other", '{"a": "x"}', True)]),
        ('{"many": "x", "text": ["y"]}', [("other", "x", False), ("other", '["y"]', True)]),
        ('{"either": "x"}', [("text", "x", False)]),
        ('{"either": ["x", ["y"], 1]}', [("text", "x", False), ("other", '["y"]', True)]),
        ('{"unknown": {"k": "v"}, "Text": "z"}', [("other", '{"k": "v"}', True), ("other", "z", False)]),
    ],
)  # fmt: skip
def test_what_is_found(source: str, pieces: list[tuple[str, str, bool]]) -> None:
    assert seen(source.encode()) == pieces


def test_what_cannot_be_looked_at_is_counted() -> None:
    texts = Texts(FORM, b'{"sound": "AAAA", "link": "data:image/png;base64,AA"}')
    assert (texts.opaque, texts.pieces) == ({"audio": 1, "image": 1}, ())
    texts = Texts(FORM, b'{"sound": null, "link": "https://x.org/?q=me"}')
    assert (texts.opaque, [piece.text for piece in texts.pieces]) == ({"image": 1}, ["https://x.org/?q=me"])


def test_only_what_changed_is_written_again() -> None:
    source = (
        b'{"id" : 1.00, "text":"a\\u0062", "value": {"n": 1e2,  "s" :"x"},"many":[ {"type":"a","a":"q"},{"a" : "r"}]}'
    )
    texts = Texts(FORM, source)
    assert texts.replaced({}) is source
    one = texts.pieces[-1]
    told = texts.replaced({one.key: "R"})
    assert told == (
        b'{"id":1.00,"text":"a\\u0062","value":{"n": 1e2,  "s" :"x"},"many":[{"type":"a","a":"q"},{"a":"R"}]}'
    )
    assert json.loads(upper(texts)) == {
        "id": 1.0,
        "text": "AB",
        "value": {"N": 100.0, "S": "X"},
        "many": [{"type": "a", "a": "Q"}, {"a": "R"}],
    }


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (b'{"text": "unseen", "text": "last"}', {"text": "last"}),
        (b'{"many": [{"a": "unseen", "a": "x", "b": 1}], "id": 1}', {"many": [{"a": "x", "b": 1}], "id": 1}),
        (b'{"many":[{"\\u0061":"unseen","a":"x"}]}', {"many": [{"a": "x"}]}),
        (b'{"many": [{"type": "zzz", "a": "u", "type": "a"}]}', {"many": [{"type": "a", "a": "u"}]}),
    ],
)
def test_of_two_members_of_one_name_only_the_last_leaves(source: bytes, told: Any) -> None:
    texts = Texts(FORM, source)
    out = texts.replaced({})
    assert json.loads(out) == told
    assert b"unseen" not in out
    assert "seen" not in [piece.text for piece in texts.pieces]


def test_what_stands_there_once_is_not_twice() -> None:
    source = b'{"many": [{"type": "a",  "a" : "x", "\xc3\xa4": 1}, {} ,{ }], "text" : "y"}'
    assert Texts(FORM, source).replaced({}) is source


@pytest.mark.parametrize("source", [b"", b"<html>", b"[]", b"1", b'"x"', b'{"a": 1', b'{"a": \xff}', b"null",
                                    b'{"text": "\\ud83dx"}'])  # fmt: skip
def test_what_is_no_object_cannot_be_read(source: bytes) -> None:
    with pytest.raises(ValueError, match="JSON"):
        Texts(FORM, source)
    with pytest.raises(ValueError, match="JSON"):
        answer_texts("chat", source)


def test_what_is_nested_too_deeply_is_looked_at_all_the_same() -> None:
    deep = b'{"many": ' + b'[{"a":' * 3000 + b'"me"' + b"}]" * 3000 + b"}"
    (piece,) = Texts(FORM, b'{"unknown": ' + b"[" * 600 + b'"me"' + b"]" * 600 + b"}").pieces
    assert '"me"' in piece.text
    try:
        assert "me" in "".join(piece.text for piece in Texts(FORM, deep).pieces)
    except ValueError:
        pass  # it is not passed on either


def test_fields_that_did_not_change_are_not_given_back() -> None:
    fields = _fields(b'{"id": 1, "text": "a", "value": [1, "b"]}')
    texts = FieldTexts(FORM, fields)
    assert texts.replaced({}) == {}
    told = texts.replaced({texts.pieces[0].key: "A"})
    assert {name: bytes(raw) for name, raw in told.items()} == {"text": b'"A"'}


def test_a_piece_is_masked_as_what_it_is() -> None:
    patterns = PatternSet([pattern("key", r"sk-[a-z]{4}")])

    def mask(rule: Rule, text: str) -> str:
        return '"<key>"'

    plain, args = Texts(FORM, b'{"text": "a sk-abcd.", "args": "{\\"a\\": \\"sk-\\\\u0061bcd\\"}"}').pieces
    assert plain.masked(patterns, mask) == 'a "<key>".'
    assert json.loads(args.masked(patterns, mask)) == {"a": '"<key>"'}


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["text", "many", "a", "type", "args", "value", "either", "messages", "content", "role", "parts",
                         "contents", "input", "tools", "function", "delta", "choices", "x"]),
        inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def _strings(value: Any, skip: Mapping[str, object]) -> set[str]:
    if isinstance(value, str):
        return {value}
    if isinstance(value, list):
        return {one for item in value for one in _strings(item, skip)}
    if isinstance(value, dict):
        return {one for name, item in value.items() if name not in skip for one in _strings(item, skip)}
    return set()


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["text", "many", "args", "either", "value", "x"]), JSON, max_size=4))
def test_no_string_is_passed_over_and_any_may_be_replaced(value: dict[str, Any]) -> None:
    source = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    texts = Texts(FORM, source)
    looked = "\n".join(
        "\n".join(_strings(json.loads(piece.text), {})) if piece.json and piece.text[:1] in '{["' else piece.text
        for piece in texts.pieces
        if not (piece.json and piece.kind == "arguments")
    )
    for one in _strings(value, {"type": 0, "args": 0}):
        assert one in looked
    assert texts.replaced({}) == source or b'"' in source
    same = texts.replaced({piece.key: piece.text for piece in texts.pieces})
    assert json.loads(same) == json.loads(source)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["chat", "responses", "messages", "generate", "converse", "completions", "embeddings", "rerank"]),
    st.dictionaries(
        st.sampled_from(["messages", "input", "contents", "system", "prompt", "tools", "x"]), JSON, max_size=4
    ),
)
def test_a_request_of_any_form_is_the_same_again(operation: str, value: dict[str, Any]) -> None:
    fields = _fields(json.dumps(value).encode())
    texts = request_texts(operation, fields)
    told = texts.replaced({piece.key: piece.text for piece in texts.pieces})
    assert {name: json.loads(bytes(raw)) for name, raw in {**fields, **told}.items()} == value
    answer = answer_texts(operation, json.dumps(value).encode())
    same = answer.replaced({piece.key: piece.text for piece in answer.pieces})
    assert json.loads(same) == value
