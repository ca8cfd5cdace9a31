"""A channel of JSON that comes in pieces: the arguments of a tool call.

Rule: what is compared is the JSON with its escapes decoded, and what leaves is JSON: a mask stands inside of a string,
escaped, and a masked number keeps its length, in ones, since a schema would not take a string there. Punctuation is
never replaced. An escape that was cut waits for its rest. What is no JSON is masked all the same: words that stand
outside of strings are texts.

A string that holds JSON again is read too (`escapes`).
"""

import re

import msgspec

from tollhouse.wire.guard.channel import Channel, Edit
from tollhouse.wire.guard.escapes import ELSEWHERE, NUMBER, STRING, Run, deeper, meaning, pieces
from tollhouse.wire.guard.folding import fold
from tollhouse.wire.guard.patterns import Found, Mask, PatternSet

__all__ = ["JsonChannel"]

_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HEX = "[0-9A-Fa-f]"
_INSIDE = re.compile(
    rf'(?P<plain>[^"\\]+)|(?P<end>")|\\u(?P<high>[dD][89abAB]{_HEX}{{2}})\\u(?P<low>[dD][c-fC-F]{_HEX}{{2}})'
    rf"|\\u(?P<unit>{_HEX}{{4}})|\\(?P<short>.)",
    re.DOTALL,
)
_OUTSIDE = re.compile(r'(?P<begin>")|(?P<rest>[\s{}\[\]:,]+)|(?P<word>[^\s{}\[\]:,"]+)')
_BARE = re.compile(r"(?P<number>-?[0-9][0-9.eE+-]*)|-|true|false|null")
_CUT = re.compile(rf"\\(?:u{_HEX}{{0,3}})?|\\u[dD][89abAB]{_HEX}{{2}}(?:\\(?:u(?:[dD](?:[c-fC-F]{_HEX}?)?)?)?)?")
_DIGITS = re.compile("[0-9]")
_escape = msgspec.json.Encoder().encode


def _runs(source: str, inside: bool) -> tuple[list[Run], int]:
    """The stretches of a source, and where an escape begins that is cut; `inside`: it begins within a string."""
    runs: list[Run] = []
    at, end = 0, len(source)
    while at < end:
        if not inside:
            match = _OUTSIDE.match(source, at)
            assert match is not None
            runs.append(Run(at, match.end(), match[0], _bare(match[0]) if match.lastgroup == "word" else ELSEWHERE))
            inside = match.lastgroup == "begin"
            at = match.end()
            continue
        if source[at] == "\\" and _CUT.fullmatch(source, at):
            break
        match = _INSIDE.match(source, at)
        assert match is not None
        kind = match.lastgroup
        if kind == "end":
            runs.append(Run(at, match.end(), '"', ELSEWHERE))
            inside = False
        else:
            runs.append(Run(at, match.end(), _meant(match), STRING))
        at = match.end()
    return runs, at


def _bare(word: str) -> int:
    """What stands outside of strings: no JSON has other words there, so they are texts, and nothing is lost."""
    known = _BARE.fullmatch(word)
    return STRING if known is None else NUMBER if known.lastgroup == "number" else ELSEWHERE


def _ends_inside(runs: list[Run], inside: bool) -> bool:
    """Whether what follows these is within a string, which they begin `inside` or not."""
    quotes = sum([run.kind == ELSEWHERE and run.text == '"' for run in runs])
    return inside ^ (quotes % 2 == 1)


def _meant(match: re.Match[str]) -> str:
    if match["plain"] is not None:
        return match["plain"]
    if match["high"] is not None:
        return chr(0x10000 + ((int(match["high"], 16) & 0x3FF) << 10) + (int(match["low"], 16) & 0x3FF))
    if match["unit"] is not None:
        return chr(int(match["unit"], 16))
    return _SHORT.get(match["short"], match["short"])


class JsonChannel(Channel):
    """One JSON text under one set of patterns."""

    __slots__ = ("_inside", "_read_inside")

    def __init__(self, patterns: PatternSet, mask: Mask) -> None:
        super().__init__(patterns, mask)
        self._inside = False  # whether what is held begins within a string
        self._read_inside = False  # and what of it is not compared

    def _compared(self, held: str, piece: str) -> bytes:
        source = held[len(held) - len(piece) - self._rest :]
        if "\\" not in source:
            self._rest = 0
            if source.count('"') % 2:
                self._read_inside = not self._read_inside
            return self._data + (source.encode() if source.isascii() else fold(source).encode())
        runs, complete = _all_runs(source, self._read_inside)
        self._rest = len(source) - complete
        self._escapes = True
        self._read_inside = _ends_inside(runs, self._read_inside)
        return self._data + meaning(runs)

    def _runs(self, held: str) -> list[Run]:
        return _all_runs(held, self._inside)[0]

    def _left(self, held: str, cut: int) -> bytes:
        if "\\" not in held:
            return super()._left(held, cut)
        return meaning(_all_runs(held[cut:], self._after(held[:cut]))[0])

    def _keep(self, held: str, cut: int, data: bytes, rest: bytes) -> None:
        all_that_was_read = cut == len(held) - self._rest
        super()._keep(held, cut, data, rest)
        self._inside = self._read_inside if all_that_was_read else self._after(held[:cut])
        if not self._held:  # what was read further on is fed again
            self._read_inside = self._inside

    def _edits(self, held: str, places: list[Found]) -> list[Edit]:
        if not places:
            return []
        runs, _ = _runs(held, self._inside)
        edits: list[Edit] = []
        for one in places:
            own_pieces = pieces(runs, one.begin, one.end)
            meant = "".join([text for _, _, text, _ in own_pieces])
            text = self._mask(self._patterns.rules[one.rule], meant)
            if text == meant:
                continue
            for begin, end, own, kind in own_pieces:
                if kind == STRING:
                    edits.append(Edit(begin, end, _escape(_whole(text)).decode()[1:-1]))
                elif kind == NUMBER:
                    edits.append(Edit(begin, end, _DIGITS.sub("1", own)))
        return edits

    def _emptied(self, held: str, cut: int) -> list[Edit]:
        left = pieces(_runs(held, self._inside)[0], 0, cut)
        return [Edit(begin, end, "" if kind == STRING else _DIGITS.sub("1", own)) for begin, end, own, kind in left]

    def _after(self, gone: str) -> bool:
        """Whether what follows is within a string."""
        if '"' not in gone:
            return self._inside
        return _ends_inside(_runs(gone, self._inside)[0], self._inside)


def _all_runs(source: str, inside: bool) -> tuple[list[Run], int]:
    """The same, with what the strings mean read again."""
    runs, complete = _runs(source, inside)
    return deeper(runs, complete, goes_on=True)


def _whole(text: str) -> str:
    """The text without surrogates that lack their other half: an encoder takes none."""
    return text.encode(errors="replace").decode() if any("\ud800" <= char <= "\udfff" for char in text) else text
