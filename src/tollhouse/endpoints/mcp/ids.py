"""Session ids that speak for themselves: whose session it is, where, and how it was opened.

Rule: an id is believed only by its seal. Any worker with the key can tell from it alone that this caller opened this
session here, and how; so a session is found again where nobody has heard of it.
"""

import hashlib
import secrets
import time
from collections.abc import Callable

import msgspec

from tollhouse.wire.mcp import revisions
from tollhouse.wire.mcp.sealed import Seals, Unsealed

__all__ = ["MAX_AGE", "Opened", "SessionIds", "key_of", "tag_of"]

MAX_AGE = 86400.0
"""Seconds after which a session ends, however busy it is: so long a key that seals no more must still open."""

_LONGEST = 512
_SKEW = 300  # seconds that clocks of workers may differ


class _Fields(msgspec.Struct, array_like=True, gc=False):
    nonce: bytes
    created: int
    endpoint: bytes
    revision: str
    profile: int
    principal: bytes


class Opened(msgspec.Struct, gc=False):
    """How a session was opened. age: seconds since then."""

    revision: str
    profile: int
    age: float


class SessionIds:
    """clock: unix seconds."""

    __slots__ = ("_clock", "_seals", "max_age")

    def __init__(self, seals: Seals, clock: Callable[[], float] = time.time, max_age: float = MAX_AGE) -> None:
        self._seals = seals
        self._clock = clock
        self.max_age = max_age

    def mint(self, principal: str, endpoint: str, revision: str, profile: int) -> str:
        """A new id: `s1.` and about 120 characters."""
        fields = _Fields(
            secrets.token_bytes(16),
            int(self._clock()),
            _digest(endpoint, 4),
            revision,
            profile,
            _digest(principal, 16),
        )
        return self._seals.seal("s", fields)

    def read(self, id: str, principal: str, endpoint: str) -> Opened | None:
        """What the id says, if it is one of ours, this caller's, for this endpoint, and not too old."""
        if len(id) > _LONGEST:
            return None
        try:
            fields = self._seals.open("s", id, _Fields)
        except Unsealed:
            return None
        age = self._clock() - fields.created
        if (
            fields.principal != _digest(principal, 16)
            or fields.endpoint != _digest(endpoint, 4)
            or fields.revision not in revisions.SESSIONS
            or not -_SKEW <= age <= self.max_age
        ):
            return None
        return Opened(fields.revision, fields.profile, max(0.0, age))


def key_of(id: str) -> str:
    """What a session is known by where its id must not be read: in stores, between workers, in logs."""
    return hashlib.blake2b(id.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def tag_of(principal: str) -> bytes:
    """What stands for a principal's id in what is sealed and given away."""
    return hashlib.blake2b(principal.encode(), digest_size=16, person=b"mcp principal").digest()


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size, person=b"mcp session").digest()
