"""Origin: which web pages may call where nobody has to say who he is.

Rule: a caller without credentials is trusted because it is on this machine, and so is every page in its browser.
Browsers say whose page it is (RFC 6454 section 7); a page that is neither of this machine nor of the gateway's own
address nor named in `cors` is refused. An MCP endpoint refuses it from everybody (MCP transports, Security Warning).
"""

import re
from collections.abc import Awaitable, Iterable
from typing import Any
from urllib.parse import urlsplit

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.policies.base import Kind, Layer, Parts
from tollhouse.policies.cors import Cors

__all__ = ["ORIGIN", "Origin"]

_LOOPBACK = re.compile(r"https?://(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?")
_ANONYMOUS = "anonymous"


class Origin:
    """The guard of one entrance. own: URLs of the gateway itself. cors: who else may. always: also for callers who
    have said who they are."""

    def __init__(self, own: Iterable[str], cors: Cors | None, *, always: bool) -> None:
        self._own = frozenset(map(_origin, filter(None, own)))
        self._cors = cors
        self._always = always

    def handle(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """Raises Failure 403."""
        principal = request.context.principal
        known = request.known
        if (known is None or known.origin) and (self._always or principal is None or principal.source == _ANONYMOUS):
            found = False
            for name, value in request.headers:
                if name != b"origin":
                    continue
                found = True
                if not self._allows(value):
                    raise Failure(
                        403,
                        Reason.AUTHORIZATION,
                        "pages of this origin may not call here; the operator can allow it in `cors.origins`",
                        code="permission_denied",
                        detail="refused by its Origin",
                    )
            if known is not None:
                known.origin = found
        return next(request)

    def _allows(self, origin: bytes) -> bool:
        if self._cors is not None and self._cors.allows(origin):
            return True
        text = origin.decode("latin-1").lower()
        return text in self._own or _LOOPBACK.fullmatch(text) is not None


def _origin(url: str) -> str:
    """The serialized origin of a URL (RFC 6454 section 6.2)."""
    parts = urlsplit(url.lower())
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].removesuffix(default)}"


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    cors = Cors(layers[-1].spec) if layers else None
    return Origin((parts.public_url,), cors, always=parts.entrance == "mcp").handle


ORIGIN: Kind[Request, Response] = Kind(
    "cors",
    frozenset(("top", "endpoint")),
    adds=False,
    build=_build,
    entrances=frozenset(("llm", "mcp")),
    always=True,
)
