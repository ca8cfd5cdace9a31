"""The head that an upstream's answers begin with again and again, only with another Content-Length.

Rule: equal bytes are the same answer. A read that begins with the last head and goes on with the whole body that it
announces, and nothing else, is not parsed again. A head is learnt only from a read that the parser took for exactly
one whole answer of a known length: so what is recognised is what the parser would have said.
"""

import re

from tollhouse.core.http import Headers
from tollhouse.net.exchange import Exchange

__all__ = ["RepeatedAnswer"]

_LONGEST = 4096  # bytes of a head worth remembering
_PATIENCE = 8  # heads learnt of which none came again; from then on, only every 64th is learnt
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_NONE = b"\0"  # no answer begins like this


class RepeatedAnswer:
    """One head, shared by all connections of a pool. keep: seconds that a connection is kept after it; None if it does
    not say, and what the connection was told before holds."""

    __slots__ = (
        "_after", "_around", "_at", "_before", "_digits", "_encoded", "_headers", "_index", "_misses", "_status",
        "keep",
    )  # fmt: skip

    def __init__(self) -> None:
        self._before = _NONE  # up to the digits of the length
        self._after = b""  # from behind them, with the blank line
        self._at = 1
        self._around = 1
        self._digits = 1  # of the last answer's length
        self._headers = Headers()
        self._index = 0  # of the content-length in it
        self._status = 0
        self._encoded = False
        self._misses = 0
        self.keep: float | None = None

    def read(self, data: bytes, exchange: Exchange) -> bytes | None:
        """The body, when `data` is this head and the body it announces; `exchange` then has the rest of the answer."""
        at = self._at
        if data[:at] != self._before:
            return None
        left = len(data) - self._around  # for the digits, and for the bytes they count
        count = self._digits
        digits = b"%d" % (left - count)
        if len(digits) != count:
            count = self._digits = len(digits)
            digits = b"%d" % (left - count)
        tail = digits + self._after
        end = at + len(tail)
        if data[at:end] != tail or len(digits) != count:  # one digit more or less is needed: the parser will see to it
            return None
        exchange.status = self._status
        exchange.encoded = self._encoded
        headers = exchange.headers
        headers += self._headers
        headers[self._index] = (b"content-length", digits)
        self._misses = 0
        return data[end:]

    def learn(self, data: bytes, exchange: Exchange, body: int, keep: float) -> None:
        """`data` is one whole answer, which the parser has put into `exchange`, with `body` bytes of body; its
        connection is kept for `keep` seconds."""
        misses = self._misses = self._misses + 1
        if misses > _PATIENCE and misses % 64:
            return  # they have a request's id in them, or the like
        raw = data[: len(data) - body]
        at = _LENGTH.search(raw)
        if len(raw) > _LONGEST or at is None or raw.find(b"\r\n\r\n") != len(raw) - 4:
            return
        headers = Headers(exchange.headers)
        if headers.get_all(b"content-length") != [b"%d" % body] or at[1] != b"%d" % body:
            return
        self._before = raw[: at.start(1)]
        self._after = raw[at.end(1) :]
        self._at = len(self._before)
        self._around = self._at + len(self._after)
        self._headers = headers
        self._index = headers.index((b"content-length", at[1]))
        self._status = exchange.status
        self._encoded = exchange.encoded
        self.keep = None if headers.get(b"keep-alive") is None else keep
