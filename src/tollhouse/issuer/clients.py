"""Clients: who may ask for tokens. From the configuration, registered by themselves, or known by a document.

Rule: a client_id belongs to one source, which its form says, so that nobody can take the place of another: what is in
the configuration is that; what we made ourselves begins as we make it; a URL is a document.
"""

from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from urllib.parse import urlsplit

import msgspec

from tollhouse.core.errors import Failure
from tollhouse.issuer.cimd import Documents
from tollhouse.issuer.records import Registration
from tollhouse.issuer.spec import (
    BY_USERS,
    GRANTS,
    REGISTERED,
    ClientSpec,
    ExchangeTargetSpec,
    RegistrationSpec,
    are_native,
)
from tollhouse.net.client import Client as Fetcher
from tollhouse.net.jwks import FixedKeys, KeySource, key_source
from tollhouse.store.base import KeyValue
from tollhouse.store.table import Table
from tollhouse.wire.client_metadata import ClientMetadata
from tollhouse.wire.oauth import OAuthError, scope_of

__all__ = ["Client", "Clients", "ExchangeTarget", "is_native"]

_DAY = 86400.0
_KEPT = 1000


class ExchangeTarget(msgspec.Struct, frozen=True):
    """audience: a URI, URI#tool, or URI#* for each of its tools. scopes: each that may be minted and those of the
    subject's that it needs; None: the subject's own. ttl: seconds, None for the usual ones."""

    audience: str
    scopes: dict[str, frozenset[str]] | None
    ttl: float | None
    delegation: bool


class Client(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """grants: by `grant_type`. host: whom people deal with: of its document, else of its first redirect. scopes: None
    for any. audiences: None for any of ours. auth_method: as registered; "secret" where a secret may come either way.
    verified: the operator vouches for its name."""

    id: str
    name: str = ""
    host: str = ""
    source: str = "config"
    verified: bool = True
    auth_method: str = "none"
    secret_hash: bytes = b""
    keys: KeySource | FixedKeys | None = None
    assertion_audience: str = "issuer"
    tls_subject: str = ""
    tls_thumbprint: str = ""
    redirect_uris: tuple[str, ...] = ()
    post_logout_redirect_uris: tuple[str, ...] = ()
    backchannel_logout_uri: str = ""
    native: bool = False
    grants: frozenset[str] = frozenset()
    scopes: frozenset[str] | None = None
    default_scopes: tuple[str, ...] | None = None
    audiences: frozenset[str] | None = None
    serves: frozenset[str] = frozenset()
    token_exchange: tuple[ExchangeTarget, ...] = ()
    require_par: bool = False
    dpop_bound: bool = False
    access_ttl: float | None = None

    @property
    def public(self) -> bool:
        """It cannot prove who it is."""
        return self.auth_method == "none"

    def must(self, grant: str) -> None:
        """Raises OAuthError `unauthorized_client` without the grant."""
        if grant not in self.grants:
            raise OAuthError("unauthorized_client", "this client may not use that grant")

    def may_target(self, audience: str) -> bool:
        """Whether its tokens may be for that resource."""
        return self.audiences is None or audience in self.audiences

    def must_target(self, audience: str) -> None:
        """Raises OAuthError `invalid_target` where they may not."""
        if not self.may_target(audience):
            raise OAuthError("invalid_target", "this client may not have tokens for that resource")


class Clients:
    """All clients of one issuer. Registrations and documents are kept in the state."""

    def __init__(
        self,
        specs: tuple[ClientSpec, ...],
        registration: RegistrationSpec,
        *,
        values: KeyValue,
        fetcher: Fetcher,
        now: Callable[[], float],
        keys_read: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._registration = registration
        self._fetcher = fetcher
        self._keys_read = keys_read
        self._now = now
        self._configured = {spec.id: self._of_spec(spec) for spec in specs}
        self._registered = Table(values, "iss:cl:", Registration)
        self._documents = Documents(registration, fetcher, now) if registration.metadata_documents == "on" else None
        self._made: dict[str, tuple[object, Client]] = {}  # id -> what it was made of, and it
        self._renewed: dict[str, float] = {}  # id -> when its registration was last known to be written

    def configured(self, client_id: str) -> Client | None:
        """One of the configuration. It is found without asking anybody."""
        return self._configured.get(client_id)

    async def find(self, client_id: str, address: str = "") -> Client | None:
        """The client of that id. address: who asks, as limits know it; "" where a user or the client itself has been
        here already. Raises Failure 503 while a registration cannot be read, OAuthError `invalid_client` for a document
        that cannot be used."""
        client = self._configured.get(client_id)
        if client is not None:
            return client
        if client_id.startswith(REGISTERED):
            held = await self._registered.get(client_id) if self._registration.dynamic != "off" else None
            if held is None:
                return None
            record = held.value
            made_of = (record.secret_hash, record.metadata)
            return await self._remembered(client_id, made_of, lambda: self._of_registration(client_id, record))
        if self._documents is not None and client_id.startswith("https://"):
            metadata = await self._documents.get(client_id, address)
            return await self._remembered(client_id, metadata, lambda: self._of_document(client_id, metadata))
        return None

    async def used(self, client: Client) -> None:
        """A user has let it in, or it acts for one: a client that has registered lives on by that, and by nothing that
        strangers can do. What cannot be written now is written at its next use."""
        now = self._now()
        if client.source != "registered" or now - self._renewed.get(client.id, now - _DAY) < _DAY:
            return
        try:
            held = await self._registered.get(client.id)
            at = now
            if held is not None and now - held.value.at < _DAY:
                at = held.value.at
            elif held is not None:  # who loses the race was as late as the winner
                record = msgspec.structs.replace(held.value, at=now)
                await self._registered.swap(held, record, self._registration.unused)
        except Failure:
            return
        self._renewed.pop(client.id, None)
        self._renewed[client.id] = at
        while len(self._renewed) > _KEPT:
            del self._renewed[next(iter(self._renewed))]

    async def add(self, client_id: str, metadata: ClientMetadata, secret_hash: str) -> bool:
        """Keep what a client registered: whether the id was free."""
        record = Registration(msgspec.to_builtins(metadata), secret_hash, self._now())
        return await self._registered.add(client_id, record, self._registration.unused)

    async def close(self) -> None:
        """Give up what is being fetched."""
        for client in (*self._configured.values(), *(client for _, client in self._made.values())):
            if client.keys is not None:
                await client.keys.close()
        if self._documents is not None:
            await self._documents.close()

    async def _remembered(self, client_id: str, made_of: object, make: Callable[[], Client]) -> Client:
        """A client has a key source that is to be kept while the client stays what it is, and given up with it."""
        made = self._made.pop(client_id, None)
        gone: list[Client] = []
        if made is None or made[0] != made_of:
            if made is not None:
                gone.append(made[1])
            made = (made_of, make())
        self._made[client_id] = made
        while len(self._made) > _KEPT:
            gone.append(self._made.pop(next(iter(self._made)))[1])
        for client in gone:
            if client.keys is not None:
                await client.keys.close()
        return made[1]

    def _of_spec(self, spec: ClientSpec) -> Client:
        secret = b""
        if spec.secret is not None:
            secret = sha256(spec.secret.get_secret_value().encode()).digest()
        elif spec.secret_hash is not None:
            secret = bytes.fromhex(spec.secret_hash)
        thumbprint = ""
        if spec.tls_thumbprint is not None:
            thumbprint = urlsafe_b64encode(bytes.fromhex(spec.tls_thumbprint)).rstrip(b"=").decode()
        return Client(
            id=spec.id,
            name=spec.name or spec.id,
            host=_host(spec.redirect_uris),
            auth_method=spec.method,
            secret_hash=secret,
            keys=None
            if spec.jwks is None
            else key_source(spec.jwks, self._fetcher, self._now, guarded=False, told=self._keys_read),
            assertion_audience=spec.assertion_audience,
            tls_subject=spec.tls_subject or "",
            tls_thumbprint=thumbprint,
            redirect_uris=spec.redirect_uris,
            post_logout_redirect_uris=spec.post_logout_redirect_uris,
            backchannel_logout_uri=spec.backchannel_logout_uri or "",
            native=spec.is_native,
            grants=frozenset(GRANTS[grant] for grant in spec.grants),
            scopes=None if spec.scopes is None else frozenset(spec.scopes),
            default_scopes=spec.default_scopes,
            audiences=None if spec.audiences is None else frozenset(spec.audiences),
            serves=frozenset(spec.serves),
            token_exchange=tuple(map(_target, spec.token_exchange.targets)) if spec.token_exchange is not None else (),
            require_par=spec.require_par,
            dpop_bound=spec.dpop_bound,
            access_ttl=spec.access_ttl,
        )

    def _of_registration(self, client_id: str, record: Registration) -> Client:
        metadata = msgspec.convert(record.metadata, ClientMetadata)
        host = _host(metadata.redirect_uris)
        return self._of_metadata(client_id, metadata, host, "registered", bytes.fromhex(record.secret_hash))

    def _of_document(self, client_id: str, metadata: ClientMetadata) -> Client:
        host = urlsplit(client_id).hostname or ""
        return self._of_metadata(client_id, metadata, host, "document", b"")

    def _of_metadata(
        self, client_id: str, metadata: ClientMetadata, host: str, source: str, secret_hash: bytes
    ) -> Client:
        scopes = self._registration.scopes
        allowed = None if scopes is None else frozenset(scopes)
        # What it names it gets when it asks for nothing. It bounds nothing: nobody has looked at it, and agents learn
        # only later what their calls need.
        named = scope_of(metadata.scope) if metadata.scope else None
        place = metadata.jwks if metadata.jwks is not None else metadata.jwks_uri
        grants = BY_USERS  # what those may have that nobody has configured
        method = metadata.token_endpoint_auth_method or "none"
        if source == "document" and method == "private_key_jwt":
            grants |= {GRANTS["jwt_bearer"]}  # enterprise-managed authorization: an issuer that we trust vouches
        return Client(
            id=client_id,
            name=metadata.client_name or host,
            host=host,
            source=source,
            verified=False,
            auth_method=method,
            secret_hash=secret_hash,
            keys=key_source(place, self._fetcher, self._now, guarded=True, told=self._keys_read) if place else None,
            redirect_uris=metadata.redirect_uris,
            post_logout_redirect_uris=metadata.post_logout_redirect_uris,
            native=is_native(metadata),
            grants=grants & frozenset(metadata.grant_types),
            scopes=allowed,
            default_scopes=named,
            require_par=metadata.require_pushed_authorization_requests,
            dpop_bound=metadata.dpop_bound_access_tokens,
        )


def is_native(metadata: ClientMetadata) -> bool:
    """Whether it is a program on people's own machines."""
    if metadata.application_type:
        return metadata.application_type == "native"
    return are_native(metadata.redirect_uris)


def _host(uris: tuple[str, ...]) -> str:
    return next((urlsplit(uri).hostname or "" for uri in uris), "")


def _target(spec: ExchangeTargetSpec) -> ExchangeTarget:
    scopes = None if spec.scopes is None else {scope: frozenset(needs) for scope, needs in spec.scopes.items()}
    return ExchangeTarget(spec.audience, scopes, spec.ttl, spec.mode == "delegation")
