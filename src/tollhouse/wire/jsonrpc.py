"""JSON-RPC 2.0 messages: bytes to Message and back. Values that are only carried stay raw.

Rule: an envelope that leaves is always rendered anew around raw params, result or error; text inside JSON is never
replaced. So duplicate envelope keys, odd spacing and unknown members end here, whatever the other side reads.
"""

from typing import Any

import msgspec

from tollhouse.wire.members import Names

__all__ = [
    "CANCELLED",
    "INTERNAL_ERROR",
    "INVALID_PARAMS",
    "INVALID_REQUEST",
    "METHOD_NOT_FOUND",
    "NONE",
    "PARSE_ERROR",
    "ErrorObject",
    "Malformed",
    "Message",
    "as_id",
    "decode",
    "decode_fields",
    "decode_params",
    "decode_string",
    "encode_fields",
    "error",
    "error_fields",
    "failed",
    "is_error",
    "notification",
    "one_line",
    "request",
    "result",
]

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
CANCELLED = -32800

NONE = msgspec.Raw(b"")
"""An absent member."""

_ID_LIMIT = 256
_ACTED_ON = Names(
    "name", "uri", "arguments", "_meta", "cursor", "ref", "level", "requestId", "protocolVersion", "capabilities",
    "notifications", "inputResponses", "requestState",
)  # fmt: skip
"""Members of params, and of the `ref` in them, by which MCP requests are routed, judged and changed."""


class Malformed(Exception):
    """Not a JSON-RPC message. code: PARSE_ERROR, INVALID_REQUEST or INVALID_PARAMS. id: raw, when it could be read."""

    def __init__(self, code: int, message: str, id: bytes = b"null") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = id


class Message(msgspec.Struct, gc=False):
    """A request (method and id), a notification (method alone) or a response (result or error, and id).

    Absent members are empty; `id` is the raw JSON of a string or an integer.
    """

    jsonrpc: str = ""
    id: msgspec.Raw = NONE
    method: str = ""
    params: msgspec.Raw = NONE
    result: msgspec.Raw = NONE
    error: msgspec.Raw = NONE

    @property
    def is_request(self) -> bool:
        return bool(self.method) and len(self.id) > 0

    @property
    def is_notification(self) -> bool:
        return bool(self.method) and not len(self.id)

    @property
    def is_response(self) -> bool:
        return not self.method


class ErrorObject(msgspec.Struct, gc=False):
    """The `error` member (JSON-RPC 2.0, 5.1)."""

    code: int = INTERNAL_ERROR
    message: str = ""
    data: msgspec.Raw = NONE


class _WholeError(msgspec.Struct, gc=False):
    code: int
    message: str


_message = msgspec.json.Decoder(Message)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)
_error = msgspec.json.Decoder(ErrorObject)
_whole_error = msgspec.json.Decoder(_WholeError)
_encoder = msgspec.json.Encoder()


def decode(data: bytes) -> Message:
    """One message. Raises Malformed for anything else: bad JSON or UTF-8, a batch, a wrong type, nesting too deep."""
    try:
        if not data.isascii():
            str(data, "utf-8")  # raw values are not looked at again, and bad UTF-8 may kill who reads them
        message = _message.decode(data)
    except msgspec.ValidationError as problem:
        if data.lstrip()[:1] == b"[":
            raise Malformed(INVALID_REQUEST, "a batch is not accepted: send one JSON-RPC message a request") from None
        raise Malformed(INVALID_REQUEST, f"not a JSON-RPC message: {problem}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Malformed(PARSE_ERROR, "the body is not valid JSON in UTF-8") from None
    except RecursionError:
        raise Malformed(PARSE_ERROR, "the JSON is nested too deeply") from None
    if message.jsonrpc != "2.0":
        raise Malformed(INVALID_REQUEST, 'not a JSON-RPC message: "jsonrpc" must be "2.0"')
    id = bytes(message.id)
    if id and not _is_id(id):
        raise Malformed(INVALID_REQUEST, f"the id must be a string or an integer of at most {_ID_LIMIT} bytes")
    params = message.params
    if len(params) and bytes(params)[0] not in b"{[":
        raise Malformed(INVALID_REQUEST, '"params" must be an object', id or b"null")
    if not message.method and ((not len(message.result)) is (not len(message.error)) or not id):
        raise Malformed(INVALID_REQUEST, 'a message needs a "method", or an "id" with one of "result" and "error"')
    return message


def _is_id(raw: bytes) -> bool:
    if len(raw) > _ID_LIMIT:
        return False
    return raw.isdigit() or raw[:1] == b'"' or raw.lstrip(b"-").isdigit()


def as_id(raw: bytes) -> str | int | None:
    """The value of a raw id, None when it is not one."""
    if not raw or not _is_id(raw):
        return None
    try:
        return _string.decode(raw) if raw[:1] == b'"' else int(raw)
    except (msgspec.DecodeError, ValueError):
        return None


def decode_fields(raw: msgspec.Raw | bytes) -> dict[str, msgspec.Raw]:
    """The members of an object with values unparsed; {} for an absent one. Raises Malformed (INVALID_PARAMS)."""
    if not len(raw):
        return {}
    try:
        return _fields.decode(raw)
    except msgspec.DecodeError:
        raise Malformed(INVALID_PARAMS, "the params must be an object") from None


def decode_result(raw: msgspec.Raw | bytes) -> dict[str, msgspec.Raw]:
    """`decode_fields` of what a server has answered. Raises Malformed (INTERNAL_ERROR): who asked has done no wrong."""
    try:
        return decode_fields(raw)
    except Malformed:
        raise Malformed(INTERNAL_ERROR, "the server's result is no object") from None


def decode_params(raw: msgspec.Raw | bytes) -> dict[str, msgspec.Raw]:
    """`decode_fields` of what a caller asks with. Raises Malformed (INVALID_PARAMS) also for a member whose name
    differs only by case from one that is acted on: the server might read that one."""
    fields = decode_fields(raw)
    name = _ACTED_ON.misspelt(fields)
    if name is not None:
        raise Malformed(INVALID_PARAMS, f"{name!r} differs only by case from a member of the params: write it as that")
    return fields


def decode_string(raw: msgspec.Raw | bytes | None) -> str | None:
    """A raw JSON string's value; None when it is absent or something else."""
    if raw is None or not len(raw):
        return None
    try:
        return _string.decode(raw)
    except msgspec.DecodeError:
        return None


def encode_fields(fields: dict[str, Any]) -> bytes:
    """An object from members that are raw or plain values."""
    return _encoder.encode(fields)


def request(id: int | bytes, method: str, params: bytes | msgspec.Raw = b"") -> bytes:
    """id: an integer, or the raw JSON of one."""
    head = b'{"jsonrpc":"2.0","id":%b,"method":%b' % (_id(id), _encoder.encode(method))
    return b'%b,"params":%b}' % (head, params) if len(params) else head + b"}"


def notification(method: str, params: bytes | msgspec.Raw = b"") -> bytes:
    head = b'{"jsonrpc":"2.0","method":' + _encoder.encode(method)
    return b'%b,"params":%b}' % (head, params) if len(params) else head + b"}"


def result(id: int | bytes, value: bytes | msgspec.Raw) -> bytes:
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (_id(id), value)


def failed(id: int | bytes, value: bytes | msgspec.Raw) -> bytes:
    """An error response around a raw error object. To b"null", a request whose id is not known, it has no id: that is
    how MCP writes it, and none of its schemas takes null."""
    if id == b"null":
        return b'{"jsonrpc":"2.0","error":%b}' % value
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (_id(id), value)


def error(id: int | bytes, code: int, message: str, data: Any = None) -> bytes:
    fields: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        fields["data"] = data
    return failed(id, _encoder.encode(fields))


def error_fields(raw: msgspec.Raw | bytes) -> ErrorObject:
    """What an `error` member says; an empty INTERNAL_ERROR when it says nothing that can be read."""
    try:
        return _error.decode(raw)
    except msgspec.DecodeError:
        return ErrorObject()


def is_error(raw: msgspec.Raw | bytes) -> bool:
    """Whether an `error` member has the code and the message that it must have (JSON-RPC 2.0, 5.1)."""
    try:
        _whole_error.decode(raw)
    except msgspec.DecodeError:
        return False
    return True


def one_line(message: bytes) -> bytes:
    """The same message without line breaks, for framings by line (stdio, SSE `data:`). Raises Malformed.

    Inside strings JSON has no raw control characters, so a line break can only be white space.
    """
    if b"\n" not in message and b"\r" not in message:
        return message
    try:
        return msgspec.json.format(message, indent=-1)
    except msgspec.DecodeError:
        raise Malformed(PARSE_ERROR, "the message is not valid JSON") from None


def _id(id: int | bytes) -> bytes:
    return b"%d" % id if isinstance(id, int) else id
