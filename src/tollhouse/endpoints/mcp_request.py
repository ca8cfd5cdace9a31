"""One request of an agent while it is answered, and every way of refusing one.

Rule: a refusal before any message was read speaks HTTP; one of a message is a JSON-RPC error. To old agents that is
status 200 wherever another one would end their session, to new ones the status of its code (`wire.mcp.revisions`).
"""

from typing import Any

import msgspec

from tollhouse.core.call import Context, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request, Response
from tollhouse.endpoints.mcp_session import Session
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import capabilities
from tollhouse.wire.mcp.messages import Translation, is_tool_error

__all__ = ["JSON", "Asking", "Refused", "failed", "outcome_of", "plain", "refusal", "render"]

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")


class Refused(Exception):
    """A JSON-RPC error of our own, on its way to the answer. status: None for the era's usual one."""

    def __init__(self, code: int, message: str, data: Any = None, *, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.status = status


class Asking:
    """One request of an agent while it is answered."""

    __slots__ = (
        "call",
        "fields",
        "id",
        "level",
        "meta",
        "method",
        "name",
        "new",
        "request",
        "session",
        "token",
        "translation",
    )

    def __init__(self, request: Request, id: bytes, method: str, session: Session | None, *, new: bool) -> None:
        self.request = request
        self.id = id
        self.method = method
        self.session = session
        self.new = new
        self.fields: dict[str, msgspec.Raw] = {}
        self.meta: dict[str, msgspec.Raw] | None = None
        self.token = b""
        self.level = ""
        self.name = ""
        self.call: ToolCall | None = None
        self.translation: Translation | None = None

    def tell(self, data: bytes) -> bytes | None:
        """A server's message as the agent gets it, None when it does not. Raises Malformed."""
        translation, call = self.translation, self.call
        assert translation is not None
        assert call is not None
        message = jsonrpc.decode(data)
        if message.is_response:
            body, code = translation.response(message)
            self._outcome(message, code)
            return body
        if message.is_notification:
            return translation.notification(message)
        answer = call.answer
        if answer is None:
            return None
        session = self.session
        if session is None or not capabilities.allows(session.profile, message.method, message.params):
            text = f"the client does not support {message.method!r} here"
            answer(jsonrpc.error(bytes(message.id), jsonrpc.METHOD_NOT_FOUND, text))
            return None
        return session.ask(message, answer)

    def first(self, data: bytes) -> tuple[bytes, int]:
        """The whole answer, and its error code or 0. Raises Malformed."""
        translation = self.translation
        assert translation is not None
        message = jsonrpc.decode(data)
        if not message.is_response:
            raise jsonrpc.Malformed(jsonrpc.INTERNAL_ERROR, "the server's answer is no response")
        body, code = translation.response(message)
        self._outcome(message, code)
        return body, code

    def _outcome(self, message: jsonrpc.Message, code: int) -> None:
        if code:
            outcome = "protocol_error"
        elif self.method == "tools/call" and is_tool_error(message.result):
            outcome = "tool_error"
        else:
            outcome = "ok"
        self.request.context.mcp_outcome = outcome

    def failed(self, failure: Failure) -> bytes:
        """What a Failure says as the answer to this request."""
        self.request.context.mcp_outcome = outcome_of(failure)
        return jsonrpc.error(self.id, jsonrpc.INTERNAL_ERROR, failure.message, _reason(failure))


def outcome_of(failure: Failure) -> str:
    if failure.reason is Reason.CLIENT_GONE:
        return "cancelled"
    if failure.status in (401, 403, 429):
        return "denied"
    return "timeout" if failure.status == 504 else "protocol_error"


def render(failure: Failure, request: Request) -> Response:
    """A Failure outside of any call (authentication, limits on requests) as a JSON-RPC error with its HTTP status."""
    body = jsonrpc.error(b"null", jsonrpc.INTERNAL_ERROR, failure.message, _reason(failure))
    return Response(failure.status, [JSON, *failure.headers], body, reason=failure.reason)


def _reason(failure: Failure) -> dict[str, Any]:
    fields: dict[str, Any] = {"reason": failure.code or failure.reason.value}
    if failure.retry_after is not None:
        fields["retryAfter"] = failure.retry_after
    return fields


def failed(id: bytes, failure: Failure, context: Context) -> Response:
    """A Failure of the call floor: 200, for anything else would end an old agent's session; but a challenge must be
    seen by who can answer it."""
    context.mcp_outcome = outcome_of(failure)
    challenge = any(name == b"www-authenticate" for name, _ in failure.headers)
    body = jsonrpc.error(id, jsonrpc.INTERNAL_ERROR, failure.message, _reason(failure))
    headers = [JSON, *failure.headers, (b"x-tollhouse-reason", failure.reason.encode())]
    return Response(failure.status if challenge else 200, headers, body, reason=failure.reason)


def refusal(id: bytes, code: int, message: str, data: Any, status: int) -> Response:
    """A JSON-RPC error of our own."""
    headers = [JSON, (b"x-tollhouse-reason", Reason.INVALID_REQUEST.encode())]
    return Response(status, headers, jsonrpc.error(id, code, message, data), reason=Reason.INVALID_REQUEST)


def plain(status: int, text: str, *headers: tuple[bytes, bytes]) -> Response:
    """What is wrong with the HTTP of it, before any message is read."""
    reason = Reason.INVALID_REQUEST
    body = jsonrpc.error(b"null", jsonrpc.INVALID_REQUEST, text)
    return Response(status, [JSON, *headers, (b"x-tollhouse-reason", reason.encode())], body, reason=reason)
