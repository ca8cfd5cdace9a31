"""A server's messages in an agent's words."""

import json
from typing import Any

import msgspec
import pytest

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.messages import Translation, is_tool_error, log_allowed


def translation(**more: Any) -> Translation:
    return Translation(b'"mine"', more.pop("method", "tools/call"), "s", **({"new": False, "wrap": False} | more))


def message(**fields: Any) -> jsonrpc.Message:
    return jsonrpc.decode(msgspec.json.encode({"jsonrpc": "2.0", **fields}))


def test_the_answer_has_the_agents_id() -> None:
    body, code = translation().response(message(id=5, result={"content": []}))
    assert (json.loads(body), code) == ({"jsonrpc": "2.0", "id": "mine", "result": {"content": []}}, 0)
    body, code = translation().response(message(id=5, error={"code": -32602, "message": "no"}))
    assert (json.loads(body)["id"], code) == ("mine", -32602)


def test_progress_has_the_agents_token() -> None:
    progress = message(method="notifications/progress", params={"progressToken": 7, "progress": 1})
    told = translation(token=b'"t"').notification(progress)
    assert told is not None
    assert json.loads(told)["params"] == {"progressToken": "t", "progress": 1}
    assert translation().notification(progress) is None


@pytest.mark.parametrize(
    ("level", "said", "passes"),
    [
        ("", "error", False),
        ("info", "info", True),
        ("info", "debug", False),
        ("debug", "debug", True),
        ("error", "x", False),
    ],
)
def test_logs(level: str, said: str, passes: bool) -> None:
    log = message(method="notifications/message", params={"level": said, "data": 1})
    assert (translation(level=level).notification(log) is not None) == passes
    assert log_allowed(b"[]", "debug") is False


def test_updates_carry_the_server() -> None:
    updated = message(method="notifications/resources/updated", params={"uri": "a:b"})
    told = translation(wrap=True).notification(updated)
    assert told is not None
    assert json.loads(told)["params"]["uri"] == "s+a:b"
    assert translation(new=True).notification(updated) is None


def test_what_other_notifications_become() -> None:
    odd = message(method="notifications/elicitation/complete", params={"elicitationId": "x"})
    assert translation(new=True).notification(odd) is None
    assert translation().notification(odd) is not None
    assert translation().notification(message(method="notifications/cancelled", params={"requestId": 1})) is None


@pytest.mark.parametrize(
    ("result", "failed"),
    [
        ({"isError": True}, True),
        ({"isError": False}, False),
        ({}, False),
        ({"isError": "x"}, False),
        (["isError"], False),
    ],
)
def test_tool_errors(result: Any, failed: bool) -> None:
    assert is_tool_error(msgspec.json.encode(result)) == failed


@pytest.mark.parametrize("error", [b'"bad"', b"{}", b'{"code":"x","message":7}', b'{"code":1}', b"[]"])
def test_an_error_that_is_none_is_not_told(error: bytes) -> None:
    message = jsonrpc.decode(b'{"jsonrpc":"2.0","id":1,"error":%b}' % error)
    with pytest.raises(jsonrpc.Malformed, match="error cannot be read"):
        Translation(b"1", "tools/call", "s", new=False, wrap=False).response(message)
