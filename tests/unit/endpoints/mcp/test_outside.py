"""What servers say outside of calls comes to agents as the guards that serve now have left it."""

import json
from typing import Any

import pytest

from tollhouse.core.errors import Failure
from tollhouse.endpoints.mcp.listen import Listener
from tollhouse.endpoints.mcp.outside import Guards
from tollhouse.wire import jsonrpc


class Guard:
    """Says A for a, and refuses what has an x."""

    def instructions(self, text: str) -> str:
        return text

    def heard(self, message: bytes) -> bytes | None:
        return None if b"x" in message else message.replace(b"a://", b"A://") if b"a://" in message else message

    def told(self, message: bytes) -> bytes:
        return message.replace(b"b", b"B")

    def failed(self, failure: Failure) -> Failure:
        return failure


def updated(uri: str) -> bytes:
    return jsonrpc.notification("notifications/resources/updated", json.dumps({"uri": uri}).encode())


def hear(guards: Guards, endpoint: str, server: str, data: bytes, answer: Any = None) -> Any:
    return guards.heard(endpoint, server, data, jsonrpc.decode(data), answer)


def test_whose_guards_look() -> None:
    guards = Guards()
    answers: list[bytes] = []
    data = updated("a://1")
    assert bytes(hear(guards, "/mcp", "s", data)[0].params) == b'{"uri": "a://1"}'
    guards.serve({"/mcp": {"s": Guard()}})
    message, answer = hear(guards, "/mcp", "s", data, answers.append)
    assert bytes(message.params) == b'{"uri": "A://1"}'
    answer(b"abc")
    assert answers == [b"aBc"]
    assert hear(guards, "/mcp", "s", updated("x://1")) is None
    for endpoint, server in (("/mcp", "t"), ("/mcp/s", "s")):
        message, answer = hear(guards, endpoint, server, data, answers.append)
        assert bytes(message.params) == b'{"uri": "a://1"}'
        answer(b"abc")
    assert answers == [b"aBc", b"abc", b"abc"]
    guards.serve({})
    assert hear(guards, "/mcp", "s", updated("x://1")) is not None


@pytest.mark.parametrize(("uri", "heard"), [("A://1/b", ["A://1/b"]), ("A://1/x", [])])
def test_of_resources_that_a_stateless_agent_hears_of(uri: str, heard: list[str]) -> None:
    guards = Guards()
    guards.serve({"/mcp": {"s": Guard()}})
    listener = Listener({}, wrap=False, outside=guards, endpoint="/mcp")
    listener.uris.add("A://1")
    told: list[bytes] = []
    listener.open(told.append)
    data = updated(uri)
    assert listener.deliver("s", data, jsonrpc.decode(data), lambda data: None)
    assert [json.loads(one)["params"]["uri"] for one in told] == heard
