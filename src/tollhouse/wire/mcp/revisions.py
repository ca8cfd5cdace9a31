"""The protocol's revisions, and what changes in a message between the two eras.

Old: a handshake opens a session (2025-06-18, 2025-11-25). New: every request stands alone and says in `_meta` what a
session would have known (2026-07-28). Rule: ask `is_new` here; no other file compares dates.
"""

from typing import Any

import msgspec

from tollhouse.wire import jsonrpc

__all__ = [
    "CAPABILITIES",
    "CLIENT_INFO",
    "HEADER_MISMATCH",
    "LOG_LEVEL",
    "MISSING_CAPABILITY",
    "NEWEST_NEW",
    "NEWEST_OLD",
    "OLD",
    "PROTOCOL_VERSION",
    "RESOURCE_NOT_FOUND",
    "SERVED",
    "SERVER_INFO",
    "SUBSCRIPTION_ID",
    "UNSUPPORTED_VERSION",
    "URL_ELICITATION_REQUIRED",
    "error_for",
    "is_new",
    "negotiate",
    "new_meta",
    "passing_meta",
    "result_for",
    "status_of",
]

OLD = ("2025-06-18", "2025-11-25")
NEWEST_OLD = "2025-11-25"
NEWEST_NEW = "2026-07-28"
SERVED = (NEWEST_NEW, "2025-11-25", "2025-06-18")
"""What agents may speak, newest first."""

ACCEPTED_FROM_SERVERS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")

HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022
RESOURCE_NOT_FOUND = -32002
URL_ELICITATION_REQUIRED = -32042

PROTOCOL_VERSION = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
CLIENT_INFO = "io.modelcontextprotocol/clientInfo"
LOG_LEVEL = "io.modelcontextprotocol/logLevel"
SERVER_INFO = "io.modelcontextprotocol/serverInfo"
SUBSCRIPTION_ID = "io.modelcontextprotocol/subscriptionId"

_RESERVED = "io.modelcontextprotocol/"
_CACHEABLE = frozenset(
    ("tools/list", "prompts/list", "resources/list", "resources/read", "resources/templates/list", "server/discover")
)
_STATUS = {
    jsonrpc.PARSE_ERROR: 400,
    jsonrpc.INVALID_REQUEST: 400,
    jsonrpc.INVALID_PARAMS: 400,
    jsonrpc.METHOD_NOT_FOUND: 404,
    HEADER_MISMATCH: 400,
    MISSING_CAPABILITY: 400,
    UNSUPPORTED_VERSION: 400,
}
_EDGE = range(-32099, -32019)


def is_new(revision: str) -> bool:
    """Whether the revision is of the stateless era. Unknown ones are not."""
    return revision == NEWEST_NEW


def negotiate(asked: str) -> str:
    """What answers an `initialize` that asks for `asked` (2025-11-25, Lifecycle): that one, or our newest old one."""
    return asked if asked in OLD else NEWEST_OLD


def status_of(code: int, *, new: bool) -> int:
    """HTTP status of a JSON-RPC error. Old agents get 200: to them a 404 says that the session has ended."""
    return _STATUS.get(code, 200) if new else 200


def new_meta(capabilities: bytes, client: bytes, meta: dict[str, Any] | None, level: str) -> dict[str, Any]:
    """`_meta` of a request to a stateless server: what passes, and the protocol's own keys (raw JSON values)."""
    fields = dict(meta) if meta else {}
    fields[PROTOCOL_VERSION] = NEWEST_NEW
    fields[CAPABILITIES] = msgspec.Raw(capabilities)
    fields[CLIENT_INFO] = msgspec.Raw(client)
    if level:
        fields[LOG_LEVEL] = level
    return fields


def passing_meta(meta: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw] | None:
    """What of an agent's `_meta` may go on: vendor keys and trace context. Reserved keys are each side's own."""
    kept = {key: value for key, value in meta.items() if key != "progressToken" and not key.startswith(_RESERVED)}
    return kept or None


def result_for(method: str, raw: msgspec.Raw | bytes, *, new: bool, server_info: bytes = b"") -> msgspec.Raw | bytes:
    """A server's result in the agent's era. Raises Malformed when it is not an object or its type is unknown to us.

    To new: `resultType`, and on what may be cached `ttlMs` and `cacheScope`; to old: without them.
    """
    fields = jsonrpc.decode_fields(raw)
    kind = jsonrpc.decode_string(fields.get("resultType", jsonrpc.NONE)) or "complete"
    if kind != "complete":
        raise jsonrpc.Malformed(
            jsonrpc.INTERNAL_ERROR, f"the server answered with a {kind!r} result, which this gateway does not carry"
        )
    if new:
        out: dict[str, Any] = dict(fields)
        out["resultType"] = "complete"
        if method in _CACHEABLE:
            out.setdefault("ttlMs", 0)
            out["cacheScope"] = "private"
        if server_info:
            meta: dict[str, Any] = dict(jsonrpc.decode_fields(fields.get("_meta", b"")))
            meta[SERVER_INFO] = msgspec.Raw(server_info)
            out["_meta"] = meta
        return jsonrpc.encode_fields(out)
    gone = [key for key in ("resultType", "ttlMs", "cacheScope") if key in fields]
    if not gone:
        return raw
    for key in gone:
        del fields[key]
    return jsonrpc.encode_fields(fields)


def error_for(method: str, raw: msgspec.Raw | bytes, *, new: bool, asked: str = "") -> tuple[int, bytes]:
    """A server's error in the agent's era, and its code.

    asked: the URI of a `resources/read`. Codes that speak of our own edge with a server (-32020 to -32099) are ours to
    use: from a server they become an internal error.
    """
    problem = jsonrpc.error_fields(raw)
    code = problem.code
    if new:
        if code == RESOURCE_NOT_FOUND:
            code = jsonrpc.INVALID_PARAMS
    elif code == jsonrpc.INVALID_PARAMS and method == "resources/read" and _names(problem.data, asked):
        code = RESOURCE_NOT_FOUND
    if code in _EDGE and (new or code != URL_ELICITATION_REQUIRED):
        code = jsonrpc.INTERNAL_ERROR
    if code == problem.code:
        return code, bytes(raw)
    fields: dict[str, Any] = {"code": code, "message": problem.message}
    if len(problem.data):
        fields["data"] = problem.data
    return code, jsonrpc.encode_fields(fields)


def _names(data: msgspec.Raw, asked: str) -> bool:
    if not asked or not len(data) or bytes(data)[:1] != b"{":
        return False
    return jsonrpc.decode_string(jsonrpc.decode_fields(data).get("uri", jsonrpc.NONE)) == asked
