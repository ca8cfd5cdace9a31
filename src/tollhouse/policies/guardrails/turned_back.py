"""Masks that are turned back: where their key comes from, and the answers in which they are.

Rule: only the caller's view is turned back, last of all: what is kept, logged or counted has the placeholders.
"""

import os
from collections.abc import Callable
from typing import Any

from tollhouse.core.call import Call
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.stages import Windowed
from tollhouse.wire.guard.llm.texts import FieldTexts, Piece, Texts
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.placeholders import Placeholders, derived_key, placeholder_patterns

__all__ = ["Making", "TurnedBack", "making", "turned_back"]

Making = Callable[[Call], Placeholders]
"""The placeholders of a call: the same value has the same one in all calls of one caller."""


class TurnedBack:
    """Puts values back in the place of their placeholders. patterns: what those look like."""

    __slots__ = ("_patterns",)

    def __init__(self, patterns: PatternSet) -> None:
        self._patterns = patterns

    def whole(self, texts: Texts, placeholders: Placeholders) -> bytes:
        """An answer or message, with the values."""
        return texts.replaced(self.new(texts, placeholders))

    def stage(self, placeholders: Placeholders) -> Windowed:
        """The same for a stream."""
        return Windowed(self._patterns, placeholders.value, None, also=True)

    def new(self, texts: Texts | FieldTexts, placeholders: Placeholders) -> dict[Any, str]:
        """The texts that are others, by key. Names, those of members too, are what they are."""
        new = {}
        for piece in texts.pieces:
            if "[" in piece.text and not _is_name(piece) and piece.key not in texts.signed:
                text = piece.masked(self._patterns, placeholders.value)
                if text != piece.text:
                    new[piece.key] = text
        return new


def _is_name(piece: Piece) -> bool:
    """Of a tool or an argument, or of a member that nobody knows."""
    return piece.kind == "names" or (len(piece.key) > 1 and isinstance(piece.key[-2], tuple))


def making(parts: Parts) -> Making:
    """By the gateway's own key, which all workers have."""
    secret: bytes = parts.shared(("guard key",), _random) if parts.state is None else parts.state.keys[0]

    def made(call: Call) -> Placeholders:
        principal = call.principal
        tenant = "" if principal is None else f"{len(principal.org)}:{principal.org}{principal.id}"
        return Placeholders(derived_key(secret, tenant, ""))

    return made


def turned_back(parts: Parts) -> TurnedBack:
    """Made once for all chains. Raises Refused."""
    made: TurnedBack = parts.shared(("guard placeholders",), _made)
    return made


def _made() -> TurnedBack:
    return TurnedBack(placeholder_patterns())


def _random() -> bytes:
    return os.urandom(32)
