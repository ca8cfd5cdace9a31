"""Login at an upstream OpenID provider, whose client we are (OpenID Connect Core section 3.1, RFC 9700).

Rule: each upstream has an address of its own for answers, and an answer counts only in the browser, for the upstream
and within the interaction that asked for it. Who somebody is there makes a `sub` here that no other upstream and no
local user can have. The operator names the upstream; what that says of others (endpoints on another host) passes the
egress guard.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeGuard
from urllib.parse import urlencode, urlsplit

import msgspec

from tollhouse.core.errors import Failure
from tollhouse.issuer.cookies import fresh
from tollhouse.issuer.records import Interaction, Session, UpstreamLogin, UserInfo
from tollhouse.issuer.spec import LOOPBACK_HOSTS, UpstreamSpec, UserSpec
from tollhouse.issuer.subject import federated
from tollhouse.net.client import Client
from tollhouse.net.issuer_metadata import read_metadata, same_origin
from tollhouse.net.jwks import KeySource, from_url
from tollhouse.wire.jose import Token, parse, verify
from tollhouse.wire.oauth import Form
from tollhouse.wire.oidc import authorization_url, code_form, id_token_flaw

__all__ = ["LoginFailed", "Upstream", "host_label"]

log = logging.getLogger("tollhouse.issuer")

_LEEWAY: Final = 60.0
_FRESH: Final = 3600.0
_AGAIN: Final = 5.0
_TIMEOUT: Final = 10.0
_JSON: Final = ((b"accept", b"application/json"),)
_LARGEST: Final = 256 << 10
_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
_MOST_GROUPS: Final = 200


class LoginFailed(Exception):
    """Nobody is logged in by this answer. The text is for the log."""


class _Metadata(msgspec.Struct, frozen=True):
    """What is read of an upstream's discovery document."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str = ""
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


class _Tokens(msgspec.Struct, frozen=True):
    id_token: str
    access_token: str = ""
    token_type: str = ""


class Upstream:
    """spec: as configured. name: in paths. url: our issuer. path: of that, before our paths. users: local ones, for
    those who are linked. info: what is known of one. now: unix seconds. Raises ValueError for an issuer without TLS."""

    def __init__(
        self,
        spec: UpstreamSpec,
        *,
        url: str,
        base: str,
        fetcher: Client,
        now: Callable[[], float],
        users: Mapping[str, UserSpec],
        info: Callable[[UserSpec], UserInfo],
        keys_read: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._keys_read = keys_read
        where = urlsplit(spec.issuer)
        if where.scheme != "https" and (where.scheme != "http" or where.hostname not in LOOPBACK_HOSTS):
            raise ValueError("the issuer of an upstream is https, unless it is on this machine: secrets go there")
        self.issuer = spec.issuer
        self.name = spec.name or host_label(spec.issuer)
        self.label = spec.label or where.netloc
        self.start_name = f"login/{self.name}"
        self.callback_name = f"callback/{self.name}"
        self._base = base
        self._redirect_uri = f"{url}/oauth/{self.callback_name}"
        self._spec = spec
        self._secret = "" if spec.client_secret is None else spec.client_secret.get_secret_value()
        self._fetcher = fetcher
        self._now = now
        self._users = users
        self._info = info
        self._metadata: tuple[float, _Metadata, KeySource] | None = None
        self._failed_at = -_AGAIN
        self._flight: asyncio.Task[None] | None = None

    def start_path(self, interaction: str) -> str:
        """Where a link leads that begins a login here."""
        return f"{self._base}/oauth/{self.start_name}?{urlencode({'i': interaction})}"

    async def begin(self, id: str, interaction: Interaction) -> tuple[UpstreamLogin, str]:
        """What the answer must fit, and the URL at the upstream. id: of the interaction. Raises LoginFailed."""
        metadata, _ = await self._known()
        login = UpstreamLogin(self.issuer, f"{id}.{fresh()}", fresh(), fresh(), self._now())
        asked: dict[str, str] = {}
        prompt = " ".join(word for word in ("login", "select_account") if word in interaction.prompt)
        if prompt:
            asked["prompt"] = prompt
        if interaction.max_age is not None:
            asked["max_age"] = str(interaction.max_age)
        if interaction.login_hint:
            asked["login_hint"] = interaction.login_hint
        url = authorization_url(
            metadata.authorization_endpoint,
            client_id=self._spec.client_id,
            redirect_uri=self._redirect_uri,
            scopes=dict.fromkeys(("openid", *self._spec.scopes)),
            state=login.state,
            nonce=login.nonce,
            verifier=login.verifier,
            more=asked,
        )
        return login, url

    async def finish(self, form: Form, login: UpstreamLogin, interaction: Interaction) -> Session:
        """Who has logged in, by the answer's parameters. Raises LoginFailed."""
        metadata, keys = await self._known()
        iss = form.get("iss")
        if (iss or metadata.authorization_response_iss_parameter_supported) and iss != self.issuer:
            raise LoginFailed("the answer is another issuer's, or does not say whose it is (`iss`)")
        if "error" in form:
            raise LoginFailed(f"it answered {form.get('error')[:64]!r}")
        code = form.get("code")
        if not code:
            raise LoginFailed("the answer has no code")
        tokens = await self._redeem(metadata, code, login.verifier)
        claims = await self._verified(keys, tokens, login)
        self._check_age(claims, login, interaction)
        if self._lacks(claims) and metadata.userinfo_endpoint and tokens.access_token:
            more = await self._userinfo(metadata, tokens.access_token, claims["sub"])
            email = self._spec.claims.email
            if claims.get(email, more.get(email)) != more.get(email):
                more.pop("email_verified", None)  # it is about another address
            claims = {**more, **claims}
        return self._session(claims)

    async def close(self) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.cancel()
            await asyncio.wait((flight,))
        if self._metadata is not None:
            await self._metadata[2].close()

    # ---- what the upstream says of itself

    async def _known(self) -> tuple[_Metadata, KeySource]:
        known, now = self._metadata, self._now()
        if known is None or now - known[0] >= _FRESH:
            if now - self._failed_at >= _AGAIN:
                if self._flight is None:
                    self._flight = asyncio.get_running_loop().create_task(self._discover())
                await asyncio.shield(self._flight)  # whoever leaves does not take it from the others
            known = self._metadata
        if known is None:
            raise LoginFailed("its metadata cannot be read")
        return known[1], known[2]

    async def _discover(self) -> None:
        try:
            place = f"{self.issuer.rstrip('/')}/.well-known/openid-configuration"
            metadata = msgspec.convert(await read_metadata(self._fetcher, self.issuer, (place,)), _Metadata)
            self._check(metadata)
            before = self._metadata
            if before is not None and before[1].jwks_uri == metadata.jwks_uri:
                keys = before[2]
            else:
                guarded = not self._is_theirs(metadata.jwks_uri)
                load = from_url(self._fetcher, metadata.jwks_uri, guarded=guarded)
                keys = KeySource(load, metadata.jwks_uri, None, clock=self._now, told=self._keys_read)
            self._metadata = (self._now(), metadata, keys)
            if before is not None and before[2] is not keys:
                await before[2].close()
        except (LoginFailed, Failure, msgspec.ValidationError, ValueError) as error:
            self._failed_at = self._now()
            log.warning("the upstream %s cannot be used: %s", self.issuer, error)
        except Exception:  # the root of the reading task: whoever waits for it must get an answer
            self._failed_at = self._now()
            log.exception("reading the metadata of the upstream %s failed", self.issuer)
        finally:
            self._flight = None

    def _check(self, metadata: _Metadata) -> None:
        places = (metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri)
        for place in (*places, metadata.userinfo_endpoint):
            if place and not place.startswith("https://") and not self._is_theirs(place):
                raise LoginFailed("one of its endpoints is not https")
            if not place.isascii() or re.search(r"[\x00-\x20\x7f#]", place) is not None:
                raise LoginFailed("one of its endpoints is no URL")

    def _is_theirs(self, url: str) -> bool:
        return same_origin(self.issuer, url)

    async def _fetch(
        self, url: str, headers: Sequence[tuple[bytes, bytes]] = _JSON, body: bytes = b"", method: str = "GET"
    ) -> bytes:
        try:
            fetched = await self._fetcher.fetch(
                url,
                method=method,
                headers=headers,
                body=body,
                timeout=_TIMEOUT,
                limit=_LARGEST,
                guarded=not self._is_theirs(url),
                redirects=0,
            )
        except Failure as failure:
            raise LoginFailed(f"{failure.message} {failure.detail}") from None
        if fetched.status != 200:
            raise LoginFailed(f"{urlsplit(url).path} answered {fetched.status}")
        return fetched.body

    # ---- the answer

    async def _redeem(self, metadata: _Metadata, code: str, verifier: str) -> _Tokens:
        methods = metadata.token_endpoint_auth_methods_supported
        headers, body = code_form(
            code,
            client_id=self._spec.client_id,
            secret=self._secret,
            basic="client_secret_basic" in methods or "client_secret_post" not in methods,
            redirect_uri=self._redirect_uri,
            verifier=verifier,
        )
        document = await self._fetch(metadata.token_endpoint, headers, body, method="POST")
        try:
            return msgspec.json.decode(document, type=_Tokens)
        except (msgspec.DecodeError, ValueError):
            raise LoginFailed("its token endpoint gave no id_token") from None

    async def _verified(self, keys: KeySource, tokens: _Tokens, login: UpstreamLogin) -> dict[str, Any]:
        """The claims of the id_token (OpenID Connect Core section 3.1.3.7)."""
        token = parse(tokens.id_token.encode("utf-8", "surrogatepass"))
        if not isinstance(token, Token):
            raise LoginFailed("its id_token is not a signed JSON Web Token")
        said = id_token_flaw(
            token,
            issuer=self.issuer,
            client_id=self._spec.client_id,
            nonce=login.nonce,
            access_token=tokens.access_token,
            now=self._now(),
            leeway=_LEEWAY,
        )
        if said:
            raise LoginFailed(f"its id_token is refused: {said}")
        try:
            flaw = verify(token, await keys.keys(token), self._spec.algorithms)
        except Failure as failure:
            raise LoginFailed(f"its keys cannot be read: {failure.detail}") from None
        if flaw is not None:
            raise LoginFailed(f"its id_token is refused: {flaw.value}")
        return token.claims

    def _check_age(self, claims: dict[str, Any], login: UpstreamLogin, interaction: Interaction) -> None:
        """Whether they were asked again where the application wants that."""
        wanted = interaction.max_age
        if "login" in interaction.prompt:
            wanted = 0
        said = claims.get("auth_time")
        if wanted is None:
            return
        if not _is_time(said):
            if interaction.max_age is not None:
                raise LoginFailed("its id_token does not say when they logged in (`auth_time`), which was asked")
            return
        if said < login.began - wanted - _LEEWAY:
            raise LoginFailed("they were not asked to log in again, as the application wants it")

    def _lacks(self, claims: dict[str, Any]) -> bool:
        names = self._spec.claims
        asked = self._spec.scopes
        return ("profile" in asked and names.name not in claims) or ("email" in asked and names.email not in claims)

    async def _userinfo(self, metadata: _Metadata, access_token: str, sub: str) -> dict[str, Any]:
        try:
            bearer = b"Bearer " + access_token.encode("ascii")
            document = await self._fetch(metadata.userinfo_endpoint, (*_JSON, (b"authorization", bearer)))
            claims = msgspec.json.decode(document, type=dict[str, Any])
        except (msgspec.DecodeError, ValueError):
            raise LoginFailed("its userinfo is not a JSON object") from None
        if claims.get("sub") != sub:
            raise LoginFailed("its userinfo is about somebody else")  # OpenID Connect Core section 5.3.2
        return claims

    def _session(self, claims: dict[str, Any]) -> Session:
        names = self._spec.claims
        email = _text(claims.get(names.email))
        # It is said of the claim `email`, and of no other that the configuration may take the address from.
        is_verified = bool(email) and names.email == "email" and claims.get("email_verified") is True
        now = int(self._now())
        said = claims.get("auth_time")
        info = UserInfo(
            _text(claims.get(names.name)),
            email,
            is_verified,
            _texts(claims.get(names.groups)),
            _text(claims.get(names.org)),
        )
        linked = self._linked(email) if is_verified and self._spec.link_by_email else None
        if linked is not None:
            sub, info = linked.name, self._info(linked)
        else:
            sub = federated(self.issuer, claims["sub"])
        return Session(
            sub,
            info,
            min(int(said), now) if _is_time(said) else now,
            acr=_text(claims.get("acr")),
            amr=_texts(claims.get("amr"))[:16],
            upstream=self.issuer,
        )

    def _linked(self, email: str) -> UserSpec | None:
        """The one local user who has this address. Capital letters make no other address, but only those of ASCII:
        Unicode has letters that become an ASCII one in lower case (the sign for Kelvin), and are of somebody else's."""
        if not email.isascii():
            return None
        found = [user for user in self._users.values() if user.email and user.email.lower() == email.lower()]
        return found[0] if len(found) == 1 and found[0].email_verified else None


def host_label(issuer: str) -> str:
    """What an upstream is called in paths, where the configuration does not say: its host."""
    return re.sub(r"[^a-z0-9]+", "-", (urlsplit(issuer).netloc or issuer).lower()).strip("-")[:32] or "upstream"


def _is_time(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12


def _text(value: Any) -> str:
    """A claim's text, if it is one that may stand in a header, a log or a page."""
    return value if isinstance(value, str) and _TEXT.fullmatch(value) is not None else ""


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    return tuple(text for one in value[:_MOST_GROUPS] if (text := _text(one))) if isinstance(value, list) else ()
