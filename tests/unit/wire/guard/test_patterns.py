"""wire.guard.patterns: what many rules find is united, in any script, in linear time, and what is held is bounded."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.wire.guard.catalogue import named
from tollhouse.wire.guard.channel import Channel, edited
from tollhouse.wire.guard.expression import Refused
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule, pattern


def mask(rule: Rule, text: str) -> str:
    return f"<{rule.name}>"


def test_what_overlaps_is_one_and_the_first_has_the_name() -> None:
    patterns = PatternSet([pattern("b", "bcd+"), pattern("a", "abc"), pattern("d", "de?")])
    assert patterns.replace("xabcdddex bcd abc.de", mask) == "x<a>x <b> <a>.<d>"
    assert [(one.begin, one.end, one.rule) for one in patterns.find("xabcdddex")] == [(1, 8, 1)]


def test_neighbours_stay_two() -> None:
    assert PatternSet([pattern("a", "ab"), pattern("c", "cd")]).replace("abcdab", mask) == "<a><c><a>"


def test_masks_cover_the_source_from_the_first_to_the_last_character() -> None:
    patterns = PatternSet([pattern("a", "fine?")])
    assert patterns.replace("(\u200bf\u200bi\u0301n\u0303e\u0301\u200b)", mask) == "(\u200b<a>\u0301\u200b)"
    assert patterns.replace("(ﬁn)(ﬁ)", mask) == "(<a>)(ﬁ)"
    assert PatternSet([pattern("f", "f"), pattern("i", "in")]).replace("ﬁn", mask) == "<i>"


def test_what_is_replaced_by_itself_stays() -> None:
    seen: list[str] = []

    def counted(rule: Rule, text: str) -> str:
        seen.append(text)
        return text

    assert PatternSet([pattern("a", "b")]).replace("abcb", counted) == "abcb"
    assert seen == ["b", "b"]


@settings(max_examples=200, deadline=None)
@given(st.text("ab1 -\u00e4", max_size=40))
def test_as_python_finds_it(text: str) -> None:
    """These find the same in any engine: no choice of theirs is ambiguous."""
    folded = text.replace("\u00e4", "a")
    for own, theirs in ((r"\b[0-9]+\b", r"\b[0-9]+\b"), ("a[ab]*", "a[ab]*"), ("(?m)^[a-b]{2,}", "(?m)^[a-b]{2,}")):
        expected = [match.span() for match in re.finditer(theirs, folded, re.ASCII)]
        assert [(one.begin, one.end) for one in PatternSet([pattern("p", own)]).find(text)] == expected


def test_no_rules_are_refused_and_a_bad_one_by_its_name() -> None:
    with pytest.raises(Refused, match="no rules"):
        PatternSet([])
    with pytest.raises(Refused, match="greedy: "):
        PatternSet([pattern("greedy", "(?:(?:a{1000}){1000}){1000}")])


@pytest.mark.parametrize(
    "text",
    [
        "a" * 20_000,
        "1 " * 10_000,
        "sk-" * 7000,
        "@" * 20_000,
        "eyJ" + "a." * 9000,
        "\u00e9\u200b" * 9000,
        "-----BEGIN " * 1500,
        "4111 " * 4000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    patterns = PatternSet(named(["pii", "secrets"]))
    began = time.thread_time()
    patterns.find(text)
    assert time.thread_time() - began < 0.5


def test_what_is_held_is_bounded_by_the_rule_that_wants_it() -> None:
    patterns = PatternSet([pattern("word", r"\b[a-z]{1,20}!"), pattern("number", r"\b[0-9]{1,400}!")], max_match=1000)
    channel = Channel(patterns, mask)
    for char in "a" * 3000:
        channel.feed(char)
        assert len(channel.held) <= 64
    channel.feed(" ")
    for char in "1" * 3000:
        channel.feed(char)
        assert len(channel.held) <= 512


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
@pytest.mark.parametrize("letters", ["a", "\u00e9", "a\u200b", "a" + "\u200b" * 40])
def test_what_is_too_long_to_wait_for_is_masked_and_never_leaves(size: int, letters: str) -> None:
    patterns = PatternSet(
        [pattern("key", "sk-[a-z]{20,}", secret=True), pattern("name", r"[a-z]{2,9}@")], max_match=100
    )
    text = "My sk-" + letters * 1200 + " and a@b, ab@b."
    channel = Channel(patterns, mask)
    out = "".join([edited(channel.feed(text[at : at + size])) for at in range(0, len(text), size)])
    assert out + edited(channel.finish()) in (
        "My <key> and a@b, <name>b.",
        "My <key>\u200b and a@b, <name>b.",
        f"My <key>{letters[1:]} and a@b, <name>b.",
    )


@pytest.mark.parametrize("size", [1, 50])
def test_what_ends_in_other_letters_is_swallowed_to_its_end(size: int) -> None:
    patterns = PatternSet([pattern("block", r"BEGIN[a-z]+;END[0-9]{8}")], max_match=64)
    text = "x BEGIN" + "a" * 500 + ";END12345678 y. BEGINz;END12345678."
    channel = Channel(patterns, mask)
    out = "".join([edited(channel.feed(text[at : at + size])) for at in range(0, len(text), size)])
    assert out + edited(channel.finish()) == "x <block> y. <block>."


def test_a_bounded_rule_longer_than_is_waited_for_is_masked_too() -> None:
    patterns = PatternSet([pattern("long", "<[a-z]{1,500}>")], max_match=50)
    channel = Channel(patterns, mask)
    out = "".join([edited(channel.feed(char)) for char in "a <" + "b" * 200 + "> c <d>"]) + edited(channel.finish())
    assert out == "a <long> c <long>"


def test_a_rule_that_only_counts_lets_long_texts_through() -> None:
    patterns = PatternSet([pattern("key", "sk-[a-z]+")], max_match=50)
    channel = Channel(patterns, lambda rule, text: text)
    text = "sk-" + "a" * 500 + " b"
    assert "".join([edited(channel.feed(char)) for char in text]) + edited(channel.finish()) == text


def test_broken_off_is_masked_only_for_secrets_and_only_if_it_says_something() -> None:
    patterns = PatternSet([pattern("key", "sk-[a-z]{20}", secret=True), pattern("word", "hello[a-z]{20}")])
    for text, left in (("is sk-abcdef", "is <key>"), ("is sk-ab", "is sk-ab"), ("is helloabcdef", "is helloabcdef")):
        channel = Channel(patterns, mask)
        assert edited(channel.feed(text)) == "is "
        assert "is " + edited(channel.finish(whole=False)) == left


def test_two_that_are_under_way_are_both_swallowed() -> None:
    patterns = PatternSet([pattern("a", "sk-[a-z]+"), pattern("b", "zz[a-z0-9]+")], max_match=100)
    text = "x sk-" + "a" * 80 + "zz" + "b" * 30 + "1234567890 y"
    for size in (1, 10, 99):
        channel = Channel(patterns, mask)
        out = "".join([edited(channel.feed(text[at : at + size])) for at in range(0, len(text), size)])
        assert out + edited(channel.finish()) == "x <a> y"


@pytest.mark.parametrize("length", [30, 60, 85])
def test_lengths_are_characters_in_any_script(length: int) -> None:
    patterns = PatternSet([pattern("short", r"\pL{1,60}!"), pattern("long", r"\pL{61,90}\?")], max_match=100)
    for text in ("日" * length + "!", "日" * length + "?"):
        channel = Channel(patterns, mask)
        out = "".join([edited(channel.feed(char)) for char in text]) + edited(channel.finish())
        assert out == patterns.replace(text, mask)


def test_what_nobody_sees_is_not_held_without_end() -> None:
    patterns = PatternSet([pattern("key", "sk-[a-z]{20,}")], max_match=100)
    channel = Channel(patterns, mask)
    out = ""
    for piece in ("is s", *["\u200b" * 50] * 40, "k-no"):
        out += edited(channel.feed(piece))
        assert len(channel.held) <= 500
    assert out + edited(channel.finish()) == "is <key>"
