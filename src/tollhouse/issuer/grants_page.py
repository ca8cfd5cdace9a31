"""The page on which users see what they have allowed, and take it back.

Rule: what is taken back ends at once: the consent, the refresh tokens and the access tokens that came of it; an account
that was connected, at the service too where that can be told.
"""

from datetime import UTC, datetime

from tollhouse.core.errors import Failure
from tollhouse.core.http import Request, Response
from tollhouse.core.identity import Event
from tollhouse.issuer.accounts import Services, connected_of
from tollhouse.issuer.answers import form_of
from tollhouse.issuer.browser import Browser, application, name_of
from tollhouse.issuer.consent import wishes_of
from tollhouse.issuer.consents import DEVICE, Consents
from tollhouse.issuer.forgery import check, token
from tollhouse.issuer.login_throttle import LoginThrottle
from tollhouse.issuer.pages.account import connected
from tollhouse.issuer.pages.consent import Application
from tollhouse.issuer.pages.grants import Allowed, grants
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.records import Consent, Interaction, Session
from tollhouse.issuer.throttle import address_of
from tollhouse.wire.oauth import Form, OAuthError

__all__ = ["GrantsPage"]

_ACTION = "grants"


class GrantsPage:
    """`handle` answers GET (the list) and POST (take one back). services: at which accounts can be connected, None
    where there are none."""

    __slots__ = ("_browser", "_consents", "_parts", "_services", "_throttle")

    def __init__(self, parts: Parts, browser: Browser, consents: Consents, services: Services | None = None) -> None:
        self._parts = parts
        self._browser = browser
        self._consents = consents
        self._services = services
        self._throttle = LoginThrottle(parts.state.counter, parts.counts.throttled)

    async def handle(self, request: Request) -> Response:
        browser = self._browser
        is_post = request.method == b"POST"
        form = await form_of(request) if is_post else Form.parse(request.query)
        login = await browser.sessions.current(request)
        if login is None:
            await self._throttle.must_begin(address_of(request))
            return await browser.begin_login(request, Interaction("", "", (), (), "", then="grants"))
        if is_post:
            check(request, browser.origin, form, _ACTION, login.id)
            if form.get("do") == "disconnect":
                await self._disconnect(request, login.value, form.need("server"))
                return browser.see_other(browser.path("grants", disconnected="1"))
            client_id = form.need("client_id")
            if await self._revoke(login.value.sub, client_id):
                request.context.event = Event(
                    "issuer.consent_withdrawn", client=client_id, subject=login.value.sub, session=login.value.sid
                )
            return browser.see_other(browser.path("grants", done="1"))
        accounts = [] if self._services is None else await connected_of(self._services, login.value.sub)
        allowed = [await self._shown(consent) for consent in await self._consents.all(login.value.sub)]
        body = grants(
            action=browser.path("grants"),
            logout=browser.path("logout"),
            csrf=token(_ACTION, login.id),
            user=name_of(login.value),
            notice=_notice(form, [one.server for one in accounts]),
            allowed=allowed,
            accounts=connected(accounts, action=browser.path("grants"), csrf=token(_ACTION, login.id)),
        )
        return browser.page("What you have allowed", body)

    async def _revoke(self, sub: str, client_id: str) -> bool:
        """Whether there was something to take back. Tokens first: a consent that is still listed can be taken back
        again. Of what nobody has allowed there are no tokens: the list of what is revoked is everybody's, and has an
        end."""
        if not await self._consents.has(sub, client_id):
            return False
        await self._parts.families.end_grant(client_id, sub)
        await self._consents.forget(sub, client_id)
        return True

    async def _disconnect(self, request: Request, session: Session, server: str) -> None:
        service = self._services.find(server) if self._services is not None else None
        event = None if service is None else await service.disconnect(session.sub)
        if event is not None:
            request.context.event = event._replace(session=session.sid)

    async def _shown(self, consent: Consent) -> Allowed:
        try:
            client = await self._parts.clients.find(consent.client_id)
        except (OAuthError, Failure):  # its document cannot be had now: it can be taken back all the same
            client = None
        shown = application(client) if client is not None else Application(consent.client_id, "", False)
        asked: dict[str, tuple[str, ...]] = {}
        for entry in consent.entries:
            known = asked.get(entry.resource, ())
            asked[entry.resource] = (*known, *(scope for scope in entry.scopes if scope not in known))
        since = min(entry.at for entry in consent.entries)
        redirects = dict.fromkeys(e.redirect_host for e in consent.entries if e.redirect_host != DEVICE)
        return Allowed(
            consent.client_id,
            shown,
            datetime.fromtimestamp(since, UTC).strftime("%d %B %Y").lstrip("0"),
            tuple(redirects),
            wishes_of(self._parts.resources, asked),
        )


def _notice(form: Form, connected: list[str]) -> str:
    """What was done, as the address says it; of accounts only what is there."""
    server = form.get("connected")
    if server and server in connected:
        return f"Your account at {server} is connected. You can close this page and go back to your agent."
    if "disconnected" in form:
        return "It is disconnected."
    return "It is taken back." if "done" in form else ""
