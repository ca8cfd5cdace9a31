"""OpenAPI documents as plain values: JSON or YAML to objects, and what `$ref` leads to.

Rule: a document is somebody else's word. Its size, depth and what its aliases unfold to are bounded before anything
looks at it, references stay inside it, and whatever is wrong is an OpenAPIError that names the place (RFC 6901).
YAML is read by the core schema of YAML 1.2, with keys that are text: `200:` is "200", and `on`, `no` and dates are
what is written.
"""

import re
from collections.abc import Callable
from math import isfinite
from typing import Any, Final
from urllib.parse import unquote

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from tollhouse.core.depth import decode
from tollhouse.wire.pointer import below, steps_of
from tollhouse.wire.yaml_core import NotKept, events, plain

__all__ = ["MAX_DOCUMENT", "Document", "OpenAPIError", "read"]

MAX_DOCUMENT: Final = 32 << 20  # bytes
MAX_NODES: Final = 2_000_000  # values, with every alias unfolded
MAX_DEPTH: Final = 100
_CHAIN = 32  # references that lead to references
_VERSION = re.compile(r"3\.([0-9])(?:\.[0-9]+)?(?:-[0-9A-Za-z.-]+)?")


class OpenAPIError(Exception):
    """A document, or a part of one, that cannot be used. pointer: where (RFC 6901), "" for the whole."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(f"{pointer}: {message}" if pointer else message)
        self.pointer = pointer
        self.message = message


class Document:
    """An OpenAPI 3 document. old: it is of 3.0, whose schemas are not yet JSON Schema."""

    __slots__ = ("old", "root")

    def __init__(self, root: dict[str, Any]) -> None:
        version = root.get("openapi")
        if "swagger" in root and version is None:
            raise OpenAPIError("/swagger", "this is Swagger 2.0; convert the document to OpenAPI 3")
        match = _VERSION.fullmatch(version) if isinstance(version, str) else None
        if match is None:
            raise OpenAPIError("/openapi", 'no OpenAPI 3 document: "openapi" must be a version like "3.0.3" or "3.1.0"')
        self.root = root
        self.old = match[1] == "0"

    def follow(self, value: Any, at: str) -> tuple[Any, str]:
        """What a Reference Object leads to, and where that is; any other value is itself. Raises OpenAPIError."""
        for _ in range(_CHAIN):
            if not isinstance(value, dict) or "$ref" not in value:
                return value, at
            value, at = self.at(value["$ref"], below(at, "$ref"))
        raise OpenAPIError(at, "the references lead to each other and nowhere else")

    def at(self, ref: Any, at: str) -> tuple[Any, str]:
        """The value of a `$ref` that stands at `at`, and its pointer. Raises OpenAPIError."""
        if not isinstance(ref, str):
            raise OpenAPIError(at, "a reference must be text")
        if not ref.startswith("#"):
            raise OpenAPIError(at, f"{ref[:200]!r} leads to another document; references must stay inside this one")
        pointer = unquote(ref[1:])
        if pointer and not pointer.startswith("/"):
            raise OpenAPIError(at, f"{ref[:200]!r} is no JSON Pointer like #/components/schemas/Pet")
        value: Any = self.root
        for step in steps_of(pointer):
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and step.isascii() and step.isdigit() and len(step) < 9:
                if int(step) >= len(value):
                    raise OpenAPIError(at, f"{ref[:200]!r} leads nowhere")
                value = value[int(step)]
            else:
                raise OpenAPIError(at, f"{ref[:200]!r} leads nowhere")
        return value, pointer

    def members(self, value: Any, at: str) -> dict[str, Any]:
        """An object that may be absent, after references. Raises OpenAPIError."""
        value, at = self.follow(value, at)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise OpenAPIError(at, "must be an object")
        return value


def read(data: bytes, limit: int = MAX_DOCUMENT) -> Document:
    """A document of at most `limit` bytes. Raises OpenAPIError."""
    if len(data) > limit:
        raise OpenAPIError("", f"the document is larger than {limit} bytes")
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    root = _json(data) if data.lstrip()[:1] == b"{" else _yaml(data)
    if not isinstance(root, dict):
        raise OpenAPIError("", "the document must be an object")
    return Document(root)


def _json(data: bytes) -> Any:
    try:
        return decode(data, MAX_DEPTH)
    except ValueError as problem:
        try:  # a YAML document may begin with a brace
            return _yaml(data)
        except OpenAPIError:
            raise OpenAPIError("", f"the document cannot be read: {problem}") from None


def _yaml(data: bytes) -> Any:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise OpenAPIError("", "the document is not UTF-8") from None
    try:
        return _Reader(events(text)).document()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise OpenAPIError("", f"the document is neither JSON nor YAML: {problem}{where}") from None


class _Reader:
    """One fold of libyaml's events into values."""

    __slots__ = ("anchors", "depth", "get", "nodes")

    def __init__(self, get: Callable[[], Any]) -> None:
        self.get = get
        self.nodes = 0
        self.depth = 0
        self.anchors: dict[str, tuple[Any, int, int]] = {}  # value, nodes, levels

    def document(self) -> Any:
        while not isinstance(event := self.get(), DocumentStartEvent):
            if isinstance(event, StreamEndEvent):
                raise OpenAPIError("", "the document is empty")
        return self.node(self.get())[0]

    def node(self, event: Any) -> tuple[Any, int]:
        """The value, and the levels below it."""
        kind = event.__class__
        if kind is AliasEvent:
            found = self.anchors.get(event.anchor)
            if found is None:
                raise self.wrong(event, f"there is no anchor {event.anchor!r} above")
            self.count(event, found[1], found[2])
            return found[0], found[2]
        before = self.nodes
        self.count(event, 1, 0)
        value: Any
        levels = 0
        if kind is ScalarEvent:
            value = event.value
            if event.tag is None and event.implicit[0]:
                value = _plain(value)
        else:
            self.depth += 1
            value, levels = self.mapping() if kind is MappingStartEvent else self.sequence()
            self.depth -= 1
            levels += 1
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, self.nodes - before, levels)
        return value, levels

    def count(self, event: Any, nodes: int, levels: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise self.wrong(event, f"more than {MAX_NODES:,} values once aliases are unfolded")
        if self.depth + levels > MAX_DEPTH:
            raise self.wrong(event, f"nested deeper than {MAX_DEPTH} levels")

    def sequence(self) -> tuple[list[Any], int]:
        values: list[Any] = []
        deepest = 0
        while (event := self.get()).__class__ is not SequenceEndEvent:
            value, levels = self.node(event)
            values.append(value)
            deepest = max(deepest, levels)
        return values, deepest

    def mapping(self) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        merged: list[Any] = []
        deepest = 0
        while (event := self.get()).__class__ is not MappingEndEvent:
            if event.__class__ is not ScalarEvent:
                raise self.wrong(event, "a key must be text")
            value, levels = self.node(self.get())
            deepest = max(deepest, levels)
            if event.value == "<<" and event.implicit[0]:
                merged += value if isinstance(value, list) else [value]
            else:
                values[event.value] = value
        for more in merged:
            if not isinstance(more, dict):
                raise self.wrong(event, "`<<` merges an object")
            for key, value in more.items():
                values.setdefault(key, value)
        return values, deepest

    def wrong(self, event: Any, message: str) -> OpenAPIError:
        mark = event.start_mark
        return OpenAPIError("", f"{message} (line {mark.line + 1}, column {mark.column + 1})")


def _plain(text: str) -> Any:
    """A whole number that is too long is a float, as in JSON; what can be none either stays text."""
    try:
        return plain(text)
    except NotKept:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if isfinite(number) else text
