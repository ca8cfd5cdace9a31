"""wire.mcp.pins: a file for reviews that gives back what was put in, and takes nothing that nobody approved."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.mcp.integrity import digest
from tollhouse.wire.mcp.pins import MOST, BadPins, Pin, merged, parse, render, without
from tollhouse.wire.mcp.scan import RULES

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


def pin(name: str = "send", description: str = "Sends.", accepts: tuple[str, ...] = ()) -> Pin:
    tool = {"name": name, "description": description, "inputSchema": {"type": "object"}}
    return Pin(digest(tool), tool, accepts)


PINS = st.dictionaries(
    TEXT.filter(bool),
    st.dictionaries(
        TEXT.filter(bool), st.tuples(TEXT, st.sets(st.sampled_from(sorted(RULES)), max_size=2)), max_size=3
    ),
    max_size=3,
).map(
    lambda servers: {
        server: {name: pin(name, text, tuple(sorted(rules))) for name, (text, rules) in tools.items()}
        for server, tools in servers.items()
        if tools
    }
)


@given(PINS)
def test_what_is_written_is_read(pins: Any) -> None:
    data = render(pins)
    assert parse(data) == pins
    assert render(parse(data)) == data
    assert render(dict(reversed(pins.items()))) == data
    assert all(char.isprintable() or char == "\n" for char in data.decode())


def test_the_file_is_made_for_reviews() -> None:
    one = pin(description="Größe\u200b ☀\ufe0f \U000e0041", accepts=("role", "encoded"))
    text = render({"b": {"send": one}, "a": {}}).decode()
    assert text == (
        "{\n"
        '  "version": 1,\n'
        '  "servers": {\n'
        '    "b": {\n'
        '      "send": {\n'
        f'        "sha256": "{one.sha256}",\n'
        '        "accepts": [\n'
        '          "encoded",\n'
        '          "role"\n'
        "        ],\n"
        '        "tool": {\n'
        '          "name": "send",\n'
        '          "description": "Größe\\u200b ☀\\ufe0f \\udb40\\udc41",\n'
        '          "inputSchema": {\n'
        '            "type": "object"\n'
        "          }\n"
        "        }\n"
        "      }\n"
        "    }\n"
        "  }\n"
        "}\n"
    )


@pytest.mark.parametrize("char", ["\u034f", "\u115f", "\u17b4", "\u180b", "\u180d", "\u2800", "\u3164", "\ufe0f"])
def test_nothing_unseen_stands_in_the_file(char: str) -> None:
    pins = {"a": {"send": pin(description=f"Sends{char}.")}}
    data = render(pins)
    assert data.isascii()
    assert parse(data) == pins


def test_no_file_is_no_pins() -> None:
    assert parse(b"") == parse(b" \n") == {}


def document(**changes: Any) -> bytes:
    good = json.loads(render({"a": {"send": pin()}}))
    entry = good["servers"]["a"]["send"]
    entry.update(changes)
    return json.dumps(good).encode()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{\n<<<<<<< ours", "line 2, column 1: not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "not a pins file of version 1"),
        (b'{"version": 2}', "not a pins file of version 1"),
        (b'{"version": 1, "version": 1}', "'version' stands there twice"),
        (b'{"version": 1, "servers": []}', "servers must be an object"),
        (b'{"version": 1, "servers": {"a": {"send": 1}}}', "a/send must be an object"),
        (b"[" * 100_000, "nested too deeply"),
        (document(sha256="x"), "a/send: sha256 must be 64 hexadecimal digits"),
        (document(sha256="0" * 64), "a/send: the definition is not the one that sha256 stands for"),
        (document(tool={**pin().tool, "description": "Sends all."}), "is not the one that sha256 stands for"),
        (document(tool={**pin().tool, "name": "other"}), "a/send: tool must be the definition of 'send'"),
        (document(tool={**pin().tool, "icons": []}), "of no members but name, title"),
        (document(accepts=["nothing"]), "a/send: accepts must be a list of the scan's rules"),
        (document(accepts="role"), "accepts must be a list"),
    ],
)
def test_what_cannot_be_used_says_where_it_is_wrong(data: bytes, why: str) -> None:
    with pytest.raises(BadPins) as raised:
        parse(data)
    assert why in str(raised.value)


@given(st.binary(max_size=80))
def test_anything_else_is_bad_pins(data: bytes) -> None:
    try:
        parse(data)
    except BadPins:
        pass


def test_merging() -> None:
    old, new, other = pin(), pin(description="Other."), pin("other")
    both = {"a": {"send": old}}
    assert merged(both, {"a": {"send": new, "other": other}}, anew=False) == {"a": {"send": old, "other": other}}
    assert merged(both, {"a": {"send": new}, "b": {"send": new}}, anew=True) == {"a": {"send": new}, "b": {"send": new}}
    assert both == {"a": {"send": old}}
    assert without({"a": {"send": old, "other": other}}, [("a", "send"), ("b", "x")]) == {"a": {"other": other}}


def test_a_server_has_so_many_pins_and_no_more() -> None:
    full = {"a": dict.fromkeys(map(str, range(MOST)), pin())}
    assert "send" not in merged(full, {"a": {"send": pin()}}, anew=False)["a"]
    assert "send" in merged(full, {"a": {"send": pin()}}, anew=True)["a"]
