"""One agent's session of the old era: what it has asked for, what it is asked, and the streams it reads.

Rule: what is said in a session stands on exactly one stream: that of the request it belongs to, else the newest GET,
wherever that is; and while there is none it waits, within bounds. Where something may have been lost the agent is told
to look again, at everything that it may have missed.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import msgspec

from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Held
from tollhouse.core.http import Response
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.ids import key_of
from tollhouse.endpoints.mcp.in_flight import InFlight
from tollhouse.endpoints.mcp.outside import Answer, Guards, Waiting
from tollhouse.endpoints.mcp.questions import Now, Questions
from tollhouse.endpoints.mcp.replay import ResumableAnswer, Rings, Track
from tollhouse.endpoints.mcp.shared import Change, Record
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import tasks
from tollhouse.wire.mcp.messages import log_allowed, updated_uri

__all__ = ["LISTS_CHANGED", "Session"]

_BACKLOG = 64  # messages kept for an agent that has no stream open
_SUBSCRIPTIONS = 1000
_TASKS = 500  # that the session hears of
_LOST = 64  # streams that are remembered without their events
_UNREAD = 64  # calls that go on though nobody reads their answers
_ROOTS = 1.0  # seconds between two times that servers are told of other roots
_TOLD_OF = 0.25  # seconds after which a call whose answer streams is known to other workers
_PRIMED = "2025-11-25"  # the first revision whose agents know events without data

LISTS_CHANGED = (
    "notifications/tools/list_changed",
    "notifications/prompts/list_changed",
    "notifications/resources/list_changed",
)


class Keeper(Protocol):
    """What a session needs of who keeps them all (`session.Sessions`). shared: other workers may have it too. outside:
    who looks at what servers say."""

    clock: Clock
    timeout: float
    outside: Guards
    rings: Rings
    shared: bool

    def expired(self, session: "Session") -> None:
        """Nobody has used it for `timeout`, or it is as old as one may be."""
        ...

    def save(self, session: "Session") -> None:
        """Its record is to be written: `changes`, and when it was last used."""
        ...

    def forward(self, session: "Session", message: bytes) -> bool:
        """To the worker that has its stream, or back to `say` when that is gone; False when it cannot be tried."""
        ...

    def lapsed(self, session: "Session", failure: Failure) -> None:
        """Its principal is no longer good."""
        ...

    def ending(self, task: "asyncio.Task[None]") -> None:
        """It was cancelled, and ends soon."""
        ...

    def note_call(self, session: "Session", track: Track) -> None: ...

    def park(self, session: "Session", track: Track, event: bytes) -> None: ...


class Session:
    """One agent's session. Timed: it ends when it is idle for the timeout.

    key: what others know it by. profile: what the agent can be asked (`wire.mcp.capabilities`). servers: behind its
    endpoint. wrap: URIs carry their server. calls: requests in flight by raw id. subscribed: URIs as the agent knows
    them, that their server has agreed to tell of. tasks: server and its id to ours, of those begun here. owner: another
    worker that has its stream, or "". until: monotonic seconds of its end, however busy. tracks: its streams; moved:
    which of them goes on with one of a worker that is gone. changes: what its record does not say yet; written: who
    waits for that. ended: it is no more, anywhere; one that was released without is only not in this worker's memory
    any longer. held: where it is written down whose it is. greeted: its handshake is over. extensions: what its agent
    declares beside the profile.
    """

    __slots__ = (
        "_backlog", "_ends", "_gap", "_keeper", "_key", "_lost", "_questions", "_refresh", "_roots", "_streams",
        "_subscribing", "_waiting", "calls", "changes", "deadline", "ended", "endpoint", "extensions", "greeted",
        "held", "id", "kept", "level", "moved", "owner", "principal", "profile", "revision", "saving", "servers",
        "subscribed", "tasks", "tracks", "until", "wrap", "written",
    )  # fmt: skip

    def __init__(
        self,
        keeper: Keeper,
        id: str,
        *,
        principal: str,
        endpoint: str,
        servers: frozenset[str],
        revision: str,
        profile: int,
        until: float = FOREVER,
    ) -> None:
        self.id = id
        self.principal = principal
        self.endpoint = endpoint
        self.servers = servers
        self.revision = revision
        self.profile = profile
        self.until = until
        self.wrap = False
        self.level = ""
        self.owner = ""
        self.calls: dict[bytes, InFlight] = {}
        self.subscribed: set[str] = set()
        self.tasks: dict[tuple[str, str], str] = {}
        self.ended = False
        self.tracks: dict[int, Track] = {}
        self.kept = 0
        self.moved: dict[str, int] = {}
        self.changes: list[Change] = []
        self.saving = False
        self.written: asyncio.Future[None] | None = None
        self.held: Held | None = None
        self.extensions = b""
        self.greeted = False
        self.deadline = FOREVER
        self._keeper: Keeper | None = keeper
        self._waiting: Waiting | None = None
        self._key = ""
        self._refresh = keeper.clock.now if keeper.shared else FOREVER
        self._streams: list[Track] = []  # those of GETs that are read now; the newest last
        self._backlog: deque[bytes] | None = None
        self._gap = False
        self._lost: dict[int, bytes] = {}
        self._roots: Now | None = None
        self._questions = Questions(keeper.rings.node)
        self._ends: dict[Any, Callable[[], None]] = {}
        self._subscribing: dict[str, list[bytes]] = {}  # asked for and not yet granted: what was told meanwhile

    @property
    def key(self) -> str:
        if not self._key:
            self._key = key_of(self.id)
        return self._key

    @property
    def hears(self) -> str:
        """The least log level to pass on. An agent that never said gets what servers say by themselves, from info."""
        return self.level or "info"

    @property
    def busy(self) -> bool:
        return bool(self.calls or self._streams)

    @property
    def primes(self) -> bool:
        """Its agent comes back for the answer to a request whose connection was lost."""
        return self.revision >= _PRIMED

    @property
    def may_wait(self) -> bool:
        waiting = sum(track.answer is not None and not track.is_read for track in self.tracks.values())
        return waiting <= _UNREAD

    @property
    def open(self) -> bool:
        return self._keeper is not None

    # ---- time
    def touch(self) -> None:
        keeper = self._keeper
        if keeper is not None:
            now = keeper.clock.now
            ends = now + keeper.timeout
            self.deadline = ends if ends < self.until else self.until
            if now >= self._refresh:
                self.saved()
                keeper.save(self)

    def seen(self, principal: Principal | None) -> None:
        """It is used, with a credential that may be another than before."""
        held = self.held
        if held is not None and principal is not None:
            held.principal = principal
        self.touch()

    def lapse(self, failure: Failure) -> None:
        """`core.holders.Holder`."""
        if self._keeper is not None:
            self._keeper.lapsed(self, failure)

    def expire(self) -> None:
        keeper = self._keeper
        if keeper is None:
            return
        if self.busy:
            now = keeper.clock.now
            self.deadline = (
                now + min(60.0, keeper.timeout) if now >= self.until else min(now + keeper.timeout, self.until)
            )
            if now >= self._refresh:
                self.saved()
                keeper.save(self)
        else:
            keeper.expired(self)

    def on_end(self, key: Any, callback: Callable[[], None]) -> None:
        """Call `callback` when this session ends, unless it is told to `forget` the key."""
        if self._keeper is None:
            callback()
        else:
            self._ends[key] = callback

    def forget(self, key: Any) -> None:
        self._ends.pop(key, None)

    # ---- its record
    def note(self, change: Change) -> None:
        """Something that another worker would need to know."""
        keeper = self._keeper
        if keeper is not None and keeper.shared:
            self.changes.append(change)
            keeper.save(self)

    def saved(self) -> None:
        """Its record says that it is in use; not to be said again for a while."""
        if self._keeper is not None:
            self._refresh = self._keeper.clock.now + self._keeper.timeout / 10

    def record(self) -> Record:
        """All that would be lost with it."""
        return Record(time.time(), self.level, sorted(self.subscribed), self.owner, extensions=bytes(self.extensions))

    def take(self, record: Record, node: str) -> None:
        """Be as its record says. node: this worker."""
        self.level = record.level
        self.extensions = record.extensions
        self.subscribed = set(record.subscribed)
        self.owner = "" if record.owner == node else record.owner
        if self.owner and self._keeper is not None:
            backlog, self._backlog = self._backlog, None
            for message in backlog or ():
                self._keeper.forward(self, message)
        elif not record.owner and self._streams:  # the one that was newer has ended
            self._own()

    def owner_lost(self, node: str) -> None:
        """That worker has no stream of this session any more, whatever was said."""

        def change(record: Record) -> None:
            if record.owner == node:
                record.owner = ""

        if self.owner == node:
            self.owner = ""
            self.note(change)

    def set_level(self, level: str) -> None:
        """What the agent has asked for with `logging/setLevel`."""

        def change(record: Record) -> None:
            record.level = level

        self.level = level
        self.note(change)

    def declare(self, extensions: bytes) -> None:
        """What its agent can do beside what the id says (raw JSON of an object)."""

        def change(record: Record) -> None:
            record.extensions = extensions

        self.extensions = extensions
        self.note(change)

    def lost_something(self) -> None:
        """The agent is to look again at all it may have missed, once it listens."""
        self._gap = True

    # ---- streams
    def listen(self) -> Response:
        """A new stream of this session, which now takes what belongs to no request."""
        keeper = self._keeper
        assert keeper is not None
        track = Track(keeper.clock, keeper.rings, self, primes=self.primes)
        return self._listening(track, track.read())

    def read_again(self, stream: int, after: int) -> Response | None:
        """What came after event `after` of a stream, and what comes. None when nothing is known of that stream."""
        track = self.tracks.get(stream)
        if track is None or not track.begun:
            request = self._lost.get(stream)
            return self.lost_answer(request) if request is not None else None
        if track.request:
            return track.read(after) if track.whole else self.lost_answer(track.request)
        if track.missed(after):
            self.lost_something()
        return self._listening(track, track.read(after))

    def lost_answer(self, request: bytes) -> Response:
        """A stream that answers `request` (a raw id): its answer is not kept any more."""
        keeper = self._keeper
        assert keeper is not None
        track = Track(keeper.clock, keeper.rings, self, request=request)
        why = "the answer to this request was lost; it is not known whether it was carried out"
        track.say(jsonrpc.error(request, jsonrpc.INTERNAL_ERROR, why, {"reason": "call_lost", "executed": "unknown"}))
        track.finish()
        return track.read(0)

    def _listening(self, track: Track, response: Response) -> Response:
        if track in self._streams:
            self._streams.remove(track)
        self._streams.append(track)
        backlog, self._backlog = self._backlog, None
        for message in backlog or ():
            track.say(message)
        if self._gap:
            self._gap = False
            for method in LISTS_CHANGED:
                track.say(jsonrpc.notification(method))
            for uri in sorted(self.subscribed):
                params = jsonrpc.encode_fields({"uri": uri})
                track.say(jsonrpc.notification("notifications/resources/updated", params))
        self._own()
        return response

    def _own(self) -> None:
        """Let other workers know where its stream is."""
        keeper = self._keeper
        if keeper is None or not keeper.shared:
            return
        node = keeper.rings.node
        here = bool(self._streams)

        def change(record: Record) -> None:
            if here:
                record.owner = node
            elif record.owner == node:
                record.owner = ""

        if here:
            self.owner = ""
        self.note(change)

    def answer(
        self,
        reply: Reply | None,
        first: bytes | None,
        *,
        id: bytes,
        tell: Callable[[bytes], bytes | None],
        failed: Callable[[Failure], bytes],
        ended: Callable[[Failure | None], None],
        call: ToolCall | None = None,
        token: bytes = b"",
        stop: Callable[[], None] | None = None,
    ) -> ResumableAnswer:
        """The answer to request `id` as an event stream that can be read again (see `replay.ResumableAnswer`). call,
        token: how it was put to its server."""
        keeper = self._keeper
        assert keeper is not None
        track = Track(keeper.clock, keeper.rings, self, request=id, primes=self.primes)
        if keeper.shared:
            track.deadline = keeper.clock.now + _TOLD_OF
            keeper.clock.hurry(track)
            track.call, track.token = call, token
        return ResumableAnswer(track, reply, first, tell=tell, failed=failed, ended=ended, stop=stop)

    @property
    def ending(self) -> "Callable[[asyncio.Task[None]], None]":
        """Whom to give a task that was cancelled, and is to be waited for when the process ends. The session must be
        open."""
        keeper = self._keeper
        assert keeper is not None
        return keeper.ending

    def track_lasts(self, track: Track) -> None:
        if self._keeper is not None and self._keeper.shared:
            self._keeper.note_call(self, track)

    def track_left(self, track: Track) -> None:
        if track in self._streams:
            self._streams.remove(track)
            if not self._streams:
                self._own()
        self.touch()

    def track_over(self, track: Track, last: bytes) -> None:
        if last and self._keeper is not None and self._keeper.shared:
            self._keeper.park(self, track, last)

    def track_gone(self, track: Track) -> None:
        if track in self._streams:
            self._streams.remove(track)
        if track.request and track.seq:
            self._lost[track.stream] = track.request
            if len(self._lost) > _LOST:
                del self._lost[next(iter(self._lost))]

    def hang_up(self) -> None:
        """End the streams that take what belongs to no request: the agent is to come back for another."""
        for track in list(self._streams):
            track.hang_up()

    # ---- to the agent
    def say(self, message: bytes) -> None:
        """A notification: on the newest stream, or kept for the next one."""
        if self.owner and self._keeper is not None and self._keeper.forward(self, message):
            return
        if self.say_here(message):
            return
        if self._backlog is None:
            self._backlog = deque()
        self._backlog.append(message)
        if len(self._backlog) > _BACKLOG:
            self._backlog.popleft()
            self._gap = True

    def say_here(self, message: bytes) -> bool:
        """On the newest stream that this worker has; False when it has none."""
        if not self._streams:
            return False
        if not self._streams[-1].say(message):
            self._gap = True  # it was read too slowly, and has ended
        return True

    def deliver(self, server: str, data: bytes, message: jsonrpc.Message, answer: Callable[[bytes], None]) -> bool:
        """What `server` says outside of any request of ours."""
        keeper = self._keeper
        if keeper is None or (message.is_request and not self._is_heard):
            return False
        try:
            if message.method == "notifications/message" and not log_allowed(message.params, self.hears):
                return True
            if self._waiting is None:
                if not keeper.outside.look:
                    return self._take(server, message, answer)
                self._waiting = Waiting(keeper.outside.room, self.lost_something)
            take = partial(self._take, server)
            return keeper.outside.hear(self.endpoint, server, data, message, answer, take, self._waiting)
        except jsonrpc.Malformed:
            return False

    @property
    def _is_heard(self) -> bool:
        """Whether it has a stream somewhere."""
        return bool(self.owner or self._streams)

    def _take(self, server: str, message: jsonrpc.Message, answer: Answer) -> bool:
        """What `server` says, as guards have left it. Raises Malformed."""
        if message.is_request:
            return self._take_request(server, message, answer)
        method = message.method
        if method == "notifications/resources/updated":
            uri, notification = updated_uri(message, server if self.wrap else "")
            if any(map(uri.startswith, self.subscribed)):  # also of a part of it
                self.say(notification)
            else:
                held = next((held for asked, held in self._subscribing.items() if uri.startswith(asked)), None)
                if held is not None and len(held) < _BACKLOG:
                    held.append(notification)
        elif method == tasks.STATUS:
            self._task_moved(server, message.params)
        else:
            self.say(jsonrpc.notification(method, message.params))
        return True

    def _take_request(self, server: str, message: jsonrpc.Message, answer: Answer) -> bool:
        if not self._is_heard:
            return False
        about = tasks.about(message.params) if b"related-task" in bytes(message.params) else None
        if about is not None:
            message.params = tasks.related(message.params, self.tasks.get((server, about), ""))
        self.say(self.ask(message, answer))
        return True

    # ---- tasks (2025-11-25)
    def add_task(self, server: str, id: str, token: str) -> None:
        """A task that was begun here: the server's id, and the one that the agent has."""
        self.tasks[server, id] = token
        if len(self.tasks) > _TASKS:
            del self.tasks[next(iter(self.tasks))]

    def _task_moved(self, server: str, params: msgspec.Raw) -> None:
        token = self.tasks.get((server, tasks.task_id(params) or ""))
        if token is not None:
            self.say(jsonrpc.notification(tasks.STATUS, jsonrpc.encode_fields(tasks.as_old(params, token))))

    # ---- subscriptions of resources
    def subscribe(self, uri: str) -> None:
        """`uri` is being asked for; `subscribed_to` must follow. Raises Failure 429 when there are too many."""
        if len(self.subscribed) + len(self._subscribing) >= _SUBSCRIPTIONS and uri not in self.subscribed:
            why = f"this session has {_SUBSCRIPTIONS} subscriptions: end some with resources/unsubscribe"
            raise Failure(429, Reason.RATE_LIMIT, why)
        self._subscribing.setdefault(uri, [])

    def subscribed_to(self, uri: str, granted: bool) -> None:
        """The server's answer, or the rules', to `subscribe`. A refusal ends no earlier subscription."""

        def change(record: Record) -> None:
            if uri not in record.subscribed:
                record.subscribed.append(uri)

        held = self._subscribing.pop(uri, [])
        if granted and self._keeper is not None:
            self.subscribed.add(uri)
            self.note(change)
            for notification in held:
                self.say(notification)

    def unsubscribed(self, uri: str, granted: bool) -> None:
        def change(record: Record) -> None:
            if uri in record.subscribed:
                record.subscribed.remove(uri)

        if granted:
            self.subscribed.discard(uri)
            self.note(change)

    # ---- what servers ask the agent
    def ask(self, message: jsonrpc.Message, answer: Callable[[bytes], None]) -> bytes:
        """`Questions.ask`."""
        for track in self.tracks.values():
            track.asks()
        return self._questions.ask(message, answer)

    def answered(self, message: jsonrpc.Message) -> bool:
        """`Questions.answered`."""
        return self._questions.answered(message)

    def cancel(self, request: bytes) -> bool:
        """The agent does not want the answer to that request (a raw id) any more; False where it is not in flight."""
        call = self.calls.get(request)
        if call is None:
            return False
        call.cancel()
        return True

    def roots_changed(self, tell: Callable[[], None]) -> None:
        """The agent has other roots. tell: says so to every server."""
        if self._roots is None:
            self._roots = Now(_ROOTS)
        self._roots.do(tell)

    # ---- the end
    def release(self) -> None:
        """It is no more, here: cancel what runs, close what is open."""
        self._keeper = None
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None
        if self._roots is not None:
            self._roots.cancel()
        self.deadline = FOREVER
        for call in list(self.calls.values()):
            call.cancel()
        self.calls.clear()
        self._streams.clear()
        for track in list(self.tracks.values()):
            track.drop()
        self.tracks.clear()
        self._questions.clear()
        ends, self._ends = self._ends, {}
        for callback in ends.values():
            callback()
