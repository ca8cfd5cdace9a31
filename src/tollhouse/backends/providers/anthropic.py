"""Anthropic, and every server that speaks its API."""

from functools import partial
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from tollhouse.backends.header_fields import key_line
from tollhouse.backends.provider import Continuation, Face, Provider
from tollhouse.backends.providers.remote import TokenSpec, remote_credential
from tollhouse.core.clock import Clock
from tollhouse.net.client import Client
from tollhouse.wire.llm import CODECS, COUNT_TOKENS, MESSAGES

__all__ = ["FORWARDED", "VERSION", "AnthropicSpec", "anthropic_provider"]

_URL = "https://api.anthropic.com"

FORWARDED = (b"anthropic-version", b"anthropic-beta")
"""Header fields of callers that mean something to the API."""

VERSION = (b"anthropic-version", b"2023-06-01")
"""For a caller who does not say."""


class AnthropicSpec(TokenSpec):
    """Anthropic, or any server that speaks its API."""

    key_fields: ClassVar[tuple[str, ...]] = ("authorization", "x-api-key")

    kind: Literal["anthropic"]
    base_url: str = Field(default=_URL, description="without the version: /v1/messages is added")

    @field_validator("base_url")
    @classmethod
    def _without_version(cls, value: str) -> str:
        if value.endswith("/v1"):
            raise ValueError("leave /v1 out: /v1/messages is added to it")
        return value

    @property
    def strict_url(self) -> str:
        return _URL


def anthropic_provider(name: str, spec: AnthropicSpec, client: Client, clock: Clock) -> Provider:
    """Raises OriginError where TLS files or the proxy cannot be used."""
    origin, base = spec.origin(spec.base_url)
    pool = client.pool(origin, spec.connections)
    credential = remote_credential(name, spec, partial(key_line, b"x-api-key"), client, clock)
    faces = [
        Face(
            dialect,
            pool,
            credential,
            target=base + dialect.path,
            codec=CODECS.get(dialect.operation),
            fields=spec.headers,
            forwarded=FORWARDED,
            default=VERSION,
            continues=Continuation(),
        )
        for dialect in (MESSAGES, COUNT_TOKENS)
    ]
    return Provider(name, "anthropic", clock, faces)
