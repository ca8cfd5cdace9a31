"""Vertex AI: Google's models and Anthropic's in a project and a region of one's own.

Rule: which place answers is decided for each call, by the first rule that matches; what may be chosen is written in
configuration, so that no caller can name a place.
"""

import re
from collections.abc import Iterable
from functools import partial
from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import quote

import msgspec
from pydantic import Field, model_validator

from tollhouse.backends.credential import Credential
from tollhouse.backends.google import GoogleAuthSpec, google_credential
from tollhouse.backends.header_fields import key_line
from tollhouse.backends.provider import Face, Provider, below
from tollhouse.backends.providers.anthropic import FORWARDED
from tollhouse.backends.providers.remote import RemoteSpec
from tollhouse.core.call import ModelCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.expr import Cel, Expression, Outcome
from tollhouse.core.spec import Spec
from tollhouse.net.client import Client, Pool
from tollhouse.wire.llm import CODECS, GENERATE, MESSAGES
from tollhouse.wire.llm.codec import Codec
from tollhouse.wire.llm.codec.gemini_embeddings import (
    VertexBatchEmbedCodec,
    VertexEmbedCodec,
    VertexPredictCodec,
)
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.embedding import Embedding
from tollhouse.wire.llm.vertex import VertexBatchEmbed, VertexEmbed, VertexPredict

__all__ = ["VertexSpec", "vertex_provider"]

Raw = msgspec.Raw

_PROJECT = r"^[a-z0-9.:-]+$"
_REGION = r"^[a-z0-9-]+$"
_VERSION = Raw(b'"vertex-2023-10-16"')
_CLAUDE = re.compile(r"(?:^|/)claude")
_CONTENT = re.compile(r"gemini|maas")
"""Models whose embeddings are asked for with `embedContent`; older ones with `predict`."""

_KINDS = ("chat", "embeddings")
_EMBEDDINGS: tuple[tuple[Dialect, Codec], ...] = (
    (VertexEmbed(), VertexEmbedCodec()),
    (VertexBatchEmbed(), VertexBatchEmbedCodec()),
    (VertexPredict(), VertexPredictCodec()),
)

Project = Annotated[str, Field(pattern=_PROJECT)]
Region = Annotated[str, Field(pattern=_REGION)]


class PlaceSpec(Spec):
    """Another project or region, for some calls."""

    when: Cel = Field(description="which calls: CEL, like 'principal.org == \"emea\"'")
    project: Project | None = Field(default=None, description="none: the provider's")
    region: Region | None = Field(default=None, description="none: the provider's")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.project is None and self.region is None:
            raise ValueError("name a `project` or a `region`; without them the rule has no effect")
        return self


class VertexSpec(RemoteSpec):
    """Vertex AI. A target's `model` is like gemini-2.5-pro or claude-sonnet-4-5@20250929."""

    key_fields: ClassVar[tuple[str, ...]] = ("authorization", "x-goog-api-key")

    kind: Literal["vertex"]
    project: Project = Field(description="which is billed")
    region: Region = Field(default="global", description="where the models are", examples=["europe-west1"])
    places: tuple[PlaceSpec, ...] = Field(default=(), description="the first whose `when` is true decides")
    auth: GoogleAuthSpec | None = Field(default=None, description="whose access token is sent")
    base_url: str = Field(default="", description="another endpoint for every region, without the version")

    @model_validator(mode="after")
    def _credentials(self) -> Self:
        if self.auth is None and not self.keyed(*self.key_fields):
            raise ValueError("credentials are missing: set `auth`, like auth: {credentials: account.json}")
        return self

    def url(self, region: str) -> str:
        """Where a region's requests go."""
        host = "aiplatform.googleapis.com" if region == "global" else f"{region}-aiplatform.googleapis.com"
        return self.base_url or f"https://{host}"


class _Place:
    """The faces of one project in one region."""

    __slots__ = ("anthropic", "embed", "embed_batch", "google", "predict")

    def __init__(self, google: Face, anthropic: Face, embeddings: Iterable[Face]) -> None:
        """embeddings: of one text, of several, and of older models."""
        self.google = google
        self.anthropic = anthropic
        self.embed, self.embed_batch, self.predict = embeddings

    def all(self) -> tuple[Face, ...]:
        return self.google, self.anthropic, self.embed, self.embed_batch, self.predict


class VertexProvider(Provider):
    """Chooses the place by the call, and the API by the model's name: it says who made it."""

    __slots__ = ("_otherwise", "_places")

    def __init__(self, name: str, clock: Clock, places: Iterable[tuple[Expression, _Place]], otherwise: _Place) -> None:
        super().__init__(name, "vertex", clock)
        self._places = tuple(places)
        self._otherwise = otherwise

    @property
    def speaks(self) -> frozenset[str]:
        return frozenset((GENERATE.operation, MESSAGES.operation))

    def answers(self, operation: str, translatable: bool) -> bool:
        return translatable and CODECS[operation].kind in _KINDS

    def face(self, call: ModelCall, model: str) -> Face:
        place = self._otherwise
        for when, other in self._places:
            if when.ask(call) is Outcome.YES:
                place = other
                break
        claude = _CLAUDE.search(model) is not None
        if CODECS[call.operation].kind == "embeddings":
            if claude:
                message = f"{model!r} is a model of Anthropic's, and those make no embeddings"
                raise Failure(400, Reason.INVALID_REQUEST, message, code="not_expressible")
            return _embedding(place, call, model)
        return place.anthropic if claude else place.google

    def all_faces(self) -> Iterable[Face]:
        for place in (self._otherwise, *(place for _, place in self._places)):
            yield from place.all()


def vertex_provider(name: str, spec: VertexSpec, client: Client, clock: Clock) -> Provider:
    """Raises OriginError where TLS files or the proxy cannot be used."""
    credential: Credential
    if spec.auth is not None:
        credential = google_credential(name, spec.auth, client, clock, proxy=spec.proxy)
    else:
        credential = spec.credential(name, partial(key_line, b"x-goog-api-key"))
    pools: dict[str, tuple[Pool, bytes]] = {}
    made: dict[tuple[str, str], _Place] = {}

    def place(project: str, region: str) -> _Place:
        if (project, region) not in made:
            url = spec.url(region)
            if url not in pools:
                origin, base = spec.origin(url)
                pools[url] = client.pool(origin, spec.connections), base
            pool, base = pools[url]
            made[project, region] = _place(spec, project, region, credential, pool, base)
        return made[project, region]

    places = [(Expression(p.when), place(p.project or spec.project, p.region or spec.region)) for p in spec.places]
    return VertexProvider(name, clock, places, place(spec.project, spec.region))


def _place(spec: VertexSpec, project: str, region: str, credential: Credential, pool: Pool, base: bytes) -> _Place:
    publishers = base + f"/v1/projects/{project}/locations/{region}/publishers/".encode("ascii")
    google = Face(
        GENERATE,
        pool,
        credential,
        target=partial(_generate, publishers + b"google/models/"),
        codec=CODECS[GENERATE.operation],
        fields=spec.headers,
        names_model=False,
    )
    anthropic = Face(
        MESSAGES,
        pool,
        credential,
        target=partial(_raw_predict, publishers + b"anthropic/models/"),
        codec=CODECS[MESSAGES.operation],
        fields=spec.headers,
        forwarded=(FORWARDED[1],),
        names_model=False,
        adds=_in_the_body,
    )
    embeddings = [
        Face(
            dialect,
            pool,
            credential,
            target=below(publishers + b"google/models/", dialect),
            codec=codec,
            fields=spec.headers,
            names_model=False,
        )
        for dialect, codec in _EMBEDDINGS
    ]
    return _Place(google, anthropic, embeddings)


def _embedding(place: _Place, call: ModelCall, model: str) -> Face:
    if not _CONTENT.search(model):
        return place.predict
    asked = call.chat
    if asked is None:  # how many texts there are decides
        decode = CODECS[call.operation].decode
        asked = call.chat = decode(call.fields, model=call.model, stream=call.stream)
    assert isinstance(asked, Embedding)
    return place.embed if len(asked.inputs) == 1 else place.embed_batch


def _generate(before: bytes, model: str, stream: bool) -> bytes:
    # All of the name is one segment of the path, so that what a caller may write in it leads nowhere else.
    method = GENERATE.stream_method + b"?alt=sse" if stream else GENERATE.method
    return b"%b%b:%b" % (before, quote(model, safe="").encode("ascii"), method)


def _raw_predict(before: bytes, model: str, stream: bool) -> bytes:
    return before + quote(model, safe="@").encode("ascii") + (b":streamRawPredict" if stream else b":rawPredict")


def _in_the_body(fields: dict[str, Raw]) -> dict[str, Raw]:
    """There the path names the model, and the body the version of the API."""
    fields.pop("model", None)
    fields.setdefault("anthropic_version", _VERSION)
    return fields
