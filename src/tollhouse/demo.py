"""A small MCP server over standard input and output, to try the gateway with: `python -m tollhouse.demo`.

Rule: it needs nothing and reaches nothing; all it knows is in this file. It speaks the handshake era (2025-06-18,
2025-11-25) and the stateless one (2026-07-28), as the client chooses.
"""

import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, BinaryIO

import msgspec

__all__ = ["main", "serve"]

_OLD = ("2025-11-25", "2025-06-18")
_NEW = "2026-07-28"
_META = "io.modelcontextprotocol/"
_INFO = {"name": "tollhouse-demo", "title": "Demo", "version": "1"}
_INSTRUCTIONS = "Tools to try a gateway with. The weather is made up."
_CAPABILITIES: dict[str, Any] = {"tools": {}, "resources": {}, "prompts": {}}

_WEATHER = {
    "amsterdam": ("rain", 11),
    "berlin": ("clouds", 9),
    "cairo": ("sun", 29),
    "lima": ("fog", 18),
    "london": ("drizzle", 10),
    "nairobi": ("sun", 23),
    "new york": ("wind", 13),
    "oslo": ("snow", -3),
    "tokyo": ("clear", 16),
}
_PALETTE = "name,hex\ncoral,#ff7f50\nteal,#008080\nplum,#8e4585\n"


class _Error(Exception):
    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(message)
        self.fields = {"code": code, "message": message} | ({"data": data} if data is not None else {})


class _ToolFailed(Exception):
    """The tool ran and could not do it; the model may read why."""


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _echo(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"content": [_text(_string(arguments, "message"))]}


def _add(arguments: dict[str, Any]) -> dict[str, Any]:
    a, b = arguments.get("a"), arguments.get("b")
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in (a, b)):
        raise _ToolFailed("a and b must be numbers")
    total = a + b  # type: ignore[operator]
    return {"content": [_text(str(total))], "structuredContent": {"sum": total}}


def _time(arguments: dict[str, Any]) -> dict[str, Any]:
    offset = arguments.get("utc_offset", 0)
    if not isinstance(offset, int | float) or not -14 <= offset <= 14:
        raise _ToolFailed("utc_offset must be hours between -14 and 14")
    now = datetime.now(timezone(timedelta(hours=offset)))
    return {"content": [_text(now.isoformat(timespec="seconds"))]}


def _weather(arguments: dict[str, Any]) -> dict[str, Any]:
    city = _string(arguments, "city")
    found = _WEATHER.get(city.lower())
    if found is None:
        raise _ToolFailed(f"no weather for {city!r}; there is some for {', '.join(sorted(_WEATHER))}")
    sky, celsius = found
    return {
        "content": [_text(f"{city}: {sky}, {celsius} °C")],
        "structuredContent": {"city": city, "sky": sky, "celsius": celsius},
    }


def _string(arguments: dict[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str):
        raise _ToolFailed(f"{name} must be a string")
    return value


def _schema(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


_READ_ONLY = {"readOnlyHint": True, "openWorldHint": False}
_TOOLS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, Any]]] = {
    "echo": (
        _echo,
        {
            "description": "Says back what it is told.",
            "inputSchema": _schema({"message": {"type": "string"}}, "message"),
            "annotations": _READ_ONLY,
        },
    ),
    "add": (
        _add,
        {
            "description": "Adds two numbers.",
            "inputSchema": _schema({"a": {"type": "number"}, "b": {"type": "number"}}, "a", "b"),
            "outputSchema": _schema({"sum": {"type": "number"}}, "sum"),
            "annotations": _READ_ONLY,
        },
    ),
    "time": (
        _time,
        {
            "description": "Tells the time at an offset from UTC, in hours.",
            "inputSchema": _schema({"utc_offset": {"type": "number", "default": 0}}),
            "annotations": _READ_ONLY,
        },
    ),
    "weather": (
        _weather,
        {
            "description": "Tells the weather of a city. It is made up, and always the same.",
            "inputSchema": _schema({"city": {"type": "string"}}, "city"),
            "outputSchema": _schema(
                {"city": {"type": "string"}, "sky": {"type": "string"}, "celsius": {"type": "number"}},
                "city", "sky", "celsius",
            ),
            "annotations": _READ_ONLY,
        },
    ),
}  # fmt: skip

_RESOURCE = {"uri": "demo://palette", "name": "palette", "description": "Three colours.", "mimeType": "text/csv"}
_PROMPT = {
    "name": "summary",
    "description": "Asks for a summary of a text.",
    "arguments": [{"name": "text", "description": "What to sum up.", "required": True}],
}


def _asked(params: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a tool or prompt."""
    name, arguments = params.get("name"), params.get("arguments", {})
    if not isinstance(name, str):
        raise _Error(-32602, "name must be a string")
    if not isinstance(arguments, dict):
        raise _Error(-32602, "arguments must be an object")
    return name, arguments


def _call(params: dict[str, Any]) -> dict[str, Any]:
    name, arguments = _asked(params)
    tool = _TOOLS.get(name)
    if tool is None:
        raise _Error(-32602, f"Unknown tool: {name}")
    try:
        return tool[0](arguments)
    except _ToolFailed as problem:
        return {"content": [_text(str(problem))], "isError": True}


def _read(params: dict[str, Any]) -> dict[str, Any]:
    if params.get("uri") != _RESOURCE["uri"]:
        raise _Error(-32602, "Resource not found", {"uri": params.get("uri")})
    return {"contents": [{"uri": _RESOURCE["uri"], "mimeType": "text/csv", "text": _PALETTE}]}


def _prompt(params: dict[str, Any]) -> dict[str, Any]:
    name, arguments = _asked(params)
    if name != _PROMPT["name"]:
        raise _Error(-32602, f"Unknown prompt: {name}")
    text = arguments.get("text", "")
    return {"messages": [{"role": "user", "content": _text(f"Sum up in one sentence:\n\n{text}")}]}


_METHODS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "tools/list": lambda _: {"tools": [{"name": name, **about} for name, (_, about) in _TOOLS.items()]},
    "tools/call": _call,
    "resources/list": lambda _: {"resources": [_RESOURCE]},
    "resources/templates/list": lambda _: {"resourceTemplates": []},
    "resources/read": _read,
    "prompts/list": lambda _: {"prompts": [_PROMPT]},
    "prompts/get": _prompt,
}
_LASTING = frozenset(("tools/list", "resources/list", "resources/templates/list", "resources/read", "prompts/list"))


def _answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    meta = params.get("_meta")
    version = meta.get(f"{_META}protocolVersion") if isinstance(meta, dict) else None
    if version is None:
        if method == "initialize":
            asked = params.get("protocolVersion")
            return {
                "protocolVersion": asked if asked in _OLD else _OLD[0],
                "capabilities": _CAPABILITIES,
                "serverInfo": _INFO,
                "instructions": _INSTRUCTIONS,
            }
        if method == "ping":
            return {}
    elif version != _NEW:
        raise _Error(-32022, "Unsupported protocol version", {"supported": [_NEW, *_OLD], "requested": version})
    elif method == "server/discover":
        return {
            "supportedVersions": [_NEW, *_OLD],
            "capabilities": _CAPABILITIES,
            "instructions": _INSTRUCTIONS,
            "resultType": "complete",
            "ttlMs": 3_600_000,
            "cacheScope": "public",
            "_meta": {f"{_META}serverInfo": _INFO},
        }
    handler = _METHODS.get(method)
    if handler is None:
        raise _Error(-32601, f"Method not found: {method}")
    result = handler(params)
    if version is not None:
        result["resultType"] = "complete"
        if method in _LASTING:
            result |= {"ttlMs": 3_600_000, "cacheScope": "public"}
    return result


def _reply(line: bytes) -> bytes | None:
    try:
        message = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return msgspec.json.encode(_failed(None, {"code": -32700, "message": "Parse error"}))
    if not isinstance(message, dict) or not isinstance(message.get("method"), str) or "id" not in message:
        return None  # a notification, or a response to what was never asked
    id, params = message["id"], message.get("params")
    if isinstance(id, bool) or not isinstance(id, str | int | float):
        return msgspec.json.encode(_failed(None, {"code": -32600, "message": "The id must be a string or a number"}))
    try:
        try:
            result = _answer(message["method"], params if isinstance(params, dict) else {})
            return msgspec.json.encode({"jsonrpc": "2.0", "id": id, "result": result})
        except _Error as problem:
            return msgspec.json.encode(_failed(id, problem.fields))
    except Exception:  # noqa: BLE001 - the root of one request: those of others go on
        return msgspec.json.encode(_failed(id, {"code": -32603, "message": "Internal error"}))


def _failed(id: Any, error: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "error": error}


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer each line of `source` with at most one of `sink`, until `source` ends."""
    for line in source:
        if line.strip():
            reply = _reply(line)
            if reply is not None:
                sink.write(reply + b"\n")
                sink.flush()


def main() -> None:
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except (KeyboardInterrupt, BrokenPipeError):
        pass


if __name__ == "__main__":
    main()
