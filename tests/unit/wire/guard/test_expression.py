"""wire.guard.expression: what RE2 reads is read the same, and what it cannot do is refused with words."""

import re

import pytest

from tollhouse.wire.guard.derive import written
from tollhouse.wire.guard.engine import compiled
from tollhouse.wire.guard.expression import Refused, literal, parse

TEXTS = [
    "",
    "a",
    "ab\nAB",
    "foo-bar_baz 12",
    "x]y^z\\w",
    "tab\there",
    "aaa bbb",
    "A.b+c*d?",
    "12:34",
    "\u20ac\u6f22",
]


@pytest.mark.parametrize(
    "pattern",
    [
        "a",
        "ab|AB",
        "(a)(b)?",
        "(?:a|b)*c?",
        "[a-c]+",
        "[^a-c\\s]{2,3}",
        "[]^]",
        "[]a]",
        "[a\\]\\\\-]",
        "[[:alpha:]]+",
        "[^[:^digit:]]",
        "\\d{2}",
        "\\bfoo\\b",
        "\\Bo",
        "^a$",
        "(?m)^AB$",
        "(?s)b.A",
        "b.A",
        "(?i)foo",
        "(?i:F)oo",
        "a(?i)b|AB",
        "(?i)a(?-i)b",
        "\\x{41}",
        "\\x41\\x{42}",
        "\\0",
        "\\060",
        "\\t",
        "\\Q.b+\\E",
        "\\Qb+c*",
        "\\pL+",
        "\\p{Greek}|\\PN",
        "\\.b\\+",
        "a{2}",
        "a{2,}",
        "a{,3}",
        "(?P<name>a)b",
        "(?<name>a)b",
        "(?is-m:a.A)",
        "[\\d\\-x]+",
        "\\Aa",
        "b\\z",
        "\\u20ac".replace("\\u20ac", "€"),
        "[€-₭]",
        "x|",
        "()a",
        "\\-\\_\\/",
    ],
)
def test_it_is_read_as_re2_reads_it(pattern: str) -> None:
    own, theirs = compiled(written(parse(pattern))), compiled(pattern)
    for text in TEXTS:
        data = text.encode()
        for at in range(len(data) + 1):
            assert own(data, at, len(data))[0] == theirs(data, at, len(data))[0], (written(parse(pattern)), text, at)


@pytest.mark.parametrize(
    ("pattern", "at", "why"),
    [
        (r"(a+)\1", 5, "back-reference"),
        (r"(?P<x>a)(?P=x)", 9, "back-reference"),
        (r"\k<x>", 1, "back-reference"),
        (r"a(?=b)", 2, "look-ahead .* end it with `\\\\b`"),
        (r"a(?!b)", 2, "negative look-ahead"),
        (r"(?<=a)b", 1, "look-behind .* as `after`"),
        (r"(?<!a)b", 1, "negative look-behind"),
        (r"(?>a)", 1, "atomic group"),
        (r"a.*?b", 4, "longest match counts here"),
        (r"a{1,3}?", 7, "longest match counts here"),
        (r"a++", 3, r"never goes back, so write `\+`"),
        (r"(?U)a*", 1, "longest match counts here"),
        (r"(?R)", 1, "recursion"),
        (r"(?#x)", 1, "comment"),
        (r"(?(1)a|b)", 1, "condition"),
        (r"(?x) a", 1, "the flag `x`"),
        (r"(?%)", 1, "a group that RE2 does not have"),
        (r"(a", 1, "not closed"),
        (r"a)", 2, "closes nothing"),
        (r"[a", 1, "not closed"),
        (r"[b-a]", 5, "ends before it begins"),
        (r"*a", 1, "repeats nothing"),
        (r"{2}a", 1, "repeats nothing"),
        (r"a**", 3, "repetition of a repetition"),
        (r"a{3,2}", 2, "below the lower"),
        (r"a{1001}", 2, "more than 1000"),
        ("a\\", 2, "at the end"),
        (r"a\Z", 2, r"is `\\z`"),
        (r"\y", 1, "escape that RE2 does not have"),
        (r"\x{110000}", 1, "10FFFF"),
        (r"\xZ", 1, "hexadecimal"),
        (r"\p{", 1, "names a class"),
        ("(" * 60, 52, "more than 50 groups"),
        ("a" * 20_000, None, "at most 16384"),
    ],
)
def test_what_cannot_be_is_refused_with_words(pattern: str, at: int | None, why: str) -> None:
    with pytest.raises(Refused, match=why) as refused:
        parse(pattern)
    if at is not None:
        assert re.match(rf"at character {at}: ", str(refused.value)), refused.value


def test_what_only_re2_knows_is_refused_too() -> None:
    for pattern in (r"\p{Klingon}", "[[:klingon:]]", "(?:(?:(?:a{1000}){1000}){1000})"):
        with pytest.raises(Refused):
            compiled(written(parse(pattern)))


def test_patterns_are_folded_as_texts_are() -> None:
    assert written(parse("Müller")) == "Muller"
    assert written(literal("ﬁn\u200b.")) == r"fin\."
    search = compiled(written(parse("[é-ë]t\\x{e9}")))
    assert search(b"ete", 0, 3) == [(0, 3)]
