"""What must hold of `exchange`: tokens take the place of other credentials, and somebody must be known to have them.

Rule: as in `checks`, which asks these with the rest.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from tollhouse.config.places import Path
from tollhouse.config.spec import Config, HttpServer, OpenApiServer, RestServer, RouteSpec, StdioServer
from tollhouse.config.wording import Finding
from tollhouse.config.written import Written

__all__ = ["of_identity", "of_routes", "of_servers"]


def of_servers(config: Config, place: Written) -> Iterator[Finding]:
    """Tokens for servers: whose own credentials they take the place of, and where none are made."""
    top = config.exchange
    used = any(route.exchange is not None for route in config.routes) or place.touched(("routes",))
    servers = config.mcp.servers if config.mcp is not None else {}
    for name, server in servers.items():
        at: Path = ("mcp", "servers", name)
        own = None if isinstance(server, StdioServer) else server.exchange
        wanted = own if own is not None else top
        is_on = wanted is not None and wanted.mode != "off" and not isinstance(server, StdioServer)
        if not isinstance(server, StdioServer) and server.oauth is not None:
            is_on = False  # what `account_checks` says about both
        used = used or is_on or place.touched(at)
        for tool, said in server.tools.items():
            if said.exchange is not None and not is_on:
                message = "has no effect: calls to this server go out without tokens made for them; leave it out"
                yield Finding((*at, "tools", tool, "exchange"), message, key=True)
        if own is not None and own.mode == "off" and (top is None or top.mode == "off"):
            yield Finding((*at, "exchange"), "has no effect: nothing is exchanged anyhow; leave it out", key=True)
        if is_on and isinstance(server, (HttpServer, OpenApiServer, RestServer)):
            yield from _server(at, server)
    if top is not None and not used:
        message = "has no effect: no MCP server over HTTP takes the tokens, and no route; leave it out"
        yield Finding(("exchange",), message, key=True)
    elif top is not None and top.mode != "off" and config.authenticate is None and not place.touched(("authenticate",)):
        yield Finding(("exchange",), "needs callers who are known; say with `authenticate` how", key=True)


def _server(at: Path, server: HttpServer | OpenApiServer | RestServer) -> Iterator[Finding]:
    if any(name.lower() == "authorization" for name in server.headers):
        message = "`authorization` has no effect beside `exchange`; leave it out, or write `exchange: off` here"
        yield Finding((*at, "headers"), message, key=True)
    if isinstance(server, OpenApiServer):
        for name, credential in server.credentials.items():
            if credential.key is None:
                message = "has no effect beside `exchange`; leave it out, or write `exchange: off` here"
                yield Finding((*at, "credentials", name), message, key=True)
    if isinstance(server, RestServer):
        for n, tool in enumerate(server.rest):
            if any(name.lower() == "authorization" for name in tool.headers):
                message = "`authorization` has no effect beside `exchange`; leave it out"
                yield Finding((*at, "rest", n, "headers"), message, key=True)


def of_routes(config: Config, place: Written) -> Iterator[Finding]:
    """The same for plain services, which get tokens where they ask for them."""
    for path, route in place.numbered(("routes",), config.routes):
        assert isinstance(route, RouteSpec)
        own, top = route.exchange, config.exchange
        at: Path = (*path, "exchange")
        if own is None:
            continue
        if own.mode == "off":
            yield Finding(at, "has no effect: a route gets no tokens unless it says so; leave it out", key=True)
            continue
        said = own if "audience" in own.model_fields_set or top is None else top
        if said.audience == "tool":
            yield Finding(at, "`audience: tool` is for MCP servers; write another `audience` here", key=True)
        if said.audience == "server" and len(route.to) > 1:
            yield Finding(at, "there are several upstreams; write the `audience` that tokens are for", key=True)
        if route.authenticate is None and config.authenticate is None and not place.touched(("authenticate",)):
            yield Finding(at, "needs callers who are known; say with `authenticate` how", key=True)
        if route.pass_credentials:
            message = "has no effect beside `exchange`, which never sends the caller's own credential; leave it out"
            yield Finding((*path, "pass_credentials"), message, key=True)
        if any(name.lower() == "authorization" for name in route.rewrite.headers):
            message = "`authorization` has no effect beside `exchange`; leave one of them out"
            yield Finding((*path, "rewrite", "headers"), message, key=True)


def of_identity(config: Config, place: Written) -> Iterator[Finding]:
    """The header that says who calls: who is told, and that nobody else writes it."""
    top = config.identity
    reached: list[tuple[Path, Any, Iterable[str], str]] = []
    for name, server in (config.mcp.servers if config.mcp is not None else {}).items():
        if not isinstance(server, StdioServer):
            reached.append((("mcp", "servers", name), server.identity, server.headers, "headers"))
    for path, route in place.numbered(("routes",), config.routes):
        assert isinstance(route, RouteSpec)
        reached.append((path, route.identity, route.rewrite.headers, "rewrite"))
    used = False
    for path, own, names, where in reached:
        wanted = own if own is not None else top
        is_on = wanted is not None and wanted.mode == "on"
        used = used or is_on
        if own is not None and not is_on and (top is None or top.mode == "off"):
            yield Finding((*path, "identity"), "has no effect: nobody is told anyhow; leave it out", key=True)
        if wanted is not None and is_on and wanted.header in {one.lower() for one in names}:
            message = f"`{wanted.header}` is the header of `identity`; leave it out"
            yield Finding((*path, where), message, key=True)
    touched = place.touched(("routes",)) or place.touched(("mcp",))
    if top is not None and not used and not touched:
        message = "has no effect: there is no MCP server over HTTP and no route that is told; leave it out"
        yield Finding(("identity",), message, key=True)
