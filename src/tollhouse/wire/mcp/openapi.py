"""OpenAPI 3.0 and 3.1 documents as tools: each operation is one, with its arguments, its request and its answer.

Rule: a document that is none is refused; an operation that cannot be a tool is left out and said to be, with its
place. What the gateway sets itself (credentials, fields of its own) is no argument.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from tollhouse.wire.mcp.headers import TOKEN
from tollhouse.wire.mcp.openapi_answer import HttpTool
from tollhouse.wire.mcp.openapi_document import Document, OpenAPIError
from tollhouse.wire.mcp.openapi_request import Body, BodyKind, Field, Operation, Parameter, Place
from tollhouse.wire.mcp.openapi_schema import Schemas, object_of
from tollhouse.wire.mcp.openapi_select import Picked, Picker
from tollhouse.wire.mcp.openapi_servers import Servers, path_encoded
from tollhouse.wire.mcp.openapi_tool import (
    MAX_DESCRIPTION,
    MAX_NAME,
    SAFE,
    annotations_of,
    described,
    is_hidden,
    marked,
    name_of,
)
from tollhouse.wire.pointer import below

__all__ = ["MAX_NAME", "MAX_OPERATIONS", "MAX_PARTS", "METHODS", "Picked", "Reading", "Toolset", "tools_of"]

MAX_OPERATIONS: Final = 10_000
MAX_PARTS: Final = 4_000_000  # of all schemas: about a minute's work
MAX_SCHEMA: Final = 256 << 10  # bytes of one tool's schema
_OUTPUT = 600  # parts of what one gives: a larger schema costs more than it tells
_PARAMETERS = 200

METHODS: Final = ("get", "post", "put", "patch", "delete")
_NO_BODY = frozenset(("get",))

_TEMPLATE = re.compile(r"\{([^{}/]+)\}")
_NOT_ARGUMENT = re.compile(r"[^A-Za-z0-9_.-]+")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+*-]+/[A-Za-z0-9!#$&^_.+*-]+(?:[ \t]*;[\x20-\x7e]*)?")
_JSON = re.compile(r"application/(?:[A-Za-z0-9!#$&^_.-]+\+)?json(?:[ \t]*;.*)?", re.IGNORECASE)
_STYLES: Final[dict[str, tuple[str, ...]]] = {
    "path": ("simple", "label", "matrix"),
    "query": ("form", "spaceDelimited", "pipeDelimited", "deepObject"),
    "header": ("simple",),
    "cookie": ("form",),
}
_NOT_TO_SET = frozenset(
    (
        "accept", "content-type", "authorization", "host", "connection", "content-length", "transfer-encoding", "te",
        "trailer", "upgrade", "expect", "keep-alive", "cookie", "content-encoding", "accept-encoding", "forwarded",
        "via", "x-real-ip", "max-forwards",
    )
)  # fmt: skip
"""Header parameters that are ignored: the specification says so of the first three, the others belong to the way."""
_NOT_TO_SET_BEGIN = ("proxy-", "x-forwarded-", "sec-")
_SUFFIX = ("path", "query", "header", "cookie", "body")


class Reading(msgspec.Struct, frozen=True):
    """How a document is read. allow, deny: which operations; None and nothing: all. base_url: in the place of the
    document's servers, "" for those. url: where the document came from, "" for a file. variables: of the servers' URLs.
    headers: lower-case names of fields that the gateway sets on every call. credentials: names of the security schemes
    that the gateway has credentials for. output: tools say what they give. parts: of the schemas of all tools, as often
    as each is looked at."""

    allow: Picked | None = None
    deny: Picked | None = None
    base_url: str = ""
    url: str = ""
    variables: dict[str, str] = {}
    headers: frozenset[str] = frozenset()
    credentials: frozenset[str] = frozenset()
    output: bool = True
    parts: int = MAX_PARTS


class Toolset(msgspec.Struct):
    """What a document gives. base: scheme, host and port all calls go to, as a URL without a path. security: the
    document's schemes by name, for those that `Reading.credentials` names. dropped: operations that are left out though
    they were chosen, and why. unused: what the selection names and no operation has."""

    tools: tuple[HttpTool, ...]
    base: str
    security: dict[str, dict[str, Any]]
    instructions: str = ""
    dropped: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def tools_of(document: Document, reading: Reading) -> Toolset:
    """Raises OpenAPIError for a document that cannot be used at all."""
    return _Compiler(document, reading).toolset()


class _Compiler:
    def __init__(self, document: Document, reading: Reading) -> None:
        self.document = document
        self.reading = reading
        self.dropped: list[str] = []
        self.parts = 0
        self.outputs: dict[str, tuple[dict[str, Any] | None, bool]] = {}  # by the pointer of their schema
        root = document.root
        components = document.members(root.get("components"), "/components")
        schemes = document.members(components.get("securitySchemes"), "/components/securitySchemes")
        self.schemes: dict[str, dict[str, Any]] = {}
        for name in reading.credentials:
            if name not in schemes:
                known = ", ".join(list(schemes)[:10]) or "none"
                what = f"there is no security scheme {name!r}; there are: {known}"
                raise OpenAPIError("/components/securitySchemes", what)
            at = below("/components/securitySchemes", name)
            scheme = document.members(schemes[name], at)
            if scheme.get("type") not in ("apiKey", "http", "oauth2", "openIdConnect", "mutualTLS"):
                raise OpenAPIError(below(at, "type"), "must be apiKey, http, oauth2, openIdConnect or mutualTLS")
            self.schemes[name] = scheme
        # Sent by the gateway, wherever the document also calls them parameters.
        self.set_by_us = {("header", name) for name in reading.headers}
        for scheme in self.schemes.values():
            key, place = scheme.get("name"), scheme.get("in")
            if scheme.get("type") == "apiKey" and isinstance(key, str) and isinstance(place, str):
                self.set_by_us.add((place, key.lower() if place == "header" else key))
        self.servers = Servers(document, base_url=reading.base_url, url=reading.url, variables=reading.variables)

    # ---- operations
    def toolset(self) -> Toolset:
        document, reading = self.document, self.reading
        root = document.root
        paths = document.members(root.get("paths"), "/paths")
        if not paths and "paths" not in root and document.old:
            raise OpenAPIError("/paths", "the document has no paths")
        allow = Picker(reading.allow) if reading.allow is not None else None
        deny = Picker(reading.deny) if reading.deny is not None else None
        names = self._names(paths)
        tools: dict[str, HttpTool] = {}
        count = 0
        for path, raw in paths.items():
            if not path.startswith("/"):
                if not path.startswith("x-"):
                    self._drop(below("/paths", path), "a path must begin with a slash")
                continue
            try:
                item = document.members(raw, below("/paths", path))
            except OpenAPIError as problem:
                self.dropped.append(str(problem))
                continue
            at = document.follow(raw, below("/paths", path))[1]
            for method in METHODS:
                if method not in item:
                    continue
                count += 1
                if count > MAX_OPERATIONS:
                    raise OpenAPIError("/paths", f"more than {MAX_OPERATIONS:,} operations")
                if self.parts > reading.parts:
                    raise OpenAPIError("/paths", f"the schemas have more than {reading.parts:,} parts; `select` fewer")
                where = below(at, method)
                try:
                    operation = document.members(item[method], where)
                    # Both are asked of every operation: they note what they have found.
                    chosen = allow is None or allow.every(path, method, operation)
                    denied = deny is not None and deny.any(path, method, operation)
                    if not chosen or denied or is_hidden(operation):
                        continue
                    name = name_of(path, method, operation)
                    if names[name] > 1 or len(name) > MAX_NAME:
                        name = marked(name, path, method)
                    if name in tools:
                        raise OpenAPIError(where, f"there is another operation {name!r}")
                    tools[name] = self._tool(path, item, at, method, operation, where, name)
                except OpenAPIError as problem:
                    self.dropped.append(str(problem))
        unused = [f"allow.{what}" for what in allow.unused()] if allow is not None else []
        unused += [f"deny.{what}" for what in deny.unused()] if deny is not None else []
        info = root.get("info")
        about = info.get("description") if isinstance(info, dict) else None
        return Toolset(
            tuple(tools.values()),
            self.servers.base,
            self.schemes,
            about.strip()[:MAX_DESCRIPTION] if isinstance(about, str) else "",
            tuple(self.dropped),
            tuple(unused),
        )

    def _names(self, paths: dict[str, Any]) -> Counter[str]:
        """How often each name is wanted: which are told apart must not depend on what is chosen."""
        found: Counter[str] = Counter()
        for path, raw in paths.items():
            try:
                item = self.document.members(raw, below("/paths", path))
            except OpenAPIError:  # told where it is read
                continue
            found.update(
                name_of(path, method, item[method]) for method in METHODS if isinstance(item.get(method), dict)
            )
        return found

    def _drop(self, at: str, why: str) -> None:
        self.dropped.append(f"{at}: {why}")

    def _tool(
        self, path: str, item: dict[str, Any], at: str, method: str, operation: dict[str, Any], where: str, name: str
    ) -> HttpTool:
        arguments = _Arguments(Schemas(self.document, "in"))
        try:
            return self._made(arguments, path, item, at, method, operation, where, name)
        finally:
            self.parts += arguments.schemas.parts

    def _made(
        self,
        arguments: "_Arguments",
        path: str,
        item: dict[str, Any],
        at: str,
        method: str,
        operation: dict[str, Any],
        where: str,
        name: str,
    ) -> HttpTool:
        parameters = self._parameters(item, at, operation, where, arguments)
        pieces = self._pieces(path, self._path_below(item, at, operation, where), parameters, where)
        body = self._body(operation, method, where, arguments)
        responses = self.document.members(operation.get("responses"), below(where, "responses"))
        output, wrapped, accept = self._answers(responses, below(where, "responses"))
        tool = described(name, path, method, operation)
        tool["inputSchema"] = arguments.schema()
        annotations = tool["annotations"] = annotations_of(method, operation)
        if output is not None:
            tool["outputSchema"] = output
        try:
            encoded = msgspec.json.encode(tool)
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise OpenAPIError(where, "its schemas have a value that is not JSON") from None
        if len(encoded) > MAX_SCHEMA and output is not None:
            del tool["outputSchema"]
            output = None
            encoded = msgspec.json.encode(tool)
        if len(encoded) > MAX_SCHEMA:
            raise OpenAPIError(where, f"its schema has more than {MAX_SCHEMA >> 10} KiB")
        request = Operation(
            method.upper().encode("ascii"),
            pieces,
            tuple(parameter for parameter in parameters if parameter.place != "path"),
            body,
            headers=((b"accept", accept.encode("ascii")),),
            taken=frozenset(key for place, key in self.set_by_us if place != "header"),
        )
        return HttpTool(
            name,
            encoded,
            request,
            repeatable=bool(annotations.get("readOnlyHint") or annotations.get("idempotentHint")),
            safe=method in SAFE,
            structured=output is not None,
            wrapped=wrapped and output is not None,
            security=self._security(operation, where),
        )

    def _path_below(self, item: dict[str, Any], at: str, operation: dict[str, Any], where: str) -> str:
        own = self.servers.path_of(operation, where)
        if own is None:
            own = self.servers.path_of(item, at)
        return self.servers.path if own is None else own

    def _security(self, operation: dict[str, Any], where: str) -> tuple[str, ...]:
        """Which credentials go with it: the first requirement that the gateway can meet (3.1.0, 4.8.30)."""
        at = below(where, "security")
        wanted = operation.get("security")
        if wanted is None:
            wanted, at = self.document.root.get("security"), "/security"
        if wanted is None:
            return ()
        if not isinstance(wanted, list) or not all(isinstance(one, dict) for one in wanted):
            raise OpenAPIError(at, "must be a list of objects")
        met = [tuple(one) for one in wanted if self.schemes.keys() >= set(one)]
        return next((names for names in met if names), ())

    # ---- arguments
    def _parameters(
        self, item: dict[str, Any], at: str, operation: dict[str, Any], where: str, arguments: "_Arguments"
    ) -> list[Parameter]:
        found: dict[tuple[str, str], tuple[dict[str, Any], str]] = {}
        for holder, inside in ((item, at), (operation, where)):
            listed, place = self.document.follow(holder.get("parameters"), below(inside, "parameters"))
            if listed is None:
                continue
            if not isinstance(listed, list):
                raise OpenAPIError(place, "must be a list")
            for n, raw in enumerate(listed):
                parameter, here = self.document.follow(raw, below(place, n))
                if not isinstance(parameter, dict):
                    raise OpenAPIError(here, "must be an object")
                name, kind = parameter.get("name"), parameter.get("in")
                if not isinstance(name, str) or not name:
                    raise OpenAPIError(below(here, "name"), "must be text")
                if kind not in _STYLES:
                    raise OpenAPIError(below(here, "in"), "must be path, query, header or cookie")
                assert isinstance(kind, str)
                found[kind, name.lower() if kind == "header" else name] = (parameter, here)
        if len(found) > _PARAMETERS:
            raise OpenAPIError(below(where, "parameters"), f"more than {_PARAMETERS} parameters")
        made = []
        for kind in _SUFFIX[:4]:  # the same order whatever the document's: the first has the name
            for (place, name), (parameter, here) in found.items():
                if place == kind and (place, name) not in self.set_by_us and not _ignored(place, name):
                    made.append(self._parameter(parameter, here, arguments))
        return made

    def _parameter(self, parameter: dict[str, Any], at: str, arguments: "_Arguments") -> Parameter:
        name, place = str(parameter["name"]), parameter["in"]
        if place in ("header", "cookie") and TOKEN.fullmatch(name) is None:
            raise OpenAPIError(below(at, "name"), f"{name[:60]!r} cannot be the name of a {place}")
        required = place == "path" or parameter.get("required") is True
        style = parameter.get("style", _STYLES[place][0])
        if style not in _STYLES[place]:
            raise OpenAPIError(below(at, "style"), f"must be one of {', '.join(_STYLES[place])} in a {place}")
        explode = parameter.get("explode")
        as_json = False
        if isinstance(parameter.get("content"), dict) and parameter["content"]:
            media = next(iter(parameter["content"]))
            as_json = _JSON.fullmatch(media) is not None
            inner = self.document.members(parameter["content"][media], below(at, "content", media))
            schema, schema_at = inner.get("schema", {}), below(at, "content", media, "schema")
        else:
            schema, schema_at = parameter.get("schema", {}), below(at, "schema")
        made = arguments.schemas.schema(schema, schema_at)
        text = parameter.get("description")
        if isinstance(text, str) and text.strip():
            made["description"] = text.strip()[:MAX_DESCRIPTION]
        argument = arguments.add(name, place, made, required=required)
        return Parameter(
            argument,
            name,
            place,
            style,
            explode if isinstance(explode, bool) else style == "form",
            required,
            parameter.get("allowReserved") is True,
            as_json,
        )

    def _pieces(self, path: str, base: str, parameters: Sequence[Parameter], where: str) -> tuple[str | Parameter, ...]:
        known = {parameter.name: parameter for parameter in parameters if parameter.place == "path"}
        pieces: list[str | Parameter] = []
        text = base
        done = 0
        for match in _TEMPLATE.finditer(path):
            text += path_encoded(path[done : match.start()])
            done = match.end()
            parameter = known.get(match[1])
            if parameter is None:
                raise OpenAPIError(where, f"the path has {{{match[1][:60]}}}, and no parameter of that name")
            if text:
                pieces.append(text)
            pieces.append(parameter)
            text = ""
        text += path_encoded(path[done:])
        if text:
            pieces.append(text)
        if any(unquote(step) in (".", "..") for step in (base + path).split("/")):
            raise OpenAPIError(where, "a path must not have `.` or `..` in it")
        return tuple(pieces)

    def _body(self, operation: dict[str, Any], method: str, where: str, arguments: "_Arguments") -> Body | None:
        raw = operation.get("requestBody")
        if raw is None or method in _NO_BODY:
            return None
        at = below(where, "requestBody")
        body = self.document.members(raw, at)
        at = self.document.follow(raw, at)[1]
        content = self.document.members(body.get("content"), below(at, "content"))
        if not content:
            return None
        media, kind = _chosen(content, below(at, "content"))
        inside = below(at, "content", media)
        holder = self.document.members(content[media], inside)
        required = body.get("required") is True
        schema = arguments.schemas.schema(holder.get("schema", True), below(inside, "schema"))
        fields: dict[str, Field] = {}
        if kind in ("form", "multipart"):
            fields = self._fields(schema, holder, inside, kind)
        elif kind == "binary":
            schema = {"type": "string", "contentEncoding": "base64"} | {
                key: schema[key] for key in ("title", "description") if key in schema
            }
        elif kind == "text" and schema.get("type") not in ("string", "number", "integer", "boolean"):
            schema = {"type": "string", "description": f"the body, as {media}"}
        text = body.get("description")
        if isinstance(text, str) and text.strip() and "description" not in schema:
            schema["description"] = text.strip()[:MAX_DESCRIPTION]
        usual = {"json": "application/json", "text": "text/plain"}.get(kind, "application/octet-stream")
        content_type = usual if "*" in media else media
        if kind in ("json", "form", "multipart") and object_of(schema):
            wanted = schema.get("required", ()) if required else ()
            names: dict[str, str] = {}
            for name, one in schema["properties"].items():
                names[arguments.add(name, "body", one, required=name in wanted)] = name
            return Body(kind, content_type, required, names=names, fields=fields)
        if schema.get("type") is None and kind in ("form", "multipart"):
            schema["type"] = "object"
        argument = arguments.add("body", "body", schema, required=required)
        return Body(kind, content_type, required, argument, fields=fields)

    def _fields(self, schema: dict[str, Any], holder: dict[str, Any], at: str, kind: BodyKind) -> dict[str, Field]:
        """How the members of a form are sent, where that is not as usual."""
        encodings = self.document.members(holder.get("encoding"), below(at, "encoding"))
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return {}
        fields = {}
        for name, one in properties.items():
            encoding = self.document.members(encodings.get(name), below(at, "encoding", name))
            style = encoding.get("style", "") if kind == "form" else ""
            if style and style not in _STYLES["query"]:
                where = below(at, "encoding", name, "style")
                raise OpenAPIError(where, f"must be one of {', '.join(_STYLES['query'])}")
            explode = encoding.get("explode")
            listed = encoding.get("contentType", "")
            content_type = listed.partition(",")[0].strip() if isinstance(listed, str) else " "
            if content_type and _MEDIA_TYPE.fullmatch(content_type) is None:
                raise OpenAPIError(below(at, "encoding", name, "contentType"), "must be a media type, or several")
            inner = one.get("items", {}) if one.get("type") == "array" else one
            file = kind == "multipart" and isinstance(inner, dict) and (
                inner.get("contentEncoding") == "base64" or "contentMediaType" in inner
            )  # fmt: skip
            if file:
                inner["description"] = (inner.get("description", "") + " (base64, or a data: URL)").strip()
            if "*" in content_type:
                content_type = ""
            fields[name] = Field(style, explode if isinstance(explode, bool) else True, file, content_type)
        return fields

    # ---- answers
    def _answers(self, responses: dict[str, Any], at: str) -> tuple[dict[str, Any] | None, bool, str]:
        """The schema of what it gives, whether that is put into an object for it, and what is accepted. There is a
        schema where every answer that means success has one, and it is the same."""
        successes = [status for status in responses if str(status).startswith("2")]
        found: list[tuple[Any, str]] = []
        json: list[str] = []
        others: list[str] = []
        complete = True
        for status in successes or [status for status in responses if status == "default"]:
            where = below(at, status)
            answer = self.document.members(responses[status], where)
            content = self.document.members(answer.get("content"), below(where, "content"))
            media = next((media for media in content if _JSON.fullmatch(media)), None)
            if media is None:
                complete = False
                others += content
                continue
            json.append(media)
            holder = self.document.members(content[media], below(where, "content", media))
            found.append((holder.get("schema"), below(where, "content", media, "schema")))
        wanted = [media for media in dict.fromkeys(json + others) if _MEDIA_TYPE.fullmatch(media)]
        accept = ", ".join(wanted[:10]) + ", */*;q=0.1" if wanted else "application/json, */*;q=0.5"
        schema = found[0][0] if found else None
        if not (self.reading.output and complete) or not isinstance(schema, dict):
            return None, False, accept
        if any(other != schema for other, _ in found):
            return None, False, accept
        _, pointer = self.document.follow(schema, found[0][1])
        if pointer not in self.outputs:
            self.outputs[pointer] = self._output(schema, found[0][1])
        output, wrapped = self.outputs[pointer]
        return output, wrapped, accept

    def _output(self, schema: dict[str, Any], at: str) -> tuple[dict[str, Any] | None, bool]:
        """An answer's schema, and whether it is put into an object."""
        schemas = Schemas(self.document, "out", _OUTPUT)
        wrapped = False
        try:
            made = schemas.schema(schema, at)
            if not made:
                return None, False
            wrapped = made.get("type") != "object"
            if wrapped:
                made = {"type": "object", "properties": {"result": made}, "required": ["result"]}
            if definitions := schemas.definitions():
                made["$defs"] = definitions
        except OpenAPIError as problem:  # what it takes is known, and that is enough
            self.dropped.append(f"{problem}; tools that answer with it are without an output schema")
            return None, False
        return made, wrapped


class _Arguments:
    """A tool's arguments while they are collected: each has a name of its own that models can write."""

    def __init__(self, schemas: Schemas) -> None:
        self.schemas = schemas
        self._properties: dict[str, Any] = {}
        self._required: list[str] = []

    def add(self, name: str, place: Place | str, schema: dict[str, Any], *, required: bool) -> str:
        """The argument's name."""
        plain = _NOT_ARGUMENT.sub("_", name).strip("_")[:MAX_NAME] or place
        argument = plain
        number = 1
        while argument in self._properties:
            suffix = f"_{place}" if number == 1 else f"_{place}{number}"
            argument, number = plain[: MAX_NAME - len(suffix)] + suffix, number + 1
        self._properties[argument] = schema
        if required:
            self._required.append(argument)
        return argument

    def schema(self) -> dict[str, Any]:
        """Of all of them."""
        made: dict[str, Any] = {"type": "object", "properties": self._properties}
        if self._required:
            made["required"] = self._required
        made["additionalProperties"] = False
        if definitions := self.schemas.definitions():
            made["$defs"] = definitions
        return made


def _ignored(place: str, name: str) -> bool:
    return place == "header" and (name in _NOT_TO_SET or name.startswith(_NOT_TO_SET_BEGIN))


def _chosen(content: dict[str, Any], at: str) -> tuple[str, BodyKind]:
    """Under which media type the body stands in the document, and how it is made."""
    kinds: list[tuple[int, str, BodyKind]] = []
    for media in content:
        if _MEDIA_TYPE.fullmatch(media) is None:
            raise OpenAPIError(below(at, media), "must be a media type")
        plain = media.partition(";")[0].strip().lower()
        if plain == "application/json":
            kinds.append((0, media, "json"))
        elif _JSON.fullmatch(plain) or plain == "*/*":
            kinds.append((1, media, "json"))
        elif plain == "multipart/form-data":
            kinds.append((2, media, "multipart"))
        elif plain == "application/x-www-form-urlencoded":
            kinds.append((3, media, "form"))
        elif plain.startswith("text/") or plain.endswith(("/xml", "+xml", "/yaml", "+yaml", "/graphql")):
            kinds.append((4, media, "text"))
        else:
            kinds.append((5, media, "binary"))
    _, media, kind = min(kinds, key=lambda one: one[0])
    return media, kind
