"""The egress guard: URLs that come from outside reach public addresses only (CWE-918, RFC 9728 section 7.7).

Rule: the answer depends on the addresses a name has now, and the connection uses exactly those: what was checked is
what is dialled. One address that is not public refuses the name. Names and networks the operator allows are exempt.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence

from tollhouse.core.errors import Failure, Reason
from tollhouse.net.connect import Address, Origin, OriginError

__all__ = ["Egress", "is_public"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_IP = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA special-purpose address registries: whatever is not globally reachable, and what must not be asked from here.
# Not `ipaddress.is_global`: what that means has changed between releases of one Python version.
_CLOSED4 = tuple(
    ipaddress.IPv4Network(net)
    for net in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
_OPEN6 = ipaddress.IPv6Network("2000::/3")
_CLOSED6 = tuple(
    ipaddress.IPv6Network(net)
    for net in (
        "2001::/23",  # protocol assignments, with Teredo
        "2001:db8::/32",
        "2002::/16",  # 6to4: could lead anywhere
        "3fff::/20",
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)
_NUMBER = re.compile(r"(?:.*\.)?(?:\d+|0x[0-9a-f]*)")


def is_public(address: str) -> bool:
    """Whether a numeric address is a unicast one that is reachable from everywhere. An IPv6 address that carries an
    IPv4 one is what that is."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        carried = _carried(ip)
        if carried is None:
            return ip in _OPEN6 and not any(ip in net for net in _CLOSED6)
        if ip in _OPEN6 and any(ip in net for net in _CLOSED6):
            return False
        ip = carried
    return not any(ip in net for net in _CLOSED4)


def _carried(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address in a mapped, NAT64 or ISATAP address."""
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    bits = int(ip)
    if ip in _NAT64 or (bits >> 32) & 0xFFFFFFFF in _ISATAP:
        return ipaddress.IPv4Address(bits & 0xFFFFFFFF)
    return None


class Egress:
    """allow: networks ("10.1.0.0/16"), addresses and host names that URLs from outside may reach all the same.

    A name allows whatever it resolves to; a network allows its addresses under any name. Raises ValueError for an
    entry that is neither.
    """

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._networks: list[_Network] = []
        self._hosts: set[str] = set()
        for entry in allow:
            try:
                self._networks.append(ipaddress.ip_network(entry.strip("[]")))
            except ValueError as error:
                if "/" in entry or not re.fullmatch(r"[a-zA-Z0-9_.-]*[a-zA-Z_-][a-zA-Z0-9_.-]*", entry):
                    raise ValueError(f"{entry!r} is not a network like 10.0.0.0/8 nor a host name: {error}") from None
                self._hosts.add(entry.lower().rstrip("."))

    def origin(self, url: str) -> tuple[Origin, bytes]:
        """The origin and path of a URL from outside. Raises Failure for what is not plainly http or https to a plainly
        written host."""
        try:
            origin, path = Origin.of(url)
        except OriginError as error:
            raise _refused(f"the URL is refused: {error}") from None
        host = origin.host
        if host.endswith("."):
            raise _refused("the URL is refused: its host ends with a dot")
        if _NUMBER.fullmatch(host):  # inet_aton would read 127.1, 0x7f.1 and 2130706433 as addresses
            try:
                ipaddress.IPv4Address(host)
            except ValueError:
                raise _refused("the URL is refused: write an IPv4 address as four decimal numbers") from None
        return origin, path

    def admit(self, host: str, addresses: Sequence[Address]) -> None:
        """Raises Failure unless every one of the addresses of `host` may be reached."""
        if host in self._hosts:
            return
        for _, address in addresses:
            if "%" in address or not (is_public(address) or self._allowed(ipaddress.ip_address(address))):
                raise _refused(
                    "the URL is refused: its host has an address that is not public; the operator can allow it",
                    f"{host} is {address}",
                )

    def _allowed(self, ip: _IP) -> bool:
        forms: list[_IP] = [ip]
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            forms.append(ip.ipv4_mapped)
        return any(form in net for net in self._networks for form in forms)


def _refused(message: str, detail: str = "") -> Failure:
    return Failure(502, Reason.UPSTREAM_FAILURE, message, code="egress_refused", detail=detail)
