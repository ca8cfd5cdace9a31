"""RE2: linear time whatever the pattern and the text. All of the gateway that knows the package (extra `guard`).

Rule: what is searched is UTF-8, and positions are bytes. The longest of the leftmost matches is found. A search that
begins inside a text sees the character before for `^` and `\\b`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from tollhouse.wire.guard.expression import Refused

__all__ = ["Search", "available", "compiled", "which"]

Search = Callable[[bytes, int, int], list[tuple[int, int]]]
"""(text, from, to) -> one pair: where the match begins and ends, (-1, -1) if there is none."""

_MEMORY = 8 << 20
_MORE_MEMORY = 64 << 20
"""Bytes at most of one automaton and its states, which are made as texts ask for them; more for one that does not fit
into so few. Where they are used up, states are made anew."""
_TOGETHER = 16  # patterns in one automaton that tells which: more of them have too many states


def available() -> bool:
    """Whether the package is installed."""
    return find_spec("re2") is not None


def _options(memory: int) -> Any:
    from re2 import _re2  # noqa: PLC0415 - the extra `guard`

    options = _re2.RE2.Options()
    options.longest_match = True
    options.never_capture = True
    options.log_errors = False
    options.max_mem = memory
    return options


def compiled(pattern: str, *, anchored: bool = False) -> Search:
    """A search for the pattern, or with `anchored` for one that begins where the search does.

    Raises Refused for a pattern that RE2 does not take, and one that takes too much memory.
    """
    from re2 import _re2  # noqa: PLC0415 - the extra `guard`

    try:
        expression = _re2.RE2(pattern.encode(), _options(_MEMORY))
        if not expression.ok():
            expression = _re2.RE2(pattern.encode(), _options(_MORE_MEMORY))
    except _re2.Error as error:  # pragma: no cover - depends on the package's version
        raise Refused(str(error)) from None
    if not expression.ok():
        raise Refused(_words(expression.error()))
    anchor = _re2.RE2.Anchor.ANCHOR_START if anchored else _re2.RE2.Anchor.UNANCHORED
    return partial(expression.Match, anchor)


def which(patterns: Sequence[str]) -> Callable[[bytes], list[int]]:
    """Which of the patterns are found in a text, by their numbers, in order. Those that do not fit into one
    automaton are always said to be."""
    always: list[int] = []
    sets: list[tuple[list[int], Callable[[bytes], list[int]]]] = []
    for at in range(0, len(patterns), _TOGETHER):
        numbers = list(range(at, min(at + _TOGETHER, len(patterns))))
        chosen = _set([patterns[number] for number in numbers])
        if chosen is None:
            always += numbers
        else:
            sets.append((numbers, chosen))

    def found(text: bytes) -> list[int]:
        seen = list(always)
        for numbers, chosen in sets:
            seen += [numbers[index] for index in chosen(text) if index < len(numbers)]
        seen.sort()
        return seen

    return found


_SENTINEL = "\U0010ffff\U0010fffe"


def _set(patterns: Sequence[str]) -> Callable[[bytes], list[int]] | None:
    from re2 import _re2  # noqa: PLC0415 - the extra `guard`

    chosen = _re2.Set(_re2.RE2.Anchor.UNANCHORED, _options(_MEMORY))
    for pattern in (*patterns, _SENTINEL):
        chosen.Add(pattern.encode())
    if not chosen.Compile():
        return None
    match: Callable[[bytes], list[int]] = chosen.Match
    # One that has too little memory for its states says so by finding nothing.
    return match if len(patterns) in match(_SENTINEL.encode()) else None


def _words(error: bytes | str) -> str:
    text = error.decode(errors="replace") if isinstance(error, bytes) else error
    if "too large" in text or "out of memory" in text:
        return "the pattern is too large: fewer or smaller repetitions make it smaller"
    return f"RE2 does not take this pattern: {text}"
