"""What was said to an agent lately, so that one whose connection broke can read on (`Last-Event-ID`).

Rule: an event id is `<worker>.<stream>.<number>`, and says nothing to anybody but the session that it is of. What is
kept is bounded four times: for each stream, for each session, for the worker, and in time. The last message of an
answer is kept before all others: without it a call was made for nothing.

An agent of the old era that leaves has not cancelled (2025-11-25, Streamable HTTP): the call goes on without a reader,
its end is kept, and the agent comes back for it. So many calls of a session may go on like that.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import EXPIRED
from tollhouse.core.http import End, Ending, Response, finish
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.shared import Left
from tollhouse.endpoints.mcp.stream import COMMENT, HEADERS, Outlet, Telling
from tollhouse.wire import jsonrpc

__all__ = ["LARGEST", "RETRY", "ResumableAnswer", "Rings", "Track", "parse_event_id"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_EVENTS = 256
_BYTES = 256 << 10
LARGEST = 1 << 20
"""Bytes of a message that is kept: of the last one of an answer, and of all that a session has."""

RETRY = 500
"""Milliseconds after which an agent comes back whose stream has ended early."""

_PRIMING = b"id: %b0\nretry: %d\ndata: \n\n"
_ALL = 128 << 20
_PARAMS = 64 << 10  # bytes of a call's params that others are told
_AWAY = 300.0  # seconds that an agent has to come back
_NOTED = 10.0  # seconds after which others are told again how far an answer is
_READ = 30.0  # the same, for a stream that was read to its end as far as we can tell


def parse_event_id(text: str) -> tuple[str, int, int] | None:
    """(worker, stream, number) of an event id; None when it is none of ours."""
    node, _, rest = text.partition(".")
    stream, _, number = rest.partition(".")
    if node and len(text) <= 128 and stream.isdecimal() and number.isdecimal() and rest.isascii():
        return node, int(stream[:18]), int(number[:18])
    return None


class Rings:
    """All that a worker keeps. node: names it in event ids."""

    __slots__ = ("_idle", "_streams", "limit", "node", "size")

    def __init__(self, node: str, limit: int = _ALL) -> None:
        self.node = node
        self.limit = limit
        self.size = 0
        self._streams = 0
        self._idle: dict[Track, None] = {}  # nobody reads them; since longest first

    def next(self) -> int:
        self._streams += 1
        return self._streams

    def read(self, track: "Track") -> None:
        self._idle.pop(track, None)

    def unread(self, track: "Track") -> None:
        self._idle[track] = None

    def fits(self) -> bool:
        """Make room at the cost of those that nobody reads: whether there is room now."""
        while self.size > self.limit and self._idle:
            track = next(iter(self._idle))
            del self._idle[track]
            track.empty()
        return self.size <= self.limit


class Home(Protocol):
    """The session of a stream. kept: bytes of all its events."""

    kept: int
    tracks: "dict[int, Track]"

    @property
    def may_wait(self) -> bool:
        """Whether one more call of it may go on that nobody reads."""
        ...

    def track_lasts(self, track: "Track") -> None:
        """It answers a request, and that takes its time."""
        ...

    def track_left(self, track: "Track") -> None:
        """Nobody reads it any more: its reader went away, or it has ended."""
        ...

    def track_over(self, track: "Track", last: bytes) -> None:
        """No more comes. last: the last event, where nobody has read it; else b""."""
        ...

    def track_gone(self, track: "Track") -> None:
        """It is not kept any longer."""
        ...


class Track:
    """One stream of a session: its events by number, and who reads it now. Timed.

    request: the raw id of the request that it answers, b"" for a stream that answers none; call and token: how that
    was put to its server. primes: it begins with an
    empty event, so that the agent has an id to come back with (2025-11-25).
    """

    __slots__ = (
        "_clock", "_events", "_home", "_outlet", "_prefix", "_rings", "_size", "answer", "call", "deadline",
        "over", "primes", "request", "seq", "stream", "token",
    )  # fmt: skip

    def __init__(self, clock: Clock, rings: Rings, home: Home, *, request: bytes = b"", primes: bool = False) -> None:
        self.stream = rings.next()
        self.request = request
        self.call: ToolCall | None = None
        self.token = b""
        self.answer: ResumableAnswer | None = None
        self.deadline = FOREVER
        self.over = False
        self.seq = 0
        self._clock = clock
        self._rings = rings
        self._home: Home | None = home
        self._prefix = b"%b.%d." % (rings.node.encode(), self.stream)
        self.primes = primes
        self._events: deque[bytes] = deque()
        self._size = 0
        self._outlet: Outlet | None = None
        home.tracks[self.stream] = self
        clock.watch(self)

    @property
    def is_read(self) -> bool:
        return self._outlet is not None

    @property
    def may_wait(self) -> bool:
        """Whether it may go on without being read."""
        return self._home is not None and self._home.may_wait

    @property
    def begun(self) -> bool:
        """Whether an agent can know of it."""
        return self.answer is None or self.answer.begun

    @property
    def whole(self) -> bool:
        """Whether the end of the answer is still here, where it has come."""
        return not self.over or bool(self._events)

    # ---- reading
    def read(self, after: int | None = None) -> Response:
        """Everything after event `after`, and what comes; from the beginning without it. Who read it until now reads no
        more."""
        before, self._outlet = self._outlet, None
        if before is not None:
            if self.answer is not None:
                self.answer.left()
            before.finish()
        if after is None:
            greeting = _PRIMING % (self._prefix, RETRY) if self.primes else COMMENT
            held = list(self._events) if self.request else []  # what ended before anybody could begin to read
        else:
            greeting = COMMENT
            missed = max(0, self.seq - after)
            held = list(self._events)[-missed:] if missed else []
        answer = self.answer
        outlet = Outlet(
            self._clock,
            self._closed,
            greeting=greeting,
            held=held,
            on_start=answer.begin if answer is not None else None,
            feeder=answer,
        )
        self._rings.read(self)
        self._outlet = outlet
        if answer is None:
            self.deadline = FOREVER
        if self.over:
            outlet.finish()
            return Response(200, list(HEADERS), source=outlet)
        return outlet.response()

    def missed(self, after: int) -> bool:
        """Whether something after event `after` is not here any more."""
        return self.seq - after > len(self._events)

    def _closed(self, outlet: Outlet) -> None:
        if outlet is not self._outlet:
            return  # another one reads by now
        self._outlet = None
        if self._home is None:
            return
        self._rings.unread(self)
        if self.answer is None or self.over:
            self.deadline = self._clock.now + (_READ if self.over else _AWAY)
        home = self._home
        if self.answer is not None and not self.answer.left():
            return
        home.track_left(self)

    # ---- writing
    def say(self, message: bytes) -> bool:
        """One message: whether somebody reads it."""
        self.seq += 1
        event = b"event: message\nid: %b%d\ndata: %b\n\n" % (self._prefix, self.seq, jsonrpc.one_line(message))
        self._keep(event)
        outlet = self._outlet
        return outlet is not None and outlet.put(event)

    def _keep(self, event: bytes) -> None:
        home = self._home
        if home is None:
            return
        size = len(event)
        if size > LARGEST:
            self.empty()
            return
        events = self._events
        events.append(event)
        self._add(size)
        while len(events) > 1 and (len(events) > _EVENTS or self._size > _BYTES):
            self._add(-len(events.popleft()))
        if home.kept > LARGEST:
            for track in list(home.tracks.values()):
                if track is not self and not track.is_read:
                    track.empty()
                    if home.kept <= LARGEST:
                        break
            while len(events) > 1 and home.kept > LARGEST:
                self._add(-len(events.popleft()))
        if self._rings.size > self._rings.limit and not self._rings.fits():
            self.empty()

    def _add(self, size: int) -> None:
        self._size += size
        self._rings.size += size
        if self._home is not None:
            self._home.kept += size

    def empty(self) -> None:
        """Keep nothing of what was said up to now."""
        self._add(-self._size)
        self._events.clear()

    def hang_up(self) -> None:
        """End it for its reader, who comes back, maybe to another worker. One that answers a request is ended only for
        agents that expect it (2025-11-25)."""
        outlet = self._outlet
        if outlet is not None and (self.primes or not self.request) and (self.answer is None or self.may_wait):
            outlet.put(b"retry: %d\n\n" % RETRY)
            if self.answer is not None:
                self.answer.left()
            outlet.finish()

    def finish(self) -> None:
        """No more comes."""
        if self.over:
            return
        self.over = True
        self.answer = self.call = None
        outlet, home = self._outlet, self._home
        last = self._events[-1] if outlet is None and self._events else b""
        if outlet is not None:
            outlet.finish()
        else:
            self.deadline = self._clock.now + _AWAY
        if home is not None:
            home.track_over(self, last)

    def asks(self) -> None:
        """The agent is asked something in this session: others should know soon, if it is of this call."""
        if self.call is not None and self.call.moves is not None:
            self.deadline = self._clock.now
            self._clock.hurry(self)

    def left(self) -> Left:
        """What another worker needs to answer in the place of this one."""
        call = self.call
        if call is None:
            return Left(self.request)
        params = jsonrpc.encode_fields(call.params) if call.idempotent and call.params else b""
        return Left(
            self.request,
            call.server,
            call.method,
            call.name,
            self.token,
            call.moves.place() if call.moves is not None else b"",
            params if len(params) <= _PARAMS else b"",
        )

    def let_go(self) -> None:
        """This worker leaves: its server need not stop."""
        call = self.call
        if call is not None and call.moves is not None and call.moves.place():
            call.moves.leave()

    # ---- the end
    def expire(self) -> None:
        if self.answer is not None and not self.over:
            if self._home is not None:
                self.deadline = self._clock.now + _NOTED
                self._home.track_lasts(self)
        elif not self.is_read:
            self.drop()

    def drop(self) -> None:
        """Forget it."""
        home, self._home = self._home, None
        self.deadline = FOREVER
        self.answer = self.call = None
        self._clock.drop(self)
        self._rings.read(self)
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            outlet.finish()
        if home is not None:
            home.kept -= self._size
            home.tracks.pop(self.stream, None)
            home.track_gone(self)
        self._rings.size -= self._size
        self._size = 0
        self._events.clear()


class ResumableAnswer(Telling):
    """An answer that goes on without its reader, who may come back for it. What is due at the end of its Reply is run
    when the call ends, also where nobody reads by then. stop: ends a call whose Reply is still to come. is_known: the
    agent can come back for it; else it is kept for nobody once it has ended.
    """

    __slots__ = ("_due", "_stop", "_track", "is_known")

    def __init__(
        self,
        track: Track,
        reply: Reply | None,
        first: bytes | None,
        *,
        tell: Callable[[bytes], bytes | None],
        failed: Callable[[Failure], bytes],
        ended: Callable[[Failure | None], None],
        stop: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(reply, first, tell=tell, failed=failed, ended=ended)
        self._track = track
        self._due: list[End] | None = None  # nobody reads: what we must run at the end
        self._stop = stop
        self.is_known = True
        track.answer = self

    def response(self, reason: str = Reason.UPSTREAM) -> Response:
        response = self._track.read()
        response.reason = reason
        response.ends = self.ends
        return response

    def follow(self, reply: Reply, first: bytes | None) -> None:
        """The Reply has come. first: its first message as the agent is told it, None where that is left out."""
        self._stop = None
        if self.over:
            reply.close(Ending(499, Reason.CLIENT_GONE, gone=True))
            return
        self._reply, self._first = reply, first
        due = self.ends if self._due is None else self._due
        due += reply.ends
        reply.ends = []
        self._track.asks()  # others may be able to take it over from now on
        if self.begun:
            self._go(reply)

    def left(self) -> bool:
        """The reader went away: whether this goes on without one."""
        if self.over:
            return True
        if not self.begun or not self._track.may_wait:  # the agent could not come back, or has too many that wait
            self._close(None)
            self._track.drop()
            return False
        if self._due is None:
            # The list is the Response's as well: taken out of it, its server does not run them now.
            self._due, self.ends[:] = list(self.ends), []
        self.resume()
        return True

    def lapse(self, failure: Failure) -> None:
        """Who asked is no longer good. Who only needs a new token, and can come back, reads on with that."""
        if failure.code == EXPIRED and self._track.primes:
            self._track.hang_up()
        else:
            self.end(failure)

    def _put(self, message: bytes) -> None:
        self._track.say(message)

    def _finish(self) -> None:
        if self.is_known:
            self._track.finish()
        else:
            self._track.drop()

    def _hung_up(self) -> None:
        self._track.hang_up()  # so may the agent do

    def _close(self, failure: Failure | None) -> None:
        stop, self._stop = self._stop, None
        super()._close(failure)
        if stop is not None:
            stop()
        due, self._due = self._due, None
        if due:
            reason = failure.reason if failure is not None else Reason.UPSTREAM
            try:
                finish(due, Ending(200, reason, 0, failure))
            except Failure as unsettled:
                log.error("the end of a call could not be settled: %s", unsettled.detail or unsettled.message)
