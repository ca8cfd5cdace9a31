"""The pages on which users connect accounts of theirs at services of others, whose OAuth client the gateway is.

Rule: a link is for one user of one service: who opens it must be logged in as exactly that user, or an account of one
would be used by another (MCP elicitation, URL mode: phishing). Opening it begins nothing; a form of ours does, and the
answer of the service counts in the session that has sent it alone. Where a browser is led, no parameter decides.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol

from tollhouse.core.errors import Failure
from tollhouse.core.http import Request, Response
from tollhouse.core.identity import Event
from tollhouse.issuer.answers import form_of, json
from tollhouse.issuer.browser import Browser, application, name_of
from tollhouse.issuer.cookies import digest
from tollhouse.issuer.forgery import check, token
from tollhouse.issuer.login_throttle import LoginThrottle
from tollhouse.issuer.pages.account import Connected, connect, leaving
from tollhouse.issuer.pages.consent import Application
from tollhouse.issuer.pages.message import message
from tollhouse.issuer.pages.onward import refresh
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.records import Interaction, Session
from tollhouse.issuer.served import Served
from tollhouse.issuer.throttle import address_of
from tollhouse.store.table import Held
from tollhouse.wire.oauth import Form, OAuthError

__all__ = [
    "CALLBACK", "CLIENT", "START", "Account", "AccountPages", "AccountRefused", "Opened", "Service", "Services",
    "connected_of",
]  # fmt: skip

START: Final = "upstream/start"
CALLBACK: Final = "upstream/callback"
CLIENT: Final = "upstream/client"

_GET = frozenset((b"GET",))
_BOTH = _GET | frozenset((b"POST",))
_ACTION = "account"
_LONGEST = 4096  # characters of a link's token
_NOWHERE = "The service does not say where to go."
_TITLE = "Connect an account"


class AccountRefused(Exception):
    """No account is connected by this. The text is for the log; said: what the person may read."""

    def __init__(self, detail: str, said: str) -> None:
        super().__init__(detail)
        self.said = said


class Opened(Protocol):
    """What a link says. sub: whose it is. agent: that wants the account, as the caller's token names it."""

    @property
    def sub(self) -> str: ...

    @property
    def agent(self) -> str: ...


class Account(Protocol):
    """An account that is connected. host: where. since: unix seconds. agent: that had asked for it."""

    @property
    def host(self) -> str: ...

    @property
    def scopes(self) -> Sequence[str]: ...

    @property
    def since(self) -> float: ...

    @property
    def agent(self) -> str: ...


class Service(Protocol):
    """A server of somebody else's at which users have accounts. name: of the server in the configuration. host: where
    users agree to it, as far as it is known now."""

    @property
    def name(self) -> str: ...

    @property
    def host(self) -> str: ...

    async def asks(self, sub: str) -> Sequence[str]:
        """The scopes that `begin` will ask for; none where only the service knows. Raises Failure 503."""
        ...

    async def begin(self, sub: str, agent: str, binding: str) -> str:
        """The URL to send the browser to. binding: of the login that it is sent in. Raises AccountRefused, Failure
        503."""
        ...

    async def finish(self, sub: str, binding: str, form: Form) -> Event:
        """Keep the account that the answer's parameters are about: what has happened, for the audit. Raises
        AccountRefused, Failure 503."""
        ...

    async def account(self, sub: str) -> Account | None:
        """Raises Failure 503."""
        ...

    async def disconnect(self, sub: str) -> Event | None:
        """What has happened, for the audit; None where there was no account. Raises Failure 503."""
        ...


class Services(Protocol):
    """All of a configuration."""

    def find(self, server: str) -> Service | None: ...

    def all(self) -> Sequence[Service]: ...

    def opened(self, link: str) -> tuple[Service, Opened] | None:
        """Whose a link is, and what it says; None for one that is none of ours, or not any more."""
        ...

    def client_metadata(self) -> dict[str, Any] | None:
        """Our metadata document as a client (CIMD); None where nobody outside could read it."""
        ...


class AccountPages:
    """services: at which accounts can be connected; at least one."""

    __slots__ = ("_browser", "_parts", "_services", "_throttle")

    def __init__(self, parts: Parts, browser: Browser, services: Services) -> None:
        self._parts = parts
        self._browser = browser
        self._services = services
        self._throttle = LoginThrottle(parts.state.counter, parts.counts.throttled)

    def served(self) -> list[Served]:
        """Each service has an address of its own for answers, so that none can pass for another's (RFC 9700 4.4)."""
        path = self._parts.path
        found = [Served(path(START), _BOTH, self.start, page=True)]
        if self._services.client_metadata() is not None:
            found.append(Served(path(CLIENT), _GET, self.client, open=True))
        for service in self._services.all():
            answered = partial(self._answered, service)
            found.append(Served(path(f"{CALLBACK}/{service.name}"), _GET, answered, page=True))
        return found

    async def client(self, request: Request) -> Response:
        """Who we are, for authorization servers that fetch it by our client_id, which is this URL."""
        response = json(self._services.client_metadata())
        response.headers = [(name, value) for name, value in response.headers if name not in _UNCACHED]
        response.headers.append((b"cache-control", b"public, max-age=3600"))
        return response

    async def start(self, request: Request) -> Response:
        """GET: the question. POST: its answer, which sends the browser to the service."""
        browser = self._browser
        is_post = request.method == b"POST"
        form = await form_of(request) if is_post else Form.parse(request.query)
        link = form.get("l")
        found = self._services.opened(link) if 0 < len(link) <= _LONGEST else None
        if found is None:
            raise OAuthError("invalid_request", "this link has expired or is none of ours; have your agent ask again")
        service, opened = found
        await self._throttle.must_begin(address_of(request))
        login = await browser.sessions.current(request)
        if login is None:
            asked = Interaction("", "", (), (), "", then="account", link=link)
            return await browser.begin_login(request, asked, after_form=is_post)
        session = login.value
        if session.sub != opened.sub:
            return self._somebody_else(session)
        if not is_post:
            return await self._ask(request, login, service, opened, link)
        check(request, browser.origin, form, _ACTION, login.id, browser.interactions.browser(request), link)
        if form.get("do") != "connect":
            return self._said("Nothing was connected", "You can close this page.")
        try:
            url = await service.begin(session.sub, opened.agent, digest(login.id))
            if not url.startswith(("https://", "http://")):
                raise AccountRefused("its authorization endpoint is no address for browsers", _NOWHERE)
        except AccountRefused as refused:
            return self._refused(request, service, refused)
        # A page, and no redirect: browsers hold what follows a form against our `form-action`.
        return browser.page("One moment", leaving(url, service.host), head=refresh(url), form_action="'none'")

    async def _answered(self, service: Service, request: Request) -> Response:
        """The browser is back from a service."""
        browser = self._browser
        form = Form.parse(request.query)
        login = await browser.sessions.current(request)
        if login is None:
            raise OAuthError(
                "invalid_request", "you are not signed in here any more; open the link of your agent again", 403
            )
        session = login.value
        try:
            event = await service.finish(session.sub, digest(login.id), form)
        except AccountRefused as refused:
            return self._refused(request, service, refused)
        request.context.event = event._replace(session=session.sid)
        # Away from the address with the code in it.
        return browser.see_other(browser.path("grants", connected=service.name))

    async def _ask(
        self, request: Request, login: Held[Session], service: Service, opened: Opened, link: str
    ) -> Response:
        browser = self._browser
        account = await service.account(opened.sub)
        scopes = await service.asks(opened.sub)  # before its host is read, which may be known better then
        body = connect(
            action=browser.path(START),
            switch=browser.path("logout"),
            grants=browser.path("grants"),
            link=link,
            csrf=token(_ACTION, login.id, browser.interactions.browser(request), link),
            user=name_of(login.value),
            server=service.name,
            host=service.host,
            scopes=scopes,
            agent=await self._agent(opened.agent),
            since="" if account is None else _date(account.since),
        )
        return browser.page(_TITLE, body)

    async def _agent(self, agent: str) -> Application:
        """The agent as people see it: one of our clients, or the name that its issuer gives it."""
        if not agent:
            return Application("An agent of yours", "", True)
        try:
            client = await self._parts.clients.find(agent)
        except (OAuthError, Failure):  # its document cannot be had now
            client = None
        return application(client) if client is not None else Application(agent, "", False)

    def _somebody_else(self, session: Session) -> Response:
        """Whose the link is, is nobody else's business."""
        text = (
            f"You are signed in as {name_of(session)}, and this link was made for somebody else: an account is "
            "connected only by the person whose agent has asked for it. If somebody sent you this link, do not go on. "
            "If it is yours, sign out and open it again as yourself."
        )
        body = message("This link is not for you", text, link=(self._browser.path("logout"), "Sign out"))
        return self._browser.page("This link is not for you", body, 403, form_action="'none'")

    def _refused(self, request: Request, service: Service, refused: AccountRefused) -> Response:
        request.context.error = f"account at {service.name}: {refused}"
        return self._said("Nothing was connected", refused.said, 400)

    def _said(self, title: str, text: str, status: int = 200) -> Response:
        return self._browser.page(title, message(title, text), status, form_action="'none'")


_UNCACHED = frozenset((b"cache-control", b"pragma"))


async def connected_of(services: Services, sub: str) -> list[Connected]:
    """A user's accounts, as people see them. Raises Failure 503."""
    found = []
    for service in services.all():
        account = await service.account(sub)
        if account is not None:
            found.append(Connected(service.name, account.host, tuple(account.scopes), _date(account.since)))
    return found


def _date(since: float) -> str:
    return datetime.fromtimestamp(since, UTC).strftime("%d %B %Y").lstrip("0")
