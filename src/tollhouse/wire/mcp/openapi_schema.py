"""OpenAPI schemas as JSON Schema 2020-12 that stands alone: what a tool says it takes and gives.

Rule: a reference is unfolded where that ends, because many models and clients read no `$ref`; one that leads back to
itself, and every further one of a schema that has grown large, goes to `$defs`. So a schema is never larger than the
document it is from, and never without an end. What cannot be said in a tool (XML, examples, discriminators) is left
out; what is wrong is an OpenAPIError that names its place.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, Literal
from urllib.parse import quote

from tollhouse.wire.mcp.openapi_document import Document, OpenAPIError
from tollhouse.wire.pointer import below

__all__ = ["MAX_NODES", "Schemas", "Side", "object_of"]

Side = Literal["in", "out"]
"""in: what is sent, without what is only read; out: what is answered, without what is only written."""

MAX_NODES: Final = 20_000  # of one schema
_UNFOLDED = 300  # parts up to which references are unfolded
_NEST = 40  # levels at which references are unfolded; documents themselves are bounded
_TEXT = 2_000  # characters of one description

_KEPT_ALWAYS = ("type", "format", "title", "default", "enum", "deprecated", "uniqueItems", "pattern")
_NUMBERS = (
    "multipleOf", "maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum", "maxLength", "minLength", "maxItems",
    "minItems", "maxProperties", "minProperties", "maxContains", "minContains",
)  # fmt: skip
_NEW_VALUES = ("const", "examples", "contentEncoding", "contentMediaType", "dependentRequired")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_ONE = (
    "items", "not", "additionalProperties", "contains", "propertyNames", "if", "then", "else", "contentSchema",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_OLD_ONE = frozenset(("items", "not", "additionalProperties"))
_MAPS = ("patternProperties", "dependentSchemas")
_TYPES = frozenset(("string", "number", "integer", "boolean", "array", "object", "null"))
_NOTES = frozenset(("description", "title", "default", "example", "examples", "deprecated", "summary", "readOnly",
                    "writeOnly", "externalDocs", "xml"))  # fmt: skip
_MERGED = frozenset(("type", "properties", "required", "title", "description", "additionalProperties", "deprecated"))
_UNNAMED = re.compile(r"[^A-Za-z0-9_.-]+")


def object_of(schema: dict[str, Any]) -> bool:
    """Whether it is of objects with known properties and nothing else to be said: its properties can be a tool's
    arguments."""
    more = schema.get("additionalProperties", True)
    return (
        schema.get("type") == "object"
        and bool(schema.get("properties"))
        and (more is True or more is False)
        and _MERGED.issuperset(schema)
    )


class Schemas:
    """The schemas of one tool that go one way, and the definitions that they share. limit: parts of all of them."""

    __slots__ = ("_defs", "_depth", "_document", "_limit", "_names", "_nodes", "_side", "_taken", "_wanted")

    def __init__(self, document: Document, side: Side, limit: int = MAX_NODES) -> None:
        self._limit = limit
        self._document = document
        self._side = side
        self._nodes = 0
        self._depth = 0
        self._names: dict[str, str] = {}  # pointer to its name in $defs
        self._taken: dict[str, int] = {}  # names in $defs, and the number that the next one alike begins at
        self._wanted: list[str] = []
        self._defs: dict[str, Any] = {}

    @property
    def parts(self) -> int:
        """How many it has looked at."""
        return self._nodes

    def definitions(self) -> dict[str, Any]:
        """`$defs` for all that was made. Raises OpenAPIError."""
        while self._wanted:
            pointer = self._wanted.pop()
            target, _ = self._document.at("#" + quote(pointer), pointer)
            self._defs[self._names[pointer]] = self.schema(target, pointer, (pointer,))
        endless = self._endless()
        if endless:
            pointer = next(pointer for pointer, name in self._names.items() if name == endless)
            raise OpenAPIError(pointer, "the schema is about itself and nothing else")
        return {name: self._defs[name] for name in sorted(self._defs)}

    def _endless(self) -> str:
        """A definition by which who looks at one value comes back to it before looking at a part of the value; "" for
        none. Each is looked at once, however many lead to it."""
        done: set[str] = set()
        for name in self._defs:
            if name in done:
                continue
            way = {name: _in_place(self._defs[name])}  # from `name` to where we are, with what is ahead at each
            while way:
                here = next(reversed(way))
                step = next(way[here], None)
                if step is None:
                    del way[here]
                    done.add(here)
                elif step in way:
                    return step
                elif step not in done:
                    way[step] = _in_place(self._defs.get(step, {}))
        return ""

    def schema(self, schema: Any, at: str, within: tuple[str, ...] = ()) -> dict[str, Any]:
        """The schema at the pointer `at`. within: the references that are being unfolded. Raises OpenAPIError."""
        self._nodes += 1
        if self._nodes > self._limit:
            raise OpenAPIError(at, f"the schema has more than {self._limit:,} parts")
        if schema is True:
            return {}
        if schema is False:
            return {"not": {}}
        if not isinstance(schema, dict):
            raise OpenAPIError(at, "a schema must be an object")
        self._depth += 1
        try:
            if "$ref" in schema:
                return self._reference(schema, at, within)
            return self._plain(schema, at, within)
        finally:
            self._depth -= 1

    def _reference(self, schema: dict[str, Any], at: str, within: tuple[str, ...]) -> dict[str, Any]:
        target, pointer = self._document.at(schema["$ref"], below(at, "$ref"))
        if pointer in within or self._nodes > _UNFOLDED or self._depth > _NEST:
            made: dict[str, Any] = {"$ref": f"#/$defs/{self._name(pointer)}"}
        else:
            made = self.schema(target, pointer, (*within, pointer))
        if self._document.old:
            return made  # beside a reference nothing counts (3.0.3, Reference Object)
        more = {key: value for key, value in schema.items() if key != "$ref"}
        if not more:
            return made
        said = self._plain(more, at, within)
        if not said or _NOTES.issuperset(said) or "$ref" in made:
            return made | said
        return {"allOf": [made, said]}

    def _name(self, pointer: str) -> str:
        known = self._names.get(pointer)
        if known is None:
            word = _UNNAMED.sub("_", pointer.rpartition("/")[2].replace("~1", "_").replace("~0", "_"))[:60] or "root"
            known, number = word, self._taken.get(word, 2)
            while known in self._taken:
                known, number = f"{word}_{number}", number + 1
            self._taken[word] = number
            self._taken.setdefault(known, 2)
            self._names[pointer] = known
            self._wanted.append(pointer)
        return known

    def _plain(self, schema: dict[str, Any], at: str, within: tuple[str, ...]) -> dict[str, Any]:
        old = self._document.old
        made: dict[str, Any] = {}
        for key in (*_KEPT_ALWAYS, *_NUMBERS, *(() if old else _NEW_VALUES)):
            if key in schema:
                made[key] = schema[key]
        self._check_type(made, at)
        self._check_values(made, at)
        text = schema.get("description")
        if isinstance(text, str) and text.strip():
            made["description"] = text.strip()[:_TEXT]
        for key in _ONE:
            if key in schema and (not old or key in _OLD_ONE):
                value = schema[key]
                if isinstance(value, bool) and key in (
                    "additionalProperties", "unevaluatedProperties", "unevaluatedItems"
                ):  # fmt: skip
                    made[key] = value
                else:
                    made[key] = self.schema(value, below(at, key), within)
        for key in _LISTS:
            if key in schema and (not old or key != "prefixItems"):
                made[key] = self._list(schema[key], below(at, key), within)
        if not old:
            for key in _MAPS:
                if key in schema:
                    made[key] = self._map(schema[key], below(at, key), within)
        self._properties(schema, made, at, within)
        _modernised(schema, made)
        return _merged(made)

    def _check_type(self, made: dict[str, Any], at: str) -> None:
        kind = made.get("type")
        if kind is None:
            made.pop("type", None)
        elif kind == "file":  # of Swagger 2, where it was left
            made |= {"type": "string", "format": "binary"}
        elif isinstance(kind, list):
            if not kind or not all(isinstance(one, str) and one in _TYPES for one in kind):
                raise OpenAPIError(below(at, "type"), "must be types of JSON Schema")
        elif not isinstance(kind, str) or kind not in _TYPES:
            raise OpenAPIError(below(at, "type"), f"{str(kind)[:60]!r} is no type of JSON Schema")

    def _check_values(self, made: dict[str, Any], at: str) -> None:
        if "enum" in made and not (isinstance(made["enum"], list) and made["enum"]):
            raise OpenAPIError(below(at, "enum"), "must be a list of values")
        for key in ("format", "title", "pattern", "contentEncoding", "contentMediaType"):
            if key in made and not isinstance(made[key], str):
                raise OpenAPIError(below(at, key), "must be text")
        for key in _NUMBERS:
            value = made.get(key, 0)
            if isinstance(value, bool):
                if not key.startswith("exclusive"):
                    raise OpenAPIError(below(at, key), "must be a number")
            elif not isinstance(value, (int, float)):
                raise OpenAPIError(below(at, key), "must be a number")
        if "examples" in made and not isinstance(made["examples"], list):
            del made["examples"]  # of a parameter, at the wrong place

    def _list(self, value: Any, at: str, within: tuple[str, ...]) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise OpenAPIError(at, "must be a list of schemas")
        return [self.schema(one, below(at, n), within) for n, one in enumerate(value)]

    def _map(self, value: Any, at: str, within: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise OpenAPIError(at, "must be an object of schemas")
        return {name: self.schema(one, below(at, name), within) for name, one in value.items()}

    def _properties(self, schema: dict[str, Any], made: dict[str, Any], at: str, within: tuple[str, ...]) -> None:
        required = schema.get("required")
        if isinstance(required, list):
            made["required"] = [name for name in required if isinstance(name, str)]
        properties = schema.get("properties")
        if properties is None:
            if not made.get("required", True):
                del made["required"]
            return
        if not isinstance(properties, dict):
            raise OpenAPIError(below(at, "properties"), "must be an object of schemas")
        gone = "readOnly" if self._side == "in" else "writeOnly"
        shown: dict[str, Any] = {}
        hidden = set()
        for name, value in properties.items():
            where = below(at, "properties", name)
            target = value
            if isinstance(value, dict) and "$ref" in value:
                target = self._document.follow(value, where)[0]
            if (isinstance(value, dict) and value.get(gone) is True) or (
                isinstance(target, dict) and target.get(gone) is True
            ):
                hidden.add(name)
            else:
                shown[name] = self.schema(value, where, within)
        made["properties"] = shown
        if "required" in made:
            made["required"] = [name for name in made["required"] if name not in hidden]
            if not made["required"]:
                del made["required"]
        if "type" not in made:
            made["type"] = "object"


def _in_place(schema: Any) -> Iterator[str]:
    """The definitions that are about the same value."""
    if not isinstance(schema, dict):
        return
    ref = schema.get("$ref")
    if isinstance(ref, str):
        yield ref.removeprefix("#/$defs/")
    for key in ("allOf", "anyOf", "oneOf"):
        for one in schema.get(key, ()):
            yield from _in_place(one)
    for key in ("not", "if", "then", "else"):
        yield from _in_place(schema.get(key))
    for one in schema.get("dependentSchemas", {}).values():
        yield from _in_place(one)


def _modernised(schema: dict[str, Any], made: dict[str, Any]) -> None:
    """What 3.0 says in words of its own, and documents of 3.1 still do."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        flag = made.get(exclusive)
        if isinstance(flag, bool):
            del made[exclusive]
            if flag and bound in made:
                made[exclusive] = made.pop(bound)
    if "example" in schema and "examples" not in made:
        made["examples"] = [schema["example"]]
    if any(isinstance(one, dict) and "$ref" in one for one in made.get("examples", ())):
        del made["examples"]  # of a media type: they lead nowhere from a tool
    if made.get("format") in ("binary", "byte"):
        _binary(made)
    if schema.get("nullable") is True:
        kind = made.get("type")
        if isinstance(kind, str):
            made["type"] = [kind, "null"]
            if "enum" in made and None not in made["enum"]:
                made["enum"] = [*made["enum"], None]
        elif kind is None and any(key in made for key in ("allOf", "anyOf", "oneOf")):
            inner = dict(made)
            notes: dict[str, Any] = {key: inner.pop(key) for key in ("title", "description", "default") if key in inner}
            made.clear()
            made.update(notes)
            made["anyOf"] = [_merged(inner), {"type": "null"}]


def _binary(made: dict[str, Any]) -> None:
    del made["format"]
    made["contentEncoding"] = "base64"


def _merged(made: dict[str, Any]) -> dict[str, Any]:
    """Objects that are put together by `allOf` as one object, where nothing in them contradicts."""
    parts = made.get("allOf")
    if parts is None:
        return made
    own = {key: value for key, value in made.items() if key != "allOf"}
    if not _MERGED.issuperset(own):
        return made
    if len(parts) == 1 and set(own) <= {"title", "description", "deprecated"}:
        return {**parts[0], **own}
    properties: dict[str, Any] = {}
    required: list[str] = []
    notes: dict[str, Any] = {}
    for part in (*parts, own):
        more = part.get("additionalProperties", True)
        if not _MERGED.issuperset(part) or part.get("type", "object") != "object" or more is not True:
            return made
        for name, value in part.get("properties", {}).items():
            if properties.setdefault(name, value) != value:
                return made
        required += [name for name in part.get("required", ()) if name not in required]
        notes |= {key: part[key] for key in ("title", "description", "deprecated") if key in part}
    if not properties:
        return made
    for key in ("title", "description", "deprecated"):
        if key not in own:
            notes.pop(key, None)
    whole: dict[str, Any] = {**notes, "type": "object", "properties": properties}
    if required:
        whole["required"] = required
    return whole
