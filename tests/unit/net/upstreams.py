"""Upstreams that behave as a test says, and a client to speak to them. Real sockets on loopback."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic

from tests.fixtures.gone import hung_up

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.net.client import Client, Exchange, Origin, Pool, Until
from tollhouse.net.timer import Timer

Play = Callable[["Peer"], Awaitable[None]]


class Peer:
    """One connection as the upstream sees it. number: of the connection, from 0."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number

    async def request(self) -> tuple[bytes, bytes]:
        """The next request's head and body (by content-length)."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        return head, await self.reader.readexactly(length)

    async def chunks(self) -> bytes:
        """A chunked body."""
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)
        return body

    async def send(self, data: bytes) -> None:
        if self.writer.transport.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        await self.writer.drain()

    async def closed(self) -> None:
        """Wait until the other side has left."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def cut(self) -> None:
        self.writer.transport.abort()


class Upstream:
    """heads: of all requests read. connections: made to it. left: connections that ended."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.left = 0
        self.errors: list[Exception] = []

    def url(self, path: str = "/", scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def origin(self) -> Origin:
        return Origin.of(self.url())[0]

    async def until_left(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.left < count:
                await asyncio.sleep(0.002)


@asynccontextmanager
async def upstream(
    play: Play, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Upstream]:
    it = Upstream()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        number = it.connections
        it.connections += 1
        try:
            await play(Peer(reader, writer, number))
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001  # the root of this connection's task; the test fails with it
            if not hung_up(error):
                it.errors.append(error)
        finally:
            it.left += 1
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, host, 0, ssl=tls, limit=1 << 20)
    it.port = server.sockets[0].getsockname()[1]
    try:
        yield it
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        while tasks:
            await asyncio.sleep(0.001)
    assert not it.errors, it.errors


@asynccontextmanager
async def client(period: float = 0.16, **options: object) -> AsyncIterator[Client]:
    """A client whose clock turns every `period` / 16 seconds."""
    clock = Clock(period)
    timer = Timer(clock)
    timer.start()
    it = Client(clock, **options)  # type: ignore[arg-type]
    try:
        yield it
    finally:
        await it.close()
        timer.stop()


def stand_still(clock: Clock) -> None:
    """From now on no time passes by `clock`, so that what must happen soon is soon on a slow machine, too."""
    clock._source = partial(getattr, clock, "now")


async def ask(
    pool: Pool,
    body: bytes = b"",
    *,
    method: bytes = b"GET",
    until: Until = Until.WHOLE,
    total: float = 10.0,
    first_byte: float = 10.0,
    idle: float = 10.0,
    extra: bytes = b"",
    **options: object,
) -> Exchange:
    length = b"content-length: %d\r\n" % len(body) if body or method == b"POST" else b""
    head = b"%b /x HTTP/1.1\r\nhost: a\r\n%b%b\r\n" % (method, extra, length)
    return await pool.exchange(
        head,
        body,
        method=method,
        until=until,
        deadline=monotonic() + total,
        first_byte=first_byte,
        idle=idle,
        **options,  # type: ignore[arg-type]
    )


class Collector:
    """A Sink that keeps what it got."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended = asyncio.get_running_loop().create_future()
        self.ends = 0

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    def send(self, data: bytes) -> None:
        assert not self.ends
        self.pieces.append(data)

    def end(self, failure: Failure | None = None) -> None:
        self.ends += 1
        self.ended.set_result(failure)

    async def wait(self) -> Failure | None:
        async with asyncio.timeout(5):
            result: Failure | None = await self.ended
            return result

    async def until(self, size: int) -> None:
        async with asyncio.timeout(5):
            while len(self.data) < size:
                await asyncio.sleep(0.002)
