"""Folding: what a text is compared as. Letters that read alike become one, what nobody sees goes.

Rule: each character is folded by itself, whatever stands beside it, so that a text may be cut anywhere; and every
character of the folded text comes from one place of the source. ASCII folds to itself.

A character becomes its compatibility decomposition (NFKD: full width, ligatures, circled and mathematical letters)
without combining marks (accents) and format characters (zero width, soft hyphen, bidi, tags); digits of all scripts
become 0-9, hyphens and spaces of all kinds `-` and a space, Greek and Cyrillic letters that look Latin the Latin ones
(UTS 39 has more), and surrogates without their other half U+FFFD.
"""

import unicodedata
from bisect import bisect_left
from itertools import accumulate

__all__ = ["fold", "fold_char", "place"]

_REMEMBERED = 8192  # characters; any one text uses few

_HYPHENS = "\u2010\u2011\u2012\u2013\u2043\u2212\u02d7\ufe58"
# By capital and small letter, since patterns may tell them apart.
_LIKE = {
    "A": "АΑ", "B": "ВΒ", "C": "СϹ", "E": "ЕΕ", "F": "Ϝ", "G": "Ԍ", "H": "НΗ", "I": "ІΙӀ", "J": "ЈͿ", "K": "КΚ",
    "M": "МΜϺ", "N": "Ν", "O": "ОΟՕ", "P": "РΡ", "Q": "Ԛ", "S": "ЅՏ", "T": "ТΤ", "U": "Ս", "V": "Ѵ", "W": "Ԝ",
    "X": "ХΧ", "Y": "ҮΥ", "Z": "Ζ",
    "a": "аαɑᴀ", "b": "Ьʙ", "c": "сϲᴄ", "d": "ԁɗᴅ", "e": "еε", "g": "ɡց", "h": "һհʜ", "i": "іıιɩɪ", "j": "јյϳᴊ",
    "k": "κᴋ", "l": "ӏʟ", "m": "ᴍ", "n": "ոɴ", "o": "оοօᴏ", "p": "рρᴘ", "q": "ԛզ", "r": "ʀ", "s": "ѕꜱ", "t": "τᴛ",
    "u": "սυᴜ", "v": "νѵᴠ", "w": "ԝᴡ", "x": "хχ", "y": "уγүʏ", "z": "ᴢ",
}  # fmt: skip
_LETTERS = {like: letter for letter, alike in _LIKE.items() for like in alike}
_UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u180b\u180c\u180d\u180f")
_MARKS = frozenset(("Mn", "Me", "Cf"))


def fold_char(char: str) -> str:
    """What one character is compared as: mostly one character, none for what nobody sees, several for ligatures."""
    if char.isascii():
        return char
    if "\ud800" <= char <= "\udfff":
        return "\ufffd"
    return "".join([_one(part) for part in unicodedata.normalize("NFKD", char)])


def _one(char: str) -> str:
    if char.isascii():
        return char
    if char in _UNSEEN:
        return ""
    if char in _HYPHENS:
        return "-"
    letter = _LETTERS.get(char)
    if letter is not None:
        return letter
    category = unicodedata.category(char)
    if category in _MARKS:
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category == "Zs":
        return " "
    if category in ("Zl", "Zp"):
        return "\n"
    return char


class _Table(dict[int, str]):
    """Folded characters, as `str.translate` asks for them."""

    def __missing__(self, code: int) -> str:
        folded = fold_char(chr(code))
        if len(self) < _REMEMBERED:
            self[code] = folded
        return folded


_TABLE = _Table()


_ASCII = bytes(range(128))
_SHORT = 64  # characters that are looked up in less time than it takes to see which there are
_FEW = 48  # characters that are replaced one after the other; more are looked up each in its place


def fold(text: str) -> str:
    """What a text is compared as: no surrogates in it, so that it has a UTF-8 form."""
    if text.isascii():
        return text
    table = _TABLE
    if len(text) < _SHORT:
        return text.translate(table)
    try:
        letters = set(text.encode().translate(None, _ASCII).decode())
    except UnicodeEncodeError:  # surrogates without their other half
        return text.translate(table)
    changed = [letter for letter in letters if table[ord(letter)] != letter]
    if len(changed) > _FEW:
        return text.translate(table)
    # Nothing is replaced twice: what a character folds to folds to itself.
    for letter in changed:
        text = text.replace(letter, table[ord(letter)])
    return text


def place(source: str, at: list[int]) -> list[int]:
    """Where characters of the folded text come from: for each index into `fold(source)` that of the source's character.
    The index behind the last character is that behind the source."""
    if source.isascii():
        return at
    table = _TABLE
    ends = list(accumulate([len(table[ord(char)]) for char in source]))
    # The first source character that reaches beyond the index.
    return [bisect_left(ends, index + 1) for index in at]
