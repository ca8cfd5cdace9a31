"""The Gemini API (Google AI Studio), and every server that speaks it."""

from functools import partial
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from tollhouse.backends.header_fields import key_line
from tollhouse.backends.provider import Face, Provider, below
from tollhouse.backends.providers.remote import TokenSpec, remote_credential
from tollhouse.core.clock import Clock
from tollhouse.net.client import Client
from tollhouse.wire.llm import CODECS, GEMINI, GENERATE

__all__ = ["GeminiSpec", "gemini_provider"]

_URL = "https://generativelanguage.googleapis.com/v1beta"


class GeminiSpec(TokenSpec):
    """The Gemini API. A target's `model` is like gemini-2.5-flash."""

    key_fields: ClassVar[tuple[str, ...]] = ("authorization", "x-goog-api-key")

    kind: Literal["gemini"]
    base_url: str = Field(default=_URL, description="up to and with the version: /models/... is added")

    @field_validator("base_url")
    @classmethod
    def _without_models(cls, value: str) -> str:
        if value.endswith("/models"):
            raise ValueError("leave /models out: the model's name and what it is asked are added to the version")
        return value

    @property
    def strict_url(self) -> str:
        return _URL


def gemini_provider(name: str, spec: GeminiSpec, client: Client, clock: Clock) -> Provider:
    """Raises OriginError where TLS files or the proxy cannot be used."""
    origin, base = spec.origin(spec.base_url)
    pool = client.pool(origin, spec.connections)
    credential = remote_credential(name, spec, partial(key_line, b"x-goog-api-key"), client, clock)
    faces = [
        Face(
            dialect,
            pool,
            credential,
            target=below(base, dialect),
            base=base,
            codec=CODECS.get(dialect.operation),
            fields=spec.headers,
            names_model=dialect is not GENERATE,  # what counts and embeds names it again in its body
        )
        for dialect in GEMINI
    ]
    return Provider(name, "gemini", clock, faces)
