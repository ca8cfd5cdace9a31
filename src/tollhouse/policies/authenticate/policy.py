"""Authentication: who is calling. Sets `Context.principal`, or refuses with 401.

Rule: a credential that is shown must be good, also where none is needed. It is known by its SHA-256 digest from there
on, and never goes into a log or an error. Backends take the fields it came in out of what goes upstream. Each kind of
credential is a file beside this one; the order in which they are asked is written here, and what is known already is
found without waiting.
"""

from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tollhouse.core.call import Principal
from tollhouse.core.errors import Reason
from tollhouse.core.forwarded import network_of
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.spec import Spec
from tollhouse.ledger.keys import PREFIX, is_whole
from tollhouse.policies.authenticate.basic import Basic, BasicSpec
from tollhouse.policies.authenticate.challenge import Challenges, metadata_document, metadata_url
from tollhouse.policies.authenticate.claims import Unfit
from tollhouse.policies.authenticate.ext_authz import ExtAuthz, ExtAuthzSpec
from tollhouse.policies.authenticate.jwt import Issuers, JwtSpec
from tollhouse.policies.authenticate.keys import ApiKeys, IssuedKeys, KeySpec
from tollhouse.policies.authenticate.mtls import Certificates, MtlsSpec, reader
from tollhouse.policies.authenticate.oidc import Login, OidcSpec
from tollhouse.policies.authenticate.opaque import Introspection, IntrospectionSpec
from tollhouse.policies.authenticate.presented import BASIC, DPOP, KEY, NONE, no_token_in_query, presented
from tollhouse.policies.authenticate.proof import DpopSpec, Proofs
from tollhouse.policies.authenticate.requires import ScopeWord
from tollhouse.policies.base import Kind, Layer, Parts, wrong
from tollhouse.wire.jose import Flaw

__all__ = ["AUTHENTICATE", "Authenticate", "AuthenticateSpec", "ResourceMetadataSpec", "resource_metadata"]

_KEY = PREFIX.encode()


class ResourceMetadataSpec(Spec):
    """What the protected resource's metadata says (RFC 9728 section 2)."""

    authorization_servers: tuple[str, ...] = Field(
        default=(), description="where to get a token; default: the gateway's own issuer, and those of `jwt`"
    )
    scopes: tuple[ScopeWord, ...] = Field(default=(), description="scopes_supported, and what a challenge asks for")
    name: str = Field(default="", description="resource_name, for people")
    documentation: str = Field(default="", description="resource_documentation: a URL for developers")


class AuthenticateSpec(Spec):
    """Who may call. Without any of these kinds of credential everybody is anonymous."""

    mode: Literal["strict", "optional"] = Field(
        default="strict", description="strict: a credential is needed; optional: without one the caller is anonymous"
    )
    keys: tuple[KeySpec, ...] = Field(default=(), description="API keys")
    issued: bool = Field(default=False, description="API keys made by `tollhouse keys`, which live in the ledger")
    jwt: tuple[JwtSpec, ...] = Field(default=(), description="issuers of tokens")
    introspection: IntrospectionSpec | None = Field(
        default=None, description="whom to ask about tokens that cannot be read (RFC 7662)"
    )
    basic: BasicSpec | None = Field(default=None, description="user names and passwords (RFC 7617)")
    mtls: MtlsSpec | None = Field(default=None, description="client certificates")
    oidc: OidcSpec | None = Field(default=None, description="people in browsers log in at an OpenID provider")
    ext_authz: ExtAuthzSpec | None = Field(default=None, description="an HTTP service that decides")
    dpop: DpopSpec = Field(default=DpopSpec(), description="tokens that are bound to a key of their client (RFC 9449)")
    resource_metadata: ResourceMetadataSpec = Field(
        default=ResourceMetadataSpec(), description="what agents of MCP are told about where to get a token"
    )

    @property
    def knows_anybody(self) -> bool:
        """Whether there is a kind of credential at all."""
        return bool(
            self.keys
            or self.issued
            or self.jwt
            or self.introspection
            or self.basic
            or self.mtls
            or self.oidc
            or self.ext_authz
        )

    @property
    def takes_tokens(self) -> bool:
        return bool(self.jwt or self.introspection)

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if "dpop" in self.model_fields_set and not self.takes_tokens and "jwt" in self.model_fields_set:
            raise ValueError("`dpop` is about tokens; name who issues them in `jwt` or `introspection`")
        return self


class Authenticate:
    """One authentication policy."""

    def __init__(self, spec: AuthenticateSpec, parts: Parts) -> None:
        """Raises ValueError for what shows only when it is put together."""
        own = parts.issuer
        self._revocations = parts.revocations
        self._keys = ApiKeys(spec.keys, revocations=parts.revocations)
        self._issuers = Issuers(spec.jwt, parts, own=own)
        self._opaque = Introspection(spec.introspection, parts) if spec.introspection is not None else None
        self._basic = Basic(spec.basic, parts) if spec.basic is not None else None
        self._certificates = Certificates(spec.mtls, parts) if spec.mtls is not None else None
        self._login = Login(spec.oidc, parts) if spec.oidc is not None else None
        self._ext = ExtAuthz(spec.ext_authz, parts) if spec.ext_authz is not None else None
        self._tokens = bool(len(self._issuers) or self._opaque is not None)
        self._proofs = Proofs(spec.dpop, parts, reader(spec.mtls, parts)) if self._tokens else None
        self._strict = spec.mode == "strict"
        self._me = object()  # for what outlives this configuration
        self._anonymous = Principal("anonymous", source="anonymous")
        self._own_query = parts.entrance == "http"  # a service's parameters mean what it says
        finders: list[Find] = []
        if len(self._keys):
            finders.append(self._keys.find)
        if spec.issued and parts.issued is not None:
            finders.append(IssuedKeys(parts.issued, parts.revocations, self._keys.names).find)
        if len(self._issuers):
            finders.append(self._issuers.find)
        if self._opaque is not None:
            finders.append(self._opaque.find)
        self._find = _any_of(finders)
        self._takes_bearers = bool(finders)
        self._has_keys = bool(len(self._keys) or spec.issued)
        self._without_header = self._certificates is not None or self._login is not None or self._ext is not None
        told = spec.resource_metadata
        named = self._tokens and parts.entrance == "mcp" and bool(parts.resource)
        self._challenges = Challenges(
            bearer=bool(finders) or self._ext is not None or not self._basic,
            metadata=metadata_url(parts.resource) if named and _servers(spec, parts) else "",
            scopes=(*told.scopes, *parts.scopes) if self._tokens else (),
            basic=self._basic is not None,
            algorithms=spec.dpop.algorithms,
            dpop=self._proofs is not None and spec.dpop.advertised,
        )
        self._bound_only = self._proofs is not None and spec.dpop.required
        ways = ["`Authorization: Bearer`", "`x-api-key`"] if self._takes_bearers else []
        ways += ["`Authorization: DPoP`"] if self._proofs is not None else []
        ways += ["`Authorization: Basic`"] if self._basic is not None else []
        listed = " and ".join(filter(None, (", ".join(ways[:-1]), *ways[-1:])))
        self._understood = f"only {listed} are understood" if ways else "nothing in `Authorization` is understood here"

    def handle(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """Raises Failure 401, 400 for what is malformed, and 503 while those who must be asked cannot be."""
        known = request.known
        if known is not None and known.by is self._me:
            principal = self._find(known.digest)
            if principal is not None:
                request.context.principal = principal
                return next(request)
        if request.query and not self._own_query:
            no_token_in_query(request)
        scheme, credential = presented(request.headers)
        if scheme == NONE:
            return self._nameless(request, next)
        if scheme > KEY:
            return self._by_scheme(request, next, scheme, credential)
        digest = sha256(credential).digest()
        principal = self._find(digest)
        if principal is None:
            return self._new(request, next, scheme, credential, digest)
        if principal.proof or (self._bound_only and principal.source != "key"):
            return self._proved(request, next, scheme, credential, principal)
        if known is not None:
            known.by, known.digest = self._me, digest
        request.context.principal = principal
        return next(request)

    def _nameless(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """Nothing is shown in the fields for it."""
        if self._without_header:
            return self._by_other_means(request, next)
        if self._strict:
            raise self._challenges.refused(self._reason(), "a credential is needed")
        request.context.principal = self._anonymous
        return next(request)

    async def _by_other_means(self, request: Request, next: Handler[Request, Response]) -> Response:
        principal: Principal | None = None
        if self._certificates is not None:
            principal = self._certificates.find(request)
        if principal is None and self._login is not None:
            found = await self._login.enter(request)
            if isinstance(found, Response):
                return found
            principal = found
        if principal is None and self._ext is not None:
            principal = await self._ext.ask(request)
        if principal is None:
            if self._strict:
                if self._login is not None and (page := await self._login.page(request)) is not None:
                    return page
                raise self._challenges.refused(self._reason(), "a credential is needed")
            principal = self._anonymous
        request.context.principal = self._in_force(principal)
        return await next(request)

    def _in_force(self, principal: Principal) -> Principal:
        """Whom a means without a token has shown. Raises Failure 401 where he, or the agent that acts, was revoked."""
        if self._revocations is not None and self._revocations.revoked(principal):
            raise self._challenges.refused(self._reason(), "who is shown was revoked", "invalid_token")
        return principal

    async def _by_scheme(
        self, request: Request, next: Handler[Request, Response], scheme: int, credential: bytes
    ) -> Response:
        principal: Principal | None
        if scheme == DPOP and self._proofs is not None and credential:
            digest = sha256(credential).digest()
            principal = self._find(digest) or await self._check(request, credential, digest, "DPoP")
            return await self._proved(request, next, scheme, credential, principal)
        if scheme == BASIC and self._basic is not None:
            principal = await self._basic.check(request, credential)
            if principal is None and self._ext is None:
                message = "the user name or the password is wrong"
                raise self._challenges.refused(Reason.BASIC_AUTH, message, scheme="Basic")
        else:
            principal = None
        if principal is None and self._ext is not None:
            principal = await self._ext.ask(request)
        if principal is None:
            # No error of a scheme that was not used (RFC 6750 section 3.1): nothing of it was looked at.
            raise self._challenges.refused(self._reason(), self._understood, scheme="")
        request.context.principal = self._in_force(principal)
        return await next(request)

    async def _new(
        self, request: Request, next: Handler[Request, Response], scheme: int, credential: bytes, digest: bytes
    ) -> Response:
        principal = await self._check(request, credential, digest, "Bearer")
        if principal.proof or (self._bound_only and principal.source != "key"):
            return await self._proved(request, next, scheme, credential, principal)
        request.context.principal = principal
        return await next(request)

    async def _proved(
        self,
        request: Request,
        next: Handler[Request, Response],
        scheme: int,
        credential: bytes,
        principal: Principal,
    ) -> Response:
        """A token that is bound to a key, or shown as one."""
        if self._proofs is None or principal.source == "key":
            message = "an API key is shown as a bearer token, without a proof"
            raise self._challenges.refused(Reason.JWT_AUTH, message, "invalid_token", scheme="DPoP")
        refusal = await self._proofs.check(request, principal, credential, dpop=scheme == DPOP)
        if refusal is not None:
            raise self._challenges.refused(
                Reason.JWT_AUTH, refusal.message, refusal.error, scheme="DPoP", extra=refusal.headers
            )
        request.context.principal = principal
        return await next(request)

    async def _check(self, request: Request, credential: bytes, digest: bytes, scheme: str) -> Principal:
        """Whose a credential is that nobody remembers."""
        found: Principal | Flaw | Unfit | str
        reason = Reason.API_KEY_AUTH
        if not credential:
            found = "there is a scheme, and no credential behind it"
        elif credential.startswith(_KEY):
            whole = is_whole(credential.decode("latin-1"))
            found = "the API key is not known, or not any more" if whole else "the API key is mistyped or cut off"
        elif not self._tokens or (self._has_keys and self._opaque is None and credential.count(b".") != 2):
            found = "the API key is not known"
        else:
            reason = Reason.JWT_AUTH
            found = await self._token(request, credential, digest)
        if isinstance(found, Principal):
            return found
        if self._ext is not None:
            return self._in_force(await self._ext.ask(request))
        if not self._takes_bearers:
            raise self._challenges.refused(self._reason(), self._understood, scheme="")
        message = found if isinstance(found, str) else str(found.value)
        raise self._challenges.refused(reason, message, "invalid_token", scheme=scheme)

    async def _token(self, request: Request, token: bytes, digest: bytes) -> Principal | Flaw | Unfit:
        opaque = self._opaque
        if opaque is None or (len(self._issuers) and token.count(b".") == 2 and self._issuers.speaks_for(token)):
            return await self._issuers.verify(token, digest)
        return await opaque.verify(token, digest, network_of(request.context.client or request.peer))

    def _reason(self) -> Reason:
        return (
            Reason.JWT_AUTH if self._tokens else Reason.BASIC_AUTH if not self._takes_bearers else Reason.API_KEY_AUTH
        )


Find = Callable[[bytes], Principal | None]


def _any_of(finders: list[Find]) -> Find:
    """The first of them that knows a digest. Most configurations have one or two; a loop costs as much as they do."""
    if not finders:
        return lambda _: None
    first = finders[0]
    if len(finders) == 1:
        return first
    others = finders[1] if len(finders) == 2 else _any_of(finders[1:])
    return lambda digest: first(digest) or others(digest)


class Anonymous:
    """Nobody has to say who he is: one Principal for all."""

    def __init__(self) -> None:
        self._principal = Principal("anonymous", source="anonymous")

    def handle(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        request.context.principal = self._principal
        return next(request)


def _servers(spec: AuthenticateSpec, parts: Parts) -> tuple[str, ...]:
    told = spec.resource_metadata.authorization_servers
    if told:
        return told
    found = [parts.issuer.url] if parts.issuer is not None else []
    found += [issuer.issuer for issuer in spec.jwt]
    if spec.introspection is not None and spec.introspection.issuer:
        found.append(spec.introspection.issuer)
    return tuple(dict.fromkeys(found))


def resource_metadata(spec: AuthenticateSpec, parts: Parts) -> Handler[Request, Response] | None:
    """The Handler of the metadata document of `parts.resource`, for `challenge.metadata_path`. None when no issuer of
    tokens is configured: then there is nothing to tell."""
    servers = _servers(spec, parts)
    if not servers or not (spec.takes_tokens or parts.issuer is not None):
        return None
    told = spec.resource_metadata
    return metadata_document(
        parts.resource,
        servers,
        scopes=(*told.scopes, *parts.scopes),
        name=told.name,
        documentation=told.documentation,
        algorithms=spec.dpop.algorithms if spec.dpop.advertised else (),
        bound=spec.dpop.required,
    )


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    if not layers:
        return Anonymous().handle
    layer = layers[-1]
    spec: AuthenticateSpec = layer.spec
    if not spec.knows_anybody and parts.issuer is None:
        if spec.mode == "strict":
            raise wrong(layer, "authenticate", NOBODY)
        return Anonymous().handle
    try:
        return Authenticate(spec, parts).handle
    except ValueError as error:
        raise wrong(layer, "authenticate", str(error)) from None


NOBODY = "nobody could call: give `keys`, `jwt` or another kind of credential, or write `mode: optional`"

AUTHENTICATE: Kind[Request, Response] = Kind(
    "authenticate", frozenset(("top", "route")), adds=False, build=_build, always=True
)
