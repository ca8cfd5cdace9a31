"""Tokens that were found good, and tokens that were found bad, by their SHA-256 digest.

Rule: what is remembered is asked again whenever something could have changed its mind: at its expiry, after five
minutes, when its issuer's keys are others, when anything was revoked, and for each endpoint it is shown at for the
first time. Both memories are bounded; of the good ones those go first that nobody has shown lately.
"""

from collections.abc import Callable
from itertools import islice
from time import time
from typing import Protocol

from tollhouse.core.call import Principal
from tollhouse.core.identity import RevocationView

__all__ = ["Entry", "Refusals", "Remembered", "Version"]

MOST = 50_000
_MOST_BAD = 4096
_BAD_FOR = 10.0
"""Seconds for which a bad token is known to be one."""

LONGEST = 300.0
"""Seconds a verdict is trusted at most."""


class Version(Protocol):
    """Something whose `current` is the same object as long as nothing about it has changed."""

    @property
    def current(self) -> object: ...


class Entry:
    """A good token. version, seen: what it was checked with, and how that was then. audiences: whom it is meant for;
    admitted: endpoints that are among those. used: since the last sweep."""

    __slots__ = ("admitted", "audiences", "epoch", "issuer", "principal", "seen", "until", "used", "version")

    def __init__(
        self,
        principal: Principal,
        until: float,
        version: Version,
        seen: object,
        epoch: int,
        audiences: frozenset[str],
        issuer: str,
    ) -> None:
        self.principal = principal
        self.until = until
        self.version = version
        self.seen = seen
        self.epoch = epoch
        self.audiences = audiences
        self.issuer = issuer
        self.admitted: set[str] = set()  # no more than there are endpoints
        self.used = False


class Remembered:
    """Good tokens. revocations: None where nothing is ever revoked. now: unix seconds."""

    __slots__ = ("_entries", "_most", "_now", "_revocations")

    def __init__(
        self, revocations: RevocationView | None = None, now: Callable[[], float] = time, most: int = MOST
    ) -> None:
        self._entries: dict[bytes, Entry] = {}
        self._revocations = revocations
        self._now = now
        self._most = most

    def __len__(self) -> int:
        return len(self._entries)

    def finder(self, endpoint: str) -> Callable[[bytes], Principal | None]:
        """What says whom a token speaks for, if it is still good, and was for this endpoint before."""
        entries, now, revocations, is_gone = self._entries, self._now, self._revocations, self._is_gone

        def find(digest: bytes) -> Principal | None:  # for every request: all that it needs is at hand
            entry = entries.get(digest)
            if entry is None:
                return None
            if (
                entry.until <= now()
                or entry.version.current is not entry.seen
                or (revocations is not None and revocations.epoch != entry.epoch and is_gone(entry, revocations))
            ):
                entries.pop(digest, None)
                return None
            if endpoint not in entry.admitted:
                return None
            entry.used = True
            return entry.principal

        return find

    def entry(self, digest: bytes) -> Entry | None:
        """What is known of a token, whatever endpoint it was for; a finder has looked whether it is still good."""
        return self._entries.get(digest)

    def put(self, digest: bytes, entry: Entry) -> None:
        entries = self._entries
        entries.pop(digest, None)
        if len(entries) >= self._most:
            self._sweep()
        entries[digest] = entry

    def _sweep(self) -> None:
        # A tenth at once: popping them one by one would walk over the holes of all before.
        entries, wanted = self._entries, max(1, self._most // 10)
        for digest in list(islice(entries, 4 * wanted)):
            entry = entries.pop(digest)
            if entry.used:
                entry.used = False
                entries[digest] = entry  # behind those that came later
            else:
                wanted -= 1
                if not wanted:
                    return
        for digest in list(islice(entries, wanted)):
            del entries[digest]

    @staticmethod
    def _is_gone(entry: Entry, revocations: RevocationView) -> bool:
        epoch = revocations.epoch  # before the question: what comes in between is asked about again
        if revocations.revoked(entry.principal):
            return True
        entry.epoch = epoch
        return False


class Refusals:
    """Bad tokens, and why: so that who shows one again and again costs a look-up."""

    __slots__ = ("_most", "_now", "_refused")

    def __init__(self, now: Callable[[], float] = time, most: int = _MOST_BAD) -> None:
        self._refused: dict[bytes, tuple[float, object, object]] = {}
        self._now = now
        self._most = most

    def __len__(self) -> int:
        return len(self._refused)

    def find(self, digest: bytes, version: object) -> object | None:
        """Why it was refused, with the same `version` of what it was checked with."""
        refused = self._refused.get(digest)
        if refused is None:
            return None
        if refused[0] <= self._now() or refused[1] is not version:
            del self._refused[digest]
            return None
        return refused[2]

    def put(self, digest: bytes, version: object, why: object, seconds: float = _BAD_FOR) -> None:
        refused = self._refused
        if len(refused) >= self._most:
            for old in list(islice(refused, self._most // 8)):
                del refused[old]
        refused[digest] = (self._now() + seconds, version, why)
