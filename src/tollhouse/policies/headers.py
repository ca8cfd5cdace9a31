"""Header rules: fields that are set, added or removed, of requests and of answers.

Rule: what frames a message or speaks of one connection only is not a rule's business, nor is `host`, nor the caller's
credential (it was checked before rules run, and backends put their own). Those are errors when config is read.
"""

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from tollhouse.core.handler import Handler
from tollhouse.core.http import Request, Response
from tollhouse.core.spec import Spec
from tollhouse.policies.base import Kind, Layer, Parts

__all__ = ["HEADERS", "HeaderRules", "HeaderRulesSpec", "HeadersSpec"]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_FRAMING = frozenset(
    (
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authenticate", "proxy-authorization",
        "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    )
)  # fmt: skip
_CREDENTIALS = frozenset(("authorization", "x-api-key", "api-key"))


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


class HeaderRules:
    """Rules for both directions, ready-made."""

    def __init__(self, spec: HeadersSpec) -> None:
        self._request = _rules(spec.request)
        self._response = _rules(spec.response)

    async def handle(self, request: Request, next: Handler[Request, Response]) -> Response:
        rules = self._request
        if rules is not None:
            gone, more = rules
            request.headers[:] = [pair for pair in request.headers if pair[0] not in gone] + more
        response = await next(request)
        rules = self._response
        if rules is not None:
            gone, more = rules
            response.headers = [pair for pair in response.headers if pair[0] not in gone] + more
        return response


def _rules(spec: HeaderRulesSpec | None) -> tuple[frozenset[bytes], list[tuple[bytes, bytes]]] | None:
    if spec is None:
        return None
    gone = frozenset(name.encode() for name in (*spec.remove, *spec.set))
    return gone, [(name.encode(), value.encode()) for name, value in (*spec.set.items(), *spec.add.items())]


def _build(layers: tuple[Layer, ...], parts: Parts) -> Any:
    return HeaderRules(layers[-1].spec).handle


HEADERS: Kind[Request, Response] = Kind("headers", frozenset(("top", "route", "endpoint")), adds=False, build=_build)
