"""OpenAI's moderation: what of texts is harmful, by category.

Rule: its own judgement (`flagged`, and the categories' booleans) counts, unless a threshold is set: then the score. An
answer without a category that was asked for is no answer.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from pydantic import BeforeValidator, Field, model_validator

from tollhouse.core.call import Call
from tollhouse.core.spec import Secret, Spec
from tollhouse.net.client import Origin
from tollhouse.policies.base import Parts, Service
from tollhouse.policies.guardrails.check import Finding, Phase
from tollhouse.policies.guardrails.checks.pieces import slices
from tollhouse.policies.guardrails.checks.remote import Labels, OwnService, RemoteCheck, all_of

__all__ = ["OpenAIModeration", "OpenAIModerationSpec", "openai_moderation"]

_CHARACTERS = 20_000  # of one input
_INPUTS = 32
_MOST = 1_000_000  # characters of all texts


def _by_name(value: Any) -> Any:
    return dict.fromkeys(value) if isinstance(value, (list, tuple)) else value


Category = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_/-]{0,63}$")]
Threshold = Annotated[float, Field(gt=0.0, le=1.0)]


class OpenAIModerationSpec(Spec):
    """The moderation of a provider that has OpenAI's API."""

    provider: str | None = Field(default=None, description="a provider of the kind openai, asked with its credentials")
    url: str | None = Field(default=None, description="another API, like https://api.openai.com/v1, with `api_key`")
    api_key: Secret | None = Field(default=None, description="sent there as `authorization: Bearer`")
    model: str = Field(default="omni-moderation-latest", min_length=1, description="the model that judges")
    categories: Annotated[
        dict[Category, Threshold | None],
        BeforeValidator(_by_name, json_schema_input_type=list[Category] | dict[Category, Threshold | None]),
    ] = Field(
        default={},
        description="those that count, each with the score from which it does, or without one for its own judgement; "
        "none: all",
        examples=[["violence", "self-harm"], {"violence": 0.4}],
    )
    connections: int = Field(default=16, ge=1, le=1024, description="questions at once; others wait within `timeout`")

    @model_validator(mode="after")
    def _where(self) -> "OpenAIModerationSpec":
        if (self.provider is None) == (self.url is None):
            raise ValueError("name `provider`, or `url` with `api_key`")
        if self.url is not None:
            Origin.of(self.url)
            if "?" in self.url or "#" in self.url:
                raise ValueError("`url` has no query and no fragment; write it like https://api.openai.com/v1")
        elif self.api_key is not None:
            raise ValueError("`api_key` has no effect with `provider`, which has its own")
        return self


class _Result(msgspec.Struct):
    flagged: bool
    categories: dict[str, bool | None]
    category_scores: dict[str, float | None]


class _Answer(msgspec.Struct):
    results: list[_Result]


_answer = msgspec.json.Decoder(_Answer)


class OpenAIModeration(RemoteCheck):
    name = "openai_moderation"

    def __init__(self, spec: OpenAIModerationSpec, service: Service, timeout: float) -> None:
        super().__init__(service, timeout=timeout, at_once=spec.connections)
        self._model = spec.model
        self._wanted: Mapping[str, float | None] = spec.categories
        self._labels = Labels()

    async def look(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        if sum(map(len, texts)) > _MOST:
            raise self.cannot(f"the texts have more than {_MOST} characters")
        inputs = [piece.text for piece in slices(texts, _CHARACTERS)]
        asked = [inputs[at : at + _INPUTS] for at in range(0, len(inputs), _INPUTS)]
        found: dict[str, float | None] = {}
        for several in await all_of(self._results(some) for some in asked):
            for result in several:
                for category, score in self._harm(result).items():
                    known = found.get(category)
                    found[category] = score if known is None else max(known, score or 0.0)
        return [Finding(self._labels.of(name), message=_scored(score)) for name, score in found.items()]

    async def _results(self, inputs: list[str]) -> list[_Result]:
        said = await self.ask(b"/moderations", {"model": self._model, "input": inputs}, _answer)
        if len(said.results) != len(inputs):
            raise self.cannot(f"it answers with {len(said.results)} results to {len(inputs)} texts")
        return said.results

    def _harm(self, result: _Result) -> dict[str, float | None]:
        scores = result.category_scores
        if not self._wanted:
            named = [name for name, is_so in result.categories.items() if is_so]
            return {name: scores.get(name) for name in named or ["flagged"]} if result.flagged or named else {}
        harm: dict[str, float | None] = {}
        for name, threshold in self._wanted.items():
            score = scores.get(name)
            judged = result.categories.get(name)
            if judged is None if threshold is None else score is None or not 0.0 <= score <= 1.0:
                raise self.cannot(f"its answer has no category {name!r}; does the model {self._model!r} know it?")
            if judged if threshold is None else score is not None and score >= threshold:
                harm[name] = score
        return harm


def openai_moderation(spec: OpenAIModerationSpec, parts: Parts, timeout: float) -> OpenAIModeration:
    """Raises ValueError."""
    if spec.url is None:
        if parts.services is None:
            raise ValueError("there are no providers here")
        return OpenAIModeration(spec, parts.services(spec.provider or "", ("openai",), "", spec.connections), timeout)
    url, key = spec.url, spec.api_key
    lines = b"" if key is None else b"authorization: Bearer %b\r\n" % key.get_secret_value().encode("ascii")
    service = parts.shared(
        ("guardrails openai_moderation", spec.fingerprint()),
        lambda: OwnService(parts.client, url, connections=spec.connections, lines=lines),
        OwnService.close,
    )
    return OpenAIModeration(spec, service, timeout)


def _scored(score: float | None) -> str:
    return "" if score is None else f"score {score:.2f}"
