"""All MCP servers of this process, kept while configurations come and go.

Rule: a server whose configuration is the same is the same server: its sessions and children live on. One that has
changed, or has gone, ends when its calls have ended.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial

from tollhouse.backends.http_tools import HttpToolsSpec
from tollhouse.backends.mcp.agent import Key
from tollhouse.backends.mcp.http import HttpPlace, HttpServerSpec
from tollhouse.backends.mcp.http_session import HttpSession
from tollhouse.backends.mcp.openapi import OpenApiServerSpec, OpenApiTools
from tollhouse.backends.mcp.pool import Pool
from tollhouse.backends.mcp.records import Records
from tollhouse.backends.mcp.rest import RestServerSpec, RestTools
from tollhouse.backends.mcp.session import Session
from tollhouse.backends.mcp.spec import McpServerSpec
from tollhouse.backends.mcp.sse import SseSession
from tollhouse.backends.mcp.stdio import StdioServerSpec, StdioSession
from tollhouse.backends.mcp.upstream import Upstream
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.net.client import Client
from tollhouse.net.process import Keeper, taken

__all__ = ["Servers", "fingerprint"]

_HTTP_SESSIONS = 10_000
_LOOK = 2.0  # seconds between two looks at what children take


ServerSpec = McpServerSpec | HttpToolsSpec
Server = Upstream | OpenApiTools | RestTools

_KINDS: tuple[type[ServerSpec], ...] = (StdioServerSpec, HttpServerSpec, OpenApiServerSpec, RestServerSpec)


def fingerprint(spec: ServerSpec) -> str:
    """A digest of all that makes a server another one: how it is reached, not what may be done with it."""
    kind = next((kind for kind in _KINDS if isinstance(spec, kind)), McpServerSpec)
    own = kind.model_construct(**{name: getattr(spec, name) for name in kind.model_fields}).fingerprint()
    return own + spec.digest if isinstance(spec, OpenApiServerSpec) else own


class Servers:
    """client: for calls; streams: another client for streams that stay open. info: raw JSON of our clientInfo.
    on_change: told (server, notification) when a list is another. count: told (revision, +1 or -1) of sessions.
    recovered: told why a session was lost that was replaced. records: of agents' sessions, where other workers may go
    on with them. Timed: looks at what children take."""

    def __init__(
        self,
        clock: Clock,
        client: Client,
        streams: Client,
        *,
        info: bytes,
        on_change: Callable[[str, str], None],
        count: Callable[[str, int], None] = lambda revision, change: None,
        recovered: Callable[[str], None] = lambda cause: None,
        records: Records | None = None,
    ) -> None:
        self._records = records
        self._clock = clock
        self._recovered = recovered
        self._keeper = Keeper()
        self._weighing: asyncio.Task[None] | None = None
        self.deadline = FOREVER
        self._client = client
        self._streams = streams
        self._info = info
        self._on_change = on_change
        self._count = count
        self._known: dict[tuple[str, str], Server] = {}
        self._leaving: set[Server] = set()

    def get(self, name: str, spec: ServerSpec) -> Server:
        """The server of that name and configuration; nothing is started before it is needed. Raises OriginError when
        its TLS files or its proxy cannot be used, TypeError for a kind of server that is not known here."""
        key = (name, fingerprint(spec))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._make(name, spec, key[1])
        return known

    def _make(self, name: str, spec: ServerSpec, mark: str) -> Server:
        upstream = partial(
            Upstream,
            name,
            clock=self._clock,
            client=self._info,
            on_change=self._on_change,
            on_sessions=self._count,
            on_recovery=self._recovered,
            records=self._records,
            mark=mark,
        )
        if isinstance(spec, StdioServerSpec):
            return upstream(spec, self._child, limit=spec.max_children, own_sessions=False)
        if isinstance(spec, HttpServerSpec):
            place = HttpPlace(spec, self._client, self._streams)
            return upstream(spec, partial(_reach, place), limit=_HTTP_SESSIONS, own_sessions=True)
        if isinstance(spec, OpenApiServerSpec):
            return OpenApiTools(name, spec, self._client, self._clock, on_change=self._on_change)
        if isinstance(spec, RestServerSpec):
            return RestTools(name, spec, self._client, self._clock, on_change=self._on_change)
        raise TypeError(f"{type(spec).__name__} is no MCP server that can be reached")

    def _child(self, owner: Pool, key: Key) -> Session:
        spec = owner.spec
        if isinstance(spec, StdioServerSpec) and spec.watched and self.deadline == FOREVER:
            self.deadline = self._clock.now + _LOOK
            self._clock.watch(self)
        return StdioSession(owner, key, self._keeper)

    # ---- what children take
    def expire(self) -> None:
        """Timed: weigh the children of servers that may not take all they want."""
        watched = [one for one in self.all if isinstance(one, Upstream) and _watched(one) and not one.idle]
        if not watched:
            self._clock.drop(self)
            return
        self.deadline = self._clock.now + _LOOK
        if self._weighing is None or self._weighing.done():
            self._weighing = asyncio.get_running_loop().create_task(self._weigh(watched))

    async def _weigh(self, watched: list[Upstream]) -> None:
        sessions = {
            session.root: session
            for upstream in watched
            for session in upstream.sessions
            if isinstance(session, StdioSession) and session.root
        }
        found = await asyncio.to_thread(taken, sessions.keys())
        for root, session in sessions.items():
            if root in found and session.root == root:
                session.weigh(found[root])
        for upstream in watched:
            spec = upstream.spec
            if isinstance(spec, StdioServerSpec) and spec.max_age is not None:
                upstream.replace_older(spec.max_age)

    def retain(self, wanted: Mapping[str, ServerSpec]) -> None:
        """A new configuration serves: let go of what it does not have."""
        keys = {(name, fingerprint(spec)) for name, spec in wanted.items()}
        for key in [key for key in self._known if key not in keys]:
            upstream = self._known.pop(key)
            upstream.retire()
            self._leaving.add(upstream)
        self._leaving = {upstream for upstream in self._leaving if not upstream.idle}

    @property
    def all(self) -> list[Server]:
        """Those that serve and those that are leaving."""
        return [*self._known.values(), *self._leaving]

    async def close(self) -> None:
        """End every session and every child, and wait for it."""
        self._clock.drop(self)
        if self._weighing is not None:
            await asyncio.wait([self._weighing])
        await asyncio.gather(*(upstream.close() for upstream in self.all))
        self._known.clear()
        self._leaving.clear()
        self._keeper.close()


def _reach(place: HttpPlace, owner: Pool, key: Key) -> Session:
    return SseSession(owner, key, place) if place.legacy else HttpSession(owner, key, place)


def _watched(upstream: Upstream) -> bool:
    return isinstance(upstream.spec, StdioServerSpec) and upstream.spec.watched
