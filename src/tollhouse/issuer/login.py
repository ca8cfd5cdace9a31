"""Login with a password, and the way to upstream providers.

Rule: whoever does not get in learns nothing but that: not whether there is such a user, not by the words, not by the
time. A login is within an interaction, so the browser that ends it is the one that began it.
"""

from collections.abc import Sequence

from msgspec import structs

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request, Response
from tollhouse.issuer.answers import form_of
from tollhouse.issuer.authorization_request import must_login
from tollhouse.issuer.browser import Browser, application, name_of, password_id
from tollhouse.issuer.forgery import check, token
from tollhouse.issuer.login_throttle import LoginThrottle
from tollhouse.issuer.pages.login import Elsewhere, login
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.records import Interaction, Session, UserInfo
from tollhouse.issuer.spec import UserSpec
from tollhouse.issuer.throttle import address_of
from tollhouse.issuer.upstream import Upstream
from tollhouse.net.passwords import Passwords
from tollhouse.store.table import Held
from tollhouse.wire.oauth import Form, OAuthError

__all__ = ["Login", "user_info"]

_ACTION = "login"
_LONGEST_NAME = 128
_REASONS = {401: Reason.BASIC_AUTH, 429: Reason.RATE_LIMIT}
_WRONG = "The user name or the password is not right."


class Login:
    """`handle` answers GET (the page) and POST (name and password). passwords: None where no user has one."""

    __slots__ = ("_browser", "_parts", "_passwords", "_throttle", "_upstreams", "_users")

    def __init__(
        self, parts: Parts, browser: Browser, passwords: Passwords | None, upstreams: Sequence[Upstream]
    ) -> None:
        self._parts = parts
        self._browser = browser
        self._passwords = passwords
        self._upstreams = tuple(upstreams)
        self._users = {user.name: user for user in parts.spec.users}
        self._throttle = LoginThrottle(parts.state.counter, parts.counts.throttled)

    async def handle(self, request: Request) -> Response:
        form = await form_of(request) if request.method == b"POST" else Form.parse(request.query)
        browser = self._browser
        held = await browser.interactions.find(request, form.get("i"))
        if request.method == b"POST":
            check(request, browser.origin, form, _ACTION, browser.interactions.browser(request), held.id)
            if form.get("do") == "keep":
                return await self._keep(request, held)
            return await self._login(request, held, form)
        current = await browser.sessions.current(request)
        session = current.value if current is not None else None
        wanted = any(name in form for name in ("switch", "error", "again"))
        if "switch" not in form and not must_login(held.value, session, self._parts.now()):
            return browser.see_other(browser.after_login(held.id, held.value))
        if self._passwords is None and len(self._upstreams) == 1 and not wanted:
            return browser.see_other(self._upstreams[0].start_path(held.id))
        notice = "You could not be logged in there. Try again, or in another way." if "error" in form else ""
        return await self._page(request, held, held.value.login_hint, notice, session=session)

    async def _page(
        self,
        request: Request,
        held: Held[Interaction],
        username: str,
        notice: str,
        status: int = 200,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        session: Session | None = None,
    ) -> Response:
        browser, interaction = self._browser, held.value
        client = await self._parts.clients.find(interaction.client_id) if interaction.client_id else None
        may_keep = session is not None and "select_account" in interaction.prompt and "login" not in interaction.prompt
        body = login(
            action=browser.path("login"),
            interaction=held.id,
            csrf=token(_ACTION, browser.interactions.browser(request), held.id),
            client=application(client).name if client is not None else "",
            username=username,
            notice=notice,
            has_passwords=self._passwords is not None,
            elsewhere=[Elsewhere(upstream.label, upstream.start_path(held.id)) for upstream in self._upstreams],
            current=name_of(session) if session is not None and may_keep else "",
        )
        response = browser.page("Sign in", body, status, headers=headers)
        response.reason = _REASONS.get(status, response.reason)
        return response

    async def _keep(self, request: Request, held: Held[Interaction]) -> Response:
        """Go on as who is logged in: what `prompt=select_account` asks for."""
        browser = self._browser
        if await browser.sessions.current(request) is not None and "login" not in held.value.prompt:
            await browser.interactions.change(held, structs.replace(held.value, logged_in=True))
        return browser.see_other(browser.after_login(held.id, held.value))

    async def _login(self, request: Request, held: Held[Interaction], form: Form) -> Response:
        if self._passwords is None:
            raise OAuthError("invalid_request", "nobody logs in with a password here")
        name = form.get("username").strip()[:_LONGEST_NAME]
        attempt = await self._throttle.password(name, address_of(request))
        if attempt.wait:
            seconds = int(attempt.wait)
            request.context.error = "login: too many attempts"
            notice = f"There were too many attempts. Try again in {_spoken(seconds)}."
            return await self._page(request, held, name, notice, 429, ((b"retry-after", b"%d" % seconds),))
        user = self._users.get(name)
        hashed = None if user is None else user.password_hash.get_secret_value()
        try:
            fits = await self._passwords.fits(hashed, form.get("password"))
        except Failure:  # too many are waiting: nothing was tried. Who leaves has tried it, and has had us work.
            attempt.succeeded()
            raise
        if user is None or not fits:
            request.context.error = "login: wrong user name or password"
            return await self._page(request, held, name, _WRONG, 401)
        attempt.succeeded()
        now = int(self._parts.now())
        session = Session(user.name, user_info(user), now, amr=("pwd",), password=password_id(user))
        cookie = await self._browser.sessions.begin(request, session)
        return self._browser.see_other(self._browser.after_login(held.id, held.value), [cookie])


def user_info(user: UserSpec) -> UserInfo:
    """What is known of a local user."""
    return UserInfo(
        user.full_name,
        user.email,
        bool(user.email) and user.email_verified,
        user.groups,
        user.org,
        {"preferred_username": user.name, **user.claims},
    )


def _spoken(seconds: int) -> str:
    if seconds < 90:
        return f"{seconds} second{'' if seconds == 1 else 's'}"
    return f"{(seconds + 59) // 60} minutes"
