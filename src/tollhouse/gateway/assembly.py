"""What the parts of one build share: the configuration, what serves it, and how chains are put together.

Rule: a part (`model_routes`, `mcp_routes`, the routes in `build`) knows the assembly, and not its neighbours. What is
wrong is noted, so that the rest is looked at as well.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

from tollhouse.config.spec import Config
from tollhouse.core.call import Call, Context
from tollhouse.core.clock import Clock
from tollhouse.core.errors import ConfigError, Failure, Problem, Reason
from tollhouse.core.expr import Expression
from tollhouse.core.forwarded import Forwarding
from tollhouse.core.handler import Handler, Policy, compose
from tollhouse.core.http import Ending, Request, Response
from tollhouse.core.identity import Accounts
from tollhouse.core.reply import Reply
from tollhouse.gateway import audit
from tollhouse.gateway.keep import Tenure
from tollhouse.gateway.operate import Operations
from tollhouse.gateway.spending import asked, draws
from tollhouse.ledger.audit import Chain
from tollhouse.ledger.catalogue import Catalogue
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.key_follower import KeyFollower
from tollhouse.ledger.prices import Origin, Prices
from tollhouse.net.client import Client, OriginError
from tollhouse.observe.access_log import AccessLog
from tollhouse.observe.families import ExtraLabels, Families
from tollhouse.policies import ADMISSION, REQUEST
from tollhouse.policies.audit import Audit
from tollhouse.policies.authenticate import ACCESS, REQUIRES_ENDPOINT, is_bounded, scopes_of_layers
from tollhouse.policies.authorize import AUTHORIZE, unasked
from tollhouse.policies.base import (
    Entrance,
    Exchangers,
    Kind,
    Layer,
    Level,
    Opens,
    OwnIssuer,
    Parts,
    RunBegan,
    Services,
)
from tollhouse.policies.cache import Behind
from tollhouse.policies.holds import Holds
from tollhouse.policies.meter import Meter
from tollhouse.policies.quotes import Quotes
from tollhouse.store.base import State
from tollhouse.store.revocation import Revocations
from tollhouse.wire.oauth import canonical_resource

__all__ = ["Assembly", "Fixtures", "Scopes", "call_chain", "retried", "spool_of"]


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
    revocations: Revocations | None = None
    issued: KeyFollower | None = None
    chain: Chain | None = None
    holds: Holds | None = None
    opens: Opens | None = None
    run_began: RunBegan | None = None


class Scopes:
    """The scopes a chain stands in, widest first: (level, name, Spec)."""

    __slots__ = ("_scopes",)

    def __init__(self, *scopes: tuple[Level, str, Any]) -> None:
        self._scopes = scopes

    def below(self, level: Level, name: str, spec: Any) -> "Scopes":
        return Scopes(*self._scopes, (level, name, spec))

    def layers(self, kind: Kind[Any, Any]) -> tuple[Layer, ...]:
        found = []
        for level, name, scope in self._scopes:
            spec = getattr(scope, kind.name, None) if level in kind.levels else None
            if spec is not None:
                found.append(Layer(level, name, spec))
        return tuple(found)

    def policies(self, kinds: Iterable[Kind[Any, Any]], parts: Parts) -> list[Policy[Any, Any]]:
        policies: list[Policy[Any, Any]] = []
        for joins, some in groupby(kinds, lambda kind: kind.joins):
            made = (kind.make(self.layers(kind), parts) for kind in some)
            built = [policy for policy in made if policy is not None]
            if joins is None:
                policies += built
            elif built:
                policies.append(joins(built, parts))
        return policies


class Assembly:
    """One configuration while it is built. starts: filled with what begins when it serves. catalogue: called where
    models need prices."""

    def __init__(
        self,
        fixtures: Fixtures,
        config: Config,
        tenure: Tenure,
        starts: list[Callable[[], None]],
        catalogue: Callable[[], Catalogue],
    ) -> None:
        self.fixtures = fixtures
        self.config = config
        self.tenure = tenure
        self.starts = starts
        self.problems: list[Problem] = []
        labels = [
            (name, Expression(text, late=True).evaluate) for name, text in config.telemetry.metrics.labels.items()
        ]
        self.families = Families(fixtures.families.metrics, ExtraLabels(labels)) if labels else fixtures.families
        self.top = Scopes(("top", "", config))
        self.public_url = config.server.public_url or _own_url(fixtures)
        self.forwarding = Forwarding(config.server.trusted_proxies)
        self._parts = Parts(
            clock=fixtures.clock,
            families=self.families,
            counter=fixtures.state.counter,
            client=fixtures.client,
            shared=tenure.get,
            public_url=self.public_url,
            hosts=config.server.hosts,
            forwarding=self.forwarding,
            state=fixtures.state,
            revocations=fixtures.revocations,
            revoke=None if fixtures.revocations is None else fixtures.revocations.revoke,
            issued=fixtures.issued,
            spool=spool_of(config),
            behind=Behind(config.models, config.providers, {} if config.mcp is None else config.mcp.servers, config),
        )
        self.prices: Prices | None = None
        if config.models:
            origins = {
                name: Origin(spec.kind, str(getattr(spec, "base_url", ""))) for name, spec in config.providers.items()
            }
            with self.finding():
                self.prices = Prices(catalogue(), origins, config.prices)
        if self.prices is not None:
            self._parts = replace(self._parts, price=self.prices.cost)
        counter = fixtures.state.counter if draws(config) or config.state.is_memory else None
        if counter is not None and fixtures.journal is not None:
            counter.post(fixtures.journal.id, fixtures.journal.used, "")  # from here on it hears of every record
        quotes = Quotes(self.prices, asked(config))
        servers = {} if config.mcp is None else config.mcp.servers
        tools = ((name, tool) for name, server in servers.items() for tool in server.tools)
        self.meter = Meter(self.families, fixtures.journal, self.prices, counter, quotes, tools)
        self._parts = replace(self._parts, quotes=quotes, holds=fixtures.holds, opens=fixtures.opens)
        self._parts = replace(self._parts, run_began=fixtures.run_began)
        guards: dict[str, list[Callable[[], str]]] = {}  # several may have one name
        self._parts = replace(self._parts, watch=lambda name, health: guards.setdefault(name, []).append(health))
        starts.append(partial(setattr, fixtures.operations, "guards", guards))
        self.audit: Audit | None = None
        wanted = audit.setting(config)
        if wanted is not None and fixtures.chain is not None:
            with self.finding():
                line = fixtures.access_log.add_record if wanted.log and fixtures.access_log is not None else None
                self.audit = Audit(wanted, fixtures.chain, audit.seal_of(config, wanted), self.families, line)

    @property
    def outermost(self) -> list[Policy[Any, Any]]:
        """What stands before all policies of a call chain: it sees every end."""
        return [self.meter.handle] if self.audit is None else [self.audit.call, self.meter.handle]

    def provide(self, issuer: OwnIssuer) -> None:
        """There is an auth provider in this process: policies that are made from now on hear of it."""
        self._parts = replace(self._parts, issuer=issuer)

    def exchange(self, exchangers: Exchangers) -> None:
        """The same about who makes tokens for upstreams."""
        self._parts = replace(self._parts, exchangers=exchangers)

    def connect(self, accounts: Callable[[str], Accounts | None]) -> None:
        """The same about the accounts that users have at servers."""
        self._parts = replace(self._parts, accounts=accounts)

    def serve(self, services: Services) -> None:
        """The same about services at providers."""
        self._parts = replace(self._parts, services=services)

    def end_runs(self, end: Callable[[str, Failure], None]) -> None:
        """The same about who ends what agent runs have under way."""
        self._parts = replace(self._parts, end_run=end)

    def parts(self, entrance: Entrance) -> Parts:
        """What policies behind that entrance are made with."""
        return replace(self._parts, entrance=entrance)

    @contextmanager
    def finding(self, path: str = "") -> Iterator[None]:
        """Collect what is wrong, so that the rest is looked at as well."""
        try:
            yield
        except ConfigError as error:
            self.problems.extend(error.problems)
        except OriginError as error:
            self.problems.append(Problem(str(error), path=path))

    def entrance(
        self,
        entrance: Entrance,
        handler: Handler[Request, Response],
        scopes: Scopes | None = None,
        path: str = "",
        upstream: str = "",
    ) -> Handler[Request, Response]:
        """`handler` behind the policies of the request floor. path: of a resource that has tokens of its own. upstream:
        canonical URI of where it leads to."""
        scopes = scopes or self.top
        parts = replace(self.resource(entrance, path, scopes), upstream=upstream)
        policies = scopes.policies(REQUEST, parts)
        if self.audit is not None:
            policies.insert(0, self.audit.service if entrance == "http" else self.audit.door)
        return compose(policies, handler)

    def resource(self, entrance: Entrance, path: str, scopes: Scopes) -> Parts:
        """What policies before the resource at `path` are made with; "" for the gateway as a whole."""
        needed = tuple(sorted(scopes_of_layers(scopes.layers(REQUIRES_ENDPOINT))))
        resource = canonical_resource(self.public_url + path) if path else ""
        return replace(self.parts(entrance), resource=resource, scopes=needed)

    @property
    def bounded(self) -> bool:
        """Whether there are callers whose keys are for some models, servers and tools only."""
        return is_bounded(self.top.layers(ACCESS))

    def admission(self, parts: Parts, scopes: Scopes | None = None) -> Callable[[Call], Awaitable[None]] | None:
        """What a request that reaches no model and no server must pass all the same: rules and limits of these scopes,
        absent: of the top's."""
        scopes = scopes or self.top
        policies = scopes.policies((ACCESS, AUTHORIZE, *ADMISSION), parts)
        approvals = unasked(scopes.layers(AUTHORIZE), parts)
        if approvals is not None:
            policies.append(approvals)
        if self.audit is not None:
            policies.insert(0, self.audit.admission)
        if not policies:
            return None
        asked: Handler[Call, Reply] = compose(policies, _nothing)

        async def admit(call: Call) -> None:
            reply = await asked(call)
            reply.close(Ending(200, Reason.DIRECT_RESPONSE, 0))

        return admit


def call_chain(policies: Sequence[Policy[Call, Reply]], last: Handler[Any, Reply]) -> Handler[Any, Reply]:
    """A call chain. Its policies take any Call, its last Handler the kind that its endpoint makes."""
    return compose(policies, last)


def retried(families: Families, context: Context, why: str) -> None:
    families.retries.child(context.route, context.backend, why).inc()


async def _nothing(_: Call) -> Reply:
    return Reply(200, [], b"")


def spool_of(config: Config) -> str:
    """The directory in which calls wait for approval, beside the ledger; "" where there is neither that nor a state
    with a server, in which they would wait instead."""
    if config.ledger_file is None:
        return "" if config.state.is_memory else "approvals"
    return f"{config.ledger_file}.approvals"


def _own_url(fixtures: Fixtures) -> str:
    name, protocol = fixtures.listeners[0] if fixtures.listeners else ("127.0.0.1:8080", "http")
    return f"{protocol}://localhost{name}" if name.startswith(":") else f"{protocol}://{name}"
