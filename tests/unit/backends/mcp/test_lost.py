"""What a session is told of the lost one before it: real sockets, real children."""

import asyncio
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import child, gateway, sessions, until
from tests.fixtures.mcp_raw import Asked, Mortal, result, upstream

from tollhouse.backends.mcp.agent import Key
from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.lost import Lost, Memory, replay
from tollhouse.backends.mcp.work import Working
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire import jsonrpc

pytestmark = pytest.mark.anyio


async def test_a_new_session_is_told_what_the_lost_one_was() -> None:
    """Log level and subscriptions; and the agent looks again at what may have changed meanwhile."""
    asked: list[tuple[str, Any]] = []

    def note(asked_now: Asked) -> Any:
        asked.append((asked_now.headers["mcp-session-id"], asked_now.body["params"]))
        return result(asked_now, {})

    def initialize(now: Asked) -> Any:
        script.sessions += 1
        capabilities = {"tools": {}, "logging": {}, "resources": {"subscribe": True}}
        value = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": {"name": "x"}}
        return result(now, value, mcp_session_id=f"s-{script.sessions}")

    script = Mortal(initialize=initialize, resources_subscribe=note, logging_setLevel=note)
    recovered: list[str] = []
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        running.servers.all[0]._on_recovery = recovered.append
        agent = await running.agent()
        await agent.ask("logging/setLevel", {"level": "info"})
        await agent.ask("resources/subscribe", {"uri": "x:1"})
        await agent.ask("resources/subscribe", {"uri": "x:2"})
        ears = await agent.listen()
        script.restart()
        asked.clear()
        assert (await agent.call("echo")).text == "ok"
        told = [params for _, params in asked]
        assert told[0] == {"level": "info"}
        assert {params["uri"] for params in told[1:]} == {"x:1", "x:2"}
        assert len({id for id, _ in asked}) == 1
        heard = [await ears.next() for _ in range(3)]
        assert {note["params"]["uri"] for note in heard[:2]} == {"x:1", "x:2"}
        assert heard[2]["method"] == "notifications/message"
        assert heard[2]["params"]["level"] == "warning"
        assert recovered == ["expired"]
        await ears.close()


async def test_a_session_with_subscriptions_heals_by_itself() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent(who="ada")
        ears = await agent.listen()
        await agent.ask("resources/subscribe", {"uri": "x:1"})
        assert (await ears.next())["method"] == "notifications/resources/updated"
        first = sessions(running)[0]
        assert (await agent.call("die")).message["error"]["data"]["reason"] == "call_lost"
        heard = [await ears.next(), await ears.next()]  # ours, and what this server says at a subscription
        assert {note["params"]["uri"] for note in heard} == {"x:1"}
        assert sessions(running)[0] is not first
        await ears.close()


async def test_what_an_agent_wanted_ends_with_it() -> None:
    async with gateway({"c": child()}) as running:
        one, other = await running.agent(who="ada"), await running.agent(who="ada")
        for agent, uri in ((one, "x:1"), (one, "x:2"), (other, "x:2")):
            await agent.ask("resources/subscribe", {"uri": uri})
        session = sessions(running)[0]
        assert {uri: len(wanting) for uri, wanting in session.uris.items()} == {"x:1": 1, "x:2": 2}
        await one.end()
        await until(lambda: set(session.uris) == {"x:2"})
        await other.call("die")
        await until(lambda: sessions(running) and sessions(running)[0] is not session)
        assert set(sessions(running)[0].uris) == {"x:2"}
        server = running.servers.all[0]
        await other.call("die")
        await other.end()
        await until(lambda: not server._lost or not sessions(running))
        await until(lambda: all(not session.uris for session in sessions(running)))


@pytest.mark.parametrize("after", ["continue", "report"])
async def test_a_loss_is_reported_if_wanted(after: Any) -> None:
    async with gateway({"c": child(after_loss=after)}) as running:
        agent = await running.agent()
        await agent.call("echo", {"message": "a"})
        await agent.call("die")
        second = await agent.call("echo", {"message": "b"})
        if after == "report":
            assert second.message["result"]["isError"] is True
            assert "lost" in second.text
            second = await agent.call("echo", {"message": "b"})
        assert second.text == "b"


class Deaf:
    """A session that answers no subscription but one, which it loses."""

    def __init__(self) -> None:
        self.level = ""
        self.uris: dict[str, set[Any]] = {}
        self.event = b""
        self.waiting = 0

    def attach(self, agent: Any) -> None: ...

    async def ask(self, method: str, params: dict[str, Any], timeout: float) -> jsonrpc.Message:
        if params["uri"] == "x:2":
            raise Failure(502, Reason.UPSTREAM_FAILURE, "it is gone")
        self.waiting += 1
        try:
            await asyncio.sleep(600)
        finally:
            self.waiting -= 1
        raise AssertionError

    async def ensure_level(self, level: str) -> None: ...

    def tell(self, message: bytes) -> None: ...


async def test_nothing_runs_on_when_a_subscription_fails() -> None:
    memory, session = Memory(), Deaf()
    memory.uris = {f"x:{n}": {None} for n in range(8)}
    with pytest.raises(Failure, match="it is gone"):
        await replay(session, memory, "u", 1.0)
    assert session.waiting == 0


async def test_no_more_is_kept_than_may_be() -> None:
    opened: list[Key] = []

    async def reopen(key: Key) -> None:
        opened.append(key)
        lost.told(key, memory)

    owner = Working("u")
    lost = Lost(owner, 2, reopen)
    for n in range(4):
        lost.keep(("principal", str(n), 0, 0), Memory())
    assert len(lost) == 2
    assert lost.of(("principal", "1", 0, 0)) is None
    memory = Memory()
    memory.uris = {"x:1": {None}}
    lost.keep(("principal", "ada", 0, 0), memory)
    await until(lambda: opened == [("principal", "ada", 0, 0)] and not owner._tasks)
    lost.close()
    lost.keep(("principal", "ada", 0, 0), memory)
    assert not len(lost)


async def test_a_session_that_could_not_be_opened_again_for_want_of_room_is_opened_later() -> None:
    opened: list[Key] = []

    async def reopen(key: Key) -> None:
        opened.append(key)
        lost.told(key, lost.of(key) or Memory())

    owner = Working("u")
    lost = Lost(owner, 8, reopen)
    memory = Memory()
    memory.uris = {"x:1": {None}}
    key: Key = ("principal", "ada", 0, 0)
    for _ in range(1024):
        owner.spawn(asyncio.sleep(600), cut=True)
    lost.keep(key, memory)
    await owner.finish()
    assert not opened
    lost.keep(key, memory)
    await until(lambda: opened == [key])
