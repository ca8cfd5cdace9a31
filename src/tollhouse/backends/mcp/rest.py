"""A server whose tools are written in the configuration: requests to an HTTP API, with places for arguments.

Rule: what cannot be a tool is found when the configuration is read: places without an argument, schemas that are none,
two tools of one name.
"""

from collections.abc import Callable
from typing import Any, Literal, Self

import msgspec
from pydantic import Field, field_validator, model_validator

from tollhouse.backends.header_fields import HeaderFields
from tollhouse.backends.http_tools import BaseUrl, HttpTools, HttpToolsSpec
from tollhouse.core.clock import Clock
from tollhouse.core.spec import Spec
from tollhouse.net.client import Client, Origin
from tollhouse.wire.mcp.openapi_answer import HttpTool, Projection
from tollhouse.wire.mcp.rest import BodyType, Template
from tollhouse.wire.pointer import Pointer

__all__ = ["AnnotationsSpec", "RestServerSpec", "RestToolSpec", "RestTools"]

_SAFE = frozenset(("GET",))
_IDEMPOTENT = frozenset(("GET", "PUT", "DELETE"))
_OBJECT: dict[str, Any] = {"type": "object", "properties": {}}


class AnnotationsSpec(Spec):
    """What a tool says of itself, where that is not what its method says."""

    read_only: bool | None = Field(default=None, description="it changes nothing")
    destructive: bool | None = Field(default=None, description="it may take away what is there")
    idempotent: bool | None = Field(default=None, description="twice does the same as once; so it may be made again")
    open_world: bool | None = Field(default=None, description="it reaches beyond a closed domain")


class RestToolSpec(Spec):
    """One tool: a request with places, written `{name}`, that its arguments fill."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="what agents call it")
    description: str = Field(min_length=1, max_length=4000, description="what it does, for models")
    input: dict[str, Any] = Field(default=_OBJECT, description="JSON Schema of the arguments: an object")
    output: dict[str, Any] | None = Field(default=None, description="JSON Schema of the result: an object")
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = Field(default="GET", description="of the request")
    path: str = Field(min_length=1, description="below `base_url`; a place is one segment or a part of one")
    query: dict[str, str] = Field(default={}, description="parameters; one whose place is not filled is left out")
    headers: HeaderFields = Field(default={}, description="header fields of this request")
    body: Any = Field(default=None, description="any value; a text that is one place alone is that argument as it is")
    body_type: BodyType = Field(default="json", description="how the body is sent")
    result: str | dict[str, str] | None = Field(
        default=None,
        description="what of a JSON answer is the result: a JSON Pointer (* is each element), or several by name",
    )
    annotations: AnnotationsSpec = Field(default=AnnotationsSpec(), description="in place of what the method says")

    @field_validator("result")
    @classmethod
    def _result(cls, value: str | dict[str, str] | None) -> str | dict[str, str] | None:
        for pointer in value.values() if isinstance(value, dict) else (value,):
            if pointer:
                Pointer(pointer)
        return value

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if "body_type" in self.model_fields_set and self.body is None:
            raise ValueError("`body_type` has no effect without `body`")
        if self.body is not None and self.method == "GET":
            raise ValueError("a GET has no body; write `query`, or another method")
        if self.output is not None and self.output.get("type") != "object":
            raise ValueError("`output` must be a schema of an object: type: object")
        self.tool("")
        return self

    def tool(self, base: str) -> HttpTool:
        """base: the path of `base_url`, encoded. Raises ValueError."""
        template = Template(
            method=self.method,
            path=base + self.path,
            schema=self.input,
            query=self.query,
            headers={name: field.get_secret_value() for name, field in self.headers.items()},
            body=self.body,
            body_type=self.body_type,
        )
        said = self.annotations
        annotations: dict[str, Any] = {
            "readOnlyHint": self.method in _SAFE if said.read_only is None else said.read_only,
            "openWorldHint": True if said.open_world is None else said.open_world,
        }
        if not annotations["readOnlyHint"]:
            annotations["destructiveHint"] = True if said.destructive is None else said.destructive
            annotations["idempotentHint"] = self.method in _IDEMPOTENT if said.idempotent is None else said.idempotent
        tool: dict[str, Any] = {"name": self.name}
        tool |= {"description": self.description, "inputSchema": {"type": "object"} | self.input}
        if self.output is not None:
            tool["outputSchema"] = self.output
        tool["annotations"] = annotations
        try:
            raw = msgspec.json.encode(tool)
        except (TypeError, ValueError, OverflowError, RecursionError):
            raise ValueError("`input` or `output` has a value that is not JSON") from None
        return HttpTool(
            self.name,
            raw,
            template,
            repeatable=bool(annotations["readOnlyHint"] or annotations.get("idempotentHint")),
            safe=self.method in _SAFE,
            structured=self.output is not None,
            projection=_projection(self.result),
        )


def _projection(result: str | dict[str, str] | None) -> Projection | None:
    if result is None:
        return None
    return Projection(None, tuple(result.items())) if isinstance(result, dict) else Projection(result)


class RestServerSpec(HttpToolsSpec):
    """A server whose tools are written here."""

    base_url: BaseUrl = Field(description="where the API is: http or https, with a path or without")
    rest: tuple[RestToolSpec, ...] = Field(min_length=1, max_length=1000, description="its tools")

    @model_validator(mode="after")
    def _tools_fit(self) -> Self:
        names = [tool.name for tool in self.rest]
        fixed = {name.lower() for name in self.headers}
        for n, tool in enumerate(self.rest):
            if tool.name in names[:n]:
                raise ValueError(f"two tools have the name {tool.name!r}")
            for name in tool.headers:
                if name.lower() in fixed:
                    raise ValueError(f"the header {name!r} of the tool {tool.name!r} stands in `headers` of the server")
        return self


class RestTools(HttpTools):
    """An `HttpTools` whose tools are those of its spec."""

    def __init__(
        self, name: str, spec: RestServerSpec, client: Client, clock: Clock, *, on_change: Callable[[str, str], None]
    ) -> None:
        super().__init__(name, spec, spec.origin_of(spec.base_url), client, clock, on_change=on_change)
        base = Origin.of(spec.base_url)[1].decode("ascii").rstrip("/")
        self.put([tool.tool(base.replace("{", "%7B").replace("}", "%7D")) for tool in spec.rest])
