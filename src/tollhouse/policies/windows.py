"""The windows that budgets are for: an hour, a day, a week, a month of a time zone's calendar, or a span that rolls.

Rule: a window is [start, end) in whole unix seconds and depends on the time and the zone alone, so that every node
reckons the same one. Nothing is ever reset: what was spent is kept under the window's start.

A rolling span is cut into slots, and the oldest one that it touches counts whole: never less than was spent in the
span, and at most one slot more (a 24th).
"""

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, Literal, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field

from tollhouse.core.spec import Duration, Spec

__all__ = ["CALENDAR", "Calendar", "Now", "Rolling", "RollingSpec", "checked_window", "checked_zone", "clock_of"]

CALENDAR: Final = ("hour", "day", "week", "month", "quarter", "year")

_WORDS = {"1h": "hour", "60m": "hour", "1d": "day", "24h": "day", "1w": "week", "7d": "week"}
_SLOTS = 24


Word = Literal["hour", "day", "week", "month", "quarter", "year"]


class RollingSpec(Spec):
    """The last so much time, whenever that began."""

    rolling: Duration = Field(ge=60.0, le=86400.0 * 366, description="like 24h or 30d")


class Now(NamedTuple):
    """The window of a time, unix seconds, and the rising starts of earlier slots that count with it."""

    start: int
    end: int
    earlier: tuple[int, ...] = ()


def checked_window(value: Any) -> Any:
    """A setting `window`: a word of CALENDAR, or a RollingSpec. Raises ValueError."""
    if isinstance(value, str):
        word = _WORDS.get(value.strip(), value.strip())
        if word not in CALENDAR:
            raise ValueError(f"not a window: {value!r}; write {', '.join(CALENDAR)}, 1h, 1d, or {{rolling: 30d}}")
        return word
    if not isinstance(value, (dict, RollingSpec)):
        raise ValueError(f"not a window; write {', '.join(CALENDAR)}, 1h, 1d, or {{rolling: 30d}}")
    return value


def checked_zone(value: str) -> str:
    """A setting `zone`: a name of the IANA database. Raises ValueError."""
    try:
        _zone(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {value!r}; write one like Europe/Berlin, or UTC") from None
    return value


def _zone(name: str) -> tzinfo:
    # A machine may have no database of zones.
    return UTC if name == "UTC" else ZoneInfo(name)


class Calendar:
    """Windows of a calendar."""

    __slots__ = ("_now", "_zone", "name", "word")

    def __init__(self, word: Word, zone: str = "UTC") -> None:
        self.word: Word = word
        self.name = word if zone == "UTC" else f"{word} {zone}"
        self._zone = _zone(zone)
        self._now = Now(0, 0)

    def at(self, now: float) -> Now:
        known = self._now
        if known.start <= now < known.end:
            return known
        local = datetime.fromtimestamp(now, self._zone)
        if self.word == "hour":
            # By elapsed time: an hour that comes twice in autumn is two windows.
            past = local.minute * 60 + local.second
            start = int(now) - past
            found = Now(self._changed(start, int(now)), start + 3600)
        else:
            first = self._first(local)
            found = Now(self._unix(first), self._unix(self._next(first)))
        self._now = found
        return found

    def _changed(self, start: int, now: int) -> int:
        """Where an hour begins that a change of the clock by half of one may have cut."""
        offset = datetime.fromtimestamp(now, self._zone).utcoffset()
        before = start - 1
        if datetime.fromtimestamp(start, self._zone).utcoffset() == offset:
            return start
        while now - before > 1:
            middle = (before + now) // 2
            if datetime.fromtimestamp(middle, self._zone).utcoffset() == offset:
                now = middle
            else:
                before = middle
        return now

    def _first(self, local: datetime) -> datetime:
        """The local midnight that the window begins with."""
        day = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None, fold=0)
        match self.word:
            case "week":
                return day - timedelta(days=day.weekday())
            case "month":
                return day.replace(day=1)
            case "quarter":
                return day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
            case "year":
                return day.replace(month=1, day=1)
            case _:
                return day

    def _next(self, first: datetime) -> datetime:
        match self.word:
            case "day":
                return first + timedelta(days=1)
            case "week":
                return first + timedelta(days=7)
            case "month" | "quarter":
                months = first.month + (1 if self.word == "month" else 3)
                return first.replace(year=first.year + (months > 12), month=(months - 1) % 12 + 1)
            case _:
                return first.replace(year=first.year + 1)

    def _unix(self, naive: datetime) -> int:
        """Of a local time; of one that comes twice the first, of one that a change of the clock leaves out the moment
        of the change."""
        return int(naive.replace(tzinfo=self._zone).timestamp())


class Rolling:
    """The slots of a span that rolls."""

    __slots__ = ("_count", "_now", "_slot", "name", "span")

    def __init__(self, span: float) -> None:
        self.span = round(span)
        self.name = f"rolling {self.span}s"
        self._slot = max(1, self.span // _SLOTS)
        self._count = -(-self.span // self._slot)
        self._now = Now(0, 0)

    def at(self, now: float) -> Now:
        known = self._now
        if known.start <= now < known.end:
            return known
        start = int(now) // self._slot * self._slot
        earlier = tuple(start - n * self._slot for n in range(self._count, 0, -1))
        found = self._now = Now(start, start + self._slot, earlier)
        return found


def clock_of(window: Word | RollingSpec, zone: str) -> Calendar | Rolling:
    return Rolling(window.rolling) if isinstance(window, RollingSpec) else Calendar(window, zone)
