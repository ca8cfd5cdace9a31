"""User names and passwords (RFC 7617), for programs that know nothing else.

Rule: who guesses learns nothing from the time it takes, and does not get far: a name that nobody has costs the same
work as one that somebody has, few hashes are made at a time, and failures are counted by address, and ten times as many
by name: who guesses hinders himself before he hinders its owner. A
password that was right is remembered for five minutes, as a keyed digest that is of no use elsewhere.
"""

import os
from base64 import b64decode
from collections.abc import Callable
from hashlib import blake2b, sha256
from hmac import compare_digest
from itertools import islice
from math import isfinite
from time import time
from typing import Annotated, Self
from uuid import uuid4

from pydantic import AfterValidator, Field, model_validator

from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.forwarded import network_of
from tollhouse.core.http import Request
from tollhouse.core.spec import Spec
from tollhouse.net.passwords import Passwords
from tollhouse.policies.base import Parts
from tollhouse.store.base import Charge, Rate
from tollhouse.wire.password_hash import checked

__all__ = ["Basic", "BasicSpec", "BasicUserSpec"]

_REMEMBERED, _KEPT = 10_000, 300.0
_BLOCKED = 10_000
_NOBODY = sha256(b"").hexdigest()
_NAMES = 10  # times as many failures for a name as of an address


class BasicUserSpec(Spec):
    """A name with its password."""

    name: str = Field(min_length=1, max_length=256, pattern=r"^[^:\x00-\x1f\x7f]+$", description="no colon in it")
    password_hash: Annotated[str, AfterValidator(checked)] | None = Field(
        default=None, description="argon2id, as `tollhouse hash-password` makes it (extra `issuer`)"
    )
    secret_hash: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="instead, for a random password of 32 characters or more that no person chose: its SHA-256 in hex",
    )
    org: str = Field(default="", max_length=256, description="the organisation it belongs to")
    email: str = Field(default="", max_length=256, description="for rules and logs")
    groups: tuple[str, ...] = Field(default=(), description="for rules")
    scopes: tuple[str, ...] = Field(default=(), description="what `requires` asks for")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.password_hash is None) == (self.secret_hash is None):
            raise ValueError("give either `password_hash` or `secret_hash`")
        return self


class BasicSpec(Spec):
    """User names and passwords."""

    users: tuple[BasicUserSpec, ...] = Field(min_length=1, description="who may call")
    failures: int = Field(
        default=10,
        ge=1,
        description="wrong passwords in a minute, of an address (IPv6: its /64); of all together ten times as "
        "many for a name",
    )

    @model_validator(mode="after")
    def _once(self) -> Self:
        names = [user.name for user in self.users]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two users have the name {name!r}")
        return self


class _Work:
    """What is kept while the settings are the same: what was right, and who is not listened to. passwords: None where
    no user has one."""

    def __init__(self, hashes: list[str]) -> None:
        self.key = os.urandom(32)
        self.passwords = Passwords(hashes) if hashes else None
        self.right: dict[bytes, tuple[float, Principal]] = {}
        self.blocked: dict[str, float] = {}

    async def close(self) -> None:
        if self.passwords is not None:
            await self.passwords.close()


class Basic:
    """Who has which password. now: unix seconds."""

    def __init__(self, spec: BasicSpec, parts: Parts, now: Callable[[], float] = time) -> None:
        self._users = {user.name: user for user in spec.users}
        hashes = [user.password_hash for user in spec.users if user.password_hash is not None]
        self._principals = {user.name: _principal(user) for user in spec.users}
        self._now = now
        self._counter = parts.counter
        self._throttled = parts.families.throttled.child("basic")
        self._rates = (Rate("basic", spec.failures, 60.0), Rate("basic:name", _NAMES * spec.failures, 60.0))
        self._work: _Work = parts.shared(("basic", spec.fingerprint()), lambda: _Work(hashes), _Work.close)

    async def check(self, request: Request, credential: bytes) -> Principal | None:
        """Who it is; None for a wrong name or password. Raises Failure 429 after too many of those, 503 while too many
        are being checked."""
        work, now = self._work, self._now()
        digest = blake2b(credential, key=work.key, digest_size=32).digest()
        right = work.right.get(digest)
        if right is not None and right[0] > now:
            return right[1]
        name, password = _taken_apart(credential)
        keys = (f"address:{network_of(request.context.client or request.peer)}", f"name:{name[:256]}")
        for key in keys:
            wait = work.blocked.get(key, 0.0) - now
            if wait > 0.0:
                self._throttled.inc()
                raise _too_many(wait)
        user = self._users.get(name)
        fits = await self._fits(user, password)
        if user is None or not fits:
            await self._failed(keys)
            return None
        if len(work.right) >= _REMEMBERED:
            for old in list(islice(work.right, _REMEMBERED // 10)):
                del work.right[old]
        principal = self._principals[name]
        work.right[digest] = (now + _KEPT, principal)
        return principal

    async def _fits(self, user: BasicUserSpec | None, password: bytes) -> bool:
        secret = user.secret_hash if user is not None else None
        if compare_digest(sha256(password).hexdigest(), secret or _NOBODY) and secret is not None:
            return True
        passwords = self._work.passwords
        if passwords is None:
            return False
        if secret is not None:  # so that it does not show who has a secret, and is somebody
            user = None
        return await passwords.fits(None if user is None else user.password_hash, password.decode("utf-8", "replace"))

    async def _failed(self, keys: tuple[str, ...]) -> None:
        """Count a failure, in all workers that share the state; who had too many is not listened to for a while."""
        work = self._work
        for rate, key in zip(self._rates, keys, strict=True):
            verdict = await self._counter.admit(uuid4().hex, [Charge(rate, key, 1)])
            ahead = verdict.behind[0] if verdict.behind else 0.0
            if verdict.refused >= 0 or ahead + rate.step > rate.most:
                if len(work.blocked) >= _BLOCKED:
                    work.blocked.clear()
                wait = verdict.wait if isfinite(verdict.wait) and verdict.refused >= 0 else rate.step
                work.blocked[key] = self._now() + max(wait, 1.0)


def _taken_apart(credential: bytes) -> tuple[str, bytes]:
    try:
        name, _, password = b64decode(credential, validate=True).partition(b":")
        return name.decode("utf-8"), password
    except ValueError:
        return "", b""


def _principal(user: BasicUserSpec) -> Principal:
    return Principal(
        f"basic:{user.name}",
        source="basic",
        user=user.name,
        org=user.org,
        email=user.email,
        groups=user.groups,
        scopes=frozenset(user.scopes),
        subject=user.name,
    )


def _too_many(wait: float) -> Failure:
    return Failure(
        429,
        Reason.BASIC_AUTH,
        "too many wrong passwords; try again later",
        code="too_many_attempts",
        retry_after=wait,
        headers=((b"retry-after", b"%d" % (int(wait) + 1)),),
    )
