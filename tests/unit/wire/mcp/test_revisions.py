"""What changes between the eras."""

import json
from typing import Any

import msgspec
import pytest

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
