"""What a rule of the configuration looks for, as the patterns of `wire.guard`.

Rule: each rule of the configuration has patterns of its own, also where two look for the same, so that what is found
says whose it is.
"""

from tollhouse.policies.guardrails.spec import GuardRuleSpec
from tollhouse.wire.guard.catalogue import named
from tollhouse.wire.guard.dangers import blocked_code, dangers
from tollhouse.wire.guard.links import AllowedHosts, images, links
from tollhouse.wire.guard.rules import Rule, keywords, pattern

__all__ = ["patterns_of"]


def patterns_of(rule: GuardRuleSpec) -> tuple[Rule, ...]:
    """The patterns of a rule that `is_pattern`. Raises Refused."""
    name = rule.name or rule.kind
    if rule.pii is not None:
        return named(rule.pii)
    if rule.secrets is not None:
        return named(rule.secrets)
    if rule.regex is not None:
        return tuple(pattern(name, one) for one in rule.regex)
    if rule.keywords is not None:
        said = rule.keywords
        return (keywords(name, said.written, ignore_case=said.ignore_case, whole_words=said.whole_words),)
    if rule.links is not None:
        allowed = AllowedHosts(rule.links.allow)
        return images(allowed, name) if rule.links.images else links(allowed, name)
    if rule.code is not None:
        return (blocked_code(tuple(map(_literal, rule.code)), name),)
    if rule.injection is not None:
        return rule.injection.patterns
    assert rule.dangers is not None
    known = dangers()
    return tuple(one for kind in rule.dangers for one in known[kind])


def _literal(text: str) -> str:
    return "".join(letter if letter.isalnum() else f"\\{letter}" for letter in text)
