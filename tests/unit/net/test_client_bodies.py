"""Bodies that are pushed upstream, back-pressure both ways, early answers, tunnels."""

import asyncio
from time import monotonic

import pytest
from tests.unit.net.upstreams import Collector, Peer, ask, client, upstream

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Sink
from tollhouse.net.client import Exchange, Pool, Until

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
UPGRADE = b"GET / HTTP/1.1\r\nhost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"


class Body:
    """A Source that a test drives by hand."""

    def __init__(self, *pieces: bytes, end: bool = False) -> None:
        self.pieces = pieces
        self.end = end
        self.sink: Sink | None = None
        self.paused = asyncio.Event()
        self.resumed = asyncio.Event()
        self.closed = False

    def start(self, sink: Sink) -> None:
        self.sink = sink
        for piece in self.pieces:
            sink.send(piece)
        if self.end:
            sink.end()

    def pause(self) -> None:
        self.resumed.clear()
        self.paused.set()

    def resume(self) -> None:
        self.paused.clear()
        self.resumed.set()

    def close(self) -> None:
        self.closed = True

    async def started(self) -> Sink:
        async with asyncio.timeout(5):
            while self.sink is None:
                await asyncio.sleep(0)
        return self.sink


def push(pool: Pool, body: Body, length: int | None, **options: float) -> "asyncio.Task[Exchange]":
    framing = b"transfer-encoding: chunked" if length is None else b"Content-Length: %d" % length
    return asyncio.create_task(
        pool.exchange(
            b"POST / HTTP/1.1\r\nhost: a\r\n%b\r\n\r\n" % framing,
            body,
            method=b"POST",
            until=Until.WHOLE,
            deadline=monotonic() + options.get("total", 10.0),
            first_byte=options.get("first_byte", 10.0),
            idle=options.get("idle", 10.0),
            chunked=length is None,
        )
    )


async def test_a_pushed_body_in_both_framings() -> None:
    got = []

    async def play(peer: Peer) -> None:
        _, body = await peer.request()
        got.append(body)
        await peer.send(OK)
        await peer.request()
        got.append(await peer.chunks())
        await peer.send(OK)

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        assert (await push(pool, Body(b"he", b"", b"llo", end=True), 5)).take() == b"hi"
        body = Body(b"he", b"")
        call = push(pool, body, None)
        sink = await body.started()
        await asyncio.sleep(0.01)
        sink.send(b"llo")
        sink.end()
        assert (await call).take() == b"hi"
        assert got == [b"hello", b"hello"]
        assert up.connections == 1
        assert not body.closed


async def test_bytes_can_be_chunked() -> None:
    got = []

    async def play(peer: Peer) -> None:
        for _ in range(2):
            await peer.request()
            got.append(await peer.chunks())
            await peer.send(OK)

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        for body in (b"hello", b""):
            await pool.exchange(
                b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
                body,
                method=b"POST",
                until=Until.WHOLE,
                deadline=monotonic() + 5,
                first_byte=5.0,
                idle=5.0,
                chunked=True,
            )
        assert got == [b"hello", b""]


@pytest.mark.parametrize(("pieces", "message"), [((b"hello!",), "longer"), ((b"hell",), "shorter")])
async def test_a_body_of_another_length_than_announced(pieces: tuple[bytes, ...], message: str) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        with pytest.raises(Failure, match=message):
            await push(pool, Body(*pieces, end=True), 5)
        assert pool.open == 0
        await up.until_left(1)


async def test_a_body_that_fails_fails_the_exchange_with_its_failure() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()

    async with upstream(play) as up, client() as c:
        body = Body(b"he")
        call = push(c.pool(up.origin()), body, 5)
        gone = Failure(499, Reason.CLIENT_GONE, "gone")
        (await body.started()).end(gone)
        with pytest.raises(Failure) as raised:
            await call
        assert raised.value is gone
        await up.until_left(1)


async def test_a_body_that_cannot_start_costs_the_connection_only() -> None:
    class Broken(Body):
        def start(self, sink: Sink) -> None:
            raise Failure(499, Reason.CLIENT_GONE, "gone")

    async def play(peer: Peer) -> None:
        await peer.request()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        body = Broken()
        with pytest.raises(Failure, match="gone"):
            await push(pool, body, 5)
        assert pool.open == 0
        assert body.closed


async def test_an_early_answer_is_delivered_and_ends_the_connection() -> None:
    async def play(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
        await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        body = Body(b"x" * 1000)
        exchange = await push(pool, body, 1 << 30)
        assert (exchange.status, exchange.take()) == (413, b"large")
        assert body.closed
        assert pool.open == 0
        assert body.sink is not None
        body.sink.send(b"late")
        body.sink.end()
        await up.until_left(1)


async def test_an_early_answer_to_bytes_that_are_not_sent_yet() -> None:
    async def play(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
        await done.wait()

    done = asyncio.Event()
    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        exchange = await ask(pool, b"x" * (30 << 20), method=b"POST")
        assert (exchange.status, exchange.take()) == (413, b"large")
        assert pool.open == 0
        done.set()


async def test_an_answer_may_begin_before_the_body_ends() -> None:
    """Both directions flow at once, and the connection is kept."""

    async def play(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            piece = await peer.reader.readexactly(3)
            await peer.send(b"3\r\n%b\r\n" % piece)
        await peer.send(b"0\r\n\r\n")
        await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        body = Body()
        call = asyncio.create_task(
            pool.exchange(
                b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n",
                body,
                method=b"POST",
                until=Until.HEAD,
                deadline=monotonic() + 10,
                first_byte=5.0,
                idle=5.0,
            )
        )
        exchange = await call
        sink = Collector()
        exchange.start(sink)
        up_sink = await body.started()
        for i, piece in enumerate((b"abc", b"def", b"ghi")):
            up_sink.send(piece)
            if i == 2:
                up_sink.end()
            await sink.until(3 * i + 3)
        assert await sink.wait() is None
        assert sink.data == b"abcdefghi"
        assert pool.idle == 1


async def test_an_upstream_that_does_not_read_pauses_the_body() -> None:
    read = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await read.wait()
        await peer.reader.readexactly(total)
        await peer.send(OK)

    total = 40 << 20
    piece = b"x" * 65536
    async with upstream(play) as up, client() as c:
        body = Body()
        call = push(c.pool(up.origin()), body, total)
        sink = await body.started()
        sent = 0
        while not body.paused.is_set():
            sink.send(piece)
            sent += len(piece)
            await asyncio.sleep(0)
        assert sent < total
        read.set()
        while sent < total:
            if body.paused.is_set():
                async with asyncio.timeout(5):
                    await body.resumed.wait()
            sink.send(piece)
            sent += len(piece)
        sink.end()
        assert (await call).status == 200


async def test_an_upstream_that_never_reads_is_a_504_and_a_slow_client_is_not() -> None:
    async def play(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await hold.wait()

    hold = asyncio.Event()
    async with upstream(play) as up, client() as c:
        body = Body()
        call = push(c.pool(up.origin()), body, 1 << 30, idle=0.1)
        sink = await body.started()
        while not call.done():
            if not body.paused.is_set():
                sink.send(b"x" * 65536)
            await asyncio.sleep(0.001)
        with pytest.raises(Failure) as raised:
            await call
        assert raised.value.status == 504
        assert "did not take" in raised.value.message
        body = Body(b"he")
        call = push(c.pool(up.origin()), body, 5, idle=0.1, first_byte=0.1)
        await asyncio.sleep(0.3)  # the client is slow: that is not the upstream's fault
        assert not call.done()
        sink = await body.started()
        sink.send(b"llo")
        sink.end()
        with pytest.raises(Failure) as raised:
            await call
        assert "did not answer" in raised.value.message
        hold.set()


async def test_a_slow_reader_holds_the_upstream_back() -> None:
    sent = 0

    async def play(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        for _ in range(total // 65536):
            await peer.send(b"x" * 65536)
            sent += 65536
        await peer.closed()

    total = 64 << 20
    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        # nobody reads: a bounded number of bytes is held
        exchange = await ask(pool, until=Until.HEAD, idle=0.3)
        await stands_still(lambda: sent)
        assert sent < total
        assert len(pool._links.copy().pop()._pieces) < 20
        await asyncio.sleep(0.4)  # and the upstream's silence is ours

        class Slow(Collector):
            def send(self, data: bytes) -> None:
                if len(self.pieces) == 3:
                    exchange.pause()
                super().send(data)

        sink = Slow()
        exchange.start(sink)
        before = await stands_still(lambda: len(sink.pieces))
        assert before < 10
        await asyncio.sleep(0.4)
        assert not sink.ends
        exchange.resume()
        assert await sink.wait() is None
        assert len(sink.data) == total
        assert pool.idle == 1


async def stands_still(value: object) -> int:
    """The value once it has not changed for a while."""
    async with asyncio.timeout(10):
        last = -1
        while last != (now := value()):  # type: ignore[operator]
            last = now
            await asyncio.sleep(0.15)
        return last


async def test_paused_at_the_end_the_connection_reads_again() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(OK)

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        exchange = await ask(pool, until=Until.HEAD)
        link = pool._idle[0]
        assert not link.paused
        assert exchange.complete
        exchange.pause()
        assert (await ask(pool)).take() == b"hi"


async def test_read_goes_on_where_a_full_buffer_stopped() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1_000_000)

    async with upstream(play) as up, client() as c:
        exchange = await ask(c.pool(up.origin()), until=Until.HEAD)
        await asyncio.sleep(0.05)
        assert len(exchange.take()) < 1_000_000
        rest = await exchange.read(1 << 20)
        assert rest.strip(b"x") == b""


# ---- tunnels


async def tunnel(pool: Pool, idle: float = 10.0) -> Exchange:
    return await pool.exchange(
        UPGRADE,
        b"",
        method=b"GET",
        until=Until.WHOLE,
        deadline=monotonic() + 10,
        first_byte=5.0,
        idle=idle,
    )


async def test_a_tunnel_carries_bytes_both_ways_and_what_came_with_the_head() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCHED + b"left")
        while data := await peer.reader.read(100):
            await peer.send(data.upper())

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        exchange = await tunnel(pool)
        assert exchange.status == 101
        assert exchange.headers.get(b"upgrade") == b"websocket"
        sink = Collector()
        exchange.start(sink)
        assert sink.data == b"left"
        exchange.send(b"HTTP/1.1 bytes\r\n\r\n")
        await sink.until(22)
        assert sink.data == b"leftHTTP/1.1 BYTES\r\n\r\n"
        exchange.end()  # half closed: what is on its way still comes
        assert await sink.wait() is None
        assert pool.open == 0


async def test_a_tunnel_that_is_cut_or_silent_ends_with_a_failure() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCHED)
        if peer.number:
            peer.writer.transport.set_write_buffer_limits(0)
            peer.cut()
        else:
            await peer.closed()

    async with upstream(play) as up, client() as c:
        exchange = await tunnel(c.pool(up.origin()), idle=0.1)
        sink = Collector()
        exchange.start(sink)
        failure = await sink.wait()
        assert failure is not None
        assert failure.status == 504
        exchange.send(b"late")
        exchange.end()
        exchange.close()


async def test_a_closed_tunnel_is_cut() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCHED)
        await peer.closed()

    async with upstream(play) as up, client() as c:
        exchange = await tunnel(c.pool(up.origin()))
        sink = Collector()
        exchange.start(sink)
        exchange.close()
        await up.until_left(1)
        assert not sink.ends


async def test_a_tunnel_pauses_its_feeder_and_is_cut_when_it_has_none() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(SWITCHED)
        await hold.wait()
        await peer.closed()

    hold = asyncio.Event()
    async with upstream(play) as up, client() as c:
        exchange = await tunnel(c.pool(up.origin()))
        sink = Collector()
        exchange.start(sink)
        feeder = Body()
        exchange.feed(feeder)
        while not feeder.paused.is_set():
            exchange.send(b"x" * 65536)
            await asyncio.sleep(0)
        hold.set()
        async with asyncio.timeout(5):
            await feeder.resumed.wait()
        exchange.close()
        hold.clear()
        exchange = await tunnel(c.pool(up.origin()))
        sink = Collector()
        exchange.start(sink)
        for _ in range(1000):
            if sink.ends:
                break
            exchange.send(b"x" * 65536)
            await asyncio.sleep(0)
        failure = await sink.wait()
        assert failure is not None
        assert "tunnel" in failure.message
        hold.set()


async def test_a_refused_upgrade_is_an_answer() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\nno")

    async with upstream(play) as up, client() as c:
        exchange = await tunnel(c.pool(up.origin()))
        assert (exchange.status, exchange.take()) == (403, b"no")
