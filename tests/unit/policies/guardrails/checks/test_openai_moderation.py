"""OpenAI's moderation: its judgement, thresholds, and answers that are none."""

from typing import Any

import pytest
from pydantic import ValidationError
from tests.fixtures.guard_services import FAILURES
from tests.unit.policies.guardrails.checks.asking_guards import World, cannot, look, said, world

from tollhouse.policies.guardrails.check import Check
from tollhouse.policies.guardrails.checks.openai_moderation import OpenAIModerationSpec, openai_moderation

pytestmark = pytest.mark.anyio


def moderation(at: World, timeout: float = 5.0, **spec: Any) -> Check:
    return openai_moderation(OpenAIModerationSpec.model_validate({"provider": "openai", **spec}), at.parts, timeout)


async def test_its_own_judgement_counts() -> None:
    async with world() as at:
        check = moderation(at)
        assert at.wanted == [("openai", ("openai",), "")]
        assert await look(check, "a nice day", "", " ") == []
        assert at.services.asked[0].target == "/moderations"
        assert at.services.asked[0].body == {"model": "omni-moderation-latest", "input": ["a nice day"]}
        found = await look(check, "to kill", "a bomb", "fine")
        assert said(found) == ["violence", "illicit"]
        assert found[0].message == "score 0.93"
        assert check.masks is False
        assert await look(check) == []


async def test_only_categories_that_are_named_count_and_scores_where_there_is_a_threshold() -> None:
    async with world() as at:
        assert said(await look(moderation(at, categories=["illicit"]), "to kill")) == []
        assert said(await look(moderation(at, categories=["violence"]), "to kill")) == ["violence"]
        strict = moderation(at, categories={"violence": 0.3, "illicit": None})
        assert said(await look(strict, "a nice day")) == ["violence"]
        assert said(await look(moderation(at, categories={"violence": 0.32}), "a nice day")) == []


async def test_with_an_address_of_its_own() -> None:
    async with world() as at:
        spec = OpenAIModerationSpec.model_validate({"url": f"{at.services.url}/v1", "api_key": "sk-own", "model": "m"})
        check = openai_moderation(spec, at.parts, 5.0)
        assert said(await look(check, "a bomb")) == ["illicit"]
        asked = at.services.asked[0]
        assert (asked.target, asked.headers["authorization"], asked.body["model"]) == (
            "/v1/moderations", "Bearer sk-own", "m",
        )  # fmt: skip


async def test_long_texts_are_looked_at_to_their_end() -> None:
    async with world() as at:
        check = moderation(at, timeout=20.0)
        text = "a nice day. " * 20_000
        assert said(await look(check, text + "to kill")) == ["violence"]
        assert said(await look(check, text[:19_996] + "kill" + text)) == ["violence"]  # across a cut
        many = [f"text {n}" for n in range(100)] + ["a bomb"]
        assert said(await look(check, *many)) == ["illicit"]
        assert sum(len(asked.body["input"]) for asked in at.services.asked[-4:]) == 101
        assert "more than 1000000 characters" in str(await cannot(check, "x" * 1_000_001))


def _without(answer: Any, *path: str) -> Any:
    for result in answer["results"]:
        result[path[0]].pop(path[1])
    return answer


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: {"results": []},
        lambda answer: {"results": answer["results"] * 2},
        lambda answer: {"results": [{}]},
        lambda answer: {"results": [{**answer["results"][0], "flagged": "no"}]},
        lambda answer: {"results": [{**answer["results"][0], "category_scores": {"violence": 7.0}}]},
        lambda answer: {"results": [{**answer["results"][0], "category_scores": {"violence": None}}]},
        lambda answer: _without(answer, "category_scores", "violence"),
        lambda answer: {"error": {"message": "no such model"}},
    ],
)
async def test_an_answer_that_is_none(change: Any) -> None:
    async with world() as at:
        at.services.changes = change
        await cannot(moderation(at, categories={"violence": 0.5}), "text")


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_service_that_fails(failure: str) -> None:
    async with world() as at:
        at.services.fails = failure
        check = moderation(at, timeout=0.4)
        error = await cannot(check, "text")
        assert str(error).startswith("openai_moderation: ")
        assert check.health()


@pytest.mark.parametrize(
    "spec, wrong",
    [
        ({}, "name `provider`"),
        ({"provider": "p", "url": "http://x/v1"}, "name `provider`"),
        ({"provider": "p", "api_key": "k"}, "no effect with `provider`"),
        ({"url": "x"}, "http"),
        ({"url": "http://x/v1?key=1"}, "no query"),
        ({"provider": "p", "categories": {"violence": 2.0}}, "less than or equal to 1"),
        ({"provider": "p", "categories": ["Not One!"]}, "pattern"),
    ],
)
def test_settings_that_cannot_be(spec: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        OpenAIModerationSpec.model_validate(spec)


async def test_without_providers_there_is_nobody_to_ask() -> None:
    async with world() as at:
        from dataclasses import replace

        with pytest.raises(ValueError, match="no providers"):
            openai_moderation(OpenAIModerationSpec(provider="x"), replace(at.parts, services=None), 1.0)
