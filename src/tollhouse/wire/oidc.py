"""Login at an OpenID provider, as its client: the way there, what redeems the code, and whether an ID token is the
answer (OpenID Connect Core section 3.1; RFC 7636; RFC 9207).

Rule: an ID token counts for the one client and the one login that it names, and for nobody and nothing else.
"""

from collections.abc import Iterable, Mapping
from hmac import compare_digest
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

from tollhouse.wire.jose import Token, check_claims
from tollhouse.wire.jwt import half_hash
from tollhouse.wire.oauth import basic_credentials, code_challenge

__all__ = ["authorization_url", "code_form", "id_token_flaw"]

_TYPES: Final = frozenset(("jwt",))
_LONGEST_SUB: Final = 255


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
    asked = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": redirect_uri,
        "scope": " ".join(scopes),
        "state": state,
        "nonce": nonce,
        "code_challenge": code_challenge(verifier),
        "code_challenge_method": "S256",
        **(more or {}),
    }
    return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(asked, quote_via=quote)}"


def code_form(
    code: str, *, client_id: str, secret: str, basic: bool, redirect_uri: str, verifier: str
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Header fields and body for the token endpoint. secret: "" for a client without one. basic: it goes in the field
    Authorization, else in the form (RFC 6749 section 2.3.1)."""
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": verifier,
    }
    headers = [(b"content-type", b"application/x-www-form-urlencoded"), (b"accept", b"application/json")]
    if secret and basic:
        headers.append((b"authorization", basic_credentials(client_id, secret)))
    else:
        form["client_id"] = client_id
        if secret:
            form["client_secret"] = secret
    return headers, urlencode(form).encode("ascii")


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
