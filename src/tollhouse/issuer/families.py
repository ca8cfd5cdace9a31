"""Families: a grant and all refresh tokens that come of it (RFC 9700 section 4.14.2).

Theory of operation. A token is `thr_<family>.<n>.<mac>`; the mac is over all that and the client, so the record holds
no secret, a forged token is refused before any record is looked at, and the successor of a token is always the same
one. The record says which n is good now:

    n = current          it is swapped for n + 1, which is the answer
    n = current - 1      within the grace: the answer was lost, and it is given again; nothing forks
    n < current          somebody has an old one: the family ends, and all tokens of it
    n > current          we have made it, so the store has lost that write: go on from there

Rule: the mac comes first. Nobody ends a family by making tokens up.
"""

import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from tollhouse.core.call import Principal
from tollhouse.issuer.records import Code, Device, Family
from tollhouse.store.base import KeyValue, unavailable
from tollhouse.store.revocation import Revocations, grant_id
from tollhouse.store.table import Held, Table
from tollhouse.wire.oauth import OAuthError

__all__ = ["Families", "Refreshed", "new_family_id"]

_TOKEN: Final = re.compile(r"thr_([A-Za-z0-9_-]{22})\.(0|[1-9][0-9]{0,9})\.([A-Za-z0-9_-]{43})")
_TRIES: Final = 4


class Refreshed(NamedTuple):
    """A family after one of its tokens was used. token: the next one."""

    id: str
    family: Family
    token: str


def new_family_id() -> str:
    """Random, of 128 bits."""
    return secrets.token_urlsafe(16)


class Families:
    """own: secrets that all nodes have, the newest first (`SigningKeys.secrets`). idle, life, grace: seconds
    (`ttl.refresh_idle`, `ttl.refresh`, `ttl.refresh_grace`). longest: seconds that an access token may live: so long a
    revocation is remembered. now: unix seconds. reused: told when an old token was shown."""

    __slots__ = (
        "_grace",
        "_idle",
        "_issuer",
        "_life",
        "_longest",
        "_now",
        "_reused",
        "_revocations",
        "_secrets",
        "_table",
    )  # fmt: skip

    def __init__(
        self,
        values: KeyValue,
        own: Callable[[], Sequence[bytes]],
        revocations: Revocations,
        now: Callable[[], float],
        *,
        issuer: str,
        idle: float,
        life: float,
        grace: float,
        longest: float,
        reused: Callable[[], None] = lambda: None,
    ) -> None:
        self._table = Table(values, "iss:rf:", Family)
        self._secrets = own
        self._revocations = revocations
        self._now = now
        self._issuer = issuer
        self._idle = idle
        self._life = life
        self._grace = grace
        self._longest = longest
        self._reused = reused

    async def begin(self, id: str, family: Family) -> str:
        """Keep a new family: its first refresh token. Raises Failure 503."""
        family = msgspec.structs.replace(family, generation=1, began=self._now())
        macs = self._macs(id, 1, family.client_id)
        if not await self._table.add(id, family, self._ttl(family)):
            raise unavailable("the id of a new family is taken")
        return _written(id, 1, macs[0])

    def ended_since(self, allowed: Code | Device) -> bool:
        """Whether the user, the client, the session or the consent has been revoked since somebody allowed this."""
        return self._is_revoked(allowed.sub, allowed.client_id, allowed.sid, "", allowed.issued)

    async def refresh(
        self, token: str, client_id: str, jkt: str, check: Callable[[Family], None] = lambda _: None
    ) -> Refreshed:
        """Use a refresh token of that client. jkt: thumbprint of the key that it showed, "" for none. check: raises
        where what is asked for does not fit the grant, so that the token stays good. Raises OAuthError `invalid_grant`,
        Failure 503."""
        id, n = self._read(token, client_id)
        for _ in range(_TRIES):
            held = await self._table.get(id)
            if held is None or held.value.client_id != client_id:
                raise _bad()
            family = held.value
            now = self._now()
            if family.jkt and not hmac.compare_digest(family.jkt, jkt):
                raise OAuthError("invalid_grant", "the refresh token is bound to another key")
            if self._is_over(id, family):
                await self.revoke(id)
                raise _bad()
            if n < family.generation:
                if n == family.generation - 1 and now < family.grace_until:
                    check(family)
                    return Refreshed(id, family, self._written(id, family.generation, client_id))
                self._reused()
                await self.revoke(id)
                raise OAuthError("invalid_grant", "the refresh token was used before; the grant is revoked")
            check(family)
            following = msgspec.structs.replace(family, generation=n + 1, grace_until=now + self._grace)
            ttl = self._ttl(family)
            if ttl <= 0.0:
                raise _bad()
            if await self._table.swap(held, following, ttl):
                return Refreshed(id, following, self._written(id, n + 1, client_id))
        raise unavailable("a family was written again and again while its token was to be used")

    async def find(self, token: str) -> tuple[str, Family] | None:
        """The family a refresh token is of, whether or not it is still the good one; None where there is none."""
        match = _TOKEN.fullmatch(token)
        if match is None:
            return None
        held = await self._table.get(match[1])
        if held is None or not self._is_ours(match, held.value.client_id):
            return None
        return match[1], held.value

    async def get(self, id: str) -> Held[Family] | None:
        """The family of that id."""
        return await self._table.get(id)

    async def revoke(self, id: str) -> None:
        """End a family, and every access token that came of it."""
        await self._revocations.revoke("gid", id, self._now() + self._longest)
        if not await self._table.remove(id):
            # It may be about to be written: then the first who refreshes must find that it is over.
            await self._revocations.revoke("gid", id, self._outlived())

    async def end_session(self, sid: str) -> None:
        """End the families that end with a login, and every access token of it."""
        await self._revocations.revoke("sid", sid, self._outlived(), self._issuer)

    async def end_grant(self, client_id: str, sub: str) -> None:
        """End all that a client has from a user, and every access token of it."""
        await self._revocations.revoke("grant", grant_id(client_id, sub), self._outlived(), self._issuer)

    def _outlived(self) -> float:
        """When each family has been refreshed since, and so has met what was revoked, or has ended by itself."""
        return self._now() + max(self._longest, self._idle)

    def _is_over(self, id: str, family: Family) -> bool:
        """Whether the user, the client or the session has been revoked since it began."""
        return self._is_revoked(family.sub, family.client_id, family.sid, id, family.began)

    def _is_revoked(self, sub: str, client_id: str, sid: str, family: str, issued: float) -> bool:
        return self._revocations.revoked(
            Principal(
                "",
                source="jwt",
                issuer=self._issuer,
                subject=sub,
                client=client_id,
                sid=sid,
                family=family,
                issued=issued,
            )
        )

    def _ttl(self, family: Family) -> float:
        return min(self._idle, family.began + self._life - self._now())

    def _read(self, token: str, client_id: str) -> tuple[str, int]:
        match = _TOKEN.fullmatch(token)
        if match is None or not self._is_ours(match, client_id):
            raise _bad()
        return match[1], int(match[2])

    def _is_ours(self, match: re.Match[str], client_id: str) -> bool:
        macs = self._macs(match[1], int(match[2]), client_id)
        return any(hmac.compare_digest(mac, match[3]) for mac in macs)

    def _written(self, id: str, n: int, client_id: str) -> str:
        return _written(id, n, self._macs(id, n, client_id)[0])

    def _macs(self, id: str, n: int, client_id: str) -> list[str]:
        """One by each secret, the newest first. Raises Failure 503 before there are any."""
        keys = self._secrets()
        if not keys:
            raise unavailable("the issuer's secrets have not been read yet")
        said = f"{id}.{n}.{client_id}".encode()
        return [urlsafe_b64encode(hmac.digest(key, said, sha256)).rstrip(b"=").decode() for key in keys]


def _written(id: str, n: int, mac: str) -> str:
    return f"thr_{id}.{n}.{mac}"


def _bad() -> OAuthError:
    return OAuthError("invalid_grant", "the refresh token is not valid, or has expired")
