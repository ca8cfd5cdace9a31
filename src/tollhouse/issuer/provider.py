"""The auth provider: all its addresses, made of one IssuerSpec.

Rule: this is where its parts are joined, and nothing else is done here. What must outlive a configuration (its keys,
what has been revoked, the state) is given to it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from time import time
from typing import Final
from urllib.parse import urlsplit

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.http import Request
from tollhouse.issuer.access_tokens import LEEWAY, AccessTokens
from tollhouse.issuer.accounts import Services
from tollhouse.issuer.answers import ErrorPage, answering, rendering
from tollhouse.issuer.backchannel import BackchannelLogout
from tollhouse.issuer.client_auth import ClientAuth
from tollhouse.issuer.clients import Clients
from tollhouse.issuer.counts import Counts
from tollhouse.issuer.device import VERIFY
from tollhouse.issuer.discovery import discovery, enabled_grants, metadata
from tollhouse.issuer.families import Families
from tollhouse.issuer.front import Front
from tollhouse.issuer.grants.authorization_code import AuthorizationCode
from tollhouse.issuer.grants.base import Grant
from tollhouse.issuer.grants.client_credentials import ClientCredentials
from tollhouse.issuer.grants.device_code import DeviceAuthorization, DeviceCode
from tollhouse.issuer.grants.jwt_bearer import JwtBearer
from tollhouse.issuer.grants.refresh_token import RefreshToken
from tollhouse.issuer.grants.token_exchange import TokenExchange
from tollhouse.issuer.introspect import Introspection
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.login import user_info
from tollhouse.issuer.mint import Mint
from tollhouse.issuer.parts import Parts, Tables
from tollhouse.issuer.proof import Proofs
from tollhouse.issuer.records import Family, UserInfo
from tollhouse.issuer.register import Registration
from tollhouse.issuer.resources import Resource, Resources
from tollhouse.issuer.revoke import Revocation
from tollhouse.issuer.served import Served
from tollhouse.issuer.spec import GRANTS, IssuerSpec
from tollhouse.issuer.subject import is_federated
from tollhouse.issuer.throttle import Throttle
from tollhouse.issuer.token import TokenEndpoint
from tollhouse.issuer.trusted import TrustedIssuers
from tollhouse.net.client import Client
from tollhouse.store.base import State
from tollhouse.store.revocation import Revocations
from tollhouse.wire.dpop import Nonces

__all__ = ["Address", "Issuer"]

log = logging.getLogger("tollhouse.issuer")

_POST: Final = frozenset((b"POST",))
_AGAIN: Final = (0.1, 0.2, 0.5, 1.0, 2.0)


class Address:
    """Where something is served: path, methods, handler, and how a Failure looks there. open: scripts of any origin may
    ask and read."""

    __slots__ = ("_page", "_served", "exact", "handler", "methods", "open", "path", "render")

    def __init__(self, served: Served, page: ErrorPage) -> None:
        self._served = served
        self._page = page
        self.open = served.open
        self.path = served.path
        self.methods = served.methods
        self.exact = served.exact
        self.handler = answering(served, page)
        self.render = rendering(served, page)

    def closed(self) -> "Address":
        """The same, where somebody else says whose scripts may ask and read."""
        return Address(self._served._replace(open=False), self._page)


class Issuer:
    """url: as clients reach it. resources: what tokens are for, by canonical URI. keys, revocations: of the process.
    now: unix seconds. counts: told of what happens. services: at which users connect accounts of theirs, None for none.
    Raises ValueError for what cannot be used.

    `start` it when it serves, `close` it in the end. mint: makes tokens in this process. tokens: reads ours.
    """

    def __init__(
        self,
        spec: IssuerSpec,
        *,
        state: State,
        clock: Clock,
        client: Client,
        resources: Mapping[str, Resource],
        keys: SigningKeys,
        revocations: Revocations,
        now: Callable[[], float] = time,
        certificate: Callable[[Request], bytes] = lambda request: request.certificate,
        counts: Counts = Counts(),  # noqa: B008 - a value
        services: Services | None = None,
    ) -> None:
        self.url = spec.url
        self._keys = keys
        self._opening: asyncio.Task[None] | None = None
        split = urlsplit(spec.url)
        tables = Tables(state.values)
        ttl = spec.ttl
        trusted_may_act = [one.issuer for one in spec.trusted if one.trust_may_act]
        self.mint = Mint(spec.url, keys, now, trusted_may_act=trusted_may_act)
        clients = Clients(
            spec.clients, spec.registration, values=state.values, fetcher=client, now=now, keys_read=counts.keys_read
        )
        longest = max(ttl.access, *(one.access_ttl or 0.0 for one in spec.clients), 0.0) + LEEWAY
        families = Families(
            state.values,
            partial(keys.secrets, "refresh"),
            revocations,
            now,
            issuer=spec.url,
            idle=ttl.refresh_idle,
            life=ttl.refresh,
            grace=ttl.refresh_grace,
            longest=longest,
            reused=counts.reused,
        )
        self.parts = parts = Parts(
            spec=spec,
            url=spec.url,
            base=split.path,
            state=state,
            clock=clock,
            now=now,
            fetcher=client,
            resources=Resources(spec.url, resources, spec.scopes),
            tables=tables,
            keys=keys,
            mint=self.mint,
            clients=clients,
            families=families,
            revocations=revocations,
            counts=counts,
            backchannel=BackchannelLogout(self.mint, clients, client),
        )
        self._trusted = TrustedIssuers(spec.trusted, client, tables.replays, now, own=spec.url, counts=counts)
        auth = ClientAuth(
            clients,
            tables.replays,
            Throttle(now),
            now,
            issuer=spec.url,
            token_endpoint=parts.at("token"),
            certificate=certificate,
            counts=counts,
        )
        nonces = Nonces(partial(keys.secrets, "dpop"), now)
        root = f"{split.scheme}://{split.netloc}"
        proofs = Proofs(tables.replays, nonces, now, root=root, certificate=certificate, replayed=counts.replayed)
        tokens = self.tokens = AccessTokens(spec.url, keys, revocations, now)
        front = self._front = Front(parts, auth, tokens, proofs, services)
        trusts_jwt = self._trusted.takes("id_jag") or self._trusted.takes("jwt_bearer")
        enabled = enabled_grants(parts, can_log_in=front.can_log_in, trusts_jwt=trusts_jwt)
        made = self._grants(parts, tokens)
        grants = {name: made[name] for name in enabled}
        endpoint = TokenEndpoint(auth, proofs, grants, self.mint, ttl, now, counts.token, clients.used)
        served = [
            Served(parts.path("token"), _POST, endpoint.handle, open=True),
            Served(parts.path("introspect"), _POST, Introspection(auth, tokens).handle),
            Served(parts.path("revoke"), _POST, Revocation(auth, families, tokens, revocations, now).handle, open=True),
            *front.served(),
        ]
        if GRANTS["device_code"] in enabled:
            device = DeviceAuthorization(tables.devices, auth, parts.resources, now, parts.at(VERIFY), state.counter)
            served.append(Served(parts.path("device"), _POST, device.handle, open=True))
        if spec.registration.dynamic != "off" and front.can_log_in:
            registration = Registration(spec.registration, clients, state.counter, now)
            served.append(Served(parts.path("register"), _POST, registration.handle, open=True))
        prefix = parts.path("")
        names = frozenset(one.path.removeprefix(prefix) for one in served)
        self.metadata = metadata(parts, enabled, id_jag=self._trusted.takes("id_jag"), pages=names)
        served += discovery(parts, self.metadata)
        self.addresses = tuple(Address(one, front.browser.error) for one in served)

    def _grants(self, parts: Parts, tokens: AccessTokens) -> dict[str, Grant]:
        families, resources, now = parts.families, parts.resources, parts.now
        exchange = TokenExchange(tokens, self._trusted, self.mint, resources, ttl=parts.spec.ttl.exchanged)
        return {
            GRANTS["authorization_code"]: AuthorizationCode(
                parts.tables.codes, families, resources, parts.counts.replayed
            ).grant,
            GRANTS["refresh_token"]: RefreshToken(families, resources, _known(parts.spec)).grant,
            GRANTS["client_credentials"]: ClientCredentials(resources).grant,
            GRANTS["device_code"]: DeviceCode(parts.tables.devices, families, resources, now).grant,
            GRANTS["token_exchange"]: exchange.grant,
            GRANTS["jwt_bearer"]: JwtBearer(self._trusted, resources).grant,
        }

    def start(self) -> None:
        """Read the keys, or make the first ones. May be called again."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())

    async def ready(self) -> None:
        """Return when it can sign, after `start`."""
        if self._opening is not None:
            await asyncio.shield(self._opening)

    async def close(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
            await asyncio.wait((opening,))
        await self._front.close()
        if self.parts.backchannel is not None:
            await self.parts.backchannel.close()
        await self._trusted.close()
        await self.parts.clients.close()

    async def _open(self) -> None:
        tries = 0
        while True:
            try:
                await self._keys.load()
                self._keys.start()
                return
            except Failure as failure:
                wait = _AGAIN[min(tries, len(_AGAIN) - 1)]
                if tries in (0, 10):
                    log.warning("the signing keys cannot be read: %s; trying again", failure.detail)
                tries += 1
            except Exception:  # the root of the opening task: whoever waits must get an answer
                log.exception("reading the signing keys failed; trying again")
                wait = _AGAIN[-1]
            await asyncio.sleep(wait)


def _known(spec: IssuerSpec) -> Callable[[Family], UserInfo | None]:
    """What is known of a user: of local ones what the configuration says, of others what their issuer has said, as long
    as that is in the configuration."""
    local = {user.name: user_info(user) for user in spec.users}
    links = {upstream.issuer: upstream.link_by_email for upstream in spec.upstream}

    def known(family: Family) -> UserInfo | None:
        if family.upstream and family.upstream not in links:
            return None
        if is_federated(family.sub):
            return family.user if links else None
        return local.get(family.sub) if not family.upstream or links[family.upstream] else None

    return known
