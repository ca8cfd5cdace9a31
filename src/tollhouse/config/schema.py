"""The JSON Schema of a configuration file, for editors: completion, descriptions, and most mistakes while typing.

Rule: it is made from the Specs, nothing is written twice. What it accepts is a superset of what `parse` accepts: where
a reference like `${NAME}` may stand for a number, the schema lets it.
"""

import re
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from tollhouse.config.spec import Config
from tollhouse.core.spec import Spec

__all__ = ["schema"]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_REFERENCE: Final = "reference"
_UNITS: Final = (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0))
_DESCRIBED = re.compile(r"(?:^|(?<=[.;:)]\s)|(?<=\n))([a-z_]+(?:, [a-z_]+)*): ")


def schema() -> dict[str, Any]:
    """JSON Schema 2020-12 of a configuration file."""
    made = Config.model_json_schema(schema_generator=_Generator, mode="validation")
    definitions = {name: _tidy(definition) for name, definition in made.pop("$defs", {}).items()}
    definitions[_REFERENCE] = {
        "type": "string",
        "pattern": r"\$\{[^{}]+\}",
        "description": "${NAME} reads an environment variable, ${file:/run/secrets/x} a file",
    }
    return {"$schema": _DIALECT, "title": "Tollhouse configuration", **_tidy(made), "$defs": definitions}


class _Generator(GenerateJsonSchema):
    """Descriptions of fields that have none are taken from their class's docstring, where ours are written as
    `name: what it is.`"""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        described = described_fields(schema["cls"])
        for name, field in made.get("properties", {}).items():
            if "description" not in field and name in described:
                field["description"] = described[name]
            elif "const" in field:
                field.setdefault("description", f"{field['const']}: {_first_sentence(schema['cls'].__doc__)}")
        return made


def _first_sentence(text: str | None) -> str:
    return re.sub(r"\s+", " ", (text or "").strip()).split(". ")[0].rstrip(".")


def described_fields(spec: type[Spec]) -> dict[str, str]:
    """What the docstrings of `spec` and its bases say of its fields."""
    found: dict[str, str] = {}
    for base in reversed(spec.__mro__):
        text = re.sub(r"\s*\n\s*", "\n", base.__doc__ or "") if issubclass(base, Spec) else ""
        marks = list(_DESCRIBED.finditer(text))
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        for mark, end in zip(marks, ends, strict=False):
            said = text[mark.end() : end]
            for name in mark[1].split(", "):
                found[name] = re.sub(r"\s+", " ", said).strip().rstrip(".;")
    return found


def _tidy(node: Any) -> Any:
    """Without titles that repeat names; durations' defaults as they are written; references where values may be."""
    if isinstance(node, list):
        return [_tidy(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    made: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            made[key] = {name: _tidy(field) for name, field in value.items()}
        elif key == "default":
            if not isinstance(value, dict):  # the defaults of what is in it stand there
                made[key] = _default(value, node)
        elif key == "enum":
            made[key] = [*value, *(int(one) for one in value if isinstance(one, str) and one.isdecimal())]
        elif key == "oneOf":  # branches may overlap: what counts is that one of them fits
            made["anyOf"] = _tidy(value)
        elif key not in ("title", "discriminator"):
            made[key] = _tidy(value)
    if made.get("type") == "string" and any(isinstance(one, int) for one in made.get("enum", ())):
        del made["type"]  # YAML reads 429 as a number, and so may a setting of choices
    return _referable(made)


def _default(value: Any, field: dict[str, Any]) -> Any:
    written = _accepts_text_only(field)
    return _duration(value) if written and isinstance(value, float) else value


def _accepts_text_only(field: dict[str, Any]) -> bool:
    branches = field.get("anyOf", [field])
    return all(branch.get("type") in ("string", "null") for branch in branches)


def _duration(seconds: float) -> str:
    for unit, length in _UNITS:
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds * 1000:g}ms"


def _referable(field: dict[str, Any]) -> dict[str, Any]:
    """A value of a closed form may also be a reference to one."""
    closed = field.get("type") in ("integer", "number", "boolean") or (
        "enum" in field or (field.get("type") == "string" and "pattern" in field)
    )
    if not closed or "const" in field:
        return field
    outer: dict[str, Any] = {key: field.pop(key) for key in ("description", "default", "examples") if key in field}
    return {"anyOf": [field, {"$ref": f"#/$defs/{_REFERENCE}"}], **outer}
