"""The routes of the auth provider, alone or beside what it guards.

Rule: its keys and what has been revoked outlive every configuration; the rest of it lives as long as nothing that it
was made of changes. Of the policies of the request floor those hold here that ask neither who it is nor where it goes:
headers of answers, addresses, and before what scripts may ask, CORS.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from urllib.parse import urlsplit

from tollhouse.config.spec import Config, McpSpec
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.core.handler import Policy, compose
from tollhouse.core.http import Request, Response
from tollhouse.core.match import Predicate
from tollhouse.gateway.accounts import ConnectedAccounts
from tollhouse.gateway.assembly import Assembly
from tollhouse.gateway.router import Route
from tollhouse.gateway.signing_keys import longest_token
from tollhouse.issuer.counts import Counts
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.provider import Issuer
from tollhouse.issuer.resources import Resource
from tollhouse.issuer.spec import LOOPBACK_HOSTS
from tollhouse.observe.families import Families
from tollhouse.policies.address import ADDRESS
from tollhouse.policies.authenticate.mtls import of_connection, told_by
from tollhouse.policies.base import OwnIssuer
from tollhouse.policies.cors import CORS
from tollhouse.policies.headers import RESPONSE_HEADERS
from tollhouse.store.revocation import Revocations
from tollhouse.wire.jwt import SIGNING
from tollhouse.wire.oauth import canonical_resource

__all__ = ["IssuerRoutes", "resources_of"]

log = logging.getLogger("tollhouse.gateway")

_READ = frozenset(("introspect", "userinfo"))  # asked with POST, and changes nothing


class IssuerRoutes:
    """Of one configuration. issuer: the auth provider, None where there is none. accounts: that users connect on its
    pages. Make it before what asks for `assembly.parts`: those hear of it."""

    def __init__(self, assembly: Assembly, accounts: ConnectedAccounts) -> None:
        self._assembly = assembly
        self.issuer: Issuer | None = None
        spec = assembly.config.issuer
        if spec is None:
            return
        with assembly.finding("issuer"):
            fixtures = assembly.fixtures
            revocations = fixtures.revocations
            if revocations is None:
                revocations = assembly.tenure.get(
                    ("revocations",), partial(Revocations, fixtures.state, fixtures.clock), Revocations.close
                )
            longest = longest_token(spec)
            # The same ones whatever changes about them: tokens must not fail while others are read.
            keys = assembly.tenure.get(
                ("issuer-keys",),
                partial(SigningKeys, fixtures.state.values, spec.keys, revocations=revocations, longest=longest),
                SigningKeys.close,
            )
            assembly.starts.append(partial(keys.follow, spec.keys, longest))
            fixtures.families.key_age.reads(lambda: keys.times()[0])
            fixtures.families.key_left.reads(lambda: keys.times()[1])
            assembly.provide(OwnIssuer(spec.url, keys.verifying, SIGNING, keys.keys))
            resources = resources_of(assembly.config, assembly.public_url)
            told = tuple((one.uri, one.name, tuple(one.scopes.items()), one.baseline, one.main) for one in resources)
            certificate: Callable[[Request], bytes] = of_connection
            if spec.certificate_header is not None:
                certificate = told_by(spec.certificate_header, assembly.forwarding)
            proxies = assembly.config.server.trusted_proxies if spec.certificate_header is not None else ()
            made_of = ("issuer", spec.fingerprint(), told, accounts.key, proxies)
            make = partial(
                Issuer,
                spec,
                state=fixtures.state,
                clock=fixtures.clock,
                client=fixtures.client,
                resources={resource.uri: resource for resource in resources},
                keys=keys,
                revocations=revocations,
                certificate=certificate,
                counts=_counts(fixtures.families),
                services=accounts.services,
            )
            try:
                issuer = assembly.tenure.get(made_of, make, Issuer.close)
            except ValueError as error:
                raise ConfigError([Problem(str(error), path="issuer")]) from None
            self.issuer = issuer
            assembly.starts.append(issuer.start)
            is_elsewhere = urlsplit(spec.url).hostname not in LOOPBACK_HOSTS
            if spec.registration.dynamic == "loopback" and is_elsewhere and not assembly.config.server.trusted_proxies:
                log.warning(
                    "issuer.registration: `dynamic: loopback` is open to everybody whom a proxy on this machine lets "
                    "through; name it in `server.trusted_proxies`"
                )

    def routes(self) -> list[Route]:
        if self.issuer is None:
            return []
        assembly = self._assembly
        parts = assembly.parts("http")
        found = []
        with assembly.finding("issuer"):
            everywhere = assembly.top.policies((RESPONSE_HEADERS, ADDRESS), parts)
            for_scripts = assembly.top.policies((RESPONSE_HEADERS, CORS, ADDRESS), parts)
            has_cors = bool(assembly.top.layers(CORS))
            for address in self.issuer.addresses:
                if address.open and has_cors:  # never before pages: a script there could do what their visitor can
                    address, policies = address.closed(), for_scripts
                else:
                    policies = everywhere
                found.append(
                    Route(
                        "issuer",
                        (Predicate(address.path.encode(), exact=address.exact),),
                        compose((*self._recorded(address.path), *policies), address.handler),
                        methods=address.methods,
                        render=address.render,
                        where="issuer",
                    )
                )
        return found

    def _recorded(self, path: str) -> list[Policy[Request, Response]]:
        """What writes an audit record of what is done at `path`."""
        audit = self._assembly.audit
        if audit is None:
            return []
        name = "account" if "/oauth/upstream/" in path else path.rpartition("/")[2]
        return [audit.door if name in _READ else partial(audit.issuer, name)]


def resources_of(config: Config, public_url: str) -> list[Resource]:
    """What tokens may be for: every MCP endpoint of this gateway, and what the configuration adds. Raises ConfigError
    for one that is there twice."""
    spec = config.issuer
    assert spec is not None
    found: dict[str, Resource] = {}
    mcp = config.mcp
    if mcp is not None:
        told = config.authenticate.resource_metadata if config.authenticate is not None else None
        everywhere = {*(told.scopes if told is not None else ()), *(config.requires or ())}
        name = told.name if told is not None else ""
        places: list[tuple[str, Iterable[str], Iterable[str]]] = [(mcp.path, mcp.servers, ())]
        places += [(f"{mcp.path}/{server}", (server,), ()) for server in mcp.servers]
        places += [(endpoint.path, endpoint.servers, endpoint.requires or ()) for endpoint in mcp.endpoints]
        if mcp.rest:
            places.append(("/tools" if mcp.rest is True else mcp.rest, mcp.servers, ()))
        for path, servers, own in places:
            baseline = {*everywhere, *own}
            scopes = baseline | _needed(mcp, servers)
            uri = canonical_resource(public_url + path)
            words = {scope: spec.scopes.get(scope, "") for scope in sorted(scopes)}
            main = path == mcp.path
            found[uri] = Resource(uri, name if main else "", words, tuple(sorted(baseline)), main)
    problems = []
    for n, one in enumerate(spec.resources):
        if one.uri in found or one.uri == spec.url:
            message = "is a resource already, as an MCP endpoint of this gateway or as the issuer itself; leave it out"
            problems.append(Problem(message, path=f"issuer.resources[{n}].uri"))
        found[one.uri] = Resource(one.uri, one.name, dict(one.scopes))
    if problems:
        raise ConfigError(problems)
    return list(found.values())


def _needed(mcp: McpSpec, servers: Iterable[str]) -> set[str]:
    """The scopes that some call to one of these servers needs."""
    scopes: set[str] = set()
    for name in servers:
        server = mcp.servers.get(name)
        if server is not None:
            scopes.update(server.requires or ())
            for tool in server.tools.values():
                scopes.update(tool.requires or ())
    return scopes


def _counts(families: Families) -> Counts:
    return Counts(
        token=lambda grant, outcome: families.issuer_tokens.child(grant, outcome).inc(),
        reused=lambda: families.issuer_reuse.child().inc(),
        replayed=lambda kind: families.replays.child(kind).inc(),
        throttled=lambda kind: families.throttled.child(kind).inc(),
        keys_read=lambda outcome: families.jwks_refreshes.child(outcome).inc(),
    )
