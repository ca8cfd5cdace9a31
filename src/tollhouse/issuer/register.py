"""Dynamic registration (RFC 7591): a client says what it is and gets an id.

Rule: whoever asks gets no more than a name for asking users: no choice of its id, no grant without a user, and no
redirect that anybody else could receive without the user seeing it. How many there can be is bounded, by address, by
hour and in all; who is not used is forgotten.
"""

import os
import secrets
from collections.abc import Callable
from hashlib import sha256
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from tollhouse.core.http import Request, Response
from tollhouse.core.identity import Event
from tollhouse.issuer.answers import json, json_body
from tollhouse.issuer.clients import Clients, is_native
from tollhouse.issuer.spec import BY_USERS, GRANTS, REGISTERED, RegistrationSpec
from tollhouse.issuer.throttle import address_of
from tollhouse.store.base import Charge, Counter, Rate, unavailable
from tollhouse.wire.client_metadata import ClientMetadata
from tollhouse.wire.jose import Keys
from tollhouse.wire.oauth import OAuthError, is_loopback_redirect

__all__ = ["Registration"]

_HOUR: Final = 3600.0
_METHODS: Final = ("none", "client_secret_basic", "client_secret_post", "private_key_jwt")


class Registration:
    """`handle` answers POST. now: unix seconds."""

    __slots__ = ("_all", "_clients", "_counter", "_each", "_now", "_spec", "_total")

    def __init__(self, spec: RegistrationSpec, clients: Clients, counter: Counter, now: Callable[[], float]) -> None:
        self._spec = spec
        self._clients = clients
        self._counter = counter
        self._now = now
        self._each = Rate("iss:register:address", spec.per_address, _HOUR)
        self._all = Rate("iss:register:all", spec.rate, _HOUR)
        # As many as there may be at once come in the time after which the first are forgotten.
        self._total = Rate("iss:register:total", spec.limit, spec.unused)

    async def handle(self, request: Request) -> Response:
        body = await json_body(request)
        metadata = self._checked(body, request)
        await self._admit(address_of(request))
        client_id = REGISTERED + secrets.token_urlsafe(16)
        secret = ""
        if metadata.token_endpoint_auth_method in ("client_secret_basic", "client_secret_post"):
            secret = secrets.token_urlsafe(32)
        digest = sha256(secret.encode()).hexdigest() if secret else ""
        if not await self._clients.add(client_id, metadata, digest):
            raise unavailable("the id of a new client is taken")
        request.context.event = Event("issuer.register", client_id)
        answer: dict[str, Any] = {"client_id": client_id, "client_id_issued_at": int(self._now())}
        if secret:
            answer |= {"client_secret": secret, "client_secret_expires_at": 0}
        answer |= msgspec.to_builtins(metadata)
        # What was left out has a value all the same, and the client is told which (section 3.2.1).
        answer |= {
            "grant_types": metadata.grant_types,
            "response_types": metadata.response_types,
            "token_endpoint_auth_method": metadata.token_endpoint_auth_method,
        }
        return json(answer, 201)

    async def _admit(self, address: str) -> None:
        """Raises OAuthError 429."""
        charges = [Charge(self._each, address, 1), Charge(self._all, "", 1), Charge(self._total, "", 1)]
        verdict = await self._counter.admit(os.urandom(12).hex(), charges)
        if verdict.refused >= 0:
            wait = min(int(verdict.wait) + 1, 86400)
            raise OAuthError(
                "temporarily_unavailable",
                "too many registrations; try again later",
                429,
                ((b"retry-after", b"%d" % wait),),
            )

    def _checked(self, body: bytes, request: Request) -> ClientMetadata:
        """Raises OAuthError `invalid_redirect_uri`, `invalid_client_metadata`."""
        try:
            metadata = ClientMetadata.parse(body)
        except ValueError as error:
            code = "invalid_redirect_uri" if "redirect_uris" in str(error) else "invalid_client_metadata"
            raise OAuthError(code, str(error)) from None
        method = metadata.token_endpoint_auth_method
        if method is None:
            method = "client_secret_basic"  # RFC 7591 section 2
        if method not in _METHODS:
            raise _bad("`token_endpoint_auth_method` is not one of this issuer's")
        if (method == "private_key_jwt") != bool(metadata.jwks is not None or metadata.jwks_uri):
            raise _bad("private_key_jwt needs `jwks` or `jwks_uri`, and other methods have neither")
        self._check_keys(metadata)
        if "code" not in metadata.response_types:
            raise _bad("`response_types` has no code")
        grants = tuple(grant for grant in metadata.grant_types if grant in BY_USERS)
        if not frozenset(grants) & {GRANTS["authorization_code"], GRANTS["device_code"]}:
            raise _bad("`grant_types` has none that a client which registers itself can have")
        if GRANTS["authorization_code"] in grants and not metadata.redirect_uris:
            raise OAuthError("invalid_redirect_uri", "`redirect_uris` is required")
        if metadata.application_type not in ("", "web", "native"):
            raise _bad("`application_type` is neither web nor native")
        for uri in metadata.redirect_uris:
            self._check_redirect(uri, metadata)
        if self._spec.dynamic == "loopback" and not _is_local(request):
            raise OAuthError("access_denied", "only programs on this machine can register here", 403)
        return msgspec.structs.replace(
            metadata, token_endpoint_auth_method=method, grant_types=grants, response_types=("code",)
        )

    def _check_keys(self, metadata: ClientMetadata) -> None:
        if metadata.jwks is not None:
            try:
                Keys.parse(msgspec.json.encode(metadata.jwks))
            except ValueError as error:
                raise _bad(f"`jwks`: {error}") from None
        if metadata.jwks_uri and not metadata.jwks_uri.startswith("https://"):
            raise _bad("`jwks_uri` is not https")

    def _check_redirect(self, uri: str, metadata: ClientMetadata) -> None:
        loopback = is_loopback_redirect(uri)
        is_web = urlsplit(uri).scheme.lower() == "https"
        if self._spec.dynamic == "loopback" and not loopback:
            raise OAuthError("invalid_redirect_uri", "only redirects to this machine are taken: 127.0.0.1, localhost")
        if metadata.application_type == "web" and not is_web:
            raise OAuthError("invalid_redirect_uri", "a web application's redirects are https")
        if not is_web and not loopback and not is_native(metadata):
            raise OAuthError("invalid_redirect_uri", "a redirect is https or loopback, or its application native")


def _is_local(request: Request) -> bool:
    try:
        return ip_address(request.context.client or request.peer).is_loopback
    except ValueError:
        return False


def _bad(description: str) -> OAuthError:
    return OAuthError("invalid_client_metadata", description)
