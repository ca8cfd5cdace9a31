"""The texts of one value: a request, an answer, a message; and the value with others in place of them.

Rule: whoever looked at the pieces sends what `replaced` gives, with new texts or without: what was not looked at does
not leave.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.guard.channel import edited
from tollhouse.wire.guard.json_text import JsonChannel
from tollhouse.wire.guard.llm.forms import Form, Look, New, Path
from tollhouse.wire.guard.llm.objects import Object
from tollhouse.wire.guard.patterns import Mask, PatternSet

__all__ = ["FieldTexts", "Piece", "Texts"]

Raw = msgspec.Raw

_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_items = msgspec.json.Decoder(list[Raw]).decode


class Piece(NamedTuple):
    """One text. key: its place, stable within the value; ends in the kind. kind: "text", "system", "reasoning",
    "arguments", "results" (of tools), "descriptions" and "names" (of what is offered, and of tools that are
    called), "echo" (the caller's own words, told again), "other" (members that are not known), "beside" (what says
    texts again, or has no business to say one). role: of its message. json: the text is JSON."""

    key: Path
    kind: str
    role: str
    text: str
    json: bool

    def masked(self, patterns: PatternSet, mask: Mask) -> str:
        """The text with its matches replaced; of JSON, with the JSON kept valid."""
        if not self.json:
            return patterns.replace(self.text, mask)
        channel = JsonChannel(patterns, mask)
        return edited(channel.feed(self.text)) + edited(channel.finish())


class Texts:
    """The texts of one value.

    pieces: in the order in which they stand there. opaque: what cannot be looked at, by kind: how many. signed: keys of
    pieces that a signature vouches for; it goes when they change, and then a provider may refuse them.
    """

    __slots__ = ("_again", "_form", "_source", "opaque", "pieces", "signed")

    def __init__(self, form: Form, source: bytes, *, many: bool = False) -> None:
        """many: it may be a list of objects. Raises ValueError for what is neither, and what cannot be read."""
        try:
            (_items if many and source.lstrip()[:1] == b"[" else _fields)(source)
        except UNREADABLE:
            raise ValueError("it is not a JSON object") from None
        look = Look()
        form.look(Raw(source), (), look)
        self._form = form
        self._source = source
        self._again = look.again
        self.pieces = _pieces(look)
        self.opaque = look.opaque
        self.signed = _signed(look)

    def replaced(self, new: Mapping[Path, str]) -> bytes:
        """The value with these texts in place of the pieces of those keys. The very same when there is nothing to
        change; to be sent in any case."""
        if not new and not self._again:
            return self._source
        return bytes(self._form.put(Raw(self._source), (), New({key[:-1]: new[key] for key in new}, self._again)))


def _pieces(look: Look) -> tuple[Piece, ...]:
    return tuple([Piece((*at, kind), kind, role, text, json) for at, _, kind, role, text, json in look.spots])


def _signed(look: Look) -> frozenset[Path]:
    kinds = {spot.at: spot.kind for spot in look.spots} if look.signed else {}
    return frozenset([(*at, kinds[at]) for at in look.signed])


class FieldTexts:
    """The texts of an object that has been opened: of a request's fields."""

    __slots__ = ("_again", "_fields", "_form", "opaque", "pieces", "signed")

    def __init__(self, form: Object, fields: Mapping[str, Raw]) -> None:
        """Raises ValueError for what cannot be read."""
        look = Look()
        form.look_fields(fields, (), look)
        self._form = form
        self._fields = fields
        self._again = look.again
        self.pieces = _pieces(look)
        self.opaque = look.opaque
        self.signed = _signed(look)

    def replaced(self, new: Mapping[Path, str]) -> dict[str, Raw]:
        """The fields to put in place of those of their names; none when there is nothing to change."""
        if not new and not self._again:
            return {}
        fields = dict(self._fields)
        told = self._form.put_fields(fields, (), New({key[:-1]: new[key] for key in new}, self._again))
        return {name: value for name, value in told.items() if value is not fields[name]}
