"""All sessions of old-era agents that this worker knows, and subscriptions of new-era ones: what outlives a request.

Rule: a session belongs to one principal at one endpoint; to anybody else, and once it has ended, it was never there
(404). It survives changes of configuration, and holds nothing of one. Any worker with the key finds it again by its id
(`ids`) and its record (`shared`); so one that nobody uses may be let go of, and a worker may be lost.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec

from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Response
from tollhouse.endpoints.mcp.agent import LISTS_CHANGED, InFlight, Session
from tollhouse.endpoints.mcp.ids import MAX_AGE, Opened, SessionIds, key_of
from tollhouse.endpoints.mcp.relay import Lent, Relayed
from tollhouse.endpoints.mcp.replay import Rings, Track, parse_event_id
from tollhouse.endpoints.mcp.shared import Left, Record, Records, Word, Workers
from tollhouse.endpoints.mcp.stream import HEADERS, Outlet
from tollhouse.store.base import State
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions
from tollhouse.wire.mcp.sealed import Seals

__all__ = ["InFlight", "Session", "Sessions", "Subscription"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_COALESCE = 0.25  # seconds in which changes of lists are told once
_ENDED = 32_768  # sessions that are remembered to have ended, where no store does
_AWAY = 300.0  # seconds that what an agent has missed is kept for it
_CALL = 3600.0  # seconds that a call which streams is known to other workers
_WRITTEN = 10.0  # seconds after which a session must have a record, where those are shared
_TASKS = 10_000
_ASKS = 12  # times that a worker which lives is asked for a stream, each for a second
_MOVED = 64
_LOOK = 0.1
_RELAYS = 1000

_FILTERS = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}


GoOn = Callable[[Session, Left], Awaitable[Response | None]]
"""Answer a call in the place of a worker that is gone; None where that cannot be. Raises Failure."""


class Subscription:
    """A `subscriptions/listen` of a stateless agent (2026-07-28): its stream, and which changes it wants."""

    __slots__ = ("id", "methods", "outlet", "servers")

    def __init__(self, id: bytes, methods: frozenset[str], servers: frozenset[str], outlet: Outlet) -> None:
        self.id = id
        self.methods = methods
        self.servers = servers
        self.outlet = outlet

    def meta(self) -> dict[str, Any]:
        return {revisions.SUBSCRIPTION_ID: msgspec.Raw(self.id)}

    def tell(self, method: str) -> None:
        if method in self.methods:
            self.outlet.say(jsonrpc.notification(method, jsonrpc.encode_fields({"_meta": self.meta()})))


class Sessions:
    """All sessions and subscriptions of this worker; kept while configurations come and go.

    timeout: seconds of idleness. limit: sessions in memory; above it idle ones are let go of, to be found again by
    their records. limit_each: sessions of one principal here; above it idle ones end. Agents that have not said who
    they are count as many. count: called with (revision, +1 or -1). state: where records are, and other workers;
    without one a session that is let go of has lost its subscriptions. seals: for ids.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        timeout: float = 3600.0,
        limit: int = 10_000,
        limit_each: int = 1000,
        count: Callable[[str, int], None] = lambda revision, change: None,
        state: State | None = None,
        seals: Seals | None = None,
        max_age: float = MAX_AGE,
    ) -> None:
        self.clock = clock
        self.timeout = timeout
        self.limit_each = limit_each
        self.deadline = FOREVER
        self.shared = state is not None and state.shared
        self.rings = Rings(state.node if state is not None else "0")
        self._limit = limit
        self._count = count
        self._ids = SessionIds(seals or Seals(), max_age=max_age)
        self._records = Records(state.values) if state is not None else None
        self._workers = Workers(state, self._heard, self._gap) if state is not None and state.shared else None
        self._open: dict[str, Session] = {}
        self._of: dict[str, dict[str, Session]] = {}
        self._keys: dict[str, Session] = {}  # by key, where others know them by that
        self._ended: dict[str, None] = {}
        self._leaving: dict[str, Record] = {}  # let go of, and not yet written
        self._tasks: set[asyncio.Task[None]] = set()
        self._relayed: dict[int, Relayed] = {}
        self._lent: dict[tuple[str, int], Lent] = {}
        self._subscriptions: set[Subscription] = set()
        self._changes: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._open)

    # ---- sessions
    def open(self, *, principal: str, endpoint: str, servers: frozenset[str], revision: str, profile: int) -> Session:
        """A new session. Raises Failure 503 or 429 when there are too many and none is idle."""
        self._make_room(principal)
        id = self._ids.mint(principal, endpoint, revision, profile)
        session = Session(
            self,
            id,
            principal=principal,
            endpoint=endpoint,
            servers=servers,
            revision=revision,
            profile=profile,
            until=self.clock.now + self._ids.max_age,
        )
        self._add(session)
        return session

    def _make_room(self, principal: str) -> None:
        own = self._of.get(principal, {})
        if principal and len(own) >= self.limit_each:
            why = f"this caller has {self.limit_each} sessions open: end some with DELETE"
            self.end(_idlest(own, Failure(429, Reason.RATE_LIMIT, why)))
        if len(self._open) >= self._limit:
            self._let_go(_idlest(self._open, Failure(503, Reason.MCP, "too many sessions are open")))

    def _add(self, session: Session) -> None:
        self._open[session.id] = session
        self._of.setdefault(session.principal, {})[session.id] = session
        if self.shared:
            self._keys[session.key] = session
        session.touch()
        self.clock.watch(session)
        self._count(session.revision, 1)

    def find(self, id: str, principal: str, endpoint: str) -> Session | None:
        """The session, if it is in memory and is this principal's at this endpoint."""
        session = self._open.get(id)
        if session is None or session.principal != principal or session.endpoint != endpoint:
            return None
        return session

    async def load(self, id: str, principal: str, endpoint: str) -> Session | None:
        """The session that `find` has not found: opened at another worker, or let go of here. None when there is none
        such, or not for this principal at this endpoint. Raises Failure 503 while the store cannot tell."""
        opened = self._ids.read(id, principal, endpoint)
        if opened is None or id in self._ended:
            return None
        key = key_of(id)
        record = self._leaving.get(key)
        if record is None and self._records is not None:
            record = await self._records.read(key)
        known = self.find(id, principal, endpoint)  # somebody else was quicker
        if known is not None:
            return known
        if record is not None:
            if not record.ended and time.time() - record.touched > self.timeout:
                await self._end_record(key, self._ids.max_age - opened.age)
                return None
            if record.ended:
                return None
        return self._found(id, principal, endpoint, opened, record)

    def _found(self, id: str, principal: str, endpoint: str, opened: Opened, record: Record | None) -> Session:
        self._make_room(principal)
        session = Session(
            self,
            id,
            principal=principal,
            endpoint=endpoint,
            servers=frozenset(),
            revision=opened.revision,
            profile=opened.profile,
            until=self.clock.now + self._ids.max_age - opened.age,
        )
        if record is not None:
            session.take(record, self.rings.node)
        elif opened.age > _WRITTEN:
            session.lost_something()
        self._add(session)
        return session

    def end(self, session: Session) -> None:
        """It is no more, here and anywhere."""
        if not self._forget(session):
            return
        left = max(1.0, session.until - self.clock.now)
        if self.shared:
            self._later(self._end_record(session.key, left))
        else:
            self._ended[session.id] = None
            if len(self._ended) > _ENDED:
                del self._ended[next(iter(self._ended))]
        session.ended = True
        session.release()

    def _ended_elsewhere(self, session: Session) -> None:
        if self._forget(session):
            session.ended = True
            session.release()

    def end_by_id(self, id: str, principal: str, endpoint: str) -> None:
        """`end` the session of that id, where it is this principal's at this endpoint."""
        session = self.find(id, principal, endpoint)
        if session is not None:
            self.end(session)

    async def ended(self, session: Session) -> None:
        """End it; returns when no worker will find it again. Raises Failure 503 where others cannot be told."""
        left = max(1.0, session.until - self.clock.now)
        if self.shared:
            await self._end_record(session.key, left)
        self.end(session)

    async def _end_record(self, key: str, ttl: float) -> None:
        if self._records is not None:
            await self._records.end(key, max(1.0, ttl))
        if self._workers is not None:
            self._workers.tell_all(Word("ended", session=key))

    def expired(self, session: Session) -> None:
        """Nobody has used it here for the timeout, or it is too old."""
        if not self.shared or self.clock.now >= session.until:
            self.end(session)
        else:
            session.deadline = self.clock.now + 60.0  # in case that the store cannot tell
            self._later(self._lapse(session, session.deadline))

    async def _lapse(self, session: Session, deadline: float) -> None:
        """It is idle here: it has ended if it is idle everywhere."""
        assert self._records is not None
        record = await self._records.read(session.key)
        if session.busy or not session.open or session.deadline != deadline:
            return
        if record is not None and not record.ended and time.time() - record.touched < self.timeout:
            if self._forget(session):
                session.release()
        else:
            self.end(session)

    def _let_go(self, session: Session) -> None:
        """Out of memory: it is found again by its record."""
        if not self._forget(session):
            return
        if self._records is not None:
            ttl = max(1.0, session.deadline - self.clock.now)
            record = self._leaving[session.key] = session.record()
            record.touched -= int(max(0.0, self.timeout - ttl))
            self._later(self._write(session.key, record, ttl))
        session.release()

    async def _write(self, key: str, record: Record, ttl: float) -> None:
        assert self._records is not None
        try:
            await self._records.write(key, record, ttl)
        finally:
            self._leaving.pop(key, None)

    def _forget(self, session: Session) -> bool:
        if self._open.pop(session.id, None) is None:
            return False
        own = self._of.get(session.principal)
        if own is not None:
            own.pop(session.id, None)
            if not own:
                del self._of[session.principal]
        if self.shared:
            self._keys.pop(session.key, None)
        self.clock.drop(session)
        self._count(session.revision, -1)
        return True

    def subscribed_elsewhere(self, session: Session, uri: str) -> bool:
        """Whether another session of the same principal still wants to hear of `uri`."""
        own = self._of.get(session.principal, {})
        return any(other is not session and uri in other.subscribed for other in own.values())

    # ---- records
    def save(self, session: Session) -> None:
        if self.shared and not session.saving:
            session.saving = True
            self._later(self._save(session))

    async def _save(self, session: Session) -> None:
        assert self._records is not None
        ttl = self.timeout * 1.25 + 60.0
        try:
            while True:
                changes, session.changes = session.changes, []
                try:
                    record = await self._records.change(session.key, [*changes, _touched], ttl)
                except Failure:
                    session.changes[:0] = changes[-100:]  # with the next ones
                    raise
                if record.ended:
                    self._ended_elsewhere(session)
                    return
                if changes and self._workers is not None:
                    self._workers.tell_all(Word("changed", session=session.key))
                if not session.changes:
                    return
        finally:
            session.saving = False

    async def _reread(self, session: Session) -> None:
        """Another worker has changed its record."""
        assert self._records is not None
        record = await self._records.read(session.key)
        if record is None or not session.open:
            return
        if record.ended:
            self._ended_elsewhere(session)
        elif not session.changes and not session.saving:
            session.take(record, self.rings.node)

    # ---- requests of agents that concern another worker
    async def answered(self, session: Session, message: jsonrpc.Message) -> bool:
        """The agent's response to a server's request; False when nobody waits for it."""
        if session.answered(message):
            return True
        node = (jsonrpc.decode_string(message.id) or "").rpartition("-")[0]
        if self._workers is None or not node or node == self.rings.node:
            return False
        id = bytes(message.id)
        body = jsonrpc.failed(id, message.error) if len(message.error) else jsonrpc.result(id, message.result)
        return bool(await self._workers.ask(node, Word("answered", session=session.key, body=body)))

    def cancelled(self, session: Session, request: bytes) -> None:
        """The agent does not want the answer to that request (a raw id) any more."""
        if not session.cancel(request) and self._workers is not None:
            self._workers.tell_all(Word("cancel", session=session.key, body=request))

    async def listen(self, session: Session, last: str | None, go_on: GoOn | None = None) -> Response:
        """A GET of a session: a stream of what belongs to no request, or what comes after event `last` on its stream.
        go_on: with a call whose worker is gone. Raises Failure."""
        found = parse_event_id(last) if last is not None else None
        if found is not None:
            node, stream, after = found
            if node == self.rings.node:
                response = session.read_again(stream, after)
            else:
                response = await self._elsewhere(session, node, stream, after, go_on)
            if response is not None:
                return response
        if last is not None:
            session.lost_something()
        return session.listen()

    async def _elsewhere(
        self, session: Session, node: str, stream: int, after: int, go_on: GoOn | None
    ) -> Response | None:
        """What came after event `after` of a stream of another worker; None when nobody knows of it."""
        workers, records = self._workers, self._records
        if workers is None or records is None:
            return None
        name = f"{node}.{stream}"
        moved = session.moved.get(name)
        if moved is not None:
            return session.read_again(moved, 0)
        last = await records.parked(session.key, name)
        if last is not None:
            outlet = Outlet(self.clock, lambda _: None, held=(last,))
            outlet.finish()
            return Response(200, list(HEADERS), source=outlet)
        if len(self._relayed) >= _RELAYS:
            raise Failure(503, Reason.MCP, "too many streams are read over other workers", retry=True)
        token = workers.token()

        def ended() -> None:
            self._relayed.pop(token, None)

        relayed = self._relayed[token] = Relayed(self.clock, workers, node, token, ended)
        word = Word("read", session=session.key, token=token, number=after, body=b"%d" % stream)
        there: bool | None = None
        try:
            for _ in range(_ASKS):
                there = await workers.ask(node, word)
                if there is not None or not await records.lives(node):
                    break
        finally:
            if not there:
                relayed.close()
        if there:
            return relayed.response()
        left = await records.noted_call(session.key, name)
        if left is None:
            return None
        gone = there is None or not await records.lives(node)
        if gone and go_on is not None and session.open:
            try:
                response = await go_on(session, left)
            except Failure as failure:
                log.info("mcp: a call of a worker that is gone is lost: %s", failure.message)
            else:
                if response is not None:
                    if response.source is not None:
                        session.moved[name] = max(session.tracks)  # the one that was made just now
                        if len(session.moved) > _MOVED:
                            del session.moved[next(iter(session.moved))]
                    return response
        return session.lost_answer(left.request)

    def forward(self, session: Session, message: bytes) -> bool:
        if self._workers is None:
            return False
        return self._later(self._forward(self._workers, session, message))

    async def _forward(self, workers: Workers, session: Session, message: bytes) -> None:
        node = session.owner
        if not node or not await workers.ask(node, Word("say", session=session.key, body=message)):
            session.owner_lost(node)
            session.say(message)

    def note_call(self, session: Session, track: Track) -> None:
        if self._records is not None:
            stream = f"{self.rings.node}.{track.stream}"
            self._later(self._records.note_call(session.key, stream, track.left(), _CALL))

    def park(self, session: Session, track: Track, event: bytes) -> None:
        if self._records is not None:
            stream = f"{self.rings.node}.{track.stream}"
            self._later(self._records.park(session.key, stream, event, _AWAY))

    # ---- words of other workers
    def _heard(self, word: Word) -> None:
        workers = self._workers
        assert workers is not None
        if word.op in ("frame", "end"):
            relayed = self._relayed.get(word.token)
            if relayed is not None:
                relayed.take(word)
            return
        if word.op == "leave":
            lent = self._lent.get((word.node, word.token))
            if lent is not None:
                lent.leave()
            return
        session = self._keys.get(word.session)
        if word.op == "answered":
            workers.answer(word, session is not None and session.answered(jsonrpc.decode(word.body)))
        elif word.op == "say":
            workers.answer(word, session is not None and session.say_here(word.body))
        elif word.op == "read":
            workers.answer(word, session is not None and self._lend(session, word))
        elif session is None:
            return
        elif word.op == "ended":
            self._ended_elsewhere(session)
        elif word.op == "changed":
            self._later(self._reread(session))
        elif word.op == "cancel":
            session.cancel(word.body)

    def _lend(self, session: Session, word: Word) -> bool:
        workers = self._workers
        assert workers is not None
        response = session.read_again(int(word.body), word.number)
        if response is None or response.source is None:
            return False
        to = (word.node, word.token)

        def ended() -> None:
            self._lent.pop(to, None)

        lent = self._lent[to] = Lent(workers, *to, response.source, ended)
        # After the answer, which goes out first.
        asyncio.get_running_loop().call_soon(lent.begin)
        return True

    def _gap(self) -> None:
        """Words of other workers may have been lost."""
        for session in list(self._keys.values()):
            session.lost_something()
            self._later(self._reread(session))

    # ---- subscriptions
    def subscribe(
        self,
        id: bytes,
        wanted: dict[str, Any],
        servers: frozenset[str],
        *,
        resources: Sequence[str] = (),
        tasks: Sequence[str] = (),
    ) -> Subscription:
        """A stream that begins with its acknowledgement: the changes of lists that were asked for, the URIs whose
        servers have agreed to tell of them, and the tasks. Raises Failure."""
        if len(self._subscriptions) >= self._limit:
            raise Failure(503, Reason.MCP, "too many subscriptions are open")
        methods = frozenset(method for method, name in _FILTERS.items() if wanted.get(name) is True)
        outlet = Outlet(self.clock, lambda _: self._subscriptions.discard(subscription))
        subscription = Subscription(id, methods, servers, outlet)
        self._subscriptions.add(subscription)
        accepted: dict[str, Any] = {_FILTERS[method]: True for method in sorted(methods)}
        if resources:
            accepted["resourceSubscriptions"] = list(resources)
        if tasks:
            accepted["taskIds"] = list(tasks)
        params = {"notifications": accepted, "_meta": subscription.meta()}
        outlet.say(jsonrpc.notification("notifications/subscriptions/acknowledged", jsonrpc.encode_fields(params)))
        return subscription

    # ---- changes of lists
    def changed(self, server: str, method: str) -> None:
        """A list of `server` is another: tell everybody who sees it, soon and once."""
        if not self._changes:
            self.deadline = self.clock.now + _COALESCE
            self.clock.hurry(self)
        self._changes.add((server, method))

    def all_changed(self) -> None:
        """Another configuration serves: every list may be another to anybody."""
        for method in LISTS_CHANGED:
            self.changed("", method)

    def expire(self) -> None:
        self.deadline = FOREVER
        changes, self._changes = self._changes, set()
        for session in list(self._open.values()):
            # Of a new configuration every worker tells those whose stream it has.
            mine = {(server, method) for server, method in changes if server} if session.owner else changes
            for method in _concerning(session.servers, mine):
                session.say(jsonrpc.notification(method))
        for subscription in list(self._subscriptions):
            for method in _concerning(subscription.servers, changes):
                subscription.tell(method)

    # ---- the end
    def _later(self, work: Coroutine[Any, Any, None]) -> bool:
        """Work with the store that nobody waits for; False when too much of it is under way."""
        if len(self._tasks) >= _TASKS:
            work.close()
            log.warning("MCP sessions change faster than the store takes it")
            return False
        task = asyncio.get_running_loop().create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def finish_streams(self) -> None:
        """End every open stream in good order: the process drains. Sessions stay, and agents come back elsewhere."""
        for subscription in list(self._subscriptions):
            params = {"resultType": "complete", "_meta": subscription.meta()}
            subscription.outlet.say(jsonrpc.result(subscription.id, jsonrpc.encode_fields(params)))
            subscription.outlet.finish()
        for session in list(self._open.values()):
            session.hang_up()
        for relayed in list(self._relayed.values()):
            relayed.finish()

    async def settled(self) -> None:
        """Return when no call is answered here that its agent may come back for and no other worker could answer."""
        while self.shared and any(  # noqa: ASYNC110 - looks a few times, when a worker leaves
            track.answer is not None and not ((left := track.left()).place or left.params)
            for session in self._open.values()
            for track in session.tracks.values()
        ):
            await asyncio.sleep(_LOOK)

    def close(self) -> None:
        """End everything here. Sessions that other workers can find stay theirs."""
        self.finish_streams()
        for session in list(self._open.values()):
            if self.shared and self._forget(session):
                for track in session.tracks.values():
                    if track.answer is not None:
                        self.note_call(session, track)
                        track.let_go()
                session.release()
            else:
                self.end(session)

    async def closed(self) -> None:
        """`close`, and wait until the store has what it is to have."""
        self.close()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5.0)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        for lent in list(self._lent.values()):  # who reads it there comes back for it, and finds its record
            lent.end()
        if self._workers is not None:
            await self._workers.close()


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Failure as failure:
        log.warning("the record of an MCP session: %s", failure.detail or failure.message)


def _touched(record: Record) -> None:
    record.touched = int(time.time())


def _idlest(among: dict[str, Session], otherwise: Failure) -> Session:
    idle = [session for session in among.values() if not session.busy]
    if not idle:
        raise otherwise
    return min(idle, key=lambda session: session.deadline)


def _concerning(servers: frozenset[str], changes: set[tuple[str, str]]) -> list[str]:
    return sorted({method for server, method in changes if not server or server in servers})
