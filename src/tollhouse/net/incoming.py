"""A request whose body is still coming: what the parser stored, and who waits for it.

Rule: the body is held, up to a bound, until somebody reads it whole (`read`) or asks for it as it comes (`start`);
reading from the socket pauses meanwhile. A request refers to its connection only until its exchange is over.
"""

import asyncio
from typing import Protocol

from tollhouse.core.call import Context
from tollhouse.core.clock import FOREVER
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request, Sink, problem
from tollhouse.net.head import Head, Limits

__all__ = ["Carrier", "Incoming"]

_HIGH_WATER = 65_536  # bytes held before reading pauses


class Carrier(Protocol):
    """The connection as its requests see it."""

    deadline: float
    listener: str
    scheme: str
    peer: str
    loop: asyncio.AbstractEventLoop
    limits: Limits
    busy: "Incoming | None"

    @property
    def certificate(self) -> bytes: ...

    def arm(self, seconds: float) -> None: ...

    def wants_body(self, request: "Incoming") -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Incoming(Request):
    """A request fed by its connection."""

    __slots__ = (
        "_connection",
        "_error",
        "_limit",
        "_paused",
        "_sink",
        "_waiter",
        "chunked",
        "expects",
        "keep_alive",
        "length",
        "wanted",
    )

    def __init__(self, connection: Carrier, head: Head) -> None:  # on purpose not calling super: the body is to come
        self.method = head.method
        self.target = head.target
        self.path = head.path
        self.query = head.query
        self.version = head.version
        self.headers = head.headers
        self.upgrade = head.upgrade
        self.chunked = head.chunked
        self.expects = head.expects
        self.length = head.length  # of the body, as announced
        self.keep_alive = head.keep_alive
        self.listener = connection.listener
        self.scheme = connection.scheme
        self.peer = connection.peer
        self.context = Context()
        self.known = head.known
        self.parts = []
        self.body_size = 0
        self.complete = False
        self.ends = []
        self.render = problem
        self.wanted = False  # somebody waits for the body, or takes it as it comes
        self._connection: Carrier | None = connection
        self._limit = connection.limits.body
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._error: Failure | None = None
        self._paused = False

    @property
    def certificate(self) -> bytes:
        connection = self._connection
        return connection.certificate if connection is not None else b""

    def whole(self, limit: int) -> bytes | None:
        parts = self.parts
        if self.complete and len(parts) == 1 and self._limit >= self.body_size <= limit:
            return parts[0]
        return None

    async def read(self, limit: int) -> bytes:
        limit = self._limit = min(limit, self._limit)
        self.check_length()
        if not self.complete:
            connection = self._gone_if_none()
            connection.wants_body(self)
            while self._lacks(limit):
                if self._error is not None:
                    raise self._error
                connection.arm(connection.limits.body_timeout)
                self._waiter = waiter = connection.loop.create_future()
                self.wanted = True
                try:
                    await waiter
                finally:
                    self._waiter = None
                    self.wanted = False
                    connection.deadline = FOREVER
        self.check_length()
        parts = self.parts
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def check_length(self) -> None:
        if self.length > self._limit or self.body_size > self._limit:
            raise self._too_large()

    def start(self, sink: Sink) -> None:
        if self.length > self._limit or self.body_size > self._limit:
            sink.end(self._too_large())
            return
        parts, self.parts = self.parts, []
        for part in parts:
            sink.send(part)
        if self.complete:
            sink.end()
        elif self._error is not None:
            sink.end(self._error)
        else:
            self._sink = sink
            self.wanted = True
            connection = self._gone_if_none()
            connection.arm(connection.limits.body_timeout)
            if not self._paused:
                connection.wants_body(self)

    def pause(self) -> None:
        self._paused = True
        if self._connection is not None:
            self._connection.deadline = FOREVER  # it is not the client that is slow
            self._connection.pause_reading()

    def resume(self) -> None:
        self._paused = False
        if self._connection is not None and not self.complete:
            if self._sink is not None:
                self._connection.arm(self._connection.limits.body_timeout)
            self._connection.resume_reading()

    def close(self) -> None:
        self.wanted = False
        self._sink = None
        self.parts = []
        if self._connection is not None and self._connection.busy is self:
            self._connection.deadline = FOREVER

    # the connection's side
    def feed(self, part: bytes) -> None:
        self.body_size += len(part)
        if not self.wanted:  # mostly: it came with the head
            self.parts.append(part)
            if self.body_size > _HIGH_WATER and self._connection is not None:
                self._connection.pause_reading()
            return
        if self._sink is not None:
            if self.body_size > self._limit:
                self.fail(self._too_large())
                return
            connection = self._connection
            if connection is not None and not self._paused:
                connection.arm(connection.limits.body_timeout)
            self._sink.send(part)
            return
        self.parts.append(part)
        if self.body_size > self._limit:
            self._wake()
        elif self._connection is not None:
            self._connection.arm(self._connection.limits.body_timeout)

    def finished(self) -> None:
        self.complete = True
        sink, self._sink = self._sink, None
        if sink is not None:
            if self._connection is not None and self._connection.busy is self:
                self._connection.deadline = FOREVER
            sink.end()
        self._wake()

    def fail(self, error: Failure) -> None:
        """The rest of the body will not come."""
        self._error = error
        self.wanted = False
        self.keep_alive = False
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(error)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)

    def release(self) -> None:
        """The exchange is over: cut what refers to the connection."""
        self._connection = None
        self._sink = None
        self._error = None

    @property
    def awaited(self) -> bool:
        """Whether the client is waited for: somebody takes the body as it comes."""
        return self.wanted and not self.complete and not self._paused

    def _too_large(self) -> Failure:
        """The rest of the body is not read, so no request can follow (RFC 9112 section 9.3)."""
        self.keep_alive = False
        return Failure(413, Reason.INVALID_REQUEST, f"the request body is larger than {self._limit} bytes")

    def _lacks(self, limit: int) -> bool:
        return not self.complete and self.body_size <= limit

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _gone_if_none(self) -> Carrier:
        if self._connection is None:
            raise Failure(499, Reason.CLIENT_GONE, "the connection is gone")
        return self._connection
