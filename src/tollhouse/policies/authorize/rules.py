"""What the rules of one scope say of a call.

Rule: doubt denies, and order says nothing. A deny rule that matches, or cannot be decided, refuses; a require rule that
does not match, or cannot be decided, refuses; where there are allow rules, one of them must match; where there is a
policy in Rego, it must agree. Rules in shadow are left out of the decision: what it would be with them is another one.

A rule that speaks of something the call is not about (`mcp.tool` on a model call) says nothing of it; see `core.expr`.
Requests that name nothing (the list of models, initialize, lists) pass allow rules about names: what they answer with
is filtered.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from tollhouse.core.call import Call, ModelCall, ToolCall
from tollhouse.core.expr import Expression, Memo, Outcome
from tollhouse.policies.authorize.spec import AuthorizeSpec, RuleSpec
from tollhouse.policies.base import Layer

__all__ = ["NAMING", "Engine", "Parted", "Refusal", "Rule", "Rules", "Step", "names_something", "rules_of", "steps"]

NAMING = frozenset(("tools/call", "prompts/get", "resources/read", "resources/subscribe", "resources/unsubscribe"))
"""MCP's methods that name what they are about."""

YES, DOUBT, APART, UNSURE = Outcome.YES, Outcome.DOUBT, Outcome.APART, Outcome.UNSURE


class Refusal(NamedTuple):
    """Who refuses: the engine (cel, rego, opa), and the rule by its scope and name."""

    engine: str
    rule: str


class Step(NamedTuple):
    """One rule, and what it says of a call. said: yes, no, doubt, apart (it is about something else); of engines allow
    or deny. refuses: it is why the call is refused, by itself. source: the expression, or what was asked."""

    where: str
    rule: str
    effect: str
    source: str
    said: str
    refuses: bool
    shadow: bool


class Engine(Protocol):
    """A policy that is asked in this process, at once."""

    name: str
    shadow: bool
    names_only: bool
    """Its decision depends on the Principal and the name alone."""

    def refusal(self, call: Call, listing: bool) -> str:
        """Why the call is refused; "" where it is not. Raises nothing: what cannot be decided is refused."""
        ...


class Rule:
    """A rule, ready to be asked. where: its scope. name: with the scope, as logs have it."""

    __slots__ = ("effect", "expression", "name", "shadow", "spec", "where")

    def __init__(self, where: str, number: int, spec: RuleSpec, *, shadow: bool) -> None:
        self.where = where
        self.spec = spec
        self.effect = spec.effect
        self.expression = spec.expression
        self.name = f"{where}: {spec.name or f'rule {number}'}"
        self.shadow = shadow or spec.shadow


def rules_of(layer: Layer) -> list[Rule]:
    """All rules of one scope."""
    spec: AuthorizeSpec = layer.spec
    return [Rule(layer.where, n, rule, shadow=spec.shadow) for n, rule in enumerate(spec.rules, 1)]


def names_something(call: Call) -> bool:
    """Whether it is about a thing that has a name, or is a plain request."""
    if isinstance(call, ToolCall):
        return call.method in NAMING
    return bool(call.model) if isinstance(call, ModelCall) else True


class Rules:
    """Those of one scope that decide together."""

    __slots__ = ("_allow", "_deny", "_require", "engines", "where")

    def __init__(self, where: str, rules: Sequence[Rule], engines: Sequence[Engine] = ()) -> None:
        self.where = where
        self._deny = [(rule.name, rule.expression) for rule in rules if rule.effect == "deny"]
        self._require = [(rule.name, rule.expression) for rule in rules if rule.effect == "require"]
        self._allow = [rule.expression for rule in rules if rule.effect == "allow"]
        self.engines = tuple(engines)

    def __bool__(self) -> bool:
        return bool(self._deny or self._require or self._allow or self.engines)

    @property
    def expressions(self) -> list[Expression]:
        return [*self._allow, *(e for _, e in self._deny), *(e for _, e in self._require)]

    def refusal(self, call: Call, listing: bool) -> Refusal | None:
        """The rule that refuses the call, None when none does. listing: only what is sure is refused."""
        for name, expression in self._deny:
            said = expression.ask(call, listing=listing)
            if said is YES:
                return Refusal("cel", name)
            if said is DOUBT:
                return Refusal("cel", f"{name} (in doubt)")
        for name, expression in self._require:
            said = expression.ask(call, listing=listing)
            if said is DOUBT:
                return Refusal("cel", f"{name} (in doubt)")
            if said is not YES and said is not APART and said is not UNSURE:
                return Refusal("cel", f"{name} (required)")
        if self._allow and not self.allows(call, listing):
            return Refusal("cel", f"{self.where}: no allow rule matches")
        for engine in self.engines:
            why = engine.refusal(call, listing)
            if why:
                return Refusal(engine.name, f"{self.where}: {why}")
        return None

    def allows(self, call: Call, listing: bool) -> bool:
        """Whether one of its allow rules matches."""
        apart = not names_something(call)
        for expression in self._allow:
            said = expression.ask(call, listing=listing)
            if said is YES or (listing and said is UNSURE) or (apart and said is APART):
                return True
        return False


class Parted:
    """The rules of one scope, asked about calls: what those say that depend on names alone is remembered, so that one
    rule over arguments does not have all the others asked each time. The decision is that of `Rules`."""

    __slots__ = ("_allows", "_fixed", "_fixed_allow", "_known", "_known_allow", "_rest", "_rest_allow", "_where")

    def __init__(self, where: str, rules: Sequence[Rule], engines: Sequence[Engine] = ()) -> None:
        allows = [rule for rule in rules if rule.effect == "allow"]
        others = [rule for rule in rules if rule.effect != "allow"]
        self._where = where
        self._allows = bool(allows)
        self._fixed = Rules(where, _of(others, True), [engine for engine in engines if engine.names_only])
        self._rest = Rules(where, _of(others, False), [engine for engine in engines if not engine.names_only])
        self._fixed_allow = Rules(where, _of(allows, True))
        self._rest_allow = Rules(where, _of(allows, False))
        self._known = Memo(())
        self._known_allow = Memo(())

    def refusal(self, call: Call) -> Refusal | None:
        """As that of `Rules`, of a call; another one of several that refuse may be named."""
        if self._fixed and self._known.get(call) is not True:
            refusal = self._fixed.refusal(call, False)
            self._known.put(call, refusal is None)
            if refusal is not None:
                return refusal
        if self._allows:
            allowed = self._known_allow.get(call) if self._fixed_allow else False
            if allowed is None:
                allowed = self._fixed_allow.allows(call, False)
                self._known_allow.put(call, allowed)
            if not allowed and not self._rest_allow.allows(call, False):
                return Refusal("cel", f"{self._where}: no allow rule matches")
        return self._rest.refusal(call, False) if self._rest else None


def _of(rules: Sequence[Rule], names_only: bool) -> list[Rule]:
    return [rule for rule in rules if rule.expression.names_only is names_only]


def steps(rules: Sequence[Rule], call: Call) -> Iterator[Step]:
    """What each rule says of the call, in the order of the configuration."""
    allows = [rule for rule in rules if rule.effect == "allow" and not rule.shadow]
    one = any(_passes(rule.expression.ask(call), call) for rule in allows)
    for rule in rules:
        said = rule.expression.ask(call)
        refuses = False
        if rule.effect == "deny":
            refuses = said in (YES, DOUBT)
        elif rule.effect == "require":
            refuses = said not in (YES, APART)
        elif rule.effect == "allow":
            refuses = not one and not _passes(said, call)
        yield Step(
            rule.where, rule.name, rule.effect, rule.spec.source, said.value, refuses and not rule.shadow, rule.shadow
        )


def _passes(said: Outcome, call: Call) -> bool:
    return said is YES or (said is APART and not names_something(call))
