"""Audit: who did what, and what was said to it, as one record each in the chain of `ledger.audit`.

Rule: outermost, so that refusals are seen, and one record for each call, however it ends: it is in the journal before
the last byte of the answer is released. Where it cannot be written the answer fails, and while the journal is full
nothing begins that would need one (`on_failure: block`); or it passes, counted and logged (`allow`). None is sampled.

What only asks what there is (lists, `initialize`, `ping`) is no deed: of that, refusals are recorded alone.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic
from typing import Annotated, Any, Final, Literal, Self

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from tollhouse.core.call import Call, Context, ModelCall, Principal, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending, Request, Response
from tollhouse.core.identity import Event
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Size, Spec
from tollhouse.ledger.audit import AuditFacts, Chain, Seal
from tollhouse.ledger.records import Outcome
from tollhouse.observe.families import Families
from tollhouse.policies.outcomes import how_it_failed, outcome_at_end
from tollhouse.policies.rows import Rows

__all__ = ["Audit", "AuditSetting", "AuditSpec", "Deed"]

log = logging.getLogger("tollhouse.audit")

_LONGEST = 2048  # characters of a name
_SHORTEST = 32  # bytes of a key
_TELL_EVERY = 10.0  # seconds, that records are lost
_LOOKS: Final = frozenset(
    (
        "initialize", "ping", "server/discover", "tools/list", "prompts/list", "resources/list",
        "resources/templates/list", "logging/setLevel", "tasks/list",
    )
)  # fmt: skip
_NOBODY = Principal("", source="")
_DENIED = Outcome.DENIED


def _key(value: SecretStr) -> SecretStr:
    text = value.get_secret_value().strip()
    if len(text.encode()) < _SHORTEST:
        raise ValueError(f"shorter than {_SHORTEST} bytes; make one with: openssl rand -base64 32")
    return SecretStr(text)


class AuditSpec(Spec):
    """What is recorded of who did what, and how."""

    mode: Literal["on", "off"] = Field(default="on", description="off: nothing is recorded")
    arguments: Literal["hash", "keep", "off"] = Field(
        default="hash", description="of tools and prompts: their hash (HMAC-SHA-256), also the words, or nothing"
    )
    keep_bytes: Size = Field(default=4096, ge=1, le=1 << 20, description="with `keep`: what is longer is cut")
    on_failure: Literal["block", "allow"] = Field(
        default="block", description="what cannot be recorded fails, or is let pass with an alarm"
    )
    refused: Literal["all", "known"] = Field(
        default="all", description="known: what is refused at the door because nobody knows who asks is left out"
    )
    log: bool = Field(default=False, description="each record also as a line of the access log")
    key: Annotated[SecretStr, AfterValidator(_key)] | None = Field(
        default=None, description="what records are sealed with; default: one in a file beside the ledger"
    )
    former_keys: tuple[Annotated[SecretStr, AfterValidator(_key)], ...] = Field(
        default=(), description="that older records are sealed with, for `tollhouse audit verify`"
    )

    @model_validator(mode="after")
    def _effect(self) -> Self:
        given = self.model_fields_set - {"mode"}
        if self.mode == "off" and given:
            raise ValueError(f"`{min(given)}` has no effect with `mode: off`; leave it out")
        if self.arguments != "keep" and "keep_bytes" in given:
            raise ValueError("`keep_bytes` has no effect without `arguments: keep`")
        return self


def _setting(value: Any) -> Any:
    """on and off stand for {mode: ...}."""
    if isinstance(value, str):
        if value not in ("on", "off"):
            raise ValueError("not a way to audit; write on, off, or {arguments: hash, ...}")
        return {"mode": value}
    return value


AuditSetting = Annotated[AuditSpec, BeforeValidator(_setting, json_schema_input_type=Literal["on", "off"] | AuditSpec)]
"""on, off, or {arguments, on_failure, ...}."""


class Deed:
    """What an operator does by the admin API. operation: like `admin.keys.create`. target: what it is done to."""

    __slots__ = ("operation", "target")

    def __init__(self, operation: str, target: str) -> None:
        self.operation = operation
        self.target = target


class Audit:
    """One for all chains of a Snapshot. line: takes each record's JSON, for the log."""

    def __init__(
        self,
        spec: AuditSpec,
        chain: Chain,
        seal: Seal,
        families: Families,
        line: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self._chain = chain
        self._seal = seal
        self._line = line
        self._arguments = spec.arguments
        self._keep = spec.keep_bytes
        self._blocks = spec.on_failure == "block"
        self._known = spec.refused == "known"
        self._rows: Rows[bytes] = Rows()
        self._written = families.ledger_records.child("audit", "journal")
        self._lost = families.ledger_errors.child("audit", "journal")
        self._tell_at = 0.0

    # ---- the call floor
    def call(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Raises Failure 503 while nothing can be recorded."""
        if type(call) is ModelCall:
            self._may_begin()
            # A request asks one model, and how the request ended tells how the call did.
            call.request.ends.append(partial(self._model_ended, call, monotonic()))
            return next(call)
        return self._tool_call(call, next)

    async def _tool_call(self, call: Call, next: Handler[Call, Reply]) -> Reply:
        began = monotonic()
        if not (isinstance(call, ToolCall) and call.method in _LOOKS):
            self._may_begin()
        try:
            reply = await next(call)
        except BaseException as error:  # also a bug, or cancelled: recorded like any end
            self._failed(call, began, *how_it_failed(error, call.context.stopped))
            raise
        reply.ends.append(partial(self._tool_ended, call, began))
        return reply

    def admission(self, call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        """Before the rules for what reaches no server: who is refused a list, or anything else of MCP, is told so in an
        answer that is no refusal to HTTP; and a program that the gateway itself runs is a deed. Raises Failure 503
        while nothing can be recorded."""
        return self._admitted(call, next) if isinstance(call, ToolCall) else next(call)

    async def _admitted(self, call: ToolCall, next: Handler[Call, Reply]) -> Reply:
        began = monotonic()
        runs = call.method == "tools/call" and bool(call.name)
        if runs:
            self._may_begin()
        try:
            reply = await next(call)
        except BaseException as error:
            outcome, status, reason = how_it_failed(error, call.context.stopped)
            if runs or outcome is _DENIED:
                self._failed(call, began, outcome, status, reason)
            raise
        if runs:
            call.request.ends.append(partial(self._tool_ended, call, began))
        return reply

    def _model_ended(self, call: ModelCall, began: float, ending: Ending) -> None:
        context = call.context
        failure = ending.failure
        reason = ending.reason if failure is None else failure.reason
        target = context.model_asked or call.model
        try:
            self._record(
                call.request, context, context.operation, "", target, outcome_at_end(ending), ending.status, reason,
                began, call.principal,
            )  # fmt: skip
        except Failure:
            if ending.status < 400:
                raise  # else it fails already, for its own reason; the journal counts its failures

    def _tool_ended(self, call: Call, began: float, ending: Ending) -> None:
        outcome = outcome_at_end(ending, call.context.mcp_outcome)
        failure = ending.failure
        self._tool(call, began, outcome, ending.status, ending.reason if failure is None else failure.reason)

    def _failed(self, call: Call, began: float, outcome: Outcome, status: int, reason: str) -> None:
        try:
            self._tool(call, began, outcome, status, reason)
        except Failure:
            pass  # the call fails already, for its own reason; the journal counts its failures

    def _tool(self, call: Call, began: float, outcome: Outcome, status: int, reason: str) -> None:
        context = call.context
        if not isinstance(call, ToolCall):
            self._record(
                call.request, context, context.operation, "", context.model_asked, outcome, status, reason, began,
                call.principal,
            )  # fmt: skip
            return
        if outcome is not _DENIED and call.method in _LOOKS:
            return
        own = ""
        if self._arguments != "off":
            raw = call.arguments
            if raw:
                own = self._said(bytes(raw))
        self._record(
            call.request, context, call.method, call.server, call.name, outcome, status, reason, began, call.principal,
            own,
        )  # fmt: skip

    def _said(self, raw: bytes) -> str:
        hashed = f',"arguments_hash":"{self._seal.of_arguments(raw).decode()}"'
        if self._arguments == "hash":
            return hashed
        text = raw[: self._keep].decode("utf-8", "replace")
        if len(raw) > self._keep:
            text += "…"
        return f'{hashed},"arguments":{_json(text)}'

    # ---- the request floor
    def service(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """Before plain HTTP services: each request is a deed. Raises Failure 503 while nothing can be recorded."""
        self._may_begin()
        request.ends.append(partial(self._service_ended, request, monotonic()))
        return next(request)

    def door(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """Before endpoints that make calls: who was not let in never made one."""
        request.ends.append(partial(self._door_ended, request, monotonic()))
        return next(request)

    def issuer(self, name: str, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """Before an address of the auth provider. name: of what it does, where it does not say so itself. Raises
        Failure 503 while nothing can be recorded."""
        if request.method == b"POST":
            self._may_begin()
        request.ends.append(partial(self._issuer_ended, name, request, monotonic()))
        return next(request)

    def deed(self, request: Request, deed: Deed) -> None:
        """Record it when the request ends, whose principal the operator is. Raises Failure 503 while nothing can be
        recorded."""
        self._may_begin()
        request.ends.append(partial(self._deed_ended, request, deed, monotonic()))

    def happened(self, event: Event) -> None:
        """Record what no request has done. What cannot be recorded has happened all the same, and is logged."""
        facts = AuditFacts(operation=event.operation, client=_text(event.client), outcome=Outcome.OK)
        about = {"subject": _text(event.subject), "scopes": event.scopes, "audience": _text(event.audience)}
        own = "".join(f",{_json(name)}:{_json(value)}" for name, value in about.items() if value)
        row = b"," + msgspec.json.encode(facts)[1:-1]
        try:
            body = self._chain.append(self._seal, own.encode("utf-8", "replace") + row)
        except Failure as failure:
            self._lost.value += 1
            log.error("an audit record is lost: %s of %r: %s", event.operation, event.subject, failure.detail)
            return
        self._written.value += 1
        if self._line is not None:
            self._line(self._chain.id, body)

    def _deed_ended(self, request: Request, deed: Deed, began: float, ending: Ending) -> None:
        own = f',"target":{_json(_text(deed.target))}' if deed.target else ""
        self._end(request, ending, outcome_at_end(ending), deed.operation, began, own)

    def _service_ended(self, request: Request, began: float, ending: Ending) -> None:
        context = request.context
        if (
            request.method == b"OPTIONS"
            and context.backend == "unknown"
            and request.header(b"access-control-request-method") is not None
        ):
            return  # a browser asks whether it may ask
        outcome = outcome_at_end(ending)
        if self._nobody(context, outcome):
            return
        target = f"{request.method.decode('latin-1')} {request.path[:_LONGEST].decode('latin-1')}"
        own = f',"target":{_json(target)}'  # its own: paths are too many to be remembered
        self._end(request, ending, outcome, "http", began, own)

    def _door_ended(self, request: Request, began: float, ending: Ending) -> None:
        context = request.context
        if context.audited:
            return
        outcome = outcome_at_end(ending)
        if outcome is _DENIED and not self._nobody(context, outcome):
            self._end(request, ending, outcome, context.mcp_method or context.operation or "request", began)

    def _issuer_ended(self, name: str, request: Request, began: float, ending: Ending) -> None:
        context = request.context
        event: Event | None = context.event
        outcome = outcome_at_end(ending)
        if event is None:
            if (request.method != b"POST" and outcome is not _DENIED) or self._nobody(context, outcome):
                return
            self._end(request, ending, outcome, f"issuer.{name}", began)
            return
        who = context.principal
        members = {
            "client": _text(event.client) if who is None or not who.client else "",
            "subject": _text(event.subject),
            "scopes": event.scopes,
            "audience": _text(event.audience),
            "minted": event.jti,
            "session": event.session if who is None or not who.sid else "",
        }
        own = "".join(f",{_json(name)}:{_json(value)}" for name, value in members.items() if value)
        self._end(request, ending, outcome, event.operation, began, own)

    def _end(
        self, request: Request, ending: Ending, outcome: Outcome, operation: str, began: float, own: str = ""
    ) -> None:
        failure = ending.failure
        reason = ending.reason if failure is None else failure.reason
        context = request.context
        try:
            self._record(
                request, context, operation, "", "", outcome, ending.status, reason, began, context.principal, own
            )
        except Failure:
            if ending.status < 400:
                raise

    def _nobody(self, context: Context, outcome: Outcome) -> bool:
        """Whether that is a refusal which is not to be recorded."""
        who = context.principal
        return self._known and outcome is _DENIED and (who is None or who.source == "anonymous")

    # ---- records
    def _may_begin(self) -> None:
        if self._blocks and self._chain.full:
            raise Failure(
                503,
                Reason.INTERNAL,
                "what is done cannot be recorded at the moment; try again later",
                code="audit_unavailable",
                detail="the journal is full: its disk, or the records that wait for the ledger",
                retry_after=5.0,
            )

    def _record(
        self,
        request: Request,
        context: Context,
        operation: str,
        server: str,
        target: str,
        outcome: Outcome,
        status: int,
        reason: str,
        began: float,
        principal: Principal | None,
        own: str = "",
    ) -> None:
        context.audited = True
        address = context.client or request.peer
        key = (
            principal, target, server, operation, outcome, status, reason, address, context.route, context.backend,
            context.decision, context.rule, context.approver, context.shadow,
        )  # fmt: skip
        row = self._rows.get(key)
        if row is None:
            row = _row(key)
            self._rows.keep(key, row, len(row), principal)
        took = int((monotonic() - began) * 1e6)
        if context.token_jti:
            own = f'{own},"minted":{_json(context.token_jti)}'
        mine = f',"request_id":"{context.request_id}","took_us":{took}{own}'
        try:
            body = self._chain.append(self._seal, mine.encode("utf-8", "replace") + row)
        except Failure as failure:
            self._lost.value += 1
            if self._blocks:
                raise
            now = monotonic()
            if now >= self._tell_at:
                self._tell_at = now + _TELL_EVERY
                log.error("audit records are lost, as configured (on_failure: allow): %s", failure.detail)
            return
        self._written.value += 1
        if self._line is not None:
            self._line(self._chain.id, body)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _row(key: tuple[Any, ...]) -> bytes:
    """The members of a record that others have in common with it, each with a comma before it."""
    (
        principal, target, server, operation, outcome, status, reason, address, route, backend, decision, rule,
        approver, shadow,
    ) = key  # fmt: skip
    who: Principal = principal if principal is not None else _NOBODY
    if outcome is _DENIED:
        decision = "deny"
    elif rule and not approver and decision in ("", "allow"):
        decision = "approve"  # who is to approve it was asked, and that is where it stands
    elif shadow and decision in ("", "allow"):
        decision, rule = "shadow-deny", shadow
    facts = AuditFacts(
        operation=_text(operation),
        principal=_text(who.id),
        source=who.source,
        user=_text(who.user),
        org=_text(who.org),
        agent=_text(who.agent),
        client=_text(who.client),
        actors=who.actors,
        key=_text(who.key),
        issuer=_text(who.issuer),
        jti=_text(who.jti),
        session=_text(who.sid),
        address=_text(address),
        route=route,
        server=server,
        target=_text(target),
        backend=backend if backend != "unknown" else "",
        decision=decision,
        rule=_text(rule),
        approver=_text(approver),
        outcome=outcome,
        status=status,
        reason=reason,
    )
    return b"," + msgspec.json.encode(facts)[1:-1]


def _text(value: str) -> str:
    """Of callers' words, as much as a record takes; half a surrogate pair would make it none."""
    return value[:_LONGEST].encode("utf-8", "replace").decode()
