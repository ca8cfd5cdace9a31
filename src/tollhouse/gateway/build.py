"""Build: a Config becomes the request floor that serves it. The only place that constructs.

Rule: what is built here is never changed afterwards. What must outlive a configuration is asked of the Tenure by a key
that holds everything it was made from; what has not changed since the configuration before is taken over as it is.
"""

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote

import msgspec

from tollhouse.backends.http import HttpBackend
from tollhouse.backends.mcp_servers import Servers
from tollhouse.backends.native import NativeBackend
from tollhouse.backends.pool import Pool, pool
from tollhouse.backends.provider import Provider
from tollhouse.backends.providers import provider
from tollhouse.backends.providers.remote import OpenSpec
from tollhouse.config.spec import Config, ModelSpec, RouteSpec
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
from tollhouse.endpoints.llm import LLMEndpoint, Locate, PathEndpoint
from tollhouse.endpoints.mcp import McpEndpoint, Server
from tollhouse.endpoints.mcp import render as render_mcp
from tollhouse.endpoints.mcp_session import Sessions
from tollhouse.endpoints.models import Model, Models, ModelsEndpoint
from tollhouse.endpoints.native import NativeEndpoint
from tollhouse.gateway.keep import Keep, Tenure
from tollhouse.gateway.operate import Operations
from tollhouse.gateway.router import Route, Router
from tollhouse.ledger.catalogue import Catalogue
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.prices import Origin, Prices
from tollhouse.net.client import Client, OriginError
from tollhouse.observe.access_log import AccessLog
from tollhouse.observe.connections import Connections
from tollhouse.observe.families import ExtraLabels, Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies import CALL, REQUEST
from tollhouse.policies.authenticate import resource_metadata
from tollhouse.policies.authorize import AUTHORIZE, Authorize, permitted
from tollhouse.policies.base import Entrance, Kind, Layer, Level, Parts
from tollhouse.policies.limits import LIMITS
from tollhouse.policies.meter import Meter
from tollhouse.policies.record import Record
from tollhouse.store.base import Counter
from tollhouse.store.memory import MemoryCounter
from tollhouse.wire.llm import CHAT, CONVERSE, COUNT_TOKENS, GEMINI, MESSAGES, OPENAI_OTHERS, RERANK, RESPONSES
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.native import NATIVE, NATIVE_ANTHROPIC
from tollhouse.wire.llm.vocabulary import Vocabularies
from tollhouse.wire.mcp.catalogue import Cursors

__all__ = ["Builder", "Fixtures", "validate"]

_OTHERS = tuple(dialect for dialect in OPENAI_OTHERS if dialect is not RERANK)
_LLM_ROUTES: tuple[tuple[str, Dialect, tuple[bytes, ...]], ...] = (
    ("chat", CHAT, (b"/v1/chat/completions", b"/openai/v1/chat/completions")),
    ("responses", RESPONSES, (b"/v1/responses", b"/openai/v1/responses")),
    ("messages", MESSAGES, (b"/v1/messages",)),
    *((dialect.operation, dialect, (b"/v1" + dialect.path, b"/openai/v1" + dialect.path)) for dialect in _OTHERS),
    ("rerank", RERANK, (b"/v1/rerank", b"/v2/rerank", b"/rerank")),
    ("count_tokens", COUNT_TOKENS, (b"/v1/messages/count_tokens",)),
)
"""The model stands in the body. Clients for Azure ask below /openai."""

_DEPLOYMENTS = b"/openai/deployments"
_BEDROCK = b"/model"
_GEMINI = (b"/v1beta/models", b"/v1/models", b"/v1alpha/models")
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
    counter: Counter
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
        self._cursors = Cursors(os.urandom(32))
        self._sessions = Sessions(clock, count=partial(_count, families, "agent"))
        # Streams stay open for hours and would use up the connections that calls need: they have their own.
        self._streams = Client(clock)
        self._servers = Servers(
            clock,
            fixtures.client,
            self._streams,
            info=self._info,
            on_change=self._sessions.changed,
            count=partial(_count, families, "server"),
        )
        self._starts: list[Callable[[], None]] = []  # of what the configuration being built brings
        self._catalogue: Catalogue | None = None
        self._vocabularies: Vocabularies | None = None
        self._before: Config | None = None
        self._models: dict[str, _BuiltModel] = {}

    async def close(self) -> None:
        """Nothing is served any more: end MCP sessions and children."""
        self._sessions.close()
        await self._servers.close()
        await self._streams.close()

    def finish_streams(self) -> None:
        """The worker is leaving: end streams that would stay open for ever."""
        self._sessions.finish_streams()

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
            counter=fixtures.counter,
            client=fixtures.client,
            shared=tenure.get,
            public_url=self._public_url,
            forwarding=self._forwarding,
        )
        self._prices: Prices | None = None
        if config.models:
            self._price_models()
        self._meter = Meter(self._families, fixtures.journal, self._prices)

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
            below = tuple(Predicate(prefix, exact=False, methods=_POST) for prefix in prefixes)
            return Route(name, below, handler, render=several.render, methods=_POST)

        azure = [(dialect, partial(_deployment, dialect.path)) for dialect in (CHAT, *_OTHERS)]
        routes.append(by_path("azure", (_DEPLOYMENTS,), *azure))
        routes.append(by_path("converse", (_BEDROCK,), (CONVERSE, CONVERSE.read_target)))
        routes.append(by_path("gemini", _GEMINI, *((dialect, dialect.read_target) for dialect in GEMINI)))
        listing = ModelsEndpoint(models, visible, admit=admit)
        both = (Predicate(b"/v1/models", exact=True), Predicate(b"/v1/models", exact=False))
        handler = self._entrance("llm", listing.handle)
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
        parts = replace(self._parts, entrance="mcp")
        servers: dict[str, Server] = {}
        for name, one in spec.servers.items():
            with self._finding(f"mcp.servers.{name}"):
                upstream = self._builder._servers.get(name, one)
                scopes = self._top.below("server", name, one)
                policies, guard = self._call_floor(scopes, parts)
                tools = {}
                guards = {}
                for tool, own in one.tools.items():
                    more, own_guard = self._call_floor(scopes.below("tool", f"{name}/{tool}", own), parts)
                    tools[tool] = _chain(more, upstream.handle)
                    if own_guard is not None:
                        guards[tool] = own_guard
                chain = _chain(policies, upstream.handle)
                visible = _visible(guard, guards)
                servers[name] = Server(name, upstream, chain, tools=tools, permitted=visible)
        routes = [self._mcp_route("mcp", spec.path, servers, spec.prefix)]
        routes += [self._mcp_route(f"mcp/{n}", f"{spec.path}/{n}", {n: s}, "never") for n, s in servers.items()]
        return routes + self._metadata_routes([route.predicates[0].path.decode() for route in routes])

    def _mcp_route(self, name: str, path: str, servers: dict[str, Server], prefix: Any) -> Route:
        spec = self._config.mcp
        assert spec is not None
        parts = replace(self._parts, entrance="mcp")
        endpoint = McpEndpoint(
            path,
            servers,
            self._builder._sessions,
            self._fixtures.clock,
            cursors=self._builder._cursors,
            info=self._builder._info,
            prefix=prefix,
            failure=spec.failure,
            admit=self._admission(parts),
            max_body=self._config.server.max_body,
            families=self._families,
        )
        handler = self._entrance("mcp", endpoint.handle)
        return Route(name, (Predicate(path.encode(), exact=True),), handler, render=render_mcp)

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
    clock = Clock()
    families = Families(Metrics())
    fixtures = Fixtures(clock, families, Client(clock), MemoryCounter(clock), Operations(families.metrics))
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


def _retried(families: Families, context: Context, why: str) -> None:
    families.retries.child(context.route, context.backend, why).inc()
