"""What an issuer says of itself: its metadata document (OpenID Connect Discovery section 4, RFC 8414 section 3).

Rule: a document counts only if it names the very issuer it was asked about, letter by letter (RFC 8414 section 3.3);
else whoever can have one served could put his own keys in another issuer's place. The issuer's URL is the operator's
word; where the document leads to another origin, the egress guard looks first.
"""

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from tollhouse.core.depth import decode
from tollhouse.core.errors import Failure
from tollhouse.net.client import TLS, Client
from tollhouse.net.jwks import Document, Load, from_url

__all__ = ["Metadata", "from_metadata", "metadata_urls", "read_metadata", "same_origin", "usable_endpoint"]

_MAX_DOCUMENT = 256 << 10
_LONGEST_URL = 2048
_KEPT = 3600.0
_ACCEPT = ((b"accept", b"application/json"),)


def metadata_urls(issuer: str) -> tuple[str, ...]:
    """Where the document of `issuer` may be, in the order of asking (MCP authorization, Server Metadata Discovery)."""
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    if not path:
        return f"{origin}/.well-known/oauth-authorization-server", f"{origin}/.well-known/openid-configuration"
    return (
        f"{origin}/.well-known/oauth-authorization-server{path}",
        f"{origin}/.well-known/openid-configuration{path}",
        f"{origin}{path}/.well-known/openid-configuration",
    )


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs lead to one place."""
    a, b = urlsplit(one), urlsplit(other)
    return (a.scheme, a.netloc.lower()) == (b.scheme, b.netloc.lower())


async def read_metadata(
    client: Client,
    issuer: str,
    urls: Iterable[str],
    *,
    timeout: float = 10.0,
    tls: TLS | None = None,
    guarded: bool = False,
    proxy: str | None = None,
) -> dict[str, Any]:
    """The document of `issuer`, at the first of `urls` that has one. timeout: seconds for each. guarded: it is not the
    operator who has named the issuer. Raises ValueError where there is none, or another issuer's; Failure where nothing
    can be read."""
    last: Failure | ValueError = ValueError(f"{issuer} has no metadata document")
    for url in urls:
        try:
            fetched = await client.fetch(
                url,
                headers=_ACCEPT,
                timeout=timeout,
                limit=_MAX_DOCUMENT,
                guarded=guarded,
                tls=tls,
                proxy=proxy,
            )
        except Failure as failure:
            last = failure
            continue
        if fetched.status != 200:
            last = ValueError(f"{url} answered {fetched.status}")
            continue
        fields = decode(fetched.body)
        if not isinstance(fields, dict):
            raise ValueError(f"{url} is not a JSON object")
        if fields.get("issuer") != issuer:
            raise ValueError(f"{url} is the document of another issuer")
        return fields
    raise last


def usable_endpoint(fields: dict[str, Any], issuer: str, name: str) -> str:
    """The URL that a document of `issuer` has under `name`. Raises ValueError where it has none, or one that is less
    safe than the issuer's."""
    url = fields.get(name)
    if not isinstance(url, str) or not url.startswith(("https://", "http://")) or len(url) > _LONGEST_URL:
        raise ValueError(f"the metadata of {issuer} has no usable `{name}`")
    if issuer.startswith("https:") and not url.startswith("https:"):
        raise ValueError(f"the metadata of {issuer} names a `{name}` without TLS")
    return url


class Metadata:
    """The document of one issuer, read again after an hour, or once what it says was found wrong (`forget`)."""

    def __init__(self, client: Client, issuer: str, clock: Callable[[], float] = monotonic) -> None:
        self.issuer = issuer
        self._client = client
        self._clock = clock
        self._fields: dict[str, Any] | None = None
        self._until = -1e18

    async def endpoint(self, name: str) -> str:
        """A URL that it names. Raises ValueError where it has none, or one that is less safe than the issuer's;
        Failure where nothing can be read."""
        fields = self._fields
        if fields is None or self._clock() >= self._until:
            fields = self._fields = await read_metadata(self._client, self.issuer, metadata_urls(self.issuer))
            self._until = self._clock() + _KEPT
        return usable_endpoint(fields, self.issuer, name)

    def forget(self) -> None:
        self._until = -1e18


def from_metadata(client: Client, metadata: Metadata) -> Load:
    """The keys at `jwks_uri`."""

    async def load() -> Document:
        url = await metadata.endpoint("jwks_uri")
        try:
            return await from_url(client, url, guarded=not same_origin(url, metadata.issuer))()
        except (Failure, ValueError):
            metadata.forget()  # it may be elsewhere by now
            raise

    return load
