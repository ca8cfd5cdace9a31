"""Tasks of agents of either era at servers of either era.

Rule: where both are of one era a task passes under an id of ours. Where they are not, each request about it is made of
those that its server knows, in the place of the server, so that rules and limits see it as any other. A task's id says
at which server it is and what its agent can be asked; so any worker can go on with it.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

import msgspec

from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.endpoints.mcp.ids import tag_of
from tollhouse.endpoints.mcp.request import Asking, Refused
from tollhouse.endpoints.mcp.server import Server
from tollhouse.endpoints.mcp.session import Session
from tollhouse.endpoints.mcp.task import NO_TASK, Sub, must_be
from tollhouse.endpoints.mcp.task_new import NewTasks
from tollhouse.endpoints.mcp.task_old import OldTasks
from tollhouse.endpoints.mcp.task_result import Look
from tollhouse.store.base import KeyValue, State
from tollhouse.store.memory import MemoryValues
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import mrtr, names, tasks
from tollhouse.wire.mcp.capabilities import TASKS
from tollhouse.wire.mcp.catalogue import Entry
from tollhouse.wire.mcp.sealed import Seals, Unsealed
from tollhouse.wire.mcp.tasks import TaskId

__all__ = ["Tasks"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_SEAL = "t"
_LONGEST = 1024  # characters of a server's task id
_KEPT = 86_400.0
_MOST = 500  # tasks of one session that are listed
_PAGE = 50
_AT_ONCE = 8
_LIST = 5.0  # seconds for servers to say how their tasks are
_WRITES = 10_000


class Tasks:
    """Of all endpoints of a worker. state: where lists of tasks and results without one are kept, and where other
    workers are; None where there is none. node: this worker. timeout: gives the seconds that an agent may take to
    answer."""

    def __init__(
        self, clock: Clock, seals: Seals, state: State | None, *, node: str, timeout: Callable[[], float]
    ) -> None:
        self._node = node
        self._own = MemoryValues(clock) if state is None else None
        values: KeyValue | None = self._own if state is None else state.values
        assert values is not None
        self.old = OldTasks(clock, state, self._read, node=node, timeout=timeout)
        self.new = NewTasks(clock, values, self._later, timeout=timeout)
        self._values = values
        self._seals = seals
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- ids
    def open(self, principal: Principal | None, endpoint: str, token: str) -> TaskId:
        """The task of a sealed id. Raises Refused when it is not this caller's here."""
        found = self._read(token)
        if found is None or found.endpoint != endpoint or found.principal != _tag(principal):
            raise Refused(jsonrpc.INVALID_PARAMS, NO_TASK)
        return found

    def _seal(self, asking: Asking, call: ToolCall, id: str | None, *, new: bool, parked: bool = False) -> str:
        if not id or len(id) > _LONGEST:
            raise jsonrpc.Malformed(jsonrpc.INTERNAL_ERROR, "the server's task has no usable id")
        found = TaskId(
            asking.endpoint,
            call.server,
            _tag(call.principal),
            call.name,
            id,
            asking.profile & ~TASKS,
            new,
            parked,
            self._node,
            call.child,
        )
        token = self._seals.seal(_SEAL, found)
        session = asking.session
        if session is not None:
            session.add_task(call.server, id, token)
            self._later(self._list(session.key, token))
        return token

    def _read(self, token: str) -> TaskId | None:
        try:
            return self._seals.open(_SEAL, token, TaskId)
        except Unsealed:
            return None

    # ---- a call that may become a task
    def begin(self, asking: Asking, call: ToolCall, server: Server, entry: Entry | None, *, wrap: bool) -> None:
        """A tool is called by an agent that takes a task for an answer. Raises Failure 503."""
        if len(self._tasks) >= _WRITES:
            raise Failure(503, Reason.MCP, "tasks are begun faster than the state takes it", retry=True)
        upstream = server.upstream
        features = upstream.features
        if asking.new:
            runs = features is not None and upstream.new is False and tasks.runs(features.capabilities)
            if runs and entry is not None and entry.task and call.resume is None:
                call.params["task"] = msgspec.Raw(b"{}")
        elif upstream.new:
            call.params.pop("task", None)
            if features is not None and tasks.offers(features.capabilities):
                call.profile |= TASKS
        self.old.serve(asking.endpoint, server, wrap=wrap)
        self.old.begun(server, call.principal)
        asking.made = partial(self._created, call, server)

    def _created(self, call: ToolCall, server: Server, asking: Asking, result: msgspec.Raw) -> msgspec.Raw:
        """What the call's result is to its agent. Raises Malformed."""
        if server.upstream.new:
            if b'"taskId"' not in bytes(result) or tasks.described(result) != tasks.RESULT_TYPE:
                if asking.new or b'"input_required"' in bytes(result):
                    return result
                name, parked = self.new.park(result)
                token = self._seal(asking, call, name, new=True, parked=True)
                return msgspec.Raw(jsonrpc.encode_fields({"task": parked.task(token)}))
            task, new = result, True
        else:
            made = tasks.created(result) if b'"task"' in bytes(result) else None
            if made is None:
                return result
            task, new = made, False
        token = self._seal(asking, call, tasks.task_id(task), new=new)
        fields: dict[str, Any]
        if not asking.new:
            fields = {"task": tasks.as_old(task, token)}
        elif new:
            fields = tasks.with_id(task, token)
        else:
            fields = {"resultType": tasks.RESULT_TYPE, **tasks.as_new(task, token)}
        return msgspec.Raw(jsonrpc.encode_fields(fields))

    # ---- a request about a task
    def route(self, asking: Asking, found: TaskId, server: Server, *, wrap: bool) -> None:
        """Say how `asking`, about the task `found`, is answered. Raises Refused."""
        upstream = server.upstream
        if upstream.new is not None and upstream.new != found.new:
            raise Refused(jsonrpc.INVALID_PARAMS, NO_TASK)  # the server is another than it was
        sub = Sub(
            found,
            server,
            asking.task,
            wrap=wrap,
            method=asking.method,
            declared=asking.profile,
            revision=asking.session.revision if asking.session is not None else "",
        )
        asking.profile = found.profile | (TASKS if found.new else 0)
        if asking.new == found.new:
            asking.made = partial(self._passed, sub)
            return
        asking.resume = partial((self.old if asking.new else self.new).answer, sub)

    def _passed(self, sub: Sub, asking: Asking, result: msgspec.Raw) -> msgspec.Raw:
        """The result of a server of the agent's own era."""
        if sub.method == "tasks/result":
            return result
        if not asking.new:
            return msgspec.Raw(jsonrpc.encode_fields(tasks.as_old(result, sub.token)))
        if tasks.described(result) is None:
            return result  # an acknowledgement
        return self._detailed_new(sub, result)

    def _detailed_new(self, sub: Sub, result: msgspec.Raw) -> msgspec.Raw:
        """What a stateless server says of a task, for a stateless agent."""
        fields = tasks.with_id(result, sub.token)
        if "result" in fields and sub.wrap:
            fields["result"] = names.rewrite_uris("tools/call", fields["result"], sub.server.name)
        if "inputRequests" in fields:
            try:
                requests = msgspec.json.decode(fields["inputRequests"], type=dict[str, mrtr.InputRequest])
            except msgspec.DecodeError:
                raise jsonrpc.Malformed(jsonrpc.INTERNAL_ERROR, "the task's inputRequests cannot be read") from None
            sub.must_allow(requests)
        return msgspec.Raw(jsonrpc.encode_fields(fields))

    def look(self, call: ToolCall, found: TaskId, server: Server, token: str, declared: int, *, wrap: bool) -> Look:
        """How a stateless agent sees a task again and again."""
        sub = Sub(found, server, token, wrap=wrap, declared=declared)

        async def look() -> msgspec.Raw:
            if not found.new:
                reply = await self.old.answer(sub, call)
                return must_be(jsonrpc.decode(reply.first))
            return self._detailed_new(sub, must_be(await sub.ask(call, "tasks/get")))

        return look

    # ---- lists (2025-11-25)
    async def _list(self, session: str, token: str) -> None:
        """Keep that the session has the task."""
        key = f"mcp:tl:{session}"
        for _ in range(10):
            stored = await self._values.get(key)
            tokens = msgspec.msgpack.decode(stored, type=list[str]) if stored is not None else []
            data = msgspec.msgpack.encode([*tokens, token][-_MOST:])
            if stored is None:
                if await self._values.add(key, data, _KEPT):
                    return
            elif await self._values.swap(key, stored, data, _KEPT):
                return

    async def listed(self, asking: Asking, call: ToolCall, servers: Mapping[str, Server], cursor: str | None) -> bytes:
        """The result of `tasks/list`: what this session began, and its servers still know and say in time. Raises
        Failure, and Refused for a bad cursor."""
        session: Session | None = asking.session
        assert session is not None
        stored = await self._values.get(f"mcp:tl:{session.key}")
        tokens = msgspec.msgpack.decode(stored, type=list[str]) if stored is not None else []
        tokens = list(dict.fromkeys((*tokens, *session.tasks.values())))
        start = 0
        if cursor is not None:
            if cursor not in tokens:
                raise Refused(jsonrpc.INVALID_PARAMS, "the cursor is not valid here: ask for the list from its start")
            start = tokens.index(cursor) + 1
        page = tokens[start : start + _PAGE]
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(token: str) -> msgspec.Raw | None:
            try:
                async with places, asyncio.timeout(_LIST):
                    return await self._entry(asking, call, servers, token)
            except (Failure, Refused, TimeoutError):
                return None  # a server that does not say holds up nobody

        found = await asyncio.gather(*map(one, page))
        fields: dict[str, Any] = {"tasks": [task for task in found if task is not None]}
        if start + _PAGE < len(tokens):
            fields["nextCursor"] = page[-1]
        return jsonrpc.encode_fields(fields)

    async def _entry(
        self, asking: Asking, call: ToolCall, servers: Mapping[str, Server], token: str
    ) -> msgspec.Raw | None:
        found = self.open(call.principal, asking.endpoint, token)
        server = servers.get(found.server)
        if server is None:
            return None
        sub = Sub(found, server, token, wrap=False)
        if found.new:
            return must_be(jsonrpc.decode((await self.new.answer(sub, call)).first))
        task = must_be(await sub.ask(call, "tasks/get"))
        return msgspec.Raw(jsonrpc.encode_fields(tasks.as_old(task, token)))

    # ---- the end
    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(_quietly(work), name="mcp tasks")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def closed(self) -> None:
        """Nothing is served any more; returns when the state has what it is to have."""
        await self.old.closed()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=_LIST)
        for task in self._tasks:
            task.cancel()
        if self._own is not None:
            self._own.close()


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Failure as failure:
        log.warning("mcp: the state of a task: %s", failure.detail or failure.message)


def _tag(principal: Principal | None) -> bytes:
    return tag_of(principal.id if principal is not None else "")
