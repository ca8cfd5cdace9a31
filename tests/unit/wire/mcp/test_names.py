"""Names and URIs: there and back for every server and every name."""

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.mcp import names

SERVERS = st.from_regex(names.SERVER_NAME, fullmatch=True).filter(lambda name: len(name) < 40)


@given(SERVERS, st.text(min_size=1))
def test_names_come_back(server: str, name: str) -> None:
    assert names.split(names.exposed(server, name)) == (server, name)


@given(SERVERS, st.text(min_size=1))
def test_uris_come_back_and_have_a_legal_scheme(server: str, rest: str) -> None:
    uri = names.exposed_uri(server, f"file:{rest}")
    assert names.original_uri(uri) == (server.lower(), f"file:{rest}")
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", uri.partition(":")[0])


def test_what_has_no_prefix() -> None:
    assert names.split("echo") == ("", "echo")
    assert names.split("a_b") == ("", "a_b")
    assert names.split("a__b__c") == ("a", "b__c")
    assert names.original_uri("file:///a+b") == ("", "file:///a+b")
    assert names.original_uri("plain") == ("", "plain")


@pytest.mark.parametrize(
    ("prefix", "count", "yes"),
    [("auto", 1, False), ("auto", 2, True), ("always", 1, True), ("never", 1, False), ("never", 2, False)],
)
def test_prefix(prefix: Any, count: int, yes: bool) -> None:
    assert names.prefixed(prefix, count) == yes


def rewritten(method: str, value: Any) -> Any:
    return json.loads(bytes(names.rewrite_uris(method, msgspec.json.encode(value), "s")))


def test_rewriting_uris() -> None:
    link = {"type": "resource_link", "uri": "a:b", "name": "n"}
    embedded = {"type": "resource", "resource": {"uri": "a:b", "text": "t"}}
    assert rewritten("tools/call", {"content": [link, embedded, {"type": "text", "text": "uri"}]}) == {
        "content": [link | {"uri": "s+a:b"}, {"type": "resource", "resource": {"uri": "s+a:b", "text": "t"}},
                    {"type": "text", "text": "uri"}],
    }  # fmt: skip
    read = rewritten("resources/read", {"contents": [{"uri": "a:b"}]})
    assert read == {"contents": [{"uri": "s+a:b"}]}
    prompt = rewritten("prompts/get", {"messages": [{"role": "user", "content": embedded}, {"content": "uri"}, 7]})
    assert prompt["messages"][0]["content"]["resource"]["uri"] == "s+a:b"


def test_what_is_not_parsed_passes_as_it_came() -> None:
    odd = b'{"big": 123456789012345678901234567890, "f":1e400}'
    raw = b'{"content":[{"type":"text","text":"uri"}],"structuredContent":%b}' % odd
    assert odd in bytes(names.rewrite_uris("tools/call", raw, "s"))


@pytest.mark.parametrize("raw", [b'"uri"', b'{"content":"uri"}', b'{"uri":1}', b'{"content":{"uri":1}}', b"[]"])
def test_odd_results_pass(raw: bytes) -> None:
    assert json.loads(bytes(names.rewrite_uris("tools/call", raw, "s"))) == json.loads(raw)
