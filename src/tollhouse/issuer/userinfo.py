"""Userinfo: what an application may know of the user who has let it in (OpenID Connect Core section 5.3).

Rule: the token must be ours, for us, and have `openid`. What it may say stands in it: who was logged in, as it was
then. One that is bound to a key counts only with a proof of it.
"""

from tollhouse.core.http import Request, Response
from tollhouse.issuer.access_tokens import AccessTokens
from tollhouse.issuer.answers import form_of, json
from tollhouse.issuer.claims import released
from tollhouse.issuer.proof import Proofs
from tollhouse.wire.oauth import OAuthError, challenge

__all__ = ["Userinfo"]

_LARGEST = 8192
_FORM = b"application/x-www-form-urlencoded"


class Userinfo:
    """`handle` answers GET and POST. issuer: whom the token must be for."""

    __slots__ = ("_issuer", "_proofs", "_tokens")

    def __init__(self, issuer: str, tokens: AccessTokens, proofs: Proofs) -> None:
        self._issuer = issuer
        self._tokens = tokens
        self._proofs = proofs

    async def handle(self, request: Request) -> Response:
        scheme, token = await self._shown(request)
        principal = await self._tokens.read(token)
        if principal is None or principal.claims.get("aud") != self._issuer:
            raise _refused("invalid_token", "the token is none of this issuer for userinfo, or has expired")
        bound = principal.claims.get("cnf", {})
        if ("jkt" in bound) != (scheme == b"dpop"):
            raise _refused("invalid_token", "a token that is bound to a key is shown as DPoP, any other as Bearer")
        if principal.proof:
            await self._proofs.prove(request, principal)
        if "openid" not in principal.scopes:
            raise _refused("insufficient_scope", "the token does not have the scope openid", 403, scope="openid")
        return json({"sub": principal.subject, **released(sorted(principal.scopes), principal.claims)})

    async def _shown(self, request: Request) -> tuple[bytes, bytes]:
        """The scheme, in lower case, and the token (RFC 6750 section 2)."""
        fields = request.headers.get_all(b"authorization")
        kind = (request.header(b"content-type") or b"").partition(b";")[0].strip().lower()
        if not fields and request.method == b"POST" and kind == _FORM:
            form = await form_of(request)
            if "access_token" in form:
                return b"bearer", form.get("access_token").encode("utf-8", "surrogatepass")
        if not fields:
            raise _refused("", "userinfo needs an access token")
        scheme, _, token = fields[0].strip().partition(b" ")
        scheme = scheme.lower()
        if len(fields) > 1 or scheme not in (b"bearer", b"dpop") or not 0 < len(token.strip()) <= _LARGEST:
            raise _refused("invalid_request", "send one access token, in the Authorization field")
        return scheme, token.strip()


def _refused(error: str, description: str, status: int = 401, *, scope: str = "") -> OAuthError:
    value = challenge("Bearer", error=error, error_description=description if error else "", scope=scope)
    return OAuthError(error or "invalid_request", description, status, ((b"www-authenticate", value),))
