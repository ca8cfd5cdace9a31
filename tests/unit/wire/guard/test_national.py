"""wire.guard.national: the numbers of `known/pii.txt`, with any of their digits changed, and beside their names."""

import pytest
from tests.unit.wire.guard.test_catalogue import known

from tollhouse.wire.guard.national import national
from tollhouse.wire.guard.patterns import PatternSet

RULES = national()
NUMBERS = [(name, value) for _, found in known("pii.txt") for name, value in found if name in RULES]
UNCHECKED = ("us_ssn", "us_itin", "uk_nino", "dk_cpr", "kr_rrn", "in_pan")
"""Numbers without a check digit."""


def test_each_is_known() -> None:
    assert {name for name, _ in NUMBERS} == set(RULES)


@pytest.mark.parametrize(("name", "value"), [one for one in NUMBERS if one[0] not in UNCHECKED])
def test_a_changed_digit_is_another_number(name: str, value: str) -> None:
    """Two check digits or 11 as modulus notice all; a modulus of 10 with some weights misses few."""
    accept = RULES[name][0].accept
    assert accept is not None
    assert accept(value)
    changed = [
        value[:at] + digit + value[at + 1 :]
        for at, char in enumerate(value)
        for digit in "0123456789"
        if char.isdigit() and char != digit
    ]
    assert sum(map(accept, changed)) <= len(changed) // 5


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("nl_bsn", "111222333", "BSN"),
        ("us_ssn", "219099998", "SSN"),
        ("uk_nhs", "9434765919", "NHS no."),
        ("au_tfn", "123456782", "TFN is"),
    ],
)
def test_a_bare_number_is_taken_beside_its_name_only(name: str, value: str, word: str) -> None:
    patterns = PatternSet(RULES[name])
    assert patterns.replace(f"{word}: {value}.", lambda rule, text: rule.name) == f"{word}: {name}."
    assert patterns.find(f"item {value}.") == []
    assert patterns.find(f"{word} of the year {value}") == []
