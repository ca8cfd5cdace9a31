"""Search over tools: which of those that a caller may use fit what it wants to do.

Rule: one index for each catalogue as a server has it, made once; a search looks at those of its servers and counts
only what the caller may use, so that neither the order nor a weight tells of a tool that is hidden. The order is BM25
over fields (names, titles, the beginnings of descriptions, the rest of them, names of arguments), each by its own
length; of a word asked for and those that stand for it, the best counts. Equals keep the order of the catalogues.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import log
from operator import mul
from typing import Any, NamedTuple

import msgspec

from tollhouse.wire.mcp.catalogue import Entry, Listing

__all__ = ["Found", "Index", "Indexes", "fuse", "nearest", "rank", "terms"]

# Chosen by trying, on one half of the wishes of bench/tools.py; the report there is of the other half.
_K1 = 3.0
_SERVER = 3.0
_FIELDS = (  # how much a word counts, how much the field's length does, and what is an ordinary length
    (2.0, 1.0, 4),  # name
    (1.0, 1.0, 5),  # title
    (0.5, 0.3, 20),  # beginning of the description
    (0.1, 0.3, 40),  # rest of it
    (0.5, 0.3, 6),  # names of arguments
)
_LEADING = 400  # characters of a description that say what the tool is for; behind them stand terms and conditions
_AKIN = 0.5  # what a word counts that only begins like one of the query, times the cube of the share of letters
_SYNONYM = 0.6  # and one that says the same
_TOGETHER = 0.2  # how much a word is taken for as frequent as all that say the same: a rare one says no more than they
_SHORTEST = 4  # letters that two words must share at their beginning
_MOST_AKIN = 16
_LONGEST_SYLLABLE = 5
_MOST_TERMS = 32
_LONGEST_TEXT = 4000  # characters of a description or a query
_MOST_ARGUMENTS = 100
_RANK = 60  # of reciprocal rank fusion: how little the first places differ

_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W_]+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_COMMON = frozenset(
    ("a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "i", "in", "is", "it", "of", "on", "or", "that")
) | frozenset(("the", "this", "to", "with"))

# Words of a wish that say nothing of what is wished.
_ASKING = """
    me my mine we our us you your he his him she her they them their its these those somebody someone anybody something
    anything what which who whom whose where when why how there here am was were been being do does did done can could
    will would shall should may might must have has had having not no if then than so too very just please want need
    like about into out up down over under again any some much many more most let
"""

# What people say, and what tools are called: every API has these, whatever it is about.
_SAME = (
    "create add new make open insert post write send submit book schedule register file upload put",
    "get read show fetch view retrieve describe detail details look see inspect",
    "list search find query all which browse lookup show",
    "update edit change modify set rename patch adjust replace close move",
    "delete remove cancel drop erase destroy clear revoke",
    "run execute start launch trigger invoke perform dispatch begin",
    "stop end pause halt disable mute silence cancel",
    "restart rerun retry redo again",
    "approve accept confirm review",
    "upload attach attachment",
    "publish release",
    "issue bug ticket problem defect",
    "message mail email",
    "comment reply answer note response",
    "user person people member account colleague",
    "team group",
    "picture image photo",
    "repository repo project",
    "pull pr",
    "meeting event appointment",
    "folder directory",
    "document doc file",
    "secret password credential key token",
    "job task pipeline workflow build ci",
    "machine server instance vm host",
    "organization organisation org company",
    "license licence",
    "price cost billing bill payment pay paid",
    "permission access share",
    "limit quota rate",
    "vulnerability advisory security",
    "error crash exception failure",
    "visit visitor view traffic",
    "notification alert",
    "status state health",
    "login signin authenticate authenticated logged",
)


class _Tool(msgspec.Struct):
    title: Any = None
    description: Any = None
    inputSchema: Any = None
    annotations: Any = None


class Found(NamedTuple):
    """at: of the index, among those that were searched. entry: its number there."""

    at: int
    entry: int


def terms(text: str) -> list[str]:
    """The words of a text as they are compared: identifiers taken apart, small letters, endings off. Of scripts that
    set no spaces, pairs of characters."""
    found: list[str] = []
    for word in _WORD.findall(_HUMPS.sub(" ", text[:_LONGEST_TEXT]).lower()):
        if _UNSPACED.search(word):
            found.extend(word[at : at + 2] for at in range(max(1, len(word) - 1)))
        elif word not in _COMMON:
            found.append(_stem(word))
    return found


def _stem(word: str) -> str:
    """Plurals, -ing and -ed off; "list" and "lists" are one word, and so are "create" and "creating"."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        if len(word) > len(ending) + 3 and word.endswith(ending):
            word = word[: -len(ending)]
            if word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


def _synonyms() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for group in _SAME:
        words = {_stem(word) for word in group.split()}
        for word in words:
            found.setdefault(word, set()).update(words - {word})
    return found


_SYNONYMS = _synonyms()
_IDLE = frozenset(map(_stem, _ASKING.split()))


def _asked(query: str) -> list[str]:
    """What is looked for: the words of a query, and neighbours as one word (`web hook` is `webhook` elsewhere)."""
    words = list(dict.fromkeys(terms(query)))
    words = [word for word in words if word not in _IDLE] or words
    joined = [first + second for first, second in pairwise(words) if len(first) + len(second) > _LONGEST_SYLLABLE]
    return list(dict.fromkeys(words + joined))[:_MOST_TERMS]


def _fields(entry: Entry) -> tuple[str, str, list[str]]:
    """(title, description, names of arguments) of a tool; what is no text is left out."""
    try:
        tool = msgspec.json.decode(entry.raw, type=_Tool)
    except (msgspec.DecodeError, RecursionError):
        return "", "", []
    title = tool.title
    if not isinstance(title, str):
        title = tool.annotations.get("title") if isinstance(tool.annotations, dict) else None
    schema = tool.inputSchema
    arguments = schema.get("properties") if isinstance(schema, dict) else None
    return (
        title if isinstance(title, str) else "",
        tool.description if isinstance(tool.description, str) else "",
        list(arguments)[:_MOST_ARGUMENTS] if isinstance(arguments, dict) else [],
    )


def _text(server: str, entry: Entry) -> str:
    title, description, arguments = _fields(entry)
    lines = [f"{server}: {entry.name}", title, description[:_LONGEST_TEXT], " ".join(arguments)]
    return "\n".join(filter(None, lines))


class Index:
    """The words of one server's tools. entries: as they were indexed."""

    __slots__ = ("_postings", "_server", "_texts", "_words", "entries")

    def __init__(self, server: str, entries: Sequence[Entry]) -> None:
        self._server = server
        self._texts: list[str] = []
        self.entries = entries
        self._postings: dict[str, list[tuple[int, float]]] = {}
        about = terms(server)
        for number, entry in enumerate(entries):
            title, description, arguments = _fields(entry)
            counts = dict.fromkeys(about, _SERVER)
            texts = (entry.name, title, description[:_LEADING], description[_LEADING:], " ".join(arguments))
            for text, (weight, part, ordinary) in zip(texts, _FIELDS, strict=True):
                words = terms(text)
                each = weight / (1 - part + part * len(words) / ordinary) if words else 0.0
                for word in words:
                    counts[word] = counts.get(word, 0.0) + each
            for word, count in counts.items():
                self._postings.setdefault(word, []).append((number, count))
        self._words = sorted(self._postings)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def texts(self) -> list[str]:
        """Each tool in a few lines, for a model that makes vectors of text. Made once."""
        if not self._texts:
            self._texts = [_text(self._server, entry) for entry in self.entries]
        return self._texts

    def postings(self, word: str) -> list[tuple[int, float]]:
        """(number of the entry, how much of the word it has)."""
        return self._postings.get(word, [])

    def akin(self, word: str) -> set[str]:
        """Other words that begin with this one, or that this one begins with."""
        if len(word) < _SHORTEST:
            return set()
        found = {word[:size] for size in range(_SHORTEST, len(word)) if word[:size] in self._postings}
        at = bisect_left(self._words, word)
        for other in self._words[at : at + _MOST_AKIN]:
            if not other.startswith(word):
                break
            found.add(other)
        found.discard(word)
        return found


class Indexes:
    """Made once for each server's catalogue, while it is that one. limit: of those kept."""

    __slots__ = ("_known", "_limit")

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._known: dict[tuple[str, bytes], Index] = {}

    def of(self, server: str, listing: Listing) -> Index:
        key = (server, listing.version)
        known = self._known.pop(key, None)
        if known is None:
            known = Index(server, listing.entries)
            if len(self._known) >= self._limit:
                del self._known[next(iter(self._known))]
        self._known[key] = known
        return known


def rank(query: str, parts: Sequence[tuple[Index, bytes]], limit: int) -> list[Found]:
    """The best first; none that has no word of the query. parts: indexes, each with one byte for each entry: 1 where
    this caller may use it."""
    number = sum(sum(visible) for _, visible in parts)
    scores: dict[Found, float] = {}
    for word in _asked(query):
        for key, score in _scored(word, parts, number).items():
            scores[key] = scores.get(key, 0.0) + score
    return sorted(scores, key=lambda key: (-scores[key], key))[:limit]


def _scored(word: str, parts: Sequence[tuple[Index, bytes]], number: int) -> dict[Found, float]:
    """What one word of a query gives to which of `number` tools: the most that it, or one that stands for it, gives."""
    same = {word, *_SYNONYMS.get(word, ())}
    found = []
    together = 0
    for other, weight in _meant(word, parts).items():
        hits = [
            (at, [hit for hit in index.postings(other) if visible[hit[0]]]) for at, (index, visible) in enumerate(parts)
        ]
        often = sum(len(some) for _, some in hits)
        if often:
            found.append((other, weight, often, hits))
            together += often if other in same else 0
    together = min(together, number)
    best: dict[Found, float] = {}
    for other, weight, often, hits in found:
        frequency = often + _TOGETHER * max(0, together - often) if other in same else often
        rarity = weight * log(1 + (number - frequency + 0.5) / (frequency + 0.5)) * (_K1 + 1)
        for at, some in hits:
            for entry, count in some:
                key = Found(at, entry)
                score = rarity * count / (count + _K1)
                if score > best.get(key, 0.0):
                    best[key] = score
    return best


def _meant(word: str, parts: Sequence[tuple[Index, bytes]]) -> dict[str, float]:
    """A word and what may stand for it, with what each counts."""
    wanted = {word: 1.0}
    for other in _SYNONYMS.get(word, ()):
        wanted[other] = _SYNONYM
    for index, _ in parts:
        for other in index.akin(word):
            short, long = sorted((len(other), len(word)))
            wanted[other] = max(wanted.get(other, 0.0), _AKIN * (short / long) ** 3)
    return wanted


def nearest(query: Sequence[float], vectors: Iterable[tuple[Found, Sequence[float]]], limit: int) -> list[Found]:
    """By cosine, the vectors being of length 1. Those of another number of dimensions are left out."""
    size = len(query)
    scored = [(sum(map(mul, query, vector)), key) for key, vector in vectors if len(vector) == size]
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    return [key for _, key in scored[:limit]]


def fuse(first: Sequence[Found], second: Sequence[Found], limit: int) -> list[Found]:
    """Two orders as one (reciprocal rank fusion); equals as in the first."""
    scores: dict[Found, float] = {}
    for ranking in (first, second):
        for place, key in enumerate(ranking):
            scores[key] = scores.get(key, 0.0) + 1 / (_RANK + place)
    return sorted(scores, key=lambda key: -scores[key])[:limit]
