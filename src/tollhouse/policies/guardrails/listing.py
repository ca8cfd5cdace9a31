"""What servers say of their tools, prompts and resources, before agents see it in a list.

Rule: a list is looked at once, when it is new, and by patterns alone: nobody is asked while agents wait for lists. An
entry in which something is found that rejects is not listed, nor is one whose address would have to be masked: nothing
would be found there.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from tollhouse.core.call import Context
from tollhouse.core.errors import Failure
from tollhouse.policies.base import Layer, Parts
from tollhouse.policies.guardrails.acts import Acts, Counts
from tollhouse.policies.guardrails.plan import Plan, plan_of
from tollhouse.wire.guard.llm.texts import Piece
from tollhouse.wire.guard.mcp import entry_texts
from tollhouse.wire.mcp.catalogue import Entry, Kind, Listing

__all__ = ["Descriptions", "descriptions"]

log = logging.getLogger("tollhouse.policies.guardrails")

_SEEN = 16  # listings: four kinds, for callers of several eras
_TOOLS: Final = "tools/list"
_ADDRESSES: Final = frozenset(("uri", "uriTemplate"))


class Descriptions:
    """The guards of one server's lists. plan: for all entries but those of tools with rules of their own, by the
    server's names for them; None where there are none."""

    __slots__ = ("_counts", "_plan", "_seen", "_server", "_tools")

    def __init__(self, server: str, plan: Plan | None, tools: Mapping[str, Plan], counts: Counts) -> None:
        self._server = server
        self._plan = plan
        self._tools = dict(tools)
        self._counts = counts
        self._seen: dict[int, tuple[Listing, Listing]] = {}

    def __call__(self, kind: Kind, listing: Listing) -> Listing:
        """The list as agents see it: the same where nothing is found."""
        known = self._seen.get(id(listing))
        if known is not None and known[0] is listing:
            known[1].until = listing.until
            return known[1]
        made = self._made(kind, listing)
        if len(self._seen) >= _SEEN:
            self._seen.pop(next(iter(self._seen)))
        self._seen[id(listing)] = (listing, made)
        return made

    def _made(self, kind: Kind, listing: Listing) -> Listing:
        acts = Acts(Context(), "response", self._counts)
        entries: list[Entry] = []
        for entry in listing.entries:
            plan = self._tools.get(entry.original, self._plan) if kind.method == _TOOLS else self._plan
            try:
                entries.append(entry if plan is None else _looked_at(entry, plan, acts))
            except (Failure, ValueError) as error:
                why = error.detail if isinstance(error, Failure) else str(error)
                log.warning("mcp server %s: %r is not listed: %s", self._server, entry.name[:200], why)
        acts.done()
        if len(entries) == len(listing.entries) and all(map(_same, entries, listing.entries)):
            return listing
        made = Listing(entries, at=listing.at, until=listing.until, dropped=listing.dropped, public=listing.public)
        made.source = listing.source or listing
        return made


def _same(one: Entry, other: Entry) -> bool:
    return one is other


def _looked_at(entry: Entry, plan: Plan, acts: Acts) -> Entry:
    """Raises Failure, and ValueError for what cannot be read."""
    texts = entry_texts(entry.raw)
    changed = plan.scan(texts.pieces, acts)
    _refuse_addresses(texts.pieces, plan, acts)
    old = None if entry.old is None else _looked_at(entry.old, plan, acts)
    raw = texts.replaced(changed)
    if raw == entry.raw and old is entry.old:
        return entry
    made = Entry(
        entry.name,
        raw,
        headers=entry.headers,
        repeatable=entry.repeatable,
        old=old,
        original=entry.original,
        task=entry.task,
    )
    made.facts = entry.facts
    return made


def _refuse_addresses(pieces: Sequence[Piece], plan: Plan, acts: Acts) -> None:
    """Raises Failure."""
    # Of the names of members those that are nobody's but the server's own, too.
    addresses = [piece for piece in pieces if piece.key[0] in _ADDRESSES or isinstance(piece.key[0], tuple)]
    for one in plan.patterns if addresses else ():
        if one.fate == "mask":
            for piece in addresses:
                piece.masked(one.set, partial(acts.reject, one.guards))


def descriptions(
    server: str, layers: Sequence[Layer], tools: Mapping[str, Sequence[Layer]], parts: Parts
) -> Callable[[Kind, Listing], Listing] | None:
    """The guards of these scopes, None where none looks at descriptions. tools: of those with scopes of their own.
    Raises ConfigError."""
    plan = _described(layers, parts)
    own = {name: made for name, some in tools.items() if (made := _described(some, parts))}
    return Descriptions(server, plan, own, Counts(parts.families)) if plan is not None or own else None


def _described(layers: Sequence[Layer], parts: Parts) -> Plan | None:
    plan = plan_of(layers, "response", parts, asks=False)
    if plan is None:
        return None
    patterns = [one for one in plan.patterns if one.kinds is None or "descriptions" in one.kinds]
    return Plan("response", patterns, (), unsupported=True, opaque=True) if patterns else None
