"""The head that a client sends again and again on its connection, only with another Content-Length.

Rule: equal bytes are the same request. A read that begins with the last head and goes on with its whole body, and
nothing else, is not parsed again. A head is learnt only from a read that the parser took for exactly one whole
request, where all before the body is one head: so what is recognised is what the parser would have said.
"""

import re

from tollhouse.core.http import Headers, Known, Request
from tollhouse.net.head import Head, Limits

__all__ = ["Repeated"]

_LONGEST = 4096  # bytes of a head worth remembering for each connection
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)


class Repeated:
    """One head, as it is before a body of `body` bytes."""

    __slots__ = ("_at", "_bytes", "_head", "_index", "_size", "_tail", "body")

    def __init__(self, raw: bytes, head: Head, body: int, at: re.Match[bytes] | None) -> None:
        self._head = head
        self._at = at.start(1) if at is not None else 0  # where the digits of the length are
        self._tail = raw[at.end(1) :] if at is not None else b""
        self._index = [name for name, _ in head.headers].index(b"content-length") if at is not None else -1
        self._bytes = raw
        self._size = len(raw) + body
        self.body = body

    @classmethod
    def of(cls, request: Request, data: bytes, limits: Limits) -> "Repeated | None":
        """What `data` began with, which the parser took for `request` and nothing else. None where the next read like
        it might need more than a comparison."""
        body = request.body_size
        size = len(data) - body
        if size > _LONGEST or size + 8 > limits.head or request.upgrade:
            return None
        raw = data[:size]
        if raw.find(b"\r\n\r\n") != size - 4:
            return None  # there are line ends before the head, or behind the body: the parser skips them
        at = _LENGTH.search(raw)
        length = request.header(b"content-length")
        if (at is None) is not (length is None) or body != (0 if at is None else int(at[1])):
            return None
        head = Head(
            request.method,
            request.target,
            request.version,
            Headers(request.headers),
            True,
            request.path,
            request.query,
            length=body,
            known=Known(),
        )
        return cls(raw, head, body, at)

    def match(self, data: bytes, size: int) -> Head | None:
        """The head of `data`, of `size` bytes, if that is this head, a body of `body` bytes and nothing else. Whoever
        takes it copies its headers."""
        if size != self._size and not self._resize(size):
            return None
        return self._head if data[: size - self.body] == self._bytes else None

    def _resize(self, size: int) -> bool:
        """Become the head that a read of `size` bytes would begin with."""
        if not self._at:
            return False
        left = size - self._at - len(self._tail)  # for the digits, and for the bytes they count
        body = left - len(b"%d" % left)
        if body < 0:
            return False
        digits = b"%d" % body
        raw = self._bytes[: self._at] + digits + self._tail
        if len(raw) + body != size:
            return False  # about where one digit more is needed: no length fits, or another one
        self._head.headers[self._index] = (b"content-length", digits)
        self._head.length = body
        self._bytes = raw
        self._size = size
        self.body = body
        return True
