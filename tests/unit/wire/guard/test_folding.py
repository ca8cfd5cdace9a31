"""wire.guard.folding: what reads alike is compared as the same, and its place in the source is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.guard.folding import fold, fold_char, place


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("plain ASCII\x00\x7f", "plain ASCII\x00\x7f"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "Full width"),
        ("re\u0301sume\u0301 résumé", "resume resume"),
        ("i\u200bn\u200cv\u200di\u2060s\ufeffi\u00adb\u202el\u200ee", "invisible"),
        ("ｓｋ\u2010ａｂｃ 4111\u20111111\u20131111\u22121111", "sk-abc 4111-1111-1111-1111"),
        ("a\u00a0b\u2003c\u3000d\u2028e", "a b c d\ne"),
        ("рауpаl.com ΑΒΕ", "paypal.com ABE"),
        ("٣٤ ४५ １２ ① ²", "34 45 12 1 2"),
        ("𝒜𝓭𝓪 𝔞𝔡𝔞 𝟜𝟚", "Ada ada 42"),
        ("ﬁne ﬂow Ⅷ ℡", "fine flow VIII TEL"),
        ("t\U000e0061g\U000e007f", "tg"),
        ("a\ud800b\udfff", "a\ufffdb\ufffd"),
        ("日本語 한국", "日本語 \u1112\u1161\u11ab\u1100\u116e\u11a8"),
    ],
)
def test_what_reads_alike_is_the_same(text: str, folded: str) -> None:
    assert fold(text) == folded
    fold(text).encode()


@given(st.text())
def test_each_character_by_itself_and_once(text: str) -> None:
    assert fold(text) == "".join(map(fold_char, text))
    assert fold(fold(text)) == fold(text)


@given(st.text(), st.text())
def test_a_text_may_be_cut_anywhere(one: str, other: str) -> None:
    assert fold(one + other) == fold(one) + fold(other)


@given(st.text(alphabet=st.sampled_from("aé\u0301ﬁ\u200b日Ⅷ "), max_size=30))
def test_the_place_of_each_folded_character(text: str) -> None:
    folded = fold(text)
    expected = [at for at, char in enumerate(text) for _ in fold_char(char)]
    assert place(text, list(range(len(folded)))) == expected
    assert place(text, [len(folded)]) == [len(text)]


def test_the_place_in_ascii_is_the_same() -> None:
    assert place("abc", [0, 2, 3]) == [0, 2, 3]


def test_what_any_character_folds_to_folds_to_itself() -> None:
    folded = fold("".join(map(chr, range(0x20000))))
    assert fold(folded) == folded
