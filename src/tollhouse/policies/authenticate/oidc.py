"""People in browsers, before plain routes: login at an OpenID provider (OpenID Connect Core, code flow with PKCE).

Rule: nothing is kept here but what was ended. What must come back with the browser (where it was going, nonce,
verifier) and who it is afterwards are cookies that only this gateway can make and read; so every worker can finish what
another began. A login that one browser began, no other can finish. Only the way back within this gateway is a way back.
"""

import re
import secrets
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from time import time
from typing import Annotated, Any, Self

import msgspec
from pydantic import AfterValidator, Field, SecretStr, model_validator

from tollhouse.core.call import Principal
from tollhouse.core.depth import decode
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request, Response
from tollhouse.core.spec import Duration, Spec
from tollhouse.net.issuer_metadata import Metadata, from_metadata, same_origin
from tollhouse.net.jwks import KeySource
from tollhouse.policies.authenticate.claims import ClaimsSpec, principal_of
from tollhouse.policies.authenticate.login_cookies import LoginCookies
from tollhouse.policies.authenticate.oidc_logout import Logout
from tollhouse.policies.base import Parts
from tollhouse.wire.jose import Flaw, parse, verify
from tollhouse.wire.mcp.sealed import Seals, Unsealed
from tollhouse.wire.oauth import Form, OAuthError
from tollhouse.wire.oidc import authorization_url, code_form, id_token_flaw

__all__ = ["Login", "OidcSpec"]

_FLOW_LIFE = 600.0
_LEEWAY = 30.0
_MAX_ANSWER = 256 << 10
_MAX_COOKIE = 3900  # browsers keep 4,096 bytes with name and attributes
_LONGEST_BACK = 1024
_REMEMBERED = 10_000
_ALGORITHMS = frozenset(("ES256", "RS256", "EdDSA", "PS256", "ES384", "RS512"))
_NO_STORE = (b"cache-control", b"no-store")


def _path(value: str) -> str:
    if re.fullmatch(r"/(?!/)[A-Za-z0-9._~!$&'()*+,=:@%/-]{0,1024}", value) is None:
        raise ValueError("not a path like /.login/callback")
    return value


def _place(value: str) -> str:
    """A path of ours, or a URL."""
    if value.startswith("/"):
        return _path(value)
    if re.fullmatch(r"https?://[!-\[\]-~]{1,2048}", value) is None or "#" in value:
        raise ValueError("not a path like /bye, or a URL without fragment")
    return value


class OidcSpec(Spec):
    """Login of people in browsers at an OpenID provider, before plain routes."""

    issuer: str = Field(
        min_length=1, max_length=2048, pattern=r"^https?://[^\s?#]+$", description="whose metadata says the rest"
    )
    client_id: str = Field(min_length=1, max_length=256, description="the gateway, as the provider knows it")
    client_secret: SecretStr | None = Field(default=None, description="absent: a public client, with PKCE alone")
    client_auth: str = Field(
        default="basic", pattern=r"^(basic|post)$", description="how the secret is sent: basic or post"
    )
    scopes: tuple[str, ...] = Field(default=("openid", "profile", "email"), description="`openid` among them")
    claims: ClaimsSpec = Field(
        default=ClaimsSpec(user=("preferred_username", "email", "sub")), description="of the ID token: who it is"
    )
    callback: Annotated[str, AfterValidator(_path)] = Field(
        default="/.login/callback", description="where people come back: this path of `public_url` is registered there"
    )
    cookie: str = Field(
        default="tollhouse_login",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="the name of the session's cookie; before it stands __Host- with https",
    )
    session: Duration = Field(default=28_800.0, gt=0.0, le=30 * 86_400.0, description="how long a login counts")
    logout: Annotated[str, AfterValidator(_path)] | None = Field(
        default=None,
        description="where people log out, here and at the provider (RP-Initiated Logout); default: /.login/logout, "
        "or beside another `callback`",
    )
    post_logout_redirect_uri: Annotated[str, AfterValidator(_place)] | None = Field(
        default=None,
        description="where people are sent who have logged out: a path of `public_url`, or a URL; it is registered at "
        "the provider. Absent: its own page is the end",
    )
    backchannel_logout: Annotated[str, AfterValidator(_path)] | None = Field(
        default=None,
        description="where the provider tells that somebody has logged out (Back-Channel Logout): registered there; "
        "default: /.login/backchannel, or beside another `callback`",
    )

    @property
    def places(self) -> tuple[str, str, str]:
        """The paths of callback, logout and back-channel logout."""
        beside = self.callback.removesuffix("/callback").rstrip("/")
        return self.callback, self.logout or f"{beside}/logout", self.backchannel_logout or f"{beside}/backchannel"

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if len(set(self.places)) < 3:
            raise ValueError("`callback`, `logout` and `backchannel_logout` are three paths")
        return self


class _Flow(msgspec.Struct):
    """A login that has begun. back: path and query of where the browser was going."""

    state: str
    nonce: str
    verifier: str
    back: str
    expires: float
    place: str


class _Session(msgspec.Struct):
    """Who has logged in."""

    subject: str
    user: str
    org: str
    email: str
    groups: tuple[str, ...]
    sid: str
    issued: float
    expires: float
    place: str
    id: str = ""


class Login:
    """One provider. now: unix seconds."""

    def __init__(self, spec: OidcSpec, parts: Parts, now: Callable[[], float] = time) -> None:
        if "openid" not in spec.scopes:
            raise ValueError("oidc: `scopes` must have `openid` among them")
        self._spec = spec
        self._callback, self._out, self._told = spec.places
        self._now = now
        self._client = parts.client
        self._revocations = parts.revocations
        self._here = parts.entrance == "http"
        self._redirect = f"{parts.public_url}{spec.callback}"
        cookies = self._cookies = LoginCookies(spec.cookie, parts.public_url, self._out)
        self._seals = Seals(parts.state.keys if parts.state is not None else (), now)
        self._place = spec.fingerprint()  # a session of other settings is none of these
        metadata = self._metadata = Metadata(parts.client, spec.issuer)
        self._source: KeySource = parts.shared(
            ("keys", spec.issuer, True, None, ""),
            lambda: KeySource(from_metadata(parts.client, metadata), spec.issuer, None, told=parts.keys_read),
            KeySource.close,
        )
        self._known: dict[bytes, Principal] = {}
        self._logout = Logout(
            issuer=spec.issuer,
            client_id=spec.client_id,
            path=self._out,
            onward=spec.post_logout_redirect_uri or "",
            place=self._place,
            algorithms=_ALGORITHMS,
            life=spec.session,
            cookies=cookies,
            seals=self._seals,
            metadata=metadata,
            keys=self._source,
            parts=parts,
            session=self._session,
            now=now,
        )

    async def enter(self, request: Request) -> Principal | Response | None:
        """Who is logged in; the answer to a browser that comes back from the provider; None where neither is so. Raises
        Failure 400, 403 and 503 for those that come back with something else."""
        if not self._here:
            return None
        path = request.path.decode("latin-1")
        if path == self._callback:
            return await self._finish(request)
        if path == self._out and request.method == b"GET":
            return await self._logout.leave(request)
        if path == self._told and request.method == b"POST":
            return await self._logout.told(request)
        value = self._cookies.read(request, self._cookies.session)
        self._cookies.take_out(request)
        return self._session(value)

    async def page(self, request: Request) -> Response | None:
        """The way to the provider, for a browser that wants a page; None for anybody else. Raises Failure 503."""
        if not self._here or request.method != b"GET" or not _wants_page(request):
            return None
        spec = self._spec
        url = await self._endpoint("authorization_endpoint")
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        flow = _Flow(state, nonce, verifier, _back(request), self._now() + _FLOW_LIFE, self._place)
        location = authorization_url(
            url,
            client_id=spec.client_id,
            redirect_uri=self._redirect,
            scopes=spec.scopes,
            state=state,
            nonce=nonce,
            verifier=verifier,
        )
        cookie = self._cookies.set(self._cookies.flow(state), self._seals.seal("flow", flow), _FLOW_LIFE)
        return Response(303, [(b"location", location.encode("ascii", "replace")), cookie, _NO_STORE])

    # ---- sessions

    def _session(self, value: str) -> Principal | None:
        """Who has logged in, by the cookie's value; None for "" and for one that is not good, or not any more."""
        if not value:
            return None
        digest = sha256(value.encode("latin-1")).digest()
        principal = self._known.get(digest)
        if principal is None:
            principal = self._opened(value)
            if principal is None:
                return None
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[digest] = principal
        if principal.expires <= self._now():
            return None
        if self._revocations is not None and self._revocations.revoked(principal):
            return None
        return principal

    def _opened(self, value: str) -> Principal | None:
        try:
            session = self._seals.open("login", value, _Session)
        except Unsealed:
            return None
        if session.place != self._place:
            return None
        return Principal(
            f"oidc:{self._spec.issuer}|{session.subject}",
            source="oidc",
            user=session.user,
            org=session.org,
            email=session.email,
            groups=session.groups,
            issuer=self._spec.issuer,
            subject=session.subject,
            client=self._spec.client_id,
            jti=session.id,
            sid=session.sid,
            issued=session.issued,
            expires=session.expires,
            claims={"iss": self._spec.issuer, "sub": session.subject, "email": session.email},
        )

    # ---- the way back

    async def _finish(self, request: Request) -> Response:
        spec = self._spec
        try:
            form = Form.parse(request.query)
        except OAuthError:
            raise _bad("the answer of the login is malformed; begin again") from None
        state = form.get("state")
        cookies = self._cookies
        name = cookies.flow(state)
        try:
            flow = self._seals.open("flow", cookies.read(request, name), _Flow)
        except Unsealed:
            raise _bad("this login was begun elsewhere, or too long ago; begin again") from None
        if flow.place != self._place or not state or not compare_digest(flow.state.encode(), state.encode()):
            raise _bad("this login was begun elsewhere, or too long ago; begin again")
        if form.get("iss") not in ("", spec.issuer):  # RFC 9207 section 2.4
            raise _bad("the answer of the login is another provider's; begin again")
        if form.get("error"):
            message = "the login was not granted"
            raise Failure(403, Reason.JWT_AUTH, message, code="login_refused", detail=_shown(form.get("error")))
        token, access_token = await self._redeem(form.get("code"), flow.verifier)
        session = await self._who(token, access_token, flow.nonce)
        sealed = self._seals.seal("login", session)
        if len(sealed) + len(cookies.session) > _MAX_COOKIE:
            raise _not_usable("the session does not fit into a cookie: the ID token has too many groups")
        headers = [
            (b"location", flow.back.encode("ascii")),
            cookies.set(cookies.session, sealed, spec.session),
            cookies.set(name, "", 0.0),
            *self._logout.remember(token, session.id, session.expires),
            _NO_STORE,
        ]
        return Response(303, headers)

    async def _redeem(self, code: str, verifier: str) -> tuple[bytes, str]:
        """The ID token that the code stands for, and the access token beside it."""
        spec = self._spec
        if not code:
            raise _bad("the answer of the login has no code; begin again")
        headers, body = code_form(
            code,
            client_id=spec.client_id,
            secret="" if spec.client_secret is None else spec.client_secret.get_secret_value(),
            basic=spec.client_auth == "basic",
            redirect_uri=self._redirect,
            verifier=verifier,
        )
        url = await self._endpoint("token_endpoint")
        fetched = await self._client.fetch(
            url,
            method="POST",
            headers=headers,
            body=body,
            limit=_MAX_ANSWER,
            guarded=not same_origin(url, spec.issuer),
            redirects=0,
        )
        if fetched.status != 200:
            raise _not_usable(f"the token endpoint answered {fetched.status}")
        try:
            answer = decode(fetched.body)
        except ValueError:
            answer = None
        token, beside = (answer.get("id_token"), answer.get("access_token")) if isinstance(answer, dict) else (None, "")
        if not isinstance(token, str):
            raise _not_usable("the token endpoint gave no ID token")
        return token.encode("latin-1", "replace"), beside if isinstance(beside, str) else ""

    async def _who(self, token: bytes, access_token: str, nonce: str) -> _Session:
        """What the ID token says, once it is checked (OpenID Connect Core section 3.1.3.7)."""
        spec, now = self._spec, self._now()
        parsed = parse(token)
        if isinstance(parsed, Flaw):
            raise _not_usable(parsed.value)
        said = id_token_flaw(
            parsed,
            issuer=spec.issuer,
            client_id=spec.client_id,
            nonce=nonce,
            access_token=access_token,
            now=now,
            leeway=_LEEWAY,
        )
        if said:
            raise _not_usable(f"the ID token is refused: {said}")
        flaw = verify(parsed, await self._source.keys(parsed), _ALGORITHMS)
        if flaw is not None:
            raise _not_usable(flaw.value)
        found = principal_of(parsed.claims, spec.claims, issuer=spec.issuer, source="oidc", token=b"")
        if not isinstance(found, Principal):
            raise _not_usable(str(found.value))
        return _Session(
            found.subject, found.user, found.org, found.email, found.groups, found.sid, now, now + spec.session,
            self._place, secrets.token_urlsafe(16),
        )  # fmt: skip

    async def _endpoint(self, name: str) -> str:
        try:
            return await self._metadata.endpoint(name)
        except (Failure, ValueError) as error:
            detail = (error.detail or error.message) if isinstance(error, Failure) else str(error)
            raise Failure(
                503,
                Reason.JWT_AUTH,
                "nobody can log in at the moment; try again later",
                detail=f"oidc: {detail}",
                retry_after=5.0,
            ) from None


def _wants_page(request: Request) -> bool:
    mode = request.header(b"sec-fetch-mode")
    if mode is not None and mode != b"navigate":
        return False
    return b"text/html" in (request.header(b"accept") or b"")


def _back(request: Request) -> str:
    """Where the browser was going, if that can only be a place of this gateway."""
    target = request.target.decode("latin-1")
    good = target.startswith("/") and target[1:2] not in ("/", "\\") and target.isascii() and target.isprintable()
    return target if good and len(target) <= _LONGEST_BACK and "\\" not in target else "/"


def _bad(message: str) -> Failure:
    return Failure(400, Reason.JWT_AUTH, message, code="login_failed")


def _not_usable(detail: str) -> Failure:
    message = "the login cannot be used; ask the operator of this gateway"
    return Failure(502, Reason.JWT_AUTH, message, code="login_failed", detail=f"oidc: {detail}")


def _shown(text: Any) -> str:
    return "".join(c if c.isprintable() else "?" for c in str(text)[:200])
