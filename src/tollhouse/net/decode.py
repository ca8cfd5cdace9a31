"""Content codings of bodies that must be read whole (RFC 9110 section 8.4.1): gzip and deflate, bounded.

Rule: never more than `limit` bytes come out, whatever goes in. What is only passed on is never decoded.
"""

import zlib

from tollhouse.core.errors import Failure, Reason

__all__ = ["decompress"]

_MEMBERS = 64  # a gzip body of countless empty members would cost a copy of the rest for each
_CODINGS = 3
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's wbits


def decompress(body: bytes, encoding: bytes | None, limit: int) -> bytes:
    """`body` without the codings named in the value of its Content-Encoding header.

    Raises Failure 502 for a coding we do not know, a damaged body, and one that gives more than `limit` bytes.
    """
    names = [name.strip().lower() for name in (encoding or b"").split(b",")]
    names = [name for name in names if name and name != b"identity"]
    if len(names) > _CODINGS:
        raise _failure("the upstream's body is encoded too many times")
    for name in reversed(names):
        if not body:
            return body
        if name in (b"gzip", b"x-gzip"):
            body = _members(body, limit)
        elif name == b"deflate":
            body = _deflate(body, limit)
        else:
            shown = name.decode("latin-1")[:20]
            raise _failure(f"the upstream's body has the encoding {shown!r}; gzip and deflate are understood")
    return body


def _members(body: bytes, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    for _ in range(_MEMBERS):
        part, body = _inflate(body, _GZIP, limit - size)
        size += len(part)
        parts.append(part)
        if not body.strip(b"\0"):  # some servers pad with zeros
            return b"".join(parts)
    raise _failure("the upstream's gzip body has too many members")


def _deflate(body: bytes, limit: int) -> bytes:
    # RFC 9110 section 8.4.1.2 means zlib's format; enough servers send the bare one.
    zlibbed = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _inflate(body, _ZLIB if zlibbed else _RAW, limit)[0]


def _inflate(body: bytes, wbits: int, limit: int) -> tuple[bytes, bytes]:
    inflater = zlib.decompressobj(wbits)
    try:
        out = inflater.decompress(body, limit + 1)  # 0 would mean without bound
    except zlib.error as error:
        raise _failure("the upstream's compressed body is damaged", str(error)) from None
    if len(out) > limit:
        raise _failure(f"the upstream's body is larger than {limit} bytes when decompressed")
    if not inflater.eof:
        raise _failure("the upstream's compressed body is cut short")
    return out, inflater.unused_data


def _failure(message: str, detail: str = "") -> Failure:
    return Failure(502, Reason.UPSTREAM_FAILURE, message, detail=detail, sent=True)
