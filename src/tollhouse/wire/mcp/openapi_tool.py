"""What an operation of an OpenAPI document is called as a tool, and what agents are told of it.

Rule: names are the same however often the document is read and whatever stands around them. What the document says of
the tool itself (`x-mcp`) goes before what it says of the operation.
"""

import hashlib
import re
from typing import Any, Final

__all__ = ["MAX_DESCRIPTION", "MAX_NAME", "SAFE", "annotations_of", "described", "is_hidden", "marked", "name_of"]

MAX_NAME: Final = 64
MAX_DESCRIPTION: Final = 4_000  # characters
SAFE: Final = frozenset(("get",))

_IDEMPOTENT = frozenset(("get", "put", "delete"))
_NOT_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_UNDERSCORES = re.compile(r"__+")


def name_of(path: str, method: str, operation: dict[str, Any]) -> str:
    """As the document says, or of method and path."""
    for wanted in (_extension(operation).get("name"), operation.get("operationId"), f"{method}_{path}"):
        if isinstance(wanted, str):
            plain = _UNDERSCORES.sub("_", _NOT_NAME.sub("_", wanted)).strip("_")
            if plain:
                return plain
    return method


def marked(name: str, path: str, method: str) -> str:
    """A name that is too long, or not the only one, told apart by what it stands for."""
    mark = hashlib.blake2b(f"{method} {path}".encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{name[: MAX_NAME - 9]}_{mark}"


def described(name: str, path: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    """A Tool's name, title and description (2025-11-25)."""
    extension = _extension(operation)
    tool: dict[str, Any] = {"name": name}
    title = extension.get("title", operation.get("summary"))
    if isinstance(title, str) and 0 < len(title.strip()) <= 100:
        tool["title"] = title.strip()
    if isinstance(extension.get("description"), str):
        said = [extension["description"]]
    else:
        texts = (operation.get("summary"), operation.get("description"))
        said = [text.strip() for text in texts if isinstance(text, str)]
    description = "\n\n".join(dict.fromkeys(filter(None, said))) or f"{method.upper()} {path}"
    tool["description"] = description[:MAX_DESCRIPTION]
    return tool


def annotations_of(method: str, operation: dict[str, Any]) -> dict[str, Any]:
    """ToolAnnotations (2025-11-25): what the method promises (RFC 9110, 9.2), and what the document says instead."""
    extension = _extension(operation)
    made: dict[str, Any] = {"readOnlyHint": method in SAFE, "openWorldHint": True}
    if method not in SAFE:
        made["destructiveHint"] = True  # also a POST may be: nothing says that it only adds
        made["idempotentHint"] = method in _IDEMPOTENT
    for name in ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"):
        value = extension.get(name)
        if isinstance(value, bool):
            made[name] = value
    return made


def is_hidden(operation: dict[str, Any]) -> bool:
    """Whether the document says that it is no tool."""
    return _extension(operation).get("hidden") is True


def _extension(operation: dict[str, Any]) -> dict[str, Any]:
    """What the document says of the tool itself: `x-mcp`."""
    found = operation.get("x-mcp")
    return found if isinstance(found, dict) else {}
