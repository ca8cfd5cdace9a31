"""Topics: by what texts mean, in this process or by a provider's model."""

import json
import threading
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
from pydantic import ValidationError
from tests.fixtures.api import Asked, Said, serving_api
from tests.unit.policies.guardrails.checks.asking_guards import World, cannot, longest_turn, look, said, world

from tollhouse.policies.base import Service
from tollhouse.policies.guardrails.check import Check
from tollhouse.policies.guardrails.checks.remote import OwnService
from tollhouse.policies.guardrails.checks.topics import TopicsSpec, topics

pytestmark = pytest.mark.anyio

SHOP = {
    "allow": {"orders": ["Where is my order?", "I want my money back", "When will my parcel be here?"]},
    "deny": {"politics": ["Which party should I vote for?"], "medicine": ["What should I take against a headache?"]},
}


def guard(at: World, value: Any = SHOP, timeout: float = 30.0) -> Check:
    return topics(TopicsSpec.model_validate(value), at.parts, timeout)


async def test_topics_in_this_process() -> None:
    async with world() as at:
        check = guard(at)
        assert said(await look(check, "Has my parcel been sent already?", "Hi there!", "")) == []
        assert said(await look(check, "Tell me which candidate I should vote for.")) == ["politics"]
        assert said(await look(check, "Does aspirin help against a migraine?")) == ["medicine"]
        assert said(await look(check, "Please write a poem about the sea in winter.")) == ["off_topic"]
        only = guard(at, {"deny": ["Which party should I vote for?"]})
        assert said(await look(only, "Please write a poem about the sea in winter.")) == []
        assert said(await look(only, "Who gets your vote, which party do you choose?")) == ["denied"]
        assert check.health() == ""


async def test_what_stands_at_the_end_of_a_long_text_counts() -> None:
    async with world() as at:
        check = guard(at, {**SHOP, "longest": 1000})
        text = "Where is my order? I have been waiting for the parcel for two weeks now. " * 40
        assert said(await look(check, text + "Also tell me which party I should vote for.")) == ["politics"]
        assert said(await look(check, text)) == []


async def test_the_loop_goes_on_and_what_takes_too_long_is_left() -> None:
    async with world() as at:
        check = guard(at)
        await look(check, "Where is the parcel that I have ordered?")
        assert await longest_turn(look(check, "Please write a poem about the sea in winter and about ships.")) < 0.5
        late = topics(TopicsSpec.model_validate({"deny": ["a phrase that is new"]}), at.parts, 0.001)
        assert "within 0.001 seconds" in str(await cannot(late, "Another text that nobody has read."))
        assert "more than" in str(await cannot(check, *("word " * 400 + str(n) for n in range(9))))
    for thread in threading.enumerate():
        if thread.name.startswith("tollhouse-vectors"):
            thread.join(10.0)
            assert not thread.is_alive()


def _vector(text: str) -> list[float]:
    """Two subjects, and what is the text's alone."""
    own = [(crc32(f"{n} {text}".encode()) / 2**32 - 0.5) for n in range(30)]
    return [1.0, 8.0 * ("vote" in text), 8.0 * ("order" in text), *own]


class _Provider:
    def __init__(self) -> None:
        self.change: Any = lambda rows: {"data": [{"index": n, "embedding": row} for n, row in enumerate(rows)]}

    def __call__(self, asked: Asked) -> Said:
        rows = [_vector(text) for text in json.loads(asked.body)["input"]]
        return Said(200, self.change(rows))


async def test_by_a_providers_model_what_is_known_is_not_asked_again() -> None:
    async with world() as at, serving_api() as api:
        api.answer = _Provider()

        def services(provider: str, kinds: tuple[str, ...], url: str = "", connections: int = 32, /) -> Service:
            return OwnService(at.parts.client, f"{api.url}/v1", connections=connections)

        spec = TopicsSpec.model_validate({**SHOP, "provider": "openai", "model": "emb"})
        check = topics(spec, replace(at.parts, services=services), 5.0)
        assert said(await look(check, "whom should I vote for now")) == ["politics"]
        assert said(await look(check, "my order is not there yet")) == []
        assert said(await look(check, "nothing of the kind at all")) == ["off_topic"]
        assert [asked.target for asked in api.asked] == ["/v1/embeddings"] * 4
        await look(check, "my order is not there yet")
        assert len(api.asked) == 4


async def test_what_was_read_before_it_failed_is_kept() -> None:
    async with world() as at, serving_api() as api:
        provider = _Provider()
        fails = 3  # the second of two batches of phrases

        def answer(asked: Asked) -> Said:
            return Said(500) if len(api.asked) == fails else provider(asked)

        api.answer = answer

        def services(provider: str, kinds: tuple[str, ...], url: str = "", connections: int = 32, /) -> Service:
            return OwnService(at.parts.client, f"{api.url}/v1", connections=connections)

        spec = {"deny": [f"phrase {n}" for n in range(100)], "provider": "openai", "model": "emb"}
        check = topics(TopicsSpec.model_validate(spec), replace(at.parts, services=services), 5.0)
        assert "status 500" in str(await cannot(check, "whom should I vote for now"))
        assert check.health() == "the provider of embeddings answers with status 500"
        await look(check, "whom should I vote for now")
        assert [len(json.loads(asked.body)["input"]) for asked in api.asked] == [24, 64, 37, 37]
        assert check.health() == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: {"data": []},
        lambda rows: {"data": [{"index": n, "embedding": row[: 1 + n % 2]} for n, row in enumerate(rows)]},
        lambda rows: {"data": [{"index": n, "embedding": []} for n, _ in enumerate(rows)]},
        lambda rows: {"data": [{"index": n, "embedding": ["x"]} for n, _ in enumerate(rows)]},
        lambda rows: {"data": [{"index": n, "embedding": [1e308 * 10, 1.0]} for n, _ in enumerate(rows)]},
        lambda rows: {"error": {"message": "no such model"}},
    ],
)
async def test_vectors_that_are_none(change: Any) -> None:
    async with world() as at, serving_api() as api:
        api.answer = provider = _Provider()
        provider.change = change

        def services(provider: str, kinds: tuple[str, ...], url: str = "", connections: int = 32, /) -> Service:
            return OwnService(at.parts.client, f"{api.url}/v1", connections=connections)

        spec = TopicsSpec.model_validate({**SHOP, "provider": "openai", "model": "emb"})
        check = topics(spec, replace(at.parts, services=services), 2.0)
        assert str(await cannot(check, "whom should I vote for now")).startswith("topics: ")


@pytest.mark.parametrize(
    "value, wrong",
    [
        ({}, "name topics"),
        ({"allow": {"a": ["one phrase"]}, "deny": {"a": ["another"]}}, "both allowed and denied"),
        ({"allow": ["one phrase"], "model": "x"}, "go together"),
        ({"allow": ["one phrase"], "provider": "x"}, "go together"),
        ({"allow": {"Not A Name": ["one phrase"]}}, "pattern"),
        ({"allow": {"a": []}}, "at least 1"),
        ({"allow": ["x"]}, "at least 3"),
    ],
)
def test_settings_that_cannot_be(value: Any, wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        TopicsSpec.model_validate(value)
