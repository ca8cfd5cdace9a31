"""Where a ledger in PostgreSQL is, and how it is reached.

Rule: a URL is read here and nowhere else; nothing that is said of a place has its password in it. TLS is not left to
chance: whoever is not on this machine shows a certificate for its name, unless it is said that it need not.
"""

import re
import ssl
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

__all__ = ["FORM", "Place", "Security", "place_of"]

FORM: Final = "postgresql://user:password@host:5432/database"

_URL = re.compile(r"postgres(?:ql)?://(?:([^/@?#]*)@)?([^/@?#]*)/([^/@?#]+)")
_NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]+)|(%2[Ff][^,:]+))(?::(\d{1,5}))?")
_PORT: Final = 5432
_ROOTS: Final = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)  # fmt: skip


class Security(NamedTuple):
    """How the line is protected. mode: libpq's sslmode; "": `verify-full`, and `prefer` on this machine. ca, cert, key:
    PEM files; ca None: the system's roots."""

    mode: str = ""
    ca: str | None = None
    cert: str | None = None
    key: str | None = None


class Place(NamedTuple):
    """A database. hosts: host and port of each server of it, in the order they are tried; a host that begins with a
    slash is the directory of a socket. password: "" where there is none here (libpq looks into its own file then).
    schema: the tables are in. timeout: seconds for a connection, and for a statement."""

    hosts: tuple[tuple[str, int], ...]
    database: str
    user: str
    password: str
    schema: str = "tollhouse"
    timeout: float = 10.0
    security: Security = Security()

    def __str__(self) -> str:
        where = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"postgresql://{where}/{self.database}"

    def __repr__(self) -> str:
        return f"<Place {self}>"

    @property
    def is_near(self) -> bool:
        """Whether all of it is on this machine."""
        return all(_is_near(host) for host, _ in self.hosts)

    def options(self) -> dict[str, Any]:
        """As libpq wants them."""
        mode = self.security.mode or ("prefer" if self.is_near else "verify-full")
        given = {
            "host": ",".join(host for host, _ in self.hosts),
            "port": ",".join(str(port) for _, port in self.hosts),
            "dbname": self.database,
            "user": self.user,
            "password": self.password,
            "sslmode": mode,
            "sslrootcert": (self.security.ca or _roots()) if mode.startswith("verify") else "",
            "sslcert": self.security.cert or "",
            "sslkey": self.security.key or "",
            "target_session_attrs": "read-write" if len(self.hosts) > 1 else "",
        }
        return {
            **{name: value for name, value in given.items() if value},
            "application_name": "tollhouse",
            "client_encoding": "UTF8",
            "connect_timeout": max(2, round(self.timeout)),
            "gssencmode": "disable",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        }


def place_of(url: str) -> Place:
    """What a URL says. Raises ValueError, whose text has nothing of the URL in it."""
    if "?" in url:
        raise ValueError(f"the URL ends with its database, like {FORM}; what would follow a `?` has settings here")
    match = _URL.fullmatch(url)
    if match is None:
        raise ValueError(
            f"not a place for the ledger; write {FORM}. What a password has of / @ ? # % : is written as %2F %40 %3F "
            "%23 %25 %3A"
        )
    login, authority, database = match.groups()
    hosts = []
    for text in authority.split(","):
        node = _NODE.fullmatch(text)
        port = int(node[4] or _PORT) if node is not None else 0
        if node is None or not 0 < port < 65536:
            raise ValueError(f"not a host and port; write {FORM}")
        hosts.append((node[1] or node[2] or unquote(node[3]), port))
    user, _, password = (login or "").partition(":")
    if not user:
        raise ValueError(f"the user is missing; write {FORM}")
    parts = unquote(user), unquote(password), unquote(database)
    if any("\x00" in part for part in parts):
        raise ValueError("no name and no password has a NUL in it")
    return Place(tuple(hosts), parts[2], parts[0], parts[1])


def _is_near(host: str) -> bool:
    if host == "localhost" or host.startswith("/"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _roots() -> str:
    """The system's roots: the driver brings an OpenSSL of its own, which looks for them elsewhere."""
    found = ssl.get_default_verify_paths().cafile
    return next((name for name in (found or "", *_ROOTS) if Path(name).is_file()), "system")
