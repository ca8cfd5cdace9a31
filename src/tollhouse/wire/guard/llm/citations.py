"""Places in a text that something else names by number, once the text is another.

Rule: a place outside of what was replaced moves along; one within it becomes the border of what stands there now, so
that a citation still covers what it is about and says nothing of what was there.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.guard.llm.forms import Form, string
from tollhouse.wire.guard.llm.objects import Object

__all__ = ["Cited", "Moved", "change", "moved", "renumbered"]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_items = msgspec.json.Decoder(list[Raw]).decode
_number = msgspec.json.Decoder(int).decode


class Moved(NamedTuple):
    """Characters from `begin` on, `before` of them, are now `after`."""

    begin: int
    before: int
    after: int


def change(before: str, after: str, begin: int = 0) -> Moved:
    """What became of a text that begins at `begin`: all from the first to the last difference."""
    least = min(len(before), len(after))
    same = 0
    while same < least and before[same] == after[same]:
        same += 1
    end = 0
    while end < least - same and before[-1 - end] == after[-1 - end]:
        end += 1
    return Moved(begin + same, len(before) - same - end, len(after) - same - end)


def moved(changes: Sequence[Moved], place: int, *, end: bool) -> int:
    """Where a place is after the changes, which are in order. end: it is the end of something."""
    shift = 0
    for begin, before, after in changes:
        if place <= begin:
            break
        if place < begin + before:
            return begin + shift + (after if end else 0)
        shift += after - before
    return place + shift


def renumbered(citation: Raw, changes: Sequence[Moved], begin: str, end: str, within: str = "") -> Raw:
    """A citation with its places moved. begin, end: their names. within: the member that has them, for kinds that have
    one."""
    try:
        fields = _fields(citation)
        if within and within in fields:
            fields[within] = renumbered(fields[within], changes, begin, end)
            return Raw(_encode(fields))
        for name in (begin, end):
            if name in fields:
                fields[name] = Raw(b"%d" % moved(changes, _number(fields[name]), end=name == end))
    except UNREADABLE:
        return citation
    return Raw(_encode(fields))


class Cited(Object):
    """An object whose text is cited by number in its neighbour. text, citations: their names; `within` as above."""

    __slots__ = ("_citations", "_text", "_within")

    def __init__(
        self,
        members: Mapping[str, Form | None],
        *,
        text: str,
        citations: str,
        within: str = "",
        kind: str = "",
        by: str = "",
        stale: Mapping[str, bytes | None] | None = None,
    ) -> None:
        super().__init__(members, kind=kind, by=by, stale=stale or {})
        self._text = text
        self._citations = citations
        self._within = within

    def refresh(self, before: Mapping[str, Raw], after: dict[str, Raw]) -> None:
        if self._text not in before or before[self._text] == after[self._text]:
            return
        super().refresh(before, after)
        if self._citations not in after:
            return
        was, now = string(before[self._text]), string(after[self._text])
        if was is None or now is None:
            return
        changes = [change(was, now)]
        try:
            items = _items(after[self._citations])
        except UNREADABLE:
            return
        told = [renumbered(item, changes, "start_index", "end_index", self._within) for item in items]
        after[self._citations] = Raw(_encode(told))
