"""A channel: one text that comes in pieces and leaves with its matches replaced, wherever it was cut.

Rule: what has left is at every moment a beginning of what the whole text would have become. Only that is held back
which could be the beginning of a match, at most `max_match` characters; of what is longer nothing is let out: a mask
takes its place, and the characters that may belong to it are swallowed.
"""

from typing import NamedTuple

from tollhouse.wire.guard.engine import Search
from tollhouse.wire.guard.folding import fold, place
from tollhouse.wire.guard.patterns import NEAR, Found, Mask, Match, PatternSet

__all__ = ["Channel", "Edit", "Left", "edited"]

_WIDEST = 4  # bytes of one character
_UNSEEN = 4  # source characters held for each that is compared: the others are zero width, and say nothing


class Edit(NamedTuple):
    """Characters of what left that are replaced, from `begin` up to `end`."""

    begin: int
    end: int
    text: str


Left = tuple[str, list[Edit] | None]
"""What left: the source as it came, and what of it is replaced, in order."""


def edited(left: Left) -> str:
    """What left, as it is to be seen."""
    source, edits = left
    if not edits:
        return source
    out: list[str] = []
    at = 0
    for begin, end, text in edits:
        out += (source[at:begin], text)
        at = end
    out.append(source[at:])
    return "".join(out)


class Channel:
    """One text under one set of patterns. `held` is what has come and not left."""

    __slots__ = ("_data", "_lead", "_mask", "_most", "_patterns", "_swallow", "_tail", "held")

    def __init__(self, patterns: PatternSet, mask: Mask) -> None:
        self._patterns = patterns
        self._mask = mask
        self._tail = patterns.tail
        self._most = patterns.max_match
        self.held = ""
        self._data = b""  # one folded character that has left, for `\b`, and what is held
        self._lead = 0  # bytes of that character
        self._swallow: Search | None = None

    def feed(self, piece: str) -> Left:
        """A further piece of the text: what leaves now."""
        if self._swallow is not None:
            return self._swallowed(piece)
        held = self.held + piece
        data = self._compared(held, piece)
        lead = self._lead
        end = len(data)
        start = self._tail(data, lead, end)[0][0]
        if end - start > NEAR or len(held) > self._most:
            start = self._patterns.hold(data, lead, end)
            if start < end and self._overflows(held, data, start):
                return self._overflowing(held, data, start)
        if start == lead and (start < end or not held):
            self.held, self._data = held, data
            return "", None
        if self._patterns.first(data, lead, end)[0][0] >= 0:
            return self._masked(held, data, start)
        return self._released(held, data, start), None

    def finish(self, *, whole: bool = True) -> Left:
        """The end of the text: all that is left. whole: False where it breaks off, by a limit or an error; the
        beginning of a secret is then masked like one."""
        self._swallow = None
        held, data = self.held, self._data
        end = len(data)
        found = self._patterns.matches(data, self._lead, end)
        if not whole:
            part = self._patterns.broken_off(data, self._lead, end)
            if part is not None:
                found.append(part)
        places = self._places(found, held, data)
        self.held, self._data, self._lead = "", b"", 0
        return held, self._edits(held, places) or None

    def overflow(self) -> Left:
        """What is held must leave now: it is masked as what is too long to wait for."""
        if not self.held:
            return "", None
        return self._overflowing(self.held, self._data, self._lead)

    # ---- what a form of text does in its own way

    def _compared(self, held: str, piece: str) -> bytes:
        """What is held as it is compared, behind the character that left."""
        return self._data + (piece.encode() if piece.isascii() else fold(piece).encode())

    def _cut(self, held: str, data: bytes, start: int) -> int:
        """Where in the source the character is that begins at this byte; the end, where nothing is held back."""
        if held.isascii():
            return start - self._lead
        if start == len(data):
            return len(held)
        index: int = place(held, [len(data[self._lead : start].decode())])[0]
        return index

    def _places(self, found: list[Match], held: str, data: bytes) -> list[Found]:
        return self._patterns.places(found, held, data, self._lead) if found else []

    def _edits(self, held: str, places: list[Found]) -> list[Edit]:
        rules, mask = self._patterns.rules, self._mask
        edits = []
        for found in places:
            own = held[found.begin : found.end]
            text = mask(rules[found.rule], own)
            if text != own:
                edits.append(Edit(found.begin, found.end, text))
        return edits

    def _complete(self, held: str) -> int:
        """Up to where the source can be read without what comes."""
        return len(held)

    def _emptied(self, held: str, cut: int) -> list[Edit]:
        return [Edit(0, cut, "")] if cut else []

    def _left(self, held: str, cut: int) -> bytes:
        """Keeps what is held behind the cut; gives it as it is compared."""
        rest = held[cut:]
        return rest.encode() if rest.isascii() else fold(rest).encode()

    # ----

    def _released(self, held: str, data: bytes, start: int) -> str:
        cut = self._cut(held, data, start)
        rest = data[start:] if held.isascii() else self._left(held, cut)
        self._keep(held, cut, data, rest)
        return held[:cut]

    def _keep(self, held: str, cut: int, data: bytes, rest: bytes) -> None:
        at = len(data) - len(rest)
        before = at - 1
        while before > 0 and data[before] & 0xC0 == 0x80:
            before -= 1
        self.held = held[cut:]
        self._data = data[before if before > 0 else 0 :] if at else rest
        self._lead = at - before if at else 0

    def _masked(self, held: str, data: bytes, start: int) -> Left:
        """As `_released`, where something is found."""
        places = self._places(self._patterns.matches(data, self._lead, len(data)), held, data)
        cut = self._cut(held, data, start)
        lower = cut
        while True:
            for found in places:
                if found.start < lower < found.end:
                    lower = found.start
            if lower == cut:
                break
            cut = lower
        edits = self._edits(held, [found for found in places if found.end <= cut])
        rest = self._left(held, cut)
        self._keep(held, cut, data, rest)
        return held[:cut], edits or None

    def _overflows(self, held: str, data: bytes, start: int) -> bool:
        bytes_held = len(data) - start
        if bytes_held > self._most and (bytes_held > _WIDEST * self._most or data.isascii()):
            return True
        return len(held) > _UNSEEN * self._most and len(held) - self._cut(held, data, start) > _UNSEEN * self._most

    def _overflowing(self, held: str, data: bytes, start: int) -> Left:
        """More than can be waited for: all from there on is masked, and what may still belong to it."""
        number, swallow = self._patterns.overflowing(data, self._lead, len(data))
        places = self._places(self._patterns.matches(data, self._lead, len(data)), held, data)
        cut, end = self._cut(held, data, start), self._complete(held)
        before = [found for found in places if found.end <= cut]
        for found in places:
            if found.end > cut:
                cut = min(cut, found.start)
        before = [found for found in before if found.end <= cut]
        edits = self._edits(held, before)
        masked = self._edits(held, [Found(cut, cut, end, number)])
        if masked:  # else the rule is only counted
            self._swallow = swallow
        self._keep(held, end, data, b"")
        return held[:end], edits + masked or None

    def _swallowed(self, piece: str) -> Left:
        assert self._swallow is not None
        held = self.held + piece
        data = self._compared(held, piece)
        stop = self._swallow(data, self._lead, len(data))[0][1]
        if stop == len(data):
            cut = self._complete(held)
            edits = self._emptied(held, cut)
            self._keep(held, cut, data, b"")
            return held[:cut], edits or None
        self._swallow = None
        cut = self._cut(held, data, stop)
        edits = self._emptied(held, cut)
        self._keep(held[:cut], cut, data[:stop], b"")
        source, further = self.feed(held[cut:])
        edits += [Edit(begin + cut, end + cut, text) for begin, end, text in further or ()]
        return held[:cut] + source, edits or None
