"""Plain scalars: the core schema, and the numbers that cannot be kept."""

import pytest

from tollhouse.wire.yaml_core import NotKept, plain


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("NULL", None), ("nULL", "nULL"), ("True", True), ("FALSE", False), ("yes", "yes"),
        ("010", 10), ("0o17", 15), ("0x1F", 31), ("-7", -7), ("0b1", "0b1"), ("1_000", "1_000"), ("12:30", "12:30"),
        (".5", 0.5), ("1.", 1.0), ("1e3", 1000.0), ("2026-11-22", "2026-11-22"), ("-", "-"), (".", "."),
        ("123456789012345678", 123456789012345678), ("-123456789012345678", -123456789012345678),
    ],
)  # fmt: skip
def test_scalars_are_of_the_core_schema(text: str, value: object) -> None:
    found = plain(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1234567890123456789", "too long for a number"), ("0x12345678901234567", "too long for a number"),
        ("1e999", "not a finite number"), ("-.inf", "not a finite number"), (".NaN", "not a finite number"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_kept(text: str, why: str) -> None:
    with pytest.raises(NotKept, match=f"^{why}$"):
        plain(text)
