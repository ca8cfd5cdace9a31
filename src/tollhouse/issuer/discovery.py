"""What clients find out by themselves: the issuer's metadata (RFC 8414, OpenID Connect Discovery), and its keys.

Rule: both documents say the same, and only what this configuration really does. They are rendered once.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final

import msgspec

from tollhouse.core.http import Request, Response
from tollhouse.issuer.authorization_request import PROMPTS, RESPONSE_MODES
from tollhouse.issuer.parts import Parts
from tollhouse.issuer.served import Served
from tollhouse.issuer.spec import AUTH_METHODS, BY_USERS, GRANTS, TLS_METHODS, IssuerSpec

__all__ = ["discovery", "enabled_grants", "metadata"]

_GET: Final = frozenset((b"GET", b"HEAD"))
_ALGORITHMS: Final = ("ES256", "ES384", "ES512", "RS256", "PS256", "EdDSA")
_MAX_AGE: Final = 300


def enabled_grants(parts: Parts, *, can_log_in: bool, trusts_jwt: bool) -> tuple[str, ...]:
    """The `grant_type`s that some client could use, in a fixed order."""
    spec = parts.spec
    used = {GRANTS[grant] for client in spec.clients for grant in client.grants}
    if not can_log_in:
        used -= BY_USERS
    elif spec.registration.dynamic != "off" or spec.registration.metadata_documents == "on":
        used |= BY_USERS
    if not trusts_jwt:
        used.discard(GRANTS["jwt_bearer"])
    elif spec.registration.metadata_documents == "on":
        used.add(GRANTS["jwt_bearer"])
    return tuple(grant_type for grant_type in GRANTS.values() if grant_type in used)


def metadata(parts: Parts, grants: Iterable[str], *, id_jag: bool, pages: frozenset[str]) -> dict[str, Any]:
    """The metadata. pages: endpoints that are there besides those of every issuer."""
    spec, at = parts.spec, parts.at
    grants = tuple(grants)
    by_certificate = any(client.method in TLS_METHODS for client in spec.clients)  # nobody else can have these
    provable = [one for one in AUTH_METHODS if one != "none" and (by_certificate or one not in TLS_METHODS)]
    methods = [*provable, *(("none",) if _may_be_public(spec, pages) else ())]
    document: dict[str, Any] = {
        "issuer": parts.url,
        "token_endpoint": at("token"),
        "jwks_uri": at("jwks"),
        "scopes_supported": parts.resources.scopes,
        "response_types_supported": ["code"] if "authorize" in pages else [],
        "grant_types_supported": grants,
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": _ALGORITHMS,
        "introspection_endpoint": at("introspect"),
        "introspection_endpoint_auth_methods_supported": provable,
        "introspection_endpoint_auth_signing_alg_values_supported": _ALGORITHMS,
        "revocation_endpoint": at("revoke"),
        "revocation_endpoint_auth_signing_alg_values_supported": _ALGORITHMS,
        "revocation_endpoint_auth_methods_supported": methods,
        "code_challenge_methods_supported": ["S256"],
        "dpop_signing_alg_values_supported": ["ES256", "RS256", "EdDSA"],
        "tls_client_certificate_bound_access_tokens": by_certificate,
        "id_token_signing_alg_values_supported": [spec.keys.algorithm],
        "subject_types_supported": ["public"],
        "request_parameter_supported": False,
        "request_uri_parameter_supported": False,
        "claims_parameter_supported": False,
    }
    if "authorize" in pages:
        document |= {
            "authorization_endpoint": at("authorize"),
            "response_modes_supported": RESPONSE_MODES,
            "authorization_response_iss_parameter_supported": True,
            "client_id_metadata_document_supported": spec.registration.metadata_documents == "on",
            "prompt_values_supported": PROMPTS,
            "backchannel_logout_supported": True,
            "backchannel_logout_session_supported": True,
            "claims_supported": [
                "sub", "iss", "aud", "exp", "iat", "auth_time", "acr", "amr", "sid", "name", "email", "email_verified",
                "groups", "org",
            ],
        }  # fmt: skip
    for page, name in (
        ("par", "pushed_authorization_request_endpoint"),
        ("userinfo", "userinfo_endpoint"),
        ("logout", "end_session_endpoint"),
        ("device", "device_authorization_endpoint"),
        ("register", "registration_endpoint"),
    ):
        if page in pages:
            document[name] = at(page)
    if id_jag:
        document["authorization_grant_profiles_supported"] = ["urn:ietf:params:oauth:grant-profile:id-jag"]
    return document


def _may_be_public(spec: IssuerSpec, pages: frozenset[str]) -> bool:
    """Whether there can be a client that proves nothing. pages: as `metadata` has it."""
    if any(client.method == "none" for client in spec.clients):
        return True
    unknown = spec.registration.dynamic != "off" or spec.registration.metadata_documents == "on"
    return unknown and "authorize" in pages


def discovery(parts: Parts, document: dict[str, Any]) -> list[Served]:
    """The documents and the keys. An issuer with a path is found by RFC 8414's way of writing it and by OpenID's."""
    body = msgspec.json.encode(document)

    async def told(request: Request) -> Response:
        return _public(request, body)

    async def keys(request: Request) -> Response:
        return _public(request, parts.keys.public())

    names = ("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration")
    paths = [name + parts.base for name in names]
    if parts.base:
        paths += [parts.base + name for name in names]
    served = [Served(path, _GET, told, open=True) for path in paths]
    return [*served, Served(parts.path("jwks"), _GET, keys, open=True)]


def _public(request: Request, body: bytes) -> Response:
    tag = b'"' + sha256(body).hexdigest()[:32].encode() + b'"'
    headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"public, max-age=%d" % _MAX_AGE),
        (b"etag", tag),
        (b"x-content-type-options", b"nosniff"),
    ]
    known = request.header(b"if-none-match") or b""
    if known.strip() == b"*" or tag in [one.strip().removeprefix(b"W/") for one in known.split(b",")]:
        return Response(304, headers)
    return Response(200, headers, body)
