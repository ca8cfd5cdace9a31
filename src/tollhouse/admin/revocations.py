"""What is revoked: a token, all of a grant, session, user or client, a key.

Rule: it is in force here when the answer comes, and within a second in every gateway that shares the state; where
several workers share nothing, it is refused rather than being in force in one of them.
"""

import time

import msgspec

from tollhouse.admin.operation import Answer, Asked, Long, Moment, Operation, invalid, moment, refused
from tollhouse.gateway.premises import Premises
from tollhouse.store.revocation import Kind, grant_id

__all__ = ["RevocationsResource"]

_LONGEST = 390 * 86400.0


class RevocationAsked(msgspec.Struct, forbid_unknown_fields=True):
    """kind: jti (a token, by its id), gid (all of a grant's family), sid (of a session), sub (of a user) and client (of
    a client) that were issued by now, grant (of a user's for one client), kid (signed with that key), key (an API key,
    by its name). id: what is revoked; for a grant `client` and `sub` are given instead. issuer: whose tokens are meant,
    absent for anybody's. until: when nothing can be left that it concerns; absent: 390 days, which is the longest."""

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


class RevocationsResource:
    def __init__(self, premises: Premises) -> None:
        self._config = premises.config
        self._revocations = premises.revocations

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "revocations.create", "POST", "/api/revocations", "Revoke a token, or all of a user, client, grant, "
                "session or key", self.create, Revoked, RevocationAsked, status=201,
            )
        ]  # fmt: skip

    async def create(self, asked: Asked) -> Answer:
        body: RevocationAsked = asked.body
        config = self._config()
        if config.state.is_memory and config.server.workers > 1:
            raise refused("several workers share no memory: name a server in `state`, or set `server.workers` to 1")
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
