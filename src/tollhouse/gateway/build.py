"""Build: a Config becomes the request floor that serves it. The only place that constructs.

Rule: what is built here is never changed afterwards. What must outlive a configuration is asked of the Tenure by a key
that holds everything it was made from; what has not changed since the configuration before is taken over as it is.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from tollhouse.backends.http import HttpBackend
from tollhouse.backends.http_tools import HttpTools, as_tool_error
from tollhouse.backends.mcp_integrity import Guard, IntegritySpec, Neighbours, narrowed
from tollhouse.backends.mcp_pins import PinsFile
from tollhouse.backends.mcp_records import Records as McpRecords
from tollhouse.backends.mcp_servers import Server as Reached
from tollhouse.backends.mcp_servers import Servers
from tollhouse.backends.native import NativeBackend
from tollhouse.backends.pool import Pool, pool
from tollhouse.backends.provider import Provider
from tollhouse.backends.providers import provider
from tollhouse.backends.providers.remote import OpenSpec
from tollhouse.config.spec import Config, McpEndpointSpec, ModelSpec, RouteSpec, ToolSpec
from tollhouse.core.call import Call, Context, ModelCall, Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Problem, Reason
from tollhouse.core.expr import Expression
from tollhouse.core.forwarded import Forwarding
from tollhouse.core.handler import Handler, Policy, compose
from tollhouse.core.http import Ending, Headers, Request, Response
from tollhouse.core.match import Predicate
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Spec
from tollhouse.endpoints.embed import embed
from tollhouse.endpoints.google_key import key_of_query
from tollhouse.endpoints.llm import LLMEndpoint, Locate, PathEndpoint
from tollhouse.endpoints.mcp import McpEndpoint, Server
from tollhouse.endpoints.mcp import render as render_mcp
from tollhouse.endpoints.mcp_bridge import Bridge
from tollhouse.endpoints.mcp_search import Search, Vectors
from tollhouse.endpoints.mcp_session import Sessions
from tollhouse.endpoints.mcp_sse import HttpSse
from tollhouse.endpoints.models import Model, Models, ModelsEndpoint
from tollhouse.endpoints.native import NativeEndpoint
from tollhouse.endpoints.realtime import RealtimeEndpoint, key_of_protocol
from tollhouse.endpoints.realtime_session import GRANTED, Begin, Session
from tollhouse.endpoints.tools import ToolsEndpoint
from tollhouse.gateway.keep import Keep, Tenure
from tollhouse.gateway.operate import Operations
from tollhouse.gateway.router import Route, Router
from tollhouse.gateway.state import check_state
from tollhouse.ledger.catalogue import Catalogue
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.prices import Origin, Prices
from tollhouse.net.client import Client, OriginError
from tollhouse.net.program import Limits, Programs
from tollhouse.observe.access_log import AccessLog
from tollhouse.observe.connections import Connections
from tollhouse.observe.families import ExtraLabels, Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies import CALL, REQUEST
from tollhouse.policies.alternate import Alternate, vouched
from tollhouse.policies.authenticate import resource_metadata
from tollhouse.policies.authorize import AUTHORIZE, Authorize, permitted
from tollhouse.policies.base import Entrance, Kind, Layer, Level, Parts
from tollhouse.policies.limits import LIMITS
from tollhouse.policies.meter import Meter
from tollhouse.policies.record import Record
from tollhouse.policies.retry import RETRY
from tollhouse.store.base import State
from tollhouse.store.memory import MemoryState
from tollhouse.wire.llm import (
    CHAT,
    CONVERSE,
    COUNT_TOKENS,
    GEMINI,
    MESSAGES,
    OPENAI_OTHERS,
    REALTIME,
    RERANK,
    RESPONSES,
)
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.native import NATIVE, NATIVE_ANTHROPIC
from tollhouse.wire.llm.vocabulary import Vocabularies
from tollhouse.wire.mcp.catalogue import Cursors
from tollhouse.wire.mcp.names import split
from tollhouse.wire.mcp.overrides import Argument, Override, Overrides, Selection
from tollhouse.wire.mcp.pins import BadPins
from tollhouse.wire.mcp.sealed import Seals
from tollhouse.wire.mcp.search import Indexes

__all__ = ["Builder", "Fixtures", "validate"]

_OTHERS = tuple(dialect for dialect in OPENAI_OTHERS if dialect is not RERANK)
_LLM_ROUTES: tuple[tuple[str, Dialect, tuple[bytes, ...]], ...] = (
    ("chat", CHAT, (b"/v1/chat/completions", b"/openai/v1/chat/completions")),
    ("responses", RESPONSES, (b"/v1/responses", b"/openai/v1/responses", b"/openai/responses")),
    ("messages", MESSAGES, (b"/v1/messages",)),
    *((dialect.operation, dialect, (b"/v1" + dialect.path, b"/openai/v1" + dialect.path)) for dialect in _OTHERS),
    ("rerank", RERANK, (b"/v1/rerank", b"/v2/rerank", b"/rerank")),
    ("count_tokens", COUNT_TOKENS, (b"/v1/messages/count_tokens",)),
)
"""The model stands in the body. Clients for Azure ask below /openai."""

_REALTIME = (b"/v1/realtime", b"/openai/v1/realtime", b"/openai/realtime")
_DEPLOYMENTS = b"/openai/deployments"
_BEDROCK = b"/model"
_GEMINI = (b"/v1beta/models", b"/v1/models", b"/v1alpha/models")
_OPENAI_MODELS = b"/v1/models"  # and Anthropic's
_SEGMENT = re.compile(r"[A-Za-z0-9_-]+")
_METADATA = b"/.well-known/oauth-protected-resource"
_POST = frozenset((b"POST",))
_GET = frozenset((b"GET", b"HEAD"))


@dataclass(frozen=True, slots=True)
class Fixtures:
    """What a process has once, whatever its configuration. listeners: (name, protocol) of each."""

    clock: Clock
    families: Families
    client: Client
    state: State
    operations: Operations
    journal: Journal | None = None
    access_log: AccessLog | None = None
    listeners: tuple[tuple[str, str], ...] = ()


_BuiltModel = tuple[ModelSpec, Model, Authorize | None, Pool]


class _Scopes:
    """The scopes a chain stands in, widest first: (level, name, Spec)."""

    __slots__ = ("_scopes",)

    def __init__(self, *scopes: tuple[Level, str, Any]) -> None:
        self._scopes = scopes

    def below(self, level: Level, name: str, spec: Any) -> "_Scopes":
        return _Scopes(*self._scopes, (level, name, spec))

    def layers(self, kind: Kind[Any, Any]) -> tuple[Layer, ...]:
        found = []
        for level, name, scope in self._scopes:
            spec = getattr(scope, kind.name, None) if level in kind.levels else None
            if spec is not None:
                found.append(Layer(level, name, spec))
        return tuple(found)

    def policies(self, kinds: Iterable[Kind[Any, Any]], parts: Parts) -> list[Policy[Any, Any]]:
        made = (kind.make(self.layers(kind), parts) for kind in kinds)
        return [policy for policy in made if policy is not None]


class Builder:
    """Builds one request floor after another for a process. `close` ends what it keeps between them."""

    def __init__(self, fixtures: Fixtures) -> None:
        self._fixtures = fixtures
        clock, families = fixtures.clock, fixtures.families
        self._info = msgspec.json.encode({"name": "tollhouse", "version": version("tollhouse")})
        self._seals = Seals(fixtures.state.keys)
        self._cursors = Cursors(self._seals)
        self._bridge = Bridge(
            clock,
            self._seals,
            state=fixtures.state,
        )
        self._programs = Programs()
        self._indexes = Indexes()
        self._sessions = Sessions(
            clock, count=partial(_count, families, "agent"), state=fixtures.state, seals=self._seals
        )
        self._http_sse: dict[str, HttpSse] = {}  # by path
        # Streams stay open for hours and would use up the connections that calls need: they have their own.
        self._streams = Client(clock)
        self._servers = Servers(
            clock,
            fixtures.client,
            self._streams,
            info=self._info,
            on_change=self._sessions.changed,
            count=partial(_count, families, "server"),
            recovered=partial(_recovered, families),
            records=McpRecords(fixtures.state, self._seals) if fixtures.state.shared else None,
        )
        self._open: set[Session] = set()  # realtime sessions
        self._starts: list[Callable[[], None]] = []  # of what the configuration being built brings
        self._catalogue: Catalogue | None = None
        self._vocabularies: Vocabularies | None = None
        self._before: Config | None = None
        self._models: dict[str, _BuiltModel] = {}

    async def close(self) -> None:
        """Nothing is served any more: end MCP sessions and children."""
        await self._bridge.closed()
        await self._programs.close()
        await self._sessions.closed()
        await self._servers.close()
        await self._streams.close()

    def finish_streams(self) -> None:
        """The worker is leaving: end streams that would stay open for ever."""
        for http_sse in self._http_sse.values():
            http_sse.finish()
        self._sessions.finish_streams()

    async def settled(self) -> None:
        """Return when no other worker will ask this one for anything that it holds."""
        await self._bridge.settled()
        await self._sessions.settled()

    def close_sessions(self) -> None:
        """The time is up: tell realtime sessions, and end them."""
        for session in tuple(self._open):
            session.leave()

    def build(self, config: Config, tenure: Tenure) -> Handler[Request, Response]:
        """The request floor of `config`. Raises ConfigError with every problem found."""
        self._starts = []
        try:
            return _Build(self, self._fixtures, config, tenure).floor()
        except BaseException:
            self._before, self._models = None, {}  # made with parts that end with `tenure`
            raise

    def applied(self, config: Config) -> None:
        """`config`, the last one that was built, serves now: begin what it brings, let go of what only the one before
        had."""
        starts, self._starts = self._starts, []
        for start in starts:
            start()
        mcp = config.mcp
        self._servers.retain(mcp.servers if mcp is not None else {})
        if mcp is not None:
            self._sessions.timeout = mcp.session_timeout
            self._sessions.limit_each = mcp.sessions_per_caller
            self._bridge.timeout = mcp.input_timeout
        self._sessions.all_changed()

    @property
    def catalogue(self) -> Catalogue:
        """What providers ask for their models; read from its file when first needed."""
        if self._catalogue is None:
            self._catalogue = Catalogue.load()
        return self._catalogue

    @property
    def vocabularies(self) -> Vocabularies | None:
        """To count tokens with; loaded when first needed, which takes half a second."""
        if self._vocabularies is None:
            self._vocabularies = Vocabularies.load()
        return self._vocabularies

    def reusable(self, config: Config) -> dict[str, _BuiltModel]:
        """Models of the configuration before, if nothing that all models share has changed."""
        before, self._before = self._before, config
        if before is None or _shared(before) != _shared(config):
            self._models = {}
        return self._models

    def remember(self, models: dict[str, _BuiltModel]) -> None:
        self._models = models


class _Build:
    """One run of the builder."""

    def __init__(self, builder: Builder, fixtures: Fixtures, config: Config, tenure: Tenure) -> None:
        self._builder = builder
        self._fixtures = fixtures
        self._config = config
        self._tenure = tenure
        self._problems: list[Problem] = []
        labels = [
            (name, Expression(text, late=True).evaluate) for name, text in config.telemetry.metrics.labels.items()
        ]
        self._families = Families(fixtures.families.metrics, ExtraLabels(labels)) if labels else fixtures.families
        self._top = _Scopes(("top", "", config))
        self._public_url = config.server.public_url or _own_url(fixtures)
        self._forwarding = Forwarding(config.server.trusted_proxies)
        self._parts = Parts(
            clock=fixtures.clock,
            families=self._families,
            counter=fixtures.state.counter,
            client=fixtures.client,
            shared=tenure.get,
            public_url=self._public_url,
            forwarding=self._forwarding,
        )
        self._prices: Prices | None = None
        if config.models:
            self._price_models()
        self._meter = Meter(self._families, fixtures.journal, self._prices)
        self._found_models = Models(())

    def floor(self) -> Handler[Request, Response]:
        routes = [*self._own_routes(), *self._model_routes(), *self._native_routes()]
        routes += [*self._mcp_routes(), *self._service_routes()]
        router: Handler[Request, Response] | None = None
        with self._finding():
            router = Router(routes).handle
        if self._problems or router is None:
            raise ConfigError(self._problems)
        return compose((self._record().handle,), router)

    # ---- problems
    @contextmanager
    def _finding(self, path: str = "") -> Iterator[None]:
        """Collect what is wrong, so that the rest is looked at as well."""
        try:
            yield
        except ConfigError as error:
            self._problems.extend(error.problems)
        except OriginError as error:
            self._problems.append(Problem(str(error), path=path))

    def _price_models(self) -> None:
        config = self._config
        origins = {
            name: Origin(spec.kind, str(getattr(spec, "base_url", ""))) for name, spec in config.providers.items()
        }
        with self._finding():
            self._prices = Prices(self._builder.catalogue, origins, config.prices)

    # ---- the request floor
    def _record(self) -> Record:
        spec = self._config.telemetry.access_log
        fields = [(name, Expression(text, late=True).evaluate) for name, text in spec.fields.items()] if spec else []
        forwarding = self._forwarding
        trusted = (lambda request: forwarding.trusts(request.peer)) if self._config.server.trusted_proxies else None
        binds = {name: Connections.labels(name, protocol)[:3] for name, protocol in self._fixtures.listeners}
        return Record(
            self._families,
            self._fixtures.access_log,
            binds=binds,
            trusted=trusted,
            fields=fields,
            prices=self._prices,
        )

    def _entrance(
        self, entrance: Entrance, handler: Handler[Request, Response], scopes: _Scopes | None = None
    ) -> Handler[Request, Response]:
        parts = replace(self._parts, entrance=entrance)
        return compose((scopes or self._top).policies(REQUEST, parts), handler)

    def _own_routes(self) -> list[Route]:
        operations = self._fixtures.operations
        return [
            Route("status", (Predicate(b"/status", exact=True),), operations.status, methods=_GET),
            Route("ready", (Predicate(b"/ready", exact=True),), operations.readiness, methods=_GET),
        ]

    # ---- models
    def _model_routes(self) -> list[Route]:
        config = self._config
        if not config.models:
            return []
        models, guards = self._all_models()
        self._found_models = models

        def visible(principal: Principal | None, name: str) -> bool:
            model = models.find(name)
            guard = None if model is None else guards.get(model.name)
            return guard is None or guard.permitted(_probe(principal, name))

        admit = self._admission(replace(self._parts, entrance="llm"))
        routes = []
        for name, dialect, paths in _LLM_ROUTES:
            endpoint = LLMEndpoint(dialect, models, visible, max_body=config.server.max_body, admit=admit)
            handler = self._entrance("llm", endpoint.handle)
            exact = tuple(Predicate(path, exact=True) for path in paths)
            routes.append(Route(name, exact, handler, render=endpoint.render, methods=_POST))

        def by_path(name: str, prefixes: tuple[bytes, ...], *read: tuple[Dialect, Locate]) -> Route:
            endpoints = []
            for dialect, locate in read:
                limit = config.server.max_body
                endpoint = LLMEndpoint(dialect, models, visible, max_body=limit, locate=locate, admit=admit)
                endpoints.append((locate, endpoint))
            several = PathEndpoint(endpoints)
            handler = self._entrance("llm", several.handle)
            if prefixes is _GEMINI:
                handler = compose((key_of_query,), handler)
            below = tuple(Predicate(prefix, exact=False, methods=_POST) for prefix in prefixes)
            return Route(name, below, handler, render=several.render, methods=_POST)

        azure = [(dialect, partial(_deployment, dialect.path)) for dialect in (CHAT, *_OTHERS)]
        routes.append(by_path("azure", (_DEPLOYMENTS,), *azure))
        routes.append(by_path("converse", (_BEDROCK,), (CONVERSE, CONVERSE.read_target)))
        routes.append(by_path("gemini", _GEMINI, *((dialect, dialect.read_target) for dialect in GEMINI)))
        realtime = RealtimeEndpoint(
            REALTIME, models, visible, self._turns(), self._fixtures.clock, self._builder._open, admit=admit
        )
        handler = compose((key_of_protocol,), self._entrance("llm", realtime.handle))
        exact = tuple(Predicate(path, exact=True) for path in _REALTIME)
        routes.append(Route("realtime", exact, handler, render=realtime.render, methods=_GET))
        for path in _GEMINI:
            listing = ModelsEndpoint(models, visible, admit=admit, path=path, google=path != _OPENAI_MODELS)
            both = (Predicate(path, exact=True), Predicate(path, exact=False))
            handler = compose((key_of_query,), self._entrance("llm", listing.handle))
            routes.append(Route("models", both, handler, render=listing.render, methods=_GET))
        return routes

    def _native_routes(self) -> list[Route]:
        """Paths of providers that are opened as they are."""
        routes = []
        parts = replace(self._parts, entrance="llm")
        for name, spec in self._config.providers.items():
            if not isinstance(spec, OpenSpec) or not spec.passthrough:
                continue
            where = f"providers.{name}"
            if _SEGMENT.fullmatch(name) is None:
                message = "the name stands in a path: it has letters, digits, - and _ where `passthrough` is true"
                self._problems.append(Problem(message, path=where))
                continue
            with self._finding(where):
                made = self._provider(name, spec)
                label = f"providers/{name}"
                prefix = b"/" + label.encode("ascii")
                # A retry is not for what may do anything.
                policies = [self._meter.handle, *self._top.policies((AUTHORIZE, LIMITS), parts)]
                endpoint = NativeEndpoint(
                    prefix,
                    label,
                    _chain(policies, NativeBackend(made, prefix).handle),
                    {face.dialect.path: face.dialect for face in made.faces.values() if face.names_model},
                    NATIVE_ANTHROPIC if made.kind == "anthropic" else NATIVE,
                    max_body=self._config.server.max_body,
                )
                handler = self._entrance("llm", endpoint.handle)
                routes.append(Route(label, (Predicate(prefix, exact=False),), handler, render=endpoint.render))
        return routes

    def _all_models(self) -> tuple[Models, dict[str, Authorize]]:
        providers = self._providers()
        if self._problems:  # a model's target may be one of the providers that could not be made
            return Models(()), {}
        known = self._builder.reusable(self._config)
        parts = replace(self._parts, entrance="llm")
        plain: tuple[list[Policy[Call, Reply]], Authorize | None] | None = None
        built: dict[str, _BuiltModel] = {}
        for spec in self._config.models:
            have = known.get(spec.name)
            if have is not None and (have[0] is spec or have[0] == spec):
                built[spec.name] = have
                self._check(have[3])
                continue
            with self._finding(f"models.{spec.name}"):
                if _bare(spec):  # thousands of models mostly differ in their targets only: they share their policies
                    plain = plain or self._call_floor(self._top, parts)
                    policies, guard = plain
                else:
                    policies, guard = self._call_floor(self._top.below("model", spec.name, spec), parts)
                retried = partial(_retried, self._fixtures.families)
                targets = pool(spec.name, spec, providers, parts.clock, retried=retried)
                model = Model(spec.name, _chain(policies, targets.handle), aliases=spec.aliases)
                built[spec.name] = (spec, model, guard, targets)
                self._check(targets)
        self._builder.remember(built)
        guards = {name: guard for name, (_, _, guard, _) in built.items() if guard is not None}
        return Models(model for _, model, _, _ in built.values()), guards

    def _check(self, targets: Pool) -> None:
        """Active checks of a model's targets begin when the configuration serves, and end with the last that has it."""
        if targets.checked:
            self._tenure.get(("checks", targets), partial(self._checking, targets), Pool.close)

    def _checking(self, targets: Pool) -> Pool:
        self._builder._starts.append(targets.start)
        return targets

    def _call_floor(self, scopes: _Scopes, parts: Parts) -> tuple[list[Policy[Call, Reply]], Authorize | None]:
        """The policies of a call chain, outermost first, and what decides for listings."""
        guard = permitted(scopes.layers(AUTHORIZE), parts)
        return [self._meter.handle, *scopes.policies(CALL, parts)], guard

    def _turns(self) -> Callable[[str], Begin]:
        """The chain that each answer of a realtime session passes, by the model's name: it is metered and limited."""
        parts = replace(self._parts, entrance="llm")

        def chain(scopes: _Scopes) -> Begin:
            return compose([self._meter.handle, *scopes.policies((LIMITS,), parts)], _granted)

        usual = chain(self._top)
        limited = [spec for spec in self._config.models if spec.limits]
        own = {spec.name: chain(self._top.below("model", spec.name, spec)) for spec in limited}
        return lambda name: own.get(name, usual)

    def _admission(self, parts: Parts) -> Callable[[Call], Awaitable[None]] | None:
        """What a request that reaches no model and no server must pass all the same: the top's rules and limits."""
        policies = self._top.policies((AUTHORIZE, LIMITS), parts)
        if not policies:
            return None
        chain: Handler[Call, Reply] = compose(policies, _nothing)

        async def admit(call: Call) -> None:
            reply = await chain(call)
            reply.close(Ending(200, Reason.DIRECT_RESPONSE, 0))

        return admit

    def _providers(self) -> dict[str, Provider]:
        """All that can be made; what is wrong with the others is noted."""
        found: dict[str, Provider] = {}
        for name, spec in self._config.providers.items():
            with self._finding(f"providers.{name}"):
                found[name] = self._provider(name, spec)
        return found

    def _provider(self, name: str, spec: Any) -> Provider:
        key = ("provider", name, spec.fingerprint(), self._config.estimates)
        return self._tenure.get(key, partial(self._new_provider, name, spec), Provider.close)

    def _new_provider(self, name: str, spec: Spec) -> Provider:
        made = provider(name, spec, self._fixtures.client, self._fixtures.clock)
        if self._config.estimates == "bpe":
            made.vocabularies = self._builder.vocabularies
        self._builder._starts.append(made.start)
        return made

    # ---- MCP
    def _mcp_routes(self) -> list[Route]:
        spec = self._config.mcp
        if spec is None:
            return []
        servers: dict[str, Server] = {}
        lasts: dict[str, Handler[ToolCall, Reply]] = {}  # what stands at the end of each server's chains
        neighbours = Neighbours()
        for name, one in spec.servers.items():
            with self._finding(f"mcp.servers.{name}"):
                upstream = self._builder._servers.get(name, one)
                neighbours.join(name, upstream)
                if isinstance(upstream, HttpTools):
                    self._builder._starts.append(upstream.start)
                guard = self._tool_guard(name, narrowed(spec.integrity, one.integrity), upstream, neighbours)
                last = upstream.handle if guard is None else guard.handle
                self._builder._starts.append(partial(_examining, upstream, guard is not None))
                lasts[name] = last
                scopes = self._top.below("server", name, one)
                policies, rules = self._tool_floor(scopes, upstream, None, lasts)
                tools = {}
                guards = {}
                for tool, own in one.tools.items():
                    below = scopes.below("tool", f"{name}/{tool}", own)
                    more, own_rules = self._tool_floor(below, upstream, own, lasts)
                    tools[tool] = _chain(more, last)
                    if own_rules is not None:
                        guards[tool] = own_rules
                chain = _chain(policies, last)
                visible = _visible(rules, guards)
                shown = _overrides(one.tools)
                servers[name] = Server(
                    name,
                    upstream,
                    chain,
                    tools=tools,
                    permitted=visible,
                    bridged=getattr(one, "bridge", True),
                    overrides=shown,
                    guard=guard,
                )
        routes = self._mcp_route("mcp", spec.path, servers, spec.prefix)
        for n, s in servers.items():
            routes += self._mcp_route(f"mcp/{n}", f"{spec.path}/{n}", {n: s}, "never")
        for virtual in spec.endpoints:
            chosen = {name: servers[name] for name in virtual.servers if name in servers}
            which = virtual.tools
            selection = None if which is None else Selection(which.allow, which.deny)
            routes += self._mcp_route(virtual.path.lstrip("/"), virtual.path, chosen, spec.prefix, selection, virtual)
        routes += self._metadata_routes([route.predicates[0].path.decode() for route in routes])
        return routes + self._tools_routes(servers)

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
            cursors=self._builder._cursors,
            bridge=self._builder._bridge,
            admit=self._admission(replace(self._parts, entrance="mcp")),
            max_body=self._config.server.max_body,
            version=version("tollhouse"),
            url=self._public_url,
            authenticated=self._config.authenticate is not None,
        )
        handler = self._entrance("mcp", endpoint.handle)
        return [Route("tools", (Predicate(path.encode(), exact=False),), handler)]

    def _tool_floor(
        self,
        scopes: _Scopes,
        upstream: Reached,
        own: ToolSpec | None,
        lasts: Mapping[str, Handler[ToolCall, Reply]],
    ) -> tuple[list[Policy[Call, Reply]], Authorize | None]:
        """`_call_floor` of a server, or of one of its tools, with what only tools have."""
        parts = replace(self._parts, entrance="mcp")
        policies: list[Policy[Any, Any]] = [self._meter.handle]
        if isinstance(upstream, HttpTools):
            policies.append(as_tool_error)
        policies += scopes.policies(CALL[: CALL.index(RETRY)], parts)
        if own is not None and own.idempotent is not None:
            policies.append(vouched(own.idempotent))
        if own is not None and own.alternate is not None:
            policies.append(self._alternate(own.alternate, lasts).handle)
        policies += scopes.policies(CALL[CALL.index(RETRY) :], parts)
        return policies, permitted(scopes.layers(AUTHORIZE), parts)

    def _alternate(self, name: str, lasts: Mapping[str, Handler[ToolCall, Reply]]) -> Alternate:
        """Another server's tool, behind its own rules and limits; those of all have been asked already."""
        mcp = self._config.mcp
        assert mcp is not None
        server, tool = split(name)
        spec = mcp.servers[server]  # `config.checks` has seen to it
        parts = replace(self._parts, entrance="mcp")
        scopes = self._top.below("server", server, spec)
        narrow = _Scopes(("server", server, spec))
        own = spec.tools.get(tool)
        if own is not None:
            where = f"{server}/{tool}"
            scopes, narrow = scopes.below("tool", where, own), narrow.below("tool", where, own)
        policies = [
            *scopes.policies((AUTHORIZE,), parts), *narrow.policies((LIMITS,), parts), *scopes.policies((RETRY,), parts)
        ]  # fmt: skip

        def last(call: ToolCall) -> Awaitable[Reply]:
            return lasts[server](call)  # it may stand below in the configuration

        shown = _overrides(spec.tools)
        if shown is None:
            return Alternate(server, tool, _chain(policies, last))
        return Alternate(server, tool, _chain(policies, last), fitted=partial(shown.fitted, tool))

    def _tool_guard(
        self, name: str, spec: IntegritySpec | None, upstream: Reached, neighbours: Neighbours
    ) -> Guard | None:
        """What sees to it that a server's tools are those that were approved."""
        if spec is None or spec.is_off:
            return None
        families = self._families
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
        changed = partial(self._builder._sessions.changed, method="notifications/tools/list_changed")
        try:
            made = partial(PinsFile, path, self._fixtures.clock, changed)
            pins = self._tenure.get(("pins", path), made, PinsFile.close)
        except BadPins as error:
            raise ConfigError([Problem(f"the pins file {str(path)!r}: {error}", path="mcp.integrity")]) from None
        self._builder._starts.append(pins.start)
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
        parts = replace(self._parts, entrance="mcp")
        endpoint = McpEndpoint(
            path,
            servers,
            self._builder._sessions,
            self._fixtures.clock,
            cursors=self._builder._cursors,
            bridge=self._builder._bridge,
            info=self._builder._info,
            prefix=prefix,
            failure=spec.failure,
            admit=self._admission(parts),
            max_body=self._config.server.max_body,
            selection=selection,
            families=self._families,
            search=Search(search.mode, search.tools, search.tokens),
            programs=None if code is None else (self._builder._programs, Limits(**code.model_dump())),
            indexes=self._builder._indexes,
            vectors=self._vectors(search.embeddings) if search.embeddings is not None else None,
        )
        handler = self._entrance("mcp", endpoint.handle)
        routes = [Route(name, (Predicate(path.encode(), exact=True),), handler, render=render_mcp)]
        if spec.legacy_sse:
            http_sse = self._builder._http_sse.get(path)
            if http_sse is None:
                sessions = self._builder._sessions
                http_sse = self._builder._http_sse[path] = HttpSse(
                    path,
                    endpoint.handle,
                    self._fixtures.clock,
                    end=sessions.end_by_id,
                    max_body=self._config.server.max_body,
                )
            self._builder._starts.append(partial(http_sse.serve, endpoint.handle))
            for below, handle in (("sse", http_sse.stream), ("messages", http_sse.message)):
                predicate = Predicate(f"{path}/{below}".encode(), exact=True)
                routes.append(Route(f"{name}/{below}", (predicate,), self._entrance("mcp", handle), render=render_mcp))
        return routes

    def _vectors(self, name: str) -> Vectors | None:
        """What tools mean to the model `name`, kept while that model stays the same."""
        model = self._found_models.find(name)
        if model is None:
            self._problems.append(Problem(f"there is no model {name!r}", path="mcp.search.embeddings"))
            return None
        spec = next(spec for spec in self._config.models if spec.name == model.name)
        vectors = self._tenure.get(("vectors", name, spec.fingerprint()), Vectors, Vectors.close)
        self._builder._starts.append(partial(vectors.use, partial(embed, model, name)))
        return vectors

    def _metadata_routes(self, paths: Sequence[str]) -> list[Route]:
        spec = self._config.authenticate
        if spec is None:
            return []
        routes = []
        for path in paths:
            handler = resource_metadata(spec, self._public_url + path)
            if handler is not None:
                predicate = Predicate(_METADATA + path.encode(), exact=True)
                routes.append(Route("resource-metadata", (predicate,), handler, methods=_GET))
        return routes

    # ---- plain services
    def _service_routes(self) -> list[Route]:
        routes = []
        for n, spec in enumerate(self._config.routes):
            where = f"routes[{n}]"
            predicate = spec.compile()
            with self._finding(where):
                key = ("route", spec.fingerprint(), self._config.server.trusted_proxies)
                backend = self._tenure.get(key, partial(self._backend, spec, predicate), HttpBackend.close)
                scopes = self._top.below("route", spec.name, spec)
                handler = self._entrance("http", backend.handle, scopes)
                routes.append(Route(spec.name, (predicate,), handler, where=where))
        return routes

    def _backend(self, spec: RouteSpec, predicate: Predicate) -> HttpBackend:
        backend = HttpBackend(
            spec,
            predicate,
            self._fixtures.client,
            self._fixtures.clock,
            forwarding=self._forwarding,
            retried=partial(_retried, self._fixtures.families),
        )
        self._builder._starts.append(backend.start)
        return backend


def validate(config: Config) -> None:
    """Build `config` without serving it. Raises ConfigError with every problem."""
    check_state(config.state)
    clock = Clock()
    families = Families(Metrics())
    fixtures = Fixtures(clock, families, Client(clock), MemoryState(clock), Operations(families.metrics))
    Builder(fixtures).build(config, Keep().tenure())


def _shared(config: Config) -> tuple[Any, ...]:
    """Everything of a configuration that a model's chain is made from, besides the model."""
    scope = tuple(getattr(config, kind.name, None) for kind in CALL)
    return (*scope, config.providers, config.prices, config.estimates, config.telemetry.metrics, config.server)


def _bare(spec: ModelSpec) -> bool:
    """Whether the model has no policies of its own."""
    return all(getattr(spec, kind.name, None) is None for kind in CALL if "model" in kind.levels)


def _chain(policies: Sequence[Policy[Call, Reply]], last: Handler[Any, Reply]) -> Handler[Any, Reply]:
    """A call chain. Its policies take any Call, its last Handler the kind that its endpoint makes."""
    return compose(policies, last)


def _visible(guard: Authorize | None, tools: dict[str, Authorize]) -> Callable[[ToolCall], bool] | None:
    """What a server's lists show: the server's rules, and for tools with rules of their own those."""
    if not tools:
        return None if guard is None else guard.permitted

    def permitted(probe: ToolCall) -> bool:
        decides = tools.get(probe.name, guard) if probe.method == "tools/call" else guard
        return decides is None or decides.permitted(probe)

    return permitted


def _examining(upstream: Reached, wanted: bool) -> None:
    upstream.examines = wanted


def _granted(_: Call) -> Awaitable[Reply]:
    return GRANTED


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


async def _nothing(_: Call) -> Reply:
    return Reply(200, [], b"")


def _probe(principal: Principal | None, model: str) -> ModelCall:
    """Any call of that model by that caller: what rules are asked about when names are listed."""
    request = Request(b"GET", b"/v1/models", Headers())
    return ModelCall(
        request,
        Context(principal=principal),
        dialect=None,
        operation="",
        model=model,
        label=model,
        stream=False,
        fields={},
        body=b"",
        reserve=0,
    )


def _deployment(after: bytes, path: bytes) -> tuple[str, bool | None] | None:
    """The model of `/openai/deployments/{model}/chat/completions`, where Azure has it."""
    if not path.endswith(after):
        return None
    model = path[len(_DEPLOYMENTS) + 1 : -len(after)]
    return (unquote(model.decode("latin-1")), None) if model else None


def _own_url(fixtures: Fixtures) -> str:
    name, protocol = fixtures.listeners[0] if fixtures.listeners else ("127.0.0.1:8080", "http")
    return f"{protocol}://{name}"


def _count(families: Families, side: str, revision: str, change: int) -> None:
    families.mcp_sessions.child(revision, side).inc(change)


def _recovered(families: Families, cause: str) -> None:
    families.mcp_recoveries.child(cause).inc()


def _retried(families: Families, context: Context, why: str) -> None:
    families.retries.child(context.route, context.backend, why).inc()
