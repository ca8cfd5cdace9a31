"""Findings of several pieces as those of one text."""

from tollhouse.policies.guardrails.check import Finding
from tollhouse.policies.guardrails.checks.placed import placed


def test_what_concerns_all_is_said_once_and_first() -> None:
    found = placed([Finding("a", ((0, 1, 2),)), Finding("b"), Finding("b", message="again"), Finding("c")])
    assert found == [Finding("b"), Finding("c"), Finding("a", ((0, 1, 2),))]


def test_spans_that_overlap_are_one_in_the_words_of_the_longer() -> None:
    first = Finding("name", ((0, 10, 14), (1, 0, 4)), replaces=("{N}", "{N}"))
    second = Finding("address", ((0, 12, 30), (0, 40, 44)), replaces=("{A}", "{A}"))
    assert placed([first, second]) == [
        Finding("name", ((1, 0, 4),), replaces=("{N}",)),
        Finding("address", ((0, 10, 30), (0, 40, 44)), replaces=("{A}", "{A}")),
    ]


def test_the_same_span_twice_is_one_and_neighbours_are_two() -> None:
    one = Finding("name", ((0, 0, 4),), replaces=("x",))
    assert placed([one, one]) == [one]
    both = Finding("name", ((0, 0, 4), (0, 4, 8), (1, 0, 4)))
    assert placed([both]) == [both]
    assert placed([]) == []
