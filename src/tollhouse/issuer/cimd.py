"""Client id metadata documents: a client_id that is the URL of a document about the client.

Rule: the URL comes from whoever asks, so it is fetched only through the egress guard, once for all who wait, without
redirects, within a size and a time; and the document must say the same URL, byte for byte. What was wrong is
remembered for a while, too, so that nobody makes us ask on and on; and neither an address nor a host that is slow can
have so many on their way that none is left for others.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import msgspec

from tollhouse.core.depth import decode
from tollhouse.core.errors import Failure
from tollhouse.core.places import Places
from tollhouse.issuer.spec import BY_USERS, GRANTS, RegistrationSpec
from tollhouse.net.client import Client as Fetcher
from tollhouse.net.client import Fetched
from tollhouse.wire.client_metadata import ClientMetadata
from tollhouse.wire.jose import Keys
from tollhouse.wire.oauth import OAuthError, is_loopback_redirect

__all__ = ["Documents", "document_flaw"]

_LARGEST: Final = 10 << 10
_TIMEOUT: Final = 5.0
_SHORTEST: Final = 300.0
_LONGEST: Final = 86400.0
_BAD: Final = 30.0  # seconds that a document is not asked for again
_LIMIT: Final = 1000
_FLIGHTS: Final = 32
_OF_ADDRESS: Final = 8
_OF_HOST: Final = 4
_MAX_AGE = re.compile(rb"(?:\A|[,\s])max-age\s*=\s*\"?(\d{1,9})")
_GRANTS: Final = BY_USERS | {GRANTS["jwt_bearer"]}


class Documents:
    """Documents by their URL, at most a thousand. now: unix seconds."""

    __slots__ = ("_fetcher", "_flights", "_hosts", "_kept", "_now", "_places", "_spec")

    def __init__(self, spec: RegistrationSpec, fetcher: Fetcher, now: Callable[[], float]) -> None:
        self._spec = spec
        self._fetcher = fetcher
        self._now = now
        self._kept: dict[str, tuple[float, ClientMetadata | str]] = {}  # until when; what is wrong, where it is text
        self._flights: dict[str, asyncio.Task[tuple[float, ClientMetadata | str]]] = {}
        self._places = Places(_FLIGHTS, _OF_ADDRESS)
        self._hosts: dict[str, Places] = {}  # of which documents are on their way

    async def get(self, url: str, address: str = "") -> ClientMetadata:
        """What the document at `url`, a client_id, says. address: who asks, as limits know it; "" for who has shown
        already that he is no stranger. Raises OAuthError `invalid_client`, 503 `temporarily_unavailable`."""
        kept = self._kept.get(url)
        if kept is None or kept[0] <= self._now():
            flaw = document_flaw(url, self._spec)
            if flaw:
                raise _bad(flaw)
            kept = await self._wait(url, address)
        if isinstance(kept[1], str):
            raise _bad(kept[1])
        return kept[1]

    async def close(self) -> None:
        """Give up what is being fetched."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        if flights:
            await asyncio.wait(flights)

    async def _wait(self, url: str, address: str) -> tuple[float, ClientMetadata | str]:
        flight = self._flights.get(url)
        if flight is None:
            host = (urlsplit(url).hostname or "").lower()
            of_host = self._hosts.get(host) or Places(_OF_HOST, 1)
            if not self._places.take(address):
                raise _busy()
            if not of_host.take(address):
                self._places.give(address)
                raise _busy()
            self._hosts[host] = of_host

            def landed(_: object) -> None:
                self._flights.pop(url, None)
                self._places.give(address)
                of_host.give(address)
                if not of_host.taken:
                    del self._hosts[host]

            flight = self._flights[url] = asyncio.get_running_loop().create_task(self._fetch(url))
            flight.add_done_callback(landed)
        # Shielded: who leaves must not take the document from others who wait for it.
        return await asyncio.shield(flight)

    async def _fetch(self, url: str) -> tuple[float, ClientMetadata | str]:
        found: ClientMetadata | str
        ttl = _BAD
        try:
            fetched = await self._fetcher.fetch(
                url,
                headers=((b"accept", b"application/json"),),
                timeout=_TIMEOUT,
                limit=_LARGEST,
                guarded=True,
                redirects=0,
            )
            found = _checked(url, fetched, self._spec)
            ttl = _freshness(fetched)
        except Failure as failure:
            found = "its metadata document cannot be fetched"
            if failure.code == "egress_refused":
                found = "its metadata document is at an address that is not public"
        except ValueError as error:
            found = f"its metadata document cannot be used: {error}"
        self._kept.pop(url, None)
        self._kept[url] = kept = (self._now() + ttl, found)
        while len(self._kept) > _LIMIT:
            del self._kept[next(iter(self._kept))]
        return kept


def document_flaw(url: str, spec: RegistrationSpec) -> str:
    """What is wrong with a client_id that should be the URL of a document; "" if nothing is."""
    wrong = "its id is no URL of a metadata document: https, with a path, without user, fragment and dot segments"
    if len(url) > 1024 or re.search(r"[^!-~]|[\\#\"<>^`{|}]", url):
        return wrong
    try:
        split = urlsplit(url)
        _ = split.port
    except ValueError:
        return wrong
    path = split.path
    if split.scheme != "https" or not split.hostname or "@" in split.netloc or path in ("", "/"):
        return wrong
    if any(part.lower().replace("%2e", ".") in (".", "..") for part in path.split("/")):
        return wrong
    hosts = spec.document_hosts
    if hosts and not any(_is_of(split.hostname, host) for host in hosts):
        return "metadata documents of that host are not accepted here"
    return ""


def _is_of(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _checked(url: str, fetched: Fetched, spec: RegistrationSpec) -> ClientMetadata:
    """Raises ValueError."""
    if fetched.status != 200:
        raise ValueError(f"it was answered {fetched.status}")
    kind = (fetched.headers.get(b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        raise ValueError("it is not JSON")
    value = decode(fetched.body, 16)
    if not isinstance(value, dict) or value.get("client_id") != url:
        raise ValueError("its `client_id` is not its URL, letter by letter")
    if "client_secret" in value or "client_secret_expires_at" in value:
        raise ValueError("it has a secret, and everybody can read it")
    metadata = ClientMetadata.parse(fetched.body)
    if not metadata.client_name:
        raise ValueError("it has no `client_name`")
    if metadata.token_endpoint_auth_method not in (None, "none", "private_key_jwt"):
        raise ValueError("its `token_endpoint_auth_method` is neither none nor private_key_jwt")
    has_keys = metadata.jwks is not None or metadata.jwks_uri
    if metadata.token_endpoint_auth_method == "private_key_jwt" and not has_keys:
        raise ValueError("private_key_jwt needs `jwks` or `jwks_uri`")
    if metadata.jwks is not None:
        Keys.parse(msgspec.json.encode(metadata.jwks))
    if metadata.jwks_uri and not metadata.jwks_uri.startswith("https://"):
        raise ValueError("`jwks_uri` is not https")
    if not frozenset(metadata.grant_types) & _GRANTS:
        raise ValueError("it has none of the grants that such a client can have")
    if "authorization_code" in metadata.grant_types and not metadata.redirect_uris:
        raise ValueError("it has no `redirect_uris`")
    own = (urlsplit(url).hostname or "").lower()
    for uri in (*metadata.redirect_uris, *metadata.post_logout_redirect_uris):
        _check_redirect(uri, own, spec)
    return metadata


def _check_redirect(uri: str, own: str, spec: RegistrationSpec) -> None:
    """Raises ValueError: a document of one host must not send codes to another's."""
    if is_loopback_redirect(uri):
        return
    split = urlsplit(uri)
    if split.scheme.lower() in ("http", "https"):
        host = (split.hostname or "").lower()
        if host != own and host not in spec.redirect_hosts:
            raise ValueError("a redirect leads to another host, which the operator has not allowed")
    elif "." not in split.scheme:
        raise ValueError("a scheme of its own must be a domain name in reverse (RFC 8252 section 7.1)")


def _freshness(fetched: Fetched) -> float:
    """Seconds (RFC 9111), within bounds: what is never fresh is not asked for at each request either."""
    control = b",".join(fetched.headers.get_all(b"cache-control")).lower()
    match = _MAX_AGE.search(control)
    if match is None or b"no-store" in control or b"no-cache" in control:
        return _SHORTEST
    return min(max(float(match[1]), _SHORTEST), _LONGEST)


def _busy() -> OAuthError:
    return OAuthError("temporarily_unavailable", "too many clients are looked up; try again soon", 503)


def _bad(why: str) -> OAuthError:
    return OAuthError("invalid_client", f"the client cannot be used: {why}")
