"""The sessions with one MCP server: who has which, how they are opened, and how they end.

Rule: a session is opened once however many wait for it. One that was lost leaves behind what its successor must be told
(`lost`). Nothing grows with agents that have gone.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import blake2b
from time import monotonic
from typing import Any

import msgspec

from tollhouse.backends.mcp.agent import SHARED, Agent, Key
from tollhouse.backends.mcp.handshake import OPEN_TIMEOUT, Features
from tollhouse.backends.mcp.heal import EXPIRED, NODE_LOST, RESTART, UNAVAILABLE, Gate, said
from tollhouse.backends.mcp.lost import Lost, Memory, replay
from tollhouse.backends.mcp.messages import Rescue
from tollhouse.backends.mcp.place import Place
from tollhouse.backends.mcp.records import Record, Records, Turn
from tollhouse.backends.mcp.session import Elsewhere, Session
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
_SOON = 2.0  # seconds, at most, after which a process that lives only for moments is started again
_SAVE = 3600.0  # seconds after which a record is written again, for it not to be forgotten
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
        self._opening: dict[Key, asyncio.Task[Session]] = {}
        self._lost = Lost(self, limit, self._reopen)
        self._claimed: dict[Key, ToolCall] = {}
        self._was_up = False
        self._stateless = False  # it is of the old era, and gives no session ids
        self._channel = False  # its sessions carry all calls on one channel
        self._closed = False
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
    async def session(self, key: Key, deadline: float, agent: Agent | None = None) -> Session:
        """The session of `key`, opened once however many wait for it. agent: whose own it is. Raises Failure; nothing
        was carried out then."""
        session = self._sessions.get(key)
        if session is not None and not session.lost:
            return session
        task = self._opening.get(key)
        if task is None:
            if self._closed:
                raise self.removed()
            self.gate.check()
            self._make_room()
            task = self._opening[key] = self.spawn(self._open(key, agent))
        opened: Session = await self.patiently(task, deadline, "the server did not open a session in time")
        return opened

    async def _open(self, key: Key, agent: Agent | None) -> Session:
        memory = self._lost.of(key)
        session = self._connect(self, key)
        entered = False
        success: bool | None = None
        failed: Failure | None = None
        turn: Turn | None = None
        place = self._place_of(key)
        try:
            if memory is not None and memory.short and session.channel:
                await asyncio.sleep(min(_SOON, 0.05 * 2.0 ** min(memory.short, 10)))
            if place and self._records is not None:
                turn = await self._records.turn(place, memory.generation if memory is not None else 0)
                session.place = place
            if turn is None or not turn.taken or not self._take_up(session, turn, memory, agent):
                await self.gate.enter()
                entered = True
                if memory is None and turn is not None:
                    memory = _memory_of(turn.record, agent)
                async with asyncio.timeout(OPEN_TIMEOUT):
                    try:
                        await session.open()
                    except Elsewhere:
                        session.lost = True
                        self.later(session.close(), always=True)
                        session = self._connect(self, key)
                        session.place = place
                        await session.open()
                    if memory is not None:
                        await self._replay(session, key, memory)
                if turn is not None and self._records is not None:
                    before = turn.record.generation if turn.record is not None else 0
                    session.generation = max(before, memory.generation if memory is not None else 0) + 1
                    if not session.new:
                        await self._records.keep(session.record(self._records.node))
            if session.lost:
                raise self.removed()
            success = True
        except BaseException as error:
            session.detach()
            session.lost = True
            self.later(session.close(), always=True)
            failed = self._opening_failed(error)
            if failed is None:
                raise
            success = False
        finally:
            del self._opening[key]
            if entered:
                self.gate.leave(success)
            if turn is not None and turn.locked and self._records is not None:
                self.later(self._records.over(place, turn))
        if failed is not None:
            log.warning("mcp server %s: %s", self.name, said(failed))
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
            self.later(self._records.change(session.place, partial(session.record, self._records.node)))

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
        self._channel = session.channel
        if session.features is not None:
            self.features = session.features
        if self.new:
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
        if session.features is not None:
            self._on_sessions(session.features.revision, 1)
        if memory is not None:
            self._lost.told(key, memory)
            self._on_recovery(memory.cause)
            self.reopened(session)
        return session

    async def _replay(self, session: Session, key: Key, memory: Memory) -> None:
        session.short = memory.short
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

    def _make_room(self) -> None:
        if len(self._sessions) + len(self._superseded) + len(self._opening) < self._limit:
            return
        idle = [session for session in self._sessions.values() if not session.active]
        if not idle:
            raise Failure(
                503,
                Reason.UPSTREAM_FAILURE,
                f"{self.name}: all {self._limit} sessions with the server are in use",
                code=UNAVAILABLE,
                retry=True,
                reached=False,
            )
        self.discard(min(idle, key=lambda session: (bool(session.uris), session.touched)))

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
            self.later(session.close(), always=True)

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
        await self.finish()


def _memory_of(record: Record | None, agent: Agent | None) -> Memory | None:
    """Of a session that another worker had, and that cannot be gone on with."""
    if record is None:
        return None
    memory = Memory()
    memory.cause = NODE_LOST
    memory.generation = record.generation
    memory.level = record.level
    memory.event = record.event
    memory.used = True
    memory.agents = {agent} if agent is not None else set()
    memory.uris = {uri: {agent} for uri in record.uris}
    return memory
