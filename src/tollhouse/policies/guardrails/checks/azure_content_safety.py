"""Azure AI Content Safety: harm by category and severity, blocklists, and attacks on the prompt.

Rule: texts share a question up to the 10,000 characters that it takes. An answer without a category that was asked for
is no answer.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import msgspec
from pydantic import BeforeValidator, Field, model_validator

from tollhouse.core.call import Call
from tollhouse.core.spec import Secret, Spec
from tollhouse.net.client import Origin
from tollhouse.policies.base import Parts, Service
from tollhouse.policies.guardrails.check import Finding, Phase
from tollhouse.policies.guardrails.checks.pieces import pieces
from tollhouse.policies.guardrails.checks.placed import placed
from tollhouse.policies.guardrails.checks.remote import Labels, OwnService, RemoteCheck, all_of

__all__ = ["AzureContentSafety", "AzureContentSafetySpec", "azure_content_safety"]

_CHARACTERS = 10_000
_MOST = 400_000
_MEDIUM = 4

Category = Literal["Hate", "SelfHarm", "Sexual", "Violence"]
Severity = Annotated[int, Field(ge=1, le=6)]


def _by_name(value: Any) -> Any:
    return dict.fromkeys(value, _MEDIUM) if isinstance(value, (list, tuple)) else value


class AzureContentSafetySpec(Spec):
    """A resource of Azure AI Content Safety."""

    url: str = Field(description="the resource", examples=["https://name.cognitiveservices.azure.com"])
    api_key: Secret | None = Field(default=None, description="sent as `Ocp-Apim-Subscription-Key`")
    provider: str | None = Field(
        default=None, description="a provider of the kind azure with `auth`, whose Entra identity is used in its place"
    )
    categories: Annotated[
        dict[Category, Severity],
        BeforeValidator(_by_name, json_schema_input_type=list[Category] | dict[Category, Severity]),
    ] = Field(
        default={"Hate": _MEDIUM, "SelfHarm": _MEDIUM, "Sexual": _MEDIUM, "Violence": _MEDIUM},
        description="those that count, each with the severity from which it does: 2, 4 or 6; {} for none",
    )
    blocklists: tuple[Annotated[str, Field(pattern=r"^[0-9A-Za-z._~-]{1,64}$")], ...] = Field(
        default=(), max_length=10, description="of the resource, by name; any match counts"
    )
    shield: bool = Field(default=False, description="look for attacks in prompts, too (Prompt Shields)")
    api_version: str = Field(default="2024-09-01", pattern=r"^[0-9A-Za-z.-]+$", description="of the API")
    connections: int = Field(default=16, ge=1, le=1024, description="questions at once; others wait within `timeout`")

    @model_validator(mode="after")
    def _usable(self) -> "AzureContentSafetySpec":
        if Origin.of(self.url)[1] != b"/":
            raise ValueError("name the resource alone, like https://name.cognitiveservices.azure.com")
        if (self.api_key is None) == (self.provider is None):
            raise ValueError("name `api_key`, or a `provider` whose identity is used")
        if not self.categories and not self.blocklists and not self.shield:
            raise ValueError("it looks for nothing: name `categories`, `blocklists`, or `shield: true`")
        return self

    @property
    def phases(self) -> frozenset[Phase]:
        """Where it finds anything: attacks on prompts are looked for in requests alone."""
        return frozenset(("request", "response") if self.categories or self.blocklists else ("request",))


class _Severity(msgspec.Struct):
    category: str
    severity: int


class _Match(msgspec.Struct):
    blocklist: str = msgspec.field(name="blocklistName")


class _Analysis(msgspec.Struct, rename="camel"):
    categories_analysis: list[_Severity]
    blocklists_match: list[_Match] = []


class _Attack(msgspec.Struct):
    detected: bool = msgspec.field(name="attackDetected")


class _Shielded(msgspec.Struct, rename="camel"):
    user_prompt_analysis: _Attack


_analysis = msgspec.json.Decoder(_Analysis)
_shielded = msgspec.json.Decoder(_Shielded)


class AzureContentSafety(RemoteCheck):
    name = "azure_content_safety"

    def __init__(self, spec: AzureContentSafetySpec, service: Service, timeout: float) -> None:
        super().__init__(service, timeout=timeout, at_once=spec.connections)
        self._spec = spec
        query = urlencode({"api-version": spec.api_version}).encode("ascii")
        self._analyze = b"/contentsafety/text:analyze?" + query
        self._shield = b"/contentsafety/text:shieldPrompt?" + query
        self._labels = Labels()

    async def look(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        if sum(map(len, texts)) > _MOST:
            raise self.cannot(f"the texts have more than {_MOST} characters")
        spec = self._spec
        asked = [piece.text for piece in pieces(texts, _CHARACTERS)]
        questions = []
        if spec.categories or spec.blocklists:
            questions += [self._analyzed(text) for text in asked]
        if spec.shield and phase == "request":
            questions += [self._attacked(text) for text in asked]
        return placed([finding for several in await all_of(questions) for finding in several])

    async def _analyzed(self, text: str) -> list[Finding]:
        spec = self._spec
        question: dict[str, Any] = {"text": text, "outputType": "FourSeverityLevels"}
        if spec.categories:  # without any it looks for all of them
            question["categories"] = list(spec.categories)
        if spec.blocklists:
            question |= {"blocklistNames": spec.blocklists, "haltOnBlocklistHit": False}
        said = await self.ask(self._analyze, question, _analysis)
        severities = {one.category: one.severity for one in said.categories_analysis}
        found: list[Finding] = []
        for category, threshold in spec.categories.items():
            severity = severities.get(category)
            if severity is None:
                raise self.cannot(f"its answer has no category {category!r}")
            if severity >= threshold:
                found.append(Finding(category.lower(), message=f"severity {severity}"))
        lists = {match.blocklist for match in said.blocklists_match}
        return found + [Finding(self._labels.of("blocklist", name)) for name in spec.blocklists if name in lists]

    async def _attacked(self, text: str) -> list[Finding]:
        said = await self.ask(self._shield, {"userPrompt": text, "documents": []}, _shielded)
        return [Finding("prompt_attack")] if said.user_prompt_analysis.detected else []


def azure_content_safety(spec: AzureContentSafetySpec, parts: Parts, timeout: float) -> AzureContentSafety:
    """Raises ValueError."""
    key = spec.api_key
    if key is None:
        if parts.services is None:
            raise ValueError("there are no providers here")
        service = parts.services(spec.provider or "", ("azure",), spec.url, spec.connections)
        return AzureContentSafety(spec, service, timeout)
    own = parts.shared(
        ("guardrails azure_content_safety", spec.fingerprint()),
        lambda: OwnService(
            parts.client,
            spec.url,
            connections=spec.connections,
            lines=b"ocp-apim-subscription-key: %b\r\n" % key.get_secret_value().encode("ascii"),
        ),
        OwnService.close,
    )
    return AzureContentSafety(spec, own, timeout)
