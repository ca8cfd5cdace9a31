"""What a caller without a good credential is told: RFC 6750 section 3, RFC 9728 section 5, RFC 9449 section 7.1; and
the metadata document of a protected resource, by which an agent finds out where to get a token.

Rule: an error is named only where a credential was shown. `scope` is all that this call needs, sorted, so that one
step up is enough; nothing of what was shown is ever repeated.
"""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response

__all__ = ["Challenges", "canonical", "insufficient", "metadata_document", "metadata_path", "metadata_url"]

_WELL_KNOWN = "/.well-known/oauth-protected-resource"
_BASIC = 'Basic realm="tollhouse", charset="UTF-8"'
_PUBLIC = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-headers", b"mcp-protocol-version"),
    (b"access-control-allow-methods", b"GET, HEAD"),
)


def canonical(url: str) -> str:
    """A resource's URI as tokens have it in `aud` (RFC 8707, MCP authorization): scheme and host in lower case, no lone
    slash at the end."""
    parts = urlsplit(url)
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{parts.path.rstrip('/')}"


def metadata_path(path: str) -> str:
    """Where the metadata of the resource at `path` is served (RFC 9728 section 3.1)."""
    return _WELL_KNOWN + (path if path != "/" else "")


def metadata_url(resource: str) -> str:
    """The URL of the metadata of a resource, by its URI."""
    parts = urlsplit(resource)
    return f"{parts.scheme}://{parts.netloc}{metadata_path(parts.path or '/')}"


class Challenges:
    """How one entrance refuses. metadata: URL of the resource's metadata, "" for none. scopes: what every call here
    needs. basic: passwords are taken too. algorithms: of DPoP proofs. dpop: they are told of to everybody."""

    def __init__(
        self,
        *,
        bearer: bool = True,
        metadata: str = "",
        scopes: Iterable[str] = (),
        basic: bool = False,
        algorithms: tuple[str, ...] = (),
        dpop: bool = False,
    ) -> None:
        self._dpop = dpop
        self._bearer = bearer
        self._metadata = metadata
        self._scope = " ".join(sorted(frozenset(scopes)))
        self._basic = basic
        self._algorithms = " ".join(algorithms)

    def fields(self, error: str = "", message: str = "", *, scheme: str = "Bearer") -> tuple[tuple[bytes, bytes], ...]:
        """The header fields of a 401. scheme: the one that was tried, which comes first; `error` belongs to it."""
        said: list[tuple[str, str]] = []
        names = [
            name for name, is_taken in (("DPoP", self._dpop or scheme == "DPoP"), ("Bearer", self._bearer)) if is_taken
        ]
        for name in names:
            fields = []
            if error and name == scheme:
                fields += [f'error="{error}"', f'error_description="{_quotable(message)}"']
            if self._scope:
                fields.append(f'scope="{self._scope}"')
            if self._metadata:
                fields.append(f'resource_metadata="{self._metadata}"')
            if name == "DPoP":
                fields.append(f'algs="{self._algorithms}"')
            said.append((name, f"{name} {', '.join(fields)}" if fields else name))
        if self._basic:
            said.append(("Basic", _BASIC))
        if scheme == "Basic":
            said.sort(key=lambda challenge: challenge[0] != scheme)
        return tuple((b"www-authenticate", text.encode("latin-1")) for _, text in said)

    def refused(
        self, reason: Reason, message: str, error: str = "", *, scheme: str = "Bearer", detail: str = "",
        extra: tuple[tuple[bytes, bytes], ...] = (),
    ) -> Failure:  # fmt: skip
        """401, with what is wrong in the challenge; `malformed` makes the 400 of RFC 6750 section 3.1. scheme: the one
        that was tried, "" for one that is not taken. error: "" where no credential was understood."""
        if scheme == "Basic":
            code = "invalid_credentials"
        elif not error:
            code = "credential_required"
        else:
            code = "invalid_api_key" if reason is Reason.API_KEY_AUTH else "invalid_token"
        headers = (*self.fields(error, message, scheme=scheme), *extra)
        return Failure(401, reason, message, code=code, detail=detail, headers=headers)


def malformed(message: str) -> Failure:
    """400 `invalid_request`: the credential was shown in a way that is none."""
    challenge = f'Bearer error="invalid_request", error_description="{_quotable(message)}"'
    headers = ((b"www-authenticate", challenge.encode("latin-1")),)
    return Failure(400, Reason.INVALID_REQUEST, message, code="invalid_request", headers=headers)


def insufficient(scopes: Iterable[str], metadata: str, *, anonymous: bool) -> Failure:
    """403 `insufficient_scope` (MCP authorization, Scope Challenge Handling): scopes is all that this call needs. A
    caller who has not said who he is gets a 401, so that he gets a token first."""
    words = " ".join(sorted(frozenset(scopes)))
    fields = [] if anonymous else ['error="insufficient_scope"']
    fields.append(f'scope="{words}"')
    if metadata:
        fields.append(f'resource_metadata="{metadata}"')
    message = f"this needs a token with the scopes: {words}"
    if not anonymous:
        fields.append(f'error_description="{message}"')
    return Failure(
        401 if anonymous else 403,
        Reason.JWT_AUTH if anonymous else Reason.AUTHORIZATION,
        message,
        code="credential_required" if anonymous else "insufficient_scope",
        headers=((b"www-authenticate", f"Bearer {', '.join(fields)}".encode("latin-1")),),
    )


def _quotable(text: str) -> str:
    return text.replace("\\", "").replace('"', "'").replace("`", "")


def metadata_document(
    resource: str,
    servers: Iterable[str],
    *,
    scopes: Iterable[str] = (),
    name: str = "",
    documentation: str = "",
    algorithms: tuple[str, ...] = (),
    bound: bool = False,
) -> Handler[Request, Response]:
    """The Handler of a protected resource's metadata (RFC 9728 section 2). It is public, also for web pages.

    servers: authorization servers. algorithms: of DPoP proofs. bound: tokens must be, by DPoP.
    """
    document: dict[str, Any] = {
        "resource": resource,
        "authorization_servers": list(servers),
        "bearer_methods_supported": ["header"],
    }
    if words := sorted(frozenset(scopes)):
        document["scopes_supported"] = words
    if name:
        document["resource_name"] = name
    if documentation:
        document["resource_documentation"] = documentation
    if algorithms:
        document["dpop_signing_alg_values_supported"] = list(algorithms)
    if bound:
        document["dpop_bound_access_tokens_required"] = True
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
