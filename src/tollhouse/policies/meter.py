"""The call floor's meter: what a call used goes to the metrics, and as one record to the journal.

Rule: outermost, and one record for each call, however it ends: refused, failed, cut, left, or answered. The record
is in the journal before the last byte of the answer is released; when it cannot be written the answer fails, and
while the journal is full no billable call begins. What a model's call cost follows from what it used; where no price is
known it is None and counted, never 0.

A name is the caller's word until somebody has answered to it. Ledger and metrics keep the names they have seen for
ever, so a tool's name, and a model's under a `*`, is `other` until then, and beyond so many; the access log has it.

What a provider tells that cannot be is charged at its estimate, whoever is charged: no answer makes a record that the
ledger cannot take. A call that holds money nobody may pass is written down before its upstream is asked (`intend`), as
what is due if this process dies then.
"""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from secrets import token_hex
from time import monotonic, time
from typing import Any

import msgspec

from tollhouse.core.call import Call, ModelCall, ToolCall, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.prices import Prices
from tollhouse.ledger.records import INTENT, MOST_NANO, MOST_RAW, USAGE, Outcome, UsageFacts
from tollhouse.observe.families import Bounded, Families
from tollhouse.observe.metrics import OTHER, Count, Spread
from tollhouse.policies.holds import DOUBT, charged, disbelieve, doubtful, passed_on
from tollhouse.policies.labels import labels_of
from tollhouse.policies.outcomes import how_it_failed, outcome_at_end
from tollhouse.policies.quotes import Quotes
from tollhouse.policies.rows import Rows
from tollhouse.policies.whose import tags_of
from tollhouse.store.base import Counter
from tollhouse.wire.llm.tokens import MOST_OUTPUT

__all__ = ["Meter"]

_REMEMBERED = 10_000  # names
_ASKED, _LONGEST = 256, 128  # names of models under a `*`, and characters of any name
_FRAME = 64  # tokens of a prompt that its body does not have
_OK, _ANSWERED = Outcome.OK, Reason.UPSTREAM  # to ask an Enum for a member costs as much as a call
_UNUSED = Usage()

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


class _Model:
    """The children of one model's labels."""

    __slots__ = ("child", "duration", "first", "input", "labels", "output", "per_token")

    def __init__(self, families: Families, labels: tuple[str, ...]) -> None:
        self.labels = labels
        self.child = families.token_usage.child
        self.input = self.child("input", *labels).note
        self.output = self.child("output", *labels).note
        self.duration = families.server_duration.child(*labels).note
        self.first = families.first_token.child(*labels)
        self.per_token = families.per_token.child(*labels)

    def observe(self, call: ModelCall, usage: Usage, ended: float) -> None:
        """An answer that came to its end."""
        self.input(usage.input)
        self.output(usage.output)
        if usage.cache_read or usage.cache_write or usage.reasoning:
            for kind, n in (
                ("cache_read", usage.cache_read), ("cache_write", usage.cache_write), ("reasoning", usage.reasoning)
            ):  # fmt: skip
                if n:
                    self.child(kind, *self.labels).observe(n)
        context = call.context
        upstream = context.upstream_began
        if upstream:
            ended = context.upstream_ended or ended
            self.duration(ended - upstream)
            if context.stream and usage.output > 1 and context.first_event:
                self.per_token.observe((ended - context.first_event) / (usage.output - 1))


class _Row:
    """What calls with the same labels have in common: the half of a record that says them, and a model's series."""

    __slots__ = ("cost", "counts", "denied", "model", "recorded")

    def __init__(self, recorded: bytes, counts: bool, denied: bool) -> None:
        self.recorded = recorded
        self.counts = counts  # as a call, if it was let in
        self.denied = denied
        self.model: _Model | None = None
        self.cost: Count | None = None


class Meter:
    """The policy `handle`, one for all chains of a Snapshot. journal: None keeps no records. prices: None knows no
    price. counter: what is told of every record, None where nobody ever draws on it. quotes: what calls may use;
    without them each provider is believed, but about calls that hold something. tools: server and name of those that
    are configured, which are nobody's own word."""

    def __init__(
        self,
        families: Families,
        journal: Journal | None = None,
        prices: Prices | None = None,
        counter: Counter | None = None,
        quotes: Quotes | None = None,
        tools: Iterable[tuple[str, str]] = (),
    ) -> None:
        self._quotes = quotes
        self._doubts = families.budget_doubts.child()
        self._families = families
        self._journal = journal
        self._prices = prices
        self._counter = counter
        self._encode: Callable[[UsageFacts], bytes] = msgspec.json.Encoder().encode
        self._extra = families.extra.values if families.extra.names else None
        self._answered = Bounded(500)
        self._orgs = Bounded(500)
        self._priced = families.price_lookups.child("hit")
        self._unpriced = families.price_lookups.child("miss")
        self._rows: Rows[_Row] = Rows()
        self._tools: dict[tuple[Any, ...], tuple[Count, Spread]] = {}
        self._known = set(tools)
        self._asked: set[str] = set()
        records = families.ledger_records
        self._recorded = records.child("usage", "journal")
        self._own, self._number = token_hex(16), 0  # what numbers posts by, where there is no journal

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 503 while the journal is full."""
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
        tags = call.request.header(b"x-tollhouse-tags")
        if tags is not None:
            call.context.tags = tags_of(tags)
        if type(call) is not ModelCall:
            return self._tool_call(call, next)
        # A request asks one model, and how the request ended tells how the call did: nothing is waited for here.
        call.request.ends.append(partial(self._model_ended, call, monotonic()))
        return self._stream(call, next) if call.stream else next(call)

    def intend(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """A policy that stands innermost, where calls may hold money that nobody may pass. Raises Failure 503 where the
        journal cannot be written."""
        hold, journal = call.hold, self._journal
        if hold is not None and journal is not None and hold.pending:
            context = call.context
            now = int(time() * 1e6)
            facts = UsageFacts(hold.at or now, max(now, hold.at), context.request_id)
            facts.bytes_in = context.bytes_in or call.request.body_size
            facts.run_id, facts.parent_id, facts.hold = context.run_id, context.parent_id, hold.id
            row = self._row(call, Outcome.LOST, 0, "")
            hold.begin(partial(_intend, journal, self._encode, facts, row.recorded))
        return next(call)

    async def _stream(self, call: ModelCall, next: Handler[Call, Reply]) -> Reply:
        began = monotonic()
        reply = await next(call)
        context = call.context
        if context.cached:  # no model has answered
            return reply
        row = self._row(call, _OK, reply.status, _ANSWERED)
        model = row.model or self._model(call, row)
        model.first.observe((context.first_event or monotonic()) - began)
        return reply

    async def _tool_call(self, call: Call, next: Handler[Call, Reply]) -> Reply:
        began = monotonic()
        later = isinstance(call, ToolCall) and call.round > 0  # which policies may set back
        try:
            reply = await next(call)
        except BaseException as error:  # also a bug, or cancelled: recorded like any end
            self._failed(call, began, later, *how_it_failed(error, call.context.stopped))
            raise
        reply.ends.append(partial(self._tool_ended, call, began, later))
        return reply

    # ---- ends
    def _model_ended(self, call: ModelCall, began: float, ending: Ending) -> None:
        now = monotonic()
        failure = ending.failure
        status = ending.status
        reason = ending.reason if failure is None else failure.reason
        outcome = _OK if status < 400 and failure is None else outcome_at_end(ending)
        usage = call.context.usage
        # No call has less than its body at the most: few answers are looked at any closer.
        if usage is not None and (call.hold is not None or usage.total > DOUBT * (call.request.body_size + _FRAME)):
            usage = self._believed(call, usage, passed_on(call.context, ending.bytes_out))
        row = self._row(call, outcome, status, reason)
        if usage is not None and not call.context.cached:
            self._observe(call, usage, row, began, now)
        if self._journal is None:
            self._unrecorded(call, row)
            return
        try:
            self._append(self._journal, row, call, began, now, ending.bytes_out)
        except Failure:
            if status < 400:
                raise  # else it fails already, for its own reason; the journal counts its failures

    def _observe(self, call: ModelCall, usage: Usage, row: _Row, began: float, now: float) -> None:
        """A model has answered."""
        model = row.model or self._model(call, row)
        model.observe(call, usage, now)
        if call.context.stream and not call.stream and call.context.first_event:
            model.first.observe(call.context.first_event - began)  # of one in a session, which nobody waits for
        if self._prices is not None:
            self._charge(self._prices, call, usage, row)

    def _tool_ended(self, call: Call, began: float, later: bool, ending: Ending) -> None:
        now = monotonic()
        outcome = outcome_at_end(ending, call.context.mcp_outcome)
        if isinstance(call, ToolCall):
            self._tool(call, now - began, outcome)
        if self._journal is not None:
            failure = ending.failure
            reason = ending.reason if failure is None else failure.reason
            row = self._row(call, outcome, ending.status, reason, later)
            self._append(self._journal, row, call, began, now, ending.bytes_out)
        elif call.hold is not None:
            self._unrecorded(call, self._row(call, outcome, ending.status, ending.reason, later))

    def _failed(self, call: Call, began: float, later: bool, outcome: Outcome, status: int, reason: str) -> None:
        now = monotonic()
        if isinstance(call, ToolCall):
            self._tool(call, now - began, outcome)
        if self._journal is not None:
            try:
                self._append(self._journal, self._row(call, outcome, status, reason, later), call, began, now, 0)
            except Failure:
                pass  # the call fails already, for its own reason; the journal counts its failures
        elif call.hold is not None:
            self._unrecorded(call, self._row(call, outcome, status, reason, later))

    def _believed(self, call: ModelCall, usage: Usage, passed: int) -> Usage:
        """What is charged of it. passed: as of `passed_on`."""
        hold, context = call.hold, call.context
        believed = usage if hold is None else hold.believed(usage, passed)
        if believed is usage and doubtful(usage, call.request.body_size + _FRAME) and self._quotes is not None:
            quote = self._quotes.of(call)
            estimated = quote.estimate > 0  # else it uses none itself, or nobody can tell
            most = sum(quote.most()) if estimated else 2 * MOST_OUTPUT
            if doubtful(usage, most):
                self._doubts.inc()
                answer = quote.output if quote.output >= 0 else self._quotes.likely(call.label)
                believed = charged(usage, most, (quote.input, answer) if estimated else (0, 0), passed)
        if believed is not usage:
            disbelieve(context, believed)
        return believed

    def _unrecorded(self, call: Call, row: _Row) -> None:
        """There is no ledger: what was spent is known to the counter alone."""
        hold = call.hold
        if hold is not None:
            context = call.context
            hold.draws(context.usage, context.cost_nano, _counts(row, call))
            self._number += 1
            hold.post(self._own, self._number)

    def _charge(self, prices: Prices, call: ModelCall, usage: Usage, row: _Row) -> None:
        cost = prices.cost(call.context)
        if cost is None:
            if usage.total:  # counting tokens uses none
                self._unpriced.value += 1
            return
        self._priced.value += 1
        spent = row.cost
        if spent is None:
            context = call.context
            extra = () if self._extra is None else self._extra(call.request, context)
            org = () if "org" in self._families.extra.names else (self._org(call),)  # or the operator says what it is
            spent = row.cost = self._families.cost.child(context.provider, call.label, context.route, *org, *extra)
        spent.value += cost * 1e-9

    def _append(self, journal: Journal, row: _Row, call: Call, began: float, now: float, bytes_out: int) -> None:
        context = call.context
        usage = context.usage or _UNUSED
        ended = int(time() * 1e6)
        total = int((now - began) * 1e6)
        upstream = first = 0
        if context.upstream_began:
            upstream = int(((context.upstream_ended or now) - context.upstream_began) * 1e6)
            if upstream < 1:
                upstream = 1  # which says that it was asked
            if context.first_event:
                first = int((context.first_event - began) * 1e6)
        cost = context.cost_nano
        if cost is not None and cost > MOST_NANO:
            cost = context.cost_nano = MOST_NANO
        saved = context.saved_nano
        hold = call.hold
        draws: tuple[tuple[str, int], ...] = ()
        at, held, begun = ended - total, 0, ""
        if hold is not None:
            draws = hold.draws(context.usage, cost, _counts(row, call))
            at = hold.at or at
            held = min(hold.nano, MOST_NANO)
            begun = hold.id if hold.begun else ""
        facts = UsageFacts(
            at,
            ended if ended > at else at,
            context.request_id,
            usage.input,
            usage.output,
            usage.cache_read,
            usage.cache_write,
            usage.reasoning,
            cost,
            first,
            total,
            upstream,
            context.bytes_in or call.request.body_size,
            bytes_out,
            usage.cache_write_1h,
            usage.audio_input,
            usage.audio_output,
            usage.image_input,
            usage.image_output,
            context.run_id,
            context.parent_id,
            hold.id if hold is not None else "",
            held,
            saved if saved < MOST_NANO else MOST_NANO,
            context.withheld_tokens,
            draws,
        )
        if context.raw_usage:
            facts.raw_usage = context.raw_usage[:MOST_RAW]
        seq = journal.write(self._encode(facts)[:-1] + row.recorded, USAGE, begun)
        if hold is not None:
            hold.post(journal.id, seq)
        elif self._counter is not None:
            self._counter.post(journal.id, seq, "")
        self._recorded.value += 1

    def _org(self, call: Call) -> str:
        return "" if call.principal is None else self._orgs(call.principal.org)

    # ---- what is remembered
    def _row(self, call: Call, outcome: Outcome, status: int, reason: str, later: bool = False) -> _Row:
        """later: it is a later round of a call that was recorded before."""
        context = call.context
        usage = context.usage
        estimated = outcome is Outcome.LOST or (usage is not None and usage.estimated)
        key: tuple[Any, ...] = (
            context.model_answered, context.model_asked, call.principal, outcome, status, reason, context.attempts,
            context.route, context.dialect, context.operation, context.provider, context.backend, estimated,
            context.stream,
        )  # fmt: skip
        if context.server:
            key = (*key, context.server, context.tool, later)
        if context.tags or context.guard or context.cached:
            key = (*key, context.tags, context.guard, context.cached)
        if self._extra is not None:
            key = (*key, self._extra(call.request, context))
        row = self._rows.get(key)
        if row is None:
            name = self._name(call, outcome)
            answered = self._answered(context.model_answered)
            recorded = labels_of(call, outcome, status, reason, estimated, name, answered, later)
            counts = outcome is not Outcome.INVALID and reason != Reason.OVERLOADED and not later
            row = _Row(recorded, counts and _billable(call), outcome is Outcome.DENIED)
            if name != OTHER:  # which another name, or a later call, is not
                self._rows.keep(key, row, len(row.recorded), call.principal)
        return row

    def _name(self, call: Call, outcome: Outcome) -> str:
        """What is asked, where somebody has answered to it, else "other"."""
        if isinstance(call, ToolCall):
            name = call.name
            if name and (call.server, name) not in self._known:
                answered = outcome is _OK or outcome is Outcome.TOOL_ERROR
                if not answered or len(self._known) >= _REMEMBERED or len(name) > _LONGEST:
                    return OTHER
                self._known.add((call.server, name))
            return name
        name = call.context.model_asked
        if isinstance(call, ModelCall) and call.label != name and name not in self._asked:
            if outcome is not _OK or len(self._asked) >= _ASKED or len(name) > _LONGEST:
                return OTHER
            self._asked.add(name)
        return name

    def _model(self, call: ModelCall, row: _Row) -> _Model:
        """The row's series, from its first answer on."""
        context = call.context
        extra = () if self._extra is None else self._extra(call.request, context)
        labels = (
            "embeddings" if call.operation == "embeddings" else "chat",
            context.provider,
            call.label,
            self._answered(context.model_answered),
            context.route,
            *extra,
        )
        model = row.model = _Model(self._families, labels)
        return model

    def _tool(self, call: ToolCall, took: float, outcome: Outcome) -> None:
        context = call.context
        resource = self._name(call, outcome)
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


def _counts(row: _Row, call: Call) -> bool:
    """Whether a call that was let in is one of those that are counted: `ledger.answers` says the same of records."""
    return row.counts and (not row.denied or call.context.upstream_began > 0.0)


def _intend(
    journal: Journal,
    encode: Callable[[UsageFacts], bytes],
    facts: UsageFacts,
    recorded: bytes,
    usage: Usage,
    nano: int,
    draws: tuple[tuple[str, int], ...],
) -> None:
    """As of `core.call.Hold.begin`."""
    facts.input, facts.output = usage.input, usage.output
    facts.cost_nano = facts.held_nano = nano
    facts.draws = draws
    journal.write(encode(facts)[:-1] + recorded, INTENT, facts.hold)


def _billable(call: Call) -> bool:
    return isinstance(call, ModelCall) or (isinstance(call, ToolCall) and call.method == "tools/call")
