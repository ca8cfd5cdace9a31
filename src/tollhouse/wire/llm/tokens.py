"""Tokens before anybody has counted them: estimates to reserve with, and for streams that were left.

Rule: an estimate is never taken for a count. Four bytes of text are one token; a picture is a fixed number, since
its base64 says nothing about what it costs.
"""

import re

__all__ = ["DEFAULT_OUTPUT", "MOST_OUTPUT", "PICTURE", "of_body", "of_text"]

DEFAULT_OUTPUT = 1024
"""Output tokens to reserve when the caller sets no bound."""

MOST_OUTPUT = 1 << 20
"""Output tokens to reserve at most for one answer: no model writes more, whatever a caller allows it."""

PICTURE = 1000
"""Tokens of one inline picture, sound or document: about what providers charge for a picture of one megapixel."""

_INLINE = re.compile(rb"[A-Za-z0-9+/_-]{2048,}={0,2}")
_LOOK_ABOVE = 4096


def of_text(size: int) -> int:
    """Tokens of `size` bytes of text; 0 only for none."""
    return (size + 3) // 4


def of_body(body: bytes) -> int:
    """Input tokens of a request body, inline base64 counted as pictures."""
    size = len(body)
    if size <= _LOOK_ABOVE:
        return size // 4
    # A message of 2,048 letters without a space is base64, not language.
    for match in _INLINE.finditer(body):
        size += 4 * PICTURE - (match.end() - match.start())
    return max(size, 0) // 4
