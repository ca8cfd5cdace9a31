"""People log out: here and at their OpenID provider (RP-Initiated Logout 1.0), or there, and it tells us (Back-Channel
Logout 1.0).

Rule: a session that was ended is revoked, so that no copy of its cookie counts, on no node. A page of elsewhere logs
nobody out: it gets a page on which people do that themselves. What the provider tells is believed by its signature
alone, and once.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable
from html import escape
from time import time
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request, Response
from tollhouse.net.issuer_metadata import Metadata
from tollhouse.net.jwks import KeySource
from tollhouse.policies.authenticate.login_cookies import LoginCookies
from tollhouse.policies.authenticate.proof import Replays
from tollhouse.policies.base import Parts
from tollhouse.store.revocation import grant_id
from tollhouse.wire.jose import Token, parse, verify
from tollhouse.wire.mcp.sealed import Seals, Unsealed
from tollhouse.wire.oauth import Form, OAuthError
from tollhouse.wire.oidc import logout_token_flaw

__all__ = ["Logout"]

log = logging.getLogger("tollhouse.policies")

_LARGEST = 16 << 10
_LEEWAY = 30.0
_LONGEST_TOKEN = 3600.0
_LONGEST_HINT = 3900  # with name and attributes browsers keep 4,096 bytes
_RETURN_LIFE = 600.0
_HEADERS = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_PAGE = '<!doctype html><html lang="en"><meta charset="utf-8"><title>{0}</title><h1>{0}</h1><p>{1}</p></html>'
_JSON = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))


class _Hint(msgspec.Struct):
    """The ID token of a session (`id_token_hint`), and which one that is."""

    token: str
    id: str
    expires: float
    place: str


class Logout:
    """issuer, client_id: of the provider's client. path: where people log out. onward: where the provider sends them
    then, "" where it does not. place: of the settings. session: whose login a request's cookie is. now: unix
    seconds."""

    def __init__(
        self,
        *,
        issuer: str,
        client_id: str,
        path: str,
        onward: str,
        place: str,
        algorithms: frozenset[str],
        life: float,
        cookies: LoginCookies,
        seals: Seals,
        metadata: Metadata,
        keys: KeySource,
        parts: Parts,
        session: Callable[[str], Principal | None],
        now: Callable[[], float] = time,
    ) -> None:
        self._issuer = issuer
        self._client_id = client_id
        self._path = path
        self._onward = f"{parts.public_url}{onward}" if onward.startswith("/") else onward
        self._place = place
        self._algorithms = algorithms
        self._life = life
        self._cookies = cookies
        self._seals = seals
        self._metadata = metadata
        self._keys = keys
        self._revoke: Callable[..., Awaitable[None]] | None = parts.revoke
        self._session = session
        self._now = now
        self._replays: Replays = parts.shared(("logout replays",), lambda: Replays(parts.state))
        self._replayed = parts.families.replays.child("logout_token")

    def remember(self, token: bytes, session: str, expires: float) -> list[tuple[bytes, bytes]]:
        """What sets the cookie with the ID token of a new session, unless that is too large for one."""
        hint = _Hint(token.decode("latin-1"), session, expires, self._place)
        name, sealed = self._cookies.hint, self._seals.seal("hint", hint)
        if len(sealed) + len(name) > _LONGEST_HINT:
            sealed = ""
        return [self._cookies.set(name, sealed, max(0.0, expires - self._now()) if sealed else 0.0)]

    # ---- people

    async def leave(self, request: Request) -> Response:
        """Somebody wants to log out, or comes back from the provider, having done so."""
        cookies = self._cookies
        principal = self._session(cookies.read(request, cookies.session))
        if principal is None:
            return _page("You are logged out", "You can close this page.", self._cleared(request))
        if not _is_wanted(request):
            ask = f'<a href="{escape(self._path)}">Log out</a>'
            return _page("Do you want to log out?", ask, [])
        headers = [
            cookies.set(cookies.session, "", 0.0),
            cookies.set(cookies.hint, "", 0.0),
            (b"cache-control", b"no-store"),
        ]
        await self._end(principal)
        try:
            place = await self._metadata.endpoint("end_session_endpoint")
        except (Failure, ValueError):  # it has none, or cannot be asked: they are logged out here
            place = ""
        if place:
            asked = {"client_id": self._client_id}
            hint = self._hint(request, principal)
            if hint:
                asked["id_token_hint"] = hint
            if self._onward:
                state = secrets.token_urlsafe(16)
                asked |= {"post_logout_redirect_uri": self._onward, "state": state}
                headers.append(cookies.set(cookies.flow(state), state, _RETURN_LIFE))
            location = f"{place}{'&' if urlsplit(place).query else '?'}{urlencode(asked, quote_via=quote)}"
        elif self._onward:
            location = self._onward
        else:
            return _page("You are logged out", "You can close this page.", headers[:2])
        return Response(303, [(b"location", location.encode("ascii", "replace")), *headers])

    def _cleared(self, request: Request) -> list[tuple[bytes, bytes]]:
        """The cookie of a logout that has come back, by its `state`."""
        try:
            state = Form.parse(request.query).get("state")
        except OAuthError:
            return []
        name = self._cookies.flow(state)
        return [self._cookies.set(name, "", 0.0)] if state and self._cookies.read(request, name) == state else []

    def _hint(self, request: Request, principal: Principal) -> str:
        try:
            hint = self._seals.open("hint", self._cookies.read(request, self._cookies.hint), _Hint)
        except Unsealed:
            return ""
        return hint.token if (hint.id, hint.place) == (principal.jti, self._place) else ""

    async def _end(self, principal: Principal) -> None:
        if self._revoke is None or not principal.jti:
            return
        try:
            await self._revoke("jti", principal.jti, principal.expires, self._issuer)
        except Failure as failure:  # it is in force here, and their browser forgets the cookie
            log.warning("a login that was ended could not be told to others: %s", failure.detail)

    # ---- the provider

    async def told(self, request: Request) -> Response:
        """The provider says that somebody has logged out. Raises Failure 503 while that cannot be written down."""
        try:
            form = Form.parse(await request.read(_LARGEST))
            token = parse(form.get("logout_token").encode("utf-8", "surrogatepass"))
        except OAuthError:
            return _refused("the form is malformed")
        if not isinstance(token, Token):
            return _refused("there is no `logout_token` that could be read")
        now = self._now()
        flaw = logout_token_flaw(
            token, issuer=self._issuer, client_id=self._client_id, now=now, leeway=_LEEWAY, longest=_LONGEST_TOKEN
        )
        if not flaw:
            said = verify(token, await self._keys.keys(token), self._algorithms)
            flaw = "" if said is None else said.value
        if flaw:
            return _refused(f"the logout token is refused: {flaw}")
        claims = token.claims
        life = claims["exp"] - now + 2 * _LEEWAY
        if not await self._replays.is_new(f"logout\0{self._issuer}\0{claims['jti']}", life):
            self._replayed.inc()
            return _refused("the logout token was used before")
        if self._revoke is None:
            raise Failure(503, Reason.INTERNAL, "logins cannot be ended here at the moment", retry_after=5.0)
        until = now + self._life + _LEEWAY
        if isinstance(claims.get("sid"), str):
            await self._revoke("sid", claims["sid"], until, self._issuer)
        else:
            await self._revoke("grant", grant_id(self._client_id, claims["sub"]), until, self._issuer)
        return Response(200, [(b"cache-control", b"no-store")])


def _is_wanted(request: Request) -> bool:
    """Whether people have followed a link of ours, or typed it in: all browsers of today say so."""
    site, mode = request.header(b"sec-fetch-site"), request.header(b"sec-fetch-mode")
    is_ours = site in (None, b"same-origin", b"none")
    return is_ours and mode in (None, b"navigate") and b"prefetch" not in (request.header(b"sec-purpose") or b"")


def _page(title: str, body: str, headers: list[tuple[bytes, bytes]]) -> Response:
    return Response(200, [*_HEADERS, *headers], _PAGE.format(title, body).encode())


def _refused(why: str) -> Response:
    body = msgspec.json.encode({"error": "invalid_request", "error_description": why.replace("`", "'")})
    response = Response(400, list(_JSON), body)
    response.reason = Reason.JWT_AUTH
    return response
