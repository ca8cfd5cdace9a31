"""Origin: which web pages may call where nobody has to say who he is.

Rule: a caller without credentials is trusted because it is on this machine, and so is every page in its browser.
Browsers say whose page it is (RFC 6454 section 7); a page that is neither of this machine nor of the gateway's own
address nor named in `cors` is refused. An MCP endpoint refuses it from everybody (MCP transports, Security Warning).
A page whose name was made to lead here is of the gateway's own address as its browser sees it, and says no Origin where
it only reads: so a listener of this machine is called by its own names, or by those that the operator gives.
"""

import re
from collections.abc import Awaitable, Iterable
from typing import Any
from urllib.parse import urlsplit

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.net.listen import Address
from tollhouse.policies.base import Kind, Layer, Parts
from tollhouse.policies.cors import Cors

__all__ = ["ORIGIN", "Origin", "is_this_machine"]

_ADDRESS = r"127(?:\.[0-9]{1,3}){3}|\[::1\]"
_LOOPBACK = re.compile(rf"https?://(?:localhost|{_ADDRESS})(?::[0-9]{{1,5}})?")
_MACHINE = re.compile(rf"(?:[a-z0-9_-]+\.)*localhost\.?|{_ADDRESS}")  # RFC 6761 section 6.3
_PORT = re.compile(r":[0-9]*\Z")
_ANONYMOUS = "anonymous"
_REMEMBERED = 1024
_LONGEST = 255


class Origin:
    """The guard of one entrance. own: URLs of the gateway itself. cors: who else may. always: also for callers who
    have said who they are. hosts: names the gateway may be called by, `*.example.com` for all below."""

    def __init__(self, own: Iterable[str], cors: Cors | None, *, always: bool, hosts: Iterable[str] = ()) -> None:
        urls = tuple(filter(None, own))
        names = tuple(hosts)
        self._own = frozenset(map(_origin, urls))
        self._cors = cors
        self._always = always
        self._hosts = frozenset((*map(_host, urls), *(name for name in names if name[0] != "*")))
        self._below = tuple(name[1:] for name in names if name[0] == "*")
        self._called: set[bytes] = set()  # hosts that were looked at and may be, as they were written
        self._listeners: dict[str, bool] = {}  # by name: whether only this machine reaches it

    def handle(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """Raises Failure 403."""
        known = request.known
        if known is not None and known.origin is self:
            return next(request)
        principal = request.context.principal
        anonymous = principal is None or principal.source == _ANONYMOUS
        if not (self._always or anonymous):
            return next(request)
        page = False
        host = None
        for name, value in request.headers:
            if name == b"origin":
                page = True
                if not self._allows(value):
                    raise _refused(
                        "pages of this origin may not call here; the operator can allow it in `cors.origins`",
                        "refused by its Origin",
                    )
            elif name == b"host":
                host = value
        if page:
            return next(request)
        if anonymous and host is not None and host not in self._called and self._is_local(request.listener):
            self._look(host)
        if known is not None:
            known.origin = self
        return next(request)

    def _allows(self, origin: bytes) -> bool:
        if self._cors is not None and self._cors.allows(origin):
            return True
        text = origin.decode("latin-1").lower()
        return text in self._own or _LOOPBACK.fullmatch(text) is not None

    def _is_local(self, listener: str) -> bool:
        known = self._listeners.get(listener)
        if known is None:
            try:
                known = Address.parse(listener).is_loopback
            except ValueError:
                known = False
            self._listeners[listener] = known
        return known

    def _look(self, host: bytes) -> None:
        name = _PORT.sub("", host.decode("latin-1").lower())
        plain = name.removesuffix(".")
        if plain not in self._hosts and not plain.endswith(self._below) and not is_this_machine(name):
            raise _refused(
                "the gateway may not be called by this name; the operator can allow it in `server.hosts`",
                "refused by its Host",
            )
        if len(self._called) >= _REMEMBERED:
            self._called.clear()
        if len(host) <= _LONGEST:
            self._called.add(host)


def is_this_machine(name: str) -> bool:
    """Whether a host's name, in lower case and without a port, can lead to this machine only."""
    return _MACHINE.fullmatch(name) is not None


def _refused(message: str, detail: str) -> Failure:
    return Failure(403, Reason.AUTHORIZATION, message, code="permission_denied", detail=detail)


def _origin(url: str) -> str:
    """The serialized origin of a URL (RFC 6454 section 6.2)."""
    parts = urlsplit(url.lower())
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].removesuffix(default)}"


def _host(url: str) -> str:
    """The host of a URL as a Host field has it, without its port."""
    return _PORT.sub("", urlsplit(url.lower()).netloc.rpartition("@")[2]).removesuffix(".")


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    cors = Cors(layers[-1].spec) if layers else None
    return Origin((parts.public_url,), cors, always=parts.entrance == "mcp", hosts=parts.hosts).handle


ORIGIN: Kind[Request, Response] = Kind(
    "cors",
    frozenset(("top",)),
    adds=False,
    build=_build,
    entrances=frozenset(("llm", "mcp")),
    always=True,
)
