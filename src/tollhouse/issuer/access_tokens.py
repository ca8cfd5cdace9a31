"""Our own access tokens, read again: for introspection, revocation, exchange and userinfo.

Rule: they are checked as any resource server would (RFC 9068 section 4), and what has been revoked is no token.
"""

from collections.abc import Callable
from typing import Any

from tollhouse.core.call import Principal
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.mint import actors_of
from tollhouse.store.revocation import Revocations
from tollhouse.wire.jose import Flaw, Token, check_claims, parse, verify
from tollhouse.wire.jwt import SIGNING

__all__ = ["LEEWAY", "AccessTokens", "principal_of"]

LEEWAY = 5.0
_TYPES = ("at+jwt",)


class AccessTokens:
    """now: unix seconds."""

    __slots__ = ("_issuer", "_keys", "_now", "_revocations")

    def __init__(self, issuer: str, keys: SigningKeys, revocations: Revocations, now: Callable[[], float]) -> None:
        self._issuer = issuer
        self._keys = keys
        self._revocations = revocations
        self._now = now

    async def read(self, token: bytes) -> Principal | None:
        """Whom a token speaks for, whatever it is for; its claims are in `claims`. None for what is not, or no longer,
        an access token of ours. Raises Failure 503 while there are no keys."""
        parsed = parse(token)
        if not isinstance(parsed, Token) or parsed.claims.get("iss") != self._issuer:
            return None
        if verify(parsed, await self._keys.keys(parsed), SIGNING) is not None:
            return None
        flaw = check_claims(parsed, issuer=self._issuer, audiences=(), now=self._now(), leeway=LEEWAY, types=_TYPES)
        if isinstance(flaw, Flaw):
            return None
        principal = principal_of(parsed.claims, token)
        return None if principal is None or self._revocations.revoked(principal) else principal


def principal_of(claims: dict[str, Any], token: bytes) -> Principal | None:
    """Whom the claims of an access token (RFC 9068) speak for; None where one of them is not what it must be."""
    sub, client = claims.get("sub"), claims.get("client_id")
    scope, cnf = claims.get("scope", ""), claims.get("cnf", {})
    try:
        actors = actors_of(claims)
    except ValueError:
        return None
    if not isinstance(sub, str) or not sub or not isinstance(client, str):
        return None
    if not isinstance(scope, str) or not isinstance(cnf, dict):
        return None
    groups = claims.get("groups", ())
    return Principal(
        f"jwt:{claims['iss']}|{sub}",
        source="jwt",
        user=sub,
        org=_text(claims, "org"),
        agent=actors[0].sub if actors else client,
        email=_text(claims, "email"),
        groups=tuple(map(str, groups)) if isinstance(groups, list) else (),
        claims=claims,
        expires=float(claims["exp"]),
        issuer=claims["iss"],
        subject=sub,
        client=client,
        scopes=frozenset(scope.split()),
        actors=actors,
        token=token,
        jti=_text(claims, "jti"),
        sid=_text(claims, "sid"),
        family=_text(claims, "gid"),
        issued=float(claims.get("iat", 0)),
        proof=str(cnf.get("jkt") or cnf.get("x5t#S256") or ""),
    )


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    return value if isinstance(value, str) else ""
