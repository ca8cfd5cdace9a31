"""JSON from outside: what decoding it raises, and decoding it for code that recurses over it.

Rule: nesting is bounded before anything else sees the value. CEL's engine is native code that recurses once for each
level, and overflows the stack where Python would raise; how deep the JSON decoder itself goes depends on the Python
version (some 1,000 levels in 3.11, over 5,000 in 3.13).
"""

from typing import Any, Final

import msgspec

__all__ = ["MAX_DEPTH", "UNREADABLE", "decode"]

MAX_DEPTH = 100

UNREADABLE: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
"""What msgspec raises for a text that is no JSON, or none of the type asked for: also for one that is not UTF-8, or
nested too deeply."""


def decode(raw: bytes | bytearray | memoryview | msgspec.Raw, limit: int = MAX_DEPTH) -> Any:
    """The value of a JSON text. Raises ValueError when it is none, or has more than `limit` levels of arrays and
    objects."""
    try:
        value = msgspec.json.decode(raw)
    except UNREADABLE as error:
        raise ValueError(f"not JSON: {error}") from None
    data = bytes(raw)
    # So few brackets cannot be deeper; the exact depth is looked at only where they are many.
    if data.count(b"[") + data.count(b"{") > limit and _depth(value, limit) > limit:
        raise ValueError(f"more than {limit} levels deep")
    return value


def _depth(value: Any, limit: int) -> int:
    """Levels of arrays and objects, counted as far as one beyond `limit`."""
    level, depth = [value], 0
    while depth <= limit:
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                below.append(item.values())
            elif type(item) is list:
                below.append(item)
        if not below:
            return depth
        depth += 1
        level = [inner for items in below for inner in items]
    return depth
