"""The cookies of a login at an OpenID provider: the session's, one for each login under way, one for logging out.

Rule: only this host can set them where it is reached over https (`__Host-`, RFC 6265bis section 4.1.3.2), and no
service behind it gets to see one: they open more than that one service.
"""

from hashlib import sha256
from urllib.parse import urlsplit

from tollhouse.core.http import Request

__all__ = ["LoginCookies"]


class LoginCookies:
    """name: of the session's, without a prefix. public_url: of the gateway. logout: the one path that the hint is sent
    to."""

    __slots__ = ("_attributes", "_hint_attributes", "hint", "session")

    def __init__(self, name: str, public_url: str, logout: str) -> None:
        is_secure = urlsplit(public_url).scheme == "https"
        attributes = "; HttpOnly; SameSite=Lax" + ("; Secure" if is_secure else "")
        self._attributes = f"; Path=/{attributes}"
        self._hint_attributes = f"; Path={logout}{attributes}"
        self.session = f"__Host-{name}" if is_secure else name
        # Large, and so sent nowhere else: `__Host-` would be for every path.
        self.hint = f"__Secure-{name}_hint" if is_secure else f"{name}_hint"

    def flow(self, state: str) -> str:
        """Each login that is under way has one of its own: there may be several, in several tabs."""
        return f"{self.session}_{sha256(state.encode()).hexdigest()[:12]}"

    def set(self, name: str, value: str, life: float) -> tuple[bytes, bytes]:
        """The field that sets one for so many seconds; 0 takes it away."""
        attributes = self._hint_attributes if name == self.hint else self._attributes
        return b"set-cookie", f"{name}={value}; Max-Age={int(life)}{attributes}".encode("ascii")

    def read(self, request: Request, name: str) -> str:
        """The value of a cookie (RFC 6265 section 5.4), the first of that name."""
        wanted = name.encode() + b"="
        for field, value in request.headers:
            if field == b"cookie":
                for part in value.split(b";"):
                    pair = part.strip()
                    if pair.startswith(wanted):
                        return pair[len(wanted) :].decode("latin-1")
        return ""

    def take_out(self, request: Request) -> None:
        """Take ours out of what goes upstream."""
        own = (self.session.encode() + b"=", self.session.encode() + b"_")
        headers = request.headers
        for at, (field, value) in enumerate(headers):
            if field == b"cookie" and own[0][:-1] in value:
                left = [part for part in value.split(b";") if not part.strip().startswith(own)]
                headers[at] = (field, b";".join(left).strip())
        headers[:] = [pair for pair in headers if pair != (b"cookie", b"")]
