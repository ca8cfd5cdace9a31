"""Guardrails for Amazon Bedrock, applied to any text (`ApplyGuardrail`).

Rule: what the guardrail anonymized becomes spans with its own words in their place; what it blocked concerns the texts
as a whole. Where its answer does not say which text an anonymized one belongs to, each text is asked about alone.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated
from urllib.parse import quote

import msgspec
from pydantic import Field

from tollhouse.core.call import Call
from tollhouse.core.spec import Spec
from tollhouse.policies.base import Parts, Service
from tollhouse.policies.guardrails.check import Finding, Phase, Span
from tollhouse.policies.guardrails.checks.changes import changes
from tollhouse.policies.guardrails.checks.pieces import Part, Piece, slices
from tollhouse.policies.guardrails.checks.placed import placed
from tollhouse.policies.guardrails.checks.remote import Labels, RemoteCheck, all_of

__all__ = ["BedrockGuardrail", "BedrockGuardrailSpec", "bedrock"]

_CHARACTERS = 20_000  # of one question: 20 of the 25 text units that a second has
_BLOCKS = 50
_MOST = 400_000
_INTERVENED = "GUARDRAIL_INTERVENED"
_ANONYMIZED = "ANONYMIZED"
_BLOCKED = "BLOCKED"


class BedrockGuardrailSpec(Spec):
    """A guardrail in Amazon Bedrock."""

    provider: str = Field(description="a provider of the kind bedrock, asked with its credentials in its region")
    guardrail: Annotated[
        str, Field(pattern=r"^([a-z0-9]+|arn:aws(-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:guardrail/[a-z0-9]+)$")
    ] = Field(description="its id or ARN")
    version: str = Field(default="DRAFT", pattern=r"^([1-9][0-9]{0,7}|DRAFT)$", description="its version")
    connections: int = Field(default=16, ge=1, le=1024, description="questions at once; others wait within `timeout`")


class _Hit(msgspec.Struct):
    """An entry of any of the policies' lists. Fields that hold parts of the text are not read."""

    action: str = ""
    type: str = ""
    name: str = ""


class _Policy(msgspec.Struct):
    topics: list[_Hit] = []
    filters: list[_Hit] = []
    custom_words: list[_Hit] = msgspec.field(default=[], name="customWords")
    word_lists: list[_Hit] = msgspec.field(default=[], name="managedWordLists")
    entities: list[_Hit] = msgspec.field(default=[], name="piiEntities")
    regexes: list[_Hit] = []


class _Assessment(msgspec.Struct):
    topic: _Policy | None = msgspec.field(default=None, name="topicPolicy")
    content: _Policy | None = msgspec.field(default=None, name="contentPolicy")
    word: _Policy | None = msgspec.field(default=None, name="wordPolicy")
    sensitive: _Policy | None = msgspec.field(default=None, name="sensitiveInformationPolicy")
    grounding: _Policy | None = msgspec.field(default=None, name="contextualGroundingPolicy")


class _Output(msgspec.Struct):
    text: str


class _Answer(msgspec.Struct):
    action: str
    outputs: list[_Output] = []
    assessments: list[_Assessment] = []


_answer = msgspec.json.Decoder(_Answer)


class BedrockGuardrail(RemoteCheck):
    name = "bedrock"
    masks = True

    def __init__(self, spec: BedrockGuardrailSpec, service: Service, timeout: float) -> None:
        super().__init__(service, timeout=timeout, at_once=spec.connections)
        self._target = f"/guardrail/{quote(spec.guardrail, safe='')}/version/{spec.version}/apply".encode("ascii")
        self._labels = Labels()

    async def look(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        if sum(map(len, texts)) > _MOST:
            raise self.cannot(f"the texts have more than {_MOST} characters")
        source = "INPUT" if phase == "request" else "OUTPUT"
        found = await all_of(self._asked(some, source) for some in _together(slices(texts, _CHARACTERS)))
        return placed(finding for several in found for finding in several)

    async def _asked(self, blocks: Sequence[Piece], source: str) -> list[Finding]:
        content = [{"text": {"text": block.text}} for block in blocks]
        said = await self.ask(self._target, {"source": source, "content": content}, _answer)
        if said.action == "NONE":
            return []
        if said.action != _INTERVENED:
            raise self.cannot("its answer has an action that is not known")
        blocked = [name for name, action in self._hits(said) if action == _BLOCKED]
        if blocked:
            return [Finding(name) for name in dict.fromkeys(blocked)]
        masked = [name for name, action in self._hits(said) if action == _ANONYMIZED]
        if not masked:
            return [Finding("intervened")]
        if len(said.outputs) != len(blocks):
            if len(blocks) == 1:
                raise self.cannot("its answer has no text in the place of what it anonymized")
            alone = await all_of(self._asked([block], source) for block in blocks)
            return [finding for several in alone for finding in several]
        return self._spans(blocks, said.outputs, masked)

    def _spans(self, blocks: Sequence[Piece], outputs: Sequence[_Output], masked: Sequence[str]) -> list[Finding]:
        spans: list[Span] = []
        replaces: list[str] = []
        for block, output in zip(blocks, outputs, strict=True):
            part: Part = block.parts[0]
            for start, end, text in changes(block.text, output.text):
                spans.append((part.text, part.start + start, part.start + end))
                replaces.append(text)
        if not spans:  # it says that it changed something
            raise self.cannot("its answer has the text unchanged that it says it anonymized")
        names = list(dict.fromkeys(masked))
        return [Finding(names[0], tuple(spans), ", ".join(names[1:]), tuple(replaces))]

    def _hits(self, said: _Answer) -> list[tuple[str, str]]:
        hits: list[tuple[str, str]] = []
        for one in said.assessments:
            for kind, policy in (("topic", one.topic), ("content", one.content), ("word", one.word),
                                 ("sensitive", one.sensitive), ("grounding", one.grounding)):  # fmt: skip
                if policy is None:
                    continue
                for several in (policy.topics, policy.filters, policy.entities, policy.regexes):
                    hits += [(self._labels.of(kind, hit.name or hit.type), hit.action) for hit in several]
                # A word's own entry has the word, and nothing else to call it by.
                hits += [(kind, hit.action) for hit in (*policy.custom_words, *policy.word_lists)]
        return hits


def bedrock(spec: BedrockGuardrailSpec, parts: Parts, timeout: float) -> BedrockGuardrail:
    """Raises ValueError."""
    if parts.services is None:
        raise ValueError("there are no providers here")
    return BedrockGuardrail(spec, parts.services(spec.provider, ("bedrock",), "", spec.connections), timeout)


def _together(blocks: Iterable[Piece]) -> list[list[Piece]]:
    """Blocks for as few questions as may be."""
    questions: list[list[Piece]] = []
    room = 0
    for block in blocks:
        if not questions or len(block.text) > room or len(questions[-1]) == _BLOCKS:
            questions.append([])
            room = _CHARACTERS
        questions[-1].append(block)
        room -= len(block.text)
    return questions
