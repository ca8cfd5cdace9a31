"""The id_token that an application shows to say whom it means (`id_token_hint`, OpenID Connect Core 3.1.2.1).

Rule: it must be ours, for that application; that it has expired does not matter, because it proves nothing and only
says whom it is about.
"""

from typing import NamedTuple

from tollhouse.issuer.parts import Parts
from tollhouse.wire.jose import Token, check_claims, parse, verify
from tollhouse.wire.oauth import OAuthError

__all__ = ["Hint", "hint_of", "subject_of"]

_TYPES = frozenset(("jwt",))
_ALGORITHMS = ("ES256", "RS256", "EdDSA", "Ed25519")
_EVER = 400 * 86400.0


class Hint(NamedTuple):
    """Whom an id_token of ours is about. client_id: the application it was made for."""

    sub: str
    client_id: str
    sid: str


def hint_of(parts: Parts, encoded: str) -> Hint | None:
    """What an id_token says; None for one that is not ours, or was signed by a key that is gone. Raises Failure 503."""
    token = parse(encoded.encode("utf-8", "surrogatepass"))
    if not isinstance(token, Token) or token.typ is None:
        return None
    if verify(token, parts.keys.verifying(), _ALGORITHMS) is not None:
        return None
    flaw = check_claims(token, issuer=parts.url, audiences=(), now=parts.now(), leeway=_EVER, types=_TYPES)
    if flaw is not None:
        return None
    sub, audience, sid = (token.claims.get(name) for name in ("sub", "aud", "sid"))
    if isinstance(audience, list) and len(audience) == 1:
        audience = audience[0]
    if not isinstance(sub, str) or not isinstance(audience, str):
        return None
    return Hint(sub, audience, sid if isinstance(sid, str) else "")


def subject_of(parts: Parts, encoded: str, client_id: str) -> str:
    """Whom an application's hint means. Raises OAuthError `invalid_request`."""
    hint = hint_of(parts, encoded)
    if hint is None or hint.client_id != client_id:
        raise OAuthError("invalid_request", "the id_token_hint is no id_token that this application got here")
    return hint.sub
