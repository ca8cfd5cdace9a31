"""The two cookies of a browser: its session, and the one that binds what it has begun to it.

Rule: a value is 256 random bits and nothing else, so there is nothing in it to forge; the state knows only its SHA-256.
A cookie that comes twice is as none: somebody else's is among them.
"""

import re
import secrets
from hashlib import sha256
from urllib.parse import urlsplit

from tollhouse.core.http import Request

__all__ = ["Cookies", "digest", "fresh"]

_VALUE = re.compile(r"[A-Za-z0-9_-]{43}")
_HOST = "__Host-"


def fresh() -> str:
    """256 random bits, as all secrets here are written."""
    return secrets.token_urlsafe(32)


def digest(value: str) -> str:
    """What a record has of a cookie that it belongs to."""
    return sha256(value.encode()).hexdigest()


class Cookies:
    """url: the issuer. session: the name of that cookie. Both go to the issuer's host alone (no Domain) and are out of
    reach for scripts; they are Secure, except for an issuer on this machine without TLS. browser: the name of the
    other, whose prefix keeps neighbouring hosts from planting one (RFC 6265bis section 4.1.3.2): for that it goes to
    the whole host, and says of which issuer there it is."""

    __slots__ = ("_flags", "_path", "browser", "session")

    def __init__(self, url: str, session: str) -> None:
        is_secure = url.startswith("https:")
        path = urlsplit(url).path or "/"
        self._path = path
        self._flags = "; HttpOnly; SameSite=Lax" + ("; Secure" if is_secure else "")
        self.session = session
        of = "" if path == "/" else f"_{sha256(path.encode()).hexdigest()[:8]}"
        self.browser = f"{_HOST}{session}_browser{of}" if is_secure else f"{session}_browser"

    def read(self, request: Request, name: str) -> str:
        """The value of a cookie of ours; "" where there is none, or more than one."""
        found = ""
        for line in request.headers.get_all(b"cookie"):
            for pair in line.decode("latin-1").split(";"):
                key, _, value = pair.strip().partition("=")
                if key == name:
                    if found or _VALUE.fullmatch(value) is None:
                        return ""
                    found = value
        return found

    def set(self, name: str, value: str) -> tuple[bytes, bytes]:
        return b"set-cookie", f"{name}={value}; {self._attributes(name)}".encode("ascii")

    def clear(self, name: str) -> tuple[bytes, bytes]:
        return b"set-cookie", f"{name}=; {self._attributes(name)}; Max-Age=0".encode("ascii")

    def _attributes(self, name: str) -> str:
        return f"Path={'/' if name.startswith(_HOST) else self._path}{self._flags}"
