"""WebSocket (RFC 6455), as a tunnel's frames are read in passing: bytes in, whole messages out, cut anywhere.

Rule: the reader only looks. It is fed what goes one way through a tunnel and tells the messages that ended there; the
bytes go on as they came. What section 5 does not allow is a FrameFailure with the close code for it, since nothing that
follows could be read either. No extension is ever agreed on, so reserved bits are 0 and payloads are plain.
"""

import base64
import binascii
from hashlib import sha1

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers

__all__ = [
    "BINARY",
    "CLOSE",
    "LONGEST",
    "PING",
    "PONG",
    "TEXT",
    "FrameFailure",
    "FrameReader",
    "Message",
    "accepted",
    "asked_key",
    "close_frame",
    "frame",
    "protocols",
]

_CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_KNOWN = frozenset((_CONTINUED, TEXT, BINARY, CLOSE, PING, PONG))

LONGEST = 32 << 20
"""Bytes of one message. A picture or a minute of sound as base64 is a few million."""

_CONTROL = 125  # bytes of a control frame's payload
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION = b"13"
_PROTOCOL_ERROR, _TOO_BIG = 1002, 1009


class FrameFailure(Failure):
    """Bytes that are no frames, or a message that is too long. close: the code to close with (section 7.4.1)."""

    __slots__ = ("close",)

    def __init__(self, close: int, message: str, *, client: bool) -> None:
        reason = Reason.INVALID_REQUEST if client else Reason.UPSTREAM_FAILURE
        super().__init__(400 if client else 502, reason, message)
        self.close = close


class Message(msgspec.Struct, gc=False):
    """A message that has ended, or a control frame. payload: plain, and no more of it than the reader keeps. size: of
    the whole payload, in bytes. begin, end: where in what was fed last; begin is -1 where that was earlier."""

    opcode: int
    payload: bytes
    size: int
    begin: int
    end: int

    @property
    def whole(self) -> bool:
        """Whether `payload` is all of it."""
        return len(self.payload) == self.size


class FrameReader:
    """Reads one direction of a connection. client: it is the client's, whose frames are masked. keep: bytes of a text
    or binary message whose payload is given; of a longer one it is the beginning. Control frames are given whole."""

    __slots__ = (
        "_at", "_client", "_control", "_from", "_head", "_held", "_keep", "_key", "_last", "_left", "_longest",
        "_opcode", "_parts", "_size", "_wanted",
    )  # fmt: skip

    def __init__(self, *, client: bool, keep: int = 0, longest: int = LONGEST) -> None:
        self._client = client
        self._keep = keep
        self._longest = longest
        self._at = -1  # where the frame begins in what is fed, -1 where that was earlier,
        self._from = -1  # and the message
        self._head = b""  # what has come of a frame's head
        self._left = -1  # bytes still to come of a frame's payload; -1 between frames
        self._last = False  # the frame ends its message
        self._key = b""
        self._control = 0  # the opcode of a control frame
        self._wanted = 0  # bytes of the frame's payload that are kept,
        self._parts: list[bytes] = []  # those that came
        self._opcode = 0  # of the message that has begun,
        self._size = 0  # its bytes up to now,
        self._held: list[bytes] = []  # and what is kept of its frames

    @property
    def between_frames(self) -> bool:
        """Whether another frame may stand here."""
        return self._left < 0 and not self._head

    @property
    def between_messages(self) -> bool:
        """Whether another message may stand here."""
        return not self._opcode and self.between_frames

    def feed(self, data: bytes) -> list[Message]:
        """The messages and control frames that end in `data`, in order. Raises FrameFailure."""
        ended: list[Message] = []
        at, size = 0, len(data)
        self._at = self._from = -1
        while at < size:
            if self._left < 0:
                if not self._head:
                    self._at = at
                at = self._begin(data, at)
                if self._left < 0:
                    break
            take = min(self._left, size - at)
            if take:
                if self._wanted:
                    part = data[at : at + min(take, self._wanted)]
                    self._wanted -= len(part)
                    self._parts.append(part)
                at += take
                self._left -= take
            if not self._left:
                self._left = -1
                message = self._end(at)
                if message is not None:
                    ended.append(message)
        return ended

    def _begin(self, data: bytes, at: int) -> int:
        """Read on in a frame's head: where it ends, or what is there of it."""
        head = self._head
        while (missing := _head_size(head) - len(head)) > 0:
            part = data[at : at + missing]
            head += part
            at += len(part)
            if len(part) < missing:
                self._head = head
                return at
        self._head = b""
        self._open(head)
        return at

    def _open(self, head: bytes) -> None:
        first, second = head[0], head[1]
        opcode = first & 0x0F
        size = second & 0x7F
        masked = second & 0x80 != 0
        if first & 0x70:
            raise self._wrong("a frame has a reserved bit set, and no extension was agreed on")
        if opcode not in _KNOWN:
            raise self._wrong(f"a frame has the opcode {opcode}, which means nothing")
        if masked is not self._client:
            raise self._wrong("a client's frame is not masked" if self._client else "a server's frame is masked")
        if size > _CONTROL:
            size = int.from_bytes(head[2 : 4 if size == 126 else 10])
        self._last = first & 0x80 != 0
        self._control = 0
        self._parts = []
        if opcode >= CLOSE:
            if not self._last or size > _CONTROL:
                raise self._wrong("a control frame is in pieces, or longer than 125 bytes")
            self._control = opcode
            self._wanted = size
        else:
            if (opcode == _CONTINUED) is not (self._opcode != 0):
                raise self._wrong("a message begins within another, or goes on where none has begun")
            self._size += size
            if self._size > self._longest:
                raise self._wrong(f"a message is longer than {self._longest} bytes", _TOO_BIG)
            if opcode:
                self._opcode = opcode
                self._from = self._at
            self._wanted = min(max(self._keep - self._size + size, 0), size)
        self._key = head[-4:] if masked else b""
        self._left = size

    def _end(self, at: int) -> Message | None:
        """A frame is over at `at`: what ended with it."""
        payload = b"".join(self._parts)
        if self._key and payload:
            payload = _masked(payload, self._key)
        self._parts = []
        if self._control:
            return Message(self._control, payload, len(payload), self._at, at)
        if payload:
            self._held.append(payload)
        if not self._last:
            return None
        message = Message(self._opcode, b"".join(self._held), self._size, self._from, at)
        self._opcode = self._size = 0
        self._held = []
        return message

    def _wrong(self, message: str, close: int = _PROTOCOL_ERROR) -> FrameFailure:
        self._left = 0  # nothing may stand here any more
        return FrameFailure(close, message, client=self._client)


def _head_size(head: bytes) -> int:
    """Bytes of a frame's head, as far as its beginning tells."""
    if len(head) < 2:
        return 2
    size = head[1] & 0x7F
    return 2 + (8 if size == 127 else 2 if size == 126 else 0) + (4 if head[1] & 0x80 else 0)


def frame(opcode: int, payload: bytes, key: bytes = b"") -> bytes:
    """One whole frame. key: four random bytes to mask it with, as clients must."""
    size = len(payload)
    bit = 0x80 if key else 0
    if size < 126:
        head = bytes((0x80 | opcode, bit | size))
    elif size < 65_536:
        head = bytes((0x80 | opcode, bit | 126)) + size.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, bit | 127)) + size.to_bytes(8)
    return head + key + _masked(payload, key) if key else head + payload


def close_frame(code: int, reason: str = "", key: bytes = b"") -> bytes:
    """A Close frame. reason: for people; what does not fit is left out."""
    text = reason.encode()[: _CONTROL - 2].decode("utf-8", "ignore").encode()
    return frame(CLOSE, code.to_bytes(2) + text, key)


# ---- the handshake (section 4)


def asked_key(headers: Headers, upgrade: bool) -> bytes:
    """The `sec-websocket-key` of a request that asks for a WebSocket. upgrade: its `connection` says so. Raises Failure
    426 for a request that does not, or that asks for another version, 400 for one without a good key."""
    wanted = headers.get(b"upgrade") or b""
    if not upgrade or b"websocket" not in [word.strip().lower() for word in wanted.split(b",")]:
        raise _upgrade("this address is a WebSocket: ask for an upgrade")
    if headers.get(b"sec-websocket-version") != _VERSION:
        raise _upgrade("this WebSocket speaks version 13 only")
    keys = headers.get_all(b"sec-websocket-key")
    try:
        good = len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except (binascii.Error, ValueError):
        good = False
    if not good:
        raise Failure(400, Reason.INVALID_REQUEST, "sec-websocket-key must be 16 bytes in base64, once")
    return keys[0]


def accepted(headers: Headers, key: bytes, offered: list[bytes]) -> str:
    """What is wrong with an answer 101 to a request with that key, which offered these protocols and no extension; ""
    for a good one."""
    if (headers.get(b"upgrade") or b"").lower() != b"websocket":
        return "it switched to something other than a WebSocket"
    if headers.get(b"sec-websocket-accept") != base64.b64encode(sha1(key + _GUID).digest()):  # noqa: S324  (section 4.2.2)
        return "its sec-websocket-accept does not fit the key"
    if headers.get(b"sec-websocket-extensions") is not None:
        return "it uses an extension that nobody offered"
    chosen = headers.get(b"sec-websocket-protocol")
    return "" if chosen is None or chosen in offered else "it chose a protocol that nobody offered"


def protocols(headers: Headers) -> list[bytes]:
    """The subprotocols that a request offers, in order."""
    words = b",".join(headers.get_all(b"sec-websocket-protocol")).split(b",")
    return [word for each in words if (word := each.strip())]


def _upgrade(message: str) -> Failure:
    headers = ((b"upgrade", b"websocket"), (b"sec-websocket-version", _VERSION))
    return Failure(426, Reason.INVALID_REQUEST, message, code="upgrade_required", headers=headers)


def _masked(payload: bytes, key: bytes) -> bytes:
    """Masked, or unmasked (section 5.3). As whole numbers: a hundredth of the price of byte by byte."""
    size = len(payload)
    whole = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(whole)).to_bytes(size)
