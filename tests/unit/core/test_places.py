"""Places: who comes first gets far, and nobody gets all."""

from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.places import Places


def test_one_holds_half_at_most_and_leaves_the_rest_to_those_who_hold_few() -> None:
    places = Places(8, 2)
    assert [places.take("a") for _ in range(6)] == [True] * 4 + [False] * 2
    assert [places.take("b") for _ in range(3)] == [True, True, False]
    assert [places.take("c"), places.take("d"), places.take("e")] == [True, True, False]
    places.give("a")
    assert not places.take("a")  # he holds more than few
    assert places.take("e")


def test_who_is_meant_well_has_the_whole() -> None:
    places = Places(8, 2)
    assert all(places.take("") for _ in range(8))
    assert not places.take("")
    assert not places.take("a")


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.booleans()), max_size=60))
def test_what_is_given_back_is_there_again(steps: list[tuple[str, bool]]) -> None:
    places = Places(8, 2)
    held: list[str] = []
    for who, takes in steps:
        if takes and places.take(who):
            held.append(who)
        elif not takes and who in held:
            held.remove(who)
            places.give(who)
        assert places.taken == len(held) <= 8
    for who in held:
        places.give(who)
    assert places.taken == 0
    assert all(places.take(who) for who in ("a", "b", "c"))
