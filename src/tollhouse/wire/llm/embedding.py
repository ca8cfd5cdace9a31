"""The neutral model of embeddings: texts in, vectors out, in order. What several APIs can say, and nothing else.

Rule: a text is never changed. What is not text (tokens of one model's vocabulary, pictures) keeps its place in
`untranslatable`, and no other API is asked for it: leaving it out would be another question.
"""

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm.model import Extra

__all__ = ["Embedded", "Embedding", "inexpressible"]


class Embedding(msgspec.Struct):
    """A request. dialect: the operation it was read of. dimensions: of each vector; None: the model's own number.
    encoding: "base64" for vectors as base64 of little-endian 32-bit floats, else numbers. purpose: what for: "query",
    "document", "classification", "clustering", "similarity", or Google's word in lower case; "" for not said. title: of
    a document. untranslatable: why its inputs cannot be asked of another API, with their place; "" where they can.
    unsaid: places of what no other API has a word for."""

    dialect: str
    model: str
    inputs: list[str]
    dimensions: int | None = None
    encoding: str = ""
    user: str | None = None
    purpose: str = ""
    title: str | None = None
    untranslatable: str = ""
    unsaid: list[str] = []
    extra: Extra | None = None

    def texts(self) -> list[str]:
        """The inputs, for another API. Raises Failure 400 where they are not all text."""
        if self.untranslatable:
            raise inexpressible(self.untranslatable)
        return self.inputs


class Embedded(msgspec.Struct):
    """An answer: one vector for each input, in their order. model: as the provider calls it, "" for not said."""

    vectors: list[list[float]]
    model: str = ""
    usage: Usage | None = None


def inexpressible(what: str) -> Failure:
    """400 for what cannot be asked of this provider, and must not be left out. Another target may do better."""
    return Failure(400, Reason.INVALID_REQUEST, what, code="not_expressible")
