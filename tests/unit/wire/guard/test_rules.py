"""wire.guard.rules: keywords, and patterns with something before them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.guard.expression import Refused
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule, keywords, pattern, words


def found(rule: Rule, text: str) -> list[str]:
    return [text[one.begin : one.end] for one in PatternSet([rule]).find(text)]


def test_keywords_are_whole_words_in_any_case_with_any_spaces() -> None:
    rule = keywords("k", ["Project X", "C++", ".env", "naïve", "@all"])
    text = "project\u00a0 x, PROJECT\nX! projects xy c++ C++11 .ENV a.env NAIVE naïveté @ALL b@all"
    assert found(rule, text) == ["project\u00a0 x", "PROJECT\nX", "c++", "C++", ".ENV", ".env", "NAIVE", "@ALL", "@all"]


def test_keywords_as_they_stand() -> None:
    assert found(keywords("k", ["Art", "a.c"], ignore_case=False), "Art art Party a.c abc") == ["Art", "a.c"]
    assert found(keywords("k", ["art"], whole_words=False), "Art art Party") == ["Art", "art", "art"]


def test_ten_thousand_keywords_are_found_as_fast_as_one() -> None:
    wanted = [f"word{n:04x}x" for n in range(10_000)]
    patterns = PatternSet([keywords("k", wanted)])
    text = "nothing of it stands in these words " * 110
    began = time.thread_time()
    for _ in range(20):
        assert patterns.find(text) == []
    assert (time.thread_time() - began) / 20 < 0.01
    assert [text[one.begin : one.end] for text in (f"a {wanted[4711]} b",) for one in patterns.find(text)] == [
        wanted[4711]
    ]


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ([], "no keywords"),
        ([" "], "without letters"),
        (["\u200b"], "without letters"),
        (["x"] * 10_001, "at most 10000"),
    ],
)
def test_keywords_that_are_refused(wanted: list[str], why: str) -> None:
    with pytest.raises(Refused, match=why):
        keywords("k", wanted)


@given(
    st.lists(st.text(min_size=1, max_size=8).filter(lambda word: word.split()), min_size=1, max_size=6),
    st.text(max_size=5),
)
def test_any_keyword_is_found(wanted: list[str], around: str) -> None:
    try:
        rule = keywords("k", wanted, whole_words=False)
    except Refused:
        return  # nothing but what nobody sees
    for word in wanted:
        assert found(rule, f"{around}{word}{around}")


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(Refused, match="`\\+` in place of `\\*`"):
        pattern("p", "a*")


def test_what_stands_before_is_not_masked() -> None:
    rule = pattern("p", r"[a-z0-9]{4,}", after=r"(?i:pin)[:= ]{1,3}")
    patterns = PatternSet([rule])
    assert (
        patterns.replace("PIN: 1234, pin=abcd; 1234 pin", lambda rule, text: "*" * len(text))
        == "PIN: ****, pin=****; 1234 pin"
    )


def test_what_is_not_accepted_does_not_hide_what_is() -> None:
    rule = pattern("p", r"[0-9]{4}", accept=lambda text: text.endswith("7"))
    assert found(rule, "123456789 éé1237") == ["4567", "1237"]


def test_several_patterns_in_one_rule_keep_their_flags_to_themselves() -> None:
    assert found(words("w", ["(?i)abc", "xyz"]), "ABC XYZ xyz") == ["ABC", "xyz"]
