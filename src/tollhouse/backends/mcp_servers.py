"""All MCP servers of this process, kept while configurations come and go.

Rule: a server whose configuration is the same is the same server: its sessions and children live on. One that has
changed, or has gone, ends when its calls have ended.
"""

import asyncio
from collections.abc import Callable, Mapping

from tollhouse.backends.mcp import Upstream
from tollhouse.backends.mcp_http import HttpPlace, HttpServerSpec, HttpSession
from tollhouse.backends.mcp_session import McpServerSpec
from tollhouse.backends.mcp_stdio import StdioServerSpec, StdioSession
from tollhouse.core.clock import Clock
from tollhouse.net.client import Client

__all__ = ["Servers", "fingerprint"]

_HTTP_SESSIONS = 10_000


def fingerprint(spec: McpServerSpec) -> str:
    """A digest of all that makes a server another one: how it is reached, not what may be done with it."""
    kind = next((kind for kind in (StdioServerSpec, HttpServerSpec) if isinstance(spec, kind)), McpServerSpec)
    return kind.model_construct(**{name: getattr(spec, name) for name in kind.model_fields}).fingerprint()


class Servers:
    """client: for calls; streams: another client for streams that stay open. info: raw JSON of our clientInfo.
    on_change: told (server, notification) when a list is another. count: told (revision, +1 or -1) of sessions."""

    def __init__(
        self,
        clock: Clock,
        client: Client,
        streams: Client,
        *,
        info: bytes,
        on_change: Callable[[str, str], None],
        count: Callable[[str, int], None] = lambda revision, change: None,
    ) -> None:
        self._clock = clock
        self._client = client
        self._streams = streams
        self._info = info
        self._on_change = on_change
        self._count = count
        self._known: dict[tuple[str, str], Upstream] = {}
        self._leaving: set[Upstream] = set()

    def get(self, name: str, spec: McpServerSpec) -> Upstream:
        """The server of that name and configuration; nothing is started before it is needed. Raises OriginError when
        its TLS files or its proxy cannot be used, TypeError for a kind of server that is not known here."""
        key = (name, fingerprint(spec))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._make(name, spec)
        return known

    def _make(self, name: str, spec: McpServerSpec) -> Upstream:
        if isinstance(spec, StdioServerSpec):
            return Upstream(
                name,
                spec,
                StdioSession,
                self._clock,
                client=self._info,
                limit=spec.max_children,
                own_sessions=False,
                on_change=self._on_change,
                on_sessions=self._count,
            )
        if isinstance(spec, HttpServerSpec):
            place = HttpPlace(spec, self._client, self._streams)
            return Upstream(
                name,
                spec,
                lambda owner, key: HttpSession(owner, key, place),
                self._clock,
                client=self._info,
                limit=_HTTP_SESSIONS,
                own_sessions=True,
                on_change=self._on_change,
                on_sessions=self._count,
            )
        raise TypeError(f"{type(spec).__name__} is no MCP server that can be reached")

    def retain(self, wanted: Mapping[str, McpServerSpec]) -> None:
        """A new configuration serves: let go of what it does not have."""
        keys = {(name, fingerprint(spec)) for name, spec in wanted.items()}
        for key in [key for key in self._known if key not in keys]:
            upstream = self._known.pop(key)
            upstream.retire()
            self._leaving.add(upstream)
        self._leaving = {upstream for upstream in self._leaving if not upstream.idle}

    @property
    def all(self) -> list[Upstream]:
        """Those that serve and those that are leaving."""
        return [*self._known.values(), *self._leaving]

    async def close(self) -> None:
        """End every session and every child, and wait for it."""
        await asyncio.gather(*(upstream.close() for upstream in self.all))
        self._known.clear()
        self._leaving.clear()
