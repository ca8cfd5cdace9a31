"""What was changed in a text: exact, small, and found in a bounded time."""

from time import thread_time

from hypothesis import given
from hypothesis import strategies as st

from tollhouse.policies.guardrails.checks.changes import changes

WORDS = st.lists(
    st.sampled_from(["Anna", "met", "{NAME}", " ", "  ", "\n", ".", "a", "aa", "é", "\U0001f600"]), max_size=40
)


def applied(before: str, after: str) -> str:
    out, at = [], 0
    for start, end, text in changes(before, after):
        assert at <= start <= end <= len(before)
        assert start < end or not before
        out += [before[at:start], text]
        at = end
    return "".join(out) + before[at:]


@given(WORDS.map("".join), WORDS.map("".join))
def test_the_spans_give_the_changed_text_again(before: str, after: str) -> None:
    assert applied(before, after) == after


@given(st.text(max_size=60), st.text(max_size=60))
def test_of_any_texts(before: str, after: str) -> None:
    assert applied(before, after) == after


def test_only_words_that_changed() -> None:
    assert list(changes("Anna met Ben and Anna.", "{NAME} met Ben and {NAME}.")) == [
        (0, 4, "{NAME}"), (17, 21, "{NAME}"),
    ]  # fmt: skip
    assert list(changes("same", "same")) == []
    assert list(changes("one two", "one two three")) == [(6, 7, "o three")]
    assert list(changes("", "new")) == [(0, 0, "new")]
    assert list(changes("call +49 30 1234567 now", "call [PHONE] now")) == [(5, 19, "[PHONE]")]


def test_texts_that_have_little_in_common_take_no_long() -> None:
    before, after = "a b c d e " * 40_000, "b a d c e " * 40_000
    began = thread_time()
    assert applied(before, after) == after
    before, after = "a b a b " * 140 + "x", "b a a b " * 140 + "y"
    assert applied(before, after) == after
    assert thread_time() - began < 8.0  # some 0.7 s; what is not linear takes minutes
