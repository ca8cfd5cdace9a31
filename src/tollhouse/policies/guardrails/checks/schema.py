"""JSON that an answer has to be, by a JSON Schema.

Rule: a text passes if it is JSON and valid, all of it: a fence of Markdown around it may be left out of account, other
words may not. Patterns run in time that is linear in the text, and no schema is fetched from elsewhere.
"""

import asyncio
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from pydantic import Field, PrivateAttr, model_validator

from tollhouse.core.call import Call
from tollhouse.core.depth import decode
from tollhouse.core.spec import File, Spec
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.check import CannotCheck, Finding, Phase

__all__ = ["Schema", "SchemaSpec", "as_schema"]

_LARGEST_SCHEMA = 1 << 20
_INLINE = 64 << 10  # characters of a text that is looked at without a thread: some hundred microseconds
_LONGEST = 8 << 20
_FENCE = re.compile(r"\s*```[A-Za-z0-9]*[ \t]*\r?\n(.*?)\r?\n?[ \t]*```\s*", re.DOTALL)
_PATH = re.compile(r"[^A-Za-z0-9_.$/-]")


class SchemaSpec(Spec):
    """A JSON Schema: as it is, or `{file: ...}`."""

    file: File | None = Field(default=None, description="JSON file with the schema; read again when it changes")
    inline: dict[str, Any] | None = Field(default=None, description="the schema; the same as to write it as it is")
    fenced: bool = Field(default=True, description="a fence of Markdown may stand around the JSON")

    _schema: Any = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _as_it_is(cls, value: Any) -> Any:
        if isinstance(value, dict) and not (value and set(value) <= {"file", "inline", "fenced"}):
            return {"inline": value}
        return value

    @model_validator(mode="after")
    def _usable(self) -> "SchemaSpec":
        if (self.file is None) == (self.inline is None):
            raise ValueError("write the schema as it is, or `file` with the name of one")
        if find_spec("jsonschema_rs") is None:
            raise ValueError("needs the extra `guard`: pip install 'tollhouse[guard]'")
        # Part of what two Specs are compared by: a schema that has changed is another one.
        self._schema = self.inline if self.file is None else _read(self.file)
        _validator(self._schema)
        return self

    @property
    def schema_(self) -> Any:
        """The schema, wherever it stands."""
        return self._schema


class Schema:
    """As `Check`."""

    name = "schema"
    phases: frozenset[Phase] = frozenset(("request", "response"))
    masks = False
    whole = True

    def __init__(self, validator: Any, fenced: bool) -> None:
        self._validator = validator
        self._fenced = fenced

    async def check(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        found: list[Finding] = []
        for text in texts:
            if len(text) > _LONGEST:
                raise CannotCheck(f"schema: a text has more than {_LONGEST} characters")
            one = self._look(text) if len(text) <= _INLINE else await asyncio.to_thread(self._look, text)
            if one is not None and one not in found:
                found.append(one)
        return found

    def _look(self, text: str) -> Finding | None:
        fence = _FENCE.fullmatch(text) if self._fenced and "```" in text else None
        try:
            value = decode((text if fence is None else fence[1]).encode())
        except (ValueError, UnicodeEncodeError):
            return Finding("not_json")
        try:
            error = next(iter(self._validator.iter_errors(value)), None)
        except ValueError as problem:  # numbers that its engine does not take
            raise CannotCheck(f"schema: the value cannot be looked at: {type(problem).__name__}") from None
        # Where, and what the schema wants there; its words would repeat the value.
        return None if error is None else Finding("invalid", message=_where(error))

    def health(self) -> str:
        return ""

    async def close(self) -> None:
        """It holds nothing."""


def as_schema(spec: SchemaSpec, parts: Parts, timeout: float) -> Schema:
    schema = spec.schema_
    key = ("guardrails schema", msgspec.json.encode(schema))  # the same for all chains
    return Schema(parts.shared(key, lambda: _validator(schema)), spec.fenced)


def _where(error: Any) -> str:
    path = "/".join(str(step) for step in error.schema_path)
    return "schema: " + _PATH.sub("_", path)[:200]


def _read(name: str) -> Any:
    try:
        content = Path(name).read_bytes()
    except OSError:
        raise ValueError(f"the file {name!r} cannot be read") from None
    if len(content) > _LARGEST_SCHEMA:
        raise ValueError(f"the file {name!r} is larger than 1 MiB")
    try:
        return decode(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _validator(schema: Any) -> Any:
    import jsonschema_rs  # noqa: PLC0415 - the extra `guard`

    try:
        return jsonschema_rs.validator_for(
            schema,
            pattern_options=jsonschema_rs.RegexOptions(),
            offline=True,
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError, TypeError) as error:
        raise ValueError(f"it is no JSON Schema that can be used: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
