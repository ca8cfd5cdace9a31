"""What configuration says about a model's targets: which, how they are chosen, and what happens when they fail.

Rule: a setting that can have no effect beside another is an error here; what depends on more of the configuration is
looked at in `config.checks`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from tollhouse.backends.balance import caller
from tollhouse.backends.health import PassiveHealthSpec, TimedCheckSpec
from tollhouse.backends.hedge import HedgeSpec
from tollhouse.backends.provider import Timeouts
from tollhouse.core.expr import CelCondition
from tollhouse.core.spec import Duration, Spec

__all__ = [
    "FallbackSpec", "ModelCheckSpec", "ModelHealthSpec", "ModelTimeoutSpec", "PoolSpec", "TargetSpec"
]  # fmt: skip


class TargetSpec(Spec):
    """A model at a provider."""

    provider: str = Field(description="a name under `providers`")
    model: str | None = Field(
        default=None, description="its name there; a * stands for what the * of the name matched; none: the same name"
    )
    weight: float = Field(default=1, ge=0, description="share of the calls; 0: only when the others have failed")
    when: CelCondition | None = Field(
        default=None,
        description="CEL: which calls it is for; targets without it get those that no other is for",
        examples=["llm.tokens > 100000", 'principal.org == "research"'],
    )


class FallbackSpec(Spec):
    """A model at a provider that is asked when every target has failed or is left out."""

    provider: str = Field(description="a name under `providers`")
    model: str | None = Field(default=None, description="as in a target")
    notice: bool = Field(default=False, description="tell the caller, in the header x-tollhouse-fallback")
    on: list[Literal["failure", "context_window", "content_policy"]] = Field(
        default=["failure"],
        min_length=1,
        description="after what: every target failed; the request is too long; its content was refused",
    )


class ModelTimeoutSpec(Spec):
    """How long a call may take."""

    total: Duration = Field(default=300.0, gt=0, description="from the request's arrival to the last byte")
    first_event: Duration = Field(default=60.0, gt=0, description="to the first event of a stream, for each target")
    idle: Duration = Field(default=60.0, gt=0, description="between two pieces of an answer")
    connect: Duration = Field(default=5.0, gt=0, description="to open a connection")
    tunnel: Duration = Field(default=3600.0, gt=0, description="a realtime session without a byte either way")
    session: Duration = Field(default=7200.0, gt=0, description="a realtime session, to its end, in place of `total`")

    def value(self) -> Timeouts:
        return Timeouts(self.total, self.first_event, self.idle, self.connect, self.tunnel, self.session)


class ModelCheckSpec(TimedCheckSpec):
    """Active checks of a model's targets: a GET now and then, or a call. With `model_call` an interval of a minute and
    a timeout of ten seconds, unless they are given: calls cost money."""

    path: str | None = Field(
        default=None,
        pattern=r"^/[!-~]*$",
        description="asked for with GET, below the provider's base; none: its list of models",
    )
    model_call: Literal["chat", "embeddings"] | None = Field(
        default=None,
        description="ask the target's model for a few tokens instead: what only that can tell, and the provider bills",
    )

    @model_validator(mode="before")
    @classmethod
    def _seldom(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("model_call") is not None:
            return {"interval": "1m", "timeout": "10s", **value}
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.path is not None and self.model_call is not None:
            raise ValueError("`path` has no effect with `model_call`; leave one of them out")
        return self


class ModelHealthSpec(PassiveHealthSpec):
    """When a target counts as bad."""

    check: ModelCheckSpec | None = Field(default=None, description="active checks; none unless given")


def _caller(value: str) -> str:
    try:
        caller(value)
    except ValueError as error:
        raise ValueError(f"neither one of user, org, key nor a CEL expression: {error}") from None
    return value


class PoolSpec(Spec):
    """Where a model's calls go. A model's Spec has these fields among its own."""

    targets: list[TargetSpec] = Field(min_length=1)
    balance: Literal["weighted", "round_robin", "least_latency"] = Field(
        default="weighted",
        description="weighted: at random, by weight; round_robin: in turn; least_latency: of two, who should be sooner",
    )
    sticky: Annotated[str, AfterValidator(_caller)] | None = Field(
        default=None,
        description="keep a caller at one target while it is well, by weight: user, org, key, or a CEL expression",
        examples=["user", 'request.headers["x-session"]'],
    )
    fallback: list[FallbackSpec] = Field(default=[], description="tried in order when every target has failed")
    timeout: ModelTimeoutSpec = ModelTimeoutSpec()
    lossy: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="what a provider's API cannot say: refuse the call, or drop it and name it in x-tollhouse-dropped",
    )
    health: ModelHealthSpec = ModelHealthSpec()
    hedge: HedgeSpec | None = Field(
        default=None, description="ask a second target when a stream's first event is late; none unless given"
    )
    resume: bool = Field(
        default=False,
        description="a stream that is lost goes on at a target that takes what was said as the beginning of its answer",
    )

    @model_validator(mode="after")
    def _effects(self) -> Self:
        if not any(t.weight for t in self.targets):
            raise ValueError("every target has weight 0; give at least one a share")
        if self.balance == "round_robin" and len({t.weight for t in self.targets}) > 1:
            raise ValueError("weights have no effect with balance: round_robin; leave them out, or use weighted")
        if self.sticky is not None and self.balance != "weighted":
            raise ValueError("balance has no effect with sticky, which shares callers out by weight; leave it out")
        return self
