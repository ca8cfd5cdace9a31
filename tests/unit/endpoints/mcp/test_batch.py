"""JSON-RPC batches of 2025-03-26 over real sockets: what may be one, and that each message in it is a request."""

import asyncio
import json
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import NEW, child, gateway
from tests.fixtures.mcp_raw import Old, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.call import ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Holders
from tollhouse.core.http import Ending, Request, Response
from tollhouse.endpoints.mcp import batch

pytestmark = pytest.mark.anyio

SPECS: dict[str, Any] = {"c": child()}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
NOTE = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def call(id: Any, name: str, arguments: Any = None, **more: Any) -> Any:
    params = {"name": name, "arguments": arguments or {}, **more}
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}


async def test_every_message_is_answered() -> None:
    async with gateway(SPECS) as running:
        agent = await running.agent(revision="2025-03-26")
        assert agent.revision == "2025-03-26"
        batch: list[Any] = [
            PING,
            NOTE,
            call("a", "echo", {"message": "hi"}),
            call(3, "nothing here"),
            {"jsonrpc": "2.0", "id": 4, "method": "nothing/here"},
            {"jsonrpc": "2.0", "id": 5},
            7,
        ]
        answer = await running.send(batch, agent.headers)
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        found = json.loads(answer.body)
        by_id = {one.get("id"): one for one in found}
        assert len(found) == 6
        assert by_id[1]["result"] == {}
        assert by_id["a"]["result"]["content"][0]["text"] == "hi"
        assert by_id[3]["error"]["code"] == -32602 or by_id[3]["result"]["isError"]
        assert by_id[4]["error"]["code"] == -32601
        assert sorted(one["error"]["code"] for one in found if one.get("id") in (None, 5)) == [-32600, -32600]
        one = await running.send([PING], agent.headers)
        assert json.loads(one.body) == [{"jsonrpc": "2.0", "id": 1, "result": {}}]
        without = {name: value for name, value in agent.headers.items() if name != "mcp-protocol-version"}
        assert (await running.send([PING], without)).status == 200


async def test_notifications_only() -> None:
    async with gateway(SPECS) as running:
        agent = await running.agent(revision="2025-03-26")
        answer = await running.send([NOTE, NOTE], agent.headers)
        assert (answer.status, answer.body) == (202, b"")


async def test_where_one_streams_all_do() -> None:
    async with gateway(SPECS) as running:
        agent = await running.agent(revision="2025-03-26")
        progress = call(2, "progress", _meta={"progressToken": "t"})
        answer = await running.send([PING, progress, call(3, "progress", _meta={"progressToken": "u"})], agent.headers)
        assert answer.streamed
        assert {message["id"] for message in answer.messages if "id" in message} == {1, 2, 3}
        tokens = {m["params"]["progressToken"] for m in answer.messages if m.get("method") == "notifications/progress"}
        assert tokens == {"t", "u"}


async def test_what_is_no_batch() -> None:
    async with gateway(SPECS) as running:
        agent = await running.agent(revision="2025-03-26")
        initialize = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-03-26"}}
        for body, code in (
            ([], -32600),
            ([PING] * 51, -32600),
            ([PING, initialize], -32600),
            ([PING, [PING]], -32600),
            ([[PING] * 50] * 50, -32600),
            (b"[", -32700),
            (b"[\xff]", -32700),
            (b'[{"jsonrpc":"2.0","id":1,"method":"ping"},]', -32700),
            (b"[" * 60_000, -32700),
        ):
            assert (await running.send(body, agent.headers | {"content-type": "application/json"})).error == (400, code)
        assert len(json.loads((await running.send([PING] * 50, agent.headers)).body)) == 50
        assert (await running.send(json.dumps([PING]).encode().rjust(100), agent.headers | JSON)).status == 200
        assert len(running.sessions) == 1


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25"])
async def test_other_revisions_have_none(revision: str) -> None:
    async with gateway(SPECS) as running:
        agent = await running.agent(revision=revision)
        assert (await running.send([PING], agent.headers)).error == (400, -32600)
        assert (await running.send([PING], {"mcp-protocol-version": NEW})).error == (400, -32600)
        assert (await running.send([PING], {})).error == (400, -32600)
        assert (await running.send([PING], {"mcp-session-id": "forged"})).error == (404, -32001)


async def test_each_is_judged_by_itself() -> None:
    seen: list[tuple[str, Any]] = []

    async def admit(call: ToolCall) -> None:
        seen.append((call.method, call.context))
        if sum(method == "ping" for method, _ in seen) > 2:
            raise Failure(429, Reason.RATE_LIMIT, "too many")

    async with gateway(SPECS, admit=admit) as running:
        agent = await running.agent(revision="2025-03-26")
        answer = await running.send([PING | {"id": n} for n in range(4)], agent.headers)
        found = json.loads(answer.body)
        assert sum("result" in one for one in found) == 2
        assert {one["error"]["data"]["reason"] for one in found if "error" in one} == {"RateLimit"}
        pings = [context for method, context in seen if method == "ping"]
        assert len({id(context) for context in pings}) == 4


async def test_one_message_a_request_reaches_the_server() -> None:
    script = Old(tools_call=lambda asked: result(asked, {"content": []}))
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent(revision="2025-03-26")
        answer = await running.send([call(n, "echo") for n in range(3)], agent.headers)
        assert len(json.loads(answer.body)) == 3
        assert len(server.calls("tools/call")) == 3
        assert all(isinstance(asked.body, dict) for asked in server.asked if asked.http == "POST")


async def test_a_call_in_a_batch_is_cancelled() -> None:
    async with gateway(SPECS) as running:
        agent = await running.agent(revision="2025-03-26")
        stream = await running.open([call("x", "never"), PING], agent.headers)
        session = next(iter(running.sessions._open.values()))
        while b'"x"' not in session.calls:
            await agent.ask("ping")
        assert (await agent.tell("notifications/cancelled", {"requestId": "x"})).status == 202
        await stream.head()
        found = json.loads(await stream.body())
        assert {one["id"]: "result" in one for one in found} == {"x": False, 1: True}
        await stream.close()


async def test_what_was_answered_is_recorded_when_the_agent_leaves_before_the_rest() -> None:
    ended: list[Ending] = []
    waits = asyncio.Event()

    async def put(part: Request) -> Response:
        if await part.read(100) == b"slow":
            waits.set()
            await asyncio.Event().wait()
        return Response(200, [], b"{}", ends=[ended.append])

    request = Request(b"POST", b"/mcp", [])
    task = asyncio.ensure_future(batch.answer(request, [b"quick", b"slow"], put, Holders(Clock())))
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert [(one.status, one.gone) for one in ended] == [(499, True)]
