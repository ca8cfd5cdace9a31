"""What is asked of an issuer elsewhere, and what its answer must be (RFC 6749 section 5, RFC 8693 section 2).

Rule: an answer is not believed because it came. A token that is for somebody else, may do more than was asked, hides
who acts, or is none, is not sent to anybody.
"""

import base64
import re
from collections.abc import Collection
from typing import Any, Final, NamedTuple, Protocol

from tollhouse.backends.token import members
from tollhouse.core.call import Principal
from tollhouse.core.depth import decode
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.identity import Target

__all__ = [
    "ACCESS_TOKEN", "JWT", "Asking", "ExchangedToken", "Subject", "Unusable", "forbidden", "is_ours",
    "needs_another", "read_answer", "refusal", "token_in",
]  # fmt: skip

ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"

_TOKEN = re.compile(r"[!-~]{1,8000}")  # it stands in a header field
_LONGEST = 1e9
_UNSAID = 60.0
"""Seconds of life of a token whose answer does not say (RFC 6749 section 5.1 only recommends it)."""

_TEXT = re.compile(r"[^ -~]+")
_SECRET_LIKE = re.compile(r"[A-Za-z0-9_\-+/=.~%]{20,}")


class Subject(NamedTuple):
    """What stands for the caller. type: a token type of RFC 8693 section 3."""

    token: str
    type: str

    def __repr__(self) -> str:
        return f"<Subject {self.type}>"


class ExchangedToken(NamedTuple):
    """As `core.identity.Minted`."""

    token: bytes
    jti: str
    expires: float

    def __repr__(self) -> str:
        return f"<ExchangedToken until {self.expires:.0f}>"


class Unusable(ValueError):
    """An answer that is none, or not to what was asked. Its text holds nothing of the token."""


class Asking(Protocol):
    """A way to ask. own_life: how long tokens live is the issuer's to say. typed: answers say what was issued."""

    own_life: bool
    typed: bool

    def form(self, principal: Principal, target: Target, subject: Subject) -> dict[str, str]:
        """What is asked, without who asks. Raises Failure."""
        ...

    def scopes(self, target: Target) -> Collection[str]:
        """Those that an answer may have; empty for any."""
        ...

    def audiences(self, target: Target) -> Collection[str]:
        """Whom a token may be for; empty where its `aud` is the issuer's to choose."""
        ...


def read_answer(asking: Asking, principal: Principal, target: Target, body: bytes, now: float) -> ExchangedToken:
    """The token in an answer of status 200. now: unix seconds when it was asked. Raises Unusable."""
    fields = _members(body)
    token, life = _token(fields)
    if (asking.typed or "issued_token_type" in fields) and fields.get("issued_token_type") not in (ACCESS_TOKEN, JWT):
        raise Unusable("its `issued_token_type` is no access token")
    asked = asking.scopes(target)
    given = fields.get("scope")
    if asked and given is not None and not (isinstance(given, str) and set(given.split()) <= set(asked)):
        raise Unusable("it has scopes that were not asked for")
    claims = _claims(token)
    expires = min(now + life, principal.expires)
    if not asking.own_life:
        expires = min(expires, now + target.ttl)
    jti = ""
    if claims is not None:
        _check_claims(asking, principal, target, claims)
        ends, id = claims.get("exp"), claims.get("jti")
        if isinstance(ends, int | float) and not isinstance(ends, bool):
            expires = min(expires, ends)  # as it is: it may have more digits than a float
        if isinstance(id, str) and len(id) <= 256 and id.isascii() and id.isprintable():
            jti = id
    if not expires > now:
        raise Unusable("its token has expired already")
    return ExchangedToken(token.encode("ascii"), jti, expires)


def token_in(body: bytes) -> tuple[str, float]:
    """The token in an answer of status 200 to who asks for himself, and the seconds that it lives. Raises Unusable."""
    return _token(_members(body))


def _token(fields: dict[str, Any]) -> tuple[str, float]:
    token = fields.get("access_token")
    if not isinstance(token, str) or _TOKEN.fullmatch(token) is None:
        raise Unusable("it has no usable `access_token`")
    if str(fields.get("token_type", "")).lower() != "bearer":
        raise Unusable("its `token_type` is not Bearer")
    return token, _seconds(fields.get("expires_in"))


def _check_claims(asking: Asking, principal: Principal, target: Target, claims: dict[str, Any]) -> None:
    """A JWT says of itself whom it is for and who acts; it comes from the issuer itself, so its signature is for those
    who get it."""
    wanted = asking.audiences(target)
    if wanted:
        said = claims.get("aud")
        audiences = [said] if isinstance(said, str) else said
        if not isinstance(audiences, list) or not audiences or not all(one in wanted for one in audiences):
            raise Unusable("its token is for another audience, or for more than the one that was asked")
    agent = principal.client or principal.agent
    if target.delegation and agent and agent != principal.subject and not isinstance(claims.get("act"), dict):
        raise Unusable("its token does not name who acts; write `mode: impersonation` where that is meant")
    if not target.delegation and "act" in claims:
        raise Unusable("its token names who acts, and was asked not to")


def refusal(body: bytes, status: int) -> Failure | None:
    """What an error of the issuer means for the caller (RFC 6749 section 5.2, RFC 8693 section 2.2.2); None where it
    says nothing of him."""
    try:
        fields = _members(body)
    except Unusable:
        fields = {}
    error = fields.get("error")
    detail = f"{status}: {_said(error)}: {_said(fields.get('error_description'))}"
    if error in ("invalid_request", "invalid_grant"):
        return needs_another("the issuer of tokens for this server does not take the one that was sent", detail)
    if error == "interaction_required":
        claims = fields.get("claims")
        extra = ""
        if isinstance(claims, str) and len(claims) <= 4096:
            extra = f', claims="{base64.b64encode(claims.encode("utf-8", "replace")).decode()}"'
        failure = needs_another("the issuer of tokens for this server wants to ask its user something first", detail)
        # As Entra's clients know it: they ask for a token again, with these claims.
        challenge = f'Bearer error="insufficient_claims"{extra}'
        failure.headers = ((b"www-authenticate", challenge.encode("ascii")),)
        return failure
    if error in ("invalid_scope", "invalid_target", "access_denied", "consent_required"):
        return forbidden("the issuer of tokens for this server gives none to this caller", detail)
    return None


def is_ours(body: bytes) -> bool:
    """Whether an error is about us, and so the same for every caller (RFC 6749 section 5.2)."""
    try:
        error = _members(body).get("error")
    except Unusable:
        return False
    return error in ("invalid_client", "unauthorized_client", "unsupported_grant_type")


def needs_another(message: str, detail: str = "") -> Failure:
    """The caller must get another token first."""
    return Failure(401, Reason.JWT_AUTH, message, code="invalid_token", detail=detail)


def forbidden(message: str, detail: str = "") -> Failure:
    return Failure(403, Reason.AUTHORIZATION, message, code="access_denied", detail=detail)


def _members(body: bytes) -> dict[str, Any]:
    try:
        return members(body, "it")
    except ValueError as error:
        raise Unusable(str(error)) from None


def _seconds(value: Any) -> float:
    if value is None:
        return _UNSAID
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            seconds = float(value)
        except (ValueError, OverflowError):
            seconds = -1.0
        if 0.0 < seconds < _LONGEST:
            return seconds
    raise Unusable("its `expires_in` is no number of seconds")


def _claims(token: str) -> dict[str, Any] | None:
    """What a JWT says, unverified; None for a token that cannot be read."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        value = decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _said(value: Any) -> str:
    """Of an error, for the log: nothing that looks like a secret."""
    return _SECRET_LIKE.sub("***", _TEXT.sub(" ", value[:1000]))[:200] if isinstance(value, str) else ""
