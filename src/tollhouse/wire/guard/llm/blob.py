"""Files within JSON: a text in Base64 is a text like any other.

Rule: what can be read is looked at, and is written in Base64 again where it changes; any other file is said to be one
that cannot be looked at. What is no Base64 at all is a text itself. No more is decoded than says which it is.
"""

import re
from base64 import b64decode, b64encode
from binascii import Error

import msgspec

from tollhouse.wire.guard.llm.forms import Look, New, Path, Spot, Text, string, written

__all__ = ["Blob"]

Raw = msgspec.Raw

_BINARY = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]").search
_HEAD = re.compile("data:[^,]{0,256};base64,", re.IGNORECASE).match
_SPACE = re.compile(r"\s+")
_OTHER = str.maketrans("-_", "+/", "=")  # RFC 4648 section 5
_BEGINNING = 128  # characters that tell most pictures and documents from texts
_LONG = 2 * _BEGINNING
_CUT = 3  # bytes of a letter that goes on behind them


class Blob(Text):
    """A file in Base64, of any alphabet, or in a `data:` URL. what: it is, if it is no text. only: nothing else may
    stand there: what is no Base64 is looked at, and still may be a file to who reads it less strictly."""

    __slots__ = ("_only", "_what")

    def __init__(self, what: str, *, only: bool = False) -> None:
        super().__init__()
        self._what = what
        self._only = only

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        source = string(raw)
        if not source:
            super().look(raw, at, look)
            return
        try:
            text = _text(source[_begin(source) :])
        except Error:
            super().look(raw, at, look)
            if self._only:
                look.hidden(self._what)
            return
        if text is None:
            look.hidden(self._what)
        elif text:
            look.spots.append(Spot(at, None, look.kind, look.role, text, False))

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        source = string(raw)
        if not source:
            return super().put(raw, at, new)
        begin = _begin(source)
        try:
            _text(source[begin:])
        except Error:
            return super().put(raw, at, new)
        return written(source[:begin] + b64encode(new.texts[at].encode(errors="replace")).decode())


def _begin(source: str) -> int:
    """Where Base64 begins."""
    head = _HEAD(source) if source[:5].lower() == "data:" else None
    return 0 if head is None else head.end()


def _text(source: str) -> str | None:
    """What a file says; None for one that is no text. Raises binascii.Error for what is no Base64."""
    if len(source) > _LONG:
        beginning = _loosely(source[:_BEGINNING], cut=True)
        if all(_read(beginning[: len(beginning) - cut]) is None for cut in range(_CUT + 1)):
            return None
    try:
        return _read(b64decode(source, validate=True))
    except ValueError:
        text = _read(_loosely(source))
        if text is None and len(source) <= _LONG:  # rather a word than a file
            raise Error("not in Base64") from None
        return text


def _loosely(source: str, *, cut: bool = False) -> bytes:
    """What readers take for Base64 as well: of the other alphabet, in lines, not padded. Raises binascii.Error."""
    letters = _SPACE.sub("", source).translate(_OTHER)
    over = len(letters) % 4
    letters = letters[: len(letters) - over] if cut else letters + "=" * (-over % 4)
    try:
        return b64decode(letters, validate=True)
    except ValueError:  # also for letters beyond ASCII
        raise Error("not in Base64") from None


def _read(content: bytes) -> str | None:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if _BINARY(text) else text
