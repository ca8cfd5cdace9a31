"""wire.guard.llm.citations: what is cited by number is still what was meant, or the mask that stands there."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.guard.llm.citations import Moved, change, moved, renumbered


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("a key b", "a <> b", Moved(2, 3, 2)),
        ("aaa", "aa", Moved(2, 1, 0)),
        ("abc", "abc", Moved(3, 0, 0)),
        ("", "x", Moved(0, 0, 1)),
    ],
)
def test_what_changed(before: str, after: str, expected: Moved) -> None:
    assert change(before, after) == expected


@pytest.mark.parametrize(
    ("place", "begin", "end"),
    [
        (0, 0, 0),
        (4, 4, 4),
        (5, 4, 6),
        (8, 4, 6),
        (9, 6, 6),
        (10, 7, 7),
        (12, 9, 9),
        (13, 9, 9),
        (14, 9, 9),
        (20, 15, 15),
    ],
)
def test_places_move(place: int, begin: int, end: int) -> None:
    """5 characters from 4 on are 2, 2 from 12 on are none."""
    changes = [Moved(4, 5, 2), Moved(12, 2, 0)]
    assert (moved(changes, place, end=False), moved(changes, place, end=True)) == (begin, end)


@given(st.text("ab", max_size=8), st.text("ab", max_size=8), st.integers(0, 8), st.integers(0, 8))
def test_a_place_outside_of_what_changed_keeps_its_neighbours(before: str, after: str, one: int, other: int) -> None:
    found = change(before, after)
    begin, end = sorted((min(one, len(before)), min(other, len(before))))
    told = after[moved([found], begin, end=False) : moved([found], end, end=True)]
    if begin < end and (end <= found.begin or begin >= found.begin + found.before):
        assert told == before[begin:end]


@pytest.mark.parametrize("citation", [b"1", b'{"start_index": "x", "end_index": 3}', b'{"of": {"start_index": 5}}'])
def test_what_is_no_citation_stays(citation: bytes) -> None:
    told = renumbered(msgspec.Raw(citation), [Moved(0, 2, 1)], "start_index", "end_index")
    assert msgspec.json.decode(told) == msgspec.json.decode(citation)
