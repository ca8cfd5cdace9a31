"""Azure OpenAI: OpenAI's API at a resource of one's own, where a model is a deployment."""

from functools import partial
from typing import ClassVar, Literal, Self
from urllib.parse import quote

from pydantic import Field, field_validator, model_validator

from tollhouse.backends.credential import Credential
from tollhouse.backends.entra import EntraAuthSpec, entra_credential
from tollhouse.backends.header_fields import key_line
from tollhouse.backends.provider import Face, Path, Provider
from tollhouse.backends.providers.remote import OpenSpec
from tollhouse.core.clock import Clock
from tollhouse.net.client import Client
from tollhouse.wire.llm import CHAT, CODECS, OPENAI_OTHERS, REALTIME, RESPONSES
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.realtime import Realtime

__all__ = ["AzureSpec", "azure_provider"]


class AzureSpec(OpenSpec):
    """Azure OpenAI. A target's `model` is the name of a deployment."""

    key_fields: ClassVar[tuple[str, ...]] = ("authorization", "api-key")

    kind: Literal["azure"]
    auth: EntraAuthSpec | None = Field(default=None, description="an Entra identity, in place of an API key")
    base_url: str = Field(
        description="the resource, like https://name.openai.azure.com", examples=["https://name.openai.azure.com"]
    )
    api_version: str | None = Field(
        default=None,
        pattern=r"^[0-9A-Za-z.-]+$",
        description="of the older API, like 2024-10-21, which has the deployment in the path; none: the v1 API",
    )

    @field_validator("base_url")
    @classmethod
    def _resource(cls, value: str) -> str:
        for tail in ("/openai/v1", "/openai"):
            if value.endswith(tail):
                raise ValueError(f"name the resource alone, without {tail}")
        return value

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        if self.auth is None and not self.keyed("authorization", "api-key"):
            raise ValueError("credentials are missing: set api_key or `auth`")
        return self


def azure_provider(name: str, spec: AzureSpec, client: Client, clock: Clock) -> Provider:
    """Raises OriginError where TLS files or the proxy cannot be used."""
    origin, base = spec.origin(spec.base_url)
    pool = client.pool(origin, spec.connections)
    credential: Credential
    if spec.auth is not None:
        credential = entra_credential(name, spec.auth, client, clock, proxy=spec.proxy)
    else:
        credential = spec.credential(name, partial(key_line, b"api-key"))
    version = spec.api_version
    api = base + (b"/openai/v1" if version is None else b"/openai")
    query = b"" if version is None else b"?api-version=%b" % version.encode("ascii")

    def target(dialect: Dialect) -> bytes | Path:
        after = dialect.path + query
        if version is None or dialect is RESPONSES:
            return api + after
        before = api + b"/deployments/"
        return lambda model, _: before + quote(model, safe="").encode("ascii") + after

    faces = [
        Face(
            dialect,
            pool,
            credential,
            target=target(dialect),
            codec=CODECS.get(dialect.operation),
            fields=spec.headers,
            asks_usage=True,
            base=api,
        )
        for dialect in (CHAT, RESPONSES, *OPENAI_OTHERS)
    ]
    realtime = REALTIME if version is None else Realtime("deployment", f"api-version={version}")
    faces.append(Face(realtime, pool, credential, target=api + realtime.path, fields=spec.headers, names_model=False))
    made = Provider(name, "azure", clock, faces)
    made.lists += query
    return made
