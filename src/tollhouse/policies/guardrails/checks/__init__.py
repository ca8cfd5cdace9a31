"""The guards that are no patterns, by the key that configures them.

Rule: a guard is one file with its Spec and its code, and one line here.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.check import Check, Phase
from tollhouse.policies.guardrails.checks.azure_content_safety import (
    AzureContentSafety,
    AzureContentSafetySpec,
    azure_content_safety,
)
from tollhouse.policies.guardrails.checks.bedrock import BedrockGuardrail, BedrockGuardrailSpec, bedrock
from tollhouse.policies.guardrails.checks.injection import Injection, InjectionSpec, injection
from tollhouse.policies.guardrails.checks.language import Language, LanguageSpec, written_in
from tollhouse.policies.guardrails.checks.length import Length, LengthSpec, as_long_as
from tollhouse.policies.guardrails.checks.model_armor import ModelArmor, ModelArmorSpec, model_armor
from tollhouse.policies.guardrails.checks.names import Names, NamesSpec, names
from tollhouse.policies.guardrails.checks.openai_moderation import (
    OpenAIModeration,
    OpenAIModerationSpec,
    openai_moderation,
)
from tollhouse.policies.guardrails.checks.schema import Schema, SchemaSpec, as_schema
from tollhouse.policies.guardrails.checks.topics import Topics, TopicsSpec, topics
from tollhouse.policies.guardrails.checks.webhook import Webhook, WebhookSpec, webhook

__all__ = [
    "CHECKS", "AzureContentSafetySpec", "BedrockGuardrailSpec", "CheckKind", "InjectionSpec", "LanguageSpec",
    "LengthSpec", "ModelArmorSpec", "NamesSpec", "OpenAIModerationSpec", "SchemaSpec", "TopicsSpec",
    "WebhookSpec",
]  # fmt: skip

Make = Callable[[Any, Parts, float], Check]


class CheckKind(NamedTuple):
    """A kind of guard. phases, masks, whole: as of `Check`. make: from its Spec, what it may use, and the seconds that
    one check may take; raises ValueError: what is wrong, and what would be right."""

    phases: frozenset[Phase]
    masks: bool
    whole: bool
    make: Make


def _kind(check: type[Any], make: Make) -> CheckKind:
    return CheckKind(check.phases, check.masks, check.whole, make)


CHECKS: Final[Mapping[str, CheckKind]] = {
    "injection": _kind(Injection, injection),
    "schema": _kind(Schema, as_schema),
    "language": _kind(Language, written_in),
    "length": _kind(Length, as_long_as),
    "names": _kind(Names, names),
    "topics": _kind(Topics, topics),
    "webhook": _kind(Webhook, webhook),
    "openai_moderation": _kind(OpenAIModeration, openai_moderation),
    "bedrock": _kind(BedrockGuardrail, bedrock),
    "model_armor": _kind(ModelArmor, model_armor),
    "azure_content_safety": _kind(AzureContentSafety, azure_content_safety),
}
