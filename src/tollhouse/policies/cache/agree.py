"""Whether two texts that sound alike can mean the same: what vectors are blind to.

Rule: it can only refuse, and a true paraphrase that is refused costs one call. Embeddings place "12 + 5" beside
"12 + 6", a question beside its denial, and "who wrote it" beside "who directed it". So numbers and denials must be the
same in both texts (`numbers`); and beside them every word that names something, in whatever order; what
comes behind `to`; which kind of thing is asked for (why, who, where, when), and of which time (`names`). What is left
to be different are the words around that: how a question is put. Those are known for English; in another language every
word counts.
"""

import re
import unicodedata
from typing import Final, Literal, NamedTuple

__all__ = ["Facts", "Verify", "agree", "facts_of"]

Verify = Literal["names", "numbers", "off"]

_NUMBERS: Final = {
    "twenty": "20", "thirty": "30", "fifty": "50", "hundred": "100", "thousand": "1000", "million": "1e6",
    "half": "1/2", "twice": "x2", "double": "x2", "triple": "x3", "dozen": "12",
} | {
    word: str(n)
    for n, words in enumerate(
        (
            "zero null", "", "two zwei deux dos", "three drei trois tres", "four vier quatre cuatro",
            "five fünf cinq cinco", "six sechs seis", "seven sieben sept siete", "eight acht huit ocho",
            "nine neun neuf nueve", "ten zehn dix diez", "eleven elf onze once", "twelve zwölf douze doce",
        )
    )
    for word in words.split()
}  # fmt: skip

_DENIALS: Final = frozenset(
    (
        "not", "no", "never", "without", "none", "nor", "neither", "cannot", "cant", "dont", "doesnt", "isnt", "wont",
        "shouldnt", "arent", "didnt", "wasnt", "nobody", "nothing", "unless", "except", "excluding",
        "nicht", "kein", "keine", "keinen", "keiner", "nie", "ohne", "niemals", "außer",
        "pas", "jamais", "sans", "aucun", "aucune", "nunca", "sin", "ningún", "non", "mai", "senza",
    )
)  # fmt: skip

_AROUND: Final = frozenset(
    (
        "a", "am", "an", "and", "any", "are", "as", "at", "be", "been", "being", "by", "can", "could",
        "do", "does", "doing", "done", "find", "for", "get", "give", "has", "have", "having", "here",
        "how", "i", "if", "in", "is", "it", "its", "know", "let", "like", "may", "me", "might", "mine",
        "must", "my", "name", "need", "of", "on", "one", "our", "please", "say", "shall", "should",
        "show", "so", "some", "step", "steps", "tell", "that", "the", "there", "these", "this", "those",
        "us", "want", "way", "ways", "we", "what", "whether", "which", "would", "you", "your",
    )
)  # fmt: skip
"""How a question is put."""

_TOWARDS: Final = frozenset(("to", "into", "than", "vs", "versus"))
"""What comes next is where it goes; or, behind `to`, what is done."""

_KINDS: Final = frozenset(
    ("why", "who", "whom", "whose", "where", "when", "from", "before", "after", "over", "under", "since", "until", "vs")
)
_PAST: Final = frozenset(("was", "were", "did", "had", "been"))
_FUTURE: Final = frozenset(("will", "wont", "going"))
_TIMES: Final = _PAST | _FUTURE

_WORD: Final = re.compile(r"[^\W_]+(?:['’.,:/_@+\-][^\W_]+)*|[+*/%^<>=\-]", re.UNICODE)
_DIGIT: Final = re.compile(r"\d")
_COMMA: Final = re.compile(r"(?<=\d),(?=\d{3}(?:\D|$))")
_FRACTION: Final = re.compile(r"\d+\.\d+")
_NOT: Final = re.compile(r"n['’]t$")
_OWN: Final = re.compile(r"['’]s$")


class Facts(NamedTuple):
    """What must be the same in two texts. words: that name something, in alphabetical order. towards: those of them
    that come behind a word like `to`. kinds: of thing, place and time that is asked for. times: past, future.
    named: what is written as a name, in its order, where there is more than one: who does what to whom."""

    numbers: tuple[str, ...] = ()
    denials: int = 0
    words: tuple[str, ...] = ()
    towards: frozenset[str] = frozenset()
    kinds: tuple[str, ...] = ()
    times: tuple[bool, bool] = (False, False)
    named: tuple[str, ...] = ()


def facts_of(text: str, verify: Verify) -> Facts:
    """What `verify` wants to be the same."""
    if verify == "off":
        return Facts()
    numbers: list[str] = []
    words: list[str] = []
    found = set()
    towards = set()
    denials = 0
    goes = False
    named = []
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text)):
        word = match[0].casefold()
        if match.start() and match[0][0].isupper() and word not in _AROUND:
            named.append(_stem(_OWN.sub("", word)))
        found.add(word)
        if _DIGIT.search(word):
            numbers.append(_number(word))
        elif word in _NUMBERS:
            numbers.append(_NUMBERS[word])
        elif not word[0].isalnum():
            numbers.append(word)
        elif word in _DENIALS or _NOT.search(word):
            denials += 1
        elif word in _TOWARDS:
            goes = True
        elif word not in _AROUND and word not in _KINDS and word not in _TIMES:
            words.append(_stem(_OWN.sub("", word)))
            if goes:
                towards.add(words[-1])
            goes = False
    if verify == "numbers":
        return Facts(tuple(numbers), denials % 2)
    times = bool(found & _PAST), bool(found & _FUTURE)
    kinds = tuple(sorted(found & _KINDS))
    several = tuple(named) if len(named) > 1 else ()
    return Facts(tuple(numbers), denials % 2, tuple(sorted(words)), frozenset(towards), kinds, times, several)


def agree(one: Facts, other: Facts) -> bool:
    """Whether nothing speaks against it. Where the one says `to do`, the other may say it in another way; but both must
    not lead to different things."""
    if one.towards != other.towards and not (one.towards <= other.towards or other.towards <= one.towards):
        return False
    return one._replace(towards=other.towards) == other


def _number(word: str) -> str:
    """1,000 and 1000 are one number, 1.50 and 1.5 too; what is more than a number stays as it is."""
    plain = _COMMA.sub("", word)
    if _FRACTION.fullmatch(plain):
        plain = plain.rstrip("0").rstrip(".")
    return plain


def _stem(word: str) -> str:
    """The word without the commonest endings of English; short words keep theirs."""
    if not word.isascii():
        return word
    for ending, instead in (("ies", "y"), ("ing", ""), ("ly", ""), ("es", ""), ("ed", ""), ("s", ""), ("e", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 4 and not word.endswith("ss"):
            return word[: -len(ending)] + instead
    return word
