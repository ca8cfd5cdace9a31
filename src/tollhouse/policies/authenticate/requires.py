"""Scopes that a call needs: `requires`, on an endpoint, a server, a tool, a model, a route, or on everything.

Rule: scopes bound what a client may ever do; rules decide a call. They add up, and a caller who lacks any of them is
told all of them at once, so that the token it gets next is enough (MCP authorization, Step-Up Authorization Flow). What
needs more scopes is listed all the same: how else would an agent know what to ask for?
"""

import re
from collections.abc import Awaitable, Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tollhouse.core.call import Call, Context, Principal
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.reply import Reply
from tollhouse.policies.authenticate.challenge import insufficient, metadata_url
from tollhouse.policies.base import Kind, Layer, Parts

__all__ = ["REQUIRES", "REQUIRES_ENDPOINT", "REQUIRES_ROUTE", "ScopeWord", "plain_path", "scopes_of_layers"]

_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")  # RFC 6749 section 3.3


def _word(value: str) -> str:
    if _SCOPE.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not a scope: visible ASCII without spaces, quotes and backslashes")
    return value


ScopeWord = Annotated[str, AfterValidator(_word), Field(min_length=1, max_length=256)]
"""One scope."""


class Requires:
    """What one chain needs. public_url: of the gateway, for the metadata that a refusal names, "" for no metadata."""

    def __init__(self, scopes: Iterable[str], public_url: str, mcp: bool) -> None:
        self._scopes = frozenset(scopes)
        self._public_url = public_url
        self._mcp = mcp

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 403."""
        principal = call.principal
        if principal is None or not self._scopes <= principal.scopes:
            self._refuse(call.request, call.context, principal)
        return next(call)

    def handle_request(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """The same for a plain route, and before the body of a request to an endpoint. Raises Failure 403."""
        context = request.context
        principal = context.principal
        if principal is None or not self._scopes <= principal.scopes:
            self._refuse(request, context, principal)
        return next(request)

    def handle_endpoint(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """The same, and those behind it are told: what they ask for comes on top."""
        request.context.requires = tuple(self._scopes)
        return self.handle_request(request, next)

    def _refuse(self, request: Request, context: Context, principal: Principal | None) -> None:
        needed = self._scopes.union(context.requires)
        context.rule = "requires"
        where = metadata_url(self._public_url + plain_path(request)) if self._mcp else ""
        raise insufficient(needed, where, anonymous=principal is None or principal.source == "anonymous")


def plain_path(request: Request) -> str:
    """The path of a request where it can stand in a challenge, else ""."""
    path = request.path.decode("latin-1")
    return "" if not path.isascii() or not path.isprintable() or '"' in path or "\\" in path else path


def scopes_of_layers(layers: Iterable[Layer]) -> frozenset[str]:
    """All that these layers ask for together."""
    return frozenset(scope for layer in layers for scope in layer.spec)


def _made(layers: tuple[Layer, ...], parts: Parts) -> Requires | None:
    scopes = scopes_of_layers(layers)
    return Requires(scopes, parts.public_url, parts.entrance == "mcp") if scopes else None


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    made = _made(layers, parts)
    return None if made is None else made.handle


def _build_route(layers: tuple[Layer, ...], parts: Parts) -> Any:
    made = _made(layers, parts)
    return None if made is None else made.handle_request


def _build_endpoint(layers: tuple[Layer, ...], parts: Parts) -> Any:
    made = _made(layers, parts)
    return None if made is None else made.handle_endpoint


REQUIRES: Kind[Call, Reply] = Kind(
    "requires",
    frozenset(("model", "server", "tool")),
    adds=True,
    build=_build,
    entrances=frozenset(("llm", "mcp")),
)
REQUIRES_ROUTE: Kind[Request, Response] = Kind(
    "requires", frozenset(("top", "route")), adds=True, build=_build_route, entrances=frozenset(("http",))
)
REQUIRES_ENDPOINT: Kind[Request, Response] = Kind(
    "requires", frozenset(("top", "endpoint")), adds=True, build=_build_endpoint, entrances=frozenset(("llm", "mcp"))
)
