"""Logout (OpenID Connect RP-Initiated Logout 1.0).

Rule: an application that shows whom it means (an id_token of ours for the very user who is logged in here) is
believed; anybody else only makes us ask. The browser is sent on only to what the application has registered; and since
anybody may register, one that is not in the configuration shows an id_token that it got here, or else nobody could be
led astray from here (RFC 9700 section 4.11, RP-Initiated Logout section 3). With the session end the tokens that live
by it.
"""

import hmac

from tollhouse.core.http import Request, Response
from tollhouse.core.identity import Event
from tollhouse.issuer.answers import form_of
from tollhouse.issuer.authorization_response import with_parameters
from tollhouse.issuer.browser import Browser, name_of
from tollhouse.issuer.forgery import check, token
from tollhouse.issuer.hint import hint_of
from tollhouse.issuer.pages.logout import confirm_logout
from tollhouse.issuer.pages.message import message
from tollhouse.issuer.pages.onward import refresh
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.records import Session
from tollhouse.store.table import Held
from tollhouse.wire.oauth import Form

__all__ = ["Logout"]

_ACTION = "logout"
_CARRIED = ("post_logout_redirect_uri", "state")


class Logout:
    """`handle` answers GET and POST."""

    __slots__ = ("_browser", "_parts")

    def __init__(self, parts: Parts, browser: Browser) -> None:
        self._parts = parts
        self._browser = browser

    async def handle(self, request: Request) -> Response:
        browser = self._browser
        is_post = request.method == b"POST"
        form = await form_of(request) if is_post else Form.parse(request.query)
        held = await browser.sessions.current(request)
        hint = hint_of(self._parts, form.get("id_token_hint")) if "id_token_hint" in form else None
        client_id = hint.client_id if hint is not None else form.get("client_id")
        if hint is not None and form.get("client_id") not in ("", client_id):
            hint, client_id = None, ""
        onward = await self._onward(client_id, form, is_shown=hint is not None)
        if held is None:
            return self._done(onward, [browser.cookies.clear(browser.cookies.session)])
        if is_post and form.get("do") == "logout":
            check(request, browser.origin, form, _ACTION, held.id)
        elif hint is None or hint.sub != held.value.sub or not _same(hint.sid, held.value.sid):
            return self._ask(held, form, client_id, form.get("id_token_hint") if hint is not None else "")
        request.context.event = Event("issuer.logout", client_id, held.value.sub, session=held.value.sid)
        return self._done(onward, [await browser.sessions.end(held)])

    async def _onward(self, client_id: str, form: Form, *, is_shown: bool) -> str:
        """Where the application wants the browser, if it has registered that; else "". is_shown: by an id_token."""
        uri = form.get("post_logout_redirect_uri")
        if not uri or not client_id:
            return ""
        clients = self._parts.clients
        client = await clients.find(client_id) if is_shown else clients.configured(client_id)
        if client is None or uri not in client.post_logout_redirect_uris:
            return ""
        state = form.get("state")
        return with_parameters(uri, [("state", state)]) if state else uri

    def _ask(self, held: Held[Session], form: Form, client_id: str, hint: str) -> Response:
        browser = self._browser
        carried = [(name, form.get(name)) for name in _CARRIED if name in form]
        if client_id:
            carried.append(("client_id", client_id))
        if hint:
            carried.append(("id_token_hint", hint))
        body = confirm_logout(
            action=browser.path("logout"),
            csrf=token(_ACTION, held.id),
            user=name_of(held.value),
            fields=carried,
        )
        return browser.page("Sign out", body)

    def _done(self, onward: str, headers: list[tuple[bytes, bytes]]) -> Response:
        link = (onward, "Continue") if onward else None
        body = message("You are signed out", "You can close this page.", link=link)
        head = refresh(onward)
        return self._browser.page("Signed out", body, head=head, form_action="'none'", headers=headers)


def _same(said: str, known: str) -> bool:
    """Whether a hint that names a session names this one."""
    return not said or hmac.compare_digest(said.encode(), known.encode())
