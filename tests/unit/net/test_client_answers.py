"""What upstreams answer: framings, interim answers, HEAD, garbage, bounds; and the same bytes cut anywhere."""

import asyncio
import gzip
import socket
import struct
import zlib
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.net.upstreams import Collector, Peer, ask, client, upstream

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.net.client import Exchange, Until
from tollhouse.net.link import Link
from tollhouse.net.repeated_answer import RepeatedAnswer

ASYNC = pytest.mark.anyio

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


async def result(
    answer: bytes, *, method: bytes = b"GET", close: bool = False, until: Until = Until.WHOLE, **options: Any
) -> tuple[Exchange, int]:
    """The exchange, and how many connections the pool kept."""

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        if not close:
            await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        exchange = await ask(pool, method=method, until=until, total=5.0, **options)
        return exchange, pool.open


ANSWERS: dict[str, tuple[bytes, int, bytes, bool]] = {
    # name: bytes, status, body, connection kept
    "length": (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, b"hello", True),
    "empty": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b"", True),
    "no reason": (b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n", 200, b"", True),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        200,
        b"hello world",
        True,
    ),
    "chunk extensions and trailers": (
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0;c\r\nx-check: 1\r\n"
            b"content-type: text/event-stream\r\n\r\n"
        ),
        200,
        b"hello",
        True,
    ),
    "204": (b"HTTP/1.1 204 No Content\r\ncontent-length: 7\r\n\r\n", 204, b"", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n", 304, b"", True),
    "100": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi", True),
    "103 and 100": (
        (
            b"HTTP/1.1 103 Early Hints\r\nlink: x\r\ncontent-type: text/event-stream\r\n\r\nHTTP/1.1 100 Go\r\n\r\n"
            b"HTTP/1.1 404 No\r\ncontent-length: 2\r\n\r\nhi"
        ),
        404,
        b"hi",
        True,
    ),
    "close": (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi", False),
    "1.0 kept": (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi", True),
    "leading line break": (b"\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi", True),
    "body like a head": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 38\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        200,
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        True,
    ),
    "status 599": (b"HTTP/1.1 599 Odd\r\ncontent-length: 0\r\n\r\n", 599, b"", True),
}


@ASYNC
@pytest.mark.parametrize("name", ANSWERS)
async def test_answers(name: str) -> None:
    data, status, body, kept = ANSWERS[name]
    exchange, kept_now = await result(data)
    assert (exchange.status, exchange.take(), bool(kept_now)) == (status, body, kept)
    assert exchange.complete
    assert not exchange.event_stream
    assert exchange.headers.get(b"link") is None
    assert exchange.headers.get(b"x-check") is None


@ASYNC
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\ncontent-type: x\r\n\r\n"])
async def test_a_body_until_the_end_of_the_connection(head: bytes) -> None:
    exchange, kept = await result(head + b"all of it", close=True)
    assert exchange.take() == b"all of it"
    assert exchange.complete
    assert not kept
    exchange, _ = await result(head, close=True)
    assert exchange.complete
    assert exchange.take() == b""


@ASYNC
@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", True),
        (b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", False),  # a body that must not be there
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nH", False),
    ],
)
async def test_head(answer: bytes, kept: bool) -> None:
    exchange, open_ = await result(answer, method=b"HEAD")
    assert exchange.status == 200
    assert exchange.complete
    assert exchange.take() == b""
    assert bool(open_) is kept


@ASYNC
async def test_after_head_the_connection_serves_on() -> None:
    async def play(peer: Peer) -> None:
        for _ in range(3):
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n")
            await peer.request()
            for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello":
                await peer.send(bytes((byte,)))

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        for _ in range(3):
            assert (await ask(pool, method=b"HEAD")).take() == b""
            assert (await ask(pool)).take() == b"hello"
        assert up.connections == 1


GARBAGE: dict[str, bytes] = {
    "not HTTP": b"SSH-2.0-OpenSSH_9\r\n",
    "a page": b"<html>",
    "both lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "same length twice": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "signed length": b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello",
    "endless length": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nhello",
    "gzip transfer coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nhello",
    "gzip, chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad chunk size": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "folded header": b"HTTP/1.1 200 OK\r\na: b\r\n c\r\ncontent-length: 0\r\n\r\n",
    "space before colon": b"HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n",
    "NUL": b"HTTP/1.1 200 OK\r\na: \0\r\ncontent-length: 0\r\n\r\n",
    "status 99": b"HTTP/1.1 099 OK\r\ncontent-length: 0\r\n\r\n",
    "status of four": b"HTTP/1.1 2000 OK\r\n\r\n",
    "interim with a body": b"HTTP/1.1 150 X\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "101 unasked": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "101 without upgrade": b"HTTP/1.1 101 Switching\r\n\r\n",
    "too many fields": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 257 + b"content-length: 0\r\n\r\n",
    "too large a head": b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\na: " + b"b" * 200_000,
    "interim answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
    "trailers without end": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 100_000,
    "a chunk extension without end": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;" + b"a" * 400_000,
}


@ASYNC
@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_is_a_502(name: str) -> None:
    with pytest.raises(Failure) as raised:
        await result(GARBAGE[name])
    failure = raised.value
    assert (failure.status, failure.reason, failure.sent) == (502, Reason.UPSTREAM_FAILURE, True)
    assert failure.message.startswith("the upstream")


@ASYNC
@pytest.mark.parametrize(
    "name", ["not HTTP", "status 99", "bare line feeds", "101 without upgrade", "a head without end"]
)
async def test_garbage_for_head_is_a_502(name: str) -> None:
    with pytest.raises(Failure):
        await result(GARBAGE[name], method=b"HEAD")


@ASYNC
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_an_answer_that_is_cut_short_is_a_502(answer: bytes) -> None:
    with pytest.raises(Failure) as raised:
        await result(answer, close=True)
    assert (raised.value.status, raised.value.retry, raised.value.sent) == (502, True, True)


@ASYNC
async def test_a_cut_body_that_is_streamed_ends_with_a_failure_after_its_bytes() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(SSE + b"5\r\nhello\r\n")
        await go.wait()
        peer.cut()

    go = asyncio.Event()
    async with upstream(play) as up, client() as c:
        exchange = await ask(c.pool(up.origin()))
        assert exchange.event_stream
        sink = Collector()
        exchange.start(sink)
        go.set()
        failure = await sink.wait()
        assert sink.data == b"hello"
        assert failure is not None
        assert failure.status == 502
        # and when it is cut before anybody starts
        exchange = await ask(c.pool(up.origin()))
        await up.until_left(2)
        await asyncio.sleep(0.01)
        sink = Collector()
        exchange.start(sink)
        assert sink.data == b"hello"
        assert (await sink.wait()) is not None
        assert not exchange.complete


@ASYNC
async def test_a_reset_is_not_the_end_of_a_body_without_length() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await go.wait()
        sock = peer.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.cut()

    go = asyncio.Event()
    async with upstream(play) as up, client() as c:
        exchange = await ask(c.pool(up.origin()), until=Until.HEAD)
        sink = Collector()
        exchange.start(sink)
        await sink.until(5)
        go.set()
        failure = await sink.wait()
        assert failure is not None
        assert "cut" in failure.message
        assert not exchange.complete


@ASYNC
async def test_too_large_a_whole_answer_is_a_502() -> None:
    for answer in (
        b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nhello world",
    ):
        with pytest.raises(Failure) as raised:
            await result(answer, limit=10)
        assert raised.value.status == 502
        assert not raised.value.retry
        exchange, _ = await result(answer[:-1] if b"100000" in answer else answer, limit=10, until=Until.HEAD)
        with pytest.raises(Failure):
            await exchange.read(10)


@ASYNC
async def test_until_says_when() -> None:
    step = asyncio.Event()

    async def play(peer: Peer) -> None:
        for _ in range(3):
            await peer.request()
            await peer.send(SSE)
            await step.wait()
            step.clear()
            await peer.send(b"5\r\nhello\r\n")
            await step.wait()
            step.clear()
            await peer.send(b"0\r\n\r\n")

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        exchange = await ask(pool, until=Until.HEAD)
        assert exchange.event_stream
        assert exchange.take() == b""
        step.set()
        reading = asyncio.create_task(exchange.read(100))
        await asyncio.sleep(0.02)
        assert not reading.done()
        step.set()
        assert await reading == b"hello"
        for until in (Until.BODY, Until.WHOLE):  # an event stream is never waited for
            call = asyncio.create_task(ask(pool, until=until))
            await asyncio.sleep(0.02)
            assert not call.done()
            step.set()
            exchange = await call
            assert not exchange.complete
            assert exchange.take() == b"hello"
            sink = Collector()
            exchange.start(sink)
            step.set()
            assert await sink.wait() is None
            assert sink.data == b""
            assert exchange.complete
        assert up.connections == 1


@ASYNC
async def test_an_event_stream_without_events_is_an_answer() -> None:
    exchange, kept = await result(SSE + b"0\r\n\r\n")
    assert exchange.complete
    assert kept


@ASYNC
async def test_what_came_together_is_delivered_together() -> None:
    exchange, _ = await result(SSE + b"".join(b"3\r\nabc\r\n" for _ in range(50)) + b"0\r\n\r\n")
    sink = Collector()
    exchange.start(sink)
    assert sink.pieces == [b"abc" * 50]
    assert await sink.wait() is None


@ASYNC
async def test_read_decodes() -> None:
    text = b"hello " * 1000
    for encoding, body in ((b"gzip", gzip.compress(text)), (b"deflate", zlib.compress(text)), (b"identity", text)):
        answer = b"HTTP/1.1 200 OK\r\ncontent-encoding: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            encoding,
            len(body),
            body,
        )
        exchange, _ = await result(answer)
        assert await exchange.read(10_000) == text
        exchange, _ = await result(answer)
        assert await exchange.read(10_000, decode=False) == body
    exchange, _ = await result(b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\nhi")
    with pytest.raises(Failure, match="'br'"):
        await exchange.read(100)


# ---- the same bytes, cut anywhere


class Transport:
    """The lowest seam: a socket that says nothing."""

    def __init__(self) -> None:
        self.aborted = False

    def write(self, data: bytes) -> None: ...

    def writelines(self, data: Any) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True


class Home:
    given = 0
    forgotten = 0

    def __init__(self) -> None:
        self.names: dict[bytes, bytes] = {}
        self.repeated = RepeatedAnswer()

    def give(self, link: Link) -> None:
        self.given += 1

    def forget(self, link: Link) -> None:
        self.forgotten += 1


class Woken:
    """A future that nobody awaits."""

    def __init__(self) -> None:
        self.woken = False

    def done(self) -> bool:
        return self.woken

    def set_result(self, value: None) -> None:
        assert not self.woken
        self.woken = True


def told(pieces: list[bytes], *, method: bytes, until: Until, eof: bool, repeated: RepeatedAnswer | None = None) -> Any:
    """Everything that can be seen of an answer that came in `pieces`."""
    home, transport = Home(), Transport()
    if repeated is not None:
        home.repeated = repeated
    link = Link(home, Clock(), Woken, 30.0)  # type: ignore[arg-type]
    link.connection_made(transport)  # type: ignore[arg-type]
    exchange = Exchange(link)
    if method == b"HEAD":
        link.head_only()
    woken: Any = link.begin(exchange, b"", b"", until, 1e18, 1e9, 1e9, 1 << 20)
    for piece in pieces:
        if not transport.aborted:
            link.data_received(piece)
    if eof and not transport.aborted:
        link.eof_received()
    failure = exchange.failure
    body = exchange.take()
    return (
        woken.woken,
        exchange.status,
        # A failure may come before or after the fields that led to it.
        tuple(exchange.headers) if failure is None else None,
        exchange.complete,
        exchange.event_stream if failure is None else None,
        body if failure is None else None,
        (failure.status, failure.message, failure.retry) if failure is not None else None,
        home.given,
        home.forgotten,
        transport.aborted,
    )


CORPUS = [data for data, *_ in ANSWERS.values()] + [data for data in GARBAGE.values() if len(data) < 10_000]
CORPUS += [SSE + b"5\r\nhello\r\n0\r\n\r\n", SSE + b"5\r\nhel", b"HTTP/1.1 200 OK\r\n\r\nuntil the end"]
CORPUS += [data + b"HTTP/1.1 200 OK\r\nevil: 1\r\ncontent-length: 2\r\n\r\nno" for data in CORPUS[:6]]


@pytest.mark.parametrize("until", list(Until))
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_byte_by_byte_is_the_same(method: bytes, until: Until) -> None:
    for data in CORPUS:
        if b"evil" in data:
            continue  # what follows an answer is only seen if it comes with it
        for eof in (False, True):
            whole = told([data], method=method, until=until, eof=eof)
            single = told([data[i : i + 1] for i in range(len(data))], method=method, until=until, eof=eof)
            assert single[:7] == whole[:7] or method == b"HEAD", data


@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from(CORPUS),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    until=st.sampled_from(list(Until)),
    eof=st.booleans(),
)
def test_cut_anywhere_is_the_same(data: bytes, cuts: list[int], until: Until, eof: bool) -> None:
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    whole = told([data], method=b"GET", until=until, eof=eof)
    assert told(pieces, method=b"GET", until=until, eof=eof)[:7] == whole[:7]


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(max_size=200), data=st.sampled_from(CORPUS), at=st.integers(0, 100), eof=st.booleans())
def test_noise_is_an_answer_or_a_failure_and_never_an_exception(noise: bytes, data: bytes, at: int, eof: bool) -> None:
    told([data[:at] + noise + data[at:]], method=b"GET", until=Until.WHOLE, eof=eof)
    told([noise, data], method=b"HEAD", until=Until.HEAD, eof=eof)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(65_000, 66_500), cut=st.integers(1, 66_000))
def test_the_bound_of_the_head_does_not_depend_on_the_cuts(size: int, cut: int) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\na: "
    data = head + b"b" * (size - len(head) - 4) + b"\r\n\r\nhi"
    for method in (b"GET", b"HEAD"):
        for pieces in ([data], [data[:cut], data[cut:]]):
            seen = told(pieces, method=method, until=Until.WHOLE, eof=False)
            assert (seen[6] is None) is (size <= 65_536)


PLAIN = b"HTTP/1.1 200 OK\r\nDate: today\r\nContent-Length: %d\r\nX-A: b\r\n\r\n%b"


@pytest.mark.parametrize("until", list(Until))
def test_a_head_that_was_seen_changes_nothing(until: Until) -> None:
    for learnt in CORPUS:
        repeated = RepeatedAnswer()
        for data in (learnt, *CORPUS):
            plain = told([data], method=b"GET", until=until, eof=False)
            assert told([data], method=b"GET", until=until, eof=False, repeated=repeated) == plain, data


@settings(max_examples=300, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 2, 8, 9, 10, 11, 95, 96, 97, 98, 99, 100, 101, 102, 999, 1000]), min_size=2),
    off=st.sampled_from([0, 0, 0, -1, 1, 20]),
    cut=st.integers(0, 80),
)
def test_a_head_is_known_whatever_its_length(sizes: list[int], off: int, cut: int) -> None:
    repeated = RepeatedAnswer()
    for size in sizes:
        data = PLAIN % (size, b"x" * (size + off))
        for pieces in ([data], [data[:cut], data[cut:]] if cut else [data]):
            plain = told(pieces, method=b"GET", until=Until.WHOLE, eof=True)
            assert told(pieces, method=b"GET", until=Until.WHOLE, eof=True, repeated=repeated) == plain


def test_a_known_head_is_not_parsed_again() -> None:
    repeated = RepeatedAnswer()
    told([PLAIN % (7, b"1234567")], method=b"GET", until=Until.WHOLE, eof=False, repeated=repeated)
    exchange = Exchange(None)
    assert repeated.read(PLAIN % (12, b"123456789012"), exchange) == b"123456789012"
    assert (exchange.status, exchange.length) == (200, 12)
    assert exchange.headers == [(b"date", b"today"), (b"content-length", b"12"), (b"x-a", b"b")]
    assert repeated.keep is None  # it does not say
    assert repeated.read(PLAIN.replace(b"today", b"later") % (7, b"1234567"), exchange) is None
    assert repeated.read(PLAIN % (7, b"123456"), Exchange(None)) is None
    assert repeated.read(PLAIN % (7, b"12345678"), Exchange(None)) is None


def test_an_upstream_whose_heads_all_differ_is_learnt_from_seldom() -> None:
    repeated = RepeatedAnswer()
    learnt = 0
    for n in range(1000):
        data = PLAIN.replace(b"today", b"%d" % n) % (1, b"x")
        told([data], method=b"GET", until=Until.WHOLE, eof=False, repeated=repeated)
        learnt += repeated.read(PLAIN.replace(b"today", b"%d" % n) % (1, b"x"), Exchange(None)) is not None and n > 0
        repeated._misses = n + 1  # what we asked does not count
    assert 8 <= learnt < 30
