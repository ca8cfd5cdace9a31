"""A server is asked several times within one call: each time with a token that is good then, and past no guard.

The server checks each request; the tokens live a second of a time that the tests move, while somebody waits.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from time import time
from typing import Any, NamedTuple

import pytest
from tests.fixtures.mcp_gateway import Gateway, gateway, sessions, until
from tests.fixtures.mcp_raw import CUT, STREAM, Asked, answer, chunk, events, result, upstream
from tests.unit.endpoints.mcp import test_alternates, test_resume
from tests.unit.endpoints.mcp.test_bridge import (
    ADA,
    CAPABILITIES,
    DECLARED,
    Asks,
    NeedsUrl,
    Stateless,
    answered,
    needed,
    retry,
    text,
)  # fmt: skip
from tests.unit.endpoints.mcp.test_handover import answers, workers
from tests.unit.endpoints.mcp.test_tasks_between import Node
from tests.unit.policies.floor import layer, parts

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.upstream import Upstream
from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler, compose
from tollhouse.core.identity import Minted, Target
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp import handover as its
from tollhouse.policies.alternate import Alternate
from tollhouse.policies.exchange import Exchange, exchange
from tollhouse.policies.exchange_spec import ExchangeSpec
from tollhouse.store.memory import MemoryState
from tollhouse.wire import jsonrpc

pytestmark = pytest.mark.anyio

TASKS = "io.modelcontextprotocol/tasks"


class Made(NamedTuple):
    token: bytes
    jti: str
    expires: float


class Issuer:
    """Makes tokens that live as long as the target says, by its own time. Also `Exchangers` that know no other."""

    version = 0
    identity = None

    def __init__(self) -> None:
        self.generation = object()
        self.now = time()
        self.made: list[str] = []

    def of(self, who: Any) -> "Issuer":
        return self

    def exchanged(self, principal: Principal, target: Target) -> Minted | Awaitable[Minted]:
        jti = f"{principal.id}-{len(self.made)}"
        self.made.append(jti)
        expires = self.now + target.ttl
        return Made(f"{jti}/{expires}".encode(), jti, expires)

    def good(self, field: str) -> str:
        """The id of the token in a field `authorization`, "" where it is not good."""
        scheme, _, token = field.partition(" ")
        jti, _, expires = token.partition("/")
        return jti if scheme == "Bearer" and jti in self.made and self.now < float(expires) else ""

    async def later(self) -> None:
        """Every token that was made is too old."""
        self.now += 2.0


class Checked:
    """The server that `script` is, which answers nobody without a token that is good. calls: the token of each call."""

    def __init__(self, script: Any, issuer: Issuer) -> None:
        self.script = script
        self.issuer = issuer
        self.calls: list[str] = []
        self.refused: list[str] = []

    def __call__(self, asked: Asked) -> Any:
        jti = self.issuer.good(asked.headers.get("authorization", ""))
        if not jti:
            self.refused.append(asked.method)
            return answer(401)
        if asked.method == "tools/call":
            self.calls.append(jti)
        return self.script(asked)


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


def policy(issuer: Issuer) -> Exchange:
    """The real one."""
    spec = ExchangeSpec.model_validate({"ttl": "1s", "reuse": "never"})
    made = exchange((layer(spec),), parts(entrance="mcp", upstream="https://u.example.com/mcp", exchangers=issuer))
    assert made is not None
    return made


def bearing(running: Gateway, made: Exchange) -> None:
    """What is asked beside calls has a token, too."""
    [reached] = running.servers.all
    assert isinstance(reached, Upstream)
    reached.bears = made.credential


@asynccontextmanager
async def checked(script: Any, issuer: Issuer, *innermost: Any, **more: Any) -> AsyncIterator[tuple[Gateway, Checked]]:
    """A gateway before a server that checks tokens, and that server."""
    made = policy(issuer)
    checks = Checked(script, issuer)
    async with upstream(checks) as server:
        chain = (made.handle, *innermost)
        async with gateway({"u": HttpServerSpec(url=server.url)}, innermost=chain, **more) as running:
            bearing(running, made)
            await running.stateless(who="ada").ask("tools/list")
            yield running, checks


async def asked_late(agent: Any, stream: Any, issuer: Issuer, *responses: Any) -> list[Any]:
    """Every message of an answer to an agent who takes his time to answer."""
    await stream.head()
    seen = []
    left = list(responses)
    while (message := await stream.next()) is not None:
        seen.append(message)
        if "method" in message and "id" in message and left:
            await issuer.later()
            assert (await agent.answer(message["id"], left.pop(0))).status == 202
    await stream.close()
    return seen


async def test_rounds_of_an_agent_that_takes_its_time(issuer: Issuer) -> None:
    async with checked(Stateless(2), issuer) as (running, checks):
        agent = await running.agent(CAPABILITIES, who="ada")
        stream = await agent.start("tools/call", {"name": "echo", "arguments": {}})
        last = (await asked_late(agent, stream, issuer, ADA, ADA))[-1]
    assert json.loads(last["result"]["content"][0]["text"]) == {"who": ADA}
    assert len(set(checks.calls)) == 3
    assert not checks.refused


async def test_rounds_of_an_alternate(issuer: Issuer) -> None:
    made = policy(issuer)
    checks = Checked(test_alternates.New(), issuer)
    alternates: dict[str, Alternate] = {}
    async with test_alternates.two(checks, alternates) as (running, _):
        second = next(each for each in running.servers.all if each.name == "two")
        assert isinstance(second, Upstream)
        second.bears = made.credential
        last: Handler[Any, Reply] = compose((made.handle,), second.handle)

        alternates["one"] = Alternate("two", "other", last, last=last, new=lambda: second.new)
        agent = await running.agent({"elicitation": {}}, who="ada")
        stream = await agent.start("tools/call", {"name": "one__tool", "arguments": {}})
        told = (await asked_late(agent, stream, issuer, test_alternates.ADA))[-1]
    assert told["result"]["content"][0]["text"] == "ada"
    assert len(set(checks.calls)) == 2
    assert not checks.refused


async def test_a_call_after_its_user_was_at_a_url(issuer: Issuer) -> None:
    script = NeedsUrl()
    async with checked(script, issuer) as (running, checks):
        agent = running.stateless(who="ada")
        asked = needed(await agent.call("echo", _meta=DECLARED))
        accepted = {key: {"action": "accept"} for key in asked["inputRequests"]}
        made = len(issuer.made)
        waiting = asyncio.ensure_future(retry(agent, asked, accepted))
        await until(lambda: len(issuer.made) > made)  # it waits for the server to say that the user is done
        await issuer.later()
        done = jsonrpc.notification("notifications/elicitation/complete", b'{"elicitationId":"e-1"}')
        next(iter(sessions(running))).hear(done, jsonrpc.decode(done))
        assert (await waiting).text == "ok"
    assert not checks.refused


async def test_a_call_that_is_lost_with_its_worker(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(its, "_ACK", 0.1)
    made = policy(issuer)
    hint = {"annotations": {"readOnlyHint": True}}
    script = Asks(tools=[{"name": "echo", "inputSchema": {"type": "object"}, **hint}])
    checks = Checked(script, issuer)
    async with workers(checks, innermost=(made.handle,)) as (one, other, bus):
        for running in (one, other):
            bearing(running, made)
            await running.stateless(who="ada").ask("tools/list")
        asked = needed(await one.stateless(who="ada").call("echo", _meta=DECLARED))
        checks.refused.clear()

        def drops(topic: str, message: bytes) -> bool:
            if topic == "mcp.h.one":  # the retry waits for a worker that is gone
                issuer.now += 2.0
            return topic == "mcp.h.one"

        bus.drops = drops
        await bus.values.remove("mcp.a.one")
        told = await retry(other.stateless(who="ada"), asked, answers(asked))
    assert json.loads(told.text) == {"q": ADA}
    assert script.calls == 2
    assert not checks.refused


class Lost(test_resume.Slow):
    """Breaks off its first answer, once it is told to."""

    def __init__(self, issuer: Issuer) -> None:
        super().__init__()
        self.issuer = issuer
        self.broken = False

    def __call__(self, asked: Asked) -> Any:
        if asked.method == "tools/list":
            tool = {"name": "slow", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}}
            return result(asked, {"tools": [tool]})
        return super().__call__(asked)

    def call(self, asked: Asked) -> Any:
        if self.broken:
            return [STREAM, chunk(test_resume.done(asked)), b"0\r\n\r\n"]
        self.broken = True
        return [STREAM, chunk(test_resume.progress(asked, 1)), self.go.wait(), self.issuer.later(), CUT]


async def test_a_call_whose_server_was_lost_under_its_stream(issuer: Issuer) -> None:
    script = Lost(issuer)
    async with checked(script, issuer) as (running, checks):
        agent = await running.agent(who="ada")
        stream = await agent.start("tools/call", test_resume.CALL)
        await stream.head()
        assert (await stream.next())["method"] == "notifications/progress"
        script.go.set()
        told = await stream.next()
        await stream.close()
    assert told["result"]["content"][0]["text"] == "done"
    assert len(set(checks.calls)) == 2
    assert not checks.refused


class Job(Stateless):
    """A stateless server whose tool runs only as a task, and takes its time between two looks at it."""

    def __init__(self, issuer: Issuer) -> None:
        super().__init__()
        self.issuer = issuer
        self.looks = 0

    def __call__(self, asked: Asked) -> Any:
        if asked.method == "server/discover":
            value = {"supportedVersions": ["2026-07-28"], "resultType": "complete"}
            return result(asked, {**value, "capabilities": {"tools": {}, "extensions": {TASKS: {}}}})
        if asked.method == "tools/call":
            can = asked.body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"]
            if TASKS not in can.get("extensions", {}):
                error = {"code": -32021, "message": "no", "data": {"requiredCapabilities": {"extensions": {TASKS: {}}}}}
                return [
                    self.issuer.later(),
                    answer(400, {"jsonrpc": "2.0", "id": asked.id, "error": error}),
                ]
            return [result(asked, self.task("working", resultType="task")), self.issuer.later()]
        if asked.method == "tasks/get":
            self.looks += 1
            done = {"content": [{"type": "text", "text": "done"}], "resultType": "complete"}
            task = self.task("working") if self.looks < 3 else self.task("completed", result=done)
            return [result(asked, {"resultType": "complete", **task}), self.issuer.later()]
        return super().__call__(asked)

    def task(self, status: str, **more: Any) -> Any:
        at = "2026-01-01T00:00:00Z"
        return {
            "taskId": "j", "status": status, "createdAt": at, "lastUpdatedAt": at, "ttlMs": 60000,
            "pollIntervalMs": 100, **more,
        }  # fmt: skip


async def test_a_tool_that_is_waited_for_as_a_task(issuer: Issuer) -> None:
    script = Job(issuer)
    async with checked(script, issuer) as (running, checks):
        agent = await running.agent(who="ada")
        told = await agent.call("echo")
    assert told.text == "done"
    assert script.looks == 3
    assert not checks.refused


async def test_a_task_that_is_asked_about_until_it_is_done(issuer: Issuer) -> None:
    script = Job(issuer)
    async with checked(script, issuer) as (running, checks):
        agent = await running.agent(who="ada")
        id = (await agent.call("echo", task={"ttl": 60000})).message["result"]["task"]["taskId"]
        assert (await agent.ask("tasks/result", {"taskId": id})).text == "done"
    assert script.looks == 3
    assert not checks.refused


class OldJob(Asks):
    """A server of 2025-11-25 whose tool can only be called as a task, and begins slowly."""

    def __init__(self, issuer: Issuer) -> None:
        tool = {"name": "echo", "inputSchema": {"type": "object"}, "execution": {"taskSupport": "required"}}
        super().__init__(tools=[tool])
        self.issuer = issuer

    def __call__(self, asked: Asked) -> Any:
        if asked.method == "tools/call":
            at = "2026-01-01T00:00:00Z"
            task = {"taskId": "j", "status": "working", "createdAt": at, "lastUpdatedAt": at, "ttl": 60000}
            return [self.issuer.later(), result(asked, {"task": task})]
        if asked.method == "tasks/result":
            return result(asked, {"content": [{"type": "text", "text": "done"}]})
        return super().__call__(asked)


async def test_a_tool_that_is_called_as_a_task_for_who_knows_none(issuer: Issuer) -> None:
    async with checked(OldJob(issuer), issuer) as (running, checks):
        assert (await running.stateless(who="ada").call("echo")).text == "done"
    assert not checks.refused


async def test_no_round_passes_the_guard(issuer: Issuer) -> None:
    """What was good in the first round may be in quarantine when its user has answered."""
    bad: list[str] = []

    async def guard(call: ToolCall, next: Handler[ToolCall, Reply]) -> Reply:
        if call.name in bad:
            raise Failure(403, Reason.GUARDRAIL, "the tool is in quarantine", code="tool_quarantined")
        return await next(call)

    async with checked(Stateless(), issuer, guard) as (running, checks):
        agent = await running.agent(CAPABILITIES, who="ada")
        stream = await agent.start("tools/call", {"name": "echo", "arguments": {}})
        await stream.head()
        question = await stream.next()
        bad.append("echo")
        await agent.answer(question["id"], ADA)
        assert (await stream.next())["error"]["data"] == {"reason": "tool_quarantined"}
        await stream.close()
    assert len(checks.calls) == 1


async def test_who_is_no_longer_known_goes_no_further(issuer: Issuer) -> None:
    async def refusing(principal: Principal, target: Target) -> Minted:
        raise Failure(401, Reason.JWT_AUTH, "the token that was sent was revoked", code="invalid_token")

    async with checked(Stateless(), issuer) as (running, checks):
        agent = await running.agent(CAPABILITIES, who="ada")
        stream = await agent.start("tools/call", {"name": "echo", "arguments": {}})
        await stream.head()
        question = await stream.next()
        issuer.exchanged = refusing  # type: ignore[method-assign]
        await agent.answer(question["id"], ADA)
        assert (await stream.next())["error"]["data"]["reason"] == "invalid_token"
        await stream.close()
        del issuer.exchanged
    assert len(checks.calls) == 1


async def test_a_round_without_tokens_is_as_it_was() -> None:
    async with upstream(Stateless()) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = await running.agent(CAPABILITIES)
        stream = await agent.start("tools/call", {"name": "echo", "arguments": {}})
        assert "result" in (await answered(agent, stream, ADA))[-1]
    assert not any("authorization" in asked.headers for asked in server.asked)


class Begun(OldJob):
    """A server of 2025-11-25 whose task is done at the second look. who: whom each request was for."""

    def __init__(self, issuer: Issuer) -> None:
        super().__init__(issuer)
        self.who: set[str] = set()
        self.looks = 0

    def __call__(self, asked: Asked) -> Any:
        self.who.add(self.issuer.good(asked.headers["authorization"]).rpartition("-")[0])
        if asked.method == "initialize":
            capabilities: dict[str, Any] = {"tools": {}, "tasks": {"requests": {"tools": {"call": {}}}}}
            value = {"protocolVersion": "2025-11-25", "capabilities": capabilities}
            return result(asked, {**value, "serverInfo": {"name": "j", "version": "1"}}, mcp_session_id="s-1")
        if asked.method == "tasks/get":
            self.looks += 1
            at, status = "2026-01-01T00:00:00Z", "working" if self.looks == 1 else "completed"
            return result(asked, {"taskId": "j", "status": status, "createdAt": at, "lastUpdatedAt": at, "ttl": 60000})
        return super().__call__(asked)


async def test_a_task_is_asked_about_at_another_worker_in_its_callers_name(issuer: Issuer) -> None:
    made = policy(issuer)
    script = Begun(issuer)
    checks = Checked(script, issuer)
    state = MemoryState(Clock(), (b"k" * 32,))
    meta: dict[str, Any] = {"_meta": {"io.modelcontextprotocol/clientCapabilities": {"extensions": {TASKS: {}}}}}
    async with upstream(checks) as server:
        specs: Any = {"u": HttpServerSpec(url=server.url)}
        async with (
            gateway(specs, innermost=(made.handle,), bridging={"state": Node(state, "b")}) as other,
            gateway(specs, innermost=(made.handle,), bridging={"state": Node(state, "a")}) as one,
        ):
            for running in (one, other):
                bearing(running, made)
            agent, same = one.stateless(who="ada"), other.stateless(who="ada")
            await agent.ask("tools/list")
            id = (await agent.call("echo", **meta)).message["result"]["taskId"]
            opened = len(server.calls("initialize"))
            for status in ("working", "completed"):
                await issuer.later()
                same.headers["mcp-name"] = id
                told = (await same.ask("tasks/get", {"taskId": id, **meta})).message["result"]
                assert told["status"] == status
            assert told["result"]["content"][0]["text"] == "done"
            assert len(server.calls("initialize")) == opened  # the first worker has asked, in its session
            one.bridge.tasks.old._callers.clear()  # as if it had been restarted
            await issuer.later()
            assert (await same.ask("tasks/get", {"taskId": id, **meta})).message["result"]["status"] == "completed"
            assert len(server.calls("initialize")) > opened
    assert script.who == {"ada"}
    assert not checks.refused


class Resumable(Asks):
    """A server whose answer to a call can be read on by GET, where it was left."""

    def __init__(self) -> None:
        super().__init__()
        self.get = self.read_on
        self.id: Any = None

    def run(self, asked: Asked) -> Any:
        self.id = asked.id
        said = b"id: e-1\n" + events(*self.questions)
        return [STREAM, chunk(said), self.never()]

    async def never(self) -> None:
        await asyncio.Event().wait()

    def read_on(self, asked: Asked) -> Any:
        if asked.headers.get("last-event-id") != "e-1":
            return answer(405)
        return self.rest()

    def rest(self) -> Any:
        yield STREAM
        yield self.wait()
        done = {"jsonrpc": "2.0", "id": self.id, "result": text(self.told)}
        yield chunk(b"id: e-2\n" + events(done)) + chunk(b"")


async def test_a_call_that_is_read_on_by_another_worker(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(its, "_ACK", 0.1)
    made = policy(issuer)
    script = Resumable()
    checks = Checked(script, issuer)
    async with workers(checks, innermost=(made.handle,)) as (one, other, bus):
        for running in (one, other):
            bearing(running, made)
            await running.stateless(who="ada").ask("tools/list")
        asked = needed(await one.stateless(who="ada").call("echo", _meta=DECLARED))
        checks.refused.clear()

        def drops(topic: str, message: bytes) -> bool:
            if topic == "mcp.h.one":
                issuer.now += 2.0
            return topic == "mcp.h.one"

        bus.drops = drops
        await bus.values.remove("mcp.a.one")
        told = await retry(other.stateless(who="ada"), asked, answers(asked))
        assert json.loads(told.text) == {"q": ADA}
        assert script.calls == 1
        assert not checks.refused
