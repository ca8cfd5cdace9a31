"""The two addresses of each upstream: where a login begins, and where its answer comes.

Rule: an answer is looked at once. It must be in the browser that was sent there (cookie), for the upstream that this
address is of, with the state that was made for it; then what was kept for it is gone.
"""

import hmac

from msgspec import structs

from tollhouse.core.http import Request, Response
from tollhouse.issuer.browser import Browser
from tollhouse.issuer.interaction import gone
from tollhouse.issuer.upstream import LoginFailed, Upstream
from tollhouse.wire.oauth import Form

__all__ = ["Callback"]


class Callback:
    """Of one upstream: `start` and `handle` answer GET."""

    __slots__ = ("_browser", "_upstream")

    def __init__(self, browser: Browser, upstream: Upstream) -> None:
        self._browser = browser
        self._upstream = upstream

    async def start(self, request: Request) -> Response:
        browser = self._browser
        held = await browser.interactions.find(request, Form.parse(request.query).get("i"))
        try:
            login, url = await self._upstream.begin(held.id, held.value)
        except LoginFailed as error:
            return self._failed(request, held.id, error)
        await browser.interactions.change(held, structs.replace(held.value, login=login))
        return browser.see_other(url)

    async def handle(self, request: Request) -> Response:
        browser = self._browser
        form = Form.parse(request.query)
        state = form.get("state")
        held = await browser.interactions.find(request, state.partition(".")[0])
        interaction, login = held.value, held.value.login
        if (
            login is None
            or login.upstream != self._upstream.issuer
            or not hmac.compare_digest(login.state.encode(), state.encode("utf-8", "surrogatepass"))
        ):
            raise gone()
        await browser.interactions.change(held, structs.replace(interaction, login=None))
        try:
            session = await self._upstream.finish(form, login, interaction)
        except LoginFailed as error:
            return self._failed(request, held.id, error)
        cookie = await browser.sessions.begin(request, session)
        return browser.see_other(browser.after_login(held.id, interaction), [cookie])

    def _failed(self, request: Request, id: str, error: LoginFailed) -> Response:
        request.context.error = f"login at {self._upstream.name}: {error}"
        return self._browser.see_other(self._browser.path("login", i=id, error="upstream"))
