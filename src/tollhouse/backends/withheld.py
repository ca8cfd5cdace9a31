"""Answers that a filter withheld: status 200, whole, and nothing in them but why.

Rule: what has said anything is an answer. Some APIs refuse a request with a status of its own, some in this way; to
somebody who has another model for it both are the same.
"""

from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec import Codec
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.fold import fold
from tollhouse.wire.llm.model import Answer, Choice, Part, Refusal, Text, Thinking

__all__ = ["withheld", "withheld_stream"]

_FILTERED = ("content_filter", "refusal")


def withheld(codec: Codec, body: bytes) -> str | None:
    """Why a whole answer in the codec's API was withheld, "" where that is not told; None for any other answer, and for
    what is none that we can read."""
    try:
        answer = codec.decode_answer(body)
    except Failure:
        return None
    return _why(answer) if isinstance(answer, Answer) else None


def withheld_stream(codec: Codec, dialect: Dialect, stream: bytes) -> str | None:
    """As `withheld`, of a whole stream."""
    decoder = codec.decoder()
    try:
        events = [e for name, data in dialect.events(stream) if data for e in decoder.read(name, data)]
    except Failure:
        return None
    return _why(fold(events, dialect.operation))


def _why(answer: Answer) -> str | None:
    if not answer.choices or not all(map(_is_filtered, answer.choices)):
        return None
    return answer.choices[0].detail


def _is_filtered(choice: Choice) -> bool:
    return choice.stop in _FILTERED and not any(map(_says, choice.parts))


def _says(part: Part) -> bool:
    if isinstance(part, (Text, Refusal)):
        return bool(part.text)
    return not isinstance(part, Thinking)
