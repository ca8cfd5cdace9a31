"""Texts in pieces of a size that a service takes.

Rule: every character of every text is in some piece, and a long text's pieces overlap, so that what lies across a cut
is seen whole in one of them. Short texts share a piece: a service that takes one text is asked once, not fifty times.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["OVERLAP", "Part", "Piece", "clean", "pieces", "slices"]

OVERLAP = 200
"""Characters that two pieces of one text have in common."""

_BETWEEN = "\n\n"
_LONE = re.compile("[\ud800-\udfff]")


class Part(NamedTuple):
    """Where a piece's characters come from. text: which of the texts. start: in that text. at: in the piece. size: in
    characters."""

    text: int
    start: int
    at: int
    size: int


class Piece(NamedTuple):
    """A text to be sent, and what it is put together from."""

    text: str
    parts: tuple[Part, ...]


def clean(text: str) -> str:
    """The text with U+FFFD for each surrogate without its other half, which no JSON can hold; as long as it was."""
    return text if text.isascii() else _LONE.sub("\ufffd", text)


def slices(texts: Sequence[str], size: int) -> Iterator[Piece]:
    """Each text in pieces of its own, of at most `size` characters; blank texts have none."""
    assert size > 2 * OVERLAP
    for index, text in enumerate(texts):
        if not text or text.isspace():
            continue
        start = 0
        while True:
            end = min(start + size, len(text))
            yield Piece(clean(text[start:end]), (Part(index, start, 0, end - start),))
            if end == len(text):
                break
            start = end - OVERLAP


def pieces(texts: Sequence[str], size: int) -> Iterator[Piece]:
    """As few pieces of at most `size` characters as the texts fit into in their order, with blank lines between."""
    held: list[str] = []
    parts: list[Part] = []
    length = 0
    for one in slices(texts, size):
        part = one.parts[0]
        if held and length + len(_BETWEEN) + part.size > size:
            yield Piece(_BETWEEN.join(held), tuple(parts))
            held, parts, length = [], [], 0
        if held:
            length += len(_BETWEEN)
        held.append(one.text)
        parts.append(Part(part.text, part.start, length, part.size))
        length += part.size
    if held:
        yield Piece(_BETWEEN.join(held), tuple(parts))
