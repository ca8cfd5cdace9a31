"""Build: a Config becomes the request floor that serves it. With its parts `model_routes` and `mcp_routes` the only
place that constructs.

Rule: what is built here is never changed afterwards. What must outlive a configuration is asked of the Tenure by a key
that holds everything it was made from; what has not changed since the configuration before is taken over as it is.
"""

from collections.abc import Callable
from functools import partial

from tollhouse.backends.http import HttpBackend
from tollhouse.config.spec import Config, RouteSpec
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError
from tollhouse.core.expr import Expression
from tollhouse.core.handler import Handler, compose
from tollhouse.core.http import Request, Response
from tollhouse.core.match import Predicate
from tollhouse.gateway.assembly import Assembly, Fixtures, retried
from tollhouse.gateway.keep import Keep, Tenure
from tollhouse.gateway.mcp_routes import KeptServers, McpRoutes
from tollhouse.gateway.model_routes import KeptModels, ModelRoutes
from tollhouse.gateway.operate import Operations
from tollhouse.gateway.router import Route, Router
from tollhouse.gateway.state import check_state
from tollhouse.net.client import Client
from tollhouse.observe.connections import Connections
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.record import Record
from tollhouse.store.memory import MemoryState

__all__ = ["Builder", "Fixtures", "validate"]

_GET = frozenset((b"GET", b"HEAD"))


class Builder:
    """Builds one request floor after another for a process. `close` ends what it keeps between them."""

    def __init__(self, fixtures: Fixtures) -> None:
        self._fixtures = fixtures
        self._models = KeptModels()
        self._mcp = KeptServers(fixtures)
        self._starts: list[Callable[[], None]] = []  # of what the configuration being built brings

    async def close(self) -> None:
        """Nothing is served any more: end MCP sessions and children."""
        await self._mcp.close()

    def finish_streams(self) -> None:
        """The worker is leaving: end streams that would stay open for ever."""
        self._mcp.finish_streams()

    async def settled(self) -> None:
        """Return when no other worker will ask this one for anything that it holds."""
        await self._mcp.settled()

    def close_sessions(self) -> None:
        """The time is up: tell realtime sessions, and end them."""
        for session in tuple(self._models.open):
            session.leave()

    def build(self, config: Config, tenure: Tenure) -> Handler[Request, Response]:
        """The request floor of `config`. Raises ConfigError with every problem found."""
        self._starts = []
        try:
            return self._floor(Assembly(self._fixtures, config, tenure, self._starts, self._models.catalogue))
        except BaseException:
            self._models.forget()  # made with parts that end with `tenure`
            raise

    def applied(self, config: Config) -> None:
        """`config`, the last one that was built, serves now: begin what it brings, let go of what only the one before
        had."""
        starts, self._starts = self._starts, []
        for start in starts:
            start()
        self._mcp.applied(config.mcp)

    def _floor(self, assembly: Assembly) -> Handler[Request, Response]:
        models = ModelRoutes(assembly, self._models)
        routes = [*_own_routes(assembly), *models.routes(), *models.native_routes()]
        routes += [*McpRoutes(assembly, self._mcp, models.found).routes(), *_service_routes(assembly)]
        router: Handler[Request, Response] | None = None
        with assembly.finding():
            router = Router(routes).handle
        if assembly.problems or router is None:
            raise ConfigError(assembly.problems)
        return compose((_record(assembly).handle,), router)


def validate(config: Config) -> None:
    """Build `config` without serving it. Raises ConfigError with every problem."""
    check_state(config.state)
    clock = Clock()
    families = Families(Metrics())
    fixtures = Fixtures(clock, families, Client(clock), MemoryState(clock), Operations(families.metrics))
    Builder(fixtures).build(config, Keep().tenure())


def _record(assembly: Assembly) -> Record:
    """What counts and logs every request, outermost of all."""
    config = assembly.config
    spec = config.telemetry.access_log
    fields = [(name, Expression(text, late=True).evaluate) for name, text in spec.fields.items()] if spec else []
    forwarding = assembly.forwarding
    trusted = (lambda request: forwarding.trusts(request.peer)) if config.server.trusted_proxies else None
    binds = {name: Connections.labels(name, protocol)[:3] for name, protocol in assembly.fixtures.listeners}
    return Record(
        assembly.families,
        assembly.fixtures.access_log,
        binds=binds,
        trusted=trusted,
        fields=fields,
        prices=assembly.prices,
    )


def _own_routes(assembly: Assembly) -> list[Route]:
    operations = assembly.fixtures.operations
    return [
        Route("status", (Predicate(b"/status", exact=True),), operations.status, methods=_GET),
        Route("ready", (Predicate(b"/ready", exact=True),), operations.readiness, methods=_GET),
    ]


def _service_routes(assembly: Assembly) -> list[Route]:
    """To plain HTTP services."""
    config = assembly.config
    routes = []
    for n, spec in enumerate(config.routes):
        where = f"routes[{n}]"
        predicate = spec.compile()
        with assembly.finding(where):
            key = ("route", spec.fingerprint(), config.server.trusted_proxies)
            backend = assembly.tenure.get(key, partial(_backend, assembly, spec, predicate), HttpBackend.close)
            scopes = assembly.top.below("route", spec.name, spec)
            handler = assembly.entrance("http", backend.handle, scopes)
            routes.append(Route(spec.name, (predicate,), handler, where=where))
    return routes


def _backend(assembly: Assembly, spec: RouteSpec, predicate: Predicate) -> HttpBackend:
    fixtures = assembly.fixtures
    backend = HttpBackend(
        spec,
        predicate,
        fixtures.client,
        fixtures.clock,
        forwarding=assembly.forwarding,
        retried=partial(retried, fixtures.families),
    )
    assembly.starts.append(backend.start)
    return backend
