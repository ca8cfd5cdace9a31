"""The request floor's record: the request's id and beginning, and at its end the request metrics and one log line.

Rule: outermost, so that it sees every end, also of what no route matched and of what was refused. Everything is done
in one callback at the end; what a request's labels have in common is looked up once and remembered.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, time
from typing import Any

from tollhouse.core.errors import Failure
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending, Request, Response
from tollhouse.observe.access_log import FIELDS, AccessLine, AccessLog, redact, stamp
from tollhouse.observe.families import Expression, Families, ask_text
from tollhouse.observe.metrics import OTHER, Count, Spread

__all__ = ["Record"]

_METHODS = frozenset(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"))
_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{7,127}")
_REMEMBERED = 10_000
_LONGEST = 2048  # of a path, a query or an error in the log

_Children = tuple[Count, Spread, Count, Spread]


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
    ) -> None:
        self._families = families
        self._log = log
        self._binds = dict(binds or {})
        self._trusted = trusted
        self._replaced = tuple((name, ask) for name, ask in fields if name in FIELDS)
        self._added = tuple((name, ask) for name, ask in fields if name not in FIELDS)
        self._extra = families.extra.values if families.extra.names else None
        self._prefix = os.urandom(6).hex()
        self._n = 0
        self._stamp = stamp()
        self._children: dict[tuple[Any, ...], _Children] = {}

    async def handle(self, request: Request, next: Handler[Request, Response]) -> Response:
        context = request.context
        self._n = n = self._n + 1
        context.request_id = f"{self._prefix}{n:08x}"
        if self._trusted is not None and self._trusted(request):
            given = request.header(b"x-request-id")
            if given is not None and _ID.fullmatch(given):
                context.request_id = given.decode("ascii")
        context.began = monotonic()
        error = ""

        def end(ending: Ending) -> None:
            self._end(request, error, ending)

        request.ends.append(end)
        try:
            return await next(request)
        except Failure as failure:
            error = failure.detail or failure.message  # a text, and not the failure: its traceback leads back here
            raise

    def _end(self, request: Request, error: str, ending: Ending) -> None:
        context = request.context
        now = monotonic()
        took = now - context.began
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
        )  # fmt: skip
        extra: tuple[str, ...] = ()
        if self._extra is not None:
            extra = self._extra(request, context)
            key = (*key, extra)
        children = self._children.get(key)
        if children is None:
            children = self._bind(request, ending.status, reason, extra)
            if len(self._children) < _REMEMBERED:
                self._children[key] = children
        children[0].value += 1
        children[1].observe(took)
        children[2].value += ending.bytes_out
        children[3].observe(ours)

        if self._log is not None:
            if failure is not None and not error:
                error = failure.detail or failure.message
            self._write(self._log, request, ending, reason, error, took, ours, upstream)

    def _bind(self, request: Request, status: int, reason: str, extra: tuple[str, ...]) -> _Children:
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
            *extra,
        )
        return (
            families.requests.child(*labels),
            families.request_duration.child(*labels),
            families.response_bytes.child(*labels),
            families.overhead.child(route),
        )

    def _write(
        self,
        log: AccessLog,
        request: Request,
        ending: Ending,
        reason: str,
        error: str,
        took: float,
        ours: float,
        upstream: float,
    ) -> None:
        context = request.context
        # What is set one by one costs half of what is given to the constructor; rounding by int, a third of round().
        line = AccessLine(
            time=self._stamp(time()),
            id=context.request_id,
            status=ending.status,
            reason=reason,
            method=request.method.decode("latin-1"),
            path=request.path[:_LONGEST].decode("latin-1"),
            duration_ms=int(took * 1e6) / 1e3,
        )
        line.ours_ms = int(ours * 1e6) / 1e3
        line.upstream_ms = int(upstream * 1e6) / 1e3
        line.peer = request.peer
        line.listener = request.listener
        line.route = context.route
        line.backend = context.backend
        line.bytes_in = context.bytes_in or request.body_size
        line.bytes_out = ending.bytes_out
        if request.query:
            line.query = redact(request.query[:_LONGEST].decode("latin-1"))
        if context.operation:
            line.operation = context.operation
            line.provider = context.provider
            line.model = context.model_asked
            line.model_answered = context.model_answered
            line.fallback = context.fallback
            if context.stream:
                line.stream = True
                if context.first_event:
                    line.ttft_ms = int((context.first_event - context.began) * 1e6) / 1e3
        if context.mcp_method:
            line.mcp_method = context.mcp_method
            line.server = context.server
            line.tool = context.tool
            line.outcome = context.mcp_outcome
        if context.attempts > 1:
            line.retries = context.attempts - 1
        if context.rule:
            line.rule = context.rule
        if error:
            line.error = error[:_LONGEST]
        if ending.gone:
            line.gone = True
        principal = context.principal
        if principal is not None:
            line.principal = principal.id
            line.user = principal.user
            line.org = principal.org
            line.agent = principal.agent
            line.key = principal.key
        usage = context.usage
        if usage is not None:
            line.tokens_in = usage.input
            line.tokens_out = usage.output
            line.tokens_cache_read = usage.cache_read
            line.tokens_cache_write = usage.cache_write
            line.tokens_reasoning = usage.reasoning
            line.tokens_estimated = usage.estimated
        for name, ask in self._replaced:
            setattr(line, name, ask_text(ask, request, context))
        if self._added:
            log.add(line, {name: ask_text(ask, request, context) for name, ask in self._added})
        else:
            log.add(line)
