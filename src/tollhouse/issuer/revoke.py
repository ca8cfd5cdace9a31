"""Revocation (RFC 7009): a client gives a token back.

Rule: a refresh token takes its whole family along, an access token only itself. What is not known is gone already, and
nobody gives back what is another's.
"""

from collections.abc import Callable

from tollhouse.core.http import Request, Response
from tollhouse.core.identity import Event
from tollhouse.issuer.access_tokens import LEEWAY, AccessTokens
from tollhouse.issuer.answers import NO_STORE, form_of
from tollhouse.issuer.client_auth import ClientAuth
from tollhouse.issuer.families import Families
from tollhouse.store.revocation import Revocations
from tollhouse.wire.oauth import OAuthError

__all__ = ["Revocation"]


class Revocation:
    """`handle` answers POST. now: unix seconds."""

    __slots__ = ("_auth", "_families", "_now", "_revocations", "_tokens")

    def __init__(
        self,
        auth: ClientAuth,
        families: Families,
        tokens: AccessTokens,
        revocations: Revocations,
        now: Callable[[], float],
    ) -> None:
        self._auth = auth
        self._families = families
        self._tokens = tokens
        self._revocations = revocations
        self._now = now

    async def handle(self, request: Request) -> Response:
        form = await form_of(request)
        client = await self._auth.authenticate(request, form)
        token = form.need("token")
        if token.startswith("thr_"):
            found = await self._families.find(token)
            if found is not None:
                id, family = found
                _must_be(client.id, family.client_id)
                request.context.event = Event("issuer.revoke", client.id, family.sub, session=family.sid)
                await self._families.revoke(id)
        else:
            principal = await self._tokens.read(token.encode("utf-8", "surrogatepass"))
            if principal is not None and principal.jti:
                _must_be(client.id, principal.client)
                request.context.event = Event("issuer.revoke", client.id, principal.subject, jti=principal.jti)
                await self._revocations.revoke("jti", principal.jti, principal.expires + LEEWAY, principal.issuer)
        return Response(200, [*NO_STORE])


def _must_be(client_id: str, owner: str) -> None:
    if client_id != owner:
        raise OAuthError("unauthorized_client", "this token was issued to another client")
