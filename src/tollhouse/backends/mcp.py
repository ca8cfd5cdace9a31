"""One MCP server as the gateway sees it: its sessions by whom they serve, its catalogue, its end.

Rule: a session is shared only between calls that may share it. An agent of the old era that can be asked things, that
has told nobody who it is, or that reaches the server over HTTP, has a session of its own; other agents share one per
principal. Over HTTP the catalogue is read over a session that belongs to nobody and refuses to be asked; where that
would be one more process, over the session of whoever asks first. Either way it is one catalogue for all. What
differs between transports is in `mcp_stdio` and `mcp_http`.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from time import monotonic
from typing import Any

from tollhouse.backends.mcp_session import OPEN_TIMEOUT, Agent, Expired, Features, Key, McpServerSpec, Session
from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions
from tollhouse.wire.mcp.catalogue import KINDS, Entry, Kind, Listing, parse_page

__all__ = ["Connect", "Upstream"]

log = logging.getLogger("tollhouse.backends.mcp")

STALE = 600.0  # seconds that the last good list may stand in for a server that does not answer
_TTL = 60.0  # seconds a list is kept when the server tells of changes, and 5 when it does not
_TTL_UNTOLD = 5.0
_MAX_TTL = 3600.0
_MAX_ENTRIES = 10_000
_MAX_PAGES = 100
_MAX_TASKS = 1024
_MAX_LISTINGS = 256
_FAILURES = 5  # opening failures in a row after which callers fail at once until the next attempt is due

Connect = Callable[["Upstream", Key], Session]


_SHARED: Key = ("principal", "", 0)
"""A stateless server keeps nothing between requests, so there is nothing that could be shared by mistake."""


class Upstream:
    """A configured server. `handle` is the end of its call chain; `listing` reads its catalogue.

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
    ) -> None:
        self.name = name
        self.spec = spec
        self.clock = clock
        self.client = client
        self.new: bool | None = None
        self.features: Features | None = None
        self.retired = False
        self.deadline = clock.now + 30.0
        self._connect = connect
        self._limit = limit
        self._own = own_sessions
        self._on_change = on_change
        self._on_sessions = on_sessions
        self._sessions: dict[Key, Session] = {}
        self._opening: dict[Key, asyncio.Task[Session]] = {}
        self._listings: dict[tuple[str, int], Listing] = {}
        self._fetching: dict[tuple[str, int], asyncio.Task[Listing]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures = 0
        self._not_before = 0.0
        self._closed = False
        clock.watch(self)

    # ---- calls
    async def handle(self, call: ToolCall) -> Reply:
        """The terminal Handler: ask the server. Raises Failure."""
        context = call.context
        now = monotonic()
        if not context.upstream_began:
            context.upstream_began = now
        context.attempts += 1
        deadline = min(context.deadline, now + self.spec.timeout)
        key = self._key(call.session, call.principal)
        try:
            session = self._sessions.get(key)
            if session is None or session.lost:
                session = await self._session(key, deadline)
            agent = call.session
            if agent is not None and not session.new and agent not in session.agents:
                session.attach(agent)
            level = agent.level if agent is not None else call.level
            if level and level != session.level:
                await self._quietly(session.ensure_level(level))
            try:
                return await session.call(call, deadline)
            except Expired:
                self.discard(session)
            session = await self._session(key, deadline)
            if agent is not None and not session.new:
                session.attach(agent)
            try:
                return await session.call(call, deadline)
            except Expired:
                raise Failure(
                    502, Reason.UPSTREAM_FAILURE, f"{self.name}: the server forgot a session it had just opened"
                ) from None
        finally:
            context.upstream_ended = monotonic()

    def _key(self, agent: Agent | None, principal: Principal | None) -> Key:
        if self.new:
            return _SHARED
        nobody = principal is None or principal.source == "anonymous"
        if agent is not None and (self._own or agent.profile or nobody):
            return ("agent", agent.id, agent.profile)
        return ("principal", principal.id if principal is not None else "", 0)

    async def _session(self, key: Key, deadline: float) -> Session:
        """The session of `key`, opened once however many wait for it."""
        session = self._sessions.get(key)
        if session is not None and not session.lost:
            return session
        task = self._opening.get(key)
        if task is None:
            if self._closed:
                raise Failure(
                    503, Reason.UPSTREAM_FAILURE, f"{self.name}: the server was removed", retry=True, reached=False
                )
            wait = self._not_before - monotonic()
            if self._failures >= _FAILURES and wait > 0:
                raise Failure(
                    503,
                    Reason.UPSTREAM_FAILURE,
                    f"{self.name}: the server does not come up; next attempt in {wait:.1f} s",
                    retry=True,
                    retry_after=wait,
                    reached=False,
                )
            self._make_room()
            task = self._opening[key] = self.spawn(self._open(key))
        opened: Session = await self._patiently(task, deadline, "the server did not open a session in time")
        return opened

    async def _open(self, key: Key) -> Session:
        session = self._connect(self, key)
        try:
            wait = self._not_before - monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            async with asyncio.timeout(OPEN_TIMEOUT):
                await session.open()
        except BaseException as error:
            self.new = None
            session.lost = True
            self.later(session.close())
            if isinstance(error, TimeoutError):
                error = Failure(
                    504,
                    Reason.TIMEOUT,
                    f"{self.name}: the server did not shake hands in {OPEN_TIMEOUT:.0f} s",
                    retry=True,
                )
            if isinstance(error, jsonrpc.Malformed):
                error = Failure(502, Reason.UPSTREAM_FAILURE, f"{self.name}: {error.message}")
            if isinstance(error, Failure):
                self._failures += 1
                self._not_before = monotonic() + min(30.0, 0.05 * 2 ** min(self._failures, 10))
                log.warning("mcp server %s: %s", self.name, _said(error))
            raise error from None
        finally:
            self._opening.pop(key, None)
        self._failures = 0
        if session.features is not None:
            self.features = session.features
        if self.new:
            key = session.key = _SHARED
            first = self._sessions.get(key)
            if first is not None and not first.lost:  # two found out at once
                self.discard(session)
                return first
        self._sessions[key] = session
        if session.features is not None:
            self._on_sessions(session.features.revision, 1)
        return session

    def _make_room(self) -> None:
        if len(self._sessions) + len(self._opening) < self._limit:
            return
        idle = [session for session in self._sessions.values() if not session.active]
        if not idle:
            raise Failure(
                503,
                Reason.UPSTREAM_FAILURE,
                f"{self.name}: all {self._limit} sessions with the server are in use",
                retry=True,
                reached=False,
            )
        self.discard(min(idle, key=lambda session: session.touched))

    async def _patiently(self, task: "asyncio.Task[Any]", deadline: float, why: str) -> Any:
        """The result of a task that others may wait for too."""
        done, _ = await asyncio.wait([task], timeout=max(0.0, deadline - monotonic()))
        if not done:
            raise Failure(504, Reason.TIMEOUT, f"{self.name}: {why}", retry=True)
        if task.cancelled():
            raise Failure(
                503, Reason.UPSTREAM_FAILURE, f"{self.name}: the server was removed", retry=True, reached=False
            )
        error = task.exception()
        if isinstance(error, Failure):  # each waiter its own: a raised one refers back to who raises it
            raise error.copy()
        return task.result()

    # ---- what agents do that concerns sessions
    def level_changed(self, agent: Agent) -> None:
        for session in self._sessions.values():
            if agent in session.agents:
                self.later(session.ensure_level(agent.level))

    def roots_changed(self, agent: Agent) -> None:
        for session in self._sessions.values():
            if agent in session.agents and session.key[0] == "agent" and not session.new:
                session.tell(jsonrpc.notification("notifications/roots/list_changed"))

    # ---- the catalogue
    async def listing(self, kind: Kind, agent: Agent | None, principal: Principal | None) -> Listing:
        """All entries of one kind, from memory while they are fresh. Raises Failure when the server does not say and
        the last good list is too old."""
        profile = agent.profile if agent is not None else 0
        slot = (kind.method, profile)
        known = self._listings.get(slot)
        now = monotonic()
        if known is not None and now < known.until:
            return known
        task = self._fetching.get(slot)
        behind = task is not None and known is not None  # somebody waits already, and something can be shown
        if task is None:
            nobodys = self._own and not self.new
            key: Key = ("catalogue", "", profile) if nobodys else self._key(agent, principal)
            task = self._fetching[slot] = self.spawn(self._fetch(kind, key, slot, agent))
        try:
            wait = 0.0 if behind else self.spec.list_timeout
            listing: Listing = await self._patiently(task, now + wait, f"no answer to {kind.method} in time")
            return listing
        except Failure:
            if known is not None and now - known.at < STALE:
                return known
            raise

    def known(self, kind: Kind, agent: Agent | None) -> Listing | None:
        """The last list of that kind, whatever its age, without asking."""
        return self._listings.get((kind.method, agent.profile if agent is not None else 0))

    async def _fetch(self, kind: Kind, key: Key, slot: tuple[str, int], agent: Agent | None) -> Listing:
        try:
            session = await self._session(key, monotonic() + OPEN_TIMEOUT)
            session.active += 1
            try:
                if agent is not None and key[0] == "agent":
                    session.attach(agent)
                listing = await self._read_list(session, kind)
            finally:
                session.done()
        except jsonrpc.Malformed as problem:
            raise Failure(502, Reason.UPSTREAM_FAILURE, f"{self.name}: {problem.message}") from None
        finally:
            self._fetching.pop(slot, None)
        self._listings[slot] = listing
        if len(self._listings) > _MAX_LISTINGS:
            self._listings.pop(next(iter(self._listings)))
        return listing

    async def _read_list(self, session: Session, kind: Kind) -> Listing:
        features = session.features
        entries: list[Entry] = []
        dropped: list[str] = []
        cursor: str | None = None
        seen: set[str] = set()
        ttl = (
            _TTL
            if features is not None and features.tells_changes(kind.capability) and not session.new
            else _TTL_UNTOLD
        )
        if features is None or kind.capability in features.capabilities:
            for _ in range(_MAX_PAGES):
                params: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
                if session.new:
                    params["_meta"] = revisions.new_meta(b"{}", self.client, None, "")
                answer = await session.ask(kind.method, params, self.spec.timeout)
                if len(answer.error):
                    problem = jsonrpc.error_fields(answer.error)
                    if problem.code == jsonrpc.METHOD_NOT_FOUND:
                        break
                    raise session.refused(kind.method, problem)
                page = parse_page(kind, answer.result, headers=session.new and self._own)
                entries += page.entries
                dropped += page.dropped
                if page.ttl is not None and session.new:
                    ttl = min(page.ttl / 1000, _MAX_TTL)
                cursor = page.cursor
                if cursor is None:
                    break
                if cursor in seen or len(entries) >= _MAX_ENTRIES:
                    dropped.append(f"everything after {len(entries)} entries")
                    break
                seen.add(cursor)
        for what in dropped:
            log.warning("mcp server %s: %s leaves out %s", self.name, kind.method, what)
        now = monotonic()
        return Listing(entries[:_MAX_ENTRIES], at=now, until=now + ttl, dropped=dropped)

    def changed(self, notification: str) -> None:
        """One of the server's lists is another: ask again at the next need."""
        for method, profile in list(self._listings):
            if KINDS[method].changed == notification:
                self._listings[method, profile].until = 0.0
        self._on_change(self.name, notification)

    # ---- the end of sessions, and of all
    def discard(self, session: Session) -> None:
        """Close `session`, now; calls on it fail."""
        session.detach()
        if self._sessions.get(session.key) is session:
            del self._sessions[session.key]
            if session.features is not None:
                self._on_sessions(session.features.revision, -1)
        session.lost = True
        if not session.closed:
            session.closed = True
            self.later(session.close())

    def expire(self) -> None:
        """Timed: look for sessions that nobody uses."""
        now = self.clock.now
        self.deadline = now + 30.0
        for session in list(self._sessions.values()):
            if not session.active and now - session.touched > self.spec.idle_timeout:
                self.discard(session)

    def retire(self) -> None:
        """No new configuration has this server: close each session once its calls have ended."""
        self.retired = True
        self.clock.drop(self)
        for session in list(self._sessions.values()):
            if not session.active:
                self.discard(session)

    @property
    def idle(self) -> bool:
        """Nothing is open and nothing is under way."""
        return not self._sessions and not self._tasks

    @property
    def sessions(self) -> Iterable[Session]:
        return self._sessions.values()

    async def close(self) -> None:
        """Close everything now, and wait until it is closed."""
        self._closed = True
        self.retire()
        for task in (*self._opening.values(), *self._fetching.values()):
            task.cancel()
        for session in list(self._sessions.values()):
            self.discard(session)
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    def later(self, work: Coroutine[Any, Any, Any]) -> None:
        """`spawn`, for work that nobody waits for and whose failure concerns nobody but the log."""
        try:
            task = self.spawn(self._quietly(work))
        except Failure as failure:
            log.warning("mcp server %s: %s", self.name, _said(failure))
        else:
            task.set_name(f"mcp {self.name}")

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run `work` as a task of this server; `close` waits for it. Raises Failure 503 when far too many run."""
        if len(self._tasks) - len(self._sessions) >= _MAX_TASKS:  # every session may have one for its stream
            work.close()
            raise Failure(
                503,
                Reason.UPSTREAM_FAILURE,
                f"{self.name}: too much is waiting for the server",
                retry=True,
                reached=False,
            )
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not isinstance(task.exception(), Failure):
            log.error("mcp server %s: internal error", self.name, exc_info=task.exception())

    async def _quietly(self, work: Coroutine[Any, Any, Any]) -> None:
        """Work whose failure concerns nobody but the log."""
        try:
            await work
        except Failure as failure:
            log.info("mcp server %s: %s", self.name, _said(failure))
        except jsonrpc.Malformed as problem:
            log.info("mcp server %s: %s", self.name, problem)


def _said(failure: Failure) -> str:
    """For the log, where the caller's half of it is not enough."""
    return f"{failure.message}: {failure.detail}" if failure.detail else failure.message
