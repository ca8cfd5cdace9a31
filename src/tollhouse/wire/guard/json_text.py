"""A channel of JSON that comes in pieces: the arguments of a tool call.

Rule: what is compared is the JSON with its escapes decoded, and what leaves is JSON: a mask stands inside of a string,
escaped, and a masked number keeps its length, in ones, since a schema would not take a string there. Punctuation is
never replaced. An escape that was cut waits for its rest. What is no JSON is masked all the same: words that stand
outside of strings are texts.

A string that holds JSON again is compared as it is written there: what stands in it in plain letters is found, what is
escaped twice is not.
"""

import re
from bisect import bisect_right
from itertools import accumulate

import msgspec

from tollhouse.wire.guard.channel import Channel, Edit
from tollhouse.wire.guard.folding import fold, place
from tollhouse.wire.guard.patterns import Found, Mask, Match, PatternSet, characters, merged

__all__ = ["JsonChannel"]

_ELSEWHERE, _STRING, _NUMBER = 0, 1, 2
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


class _Run(msgspec.Struct, frozen=True, gc=False):
    """A stretch of the source that is written in one way. text: what it stands for; of the source's length, if nothing
    in it is escaped."""

    begin: int
    end: int
    text: str
    kind: int


def _runs(source: str, inside: bool) -> tuple[list[_Run], int]:
    """The stretches of a source, and where an escape begins that is cut; `inside`: it begins within a string."""
    runs: list[_Run] = []
    at, end = 0, len(source)
    while at < end:
        if not inside:
            match = _OUTSIDE.match(source, at)
            assert match is not None
            runs.append(_Run(at, match.end(), match[0], _bare(match[0]) if match.lastgroup == "word" else _ELSEWHERE))
            inside = match.lastgroup == "begin"
            at = match.end()
            continue
        if source[at] == "\\" and _CUT.fullmatch(source, at):
            break
        match = _INSIDE.match(source, at)
        assert match is not None
        kind = match.lastgroup
        if kind == "end":
            runs.append(_Run(at, match.end(), '"', _ELSEWHERE))
            inside = False
        else:
            runs.append(_Run(at, match.end(), _meant(match), _STRING))
        at = match.end()
    return runs, at


def _bare(word: str) -> int:
    """What stands outside of strings: no JSON has other words there, so they are texts, and nothing is lost."""
    known = _BARE.fullmatch(word)
    return _STRING if known is None else _NUMBER if known.lastgroup == "number" else _ELSEWHERE


def _ends_inside(runs: list[_Run], inside: bool) -> bool:
    """Whether what follows these is within a string, which they begin `inside` or not."""
    quotes = sum([run.kind == _ELSEWHERE and run.text == '"' for run in runs])
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

    __slots__ = ("_inside", "_read", "_read_inside")

    def __init__(self, patterns: PatternSet, mask: Mask) -> None:
        super().__init__(patterns, mask)
        self._inside = False  # whether what is held begins within a string
        self._read = 0  # characters of what is held that are compared; behind them an escape may be cut
        self._read_inside = False

    def _compared(self, held: str, piece: str) -> bytes:
        rest = held[self._read :]
        if "\\" not in rest:
            self._read = len(held)
            if rest.count('"') % 2:
                self._read_inside = not self._read_inside
            return self._data + (rest.encode() if rest.isascii() else fold(rest).encode())
        runs, complete = _runs(rest, self._read_inside)
        self._read += complete
        self._read_inside = _ends_inside(runs, self._read_inside)
        return self._data + fold("".join([run.text for run in runs])).encode()

    def _cut(self, held: str, data: bytes, start: int) -> int:
        if "\\" not in held:
            return super()._cut(held, data, start)
        runs, complete = _runs(held, self._inside)
        if start == len(data):
            return complete
        return _located(runs, [len(data[self._lead : start].decode())])[0][0]

    def _left(self, held: str, cut: int) -> bytes:
        if "\\" not in held:
            return super()._left(held, cut)
        return self._meaning(held[cut:], self._after(held[:cut]))

    def _released(self, held: str, data: bytes, start: int) -> str:
        if "\\" not in held:
            return super()._released(held, data, start)
        cut = self._cut(held, data, start)
        self._keep(held, cut, data, self._left(held, cut))
        return held[:cut]

    def _keep(self, held: str, cut: int, data: bytes, rest: bytes) -> None:
        gone = held[:cut]
        super()._keep(held, cut, data, rest)
        self._inside = self._after(gone)
        self._read -= cut
        if not self.held:  # what was read further on is fed again
            self._read, self._read_inside = 0, self._inside

    def _places(self, found: list[Match], held: str, data: bytes) -> list[Found]:
        if "\\" not in held:
            return super()._places(found, held, data)
        runs, _ = _runs(held, self._inside)
        chars = characters(found, data, self._lead)
        places = _located(runs, [index for start, begin, end in chars for index in (start, begin, end - 1)])
        at = [
            Found(places[3 * n][0], places[3 * n + 1][0], places[3 * n + 2][1], one.rule) for n, one in enumerate(found)
        ]
        counts = self._patterns.counts
        return merged([one for one in at if counts(one.rule, _text(_pieces(runs, one.begin, one.end)))])

    def _edits(self, held: str, places: list[Found]) -> list[Edit]:
        if not places:
            return []
        runs, _ = _runs(held, self._inside)
        edits: list[Edit] = []
        for one in places:
            pieces = _pieces(runs, one.begin, one.end)
            meant = _text(pieces)
            text = self._mask(self._patterns.rules[one.rule], meant)
            if text == meant:
                continue
            for begin, end, own, kind in pieces:
                if kind == _STRING:
                    edits.append(Edit(begin, end, _escape(_whole(text)).decode()[1:-1]))
                elif kind == _NUMBER:
                    edits.append(Edit(begin, end, _DIGITS.sub("1", own)))
        return edits

    def _complete(self, held: str) -> int:
        return _runs(held, self._inside)[1] if "\\" in held else len(held)

    def _emptied(self, held: str, cut: int) -> list[Edit]:
        pieces = _pieces(_runs(held, self._inside)[0], 0, cut)
        return [Edit(begin, end, "" if kind == _STRING else _DIGITS.sub("1", own)) for begin, end, own, kind in pieces]

    def _after(self, gone: str) -> bool:
        """Whether what follows is within a string."""
        if '"' not in gone:
            return self._inside
        return _ends_inside(_runs(gone, self._inside)[0], self._inside)

    @staticmethod
    def _meaning(source: str, inside: bool) -> bytes:
        return fold("".join([run.text for run in _runs(source, inside)[0]])).encode()


def _located(runs: list[_Run], at: list[int]) -> list[tuple[int, int]]:
    """For indexes into what the runs are compared as, where the characters that they come from begin and end."""
    ends = list(accumulate([len(fold(run.text)) for run in runs]))
    out = []
    for index in at:
        number = bisect_right(ends, index)
        if number == len(runs):
            end = runs[-1].end if runs else 0
            out.append((end, end))
            continue
        run = runs[number]
        if run.end - run.begin == len(run.text):
            within = place(run.text, [index - (ends[number - 1] if number else 0)])[0]
            out.append((run.begin + within, run.begin + within + 1))
        else:
            out.append((run.begin, run.end))
    return out


def _pieces(runs: list[_Run], begin: int, end: int) -> list[tuple[int, int, str, int]]:
    """What of the source from `begin` to `end` is text or number: neighbours of one kind as one."""
    out: list[tuple[int, int, str, int]] = []
    last = -1
    for run in runs:
        low, high = max(run.begin, begin), min(run.end, end)
        if low >= high or run.kind == _ELSEWHERE:
            continue
        plain = run.end - run.begin == len(run.text)
        text = run.text[low - run.begin : high - run.begin] if plain else run.text
        if out and last == low and out[-1][3] == run.kind:
            out[-1] = (out[-1][0], high, out[-1][2] + text, run.kind)
        else:
            out.append((low, high, text, run.kind))
        last = high
    return out


def _text(pieces: list[tuple[int, int, str, int]]) -> str:
    return "".join([text for _, _, text, _ in pieces])


def _whole(text: str) -> str:
    """The text without surrogates that lack their other half: an encoder takes none."""
    return text.encode(errors="replace").decode() if any("\ud800" <= char <= "\udfff" for char in text) else text
