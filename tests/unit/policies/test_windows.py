"""Windows: the calendar's, in any zone, and those that roll; every moment is in exactly one."""

from datetime import UTC, datetime
from itertools import pairwise
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.policies.windows import (
    CALENDAR,
    Calendar,
    Now,
    Rolling,
    RollingSpec,
    Word,
    checked_window,
    checked_zone,
    clock_of,
)

ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "Asia/Kolkata",
    "Pacific/Apia",
    "Australia/Lord_Howe",
)
BEGIN = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp())
SPAN = 12 * 366 * 86400
MOMENTS = st.integers(BEGIN, BEGIN + SPAN)


def unix(zone: str, *parts: int) -> int:
    return int(datetime(*parts, tzinfo=ZoneInfo(zone)).timestamp())  # type: ignore[misc,arg-type]


def test_the_words_are_those_of_the_type() -> None:
    assert get_args(Word) == CALENDAR


@pytest.mark.parametrize(
    "word, zone, start, end",
    [
        ("hour", "UTC", (2026, 11, 22, 19), (2026, 11, 22, 20)),
        ("day", "UTC", (2026, 11, 22), (2026, 11, 23)),
        ("day", "Europe/Berlin", (2026, 11, 22), (2026, 11, 23)),
        ("week", "Europe/Berlin", (2026, 11, 16), (2026, 11, 23)),
        ("month", "America/New_York", (2026, 11, 1), (2026, 12, 1)),
        ("quarter", "UTC", (2026, 10, 1), (2027, 1, 1)),
        ("year", "Asia/Kolkata", (2026, 1, 1), (2027, 1, 1)),
    ],
)
def test_calendars(word: Word, zone: str, start: tuple[int, ...], end: tuple[int, ...]) -> None:
    now = datetime(2026, 11, 22, 19, 30, tzinfo=UTC).timestamp()
    assert Calendar(word, zone).at(now) == Now(unix(zone, *start), unix(zone, *end))


def test_days_on_which_clocks_change() -> None:
    spring = Calendar("day", "Europe/Berlin").at(unix("Europe/Berlin", 2026, 3, 29, 12))
    autumn = Calendar("day", "Europe/Berlin").at(unix("Europe/Berlin", 2026, 10, 25, 12))
    assert (spring.end - spring.start, autumn.end - autumn.start) == (23 * 3600, 25 * 3600)
    # 1:00 became 0:00 there: the day began once.
    havana = Calendar("day", "America/Havana")
    first = havana.at(unix("America/Havana", 2025, 11, 2))
    assert havana.at(first.start + 3600) == Calendar("day", "America/Havana").at(first.start + 3601) == first


@given(st.sampled_from(CALENDAR), st.sampled_from(ZONES), MOMENTS)
def test_every_moment_is_in_one_window_and_they_touch(word: Word, zone: str, now: int) -> None:
    window = Calendar(word, zone).at(now)
    assert window.start <= now < window.end
    assert Calendar(word, zone).at(window.start) == Calendar(word, zone).at(window.end - 1) == window
    assert Calendar(word, zone).at(window.end).start == window.end


@given(st.integers(60, 366 * 86400), MOMENTS)
def test_what_rolls_is_never_less_than_its_span_and_at_most_a_slot_more(span: int, now: int) -> None:
    rolling = Rolling(span)
    window = rolling.at(now)
    slot = window.end - window.start
    starts = (*window.earlier, window.start)
    assert window.start <= now < window.end
    assert all(b - a == slot for a, b in pairwise(starts))
    assert starts[0] <= now - span  # all of the span is in the slots
    assert now - span - starts[0] <= 2 * slot
    assert Rolling(span).at(window.end).earlier[-1] == window.start
    assert slot <= max(1, span // 24)


@pytest.mark.parametrize("change", [1_712_415_600, 1_728_142_200])  # back, and forward, by half an hour
def test_hours_do_not_overlap_where_clocks_change_by_half_of_one(change: int) -> None:
    windows = [Calendar("hour", "Australia/Lord_Howe").at(at) for at in range(change - 7200, change + 7200, 60)]
    starts = sorted({(window.start, window.end) for window in windows})
    assert [end for _, end in starts[:-1]] == [start for start, _ in starts[1:]]
    assert (change, change + 1800) in starts


def test_one_clock_is_asked_again_and_again() -> None:
    day = Calendar("day")
    assert day.at(BEGIN) is day.at(BEGIN + 86399)
    assert day.at(BEGIN + 86400).start == BEGIN + 86400
    assert day.at(BEGIN).start == BEGIN  # also backwards


def test_settings() -> None:
    assert [checked_window(text) for text in ("1h", "1d", "7d", "month")] == ["hour", "day", "week", "month"]
    assert clock_of("day", "Europe/Berlin").name == "day Europe/Berlin"
    assert clock_of(RollingSpec(rolling=3600.0), "UTC").name == "rolling 3600s"
    for wrong in ("3h", "fortnight", 7, None):
        with pytest.raises(ValueError, match="not a window"):
            checked_window(wrong)
    assert checked_zone("Europe/Berlin") == "Europe/Berlin"
    for wrong in ("Mars/Base", "", "../etc/passwd"):
        with pytest.raises(ValueError, match="no time zone"):
            checked_zone(wrong)
