"""Consent: what the user is asked before an application gets a code, and the code.

Rule: what was allowed is not asked again, with one exception: where the answer goes to a program on the user's own
machine (loopback, a scheme of its own) and the application cannot prove who it is, any program could be it, so each
time is a question (RFC 8252 section 8.6).
"""

from collections.abc import Sequence

from tollhouse.core.http import Request, Response
from tollhouse.core.identity import Event
from tollhouse.issuer.answers import form_of
from tollhouse.issuer.authorization_request import must_login
from tollhouse.issuer.authorization_response import Way, failed, leave
from tollhouse.issuer.browser import Browser, application, name_of, redirect_host
from tollhouse.issuer.clients import Client
from tollhouse.issuer.consents import Asked, Consents, by_resource
from tollhouse.issuer.cookies import fresh
from tollhouse.issuer.forgery import check, token
from tollhouse.issuer.interaction import gone
from tollhouse.issuer.pages.consent import Wish, consent
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.records import Code, Interaction, Session
from tollhouse.issuer.resources import Resources
from tollhouse.store.table import Held
from tollhouse.wire.oauth import Form, OAuthError, redirect_fits

__all__ = ["Consent", "is_local", "wishes_of"]

_CODE_TTL = 60.0
_ACTION = "consent"


class Consent:
    """`handle` answers GET (the question) and POST (the answer to it)."""

    __slots__ = ("_browser", "_consents", "_parts")

    def __init__(self, parts: Parts, browser: Browser, consents: Consents) -> None:
        self._parts = parts
        self._browser = browser
        self._consents = consents

    async def missing(self, interaction: Interaction, client: Client, session: Session) -> Asked:
        """What the user must be asked, by resource; empty where nothing."""
        asked = by_resource(self._parts.resources, interaction.resources, interaction.scopes)
        if client.public and is_local(interaction.redirect_uri):
            return asked
        if "consent" in interaction.prompt:
            return asked
        host = redirect_host(interaction.redirect_uri)
        return await self._consents.missing(session.sub, client.id, host, asked)

    async def knows(self, client: Client, session: Session) -> bool:
        """Whether the user has allowed the application something before."""
        return await self._consents.has(session.sub, client.id)

    async def code(self, interaction: Interaction, login: Held[Session]) -> str:
        """A code for what was asked (RFC 6749 section 4.1.2), good for a minute."""
        backchannel, session = self._parts.backchannel, login.value
        if backchannel is not None and backchannel.wants(interaction.client_id):
            await self._browser.sessions.entered(login, interaction.client_id)
        code = fresh()
        record = Code(
            interaction.client_id,
            interaction.redirect_uri,
            interaction.challenge,
            interaction.scopes,
            interaction.resources,
            session.sub,
            session.user,
            session.auth_time,
            acr=session.acr,
            amr=session.amr,
            sid=session.sid,
            nonce=interaction.nonce,
            dpop_jkt=interaction.dpop_jkt,
            upstream=session.upstream,
            issued=self._parts.now(),
        )
        await self._parts.tables.codes.put(code, record, _CODE_TTL)
        return code

    async def handle(self, request: Request) -> Response:
        form = await form_of(request) if request.method == b"POST" else Form.parse(request.query)
        browser = self._browser
        held = await browser.interactions.find(request, form.get("i"))
        interaction = held.value
        if interaction.then != "authorize":
            raise gone()
        client = await self._parts.clients.find(interaction.client_id)
        if client is None or not redirect_fits(client.redirect_uris, interaction.redirect_uri, native=client.native):
            raise OAuthError("invalid_request", "the application is not known here any more, or has changed meanwhile")
        login = await browser.sessions.current(request)
        if login is None or must_login(interaction, login.value, self._parts.now()):
            again = "1" if request.method == b"POST" else ""
            return browser.see_other(browser.path("login", i=held.id, again=again))
        session = login.value
        way = Way(
            interaction.redirect_uri,
            interaction.response_mode,
            interaction.state,
            self._parts.url,
            application(client).name,
        )
        if interaction.subject and session.sub != interaction.subject:
            await browser.interactions.finish(held.id)
            error = OAuthError("login_required", "somebody else is logged in")
            return leave(browser, way, failed(error), after_form=True)
        if request.method == b"POST":
            secrets = (login.id, browser.interactions.browser(request), held.id)
            check(request, browser.origin, form, _ACTION, *secrets)
            if form.get("do") != "allow":
                await browser.interactions.finish(held.id)
                request.context.event = _told("issuer.consent_refused", interaction, session)
                error = OAuthError("access_denied", "the user has denied it")
                return leave(browser, way, failed(error), after_form=True)
            # Asked again in the same breath, what was on the page is what is allowed: all of it.
            asked = by_resource(self._parts.resources, interaction.resources, interaction.scopes)
            await browser.interactions.finish(held.id)
            await self._consents.allow(session.sub, client.id, redirect_host(interaction.redirect_uri), asked)
            request.context.event = _told("issuer.consent", interaction, session)
        elif missing := await self.missing(interaction, client, session):
            return self._ask(request, held, login, client, missing)
        else:
            await browser.interactions.finish(held.id)
        return leave(browser, way, [("code", await self.code(interaction, login))], after_form=True)

    def _ask(
        self, request: Request, held: Held[Interaction], login: Held[Session], client: Client, missing: Asked
    ) -> Response:
        parts, browser, interaction = self._parts, self._browser, held.value
        whole = by_resource(parts.resources, interaction.resources, interaction.scopes)
        body = consent(
            action=browser.path("consent"),
            switch=browser.path("login", i=held.id, switch="1"),
            grants=browser.path("grants"),
            interaction=held.id,
            csrf=token(_ACTION, login.id, browser.interactions.browser(request), held.id),
            user=name_of(login.value),
            application=application(client),
            redirect=redirect_host(interaction.redirect_uri),
            is_local=is_local(interaction.redirect_uri),
            asked=wishes_of(parts.resources, missing),
            is_difference=missing != whole,
        )
        return browser.page(f"{application(client).name} wants access", body)


def _told(operation: str, interaction: Interaction, session: Session) -> Event:
    return Event(
        operation,
        client=interaction.client_id,
        subject=session.sub,
        scopes=interaction.scopes,
        audience=" ".join(interaction.resources),
        session=session.sid,
    )


def is_local(redirect_uri: str) -> bool:
    """Whether an answer goes to a program on the user's machine: others are https."""
    return not redirect_uri.lower().startswith("https:")


def wishes_of(resources: Resources, asked: Asked) -> Sequence[Wish]:
    """What is asked, in words."""
    return [
        Wish(resources.name(uri) if uri else "", uri, [resources.words(scope, (uri,)) for scope in scopes])
        for uri, scopes in sorted(asked.items())
    ]
