"""Rows: found again, and bounded in number, bytes and time."""

from typing import Any

from tollhouse.core.call import Principal
from tollhouse.policies.rows import Rows


def who(size: int) -> Principal:
    return Principal("jwt:ada", source="jwt", token=b"t" * size)


def test_what_is_kept_is_found_again() -> None:
    rows: Rows[str] = Rows()
    rows.keep(("a",), "row", 100, None)
    rows.keep(("large",), "row", 3000, None)
    assert (rows.get(("a",)), rows.get(("large",))) == ("row", None)


def test_they_are_bounded_in_number() -> None:
    rows: Rows[int] = Rows()
    for n in range(25_000):
        rows.keep((n,), n, 100, who(300))
        assert len(rows) <= 10_000
    assert len(rows) == 5000


def test_they_are_bounded_in_bytes_with_the_tokens_of_their_callers() -> None:
    rows: Rows[int] = Rows(room=1_000_000)
    most = 0
    for n in range(500):
        rows.keep((n,), n, 100, who(20_000))
        most = max(most, len(rows))
        assert rows.weight <= 1_000_000
    assert most == 12
    assert rows.get((499,)) == 499


def test_nobody_is_kept_for_long_by_what_is_of_no_use() -> None:
    now: list[Any] = [0.0]
    rows: Rows[int] = Rows(lambda: now[0])
    for n in range(100):
        now[0] = n * 5.9
        rows.keep((n,), n, 100, None)
    assert len(rows) == 100
    now[0] = 600.0
    rows.keep(("new",), 1, 100, None)
    assert list(rows) == [("new",)]
