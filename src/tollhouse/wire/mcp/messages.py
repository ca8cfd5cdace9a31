"""A server's messages in an agent's words: its id, its progress token, its names, its era.

Rule: nothing of one side crosses to the other unwrapped. One Translation is made for each request of an agent, and
knows all that differs.
"""

import msgspec

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import names, revisions, tasks

__all__ = ["LEVELS", "OWN_ID", "Translation", "is_tool_error", "log_allowed", "updated_uri"]

LEVELS = {
    level: rank
    for rank, level in enumerate(("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"))
}
"""Log levels (RFC 5424), least severe first."""

OWN_ID = b"0"
"""The id of a response that the gateway itself has put in a server's place: ids of its requests begin at 1."""


class _ToolResult(msgspec.Struct, gc=False):
    isError: bool = False


class _Log(msgspec.Struct, gc=False):
    level: str = ""


_tool_result = msgspec.json.Decoder(_ToolResult)
_log = msgspec.json.Decoder(_Log)
_float = msgspec.json.Decoder(float)
_SHORT = 512  # bytes of a result that are read sooner than searched


class Translation(msgspec.Struct, gc=False, eq=False):
    """For one request. id: the agent's, raw. server: whose answer it is. wrap: names and URIs carry their server.
    token: the agent's progress token, raw, empty for none. level: the least log level it wants, "" for none. asked:
    the URI of a `resources/read`, as the server knows it. server_info: raw, for results to the new era. revision: of an
    agent of the old one. public: what a server says is the same for everybody, is. related: our id of the task that
    it is what came of (2025-11-25), or ""."""

    id: bytes
    method: str
    server: str
    new: bool
    wrap: bool
    token: bytes = b""
    level: str = ""
    asked: str = ""
    server_info: bytes = b""
    revision: str = revisions.NEWEST_OLD
    public: bool = False
    related: str = ""
    _reached: float = -1.0

    def response(self, message: jsonrpc.Message, *, asks: bool = False) -> tuple[bytes, int]:
        """The final answer, and its error code, 0 for a result. asks: it may be `input_required`. Raises Malformed for
        a result that cannot be told."""
        if len(message.error):
            if not jsonrpc.is_error(message.error):
                raise jsonrpc.Malformed(jsonrpc.INTERNAL_ERROR, "the server's error cannot be read")
            if bytes(message.id) == OWN_ID:
                return jsonrpc.failed(self.id, message.error), jsonrpc.error_fields(message.error).code
            code, error = revisions.error_for(self.method, message.error, new=self.new, asked=self.asked)
            return jsonrpc.failed(self.id, error), code
        result = revisions.result_for(
            self.method,
            message.result,
            new=self.new,
            server_info=self.server_info,
            revision=self.revision,
            asks=asks or bytes(message.id) == OWN_ID,
            public=self.public,
        )
        if self.wrap:
            result = names.rewrite_uris(self.method, result, self.server)
        if self.related:
            result = tasks.related(result, self.related)
        return jsonrpc.result(self.id, result), 0

    def notification(self, message: jsonrpc.Message) -> bytes | None:
        """A notification that came within the request; None when this agent is not to have it."""
        method = message.method
        if self.related and b"related-task" in bytes(message.params):
            message.params = tasks.related(message.params, self.related)
        if method == "notifications/progress":
            if not self.token:
                return None
            fields = jsonrpc.decode_fields(message.params)
            reached = _number(fields.get("progress"))
            if reached is None or reached <= self._reached:
                return None  # it must increase (2025-11-25, Progress)
            self._reached = reached
            fields["progressToken"] = msgspec.Raw(self.token)
            return jsonrpc.notification(method, jsonrpc.encode_fields(fields))
        if method == "notifications/message":
            return jsonrpc.notification(method, message.params) if log_allowed(message.params, self.level) else None
        if method == "notifications/resources/updated":
            return None if self.new else updated_uri(message, self.server if self.wrap else "")[1]
        if self.new or method == "notifications/cancelled":
            return None
        return jsonrpc.notification(method, message.params)


def _number(raw: msgspec.Raw | None) -> float | None:
    if raw is None:
        return None
    try:
        return _float.decode(raw)
    except msgspec.DecodeError:
        return None


def log_allowed(params: msgspec.Raw | bytes, level: str) -> bool:
    """Whether a log message is at least of `level`."""
    if not level:
        return False
    try:
        return LEVELS.get(_log.decode(params).level, 0) >= LEVELS.get(level, 0)
    except msgspec.DecodeError:
        return False


def updated_uri(message: jsonrpc.Message, server: str) -> tuple[str, bytes]:
    """The URI of a `notifications/resources/updated` as agents know it, and the notification with it. server: "" where
    URIs do not carry it. Raises Malformed."""
    fields = jsonrpc.decode_fields(message.params)
    uri = jsonrpc.decode_string(fields.get("uri")) or ""
    if server:
        uri = names.exposed_uri(server, uri)
        fields["uri"] = msgspec.Raw(msgspec.json.encode(uri))
    return uri, jsonrpc.notification(message.method, jsonrpc.encode_fields(fields))


def is_tool_error(result: msgspec.Raw | bytes) -> bool:
    """Whether a tool's result says that the tool failed."""
    if len(result) > _SHORT and b"isError" not in bytes(result):
        return False
    try:
        return _tool_result.decode(result).isError
    except msgspec.DecodeError:
        return False
