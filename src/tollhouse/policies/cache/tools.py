"""The cache of tools' results: of those that only read.

Rule: two have to say so: the server, by the tool's annotation `readOnlyHint`, and the operator, by `cache` at the
server or the tool. `idempotentHint` is not enough: to delete twice is as good as once, and to be told that one has
is not. What is kept is a whole result that is no error, of a call in which nobody was asked anything and nothing
goes on.
"""

from collections.abc import Awaitable
from time import time
from typing import Any, Final

import msgspec

from tollhouse.core.call import Call, ToolCall
from tollhouse.core.errors import Failure
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.policies.cache.directives import directives_of
from tollhouse.policies.cache.entry import Entry
from tollhouse.policies.cache.key import key_of_tool, space_of
from tollhouse.policies.cache.memory import Kept
from tollhouse.policies.cache.policy import Tally, whole
from tollhouse.policies.cache.spec import ToolExactSpec
from tollhouse.policies.cache.store import Store

__all__ = ["ToolCache", "only_reads"]

_HEADERS: Final = [(b"content-type", b"application/json")]


class _Annotations(msgspec.Struct):
    readOnlyHint: bool = False  # noqa: N815 - the protocol's name


class _Definition(msgspec.Struct):
    annotations: _Annotations | None = None


class _Result(msgspec.Struct):
    isError: bool = False  # noqa: N815
    resultType: str = "complete"  # noqa: N815
    task: msgspec.Raw = msgspec.Raw()


class _Message(msgspec.Struct):
    result: _Result | None = None


_definition = msgspec.json.Decoder(_Definition).decode
_message = msgspec.json.Decoder(_Message).decode


def only_reads(definition: msgspec.Raw | bytes) -> bool:
    """Whether the server says of the tool that it changes nothing."""
    if not len(definition):
        return False
    try:
        said = _definition(definition).annotations
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return said is not None and said.readOnlyHint


class ToolCache:
    """The policy `handle` of a server's chain, or of one of its tools. fingerprint: of the server's settings."""

    def __init__(self, spec: ToolExactSpec, store: Store, fingerprint: bytes, tally: Tally) -> None:
        self._spec = spec
        self._store = store
        self._fingerprint = fingerprint
        self._tally = tally

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure."""
        if not isinstance(call, ToolCall) or not _is_plain(call) or not only_reads(call.definition):
            return next(call)
        asked = directives_of(call.request.headers)
        if not asked.keep:
            self._tally("exact", "bypass", call.context.route)
            return next(call)
        if not self._store.started:
            self._store.start()
        key = key_of_tool(call, space_of(call.principal, self._spec.scope), self._fingerprint)
        return self._answer(call, next, key, asked.find, asked.oldest)

    async def _answer(self, call: ToolCall, next: Handler[Call, Reply], key: bytes, find: bool, oldest: float) -> Reply:
        store = self._store
        if find:
            kept = store.find(key) or (await store.fetch(key) if store.reaches else None)
            if kept is not None and store.age(kept) <= oldest:
                return self._found(call, kept)
        self._tally("exact", "miss", call.context.route)
        generation = store.generation
        reply = await next(call)
        plain = reply.source is None and reply.status == 200 and call.asks is None and call.instead is None
        if plain and call.context.guard_action != "failopen":
            self._keep(call, reply, key, generation)
        return reply

    def _found(self, call: ToolCall, kept: Kept) -> Reply:
        self._tally("exact", "hit", call.context.route)
        context = call.context
        context.cached = "exact"
        context.mcp_outcome = "ok"
        return Reply(200, list(_HEADERS), kept.entry.blocks[0])

    def _keep(self, call: ToolCall, reply: Reply, key: bytes, generation: int) -> None:
        """Keep the result, if it is one. Raises a tap's Failure."""
        try:
            first = whole(reply)
        except Failure as failure:
            reply.close(Ending(failure.status, failure.reason, 0, failure))
            raise
        reply.first, reply.taps = first, None
        if len(first) > self._spec.max_size or not _is_result(first):
            return
        principal: Any = call.principal
        self._store.keep(
            Entry(
                key,
                time(),
                self._spec.ttl,
                generation,
                [],
                [first],
                [0],
                "",
                "" if principal is None else principal.user,
                "" if principal is None else principal.org,
                "" if principal is None else principal.key,
                tuple(sorted({*self._spec.tags, *call.context.tags})),
                server=call.server,
            )
        )


def _is_plain(call: ToolCall) -> bool:
    """Whether it is one call from its beginning to its end, without a task and without questions."""
    return (
        call.method == "tools/call"
        and not call.round
        and call.resume is None
        and call.consent is None
        and not call.connects
        and not call.onward
        and "task" not in call.params
    )


def _is_result(data: bytes) -> bool:
    """Whether a response says what the tool has found, and not that it failed, asks or goes on."""
    try:
        result = _message(data).result
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return result is not None and not result.isError and result.resultType == "complete" and not len(result.task)
