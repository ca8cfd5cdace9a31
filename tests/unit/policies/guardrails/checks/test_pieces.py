"""Texts in pieces: nothing is left out, and every place is known."""

from hypothesis import given
from hypothesis import strategies as st

from tollhouse.policies.guardrails.checks.pieces import OVERLAP, clean, pieces, slices

SIZE = 2 * OVERLAP + 50
TEXTS = st.lists(
    st.tuples(st.text(st.characters(exclude_categories=()), max_size=30), st.integers(0, 60)).map(
        lambda p: p[0] * p[1]
    ),
    max_size=6,
)


@given(TEXTS)
def test_every_character_is_in_a_piece_at_the_place_that_is_said(texts: list[str]) -> None:
    seen: list[set[int]] = [set() for _ in texts]
    for several in (slices(texts, SIZE), pieces(texts, SIZE)):
        for piece in several:
            assert 0 < len(piece.text) <= SIZE
            for part in piece.parts:
                own = piece.text[part.at : part.at + part.size]
                assert own == clean(texts[part.text][part.start : part.start + part.size])
                seen[part.text].update(range(part.start, part.start + part.size))
        assert all(len(places) == len(text) or not text.strip() for places, text in zip(seen, texts, strict=True))


def test_a_long_text_overlaps_and_short_ones_share() -> None:
    long = [piece.parts[0] for piece in slices(["x" * 1000], SIZE)]
    assert [(part.start, part.start + part.size) for part in long] == [(0, 450), (250, 700), (500, 950), (750, 1000)]
    assert [piece.text for piece in pieces(["a", " ", "b", "", "c" * 446], SIZE)] == ["a\n\nb", "c" * 446]
    assert list(pieces([], SIZE)) == []


def test_surrogates_are_written_and_nothing_moves() -> None:
    assert clean("a\ud800b\U0001f600") == "a\ufffdb\U0001f600"
