"""multipart/form-data (RFC 7578, framed as in RFC 2046 section 5.1), whole: where its parts are, and how one is
changed while all others keep their bytes.

Rule: what two readers could read in two ways is refused. The boundary is what the body itself begins with, and the
caller of this module says it again in the Content-Type that is sent on, so that who reads next cuts where we cut.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

__all__ = ["Form", "Part", "read", "rewritten"]

_MAX_PARTS = 256
_MAX_HEAD = 8192  # bytes of one part's header fields
_BOUNDARY = re.compile(rb"--([0-9A-Za-z'()+_,./:=?-]{1,70})\r\n")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PARAMETER = re.compile(
    rb'[ \t]*;[ \t]*([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)=("(?:[^"\\]|\\.)*"|[!#$%&\'*+\-.^_`|~0-9A-Za-z]+)'
)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PLAIN = frozenset((b"7bit", b"8bit", b"binary"))
_DISPOSITION = b"content-disposition"


class Part(NamedTuple):
    """One part. file: it has a file name. start: of its delimiter's line. begin, end: of its content."""

    name: str
    file: bool
    start: int
    begin: int
    end: int


class Form(NamedTuple):
    """A body's parts in order. close: where the last delimiter's line starts."""

    boundary: bytes
    parts: tuple[Part, ...]
    close: int

    @property
    def content_type(self) -> bytes:
        """Its media type, with the boundary it is cut by."""
        plain = _TOKEN.fullmatch(self.boundary) is not None
        return b"multipart/form-data; boundary=" + (self.boundary if plain else b'"%b"' % self.boundary)


def read(body: bytes) -> Form:
    """Raises ValueError saying what is wrong with it."""
    first = _BOUNDARY.match(body)
    if first is None:
        raise ValueError("it must begin with `--`, a boundary and CRLF")
    marker = b"--" + first[1]
    size = len(marker)
    parts: list[Part] = []
    start = 0
    while True:
        following = body.find(marker, start + size)
        if following < 0:
            raise ValueError("its last boundary is missing")
        if body[following - 2 : following] != b"\r\n":
            raise ValueError("its boundary stands in the middle of a line")
        if len(parts) == _MAX_PARTS:
            raise ValueError(f"it has more than {_MAX_PARTS} parts")
        parts.append(_part(body, start, start + size + 2, following - 2, len(parts) + 1))
        start = following
        after = body[start + size : start + size + 2]
        if after == b"--":
            break
        if after != b"\r\n":
            raise ValueError("a boundary is followed by more than the end of its line")
    if body[start + size + 2 :].strip(b" \t\r\n"):
        raise ValueError("something stands after its last boundary")
    return Form(first[1], tuple(parts), start)


def rewritten(body: bytes, form: Form, values: Mapping[str, bytes | None], more: Iterable[tuple[str, bytes]]) -> bytes:
    """The body with other values in the parts of those names (None: without them), and further parts behind the
    others. Raises ValueError for a name or value that would read as something else."""
    marker = b"--" + form.boundary
    pieces = []
    done = 0
    for part in form.parts:
        if part.file or part.name not in values:
            continue
        value = values[part.name]
        if value is None:
            pieces.append(body[done : part.start])
            done = part.end + 2
        else:
            pieces += [body[done : part.begin], _safe(value, marker)]
            done = part.end
    pieces.append(body[done : form.close])
    for name, value in more:
        quoted = name.encode()
        if _CONTROL.search(quoted) is not None or b'"' in quoted or b"\\" in quoted:
            raise ValueError(f"{name!r} cannot be the name of a part")
        head = b'\r\ncontent-disposition: form-data; name="%b"\r\n\r\n' % _safe(quoted, marker)
        pieces += [marker, head, _safe(value, marker), b"\r\n"]
    pieces.append(body[form.close :])
    return b"".join(pieces)


def _safe(value: bytes, marker: bytes) -> bytes:
    if marker in value:
        raise ValueError("its boundary stands in a value")
    return value


def _part(body: bytes, start: int, begin: int, end: int, number: int) -> Part:
    blank = body.find(b"\r\n\r\n", begin, min(end, begin + _MAX_HEAD))
    if blank < 0 or begin > end:
        raise ValueError(f"part {number} has no header fields that end in a blank line within {_MAX_HEAD} bytes")
    disposition = None
    for line in body[begin:blank].split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon or _TOKEN.fullmatch(name) is None or _CONTROL.search(value) is not None:
            raise ValueError(f"part {number} has a header field that is malformed")
        name = name.lower()
        value = value.strip(b" \t")
        if name == _DISPOSITION:
            if disposition is not None:
                raise ValueError(f"part {number} has two fields Content-Disposition")
            disposition = value
        elif name == b"content-transfer-encoding" and value.lower() not in _PLAIN:
            raise ValueError(f"part {number} has a Content-Transfer-Encoding, which forms do not have")
    if disposition is None:
        raise ValueError(f"part {number} has no Content-Disposition")
    text, file = _named(disposition, number)
    return Part(text, file, start, blank + 4, end)


def _named(disposition: bytes, number: int) -> tuple[str, bool]:
    """Name, and whether there is a file name."""
    if disposition[:9].lower() != b"form-data":
        raise ValueError(f"part {number} is no form-data")
    found: dict[bytes, bytes] = {}
    rest = disposition[9:]
    at = 0
    while at < len(rest):
        match = _PARAMETER.match(rest, at)
        if match is None or match[1].lower() in found:
            raise ValueError(f"part {number} has a Content-Disposition that is malformed")
        found[match[1].lower()] = match[2]
        at = match.end()
    name = found.get(b"name")
    if name is None or b"name*" in found:
        raise ValueError(f'part {number} has no name, or one in another form than name="..."')
    if name[:1] == b'"':
        name = name[1:-1]
    if b"\\" in name:
        raise ValueError(f"part {number} has a name with a backslash")
    try:
        return name.decode(), b"filename" in found or b"filename*" in found
    except UnicodeDecodeError:
        raise ValueError(f"part {number} has a name that is not UTF-8") from None
