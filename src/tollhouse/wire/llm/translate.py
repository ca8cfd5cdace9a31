"""Translation: one API's request, answer and stream in the words of another, by way of their neutral model.

Rule: a Translation knows two codecs of one kind and no API. What the provider cannot be told is refused with its places
by default, and listed for a warning where that is wanted; it is never left out in silence.
"""

from functools import partial

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm.codec import Codec, Lost, unreadable
from tollhouse.wire.llm.dialect import Dialect, bytes_of
from tollhouse.wire.llm.embedding import Embedded, Embedding
from tollhouse.wire.llm.model import (
    Answer,
    ArgumentsDelta,
    Began,
    Chat,
    Ended,
    Event,
    Part,
    PartBegan,
    Refusal,
    RefusalDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    Used,
)
from tollhouse.wire.llm.reader import Reader
from tollhouse.wire.llm.tokens import of_text

__all__ = ["TranslatedReader", "Translation", "spoken"]

Raw = msgspec.Raw

_SAYING = (TextDelta, ArgumentsDelta, ThinkingDelta, RefusalDelta)
_SAID = ("messages", "contents", "input")  # by who says what, in every API
_NOTHING = Raw(b"[]")
_SHOWN = 5  # places named in a refusal


class Translation:
    """One call's way between two APIs. chat: the request's meaning, in the neutral model of the codecs' kind. asker,
    asked: the caller's codec and the provider's."""

    __slots__ = ("_asked", "_asker", "_id", "_model", "_now", "chat")

    def __init__(self, chat: Chat | Embedding, asker: Codec, asked: Codec, now: int, *, id: str = "") -> None:
        """now, id: unix seconds and a name for the answer, for a provider that does not say them."""
        self._id = id
        self._model = chat.model
        self.chat = chat
        self._now = now
        self._asker = asker
        self._asked = asked

    def request(self, *, model: str, max_output: int, lossy: bool) -> tuple[dict[str, Raw], list[str]]:
        """The provider's request, and what is lost. Raises Failure 400 when something is and `lossy` is not allowed;
        another provider may be able to say it."""
        self._model = model
        lost = Lost(self._asker.quiet, partial(self._asker.place, self.chat))
        fields = self._asked.encode(self.chat, lost, model=model, max_output=max_output)
        if lost.places and not lossy:
            raise _inexpressible(lost.places, self._asked.name)
        if any(fields.get(name) == _NOTHING for name in _SAID):
            raise _nothing(self._asker.place(self.chat, "messages"), lost.places)
        return fields, lost.places

    def answer(self, body: bytes) -> tuple[bytes, Usage | None, str]:
        """The provider's answer for the caller, with its usage and model. Raises Failure 502."""
        answer: Answer | Embedded = self._asked.decode_answer(body)
        if isinstance(answer, Embedded):
            return self._embedded(answer)
        for choice in answer.choices:
            if choice.stop == "error" and not choice.parts:
                raise _broken(choice.detail)
        answer.created = answer.created or self._now
        answer.id = answer.id or self._id
        answer.model = answer.model or self._model
        return self._asker.encode_answer(answer, self.chat), answer.usage, answer.model

    def _embedded(self, answer: Embedded) -> tuple[bytes, Usage | None, str]:
        chat = self.chat
        assert isinstance(chat, Embedding)
        texts = chat.inputs
        if len(answer.vectors) != len(texts):
            raise unreadable(f"it has {len(answer.vectors)} embeddings for {len(texts)} texts")
        answer.model = answer.model or self._model
        if answer.usage is None:
            answer.usage = Usage(sum(of_text(bytes_of(text)) for text in texts), estimated=True)
        return self._asker.encode_answer(answer, chat), answer.usage, answer.model

    def reader(self, dialect: Dialect) -> "TranslatedReader":
        """A reader of the provider's stream that gives the caller's. dialect: the provider's."""
        return TranslatedReader(self, dialect)


class TranslatedReader(Reader):
    """StreamReader that translates."""

    __slots__ = ("_decoder", "_dialect", "_encoder", "_parts", "_translation")

    def __init__(self, translation: Translation, dialect: Dialect) -> None:
        super().__init__()
        self._dialect = dialect
        self._translation = translation
        self._decoder = translation._asked.decoder()
        self._encoder = translation._asker.encoder(translation.chat)
        self._parts = False

    def read(self, block: bytes) -> bytes:
        out = []
        decoder = self._decoder
        try:
            for name, data in self._dialect.events(block):
                if self.finished or not data:
                    continue
                events = decoder.read(name, data)
                if events:
                    self.began = True
                    for event in events:
                        if isinstance(event, _SAYING):
                            self.text += bytes_of(event.text)
                        else:
                            self._note(event)
                    written = self._encoder.write(events)
                    if written:
                        out.append(written)
                if decoder.finished:
                    self.began = True
                    self.counted = self.usage is not None
                    self.uncounted = decoder.uncounted
                    out.append(self._encoder.end())
                    self.finished = True
        except Failure as failure:
            # Its words are the provider's, not the caller's: it is told anew.
            self.failure = Failure(
                failure.status, failure.reason, failure.message, detail=failure.detail, retry=True, sent=True
            )
        return out[0] if len(out) == 1 else b"".join(out)

    @property
    def stopped(self) -> bool:
        return self._decoder.finished or self._decoder.stopped

    def last(self) -> bytes:
        self.finished = True
        self.counted = self.usage is not None
        self.uncounted = self._decoder.uncounted
        return self._encoder.end()

    def _note(self, event: Event) -> None:
        if isinstance(event, Used):
            self.usage = event.usage
        elif isinstance(event, Began):
            translation = self._translation
            event.id = event.id or translation._id
            event.created = event.created or translation._now
            self.model = event.model = event.model or translation._model
        elif isinstance(event, PartBegan):
            self._parts = True
            self.text += _said(event.value)
        elif isinstance(event, Ended) and event.stop == "error" and not self._parts:
            raise _broken(event.detail)


def _broken(reason: str) -> Failure:
    """The provider has given up before there was anything to tell: another try may do better."""
    message = f"the provider could not answer ({reason})" if reason else "the provider could not answer"
    return Failure(502, Reason.UPSTREAM_FAILURE, message, retry=True, sent=True)


def _inexpressible(places: list[str], api: str) -> Failure:
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    what = ", ".join(places[:_SHOWN]) + more
    message = (
        f"what is asked cannot be said to the provider in its API ({api}): {what}; leave it out, or let the gateway "
        "drop it (`lossy: drop` on the model)"
    )
    return Failure(400, Reason.INVALID_REQUEST, message, code="not_expressible")


def _nothing(place: str, lost: list[str]) -> Failure:
    """Every API refuses that, each in its own words."""
    why = f"; dropped were {', '.join(lost[:_SHOWN])}" if lost else ""
    message = f"{place}: nothing is left in it that could be said to the provider beside instructions{why}"
    return Failure(400, Reason.INVALID_REQUEST, message, code="not_expressible")


def spoken(answer: Answer) -> int:
    """Bytes of text in an answer, to estimate its tokens with when its provider does not count."""
    return sum(_said(part) for choice in answer.choices for part in choice.parts)


def _said(part: Part) -> int:
    if isinstance(part, ToolCall):
        return bytes_of(part.arguments)
    return bytes_of(part.text) if isinstance(part, (Text, Thinking, Refusal)) else 0
