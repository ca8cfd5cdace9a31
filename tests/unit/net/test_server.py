"""The HTTP/1.1 server over real sockets: order, framing, back-pressure, leaving clients, time, TLS, upgrade."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from tests.fixtures.garbage import collected, ours

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


async def test_a_request_that_was_left_is_not_charged_with_the_answer_before_it() -> None:
    endings: list[Ending] = []

    async def handler(request: Request) -> Response:
        request.ends.append(endings.append)
        if request.target == b"/wait":
            await asyncio.Event().wait()
        return Response(200, [], b"hello")

    async with serving(handler) as listener:
        reader, writer = await connect(listener)
        writer.write(get())
        await answer(reader)
        writer.write(get(b"/wait"))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()
        async with asyncio.timeout(5):
            while len(endings) < 2:
                await asyncio.sleep(0.005)
    assert [(e.status, e.bytes_out, e.gone) for e in endings] == [(200, 5, False), (499, 0, True)]


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


async def test_what_cannot_be_recorded_is_not_given() -> None:
    """The ends of the call fail: the caller is told so, and the request's record says what the caller was told."""
    endings: list[Ending] = []

    def full(_: Ending) -> None:
        raise Failure(503, Reason.INTERNAL, "usage cannot be recorded", code="ledger_unavailable", retry_after=5.0)

    def bug(_: Ending) -> None:
        raise RuntimeError("secret")

    async def handler(request: Request) -> Response:
        request.ends.append(endings.append)  # outermost
        if request.target == b"/request":
            request.ends.append(full)
            return Response(200, [], b"paid answer")
        if request.method == b"HEAD":
            return Response(200, [], source=Events(), ends=[full])
        return Response(200, [], b"paid answer", ends=[bug if request.target == b"/bug" else full])

    async with serving(handler) as listener:
        reader, writer = await connect(listener)
        for target, told in ((b"/response", 503), (b"/request", 503), (b"/bug", 500)):
            writer.write(get(target))
            status, headers, body = await answer(reader)
            assert status == told
            assert b"paid" not in body
            assert b"secret" not in body
            assert headers[b"x-tollhouse-reason"] == b"Internal"
            assert told == 500 or headers[b"retry-after"] == b"5"
        writer.write(get().replace(b"GET", b"HEAD"))
        assert (await answer(reader, head=True))[0] == 503
        writer.close()
    assert [e.status for e in endings] == [503, 503, 500, 503]
    assert [e.failure is not None for e in endings] == [True] * 4


async def test_a_stream_whose_end_cannot_be_recorded_is_cut_and_nobody_else_is_harmed() -> None:
    for failure in (None, Failure(502, Reason.UPSTREAM_FAILURE, "lost")):
        source, endings = Events(), []  # type: ignore[var-annotated]

        def full(_: Ending) -> None:
            raise Failure(503, Reason.INTERNAL, "usage cannot be recorded")

        async def handler(request: Request, source: Events = source, endings: list[Ending] = endings) -> Response:
            request.ends.append(endings.append)
            return Response(200, [], source=source, ends=[full])

        async with serving(handler) as listener:
            reader, writer = await connect(listener)
            writer.write(get())
            await source.started.wait()
            source.send(b"part")
            source.end(failure)  # called by the upstream: nothing is raised into it
            assert not (await ends(reader)).endswith(b"0\r\n\r\n")
            writer.close()
        assert [(e.status, e.failure is not None) for e in endings] == [(200, True)]


async def test_a_client_that_leaves_before_its_end_can_be_recorded_leaves_nothing() -> None:
    begun = asyncio.Event()

    async def handler(request: Request) -> Response:
        def bug(_: Ending) -> None:
            raise RuntimeError("x")

        request.ends.append(bug)
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(handler) as listener:
        _, writer = await connect(listener)
        writer.write(get())
        await begun.wait()
        writer.transport.abort()
        async with asyncio.timeout(5):
            while listener.server.connections:
                await asyncio.sleep(0.005)
        await listener.server.wait_closed()


async def test_a_streamed_body_is_bounded_also_where_it_came_with_its_head() -> None:
    got: list[int] = []

    async def handler(request: Request) -> Response:
        done: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()

        class Body:
            def send(self, data: bytes) -> None:
                got.append(len(data))

            def end(self, failure: Failure | None = None) -> None:
                done.set_result(failure)

        request.start(Body())
        failure = await done
        if failure is not None:
            raise failure
        return Response(200, [])

    chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    async with serving(handler, Limits(body=1000)) as listener:
        for size, status in ((1000, 200), (1001, 413), (50_000, 413)):
            reader, writer = await connect(listener)
            writer.write(chunked % (size, b"a" * size))
            assert (await answer(reader))[0] == status
            writer.close()
        reader, writer = await connect(listener)
        writer.write(post(b"a" * 1001))
        assert (await answer(reader))[0] == 413
        assert sum(got) == 1000


async def test_a_body_that_is_announced_too_large_is_refused_before_it_comes_and_before_100_continue() -> None:
    async with serving(echo, Limits(body=1000)) as listener:
        for more in (b"", b"expect: 100-continue\r\n"):
            reader, writer = await connect(listener)
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\n%bcontent-length: 1001\r\n\r\n" % more)
            status, headers, body = await answer(reader)
            assert status == 413
            assert b"larger than 1000 bytes" in body
            assert headers[b"connection"] == b"close"
            assert await reader.read() == b""
            writer.close()

    async def careless(request: Request) -> Response:
        return Response(200, [], b"fine")

    async with serving(careless, Limits(body=1000)) as listener:
        reader, writer = await connect(listener)
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n")
        assert (await answer(reader))[0] == 200
        assert await reader.read() == b"", "the body was not read, so nothing can follow"


async def test_an_asterisk_is_a_target_for_options_alone() -> None:
    async with serving(echo) as listener:
        for method, status in ((b"GET", 400), (b"OPTIONS", 200), (b"GET", 400)):
            reader, writer = await connect(listener)
            writer.write(method + b" * HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await answer(reader))[0] == status
            writer.close()


@pytest.mark.parametrize(
    ("wire", "status", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Host is missing"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n", 400, "more than one header Host"),
        (b"GET / HTTP/1.1\r\nhost: %b\r\n\r\n" % (b"a" * 300), 400, "the host is not valid"),
        (b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", 505, "only HTTP/1.1"),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505, "only HTTP/1.1"),
        (get(b"/", b"x: a\r\n b\r\n"), 400, "unexpected whitespace after header value"),
        (get(b"/", b"x: a\0b\r\n"), 400, "invalid header value char"),
        (get(b"/", b"x : a\r\n"), 400, "invalid header token"),
        (get(b"/\xff"), 400, "in ASCII, with"),
        (get(b"/#x"), 400, "fragment"),
        (get(b"x"), 400, "write a path"),
        (get(b"*"), 400, "write a path"),
        (get(b"/" + b"a" * 2000), 414, "longer than 1000 bytes"),
        (get(b"/", b"x: y\r\n" * 20), 431, "more than 20 header fields"),
        (get(b"/", b"x: %b\r\n" % (b"a" * 5000)), 431, "larger than 4000 bytes"),
        (b"FETCH / HTTP/1.1\r\nhost: x\r\n\r\n", 400, "method is not known"),
        (b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", 405, "forward proxy"),
        (get(b"/", b"expect: x\r\n"), 417, "100-continue"),
        (get(b"/", b"transfer-encoding: gzip\r\n"), 501, "only chunked"),
    ],
)  # fmt: skip
async def test_a_refusal_says_what_is_wrong(wire: bytes, status: int, words: str) -> None:
    async with serving(echo, Limits(target=1000, head=4000, headers=20)) as listener:
        reader, writer = await connect(listener)
        writer.write(wire)
        told, headers, body = await answer(reader)
        assert told == status
        assert words in body.decode()
        assert headers[b"content-type"] == b"application/problem+json"
        assert await reader.read() == b""
        writer.close()


async def test_phrases_are_those_of_rfc_9110() -> None:
    async def handler(request: Request) -> Response:
        return Response(int(request.target[1:]), [])

    async with serving(handler) as listener:
        reader, writer = await connect(listener)
        for status, phrase in (
            (413, b"Content Too Large"), (414, b"URI Too Long"), (416, b"Range Not Satisfiable"),
            (422, b"Unprocessable Content"), (404, b"Not Found"), (599, b""),
        ):  # fmt: skip
            writer.write(get(b"/%d" % status))
            line = await asyncio.wait_for(reader.readline(), 5)
            assert line == b"HTTP/1.1 %d %b\r\n" % (status, phrase)
            assert b"content-length: 0" in await reader.readuntil(b"\r\n\r\n")
        writer.close()


async def test_what_was_seen_is_remembered_in_bounds() -> None:
    async with serving(echo) as listener:
        seen = listener.server.seen
        reader, writer = await connect(listener)
        for n in range(1100):
            writer.write(b"GET /%d HTTP/1.1\r\nhost: h%d\r\n\r\n" % (n, n))
            await answer(reader)
        assert 0 < len(seen.hosts) < 1024
        assert 0 < len(seen.paths) < 1024
        assert b"h1099" in seen.hosts, "begun anew when full, so that it goes on helping"
        writer.write(get(b"/" + b"a" * 5000))
        assert (await answer(reader))[0] == 200
        assert max(map(len, seen.paths)) < 300
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
            told, headers, _ = await answer(reader)
            assert (told, headers[b"x-tollhouse-reason"]) == (status, b"Timeout")
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
        status, headers, _ = await answer(reader)
        assert (status, headers[b"x-tollhouse-reason"]) == (503, b"Overloaded")
        held[0][1].close()
        await asyncio.sleep(0.05)
        reader, writer = await connect(listener)
        writer.write(get())
        assert (await answer(reader))[0] == 200


class Deaf(asyncio.Transport):
    """The end of a connection whose client reads nothing: what is written stays, so closing it takes for ever."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.written = b""
        self.closing = self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


@pytest.mark.parametrize("how", ["idle", "close", "refused", "drain", "crowded", "resumed"])
async def test_a_client_that_reads_nothing_does_not_keep_its_connection(how: str) -> None:
    """Less than the transport's mark is unsent, so that the server is not told to pause."""
    now = [0.0]
    clock = Clock(source=lambda: now[0])
    limits = Limits(idle_timeout=5.0, write_timeout=10.0, connections=0 if how == "crowded" else 9)
    server = Server(echo, clock, limits)
    connection, transport = server.accept(), Deaf()

    async def after(seconds: float) -> None:
        for _ in range(16 * int(seconds)):
            now[0] += 1 / 16
            clock.turn()
            await asyncio.sleep(0)

    connection.connection_made(transport)
    if how != "crowded":
        bad = (
            b"x: y\r\n x\r\n" if how == "refused" else b"connection: close\r\n" if how in ("close", "resumed") else b""
        )
        connection.data_received(get(b"/", bad))
        await after(1)
        assert transport.written
    if how == "resumed":  # in part: below the lower mark is still something
        connection.pause_writing()
        connection.resume_writing()
    if how == "drain":
        server.close_idle()
    await after(7)
    assert transport.closing or how == "refused"
    await after(10)
    assert transport.aborted
    connection.connection_lost(None)
    await server.wait_closed()
    assert not server.connections


async def test_a_body_that_stands_still_is_timed_out_also_after_a_slow_answer() -> None:
    now = [0.0]
    clock = Clock(source=lambda: now[0])
    bodies: list[Failure | None] = []

    class Body:
        def send(self, data: bytes) -> None: ...

        def end(self, failure: Failure | None = None) -> None:
            bodies.append(failure)

    source = Events()

    async def both_ways(request: Request) -> Response:
        request.start(Body())
        return Response(200, [], source=source)

    server = Server(both_ways, clock, Limits(body_timeout=5.0, write_timeout=10.0))
    connection, transport = server.accept(), Deaf()
    connection.connection_made(transport)
    connection.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
    await asyncio.wait_for(source.started.wait(), 5)
    connection.pause_writing()
    connection.resume_writing()
    for _ in range(16 * 7):
        now[0] += 1 / 16
        clock.turn()
    assert [failure and failure.status for failure in bodies] == [408]
    connection.connection_lost(None)
    await server.wait_closed()


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


async def test_connections_in_their_handshake_count(tmp_path: Path) -> None:
    ca = trustme.CA()
    client = ssl.create_default_context()
    ca.configure_trust(client)
    async with serving(echo, Limits(connections=3), tls=ServerTLS(*certificate(ca, tmp_path))) as listener:

        async def ask() -> Streams:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=client)
            writer.write(get())
            assert (await answer(reader))[0] == 200
            return reader, writer

        _, kept = await ask()
        silent = [await connect(listener) for _ in range(20)]
        async with asyncio.timeout(5):
            ended = await asyncio.gather(*(ends(reader) for reader, _ in silent[2:]))
        assert ended == [b""] * 18
        with pytest.raises(ConnectionError):
            await ask()
        for _, writer in silent[:2]:
            writer.close()
        async with asyncio.timeout(5):
            while listener.server.handshakes:
                await asyncio.sleep(0.005)
        _, another = await ask()
        assert len(listener.server.connections) == 2
        for writer in (kept, another):
            writer.transport.abort()


async def ends(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionError:
        return b""


async def test_a_handshake_that_fails_is_forgotten_and_one_under_way_ends_with_the_server(tmp_path: Path) -> None:
    async with serving(echo, tls=ServerTLS(*certificate(trustme.CA(), tmp_path))) as listener:
        reader, writer = await connect(listener)
        writer.write(get())  # in the clear
        await ends(reader)
        untrusting = ssl.create_default_context()
        with pytest.raises(ssl.SSLError):
            await asyncio.open_connection("127.0.0.1", listener.port, ssl=untrusting)
        async with asyncio.timeout(5):
            while listener.server.handshakes:
                await asyncio.sleep(0.005)
        silent, _ = await connect(listener)
        async with asyncio.timeout(5):
            while not listener.server.handshakes:
                await asyncio.sleep(0.005)
        listener.server.abort()
        await listener.server.wait_closed()
        assert not listener.server.handshakes
        assert await asyncio.wait_for(ends(silent), 5) == b""


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
        with collected() as found:
            for _ in range(5):
                await load(listener)
        assert not [o for o in found if ours(o)]


async def stopped(listener: Listener, path: bytes, *, begun: bool = False) -> list[bool]:
    """End the requests of that path; what was asked of each of them."""
    asked = []

    def which(request: Request, is_begun: bool) -> bool:
        asked.append(is_begun)
        return request.path == path

    listener.server.stop(which, Failure(403, Reason.AUTHORIZATION, "it was stopped"))
    return asked


async def test_a_request_that_is_stopped_is_answered_and_its_connection_lives() -> None:
    left: list[BaseException] = []
    began = asyncio.Event()

    async def slow(request: Request) -> Response:
        if request.path == b"/quick":
            return Response(200, [], b"quick")
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            left.append(error)
            raise
        raise AssertionError

    ended: list[Ending] = []

    async def handler(request: Request) -> Response:
        request.ends.append(ended.append)
        return await slow(request)

    async with serving(handler) as listener:
        reader, writer = await connect(listener)
        writer.write(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        await began.wait()
        assert await stopped(listener, b"/other") == [False]
        assert await stopped(listener, b"/slow") == [False]
        assert await stopped(listener, b"/slow") == []  # it is ended already
        status, headers, _ = await answer(reader)
        assert status == 403
        assert headers[b"x-tollhouse-reason"] == b"Authorization"
        assert len(left) == 1
        writer.write(b"GET /quick HTTP/1.1\r\nhost: a\r\n\r\n")
        assert (await answer(reader))[2] == b"quick"
        writer.close()
    assert [(e.status, e.gone) for e in ended] == [(403, False), (200, False)]


async def test_a_stream_that_is_stopped_ends_in_its_own_words() -> None:
    closed = asyncio.Event()
    began = asyncio.Event()

    class Endless:
        def start(self, sink: Sink) -> None:
            sink.send(b"data: 1\n\n")
            began.set()

        def pause(self) -> None: ...

        def resume(self) -> None: ...

        def close(self) -> None:
            closed.set()

    async def handler(request: Request) -> Response:
        return Response(200, [], source=Endless(), last_words=lambda failure: f"data: {failure}\n\n".encode())

    async with serving(handler) as listener:
        reader, writer = await connect(listener)
        writer.write(b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\n")
        await began.wait()
        assert await stopped(listener, b"/stream") == [True]
        assert (await answer(reader))[2] == b"data: 1\n\ndata: it was stopped\n\n"
        assert closed.is_set()
        assert await stopped(listener, b"/stream") == []
        writer.write(b"GET /stream HTTP/1.1\r\nhost: a\r\n\r\n")
        writer.close()


async def test_a_client_that_leaves_while_its_request_is_stopped() -> None:
    ended: list[Ending] = []
    began = asyncio.Event()

    async def handler(request: Request) -> Response:
        request.ends.append(ended.append)
        began.set()
        await asyncio.sleep(60)
        raise AssertionError

    async with serving(handler) as listener:
        _, writer = await connect(listener)
        writer.write(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
        await began.wait()
        writer.transport.abort()
        await asyncio.sleep(0)
        await stopped(listener, b"/slow")
        await listener.server.wait_closed()
    assert len(ended) == 1
