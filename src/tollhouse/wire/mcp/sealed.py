"""Tokens that only this gateway can read and make: session ids, `requestState`, cursors, ids of tasks.

Rule: a token says all that is needed to act on it, so that any worker with the key can; and why one cannot be opened
is nobody's business but the log's. Each kind has a key of its own and is authenticated besides: a token of one kind
opens as no other.
"""

import os
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["LIMIT", "Seals", "Unsealed"]

LIMIT = 1 << 20
"""Characters of a token that is looked at."""

_KEY_ID = 4
_NONCE = 12
_SHORTEST = 16  # bytes of a key: less can be guessed

T = TypeVar("T", bound=msgspec.Struct)


class Unsealed(Exception):
    """A token that is not one of ours, is not one any more, or is of another kind. Its text is the same whatever the
    cause; why: for the log."""

    def __init__(self, why: str) -> None:
        super().__init__("the token is not valid here, or not any more")
        self.why = why


class Seals:
    """AES-256-GCM under keys derived (HKDF, RFC 5869) from `keys`: the first seals, all open.

    keys: secrets of at least 16 bytes; with none a random one is made, and what it seals ends with this process
    (`local`). clock: unix seconds. Raises ValueError for a key that is too short.
    """

    __slots__ = ("_clock", "_decoders", "_keys", "_kinds", "local")

    def __init__(self, keys: Sequence[bytes] = (), clock: Callable[[], float] = time.time) -> None:
        if any(len(key) < _SHORTEST for key in keys):
            raise ValueError(f"a key has at least {_SHORTEST} bytes")
        self.local = not keys
        self._keys = tuple(keys) or (os.urandom(32),)
        self._clock = clock
        self._kinds: dict[str, list[tuple[bytes, AESGCM]]] = {}  # kinds are words of this program: few
        self._decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}  # as are its structs

    def seal(self, kind: str, fields: msgspec.Struct) -> str:
        """`fields` as a token: `<kind>1.` and URL-safe base64. A field `expires` (unix seconds, 0 for never) is kept
        to by `open`."""
        id, key = self._of(kind)[0]
        nonce = os.urandom(_NONCE)
        sealed = id + nonce + key.encrypt(nonce, msgspec.msgpack.encode(fields), kind.encode())
        return f"{kind}1.{urlsafe_b64encode(sealed).rstrip(b'=').decode()}"

    def open(self, kind: str, token: str, type: type[T]) -> T:
        """The fields of a token of that kind. Raises Unsealed."""
        head = len(kind) + 2
        if not token.startswith(f"{kind}1."):
            raise Unsealed("it is of another kind, or none of ours")
        if len(token) > LIMIT:
            raise Unsealed(f"it is longer than {LIMIT} characters")
        try:
            text = token[head:].encode("ascii")
            sealed = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
        except (Error, UnicodeEncodeError):
            raise Unsealed("it is not base64") from None
        if urlsafe_b64encode(sealed).rstrip(b"=") != text:  # other characters, or bits after the end
            raise Unsealed("it is not the base64 that we write")
        id, nonce, rest = sealed[:_KEY_ID], sealed[_KEY_ID : _KEY_ID + _NONCE], sealed[_KEY_ID + _NONCE :]
        known = False
        for known_id, key in self._of(kind):
            if known_id != id:
                continue
            known = True
            try:
                plain = key.decrypt(nonce, rest, kind.encode())
            except (InvalidTag, ValueError):
                continue
            return self._fields(plain, type)
        raise Unsealed("it was changed" if known else "no key here has sealed it")

    def _fields(self, plain: bytes, type: type[T]) -> T:
        decoder = self._decoders.get(type)
        if decoder is None:
            decoder = self._decoders[type] = msgspec.msgpack.Decoder(type)
        try:
            fields: T = decoder.decode(plain)
        except msgspec.DecodeError:
            raise Unsealed("it was sealed by another version") from None
        expires = getattr(fields, "expires", 0)
        if expires and expires < self._clock():
            raise Unsealed("it has expired")
        return fields

    def _of(self, kind: str) -> list[tuple[bytes, AESGCM]]:
        """(key id, cipher) of every key, for tokens of that kind."""
        found = self._kinds.get(kind)
        if found is None:
            found = self._kinds[kind] = [
                (_derived(key, b"key id", _KEY_ID), AESGCM(_derived(key, b"seal " + kind.encode(), 32)))
                for key in self._keys
            ]
        return found


def _derived(key: bytes, label: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=b"tollhouse mcp " + label).derive(key)
