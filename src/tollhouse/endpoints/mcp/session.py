"""All sessions of old-era agents that this worker knows: what outlives a request.

Rule: a session belongs to one principal at one endpoint; to anybody else, and once it has ended, it was never there
(404). It survives changes of configuration that its principal survives, and holds nothing of one. Any worker with the
key finds it again by its id (`ids`) and its record (`shared`); so one that nobody uses may be let go of, and a worker
may be lost (`elsewhere`). What an answer says that was done is in the record before the agent has the answer.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from tollhouse.core.call import Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Holders
from tollhouse.core.http import Response
from tollhouse.endpoints.mcp.agent import Session
from tollhouse.endpoints.mcp.changes import Changes
from tollhouse.endpoints.mcp.elsewhere import Elsewhere, GoOn
from tollhouse.endpoints.mcp.ids import MAX_AGE, Opened, SessionIds, key_of
from tollhouse.endpoints.mcp.outside import Guards
from tollhouse.endpoints.mcp.relay import Relayed
from tollhouse.endpoints.mcp.replay import Rings, Track, parse_event_id
from tollhouse.endpoints.mcp.shared import Record, Records
from tollhouse.endpoints.mcp.stream import Outlet
from tollhouse.endpoints.mcp.subscriptions import Subscriptions
from tollhouse.store.base import State
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.sealed import Seals

__all__ = ["Session", "Sessions"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_ENDED = 32_768  # sessions that are remembered to have ended, where no store does
_AWAY = 300.0  # seconds that what an agent has missed is kept for it
_CALL = 3600.0  # seconds that a call which streams is known to other workers
_WRITTEN = 10.0  # seconds after which a session must have a record, where those are shared
_TASKS = 10_000
_LOOK = 0.1
_SAVED = 1.0  # seconds that an answer waits for the record of what it says


class Sessions:
    """All sessions of this worker; kept while configurations come and go.

    timeout: seconds of idleness. limit: sessions in memory; above it idle ones are let go of, to be found again by
    their records. limit_each: sessions of one principal here; above it idle ones end. Agents that have not said who
    they are count as many. count: called with (revision, +1 or -1). state: where records are, and other workers;
    without one a session that is let go of has lost its subscriptions. seals: for ids. holders: where it is written
    down whose they are. subscriptions: the streams of stateless agents. changes: of lists.
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
        holders: Holders | None = None,
    ) -> None:
        self.clock = clock
        self.holders = holders if holders is not None else Holders(clock)
        self.subscriptions = Subscriptions(clock, self.holders, limit=limit, limit_each=limit_each)
        self.timeout = timeout
        self.limit_each = limit_each
        self.shared = state is not None and state.shared
        self.outside = Guards()
        self.rings = Rings(state.node if state is not None else "0")
        self._limit = limit
        self._count = count
        self._ids = SessionIds(seals or Seals(), max_age=max_age)
        self._records = Records(state.values) if state is not None else None
        self._elsewhere: Elsewhere | None = None
        if state is not None and self._records is not None and state.shared:
            self._elsewhere = Elsewhere(self, state, self._records)
        self._open: dict[str, Session] = {}
        self._of: dict[str, dict[str, Session]] = {}
        self._keys: dict[str, Session] = {}  # by their key, by which others know them
        self._ended: dict[str, None] = {}
        self._leaving: dict[str, Record] = {}  # let go of, and not yet written
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()  # cancelled, and not yet over
        self.changes = Changes(clock, self._open.values, self.subscriptions)

    def __len__(self) -> int:
        return len(self._open)

    # ---- sessions
    def open(
        self,
        *,
        principal: str,
        endpoint: str,
        servers: frozenset[str],
        revision: str,
        profile: int,
        who: Principal | None = None,
    ) -> Session:
        """A new session. who: its principal as known now. Raises Failure 503 or 429 when there are too many and none is
        idle."""
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
        self._add(session, who)
        return session

    def _make_room(self, principal: str) -> None:
        own = self._of.get(principal, {})
        if principal and len(own) >= self.limit_each:
            why = f"this caller has {self.limit_each} sessions open: end some with DELETE"
            self.end(_idlest(own, Failure(429, Reason.RATE_LIMIT, why)))
        if len(self._open) >= self._limit:
            self._let_go(_idlest(self._open, Failure(503, Reason.MCP, "too many sessions are open")))

    def _add(self, session: Session, who: Principal | None) -> None:
        self._open[session.id] = session
        session.held = self.holders.hold(who, session, expires=False)
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

    async def load(self, id: str, principal: str, endpoint: str, who: Principal | None = None) -> Session | None:
        """The session that `find` has not found: opened at another worker, or let go of here. None when there is none
        such, or not for this principal at this endpoint. who: that principal as known now. Raises Failure 503 while the
        store cannot tell."""
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
            if not record.ended and _idle(record) > self.timeout:
                await self._end_record(key, self._ids.max_age - opened.age)
                return None
            if record.ended:
                return None
        return self._found(id, principal, endpoint, opened, record, who)

    def _found(
        self, id: str, principal: str, endpoint: str, opened: Opened, record: Record | None, who: Principal | None
    ) -> Session:
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
        self._add(session, who)
        return session

    def end(self, session: Session) -> None:
        """It is no more, here and anywhere."""
        if not self._forget(session):
            return
        left = max(1.0, session.until - self.clock.now)
        if self.shared:
            self.later(self._end_record(session.key, left))
        else:
            self._ended[session.id] = None
            if len(self._ended) > _ENDED:
                del self._ended[next(iter(self._ended))]
        session.ended = True
        session.release()

    def ended_elsewhere(self, session: Session) -> None:
        if self._forget(session):
            session.ended = True
            session.release()

    def lapsed(self, session: Session, failure: Failure) -> None:
        """Its principal is no longer good: who waits in it is told, and it is no more."""
        for call in list(session.calls.values()):
            call.fail(failure)
        self.end(session)

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
        if self._elsewhere is not None:
            self._elsewhere.ended(key)

    def expired(self, session: Session) -> None:
        """Nobody has used it here for the timeout, or it is too old."""
        if not self.shared or self.clock.now >= session.until:
            self.end(session)
        else:
            session.deadline = self.clock.now + 60.0  # in case that the store cannot tell
            self.later(self._lapse(session, session.deadline))

    async def _lapse(self, session: Session, deadline: float) -> None:
        """It is idle here: it has ended if it is idle everywhere."""
        assert self._records is not None
        record = await self._records.read(session.key)
        if session.busy or not session.open or session.deadline != deadline:
            return
        if record is not None and not record.ended and _idle(record) < self.timeout:
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
            record.touched -= max(0.0, self.timeout - ttl)
            self.later(self._write(session.key, record, ttl))
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
        held, session.held = session.held, None
        if held is not None:
            held.release()
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
            self.later(self._save(session))

    async def saved(self, session: Session) -> None:
        """Return when its record says all that the agent is about to be told was done, so that no worker's loss undoes
        it; or after a second, for a store that is away must stop nobody."""
        if not self.shared:
            return
        waited = self.clock.now + _SAVED
        while session.saving and session.open and self.clock.now < waited:
            written = session.written = session.written or asyncio.get_running_loop().create_future()
            await asyncio.wait((written,), timeout=_SAVED)

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
                    self.ended_elsewhere(session)
                    return
                if changes and self._elsewhere is not None:
                    self._elsewhere.changed(session.key)
                if not session.changes:
                    return
        finally:
            session.saving = False
            written, session.written = session.written, None
            if written is not None and not written.done():
                written.set_result(None)

    def known(self, key: str) -> Session | None:
        """The session in memory that others know by `key`."""
        return self._keys.get(key)

    def reread(self, session: Session | None) -> None:
        """Another worker has changed its record; None: words of other workers may have been lost."""
        if session is not None:
            self.later(self._reread(session))
            return
        for each in list(self._keys.values()):
            each.lost_something()
            self.later(self._reread(each))

    async def _reread(self, session: Session) -> None:
        assert self._records is not None
        record = await self._records.read(session.key)
        if record is None or not session.open:
            return
        if record.ended:
            self.ended_elsewhere(session)
        elif not session.changes and not session.saving:
            session.take(record, self.rings.node)

    # ---- requests of agents that concern another worker
    async def answered(self, session: Session, message: jsonrpc.Message) -> bool:
        """The agent's response to a server's request; False when nobody waits for it."""
        if session.answered(message):
            return True
        return self._elsewhere is not None and await self._elsewhere.answered(session, message)

    def cancelled(self, session: Session, request: bytes) -> None:
        """The agent does not want the answer to that request (a raw id) any more."""
        if not session.cancel(request) and self._elsewhere is not None:
            self._elsewhere.cancel(session, request)

    async def listen(
        self, session: Session, last: str | None, go_on: GoOn | None = None, principal: Principal | None = None
    ) -> Response:
        """A GET of a session: a stream of what belongs to no request, or what comes after event `last` on its stream;
        it ends with the credential of `principal`. go_on: with a call whose worker is gone. Raises Failure."""
        response = await self._listen(session, last, go_on)
        source = response.source
        if isinstance(source, Outlet | Relayed):
            held = self.holders.hold(principal, source)
            response.ends = [*(response.ends or ()), lambda _: held.release()]
        return response

    async def _listen(self, session: Session, last: str | None, go_on: GoOn | None) -> Response:
        found = parse_event_id(last) if last is not None else None
        if found is not None:
            node, stream, after = found
            response = None
            if node == self.rings.node:
                response = session.read_again(stream, after)
            elif self._elsewhere is not None:
                response = await self._elsewhere.read(session, node, stream, after, go_on)
            if response is not None:
                return response
        if last is not None:
            session.lost_something()
        return session.listen()

    def forward(self, session: Session, message: bytes) -> bool:
        return self._elsewhere is not None and self._elsewhere.forward(session, message)

    def ending(self, task: "asyncio.Task[None]") -> None:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def note_call(self, session: Session, track: Track) -> None:
        if self._records is not None:
            stream = f"{self.rings.node}.{track.stream}"
            self.later(self._records.note_call(session.key, stream, track.left(), _CALL))

    def park(self, session: Session, track: Track, event: bytes) -> None:
        if self._records is not None:
            stream = f"{self.rings.node}.{track.stream}"
            self.later(self._records.park(session.key, stream, event, _AWAY))

    def changed(self, server: str, method: str) -> None:
        """A list of `server` is another: tell everybody who sees it, soon and once."""
        self.changes.changed(server, method)

    def all_changed(self) -> None:
        """Another configuration serves: every list may be another to anybody."""
        self.changes.all_changed()

    # ---- the end
    def later(self, work: Coroutine[Any, Any, None]) -> bool:
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
        self.subscriptions.finish()
        for session in list(self._open.values()):
            session.hang_up()
        if self._elsewhere is not None:
            self._elsewhere.finish_streams()

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
        if self._ending:
            await asyncio.wait(list(self._ending), timeout=5.0)
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5.0)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        if self._elsewhere is not None:
            await self._elsewhere.closed()


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Failure as failure:
        log.warning("the record of an MCP session: %s", failure.detail or failure.message)


def _idle(record: Record) -> float:
    """Seconds since a session was used anywhere, about."""
    return time.time() - record.touched


def _touched(record: Record) -> None:
    record.touched = time.time()


def _idlest(among: dict[str, Session], otherwise: Failure) -> Session:
    idle = [session for session in among.values() if not session.busy]
    if not idle:
        raise otherwise
    return min(idle, key=lambda session: session.deadline)
