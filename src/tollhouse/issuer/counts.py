"""Who is told of what the auth provider counts. It knows nothing of metrics: the gateway joins the two.

Rule: plain functions that neither wait nor raise; each of them is told once for one thing that happened.
"""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Counts"]


def _nobody(*_: str) -> None:
    """It is not counted."""


@dataclass(frozen=True, slots=True)
class Counts:
    """token: of each answer of the token endpoint: the grant (the last word of its `grant_type`, "" before it is known)
    and "ok" or the error. reused: of a refresh token that came twice. replayed: of something else that came twice and
    counts once: dpop, client_assertion, assertion (RFC 7523), code. throttled: of an attempt that must wait: password,
    user_code, begin, client. keys_read: of readings of others' keys, as `net.jwks.KeySource` says."""

    token: Callable[[str, str], None] = _nobody
    reused: Callable[[], None] = _nobody
    replayed: Callable[[str], None] = _nobody
    throttled: Callable[[str], None] = _nobody
    keys_read: Callable[[str], None] = _nobody
