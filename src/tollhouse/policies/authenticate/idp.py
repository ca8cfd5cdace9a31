"""What identity providers do in their own way: names of claims, audiences, and a second issuer of one tenant.

Rule: pure functions of a table. What a provider lacks (resource indicators, registration) is no matter of its tokens;
the guide says what to configure there.
"""

import re
from typing import Any, Literal

from tollhouse.policies.authenticate.claims import ClaimsSpec

__all__ = ["IdpKind", "audiences_of", "issuers_of", "names_of"]

IdpKind = Literal["generic", "entra", "okta", "auth0", "keycloak"]

_V2 = re.compile(r"https://login\.microsoftonline\.(com|us)/([0-9a-f-]{36})/v2\.0")
_V1 = re.compile(r"https://sts\.windows\.net/([0-9a-f-]{36})/")
_APP = re.compile(r"(?:api://)?([0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12})")

_NAMES: dict[str, dict[str, Any]] = {
    "generic": {},
    # `oid` is the same for a user in every application of the tenant, `sub` is not; v1 has `appid`, v2 `azp`.
    "entra": {
        "user": ("preferred_username", "upn", "oid", "sub"),
        "org": "tid",
        "agent": ("azp", "appid"),
        "email": ("email", "preferred_username", "upn"),
        "scopes": "scp",
        "client": ("azp", "appid"),
    },
    "okta": {"org": ("org", "tenant"), "agent": ("act.sub", "cid"), "scopes": "scp", "client": "cid"},
    "auth0": {"org": ("org_id", "org_name"), "agent": ("act.sub", "azp"), "client": "azp"},
    "keycloak": {
        "user": ("preferred_username", "sub"),
        "org": ("organization", "org"),
        "agent": ("act.sub", "azp"),
        "groups": ("groups", "realm_access.roles"),
        "client": "azp",
    },
}


def names_of(kind: IdpKind, written: ClaimsSpec) -> ClaimsSpec:
    """What was written, and for the rest what is usual for this kind."""
    given = {name: getattr(written, name) for name in written.model_fields_set}
    return ClaimsSpec(**(_NAMES[kind] | given)) if _NAMES[kind] else written


def issuers_of(kind: IdpKind, issuer: str) -> tuple[str, ...]:
    """Every `iss` that this issuer's tokens may have. Entra has one for each version of its tokens, with the same
    keys; which version a client gets is the registration's choice."""
    if kind == "entra":
        if match := _V2.fullmatch(issuer):
            return issuer, f"https://sts.windows.net/{match[2]}/"
        if match := _V1.fullmatch(issuer):
            return issuer, f"https://login.microsoftonline.com/{match[1]}/v2.0"
    return (issuer,)


def audiences_of(kind: IdpKind, audiences: tuple[str, ...]) -> frozenset[str]:
    """Every `aud` that means one of these. Entra writes an application as its GUID (v2) or as api://GUID (v1)."""
    if kind != "entra":
        return frozenset(audiences)
    every = set(audiences)
    for audience in audiences:
        if match := _APP.fullmatch(audience):
            every |= {match[1], f"api://{match[1]}"}
    return frozenset(every)
