"""Patterns: many rules looked for at once, and how much of a text's end may still become a match.

Rule: each rule's matches are the leftmost, of these the longest, that do not overlap and are accepted; what several
rules find is united. One search tells that there is nothing, which is the usual case. What overlaps is masked as one,
by the first of the rules: rules that are only counted belong into a set of their own.

Where a text is cut, what comes may complete a match that begins before the cut. `hold` gives the first position from
which the rest of the text could be the beginning of a match (`derive.prefixes`, run backwards from the end). Every
match that begins before it lies within the text whatever follows, so that it is final.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from tollhouse.wire.guard.derive import alphabet, prefixes, unbounded, widest, written
from tollhouse.wire.guard.engine import Search, compiled, which
from tollhouse.wire.guard.escapes import Run, escaped, located, pieces, read, text_runs
from tollhouse.wire.guard.expression import Atom, Branches, Node, Refused, Repeat
from tollhouse.wire.guard.folding import fold, place
from tollhouse.wire.guard.rules import Rule

__all__ = ["NEAR", "Found", "Mask", "Match", "PatternSet", "characters", "merged"]

NEAR = 64
"""Bytes that are held back without a closer look at which rule wants them."""

_GROUPS = (64, 128, 256, 512, 1024, 2048)
_MASKED_PART = 8  # characters of a broken-off secret that are masked

Mask = Callable[[Rule, str], str]
"""What stands in place of a match: (rule, the match as it was written) -> text. Called once for each. What it gets back
unchanged stays, so that a rule may just be counted."""


class Match(msgspec.Struct, frozen=True, gc=False):
    """Where a rule was found, in bytes of the folded text. start: with what stands before. begin, end: what is masked.
    rule: its number."""

    start: int
    begin: int
    end: int
    rule: int


class Found(msgspec.Struct, frozen=True, gc=False):
    """The same in characters of the source; of overlapping ones, from the first start to the last end."""

    start: int
    begin: int
    end: int
    rule: int


class PatternSet:
    """Rules that are looked for together. Made once; its automata take up to 8 MiB each, mostly far less.

    max_match: characters of the longest match that a stream waits for. Rules that know a longer one, or no longest,
    mask what has come by then, and all that may belong to it (`swallowed`).
    """

    __slots__ = (
        "_accept",
        "_after",
        "_groups",
        "_partial",
        "_search",
        "_secrets",
        "_trees",
        "_which",
        "first",
        "max_match",
        "rules",
        "tail",
    )

    def __init__(self, rules: Iterable[Rule], *, max_match: int = 4096) -> None:
        """Raises Refused, with the rule's name."""
        self.rules = tuple(rules)
        if not self.rules:
            raise Refused("no rules are given")
        self.max_match = max_match
        trees = [rule.whole for rule in self.rules]
        patterns = [written(tree) for tree in trees]
        self._search = [_named(rule, pattern) for rule, pattern in zip(self.rules, patterns, strict=True)]
        self._after = [None if rule.after is None else _anchored(rule.after) for rule in self.rules]
        self._accept = [rule.accept for rule in self.rules]
        loose = [written(unbounded(tree)) for tree in trees]
        self._which = which(loose)
        self.first: Search = compiled("|".join(f"(?:{pattern})" for pattern in loose))
        """Where something may be found: more than is."""
        begun = [prefixes(tree) for tree in trees]
        self.tail: Search = _tail(begun)
        """Where what may become a match begins; the end of the text, if nothing does."""
        self._groups = self._grouped(trees, begun)
        self._trees = trees
        self._partial = [_tail([node]) for node in begun]
        self._secrets = [(number, self._partial[number]) for number, rule in enumerate(self.rules) if rule.secret]
        self._warm()

    def _warm(self) -> None:
        """Makes the states that plain text needs, so that not the first request waits for them."""
        self.find(_SAMPLE)
        text = _SAMPLE.encode()
        for end in range(len(text)):
            self.tail(text, 0, end)

    def _grouped(self, trees: Sequence[Node], begun: Sequence[Node]) -> list[tuple[int | None, Search]]:
        """By the length of what they may hold back, so that a long word is not held for the sake of another rule."""
        groups: dict[int | None, list[Node]] = {}
        for tree, beginning in zip(trees, begun, strict=True):
            width = widest(tree)
            if width is None or width > self.max_match:
                bound = None
            else:
                bound = next((limit for limit in _GROUPS if width <= limit), self.max_match)
            groups.setdefault(bound, []).append(beginning)
        return [(bound, _tail(group)) for bound, group in groups.items()]

    def hold(self, text: bytes, begin: int, end: int) -> int:
        """The first position from which the rest could be the beginning of a match, looked at group by group: what is
        longer than any match of a group is no beginning of one."""
        widest_char = 1 if text.isascii() else 4
        hold = end
        for bound, tail in self._groups:
            start = tail(text, begin, end)[0][0]
            if bound is not None and end - start > bound * widest_char:
                start = end - bound * widest_char
                while text[start] & 0xC0 == 0x80:
                    start += 1
            if start < hold:
                hold = start
        return hold

    def overflowing(self, text: bytes, begin: int, end: int) -> tuple[int, Search]:
        """For a text that is too long to wait for what it becomes: the rule whose match may have begun first, and a
        search for all that may belong to a match of any rule that is under way."""
        starts = [tail(text, begin, end)[0][0] for tail in self._partial]
        atoms = frozenset().union(
            *(alphabet(tree) for tree, start in zip(self._trees, starts, strict=True) if start < end)
        )
        return starts.index(min(starts)), _run_of(atoms)

    def broken_off(self, text: bytes, begin: int, end: int) -> Match | None:
        """The beginning of a secret at the end of a text that was to go on, if it is long enough to matter."""
        first: Match | None = None
        for number, tail in self._secrets:
            start = tail(text, begin, end)[0][0]
            if end - start >= _MASKED_PART and (first is None or start < first.start):
                first = Match(start, start, end, number)
        return first

    def matches(self, text: bytes, begin: int, end: int) -> list[Match]:
        """What is found in folded text, in UTF-8, from `begin` on; each rule's in order, rule by rule."""
        if self.first(text, begin, end)[0][0] < 0:
            return []
        found: list[Match] = []
        for number in self._which(text):
            search, accept, after = self._search[number], self._accept[number], self._after[number]
            at = begin
            while at < end:
                start, stop = search(text, at, end)[0]
                if start < 0:
                    break
                first = start if after is None else after(text, start, stop)[0][1]
                if not start < first < stop:
                    first = start
                if accept is None or accept(text[first:stop].decode()):
                    found.append(Match(start, first, stop, number))
                    at = stop
                else:
                    at = start + 1
                    while at < end and text[at] & 0xC0 == 0x80:
                        at += 1
        return found

    def find(self, source: str) -> list[Found]:
        """What is found in a whole text, in order, overlapping ones as one."""
        if escaped(source):
            text = fold(read(source)).encode()
            found = self.matches(text, 0, len(text))
            return self.places_in(found, text_runs(source, whole=True)[0], text, 0) if found else []
        text = fold(source).encode()
        found = self.matches(text, 0, len(text))
        return self.places(found, source, text, 0) if found else []

    def places(self, found: Sequence[Match], source: str, text: bytes, lead: int) -> list[Found]:
        """Matches in characters of the source, in order, overlapping ones as one, which is the first's.

        text: the folded source, behind `lead` bytes that belong to none of it.
        """
        if len(text) - lead == len(source) and source.isascii():
            at = [Found(match.start - lead, match.begin - lead, match.end - lead, match.rule) for match in found]
        else:
            chars = characters(found, text, lead)
            flat = place(source, [index for start, begin, end in chars for index in (start, begin, end - 1)])
            at = [Found(flat[3 * n], flat[3 * n + 1], flat[3 * n + 2] + 1, match.rule) for n, match in enumerate(found)]
        return merged([one for one in at if self.counts(one.rule, source[one.begin : one.end])])

    def places_in(self, found: Sequence[Match], runs: list[Run], text: bytes, lead: int) -> list[Found]:
        """The same where the source has escapes in it: runs are its stretches, and text is what they mean."""
        if not found:
            return []
        flat = located(runs, [index for one in characters(found, text, lead) for index in (one[0], one[1], one[2] - 1)])
        at = [Found(flat[3 * n][0], flat[3 * n + 1][0], flat[3 * n + 2][1], one.rule) for n, one in enumerate(found)]
        return merged([one for one in at if self.counts(one.rule, _meant(runs, one))])

    def counts(self, rule: int, written: str) -> bool:
        """Whether a match as it is written is one."""
        asked = self.rules[rule].written
        return asked is None or asked(written)

    def replace(self, source: str, mask: Mask) -> str:
        """A whole text with its matches replaced."""
        out: list[str] = []
        at = 0
        for found in self.find(source):
            out += (source[at : found.begin], mask(self.rules[found.rule], source[found.begin : found.end]))
            at = found.end
        if not at:
            return source
        out.append(source[at:])
        return "".join(out)


def _meant(runs: list[Run], one: Found) -> str:
    return "".join([text for _, _, text, _ in pieces(runs, one.begin, one.end)])


def characters(found: Sequence[Match], text: bytes, lead: int) -> list[tuple[int, int, int]]:
    """Of each match start, begin and end, in characters behind `lead`."""
    wanted = sorted({index for match in found for index in (match.start, match.begin, match.end)})
    known: dict[int, int] = {}
    at, count = lead, 0
    for index in wanted:
        count += len(text[at:index].decode())
        at = index
        known[index] = count
    return [(known[match.start], known[match.begin], known[match.end]) for match in found]


def merged(places: list[Found]) -> list[Found]:
    """Places in order of what is masked, overlapping ones as one: the first, of these the longest, and of
    these that of the rule that was named first."""
    out: list[Found] = []
    for one in sorted(places, key=lambda one: (one.begin, -one.end, one.rule)):
        if out and one.begin < out[-1].end:
            last = out[-1]
            if one.end > last.end or one.start < last.start:
                out[-1] = Found(min(one.start, last.start), last.begin, max(one.end, last.end), last.rule)
        else:
            out.append(one)
    return out


def _named(rule: Rule, pattern: str) -> Search:
    try:
        return compiled(pattern)
    except Refused as error:
        raise Refused(f"{rule.name}: {error}") from None


def _anchored(node: Node) -> Search:
    return compiled(written(node), anchored=True)


def _tail(begun: Sequence[Node]) -> Search:
    return compiled("(?:" + "|".join(written(node) for node in begun) + r")\z")


def _run_of(atoms: frozenset[Atom]) -> Search:
    if not atoms:
        return lambda text, begin, end: [(begin, begin)]
    return compiled(written(Repeat(Branches(tuple(sorted(atoms, key=written))), 0, None)), anchored=True)


_SAMPLE = """The quick brown fox, at 12:30 on 2026-01-31, paid $1,234.56 to <someone@example.org> (see
https://example.org/a/b?c=d#e) for `x = {"key": [1, 2.5, null]}`; 192.0.2.1, +49 30 1234567 and v1.2.3-rc_4 too."""
