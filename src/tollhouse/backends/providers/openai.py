"""OpenAI, and every server that speaks its API."""

from typing import Literal

from pydantic import Field, SecretStr, model_validator

from tollhouse.backends.header_fields import bearer_line
from tollhouse.backends.provider import Face, Provider
from tollhouse.backends.providers.presets import PRESETS, Preset, PresetName
from tollhouse.backends.providers.remote import TokenSpec, remote_credential
from tollhouse.core.clock import Clock
from tollhouse.net.client import Client
from tollhouse.wire.llm import CHAT, CODECS, OPENAI_OTHERS, REALTIME, RERANK, RESPONSES
from tollhouse.wire.llm.codec.openai_chat import OpenAIChatCodec

__all__ = ["OpenAISpec", "openai_provider"]

_OWN = Preset("https://api.openai.com/v1", bound="max_completion_tokens", responses=True)
_OTHER = Preset("", keyed=False, bound="max_tokens")


class OpenAISpec(TokenSpec):
    """OpenAI, or any server that speaks its API."""

    kind: Literal["openai"]
    preset: PresetName | None = Field(
        default=None, description="a server that is known: its base_url, and where it differs from OpenAI's API"
    )
    base_url: str = Field(default=_OWN.base_url, description="up to and with the version, like http://host:9000/v1")
    organization: str | None = Field(default=None, pattern=r"^[!-~]+$", description="for keys of several organisations")
    project: str | None = Field(default=None, pattern=r"^[!-~]+$", description="for keys of several projects")
    stream_usage: bool = Field(
        default=True, description="ask every stream for its usage; false for a server that refuses `stream_options`"
    )
    responses: bool = Field(
        default=False,
        description="it speaks the responses API too; else its callers are translated. True for OpenAI's own",
    )
    continues: bool = Field(
        default=False,
        description="it goes on from an assistant's message at the end of a chat request, so that streams can resume",
    )

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, value: object) -> object:
        """What the preset says, where the configuration does not."""
        if not isinstance(value, dict):
            return value
        preset = PRESETS.get(str(value.get("preset")))
        if preset is None:
            own = str(value.get("base_url", _OWN.base_url)).rstrip("/") == _OWN.base_url
            return {"responses": True, **value} if own else value
        filled = {
            "base_url": preset.base_url,
            "stream_usage": preset.stream_usage,
            "responses": preset.responses,
            "continues": preset.continues,
        }
        return {**filled, **value}

    @property
    def strict_url(self) -> str:
        return self.known.base_url if self.known.keyed else ""

    @property
    def known(self) -> Preset:
        """What is known of the server."""
        if self.preset is not None:
            return PRESETS[self.preset]
        return _OWN if self.base_url == _OWN.base_url else _OTHER


def openai_provider(name: str, spec: OpenAISpec, client: Client, clock: Clock) -> Provider:
    """Raises OriginError where TLS files or the proxy cannot be used."""
    origin, base = spec.origin(spec.base_url)
    pool = client.pool(origin, spec.connections)
    credential = remote_credential(name, spec, bearer_line, client, clock)
    fields = {field.lower(): value for field, value in spec.headers.items()}
    for field, value in (("openai-organization", spec.organization), ("openai-project", spec.project)):
        if value is not None:
            fields.setdefault(field, SecretStr(value))
    dialects = (CHAT, *((RESPONSES,) if spec.responses else ()), *OPENAI_OTHERS)
    rerank = spec.known.rerank if spec.base_url == spec.known.base_url else b""
    rerank = rerank or base + RERANK.path
    codecs = {**CODECS, CHAT.operation: OpenAIChatCodec(spec.known.bound)}
    faces = [
        Face(
            dialect,
            pool,
            credential,
            target=rerank if dialect is RERANK else base + dialect.path,
            codec=codecs.get(dialect.operation),
            fields=fields,
            asks_usage=spec.stream_usage,
            continues=spec.known.continuation if spec.continues and dialect is CHAT else None,
        )
        for dialect in dialects
    ]
    target = base + REALTIME.path
    faces.append(Face(REALTIME, pool, credential, target=target, fields=fields, names_model=False))
    return Provider(name, "openai", clock, faces)
