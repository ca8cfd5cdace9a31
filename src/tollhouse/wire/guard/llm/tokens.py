"""Log-probs: a text that is told again, token by token.

Rule: they go where the text beside them changes. Where they are not that text (they come before it, behind it, or
alone) they are a text of their own, and go when something is found in that.
"""

from collections.abc import Sequence

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.guard.llm.forms import OTHER, Form, Look, New, Path, Spot

__all__ = ["LABEL", "Tokens", "told"]

Raw = msgspec.Raw

LABEL = "logprobs"


class _Token(msgspec.Struct, gc=False):
    token: str = ""


class _Told(msgspec.Struct, gc=False):
    """By the names of all APIs."""

    content: list[_Token] | None = None
    refusal: list[_Token] | None = None
    tokens: list[str] | None = None
    chosen: list[_Token] | None = msgspec.field(default=None, name="chosenCandidates")
    chosen_snake: list[_Token] | None = msgspec.field(default=None, name="chosen_candidates")


_told = msgspec.json.Decoder(_Told | list[_Token] | None).decode


def told(raw: Raw) -> str:
    """All tokens. Raises msgspec.DecodeError for what has another form."""
    if len(raw) < 5:  # null, [], {}
        return ""
    found = _told(raw)
    if found is None:
        return ""
    if isinstance(found, list):
        return _joined(found)
    own = _joined(found.content) + _joined(found.refusal) + "".join(found.tokens or ())
    return own + _joined(found.chosen) + _joined(found.chosen_snake)


def _joined(tokens: Sequence[_Token] | None) -> str:
    return "".join([one.token for one in tokens or ()])


class Tokens(Form):
    """The log-probs of what stands beside them. instead: what takes their place."""

    __slots__ = ("_instead",)

    def __init__(self, instead: bytes) -> None:
        self._instead = instead

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        try:
            text = told(raw)
        except UNREADABLE:
            OTHER.look(raw, at, look)
            return
        if not text:
            return
        depth = len(at) - 1
        beside = [spot.text for spot in look.spots if spot.at[:depth] == at[:-1]]
        if text not in beside and text != "".join(beside):
            look.spots.append(Spot(at, (*look.name, LABEL, "beside"), "beside", look.role, text, False))

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        return Raw(self._instead)
