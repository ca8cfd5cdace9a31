"""One MCP server as the gateway sees it: calls go in, its catalogue comes out, and that it was lost is seen by nobody
who need not know.

Rule: a session is shared only between calls that may share it. An agent of the old era that can be asked things, that
has told nobody who it is, or that reaches the server over HTTP, has a session of its own; other agents share one per
principal, and stateless ones one per principal and capability profile. How sessions live is in `pool`, what is kept
of lost ones in `lost`, when a call is made again in `heal`, and what the server lists in `catalogue`; what
differs between transports is in `http_session`, `sse` and `stdio`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from tollhouse.backends.mcp.agent import SHARED, Agent, Key
from tollhouse.backends.mcp.catalogue import Catalogue
from tollhouse.backends.mcp.heal import (
    CALL_LOST,
    DELAYS,
    EXPIRED,
    RESENDS,
    UNREACHED,
    may_resend,
    named,
)
from tollhouse.backends.mcp.listen import Listening
from tollhouse.backends.mcp.lost import Memory
from tollhouse.backends.mcp.messages import ANSWER_HEADERS, Rescue
from tollhouse.backends.mcp.place import read_place, unplaced
from tollhouse.backends.mcp.pool import Connect, Pool
from tollhouse.backends.mcp.records import Records
from tollhouse.backends.mcp.session import Expired, Session, bearer
from tollhouse.backends.mcp.spec import McpServerSpec
from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.reply import Reply
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.capabilities import ASKABLE
from tollhouse.wire.mcp.catalogue import KINDS, Kind, Listing
from tollhouse.wire.mcp.tasks import OLD_METHODS

__all__ = ["Connect", "Upstream"]

log = logging.getLogger("tollhouse.backends.mcp")

_NEVER_REACHED, _NEVER_UP = 0.25, 2  # seconds, and times, that a server that was never up is tried again
_FORGOTTEN = 3  # sessions that the server forgets before a call is over
_MAX_ELICITED = 1024
_TOOLS = KINDS["tools/list"]
_SUBSCRIBING = frozenset(("resources/subscribe", "resources/unsubscribe"))


class Upstream(Pool):
    """A configured server. `handle` is the end of its call chain; `listing` reads its catalogue.

    again: what a call that was lost under its stream is put to, which is to end here; None for `handle`.
    limit: sessions open at once. own_sessions: every old-era agent gets one (HTTP), not only those that can be asked.
    on_change: called with (server, notification) when one of its lists is another.
    """

    def __init__(
        self,
        name: str,
        spec: McpServerSpec,
        connect: Connect,
        clock: Clock,
        *,
        client: bytes,
        limit: int,
        own_sessions: bool,
        on_change: Callable[[str, str], None],
        on_sessions: Callable[[str, int], None] = lambda revision, change: None,
        on_recovery: Callable[[str], None] = lambda cause: None,
        records: Records | None = None,
        mark: str = "",
    ) -> None:
        super().__init__(
            name, spec, connect, clock,
            client=client, limit=limit, on_sessions=on_sessions, on_recovery=on_recovery, records=records, mark=mark,
        )  # fmt: skip
        self.catalogue = Catalogue(self, http=own_sessions, on_change=on_change)
        self.again: Handler[ToolCall, Reply] | None = None
        self._own = spec.session == "exclusive" or (own_sessions and spec.session == "auto")
        self._elicited: dict[str, asyncio.Future[None]] = {}
        self._listening = Listening(self, partial(self.session, SHARED))

    # ---- calls
    async def handle(self, call: ToolCall, lost: Failure | None = None) -> Reply:
        """The terminal Handler: ask the server, as often as it may have been reached or as long as it could not be.
        lost: with what the call was lost that is made again. Raises Failure."""
        context = call.context
        now = monotonic()
        if not context.upstream_began:
            context.upstream_began = now
        deadline = now + self.spec.timeout
        if context.deadline < deadline:
            deadline = context.deadline
        agent = call.session
        failure = lost
        attempt = resends = forgotten = 0
        unreached = 0.0  # since when
        try:
            resume = call.resume
            if resume is not None:  # it is under way
                resumed: Reply = await resume(call)
                return resumed
            while True:
                if failure is not None:
                    attempt += 1
                    reached = failure.sent or failure.reached
                    resends += reached
                    unreached = 0.0 if reached else unreached or monotonic()
                    wait = DELAYS.delay(attempt, failure.retry_after)
                    due = monotonic() + wait
                    patience = UNREACHED if self._was_up else _NEVER_REACHED
                    most = RESENDS if self._was_up else _NEVER_UP
                    tired = resends > most if reached else due > unreached + patience
                    if tired or due >= deadline or wait > UNREACHED:
                        raise named(self.name, failure.copy())
                    await asyncio.sleep(wait)
                elif forgotten > _FORGOTTEN:
                    why = f"{self.name}: the server forgets every session that it opens"
                    raise Failure(502, Reason.UPSTREAM_FAILURE, why)
                context.attempts += 1
                key = self.key_of(agent, call.principal, call.profile)
                apart = key[2] & ASKABLE != 0 and key[0] == "principal"
                if apart and call.method in OLD_METHODS:  # where the task is, beside whatever runs there
                    key, apart = (key[0], key[1], key[2], call.child), False
                alone = apart and self._channel
                if alone:
                    key = self.claim(key, call)
                    call.child = key[3]
                session: Session | None = None
                try:
                    session = self._sessions.get(key)
                    if session is None or session.lost:
                        session = await self.session(key, deadline, agent, call.principal)
                        if session.channel and apart and not alone:
                            failure = None  # only now is it known that such calls must not meet
                            continue
                        if alone and session.key != key:  # only now is it known that they may: it is of the new era
                            self.release(key, call)
                    if self.bears is not None:
                        session.principal = call.principal
                        if session.new and call.method in _SUBSCRIBING:
                            return Reply(200, ANSWER_HEADERS, _UNHEARD)
                    if agent is not None and not session.new and agent not in session.agents:
                        session.attach(agent)
                    level = agent.level if agent is not None else call.level
                    if level and level != session.level:
                        await self.quietly(session.ensure_level(level))
                    if session.reports and call.method == "tools/call":
                        session.reports = False
                        self.release(key, call)
                        return Reply(200, ANSWER_HEADERS, _REPORT)
                    if session.new and call.method in _SUBSCRIBING and agent is not None:
                        return await self._listening.answer(call, session)
                    session.used = True
                    session.tasks = session.tasks or "task" in call.params
                    reply = await session.call(call, deadline)
                    if call.method in _SUBSCRIBING:
                        self._subscribed(session, call, reply)
                        await self.written(session)
                    return reply
                except Expired:
                    if alone:
                        self.release(key, call)
                    if session is not None:
                        self.discard(session, EXPIRED)
                    failure, unreached = None, 0.0
                    forgotten += 1
                except Failure as problem:
                    if alone:
                        self.release(key, call)
                    if not may_resend(problem, safe=call.idempotent or await self._harmless(call, problem)):
                        raise named(self.name, problem) from None
                    failure = problem.with_traceback(None)  # it would lead back to this frame, which keeps it
                except BaseException:
                    if alone:
                        self.release(key, call)
                    raise
        finally:
            context.upstream_ended = monotonic()

    async def adopt(self, call: ToolCall, place: bytes) -> Reply:
        """Read the answer to `call` on that another worker has begun to read (`place`). Raises Failure."""
        found = read_place(place, self.mark)
        reply = None
        if found is not None and not self.new:
            whose = call.principal.id if call.principal is not None else ""
            key: Key = ("principal", whose, found.profile, 0)
            deadline = min(call.context.deadline, monotonic() + self.spec.timeout)
            reply = self.take_up(key, found, call, deadline)
        if reply is None:
            raise unplaced(self.name)
        if self.new is None:
            self.new = False
        return reply

    async def _harmless(self, call: ToolCall, failure: Failure) -> bool:
        """Whether a lost call of a tool that nobody had listed may be made again: the server is asked now."""
        if failure.code != CALL_LOST or call.method != "tools/call":
            return False
        if self.known(_TOOLS, call.session, call.profile, call.principal) is not None:
            return False  # then it was looked up before the call
        try:
            listing = await self.listing(_TOOLS, call.session, call.principal, call.profile)
        except Failure:
            return False
        entry = listing.index.get(call.name)
        call.idempotent = entry is not None and entry.repeatable
        return call.idempotent

    def key_of(self, agent: Agent | None, principal: Principal | None, profile: int) -> Key:
        nobody = principal is None or principal.source == "anonymous"
        if self.bears is not None:  # the server is shown who asks: nobody shares a session with anybody
            if agent is not None and not self.new and (self._own or agent.profile or nobody):
                return ("agent", agent.id, agent.profile, 0)
            return ("principal", bearer(principal), 0 if self.new else profile, 0)
        if self.new:
            return SHARED
        if self._stateless:
            return ("shared", "", profile, 0)
        if agent is not None:
            if self.spec.session == "shared" and not agent.profile:
                return SHARED
            if self._own or agent.profile or nobody:
                return ("agent", agent.id, agent.profile, 0)
        elif self.spec.session == "shared" and not profile:
            return SHARED
        return ("principal", principal.id if principal is not None else "", profile, 0)

    def _opened(self, session: Session, key: Key, memory: Memory | None) -> Session:
        session = super()._opened(session, key, memory)
        if session.new and self.bears is None:
            self._listening.opened(session)
        return session

    def _subscribed(self, session: Session, call: ToolCall, reply: Reply) -> None:
        """Keep what a successor of the session has to subscribe to."""
        if session.new or (reply.source is None and b'"error"' in reply.first and _refused(reply.first)):
            return
        if call.method == "resources/subscribe":
            session.subscribed(call.name, call.session)
        else:
            session.unsubscribed(call.name, call.session)

    def rescue(self, call: ToolCall, rescue: Rescue) -> "asyncio.Task[Any]":
        return self.spawn(self._rescue(call, rescue), cut=True)

    async def _rescue(self, call: ToolCall, rescue: Rescue) -> None:
        lost = Failure(502, Reason.UPSTREAM_FAILURE, "", code=CALL_LOST, retry=True, sent=True)
        again = self.again
        try:
            if again is None:
                reply = await self.handle(call, lost)
            else:
                call.resume = partial(self._resent, lost)
                reply = await again(call)
        except Failure as failure:
            rescue.end(failure.with_traceback(None))
        except asyncio.CancelledError:
            why = f"{self.name}: the server was removed"
            rescue.end(Failure(503, Reason.UPSTREAM_FAILURE, why, code=CALL_LOST, sent=True))
            raise
        else:
            rescue.follow(reply)

    async def _resent(self, lost: Failure, call: ToolCall) -> Reply:
        call.resume = None
        return await self.handle(call, lost)

    # ---- elicitations out of band
    def elicited(self, params: msgspec.Raw) -> None:
        try:
            id = jsonrpc.decode_string(jsonrpc.decode_fields(params).get("elicitationId"))
        except jsonrpc.Malformed:
            return
        if id is None:
            return
        while len(self._elicited) >= _MAX_ELICITED:
            del self._elicited[next(iter(self._elicited))]
        waiter = self._elicited.setdefault(id, asyncio.get_running_loop().create_future())
        if not waiter.done():
            waiter.set_result(None)

    async def wait_elicited(self, ids: Sequence[str], timeout: float) -> None:
        """Return when the elicitations of `ids` are complete, or after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        waiting = [self._elicited.setdefault(id, loop.create_future()) for id in ids]
        if waiting:
            await asyncio.wait(waiting, timeout=timeout)
        for id in ids:
            self._elicited.pop(id, None)

    # ---- what agents do that concerns sessions
    def level_changed(self, agent: Agent) -> None:
        for session in self._sessions.values():
            if agent in session.agents:
                self.later(session.ensure_level(agent.level))

    def roots_changed(self, agent: Agent) -> None:
        for session in self._sessions.values():
            if agent in session.agents and session.key[0] == "agent" and not session.new:
                session.tell(jsonrpc.notification("notifications/roots/list_changed"))

    # ---- its catalogue
    @property
    def examines(self) -> bool:
        """Tools are judged by what they say, so they are looked at as they come."""
        return self.catalogue.examines

    @examines.setter
    def examines(self, wanted: bool) -> None:
        self.catalogue.examines = wanted

    def listing(
        self, kind: Kind, agent: Agent | None, principal: Principal | None, profile: int | None = None
    ) -> Coroutine[Any, Any, Listing]:
        """All entries of one kind, from memory while they are fresh. Raises Failure when the server does not say and
        the last good list is too old. profile: the agent's, where it is not said."""
        return self.catalogue.listing(kind, agent, principal, profile)

    def known(
        self, kind: Kind, agent: Agent | None, profile: int | None = None, principal: Principal | None = None
    ) -> Listing | None:
        """The last list of that kind, whatever its age, without asking."""
        return self.catalogue.known(kind, agent, profile, principal)

    def changed(self, notification: str) -> None:
        self.catalogue.changed(notification)

    def forget(self, whose: Callable[[Principal], bool]) -> None:
        """These callers are somebody else to the server from now on: what was listed for them is used no more, and what
        is open for them takes no new calls."""
        self.catalogue.forget(whose)
        for session in list(self._sessions.values()):
            if session.principal is None or not whose(session.principal):
                continue
            if session.place and self._records is not None:
                self.later(self._records.forget(session.place))
            session.kept = True  # there is no token any more to say goodbye with that is its own
            if session.active:
                del self._sessions[session.key]
                self._superseded.add(session)
                session.leaving = True
                session.detach()
            else:
                self.discard(session)

    def reopened(self, session: Session) -> None:
        self.catalogue.look_again()

    def expire(self) -> None:
        super().expire()
        self.catalogue.expire()


_REPORT = jsonrpc.result(
    0,
    b'{"content":[{"type":"text","text":"The server was restarted and has lost what it kept of earlier calls. This '
    b'call was not carried out: begin again with what it depends on."}],"isError":true}',
)


_UNHEARD = jsonrpc.error(
    0, jsonrpc.METHOD_NOT_FOUND, "resources of this server cannot be subscribed to: one stream would be for all users"
)


def _refused(data: bytes) -> bool:
    try:
        return bool(len(jsonrpc.decode(data).error))
    except jsonrpc.Malformed:
        return True
