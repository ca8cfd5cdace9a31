"""What changes between the eras, and that what both can say comes through."""

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2025-03-26", "2025-03-26"),
        ("2024-11-05", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("", "2025-11-25"),
        ("3000-01-01", "2025-11-25"),
    ],
)
def test_negotiate(asked: str, answer: str) -> None:
    assert revisions.negotiate(asked) == answer


def result(method: str, value: Any, **more: Any) -> Any:
    return json.loads(bytes(revisions.result_for(method, msgspec.json.encode(value), **more)))


def test_results_to_the_new_era() -> None:
    assert result("tools/call", {"content": []}, new=True) == {"content": [], "resultType": "complete"}
    read = result("resources/read", {"contents": []}, new=True, server_info=b'{"name":"g"}')
    assert read == {
        "contents": [], "resultType": "complete", "ttlMs": 0, "cacheScope": "private",
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "g"}},
    }  # fmt: skip
    public = result("resources/read", {"contents": [], "ttlMs": 9, "cacheScope": "public"}, new=True)
    assert (public["ttlMs"], public["cacheScope"]) == (9, "private")


def test_results_to_the_old_era() -> None:
    raw = msgspec.json.encode({"content": []})
    assert revisions.result_for("tools/call", raw, new=False) is raw
    told = result("tools/list", {"tools": [], "resultType": "complete", "ttlMs": 5, "cacheScope": "public"}, new=False)
    assert told == {"tools": []}


@pytest.mark.parametrize("new", [True, False])
def test_a_result_type_we_do_not_carry(new: bool) -> None:
    with pytest.raises(jsonrpc.Malformed, match="input_required"):
        revisions.result_for("tools/call", b'{"resultType":"input_required","inputRequests":{}}', new=new)
    with pytest.raises(jsonrpc.Malformed):
        revisions.result_for("tools/call", b"[]", new=new)


@pytest.mark.parametrize(
    ("method", "error", "new", "asked", "code"),
    [
        ("tools/call", {"code": -32602, "message": "m"}, True, "", -32602),
        ("resources/read", {"code": -32002, "message": "m", "data": {"uri": "a:b"}}, True, "a:b", -32602),
        ("resources/read", {"code": -32602, "message": "m", "data": {"uri": "a:b"}}, False, "a:b", -32002),
        ("resources/read", {"code": -32602, "message": "m", "data": {"uri": "a:c"}}, False, "a:b", -32602),
        ("resources/read", {"code": -32602, "message": "m", "data": 7}, False, "a:b", -32602),
        ("tools/call", {"code": -32020, "message": "m"}, True, "", -32603),
        ("tools/call", {"code": -32042, "message": "m", "data": {"x": 1}}, False, "", -32042),
        ("tools/call", {"code": -32042, "message": "m"}, True, "", -32603),
        ("tools/call", {"code": -32021, "message": "m"}, False, "", -32603),
        ("tools/call", {"code": 7, "message": "m"}, True, "", 7),
    ],
)
def test_errors(method: str, error: Any, new: bool, asked: str, code: int) -> None:
    found, raw = revisions.error_for(method, msgspec.json.encode(error), new=new, asked=asked)
    told = json.loads(raw)
    assert found == told["code"] == code
    assert told["message"] == "m"
    assert told.get("data") == error.get("data")


def test_status() -> None:
    assert revisions.status_of(-32601, new=True) == 404
    assert revisions.status_of(-32602, new=True) == 400
    assert revisions.status_of(-32603, new=True) == 200
    assert revisions.status_of(-32601, new=False) == 200


def test_what_passes_of_meta() -> None:
    fields = {
        "progressToken": b"1",
        "traceparent": b'"x"',
        "com.example/a": b"1",
        "io.modelcontextprotocol/logLevel": b"1",
    }
    raw = {key: msgspec.Raw(value) for key, value in fields.items()}
    kept = revisions.passing_meta(raw)
    assert kept is not None
    assert set(kept) == {"traceparent", "com.example/a"}
    assert revisions.passing_meta({"progressToken": msgspec.Raw(b"1")}) is None


def test_new_meta_overrides_what_passes() -> None:
    meta = revisions.new_meta(b"{}", b'{"name":"g"}', {"a": 1, revisions.PROTOCOL_VERSION: "forged"}, "info")
    assert json.loads(jsonrpc.encode_fields(meta)) == {
        "a": 1,
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "g"},
        "io.modelcontextprotocol/logLevel": "info",
    }


# ---- anything, there and back
RESERVED = "io.modelcontextprotocol/"
SIMPLE = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
ANY = st.recursive(
    SIMPLE | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
BLOCKS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=20)}, optional={"annotations": ANY}),
    st.fixed_dictionaries({"type": st.just("image"), "data": st.just("aGk="), "mimeType": st.just("image/png")}),
    st.fixed_dictionaries({"type": st.just("audio"), "data": st.just("aGk="), "mimeType": st.just("audio/wav")}),
    st.fixed_dictionaries(
        {"type": st.just("resource_link"), "uri": st.just("a:b"), "name": st.text(max_size=8)},
        optional={"title": st.text(max_size=8)},
    ),
)
META_KEYS = st.sampled_from(["progressToken", "traceparent", "com.example/a", RESERVED + "logLevel", "x", ""])
META = st.dictionaries(META_KEYS, ANY, max_size=4)
# What only one era has, or means something in, is put there by itself.
OWN = frozenset(("resultType", "ttlMs", "cacheScope", "_meta", "structuredContent", "content", "messages"))
VENDOR = st.dictionaries(st.text(max_size=8).filter(lambda key: key not in OWN), ANY, max_size=3)
METHODS = st.sampled_from(
    ["tools/call", "tools/list", "prompts/get", "prompts/list", "resources/read", "completion/complete"]
)
REVISIONS = st.sampled_from(revisions.SESSIONS)
INFO = st.sampled_from([b"", b'{"name":"g","version":"1"}'])


@st.composite
def old_results(draw: st.DrawFn) -> Any:
    """A result as servers of 2025-11-25 write it, whatever the method."""
    made = draw(VENDOR)
    for key, values in (
        ("_meta", META),
        ("content", st.lists(BLOCKS, max_size=3)),
        ("structuredContent", st.dictionaries(st.text(max_size=8), ANY, max_size=3)),
    ):
        if draw(st.booleans()):
            made[key] = draw(values)
    return made


def passing(value: Any) -> Any:
    """What of a result both eras can say."""
    kept = {
        key: one
        for key, one in value.get("_meta", {}).items()
        if key != "progressToken" and not key.startswith(RESERVED)
    }
    rest = {key: one for key, one in value.items() if key not in ("_meta", "resultType", "ttlMs", "cacheScope")}
    return rest | ({"_meta": kept} if kept else {})


@given(METHODS, old_results(), INFO)
def test_old_to_new_to_old_says_the_same(method: str, value: Any, info: bytes) -> None:
    raw = msgspec.json.encode(value)
    new = revisions.result_for(method, raw, new=True, server_info=info)
    told = json.loads(bytes(new))
    assert told["resultType"] == "complete"
    assert passing(told) == passing(value)
    assert (RESERVED + "serverInfo" in told.get("_meta", {})) is bool(info)
    assert {"ttlMs", "cacheScope"} <= told.keys() or method in ("tools/call", "prompts/get", "completion/complete")
    back = json.loads(bytes(revisions.result_for(method, new, new=False)))
    assert back == passing(value)


@given(METHODS, old_results(), st.sampled_from(["public", "private", 7]), st.integers(-5, 10**12), st.booleans())
def test_new_to_old_to_new_says_the_same_but_how_long(
    method: str, value: Any, scope: Any, ttl: int, public: bool
) -> None:
    value |= {"resultType": "complete", "ttlMs": ttl, "cacheScope": scope}
    raw = msgspec.json.encode(value)
    old = revisions.result_for(method, raw, new=False)
    assert not {"resultType", "ttlMs", "cacheScope"} & json.loads(bytes(old)).keys()
    back = json.loads(bytes(revisions.result_for(method, old, new=True)))
    assert passing(back) == passing(value)
    assert back.get("ttlMs", 0) == 0  # what came through a session is nobody else's, and may be another at once
    assert back.get("cacheScope", "private") == "private"
    straight = json.loads(bytes(revisions.result_for(method, raw, new=True, public=public)))
    if method in ("tools/list", "resources/read"):
        assert straight["ttlMs"] == max(ttl, 0)
        assert straight["cacheScope"] == ("public" if public and scope == "public" else "private")


@given(METHODS, old_results(), st.booleans(), REVISIONS)
def test_twice_is_once(method: str, value: Any, new: bool, revision: str) -> None:
    once = revisions.result_for(method, msgspec.json.encode(value), new=new, revision=revision)
    again = revisions.result_for(method, once, new=new, revision=revision)
    assert json.loads(bytes(again)) == json.loads(bytes(once))


@given(old_results(), REVISIONS)
def test_an_agent_gets_no_content_that_its_revision_does_not_have(value: Any, revision: str) -> None:
    """Blocks keep their number and order; only those it does not know become text."""
    blocks = value.get("content", [])
    told = json.loads(
        bytes(revisions.result_for("tools/call", msgspec.json.encode(value), new=False, revision=revision))
    )
    unknown = {"resource_link"} if revision < "2025-06-18" else set()
    unknown |= {"audio"} if revision < "2025-03-26" else set()
    assert len(told.get("content", [])) == len(blocks)
    for before, after in zip(blocks, told.get("content", []), strict=True):
        if before["type"] in unknown:
            assert after["type"] == "text"
            assert (before.get("uri") or before.get("mimeType")) in after["text"]
        else:
            assert after == before


@given(st.lists(BLOCKS, max_size=3), st.lists(ANY, max_size=3) | SIMPLE | st.text(max_size=9), REVISIONS)
def test_structured_content_that_is_no_object_is_told_as_text(blocks: Any, plain: Any, revision: str) -> None:
    value = {"content": blocks, "structuredContent": plain}
    new = revisions.result_for("tools/call", msgspec.json.encode(value), new=True)
    assert json.loads(bytes(new))["structuredContent"] == plain
    old = json.loads(bytes(revisions.result_for("tools/call", new, new=False, revision=revision)))
    assert "structuredContent" not in old
    texts = [block["text"] for block in old["content"] if block["type"] == "text"]
    assert any(text == plain or _json(text) == [plain] for text in texts)
    assert len(old["content"]) - len(blocks) in (0, 1)


def _json(text: str) -> Any:
    """[what the text says], nothing when it is no JSON."""
    try:
        return [json.loads(text)]
    except ValueError:
        return []


URIS = st.sampled_from(["a:b", "a:c", ""])
CODES = st.sampled_from(
    [-32700, -32600, -32601, -32602, -32603, -32002, -32020, -32021, -32022, -32042, -32099, -32000]
)
ERRORS = st.fixed_dictionaries(
    {"code": CODES | st.integers(-40000, 40000), "message": st.text(max_size=12)},
    optional={
        "data": st.fixed_dictionaries({"uri": URIS}) | st.just({"requiredCapabilities": {"sampling": {}}}) | ANY,
    },
)


@given(METHODS, ERRORS, st.booleans(), URIS)
def test_any_error(method: str, error: Any, new: bool, asked: str) -> None:
    """What it says stays; its code is one that is true at our edge, and has a status that keeps a session."""
    code, raw = revisions.error_for(method, msgspec.json.encode(error), new=new, asked=asked)
    told = json.loads(raw)
    assert told["code"] == code
    assert (told["message"], told.get("data")) == (error["message"], error.get("data"))
    status = revisions.status_of(code, new=new)
    assert status in ((200, 400, 404) if new else (200,))
    if code in range(-32099, -32019):
        missing = new and code == revisions.MISSING_CAPABILITY and "requiredCapabilities" in json.dumps(error["data"])
        assert missing or (not new and code == revisions.URL_ELICITATION_REQUIRED)
    if new:
        assert code != revisions.RESOURCE_NOT_FOUND
    again, _ = revisions.error_for(method, raw, new=new, asked=asked)
    assert again == code


@given(ERRORS, METHODS)
def test_an_error_comes_back_from_the_other_era(error: Any, method: str) -> None:
    """All that both eras have; and that a resource is not there, of which each has its own code."""
    raw = msgspec.json.encode(error)
    _, new = revisions.error_for(method, raw, new=True)
    code, _ = revisions.error_for(method, new, new=False)
    if error["code"] not in range(-32099, -32019) and error["code"] != revisions.RESOURCE_NOT_FOUND:
        assert code == error["code"]
    gone = msgspec.json.encode({**error, "code": revisions.RESOURCE_NOT_FOUND, "data": {"uri": "a:b"}})
    _, new = revisions.error_for("resources/read", gone, new=True, asked="a:b")
    code, back = revisions.error_for("resources/read", new, new=False, asked="a:b")
    assert json.loads(back) == json.loads(gone)
    assert code == revisions.RESOURCE_NOT_FOUND


@given(META, st.sampled_from(["", "info"]))
def test_meta_passes_there_and_back(meta: Any, level: str) -> None:
    raw = {key: msgspec.Raw(msgspec.json.encode(value)) for key, value in meta.items()}
    kept = revisions.passing_meta(raw) or {}
    sent = jsonrpc.encode_fields(revisions.new_meta(b"{}", b'{"name":"g"}', dict(kept) or None, level))
    assert json.loads(sent)[revisions.PROTOCOL_VERSION] == revisions.NEWEST_NEW
    again = revisions.passing_meta(jsonrpc.decode_fields(sent)) or {}
    assert {key: bytes(value) for key, value in again.items()} == {key: bytes(value) for key, value in kept.items()}


@given(METHODS, ANY, st.booleans(), REVISIONS)
def test_no_answer_does_more_than_be_refused(method: str, value: Any, new: bool, revision: str) -> None:
    raw = msgspec.json.encode(value)
    with suppress(jsonrpc.Malformed):
        json.loads(bytes(revisions.result_for(method, raw, new=new, revision=revision)))
    json.loads(revisions.error_for(method, raw, new=new, asked="a:b")[1])
