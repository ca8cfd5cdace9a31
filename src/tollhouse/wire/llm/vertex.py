"""Vertex AI's methods for embeddings: asked of it, never by callers. Errors are as at the Gemini API."""

from urllib.parse import quote

from tollhouse.wire.llm.gemini import GeminiDialect

__all__ = ["VertexBatchEmbed", "VertexEmbed", "VertexPredict"]


class _VertexDialect(GeminiDialect):
    __slots__ = ()

    def target(self, model: str, *, stream: bool) -> bytes:
        """Below `.../publishers/google/models/`. All of the name is one segment of the path, so that what a caller may
        write in it leads nowhere else."""
        return b"%b:%b" % (quote(model, safe="").encode("ascii"), self.method)


class VertexEmbed(_VertexDialect):
    """`embedContent` of Gemini's models: one text."""

    __slots__ = ()

    operation = "vertex_embed"
    method = b"embedContent"


class VertexBatchEmbed(_VertexDialect):
    """`batchEmbedContents` of Gemini's models: several texts."""

    __slots__ = ()

    operation = "vertex_embed_batch"
    method = b"batchEmbedContents"


class VertexPredict(_VertexDialect):
    """`predict` of the text-embedding models."""

    __slots__ = ()

    operation = "predict"
    method = b"predict"
