"""Calls that wait until somebody approves them.

Rule: a call that needs approval and does not get it, for whatever reason, is refused. It is asked about last, when
rules and limits have let it pass. An approval is good for one call, and for as long as `remember` says for further ones
of the same caller, agent and thing under the same rule; a caller without a name is asked each time. Lists are not
concerned: what waits for approval is listed.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from tollhouse.core.call import APPROVAL, Call, ModelCall, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.expr import Memo, Outcome
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.reply import Reply
from tollhouse.policies.authorize.desk import Answer, Entry
from tollhouse.policies.authorize.question import cut, elicited, shown
from tollhouse.policies.authorize.queue import Queue
from tollhouse.policies.authorize.rules import Rule, names_something
from tollhouse.policies.authorize.spec import ApprovalsSpec
from tollhouse.policies.question import Question, can_ask, put
from tollhouse.store.base import KeyValue
from tollhouse.wire.mcp.letters import visible

__all__ = ["Approvals"]

_KEPT = b"1"
_STRICTEST = ("operator", "user", "any")

Count = Callable[[str, str], None]
"""Told who was asked (user, operator, nobody) and what became of it."""


class Approvals:
    """The approve rules in force for one chain. values: where approvals are kept. queue: where operators are asked,
    None where nobody could look. users: the agent's user can be asked here."""

    def __init__(
        self,
        rules: Sequence[Rule],
        spec: ApprovalsSpec,
        values: KeyValue,
        queue: Queue | None,
        clock: Clock,
        count: Count,
        *,
        users: bool = True,
    ) -> None:
        self._rules = sorted(rules, key=lambda rule: _STRICTEST.index(rule.spec.by))
        self._memo = Memo([rule.expression for rule in rules])
        self._spec = spec
        self._values = values
        self._queue = queue
        self._clock = clock
        self._count = count
        self._users = users

    def handle(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 403 for a call that is not approved, 429 and 503 where it cannot wait."""
        if self._memo.get(call) is True:
            return next(call)
        rule = self._wanted(call)
        return next(call) if rule is None else self._approved(rule, call, next)

    def handle_request(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """The same for a plain route."""
        call = Call(request, request.context)
        if self._memo.get(call) is True:
            return next(request)
        rule = self._wanted(call)
        return next(request) if rule is None else self._approved_request(rule, call, next)

    def _wanted(self, call: Call) -> Rule | None:
        """The strictest rule that has the call wait, None when none does."""
        if not names_something(call):
            return None
        found = None
        for rule in self._rules:
            said = rule.expression.ask(call)
            if said is Outcome.YES or said is Outcome.DOUBT:
                if not rule.shadow:
                    found = rule
                    break
                call.context.shadow = call.context.shadow or rule.name
                self._count("nobody", "shadow")
        if found is None and not any(rule.shadow for rule in self._rules):
            self._memo.put(call, True)
        return found

    async def _approved_request(self, rule: Rule, call: Call, next: Handler[Request, Response]) -> Response:
        if not await self._is_kept(rule, call):
            await self._by_operator(rule, call)
        return await next(call.request)

    async def _approved(self, rule: Rule, call: Call, next: Handler[Call, Reply]) -> Reply:
        if not isinstance(call, ToolCall):
            if not await self._is_kept(rule, call):
                await self._by_operator(rule, call)
            return await next(call)
        consent = call.consent if call.consent is not None and call.consent.about == APPROVAL else None
        if call.round and consent is None:
            return await next(call)  # it goes on with what was approved in its first round
        call.consent = None
        call.round = 0  # for all behind this it is the first one
        if await self._is_kept(rule, call):
            return await next(call)
        if rule.spec.by == "operator" or not self._users or not can_ask(call):
            if rule.spec.by == "user":
                self._count("nobody", "refused")
                raise self._refused(rule, call, "nobody can be asked to approve this call through this agent", "nobody")
            await self._by_operator(rule, call)
            return await next(call)
        if consent is not None:
            if consent.action != "accept" or not await consent.claim():
                raise self._declined(rule, call, consent.action)
            await self._agreed(rule, call)
            return await next(call)
        call.context.rule = rule.name
        timeout = self._patience(call)
        if call.session is None:
            return put(APPROVAL, call, elicited(call), timeout)
        asks = Question(
            APPROVAL,
            call,
            elicited(call),
            self._clock,
            timeout,
            go_on=partial(self._go_on, rule, next),
            refused=partial(self._declined, rule),
        )
        return asks.reply()

    def _patience(self, call: Call) -> float:
        """Seconds to wait: what is approved after the request's deadline could not be done any more."""
        return max(min(self._spec.timeout, call.context.deadline - monotonic()), 0.001)

    # ---- the agent's user
    async def _go_on(self, rule: Rule, next: Handler[Call, Reply], _: Question, call: ToolCall) -> Reply:
        await self._agreed(rule, call)
        return await next(call)

    async def _agreed(self, rule: Rule, call: Call) -> None:
        self._count("user", "approved")
        self._note(rule, call, "approved", "user")
        await self._keep(rule, call, rule.spec.remember)

    def _declined(self, rule: Rule, call: Call, action: str) -> Failure:
        """action: what was done instead, "" for nothing in time."""
        if not action:
            self._count("user", "timeout")
            return self._late(rule, call)
        self._count("user", "refused")
        return self._refused(rule, call, "the user did not approve this call", "user")

    # ---- an operator
    async def _by_operator(self, rule: Rule, call: Call) -> None:
        """Return when an operator has approved. Raises Failure."""
        queue, spec = self._queue, self._spec
        assert queue is not None  # who builds this has seen to it
        call.context.rule = rule.name
        answer: Answer | None = await queue.ask(
            _entry(rule, call), self._patience(call), most=spec.waiting, most_each=spec.waiting_each
        )
        if answer is None:
            self._count("operator", "timeout")
            raise self._late(rule, call)
        who = f"operator:{answer.by}" if answer.by else "operator"
        if not answer.approved:
            self._count("operator", "refused")
            raise self._refused(rule, call, "this call was not approved", who)
        self._count("operator", "approved")
        self._note(rule, call, "approved", who)
        await self._keep(rule, call, rule.spec.remember if answer.remember is None else answer.remember)

    # ---- what is kept
    async def _is_kept(self, rule: Rule, call: Call) -> bool:
        if _is_anybody(call) or await self._values.get(_key(rule, call)) is None:
            return False
        self._note(rule, call, "approved", "kept")
        return True

    async def _keep(self, rule: Rule, call: Call, seconds: float | None) -> None:
        if seconds and not _is_anybody(call):
            await self._values.put(_key(rule, call), _KEPT, seconds)

    # ---- what is said
    def _note(self, rule: Rule, call: Call, decision: str, who: str) -> None:
        context = call.context
        context.rule, context.decision, context.approver = rule.name, decision, who

    def _late(self, rule: Rule, call: Call) -> Failure:
        return self._refused(rule, call, "nobody approved this call in time", "timeout", code="approval_timeout")

    def _refused(self, rule: Rule, call: Call, message: str, who: str, *, code: str = "not_approved") -> Failure:
        self._note(rule, call, "deny", who)
        return Failure(403, Reason.AUTHORIZATION, message, code=code, detail=f"{rule.name}: {message}")


def _what(call: Call) -> tuple[str, ...]:
    """The thing that is asked for."""
    if isinstance(call, ToolCall):
        return ("mcp", call.server, call.method, call.name)
    if isinstance(call, ModelCall):
        return ("model", call.model)
    request = call.request
    return ("http", call.context.route, request.method.decode("latin-1"), request.path.decode("latin-1"))


def _is_anybody(call: Call) -> bool:
    """Whether nobody knows who calls: then what was approved for one would be for all."""
    return call.principal is None or call.principal.source == "anonymous"


def _key(rule: Rule, call: Call) -> str:
    principal = call.principal
    who = (principal.id, principal.agent, principal.client, principal.user) if principal is not None else ()
    about = msgspec.json.encode((who, _what(call), rule.name, rule.spec.source))
    return f"approved:{hashlib.blake2b(about, digest_size=24).hexdigest()}"


def _entry(rule: Rule, call: Call) -> Entry:
    principal = call.principal
    named: dict[str, Any] = {}
    if principal is not None:
        named = {
            "principal": principal.id, "user": principal.user, "agent": principal.agent or principal.client,
            "org": principal.org,
        }  # fmt: skip
    kind, *rest = _what(call)
    if isinstance(call, ToolCall):
        what = f"{call.server}/{call.name}" if call.server else call.name
        what = what if call.method == "tools/call" else f"{call.method} {what}"
        named["arguments"] = shown(call)
    else:
        what = f"{kind} {' '.join(rest)}"
        if kind == "http" and call.request.query:  # it says what is done no less than the path
            named["arguments"] = cut(f"?{call.request.query.decode('latin-1')}")
    return Entry("", 0.0, 0.0, visible(what), rule.name, request=call.context.request_id, **named)
