"""The nearest known name to one that is not known, for errors that say what would be right."""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches
from itertools import islice

__all__ = ["did_you_mean", "nearest"]

_CANDIDATES = 2000


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `name` was probably meant to be, or None when nothing is close.

    Letter case, `-` and `_` do not count. Only the first 2,000 of `known` are compared: an error may be slow, not
    endless.
    """
    folded = {_fold(candidate): candidate for candidate in islice(known, _CANDIDATES)}
    wanted = _fold(name)
    if wanted in folded:
        return folded[wanted]
    close = get_close_matches(wanted, folded, n=1, cutoff=0.68)
    if close:
        return folded[close[0]]
    if len(wanted) < 4:  # short words have few letters to agree in: one wrong of three is still the same word
        close = get_close_matches(wanted, folded, n=1, cutoff=0.6)
        return folded[close[0]] if close and abs(len(close[0]) - len(wanted)) <= 1 else None
    longer = [candidate for candidate in folded if candidate.startswith(wanted) or wanted.startswith(candidate)]
    longer = [candidate for candidate in longer if len(candidate) >= 4]
    return folded[max(longer, key=lambda c: SequenceMatcher(None, wanted, c).ratio())] if longer else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean `models`?"`, or nothing."""
    found = nearest(name, known)
    return f"; did you mean `{found}`?" if found is not None else ""


def _fold(name: str) -> str:
    return name.casefold().replace("-", "_")
