"""Dialect: how one API asks, answers, streams and fails. Bytes in, values out; no I/O.

Rule: only the fields the gateway acts on are read; everything else passes as the bytes it came in. A request is
its top level with the values unparsed, so what is not understood is encoded again byte for byte. An answer is never
encoded again at all.
"""

from collections.abc import Mapping
from math import ceil
from typing import Protocol

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request, Response
from tollhouse.wire.llm.tokens import DEFAULT_OUTPUT, of_body

__all__ = ["Asked", "Dialect", "StreamFailure", "StreamReader", "bytes_of", "text_of"]

Raw = msgspec.Raw

_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_string = msgspec.json.Decoder(str).decode
_integer = msgspec.json.Decoder(int).decode
_TRUE = b"true"


class Asked(msgspec.Struct, gc=False):
    """A request as far as the gateway reads it. fields: the body's top level; the last of duplicate names counts, and
    only it is sent on."""

    model: str
    fields: dict[str, Raw]
    stream: bool


class StreamFailure(Failure):
    """A stream's failure that the upstream has told in the dialect's own words: `words` are the raw event, to be
    passed on as they are in place of an event of ours."""

    __slots__ = ("words",)

    def __init__(self, status: int, message: str, words: bytes, *, detail: str = "") -> None:
        super().__init__(status, Reason.UPSTREAM_FAILURE, message, detail=detail, retry=True)
        self.words = words


class StreamReader(Protocol):
    """Reads one answer's stream block by block (`wire.sse`), and forgets it.

    began: an event that means something has come (no comment, no ping). finished: the event that ends a whole answer
    has come. failure: the upstream has said an error; it is not in what `read` gives back, and nothing after it is.
    counted: usage is the provider's own and complete. text: bytes of text seen, to estimate with otherwise.
    """

    began: bool
    finished: bool
    failure: StreamFailure | None
    usage: Usage | None
    counted: bool
    model: str
    text: int

    def read(self, block: bytes) -> bytes:
        """What of `block` goes to the caller: all of it, but for an event that only the gateway asked for."""
        ...


class Dialect:
    """One API. Stateless: one instance serves every request.

    family: whose error shape and headers ("openai", "anthropic"). operation: what is asked ("chat", "embeddings",
    "messages"); a provider that speaks it understands the dialect. path: below a provider's base URL. id_header:
    where the family's clients look for the request id, when it is not x-request-id.
    """

    __slots__ = ()

    family = ""
    operation = ""
    path = b""
    id_header: bytes | None = None
    streams = True
    output_bounds: tuple[str, ...] = ()
    """Fields that bound the output tokens; the first that is there counts."""

    def decode(self, body: bytes) -> Asked:
        """Read a request. Raises Failure 400 for what is not a JSON object with a `model`."""
        try:
            fields = _fields(body)
        except msgspec.ValidationError:
            raise _invalid("the request body must be a JSON object", code="invalid_json") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _invalid(f"the request body is not valid JSON: {error}", code="invalid_json") from None
        except RecursionError:
            raise _invalid("the request body is nested too deeply", code="invalid_json") from None
        raw = fields.get("model")
        if raw is None:
            raise _invalid('"model" is missing: name the model to ask', code="model_required")
        try:
            model = _string(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _invalid('"model" must be a string', code="model_required") from None
        stream = self.streams and (flag := fields.get("stream")) is not None and bytes(flag) == _TRUE
        return Asked(model, fields, stream)

    def estimate(self, body: bytes, fields: Mapping[str, Raw]) -> int:
        """Tokens to reserve for a request, input and output together."""
        return of_body(body) + self.output_bound(fields)

    def output_bound(self, fields: Mapping[str, Raw]) -> int:
        """Output tokens to reserve: what the caller allows, else `DEFAULT_OUTPUT`."""
        for name in self.output_bounds:
            bound = _count(fields.get(name))
            if bound is not None:
                return bound
        return DEFAULT_OUTPUT

    def usage_options(self, fields: Mapping[str, Raw]) -> Raw | None:
        """The `stream_options` to send so that a stream tells its usage, or None when it does so anyway. When they
        are sent, the stream's reader takes the extra event out again."""
        return None

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        """Usage and answering model of a whole answer; (None, "") where it does not say."""
        raise NotImplementedError

    def reader(self, *, strip: bool) -> StreamReader:
        """A reader for one stream; strip: take the usage event out that only the gateway asked for."""
        raise NotImplementedError

    def error(self, failure: Failure, request_id: str) -> bytes:
        """A Failure as the dialect's error object, JSON."""
        raise NotImplementedError

    def error_event(self, failure: Failure, request_id: str) -> bytes:
        """A Failure as the dialect's event in a stream, raw."""
        raise NotImplementedError

    def last_words(self, failure: Failure, request_id: str = "") -> bytes:
        """What a stream says when it fails after the commit. Nothing follows it: a client that does not know the error
        event still misses the end it waits for, and takes the answer for cut."""
        if isinstance(failure, StreamFailure):
            return failure.words
        return self.error_event(failure, request_id)

    def render(self, failure: Failure, request: Request) -> Response:
        """A Failure as an answer."""
        headers = Headers(failure.headers)
        if failure.retry_after is not None and headers.get(b"retry-after") is None:
            headers.append((b"retry-after", b"%d" % max(ceil(failure.retry_after), 0)))
        if headers.get(b"content-type") is None:
            headers.append((b"content-type", b"application/json"))
        request_id = request.context.request_id
        if self.id_header is not None and request_id:
            headers.append((self.id_header, request_id.encode("latin-1", "replace")))
        return Response(failure.status, headers, self.error(failure, request_id), reason=failure.reason)


def bytes_of(text: str) -> int:
    """Bytes of a text as UTF-8, to estimate its tokens with."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def text_of(raw: Raw) -> str:
    """A JSON string's text, or "" for anything else."""
    try:
        return _string(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _count(raw: Raw | None) -> int | None:
    if raw is None:
        return None
    try:
        value = _integer(raw)
    except msgspec.DecodeError:
        return None
    return value if value >= 0 else None


def _invalid(message: str, *, code: str) -> Failure:
    return Failure(400, Reason.INVALID_REQUEST, message, code=code)
