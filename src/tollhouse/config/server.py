"""The `server` section: where it listens, and what a client may cost. Sizes in bytes, times in seconds."""

import re
from hashlib import sha256
from ipaddress import ip_address, ip_network
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from tollhouse.core.spec import Duration, File, Size, Spec
from tollhouse.net.listen import Address
from tollhouse.wire.oauth import canonical_resource

__all__ = [
    "AdminKeySpec", "AdminSpec", "HostPort", "ListenSpec", "ListenTlsSpec", "Network", "ServerSpec", "ShutdownSpec",
    "TimeoutsSpec", "Whole",
]  # fmt: skip

_SHORTEST_KEY = 32
_HOST_NAME = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")


def _host_port(value: str) -> str:
    return str(Address.parse(value))


def _whole(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic would take `true` for 1
        raise ValueError("should be a whole number, not true or false")
    return value


def _network(value: str) -> str:
    try:
        return str(ip_network(value.strip()))
    except ValueError as error:
        hint = ""
        if "host bits" in str(error):
            hint = f"; you may mean {ip_network(value.strip(), strict=False)}"
        raise ValueError(f"not a network; write it like 10.0.0.0/8, 192.0.2.7 or fd00::/8{hint}") from None


def _url(value: str) -> str:
    wrong = "not a URL of a server; write it like https://gateway.example.com, without query and fragment"
    try:
        url = urlsplit(value.strip())
        canonical_resource(value.strip())  # it is where tokens are for
    except ValueError:
        raise ValueError(wrong) from None
    if url.scheme not in ("http", "https") or url.query or url.port == 0:
        raise ValueError(wrong)
    return value.strip().rstrip("/")


def _host_name(value: str) -> str:
    name = value.strip().lower()
    if _HOST_NAME.fullmatch(name) is None:
        raise ValueError("not the name of a host; write it like gateway.internal or *.example.com, without a port")
    return name


def _admin(value: Any) -> Any:
    """An address alone stands for {address: ...}."""
    if value is not None and not isinstance(value, (str, dict, AdminSpec)):
        raise ValueError("not an address; write host:port, like 127.0.0.1:15000, or {address, keys, hosts, tls}")
    return {"address": value} if isinstance(value, str) else value


def _admin_key(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if len(text) < _SHORTEST_KEY or not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError(f"an operator's key has {_SHORTEST_KEY} visible characters or more: openssl rand -base64 32")
    return value


HostPort = Annotated[
    str, AfterValidator(_host_port), Field(examples=["127.0.0.1:8080", "[::1]:8080", "0.0.0.0:8080", ":8080"])
]
"""`host:port`; without a host, every interface."""

Network = Annotated[str, AfterValidator(_network), Field(examples=["10.0.0.0/8", "192.0.2.7"])]
"""An address or a network in CIDR notation, in its normal form."""

Whole = Annotated[int, BeforeValidator(_whole, json_schema_input_type=int)]
"""A whole number. (`true` is none.)"""

PublicUrl = Annotated[str, AfterValidator(_url)]

HostName = Annotated[str, AfterValidator(_host_name), Field(examples=["gateway.internal", "*.dev.example.com"])]
"""The name in a URL, in lower case; with `*.` before it every name below."""


class ListenTlsSpec(Spec):
    """TLS of a listener. The files are read again when they change."""

    cert: File = Field(description="PEM file with the certificate and its chain")
    key: File = Field(description="PEM file with the private key")
    client_ca: File | None = Field(
        default=None, description="PEM file with the authorities whose client certificates are accepted"
    )
    client_auth: Literal["required", "optional"] = Field(
        default="required", description="whether a client must show a certificate, when there is a client_ca"
    )

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if "client_auth" in self.model_fields_set and self.client_ca is None:
            raise ValueError("`client_auth` has no effect without `client_ca`; name the authorities, or leave it out")
        return self


class ListenSpec(Spec):
    """One address that is listened on."""

    address: HostPort = Field(description="host:port; :port is every interface")
    tls: ListenTlsSpec | None = Field(default=None, description="certificate and key; absent: no TLS")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return Address.parse(self.address).is_loopback

    @property
    def is_every(self) -> bool:
        """Whether it stands for every interface, so that it is no address that a client could call."""
        host = Address.parse(self.address).host
        try:
            return ip_address(host).is_unspecified
        except ValueError:
            return not host


def _listen(value: Any) -> Any:
    """One address alone is a list of one; in the list an address may stand for {address: ...}."""
    entries = value if isinstance(value, list) else [value]
    if any(not isinstance(entry, (str, dict, ListenSpec)) for entry in entries):
        raise ValueError("not an address; write host:port, like 127.0.0.1:8080, or a list of such")
    return [{"address": entry} if isinstance(entry, str) else entry for entry in entries]


class AdminKeySpec(Spec):
    """What an operator shows, and who that is."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._@:-]+$", description="who it is, in the log")
    key: Annotated[SecretStr, AfterValidator(_admin_key)] | None = Field(
        default=None, description="32 random characters or more: ${OPERATOR_KEY}"
    )
    key_hash: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{64}$", description="instead of the key: its SHA-256 in lower-case hex"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.key is None) == (self.key_hash is None):
            raise ValueError("give either `key` or `key_hash`")
        return self

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key."""
        if self.key is not None:
            return sha256(self.key.get_secret_value().encode()).digest()
        return bytes.fromhex(self.key_hash or "")


class AdminSpec(Spec):
    """The admin API: where operators are served, and how they show who they are."""

    address: HostPort = Field(description="host:port; of this machine, unless others are to reach it")
    keys: tuple[AdminKeySpec, ...] = Field(
        default=(), max_length=100, description="of operators; without any a token is made and kept in a file"
    )
    hosts: tuple[HostName, ...] = Field(
        default=(), description="names it may be called by besides its address and those of this machine"
    )
    tls: ListenTlsSpec | None = Field(default=None, description="certificate and key; absent: no TLS")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        listen = ListenSpec(address=self.address)
        if listen.is_every and not self.hosts:
            raise ValueError(
                "it would be reached from elsewhere, and no name of elsewhere may be called: say which in `hosts`, or "
                "write 127.0.0.1"
            )
        names = [one.name for one in self.keys]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two keys are called `{min(twice)}`; a name stands for one operator")
        if len({one.digest for one in self.keys}) < len(names):
            raise ValueError("two operators have the same key")
        return self


class TimeoutsSpec(Spec):
    """How long a client may take. (How long an upstream may take is said where the upstream is.)"""

    head: Duration = Field(default=10.0, gt=0.0, description="for the whole head of a request")
    body: Duration = Field(default=30.0, gt=0.0, description="between two parts of a request's body")
    idle: Duration = Field(default=75.0, gt=0.0, description="between two requests of one connection")
    write: Duration = Field(default=60.0, gt=0.0, description="while the client takes nothing of the answer")


class ShutdownSpec(Spec):
    """How the gateway ends when it is asked to (SIGTERM)."""

    min: Duration = Field(
        default=10.0, ge=0.0, description="new requests are still taken for this long, and clients asked to move on"
    )
    max: Duration = Field(default=60.0, ge=0.0, description="after this what still runs is cut off")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max < self.min:
            raise ValueError("`max` is shorter than `min`; it counts from the same moment")
        return self


class ServerSpec(Spec):
    """Where the gateway listens, and what a client may cost."""

    listen: Annotated[
        tuple[ListenSpec, ...],
        BeforeValidator(_listen, json_schema_input_type=HostPort | ListenSpec | list[HostPort | ListenSpec]),
    ] = Field(
        default=(ListenSpec(address="127.0.0.1:8080"),),
        min_length=1,
        description="an address, or a list of addresses or of {address, tls}",
    )
    admin: Annotated[AdminSpec | None, BeforeValidator(_admin, json_schema_input_type=HostPort | AdminSpec | None)] = (
        Field(default=None, description="address of the admin API, or {address, keys, hosts, tls}; null: none")
    )
    metrics: HostPort | None = Field(
        default="127.0.0.1:15020", description="address of GET /metrics and the readiness check; null: none"
    )
    public_url: PublicUrl | None = Field(
        default=None, description="the gateway as clients see it, where that is not the address it listens on"
    )
    hosts: tuple[HostName, ...] = Field(
        default=(),
        description="by which names it may be called besides `public_url` and those of this machine, where listeners "
        "are of this machine alone and callers need no credential",
    )
    workers: Whole = Field(default=1, ge=1, le=256, description="processes that share the listeners")
    max_body: Size = Field(default=10 << 20, ge=1, description="largest request body that is read whole")
    max_head: Size = Field(default=64 << 10, ge=1024, le=1 << 20, description="largest request line with headers")
    max_target: Size = Field(default=16 << 10, ge=256, le=1 << 20, description="longest request target")
    max_headers: Whole = Field(default=100, ge=10, le=10_000, description="most header fields of a request")
    max_connections: Whole = Field(default=20_000, ge=1, description="most client connections of one worker")
    timeouts: TimeoutsSpec = Field(default=TimeoutsSpec(), description="how long a client may take")
    shutdown: ShutdownSpec = Field(default=ShutdownSpec(), description="how the gateway ends when it is asked to")
    trusted_proxies: tuple[Network, ...] = Field(
        default=(), description="proxies before the gateway whose Forwarded and X-Forwarded-* headers are believed"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_target > self.max_head:
            raise ValueError("`max_target` is more than `max_head`, which holds it")
        return self
