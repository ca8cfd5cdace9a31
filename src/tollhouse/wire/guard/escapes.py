"""Escapes: what a text means that has JSON in it, or JSON within JSON.

Rule: whoever reads a text may take it for JSON, and what stands in its strings for JSON again. So `\\u0067` is
compared as the letter that it stands for, and `\\/` and `\\"` as what they escape, however many backslashes stand
before it: each level doubles them. What is escaped in the escape is read again.

A text is cut into `Run`s, each of which is written in one way, so that what is found has a place in the source.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate

import msgspec

from tollhouse.wire.guard.folding import fold, place

__all__ = [
    "ELSEWHERE",
    "NUMBER",
    "STRING",
    "Readable",
    "Run",
    "deeper",
    "escaped",
    "located",
    "meaning",
    "pieces",
    "read",
    "text_runs",
]

ELSEWHERE, STRING, NUMBER = 0, 1, 2

_PASSES = 8  # escapes within escapes
_SLASHES = 64  # backslashes that wait for what follows
_HEX = "[0-9A-Fa-f]"
_HIGH, _LOW = f"[dD][89abAB]{_HEX}{{2}}", f"[dD][c-fC-F]{_HEX}{{2}}"
_ESCAPE = re.compile(
    rf'(?<!\\)(?P<slashes>\\+)(?:u(?:(?P<high>{_HIGH})\\+u(?P<low>{_LOW})|(?P<unit>{_HEX}{{4}}))|(?P<sign>[/"]))'
)
_CUT = re.compile(rf"(?<!\\)(\\+)(?:u(?:{_HEX}{{0,3}}|{_HIGH}(?:\\+(?:u(?:[dD](?:[c-fC-F]{_HEX}?)?)?)?)?))?\Z")


class Run(msgspec.Struct, frozen=True, gc=False):
    """A stretch of the source that is written in one way. text: what it stands for; of the source's length, if nothing
    in it is escaped, else one character. kind: STRING for what is text, NUMBER, or ELSEWHERE for what is neither."""

    begin: int
    end: int
    text: str
    kind: int


def escaped(source: str) -> bool:
    """Whether a text has escapes in it."""
    if "\\" not in source:
        return False
    # Most have others: finding that out takes less than a look at each letter.
    return '\\"' in source or "\\/" in source or ("\\u" in source and _ESCAPE.search(source) is not None)


def read(source: str) -> str:
    """What a whole text means: that of its runs, in a tenth of the time."""
    for _ in range(_PASSES):
        text = _ESCAPE.sub(_read_one, source)
        if text is source or text == source:
            break
        source = text
    return source


def _read_one(escape: re.Match[str]) -> str:
    if escape["sign"] is not None:
        return escape["sign"]
    slashes = len(escape["slashes"])
    return "\\" * (slashes - (slashes & -slashes)) + _meant(escape)


def text_runs(source: str, *, whole: bool = False) -> tuple[list[Run], int]:
    """The stretches of a text, and where an escape begins that is cut (`whole`: none is)."""
    at = len(source)
    if not whole and (cut := _CUT.search(source)) is not None:
        at = max(cut.start(), cut.end(1) - _SLASHES)
    if _ESCAPE.search(source, 0, at) is None:
        return [Run(0, at, source[:at], STRING)] if at else [], at
    return deeper([Run(0, len(source), source, STRING)] if source else [], len(source), goes_on=not whole)


def deeper(runs: list[Run], complete: int, *, goes_on: bool) -> tuple[list[Run], int]:
    """The same with the escapes read that stand in what its strings mean. complete: up to where the source has been
    read; gives up to where it has been now. goes_on: behind the last of them something may come."""
    for run in runs:
        if "\\" in run.text:
            break
    else:
        return runs, complete
    out: list[Run] = []
    stretch: list[Run] = []
    for run in runs:
        if run.kind == STRING:
            stretch.append(run)
            continue
        if stretch:
            out += _read(stretch, goes_on=False)[0]
            stretch = []
        out.append(run)
    if stretch:
        read, stop = _read(stretch, goes_on=goes_on)
        out += read
        if stop is not None:
            complete = stop
    return out, complete


def _read(runs: list[Run], *, goes_on: bool) -> tuple[list[Run], int | None]:
    """One string's. Gives also where in the source an escape begins that is cut, None where none is."""
    stop: int | None = None
    for _ in range(_PASSES):
        text = "".join([run.text for run in runs])
        if "\\" not in text:
            break
        if goes_on:
            cut = _CUT.search(text)
            if cut is not None:
                at = max(cut.start(), cut.end(1) - _SLASHES)
                ends = list(accumulate([len(run.text) for run in runs]))
                stop = _place(runs, ends, at)[0]
                runs = _between(runs, ends, 0, at)
                text = text[:at]
        found = list(_ESCAPE.finditer(text))
        if not found:
            break
        ends = list(accumulate([len(run.text) for run in runs]))
        out: list[Run] = []
        last = 0
        for escape in found:
            begin, end = escape.span()
            if escape["sign"] is None:  # of three, the first two are a backslash that is escaped
                slashes = len(escape["slashes"])
                begin += slashes - (slashes & -slashes)
            out += _between(runs, ends, last, begin)
            out.append(Run(_place(runs, ends, begin)[0], _place(runs, ends, end - 1)[1], _meant(escape), STRING))
            last = end
        runs = out + _between(runs, ends, last, len(text))
    return runs, stop


def _meant(escape: re.Match[str]) -> str:
    if escape["sign"] is not None:
        return escape["sign"]
    if escape["unit"] is not None:
        return chr(int(escape["unit"], 16))
    return chr(0x10000 + ((int(escape["high"], 16) & 0x3FF) << 10) + (int(escape["low"], 16) & 0x3FF))


def _place(runs: list[Run], ends: list[int], index: int) -> tuple[int, int]:
    """Where in the source a character of the meaning begins and ends."""
    number = bisect_right(ends, index)
    run = runs[number]
    if run.end - run.begin != len(run.text):
        return run.begin, run.end
    at = run.begin + index - (ends[number] - len(run.text))
    return at, at + 1


def _between(runs: list[Run], ends: list[int], begin: int, end: int) -> list[Run]:
    """The runs of some characters of the meaning."""
    out: list[Run] = []
    for number in range(bisect_right(ends, begin), len(runs)):
        run = runs[number]
        at = ends[number] - len(run.text)
        if at >= end:
            break
        low, high = max(begin - at, 0), min(end - at, len(run.text))
        if low == 0 and high == len(run.text):
            out.append(run)
        elif low < high:
            out.append(Run(run.begin + low, run.begin + high, run.text[low:high], run.kind))
    return out


def meaning(runs: Iterable[Run]) -> bytes:
    """What they are compared as."""
    return fold("".join([run.text for run in runs])).encode()


def located(runs: list[Run], at: list[int]) -> list[tuple[int, int]]:
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


def pieces(runs: list[Run], begin: int, end: int) -> list[tuple[int, int, str, int]]:
    """What of the source from `begin` to `end` is text or number, with what it means: neighbours of one kind as one."""
    out: list[tuple[int, int, str, int]] = []
    last = -1
    for run in runs:
        low, high = max(run.begin, begin), min(run.end, end)
        if low >= high or run.kind == ELSEWHERE:
            continue
        plain = run.end - run.begin == len(run.text)
        text = run.text[low - run.begin : high - run.begin] if plain else run.text
        if out and last == low and out[-1][3] == run.kind:
            out[-1] = (out[-1][0], high, out[-1][2] + text, run.kind)
        else:
            out.append((low, high, text, run.kind))
        last = high
    return out


class Readable:
    """A text without the escapes that it could do without: what was JSON is the same JSON, and hides no letters.

    text: as it reads.
    """

    __slots__ = ("_ends", "_runs", "text")

    def __init__(self, source: str) -> None:
        self._runs: list[Run] = []
        self._ends: list[int] = []
        self.text = source
        if escaped(source):
            runs, _ = text_runs(source, whole=True)
            self._runs = [run if _is_plain(run) else _kept(source, run) for run in runs]
            self._ends = list(accumulate([len(run.text) for run in self._runs]))
            self.text = "".join([run.text for run in self._runs])

    def place(self, begin: int, end: int) -> tuple[int, int]:
        """Where in the source a part of the text begins and ends; it has characters, all of them within the text."""
        if not self._runs:
            return begin, end
        return _place(self._runs, self._ends, begin)[0], _place(self._runs, self._ends, end - 1)[1]


def _is_plain(run: Run) -> bool:
    return run.end - run.begin == len(run.text) or (run.text.isprintable() and run.text not in '"\\')


def _kept(source: str, run: Run) -> Run:
    """As it is written."""
    return Run(run.begin, run.end, source[run.begin : run.end], run.kind)
