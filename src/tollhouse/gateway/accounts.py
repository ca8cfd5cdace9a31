"""Accounts that users have connected at servers of others: who keeps them, and whose they are.

Rule: a server's accounts are looked after by the same ThirdParty as long as nothing changes that it was made of. Whose
a call is, is who the auth provider's own login would say it is; who cannot log in there has no account.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

from tollhouse.backends.accounts import AccountRefused, AccountSettings, Directory, OurAddresses, ThirdParty
from tollhouse.config.spec import Config, HttpServer, OpenApiServer, RestServer, StdioServer
from tollhouse.core.call import Principal
from tollhouse.core.errors import ConfigError, Problem
from tollhouse.core.identity import Accounts, Event
from tollhouse.gateway.account_list import AccountList, Listed, Names
from tollhouse.gateway.assembly import Assembly
from tollhouse.gateway.exchangers import upstream_uri
from tollhouse.gateway.state import file_of, opened_state
from tollhouse.issuer import accounts as pages
from tollhouse.issuer.spec import IssuerSpec
from tollhouse.issuer.subject import federated, is_federated
from tollhouse.net.client import Client
from tollhouse.net.egress import Egress
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.audit import Audit
from tollhouse.policies.oauth_spec import OauthSpec
from tollhouse.store.base import State
from tollhouse.wire.mcp.sealed import Seals
from tollhouse.wire.oauth import Form

__all__ = ["ConnectedAccounts", "Logins", "Services", "disconnect", "listed", "ours_of", "settings_of", "unsealed"]

T = TypeVar("T")

log = logging.getLogger("tollhouse.gateway")

_NO_LOGIN = frozenset(("key", "basic", "mtls", "ext", "anonymous"))
"""Where principals come from behind whom there is nobody whom the login would know."""


class Logins:
    """Who can log in here. Equal ones say the same."""

    __slots__ = ("_known", "_links", "_url")

    def __init__(self, spec: IssuerSpec) -> None:
        self._url = spec.url
        self._known = frozenset(user.name for user in spec.users)
        self._links = frozenset(upstream.issuer for upstream in spec.upstream)

    def subject(self, principal: Principal) -> str:
        """The `sub` that the login gives this caller's user; "" where there is none who could log in, as behind a key
        or a client that speaks for itself."""
        sub, issuer = principal.subject, principal.issuer
        if principal.source in _NO_LOGIN or not sub or not issuer:
            return ""
        if issuer == self._url:
            # Names of clients are none of users (`IssuerSpec`): a client's own token is of nobody.
            return sub if sub in self._known or (is_federated(sub) and self._links) else ""
        return federated(issuer, sub) if issuer in self._links else ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Logins) and self._all == other._all

    def __hash__(self) -> int:
        return hash(self._all)

    @property
    def _all(self) -> tuple[str, frozenset[str], frozenset[str]]:
        return self._url, self._known, self._links


class ConnectedAccounts:
    """Of one configuration. services: as pages see them, and listed: as operators do; None where no server has `oauth`.
    key: equal as long as they are the same. Make it before the auth provider, which has the pages."""

    def __init__(self, assembly: Assembly) -> None:
        self.services: Services | None = None
        self.listed: AccountList | None = None
        self.key: tuple[Any, ...] = ()
        self._directory = Directory(())
        config, fixtures = assembly.config, assembly.fixtures
        spec = config.issuer
        found = settings_of(config)
        if spec is None or not found:
            return
        logins = Logins(spec)
        services = []
        for settings in found:
            ours = ours_of(spec, settings.server)
            key = ("accounts", settings, ours, logins)
            with assembly.finding(f"mcp.servers.{settings.server}.oauth"):
                make = partial(_made, settings, ours, logins, fixtures.client, fixtures.state, fixtures.families)
                service = assembly.tenure.get(key, make, _Service.close)
                assembly.starts.append(partial(service.recorded_by, assembly.audit))
                services.append(service)
                self.key += (key,)
        self._directory = Directory([service.party for service in services], _document(spec))
        self.services = Services(self._directory, services)
        self.listed = AccountList(services, fixtures.state.values)
        if warning := unsealed(config):
            assembly.starts.append(partial(log.warning, "%s", warning))

    def of(self, server: str) -> Accounts | None:
        """Those at a server, by its name."""
        return self._directory.find(server)


def unsealed(config: Config) -> str:
    """What to say where accounts would be kept as they are; "" where there are none, or they are encrypted."""
    if config.issuer is None or config.state.encryption_key or not settings_of(config):
        return ""
    file = file_of(config.state, config.ledger_file)
    where = "there" if file is None else f"in {str(file)!r}"
    return (
        f"the tokens of accounts that users connect are kept {where} as they are; write `state: {{url: ..., "
        "encryption_key: ...}`, and make one with: openssl rand -base64 32"
    )


def settings_of(config: Config) -> list[AccountSettings]:
    """Of every server at which users connect accounts."""
    found = []
    for name, server in (config.mcp.servers if config.mcp is not None else {}).items():
        if not isinstance(server, StdioServer) and server.oauth is not None:
            found.append(_settings(name, server, server.oauth))
    return found


def _settings(name: str, server: HttpServer | OpenApiServer | RestServer, spec: OauthSpec) -> AccountSettings:
    secret = spec.client_secret
    return AccountSettings(
        name,
        server.url if isinstance(server, HttpServer) else upstream_uri(server),
        issuer=spec.issuer or "",
        authorization_endpoint=spec.authorization_endpoint or "",
        token_endpoint=spec.token_endpoint or "",
        revocation_endpoint=spec.revocation_endpoint or "",
        client_id=spec.client_id or "",
        client_secret="" if secret is None else secret.get_secret_value(),
        client_auth=spec.client_auth or "",
        scopes=spec.scopes,
        resource=spec.resource,
        parameters=tuple(spec.parameters.items()),
        ca=spec.ca or "",
        tls=None if server.tls is None else server.tls.value(),
        proxy=server.proxy or "",
        is_mcp=isinstance(server, HttpServer),
    )


def ours_of(spec: IssuerSpec, server: str) -> OurAddresses:
    """What we are for those who issue tokens for a server."""
    at = f"{spec.url}/oauth/"
    return OurAddresses(f"{at}{pages.START}", f"{at}{pages.CALLBACK}/{server}", _document(spec))


def _document(spec: IssuerSpec) -> str:
    """Where others read who we are; "" where nobody would (it is https)."""
    return f"{spec.url}/oauth/{pages.CLIENT}" if spec.url.startswith("https:") else ""


class Services:
    """The directory as the auth provider's pages see it (`issuer.accounts.Services`)."""

    def __init__(self, directory: Directory, services: Sequence["_Service"]) -> None:
        self._all = {service.name: service for service in services}
        self._directory = directory

    def find(self, server: str) -> pages.Service | None:
        return self._all.get(server)

    def all(self) -> Sequence[pages.Service]:
        return tuple(self._all.values())

    def opened(self, link: str) -> tuple[pages.Service, pages.Opened] | None:
        found = self._directory.opened(link)
        return None if found is None else (self._all[found[0].server], found[1])

    def client_metadata(self) -> dict[str, Any] | None:
        return self._directory.client_metadata()


class _Service:
    """A server as pages see it; what is refused is refused in their own words. What pages do they record with who has
    asked for it; what comes or goes without them is recorded here."""

    __slots__ = ("_audit", "_heard", "_names", "name", "party")

    party: ThirdParty

    def __init__(self, settings: AccountSettings, names: Names) -> None:
        self.name = settings.server
        self._names = names
        self._heard: list[tuple[str, list[Event]]] = []  # of those who wait for it, by user
        self._audit: Audit | None = None

    @property
    def host(self) -> str:
        return self.party.host

    async def asks(self, sub: str) -> Sequence[str]:
        return await self.party.asks(sub)

    async def begin(self, sub: str, agent: str, binding: str) -> str:
        try:
            return await self.party.begin(sub, agent, binding)
        except AccountRefused as refused:
            raise pages.AccountRefused(str(refused), refused.said) from None

    async def finish(self, sub: str, binding: str, form: Form) -> Event:
        with self._hearing(sub) as heard:
            await self._names.add(sub)  # before: none is ever missing; behind: who looked meanwhile found none
            try:
                await self.party.finish(sub, binding, form)
            except AccountRefused as refused:
                raise pages.AccountRefused(str(refused), refused.said) from None
            await self._names.add(sub)
        return heard[-1]

    async def account(self, sub: str) -> pages.Account | None:
        return await self.party.account(sub)

    async def disconnect(self, sub: str) -> Event | None:
        with self._hearing(sub) as heard:
            return heard[-1] if await self.party.disconnect(sub) else None

    @contextmanager
    def _hearing(self, sub: str) -> Iterator[list[Event]]:
        """What is told of this user meanwhile, which whoever asked for it records."""
        heard: list[Event] = []
        entry = (sub, heard)
        self._heard.append(entry)
        try:
            yield heard
        finally:
            self._heard.remove(entry)

    def recorded_by(self, audit: Audit | None) -> None:
        """Of the configuration that serves."""
        self._audit = audit

    def told(self, event: Event) -> None:
        """An account has come or gone."""
        log.info("mcp server %s: %s of user %r", self.name, event.operation, event.subject)
        for sub, heard in self._heard:
            if sub == event.subject:
                heard.append(event)
                return
        if self._audit is not None:
            self._audit.happened(event)

    async def close(self) -> None:
        await self.party.close()


def listed(config: Config, server: str = "", user: str = "") -> list[Listed]:
    """The accounts that there are, as a command sees them. Raises ConfigError where there can be none, Failure 503."""

    async def all_of(accounts: AccountList) -> list[Listed]:
        found = await accounts.page(("", ""), sys.maxsize)
        return [one for one in found if (not server or one.server == server) and (not user or one.user == user)]

    return asyncio.run(_at(config, all_of))


def disconnect(config: Config, id: str) -> Listed | None:
    """End the account of that id, as a command does; None where there is none. Raises as `listed`."""

    async def ended(accounts: AccountList) -> Listed | None:
        found = await accounts.find(id)
        return found if found is not None and await accounts.disconnect(found) else None

    return asyncio.run(_at(config, ended))


async def _at(config: Config, use: Callable[[AccountList], Awaitable[T]]) -> T:
    spec, found = config.issuer, settings_of(config)
    if spec is None or not found:
        raise ConfigError([Problem("no server here has `oauth`, so there are no accounts", path="mcp.servers")])
    logins, families = Logins(spec), Families(Metrics())
    async with AsyncExitStack() as stack:
        file = file_of(config.state, config.ledger_file)
        state, clock = await stack.enter_async_context(opened_state(config.state, file))
        client = Client(clock, egress=Egress(config.egress.allow))
        stack.push_async_callback(client.close)
        services = []
        for settings in found:
            services.append(_made(settings, ours_of(spec, settings.server), logins, client, state, families))
            stack.push_async_callback(services[-1].close)
        return await use(AccountList(services, state.values))


def _made(
    settings: AccountSettings, ours: OurAddresses, logins: Logins, client: Client, state: State, families: Families
) -> _Service:
    service = _Service(settings, Names(state.values, settings.server))
    service.party = ThirdParty(
        settings,
        ours,
        client=client,
        state=state,
        seals=Seals(state.keys),
        subject=logins.subject,
        told=service.told,
        count=partial(_counted, families, settings.server),
    )
    return service


def _counted(families: Families, server: str, outcome: str) -> None:
    families.accounts.child(server, outcome).inc()
