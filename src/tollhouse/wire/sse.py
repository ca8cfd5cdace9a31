"""Server-sent events (WHATWG HTML, 9.2), framing only: bytes in, whole raw events out, cut anywhere.

Rule: an event is carried as the bytes it came in. A *block* is one or more whole raw events; most segments of a
model's stream are exactly one block, and then they pass with a single comparison and no copy.

A line ends in LF, CRLF or CR, and a blank line ends an event. A CR that is the last byte so far may be half of a
CRLF, so a blank line that ends in it is whole only when the next byte has come.
"""

import re

from tollhouse.core.errors import Failure, Reason

__all__ = ["LIMIT", "Framer", "frame", "parse", "split"]

LIMIT = 4 << 20
"""Bytes of one event. Pictures and whole tool results come in a single event; more than this does not."""

_BOM = b"\xef\xbb\xbf"
_CR = 0x0D  # looked for as a number, which costs a sixth of looking for bytes
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n|\Z))")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class Framer:
    """Cuts a byte stream into blocks. `feed` gives what is whole; `rest` what was not when the stream ended."""

    __slots__ = ("_held", "_parts", "_seam", "limit")

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._parts: list[bytes] = []
        self._held = 0
        self._seam = b""  # the last bytes held: a blank line may begin in them

    def feed(self, data: bytes) -> bytes:
        """All whole events that end in `data`, with what was held before them; b"" when none does.

        Raises Failure 502 when one event is larger than `limit`.
        """
        if not self._parts:
            if data[-2:] == b"\n\n":
                return data
            end = _last_event_end(data)
            if end == 0:
                self._hold(data)
                return b""
            self._hold(data[end:])
            return data[:end]
        seam = len(self._seam)
        end = _last_event_end(self._seam + data)
        if end < seam or end == 0:
            self._hold(data)
            return b""
        self._parts.append(data[: end - seam])
        whole = self.rest()
        self._hold(data[end - seam :])
        return whole

    def rest(self) -> bytes:
        """What is left without its blank line, once. A client must not act on it (9.2.6)."""
        rest = b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        self._seam = b""
        return rest

    def _hold(self, data: bytes) -> None:
        if not data:
            return
        self._parts.append(data)
        self._held += len(data)
        self._seam = (self._seam + data)[-3:] if len(data) < 3 else data[-3:]
        if self._held > self.limit:
            raise Failure(502, Reason.UPSTREAM_FAILURE, f"the upstream sent one event of more than {self.limit} bytes")


def _last_event_end(data: bytes) -> int:
    """The index after the last blank line that is certainly complete; at most 0 when there is none."""
    end = data.rfind(b"\n\n") + 2
    if _CR in data:
        crlf = data.rfind(b"\n\r\n") + 3
        if crlf > end and crlf > 2:
            end = crlf
        mixed = data.rfind(b"\r\r\n") + 3
        if mixed > end and mixed > 2:
            end = mixed
        # A blank line that is a lone CR needs the byte after it.
        for pair in (b"\r\r", b"\n\r"):
            at = data.rfind(pair, 0, -1)
            while at >= 0 and at + 2 > end:
                if data[at + 2] != 0x0A:
                    end = at + 2
                    break
                at = data.rfind(pair, 0, at + 1)
    return end if end > 1 else 0


def split(block: bytes) -> list[bytes]:
    """The raw events of a block, in order; joined they are the block."""
    if block.find(b"\n\n") == len(block) - 2 and _CR not in block:
        return [block]
    if _CR not in block:  # nobody's lines end in it: a tenth of the price
        *events, rest = block.split(b"\n\n")
        events = [event + b"\n\n" for event in events]
    else:
        events, begin = [], 0
        for match in _BLANK_LINE.finditer(block):
            events.append(block[begin : match.end()])
            begin = match.end()
        rest = block[begin:]
    if rest:
        if events and not rest.strip(b"\r\n"):
            events[-1] += rest
        else:
            events.append(rest)
    return events


def parse(raw: bytes) -> tuple[bytes, bytes]:
    """`event` and `data` of one raw event; b"" for what it does not have. Comments, `id` and `retry` are left out."""
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and _CR not in raw:
        return b"", raw[6:-2]
    if raw.startswith(b"event: "):
        end = raw.find(b"\n")
        if raw.startswith(b"data: ", end + 1) and raw.find(b"\n", end + 7) == len(raw) - 2 and _CR not in raw:
            return raw[7:end], raw[end + 7 : -2]
    if raw.startswith(_BOM):
        raw = raw[3:]
    name = b""
    parts = []
    for line in _LINE_END.split(raw):
        field, colon, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            parts.append(value)
        elif field == b"event" and colon:
            name = value
    return name, b"\n".join(parts)


def frame(data: bytes, event: bytes = b"") -> bytes:
    """One raw event. `data` has no line end in it (JSON has none)."""
    if event:
        return b"event: %b\ndata: %b\n\n" % (event, data)
    return b"data: %b\n\n" % data
