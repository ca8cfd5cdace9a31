"""The guards of one chain in one phase, made ready: patterns joined by what becomes of a match, and the checks.

Rule: what rejects, what only counts and what masks are looked for apart, since what overlaps within one set is one
match. Everything is refused before anything is changed. A set is made once for all chains that have the same rules.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from tollhouse.core.call import Call
from tollhouse.policies.base import Layer, Level, Parts, wrong
from tollhouse.policies.guardrails.acts import Acts, Fate, Guard, concerns
from tollhouse.policies.guardrails.asking import Asked, Entry, ask_all, made
from tollhouse.policies.guardrails.check import Phase
from tollhouse.policies.guardrails.seeking import patterns_of
from tollhouse.policies.guardrails.spec import GuardrailsSpec, GuardRuleSpec
from tollhouse.wire.guard.expression import Refused
from tollhouse.wire.guard.llm.texts import FieldTexts, Piece, Texts
from tollhouse.wire.guard.patterns import Mask, PatternSet
from tollhouse.wire.guard.rules import Rule

__all__ = ["Patterns", "Plan", "plan_of"]

R = TypeVar("R", FieldTexts, Texts)

_OF_TOOLS: tuple[Level, ...] = ("server", "tool", "endpoint")
_TOOLS: Mapping[Phase, frozenset[str]] = {
    "request": frozenset(("text", "arguments", "results")),
    "response": frozenset(("text", "results", "descriptions")),
}
_THERE: Mapping[tuple[Level, Phase], frozenset[str]] = {
    ("model", "response"): frozenset(("text", "reasoning", "arguments")),
    **{(level, phase): kinds for phase, kinds in _TOOLS.items() for level in _OF_TOOLS},
}
"""Kinds of texts by where a rule stands."""
_FIXED = frozenset(("names",))  # what is called by them would not be found


class Patterns:
    """Patterns of one fate that look at the same kinds of texts. guards: whose each is."""

    __slots__ = ("fate", "guards", "kinds", "set")

    def __init__(
        self, fate: Fate, kinds: frozenset[str] | None, patterns: PatternSet, guards: Mapping[Rule, Guard]
    ) -> None:
        self.fate: Fate = fate
        self.kinds = kinds
        self.set = patterns
        self.guards = guards

    def mask(self, acts: Acts) -> Mask:
        """What becomes of a match in one call."""
        return partial(getattr(acts, self.fate), self.guards)


class Plan:
    """phase: of calls. patterns: what rejects, then what counts, then what masks. checks: those that are asked."""

    __slots__ = ("checks", "kinds", "opaque", "patterns", "phase", "reversible", "unsupported")

    def __init__(
        self,
        phase: Phase,
        patterns: Sequence[Patterns],
        checks: Sequence[Asked],
        *,
        unsupported: bool,
        opaque: bool,
    ) -> None:
        """unsupported, opaque: whether they pass."""
        self.phase: Phase = phase
        order: tuple[Fate, ...] = ("reject", "count", "mask")
        self.patterns = tuple(sorted(patterns, key=lambda one: order.index(one.fate)))
        self.checks = tuple(checks)
        self.unsupported = unsupported
        self.opaque = opaque
        self.reversible = any(guard.reversible for one in patterns for guard in one.guards.values()) or any(
            check.guard.reversible for check in checks
        )

    def scan(self, pieces: Sequence[Piece], acts: Acts) -> dict[Any, str]:
        """The texts that are others, by key. Raises Failure."""
        changed: dict[Any, str] = {}
        for one in self.patterns:
            mask = one.mask(acts)
            kinds, patterns = one.kinds, one.set
            masks = one.fate == "mask"
            for piece in pieces:
                kind = piece.kind
                if not concerns(kinds, kind) or (masks and kind in _FIXED):
                    continue
                if changed and piece.key in changed:
                    piece = piece._replace(text=changed[piece.key])
                new = piece.masked(patterns, mask)
                if new != piece.text:
                    changed[piece.key] = new
        return changed

    def looked_at(self, acts: Acts, read: Callable[..., R], *args: Any) -> tuple[R, dict[Any, str]]:
        """What `read` finds in a request or an answer, and those of its texts that are others. Raises Failure, also for
        what cannot be read."""
        what = "request" if self.phase == "request" else "answer"
        try:
            texts = read(*args)
        except ValueError as error:
            raise acts.overfull(f"the {what} cannot be read: {error}") from None
        if texts.opaque:
            acts.unseen(f"{next(iter(texts.opaque))} in the {what}", passes=self.opaque)
        return texts, self.scan(texts.pieces, acts)

    async def ask(self, checks: Sequence[Asked], entries: Sequence[Entry], acts: Acts, call: Call) -> dict[Any, str]:
        """What some of the checks make of these texts: those that are others, by key. Raises Failure."""
        return await ask_all(checks, entries, acts, call, self.phase)


def plan_of(layers: Sequence[Layer], phase: Phase, parts: Parts, *, watched: bool = True) -> Plan | None:
    """The guards of these scopes for one phase; None where there are none. watched: their health is that of the guards
    of their names. Raises ConfigError."""
    if not watched:
        parts = replace(parts, watch=None)
    groups: dict[tuple[Fate, frozenset[str] | None], list[tuple[str, GuardRuleSpec, Guard]]] = {}
    checks: list[Asked] = []
    unsupported = opaque = True
    for layer in layers:
        spec: GuardrailsSpec = layer.spec
        rules: tuple[GuardRuleSpec, ...] = getattr(spec, phase)
        if rules:  # the strictest of the scopes that have any
            unsupported = unsupported and spec.unsupported == "pass"
            opaque = opaque and spec.opaque == "pass"
        for number, rule in enumerate(rules):
            where = f"guardrails.{phase}[{number}]"
            guard = Guard(rule)
            _has_effect(rule, phase, layer, where)
            if rule.is_pattern:
                groups.setdefault((guard.fate, guard.kinds), []).append((where, rule, guard))
            else:
                checks.append(made(rule, guard, layer, where, parts))
    if not groups and not checks:
        return None
    patterns = [_patterns(layers, fate, kinds, members, parts) for (fate, kinds), members in groups.items()]
    return Plan(phase, patterns, checks, unsupported=unsupported, opaque=opaque)


def _has_effect(rule: GuardRuleSpec, phase: Phase, layer: Layer, where: str) -> None:
    """Raises ConfigError for a rule that looks at texts of a kind that is not there."""
    there = _THERE.get((layer.level, phase))
    if rule.in_ is not None and there is not None and not there.intersection(rule.in_):
        what = f"has no effect here: a {phase} has {', '.join(sorted(there))}"
        raise wrong(layer, f"{where}.in", what)


def _patterns(
    layers: Sequence[Layer],
    fate: Fate,
    kinds: frozenset[str] | None,
    members: Sequence[tuple[str, GuardRuleSpec, Guard]],
    parts: Parts,
) -> Patterns:
    where = members[0][0]
    try:
        key = tuple((rule.fingerprint(), rule.keywords and rule.keywords.written) for _, rule, _ in members)
        found: tuple[PatternSet, Mapping[Rule, Guard]] = parts.shared(
            ("guard patterns", fate, kinds, key), partial(_joined, members)
        )
    except Refused as error:
        raise wrong(layers[-1], where, str(error)) from None
    return Patterns(fate, kinds, *found)


def _joined(members: Sequence[tuple[str, GuardRuleSpec, Guard]]) -> tuple[PatternSet, Mapping[Rule, Guard]]:
    guards: dict[Rule, Guard] = {}
    for _, rule, guard in members:
        for one in patterns_of(rule):
            guards[one] = guard
    return PatternSet(guards, max_match=max(rule.max_match for _, rule, _ in members)), guards
