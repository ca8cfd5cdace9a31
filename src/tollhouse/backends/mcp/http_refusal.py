"""What an answer over HTTP means that is no 200.

Rule: what a server says in a JSON-RPC error of a 4xx reaches the agent; its word on our credentials and its rate limits
does not, and becomes a Failure of ours.
"""

from collections.abc import Iterable

import msgspec

from tollhouse.backends.retry_after import retry_after
from tollhouse.core.errors import Failure, Reason
from tollhouse.net.client import Exchange
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions
from tollhouse.wire.oauth import OAuthError, scope_of
from tollhouse.wire.oauth_client import bearer_challenge

__all__ = ["NOT_OURS", "bad_credentials", "error_in", "is_modern", "may_have_forgotten", "refusal"]

NOT_OURS = frozenset((400, 404, 405, 406, 415))
"""Statuses with which a server of another era, or of another transport, refuses a request."""

_MODERN = frozenset((revisions.HEADER_MISMATCH, revisions.MISSING_CAPABILITY, revisions.UNSUPPORTED_VERSION))
_FORGOTTEN = frozenset((-32000, -32001, jsonrpc.INVALID_REQUEST))  # what some servers say with a 400 instead of a 404


def error_in(data: bytes) -> msgspec.Raw | None:
    """The JSON-RPC error that `data` is, None for anything else."""
    try:
        return msgspec.json.decode(data, type=jsonrpc.Message).error
    except (msgspec.DecodeError, RecursionError):
        return None


def may_have_forgotten(status: int, error: msgspec.Raw | None) -> bool:
    """Whether the server may mean that it does not know our session, and says so in other words than 404."""
    return status == 400 and error is not None and jsonrpc.error_fields(error).code in _FORGOTTEN


def is_modern(data: bytes) -> bool:
    """Whether the error `data` is one that only servers of the new era have."""
    return jsonrpc.error_fields(jsonrpc.decode(data).error).code in _MODERN


def bad_credentials(name: str, status: int, challenges: Iterable[bytes] = ()) -> Failure:
    """What 401 or 403 of the server `name` means. challenges: its fields `www-authenticate`."""
    return Failure(
        502,
        Reason.UPSTREAM_FAILURE,
        f"{name}: the server refused the gateway's credentials ({status})",
        code="upstream_credentials",
        sent=status != 401,  # who does not know who asks has done nothing
        scopes=_lacking(challenges) if status == 403 else (),
    )


def _lacking(challenges: Iterable[bytes]) -> tuple[str, ...]:
    """The scopes that this request needs (MCP authorization, Runtime Insufficient Scope Errors)."""
    said = bearer_challenge(challenges)
    try:
        return scope_of(said.get("scope", "")) if said.get("error") == "insufficient_scope" else ()
    except OAuthError:
        return ()


def refusal(name: str, exchange: Exchange, data: bytes, error: msgspec.Raw | None, id: int) -> bytes:
    """The answer to our request `id` in a refusal of the server `name`. Raises Failure where it is none for agents."""
    status = exchange.status
    if status in (401, 403):
        raise bad_credentials(name, status, exchange.headers.get_all(b"www-authenticate"))
    if status == 429:
        raise Failure(
            429,
            Reason.UPSTREAM,
            f"{name}: the server is limiting requests; try again later",
            code="rate_limit_exceeded",
            detail=data[:200].decode(errors="replace"),
            retry=True,
            retry_after=retry_after(exchange.headers),
        )
    if error is not None and len(error) and 400 <= status < 500:
        return jsonrpc.failed(id, error)
    raise Failure(
        503 if status == 503 else 502,
        Reason.UPSTREAM_FAILURE,
        f"{name}: the server answered with status {status}",
        detail=data[:200].decode(errors="replace"),
        retry=status in (502, 503, 504),
        retry_after=retry_after(exchange.headers) if status == 503 else None,
        sent=True,
    )
