"""HTTP/1.1 server: bytes of one connection become Requests, Responses become bytes, in order.

Rules. One coroutine per connection, none per request. What the parser reports is only stored; the coroutine acts.
A request wakes the coroutine once when its head is there (its body mostly came along), and a streamed answer flows
by callback from its Source to the transport while the coroutine waits for the end. The client's leaving cancels the
coroutine, and with it the work upstream. `ends` run exactly once, before the last byte is released. Nothing here
refers back to a request after its end, so nothing waits for the cycle collector.
"""

import asyncio
import logging
from collections import deque
from email.utils import formatdate
from typing import Protocol, cast

import httptools

from tollhouse.core.call import Context
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Duplex, Ending, Request, Response, Source, finish
from tollhouse.net.head import STATUS_LINES, Limits, Seen, head_fault, refusal
from tollhouse.net.incoming import Incoming

__all__ = ["Connection", "Limits", "Observer", "Server"]

log = logging.getLogger("tollhouse.net.server")

_HIGH_WATER = 65_536  # bytes of a body, or of unsent answer, before the producer is asked to pause
_MAX_PIPELINE = 16  # requests waiting on one connection before reading pauses
_CHUNK_OVERHEAD = 65_536  # bytes of chunk extensions and trailers, beyond 8 for each byte of body
_LINGER = 2.0  # seconds a client gets to read our last answer while it still sends
_UNREAD = 65_536  # an unread body up to this size is thrown away to keep the connection

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE = b"connection: close\r\n"
_NO_BODY = frozenset((204, 304))
_CHUNKED, _LENGTH, _UNTIL_CLOSE = 0, 1, 2  # how an answer's end is told


class Tally(Protocol):
    """Something that is counted; added to on the hot path."""

    value: float


class Observer(Protocol):
    """What a server counts: connections, and bytes both ways. `refused`: an answer to what never became a request."""

    @property
    def connections(self) -> Tally: ...

    @property
    def received(self) -> Tally: ...

    @property
    def sent(self) -> Tally: ...

    def refused(self, status: int) -> None: ...


class _Unobserved:
    """Counts for nobody."""

    class _Tally:
        value = 0.0

    def __init__(self) -> None:
        self.connections: Tally = self._Tally()
        self.received: Tally = self._Tally()
        self.sent: Tally = self._Tally()

    def refused(self, status: int) -> None: ...


class Server:
    """Makes a Connection for each accepted socket: `loop.create_server(server.accept, ...)`.

    handler gives the answer to each request. `draining` asks every client to move on with its next answer.
    """

    def __init__(
        self,
        handler: Handler[Request, Response],
        clock: Clock,
        limits: Limits | None = None,
        *,
        name: str = "",
        scheme: str = "http",
        observer: Observer | None = None,
    ) -> None:
        self.handler = handler
        self.clock = clock
        self.limits = limits if limits is not None else Limits()
        self.name = name
        self.scheme = scheme
        self.observer: Observer = observer if observer is not None else _Unobserved()
        self.draining = False
        self.connections: set[Connection] = set()
        self.seen = Seen()
        self._date = b""
        self._date_until = 0.0

    def accept(self) -> "Connection":
        return Connection(self, asyncio.get_running_loop())

    def date(self) -> bytes:
        """The Date header line (RFC 9110 section 6.6.1), made once a second."""
        now = self.clock.now
        if now >= self._date_until:
            self._date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
            self._date_until = now + 1.0
        return self._date

    def close_idle(self) -> None:
        """Close the connections that carry no request now."""
        for connection in list(self.connections):
            connection.close_if_idle()

    def abort(self) -> None:
        """The hard end: cut every connection."""
        for connection in list(self.connections):
            connection.abort()

    async def wait_closed(self) -> None:
        """Until every connection's coroutine has ended."""
        tasks = [c.task for c in self.connections if c.task is not None]
        if tasks:
            await asyncio.wait(tasks)


class Connection(asyncio.Protocol):
    """One client connection. As a Sink it frames what the current answer's Source sends."""

    transport: asyncio.Transport

    __slots__ = (
        "_aside",
        "_drained",
        "_fault",
        "_fields",
        "_finished",
        "_framing",
        "_head_bytes",
        "_in_head",
        "_incoming",
        "_left",
        "_lingering",
        "_lost",
        "_out",
        "_queue",
        "_read_paused",
        "_received",
        "_response",
        "_segment",
        "_sent",
        "_served",
        "_source",
        "_tail_bytes",
        "_tunnel",
        "_upgraded",
        "_waiter",
        "_write_paused",
        "busy",
        "deadline",
        "limits",
        "listener",
        "loop",
        "parser",
        "peer",
        "scheme",
        "server",
        "task",
        "transport",
    )

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.limits = server.limits
        self.loop = loop
        self.parser: httptools.HttpRequestParser | None = None
        self.task: asyncio.Task[None] | None = None
        self.listener = server.name
        self.scheme = server.scheme
        self.peer = ""
        self.deadline = FOREVER
        self.busy: Incoming | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._queue: deque[Incoming] = deque()
        self._incoming: Incoming | None = None
        self._fields: list[tuple[bytes, bytes]] = []  # where the header fields of this head go
        self._in_head = False
        self._head_bytes = 0
        self._tail_bytes = 0
        self._segment = 0
        self._served = False
        self._fault = 0
        self._aside = False  # what comes is not for the parser
        self._lost = False
        self._lingering = False
        self._received = server.observer.received
        self._sent = server.observer.sent
        self._read_paused = False
        self._write_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._finished: asyncio.Future[None] | None = None
        self._source: Source | None = None
        self._response: Response | None = None
        self._framing = _CHUNKED
        self._left = 0
        self._out = 0
        self._tunnel: Duplex | None = None
        self._upgraded: bytes | None = None  # bytes after an upgrade request, until somebody takes the tunnel

    # ---- transport callbacks
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        server = self.server
        server.observer.connections.value += 1
        if len(server.connections) >= self.limits.connections:
            self._lost = True
            server.observer.refused(503)
            self.transport.write(refusal(503, server.date()))
            self.transport.close()
            return
        server.connections.add(self)
        name = transport.get_extra_info("peername")
        self.peer = name[0] if name else ""
        self.transport.set_write_buffer_limits(high=_HIGH_WATER)
        self.parser = httptools.HttpRequestParser(self)
        server.clock.watch(self)
        self.arm(self.limits.head_timeout)
        self.task = self.loop.create_task(self._run())

    def data_received(self, data: bytes) -> None:
        size = len(data)
        self._received.value += size
        parser = self.parser
        if self._aside or parser is None:
            self._set_aside(data)
            return
        self._segment = size
        incoming = self._incoming
        had = 0 if incoming is None else incoming.body_size
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except (httptools.HttpParserError, httptools.HttpParserCallbackError):
            self._refuse_with(400)
        if self._incoming is not None:
            self._unfinished(self._incoming, incoming, size, had)
        waiter = self._waiter
        if waiter is not None and (self._queue or self._fault):
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
        elif len(self._queue) >= _MAX_PIPELINE:
            self.pause_reading()

    def _set_aside(self, data: bytes) -> None:
        """Bytes that are not for the parser: a tunnel's, or of a client that is being turned away."""
        if self._tunnel is not None:
            self._tunnel.send(data)
        elif self._upgraded is not None:
            self._upgraded += data
            if len(self._upgraded) > _HIGH_WATER:
                self.pause_reading()

    def _unfinished(self, incoming: Incoming, before: Incoming | None, size: int, had: int) -> None:
        """A request goes on beyond this read: bound what the parser does not."""
        if self._in_head:
            if not self._head_bytes and self.busy is None and not self._queue:
                self.arm(self.limits.head_timeout)
            self._head_bytes += size
            if self._head_bytes > self.limits.head:
                self._refuse_with(431)
            return
        if incoming is before and incoming.chunked:
            self._tail_bytes += size - (incoming.body_size - had)
            if self._tail_bytes > _CHUNK_OVERHEAD + 8 * incoming.body_size:
                self._refuse_with(400)
        if self._fault:  # also where its head came just now
            incoming.fail(Failure(400, Reason.INVALID_REQUEST, "the request body is malformed"))

    def _refuse_with(self, status: int) -> None:
        """No more requests on this connection. The first fault is the one that is told."""
        if not self._fault:
            self._fault = status
        self._aside = True

    def _upgrade(self, rest: bytes) -> None:
        """The parser stops after a request that asks for another protocol (or for CONNECT)."""
        request = self._queue[-1] if self._queue else None
        if self._fault or request is None:
            return
        if request.upgrade:
            self._upgraded = rest
            self._aside = True
            return
        # An Upgrade we do not speak is ignored (RFC 9110 section 7.8); the parser has stopped, so a new one goes on.
        self.parser = parser = httptools.HttpRequestParser(self)
        if rest:
            try:
                parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                self._upgrade(rest[upgrade.args[0] :])
            except (httptools.HttpParserError, httptools.HttpParserCallbackError):
                self._refuse_with(400)

    def eof_received(self) -> None:
        """The client went away. A half-closed client is taken for gone: nothing else could cancel its work in time."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        server = self.server
        server.connections.discard(self)
        server.clock.drop(self)
        self.parser = None  # it holds our methods: a cycle
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.end()
        waiter, self._waiter = self._waiter, None
        if self.busy is not None and self.task is not None:
            if self._incoming is self.busy:
                self.busy.fail(Failure(499, Reason.CLIENT_GONE, "the client went away"))
            self.task.cancel()
        elif waiter is not None and not waiter.done():
            waiter.set_result(None)

    def pause_writing(self) -> None:
        self._write_paused = True
        if self._source is not None:
            self._source.pause()
        self.arm(self.limits.write_timeout)

    def resume_writing(self) -> None:
        self._write_paused = False
        self.deadline = FOREVER
        if self._source is not None:
            self._source.resume()
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # ---- time
    def arm(self, seconds: float) -> None:
        clock = self.server.clock
        self.deadline = clock.now + seconds
        if seconds < 2.0:
            clock.hurry(self)

    def expire(self) -> None:
        self.deadline = FOREVER
        if self._write_paused or self._lingering:
            self.transport.abort()
        elif self.busy is not None and not self.busy.complete and self.busy.wanted:
            self.busy.fail(Failure(408, Reason.TIMEOUT, "the request body did not come in time"))
        elif self._waiter is not None and self._in_head and not self._fault:
            self._refuse_with(408)
            waiter, self._waiter = self._waiter, None
            if not waiter.done():
                waiter.set_result(None)
        elif self.busy is None:
            self.transport.abort() if self._in_head else self.transport.close()

    # ---- parser callbacks: store, do not act
    def on_message_begin(self) -> None:
        self._incoming = incoming = Incoming(self)
        self._fields = incoming.headers
        self._in_head = True
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        incoming = self._incoming
        if incoming is not None:
            if incoming.target:
                url = incoming.target + url  # comes in pieces when the head does
            incoming.target = url
            if len(url) > self.limits.target:
                self._refuse_with(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        request = self._incoming
        parser = self.parser
        if request is None or parser is None:
            return
        self._in_head = False
        self._fields = []  # what comes now are trailer fields, and dropped
        self._tail_bytes = 0
        if self._fault:
            return
        request.method = parser.get_method()
        request.version = version = parser.get_http_version()
        request.keep_alive = version == "1.1" and parser.should_keep_alive()
        fault = head_fault(request, self.limits, self._segment, parser.should_upgrade(), self.server.seen)
        if fault:
            self._refuse_with(fault)
            return
        request.context = Context()
        self._queue.append(request)

    def on_body(self, body: bytes) -> None:
        incoming = self._incoming
        if incoming is not None and not self._fault:
            incoming.feed(body)

    def on_message_complete(self) -> None:
        incoming = self._incoming
        self._incoming = None
        if incoming is not None and not self._fault:
            incoming.complete = True
            if incoming.wanted:
                incoming.finished()

    # ---- reading
    def pause_reading(self) -> None:
        if not self._read_paused and not self._lost:
            self._read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._read_paused and not self._lost:
            self._read_paused = False
            self.transport.resume_reading()

    pause = pause_reading  # as the Feeder of a tunnel
    resume = resume_reading

    def wants_body(self, request: Incoming) -> None:
        if request.expects:
            request.expects = False
            if request.body_size == 0 and not self._lost:
                self.transport.write(_CONTINUE)
        self.resume_reading()

    # ---- the coroutine
    async def _run(self) -> None:
        queue = self._queue
        try:
            while not self._lost:
                if not queue:
                    if self._fault:
                        self._refuse()
                        return
                    if self.server.draining and self._served and not self._in_head:
                        return
                    self.resume_reading()
                    if self._in_head:
                        self.arm(self.limits.head_timeout)
                    elif self._served:
                        self.arm(self.limits.idle_timeout)
                    self._waiter = waiter = self.loop.create_future()
                    await waiter
                    continue
                request = self.busy = queue.popleft()
                self.deadline = FOREVER
                await self._answer(request)
                self._served = True
                if not request.keep_alive or not (request.complete or await self._discard(request)):
                    return
                if self._write_paused:  # who does not take its answers gets no more of them, until its time is up
                    self._drained = drained = self.loop.create_future()
                    await drained
                self.busy = None
                request.release()
                del request
        except asyncio.CancelledError:
            if not self._lost:
                self.transport.abort()
            return
        except Exception:  # the root of this connection's task: a bug ends this connection and no other
            log.exception("connection from %s ended by an internal error", self.peer)
            self.transport.abort()
        finally:
            if self.busy is not None:
                self.busy.release()
            self.busy = None
            self.task = None
            queue.clear()
            unread = self._incoming is not None or self._fault
            self._incoming = None
            if not self._lost:
                self._linger() if unread else self.transport.close()

    def _linger(self) -> None:
        """Close, but not while bytes are on their way to us: the kernel would answer them with a reset, and the client
        might lose our last answer with that (RFC 9112 section 9.6)."""
        if not self.transport.can_write_eof() or self.transport.is_closing():
            self.transport.close()
            return
        self._aside = self._lingering = True
        self.resume_reading()
        self.transport.write_eof()
        self.arm(_LINGER)

    async def _discard(self, request: Incoming) -> bool:
        """An unread body is thrown away when it is small; else the connection ends."""
        if request.expects:
            return False
        request.close()
        request.body_size = 0
        try:
            await request.read(_UNREAD)
        except Failure:
            return False
        return True

    async def _answer(self, request: Incoming) -> None:
        response: Response | None = None
        try:
            try:
                response = await self.server.handler(request)
            except Failure as failure:
                response = _rendered(failure, request)
            except Exception as error:  # a bug answers 500, in the caller's dialect, and the connection lives
                log.exception("internal error while answering %s", request.context.request_id or "a request")
                response = _rendered(
                    Failure(500, Reason.INTERNAL, "internal error", detail=type(error).__name__), request
                )
            self._response = response
            if response.tunnel is not None:
                await self._serve_tunnel(request, response)
            elif response.source is None:
                self._send_whole(request, response)
            else:
                await self._stream(request, response)
        finally:
            self._response = None
            source, self._source = self._source, None
            if source is not None:
                source.close()
            if response is not None and response.source is not None and source is None:
                response.source.close()
            self._settle(request, response, gone=True)  # does nothing when the end was regular

    def _settle(
        self, request: Incoming, response: Response | None, failure: Failure | None = None, *, gone: bool = False
    ) -> None:
        ends = request.ends
        if response is not None and response.ends:
            ends = response.ends + ends  # the call's first, then the request's
            response.ends = None
        if not ends:
            return
        request.ends = []
        if gone:
            ending = Ending(499, Reason.CLIENT_GONE, self._out, None, True)
        elif response is None:
            ending = Ending(500, Reason.INTERNAL, 0)
        else:
            ending = Ending(response.status, response.reason, self._out, failure)
        finish(ends, ending)

    def _send_whole(self, request: Incoming, response: Response) -> None:
        body = response.body
        status = response.status
        head = self._head(request, response)
        bodyless = request.method == b"HEAD" or status in _NO_BODY
        self._out = 0 if bodyless else len(body)
        self._settle(request, response)
        if bodyless:
            length = response.length if response.length is not None else len(body)
            tail = b"\r\n" if status in _NO_BODY else b"content-length: %d\r\n\r\n" % length
        else:
            tail = b"content-length: %d\r\n\r\n%b" % (len(body), body)
        self._write(head + tail)

    async def _stream(self, request: Incoming, response: Response) -> None:
        source = response.source
        assert source is not None
        head = self._head(request, response)
        self._out = 0
        if request.method == b"HEAD" or response.status in _NO_BODY:
            source.close()
            response.source = None
            self._settle(request, response)
            length = response.length
            tail = b"" if length is None or response.status in _NO_BODY else b"content-length: %d\r\n" % length
            self._write(head + tail + b"\r\n")
            return
        if response.length is not None:
            self._framing = _LENGTH
            self._left = response.length
            head += b"content-length: %d\r\n\r\n" % response.length
        elif request.version == "1.1":
            self._framing = _CHUNKED
            head += b"transfer-encoding: chunked\r\n\r\n"
        else:
            self._framing = _UNTIL_CLOSE
            head += b"\r\n"
        self._write(head)
        self._finished = finished = self.loop.create_future()
        self._source = source
        source.start(self)
        if self._write_paused:
            source.pause()
        try:
            await finished
        finally:
            self._finished = None

    async def _serve_tunnel(self, request: Incoming, response: Response) -> None:
        tunnel = response.tunnel
        assert tunnel is not None
        request.keep_alive = False
        if not request.upgrade or self._upgraded is None:
            tunnel.close()
            raise Failure(500, Reason.INTERNAL, "a tunnel answers only an upgrade")
        lines = [
            STATUS_LINES[101],
            *(b"%b: %b\r\n" % pair for pair in response.headers),
            b"connection: upgrade\r\n\r\n",
        ]
        self._write(b"".join(lines))
        self._framing = _UNTIL_CLOSE
        self._out = 0
        self._finished = finished = self.loop.create_future()
        rest, self._upgraded = self._upgraded, None
        self._source = tunnel
        self._tunnel = tunnel
        self._aside = True
        self.resume_reading()
        tunnel.feed(self)
        tunnel.start(self)
        if rest:
            tunnel.send(rest)
        try:
            await finished
        finally:
            self._finished = None
            self._tunnel = None

    # ---- Sink: the answer's Source delivers here
    def send(self, data: bytes) -> None:
        if self._lost:
            return
        size = len(data)
        self._out += size
        if self._framing == _CHUNKED:
            if size:
                self._write(b"%x\r\n%b\r\n" % (size, data))
        elif self._framing == _LENGTH:
            self._left -= size
            if self._left < 0:  # more than was announced: the client would read it as the next answer
                self.transport.abort()
                return
            self._write(data)
        else:
            self._write(data)

    def end(self, failure: Failure | None = None) -> None:
        request, response = self.busy, self._response
        self._source = None
        if response is not None:
            response.source = None
        if request is None or self._lost:
            return
        if failure is not None:
            if response is not None and response.last_words is not None and self._framing == _CHUNKED:
                self.send(response.last_words(failure))
            else:
                self._cut(request, response, failure)
                return
        elif self._framing == _LENGTH and self._left:
            self._cut(request, response, Failure(502, Reason.UPSTREAM_FAILURE, "the answer was cut short"))
            return
        try:
            self._settle(request, response, failure)
        except Exception:  # called from the upstream's callback, which a record that cannot be written must not kill
            log.exception("the end of request %s could not be settled; its answer is cut", request.context.request_id)
            self.transport.abort()
            return
        if self._framing == _CHUNKED:
            self._write(b"0\r\n\r\n")
        finished = self._finished
        if finished is not None and not finished.done():
            finished.set_result(None)

    def _cut(self, request: Incoming, response: Response | None, failure: Failure) -> None:
        """The client must see that this is not the whole answer."""
        self.transport.abort()
        self._settle(request, response, failure)

    # ---- writing
    def _write(self, data: bytes) -> None:
        if self._lost:
            return
        self._sent.value += len(data)
        self.transport.write(data)

    def _head(self, request: Incoming, response: Response) -> bytes:
        """Status line and headers, without the blank line."""
        server = self.server
        status = response.status
        line = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        parts = [line, server.date()]
        parts += [b"%b: %b\r\n" % pair for pair in response.headers]
        request_id = request.context.request_id
        if request_id:
            parts.append(b"x-request-id: %b\r\n" % request_id.encode("latin-1"))
        if server.draining or request.expects or request.upgrade:
            request.keep_alive = False
        if not request.keep_alive:
            parts.append(_CLOSE)
        return b"".join(parts)

    def _refuse(self) -> None:
        status = self._fault
        self.server.observer.refused(status)
        self._write(refusal(status, self.server.date()))

    def close_if_idle(self) -> None:
        if self.busy is None and not self._queue and not self._in_head:
            self.transport.close()

    def abort(self) -> None:
        self.transport.abort()


def _rendered(failure: Failure, request: Request) -> Response:
    request.context.error = failure.detail or failure.message
    response = request.render(failure, request)
    headers = response.headers
    headers.append((b"x-tollhouse-reason", failure.reason.encode()))
    if failure.retry_after is not None and not any(n == b"retry-after" for n, _ in headers):
        headers.append((b"retry-after", b"%d" % max(1, -int(-failure.retry_after // 1))))
    return response
