"""How long texts may be, together or each.

Rule: the first bound that is passed is named, and counting ends there.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from tollhouse.core.call import Call
from tollhouse.core.spec import Size, Spec
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.check import Finding, Phase
from tollhouse.wire.guard.measure import Length as Counted

__all__ = ["Length", "LengthSpec", "as_long_as"]


class LengthSpec(Spec):
    """Bounds for the length of texts."""

    max: int | None = Field(default=None, ge=1, description="Unicode characters")
    max_bytes: Size | None = Field(default=None, ge=1, description="bytes in UTF-8")
    max_words: int | None = Field(default=None, ge=1, description="words: what stands between white space")
    max_lines: int | None = Field(default=None, ge=1, description="lines")
    min: int | None = Field(default=None, ge=1, description="Unicode characters, at least; texts that are empty count")
    of: Literal["all", "each"] = Field(default="all", description="all texts together, or each of them")

    @model_validator(mode="after")
    def _bound(self) -> "LengthSpec":
        if not self.model_fields_set - {"of"}:
            raise ValueError("name a bound: `max`, `max_bytes`, `max_words`, `max_lines` or `min`")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError("`min` is more than `max`: no text has such a length")
        return self


class Length:
    """As `Check`."""

    name = "length"
    phases: frozenset[Phase] = frozenset(("request", "response"))
    masks = False
    whole = True

    def __init__(self, spec: LengthSpec) -> None:
        self._spec = spec

    async def check(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        found: dict[str, Finding] = {}
        for several in [texts] if self._spec.of == "all" else [[text] for text in texts]:
            rule = self._passed(several)
            if rule:
                found.setdefault(rule, Finding(rule))
        return list(found.values())

    def _passed(self, texts: Sequence[str]) -> str:
        spec = self._spec
        words = lines = 0
        counted = Counted(characters=spec.max, size=spec.max_bytes)
        for text in texts:
            own = Counted(words=spec.max_words, lines=spec.max_lines)  # a word ends with its text, and a line
            passed = counted.add(text) or own.add(text)
            if passed is not None:
                return passed
            words += own.words
            lines += own.lines
        if spec.max_words is not None and words > spec.max_words:
            return "words"
        if spec.max_lines is not None and lines > spec.max_lines:
            return "lines"
        return "too_short" if spec.min is not None and counted.characters < spec.min else ""

    def health(self) -> str:
        return ""

    async def close(self) -> None:
        """It holds nothing."""


def as_long_as(spec: LengthSpec, parts: Parts, timeout: float) -> Length:
    return Length(spec)
