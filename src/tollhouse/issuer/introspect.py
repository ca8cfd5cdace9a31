"""Introspection (RFC 7662): a resource server asks what a token says.

Rule: only whoever serves what the token is for hears anything about it. Everybody else hears what is said of a token
that is none.
"""

from typing import Any

from tollhouse.core.http import Request, Response
from tollhouse.issuer.access_tokens import AccessTokens
from tollhouse.issuer.answers import form_of, json
from tollhouse.issuer.client_auth import ClientAuth
from tollhouse.wire.oauth import OAuthError

__all__ = ["Introspection"]


class Introspection:
    """`handle` answers POST."""

    __slots__ = ("_auth", "_tokens")

    def __init__(self, auth: ClientAuth, tokens: AccessTokens) -> None:
        self._auth = auth
        self._tokens = tokens

    async def handle(self, request: Request) -> Response:
        form = await form_of(request)
        client = await self._auth.authenticate(request, form)
        if client.public:
            raise OAuthError("unauthorized_client", "a client that cannot prove who it is hears nothing of tokens")
        token = form.need("token")
        principal = await self._tokens.read(token.encode("utf-8", "surrogatepass"))
        if principal is None:
            return json({"active": False})
        audience = principal.claims.get("aud")
        # URI#tool is the same server's.
        if not isinstance(audience, str) or client.serves.isdisjoint((audience, audience.partition("#")[0])):
            return json({"active": False})
        answer: dict[str, Any] = {
            "active": True,
            **principal.claims,
            "token_type": "DPoP" if "jkt" in principal.claims.get("cnf", {}) else "Bearer",
        }
        if "username" not in answer and principal.client != principal.subject:
            answer["username"] = principal.subject
        return json(answer)
