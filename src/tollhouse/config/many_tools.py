"""What agents see of many tools: `search` and `code_mode`, on `mcp` and on each of its endpoints."""

from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tollhouse.core.spec import Duration, Size, Spec

__all__ = ["CodeMode", "CodeModeSpec", "SearchMode", "SearchSpec"]

_TOOLS, _TOKENS = 60, 8_000  # about where searching begins to cost less, as bench/tools.py has it


class SearchSpec(Spec):
    """When agents search tools instead of getting them all."""

    mode: Literal["auto", "on", "off"] = Field(
        default="auto", description="auto: above `tools` or `tokens`, for each caller by what that one may use"
    )
    tools: int | None = Field(default=_TOOLS, ge=1, description="so many tools are still listed; null: any number")
    tokens: int | None = Field(
        default=_TOKENS, ge=1, description="and so many tokens of them (a quarter of their bytes); null: any number"
    )
    embeddings: str | None = Field(
        default=None, min_length=1, description="a model under `models` that makes vectors: search by sense, too"
    )

    @model_validator(mode="after")
    def _effect(self) -> Self:
        useless = self.model_fields_set & ({"tools", "tokens"} if self.mode != "auto" else set())
        if self.mode == "off" and self.embeddings is not None:
            useless.add("embeddings")
        if useless:
            raise ValueError(f"`{min(useless)}` has no effect with `mode: {self.mode}`; leave it out")
        if self.mode == "auto" and self.tools is None and self.tokens is None:
            raise ValueError("with neither `tools` nor `tokens` nothing is ever too much; write `search: off`")
        return self


class CodeModeSpec(Spec):
    """What a program of an agent's may take."""

    cpu: Duration = Field(default=5.0, gt=0.0, le=60.0, description="processor time of one program")
    wall: Duration = Field(default=30.0, gt=0.0, le=600.0, description="its whole time, with the calls it waits for")
    memory: Size = Field(default=64 << 20, ge=4 << 20, le=1 << 30, description="of its values")
    output: Size = Field(default=32 << 10, ge=1, le=1 << 20, description="what it may print; the rest is cut off")
    calls: int = Field(default=50, ge=1, le=1000, description="tools that it may call")


def _mode(value: Any) -> Any:
    """A mode alone may stand for {mode: ...}."""
    if isinstance(value, str):
        if value not in ("auto", "on", "off"):
            raise ValueError("not a way to search; write auto, on, off, or {tools: 60, ...}")
        return {"mode": value}
    return value


def _limits(value: Any) -> Any:
    """true alone stands for {}, false for nothing."""
    if isinstance(value, bool):
        return {} if value else None
    return value


def _installed(value: CodeModeSpec | None) -> CodeModeSpec | None:
    if value is not None and find_spec("pydantic_monty") is None:
        raise ValueError("needs the extra `code`: pip install 'tollhouse[code]'")
    return value


SearchMode = Annotated[
    SearchSpec, BeforeValidator(_mode, json_schema_input_type=Literal["auto", "on", "off"] | SearchSpec)
]
"""auto, on or off, or {mode, tools, tokens, embeddings}."""

CodeMode = Annotated[
    CodeModeSpec | None,
    BeforeValidator(_limits, json_schema_input_type=bool | CodeModeSpec),
    AfterValidator(_installed),
]
"""true or false, or what programs may take."""
