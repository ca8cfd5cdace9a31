"""Readers of streams, and their short cut: the pieces of one answer are mostly alike but for their text.

Rule: an event that has the same bytes around its text as one that was decoded says nothing else than that one did, so
it is not decoded. Whatever differs is.
"""

import re

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm.dialect import bytes_of
from tollhouse.wire.sse import parse, split

__all__ = ["Reader", "TextReader", "is_json", "is_text"]

_TRIES = 8  # forms learned of which no event came again; then this upstream's events are taken to be all different
_NONE = b"no event ends like this"
_BACKSLASH = 0x5C
_DONE = b"[DONE]"  # written by servers of other APIs, too
_OBFUSCATION = b'"obfuscation":'
_PADDING = re.compile(rb'[A-Za-z0-9+/=_-]*"\}\n\n| *\}\n\n')  # so that an event's size does not tell its text


_any = msgspec.json.Decoder(msgspec.Raw).decode  # of numbers of any size


class Reader:
    """What every StreamReader knows; nothing yet."""

    __slots__ = ("began", "counted", "failure", "finished", "model", "text", "uncounted", "usage")

    def __init__(self) -> None:
        self.began = False
        self.finished = False
        self.failure: Failure | None = None
        self.usage: Usage | None = None
        self.counted = False
        self.uncounted = ""
        self.model = ""
        self.text = 0

    def unread(self, data: bytes) -> None:
        """An event is not of the API's form. It passes, since that is not for us to judge; but what is no JSON at all
        is the stream's failure, which no client could read on after."""
        if data == _DONE or is_json(data):
            self.began = True
        else:
            self.break_off(data)

    def break_off(self, data: bytes) -> None:
        """`data` is no JSON: it and what follows are not passed on."""
        message = "the provider's stream is not JSON"
        detail = f"in it is {data[:100]!r}" if self.began else f"it begins with {data[:100]!r}"
        self.failure = Failure(502, Reason.UPSTREAM_FAILURE, message, detail=detail, retry=True, sent=True)

    @property
    def stopped(self) -> bool:
        """Said by those whose API tells the end of an answer before the end of its stream."""
        return self.finished

    def last(self) -> bytes:
        """The event that ends an answer which has `stopped`."""
        self.finished = True
        return b""


class TextReader(Reader):
    """A StreamReader. `look` is the dialect's own reading of a block; it tells `said` of an event that is nothing but
    text."""

    __slots__ = (
        "_after",
        "_before",
        "_learned",
        "_padded",
        "_tries",
    )

    def __init__(self) -> None:
        super().__init__()
        # The form that is known: what stands before the text with the quote, and behind the quote after it.
        self._before = self._after = _NONE
        self._padded = False  # some padding follows `_after`
        self._learned = -1  # `text` when the form was learned
        self._tries = _TRIES

    def read(self, block: bytes) -> bytes:
        # Of a block that begins otherwise, more is left than `_after`. A number is looked for at a fifth of the price.
        text, _, after = block.removeprefix(self._before).partition(b'"')
        if (
            (after == self._after or (self._padded and self._fits(after)))
            and _BACKSLASH not in text
            and (text.isascii() or is_text(text))
        ):
            self.text += len(text)
            return block
        if not (block.isascii() or is_text(block)):
            return self._garbled(block)
        events = split(block)
        return self.look(block) if len(events) < 2 else self._several(events, block)

    def look(self, block: bytes) -> bytes:
        """What `read` gives, for a block that is not like one before."""
        raise NotImplementedError

    def _several(self, events: list[bytes], block: bytes) -> bytes:
        """The same for a block of these events: each of them may be like one before."""
        passed = []
        for raw in events:
            passed.append(self.read(raw))
            if self.failure is not None:
                break
        return block if passed == events else b"".join(passed)

    def said(self, block: bytes, text: str) -> None:
        """`block` is one event, and `text` is all that it says: count it, and learn the form."""
        if self.text == self._learned:
            self._tries -= 1
        self.text += bytes_of(text)
        if not text or self._tries <= 0:
            return
        quoted = b'"%b"' % text.encode("utf-8", "surrogatepass")
        if block.count(quoted) != 1:
            return  # which of them is the text, or it has escapes
        before, _, after = block.partition(quoted)
        self._before = before + b'"'
        at = after.find(_OBFUSCATION)
        if at >= 0:
            at = after.find(b'"', at + len(_OBFUSCATION)) + 1
        elif after.endswith(b" }\n\n"):
            at = len(after[:-3].rstrip(b" "))
        self._padded = at > 0
        self._after = after[:at] if at > 0 else after
        self._learned = self.text

    def _garbled(self, block: bytes) -> bytes:
        """What `read` gives for a block that is not UTF-8, and so no JSON, though its form may be that of an event: the
        events before the first that is not."""
        whole, odd = b"", block
        for raw in split(block):
            if not is_text(raw):
                odd = parse(raw)[1] or raw
                break
            whole += raw
        passed = self.look(whole) if whole else b""
        if self.failure is None:
            self.break_off(odd)
        return passed

    def _fits(self, after: bytes) -> bool:
        return after.startswith(self._after) and _PADDING.fullmatch(after, len(self._after)) is not None


def is_text(data: bytes) -> bool:
    """Whether it is UTF-8, as JSON and server-sent events have to be."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_json(data: bytes) -> bool:
    """Whether it is JSON (RFC 8259), of any form."""
    if not is_text(data):
        return False
    try:
        _any(data)
    except RecursionError:
        return True  # as far as we can tell
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
    return True
