"""Calls whose server is lost, and how often it is asked to come up: real sockets, real children."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import gateway, sessions, until
from tests.fixtures.mcp_raw import CUT, STREAM, TOOLS, Asked, Mortal, Old, chunk, events, result, upstream

from tollhouse.backends.mcp import heal as its
from tollhouse.backends.mcp.heal import Budget, Gate, Restarts, may_resend
from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.errors import Failure, Reason

pytestmark = pytest.mark.anyio


def annotated(**hints: bool) -> Any:
    return lambda asked: result(asked, {"tools": [{**TOOLS[0], "annotations": hints}]})


@pytest.mark.parametrize(
    ("failure", "safe", "unsafe"),
    [
        (Failure(502, Reason.UPSTREAM_FAILURE, "", retry=True, reached=False), True, True),
        (Failure(502, Reason.UPSTREAM_FAILURE, "", retry=True, sent=True), True, False),
        (its.call_lost("u", "it broke"), True, False),
        (Failure(502, Reason.UPSTREAM_FAILURE, "", retry=False), False, False),
        (Failure(504, Reason.TIMEOUT, "", retry=True, sent=True), False, False),
        (Failure(429, Reason.UPSTREAM, "", retry=True), False, False),
        (Failure(503, Reason.UPSTREAM_FAILURE, "", code="pool_exhausted", retry=True, reached=False), False, False),
        (Failure(503, Reason.UPSTREAM_FAILURE, "", code="server_unavailable", retry=True, reached=False), False, False),
    ],
)
def test_what_is_sent_again(failure: Failure, safe: bool, unsafe: bool) -> None:
    assert (may_resend(failure, safe=True), may_resend(failure, safe=False)) == (safe, unsafe)


async def test_a_destructive_tool_runs_once() -> None:
    """The connection breaks under the answer: whether it was done nobody knows, so it is not done again."""

    def call(asked: Asked) -> Any:
        return [b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{", CUT]

    script = Old(tools_call=call, tools_list=annotated(destructiveHint=True))
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent()
        await agent.ask("tools/list")
        answered = await agent.call("echo")
        assert answered.message["error"]["data"]["reason"] == "call_lost"
        assert "not known whether" in answered.message["error"]["message"]
        assert len(server.calls("tools/call")) == 1


@pytest.mark.parametrize("streams", [False, True])
async def test_a_harmless_tool_is_called_until_it_answers(streams: bool) -> None:
    """Also behind progress that the agent has seen."""
    calls = Counter[str]()

    def call(asked: Asked) -> Any:
        calls["call"] += 1
        if calls["call"] == 3:
            return result(asked, {"content": [{"type": "text", "text": "at last"}]})
        if not streams:
            return [b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", CUT]
        token = asked.body["params"]["_meta"]["progressToken"]
        params = {"progressToken": token, "progress": calls["call"]}
        return [
            STREAM,
            chunk(events({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})),
            asyncio.sleep(0.05),
            CUT,
        ]

    script = Old(tools_call=call, tools_list=annotated(readOnlyHint=True))
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        for agent in (await running.agent(), running.stateless()):
            calls.clear()
            await agent.ask("tools/list")
            answered = await agent.call("echo", _meta={"progressToken": "p"} if streams else {})
            assert answered.text == "at last"
            assert calls["call"] == 3
            assert bool(answered.notes) == streams
            assert all(not session.active for session in sessions(running))


async def test_an_agent_that_leaves_while_its_call_is_made_again() -> None:
    def call(asked: Asked) -> Any:
        if len(server.calls("tools/call")) > 1:
            return None
        params = {"progressToken": asked.body["params"]["_meta"]["progressToken"], "progress": 1}
        note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}
        return [STREAM, chunk(events(note)), asyncio.sleep(0.05), CUT]

    script = Old(tools_call=call, tools_list=annotated(readOnlyHint=True))
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless()
        await agent.ask("tools/list")
        stream = await agent.start("tools/call", {"name": "echo", "_meta": {"progressToken": 1}})
        await stream.head()
        await stream.next()
        await until(lambda: len(server.calls("tools/call")) == 2)
        await stream.close()
        await until(lambda: len(server.calls("notifications/cancelled")) == 1)
        await until(lambda: all(not session.active for session in sessions(running)))
        assert not running.servers.all[0]._cut - {session._hearing for session in sessions(running)}


async def test_a_call_that_is_made_again_is_given_more_time() -> None:
    """While its agent is asked something, for one."""
    gate = asyncio.Event()
    sources: list[Any] = []

    async def seen(call: Any, next: Any) -> Any:
        reply = await next(call)
        sources.append(reply.source)
        return reply

    def call(asked: Asked) -> Any:
        again = len(server.calls("tools/call")) > 1
        params = {"progressToken": asked.body["params"]["_meta"]["progressToken"], "progress": 1 + again}
        note = chunk(events({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}))
        if not again:
            return [STREAM, note, asyncio.sleep(0.05), CUT]
        last = {"jsonrpc": "2.0", "id": asked.id, "result": {"content": []}}
        return [STREAM, note, gate.wait(), chunk(events(last)), b"0\r\n\r\n"]

    script = Old(tools_call=call, tools_list=annotated(readOnlyHint=True))
    async with (
        upstream(script) as server,
        gateway({"u": HttpServerSpec(url=server.url, timeout=0.5)}, policies=[seen]) as running,
    ):
        agent = running.stateless()
        await agent.ask("tools/list")
        stream = await agent.start("tools/call", {"name": "echo", "_meta": {"progressToken": 1}})
        await stream.head()
        assert [(await stream.next())["params"]["progress"] for _ in range(2)] == [1, 2]
        sources[-1].allow(10.0)
        await asyncio.sleep(1.0)
        gate.set()
        assert (await stream.next())["result"]["content"] == []
        await stream.close()


@pytest.mark.parametrize(("trust", "calls"), [(None, 2), (True, 2), (False, 1)])
async def test_whether_annotations_are_believed(trust: bool | None, calls: int) -> None:
    def call(asked: Asked) -> Any:
        if len(server.calls("tools/call")) > 1:
            return result(asked, {"content": []})
        return [b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{", CUT]

    script = Old(tools_call=call, tools_list=annotated(idempotentHint=True))
    async with (
        upstream(script) as server,
        gateway({"u": HttpServerSpec(url=server.url, trust_annotations=trust)}) as running,
    ):
        agent = await running.agent()
        await agent.ask("tools/list")
        assert ("result" in (await agent.call("echo")).message) == (calls == 2)
        assert len(server.calls("tools/call")) == calls


@pytest.mark.parametrize("streams", [False, True])
async def test_who_is_late_is_named(streams: bool) -> None:
    """With several servers behind one address an agent could not tell else."""
    script = Old(tools_call=lambda asked: [STREAM, asyncio.Event().wait()] if streams else None)
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url, timeout=0.3)}) as running:
        for agent in (await running.agent(), running.stateless()):
            error = (await agent.call("echo")).message["error"]
            assert error["data"]["reason"] == "Timeout"
            assert error["message"].startswith("u: ")


async def test_sixteen_handshakes_at_once() -> None:
    """A thousand sessions, and a server that has forgotten all of them."""
    at_once = [0, 0]

    class Slow(Mortal):
        def __call__(self, asked: Asked) -> Any:
            said = super().__call__(asked)
            if asked.method != "initialize":
                return said
            at_once[0] += 1
            at_once[1] = max(at_once)

            async def think() -> None:
                await asyncio.sleep(0.002)
                at_once[0] -= 1

            return [think(), said]

    script = Slow()
    count = 250
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agents = [running.stateless(who=f"a{n}") for n in range(count)]
        for part in range(0, count, 50):
            await asyncio.gather(*(agent.call("echo") for agent in agents[part : part + 50]))
        assert len(sessions(running)) == count
        script.restart()
        at_once[1] = 0
        answers = await asyncio.gather(*(agent.call("echo") for agent in agents))
        assert [answered.text for answered in answers] == ["ok"] * count
        assert 1 < at_once[1] <= 16


async def test_the_gate_lets_one_try_after_failures() -> None:
    gate = Gate("s")
    together = [await gate.enter() for _ in range(10)]
    for began in together:
        gate.leave(False, began)
    assert not gate.open  # that was one failure
    for _ in range(4):
        gate.leave(False, await gate.enter())
    assert gate.open
    gate.check()  # the next attempt is due soon
    order: list[str] = []

    async def one(name: str, success: bool) -> None:
        began = await gate.enter()
        order.append(name)
        await asyncio.sleep(0)
        gate.leave(success, began)

    first = asyncio.create_task(one("probe", True))
    await asyncio.sleep(0)
    others = [asyncio.create_task(one(str(n), True)) for n in range(20)]
    await asyncio.sleep(0.01)
    assert gate.busy == 1
    await asyncio.gather(first, *others)
    assert order[0] == "probe"
    assert len(order) == 21
    assert (gate.open, gate.busy) == (False, 0)


@pytest.mark.parametrize(("was_up", "patience"), [(True, (5.0, 8.0)), (False, (0.5, 2.0))])
async def test_the_gate_is_patient_with_a_server_that_was_up(was_up: bool, patience: tuple[float, float]) -> None:
    """As long as calls are; one that never was is left alone sooner."""
    now = [0.0]
    gate = Gate("s", lambda: now[0])
    if was_up:
        gate.leave(True, await gate.enter())
    refused = []
    while now[0] < 120.0:
        try:
            gate.check()
        except Failure as failure:
            refused.append((now[0], failure.retry_after or 0.0))
        now[0] = max(now[0] + 0.001, gate._not_before)
        gate.leave(False, await gate.enter())
    first, _ = refused[0]
    assert patience[0] <= first < patience[1]
    waits = [wait for _, wait in refused]
    assert waits == sorted(waits)
    assert 25.0 < waits[-1] < 30.1


async def test_the_gate_refuses_who_would_wait_long() -> None:
    gate = Gate("s")
    assert gate.shut("it is loud") == 30.0
    assert gate.shut("it is loud") == 60.0
    with pytest.raises(Failure) as caught:
        await gate.enter()
    assert (caught.value.status, caught.value.code, caught.value.reached) == (503, "server_unavailable", False)
    assert "it is loud" in caught.value.message
    assert caught.value.retry_after == pytest.approx(60.0, abs=1.0)


async def test_who_waits_at_the_gate_may_leave() -> None:
    gate = Gate("s")
    for _ in range(16):
        await gate.enter()
    waiting = [asyncio.create_task(gate.enter()) for _ in range(256)]
    await asyncio.sleep(0)
    with pytest.raises(Failure, match="too many"):
        await gate.enter()
    for task in waiting[:255]:
        task.cancel()
    await asyncio.wait(waiting[:255])
    gate.leave(True)
    await waiting[255]
    assert gate.busy == 16
    for _ in range(16):
        gate.leave(None)
    assert gate.busy == 0


def test_a_budget() -> None:
    now = [0.0]
    budget = Budget(2, 10.0, lambda: now[0])
    assert [budget.take(), budget.take()] == [0.0, 0.0]
    assert budget.take() == pytest.approx(10.0)
    now[0] = 4.0
    assert budget.take() == pytest.approx(6.0)
    now[0] = 100.0
    assert [budget.take(), budget.take(), budget.take() > 0] == [0.0, 0.0, True]


def test_restarts_of_what_has_answered_are_at_once() -> None:
    """Killed every second, for a minute; but not if it happens all the time."""
    now = [0.0]
    restarts = Restarts(lambda: now[0])
    for _ in range(60):
        now[0] += 1.0
        restarts.lost(0.9, answered=True)
        assert restarts.wait == 0
    now[0] += 60.0
    waits = []
    for _ in range(20):
        restarts.lost(0.0, answered=True)
        waits.append(restarts.wait)
        now[0] += restarts.wait
    assert waits[:8] == [0.0] * 8
    assert max(waits) == pytest.approx(1.0)
    assert sum(waits) == pytest.approx(12.0)


def test_restarts_of_what_dies_silent_are_later_each_time() -> None:
    now = [0.0]
    restarts = Restarts(lambda: now[0])
    waits = []
    for _ in range(8):
        restarts.lost(0.3, answered=False)
        waits.append(restarts.wait)
        now[0] += 5.0
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])
    assert restarts.wait == 0
    restarts.lost(11.0, answered=False)
    assert restarts.wait == 0
    restarts.lost(0.1, answered=False)
    assert restarts.wait == pytest.approx(0.1)
