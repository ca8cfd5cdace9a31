"""The call floor's meter: what a call used goes to the metrics, and as one record to the journal.

Rule: outermost, and one record for each call, however it ends: refused, failed, cut, left, or answered. The record
is in the journal before the last byte of the answer is released; when it cannot be written the answer fails, and
while the journal is full no billable call begins. Prices are not known here: `cost_nano` is None.
"""

from time import monotonic, time
from typing import Any

from tollhouse.core.call import Call, Context, ModelCall, ToolCall, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import Outcome, UsageRecord
from tollhouse.observe.families import Bounded, Families
from tollhouse.observe.metrics import OTHER, Count, Spread

__all__ = ["Meter", "outcome_of"]

_REMEMBERED = 10_000
_DENIED = frozenset(
    (
        Reason.RATE_LIMIT, Reason.BUDGET, Reason.JWT_AUTH, Reason.BASIC_AUTH, Reason.API_KEY_AUTH, Reason.EXT_AUTH,
        Reason.AUTHORIZATION, Reason.GUARDRAIL,
    )
)  # fmt: skip
_INVALID = frozenset((Reason.NOT_FOUND, Reason.INVALID_REQUEST))
_UPSTREAM = frozenset((Reason.UPSTREAM, Reason.UPSTREAM_FAILURE, Reason.NO_HEALTHY_BACKEND, Reason.MCP))

_TYPES = (
    ("tools/", "Tool"),
    ("prompts/", "Prompt"),
    ("resources/templates/", "ResourceTemplates"),
    ("resources/", "Resource"),
)
_METHODS = frozenset(
    (
        "initialize", "ping", "server/discover", "tools/list", "tools/call", "prompts/list", "prompts/get",
        "resources/list", "resources/read", "resources/templates/list", "resources/subscribe",
        "resources/unsubscribe", "completion/complete", "logging/setLevel", "subscriptions/listen", "tasks/get",
        "tasks/list", "tasks/result", "tasks/cancel", "tasks/update",
    )
)  # fmt: skip
_MCP_OUTCOMES = {
    "ok": Outcome.OK,
    "tool_error": Outcome.TOOL_ERROR,
    "protocol_error": Outcome.UPSTREAM_ERROR,
    "denied": Outcome.DENIED,
    "timeout": Outcome.TIMEOUT,
    "cancelled": Outcome.CLIENT_GONE,
}


def outcome_of(failure: Failure) -> Outcome:
    """How a call that failed before its first event ended."""
    reason = failure.reason
    if reason in _DENIED:
        return Outcome.DENIED
    if reason == Reason.TIMEOUT:
        return Outcome.TIMEOUT
    if reason == Reason.CLIENT_GONE:
        return Outcome.CLIENT_GONE
    if reason in _INVALID:
        return Outcome.INVALID
    return Outcome.UPSTREAM_ERROR if reason in _UPSTREAM else Outcome.ERROR


def _outcome_at_end(ending: Ending) -> Outcome:
    """How a call that was answered ended."""
    if ending.gone:
        return Outcome.CLIENT_GONE
    failure = ending.failure
    if failure is not None:
        return Outcome.CUT if failure.reason in _UPSTREAM else outcome_of(failure)
    return Outcome.OK if ending.status < 400 else Outcome.UPSTREAM_ERROR


class _Model:
    """The children of one model's labels."""

    __slots__ = ("duration", "first", "input", "output", "per_token")

    def __init__(self, families: Families, labels: tuple[str, ...]) -> None:
        self.input = families.token_usage.child("input", *labels)
        self.output = families.token_usage.child("output", *labels)
        self.duration = families.server_duration.child(*labels)
        self.first = families.first_token.child(*labels)
        self.per_token = families.per_token.child(*labels)


class Meter:
    """The policy `handle`, one for all chains of a Snapshot. journal: None keeps no records."""

    def __init__(self, families: Families, journal: Journal | None = None) -> None:
        self._families = families
        self._journal = journal
        self._extra = families.extra.values if families.extra.names else None
        self._answered = Bounded(500)
        self._models: dict[tuple[Any, ...], tuple[_Model, tuple[str, ...]]] = {}
        self._tools: dict[tuple[Any, ...], tuple[Count, Spread]] = {}
        self._known: set[tuple[str, str]] = set()
        records = families.ledger_records
        self._recorded = records.child("usage", "journal")

    async def handle(self, call: Call, next: Handler[Call, Reply]) -> Reply:
        journal = self._journal
        if journal is not None and journal.full and _billable(call):
            raise Failure(
                503,
                Reason.INTERNAL,
                "usage cannot be recorded at the moment; try again later",
                code="ledger_full",
                detail="the journal is full: its disk, or the records that wait for the ledger",
                retry_after=5.0,
            )
        admitted, began = time(), monotonic()
        try:
            reply = await next(call)
        except Failure as failure:
            self._failed(call, admitted, began, outcome_of(failure), failure.status, failure.reason)
            raise
        except BaseException as error:  # cancelled, because the client left, or a bug: recorded like any end
            if isinstance(error, Exception):
                self._failed(call, admitted, began, Outcome.ERROR, 500, Reason.INTERNAL)
            else:
                self._failed(call, admitted, began, Outcome.CLIENT_GONE, 499, Reason.CLIENT_GONE)
            raise
        context = call.context
        if isinstance(call, ModelCall):
            if call.stream:
                self._model(call, context)[0].first.observe((context.first_event or monotonic()) - began)

            def end(ending: Ending) -> None:
                self._model_ended(call, admitted, began, ending)

        else:

            def end(ending: Ending) -> None:
                self._tool_ended(call, admitted, began, ending)

        reply.ends.append(end)
        return reply

    # ---- ends
    def _model_ended(self, call: ModelCall, admitted: float, began: float, ending: Ending) -> None:
        context = call.context
        now = monotonic()
        meters, labels = self._model(call, context)
        usage = context.usage
        if usage is not None:
            meters.input.observe(usage.input)
            meters.output.observe(usage.output)
            if usage.cache_read or usage.cache_write or usage.reasoning:
                self._further(usage, labels)
        upstream = context.upstream_began
        if upstream:
            ended = context.upstream_ended or now
            meters.duration.observe(ended - upstream)
            if usage is not None and usage.output > 1 and call.stream and context.first_event:
                meters.per_token.observe((ended - context.first_event) / (usage.output - 1))
        failure = ending.failure
        reason = ending.reason if failure is None else failure.reason
        self._append(call, admitted, began, now, _outcome_at_end(ending), ending.status, reason, ending.bytes_out)

    def _tool_ended(self, call: Call, admitted: float, began: float, ending: Ending) -> None:
        now = monotonic()
        outcome = _outcome_at_end(ending)
        if outcome is Outcome.OK:
            outcome = _MCP_OUTCOMES.get(call.context.mcp_outcome, outcome)
        if isinstance(call, ToolCall):
            self._tool(call, now - began, outcome)
        failure = ending.failure
        reason = ending.reason if failure is None else failure.reason
        self._append(call, admitted, began, now, outcome, ending.status, reason, ending.bytes_out)

    def _failed(self, call: Call, admitted: float, began: float, outcome: Outcome, status: int, reason: str) -> None:
        now = monotonic()
        if isinstance(call, ToolCall):
            self._tool(call, now - began, outcome)
        try:
            self._append(call, admitted, began, now, outcome, status, reason, 0)
        except Failure:
            pass  # the call fails already, for its own reason; the journal counts its failures

    def _append(
        self,
        call: Call,
        admitted: float,
        began: float,
        now: float,
        outcome: Outcome,
        status: int,
        reason: str,
        bytes_out: int,
    ) -> None:
        journal = self._journal
        if journal is None:
            return
        context = call.context
        at = int(admitted * 1e6)
        total = int((now - began) * 1e6)
        record = UsageRecord(admitted_at=at, ended_at=at + total, outcome=outcome)
        record.request_id = context.request_id
        record.route = context.route
        record.dialect = context.dialect
        record.operation = context.operation
        record.backend = context.backend
        record.reason = reason
        record.status = status
        record.total_us = total
        record.bytes_in = context.bytes_in or call.request.body_size
        record.bytes_out = bytes_out
        if context.attempts > 1:
            record.attempt = context.attempts
        if context.server:
            record.server = context.server
            record.tool = context.tool
        else:
            record.model_asked = context.model_asked
            record.model_answered = context.model_answered
            record.provider = context.provider
            record.stream = context.stream
        principal = call.principal
        if principal is not None:
            record.org = principal.org
            record.user = principal.user
            record.key = principal.key
            record.agent = principal.agent
        usage = context.usage
        if usage is not None:
            record.input = usage.input
            record.output = usage.output
            record.cache_read = usage.cache_read
            record.cache_write = usage.cache_write
            record.reasoning = usage.reasoning
            record.estimated = usage.estimated
        if context.upstream_began:
            record.upstream_us = int(((context.upstream_ended or now) - context.upstream_began) * 1e6)
            if context.first_event:
                record.ttft_us = int((context.first_event - began) * 1e6)
        journal.append(record)
        self._recorded.value += 1

    # ---- children
    def _model(self, call: ModelCall, context: Context) -> tuple[_Model, tuple[str, ...]]:
        """The children for this call's labels, and the labels."""
        extra = () if self._extra is None else self._extra(call.request, context)
        key = (call.operation, context.provider, call.label, context.model_answered, context.route, extra)
        found = self._models.get(key)
        if found is None:
            labels = (
                "embeddings" if call.operation == "embeddings" else "chat",
                context.provider,
                call.label,
                self._answered(context.model_answered),
                context.route,
                *extra,
            )
            found = (_Model(self._families, labels), labels)
            if len(self._models) < _REMEMBERED:
                self._models[key] = found
        return found

    def _further(self, usage: Usage, labels: tuple[str, ...]) -> None:
        child = self._families.token_usage.child
        if usage.cache_read:
            child("cache_read", *labels).observe(usage.cache_read)
        if usage.cache_write:
            child("cache_write", *labels).observe(usage.cache_write)
        if usage.reasoning:
            child("reasoning", *labels).observe(usage.reasoning)

    def _tool(self, call: ToolCall, took: float, outcome: Outcome) -> None:
        context = call.context
        resource = call.name
        if resource and (call.server, resource) not in self._known:
            # A name is the caller's word until the server has answered to it.
            if outcome in (Outcome.OK, Outcome.TOOL_ERROR) and len(self._known) < _REMEMBERED and len(resource) <= 128:
                self._known.add((call.server, resource))
            else:
                resource = OTHER
        extra = () if self._extra is None else self._extra(call.request, context)
        key = (call.method, call.server, resource, context.route, outcome, context.mcp_outcome, extra)
        found = self._tools.get(key)
        if found is None:
            method = call.method if call.method in _METHODS else OTHER
            kind = next((kind for start, kind in _TYPES if method.startswith(start)), "")
            said = context.mcp_outcome or _MCP_WORDS.get(outcome, "protocol_error")
            found = (
                self._families.mcp_requests.child(method, kind, call.server, resource, context.route, *extra),
                self._families.mcp_duration.child(call.server, resource, said, *extra),
            )
            if len(self._tools) < _REMEMBERED:
                self._tools[key] = found
        found[0].value += 1
        found[1].observe(took)


_MCP_WORDS = {
    Outcome.OK: "ok",
    Outcome.TOOL_ERROR: "tool_error",
    Outcome.DENIED: "denied",
    Outcome.TIMEOUT: "timeout",
    Outcome.CLIENT_GONE: "cancelled",
}


def _billable(call: Call) -> bool:
    return isinstance(call, ModelCall) or (isinstance(call, ToolCall) and call.method == "tools/call")
