"""The input of policies that are not written in CEL: the same variables, as one JSON object.

Rule: what a call does not have is not in it. `listing` says that the question is whether a name may be listed: then
only the caller and the name are there. An input is made of what the policy reads, so that nothing else is looked at.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from tollhouse.core.call import Call, Principal
from tollhouse.core.facts import FACTS, VARIABLES, Fact, gather, of_caller

__all__ = ["ALL", "Reads", "reads"]

_INPUT = re.compile(r"\binput\b((?:\s*\.\s*[A-Za-z_][A-Za-z0-9_]*|\s*\[\s*\"[^\"\\]*\"\s*\])*)")
_STEP = re.compile(r"\.\s*([A-Za-z_][A-Za-z0-9_]*)|\[\s*\"([^\"\\]*)\"\s*\]")
_NOT = re.compile(r"\bnot[ \t]+\Z")
_END = re.compile(r"[ \t]*(?:[;}\n]|\Z)")
_CHANGING = re.compile(r"\b(?:time\.now_ns|rand\.|uuid\.|opa\.|http\.|net\.|io\.jwt)")
"""Built-in functions whose answer is another one later."""

_NOBODY = Principal("anonymous", source="anonymous")
_EARLY = tuple(fact for fact in FACTS if not fact.late)


class Reads:
    """The facts that a policy reads. names_only: they say nothing of a call but its caller and its name, and it asks no
    clock. listing: it asks whether it is asked for a list. described: it asks what servers say of their tools."""

    __slots__ = ("_by_variable", "_callers", "_listed", "described", "listing", "names_only")

    def __init__(self, facts: Collection[Fact], *, listing: bool, changing: bool = False) -> None:
        self.listing = listing
        self.described = any(fact.listed for fact in facts)
        self.names_only = not changing and all(fact.caller or fact.name_of_call for fact in facts)
        self._callers = tuple(dict.fromkeys(fact.variable for fact in facts if fact.caller))
        self._by_variable = _grouped([fact for fact in facts if not fact.caller])
        self._listed = _grouped([fact for fact in facts if fact.name_of_call or fact.listed])

    @property
    def lists(self) -> bool:
        """Whether its answer about a name is worth asking for."""
        return self.listing or self._listed == self._by_variable

    def document(self, call: Call, *, listing: bool = False) -> dict[str, Any]:
        """Of `call`. Raises ValueError where what it reads cannot be read (arguments that are ambiguous or too
        deep)."""
        made: dict[str, Any] = {}
        if self._callers:
            known = of_caller(call.principal or _NOBODY)
            for variable in self._callers:
                made[variable] = known[variable]
        for variable, facts in (self._listed if listing else self._by_variable).items():
            value = gather(facts, call)
            if value:
                made[variable] = value
        if self.listing:
            made["listing"] = listing
        return made


def _grouped(facts: Collection[Fact]) -> Mapping[str, tuple[Fact, ...]]:
    found: dict[str, tuple[Fact, ...]] = {}
    for fact in facts:
        found[fact.variable] = (*found.get(fact.variable, ()), fact)
    return found


ALL = Reads(_EARLY, listing=False)
"""For policies that cannot be looked into."""


def reads(sources: Collection[str]) -> Reads:
    """What the Rego policy in `sources` reads, found in its text: every mention of `input` with the fields selected
    from it by name. A mention that selects nothing, or something by a variable, reads everything; one in a comment
    counts."""
    wanted: set[Fact] = set()
    listing = False
    for source in sources:
        for found in _INPUT.finditer(source):
            path = [name or quoted for name, quoted in _STEP.findall(found[1])]
            if not path:
                asks = any("listing" in text for text in sources)
                return Reads(_EARLY, listing=asks, changing=_changes(sources))
            if path[0] == "listing":
                listing = True
            wanted.update(_named(_facts(path)) if _is_absence(source, found) else _facts(path))
    return Reads([fact for fact in _EARLY if fact in wanted], listing=listing, changing=_changes(sources))


def _facts(path: list[str]) -> Collection[Fact]:
    """Those that `input.<path>` may stand for; none where there is no such thing."""
    if path[0] not in VARIABLES:
        return ()
    mine = [fact for fact in _EARLY if fact.variable == path[0]]
    if len(path) == 1 or not mine[0].name:
        return mine
    group = [fact for fact in mine if fact.group and fact.group == path[1]]
    if group:
        return [fact for fact in group if len(path) == 2 or fact.name == path[2]]
    return [fact for fact in mine if not fact.group and fact.name == path[1]]


def _named(facts: Collection[Fact]) -> Collection[Fact]:
    """Whether there is any of them is known when those are known that say what a call is about."""
    return [fact for fact in facts if fact.name_of_call] or facts


def _is_absence(source: str, found: re.Match[str]) -> bool:
    """Whether the mention stands in `not input.llm`: nothing of it is read."""
    return _NOT.search(source, 0, found.start()) is not None and _END.match(source, found.end()) is not None


def _changes(sources: Collection[str]) -> bool:
    return any(_CHANGING.search(source) for source in sources)
