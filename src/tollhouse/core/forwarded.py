"""Who the client is behind proxies, and how we tell the next one (RFC 7239, and the X-Forwarded-* convention).

Rule: what a request says about its way here is believed only from a peer in `server.trusted_proxies`; from anybody
else it is dropped and begun anew. Where X-Forwarded-For and Forwarded both come, the first counts: a proxy that knows
only that one passes the other on as the client wrote it.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network

from tollhouse.core.http import Request

__all__ = ["Forwarding", "is_provenance", "network_of"]

_REMEMBERED = 4096  # peers
_FOR = re.compile(rb'(?:\A|[;,])[ \t]*for[ \t]*=[ \t]*("[^"\\]*(?:\\.[^"\\]*)*"|[^;,"\s]*)', re.IGNORECASE)
_TOKEN_ADDRESS = re.compile(rb"[0-9A-Za-z._-]+")
_UNQUOTABLE = re.compile(rb'["\\\x00-\x1f\x7f-\xff]')
_PORT = re.compile(r"(?:\[(.+)\]|([^:]+))(?::\d+)?|(.+)")
_PROVENANCE = frozenset(
    (b"forwarded", b"x-real-ip", b"x-original-url", b"x-rewrite-url", b"client-cert", b"client-cert-chain")
)


def is_provenance(name: bytes) -> bool:
    """Whether a header (lower case) says how the request came here, what it asked for at first or whose certificate
    was shown (RFC 9440), which only a trusted proxy may say. `_` counts as `-`: CGI, WSGI and many servers do not tell
    them apart."""
    if b"_" in name:
        name = name.replace(b"_", b"-")
    return name[:12] == b"x-forwarded-" or name in _PROVENANCE


def network_of(client: str) -> str:
    """By what a client's address is counted: an IPv4 address is itself, also in IPv6's clothes, and an IPv6 one the /64
    that it is in, since one customer has a whole one. What is no address is itself."""
    if ":" not in client:
        return client
    try:
        address = IPv6Address(client.partition("%")[0])
    except ValueError:
        return client
    mapped = address.ipv4_mapped
    return str(mapped) if mapped is not None else f"{int(address) >> 64:016x}/64"


class Forwarding:
    """trusted: networks ("10.0.0.0/8") or addresses of proxies before us. Raises ValueError for what is neither."""

    __slots__ = ("_known", "_networks")

    def __init__(self, trusted: Iterable[str] = ()) -> None:
        self._networks = tuple(map(ip_network, trusted))
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        """Whether anybody is trusted."""
        return bool(self._networks)

    def trusts(self, peer: str) -> bool:
        if not self._networks:
            return False
        known = self._known.get(peer)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[peer] = self._contains(peer)
        return known

    def _contains(self, peer: str) -> bool:
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        address = mapped if mapped is not None else address
        return any(address in network for network in self._networks)

    def client(self, request: Request) -> str:
        """The client's address: the peer's, or behind trusted proxies the last one that is not a trusted proxy. What
        is no address ends the search, because nothing before it can be believed."""
        client = request.peer
        if not self.trusts(client):
            return client
        for said in reversed(_chain(request)):
            match = _PORT.fullmatch(said.decode("latin-1"))
            address = (match[1] or match[2] or match[3]) if match is not None else ""
            try:
                ip_address(address)
            except ValueError:
                return client
            client = address
            if not self.trusts(client):
                return client
        return client

    def scheme(self, request: Request) -> str:
        """`http` or `https`, as the client asked."""
        if self.trusts(request.peer):
            said = (request.header(b"x-forwarded-proto") or b"").partition(b",")[0].strip().lower()
            if said in (b"http", b"https"):
                return said.decode("ascii")
        return request.scheme

    def fields(self, request: Request, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        """The header fields that tell the upstream about the client, in place of all for which `is_provenance`.
        prefix: the path prefix that was taken off."""
        peer = request.peer.encode("latin-1") or b"unknown"
        host = request.header(b"host") or b""
        scheme = request.scheme.encode("ascii")
        forwarded = b"for=%b" % _node(peer)
        if host and not _UNQUOTABLE.search(host):
            forwarded += b';host="%b"' % host
        forwarded += b";proto=" + scheme
        if not self.trusts(request.peer):
            fields = [
                (b"forwarded", forwarded),
                (b"x-forwarded-for", peer),
                (b"x-forwarded-proto", scheme),
                (b"x-forwarded-host", host),
            ]
            if prefix:
                fields.append((b"x-forwarded-prefix", prefix))
            return fields
        headers = request.headers
        before = headers.get_all(b"forwarded")
        chain = _chain(request)
        if chain and not (before and headers.get(b"x-forwarded-for") is None):
            before = [b"for=%b" % _node(address) for address in chain]
        fields = [(n, v) for n, v in headers if is_provenance(n) and n not in _WRITTEN and b"_" not in n]
        fields += [
            (b"forwarded", b", ".join([*before, forwarded])),
            (b"x-forwarded-for", b", ".join([*chain, peer])),
            (b"x-forwarded-proto", headers.get(b"x-forwarded-proto") or scheme),
            (b"x-forwarded-host", headers.get(b"x-forwarded-host") or host),
        ]
        outer = (headers.get(b"x-forwarded-prefix") or b"").rstrip(b"/")
        if outer or prefix:
            fields.append((b"x-forwarded-prefix", outer + prefix))
        return fields


_WRITTEN = frozenset(
    (b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix")
)


def _chain(request: Request) -> list[bytes]:
    """Addresses as they were reported, the client's first."""
    lines = request.headers.get_all(b"x-forwarded-for")
    if lines:
        return [a for line in lines for part in line.split(b",") if (a := part.strip())]
    said = [v for line in request.headers.get_all(b"forwarded") for v in _FOR.findall(line)]
    return [v[1:-1] if v[:1] == b'"' else v for v in said]


def _node(address: bytes) -> bytes:
    """An address as RFC 7239 section 6 writes it."""
    if _TOKEN_ADDRESS.fullmatch(address):
        return address
    if _UNQUOTABLE.search(address):
        return b"unknown"
    return b'"[%b]"' % address if address[:1] != b"[" and address.count(b":") > 1 else b'"%b"' % address
