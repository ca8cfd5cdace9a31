"""JSON Schema of what a model says."""

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from pydantic import ValidationError
from tests.unit.policies.guardrails.checks.asking_guards import World, cannot, look, said, world

from tollhouse.core.spec import Reading
from tollhouse.policies.guardrails.check import Check
from tollhouse.policies.guardrails.checks.schema import SchemaSpec, as_schema

pytestmark = pytest.mark.anyio

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def schema(at: World, value: Any = PERSON) -> Check:
    return as_schema(SchemaSpec.model_validate(value), at.parts, 5.0)


@pytest.mark.parametrize(
    "text, rules",
    [
        ('{"name": "Ada", "age": 36}', []),
        (' {"name": "Ada"}\n', []),
        ('```json\n{"name": "Ada"}\n```', []),
        ('```\n{"name": "Ada"}```\n', []),
        ('{"name": "ada"}', ["invalid"]),
        ('{"name": "Ada", "age": -1}', ["invalid"]),
        ('{"name": "Ada", "x": 1}', ["invalid"]),
        ("[]", ["invalid"]),
        ('Here it is: {"name": "Ada"}', ["not_json"]),
        ('{"name": "Ada"} {"name": "Ada"}', ["not_json"]),
        ('```json\n{"name": "Ada"}\n``` and more', ["not_json"]),
        ('{"name": "Ada"', ["not_json"]),
        ("{'name': 'Ada'}", ["not_json"]),
        ("", ["not_json"]),
        ('{"name": NaN}', ["not_json"]),
        ('{"name": "\ud800"}', ["not_json"]),
        ("[" * 5000 + "]" * 5000, ["not_json"]),
        ('{"name": "Ada", "age": 1e400}', ["not_json"]),
        ('{"name": "Ada", "age": 123456789012345678901234567890}', []),
        ('{"name": "Ada", "name": "ada"}', ["invalid"]),
    ],
)
async def test_what_passes(text: str, rules: list[str]) -> None:
    async with world() as at:
        assert said(await look(schema(at), text, phase="response")) == rules


async def test_a_finding_says_where_the_schema_is_broken_and_not_by_what() -> None:
    async with world() as at:
        found = await look(schema(at), '{"name": "a secret"}', '{"name": "Ada", "age": "secret"}')
        assert [one.message for one in found] == [
            "schema: properties/name/pattern", "schema: properties/age/type",
        ]  # fmt: skip


async def test_without_fences() -> None:
    async with world() as at:
        strict = schema(at, {"inline": PERSON, "fenced": False})
        assert said(await look(strict, '```json\n{"name": "Ada"}\n```')) == ["not_json"]
        assert await look(strict, '{"name": "Ada"}') == []


async def test_long_texts_are_looked_at_in_a_thread_and_too_long_ones_not_at_all() -> None:
    async with world() as at:
        check = schema(at, {"type": "array", "items": {"type": "integer"}})
        assert await look(check, json.dumps(list(range(200_000)))) == []
        assert said(await look(check, json.dumps([*range(200_000), "x"]))) == ["invalid"]
        assert "more than" in str(await cannot(check, " " * ((8 << 20) + 1)))


async def test_a_pattern_takes_no_more_than_linear_time() -> None:
    async with world() as at:
        check = schema(at, {"type": "string", "pattern": "^(a+)+$"})
        began = perf_counter()
        assert said(await look(check, json.dumps("a" * 30_000 + "!"))) == ["invalid"]
        assert perf_counter() - began < 2.0


def test_from_a_file_that_is_part_of_what_specs_are_compared_by(tmp_path: Path) -> None:
    file = tmp_path / "person.json"
    file.write_text(json.dumps(PERSON))
    first = SchemaSpec.model_validate({"file": "person.json"}, context=Reading(str(tmp_path)))
    again = SchemaSpec.model_validate({"file": "person.json"}, context=Reading(str(tmp_path)))
    assert first == again
    file.write_text(json.dumps({"type": "array"}))
    reading = Reading(str(tmp_path))
    assert SchemaSpec.model_validate({"file": "person.json"}, context=reading) != first
    assert reading.files == {str(file)}


@pytest.mark.parametrize(
    "value, wrong",
    [
        ({"type": "strin"}, "no JSON Schema"),
        ({"type": "string", "pattern": "("}, "no JSON Schema"),
        ({"type": "string", "pattern": "(?=x)"}, "no JSON Schema"),
        ({"$ref": "https://example.com/schema.json"}, "no JSON Schema"),
        ({"$ref": "#/nowhere"}, "no JSON Schema"),
        ({"file": "/nowhere.json"}, "cannot be read"),
        ({"file": "/x", "inline": {}}, "as it is, or `file`"),
        ({"fenced": True}, "as it is, or `file`"),
        (5, "valid"),
    ],
)
def test_settings_that_cannot_be(value: Any, wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        SchemaSpec.model_validate(value)
