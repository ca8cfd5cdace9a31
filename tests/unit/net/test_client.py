"""Pools and exchanges over real sockets: keep-alive, stale connections, limits, times, leaving callers, leaks."""

import asyncio
import gc
from time import monotonic

import pytest
from tests.unit.net.upstreams import Collector, Peer, ask, client, stand_still, upstream

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request
from tollhouse.net.client import Client, Exchange, Origin, Until
from tollhouse.net.timer import Timer

pytestmark = pytest.mark.anyio

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nhi"


async def polite(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(OK)


async def failing(awaitable: object, status: int, *, retry: bool, sent: bool) -> Failure:
    with pytest.raises(Failure) as raised:
        await awaitable  # type: ignore[misc]
    failure = raised.value
    assert (failure.status, failure.retry, failure.sent) == (status, retry, sent), (failure.message, failure.detail)
    assert failure.reason == (Reason.TIMEOUT if status == 504 else Reason.UPSTREAM_FAILURE)
    return failure


async def test_unary() -> None:
    async with upstream(polite) as up, client() as c:
        pool = c.pool(up.origin())
        exchange = await ask(pool, b"body", method=b"POST")
        assert exchange.status == 200
        assert exchange.headers.get(b"content-type") == b"text/plain"
        assert exchange.length == 2
        assert exchange.complete
        assert exchange.take() == b"hi"
        assert exchange.take() == b""
        assert not exchange.event_stream


async def test_one_connection_serves_many_in_turn_and_the_last_used_comes_first() -> None:
    async with upstream(polite) as up, client() as c:
        pool = c.pool(up.origin())
        for _ in range(5):
            await ask(pool)
        assert up.connections == 1
        await asyncio.gather(*(ask(pool) for _ in range(3)))
        assert (pool.open, pool.idle) == (3, 3)
        seen = pool._idle[-1]
        await ask(pool)
        assert pool._idle[-1] is seen


async def test_a_pool_is_its_owners_alone() -> None:
    arrived = asyncio.Semaphore(0)

    async def hold(peer: Peer) -> None:
        await peer.request()
        arrived.release()
        await peer.closed()

    async with upstream(hold) as up, client() as c:
        mine, other = c.pool(up.origin(), 1), c.pool(up.origin(), 2)
        assert (mine.limit, other.limit) == (1, 2)
        mine.patience = 0.05
        held = asyncio.create_task(ask(mine))
        await arrived.acquire()
        await failing(ask(mine), 503, retry=True, sent=False)
        others = asyncio.create_task(ask(other))  # another one's full pool is nothing to it
        await arrived.acquire()
        assert (mine.open, other.open) == (1, 1)
        mine.close()
        await failing(held, 503, retry=False, sent=True)
        assert other.open == 1
        other.close()
        await failing(others, 503, retry=False, sent=True)


async def test_a_retired_pool_keeps_nothing_and_cuts_nothing() -> None:
    async def slow(peer: Peer) -> None:
        while True:
            await peer.request()
            if peer.number:
                arrived.release()
                await may.wait()
            await peer.send(OK)

    may = asyncio.Event()
    arrived = asyncio.Semaphore(0)
    async with upstream(slow) as up, client() as c:
        pool = c.pool(up.origin(), 2)
        await ask(pool)
        idle, pool._idle = pool._idle, []  # so that the next ones open theirs
        busy = asyncio.create_task(ask(pool))
        await arrived.acquire()
        pool._idle = idle
        pool.retire()
        await up.until_left(1)
        assert (pool.open, pool.idle) == (1, 0)
        late = [asyncio.create_task(ask(pool)) for _ in range(2)]  # one has to wait
        await arrived.acquire()
        assert pool.waiting == 1
        may.set()
        assert [e.take() for e in await asyncio.gather(busy, *late)] == [b"hi"] * 3
        await up.until_left(3)
        assert (pool.open, pool.idle) == (0, 0)


async def test_a_pool_that_was_dropped_ends_with_its_last_connection() -> None:
    async with upstream(polite) as up, client() as c:
        pool = c.pool(up.origin())
        pool.keep_alive = 0.05
        await ask(pool)
        del pool
        await up.until_left(1)
        async with asyncio.timeout(5):
            while c._pools:
                gc.collect()
                await asyncio.sleep(0.01)


async def test_stale_connection_is_replaced_and_the_request_sent_again() -> None:
    seen = []

    async def play(peer: Peer) -> None:  # answers once, then closes when the next request comes
        await peer.request()
        await peer.send(OK)
        head, _ = await peer.request()
        seen.append(head)
        peer.cut()

    async with upstream(play) as up, client() as c:
        stand_still(c._clock)
        pool = c.pool(up.origin())
        await ask(pool)
        assert (await ask(pool, b"x", method=b"POST", resend=True)).status == 200
        assert up.connections == 2
        assert len(seen) == 1
        for method in (b"POST", b"PUT", b"GET"):  # the caller alone knows what may be done twice
            await failing(ask(pool, b"x", method=method), 502, retry=True, sent=True)
            await ask(pool)


@pytest.mark.parametrize("begin", [False, True])
async def test_a_request_the_server_worked_on_is_never_sent_again(begin: bool) -> None:
    """A close is the race with our write only as long as it can be one."""
    seen = []

    async def play(peer: Peer) -> None:
        for works in (0.0, 0.5):
            _, body = await peer.request()
            seen.append(body)
            await asyncio.sleep(works)
            if works:
                peer.cut()
            else:
                await peer.send(OK)

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        await ask(pool)
        begun = None
        if begin:
            head = b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\n"
            started = pool.begin(head, b"work", until=Until.WHOLE, deadline=monotonic() + 5, first_byte=5, idle=5)
            assert started is not None
            begun, woken = started
            await woken
        await failing(ask(pool, b"work", method=b"POST", resend=True, begun=begun), 502, retry=True, sent=True)
        assert seen == [b"", b"work"]


async def test_all_idle_connections_stale_costs_one_resend() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await both.wait()
        await peer.send(OK)
        await peer.request()

    both = asyncio.Barrier(4)
    async with upstream(play) as up, client() as c:
        stand_still(c._clock)
        pool = c.pool(up.origin(), 4)
        await asyncio.gather(*(ask(pool) for _ in range(4)))
        both = asyncio.Barrier(1)
        assert (await ask(pool, resend=True)).status == 200  # at the limit: an idle one makes room
        assert up.connections == 5
        assert pool.open <= 4


async def test_no_resend_when_a_byte_of_the_answer_came_or_the_connection_was_new() -> None:
    async def partial(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"H")
        peer.writer.close()

    async with upstream(partial) as up, client() as c:
        stand_still(c._clock)
        pool = c.pool(up.origin())
        await ask(pool)
        await failing(ask(pool, resend=True), 502, retry=True, sent=True)
        assert up.connections == 1

    async def closes(peer: Peer) -> None:
        await peer.request()

    async with upstream(closes) as up, client() as c:
        await failing(ask(c.pool(up.origin()), resend=True), 502, retry=True, sent=True)
        assert up.connections == 1


async def test_a_body_that_was_pushed_is_never_sent_again() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.reader.readexactly(1)
        peer.cut()

    class Body:
        closed = False

        def start(self, sink: object) -> None:
            sink.send(b"x")  # type: ignore[attr-defined]

        def pause(self) -> None: ...

        def resume(self) -> None: ...

        def close(self) -> None:
            self.closed = True

    async with upstream(play) as up, client() as c:
        stand_still(c._clock)
        pool = c.pool(up.origin())
        await ask(pool)
        body = Body()
        call = pool.exchange(
            b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n",
            body,
            method=b"PUT",
            until=Until.WHOLE,
            deadline=monotonic() + 5,
            first_byte=5.0,
            idle=5.0,
            resend=True,
        )
        await failing(call, 502, retry=True, sent=True)
        assert up.connections == 1
        assert body.closed


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_complete_request_body_counts_as_bytes(chunked: bool) -> None:
    bodies = []

    async def play(peer: Peer) -> None:
        if not peer.number:
            await peer.request()
            await peer.send(OK)
        _, body = await peer.request()
        bodies.append(body or await peer.chunks())
        if peer.number:
            await peer.send(OK)

    async with upstream(play) as up, client() as c:
        stand_still(c._clock)
        pool = c.pool(up.origin())
        await ask(pool)
        framing = b"transfer-encoding: chunked" if chunked else b"content-length: 5"
        exchange = await pool.exchange(
            b"POST / HTTP/1.1\r\nhost: a\r\n%b\r\n\r\n" % framing,
            Request(b"POST", b"/", Headers(), b"whole"),
            method=b"POST",
            until=Until.WHOLE,
            deadline=monotonic() + 5,
            first_byte=5.0,
            idle=5.0,
            chunked=chunked,
            resend=True,
        )
        assert exchange.status == 200
        assert bodies == [b"whole", b"whole"]  # so it could be sent again


async def test_bytes_while_idle_retire_the_connection() -> None:
    go = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await go.wait()
        await peer.send(b"HTTP/1.1 408 Too Late\r\ncontent-length: 0\r\n\r\n")
        await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        await ask(pool)
        assert pool.idle == 1
        go.set()
        await up.until_left(1)
        assert (pool.open, pool.idle) == (0, 0)
        assert (await ask(pool)).status == 200
        assert up.connections == 2


async def test_closed_while_idle_leaves_the_pool() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        await ask(pool)
        async with asyncio.timeout(5):
            while pool.open:
                await asyncio.sleep(0.002)
        assert pool.idle == 0
        assert (await ask(pool)).status == 200


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nevil: 1\r\ncontent-length: 4\r\n\r\nevil",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiXX",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhiH",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nHTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
    ],
)
async def test_more_than_one_answer_or_close_is_not_reused(answer: bytes) -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        exchange = await ask(pool)
        assert exchange.take() == b"hi"
        assert exchange.headers.get(b"evil") is None
        assert pool.open == 0
        await up.until_left(1)


async def test_idle_connections_are_closed_in_time_and_as_the_server_says() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nkeep-alive: max=9, timeout=3\r\ncontent-length: 0\r\n\r\n")
        await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        began = monotonic()
        await ask(pool)
        assert 1.5 < pool._idle[0].deadline - began < 2.5
    async with upstream(polite) as up, client() as c:
        pool = c.pool(up.origin())
        pool.keep_alive = 0.05
        await ask(pool)
        await up.until_left(1)
        assert pool.open == 0


async def test_an_idle_connection_past_its_time_is_not_taken() -> None:
    async with upstream(polite) as up:
        now = [monotonic()]
        clock = Clock(source=lambda: now[0])  # nobody turns it but us: the sweeper has not come by
        c = Client(clock)
        pool = c.pool(up.origin())
        await ask(pool)
        clock.now += 31.0
        await ask(pool, total=100)
        assert up.connections == 2
        assert pool.open == 1
        await c.close()


async def test_keep_alive_of_zero_is_not_kept() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=1\r\ncontent-length: 0\r\n\r\n")
        await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        await ask(pool)
        assert pool.open == 0


# ---- limits


async def test_the_limit_holds_and_who_waits_is_served_in_order() -> None:
    at_once = 0
    most = 0
    order = []

    async def play(peer: Peer) -> None:
        nonlocal at_once, most
        while True:
            head, _ = await peer.request()
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.005)
            order.append(head.split()[3])
            at_once -= 1
            await peer.send(OK)

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin(), 2)
        calls = [asyncio.create_task(ask(pool, extra=b"n: %d\r\n" % i)) for i in range(12)]
        await asyncio.gather(*calls)
        assert most == 2
        assert up.connections == 2
        assert (pool.open, pool.waiting) == (2, 0)


async def test_a_full_queue_and_a_long_wait_are_503() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin(), 1)
        pool.queue = 1
        pool.patience = 0.05
        first = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        failure = await failing(ask(pool), 503, retry=True, sent=False)
        assert failure.code == "pool_exhausted"
        assert "pool" in failure.message
        await failing(second, 503, retry=True, sent=False)
        assert pool.waiting == 0
        first.cancel()
        await asyncio.wait([first])
        await up.until_left(1)
        assert pool.open == 0


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    release = asyncio.Event()

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await release.wait()
            await peer.send(OK)

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin(), 1)
        first = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.02)
        waiting = asyncio.create_task(ask(pool))
        third = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        release.set()
        waiting.cancel()
        assert (await first).status == 200
        assert (await third).status == 200
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (pool.open, pool.idle, pool.waiting) == (1, 1, 0)


async def test_given_and_cancelled_in_the_same_turn() -> None:
    async with upstream(polite) as up, client() as c:
        pool = c.pool(up.origin(), 1)
        await ask(pool)
        link = pool._idle.pop()  # as if it were serving somebody
        waiting = asyncio.create_task(ask(pool))
        other = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        pool.give(link)
        waiting.cancel()
        assert (await other).status == 200
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # and the slot instead of the link
        link = pool._idle.pop()
        waiting = asyncio.create_task(ask(pool))
        other = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        link.retire()
        waiting.cancel()
        assert (await other).status == 200
        assert pool.open == 1
        # a connection that dies between being given and being taken
        link = pool._idle.pop()
        waiting = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        pool.give(link)
        link.retire()
        assert (await waiting).status == 200
        assert (pool.open, pool.idle) == (1, 1)


async def test_a_refused_connection_frees_its_slot() -> None:
    async with upstream(polite) as up:
        origin = up.origin()
    async with client() as c:
        pool = c.pool(origin, 1)
        for outcome in await asyncio.gather(*(ask(pool) for _ in range(3)), return_exceptions=True):
            assert isinstance(outcome, Failure)
            assert (outcome.status, outcome.retry, outcome.sent) == (502, True, False)
            assert str(origin.port) not in outcome.message
            assert str(origin.port) in outcome.detail
        assert pool.open == 0


# ---- times


async def test_no_answer_in_time() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 20")  # a part of a head is not an answer
        await peer.closed()

    async with upstream(play) as up, client() as c:
        began = monotonic()
        failure = await failing(ask(c.pool(up.origin()), first_byte=0.1), 504, retry=True, sent=True)
        assert "did not answer" in failure.message
        assert 0.05 < monotonic() - began < 2
        await up.until_left(1)
        failure = await failing(ask(c.pool(up.origin()), total=0.1), 504, retry=True, sent=True)
        assert "did not finish" in failure.message


@pytest.mark.timed
async def test_short_times_are_kept_by_a_clock_that_looks_once_a_second() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi")
        await peer.closed()

    async with upstream(play) as up, client(1.0) as c:
        began = monotonic()
        await failing(ask(c.pool(up.origin()), idle=0.1), 504, retry=True, sent=True)
        assert monotonic() - began < 0.8


async def test_silence_in_the_middle_and_the_whole_time() -> None:
    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi")
        await peer.closed()

    async def drip(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n")
        while True:
            await peer.send(b"x")
            await asyncio.sleep(0.01)

    async with upstream(silent) as up, client() as c:
        exchange = await ask(c.pool(up.origin()), until=Until.HEAD, idle=0.1)
        sink = Collector()
        exchange.start(sink)
        failure = await sink.wait()
        assert failure is not None
        assert (failure.status, failure.reason) == (504, Reason.TIMEOUT)
        assert sink.data == b"hi"
        await up.until_left(1)
    async with upstream(drip) as up, client() as c:
        failure = await failing(ask(c.pool(up.origin()), idle=5.0, total=0.3), 504, retry=True, sent=True)
        assert "did not finish" in failure.message


async def test_a_past_deadline_connects_nowhere() -> None:
    async with upstream(polite) as up, client() as c:
        pool = c.pool(up.origin())
        await failing(ask(pool, total=-1.0), 504, retry=False, sent=False)
        assert (up.connections, pool.open) == (0, 0)


async def test_begin_takes_an_idle_connection_or_nothing() -> None:
    head = b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n"
    async with upstream(polite) as up, client() as c:
        pool = c.pool(up.origin())

        def begin(body: bytes = b"x") -> "tuple[Exchange, asyncio.Future[None]] | None":
            return pool.begin(head, body, until=Until.WHOLE, deadline=monotonic() + 5, first_byte=5, idle=5)

        assert begin() is None
        await ask(pool)
        assert begin(b"") is None  # that is not for here
        begun = begin()
        assert begun is not None
        assert begin() is None
        exchange, woken = begun
        await woken
        assert (exchange.status, exchange.complete, exchange.take()) == (200, True, b"hi")
        pool._idle[0].deadline = 0.0  # past its time
        assert begin() is None
        assert pool.open == 0


async def test_what_was_begun_on_a_stale_connection_is_sent_again() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()

    head = b"POST / HTTP/1.1\r\ncontent-length: 1\r\n\r\n"
    async with upstream(play) as up, client() as c:
        stand_still(c._clock)
        pool = c.pool(up.origin())
        for resend in (True, False):
            if not pool.idle:
                await ask(pool)
            begun = pool.begin(head, b"x", until=Until.WHOLE, deadline=monotonic() + 5, first_byte=5, idle=5)
            assert begun is not None
            exchange, woken = begun
            await woken
            assert exchange.failure is not None
            again = pool.exchange(
                head,
                b"x",
                method=b"POST",
                until=Until.WHOLE,
                deadline=monotonic() + 5,
                first_byte=5,
                idle=5,
                resend=resend,
                begun=exchange,
            )
            if resend:
                assert (await again).take() == b"hi"
            else:
                await failing(again, 502, retry=True, sent=True)


# ---- callers that leave


async def test_a_cancelled_caller_cuts_the_connection() -> None:
    got = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        got.set()
        await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        call = asyncio.create_task(ask(pool))
        await got.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert pool.open == 0
        await up.until_left(1)


async def test_the_answer_and_the_cancellation_come_together() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        await ask(pool)
        link = pool._idle[0]
        for until in (Until.WHOLE, Until.HEAD):
            call = asyncio.create_task(ask(pool, until=until))
            await asyncio.sleep(0)
            call.cancel()  # its future is cancelled; the task has not run yet
            link.data_received(OK[:-1] if until is Until.HEAD else OK)
            with pytest.raises(asyncio.CancelledError):
                await call
        assert link.lost
        assert pool.open == 0
        # the other order: woken, then cancelled before it runs
        await ask(pool)
        link = pool._idle[0]
        call = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        link.data_received(OK)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert pool.idle == 1  # the answer was whole: the connection is good


async def test_cancelled_at_every_await() -> None:
    """Cancel after each number of loop turns, from before the connection to after the answer."""

    async def play(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(OK[:30])
            await asyncio.sleep(0)
            await peer.send(OK[30:])

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin(), 2)
        finished = 0
        for turns in (*range(60), *(1 << n for n in range(6, 20))):  # as many as it takes: the kernel has its own time
            calls = [asyncio.create_task(read(pool)) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            finished += sum(not isinstance(outcome, BaseException) for outcome in outcomes)
            assert all(o == b"hi" or isinstance(o, asyncio.CancelledError) for o in outcomes), outcomes
            assert pool.waiting == 0
            assert pool.open == pool.idle <= 2
            if turns >= 60 and finished:
                break
        assert finished
        assert (await ask(pool)).status == 200


async def read(pool: object) -> bytes:
    exchange = await ask(pool, until=Until.HEAD)  # type: ignore[arg-type]
    return await exchange.read(100)


async def test_a_late_close_does_not_hurt_the_next_user() -> None:
    waiting = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await waiting.wait()
        await peer.send(OK.replace(b"hi", b"yo"))

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        old = await ask(pool)
        call = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.02)
        old.pause()
        old.send(b"garbage")
        old.end(Failure(500, Reason.INTERNAL, "late"))
        old.close()
        old.close()
        old.resume()
        waiting.set()
        assert (await call).take() == b"yo"
        assert up.connections == 1


async def test_close_of_an_unfinished_answer_cuts_it() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi")
        await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin())
        exchange = await ask(pool, until=Until.HEAD)
        sink = Collector()
        exchange.start(sink)
        exchange.close()
        await up.until_left(1)
        assert not sink.ends
        assert pool.open == 0
        with pytest.raises(Failure):
            await exchange.read(10)
        exchange = await ask(pool, until=Until.HEAD)
        exchange.close()
        sink = Collector()
        exchange.start(sink)
        assert not sink.ends


async def test_closing_the_client_ends_everything() -> None:
    async def play(peer: Peer) -> None:
        await peer.request()
        await peer.closed()

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin(), 1)
        served = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.02)
        waiting = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        await c.close()
        await failing(served, 503, retry=False, sent=True)
        await failing(waiting, 503, retry=False, sent=False)
        await failing(ask(pool), 503, retry=False, sent=False)
        assert pool.open == 0
        await up.until_left(1)


# ---- memory


async def test_nothing_is_left_for_the_collector() -> None:
    """Load with answers, streams, failures, cut streams, cancelled callers, refusing sinks and timeouts."""

    async def play(peer: Peer) -> None:
        while True:
            head, _ = await peer.request()
            kind = head.split(b"kind: ")[1].split(b"\r\n")[0]
            if kind == b"ok":
                await peer.send(OK)
            elif kind == b"stream":
                await peer.send(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for _ in range(5):
                    await peer.send(b"3\r\nabc\r\n")
                await peer.send(b"0\r\n\r\n")
            elif kind == b"cut":
                await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi")
                return
            elif kind == b"garbage":
                await peer.send(b"nonsense\r\n\r\n")
                return
            else:
                await peer.closed()
                return

    class Refusing(Collector):
        def send(self, data: bytes) -> None:
            raise Failure(502, Reason.UPSTREAM_FAILURE, "not this")

    async def one(pool: object, kind: bytes) -> None:
        extra = b"kind: %b\r\n" % kind
        try:
            if kind in (b"stream", b"cut"):
                for sink in (Collector(), Refusing()):
                    exchange = await ask(pool, until=Until.HEAD, extra=extra)  # type: ignore[arg-type]
                    exchange.start(sink)
                    await sink.wait()
                exchange = await ask(pool, extra=extra, until=Until.HEAD)  # type: ignore[arg-type]
                exchange.close()
                exchange = await ask(pool, extra=extra, until=Until.HEAD)  # type: ignore[arg-type]
                await exchange.read(1 << 20)
            else:
                await ask(pool, extra=extra, first_byte=0.05)  # type: ignore[arg-type]
        except Failure:
            pass

    async with upstream(play) as up, client() as c:
        pool = c.pool(up.origin(), 8)
        closed = c.pool(Origin.of("http://127.0.0.1:1/")[0])
        await one(pool, b"ok")
        gc.collect()
        gc.disable()
        try:
            for kind in (b"ok", b"stream", b"cut", b"garbage", b"silent"):
                await asyncio.gather(*(one(pool, kind) for _ in range(20)))
                await asyncio.sleep(0.05)
                assert gc.collect() == 0, kind
            for _ in range(5):
                await one(closed, b"ok")
            await asyncio.sleep(0.02)
            assert gc.collect() == 0, "refused"
            call = asyncio.create_task(one(pool, b"silent"))
            await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.wait([call])
            del call
            await asyncio.sleep(0.02)
            assert gc.collect() == 0, "cancelled"
        finally:
            gc.enable()


async def test_closed_connections_are_not_watched() -> None:
    async with upstream(polite) as up:
        clock = Clock()
        timer = Timer(clock)
        timer.start()
        c = Client(clock)
        pool = c.pool(up.origin())
        await asyncio.gather(*(ask(pool) for _ in range(10)))
        assert sum(map(len, clock._slices)) == 10
        await c.close()
        assert sum(map(len, clock._slices)) == 0
        timer.stop()
