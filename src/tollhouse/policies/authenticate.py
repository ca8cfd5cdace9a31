"""Authentication: who is calling. Sets `Context.principal`, or refuses with 401.

Rule: a credential that is shown must be good, also where none is needed. It is taken from `Authorization: Bearer`,
else from `x-api-key`, `api-key` or `x-goog-api-key` (as SDKs send it), is known by its SHA-256 digest from there on,
and never goes into a log or an error. Backends take these headers out of what goes upstream.

Challenges follow RFC 6750 section 3; before MCP they name the resource's metadata (RFC 9728 section 5.1), by which
an agent finds out where to get a token.
"""

from collections.abc import Awaitable
from hashlib import sha256
from typing import Any, Literal, Self

import msgspec
from pydantic import Field, model_validator

from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Headers, Request, Response
from tollhouse.core.spec import Spec
from tollhouse.policies.base import Kind, Layer, Parts, wrong
from tollhouse.policies.jwt import Issuers, JwtSpec
from tollhouse.policies.keys import ApiKeys, KeySpec
from tollhouse.wire.jose import Flaw

__all__ = [
    "AUTHENTICATE",
    "Authenticate",
    "AuthenticateSpec",
    "ResourceMetadataSpec",
    "metadata_path",
    "resource_metadata",
]

_WELL_KNOWN = "/.well-known/oauth-protected-resource"
_OTHER_KEYS = (b"api-key", b"x-goog-api-key")


class ResourceMetadataSpec(Spec):
    """What the protected resource's metadata says (RFC 9728 section 2)."""

    authorization_servers: tuple[str, ...] = Field(
        default=(), description="where to get a token; default: the issuers of `jwt`"
    )
    scopes: tuple[str, ...] = Field(default=(), description="scopes_supported, and what a challenge asks for")
    name: str = Field(default="", description="resource_name, for people")
    documentation: str = Field(default="", description="resource_documentation: a URL for developers")


class AuthenticateSpec(Spec):
    """Who may call. Without keys and issuers everybody is anonymous."""

    mode: Literal["strict", "optional"] = Field(
        default="strict", description="strict: a credential is needed; optional: without one the caller is anonymous"
    )
    keys: tuple[KeySpec, ...] = Field(default=(), description="API keys")
    jwt: tuple[JwtSpec, ...] = Field(default=(), description="issuers of tokens")
    resource_metadata: ResourceMetadataSpec = Field(
        default=ResourceMetadataSpec(), description="what agents of MCP are told about where to get a token"
    )

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if self.mode == "strict" and not self.keys and not self.jwt:
            raise ValueError("nobody could call: give `keys` or `jwt`, or write `mode: optional`")
        return self


class Authenticate:
    """One authentication policy."""

    def __init__(self, spec: AuthenticateSpec, keys: ApiKeys, issuers: Issuers, parts: Parts) -> None:
        self._keys = keys
        self._issuers = issuers
        self._strict = spec.mode == "strict"
        self._me = object()  # for what outlives this configuration
        self._anonymous = Principal("anonymous", source="anonymous")
        self._metadata = f"{parts.public_url}{_WELL_KNOWN}" if spec.jwt and parts.entrance == "mcp" else ""
        self._scope = " ".join(spec.resource_metadata.scopes)

    def handle(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """Raises Failure 401, and 503 while an issuer's keys cannot be had."""
        known = request.known
        if known is not None and known.by is self._me:
            digest = known.digest
            principal = self._keys.find(digest) or self._issuers.remembered(digest)
            if principal is not None:
                request.context.principal = principal
                return next(request)
        credential = _presented(request.headers)
        if credential is None:
            if self._strict:
                raise self._refused(request, self._reason(), "a credential is needed", "")
            request.context.principal = self._anonymous
            return next(request)
        digest = sha256(credential).digest()
        if known is not None:
            known.by, known.digest = self._me, digest
        principal = self._keys.find(digest) or self._issuers.remembered(digest)
        if principal is None:
            return self._new(request, next, credential, digest)
        request.context.principal = principal
        return next(request)

    async def _new(
        self, request: Request, next: Handler[Request, Response], credential: bytes, digest: bytes
    ) -> Response:
        request.context.principal = await self._check(request, credential, digest)
        return await next(request)

    async def _check(self, request: Request, credential: bytes, digest: bytes) -> Principal:
        if not credential:
            raise self._refused(
                request,
                self._reason(),
                "only `Authorization: Bearer` and `x-api-key` are understood",
                "invalid_request",
            )
        if not len(self._issuers) or (len(self._keys) and credential.count(b".") != 2):
            raise self._refused(request, Reason.API_KEY_AUTH, "the API key is not known", "invalid_token")
        found = await self._issuers.verify(credential, digest)
        if isinstance(found, Flaw):
            raise self._refused(request, Reason.JWT_AUTH, found.value, "invalid_token")
        return found

    def _reason(self) -> Reason:
        return Reason.JWT_AUTH if len(self._issuers) else Reason.API_KEY_AUTH

    def _refused(self, request: Request, reason: Reason, message: str, error: str) -> Failure:
        fields = []
        if error:  # RFC 6750 section 3.1: not when there was no credential
            fields += [f'error="{error}"', f'error_description="{_quotable(message)}"']
        if self._scope:
            fields.append(f'scope="{self._scope}"')
        if self._metadata:
            fields.append(f'resource_metadata="{self._metadata}{_path(request)}"')
        challenge = "Bearer " + ", ".join(fields) if fields else "Bearer"
        code = "invalid_api_key" if reason is Reason.API_KEY_AUTH else "invalid_token"
        if not error:
            code = "credential_required"
        return Failure(
            401,
            reason,
            message,
            code=code,
            headers=((b"www-authenticate", challenge.encode("latin-1")),),
        )


class Anonymous:
    """Nobody has to say who he is: one Principal for all."""

    def __init__(self) -> None:
        self._principal = Principal("anonymous", source="anonymous")

    def handle(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        request.context.principal = self._principal
        return next(request)


def _presented(headers: Headers) -> bytes | None:
    """The credential; None when there is none, b"" for a scheme that is not understood."""
    key: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme = value[:7]
            return value[7:].strip() if scheme == b"Bearer " or scheme.lower() == b"bearer " else b""
        if name == b"x-api-key" or (name in _OTHER_KEYS and key is None):
            key = value
    return key


def _path(request: Request) -> str:
    path = request.path.decode("latin-1")
    return "" if path == "/" or not path.isascii() or not path.isprintable() or '"' in path or "\\" in path else path


def _quotable(text: str) -> str:
    return text.replace("\\", "").replace('"', "'").replace("`", "")


def metadata_path(path: str) -> str:
    """Where the metadata of the resource at `path` is served (RFC 9728 section 3.1)."""
    return _WELL_KNOWN + (path if path != "/" else "")


def resource_metadata(spec: AuthenticateSpec, resource: str) -> Handler[Request, Response] | None:
    """The Handler of the metadata document of `resource` (its canonical URI), for `metadata_path`. It is public, also
    for web pages. None when no issuer of tokens is configured: then there is nothing to tell."""
    told = spec.resource_metadata
    servers = told.authorization_servers or tuple(issuer.issuer for issuer in spec.jwt)
    if not spec.jwt or not servers:
        return None
    document: dict[str, Any] = {
        "resource": resource,
        "authorization_servers": servers,
        "bearer_methods_supported": ["header"],
    }
    if told.scopes:
        document["scopes_supported"] = told.scopes
    if told.name:
        document["resource_name"] = told.name
    if told.documentation:
        document["resource_documentation"] = told.documentation
    body = msgspec.json.encode(document)

    async def handle(request: Request) -> Response:
        if request.method == b"OPTIONS":
            return Response(204, [(b"allow", b"GET, HEAD, OPTIONS"), *_PUBLIC])
        if request.method not in (b"GET", b"HEAD"):
            raise Failure(
                405, Reason.INVALID_REQUEST, "this document is only read", headers=((b"allow", b"GET, HEAD, OPTIONS"),)
            )
        return Response(
            200, [(b"content-type", b"application/json"), (b"cache-control", b"public, max-age=300"), *_PUBLIC], body
        )

    return handle


_PUBLIC = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-headers", b"mcp-protocol-version"),
    (b"access-control-allow-methods", b"GET, HEAD"),
)


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    if not layers:
        return Anonymous().handle
    layer = layers[-1]
    spec: AuthenticateSpec = layer.spec
    try:
        keys, issuers = ApiKeys(spec.keys), Issuers(spec.jwt, parts)
    except ValueError as error:
        raise wrong(layer, "authenticate", str(error)) from None
    if not len(keys) and not len(issuers):
        return Anonymous().handle
    return Authenticate(spec, keys, issuers, parts).handle


AUTHENTICATE: Kind[Request, Response] = Kind(
    "authenticate", frozenset(("top", "route", "endpoint")), adds=False, build=_build, always=True
)
