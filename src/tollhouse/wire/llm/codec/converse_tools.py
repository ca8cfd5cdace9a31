"""Bedrock Converse and the neutral model: the tools of a request, and which of them is to be called.

There is no choice "none" of tools: they are left out. But calls among the messages are only taken beside tools, so
where none are offered, the tools that were called are named again, as not to be called any more.
"""

from typing import Any

import msgspec

from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.converse_parts import marker, read_marker
from tollhouse.wire.llm.codec.reading import Fields, own_value, put_back, written
from tollhouse.wire.llm.model import Chat, OpaqueTool, Tool, ToolCall, ToolChoice, ToolResult

__all__ = ["place_of_tool", "read_tools", "write_tools"]

Raw = msgspec.Raw

_NAME = "converse"
_NO_SCHEMA = Raw(b'{"type":"object","properties":{}}')


def read_tools(f: Fields, chat: Chat) -> None:
    """f: `toolConfig`. Raises Failure 400."""
    tools = f.children("tools")
    if tools is not None:
        chat.tools = []
        for tool in tools:
            _read_tool(tool, chat.tools)
    choice = f.child("toolChoice")
    if choice is None:
        return
    named = choice.child("tool")
    if named is not None:
        chat.tool_choice = ToolChoice("required", (named.need_text("name"),))
    elif choice.has("any"):
        chat.tool_choice = ToolChoice("required")
    elif choice.has("auto"):
        chat.tool_choice = ToolChoice("auto")
    else:
        f.fail("toolChoice", "must have one of auto, any, tool")


def _read_tool(f: Fields, tools: list[Tool | OpaqueTool]) -> None:
    whole = f.untouched()
    marked = tools[-1] if tools else None
    if f.has("cachePoint") and isinstance(marked, Tool) and marked.cache is None:
        marked.cache = read_marker(f)
        if marked.cache is not None:
            return
    spec = f.child("toolSpec")
    if spec is None:
        kind = next(iter(f.rest() or {}), "cachePoint")
        tools.append(OpaqueTool(_NAME, kind, whole))
        return
    tool = Tool(spec.need_text("name"), spec.text("description"))
    schema = spec.child("inputSchema")
    if schema is None:
        spec.fail("inputSchema", "is missing: it must be an object with json")
    tool.parameters = schema.raw("json")
    tool.strict = spec.flag("strict")
    extra = spec.rest() or {}
    if schema.rest():
        extra["inputSchema"] = written(schema.rest())
    tool.extra = extra or None
    tools.append(tool)


def place_of_tool(chat: Chat, n: int) -> str:
    """Where the tool of this number stands in a request: cache markers among them are counted there, too."""
    before = (chat.tools or [])[:n]
    return f"toolConfig.tools[{n + sum(isinstance(t, Tool) and t.cache is not None for t in before)}]"


def write_tools(chat: Chat, own: bool, markers: bool, lost: Lost) -> dict[str, Any]:
    """`toolConfig`, {} for none. own: the request was made for this API. markers: the model caches."""
    choice = chat.tool_choice
    allowed = choice.names if choice is not None and (len(choice.names) > 1 or choice.mode == "auto") else ()
    found: list[Any] = []
    if choice is None or choice.mode != "none":
        for n, tool in enumerate(chat.tools or ()):
            if isinstance(tool, OpaqueTool):
                found += own_value(tool, _NAME, f"tools[{n}]", lost)
            elif not allowed or tool.name in allowed:
                found.append({"toolSpec": _write_tool(tool, f"tools[{n}].", own, lost)})
                if tool.cache is not None and markers:
                    found.append(marker(tool.cache))
    form: dict[str, Any] = {}
    if found or (own and chat.tools is not None):
        form["tools"] = found
        if chat.parallel is False:
            lost.add("parallel")
    elif not own:
        found = _called(chat)
        return {"tools": found} if found else {}
    if choice is not None and choice.mode != "none":
        if choice.mode == "required" and len(choice.names) == 1:
            form["toolChoice"] = {"tool": {"name": choice.names[0]}}
        else:
            form["toolChoice"] = {"any" if choice.mode == "required" else "auto": {}}
    return form


def _write_tool(tool: Tool, where: str, own: bool, lost: Lost) -> dict[str, Any]:
    spec: dict[str, Any] = {"name": tool.name}
    if tool.description or (own and tool.description is not None):
        spec["description"] = tool.description
    if tool.parameters is not None:
        spec["inputSchema"] = {"json": tool.parameters}
    else:
        spec["inputSchema"] = {} if own and tool.extra and "inputSchema" in tool.extra else {"json": _NO_SCHEMA}
    if tool.strict or (own and tool.strict is not None):
        spec["strict"] = tool.strict
    put_back(spec, tool.extra, own, lost, where)
    return spec


def _called(chat: Chat) -> list[dict[str, Any]]:
    """The tools that are called among the messages, for a request that offers none."""
    names: dict[str, None] = {}
    results = False
    for message in chat.messages:
        for part in message.parts:
            if isinstance(part, ToolCall):
                names[part.name] = None
            results = results or isinstance(part, ToolResult)
    if results and not names:
        names["none"] = None
    spec = {"description": "Not available in this turn: do not call it.", "inputSchema": {"json": _NO_SCHEMA}}
    return [{"toolSpec": {"name": name, **spec}} for name in names]
