"""HTTP answers as results: what the model reads, what is structured, what is a failure."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.mcp.openapi_answer import Answer, ApiFailed, HttpTool, Projection
from tollhouse.wire.mcp.openapi_request import Operation

JSON = "application/json; charset=utf-8"


def told(answer: Answer, **more: Any) -> Any:
    return json.loads(HttpTool("t", b"{}", Operation(b"GET", ("/",)), **more).result(answer))


def text(answer: Answer, **more: Any) -> str:
    (block,) = told(answer, **more)["content"]
    return str(block["text"])


def test_an_object_is_text_and_structured() -> None:
    result = told(Answer(200, JSON, b'{"a": 1e2, "big": 12345678901234567890123}'))
    assert result == {
        "content": [{"type": "text", "text": '{"a": 1e2, "big": 12345678901234567890123}'}],
        "structuredContent": {"a": 1e2, "big": 12345678901234567890123},
    }


def test_what_is_no_object_is_wrapped_where_that_was_said() -> None:
    assert "structuredContent" not in told(Answer(200, JSON, b"[1]"))
    assert told(Answer(200, JSON, b"[1]"), structured=True, wrapped=True)["structuredContent"] == {"result": [1]}
    assert told(Answer(200, "application/problem+json", b'{"a":1}'))["structuredContent"] == {"a": 1}
    assert told(Answer(200, "", b'{"a":1}'))["structuredContent"] == {"a": 1}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(200, JSON, b"[1]"), "not the object it promises:\n\n[1]"),
        (Answer(200, "text/html", b"<p>"), "but with text/html where it promises JSON.\n\n<p>"),
        (Answer(204, "", b""), "204 No Content, but with an empty body where it promises JSON."),
        (Answer(200, JSON, b"{"), "with JSON that cannot be read."),
        (Answer(200, JSON, b'{"a":"\xff"}'), "with JSON that cannot be read."),
        (Answer(200, JSON, b"[" * 200 + b"]" * 200), "with JSON that cannot be read."),
    ],
)
def test_a_promise_that_is_not_kept_is_an_error_of_the_tool(answer: Answer, said: str) -> None:
    result = told(answer, structured=True)
    assert result["isError"] is True
    assert said in result["content"][0]["text"]
    assert "structuredContent" not in result


def test_content_by_its_type() -> None:
    assert text(Answer(200, "text/plain; charset=iso-8859-1", b"\xe9")) == "é"
    assert text(Answer(200, "text/plain; charset=nonsense", "é".encode())) == "é"
    assert text(Answer(200, "application/xml", b"<a/>")) == "<a/>"
    assert text(Answer(200, "", b"plain")) == "plain"
    assert text(Answer(204, "", b"")) == "Done: 204 No Content."
    for kind in ("image/png", "audio/wav"):
        assert told(Answer(200, kind, b"\0"))["content"] == [
            {"type": kind[:5], "data": base64.b64encode(b"\0").decode(), "mimeType": kind}
        ]
    assert text(Answer(200, "image/svg+xml", b"<svg/>")) == "<svg/>"
    (blob,) = told(Answer(200, "application/pdf", b"%PDF"))["content"]
    assert blob == {
        "type": "resource", "resource": {"uri": "answer:t", "mimeType": "application/pdf", "blob": "JVBERg=="}
    }  # fmt: skip
    assert told(Answer(200, "", b"\xff\0"))["content"][0]["resource"]["mimeType"] == "application/octet-stream"


def test_what_the_api_refuses_is_for_the_model() -> None:
    result = told(Answer(422, JSON, b'{"detail": "the name is missing"}'), structured=True)
    assert (result["isError"], result.keys()) == (True, {"isError", "content"})
    assert result["content"][0]["text"].endswith('\n\n{"detail": "the name is missing"}')
    assert "the gateway's own credentials" in text(Answer(401, "", b""))
    assert text(Answer(404, "image/png", b"\0")) == "The API answered 404 Not Found."
    assert len(text(Answer(400, "text/plain", b"x" * 100_000))) < 9_000
    moved = told(Answer(302, "", b"", location="http://elsewhere.test/"))
    assert moved["isError"]
    assert "redirects are not followed. It leads to 'http://elsewhere.test/'." in moved["content"][0]["text"]
    moved = text(Answer(307, "", b"", location="/there/?a=1&api_key=hidden"))
    assert "'/there/?'" in moved
    assert "hidden" not in moved


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 599])
def test_what_the_api_has_not_done_is_a_failure(status: int) -> None:
    with pytest.raises(ApiFailed) as caught:
        told(Answer(status, "text/plain", b"busy", retry_after=7.0))
    assert caught.value.text.startswith(f"The API answered {status}")
    assert "It asks to wait 7 seconds." in caught.value.text
    assert caught.value.text.endswith("busy")


VALUE = {"items": [{"name": "a", "tags": ["x"]}, {"name": "b"}], "a/b": {"~": 1}, "n": None}


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("", VALUE),
        ("/items/0/name", "a"),
        ("/items/*/name", ["a", "b"]),
        ("/items/*/tags/*", [["x"], None]),
        ("/items/9", None),
        ("/items/x", None),
        ("/a~1b/~0", 1),
        ("/nope/deeper", None),
    ],
)
def test_projection(pointer: str, found: Any) -> None:
    assert Projection(pointer).of(VALUE) == found


def test_a_projection_is_the_result() -> None:
    answer = Answer(200, JSON, json.dumps(VALUE).encode())
    assert told(answer, projection=Projection("/items/*/name"))["content"][0]["text"] == '["a","b"]'
    named = told(answer, projection=Projection(None, (("names", "/items/*/name"), ("first", "/items/0"))))
    assert named["structuredContent"] == {"names": ["a", "b"], "first": {"name": "a", "tags": ["x"]}}
    assert told(Answer(200, "text/plain", b"x"), projection=Projection("/a"))["isError"] is True


@given(st.integers(200, 499).filter(lambda n: n != 429), st.text(), st.binary(), st.booleans(), st.booleans())
def test_any_answer_is_a_result(status: int, content_type: str, body: bytes, structured: bool, wrapped: bool) -> None:
    result = told(Answer(status, content_type, body), structured=structured, wrapped=structured and wrapped)
    assert result["content"]
    if structured and not result.get("isError"):
        assert isinstance(result["structuredContent"], dict)
