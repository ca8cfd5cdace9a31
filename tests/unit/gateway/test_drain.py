"""Draining over real listeners: the steps in order, and what a further signal skips."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from tollhouse.core.clock import Clock
from tollhouse.core.http import Request, Response
from tollhouse.gateway.drain import Drain
from tollhouse.net.listen import Address, Listener, bind
from tollhouse.net.server import Server

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Served:
    """A listener whose answers wait for `gate`."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.asked = 0
        self.listener = Listener(Server(self.answer, Clock()), bind(Address("127.0.0.1", 0)))
        self.port = self.listener.port

    async def answer(self, request: Request) -> Response:
        self.asked += 1
        await self.gate.wait()
        return Response(200, [], b"done")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    served = Served()
    await served.listener.start()
    try:
        yield served
    finally:
        served.listener.stop()
        served.listener.server.abort()
        await served.listener.server.wait_closed()


async def until_asked(served: Served, count: int) -> None:
    async with asyncio.timeout(5):
        while served.asked < count:
            await asyncio.sleep(0.001)


async def test_what_runs_is_finished_and_what_is_idle_is_closed() -> None:
    async with serving() as served:
        finished = []
        drain = Drain([served.listener], 0.0, 30.0, lambda: finished.append(True))
        running = asyncio.ensure_future(drain.run())
        busy, idle = await served.connect(), await served.connect()
        busy[1].write(GET)
        await until_asked(served, 1)
        assert not drain.begun
        drain.begin()
        assert await idle[0].read() == b""
        assert finished == [True]
        assert all(sock.fileno() == -1 for sock in served.listener._sockets)
        with pytest.raises(ConnectionRefusedError):
            await served.connect()
        assert not running.done()
        served.gate.set()
        answer = await busy[0].read()
        assert b"connection: close" in answer
        assert answer.endswith(b"done")
        async with asyncio.timeout(5):
            await running
        for _, writer in (busy, idle):
            writer.close()


async def test_while_min_lasts_requests_are_taken() -> None:
    async with serving() as served:
        drain = Drain([served.listener], 30.0, 60.0)
        running = asyncio.ensure_future(drain.run())
        served.gate.set()
        drain.begin()
        await asyncio.sleep(0)
        reader, writer = await served.connect()
        writer.write(GET)
        assert b"connection: close" in await reader.read()
        drain.begin()  # and no longer than until somebody hurries
        async with asyncio.timeout(5):
            await running
        writer.close()


async def test_max_cuts_what_is_left() -> None:
    async with serving() as served:
        drain = Drain([served.listener], 0.0, 0.2)
        running = asyncio.ensure_future(drain.run())
        reader, writer = await served.connect()
        writer.write(GET)
        await until_asked(served, 1)
        began = monotonic()
        drain.begin()
        async with asyncio.timeout(5):
            await running
        assert monotonic() - began >= 0.15
        assert await reader.read() == b""
        writer.close()


async def test_what_is_cut_is_told_before() -> None:
    async with serving() as served:
        gone = asyncio.Event()

        def close_sessions() -> None:
            asyncio.get_running_loop().call_soon(said)

        def said() -> None:
            gone.set()
            served.gate.set()

        drain = Drain([served.listener], 0.0, 0.1, close_sessions=close_sessions)
        running = asyncio.ensure_future(drain.run())
        reader, writer = await served.connect()
        writer.write(GET)
        await until_asked(served, 1)
        drain.begin()
        async with asyncio.timeout(5):
            assert (await reader.read()).endswith(b"done")
            await running
        assert gone.is_set()
        writer.close()


async def test_a_signal_that_means_now_skips_min_and_the_next_one_cuts() -> None:
    async with serving() as served:
        drain = Drain([served.listener], 30.0, 60.0)
        running = asyncio.ensure_future(drain.run())
        reader, writer = await served.connect()
        writer.write(GET)
        await until_asked(served, 1)
        drain.begin(now=True)
        async with asyncio.timeout(5):
            while True:
                try:
                    (await served.connect())[1].close()
                except ConnectionRefusedError:
                    break
        assert not running.done()
        drain.begin(now=True)
        async with asyncio.timeout(5):
            await running
        assert await reader.read() == b""
        writer.close()


async def test_times_change_until_it_has_begun() -> None:
    async with serving() as served:
        drain = Drain([served.listener], 30.0, 60.0)
        drain.times(0.0, 0.1)
        running = asyncio.ensure_future(drain.run())
        reader, writer = await served.connect()
        writer.write(GET)
        await until_asked(served, 1)
        drain.begin()
        drain.times(30.0, 60.0)
        async with asyncio.timeout(5):
            await running
        assert await reader.read() == b""
        writer.close()
