"""Reading objects field by field, and what rides along."""

from typing import Any

import msgspec
import pytest
from tests.strategies.forms import plain, raw

from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec import Lost, unreadable
from tollhouse.wire.llm.codec.effort import budget_of, effort_of
from tollhouse.wire.llm.codec.reading import Fields, is_base64, put_back, text_in

Raw = msgspec.Raw


def fields(body: Any) -> Fields:
    return Fields.of(msgspec.json.encode(body), "body.")


def test_what_is_taken_is_gone() -> None:
    f = fields({"a": "x", "b": 1, "c": 1.5, "d": True, "e": ["x"], "f": {"g": 1, "h": 2}, "i": [{"j": 1}], "k": None})
    assert (f.text("a"), f.integer("b"), f.number("c"), f.flag("d"), f.texts("e")) == ("x", 1, 1.5, True, ["x"])
    below = f.child("f")
    assert below is not None
    assert below.integer("g") == 1
    f.leave("f", below)
    below = (f.children("i") or [])[0]
    assert below.where == "body.i[0]."
    assert plain(below.untouched()) == {"j": 1}
    below.raw("j")
    assert plain(below.untouched()) == {"j": 1}
    assert plain(f.rest()) == {"f": {"h": 2}}


def test_null_is_as_good_as_absent() -> None:
    f = fields(dict.fromkeys("abcdefghi"))
    assert [f.text("a"), f.integer("b"), f.number("c"), f.flag("d"), f.texts("e"), f.raw("f")] == [None] * 6
    assert f.child("g") is None
    assert f.peek("h") is None
    assert f.peek_text("h") is None
    assert not f.has("h")
    assert f.rest() is None


def test_a_look_takes_nothing() -> None:
    f = fields({"a": "x", "b": {"c": 1}})
    assert f.peek_text("a") == "x"
    below = f.peek("b")
    assert below is not None
    assert below.integer("c") == 1
    assert (f.is_text("a"), f.is_object("b"), f.is_list("b"), f.has("a")) == (True, True, False, True)
    assert plain(f.rest()) == {"a": "x", "b": {"c": 1}}


@pytest.mark.parametrize(
    "take, problem",
    [
        (lambda f: f.text("n"), "body.n: must be a string"),
        (lambda f: f.need_text("none"), "body.none: is missing: it must be a string"),
        (lambda f: f.some_text("empty"), "body.empty: must not be empty"),
        (lambda f: f.integer("t"), "body.t: must be an integer"),
        (lambda f: f.number("t"), "body.t: must be a number"),
        (lambda f: f.flag("n"), "body.n: must be true or false"),
        (lambda f: f.texts("t"), "body.t: must be a list of strings"),
        (lambda f: f.child("t"), "body.t: must be an object"),
        (lambda f: f.children("t"), "body.t: must be a list of objects"),
        (lambda f: f.object("t"), "body.t: must be an object"),
        (lambda f: f.need_child("none", "an object with a name"), "body.none: is missing: it must be an object with a"),
        (lambda f: f.base64("t"), "body.t: must be base64"),
    ],
)
def test_a_wrong_type_is_said_once(take: Any, problem: str) -> None:
    with pytest.raises(Failure) as raised:
        take(fields({"n": 1, "t": "x", "empty": ""}))
    assert raised.value.status == 400
    assert raised.value.message.startswith(problem)


def test_an_answer_is_the_providers_fault() -> None:
    f = Fields.of(b'{"a":{"b":1}}', "answer.", lambda field, problem: unreadable(f"{field} {problem}"))
    below = f.child("a")
    assert below is not None
    with pytest.raises(Failure) as raised:
        below.text("b")
    assert raised.value.status == 502
    assert "answer.a.b must be a string" in raised.value.message


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"a":NaN}', b"{" * 3, b'{"a":' + b"[" * 5000])
def test_what_is_no_object(body: bytes) -> None:
    with pytest.raises(Failure, match="body: must be an object"):
        Fields.of(body, "body.")


@pytest.mark.parametrize("value", [b'"\xff"', b'"\\ud800"', b'{"a":"\xff"}'])
def test_what_is_no_text(value: bytes) -> None:
    f = Fields({"a": Raw(value), "b": Raw(value)})
    with pytest.raises(Failure, match="a: must be a string"):
        f.text("a")
    if b"\xff" in value:
        with pytest.raises(Failure, match="b: must be UTF-8"):
            f.raw("b")


def test_what_rides_along_goes_back() -> None:
    form: dict[str, Any] = {"a": {"b": 1}, "c": 2, "d": 3}
    extra = {"a": {"x": raw(1), "deep": {"y": raw(2)}}, "c": raw(5), "new": {"z": raw(3)}, "e": raw({"f": 1})}
    put_back(form, extra, True, Lost(), "")
    assert plain(form) == {
        "a": {"b": 1, "x": 1, "deep": {"y": 2}},
        "c": 5,
        "d": 3,
        "new": {"z": 3},
        "e": {"f": 1},
    }
    form = {"a": {"b": 1}}
    put_back(form, {"a": raw({"x": 1})}, True, Lost(), "")
    assert plain(form) == {"a": {"b": 1, "x": 1}}


def test_what_rides_along_is_lost_elsewhere() -> None:
    lost = Lost({"quiet": (), "tier": (b'"auto"', b'["a","b"]')})
    extra = {
        "a": {"x": raw(1), "deep": {"y": raw(2), "quiet": raw(3)}},
        "b": Raw(b' { "c" : 1 } '),
        "nothing": raw(None),
        "none": raw([]),
        "tier": Raw(b'[ "a", "b" ]'),
    }
    put_back({}, extra, False, lost, "here.")
    assert lost.places == ["here.a.x", "here.a.deep.y", "here.b"]
    lost.fields({"tier": raw("flex")})
    lost.add("here.b")
    assert lost.places == ["here.a.x", "here.a.deep.y", "here.b", "tier"]


@pytest.mark.parametrize(
    "text, is_it",
    [
        ("aGk=", True),
        ("aGkh", True),
        ("aA==", True),
        ("+/+/", True),
        ("", False),
        ("aGk", False),
        ("a===", False),
        ("=aGk", False),
        ("aG=k", False),
        ("aG k", False),
        ("aG-_", False),
        ("aGké", False),
        ("aGk\n", False),
    ],
)
def test_base64(text: str, is_it: bool) -> None:
    assert is_base64(text) is is_it


def test_the_text_in_base64() -> None:
    assert text_in("w6k=") == "é"
    assert text_in("/w==") is None
    assert text_in("no!") is None


def test_words_and_tokens() -> None:
    assert [budget_of(w) for w in ("none", "minimal", "low", "medium", "high", "xhigh", "max", "utmost")] == [
        0,
        1024,
        2048,
        8192,
        24576,
        49152,
        49152,
        None,
    ]
    assert [effort_of(n) for n in (0, 1, 1024, 1025, 8192, 8193, 24577, 10**9)] == [
        "none",
        "minimal",
        "minimal",
        "low",
        "medium",
        "high",
        "xhigh",
        "xhigh",
    ]
