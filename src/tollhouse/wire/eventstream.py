"""AWS event streams (`application/vnd.amazon.eventstream`): bytes in, whole raw messages out, cut anywhere.

Rule: a message is carried as the bytes it came in, and its two checksums (CRC-32) are checked before anything in it is
believed: the prelude's before its length, the message's before its content.

    length (4) | length of the headers (4) | CRC of these 8 | headers | payload | CRC of all before

A header is a name (length in 1 byte), a type (1 byte) and a value; numbers are big-endian.
"""

from binascii import crc32
from collections.abc import Mapping
from struct import Struct, error
from uuid import UUID

import msgspec

from tollhouse.core.errors import Failure, Reason

__all__ = [
    "LIMIT",
    "Framer",
    "Header",
    "Message",
    "frame",
    "headers",
    "opened",
    "parse",
    "sealed",
    "split",
    "text_headers",
]

LIMIT = 16 << 20
"""Bytes of one message: about what the format allows for a payload."""

Header = bool | int | str | bytes | UUID
"""A header's value. A timestamp is an int too: milliseconds since 1970."""

_PRELUDE = 12
_OVERHEAD = 16  # the prelude and the CRC at the end
_LENGTHS = Struct(">II")
_UINT = Struct(">I")
_USHORT = Struct(">H")
_NUMBERS = {2: Struct(">b"), 3: Struct(">h"), 4: Struct(">i"), 5: Struct(">q"), 8: Struct(">q")}
_TRUE, _FALSE, _BYTES, _TEXT, _UUID = 0, 1, 6, 7, 9


class Message(msgspec.Struct, gc=False):
    """What a message says. headers: by name, `:event-type` and the like among them."""

    headers: dict[str, Header]
    payload: bytes


class Framer:
    """Cuts a byte stream into blocks of whole messages. `feed` gives what is whole; `rest` what was not when the
    stream ended."""

    __slots__ = ("_held", "_need", "_parts", "limit")

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._parts: list[bytes] = []
        self._held = 0
        self._need = 0  # bytes that must be there before the next look

    def feed(self, data: bytes) -> bytes:
        """All whole messages that end in `data`, with what was held before them; b"" when none does.

        Raises Failure 502 for what is no message, and for one larger than `limit`.
        """
        if self._parts:
            self._parts.append(data)
            self._held += len(data)
            if self._held < self._need:
                return b""
            data = self.rest()
        size = len(data)
        end = 0
        while True:
            left = size - end
            need = _PRELUDE if left < _PRELUDE else self._length(data, end)
            if left < need:
                break
            end += need
        if left == 0:
            return data
        self._parts.append(data[end:] if end else data)
        self._held, self._need = left, need
        return data[:end]

    def rest(self) -> bytes:
        """What is left of a message that did not end, once. It means nothing."""
        parts = self._parts
        rest = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._held = 0
        return rest

    def _length(self, data: bytes, at: int) -> int:
        """The length of the message that begins there."""
        length, size = _LENGTHS.unpack_from(data, at)
        if crc32(data[at : at + 8]) != _UINT.unpack_from(data, at + 8)[0] or length < _OVERHEAD + size:
            raise _broken("a message does not begin as one")
        if length > self.limit:
            raise _broken(f"a message of more than {self.limit} bytes")
        return int(length)


def split(block: bytes) -> list[bytes]:
    """The raw messages of a block that a Framer gave, in order; joined they are the block."""
    messages = []
    begin, size = 0, len(block)
    while size - begin >= _OVERHEAD:
        end = begin + _UINT.unpack_from(block, begin)[0]
        if end == size and not begin:
            return [block]
        if not begin + _OVERHEAD <= end <= size:
            break
        messages.append(block[begin:end])
        begin = end
    if begin < size:
        raise _broken("a message is cut")
    return messages


def opened(raw: bytes) -> tuple[bytes, bytes]:
    """The headers, as they came, and the payload of one raw message. Raises Failure 502 for what is none."""
    size = len(raw)
    if size < _OVERHEAD:
        raise _broken("a message is cut")
    length, headers_size = _LENGTHS.unpack_from(raw)
    end = _PRELUDE + headers_size
    if length != size or end > size - 4:
        raise _broken("the lengths of a message do not fit")
    prelude = crc32(raw[:8])
    if prelude != _UINT.unpack_from(raw, 8)[0] or crc32(raw[8:-4], prelude) != _UINT.unpack_from(raw, size - 4)[0]:
        raise _broken("a message is damaged: its checksum differs")
    return raw[_PRELUDE:end], raw[end:-4]


def headers(raw: bytes) -> dict[str, Header]:
    """The headers of one message by name. Raises Failure 502 for an unknown type, a name that comes twice, and what is
    cut or not UTF-8."""
    found: dict[str, Header] = {}
    at, size = 0, len(raw)
    try:
        while at < size:
            begin = at + 1
            at = begin + raw[at]
            name = raw[begin:at].decode()
            kind = raw[at]  # past the end when the name is cut
            at += 1
            value: Header
            if kind in (_TEXT, _BYTES):
                begin = at + 2
                at = begin + _USHORT.unpack_from(raw, at)[0]
                value = raw[begin:at] if kind == _BYTES else raw[begin:at].decode()
            elif kind in (_TRUE, _FALSE):
                value = kind == _TRUE
            elif kind == _UUID:
                at += 16
                value = UUID(bytes=raw[at - 16 : at])
            else:
                number = _NUMBERS[kind]
                value = number.unpack_from(raw, at)[0]
                at += number.size
            if at > size or name in found:
                raise _broken("the headers of a message are not in their form")
            found[name] = value
    except (IndexError, KeyError, UnicodeDecodeError, ValueError, error):
        raise _broken("the headers of a message are not in their form") from None
    return found


def parse(raw: bytes) -> Message:
    """What one raw message says. Raises Failure 502."""
    head, payload = opened(raw)
    return Message(headers(head), payload)


def text_headers(fields: Mapping[bytes, bytes]) -> bytes:
    """Headers whose values are text, as they stand in a message. A name has at most 255 bytes, a value 65,535."""
    return b"".join(
        b"%c%b%c%b%b" % (len(name), name, _TEXT, _USHORT.pack(len(value)), value) for name, value in fields.items()
    )


def sealed(head: bytes, payload: bytes) -> bytes:
    """One raw message. head: its headers as they stand in it."""
    lengths = _LENGTHS.pack(_OVERHEAD + len(head) + len(payload), len(head))
    crc = crc32(lengths)
    rest = b"%b%b%b" % (_UINT.pack(crc), head, payload)
    return b"%b%b%b" % (lengths, rest, _UINT.pack(crc32(rest, crc)))


def frame(name: bytes, payload: bytes, *, kind: bytes = b"event", content_type: bytes = b"application/json") -> bytes:
    """One raw message: an event of the type `name`, or, when `kind` is "exception", an exception of that type."""
    head = text_headers({b":%b-type" % kind: name, b":content-type": content_type, b":message-type": kind})
    return sealed(head, payload)


def _broken(what: str) -> Failure:
    message = f"the upstream's event stream is broken: {what}"
    return Failure(502, Reason.UPSTREAM_FAILURE, message, retry=True, sent=True)
