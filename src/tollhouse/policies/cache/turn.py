"""The last thing a user says in a request, and all else of the request: what may be said in other words, and what not.

Rule: only text counts. A turn with a picture, a file, a tool's result or anything that is not known is no question that
can be compared; and whatever stands before it or beside it is in the context byte for byte.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from tollhouse.core.call import ModelCall
from tollhouse.core.depth import UNREADABLE

__all__ = ["Question", "question_of"]

Raw = msgspec.Raw

_PLACES: Final = {
    "chat": ("messages", "content"),
    "messages": ("messages", "content"),
    "converse": ("messages", "content"),
    "responses": ("input", "content"),
    "generate": ("contents", "parts"),
}
"""The field that has the turns, and that of a turn that has its text, by operation."""

_TEXTS: Final = frozenset((b'"text"', b'"input_text"'))

_list = msgspec.json.Decoder(list[Raw]).decode
_members = msgspec.json.Decoder(dict[str, Raw]).decode
_string = msgspec.json.Decoder(str).decode


class Question(NamedTuple):
    """text: what the user says last. field: of the request that has it; context: what else is in that field."""

    text: str
    field: str
    context: tuple[Any, ...]


def question_of(call: ModelCall) -> Question | None:
    """None where the request does not end with text of its user."""
    place = _PLACES.get(call.operation)
    if place is None:
        return None
    field, within = place
    raw = call.fields.get(field)
    if raw is None:
        return None
    try:
        if bytes(raw)[:1] == b'"':
            return Question(_string(raw), field, (b"text",))
        turns = _list(raw)
        if not turns:
            return None
        last = _members(turns[-1])
        role = last.get("role")
        if role is not None and bytes(role) != b'"user"':
            return None
        found = _text(last.pop(within, None), within)
    except UNREADABLE:
        return None
    if found is None:
        return None
    text, shape = found
    return Question(text, field, (b"turns", *turns[:-1], b"last", *_flat(last), shape))


def _text(raw: Raw | None, within: str) -> tuple[str, bytes] | None:
    """The text, and the form that it comes in."""
    if raw is None:
        return None
    if within == "content" and bytes(raw)[:1] == b'"':
        return _string(raw), b"string"
    texts = []
    for part in _list(raw):
        members = _members(part)
        kind = members.pop("type", None)
        text = members.pop("text", None)
        if text is None or members or (kind is not None and bytes(kind) not in _TEXTS):
            return None
        texts.append(_string(text))
    return ("\n".join(texts), b"parts %d" % len(texts)) if texts else None


def _flat(members: Mapping[str, Raw]) -> Sequence[Any]:
    flat: list[Any] = []
    for name in sorted(members):
        flat += (name.encode("utf-8", "surrogatepass"), members[name])
    return flat
