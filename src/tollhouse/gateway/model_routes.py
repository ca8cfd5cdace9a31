"""The routes of models: every API's paths, the lists, Realtime, and providers that are opened as they are.

Rule: a model that is as it was is the model that was; what all of them share is made once.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote

from tollhouse.backends.native import NativeBackend
from tollhouse.backends.pool import Pool, pool
from tollhouse.backends.provider import Provider
from tollhouse.backends.providers import provider
from tollhouse.backends.providers.remote import OpenSpec, RemoteSpec
from tollhouse.backends.quota import Outcome, Quota
from tollhouse.config.spec import Config, ModelSpec
from tollhouse.core.call import Call, Context, ModelCall, Principal
from tollhouse.core.errors import Failure, Problem, Reason
from tollhouse.core.handler import Handler, Policy, compose
from tollhouse.core.holders import Holders
from tollhouse.core.http import Headers, Request, Response
from tollhouse.core.match import Predicate
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Spec
from tollhouse.endpoints.embed import embed
from tollhouse.endpoints.google_key import key_of_query
from tollhouse.endpoints.llm import LLMEndpoint, Locate, PathEndpoint
from tollhouse.endpoints.models import Model, Models, ModelsEndpoint
from tollhouse.endpoints.native import NativeEndpoint
from tollhouse.endpoints.realtime import RealtimeEndpoint, key_of_protocol
from tollhouse.endpoints.realtime_session import GRANTED, Begin, Session
from tollhouse.gateway.assembly import Assembly, Scopes, call_chain, retried
from tollhouse.gateway.audit import setting
from tollhouse.gateway.guard_services import GuardServices
from tollhouse.gateway.router import Route
from tollhouse.gateway.spending import draws
from tollhouse.ledger.catalogue import Catalogue
from tollhouse.observe.families import Families
from tollhouse.policies import ADMISSION, CALL
from tollhouse.policies.authenticate import ACCESS, may_use
from tollhouse.policies.authorize import APPROVE, AUTHORIZE, Authorize, permitted
from tollhouse.policies.budgets import BUDGETS
from tollhouse.policies.cache import hold
from tollhouse.policies.guardrails.policy import GUARD_ANSWERS, GUARD_REQUESTS
from tollhouse.policies.run_caps import RUN_CAPS
from tollhouse.policies.runs import RUNS
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

__all__ = ["KeptModels", "ModelRoutes"]

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
_POST = frozenset((b"POST",))
_GET = frozenset((b"GET", b"HEAD"))

_BuiltModel = tuple[ModelSpec, Model, Authorize | None, Pool]


class KeptModels:
    """What is kept of models while configurations come and go. open: Realtime sessions; holders: whose they are. built:
    models of the last one."""

    def __init__(self, holders: Holders) -> None:
        self.holders = holders
        self.open: set[Session] = set()
        self._catalogue: Catalogue | None = None
        self._vocabularies: Vocabularies | None = None
        self._before: Config | None = None
        self.built: dict[str, _BuiltModel] = {}
        self.inside: dict[str, Handler[Any, Reply]] = {}  # chains past what records a call, by the model's name

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
            self.built = {}
        return self.built

    def remember(self, models: dict[str, _BuiltModel]) -> None:
        self.built = models

    def forget(self) -> None:
        """What was built last does not serve."""
        self._before, self.built = None, {}


class ModelRoutes:
    """Of one configuration. found: the models, once `routes` was called."""

    def __init__(self, assembly: Assembly, kept: KeptModels) -> None:
        self._assembly = assembly
        self._config = assembly.config
        self._kept = kept
        assembly.serve(GuardServices(assembly, self._provider))
        self._parts = replace(assembly.parts("llm"), inside=kept.inside.get, embed=self._embed)
        self.found = Models(())

    def _entrance(self, handler: Handler[Request, Response]) -> Handler[Request, Response]:
        return self._assembly.entrance("llm", handler)

    def routes(self) -> list[Route]:
        config = self._config
        if not config.models:
            return []
        models, guards = self._all_models()
        self.found = models

        bounded = self._assembly.bounded

        def visible(principal: Principal | None, name: str) -> bool:
            model = models.find(name)
            guard = None if model is None else guards.get(model.name)
            if bounded and not may_use(_probe(principal, models.own(name))):
                return False
            return guard is None or guard.permitted(_probe(principal, name))

        admit = self._assembly.admission(self._parts)
        routes = []
        for name, dialect, paths in _LLM_ROUTES:
            endpoint = LLMEndpoint(dialect, models, visible, max_body=config.server.max_body, admit=admit)
            handler = self._entrance(endpoint.handle)
            exact = tuple(Predicate(path, exact=True) for path in paths)
            routes.append(Route(name, exact, handler, render=endpoint.render, methods=_POST))

        def by_path(name: str, prefixes: tuple[bytes, ...], *read: tuple[Dialect, Locate]) -> Route:
            endpoints = []
            for dialect, locate in read:
                limit = config.server.max_body
                endpoint = LLMEndpoint(dialect, models, visible, max_body=limit, locate=locate, admit=admit)
                endpoints.append((locate, endpoint))
            several = PathEndpoint(endpoints)
            handler = self._entrance(several.handle)
            if prefixes is _GEMINI:
                handler = compose((key_of_query,), handler)
            below = tuple(Predicate(prefix, exact=False, methods=_POST) for prefix in prefixes)
            return Route(name, below, handler, render=several.render, methods=_POST)

        azure = [(dialect, partial(_deployment, dialect.path)) for dialect in (CHAT, *_OTHERS)]
        routes.append(by_path("azure", (_DEPLOYMENTS,), *azure))
        routes.append(by_path("converse", (_BEDROCK,), (CONVERSE, CONVERSE.read_target)))
        routes.append(by_path("gemini", _GEMINI, *((dialect, dialect.read_target) for dialect in GEMINI)))
        others = permitted(self._assembly.top.layers(AUTHORIZE), self._parts)  # of models that are not configured

        guarded = {spec.name for spec in config.models if spec.guardrails is not None and not spec.guardrails.hears}

        def named(principal: Principal | None, name: str) -> bool:
            model = models.find(name)
            if model is not None and model.name in guarded:
                return False
            if others is not None and model is None and not others.permitted(_probe(principal, name)):
                return False
            return visible(principal, name)

        realtime = RealtimeEndpoint(
            REALTIME,
            models,
            visible,
            self._turns(),
            self._assembly.fixtures.clock,
            self._kept.open,
            admit=admit,
            named=named,
            holders=self._kept.holders,
        )
        handler = compose((key_of_protocol,), self._entrance(realtime.handle))
        exact = tuple(Predicate(path, exact=True) for path in _REALTIME)
        routes.append(Route("realtime", exact, handler, render=realtime.render, methods=_GET))
        for path in _GEMINI:
            listing = ModelsEndpoint(models, visible, admit=admit, path=path, google=path != _OPENAI_MODELS)
            both = (Predicate(path, exact=True), Predicate(path, exact=False))
            handler = compose((key_of_query,), self._entrance(listing.handle))
            routes.append(Route("models", both, handler, render=listing.render, methods=_GET))
        return routes

    def native_routes(self) -> list[Route]:
        """Paths of providers that are opened as they are."""
        routes = []
        for name, spec in self._config.providers.items():
            if not isinstance(spec, OpenSpec) or not spec.passthrough:
                continue
            where = f"providers.{name}"
            if _SEGMENT.fullmatch(name) is None:
                message = "the name stands in a path: it has letters, digits, - and _ where `passthrough` is true"
                self._assembly.problems.append(Problem(message, path=where))
                continue
            with self._assembly.finding(where):
                made = self._provider(name, spec)
                label = f"providers/{name}"
                prefix = b"/" + label.encode("ascii")
                # A retry is not for what may do anything.
                kinds = (ACCESS, AUTHORIZE, *ADMISSION, GUARD_REQUESTS, APPROVE, GUARD_ANSWERS)
                guards = self._assembly.top.policies(kinds, self._parts)
                policies = [*self._assembly.outermost, *guards]
                endpoint = NativeEndpoint(
                    prefix,
                    label,
                    call_chain(policies, NativeBackend(made, prefix).handle),
                    {face.dialect.path: face.dialect for face in made.faces.values() if face.names_model},
                    NATIVE_ANTHROPIC if made.kind == "anthropic" else NATIVE,
                    max_body=self._config.server.max_body,
                )
                handler = self._entrance(endpoint.handle)
                routes.append(Route(label, (Predicate(prefix, exact=False),), handler, render=endpoint.render))
        return routes

    def _all_models(self) -> tuple[Models, dict[str, Authorize]]:
        providers = self._providers()
        if self._assembly.problems:  # a model's target may be one of the providers that could not be made
            return Models(()), {}
        hold((self._config, *self._config.models), self._parts)
        known = self._kept.reusable(self._config)
        plain: tuple[list[Policy[Call, Reply]], Authorize | None] | None = None
        built: dict[str, _BuiltModel] = {}
        for spec in self._config.models:
            have = known.get(spec.name)
            if have is not None and (have[0] is spec or have[0] == spec) and not self._asks(spec):
                built[spec.name] = have
                self._check(have[3])
                continue
            with self._assembly.finding(f"models.{spec.name}"):
                if _bare(spec):  # thousands of models mostly differ in their targets only: they share their policies
                    plain = plain or self._call_floor(self._assembly.top)
                    policies, guard = plain
                else:
                    policies, guard = self._call_floor(self._assembly.top.below("model", spec.name, spec))
                told = partial(retried, self._assembly.fixtures.families)
                targets = pool(spec.name, spec, providers, self._assembly.fixtures.clock, retried=told)
                inside = call_chain(policies, targets.handle)
                self._kept.inside[spec.name] = inside
                model = Model(spec.name, call_chain(self._assembly.outermost, inside), aliases=spec.aliases)
                built[spec.name] = (spec, model, guard, targets)
                self._check(targets)
        self._kept.remember(built)
        guards = {name: guard for name, (_, _, guard, _) in built.items() if guard is not None}
        top = permitted(self._assembly.top.layers(AUTHORIZE), self._parts)  # the scope that may name a policy server
        shown = partial(_shown, top) if top is not None and top.asks else None
        return Models((model for _, model, _, _ in built.values()), shown=shown), guards

    def _asks(self, spec: ModelSpec) -> bool:
        """Whether its guards ask anybody, over connections that end with the configuration."""
        return any(one is not None and one.asks for one in (self._config.guardrails, spec.guardrails))

    def _check(self, targets: Pool) -> None:
        """Active checks of a model's targets begin when the configuration serves, and end with the last that has it."""
        if targets.checked:
            self._assembly.tenure.get(("checks", targets), partial(self._checking, targets), Pool.close)

    def _checking(self, targets: Pool) -> Pool:
        self._assembly.starts.append(targets.start)
        return targets

    def _call_floor(self, scopes: Scopes) -> tuple[list[Policy[Call, Reply]], Authorize | None]:
        """The policies of a call chain past what records calls, outermost first, and what decides for listings."""
        guard = permitted(scopes.layers(AUTHORIZE), self._parts)
        return [*scopes.policies(CALL, self._parts), *self._innermost(scopes)], guard

    def _innermost(self, scopes: Scopes) -> list[Policy[Call, Reply]]:
        """What stands before whoever is asked, where a call may hold money that nobody may pass."""
        budgets = [spec for layer in scopes.layers(BUDGETS) for spec in layer.spec]
        hard = any(spec.unit == "usd" and spec.on_exceed != "warn" for spec in budgets)
        capped = any(layer.spec.usd is not None for layer in scopes.layers(RUN_CAPS))
        return [self._assembly.meter.intend] if hard or capped else []

    def _embed(self, name: str) -> Callable[[Request, Sequence[str]], Awaitable[list[list[float]]]]:
        """Vectors of texts by the model of that name; it may stand below in the configuration."""

        async def vectors(request: Request, texts: Sequence[str]) -> list[list[float]]:
            model = self.found.find(name)
            if model is None:
                raise Failure(503, Reason.NOT_FOUND, f"there is no model {name!r} to embed with")
            return await embed(model, name, request, texts)

        return vectors

    def _turns(self) -> Callable[[str], Begin]:
        """The chain that each answer of a realtime session passes, by the model's name: it is metered and limited."""

        def turn(scopes: Scopes) -> Begin:
            policies = [*scopes.policies((RUNS, *ADMISSION), self._parts), *self._innermost(scopes)]
            return compose([*self._assembly.outermost, *policies], _granted)

        usual = turn(self._assembly.top)
        limited = [spec for spec in self._config.models if spec.limits or spec.budgets]
        own = {spec.name: turn(self._assembly.top.below("model", spec.name, spec)) for spec in limited}
        return lambda name: own.get(name, usual)

    def _providers(self) -> dict[str, Provider]:
        """All that can be made; what is wrong with the others is noted."""
        found: dict[str, Provider] = {}
        for name, spec in self._config.providers.items():
            with self._assembly.finding(f"providers.{name}"):
                found[name] = self._provider(name, spec)
        return found

    def _provider(self, name: str, spec: Any) -> Provider:
        key = ("provider", name, spec.fingerprint(), self._config.estimates)
        return self._assembly.tenure.get(key, partial(self._new_provider, name, spec), Provider.close)

    def _new_provider(self, name: str, spec: Spec) -> Provider:
        made = provider(name, spec, self._assembly.fixtures.client, self._assembly.fixtures.clock)
        if self._config.estimates == "bpe":
            made.vocabularies = self._kept.vocabularies
        if isinstance(spec, RemoteSpec) and spec.quota is not None:
            fixtures = self._assembly.fixtures
            told = partial(_quota_told, fixtures.families, name)
            made.quota = Quota(name, spec.quota, fixtures.state.counter, told)
        self._assembly.starts.append(made.start)
        return made


def _shared(config: Config) -> tuple[Any, ...]:
    """Everything of a configuration that a model's chain is made from, besides the model."""
    scope = tuple(getattr(config, kind.name, None) for kind in CALL)
    shared = (config.providers, config.prices, config.estimates, config.telemetry.metrics, config.server, draws(config))
    return (*scope, *shared, setting(config))


def _bare(spec: ModelSpec) -> bool:
    """Whether the model has no policies of its own."""
    return all(getattr(spec, kind.name, None) is None for kind in CALL if "model" in kind.levels)


def _quota_told(families: Families, provider: str, outcome: Outcome, waited: float) -> None:
    families.provider_quota.child(provider, outcome).inc()
    if outcome == "queued":
        families.provider_quota_wait.child(provider).observe(waited)


def _granted(_: Call) -> Awaitable[Reply]:
    return GRANTED


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


def _shown(top: Authorize, principal: Principal | None, names: Sequence[str]) -> Awaitable[list[bool]]:
    return top.shown([_probe(principal, name) for name in names])


def _deployment(after: bytes, path: bytes) -> tuple[str, bool | None] | None:
    """The model of `/openai/deployments/{model}/chat/completions`, where Azure has it."""
    if not path.endswith(after):
        return None
    model = path[len(_DEPLOYMENTS) + 1 : -len(after)]
    return (unquote(model.decode("latin-1")), None) if model else None
