"""What a request says about answers that are kept: its Cache-Control (RFC 9111 section 5.2.1).

Rule: a caller may always ask for less than the operator allows, never for more. Directives that would ask for more
(`max-stale`) and those that mean nothing here (`no-transform`, unknown ones) are passed over.
"""

from typing import Final, NamedTuple

from tollhouse.core.http import Headers

__all__ = ["NONE", "Directives", "directives_of"]


class Directives(NamedTuple):
    """keep: the answer may be kept. find: one that is kept may be given. only: nothing else may be done. oldest,
    freshest: seconds of age at most, and of life that must be left."""

    keep: bool = True
    find: bool = True
    only: bool = False
    oldest: float = float("inf")
    freshest: float = 0.0


NONE: Final = Directives()


def directives_of(headers: Headers) -> Directives:
    """What all fields Cache-Control say; Pragma where there is none (section 5.4)."""
    found = b""
    pragma = b""
    for name, value in headers:
        if name == b"cache-control":
            found = found + b"," + value if found else value
        elif name == b"pragma":
            pragma = value
    if not found:
        return NONE if not pragma or b"no-cache" not in pragma.lower() else Directives(find=False)
    return _read(found)


def _read(text: bytes) -> Directives:
    keep = find = True
    only = False
    oldest, freshest = float("inf"), 0.0
    for part in text.lower().split(b","):
        name, _, value = part.partition(b"=")
        name = name.strip()
        if name == b"no-store":
            keep = find = False
        elif name == b"no-cache":
            find = False
        elif name == b"only-if-cached":
            only = True
        elif name == b"max-age":
            oldest = min(oldest, _seconds(value, 0.0))
        elif name == b"min-fresh":
            freshest = max(freshest, _seconds(value, float("inf")))
    # Nothing that is kept is of now, though it may be of the same tick of the clock.
    return Directives(keep, find and oldest > 0.0, only, oldest, freshest)


def _seconds(value: bytes, doubt: float) -> float:
    """doubt: for what is no number of seconds; the stricter reading (section 4.2.1)."""
    digits = value.strip().strip(b'"')
    return float(digits[:15]) if digits.isdigit() else doubt
