"""Names of tools that a model calls: whatever it says may stand in one. Patterns look at them, and never mask them."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from tests.unit.policies.floor import parts
from tests.unit.policies.guardrails.house import SECRET, Client, Server, asked, guarded, through

from tollhouse.core.errors import Failure
from tollhouse.wire.eventstream import frame as binary
from tollhouse.wire.llm import CHAT, CONVERSE, GENERATE, MESSAGES, RESPONSES

pytestmark = pytest.mark.anyio

DIALECTS = {one.operation: one for one in (CHAT, MESSAGES, RESPONSES, GENERATE, CONVERSE)}
REJECT = {"response": [{"secrets": True, "name": "keys"}]}
ASKING: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
    "responses": {"input": "hi"},
    "generate": {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
    "converse": {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
}


def whole(operation: str, name: str) -> bytes:
    """An answer that calls a tool of this name."""
    function = {"id": "1", "type": "function", "function": {"name": name, "arguments": "{}"}}
    use = {"type": "tool_use", "id": "1", "name": name, "input": {}}
    item = {"type": "function_call", "id": "i", "call_id": "1", "name": name, "arguments": "{}", "status": "completed"}
    part = {"functionCall": {"name": name, "args": {}}}
    block = {"toolUse": {"toolUseId": "1", "name": name, "input": {}}}
    answers: dict[str, Any] = {
        "chat": {"choices": [{"index": 0, "message": {"tool_calls": [function]}, "finish_reason": "tool_calls"}]},
        "messages": {"type": "message", "content": [use], "stop_reason": "tool_use"},
        "responses": {"id": "r", "object": "response", "status": "completed", "output": [item]},
        "generate": {"candidates": [{"content": {"parts": [part]}, "finishReason": "STOP"}]},
        "converse": {"output": {"message": {"content": [block]}}, "stopReason": "tool_use"},
    }
    return json.dumps(answers[operation]).encode()


def event(name: str, value: Any) -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(value).encode() + b"\n\n"


def streamed(operation: str, name: str, *, at_once: bool = False) -> list[bytes]:
    """The same as a stream. at_once: name and arguments in one event, where an API may."""
    if operation == "chat":
        function = {"name": name, "arguments": "{}" if at_once else ""}
        call = {"index": 0, "id": "1", "type": "function", "function": function}
        deltas = [
            {"tool_calls": [call]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "" if at_once else "{}"}}]},
        ]
        choices = [*[{"index": 0, "delta": one} for one in deltas], {"index": 0, "delta": {}, "finish_reason": "stop"}]
        return [*[event("", {"choices": [one]}) for one in choices], b"data: [DONE]\n\n"]
    if operation == "messages":
        use = {"type": "tool_use", "id": "1", "name": name, "input": {}}
        begun = {"type": "content_block_start", "index": 0, "content_block": use}
        return [event("content_block_start", begun), event("message_stop", {"type": "message_stop"})]
    if operation == "responses":
        item = {
            "type": "function_call",
            "id": "i",
            "call_id": "1",
            "name": name,
            "arguments": "",
            "status": "in_progress",
        }
        added = {"type": "response.output_item.added", "output_index": 0, "item": item}
        done = {"type": "response.completed", "response": json.loads(whole(operation, name))}
        return [event(str(one["type"]), one) for one in (added, done)]
    if operation == "generate":
        return [event("", json.loads(whole(operation, name)))]
    started = {"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": "1", "name": name}}}
    return [
        binary(b"contentBlockStart", json.dumps(started).encode()),
        binary(b"messageStop", b'{"stopReason":"tool_use"}'),
    ]


def call(operation: str, *, stream: bool = False) -> Any:
    made = asked(DIALECTS[operation], **ASKING[operation])
    made.stream = stream
    return made


@pytest.mark.parametrize("operation", DIALECTS)
async def test_a_name_that_must_not_be_there_is_refused(operation: str) -> None:
    with pytest.raises(Failure) as raised:
        await through(guarded(Server(whole(operation, SECRET)), REJECT), call(operation))
    assert raised.value.status == 403
    server = Server(whole(operation, "get_weather"))
    _, client = await through(guarded(server, REJECT), call(operation))
    assert client.body == server.blocks[0]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("operation", DIALECTS)
async def test_and_in_a_stream(operation: str, at_once: bool) -> None:
    chain = guarded(Server(b"", *streamed(operation, SECRET, at_once=at_once), stream=True), REJECT)
    reply = await chain(call(operation, stream=True))
    client = Client()
    client.read(reply)
    assert client.failure is not None
    assert client.failure.status == 403
    assert SECRET.encode() not in client.body
    blocks = streamed(operation, "get_weather", at_once=at_once)
    _, client = await through(guarded(Server(b"", *blocks, stream=True), REJECT), call(operation, stream=True))
    assert (client.failure, client.body) == (None, b"".join(blocks))


@pytest.mark.parametrize("operation", DIALECTS)
async def test_no_mask_stands_there_nor_is_one_turned_back(operation: str) -> None:
    """What is called by it would not be found."""
    masks = {
        "request": [{"regex": "hi", "action": "mask", "reversible": True, "name": "word"}],
        "response": [{"secrets": True, "action": "mask"}],
    }
    for name in (SECRET, "[REGEX_AAAA]"):
        _, client = await through(guarded(Server(whole(operation, name)), masks), call(operation))
        assert client.body == whole(operation, name)
        blocks = streamed(operation, name)
        _, client = await through(guarded(Server(b"", *blocks, stream=True), masks), call(operation, stream=True))
        assert client.body == b"".join(blocks)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("operation", DIALECTS)
async def test_nobody_is_asked_about_one(operation: str, stream: bool) -> None:
    """`length` stands for whoever judges texts."""
    rules = {"response": [{"length": {"max": 20, "of": "each"}}]}
    name = "a_name_of_more_than_twenty_characters"
    blocks = [b"", *streamed(operation, name)] if stream else [whole(operation, name)]
    _, client = await through(guarded(Server(*blocks, stream=stream), rules), call(operation, stream=stream))
    async with asyncio.timeout(10):
        while not client.ended:
            await asyncio.sleep(0)
    assert (client.failure, client.body) == (None, b"".join(blocks))


@pytest.mark.parametrize("kinds, refused", [(["arguments"], True), (["text"], False)])
async def test_a_name_stands_beside_arguments(kinds: list[str], refused: bool) -> None:
    rules = {"response": [{"secrets": True, "in": kinds}]}
    chain = guarded(Server(whole("chat", SECRET)), rules)
    if refused:
        with pytest.raises(Failure):
            await chain(call("chat"))
    else:
        assert SECRET.encode() in (await chain(call("chat"))).first


async def test_what_was_called_before_is_looked_at_in_a_request() -> None:
    server = Server(b"{}")
    made = asked(
        messages=[
            {
                "role": "assistant",
                "tool_calls": msgspec.json.decode(whole("chat", SECRET))["choices"][0]["message"]["tool_calls"],
            }
        ]
    )
    with pytest.raises(Failure):
        await through(guarded(server, {"request": [{"secrets": True}]}, made=parts(entrance="llm")), made)
    assert not server.calls
