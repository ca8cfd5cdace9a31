"""`endpoints.mcp.used`: a round is good once, whichever worker it comes to."""

import asyncio

import pytest
from tests.unit.endpoints.mcp.test_handover import Bus, Worker

from tollhouse.endpoints.mcp.peers import Peers
from tollhouse.endpoints.mcp.used import Used

pytestmark = pytest.mark.anyio

LONG = 60.0


async def test_alone() -> None:
    used = Used(None, None)
    assert "a" not in used
    assert await used.first("a", LONG)
    assert "a" in used
    assert not await used.first("a", LONG)
    assert not await used.claimed("a", LONG)
    assert await used.claimed("b", LONG)
    assert not await used.claimed("b", LONG)


async def test_what_another_life_of_the_worker_has_counted() -> None:
    values = Bus().values
    before, after = Used(values, None), Used(values, None)
    assert await before.first("a", LONG)
    assert "a" not in after
    assert not await after.first("a", LONG)
    assert "a" in after


async def test_of_two_workers_one_goes_on() -> None:
    bus = Bus()
    states = Worker("one", bus), Worker("two", bus)
    peers = [Peers(state) for state in states]
    try:
        while not await peers[1].lives("one"):
            await asyncio.sleep(0)  # its first sign of life comes as soon as its task runs
        one, other = (Used(bus.values, peer) for peer in peers)
        assert await one.claimed("a", LONG)
        assert not await other.claimed("a", LONG)
        assert not await one.claimed("a", LONG)
    finally:
        for peer in peers:
            await peer.closed()


def test_only_so_many_are_remembered() -> None:
    used = Used(None, None)
    for n in range(5000):
        used.add(str(n))
    assert "0" not in used
    assert "4999" in used
