"""The `issuer` section: who may log in, which clients there are, what they may ask for, and for how long.

Rule: what is wrong in one setting alone is refused here; what depends on the rest of the configuration, where it is
built.
"""

import re
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

import msgspec
from pydantic import AfterValidator, Discriminator, Field, SecretStr, Tag, model_validator

from tollhouse.core.spec import Duration, File, Spec
from tollhouse.issuer.subject import FEDERATED
from tollhouse.wire.jose import Keys
from tollhouse.wire.oauth import canonical_resource, is_loopback_redirect, redirect_flaw
from tollhouse.wire.password_hash import checked

__all__ = [
    "AUTH_METHODS",
    "BY_USERS",
    "GRANTS",
    "LOOPBACK_HOSTS",
    "REGISTERED",
    "TLS_METHODS",
    "ClientSpec",
    "ExchangeTargetSpec",
    "IssuerSpec",
    "KeysSpec",
    "RegistrationSpec",
    "ResourceSpec",
    "TokenExchangeSpec",
    "TrustedIssuerSpec",
    "TtlSpec",
    "UpstreamClaimsSpec",
    "UpstreamSpec",
    "UserSpec",
    "are_native",
]

Grant = Literal[
    "authorization_code", "refresh_token", "client_credentials", "device_code", "token_exchange", "jwt_bearer"
]
GRANTS: dict[str, str] = {
    "authorization_code": "authorization_code",
    "refresh_token": "refresh_token",
    "client_credentials": "client_credentials",
    "device_code": "urn:ietf:params:oauth:grant-type:device_code",
    "token_exchange": "urn:ietf:params:oauth:grant-type:token-exchange",
    "jwt_bearer": "urn:ietf:params:oauth:grant-type:jwt-bearer",
}
"""What a configuration calls a grant, and its `grant_type`."""

BY_USERS = frozenset((GRANTS["authorization_code"], GRANTS["refresh_token"], GRANTS["device_code"]))
"""Each of them ends at a user who consents."""

AuthMethod = Literal[
    "client_secret_basic",
    "client_secret_post",
    "private_key_jwt",
    "tls_client_auth",
    "self_signed_tls_client_auth",
    "none",
]
AUTH_METHODS: tuple[str, ...] = get_args(AuthMethod)
TLS_METHODS = frozenset(("tls_client_auth", "self_signed_tls_client_auth"))
"""Those of them that go by the certificate of a connection; a client with one gets tokens bound to it."""

REGISTERED = "dyn_"
"""What the ids of clients that registered themselves begin with."""

SHORTEST_SECRET = 32
_SCOPE = r"^[!#-\[\]-~]{1,256}$"
_HASH = r"^[0-9a-f]{64}$"
LOOPBACK_HOSTS = frozenset(("127.0.0.1", "::1", "localhost"))


def _issuer_url(value: str) -> str:
    wrong = "not the URL of an issuer; write it like https://auth.example.com, without query, fragment and final slash"
    try:
        url = urlsplit(value)
        _ = url.port
    except ValueError:
        raise ValueError(wrong) from None
    if not url.hostname or url.query or url.fragment or "@" in url.netloc or re.search(r"[^!-~]|[?#\\]", value):
        raise ValueError(wrong)
    if url.scheme not in ("https", "http") or value.endswith("/") or "//" in url.path or "/." in url.path:
        raise ValueError(wrong)
    if url.scheme == "http" and url.hostname not in LOOPBACK_HOSTS:
        raise ValueError(
            "an issuer's URL is https, unless it is on 127.0.0.1, [::1] or localhost: tokens and passwords go there"
        )
    if canonical_resource(value) != value:
        raise ValueError(f"tokens name it in one form; write it as {canonical_resource(value)}")
    return value


def _resource(value: str) -> str:
    try:
        return canonical_resource(value)
    except ValueError as error:
        raise ValueError(f"{error}; write it like https://api.example.com/mcp") from None


def _audience(value: str) -> str:
    """A resource, or one of its tools: URI#tool."""
    uri, mark, tool = value.partition("#")
    if mark and re.fullmatch(r"[A-Za-z0-9_.*-]{1,128}", tool) is None:
        raise ValueError("after # stands the name of a tool, or * for all")
    return _resource(uri) + mark + tool


def _redirect(value: str) -> str:
    flaw = redirect_flaw(value)
    if flaw:
        raise ValueError(f"{value} {flaw}")
    return value


def _logout_uri(value: str) -> str:
    """Where logout tokens go: they name a user."""
    try:
        url = urlsplit(value)
        is_good = bool(url.hostname) and url.scheme in ("https", "http") and url.port != 0
    except ValueError:
        is_good = False
    if not is_good or "#" in value or "@" in url.netloc or re.search(r"[^!-~]", value):
        raise ValueError(f"{value} is no https or http URL without user and fragment")
    return value


def are_native(uris: tuple[str, ...]) -> bool:
    """Whether all these redirects lead to a program on people's own machines."""
    return bool(uris) and all(
        is_loopback_redirect(uri) or not uri.lower().startswith(("http:", "https:")) for uri in uris
    )


def _secret(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if len(text) < SHORTEST_SECRET:
        raise ValueError(f"a client's secret has {SHORTEST_SECRET} random characters or more: openssl rand -base64 32")
    if not text.isascii() or not text.isprintable():
        raise ValueError("a client's secret has only printable ASCII characters")
    return value


def _password_hash(value: SecretStr) -> SecretStr:
    checked(value.get_secret_value())
    return value


def _jwks_kind(value: Any) -> str:
    if isinstance(value, dict):
        return "inline"
    return "url" if isinstance(value, str) and value.startswith(("http://", "https://")) else "file"


def _inline(value: dict[str, Any]) -> dict[str, Any]:
    Keys.parse(msgspec.json.encode(value))
    return value


def _keys_url(value: str) -> str:
    if "@" in urlsplit(value).netloc:
        raise ValueError("a URL of keys has no user and password; keys are public")
    return value


Jwks = Annotated[
    Annotated[str, AfterValidator(_keys_url), Tag("url")]
    | Annotated[File, Tag("file")]
    | Annotated[dict[str, Any], AfterValidator(_inline), Tag("inline")],
    Discriminator(_jwks_kind),
]
"""Public keys: a URL, a file, or a JWK Set written here."""

ResourceUri = Annotated[str, AfterValidator(_resource)]
Audience = Annotated[str, AfterValidator(_audience)]
RedirectUri = Annotated[str, AfterValidator(_redirect)]
ScopeName = Annotated[str, Field(pattern=_SCOPE)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Algorithm = Literal["ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA"]


def _unique(entries: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    seen: set[str] = set()
    for entry in entries:
        value = getattr(entry, name)
        if value in seen:
            raise ValueError(f"two of them have the {name} {value!r}")
        seen.add(value)
    return entries


class UserSpec(Spec):
    """Somebody who logs in with a password."""

    name: str = Field(pattern=r"^[A-Za-z0-9._@+-]{1,128}$", description="what is typed in, and the tokens' `sub`")
    password_hash: Annotated[SecretStr, AfterValidator(_password_hash)] = Field(
        description="argon2id: tollhouse hash-password"
    )
    full_name: str = Field(default="", max_length=256, description="claim `name`")
    email: str = Field(default="", max_length=256, description="claim `email`")
    email_verified: bool = Field(default=True, description="whether the address is known to be theirs")
    groups: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = Field(
        default=(), description="claim `groups`"
    )
    org: str = Field(default="", max_length=256, description="claim `org`: the organisation")
    claims: dict[str, Any] = Field(default={}, description="more claims of the user, for userinfo and tokens")


class UpstreamClaimsSpec(Spec):
    """Which claims of an upstream's id_token say what."""

    name: str = Field(default="name", min_length=1, description="the user's name, for people")
    email: str = Field(default="email", min_length=1, description="the address; it counts as theirs if it is verified")
    groups: str = Field(default="groups", min_length=1, description="text, or a list")
    org: str = Field(default="org", min_length=1, description="the organisation")


class UpstreamSpec(Spec):
    """An OpenID provider where users log in."""

    name: str = Field(default="", pattern=r"^[a-z0-9-]{0,32}$", description="in paths; default: the issuer's host")
    label: str = Field(default="", max_length=64, description="on the login page; default: the issuer's host")
    issuer: str = Field(min_length=1, max_length=2048, description="its issuer, letter by letter")
    client_id: str = Field(min_length=1, description="who we are there")
    client_secret: SecretStr | None = Field(default=None, description="what proves it; absent: a public client")
    scopes: tuple[ScopeName, ...] = Field(
        default=("openid", "email", "profile"), min_length=1, description="what it is asked for"
    )
    algorithms: tuple[Algorithm, ...] = Field(
        default=("ES256", "RS256", "EdDSA"), min_length=1, description="of its id_tokens' signatures"
    )
    claims: UpstreamClaimsSpec = Field(default=UpstreamClaimsSpec(), description="which claims say what")
    link_by_email: bool = Field(
        default=False, description="a verified address is the local user's who has it; only for providers you trust"
    )


class ExchangeTargetSpec(Spec):
    """Something that a client may get tokens for, in exchange for those it was called with."""

    audience: Audience = Field(description="its canonical URI; URI#tool for one tool, URI#* for each of them")
    scopes: dict[ScopeName, tuple[ScopeName, ...]] | None = Field(
        default=None,
        description="each scope that may be minted, and those that the caller's token must have for it; absent: the "
        "caller's own that the client may have",
    )
    ttl: Duration | None = Field(
        default=None, ge=1.0, le=3600.0, description="of the minted token, at most; default: `ttl.exchanged`"
    )
    mode: Literal["delegation", "impersonation"] = Field(
        default="delegation", description="delegation: the token names the agent (`act`)"
    )


class TokenExchangeSpec(Spec):
    """What a client with the grant `token_exchange` may get."""

    targets: tuple[ExchangeTargetSpec, ...] = Field(min_length=1, description="what tokens it may get")


class ClientSpec(Spec):
    """An OAuth client."""

    id: str = Field(pattern=r"^[!-~]{1,256}$", description="client_id")
    name: str = Field(default="", max_length=128, description="for people; default: the id")
    secret: Secret | None = Field(default=None, description="32 random characters or more")
    secret_hash: str | None = Field(
        default=None, pattern=_HASH, description="instead of the secret: its SHA-256 in lower-case hex"
    )
    auth_method: AuthMethod | None = Field(
        default=None,
        description="how it proves who it is; default: as its secret, keys or certificate say, else none",
    )
    jwks: Jwks | None = Field(default=None, description="its public keys, for private_key_jwt")
    assertion_audience: Literal["issuer", "token_endpoint"] = Field(
        default="issuer", description="`aud` of its assertions: the issuer, or (older clients) the token endpoint"
    )
    tls_subject: str | None = Field(
        default=None, min_length=1, description="distinguished name of its certificate (RFC 4514), for tls_client_auth"
    )
    tls_thumbprint: str | None = Field(
        default=None,
        pattern=_HASH,
        description="SHA-256 of its certificate in lower-case hex, for self_signed_tls_client_auth",
    )
    redirect_uris: tuple[RedirectUri, ...] = Field(
        default=(), max_length=32, description="where answers go; compared letter by letter"
    )
    post_logout_redirect_uris: tuple[RedirectUri, ...] = Field(
        default=(), max_length=32, description="where users go who have logged out; compared letter by letter"
    )
    backchannel_logout_uri: Annotated[str, AfterValidator(_logout_uri)] | None = Field(
        default=None, max_length=2048, description="who is told there that a user has logged out (Back-Channel Logout)"
    )
    native: bool | None = Field(
        default=None,
        description="a program on people's own machines: the port of a loopback redirect may be any; default: whether "
        "all its redirects are on loopback or have a scheme of their own",
    )
    grants: tuple[Grant, ...] = Field(
        default=("authorization_code", "refresh_token"), min_length=1, description="how it gets tokens"
    )
    scopes: tuple[ScopeName, ...] | None = Field(default=None, description="what it may ask for; absent: any")
    default_scopes: tuple[ScopeName, ...] | None = Field(
        default=None, description="what it gets when it asks for none; absent: all of `scopes`, without offline_access"
    )
    audiences: tuple[Audience, ...] | None = Field(
        default=None, description="resources that its tokens may be for; absent: any of ours"
    )
    serves: tuple[Audience, ...] = Field(
        default=(), description="resources that it serves: it may introspect tokens for them, and exchange them"
    )
    token_exchange: TokenExchangeSpec | None = Field(
        default=None,
        description="what it may exchange tokens for; absent: its own audiences, with the caller's scopes",
    )
    require_par: bool = Field(default=False, description="its authorization requests must be pushed (RFC 9126)")
    dpop_bound: bool = Field(default=False, description="its tokens are bound to a key of its own (RFC 9449)")
    access_ttl: Duration | None = Field(default=None, ge=5.0, le=86400.0, description="instead of `ttl.access`")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.secret is not None and self.secret_hash is not None:
            raise ValueError("give either `secret` or `secret_hash`")
        method = self.method
        needs = {
            "client_secret_basic": ("secret", "secret_hash"),
            "client_secret_post": ("secret", "secret_hash"),
            "private_key_jwt": ("jwks",),
            "tls_client_auth": ("tls_subject",),
            "self_signed_tls_client_auth": ("tls_thumbprint",),
        }
        wanted = needs.get(method, ("secret", "secret_hash") if method == "secret" else ())
        if wanted and all(getattr(self, name) is None for name in wanted):
            raise ValueError(f"`auth_method: {method}` needs `{wanted[0]}`")
        for name in ("secret", "secret_hash", "jwks", "tls_subject", "tls_thumbprint"):
            if getattr(self, name) is not None and name not in wanted:
                raise ValueError(f"`{name}` has no effect with `auth_method: {method}`; leave one of them out")
        if method == "none":
            for grant in ("client_credentials", "token_exchange", "jwt_bearer"):
                if grant in self.grants:
                    raise ValueError(f"a client that cannot prove who it is cannot have the grant `{grant}`")
        if "authorization_code" in self.grants and not self.redirect_uris:
            raise ValueError("the grant `authorization_code` needs `redirect_uris`")
        if "authorization_code" not in self.grants:
            for name in ("redirect_uris", "native", "require_par", "backchannel_logout_uri"):
                if name in self.model_fields_set:
                    raise ValueError(f"`{name}` has no effect without the grant `authorization_code`")
        if self.token_exchange is not None and "token_exchange" not in self.grants:
            raise ValueError("`token_exchange` has no effect without that grant; add it to `grants`")
        if "assertion_audience" in self.model_fields_set and method != "private_key_jwt":
            raise ValueError("`assertion_audience` has no effect without private_key_jwt")
        if self.scopes is not None and not set(self.default_scopes or ()) <= set(self.scopes):
            raise ValueError("`default_scopes` has some that are not in `scopes`")
        return self

    @property
    def method(self) -> str:
        """How it authenticates; "secret" where the secret may come in either way."""
        if self.auth_method is not None:
            return self.auth_method
        if self.secret is not None or self.secret_hash is not None:
            return "secret"
        if self.jwks is not None:
            return "private_key_jwt"
        if self.tls_subject is not None:
            return "tls_client_auth"
        return "self_signed_tls_client_auth" if self.tls_thumbprint is not None else "none"

    @property
    def is_native(self) -> bool:
        return are_native(self.redirect_uris) if self.native is None else self.native


class RegistrationSpec(Spec):
    """Clients that are not in the configuration."""

    dynamic: Literal["off", "on", "loopback"] = Field(
        default="off",
        description="clients may register themselves (RFC 7591); loopback: those of this machine, with redirects to it",
    )
    metadata_documents: Literal["off", "on"] = Field(
        default="on", description="a client_id may be the URL of a document about the client"
    )
    redirect_hosts: tuple[Annotated[str, Field(pattern=r"^[a-z0-9.-]{1,253}$")], ...] = Field(
        default=(), description="hosts that such documents may redirect to, besides their own and loopback"
    )
    document_hosts: tuple[Annotated[str, Field(pattern=r"^(\*\.)?[a-z0-9.-]{1,253}$")], ...] = Field(
        default=(), description="hosts such documents may stand at, *.example.com for those below; empty: any"
    )
    scopes: tuple[ScopeName, ...] | None = Field(
        default=None, description="what clients that are not in the configuration may ask for; absent: any"
    )
    per_address: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=10, description="registrations of one address in an hour"
    )
    rate: Annotated[int, Field(ge=1, le=100_000)] = Field(default=200, description="registrations of all in an hour")
    limit: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=10_000, description="clients that can be registered at the same time"
    )
    unused: Duration = Field(
        default=90 * 86400.0, ge=3600.0, le=390 * 86400.0, description="a registration nobody uses is forgotten"
    )


class KeysSpec(Spec):
    """Signing keys: one is active, the next one is published ahead, the last ones verify."""

    algorithm: Literal["ES256", "RS256", "EdDSA"] = Field(default="ES256", description="of signatures")
    next: Duration = Field(default=86400.0, ge=600.0, description="how long a key is published before it signs")
    active: Duration = Field(default=30 * 86400.0, ge=3600.0, description="how long a key signs")
    retired: Duration = Field(default=7200.0, ge=600.0, description="how long it verifies after that, at least")


class TtlSpec(Spec):
    """How long things live."""

    access: Duration = Field(default=600.0, ge=5.0, le=86400.0, description="access tokens")
    id_token: Duration = Field(default=600.0, ge=5.0, le=86400.0, description="id_tokens")
    exchanged: Duration = Field(default=5.0, ge=1.0, le=3600.0, description="tokens that were exchanged, at most")
    refresh_idle: Duration = Field(default=14 * 86400.0, ge=60.0, description="a grant nobody refreshes ends")
    refresh: Duration = Field(default=90 * 86400.0, ge=60.0, le=390 * 86400.0, description="any grant ends")
    refresh_grace: Duration = Field(
        default=10.0, ge=0.0, le=60.0, description="a refresh token whose answer was lost may be used again for so long"
    )
    session_idle: Duration = Field(default=8 * 3600.0, ge=60.0, description="a login nobody uses ends")
    session: Duration = Field(default=86400.0, ge=60.0, description="any login ends")
    consent: Duration = Field(
        default=180 * 86400.0, ge=60.0, le=390 * 86400.0, description="what a user has allowed is asked again"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for idle, all_of_it in (("refresh_idle", "refresh"), ("session_idle", "session")):
            if getattr(self, idle) > getattr(self, all_of_it):
                raise ValueError(f"`{idle}` is longer than `{all_of_it}`, so it has no effect")
        return self


class ResourceSpec(Spec):
    """Something that tokens are for, besides the MCP endpoints of this gateway."""

    uri: ResourceUri = Field(description="its canonical URI, the tokens' `aud`")
    name: str = Field(default="", max_length=128, description="for people; default: the URI")
    scopes: dict[ScopeName, Annotated[str, Field(max_length=256)]] = Field(
        default={}, description="its scopes, and what each of them allows, in words"
    )


class TrustedIssuerSpec(Spec):
    """Another issuer whose tokens are taken in exchange."""

    issuer: str = Field(min_length=1, max_length=2048, description="as in the tokens' `iss`, letter by letter")
    jwks: Jwks = Field(description="its public keys: a URL, a file, or a JWK Set written here")
    algorithms: tuple[Algorithm, ...] = Field(
        default=("ES256", "RS256", "EdDSA"), min_length=1, description="of its tokens' signatures"
    )
    grants: tuple[Literal["token_exchange", "id_jag", "jwt_bearer"], ...] = Field(
        min_length=1, description="what its tokens are taken for; id_jag: enterprise-managed authorization"
    )
    clients: tuple[str, ...] | None = Field(default=None, description="who may show them; absent: any client")
    agent_claim: str = Field(default="client_id", min_length=1, description="who acts: client_id, azp, appid, cid")
    trust_may_act: bool = Field(default=False, description="its claim `may_act` is taken; else such a token is refused")
    typ: tuple[str, ...] | None = Field(default=None, description="`typ` in exchange; default JWT, at+jwt, none")
    leeway: Duration = Field(default=30.0, ge=0.0, le=300.0, description="how far clocks may differ")


class IssuerSpec(Spec):
    """The auth provider: OAuth 2.1 and OpenID Connect."""

    url: Annotated[str, AfterValidator(_issuer_url)] = Field(
        description="its issuer, as clients reach it: https://auth.example.com"
    )
    users: Annotated[tuple[UserSpec, ...], AfterValidator(lambda users: _unique(users, "name"))] = Field(
        default=(), description="who logs in with a password"
    )
    upstream: tuple[UpstreamSpec, ...] = Field(default=(), description="OpenID providers where users log in")
    clients: Annotated[tuple[ClientSpec, ...], AfterValidator(lambda clients: _unique(clients, "id"))] = Field(
        default=(), description="OAuth clients"
    )
    registration: RegistrationSpec = Field(
        default=RegistrationSpec(), description="clients that are not in the configuration"
    )
    trusted: Annotated[tuple[TrustedIssuerSpec, ...], AfterValidator(lambda those: _unique(those, "issuer"))] = Field(
        default=(), description="other issuers whose tokens are taken in exchange"
    )
    keys: KeysSpec = Field(default=KeysSpec(), description="signing keys")
    ttl: TtlSpec = Field(default=TtlSpec(), description="how long things live")
    cookie: str = Field(
        default="tollhouse_session", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="name of the session's cookie"
    )
    certificate_header: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9-]{1,64}$",
        description="the field in which proxies of `server.trusted_proxies` send a client's certificate: client-cert "
        "(RFC 9440), or one with URL-encoded PEM; absent: the certificate of the TLS connection",
    )
    scopes: dict[ScopeName, Annotated[str, Field(max_length=256)]] = Field(
        default={}, description="scopes of every resource, and what each of them allows, in words"
    )
    resources: Annotated[tuple[ResourceSpec, ...], AfterValidator(lambda those: _unique(those, "uri"))] = Field(
        default=(), description="what tokens are for, besides the MCP endpoints of this gateway"
    )

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        users = {user.name for user in self.users}
        for name in (*users, *(client.id for client in self.clients)):
            if name.startswith(FEDERATED):
                raise ValueError(f"{name!r} begins with {FEDERATED!r}, as users of other issuers do")
        for client in self.clients:
            if client.id.startswith((REGISTERED, "https://", "http://")):
                raise ValueError(f"{client.id!r} is an id as clients have that are not in the configuration")
            if client.id in users:
                raise ValueError(
                    f"a user and a client are called {client.id!r}; a token's `sub` must be one of them (RFC 9068)"
                )
        return self
