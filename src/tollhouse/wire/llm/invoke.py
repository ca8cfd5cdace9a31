"""Bedrock InvokeModel: `POST /model/{model}/invoke`, whose body is whatever the model takes. Asked for embeddings only,
and never by callers: what they say is translated.
"""

from urllib.parse import quote

from tollhouse.wire.llm.converse import BedrockConverse

__all__ = ["CohereInvoke", "TitanInvoke"]


class _Invoke(BedrockConverse):
    __slots__ = ()

    streams = False

    def target(self, model: str, *, stream: bool) -> bytes:
        return b"%b%b/invoke" % (self.path, quote(model, safe="").encode("ascii"))

    def read_target(self, path: bytes) -> tuple[str, bool] | None:
        return None


class TitanInvoke(_Invoke):
    """InvokeModel in the form of Titan's embeddings."""

    __slots__ = ()

    operation = "titan_embed"


class CohereInvoke(_Invoke):
    """InvokeModel in the form of Cohere's embeddings."""

    __slots__ = ()

    operation = "cohere_embed"
