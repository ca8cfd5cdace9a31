"""Where texts stand in the APIs of language models, and how they are changed there. A file an API; no I/O.

- `request_texts(operation, fields)` and `answer_texts(operation, body)` are whole values: look at the `pieces`, send
  what `replaced` gives.
- `stream_texts(operation)` reads one stream: `read` its blocks, and for each `Event` end in the window what it
  finishes, open what it opens, push its texts, end what it closes; `write` it when the window lets it go. What is left
  at the end is whole or cut as the last `ending` says, and cut if none did.

An operation is what `Dialect.operation` calls it. `supports` tells those that there are forms of; anything else cannot
be looked at, and whoever guards it says what becomes of it.
"""

from collections.abc import Callable, Mapping

import msgspec

from tollhouse.wire.guard.llm import (
    chat,
    completions,
    converse,
    gemini,
    messages,
    others,
    responses,
    responses_forms,
)
from tollhouse.wire.guard.llm.events import Event, Said, StreamTexts
from tollhouse.wire.guard.llm.forms import Form
from tollhouse.wire.guard.llm.objects import Object
from tollhouse.wire.guard.llm.texts import FieldTexts, Piece, Texts

__all__ = [
    "Event",
    "FieldTexts",
    "Piece",
    "Said",
    "StreamTexts",
    "Texts",
    "answer_texts",
    "request_texts",
    "stream_texts",
    "supports",
    "supports_stream",
]

_WHOLE: Mapping[str, tuple[Object, Form]] = {
    "chat": (chat.REQUEST, chat.ANSWER),
    "completions": (completions.REQUEST, completions.ANSWER),
    "responses": (responses_forms.REQUEST, responses_forms.ANSWER),
    "messages": (messages.REQUEST, messages.ANSWER),
    "generate": (gemini.REQUEST, gemini.ANSWER),
    "converse": (converse.REQUEST, converse.ANSWER),
    "count_tokens": (messages.REQUEST, others.NUMBERS),
    "count": (others.COUNT, others.NUMBERS),
    "embeddings": (others.EMBEDDINGS, others.NUMBERS),
    "embed": (others.EMBED, others.NUMBERS),
    "embed_batch": (others.EMBED_BATCH, others.NUMBERS),
    "moderations": (others.MODERATIONS, others.NUMBERS),
    "rerank": (others.RERANK, others.RERANK_ANSWER),
    "images": (others.IMAGES, others.IMAGES_ANSWER),
    "speech": (others.SPEECH, others.NUMBERS),
}
_STREAMS: Mapping[str, Callable[[], StreamTexts]] = {
    "chat": chat.ChatTexts,
    "completions": completions.CompletionsTexts,
    "responses": responses.ResponsesTexts,
    "messages": messages.MessagesTexts,
    "generate": gemini.GeminiTexts,
    "converse": converse.ConverseTexts,
}


def supports(operation: str) -> bool:
    """Whether requests and whole answers of an operation can be looked at."""
    return operation in _WHOLE


def supports_stream(operation: str) -> bool:
    """Whether its streams can be."""
    return operation in _STREAMS


def request_texts(operation: str, fields: Mapping[str, msgspec.Raw]) -> FieldTexts:
    """The texts of a request. fields: as `Dialect.decode` gives them. Raises ValueError for what cannot be read, and
    KeyError for an operation that is not supported."""
    return FieldTexts(_WHOLE[operation][0], fields)


def answer_texts(operation: str, body: bytes) -> Texts:
    """The texts of a whole answer; an error's too. Raises as `request_texts`."""
    return Texts(_WHOLE[operation][1], body, many=operation == "generate")


def stream_texts(operation: str) -> StreamTexts:
    """A reader of one stream. Raises KeyError for an operation without one."""
    return _STREAMS[operation]()
