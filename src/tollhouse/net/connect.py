"""From an Origin to an open connection: resolve, race the addresses, tunnel through a proxy, wrap in TLS.

Rule: everything here is the cold path, bounded by one timeout, and whoever awaits `connect` owns what it started:
cancelled, it leaves no socket and no task. Foreign errors become Failures here.
An outbound proxy is an HTTP proxy and is asked to CONNECT (RFC 9110 section 9.3.6) for https and for http origins
alike, so that request heads are the same with and without one.
"""

import asyncio
import base64
import ipaddress
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.net.tls import CertificateError, Stamp, cause, load_pair, stamp

__all__ = ["TLS", "Address", "Connector", "Lookup", "Origin", "OriginError"]

log = logging.getLogger("tollhouse.net.connect")

Address = tuple[int, str]
"""An address family and a numeric address."""

Lookup = Callable[[str, int], Awaitable[Sequence[Address]]]
"""host, port -> addresses in order of preference. Raises OSError."""

_STAGGER = 0.25  # seconds between attempts, RFC 8305 section 5
_NAMES = 256  # names remembered
_NAME_TTL = 10.0  # seconds
_GONE = frozenset((socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)))  # there is no such name
_CONTEXTS = 256
_MAX_PROXY_HEAD = 16_384
_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE)
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,254}}$)(?:{_LABEL}\.)*{_LABEL}\.?", re.IGNORECASE)
_PROXY_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")


class OriginError(ValueError):
    """A URL that cannot be used as it is written; the message says what would be right."""


class TLS(msgspec.Struct, frozen=True):
    """How to verify a server and what to show it. ca: PEM file or directory instead of the system's roots. verify:
    False accepts any certificate. cert, key: PEM files of our client certificate. server_name: to ask for and to
    verify, instead of the host."""

    ca: str | None = None
    verify: bool = True
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None

    def context(self) -> ssl.SSLContext:
        """A context for outgoing connections, ALPN http/1.1. Raises OriginError naming the file that cannot be used."""
        directory = self.ca is not None and Path(self.ca).is_dir()
        try:
            context = ssl.create_default_context(
                cafile=None if directory else self.ca, capath=self.ca if directory else None
            )
        except (OSError, ssl.SSLError) as error:
            raise OriginError(f"cannot load the CA certificates {self.ca}: {cause(error)}") from None
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert is not None:
            try:
                load_pair(context, self.cert, self.key)
            except CertificateError as error:
                raise OriginError(f"client certificate: {error}") from None
        context.set_alpn_protocols(["http/1.1"])
        return context

    def stamp(self) -> Stamp:
        """Of the files that `context` reads."""
        return stamp(name for name in (self.ca, self.cert, self.key) if name is not None)


_SYSTEM = TLS()


class Origin(msgspec.Struct, frozen=True):
    """Where connections lead: what may share a pool. scheme: "http" | "https". host: lower case, IPv6 without
    brackets. proxy: "http://[user:password@]host:port"."""

    scheme: str
    host: str
    port: int
    tls: TLS | None = None
    proxy: str | None = None

    @classmethod
    def of(cls, url: str, *, tls: TLS | None = None, proxy: str | None = None) -> "tuple[Origin, bytes]":
        """The origin of an http or https URL, and its path with query. Raises OriginError."""
        if any(c <= " " or c == "\\" or c >= "\x7f" for c in url):
            raise OriginError(f"{url!r} has a space or a character outside of ASCII; write %20, and xn-- for the host")
        match = _URL.fullmatch(url)
        if match is None:
            raise OriginError(f"{url!r} is not a URL like https://host:port/path")
        scheme = match[1].lower()
        host, port = _authority(match[2], url)
        path = match[3] or "/"
        if path[0] == "?":
            path = "/" + path
        if port == 0:
            port = 443 if scheme == "https" else 80
        return cls(scheme, host, port, tls if scheme == "https" else None, proxy), path.encode("ascii")

    @property
    def authority(self) -> bytes:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return (host if self.port == default else f"{host}:{self.port}").encode("ascii")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority.decode('ascii')}"

    def __repr__(self) -> str:  # without the proxy's credentials
        return f"<Origin {self}>"


def _authority(text: str, url: str) -> tuple[str, int]:
    if "@" in text:
        raise OriginError("a URL must not carry a user or password; use a header")
    if text.startswith("["):
        end = text.find("]")
        host, rest = text[1:end], text[end + 1 :]
        try:
            host = ipaddress.IPv6Address(host).compressed if end > 0 and "%" not in host else ""
        except ValueError:
            host = ""
    else:
        host, colon, number = text.partition(":")
        rest = colon + number
        host = host.lower() if _NAME.fullmatch(host) else ""
    if not host:
        raise OriginError(f"{url!r} has no valid host")
    port = 0
    if rest:
        if not re.fullmatch(r":\d{1,5}", rest) or not 0 < int(rest[1:]) < 65536:
            raise OriginError(f"{url!r} has no valid port; it is a number from 1 to 65535")
        port = int(rest[1:])
    return host, port


class Connector:
    """Makes connections. on_connect(transport, seconds): called for each one made, transport "plaintext" or "tls".

    A name is looked up once for all who wait for it: the system does that in a few threads, which a slow name must not
    fill. `close` ends look-ups that nobody waits for any more."""

    def __init__(self, on_connect: Callable[[str, float], None] | None = None, lookup: Lookup | None = None) -> None:
        self._on_connect = on_connect
        self._lookup = lookup or _system_lookup
        self._names: dict[tuple[str, int], tuple[float, Sequence[Address]]] = {}
        self._lookups: dict[tuple[str, int], asyncio.Task[Sequence[Address] | str]] = {}
        self._contexts: dict[TLS, tuple[ssl.SSLContext, Stamp]] = {}

    def prepare(self, origin: Origin) -> None:
        """Read what `origin` names, so that a mistake shows when it is configured. Raises OriginError."""
        if origin.scheme == "https":
            self._fresh(_files_of(origin.tls))
        if origin.proxy is not None:
            _proxy(origin.proxy)

    async def connect(
        self,
        origin: Origin,
        protocol: asyncio.Protocol,
        *,
        timeout: float,
        addresses: Sequence[Address] | None = None,
    ) -> None:
        """Connect `protocol` to `origin` within `timeout` seconds. addresses: use these, do not resolve (again).

        Raises Failure 504 when time runs out, 502 otherwise; nothing was sent then.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        secure = origin.scheme == "https"
        try:
            async with asyncio.timeout(timeout):
                if origin.proxy is None:
                    sock = await self._dial(origin.host, origin.port, addresses)
                else:
                    sock = await self._through_proxy(origin, addresses)
                try:
                    if not secure:
                        await loop.create_connection(lambda: protocol, sock=sock)
                    else:
                        name = origin.tls.server_name if origin.tls is not None else None
                        await loop.create_connection(
                            lambda: protocol,
                            sock=sock,
                            ssl=self._context(origin.tls),
                            server_hostname=name or origin.host.rstrip("."),
                            ssl_handshake_timeout=timeout + 1.0,  # ours comes first
                        )
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError:
            raise Failure(
                504, Reason.TIMEOUT, "the upstream could not be reached in time", retry=True, reached=False
            ) from None
        except ssl.SSLCertVerificationError as error:
            message = f"the upstream's certificate was refused: {error.verify_message}"
            raise Failure(
                502, Reason.UPSTREAM_FAILURE, message, detail=str(origin), retry=True, reached=False
            ) from None
        except ssl.SSLError as error:
            message = "no TLS connection to the upstream"
            raise Failure(
                502, Reason.UPSTREAM_FAILURE, message, detail=f"{origin}: {error}", retry=True, reached=False
            ) from None
        except OSError as error:
            self._names.pop((origin.host, origin.port), None)  # its addresses may have changed
            message = "the upstream could not be reached"
            raise Failure(
                502, Reason.UPSTREAM_FAILURE, message, detail=f"{origin}: {error}", retry=True, reached=False
            ) from None
        if self._on_connect is not None:
            self._on_connect("tls" if secure else "plaintext", loop.time() - began)

    async def resolve(self, host: str, port: int) -> Sequence[Address]:
        """The addresses of `host`, remembered for 10 seconds; failures are not. When they cannot be looked up again,
        the last ones are used until connecting to them fails (RFC 8767), but not when the name is gone. Raises
        OSError."""
        family = _numeric(host)
        if family:
            return ((family, host),)
        key = host, port
        loop = asyncio.get_running_loop()
        known = self._names.get(key)
        if known is not None and known[0] > loop.time():
            return known[1]
        running = self._lookups.get(key)
        if running is None:
            running = self._lookups[key] = loop.create_task(self._look_up(key))
            running.add_done_callback(partial(self._looked_up, key))
        await asyncio.wait((running,))  # who leaves does not end it for the others
        found = "the look-up was given up" if running.cancelled() else running.result()
        if isinstance(found, str):
            raise OSError(found)
        return found

    async def _look_up(self, key: tuple[str, int]) -> Sequence[Address] | str:
        """Its addresses, which are remembered, or why there are none. It does not raise OSError: a task's exception
        refers back to all who read it."""
        known = self._names.get(key)
        try:
            found = tuple(dict.fromkeys(await self._lookup(*key)))
        except OSError as error:
            if known is None or (isinstance(error, socket.gaierror) and error.errno in _GONE):
                return str(error)
            found = tuple(known[1])
        if not found:
            return f"{key[0]} has no address"
        self._names.pop(key, None)
        if len(self._names) >= _NAMES:
            del self._names[next(iter(self._names))]
        self._names[key] = (asyncio.get_running_loop().time() + _NAME_TTL, found)
        return found

    def _looked_up(self, key: tuple[str, int], _: object) -> None:
        del self._lookups[key]

    async def close(self) -> None:
        """End what is being looked up; who waits for it gets an OSError."""
        running = list(self._lookups.values())
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _context(self, tls: TLS | None) -> ssl.SSLContext:
        """As its files are now. Those that cannot be loaded any more leave in use what was loaded before."""
        tls = _files_of(tls)
        try:
            return self._fresh(tls)
        except OriginError as error:
            known = self._contexts.get(tls)
            if known is None:
                message = "no TLS connection to the upstream"
                raise Failure(
                    502, Reason.UPSTREAM_FAILURE, message, detail=str(error), retry=True, reached=False
                ) from None
            log.error("%s; what was loaded before stays in use", error)
            self._contexts[tls] = (known[0], tls.stamp())  # said once
            return known[0]

    def _fresh(self, tls: TLS) -> ssl.SSLContext:
        known, now = self._contexts.get(tls), tls.stamp()
        if known is not None and known[1] == now:
            return known[0]
        context = tls.context()
        if known is None and len(self._contexts) >= _CONTEXTS:
            del self._contexts[next(iter(self._contexts))]
        self._contexts[tls] = (context, now)
        if known is not None:
            log.info("the TLS files of an upstream were read again")
        return context

    async def _dial(self, host: str, port: int, addresses: Sequence[Address] | None) -> socket.socket:
        """A connected socket to the first address that answers (RFC 8305)."""
        if addresses is None:
            addresses = await self.resolve(host, port)
        if len(addresses) == 1:
            outcome = await _attempt(addresses[0], port)
            if isinstance(outcome, str):
                raise OSError(outcome)
            return outcome
        return await _race(_interleaved(addresses), port)

    async def _through_proxy(self, origin: Origin, addresses: Sequence[Address] | None) -> socket.socket:
        """A socket whose other end is `origin`, tunnelled. A pinned address is what the proxy is asked for."""
        assert origin.proxy is not None
        host, port, credentials = _proxy(origin.proxy)
        target = addresses[0][1] if addresses else origin.host
        name = f"[{target}]:{origin.port}" if ":" in target else f"{target}:{origin.port}"
        lines = [f"CONNECT {name} HTTP/1.1", f"host: {name}"]
        if credentials:
            lines.append(f"proxy-authorization: Basic {credentials}")
        loop = asyncio.get_running_loop()
        sock = await self._dial(host, port, None)
        try:
            await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode("ascii"))
            answer = b""
            while b"\r\n\r\n" not in answer:
                more = await loop.sock_recv(sock, 4096)
                if not more or len(answer) > _MAX_PROXY_HEAD:
                    raise OSError("the outbound proxy did not answer CONNECT")
                answer += more
            status = _PROXY_STATUS.match(answer)
            if status is None or not status[1].startswith(b"2") or answer.index(b"\r\n\r\n") + 4 < len(answer):
                shown = answer.split(b"\r\n", 1)[0][:80].decode("latin-1")
                raise OSError(f"the outbound proxy answered CONNECT with {shown!r}")
        except BaseException:
            sock.close()
            raise
        return sock


def _files_of(tls: TLS | None) -> TLS:
    """What a context is made from and known by: the name is not the context's."""
    return _SYSTEM if tls is None else TLS(tls.ca, tls.verify, tls.cert, tls.key)


async def _system_lookup(host: str, port: int) -> Sequence[Address]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(entry[0], str(entry[4][0])) for entry in found]


def _numeric(host: str) -> int:
    """The family if `host` is an address, else 0."""
    try:
        return socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        return 0


def _interleaved(addresses: Sequence[Address]) -> list[Address]:
    """Families in turn, beginning with the preferred one (RFC 8305 section 4)."""
    first = [a for a in addresses if a[0] == addresses[0][0]]
    other = [a for a in addresses if a[0] != addresses[0][0]]
    turns = [a for pair in zip(first, other, strict=False) for a in pair]
    return turns + first[len(other) :] + other[len(first) :]


async def _attempt(address: Address, port: int) -> socket.socket | str:
    """A connected socket, or why there is none. It does not raise OSError: a task's exception refers back to who
    reads it."""
    family, host = address
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        return str(error)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except OSError as error:
        sock.close()
        return f"{host}: {error.strerror or error}"
    except BaseException:
        sock.close()
        raise
    return sock


async def _race(addresses: Sequence[Address], port: int) -> socket.socket:
    waiting = list(addresses)
    running: set[asyncio.Task[socket.socket | str]] = set()
    errors: list[str] = []
    winner: socket.socket | None = None
    try:
        while winner is None:
            if waiting:
                running.add(asyncio.create_task(_attempt(waiting.pop(0), port)))
            elif not running:
                raise OSError("; ".join(errors))
            done, _ = await asyncio.wait(
                running, timeout=_STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                running.discard(task)
                outcome = task.result()
                if isinstance(outcome, str):
                    errors.append(outcome)
                elif winner is None:
                    winner = outcome
                else:
                    outcome.close()
    finally:
        for task in running:
            task.cancel()
        if running:
            losers, _ = await asyncio.wait(running)
            for task in losers:
                if not task.cancelled() and isinstance(late := task.result(), socket.socket):
                    late.close()
    return winner


def _proxy(url: str) -> tuple[str, int, str]:
    """host, port and Basic credentials (RFC 7617, base64) of an outbound proxy. Raises OriginError."""
    match = re.fullmatch(r"http://(?:([^@/]*)@)?([^@/]+)/?", url, re.IGNORECASE)
    if match is None:
        raise OriginError("a proxy is written http://host:port or http://user:password@host:port")
    host, port = _authority(match[2], "the proxy's URL")
    user = unquote(match[1] or "")
    return host, port or 80, base64.b64encode(user.encode()).decode("ascii")
