"""Times as people write them: `6h` ago, or a date."""

from datetime import UTC, datetime, timedelta

__all__ = ["since_of"]


def since_of(text: str, now: datetime) -> datetime | None:
    """The moment that `text` says, in UTC where it does not say otherwise; None when it is none since 1970."""
    unit = {"h": "hours", "d": "days", "m": "minutes"}.get(text[-1:])
    try:
        if unit is not None and text[:-1].isdecimal():
            since = now - timedelta(**{unit: int(text[:-1])})
        else:
            since = datetime.fromisoformat(text)
            since = since.replace(tzinfo=UTC) if since.tzinfo is None else since.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return since if since.timestamp() >= 0 else None
