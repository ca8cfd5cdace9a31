"""Where an issuer's keys come from, and how they stay fresh: a URL, a file, or config itself.

Rule: nobody who presents a token decides how often we ask. Keys are read once for all who wait (single flight), again
in the background when they are old, and at most once in ten seconds because a token names a key we do not know. When
the issuer cannot be reached the last good keys go on serving, for a day: whoever can keep an issuer unreachable must
not keep a key alive that it has withdrawn.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

from tollhouse.core.errors import Failure, Reason
from tollhouse.net.client import Client
from tollhouse.wire.jose import Keys, Token

__all__ = ["KeySource", "from_file", "from_url"]

log = logging.getLogger("tollhouse.policies")

_UNKNOWN_KID = 10.0
"""Seconds between two readings because of an unknown key."""

_AGAIN = 5.0
"""Seconds before a source that failed is asked again."""

_LONGEST = 86_400.0
"""Seconds that keys serve after the reading that got them."""

_URL = re.compile(r"(https?://)(?:[^/?#@\s]*@)?([^?#\s]*)\S*")

_MAX_DOCUMENT = 1 << 20

Load = Callable[[], Awaitable[bytes]]


def from_url(client: Client, url: str) -> Load:
    """The operator configured it, so the egress guard does not apply."""

    async def load() -> bytes:
        fetched = await client.fetch(
            url,
            headers=((b"accept", b"application/jwk-set+json, application/json"),),
            limit=_MAX_DOCUMENT,
            guarded=False,
        )
        if fetched.status != 200:
            raise ValueError(f"it answered {fetched.status}")
        return fetched.body

    return load


def from_file(path: str) -> Load:
    async def load() -> bytes:
        document = await asyncio.to_thread(Path(path).read_bytes)
        if len(document) > _MAX_DOCUMENT:
            raise ValueError("it is larger than 1 MiB")
        return document

    return load


class KeySource:
    """One issuer's keys. where: for logs. refresh: seconds after which they are old. keys: those known already."""

    def __init__(
        self,
        load: Load,
        where: str,
        refresh: float,
        keys: Keys | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._load = load
        self._where = _without_secrets(where)
        self._refresh = refresh
        self._keys = keys
        self._clock = clock
        self._read_at = clock() if keys is not None else -1e18
        self._asked_at = -1e18
        self._flight: asyncio.Task[None] | None = None

    async def keys(self, token: Token) -> Keys:
        """The keys to verify `token` with. Raises Failure 503 when there are none, or only ones from a day ago."""
        now = self._clock()
        keys = self._current()
        if keys is None:
            if self._flight is not None or now - self._asked_at >= _AGAIN:
                await self._read()
            keys = self._current()
            if keys is None:
                raise Failure(
                    503,
                    Reason.JWT_AUTH,
                    "the token cannot be checked: its issuer's keys cannot be had; try again later",
                    detail=f"no keys from {self._where}",
                    retry_after=_AGAIN,
                )
            return keys
        if now - self._read_at >= self._refresh and now - self._asked_at >= _AGAIN:
            _ = self._begin()  # in the background: the old ones do meanwhile
        if not keys.knows(token) and (self._flight is not None or now - self._asked_at >= _UNKNOWN_KID):
            await self._read()
        return self._keys if self._keys is not None else keys

    def _current(self) -> Keys | None:
        return self._keys if self._clock() - self._read_at < _LONGEST else None

    async def close(self) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.cancel()
            await asyncio.wait((flight,))

    async def _read(self) -> None:
        # Shielded: a client that leaves must not take the reading from the others who wait for it.
        await asyncio.shield(self._begin())

    def _begin(self) -> "asyncio.Task[None]":
        if self._flight is None:
            self._asked_at = self._clock()
            self._flight = asyncio.get_running_loop().create_task(self._fly())
        return self._flight

    async def _fly(self) -> None:
        try:
            self._keys = Keys.parse(await self._load())
            self._read_at = self._clock()
        except (Failure, ValueError, OSError) as error:
            why = error.detail or error.message if isinstance(error, Failure) else error
            kept = "the last good ones go on serving" if self._current() is not None else "no token can be checked"
            log.warning("cannot read the keys at %s: %s; %s", self._where, _without_secrets(str(why)), kept)
        except Exception:  # the root of the reading task: whoever waits for it must get an answer
            log.exception("reading the keys at %s failed", self._where)
        finally:
            self._flight = None


def _without_secrets(text: str) -> str:
    """`text` with the URLs in it cut to scheme, host and path: what else they have may be a credential."""
    return _URL.sub(r"\1\2", text)
