"""The HTTP/1.1 server over real sockets: order, framing, back-pressure, leaving clients, time, TLS, upgrade."""

import asyncio
import gc
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending, Request, Response, Sink
from tollhouse.net.head import Limits
from tollhouse.net.listen import Address, Listener, bind
from tollhouse.net.server import Server
from tollhouse.net.timer import Timer
from tollhouse.net.tls import CertificateError, ClientAuth, ServerTLS

pytestmark = pytest.mark.anyio

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def serving(
    handler: Handler[Request, Response], limits: Limits | None = None, tls: ServerTLS | None = None
) -> AsyncIterator[Listener]:
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    server = Server(handler, clock, limits, name="test", scheme="https" if tls else "http")
    listener = Listener(server, bind(Address("127.0.0.1", 0)), tls.context if tls else None)
    await listener.start()
    try:
        yield listener
    finally:
        listener.stop()
        server.abort()
        await server.wait_closed()
        timer.stop()


async def connect(listener: Listener) -> Streams:
    return await asyncio.open_connection("127.0.0.1", listener.port, limit=1 << 20)


async def answer(reader: asyncio.StreamReader, *, head: bool = False) -> tuple[int, dict[bytes, bytes], bytes]:
    async with asyncio.timeout(10):
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
        status = int(lines[0].split()[1])
        headers = {n.lower(): v for n, v in (line.split(b": ", 1) for line in lines[1:])}
        if head or status in (204, 304) or status < 200:
            return status, headers, b""
        if b"content-length" in headers:
            return status, headers, await reader.readexactly(int(headers[b"content-length"]))
        if headers.get(b"transfer-encoding") != b"chunked":
            return status, headers, await reader.read()
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readexactly(2) == b"\r\n"
        return status, headers, body


async def echo(request: Request) -> Response:
    body = await request.read(1 << 20)
    return Response(200, [(b"content-type", b"text/plain")], request.method + b" " + request.target + b" " + body)


def get(target: bytes = b"/", extra: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nhost: x\r\n%b\r\n" % (target, extra)


def post(body: bytes, extra: bytes = b"") -> bytes:
    return b"POST /p HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n%b" % (extra, len(body), body)


class Events:
    """A Source that a test drives by hand."""

    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.started = asyncio.Event()
        self.closed = asyncio.Event()
        self.paused = False

    def start(self, sink: Sink) -> None:
        self.sink = sink
        self.started.set()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.sink = None
        self.closed.set()

    def send(self, data: bytes) -> None:
        assert self.sink is not None
        self.sink.send(data)

    def end(self, failure: Failure | None = None) -> None:
        assert self.sink is not None
        sink, self.sink = self.sink, None
        sink.end(failure)


def streaming(source: Events, endings: list[Ending] | None = None, **more: object) -> Handler[Request, Response]:
    async def handler(request: Request) -> Response:
        ends = [endings.append] if endings is not None else []
        kind = [(b"content-type", b"text/event-stream")]
        return Response(200, kind, source=source, ends=ends, **more)  # type: ignore[arg-type]

    return handler


async def test_keep_alive_and_pipelined_requests_are_answered_in_order() -> None:
    async def slow_first(request: Request) -> Response:
        if request.target == b"/0":
            await asyncio.sleep(0.05)
        return await echo(request)

    async with serving(slow_first) as listener:
        reader, writer = await connect(listener)
        writer.write(b"".join(get(b"/%d" % i) for i in range(60)))
        for i in range(60):
            assert (await answer(reader))[2] == b"GET /%d " % i
        writer.write(post(b"later"))
        assert (await answer(reader))[2] == b"POST /p later"
        writer.close()


@pytest.mark.parametrize("size", [1, 2, 7])
async def test_a_request_may_come_in_pieces(size: int) -> None:
    async with serving(echo) as listener:
        reader, writer = await connect(listener)
        wire = post(b"hello", b"transfer-encoding: x\r\n".replace(b"transfer-encoding", b"x-a")) + get(b"/next")
        for i in range(0, len(wire), size):
            writer.write(wire[i : i + size])
            await asyncio.sleep(0)
        assert (await answer(reader))[2] == b"POST /p hello"
        assert (await answer(reader))[2] == b"GET /next "
        writer.close()


async def test_a_chunked_body_is_read_and_its_trailers_are_dropped() -> None:
    seen: list[bytes | None] = []

    async def handler(request: Request) -> Response:
        response = await echo(request)
        seen.append(request.header(b"x-trailer"))
        return response

    async with serving(handler) as listener:
        reader, writer = await connect(listener)
        writer.write(
            b"POST /p HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nx-trailer: no\r\n\r\n" + get(b"/next")
        )
        assert (await answer(reader))[2] == b"POST /p abcde"
        assert (await answer(reader))[2] == b"GET /next "
        assert seen == [None, None]
        writer.close()


async def test_endless_trailers_and_chunk_extensions_end_the_connection() -> None:
    async with serving(echo) as listener:
        for piece in (b"x-more: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", None):
            reader, writer = await connect(listener)
            head = b"POST /p HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            writer.write(head + (b"1\r\na\r\n0\r\n" if piece else b"1;e="))
            for _ in range(5_000):
                writer.write(piece or b"e" * 50)
            status, _, _ = await answer(reader)
            assert status == 400
            writer.close()


async def test_expect_100_continue_is_answered_only_when_the_body_is_wanted() -> None:
    async def handler(request: Request) -> Response:
        if request.target == b"/no":
            raise Failure(403, Reason.AUTHORIZATION, "no")
        return await echo(request)

    async with serving(handler) as listener:
        reader, writer = await connect(listener)
        head = b"POST %b HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
        writer.write(head % b"/yes")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await answer(reader))[2] == b"POST /yes hello"
        writer.write(head % b"/no")
        status, headers, _ = await answer(reader)
        assert status == 403
        assert headers[b"connection"] == b"close"
        assert await reader.read() == b""


async def test_head_gets_the_length_and_no_body() -> None:
    async with serving(echo) as listener:
        reader, writer = await connect(listener)
        writer.write(get(b"/h").replace(b"GET", b"HEAD") + get(b"/g"))
        status, headers, body = await answer(reader, head=True)
        assert (status, headers[b"content-length"], body) == (200, b"8", b"")
        assert (await answer(reader))[2] == b"GET /g "
        writer.close()


async def test_http_1_0_gets_no_chunks_and_the_connection_ends() -> None:
    source = Events()
    async with serving(streaming(source)) as listener:
        reader, writer = await connect(listener)
        writer.write(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        await source.started.wait()
        source.send(b"one")
        source.send(b"two")
        source.end()
        status, headers, body = await answer(reader)
        assert (status, body) == (200, b"onetwo")
        assert b"transfer-encoding" not in headers
        assert headers[b"connection"] == b"close"


async def test_a_stream_flows_as_it_comes_and_ends_settle_before_the_last_byte() -> None:
    source, endings = Events(), []  # type: ignore[var-annotated]
    async with serving(streaming(source, endings)) as listener:
        reader, writer = await connect(listener)
        writer.write(get())
        await source.started.wait()
        await reader.readuntil(b"\r\n\r\n")
        source.send(b"data: 1\n\n")
        assert await reader.readuntil(b"\n\n\r\n") == b"9\r\ndata: 1\n\n\r\n"
        assert endings == []
        source.end()
        assert [(e.status, e.bytes_out, e.gone) for e in endings] == [(200, 9, False)]
        assert await reader.readexactly(5) == b"0\r\n\r\n"
        writer.close()


async def test_a_stream_of_known_length_is_not_chunked_and_never_overruns() -> None:
    for sent, whole in ((b"12345", True), (b"123", False), (b"1234567", False)):
        source = Events()
        async with serving(streaming(source, length=5)) as listener:
            reader, writer = await connect(listener)
            writer.write(get())
            await source.started.wait()
            source.send(sent)
            if source.sink is not None:
                source.end()
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"content-length: 5" in head
            if whole:
                assert await reader.readexactly(5) == b"12345"
                writer.write(get())  # and the connection lives on
            else:
                with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                    assert len(await reader.readexactly(6)) < 6
            writer.close()


async def test_a_failing_stream_says_its_last_words_or_is_cut() -> None:
    for words, expected in (((lambda f: b"error: " + f.message.encode()), b"error: lost"), (None, None)):
        source, endings = Events(), []  # type: ignore[var-annotated]
        async with serving(streaming(source, endings, last_words=words)) as listener:
            reader, writer = await connect(listener)
            writer.write(get())
            await source.started.wait()
            source.send(b"part")
            source.end(Failure(502, Reason.UPSTREAM_FAILURE, "lost"))
            await reader.readuntil(b"\r\n\r\n")
            try:
                rest = await (reader.readuntil(b"\r\n0\r\n\r\n") if expected else reader.read())
            except ConnectionResetError:
                rest = b""
            if expected:
                assert expected in rest
                writer.write(b"GET / HTTP/9\r\n\r\n")
                assert b"400" in await reader.readline(), "framed to its end: the connection lives on"
            else:
                assert not rest.endswith(b"0\r\n\r\n")
            assert endings[0].failure.message == "lost"
            writer.close()


async def test_a_client_that_leaves_cancels_the_handler() -> None:
    cancelled, begun, endings = asyncio.Event(), asyncio.Event(), []  # type: ignore[var-annotated]

    async def handler(request: Request) -> Response:
        request.ends.append(endings.append)
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        raise AssertionError

    async with serving(handler) as listener:
        _, writer = await connect(listener)
        writer.write(get())
        await begun.wait()
        writer.transport.abort()
        await asyncio.wait_for(cancelled.wait(), 5)
        await asyncio.sleep(0)
        assert [e.gone for e in endings] == [True]


async def test_a_client_that_leaves_a_stream_closes_its_source() -> None:
    source, endings = Events(), []  # type: ignore[var-annotated]
    async with serving(streaming(source, endings)) as listener:
        _, writer = await connect(listener)
        writer.write(get())
        await source.started.wait()
        source.send(b"x")
        writer.transport.abort()
        await asyncio.wait_for(source.closed.wait(), 5)
        await asyncio.sleep(0)
        assert [e.gone for e in endings] == [True]


async def test_a_slow_reader_pauses_the_source() -> None:
    source = Events()
    async with serving(streaming(source)) as listener:
        reader, writer = await connect(listener)
        writer.write(get())
        await source.started.wait()
        sent = 0
        while not source.paused and sent < 200_000_000:
            source.send(b"x" * 65_536)
            sent += 65_536
            await asyncio.sleep(0)
        assert source.paused
        while source.paused:
            await reader.read(1 << 20)
        source.end()
        assert (await reader.read(1)) != b""
        writer.close()


async def test_a_request_body_is_streamed_with_back_pressure() -> None:
    class Body:
        size = 0
        failure: Failure | None = None

        def __init__(self) -> None:
            self.done = asyncio.Event()

        def send(self, data: bytes) -> None:
            self.size += len(data)

        def end(self, failure: Failure | None = None) -> None:
            self.failure = failure
            self.done.set()

    body = Body()
    held = asyncio.Event()

    async def handler(request: Request) -> Response:
        request.start(body)
        request.pause()
        await held.wait()
        request.resume()
        await body.done.wait()
        return Response(200, [], b"%d" % body.size)

    async with serving(handler) as listener:
        reader, writer = await connect(listener)
        total = 9_000_000
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % total)
        sending = asyncio.ensure_future(_send(writer, total))
        await asyncio.sleep(0.1)
        assert body.size < 1_000_000
        held.set()
        await sending
        assert (await answer(reader))[2] == b"%d" % total
        writer.close()


async def _send(writer: asyncio.StreamWriter, total: int) -> None:
    for _ in range(total // 90_000):
        writer.write(b"x" * 90_000)
        await writer.drain()


async def test_a_body_above_the_limit_is_413_with_or_without_a_length() -> None:
    async with serving(echo, Limits(body=1000)) as listener:
        for wire in (
            post(b"x" * 1001),
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n",
        ):
            reader, writer = await connect(listener)
            writer.write(wire)
            assert (await answer(reader))[0] == 413
            writer.close()

    async def bounded(request: Request) -> Response:
        return Response(200, [], await request.read(10))

    async with serving(bounded) as listener:
        reader, writer = await connect(listener)
        writer.write(post(b"x" * 11))
        assert (await answer(reader))[0] == 413


async def test_a_refusal_reaches_a_client_that_is_still_sending() -> None:
    async with serving(echo, Limits(body=1000)) as listener:
        reader, writer = await connect(listener)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 50000000\r\n\r\n")
        for _ in range(50):
            writer.write(b"x" * 100_000)
        assert (await answer(reader))[0] == 413
        assert await reader.read() == b""
        writer.close()


async def test_a_bug_is_a_500_without_a_traceback_and_the_connection_lives() -> None:
    async def handler(request: Request) -> Response:
        if request.target == b"/bug":
            raise RuntimeError("secret detail")
        return await echo(request)

    async with serving(handler) as listener:
        reader, writer = await connect(listener)
        writer.write(get(b"/bug") + get(b"/fine"))
        status, headers, body = await answer(reader)
        assert status == 500
        assert b"secret" not in body
        assert headers[b"x-tollhouse-reason"] == b"Internal"
        assert (await answer(reader))[2] == b"GET /fine "
        writer.close()


@pytest.mark.parametrize(
    ("wire", "status"),
    [(b"GET / HT", 408), (post(b"hello")[:-2], 408), (b"", None)],
    ids=["head", "body", "nothing"],
)
async def test_slow_clients_are_timed_out(wire: bytes, status: int | None) -> None:
    limits = Limits(head_timeout=0.2, body_timeout=0.2, idle_timeout=0.2)
    async with serving(echo, limits) as listener:
        reader, writer = await connect(listener)
        writer.write(wire)
        if status is None:
            assert await asyncio.wait_for(reader.read(), 5) == b""
        else:
            assert (await answer(reader))[0] == status
            assert await reader.read() == b""
        writer.close()


async def test_a_head_that_began_behind_an_answer_is_timed_out_too() -> None:
    async with serving(echo, Limits(head_timeout=0.2, idle_timeout=30.0)) as listener:
        reader, writer = await connect(listener)
        writer.write(get() + b"GET /slow")
        assert (await answer(reader))[0] == 200
        assert (await answer(reader))[0] == 408


async def test_an_idle_connection_is_closed() -> None:
    async with serving(echo, Limits(idle_timeout=0.2)) as listener:
        reader, writer = await connect(listener)
        writer.write(get())
        await answer(reader)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_a_client_that_does_not_take_its_answer_is_cut() -> None:
    source = Events()
    async with serving(streaming(source), Limits(write_timeout=0.2)) as listener:
        _, writer = await connect(listener)
        writer.write(get())
        await source.started.wait()
        async with asyncio.timeout(15):
            while not source.closed.is_set():
                if not source.paused and source.sink is not None:
                    source.send(b"x" * 65_536)
                await asyncio.sleep(0.001)
        writer.close()


async def test_connections_above_the_limit_are_refused() -> None:
    async with serving(echo, Limits(connections=2)) as listener:
        held = [await connect(listener) for _ in range(2)]
        for reader, writer in held:
            writer.write(get())
            await answer(reader)
        reader, writer = await connect(listener)
        assert (await answer(reader))[0] == 503
        held[0][1].close()
        await asyncio.sleep(0.05)
        reader, writer = await connect(listener)
        writer.write(get())
        assert (await answer(reader))[0] == 200


async def test_draining_asks_clients_to_move_on() -> None:
    async with serving(echo) as listener:
        reader, writer = await connect(listener)
        writer.write(get())
        assert b"connection" not in (await answer(reader))[1]
        listener.server.draining = True
        writer.write(get())
        assert (await answer(reader))[1][b"connection"] == b"close"
        assert await reader.read() == b""
        reader, writer = await connect(listener)  # it still accepts
        writer.write(get())
        assert (await answer(reader))[1][b"connection"] == b"close"


async def test_an_upgrade_becomes_a_tunnel_both_ways() -> None:
    class Loud:
        """Answers every byte in upper case."""

        def start(self, sink: Sink) -> None:
            self.sink = sink

        def send(self, data: bytes) -> None:
            self.sink.send(data.upper())

        def end(self, failure: Failure | None = None) -> None: ...

        pause = resume = close = feed = end

    async def handler(request: Request) -> Response:
        assert request.upgrade
        return Response(101, [(b"upgrade", b"websocket")], tunnel=Loud())  # type: ignore[arg-type]

    async with serving(handler) as listener:
        reader, writer = await connect(listener)
        writer.write(get(b"/ws", b"connection: Upgrade\r\nupgrade: websocket\r\n") + b"early")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"connection: upgrade" in head
        assert await reader.readexactly(5) == b"EARLY"
        writer.write(b"late")
        assert await reader.readexactly(4) == b"LATE"
        writer.close()


async def test_an_upgrade_nobody_takes_is_answered_and_closed_and_others_are_ignored() -> None:
    async with serving(echo) as listener:
        reader, writer = await connect(listener)
        writer.write(get(b"/h2c", b"connection: Upgrade\r\nupgrade: h2c\r\n") + get(b"/next"))
        assert (await answer(reader))[2] == b"GET /h2c "
        assert (await answer(reader))[2] == b"GET /next "
        writer.write(get(b"/ws", b"connection: Upgrade\r\nupgrade: websocket\r\n") + b"frames")
        assert (await answer(reader))[1][b"connection"] == b"close"
        assert await reader.read() == b""


def certificate(ca: trustme.CA, where: Path, name: str = "localhost") -> tuple[str, str]:
    cert = ca.issue_cert(name, "127.0.0.1")
    cert.cert_chain_pems[0].write_to_path(where / "cert.pem")
    cert.private_key_pem.write_to_path(where / "key.pem")
    return str(where / "cert.pem"), str(where / "key.pem")


async def test_tls_with_a_certificate_replaced_while_serving(tmp_path: Path) -> None:
    ca = trustme.CA()
    tls = ServerTLS(*certificate(ca, tmp_path))
    client = ssl.create_default_context()
    ca.configure_trust(client)

    async def serial(listener: Listener) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=client)
        writer.write(get())
        assert (await answer(reader))[0] == 200
        peer = writer.get_extra_info("peercert")
        writer.close()
        return str(peer["serialNumber"])

    async with serving(echo, tls=tls) as listener:
        first = await serial(listener)
        assert not tls.reload()
        certificate(ca, tmp_path)
        assert tls.reload()
        second = await serial(listener)
        assert first != second
        (tmp_path / "key.pem").write_text("broken")
        with pytest.raises(CertificateError, match=r"key\.pem"):
            tls.reload()
        assert await serial(listener) == second


async def test_client_certificates_may_be_required(tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ServerTLS(*certificate(ca, tmp_path), str(tmp_path / "ca.pem"), ClientAuth.REQUIRED)
    async with serving(echo, tls=tls) as listener:
        for known in (False, True):
            client = ssl.create_default_context()
            ca.configure_trust(client)
            if known:
                ca.issue_cert("agent@example.com").configure_cert(client)
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=client)
                writer.write(get())
                status = (await answer(reader))[0]
            except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
                status = 0
            assert status == (200 if known else 0)


async def test_no_garbage_is_left_for_the_collector() -> None:
    source: list[Events] = []

    async def handler(request: Request) -> Response:
        if request.target == b"/stream":
            source.append(Events())
            return Response(200, [], source=source[-1])
        if request.target == b"/fail":
            raise Failure(400, Reason.INVALID_REQUEST, "no")
        return await echo(request)

    async def load(listener: Listener) -> None:
        for target in (b"/a", b"/fail", b"/stream", b"/leave"):
            reader, writer = await connect(listener)
            writer.write(get(target if target != b"/leave" else b"/stream"))
            if target in (b"/stream", b"/leave"):
                while not source or not source[-1].started.is_set():
                    await asyncio.sleep(0)
                source[-1].send(b"x")
                if target == b"/stream":
                    source[-1].end()
                    await answer(reader)
                source.clear()
            else:
                await answer(reader)
            writer.transport.abort()
            await asyncio.sleep(0.01)

    async with serving(handler) as listener:
        await load(listener)
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await load(listener)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            ours = [o for o in gc.garbage if type(o).__module__.startswith("tollhouse")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert ours == []
