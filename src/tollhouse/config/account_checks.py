"""What must hold of `oauth`: users must be able to log in here, and nothing else says who a call is of.

Rule: as in `checks`, which asks these with the rest.
"""

from collections.abc import Iterator

from tollhouse.config.places import Path
from tollhouse.config.spec import Config, HttpServer, OpenApiServer, RestServer, StdioServer
from tollhouse.config.wording import Finding
from tollhouse.config.written import Written

__all__ = ["of_accounts"]


def of_accounts(config: Config, place: Written) -> Iterator[Finding]:
    """Servers at which users have accounts of their own."""
    for name, server in (config.mcp.servers if config.mcp is not None else {}).items():
        if isinstance(server, StdioServer) or server.oauth is None:
            continue
        at: Path = ("mcp", "servers", name, "oauth")
        issuer = config.issuer
        if issuer is None and not place.touched(("issuer",)):
            message = "needs an `issuer` here: only who logs in at the gateway can connect an account"
            yield Finding(at, message, key=True)
        elif issuer is not None and not issuer.users and not issuer.upstream and not place.touched(("issuer",)):
            message = "nobody can log in here to connect an account; name `issuer.users` or `issuer.upstream`"
            yield Finding(at, message, key=True)
        elif config.authenticate is None and not place.touched(("authenticate",)):
            yield Finding(at, "needs callers who are known; say with `authenticate` how", key=True)
        yield from _other_credentials(("mcp", "servers", name), server)


def _other_credentials(at: Path, server: HttpServer | OpenApiServer | RestServer) -> Iterator[Finding]:
    if server.exchange is not None and server.exchange.mode != "off":
        message = "has no effect beside `oauth`, whose tokens are of users' own accounts; leave one of them out"
        yield Finding((*at, "exchange"), message, key=True)
    if any(name.lower() == "authorization" for name in server.headers):
        message = "`authorization` has no effect beside `oauth`; leave one of them out"
        yield Finding((*at, "headers"), message, key=True)
    if isinstance(server, OpenApiServer):
        for name, credential in server.credentials.items():
            if credential.key is None:
                yield Finding((*at, "credentials", name), "has no effect beside `oauth`; leave it out", key=True)
    if isinstance(server, RestServer):
        for n, tool in enumerate(server.rest):
            if any(name.lower() == "authorization" for name in tool.headers):
                message = "`authorization` has no effect beside `oauth`; leave it out"
                yield Finding((*at, "rest", n, "headers"), message, key=True)
