"""Who makes the tokens that calls go out with: our own auth provider, and issuers elsewhere.

Rule: an issuer elsewhere is asked over one client for all that name it, which lives as long as some configuration does.
What belongs to a session and to no call gets its token from the same exchange as the calls of its server.
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from tollhouse.backends.exchange import Elsewhere, ElsewhereSettings
from tollhouse.backends.mcp.servers import Server
from tollhouse.backends.mcp.upstream import Upstream
from tollhouse.config.spec import HttpServer, OpenApiServer, RestServer, RouteSpec
from tollhouse.core.call import Principal
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.core.identity import Exchanger
from tollhouse.gateway.assembly import Assembly
from tollhouse.issuer.mint import Mint
from tollhouse.issuer.provider import Issuer
from tollhouse.net.client import OriginError
from tollhouse.policies.exchange import Exchange
from tollhouse.policies.exchange_spec import ExchangeSpec
from tollhouse.wire.oauth import canonical_resource

__all__ = ["Exchangers", "bearing", "upstream_uri"]

log = logging.getLogger("tollhouse.gateway")

_VOUCHED = 60.0
"""Seconds of life of our word for a caller."""


class Exchangers:
    """Of one configuration (`policies.base.Exchangers`). issuer: the auth provider in this process, if there is one."""

    def __init__(self, assembly: Assembly, issuer: Issuer | None) -> None:
        self.generation = object()
        self._own = issuer.mint if issuer is not None else None
        self.identity = self._own.identity if self._own is not None else None
        self._assembly = assembly

    def of(self, who: Any) -> Exchanger | None:
        if not isinstance(who, ExchangeSpec):
            return self._own
        settings = _settings(who)
        vouch = None if self._own is None else partial(_vouched, self._own, settings.issuer)
        assembly = self._assembly
        key = ("exchange", settings, self._own)  # whose statements it shows
        try:
            return assembly.tenure.get(
                key, partial(Elsewhere, settings, assembly.fixtures.client, vouch), Elsewhere.close
            )
        except OriginError as error:
            raise ConfigError([Problem(str(error), path="exchange.issuer")]) from None
        except ValueError as error:
            raise ConfigError([Problem(str(error), path="exchange.client_key")]) from None


def _settings(who: ExchangeSpec) -> ElsewhereSettings:
    assert who.issuer is not None
    assert who.client_id is not None
    key = b""
    if who.client_key is not None:
        try:
            key = Path(who.client_key).read_bytes()
        except OSError as error:
            message = f"{who.client_key!r} cannot be read: {error.strerror}"
            raise ConfigError([Problem(message, path="exchange.client_key")]) from None
    return ElsewhereSettings(
        who.issuer,
        who.kind,
        who.token_endpoint or "",
        who.client_id,
        "" if who.client_secret is None else who.client_secret.get_secret_value(),
        who.client_auth == "basic",
        who.ca or "",
        key,
        who.client_key_id or "",
        who.assertion_audience == "token_endpoint",
        who.actor_token,
    )


def _vouched(mint: Mint, issuer: str, principal: Principal) -> bytes:
    """Our word for a caller who has shown a key and no token, for an issuer elsewhere. Raises Failure."""
    return mint.vouched(principal, issuer, _VOUCHED).token


def upstream_uri(spec: Any) -> str:
    """What tokens for a server or a plain service are for, where the configuration does not say it; "" for what takes
    none."""
    url = ""
    if isinstance(spec, HttpServer):
        url = spec.url
    elif isinstance(spec, RestServer):
        url = spec.base_url
    elif isinstance(spec, OpenApiServer):
        url = spec.base_url or (spec.openapi if spec.is_url else spec.found.base if spec.found is not None else "")
    elif isinstance(spec, RouteSpec):
        url = spec.to[0].url
    try:
        return canonical_resource(url) if url else ""
    except ValueError:
        return ""


def bearing(server: Server, exchange: Exchange | None) -> None:
    """Have `server` get tokens for what is asked of it beside calls, or no more."""
    if exchange is not None and exchange.passes:
        log.warning(
            "mcp server %s: it gets the callers' own tokens (`mode: passthrough`), and can use them", server.name
        )
    if isinstance(server, Upstream):
        server.bears = None if exchange is None else exchange.credential
