"""The `state` section: where it is kept, and what reaches it.

Rule: a place is read here and nowhere else; nothing that is said of it has its password in it.
"""

import re
import ssl
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self
from urllib.parse import unquote

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from tollhouse.core.spec import ClientTLSSpec, Duration, Spec

__all__ = ["MEMORY", "Place", "StateSpec", "StateTLSSpec", "place_of"]

MEMORY = "memory"

_FILE = "file:"
_FORM = "`memory`, file:PATH, redis://host:6379/0, rediss://host:6379/0 (TLS) or redis+cluster://host:6379,host:6379"
_URL = re.compile(r"(redis|rediss|redis\+cluster|rediss\+cluster)://(?:([^/@?#]*)@)?([^/@?#]+)(?:/(\d{1,5})?)?")
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]+))(?::(\d{1,5}))?")
_PORT = 6379
_SHORTEST = 32


class Place(NamedTuple):
    """A server, or some nodes of a cluster, in the order they are tried. nodes: host and port of each."""

    nodes: tuple[tuple[str, int], ...]
    database: int
    user: str
    password: str
    is_tls: bool
    is_cluster: bool

    def __str__(self) -> str:
        where = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        cluster = "+cluster" if self.is_cluster else ""
        return f"redis{'s' if self.is_tls else ''}{cluster}://{where}" + (f"/{self.database}" if self.database else "")

    def __repr__(self) -> str:
        return f"<Place {self}>"


def place_of(url: str) -> Place:
    """What a URL of a server says. Raises ValueError, whose text has nothing of the URL in it."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(
            f"not a place for state; write {_FORM}. What a password has of / @ ? # % is written as %2F %40 %3F %23 %25"
        )
    scheme, login, authority, database = match.groups()
    is_cluster = scheme.endswith("+cluster")
    nodes = []
    for text in authority.split(","):
        node = _NODE.fullmatch(text)
        port = int(node[3] or _PORT) if node is not None else 0
        if node is None or not 0 < port < 65536:
            raise ValueError(f"not a host and port; write {_FORM}")
        nodes.append((node[1] or node[2], port))
    if len(nodes) > 1 and not is_cluster:
        raise ValueError("several hosts are for a cluster; write redis+cluster:// before them")
    if is_cluster and database not in (None, "0"):
        raise ValueError("a cluster has only database 0; leave the number out")
    user, colon, password = (login or "").partition(":")
    return Place(
        tuple(nodes),
        int(database or 0),
        unquote(user) if colon else "",
        unquote(password if colon else user),
        scheme.startswith("rediss"),
        is_cluster,
    )


class StateTLSSpec(ClientTLSSpec):
    """How the certificate of the state's server is verified, and what the gateway shows."""

    def context(self) -> ssl.SSLContext:
        """A context for outgoing connections. Raises ValueError naming the file that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ssl.SSLError):
            raise ValueError(f"cannot load the CA certificates {self.ca}: it is no PEM file of certificates") from None
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.key, password=_none)
            except (OSError, ssl.SSLError):
                files = self.cert if self.key is None else f"{self.cert} with the key {self.key}"
                raise ValueError(f"cannot load the client certificate {files}") from None
        return context


def _none() -> str:
    """The password of a key that has one: nobody is asked at a terminal."""
    return ""


def _url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value().strip()
    if url.startswith(_FILE):
        if not url.removeprefix(_FILE).strip("/ "):
            raise ValueError("no file is named; write it like file:tollhouse.state")
    elif url != MEMORY:
        place_of(url)
        if find_spec("redis") is None:
            raise ValueError("needs the extra `redis`: pip install 'tollhouse[redis]'")
    return SecretStr(url)


def _key(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value().strip().encode()) < _SHORTEST:
        raise ValueError(f"shorter than {_SHORTEST} bytes; make one with: openssl rand -base64 32")
    return SecretStr(value.get_secret_value().strip())


def _several(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else (value,)


_Key = Annotated[SecretStr, AfterValidator(_key)]


class StateSpec(Spec):
    """Where counters, sessions and what workers tell each other are kept."""

    url: Annotated[SecretStr, AfterValidator(_url)] = Field(
        default=SecretStr(MEMORY),
        description=f"{_FORM}; with user:password@ before the host where it asks for them. file: memory, and in that "
        "file what the auth provider must not forget (keys, logins, grants), relative to where the gateway is started; "
        "`memory` with an `issuer` has such a file beside the ledger, or tollhouse.state",
    )
    encryption_key: Annotated[tuple[_Key, ...], BeforeValidator(_several, json_schema_input_type=_Key | list[_Key])] = (
        Field(
            default=(),
            max_length=8,
            description="a secret of 32 bytes or more, or a list of them: values and messages are encrypted with the "
            "first, and all can decrypt. What the gateway hands out (session ids) is sealed with keys derived from it",
        )
    )
    prefix: str = Field(
        default="tollhouse",
        max_length=64,
        pattern=r"^[A-Za-z0-9_.:-]+$",
        description="what every key and channel begins with: gateways of one prefix share their state",
    )
    timeout: Duration = Field(default=1.0, gt=0.0, le=60.0, description="for one attempt to reach the server")
    connections: int = Field(default=4, ge=1, le=64, description="most connections for commands, of one worker")
    tls: StateTLSSpec | None = Field(default=None, description="of a server reached by rediss://")

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if self.is_memory:
            for name in ("prefix", "timeout", "connections", "tls"):
                if name in self.model_fields_set:
                    raise ValueError(f"`{name}` has no effect with `memory`; leave it out")
        elif self.tls is not None and not self.place.is_tls:
            raise ValueError("`tls` has no effect with redis://; write rediss://, or leave it out")
        return self

    @property
    def is_memory(self) -> bool:
        """Whether it is in the process's own memory, which nobody shares."""
        return self.url.get_secret_value() == MEMORY or self.file is not None

    @property
    def file(self) -> Path | None:
        """Where some of it is kept, if a file is named."""
        url = self.url.get_secret_value()
        return Path(url.removeprefix(_FILE)) if url.startswith(_FILE) else None

    @property
    def place(self) -> Place:
        """Where the server is, unless it is memory."""
        return place_of(self.url.get_secret_value())

    @property
    def keys(self) -> tuple[bytes, ...]:
        """The encryption keys, as they are written."""
        return tuple(key.get_secret_value().encode() for key in self.encryption_key)
