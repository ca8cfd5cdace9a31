"""Where people come back from the providers they log in at.

Rule: an address is of one provider, however many routes send people there; all others may share none with it.
"""

from tollhouse.core.errors import Failure, Problem, Reason
from tollhouse.core.http import Request, Response
from tollhouse.core.match import Predicate
from tollhouse.gateway.assembly import Assembly, Scopes
from tollhouse.gateway.router import Route
from tollhouse.policies.authenticate import AUTHENTICATE, AuthenticateSpec, OidcSpec

__all__ = ["login_routes"]

_GET = frozenset((b"GET", b"HEAD"))
_POST = frozenset((b"POST",))
_WHAT = (("callback", _GET), ("logout", _GET), ("backchannel_logout", _POST))
"""What is at `OidcSpec.places`."""


def login_routes(assembly: Assembly) -> list[Route]:
    """A route for each address that `authenticate.oidc` names. What is wrong is noted."""
    found: dict[str, Route] = {}
    providers: dict[str, OidcSpec] = {}
    for n, spec in enumerate(assembly.config.routes):
        layers = assembly.top.below("route", spec.name, spec).layers(AUTHENTICATE)
        oidc = layers[-1].spec.oidc if layers else None
        if oidc is None:
            continue
        for at, (name, methods) in zip(oidc.places, _WHAT, strict=True):
            if providers.setdefault(at, oidc) != oidc:
                message = f"people of another provider come back to {at} already; give this one another `{name}`"
                assembly.problems.append(Problem(message, path=f"routes[{n}].authenticate.oidc"))
            elif at not in found:
                with assembly.finding(f"routes[{n}].authenticate"):
                    found[at] = _route(assembly, layers[-1].spec, at, methods)
    return list(found.values())


def _route(assembly: Assembly, who: AuthenticateSpec, at: str, methods: frozenset[bytes]) -> Route:
    """Nobody is asked anything there but what the provider has said of him."""
    alone = AuthenticateSpec(oidc=who.oidc)
    config = assembly.config.model_copy(update={"authenticate": alone, "requires": None, "authorize": None})
    handler = assembly.entrance("http", _nowhere, Scopes(("top", "", config)))
    return Route("login", (Predicate(at.encode(), exact=True),), handler, methods=methods)


async def _nowhere(_: Request) -> Response:
    raise Failure(404, Reason.NOT_FOUND, "nothing is here but where logins end")
