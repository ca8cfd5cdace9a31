"""Languages that may be used, and those that may not."""

from typing import Any

import pytest
from pydantic import ValidationError
from tests.unit.policies.guardrails.checks.asking_guards import World, look, said, world

from tollhouse.policies.guardrails.check import Check
from tollhouse.policies.guardrails.checks.language import LanguageSpec, written_in

pytestmark = pytest.mark.anyio

ENGLISH = "The results of the test are not what we have expected from it."
GERMAN = "Das ist nicht, was wir von dem Versuch und auch von den anderen erwartet haben."
RUSSIAN = "Это не то, что мы от него ожидали, и он это знает."


def guard(at: World, value: Any) -> Check:
    return written_in(LanguageSpec.model_validate(value), at.parts, 1.0)


async def test_languages_that_are_named() -> None:
    async with world() as at:
        assert await look(guard(at, ["en", "de"]), ENGLISH, GERMAN, "OK", "") == []
        assert said(await look(guard(at, ["en"]), ENGLISH, GERMAN, RUSSIAN, GERMAN)) == ["de", "ru"]
        assert said(await look(guard(at, {"deny": ["ru"]}), ENGLISH, RUSSIAN)) == ["ru"]


async def test_what_has_no_language() -> None:
    async with world() as at:
        assert await look(guard(at, ["en"]), "OK", "x = y + 1", "") == []
        assert said(await look(guard(at, {"allow": ["en"], "unknown": "reject"}), "xyzzy plugh", "", " ")) == [
            "unknown"
        ]


@pytest.mark.parametrize(
    "value, wrong",
    [
        ({}, "name the languages"),
        ({"allow": ["en"], "deny": ["de"]}, "name the languages"),
        (["xx"], "cannot be told"),
        (["EN"], "pattern"),
    ],
)
def test_settings_that_cannot_be(value: Any, wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        LanguageSpec.model_validate(value)
