"""Bedrock's guardrails: blocked, anonymized, and where."""

from typing import Any

import botocore.session
import pytest
from pydantic import ValidationError
from tests.fixtures.guard_services import FAILURES
from tests.unit.policies.guardrails.checks.asking_guards import World, cannot, look, masked, said, world

from tollhouse.policies.guardrails.check import Check
from tollhouse.policies.guardrails.checks.bedrock import BedrockGuardrailSpec, bedrock

pytestmark = pytest.mark.anyio

ARN = "arn:aws:bedrock:eu-central-1:123456789012:guardrail/abc123"


def guardrail(at: World, timeout: float = 5.0, **spec: Any) -> Check:
    return bedrock(
        BedrockGuardrailSpec.model_validate({"provider": "aws", "guardrail": "abc123", **spec}), at.parts, timeout
    )


async def test_what_is_asked_is_what_the_api_takes() -> None:
    """The question is checked against the service's own model, as its SDK has it."""
    async with world() as at:
        await look(guardrail(at, guardrail=ARN, version="7"), "hello", "", "world", phase="response")
        asked = at.services.asked[0]
        quoted = "arn%3Aaws%3Abedrock%3Aeu-central-1%3A123456789012%3Aguardrail%2Fabc123"
        assert asked.target == f"/guardrail/{quoted}/version/7/apply"
        assert asked.body == {"source": "OUTPUT", "content": [{"text": {"text": "hello"}}, {"text": {"text": "world"}}]}
        shape = botocore.session.get_session().get_service_model("bedrock-runtime").operation_model("ApplyGuardrail")
        assert shape.input_shape is not None
        assert set(asked.body) < set(shape.input_shape.members)
        assert asked.body["source"] in shape.input_shape.members["source"].enum
        assert at.wanted == [("aws", ("bedrock",), "")]


async def test_what_is_blocked_concerns_the_texts_as_a_whole() -> None:
    async with world() as at:
        check = guardrail(at)
        assert await look(check, "a nice day") == []
        assert said(await look(check, "Anna has a bomb")) == ["topic:weapons"]
        assert said(await look(check, "to kill")) == ["content:violence"]
        assert all(not finding.spans for finding in await look(check, "to kill"))


async def test_what_is_anonymized_becomes_spans() -> None:
    async with world() as at:
        check = guardrail(at)
        texts = ("Anna met Ben and Anna.", "nothing", "Hello Anna")
        found = await look(check, *texts)
        assert masked(texts, found) == ["{NAME} met Ben and {NAME}.", "nothing", "Hello {NAME}"]
        assert said(found) == ["sensitive:name"]
        assert len(found[0].spans) == 3
        assert len(at.services.asked) == 1


async def test_where_the_answer_does_not_say_which_text_each_is_asked_alone() -> None:
    async with world() as at:

        def joined(answer: Any) -> Any:
            if len(answer["outputs"]) > 1:
                answer["outputs"] = [{"text": "".join(output["text"] for output in answer["outputs"])}]
            return answer

        at.services.changes = joined
        texts = ("Anna met Ben.", "nothing", "Hello Anna")
        assert masked(texts, await look(guardrail(at), *texts)) == ["{NAME} met Ben.", "nothing", "Hello {NAME}"]
        assert len(at.services.asked) == 4


async def test_long_texts_are_looked_at_to_their_end() -> None:
    async with world() as at:
        check = guardrail(at, timeout=20.0)
        text = "a nice day " * 5000
        whole = text + "Anna " + text[:100]
        assert masked([whole], await look(check, whole))[0] == whole.replace("Anna", "{NAME}")
        for at_ in (19_800, 19_850, 19_998, 20_000):  # in the part that two pieces share, and across the cut
            whole = "x " * (at_ // 2) + "Anna " + text
            assert masked([whole], await look(check, whole))[0] == whole.replace("Anna", "{NAME}")
        assert "more than 400000 characters" in str(await cannot(check, "x" * 400_001))


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: {**answer, "outputs": []},
        lambda answer: {**answer, "outputs": [{"text": "Hello Anna"}]},
        lambda answer: {**answer, "action": "MAYBE"},
        lambda answer: {"outputs": []},
        lambda answer: {**answer, "assessments": "none"},
        lambda answer: {**answer, "outputs": [{"text": 5}]},
    ],
)
async def test_an_answer_that_is_none(change: Any) -> None:
    async with world() as at:
        at.services.changes = change
        why = str(await cannot(guardrail(at), "Hello Anna"))
        assert "Anna" not in why


async def test_an_intervention_that_says_not_why_still_counts() -> None:
    async with world() as at:
        at.services.changes = lambda answer: {"action": "GUARDRAIL_INTERVENED", "outputs": [], "assessments": []}
        assert said(await look(guardrail(at), "x")) == ["intervened"]


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_service_that_fails(failure: str) -> None:
    async with world() as at:
        at.services.fails = failure
        check = guardrail(at, timeout=0.4)
        assert str(await cannot(check, "text")).startswith("bedrock: ")
        assert check.health()


@pytest.mark.parametrize("spec", [{"guardrail": "../x"}, {"guardrail": "A"}, {"version": "0"}, {"version": "x/../y"}])
def test_settings_that_cannot_be(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BedrockGuardrailSpec.model_validate({"provider": "aws", "guardrail": "abc", **spec})
