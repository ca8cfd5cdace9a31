"""Programs of agents: each call they make is a call of theirs."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Answer, Gateway, gateway
from tests.fixtures.mcp_raw import STREAM, Asked, Old, Upstream, answer, chunk, events, result, upstream
from tests.unit.endpoints.mcp.test_rules import Rules

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.call import ToolCall
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.search import Search
from tollhouse.net.program import Limits, Programs
from tollhouse.wire.mcp.overrides import Argument, Override, Overrides

pytest.importorskip("pydantic_monty", reason="the extra `code` is not installed")
pytestmark = pytest.mark.anyio

TOOLS = [{"name": name, "description": name, "inputSchema": {"type": "object"}} for name in
         ("echo", "bad", "words", "picture", "slow", "asks", "secret", "wrong")]  # fmt: skip


def text(value: str, **more: Any) -> Any:
    return {"content": [{"type": "text", "text": value}], **more}


class Tools(Old):
    """waiting: of `slow`. answered: what agents said to the question of `asks`."""

    def __init__(self) -> None:
        super().__init__(tools_list=lambda asked: result(asked, {"tools": TOOLS}), tools_call=self.called)
        self.waiting = asyncio.Event()
        self.release = asyncio.Event()
        self.answered: list[Any] = []

    def called(self, asked: Asked) -> Any:
        params = asked.body["params"]
        name = params["name"]
        if name == "echo" and "times" in params["arguments"]:
            return result(asked, text("x" * params["arguments"]["times"]))
        if name == "echo":
            return result(asked, {**text("structured"), "structuredContent": params["arguments"]})
        if name == "bad":
            return result(asked, text("it is broken", isError=True))
        if name == "words":
            return result(asked, text('{"a": 1}') if params["arguments"] else text("plain {words}"))
        if name == "picture":
            picture = {"type": "image", "data": "AAAA", "mimeType": "image/png"}
            return result(asked, {"content": [{"type": "text", "text": "see"}, picture]})
        if name == "slow":
            self.waiting.set()
            done = {"jsonrpc": "2.0", "id": asked.id, "result": text("done")}
            return [STREAM, chunk(b": \n\n"), self.release.wait(), chunk(events(done)), b"0\r\n\r\n"]
        if name == "asks":
            question = {"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": {"message": "?"}}
            done = {"jsonrpc": "2.0", "id": asked.id, "result": text("went on")}
            return [STREAM, chunk(events(question)), self.release.wait(), chunk(events(done)), b"0\r\n\r\n"]
        return answer(200, {"jsonrpc": "2.0", "id": asked.id, "error": {"code": -32000, "message": "no such luck"}})

    def __call__(self, asked: Asked) -> Any:
        if isinstance(asked.body, dict) and "method" not in asked.body and "id" in asked.body:
            self.answered.append(asked.body)
            self.release.set()
            return answer(202)
        return super().__call__(asked)


@asynccontextmanager
async def coding(limits: Limits | None = None, **more: Any) -> AsyncIterator[tuple[Gateway, Upstream, Tools]]:
    tools, programs = Tools(), Programs()
    try:
        async with upstream(tools) as behind:
            specs: Any = {"s": HttpServerSpec(url=behind.url), "t": HttpServerSpec(url=behind.url)}
            async with gateway(specs, programs=(programs, limits or Limits(wall=15)), **more) as running:
                yield running, behind, tools
    finally:
        await programs.close()


async def run(agent: Any, code: str) -> Answer:
    answered: Answer = await agent.call("run_program", {"code": code})
    return answered


@pytest.mark.parametrize("new", [False, True])
async def test_a_program(new: bool) -> None:
    async with coding() as (running, behind, _):
        agent = running.stateless() if new else await running.agent()
        listed = (await agent.ask("tools/list")).message["result"]["tools"]
        assert [one["name"] for one in listed] == ["find_tools", "run_program"]
        told = await run(agent, "print(sum(call_tool('s__echo', {'n': n})['n'] for n in range(4)))")
        assert told.text == "6\n"
        assert not told.message["result"].get("isError")
        assert len(behind.calls("tools/call")) == 4
        found = await run(agent, "print(find_tools('echo', server='t', limit=1)['tools'][0]['name'])")
        assert found.text == "t__echo\n"


async def test_what_a_program_gets() -> None:
    async with coding() as (running, _, _):
        agent = await running.agent()
        code = """
print(call_tool('s__words', x=1)['a'], call_tool('s__words'))
print(call_tool('s__picture'))
for name in ('s__bad', 's__wrong', 's__nobody', 'nobody'):
    try:
        call_tool(name)
    except RuntimeError as error:
        print(error)
print(call_tools([('s__echo', {'a': 1}), ('s__bad', {}), ('t__echo',)]))
"""
        assert (await run(agent, code)).text.splitlines() == [
            "1 plain {words}",
            "see",
            "[image image/png: programs get text only]",
            "it is broken",
            "no such luck",
            "no such luck",
            "Unknown tool: nobody; find_tools knows which there are",
            "[{'value': {'a': 1}}, {'error': 'it is broken'}, {'value': {}}]",
        ]


async def test_a_result_that_is_too_large_is_an_error_of_that_call() -> None:
    async with coding() as (running, _, _):
        agent = await running.agent()
        code = """
told = call_tools([('s__echo', {'times': 1200000}), ('s__echo', {'a': 1})])
print(told[0]['error'], told[1])
"""
        assert (await run(agent, code)).text == (
            "the result of s__echo has 1200012 bytes: a program gets at most 1048576 {'value': {'a': 1}}\n"
        )


async def test_which_tools_are_shown() -> None:
    own = [("off", ["find_tools", "run_program"]), ("on", ["find_tools", "call_tool", "run_program"])]
    for mode, names in own:
        async with coding(search=Search(mode)) as (running, _, _):  # type: ignore[arg-type]
            listed = (await (await running.agent()).ask("tools/list")).message["result"]["tools"]
            assert [one["name"] for one in listed] == names
    async with coding(search=Search("auto", 100, None), page=4) as (running, _, _):
        agent = await running.agent()
        listed = (await agent.ask("tools/list")).message["result"]
        assert [one["name"] for one in listed["tools"]] == ["run_program", *(f"s__{one['name']}" for one in TOOLS[:4])]
        second = (await agent.ask("tools/list", {"cursor": listed["nextCursor"]})).message["result"]["tools"]
        assert "run_program" not in [one["name"] for one in second]


async def test_rules_see_every_call() -> None:
    rules = Rules({"deny": 'mcp.tool.name == "secret"'}, {"deny": '"n" in mcp.arguments && mcp.arguments.n > 2.0'})
    seen: list[tuple[str, str, str, Any]] = []

    async def record(call: ToolCall, following: Handler[ToolCall, Reply]) -> Reply:
        reply = await following(call)

        def ended(ending: Ending) -> None:
            context = call.context
            seen.append((context.server, context.tool, context.mcp_outcome, json.loads(bytes(context.arguments))))

        reply.ends.append(ended)
        return reply

    async with coding(permitted=rules.permitted, policies=[record, *rules.policies]) as (running, behind, _):
        agent = running.stateless(who="x")
        code = """
for name, given in (('s__secret', {}), ('s__echo', {'n': 3}), ('t__echo', {'n': 1}), ('s__bad', {})):
    try:
        print(call_tool(name, given))
    except RuntimeError as error:
        print(error)
"""
        said = (await run(agent, code)).text.splitlines()
        assert said[2:] == ["{'n': 1}", "it is broken"]
        assert [asked.body["params"]["name"] for asked in behind.calls("tools/call")] == ["echo", "bad"]
        assert seen == [("t", "echo", "ok", {"n": 1}), ("s", "bad", "tool_error", {})]
        assert "secret" not in (await run(agent, "print(find_tools('secret'))")).text


async def test_limits_count_every_call() -> None:
    rules = Rules(requests=4)
    async with coding(**{**rules.parts, "admit": None}) as (running, behind, _):
        code = "print(len([1 for told in call_tools([('s__echo', {})] * 6) if 'error' in told]))"
        assert (await run(running.stateless(who="x"), code)).text == "2\n"
        assert len(behind.calls("tools/call")) == 4


async def test_a_program_may_be_forbidden() -> None:
    asked: list[tuple[str, str]] = []
    guard = Rules({"deny": 'mcp.tool.name == "run_program"'}).policies[0]

    async def last(_: Any) -> Reply:
        return Reply(200, [], b"")

    async def denied(call: ToolCall) -> None:
        asked.append((call.method, call.name))
        await guard(call, last)

    async with coding(admit=denied) as (running, behind, _):
        told = await run(running.stateless(who="x"), "print(1)")
        assert told.message["error"]["data"]["reason"] == "permission_denied"
        assert ("tools/call", "run_program") in asked
        assert behind.calls("tools/call") == []


async def test_calls_are_counted_over_a_program() -> None:
    async with coding(Limits(calls=3, wall=15)) as (running, behind, _):
        agent = await running.agent()
        assert "no more calls" in (await run(agent, "call_tools([('s__echo', {})] * 4)")).text
        told = await run(agent, "call_tools([('s__echo', {})] * 3)\ncall_tool('s__echo')")
        assert told.message["result"]["isError"]
        assert len(behind.calls("tools/call")) == 3


async def test_overrides_hold() -> None:
    own = Overrides({"echo": Override("say", "", {"n": Argument("number")}), "words": Override("words2")})
    async with coding(overrides={"s": own}) as (running, behind, _):
        agent = await running.agent()
        assert (await run(agent, "print(call_tool('s__say', number=1))")).text == "{'n': 1}\n"
        for bad in ("call_tool('s__say', n=1)", "call_tool('s__echo')"):
            assert (await run(agent, bad)).message["result"]["isError"]
        assert len(behind.calls("tools/call")) == 1


async def test_the_agent_cancels() -> None:
    async with coding() as (running, _, tools):
        agent = await running.agent()
        stream = await agent.start("tools/call", {"name": "run_program", "arguments": {"code": "call_tool('s__slow')"}})
        await tools.waiting.wait()
        await agent.tell("notifications/cancelled", {"requestId": agent.ids})
        await stream.head()
        assert json.loads(await stream.body())["error"]["message"] == "the request was cancelled"
        await stream.close()
        tools.release.set()
        assert (await run(agent, "print(1)")).text == "1\n"


async def test_the_agent_leaves() -> None:
    ended = asyncio.Event()

    async def record(call: ToolCall, following: Handler[ToolCall, Reply]) -> Reply:
        try:
            reply = await following(call)
        except asyncio.CancelledError:
            ended.set()
            raise
        reply.ends.append(lambda ending: ended.set())
        return reply

    async with coding(policies=[record]) as (running, _, tools):
        agent = running.stateless()
        stream = await agent.start("tools/call", {"name": "run_program", "arguments": {"code": "call_tool('s__slow')"}})
        await tools.waiting.wait()
        stream.writer.transport.abort()
        async with asyncio.timeout(10):
            await ended.wait()
        tools.release.set()


async def test_a_server_that_asks_in_the_middle() -> None:
    async with coding() as (running, _, tools):
        agent = await running.agent({"elicitation": {}})
        assert (await run(agent, "print(call_tool('s__asks'))")).text == "went on\n"
        assert tools.answered[0]["error"]["code"] == -32601


@pytest.mark.parametrize("arguments", [{}, {"code": 7}, {"code": "x" * 64_001}])
async def test_what_is_no_program(arguments: Any) -> None:
    async with coding() as (running, _, _):
        told = (await (await running.agent()).call("run_program", arguments)).message["result"]
        assert told["isError"]


@pytest.mark.parametrize(
    "code",
    [
        "call_tool('s__echo', [1])",
        "call_tool(7)",
        "call_tool('x' * 300)",
        "call_tools([('s__echo', 'text')])",
        "call_tools(7)",
        "_host('call', '[]x')",
        "find_tools(7)",
        "find_tools('x', 'y', 'z')",
        "while True: pass",
    ],
)
async def test_bad_programs(code: str) -> None:
    async with coding(Limits(cpu=0.3, wall=10)) as (running, behind, _):
        agent = await running.agent()
        assert (await run(agent, code)).message["result"]["isError"]
        assert behind.calls("tools/call") == []


async def test_output_that_was_cut_says_so() -> None:
    async with coding(Limits(output=10, wall=15)) as (running, _, _):
        told = await run(await running.agent(), "print('x' * 100)")
        assert told.text.startswith("x" * 10 + "\n[cut")
