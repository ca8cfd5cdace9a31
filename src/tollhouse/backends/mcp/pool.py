"""The sessions with one MCP server: who has which, how they are opened, and how they end.

Rule: a session is opened once however many wait for it. One that was lost leaves behind what its successor must be told
(`lost`). Nothing grows with agents that have gone.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import blake2b
from heapq import nsmallest
from time import monotonic
from typing import Any

import msgspec

from tollhouse.backends.mcp.agent import SHARED, Agent, Key
from tollhouse.backends.mcp.handshake import OPEN_TIMEOUT, Features
from tollhouse.backends.mcp.heal import EXPIRED, RESTART, Gate, is_callers, level_of, said
from tollhouse.backends.mcp.lost import Lost, Memory, recalled, replay
from tollhouse.backends.mcp.messages import Rescue
from tollhouse.backends.mcp.place import Place
from tollhouse.backends.mcp.records import Records, Turn
from tollhouse.backends.mcp.room import Room
from tollhouse.backends.mcp.session import Bears, Elsewhere, Session, bearer
from tollhouse.backends.mcp.spec import McpServerSpec
from tollhouse.backends.mcp.work import Working
from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.catalogue import Kind, Listing

__all__ = ["Connect", "Pool"]

log = logging.getLogger("tollhouse.backends.mcp")

_RESTARTED = jsonrpc.notification(
    "notifications/message",
    b'{"level":"warning","logger":"gateway","data":"the server was restarted, and has lost what it kept for you"}',
)
_FRESH = 1.0  # seconds in which those for whom a session was opened begin to use it
_SAVE = 3600.0  # seconds after which a record is written again, for it not to be forgotten
_WRITTEN = 1.0  # seconds: a store that is away must stop nobody
_LOOK = 30.0  # seconds between two looks at idle sessions

Connect = Callable[["Pool", Key], Session]


class Pool(Working):
    """limit: sessions open at once. on_sessions: told (revision, +1 or -1). on_recovery: told why a session was lost
    that was replaced. records: what other workers know of sessions, where there are others. mark: of the server's
    configuration."""

    def __init__(
        self,
        name: str,
        spec: McpServerSpec,
        connect: Connect,
        clock: Clock,
        *,
        client: bytes,
        limit: int,
        on_sessions: Callable[[str, int], None],
        on_recovery: Callable[[str], None],
        records: Records | None = None,
        mark: str = "",
    ) -> None:
        super().__init__(name)
        self.mark = mark
        self._records = records
        self.spec = spec
        self.clock = clock
        self.client = client
        self.new: bool | None = None
        self.bears: Bears | None = None
        self.features: Features | None = None
        self.retired = False
        self.gate = Gate(name)
        self.deadline = clock.now + _LOOK
        self._connect = connect
        self._limit = limit
        self._on_sessions = on_sessions
        self._on_recovery = on_recovery
        self._sessions: dict[Key, Session] = {}
        self._superseded: set[Session] = set()  # closed once their calls have ended
        self._closing = 0  # children that have not ended yet
        self._opening: dict[Key, asyncio.Task[Session]] = {}
        self._lost = Lost(self, limit, self._reopen)
        self._claimed: dict[Key, ToolCall] = {}
        self._was_up = False
        self._stateless = False  # it is of the old era, and gives no session ids
        self._channel = False  # its sessions carry all calls on one channel
        self._closed = False
        self._room = Room(name, limit, self._make_room)
        clock.watch(self)

    @property
    def sessions(self) -> Iterable[Session]:
        return (*self._sessions.values(), *self._superseded)

    @property
    def streams(self) -> int:
        return len(self._sessions)

    @property
    def idle(self) -> bool:
        """Nothing is open and nothing is under way."""
        return not self._sessions and not self._superseded and not self._tasks

    # ---- opening
    async def session(
        self, key: Key, deadline: float, agent: Agent | None = None, principal: Principal | None = None
    ) -> Session:
        """The session of `key`, opened once however many wait for it. agent: whose own it is. principal: who asks.
        Raises Failure; nothing was carried out then."""
        promised = False
        try:
            while True:
                session = self._sessions.get(key)
                if session is not None and not session.lost:
                    return session
                task = self._opening.get(key)
                if task is not None:
                    break
                if self._closed:
                    raise self.removed()
                self.gate.check()
                if promised or (not self._room and self._make_room()):
                    task = self._opening[key] = self.spawn(self._open(key, agent, principal))
                    break
                await self._room.wait(deadline)
                promised = True
        finally:
            if promised:
                self._room.taken()
        opened: Session = await self.patiently(task, deadline, "the server did not open a session in time")
        return opened

    async def _open(self, key: Key, agent: Agent | None, principal: Principal | None) -> Session:
        memory = self._lost.of(key)
        if principal is None and memory is not None:
            principal = memory.principal
        session = self._connect(self, key)
        session.principal = principal
        entered: float | None = None
        success: bool | None = None
        callers = False
        failed: Failure | None = None
        turn: Turn | None = None
        place = self._place_of(key)
        try:
            if memory is not None and memory.restarts is not None:
                await asyncio.sleep(memory.restarts.wait)
            if place and self._records is not None:
                turn = await self._records.turn(place, memory.generation if memory is not None else 0)
                session.place = place
            if turn is None or not turn.taken or not self._take_up(session, turn, memory, agent):
                entered = await self.gate.enter()
                if memory is None and turn is not None:
                    memory = recalled(turn.record, agent)
                async with asyncio.timeout(OPEN_TIMEOUT):
                    try:
                        await session.open()
                    except Elsewhere:
                        session.lost = True
                        self.later(session.close(), always=True)
                        session = self._connect(self, key)
                        session.place, session.principal = place, principal
                        await session.open()
                    if memory is not None:
                        await self._replay(session, key, memory)
                if turn is not None and self._records is not None:
                    before = turn.record.generation if turn.record is not None else 0
                    session.generation = max(before, memory.generation if memory is not None else 0) + 1
                    if not session.new:
                        await self._records.keep(session.record(self._records.node))
            if session.lost:
                raise self.removed() if self._closed else self._gone_again()
            success = True
        except BaseException as error:
            session.detach()
            session.lost = True
            self._end(session)
            failed = self._opening_failed(error)
            if failed is None:
                raise
            callers = self.bears is not None and is_callers(failed)
            success = None if callers else False
        finally:
            del self._opening[key]
            if not success:
                self.let_in()
            if entered is not None:
                self.gate.leave(success, entered)
            if turn is not None and turn.locked and self._records is not None:
                self.later(self._records.over(place, turn))
        if failed is not None:
            if callers or self.news(failed):
                log.log(level_of(failed) if callers else logging.WARNING, "mcp server %s: %s", self.name, said(failed))
            raise failed
        return self._opened(session, key, memory)

    def _place_of(self, key: Key) -> str:
        """The name of the record of a session that other workers may go on with, "" for none."""
        if self._records is None or key[0] != "agent" or self.new:
            return ""
        mark = blake2b(f"{self.mark}\0{key[1]}".encode(), digest_size=16).hexdigest()
        return f"mcp:u:{self.name}:{mark}"

    def _take_up(self, session: Session, turn: Turn, memory: Memory | None, agent: Agent | None) -> bool:
        """Go on with what another worker has opened. False: it cannot be."""
        record = turn.record
        if record is None or not session.adopt(record):
            return False
        agents = set(memory.agents) if memory is not None else set()
        if agent is not None:
            agents.add(agent)
        for one in agents:
            session.attach(one)
        session.uris = {uri: set(agents) for uri in record.uris}
        if self.new is None:
            self.new = False
        return True

    def told(self, session: Session) -> None:
        """A session was told something: other workers must know."""
        session.saved = self.clock.now
        if session.place and self._records is not None and self._sessions.get(session.key) is session:
            written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if self.later(self._write(session, self._records, written)):
                session.written = written

    async def _write(self, session: Session, records: Records, written: "asyncio.Future[None]") -> None:
        try:
            await records.change(session.place, partial(session.record, records.node))
        finally:
            written.set_result(None)

    async def written(self, session: Session) -> None:
        """Return when its record says what it has been told, so that no worker's loss undoes it; or after a second."""
        written, session.written = session.written, None
        if written is not None and not written.done():
            await asyncio.wait((written,), timeout=_WRITTEN)

    def _gone_again(self) -> Failure:
        why = f"{self.name}: the server was lost as soon as it was there"
        return Failure(502, Reason.UPSTREAM_FAILURE, why, retry=True, reached=False)

    def _opening_failed(self, error: BaseException) -> Failure | None:
        """What those who wait are told; None for what is no failure of the server."""
        if isinstance(error, TimeoutError):
            return Failure(
                504,
                Reason.TIMEOUT,
                f"{self.name}: the server did not shake hands in {OPEN_TIMEOUT:.0f} s",
                retry=True,
                reached=False,
            )
        if isinstance(error, jsonrpc.Malformed):
            return Failure(502, Reason.UPSTREAM_FAILURE, f"{self.name}: {error.message}")
        if not isinstance(error, Failure):
            return None
        failure = error.copy()
        failure.sent = False  # of the call, nothing was
        return failure

    def _opened(self, session: Session, key: Key, memory: Memory | None) -> Session:
        self._was_up = True
        self.reached()
        self._channel = session.channel
        if session.features is not None:
            self.features = session.features
        if self.bears is not None:
            if self.new:
                session.key = ("principal", bearer(session.principal), 0, 0)
        elif self.new:
            session.key = SHARED
        elif not session.issued and not session.channel and key[0] != "catalogue":
            self._stateless = True
            session.key = ("shared", "", key[2], 0)
        if session.key != key:
            other = self._sessions.get(session.key)
            if other is not None and not other.lost:  # two found out at once
                self.discard(session)
                return other
        self._sessions[session.key] = session
        session.touched = self.clock.now
        session.fresh = self.clock.now + _FRESH
        if session.features is not None:
            self._on_sessions(session.features.revision, 1)
        if memory is not None:
            self._lost.told(key, memory)
            self._on_recovery(memory.cause)
            self.reopened(session)
        return session

    async def _replay(self, session: Session, key: Key, memory: Memory) -> None:
        if memory.restarts is not None:
            session.restarts = memory.restarts
        session.reports = memory.used and self.spec.after_loss == "report" and key[0] in ("agent", "principal")
        if session.new:
            return
        refused = await replay(session, memory, self.name, self.spec.list_timeout)
        if refused:
            log.warning("mcp server %s: does not let us subscribe again to %d resources", self.name, len(refused))
        if memory.used and memory.level:
            message = jsonrpc.decode(_RESTARTED)
            for agent in tuple(memory.agents):
                if agent.level:
                    agent.deliver(self.name, _RESTARTED, message, session.tell)

    def elicited(self, params: msgspec.Raw) -> None:
        """An elicitation out of band is complete."""

    def reopened(self, session: Session) -> None:
        """A session was opened that is not the first one: the server may be another than it was."""

    # ---- room
    @property
    def crowded(self) -> bool:
        """Somebody waits for a session, because all that there may be are in use."""
        return len(self._room) > 0

    def let_in(self) -> None:
        """There may be room for one more session."""
        self._room.let_in()

    def _make_room(self) -> bool:
        """Whether there is room for one more: the sessions that were idle longest give way to those who wait. A child
        takes its place until it has ended."""
        if self._taken + self._closing < self._limit:
            return True
        too_many = self._taken + max(1, len(self._room)) - self._limit
        if too_many > 0:
            now = self.clock.now
            idle = [session for session in self._sessions.values() if not session.active and session.fresh <= now]
            for session in nsmallest(
                too_many, idle, key=lambda session: (bool(session.uris) or session.tasks, session.touched)
            ):
                self.discard(session)
        return self._taken + self._closing < self._limit

    @property
    def _taken(self) -> int:
        return len(self._sessions) + len(self._superseded) + len(self._opening) + self._room.promised

    def _end(self, session: Session) -> None:
        self._closing += session.channel
        self.later(self._close(session), always=True)

    async def _close(self, session: Session) -> None:
        try:
            await session.close()
        finally:
            self._closing -= session.channel
            if self._room:
                self.let_in()

    # ---- one call at a time
    def claim(self, key: Key, call: ToolCall) -> Key:
        """The first session of `key` that carries nothing, for `call` alone until `release`."""
        while key in self._claimed:
            key = (key[0], key[1], key[2], key[3] + 1)
        self._claimed[key] = call
        return key

    def release(self, key: Key, call: ToolCall) -> None:
        if self._claimed.get(key) is call:
            del self._claimed[key]

    # ---- what `mcp.Upstream` adds
    def changed(self, notification: str) -> None:
        raise NotImplementedError

    def known(
        self, kind: Kind, agent: Agent | None, profile: int | None = None, principal: Principal | None = None
    ) -> Listing | None:
        raise NotImplementedError

    async def listing(
        self, kind: Kind, agent: Agent | None, principal: Principal | None, profile: int | None = None
    ) -> Listing:
        raise NotImplementedError

    def rescue(self, call: ToolCall, rescue: Rescue) -> "asyncio.Task[Any]":
        raise NotImplementedError

    # ---- losing
    def discard(self, session: Session, cause: str = "") -> None:
        """Close `session`, now; calls on it fail. cause: why it was lost, so that its successor is told what it was."""
        agents = session.detach()
        key = session.key
        held = self._sessions.get(key) is session
        if held or session in self._superseded:
            self._superseded.discard(session)
            if session.features is not None:
                self._on_sessions(session.features.revision, -1)
        if held:
            del self._sessions[key]
            if cause:
                self._lost.keep(key, session.memory(agents, cause))
        session.lost = True
        if not session.closed:
            session.closed = True
            self._end(session)
        if self._room:
            self.let_in()

    def left(self, session: Session, agent: Agent) -> None:
        """`agent` has ended here, whose own the session was."""
        if session.place and self._records is not None and not self._closed:
            if agent.ended:
                self.later(self._records.forget(session.place))
            else:
                session.kept = True

    async def _reopen(self, key: Key) -> None:
        await self.session(key, monotonic() + OPEN_TIMEOUT)

    def isolate(self, session: Session, why: str) -> None:
        """Close `session`, and let nobody open another for a while."""
        if session.lost:
            return
        seconds = self.gate.shut(why)
        log.error("mcp server %s: %s; it is left alone for %.0f s", self.name, why, seconds)
        self.discard(session, RESTART if session.channel else EXPIRED)

    # ---- ending
    def expire(self) -> None:
        """Timed: look for sessions that nobody uses."""
        now = self.clock.now
        self.deadline = now + _LOOK
        timeout = self.spec.idle_timeout
        for session in list(self._sessions.values()):
            if not session.active and not session.uris and now - session.touched > timeout:
                session.kept = session.kept or bool(session.place)  # another worker may use it
                self.discard(session)
            elif session.place and now - session.saved > _SAVE:
                self.told(session)
        self._lost.expire(now - timeout)

    def replace_older(self, age: float) -> None:
        """Sessions older than `age` seconds take no new calls, and end with those they have."""
        for session in list(self._sessions.values()):
            if self.clock.now - session.born > age:
                self.supersede(session)

    def supersede(self, session: Session) -> None:
        """`session` takes no new calls; the next one opens another, which is told what it was told."""
        if not session.active:
            self.discard(session, RESTART)
        elif self._sessions.get(session.key) is session:
            del self._sessions[session.key]
            self._superseded.add(session)
            session.leaving = True
            self._lost.keep(session.key, session.memory(session.detach(), RESTART))

    def take_up(self, key: Key, place: Place, call: ToolCall, deadline: float) -> Reply | None:
        """An answer that another worker has begun to read, over a session that ends with it. None: it cannot be."""
        if self._closed:
            return None
        session = self._connect(self, key)
        session.principal = call.principal
        reply = session.take_up(place, call, deadline)
        if reply is None:
            return None
        session.leaving = True
        if not session.active:  # there was no room to read the answer in
            self.discard(session)
            return None
        self._superseded.add(session)
        if session.features is not None:
            self._on_sessions(session.features.revision, 1)
        return reply

    def retire(self) -> None:
        """No new configuration has this server: close each session once its calls have ended."""
        self.retired = True
        self.clock.drop(self)
        self._lost.close()
        for session in list(self._sessions.values()):
            if not session.active:
                self.discard(session)

    async def close(self) -> None:
        """Close everything now, and wait until it is closed."""
        self._closed = True
        for session in self.sessions:
            session.kept = session.kept or bool(session.place)  # another worker may go on with it
        self.retire()
        for session in list(self.sessions):
            self.discard(session)
        for task in self._opening.values():
            task.cancel()
        self._room.close()
        await self.finish()
