"""What verified claims say of a caller: who it is, who acts for it, what the token is good for (RFC 9068, 8693, 7662).

Rule: here claims become a Principal and nothing else; they are believed already. A name that cannot be written to a
log line or a header field as it is (control characters, over 256 characters) is not cut but refused where it says who
it is, and left out elsewhere.
"""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import Field

from tollhouse.core.call import Actor, Principal
from tollhouse.core.spec import Spec
from tollhouse.wire.jose import Flaw

__all__ = ["Claim", "ClaimsSpec", "Unfit", "principal_of", "scopes_of"]

_LONGEST = 256
_LARGEST = 10**_LONGEST  # of a number that names somebody; writing out longer ones fails
_MOST_SCOPES = 1000
_DEEPEST = 10
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}")

Claim = str | tuple[str, ...]


class ClaimsSpec(Spec):
    """Which claims say what. A name, or several of which the first that is there counts; `a.b` is b in a."""

    user: Claim = Field(default="sub")
    org: Claim = Field(default=("org", "org_id", "tid"))
    team: Claim = Field(default=("team", "team_id"), description="of the organisation, for limits, budgets and usage")
    agent: Claim = Field(
        default=("act.sub", "client_id", "azp", "appid", "cid"), description="the program that acts for the user"
    )
    email: Claim = Field(default="email")
    groups: Claim = Field(default=("groups", "roles"))
    scopes: Claim = Field(default=("scope", "scp"), description="what the token is good for: a list, or words")
    client: Claim = Field(default=("client_id", "azp", "appid", "cid"), description="the OAuth client")


class Unfit(Enum):
    """What is wrong with a token whose signature is good; the value may be shown to whoever presented it."""

    ACTORS = f"the token's claim `act` must be an object with the text `sub`, nested at most {_DEEPEST} deep"
    CONFIRMATION = "the token is bound to a key in a way that is not understood: `cnf` has neither jkt nor x5t#S256"
    NAME = "the token's names must not have control characters in them"
    REVOKED = "the token has been revoked"
    INACTIVE = "the token is not known to its issuer, or not any more"


def principal_of(
    claims: dict[str, Any], names: ClaimsSpec, *, issuer: str, source: str, token: bytes, leeway: float = 0.0
) -> Principal | Flaw | Unfit:
    """Whom verified claims speak for. issuer: as configured; it is part of the id. leeway: seconds that are added to
    `exp`. What is wrong with them is a value."""
    user, subject = _text(claims, names.user), claims.get("sub")
    if not isinstance(subject, str | None) or not (subject or user):
        return Flaw.SUBJECT  # somebody nobody could name in a log or a limit
    name = subject or user
    if len(name) > _LONGEST or len(user) > _LONGEST:
        return Flaw.SUBJECT  # cut, it would be somebody else's as well
    if _CONTROL.search(name) or _CONTROL.search(user):
        return Unfit.NAME
    actors = _actors(claims.get("act"))
    if actors is None:
        return Unfit.ACTORS
    proof = _proof(claims.get("cnf"))
    if proof is None:
        return Unfit.CONFIRMATION
    issued, expires = claims.get("iat", 0.0), claims.get("exp")
    return Principal(
        f"{source}:{issuer}|{name}",
        source=source,
        user=user,
        org=_label(claims, names.org),
        team=_label(claims, names.team),
        agent=_label(claims, names.agent),
        email=_label(claims, names.email),
        groups=tuple(name for name in _texts(_find(claims, names.groups)) if _CONTROL.search(name) is None),
        claims=claims,
        expires=expires + leeway if expires is not None else 1e18,
        issuer=_said(claims, "iss") or issuer,
        subject=name,
        client=_label(claims, names.client),
        scopes=scopes_of(_find(claims, names.scopes)),
        actors=actors,
        token=token,
        jti=_said(claims, "jti"),
        sid=_said(claims, "sid"),
        family=_said(claims, "gid"),
        issued=float(issued) if issued is not None else 0.0,
        proof=proof,
    )


def scopes_of(value: Any) -> frozenset[str]:
    """Words (RFC 6749 section 3.3), or a list of them as some issuers write it."""
    words = value.split(" ") if isinstance(value, str) else _texts(value)
    return frozenset(word for word in words[:_MOST_SCOPES] if word and _CONTROL.search(word) is None)


def _actors(act: Any) -> tuple[Actor, ...] | None:
    """The chain of `act` (RFC 8693 section 4.1), outermost first; None when it is malformed or too deep."""
    actors: list[Actor] = []
    while act is not None:
        if not isinstance(act, dict) or len(actors) >= _DEEPEST:
            return None
        subject, issuer = act.get("sub"), act.get("iss", "")
        if not isinstance(subject, str) or not isinstance(issuer, str) or not 0 < len(subject) <= _LONGEST:
            return None
        if len(issuer) > 2048 or _CONTROL.search(subject) or _CONTROL.search(issuer):
            return None
        actors.append(Actor(issuer, subject))
        act = act.get("act")
    return tuple(actors)


def _proof(confirmation: Any) -> str | None:
    """The thumbprint in `cnf` (RFC 9449 section 6.1, RFC 8705 section 3.1), "" without one; None for what nobody here
    could check, which must not pass for a bearer token."""
    if confirmation is None:
        return ""
    if not isinstance(confirmation, dict):
        return None
    found = [confirmation[name] for name in ("jkt", "x5t#S256") if name in confirmation]
    if len(found) != 1 or not isinstance(found[0], str) or _THUMBPRINT.fullmatch(found[0]) is None:
        return None
    return str(found[0])


def _find(claims: Mapping[str, Any], names: Claim) -> Any:
    for name in (names,) if isinstance(names, str) else names:
        if name in claims:  # names may be URLs, with dots of their own
            return claims[name]
        value: Any = claims
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _text(claims: Mapping[str, Any], names: Claim) -> str:
    value = _find(claims, names)
    if isinstance(value, str):
        return value
    number = isinstance(value, int) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
    return str(value) if number else ""


def _label(claims: Mapping[str, Any], names: Claim) -> str:
    text = _text(claims, names)[:_LONGEST]
    return "" if _CONTROL.search(text) else text


def _said(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    return value if isinstance(value, str) and len(value) <= 2048 else ""


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(v for v in value if isinstance(v, str)) if isinstance(value, list | tuple) else ()
