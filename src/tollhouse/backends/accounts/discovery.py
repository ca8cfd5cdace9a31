"""Who issues tokens for a server: its protected-resource metadata, and that issuer's own (RFC 9728, RFC 8414, MCP
authorization).

Rule: what the operator wrote is asked as it stands; where a document leads elsewhere the egress guard looks first, and
what is less safe than what named it is not used. What cannot do PKCE with S256 gets nobody's consent.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from tollhouse.backends.accounts.records import AccountRefused
from tollhouse.backends.accounts.settings import AccountSettings
from tollhouse.core.errors import Failure
from tollhouse.net.client import TLS, Client, Fetched
from tollhouse.net.issuer_metadata import metadata_urls, read_metadata, same_origin
from tollhouse.wire.oauth import OAuthError, canonical_resource, scope_of
from tollhouse.wire.oauth_client import ResourceMetadata, ServerMetadata, bearer_challenge, resource_metadata_urls

__all__ = ["Discovery", "Issuer", "Places"]

log = logging.getLogger("tollhouse.backends.accounts")

_LOOPBACK: Final = frozenset(("127.0.0.1", "::1", "localhost"))
_WHOLE: Final = 30.0  # seconds for all that is asked
_LARGEST: Final = 256 << 10
_FRESH: Final = 3600.0
_AGAIN: Final = 5.0
_JSON: Final = ((b"accept", b"application/json"),)
_PING: Final = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": "ping"})
_PINGING: Final = (
    (b"content-type", b"application/json"),
    (b"accept", b"application/json, text/event-stream"),
)
_UNKNOWN: Final = (
    "It could not be found out where people log in for this service. Try again later, or tell your operator."
)


class Issuer(NamedTuple):
    """Who issues tokens for a server, and how it is asked. resource: for the parameter of that name, "" for none.
    scopes: that are asked for. methods: of clients' authentication. refreshes: it knows refresh tokens. named: the
    issuers in the server's metadata, none where the operator has written who it is."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    revocation_endpoint: str
    registration_endpoint: str
    resource: str
    scopes: tuple[str, ...]
    methods: tuple[str, ...]
    refreshes: bool
    is_iss_sent: bool
    takes_documents: bool
    named: tuple[str, ...] = ()


class Places:
    """How URLs of others are reached. The operator's own (those in the settings, and what stands beside them) are
    asked as they are, all others through the egress guard. timeout: seconds for an answer."""

    def __init__(self, settings: AccountSettings, client: Client, timeout: float = 10.0) -> None:
        self._timeout = timeout
        self._client = client
        self._server = settings.url
        written = (
            settings.issuer, settings.authorization_endpoint, settings.token_endpoint, settings.revocation_endpoint,
        )  # fmt: skip
        self._written = tuple(url for url in (settings.url, *written) if url)
        self._tls = settings.tls
        self._ca = TLS(ca=settings.ca) if settings.ca else None
        if self._ca is not None:
            self._ca.context()  # a mistake shows when it is configured
        self._proxy = settings.proxy or None

    def guarded(self, url: str) -> bool:
        return not any(same_origin(own, url) for own in self._written)

    def flaw(self, url: str, than: str = "") -> str:
        """Why secrets are not sent to `url`, "" if they may be. than: who has named it."""
        split = urlsplit(url)
        if split.scheme == "https":
            return ""
        if than.startswith("https://"):
            return "it is less safe than who names it"
        if split.hostname in _LOOPBACK or not self.guarded(url):
            return ""
        return "it is not https"

    def _tls_for(self, url: str) -> TLS | None:
        if same_origin(self._server, url):
            return self._tls or self._ca
        return self._ca

    async def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Sequence[tuple[bytes, bytes]] = _JSON,
        body: bytes = b"",
        limit: int = _LARGEST,
    ) -> Fetched:
        """An answer, whatever its status; redirects are answers. Raises Failure 502, 504."""
        return await self._client.fetch(
            url,
            method=method,
            headers=headers,
            body=body,
            timeout=self._timeout,
            limit=limit,
            guarded=self.guarded(url),
            redirects=0,
            tls=self._tls_for(url),
            proxy=self._proxy,
        )

    async def metadata(self, issuer: str) -> ServerMetadata:
        """What an issuer says of itself. Raises ValueError, Failure."""
        fields = await read_metadata(
            self._client,
            issuer,
            metadata_urls(issuer),
            timeout=self._timeout,
            tls=self._tls_for(issuer),
            guarded=self.guarded(issuer),
            proxy=self._proxy,
        )
        return ServerMetadata.of(fields)


class Discovery:
    """The issuer of one server, looked up when it is needed and again after an hour. now: unix seconds."""

    def __init__(self, settings: AccountSettings, places: Places, now: Callable[[], float]) -> None:
        self._settings = settings
        self._places = places
        self._now = now
        self._known: Issuer | None = None
        self._read_at = -1e18
        self._found_at = -1e18  # which `forget` leaves
        self._failed_at = -1e18
        self._why = ""
        self._flight: asyncio.Task[None] | None = None

    @property
    def known(self) -> Issuer | None:
        """As far as it is known without asking anybody."""
        return self._known

    async def issuer(self) -> Issuer:
        """Raises AccountRefused where that cannot be found out."""
        now = self._now()
        if (self._known is None or now - self._read_at >= _FRESH) and now - self._failed_at >= _AGAIN:
            if self._flight is None:
                self._flight = asyncio.get_running_loop().create_task(self._look())
            await asyncio.wait((self._flight,))  # who leaves does not end it for the others
        if self._known is None:
            raise AccountRefused(f"who issues tokens for it cannot be found out: {self._why}", _UNKNOWN)
        return self._known

    async def left(self, issuer: str) -> bool:
        """Whether the server's metadata, as they are now, name others than `issuer`, one of whom can be used. Whoever
        cannot be reached has named nobody."""
        if self._now() - self._found_at >= _AGAIN:
            self.forget()
            try:
                await self.issuer()
            except AccountRefused:
                return False
        known = self._known
        if known is None or self._now() - self._found_at >= _AGAIN:
            return False
        return bool(known.named) and issuer.rstrip("/") not in {one.rstrip("/") for one in known.named}

    def forget(self) -> None:
        """What it said was found wrong: look again next time."""
        self._read_at = -1e18

    async def close(self) -> None:
        flight = self._flight
        if flight is not None:
            flight.cancel()
            await asyncio.wait((flight,))

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(_WHOLE):
                self._known = await self._found()
            self._read_at = self._found_at = self._now()
        except TimeoutError:
            self._failed(f"it took longer than {_WHOLE:g} seconds")
        except Failure as failure:
            self._failed(f"{failure.message} {failure.detail}".strip())
        except ValueError as error:
            self._failed(str(error))
        except Exception:  # the root of the looking task: whoever waits for it must get an answer
            self._failed("an error of the gateway's own")
            log.exception("looking for the issuer of the server %s failed", self._settings.server)
        finally:
            self._flight = None

    def _failed(self, why: str) -> None:
        self._why = why
        self._failed_at = self._now()
        log.warning("mcp server %s: who issues tokens for it cannot be found out: %s", self._settings.server, why)

    async def _found(self) -> Issuer:
        """Raises ValueError, Failure."""
        settings = self._settings
        told, resource = None, None
        if not settings.issuer or settings.scopes is None:
            told, resource = await self._resource()
        scopes = settings.scopes
        if scopes is None:
            scopes = told if told is not None else resource.scopes_supported if resource is not None else ()
        issuer = settings.issuer
        named = tuple(resource.authorization_servers) if not issuer and resource is not None else ()
        if named:
            issuer = named[0]
            flaw = self._places.flaw(issuer, settings.url)
            if flaw:
                raise ValueError(f"the issuer that its metadata names cannot be used: {flaw}")
        metadata = await self._metadata(issuer)
        where = {name: self._place(metadata, name) for name in ("authorization_endpoint", "token_endpoint")}
        for name in ("revocation_endpoint", "registration_endpoint"):
            where[name] = self._place(metadata, name, needed=False)
        grants = metadata.grant_types_supported
        if settings.scopes is None and "offline_access" in metadata.scopes_supported and "offline_access" not in scopes:
            scopes = (*scopes, "offline_access")
        return Issuer(
            issuer=metadata.issuer,
            **where,
            resource=self._resource_parameter(resource),
            scopes=tuple(scopes),
            methods=metadata.token_endpoint_auth_methods_supported,
            refreshes=grants is None or "refresh_token" in grants,
            is_iss_sent=metadata.authorization_response_iss_parameter_supported,
            takes_documents=metadata.client_id_metadata_document_supported,
            named=named,
        )

    # ---- the server
    async def _resource(self) -> tuple[tuple[str, ...] | None, ResourceMetadata | None]:
        """The scopes of its challenge, None where that has none, and its metadata, None where it has none (MCP,
        Protected Resource Metadata Discovery Requirements)."""
        url = self._settings.url
        named, scopes = await self._challenged() if self._settings.is_mcp else ("", None)
        places = (named,) if named else resource_metadata_urls(url)
        for place in places:
            try:
                fetched = await self._places.fetch(place)
            except Failure:
                if named:
                    raise
                continue
            if fetched.status == 200:
                return scopes, ResourceMetadata.parse(fetched.body, url)
            if named:
                raise ValueError(f"the metadata that its challenge names answered {fetched.status}")
        return scopes, None

    async def _challenged(self) -> tuple[str, tuple[str, ...] | None]:
        """The URL of the metadata, "" where nobody says it, and the scopes, as the server answers a request without
        credentials."""
        url = self._settings.url
        try:
            fetched = await self._places.fetch(url, method="POST", headers=_PINGING, body=_PING, limit=1 << 16)
        except Failure:  # the well-known places may answer all the same
            return "", None
        if fetched.status != 401:
            return "", None
        said = bearer_challenge(fetched.headers.get_all(b"www-authenticate"))
        named = said.get("resource_metadata", "")
        if named and self._places.flaw(named, url):
            named = ""
        try:
            scopes = scope_of(said["scope"]) if "scope" in said else None
        except OAuthError:
            scopes = None
        return named, scopes

    def _resource_parameter(self, resource: ResourceMetadata | None) -> str:
        wanted = self._settings.resource
        if wanted == "none":
            return ""
        if wanted != "server":
            return wanted
        return resource.resource if resource is not None else canonical_resource(self._settings.url)

    # ---- its issuer
    async def _metadata(self, issuer: str) -> ServerMetadata:
        settings = self._settings
        if settings.authorization_endpoint and settings.token_endpoint and settings.client_id:
            # Nothing needs to be asked; where there is no document its issuer is as the operator says.
            return ServerMetadata(settings.issuer, code_challenge_methods_supported=("S256",))
        if issuer:
            metadata = await self._spelled(issuer)
        else:  # servers of 2025-03-26 are their own issuers
            split = urlsplit(settings.url)
            metadata = await self._spelled(f"{split.scheme}://{split.netloc}")
        methods = metadata.code_challenge_methods_supported
        # Some that can do it do not say so (Entra): there the operator's word that they are meant is needed.
        if (methods is None and not settings.issuer) or (methods is not None and "S256" not in methods):
            raise ValueError(
                f"{metadata.issuer} does not say that it can do PKCE with S256 (`code_challenge_methods_supported`); "
                "where it can, name it in `oauth.issuer`"
            )
        return metadata

    async def _spelled(self, issuer: str) -> ServerMetadata:
        """The metadata of an issuer which is the same with a lone slash at its end and without."""
        try:
            return await self._places.metadata(issuer)
        except ValueError:
            if urlsplit(issuer).path not in ("", "/") or self._settings.issuer:
                raise
            return await self._places.metadata(issuer[:-1] if issuer.endswith("/") else issuer + "/")

    def _place(self, metadata: ServerMetadata, name: str, *, needed: bool = True) -> str:
        """One of its endpoints, as the operator says or else the document. Raises ValueError."""
        written: str = getattr(self._settings, name, "")
        if written:
            return written
        said: str = getattr(metadata, name)
        if not said and needed:
            raise ValueError(f"the metadata of {metadata.issuer} has no `{name}`")
        flaw = self._places.flaw(said, metadata.issuer) if said else ""
        if flaw and needed:
            raise ValueError(f"the `{name}` of {metadata.issuer} cannot be used: {flaw}")
        return "" if flaw else said
