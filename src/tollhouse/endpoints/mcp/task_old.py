"""Tasks of servers with sessions (2025-11-25), for stateless agents.

Rule: `tasks/get` says all: what such a server tells by `tasks/result` is asked for and put into it. Its tasks may be
known only in the session in which they were begun, so the worker that began one asks for it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from tollhouse.core.call import Context, Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.request import JSON, Refused
from tollhouse.endpoints.mcp.server import Server
from tollhouse.endpoints.mcp.task import Sub, must_be, refused_with, reply_with
from tollhouse.endpoints.mcp.task_away import Away, Errand
from tollhouse.endpoints.mcp.task_input import Inputs
from tollhouse.store.base import State
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import mrtr, names, revisions, tasks
from tollhouse.wire.mcp.tasks import TaskId

__all__ = ["OldTasks"]

_CALLERS = 4096  # who have begun tasks here, and are remembered


class OldTasks:
    """Of one worker. node: this one. read: what a sealed id says, None for one that is not ours. state: shared with
    other workers, None where there are none. timeout: gives the seconds that an agent may take to answer."""

    def __init__(
        self,
        clock: Clock,
        state: State | None,
        read: Callable[[str], TaskId | None],
        *,
        node: str,
        timeout: Callable[[], float],
    ) -> None:
        self.inputs = Inputs(clock, timeout=timeout)
        self._node = node
        self._read = read
        self._away = Away(state, self._errand) if state is not None and state.shared else None
        self._servers: WeakValueDictionary[tuple[str, str], Server] = WeakValueDictionary()
        self._wraps: dict[str, bool] = {}
        self._callers: dict[tuple[str, str], Principal] = {}

    def begun(self, server: Server, principal: Principal | None) -> None:
        """A task was begun here. Errands of other workers about it may need tokens that stand for its caller."""
        if self._away is not None and server.vouches and principal is not None:
            key = (principal.id, _agent(principal))
            self._callers.pop(key, None)
            self._callers[key] = principal
            if len(self._callers) > _CALLERS:
                del self._callers[next(iter(self._callers))]

    def serve(self, endpoint: str, server: Server, *, wrap: bool) -> None:
        """Where errands of other workers go. wrap: URIs carry their server there."""
        self._servers[endpoint, server.name] = server
        self._wraps[endpoint] = wrap

    async def answer(self, sub: Sub, call: ToolCall) -> Reply:
        """At the worker that has the session with the server, or here when that one is gone."""
        node = sub.found.node
        if self._away is not None and node and node != self._node:
            responses = call.params.get("inputResponses")
            principal = call.principal
            errand = Errand(
                sub.token,
                sub.method,
                principal.id if principal is not None else "",
                principal.source if principal is not None else "",
                sub.declared,
                bytes(responses) if responses is not None else b"",
                _agent(principal),
            )
            body = await self._away.ask(node, errand)
            if body is not None:
                return Reply(200, [JSON], body)
        return await self._here(sub, call)

    async def _here(self, sub: Sub, call: ToolCall) -> Reply:
        if sub.method == "tasks/update":
            return await self._update(sub, call)
        return await (self._cancel if sub.method == "tasks/cancel" else self._get)(sub, call)

    async def _errand(self, errand: Errand) -> bytes | None:
        """`answer`, for another worker."""
        found = self._read(errand.task)
        server = self._servers.get((found.endpoint, found.server)) if found is not None else None
        if found is None or server is None:
            return None
        principal = Principal(errand.principal, source=errand.source) if errand.source else None
        if server.vouches:  # with what he has shown himself, where he has begun it
            principal = self._callers.get((errand.principal, errand.agent))
            if principal is None:
                return None
        context = Context(mcp_method=errand.method, principal=principal, server=found.server)
        wrap = self._wraps.get(found.endpoint, False)
        sub = Sub(found, server, errand.task, wrap=wrap, method=errand.method, declared=errand.declared)
        params = {"inputResponses": msgspec.Raw(errand.responses)} if errand.responses else {}
        call = ToolCall(
            Request(b"POST", b"/", Headers()),
            context,
            server=found.server,
            method=errand.method,
            name=found.id,
            params=params,
            profile=found.profile,
        )
        try:
            return (await self._here(sub, call)).first
        except jsonrpc.Malformed as problem:
            return jsonrpc.error(0, jsonrpc.INTERNAL_ERROR, f"{found.server}: {problem.message}")
        except Failure as failure:
            if server.vouches and failure.status == 401:
                return None  # where he is now he may have shown another credential
            told = {"reason": failure.code or failure.reason.value}
            return jsonrpc.error(0, jsonrpc.INTERNAL_ERROR, failure.message, told)

    async def _get(self, sub: Sub, call: ToolCall) -> Reply:
        try:
            fields = await self._detailed(sub, call)
        except Refused as refused:
            return refused_with(refused)
        return reply_with(jsonrpc.encode_fields({"resultType": "complete", **fields}))

    async def _detailed(self, sub: Sub, call: ToolCall) -> dict[str, Any]:
        """All that the extension says of a task. Raises Failure and Refused."""
        task = must_be(await sub.ask(call, "tasks/get"))
        fields = tasks.as_new(task, sub.token)
        status = jsonrpc.decode_string(fields.get("status"))
        if status in ("completed", "failed"):
            answer = await sub.ask(call, "tasks/result")
            if len(answer.error):
                _, error = revisions.error_for("tools/call", answer.error, new=True)
                fields |= {"status": "failed", "error": msgspec.Raw(error)}
            else:
                result = revisions.result_for("tools/call", answer.result, new=True)
                if sub.wrap:
                    result = names.rewrite_uris("tools/call", result, sub.server.name)
                fields |= {"status": "completed", "result": msgspec.Raw(result)}
        elif status == "input_required":
            requests: Mapping[str, mrtr.InputRequest] = {}
            if sub.server.bridged:
                principal = call.principal.id if call.principal is not None else ""
                requests = await self.inputs.questions(
                    sub.token, sub.found.profile, principal, partial(self._open, sub, call)
                )
            if requests:
                sub.must_allow(requests)
                fields["inputRequests"] = mrtr.rendered(requests)
            else:
                fields["status"] = "working"
        return fields

    async def _open(self, sub: Sub, call: ToolCall) -> tuple[ToolCall, Reply]:
        """Open the stream on which the server asks what a task needs; it outlives the request that wants to know."""
        made = sub.call(call, "tasks/result")
        made.context = msgspec.structs.replace(call.context)
        return made, await sub.server.again(made, sub.found.tool)

    async def _update(self, sub: Sub, call: ToolCall) -> Reply:
        try:
            answers = mrtr.answers_of(call.params.get("inputResponses"))
            must_be(await sub.ask(call, "tasks/get"))
        except Refused as refused:
            return refused_with(refused)
        except jsonrpc.Malformed as problem:
            return refused_with(Refused(problem.code, problem.message))
        self.inputs.answer(sub.token, answers)
        return reply_with(b"{}")

    async def _cancel(self, sub: Sub, call: ToolCall) -> Reply:
        answer = await sub.ask(call, "tasks/cancel")
        if len(answer.error):  # it may be over already, which is no error to the agent
            try:
                must_be(await sub.ask(call, "tasks/get"))
            except Refused as refused:
                return refused_with(refused)
        return reply_with(b"{}")

    async def closed(self) -> None:
        if self._away is not None:
            await self._away.closed()
        await self.inputs.closed()


def _agent(principal: Principal | None) -> str:
    return "" if principal is None else principal.client or principal.agent
