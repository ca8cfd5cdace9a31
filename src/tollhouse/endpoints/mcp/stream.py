"""Event streams to agents: the answer to one POST, and the stream a session or a subscription holds open.

Rule: a message is one SSE event, and stands on exactly one stream. A stream that is read too slowly is ended, never
buffered without bound; a quiet one says a comment now and then, so that no proxy takes it for dead. What an agent can
read again is in `replay`.
"""

from collections.abc import Callable, Sequence

from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import End, Ending, Feeder, Response, Sink
from tollhouse.core.reply import Reply
from tollhouse.wire import jsonrpc, sse

__all__ = ["COMMENT", "HEADERS", "KEEP_ALIVE", "Answer", "Outlet", "Telling"]

HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]

KEEP_ALIVE = 15.0
COMMENT = b": \n\n"
_HELD = 256 << 10


class Outlet:
    """One reader of a stream that stays open for what comes. Source of its Response. Timed: it says a comment when
    nothing else was said.

    on_close: told once, when it was ended or left. greeting: said first, so that the agent sees the stream open. held:
    events that are there already. on_start: called when reading begins. feeder: who is paused while the reader is slow;
    without one a reader that is too slow is ended.
    """

    __slots__ = (
        "_clock", "_feeder", "_greeting", "_held", "_on_close", "_on_start", "_paused", "_sink", "_size", "deadline",
    )  # fmt: skip

    def __init__(
        self,
        clock: Clock,
        on_close: Callable[["Outlet"], None],
        *,
        greeting: bytes = COMMENT,
        held: Sequence[bytes] = (),
        on_start: Callable[[], None] | None = None,
        feeder: Feeder | None = None,
    ) -> None:
        self.deadline = FOREVER
        self._clock = clock
        self._sink: Sink | None = None
        self._paused = False
        self._greeting = greeting
        self._held = list(held)
        self._size = sum(map(len, held))
        self._on_close: Callable[[Outlet], None] | None = on_close
        self._on_start = on_start
        self._feeder = feeder

    def response(self) -> Response:
        return Response(200, list(HEADERS), source=self, ends=[self._left])

    def say(self, message: bytes) -> bool:
        """Put one message on the stream; False when it has ended, or ends now because it is read too slowly."""
        return self.put(sse.frame(jsonrpc.one_line(message), b"message"))

    def put(self, event: bytes) -> bool:
        """`say`, for a raw event."""
        if self._on_close is None:
            return False
        sink = self._sink
        if sink is not None and (not self._paused or self._feeder is not None):
            self.deadline = self._clock.now + KEEP_ALIVE
            sink.send(event)
            return True
        if self._size + len(event) > _HELD and self._feeder is None:
            self.finish()
            return False
        self._held.append(event)
        self._size += len(event)
        return True

    def finish(self) -> None:
        """End it in good order, with what is held."""
        sink = self._sink
        if sink is None and self._on_close is not None and self._held:  # it has not begun
            self._on_start = None
            self._over(keep=True)
            return
        self._sink = None
        self._over()
        if sink is not None:
            sink.end()

    def _left(self, _: Ending) -> None:
        self._over()

    def lapse(self, failure: Failure) -> None:
        """Who opened it is no longer good: it ends, for an agent that has a new credential by then to come back."""
        self.finish()

    def expire(self) -> None:
        self.deadline = self._clock.now + KEEP_ALIVE
        if self._sink is not None and not self._paused:
            self._sink.send(COMMENT)

    # Source
    def start(self, sink: Sink) -> None:
        if self._on_close is None:
            for event in self._held:
                sink.send(event)
            self._held.clear()
            sink.end()
            return
        self._sink = sink
        self.deadline = self._clock.now + KEEP_ALIVE
        self._clock.watch(self)
        if self._greeting:
            sink.send(self._greeting)
        self._flush()
        on_start, self._on_start = self._on_start, None
        if on_start is not None:
            on_start()

    def pause(self) -> None:
        self._paused = True
        if self._feeder is not None:
            self._feeder.pause()

    def resume(self) -> None:
        self._paused = False
        self._flush()
        if self._feeder is not None and not self._paused:
            self._feeder.resume()

    def _flush(self) -> None:
        while self._held and self._sink is not None and (not self._paused or self._feeder is not None):
            event = self._held.pop(0)
            self._size -= len(event)
            self._sink.send(event)

    def close(self) -> None:
        self._sink = None
        self._over()

    def _over(self, *, keep: bool = False) -> None:
        self.deadline = FOREVER
        self._clock.drop(self)
        if not keep:
            self._held.clear()
        self._feeder = self._on_start = None
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self)


class Telling:
    """An answer of several messages on its way to an agent: Sink of what a server says, Feeder of whoever reads.

    reply: None while it is still to come (`follow`). tell: what one raw message becomes, None to leave it out. failed:
    the last message when the server's stream fails. ended: called once, with the Failure or None. ends: what is due
    at the end of the exchange that it is read in.
    """

    __slots__ = ("_ended", "_failed", "_first", "_reply", "_tell", "begun", "ends", "over")

    def __init__(
        self,
        reply: Reply | None,
        first: bytes | None,
        *,
        tell: Callable[[bytes], bytes | None],
        failed: Callable[[Failure], bytes],
        ended: Callable[[Failure | None], None],
    ) -> None:
        self._reply = reply
        self._first = first
        self._tell = tell
        self._failed = failed
        self._ended: Callable[[Failure | None], None] | None = ended
        self.over = False
        self.begun = False
        self.ends: list[End] = reply.ends if reply is not None else []

    # ---- where it is read
    def _put(self, message: bytes) -> None:
        """Give one message to whoever reads."""
        raise NotImplementedError

    def _finish(self) -> None:
        """End the stream in good order."""
        raise NotImplementedError

    def _hung_up(self) -> None:
        """The server has hung up, and is asked again for the rest."""

    # ---- its course
    def begin(self) -> None:
        """Somebody reads, for the first time or again."""
        if not self.begun and not self.over:
            self.begun = True
            if self._reply is not None:
                self._go(self._reply)

    def _go(self, reply: Reply) -> None:
        first, self._first = self._first, None
        if first is not None:
            self._put(first)
        if reply.source is not None:
            reply.source.start(self)
        else:
            self.end()

    def pause(self) -> None:
        if self._reply is not None and self._reply.source is not None:
            self._reply.source.pause()

    def resume(self) -> None:
        if self._reply is not None and self._reply.source is not None:
            self._reply.source.resume()

    def cut(self, failure: Failure) -> None:
        """End the stream now: the agent has cancelled its request."""
        self._close(failure)
        self._finish()

    # ---- Sink
    def send(self, data: bytes) -> None:
        reply = self._reply
        if reply is None or self.over:
            return
        if not data:
            self._hung_up()
            return
        for tap in reply.taps or ():
            data = tap(data)
        try:
            message = self._tell(data)
        except jsonrpc.Malformed as problem:
            self.end(Failure(502, Reason.UPSTREAM_FAILURE, problem.message, sent=True))
            return
        if message is not None:
            self._put(message)

    def end(self, failure: Failure | None = None) -> None:
        if self.over:
            return
        if failure is not None:
            self._put(self._failed(failure))
        self._close(failure)
        self._finish()

    def lapse(self, failure: Failure) -> None:
        """Who asked is no longer good: the request ends with that."""
        self.end(failure)

    def close_with(self, message: bytes) -> None:
        """End the stream with these words."""
        if not self.over:
            self._put(message)
            self._close(None)
            self._finish()

    def _close(self, failure: Failure | None) -> None:
        self.over = True
        reply, self._reply = self._reply, None
        ended, self._ended = self._ended, None
        if reply is not None:
            source, reply.source, reply.taps = reply.source, None, None
            if source is not None:
                source.close()
        if ended is not None:
            ended(failure)


class Answer(Telling):
    """The rest of a Reply as the event stream that answers a POST; it ends when its reader leaves."""

    __slots__ = ("_outlet",)

    def __init__(
        self,
        clock: Clock,
        reply: Reply,
        first: bytes | None,
        *,
        tell: Callable[[bytes], bytes | None],
        failed: Callable[[Failure], bytes],
        ended: Callable[[Failure | None], None],
    ) -> None:
        super().__init__(reply, first, tell=tell, failed=failed, ended=ended)
        self._outlet = Outlet(clock, self._left, greeting=b"", on_start=self.begin, feeder=self)

    def response(self, reason: str = Reason.UPSTREAM) -> Response:
        return Response(200, list(HEADERS), source=self._outlet, reason=reason, ends=self.ends)

    def _put(self, message: bytes) -> None:
        self._outlet.say(message)

    def _finish(self) -> None:
        self._outlet.finish()

    def _left(self, _: Outlet) -> None:
        if not self.over:
            self._close(None)
