"""API keys from config: who holds one, and how it is found.

Rule: a key is known by its SHA-256 digest only; the secret itself is not kept. It is found by the first half of the
digest and compared whole in constant time.
"""

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from typing import Any, Self

from pydantic import Field, model_validator

from tollhouse.core.call import Principal
from tollhouse.core.spec import Spec

__all__ = ["ApiKeys", "KeySpec"]

_FOUND_BY = 16  # bytes of the digest


class KeySpec(Spec):
    """A key, and whose it is."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._@:-]+$", description="in logs and records")
    key: str | None = Field(default=None, min_length=8, max_length=512, description="the key: ${CI_KEY}")
    key_hash: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="instead of the key: its SHA-256 in lower-case hex"
    )
    user: str = Field(default="", max_length=256, description="on whose behalf it is used")
    org: str = Field(default="", max_length=256)
    agent: str = Field(default="", max_length=256, description="the program that uses it")
    email: str = Field(default="", max_length=256)
    groups: tuple[str, ...] = Field(default=())
    metadata: dict[str, Any] = Field(default={}, description="anything, for rules: key.metadata")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.key is None) == (self.key_hash is None):
            raise ValueError("give either `key` or `key_hash`")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable() and " " not in self.key):
            raise ValueError("a key has only visible ASCII characters")
        return self

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.key_hash) if self.key_hash is not None else sha256((self.key or "").encode()).digest()


class ApiKeys:
    """All keys of one policy. Raises ValueError when two have one name or one secret."""

    __slots__ = ("_principals",)

    def __init__(self, specs: Iterable[KeySpec]) -> None:
        self._principals: dict[bytes, tuple[bytes, Principal]] = {}
        names: set[str] = set()
        for spec in specs:
            if spec.name in names:
                raise ValueError(f"two keys are called `{spec.name}`; a name stands for one key")
            names.add(spec.name)
            digest = spec.digest
            twin = self._principals.get(digest[:_FOUND_BY])
            if twin is not None:
                raise ValueError(f"the keys `{twin[1].key}` and `{spec.name}` are the same key")
            self._principals[digest[:_FOUND_BY]] = (digest, _principal(spec))

    def __len__(self) -> int:
        return len(self._principals)

    def find(self, digest: bytes) -> Principal | None:
        """The holder of the key with this SHA-256 digest."""
        found = self._principals.get(digest[:_FOUND_BY])
        if found is None or not compare_digest(found[0], digest):
            return None
        return found[1]


def _principal(spec: KeySpec) -> Principal:
    # `claims` of a key are its metadata; `core.facts` shows them as `key.metadata`, never as `jwt`.
    return Principal(
        f"key:{spec.name}",
        source="key",
        user=spec.user,
        org=spec.org,
        key=spec.name,
        agent=spec.agent,
        email=spec.email,
        groups=spec.groups,
        claims=dict(spec.metadata),
    )
