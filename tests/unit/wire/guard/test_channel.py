"""wire.guard.channel: wherever a text is cut, what leaves is what the whole text becomes, and never more than that."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.wire.guard.channel import Channel, edited
from tollhouse.wire.guard.checksums import digits
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule, keywords, pattern

RULES = [
    pattern("email", r"\b[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"),
    pattern("key", r"\bsk-[A-Za-z0-9_-]{20,}", secret=True),
    pattern("card", r"\b[0-9](?:[ -]?[0-9]){12,18}\b", accept=lambda text: sum(digits(text)) % 2 == 0),
    pattern("token", r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}", secret=True),
    pattern("password", r"[^\s,;]{4,40}", after=r"(?i:password)\s?[:=]\s?", secret=True),
    pattern("line", r"(?m:^)secret: [a-z ]{1,30}(?m:$)"),
    keywords("keyword", ["project x", "C++", "Müller", "он"]),
]
SECRETS = [
    "ada.lovelace+x@mail.example.co.uk",
    "sk-ABCDEFGHIJKLMNOPQRSTUVWX_yz-01",
    "4111 1111 1111 1112",
    "4111-1111-1111-1112",
    "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.c2lnbmF0dXJl-_x",
    "password: hunter2!",
    "\nsecret: the cake is a lie\n",
    "Project  X",
    "c++",
    "Müller",
    "Mu\u0308LLER",
    "ａｄａ＠example.org",
    "a\u200bd\u00ada@exa\u200dmple.org",
    "١٢٣٤ 5678 1234 5678",
    "sk-\u200bABCDEFGHIJ\u0301KLMNOPQRSTUVWX",
    "oн",  # a Latin letter among Cyrillic ones
]
WORDS = [
    "The key ",
    "sk-",
    "sk",
    " is ",
    "eyJ",
    "@",
    "a@b",
    ".",
    " ",
    "\n",
    "4111 ",
    "password",
    "=",
    "ß",
    "ﬁn ",
    "\u200b",
    "\ud800",
    "é",
    "日本",
    "secret: x",
    "project",
    "C+",
    "x",
]


@pytest.fixture(scope="module")
def patterns() -> PatternSet:
    return PatternSet(RULES)


def mask(rule: Rule, text: str) -> str:
    return f"<{rule.name}>"


def streamed(patterns: PatternSet, pieces: list[str], *, whole: bool = True) -> str:
    """What leaves; at every moment a beginning of what the whole text becomes."""
    reference = patterns.replace("".join(pieces), mask)
    channel = Channel(patterns, mask)
    out = ""
    for piece in pieces:
        out += edited(channel.feed(piece))
        assert reference.startswith(out)
    return out + edited(channel.finish(whole=whole))


def cut(text: str, *at: int) -> list[str]:
    return [text[low:high] for low, high in pairwise((0, *at, len(text)))]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("around", [("", ""), ("Send it to ", " now."), ("x.", "日"), ("\u200b", "\u200b!")])
def test_wherever_it_is_cut(patterns: PatternSet, secret: str, around: tuple[str, str]) -> None:
    text = secret.join(around)
    reference = patterns.replace(text, mask)
    assert reference != text
    assert streamed(patterns, list(text)) == reference
    for first in range(len(text)):
        assert streamed(patterns, cut(text, first)) == reference
    for first in range(0, len(text), 3):
        for second in range(first, len(text), 2):
            assert streamed(patterns, cut(text, first, second)) == reference


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(SECRETS + WORDS), max_size=12), st.randoms(use_true_random=False))
def test_mixtures(patterns: PatternSet, parts: list[str], chance: random.Random) -> None:
    text = "".join(part[: chance.randint(0, len(part))] if chance.random() < 0.3 else part for part in parts)
    at = sorted(chance.randint(0, len(text)) for _ in range(chance.randint(0, 12)))
    assert streamed(patterns, cut(text, *at)) == patterns.replace(text, mask)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80), st.integers(1, 9))
def test_any_text(patterns: PatternSet, text: str, size: int) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert streamed(patterns, pieces) == patterns.replace(text, mask)


LONG = ["eyJ", "a" * 90, "B-7_" * 40, ".", "\u200b" * 30, "\n", " ", "é", "sk-", "Z" * 300, "4111 ", '"']


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(LONG), max_size=14), st.randoms(use_true_random=False))
def test_long_ones_that_are_not_read_with_every_piece(
    patterns: PatternSet, parts: list[str], chance: random.Random
) -> None:
    text = "".join(parts)
    reference = patterns.replace(text, mask)
    for size in (1, 4, chance.randint(2, 40)):
        assert streamed(patterns, [text[at : at + size] for at in range(0, len(text), size)]) == reference


@pytest.mark.parametrize("end", [" is", '"', "\n", "é ", "\u200b ", ""])
@pytest.mark.parametrize("length", [150, 161, 255, 256, 400, 1000, 1030, 2040])
def test_what_is_no_match_after_all_leaves_soon(patterns: PatternSet, length: int, end: str) -> None:
    """A text that was held for long, whatever ends it, wherever the reading of it was left off."""
    for size in (1, 3, 7):
        text = "eyJ" + "a" * length
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        channel = Channel(patterns, mask)
        assert not any(edited(channel.feed(piece)) for piece in pieces)
        assert channel.held == text
        out = edited(channel.feed(end)) + "".join([edited(channel.feed(" x")) for _ in range(length // 60 + 2)])
        assert out.startswith(text)
        out += edited(channel.finish())
        assert out == text + end + " x" * (length // 60 + 2)


@pytest.mark.parametrize("text", ["eyJ" + "a" * 60_000, "sk-" + "a- \u200b"[:2] * 30_000, "eyJ" + "a\u200b" * 30_000])
def test_the_work_is_linear_in_what_is_held(text: str) -> None:
    """One match that is as long as what may be waited for, letter by letter: each is read few times."""
    patterns = PatternSet(RULES, max_match=65_536)
    read = 0

    def counted(data: bytes, begin: int, end: int) -> list[tuple[int, int]]:
        nonlocal read
        read += end - begin
        return tail(data, begin, end)

    tail, patterns.tail = patterns.tail, counted
    channel = Channel(patterns, mask)
    for char in text:
        channel.feed(char)
    assert len(channel.held) > 59_000 or len(text) < 60_000
    assert read < 40 * len(text)
    assert edited(channel.finish()) in ("<key>", text)
