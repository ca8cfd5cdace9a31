"""wire.guard.derive: no beginning of any match is left out, and no match is longer than is said."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.wire.guard.derive import alphabet, least, prefixes, trie, widest, written
from tollhouse.wire.guard.engine import Search, compiled
from tollhouse.wire.guard.expression import Assertion, Atom, Branches, Node, Repeat, Sequence, parse


def whole(node: Node) -> Search:
    return compiled(rf"\A(?:{written(node)})\z")


ATOMS = st.sampled_from([Atom("a"), Atom("b"), Atom("[ab]"), Atom("c", "i")])
NODES: st.SearchStrategy[Node] = st.recursive(
    ATOMS | st.just(Assertion(r"\b")),
    lambda inner: (
        st.builds(Sequence, st.lists(inner, max_size=3).map(tuple))
        | st.builds(Branches, st.lists(inner, min_size=1, max_size=3).map(tuple))
        | st.builds(
            lambda node, low, more: Repeat(node, low, None if more is None else low + more),
            inner, st.integers(0, 10), st.none() | st.integers(0, 3),
        )
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(NODES, st.text("abC", max_size=14))
def test_every_beginning_of_a_match_is_one(node: Node, text: str) -> None:
    data = text.encode()
    matches, begins = whole(node), whole(prefixes(node))
    for end in range(len(data) + 1):
        if matches(data[:end], 0, end) == [(0, end)]:
            bound = widest(node)
            assert least(node) <= end <= (end if bound is None else bound)
            for at in range(end + 1):
                assert begins(data[:at], 0, at) == [(0, at)], (written(node), written(prefixes(node)), text[:at])


@pytest.mark.parametrize(
    ("pattern", "shortest", "longest", "characters"),
    [
        ("abc", 3, 3, "abc"),
        (r"\babc\b", 3, 4, "abc"),
        ("a|bcd", 1, 3, "abcd"),
        ("[ab]{2,5}c?", 2, 6, ["[ab]", "c"]),
        ("a+", 1, None, "a"),
        ("(?:a{0}b)*", 0, None, "ab"),
        ("(?:ab{3}){2}", 8, 8, "ab"),
    ],
)
def test_lengths_and_letters(pattern: str, shortest: int, longest: int | None, characters: str | list[str]) -> None:
    node = parse(pattern)
    assert (least(node), widest(node)) == (shortest, longest)
    assert {atom.source for atom in alphabet(node)} == set(characters)


@given(st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=12), st.text("abc", max_size=6))
def test_a_trie_finds_its_words_and_no_others(words: list[str], text: str) -> None:
    node = trie([tuple(map(Atom, word)) for word in words])
    assert (whole(node)(text.encode(), 0, len(text)) == [(0, len(text))]) == (text in words)
