"""A head that is recognised instead of parsed: whatever answers come, nobody can see a difference."""

from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.net.test_client_answers import Home, Transport, Woken

from tollhouse.core.clock import Clock
from tollhouse.net.exchange import Exchange, Until
from tollhouse.net.link import Link
from tollhouse.net.repeated_answer import RepeatedAnswer

KEEP = 30.0


class Forgetful(RepeatedAnswer):
    """It never learns: every answer is parsed."""

    __slots__ = ()

    def learn(self, data: bytes, exchange: Exchange, body: int, keep: Any) -> None:
        pass


class Counting(RepeatedAnswer):
    __slots__ = ("known",)

    def __init__(self) -> None:
        super().__init__()
        self.known = 0

    def read(self, data: bytes, exchange: Exchange) -> bytes | None:
        body = super().read(data, exchange)
        self.known += body is not None
        return body


class Answers:
    """Some connections to one upstream."""

    def __init__(self, repeated: RepeatedAnswer, connections: int) -> None:
        self.home = Home()
        self.home.repeated = repeated
        self.clock = Clock()
        self.clock.now = 1000.0
        self.links = [self.connected() for _ in range(connections)]

    def connected(self) -> Link:
        link = Link(self.home, self.clock, Woken, KEEP)  # type: ignore[arg-type]
        link.connection_made(Transport())  # type: ignore[arg-type]
        return link

    def told(self, on: int, pieces: list[bytes], method: bytes, until: Until, limit: int, eof: bool) -> tuple[Any, ...]:
        """Everything that can be seen of an answer, and of the connection after it."""
        on %= len(self.links)
        link = self.links[on]
        if link.lost:
            link = self.links[on] = self.connected()
        transport: Any = link._transport
        exchange = Exchange(link)
        if method == b"HEAD":
            link.head_only()
        woken: Any = link.begin(exchange, b"", b"", until, 1e18, 1e9, 1e9, limit)
        for piece in pieces:
            if not transport.aborted:
                link.data_received(piece)
        if eof and not transport.aborted:
            link.eof_received()
        failure = exchange.failure
        seen = (
            woken.woken,
            exchange.status,
            tuple(exchange.headers),
            exchange.length if failure is None else None,
            exchange.complete,
            exchange.event_stream,
            exchange.encoded,
            exchange.stale,
            exchange.take(),
            (failure.status, failure.message, failure.detail, failure.retry, failure.sent) if failure else None,
            link.deadline,
            link.kept,
            link.lost,
            transport.aborted,
            self.home.given,
            self.home.forgotten,
        )
        exchange.close()  # one that is not complete costs its connection
        exchange.headers.reverse()  # what a caller does to its answer is nobody else's business
        exchange.headers.append((b"mine", b"1"))
        return seen


LENGTH = b"Content-Length: %d"
FIELDS = [
    LENGTH,
    b"content-length:%d",
    b"CONTENT-LENGTH: \t%d \t",
    b"content-length: 0%d",
    b"content-length: 7",
    b"x-content-length: %d",
    b"x: a\r\n content-length: %d",  # folded
    b"Date: today",
    b"date: later",
    b"Set-Cookie: a=1",
    b"set-cookie: a=2",
    b"empty:",
    b"content-type: application/json",
    b"content-type: text/event-stream",
    b"content-encoding: gzip",
    b"transfer-encoding: chunked",
    b"transfer-encoding: gzip",
    b"connection: close",
    b"connection: keep-alive",
    b"Connection: upgrade\r\nUpgrade: websocket",
    b"keep-alive: timeout=5",
    b"Keep-Alive: timeout=9, max=3",
    b"keep-alive: timeout=0",
]
STARTS = [b"HTTP/1.1 %d OK", b"HTTP/1.1 %d", b"HTTP/1.0 %d OK"]
BEFORE = [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nlink: a\r\n\r\n", b"\r\n"]
AFTER = [b"\r\n", b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"]


ORDINARY = [b"Date: today", b"x-a: b", b"keep-alive: timeout=5", b"content-encoding: gzip", b"Set-Cookie: a=1"]


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head with %d where its length belongs."""
    fields = [LENGTH, *draw(st.lists(st.sampled_from(ORDINARY), max_size=3, unique=True))]
    if draw(st.booleans()):
        start = STARTS[0] % draw(st.sampled_from([200, 200, 204, 304, 404]))
        return b"\r\n".join([start, *draw(st.permutations(fields)), b"", b""])
    fields = fields[draw(st.integers(0, 1)) :] + draw(st.lists(st.sampled_from(FIELDS), max_size=2))
    start = draw(st.sampled_from(STARTS)) % draw(st.sampled_from([200, 200, 201, 204, 304, 500, 101]))
    end = draw(st.sampled_from([b"\r\n"] * 6 + [b"\n"]))
    return end.join([start, *draw(st.permutations(fields)), b"", b""])


@st.composite
def answers(draw: st.DrawFn, many: list[bytes]) -> tuple[Any, ...]:
    """On which connection, in which pieces, to which method, until when, at most how long, and whether it closes."""
    head = draw(st.sampled_from(many))
    size = draw(st.sampled_from([0, 1, 2, 7, 8, 9, 10, 11, 95, 96, 97, 98, 99, 100, 101, 102, 999, 1000]))
    body = draw(st.sampled_from([b"x", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"])) * 1020
    on, until = draw(st.integers(0, 1)), draw(st.sampled_from(Until))
    whole = head.replace(b"%d", b"%d" % size) + body[:size]
    if draw(st.integers(0, 2)):
        return on, [whole], b"GET", until, 1 << 20, False
    body = body[: max(size + draw(st.sampled_from([0, 0, -1, 1, 10])), 0)]
    if b"chunked" in head and draw(st.booleans()):
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    data = draw(st.sampled_from([b"", b"", b"", *BEFORE])) + head.replace(b"%d", b"%d" % size) + body
    data += draw(st.sampled_from([b"", b"", b"", *AFTER]))
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=3))
    pieces = [data[a:b] for a, b in pairwise(sorted({0, len(data), *cuts}))]
    method = draw(st.sampled_from([b"GET", b"GET", b"HEAD"]))
    return on, pieces, method, until, draw(st.sampled_from([1 << 20, 50])), draw(st.booleans())


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    many = draw(st.lists(heads(), min_size=1, max_size=3))
    return draw(st.lists(answers(many), min_size=2, max_size=14))


@settings(max_examples=400, deadline=None)
@given(streams())
def test_nobody_sees_a_difference(stream: list[tuple[Any, ...]]) -> None:
    plain, quick = Answers(Forgetful(), 2), Answers(RepeatedAnswer(), 2)
    for answer in stream:
        assert quick.told(*answer) == plain.told(*answer)


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


def ask(connections: Answers, on: int, data: bytes) -> tuple[Any, ...]:
    return connections.told(on, [data], b"GET", Until.WHOLE, 1 << 20, False)


def test_what_one_connection_was_told_of_keep_alive_is_not_anothers() -> None:
    """A head that does not say how long the connection is kept leaves that as it was."""
    for repeated in (Forgetful(), RepeatedAnswer()):
        connections = Answers(repeated, 2)
        ask(connections, 0, PLAIN.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5\r\n\r\n"))
        ask(connections, 0, PLAIN)
        ask(connections, 1, PLAIN)
        assert [link.deadline - 1000.0 for link in connections.links] == [4.0, KEEP]


def test_an_answer_is_recognised_on_every_connection_and_whoever_changed_the_last_one() -> None:
    counting = Counting()
    connections = Answers(counting, 2)
    first = ask(connections, 0, PLAIN)
    assert counting.known == 0
    for n in range(1, 4):
        assert ask(connections, n, PLAIN)[:10] == first[:10]
        assert counting.known == n
    for unlike in (PLAIN.replace(b"200", b"404"), PLAIN + b"x", PLAIN[:-1], PLAIN.replace(b": 2", b": 02")):
        ask(connections, 0, unlike)
        assert counting.known == 3
