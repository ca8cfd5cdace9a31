"""Public keys of others, to check what they signed: where they come from (a URL, a file, written here), and how they
stay fresh.

Rule: nobody who presents a token decides how often we ask. Keys are read once for all who wait (single flight), again
in the background when they are old, and at most three times in thirty seconds because tokens name keys we do not know;
one that was looked for in vain is not looked for again in that time. When the issuer cannot be reached the last good
keys go on serving, for a day: whoever can keep an issuer unreachable must not keep a key alive that it has withdrawn.
A URL that came from outside passes the egress guard, and is not followed anywhere else.
"""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers
from tollhouse.net.client import Client
from tollhouse.wire.jose import Keys, Token

__all__ = ["Document", "FixedKeys", "KeySource", "Load", "Told", "from_file", "from_url", "key_source", "max_age_of"]

log = logging.getLogger("tollhouse.net.jwks")

_BUCKET, _BUCKET_TIME = 3, 30.0
"""Readings because of unknown keys, and the seconds in which there are at most so many."""

_UNKNOWN, _LONGEST_KID = 256, 256
"""Unknown keys that are remembered, for _BUCKET_TIME, and characters of their names that tell them apart."""

_AGAIN = 5.0
"""Seconds before a source that failed is asked again."""

_LONGEST = 86_400.0
"""Seconds that keys serve after the reading that got them."""

_USUAL, _SOONEST, _LATEST = 300.0, 60.0, 3600.0
"""Seconds after which keys are old, where neither config nor the issuer says; and the bounds of what an issuer says."""

_URL = re.compile(r"(https?://)(?:[^/?#@\s]*@)?([^?#\s]*)\S*")
_MAX_AGE = re.compile(rb"(?:\A|[,\s])max-age\s*=\s*\"?(\d{1,9})")

_MAX_DOCUMENT = 256 << 10
_REDIRECTS: Final = 5


class Document(NamedTuple):
    """What was read. max_age: seconds for which it is fresh by its header fields, None where they do not say."""

    body: bytes
    max_age: float | None = None


Load = Callable[[], Awaitable[Document]]

Told = Callable[[str], None]
"""Hears of each reading: changed, unchanged or failed; and limited, where a token names a key that is not known and it
was too soon to look for another one again."""


def from_url(client: Client, url: str, *, guarded: bool = False) -> Load:
    """guarded: the URL was not written by the operator, whose own the egress guard does not look at. Redirects are then
    not followed."""

    async def load() -> Document:
        fetched = await client.fetch(
            url,
            headers=((b"accept", b"application/jwk-set+json, application/json"),),
            limit=_MAX_DOCUMENT,
            guarded=guarded,
            redirects=0 if guarded else _REDIRECTS,
        )
        if fetched.status != 200:
            raise ValueError(f"it answered {fetched.status}")
        return Document(fetched.body, max_age_of(fetched.headers))

    return load


def from_file(path: str) -> Load:
    async def load() -> Document:
        document = await asyncio.to_thread(Path(path).read_bytes)
        if len(document) > _MAX_DOCUMENT:
            raise ValueError("it is larger than 256 KiB")
        return Document(document)

    return load


def max_age_of(headers: Headers) -> float | None:
    """`max-age` (RFC 9111 section 5.2.2.1), less the age that the answer has already."""
    said = _MAX_AGE.search(headers.get(b"cache-control") or b"")
    if said is None:
        return None
    age = headers.get(b"age") or b""
    return float(said[1]) - (float(age) if age.isdigit() and len(age) < 10 else 0.0)


class FixedKeys:
    """Keys that were written down and never change, with the face of a KeySource."""

    __slots__ = ("current",)

    def __init__(self, keys: Keys) -> None:
        self.current = keys

    async def keys(self, token: Token) -> Keys:
        return self.current

    async def close(self) -> None:
        """There is nothing to give up."""


class KeySource:
    """One issuer's keys. where: for logs. refresh: seconds after which they are old; None: as the issuer says. keys:
    those known already. told: of each reading.

    current: the keys that were read last, the same object as long as they are the same keys; None before.
    """

    def __init__(
        self,
        load: Load,
        where: str,
        refresh: float | None,
        keys: Keys | None = None,
        clock: Callable[[], float] = monotonic,
        told: Told = lambda _: None,
    ) -> None:
        self._load = load
        self._told = told
        self._where = _without_secrets(where)
        self._refresh = refresh
        self.current = keys
        self._fresh = _USUAL if refresh is None else refresh
        self._body = b""
        self._clock = clock
        self._read_at = clock() if keys is not None else -1e18
        self._asked_at = -1e18
        self._sought: deque[float] = deque(maxlen=_BUCKET)
        self._unknown: dict[str, float] = {}
        self._flight: asyncio.Task[None] | None = None

    async def keys(self, token: Token) -> Keys:
        """The keys to verify `token` with. Raises Failure 503 when there are none, or only ones from a day ago."""
        now = self._clock()
        keys = self._usable()
        if keys is None:
            if self._flight is not None or now - self._asked_at >= _AGAIN:
                await self._read()
            keys = self._usable()
            if keys is None:
                raise Failure(
                    503,
                    Reason.JWT_AUTH,
                    "the token cannot be checked: its issuer's keys cannot be had; try again later",
                    detail=f"no keys from {self._where}",
                    retry_after=_AGAIN,
                )
            return keys
        if now - self._read_at >= self._fresh and now - self._asked_at >= _AGAIN:
            _ = self._begin()  # in the background: the old ones do meanwhile
        if not keys.knows(token) and self._may_seek(token.kid or "", now):
            await self._read()
        return self.current if self.current is not None else keys

    def _may_seek(self, kid: str, now: float) -> bool:
        """Whether an unknown key is a reason to look again, and note that it was one."""
        if self._flight is not None:
            return True  # what is being read may have it
        kid = kid[:_LONGEST_KID]
        if self._unknown.get(kid, -1e18) > now:
            return False
        if len(self._sought) == _BUCKET and now - self._sought[0] < _BUCKET_TIME:
            self._told("limited")
            return False
        self._sought.append(now)
        if len(self._unknown) >= _UNKNOWN:
            for old in list(islice(self._unknown, _UNKNOWN // 4)):
                del self._unknown[old]
        self._unknown.pop(kid, None)
        self._unknown[kid] = now + _BUCKET_TIME
        return True

    def _usable(self) -> Keys | None:
        return self.current if self._clock() - self._read_at < _LONGEST else None

    async def close(self) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.cancel()
            await asyncio.wait((flight,))

    async def _read(self) -> None:
        # A client that leaves does not take the reading from the others who wait for it; and when it is given up, they
        # hear that there are no keys.
        await asyncio.wait((self._begin(),))

    def _begin(self) -> "asyncio.Task[None]":
        if self._flight is None:
            self._asked_at = self._clock()
            self._flight = asyncio.get_running_loop().create_task(self._fly())
        return self._flight

    async def _fly(self) -> None:
        try:
            read = await self._load()
            is_new = read.body != self._body or self.current is None
            if is_new:
                self.current = Keys.parse(read.body)
                self._body = read.body
            self._told("changed" if is_new else "unchanged")
            self._read_at = self._clock()
            if self._refresh is None:
                self._fresh = _USUAL if read.max_age is None else min(max(read.max_age, _SOONEST), _LATEST)
        except (Failure, ValueError, OSError) as error:
            self._told("failed")
            why = error.detail or error.message if isinstance(error, Failure) else error
            kept = "the last good ones go on serving" if self._usable() is not None else "no token can be checked"
            log.warning("cannot read the keys at %s: %s; %s", self._where, _without_secrets(str(why)), kept)
        except Exception:  # the root of the reading task: whoever waits for it must get an answer
            log.exception("reading the keys at %s failed", self._where)
        finally:
            self._flight = None


def key_source(
    place: str | dict[str, Any],
    client: Client,
    clock: Callable[[], float],
    *,
    guarded: bool,
    told: Told = lambda _: None,
) -> KeySource | FixedKeys:
    """The keys at a URL, in the file of that name, or in the JWK Set itself. guarded: as `from_url` has it; it is a URL
    then. clock: seconds. Raises ValueError for what is no JWK Set, or for a file where only a URL may be."""
    if isinstance(place, dict):
        return FixedKeys(Keys.parse(msgspec.json.encode(place)))
    if place.startswith(("https://", "http://")):
        return KeySource(from_url(client, place, guarded=guarded), place, None, clock=clock, told=told)
    if guarded:
        raise ValueError("what comes from outside names no file")
    return KeySource(from_file(place), place, None, clock=clock, told=told)


def _without_secrets(text: str) -> str:
    """`text` with the URLs in it cut to scheme, host and path: what else they have may be a credential."""
    return _URL.sub(r"\1\2", text)
