"""Which claims about a user a scope releases (OpenID Connect Core section 5.4): in id_tokens, tokens for userinfo, and
userinfo itself."""

from collections.abc import Collection, Mapping
from typing import Any

from tollhouse.issuer.records import UserInfo

__all__ = ["claims_for", "released"]

_PROFILE = (
    "name", "preferred_username", "given_name", "family_name", "middle_name", "nickname", "profile", "picture",
    "website", "gender", "birthdate", "zoneinfo", "locale", "updated_at",
)  # fmt: skip
_RELEASED: Mapping[str, tuple[str, ...]] = {
    "profile": _PROFILE,
    "email": ("email", "email_verified"),
    "groups": ("groups", "org"),
}


def claims_for(scopes: Collection[str], user: UserInfo) -> dict[str, Any]:
    """What these scopes release of a user."""
    said: dict[str, Any] = {**user.claims}
    if user.name:
        said["name"] = user.name
    said |= {"email": user.email, "email_verified": user.email_verified} if user.email else {}
    said |= {"groups": list(user.groups)} if user.groups else {}
    said |= {"org": user.org} if user.org else {}
    return released(scopes, said)


def released(scopes: Collection[str], claims: Mapping[str, Any]) -> dict[str, Any]:
    """What these scopes release of `claims`."""
    names = [name for scope in scopes for name in _RELEASED.get(scope, ())]
    return {name: claims[name] for name in names if name in claims}
