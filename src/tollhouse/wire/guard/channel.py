"""A channel: one text that comes in pieces and leaves with its matches replaced, wherever it was cut.

Rule: what has left is at every moment a beginning of what the whole text would have become. Only that is held back
which could be the beginning of a match, at most `max_match` characters; of what is longer nothing is let out: a mask
takes its place, and the characters that may belong to it are swallowed.

What is held and grows piece by piece is not read again with each of them: while letters come that tokens are made of,
when it is a quarter longer; with anything else, when it is a thirty-second part longer. So the work is linear in the
text, and what turns out to be no match waits for that little more.
"""

import re
from typing import NamedTuple

from tollhouse.wire.guard.engine import Search
from tollhouse.wire.guard.escapes import Run, located, meaning, text_runs
from tollhouse.wire.guard.folding import fold, place
from tollhouse.wire.guard.patterns import NEAR, Found, Mask, Match, PatternSet

__all__ = ["Channel", "Edit", "Left", "edited"]

_WIDEST = 4  # bytes of one character
_UNSEEN = 4  # source characters held for each that is compared: the others are zero width, and say nothing
_LONG = 160  # bytes held that are not read again with every piece
_TOKEN = re.compile(r"[!#-&*-;=?-Z^-z~]*")


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
    """One text under one set of patterns. What may be an escape of JSON waits for its rest (`escapes`)."""

    __slots__ = (
        "_data", "_escapes", "_held", "_later", "_lead", "_mask", "_most", "_patterns", "_rest", "_room", "_soon",
        "_swallow", "_tail",
    )  # fmt: skip

    def __init__(self, patterns: PatternSet, mask: Mask) -> None:
        self._patterns = patterns
        self._mask = mask
        self._tail = patterns.tail
        self._most = patterns.max_match
        self._held = ""
        self._later: list[str] = []  # what came behind it and has not been read yet
        self._room = -1  # characters that may still come behind it without being read; below 0: it is read with all
        self._soon = 0  # what is left of it when anything else than a token's letters makes it read
        self._rest = 0  # characters at the end of what is held that are not compared: an escape may be cut there
        self._escapes = False  # whether what is held may be compared as something else than it is written
        self._data = b""  # one folded character that has left, for `\b`, and what is held
        self._lead = 0  # bytes of that character
        self._swallow: Search | None = None

    @property
    def held(self) -> str:
        """What has come and not left."""
        return self._held + "".join(self._later)

    def feed(self, piece: str) -> Left:
        """A further piece of the text: what leaves now."""
        if self._swallow is not None:
            return self._swallowed(piece)
        if self._room >= 0:
            if self._waits(piece):
                return "", None
            piece = self._unread(piece)
        held = self._held + piece
        data = self._compared(held, piece)
        lead = self._lead
        end = len(data)
        start = self._tail(data, lead, end)[0][0]
        if end - start > NEAR or len(held) > self._most:
            start = self._patterns.hold(data, lead, end)
            if start < end and self._overflows(held, data, start):
                return self._overflowing(held, data, start)
        if start == lead and (start < end or not held):
            self._held, self._data = held, data
            if end - start > _LONG:
                self._wait(held, end - start)
            return "", None
        if self._patterns.first(data, lead, end)[0][0] >= 0:
            return self._masked(held, data, start)
        return self._released(held, data, start), None

    def finish(self, *, whole: bool = True) -> Left:
        """The end of the text: all that is left. whole: False where it breaks off, by a limit or an error; the
        beginning of a secret is then masked like one."""
        self._swallow = None
        self._caught_up()
        held, data = self._held, self._data
        end = len(data)
        found = self._patterns.matches(data, self._lead, end)
        if not whole:
            part = self._patterns.broken_off(data, self._lead, end)
            if part is not None:
                found.append(part)
        places = self._places(found, held, data)
        self._held, self._data, self._lead, self._rest = "", b"", 0, 0
        return held, self._edits(held, places) or None

    def overflow(self) -> Left:
        """What is held must leave now: it is masked as what is too long to wait for."""
        self._caught_up()
        if not self._held:
            return "", None
        return self._overflowing(self._held, self._data, self._lead)

    # ---- what is held and not read again yet

    def _wait(self, held: str, size: int) -> None:
        """By how much it may grow until it is read again. size: of what is held in bytes, as it is compared."""
        bound = 1 << (size - 1).bit_length()  # where rules may have no match that is longer (`patterns._GROUPS`)
        whole = max(size, len(held))  # what is escaped has more characters than it is compared as
        room = min(whole >> 2, bound - size, self._most - size, _UNSEEN * self._most - len(held))
        if room > 0:
            self._room = room
            self._soon = room - (whole >> 5)

    def _waits(self, piece: str) -> bool:
        """Whether a piece need not be read now."""
        plain = piece if piece.isascii() else fold(piece)
        left = self._room - max(len(piece), len(plain))
        if left < 0 or (left < self._soon and not _TOKEN.fullmatch(plain)):
            return False
        self._later.append(piece)
        self._room = left
        return True

    def _unread(self, piece: str) -> str:
        """All that has not been read, with a piece behind it."""
        self._room = -1
        if self._later:
            piece = "".join(self._later) + piece
            self._later.clear()
        return piece

    def _caught_up(self) -> None:
        piece = self._unread("")
        if piece:
            held = self._held + piece
            self._held, self._data = held, self._compared(held, piece)

    # ---- what a form of text does in its own way

    def _compared(self, held: str, piece: str) -> bytes:
        """What is held as it is compared, behind the character that left."""
        if not self._rest and "\\" not in piece:
            return self._data + (piece.encode() if piece.isascii() else fold(piece).encode())
        source = held[len(held) - len(piece) - self._rest :]
        runs, complete = text_runs(source)
        self._rest = len(source) - complete
        if len(runs) > 1 or (runs and len(runs[0].text) != complete):
            self._escapes = True
        return self._data + meaning(runs)

    def _runs(self, held: str) -> list[Run]:
        """The stretches of what is held, up to where it can be read without what comes."""
        return text_runs(held)[0]

    def _cut(self, held: str, data: bytes, start: int) -> int:
        """Where in the source the character is that begins at this byte; the end, where nothing is held back."""
        if start == len(data):
            return len(held) - self._rest
        if self._escapes:
            return located(self._runs(held), [len(data[self._lead : start].decode())])[0][0]
        if held.isascii():
            return start - self._lead
        index: int = place(held, [len(data[self._lead : start].decode())])[0]
        return index

    def _places(self, found: list[Match], held: str, data: bytes) -> list[Found]:
        if self._escapes and found:
            return self._patterns.places_in(found, self._runs(held), data, self._lead)
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
        return len(held) - self._rest

    def _emptied(self, held: str, cut: int) -> list[Edit]:
        return [Edit(0, cut, "")] if cut else []

    def _left(self, held: str, cut: int) -> bytes:
        """Keeps what is held behind the cut; gives it as it is compared."""
        rest = held[cut:]
        if "\\" in rest:
            return meaning(text_runs(rest)[0])
        return rest.encode() if rest.isascii() else fold(rest).encode()

    # ----

    def _released(self, held: str, data: bytes, start: int) -> str:
        cut = self._cut(held, data, start)
        if start == len(data) or (held.isascii() and not self._escapes):
            rest = data[start:]
        else:
            rest = self._left(held, cut)
        self._keep(held, cut, data, rest)
        return held[:cut]

    def _keep(self, held: str, cut: int, data: bytes, rest: bytes) -> None:
        at = len(data) - len(rest)
        before = at - 1
        while before > 0 and data[before] & 0xC0 == 0x80:
            before -= 1
        self._held = held[cut:]
        if self._escapes and "\\" not in self._held:
            self._escapes = False
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
        held = self._held + piece
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
        self._rest = -1  # what has been read behind the cut is fed again
        self._keep(held[:cut], cut, data[:stop], b"")
        self._rest = 0
        source, further = self.feed(held[cut:])
        edits += [Edit(begin + cut, end + cut, text) for begin, end, text in further or ()]
        return held[:cut] + source, edits or None
