"""Codec: one API read into its neutral model and written out of it. Bytes and values; no I/O, no asyncio.

Rule: a codec knows its API and the neutral model, and no other codec. `decode` of what it wrote gives what it was
given: A -> neutral -> A loses nothing that A can say. What cannot be said is put down as lost, with the caller's name
for the place, and never left out in silence.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm.model import Event, Extra

__all__ = ["Codec", "Lost", "StreamDecoder", "StreamEncoder", "invalid", "misread", "unreadable"]

Raw = msgspec.Raw

_NOTHING = (b"null", b"[]", b"{}", b'""')
_BLANK = b" \t\r\n"
_NAMED = 64


class Lost:
    """What an encoder could not say, in the order it was found. `add` takes the place, named by the neutral model
    ("temperature", "messages[2].parts[0]: a picture by URL"), each once. quiet: `Codec.quiet` of the caller's API.
    named: gives the caller's name for a place, to the first of them; the others keep the neutral model's, since
    nobody reads so many."""

    __slots__ = ("_known", "_named", "_quiet", "places")

    def __init__(
        self, quiet: Mapping[str, tuple[bytes, ...]] | None = None, named: Callable[[str], str] | None = None
    ) -> None:
        self.places: list[str] = []
        self._known: set[str] = set()
        self._quiet = quiet or {}
        self._named = named

    def add(self, place: str) -> None:
        where, colon, what = place.partition(": ")
        self._put(self._name(where) + colon + what)

    def invalid(self, place: str, problem: str) -> Failure:
        """400 for what makes no sense anywhere."""
        return invalid(self._name(place), problem)

    def _name(self, place: str) -> str:
        return place if self._named is None or len(self.places) >= _NAMED else self._named(place)

    def _put(self, place: str) -> None:
        if place not in self._known:
            self._known.add(place)
            self.places.append(place)

    def fields(self, fields: Extra | None, where: str = "") -> None:
        """All of an `extra`, which is another API's; what says nothing is no loss."""
        for name, value in (fields or {}).items():
            if isinstance(value, dict):
                self.fields(value, f"{where}{name}.")
                continue
            said = bytes(value).translate(None, _BLANK)
            quiet = self._quiet.get(name)
            if said not in _NOTHING and (quiet is None or (quiet and said not in quiet)):
                self._put(self._name(where + name) if where else name)


class StreamDecoder(Protocol):
    """Reads one stream of the API. finished: the event that ends a whole answer has come. stopped: nothing of the
    answer is missing, but perhaps that event and the usage. uncounted: as of a `dialect.StreamReader`."""

    finished: bool
    uncounted: str

    @property
    def stopped(self) -> bool: ...

    def read(self, name: bytes, data: bytes) -> list[Event]:
        """What one event means; [] for nothing (a ping). name: SSE `event` or an event stream's `:event-type`, b"" for
        none. Raises `dialect.StreamFailure` for an error event, Failure 502 for what is not the API's form."""
        ...


class StreamEncoder(Protocol):
    """Writes one stream of the API."""

    def write(self, events: list[Event]) -> bytes:
        """Raw events for the client; b"" when there is nothing to say yet."""
        ...

    def end(self) -> bytes:
        """What ends a whole answer, after the last event; called once, and not after a failure."""
        ...


class Codec:
    """One API. Stateless. name: the `Dialect.operation` whose requests it reads, and `Chat.dialect`. kind: what it is
    about, which says what its neutral model is: "chat" (`model.Chat` and `model.Answer`), or "embeddings"
    (`embedding.Embedding` and `embedding.Embedded`). Two codecs of one kind make a translation.

    quiet: names of fields that ride along and that another API need not say: with the values that only repeat a
    default, as JSON without blanks; () for any value, where the field only steers what is cached or how it is sent."""

    __slots__ = ()

    name = ""
    kind = "chat"
    quiet: ClassVar[Mapping[str, tuple[bytes, ...]]] = {}

    def bounded(self, fields: dict[str, Raw]) -> dict[str, Raw]:
        """A request with a bound of ours on its answer, in the API's first field for it, as this place knows it."""
        return fields

    def decode(self, fields: dict[str, Raw], *, model: str, stream: bool) -> Any:
        """A request's meaning. Raises Failure 400 that names the field for a wrong type or form."""
        raise NotImplementedError

    def encode(self, chat: Any, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        """The body's fields, `model` and `stream` where the API has them there. max_output: for an API that must have
        a bound when `chat` has none. Raises Failure 400 for what makes no sense anywhere (arguments that are not
        JSON)."""
        raise NotImplementedError

    def place(self, chat: Any, place: str) -> str:
        """What the caller of this API calls a place of the neutral model. chat: as `decode` gave it."""
        return place

    def decode_answer(self, body: bytes) -> Any:
        """Raises Failure 502 for what is not an answer of the API."""
        raise NotImplementedError

    def encode_answer(self, answer: Any, chat: Any) -> bytes:
        """chat: what was asked."""
        raise NotImplementedError

    def decoder(self) -> StreamDecoder:
        raise NotImplementedError

    def encoder(self, chat: Any) -> StreamEncoder:
        """chat: what was asked; e.g. whether usage is told."""
        raise NotImplementedError


def invalid(field: str, problem: str) -> Failure:
    """400 for a field of the caller's request, by its own name there ("messages[0].content")."""
    return Failure(400, Reason.INVALID_REQUEST, f"{field}: {problem}", code="invalid_value")


def misread(field: str, problem: str) -> Failure:
    """`invalid` for a field of an answer: 502. For Fields."""
    return unreadable(f"{field} {problem}")


def unreadable(what: str) -> Failure:
    """502 for a provider's answer that is not in its documented form."""
    message = f"the provider's answer is not in its form: {what}"
    return Failure(502, Reason.UPSTREAM_FAILURE, message, retry=True, sent=True)
