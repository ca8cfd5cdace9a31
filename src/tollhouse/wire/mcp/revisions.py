"""The protocol's revisions, and what changes in a message between the two eras.

Old: a handshake opens a session (2024-11-05 to 2025-11-25). New: every request stands alone and says in `_meta` what a
session would have known (2026-07-28). Rule: ask `is_new` here; no other file compares dates.
"""

from typing import Any

import msgspec

from tollhouse.wire import jsonrpc

__all__ = [
    "BATCHING",
    "CAPABILITIES",
    "CLIENT_INFO",
    "HEADER_MISMATCH",
    "LOG_LEVEL",
    "MISSING_CAPABILITY",
    "NEWEST_NEW",
    "NEWEST_OLD",
    "OLD",
    "OLDEST",
    "PROTOCOL_VERSION",
    "RESOURCE_NOT_FOUND",
    "SERVED",
    "SERVER_INFO",
    "SESSIONS",
    "SUBSCRIPTION_ID",
    "UNSUPPORTED_VERSION",
    "URL_ELICITATION_REQUIRED",
    "error_for",
    "has_modes",
    "has_tasks",
    "is_new",
    "negotiate",
    "new_meta",
    "passing_meta",
    "result_for",
    "status_of",
]

OLD = ("2025-03-26", "2025-06-18", "2025-11-25")
NEWEST_OLD = "2025-11-25"
NEWEST_NEW = "2026-07-28"
SERVED = (NEWEST_NEW, "2025-11-25", "2025-06-18", "2025-03-26")
"""What agents may speak, newest first."""

BATCHING = "2025-03-26"
"""The one revision whose clients may send JSON-RPC batches; also what a missing version header means."""

OLDEST = "2024-11-05"
"""Spoken over its own transport only (HTTP+SSE)."""

SESSIONS = (OLDEST, *OLD)

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


def has_modes(revision: str) -> bool:
    """Whether an elicitation says its mode, a form or a URL."""
    return revision >= NEWEST_OLD  # a revision is a date


def has_tasks(revision: str) -> bool:
    """Whether the revision has tasks in its core."""
    return revision == NEWEST_OLD


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


def result_for(
    method: str,
    raw: msgspec.Raw | bytes,
    *,
    new: bool,
    server_info: bytes = b"",
    revision: str = NEWEST_OLD,
    asks: bool = False,
    public: bool = False,
) -> msgspec.Raw | bytes:
    """A server's result in the agent's era. Raises Malformed when it is not an object or its type is unknown to us.

    To new: `resultType`, and on what may be cached `ttlMs` and `cacheScope`; to old: without them, and as `revision`
    has it. asks: a result of another type than `complete` may pass. public: what the server calls public may be called
    so.
    """
    fields = jsonrpc.decode_result(raw)
    kind = jsonrpc.decode_string(fields.get("resultType", jsonrpc.NONE)) or "complete"
    if kind != "complete" and not (asks and new and kind in ("input_required", "task")):
        raise jsonrpc.Malformed(
            jsonrpc.INTERNAL_ERROR, f"the server answered with a {kind!r} result, which this gateway does not carry"
        )
    if new:
        out: dict[str, Any] = dict(fields)
        out["resultType"] = kind
        if method in _CACHEABLE and kind == "complete":
            if not bytes(fields.get("ttlMs", b"")).isdigit():
                out["ttlMs"] = 0
            if not public or jsonrpc.decode_string(fields.get("cacheScope")) != "public":
                out["cacheScope"] = "private"
        meta: dict[str, Any] | None = None
        if "_meta" in fields:
            meta = dict(passing_meta(jsonrpc.decode_fields(out.pop("_meta"))) or {})
        if server_info:
            meta = {**(meta or {}), SERVER_INFO: msgspec.Raw(server_info)}
        if meta:
            out["_meta"] = meta
        return jsonrpc.encode_fields(out)
    changed = False
    if "_meta" in fields and b"io.modelcontextprotocol/" in bytes(fields["_meta"]):
        kept = passing_meta(jsonrpc.decode_fields(fields.pop("_meta")))
        if kept:
            fields["_meta"] = msgspec.Raw(jsonrpc.encode_fields(dict(kept)))
        changed = True
    for key in ("resultType", "ttlMs", "cacheScope"):
        if key in fields:
            del fields[key]
            changed = True
    structured = fields.get("structuredContent")
    if structured is not None and bytes(structured)[:1] != b"{":
        del fields["structuredContent"]
        _keep_as_text(fields, structured)
        changed = True
    if revision < "2025-06-18" and (b"resource_link" in bytes(raw) or b"audio" in bytes(raw)):
        changed = _older_content(method, fields, revision) or changed
    return jsonrpc.encode_fields(fields) if changed else raw


def _keep_as_text(fields: dict[str, msgspec.Raw], value: msgspec.Raw) -> None:
    """Structured content that is no object, which old agents cannot have, as text, unless it is there already."""
    try:
        content = msgspec.json.decode(fields.get("content", b"[]"), type=list[msgspec.Raw])
        told = [jsonrpc.decode_string(jsonrpc.decode_fields(block).get("text")) for block in content]
        plain = msgspec.json.decode(value)
    except (msgspec.DecodeError, jsonrpc.Malformed, RecursionError):
        return
    text = bytes(value).decode()
    if text in told or (isinstance(plain, str) and plain in told):
        return
    content.append(msgspec.Raw(msgspec.json.encode({"type": "text", "text": text})))
    fields["content"] = msgspec.Raw(msgspec.json.encode(content))


def _older_content(method: str, fields: dict[str, msgspec.Raw], revision: str) -> bool:
    """Kinds of content that the revision does not have as text that says what they are; whether there were any."""
    where = {"tools/call": "content", "prompts/get": "messages"}.get(method)
    if where is None or where not in fields:
        return False
    try:
        found = msgspec.json.decode(fields[where])
    except (msgspec.DecodeError, RecursionError):
        return False
    changed = False
    for number, entry in enumerate(found if isinstance(found, list) else ()):
        block = entry.get("content") if isinstance(entry, dict) and where == "messages" else entry
        if not isinstance(block, dict):
            continue
        kind = block.get("type")
        text = None
        if kind == "resource_link":
            text = f"{block.get('title') or block.get('name') or 'resource'}: {block.get('uri')}"
        elif kind == "audio" and revision < "2025-03-26":
            text = f"[audio, {block.get('mimeType')}]"
        if text is None:
            continue
        changed = True
        told = {"type": "text", "text": text}
        if where == "messages":
            entry["content"] = told
        else:
            found[number] = told
    if changed:
        fields[where] = msgspec.Raw(msgspec.json.encode(found))
    return changed


def error_for(method: str, raw: msgspec.Raw | bytes, *, new: bool, asked: str = "") -> tuple[int, bytes]:
    """A server's error in the agent's era, and its code.

    asked: the URI of a `resources/read`. Codes that speak of our own edge with a server (-32020 to -32099) are ours to
    use: from a server they become an internal error. That a capability is missing is as true of the agent, whose
    capabilities are those we declare.
    """
    problem = jsonrpc.error_fields(raw)
    code = problem.code
    if new:
        if code == RESOURCE_NOT_FOUND:
            code = jsonrpc.INVALID_PARAMS
        elif code == MISSING_CAPABILITY and b"requiredCapabilities" in bytes(problem.data):
            return code, bytes(raw)
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
