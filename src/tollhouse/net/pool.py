"""Kept-alive connections to one origin, and the requests that wait for one.

Rule: a request takes the connection used last, opens one if it may, or waits its turn. A slot is counted from before
its connection is opened until that is given up, and passes straight to who waits longest. Nothing here runs between
requests: an idle connection ages by its deadline.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request, Source
from tollhouse.net.connect import Address, Connector, Origin
from tollhouse.net.exchange import Exchange, Until
from tollhouse.net.link import MAX_ANSWER, Link
from tollhouse.net.repeated_answer import RepeatedAnswer

__all__ = ["Pool"]

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)


class Pool:
    """Connections to one origin, for one owner, who retires it.

    limit: open connections. queue: requests that may wait for one, `patience` seconds each. keep_alive: seconds an
    idle connection is kept, less if the server says so. addresses: dial these and do not resolve.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_closed",
        "_connector",
        "_idle",
        "_links",
        "_open",
        "_queue",
        "_retired",
        "addresses",
        "keep_alive",
        "limit",
        "names",
        "origin",
        "patience",
        "queue",
        "repeated",
    )

    def __init__(
        self,
        origin: Origin,
        connector: Connector,
        clock: Clock,
        *,
        limit: int = 512,
        queue: int = 4096,
        patience: float = 10.0,
        keep_alive: float = 30.0,
        addresses: Sequence[Address] | None = None,
    ) -> None:
        self.origin = origin
        self.limit = limit
        self.queue = queue
        self.patience = patience
        self.keep_alive = keep_alive
        self.addresses = addresses
        self._connector = connector
        self.names: dict[bytes, bytes] = {}  # these two are for the links' use
        self.repeated = RepeatedAnswer()
        self._clock = clock
        self._idle: list[Link] = []
        self._links: set[Link] = set()
        self._queue: deque[asyncio.Future[Link | None]] = deque()
        self._open = 0  # slots: connections open, being opened, or promised to a waiter
        self._closed = self._retired = False

    @property
    def open(self) -> int:
        """Connections open or being opened."""
        return self._open

    @property
    def idle(self) -> int:
        """Of those, the ones nobody uses."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def begin(
        self, head: bytes, body: bytes, until: Until, deadline: float, first_byte: float, idle: float
    ) -> "tuple[Exchange, asyncio.Future[None]] | None":
        """`exchange` up to its first wait, without a coroutine; None when no connection is idle. Not for HEAD. The
        future only wakes: afterwards give the Exchange to `exchange` as `begun`, but for one that has not failed and
        whose status is not 101. Close it when the wait is given up."""
        free = self._idle
        if not free or not body:
            return None
        link = free.pop()
        if link.deadline <= self._clock.now:
            link.retire()
            return None
        exchange = Exchange(link)
        return exchange, link.begin(exchange, head, body, until, deadline, first_byte, idle, MAX_ANSWER)

    async def exchange(
        self,
        head: bytes,
        body: bytes | Source,
        *,
        method: bytes,
        until: Until,
        deadline: float,
        first_byte: float,
        idle: float,
        chunked: bool = False,
        connect: float = 5.0,
        limit: int = MAX_ANSWER,
        resend: bool = False,
        begun: Exchange | None = None,
        written: Callable[[Exchange], None] | None = None,
    ) -> Exchange:
        """Send a request and return its answer as soon as `until` says.

        head: request line and headers with the blank line, whose framing fits `body`: content-length, or
        `transfer-encoding: chunked` with chunked=True (the body is framed here). body: bytes, or a Source that is
        pushed upstream as it comes and is never sent twice; a Request whose body is complete counts as bytes.
        deadline: monotonic seconds. first_byte: seconds from the last byte of the request to the end of the answer's
        head. idle: seconds between two pieces of the answer. connect: seconds. limit: bytes of a WHOLE answer.
        resend: once more on another connection, if the server closed a kept one just as this request was written
        (`Exchange.stale`; RFC 9112 section 9.3.1). That is nearly always the server's end of patience with an idle
        connection, which crossed the request; but a server that read it and died within that quarter of a second does
        it twice, so say it only of what may be done twice. begun: what `begin` gave for the same request, once its
        future has woken. written: told of the exchange once its request is on its way; until then nobody was asked.
        Raises Failure: 503 when no connection is free, 504 when a time has passed, 502 otherwise, and what a Source
        ended with. `retry` is set where another attempt may help, `sent` once the server may have acted upon it.
        """
        source: Source | None = None
        payload: bytes | None = None
        if type(body) is bytes:
            payload = _chunk(body) if chunked else body
        elif isinstance(body, Request) and body.complete:
            content = await body.read(body.body_size)
            payload = _chunk(content) if chunked else content
        else:
            source = body  # type: ignore[assignment]
        again = False
        while True:
            if begun is not None:
                exchange, begun = begun, None
            else:
                link = self._ready() if self._idle and not again else None
                if link is None:
                    link = await self._acquire(deadline, connect, again)
                    if link.lost:  # died between being given and being taken
                        continue
                if method == b"HEAD":
                    link.head_only()
                exchange = Exchange(link)
                waiter = link.begin(exchange, head, payload, until, deadline, first_byte, idle, limit)
                if written is not None:
                    written(exchange)
                try:
                    if source is not None:
                        link.outgoing(source, None if chunked else _announced(head), first_byte)
                        source.start(exchange)
                    await waiter
                except BaseException:
                    exchange.close()
                    raise
            if exchange.failure is None:
                if exchange.status == 101 and b"\r\nupgrade:" not in head.lower():
                    exchange.close()
                    raise Failure(502, Reason.UPSTREAM_FAILURE, "the upstream switched protocols unasked", sent=True)
                return exchange
            if resend and exchange.stale and source is None and not again:
                again = True
                continue
            raise exchange.failed()

    def retire(self) -> None:
        """Its owner goes: what is idle closes now, the rest as it becomes free. Who asks all the same is served."""
        self._retired = True
        for link in list(self._idle):
            link.retire()

    def close(self) -> None:
        """Cut every connection; who waits or is served gets a Failure 503, and so does who comes later."""
        self._closed = True
        queue, self._queue = self._queue, deque()
        for waiter in queue:
            if not waiter.done():
                self._open += 1
                waiter.set_result(None)
        for link in list(self._links):
            link.fail(_stopping(sent=True))
            link.retire()

    # ---- connections
    def _ready(self) -> Link | None:
        """The idle connection used last, if it is still good."""
        idle = self._idle
        now = self._clock.now
        while idle:
            link = idle.pop()
            if link.deadline > now:
                return link
            link.retire()
        return None

    async def _acquire(self, deadline: float, connect: float, fresh: bool) -> Link:
        """A connection given by another request, or a new one; a new one if `fresh` and the limit allows."""
        if self._closed:
            raise _stopping()
        if fresh and self._idle and self._open >= self.limit:
            self._idle[0].retire()
        if self._open < self.limit:
            self._open += 1
        else:
            given = await self._turn(deadline)
            if given is not None:
                return given
        # From here on we hold a slot.
        link = Link(self, self._clock, asyncio.get_running_loop().create_future, self.keep_alive)
        try:
            timeout = min(connect, deadline - monotonic())
            if timeout <= 0.0:
                raise Failure(504, Reason.TIMEOUT, "no time is left to reach the upstream")
            await self._connector.connect(self.origin, link, timeout=timeout, addresses=self.addresses)
            if self._closed:
                raise _stopping()
            if link.lost:
                message = "the upstream closed the connection at once"
                raise Failure(502, Reason.UPSTREAM_FAILURE, message, detail=str(self.origin), retry=True, reached=False)
        except BaseException:
            link.retire()
            self._freed()
            raise
        link.counted = True
        self._links.add(link)
        return link

    async def _turn(self, deadline: float) -> Link | None:
        """Wait for a connection, or for the slot of one (None)."""
        if len(self._queue) >= self.queue:
            raise self._exhausted("too many requests wait")
        waiter: asyncio.Future[Link | None] = asyncio.get_running_loop().create_future()
        self._queue.append(waiter)
        try:
            async with asyncio.timeout(min(self.patience, deadline - monotonic())):
                link = await waiter
        except BaseException as error:
            if waiter in self._queue:
                self._queue.remove(waiter)
            elif waiter.done() and not waiter.cancelled():  # given in the very moment
                link = waiter.result()
                if link is None:
                    self._freed()
                elif not link.lost:
                    self.give(link)
            if isinstance(error, TimeoutError):
                raise self._exhausted("none became free in time") from None
            raise
        if self._closed:
            self._freed()
            raise _stopping()
        return link

    def _exhausted(self, why: str) -> Failure:
        message = "the upstream's connection pool is exhausted"
        detail = f"{self.origin}: {why}; limit {self.limit}"
        return Failure(
            503, Reason.UPSTREAM_FAILURE, message, code="pool_exhausted", detail=detail, retry=True, reached=False
        )

    def _freed(self) -> None:
        """One slot is not used any more: it passes on or is counted off."""
        if self._open <= self.limit:
            while self._queue:
                waiter = self._queue.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    return
        self._open -= 1

    # ---- Home of the links
    def give(self, link: Link) -> None:
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(link)
                return
        if self._retired:
            link.retire()
        else:
            self._idle.append(link)

    def forget(self, link: Link) -> None:
        if link.counted:
            link.counted = False
            self._links.discard(link)
            if link in self._idle:
                self._idle.remove(link)
            self._freed()


def _chunk(body: bytes) -> bytes:
    """A whole body in chunked framing (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"


def _announced(head: bytes) -> int:
    match = _LENGTH.search(head)
    return int(match[1]) if match is not None else 0


def _stopping(*, sent: bool = False) -> Failure:
    return Failure(503, Reason.UPSTREAM_FAILURE, "the gateway is stopping", sent=sent)
