"""Holds: ended once, renewed while their call lasts, and grown with a stream or cut."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from tests.unit.policies.floor import Time
from tests.unit.policies.test_budgets import NOW, Far

from tollhouse.core.call import Context, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.policies.holds import LIVES, Growing, Held, Holds, passed_on
from tollhouse.store.base import Draw, unavailable
from tollhouse.store.memory import MemoryCounter

pytestmark = pytest.mark.anyio

FULL = 10_000


class Cap:
    def spent(self, usage: Usage | None, cost_nano: int | None, counts: bool) -> int:
        return 0 if usage is None else usage.output

    def cut(self, draw: Draw) -> Failure:
        return Failure(429, Reason.BUDGET, "no more")


class House:
    def __init__(self, *, far: bool) -> None:
        self.time = Time()
        self.memory = MemoryCounter(self.time.clock, wall=lambda: NOW)
        self.counter: Any = Far(self.memory) if far else self.memory
        self.holds = Holds(self.counter, self.time.clock)

    def hold(self, amount: int = 1, key: str = "ada") -> Held:
        """Of what is never spent, so that nothing need be opened."""
        draw = Draw("output_tokens:x", key, amount, FULL, kept=False)
        assert self.memory.allowances().admit(key, (), [draw], LIVES).happened == "admitted"
        return self.holds.add(key, [draw], [Cap()])

    def room(self, key: str = "ada") -> int:
        """What could still be held."""
        verdict = self.memory.allowances().admit("?", (), [Draw("output_tokens:x", key, FULL, FULL, kept=False)])
        return FULL - verdict.used[0] if verdict.happened != "admitted" else FULL

    async def quiet(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture(params=["near", "far"])
def house(request: pytest.FixtureRequest) -> House:
    return House(far=request.param == "far")


async def test_a_hold_ends_once(house: House) -> None:
    held = house.hold(100)
    assert house.room() == FULL - 100
    held.release()
    held.release()
    assert len(house.holds) == 0
    again = house.hold(7, "bob")
    assert again.draws(Usage(1, 5), None, True) == ()  # what is never spent is in no record
    again.post("j", 1)
    again.post("j", 2)
    assert house.memory.allowances().admit("c", (), [Draw("output_tokens:x", "bob", FULL, FULL, kept=False)]).used == [
        FULL
    ]
    await house.holds.close()


async def test_it_lives_as_long_as_its_call(house: House) -> None:
    held = house.hold(100)
    lost = house.hold(50, "bob")
    house.holds.drop(lost)  # whose worker is gone
    for _ in range(30):
        house.time.advance(11.0)
        await house.quiet()
    assert house.room() == FULL - 100
    assert house.room("bob") == FULL
    held.release()
    await house.holds.close()


def growing(house: House, held: Held, most: int = -1) -> Growing:
    def amounts(tokens: int) -> Sequence[int | None]:
        return [tokens]

    return Growing(house.holds, held, 1000, most, amounts)


EVENT = b"data: " + b"x" * 190 + b"\n\n"


async def test_a_stream_holds_more_as_it_grows(house: House) -> None:
    held = house.hold(1000)
    stream = growing(house, held)
    assert stream.tap(EVENT * 700) == EVENT * 700
    assert house.room() == FULL - 1000
    stream.tap(EVENT * 110)
    await house.quiet()
    assert house.room() == FULL - 2000
    stream.tap(EVENT * 790)
    await house.quiet()
    assert house.room() == FULL - 4000
    await house.holds.close()


class Reading:
    text = 0


async def test_who_reads_the_answer_knows_how_much_there_is(house: House) -> None:
    """Frames without a blank line (Bedrock), blank lines of another kind (Gemini): bytes say little of tokens."""
    context = Context(stream=True, reading=Reading())
    held = house.hold(1000)
    stream = Growing(house.holds, held, 1000, -1, lambda tokens: [tokens], context)
    for _ in range(790):
        context.reading.text += 4
        stream.tap(b"x" * 400)
    await house.quiet()
    assert house.room() == FULL - 1000
    for _ in range(20):
        context.reading.text += 4
        stream.tap(b"x" * 400)
    await house.quiet()
    assert house.room() == FULL - 2000
    assert passed_on(context, 10**6) == 810
    await house.holds.close()


async def test_a_hold_never_shrinks(house: House) -> None:
    held = house.hold(1000)
    assert [draw.amount for draw in held.larger([10])] == [1000]
    assert [draw.amount for draw in held.larger([None])] == [1000]
    assert [draw.amount for draw in held.larger([1001])] == [1001]
    held.release()
    await house.holds.close()


async def test_one_that_gets_no_more_is_cut(house: House) -> None:
    other = house.hold(8500, "x")
    held = house.hold(1000)
    filler = Draw("output_tokens:x", "ada", 8500, FULL, kept=False)
    assert house.memory.allowances().admit("filler", (), [filler]).happened == "admitted"
    stream = growing(house, held)
    with pytest.raises(Failure, match="no more"):
        for _ in range(2000):
            stream.tap(EVENT)
            await asyncio.sleep(0)
    assert house.room() == FULL - 1000 - 8500
    other.release()
    await house.holds.close()


async def test_a_bound_is_where_it_ends(house: House) -> None:
    held = house.hold(1000)
    stream = growing(house, held, most=1500)
    for _ in range(3000):
        stream.tap(EVENT)
        await asyncio.sleep(0)
    assert house.room() == FULL - 1500
    await house.holds.close()


async def test_a_store_that_is_gone_cuts_nobody() -> None:
    house = House(far=True)

    async def gone(*_: Any) -> Any:
        raise unavailable("gone")

    house.counter.top_up = gone
    stream = growing(house, house.hold(1000))
    for _ in range(50):
        stream.tap(EVENT * 100)
        await house.quiet()
    assert house.room() == FULL - 1000
    await house.holds.close()


async def test_what_ended_meanwhile_does_not_come_back() -> None:
    house = House(far=True)
    held = house.hold(1000)
    growing(house, held).tap(EVENT * 900)
    held.release()
    await house.quiet()
    assert house.room() == FULL
    await house.holds.close()
