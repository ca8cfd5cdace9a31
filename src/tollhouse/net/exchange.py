"""What a caller holds of one request sent upstream: its answer, whole or still coming.

Rule: what belongs to one answer lives in its Exchange; what belongs to the socket lives in `net.link.Link`. They
refer to each other only while the answer is coming, and the Link holds the body meanwhile. When it is complete they
part: the Link serves the next caller, the Exchange is plain values, and nothing done to it later can reach the Link.
"""

import asyncio
from enum import IntEnum
from typing import Protocol

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Feeder, Headers, Sink
from tollhouse.net.decode import decompress

__all__ = ["Carrier", "Exchange", "Until", "broken", "too_large"]


class Until(IntEnum):
    """When `Pool.exchange` returns. WHOLE: with the complete answer; `text/event-stream` counts as BODY.
    BODY: with the first bytes of the body, or a complete answer without any. HEAD: with the headers."""

    HEAD = 0
    BODY = 1
    WHOLE = 2


class Carrier(Protocol):
    """The connection, as the Exchange it carries sees it."""

    sink: Sink | None
    paused: bool

    def taken(self) -> bytes:
        """The bytes that are held, which are not any more."""
        ...

    def wait_whole(self, limit: int) -> "asyncio.Future[None]":
        """A future that wakes when the answer is complete, or has failed."""
        ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def cut(self) -> None: ...

    def fail(self, failure: Failure) -> None: ...

    def push(self, data: bytes) -> None: ...

    def pushed(self, failure: Failure | None) -> None: ...

    def allow(self, seconds: float) -> None: ...

    def feed(self, feeder: Feeder) -> None: ...


class Exchange(msgspec.Struct, eq=False):
    """One answer, whole or still coming. A Source of its body; a Sink for the request's body while that is sent.

    status, headers: of the final answer (never 1xx but 101). complete: the body is here to its end (also before it
    was taken). event_stream: content-type is text/event-stream. encoded: there is a content-encoding. stale: it failed
    because a kept connection was closed within a quarter of a second, without a byte of answer: the server may have
    decided so before it knew of the request. After status 101 it is a Duplex: `send` goes to the upstream, `end` ends
    that direction, `feed` names who is paused when the upstream is slow.
    """

    _link: Carrier | None
    headers: Headers = msgspec.field(default_factory=Headers)
    status: int = 0
    complete: bool = False
    event_stream: bool = False
    encoded: bool = False
    failure: Failure | None = None
    stale: bool = False
    body: bytes = b""  # what is not taken yet, once it is complete
    _closed: bool = False

    @property
    def length(self) -> int | None:
        """The announced content-length."""
        value = self.headers.get(b"content-length")
        return None if value is None else int(value)

    # ---- reading
    def take(self) -> bytes:
        """The body bytes that are here, each once; all of them when `complete`."""
        link = self._link
        if link is not None:
            return link.taken()
        data, self.body = self.body, b""
        return data

    async def read(self, limit: int, *, decode: bool = True) -> bytes:
        """The whole body, without its content coding if `decode`. Raises Failure 502 above `limit` bytes, and what
        went wrong with the connection; the exchange is closed then."""
        link = self._link
        if link is not None:
            waiter = link.wait_whole(limit)
            try:
                await waiter
            except BaseException:
                self.close()
                raise
        if not self.complete:
            raise self.failed()
        data = self.take()
        if len(data) > limit:
            raise too_large(limit)
        return decompress(data, self.headers.get(b"content-encoding"), limit) if decode else data

    def failed(self) -> Failure:
        """The failure, for `raise`; it is not kept, because it would refer back to who raises it."""
        failure, self.failure = self.failure, None
        return failure if failure is not None else broken("the exchange was closed")

    def allow(self, seconds: float) -> None:
        """So many more seconds for it all, and for the upstream to be silent; below 0 is taken back."""
        if self._link is not None:
            self._link.allow(seconds)

    # ---- Source of the answer's body
    def start(self, sink: Sink) -> None:
        link = self._link
        if link is not None:
            link.sink = sink
            if link.paused:
                link.resume()
        data = self.take()
        if data:
            try:
                sink.send(data)
            except Failure as failure:
                failure.with_traceback(None)  # it would lead back to the sink
                if self._link is not None:
                    self._link.fail(failure)
                else:
                    self.end_with(sink, failure)
        if link is None:
            failed, self.failure = self.failure, None
            self.end_with(sink, failed)

    def end_with(self, sink: Sink, failure: Failure | None) -> None:
        """Tell `sink` the end, once, and not after `close`."""
        if not self._closed:
            self._closed = True
            sink.end(failure)

    def pause(self) -> None:
        if self._link is not None:
            self._link.pause()

    def resume(self) -> None:
        if self._link is not None:
            self._link.resume()

    def close(self) -> None:
        """Give it up. An answer that is not complete costs its connection; a complete one is only dropped."""
        self._closed = True
        if self._link is not None:
            self._link.cut()
        self.body = b""

    # ---- Sink of the request's body, and of the tunnel
    def send(self, data: bytes) -> None:
        if self._link is not None:
            self._link.push(data)

    def end(self, failure: Failure | None = None) -> None:
        if self._link is not None:
            self._link.pushed(failure)

    def feed(self, feeder: Feeder) -> None:
        """`feeder` produces what is sent into this tunnel. Without one, a tunnel that holds 8 MiB is cut."""
        if self._link is not None:
            self._link.feed(feeder)


def broken(message: str, detail: str = "") -> Failure:
    return Failure(502, Reason.UPSTREAM_FAILURE, message, detail=detail, retry=True, sent=True)


def too_large(limit: int) -> Failure:
    return Failure(502, Reason.UPSTREAM_FAILURE, f"the upstream's answer is larger than {limit} bytes", sent=True)
