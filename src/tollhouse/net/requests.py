"""What a client sends, as requests in order: the reading half of a connection.

Rules. What the parser reports is stored; nobody acts on it here. Nothing is held without a bound: not a head, nor what
stands around chunks, nor a body nobody reads, nor requests that wait: those beyond `MAX_PIPELINE` stay bytes, because
a parsed request is 35 times as large as the shortest one that can be sent.
"""

from collections import deque

import httptools

from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers
from tollhouse.net.head import Fault, Head, Limits, Seen, head_fault, large_head, long_target, parser_fault
from tollhouse.net.incoming import Carrier, Incoming
from tollhouse.net.repeated import Repeated

__all__ = ["MAX_PIPELINE", "Requests"]

MAX_PIPELINE = 16  # requests waiting on one connection before reading pauses
_HIGH_WATER = 65_536  # bytes for a tunnel that nobody has taken yet
_AROUND = 1024  # bytes of a head that are not measured: the line's other words, and white space
_CHUNK_OVERHEAD = 65_536  # bytes of chunk extensions and trailers, beyond 8 for each byte of body
_LESSONS = 4  # heads to learn in vain before a connection's heads are taken for all different
_HEAD_END = b"\r\n\r\n"

_CHUNKS = Fault(400, "what stands around the chunks is larger than what is in them")


class Requests:
    """The requests of one connection. `feed` it; take what is whole, or at least begun, from `queue`.

    incoming: the last of them, while its body is coming. in_head: one has begun and is no request yet. fault: what came
    cannot be understood, and nothing more is parsed. upgraded: what follows a request to leave HTTP, once it was made.
    held: bytes for which there is no room. served: there was an answer, so that heads may come again.
    """

    __slots__ = (
        "_around",
        "_carrier",
        "_fields",
        "_head_began",
        "_head_least",
        "_head_most",
        "_held_from",
        "_lessons",
        "_limits",
        "_over",
        "_parser",
        "_repeated",
        "_seen",
        "fault",
        "held",
        "in_head",
        "incoming",
        "queue",
        "served",
        "target",
        "upgraded",
    )

    def __init__(self, carrier: Carrier, limits: Limits, seen: Seen) -> None:
        self._carrier = carrier
        self._limits = limits
        self._seen = seen
        self._parser: httptools.HttpRequestParser | None = None
        self._over = True  # what comes is not parsed
        self.queue: deque[Incoming] = deque()
        self.incoming: Incoming | None = None
        self.in_head = False
        self.fault: Fault | None = None
        self.upgraded: bytes | None = None
        self.held = b""
        self._held_from = 0
        self.served = False
        # the head that is coming
        self.target = b""
        self._fields: Headers | None = None
        self._head_began = False  # in what is being parsed
        self._head_least = 0  # bytes of it up to now
        self._head_most = 0
        self._around = 0  # bytes of a chunked body that are not in its chunks
        self._repeated: Repeated | None = None
        self._lessons = _LESSONS

    def begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._over = False

    def end(self) -> None:
        """Nothing more comes. The parser holds our methods, and the connection us: cycles."""
        self._parser = self._repeated = None
        self._over = True
        self.held = b""
        del self._carrier

    def drop(self) -> None:
        """Nobody takes what is there."""
        self.queue.clear()
        self.incoming = None
        self.held = b""
        self._over = True

    @property
    def unread(self) -> bool:
        """Whether the client has not been read to the end of a request."""
        return self.incoming is not None or self.in_head or self.fault is not None or bool(self.held)

    def refuse(self, fault: Fault) -> None:
        """No more requests on this connection. The first fault is the one that is told."""
        if self.fault is None:
            self.fault = fault
        self._over = True
        self._repeated = None
        self.held = b""

    def feed(self, data: bytes) -> None:
        """What the client sent. Raises nothing: what is wrong with it is the `fault`."""
        size = len(data)
        repeated = self._repeated
        if (
            repeated is not None
            and self.incoming is None
            and not self.in_head
            and not self.held
            and (head := repeated.match(data, size)) is not None
        ):
            request = Incoming(self._carrier, head)
            request.headers = Headers(head.headers)
            body = head.length
            if body:
                request.parts.append(data[-body:])
                request.body_size = body
            request.complete = True
            self.queue.append(request)
            self._lessons = _LESSONS
        elif self._over:
            self._set_aside(data)
        elif self.held:  # it was on its way when reading was paused
            self.held = self.held[self._held_from :] + data
            self._held_from = 0
        else:
            self._take(data, 0)

    def go_on(self) -> None:
        """With what was held: there may be room now."""
        if self.held:
            self._take(self.held, self._held_from)

    def _take(self, data: bytes, at: int) -> None:
        """Parse `data` from `at`, as far as there is room."""
        size = len(data)
        self.held = b""
        while at < size and not self._over:
            stop = self._room(data, at)
            if stop == at:
                self.held = data
                self._held_from = at
                return
            self._parse(data[at:stop] if at or stop < size else data, stop - at)
            at = stop
        if at < size:
            self._set_aside(data[at:])

    def _room(self, data: bytes, at: int) -> int:
        """How far to parse: to behind the end of the head with which the queue may be full."""
        last = self.incoming
        if last is not None and last.length - last.body_size >= len(data) - at:
            return len(data)  # all of it is one body
        for _ in range(MAX_PIPELINE - len(self.queue)):
            end = data.find(_HEAD_END, at)
            if end < 0:
                return len(data)
            at = end + 4
        return at

    def _parse(self, data: bytes, size: int) -> None:
        queue = self.queue
        before = self.incoming
        had = 0 if before is None else before.body_size
        waiting = len(queue)
        fresh = before is None and not self.in_head
        if self.in_head:
            self._head_least += size
            self._head_most += size
        else:
            self._head_most = size
        self._head_began = False
        rest = data
        while (parser := self._parser) is not None:
            try:
                parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                waiting = -1
                if not self._leaves(rest):
                    # An Upgrade we do not speak is ignored (RFC 9110 section 7.8); the parser has stopped for it.
                    self._parser = httptools.HttpRequestParser(self)
                    if rest:
                        continue
            except httptools.HttpParserError as error:
                self.refuse(parser_fault(error))
            break
        if self.in_head:
            if self._head_began:
                self._head_least = size if fresh and len(queue) == waiting and data[0] > 32 else 0
                carrier = self._carrier
                if carrier.busy is None and not queue:
                    carrier.arm(self._limits.head_timeout)
            if self._head_least > self._limits.head + _AROUND:  # the parser does not bound it
                self.refuse(large_head(self._limits))
        elif self.incoming is not None:
            self._in_part_of_a_body(self.incoming, before, size, had)
        elif fresh and not waiting and len(queue) == 1 and self.served and self._lessons and self.fault is None:
            self._learn(queue[0], data)  # one request, and not the first: perhaps the next ones look the same

    def _in_part_of_a_body(self, last: Incoming, before: Incoming | None, size: int, had: int) -> None:
        """A body goes on beyond what was parsed: the parser does not bound what is around its chunks."""
        if last is before and last.chunked:
            self._around += size - (last.body_size - had)
            if self._around > _CHUNK_OVERHEAD + 8 * last.body_size:
                self.refuse(_CHUNKS)
        fault = self.fault
        if fault is not None:  # also where its head came just now
            last.fail(Failure(fault.status, fault.reason, fault.message))

    def _learn(self, request: Incoming, data: bytes) -> None:
        self._lessons -= 1
        plain = request.keep_alive and not request.chunked and not request.expects
        self._repeated = Repeated.of(request, data, self._limits) if plain else None

    def _leaves(self, rest: bytes) -> bool:
        """The parser has stopped after a request for another protocol (or for CONNECT): whether nothing is parsed any
        more, because the request was refused, or because it asked for what we may speak."""
        if self.fault is not None or not self.queue:
            return True
        if not self.queue[-1].upgrade:
            return False
        self.upgraded = rest
        self._over = True
        self._repeated = None
        return True

    def _set_aside(self, data: bytes) -> None:
        """What is not for the parser: a tunnel's, if somebody takes it, or of a client that is turned away."""
        if self.upgraded is not None:
            self.upgraded += data
            if len(self.upgraded) > _HIGH_WATER:
                self._carrier.pause_reading()

    # ---- parser callbacks: store, do not act
    def on_message_begin(self) -> None:
        self.in_head = self._head_began = True
        self.target = b""
        self._fields = Headers()

    def on_url(self, url: bytes) -> None:
        self.target = target = self.target + url  # comes in pieces when the head does
        if len(target) > self._limits.target:
            self.refuse(long_target(self._limits))

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self._fields
        if headers is not None:  # else it is a trailer field, and dropped
            headers.append((name.lower(), value.rstrip()))

    def on_headers_complete(self) -> None:
        parser = self._parser
        headers, self._fields = self._fields, None
        self.in_head = False
        self._around = 0
        if self.fault is not None or parser is None or headers is None:
            return
        version = parser.get_http_version()
        keep_alive = version == "1.1" and parser.should_keep_alive()
        head = Head(parser.get_method(), self.target, version, headers, keep_alive)
        fault = head_fault(head, self._limits, self._head_most, parser.should_upgrade(), self._seen)
        if fault is not None:
            self.refuse(fault)
            return
        self.target = b""
        self.incoming = request = Incoming(self._carrier, head)
        self.queue.append(request)

    def on_body(self, body: bytes) -> None:
        request = self.incoming
        if request is not None and self.fault is None:
            request.feed(body)

    def on_message_complete(self) -> None:
        request, self.incoming = self.incoming, None
        if request is not None and self.fault is None:
            request.complete = True
            if request.wanted:
                request.finished()
