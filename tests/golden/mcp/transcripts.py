"""What agents of each era are told by servers of each era: an exchange for each thing that the two say differently.

The servers are the fixture's, in processes of their own; the gateway between is this process. What is minted (states,
keys, times) is replaced by a word.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.fixtures.mcp_gateway import Answer, Gateway, New, Old, Stream, gateway
from tests.fixtures.mcp_suite import fixture_server

from tollhouse.backends.mcp.http import HttpServerSpec

EXPECTED = Path(__file__).parent / "expected"
ERAS = ("old", "new")
COMBINATIONS = [(agent, server) for agent in ERAS for server in ERAS]

CHANGES = {
    "test_update_resource": "notifications/resources/updated",
    "test_trigger_tool_change": "notifications/tools/list_changed",
}
WATCHED = "test://watched-resource"
CAN: dict[str, Any] = {"elicitation": {}, "sampling": {}, "roots": {}}
LEVEL = {"io.modelcontextprotocol/logLevel": "info"}
SAMPLED = {"role": "assistant", "content": {"type": "text", "text": "four"}, "model": "m", "stopReason": "endTurn"}
ANSWERS = {
    "elicitation/create": {"action": "accept", "content": {"username": "ada", "email": "ada@example.com"}},
    "sampling/createMessage": SAMPLED,
    "roots/list": {"roots": []},
}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("tools/call", {"name": "test_simple_text", "arguments": {}}),
    "structured": ("tools/call", {"name": "test_structured", "arguments": {"a": 1, "b": 2}}),
    "link": ("tools/call", {"name": "test_resource_link", "arguments": {}}),
    "tool error": ("tools/call", {"name": "test_error_handling", "arguments": {}}),
    "unknown tool": ("tools/call", {"name": "no_such_tool", "arguments": {}}),
    "progress": ("tools/call", {"name": "test_tool_with_progress", "arguments": {}, "_meta": {"progressToken": "p"}}),
    "log": ("tools/call", {"name": "test_tool_with_logging", "arguments": {}}),
    "elicitation": ("tools/call", {"name": "test_elicitation", "arguments": {"message": "Who?"}}),
    "sampling": ("tools/call", {"name": "test_sampling", "arguments": {"prompt": "2+2"}}),
    "task": ("tools/call", {"name": "failing_job", "arguments": {}}),
    "read": ("resources/read", {"uri": "test://static-text"}),
    "read nothing": ("resources/read", {"uri": "test://nothing"}),
    "prompt": ("prompts/get", {"name": "test_simple_prompt"}),
    "completion": (
        "completion/complete",
        {
            "ref": {"type": "ref/prompt", "name": "test_prompt_with_arguments"},
            "argument": {"name": "arg1", "value": "par"},
        },
    ),
    "unknown method": ("no/such/method", {}),
    "ping": ("ping", {}),
}


async def transcript(agent: str, server: str) -> dict[str, Any]:
    """Row to the messages that the agent got, of one combination of eras."""
    with fixture_server("--era", server) as url:
        async with gateway({"u": HttpServerSpec(url=url)}) as running:
            return await (_old if agent == "old" else _new)(running)


async def _old(running: Gateway) -> dict[str, Any]:
    first = running.stateless()
    await first.ask("tools/list")  # so that what the server has is known
    agent = await running.agent(CAN)
    await agent.ask("logging/setLevel", {"level": "info"})
    told: dict[str, Any] = {"opening": plain(agent.opening)}
    told["list"] = plain(_one((await agent.ask("tools/list")).message["result"], "test_structured"))
    for row, (method, params) in ROWS.items():
        told[row] = plain(await _answered(agent, method, params))
    seen = [(await agent.ask("logging/setLevel", {"level": "error"})).message]
    told["log level"] = plain(seen + await _answered(agent, *ROWS["log"]))
    told["cancel"] = plain(await _cancelled(agent))
    told["changes"] = plain(await _changes(agent))
    told["task wanted"] = plain(await _task(agent))
    return told


async def _cancelled(agent: Old) -> list[Any]:
    stream = await agent.start("tools/call", {"name": "slow_compute", "arguments": {"seconds": 30}})
    id = agent.ids
    async with asyncio.timeout(10):
        while b"%d" % id not in _in_flight(agent):
            await asyncio.sleep(0.01)
    cancel = await agent.tell("notifications/cancelled", {"requestId": id, "reason": "no"})
    await stream.head()
    answer = Answer(stream.status, stream.headers, await stream.body())
    await stream.close()
    return [{"status": cancel.status}, {"status": answer.status}, *answer.messages]


def _in_flight(agent: Old) -> list[bytes]:
    """Raw ids of the requests that the gateway is answering in the agent's session."""
    return [id for session in agent.gateway.sessions._open.values() if session.id == agent.id for id in session.calls]


async def _task(agent: Old) -> list[Any]:
    call = {"name": "slow_compute", "arguments": {"seconds": 0.05}, "task": {"ttl": 1000}}
    created = (await agent.ask("tools/call", call)).message
    id = {"taskId": created["result"]["task"]["taskId"]}
    done = await _answered(agent, "tasks/result", id)
    over = (await agent.ask("tasks/get", id)).message
    return [created, *done[1:], over, (await agent.ask("tasks/cancel", id)).message]


async def _changes(agent: Old) -> list[Any]:
    """What the agent's GET stream says of lists and of a resource. Each is changed once: that of the resource as soon
    as the subscription is answered, before there is a stream to say it on."""
    seen: list[Any] = [(await agent.ask("resources/subscribe", {"uri": WATCHED})).message]
    update, change = CHANGES.items()
    await agent.call(update[0])
    stream = await agent.listen()
    seen.append(await _next(stream, update[1]))
    seen.append((await agent.ask("resources/unsubscribe", {"uri": WATCHED})).message)
    await agent.call(change[0])
    seen.append(await _next(stream, change[1]))
    await stream.close()
    return seen


async def _answered(agent: Old, method: str, params: Any) -> list[Any]:
    stream = await agent.start(method, params)
    await stream.head()
    if not stream.headers.get("content-type", "").startswith("text/event-stream"):
        answer = Answer(stream.status, stream.headers, await stream.body())
        await stream.close()
        return [{"status": answer.status}, *answer.messages]
    seen: list[Any] = [{"status": stream.status}]
    while (message := await stream.next()) is not None:
        seen.append(message)
        if "method" in message and "id" in message:
            await agent.answer(message["id"], ANSWERS[message["method"]])
    await stream.close()
    return seen


async def _new(running: Gateway) -> dict[str, Any]:
    agent = running.stateless()
    await agent.ask("tools/list")
    told: dict[str, Any] = {"opening": plain((await agent.ask("server/discover")).message["result"])}
    told["list"] = plain(_one((await agent.ask("tools/list")).message["result"], "test_structured"))
    for row, (method, params) in ROWS.items():
        meta = {"io.modelcontextprotocol/clientCapabilities": CAN, **LEVEL, **params.get("_meta", {})}
        answer = await agent.ask(method, params | {"_meta": meta})
        seen: list[Any] = [{"status": answer.status}, *answer.messages]
        while (asked := answer.message.get("result", {})).get("resultType") == "input_required":
            responses = {key: ANSWERS[one["method"]] for key, one in asked["inputRequests"].items()}
            retry = {"inputResponses": responses, "requestState": asked["requestState"]}
            answer = await agent.ask(method, params | retry | {"_meta": meta})
            seen += [{"status": answer.status, "after": "inputResponses"}, *answer.messages]
        told[row] = plain(seen)
    quiet = {"io.modelcontextprotocol/clientCapabilities": CAN, "io.modelcontextprotocol/logLevel": "error"}
    method, params = ROWS["log"]
    told["log level"] = plain((await agent.ask(method, params | {"_meta": quiet})).messages)
    told["task wanted"] = plain(await _new_task(agent))
    told["changes"] = plain(await _new_changes(agent))
    return told


async def _new_task(agent: New) -> list[Any]:
    meta = {"io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}}}
    created = (await agent.call("slow_compute", {"seconds": 0.05}, _meta=meta)).message
    id = agent.headers["mcp-name"] = created["result"]["taskId"]
    while True:
        seen = (await agent.ask("tasks/get", {"taskId": id, "_meta": meta})).message
        if seen["result"]["status"] == "completed":
            break
        await asyncio.sleep(0.01)
    over = (await agent.ask("tasks/cancel", {"taskId": id, "_meta": meta})).message
    del agent.headers["mcp-name"]
    return [created, seen, over]


async def _new_changes(agent: New) -> list[Any]:
    """What a subscription says of lists and of a resource."""
    wanted = {"toolsListChanged": True, "resourceSubscriptions": [WATCHED, "test://nothing"]}
    stream = await agent.start("subscriptions/listen", {"notifications": wanted})
    await stream.head()
    seen = [await stream.next()]
    for name, method in CHANGES.items():
        await agent.call(name)
        seen.append(await _next(stream, method))
    await stream.close()
    return seen


async def _next(stream: Stream, method: str) -> Any:
    """The next notification of that method on the stream."""
    while (message := await stream.next()) is not None:
        if message["method"] == method:
            return message
    raise AssertionError(f"the stream ended before {method}")


def _one(result: Any, name: str) -> Any:
    kept = [tool for tool in result["tools"] if tool["name"] == name]
    return {**result, "tools": kept}


def plain(value: Any) -> Any:
    """Without what is another each time."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, one in value.items():
        if key == "inputRequests":
            one = {f"<key {number}>": request for number, request in enumerate(one.values(), 1)}
        if (key == "id" or key.endswith("/subscriptionId")) and isinstance(one, int):
            one = "<id>"
        elif key == "id" and "method" in value:
            one = "<id of ours>"
        elif key in ("requestState", "ttlMs", "taskId", "createdAt", "lastUpdatedAt", "data") and isinstance(
            one, int | str
        ):
            one = f"<{key}>" if key != "data" else one
        made[key] = plain(one)
    return made


def written(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
