"""Tokens that were found good, and tokens that were found bad, by their SHA-256 digest.

Rule: what is remembered is asked again whenever something could have changed its mind: at its expiry, after five
minutes, when its issuer's keys are others, when anything was revoked, and for each endpoint it is shown at for the
first time. Both memories are bounded, the good ones in bytes, too: of them those go first that nobody has shown lately.
What is over goes as others come.
"""

from collections.abc import Callable
from itertools import islice
from sys import getsizeof
from time import time
from typing import Any, Protocol

from tollhouse.core.call import Principal
from tollhouse.core.identity import RevocationView

__all__ = ["Entry", "Refusals", "Remembered", "Version"]

MOST = 50_000
ROOM = 128 << 20
"""Bytes that good tokens and what they say take, about."""

_BESIDES = 1200  # bytes that one takes besides its text and its claims
_LOOKS = 4  # at others, as one is put
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
    admitted: endpoints that are among those. used: since the last sweep. size: bytes, once it is remembered."""

    __slots__ = ("admitted", "audiences", "epoch", "issuer", "principal", "seen", "size", "until", "used", "version")

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
        self.size = 0


class Remembered:
    """Good tokens. revocations: None where nothing is ever revoked. now: unix seconds. most: tokens; room: bytes."""

    __slots__ = ("_due", "_entries", "_most", "_now", "_revocations", "_room", "size")

    def __init__(
        self,
        revocations: RevocationView | None = None,
        now: Callable[[], float] = time,
        most: int = MOST,
        room: int = ROOM,
    ) -> None:
        self.size = 0
        self._room = room
        self._due: list[bytes] = []  # still to be looked at: whether they are over
        self._entries: dict[bytes, Entry] = {}
        self._revocations = revocations
        self._now = now
        self._most = most

    def __len__(self) -> int:
        return len(self._entries)

    def finder(self, endpoint: str) -> Callable[[bytes], Principal | None]:
        """What says whom a token speaks for, if it is still good, and was for this endpoint before."""
        entries, now, revocations, is_gone = self._entries, self._now, self._revocations, self._is_gone
        drop = self._drop

        def find(digest: bytes) -> Principal | None:  # for every request: all that it needs is at hand
            entry = entries.get(digest)
            if entry is None:
                return None
            if (
                entry.until <= now()
                or entry.version.current is not entry.seen
                or (revocations is not None and revocations.epoch != entry.epoch and is_gone(entry, revocations))
            ):
                drop(digest)
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
        self._drop(digest)
        self._look()
        size = entry.size = _BESIDES + len(entry.principal.token) + _weight(entry.principal.claims)
        while entries and (len(entries) >= self._most or self.size + size > self._room):
            self._sweep()
        entries[digest] = entry
        self.size += size

    def _drop(self, digest: bytes) -> None:
        entry = self._entries.pop(digest, None)
        if entry is not None:
            self.size -= entry.size

    def _look(self) -> None:
        """Whether some of them are over: nobody may show these ever again."""
        if not self._due:
            self._due = list(self._entries)
        now = self._now()
        for digest in self._due[-_LOOKS:]:
            entry = self._entries.get(digest)
            if entry is not None and entry.until <= now:
                self._drop(digest)
        del self._due[-_LOOKS:]

    def _sweep(self) -> None:
        # A tenth at once: popping them one by one would walk over the holes of all before.
        entries, wanted = self._entries, max(1, len(self._entries) // 10)
        for digest in list(islice(entries, 4 * wanted)):
            entry = entries[digest]
            if entry.used:
                entry.used = False
                del entries[digest]
                entries[digest] = entry  # behind those that came later
            else:
                self._drop(digest)
                wanted -= 1
                if not wanted:
                    return
        for digest in list(islice(entries, wanted)):
            self._drop(digest)

    @staticmethod
    def _is_gone(entry: Entry, revocations: RevocationView) -> bool:
        epoch = revocations.epoch  # before the question: what comes in between is asked about again
        if revocations.revoked(entry.principal):
            return True
        entry.epoch = epoch
        return False


def _weight(claims: Any) -> int:
    """Bytes that the claims of a token take: some have thousands of groups."""
    size, left = 0, [claims]
    while left:
        value = left.pop()
        size += getsizeof(value)
        if type(value) is dict:
            left += value.values()
        elif type(value) is list:
            left += value
    return size


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
