"""Gemini's own schema, older than its JSON Schema: types in capitals, `nullable`, numbers of bounds as strings.

Rule: it is read as the JSON Schema that means the same, and never written. The order that it gives to properties is the
order they stand in.
"""

from typing import Any

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec import invalid
from tollhouse.wire.llm.codec.reading import written

__all__ = ["json_schema"]

Raw = msgspec.Raw

_any = msgspec.json.Decoder().decode

_NAMES = {
    "any_of": "anyOf",
    "additional_properties": "additionalProperties",
    "max_items": "maxItems",
    "max_length": "maxLength",
    "max_properties": "maxProperties",
    "min_items": "minItems",
    "min_length": "minLength",
    "min_properties": "minProperties",
    "property_ordering": "propertyOrdering",
    "ref": "$ref",
    "defs": "$defs",
}
_COUNTS = frozenset(("maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"))
_BELOW = frozenset(("items", "additionalProperties"))
_UNTOLD = "TYPE_UNSPECIFIED"


def json_schema(raw: Raw, where: str) -> Raw:
    """Raises Failure 400 that names `where`."""
    try:
        return written(_schema(_any(raw)))
    except UNREADABLE:
        raise _wrong(where) from None


def _schema(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    nullable = False
    ordering: Any = None
    for theirs, inner in value.items():
        name = _NAMES.get(str(theirs), str(theirs))
        if name == "type":
            if inner != _UNTOLD:
                found[name] = inner.lower() if isinstance(inner, str) else inner
        elif name == "nullable":
            nullable = inner is True
        elif name == "propertyOrdering":
            ordering = inner
        elif name == "example":
            found["examples"] = [inner]
        elif name == "$ref" and isinstance(inner, str):
            found[name] = inner.replace("#/defs/", "#/$defs/", 1)
        elif name in ("properties", "$defs") and isinstance(inner, dict):
            found[name] = {key: _schema(v) for key, v in inner.items()}
        elif name == "anyOf" and isinstance(inner, list):
            found[name] = [_schema(v) for v in inner]
        elif name in _BELOW:
            found[name] = _schema(inner)
        elif name in _COUNTS:
            found[name] = int(inner) if isinstance(inner, str) and inner.isdecimal() and len(inner) < 20 else inner
        else:
            found[name] = inner
    properties = found.get("properties")
    if isinstance(properties, dict) and isinstance(ordering, list):
        first = {one: properties[one] for one in ordering if isinstance(one, str) and one in properties}
        found["properties"] = {**first, **properties}
    if nullable:
        _allow_null(found)
    return found


def _allow_null(schema: dict[str, Any]) -> None:
    if isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    options = schema.get("anyOf")
    if isinstance(options, list) and {"type": "null"} not in options:
        options.append({"type": "null"})
    values = schema.get("enum")
    if isinstance(values, list) and None not in values:
        values.append(None)


def _wrong(where: str) -> Failure:
    return invalid(where, "must be a schema")
