"""OpenAI moderations: `POST /moderations`, answered whole. It costs nothing and tells no usage; the model may be left
out.
"""

from collections.abc import Mapping

import msgspec

from tollhouse.wire.llm.dialect import Asked
from tollhouse.wire.llm.openai_chat import OpenAIDialect

__all__ = ["Moderations"]

DEFAULT_MODEL = "omni-moderation-latest"
"""For a caller who names none, as at OpenAI."""


class Moderations(OpenAIDialect):
    """`POST /v1/moderations`."""

    __slots__ = ()

    operation = "moderations"
    path = b"/moderations"
    streams = False

    def decode(self, body: bytes, *, model: str | None = None, stream: bool | None = None) -> Asked:
        asked = super().decode(body, model=DEFAULT_MODEL if model is None else model, stream=stream)
        return super().decode(body, stream=stream) if model is None and "model" in asked.fields else asked

    def output_bound(self, fields: Mapping[str, msgspec.Raw]) -> int:
        return 0

    def said(self, answer: bytes) -> int:
        return 0
