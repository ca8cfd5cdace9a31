"""Authorization: the policies that refuse calls, and what filters lists.

Rule: scopes add up: every scope that has rules must agree, so a narrow scope can forbid more and never permit more. The
same rules filter lists (`permitted`), where only what is surely refused is left out, and what a policy server does not
let be listed (`shown`). What is in shadow is decided
besides, counted and logged, and refuses nothing.
"""

from collections.abc import Awaitable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tollhouse.core.call import Call
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.expr import Memo
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.reply import Reply
from tollhouse.net.client import OriginError
from tollhouse.observe.metrics import Count
from tollhouse.policies.authorize.approvals import Approvals
from tollhouse.policies.authorize.desk import Desk, Directory, Shared
from tollhouse.policies.authorize.document import reads
from tollhouse.policies.authorize.opa import Opa
from tollhouse.policies.authorize.queue import Queue
from tollhouse.policies.authorize.rego import BadPolicy, InThread, Rego, compiled
from tollhouse.policies.authorize.rules import Parted, Refusal, Rules, Step, rules_of, steps
from tollhouse.policies.authorize.spec import ApprovalsSpec, AuthorizeSpec, GuardSpec
from tollhouse.policies.base import EVERYWHERE, Kind, Layer, Parts, wrong
from tollhouse.store.memory import MemoryValues

__all__ = [
    "APPROVE", "APPROVE_ROUTE", "AUTHORIZE", "AUTHORIZE_ROUTE", "Authorize", "described", "desk_of", "explained",
    "permitted", "unasked",
]  # fmt: skip


class Remote(Protocol):
    """A policy that has to be waited for."""

    name: str
    shadow: bool

    async def refusal(self, call: Call) -> str:
        """Why the call is refused, "" where it is not. Raises Failure 503 where nobody can say."""
        ...


class Authorize:
    """The rules that are in force for one chain.

    rules: of each scope, those in force; parted: the same, to be asked about calls; shadow: the same with those in
    shadow, None where there are none. remotes: asked when the rules have let a call pass. servers: asked for lists.
    """

    def __init__(
        self,
        rules: Sequence[Rules],
        parted: Sequence[Parted],
        shadow: Sequence[Rules] | None,
        remotes: Sequence[Remote],
        decisions: "Decisions",
        servers: Sequence[Opa] = (),
    ) -> None:
        self._servers = tuple(servers)
        self._rules = tuple(rules)
        self._parted = tuple(parted)
        self._shadow = None if shadow is None else tuple(shadow)
        self._remotes = tuple(remotes)
        self._memo = _memo(rules)
        self._shadow_memo = _memo(shadow or ())
        # A listing depends on names only, whatever the rules name; but what servers say may change.
        fickle = any(e.reads_listed for scope in rules for e in scope.expressions)
        self._listed: Memo | None = None if fickle else Memo(())
        engines = {e.name for scope in rules for e in scope.engines} | {r.name for r in remotes if not r.shadow}
        if any(scope.expressions for scope in rules) or not engines:
            engines.add("cel")
        self._allowed = tuple(decisions.child(name, "allow") for name in sorted(engines))
        self._decisions = decisions

    @property
    def waits(self) -> bool:
        """Whether somebody has to be waited for: then `handle_waiting` is the policy."""
        return bool(self._remotes)

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 403."""
        self.check(call)
        return next(call)

    def handle_request(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """The same for a plain route. Raises Failure 403."""
        self.check(Call(request, request.context))
        return next(request)

    async def handle_waiting(self, call: Call, next: Handler[Call, Reply]) -> Reply:
        """The same where somebody is waited for. Raises Failure 403, and 503 where nobody can say."""
        await self.wait(call)
        return await next(call)

    async def handle_request_waiting(self, request: Request, next: Handler[Request, Response]) -> Response:
        """The same for a plain route."""
        await self.wait(Call(request, request.context))
        return await next(request)

    def check(self, call: Call) -> None:
        """Decide now, by all but those who have to be waited for, and remember it. Raises Failure 403."""
        self._decide(call)
        self._passed(call)

    async def wait(self, call: Call) -> None:
        """Decide, by all. Raises Failure 403, and 503 where nobody can say."""
        self._decide(call)
        await self._ask(call)
        self._passed(call)

    def _passed(self, call: Call) -> None:
        call.context.decision = "allow"
        for count in self._allowed:
            count.value += 1

    def _decide(self, call: Call) -> None:
        if self._memo.get(call) is not True:
            refusal = None
            for scope in self._parted:
                refusal = scope.refusal(call)
                if refusal is not None:
                    break
            self._memo.put(call, refusal is None)
            if refusal is not None:
                raise self._refused(refusal, call)
        if self._shadow is not None:
            self._check_shadow(self._shadow, call)

    def _check_shadow(self, rules: Sequence[Rules], call: Call) -> None:
        if self._shadow_memo.get(call) is True:
            self._decisions.child("cel", "shadow_allow").inc()
            return
        refusal = self._refusal(rules, call, False)
        self._shadow_memo.put(call, refusal is None)
        if refusal is None:
            self._decisions.child("cel", "shadow_allow").inc()
        else:
            call.context.shadow = refusal.rule
            self._decisions.child(refusal.engine, "shadow_deny").inc()

    async def _ask(self, call: Call) -> None:
        for remote in self._remotes:
            why = await remote.refusal(call)
            if not why:
                if remote.shadow:
                    self._decisions.child(remote.name, "shadow_allow").inc()
            elif remote.shadow:
                call.context.shadow = call.context.shadow or f"top: {why}"
                self._decisions.child(remote.name, "shadow_deny").inc()
            else:
                raise self._refused(Refusal(remote.name, f"top: {why}"), call)

    def _refused(self, refusal: Refusal, call: Call) -> Failure:
        self._decisions.child(refusal.engine, "deny").inc()
        call.context.rule, call.context.decision = refusal.rule, "deny"
        return Failure(
            403,
            Reason.AUTHORIZATION,
            "you are not permitted to do this; ask the operator of this gateway",
            code="permission_denied",
            detail=f"refused by {refusal.rule}",
        )

    def permitted(self, probe: Call) -> bool:
        """Whether something of this name may be listed for this principal. `probe` is a call of it (`tools/call` with
        the tool's name, a ModelCall with the model's); only its principal and names are looked at, and what its server
        says of it. What a rule would decide by anything else (arguments, headers, size) is listed, and decided when it
        is called."""
        listed = self._listed
        verdict = listed.get(probe) if listed is not None else None
        if verdict is None:
            verdict = self._refusal(self._rules, probe, True) is None
            if listed is not None:
                listed.put(probe, verdict)
        return verdict

    @property
    def asks(self) -> bool:
        """Whether a policy server has a say in lists: what is `permitted` is then put to `shown`."""
        return bool(self._servers)

    async def shown(self, probes: Sequence[Call]) -> list[bool]:
        """Which of these probes of one caller the policy servers let be listed, in their order."""
        told = [True] * len(probes)
        for server in self._servers:
            told = [a and b for a, b in zip(told, await server.shown(probes), strict=True)]
        return told

    def _refusal(self, rules: Sequence[Rules], call: Call, listing: bool) -> Refusal | None:
        for scope in rules:
            refusal = scope.refusal(call, listing)
            if refusal is not None:
                return refusal
        return None


class Decisions:
    """Counts of decisions by engine and decision."""

    def __init__(self, parts: Parts) -> None:
        self._family = parts.families.metrics.counter(
            "authorization_decisions_total", "Calls that rules let pass or refused.", ("engine", "decision")
        )

    def child(self, engine: str, decision: str) -> Count:
        return self._family.child(engine, decision)


class _NoMemo(Memo):
    """Nothing is remembered: a policy depends on more than names."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(())
        self.names_only = False


def _memo(rules: Sequence[Rules]) -> Memo:
    if any(not engine.names_only for scope in rules for engine in scope.engines):
        return _NoMemo()
    return Memo([expression for scope in rules for expression in scope.expressions])


def permitted(layers: Sequence[Layer], parts: Parts) -> "Authorize | None":
    """The rules that filter a list, or None when there are none; its `permitted` is asked for each entry, and where it
    `asks`, `shown` for those that are left."""
    return _make(tuple(layers), parts, lists=True) if layers else None


def _make(layers: tuple[Layer, ...], parts: Parts, *, lists: bool = False) -> Authorize | None:
    """None where nothing of all this decides."""
    real: list[Rules] = []
    parted: list[Parted] = []
    whole: list[Rules] = []
    remotes: list[Remote] = []
    servers: list[Opa] = []
    hidden = False
    for layer in layers:
        engines: list[Rego] = []
        if isinstance(layer.spec, GuardSpec):
            rego = _rego(layer, parts)
            if isinstance(rego, Rego):
                engines.append(rego)
            elif rego is not None:
                remotes.append(rego)
                if lists and not rego.shadow:
                    engines.append(rego.lists)
            opa = _opa(layer, parts)
            if opa is not None and not lists:
                remotes.append(opa)
            elif opa is not None and not opa.shadow:
                servers.append(opa)
        of_calls = [rule for rule in rules_of(layer) if rule.effect != "approve"]
        real_rules, real_engines = [r for r in of_calls if not r.shadow], [e for e in engines if not e.shadow]
        in_force = Rules(layer.where, real_rules, real_engines)
        every = Rules(layer.where, of_calls, engines)
        hidden = hidden or any(r.shadow for r in of_calls) or any(e.shadow for e in engines)
        if in_force:
            real.append(in_force)
            parted.append(Parted(layer.where, real_rules, real_engines))
        if every:
            whole.append(every)
    if not (real or (whole and not lists) or remotes or servers):
        return None
    shadow = whole if hidden and not lists else None
    return Authorize(real, parted, shadow, [] if lists else remotes, Decisions(parts), servers)


def _rego(layer: Layer, parts: Parts) -> Rego | InThread | None:
    spec = layer.spec.rego
    if spec is None:
        return None
    shadow = layer.spec.shadow
    key = ("rego", spec.query, shadow or spec.shadow, tuple(spec.modules.items()), tuple(spec.documents.items()))
    try:
        rego: Rego = parts.shared(key, partial(compiled, spec, shadow=shadow))
    except BadPolicy as error:
        raise wrong(layer, "authorize.rego", str(error)) from None
    if not spec.in_thread:
        return rego

    def make() -> InThread:
        return InThread(compiled(spec, shadow=shadow) if rego.reads.lists else rego, rego)

    threaded: InThread = parts.shared(("in thread", *key), make, InThread.close)
    return threaded


def _opa(layer: Layer, parts: Parts) -> Opa | None:
    spec = layer.spec.opa
    if spec is None:
        return None
    unasked = Decisions(parts).child("opa", "unavailable").inc
    shadow = layer.spec.shadow
    try:
        make = partial(Opa, spec, parts.client, parts.clock, shadow=shadow, unasked=unasked)
        opa: Opa = parts.shared(("opa", spec.fingerprint(), shadow), make, Opa.close)
    except OriginError as error:
        raise wrong(layer, "authorize.opa", str(error)) from None
    return opa


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    made = _make(layers, parts)
    if made is None:
        return None
    return made.handle_waiting if made.waits else made.handle


def _build_route(layers: tuple[Layer, ...], parts: Parts) -> Any:
    made = _make(layers, parts)
    if made is None:
        return None
    return made.handle_request_waiting if made.waits else made.handle_request


# ---- approvals


def desk_of(parts: Parts) -> Desk | None:
    """Where calls wait for operators; None where nobody could look."""
    if parts.state is not None and parts.state.shared:
        return Shared(parts.state)
    return Directory(Path(parts.spool)) if parts.spool else None


def _approvals(layers: tuple[Layer, ...], parts: Parts, *, users: bool) -> Approvals | None:
    found = [(layer, rule) for layer in layers for rule in rules_of(layer) if rule.effect == "approve"]
    if not found:
        return None
    spec = next((la.spec.approvals for la in layers if isinstance(la.spec, GuardSpec)), ApprovalsSpec())
    family = parts.families.metrics.counter(
        "approvals_total", "Calls that somebody was to approve.", ("asked", "outcome")
    )
    queue = _queue(parts)
    if queue is None:
        for layer, rule in found:
            if rule.spec.by != "user":
                message = (
                    "nobody could see the calls that wait: name a server in `state`, or a `ledger` file beside which "
                    "they stand; or ask only the agent's user (`by: user`)"
                )
                raise wrong(layer, "authorize.rules", message)
    values = (
        parts.state.values
        if parts.state is not None
        else parts.shared("approvals kept", partial(MemoryValues, parts.clock))
    )
    return Approvals(
        [rule for _, rule in found],
        spec,
        values,
        queue,
        parts.clock,
        lambda asked, outcome: family.child(asked, outcome).inc(),
        users=users,
    )


def _queue(parts: Parts) -> Queue | None:
    desk = desk_of(parts)
    if desk is None:
        return None
    waiting = parts.families.metrics.gauge("approvals_waiting", "Calls that wait for an operator.", ()).child()
    queue: Queue = parts.shared("approvals", partial(Queue, desk, parts.clock, waiting.set), Queue.close)
    return queue


def _build_approvals(layers: tuple[Layer, ...], parts: Parts) -> Any:
    made = _approvals(layers, parts, users=True)
    return None if made is None else made.handle


def _build_approvals_route(layers: tuple[Layer, ...], parts: Parts) -> Any:
    made = _approvals(layers, parts, users=False)
    return None if made is None else made.handle_request


def unasked(layers: tuple[Layer, ...], parts: Parts) -> Any:
    """The approve rules as a policy for calls within which no user can be asked: operators are. None for none."""
    made = _approvals(layers, parts, users=False)
    return None if made is None else made.handle


def described(layers: Sequence[Layer]) -> bool:
    """Whether anything of this asks what servers say of their tools."""
    for layer in layers:
        spec: AuthorizeSpec = layer.spec
        if any(rule.expression.reads_listed for rule in spec.rules):
            return True
        if isinstance(spec, GuardSpec) and (
            spec.opa is not None or (spec.rego is not None and reads(list(spec.rego.modules.values())).described)
        ):
            return True
    return False


# ---- what is said of one call


async def explained(layers: Sequence[Layer], parts: Parts, call: Call) -> tuple[list[Step], Failure | None]:
    """What each rule and each policy says of a call, in the order of the scopes, and the Failure that it would get;
    None where it may be made. Whether it waits for approval, the steps say. Raises ConfigError."""
    told: list[Step] = []
    for layer in layers:
        told += steps(rules_of(layer), call)
        if isinstance(layer.spec, GuardSpec):
            for engine in (_rego(layer, parts), _opa(layer, parts)):
                if engine is not None:
                    told.append(await _step(layer, engine, call))
    made = _make(tuple(layers), parts)
    if made is None:
        return told, None
    try:
        await made.wait(call)
    except Failure as failure:
        return told, failure
    return told, None


async def _step(layer: Layer, engine: Rego | InThread | Opa, call: Call) -> Step:
    why = engine.refusal(call) if isinstance(engine, Rego) else await engine.refusal(call)
    said = "deny" if why else "allow"
    return Step(
        layer.where, f"{layer.where}: {engine.name}", engine.name, why, said, bool(why) and not engine.shadow,
        engine.shadow,
    )  # fmt: skip


AUTHORIZE: Kind[Call, Reply] = Kind(
    "authorize", EVERYWHERE - {"route"}, adds=True, build=_build, entrances=frozenset(("llm", "mcp"))
)
AUTHORIZE_ROUTE: Kind[Request, Response] = Kind(
    "authorize", frozenset(("top", "route")), adds=True, build=_build_route, entrances=frozenset(("http",))
)
APPROVE: Kind[Call, Reply] = Kind(
    "authorize", EVERYWHERE - {"route"}, adds=True, build=_build_approvals, entrances=frozenset(("llm", "mcp"))
)
APPROVE_ROUTE: Kind[Request, Response] = Kind(
    "authorize", frozenset(("top", "route")), adds=True, build=_build_approvals_route, entrances=frozenset(("http",))
)
