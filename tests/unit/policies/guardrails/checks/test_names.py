"""Names, read by the model: whole, in long texts, in threads, within a time."""

import asyncio
import threading
from time import perf_counter
from typing import Any

import pytest
from pydantic import ValidationError
from tests.unit.policies.guardrails.checks.asking_guards import World, cannot, longest_turn, look, masked, said, world

from tollhouse.policies.guardrails.check import Check
from tollhouse.policies.guardrails.checks.names import NamesSpec, names

pytestmark = pytest.mark.anyio


def reader(at: World, find: Any = True, timeout: float = 30.0, **spec: Any) -> Check:
    value = {"find": find, **spec} if spec else find
    return names(NamesSpec.model_validate(value), at.parts, timeout)


async def test_a_name_and_an_address_are_one_span_each() -> None:
    async with world() as at:
        check = reader(at)
        texts = ("My name is Anna Schmidt and I live at 12 Baker Street, London NW1 6XE.", "", "No name here.")
        found = await look(check, *texts)
        assert masked(texts, found)[0] == "My name is [person] and I live at [address]."
        assert masked(texts, found)[1:] == ["", "No name here."]
        assert check.masks is True
        assert await look(check) == []
        assert await look(check, "  \n ") == []


async def test_only_what_is_asked_for() -> None:
    async with world() as at:
        text = "Maria Garcia of 5 Church Road, Oxford OX1 2JD moved to Madrid."
        assert said(await look(reader(at, ["person"]), text)) == ["person"]
        assert said(await look(reader(at, ["address"]), text)) == ["address"]
        assert "place" in said(await look(reader(at, ["person", "address", "place"]), text))


async def test_in_long_texts_a_name_is_found_wherever_it_stands() -> None:
    async with world() as at:
        check = reader(at, ["person"])
        filler = "The report has been sent to the printer and will be there in time. "
        for ahead in (0, 380, 384, 388, 392, 400, 470, 476, 480, 484, 900):
            text = (filler * 20)[:ahead] + " Please ask Jessica Alexandra Thompson about it. " + filler * 3
            found = masked([text], await look(check, text))[0]
            assert not {"Jessica", "Thompson"} & set(found.replace(".", " ").split()), (ahead, found)


async def test_letters_of_all_kinds_are_taken() -> None:
    async with world() as at:
        check = reader(at)
        for text in (
            "\ud800 Anna Schmidt",
            "한국어 텍스트 " * 200,
            "\U0001f600" * 600,
            "x" * 5000,
            "\x00 Anna",
            "ﷺ" * 300,
        ):
            await look(check, text)


async def test_the_loop_goes_on_while_the_model_reads() -> None:
    async with world() as at:
        check = reader(at)
        await look(check, "warm")
        assert await longest_turn(look(check, "Please ask Jessica Thompson about it. " * 300)) < 0.5


async def test_a_text_that_takes_too_long_and_one_that_is_left() -> None:
    async with world() as at:
        text = "Please ask Jessica Thompson about it. " * 3000
        check = reader(at, timeout=0.05)
        assert "were not read within" in str(await cannot(check, text))
        began = perf_counter()
        again = names(NamesSpec(), at.parts, 30.0)
        await look(again, "Anna Schmidt")  # the thread has let go of what nobody waits for
        assert perf_counter() - began < 5.0
        assert "more than 120000 characters" in str(await cannot(check, "x" * 120_001))


async def test_one_model_for_all_and_its_threads_end() -> None:
    async with world() as at:
        first, second = reader(at, ["person"]), reader(at, ["address"])
        await asyncio.gather(look(first, "Anna Schmidt"), look(second, "Anna Schmidt"))
        assert sum(thread.name.startswith("names") for thread in threading.enumerate()) == 1
        assert first.health() == ""
    for thread in threading.enumerate():
        if thread.name.startswith("names"):
            thread.join(10.0)
            assert not thread.is_alive()


@pytest.mark.parametrize("value", [[], ["name"], {"threads": 0}, {"threshold": 1.0}, False])
def test_settings_that_cannot_be(value: Any) -> None:
    with pytest.raises(ValidationError):
        NamesSpec.model_validate(value)
