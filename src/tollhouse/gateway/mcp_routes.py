"""The routes of MCP: servers as one, each alone, endpoints of chosen tools, their metadata, and tools as plain REST.

Rule: a server is reached by one Upstream however many routes lead to it; what a route adds is which tools are seen
there, and under which names.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from tollhouse.backends.http_tools import HttpTools, as_tool_error
from tollhouse.backends.mcp.integrity import Guard, IntegritySpec, Neighbours, narrowed
from tollhouse.backends.mcp.pins import PinsFile
from tollhouse.backends.mcp.records import Records
from tollhouse.backends.mcp.servers import Server as Reached
from tollhouse.backends.mcp.servers import Servers
from tollhouse.backends.mcp.upstream import Upstream
from tollhouse.config.spec import McpEndpointSpec, McpSpec, ToolSpec
from tollhouse.core.call import Call, Principal, ToolCall
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.core.handler import Handler, Policy
from tollhouse.core.holders import Holders
from tollhouse.core.http import Request, Response
from tollhouse.core.identity import Accounts
from tollhouse.core.match import Predicate
from tollhouse.core.reply import Reply
from tollhouse.endpoints.embed import embed
from tollhouse.endpoints.mcp.bridge import Bridge
from tollhouse.endpoints.mcp.connect import Connect
from tollhouse.endpoints.mcp.endpoint import McpEndpoint, Server, render
from tollhouse.endpoints.mcp.search import Search, Vectors
from tollhouse.endpoints.mcp.session import Sessions
from tollhouse.endpoints.mcp.sse import HttpSse
from tollhouse.endpoints.models import Models
from tollhouse.endpoints.tools import ToolsEndpoint
from tollhouse.gateway.assembly import Assembly, Fixtures, Scopes, call_chain
from tollhouse.gateway.exchangers import bearing, upstream_uri
from tollhouse.gateway.router import Route
from tollhouse.net.client import Client
from tollhouse.net.program import Limits, Programs
from tollhouse.observe.families import Families
from tollhouse.policies import CALL
from tollhouse.policies.alternate import Alternate, vouched
from tollhouse.policies.authenticate import (
    ACCESS,
    REQUIRES,
    may_use,
    metadata_path,
    resource_metadata,
    scopes_of_layers,
)
from tollhouse.policies.authorize import AUTHORIZE, Authorize, described, permitted, unasked
from tollhouse.policies.base import Parts
from tollhouse.policies.exchange import EXCHANGE, exchange
from tollhouse.policies.guardrails.listing import descriptions
from tollhouse.policies.guardrails.policy import GUARD_ANSWERS, GUARD_REQUESTS
from tollhouse.policies.identity_headers import IDENTITY
from tollhouse.policies.limits import LIMITS
from tollhouse.policies.retry import RETRY
from tollhouse.wire.mcp.catalogue import Cursors
from tollhouse.wire.mcp.names import split
from tollhouse.wire.mcp.overrides import Argument, Override, Overrides, Selection
from tollhouse.wire.mcp.pins import BadPins
from tollhouse.wire.mcp.sealed import Seals
from tollhouse.wire.mcp.search import Indexes

__all__ = ["KeptServers", "McpRoutes"]

_GET = frozenset((b"GET", b"HEAD"))
_INNERMOST = CALL[CALL.index(RETRY) + 1 :]


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
        servers: dict[str, Server] = {}
        neighbours = Neighbours()
        for name, one in spec.servers.items():
            with self._assembly.finding(f"mcp.servers.{name}"):
                upstream = self._kept.servers.get(name, one)
                neighbours.join(name, upstream)
                if isinstance(upstream, HttpTools):
                    self._assembly.starts.append(upstream.start)
                guard = self._tool_guard(name, narrowed(spec.integrity, one.integrity), upstream, neighbours)
                last = upstream.handle if guard is None else guard.handle
                self._assembly.starts.append(partial(_examining, upstream, guard is not None))
                scopes = self._assembly.top.below("server", name, one)
                policies, innermost, rules = self._tool_floor(scopes, name, upstream, None, servers)
                end = call_chain(innermost, last)
                exchanges = exchange(scopes.layers(EXCHANGE), self._parts_for(scopes, name))
                self._assembly.starts.append(partial(bearing, upstream, exchanges))
                accounts = None if self._parts.accounts is None else self._parts.accounts(name)
                tools = {}
                lasts = {}
                guards = {}
                looking = {}
                layers = [*scopes.layers(AUTHORIZE)]
                for tool, own in one.tools.items():
                    below = scopes.below("tool", f"{name}/{tool}", own)
                    more, innermost, own_rules = self._tool_floor(below, name, upstream, own, servers)
                    lasts[tool] = call_chain(innermost, last)
                    tools[tool] = call_chain(more, lasts[tool])
                    if own_rules is not None:
                        guards[tool] = own_rules
                    layers += below.layers(AUTHORIZE)
                    looking[tool] = below.layers(GUARD_ANSWERS)
                chain = call_chain(policies, end)
                of_tasks = {
                    tool: call_chain(own.policies((GUARD_REQUESTS, GUARD_ANSWERS), self._parts), chain)
                    for tool, own in (
                        (tool, Scopes(("tool", f"{name}/{tool}", own))) for tool, own in one.tools.items()
                    )
                    if own.layers(GUARD_ANSWERS)
                }
                visible = _visible(rules, guards, bounded=self._assembly.bounded)
                shown = _overrides(one.tools)
                servers[name] = Server(
                    name,
                    upstream,
                    chain,
                    tools=tools,
                    permitted=visible,
                    shown=rules.shown if rules is not None and rules.asks else None,
                    bridged=getattr(one, "bridge", True),
                    overrides=shown,
                    guard=guard,
                    described=described(layers),
                    last=end,
                    lasts=lasts,
                    of_tasks=of_tasks,
                    vouches=bool(scopes.policies((IDENTITY, EXCHANGE), self._parts_for(scopes, name))),
                    connect=None if accounts is None else Connect(name, accounts.host),
                    looked_at=descriptions(name, scopes.layers(GUARD_ANSWERS), looking, self._parts),
                )
                if accounts is not None:
                    self._assembly.starts.append(partial(_changing, accounts, self._kept.sessions, upstream))
                self._assembly.starts.append(partial(_asked_again, upstream, servers[name]))
        routes = self._mcp_route("mcp", spec.path, servers, spec.prefix)
        for n, s in servers.items():
            routes += self._mcp_route(f"mcp/{n}", f"{spec.path}/{n}", {n: s}, "never")
        for virtual in spec.endpoints:
            chosen = {name: servers[name] for name in virtual.servers if name in servers}
            which = virtual.tools
            selection = None if which is None else Selection(which.allow, which.deny)
            routes += self._mcp_route(virtual.path.lstrip("/"), virtual.path, chosen, spec.prefix, selection, virtual)
        routes += self._tools_routes(servers)
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

    def _tool_floor(
        self,
        scopes: Scopes,
        name: str,
        upstream: Reached,
        own: ToolSpec | None,
        servers: Mapping[str, Server],
    ) -> tuple[list[Policy[Call, Reply]], list[Policy[Call, Reply]], Authorize | None]:
        """The policies of a server's chain, or of one of its tools, outermost first: those that a call passes once, and
        those that it passes as often as the server is asked. And what decides for listings."""
        policies: list[Policy[Any, Any]] = self._assembly.outermost
        if isinstance(upstream, HttpTools):
            policies.append(as_tool_error)
        policies += scopes.policies(CALL[: CALL.index(RETRY)], self._parts)
        if own is not None and own.idempotent is not None:
            policies.append(vouched(own.idempotent))
        if own is not None and own.alternate is not None:
            policies.append(self._alternate(own.alternate, servers).handle)
        parts = self._parts_for(scopes, name)
        policies += scopes.policies((RETRY,), parts)
        return policies, scopes.policies(_INNERMOST, parts), permitted(scopes.layers(AUTHORIZE), self._parts)

    def _parts_for(self, scopes: Scopes, server: str) -> Parts:
        """What policies before one server are made with, as far as they are about that."""
        mcp = self._config.mcp
        assert mcp is not None
        needed = tuple(sorted(scopes_of_layers(scopes.layers(REQUIRES))))
        return replace(self._parts, server=server, upstream=upstream_uri(mcp.servers[server]), scopes=needed)

    def _alternate(self, name: str, servers: Mapping[str, Server]) -> Alternate:
        """Another server's tool, behind its own rules and limits; those of all have been asked already."""
        mcp = self._config.mcp
        assert mcp is not None
        server, tool = split(name)
        spec = mcp.servers[server]  # `config.checks` has seen to it
        scopes = self._assembly.top.below("server", server, spec)
        narrow = Scopes(("server", server, spec))
        own = spec.tools.get(tool)
        if own is not None:
            where = f"{server}/{tool}"
            scopes, narrow = scopes.below("tool", where, own), narrow.below("tool", where, own)
        approvals = unasked(scopes.layers(AUTHORIZE), self._parts)  # its agent waits for the first tool's answer
        policies = [
            *scopes.policies((ACCESS, REQUIRES, AUTHORIZE), self._parts),
            *narrow.policies((LIMITS,), self._parts),
            *narrow.policies((GUARD_REQUESTS,), self._parts),
            *((approvals,) if approvals is not None else ()),
            *scopes.policies((RETRY,), self._parts_for(scopes, server)),
        ]

        def last(call: ToolCall) -> Awaitable[Reply]:
            return servers[server].again(call)  # it may stand below in the configuration

        upstream = self._kept.servers.get(server, spec)
        made = partial(Alternate, server, tool, call_chain(policies, last), last=last, new=lambda: upstream.new)
        shown = _overrides(spec.tools)
        return made() if shown is None else made(fitted=partial(shown.fitted, tool))

    def _tool_guard(
        self, name: str, spec: IntegritySpec | None, upstream: Reached, neighbours: Neighbours
    ) -> Guard | None:
        """What sees to it that a server's tools are those that were approved."""
        if spec is None or spec.is_off:
            return None
        families = self._assembly.families
        return Guard(
            name,
            spec,
            upstream,
            neighbours,
            self._pins(Path(spec.pins)) if spec.mode != "off" else None,
            count=lambda verdict, tools: families.integrity_tools.child(name, verdict).set(tools),
            refused=lambda verdict: families.integrity_refusals.child(name, verdict).inc(),
            found=lambda rule: families.integrity_findings.child(name, rule).inc(),
        )

    def _pins(self, path: Path) -> PinsFile:
        if not path.parent.is_dir():
            where = f"there is no directory {str(path.parent)!r} for the pins file {path.name!r}"
            raise ConfigError([Problem(where, path="mcp.integrity")])
        changed = partial(self._kept.sessions.changed, method="notifications/tools/list_changed")
        try:
            made = partial(PinsFile, path, self._assembly.fixtures.clock, changed)
            pins = self._assembly.tenure.get(("pins", path), made, PinsFile.close)
        except BadPins as error:
            raise ConfigError([Problem(f"the pins file {str(path)!r}: {error}", path="mcp.integrity")]) from None
        self._assembly.starts.append(pins.start)
        return pins

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
            admit=self._assembly.admission(self._parts),
            max_body=self._config.server.max_body,
            selection=selection,
            families=self._assembly.families,
            search=Search(search.mode, search.tools, search.tokens),
            programs=None if code is None else (self._kept.programs, Limits(**code.model_dump())),
            indexes=self._kept.indexes,
            vectors=self._vectors(search.embeddings) if search.embeddings is not None else None,
        )
        scopes = self._assembly.top
        if virtual is not None:
            scopes = scopes.below("endpoint", path, virtual)
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


def _visible(
    guard: Authorize | None, tools: dict[str, Authorize], *, bounded: bool
) -> Callable[[ToolCall], bool] | None:
    """What a server's lists show: the server's rules, and for tools with rules of their own those. bounded: there are
    keys that are for some servers and tools only."""
    if bounded:
        rules = _visible(guard, tools, bounded=False)
        return may_use if rules is None else lambda probe: may_use(probe) and rules(probe)
    if not tools:
        return None if guard is None else guard.permitted

    def permitted(probe: ToolCall) -> bool:
        decides = tools.get(probe.name, guard) if probe.method == "tools/call" else guard
        return decides is None or decides.permitted(probe)

    return permitted


def _changing(accounts: Accounts, sessions: Sessions, upstream: Reached) -> None:
    """Have the agents of a user told, who has another account at a server or none any more."""

    def changed(whose: Callable[[Principal], bool]) -> None:
        if isinstance(upstream, Upstream):  # what others have is the same for everybody
            upstream.forget(whose)
            sessions.changes.changed_for(upstream.name, whose)

    if accounts.changed is None:  # those of another issuer or client, which are kept apart: nobody has any yet
        changed(lambda principal: True)
    accounts.changed = changed


def _asked_again(upstream: Reached, server: Server) -> None:
    if isinstance(upstream, Upstream):
        upstream.again = server.again


def _examining(upstream: Reached, wanted: bool) -> None:
    upstream.examines = wanted


def _overrides(tools: Mapping[str, ToolSpec]) -> Overrides | None:
    """How a server's tools are shown, None where that is as they are."""
    made = {
        name: Override(
            own.name or "",
            own.description or "",
            {
                argument: Argument(
                    one.rename or "",
                    one.description or "",
                    one.hidden,
                    msgspec.json.encode(one.default) if "default" in one.model_fields_set else b"",
                )
                for argument, one in own.arguments.items()
            },
        )
        for name, own in tools.items()
        if own.name or own.description or own.arguments
    }
    return Overrides(made) if made else None


def _count(families: Families, side: str, revision: str, change: int) -> None:
    families.mcp_sessions.child(revision, side).inc(change)


def _recovered(families: Families, cause: str) -> None:
    families.mcp_recoveries.child(cause).inc()
