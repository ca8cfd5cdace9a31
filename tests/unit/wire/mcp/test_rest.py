"""Tools written by hand: places, what is left out, and what is refused."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.mcp.openapi_request import BadArguments, HttpRequest
from tollhouse.wire.mcp.rest import Template


def template(**said: Any) -> Template:
    names = said.pop("names", ("a", "b"))
    schema = said.pop("schema", {"type": "object", "properties": {name: {} for name in names}})
    return Template(**{"method": "POST", "path": "/x", "schema": schema, **said})


def ask(made: Template, **arguments: Any) -> HttpRequest:
    return made.request(json.dumps(arguments).encode())


def test_places_in_the_path() -> None:
    made = template(path="/v1/{a}/y-{b}.json")
    assert ask(made, a="c/d e", b=3).target == b"/v1/c%2Fd%20e/y-3.json"
    for bad in ("..", ".", "", None, "a/../b"):
        with pytest.raises(BadArguments):
            ask(made, a=bad, b="x")
    beside = template(path="/v1/{a}{b}/z")
    assert ask(beside, a="x", b="y").target == b"/v1/xy/z"
    for first, second in (("%2e%2", "e"), ("%252e%252", "e"), ("x/..%2", "fy"), (".%", "2e")):
        with pytest.raises(BadArguments):
            ask(beside, a=first, b=second)
    with pytest.raises(BadArguments, match="'b' is missing: it is a part of the path"):
        ask(made, a="x")


def test_query_and_headers_with_what_is_there() -> None:
    made = template(query={"q": "{a}", "mixed": "{a}-{b}", "fixed": "1 {{x}}"}, headers={"X-B": "b {b}"})
    assert ask(made, a="x&", b=2).target == b"/x?q=x%26&mixed=x%26-2&fixed=1%20%7Bx%7D"
    assert ask(made, a=["x", "y"]).target == b"/x?q=x&q=y&fixed=1%20%7Bx%7D"
    assert ask(made).target == b"/x?fixed=1%20%7Bx%7D"
    assert (b"x-b", b"b 2") in ask(made, b=2).headers
    assert [name for name, _ in ask(made).headers] == [b"accept"]
    with pytest.raises(BadArguments, match="line break"):
        ask(made, b="\r\nx: y")


def test_a_place_alone_is_the_argument_as_it_is() -> None:
    made = template(body={"all": "{a}", "text": "<{a}>", "list": ["{a}", "{b}"], "deep": {"b": "{b}"}, "fixed": 1})
    request = ask(made, a={"k": [1, None]})
    assert json.loads(request.body) == {
        "all": {"k": [1, None]}, "text": '<{"k":[1,null]}>', "list": [{"k": [1, None]}], "deep": {}, "fixed": 1
    }  # fmt: skip
    assert request.headers[-1] == (b"content-type", b"application/json")
    assert ask(template(body="{a}"), a=[1]).body == b"[1]"
    assert ask(template(body="{a}")).body == b""


def test_forms_and_text() -> None:
    request = ask(template(body={"a": "{a}", "b": "{b}"}, body_type="form"), a=["x y", 1])
    assert (request.body, request.headers[-1]) == (
        b"a=x%20y&a=1",
        (b"content-type", b"application/x-www-form-urlencoded"),
    )
    assert ask(template(body="{a}: {b}", body_type="text"), a="é", b=1).body == "é: 1".encode()


def test_defaults_and_what_is_required() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "default": "x"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }
    made = template(schema=schema, query={"a": "{a}", "b": "{b}"})
    assert ask(made, b=1).target == b"/x?a=x&b=1"
    with pytest.raises(BadArguments, match="the argument 'b' is missing"):
        ask(made)
    with pytest.raises(BadArguments, match="there is no argument 'c'; there are: a, b"):
        ask(made, b=1, c=2)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"path": "x"}, "begins with a slash"),
        ({"path": "/x?y=1"}, "has no query"),
        ({"path": "/x/../y"}, "has no `.` and `..`"),
        ({"path": "/{c}"}, "{c} is no argument; those of the input are: a, b"),
        ({"query": {"q": "{a"}}, "has a single brace"),
        ({"body": {"x": ["{c}"]}}, "{c} is no argument"),
        ({"body": [], "body_type": "form"}, "the body of a form must be a mapping"),
        ({"body": {}, "body_type": "text"}, "the body of a text must be text"),
        ({"schema": {"type": "array"}}, "the input must be a schema of an object"),
        ({"schema": {"properties": {"a": {}}, "required": ["b"]}}, "`required` of the input"),
    ],
)
def test_what_is_no_template(said: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)):
        template(**said)


@given(st.text())
def test_any_text_is_a_template_or_is_refused(text: str) -> None:
    try:
        made = template(body=text)
    except ValueError:
        return
    request = ask(made, a="{b}", b="x")
    assert "{b}" in json.loads(request.body) or "{a}" not in text  # what is put in is not looked at again
