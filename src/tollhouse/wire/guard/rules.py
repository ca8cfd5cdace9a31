"""Rules: what is looked for in a text, and what else must hold.

Rule: a rule says by its expression alone how far it can reach, so that a stream knows how much to hold back. What an
expression cannot say (checksums, entropy) is asked of each match; a match that is not accepted counts as not there, and
the search goes on one character further.
"""

from collections.abc import Callable, Iterable

import msgspec

from tollhouse.wire.guard.derive import least, trie
from tollhouse.wire.guard.expression import Atom, Branches, Node, Refused, Repeat, Sequence, literal, parse

__all__ = ["Accept", "Rule", "keywords", "pattern", "words"]

Accept = Callable[[str], bool]
"""Whether a match, folded and without what stands before it, is what it looks like."""

_WORDS = 10_000
_LETTERS = 200_000


class Rule(msgspec.Struct, frozen=True, eq=False):
    """name: for masks and records ("email"). matches: what is found. after: what stands before it and is not masked.
    accept: what else must hold. written: the same, asked with the match as it is written, where letters that look alike
    differ. secret: a beginning of it is as bad as the whole, where a stream breaks off."""

    name: str
    matches: Node
    after: Node | None = None
    accept: Accept | None = None
    written: Accept | None = None
    secret: bool = False

    @property
    def whole(self) -> Node:
        """What is searched for."""
        return self.matches if self.after is None else Sequence((self.after, self.matches))


def pattern(
    name: str,
    matches: str,
    *,
    after: str | None = None,
    accept: Accept | None = None,
    written: Accept | None = None,
    secret: bool = False,
) -> Rule:
    """A rule from expressions in RE2's syntax. Raises Refused: what is wrong, and what would be right."""
    node = parse(matches)
    if least(node) == 0:
        raise Refused("the pattern matches the empty text, so it is found everywhere; `+` in place of `*` may be meant")
    return Rule(name, node, None if after is None else parse(after), accept, written, secret)


def words(name: str, matches: Iterable[str], *, accept: Accept | None = None, secret: bool = False) -> Rule:
    """A rule that finds any of several patterns: one automaton reads them all at once."""
    return pattern(name, "|".join([f"(?:{one})" for one in matches]), accept=accept, secret=secret)


def keywords(name: str, wanted: Iterable[str], *, ignore_case: bool = True, whole_words: bool = True) -> Rule:
    """A rule that finds any of many words or phrases, as they stand; a space in one is white space of any kind.

    Their beginnings are shared, so that ten thousand are found as fast as one. whole_words: not within longer ones, by
    the Latin letters, digits and `_` beside them. Raises Refused.
    """
    flags = "i" if ignore_case else ""
    entries: list[tuple[Node, ...]] = []
    letters = 0
    for word in wanted:
        node = literal(" ".join(word.split()))
        parts = node.parts if isinstance(node, Sequence) else (node,)
        if not parts:
            raise Refused("a keyword without letters")
        entries.append(tuple([_letter(part.source, flags) for part in parts if isinstance(part, Atom)]))
        letters += len(parts)
    if not entries:
        raise Refused("no keywords are given")
    if len(entries) > _WORDS or letters > _LETTERS:
        raise Refused(f"{len(entries)} keywords of {letters} letters; at most {_WORDS} and {_LETTERS} are searched for")
    node = trie(entries)
    return Rule(name, _bounded(node, entries) if whole_words else node)


_SPACES = Repeat(Atom(r"[\s\x{0b}\x{1c}-\x{1f}\x{85}]"), 1, 8)  # all that `str.split` splits at, folded


def _letter(source: str, flags: str) -> Node:
    return _SPACES if source == r"\x{20}" else Atom(source.lower() if flags else source, flags)


def _bounded(node: Node, entries: list[tuple[Node, ...]]) -> Node:
    edge = parse(r"\b")
    # `\b` beside a character that belongs to no word would ask for a letter outside of it.
    if all(_is_word(entry[0]) and _is_word(entry[-1]) for entry in entries):
        return Sequence((edge, node, edge))
    groups: dict[tuple[bool, bool], list[tuple[Node, ...]]] = {}
    for entry in entries:
        groups.setdefault((_is_word(entry[0]), _is_word(entry[-1])), []).append(entry)
    parts: list[Node] = [
        Sequence((*([edge] if before else []), trie(group), *([edge] if behind else [])))
        for (before, behind), group in groups.items()
    ]
    return parts[0] if len(parts) == 1 else Branches(tuple(parts))


def _is_word(letter: Node) -> bool:
    return isinstance(letter, Atom) and (
        (len(letter.source) == 1 and letter.source.isascii()) or letter.source == r"\_"
    )
