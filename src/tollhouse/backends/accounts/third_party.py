"""One server at which users have accounts of their own: how one is connected, and the tokens that calls carry
(`core.identity.Accounts`).

Rule: an account is connected by the one person whose agent asked for it, in the login that sent the request, by the
answer of the very issuer that was asked, once (RFC 9700 sections 4.4, 4.5, 4.7; MCP authorization). What an account was
made for is where its tokens go; where the configuration names another place, it is no account.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from hmac import compare_digest
from time import time
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from tollhouse.backends.accounts.asked import Asked, NotNow, Over
from tollhouse.backends.accounts.discovery import Discovery, Places
from tollhouse.backends.accounts.holdings import Holdings, needed
from tollhouse.backends.accounts.kept import Kept, account_id
from tollhouse.backends.accounts.records import Account, AccountRecord, AccountRefused, Granted, Opened, Pending
from tollhouse.backends.accounts.registration import Clients, client_document, configured
from tollhouse.backends.accounts.settings import AccountSettings, OurAddresses
from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.identity import Event, Target
from tollhouse.net.client import Client
from tollhouse.store.base import State
from tollhouse.wire.mcp.sealed import Seals, Unsealed
from tollhouse.wire.oauth import Form
from tollhouse.wire.oauth_client import ClientIdentity, Tokens, authorization_request

__all__ = ["ThirdParty"]

log = logging.getLogger("tollhouse.backends.accounts")

_KIND: Final = "account"
_LINK_FOR: Final = 600.0
_LONGEST_AGENT: Final = 256
_PATIENCE: Final = 5.0  # seconds that a page waits for what it can do without
_AGAIN: Final = "Have your agent ask again, and follow the new link."
_NOT_OURS: Final = f"This answer is not to a question of yours, or was used already. {_AGAIN}"
_DECLINED: Final = "The service says that you did not agree."
_TROUBLE: Final = f"The service did not connect your account. {_AGAIN}"
_CHANGED: Final = f"The settings of this service were changed meanwhile. {_AGAIN}"


class ThirdParty:
    """subject: the `sub` that this gateway's own login gives the principal's user, "" where he cannot log in here.
    seals: for links, of all nodes (`State.keys`). told: each account that has come (`account.connected`) or gone
    (`account.disconnected`). count: connected | refreshed | refused | failed | disconnected. now: unix seconds.
    timeout: seconds for an answer of an issuer. Needs a running loop. Raises OriginError for a `ca` that cannot be
    used."""

    def __init__(
        self,
        settings: AccountSettings,
        ours: OurAddresses,
        *,
        client: Client,
        state: State,
        seals: Seals,
        subject: Callable[[Principal], str],
        told: Callable[[Event], None] = lambda event: None,
        count: Callable[[str], None] = lambda outcome: None,
        now: Callable[[], float] = time,
        timeout: float = 10.0,
    ) -> None:
        self.server = settings.server
        self.ours = ours
        self.changed: Callable[[Callable[[Principal], bool]], None] | None = None
        self._settings = settings
        self._seals = seals
        self._subject = subject
        self._told = told
        self._count = count
        self._now = now
        places = Places(settings, client, timeout)
        self._kept = Kept(state.values)
        self._discovery = Discovery(settings, places, now)
        self._clients = Clients(settings, ours, places, self._kept, now)
        self._asked = Asked(places)
        self._holdings = Holdings(
            settings.server,
            lambda: self.host,
            self._kept,
            state.bus,
            self._asked,
            fits=self._fits,
            who=self._who,
            ended=self._gone,
            changed=self._tell,
            forget=self._clients.forget,
            left=self._discovery.left,
            count=count,
            now=now,
        )

    # ---- core.identity.Accounts
    @property
    def version(self) -> int:
        return self._holdings.version

    @property
    def host(self) -> str:
        """Where people agree to it, as far as that is known yet."""
        known = self._discovery.known
        place = self._settings.authorization_endpoint or (known.authorization_endpoint if known is not None else "")
        return urlsplit(place or self._settings.issuer or self._settings.url).netloc.rpartition("@")[2]

    def exchanged(self, principal: Principal, target: Target) -> Granted | Awaitable[Granted]:
        """A token of the account of this caller's user. Raises Failure: 403 `account_needed` where there is none, 403
        where there is no user, 503 where none can be had now."""
        id = self._id(principal)
        granted = self._holdings.at_once(id)
        return self._holdings.token(id) if granted is None else granted

    def link(self, principal: Principal) -> str:
        agent = (principal.client or principal.agent)[:_LONGEST_AGENT]
        fields = Opened(self.server, self._sub(principal), agent, self._now() + _LINK_FOR)
        return f"{self.ours.start}?{urlencode({'l': self._seals.seal(_KIND, fields)})}"

    async def connected(self, principal: Principal, timeout: float) -> bool:
        return await self._holdings.connected(self._id(principal), timeout)

    def refused(self, principal: Principal, token: bytes) -> None:
        self._discovery.forget()  # the server may have gone to another issuer
        self._holdings.refused(self._id(principal), token.decode("ascii", "replace"))

    async def lacks(self, principal: Principal, scopes: tuple[str, ...]) -> Failure | None:
        """What the operator has written is not exceeded; and who has the scopes and is refused all the same is not
        asked again for them. The Failure has the `scopes` where there is an account, which lacks them."""
        id = self._id(principal)
        record = await self._holdings.find(id)
        if self._settings.scopes is not None or (record is not None and frozenset(scopes) <= frozenset(record.scopes)):
            return None
        await self._kept.want(id, scopes)
        failure = needed(self.server, self.host)
        failure.scopes = scopes if record is not None else ()
        return failure

    # ---- for its pages
    def opened(self, token: str) -> Opened | None:
        """What a link says; None for what is no link for this server, or not any more."""
        try:
            opened = self._seals.open(_KIND, token, Opened)
        except Unsealed:
            return None
        return opened if opened.server == self.server else None

    async def begin(self, sub: str, agent: str, binding: str) -> str:
        """The URL at the issuer to send the browser to. sub: who is logged in. binding: of the login, which the answer
        must come back in. Raises AccountRefused; Failure 503 where the state cannot be reached."""
        issuer = await self._discovery.issuer()
        who, registered = await self._clients.at(issuer)
        settings = self._settings
        scopes = await self._scopes(sub, issuer.scopes)
        state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        pending = Pending(
            self.server, sub, agent[:_LONGEST_AGENT], binding, verifier, settings.url, issuer.issuer,
            issuer.token_endpoint, issuer.revocation_endpoint, issuer.resource, scopes, issuer.is_iss_sent,
            who.client_id, who.secret if registered else "", who.method, registered,
        )  # fmt: skip
        await self._kept.begin(state, pending)
        more = dict(settings.parameters)
        if "offline_access" in scopes:
            more.setdefault("prompt", "consent")  # OpenID Connect Core section 11
        asked: dict[str, str] = {
            **more,
            "client_id": who.client_id,
            "redirect_uri": self.ours.callback,
            "scope": " ".join(scopes),
            "state": state,
            "resource": issuer.resource,
        }
        return authorization_request(issuer.authorization_endpoint, verifier=verifier, **asked)

    async def asks(self, sub: str) -> tuple[str, ...]:
        """The scopes that `begin` asks for, so that the user can see them before; none where nobody can say them in
        time. Raises Failure 503 where the state cannot be reached."""
        if self._settings.scopes is not None:
            return self._settings.scopes
        try:
            async with asyncio.timeout(_PATIENCE):
                issuer = await self._discovery.issuer()
        except (TimeoutError, AccountRefused):  # which `begin` tells him
            return ()
        return await self._scopes(sub, issuer.scopes)

    async def _scopes(self, sub: str, scopes: tuple[str, ...]) -> tuple[str, ...]:
        """With these, all that it has, and what it lacks (MCP authorization, Step-Up Authorization Flow)."""
        id = account_id(self.server, sub)
        wanted = await self._kept.wanted(id) if self._settings.scopes is None else ()
        if not wanted:
            return scopes
        record = await self._holdings.find(id)
        return tuple(dict.fromkeys((*scopes, *(record.scopes if record is not None else ()), *wanted)))

    async def finish(self, sub: str, binding: str, form: Form) -> None:
        """Connect the account that an answer is about. sub, binding: of the login in which it has come. form: its
        parameters. Raises AccountRefused; Failure 503 where the state cannot be reached."""
        try:
            await self._finish(sub, binding, form)
        except AccountRefused:
            self._count("refused")
            raise

    async def _finish(self, sub: str, binding: str, form: Form) -> None:
        pending = await self._answered(sub, binding, form)
        asked = self._now()
        try:
            tokens = await self._asked.redeem(pending, self._who(pending), form.get("code"), self.ours.callback)
        except Over as over:
            if over.error == "invalid_client" and pending.registered:
                await self._clients.forget(pending.issuer, pending.client_id)
            raise AccountRefused(f"{pending.issuer} gives no tokens for its code: {over}", _TROUBLE) from None
        except NotNow as why:
            self._discovery.forget()
            raise AccountRefused(f"{pending.issuer} gives no tokens for its code: {why}", _TROUBLE) from None
        record = _connected(pending, tokens, asked)
        await self._holdings.put(account_id(self.server, sub), record)
        self._count("connected")
        self._told(self._event("account.connected", record))

    async def _answered(self, sub: str, binding: str, form: Form) -> Pending:
        """What was asked, if the answer is to it and for who is logged in now. Raises AccountRefused."""
        state = form.get("state")
        pending = await self._kept.pending(state) if state else None
        if pending is None:
            raise AccountRefused("its `state` is none of ours, or was used, or is too old", _NOT_OURS)
        if pending.server != self.server:
            raise AccountRefused(f"its `state` is of {pending.server}", _NOT_OURS)
        is_theirs = compare_digest(_octets(pending.binding), _octets(binding))
        if not is_theirs or not compare_digest(_octets(pending.sub), _octets(sub)):
            raise AccountRefused("its `state` is of another login", _NOT_OURS)
        iss = form.get("iss")
        if (iss or pending.is_iss_sent) and iss != pending.issuer:
            raise AccountRefused("the answer is another issuer's, or does not say whose it is (`iss`)", _NOT_OURS)
        error = form.get("error")
        if error:
            if error in ("invalid_client", "unauthorized_client") and pending.registered:
                await self._clients.forget(pending.issuer, pending.client_id)
            said = _DECLINED if error == "access_denied" else _TROUBLE
            raise AccountRefused(f"{pending.issuer} answered {error[:64]!r}", said)
        if not form.get("code"):
            raise AccountRefused("the answer has no `code`", _TROUBLE)
        if not self._fits(pending):
            raise AccountRefused("the configuration names another place by now", _CHANGED)
        return pending

    async def account(self, sub: str) -> Account | None:
        """The account of this user. Raises Failure 503."""
        record = await self._holdings.find(account_id(self.server, sub))
        if record is None:
            return None
        host = urlsplit(record.issuer or record.token_endpoint).netloc.rpartition("@")[2]
        return Account(host, record.scopes, record.since, record.agent)

    async def disconnect(self, sub: str) -> bool:
        """End the account of this user: here at once, on other nodes as soon as they hear of it, and then at its
        issuer, where that can be asked (RFC 7009). Whether there was one. Raises Failure 503."""
        record = await self._holdings.take(account_id(self.server, sub))
        if record is None:
            return False
        self._count("disconnected")
        self._told(self._event("account.disconnected", record))
        if self._fits(record):  # what was made for another place is shown to nobody
            why = await self._asked.revoke(record, self._who(record))
            if why:
                log.warning(
                    "mcp server %s: an account was disconnected, but %s may not know: %s",
                    self.server,
                    record.issuer,
                    why,
                )
        return True

    def client_metadata(self, callbacks: tuple[str, ...]) -> dict[str, Any]:
        """What our client id metadata document says, with these redirect URIs."""
        return client_document(self.ours, callbacks)

    async def close(self) -> None:
        """Refreshes that are under way are waited for."""
        await self._discovery.close()
        await self._holdings.close()

    # ---- whose
    def _sub(self, principal: Principal) -> str:
        sub = self._subject(principal)
        if not sub:
            raise Failure(
                403,
                Reason.AUTHORIZATION,
                f"{self.server}: this needs a user who can log in at the gateway; keys, and clients that speak for "
                "themselves, have no accounts",
                code="access_denied",
            )
        return sub

    def _id(self, principal: Principal) -> str:
        return account_id(self.server, self._sub(principal))

    def _is(self, principal: Principal, id: str) -> bool:
        sub = self._subject(principal)
        return bool(sub) and account_id(self.server, sub) == id

    def _tell(self, id: str | None) -> None:
        if self.changed is not None:
            self.changed(lambda principal: bool(self._subject(principal)) if id is None else self._is(principal, id))

    # ---- what it was made for
    def _fits(self, made: AccountRecord | Pending) -> bool:
        """Whether the configuration still means the place that it was made for."""
        settings = self._settings
        if made.url != settings.url:
            return False
        for name in ("issuer", "token_endpoint"):
            wanted = getattr(settings, name)
            if wanted and getattr(made, name) != wanted:
                return False
        if settings.resource != "server" and made.resource != (
            "" if settings.resource == "none" else settings.resource
        ):
            return False
        if settings.client_id:
            return made.client_id == settings.client_id
        return made.registered or made.client_id == self.ours.document

    def _who(self, made: AccountRecord | Pending) -> ClientIdentity:
        """We are as the record says; what proves it is the configuration's, where it has that."""
        return configured(self._settings, (made.method,)) if self._settings.client_id else made.who

    def _gone(self, record: AccountRecord) -> None:
        self._told(self._event("account.disconnected", record))

    def _event(self, operation: str, record: AccountRecord) -> Event:
        return Event(operation, client=record.agent, subject=record.sub, scopes=record.scopes, audience=self.server)


def _connected(pending: Pending, tokens: Tokens, now: float) -> AccountRecord:
    return AccountRecord(
        pending.sub, pending.url, pending.issuer, pending.token_endpoint, pending.revocation_endpoint,
        pending.resource, pending.client_id, pending.secret, pending.method, pending.registered,
        tokens.access, tokens.refresh, now, now + tokens.life if tokens.life is not None else 0.0,
        pending.scopes if tokens.scopes is None else tokens.scopes, now, pending.agent,
    )  # fmt: skip


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
