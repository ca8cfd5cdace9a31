"""JSON Pointers into unparsed fields: what they reach, what keeps its bytes, and what is in the way."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.pointer import Misplaced, Pointer

Raw = msgspec.Raw


def fields(text: str) -> dict[str, Raw]:
    return msgspec.json.decode(text, type=dict[str, Raw])


def text(changed: dict[str, Raw]) -> str:
    return msgspec.json.encode(changed).decode()


REMOVALS = [
    ("/a/b", '{"a":{"b":1,"c": 2 }}', '{"a":{"c":2}}'),
    ("/a/b", '{"a":{"B":1,"b":2}}', '{"a":{}}'),
    ("/a/b", '{"A":{"b":1},"a":{"b":2}}', '{"A":{},"a":{}}'),
    ("/a/b", '{"a":[1.50, {"b":1}]}', '{"a":[1.50, {"b":1}]}'),
    ("/a/b", '{"a":"text"}', '{"a":"text"}'),
    ("/a/b", "{}", "{}"),
    ("/a/1", '{"a":[1,2,3]}', '{"a":[1,3]}'),
    ("/a/9", '{"a":[1, 2]}', '{"a":[1, 2]}'),
    ("/a/01", '{"a":[1, 2]}', '{"a":[1, 2]}'),
    ("/a/*", '{"a":[1,2]}', '{"a":[]}'),
    ("/a/*", '{"a":{"*":1,"b":2}}', '{"a":{"b":2}}'),
    ("/a/*/b", '{"a":[{"b":1,"c":1.50},7,{"b":2}]}', '{"a":[{"c":1.50},7,{}]}'),
    ("/a/b~1c/d~0", '{"a":{"b/c":{"d~":1,"e":2}}}', '{"a":{"b/c":{"e":2}}}'),
    ("/a/", '{"a":{"":1,"b":2}}', '{"a":{"b":2}}'),
]


@pytest.mark.parametrize(("pointer", "before", "after"), REMOVALS)
def test_removed(pointer: str, before: str, after: str) -> None:
    found = fields(before)
    Pointer(pointer).remove(found)
    assert text(found) == after


@pytest.mark.parametrize(
    ("pointer", "before", "after"),
    [
        ("/a/b", '{"a":{"c":1.50}}', '{"a":{"c":1.50,"b":7}}'),
        ("/a/b", '{"a":{"b":1,"B":2}}', '{"a":{"b":7}}'),
        ("/a/b", '{"A":{"b":1,"c":2}}', '{"A":{"c":2},"a":{"b":7}}'),
        ("/a/b/c", "{}", '{"a":{"b":{"c":7}}}'),
        ("/a/b/c", '{"a":null}', '{"a":{"b":{"c":7}}}'),
        ("/a/0", "{}", '{"a":{"0":7}}'),
        ("/a/1", '{"a":[1,2]}', '{"a":[1,7]}'),
        ("/a/-", '{"a":[1,2]}', '{"a":[1,2,7]}'),
        ("/a/-", "{}", '{"a":[7]}'),
        ("/a/-/b", '{"a":[{"b":1}]}', '{"a":[{"b":1},{"b":7}]}'),
        ("/a/*/b/c", '{"a":[{"b":{}},{}]}', '{"a":[{"b":{"c":7}},{"b":{"c":7}}]}'),
        ("/a/*/b", '{"a":[]}', '{"a":[]}'),
        ("/a/*/b", "{}", "{}"),
    ],
)
def test_put(pointer: str, before: str, after: str) -> None:
    found = fields(before)
    Pointer(pointer).put(found, Raw(b"7"))
    assert text(found) == after


@pytest.mark.parametrize(
    ("pointer", "before", "problem"),
    [
        ("/a/b", '{"a":"text"}', "a: must be an object"),
        ("/a/b", '{"a":[1]}', "a: must be an object"),
        ("/a/*", '{"a":"text"}', "a: must be a list"),
        ("/a/5/b", '{"a":[1]}', "a: must be a list that long"),
        ("/a/*/b", '{"a":[{}, 7]}', r"a\[1\]: must be an object"),
        ("/a/b/c", '{"a":{"b":true}}', r"a\.b: must be an object"),
    ],
)
def test_what_is_in_the_way(pointer: str, before: str, problem: str) -> None:
    found = fields(before)
    with pytest.raises(Misplaced, match=problem):
        Pointer(pointer).put(found, Raw(b"7"))


@pytest.mark.parametrize(
    ("pointer", "before", "after", "made"),
    [
        ("/a/b", "{}", '{"a":{"b":7}}', 1),
        ("/a/b", '{"a":{"b":null}}', '{"a":{"b":7}}', 1),
        ("/a/b", '{"a":{"b": 1 , "c": 2}}', '{"a":{"b": 1 , "c": 2}}', 0),
        ("/a/b", '{"a":"auto"}', '{"a":"auto"}', 0),
        ("/a/*/b", '{"a":[{},{"b":1},{}]}', '{"a":[{"b":7},{"b":1},{"b":7}]}', 1),
        ("/a/*/b", "{}", "{}", 0),
        ("/a/3/b", '{"a":[{}]}', '{"a":[{}]}', 0),
    ],
)
def test_filled(pointer: str, before: str, after: str, made: int) -> None:
    found = fields(before)
    calls = []

    def make() -> Raw:
        calls.append(1)
        return Raw(b"7")

    Pointer(pointer).fill(found, make)
    assert text(found) == after
    assert len(calls) == made


@pytest.mark.parametrize("wrong", ["", "a/b", "/a/~2", "/a~", "/" + "a" * 1000])
def test_what_is_no_pointer(wrong: str) -> None:
    with pytest.raises(ValueError, match="JSON Pointer"):
        Pointer(wrong)


names = st.text(st.characters(codec="utf-8"), max_size=3)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(names, values, max_size=3), st.lists(names, min_size=2, max_size=4))
def test_what_was_put_is_there_and_goes_again(body: dict[str, Any], steps: list[str]) -> None:
    pointer = Pointer("".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps))
    assert pointer.steps == tuple(steps)
    found = fields(msgspec.json.encode(body).decode())
    try:
        pointer.put(found, Raw(b'"put"'))
    except Misplaced:
        return
    value: Any = msgspec.json.decode(text(found))
    for step in steps:
        if isinstance(value, list):
            if step == "*":
                return
            value = value[-1 if step == "-" else int(step)]
        elif step == "*" and step not in value:
            return
        else:
            value = value[step]
    assert value == "put"
    pointer.fill(found, lambda: Raw(b'"filled"'))
    assert b"filled" not in msgspec.json.encode(found)
