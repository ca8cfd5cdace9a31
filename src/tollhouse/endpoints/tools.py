"""MCP tools as plain REST, for programs that speak no MCP: `POST <path>/<server>/<tool>`, and a document that says
which there are, `GET <path>/openapi.json` (OpenAPI 3.1).

Rule: a tool is the same tool. A call goes through its server's chain like an agent's, with the same rules, limits and
records; the document has what this caller may use, and nothing else. The caller can be asked nothing, so a server is
told that it cannot.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec

from tollhouse.core.call import ToolCall
from tollhouse.core.depth import UNREADABLE, decode
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request, Response
from tollhouse.endpoints.mcp.bridge import Bridge
from tollhouse.endpoints.mcp.lists import Lists
from tollhouse.endpoints.mcp.request import JSON
from tollhouse.endpoints.mcp.server import Server
from tollhouse.endpoints.mcp.tool import call_of, carried_out
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import names
from tollhouse.wire.mcp.catalogue import KINDS, LONGEST, Cursors, Listing

__all__ = ["ToolsEndpoint"]

Admit = Callable[[ToolCall], Awaitable[None]]

_TOOLS = KINDS["tools/list"]
_PROBLEM = "application/problem+json"
_DOCUMENTS = 64  # remembered
_DOCUMENT = b"openapi.json"
_SAID = 4000  # characters of a tool's error in a problem's title


class _Text(msgspec.Struct):
    type: str = ""
    text: str = ""


class _Result(msgspec.Struct):
    content: msgspec.Raw = msgspec.Raw(b"[]")
    structured: msgspec.Raw = msgspec.field(default=jsonrpc.NONE, name="structuredContent")
    failed: bool = msgspec.field(default=False, name="isError")
    type: str = msgspec.field(default="complete", name="resultType")


class ToolsEndpoint:
    """All servers' tools below `path`; `handle` is a Handler of the request floor.

    admit: awaited before what reaches no server's chain. max_body: bytes of a request. version: ours, for the document.
    url: of the gateway, as clients see it. authenticated: callers must say who they are.
    """

    def __init__(
        self,
        path: str,
        servers: Mapping[str, Server],
        *,
        cursors: Cursors,
        bridge: Bridge,
        admit: Admit | None = None,
        max_body: int = 10 << 20,
        version: str = "",
        url: str = "",
        authenticated: bool = False,
    ) -> None:
        self._prefix = path.encode("ascii") + b"/"
        self._path = path
        self._servers = dict(servers)
        self._bridge = bridge
        self._admit = admit
        self._max_body = max_body
        self._version = version
        self._url = url
        self._authenticated = authenticated
        self._documents: dict[tuple[Any, ...], bytes] = {}
        self._lists = Lists(
            self._servers, endpoint=path, wrap=True, wrap_uris=True, failure="open", cursors=cursors, page=10_000
        )

    async def handle(self, request: Request) -> Response:
        """Answer one request. Raises Failure."""
        context = request.context
        context.operation = "mcp"
        if not request.path.startswith(self._prefix):
            raise _nothing()
        rest = request.path[len(self._prefix) :]
        if rest == _DOCUMENT:
            return await self._document(request)
        server, _, tool = rest.partition(b"/")
        name = unquote(tool.decode("latin-1"), errors="replace")
        if not server or not tool or b"/" in tool or len(name) > LONGEST[_TOOLS.key]:
            await self._ask(request, "tools/call")
            raise _nothing()
        if request.method != b"POST":
            raise Failure(405, Reason.INVALID_REQUEST, "call a tool with POST", headers=((b"allow", b"POST"),))
        return await self._call(request, server.decode("latin-1"), name)

    async def _ask(self, request: Request, method: str) -> None:
        if self._admit is not None:
            call = ToolCall(request, request.context, server="", method=method, name="", params={})
            await self._admit(call)

    # ---- calls
    async def _call(self, request: Request, place: str, name: str) -> Response:
        context = request.context
        context.mcp_method = "tools/call"
        arguments = await self._arguments(request)
        found = None
        if place in self._servers:
            found = await self._lists.owner(_TOOLS, names.exposed(place, name), None, context)
        if found is None:
            await self._ask(request, "tools/call")
            context.mcp_outcome = "protocol_error"
            raise _unknown(place, name)
        server, original, ours = found
        try:
            call, entry = call_of(server, original, arguments, request, context, ours=ours)
        except jsonrpc.Malformed as problem:
            await self._ask(request, "tools/call")
            context.mcp_outcome = "protocol_error"
            raise Failure(400, Reason.INVALID_REQUEST, problem.message) from None
        upstream = server.upstream
        if entry is not None and entry.as_task and not upstream.new:
            call.resume = self._bridge.as_task(server)
        message = await carried_out(server, call)
        structured = entry is not None and b'"outputSchema"' in entry.raw
        if len(message.error):
            context.mcp_outcome = "protocol_error"
            raise _refused(server.name, place, name, jsonrpc.error_fields(message.error))
        return self._told(request, message.result, structured)

    async def _arguments(self, request: Request) -> msgspec.Raw:
        """The body: an object, or nothing. Raises Failure."""
        body = await request.read(self._max_body)
        request.context.bytes_in = len(body)
        kind = (request.header(b"content-type") or b"").partition(b";")[0].strip().lower()
        if body and kind != b"application/json":
            raise Failure(415, Reason.INVALID_REQUEST, "send the arguments with content-type: application/json")
        try:
            if not body.isascii():
                str(body, "utf-8")
            msgspec.json.decode(body or b"{}", type=dict[str, msgspec.Raw])
        except UNREADABLE:
            raise Failure(400, Reason.INVALID_REQUEST, "the body must be a JSON object: the tool's arguments") from None
        return msgspec.Raw(body or b"{}")

    def _told(self, request: Request, raw: msgspec.Raw, structured: bool) -> Response:
        """A result: what is structured where the tool promises that, else all of it."""
        context = request.context
        try:
            result = msgspec.json.decode(raw, type=_Result)
        except UNREADABLE:
            context.mcp_outcome = "protocol_error"
            what = f"{context.server}: the tool's result cannot be read"
            raise Failure(502, Reason.UPSTREAM_FAILURE, what, sent=True) from None
        if result.type == "input_required":
            context.mcp_outcome = "protocol_error"
            raise Failure(
                422,
                Reason.INVALID_REQUEST,
                "the tool asks for input, which only an MCP client can give",
                code="input_required",
            )
        if result.failed:
            context.mcp_outcome = "tool_error"
            return _tool_error(result)
        context.mcp_outcome = "ok"
        if structured and len(result.structured):
            return Response(200, [JSON], bytes(result.structured), reason=Reason.UPSTREAM)
        fields: dict[str, Any] = {"content": result.content}
        if len(result.structured):
            fields["structuredContent"] = result.structured
        return Response(200, [JSON], msgspec.json.encode(fields), reason=Reason.UPSTREAM)

    # ---- the document
    async def _document(self, request: Request) -> Response:
        if request.method not in (b"GET", b"HEAD"):
            raise Failure(405, Reason.INVALID_REQUEST, "read the document with GET", headers=((b"allow", b"GET"),))
        request.context.mcp_method = "tools/list"
        await self._ask(request, "tools/list")
        parts, visible, unavailable = await self._lists.usable(request, None, 0)
        request.context.mcp_outcome = "ok"
        key = tuple((server.name, li.version, shown) for (server, li), shown in zip(parts, visible, strict=True))
        body = self._documents.get((key, tuple(unavailable)))
        if body is None:
            body = msgspec.json.encode(self._described(parts, visible, unavailable))
            if len(self._documents) >= _DOCUMENTS:
                self._documents.pop(next(iter(self._documents)))
            self._documents[key, tuple(unavailable)] = body
        return Response(200, [JSON, (b"cache-control", b"private, no-cache")], body)

    def _described(
        self, parts: Sequence[tuple[Server, Listing]], visible: Sequence[bytes], unavailable: Sequence[str]
    ) -> dict[str, Any]:
        paths: dict[str, Any] = {}
        for (server, listing), shown in zip(parts, visible, strict=True):
            for entry, may in zip(listing.entries, shown, strict=True):
                path = f"{self._path}/{server.name}/{quote(entry.name, safe='')}"
                if may and (operation := _operation(server.name, entry.raw, path)) is not None:
                    paths[path] = {"post": operation}
        document: dict[str, Any] = {
            "openapi": "3.1.0",
            "info": {"title": "Tools", "version": self._version},
            "servers": [{"url": self._url}],
            "paths": paths,
            "components": {"schemas": _SCHEMAS, "responses": _RESPONSES},
        }
        if unavailable:
            document["info"]["description"] = f"Not to be had at the moment: {', '.join(unavailable)}."
        if self._authenticated:
            document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"bearer": []}]
        return document


def _operation(server: str, raw: bytes, path: str) -> dict[str, Any] | None:
    """A tool as an operation. None for one that cannot be read."""
    try:
        tool = decode(raw)
    except ValueError:
        return None
    if not isinstance(tool, dict):
        return None
    name = str(tool.get("name"))
    # A reference in a schema means the schema; here it is a part of something larger.
    step = path.replace("~", "~0").replace("/", "~1").replace("%", "%25")
    at = f"#/paths/{step}/post"
    media = "content/application~1json/schema"
    takes = _moved(tool.get("inputSchema", {}), f"{at}/requestBody/{media}")
    gives = tool.get("outputSchema")
    answer = (
        _moved(gives, f"{at}/responses/200/{media}")
        if isinstance(gives, dict)
        else {"$ref": "#/components/schemas/Result"}
    )
    operation: dict[str, Any] = {
        "operationId": names.exposed(server, name),
        "tags": [server],
        "requestBody": {
            "required": isinstance(takes, dict) and bool(takes.get("required")),
            "content": {"application/json": {"schema": takes}},
        },
        "responses": {
            "200": {"description": "What the tool gives.", "content": {"application/json": {"schema": answer}}},
            "422": {"$ref": "#/components/responses/ToolError"},
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }
    if isinstance(tool.get("title"), str):
        operation["summary"] = tool["title"]
    if isinstance(tool.get("description"), str):
        operation["description"] = tool["description"]
    if isinstance(tool.get("annotations"), dict):
        operation["x-mcp"] = tool["annotations"]
    return operation


def _moved(schema: Any, to: str) -> Any:
    """A schema whose references to itself are from the document that it stands in at `to`."""
    if isinstance(schema, dict):
        made = {key: _moved(value, to) for key, value in schema.items()}
        ref = schema.get("$ref")
        if isinstance(ref, str) and ref.startswith("#"):
            made["$ref"] = to + ref[1:]
        return made
    return [_moved(one, to) for one in schema] if isinstance(schema, list) else schema


_SCHEMAS: Final[dict[str, Any]] = {
    "Result": {
        "type": "object",
        "properties": {
            "content": {"type": "array", "items": {"type": "object"}, "description": "MCP content blocks"},
            "structuredContent": {"type": "object"},
        },
        "required": ["content"],
    },
    "Problem": {
        "type": "object",
        "description": "RFC 9457",
        "properties": {"title": {"type": "string"}, "status": {"type": "integer"}, "code": {"type": "string"}},
        "required": ["title", "status"],
    },
}
_RESPONSES: Final[dict[str, Any]] = {
    name: {
        "description": text,
        "content": {_PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for name, text in (
        ("ToolError", "The tool says that it failed."),
        ("Problem", "The tool was not called, or broke."),
    )
}


def _nothing() -> Failure:
    return Failure(
        404, Reason.NOT_FOUND, "there is nothing here: a tool is at <server>/<tool>, the list at openapi.json"
    )


def _unknown(server: str, name: str) -> Failure:
    return Failure(404, Reason.NOT_FOUND, f"there is no tool {name[:200]!r} at {server[:64]!r}", code="unknown_tool")


def _refused(server: str, place: str, name: str, error: jsonrpc.ErrorObject) -> Failure:
    """A server's JSON-RPC error in HTTP."""
    if error.code in (jsonrpc.INVALID_PARAMS, jsonrpc.METHOD_NOT_FOUND):
        if error.message.lower().startswith("unknown tool"):
            return _unknown(place, name)
        return Failure(400, Reason.INVALID_REQUEST, f"{server}: {error.message[:_SAID]}", code=str(error.code))
    return Failure(502, Reason.UPSTREAM_FAILURE, f"{server}: {error.message[:_SAID]}", code=str(error.code), sent=True)


def _tool_error(result: _Result) -> Response:
    try:
        blocks = msgspec.json.decode(result.content, type=list[_Text])
    except (msgspec.DecodeError, RecursionError):
        blocks = []
    text = "\n".join(block.text for block in blocks if block.text)
    fields: dict[str, Any] = {
        "title": text[:_SAID] or "the tool failed",
        "status": 422,
        "code": "tool_error",
        "content": result.content,
    }
    if len(result.structured):
        fields["structuredContent"] = result.structured
    headers = [(b"content-type", _PROBLEM.encode("ascii"))]
    return Response(422, headers, msgspec.json.encode(fields), reason=Reason.UPSTREAM)
