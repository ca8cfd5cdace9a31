"""What is kept about accounts in the state: the accounts, those about to be, who issuers have made us, leases.

Rule: keys say nothing of whose they are: users, states and issuers are hashed. Values are sealed where the state seals
all that is written to it. What cannot be read any more is as if it were not there.
"""

import logging
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Final, NamedTuple, TypeVar

import msgspec

from tollhouse.backends.accounts.records import AccountRecord, Pending, Registration
from tollhouse.store.base import KeyValue

__all__ = ["LEASE", "Found", "Kept", "account_id"]

log = logging.getLogger("tollhouse.backends.accounts")

LEASE: Final = 15.0
"""Seconds that one who refreshes has for it."""

_ACCOUNT: Final = "up:a:"
_PENDING: Final = "up:p:"
_REGISTRATION: Final = "up:r:"
_LEASE: Final = "up:l:"
_WANTED: Final = "up:w:"
_LONGEST: Final = 390 * 86400.0  # a store keeps nothing longer; each use begins it again
_PENDING_FOR: Final = 600.0
_WANTED_FOR: Final = 600.0
_OVER: Final = 60.0  # seconds that the place of an account which has ended is marked

T = TypeVar("T", bound=msgspec.Struct)


def account_id(server: str, sub: str) -> str:
    """What the account of a user at a server is kept under."""
    return _digest(server, sub)


def _digest(*parts: str) -> str:
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return urlsafe_b64encode(sha256(text.encode("utf-8", "surrogatepass")).digest()).decode().rstrip("=")


class Found(NamedTuple):
    """An account, and the bytes that it was read as: what is compared when it is replaced."""

    record: AccountRecord
    raw: bytes


class Kept:
    """All methods raise Failure 503 where the state cannot be reached."""

    __slots__ = ("_values",)

    def __init__(self, values: KeyValue) -> None:
        self._values = values

    # ---- accounts, by `account_id`
    async def account(self, id: str) -> Found | None:
        raw = await self._values.get(_ACCOUNT + id)
        record = _read(raw, AccountRecord)
        return None if raw is None or record is None or not record.access else Found(record, raw)

    async def put(self, id: str, record: AccountRecord) -> None:
        await self._values.put(_ACCOUNT + id, msgspec.msgpack.encode(record), _LONGEST)

    async def swap(self, id: str, found: Found, record: AccountRecord) -> Found | None:
        """Put `record` in the place of what was read as `found`: None where something else is there by now."""
        raw = msgspec.msgpack.encode(record)
        return Found(record, raw) if await self._values.swap(_ACCOUNT + id, found.raw, raw, _LONGEST) else None

    async def end(self, id: str, found: Found) -> bool:
        """Let what was read as `found` be no account any more: whether it was still there."""
        over = msgspec.structs.replace(found.record, access="", refresh="", secret="")
        return await self._values.swap(_ACCOUNT + id, found.raw, msgspec.msgpack.encode(over), _OVER)

    async def used(self, id: str) -> None:
        """It is not forgotten for another year."""
        await self._values.touch(_ACCOUNT + id, _LONGEST)

    async def take(self, id: str) -> AccountRecord | None:
        """Get and remove."""
        record = _read(await self._values.take(_ACCOUNT + id), AccountRecord)
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
        await self._values.put(_PENDING + _digest(state), msgspec.msgpack.encode(pending), _PENDING_FOR)

    async def pending(self, state: str) -> Pending | None:
        """Get and remove: a state is good for one answer."""
        return _read(await self._values.take(_PENDING + _digest(state)), Pending)

    # ---- who we are, by issuer and redirect URI
    async def registration(self, issuer: str, redirect: str) -> Registration | None:
        return _read(await self._values.get(_REGISTRATION + _digest(issuer, redirect)), Registration)

    async def register(self, issuer: str, redirect: str, made: Registration) -> Registration:
        """The one that counts: this, or another's that came first."""
        key = _REGISTRATION + _digest(issuer, redirect)
        if await self._values.add(key, msgspec.msgpack.encode(made), _LONGEST):
            return made
        there = _read(await self._values.get(key), Registration)
        if there is None:
            await self._values.put(key, msgspec.msgpack.encode(made), _LONGEST)
        return there or made

    async def unregister(self, issuer: str, redirect: str, client_id: str) -> None:
        """The issuer does not know that client any more."""
        key = _REGISTRATION + _digest(issuer, redirect)
        there = _read(await self._values.get(key), Registration)
        if there is not None and there.client_id == client_id:
            await self._values.remove(key)


def _read(raw: bytes | None, record: type[T]) -> T | None:
    if raw is None:
        return None
    try:
        return msgspec.msgpack.decode(raw, type=record)
    except (msgspec.DecodeError, ValueError):
        log.warning("a %s in the state cannot be read and is left aside", record.__name__)
        return None
