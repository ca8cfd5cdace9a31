"""The request floor's record: the request's id and beginning, and at its end the request metrics and one log line.

Rule: outermost, so that it sees every end, also of what no route matched and of what was refused. Everything is done
in one callback at the end; what a request's labels have in common is looked up once and remembered. What a refusal
said stands in the Context: who renders a Failure puts it there.
"""

import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import monotonic, time
from typing import Any

from msgspec.structs import replace

from tollhouse.core.call import Principal, Usage
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending, Request, Response
from tollhouse.ledger.prices import Prices
from tollhouse.observe.access_log import AccessLine, AccessLog, LineLabels, Shared, redact, stamp
from tollhouse.observe.families import Expression, Families, ask_text
from tollhouse.observe.metrics import OTHER, Count, Spread
from tollhouse.policies.rows import Rows

__all__ = ["Record"]

_METHODS = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"))
_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{7,127}")
_LONGEST = 2048  # of a path, a query or an error in the log
_NOBODY = Principal("", source="anonymous")
_UNUSED = Usage()
_TAILS = tuple(f"{n:03x}" for n in range(4096))  # of request ids: putting two texts together is a third of formatting


class _Row:
    """What requests with the same labels have in common: their series, and what the log says of all of them."""

    __slots__ = ("bytes", "duration", "overhead", "requests", "shared")

    def __init__(self, requests: Count, duration: Spread, bytes: Count, overhead: Spread, shared: Shared) -> None:
        self.requests = requests
        self.duration = duration.note
        self.bytes = bytes
        self.overhead = overhead.note
        self.shared = shared


class Record:
    """The policy `handle`, one for all routes of a Snapshot.

    binds: listener name -> (bind, gateway, listener), the labels of requests that came in there. trusted: whose
    `x-request-id` is taken over (a proxy of ours); None takes nobody's, because an id from outside could be made to
    collide. fields: names and expressions added to the log line; a name that the line has already replaces its value.
    """

    def __init__(
        self,
        families: Families,
        log: AccessLog | None = None,
        *,
        binds: Mapping[str, tuple[str, str, str]] | None = None,
        trusted: Callable[[Request], bool] | None = None,
        fields: Sequence[tuple[str, Expression]] = (),
        prices: Prices | None = None,
    ) -> None:
        self._families = families
        self._log = log
        self._binds = dict(binds or {})
        self._trusted = trusted
        self._prices = prices
        self._line_fields = tuple((name, ask) for name, ask in fields if name in AccessLine.__struct_fields__)
        self._shared_fields = tuple((name, ask) for name, ask in fields if name in LineLabels.__struct_fields__)
        known = (*AccessLine.__struct_fields__, *LineLabels.__struct_fields__)
        self._added = tuple((name, ask) for name, ask in fields if name not in known)
        self._fields = bool(fields)
        self._extra = families.extra.values if families.extra.names else None
        self._process = os.urandom(6).hex()
        self._prefix = ""
        self._n = -1
        self._stamp = stamp()
        self._rows: Rows[_Row] = Rows()

    def handle(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        context = request.context
        self._n = n = self._n + 1
        tail = n & 4095
        if not tail:
            self._families.metrics.count_noted()
            self._prefix = f"{self._process}{n >> 12:05x}"
        context.request_id = self._prefix + _TAILS[tail]
        if self._trusted is not None and self._trusted(request):
            given = request.header(b"x-request-id")
            if given is not None and _ID.fullmatch(given):
                context.request_id = given.decode("ascii")
        context.began = monotonic()
        request.ends.append(partial(self._end, request))
        return next(request)

    def _end(self, request: Request, ending: Ending) -> None:
        context = request.context
        now = monotonic()
        took = ours = now - context.began
        upstream = 0.0
        began = context.upstream_began
        if began:
            upstream = (context.upstream_ended or now) - began
            ours = took - upstream
            if ours < 0.0:
                ours = 0.0
        failure = ending.failure
        reason = ending.reason if failure is None else failure.reason

        key: tuple[Any, ...] = (
            context.backend, request.method, ending.status, reason, request.listener, context.route, request.scheme,
            context.principal, context.operation, context.provider, context.model_asked, context.model_answered,
            context.stream,
        )  # fmt: skip
        if context.mcp_method:
            key = (*key, context.mcp_method, context.server, context.tool, context.mcp_outcome)
        if self._extra is not None:
            key = (*key, self._extra(request, context))
        row = self._rows.get(key)
        if row is None:
            row = self._bind(key, request, ending.status, reason)
        row.requests.value += 1
        row.duration(took)
        row.bytes.value += ending.bytes_out
        row.overhead(ours)
        if self._log is not None:
            self._write(self._log, row.shared, request, ending, took, ours, upstream)

    def _bind(self, key: tuple[Any, ...], request: Request, status: int, reason: str) -> _Row:
        """The row of this key, made and remembered."""
        context, families = request.context, self._families
        method = request.method.decode("latin-1")
        route = context.route
        labels = (
            context.backend,
            request.scheme,
            method if method in _METHODS else OTHER,
            str(status),
            str(reason),
            *self._binds.get(request.listener, ("", "", request.listener)),
            route,
            "unknown" if route == "unknown" else "0",
            *(() if self._extra is None else key[-1]),
        )
        who = context.principal or _NOBODY
        mcp = bool(context.mcp_method)
        row = _Row(
            families.requests.child(*labels),
            families.request_duration.child(*labels),
            families.response_bytes.child(*labels),
            families.overhead.child(route),
            Shared(
                LineLabels(
                    status,
                    reason,
                    method,
                    listener=request.listener,
                    route=route,
                    backend=context.backend,
                    principal=who.id,
                    user=who.user,
                    org=who.org,
                    agent=who.agent,
                    key=who.key,
                    operation=context.operation,
                    provider=context.provider,
                    model=context.model_asked,
                    model_answered=context.model_answered,
                    stream=context.stream,
                    mcp_method=context.mcp_method,
                    server=context.server if mcp else "",
                    tool=context.tool if mcp else "",
                    outcome=context.mcp_outcome if mcp else "",
                )
            ),
        )
        self._rows.keep(key, row, len(row.shared.json), context.principal)
        return row

    def _write(
        self,
        log: AccessLog,
        shared: Shared,
        request: Request,
        ending: Ending,
        took: float,
        ours: float,
        upstream: float,
    ) -> None:
        context = request.context
        usage = context.usage or _UNUSED
        # Given by position, in the order of the struct: a third of what names cost, or setting one by one.
        line = AccessLine(
            self._stamp(time()),
            context.request_id,
            request.path[:_LONGEST].decode("latin-1"),
            took * 1e6 // 1 / 1e3,  # whole microseconds
            ours * 1e6 // 1 / 1e3,
            upstream * 1e6 // 1 / 1e3,
            context.client or request.peer,
            context.bytes_in or request.body_size,
            ending.bytes_out,
            usage.input,
            usage.output,
        )
        if usage.cache_read or usage.cache_write or usage.reasoning or usage.estimated:
            line.tokens_cache_read = usage.cache_read
            line.tokens_cache_write = usage.cache_write
            line.tokens_reasoning = usage.reasoning
            line.tokens_estimated = usage.estimated
        if self._prices is not None and (cost := self._prices.cost(context)) is not None:
            line.cost_usd = cost / 1e9
        if request.query:
            line.query = redact(request.query[:_LONGEST].decode("latin-1"))
        if context.stream and context.first_event:
            line.ttft_ms = int((context.first_event - context.began) * 1e6) / 1e3
        if context.attempts > 1:
            line.retries = context.attempts - 1
        if context.fallback:
            line.fallback = context.fallback
        if context.tried:
            line.tried = context.tried[:_LONGEST]
        if context.rule:
            line.rule = context.rule
        if context.approver:
            line.approver = context.approver
        if context.shadow:
            line.shadow = context.shadow
        if context.integrity:
            line.integrity = context.integrity
        if context.guard_action:
            line.guard = context.guard
            line.guard_action = context.guard_action
            line.withheld_tokens = context.withheld_tokens
        if context.cached or context.cache:
            line.cache = context.cached or context.cache
        if context.limit:
            line.limit = context.limit
        if context.run_id:
            line.run = context.run_id[:_LONGEST]
        failure = ending.failure
        error = context.error if failure is None else failure.detail or failure.message
        if error:
            line.error = error[:_LONGEST]
        if ending.gone:
            line.gone = True
        if not self._fields:
            log.add(line, shared)
            return
        for name, ask in self._line_fields:
            setattr(line, name, ask_text(ask, request, context))
        if self._shared_fields:
            changed = {name: ask_text(ask, request, context) for name, ask in self._shared_fields}
            shared = Shared(replace(shared.labels, **changed))
        log.add(line, shared, {name: ask_text(ask, request, context) for name, ask in self._added})
