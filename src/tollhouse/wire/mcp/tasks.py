"""Tasks, work that outlives its request, as each era has them: 2025-11-25 in its core (the agent asks for one, and gets
what came of it by `tasks/result`), 2026-07-28 by the extension io.modelcontextprotocol/tasks (the server decides, and
`tasks/get` says all).

Rule: a task's id says nothing of the server it is at, and is worth nothing to another caller: agents get it sealed.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from tollhouse.wire import jsonrpc

__all__ = [
    "EXTENSION",
    "METHODS",
    "OLD_METHODS",
    "OVER",
    "RELATED",
    "REQUIRED",
    "RESULT_TYPE",
    "STATUS",
    "TaskId",
    "about",
    "as_new",
    "as_old",
    "created",
    "described",
    "interval",
    "offers",
    "related",
    "runs",
    "task_id",
    "with_id",
]

EXTENSION = "io.modelcontextprotocol/tasks"
RESULT_TYPE = "task"
METHODS = frozenset(("tasks/get", "tasks/update", "tasks/cancel"))
OLD_METHODS = frozenset(("tasks/get", "tasks/result", "tasks/cancel"))
"""Of 2025-11-25, those about one task; `tasks/list` is the other one."""

OVER = frozenset(("completed", "failed", "cancelled"))
STATUS = "notifications/tasks/status"
RELATED = "io.modelcontextprotocol/related-task"
REQUIRED: dict[str, Any] = {"extensions": {EXTENSION: {}}}
"""The ClientCapabilities that an agent must declare to have tasks (2026-07-28)."""

_SHARED = ("status", "statusMessage", "createdAt", "lastUpdatedAt")
_NULL = msgspec.Raw(b"null")


class TaskId(msgspec.Struct, array_like=True):
    """What a task id of ours says, sealed. principal: a tag of whom it was given to. tool: the one that runs. id: the
    server's own. profile: what its agent can be asked. new: its server is stateless. parked: the result is kept here
    under `id`, and the server knows nothing of a task. node: the worker that began it. child: in which of the caller's
    sessions with the server."""

    endpoint: str
    server: str
    principal: bytes
    tool: str
    id: str
    profile: int = 0
    new: bool = True
    parked: bool = False
    node: str = ""
    child: int = 0


def task_id(result: msgspec.Raw | bytes) -> str | None:
    """The id in a result that describes a task; None when there is none."""
    return jsonrpc.decode_string(jsonrpc.decode_result(result).get("taskId"))


class _Created(msgspec.Struct):
    task: msgspec.Raw = jsonrpc.NONE


_created = msgspec.json.Decoder(_Created)


def created(result: msgspec.Raw | bytes) -> msgspec.Raw | None:
    """The task in a `CreateTaskResult` of 2025-11-25; None for any other result."""
    try:
        task = _created.decode(result).task
        return task if len(task) and task_id(task) is not None else None
    except (msgspec.DecodeError, jsonrpc.Malformed):
        return None


class _Kind(msgspec.Struct, gc=False):
    type: str = msgspec.field(name="resultType", default="complete")
    id: msgspec.Raw = msgspec.field(name="taskId", default=jsonrpc.NONE)


_kind = msgspec.json.Decoder(_Kind)


def described(result: msgspec.Raw | bytes) -> str | None:
    """The type of a result that has a task's id at its top; None for any other result."""
    try:
        found = _kind.decode(result)
    except msgspec.DecodeError:
        return None
    return found.type if len(found.id) else None


def with_id(result: msgspec.Raw | bytes, id: str) -> dict[str, Any]:
    """The members of the same result of the task `id`."""
    fields: dict[str, Any] = dict(jsonrpc.decode_result(result))
    fields["taskId"] = id
    return fields


def as_new(task: msgspec.Raw | bytes, id: str) -> dict[str, Any]:
    """A task of either era as the extension writes it, without what its status brings. Raises Malformed."""
    fields = jsonrpc.decode_result(task)
    made: dict[str, Any] = {"taskId": id, **{name: fields[name] for name in _SHARED if name in fields}}
    made["ttlMs"] = fields.get("ttlMs", fields.get("ttl", _NULL))
    poll = fields.get("pollIntervalMs", fields.get("pollInterval"))
    if poll is not None:
        made["pollIntervalMs"] = poll
    return made


class _Result(msgspec.Struct, gc=False):
    isError: bool = False


class _Done(msgspec.Struct, gc=False):
    result: _Result | None = None


def as_old(task: msgspec.Raw | bytes, id: str) -> dict[str, Any]:
    """A task of either era as 2025-11-25 writes it. A tool that failed is a task that did. Raises Malformed."""
    fields = jsonrpc.decode_result(task)
    made: dict[str, Any] = {"taskId": id, **{name: fields[name] for name in _SHARED if name in fields}}
    made["ttl"] = fields.get("ttl", fields.get("ttlMs", _NULL))
    poll = fields.get("pollInterval", fields.get("pollIntervalMs"))
    if poll is not None:
        made["pollInterval"] = poll
    if "result" in fields and b"isError" in bytes(fields["result"]):
        try:
            done = msgspec.json.decode(task, type=_Done).result
        except msgspec.DecodeError:
            done = None
        if done is not None and done.isError:
            made["status"] = "failed"
    return made


class _Interval(msgspec.Struct, gc=False):
    new: float | None = msgspec.field(name="pollIntervalMs", default=None)
    old: float | None = msgspec.field(name="pollInterval", default=None)


def interval(task: msgspec.Raw | bytes) -> float:
    """Seconds between two looks at a task, as its server wants it: from 0.05 to 5, and 1 where it does not say."""
    try:
        said = msgspec.json.decode(task, type=_Interval)
    except msgspec.DecodeError:
        return 1.0
    found = said.new if said.new is not None else said.old
    return 1.0 if found is None else min(5.0, max(0.05, found / 1000))


def related(params: msgspec.Raw | bytes, id: str) -> msgspec.Raw:
    """The params of a message about a task, or what came of it, saying that it is about `id`; "": about none. Raises
    Malformed."""
    fields: dict[str, Any] = dict(jsonrpc.decode_fields(params))
    meta: dict[str, Any] = dict(jsonrpc.decode_fields(fields.get("_meta", b"")))
    if id:
        meta[RELATED] = {"taskId": id}
    else:
        meta.pop(RELATED, None)
    fields["_meta"] = meta
    return msgspec.Raw(jsonrpc.encode_fields(fields))


def about(params: msgspec.Raw | bytes) -> str | None:
    """The task that a message says it is about (2025-11-25); None for none. Raises Malformed."""
    meta = jsonrpc.decode_fields(jsonrpc.decode_fields(params).get("_meta", b""))
    return task_id(meta[RELATED]) if RELATED in meta else None


def offers(capabilities: Mapping[str, Any]) -> bool:
    """Whether a stateless server that says these capabilities has the extension."""
    try:
        return EXTENSION in jsonrpc.decode_fields(capabilities.get("extensions", b""))
    except jsonrpc.Malformed:
        return False


def runs(capabilities: Mapping[str, Any]) -> bool:
    """Whether a server of 2025-11-25 that says these capabilities runs tools as tasks."""
    found: msgspec.Raw | bytes = capabilities.get("tasks", b"")
    try:
        for name in ("requests", "tools", "call"):
            found = jsonrpc.decode_fields(found).get(name, b"")
    except jsonrpc.Malformed:
        return False
    return len(found) > 0
