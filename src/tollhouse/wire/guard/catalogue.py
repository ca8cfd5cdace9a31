"""The rules that come with the gateway, by name.

Rule: a name of a group stands for all in it, and `-name` takes one out again; a name that is nobody's is refused with
the one that may be meant.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from tollhouse.wire.guard.credentials import credentials
from tollhouse.wire.guard.expression import Refused
from tollhouse.wire.guard.national import national
from tollhouse.wire.guard.personal import personal
from tollhouse.wire.guard.rules import Rule

__all__ = ["ASKED_FOR", "groups", "named"]

ASKED_FOR = frozenset(("high_entropy", "ip", "mac"))
"""Rules that no group has, since they find much that is harmless."""


def groups() -> dict[str, tuple[str, ...]]:
    """The names of rules by group: `pii`, `national_id`, `secrets`."""
    people, numbers, keys = tuple(personal()), tuple(national()), tuple(credentials())
    pii = tuple(name for name in (*people, *numbers) if name not in ASKED_FOR)
    return {
        "pii": pii,
        "national_id": numbers,
        "secrets": tuple(name for name in keys if name not in ASKED_FOR),
    }


def named(names: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of these names and groups, each once, in the catalogue's order. Raises Refused."""
    rules = {**national(), **personal(), **credentials()}
    known = groups()
    wanted: dict[str, None] = {}
    for name in names:
        own = name.removeprefix("-")
        members = known.get(own) or ((own,) if own in rules else None)
        if members is None:
            close = get_close_matches(own, [*rules, *known], 1)
            raise Refused(f"there is no rule {own!r}" + (f"; {close[0]!r} may be meant" if close else ""))
        if own != name:
            for member in members:
                wanted.pop(member, None)
        else:
            wanted.update(dict.fromkeys(members))
    if not wanted:
        raise Refused("no rules are left")
    return tuple(rule for name, several in rules.items() if name in wanted for rule in several)
