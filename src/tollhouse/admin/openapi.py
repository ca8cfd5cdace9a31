"""The admin API's own description: an OpenAPI 3.1 document, made of its operations."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec

from tollhouse.admin.operation import Operation

__all__ = ["document"]

_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_PAGES = (
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}},
    {"name": "cursor", "in": "query", "schema": {"type": "string"}, "description": "`next` of the page before"},
)
_PROBLEM = {
    "type": "object",
    "description": "What is wrong (RFC 9457)",
    "required": ["title", "status"],
    "properties": {"title": {"type": "string"}, "status": {"type": "integer"}, "code": {"type": "string"}},
}


def document(operations: Sequence[Operation]) -> bytes:
    """As JSON."""
    types = dict.fromkeys(kind for one in operations for kind in (one.takes, one.gives) if kind is not None)
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    found = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _described(one, found)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {"title": "Tollhouse admin API", "version": version("tollhouse")},
            "security": [{"key": []}],
            "paths": paths,
            "components": {
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
                "schemas": {**_portable(components), "Problem": _PROBLEM},
            },
        }
    )


def _described(one: Operation, schemas: dict[Any, Any]) -> dict[str, Any]:
    own = [_parameter(name, what) for name, what in one.query]
    parameters = [*((_ID,) if "{id}" in one.path else ()), *(_PAGES if one.listed else ()), *own]
    made: dict[str, Any] = {"operationId": one.name, "summary": one.summary}
    if parameters:
        made["parameters"] = parameters
    if one.takes is not None:
        made["requestBody"] = {"required": not one.optional, "content": _json(schemas[one.takes])}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    made["responses"] = {
        str(one.status): {"description": one.summary, "content": _json(schemas[one.gives])},
        "default": {"description": "It was refused, or has failed", "content": problem},
    }
    return made


def _parameter(name: str, what: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if name.endswith("[]"):
        schema = {"type": "array", "items": schema}
    return {"name": name.removesuffix("[]"), "in": "query", "schema": schema, "description": what}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _portable(node: Any) -> Any:
    """Descriptions in one line."""
    if isinstance(node, dict):
        return {
            key: re.sub(r"\s+", " ", value) if key == "description" and isinstance(value, str) else _portable(value)
            for key, value in node.items()
        }
    return [_portable(entry) for entry in node] if isinstance(node, list) else node
