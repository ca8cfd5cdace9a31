"""Authorization: CEL rules that allow and deny.

Rule: doubt denies. A deny rule that matches, or that cannot be decided, refuses the call; where a scope has allow
rules, one of them must match. Scopes add up: every scope that has rules must agree, so a narrow scope can forbid more
and never permit more. The same rules filter lists (`permitted`), where only what is surely refused is left out.

A rule that speaks of something the call is not about (`mcp.tool` on a model call) does not match it; see `core.expr`.
Requests that name nothing (the list of models, initialize, lists) pass allow rules about names: what they answer with
is filtered.
"""

from collections.abc import Awaitable, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from tollhouse.core.call import Call, ModelCall, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.expr import Cel, Expression, Memo, Outcome
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Spec
from tollhouse.observe.metrics import Count
from tollhouse.policies.base import EVERYWHERE, Kind, Layer, Parts

__all__ = ["AUTHORIZE", "AUTHORIZE_ROUTE", "Authorize", "AuthorizeSpec", "RuleSpec", "permitted"]

_NAMES_SOMETHING = frozenset(
    ("tools/call", "prompts/get", "resources/read", "resources/subscribe", "resources/unsubscribe")
)


class RuleSpec(Spec):
    """One rule: `allow` or `deny`, a CEL expression that is true or false."""

    allow: Cel | None = Field(default=None, description="calls for which it is true may pass")
    deny: Cel | None = Field(default=None, description="calls for which it is true, or in doubt, are refused")
    name: str = Field(default="", max_length=64, description="in logs and audit, in place of the rule's number")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.allow is None) == (self.deny is None):
            raise ValueError("a rule has either `allow` or `deny`")
        return self


class AuthorizeSpec(Spec):
    """Who may do what."""

    rules: tuple[RuleSpec, ...] = Field(
        min_length=1, description="any deny that matches refuses; where there are allows, one must match"
    )


class _Scope:
    """The rules of one scope."""

    __slots__ = ("allow", "deny", "where")

    def __init__(self, where: str, spec: AuthorizeSpec) -> None:
        self.where = where
        self.deny: list[tuple[str, Expression]] = []
        self.allow: list[Expression] = []
        for number, rule in enumerate(spec.rules, 1):
            if rule.deny is not None:
                self.deny.append((f"{where}: {rule.name or f'rule {number}'}", Expression(rule.deny)))
            elif rule.allow is not None:
                self.allow.append(Expression(rule.allow))

    def refusal(self, call: Call, listing: bool) -> str:
        """The rule that refuses the call, or "" when none does."""
        for name, expression in self.deny:
            said = expression.ask(call, listing=listing)
            if said is Outcome.YES:
                return name
            if said is Outcome.DOUBT:
                return f"{name} (in doubt)"
        if not self.allow:
            return ""
        if isinstance(call, ToolCall):
            apart = call.method not in _NAMES_SOMETHING
        else:
            apart = isinstance(call, ModelCall) and not call.model
        for expression in self.allow:
            said = expression.ask(call, listing=listing)
            if said is Outcome.YES or (listing and said is Outcome.UNSURE) or (apart and said is Outcome.APART):
                return ""
        return f"{self.where}: no allow rule matches"


class Authorize:
    """The rules that are in force for one chain."""

    def __init__(self, layers: Sequence[Layer], allowed: Count, denied: Count) -> None:
        self._scopes = tuple(_Scope(layer.where, layer.spec) for layer in layers)
        expressions = [e for s in self._scopes for e in (*s.allow, *(deny for _, deny in s.deny))]
        self._memo = Memo(expressions)
        self._listed = Memo(())  # a listing depends on names only, whatever the rules name
        self._allowed = allowed
        self._denied = denied

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 403."""
        if self._memo.get(call) is True:
            self._allowed.inc()
        else:
            self.check(call)
        return next(call)

    def handle_request(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """The same for a plain route. Raises Failure 403."""
        call = Call(request, request.context)
        if self._memo.get(call) is True:
            self._allowed.inc()
        else:
            self.check(call)
        return next(request)

    def check(self, call: Call) -> None:
        """Decide now, and remember it. Raises Failure 403."""
        refusal = self._refusal(call, False)
        self._memo.put(call, not refusal)
        if refusal:
            self._denied.inc()
            call.context.rule = refusal
            raise Failure(
                403,
                Reason.AUTHORIZATION,
                "you are not permitted to do this; ask the operator of this gateway",
                code="permission_denied",
                detail=f"refused by {refusal}",
            )
        self._allowed.inc()

    def permitted(self, probe: Call) -> bool:
        """Whether something of this name may be listed for this principal. `probe` is a call of it (`tools/call` with
        the tool's name, a ModelCall with the model's); only its principal and names are looked at. What a rule would
        decide by anything else (arguments, headers, size) is listed, and decided when it is called."""
        verdict = self._listed.get(probe)
        if verdict is None:
            verdict = not self._refusal(probe, True)
            self._listed.put(probe, verdict)
        return verdict

    def _refusal(self, call: Call, listing: bool) -> str:
        for scope in self._scopes:
            refusal = scope.refusal(call, listing)
            if refusal:
                return refusal
        return ""


def permitted(layers: Sequence[Layer], parts: Parts) -> "Authorize | None":
    """The rules that filter a list, or None when there are none; its `permitted` is asked for each entry."""
    return _make(tuple(layers), parts) if layers else None


def _make(layers: tuple[Layer, ...], parts: Parts) -> Authorize:
    decisions = parts.families.metrics.counter(
        "authorization_decisions_total", "Calls that rules let pass or refused.", ("engine", "decision")
    )
    return Authorize(layers, decisions.child("cel", "allow"), decisions.child("cel", "deny"))


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    return _make(layers, parts).handle


def _build_route(layers: tuple[Layer, ...], parts: Parts) -> Any:
    return _make(layers, parts).handle_request


AUTHORIZE: Kind[Call, Reply] = Kind(
    "authorize", EVERYWHERE - {"route"}, adds=True, build=_build, entrances=frozenset(("llm", "mcp"))
)
AUTHORIZE_ROUTE: Kind[Request, Response] = Kind(
    "authorize", frozenset(("top", "route")), adds=True, build=_build_route, entrances=frozenset(("http",))
)
