"""One client connection: its bytes become Requests (`net.requests`), which are answered here, in order.

Rules. One coroutine per connection, none per request. What was read is only stored; the coroutine acts.
A request wakes the coroutine once when its head is there (its body mostly came along), and a streamed answer flows
by callback from its Source to the transport while the coroutine waits for the end. The client's leaving cancels the
coroutine, and with it the work upstream. Nothing here refers back to a request after its end, so nothing waits for
the cycle collector.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, cast

from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Duplex, Ending, Request, Response
from tollhouse.net.head import TOO_SLOW, Fault, Limits, Seen, full, refusal
from tollhouse.net.incoming import Incoming
from tollhouse.net.outgoing import NO_BODY, Outgoing, Tally, fields, rendered, settle
from tollhouse.net.requests import MAX_PIPELINE, Requests

__all__ = ["Connection", "Observer"]

log = logging.getLogger("tollhouse.net.server")

_HIGH_WATER = 65_536  # bytes of unsent answer before the producer is asked to pause
_LINGER = 2.0  # seconds a client gets to read our last answer while it still sends
_UNREAD = 65_536  # an unread body up to this size is thrown away to keep the connection

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Observer(Protocol):
    """What a server counts: connections, and bytes both ways."""

    @property
    def connections(self) -> Tally: ...

    @property
    def received(self) -> Tally: ...

    @property
    def sent(self) -> Tally: ...

    @property
    def handshakes(self) -> Callable[[float], None]:
        """Told how many seconds each took that succeeded."""
        ...

    def refused(self, status: int, reason: Reason, message: str, peer: str, target: bytes) -> str:
        """This is the answer to what never became a request: its x-request-id, or "". target: of the request, as far as
        it is known."""
        ...


class Home(Protocol):
    """The server as its connections see it."""

    handler: Handler[Request, Response]
    clock: Clock
    limits: Limits
    name: str
    scheme: str
    observer: Observer
    draining: bool
    connections: "set[Connection]"
    seen: Seen

    @property
    def crowded(self) -> bool: ...

    def start(self, status: int) -> bytes: ...


class Connection(asyncio.Protocol):
    """One client connection, from its accepted socket to its loss."""

    transport: asyncio.Transport

    __slots__ = (
        "_aside",
        "_drained",
        "_lingering",
        "_lost",
        "_outgoing",
        "_read_paused",
        "_received",
        "_requests",
        "_response",
        "_sent",
        "_stopped",
        "_tunnel",
        "_waiter",
        "_write_paused",
        "busy",
        "deadline",
        "limits",
        "listener",
        "loop",
        "peer",
        "scheme",
        "server",
        "task",
        "transport",
    )

    def __init__(self, server: Home, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.limits = server.limits
        self.loop = loop
        self.task: asyncio.Task[None] | None = None
        self.listener = server.name
        self.scheme = server.scheme
        self.peer = ""
        self.deadline = FOREVER
        self.busy: Incoming | None = None  # its answer is being made
        self._waiter: asyncio.Future[None] | None = None  # the coroutine, for a request
        self._requests = Requests(self, server.limits, server.seen)
        self._aside = False  # what comes is a tunnel's, or of a client that is being turned away
        self._read_paused = False
        self._received = server.observer.received
        # answering
        self._response: Response | None = None
        self._outgoing: Outgoing | None = None
        self._tunnel: Duplex | None = None
        self._write_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._sent = server.observer.sent
        self._lingering = False  # it closes, as soon as the client has taken what was sent
        self._lost = False
        self._stopped: Failure | None = None  # why the request is not to be answered further

    @property
    def certificate(self) -> bytes:
        """The client's certificate in DER, as it was verified in the handshake; b"" where there is none."""
        secured = self.transport.get_extra_info("ssl_object")
        return (secured.getpeercert(True) or b"") if secured is not None else b""

    # ---- transport callbacks
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        server = self.server
        server.observer.connections.value += 1
        name = transport.get_extra_info("peername")
        self.peer = name[0] if name else ""
        server.clock.watch(self)
        if server.crowded:
            self._aside = True
            self._refuse(full(self.limits))
            self._close()
            return
        server.connections.add(self)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._requests.begin()
        self.arm(self.limits.head_timeout)
        self.task = self.loop.create_task(self._run())

    def data_received(self, data: bytes) -> None:
        self._received.value += len(data)
        if self._aside:
            if self._tunnel is not None:
                self._tunnel.send(data)
            return
        requests = self._requests
        requests.feed(data)
        waiter = self._waiter
        if waiter is not None and (requests.queue or requests.fault is not None):
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
        if len(requests.queue) >= MAX_PIPELINE:
            self.pause_reading()

    def eof_received(self) -> None:
        """The client went away. A half-closed client is taken for gone: nothing else could cancel its work in time."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        server = self.server
        server.connections.discard(self)
        server.clock.drop(self)
        self._requests.end()
        if self._outgoing is not None:
            self._outgoing.lose()
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            tunnel.end()
        waiter, self._waiter = self._waiter, None
        if self.busy is not None and self.task is not None:
            if self._requests.incoming is self.busy:
                self.busy.fail(Failure(499, Reason.CLIENT_GONE, "the client went away"))
            self.task.cancel()
        elif waiter is not None and not waiter.done():
            waiter.set_result(None)

    def pause_writing(self) -> None:
        self._write_paused = True
        outgoing = self._outgoing
        if outgoing is not None and outgoing.source is not None:
            outgoing.source.pause()
        self.arm(self.limits.write_timeout)

    def resume_writing(self) -> None:
        self._write_paused = False
        if not self._lingering:  # else its time goes on: some of the answer is still there
            self.deadline = FOREVER
            if self.busy is not None and self.busy.awaited:
                self.arm(self.limits.body_timeout)
        outgoing = self._outgoing
        if outgoing is not None and outgoing.source is not None:
            outgoing.source.resume()
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
        elif self._waiter is not None and self._requests.in_head and self._requests.fault is None:
            self._requests.refuse(TOO_SLOW)
            waiter, self._waiter = self._waiter, None
            if not waiter.done():
                waiter.set_result(None)
        elif self.busy is None:
            self.transport.abort() if self._requests.in_head else self._close()

    # ---- reading
    def pause_reading(self) -> None:
        if not self._read_paused and not self._lost:
            self._read_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._requests.held:
            self.loop.call_soon(self._go_on)  # later: this may be called by what was just parsed
        elif self._read_paused and not self._lost:
            self._read_paused = False
            self.transport.resume_reading()

    def _go_on(self) -> None:
        if not self._lost and not self._aside:
            self._requests.go_on()
            if not self._requests.held:
                self.resume_reading()

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
        requests = self._requests
        queue = requests.queue
        server = self.server
        try:
            while not self._lost:
                if not queue:
                    if requests.held:
                        requests.go_on()
                        continue
                    waiter = self._wait()
                    if waiter is None:
                        return
                    await waiter
                    continue
                request = self.busy = queue.popleft()
                self.deadline = FOREVER
                try:
                    response = await server.handler(request)
                except Failure as failure:
                    response = rendered(failure, request)
                except asyncio.CancelledError:
                    stopped = self._why_stopped()
                    if stopped is None:
                        raise
                    response = rendered(stopped, request)
                    del stopped
                except Exception as error:  # a bug answers 500, in the caller's dialect, and the connection lives
                    log.exception("internal error while answering %s", request.context.request_id or "a request")
                    detail = type(error).__name__
                    response = rendered(Failure(500, Reason.INTERNAL, "internal error", detail=detail), request)
                self._response = response
                finished = self._answer(request, response)
                if finished is not None:
                    await finished
                    self._outgoing = self._tunnel = None
                self._response = None
                requests.served = True
                if not request.keep_alive or not (request.complete or await self._discard(request)):
                    return
                if self._write_paused:  # who does not take its answers gets no more of them, until its time is up
                    self._drained = drained = self.loop.create_future()
                    await drained
                self.busy = None
                request.release()
                del request, response, finished
        except asyncio.CancelledError:
            if not self._lost:
                self.transport.abort()
            return
        except Exception:  # the root of this connection's task: a bug ends this connection and no other
            log.exception("connection from %s ended by an internal error", self.peer)
            self.transport.abort()
        finally:
            if self.busy is not None:
                self._let_go(self.busy)
            self.busy = None
            self.task = None
            unread = requests.unread
            requests.drop()
            if not self._lost:
                self._linger() if unread or self._aside else self._close()

    def _why_stopped(self) -> Failure | None:
        """What the request that was cancelled is to be answered with; None where its client is gone."""
        stopped, self._stopped = self._stopped, None
        if stopped is None or self._lost or self.task is None or self.task.uncancel():
            return None
        return stopped

    def _wait(self) -> "asyncio.Future[None] | None":
        """For the next request; None when there shall be none."""
        server = self.server
        requests = self._requests
        if requests.fault is not None:
            self._refuse(requests.fault, requests.target)
            return None
        if requests.served and not requests.in_head:
            if server.draining:
                return None
            self.arm(self.limits.idle_timeout)
        elif requests.in_head:
            self.arm(self.limits.head_timeout)
        if self._read_paused:
            self.resume_reading()
        self._waiter = waiter = self.loop.create_future()
        return waiter

    def _answer(self, request: Incoming, response: Response) -> "asyncio.Future[None] | None":
        """Send the answer, or begin to: then a future of its end."""
        if self._lost:
            raise asyncio.CancelledError  # again: the handler would not be cancelled
        if self.server.draining or request.expects or request.upgrade:
            request.keep_alive = False
        if response.tunnel is not None:
            return self._switch(request, response, response.tunnel)
        if response.source is not None and request.method != b"HEAD" and response.status not in NO_BODY:
            return self._stream(request, response)
        self._send_whole(request, response)
        return None

    def _send_whole(self, request: Incoming, response: Response) -> None:
        body = response.body
        status = response.status
        parts = [self.server.start(status)]
        fields(parts, request, response)
        out = 0
        if request.method != b"HEAD" and status not in NO_BODY:
            out = len(body)
            parts += (b"content-length: %d\r\n\r\n" % out, body)
        else:
            length = response.length
            if response.source is not None:
                response.source.close()
                response.source = None
            elif length is None:
                length = len(body)
            parts.append(b"\r\n" if length is None or status in NO_BODY else b"content-length: %d\r\n\r\n" % length)
        failure = settle(request, response, Ending(status, response.reason, out), begun=False)
        if failure is not None:
            self._send_whole(request, rendered(failure, request))
            return
        answer = b"".join(parts)
        self._sent.value += len(answer)
        self.transport.write(answer)

    def _stream(self, request: Incoming, response: Response) -> "asyncio.Future[None]":
        source = response.source
        assert source is not None
        finished = self.loop.create_future()
        self._outgoing = outgoing = Outgoing(request, response, source, self.transport, finished, self._sent)
        outgoing.begin(self.server.start(response.status))
        source.start(outgoing)
        if self._write_paused:
            source.pause()
        return finished

    def _switch(self, request: Incoming, response: Response, tunnel: Duplex) -> "asyncio.Future[None]":
        requests = self._requests
        if not request.upgrade or requests.upgraded is None:
            raise Failure(500, Reason.INTERNAL, "a tunnel answers only an upgrade")
        finished = self.loop.create_future()
        self._outgoing = outgoing = Outgoing(request, response, tunnel, self.transport, finished, self._sent)
        outgoing.switch()
        rest, requests.upgraded = requests.upgraded, None
        self._tunnel = tunnel
        self._aside = True
        self.resume_reading()
        tunnel.feed(self)
        tunnel.start(outgoing)
        if rest:
            tunnel.send(rest)
        return finished

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

    def _let_go(self, request: Incoming) -> None:
        """The exchange ends, mostly before its answer does: stop what still works for it, and settle."""
        response, self._response = self._response, None
        outgoing, self._outgoing = self._outgoing, None
        self._tunnel = None
        if outgoing is not None:
            outgoing.lose()
        if response is not None:
            for source in (response.source, response.tunnel):
                if source is not None:
                    source.close()
        out = 0 if outgoing is None else outgoing.out
        # Does nothing after a regular end.
        settle(request, response, Ending(499, Reason.CLIENT_GONE, out, None, True), begun=True)
        request.release()

    # ---- the end
    def _refuse(self, fault: Fault, target: bytes = b"") -> None:
        server = self.server
        request_id = server.observer.refused(fault.status, fault.reason, fault.message, self.peer, target)
        answer = refusal(fault, server.start(fault.status), request_id)
        self._sent.value += len(answer)
        self.transport.write(answer)

    def _close(self) -> None:
        """Close when what was sent is on its way, and at the latest when its time is up: a client that reads nothing
        would keep its connection otherwise."""
        self._lingering = True
        self.arm(self.limits.write_timeout)
        self.transport.close()

    def _linger(self) -> None:
        """Close, but not while bytes are on their way to us: the kernel would answer them with a reset, and the client
        might lose our last answer with that (RFC 9112 section 9.6)."""
        if not self.transport.can_write_eof() or self.transport.is_closing():
            self._close()
            return
        self._aside = self._lingering = True
        self.resume_reading()
        self.transport.write_eof()
        self.arm(_LINGER)

    def stop(self, which: Callable[[Request, bool], bool], failure: Failure) -> None:
        """End the request under way with `failure`, if it is one of those: where its answer has begun, as that ends
        with any failure. which: told the request, and whether its answer has begun."""
        request, outgoing = self.busy, self._outgoing
        if request is None or self._lost or self._stopped is not None:
            return
        if outgoing is None:
            if self._response is None and self._drained is None and self.task is not None and which(request, False):
                self._stopped = request.context.stopped = failure
                self.task.cancel()
        elif outgoing.source is not None and which(request, True):
            outgoing.source.close()
            outgoing.end(failure)

    def close_if_idle(self) -> None:
        requests = self._requests
        if self.busy is None and not requests.queue and not requests.in_head and not requests.held:
            self._close()

    def abort(self) -> None:
        self.transport.abort()
