"""JSON bodies for tests of codecs: neutral values made plain to compare, and bodies with one thing wrong."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from hypothesis import strategies as st

from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec import Codec, Lost
from tollhouse.wire.llm.model import Chat

Raw = msgspec.Raw
Place = tuple[str | int, ...]


def raw(value: Any) -> Raw:
    return Raw(msgspec.json.encode(value))


def plain(value: Any) -> Any:
    """For comparison: unparsed JSON is its value, and None says nothing."""
    if isinstance(value, Raw):
        return msgspec.json.decode(value)
    if isinstance(value, msgspec.Struct):
        fields = {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        return {"": type(value).__name__, **{name: v for name, v in fields.items() if v is not None}}
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def decode(codec: Codec, body: dict[str, Any]) -> Chat:
    fields = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, Raw])
    return codec.decode(fields, model=body.get("model", "m"), stream=body.get("stream", False))


def encode(codec: Codec, chat: Chat, quiet: Codec | None = None) -> tuple[dict[str, Any], list[str]]:
    """The body and what is lost. quiet: the codec of the caller's API."""
    lost = Lost(None if quiet is None else quiet.quiet)
    fields = codec.encode(chat, lost, model=chat.model, max_output=4096)
    return msgspec.json.decode(msgspec.json.encode(fields)), lost.places


@contextmanager
def refused(*statuses: int) -> Iterator[None]:
    """What is done within may be refused, with one of these."""
    try:
        yield
    except Failure as failure:
        if failure.status not in statuses:
            raise


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where everything stands in a body, from the top down."""
    yield at
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*at, name))
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            yield from places(inner, (*at, n))


def changed(body: Any, place: Place, new: Any) -> Any:
    """The body with another value at a place; `...` takes it out."""
    if not place:
        return body if new is ... else new
    body = copy.deepcopy(body)
    within = body
    for step in place[:-1]:
        within = within[step]
    if new is ...:
        del within[place[-1]]
    else:
        within[place[-1]] = new
    return body


DEEP = "\x00deep\x00"
NAN = "\x00nan\x00"
HALF = "\x00half\x00"
BYTES = "\x00bytes\x00"

WRONG = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([1.5, -1e300, 2**70, "", "x", "data:x", "data:image/png;base64,!", [], {}, [[]], [{}], {"a": []}])
    | st.sampled_from([DEEP, NAN, HALF, BYTES])
    | st.text(max_size=5)
)
"""Values to put in the place of others. What JSON in Python cannot say is said by marks; see `written`."""


def written(body: Any) -> bytes:
    """A body as JSON, with the marks made what they stand for: nesting without end, no number, half a character, bytes
    that are no UTF-8."""
    data = msgspec.json.encode(body)
    for mark, meant in (
        (DEEP, b"[" * 3000 + b"]" * 3000),
        (NAN, b"NaN"),
        (HALF, b'"\\ud800"'),
        (BYTES, b'"\xff\xfe"'),
    ):
        data = data.replace(msgspec.json.encode(mark), meant)
    return data
