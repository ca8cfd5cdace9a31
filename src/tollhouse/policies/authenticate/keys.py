"""API keys: who holds one, and how it is found. Some stand in config, others live in the ledger (`tollhouse keys`).

Rule: a key is known by its SHA-256 digest only; the secret itself is not kept. One of config is found by the first half
of the digest and compared whole in constant time; one of the ledger is 256 random bits, whose digest nobody can guess.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from time import time
from typing import Any, Self

from pydantic import Field, model_validator

from tollhouse.core.call import Principal
from tollhouse.core.identity import RevocationView
from tollhouse.core.spec import Spec
from tollhouse.ledger.key_follower import KeyFollower
from tollhouse.ledger.keys import PREFIX, IssuedKey
from tollhouse.policies.authenticate.access import access_of

__all__ = ["ApiKeys", "IssuedKeys", "KeySpec"]

_FOUND_BY = 16  # bytes of the digest
_REMEMBERED = 50_000


class KeySpec(Spec):
    """A key, and whose it is."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._@:-]+$", description="in logs and records")
    key: str | None = Field(default=None, min_length=8, max_length=512, description="the key: ${CI_KEY}")
    key_hash: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="instead of the key: its SHA-256 in lower-case hex"
    )
    user: str = Field(default="", max_length=256, description="on whose behalf it is used")
    org: str = Field(default="", max_length=256)
    team: str = Field(default="", max_length=256, description="of the organisation, for limits, budgets and usage")
    agent: str = Field(default="", max_length=256, description="the program that uses it")
    email: str = Field(default="", max_length=256)
    groups: tuple[str, ...] = Field(default=())
    metadata: dict[str, Any] = Field(default={}, description="anything, for rules: key.metadata")
    scopes: tuple[str, ...] = Field(default=(), description="what `requires` asks for")
    models: tuple[str, ...] | None = Field(
        default=None, description="what it may be used for, by patterns with `*`; as soon as one of models, servers, "
        "tools and routes is named, what is not named is not allowed",
    )  # fmt: skip
    servers: tuple[str, ...] | None = Field(default=None, description="MCP servers, by patterns")
    tools: tuple[str, ...] | None = Field(default=None, description="tools, by patterns of their name or server__name")
    routes: tuple[str, ...] | None = Field(default=None, description="plain HTTP routes, by patterns of their name")
    expires: datetime | None = Field(default=None, description="from then on it is refused, like 2027-01-31T00:00:00Z")

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

    __slots__ = ("_now", "_principals", "_revocations", "names")

    def __init__(
        self,
        specs: Iterable[KeySpec],
        now: Callable[[], float] = time,
        revocations: RevocationView | None = None,
    ) -> None:
        self._revocations = revocations
        self._principals: dict[bytes, tuple[bytes, Principal, bool]] = {}
        self._now = now
        self.names: set[str] = set()
        for spec in specs:
            if spec.name in self.names:
                raise ValueError(f"two keys are called `{spec.name}`; a name stands for one key")
            self.names.add(spec.name)
            digest = spec.digest
            twin = self._principals.get(digest[:_FOUND_BY])
            if twin is not None:
                raise ValueError(f"the keys `{twin[1].key}` and `{spec.name}` are the same key")
            expires = None if spec.expires is None else _unix(spec.expires)
            self._principals[digest[:_FOUND_BY]] = (digest, _holder(spec, expires), expires is not None)

    def __len__(self) -> int:
        return len(self._principals)

    def find(self, digest: bytes) -> Principal | None:
        """The holder of the key with this SHA-256 digest."""
        found = self._principals.get(digest[:_FOUND_BY])
        if found is None or not compare_digest(found[0], digest):
            return None
        if found[2] and found[1].expires <= self._now():
            return None
        if self._revocations is not None and self._revocations.revoked(found[1]):
            return None
        return found[1]


class IssuedKeys:
    """Keys of the ledger, and whose they are. taken: names that config gives to other keys. now: unix seconds."""

    __slots__ = ("_follower", "_now", "_principals", "_revocations", "_taken", "_version")

    def __init__(
        self,
        follower: KeyFollower,
        revocations: RevocationView | None,
        taken: Iterable[str] = (),
        now: Callable[[], float] = time,
    ) -> None:
        self._follower = follower
        self._revocations = revocations
        self._taken = frozenset(taken)
        self._now = now
        self._principals: dict[bytes, list[Any]] = {}  # digest -> Principal, and the epoch it was good in
        self._version = follower.version

    def find(self, digest: bytes) -> Principal | None:
        """The holder of the key with this SHA-256 digest, if it is good now."""
        if self._follower.version != self._version:
            self._version = self._follower.version
            self._principals.clear()
        known = self._principals.get(digest)
        if known is None:
            return self._first(digest)
        principal: Principal = known[0]
        if principal.expires <= self._now():
            return None
        revocations = self._revocations
        if revocations is not None and revocations.epoch != known[1]:
            epoch = revocations.epoch
            if revocations.revoked(principal):
                return None
            known[1] = epoch
        return principal

    def _first(self, digest: bytes) -> Principal | None:
        row = self._follower.find(digest)
        if row is None or not row.is_good(self._now()) or row.name in self._taken:
            return None
        principal = _holder(row, row.expires_at, jti=f"{PREFIX}{row.id}", issued=float(row.created_at))
        epoch = self._revocations.epoch if self._revocations is not None else 0
        if self._revocations is not None and self._revocations.revoked(principal):
            return None
        if len(self._principals) >= _REMEMBERED:
            self._principals.clear()
        self._principals[digest] = [principal, epoch]
        return principal


def _holder(key: KeySpec | IssuedKey, expires: float | None, *, jti: str = "", issued: float = 0.0) -> Principal:
    # `claims` of a key are its metadata; `core.facts` shows them as `key.metadata`, never as `jwt`.
    principal = Principal(
        f"key:{key.name}",
        source="key",
        user=key.user,
        org=key.org,
        team=_team(key),
        key=key.name,
        agent=key.agent,
        email=key.email,
        groups=key.groups,
        claims=dict(key.metadata),
        scopes=frozenset(key.scopes),
        expires=1e18 if expires is None else float(expires),
        jti=jti,
        issued=issued,
    )
    principal.access = access_of(key.models, key.servers, key.tools, key.routes)
    return principal


def _team(key: KeySpec | IssuedKey) -> str:
    """An issued key's stands in its metadata."""
    team = key.team if isinstance(key, KeySpec) else key.metadata.get("team", "")
    return team if isinstance(team, str) else ""


def _unix(moment: datetime) -> float:
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
