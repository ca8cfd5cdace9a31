"""What users have allowed applications, remembered.

Rule: consent is to one application, answered at one host, for one resource and these scopes. Whatever of that differs
is asked; what is the same is not, until it is old or taken back. That an application is listed is for people to see
and take back; what may be done depends on its own record alone.
"""

from collections.abc import Callable, Iterable

import msgspec

from tollhouse.issuer.records import Agreed, Allowance, Consent
from tollhouse.issuer.resources import STANDARD, Resources
from tollhouse.store.base import unavailable
from tollhouse.store.table import Table

__all__ = ["DEVICE", "Asked", "Consents", "by_resource"]

Asked = dict[str, tuple[str, ...]]
"""Scopes by resource; "" is what is asked about the user, and what belongs to no resource."""

DEVICE = "device:"
"""In the place of a host, for a device: answers go to none."""

_TRIES = 8
_MOST_ENTRIES = 64
_MOST_CLIENTS = 512


def by_resource(resources: Resources, uris: Iterable[str], scopes: Iterable[str]) -> Asked:
    """Which of `scopes` mean something where: those about the user are asked once, others at each resource that has
    them, or that does not say which it has."""
    named = tuple(uris)
    wanted = tuple(scopes)
    about_user = tuple(scope for scope in STANDARD if scope in wanted)
    others = tuple(scope for scope in wanted if scope not in STANDARD)
    asked: Asked = {}
    if about_user or not named:
        asked[""] = about_user if named else (*about_user, *others)
    own = {uri: found.scopes if (found := resources.find(uri)) is not None else {} for uri in named}
    known = {scope for has in own.values() for scope in has}
    for uri, has in own.items():
        asked[uri] = tuple(scope for scope in others if not has or scope in has or scope not in known)
    return asked


class Consents:
    """ttl: seconds that an answer holds. now: unix seconds."""

    __slots__ = ("_index", "_now", "_table", "_ttl")

    def __init__(self, table: Table[Consent], index: Table[Allowance], ttl: float, now: Callable[[], float]) -> None:
        self._table = table
        self._index = index
        self._ttl = ttl
        self._now = now

    async def missing(self, sub: str, client_id: str, host: str, asked: Asked) -> Asked:
        """What of `asked` the user has not allowed yet, for answers to `host`. A resource that is new is in it, even
        without scopes."""
        held = await self._table.get(_id(sub, client_id))
        allowed: dict[str, set[str]] = {}
        for entry in self._living(held.value) if held is not None else ():
            if entry.redirect_host == host:
                allowed.setdefault(entry.resource, set()).update(entry.scopes)
        found: Asked = {}
        for resource, scopes in asked.items():
            known = allowed.get(resource)
            rest = tuple(scope for scope in scopes if known is None or scope not in known)
            if rest or known is None:
                found[resource] = rest
        return found

    async def allow(self, sub: str, client_id: str, host: str, asked: Asked) -> None:
        """Remember that the user has allowed all of it."""
        now = self._now()
        id = _id(sub, client_id)
        for _ in range(_TRIES):
            held = await self._table.get(id)
            entries = self._merged(held.value if held is not None else Consent(), host, asked, now)
            consent = Consent(entries, client_id)
            if await self._table.write(id, held, consent, self._ttl):
                return await self._listed(sub, lambda clients: (*(c for c in clients if c != client_id), client_id))
        raise unavailable(f"a consent was written {_TRIES} times while it was to be changed")

    async def forget(self, sub: str, client_id: str) -> bool:
        """Take it back: whether there was one."""
        there = await self._table.remove(_id(sub, client_id))
        await self._listed(sub, lambda clients: tuple(c for c in clients if c != client_id))
        return there

    async def has(self, sub: str, client_id: str) -> bool:
        """Whether the user has ever allowed the application anything that was not taken back."""
        return await self._table.get(_id(sub, client_id)) is not None

    async def all(self, sub: str) -> list[Consent]:
        """What the user has allowed, latest first."""
        index = await self._index.get(sub)
        found: list[Consent] = []
        for client_id in reversed(index.value.clients if index is not None else ()):
            held = await self._table.get(_id(sub, client_id))
            if held is not None and (entries := self._living(held.value)):
                found.append(msgspec.structs.replace(held.value, entries=entries))
        return found

    def _living(self, consent: Consent) -> tuple[Agreed, ...]:
        since = self._now() - self._ttl
        return tuple(entry for entry in consent.entries if entry.at > since)

    def _merged(self, consent: Consent, host: str, asked: Asked, now: float) -> tuple[Agreed, ...]:
        entries = list(self._living(consent))
        for resource, scopes in asked.items():
            old = next((e for e in entries if e.redirect_host == host and e.resource == resource), None)
            if old is not None:
                entries.remove(old)
                scopes = (*old.scopes, *(scope for scope in scopes if scope not in old.scopes))
            entries.append(Agreed(host, resource, scopes, now))
        return tuple(entries[-_MOST_ENTRIES:])

    async def _listed(self, sub: str, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        for _ in range(_TRIES):
            held = await self._index.get(sub)
            clients = change(held.value.clients if held is not None else ())[-_MOST_CLIENTS:]
            if held is None and not clients:
                return
            if await self._index.write(sub, held, Allowance(clients), self._ttl):
                return
        raise unavailable(f"the list of a user's consents was written {_TRIES} times while it was to be changed")


def _id(sub: str, client_id: str) -> str:
    return f"{len(sub)}:{sub}{client_id}"
