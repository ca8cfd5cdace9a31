"""The language that texts are in, told by letters and small words.

Rule: a text whose language cannot be told (short ones, names, code) passes, unless `unknown: reject`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tollhouse.core.call import Call
from tollhouse.core.spec import Spec
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.check import Finding, Phase
from tollhouse.wire.guard.language import LANGUAGES, language

__all__ = ["Language", "LanguageSpec", "written_in"]

Code = Annotated[str, Field(pattern=r"^[a-z]{2}$")]


class LanguageSpec(Spec):
    """Languages that texts may be in."""

    allow: tuple[Code, ...] = Field(default=(), description="ISO 639-1 codes of those that may be used; none: any")
    deny: tuple[Code, ...] = Field(default=(), description="those that may not")
    unknown: Literal["pass", "reject"] = Field(
        default="pass", description="texts whose language cannot be told: short ones, names, code"
    )

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {"allow": value} if isinstance(value, (list, tuple)) else value

    @field_validator("allow", "deny")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if code not in LANGUAGES:
                raise ValueError(f"{code!r} cannot be told; there are {', '.join(LANGUAGES)}")
        return value

    @model_validator(mode="after")
    def _effect(self) -> "LanguageSpec":
        if bool(self.allow) == bool(self.deny):
            raise ValueError("name the languages to `allow`, or those to `deny`")
        return self


class Language:
    """As `Check`."""

    name = "language"
    phases: frozenset[Phase] = frozenset(("request", "response"))
    masks = False
    whole = True

    def __init__(self, spec: LanguageSpec) -> None:
        self._allow = frozenset(spec.allow)
        self._deny = frozenset(spec.deny)
        self._unknown = spec.unknown == "reject"

    async def check(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        found: dict[str, Finding] = {}
        for text in texts:
            told = language(text)
            if told is None:
                wrong = self._unknown and bool(text) and not text.isspace()
            else:
                wrong = told in self._deny or (bool(self._allow) and told not in self._allow)
            if wrong:
                rule = told or "unknown"
                found.setdefault(rule, Finding(rule))
        return list(found.values())

    def health(self) -> str:
        return ""

    async def close(self) -> None:
        """It holds nothing."""


def written_in(spec: LanguageSpec, parts: Parts, timeout: float) -> Language:
    return Language(spec)
