"""Who we are for an issuer: as the configuration says, else by the URL of our metadata document, else as the issuer
registers us (MCP authorization, Client Registration Approaches; RFC 7591).

Rule: one registration for an issuer and a redirect URI, shared by all nodes, until the issuer does not know it any more
or its secret ends. An issuer that has not made us anybody gets nobody's consent.
"""

import asyncio
import logging
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from tollhouse.backends.accounts.discovery import Issuer, Places
from tollhouse.backends.accounts.kept import Kept
from tollhouse.backends.accounts.records import AccountRefused, Registration
from tollhouse.backends.accounts.settings import AccountSettings, OurAddresses
from tollhouse.core.depth import decode
from tollhouse.core.errors import Failure
from tollhouse.wire.oauth import is_loopback_redirect
from tollhouse.wire.oauth_client import ClientAuth, ClientIdentity, method_for, refusal_of

__all__ = ["Clients", "client_document", "configured"]

log = logging.getLogger("tollhouse.backends.accounts")

_ID: Final = re.compile(r"[\x20-\x7e]{1,2048}")  # RFC 6749 appendix A.1
_SECRET: Final = re.compile(r"[\x20-\x7e]{1,1024}")
_LARGEST: Final = 1 << 16
_SENDING: Final = ((b"content-type", b"application/json"), (b"accept", b"application/json"))
_PREFERRED: Final[tuple[ClientAuth, ...]] = ("client_secret_basic", "client_secret_post", "none")
_NO_CLIENT: Final = (
    "This service does not know the gateway, and does not let it introduce itself. Your operator has to register it."
)
_LATER: Final = "The service could not be asked. Try again later."


def configured(settings: AccountSettings, methods: tuple[str, ...]) -> ClientIdentity:
    """As the configuration says. methods: that the issuer supports, for where it leaves that open."""
    secret = settings.client_secret
    method: ClientAuth
    if settings.client_auth == "none" or not secret:
        return ClientIdentity(settings.client_id)
    if settings.client_auth:
        method = "client_secret_basic" if settings.client_auth == "basic" else "client_secret_post"
    else:
        method = method_for(secret, methods)
    return ClientIdentity(settings.client_id, secret, method)


def client_document(ours: OurAddresses, callbacks: tuple[str, ...]) -> dict[str, Any]:
    """Our client id metadata document: what we are to any issuer that reads it."""
    return {"client_id": ours.document, **_metadata(ours, callbacks, "none")}


def _metadata(ours: OurAddresses, callbacks: tuple[str, ...], method: ClientAuth) -> dict[str, Any]:
    return {
        "client_name": ours.name,
        "redirect_uris": list(callbacks),
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": method,
        # Redirects to this machine are a native application's (OpenID Connect Dynamic Client Registration section 2).
        "application_type": "native" if all(map(is_loopback_redirect, callbacks)) else "web",
    }


class Clients:
    """Who the gateway is at the issuers of one server. now: unix seconds."""

    def __init__(
        self, settings: AccountSettings, ours: OurAddresses, places: Places, kept: Kept, now: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._ours = ours
        self._places = places
        self._kept = kept
        self._now = now
        self._one_by_one = asyncio.Lock()

    async def at(self, issuer: Issuer) -> tuple[ClientIdentity, bool]:
        """And whether the issuer has registered it for us. Raises AccountRefused, Failure 503."""
        if self._settings.client_id:
            return configured(self._settings, issuer.methods), False
        if issuer.takes_documents and self._ours.document.startswith("https://"):
            return ClientIdentity(self._ours.document), False
        async with self._one_by_one:
            found = await self._kept.registration(issuer.issuer, self._ours.callback)
            if found is None or (found.expires and found.expires <= self._now()):
                if found is not None:
                    await self.forget(issuer.issuer, found.client_id)
                found = await self._kept.register(issuer.issuer, self._ours.callback, await self._registered(issuer))
        return found.who, True

    async def forget(self, issuer: str, client_id: str) -> None:
        """The issuer does not know it any more. Raises Failure 503."""
        await self._kept.unregister(issuer, self._ours.callback, client_id)

    async def _registered(self, issuer: Issuer) -> Registration:
        """RFC 7591 section 3. Raises AccountRefused."""
        if not issuer.registration_endpoint:
            raise AccountRefused(
                f"{issuer.issuer} knows no dynamic registration; write `oauth.client_id`, as registered there",
                _NO_CLIENT,
            )
        supported = [method for method in _PREFERRED if method in issuer.methods]
        asked = _metadata(self._ours, (self._ours.callback,), supported[0] if supported else "client_secret_basic")
        if not issuer.refreshes:
            asked["grant_types"] = ["authorization_code"]
        if issuer.scopes:
            asked["scope"] = " ".join(issuer.scopes)
        try:
            fetched = await self._places.fetch(
                issuer.registration_endpoint,
                method="POST",
                headers=_SENDING,
                body=msgspec.json.encode(asked),
                limit=_LARGEST,
            )
        except Failure as failure:
            raise AccountRefused(
                f"the registration could not be asked for: {failure.message} {failure.detail}", _LATER
            ) from None
        if fetched.status not in (200, 201):
            why = refusal_of(fetched.body).text
            raise AccountRefused(f"{issuer.issuer} does not register us: {fetched.status} {why}".rstrip(), _NO_CLIENT)
        try:
            made = _made(fetched.body)
        except ValueError as error:
            raise AccountRefused(f"the registration at {issuer.issuer} cannot be used: {error}", _NO_CLIENT) from None
        log.info("mcp server %s: %s has registered the gateway as a client", self._settings.server, issuer.issuer)
        return made


def _made(document: bytes) -> Registration:
    """RFC 7591 section 3.2.1. Raises ValueError."""
    fields = decode(document, 16)
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    client_id, secret = fields.get("client_id"), fields.get("client_secret") or ""
    if not isinstance(client_id, str) or _ID.fullmatch(client_id) is None:
        raise ValueError("it has no usable `client_id`")
    if not isinstance(secret, str) or (secret and _SECRET.fullmatch(secret) is None):
        raise ValueError("its `client_secret` cannot be used")
    method = fields.get("token_endpoint_auth_method")
    if method is None:
        method = "client_secret_basic" if secret else "none"
    known = next((one for one in _PREFERRED if one == method), None)
    if known is None:
        raise ValueError("its `token_endpoint_auth_method` is none that was asked for")
    if known == "none":
        secret = ""
    elif not secret:
        raise ValueError("it has no `client_secret`")
    ends = fields.get("client_secret_expires_at") or 0
    if not isinstance(ends, int | float) or isinstance(ends, bool) or ends < 0:
        raise ValueError("its `client_secret_expires_at` is no time")
    return Registration(client_id, secret, known, float(ends) if secret else 0.0)
