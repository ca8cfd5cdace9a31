"""Hostile and unusual requests: a table of bytes and outcomes, the same bytes cut anywhere, and slow clients."""

import asyncio
import codecs
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic

import httptools
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tollhouse.core.clock import Clock
from tollhouse.core.http import Request, Response
from tollhouse.net.head import Limits
from tollhouse.net.listen import Address, Listener, bind
from tollhouse.net.server import Connection, Server
from tollhouse.net.timer import Timer

pytestmark = pytest.mark.anyio

CORPUS = Path(__file__).parent / "corpus"
PROBE = b"GET /probe HTTP/1.1\r\nhost: probe\r\n\r\n"
LIMITS = Limits(target=2048, head=8192, headers=50, body=100_000)


class Case(msgspec.Struct):
    """Bytes and what becomes of them. statuses: the answers in order. closed: after the last one."""

    name: str
    raw: bytes
    statuses: list[int]
    closed: bool


def read_cases(file: str) -> Iterator[Case]:
    """The cases of a corpus file; its head explains the form."""
    for block in re.split(r"^=== ", (CORPUS / file).read_text("ascii"), flags=re.MULTILINE)[1:]:
        title, _, text = block.partition("\n")
        outcome, _, name = title.partition(" ")
        if (end := text.find("\n\n;;")) >= 0:
            text = text[: end + 1]
        raw = b""
        for line in text.split("\n")[:-1]:
            raw += codecs.decode(line.removesuffix("\\"), "unicode_escape").encode("latin-1")
            raw += b"" if line.endswith("\\") else b"\r\n"
        yield Case(name, raw, [int(s) for s in outcome.rstrip("!").split(",")], outcome.endswith("!"))


def lines(*of: bytes) -> bytes:
    return b"".join(line + b"\r\n" for line in of)


GENERATED = [
    Case("a long target", lines(b"GET /%b HTTP/1.1" % (b"a" * 3000), b"host: x", b""), [414], True),
    Case("an endless target", b"GET /" + b"a" * 100_000, [414], True),
    Case("an endless method", b"G" * 100_000, [400], True),
    Case("a long value", lines(b"GET / HTTP/1.1", b"host: x", b"x: " + b"a" * 9000, b""), [431], True),
    Case("an endless value", b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 100_000, [431], True),
    Case("an endless name", b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a" * 100_000, [431], True),
    Case("too many fields", lines(b"GET / HTTP/1.1", b"host: x", *[b"x: y"] * 50, b""), [431], True),
    Case("as many fields as may be", lines(b"GET / HTTP/1.1", b"host: x", *[b"x: y"] * 49, b""), [200], False),
    Case("fields without end", lines(b"GET / HTTP/1.1", b"host: x", *[b"x: y"] * 20_000), [431], True),
    Case(
        "a body beyond the bound",
        lines(b"POST / HTTP/1.1", b"host: x", b"transfer-encoding: chunked", b"", b"1d4c0", b"a" * 0x1D4C0, b"0", b""),
        [413],
        True,
    ),
    Case(
        "a chunk extension without end",
        lines(b"POST / HTTP/1.1", b"host: x", b"transfer-encoding: chunked", b"", b"3;" + b"a" * 200_000),
        [400],
        True,
    ),
    Case(
        "many chunk extensions for little body",
        lines(b"POST / HTTP/1.1", b"host: x", b"transfer-encoding: chunked", b"", *[b"1;" + b"a" * 1000, b"x"] * 2000),
        [400],
        True,
    ),
    Case(
        "trailers without end",
        lines(b"POST / HTTP/1.1", b"host: x", b"transfer-encoding: chunked", b"", b"0", *[b"x: y"] * 200_000),
        [400],
        True,
    ),
    Case(
        "a chunk size with many zeros",
        lines(b"POST / HTTP/1.1", b"host: x", b"transfer-encoding: chunked", b"", b"0" * 1_000_000 + b"3", b"abc"),
        [400],
        True,
    ),
    Case("empty lines before a request", b"\r\n" * 50_000, [], False),
    Case("many requests at once", PROBE * 100, [200] * 100, False),
]  # fmt: skip
CASES = [*read_cases("hostile.txt"), *GENERATED]


async def echo(request: Request) -> Response:
    body = await request.read(LIMITS.body)
    said = b"%b %b %b %b" % (request.method, request.path, request.header(b"host") or b"-", body)
    return Response(200, [(b"content-type", b"text/plain")], said)


@asynccontextmanager
async def serving(limits: Limits = LIMITS) -> AsyncIterator[Listener]:
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    server = Server(echo, clock, limits)
    listener = Listener(server, bind(Address("127.0.0.1", 0)))
    await listener.start()
    try:
        yield listener
    finally:
        listener.stop()
        server.abort()
        await server.wait_closed()
        timer.stop()


async def receive(reader: asyncio.StreamReader) -> tuple[int, bytes] | None:
    """Status and body of the next answer; None at the end of the connection."""
    async with asyncio.timeout(5):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionResetError):  # reset: where bytes were left unread
            return None
        length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head)
        assert length is not None
        return int(head.split()[1]), await reader.readexactly(int(length[1]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
async def test_outcome(case: Case) -> None:
    async with serving() as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(case.raw)
        for status in case.statuses:
            answer = await receive(reader)
            assert answer is not None, "closed without an answer"
            assert answer[0] == status, answer
        if case.closed:
            assert await receive(reader) is None, "more answers than requests"
        else:
            writer.write(PROBE)
            assert await receive(reader) == (200, b"GET /probe probe ")
        writer.close()


# ---- the same bytes, cut anywhere


class Wire(asyncio.Transport):
    """The client's end of a connection, as bytes: what was written, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.protocol: Connection | None = None
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.closed:
            self.written += bytes(data)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.lose)

    abort = close

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.close()  # this client closes when it has read the end

    def lose(self) -> None:
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connection_lost(None)

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def exchange(pieces: list[bytes]) -> tuple[bytes, bool]:
    """What a server writes when the bytes come in these pieces, and whether it closes."""
    server = Server(echo, Clock(source=lambda: 0.0), LIMITS)
    connection, wire = server.accept(), Wire()
    connection.connection_made(wire)
    wire.protocol = connection
    for piece in pieces:
        for _ in range(2):
            await asyncio.sleep(0)
        if not wire.closed:
            connection.data_received(piece)
    for _ in range(6):
        await asyncio.sleep(0)
    closed = wire.closed
    wire.close()
    await server.wait_closed()
    await asyncio.sleep(0)
    written = wire.written.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")  # not sent where the body came along
    return re.sub(rb"date: [^\r]*", b"date", written), closed


def statuses(written: bytes) -> list[int]:
    """Of the answers, each of which must be whole."""
    found = []
    while written:
        head, _, written = written.partition(b"\r\n\r\n")
        found.append(int(head.split()[1]))
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        assert len(written) >= int(length[1])
        written = written[int(length[1]) :]
    return found


SHORT = list(read_cases("hostile.txt"))


async def test_one_cut_anywhere_changes_nothing() -> None:
    """Each case whole, byte by byte, and cut in two at every place."""
    for case in SHORT:
        whole = await exchange([case.raw])
        assert statuses(whole[0]) == case.statuses, case.name
        assert whole[1] is case.closed, case.name
        assert await exchange([case.raw[i : i + 1] for i in range(len(case.raw))]) == whole, case.name
        for i in range(1, len(case.raw)):
            assert await exchange([case.raw[:i], case.raw[i:]]) == whole, (case.name, case.raw[:i])


_CUTS = st.sets(st.floats(0.0, 1.0), max_size=8)  # as shares of the length


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SHORT), _CUTS)
async def test_cuts_anywhere_change_nothing(case: Case, shares: set[float]) -> None:
    size = len(case.raw)
    cuts = sorted({0, size, *(int(share * size) for share in shares)})
    pieces = [case.raw[a:b] for a, b in pairwise(cuts)]
    assert await exchange(pieces) == await exchange([case.raw]), case.name


# ---- heads that come again


def asked(name: bytes, body: bytes, *, method: bytes = b"POST", more: bytes = b"") -> bytes:
    return b"%b /p HTTP/1.1\r\nhost: x\r\n%b: %d\r\n%b\r\n%b" % (method, name, len(body), more, body)


_BODIES = st.builds(
    lambda begin, size: (begin + b"a" * size)[:size],
    st.sampled_from([b"", b"\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"]),
    st.sampled_from([0, 1, 8, 9, 10, 11, 98, 99, 100, 101, 102, 500, 997, 998, 999, 1000, 1001, 1002, 3000]),
)
_REPEATING = st.one_of(
    st.builds(asked, st.just(b"content-length"), _BODIES),
    st.builds(asked, st.sampled_from([b"Content-Length", b"content-length:0", b"content-length:", b"x"]), _BODIES),
    st.builds(asked, st.just(b"content-length"), _BODIES, method=st.sampled_from([b"PUT", b"GET"])),
    st.builds(
        asked,
        st.just(b"content-length"),
        _BODIES,
        more=st.sampled_from(
            [b"connection: close\r\n", b"expect: 100-continue\r\n", b"x: y \t\r\n", b"upgrade: h2c\r\n"]
        ),
    ),
    st.builds(lambda one, more: one + more, st.builds(asked, st.just(b"content-length"), _BODIES), st.just(b"\r\n")),
    st.builds(lambda one: b"\r\n" + one, st.builds(asked, st.just(b"content-length"), _BODIES)),
    st.sampled_from([PROBE, PROBE + PROBE, b"\r\n\r\n" + PROBE, PROBE + b"\r\n", b"\r\n"]),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_REPEATING, st.integers(1, 3)), max_size=6))
async def test_a_head_that_comes_again_is_read_as_the_first_time(reads: list[tuple[bytes, int]]) -> None:
    """Reads that may be recognised, against the same bytes cut in two, which never are."""
    pieces = [read for read, times in reads for _ in range(times)]
    cut = [part for read in pieces for part in (read[:1], read[1:]) if part]
    assert await exchange(pieces) == await exchange(cut)


async def test_a_head_that_comes_again_is_not_parsed_again() -> None:
    seen: list[Request] = []

    async def handler(request: Request) -> Response:
        seen.append(request)
        request.headers.set(b"host", b"changed by a policy")
        return await echo(request)

    server = Server(handler, Clock(source=lambda: 0.0), LIMITS)
    connection, wire = server.accept(), Wire()
    connection.connection_made(wire)
    bodies = [b"a", b"bb", b"c" * 10, b"", b"d" * 1234]
    for body in bodies[:2]:
        connection.data_received(asked(b"Content-Length", body))
        for _ in range(3):
            await asyncio.sleep(0)
    connection._requests._parser = httptools.HttpRequestParser(object())  # is not asked any more
    for body in bodies[2:]:
        connection.data_received(asked(b"Content-Length", body))
        for _ in range(3):
            await asyncio.sleep(0)
    assert [await request.read(10_000) for request in seen] == bodies
    assert {(r.method, r.target, r.path, r.header(b"content-length")) for r in seen} == {
        (b"POST", b"/p", b"/p", b"%d" % len(body)) for body in bodies
    }
    assert statuses(wire.written) == [200] * len(bodies)
    connection.connection_lost(None)
    await server.wait_closed()


async def test_the_bound_on_bodies_holds_for_heads_that_come_again() -> None:
    pieces = [asked(b"content-length", b"a" * n) for n in (10, 10, LIMITS.body, LIMITS.body + 1)]
    written, closed = await exchange(pieces)
    assert statuses(written) == [200, 200, 200, 413]
    assert closed


_WORDS = st.sampled_from(
    [
        *(b"GET ", b"POST ", b"/", b"/a?b", b"http://y/", b" HTTP/1.1", b" HTTP/1.0"),
        *(b"\r\n", b"\r\n\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\xff"),
        *(b"Host: x\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: x\r\n"),
        *(b"X: y\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\n"),
        *(b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"0;a\r\n"),
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_WORDS, min_size=3, max_size=14))
async def test_any_bytes_get_whole_answers(words: list[bytes]) -> None:
    """Whatever comes: nothing raises, every answer is whole, a refusal is the last one and closes."""
    text = b"POST / HTTP/1.1\r\nHost: x\r\n" + b"".join(words)
    written, closed = await exchange([text])
    assert written == (await exchange([text[i : i + 1] for i in range(len(text))]))[0]
    answers = statuses(written)
    assert all(s == 200 for s in answers[:-1])
    assert closed or not answers or answers[-1] < 400


# ---- slow clients

SLOW = Limits(head_timeout=0.2, body_timeout=0.2, idle_timeout=0.2)


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send byte after byte until the other side has had enough."""
    try:
        for i in range(len(data)):
            writer.write(data[i : i + 1])
            await asyncio.sleep(0.02)
    except ConnectionError:
        pass


@pytest.mark.parametrize(
    "first, rest, statuses",
    [
        (b"", b"", []),
        (b"G", b"", [408]),
        (b"", b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100, [408]),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", b"", [408]),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", b"", [408]),
        (PROBE, b"", [200]),
        (PROBE + b"GET / HTTP/1.1\r\n", b"X: y\r\n" * 100, [200, 408]),
    ],
    ids=["silent", "one byte", "a slow head", "half a body", "half a chunk", "idle", "a slow second head"],
)
async def test_slow_clients_are_let_go(first: bytes, rest: bytes, statuses: list[int]) -> None:
    async with serving(SLOW) as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        began = monotonic()
        writer.write(first)
        dripping = asyncio.create_task(drip(writer, rest))
        try:
            for status in statuses:
                answer = await receive(reader)
                assert answer is not None
                assert answer[0] == status
            assert await receive(reader) is None
        finally:
            dripping.cancel()
            await asyncio.wait([dripping])
        assert monotonic() - began < 3.0
        writer.close()


async def test_a_declined_upgrade_leaves_no_connection_waiting() -> None:
    """The answer is not 101, so either the connection closes or it goes on with HTTP."""
    ask = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    async with serving() as listener:
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(ask)
        assert await receive(reader) == (200, b"GET / x ")
        writer.write(PROBE)
        assert await receive(reader) in (None, (200, b"GET /probe probe "))
        writer.close()
