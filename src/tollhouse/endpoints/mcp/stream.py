"""Event streams to agents: the answer to one POST, and the stream a session or a subscription holds open.

Rule: a message is one SSE event, and stands on exactly one stream. A stream that is read too slowly is ended, never
buffered without bound; a quiet one says a comment now and then, so that no proxy takes it for dead. What an agent can
read again is in `replay`.
"""

from collections.abc import Callable, Sequence

from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Feeder, Response, Sink
from tollhouse.core.reply import Reply
from tollhouse.wire import jsonrpc, sse

__all__ = ["COMMENT", "HEADERS", "KEEP_ALIVE", "Answer", "Outlet"]

HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]

KEEP_ALIVE = 15.0
COMMENT = b": \n\n"
_HELD = 256 << 10


class _Quiet:
    """A Timed stream that says a comment when nothing else was said."""

    __slots__ = ("_clock", "_paused", "_sink", "deadline")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sink: Sink | None = None
        self._paused = False
        self.deadline = FOREVER

    def expire(self) -> None:
        self.deadline = self._clock.now + KEEP_ALIVE
        if self._sink is not None and not self._paused:
            self._sink.send(COMMENT)

    def _watch(self) -> None:
        self.deadline = self._clock.now + KEEP_ALIVE
        self._clock.watch(self)

    def _unwatch(self) -> None:
        self.deadline = FOREVER
        self._clock.drop(self)


class Answer(_Quiet):
    """The rest of a Reply as the event stream that answers a POST; it ends when its reader leaves.

    Source of the Response, Sink of the Reply's source. tell: what one raw message becomes, None to leave it out.
    failed: the last message when the server's stream fails. ended: called once, with the Failure or None.
    """

    __slots__ = ("_ended", "_failed", "_first", "_reply", "_tell")

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
        super().__init__(clock)
        self._reply: Reply | None = reply
        self._first = first
        self._tell = tell
        self._failed = failed
        self._ended: Callable[[Failure | None], None] | None = ended

    def response(self, reason: str = Reason.UPSTREAM) -> Response:
        assert self._reply is not None
        return Response(200, list(HEADERS), source=self, reason=reason, ends=self._reply.ends)

    # Source
    def start(self, sink: Sink) -> None:
        if self._reply is None:  # cancelled before it began
            sink.end()
            return
        self._sink = sink
        self._watch()
        if self._first is not None:
            sink.send(sse.frame(jsonrpc.one_line(self._first), b"message"))
            self._first = None
        source = self._reply.source
        if source is not None:
            source.start(self)

    def pause(self) -> None:
        self._paused = True
        if self._reply is not None and self._reply.source is not None:
            self._reply.source.pause()

    def resume(self) -> None:
        self._paused = False
        if self._reply is not None and self._reply.source is not None:
            self._reply.source.resume()

    def close(self) -> None:
        self._sink = None
        self._over(None)

    def cut(self, failure: Failure) -> None:
        """End the stream now: the agent has cancelled its request."""
        sink, self._sink = self._sink, None
        self._over(failure)
        if sink is not None:
            sink.end()

    # Sink
    def send(self, data: bytes) -> None:
        sink = self._sink
        reply = self._reply
        if sink is None or reply is None:
            return
        for tap in reply.taps or ():
            data = tap(data)
        try:
            message = self._tell(data)
        except jsonrpc.Malformed as problem:
            self.end(Failure(502, Reason.UPSTREAM_FAILURE, problem.message, sent=True))
            return
        if message is not None:
            self.deadline = self._clock.now + KEEP_ALIVE
            sink.send(sse.frame(jsonrpc.one_line(message), b"message"))

    def end(self, failure: Failure | None = None) -> None:
        sink, self._sink = self._sink, None
        if sink is None:
            return
        if failure is not None:
            sink.send(sse.frame(self._failed(failure), b"message"))
        self._over(failure)
        sink.end()

    def _over(self, failure: Failure | None) -> None:
        self._unwatch()
        reply, self._reply = self._reply, None
        ended, self._ended = self._ended, None
        if reply is not None:
            source, reply.source, reply.taps = reply.source, None, None
            if source is not None:
                source.close()
        if ended is not None:
            ended(failure)


class Outlet(_Quiet):
    """One reader of a stream that stays open for what comes. Source of its Response.

    on_close: told once, when it was ended or left. greeting: said first, so that the agent sees the stream open. held:
    events that are there already. on_start: called when reading begins. feeder: who is paused while the reader is slow;
    without one a reader that is too slow is ended.
    """

    __slots__ = ("_feeder", "_greeting", "_held", "_on_close", "_on_start", "_size")

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
        super().__init__(clock)
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

    # Source
    def start(self, sink: Sink) -> None:
        if self._on_close is None:
            for event in self._held:
                sink.send(event)
            self._held.clear()
            sink.end()
            return
        self._sink = sink
        self._watch()
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
        self._unwatch()
        if not keep:
            self._held.clear()
        self._feeder = self._on_start = None
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self)
