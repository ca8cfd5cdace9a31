"""The cache of tools' results: of those that only read.

Rule: two have to say so: the server, by the tool's annotation `readOnlyHint`, and the operator, by `cache` at the
server or the tool. `idempotentHint` is not enough: to delete twice is as good as once, and to be told that one has
is not. What is kept is a whole result that is no error, of a call in which nobody was asked anything and nothing
goes on.
"""

from collections.abc import Awaitable
from time import monotonic, time
from typing import Any, Final

import msgspec

from tollhouse.core.call import Call, ToolCall
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.policies.cache.directives import NONE, Directives, directives_of
from tollhouse.policies.cache.entry import Entry
from tollhouse.policies.cache.key import key_of_tool, space_of_tools
from tollhouse.policies.cache.memory import Kept
from tollhouse.policies.cache.policy import Tally, nothing_kept, whole
from tollhouse.policies.cache.spec import ToolExactSpec
from tollhouse.policies.cache.store import Store

__all__ = ["ToolCache", "only_reads"]

_TRIES: Final = 2  # others who may ask in vain before one asks alone
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
    except UNREADABLE:
        return False
    return said is not None and said.readOnlyHint


class ToolCache:
    """The policy `handle` of a server's chain, or of one of its tools. fingerprint: of the server's settings."""

    def __init__(self, spec: ToolExactSpec, store: Store, fingerprint: bytes, tally: Tally) -> None:
        self._spec = spec
        self._store = store
        self._fingerprint = fingerprint
        self._tally = tally
        self._shares = spec.single_flight.mode == "on"
        self._nodes = spec.single_flight.nodes

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 504 where nothing is kept for a call that wants nothing else."""
        if not isinstance(call, ToolCall) or not _is_plain(call) or not only_reads(call.definition):
            return next(call)
        asked = directives_of(call.request.headers)
        if not (asked.keep or asked.only):
            self._tally("exact", "bypass", call.context.route)
            call.context.cache = "bypass"
            return next(call)
        if not self._store.started:
            self._store.start()
        key = key_of_tool(call, space_of_tools(call.principal, self._spec.scope), self._fingerprint)
        if asked.find:
            kept = self._store.find(key)
            if kept is not None and self._serves(kept, asked):
                return self._found(call, kept)
        if asked.only:
            return self._kept_only(call, key, asked)
        return self._asked(call, next, key, asked)

    def _serves(self, kept: Kept, asked: Directives) -> bool:
        """Whether it is as fresh as is wanted."""
        return self._store.age(kept) <= asked.oldest and self._store.left(kept) >= asked.freshest

    async def _kept_only(self, call: ToolCall, key: bytes, asked: Directives) -> Reply:
        """Raises Failure 504."""
        kept = await self._store.fetch(key) if asked.find else None
        if kept is None or not self._serves(kept, asked):
            self._missed(call)
            raise nothing_kept()
        return await self._found(call, kept)

    async def _asked(self, call: ToolCall, next: Handler[Call, Reply], key: bytes, asked: Directives) -> Reply:
        store = self._store
        leads = False
        if self._shares and asked == NONE:
            for _ in range(_TRIES):
                leads = store.leaders.lead(key)
                if leads or not await store.leaders.follow(key):
                    break
                kept = store.find(key)
                if kept is not None:
                    return await self._found(call, kept)
        if not leads:
            kept = await store.fetch(key) if asked.find and store.reaches else None
            if kept is not None and self._serves(kept, asked):
                return await self._found(call, kept)
            reply, _ = await self._made(call, next, key)
            return reply
        claim, stands = None, False
        try:
            if store.reaches:
                left = (call.context.deadline - monotonic()) / 2  # of which as much stays for asking oneself
                kept, claim = await store.meet(key, min(self._nodes, left))
                if kept is not None:
                    return await self._found(call, kept)
            reply, stands = await self._made(call, next, key)
            return reply
        finally:
            store.leaders.over(key)
            if claim is not None and store.claims is not None:
                store.claims.done(claim, stands=stands)

    async def _made(self, call: ToolCall, next: Handler[Call, Reply], key: bytes) -> tuple[Reply, bool]:
        """The server's answer, and whether other nodes will find it."""
        self._missed(call)
        generation = self._store.generation
        reply = await next(call)
        plain = reply.source is None and reply.status == 200 and call.asks is None and call.instead is None
        stands = False
        if plain and call.context.guard_action != "failopen":
            stands = self._keep(call, reply, key, generation)
        return reply, stands

    def _missed(self, call: ToolCall) -> None:
        self._tally("exact", "miss", call.context.route)
        call.context.cache = "miss"

    async def _found(self, call: ToolCall, kept: Kept) -> Reply:
        self._tally("exact", "hit", call.context.route)
        context = call.context
        context.cached = "exact"
        context.mcp_outcome = "ok"
        return Reply(200, list(_HEADERS), kept.entry.blocks[0])

    def _keep(self, call: ToolCall, reply: Reply, key: bytes, generation: int) -> bool:
        """Keep the result, if it is one: whether other nodes will find it. Raises a tap's Failure."""
        try:
            first = whole(reply)
        except Failure as failure:
            reply.close(Ending(failure.status, failure.reason, 0, failure))
            raise
        reply.first, reply.taps = first, None
        if len(first) > self._spec.max_size or not _is_result(first):
            return False
        principal: Any = call.principal
        return self._store.keep(
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
    except UNREADABLE:
        return False
    return result is not None and not result.isError and result.resultType == "complete" and not len(result.task)
