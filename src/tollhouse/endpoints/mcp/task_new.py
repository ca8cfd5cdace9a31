"""Tasks of stateless servers (2026-07-28, the tasks extension), for agents with sessions.

Rule: to such an agent a task is what 2025-11-25 says it is: a call that was wanted as a task is one, also where the
server has answered at once; a cancelled one is cancelled from then on; and what came of it is waited for.
"""

import hashlib
import logging
import secrets
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.listen import final
from tollhouse.endpoints.mcp.request import JSON, Refused
from tollhouse.endpoints.mcp.server import Server
from tollhouse.endpoints.mcp.task import NO_TASK, Ask, Sub, about, must_be, refused_with, reply_with
from tollhouse.endpoints.mcp.task_result import TaskResult, outcome
from tollhouse.store.base import KeyValue
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions, tasks
from tollhouse.wire.mcp.capabilities import TASKS
from tollhouse.wire.mcp.messages import is_tool_error

__all__ = ["NewTasks", "Parked"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_PARKED = 300.0  # seconds that a result is kept whose server has no task of it
_CANCELLED = 3600.0  # seconds that a task which was cancelled is, whatever its server says


class Parked(msgspec.Struct, array_like=True):
    """A result that its server gave at once. at: when (ISO 8601)."""

    at: str
    result: bytes

    def task(self, token: str) -> dict[str, Any]:
        """The finished task `token` that it is to its agent."""
        status = "failed" if is_tool_error(self.result) else "completed"
        at = {"createdAt": self.at, "lastUpdatedAt": self.at}
        return {"taskId": token, "status": status, **at, "ttl": int(_PARKED * 1000)}


class NewTasks:
    """Of one worker. values: where results without a task are kept, and which tasks were cancelled. later: does what
    nobody waits for. timeout: gives the seconds that an agent may take to answer."""

    def __init__(
        self,
        clock: Clock,
        values: KeyValue,
        later: Callable[[Coroutine[Any, Any, None]], None],
        *,
        timeout: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._values = values
        self._later = later
        self._timeout = timeout
        self._parking: dict[str, Parked] = {}

    # ---- calls
    def park(self, result: msgspec.Raw) -> tuple[str, Parked]:
        """The server has answered at once, and its agent wants a task: under which name the result is kept."""
        name = secrets.token_urlsafe(12)
        parked = self._parking[name] = Parked(_now(), bytes(result))
        self._later(self._keep(name, parked))
        return name, parked

    async def _keep(self, name: str, parked: Parked) -> None:
        try:
            await self._values.put(f"mcp:tp:{name}", msgspec.msgpack.encode(parked), _PARKED)
        finally:
            del self._parking[name]

    async def driven(self, server: Server, revision: str, call: ToolCall) -> Reply:
        """For `ToolCall.resume`: an agent with a session calls a tool and wants no task of it. Where a stateless server
        runs the tool only as one, it is waited for here."""
        call.resume = None
        reply = await server.upstream.handle(call)
        if reply.source is not None or not _needs_task(reply.first):
            return reply
        call.profile |= TASKS
        reply = await server.again(call)
        if reply.source is not None:
            return reply
        task = jsonrpc.decode(reply.first).result
        if tasks.described(task) != tasks.RESULT_TYPE:
            return reply
        id = tasks.task_id(task)
        if not id:
            raise Failure(502, Reason.UPSTREAM_FAILURE, f"{call.server}: the server's task has no usable id", sent=True)

        async def ask(method: str, **more: msgspec.Raw) -> jsonrpc.Message:
            made = about(id, call, method, server=call.server, profile=call.profile, more=more)
            return await final(made, await server.again(made))

        return await self._waited_for(call, ask, "", revision)

    # ---- requests about a task
    async def answer(self, sub: Sub, call: ToolCall) -> Reply:
        """In the place of the server. Raises Failure."""
        if sub.found.parked:
            return await self._of_parked(sub)
        said = {"tasks/result": self._result, "tasks/cancel": self._cancel}.get(sub.method, self._get)
        return await said(sub, call)

    async def _look(self, sub: Sub, call: ToolCall) -> msgspec.Raw:
        return must_be(await sub.ask(call, "tasks/get"))

    async def _get(self, sub: Sub, call: ToolCall) -> Reply:
        try:
            fields = tasks.as_old(await self._look(sub, call), sub.token)
        except Refused as refused:
            return refused_with(refused)
        if await self._values.get(_cancelled(sub.token)) is not None:
            fields["status"] = "cancelled"
        return reply_with(jsonrpc.encode_fields(fields))

    async def _result(self, sub: Sub, call: ToolCall) -> Reply:
        if await self._values.get(_cancelled(sub.token)) is not None:
            return Reply(200, [JSON], jsonrpc.error(0, jsonrpc.INTERNAL_ERROR, "the task is cancelled"))
        return await self._waited_for(call, partial(sub.ask, call), sub.token, sub.revision)

    async def _waited_for(self, call: ToolCall, ask: Ask, token: str, revision: str) -> Reply:
        """What comes of a task of a stateless server, and what it asks until then. token: its id to the agent, "" for
        an agent that knows nothing of it."""

        async def look() -> msgspec.Raw:
            return must_be(await ask("tasks/get"))

        try:
            task = await look()
        except Refused as refused:
            return refused_with(refused)
        done = outcome(jsonrpc.decode_fields(task))
        if done is not None:
            return Reply(200, [JSON], done)

        async def update(answers: dict[str, msgspec.Raw]) -> None:
            responses = msgspec.Raw(jsonrpc.encode_fields(dict(answers)))
            must_be(await ask("tasks/update", inputResponses=responses))

        async def cancel() -> None:
            await ask("tasks/cancel")

        source = TaskResult(
            call,
            task,
            self._clock,
            look=look,
            update=update,
            cancel=cancel,
            token=token,
            revision=revision,
            timeout=self._timeout(),
        )
        return Reply(200, [JSON], b"", source)

    async def _cancel(self, sub: Sub, call: ToolCall) -> Reply:
        """It is cancelled from now on, however long the server takes."""
        key = _cancelled(sub.token)
        try:
            task = await self._look(sub, call)
            fields = tasks.as_old(task, sub.token)
            status = jsonrpc.decode_string(fields.get("status"))
            over = status in tasks.OVER or await self._values.get(key) is not None
            if over:
                what = f"the task is {status if status in tasks.OVER else 'cancelled'} already"
                raise Refused(jsonrpc.INVALID_PARAMS, what)
            must_be(await sub.ask(call, "tasks/cancel"))
        except Refused as refused:
            return refused_with(refused)
        await self._values.put(key, b"1", _CANCELLED)
        fields["status"] = "cancelled"
        return reply_with(jsonrpc.encode_fields(fields))

    async def _of_parked(self, sub: Sub) -> Reply:
        """About a call that was answered at once."""
        name = sub.found.id
        parked = self._parking.get(name)
        if parked is None:
            data = await self._values.get(f"mcp:tp:{name}")
            parked = msgspec.msgpack.decode(data, type=Parked) if data is not None else None
        if parked is None:
            return refused_with(Refused(jsonrpc.INVALID_PARAMS, NO_TASK))
        if sub.method == "tasks/cancel":
            return refused_with(Refused(jsonrpc.INVALID_PARAMS, "the task is completed already"))
        if sub.method == "tasks/result":
            return reply_with(parked.result)
        return reply_with(jsonrpc.encode_fields(parked.task(sub.token)))


def _needs_task(response: bytes) -> bool:
    """Whether a server says that its tool runs only as a task (-32021)."""
    if b"-32021" not in response or tasks.EXTENSION.encode() not in response:
        return False
    problem = jsonrpc.error_fields(jsonrpc.decode(response).error)
    return problem.code == revisions.MISSING_CAPABILITY


def _cancelled(token: str) -> str:
    return f"mcp:tc:{hashlib.blake2b(token.encode(), digest_size=16).hexdigest()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
