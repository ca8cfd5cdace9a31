"""Header rules: fields that are set, added or removed, of requests and of answers.

Rule: what frames a message or speaks of one connection only is not a rule's business, nor is `host`, nor the caller's
credential (it was checked before rules run, and backends put their own). Those are errors when config is read.

Rules for requests stand last in the chain, so that every policy sees the request as it came; rules for answers stand
first, so that no answer is without them: not a refusal, not a preflight.
"""

import re
from collections.abc import Awaitable
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.spec import Spec
from tollhouse.policies.base import Kind, Layer, Level, Parts, shown

__all__ = ["HEADERS", "RESPONSE_HEADERS", "HeaderRulesSpec", "HeadersSpec", "RequestRules", "ResponseRules"]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_FRAMING = frozenset(
    (
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    )
)  # fmt: skip
_CREDENTIALS = frozenset(("authorization", "x-api-key", "api-key", "x-goog-api-key"))


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


Name = Annotated[str, AfterValidator(_name)]
Value = Annotated[str, AfterValidator(_value)]


class HeaderRulesSpec(Spec):
    """Changes, in this order: remove, set, add."""

    remove: tuple[Name, ...] = Field(default=(), description="taken away")
    set: dict[Name, Value] = Field(default={}, description="in place of any there are")
    add: dict[Name, Value] = Field(default={}, description="beside any there are")

    @model_validator(mode="after")
    def _effect(self) -> Self:
        both = set(self.remove) & set(self.set)
        if both:
            raise ValueError(f"`{min(both)}` is both removed and set; `set` replaces it anyway")
        return self


class HeadersSpec(Spec):
    """Changes to the header fields of requests and answers."""

    request: HeaderRulesSpec | None = Field(default=None, description="before the request goes upstream")
    response: HeaderRulesSpec | None = Field(default=None, description="before the answer goes to the client")

    @model_validator(mode="after")
    def _no_credentials(self) -> Self:
        rules = self.request
        if rules is not None:
            for name in (*rules.remove, *rules.set, *rules.add):
                if name in _CREDENTIALS:
                    raise ValueError(
                        f"`{name}` carries the caller's credential, which never goes upstream; the upstream's own is "
                        "set where the upstream is configured"
                    )
        return self


class _Rules:
    """Rules for one direction, ready-made."""

    def __init__(self, spec: HeaderRulesSpec) -> None:
        self._gone = frozenset(name.encode() for name in (*spec.remove, *spec.set))
        self._more = [(name.encode(), value.encode()) for name, value in (*spec.set.items(), *spec.add.items())]

    def changed(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        gone = self._gone
        return [pair for pair in headers if pair[0] not in gone] + self._more


class RequestRules(_Rules):
    """Changes requests."""

    def handle(self, request: Request, next: Handler[Request, Response]) -> Awaitable[Response]:
        request.headers[:] = self.changed(request.headers)
        return next(request)


class ResponseRules(_Rules):
    """Changes answers, those to what was refused as well."""

    async def handle(self, request: Request, next: Handler[Request, Response]) -> Response:
        shown(request, self._change)
        response = await next(request)
        self._change(response)
        return response

    def _change(self, response: Response) -> None:
        response.headers = self.changed(response.headers)


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    rules = layers[-1].spec.request
    return None if rules is None else RequestRules(rules).handle


def _build_response(layers: tuple[Layer, ...], parts: Parts) -> Any:
    rules = layers[-1].spec.response
    return None if rules is None else ResponseRules(rules).handle


_LEVELS: frozenset[Level] = frozenset(("top", "route", "endpoint"))
HEADERS: Kind[Request, Response] = Kind("headers", _LEVELS, adds=False, build=_build)
RESPONSE_HEADERS: Kind[Request, Response] = Kind("headers", _LEVELS, adds=False, build=_build_response)
