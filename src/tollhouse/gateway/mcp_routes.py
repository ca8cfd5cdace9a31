"""The routes of MCP: servers as one, each alone, endpoints of chosen tools, their metadata, and tools as plain REST.

Rule: a route adds to servers (`mcp_servers`) which tools are seen there, and under which names.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import msgspec

from tollhouse.backends.mcp.records import Records
from tollhouse.backends.mcp.servers import Servers
from tollhouse.config.spec import McpEndpointSpec, McpSpec
from tollhouse.core.errors import Problem
from tollhouse.core.handler import Handler
from tollhouse.core.holders import Holders
from tollhouse.core.http import Request, Response
from tollhouse.core.match import Predicate
from tollhouse.endpoints.embed import embed
from tollhouse.endpoints.mcp.bridge import Bridge
from tollhouse.endpoints.mcp.endpoint import McpEndpoint, Server, render
from tollhouse.endpoints.mcp.outside import Outside
from tollhouse.endpoints.mcp.search import Search, Vectors
from tollhouse.endpoints.mcp.session import Sessions
from tollhouse.endpoints.mcp.sse import HttpSse
from tollhouse.endpoints.models import Models
from tollhouse.endpoints.tools import ToolsEndpoint
from tollhouse.gateway.assembly import Assembly, Fixtures, Scopes
from tollhouse.gateway.mcp_servers import McpServers
from tollhouse.gateway.router import Route
from tollhouse.net.client import Client
from tollhouse.net.program import Limits, Programs
from tollhouse.observe.families import Families
from tollhouse.policies.authenticate import metadata_path, resource_metadata
from tollhouse.wire.mcp.catalogue import Cursors
from tollhouse.wire.mcp.overrides import Selection
from tollhouse.wire.mcp.sealed import Seals
from tollhouse.wire.mcp.search import Indexes

__all__ = ["KeptServers", "McpRoutes"]

_GET = frozenset((b"GET", b"HEAD"))


class KeptServers:
    """Sessions and servers, and what goes with them, kept while configurations come and go."""

    def __init__(self, fixtures: Fixtures, holders: Holders) -> None:
        self.holders = holders
        clock, families, state = fixtures.clock, fixtures.families, fixtures.state
        seals = Seals(state.keys)
        self.version = version("tollhouse")
        self.info = msgspec.json.encode({"name": "tollhouse", "version": self.version})
        self.cursors = Cursors(seals)
        self.bridge = Bridge(clock, seals, state=state, holders=holders)
        self.programs = Programs()
        self.indexes = Indexes()
        count = partial(_count, families, "agent")
        self.sessions = Sessions(clock, count=count, state=state, seals=seals, holders=holders)
        self.http_sse: dict[str, HttpSse] = {}  # by path
        # Streams stay open for hours and would use up the connections that calls need: they have their own.
        self._streams = Client(clock)
        self.servers = Servers(
            clock,
            fixtures.client,
            self._streams,
            info=self.info,
            on_change=self.sessions.changed,
            count=partial(_count, families, "server"),
            recovered=partial(_recovered, families),
            records=Records(state, seals, lives=self.bridge.lives) if state.shared else None,
        )

    async def close(self) -> None:
        """Nothing is served any more: end sessions and children."""
        await self.bridge.closed()
        await self.programs.close()
        await self.sessions.closed()
        await self.servers.close()
        await self._streams.close()

    def finish_streams(self) -> None:
        """The worker is leaving: end streams that would stay open for ever."""
        for http_sse in self.http_sse.values():
            http_sse.finish()
        self.sessions.finish_streams()

    async def settled(self) -> None:
        """Return when no other worker will ask this one for anything that it holds."""
        await self.bridge.settled()
        await self.sessions.settled()

    def applied(self, spec: McpSpec | None) -> None:
        """`spec` serves now: let go of what only the one before had."""
        self.servers.retain(spec.servers if spec is not None else {})
        if spec is not None:
            self.sessions.timeout = spec.session_timeout
            self.sessions.limit_each = self.sessions.subscriptions.limit_each = spec.sessions_per_caller
            for http_sse in self.http_sse.values():
                http_sse.limit_each = spec.sessions_per_caller
            self.bridge.timeout = spec.input_timeout
        self.sessions.all_changed()


class McpRoutes:
    """Of one configuration. models: for what tools mean to one of them."""

    def __init__(self, assembly: Assembly, kept: KeptServers, models: Models) -> None:
        self._assembly = assembly
        self._config = assembly.config
        self._kept = kept
        self._models = models
        patience = self._config.mcp.input_timeout if self._config.mcp is not None else 0.0
        self._parts = replace(assembly.parts("mcp"), patience=patience)
        self._resources: dict[str, Scopes] = {}  # by path
        self._outside: dict[str, dict[str, Outside]] = {}  # by path

    def _entrance(
        self, handler: Handler[Request, Response], path: str, scopes: Scopes | None = None
    ) -> Handler[Request, Response]:
        """`handler` as the resource at `path`, which gets metadata of its own."""
        scopes = scopes or self._assembly.top
        self._resources.setdefault(path, scopes)
        return self._assembly.entrance("mcp", handler, scopes, path)

    def routes(self) -> list[Route]:
        spec = self._config.mcp
        if spec is None:
            return []
        made = McpServers(self._assembly, self._parts, spec, self._kept.servers, self._kept.sessions)
        servers = made.all
        routes = self._mcp_route("mcp", spec.path, servers, spec.prefix)
        for n, s in servers.items():
            routes += self._mcp_route(f"mcp/{n}", f"{spec.path}/{n}", {n: s}, "never")
        for virtual in spec.endpoints:
            chosen = made.before(virtual)
            which = virtual.tools
            selection = None if which is None else Selection(which.allow, which.deny)
            routes += self._mcp_route(virtual.path.lstrip("/"), virtual.path, chosen, spec.prefix, selection, virtual)
        routes += self._tools_routes(servers)
        self._assembly.starts.append(partial(self._kept.sessions.outside.serve, self._outside))
        return routes + self._metadata_routes()

    def _tools_routes(self, servers: Mapping[str, Server]) -> list[Route]:
        """The tools as plain REST."""
        spec = self._config.mcp
        assert spec is not None
        if not spec.rest:
            return []
        path = "/tools" if spec.rest is True else spec.rest
        endpoint = ToolsEndpoint(
            path,
            servers,
            cursors=self._kept.cursors,
            bridge=self._kept.bridge,
            admit=self._assembly.admission(self._parts),
            max_body=self._config.server.max_body,
            version=self._kept.version,
            url=self._assembly.public_url,
            authenticated=self._config.authenticate is not None,
        )
        handler = self._entrance(endpoint.handle, path)
        return [Route("tools", (Predicate(path.encode(), exact=False),), handler)]

    def _mcp_route(
        self,
        name: str,
        path: str,
        servers: dict[str, Server],
        prefix: Any,
        selection: Selection | None = None,
        virtual: McpEndpointSpec | None = None,
    ) -> list[Route]:
        spec = self._config.mcp
        assert spec is not None
        search, code = spec.search, spec.code_mode
        if virtual is not None:
            search = virtual.search or search
            code = virtual.code_mode if "code_mode" in virtual.model_fields_set else code
        scopes = self._assembly.top
        if virtual is not None:
            scopes = scopes.below("endpoint", path, virtual)
        guards = {server.name: server.outside for server in servers.values() if server.outside is not None}
        if guards:
            self._outside[path] = guards
        endpoint = McpEndpoint(
            path,
            servers,
            self._kept.sessions,
            self._assembly.fixtures.clock,
            cursors=self._kept.cursors,
            bridge=self._kept.bridge,
            info=self._kept.info,
            prefix=prefix,
            failure=spec.failure,
            admit=self._assembly.admission(self._parts, scopes),
            max_body=self._config.server.max_body,
            selection=selection,
            families=self._assembly.families,
            search=Search(search.mode, search.tools, search.tokens),
            programs=None if code is None else (self._kept.programs, Limits(**code.model_dump())),
            indexes=self._kept.indexes,
            vectors=self._vectors(search.embeddings) if search.embeddings is not None else None,
        )
        handler = self._entrance(endpoint.handle, path, scopes)
        routes = [Route(name, (Predicate(path.encode(), exact=True),), handler, render=render)]
        if spec.legacy_sse:
            http_sse = self._kept.http_sse.get(path)
            if http_sse is None:
                sessions = self._kept.sessions
                http_sse = self._kept.http_sse[path] = HttpSse(
                    path,
                    endpoint.handle,
                    self._assembly.fixtures.clock,
                    end=sessions.end_by_id,
                    max_body=self._config.server.max_body,
                    holders=self._kept.holders,
                )
            self._assembly.starts.append(partial(http_sse.serve, endpoint.handle))
            for below, handle in (("sse", http_sse.stream), ("messages", http_sse.message)):
                predicate = Predicate(f"{path}/{below}".encode(), exact=True)
                handler = self._entrance(handle, f"{path}/sse", scopes)
                routes.append(Route(f"{name}/{below}", (predicate,), handler, render=render))
        return routes

    def _vectors(self, name: str) -> Vectors | None:
        """What tools mean to the model `name`, kept while that model stays the same."""
        model = self._models.find(name)
        if model is None:
            self._assembly.problems.append(Problem(f"there is no model {name!r}", path="mcp.search.embeddings"))
            return None
        spec = next(spec for spec in self._config.models if spec.name == model.name)
        vectors = self._assembly.tenure.get(("vectors", name, spec.fingerprint()), Vectors, Vectors.close)
        self._assembly.starts.append(partial(vectors.use, partial(embed, model, name)))
        return vectors

    def _metadata_routes(self) -> list[Route]:
        spec = self._config.authenticate
        if spec is None:
            return []
        routes = []
        for path, scopes in self._resources.items():
            handler = resource_metadata(spec, self._assembly.resource("mcp", path, scopes))
            if handler is not None:
                predicate = Predicate(metadata_path(path).encode(), exact=True)
                routes.append(Route("resource-metadata", (predicate,), handler, methods=_GET))
        return routes


def _count(families: Families, side: str, revision: str, change: int) -> None:
    families.mcp_sessions.child(revision, side).inc(change)


def _recovered(families: Families, cause: str) -> None:
    families.mcp_recoveries.child(cause).inc()
