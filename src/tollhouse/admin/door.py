"""Who may use the admin API: operators with a key, from no web page but its own.

Rule: Host and Origin are looked at first, and a key always. A page whose name was made to lead here (DNS rebinding)
calls by that name; one of elsewhere says its Origin (RFC 6454 section 7). Keys are known by their SHA-256 and compared
in constant time.
"""

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from time import monotonic

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request
from tollhouse.net.listen import Address
from tollhouse.policies.origin import is_this_machine

__all__ = ["Door"]

log = logging.getLogger("tollhouse.admin")

_PORT = re.compile(r":[0-9]*\Z")
_SAID_EVERY = 10.0


class Door:
    """keys: operators' names, and the SHA-256 of what each of them shows. listener: its host:port, by whose host it may
    be called. hosts: by what else, `*.example.com` for all below."""

    def __init__(
        self,
        keys: Sequence[tuple[str, bytes]],
        listener: str,
        hosts: Iterable[str] = (),
        now: Callable[[], float] = monotonic,
    ) -> None:
        names = (_host_of(listener), *hosts)
        self._keys = tuple(keys)
        self._hosts = frozenset(name for name in names if name and name[0] != "*")
        self._below = tuple(name[1:] for name in names if name[:1] == "*")
        self._now = now
        self._said = float("-inf")
        self._refused = 0

    def admit(self, request: Request) -> str:
        """The operator's name. Raises Failure 401 and 403."""
        self._look(request)
        given = request.headers.get_all(b"authorization")
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        digest = sha256(token.strip(b" ")).digest()
        operator = ""
        for name, known in self._keys:
            if compare_digest(known, digest):
                operator = name
        if not operator or scheme.lower() != b"bearer":
            self._tell(request.peer)
            raise Failure(
                401,
                Reason.API_KEY_AUTH,
                "show an operator's key: `Authorization: Bearer KEY`",
                code="unauthorized",
                headers=((b"www-authenticate", b'Bearer realm="tollhouse admin"'),),
            )
        return operator

    def _look(self, request: Request) -> None:
        host = (request.header(b"host") or b"").decode("latin-1").lower()
        name = _name(host)
        if not name or not (name in self._hosts or name.endswith(self._below) or is_this_machine(name)):
            raise _refused("the admin API may not be called by this name; allow it in `server.admin.hosts`")
        origins = request.headers.get_all(b"origin")
        own = (f"http://{host}", f"https://{host}")  # a proxy before it may speak TLS
        if any(origin.decode("latin-1").lower() not in own for origin in origins):
            raise _refused("pages of another origin may not call the admin API")

    def _tell(self, peer: str) -> None:
        self._refused += 1
        now = self._now()
        if now - self._said >= _SAID_EVERY:
            log.warning("asked without an operator's key: %d, the last time from %s", self._refused, peer)
            self._said, self._refused = now, 0


def _host_of(listener: str) -> str:
    """What the listener can be called by; "" where its address is that of every interface."""
    host = Address.parse(listener).host
    try:
        if ip_address(host).is_unspecified:
            return ""
    except ValueError:  # a name
        pass
    return _name(str(Address(host, 0)))


def _name(host: str) -> str:
    return _PORT.sub("", host.lower()).removesuffix(".")


def _refused(message: str) -> Failure:
    return Failure(403, Reason.AUTHORIZATION, message, code="permission_denied")
