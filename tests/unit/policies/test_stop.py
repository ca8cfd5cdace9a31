"""Stop: tasks that are cancelled, and waited for."""

import asyncio

import pytest

from tollhouse.policies.stop import stop

pytestmark = pytest.mark.anyio


async def test_all_are_gone_whatever_they_raise_and_wherever_they_leave() -> None:
    owned: set[asyncio.Task[None]] = set()
    ended: list[int] = []

    async def work(n: int) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            ended.append(n)
            if n:
                raise ValueError(n)

    for n in range(3):
        task = asyncio.create_task(work(n))
        owned.add(task)
        task.add_done_callback(owned.discard)
    await asyncio.sleep(0)
    await stop(owned)
    assert sorted(ended) == [0, 1, 2]
    assert not owned


async def test_nothing_is_nothing() -> None:
    await stop(())
