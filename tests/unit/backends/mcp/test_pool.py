"""How sessions are opened and how they end: real sockets, real children."""

import asyncio
import gc
import weakref
from time import monotonic

import pytest
from tests.fixtures.mcp_gateway import child, gateway, until
from tests.fixtures.mcp_raw import Old, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.place import Place
from tollhouse.core.call import Context, ToolCall
from tollhouse.core.http import Headers, Request

pytestmark = pytest.mark.anyio


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


async def test_one_handshake_however_many_wait() -> None:
    async with upstream(Old()) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        agent = running.stateless()
        answers = await asyncio.gather(*(running.stateless().call("echo") for _ in range(20)), agent.ask("tools/list"))
        assert all("result" in answered.message for answered in answers)
        assert len(server.calls("initialize")) == 2  # the principal's, and the catalogue's


async def test_an_answer_that_there_is_no_room_to_read_is_not_taken_up() -> None:
    async with upstream(Old()) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        it = running.servers.all[0]
        much = [it.spawn(asyncio.sleep(600), cut=True) for _ in range(1024)]
        request = Request(b"POST", b"/mcp", Headers([]))
        call = ToolCall(request, Context(), server="u", method="tools/call", name="echo", params={})
        there = Place(it.mark, b"s-1", "2025-11-25", 0, 1, b"e-1")
        assert it.take_up(("principal", "ada", 0, 0), there, call, monotonic() + 60) is None
        for task in much:
            task.cancel()
        await until(lambda: it.idle)
