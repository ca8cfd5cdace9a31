"""How long texts may be."""

from typing import Any

import pytest
from pydantic import ValidationError
from tests.unit.policies.guardrails.checks.asking_guards import look, said, world

from tollhouse.policies.guardrails.checks.length import LengthSpec, as_long_as

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "value, texts, rules",
    [
        ({"max": 5}, ["ab", "cde"], []),
        ({"max": 5}, ["ab", "cdef"], ["characters"]),
        ({"max": 5, "of": "each"}, ["abcde", "fghij"], []),
        ({"max": 5, "of": "each"}, ["abcde", "fghijk", "lmnopqr"], ["characters"]),
        ({"max_bytes": "4B"}, ["é", "é"], []),
        ({"max_bytes": 3}, ["é", "é"], ["bytes"]),
        ({"max_words": 3}, ["one two", "three"], []),
        ({"max_words": 3}, ["one two", "three four"], ["words"]),
        ({"max_words": 2}, ["one", "two", ""], []),
        ({"max_lines": 3}, ["a\nb", "c"], []),
        ({"max_lines": 3}, ["a\nb", "c\nd"], ["lines"]),
        ({"min": 3}, ["ab", "c"], []),
        ({"min": 3}, ["ab"], ["too_short"]),
        ({"min": 1}, [""], ["too_short"]),
        ({"min": 1, "of": "each"}, ["a", ""], ["too_short"]),
        ({"max": 1 << 40}, [], []),
    ],
)
async def test_bounds(value: dict[str, Any], texts: list[str], rules: list[str]) -> None:
    async with world() as at:
        assert said(await look(as_long_as(LengthSpec.model_validate(value), at.parts, 1.0), *texts)) == rules


@pytest.mark.parametrize(
    "value, wrong",
    [({}, "name a bound"), ({"of": "each"}, "name a bound"), ({"max": 2, "min": 3}, "no text has"), ({"max": 0}, "1")],
)
def test_settings_that_cannot_be(value: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        LengthSpec.model_validate(value)
