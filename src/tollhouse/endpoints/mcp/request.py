"""One request of an agent while it is answered, and every way of refusing one.

Rule: a refusal before any message was read speaks HTTP; one of a message is a JSON-RPC error. To old agents that is
status 200 wherever another one would end their session, to new ones the status of its code (`wire.mcp.revisions`).
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import msgspec

from tollhouse.core.call import Context, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request, Response
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.session import Session
from tollhouse.endpoints.mcp.stream import HEADERS
from tollhouse.endpoints.mcp.told import unsupported
from tollhouse.wire import jsonrpc, sse
from tollhouse.wire.mcp import capabilities, mrtr, revisions, tasks
from tollhouse.wire.mcp.catalogue import LONGEST
from tollhouse.wire.mcp.messages import OWN_ID, Translation, is_tool_error

__all__ = [
    "JSON",
    "LONGEST_METHOD",
    "Accepted",
    "Asking",
    "Refused",
    "Wraps",
    "as_stream",
    "failed",
    "must_allow",
    "named",
    "outcome_of",
    "plain",
    "refusal",
    "render",
]

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")

# Characters. Methods and names are kept with verdicts, buckets, records and log lines: what is kept must be short.
LONGEST_METHOD = 128
_LONGEST = {**LONGEST, "taskId": 8192}
_READ = {name.casefold(): name for name in ("name", "uri", "arguments", "ref", "type", "taskId")}


class Refused(Exception):
    """A JSON-RPC error of our own, on its way to the answer. status: None for the era's usual one."""

    def __init__(self, code: int, message: str, data: Any = None, *, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data
        self.status = status


class Wraps(Protocol):
    """What makes a server's question one of ours (`bridge.Bridge`)."""

    def wrapped(self, call: ToolCall, endpoint: str, result: msgspec.Raw) -> msgspec.Raw: ...

    def urls(self, call: ToolCall, endpoint: str, error: msgspec.Raw) -> bytes | None: ...


class Asking:
    """One request of an agent while it is answered. profile: what the agent can be asked. bridge: for questions of a
    server to a stateless agent, else None; inner: that server is stateless too. retry: what it brings back. task:
    the sealed id of the one it is about. made: makes a server's result that may be about a task the agent's. resume:
    what answers it in the place of the server. over: called once its answer has ended, with whether the server answered
    it with a result. code: of the error that the answer is, 0 for none. connects: as `core.call.ToolCall` has it."""

    __slots__ = (
        "bridge",
        "call",
        "code",
        "connects",
        "endpoint",
        "extensions",
        "fields",
        "id",
        "inner",
        "level",
        "made",
        "meta",
        "method",
        "new",
        "over",
        "profile",
        "request",
        "resume",
        "retry",
        "session",
        "task",
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
        self.profile = session.profile if session is not None else 0
        self.bridge: Wraps | None = None
        self.inner = False
        self.task = ""
        self.endpoint = ""
        self.extensions = b""
        self.made: Callable[[Asking, msgspec.Raw], msgspec.Raw] | None = None
        self.resume: Callable[[ToolCall], Awaitable[Reply]] | None = None
        self.retry: Any = None
        self.over: Callable[[bool], None] | None = None
        self.call: ToolCall | None = None
        self.code = 0
        self.connects = False
        self.translation: Translation | None = None

    @property
    def lists(self) -> int:
        """The profile that servers' lists are asked for: tasks change none of them."""
        return self.profile & ~capabilities.TASKS

    def tell(self, data: bytes) -> bytes | None:
        """A server's message as the agent gets it, None when it does not. Raises Malformed."""
        translation, call = self.translation, self.call
        assert translation is not None
        assert call is not None
        message = jsonrpc.decode(data)
        if message.is_response:
            return self._told(message, data)[0]
        if message.is_notification:
            return translation.notification(message)
        answer = call.answer
        if answer is None:
            return None
        if self.task and b"related-task" in bytes(message.params):
            message.params = tasks.related(message.params, self.task)
        session = self.session
        if session is None or not capabilities.allows(session.profile, message.method, message.params):
            answer(unsupported(message))
            return None
        outgoing = call.outgoing
        if outgoing is not None:
            return session.ask(message, lambda data: outgoing(call, data, answer))
        return session.ask(message, answer)

    def first(self, data: bytes, message: jsonrpc.Message | None = None) -> tuple[bytes, int]:
        """The whole answer, and its error code or 0. message: what it says, where that is known. Raises Malformed."""
        if message is None:
            message = jsonrpc.decode(data)
        if not message.is_response:
            raise jsonrpc.Malformed(jsonrpc.INTERNAL_ERROR, "the server's answer is no response")
        return self._told(message, data)

    def _told(self, message: jsonrpc.Message, data: bytes) -> tuple[bytes, int]:
        translation, call = self.translation, self.call
        assert translation is not None
        bridge, made, asks = self.bridge, self.made, False
        if (bridge is not None or made is not None) and call is not None and bytes(message.id) != OWN_ID:
            try:
                if made is not None and not len(message.error):
                    asks = True
                    message.result = made(self, message.result)
                if bridge is None:
                    pass
                elif not len(message.error):
                    if self.inner and b"input_required" in data:
                        asks = True
                        message.result = bridge.wrapped(call, self.endpoint, message.result)
                elif not self.inner and b"-32042" in data:
                    needed = bridge.urls(call, self.endpoint, message.error)
                    if needed is not None:
                        asks = True
                        message = jsonrpc.Message("2.0", message.id, result=msgspec.Raw(needed))
            except Refused as refused:
                self.request.context.mcp_outcome = "protocol_error"
                return jsonrpc.error(self.id, refused.code, refused.message, refused.data), refused.code
        body, code = translation.response(message, asks=asks)
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


def must_allow(profile: int, requests: Mapping[str, mrtr.InputRequest], who: str) -> None:
    """Raises Refused when `who` needs what its agent does not say it can give."""
    lacking = mrtr.requires(profile, requests)
    if lacking:
        what = f"{who} needs input that the client did not say it can give"
        raise Refused(revisions.MISSING_CAPABILITY, what, {"requiredCapabilities": lacking})


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
    if failure.code == "call_lost":
        fields["executed"] = "unknown"
    if failure.retry_after is not None:
        fields["retryAfter"] = failure.retry_after
    if failure.url:
        fields["url"] = failure.url
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


def as_stream(response: Response) -> Response:
    """A whole answer as an event stream of one event, for who prefers that."""
    if response.status == 200 and response.source is None and response.body and JSON in response.headers:
        response.headers = [*HEADERS, *(pair for pair in response.headers if pair != JSON)]
        response.body = sse.frame(jsonrpc.one_line(response.body), b"message")
    return response


def plain(status: int, text: str, *headers: tuple[bytes, bytes]) -> Response:
    """What is wrong with the HTTP of it, before any message is read."""
    reason = Reason.INVALID_REQUEST
    body = jsonrpc.error(b"null", jsonrpc.INVALID_REQUEST, text)
    return Response(status, [JSON, *headers, (b"x-tollhouse-reason", reason.encode())], body, reason=reason)


def named(fields: Mapping[str, msgspec.Raw], key: str) -> str:
    """What a request names: the member `key` ("name" or "uri") of its params or `ref`. Raises Refused."""
    for member in fields:
        meant = _READ.get(member) or _READ.get(member.casefold())
        if meant is not None and meant != member:
            # Some servers take names for equal but for the case: they would read another value than the rules did.
            raise Refused(jsonrpc.INVALID_PARAMS, f"the member {member[:100]!r} must be written {meant!r}")
    name = jsonrpc.decode_string(fields.get(key))
    if name is None:
        raise Refused(jsonrpc.INVALID_PARAMS, f"{key} must be a string")
    if len(name) > _LONGEST[key]:
        raise Refused(jsonrpc.INVALID_PARAMS, f"{key} has {len(name)} characters: at most {_LONGEST[key]}")
    return name


class Accepted:
    """What values of the header Accept mean, remembered: agents send few different ones."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[bool, bool]] = {}

    def of(self, value: bytes | None) -> tuple[bool, bool]:
        """Whether JSON, and whether event streams are accepted."""
        if value is None:
            return True, True
        known = self._known.get(value)
        if known is None:
            kinds = {part.partition(b";")[0].strip() for part in value.lower().split(b",")}
            every = b"*/*" in kinds
            known = (
                every or b"application/json" in kinds or b"application/*" in kinds,
                every or b"text/event-stream" in kinds or b"text/*" in kinds,
            )
            if len(self._known) < 256 and len(value) <= 256:
                self._known[value] = known
        return known
