"""Answers: how the auth provider says things. Every error of the protocol becomes a Response here and nowhere else.

Rule: nothing here is kept by any cache, and nothing that was sent comes back.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.issuer.served import Served
from tollhouse.wire.oauth import MAX_FORM, Form, OAuthError

__all__ = ["NO_STORE", "ErrorPage", "answering", "form_of", "json", "json_body", "rendering"]

ErrorPage = Callable[[Request, int, str, str], Response]
"""Makes the page for a person of (request, status, OAuth's code, what is wrong)."""

NO_STORE = ((b"cache-control", b"no-store"), (b"pragma", b"no-cache"))
_JSON = ((b"content-type", b"application/json"), *NO_STORE, (b"x-content-type-options", b"nosniff"))
_OPEN = ((b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", b"www-authenticate, dpop-nonce"))
_MAX_JSON = 16 << 10
_REASONS = {401: Reason.JWT_AUTH, 403: Reason.AUTHORIZATION, 429: Reason.RATE_LIMIT, 503: Reason.OVERLOADED}


def json(value: Any, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Response:
    """`value` as JSON that nobody keeps."""
    return Response(status, [*_JSON, *headers], msgspec.json.encode(value))


async def form_of(request: Request) -> Form:
    """The parameters in a request's body. Raises OAuthError `invalid_request`; a query is none (RFC 6749 3.2)."""
    if request.query:
        raise OAuthError("invalid_request", "parameters are sent in the body, not in the query")
    _must_be(request, b"application/x-www-form-urlencoded")
    whole = request.whole(MAX_FORM)
    return Form.parse(whole if whole is not None else await request.read(MAX_FORM))


async def json_body(request: Request) -> bytes:
    """The body of a request that sends JSON. Raises OAuthError `invalid_request`."""
    _must_be(request, b"application/json")
    return await request.read(_MAX_JSON)


def _must_be(request: Request, kind: bytes) -> None:
    kinds = request.headers.get_all(b"content-type")
    if len(kinds) != 1 or kinds[0].partition(b";")[0].strip().lower() != kind:
        raise OAuthError("invalid_request", f"the body must be {kind.decode()}")


def answering(served: Served, page: ErrorPage) -> Handler[Request, Response]:
    """The handler with its errors as answers, and with what browsers ask before they let a script ask."""
    handler, is_open = served.handler, served.open
    allow = b", ".join(sorted({*served.methods, b"OPTIONS"}))

    async def answered(request: Request) -> Response:
        if request.method == b"OPTIONS":
            return _preflight(allow, is_open)
        try:
            response = await handler(request)
        except OAuthError as error:
            response = _error(request, error, page if served.page else None)
        if is_open:
            response.headers.extend(_OPEN)
        return response

    return answered


def rendering(served: Served, page: ErrorPage) -> Callable[[Failure, Request], Response]:
    """How a Failure on the way looks at this address."""

    def render(failure: Failure, request: Request) -> Response:
        error = OAuthError(_code(failure.status), failure.message, failure.status, failure.headers)
        response = _error(request, error, page if served.page else None)
        response.reason = failure.reason
        if served.open:
            response.headers.extend(_OPEN)
        return response

    return render


def _error(request: Request, error: OAuthError, page: ErrorPage | None) -> Response:
    if error.detail:
        request.context.error = error.detail
    reason = _REASONS.get(error.status, Reason.INVALID_REQUEST)
    if page is not None:
        response = page(request, error.status, error.error, error.description)
        response.headers.extend(error.headers)
    else:
        response = json({"error": error.error, "error_description": error.description}, error.status, error.headers)
    response.reason = reason
    return response


def _preflight(allow: bytes, is_open: bool) -> Response:
    headers = [(b"allow", allow)]
    if is_open:
        headers += [
            (b"access-control-allow-origin", b"*"),
            (b"access-control-allow-methods", allow),
            (b"access-control-allow-headers", b"authorization, content-type, dpop, mcp-protocol-version"),
            (b"access-control-max-age", b"600"),
        ]
    return Response(204, headers)


def _code(status: int) -> str:
    if status in (502, 503, 504):
        return "temporarily_unavailable"
    return "invalid_request" if status < 500 else "server_error"
