"""What one MCP server lists: read when it is needed, kept as long as the server says, and looked at again when the
server says that it changed.

Rule: over HTTP it is read over a session that belongs to nobody and refuses to be asked; where that would be one more
process, over the session of whoever asks first. Either way it is one list for all, unless the server says otherwise. A
list that does not come is asked for again behind; meanwhile the last good one stands in.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, Protocol

from tollhouse.backends.mcp.agent import SHARED, Agent, Key
from tollhouse.backends.mcp.handshake import OPEN_TIMEOUT, refused
from tollhouse.backends.mcp.heal import DELAYS, Budget, may_resend, said
from tollhouse.backends.mcp.session import Bears, Session, bearer
from tollhouse.backends.mcp.spec import McpServerSpec
from tollhouse.core.call import Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.identity import ACCOUNT_NEEDED
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions, tasks
from tollhouse.wire.mcp.catalogue import KINDS, Entry, Kind, Listing, Page, parse_page
from tollhouse.wire.mcp.integrity import examine

__all__ = ["Catalogue", "Lister"]

log = logging.getLogger("tollhouse.backends.mcp")

STALE = 600.0  # seconds that the last good list may stand in for a server that does not answer
_TTL = 60.0  # seconds a list is kept when the server tells of changes, and 5 when it does not
_TTL_UNTOLD = 5.0
_MAX_TTL = 3600.0
_LIST_TIMEOUT = 60.0  # seconds for one page that is waited for behind
_MAX_ENTRIES = 10_000
_MAX_PAGES = 100
_MAX_LISTINGS = 1024
_NOT_HIS = (ACCOUNT_NEEDED, "access_denied")
_LARGE = 256 << 10  # bytes of a page that would hold up everybody while it is read
_LARGE_TOOLS = 16 << 10  # bytes of tools that would while they are examined
_CHANGES, _CHANGES_EVERY = 10, 10.0
_RETRY_LIST, _MOST_RETRY_LIST = 2.0, 30.0  # seconds after which a list that is missing is asked for again
_LIST_ATTEMPTS = 3
_MAX_LOGGED = 20
_LOOK_AGAIN = 1.0  # seconds; a list that is younger is from after the restart, or will be asked for soon enough
_TOOLS = KINDS["tools/list"]

_Slot = tuple[str, int, str]
"""Of a list: method, profile, and whose it is: "" for everybody's."""


class Lister(Protocol):
    """The server that lists (`upstream.Upstream`). deadline: when it is looked after the next time, in seconds of
    its clock."""

    name: str
    spec: McpServerSpec
    clock: Clock
    client: bytes
    new: bool | None
    deadline: float
    bears: Bears | None

    def key_of(self, agent: Agent | None, principal: Principal | None, profile: int) -> Key: ...

    async def session(
        self, key: Key, deadline: float, agent: Agent | None = None, principal: Principal | None = None
    ) -> Session: ...

    async def patiently(self, task: "asyncio.Task[Any]", deadline: float, why: str) -> Any: ...

    def later(self, work: Coroutine[Any, Any, Any], *, cut: bool = False) -> bool: ...

    def spawn(self, work: Coroutine[Any, Any, Any], *, cut: bool = False) -> "asyncio.Task[Any]": ...


class Catalogue:
    """Of one server. http: a session that belongs to nobody costs little. on_change: called with (server,
    notification) when one of the lists is another. examines: tools are judged by what they say, so they are looked at
    as they come."""

    def __init__(self, upstream: Lister, *, http: bool, on_change: Callable[[str, str], None]) -> None:
        self.examines = False
        self._upstream = upstream
        self._http = http
        self._apart = upstream.spec.catalogue == "session"
        self._trusted = upstream.spec.trusted()
        self._on_change = on_change
        self._listings: dict[_Slot, Listing] = {}
        self._asked_by: dict[_Slot, Principal] = {}  # where a list is its own caller's
        self._forgotten = 0  # times
        self._fetching: dict[_Slot, asyncio.Task[Listing]] = {}
        self._missing: dict[_Slot, Kind] = {}  # lists that agents were told are not there
        self._retries = 0
        self._changes = Budget(_CHANGES, _CHANGES_EVERY)
        self._untold: set[str] = set()

    async def listing(
        self, kind: Kind, agent: Agent | None, principal: Principal | None, profile: int | None = None
    ) -> Listing:
        """All entries of one kind, from memory while they are fresh. Raises Failure when the server does not say and
        the last good list is too old. profile: the agent's, where it is not said."""
        upstream = self._upstream
        if upstream.bears is not None and (principal is None or principal.source == "anonymous"):
            message = f"{upstream.name}: its lists are for callers who are known"
            raise Failure(401, Reason.JWT_AUTH, message, code="credential_required")
        known = self.known(kind, agent, profile, principal)
        now = monotonic()
        if known is not None and now < known.until:
            return known
        if profile is None:
            profile = agent.profile if agent is not None else 0
        slot: _Slot = (kind.method, profile, self._whose(agent, principal))
        task = self._fetching.get(slot)
        # Somebody waits already, and something can be shown; or it did not come the last time.
        behind = task is not None and (known is not None or slot in self._missing)
        if task is None:
            behind = slot in self._missing
            nobodys = self._http and not upstream.new and not self._alone
            key: Key = ("catalogue", "", profile, 0) if nobodys else upstream.key_of(agent, principal, profile)
            task = self._fetching[slot] = upstream.spawn(self._fetch(kind, key, slot, agent, principal), cut=True)
        try:
            wait = 0.0 if behind else upstream.spec.list_timeout
            listing: Listing = await upstream.patiently(task, now + wait, f"no answer to {kind.method} in time")
        except Failure as failure:
            if failure.code in _NOT_HIS:  # it is not missing
                self._drop(slot)
                raise
            self._miss(slot, kind, failure)
            if known is not None and now - known.at < STALE:
                return known
            raise
        return listing

    def known(
        self, kind: Kind, agent: Agent | None, profile: int | None = None, principal: Principal | None = None
    ) -> Listing | None:
        """The last list of that kind, whatever its age, without asking."""
        if profile is None:
            profile = agent.profile if agent is not None else 0
        if not self._alone:
            found = self._listings.get((kind.method, profile, ""))
            if found is not None or principal is None:
                return found
        return self._listings.get((kind.method, profile, self._whose(agent, principal)))

    @property
    def _alone(self) -> bool:
        """Lists are for whom they were asked, and for nobody else."""
        return self._apart or self._upstream.bears is not None

    def _whose(self, agent: Agent | None, principal: Principal | None) -> str:
        if self._apart and agent is not None:
            return f"agent {agent.id}"
        if self._upstream.bears is not None:
            return f"bearer {bearer(principal)}"
        return f"principal {principal.id}" if principal is not None else "nobody"

    async def _fetch(
        self, kind: Kind, key: Key, slot: _Slot, agent: Agent | None, principal: Principal | None = None
    ) -> Listing:
        forgotten = self._forgotten
        try:
            listing, private = await self._ask_list(kind, key, agent, principal)
            if self.examines and kind is _TOOLS:
                await self._examine(listing, slot)
        finally:
            self._fetching.pop(slot, None)
        if not private and not self._alone:
            slot = (slot[0], slot[1], "")
        else:
            self._listings.pop((slot[0], slot[1], ""), None)  # it was everybody's, and is not any more
        before = self._listings.get(slot)
        self._listings.pop(slot, None)
        self._listings[slot] = listing
        if self._upstream.bears is not None and principal is not None:
            self._asked_by[slot] = principal
            if forgotten != self._forgotten:
                listing.until = 0.0  # it may be an earlier account's
        if len(self._listings) > _MAX_LISTINGS:
            self._drop(next(iter(self._listings)))
        same = 3 if self._alone else 2  # else it is back for all who miss it
        back = [missing for missing in self._missing if missing[:same] == slot[:same]]
        for missing in back:
            del self._missing[missing]
        if back or (before is not None and before.version != listing.version and before.until):
            self._changed(kind.changed)
        return listing

    def _drop(self, slot: _Slot) -> None:
        self._listings.pop(slot, None)
        self._asked_by.pop(slot, None)

    def forget(self, whose: Callable[[Principal], bool]) -> None:
        """What was read for these callers is not theirs any more."""
        self._forgotten += 1
        for slot in [slot for slot, principal in self._asked_by.items() if whose(principal)]:
            self._drop(slot)

    def _miss(self, slot: _Slot, kind: Kind, failure: Failure) -> None:
        """A list was not to be had: ask for it again before anybody does, so that they are told when it is back."""
        upstream = self._upstream
        if slot not in self._missing:
            if kind not in self._missing.values():
                log.warning("mcp server %s: no %s: %s", upstream.name, kind.method, said(failure))
            if not self._missing:
                self._retries = 0
            self._missing[slot] = kind
            if len(self._missing) > _MAX_LISTINGS:
                del self._missing[next(iter(self._missing))]
            upstream.deadline = min(upstream.deadline, upstream.clock.now + _RETRY_LIST)

    def expire(self) -> None:
        """Look for lists that are missing; `upstream.deadline` is when this is due again."""
        upstream = self._upstream
        if not self._missing:
            return
        self._retries += 1
        upstream.deadline = upstream.clock.now + min(_MOST_RETRY_LIST, _RETRY_LIST * 2.0 ** min(self._retries, 10))
        for slot, kind in list(self._missing.items()):
            if slot in self._fetching:
                continue
            if slot[2].startswith("agent ") or upstream.bears is not None or (self._http is False and not upstream.new):
                del self._missing[slot]  # whose session it was read over may be gone: they will ask
                continue
            key: Key = SHARED if upstream.new else ("catalogue", "", slot[1], 0)
            try:
                self._fetching[slot] = upstream.spawn(self._fetch(kind, key, slot, None), cut=True)
            except Failure:
                return

    async def _ask_list(
        self, kind: Kind, key: Key, agent: Agent | None, principal: Principal | None
    ) -> tuple[Listing, bool]:
        """The whole list, and whether it is only for whom it was asked. Raises Failure."""
        upstream = self._upstream
        attempt = 0
        while True:
            attempt += 1
            try:
                whose = agent if key[0] == "agent" else None
                session = await upstream.session(key, monotonic() + OPEN_TIMEOUT, whose, principal)
                if upstream.bears is not None:
                    session.principal = principal
                session.active += 1
                try:
                    if agent is not None and key[0] == "agent":
                        session.attach(agent)
                    return await self._read_list(session, kind)
                finally:
                    session.done()
            except jsonrpc.Malformed as problem:
                raise Failure(502, Reason.UPSTREAM_FAILURE, f"{upstream.name}: {problem.message}") from None
            except Failure as failure:
                if attempt >= _LIST_ATTEMPTS or not may_resend(failure, safe=True):
                    raise
                wait = DELAYS.delay(attempt + 1, failure.retry_after)
            if wait > _RETRY_LIST:
                raise Failure(503, Reason.UPSTREAM_FAILURE, f"{upstream.name}: the server is busy", retry_after=wait)
            await asyncio.sleep(wait)

    async def _read_list(self, session: Session, kind: Kind) -> tuple[Listing, bool]:
        upstream = self._upstream
        features = session.features
        entries: list[Entry] = []
        dropped: list[str] = []
        cursor: str | None = None
        seen: set[str] = set()
        names: set[str] = set()
        private, public = False, session.new and upstream.bears is None
        told = features is not None and features.tells_changes(kind.capability) and not session.new
        ttl = _TTL if told else _TTL_UNTOLD
        runs = session.new and features is not None and tasks.offers(features.capabilities)
        if features is None or kind.capability in features.capabilities:
            for _ in range(_MAX_PAGES):
                params: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
                if session.new:
                    params["_meta"] = revisions.new_meta(b"{}", upstream.client, None, "")
                answer = await session.ask(kind.method, params, min(upstream.spec.timeout, _LIST_TIMEOUT))
                if len(answer.error):
                    problem = jsonrpc.error_fields(answer.error)
                    if problem.code == jsonrpc.METHOD_NOT_FOUND:
                        break
                    raise refused(upstream.name, kind.method, problem)
                page = await self._page(kind, answer.result, headers=session.new and self._http, tasks=runs)
                for entry in page.entries:
                    if entry.name in names:
                        dropped.append(f"{entry.name}, which it lists twice")
                    else:
                        names.add(entry.name)
                        entries.append(entry)
                dropped += page.dropped
                if session.new:
                    if page.ttl is not None:
                        ttl = min(page.ttl / 1000, _MAX_TTL)
                    private = private or page.private
                public = public and page.public
                cursor = page.cursor
                if cursor is None:
                    break
                if cursor in seen or len(entries) >= _MAX_ENTRIES:
                    dropped.append(f"everything after {len(entries)} entries")
                    break
                seen.add(cursor)
        if len(entries) > _MAX_ENTRIES:
            dropped.append(f"everything after {_MAX_ENTRIES} entries")
        for what in dropped[:_MAX_LOGGED]:
            log.warning("mcp server %s: %s leaves out %s", upstream.name, kind.method, what)
        if len(dropped) > _MAX_LOGGED:
            log.warning("mcp server %s: %s leaves out %d more", upstream.name, kind.method, len(dropped) - _MAX_LOGGED)
        if not self._trusted:
            for entry in entries:
                entry.repeatable = False
        if upstream.spec.list_ttl is not None:
            ttl = upstream.spec.list_ttl
        now = monotonic()
        kept, dropped = entries[:_MAX_ENTRIES], dropped[:_MAX_LOGGED]
        return Listing(kept, at=now, until=now + ttl, dropped=dropped, public=public), private

    async def _page(self, kind: Kind, raw: Any, *, headers: bool, tasks: bool) -> Page:
        if len(raw) < _LARGE:
            return parse_page(kind, raw, headers=headers, tasks=tasks)
        return await asyncio.to_thread(parse_page, kind, raw, headers=headers, tasks=tasks)

    async def _examine(self, listing: Listing, slot: _Slot) -> None:
        """Facts of its tools, taken from the list before where they are the same."""
        before = self._listings.get(slot) or self._listings.get((slot[0], slot[1], ""))
        known = {entry.raw: entry.facts for entry in before.entries} if before is not None else {}
        fresh = []
        for entry in listing.entries:
            entry.facts = known.get(entry.raw)
            if entry.facts is None:
                fresh.append(entry)
        if sum(len(entry.raw) for entry in fresh) < _LARGE_TOOLS:
            _examine(fresh)
        else:
            await asyncio.to_thread(_examine, fresh)

    def changed(self, notification: str) -> None:
        """One of the server's lists is another: ask again at the next need. A server that says so all the time is
        believed once in a while."""
        upstream = self._upstream
        if notification in self._untold:
            return
        wait = self._changes.take()
        if not wait:
            self._changed(notification)
            return
        if not self._untold:
            log.warning("mcp server %s: its lists change all the time; agents are told less often", upstream.name)
        if upstream.later(self._tell_changed(notification, wait), cut=True):
            self._untold.add(notification)

    async def _tell_changed(self, notification: str, wait: float) -> None:
        await asyncio.sleep(wait)
        self._changes.take()
        self._untold.discard(notification)
        self._changed(notification)

    def _changed(self, notification: str) -> None:
        for slot, listing in self._listings.items():
            if KINDS[slot[0]].changed == notification:
                listing.until = 0.0
        self._on_change(self._upstream.name, notification)

    def look_again(self) -> None:
        """The server may be another than it was: look again at what is known of it, and say so if that has changed."""
        upstream = self._upstream
        for slot in list(self._listings):
            kind = KINDS[slot[0]]
            if slot[2] or slot in self._fetching or not (self._http or upstream.new):
                self._listings[slot].until = min(self._listings[slot].until, monotonic())
                continue
            key: Key = SHARED if upstream.new else ("catalogue", "", slot[1], 0)
            if monotonic() - self._listings[slot].at > _LOOK_AGAIN:
                try:
                    self._fetching[slot] = upstream.spawn(self._fetch(kind, key, slot, None), cut=True)
                except Failure:
                    return


def _examine(entries: Sequence[Entry]) -> None:
    for entry in entries:
        entry.facts = examine(entry.raw)
