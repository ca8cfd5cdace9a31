"""The kinds of providers: one file and one line each."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from tollhouse.backends.local import LocalProvider, LocalSpec
from tollhouse.backends.provider import Provider
from tollhouse.backends.providers.anthropic import AnthropicSpec, anthropic_provider
from tollhouse.backends.providers.azure import AzureSpec, azure_provider
from tollhouse.backends.providers.bedrock import BedrockSpec, bedrock_provider
from tollhouse.backends.providers.gemini import GeminiSpec, gemini_provider
from tollhouse.backends.providers.openai import OpenAISpec, openai_provider
from tollhouse.backends.providers.vertex import VertexSpec, vertex_provider
from tollhouse.core.clock import Clock
from tollhouse.core.spec import Spec
from tollhouse.net.client import Client

__all__ = ["ProviderSpec", "provider"]

ProviderSpec = Annotated[
    OpenAISpec | AnthropicSpec | AzureSpec | GeminiSpec | VertexSpec | BedrockSpec | LocalSpec,
    Field(discriminator="kind"),
]
"""Any provider, told apart by `kind`."""

_MAKERS: tuple[tuple[type[Spec], Callable[[str, Any, Client, Clock], Provider]], ...] = (
    (OpenAISpec, openai_provider),
    (AnthropicSpec, anthropic_provider),
    (AzureSpec, azure_provider),
    (GeminiSpec, gemini_provider),
    (VertexSpec, vertex_provider),
    (BedrockSpec, bedrock_provider),
    (LocalSpec, LocalProvider),
)


def provider(name: str, spec: Spec, client: Client, clock: Clock) -> Provider:
    """Build a Provider; nothing is connected or started yet, and it must be closed. Raises OriginError where TLS files
    or the proxy cannot be used."""
    for kind, make in _MAKERS:
        if isinstance(spec, kind):
            return make(name, spec, client, clock)
    raise TypeError(f"{type(spec).__name__} is not a provider")
