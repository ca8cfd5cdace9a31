"""The HTTP/1.1 server: what the connections of one listener have in common."""

import asyncio
import ssl
from collections.abc import Callable
from email.utils import formatdate

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.net.connection import Connection, Observer
from tollhouse.net.handshake import Handshake
from tollhouse.net.head import STATUS_LINES, Limits, Seen
from tollhouse.net.outgoing import Tally

__all__ = ["Connection", "Limits", "Observer", "Server", "Tally"]


class _Unobserved:
    """Counts for nobody."""

    class _Tally:
        value = 0.0

    def __init__(self) -> None:
        self.connections: Tally = self._Tally()
        self.received: Tally = self._Tally()
        self.sent: Tally = self._Tally()

    def handshakes(self, seconds: float) -> None: ...

    def refused(self, status: int, reason: Reason, message: str, peer: str, target: bytes) -> str:
        return ""


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
        self.handshakes: set[Handshake] = set()
        self.seen = Seen()
        self._starts: dict[int, bytes] = {}
        self._starts_until = 0.0

    def accept(self) -> Connection:
        return Connection(self, asyncio.get_running_loop())

    def accept_tls(self, context: ssl.SSLContext) -> Handshake:
        """In the place of `accept`, where clients speak TLS; the socket's own server is one without it."""
        return Handshake(self, context, asyncio.get_running_loop())

    @property
    def crowded(self) -> bool:
        """Whether there are as many as may be, those in their handshake included."""
        return len(self.connections) + len(self.handshakes) >= self.limits.connections

    def start(self, status: int) -> bytes:
        """How an answer begins: its status line and the Date field (RFC 9110 section 6.6.1), made once a second."""
        starts = self._starts
        now = self.clock.now
        if now >= self._starts_until:
            starts.clear()
            self._starts_until = now + 1.0
        start = starts.get(status)
        if start is None:
            line = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
            start = starts[status] = b"%bdate: %b\r\n" % (line, formatdate(usegmt=True).encode())
        return start

    def close_idle(self) -> None:
        """Close the connections that carry no request now."""
        for connection in list(self.connections):
            connection.close_if_idle()

    def stop(self, which: Callable[[Request, bool], bool], failure: Failure) -> None:
        """End the requests under way of which that is true, with a copy of `failure`, now. which: told the request, and
        whether its answer has begun."""
        for connection in list(self.connections):
            connection.stop(which, failure.copy())

    def abort(self) -> None:
        """The hard end: cut every connection."""
        for client in self._clients():
            client.abort()

    async def wait_closed(self) -> None:
        """Until every connection's coroutine has ended."""
        tasks = [client.task for client in self._clients() if client.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def _clients(self) -> list[Connection | Handshake]:
        return [*self.connections, *self.handshakes]
