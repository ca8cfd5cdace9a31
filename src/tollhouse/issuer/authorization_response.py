"""How the browser gets back to an application with a code or an error (RFC 6749 section 4.1.2, RFC 9207).

Rule: each answer says whose it is (`iss`). One that follows a link is a redirect; one that follows a form of ours, or a
login, is a page that takes the browser there (`pages.onward`). Where nobody knows the application, the page waits for
the reader's hand.
"""

from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from tollhouse.core.http import Response
from tollhouse.issuer.browser import Browser, redirect_host
from tollhouse.issuer.pages.onward import SCRIPT_HASH, form_post, onward, refresh, stopped
from tollhouse.wire.oauth import OAuthError

__all__ = ["Way", "failed", "leave", "stay", "with_parameters"]


class Way(NamedTuple):
    """How an application wants its answer. mode: `query` or `form_post`. name: of the application."""

    redirect_uri: str
    mode: str
    state: str | None
    issuer: str
    name: str


def failed(error: OAuthError) -> list[tuple[str, str]]:
    """The parameters of an error."""
    return [("error", error.error), ("error_description", error.description)]


def leave(browser: Browser, way: Way, parameters: list[tuple[str, str]], *, after_form: bool) -> Response:
    """The answer with `parameters`, `state` and `iss`. after_form: the browser may have come by a form."""
    said = _said(way, parameters)
    if way.mode == "form_post":
        # Their own redirects after it are theirs to choose, but none leads to a script.
        schemes = "https:" if way.redirect_uri.startswith("https:") else "http: https:"
        body = form_post(way.redirect_uri, way.name, said)
        return browser.page("One moment", body, form_action=schemes, script=SCRIPT_HASH)
    location = with_parameters(way.redirect_uri, said)
    if not after_form:
        return browser.see_other(location)
    return browser.page("One moment", onward(location, way.name), head=refresh(location), form_action="'none'")


def stay(browser: Browser, way: Way, parameters: list[tuple[str, str]]) -> Response:
    """A page that says what is wrong, and has a link with the answer."""
    location = with_parameters(way.redirect_uri, _said(way, parameters))
    body = stopped(location, way.name, redirect_host(way.redirect_uri), parameters[-1][1])
    return browser.page("That did not work", body, 400, form_action="'none'")


def with_parameters(uri: str, parameters: list[tuple[str, str]]) -> str:
    """An application's address with parameters in its query, besides those it has."""
    query = urlencode(parameters, quote_via=quote)
    return f"{uri}{'&' if urlsplit(uri).query else '' if uri.endswith('?') else '?'}{query}"


def _said(way: Way, parameters: list[tuple[str, str]]) -> list[tuple[str, str]]:
    state = [("state", way.state)] if way.state is not None else []
    return [*parameters, *state, ("iss", way.issuer)]
