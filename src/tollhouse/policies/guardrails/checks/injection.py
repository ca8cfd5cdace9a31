"""Texts that give a model other orders: by patterns, and by a classifier that is asked besides.

Rule: patterns come first and cost microseconds; a classifier is asked about what they let pass. It speaks the API that
servers of text classification have in common (Text Embeddings Inference, `POST /predict`): `{inputs: [[text], ...]}`,
answered with labels and scores for each.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Any

import msgspec
from pydantic import AfterValidator, Field, field_validator, model_validator

from tollhouse.core.call import Call
from tollhouse.core.spec import Secret, Spec
from tollhouse.net.client import Origin
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.check import Check, Finding, Phase
from tollhouse.policies.guardrails.checks.pieces import slices
from tollhouse.policies.guardrails.checks.remote import Labels, OwnService, RemoteCheck, all_of
from tollhouse.wire.guard.injection import NAMES, injections
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule

__all__ = ["Classifier", "ClassifierSpec", "Injection", "InjectionSpec", "injection"]

_INPUTS = 16
_MOST = 400_000


def _url(value: str) -> str:
    Origin.of(value)
    return value


class ClassifierSpec(Spec):
    """A model that classifies texts, behind HTTP."""

    url: Annotated[str, AfterValidator(_url)] = Field(
        description="asked with POST", examples=["http://127.0.0.1:8080/predict"]
    )
    api_key: Secret | None = Field(default=None, description="sent as `authorization: Bearer`")
    labels: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field(
        default=("INJECTION", "JAILBREAK", "MALICIOUS", "LABEL_1"),
        min_length=1,
        description="those that mean an attack",
    )
    threshold: float = Field(default=0.8, gt=0.0, le=1.0, description="score from which one of them counts")
    window: int = Field(default=1500, ge=500, le=20_000, description="characters of a text that it is given at once")
    connections: int = Field(default=16, ge=1, le=1024, description="questions at once; others wait within `timeout`")


class InjectionSpec(Spec):
    """Attacks on the prompt: true for all patterns, some of them by name, or what is asked besides."""

    rules: tuple[str, ...] = Field(
        default=NAMES, description="patterns: override, role, leak, markup, covert, smuggled; [] for none"
    )
    classifier: ClassifierSpec | None = Field(default=None, description="asked about what the patterns let pass")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if value is True:
            return {}
        return {"rules": value} if isinstance(value, (list, tuple)) else value

    @field_validator("rules")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in NAMES:
                raise ValueError(f"there are no patterns {name!r}; there are {', '.join(NAMES)}")
        return value

    @model_validator(mode="after")
    def _effect(self) -> "InjectionSpec":
        if not self.rules and self.classifier is None:
            raise ValueError("without `rules` and without a `classifier` nothing is found")
        if self.rules and find_spec("re2") is None:
            raise ValueError("its patterns need the extra `guard`: pip install 'tollhouse[guard]'")
        return self

    @property
    def patterns(self) -> tuple[Rule, ...]:
        """What is looked for without asking anybody."""
        return tuple(rule for rules in injections(self.rules).values() for rule in rules)


class _Label(msgspec.Struct):
    label: str
    score: float


_answer = msgspec.json.Decoder(list[list[_Label]])


class Classifier(RemoteCheck):
    """Asks the model."""

    name = "injection"

    def __init__(self, spec: ClassifierSpec, service: OwnService, timeout: float) -> None:
        super().__init__(service, timeout=timeout, at_once=spec.connections)
        self._spec = spec
        self._attacks = frozenset(label.casefold() for label in spec.labels)
        self._labels = Labels()

    async def look(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        if sum(map(len, texts)) > _MOST:
            raise self.cannot(f"the texts have more than {_MOST} characters")
        inputs = [piece.text for piece in slices(texts, self._spec.window)]
        asked = [inputs[at : at + _INPUTS] for at in range(0, len(inputs), _INPUTS)]
        worst: dict[str, float] = {}
        for several in await all_of(self._classified(some) for some in asked):
            for labels in several:
                for one in labels:
                    if one.label.casefold() in self._attacks and one.score >= self._spec.threshold:
                        name = self._labels.of("classifier", one.label)
                        worst[name] = max(worst.get(name, 0.0), one.score)
        return [Finding(name, message=f"score {score:.2f}") for name, score in worst.items()]

    async def _classified(self, inputs: list[str]) -> list[list[_Label]]:
        question = {"inputs": [[text] for text in inputs], "truncate": True}
        said = await self.ask(b"", question, _answer)
        if len(said) != len(inputs):
            raise self.cannot(f"it answers with {len(said)} results to {len(inputs)} texts")
        if not all(labels and all(0.0 <= one.score <= 1.0 for one in labels) for labels in said):
            raise self.cannot("its answer has a text without labels, or a score that is none")
        return said


class Injection:
    """As `Check`."""

    name = "injection"
    phases: frozenset[Phase] = frozenset(("request", "response"))
    masks = False
    whole = False

    def __init__(self, patterns: PatternSet | None, classifier: Check | None) -> None:
        self._patterns = patterns
        self._classifier = classifier

    async def check(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        found = self._by_patterns(texts) if self._patterns is not None else []
        if found or self._classifier is None:
            return found
        return await self._classifier.check(texts, call, phase)

    def _by_patterns(self, texts: Sequence[str]) -> list[Finding]:
        assert self._patterns is not None
        rules = self._patterns.rules
        names = dict.fromkeys(rules[one.rule].name for text in texts for one in self._patterns.find(text))
        return [Finding(name) for name in names]

    def health(self) -> str:
        return "" if self._classifier is None else self._classifier.health()

    async def close(self) -> None:
        if self._classifier is not None:
            await self._classifier.close()


def injection(spec: InjectionSpec, parts: Parts, timeout: float) -> Injection:
    """Raises OriginError, Refused."""
    asked = spec.classifier
    classifier: Classifier | None = None
    if asked is not None:
        key = asked.api_key
        lines = b"" if key is None else b"authorization: Bearer %b\r\n" % key.get_secret_value().encode("ascii")
        service = parts.shared(
            ("guardrails injection", asked.fingerprint()),
            lambda: OwnService(parts.client, asked.url, connections=asked.connections, lines=lines),
            OwnService.close,
        )
        classifier = Classifier(asked, service, timeout)
    patterns: PatternSet | None = None
    if spec.rules:  # made once for all chains: it takes a quarter of a second
        patterns = parts.shared(("guardrails injection patterns", spec.rules), lambda: PatternSet(spec.patterns))
    return Injection(patterns, classifier)
