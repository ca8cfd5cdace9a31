"""The HTTP headers of a stateless request (2026-07-28, Streamable HTTP), checked against its body, and made for it.

Rule: headers are for those who route without reading; what they say must be what the body says, or the request is
refused with -32020. A gateway that renames never forwards an agent's headers: it makes its own.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = [
    "NAMED",
    "TOKEN",
    "annotations",
    "decode_value",
    "encode_value",
    "invalid_annotation",
    "param_mismatch",
    "params_for",
    "request_fault",
]

NAMED = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
"""Method to the parameter that `Mcp-Name` repeats."""

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""What can be the name of a header field (RFC 9110, 5.6.2)."""

_WRAPPED = re.compile(r"=\?base64\?(.*)\?=", re.DOTALL)
_PLAIN = re.compile(r"[\x20-\x7e]*")
_DECIMAL = re.compile(r"(-?[0-9]+)(?:\.0+)?")
_KEY = "x-mcp-header"
_TYPES = frozenset(("string", "integer", "boolean"))
_ONE = frozenset(
    (
        "items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames", "unevaluatedProperties",
        "not", "if", "then", "else", "contentSchema",
    )
)  # fmt: skip
_LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_MAPS = frozenset(("patternProperties", "dependentSchemas", "$defs", "definitions"))
_NODES = 10_000

Path = tuple[str, ...]


def encode_value(value: str) -> bytes:
    """`value` as a header value: itself, or wrapped in base64 where it would not survive the way."""
    if _PLAIN.fullmatch(value) and value == value.strip() and not _WRAPPED.fullmatch(value):
        return value.encode("ascii")
    return b"=?base64?" + base64.b64encode(value.encode()) + b"?="


def decode_value(raw: bytes) -> str | None:
    """The inverse; None for a wrapping that is broken or not canonical, and for bytes that are not ASCII."""
    try:
        text = raw.decode("ascii")
        match = _WRAPPED.fullmatch(text)
        if match is None:
            return text
        inner = base64.b64decode(match[1], validate=True)
        return inner.decode() if base64.b64encode(inner).decode() == match[1] else None
    except (UnicodeDecodeError, binascii.Error):
        return None


def _positions(schema: Any) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """Every schema position with its chain of `properties` keys, None once anything else was crossed. Never follows
    `$ref`; stops after a bounded number of nodes."""
    stack: list[tuple[Path | None, Any]] = [((), schema)]
    left = _NODES
    while stack and left:
        path, node = stack.pop()
        if not isinstance(node, dict):
            continue
        left -= 1
        yield path, node
        for key, value in node.items():
            if key == "properties" and isinstance(value, dict):
                stack.extend(((*path, name) if path is not None else None, sub) for name, sub in value.items())
            elif key in _ONE:
                stack.append((None, value))
            elif key in _LISTS and isinstance(value, list):
                stack.extend((None, sub) for sub in value)
            elif key in _MAPS and isinstance(value, dict):
                stack.extend((None, sub) for sub in value.values())


def invalid_annotation(schema: Any) -> str | None:
    """Why a tool's `x-mcp-header` annotations are not usable, None when they are. Such a tool is not to be offered."""
    seen: set[str] = set()
    for path, node in _positions(schema):
        if _KEY not in node:
            continue
        if not path:
            return f"{_KEY} stands where no chain of properties leads"
        where, name = ".".join(path), node[_KEY]
        if not isinstance(name, str) or not TOKEN.fullmatch(name):
            return f"property {where!r}: {_KEY} must be a header name"
        if not isinstance(node.get("type"), str) or node["type"] not in _TYPES:
            return f"property {where!r}: {_KEY} may stand only on a string, an integer or a boolean"
        if name.lower() in seen:
            return f"property {where!r}: {_KEY} {name!r} is used twice"
        seen.add(name.lower())
    return None


def annotations(schema: Any) -> dict[Path, tuple[str, str]]:
    """Path of an argument to (header name after `Mcp-Param-`, JSON type), for a schema whose annotations are valid."""
    return {path: (node[_KEY], node["type"]) for path, node in _positions(schema) if path and _KEY in node}


def _at(arguments: Any, path: Path) -> Any:
    for key in path:
        if not isinstance(arguments, Mapping):
            return None
        arguments = arguments.get(key)
    return arguments


def _text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | str):
        try:
            return str(value)
        except ValueError:  # more digits than Python prints
            return None
    return None


def params_for(found: dict[Path, tuple[str, str]], arguments: Any) -> list[tuple[bytes, bytes]]:
    """The `mcp-param-` headers that repeat a call's arguments."""
    headers = []
    for path, (name, _) in found.items():
        text = _text(_at(arguments, path))
        if text is not None:
            headers.append((b"mcp-param-" + name.lower().encode(), encode_value(text)))
    return headers


def param_mismatch(
    found: dict[Path, tuple[str, str]], arguments: Any, headers: list[tuple[bytes, bytes]]
) -> str | None:
    """Where headers and arguments disagree, None when they agree. Unknown `mcp-param-` headers are ignored."""
    for path, (name, kind) in found.items():
        given = [value for key, value in headers if key == b"mcp-param-" + name.lower().encode()]
        argument, header = ".".join(path), f"Mcp-Param-{name}"
        if len(given) > 1:
            return f"{header} appears more than once"
        value = _at(arguments, path)
        text = _text(value)
        if text is None:
            if given:
                return f"{header} is there but the argument {argument!r} is not"
            continue
        if not given:
            return f"{header} is missing but the argument {argument!r} is there"
        said = decode_value(given[0])
        if said is None or not (said == text or (kind == "integer" and _same_integer(said, value))):
            return f"{header} is not what the argument {argument!r} says"
    return None


def _same_integer(said: str, value: Any) -> bool:
    match = _DECIMAL.fullmatch(said)
    if match is None or isinstance(value, bool) or len(said) > 4000:
        return False
    if isinstance(value, float) and not value.is_integer():
        return False
    return isinstance(value, int | float) and int(match[1]) == int(value)


def request_fault(
    headers: list[tuple[bytes, bytes]], method: str, version: str | None, named: str | None
) -> tuple[str, str] | None:
    """What the standard headers of a request say that its body does not: (header, why), None when all agree.

    version: of `_meta`, None when it is not a string. named: the body's value of the parameter NAMED[method].
    """
    expected: dict[bytes, str | None] = {b"mcp-protocol-version": version, b"mcp-method": method}
    if method in NAMED:
        expected[b"mcp-name"] = named
    for name, value in expected.items():
        given = [v for n, v in headers if n == name]
        shown = "-".join(part.capitalize() for part in name.decode().split("-")).replace("Mcp-P", "MCP-P")
        if len(given) > 1:
            return shown, f"{shown} appears more than once"
        if value is None and name == b"mcp-name":
            continue  # the params are refused for it later
        if not given:
            return shown, f"the header {shown} is missing"
        if decode_value(given[0]) != value:
            return shown, f"the header {shown} is not what the body says"
    return None
