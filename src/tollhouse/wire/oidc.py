"""Login at an OpenID provider, as its client: the way there, what redeems the code, and whether an ID token is the
answer (OpenID Connect Core section 3.1; RFC 7636; RFC 9207).

Rule: an ID token counts for the one client and the one login that it names, and for nobody and nothing else.
"""

from collections.abc import Iterable, Mapping
from hmac import compare_digest
from typing import Final

from tollhouse.wire.jose import Token, check_claims
from tollhouse.wire.jwt import half_hash
from tollhouse.wire.oauth_client import ClientAuth, ClientIdentity, authorization_request, client_form

__all__ = ["BACKCHANNEL_LOGOUT", "LOGOUT_TOKEN", "authorization_url", "code_form", "id_token_flaw", "logout_token_flaw"]

BACKCHANNEL_LOGOUT: Final = "http://schemas.openid.net/event/backchannel-logout"
"""The event of a logout token (Back-Channel Logout section 2.4)."""

LOGOUT_TOKEN: Final = "logout+jwt"
"""Its `typ`."""

_TYPES: Final = frozenset(("jwt",))
_LOGOUT_TYPES: Final = frozenset(("jwt", LOGOUT_TOKEN))
_LONGEST_SUB: Final = 255
_LONGEST_NAME: Final = 256


def authorization_url(
    endpoint: str,
    *,
    client_id: str,
    redirect_uri: str,
    scopes: Iterable[str],
    state: str,
    nonce: str,
    verifier: str,
    more: Mapping[str, str] | None = None,
) -> str:
    """Where the browser goes. verifier: whose challenge is sent (RFC 7636 section 4.3). more: parameters."""
    return authorization_request(
        endpoint,
        verifier=verifier,
        client_id=client_id,
        redirect_uri=redirect_uri,
        scope=" ".join(scopes),
        state=state,
        nonce=nonce,
        **(more or {}),
    )


def code_form(
    code: str, *, client_id: str, secret: str, basic: bool, redirect_uri: str, verifier: str
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Header fields and body for the token endpoint. secret: "" for a client without one. basic: it goes in the field
    Authorization, else in the form (RFC 6749 section 2.3.1)."""
    method: ClientAuth = "none"
    if secret:
        method = "client_secret_basic" if basic else "client_secret_post"
    return client_form(
        ClientIdentity(client_id, secret, method),
        grant_type="authorization_code",
        code=code,
        redirect_uri=redirect_uri,
        code_verifier=verifier,
    )


def id_token_flaw(
    token: Token, *, issuer: str, client_id: str, nonce: str, access_token: str, now: float, leeway: float
) -> str:
    """What is wrong with the claims of an ID token that came with `access_token` (section 3.1.3.7); "" where they hold.
    The signature is checked by `wire.jose.verify`. now: unix seconds."""
    claims = token.claims
    types = None if token.typ is None else _TYPES
    flaw = check_claims(token, issuer=issuer, audiences=(client_id,), now=now, leeway=leeway, types=types)
    if flaw is not None:
        return flaw.value
    audience, party, said, sub = (claims.get(name) for name in ("aud", "azp", "nonce", "sub"))
    if party not in (None, client_id) or (isinstance(audience, list) and len(audience) > 1 and party is None):
        return "it is for others, too (`aud`, `azp`)"
    if not isinstance(said, str) or not compare_digest(said.encode("utf-8", "surrogatepass"), nonce.encode()):
        return "it is of another login (`nonce`)"
    if not isinstance(sub, str) or not 0 < len(sub) <= _LONGEST_SUB or "iat" not in claims:
        return "it does not say whom it is about (`sub`), or when (`iat`)"
    sent = access_token.encode("utf-8", "surrogatepass")
    if "at_hash" in claims and claims["at_hash"] != half_hash(token.algorithm, sent):
        return "the access token beside it is not its own (`at_hash`)"
    return ""


def logout_token_flaw(token: Token, *, issuer: str, client_id: str, now: float, leeway: float, longest: float) -> str:
    """What is wrong with the claims of a logout token (Back-Channel Logout section 2.6); "" where they hold. longest:
    seconds that it may be good for: so long somebody has to remember that it was used."""
    claims = token.claims
    types = None if token.typ is None else _LOGOUT_TYPES
    flaw = check_claims(token, issuer=issuer, audiences=(client_id,), now=now, leeway=leeway, types=types)
    if flaw is not None:
        return flaw.value
    if "iat" not in claims or claims["exp"] > now + longest + leeway:
        return "it does not say when it was issued (`iat`), or is good for too long"
    if not _is_name(claims.get("jti"), _LONGEST_NAME):
        return "it has no `jti`"
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(BACKCHANNEL_LOGOUT), dict):
        return "it is about something else (`events`)"
    if "nonce" in claims:  # an ID token must not be taken for one
        return "it has a `nonce`"
    names = [name for name in ("sub", "sid") if name in claims]
    if not names or not all(_is_name(claims[name], _LONGEST_SUB) for name in names):
        return "it does not say whom it is about (`sub`, `sid`)"
    return ""


def _is_name(value: object, longest: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest
