"""The names agents see and the names servers know: tools and prompts as `server__name`, resources as `server+uri`.

Rule: split at the first `__`, which a server's name may not contain. In a URI the server's `_` is written `.`, which
it may not contain either, so that the whole is a legal scheme (RFC 3986, 3.1) and both ways are unambiguous.
"""

import re
from typing import Any, Literal

import msgspec

from tollhouse.wire import jsonrpc

__all__ = ["SERVER_NAME", "Prefix", "exposed", "exposed_uri", "original_uri", "prefixed", "rewrite_uris", "split"]

Prefix = Literal["auto", "always", "never"]

SERVER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]*(?:_[A-Za-z0-9-]+)*")


def prefixed(prefix: Prefix, servers: int) -> bool:
    """Whether names carry their server, with this many servers behind one endpoint."""
    return prefix == "always" or (prefix == "auto" and servers > 1)


def exposed(server: str, name: str) -> str:
    return f"{server}__{name}"


def split(name: str) -> tuple[str, str]:
    """(server, original name); the server is "" when there is no prefix."""
    server, mark, original = name.partition("__")
    return (server, original) if mark else ("", name)


def exposed_uri(server: str, uri: str) -> str:
    return f"{server.replace('_', '.')}+{uri}"


def original_uri(uri: str) -> tuple[str, str]:
    """(server in lower case, its URI); the server is "" when there is no prefix. A scheme is compared without case."""
    scheme, mark, rest = uri.partition("+")
    if not mark or ":" in scheme:
        return "", uri
    return scheme.replace(".", "_").lower(), rest


_WHERE = {"resources/read": "contents", "prompts/get": "messages", "tools/call": "content"}


def rewrite_uris(method: str, raw: msgspec.Raw | bytes, server: str) -> msgspec.Raw | bytes:
    """A result with the URIs in it as agents see them: resource links, embedded resources, contents read.

    Only the member that holds them is parsed; `structuredContent` and the rest pass as they are.
    """
    where = _WHERE.get(method)
    if where is None or b"uri" not in bytes(raw):
        return raw
    try:
        fields = jsonrpc.decode_fields(raw)
        found = msgspec.json.decode(fields[where])
    except (jsonrpc.Malformed, msgspec.DecodeError, RecursionError, KeyError):
        return raw
    for entry in found if isinstance(found, list) else ():
        if method == "resources/read":
            _uri(entry, server)
        elif method == "tools/call":
            _block(entry, server)
        elif isinstance(entry, dict):
            _block(entry.get("content"), server)
    fields[where] = msgspec.Raw(msgspec.json.encode(found))
    return jsonrpc.encode_fields(fields)


def _block(block: Any, server: str) -> None:
    if isinstance(block, dict):
        if block.get("type") == "resource_link":
            _uri(block, server)
        elif block.get("type") == "resource":
            _uri(block.get("resource"), server)


def _uri(entry: Any, server: str) -> None:
    if isinstance(entry, dict) and isinstance(entry.get("uri"), str):
        entry["uri"] = exposed_uri(server, entry["uri"])
