"""Records of one kind in the state, by id.

Rule: each operation touches one key, so that any cluster does. An id that is a secret is hashed before it becomes a
key: who reads the store's keys can present none of them. Values are sealed where the state is (`store.crypt`, AAD = the
key): a state with an `encryption_key` seals all that is written to it.
"""

import logging
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Generic, NamedTuple, TypeVar

import msgspec

from tollhouse.store.base import KeyValue

__all__ = ["Held", "Table"]

log = logging.getLogger("tollhouse.store")

T = TypeVar("T", bound=msgspec.Struct)

_LONGEST = 256
"""Characters of an id that is no secret; what is longer comes from nobody who was given it here."""


class Held(NamedTuple, Generic[T]):
    """A record, the id and the bytes that it was read as: what `swap` compares."""

    value: T
    raw: bytes
    id: str


class Table(Generic[T]):
    """prefix: of the keys, as "iss:c:"; no two tables have the same. record: the Struct. hashed: ids are secrets, or
    come from outside in any length.

    Ids are any text; one that is empty, or too long and not hashed, is never there. All methods raise Failure 503 when
    the store cannot be reached.
    """

    __slots__ = ("_decoder", "_encoder", "_hashed", "_prefix", "_values")

    def __init__(self, values: KeyValue, prefix: str, record: type[T], *, hashed: bool = False) -> None:
        self._values = values
        self._prefix = prefix
        self._hashed = hashed
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(record)

    async def get(self, id: str) -> Held[T] | None:
        """What is kept under this id."""
        key = self._key(id)
        if not key:
            return None
        raw = await self._values.get(key)
        value = self._decoded(raw)
        return None if raw is None or value is None else Held(value, raw, id)

    async def put(self, id: str, value: T, ttl: float) -> None:
        """Keep it for `ttl` seconds, in the place of what may be there."""
        await self._values.put(self._must(id), self._encoder.encode(value), ttl)

    async def add(self, id: str, value: T, ttl: float) -> bool:
        """Keep it if nothing is there: whether nothing was. Of several who add one id, one hears True."""
        return await self._values.add(self._must(id), self._encoder.encode(value), ttl)

    async def swap(self, held: Held[T], value: T, ttl: float) -> bool:
        """Put `value` in the place of what was read as `held`: whether that was still there."""
        return await self.replace(held, value, ttl) is not None

    async def replace(self, held: Held[T], value: T, ttl: float) -> Held[T] | None:
        """The same: what is there now, for the next swap, or None."""
        raw = self._encoder.encode(value)
        swapped = await self._values.swap(self._must(held.id), held.raw, raw, ttl)
        return Held(value, raw, held.id) if swapped else None

    async def write(self, id: str, held: Held[T] | None, value: T, ttl: float) -> bool:
        """`swap` what was read under this id, or `add` where nothing was: whether that was still so."""
        return await (self.add(id, value, ttl) if held is None else self.swap(held, value, ttl))

    async def touch(self, id: str, ttl: float) -> bool:
        """Let what is there live for `ttl` seconds from now: whether something is."""
        key = self._key(id)
        return await self._values.touch(key, ttl) if key else False

    async def take(self, id: str) -> T | None:
        """Get and remove. Of several who take one id, one gets it."""
        key = self._key(id)
        return self._decoded(await self._values.take(key)) if key else None

    async def remove(self, id: str) -> bool:
        """Whether something was there."""
        key = self._key(id)
        return await self._values.remove(key) if key else False

    def _key(self, id: str) -> str:
        """The key for an id; "" where there cannot be any."""
        if self._hashed and id:
            digest = sha256(id.encode("utf-8", "surrogatepass")).digest()
            return self._prefix + urlsafe_b64encode(digest).decode().rstrip("=")
        return self._prefix + id if 0 < len(id) <= _LONGEST else ""

    def _must(self, id: str) -> str:
        key = self._key(id)
        if not key:
            raise ValueError(f"an id has 1 to {_LONGEST} characters")
        return key

    def _decoded(self, raw: bytes | None) -> T | None:
        if raw is None:
            return None
        try:
            return self._decoder.decode(raw)
        except (msgspec.DecodeError, ValueError, RecursionError):
            log.warning("a record under %r in the state cannot be read and is left aside", self._prefix)
            return None
