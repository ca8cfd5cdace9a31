"""core.moments: times as people write them. (More of it with the commands, which take them.)"""

from datetime import UTC, datetime, timedelta

import pytest

from tollhouse.core.moments import since_of

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("90m", NOW - timedelta(minutes=90)),
        ("2d", NOW - timedelta(days=2)),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T02:00+02:00", datetime(2026, 11, 1, tzinfo=UTC)),
        ("", None),
        ("soon", None),
        ("1969-12-31", None),
        ("99999999999d", None),
    ],
)
def test_moments(text: str, moment: datetime | None) -> None:
    assert since_of(text, NOW) == moment
