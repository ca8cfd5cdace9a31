"""Header rules: fields that are set, added or removed, of requests and of answers.

Rule: what frames a message or speaks of one connection only is not a rule's business, nor is `host`, nor the caller's
credential (it was checked before rules run, and backends put their own). Those are errors when config is read.

Rules for requests stand last in the chain, so that every policy sees the request as it came; rules for answers stand
first, so that no answer is without them: not a refusal, not a preflight.

Conditions and values may be CEL. What cannot be worked out of a request refuses it: what a service is told of its
caller must not be what the caller says. Of an answer, which is there already, it only takes away.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tollhouse.core.call import Call
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.expr import Expression, Outcome, Undecided, check_condition
from tollhouse.core.facts import recall
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.spec import Spec
from tollhouse.policies.base import Kind, Layer, Level, Parts, one_or_several, several, shown

__all__ = [
    "HEADERS", "RESPONSE_HEADERS", "AnswerRulesSpec", "HeadersSpec", "RequestRules", "RequestRulesSpec", "ResponseRules"
]  # fmt: skip

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_FRAMING = frozenset(
    (
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    )
)  # fmt: skip
_CREDENTIALS = frozenset(("authorization", "x-api-key", "api-key", "x-goog-api-key"))
_REQUEST = frozenset(("request", "source", "jwt", "key", "principal"))
"""What is known before the body is read, and so before anybody knows what is asked."""

_VARIABLE = bytes(byte if chr(byte).isalnum() and byte < 128 else ord("-") for byte in range(256)).lower()
"""Services that read fields as variables (CGI and what came after) take `_`, and some of them every sign, for `-`."""

_LONGEST = 8192  # characters of a value that CEL says


def _name(value: str) -> str:
    if _TOKEN.fullmatch(value) is None:
        raise ValueError(f"not a header name: {value!r}")
    if value.lower() in _FRAMING:
        raise ValueError(f"the header `{value}` frames the message or belongs to one connection; no rule can change it")
    return value.lower()


def _value(value: str) -> str:
    if _VALUE.fullmatch(value) is None or not value.isascii():
        raise ValueError("a header's value has no line breaks and other control characters, and only ASCII")
    return value.strip(" \t")


def _of_request(source: str) -> Expression:
    return Expression(source, _REQUEST)


def _of_answer(source: str) -> Expression:
    return Expression(source, late=True)


def _checked(compile: Callable[[str], Expression], *, decides: bool = False) -> AfterValidator:
    def check(source: str) -> str:
        expression = compile(source)
        if decides:
            check_condition(expression)
        return source

    return AfterValidator(check)


Name = Annotated[str, AfterValidator(_name)]
Value = Annotated[str, AfterValidator(_value)]
RequestCel = Annotated[str, _checked(_of_request)]
AnswerCel = Annotated[str, _checked(_of_answer)]
RequestCondition = Annotated[str, _checked(_of_request, decides=True)]
AnswerCondition = Annotated[str, _checked(_of_answer, decides=True)]


class RequestValueSpec(Spec):
    """A value that CEL works out of the request and its caller."""

    cel: RequestCel = Field(description="a text, number or bool; over request, source, jwt, key and principal")


class AnswerValueSpec(Spec):
    """A value that CEL works out of the request, its caller, and what was asked."""

    cel: AnswerCel = Field(description="a text, number or bool")


class _RulesSpec(Spec):
    remove: tuple[Name, ...] = Field(default=(), description="taken away")
    set: dict[Name, Any] = Field(default={})
    add: dict[Name, Any] = Field(default={})

    @model_validator(mode="after")
    def _effect(self) -> Self:
        both = frozenset(self.remove) & self.set.keys()
        if both:
            raise ValueError(f"`{min(both)}` is both removed and set; `set` replaces it anyway")
        return self


class RequestRulesSpec(_RulesSpec):
    """Changes to requests, in this order: remove, set, add. A value is a text, or `{cel: ...}`."""

    when: RequestCondition | None = Field(
        default=None, description="only where this is true: CEL over request, source, jwt, key and principal"
    )
    set: dict[Name, Value | RequestValueSpec] = Field(default={}, description="in place of any there are")
    add: dict[Name, Value | RequestValueSpec] = Field(default={}, description="beside any there are")

    @model_validator(mode="after")
    def _no_credentials(self) -> Self:
        for name in (*self.remove, *self.set, *self.add):
            if name in _CREDENTIALS:
                raise ValueError(
                    f"`{name}` carries the caller's credential, which never goes upstream; the upstream's own is "
                    "set where the upstream is configured"
                )
        return self


class AnswerRulesSpec(_RulesSpec):
    """Changes to answers, in this order: remove, set, add. A value is a text, or `{cel: ...}`."""

    when: AnswerCondition | None = Field(default=None, description="only where this CEL expression is true")
    set: dict[Name, Value | AnswerValueSpec] = Field(default={}, description="in place of any there are")
    add: dict[Name, Value | AnswerValueSpec] = Field(default={}, description="beside any there are")


RequestSteps = Annotated[
    tuple[RequestRulesSpec, ...],
    Field(min_length=1, json_schema_extra=one_or_several),
    BeforeValidator(several),
]
AnswerSteps = Annotated[
    tuple[AnswerRulesSpec, ...],
    Field(min_length=1, json_schema_extra=one_or_several),
    BeforeValidator(several),
]


class HeadersSpec(Spec):
    """Changes to the header fields of requests and answers."""

    request: RequestSteps | None = Field(default=None, description="before the request goes upstream; one, or several")
    response: AnswerSteps | None = Field(default=None, description="before the answer goes to the client; likewise")


class _Rule:
    """One change, ready-made. when: its condition. is_static: it is the same for every message."""

    __slots__ = ("_gone", "_more", "_static", "is_static", "when")

    def __init__(self, spec: RequestRulesSpec | AnswerRulesSpec, compile: Callable[[str], Expression]) -> None:
        self.when = None if spec.when is None else compile(spec.when)
        self._gone = frozenset(name.encode() for name in (*spec.remove, *spec.set))
        self._more = [
            (name.encode(), value.encode() if isinstance(value, str) else compile(value.cel))
            for name, value in (*spec.set.items(), *spec.add.items())
        ]
        self._static = [(name, value) for name, value in self._more if isinstance(value, bytes)]
        self.is_static = self.when is None and len(self._static) == len(self._more)

    def without(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """What is left when nothing is put."""
        gone = self._gone
        return [pair for pair in headers if pair[0] not in gone]

    def changed(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """As a static rule has it."""
        return self.without(headers) + self._static

    def worked_out(
        self, headers: list[tuple[bytes, bytes]], call: Call, undecided: Callable[[str, str], None]
    ) -> list[tuple[bytes, bytes]]:
        """As any rule has it. undecided: told of each value that there is none of, by its name, and why."""
        more = []
        for name, value in self._more:
            if isinstance(value, Expression):
                try:
                    value = _text(value, call)
                except Undecided as error:
                    undecided(name.decode(), str(error))
                    continue
            more.append((name, value))
        return self.without(headers) + more


def _text(expression: Expression, call: Call) -> bytes:
    """A value as it can stand in a header field; beyond ASCII as UTF-8 (RFC 9110 section 5.5). Raises Undecided."""
    text = expression.text(call, _LONGEST)
    if _VALUE.fullmatch(text) is None:
        raise Undecided("it has line breaks or other control characters")
    try:
        return text.strip(" \t").encode()
    except UnicodeEncodeError:
        raise Undecided("it has no form in UTF-8") from None


class RequestRules:
    """Changes requests. Of several rules each sees what the one before has left. What the caller sends under another
    spelling that services take for the same goes with it; and Connection, by which a sender has the next one leave
    fields out (RFC 9110 section 7.6.1), names none of ours."""

    def __init__(self, spec: tuple[RequestRulesSpec, ...], where: str) -> None:
        self._rules = [_Rule(one, _of_request) for one in spec]
        self._ours = frozenset(name.encode() for one in spec for name in (*one.set, *one.add))
        gone = {name.encode() for one in spec for name in (*one.remove, *one.set) if one.when is None}
        self._named = self._ours.union(gone)
        self._alike = frozenset(name.translate(_VARIABLE) for name in gone)
        self._where = where

    def handle(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        """Raises Failure 400 where a condition or value cannot be worked out."""
        headers = request.headers
        if any(name == b"connection" or self._is_alike(name) for name, _ in headers):
            headers[:] = self._as_sent(headers)
        for number, rule in enumerate(self._rules, 1):
            headers[:] = rule.changed(headers) if rule.is_static else self._changed(request, rule, number)
        return next(request)

    def _is_alike(self, name: bytes) -> bool:
        """Whether it is another spelling of a field that is taken away."""
        return name.translate(_VARIABLE) in self._alike and name not in self._named

    def _as_sent(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Without what the caller could undo rules by."""
        ours = self._ours
        words = [word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")]
        named = ours.intersection(words)
        kept = [pair for pair in headers if pair[0] not in named and not self._is_alike(pair[0])]
        if not named:
            return kept
        words = [word for word in words if word and word not in ours]
        kept = [pair for pair in kept if pair[0] != b"connection"]
        return [*kept, (b"connection", b", ".join(words))] if words else kept

    def _changed(self, request: Request, rule: _Rule, number: int) -> list[tuple[bytes, bytes]]:
        def undecided(name: str, why: str) -> None:
            raise Failure(
                400,
                Reason.INVALID_REQUEST,
                f"the gateway cannot work out `{name}` for this request: something it needs is missing or of a wrong "
                "type; ask the operator of this gateway what that is",
                code="headers_undecided",
                detail=f"{self._where}: headers.request {number}: {name}: {why}",
            )

        call = Call(request, request.context)
        if rule.when is not None:
            said = rule.when.ask(call)
            if said is Outcome.DOUBT:
                undecided("when", "it is neither true nor false")
            if said is not Outcome.YES:
                return request.headers
        return rule.worked_out(request.headers, call, undecided)


class ResponseRules:
    """Changes answers, those to what was refused as well."""

    def __init__(self, spec: tuple[AnswerRulesSpec, ...]) -> None:
        self._rules = [_Rule(one, _of_answer) for one in spec]
        self._static = all(rule.is_static for rule in self._rules)

    async def handle(self, request: Request, next: Handler[Request, Response]) -> Response:
        if self._static:
            shown(request, self._change)
            response = await next(request)
            self._change(response)
            return response
        render = request.render

        def changed(failure: Failure, asked: Request) -> Response:
            refusal = render(failure, asked)
            self._work_out(asked, refusal)
            return refusal

        request.render = changed
        response = await next(request)
        self._work_out(request, response)
        return response

    def _change(self, response: Response) -> None:
        for rule in self._rules:
            response.headers = rule.changed(response.headers)

    def _work_out(self, request: Request, response: Response) -> None:
        call = recall(request, request.context)
        for rule in self._rules:
            said = Outcome.YES if rule.when is None else rule.when.ask(call)
            if said is Outcome.YES:
                response.headers = rule.worked_out(response.headers, call, _left_out)
            elif said is Outcome.DOUBT:
                response.headers = rule.without(response.headers)


def _left_out(name: str, why: str) -> None:
    """A value that there is none of: its field is not there then."""


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    layer = layers[-1]
    return None if layer.spec.request is None else RequestRules(layer.spec.request, layer.where).handle


def _build_response(layers: tuple[Layer, ...], parts: Parts) -> Any:
    rules = layers[-1].spec.response
    return None if rules is None else ResponseRules(rules).handle


_LEVELS: frozenset[Level] = frozenset(("top", "route"))
HEADERS: Kind[Request, Response] = Kind("headers", _LEVELS, adds=False, build=_build)
RESPONSE_HEADERS: Kind[Request, Response] = Kind("headers", _LEVELS, adds=False, build=_build_response)
