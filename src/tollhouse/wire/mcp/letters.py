"""Characters that are not what they seem: those that nobody sees, and those that look like others.

Rule: what a script or an emoji needs is no finding. Nothing that is printed of a server's text acts on a terminal or
stays unseen (`visible`).
"""

import re
import unicodedata

__all__ = ["ascii_of", "hidden", "is_seen", "lookalike", "plain", "sample", "simple", "spelled", "visible"]

_SAMPLE = 120

_TAGS = range(0xE0000, 0xE0080)
_SELECTORS = (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_MARKS = "\u200e\u200f\u061c"  # needed now and then among scripts written from right to left
_JOINERS = "\u200c\u200d"
_ZERO_WIDTH = "\u200b\u2060\u2061\u2062\u2063\u2064\ufeff\u180e" + _JOINERS + _MARKS
_FILLERS = "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufff9\ufffa\ufffb\u180b\u180c\u180d"
_KIND = {
    **dict.fromkeys(map(chr, _TAGS), "tag-characters"),
    **dict.fromkeys(map(chr, _SELECTORS), "variation-selectors"),
    **dict.fromkeys(map(chr, _BIDI), "bidi-control"),
    **dict.fromkeys(_ZERO_WIDTH, "zero-width"),
    **dict.fromkeys(_FILLERS, "invisible-filler"),
}
_UNSEEN = dict.fromkeys(map(ord, _KIND))
_ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u2800\u3164\ud800-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\U000e0000-\U0010ffff]"
)
"""Every character that may be a finding, so that a text without one is looked at once."""

_CATEGORIES = {"Cc": "control-character", "Cf": "invisible-filler", "Co": "private-use", "Cn": "private-use"}
_CATEGORIES["Cs"] = "private-use"
_SELECTED = frozenset(("So", "Sm", "Sk", "Po", "Lo", "Mn", "Pd", "Ps", "Pe"))

# Emoji flags of regions are the only use that tags have (UTS 51, RGI).
_REGIONS = ("gbeng", "gbsct", "gbwls")
_SPELLED = "|".join("".join(chr(0xE0000 + ord(letter)) for letter in region) for region in _REGIONS)
_FLAGS = re.compile(f"\U0001f3f4(?:{_SPELLED})\U000e007f")


def hidden(text: str) -> dict[str, list[str]]:
    """The characters that nobody sees, by the rule of `scan` that they break."""
    found: dict[str, list[str]] = {}
    flags: set[int] | None = None
    for match in _ODD.finditer(text):
        at, char = match.start(), match[0]
        rule = _KIND.get(char) or _CATEGORIES.get(unicodedata.category(char))
        if rule is None:
            continue
        before, after = text[at - 1 : at], text[at + 1 : at + 2]
        if rule == "tag-characters":
            if flags is None:
                flags = {n for flag in _FLAGS.finditer(text) for n in range(*flag.span())}
            if at in flags:
                continue
        elif rule == "variation-selectors":
            if _KIND.get(after) != rule and _takes_selector(before, char):
                continue
        elif rule == "zero-width" and _joins(before, char, after):
            continue
        found.setdefault(rule, []).append(char)
    return found


def _takes_selector(base: str, selector: str) -> bool:
    """Whether one selector after this character has a meaning: of an emoji or symbol, an ideograph, a keycap."""
    if not base:
        return False
    if ord(selector) >= 0xE0100:
        return unicodedata.category(base) == "Lo"
    return base in "0123456789#*" or unicodedata.category(base) in _SELECTED


def _joins(before: str, char: str, after: str) -> bool:
    """Whether this character has work to do between these two: emoji that are one, letters of scripts that join, a mark
    among letters that are written from right to left."""
    if not before or not after:
        return False
    if char in _MARKS:
        return any(unicodedata.bidirectional(c) in ("R", "AL") for c in (before, after))
    if char not in _JOINERS:
        return False
    if char == "\u200d" and ord(after) >= 0x2190 and unicodedata.category(after) in ("So", "Sm"):
        return True
    return ord(before) >= 0x0600 and unicodedata.category(before) in ("Lo", "Mn", "Mc")


def is_seen(char: str) -> bool:
    """Whether a reader sees the character. Variation selectors and letters without a form count as printable."""
    return char.isprintable() and char not in _KIND


def visible(text: str) -> str:
    """One line with everything in it shown: what is not seen, or would act on a terminal, stands as <U+200B>."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if is_seen(char) else f"<U+{ord(char):04X}>" for char in text)


def sample(text: str) -> str:
    """The beginning of a text, to be shown."""
    short = " ".join(text.split())
    return visible(short if len(short) <= _SAMPLE else short[:_SAMPLE] + "...")


# ---- letters that look like others
_LIKE = {
    "a": "аαɑᴀ", "b": "вьƅβʙ", "c": "сϲᴄⅽ", "d": "ԁɗᴅ", "e": "еєεᴇ", "f": "ꜰϝ", "g": "ɡցɢ", "h": "һհнʜ", "i": "іїıιɩɪ",
    "j": "јյϳᴊ", "k": "кκᴋ", "l": "ӏⅼʟ", "m": "мᴍ", "n": "пηոɴ", "o": "оοօσᴏ", "p": "рρᴘ", "q": "ԛզ", "r": "гʀ",
    "s": "ѕꜱ", "t": "тτᴛ", "u": "υսμᴜ", "v": "νѵᴠ", "w": "ԝωᴡ", "x": "хχ", "y": "уγүʏ", "z": "ζᴢ",
}  # fmt: skip
"""Of Cyrillic, Greek, Armenian and phonetic letters those that are hard to tell from Latin ones (UTS 39 has more)."""

_LETTERS = str.maketrans({like: letter for letter, alike in _LIKE.items() for like in alike})
_APART = str.maketrans(dict.fromkeys("_-./: ", ""))
_ALIKE = str.maketrans({"0": "o", "1": "l", "i": "l", "|": "l", "!": "l"})


def simple(name: str) -> str:
    """A name without case and separators: `read_file`, `readFile` and `read-file` are the same."""
    return name.casefold().translate(_APART)


def lookalike(name: str) -> str:
    """What a name looks like: equal for names that are easily taken for each other."""
    return simple(ascii_of(name)).translate(_ALIKE).replace("rn", "m").replace("vv", "w")


def ascii_of(text: str) -> str:
    """In lower case, without hidden characters and accents, and in Latin letters where others look like them."""
    if text.isascii():
        return text.casefold()
    text = unicodedata.normalize("NFKD", text.translate(_UNSEEN)).casefold().translate(_LETTERS)
    return "".join(char for char in text if not unicodedata.combining(char))


def spelled(text: str) -> str:
    """The text as it is written, in any script: in lower case, without hidden characters, with one space between
    words."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_UNSEEN))
    return " ".join(text.casefold().split())


def plain(text: str) -> str:
    """The text as it reads: in lower case, without hidden characters, with one space between words."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_UNSEEN)).casefold().translate(_LETTERS)
    return " ".join(text.casefold().split())
