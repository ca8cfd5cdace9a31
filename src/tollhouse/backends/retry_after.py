"""How long an upstream asks to be left alone."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tollhouse.core.http import Headers

__all__ = ["retry_after"]

_MAX_REST = 86_400.0


def retry_after(headers: Headers) -> float | None:
    """Seconds to wait, from `retry-after-ms` or Retry-After (RFC 9110 section 10.2.3), a day at most; None when it
    does not say."""
    value = headers.get(b"retry-after-ms")
    scale = 0.001
    if value is None:
        value, scale = headers.get(b"retry-after"), 1.0
    if value is None:
        return None
    try:
        seconds = float(value) * scale
    except ValueError:
        try:
            when = parsedate_to_datetime(value.decode("latin-1"))
        except (ValueError, IndexError, TypeError):
            return None
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return min(max(seconds, 0.0), _MAX_REST) if seconds == seconds else None
