"""What servers say outside of calls comes to agents as the guards that serve now have left it, and in its order."""

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest

from tollhouse.core.errors import Failure
from tollhouse.endpoints.mcp.listen import Listener
from tollhouse.endpoints.mcp.outside import Guards, Room, Waiting
from tollhouse.wire import jsonrpc

pytestmark = pytest.mark.anyio


class Guard:
    """Says A for a, and refuses what has an x. late: is asked about what has a w, and says when."""

    def __init__(self) -> None:
        self.late: dict[bytes, asyncio.Future[bytes | None]] = {}

    def instructions(self, text: str) -> str:
        return text

    def heard(self, message: bytes, method: str) -> bytes | Coroutine[Any, Any, bytes | None] | None:
        if b"w" in message:
            return self._asked(message)
        return None if b"x" in message else message.replace(b"a://", b"A://") if b"a://" in message else message

    def told(self, message: bytes, method: str) -> bytes | Coroutine[Any, Any, bytes]:
        if b"w" in message:
            return self._answered(message)
        return message.replace(b"b", b"B")

    async def _asked(self, message: bytes) -> bytes | None:
        return await self.late.setdefault(message, asyncio.get_running_loop().create_future())

    async def _answered(self, message: bytes) -> bytes:
        return await self._asked(message) or b""

    def failed(self, failure: Failure) -> Failure:
        return failure


class Agent:
    """takes: whether it can be told."""

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.takes = True
        self.uris: list[str] = []
        self.lost = 0
        self.answered: list[bytes] = []
        self.waiting = Waiting(guards.room, self._lose)

    def _lose(self) -> None:
        self.lost += 1

    def take(self, message: jsonrpc.Message, answer: Any) -> bool:
        if not self.takes:
            return False
        self.uris.append(json.loads(bytes(message.params))["uri"])
        self.answer = answer
        return True

    def hear(self, data: bytes, server: str = "s", endpoint: str = "/mcp") -> bool:
        message = jsonrpc.decode(data)
        return self.guards.hear(endpoint, server, data, message, self.answered.append, self.take, self.waiting)


def updated(uri: str) -> bytes:
    return jsonrpc.notification("notifications/resources/updated", json.dumps({"uri": uri}).encode())


def asked(uri: str) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": "elicitation/create", "params": {"uri": uri}}).encode()


def guarded(most: int = 1 << 30) -> tuple[Guard, Guards]:
    guard, guards = Guard(), Guards()
    guards.room = Room(most)
    guards.serve({"/mcp": {"s": guard}})
    return guard, guards


def test_whose_guards_look() -> None:
    guards = Guards()
    agent = Agent(guards)
    assert not guards.look
    assert agent.hear(updated("a://1"))
    guards.serve({"/mcp": {"s": Guard()}})
    assert guards.look
    assert agent.hear(asked("a://1"))
    agent.answer(b"abc")
    assert agent.answered == [b"aBc"]
    assert not agent.hear(updated("x://1"))
    for endpoint, server in (("/mcp", "t"), ("/mcp/s", "s")):
        assert agent.hear(asked("a://2"), server, endpoint)
        agent.answer(b"abc")
    assert agent.answered == [b"aBc", b"abc", b"abc"]
    guards.serve({})
    assert agent.hear(updated("x://1"))
    assert agent.uris == ["a://1", "A://1", "a://2", "a://2", "x://1"]


async def test_what_follows_waits_for_who_has_to_be_asked() -> None:
    guard, guards = guarded()
    agent = Agent(guards)
    said = [updated(uri) for uri in ("w://1", "a://2", "w://3", "x://4", "w://5", "a://6")]
    assert [agent.hear(one) for one in said] == [True] * 6
    held = guards.room.held
    assert held > sum(map(len, said))
    await asyncio.sleep(0)
    guard.late[said[2]].set_result(None)  # refused
    guard.late[said[4]].set_result(updated("w://five"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert agent.uris == []
    guard.late[said[0]].set_result(said[0])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert agent.uris == ["w://1", "A://2", "w://five", "A://6"]
    assert guards.room.held == 0
    assert agent.hear(updated("a://7"))  # nothing waits any more
    assert agent.uris[-1] == "A://7"


@pytest.mark.parametrize("why", ["refused", "nobody"])
async def test_a_question_that_no_agent_gets_is_answered(why: str) -> None:
    guard, guards = guarded()
    agent = Agent(guards)
    data = asked("w://1")
    assert agent.hear(data)
    await asyncio.sleep(0)
    agent.takes = why != "nobody"
    guard.late[data].set_result(None if why == "refused" else data)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    [answer] = agent.answered
    assert json.loads(answer)["id"] == 7
    assert ("a guardrail" if why == "refused" else "nobody") in json.loads(answer)["error"]["message"]


async def test_an_answer_waits_for_who_has_to_be_asked() -> None:
    guard, guards = guarded(1 << 20)
    agent = Agent(guards)
    assert agent.hear(asked("a://1"))
    response = json.dumps({"jsonrpc": "2.0", "id": 7, "result": {"w": 1}}).encode()
    agent.answer(response)
    await asyncio.sleep(0)
    assert not agent.answered
    held = guards.room.held
    assert held > len(response)
    guards.room.held += 1 << 20
    agent.answer(response)
    assert "could not be looked at" in json.loads(agent.answered.pop())["error"]["message"]
    guard.late[response].set_result(b"masked")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert agent.answered == [b"masked"]
    assert guards.room.held == 1 << 20


async def test_what_waits_is_bounded() -> None:
    guard, guards = guarded(100_000)
    agent, other = Agent(guards), Agent(guards)
    said = [agent.hear(updated(f"w://{n}")) for n in range(100)]
    assert 0 < said.count(True) < 64
    assert 100_000 <= guards.room.held < 110_000
    assert not said[-1]
    assert agent.lost == said.count(False)
    assert not other.hear(updated("w://1"))  # of all agents together
    agent.waiting.close()
    assert guards.room.held == 0
    assert other.hear(updated("a://1"))
    many = Agent(Guards())
    many.guards.serve({"/mcp": {"s": guard}})
    assert [many.hear(updated(f"w://{n}")) for n in range(66)] == [True] * 64 + [False] * 2
    many.waiting.close()


async def test_a_guard_that_fails_otherwise_than_it_may_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    guard, guards = guarded()
    agent = Agent(guards)
    data, response = updated("w://1"), json.dumps({"jsonrpc": "2.0", "id": 7, "result": {"w": 1}}).encode()
    agent.hear(data)
    agent.hear(asked("a://2"))
    await asyncio.sleep(0)
    guard.late[data].set_exception(KeyError("k"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert agent.uris == ["A://2"]
    agent.answer(response)
    await asyncio.sleep(0)
    guard.late[response].set_exception(KeyError("k"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert json.loads(agent.answered[0])["error"]["message"] == "the answer could not be looked at"
    assert caplog.text.count("guards failed") == 2


async def test_nothing_is_heard_after_the_end() -> None:
    guard, guards = guarded()
    agent = Agent(guards)
    data = updated("w://1")
    agent.hear(data)
    await asyncio.sleep(0)
    agent.waiting.close()
    await asyncio.sleep(0)
    assert guard.late[data].cancelled()
    assert (agent.uris, guards.room.held) == ([], 0)


@pytest.mark.parametrize(("uri", "heard"), [("A://1/b", ["A://1/b"]), ("A://1/x", [])])
def test_of_resources_that_a_stateless_agent_hears_of(uri: str, heard: list[str]) -> None:
    _, guards = guarded()
    listener = Listener({}, wrap=False, outside=guards, endpoint="/mcp")
    listener.uris.add("A://1")
    told: list[bytes] = []
    listener.open(told.append)
    data = updated(uri)
    assert listener.deliver("s", data, jsonrpc.decode(data), lambda data: None)
    assert [json.loads(one)["params"]["uri"] for one in told] == heard
