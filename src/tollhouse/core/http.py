"""HTTP values of the request floor: Headers, Request, Response, and the two ends of every byte stream.

Names and values are bytes as on the wire, names in lower case. A Source pushes, a Sink takes; bodies of
requests, bodies of answers and tunnels are all this one pair.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from tollhouse.core.call import Context
from tollhouse.core.errors import Failure, Reason

__all__ = [
    "CREDENTIALS",
    "Duplex",
    "End",
    "Ending",
    "Feeder",
    "Headers",
    "Known",
    "Request",
    "Response",
    "Sink",
    "Source",
    "finish",
]


CREDENTIALS = frozenset(
    (
        b"authorization", b"proxy-authorization", b"cookie", b"set-cookie", b"x-api-key", b"api-key",
        b"x-goog-api-key", b"x-amz-security-token",
    )
)  # fmt: skip
"""Header fields that may prove who somebody is: they go to nobody they were not meant for, not into another origin's
redirect, nor into what expressions compute, which ends in logs and metric labels."""


class Headers(list[tuple[bytes, bytes]]):
    """Header fields in order, names in lower case. A list, because most requests are read once and passed on."""

    __slots__ = ()

    def get(self, name: bytes) -> bytes | None:
        """The first value of `name`."""
        for n, v in self:
            if n == name:
                return v
        return None

    def get_all(self, name: bytes) -> list[bytes]:
        return [v for n, v in self if n == name]

    def set(self, name: bytes, value: bytes) -> None:
        """One field of that name, in place of any there was."""
        self.drop((name,))
        self.append((name, value))

    def drop(self, names: Iterable[bytes]) -> None:
        gone = frozenset(names)
        self[:] = [pair for pair in self if pair[0] not in gone]

    def drop_cookies(self, names: tuple[bytes, ...]) -> None:
        """Take the cookies of these names out of what a browser has sent (RFC 6265 section 5.4)."""
        for at, (field, value) in enumerate(self):
            if field == b"cookie" and any(name in value for name in names):
                left = [part for part in value.split(b";") if part.partition(b"=")[0].strip() not in names]
                self[at] = (field, b";".join(left).strip())
        if (b"cookie", b"") in self:
            self[:] = [pair for pair in self if pair != (b"cookie", b"")]


class Sink(Protocol):
    """Takes bytes. When it has too many it calls `pause` on the Source it was given to, and `resume` later."""

    def send(self, data: bytes) -> None: ...

    def end(self, failure: Failure | None = None) -> None:
        """No more comes: in good order, or because of `failure`. Called at most once."""
        ...


class Source(Protocol):
    """Gives bytes, by callback, after `start`. It never calls the sink from within `start` of another loop turn's
    future: delivery is synchronous with whatever produced the bytes."""

    def start(self, sink: Sink) -> None:
        """Deliver what is there, then what comes, then `end`. Called at most once."""
        ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None:
        """Give it up: the producer stops, nothing more is delivered. May be called at any time, and twice."""
        ...


class Feeder(Protocol):
    """Whoever produces what a Sink takes: told to stop when the Sink has too much, and to go on."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Duplex(Source, Sink, Protocol):
    """Both ends of a tunnel (an upgraded connection). `feed` names who is paused when the far side is slow."""

    def feed(self, feeder: Feeder) -> None: ...


class Ending(msgspec.Struct, gc=False):
    """How an exchange ended; made once, read by every `ends` callback. Who knows better says so to those after it."""

    status: int
    reason: str
    bytes_out: int = 0
    failure: Failure | None = None
    gone: bool = False  # the client left before the end


End = Callable[[Ending], None]


def finish(ends: list[End], ending: Ending) -> None:
    """Run every callback exactly once, in order, also when one of them raises; the list is empty afterwards.

    Emptying it also cuts the cycles (request -> ends -> closure -> request) that would make every request work
    for the cycle collector.
    """
    ends.reverse()
    try:
        while ends:
            ends.pop()(ending)
    finally:
        if ends:  # one of them raised
            ends.reverse()
            finish(ends, ending)


class Known:
    """What was found out about a head, and holds for those that equal it: clients send the same one again and again.

    by: who has read the credential, digest: and its SHA-256. origin: who has found that it has no field Origin, and a
    Host that may be called.
    """

    __slots__ = ("by", "digest", "origin")

    def __init__(self) -> None:
        self.by: object = None
        self.digest = b""
        self.origin: object = None


class Request:
    """A request whose head has come and whose body is read on demand.

    The base class holds a complete body; `net.server` has the one that is fed by a connection. It is a Source of
    its own body. `render` turns a Failure into a Response in the dialect that was asked; the router sets it.
    `ends` run once, after those of the Response and the last appended first: whoever is outermost sees what became of
    the others. `known`: what was found out about the head it came with, where that comes again.
    """

    __slots__ = (
        "body_size",
        "complete",
        "context",
        "ends",
        "headers",
        "known",
        "listener",
        "method",
        "parts",
        "path",
        "peer",
        "query",
        "render",
        "scheme",
        "target",
        "upgrade",
        "version",
    )

    def __init__(
        self, method: bytes, target: bytes, headers: Headers, body: bytes = b"", *, peer: str = "127.0.0.1"
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        at = target.find(b"?")
        self.path = target if at < 0 else target[:at]
        self.query = b"" if at < 0 else target[at + 1 :]
        self.version = "1.1"
        self.upgrade = False
        self.scheme = "http"
        self.peer = peer
        self.listener = ""
        self.parts: list[bytes] = [body] if body else []
        self.body_size = len(body)
        self.complete = True
        self.context = Context()
        self.known: Known | None = None
        self.ends: list[End] = []
        self.render: Callable[[Failure, Request], Response] = problem

    @property
    def certificate(self) -> bytes:
        """The client's certificate in DER, as the listener has verified it; b"" where there is none."""
        return b""

    def header(self, name: bytes) -> bytes | None:
        for n, v in self.headers:
            if n == name:
                return v
        return None

    def whole(self, limit: int) -> bytes | None:
        """The body if it is here, in one piece and within `limit` bytes: what `read` gives, without a coroutine. None
        says nothing: `read` it."""
        parts = self.parts
        return parts[0] if self.complete and len(parts) == 1 and self.body_size <= limit else None

    def check_length(self) -> None:
        """Raises Failure 413 when more is announced, or has come, than may: before work is begun for a body that will
        be refused. Who reads the body whole need not ask."""

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises Failure 413 above `limit` bytes, 408 when it does not come in time, 400 when it is
        malformed."""
        if self.body_size > limit:
            raise Failure(413, Reason.INVALID_REQUEST, f"the request body is larger than {limit} bytes")
        return b"".join(self.parts)

    def start(self, sink: Sink) -> None:
        parts, self.parts = self.parts, []
        for part in parts:
            sink.send(part)
        sink.end()

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None:
        self.parts = []


class Response(msgspec.Struct, eq=False):
    """The answer: a status and headers, and one of `body` (whole), `source` (streamed) or `tunnel` (upgraded).

    headers: without content-length, transfer-encoding, connection and date, which the server writes. length: the
    content-length of a streamed body, when known. last_words: what a stream says when it fails after the commit;
    without it the connection is cut, so that the client sees the loss. ends: run once, before the last byte is
    released.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    source: Source | None = None
    length: int | None = None
    tunnel: Duplex | None = None
    reason: str = Reason.DIRECT_RESPONSE
    ends: list[End] | None = None
    last_words: Callable[[Failure], bytes] | None = None


def problem(failure: Failure, request: Request) -> Response:
    """A Failure as RFC 9457 problem+json: the shape for plain routes."""
    fields: dict[str, Any] = {"title": failure.message, "status": failure.status}
    if failure.code is not None:
        fields["code"] = failure.code
    headers = [(b"content-type", b"application/problem+json"), *failure.headers]
    return Response(failure.status, headers, msgspec.json.encode(fields), reason=failure.reason)
