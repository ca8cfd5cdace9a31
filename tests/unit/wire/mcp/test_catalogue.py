"""Lists: what is kept of them, the merge, and that pages say everything once."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.catalogue import KINDS, Cursors, Entry, Listing, parse_page, select
from tollhouse.wire.mcp.sealed import Seals

TOOLS, RESOURCES = KINDS["tools/list"], KINDS["resources/list"]


def listing(*names: str) -> Listing:
    entries = [Entry(name, msgspec.json.encode({"name": name, "inputSchema": {"x": 1}})) for name in names]
    return Listing(entries, at=0.0, until=1.0)


def page(value: Any, *, headers: bool = False, kind: Any = TOOLS) -> Any:
    return parse_page(kind, msgspec.json.encode(value), headers=headers)


def test_a_page() -> None:
    found = page(
        {
            "tools": [{"name": "a", "inputSchema": {}, "extra": {"kept": 1}}, {"noname": 1}, 7, {"name": ""}],
            "nextCursor": "c",
            "ttlMs": 5,
        }
    )
    assert [entry.name for entry in found.entries] == ["a"]
    assert json.loads(found.entries[0].raw) == {"name": "a", "inputSchema": {}, "extra": {"kept": 1}}
    assert (len(found.dropped), found.cursor, found.ttl) == (3, "c", 5)


@pytest.mark.parametrize("value", [{}, {"tools": {}}, {"tools": None}, {"resources": []}])
def test_no_list(value: Any) -> None:
    with pytest.raises(jsonrpc.Malformed):
        page(value)


def test_annotations() -> None:
    good = {"name": "good", "inputSchema": {"properties": {"r": {"type": "string", "x-mcp-header": "R"}}}}
    bad = {"name": "bad", "inputSchema": {"properties": {"r": {"type": "number", "x-mcp-header": "R"}}}}
    found = page({"tools": [good, bad]}, headers=True)
    assert [entry.name for entry in found.entries] == ["good"]
    assert found.entries[0].headers == {("r",): ("R", "string")}
    assert "bad" in found.dropped[0]
    assert len(page({"tools": [good, bad]}).entries) == 2


def test_hints() -> None:
    said = [{"readOnlyHint": True}, {"destructiveHint": True}, {"idempotentHint": "yes"}, {}]
    found = page(
        {"tools": [{"name": f"t{n}", "inputSchema": {}, "annotations": hints} for n, hints in enumerate(said)]}
    )
    assert [entry.repeatable for entry in found.entries] == [True, False, False, False]


def test_exposed_entries_differ_in_their_name_alone() -> None:
    entry = Entry("a", b'{"name":"a","b":{"c": 1e400}}')
    assert entry.exposed(TOOLS, "s") == b'{"name":"s__a","b":{"c": 1e400}}'
    assert Entry("a:b", b'{"uri":"a:b"}').exposed(RESOURCES, "s") == b'{"uri":"s+a:b"}'


def names_of(raws: list[bytes]) -> list[str]:
    return [json.loads(raw)["name"] for raw in raws]


@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True), min_size=1, max_size=4),
    st.integers(1, 5),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_pages_say_everything_once_and_in_order(lists: list[list[str]], size: int, wrap: bool, random: Any) -> None:
    parts = []
    expected = []
    seen: set[str] = set()
    for number, own in enumerate(lists):
        visible = bytes(random.randint(0, 1) for _ in own)
        parts.append((f"s{number}", listing(*own), visible))
        for name, shown in zip(own, visible, strict=True):
            if wrap and shown:
                expected.append(f"s{number}__{name}")
            elif not wrap and name not in seen and shown:
                expected.append(name)
            seen.add(name)
    got: list[str] = []
    after = None
    for _ in range(100):
        raws, after = select(TOOLS, parts, wrap=wrap, after=after, size=size)
        assert len(raws) <= size
        got += names_of(raws)
        if after is None:
            break
    assert got == expected


def test_a_hidden_name_is_not_given_to_the_next_server() -> None:
    """Else a caller who may not use `a` of the first would be sent to another `a` under its name."""
    parts = [("one", listing("a"), b"\0"), ("two", listing("a", "b"), b"\1\1")]
    assert names_of(select(TOOLS, parts, wrap=False, after=None, size=9)[0]) == ["b"]


def test_going_on_after_what_has_gone() -> None:
    parts = [("one", listing("a", "b"), b"\1\1"), ("two", listing("c"), b"\1")]
    assert names_of(select(TOOLS, parts, wrap=True, after=("one", "gone"), size=9)[0]) == ["two__c"]
    assert select(TOOLS, parts, wrap=True, after=("gone", "a"), size=9) == ([], None)


def test_versions() -> None:
    assert listing("a", "b").version == listing("a", "b").version != listing("b", "a").version


def test_cursors() -> None:
    cursors = Cursors(Seals((b"k" * 32,)))
    cursor = cursors.seal("ada", "s", "tool é")
    assert cursors.open("ada", cursor) == ("s", "tool é")
    for bound, text in (("bob", cursor), ("ada", cursor[:-2]), ("ada", "A" + cursor[1:]), ("ada", "é"), ("ada", "")):
        with pytest.raises(jsonrpc.Malformed) as caught:
            cursors.open(bound, text)
        assert caught.value.code == jsonrpc.INVALID_PARAMS
    with pytest.raises(jsonrpc.Malformed):
        Cursors(Seals((b"x" * 32,))).open("ada", cursor)


@pytest.mark.parametrize(
    "tool",
    [
        {"name": "a"},
        {"name": "a", "inputSchema": []},
        {"name": "a", "inputSchema": None},
        {"name": "a" * 257, "inputSchema": {}},
    ],
)
def test_a_tool_that_would_spoil_the_list_is_left_out(tool: dict[str, Any]) -> None:
    """Agents refuse a whole list for one such tool."""
    read = page({"tools": [tool, {"name": "good", "inputSchema": {"type": "object"}}]})
    assert [entry.name for entry in read.entries] == ["good"]
    assert len(read.dropped) == 1
