"""Arguments become requests: every style, every body, and nothing that was not a place for them."""

import base64
import json
import re
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tollhouse.wire.mcp.openapi import Reading, tools_of
from tollhouse.wire.mcp.openapi_document import read
from tollhouse.wire.mcp.openapi_request import BadArguments, HttpRequest, Operation
from tollhouse.wire.multipart import read as read_multipart


def operation(path: str = "/x", method: str = "get", version: str = "3.1.0", **said: Any) -> Operation:
    document = {
        "openapi": version,
        "servers": [{"url": "http://a.test/v1"}],
        "paths": {path: {method: {"responses": {}, **said}}},
    }
    found = tools_of(read(json.dumps(document).encode()), Reading())
    assert found.dropped == ()
    made = found.tools[0].operation
    assert isinstance(made, Operation)
    return made


def parameter(place: str, **said: Any) -> Any:
    return {"name": "a", "in": place, "required": place == "path", "schema": {}, **said}


def ask(made: Operation, **arguments: Any) -> HttpRequest:
    return made.request(json.dumps(arguments).encode())


def target(place: str, value: Any, **said: Any) -> str:
    path = "/x/{a}/y" if place == "path" else "/x"
    return ask(operation(path, parameters=[parameter(place, **said)]), a=value).target.decode().removeprefix("/v1/x")


LIST, OBJECT = ["b", "c d"], {"k": 1, "l": "m"}


@pytest.mark.parametrize(
    ("said", "value", "expected"),
    [
        # OpenAPI 3.1.0, 4.8.12.4, Style Examples
        ({}, "b/c", "/b%2Fc/y"),
        ({}, LIST, "/b,c%20d/y"),
        ({}, OBJECT, "/k,1,l,m/y"),
        ({"explode": True}, OBJECT, "/k=1,l=m/y"),
        ({"style": "label"}, LIST, "/.b,c%20d/y"),
        ({"style": "label", "explode": True}, LIST, "/.b.c%20d/y"),
        ({"style": "label", "explode": True}, OBJECT, "/.k=1.l=m/y"),
        ({"style": "matrix"}, "b", "/;a=b/y"),
        ({"style": "matrix"}, LIST, "/;a=b,c%20d/y"),
        ({"style": "matrix", "explode": True}, LIST, "/;a=b;a=c%20d/y"),
        ({"style": "matrix", "explode": True}, OBJECT, "/;k=1;l=m/y"),
        ({}, True, "/true/y"),
        ({}, 1.5, "/1.5/y"),
        ({}, 123456789012345678901234567890, "/123456789012345678901234567890/y"),
        ({}, "é", "/%C3%A9/y"),
    ],
)
def test_styles_in_the_path(said: Any, value: Any, expected: str) -> None:
    assert target("path", value, **said) == expected


@pytest.mark.parametrize(
    ("said", "value", "expected"),
    [
        ({}, "b&c=d", "?a=b%26c%3Dd"),
        ({}, LIST, "?a=b&a=c%20d"),
        ({"explode": False}, LIST, "?a=b,c%20d"),
        ({}, OBJECT, "?k=1&l=m"),
        ({"explode": False}, OBJECT, "?a=k,1,l,m"),
        ({"style": "spaceDelimited", "explode": False}, LIST, "?a=b%20c%20d"),
        ({"style": "pipeDelimited", "explode": False}, LIST, "?a=b%7Cc%20d"),
        ({"style": "deepObject", "explode": True}, OBJECT, "?a%5Bk%5D=1&a%5Bl%5D=m"),
        ({"style": "deepObject"}, {"k": {"l": [1, 2]}}, "?a%5Bk%5D%5Bl%5D=1&a%5Bk%5D%5Bl%5D=2"),
        ({"allowReserved": True}, "b/c:d&e#f", "?a=b/c:d%26e%23f"),
        ({"content": {"application/json": {"schema": {}}}}, {"k": 1}, "?a=%7B%22k%22%3A1%7D"),
        ({}, None, ""),
        ({}, [], ""),
        ({}, "", "?a="),
        ({}, False, "?a=false"),
    ],
)  # fmt: skip
def test_styles_in_the_query(said: Any, value: Any, expected: str) -> None:
    assert target("query", value, **said) == expected


def test_headers_and_cookies() -> None:
    made = operation(
        parameters=[
            {"name": "X-List", "in": "header", "schema": {"type": "array"}},
            {"name": "X-Object", "in": "header", "explode": True, "schema": {"type": "object"}},
            {"name": "sid", "in": "cookie", "schema": {"type": "string"}},
            {"name": "other", "in": "cookie", "schema": {"type": "string"}},
        ]
    )
    request = ask(made, **{"X-List": LIST, "X-Object": OBJECT, "sid": "a; b=c", "other": "d"})
    assert request.headers[1:] == [
        (b"x-list", b"b,c d"), (b"x-object", b"k=1,l=m"), (b"cookie", b"sid=a%3B%20b%3Dc; other=d")
    ]  # fmt: skip


# ---- what is refused


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "../admin", "a/../b", "..\\b", "%2e%2e", "%252e%252e", "a%2f..%2fb", "a\nb", "a\0", [], [".."],
     {"a": "../b"}, None],
)  # fmt: skip
def test_a_value_never_changes_the_path(value: Any) -> None:
    with pytest.raises(BadArguments):
        target("path", value)


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\0", ["a", "\r\n"], {"a\n": 1}])
def test_a_value_never_ends_a_header_field(value: Any) -> None:
    with pytest.raises(BadArguments, match="line break or control character"):
        ask(operation(parameters=[parameter("header")]), a=value)


def test_members_never_pose_as_other_parameters() -> None:
    made = operation(parameters=[parameter("query"), {"name": "limit", "in": "query", "schema": {}}])
    assert ask(made, a={"b": 1}, limit=2).target == b"/v1/x?b=1&limit=2"
    with pytest.raises(BadArguments, match="has a member 'limit': that is another one"):
        ask(made, a={"limit": 1000})


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (b'{"b": 1}', "there is no argument 'b'; there are: a"),
        (b"{}", "the argument 'a' is missing"),
        (b'{"a": null}', "the argument 'a' is missing"),
        (b"[]", "the arguments must be an object"),
        (b"nope", "the arguments must be an object"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "the argument 'a': more than 100 levels deep"),
        (b'{"a": "' + b"x" * 20_000 + b'"}', "the path and query would have 20008 bytes: at most 16384"),
    ],
)
def test_arguments_that_make_no_request(arguments: bytes, problem: str) -> None:
    with pytest.raises(BadArguments, match=re.escape(problem)):
        operation(parameters=[parameter("query", required=True)]).request(arguments)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
EVERYWHERE = operation(
    "/one/{p}/two/{q}.json",
    "post",
    parameters=[
        {"name": "p", "in": "path", "required": True, "schema": {}},
        {"name": "q", "in": "path", "required": True, "style": "label", "schema": {}},
        {"name": "s", "in": "query", "schema": {}},
        {"name": "d", "in": "query", "style": "deepObject", "schema": {}},
        {"name": "h", "in": "header", "schema": {}},
        {"name": "c", "in": "cookie", "schema": {}},
    ],
    requestBody={"content": {"application/json": {"schema": {}}}},
)


@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_whatever_the_arguments_are_the_request_keeps_its_shape(
    p: Any, q: Any, s: Any, d: Any, h: Any, c: Any, body: Any
) -> None:
    try:
        request = ask(EVERYWHERE, p=p, q=q, s=s, d=d, h=h, c=c, body=body)
    except BadArguments:
        return
    parts = urlsplit(request.target.decode("ascii"))
    segments = parts.path.split("/")
    assert len(segments) == 6
    assert [segments[n] for n in (1, 2, 4)] == ["v1", "one", "two"]
    assert not {unquote(segment) for segment in segments} & {".", "..", ""} - {""}
    assert "#" not in request.target.decode()
    for name, value in request.headers:
        assert name in (b"accept", b"h", b"cookie", b"content-type")
        assert not re.search(rb"[\r\n\0]", value)
    assert json.loads(request.body) == body


@given(st.text(min_size=1), st.lists(st.text(min_size=1)), st.dictionaries(st.text(min_size=1), st.text()))
def test_what_is_put_into_a_query_comes_out_of_it(text: str, several: list[str], deep: dict[str, str]) -> None:
    made = operation(
        parameters=[
            {"name": "t", "in": "query", "schema": {}},
            {"name": "l", "in": "query", "schema": {}},
            {"name": "d", "in": "query", "style": "deepObject", "schema": {}},
        ]
    )
    request = ask(made, t=text, l=several, d=deep)
    pairs = parse_qsl(urlsplit(request.target.decode()).query, keep_blank_values=True)
    expected = [("t", text), *(("l", one) for one in several), *((f"d[{key}]", one) for key, one in deep.items())]
    assert pairs == expected


# ---- bodies


def content(media: str, schema: Any, **more: Any) -> Any:
    return {"required": True, "content": {media: {"schema": schema, **more}}}


def test_json_keeps_what_it_is_told_to_the_letter() -> None:
    made = operation(method="post", requestBody=content("application/json", {"type": "array"}))
    request = made.request(b'{"body": [1.0, 12345678901234567890123, "\\u00e9"]}')
    assert request.body == b'[1.0, 12345678901234567890123, "\\u00e9"]'
    assert request.headers[-1] == (b"content-type", b"application/json")
    with pytest.raises(BadArguments, match="'body' is missing"):
        made.request(b"{}")


def test_a_body_that_may_be_missing_is_not_sent_empty() -> None:
    made = operation(
        method="post",
        requestBody={"content": {"application/json": {"schema": {"type": "object", "properties": {"a": {}}}}}},
    )
    assert (made.request(b"{}").body, made.request(b'{"a":null}').body) == (b"", b'{"a":null}')
    assert (b"content-type", b"application/json") not in made.request(b"{}").headers


def test_forms() -> None:
    schema = {"type": "object", "properties": {name: {} for name in ("t", "l", "o", "d", "n")}}
    said = {"d": {"style": "deepObject", "explode": True}}
    made = operation(method="post", requestBody=content("application/x-www-form-urlencoded", schema, encoding=said))
    request = ask(made, t="a b&", l=[1, "x"], o={"k": 1}, d={"k": "v"}, n=None)
    assert request.body == b"t=a%20b%26&l=1&l=x&o=%7B%22k%22%3A1%7D&d%5Bk%5D=v"
    assert request.headers[-1] == (b"content-type", b"application/x-www-form-urlencoded")


@pytest.mark.parametrize(
    ("version", "file"),
    [
        ("3.0.3", {"type": "string", "format": "binary"}),
        ("3.1.0", {"type": "string", "contentMediaType": "application/octet-stream"}),
        ("3.1.0", {"type": "string", "contentEncoding": "base64"}),
    ],
)
def test_multipart(version: str, file: Any) -> None:
    schema = {"type": "object", "properties": {"f": file, "l": {"type": "array", "items": {}}, "o": {"type": "object"}}}
    made = operation(
        method="post", version=version,
        requestBody=content("multipart/form-data", schema, encoding={"f": {"contentType": "image/png"}}),
    )  # fmt: skip
    request = ask(made, f=base64.b64encode(b"\x89PNG\r\n").decode(), l=["a", 2], o={"k": 1})
    form = read_multipart(request.body)
    assert request.headers[-1] == (b"content-type", form.content_type)
    assert [(part.name, part.file, request.body[part.begin : part.end]) for part in form.parts] == [
        ("f", True, b"\x89PNG\r\n"), ("l", False, b"a"), ("l", False, b"2"), ("o", False, b'{"k":1}'),
    ]  # fmt: skip
    assert b"content-type: image/png\r\n\r\n\x89PNG" in request.body
    assert b"content-type: application/json\r\n\r\n{" in request.body


@pytest.mark.parametrize(
    ("value", "sent", "content_type"),
    [
        ("aGk=", b"hi", b"application/octet-stream"),
        ("data:image/gif;base64,R0lG", b"GIF", b"image/gif"),
        ("data:text/plain;charset=utf-8,a%20b", b"a b", b"text/plain;charset=utf-8"),
        ("data:,x", b"x", b"text/plain"),
    ],
)
def test_bytes(value: str, sent: bytes, content_type: bytes) -> None:
    made = operation(method="put", requestBody=content("application/octet-stream", {}))
    request = ask(made, body=value)
    assert (request.body, request.headers[-1]) == (sent, (b"content-type", content_type))


@pytest.mark.parametrize("value", ["not base64!", "aGk", 7, "data:image/gif;base64,!!", ["aGk="]])
def test_what_is_no_bytes(value: Any) -> None:
    with pytest.raises(BadArguments, match="base64"):
        ask(operation(method="put", requestBody=content("application/octet-stream", {})), body=value)


def test_text() -> None:
    made = operation(method="post", requestBody=content("text/csv", {"type": "string"}))
    request = ask(made, body="a,b\r\né")
    assert (request.body, request.headers[-1]) == ("a,b\r\né".encode(), (b"content-type", b"text/csv"))


@given(st.binary(), st.text(), st.dictionaries(st.sampled_from("abc"), st.text()))
def test_multipart_comes_out_as_it_was_put_in(data: bytes, text: str, member: dict[str, str]) -> None:
    schema = {"type": "object", "properties": {"f": {"type": "string", "format": "binary"}, "t": {}, "o": {}}}
    made = operation(method="post", version="3.0.0", requestBody=content("multipart/form-data", schema))
    assume(text)
    request = ask(made, f=base64.b64encode(data).decode(), t=text, o=member)
    form = read_multipart(request.body)
    assert [request.body[part.begin : part.end] for part in form.parts] == [
        data, text.encode(), json.dumps(member, separators=(",", ":"), ensure_ascii=False).encode()
    ]  # fmt: skip
