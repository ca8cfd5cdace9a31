"""The reading half of a connection: bounds, and that recognising a head says what parsing it would have said."""

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.core.clock import FOREVER
from tollhouse.net.head import Limits, Seen
from tollhouse.net.incoming import Incoming
from tollhouse.net.requests import MAX_PIPELINE, Requests

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost:x\r\n\r\n"


class Carrier:
    """A connection of which nothing is needed but its names."""

    def __init__(self, limits: Limits) -> None:
        self.deadline = FOREVER
        self.listener = self.scheme = self.peer = ""
        self.loop = asyncio.get_running_loop()
        self.limits = limits
        self.busy: Incoming | None = None
        self.paused = False

    def arm(self, seconds: float) -> None:
        self.deadline = seconds

    def wants_body(self, request: Incoming) -> None: ...

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None: ...


def reading(limits: Limits | None = None) -> Requests:
    limits = limits or Limits()
    requests = Requests(Carrier(limits), limits, Seen())
    requests.begin()
    return requests


def taken(requests: Requests) -> list[Incoming]:
    """Everything that can be had: each request goes when it is asked for, and makes room."""
    found = []
    while requests.queue or requests.held:
        if not requests.queue:
            requests.go_on()
            if not requests.queue:
                break
        found.append(requests.queue.popleft())
    return found


def seen(request: Incoming) -> tuple[Any, ...]:
    """All that a handler can see of it, and what the connection decides by."""
    return (
        request.method, request.target, request.path, request.query, request.version, list(request.headers),
        request.upgrade, b"".join(request.parts), request.body_size, request.complete,
        request.chunked, request.expects, request.keep_alive, request.length,
    )  # fmt: skip


# ---- waiting requests


@pytest.mark.parametrize("cut", [1 << 20, 4096, 100, 7])
async def test_no_more_requests_wait_than_may_and_none_is_lost(cut: int) -> None:
    requests = reading()
    wire = b"".join(b"GET /%d HTTP/1.1\r\nHost:x\r\n\r\n" % n for n in range(5000))
    for at in range(0, len(wire), cut):
        requests.feed(wire[at : at + cut])
        assert len(requests.queue) <= MAX_PIPELINE + 1
    found = []
    while requests.queue or requests.held:
        if not requests.queue:
            requests.go_on()
            assert 0 < len(requests.queue) <= MAX_PIPELINE + 1
        found.append(requests.queue.popleft().target)
    assert found == [b"/%d" % n for n in range(5000)]
    assert requests.fault is None


async def test_bodies_that_look_like_heads_do_not_fill_the_queue() -> None:
    body = b"\r\n\r\n" * 1000
    for framed in (
        b"content-length: %d\r\n\r\n%b" % (len(body), body),
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
    ):
        for cut in (1 << 20, 333):
            requests = reading()
            wire = b"POST /p HTTP/1.1\r\nhost: x\r\n" + framed + GET
            for at in range(0, len(wire), cut):
                requests.feed(wire[at : at + cut])
            assert [b"".join(r.parts) for r in taken(requests)] == [body, b""]


async def test_what_waits_behind_a_fault_is_dropped_and_the_fault_is_told_after_the_answers() -> None:
    requests = reading()
    requests.feed(GET * 100 + b"GET / HTTP/1.1\r\nHost : x\r\n\r\n" + GET * 100)
    assert requests.fault is None
    assert len(taken(requests)) == 100
    assert requests.fault is not None
    assert requests.fault.status == 400
    requests.feed(GET)
    assert taken(requests) == []


async def test_bytes_for_a_tunnel_are_not_lost_where_requests_wait() -> None:
    requests = reading()
    upgrade = b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    requests.feed(GET * 40 + upgrade + b"early \r\n\r\n" * 50)
    assert [r.upgrade for r in taken(requests)] == [False] * 40 + [True]
    assert requests.upgraded == b"early \r\n\r\n" * 50
    requests.feed(b"late")
    assert requests.upgraded.endswith(b"late")


async def test_upgrades_that_are_ignored_cost_no_recursion() -> None:
    requests = reading()
    requests.feed(b"GET / HTTP/1.1\r\nHost:x\r\nUpgrade:x\r\nConnection:upgrade\r\n\r\n" * 3000)
    assert len(taken(requests)) == 3000
    assert requests.fault is None


# ---- the bound of the head

SMALL = Limits(head=2000, target=1000)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1900, 2100),
    st.integers(1, 40),
    st.lists(st.floats(0.0, 1.0), max_size=6),
    st.sampled_from([b"", GET, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n" + b"a" * 5000]),
)
async def test_the_bound_of_the_head_does_not_depend_on_the_cuts(
    size: int, fields: int, shares: list[float], before: bytes
) -> None:
    """size: as it is measured: the target, and of each field its name, its value and four more."""
    left = size - 1 - len("host: x\r\n") - 8 * fields
    values = [left // fields + (n < left % fields) for n in range(fields)]
    head = b"GET / HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x%03d: %b\r\n" % (n, b"a" * v) for n, v in enumerate(values))
    wire = before + head + b"\r\n"
    cuts = sorted({0, len(wire), *(len(before) + int(share * len(head)) for share in shares)})
    requests = reading(SMALL)
    for a, b in pairwise(cuts):
        requests.feed(wire[a:b])
    told = requests.fault.status if requests.fault is not None else 200
    assert told == (200 if size <= SMALL.head else 431)


@pytest.mark.parametrize("piece", [1, 100, 5000])
@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nx:  "])
async def test_a_head_without_end_is_refused(start: bytes, piece: int) -> None:
    requests = reading(SMALL)
    requests.feed(start)
    sent = 0
    while requests.fault is None and sent < 20_000:
        requests.feed((b" " if start.endswith(b"  ") else b"a") * piece)
        sent += piece
    assert requests.fault is not None
    assert requests.fault.status == 431
    assert sent <= SMALL.head + 1024 + 5000


# ---- heads that come again


def message(
    method: bytes = b"POST",
    target: bytes = b"/p",
    name: bytes = b"Content-Length",
    body: bytes = b"",
    more: bytes = b"",
) -> bytes:
    return b"%b %b HTTP/1.1\r\nHost: x\r\n%b: %d\r\n%b\r\n%b" % (method, target, name, len(body), more, body)


_BODIES = st.builds(
    lambda begin, size: (begin + b"a" * size)[:size],
    st.sampled_from([b"", b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", GET, b"\r\ncontent-length: 7\r\n\r\n"]),
    st.sampled_from([0, 1, 2, 7, 8, 9, 10, 11, 89, 90, 91, 98, 99, 100, 101, 997, 998, 999, 1000, 1001, 2000, 2001]),
)
_MORE = st.sampled_from(
    [
        b"", b"", b"X: y \t\r\n", b"x-content-length: 3\r\n", b"X: Content-Length: 3\r\n", b"Connection: close\r\n",
        b"Connection: keep-alive\r\n", b"Connection: x, close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n",
        b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"Host: y\r\n", b"X : y\r\n", b"X: a\r\n b\r\n",
    ]
)  # fmt: skip
_NAMES = st.sampled_from([b"Content-Length", b"Content-Length", b"content-length", b"X-Length", b"Content-Length:0"])
_MESSAGES = st.one_of(
    st.builds(message, body=_BODIES),
    st.builds(message, st.sampled_from([b"POST", b"PUT", b"GET", b"HEAD"]), body=_BODIES, more=_MORE),
    st.builds(message, target=st.sampled_from([b"/p", b"/p?q=1", b"http://y/p", b"*"]), name=_NAMES, body=_BODIES),
    st.builds(lambda a, b: a + b, st.sampled_from([b"\r\n", b"\r", b"\n", b""]), st.builds(message, body=_BODIES)),
    st.builds(lambda a, b: a + b, st.builds(message, body=_BODIES), st.sampled_from([b"\r\n", b"\r", b"\n", b"x"])),
    st.builds(lambda inner: message(body=message(body=inner)), _BODIES),
    st.sampled_from([GET, GET.replace(b"1.1", b"1.0"), b"\r\n", b"\r", b"0\r\n\r\n"]),
    st.just(b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n"),
)


@st.composite
def _reads(draw: st.DrawFn) -> list[bytes]:
    """Messages, most of them more than once, in reads that mostly hold one of them, or several, or parts."""
    messages = [
        one for one, times in draw(st.lists(st.tuples(_MESSAGES, st.integers(1, 4)), max_size=6)) for _ in range(times)
    ]
    wire = b"".join(messages)
    cuts, at = {0, len(wire)}, 0
    for one in messages:
        at += len(one)
        if draw(st.integers(0, 5)):
            cuts.add(at)
        if draw(st.booleans()):
            cuts.add(at - len(one) + one.find(b"\r\n\r\n") + 4)
    cuts |= {int(share * len(wire)) for share in draw(st.lists(st.floats(0.0, 1.0), max_size=3))}
    return [wire[a:b] for a, b in pairwise(sorted(cuts))]


def outcome(reads: Iterable[bytes], limits: Limits, *, recognises: bool, eager: bool) -> tuple[Any, ...]:
    """What a connection sees. eager: it takes each request as soon as it is there, else all of them at the end."""
    requests = reading(limits)
    requests.served = recognises
    found: list[Incoming] = []
    for read in reads:
        requests.feed(read)
        if eager:
            found += taken(requests)
    found += taken(requests)
    told = []
    for request in found:
        told.append(seen(request))
        if not request.keep_alive:  # the connection ends with it
            return (told,)
    return told, requests.fault, requests.in_head, requests.upgraded, requests.unread


@settings(max_examples=1500, deadline=None)
@given(_reads(), st.booleans())
async def test_a_head_that_comes_again_is_seen_as_the_parser_sees_it(reads: list[bytes], eager: bool) -> None:
    limits = Limits(body=2000)
    parsed = outcome(reads, limits, recognises=False, eager=eager)
    assert outcome(reads, limits, recognises=True, eager=eager) == parsed
    assert outcome([bytes((b,)) for read in reads for b in read], limits, recognises=True, eager=eager)[0] == parsed[0]


async def test_a_read_that_looks_like_the_head_is_a_body_or_a_value_where_one_is_coming() -> None:
    """The ways to smuggle: the same bytes where something else is being read, or has to be read first."""
    known = message(body=b"abc")
    outer = message(target=b"/outer", body=known)
    chunked = b"POST /chunked HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(known)
    for reads, targets in (
        ([outer[: -len(known)], known], [b"/outer"]),
        ([chunked, known, b"\r\n0\r\n\r\n"], [b"/chunked"]),
        ([b"GET /head HTTP/1.1\r\nX: ", known], [b"/head"]),
        ([b"GET /held HTTP/1.1\r\nHost: x\r\n\r\n" * 40, known], [b"/held"] * 40 + [b"/p"]),
    ):
        requests = reading()
        requests.served = True
        requests.feed(known)
        taken(requests)
        for read in reads:
            requests.feed(read)
        assert [request.target for request in taken(requests)] == targets


async def test_the_test_before_has_something_to_compare() -> None:
    """That heads are recognised at all: with another parser's end they are not parsed."""
    requests = reading()
    requests.served = True
    for body in (b"a", b"bb"):
        requests.feed(message(body=body))
    requests._parser = None
    for body in (b"c" * 10, b"", b"d" * 1234):
        requests.feed(message(body=body))
    assert [b"".join(request.parts) for request in taken(requests)] == [b"a", b"bb", b"c" * 10, b"", b"d" * 1234]
