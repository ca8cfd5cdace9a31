"""Who waits for a session: turns, promises, and what becomes of who leaves."""

import asyncio
from time import monotonic

import pytest

from tollhouse.backends.mcp.room import Room
from tollhouse.core.errors import Failure

pytestmark = pytest.mark.anyio


class House:
    """So many places; a room in front of it."""

    def __init__(self, free: int = 0) -> None:
        self.free = free
        self.room = Room("u", 2, lambda: self.room.promised < self.free)

    def leave(self) -> None:
        self.free += 1
        self.room.let_in()

    async def enter(self, seconds: float = 60.0) -> None:
        await self.room.wait(monotonic() + seconds)
        self.free -= 1
        self.room.taken()


async def waiting(house: House, count: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(house.enter()) for _ in range(count)]
    await asyncio.sleep(0)
    assert len(house.room) == count
    return tasks


async def test_first_come_first_served() -> None:
    house = House()
    tasks = await waiting(house, 3)
    for n, task in enumerate(tasks):
        house.leave()
        assert (house.room.promised, len(house.room)) == (1, 2 - n)
        house.room.let_in()  # nothing has become free meanwhile
        assert house.room.promised == 1
        await task
        assert (house.free, house.room.promised) == (0, 0)


async def test_nobody_waits_for_long() -> None:
    house = House()
    with pytest.raises(Failure, match="all 2 sessions with the server are in use") as refused:
        await house.enter(0.01)
    assert (refused.value.status, refused.value.code, refused.value.reached) == (503, "server_unavailable", False)
    assert len(house.room) == 0


async def test_so_many_and_no_more() -> None:
    house = House()
    tasks = await waiting(house, 256)
    with pytest.raises(Failure, match="in use"):
        await house.enter()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert len(house.room) == 0


async def test_who_leaves_in_the_moment_of_the_turn_gives_it_on() -> None:
    house = House()
    gone, next_one = await waiting(house, 2)
    house.leave()
    gone.cancel()
    await next_one
    assert gone.cancelled()
    assert (house.free, house.room.promised, len(house.room)) == (0, 0, 0)


async def test_when_it_closes_nobody_waits() -> None:
    house = House()
    tasks = await waiting(house, 3)
    house.room.close()
    await asyncio.wait_for(asyncio.gather(*tasks), 1)
    assert house.room.promised == 0
    await asyncio.sleep(0)
