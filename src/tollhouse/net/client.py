"""The HTTP/1.1 client: pools for traffic, and `fetch` for documents.

Rule: a pool is its owner's alone, a bulkhead: nobody else takes its connections or changes its limit. Who wants to
share one across configurations shares the owner. A document is fetched on a connection of its own, and what comes
from outside (its URL, where it redirects to) passes the egress guard, whose checked addresses are the ones that are
dialled.
"""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from urllib.parse import urljoin
from weakref import WeakSet

import msgspec

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers
from tollhouse.net.connect import TLS, Address, Connector, Lookup, Origin, OriginError
from tollhouse.net.egress import Egress
from tollhouse.net.exchange import Exchange, Until
from tollhouse.net.pool import Pool

__all__ = ["TLS", "Client", "Exchange", "Fetched", "Origin", "OriginError", "Pool", "Until"]

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_FORBIDDEN = frozenset(b"\r\n\0")
_FOR_ALL = frozenset((b"accept", b"accept-language", b"user-agent"))
"""What another origin may be told, too. Any other field may be a credential, whatever its name."""


class Fetched(msgspec.Struct):
    """A document: status and headers of the last answer, the body without its content coding, the URL it came from
    after redirects."""

    status: int
    headers: Headers
    body: bytes
    url: str


_LATER = 1.0  # seconds by which an exchange would end after its fetch, which says what was fetched


class Client:
    """Connections to everything.

    egress: the guard for URLs from outside; by default it allows public addresses only. on_connect(transport,
    seconds): called for each new connection, transport "plaintext" or "tls". lookup: resolves names, instead of the
    system.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        egress: Egress | None = None,
        on_connect: Callable[[str, float], None] | None = None,
        lookup: Lookup | None = None,
    ) -> None:
        self._clock = clock
        self._egress = egress or Egress()
        self._connector = Connector(on_connect, lookup)
        self._pools: WeakSet[Pool] = WeakSet()  # to be cut at the end; they are their owners'

    def pool(self, origin: Origin, limit: int = 512) -> Pool:
        """A new pool for the caller, who holds it and retires it in the end; one that is only dropped ends with its
        last connection. limit: of open connections. Nothing is opened yet. Raises OriginError when the TLS files or
        the proxy of `origin` cannot be used."""
        self._connector.prepare(origin)
        pool = Pool(origin, self._connector, self._clock, limit=limit)
        self._pools.add(pool)
        return pool

    async def fetch(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        timeout: float = 10.0,
        limit: int = 1 << 20,
        guarded: bool = True,
        redirects: int = 5,
        tls: TLS | None = None,
        proxy: str | None = None,
    ) -> Fetched:
        """Get a document.

        guarded: the URL comes from outside and passes the egress guard; False for an operator's own. Redirects of GET
        and HEAD are followed, `redirects` at most and never from https to http; one to another origin passes the
        guard in any case, and is told what is wanted but nothing else: no credentials, no `tls`. timeout: seconds for
        everything. limit: bytes of the body, as sent and decoded. proxy: an outbound HTTP proxy; it is asked for the
        checked address.
        Raises Failure 502 (code "egress_refused" from the guard) or 504; a status of 400 or more is not a failure.
        """
        _check_fields(method, headers)
        try:
            async with asyncio.timeout(timeout):
                return await self._follow(
                    url, method, list(headers), body, timeout + _LATER, limit, guarded, redirects, tls, proxy
                )
        except TimeoutError:
            message = "the document did not come in time"
            place = url.partition("?")[0]  # there may be a key in its query, and this is logged
            raise Failure(504, Reason.TIMEOUT, message, detail=place, retry=True, sent=True) from None

    async def close(self) -> None:
        """Cut every connection of every pool that is left."""
        for pool in list(self._pools):
            pool.close()
        await self._connector.close()
        await asyncio.sleep(0)  # connection_lost comes a turn later
        await asyncio.sleep(0)

    async def _follow(
        self,
        url: str,
        method: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        timeout: float,
        limit: int,
        guarded: bool,
        redirects: int,
        tls: TLS | None,
        proxy: str | None,
    ) -> Fetched:
        deadline = monotonic() + timeout
        origin, path = self._origin(url, guarded, tls, proxy)
        for _ in range(redirects + 1):
            addresses = await self._checked(origin) if guarded else None
            pool = Pool(origin, self._connector, self._clock, limit=1, addresses=addresses)
            try:
                exchange = await pool.exchange(
                    _head(origin, path, method, headers, body),
                    body,
                    method=method.encode("ascii"),
                    until=Until.HEAD,
                    deadline=deadline,
                    first_byte=timeout,
                    idle=timeout,
                    connect=timeout,
                )
                location = exchange.headers.get(b"location")
                if exchange.status not in _REDIRECTS or location is None or method not in ("GET", "HEAD"):
                    content = await exchange.read(limit)
                    return Fetched(exchange.status, exchange.headers, content, url)
            finally:
                pool.close()
            url = urljoin(url, location.decode("latin-1"))
            previous = origin
            origin, path = self._origin(url, guarded, tls, proxy)
            if (origin.scheme, origin.host, origin.port) != (previous.scheme, previous.host, previous.port):
                if previous.scheme == "https" and origin.scheme == "http":
                    raise Failure(502, Reason.UPSTREAM_FAILURE, "a redirect from https to http is refused")
                guarded, tls = True, None
                headers = [pair for pair in headers if pair[0].lower() in _FOR_ALL]
                origin, path = self._origin(url, guarded, tls, proxy)
        raise Failure(502, Reason.UPSTREAM_FAILURE, f"the document redirects more than {redirects} times")

    def _origin(self, url: str, guarded: bool, tls: TLS | None, proxy: str | None) -> tuple[Origin, bytes]:
        if guarded:
            plain, path = self._egress.origin(url)
            return Origin(plain.scheme, plain.host, plain.port, tls, proxy), path
        try:
            return Origin.of(url, tls=tls, proxy=proxy)
        except OriginError as error:
            message = "the document's URL cannot be used"
            raise Failure(502, Reason.UPSTREAM_FAILURE, message, detail=str(error)) from None

    async def _checked(self, origin: Origin) -> Sequence[Address]:
        try:
            addresses = await self._connector.resolve(origin.host, origin.port)
        except OSError as error:
            message = "the document's host could not be found"
            raise Failure(502, Reason.UPSTREAM_FAILURE, message, detail=f"{origin}: {error}", retry=True) from None
        self._egress.admit(origin.host, addresses)
        return addresses


def _check_fields(method: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """What is put in a head must not end it."""
    for name in (method.encode("latin-1", "replace"), *(name for name, _ in headers)):
        if not name or not _TOKEN.issuperset(name):
            raise ValueError(f"{name!r} is not a method or header name (RFC 9110 section 5.6.2)")
    for name, value in headers:
        if not _FORBIDDEN.isdisjoint(value):
            raise ValueError(f"the value of {name!r} has a line break or NUL")


def _head(origin: Origin, path: bytes, method: str, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method.encode("ascii"), path), b"host: " + origin.authority]
    names = {name.lower() for name, _ in headers}
    for name, value in (
        (b"user-agent", b"tollhouse"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"gzip, deflate"),
    ):
        if name not in names:
            lines.append(b"%b: %b" % (name, value))
    lines += [b"%b: %b" % pair for pair in headers]
    if body or method in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d" % len(body))
    lines += [b"connection: close", b"", b""]
    return b"\r\n".join(lines)
