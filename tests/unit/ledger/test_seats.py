"""ledger.seats: for whom a seat is cheaper, and what could not be reckoned."""

from hypothesis import given
from hypothesis import strategies as st

from tollhouse.ledger.base import UsageRow
from tollhouse.ledger.seats import Seat, seats

MONTH = 365.2425 / 12 * 86400
USD = 10**9
MAX = Seat("max", 100 * USD, ("claude-*",))


def used(user: str, cost: int, model: str = "claude-sonnet", *, tokens: int = 0, unpriced: int = 0) -> UsageRow:
    numbers = [10, 0, tokens, 0, 0, 0, 0, cost * USD, unpriced, *[0] * 7]
    return UsageRow((user, "o", model, "smart"), *numbers[: len(UsageRow.__struct_fields__) - 1])


def test_who_pays_more_than_a_seat_costs() -> None:
    rows = [used("ada", 250), used("bob", 30), used("eve", 101)]
    found = seats(rows, [MAX], MONTH)
    assert [(row.user, row.seat, row.saving_nano // USD) for row in found] == [
        ("ada", "max", 150), ("eve", "max", 1), ("bob", "", 0),
    ]  # fmt: skip
    assert (found[0].cost_nano, found[0].seat_nano, found[0].left_nano) == (250 * USD, 100 * USD, 0)
    assert (found[2].cost_nano, found[2].seat_nano, found[2].left_nano) == (30 * USD, 0, 30 * USD)


def test_only_its_models_count() -> None:
    rows = [used("ada", 90), used("ada", 500, "gpt-4o")]
    (row,) = seats(rows, [MAX], MONTH)
    assert (row.seat, row.cost_nano // USD) == ("", 590)
    (row,) = seats([*rows, used("ada", 20, "claude-haiku")], [MAX], MONTH)
    assert (row.seat, row.saving_nano // USD, row.left_nano // USD) == ("max", 10, 500)


def test_the_best_of_several() -> None:
    more = Seat("team", 300 * USD, ("*",))
    rows = [used("ada", 150), used("ada", 200, "gpt-4o")]
    (row,) = seats(rows, [MAX, more], MONTH)
    assert (row.seat, row.saving_nano // USD) == ("max", 50)  # of all models it would be as much, less the dearer seat
    (row,) = seats([*rows, used("ada", 100, "gpt-4o")], [MAX, more], MONTH)
    assert (row.seat, row.saving_nano // USD) == ("team", 150)


def test_for_a_part_of_a_month() -> None:
    (row,) = seats([used("ada", 30)], [MAX], MONTH / 4)
    assert (row.seat, row.seat_nano, row.saving_nano) == ("max", 25 * USD, 5 * USD)


def test_a_seat_that_does_not_cover_all() -> None:
    some = Seat("some", 100 * USD, ("claude-*",), 1_000_000)
    (row,) = seats([used("ada", 400, tokens=2_000_000)], [some], MONTH)
    assert (row.seat, row.left_nano // USD, row.saving_nano // USD) == ("some", 200, 100)
    (row,) = seats([used("ada", 400, tokens=8_000_000)], [some], MONTH)
    assert row.seat == ""


def test_what_has_no_price_is_said() -> None:
    (row,) = seats([used("ada", 0, unpriced=7)], [MAX], MONTH)
    assert (row.cost_nano, row.seat, row.unpriced) == (0, "", 7)


def test_calls_of_nobody_have_no_seat() -> None:
    assert seats([used("", 1000)], [MAX], MONTH) == []


def test_patterns_have_stars_alone() -> None:
    assert seats([used("ada", 400, "claude-3")], [Seat("x", USD, ("claude-[0-9]", "claude-?"))], MONTH)[0].seat == ""
    assert seats([used("ada", 400, "m[1]")], [Seat("x", USD, ("m[1]",))], MONTH)[0].seat == "x"


def test_a_model_that_nobody_has_named_is_the_one_asked_for() -> None:
    assert seats([used("ada", 400, "")], [Seat("x", USD, ("smart",))], MONTH)[0].seat == "x"


@given(
    costs=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 500), st.sampled_from(("claude-x", "gpt"))), max_size=8
    ),
    price=st.integers(1, 300),
    days=st.floats(0.1, 400),
)
def test_a_saving_is_what_is_paid_less(costs: list[tuple[str, int, str]], price: int, days: float) -> None:
    rows = [used(user, cost, model) for user, cost, model in costs]
    for row in seats(rows, [Seat("s", price * USD, ("claude-*",))], days * 86400):
        assert row.saving_nano >= 0
        assert bool(row.seat) == (row.saving_nano > 0)
        assert row.cost_nano == row.seat_nano + row.left_nano + row.saving_nano
