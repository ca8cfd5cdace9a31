"""One request about a task while it is answered, and the questions that its server is asked for it.

Rule: what a server says of a task is believed to be an object and nothing more; an error of its own is told as one.
"""

from collections.abc import Awaitable, Callable, Mapping

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.listen import final
from tollhouse.endpoints.mcp.request import JSON, Refused, must_allow
from tollhouse.endpoints.mcp.server import Server
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import mrtr
from tollhouse.wire.mcp.capabilities import TASKS
from tollhouse.wire.mcp.tasks import TaskId

__all__ = ["NO_TASK", "Ask", "Sub", "about", "must_be", "refused_with", "reply_with"]

NO_TASK = "there is no such task"

Ask = Callable[..., Awaitable[jsonrpc.Message]]
"""Puts a method about one task to its server, with further params: the answer. Raises Failure."""


class Sub:
    """What is asked about a task: token: its id to the agent. wrap: URIs carry their server. method: the agent's.
    declared: what it says now that it can be asked. revision: of its session."""

    __slots__ = ("declared", "found", "method", "revision", "server", "token", "wrap")

    def __init__(
        self,
        found: TaskId,
        server: Server,
        token: str,
        *,
        wrap: bool,
        method: str = "tasks/get",
        declared: int = 0,
        revision: str = "",
    ) -> None:
        self.found = found
        self.server = server
        self.token = token
        self.wrap = wrap
        self.method = method
        self.declared = declared
        self.revision = revision

    def must_allow(self, requests: Mapping[str, mrtr.InputRequest]) -> None:
        """Raises Refused when the task needs what its agent does not say it can give."""
        must_allow(self.declared, requests, f"{self.server.name}: the task")

    async def ask(self, call: ToolCall, method: str, **more: msgspec.Raw) -> jsonrpc.Message:
        """The server's answer to `method`. Raises Failure."""
        made = self.call(call, method, **more)
        return await final(made, await self.server.again(made, self.found.tool))

    def call(self, call: ToolCall, method: str, **more: msgspec.Raw) -> ToolCall:
        profile = self.found.profile | (TASKS if self.found.new else 0)
        made = about(self.found.id, call, method, server=self.server.name, profile=profile, more=more)
        made.child = self.found.child
        return made


def about(
    id: str, call: ToolCall, method: str, *, server: str, profile: int, more: Mapping[str, msgspec.Raw]
) -> ToolCall:
    """A request about the task `id` (its server's) within `call`."""
    return ToolCall(
        call.request,
        call.context,
        server=server,
        method=method,
        name=id,
        params={"taskId": msgspec.Raw(msgspec.json.encode(id)), **more},
        session=call.session,
        idempotent=True,
        profile=profile,
    )


def must_be(message: jsonrpc.Message) -> msgspec.Raw:
    """The result in it. Raises Refused for an error."""
    if len(message.error):
        problem = jsonrpc.error_fields(message.error)
        code = problem.code if problem.code in (jsonrpc.INVALID_PARAMS, jsonrpc.INTERNAL_ERROR) else None
        raise Refused(code or jsonrpc.INTERNAL_ERROR, problem.message)
    if bytes(message.result)[:1] != b"{":
        raise Refused(jsonrpc.INTERNAL_ERROR, "the server's answer about the task is no object")
    return message.result


def reply_with(result: msgspec.Raw | bytes) -> Reply:
    """An answer of our own."""
    return Reply(200, [JSON], jsonrpc.result(0, result))


def refused_with(refused: Refused) -> Reply:
    """A refusal of our own, in the place of the server."""
    return Reply(200, [JSON], jsonrpc.error(0, refused.code, refused.message, refused.data))
