"""The `telemetry` section: what metrics and the access log say beside what they always say."""

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from tollhouse.config.writable import Writable
from tollhouse.core.expr import Expression
from tollhouse.core.spec import Spec
from tollhouse.observe import families

__all__ = ["AccessLogSpec", "MetricsSpec", "Recorded", "TelemetrySpec"]

MAX_LABELS: Final = 8
_OWN_LABELS: Final = frozenset((*families.REQUEST, *families.GEN_AI, *families.CONNECTION)) | {
    "le", "quantile", "worker", "gen_ai_token_type", "server", "resource", "resource_type", "outcome"
}  # fmt: skip


def _recorded(source: str) -> str:
    Expression(source, late=True)
    return source


def _namespace(name: str) -> str:
    if re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name) is None:
        raise ValueError("not a namespace of metrics; use letters, digits and underscores")
    return name


def _label(name: str) -> str:
    if re.fullmatch(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", name) is None:
        raise ValueError(f"`{name}` cannot be the name of a label; use letters, digits and underscores")
    if name in _OWN_LABELS:
        raise ValueError(f"there is a label `{name}` already; choose another name")
    return name


def _field(name: str) -> str:
    if not 0 < len(name) <= 64:
        raise ValueError("the name of a field has 1 to 64 characters")
    return name


LabelName = Annotated[str, AfterValidator(_label)]
FieldName = Annotated[str, AfterValidator(_field)]

Recorded = Annotated[str, AfterValidator(_recorded), Field(examples=['request.headers["x-org"]', "jwt.email"])]
"""A CEL expression over a request that has ended."""


class MetricsSpec(Spec):
    """What `GET /metrics` says."""

    namespace: Annotated[str, AfterValidator(_namespace)] = Field(
        default="tollhouse",
        description="what every metric's name begins with; `agentgateway` keeps that gateway's dashboards working",
    )
    labels: dict[LabelName, Recorded] = Field(
        default={}, max_length=MAX_LABELS, description="labels by name, each the value of a CEL expression"
    )


class AccessLogSpec(Spec):
    """One line for each request."""

    path: Writable = Field(default="-", description="a file that lines are added to; - is standard output")
    format: Literal["json", "text"] = Field(default="json", description="JSON objects, or key=value text")
    fields: dict[FieldName, Recorded] = Field(
        default={}, description="fields by name, each the value of a CEL expression"
    )


class TelemetrySpec(Spec):
    """What can be seen from outside."""

    metrics: MetricsSpec = Field(default=MetricsSpec(), description="Prometheus metrics")
    access_log: AccessLogSpec | None = Field(default=None, description="a line for each request; absent: none")
