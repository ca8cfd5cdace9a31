"""wire.guard.checksums: known numbers pass, and a changed digit or two that stand in the other's place do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.guard.checksums import (
    alike,
    day,
    digits,
    entropy,
    iso7064_mod11_10,
    luhn,
    mod97,
    verhoeff,
    weighted,
)

DIGITS = st.lists(st.integers(0, 9), min_size=4, max_size=18)


def test_known_numbers() -> None:
    assert luhn(digits("4111 1111 1111 1111"))
    assert luhn(digits("79927398713"))
    assert mod97("GB82 WEST 1234 5698 7654 32")
    assert mod97("be68-5390-0754-7034")
    assert iso7064_mod11_10(digits("86095742719"))
    assert verhoeff(digits("2363"))
    assert verhoeff(digits("234123412346"))


@pytest.mark.parametrize("check", [luhn, verhoeff, iso7064_mod11_10])
@given(number=DIGITS, at=st.integers(0, 17), other=st.integers(1, 9))
def test_one_wrong_digit_is_noticed(check: object, number: list[int], at: int, other: int) -> None:
    assert callable(check)
    right = next(([*number, last] for last in range(10) if check([*number, last])), None)
    assert right is not None
    wrong = list(right)
    wrong[at % len(wrong)] = (wrong[at % len(wrong)] + other) % 10
    assert not check(wrong)


@given(DIGITS, st.integers(0, 16))
def test_verhoeff_notices_two_that_changed_places(number: list[int], at: int) -> None:
    right = next([*number, last] for last in range(10) if verhoeff([*number, last]))
    at %= len(right) - 1
    wrong = [*right[:at], right[at + 1], right[at], *right[at + 2 :]]
    assert verhoeff(wrong) == (wrong == right)


def test_days() -> None:
    assert day(2024, 2, 29)
    assert day(0, 2, 29)  # 2000
    assert day(96, 2, 29)  # 1996
    assert not day(2023, 2, 29)
    assert not day(99, 13, 1)
    assert not day(99, 1, 0)


def test_entropy_is_that_of_the_letters() -> None:
    assert entropy("") == 0
    assert entropy("aaaa") == 0
    assert entropy("abab") == 1
    assert entropy("abcdefgh") == 3


def test_small_ones() -> None:
    assert digits("+49 (30) ٣x1") == [4, 9, 3, 0, 1]
    assert alike([1, 1, 1])
    assert not alike([1, 2])
    assert weighted([1, 2, 3], (3, 2, 1)) == 10
