"""Alternates that ask for input, over real sockets: the answers go to who has asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Gateway, gateway
from tests.fixtures.mcp_raw import STREAM, Asked, Changing, Old, Upstream, chunk, events, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.call import ToolCall
from tollhouse.core.handler import Handler
from tollhouse.core.reply import Reply
from tollhouse.policies.alternate import Alternate

pytestmark = pytest.mark.anyio

CAN: dict[str, Any] = {"elicitation": {}}
META = {"io.modelcontextprotocol/clientCapabilities": CAN}
FORM = {"mode": "form", "message": "Who?", "requestedSchema": {"type": "object", "properties": {}}}
ADA = {"action": "accept", "content": {"name": "ada"}}


class New(Changing):
    """A stateless server whose tool asks who it is for."""

    def __init__(self) -> None:
        super().__init__("new")

    def __call__(self, asked: Asked) -> Any:
        if asked.http != "POST" or asked.method != "tools/call":
            return super().__call__(asked)
        params = asked.body["params"]
        if params.get("requestState") == "inner":
            answer = params["inputResponses"]["who"]["content"]["name"]
            return result(asked, {"resultType": "complete", "content": [{"type": "text", "text": answer}]})
        requests = {"who": {"method": "elicitation/create", "params": FORM}}
        need = {"resultType": "input_required", "inputRequests": requests, "requestState": "inner"}
        return result(asked, need)


class Asking(Old):
    """A server with sessions whose tool asks who it is for."""

    def __init__(self) -> None:
        super().__init__(tools_call=self.call)
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    def __call__(self, asked: Asked) -> Any:
        if asked.http == "POST" and not asked.method:
            self.answers.put_nowait(asked.body["result"])
        return super().__call__(asked)

    def call(self, asked: Asked) -> Any:
        return _parts(self, asked)


def _parts(server: Asking, asked: Asked) -> Any:
    yield STREAM
    yield chunk(events({"jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": FORM}))
    said: list[Any] = []

    async def answered() -> None:
        said.append(await server.answers.get())

    yield answered()
    content = [{"type": "text", "text": said[0]["content"]["name"]}]
    yield chunk(events({"jsonrpc": "2.0", "id": asked.id, "result": {"content": content}}))
    yield b"0\r\n\r\n"


@asynccontextmanager
async def two(script: Any, alternates: dict[str, Alternate] | None = None) -> AsyncIterator[tuple[Gateway, Upstream]]:
    """A gateway to a server `one` that is never there, with a tool of `two` as the alternate of its tool."""
    alternates = alternates if alternates is not None else {}

    async def policy(call: ToolCall, next: Handler[ToolCall, Reply]) -> Reply:
        alternate = alternates.get(call.server)
        return await (next(call) if alternate is None else alternate.handle(call, next))  # type: ignore[arg-type]

    async with upstream(script) as server:
        specs: dict[str, Any] = {
            "one": HttpServerSpec(url="http://127.0.0.1:1/mcp"),
            "two": HttpServerSpec(url=server.url),
        }
        async with gateway(specs, policies=(policy,)) as running:
            second = next(each for each in running.servers.all if each.name == "two")
            alternates["one"] = Alternate("two", "other", second.handle, last=second.handle, new=lambda: second.new)
            yield running, server


async def test_a_stateless_agent_answers_a_stateless_alternate() -> None:
    async with two(New()) as (running, server):
        agent = running.stateless()
        asked = (await agent.call("one__tool", {"a": 1}, _meta=META)).message["result"]
        assert asked["resultType"] == "input_required"
        (key,) = asked["inputRequests"]
        retry = {"inputResponses": {key: ADA}, "requestState": asked["requestState"]}
        done = await agent.call("one__tool", {"a": 1}, **retry, _meta=META)
        assert done.text == "ada"
        first, second = server.calls("tools/call")
        assert [one.body["params"]["name"] for one in (first, second)] == ["other", "other"]
        assert second.body["params"]["arguments"] == {"a": 1}


async def test_an_agent_with_a_session_answers_a_stateless_alternate() -> None:
    async with two(New()) as (running, _):
        agent = await running.agent(CAN)
        stream = await agent.start("tools/call", {"name": "one__tool", "arguments": {}})
        await stream.head()
        asked = await stream.next()
        assert asked["method"] == "elicitation/create"
        await agent.answer(asked["id"], ADA)
        assert (await stream.next())["result"]["content"][0]["text"] == "ada"
        await stream.close()


async def test_a_stateless_agent_answers_an_alternate_with_sessions() -> None:
    async with two(Asking()) as (running, server):
        agent = running.stateless()
        asked = (await agent.call("one__tool", {}, _meta=META)).message["result"]
        assert asked["resultType"] == "input_required"
        (key,) = asked["inputRequests"]
        retry = {"inputResponses": {key: ADA}, "requestState": asked["requestState"]}
        assert (await agent.call("one__tool", {}, **retry, _meta=META)).text == "ada"
        assert len(server.calls("tools/call")) == 1


async def test_what_an_alternate_asked_is_no_other_servers() -> None:
    async with two(New()) as (running, server):
        agent = running.stateless()
        asked = (await agent.call("one__tool", {}, _meta=META)).message["result"]
        retry = {"inputResponses": dict.fromkeys(asked["inputRequests"], ADA), "requestState": asked["requestState"]}
        stolen = await agent.call("two__other", {}, **retry, _meta=META)
        assert stolen.error == (400, -32602)
        assert len(server.calls("tools/call")) == 1


async def test_an_alternate_that_is_not_configured_any_more() -> None:
    alternates: dict[str, Alternate] = {}
    async with two(New(), alternates) as (running, server):
        agent = running.stateless()
        asked = (await agent.call("one__tool", {}, _meta=META)).message["result"]
        alternates.clear()
        retry = {"inputResponses": dict.fromkeys(asked["inputRequests"], ADA), "requestState": asked["requestState"]}
        lost = await agent.call("one__tool", {}, **retry, _meta=META)
        assert lost.message["error"]["data"]["reason"] == "call_lost"
        assert len(server.calls("tools/call")) == 1
