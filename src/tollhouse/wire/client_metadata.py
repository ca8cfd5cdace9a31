"""What a client says of itself: dynamic registration (RFC 7591) and client id metadata documents.

Rule: members that are not known are passed over, as both ask; those that are known have their type, and text in them
has a bound and no control characters.
"""

import re
from typing import Any

import msgspec

from tollhouse.core.depth import decode
from tollhouse.wire.oauth import OAuthError, redirect_flaw, scope_of

__all__ = ["ClientMetadata"]

_MOST_URIS = 32
_LONGEST_TEXT = 256
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\u200b-\u200f]")
"""Beside control characters those that turn or hide text: a name is shown to people who decide."""


class ClientMetadata(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """RFC 7591 section 2. token_endpoint_auth_method: None where it was left out."""

    client_name: str = ""
    client_uri: str = ""
    redirect_uris: tuple[str, ...] = ()
    post_logout_redirect_uris: tuple[str, ...] = ()
    grant_types: tuple[str, ...] = ("authorization_code",)
    response_types: tuple[str, ...] = ("code",)
    token_endpoint_auth_method: str | None = None
    application_type: str = ""
    scope: str = ""
    jwks: dict[str, Any] | None = None
    jwks_uri: str = ""
    software_id: str = ""
    software_version: str = ""
    dpop_bound_access_tokens: bool = False
    require_pushed_authorization_requests: bool = False

    @classmethod
    def parse(cls, document: bytes | bytearray) -> "ClientMetadata":
        """Raises ValueError, which says which member is wrong and nothing of what it holds."""
        value = decode(document, 16)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        known = {name: value[name] for name in cls.__struct_fields__ if value.get(name) is not None}
        try:
            metadata = msgspec.convert(known, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"a member has the wrong type: {_place(str(error))}") from None
        metadata._check()
        return metadata

    def _check(self) -> None:
        for name in ("client_name", "client_uri", "jwks_uri", "software_id", "software_version"):
            text = getattr(self, name)
            if len(text) > (2048 if name.endswith("uri") else _LONGEST_TEXT) or _CONTROLS.search(text) is not None:
                raise ValueError(f"`{name}` is too long, or has characters that cannot be shown")
        try:
            scope_of(self.scope)
        except OAuthError:
            raise ValueError("`scope` is malformed, or has too many entries") from None
        for name in ("redirect_uris", "post_logout_redirect_uris"):
            uris = getattr(self, name)
            if len(uris) > _MOST_URIS:
                raise ValueError(f"`{name}` has more than {_MOST_URIS} entries")
            for uri in uris:
                flaw = redirect_flaw(uri)
                if flaw:
                    raise ValueError(f"one of `{name}` {flaw}")
        if self.jwks is not None and self.jwks_uri:
            raise ValueError("`jwks` and `jwks_uri` exclude each other")


def _place(message: str) -> str:
    """Where, out of msgspec's message: what it holds is not repeated."""
    _, _, place = message.rpartition("`$")
    return place.rstrip("`").lstrip(".") or "the whole"
