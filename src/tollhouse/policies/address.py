"""Who is at the other end: the client's address, and whether it may come in.

Rule: the address is the peer's, unless the peer is a proxy we trust; then it is what that proxy says. Everything
later (limits by ip, rules, logs) uses the address found here. Networks that are denied are denied whatever is
allowed; where any are allowed, the others are not.
"""

from collections.abc import Awaitable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.forwarded import Forwarding
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.spec import Spec
from tollhouse.policies.base import Kind, Layer, Parts

__all__ = ["ADDRESS", "Address", "AddressSpec"]

_REMEMBERED = 4096


def _network(value: str) -> str:
    try:
        return str(ip_network(value))
    except ValueError:
        raise ValueError(f"not a network or address: {value!r}; write it like 10.0.0.0/8 or 192.0.2.7") from None


Network = Annotated[str, AfterValidator(_network), Field(examples=["10.0.0.0/8"])]


class AddressSpec(Spec):
    """From which addresses requests are taken."""

    allow: tuple[Network, ...] = Field(default=(), description="networks; none: every one")
    deny: tuple[Network, ...] = Field(default=(), description="networks that are refused, also when allowed")


class Address:
    """Finds the client's address and checks it. Verdicts are remembered, boundedly."""

    def __init__(self, forwarding: Forwarding | None, spec: AddressSpec | None) -> None:
        self._forwarding = forwarding
        self._allow = tuple(map(ip_network, spec.allow)) if spec is not None else ()
        self._deny = tuple(map(ip_network, spec.deny)) if spec is not None else ()
        self._known: dict[str, bool] = {}

    def handle(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """Raises Failure 403."""
        client = request.peer
        if self._forwarding is not None:
            client = self._forwarding.client(request)
        request.context.client = client
        if self._allow or self._deny:
            allowed = self._known.get(client)
            if allowed is None:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                allowed = self._known[client] = self._allows(client)
            if not allowed:
                raise Failure(
                    403, Reason.AUTHORIZATION, "requests from this address are not accepted", detail=f"address {client}"
                )
        return next(request)

    def _allows(self, client: str) -> bool:
        try:
            address: Any = ip_address(client.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        address = mapped if mapped is not None else address
        if _within(address, self._deny):
            return False
        return not self._allow or _within(address, self._allow)


def _within(address: Any, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    return any(address in network for network in networks)


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    spec: AddressSpec | None = layers[-1].spec if layers else None
    if spec is None and not parts.forwarding:
        return None
    return Address(parts.forwarding, spec).handle


ADDRESS: Kind[Request, Response] = Kind("address", frozenset(("top", "route")), adds=False, build=_build, always=True)
