"""Event streams to agents: the answer to one POST, and the stream a session or a subscription holds open.

Rule: a message is one SSE event, and stands on exactly one stream. A stream that is read too slowly is ended, never
buffered without bound; a quiet one says a comment now and then, so that no proxy takes it for dead.
"""

from collections.abc import Callable

from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Response, Sink
from tollhouse.core.reply import Reply
from tollhouse.wire import jsonrpc, sse

__all__ = ["HEADERS", "Answer", "Outlet"]

HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]

KEEP_ALIVE = 15.0
_COMMENT = b": \n\n"
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
            self._sink.send(_COMMENT)

    def _watch(self) -> None:
        self.deadline = self._clock.now + KEEP_ALIVE
        self._clock.watch(self)

    def _unwatch(self) -> None:
        self.deadline = FOREVER
        self._clock.drop(self)


class Answer(_Quiet):
    """The rest of a Reply as the event stream that answers a POST.

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
    """A stream that stays open for what comes: a session's GET, a subscription. Source of its Response."""

    __slots__ = ("_held", "_on_close", "_size")

    def __init__(self, clock: Clock, on_close: Callable[["Outlet"], None]) -> None:
        super().__init__(clock)
        self._held: list[bytes] = []
        self._size = 0
        self._on_close: Callable[[Outlet], None] | None = on_close

    def response(self) -> Response:
        return Response(200, list(HEADERS), source=self, ends=[self._left])

    def say(self, message: bytes) -> bool:
        """Put one message on the stream; False when it has ended, or ends now because it is read too slowly."""
        if self._on_close is None:
            return False
        event = sse.frame(jsonrpc.one_line(message), b"message")
        if self._sink is not None and not self._paused:
            self.deadline = self._clock.now + KEEP_ALIVE
            self._sink.send(event)
            return True
        if self._size + len(event) > _HELD:
            self.finish()
            return False
        self._held.append(event)
        self._size += len(event)
        return True

    def finish(self) -> None:
        """End it in good order."""
        sink, self._sink = self._sink, None
        self._over()
        if sink is not None:
            sink.end()

    def _left(self, _: Ending) -> None:
        self._over()

    # Source
    def start(self, sink: Sink) -> None:
        if self._on_close is None:
            sink.end()
            return
        self._sink = sink
        self._watch()
        sink.send(_COMMENT)  # so that the agent sees the stream open
        self.resume()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        while self._held and self._sink is not None and not self._paused:
            event = self._held.pop(0)
            self._size -= len(event)
            self._sink.send(event)

    def close(self) -> None:
        self._sink = None
        self._over()

    def _over(self) -> None:
        self._unwatch()
        self._held.clear()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close(self)
