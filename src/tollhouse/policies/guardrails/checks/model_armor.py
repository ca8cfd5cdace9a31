"""Google Model Armor: prompts and answers sanitized by a template.

Rule: a result counts if the filters ran (`SUCCESS`); a partial one is none, unless what did run has matched. What the
template de-identifies becomes spans. Texts share a question until one of them is changed: then each is asked alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import msgspec
from pydantic import Field, model_validator

from tollhouse.core.call import Call
from tollhouse.core.spec import Spec
from tollhouse.net.client import Origin
from tollhouse.policies.base import Parts, Service
from tollhouse.policies.guardrails.check import Finding, Phase
from tollhouse.policies.guardrails.checks.changes import changes
from tollhouse.policies.guardrails.checks.pieces import Piece, pieces
from tollhouse.policies.guardrails.checks.placed import placed
from tollhouse.policies.guardrails.checks.remote import Labels, RemoteCheck, all_of

__all__ = ["ModelArmor", "ModelArmorSpec", "model_armor"]

_CHARACTERS = 8_000  # about 2,000 tokens: the least of what its filters look at
_MOST = 400_000
_MATCH = "MATCH_FOUND"
_TEMPLATE = r"^projects/[a-z0-9.:-]+/locations/[a-z0-9-]+/templates/[A-Za-z0-9_-]{1,63}$"


class ModelArmorSpec(Spec):
    """A template of Google Model Armor."""

    provider: str = Field(description="a provider of the kind vertex with `auth`, asked with its access token")
    template: Annotated[str, Field(pattern=_TEMPLATE)] = Field(
        description="its full name", examples=["projects/acme/locations/europe-west4/templates/strict"]
    )
    url: str = Field(default="", description="another endpoint; none: that of the template's location")
    connections: int = Field(default=16, ge=1, le=1024, description="questions at once; others wait within `timeout`")

    @model_validator(mode="after")
    def _endpoint(self) -> "ModelArmorSpec":
        if self.url:
            Origin.of(self.url)
        return self

    @property
    def endpoint(self) -> str:
        """Where it is asked."""
        return self.url or f"https://modelarmor.{self.template.split('/')[3]}.rep.googleapis.com"


class _Text(msgspec.Struct):
    text: str


class _Result(msgspec.Struct, rename="camel"):
    """What one filter says; those that have kinds of findings name them."""

    match_state: str = ""
    execution_state: str = ""
    rai_filter_type_results: dict[str, "_Result"] = {}
    inspect_result: "_Result | None" = None
    deidentify_result: "_Result | None" = None
    info_types: list[str] = []
    data: _Text | None = None


class _Sanitized(msgspec.Struct, rename="camel"):
    filter_match_state: str
    invocation_result: str
    filter_results: dict[str, dict[str, _Result]] = {}


class _Answer(msgspec.Struct, rename="camel"):
    sanitization_result: _Sanitized


_answer = msgspec.json.Decoder(_Answer)


class ModelArmor(RemoteCheck):
    name = "model_armor"
    masks = True

    def __init__(self, spec: ModelArmorSpec, service: Service, timeout: float) -> None:
        super().__init__(service, timeout=timeout, at_once=spec.connections)
        self._target = f"/v1/{spec.template}".encode("ascii")
        self._labels = Labels()

    async def look(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        if sum(map(len, texts)) > _MOST:
            raise self.cannot(f"the texts have more than {_MOST} characters")
        found = await all_of(self._asked(piece, phase) for piece in pieces(texts, _CHARACTERS))
        return placed(finding for several in found for finding in several)

    async def _asked(self, piece: Piece, phase: Phase) -> list[Finding]:
        method, field = (
            (b":sanitizeUserPrompt", "userPromptData")
            if phase == "request"
            else (b":sanitizeModelResponse", "modelResponseData")
        )
        answer = await self.ask(self._target + method, {field: {"text": piece.text}}, _answer)
        said = answer.sanitization_result
        if said.filter_match_state not in (_MATCH, "NO_MATCH_FOUND"):
            raise self.cannot("its answer has a state that is not known")
        results = [(kind, result) for kind, several in said.filter_results.items() for result in several.values()]
        if said.filter_match_state != _MATCH:
            if said.invocation_result != "SUCCESS":
                raise self.cannot(f"its filters did not all run ({said.invocation_result[:20]!r})")
            return []
        blocked = [Finding(name) for name in dict.fromkeys(self._matched(results))]
        if blocked:
            return blocked
        masked = [result for _, result in results if _changed(result)]
        if not masked:
            return [Finding("matched")]
        if len(piece.parts) > 1:
            alone = await all_of(self._asked(one, phase) for one in _apart(piece))
            return [finding for several in alone for finding in several]
        return self._spans(piece, masked[0])

    def _matched(self, results: Iterable[tuple[str, _Result]]) -> Iterator[str]:
        """What matched and changed nothing."""
        for kind, result in results:
            kinds = [name for name, one in result.rai_filter_type_results.items() if one.match_state == _MATCH]
            inspected = result.inspect_result
            if kinds:
                yield from (self._labels.of(kind, name) for name in kinds)
            elif result.match_state == _MATCH or (inspected is not None and inspected.match_state == _MATCH):
                yield self._labels.of(kind)

    def _spans(self, piece: Piece, result: _Result) -> list[Finding]:
        masked = result.deidentify_result
        if masked is None or masked.data is None:
            raise self.cannot("its answer has no text in the place of what it de-identified")
        part = piece.parts[0]
        found = list(changes(piece.text, masked.data.text))
        if not found:
            raise self.cannot("its answer has the text unchanged that it says it de-identified")
        kinds = ", ".join(self._labels.of(kind) for kind in masked.info_types[:8])
        spans = tuple((part.text, part.start + start, part.start + end) for start, end, _ in found)
        return [Finding("sdp", spans, kinds, tuple(text for _, _, text in found))]


def model_armor(spec: ModelArmorSpec, parts: Parts, timeout: float) -> ModelArmor:
    """Raises ValueError."""
    if parts.services is None:
        raise ValueError("there are no providers here")
    service = parts.services(spec.provider, ("vertex",), spec.endpoint, spec.connections)
    return ModelArmor(spec, service, timeout)


def _changed(result: _Result) -> bool:
    masked = result.deidentify_result
    return masked is not None and masked.match_state == _MATCH


def _apart(piece: Piece) -> Iterator[Piece]:
    """A piece of several texts as one for each."""
    for part in piece.parts:
        yield Piece(piece.text[part.at : part.at + part.size], (part._replace(at=0),))
