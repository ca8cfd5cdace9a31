"""What is revoked: a token, all of a grant, session, user or client, a key.

Rule: it is in force here when the answer comes, and within a second in every gateway that shares the state; where
several workers share nothing, it is refused rather than being in force in one of them.
"""

import asyncio
import time
from heapq import nsmallest

import msgspec

from tollhouse.admin.operation import (
    Answer,
    Asked,
    Long,
    Moment,
    Operation,
    invalid,
    moment,
    paged,
    started,
    together,
)
from tollhouse.gateway.premises import Premises
from tollhouse.store.revocation import Kind, Revocation, grant_id

__all__ = ["RevocationsResource"]

_LONGEST = 390 * 86400.0

_Place = tuple[float, str, str, str]
"""Of an entry in the list."""


class RevocationAsked(msgspec.Struct, forbid_unknown_fields=True):
    """kind: jti (a token, by its id), gid (all of a grant's family), sid (of a session), sub (of a user) and client (of
    a client) that were issued by now, grant (of a user's for one client), kid (signed with that key), key (an API key,
    by its name), agent (all that an agent asks, by its name), run (an agent run, by its full name as usage has it). id:
    what is revoked; for a grant `client` and `sub` are given instead. issuer: whose tokens are meant, absent for
    anybody's. until: when nothing can be left that it concerns; absent: 390 days, which is the longest."""

    kind: Kind
    id: Long = ""
    client: Long = ""
    sub: Long = ""
    issuer: Long = ""
    until: Moment | None = None


class Revoked(msgspec.Struct):
    """id: what is revoked; of a grant a digest of its client and user."""

    kind: Kind
    id: str
    issuer: str
    until: Moment


class RevocationInForce(msgspec.Struct):
    """at: since when; of a user, client or grant what was issued by then is revoked. The rest as in `Revoked`."""

    kind: Kind
    id: str
    issuer: str
    at: Moment
    until: Moment


class RevocationPage(msgspec.Struct):
    """revocations: the oldest first. next: cursor of the next page, null on the last one."""

    revocations: list[RevocationInForce]
    next: str | None


class RevocationsResource:
    def __init__(self, premises: Premises) -> None:
        self._config = premises.config
        self._revocations = premises.revocations

    def operations(self) -> list[Operation]:
        path = "/api/revocations"
        return [
            Operation(
                "revocations.list", "GET", path, "What is revoked, here and on all that share the state", self.page,
                RevocationPage, listed=True,
            ),
            Operation(
                "revocations.create", "POST", path, "Revoke a token, or all of a user, client, grant, "
                "session, key, agent or run", self.create, Revoked, RevocationAsked, status=201,
            ),
        ]  # fmt: skip

    async def page(self, asked: Asked) -> Answer:
        after: _Place = started(asked, _Place, (-1.0, "", "", ""))
        found = await asyncio.to_thread(_first, self._revocations.in_force(), after, asked.limit + 1)
        shown, more = paged(asked, found, _place)
        return Answer(RevocationPage([_shown(entry) for entry in shown], more))

    async def create(self, asked: Asked) -> Answer:
        body: RevocationAsked = asked.body
        config = self._config()
        together(config)
        id = body.id
        if body.kind == "grant":
            if not (body.client and body.sub) or id:
                raise invalid("a grant is named by `client` and `sub`, without an `id`")
            id = grant_id(body.client, body.sub)
        elif not id or body.client or body.sub:
            raise invalid(f"what is revoked is named by `id` alone for the kind {body.kind}")
        now = time.time()
        until = now + _LONGEST if body.until is None else min(body.until.timestamp(), now + _LONGEST)
        if until <= now:
            raise invalid("`until` is over: nothing would be revoked")
        await self._revocations.revoke(body.kind, id, until, body.issuer)
        named = f"client {body.client!r} of user {body.sub!r}" if body.kind == "grant" else repr(id)
        of = f" of {body.issuer!r}" if body.issuer else ""
        return Answer(Revoked(body.kind, id, body.issuer, moment(until)), f"{body.kind} {named}{of}")


def _first(entries: list[Revocation], after: _Place, most: int) -> list[Revocation]:
    """There may be a million."""
    return nsmallest(most, (entry for entry in entries if _place(entry) > after), key=_place)


def _place(entry: Revocation) -> _Place:
    return entry.at, entry.kind, entry.id, entry.issuer


def _shown(entry: Revocation) -> RevocationInForce:
    return RevocationInForce(entry.kind, entry.id, entry.issuer, moment(entry.at), moment(entry.until))
