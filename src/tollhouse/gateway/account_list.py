"""Whose accounts there are: what operators see and end, by the admin API and by `tollhouse accounts`.

Rule: who is about to connect an account is written down before there is one, so that none is ever missing; who has none
any more is left out when somebody looks. What is kept of an account itself is the business of `backends.accounts`.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol
from zlib import crc32

import msgspec

from tollhouse.backends.accounts.kept import account_id
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.identity import Event
from tollhouse.issuer.accounts import Account
from tollhouse.store.base import KeyValue

__all__ = ["AccountList", "Listed", "Names", "listed_id"]

_PREFIX = "up:x:"
_PARTS = 8
"""In which names are kept, so that those who come at once hardly meet."""

_LONGEST = 390 * 86400.0  # a store keeps nothing longer; whoever comes or looks begins it again
_TRIES = 20


class Listed(NamedTuple):
    """An account. id: of it. user: the `sub` of whose it is. since: unix seconds. agent: that had asked for it."""

    id: str
    server: str
    user: str
    host: str
    scopes: Sequence[str]
    since: float
    agent: str


class Service(Protocol):
    """What is asked of a server here (`issuer.accounts.Service`)."""

    @property
    def name(self) -> str: ...

    async def account(self, sub: str) -> Account | None: ...

    async def disconnect(self, sub: str) -> Event | None: ...


class Names:
    """Users who have, or may have, an account at a server. All methods raise Failure 503."""

    __slots__ = ("_server", "_values")

    def __init__(self, values: KeyValue, server: str) -> None:
        self._values = values
        self._server = server

    async def add(self, sub: str) -> None:
        await self._change(self._key(crc32(sub.encode("utf-8", "surrogatepass")) % _PARTS), add=sub)

    async def forget(self, gone: Iterable[str]) -> None:
        for sub in gone:
            await self._change(self._key(crc32(sub.encode("utf-8", "surrogatepass")) % _PARTS), drop=sub)

    async def all(self) -> list[str]:
        """In order."""
        found: set[str] = set()
        for part in range(_PARTS):
            raw = await self._values.get(self._key(part))
            if raw is not None:
                found.update(_read(raw))
                await self._values.touch(self._key(part), _LONGEST)
        return sorted(found)

    def _key(self, part: int) -> str:
        return f"{_PREFIX}{self._server}:{part}"

    async def _change(self, key: str, *, add: str = "", drop: str = "") -> None:
        for _ in range(_TRIES):
            raw = await self._values.get(key)
            names = set() if raw is None else set(_read(raw))
            if drop and drop not in names:
                return
            names.discard(drop)
            if add:
                names.add(add)
            new = msgspec.msgpack.encode(sorted(names))
            if raw is None:
                if await self._values.add(key, new, _LONGEST):
                    return
            elif await self._values.swap(key, raw, new, _LONGEST):
                return
        raise Failure(
            503,
            Reason.OVERLOADED,
            "too many accounts are connected at this moment; try again in a second",
            code="state_unavailable",
            detail=f"{key!r} changes all the time",
            retry_after=1.0,
        )


class AccountList:
    """Of one configuration. services: its servers at which users connect accounts. All methods raise Failure 503."""

    def __init__(self, services: Iterable[Service], values: KeyValue) -> None:
        self._services = sorted(services, key=lambda service: service.name)
        self._names = {service.name: Names(values, service.name) for service in self._services}

    async def page(self, after: tuple[str, str], limit: int) -> list[Listed]:
        """Accounts by server and user, those behind `after`, so many at most. Raises Failure 503."""
        found: list[Listed] = []
        for service in self._services:
            if service.name < after[0]:
                continue
            gone = []
            for sub in await self._names[service.name].all():
                if (service.name, sub) <= after:
                    continue
                if len(found) == limit:
                    break
                account = await service.account(sub)
                if account is None:
                    gone.append(sub)
                else:
                    found.append(_listed(service, sub, account))
            await self._names[service.name].forget(gone)
        return found

    async def find(self, id: str) -> Listed | None:
        """The account of that id."""
        for service in self._services:
            names = await self._names[service.name].all()
            sub = await asyncio.to_thread(_meant, service.name, names, id)  # there may be very many
            if sub:
                account = await service.account(sub)
                return None if account is None else _listed(service, sub, account)
        return None

    async def disconnect(self, listed: Listed) -> bool:
        """Whether it was still there."""
        service = next(one for one in self._services if one.name == listed.server)
        return await service.disconnect(listed.user) is not None


def listed_id(server: str, sub: str) -> str:
    """What operators call the account of a user at a server; never like an option of a command."""
    return f"acc_{account_id(server, sub)}"


def _meant(server: str, names: Iterable[str], id: str) -> str:
    return next((sub for sub in names if listed_id(server, sub) == id), "")


def _listed(service: Service, sub: str, account: Account) -> Listed:
    id = listed_id(service.name, sub)
    return Listed(id, service.name, sub, account.host, tuple(account.scopes), account.since, account.agent)


def _read(raw: bytes) -> list[str]:
    try:
        return msgspec.msgpack.decode(raw, type=list[str])
    except (msgspec.DecodeError, ValueError):
        return []
