"""A server over time: lists that grow old, sessions that idle, configurations that change."""

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Gateway, child, gateway
from tests.fixtures.mcp_raw import TOOLS, Asked, Old, answer, result, upstream

from tollhouse.backends import mcp
from tollhouse.backends.mcp_http import HttpServerSpec
from tollhouse.backends.mcp_servers import fingerprint
from tollhouse.backends.mcp_stdio import StdioServerSpec
from tollhouse.net.client import OriginError

pytestmark = pytest.mark.anyio


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def names(answered: Any) -> list[str]:
    return [tool["name"] for tool in answered.message["result"]["tools"]]


class Flaky:
    """A list that can be made to fail or to hang."""

    def __init__(self) -> None:
        self.mode = "fine"
        self.tools = list(TOOLS)

    def __call__(self, asked: Asked) -> Any:
        if self.mode == "hangs":
            return None
        return answer(503, b"down") if self.mode == "down" else result(asked, {"tools": self.tools})


def grow_old(running: Gateway) -> None:
    for server in running.servers.all:
        for listing in server._listings.values():
            listing.until = 0.0


@pytest.mark.parametrize("mode", ["down", "hangs"])
async def test_an_old_list_is_better_than_none(mode: str) -> None:
    flaky = Flaky()
    async with (
        upstream(Old(tools_list=flaky)) as server,
        gateway({"u": HttpServerSpec(url=server.url, list_timeout=0.2)}) as running,
    ):
        agent = await running.agent()
        assert names(await agent.ask("tools/list")) == ["echo"]
        flaky.mode = mode
        grow_old(running)
        assert names(await agent.ask("tools/list")) == ["echo"]
        for known in running.servers.all:
            for listing in known._listings.values():
                listing.at -= mcp.STALE
        assert (await agent.ask("tools/list")).error == (200, -32603)


async def test_after_one_timeout_nobody_waits() -> None:
    flaky = Flaky()
    async with (
        upstream(Old(tools_list=flaky)) as server,
        gateway({"u": HttpServerSpec(url=server.url, list_timeout=0.3)}) as running,
    ):
        agent = await running.agent()
        await agent.ask("tools/list")
        flaky.mode = "hangs"
        grow_old(running)
        loop = asyncio.get_running_loop()
        await agent.ask("tools/list")
        began = loop.time()
        await agent.ask("tools/list")
        assert loop.time() - began < 0.2


@pytest.mark.parametrize("failure", ["open", "closed"])
async def test_failure(failure: Any) -> None:
    flaky = Flaky()
    flaky.mode = "down"
    async with upstream(Old(tools_list=flaky)) as bad, upstream(Old()) as good:
        specs = {"bad": HttpServerSpec(url=bad.url), "good": HttpServerSpec(url=good.url)}
        async with gateway(specs, failure=failure) as running:
            for agent in (await running.agent(), running.stateless()):
                answered = await agent.ask("tools/list")
                if failure == "closed":
                    assert answered.error == (200, -32603)
                    continue
                assert names(answered) == ["good__echo"]
                told = answered.message["result"]
                assert told["_meta"] == {"dev.tollhouse/unavailable": ["bad"]}
                assert told.get("ttlMs", 0) <= 2000


async def test_a_change_is_seen_at_once() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        before = names(await agent.ask("tools/list"))
        stream = await agent.listen()
        await agent.call("grow")
        assert (await stream.next())["method"] == "notifications/tools/list_changed"
        assert names(await agent.ask("tools/list")) == [*before, "grown"]
        await stream.close()


async def test_idle_sessions_are_closed() -> None:
    async with gateway({"c": child(idle_timeout=0.0)}) as running:
        await running.stateless().call("echo")
        server = running.servers.all[0]
        assert len(list(server.sessions)) == 1
        await asyncio.sleep(0.1)
        server.expire()
        assert not list(server.sessions)
        await until(lambda: server.idle)
        assert (await running.stateless().call("echo", {"message": "again"})).text == "again"


async def test_a_server_that_leaves_the_configuration_ends_when_its_calls_have_ended() -> None:
    async with gateway({"c": child()}) as running:
        agent = running.stateless()
        await agent.call("echo")
        server = running.servers.all[0]
        stream = await agent.start("tools/call", {"name": "never", "arguments": {}})
        await until(lambda: next(iter(server.sessions)).active == 1)
        running.servers.retain({})
        await asyncio.sleep(0.05)
        assert len(list(server.sessions)) == 1
        await stream.close()
        await until(lambda: server.idle)
        running.servers.retain({})
        assert running.servers.all == []


async def test_the_same_configuration_is_the_same_server() -> None:
    async with gateway({"c": child()}) as running:
        server = running.servers.all[0]
        assert running.servers.get("c", child()) is server
        running.servers.retain({"c": child()})
        assert running.servers.all == [server]
        assert running.servers.get("c", child(env={"A": "1"})) is not server


def test_fingerprints() -> None:
    class More(StdioServerSpec):
        limits: int = 0

    plain = StdioServerSpec(command="a")
    assert fingerprint(plain) == fingerprint(More(command="a", limits=7))
    assert fingerprint(plain) != fingerprint(StdioServerSpec(command="b"))
    assert fingerprint(plain) != fingerprint(HttpServerSpec(url="http://a"))
    keys = [HttpServerSpec.model_validate({"url": "http://a", "headers": {"x-key": key}}) for key in "abb"]
    assert fingerprint(keys[0]) != fingerprint(keys[1])  # another credential is another server
    assert fingerprint(keys[1]) == fingerprint(keys[2])


@pytest.mark.parametrize("wrong", [{"tls": {"ca": "garbage.pem"}}, {"proxy": "socks5://127.0.0.1:1"}])
async def test_a_server_that_cannot_be_reached_as_it_is_written(wrong: Any, tmp_path: Path) -> None:
    if "tls" in wrong:
        (tmp_path / "garbage.pem").write_text("garbage")
        wrong = {"tls": {"ca": str(tmp_path / "garbage.pem")}}
    spec = HttpServerSpec.model_validate({"url": "https://127.0.0.1:1/mcp", **wrong})
    async with gateway({}) as running:
        with pytest.raises(OriginError):
            running.servers.get("u", spec)
        assert running.servers.all == []


async def test_an_agent_keeps_no_session_that_has_ended() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent(who="ada")
        known = next(iter(running.sessions._open.values()))
        ended = []
        for _ in range(5):
            await agent.call("echo")
            ended += [weakref.ref(session) for session in running.servers.all[0].sessions]
            assert len(known._ends) == 1
            await agent.call("die")
            assert known._ends == {}
        await until(lambda: not running.servers.all[0]._tasks)
        gc.collect()
        assert [session for session in ended if session() is not None] == []


async def test_closing_while_a_session_opens() -> None:
    async with gateway({"c": child("deaf")}) as running:
        stream = await running.stateless().start("tools/call", {"name": "echo"})
        await until(lambda: running.servers.all[0]._opening)
        await running.servers.close()
        await stream.head()
        assert stream.status == 200
        await stream.close()
