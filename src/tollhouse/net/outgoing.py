"""An answer on its way to the client: its head, its framing, and how it ended.

Rule: the server alone writes content-length, transfer-encoding, connection and date. `ends` run exactly once, before
the last byte is released. A client must be able to tell a whole answer from one that was cut.
"""

import asyncio
import logging
from typing import Protocol

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Response, Source
from tollhouse.net.head import STATUS_LINES
from tollhouse.net.incoming import Incoming

__all__ = ["NO_BODY", "Outgoing", "Tally", "fields", "rendered", "settle"]

log = logging.getLogger("tollhouse.net.server")

NO_BODY = frozenset((204, 304))

_CHUNKED, _LENGTH, _UNTIL_CLOSE = 1, 2, 3  # how an answer's end is told
_LOST = 0  # to nobody


class Tally(Protocol):
    """Something that is counted; added to on the hot path."""

    value: float


def rendered(failure: Failure, request: Incoming) -> Response:
    """A Failure in the dialect that was asked, with what every failure says."""
    request.context.error = failure.detail or failure.message
    response = request.render(failure, request)
    headers = response.headers
    headers.append((b"x-tollhouse-reason", failure.reason.encode()))
    if failure.retry_after is not None and not any(n == b"retry-after" for n, _ in headers):
        headers.append((b"retry-after", b"%d" % max(1, -int(-failure.retry_after // 1))))
    return response


def fields(parts: list[bytes], request: Incoming, response: Response) -> None:
    """Append the header fields, without what tells the end of the answer, and without the blank line."""
    for name, value in response.headers:
        parts += (name, b": ", value, b"\r\n")
    request_id = request.context.request_id
    if request_id:
        parts += (b"x-request-id: ", request_id.encode(), b"\r\n")
    if not request.keep_alive:
        parts.append(b"connection: close\r\n")


def settle(request: Incoming, response: Response | None, ending: Ending, *, begun: bool) -> Failure | None:
    """Run what is due at the end, once: the call's in order, then the request's, the innermost first. Does nothing the
    second time.

    What cannot be settled (a record that cannot be written) is not given out: gives the Failure to tell instead, or to
    cut the answer with where it has `begun`. The others still run, and those of the request learn of it.
    """
    ends = request.ends
    if ends:
        request.ends = []
        ends.reverse()
    if response is not None and response.ends:
        ends = response.ends + ends
        response.ends = None
    failed = None
    for end in ends:
        try:
            end(ending)
        except Failure as failure:
            log.error("the end of %s could not be settled: %s", _name(request), failure.detail or failure.message)
            told = failure.with_traceback(None)  # which would refer to us, who hold it
        except Exception as error:  # called from anywhere, also from the upstream's callback, which must live on
            log.exception("the end of %s could not be settled", _name(request))
            told = Failure(500, Reason.INTERNAL, "internal error", detail=type(error).__name__)
        else:
            continue
        failed = failed or told
        if begun:
            ending = Ending(ending.status, told.reason, ending.bytes_out, told, ending.gone)
        else:
            ending = Ending(told.status, told.reason, 0, told, ending.gone)
    return failed


def _name(request: Incoming) -> str:
    return request.context.request_id or "a request"


class Outgoing:
    """The Sink of one answer that is streamed. `finished` is done when it has ended in good order.

    source: what is paused while the client is slow. out: bytes of the answer's body up to now.
    """

    __slots__ = (
        "_framing",
        "_left",
        "_request",
        "_response",
        "_sent",
        "_transport",
        "_write",
        "finished",
        "out",
        "source",
    )

    def __init__(
        self,
        request: Incoming,
        response: Response,
        source: Source,
        transport: asyncio.WriteTransport,
        finished: "asyncio.Future[None]",
        sent: Tally,
    ) -> None:
        self._request = request
        self._response = response
        self._transport = transport
        self._write = transport.write
        self._sent = sent
        self._framing = _UNTIL_CLOSE
        self._left = 0
        self.source: Source | None = source
        self.finished = finished
        self.out = 0

    def begin(self, start: bytes) -> None:
        """Write the head. start: status line and Date."""
        request, response = self._request, self._response
        parts = [start]
        fields(parts, request, response)
        if response.length is not None:
            self._framing = _LENGTH
            self._left = response.length
            parts.append(b"content-length: %d\r\n\r\n" % response.length)
        elif request.version == "1.1":
            self._framing = _CHUNKED
            parts.append(b"transfer-encoding: chunked\r\n\r\n")
        else:
            parts.append(b"\r\n")
        self._raw(b"".join(parts))

    def switch(self) -> None:
        """Write the head of an upgraded connection: what follows is the tunnel's."""
        parts = [STATUS_LINES[101]]
        for name, value in self._response.headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"connection: upgrade\r\n\r\n")
        self._raw(b"".join(parts))

    def lose(self) -> None:
        """Nobody takes it any more."""
        self._framing = _LOST
        self.source = None

    def _raw(self, data: bytes) -> None:
        self._sent.value += len(data)
        self._write(data)

    def send(self, data: bytes) -> None:
        size = len(data)
        framing = self._framing
        if framing == _CHUNKED:
            if not size:
                return
            data = b"%x\r\n%b\r\n" % (size, data)
            self._sent.value += len(data)
        elif framing == _LOST:
            return
        else:
            if framing == _LENGTH:
                self._left -= size
                if self._left < 0:  # more than was announced: the client would read it as the next answer
                    self._transport.abort()
                    return
            self._sent.value += size
        self.out += size
        self._write(data)

    def end(self, failure: Failure | None = None) -> None:
        request, response = self._request, self._response
        self.source = response.source = None
        if self._framing == _LOST:
            return
        if failure is not None:
            if response.last_words is None or self._framing != _CHUNKED:
                self._cut(failure)
                return
            self.send(response.last_words(failure))
        elif self._framing == _LENGTH and self._left:
            self._cut(Failure(502, Reason.UPSTREAM_FAILURE, "the answer was cut short"))
            return
        ending = Ending(response.status, response.reason, self.out, failure)
        if settle(request, response, ending, begun=True) is not None:
            self._transport.abort()
            return
        if self._framing == _CHUNKED:
            self._raw(b"0\r\n\r\n")
        if not self.finished.done():
            self.finished.set_result(None)

    def _cut(self, failure: Failure) -> None:
        """The client must see that this is not the whole answer."""
        self._transport.abort()
        response = self._response
        settle(self._request, response, Ending(response.status, response.reason, self.out, failure), begun=True)
