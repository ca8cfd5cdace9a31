"""Expressions: a pattern in the syntax of RE2, read into a tree.

Rule: what cannot be decided in linear time, or by the text so far and one more character, is refused with words that
say what to write instead; what is read here, RE2 reads the same way. The longest match counts, always.

The pattern is folded as texts are (`folding`): `Müller` finds Muller and M\u00fcller alike.
"""

import re
from typing import NoReturn

import msgspec

from tollhouse.wire.guard.folding import fold, fold_char

__all__ = ["Assertion", "Atom", "Branches", "Node", "Refused", "Repeat", "Sequence", "literal", "parse"]

_LONGEST = 16_384  # characters of one pattern
_DEEPEST = 50  # groups within groups
_REPEATS = 1000  # RE2's own bound
_LONGEST_COUNT = len("{1000,1000}")
_RANGE = 2048  # characters of a range that are folded one by one


class Refused(ValueError):
    """A pattern that cannot be used; the text says why, and what would be right."""


class Atom(msgspec.Struct, frozen=True, gc=False):
    """One character: a letter, a class, any. source: in RE2's syntax. flags: of `is`, in force here."""

    source: str
    flags: str = ""


class Assertion(msgspec.Struct, frozen=True, gc=False):
    r"""A condition between two characters: \b \B ^ $ \A \z. flags: `m` or none."""

    source: str
    flags: str = ""


class Sequence(msgspec.Struct, frozen=True):
    """One after the other; nothing, if there are none."""

    parts: tuple["Node", ...] = ()


class Branches(msgspec.Struct, frozen=True):
    """One of several."""

    parts: tuple["Node", ...]


class Repeat(msgspec.Struct, frozen=True):
    """The same from `least` to `most` times; `most` None: any number."""

    node: "Node"
    least: int
    most: int | None


Node = Atom | Assertion | Sequence | Branches | Repeat


def literal(text: str) -> Node:
    """The tree of a text that is meant as it stands, folded."""
    return _sequence([_letter(char, "") for char in fold(text)])


def parse(pattern: str) -> Node:
    """The tree of a pattern. Raises Refused."""
    if len(pattern) > _LONGEST:
        raise Refused(f"a pattern of {len(pattern)} characters; at most {_LONGEST} are read")
    reader = _Reader(pattern)
    node = reader.branches(0, "")
    if reader.at < len(pattern):
        reader.refuse("a `)` that closes nothing; for the character write `\\)`")
    return node


_QUANTIFIER = re.compile(r"[*+?]|\{([0-9]+)(?:(,)([0-9]*))?\}")
_GROUP = re.compile(r"\(\?(?:P?<(?P<name>\w+)>|(?P<flags>[a-zA-Z]*(?:-[a-zA-Z]+)?)(?P<end>[:)]))")
_WRONG_GROUPS = {
    "(?=": "a look-ahead `(?=...)`: RE2 has none; let the pattern take what follows as well, or end it with `\\b`",
    "(?!": "a negative look-ahead `(?!...)`: RE2 has none; write a class of what may follow, or end it with `\\b`",
    "(?<=": "a look-behind `(?<=...)`: RE2 has none; begin with `\\b`, or give what stands before as `after`",
    "(?<!": "a negative look-behind `(?<!...)`: RE2 has none; begin with `\\b`, or a class of what may stand there",
    "(?>": "an atomic group `(?>...)`: RE2 never goes back, so write `(?:...)`",
    "(?#": "a comment `(?#...)`: RE2 has none; put it into the configuration",
    "(?(": "a condition `(?(...)...)`: RE2 has none; write the cases side by side, with `|`",
    "(?P=": "a back-reference `(?P=...)`: RE2 has none, since no bound could be given for the time it takes",
    "(?P>": "a recursion: RE2 has none; write out as many levels as are wanted",
    "(?R": "a recursion: RE2 has none; write out as many levels as are wanted",
    "(?&": "a recursion: RE2 has none; write out as many levels as are wanted",
    "(?|": "a branch reset `(?|...)`: groups have no numbers here, so write `(?:...)`",
}
_WRONG_ESCAPES = {
    **dict.fromkeys("123456789", "a back-reference: RE2 has none, since no bound could be given for the time it takes"),
    **dict.fromkeys("kg", "a back-reference: RE2 has none, since no bound could be given for the time it takes"),
    "Z": "`\\Z`: the end of the text is `\\z`",
    "C": "`\\C`, one byte: texts are characters here",
    **dict.fromkeys("GKRXNhHVuUceEylLo", "an escape that RE2 does not have; see its syntax"),
}
_CONTROL = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}
_UNICODE_CLASS = re.compile(r"\\[pP](?:\{\^?\w+\}|[A-Za-z])")
_HEX = re.compile(r"\\x(?:\{([0-9A-Fa-f]{1,6})\}|([0-9A-Fa-f]{2}))")
_OCTAL = re.compile(r"\\0([0-7]{0,2})")
_POSIX = re.compile(r"\[:\^?[a-z]+:\]")


class _Reader:
    """Where the reading stands. Flags in force go down with the calls."""

    __slots__ = ("at", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0

    def refuse(self, why: str) -> NoReturn:
        raise Refused(f"at character {self.at + 1}: {why}")

    def branches(self, depth: int, flags: str) -> Node:
        """Up to a `)` or the end."""
        if depth > _DEEPEST:
            self.refuse(f"more than {_DEEPEST} groups within each other")
        found: list[Node] = []
        parts: list[Node] = []
        pattern = self.pattern
        while self.at < len(pattern) and pattern[self.at] != ")":
            char = pattern[self.at]
            if char == "|":
                self.at += 1
                found.append(_sequence(parts))
                parts = []
            elif char == "(":
                changed, node = self._group(depth, flags)
                if node is None:
                    flags = changed  # up to the end of this group, further branches included
                else:
                    parts.append(self._repeated(node))
            else:
                parts.append(self._repeated(self._single(flags)))
        found.append(_sequence(parts))
        return found[0] if len(found) == 1 else Branches(tuple(found))

    def _group(self, depth: int, flags: str) -> tuple[str, Node | None]:
        pattern, start = self.pattern, self.at
        if pattern.startswith("(?", start):
            for begins in ("(?<=", "(?<!", "(?P=", "(?P>", "(?=", "(?!", "(?>", "(?#", "(?(", "(?R", "(?&", "(?|"):
                if pattern.startswith(begins, start):
                    self.refuse(_WRONG_GROUPS[begins])
            match = _GROUP.match(pattern, start)
            if match is None:
                self.refuse("a group that RE2 does not have")
            self.at = match.end()
            if match["flags"] is not None:
                flags = self._flags(match["flags"], flags, start)
            if match["end"] == ")":
                return flags, None
        else:
            self.at += 1
        node = self.branches(depth + 1, flags)
        if self.at >= len(pattern):
            self.at = start
            self.refuse("a group that is not closed")
        self.at += 1
        return flags, node

    def _flags(self, named: str, flags: str, start: int) -> str:
        on, _, off = named.partition("-")
        for flag in on + off:
            if flag == "U":
                self.at = start
                self.refuse("`(?U)`: the longest match counts here; write a class that excludes what ends it")
            if flag not in "ims":
                self.at = start
                self.refuse(f"the flag `{flag}`: RE2 has i, m and s")
        return "".join(sorted(set(flags + on) - set(off)))

    def _repeated(self, node: Node) -> Node:
        pattern = self.pattern
        again = False
        while (match := _QUANTIFIER.match(pattern, self.at)) is not None:
            if again:
                self.refuse("a repetition of a repetition; put the first one into `(?:...)`")
            again = True
            sign = match[0]
            if len(sign) > _LONGEST_COUNT:
                self.refuse(f"a repetition of more than {_REPEATS}; leave out the upper bound")
            if sign in "*+?":
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
            else:
                least = int(match[1])
                most = least if match[2] is None else int(match[3]) if match[3] else None
            if least > _REPEATS or (most or 0) > _REPEATS:
                self.refuse(f"a repetition of more than {_REPEATS}; leave out the upper bound")
            if most is not None and most < least:
                self.refuse("a repetition whose upper bound is below the lower one")
            self.at = match.end()
            following = pattern[self.at : self.at + 1]
            if following == "?":
                self.refuse(
                    f"`{sign}?`: the longest match counts here, so nothing is gained by stopping early; write a class "
                    'that excludes what ends it, as in `"[^"]*"`'
                )
            if following == "+":
                self.refuse(f"`{sign}+`: RE2 never goes back, so write `{sign}`")
            node = Repeat(node, least, most)
        return node

    def _single(self, flags: str) -> Node:
        """One that is no group."""
        pattern, at = self.pattern, self.at
        char = pattern[at]
        kept = flags.replace("m", "")
        if char == "[":
            return Atom(self._class(), kept.replace("s", ""))
        if char in "^$":
            self.at += 1
            return Assertion(char, "m" if "m" in flags else "")
        if char == ".":
            self.at += 1
            return Atom(".", "s" if "s" in flags else "")
        if char in "*+?" or (char == "{" and _QUANTIFIER.match(pattern, at)):
            self.refuse(f"`{char}` repeats nothing; for the character write `\\{char}`")
        if char == "\\":
            return self._escape(kept.replace("s", ""))
        self.at += 1
        return _sequence([_letter(one, kept.replace("s", "")) for one in fold_char(char)])

    def _escape(self, flags: str) -> Node:
        pattern, at = self.pattern, self.at
        letter = pattern[at + 1 : at + 2]
        if not letter:
            self.refuse("a `\\` at the end; for the character write `\\\\`")
        if letter in "bBAz":
            self.at += 2
            return Assertion("\\" + letter)
        if letter in "dDsSwW":
            self.at += 2
            return Atom("\\" + letter, flags)
        if letter in "pP":
            return Atom(self._unicode(), flags)
        if letter == "Q":
            end = pattern.find("\\E", at)
            text = pattern[at + 2 : end if end >= 0 else len(pattern)]
            self.at = end + 2 if end >= 0 else len(pattern)
            return _sequence([_letter(char, flags) for char in fold(text)])
        return _sequence([_letter(one, flags) for one in fold_char(self._escaped())])

    def _unicode(self) -> str:
        match = _UNICODE_CLASS.match(self.pattern, self.at)
        if match is None:
            self.refuse("`\\p` names a class of characters, as `\\p{Greek}` or `\\pL`")
        self.at = match.end()
        return match[0]

    def _escaped(self) -> str:
        """One character that an escape stands for."""
        pattern, at = self.pattern, self.at
        letter = pattern[at + 1 : at + 2]
        for form, base in ((_HEX, 16), (_OCTAL, 8)):
            match = form.match(pattern, at)
            if match is not None:
                code = int(match[1] or match[match.lastindex or 1] or "0", base)
                if code > 0x10FFFF:
                    self.refuse("no such character: Unicode ends at 10FFFF")
                self.at = match.end()
                return chr(code)
        if letter == "x":
            self.refuse("`\\x` takes two hexadecimal digits, or any number in braces")
        if letter in _WRONG_ESCAPES:
            self.refuse(_WRONG_ESCAPES[letter])
        if not letter or (letter.isalnum() and letter not in _CONTROL) or not letter.isascii():
            self.refuse("an escape that RE2 does not have; see its syntax")
        self.at += 2
        return _CONTROL.get(letter, letter)

    def _class(self) -> str:
        """A class in brackets, with what its characters fold to."""
        pattern, start = self.pattern, self.at
        self.at += 1
        out = "["
        if pattern.startswith("^", self.at):
            self.at += 1
            out += "^"
        first = True
        while first or not pattern.startswith("]", self.at):
            if self.at >= len(pattern):
                self.at = start
                self.refuse("a `[` that is not closed; for the character write `\\[`")
            first = False
            posix = _POSIX.match(pattern, self.at)
            if posix is not None:
                self.at = posix.end()
                out += posix[0]
                continue
            if pattern[self.at] == "\\" and pattern[self.at + 1 : self.at + 2] in ("d", "D", "s", "S", "w", "W"):
                out += pattern[self.at : self.at + 2]
                self.at += 2
                continue
            if pattern[self.at] == "\\" and pattern[self.at + 1 : self.at + 2] in ("p", "P"):
                out += self._unicode()
                continue
            low = high = self._member()
            if pattern.startswith("-", self.at) and pattern[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                high = self._member()
            if high < low:
                self.refuse("a range that ends before it begins")
            out += _range(low, high)
        self.at += 1
        return out + "]"

    def _member(self) -> str:
        if self.pattern[self.at : self.at + 1] == "\\":
            return self._escaped()
        char = self.pattern[self.at]
        self.at += 1
        return char


def _range(low: str, high: str) -> str:
    out = _quoted(low) if low == high else f"{_quoted(low)}-{_quoted(high)}"
    if high.isascii() or ord(high) - ord(low) > _RANGE:
        return out
    folded = {fold_char(chr(code)) for code in range(ord(low), ord(high) + 1)}
    return out + "".join(_quoted(char) for char in sorted(folded) if len(char) == 1 and not low <= char <= high)


def _letter(char: str, flags: str) -> Atom:
    return Atom(_quoted(char), flags.replace("s", "").replace("m", "") if char.upper() != char.lower() else "")


def _quoted(char: str) -> str:
    if char.isalnum() or (not char.isascii() and char.isprintable()):
        return char
    return f"\\x{{{ord(char):x}}}" if not char.isprintable() or char == " " else "\\" + char


def _sequence(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Sequence(tuple(parts))
