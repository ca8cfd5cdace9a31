"""The auth provider's signing keys, on all nodes: made at first start, kept in the state, rotated by their times.

Rule: a node signs only with a key that it has read from the store or has written there, and any node may write what is
due: one swap decides, and losers read what was decided. When the store cannot be reached the schedule that was read
goes on; when it has lost writes, who remembers more writes them again.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from time import time
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tollhouse.core.errors import Failure, Reason
from tollhouse.issuer import schedule
from tollhouse.issuer.records import KeySet, StoredKey
from tollhouse.issuer.schedule import Times
from tollhouse.issuer.spec import KeysSpec
from tollhouse.store.base import KeyValue
from tollhouse.store.revocation import Revocation, Revocations
from tollhouse.store.table import Held, Table
from tollhouse.wire.jose import Keys, Token
from tollhouse.wire.jwt import Signer, generate

__all__ = ["SigningKeys"]

log = logging.getLogger("tollhouse.issuer")

T = TypeVar("T")

_ID = "keys"
_TTL = 390 * 86400.0
_EVERY = 30.0
"""Seconds between two readings of the store."""

_UNKNOWN_KID = 1.0
"""Seconds between two readings because of an unknown key."""

_SKEW = 120.0
"""Seconds that clocks of nodes and verifiers may differ, together."""

_TRIES = 16
_MEMORY = 86_400.0
"""Seconds that a dropped key is remembered as revoked, at least: no token lives longer."""


class SigningKeys:
    """values: of the state. now: unix seconds. revocations: told of keys that are dropped, and by which other nodes
    hear of it at once. longest: seconds that a token may live: a key verifies for that long after it has signed,
    whatever the Spec says. load() comes first; all plain functions need it."""

    def __init__(
        self,
        values: KeyValue,
        spec: KeysSpec,
        now: Callable[[], float] = time,
        revocations: Revocations | None = None,
        longest: float = 0.0,
    ) -> None:
        self._table = Table(values, "iss:", KeySet)
        self.follow(spec, longest)
        self._now = now
        self._revocations = revocations
        self._set = KeySet()
        self._signers: dict[str, Signer] = {}
        self._active: dict[str, tuple[float, Signer]] = {}  # by algorithm, and until when
        self._published: tuple[float, Keys, bytes] | None = None  # until when, and as JSON
        self._read_at = -1e18
        self._sought_at = -1e18
        self._flight: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._end = revocations.on_revoked(self._heard) if revocations is not None else None
        self.version = 0
        """Moves with each change of the set: what was made of it compares this."""

    def follow(self, spec: KeysSpec, longest: float = 0.0) -> None:
        """Go by what another configuration says, with the keys that are there; `load` makes what is missing."""
        self._algorithms = (spec.algorithm,)
        self._times = Times(spec.next, spec.active, max(spec.retired, longest + _SKEW))

    # ---- what signs and what verifies

    def signer(self, alg: str = "") -> Signer:
        """The active key, of the algorithm that is configured unless another is named; until there is one of it, any
        that is active. Raises Failure 503 when there is none: nobody was there to plan while the last one ran out, and
        the store cannot be reached."""
        wanted = alg or self._algorithms[0]
        now = self._now()
        remembered = self._active.get(wanted)
        if remembered is not None and now < remembered[0]:
            return remembered[1]
        key = schedule.active(self._set.keys, wanted, now)
        if key is None and not alg:
            others = sorted({one.alg for one in self._set.keys})
            key = next(filter(None, (schedule.active(self._set.keys, other, now) for other in others)), None)
        if key is None:
            raise _unavailable("no signing key is active")
        until = min(moment for k in self._set.keys for moment in (k.active_at, k.retire_at) if moment > now)
        signer = self._signer(key)
        self._active[key.alg] = (until, signer)
        return signer

    def verifying(self) -> Keys:
        """All keys that tokens may be signed with now: next, active and retired ones. Raises as `signer`."""
        return self._known()[1]

    def public(self) -> bytes:
        """The same as a JWK Set, for everybody: JSON, those that sign first. Raises as `signer`."""
        return self._known()[2]

    async def keys(self, token: Token) -> Keys:
        """The keys to verify `token` with; where none is it, the store is asked first whether there are others, at most
        once a second."""
        keys = self.verifying()
        if keys.knows(token):
            return keys
        if self._flight is None:
            now = self._now()
            if now - max(self._read_at, self._sought_at) < _UNKNOWN_KID:
                return keys
            self._sought_at = now
            self._flight = asyncio.get_running_loop().create_task(self._fly())
        await asyncio.shield(self._flight)  # whoever leaves does not take it from the others
        return self.verifying()

    def secrets(self, purpose: str) -> tuple[bytes, ...]:
        """Secrets of 32 bytes that all nodes have, for one purpose: the first one makes, all verify."""
        now = self._now()
        usable = [secret for secret in self._set.secrets if secret.active_at <= now]
        later = [secret for secret in self._set.secrets if secret.active_at > now]
        info = b"tollhouse issuer " + purpose.encode()
        return tuple(HKDF(SHA256(), 32, None, info).derive(secret.value) for secret in (*usable, *later))

    def described(self) -> list[tuple[str, str, str, float]]:
        """For people and metrics: kid, algorithm, state (next, active, retired) and the unix time that it ends."""
        now = self._now()
        ends = {"next": "active_at", "active": "retire_at", "retired": "gone_at"}
        found = []
        for key in schedule.published(self._set.keys, now):
            what = schedule.state(key, now)
            found.append((key.kid, key.alg, what, float(getattr(key, ends[what]))))
        return found

    def times(self) -> tuple[float, float]:
        """Seconds since the key that signs became active, and until the next one does; 0 and 0 where none signs, or
        this is not at work (`start`)."""
        now = self._now()
        key = schedule.active(self._set.keys, self._algorithms[0], now) if self._refreshing is not None else None
        return (now - key.active_at, key.retire_at - now) if key is not None else (0.0, 0.0)

    # ---- what changes them

    async def load(self) -> None:
        """Read the keys, or make the first ones. They are written in any case: an encryption key that was rotated must
        not be needed for as long as they live. Raises Failure 503."""
        await self._write(lambda kept: (self._planned(kept), None), anew=True)

    def start(self) -> None:
        """Read them again every 30 s from now on, and rotate what is due. May be called again."""
        if self._refreshing is None:
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh_on())

    async def close(self) -> None:
        if self._end is not None:
            self._end()
        tasks = [task for task in (self._refreshing, self._flight) if task is not None]
        self._refreshing = self._flight = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def refresh(self) -> None:
        """Take what the store has, and write what is due. Raises Failure 503."""
        await self._write(lambda kept: (self._planned(kept), None))

    async def rotate(self, alg: str = "") -> float:
        """Let the next key sign as soon as verifiers can have it: when that is, in unix seconds. The key before it goes
        on verifying. Raises Failure 503."""

        def change(kept: KeySet) -> tuple[KeySet, float]:
            return schedule.rotated(self._planned(kept), alg or self._algorithms[0], self._times, self._now(), _fresh)

        return await self._write(change)

    async def drop(self, kid: str) -> bool:
        """Take a key away that others may know, at once and on all nodes, and its tokens with it: whether it was there.
        Verifiers elsewhere hold it until they read the keys again. Raises Failure 503."""

        def change(kept: KeySet) -> tuple[KeySet, bool]:
            kept = self._planned(kept)
            left = schedule.dropped(kept, kid, self._times, self._now(), _fresh)
            return (kept, False) if left is None else (left, True)

        was_there = await self._write(change)
        if was_there and self._revocations is not None:
            await self._revocations.revoke("kid", kid, self._now() + max(self._times.retired, _MEMORY))
        return was_there

    async def rotate_secret(self) -> float:
        """Make another secret for `secrets`: when it is used, in unix seconds, because all nodes can have it. Those
        before it verify for more than a year. Raises Failure 503."""

        def change(kept: KeySet) -> tuple[KeySet, float]:
            made = schedule.with_new_secret(self._planned(kept), self._times, self._now(), os.urandom(32))
            return made, made.secrets[0].active_at

        return await self._write(change)

    async def _write(self, change: Callable[[KeySet], tuple[KeySet, T]], *, anew: bool = False) -> T:
        """Change what the store has, however many do so at once; `change` returns its argument to leave it. anew: then
        it is written all the same."""
        for _ in range(_TRIES):
            held = await self._table.get(_ID)
            kept = self._newest(held)
            # A key of RSA takes its time to make, and nobody else waits for it.
            changed, result = await asyncio.to_thread(change, kept) if self._is_slow else change(kept)
            if held is not None and changed is held.value and not anew:
                self._take(changed)
                return result
            if await self._table.write(_ID, held, changed, _TTL):
                self._take(changed)
                return result
        raise _unavailable("the signing keys in the state cannot be read, or are written all the time")

    def _newest(self, held: Held[KeySet] | None) -> KeySet:
        """What counts: what the store has, unless it has lost what we know."""
        if held is None or held.value.version < self._set.version:
            if self._set.version:
                log.warning("the state has lost changes of the signing keys; they are written again")
            return self._set
        return held.value

    @property
    def _is_slow(self) -> bool:
        return any(alg.startswith("RS") for alg in self._algorithms)

    def _planned(self, kept: KeySet) -> KeySet:
        return schedule.planned(kept, self._algorithms, self._times, self._now(), _fresh, os.urandom(32))

    def _take(self, keys: KeySet) -> None:
        self._read_at = self._now()
        if keys != self._set:
            self._show(keys)

    def _show(self, keys: KeySet) -> None:
        self._set = keys
        self._active.clear()
        self._published = None
        kids = {key.kid for key in keys.keys}
        self._signers = {kid: signer for kid, signer in self._signers.items() if kid in kids}
        self.version += 1

    def _signer(self, key: StoredKey) -> Signer:
        signer = self._signers.get(key.kid)
        if signer is None:
            signer = self._signers[key.kid] = Signer(key.alg, key.private, key.kid)
        return signer

    def _known(self) -> tuple[float, Keys, bytes]:
        now = self._now()
        known = self._published
        if known is None or now >= known[0]:
            keys = schedule.published(self._set.keys, now)
            if not keys:
                raise _unavailable("there are no signing keys")
            until = min(moment for k in keys for moment in (k.active_at, k.retire_at, k.gone_at) if moment > now)
            document = msgspec.json.encode({"keys": [self._signer(key).jwk for key in keys]})
            known = self._published = (until, Keys.parse(document), document)
        return known

    def _heard(self, revocation: Revocation) -> None:
        """A key was dropped on some node: its tokens are refused already; here it stops signing, and is read again."""
        if revocation.kind == "kid" and any(key.kid == revocation.id for key in self._set.keys):
            self._show(schedule.without(self._set, revocation.id, self._times, self._now()))
            if self._flight is None and self._refreshing is not None:
                self._flight = asyncio.get_running_loop().create_task(self._fly())

    async def _fly(self) -> None:
        try:
            await self._try()
        finally:
            self._flight = None

    async def _refresh_on(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            await self._try()

    async def _try(self) -> None:
        try:
            await self.refresh()
        except Failure as failure:
            log.warning("the signing keys cannot be read: %s; those that are known go on", failure.detail)
        except Exception:  # the root of the refreshing task: the next round must come
            log.exception("reading the signing keys failed")


def _fresh(alg: str) -> tuple[str, bytes]:
    private = generate(alg)
    return Signer(alg, private).kid, private


def _unavailable(detail: str) -> Failure:
    return Failure(
        503,
        Reason.OVERLOADED,
        "no token can be signed or checked at the moment; try again in some seconds",
        code="temporarily_unavailable",
        detail=detail,
        retry_after=5.0,
    )
