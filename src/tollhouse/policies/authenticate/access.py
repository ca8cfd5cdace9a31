"""What an API key may be used for: models, servers, tools and routes, by name.

Rule: these bounds come before rules, and only ever take away. As soon as one of the four is named, what is not named is
not allowed: a key for two models opens no tool. What a key may not use it does not see in lists either.
"""

import re
from collections.abc import Awaitable, Callable
from fnmatch import translate
from typing import Any

from tollhouse.core.call import Call, ModelCall, Principal, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.reply import Reply
from tollhouse.policies.base import Kind, Layer, Parts

__all__ = ["ACCESS", "ACCESS_ROUTE", "Access", "access_of", "is_bounded", "may_use"]

Patterns = tuple[str, ...] | None

_REMEMBERED = 1024
_NO_TOOLS = frozenset(
    ("prompts/get", "resources/read", "resources/subscribe", "resources/unsubscribe", "completion/complete")
)
_REFUSED = "this key may not be used for that; ask the operator of this gateway for another one"


def access_of(models: Patterns, servers: Patterns, tools: Patterns, routes: Patterns) -> "Access | None":
    """None where nothing is named: no bounds."""
    if models is None and servers is None and tools is None and routes is None:
        return None
    return Access(models, servers, tools, routes)


class Access:
    """The bounds of one key, as patterns with `*`. A tool's pattern fits its name, or `server__name`. A key for tools
    alone opens no prompts and resources."""

    __slots__ = ("_known", "_mcp", "_models", "_routes", "_servers", "_tools", "_tools_alone")

    def __init__(self, models: Patterns, servers: Patterns, tools: Patterns, routes: Patterns) -> None:
        self._models = _matcher(models)
        self._routes = _matcher(routes)
        self._servers = _matcher(servers) if servers is not None or tools is None else _everything
        self._tools = _matcher(tools) if tools is not None else _everything
        self._mcp = servers is not None or tools is not None
        self._tools_alone = servers is None and tools is not None
        self._known: dict[tuple[str, ...], bool] = {}

    def admits(self, call: Call) -> bool:
        """Whether the call is within the bounds. One that names nothing (a list, initialize) is where anything of its
        kind is: what it answers with is filtered."""
        key: tuple[str, ...]
        if isinstance(call, ToolCall):
            key = ("mcp", call.server, call.method, call.name if call.method == "tools/call" else "")
        elif isinstance(call, ModelCall):
            key = ("model", call.model)
        else:
            key = ("", call.context.route)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[key] = self._decide(*key)
        return known

    def admits_route(self, name: str) -> bool:
        return self._routes(name)

    def _decide(self, kind: str, name: str, method: str = "", tool: str = "") -> bool:
        if kind == "model":
            return self._models(name) if name else self._models is not _nothing
        if kind != "mcp":
            return True  # neither a model nor a server is asked: the entrance was admitted
        if not self._mcp:
            return False
        if not name:
            return True
        if not self._servers(name) or (self._tools_alone and method in _NO_TOOLS):
            return False
        return method != "tools/call" or self._tools(tool) or self._tools(f"{name}__{tool}")


def _matcher(patterns: Patterns) -> Callable[[str], bool]:
    if not patterns:
        return _nothing
    if "*" in patterns:
        return _everything
    expression = re.compile("|".join(translate(pattern) for pattern in patterns))
    return lambda name: expression.match(name) is not None


def _nothing(_: str) -> bool:
    return False


def _everything(_: str) -> bool:
    return True


def may_use(probe: Call) -> bool:
    """Whether something of this name may be listed for the probe's principal, as far as its key's bounds go."""
    principal = probe.principal
    return principal is None or principal.access is None or principal.access.admits(probe)


def _handle(call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
    """Raises Failure 403."""
    principal = call.principal
    if principal is not None and principal.access is not None and not principal.access.admits(call):
        raise _refused(call, principal)
    return next(call)


def _handle_request(request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
    """The same for a plain route. Raises Failure 403."""
    context = request.context
    principal = context.principal
    if principal is not None and principal.access is not None and not principal.access.admits_route(context.route):
        raise _refused(Call(request, context), principal)
    return next(request)


def _refused(call: Call, principal: Principal) -> Failure:
    call.context.rule = f"key {principal.key}"
    return Failure(
        403,
        Reason.AUTHORIZATION,
        _REFUSED,
        code="permission_denied",
        detail=f"refused by the bounds of the key {principal.key}",
    )


def is_bounded(layers: tuple[Layer, ...]) -> bool:
    """Whether any key of these layers may have bounds."""
    return any(
        layer.spec.issued or any(access_of(k.models, k.servers, k.tools, k.routes) for k in layer.spec.keys)
        for layer in layers
    )


def _build(layers: tuple[Layer, ...], _: Parts) -> Any:
    return _handle if is_bounded(layers) else None


def _build_route(layers: tuple[Layer, ...], _: Parts) -> Any:
    return _handle_request if is_bounded(layers[-1:]) else None


ACCESS: Kind[Call, Reply] = Kind(
    "authenticate", frozenset(("top",)), adds=False, build=_build, entrances=frozenset(("llm", "mcp"))
)
ACCESS_ROUTE: Kind[Request, Response] = Kind(
    "authenticate", frozenset(("top", "route")), adds=False, build=_build_route, entrances=frozenset(("http",))
)
