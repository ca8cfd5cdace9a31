"""Values and messages that whoever reads the store's server cannot read, nor put in another's place.

Rule: AES-256-GCM with the name (key or topic) as associated data: what was sealed for one name opens under no other.
Several secrets: the first seals, all open, so that they can be rotated.

    1, id of the secret (4 bytes), salt (16), nonce (12), ciphertext with its tag (16)

Each message is encrypted with a key of its own, derived from the secret's and the salt, so that nobody has to count how
many random nonces one key has seen (NIST SP 800-38D section 8.3 allows 2^32).
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from time import monotonic

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tollhouse.store.base import Bus, KeyValue, Logs, must_fit, unavailable

__all__ = ["OVERHEAD", "Box", "SealedBus", "SealedLogs", "SealedValues"]

log = logging.getLogger("tollhouse.store")

_FORMAT = b"\1"
_ID = 4
_SALT = 16
_NONCE = 12
_TAG = 16
_SALT_AT = 1 + _ID
_NONCE_AT = _SALT_AT + _SALT
_SEALED_AT = _NONCE_AT + _NONCE

OVERHEAD = _SEALED_AT + _TAG
"""Bytes that sealing adds."""

_TRIES = 16
_QUIET = 60.0  # seconds between two complaints


class Box:
    """Seals bytes for a name, and opens them. secrets: of 32 bytes or more, at least one."""

    __slots__ = ("_complained", "_first", "_keys", "_kind")

    def __init__(self, secrets: Sequence[bytes], kind: str) -> None:
        self._kind = kind
        self._keys = dict(_derived(secret, kind) for secret in reversed(secrets))
        self._first = _derived(secrets[0], kind)[0]
        self._complained = -_QUIET

    def seal(self, name: str, content: bytes) -> bytes:
        salt, nonce = os.urandom(_SALT), os.urandom(_NONCE)
        cipher = AESGCM(_message_key(self._keys[self._first], salt))
        return b"".join((_FORMAT, self._first, salt, nonce, cipher.encrypt(nonce, content, _associated(name))))

    def open(self, name: str, sealed: bytes) -> bytes | None:
        """What was sealed for this name; None for anything else, which the log is told of."""
        key = self._keys.get(sealed[1:_SALT_AT]) if sealed[:1] == _FORMAT else None
        if key is not None and len(sealed) >= OVERHEAD:
            cipher = AESGCM(_message_key(key, sealed[_SALT_AT:_NONCE_AT]))
            try:
                return cipher.decrypt(sealed[_NONCE_AT:_SEALED_AT], sealed[_SEALED_AT:], _associated(name))
            except InvalidTag:
                pass
        self._complain("it is not what was sealed for that" if key is not None else "no `encryption_key` opens it")
        return None

    def _complain(self, why: str) -> None:
        now = monotonic()
        if now - self._complained >= _QUIET:
            self._complained = now
            log.warning("%s in the state cannot be decrypted and is left aside: %s", self._kind, why)


def _derived(secret: bytes, kind: str) -> tuple[bytes, bytes]:
    """The id and the key that a secret has for one kind (RFC 5869)."""
    made = HKDF(SHA256(), _ID + 32, None, b"tollhouse state " + kind.encode()).derive(secret)
    return made[:_ID], made[_ID:]


def _message_key(key: bytes, salt: bytes) -> bytes:
    return hashlib.blake2b(salt, digest_size=32, key=key).digest()


def _associated(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


class SealedValues:
    """A `store.base.KeyValue` that keeps in another what only it can read. What cannot be opened is not there for who
    asks for it, and is in the way of who adds."""

    __slots__ = ("_box", "_values")

    def __init__(self, values: KeyValue, secrets: Sequence[bytes]) -> None:
        self._values = values
        self._box = Box(secrets, "a value")

    async def get(self, key: str) -> bytes | None:
        return self._opened(key, await self._values.get(key))

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        must_fit(key, value, ttl)
        await self._values.put(key, self._box.seal(key, value), ttl)

    async def add(self, key: str, value: bytes, ttl: float) -> bool:
        must_fit(key, value, ttl)
        return await self._values.add(key, self._box.seal(key, value), ttl)

    async def claim(self, key: str, value: bytes, ttl: float) -> bytes | None:
        must_fit(key, value, ttl)
        there = await self._values.claim(key, self._box.seal(key, value), ttl)
        if not there:
            return there
        opened = self._box.open(key, there)
        return b"" if opened is None else opened

    async def swap(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        must_fit(key, new, ttl)
        # One value has many ciphertexts: the one that is there is read, and it alone is replaced.
        for _ in range(_TRIES):
            there = await self._values.get(key)
            if there is None or self._box.open(key, there) != old:
                return False
            if await self._values.swap(key, there, self._box.seal(key, new), ttl):
                return True
        raise unavailable(f"the value was written {_TRIES} times while it was to be replaced")

    async def touch(self, key: str, ttl: float) -> bool:
        return await self._values.touch(key, ttl)

    async def remove(self, key: str) -> bool:
        return await self._values.remove(key)

    async def take(self, key: str) -> bytes | None:
        return self._opened(key, await self._values.take(key))

    def _opened(self, key: str, sealed: bytes | None) -> bytes | None:
        return None if sealed is None else self._box.open(key, sealed)


class SealedLogs:
    """A `store.base.Logs` whose values only it can read. What cannot be opened is left out."""

    __slots__ = ("_box", "_logs")

    def __init__(self, logs: Logs, secrets: Sequence[bytes]) -> None:
        self._logs = logs
        self._box = Box(secrets, "a value of a list")

    async def append(self, key: str, value: bytes, ttl: float, most: int) -> None:
        must_fit(key, value, ttl)
        await self._logs.append(key, self._box.seal(key, value), ttl, most)

    async def since(self, key: str, after: bytes, most: int) -> tuple[bytes, list[bytes]]:
        position, found = await self._logs.since(key, after, most)
        opened = (self._box.open(key, sealed) for sealed in found)
        return position, [value for value in opened if value is not None]


class SealedBus:
    """A `store.base.Bus` whose messages only it can read. What cannot be opened is not delivered."""

    __slots__ = ("_box", "_bus")

    def __init__(self, bus: Bus, secrets: Sequence[bytes]) -> None:
        self._bus = bus
        self._box = Box(secrets, "a message")

    async def publish(self, topic: str, message: bytes) -> None:
        must_fit(topic, message)
        await self._bus.publish(topic, self._box.seal(topic, message))

    def subscribe(
        self, topic: str, deliver: Callable[[bytes], None], on_gap: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        def opened(sealed: bytes) -> None:
            message = self._box.open(topic, sealed)
            if message is not None:
                deliver(message)

        return self._bus.subscribe(topic, opened, on_gap)

    async def ready(self) -> None:
        await self._bus.ready()
