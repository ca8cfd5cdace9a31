"""Questions in the middle of a request, from one era's form into the other's."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import capabilities as caps
from tollhouse.wire.mcp import mrtr, revisions

FORM = {"message": "Who?", "requestedSchema": {"type": "object", "properties": {}}}
URL = {"mode": "url", "message": "Open it", "url": "https://x.test"}


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def request(method: str, params: Any = None) -> mrtr.InputRequest:
    return mrtr.InputRequest(method, raw(params) if params is not None else jsonrpc.NONE)


@pytest.mark.parametrize(
    "result",
    [
        {"resultType": "input_required"},
        {"resultType": "input_required", "requestState": 7},
        {"resultType": "input_required", "inputRequests": []},
        {"resultType": "input_required", "inputRequests": {"a": {"params": {}}}},
        {"resultType": "input_required", "inputRequests": {"a": {"method": "tools/call"}}},
        {"resultType": "input_required", "inputRequests": {"a" * 257: {"method": "roots/list"}}},
        {"resultType": "input_required", "inputRequests": {str(n): {"method": "roots/list"} for n in range(65)}},
        {"resultType": "input_required", "requestState": "x" * ((64 << 10) + 1)},
        {"resultType": 7},
        [],
    ],
)
def test_what_no_server_may_need(result: Any) -> None:
    with pytest.raises(jsonrpc.Malformed) as caught:
        mrtr.need_input("tools/call", raw(result))
    assert caught.value.code == jsonrpc.INTERNAL_ERROR


def test_what_a_server_needs() -> None:
    assert mrtr.need_input("tools/call", raw({"content": []})) is None
    need = mrtr.need_input("resources/read", raw({"resultType": "input_required", "requestState": "s"}))
    assert need is not None
    assert (need.requests, need.state) == ({}, "s")
    with pytest.raises(jsonrpc.Malformed):
        mrtr.need_input("tools/list", raw({"resultType": "input_required", "requestState": "s"}))


def test_what_must_have_been_declared() -> None:
    asked = {
        "form": request("elicitation/create", FORM),
        "url": request("elicitation/create", URL),
        "roots": request("roots/list"),
        "sample": request("sampling/createMessage", {"messages": [], "tools": []}),
    }
    everything = {"elicitation": {"form": {}, "url": {}}, "roots": {}, "sampling": {"tools": {}}}
    assert mrtr.requires(0, asked) == everything
    assert mrtr.requires(caps.profile_of(raw(everything)), asked) == {}
    assert mrtr.requires(caps.SAMPLING, {"a": asked["sample"]}) == {"sampling": {"tools": {}}}


def test_a_question_of_an_old_server_in_new_words() -> None:
    meta = {"progressToken": 1, "io.modelcontextprotocol/related-task": {"taskId": "x"}, "vendor/x": 1}
    message = jsonrpc.Message("2.0", raw(1), "elicitation/create", raw({**URL, "elicitationId": "e", "_meta": meta}))
    made = mrtr.as_input_request(message)
    assert json.loads(bytes(made.params)) == {**URL, "_meta": {"vendor/x": 1}}
    assert json.loads(mrtr.render({"k": made}, "s")) == {
        "resultType": "input_required",
        "inputRequests": {"k": {"method": "elicitation/create", "params": {**URL, "_meta": {"vendor/x": 1}}}},
        "requestState": "s",
    }


def test_a_question_of_a_new_server_in_old_words() -> None:
    url = request("elicitation/create", URL)
    assert json.loads(bytes(mrtr.as_server_request(url, "2025-11-25", "e-1"))) == {**URL, "elicitationId": "e-1"}
    with pytest.raises(jsonrpc.Malformed) as caught:
        mrtr.as_server_request(url, "2025-06-18", "e-1")
    assert "url" in caught.value.message
    assert "x.test" not in caught.value.message
    form = request("elicitation/create", {**FORM, "mode": "form"})
    assert json.loads(bytes(mrtr.as_server_request(form, "2025-06-18", ""))) == FORM
    assert mrtr.as_server_request(form, "2025-11-25", "") is form.params


texts = st.text(max_size=20)
questions = st.one_of(
    st.builds(lambda m: ("elicitation/create", {**FORM, "message": m}), texts),
    st.builds(lambda m: ("elicitation/create", {**URL, "message": m}), texts),
    st.builds(lambda n: ("sampling/createMessage", {"messages": [], "maxTokens": n}), st.integers(1, 9)),
    st.just(("roots/list", {})),
)


@given(questions)
def test_down_and_up_again_is_the_same_question(question: tuple[str, Any]) -> None:
    method, params = question
    asked = request(method, params)
    down = mrtr.as_server_request(asked, revisions.NEWEST_OLD, "minted")
    up = mrtr.as_input_request(jsonrpc.Message("2.0", raw(1), method, msgspec.Raw(bytes(down))))
    assert json.loads(bytes(up.params)) == params
    assert mrtr.question(up) == mrtr.question(asked)


@given(questions, questions)
def test_digests_tell_questions_apart(one: tuple[str, Any], other: tuple[str, Any]) -> None:
    assert (mrtr.question(request(*one)) == mrtr.question(request(*other))) == (one == other)


def test_answers() -> None:
    assert mrtr.answers_of(None) == {}
    assert mrtr.answers_of(raw({"a": {"x": 1}})) == {"a": raw({"x": 1})}
    for wrong in (None, [], 7, {"a": 7}, {"a": None}, {"a": "yes"}):
        with pytest.raises(jsonrpc.Malformed):
            mrtr.answers_of(raw(wrong))


def test_bindings() -> None:
    bound = mrtr.binding("tools/call", "s", "t", b'{"a":1,"b":[1,2]}')
    assert bound == mrtr.binding("tools/call", "s", "t", b'{ "b": [1, 2], "a": 1 }')
    for other in (
        ("tools/call", "s", "t", b'{"a":1,"b":[2,1]}'),
        ("tools/call", "s", "u", b'{"a":1,"b":[1,2]}'),
        ("tools/call", "r", "t", b'{"a":1,"b":[1,2]}'),
        ("prompts/get", "s", "t", b'{"a":1,"b":[1,2]}'),
        ("tools/call", "s", "t", b""),
    ):
        assert mrtr.binding(*other) != bound
    assert mrtr.binding("tools/call", "s", "t", b"[" * 5000) != bound


def test_giving_up() -> None:
    assert json.loads(mrtr.given_up(b"1", "elicitation/create"))["result"] == {"action": "cancel"}
    assert json.loads(mrtr.given_up(b'"x"', "sampling/createMessage"))["error"]["code"] == -1
    assert json.loads(mrtr.given_up(b"1", "roots/list"))["error"]["code"] == -32603


def test_urls_that_must_be_opened() -> None:
    wanted = {**URL, "elicitationId": "e"}

    def of(error: Any) -> list[tuple[str, Any]]:
        return [(id, json.loads(bytes(one.params))) for id, one in mrtr.url_elicitations(raw(error))]

    assert of({"code": -32042, "message": "m", "data": {"elicitations": [wanted]}}) == [("e", URL)]
    for data in (
        None,
        7,
        {},
        {"elicitations": 7},
        {"elicitations": [URL]},
        {"elicitations": [{**FORM, "elicitationId": "e"}]},
    ):
        assert of({"code": -32042, "message": "m", "data": data}) == []
    assert of({"code": -32603, "message": "m", "data": {"elicitations": [wanted]}}) == []


def test_results_in_another_era() -> None:
    def told(result: Any, **more: Any) -> Any:
        return json.loads(bytes(revisions.result_for("tools/call", raw(result), **{"new": False, **more})))

    assert told({"content": [], "structuredContent": "x", "resultType": "complete"}) == {
        "content": [{"type": "text", "text": '"x"'}]
    }
    same = {"content": [{"type": "text", "text": "x"}], "structuredContent": "x"}
    assert told(same) == {"content": [{"type": "text", "text": "x"}]}
    assert told({"content": [], "structuredContent": {"a": 1}}) == {"content": [], "structuredContent": {"a": 1}}
    link = {"content": [{"type": "resource_link", "name": "n", "uri": "x:y"}]}
    assert told(link, revision="2025-03-26") == {"content": [{"type": "text", "text": "n: x:y"}]}
    assert told(link, revision="2025-06-18") == link
    sound = {"content": [{"type": "audio", "mimeType": "audio/wav", "data": ""}]}
    assert told(sound, revision="2024-11-05") == {"content": [{"type": "text", "text": "[audio, audio/wav]"}]}
    assert told(sound, revision="2025-03-26") == sound
    meta = {"io.modelcontextprotocol/serverInfo": {}, "vendor/x": 1}
    assert told({"content": [], "_meta": meta}) == {"content": [], "_meta": {"vendor/x": 1}}
    assert told({"content": [], "_meta": meta}, new=True)["_meta"] == {"vendor/x": 1}
    for kind in ("task", "input_required", "odd"):
        with pytest.raises(jsonrpc.Malformed):
            told({"resultType": kind})
    assert told({"resultType": "task"}, new=True, asks=True) == {"resultType": "task"}
    read = revisions.result_for("resources/read", raw({"contents": [], "cacheScope": "public", "ttlMs": "x"}), new=True)
    assert json.loads(bytes(read)) == {"contents": [], "resultType": "complete", "cacheScope": "private", "ttlMs": 0}
