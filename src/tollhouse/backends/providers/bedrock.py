"""Amazon Bedrock: the Converse API of a region, signed, or with one of Bedrock's own API keys; and embeddings, whose
form is the model's own: its name says which.
"""

import re
from collections.abc import Iterable
from functools import partial
from time import time
from typing import Literal, Self

from pydantic import Field, model_validator

from tollhouse.backends.aws import AccessKeys, AWSAuthSpec, aws_credential
from tollhouse.backends.credential import Credential
from tollhouse.backends.header_fields import bearer_line
from tollhouse.backends.provider import Face, Provider, below
from tollhouse.backends.providers.remote import RemoteSpec
from tollhouse.backends.sigv4 import Signer
from tollhouse.core.call import ModelCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.net.client import Client
from tollhouse.wire.llm import CODECS, CONVERSE
from tollhouse.wire.llm.codec import Codec
from tollhouse.wire.llm.codec.bedrock_embeddings import CohereEmbedCodec, TitanEmbedCodec
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.invoke import CohereInvoke, TitanInvoke

__all__ = ["BedrockSpec", "bedrock_provider"]

_SERVICE = "bedrock"
_OF_SIGNATURES = ("x-amz-date", "x-amz-security-token")
_EMBEDDINGS: tuple[tuple[re.Pattern[str], Dialect, Codec], ...] = (
    (re.compile(r"(?:^|[./])titan-embed-"), TitanInvoke(), TitanEmbedCodec()),
    (re.compile(r"(?:^|[./])cohere\.embed-"), CohereInvoke(), CohereEmbedCodec()),
)
"""Forms of embeddings, by the names of their models."""


class BedrockSpec(RemoteSpec):
    """Amazon Bedrock. A target's `model` is a model id, an inference profile or an ARN. Requests are signed with the
    access keys that `auth` says, unless there is an api_key or an `authorization` header."""

    kind: Literal["bedrock"]
    region: str = Field(
        pattern=r"^[a-z]{2}(-[a-z]+)+-\d$", description="where the models are", examples=["eu-central-1"]
    )
    base_url: str = Field(default="", description="another endpoint; none: the region's own")
    auth: AWSAuthSpec | None = Field(default=None, description="where the access keys come from; none: AWS's own chain")

    @model_validator(mode="after")
    def _signature(self) -> Self:
        for name in self.headers:
            if name.lower() in _OF_SIGNATURES:
                raise ValueError(f"the header {name!r} belongs to a signature: it is the gateway's own to set")
        return self

    @property
    def url(self) -> str:
        """Where requests go."""
        suffix = "amazonaws.com.cn" if self.region.startswith("cn-") else "amazonaws.com"
        return self.base_url or f"https://bedrock-runtime.{self.region}.{suffix}"


class BedrockProvider(Provider):
    """Chooses the form of embeddings by the model's name."""

    __slots__ = ("_embeddings",)

    def __init__(self, name: str, clock: Clock, converse: Face, embeddings: Iterable[Face]) -> None:
        super().__init__(name, "bedrock", clock, (converse,))
        self._embeddings = tuple(embeddings)

    def answers(self, operation: str, translatable: bool) -> bool:
        return translatable

    def face(self, call: ModelCall, model: str) -> Face:
        if CODECS[call.operation].kind == "chat":
            return super().face(call, model)
        for (names, _, _), face in zip(_EMBEDDINGS, self._embeddings, strict=True):
            if names.search(model):
                return face
        message = f"{model!r} is not known to make embeddings; amazon.titan-embed-* and cohere.embed-* are"
        raise Failure(400, Reason.INVALID_REQUEST, message, code="not_expressible")

    def all_faces(self) -> Iterable[Face]:
        return *super().all_faces(), *self._embeddings


def bedrock_provider(name: str, spec: BedrockSpec, client: Client, clock: Clock) -> Provider:
    """Raises OriginError where TLS files or the proxy cannot be used."""
    origin, base = spec.origin(spec.url)
    pool = client.pool(origin, spec.connections)
    sign = None
    credential: Credential
    if spec.keyed("authorization"):
        credential = spec.credential(name, bearer_line)
    else:
        credential = keys = aws_credential(
            name, spec.auth or AWSAuthSpec(), client, clock, region=spec.region, proxy=spec.proxy
        )
        sign = partial(_signed, Signer(spec.region, _SERVICE), keys, origin.authority)

    def face(dialect: Dialect, codec: Codec) -> Face:
        return Face(
            dialect,
            pool,
            credential,
            target=below(base, dialect),
            base=base,
            codec=codec,
            fields=spec.headers,
            names_model=False,
            sign=sign,
        )

    converse = face(CONVERSE, CODECS[CONVERSE.operation])
    return BedrockProvider(name, clock, converse, [face(dialect, codec) for _, dialect, codec in _EMBEDDINGS])


def _signed(
    signer: Signer, keys: AccessKeys, host: bytes, target: bytes, body: bytes, method: bytes = b"POST"
) -> bytes:
    """Signed are the fields that decide where it goes and what it is; the others may be anything."""
    assert keys.value is not None  # it is settled
    path, _, query = target.partition(b"?")
    headers = [(b"host", host)]
    if method == b"POST":
        headers.append((b"content-type", b"application/json"))
    return signer.lines(keys.value, time(), method=method, path=path, headers=headers, body=body, query=query)
