"""Servers on standard input and output, through the whole path: real children, real sockets."""

import asyncio
import json
import os
from time import monotonic
from typing import Any

import pytest
from pydantic import ValidationError
from tests.fixtures.mcp_gateway import Gateway, child, gateway, until

from tollhouse.backends.mcp.stdio import StdioServerSpec
from tollhouse.core.call import Principal

pytestmark = pytest.mark.anyio


def children(running: Gateway) -> list[Any]:
    return [session for upstream in running.servers.all for session in upstream.sessions]


async def test_a_call_in_each_era() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent(who="ada")
        first = await agent.call("echo", {"message": "hi\n\r\u2028 é"})
        assert (first.status, first.text) == (200, "hi\n\r\u2028 é")
        assert not (await agent.call("echo", {"message": "hi"})).streamed  # as the first may be, which starts the child
        assert (await running.stateless(who="ada").call("echo", {"message": "hi"})).text == "hi"
        assert len(children(running)) == 1  # what cannot be asked anything shares a child


async def test_pretty_printed_json_is_one_line() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        body = json.dumps(agent.request("tools/call", {"name": "echo", "arguments": {"message": "a"}}), indent=2)
        assert (await running.send(body.encode(), agent.headers)).text == "a"


async def test_a_stateless_server() -> None:
    async with gateway({"c": child("new")}) as running:
        assert (await running.stateless().call("echo", {"message": "hi"})).text == "hi"
        assert (await (await running.agent()).call("echo", {"message": "hi"})).text == "hi"
        both = [running.stateless(who=who).call("pid") for who in ("ada", "bob")]
        assert len({answer.text for answer in await asyncio.gather(*both)}) == 1  # there is nothing to keep apart
        await until(lambda: len(children(running)) == 1)


async def test_progress_goes_to_the_call_that_asked() -> None:
    async with gateway({"c": child()}) as running:
        agents = [await running.agent() for _ in range(3)]
        answers = await asyncio.gather(
            *(
                agent.call("progress", {"steps": n + 1}, _meta={"progressToken": "same"})
                for n, agent in enumerate(agents)
            )
        )
        for n, answer in enumerate(answers):
            *progress, last = answer.messages
            assert answer.streamed
            assert [note["params"] for note in progress] == [
                {"progressToken": "same", "progress": step + 1} for step in range(n + 1)
            ]
            assert last["id"] == agents[n].ids
        assert not (await agents[0].call("progress")).notes  # nobody asked


async def test_a_token_under_an_escaped_name_reaches_nobody_else() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        body = json.dumps(agent.request("tools/call", {"name": "progress", "_meta": {"progressToken": 1}}))
        answer = await running.send(body.replace("progressToken", "progress\\u0054oken").encode(), agent.headers)
        assert [note["params"]["progressToken"] for note in answer.messages[:-1]] == [1, 1]


async def test_lines_that_are_no_messages_are_left_out() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        assert (await agent.call("garbage")).text == "survived"
        assert (await agent.call("echo", {"message": "still"})).text == "still"


async def test_a_child_that_dies_fails_its_calls_and_is_started_again() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        first = (await agent.call("pid")).text
        waiting = asyncio.create_task(agent.call("never"))
        await until(lambda: children(running)[0].active == 1)
        died = await agent.call("die")
        lost = await waiting
        for answer in (died, lost):
            assert answer.error == (200, -32603)
            assert "exited with code 7" in answer.message["error"]["message"]
            assert answer.headers["x-tollhouse-reason"] == "UpstreamFailure"
        assert (await agent.call("pid")).text != first


async def test_a_line_too_long() -> None:
    async with gateway({"c": child(max_line=100_000)}) as running:
        agent = await running.agent()
        answer = await agent.call("huge", {"size": 200_000})
        assert answer.error == (200, -32603)
        assert "more than 100000 bytes" in answer.message["error"]["message"]
        assert (await agent.call("echo", {"message": "again"})).text == "again"


async def test_a_child_that_does_not_start() -> None:
    specs = {"c": child("dies"), "d": StdioServerSpec(command="no-such-program-here")}
    async with gateway(specs) as running:
        agent = await running.agent()
        for name in ("c", "d"):
            answer = await agent.call(f"{name}__echo")
            assert answer.error == (200, -32603)
            assert "Traceback" not in answer.body.decode()
        for _ in range(10):
            answer = await agent.call("d__echo")
        assert "does not come up" in answer.message["error"]["message"]
        assert answer.message["error"]["data"]["retryAfter"] > 0


async def test_a_call_that_takes_too_long() -> None:
    async with gateway({"c": child(timeout=0.5)}) as running:
        agent = await running.agent()
        while "error" in (await agent.call("echo", {"message": "hi"})).message:  # its start is part of a call's time
            pass
        answer = await agent.call("never")
        assert answer.error == (200, -32603)
        assert answer.message["error"]["data"]["reason"] == "Timeout"
        assert answer.message["error"]["message"].startswith("c: ")
        seen = json.loads((await agent.call("seen")).text)
        assert [note["method"] for note in seen if "method" in note][-1] == "notifications/cancelled"


async def cancelled(running: Gateway) -> None:
    session = children(running)[0]
    await until(lambda: not session._calls and session.active == 0)


async def test_an_agent_that_leaves_cancels_if_it_cannot_come_back() -> None:
    """One with a session can: it cancels by saying so."""
    async with gateway({"c": child()}) as running:
        agent = await running.agent(who="ada")
        stateless = running.stateless(who="ada")
        for one in (agent, stateless):
            stream = await one.start("tools/call", {"name": "never", "arguments": {}})
            await until(lambda: children(running) and children(running)[0].active == 1)
            await stream.close()
            if one is agent:
                await agent.tell("notifications/cancelled", {"requestId": agent.ids})
            await cancelled(running)
        seen = json.loads((await agent.call("seen")).text)
        assert [note["method"] for note in seen].count("notifications/cancelled") == 2
        assert not next(iter(running.sessions._open.values())).calls


async def test_an_agent_that_cancels() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        waiting = asyncio.create_task(agent.call("never"))
        await until(lambda: children(running) and children(running)[0].active == 1)
        assert (await agent.tell("notifications/cancelled", {"requestId": agent.ids})).status == 202
        answer = await waiting
        if not answer.streamed:  # as it is after a quarter of a second, and then it just ends
            assert answer.message["error"]["data"]["reason"] == "ClientGone"
        await cancelled(running)
        assert (await agent.call("echo", {"message": "on"})).text == "on"
        await agent.tell("notifications/cancelled", {"requestId": 12345})
        await agent.tell("notifications/cancelled", {})


@pytest.mark.parametrize(
    ("method", "params", "capabilities", "result"),
    [
        ("sampling/createMessage", {"messages": [], "maxTokens": 1}, {"sampling": {}}, {"role": "assistant"}),
        ("elicitation/create", {"message": "who?"}, {"elicitation": {}}, {"action": "accept"}),
        ("roots/list", {}, {"roots": {}}, {"roots": []}),
    ],
)
async def test_a_server_asks_its_agent(method: str, params: Any, capabilities: Any, result: Any) -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent(capabilities)
        stream = await agent.start("tools/call", {"name": "ask", "arguments": {"method": method, "params": params}})
        await stream.head()
        request = await stream.next()
        assert request["method"] == method
        assert request.get("params", {}) == params
        assert request["id"] != 99
        other = await running.agent(capabilities)
        assert (await other.answer(request["id"], {"stolen": True})).status == 400  # not its question
        assert (await agent.answer(request["id"], result)).status == 202
        assert json.loads((await stream.next())["result"]["content"][0]["text"]) == result
        assert await stream.next() is None
        assert (await agent.answer(request["id"], result)).status == 400  # twice: nobody waits
        await stream.close()


async def test_what_an_agent_did_not_declare_is_refused_for_it() -> None:
    async with gateway({"c": child()}) as running:
        ask = {"method": "sampling/createMessage"}
        for agent in (await running.agent(), await running.agent({"elicitation": {}}), running.stateless()):
            answer = await agent.call("ask", ask)
            assert json.loads(answer.text)["code"] == -32601
        assert (await running.stateless().call("ask", {"method": "ping"})).text == "{}"


async def test_agents_that_can_be_asked_have_their_own_child_which_goes_with_them() -> None:
    async with gateway({"c": child()}) as running:
        agents = [await running.agent({"roots": {}}) for _ in range(2)]
        pids = [int((await agent.call("pid")).text) for agent in agents]
        assert pids[0] != pids[1]
        assert await agents[0].end() == 204
        await until(lambda: len(children(running)) == 1)
        assert children(running)[0].key[1] == agents[1].id
        await until(lambda: not running.servers.all[0]._tasks)
        with pytest.raises(ProcessLookupError):
            os.kill(pids[0], 0)


async def test_principals_do_not_share_a_child() -> None:
    async with gateway({"c": child()}) as running:
        pids = {who: (await running.stateless(who=who).call("pid")).text for who in ("ada", "bob", "")}
        assert len(set(pids.values())) == 3
        assert (await (await running.agent(who="ada")).call("pid")).text == pids["ada"]


def anonymous(principal: Any) -> Any:
    """A policy: callers are nobody, as the gateway says it."""

    def policy(call: Any, next: Any) -> Any:
        call.principal = principal
        return next(call)

    return policy


@pytest.mark.parametrize("principal", [None, Principal("anonymous", source="anonymous")])
async def test_who_is_nobody_shares_no_child(principal: Any) -> None:
    async with gateway({"c": child()}, policies=[anonymous(principal)]) as running:
        one, other = await running.agent(), await running.agent()
        pids = {(await agent.call("pid")).text for agent in (one, other, running.stateless())}
        assert len(pids) == 3
        assert len((await one.ask("tools/list")).message["result"]["tools"]) == 14
        assert len(children(running)) == 3  # no further one for the list
        await one.end()
        await until(lambda: len(children(running)) == 2)


async def changed(running: Gateway, stream: Any) -> None:
    """Nothing stands on the stream before what is put there now."""
    running.sessions.changed("c", "notifications/tools/list_changed")
    assert (await stream.next())["method"] == "notifications/tools/list_changed"


@pytest.mark.parametrize("who", ["", "ada"])
async def test_logs_of_a_call_reach_nobody_else(who: str) -> None:
    """Whether they are one person or several behind one key: logs may quote arguments."""
    async with gateway({"c": child()}) as running:
        one, other = await running.agent(who=who), await running.agent(who=who)
        await other.call("echo")
        ears = await other.listen()
        for tool in ("log", "late"):
            answer = await one.call(tool)
            if who:
                assert [note["params"]["data"] for note in answer.notes] == (["hello"] if tool == "log" else [])
            else:
                stream = await one.listen()  # its child is its own: what it says is this agent's at any time
                while (await stream.next())["method"] != "notifications/message":
                    pass
                await stream.close()
            await changed(running, ears)
        await ears.close()


async def test_logs_are_dropped_where_several_calls_run() -> None:
    async with gateway({"c": child()}) as running:
        one, other = await running.agent(who="ada"), await running.agent(who="ada")
        waiting = asyncio.create_task(one.call("never"))
        await until(lambda: children(running) and children(running)[0].active == 1)
        ears = [await one.listen(), await other.listen()]
        for tool in ("log", "late"):  # the late one comes when `never` is alone again: still it could be anybody's
            assert not (await other.call(tool)).notes
        for stream in ears:
            await changed(running, stream)
        await one.tell("notifications/cancelled", {"requestId": one.ids})
        assert not any("method" in message for message in (await waiting).messages)
        assert (await other.call("log")).notes  # now it is sure again
        for stream in ears:
            await stream.close()


async def test_logs_of_an_agent_that_is_alone() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent(who="ada")
        stream = await agent.listen()
        for tool, data in (("log", "hello"), ("late", "late")):
            assert not (await agent.call(tool)).notes
            assert (await stream.next())["params"]["data"] == data
        await stream.close()


async def test_a_stateless_call_hears_its_own_logs_beside_an_agent() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent(who="ada")
        await agent.call("echo")
        ears = await agent.listen()
        level = {"io.modelcontextprotocol/logLevel": "debug"}
        loud = await running.stateless(who="ada").call("log", _meta=level)
        assert [message.get("method") for message in loud.messages] == ["notifications/message", None]
        assert not (await running.stateless(who="ada").call("log")).notes  # it did not ask, and nobody else gets it
        await changed(running, ears)
        await ears.close()


async def test_children_are_bounded() -> None:
    async with gateway({"c": child(max_children=2)}) as running:
        running.servers.all[0]._room.patience = 0.2
        for who in ("a", "b", "c"):
            assert (await running.stateless(who=who).call("echo", {"message": who})).text == who
        await until(lambda: len(children(running)) == 2)
        never = {"name": "never", "arguments": {}}
        busy = [await running.stateless(who=who).start("tools/call", never) for who in ("b", "c")]
        await until(lambda: [s.active for s in children(running)] == [1, 1])
        began = monotonic()
        answer = await running.stateless(who="d").call("echo")
        assert monotonic() - began > 0.15
        assert "all 2 sessions with the server are in use" in answer.message["error"]["message"]
        assert not running.servers.all[0].crowded
        for stream in busy:
            await stream.close()


async def test_who_finds_all_children_in_use_waits_for_a_turn() -> None:
    """Whoever came first is first; also where each of them is nobody, and so has a child alone."""
    async with gateway({"c": child(max_children=2)}) as running:
        server = running.servers.all[0]
        never = {"name": "never", "arguments": {}}
        busy = [await running.stateless(who=who).start("tools/call", never) for who in ("a", "b")]
        await until(lambda: [s.active for s in children(running)] == [1, 1])
        order: list[str] = []

        async def call(who: str) -> None:
            agent: Any = running.stateless(who=who)
            assert (await agent.call("echo", {"message": who})).text == who
            order.append(who)

        waiting = []
        for n, who in enumerate(("c", "d", "e", "d", "f", "b")):
            waiting.append(asyncio.create_task(call(who)))
            if who == "b":
                await waiting.pop()  # it has a child, and need not wait
                assert order.pop() == "b"
            else:
                await until(lambda n=n: len(server._room) == n + 1)
        gone = waiting.pop(2)
        gone.cancel()
        await busy[0].close()
        await asyncio.gather(*waiting)
        assert sorted(order) == ["c", "d", "d", "f"]
        assert order[0] == "c"
        assert order[-1] == "f"
        assert not server.crowded
        assert server._room.promised == 0
        await busy[1].close()


async def test_more_who_are_nobody_than_there_may_be_children() -> None:
    async with gateway({"c": child(max_children=3)}) as running:
        agents = [await running.agent() for _ in range(9)]
        answers = await asyncio.gather(*(agent.call("echo", {"message": "hi"}) for agent in agents for _ in range(2)))
        assert [answered.text for answered in answers] == ["hi"] * 18
        assert len(children(running)) <= 3
        assert running.servers.all[0]._room.promised == 0


async def test_a_child_that_was_started_for_somebody_who_left_is_free() -> None:
    async with gateway({"c": child("slow", max_children=1)}) as running:
        left = await running.stateless(who="a").start("tools/call", {"name": "echo", "arguments": {"message": "a"}})
        await until(lambda: running.servers.all[0]._opening)
        waiting = asyncio.create_task(running.stateless(who="b").call("echo", {"message": "b"}))
        await until(lambda: running.servers.all[0].crowded)
        await left.close()
        assert (await waiting).text == "b"


async def test_who_waits_for_a_child_is_told_that_the_server_ends() -> None:
    async with gateway({"c": child(max_children=1)}) as running:
        busy = await running.stateless(who="a").start("tools/call", {"name": "never", "arguments": {}})
        await until(lambda: [s.active for s in children(running)] == [1])
        waiting = asyncio.create_task(running.stateless(who="b").call("echo"))
        await until(lambda: running.servers.all[0].crowded)
        await running.servers.close()
        assert "was removed" in (await waiting).message["error"]["message"]
        await busy.close()


async def test_logs_as_loud_as_the_agent_wants() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        stream = await agent.listen()
        await agent.call("log")
        assert (await stream.next())["params"] == {"level": "info", "data": "hello"}
        assert (await agent.ask("logging/setLevel", {"level": "warning"})).message["result"] == {}
        await agent.call("log")
        await agent.ask("logging/setLevel", {"level": "info"})
        await agent.call("log")
        note = await stream.next()
        assert note["params"] == {"level": "info", "data": "hello"}
        seen = json.loads((await agent.call("seen")).text)
        levels = [note["params"]["level"] for note in seen if note.get("method") == "logging/setLevel"]
        assert levels == ["warning", "info"]
        await stream.close()
        quiet = await running.stateless(who="z").call("log")
        assert not quiet.notes
        level = {"io.modelcontextprotocol/logLevel": "debug"}
        loud = await running.stateless(who="z").call("log", _meta=level)
        assert [m.get("method") for m in loud.messages] == ["notifications/message", None]


async def test_the_environment_is_clean() -> None:
    os.environ["GATEWAY_SECRET"] = "x"
    try:
        async with gateway({"c": child(env={"GIVEN": "1"})}) as running:
            env = json.loads((await running.stateless().call("env")).text)
    finally:
        del os.environ["GATEWAY_SECRET"]
    assert env["GIVEN"] == "1"
    assert "GATEWAY_SECRET" not in env


async def test_a_server_that_never_answers_holds_up_no_list_for_long(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway({"c": child(), "deaf": child("deaf", list_timeout=0.3)}) as running:
        agent = await running.agent()
        answer = await agent.ask("tools/list")
        result = answer.message["result"]
        assert result["_meta"] == {"dev.tollhouse/unavailable": ["deaf"]}
        assert result["tools"][0]["name"] == "c__echo"
        await agent.ask("tools/list")
        said = [one.message for one in caplog.records if "tools/list" in one.message]
        assert said == ["mcp server deaf: no tools/list: deaf: no answer to tools/list in time"]


async def test_a_slow_start_is_waited_for() -> None:
    async with gateway({"c": child("slow")}) as running:
        assert (await running.stateless().call("echo", {"message": "hi"})).text == "hi"


def test_specs() -> None:
    spec = StdioServerSpec.model_validate({"command": "npx", "args": ["-y", "x"], "max_line": "2MiB", "timeout": "5s"})
    assert (spec.max_line, spec.timeout) == (2 << 20, 5.0)
    for wrong in (
        {},
        {"command": ""},
        {"command": "a\0b"},
        {"command": "a", "args": ["\0"]},
        {"command": "a", "shell": True},
    ):
        with pytest.raises(ValidationError):
            StdioServerSpec.model_validate(wrong)


async def test_the_time_of_a_streamed_call_is_the_servers() -> None:
    """To the end of what it says, or to where the agent cancels: what it takes is not the gateway's."""
    contexts: list[Any] = []

    def seen(call: Any, next: Any) -> Any:
        contexts.append(call.context)
        return next(call)

    async with gateway({"c": child()}, policies=[seen]) as running:
        agent = await running.agent({"roots": {}})
        for leaves in (False, True):
            stream = await agent.start("tools/call", {"name": "ask", "arguments": {"method": "roots/list"}})
            await stream.head()
            request = await stream.next()
            before = monotonic()
            if leaves:
                await agent.tell("notifications/cancelled", {"requestId": agent.ids})
                await until(lambda: not any(session.active for session in children(running)))
            else:
                await agent.answer(request["id"], {"roots": []})
                assert "result" in await stream.next()
            await stream.close()
            assert before <= contexts[-1].upstream_ended <= monotonic()
