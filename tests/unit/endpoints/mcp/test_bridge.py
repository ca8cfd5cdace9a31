"""Input in the middle of a request, between agents and servers of both eras, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fixtures.garbage import collected
from tests.fixtures.mcp_gateway import NEW, Answer, Gateway, child, gateway, until
from tests.fixtures.mcp_raw import STREAM, Asked, Old, answer, chunk, events, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire import jsonrpc

pytestmark = pytest.mark.anyio

FORM = {"message": "Who?", "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}}}
CAPABILITIES = {"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}}
DECLARED = {"io.modelcontextprotocol/clientCapabilities": CAPABILITIES}
ADA = {"action": "accept", "content": {"name": "ada"}}


def text(value: Any) -> Any:
    return {"content": [{"type": "text", "text": value if isinstance(value, str) else json.dumps(value)}]}


def ask(id: Any, method: str = "elicitation/create", params: Any = None) -> Any:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": FORM if params is None else params}


class Asks(Old):
    """A server of the old era whose tool asks `questions`, all at once, and answers with what it was told."""

    def __init__(self, *questions: Any, tools: Any = None, **more: Any) -> None:
        super().__init__(**more)
        self.questions = list(questions) or [ask("q")]
        self.tools = tools or [{"name": "echo", "inputSchema": {"type": "object"}}]
        self.told: dict[Any, Any] = {}
        self.came = asyncio.Event()
        self.holds: asyncio.Event | None = None
        self.cancelled: list[Any] = []
        self.calls = 0

    def __call__(self, asked: Asked) -> Any:
        if asked.http == "POST" and not asked.method:
            self.told[asked.id] = asked.body.get("result", asked.body.get("error"))
            self.came.set()
            return answer(202)
        if asked.method == "notifications/cancelled":
            self.cancelled.append(asked.body["params"])
        if asked.method == "tools/list":
            return result(asked, {"tools": self.tools})
        if asked.method == "tools/call":
            self.calls += 1
            return self.run(asked)
        return super().__call__(asked)

    def run(self, asked: Asked) -> Any:
        yield STREAM + b"".join(chunk(events(question)) for question in self.questions)
        yield self.wait()
        done = {"jsonrpc": "2.0", "id": asked.id, "result": text(self.told)}
        yield chunk(events(done)) + chunk(b"")

    async def wait(self) -> None:
        while len(self.told) < len(self.questions):
            self.came.clear()
            await self.came.wait()
        if self.holds is not None:
            await self.holds.wait()


@asynccontextmanager
async def bridged(script: Callable[[Asked], Any], **more: Any) -> AsyncIterator[tuple[Gateway, Any]]:
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}, **more) as running:
        await running.stateless().ask("tools/list")
        yield running, server


def needed(told: Answer) -> Any:
    """The result that asks for input."""
    assert told.status == 200
    assert told.message["result"]["resultType"] == "input_required", told.message
    return told.message["result"]


async def retry(agent: Any, asked: Any, responses: Any, name: str = "echo", **more: Any) -> Answer:
    params = {"name": name, "arguments": {}, "inputResponses": responses, "requestState": asked["requestState"]}
    told: Answer = await agent.ask("tools/call", params | {"_meta": DECLARED} | more)
    return told


# ---- a stateless agent on a server with sessions
async def test_a_question_suspends_the_call_and_its_answer_resumes_it() -> None:
    script = Asks()
    async with bridged(script) as (running, server):
        agent = running.stateless(who="ada")
        asked = needed(await agent.call("echo", _meta=DECLARED))
        (question,) = asked["inputRequests"].values()
        assert question == {"method": "elicitation/create", "params": FORM}
        assert len(asked["requestState"]) < 800
        assert len(running.bridge) == 1
        told = await retry(agent, asked, dict.fromkeys(asked["inputRequests"], ADA))
        assert json.loads(told.text) == {"q": ADA}
        assert told.message["result"]["resultType"] == "complete"
        assert script.calls == 1
        assert len(running.bridge) == 0
        opening = server.calls("initialize")[-1].body["params"]["capabilities"]
        assert opening == {"roots": {}, "sampling": {}, "elicitation": {"form": {}, "url": {}}}


async def test_two_questions_at_once_are_one_round() -> None:
    script = Asks(ask(1), ask(2, "roots/list", {}), ask(3, "sampling/createMessage", {"messages": [], "maxTokens": 1}))
    async with bridged(script) as (running, _):
        agent = running.stateless()
        asked = needed(await agent.call("echo", _meta=DECLARED))
        methods = [question["method"] for question in asked["inputRequests"].values()]
        assert methods == ["elicitation/create", "roots/list", "sampling/createMessage"]
        one, two, three = asked["inputRequests"]
        again = needed(await retry(agent, asked, {one: ADA, "nobody-asked": ADA}))
        assert list(again["inputRequests"]) == [two, three]
        assert again["requestState"] != asked["requestState"]
        told = await retry(agent, again, {one: {"action": "cancel"}, two: {"roots": []}, three: {"role": "x"}})
        assert json.loads(told.text) == {"1": ADA, "2": {"roots": []}, "3": {"role": "x"}}


async def test_a_second_round() -> None:
    class Twice(Asks):
        def run(self, asked: Asked) -> Any:
            for n in (1, 2):
                yield (STREAM if n == 1 else b"") + chunk(events(ask(n)))
                self.questions = list(range(n))
                yield self.wait()
            yield chunk(events({"jsonrpc": "2.0", "id": asked.id, "result": text(self.told)})) + chunk(b"")

    async with bridged(Twice()) as (running, _):
        agent = running.stateless()
        first = needed(await agent.call("echo", _meta=DECLARED))
        second = needed(await retry(agent, first, dict.fromkeys(first["inputRequests"], ADA)))
        assert not set(first["inputRequests"]) & set(second["inputRequests"])
        stale = await retry(agent, first, dict.fromkeys(first["inputRequests"], ADA))
        assert stale.error == (400, -32602)
        told = await retry(agent, second, dict.fromkeys(second["inputRequests"], ADA))
        assert json.loads(told.text) == {"1": ADA, "2": ADA}


async def test_a_state_is_for_its_caller_and_its_request() -> None:
    tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ("echo", "other")]
    async with bridged(Asks(tools=tools)) as (running, _):
        agent = running.stateless(who="ada")
        asked = needed(await agent.call("echo", _meta=DECLARED))
        state = asked["requestState"]
        responses = dict.fromkeys(asked["inputRequests"], ADA)
        flipped = state[:40] + ("A" if state[40] != "A" else "B") + state[41:]
        refused = [
            await retry(running.stateless(who="bob"), asked, responses),
            await retry(agent, asked, responses, name="other"),
            await retry(agent, asked, responses, arguments={"x": 1}),
            await retry(running.stateless(path="/mcp/u", who="ada"), asked, responses),
            await retry(agent, {"requestState": flipped}, responses),
            await retry(agent, {"requestState": "s1." + state[3:]}, responses),
            await retry(agent, {"requestState": 7}, responses),
            await retry(agent, {"requestState": ""}, responses),
        ]
        bodies = [json.dumps(one.message["error"]) for one in refused]
        assert {one.status for one in refused} == {400}
        assert len(set(bodies)) == 1
        assert (await retry(agent, asked, [])).error == (400, -32602)
        assert (await retry(agent, asked, {"x": "y"})).error == (400, -32602)
        assert (await retry(agent, asked, responses)).message["result"]["resultType"] == "complete"
        assert (await retry(agent, asked, responses)).error == (400, -32602)


async def test_spacing_and_order_of_arguments_make_no_difference() -> None:
    async with bridged(Asks()) as (running, _):
        agent = running.stateless()
        asked = needed(await agent.call("echo", {"a": 1, "b": [2]}, _meta=DECLARED))
        responses = dict.fromkeys(asked["inputRequests"], ADA)
        told = await retry(agent, asked, responses, arguments={"b": [2], "a": 1})
        assert told.message["result"]["resultType"] == "complete"


async def test_two_retries_at_once() -> None:
    async with bridged(Asks()) as (running, _):
        agent = running.stateless()
        asked = needed(await agent.call("echo", _meta=DECLARED))
        responses = dict.fromkeys(asked["inputRequests"], ADA)
        told = await asyncio.gather(*(retry(agent, asked, responses) for _ in range(2)))
        assert sorted(one.status for one in told) == [200, 400]


async def test_an_agent_that_never_comes_back() -> None:
    script = Asks()
    async with bridged(script, bridging={"timeout": 0.2}) as (running, _):
        agent = running.stateless()
        asked = needed(await agent.call("echo", _meta=DECLARED))
        await until(lambda: script.cancelled)
        assert script.told == {"q": {"action": "cancel"}}
        assert len(running.bridge) == 0
        late = await retry(agent, asked, dict.fromkeys(asked["inputRequests"], ADA))
        assert late.error == (200, -32603)
        assert late.message["error"]["data"]["reason"] in ("input_timeout", "call_lost")
        await until(lambda: all(not session.active for session in running.servers.all[0].sessions))


async def test_what_was_lost_is_asked_again_only_where_that_does_no_harm() -> None:
    class Dies(Asks):
        def run(self, asked: Asked) -> Any:
            if self.calls == 1:
                return [STREAM, chunk(events(ask("q"))), asyncio.sleep(0.1), b"broken"]
            return super().run(asked)

    hint = {"annotations": {"readOnlyHint": True}}
    for tool, calls in (({}, 1), (hint, 2)):
        script = Dies(tools=[{"name": "echo", "inputSchema": {"type": "object"}, **tool}])
        async with bridged(script) as (running, _):
            agent = running.stateless()
            asked = needed(await agent.call("echo", _meta=DECLARED))
            await asyncio.sleep(0.3)
            told = await retry(agent, asked, dict.fromkeys(asked["inputRequests"], ADA))
            if tool:  # the question that is asked again is answered with what is known
                assert json.loads(told.text) == {"q": ADA}
            else:
                assert told.message["error"]["data"] == {"reason": "call_lost", "executed": "unknown"}
            assert script.calls == calls
            assert len(running.bridge) == 0


async def test_a_retry_that_is_given_up_cancels_the_call() -> None:
    class Slow(Asks):
        async def wait(self) -> None:
            await super().wait()
            await asyncio.sleep(60)

    script = Slow()
    async with bridged(script) as (running, _):
        agent = running.stateless()
        asked = needed(await agent.call("echo", _meta=DECLARED))
        params = {"name": "echo", "arguments": {}, "requestState": asked["requestState"], "_meta": DECLARED}
        params["inputResponses"] = dict.fromkeys(asked["inputRequests"], ADA)
        stream = await agent.start("tools/call", params)
        await until(lambda: script.told)
        await stream.close()
        await until(lambda: script.cancelled)
        await until(lambda: not len(running.bridge))


async def test_progress_and_logs_while_it_waits() -> None:
    class Talks(Asks):
        def run(self, asked: Asked) -> Any:
            token = asked.body["params"]["_meta"]["progressToken"]

            def progress(n: int) -> bytes:
                params = {"progressToken": token, "progress": n}
                return chunk(events({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}))

            log = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}
            yield STREAM + progress(1) + chunk(events(ask("q")))
            yield asyncio.sleep(0.1)
            yield progress(2) + progress(3) + chunk(events(log)) * 100
            yield self.wait()
            yield progress(4) + progress(4) + progress(2)
            yield chunk(events({"jsonrpc": "2.0", "id": asked.id, "result": text("done")})) + chunk(b"")

    async with bridged(Talks()) as (running, _):
        agent = running.stateless()
        meta = DECLARED | {"progressToken": "a", "io.modelcontextprotocol/logLevel": "info"}
        first = await agent.call("echo", _meta=meta)
        assert [one.get("method") for one in first.messages] == ["notifications/progress", None]
        asked = needed(first)
        await asyncio.sleep(0.2)
        told = await retry(agent, asked, dict.fromkeys(asked["inputRequests"], ADA), _meta=meta | {"progressToken": 7})
        methods = [one.get("method") for one in told.messages]
        assert methods.count("notifications/message") == 64
        steps = [one["params"] for one in told.messages if one.get("method") == "notifications/progress"]
        assert steps == [{"progressToken": 7, "progress": 3}, {"progressToken": 7, "progress": 4}]
        assert told.text == "done"


async def test_who_cannot_be_asked_is_not_asked() -> None:
    script = Asks()
    async with bridged(script) as (running, server):
        agent = running.stateless()
        only = {"io.modelcontextprotocol/clientCapabilities": {"roots": {}}}
        told = await agent.call("echo", _meta=only)
        assert json.loads(told.text)["q"]["code"] == -32601
        script.told.clear()
        assert json.loads((await agent.call("echo")).text)["q"]["code"] == -32601
        seen = [one.body["params"]["capabilities"] for one in server.calls("initialize")]
        assert {"roots": {}} in seen
        assert len(running.bridge) == 0


async def test_held_calls_are_bounded() -> None:
    script = Asks()
    async with bridged(script, bridging={"limit_each": 1}) as (running, _):
        agent = running.stateless()
        needed(await agent.call("echo", _meta=DECLARED))
        told = await agent.call("echo", _meta=DECLARED)
        assert json.loads(told.text) == {"q": {"action": "cancel"}}
        assert len(running.bridge) == 1


async def test_eras_that_are_not_bridged() -> None:
    async with bridged(Asks(), bridged=False) as (running, _):
        told = await running.stateless().call("echo", _meta=DECLARED)
        assert told.message["error"]["code"] == -32021
        assert told.message["error"]["data"] == {"requiredCapabilities": {"elicitation": {"form": {}}}}
    async with bridged(Stateless(), bridged=False) as (running, _):
        told = await (await running.agent(CAPABILITIES)).call("echo")
        assert told.error == (200, -32603)


async def test_limits_take_a_retry_for_the_same_call() -> None:
    rounds: list[int] = []

    async def policy(call: Any, next: Any) -> Any:
        rounds.append(call.round)
        return await next(call)

    async with bridged(Asks(), policies=[policy]) as (running, _):
        agent = running.stateless()
        asked = needed(await agent.call("echo", _meta=DECLARED))
        await retry(agent, asked, dict.fromkeys(asked["inputRequests"], ADA))
        assert rounds == [0, 1]


async def test_a_retry_that_is_refused_leaves_the_call_waiting() -> None:
    allowed = [True]

    async def policy(call: Any, next: Any) -> Any:
        if not allowed[0]:
            raise Failure(403, Reason.AUTHORIZATION, "not now")
        return await next(call)

    async with bridged(Asks(), policies=[policy]) as (running, _):
        agent = running.stateless()
        asked = needed(await agent.call("echo", _meta=DECLARED))
        responses = dict.fromkeys(asked["inputRequests"], ADA)
        allowed[0] = False
        assert (await retry(agent, asked, responses)).message["error"]["message"] == "not now"
        allowed[0] = True
        assert (await retry(agent, asked, responses)).message["result"]["resultType"] == "complete"


async def test_a_child_process_that_asks() -> None:
    async with gateway({"c": child()}) as running:
        agent = running.stateless()
        arguments = {"method": "elicitation/create", "params": FORM}
        asked = needed(await agent.call("ask", arguments, _meta=DECLARED))
        told = await retry(agent, asked, dict.fromkeys(asked["inputRequests"], ADA), name="ask", arguments=arguments)
        assert json.loads(told.text) == ADA


class Elsewhere(Asks):
    """It asks on its GET stream, while the call waits for an answer in JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.streams: list[asyncio.Event] = []
        self.get = self.listen

    def listen(self, asked: Asked) -> Any:
        asking = asyncio.Event()
        self.streams.append(asking)
        yield STREAM
        while True:
            yield asking.wait()
            asking.clear()
            yield chunk(events(ask("q")))

    def run(self, asked: Asked) -> Any:
        if self.calls == 2:  # that only opens the session and its stream
            self.told["q"] = None
        else:
            self.streams[-1].set()
        yield self.wait()
        yield result(asked, text(self.told))


async def test_a_question_outside_of_the_calls_stream() -> None:
    script = Elsewhere()
    async with bridged(script) as (running, _):
        agent = running.stateless()
        assert json.loads((await agent.call("echo")).text)["q"]["code"] == -32601
        script.told.clear()
        open_before = len(script.streams)
        await agent.call("echo", _meta=DECLARED)
        await until(lambda: len(script.streams) > open_before)
        script.told.clear()
        asked = needed(await agent.call("echo", _meta=DECLARED))
        assert json.loads((await retry(agent, asked, dict.fromkeys(asked["inputRequests"], ADA))).text) == {"q": ADA}
        script.told.clear()
        stream = await agent.start("tools/call", {"name": "echo", "arguments": {}, "_meta": DECLARED})
        await stream.head()  # it is asked, and never comes back
        await stream.close()
        script.told["q"] = "by itself"
        script.came.set()
        await until(lambda: all(not session.active for session in running.servers.all[0].sessions))


# ---- stateless servers
class Stateless:
    """A server of the new era whose tool needs `rounds` rounds of input; the state counts them."""

    def __init__(self, rounds: int = 1, requests: Any = None, *, state: bool = True, streams: bool = False) -> None:
        self.rounds = rounds
        self.requests = requests if requests is not None else {"who": {"method": "elicitation/create", "params": FORM}}
        self.state = state
        self.streams = streams
        self.seen: list[Any] = []
        self.tools = [{"name": "echo", "inputSchema": {"type": "object"}}]

    def __call__(self, asked: Asked) -> Any:
        if asked.http != "POST":
            return answer(405)
        if asked.method == "server/discover":
            value = {"supportedVersions": [NEW], "capabilities": {"tools": {}}, "resultType": "complete"}
            return result(asked, value)
        if asked.method == "tools/list":
            return result(asked, {"tools": self.tools, "resultType": "complete", "ttlMs": 60000})
        if asked.method == "tools/call":
            params = asked.body["params"]
            self.seen.append(params)
            done = int(params.get("requestState", 0)) if self.state else len(self.seen) - 1
            value: Any = {"resultType": "complete", **text(params.get("inputResponses"))}
            if done < self.rounds:
                value = {"resultType": "input_required", "inputRequests": self.requests}
                if not self.requests:
                    del value["inputRequests"]
                if self.state:
                    value["requestState"] = str(done + 1)
            if self.streams:
                log = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}
                final = {"jsonrpc": "2.0", "id": asked.id, "result": value}
                return [STREAM, chunk(events(log)), asyncio.sleep(0.05), chunk(events(final)), chunk(b"")]
            return result(asked, value)
        return answer(400, b"what is that?")


async def answered(agent: Any, stream: Any, *responses: Any) -> list[Any]:
    """Every message of the answer; questions are answered in turn."""
    await stream.head()
    seen = []
    left = list(responses)
    while (message := await stream.next()) is not None:
        seen.append(message)
        if "method" in message and "id" in message and left:
            assert (await agent.answer(message["id"], left.pop(0))).status == 202
    await stream.close()
    return seen


@pytest.mark.parametrize("streams", [False, True])
async def test_an_agent_with_a_session_on_a_stateless_server(streams: bool) -> None:
    script = Stateless(2, streams=streams)
    async with bridged(script) as (running, _):
        agent = await running.agent(CAPABILITIES)
        stream = await agent.start("tools/call", {"name": "echo", "arguments": {"x": 1}})
        seen = await answered(agent, stream, ADA, {"action": "decline"})
        questions = [one for one in seen if "id" in one and "method" in one]
        assert [(one["method"], one["params"]) for one in questions] == [("elicitation/create", FORM)] * 2
        assert len({one["id"] for one in questions}) == 2
        last = seen[-1]["result"]
        assert json.loads(last["content"][0]["text"]) == {"who": {"action": "decline"}}
        assert "resultType" not in last
        kept = [{k: v for k, v in one.items() if k != "_meta"} for one in script.seen]
        assert kept == [
            {"name": "echo", "arguments": {"x": 1}},
            {"name": "echo", "arguments": {"x": 1}, "inputResponses": {"who": ADA}, "requestState": "1"},
            {
                "name": "echo",
                "arguments": {"x": 1},
                "inputResponses": {"who": {"action": "decline"}},
                "requestState": "2",
            },
        ]
        declared = script.seen[0]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
        assert declared == {"roots": {}, "sampling": {}, "elicitation": {"form": {}, "url": {}}}


async def test_ten_rounds_pass_and_eleven_fail() -> None:
    for rounds, passes in ((10, True), (11, False)):
        async with bridged(Stateless(rounds)) as (running, _):
            agent = await running.agent(CAPABILITIES)
            stream = await agent.start("tools/call", {"name": "echo", "arguments": {}})
            last = (await answered(agent, stream, *[ADA] * 11))[-1]
            assert ("result" in last) == passes
            if not passes:
                assert last["error"]["code"] == -32603


async def test_rounds_without_questions_back_off() -> None:
    script = Stateless(3, {})
    async with bridged(script) as (running, _):
        agent = await running.agent(CAPABILITIES)
        began = asyncio.get_running_loop().time()
        told = await agent.call("echo")
        assert told.text == "null"
        assert asyncio.get_running_loop().time() - began > 0.14
        assert len(script.seen) == 4


async def test_questions_that_an_old_agent_cannot_be_asked() -> None:
    url = {"who": {"method": "elicitation/create", "params": {"mode": "url", "message": "m", "url": "https://secret"}}}
    for requests, capabilities, revision in (
        ({"r": {"method": "roots/list"}}, {"elicitation": {}}, "2025-11-25"),
        (url, {"elicitation": {"url": {}}}, "2025-06-18"),
        ({"x": {"method": "tools/call"}}, CAPABILITIES, "2025-11-25"),
    ):
        async with bridged(Stateless(1, requests)) as (running, _):
            told = await (await running.agent(capabilities, revision=revision)).call("echo")
            assert told.error == (200, -32603)
            assert "secret" not in told.body.decode()


async def test_a_url_is_asked_with_an_id_and_told_complete() -> None:
    url = {"who": {"method": "elicitation/create", "params": {"mode": "url", "message": "m", "url": "https://x.test"}}}
    async with bridged(Stateless(2, url)) as (running, _):
        agent = await running.agent(CAPABILITIES)
        stream = await agent.start("tools/call", {"name": "echo", "arguments": {}})
        seen = await answered(agent, stream, {"action": "accept"}, {"action": "accept"})
        ids = {one["params"]["elicitationId"] for one in seen if one.get("method") == "elicitation/create"}
        done = [one["params"] for one in seen if one.get("method") == "notifications/elicitation/complete"]
        assert done == [{"elicitationId": ids.pop()}]
        assert not ids


async def test_the_agent_answers_with_an_error_or_not_at_all() -> None:
    async with bridged(Stateless(), bridging={"timeout": 0.2}) as (running, _):
        agent = await running.agent(CAPABILITIES)
        stream = await agent.start("tools/call", {"name": "echo", "arguments": {}})
        await stream.head()
        question = await stream.next()
        error = {"jsonrpc": "2.0", "id": question["id"], "error": {"code": -1, "message": "no"}}
        assert (await running.send(error, agent.headers)).status == 202
        assert (await stream.next())["error"]["code"] == -32603
        assert await stream.next() is None
        await stream.close()
        stream = await agent.start("tools/call", {"name": "echo", "arguments": {}})
        await stream.head()
        await stream.next()
        assert (await stream.next())["error"]["data"]["reason"] == "input_timeout"
        await stream.close()


async def test_an_agent_that_leaves_between_rounds() -> None:
    script = Stateless()
    async with bridged(script) as (running, _):
        agent = await running.agent(CAPABILITIES)
        stream = await agent.start("tools/call", {"name": "echo", "arguments": {}})
        await stream.head()
        question = await stream.next()
        await agent.tell("notifications/cancelled", {"requestId": agent.ids})
        assert await stream.next() is None
        await stream.close()
        await agent.answer(question["id"], ADA)
        await asyncio.sleep(0.05)
        assert len(script.seen) == 1


# ---- stateless agents on stateless servers
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("state", [False, True])
async def test_a_stateless_server_for_a_stateless_agent(state: bool, streams: bool) -> None:
    script = Stateless(1, state=state, streams=streams)
    async with bridged(script) as (running, _):
        agent = running.stateless(who="ada")
        asked = needed(await agent.call("echo", _meta=DECLARED))
        assert asked["inputRequests"] == {"who": {"method": "elicitation/create", "params": FORM}}
        assert asked["requestState"].startswith("r1.")
        told = await retry(agent, asked, {"who": ADA})
        assert json.loads(told.text) == {"who": ADA}
        assert script.seen[1].get("requestState") == ("1" if state else None)
        assert script.seen[1]["inputResponses"] == {"who": ADA}
        for other in (running.stateless(who="bob"), running.stateless("/mcp/u", who="ada")):
            assert (await retry(other, asked, {"who": ADA})).error == (400, -32602)
        assert len(running.bridge) == 0


async def test_a_stateless_server_asks_only_what_was_declared() -> None:
    async with bridged(Stateless()) as (running, _):
        told = await running.stateless().call("echo")
        assert told.error == (400, -32021)
        assert told.message["error"]["data"] == {"requiredCapabilities": {"elicitation": {"form": {}}}}
        only = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {"url": {}}}}
        assert (await running.stateless().call("echo", _meta=only)).error == (400, -32021)


async def test_answers_without_a_state_pass() -> None:
    script = Stateless(0)
    async with bridged(script) as (running, _):
        told = await running.stateless().call("echo", inputResponses={"who": ADA}, _meta=DECLARED)
        assert json.loads(told.text) == {"who": ADA}


# ---- a server of 2025-11-25 that sends its user to a URL first
class NeedsUrl(Old):
    def __init__(self) -> None:
        super().__init__()
        self.done = False
        self.seen = 0

    def __call__(self, asked: Asked) -> Any:
        if asked.method == "tools/call":
            self.seen += 1
            if not self.done:
                self.done = True
                wanted = {"mode": "url", "elicitationId": "e-1", "url": "https://x.test/auth", "message": "sign in"}
                error = {"code": -32042, "message": "sign in first", "data": {"elicitations": [wanted]}}
                return answer(200, {"jsonrpc": "2.0", "id": asked.id, "error": error})
        return super().__call__(asked)


async def test_a_url_to_open_first() -> None:
    script = NeedsUrl()
    async with bridged(script) as (running, _):
        old = await running.agent(CAPABILITIES)
        assert (await old.call("echo")).error == (200, -32042)
        script.done = False
        agent = running.stateless()
        asked = needed(await agent.call("echo", _meta=DECLARED))
        (question,) = asked["inputRequests"].values()
        assert question["params"] == {"mode": "url", "url": "https://x.test/auth", "message": "sign in"}
        declined = await retry(agent, asked, {key: {"action": "decline"} for key in asked["inputRequests"]})
        assert declined.message["error"]["code"] == -32603
        done = jsonrpc.notification("notifications/elicitation/complete", b'{"elicitationId":"e-1"}')
        accepted = {key: {"action": "accept"} for key in asked["inputRequests"]}
        before = script.seen
        waiting = asyncio.ensure_future(retry(agent, asked, accepted))
        await asyncio.sleep(0.1)
        assert script.seen == before
        next(iter(running.servers.all[0].sessions)).hear(done, jsonrpc.decode(done))
        assert (await waiting).text == "ok"
        script.done = False  # complete before the agent comes back
        asked = needed(await agent.call("echo", _meta=DECLARED))
        next(iter(running.servers.all[0].sessions)).hear(done, jsonrpc.decode(done))
        assert (await retry(agent, asked, accepted)).text == "ok"
        script.done = False
        assert (await agent.call("echo")).error == (400, -32021)
        assert not running.servers.all[0]._elicited


# ---- nothing is left
async def test_no_garbage_is_made() -> None:
    ours = ("tollhouse.endpoints", "tollhouse.backends", "tollhouse.wire", "tollhouse.core")
    held, rounds = Asks(), Stateless(2)
    async with bridged(held) as (one, _), bridged(rounds) as (other, _):
        stateless, session = one.stateless(), await other.agent(CAPABILITIES)
        await session.ask("tools/list")

        async def everything() -> None:
            held.told.clear()
            asked = needed(await stateless.call("echo", _meta=DECLARED))
            await retry(stateless, asked, dict.fromkeys(asked["inputRequests"], ADA))
            stream = await session.start("tools/call", {"name": "echo", "arguments": {}})
            await answered(session, stream, ADA, ADA)
            asked = needed(await other.stateless().call("echo", _meta=DECLARED))
            await retry(other.stateless(), asked, {"who": ADA})

        await everything()
        await asyncio.sleep(0.1)
        with collected() as found:
            await everything()
            await asyncio.sleep(0.1)
        assert not {type(thing).__qualname__ for thing in found if type(thing).__module__.startswith(ours)}


@pytest.mark.parametrize("over", ["http", "stdio"])
async def test_the_time_of_the_agent_is_not_the_servers(over: str) -> None:
    """A server's timeout counts while the server works, and `input_timeout` while the agent is waited for."""
    script = Asks()
    script.holds = asyncio.Event()
    patience, away = (0.6, 1.0) if over == "http" else (2.0, 2.5)
    async with upstream(script) as server:
        spec = HttpServerSpec(url=server.url, timeout=patience) if over == "http" else child(timeout=patience)
        name = "echo" if over == "http" else "ask"
        arguments = {} if over == "http" else {"method": "elicitation/create", "params": FORM}
        async with gateway({"u": spec}, bridging={"timeout": 5.0}) as running:
            agent = running.stateless()
            await agent.ask("tools/list")
            for late in (False, True) if over == "http" else (False,):
                asked = needed(await agent.call(name, arguments, _meta=DECLARED))
                await asyncio.sleep(away)
                if not late:
                    script.holds.set()
                answers = dict.fromkeys(asked["inputRequests"], ADA)
                told = await retry(agent, asked, answers, name, arguments=arguments)
                if late:
                    assert told.message["error"]["data"]["reason"] == "Timeout"
                else:
                    assert "ada" in told.text
                script.told.clear()
                script.holds.clear()
