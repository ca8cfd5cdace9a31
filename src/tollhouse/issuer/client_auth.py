"""How a client proves who it is: by the one method it is registered with (RFC 6749 section 2.3, RFC 7523, RFC 8705).

Rule: a client that is not known and one that does not prove itself hear the same, after the same work. Secrets are
random and long, so a fast digest keeps them; they are compared in constant time. Who fails often waits.
"""

import re
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from cryptography import x509

from tollhouse.core.http import Request
from tollhouse.issuer.clients import Client, Clients
from tollhouse.issuer.counts import Counts
from tollhouse.issuer.records import Replay
from tollhouse.issuer.spec import TLS_METHODS
from tollhouse.issuer.throttle import Throttle, address_of
from tollhouse.store.table import Table
from tollhouse.wire.jose import Token, check_claims, verify
from tollhouse.wire.oauth import Form, OAuthError, Presented, certificate_thumbprint, presented, unauthenticated

__all__ = ["ClientAuth"]

_NOBODY: Final = sha256(b"").digest()  # of no secret: the shortest has a character
_ALGORITHMS: Final = ("ES256", "ES384", "ES512", "RS256", "PS256", "EdDSA", "Ed25519")
_TYPES: Final = (None, "jwt", "client-authentication+jwt")
_LONGEST: Final = 300.0
_FAILURES_OF_ADDRESS: Final = 300
_LEEWAY: Final = 30.0
_JTI: Final = re.compile(r"[!-~]{1,256}")
_WRONG: Final = "the client is not known, or did not prove who it is"


class ClientAuth:
    """audiences: the issuer, and its token endpoint. certificate: what a client showed when it connected, in DER, or
    b"". now: unix seconds."""

    __slots__ = (
        "_addresses",
        "_certificate",
        "_clients",
        "_counts",
        "_issuer",
        "_now",
        "_replays",
        "_throttle",
        "_token_endpoint",
    )

    def __init__(
        self,
        clients: Clients,
        replays: Table[Replay],
        throttle: Throttle,
        now: Callable[[], float],
        *,
        issuer: str,
        token_endpoint: str,
        certificate: Callable[[Request], bytes],
        counts: Counts = Counts(),  # noqa: B008 - a value
    ) -> None:
        self._clients = clients
        self._replays = replays
        self._throttle = throttle
        # Many clients may share an address, and one that is set up wrongly must not keep the others out.
        self._addresses = Throttle(now, _FAILURES_OF_ADDRESS)
        self._now = now
        self._issuer = issuer
        self._token_endpoint = token_endpoint
        self._certificate = certificate
        self._counts = counts

    async def authenticate(self, request: Request, form: Form) -> Client:
        """Who asks. Raises OAuthError `invalid_client`, `invalid_request`; 429 for who failed too often; Failure 503
        while what it takes cannot be read."""
        shown = presented(request.headers.get_all(b"authorization"), form)
        address = address_of(request)
        keys = (f"{shown.client_id}\0{address}",)
        wait = max(self._throttle.wait(keys), self._addresses.wait((address,)))
        if wait > 0.0:
            self._counts.throttled("client")
            raise OAuthError(
                "invalid_client",
                "too many failures; try again later",
                429,
                ((b"retry-after", b"%d" % (int(wait) + 1)),),
            )
        try:
            client = await self._clients.find(shown.client_id, address)
        except OAuthError as error:  # a document that cannot be used
            if error.status != 503:
                self._failed(keys, address)
            raise
        flaw = await self._flaw(client, shown, request)
        if flaw or client is None:
            self._failed(keys, address)
            raise unauthenticated(_WRONG, detail=f"client authentication: {flaw}")
        return client

    def _failed(self, keys: tuple[str], address: str) -> None:
        self._throttle.failed(keys)
        self._addresses.failed((address,))

    async def _flaw(self, client: Client | None, shown: Presented, request: Request) -> str:
        """What is wrong with a client's proof, for the operator; "" where it holds."""
        method = shown.method
        if method in ("client_secret_basic", "client_secret_post"):
            known = client is not None and client.auth_method in (method, "secret") and bool(client.secret_hash)
            digest = client.secret_hash if client is not None and known else _NOBODY
            if compare_digest(sha256(shown.secret.encode()).digest(), digest) and known:
                return ""
            return "the secret is not the client's" if known else "nobody is registered with that id and method"
        if client is None:
            return "nobody is registered with that id"
        if method == "private_key_jwt":
            if client.auth_method != method:
                return "the client is registered with another method"
            return await self._assertion_flaw(client, shown.assertion)
        if client.auth_method == "none":
            return ""
        if client.auth_method in TLS_METHODS:
            return "" if _has_shown(client, self._certificate(request)) else "the certificate is not the client's"
        return "the client is registered with another method"

    async def _assertion_flaw(self, client: Client, token: Token | None) -> str:
        """RFC 7523 section 3: for us alone, for a short time, once."""
        if token is None or client.keys is None:
            return "the client has no keys"
        now = self._now()
        audience = self._token_endpoint if client.assertion_audience == "token_endpoint" else self._issuer
        claims = token.claims
        if claims.get("aud") != audience:  # one text: a list could hold another server, which would use it against us
            return f"the assertion's `aud` is not {audience}, as one text"
        typ = None if token.typ is None else token.typ.lower().removeprefix("application/")
        types = None if typ is None else (typ,)
        flaw = check_claims(token, issuer=client.id, audiences=(audience,), now=now, leeway=_LEEWAY, types=types)
        exp, jti = claims.get("exp"), claims.get("jti")
        if flaw is not None:
            return f"the assertion: {flaw.value}"
        if typ not in _TYPES or not isinstance(jti, str) or _JTI.fullmatch(jti) is None:
            return "the assertion has another `typ`, or no `jti`"
        if not isinstance(exp, int | float) or exp > now + _LONGEST + _LEEWAY:
            return "the assertion is good for more than five minutes"
        flaw = verify(token, await client.keys.keys(token), _ALGORITHMS)
        if flaw is not None:
            return f"the assertion: {flaw.value}"
        is_new = await self._replays.add(f"{client.id}\0{jti}", Replay(), exp - now + 2 * _LEEWAY)
        if is_new:
            return ""
        self._counts.replayed("client_assertion")
        return "the assertion was used before"


def _has_shown(client: Client, certificate: bytes) -> bool:
    if not certificate:
        return False
    if client.auth_method == "self_signed_tls_client_auth":
        return compare_digest(certificate_thumbprint(certificate), client.tls_thumbprint)
    try:
        subject = x509.load_der_x509_certificate(certificate).subject
        return bool(client.tls_subject) and subject == x509.Name.from_rfc4514_string(client.tls_subject)
    except ValueError:
        return False
