"""Build: a Config becomes the request floor that serves it. With its parts `model_routes` and `mcp_routes` the only
place that constructs.

Rule: what is built here is never changed afterwards. What must outlive a configuration is asked of the Tenure by a key
that holds everything it was made from; what has not changed since the configuration before is taken over as it is.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from tollhouse.backends.http import HttpBackend
from tollhouse.config.spec import Config, RouteSpec
from tollhouse.core.call import Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure, Reason
from tollhouse.core.expr import Expression
from tollhouse.core.handler import Handler, compose
from tollhouse.core.holders import Holders
from tollhouse.core.http import Request, Response
from tollhouse.core.match import Predicate
from tollhouse.gateway.account_list import AccountList
from tollhouse.gateway.accounts import ConnectedAccounts
from tollhouse.gateway.assembly import Assembly, Fixtures, retried
from tollhouse.gateway.exchangers import Exchangers, upstream_uri
from tollhouse.gateway.issuer_routes import IssuerRoutes
from tollhouse.gateway.keep import Keep, Tenure
from tollhouse.gateway.ledger import check_ledger
from tollhouse.gateway.login_routes import login_routes
from tollhouse.gateway.mcp_routes import KeptServers, McpRoutes
from tollhouse.gateway.model_routes import KeptModels, ModelRoutes
from tollhouse.gateway.operate import Operations
from tollhouse.gateway.own_cookies import without_own_cookies
from tollhouse.gateway.router import Route, Router
from tollhouse.gateway.standing import still_let_in
from tollhouse.gateway.state import check_state
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.provider import Issuer
from tollhouse.net.client import Client
from tollhouse.observe.connections import Connections
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.audit import Audit
from tollhouse.policies.record import Record
from tollhouse.policies.runs import stopped_run
from tollhouse.store.memory import MemoryState
from tollhouse.store.revocation import Revocation

__all__ = ["Builder", "Fixtures", "validate"]

log = logging.getLogger("tollhouse.gateway")

_GET = frozenset((b"GET", b"HEAD"))
_PATIENCE = 5.0  # seconds


Stop = Callable[[Callable[[Request, bool], bool], Failure], None]
"""As `net.server.Server.stop`."""

_HELD = frozenset(("mcp", "realtime"))
"""Operations whose answers, once they have begun, are held for their callers and end in their protocol's way."""


class Builder:
    """Builds one request floor after another for a process. `close` ends what it keeps between them."""

    def __init__(self, fixtures: Fixtures, stop: Stop | None = None) -> None:
        """stop: ends requests under way, of whatever listener."""
        self._fixtures = fixtures
        self._stop = stop
        self._holders = Holders(fixtures.clock, in_force=self._in_force)
        self._models = KeptModels(self._holders)
        self._mcp = KeptServers(fixtures, self._holders)
        self._serves: Config | None = None
        self._deafen = None if fixtures.revocations is None else fixtures.revocations.on_revoked(self._revoked)
        self._starts: list[Callable[[], None]] = []  # of what the configuration being built brings
        self._issuer: Issuer | None = None
        self._audit: Audit | None = None
        self._accounts: AccountList | None = None
        # Of the configuration that serves.
        self.signing_keys: SigningKeys | None = None
        self.audit: Audit | None = None
        self.accounts: AccountList | None = None

        if fixtures.issued is not None:
            loop = asyncio.get_running_loop()
            fixtures.issued.on_ended(partial(loop.call_soon_threadsafe, self._review))

    async def close(self) -> None:
        """Nothing is served any more: end MCP sessions and children."""
        if self._fixtures.issued is not None:
            self._fixtures.issued.on_ended(None)
        if self._deafen is not None:
            self._deafen()
        await self._mcp.close()

    def finish_streams(self) -> None:
        """The worker is leaving: end streams that would stay open for ever."""
        self._mcp.finish_streams()

    async def settled(self) -> None:
        """Return when no other worker will ask this one for anything that it holds."""
        await self._mcp.settled()

    async def ready(self) -> None:
        """Return when what was applied can answer, or after some seconds in which that was tried."""
        if self._issuer is not None:
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._issuer.ready()
            except TimeoutError:
                log.warning("the auth provider has no keys yet; it goes on trying")

    def close_sessions(self) -> None:
        """The time is up: tell realtime sessions, and end them."""
        for session in tuple(self._models.open):
            session.leave()

    def build(self, config: Config, tenure: Tenure) -> Handler[Request, Response]:
        """The request floor of `config`. Raises ConfigError with every problem found."""
        self._starts = []
        try:
            assembly = Assembly(self._fixtures, config, tenure, self._starts, self._models.catalogue)
            assembly.end_runs(self._end_run)
            return compose((_record(assembly).handle,), self.router(assembly).handle)
        except BaseException:
            self._models.forget()  # made with parts that end with `tenure`
            raise

    def applied(self, config: Config) -> None:
        """`config`, the last one that was built, serves now: begin what it brings, let go of what only the one before
        had."""
        self.signing_keys = None if self._issuer is None else self._issuer.parts.keys
        self.audit = self._audit
        self.accounts = self._accounts
        starts, self._starts = self._starts, []
        for start in starts:
            start()
        self._mcp.applied(config.mcp)
        before, self._serves = self._serves, config
        if before is not None and (good := still_let_in(before, config)) is not None:
            self._end_unless(good, _not_let_in("the credential that this was opened with is not known any more"))

    def _revoked(self, revocation: Revocation) -> None:
        """Somebody is no longer good: whoever it is loses what is held for him here. Or a run was stopped."""
        if revocation.kind == "run":
            self._end_run(revocation.id, stopped_run(revocation.id))
        else:
            self._review()

    def _end_run(self, run: str, failure: Failure) -> None:
        """All that this run has under way ends."""
        self._holders.end_run(run, failure)
        if self._stop is not None:
            self._stop(lambda request, _: request.context.run_id == run, failure)

    def _review(self) -> None:
        self._end_unless(self._in_force, _not_let_in("the credential that this was opened with was revoked"))

    def _end_unless(self, good: Callable[[Principal], bool], failure: Failure) -> None:
        """What is held for others ends, and so do requests of theirs that are under way."""
        self._holders.review(good, failure)
        if self._stop is not None:
            verdicts: dict[Principal, bool] = {}

            def which(request: Request, begun: bool) -> bool:
                principal = request.context.principal
                if principal is None or (begun and request.context.operation in _HELD):
                    return False
                known = verdicts.get(principal)
                if known is None:
                    known = verdicts[principal] = good(principal)
                return not known

            self._stop(which, failure)

    def _in_force(self, principal: Principal) -> bool:
        revocations, issued = self._fixtures.revocations, self._fixtures.issued
        if issued is not None and principal.source == "key" and issued.has_ended(principal.jti):
            return False
        return revocations is None or not revocations.revoked(principal)

    def router(self, assembly: Assembly) -> Router:
        """What finds the route of a request. Raises ConfigError with every problem found."""
        if self._fixtures.issued is not None and takes_issued_keys(assembly.config):
            assembly.starts.append(self._fixtures.issued.start)
        accounts = ConnectedAccounts(assembly)
        self._accounts = accounts.listed
        assembly.connect(accounts.of)
        issuer = IssuerRoutes(assembly, accounts)  # before the rest: its tokens are known there
        self._issuer = issuer.issuer
        self._audit = assembly.audit
        assembly.exchange(Exchangers(assembly, issuer.issuer))
        models = ModelRoutes(assembly, self._models)
        routes = [*_own_routes(assembly), *models.routes(), *models.native_routes()]
        routes += [*McpRoutes(assembly, self._mcp, models.found).routes(), *_service_routes(assembly)]
        routes += issuer.routes()
        router: Router | None = None
        with assembly.finding():
            router = Router(routes)
        if assembly.problems or router is None:
            raise ConfigError(assembly.problems)
        return router


def validate(config: Config) -> None:
    """Build `config` without serving it. Raises ConfigError with every problem."""
    check_state(config.state)
    check_ledger(config.ledger)
    clock = Clock()
    families = Families(Metrics())
    fixtures = Fixtures(clock, families, Client(clock), MemoryState(clock), Operations(families.metrics))
    Builder(fixtures).build(config, Keep().tenure())


def _not_let_in(why: str) -> Failure:
    return Failure(401, Reason.JWT_AUTH, why, code="credential_revoked")


def takes_issued_keys(config: Config) -> bool:
    """Whether keys that live in the ledger open anything."""
    scopes = (config, *config.routes)
    return any(scope.authenticate is not None and scope.authenticate.issued for scope in scopes)


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
            service = without_own_cookies(config.issuer, backend.handle)
            handler = assembly.entrance("http", service, scopes, upstream=upstream_uri(spec))
            routes.append(Route(spec.name, (predicate,), handler, where=where))
    return routes + login_routes(assembly)


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
