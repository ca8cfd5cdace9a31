"""The authorization endpoint (RFC 6749 section 3.1, OAuth 2.1, OpenID Connect Core section 3.1.2).

Rule: `authorization_request` says what is good; here it is decided who must be asked what. What needs no question is
answered at once, anything else becomes an interaction. An error takes nobody by itself to an application that neither
the operator nor the user knows: else anybody who registers one could lead people astray from here (RFC 9700 section
4.11.2). A pushed request can be used once, but the browser that has
used it gets back to what it became.
"""

from urllib.parse import quote, urlencode

from msgspec import structs

from tollhouse.core.http import Request, Response
from tollhouse.issuer.answers import form_of
from tollhouse.issuer.authorization_request import Target, must_login, read, target_of
from tollhouse.issuer.authorization_response import Way, failed, leave, stay
from tollhouse.issuer.browser import Browser, application
from tollhouse.issuer.consent import Consent, is_local
from tollhouse.issuer.hint import subject_of
from tollhouse.issuer.login_throttle import LoginThrottle
from tollhouse.issuer.par import PREFIX, form_of_pairs
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.throttle import address_of
from tollhouse.wire.oauth import Form, OAuthError

__all__ = ["Authorize"]

_LONGEST_QUERY = 12 << 10


class Authorize:
    """`handle` answers GET and POST."""

    __slots__ = ("_browser", "_consent", "_parts", "_throttle")

    def __init__(self, parts: Parts, browser: Browser, consent: Consent) -> None:
        self._parts = parts
        self._browser = browser
        self._consent = consent
        self._throttle = LoginThrottle(parts.state.counter, parts.counts.throttled)

    async def handle(self, request: Request) -> Response:
        if request.method == b"POST":
            # Browsers send no cookies with another site's form, but they do with the GET that follows.
            return self._again(await form_of(request))
        form = Form.parse(request.query)
        await self._throttle.must_begin(address_of(request))
        if "request" in form:
            raise OAuthError("request_not_supported", "request objects are not supported; push the request instead")
        reference = form.get("request_uri")
        if reference:
            client_id = form.need("client_id")
            pushed = await self._parts.tables.pushed.take(reference) if reference.startswith(PREFIX) else None
            if pushed is None:
                id = await self._browser.interactions.again(request, reference)
                if id:
                    return self._browser.see_other(self._browser.path("consent", i=id))
                raise OAuthError(
                    "invalid_request_uri", "this request has expired or was used; go back to the application"
                )
            if pushed.client_id != client_id:
                raise OAuthError("invalid_request", "the request was pushed by another application")
            form = form_of_pairs(pushed.params, pushed.dpop_jkt)
        target = await target_of(self._parts, form, address_of(request))
        way = Way(target.redirect_uri, target.mode, target.state, self._parts.url, application(target.client).name)
        try:
            if target.client.require_par and not reference:
                raise OAuthError("invalid_request", "this application's requests must be pushed")
            return await self._decide(request, target, way, form, reference)
        except OAuthError as error:
            if await self._is_known(request, target):
                return leave(self._browser, way, failed(error), after_form=False)
            return stay(self._browser, way, failed(error))

    async def _decide(self, request: Request, target: Target, way: Way, form: Form, reference: str) -> Response:
        parts, browser = self._parts, self._browser
        interaction = read(parts, target, form)
        subject = ""
        if "id_token_hint" in form:
            subject = subject_of(parts, form.get("id_token_hint"), target.client.id)
            interaction = structs.replace(interaction, subject=subject)
        silent = "none" in interaction.prompt
        held = await browser.sessions.current(request)
        session = held.value if held is not None else None
        stale = must_login(interaction, session, parts.now())
        if held is None or session is None or stale or (subject and session.sub != subject):
            if silent:
                raise OAuthError("login_required", "nobody is logged in, or not lately enough")
            return await browser.begin_login(request, interaction, reference)
        missing = await self._consent.missing(interaction, target.client, session)
        if missing:
            if silent:
                raise OAuthError("consent_required", "the user must be asked first")
            id, headers = await browser.interactions.begin(request, interaction, reference)
            return browser.see_other(browser.path("consent", i=id), headers)
        code = await self._consent.code(interaction, held)
        return leave(browser, way, [("code", code)], after_form=False)

    async def _is_known(self, request: Request, target: Target) -> bool:
        """Whether somebody has vouched for where the answer goes: the operator, or the user; or it goes to a program on
        the user's own machine."""
        if target.client.verified or is_local(target.redirect_uri):
            return True
        held = await self._browser.sessions.current(request)
        return held is not None and await self._consent.knows(target.client, held.value)

    def _again(self, form: Form) -> Response:
        pairs = [(name, value) for name, values in form.items() for value in values]
        query = urlencode(pairs, quote_via=quote)
        if len(query) > _LONGEST_QUERY:
            raise OAuthError("invalid_request", "the request is too long; push it instead", 413)
        return self._browser.see_other(f"{self._parts.path('authorize')}?{query}")
