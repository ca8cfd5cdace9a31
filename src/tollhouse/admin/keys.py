"""API keys that live in the ledger: made, listed and ended.

Rule: the same as `tollhouse keys` does; every gateway on the ledger knows within a second, and those that share only
the state hear of keys that have ended. The ledger's file is used in threads.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from tollhouse.admin.ledger import in_thread
from tollhouse.admin.operation import (
    Answer,
    Asked,
    Moment,
    Operation,
    Short,
    invalid,
    missing,
    paged,
    refused,
    started,
)
from tollhouse.core.errors import Failure
from tollhouse.gateway import issued_keys
from tollhouse.gateway.premises import Premises
from tollhouse.ledger.keys import PREFIX, IssuedKey, KeyLedger, KeyTaken, NewKey

__all__ = ["Keys"]

T = TypeVar("T")

Texts = Annotated[tuple[Short, ...], msgspec.Meta(max_length=1000)]

_Second = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]
"""As the ledger's file can compare it."""

_LAST = datetime.max.replace(tzinfo=UTC)
"""What is later, by its offset, has no year in UTC, and could be shown to nobody."""


class KeyAsked(msgspec.Struct, forbid_unknown_fields=True):
    """A key that is to be made. models, servers, tools, routes: patterns with `*` of what it may be used for; as soon
    as one of them is given, what is not given is not allowed. expires_at: absent for never."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._@:-]{1,64}$")]
    user: Short = ""
    org: Short = ""
    agent: Short = ""
    email: Short = ""
    groups: Texts = ()
    scopes: Texts = ()
    metadata: dict[str, Any] = {}
    models: Texts | None = None
    servers: Texts | None = None
    tools: Texts | None = None
    routes: Texts | None = None
    expires_at: Moment | None = None


class Key(msgspec.Struct, kw_only=True):
    """A key, without its secret. id: as the key begins. state: whether it is good."""

    id: str
    name: str
    user: str
    org: str
    agent: str
    email: str
    groups: tuple[str, ...]
    scopes: tuple[str, ...]
    metadata: dict[str, Any]
    models: tuple[str, ...] | None
    servers: tuple[str, ...] | None
    tools: tuple[str, ...] | None
    routes: tuple[str, ...] | None
    state: Literal["good", "expired", "ended"]
    created_at: Moment
    expires_at: Moment | None
    revoked_at: Moment | None


class MadeKey(Key, kw_only=True):
    """key: the secret itself, which is shown this once."""

    key: str


class KeyPage(msgspec.Struct):
    """keys: the oldest first. next: cursor of the next page, null on the last one."""

    keys: list[Key]
    next: str | None


class Keys:
    def __init__(self, premises: Premises) -> None:
        self._config = premises.config
        self._revocations = premises.revocations

    def operations(self) -> list[Operation]:
        return [
            Operation("keys.list", "GET", "/api/keys", "API keys in the ledger", self.page, KeyPage, listed=True),
            Operation(
                "keys.create", "POST", "/api/keys", "Make an API key", self.create, MadeKey, KeyAsked, status=201
            ),
            Operation("keys.show", "GET", "/api/keys/{id}", "One API key", self.show, Key),
            Operation("keys.revoke", "DELETE", "/api/keys/{id}", "End an API key", self.revoke, Key),
        ]

    async def page(self, asked: Asked) -> Answer:
        after = started(asked, tuple[_Second, str], (-1, ""))
        found = await self._ledger(lambda ledger: ledger.page(after, asked.limit + 1))
        keys, more = paged(asked, found, lambda key: (key.created_at, key.id))
        return Answer(KeyPage([_shown(key) for key in keys], more))

    async def show(self, asked: Asked) -> Answer:
        found = await self._ledger(lambda ledger: ledger.find(asked.id.removeprefix(PREFIX)))
        if found is None:
            raise _unknown()
        return Answer(_shown(found))

    async def create(self, asked: Asked) -> Answer:
        body: KeyAsked = asked.body
        expires = None if body.expires_at is None else int(body.expires_at.timestamp())
        if expires is not None and expires <= time.time():
            raise invalid("`expires_at` is over")
        if body.expires_at is not None and body.expires_at > _LAST:
            raise invalid("`expires_at` is after the year 9999; leave it out for a key that never ends")
        settings = {name: getattr(body, name) for name in KeyAsked.__struct_fields__ if name != "expires_at"}
        new = NewKey(**settings, expires_at=expires)
        try:
            secret, key = await in_thread(lambda: issued_keys.create(self._config(), new))
        except KeyTaken as error:
            raise refused(str(error)) from None
        made = msgspec.convert({**issued_keys.shown(key), "key": secret}, MadeKey)
        return Answer(made, f"{PREFIX}{key.id} ({key.name}) for user {key.user!r}")

    async def revoke(self, asked: Asked) -> Answer:
        found = await self._ledger(lambda ledger: ledger.end(asked.id.removeprefix(PREFIX)))
        if found is None:
            raise _unknown()
        key, now = found
        await issued_keys.tell(self._revocations, (key,))  # also of one that had ended: who asks again may have to
        return Answer(_shown(key), f"{PREFIX}{key.id} ({key.name}){'' if now else ', which had ended'}")

    async def _ledger(self, use: Callable[[KeyLedger], T]) -> T:
        return await in_thread(lambda: use(issued_keys.keys_in(self._config())))


def _shown(key: IssuedKey) -> Key:
    return msgspec.convert(issued_keys.shown(key), Key)


def _unknown() -> Failure:
    return missing("there is no key of this id; GET /api/keys has them")
