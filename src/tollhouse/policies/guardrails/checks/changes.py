"""What a service changed in a text, as spans with what stands in their place.

Rule: the spans give exactly the changed text again. They are as small as words allow, and one span where finding
smaller ones would take long.
"""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher

__all__ = ["changes"]

_WORDS = re.compile(r"\s+|(?:\w+|[^\w\s])\s*")
_MOST = 600  # words on either side that are compared one by one: at worst some tens of milliseconds


def changes(before: str, after: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, replacement) in order, in characters of `before`; nothing where they are the same. None is empty but
    for an empty text."""
    if before == after:
        return
    lead = _alike(before, after)
    tail = min(_alike(before[::-1], after[::-1]), len(before) - lead, len(after) - lead)
    lead, tail = _to_words(before, after, lead, tail)
    old, new = before[lead : len(before) - tail], after[lead : len(after) - tail]
    words, others = _WORDS.findall(old), _WORDS.findall(new)
    if len(words) > _MOST or len(others) > _MOST or not words or not others:
        yield _filled(before, lead, lead + len(old), new)
        return
    places = [lead]
    for word in words:
        places.append(places[-1] + len(word))
    for kind, i, j, k, m in SequenceMatcher(None, words, others, autojunk=False).get_opcodes():
        if kind != "equal":
            yield _filled(before, places[i], places[j], "".join(others[k:m]))


def _filled(before: str, start: int, end: int, text: str) -> tuple[int, int, str]:
    """The same change without white space that stays, and with at least one character replaced: there is no place
    between two characters."""
    if start < end:
        while end - start > 1 and text and before[end - 1] == text[-1] and text[-1].isspace():
            end -= 1
            text = text[:-1]
        return start, end, text
    if start:
        return start - 1, end, before[start - 1] + text
    return start, end + (end < len(before)), text + before[:1]


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    least, most = 0, min(len(one), len(other))
    while least < most:
        middle = (least + most + 1) // 2
        if one.startswith(other[:middle]):
            least = middle
        else:
            most = middle - 1
    return least


def _to_words(before: str, after: str, lead: int, tail: int) -> tuple[int, int]:
    """Common ends that stop between words on both sides: of `Anna` and `{NAME} A` nobody wants `A`."""
    while lead and _inside(before, lead) | _inside(after, lead):
        lead -= 1
    while tail and _inside(before, len(before) - tail) | _inside(after, len(after) - tail):
        tail -= 1
    return lead, tail


def _inside(text: str, at: int) -> bool:
    return 0 < at < len(text) and _is_word(text[at - 1]) and _is_word(text[at])


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"
