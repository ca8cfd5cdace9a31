"""What is kept about accounts in the state: the accounts, those about to be, who issuers have made us, leases.

Rule: keys say nothing of whose they are: users, states and issuers are hashed. Each kind of record is a `store.table`.
"""

from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Final

import msgspec

from tollhouse.backends.accounts.records import AccountRecord, Pending, Registration
from tollhouse.store.base import KeyValue
from tollhouse.store.table import Held, Table

__all__ = ["LEASE", "Found", "Kept", "account_id"]

LEASE: Final = 15.0
"""Seconds that one who refreshes has for it."""

_LEASE: Final = "up:l:"
_WANTED: Final = "up:w:"
_LONGEST: Final = 390 * 86400.0  # a store keeps nothing longer; each use begins it again
_PENDING_FOR: Final = 600.0
_WANTED_FOR: Final = 600.0
_OVER: Final = 60.0  # seconds that the place of an account which has ended is marked

Found = Held[AccountRecord]
"""An account, and the bytes that it was read as: what is compared when it is replaced."""


def account_id(server: str, sub: str) -> str:
    """What the account of a user at a server is kept under."""
    return _digest(server, sub)


def _digest(*parts: str) -> str:
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return urlsafe_b64encode(sha256(text.encode("utf-8", "surrogatepass")).digest()).decode().rstrip("=")


class Kept:
    """All methods raise Failure 503 where the state cannot be reached."""

    __slots__ = ("_accounts", "_pending", "_registrations", "_values")

    def __init__(self, values: KeyValue) -> None:
        self._values = values
        self._accounts = Table(values, "up:a:", AccountRecord)
        self._pending = Table(values, "up:p:", Pending, hashed=True)
        self._registrations = Table(values, "up:r:", Registration)

    # ---- accounts, by `account_id`
    async def account(self, id: str) -> Found | None:
        found = await self._accounts.get(id)
        return found if found is not None and found.value.access else None

    async def put(self, id: str, record: AccountRecord) -> None:
        await self._accounts.put(id, record, _LONGEST)

    async def swap(self, found: Found, record: AccountRecord) -> Found | None:
        """Put `record` in the place of what was read as `found`: None where something else is there by now."""
        return await self._accounts.replace(found, record, _LONGEST)

    async def end(self, found: Found) -> bool:
        """Let what was read as `found` be no account any more: whether it was still there."""
        over = msgspec.structs.replace(found.value, access="", refresh="", secret="")
        return await self._accounts.swap(found, over, _OVER)

    async def used(self, id: str) -> None:
        """It is not forgotten for another year."""
        await self._accounts.touch(id, _LONGEST)

    async def take(self, id: str) -> AccountRecord | None:
        """Get and remove."""
        record = await self._accounts.take(id)
        return record if record is not None and record.access else None

    async def lease(self, id: str, node: str) -> bool:
        """Whether nobody else is refreshing it."""
        return await self._values.add(_LEASE + id, node.encode(), LEASE)

    async def give_back(self, id: str) -> None:
        await self._values.remove(_LEASE + id)

    # ---- what a server wants an account to have besides
    async def want(self, id: str, scopes: tuple[str, ...]) -> None:
        await self._values.put(_WANTED + id, " ".join(scopes).encode(), _WANTED_FOR)

    async def wanted(self, id: str) -> tuple[str, ...]:
        found = await self._values.get(_WANTED + id)
        return tuple(found.decode("ascii", "replace").split()) if found is not None else ()

    async def satisfied(self, id: str) -> None:
        await self._values.remove(_WANTED + id)

    # ---- those about to be, by `state`
    async def begin(self, state: str, pending: Pending) -> None:
        await self._pending.put(state, pending, _PENDING_FOR)

    async def pending(self, state: str) -> Pending | None:
        """Get and remove: a state is good for one answer."""
        return await self._pending.take(state)

    # ---- who we are, by issuer and redirect URI
    async def registration(self, issuer: str, redirect: str) -> Registration | None:
        found = await self._registrations.get(_digest(issuer, redirect))
        return None if found is None else found.value

    async def register(self, issuer: str, redirect: str, made: Registration) -> Registration:
        """The one that counts: this, or another's that came first."""
        id = _digest(issuer, redirect)
        if await self._registrations.add(id, made, _LONGEST):
            return made
        there = await self._registrations.get(id)
        if there is None:
            await self._registrations.put(id, made, _LONGEST)
        return made if there is None else there.value

    async def unregister(self, issuer: str, redirect: str, client_id: str) -> None:
        """The issuer does not know that client any more."""
        id = _digest(issuer, redirect)
        there = await self._registrations.get(id)
        if there is not None and there.value.client_id == client_id:
            await self._registrations.remove(id)
