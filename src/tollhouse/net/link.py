"""One connection to an upstream: HTTP/1.1 over a transport, one exchange at a time (RFC 9112).

Rule: nobody is called from inside the parser. What one `data_received` brought is delivered in one piece after it,
and a connection whose answer is complete is free before anybody hears of it. Deadlines are one attribute, watched by
the clock. `fail` is the only way an exchange ends badly, `_complete` the only way it ends well.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Feeder, Sink, Source
from tollhouse.net.exchange import Exchange, Until, broken, too_large
from tollhouse.net.repeated_answer import RepeatedAnswer

__all__ = ["MAX_ANSWER", "Home", "Link"]

MAX_ANSWER = 32 << 20  # bytes of an answer that is waited for whole
_MAX_HEAD = 65_536  # bytes of all heads of one answer; also of trailers and chunk extensions between two body bytes
_MAX_FIELDS = 256
_HIGH_WATER = 65_536  # bytes held before reading pauses
_MAX_TUNNEL = 8 << 20  # bytes waiting in a tunnel whose feeder nobody named
_SOON = 2.0  # the clock looks once a second; what is shorter is hurried
_RACE = 0.25  # after its request was written, a close may still be one that crossed it; the clock is a tick coarser
_JOIN = 1024  # pieces held before they are made one: a piece costs 40 bytes beside its content

_NOTHING, _LENGTH, _CHUNKED, _TUNNEL = range(4)  # what is still to be sent
_PLAIN, _HEAD_ONLY, _RAW = range(3)  # what is to be read
_ASKED, _HEADED, _DONE = range(3)  # how much of the answer is here
_UNBOUND = 1 << 62
_NAMES, _NAME = 512, 64  # header names remembered by a pool, and bytes of one
_CONTENT_TYPE = b"content-type"
_READ = (b"content-encoding", b"keep-alive", b"transfer-encoding")  # what we act upon, beside content-type
_BODYLESS = (100, 102, 103)  # llhttp knows these have none, whatever they say
_LONG = "the upstream's answer has a head that is too large"
_HEAD, _BODY, _WHOLE = Until.HEAD, Until.BODY, Until.WHOLE


class Home(Protocol):
    """Where a Link goes when it is free, and who must know when it is gone. Both are called once each time.

    names: header names as this upstream writes them, and in lower case; the links keep it, and keep it small.
    repeated: the head its answers have at present; the links keep that, too.
    """

    names: dict[bytes, bytes]
    repeated: RepeatedAnswer

    def give(self, link: "Link") -> None: ...

    def forget(self, link: "Link") -> None: ...


class Link(asyncio.Protocol):
    """One connection. `begin` starts an exchange; the link parts from it when it is complete, failed or cut."""

    __slots__ = (
        "_began",
        "_chunked",
        "_clock",
        "_exchange",
        "_first_byte",
        "_future",
        "_headers",
        "_home",
        "_idle",
        "_keep",
        "_keep_default",
        "_left",
        "_limit",
        "_mode",
        "_names",
        "_outgoing",
        "_parser",
        "_pieces",
        "_repeated",
        "_reusable",
        "_size",
        "_slack",
        "_stage",
        "_total",
        "_trailers",
        "_transport",
        "_waiter",
        "_want",
        "body",
        "choked",
        "counted",
        "deadline",
        "feeder",
        "gone",
        "kept",
        "lost",
        "on_body",
        "paused",
        "sink",
    )

    def __init__(self, home: Home, clock: Clock, future: Callable[[], "asyncio.Future[None]"], keep: float) -> None:
        self._home = home
        self._clock = clock
        self._future = future
        self._keep_default = self._keep = keep
        self._exchange: Exchange | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None  # one for the life of the connection
        self._names = home.names
        self._repeated = home.repeated
        self._pieces: list[bytes] = []  # of the answer's body: what nobody has taken yet
        self.on_body = self._pieces.append  # the parser's callback
        self._trailers: list[tuple[bytes, bytes]] = []
        self._headers = self._trailers  # where the parser puts fields
        self._chunked = False
        self._mode = _PLAIN
        self._outgoing = _NOTHING
        self.sink: Sink | None = None
        self.body: Source | None = None  # the request's body while it is being sent
        self.feeder: Feeder | None = None
        self.deadline = FOREVER
        self.paused = False  # reading
        self.choked = False  # writing
        self.lost = False  # the transport is closed or closing
        self.gone = False  # its home was told
        self.counted = False  # for its home's use
        self.kept = False  # has carried an exchange to its end

    # ---- the caller's side
    def begin(
        self,
        exchange: Exchange,
        head: bytes,
        body: bytes | None,
        want: Until,
        total: float,
        first_byte: float,
        idle: float,
        limit: int,
    ) -> "asyncio.Future[None]":
        """Send `head` and `body` and read the answer into `exchange`. The future only wakes: afterwards the exchange
        has a status, or has failed. body None: it will be pushed after `outgoing`. What is not set here is as
        `__init__` or `_complete` left it."""
        self._exchange = exchange
        self._headers = exchange.headers
        self._stage = _ASKED
        self._size = self._slack = 0
        self._want = want
        self._limit = limit if want is _WHOLE else _UNBOUND
        self._total = total
        self._idle = idle
        clock = self._clock
        now = self._began = clock.now
        deadline = now + first_byte
        self.deadline = deadline if deadline < total else total  # a third of the price of min()
        if first_byte < _SOON or total - now < _SOON:
            clock.hurry(self)
        if body:
            self._transport.writelines((head, body))  # type: ignore[union-attr]
        else:
            self._transport.write(head)  # type: ignore[union-attr]
        self._waiter = waiter = self._future()
        return waiter

    def head_only(self) -> None:
        """Before `begin`: the answer will have no body, whatever its head says (the method is HEAD)."""
        self._mode = _HEAD_ONLY

    def outgoing(self, body: Source, length: int | None, first_byte: float) -> None:
        """The request's body follows by `push`: `length` bytes, or chunked if None."""
        self.body = self.feeder = body
        self._outgoing, self._left = (_CHUNKED, 0) if length is None else (_LENGTH, length)
        self._first_byte = first_byte  # counts from the end of the body
        self.deadline = self._total

    def wait_whole(self, limit: int) -> "asyncio.Future[None]":
        self._want, self._limit = _WHOLE, limit
        self._waiter = waiter = self._future()
        if self.paused:
            self.resume()
        if self._size > limit:
            self.fail(too_large(limit))
        return waiter

    def taken(self) -> bytes:
        pieces = self._pieces
        data = b"".join(pieces)
        pieces.clear()
        self._size = 0
        if self.paused and self.sink is None:
            self.resume()
        return data

    def pause(self) -> None:
        if not self.paused and not self.lost and self._transport is not None:
            self.paused = True
            self.deadline = self._total  # it is not the upstream that is slow
            self._transport.pause_reading()

    def resume(self) -> None:
        if self.paused and not self.lost and self._transport is not None:
            self.paused = False
            self._arm(self._idle)
            self._transport.resume_reading()

    def allow(self, seconds: float) -> None:
        self._total += seconds
        self._idle += seconds
        self.deadline += seconds

    def cut(self) -> None:
        """The caller does not want the rest."""
        self._part()
        self.retire()

    def retire(self) -> None:
        """Out of the pool first, closed second: connection_lost comes a loop turn later."""
        if not self.lost:
            self.lost = True
            self.deadline = FOREVER
            if self._transport is not None:
                self._transport.abort()
        if not self.gone:
            self.gone = True
            self._home.forget(self)

    # ---- the request's body and the tunnel's way up
    def feed(self, feeder: Feeder) -> None:
        self.feeder = feeder
        if self.choked:
            feeder.pause()

    def push(self, data: bytes) -> None:
        outgoing = self._outgoing
        if self.lost or not data or outgoing == _NOTHING:
            return
        transport = self._transport
        assert transport is not None
        if outgoing == _CHUNKED:
            transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        elif outgoing == _LENGTH:
            self._left -= len(data)
            if self._left < 0:
                self.fail(Failure(400, Reason.INVALID_REQUEST, "the request body is longer than announced", sent=True))
                return
            transport.write(data)
        else:
            transport.write(data)
            if not self.paused:
                self._arm(self._idle)
            if self.choked and self.feeder is None and transport.get_write_buffer_size() > _MAX_TUNNEL:
                self.fail(broken("the upstream does not take what the tunnel brings"))

    def pushed(self, failure: Failure | None) -> None:
        outgoing, self._outgoing = self._outgoing, _NOTHING
        if self.lost or outgoing == _NOTHING:
            return
        transport = self._transport
        assert transport is not None
        self.body = self.feeder = None
        if failure is not None:
            self.fail(failure)
            return
        if outgoing == _TUNNEL:
            if transport.can_write_eof():
                transport.write_eof()
            else:
                transport.close()
            return
        if outgoing == _CHUNKED:
            transport.write(b"0\r\n\r\n")
        elif self._left:
            self.fail(Failure(400, Reason.INVALID_REQUEST, "the request body is shorter than announced", sent=True))
            return
        if self._stage == _ASKED:
            self._arm(self._first_byte)

    def pause_writing(self) -> None:
        self.choked = True
        if self.feeder is not None:
            if self._outgoing in (_CHUNKED, _LENGTH) and self._stage == _ASKED:
                self._arm(self._idle)  # now it is the upstream that is slow
            self.feeder.pause()

    def resume_writing(self) -> None:
        self.choked = False
        if self.feeder is not None:
            if self._outgoing in (_CHUNKED, _LENGTH) and self._stage == _ASKED:
                self.deadline = self._total
            self.feeder.resume()

    # ---- the transport's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = self._transport = cast(asyncio.Transport, transport)
        if self.lost:  # given up while it was being made
            transport.abort()
            return
        self._parser = httptools.HttpResponseParser(self)
        self._clock.watch(self)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:  # bytes nobody asked for
            self.retire()
            return
        pieces = self._pieces
        had = len(pieces)
        anew = False
        if self._mode == _PLAIN:
            anew = self._stage == _ASKED and not self._slack  # the parser is between two answers
            if anew and (body := self._repeated.read(data, exchange)) is not None:
                keep = self._repeated.keep
                if keep is not None:
                    self._keep = keep
                self._reusable = True
                pieces.append(body)
                self._complete(exchange)
                return
            parser = self._parser
            try:
                if self._stage == _HEADED or self._slack + len(data) <= _MAX_HEAD:
                    parser.feed_data(data)  # type: ignore[union-attr]
                elif not self._feed_long(parser, data):  # type: ignore[arg-type]
                    return
            except httptools.HttpParserUpgrade as upgrade:
                self._switch(pieces, data[upgrade.args[0] :])
            except httptools.HttpParserError as error:
                if self._stage != _DONE:
                    self._malformed(error)
                    return
                self._reusable = False  # the answer is whole; what follows it is not HTTP, or nobody asked for it
        elif self._mode == _RAW:
            pieces.append(data)
        elif not self._feed_head(data):
            return
        stage = self._stage
        if stage == _DONE:
            if anew and self._reusable and len(pieces) == 1 and not self._chunked and not exchange.event_stream:
                self._repeated.learn(data, exchange, len(pieces[0]), self._keep)
            self._complete(exchange)
            return
        fresh = len(pieces) - had
        sink = self.sink
        if sink is not None and fresh:
            # Each piece of a stream goes as it comes.
            self._slack = 0
            if not self.paused:  # `_arm`, without the call
                idle = self._idle
                deadline = self._clock.now + idle
                self.deadline = deadline if deadline < self._total else self._total
                if idle < _SOON:
                    self._clock.hurry(self)
            if len(pieces) == 1:
                piece = pieces.pop()
            else:
                piece = b"".join(pieces)
                pieces.clear()
            try:
                sink.send(piece)
            except Failure as failure:
                self.fail(failure.with_traceback(None))  # it would lead back to the sink
            return
        if fresh:
            if fresh > 1:
                pieces[had:] = [b"".join(pieces[had:])]
            self._slack = 0
            self._size += len(pieces[-1])
            if self._size > self._limit:
                self.fail(too_large(self._limit))
                return
        else:
            self._slack += len(data)
            if self._slack > _MAX_HEAD:
                self.fail(broken("the upstream's answer has too much that is not its body"))
                return
            if stage == _ASKED:
                return
        if not self.paused:
            self._arm(self._idle)
        if sink is not None:
            return
        if self._waiter is not None:
            want = self._want
            if want is _HEAD or (want is _BODY and pieces):
                self._wake()
            elif len(pieces) > _JOIN:
                pieces[:] = [b"".join(pieces)]
        if self._want is not _WHOLE and self._size > _HIGH_WATER:
            self.pause()

    def eof_received(self) -> None:
        self._ended(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._clock.drop(self)
        self._ended(error)
        self.lost = True
        self.retire()
        self._parser = None  # it holds our methods: cut the cycle, the collector comes late
        self._transport = None

    def expire(self) -> None:
        if self._exchange is None:
            self.retire()
            return
        if self._clock.now >= self._total:
            message = "the upstream did not finish in time"
        elif self._stage != _ASKED:
            message = "the upstream sent nothing for too long"
        elif self._outgoing != _NOTHING:
            message = "the upstream did not take the request body in time"
        else:
            message = "the upstream did not answer in time"
        self.fail(Failure(504, Reason.TIMEOUT, message, retry=True, sent=True))

    def fail(self, failure: Failure) -> None:
        """The exchange ends with `failure`, the connection with it."""
        exchange = self._exchange
        if exchange is None:
            return
        waiter, sink = self._waiter, self.sink
        self._part()
        self.retire()
        if sink is not None:
            exchange.end_with(sink, failure)
        else:
            exchange.failure = failure
        if waiter is not None and not waiter.done():  # cancelled, and its task has not run yet
            waiter.set_result(None)

    # ---- parser callbacks
    def on_message_begin(self) -> None:
        if self._stage == _DONE:
            raise ValueError("a second answer, which nobody asked for")  # it must not reach the first one's values

    def on_header(self, name: bytes, value: bytes) -> None:
        known = self._names.get(name)
        if known is None:
            known = self._read(name, value)
        self._headers.append((known, value))
        if known is _CONTENT_TYPE and value[:17].lower() == b"text/event-stream" and self._stage == _ASKED:
            self._exchange.event_stream = True  # type: ignore[union-attr]

    def _read(self, name: bytes, value: bytes) -> bytes:
        """A name that is not known yet, in lower case. Those that mean something to us never are."""
        lower = name.lower()
        if lower not in _READ:
            if lower == _CONTENT_TYPE:
                lower = _CONTENT_TYPE
            if len(self._names) < _NAMES and len(name) <= _NAME:
                self._names[name] = lower
        elif lower == b"keep-alive":
            self._keep = _keep_alive(value, self._keep_default)
        elif self._stage == _ASKED:
            if lower == b"content-encoding":
                self._exchange.encoded = True  # type: ignore[union-attr]
            elif self._chunked or value.strip().lower() != b"chunked":
                raise ValueError("a transfer coding other than one chunked")
            else:
                self._chunked = True
        return lower

    def on_headers_complete(self) -> None:
        parser, exchange = self._parser, self._exchange
        assert parser is not None
        assert exchange is not None
        status = parser.get_status_code()
        if status < 200 and status != 101:
            if status < 100 or (status not in _BODYLESS and (self._chunked or _sized(exchange))):
                raise ValueError("an interim answer with a body, or a status below 100")
            self._headers.clear()
            self._chunked = exchange.event_stream = exchange.encoded = False
            return
        if len(self._headers) > _MAX_FIELDS:
            raise ValueError("too many header fields")
        exchange.status = status
        self._headers = self._trailers  # what follows the body is not among the headers
        self._reusable = parser.should_keep_alive()
        if self._mode == _HEAD_ONLY:
            self._stage = _DONE
            return
        self._stage = _HEADED
        if exchange.event_stream and self._want is _WHOLE:
            self._want = _BODY
            self._limit = _UNBOUND

    def on_message_complete(self) -> None:
        if self._stage == _HEADED:  # not of an interim answer
            self._stage = _DONE

    # ---- steps
    def _feed_long(self, parser: httptools.HttpResponseParser, data: bytes) -> bool:
        """Bytes in which the head must end within its bound, however they were cut. False: failed."""
        at = _MAX_HEAD - self._slack
        parser.feed_data(data[:at])
        if self._stage == _ASKED:
            self.fail(broken(_LONG))
            return False
        parser.feed_data(data[at:])
        return True

    def _feed_head(self, data: bytes) -> bool:
        """The answer to HEAD ends with its head, whatever that announces; the parser cannot be told. False: failed."""
        size = self._slack
        for line in data.splitlines(keepends=True):
            if self._stage == _DONE:
                self._reusable = False
                break
            size += len(line)
            if size > _MAX_HEAD:
                self.fail(broken(_LONG))
                return False
            try:
                self._parser.feed_data(line)  # type: ignore[union-attr]
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
                self._malformed(error)
                return False
        if self._stage == _DONE:
            self._parser = httptools.HttpResponseParser(self)  # the old one waits for the body
        return True

    def _switch(self, pieces: list[bytes], rest: bytes) -> None:
        """101: from here on the bytes are not HTTP (RFC 9110 section 7.8)."""
        self._stage = _HEADED
        self._mode = _RAW
        self._outgoing = _TUNNEL
        self._reusable = False
        self._want = _HEAD
        self._limit = _UNBOUND
        body, self.body, self.feeder = self.body, None, None
        if body is not None:
            body.close()
        if rest:
            pieces.append(rest)

    def _complete(self, exchange: Exchange) -> None:
        """The answer is whole. The link is free before anybody hears of it."""
        waiter, sink, pieces = self._waiter, self.sink, self._pieces
        body = b"" if not pieces else pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if len(body) > self._limit:
            self.fail(too_large(self._limit))
            return
        exchange.complete = True
        if self._reusable and not self.lost and self._outgoing == _NOTHING and not self.choked and self._keep > 0.0:
            exchange.body = body
            pieces.clear()
            self._exchange = exchange._link = self._waiter = self.sink = None
            if self._chunked:
                self._chunked = False
                self._trailers.clear()
            self._mode = _PLAIN
            self.kept = True
            self.deadline = self._clock.now + self._keep
            if self.paused:
                self.paused = False
                self._transport.resume_reading()  # type: ignore[union-attr]
            self._home.give(self)
        else:
            self._part()
            self.retire()
        if sink is not None:
            if exchange.body:
                try:
                    sink.send(exchange.take())
                except Failure as failure:
                    exchange.end_with(sink, failure.with_traceback(None))
            exchange.end_with(sink, None)
        elif waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _part(self) -> None:
        """Link and exchange know nothing of each other any more."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange._link = None
            exchange.body = b"".join(self._pieces)
            self._pieces.clear()
        self._waiter = self.sink = self.feeder = None
        body, self.body = self.body, None
        if body is not None:
            body.close()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _arm(self, seconds: float) -> None:
        deadline = self._clock.now + seconds
        self.deadline = deadline if deadline < self._total else self._total
        if seconds < _SOON:
            self._clock.hurry(self)

    def _ended(self, error: Exception | None) -> None:
        """The upstream closed, in good order if error is None."""
        exchange = self._exchange
        if exchange is None:
            self.retire()
            return
        cause = "" if error is None else str(error) or type(error).__name__
        headed = self._stage != _ASKED
        if self._mode == _RAW or (headed and not self._chunked and not _sized(exchange)):
            if error is None:  # RFC 9112 section 6.3: the body ends with the connection
                self._reusable = False
                self._complete(exchange)
                return
            self.fail(broken("the upstream cut the answer short", cause))
        elif headed:
            self.fail(broken("the upstream closed before the end of its answer", cause))
        elif self._slack:
            self.fail(broken("the upstream closed within the head of its answer", cause))
        else:
            exchange.stale = self.kept and self._clock.now - self._began < _RACE
            self.fail(broken("the upstream closed without an answer", cause))

    def _malformed(self, error: Exception) -> None:
        self.fail(broken("the upstream's answer is not valid HTTP/1.1", str(error.__context__ or error)))


def _sized(exchange: Exchange) -> bool:
    return exchange.headers.get(b"content-length") is not None


def _keep_alive(value: bytes, default: float) -> float:
    """Seconds to keep an idle connection, from `Keep-Alive: timeout=N`: one less, so that we close first."""
    for parameter in value.split(b","):
        name, _, number = parameter.partition(b"=")
        number = number.strip(b' "\t')
        if name.strip().lower() == b"timeout" and number.isdigit() and len(number) < 10:
            return min(default, int(number) - 1.0)
    return default
