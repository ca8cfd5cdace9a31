"""A tool's arguments as an HTTP request: styles of parameters, and bodies (OpenAPI 3.1.0, 4.8.12 and 4.8.14).

Rule: arguments are a model's words, and fill places; they never make any. A value is one segment of the path, however
it is written, one value of a parameter that was declared, or a part of the body. What would be read as more than that
(dot segments, line breaks in header fields, members of an object that pose as other parameters) is refused.
"""

import base64
import binascii
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote, unquote, unquote_to_bytes

import msgspec

from tollhouse.core.depth import decode
from tollhouse.wire import jsonrpc

__all__ = [
    "BadArguments", "Body", "BodyKind", "Field", "HttpRequest", "Operation", "Parameter", "Place", "Requests",
    "arguments_of", "encoded", "field_value", "path_of", "target_of", "text_of",
]  # fmt: skip

Place = Literal["path", "query", "header", "cookie"]
BodyKind = Literal["json", "form", "multipart", "text", "binary"]

MAX_TARGET: Final = 16_384  # bytes
_SHOWN = 20  # names in a message
_DECODED = 4  # times that a server may decode a path
_RESERVED = ":/?@!$'()*,;[]"  # without what would end a value: & # = +
_BAD_FIELD = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PIECES = re.compile(r"[/\\]")
_DATA_URL = re.compile(r"data:([A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+)?((?:;[A-Za-z0-9-]+=[^;,\r\n]*)*)(;base64)?,", re.ASCII)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?:;[ \t]*[\x20-\x7e]*)?")
_UNSAFE_NAME = re.compile(r'[\x00-\x1f\x7f"\\]')


class BadArguments(Exception):
    """Arguments that make no request. The message is for the model: what is wrong, and what would be right."""


class HttpRequest(msgspec.Struct):
    """What goes out. target: path and query. headers: those of this call, names in lower case."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""


class Parameter(msgspec.Struct, frozen=True):
    """One parameter. argument: what the tool calls it. name: what the API calls it. as_json: its value is a JSON text
    (`content` in the document)."""

    argument: str
    name: str
    place: Place
    style: str
    explode: bool
    required: bool = False
    reserved: bool = False
    as_json: bool = False


class Field(msgspec.Struct, frozen=True):
    """One field of a form. style: "" for a text, a JSON text for an object, and one field for each of a list. file: it
    is bytes, that come as base64. content_type: of its part, "" for the usual one."""

    style: str = ""
    explode: bool = True
    file: bool = False
    content_type: str = ""


class Body(msgspec.Struct, frozen=True):
    """argument: the one that is the body, "" where each of `names` (argument to member) is a member of it."""

    kind: BodyKind
    content_type: str
    required: bool = False
    argument: str = ""
    names: dict[str, str] = {}
    fields: dict[str, Field] = {}


class Operation(msgspec.Struct, frozen=True):
    """How a tool's arguments become a request. path: texts that are encoded already, and parameters between them.
    headers: constant ones, of every call. query: constant, encoded pairs. taken: names in query and cookies that are
    the gateway's to set."""

    method: bytes
    path: tuple[str | Parameter, ...]
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    query: tuple[str, ...] = ()
    taken: frozenset[str] = frozenset()

    def names(self) -> Iterator[str]:
        """Every argument there is."""
        yield from (part.argument for part in self.path if not isinstance(part, str))
        yield from (parameter.argument for parameter in self.parameters)
        if self.body is not None:
            yield from (self.body.argument,) if self.body.argument else self.body.names

    def request(self, arguments: msgspec.Raw | bytes) -> HttpRequest:
        """Raises BadArguments."""
        given = _members(arguments, self.names())
        path = path_of(self.path, partial(_value, given))
        query = [*self.query]
        headers = [*self.headers]
        cookies: list[str] = []
        taken = {parameter.name for parameter in self.parameters} | self.taken
        for parameter in self.parameters:
            value = _value(given, parameter)
            if value is None:
                continue
            if parameter.place == "query":
                query += _query(parameter, value, taken)
            elif parameter.place == "header":
                headers.append((parameter.name.lower().encode("ascii"), _field(parameter, value)))
            else:
                cookies += _query(parameter, value, taken)
        target = target_of(path, query)
        if cookies:
            headers.append((b"cookie", "; ".join(cookies).encode("ascii")))
        request = HttpRequest(self.method, target, headers)
        if self.body is not None:
            _put_body(request, self.body, given)
        return request


class Requests(Protocol):
    """What makes a tool's arguments a request: an `Operation` of a document, a `Template` written by hand."""

    def request(self, arguments: msgspec.Raw | bytes) -> HttpRequest:
        """Raises BadArguments."""
        ...


def _members(arguments: msgspec.Raw | bytes, names: Iterable[str]) -> dict[str, msgspec.Raw]:
    """The arguments, unparsed. Raises BadArguments for one that is none of `names`."""
    try:
        given = jsonrpc.decode_fields(arguments if len(arguments) else b"{}")
    except jsonrpc.Malformed:
        raise BadArguments("the arguments must be an object") from None
    known = dict.fromkeys(names)
    for name in given:
        if name not in known:
            there = ", ".join(list(known)[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
            raise BadArguments(f"there is no argument {name[:100]!r}; there are: {there or 'none'}")
    return given


def arguments_of(arguments: msgspec.Raw | bytes, names: Iterable[str]) -> dict[str, Any]:
    """The arguments' values. Raises BadArguments for one that is none of `names`, and for what is no JSON."""
    return {name: _decoded(raw, name) for name, raw in _members(arguments, names).items()}


def path_of(pieces: Iterable[str | Parameter], value: Callable[[Parameter], Any]) -> str:
    """A path whose places are filled. value: of a place, None for none. Raises BadArguments, also where texts and
    values together make a dot segment."""
    path = segment = ""
    for piece in pieces:
        text = piece if isinstance(piece, str) else _path_piece(piece, value(piece))
        before, slash, _ = text.partition("/")
        if slash:
            _check_segment(segment + before)
            segment = text.rpartition("/")[2]
        else:
            segment += text
        path += text
    _check_segment(segment)
    return path


def target_of(path: str, query: Sequence[str]) -> bytes:
    """The target of a request. query: encoded pairs. Raises BadArguments for one that is too long."""
    target = f"{path}?{'&'.join(query)}" if query else path
    if len(target) > MAX_TARGET:
        raise BadArguments(f"the path and query would have {len(target)} bytes: at most {MAX_TARGET}")
    return target.encode("ascii")


def _value(given: Mapping[str, msgspec.Raw], parameter: Parameter) -> Any:
    """The value, None where there is none."""
    raw = given.get(parameter.argument)
    value = None if raw is None else _decoded(raw, parameter.argument)
    if isinstance(value, float) and raw is not None and bytes(raw).lstrip(b"-").isdigit():
        value = bytes(raw).decode()  # it was too large for an integer, and keeps its digits
    if value is None and parameter.required:
        raise BadArguments(f"the argument {parameter.argument!r} is missing")
    if value is not None and parameter.as_json:
        return msgspec.json.encode(value).decode()
    return value


def _decoded(raw: msgspec.Raw, name: str) -> Any:
    try:
        return decode(raw)
    except ValueError as problem:
        raise BadArguments(f"the argument {name[:100]!r}: {problem}") from None


def _check_segment(segment: str) -> None:
    """No dot segment, also where several values make one that a server decodes more often than once."""
    for _ in range(_DECODED + 1):  # once more than a value: here it stands as it is sent
        if any(piece in (".", "..") for piece in _PIECES.split(segment)):
            raise BadArguments("a part of the path must not be `.` or `..`")
        following = unquote(segment)
        if following == segment:
            return
        segment = following


# ---- values


def text_of(value: Any) -> str:
    """A single value as text; what is deeper than any style reaches as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _joined(value: Any, encode: Callable[[str], str], *, between: str, pair: str = ",") -> str:
    """`simple` of RFC 6570 and its kin. between: stands between values; pair: between a member's name and value."""
    if isinstance(value, list):
        return between.join(encode(text_of(one)) for one in value if one is not None)
    if isinstance(value, dict):
        members = [(encode(name), encode(text_of(one))) for name, one in value.items() if one is not None]
        return between.join(f"{name}{pair}{one}" for name, one in members)
    return encode(text_of(value))


def encoded(text: str, safe: str = "") -> str:
    """Percent-encoded but for unreserved characters (RFC 3986, 2.3) and those of `safe`."""
    return quote(text, safe=safe)


def _path_piece(parameter: Parameter, value: Any) -> str:
    """The value as it stands in the path. Raises BadArguments."""
    argument = parameter.argument
    if value is None:
        raise BadArguments(f"the argument {argument!r} is missing: it is a part of the path")
    _check_path(value, argument)
    explode, style = parameter.explode, parameter.style
    pair = "=" if explode else ","
    if style == "label":
        text = "." + _joined(value, encoded, between="." if explode else ",", pair=pair)
    elif style == "matrix":
        name = encoded(parameter.name)
        if explode and isinstance(value, list):
            text = "".join(f";{name}={encoded(text_of(one))}" for one in value if one is not None)
        elif explode and isinstance(value, dict):
            text = ";" + _joined(value, encoded, between=";", pair="=")
        else:
            text = f";{name}={_joined(value, encoded, between=',')}"
    else:
        text = _joined(value, encoded, between=",", pair=pair)
    if not text or text in (".", ";"):
        raise BadArguments(f"the argument {argument!r} must not be empty: it is a part of the path")
    return text


def _check_path(value: Any, argument: str) -> None:
    """Nothing that a server could take for steps up, also if it decodes more often than once."""
    if isinstance(value, (list, dict)):
        for one in value if isinstance(value, list) else (*value, *value.values()):
            _check_path(one, argument)
        return
    text = text_of(value)
    for _ in range(_DECODED):
        if _CONTROL.search(text):
            raise BadArguments(f"the argument {argument!r} has a control character, which no path can have")
        if any(piece in (".", "..") for piece in _PIECES.split(text)):
            raise BadArguments(f"the argument {argument!r} has `.` or `..` as a part of a path")
        following = unquote(text)
        if following == text:
            return
        text = following


def _query(parameter: Parameter, value: Any, taken: set[str]) -> list[str]:
    """The pairs of a query or cookie parameter."""
    argument, name = parameter.argument, encoded(parameter.name)
    if parameter.reserved:
        encode: Callable[[str], str] = _lenient
    else:
        encode = encoded
    if isinstance(value, dict):
        if parameter.style == "deepObject":
            return list(_deep(name, value, encode))
        if parameter.explode and parameter.style == "form":
            pairs = []
            for key, one in value.items():
                if one is None:
                    continue
                if key in taken:
                    raise BadArguments(f"the argument {argument!r} has a member {key[:100]!r}: that is another one")
                pairs.append(f"{encoded(key)}={encode(text_of(one))}")
            return pairs
    elif isinstance(value, list):
        if parameter.style == "deepObject":
            return list(_deep(name, value, encode))
        if parameter.explode and parameter.style in ("form", "spaceDelimited", "pipeDelimited"):
            return [f"{name}={encode(text_of(one))}" for one in value if one is not None]
        if not value:
            return []
    between = {"spaceDelimited": "%20", "pipeDelimited": "%7C"}.get(parameter.style, ",")
    return [f"{name}={_joined(value, encode, between=between, pair=between)}"]


def _lenient(text: str) -> str:
    return quote(text, safe=_RESERVED)


def _deep(name: str, value: Any, encode: Callable[[str], str]) -> Iterator[str]:
    """`name[key]=value`, and further brackets for what is deeper."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _deep(f"{name}%5B{encoded(key)}%5D", one, encode)
    elif isinstance(value, list):
        for one in value:
            if one is not None:
                yield f"{name}={encode(text_of(one))}"
    elif value is not None:
        yield f"{name}={encode(text_of(value))}"


def _field(parameter: Parameter, value: Any) -> bytes:
    """A header field's value (style simple)."""
    pair = "=" if parameter.explode else ","
    return field_value(_joined(value, lambda one: one, between=",", pair=pair), parameter.argument)


def field_value(text: str, name: str) -> bytes:
    """A text as a header field's value. Raises BadArguments where it would be more than that."""
    text = text.strip(" \t")
    if _BAD_FIELD.search(text):
        raise BadArguments(f"{name!r} has a line break or control character, which no header field can have")
    return text.encode()


# ---- bodies


def _put_body(request: HttpRequest, body: Body, given: Mapping[str, msgspec.Raw]) -> None:
    raw = given.get(body.argument) if body.argument else None
    members: dict[str, msgspec.Raw] = {}
    if body.argument:
        if raw is None:
            if body.required:
                raise BadArguments(f"the argument {body.argument!r} is missing")
            return
    else:
        members = {name: given[argument] for argument, name in body.names.items() if argument in given}
        if not members and not body.required:
            return
    kind, argument = body.kind, body.argument
    if kind == "json":
        if raw is not None:
            _decoded(raw, argument)
        for name, inner in members.items():
            _decoded(inner, name)
        request.body = bytes(raw) if raw is not None else jsonrpc.encode_fields(members)
    elif kind in ("form", "multipart"):
        if raw is not None:
            try:
                members = jsonrpc.decode_fields(raw)
            except jsonrpc.Malformed:
                raise BadArguments(f"the argument {argument!r} must be an object") from None
        parts = list(_form_parts(body, members))
        if kind == "multipart":
            request.body, content_type = _multipart(parts)
            request.headers.append((b"content-type", content_type))
            return
        pairs = (
            value.decode() if whole else f"{encoded(name)}={quote(value, safe='')}"
            for name, value, _, _, whole in parts
        )
        request.body = "&".join(pairs).encode("ascii")
    else:
        value: Any = _decoded(raw, argument) if raw is not None else ""
        if kind == "binary":
            request.body, given_type = _content(value, argument)
            request.headers.append((b"content-type", (given_type or body.content_type).encode("ascii")))
            return
        request.body = text_of(value).encode()
    request.headers.append((b"content-type", body.content_type.encode("ascii")))


_Part = tuple[str, bytes, str, bool, bool]
"""name, content, content type ("" for text), whether it is a file, whether the content is whole pairs already."""


def _form_parts(body: Body, members: Mapping[str, msgspec.Raw]) -> Iterator[_Part]:
    for name, raw in members.items():
        value = _decoded(raw, name)
        if value is None:
            continue
        field = body.fields.get(name, _USUAL)
        if field.file:
            for one in value if isinstance(value, list) else (value,):
                content, content_type = _content(one, name)
                yield name, content, content_type or field.content_type or "application/octet-stream", True, False
        elif field.style and body.kind == "form":
            parameter = Parameter(name, name, "query", field.style, field.explode)
            for pair in _query(parameter, value, set(members) - {name}):
                yield name, pair.encode("ascii"), "", False, True
        elif isinstance(value, dict) or "json" in field.content_type:
            content_type = field.content_type or "application/json"
            yield name, msgspec.json.encode(value), content_type, False, False
        elif isinstance(value, list):
            for one in value:
                if one is not None:
                    yield name, text_of(one).encode(), field.content_type, False, False
        else:
            yield name, text_of(value).encode(), field.content_type, False, False


_USUAL = Field()


def _content(value: Any, name: str) -> tuple[bytes, str]:
    """Bytes from base64 or a data: URL, and the media type that says. Raises BadArguments."""
    if not isinstance(value, str):
        raise BadArguments(f"the argument {name!r} must be text: base64, or a data: URL")
    match = _DATA_URL.match(value)
    try:
        if match is None:
            return base64.b64decode(value, validate=True), ""
        text = value[match.end() :]
        content = base64.b64decode(text, validate=True) if match[3] else unquote_to_bytes(text)
        content_type = (match[1] or "text/plain") + match[2]
    except (binascii.Error, ValueError):
        raise BadArguments(f"the argument {name!r} is neither base64 nor a data: URL") from None
    if _MEDIA_TYPE.fullmatch(content_type) is None:
        raise BadArguments(f"the argument {name!r} is a data: URL whose media type cannot be read")
    return content, content_type


def _multipart(parts: Sequence[_Part]) -> tuple[bytes, bytes]:
    """multipart/form-data (RFC 7578), and its content type."""
    while True:
        boundary = secrets.token_hex(16).encode()
        if not any(boundary in content for _, content, _, _, _ in parts):
            break
    pieces = []
    for name, content, content_type, file, _ in parts:
        if _UNSAFE_NAME.search(name):
            raise BadArguments(f"{name[:100]!r} cannot be the name of a field")
        head = b'content-disposition: form-data; name="%b"' % name.encode()
        if file:
            head += b'; filename="%b"' % name.encode()
        if content_type:
            head += b"\r\ncontent-type: " + content_type.encode("ascii")
        pieces.append(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, head, content))
    pieces.append(b"--%b--\r\n" % boundary)
    return b"".join(pieces), b"multipart/form-data; boundary=" + boundary
