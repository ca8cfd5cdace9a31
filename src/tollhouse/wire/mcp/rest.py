"""Tools written by hand: a request with places in it, `{name}`, that arguments fill.

Rule: a template that is one place alone gives the argument as it is; places within text give text. What has a place
that nobody has filled is left out: a member, an element, a query parameter, a header field. `{{` and `}}` are braces.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal
from urllib.parse import unquote

import msgspec

from tollhouse.wire.mcp.openapi_request import (
    BadArguments,
    HttpRequest,
    Parameter,
    arguments_of,
    encoded,
    field_value,
    path_of,
    target_of,
    text_of,
)

__all__ = ["BodyType", "Template", "Text"]

BodyType = Literal["json", "form", "text"]

_PLACE = re.compile(r"\{\{|\}\}|\{([A-Za-z0-9_.-]{1,64})\}|[{}]")
_CONTENT_TYPES: Final = {
    "json": b"application/json",
    "form": b"application/x-www-form-urlencoded",
    "text": b"text/plain; charset=utf-8",
}


class _Absent:
    __slots__ = ()


_ABSENT: Any = _Absent()


class Text:
    """A text with places. Raises ValueError for braces that are none."""

    __slots__ = ("pieces",)

    def __init__(self, text: str) -> None:
        pieces: list[tuple[str, bool]] = []  # text, or a name
        plain = ""
        done = 0
        for match in _PLACE.finditer(text):
            plain += text[done : match.start()]
            done = match.end()
            if match[1] is not None:
                if plain:
                    pieces.append((plain, False))
                pieces.append((match[1], True))
                plain = ""
            elif match[0] in ("{{", "}}"):
                plain += match[0][0]
            else:
                raise ValueError(f"{text[:100]!r} has a single brace; write {{name}} for an argument, {{{{ for a brace")
        plain += text[done:]
        if plain or not pieces:
            pieces.append((plain, False))
        self.pieces = tuple(pieces)

    @property
    def names(self) -> Iterator[str]:
        """The arguments it has places for."""
        return (piece for piece, place in self.pieces if place)

    def of(self, given: Mapping[str, Any]) -> Any:
        """The value: an argument as it is, or text; _ABSENT where a place is not filled."""
        if len(self.pieces) == 1 and self.pieces[0][1]:
            return given.get(self.pieces[0][0], _ABSENT)
        text = ""
        for piece, place in self.pieces:
            if not place:
                text += piece
                continue
            value = given.get(piece)
            if value is None:
                return _ABSENT
            text += text_of(value)
        return text


class Template:
    """A request with places.

    path: percent-encoded but for its places. schema: of the arguments; their defaults fill what is not given. body:
    any JSON value, whose texts may have places, or None. Raises ValueError for what cannot be a template of that.
    """

    __slots__ = ("_body", "_body_type", "_defaults", "_headers", "_known", "_method", "_path", "_query", "_required")

    def __init__(
        self,
        *,
        method: str,
        path: str,
        schema: Mapping[str, Any],
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        body_type: BodyType = "json",
    ) -> None:
        self._method = method.encode("ascii")
        properties = schema.get("properties", {})
        if schema.get("type", "object") != "object" or not isinstance(properties, dict):
            raise ValueError("the input must be a schema of an object, with `properties`")
        self._known = dict.fromkeys(properties)
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) and name in properties for name in required):
            raise ValueError("`required` of the input must be a list of its properties")
        self._defaults = {
            name: one["default"] for name, one in properties.items() if isinstance(one, dict) and "default" in one
        }
        self._required = [name for name in required if name not in self._defaults]
        self._path = self._path_of(path)
        self._query = {name: Text(text) for name, text in (query or {}).items()}
        self._headers = {name.lower().encode("ascii"): Text(text) for name, text in (headers or {}).items()}
        self._body_type = body_type
        self._body = None if body is None else _compiled(body)
        if body_type == "text" and not isinstance(self._body, (Text, type(None))):
            raise ValueError("the body of a text must be text")
        if body_type == "form" and not isinstance(self._body, (dict, Text, type(None))):
            raise ValueError("the body of a form must be a mapping")
        for name in self._places():
            if name not in self._known:
                known = ", ".join(self._known) or "none"
                raise ValueError(f"{{{name}}} is no argument; those of the input are: {known}")

    def _path_of(self, path: str) -> tuple[str | Parameter, ...]:
        if not path.startswith("/") or re.search(r"[?#\s]", path):
            raise ValueError("a path begins with a slash, and has no query and no spaces in it")
        if any(unquote(segment) in (".", "..") for segment in path.split("/")):
            raise ValueError("a path has no `.` and `..` in it")
        pieces: list[str | Parameter] = []
        for piece, place in Text(path).pieces:
            pieces.append(
                Parameter(piece, piece, "path", "simple", False, True) if place else encoded(piece, "/%:@!$&'()*+,;=")
            )
        return tuple(pieces)

    def _places(self) -> Iterator[str]:
        yield from (piece.argument for piece in self._path if not isinstance(piece, str))
        for text in (*self._query.values(), *self._headers.values()):
            yield from text.names
        yield from _names(self._body)

    def request(self, arguments: msgspec.Raw | bytes) -> HttpRequest:
        """Raises BadArguments."""
        given = arguments_of(arguments, self._known)
        for name, value in self._defaults.items():
            given.setdefault(name, value)
        for name in self._required:
            if given.get(name) is None:
                raise BadArguments(f"the argument {name!r} is missing")
        path = path_of(self._path, lambda place: given.get(place.argument))
        query: list[str] = []
        for name, text in self._query.items():
            query += _pairs(name, text.of(given))
        request = HttpRequest(self._method, target_of(path, query), [(b"accept", b"application/json, */*;q=0.5")])
        for field, text in self._headers.items():
            value = text.of(given)
            if value is not _ABSENT and value is not None:
                if field == b"accept":
                    request.headers.clear()
                request.headers.append((field, field_value(text_of(value), field.decode())))
        self._put_body(request, given)
        return request

    def _put_body(self, request: HttpRequest, given: Mapping[str, Any]) -> None:
        if self._body is None:
            return
        value = _filled(self._body, given)
        if value is _ABSENT:
            return
        if self._body_type == "json":
            request.body = msgspec.json.encode(value)
        elif self._body_type == "text":
            request.body = text_of(value).encode()
        else:
            if not isinstance(value, dict):
                raise BadArguments("the body must be an object")
            pairs = [pair for name, inner in value.items() for pair in _pairs(name, inner)]
            request.body = "&".join(pairs).encode("ascii")
        request.headers.append((b"content-type", _CONTENT_TYPES[self._body_type]))


def _pairs(name: str, value: Any) -> list[str]:
    """One for each element of a list, none for what is not there."""
    values = value if isinstance(value, list) else (value,)
    return [f"{encoded(name)}={encoded(text_of(one))}" for one in values if one is not _ABSENT and one is not None]


def _compiled(body: Any) -> Any:
    if isinstance(body, str):
        return Text(body)
    if isinstance(body, dict):
        return {name: _compiled(value) for name, value in body.items()}
    if isinstance(body, list):
        return [_compiled(value) for value in body]
    return body


def _names(body: Any) -> Iterator[str]:
    if isinstance(body, Text):
        yield from body.names
    elif isinstance(body, (dict, list)):
        for value in body.values() if isinstance(body, dict) else body:
            yield from _names(value)


def _filled(body: Any, given: Mapping[str, Any]) -> Any:
    if isinstance(body, Text):
        return body.of(given)
    if isinstance(body, dict):
        members = {name: _filled(value, given) for name, value in body.items()}
        return {name: value for name, value in members.items() if value is not _ABSENT}
    if isinstance(body, list):
        return [value for value in (_filled(one, given) for one in body) if value is not _ABSENT]
    return body
