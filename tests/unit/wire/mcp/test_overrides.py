"""Tools under other names and with other arguments, and which of them an endpoint has."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.catalogue import Entry, Listing
from tollhouse.wire.mcp.headers import annotations
from tollhouse.wire.mcp.overrides import Argument, Override, Overrides, Selection

SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "description": "where"},
        "region": {"type": "string", "x-mcp-header": "Region"},
        "mode": {"type": "string", "x-mcp-header": "Mode"},
        "other": {"type": "integer"},
    },
    "required": ["path", "mode", "region"],
}
WRITE = Override(
    "save",
    "Save it.",
    {
        "path": Argument(name="file", description="which file"),
        "mode": Argument(hidden=True, default=b'"text"'),
        "region": Argument(default=b'"eu"'),
    },
)


def listing(*names: str) -> Listing:
    entries = [
        Entry(name, json.dumps({"name": name, "inputSchema": SCHEMA, "x": 1}).encode(), headers=annotations(SCHEMA))
        for name in names
    ]
    return Listing(entries, at=0.0, until=9.0)


def test_what_agents_see() -> None:
    (entry,) = Overrides({"write": WRITE}).exposed(listing("write")).entries
    tool = json.loads(entry.raw)
    assert (entry.name, entry.original) == ("save", "write")
    assert (tool["name"], tool["description"], tool["x"]) == ("save", "Save it.", 1)
    assert tool["inputSchema"]["properties"] == {
        "file": {"type": "string", "description": "which file"},
        "region": {"type": "string", "x-mcp-header": "Region", "default": "eu"},
        "other": {"type": "integer"},
    }
    assert tool["inputSchema"]["required"] == ["file"]
    assert entry.headers == {("region",): ("Region", "string")}  # the hidden one took its header along


def test_what_the_server_gets() -> None:
    def told(arguments: Any) -> Any:
        return json.loads(bytes(WRITE.to_server(json.dumps(arguments).encode())))

    assert told({"file": "a", "other": 1}) == {"path": "a", "other": 1, "mode": "text", "region": "eu"}
    assert told({"file": "a", "region": "us"}) == {"path": "a", "mode": "text", "region": "us"}
    assert json.loads(bytes(WRITE.to_server(b""))) == {"mode": "text", "region": "eu"}
    for wrong in ({"path": "a"}, {"mode": "binary"}):
        with pytest.raises(jsonrpc.Malformed) as caught:
            told(wrong)
        assert caught.value.code == jsonrpc.INVALID_PARAMS
    with pytest.raises(jsonrpc.Malformed):
        WRITE.to_server(b"[]")


def test_names_both_ways() -> None:
    overrides = Overrides({"write": WRITE, "read": Override(description="Read.")})
    seen = overrides.exposed(listing("write", "read", "save", "list"))
    assert [entry.name for entry in seen.entries] == ["save", "read", "list"]  # the server's own `save` is left out
    assert [overrides.original(name) for name in ("save", "write", "read", "list")] == ["write", None, "read", "list"]
    assert overrides.to_server("list", b'{"a":1}') == b'{"a":1}'


def test_it_is_made_once_for_each_listing() -> None:
    overrides = Overrides({"write": WRITE})
    one = listing("write")
    seen = overrides.exposed(one)
    one.until = 0.0
    assert overrides.exposed(one) is seen
    assert seen.until == 0.0
    assert overrides.exposed(listing("write")) is not seen
    for _ in range(20):
        overrides.exposed(listing("write"))
    assert len(overrides._seen) <= 8


@given(st.dictionaries(st.sampled_from(["file", "other", "region", "more"]), st.integers() | st.text()))
def test_arguments_come_through(arguments: dict[str, Any]) -> None:
    made = json.loads(bytes(WRITE.to_server(json.dumps(arguments).encode())))
    back = {"path": "file"}
    assert {back.get(name, name): value for name, value in made.items() if name != "mode"} == {
        "region": "eu",
        **arguments,
    }


@pytest.mark.parametrize("raw", [b"[]", b'{"name":"write","inputSchema":7}', b'{"name":"write"}'])
def test_odd_tools(raw: bytes) -> None:
    odd = Listing([Entry("write", raw)], at=0.0, until=0.0)
    if raw == b"[]":
        with pytest.raises(jsonrpc.Malformed):
            Overrides({"write": WRITE}).exposed(odd)
    else:
        assert Overrides({"write": WRITE}).exposed(odd).entries[0].name == "save"


def test_selections() -> None:
    chosen = Selection(["shop__*", "search"], ["*delete*"])
    assert chosen.has("shop", "order", "order")
    assert not chosen.has("github", "order", "order")
    assert chosen.has("github", "search", "search")
    assert not chosen.has("shop", "delete_order", "delete_order")
    assert not chosen.has("shop", "remove", "delete_order")  # another name does not help
    assert not chosen.has("shop", "undelete", "restore")
    assert not Selection(["github__search"]).has("shop", "search", "search")
    assert Selection(None, ["shop__x"]).has("shop", "y", "y")
    assert not Selection(None, ["shop__x"]).has("shop", "x", "x")
    assert not Selection([]).has("shop", "x", "x")
    assert Selection(["a.b"]).has("s", "a.b", "a.b")
    assert not Selection(["a.b"]).has("s", "axb", "axb")
