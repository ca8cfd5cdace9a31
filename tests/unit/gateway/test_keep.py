"""Parts live as long as some Snapshot uses them, and are closed once."""

import asyncio

import pytest

from tollhouse.core.http import Ending, Headers, Request, Response
from tollhouse.gateway.keep import Keep
from tollhouse.gateway.snapshot import Snapshot

pytestmark = pytest.mark.anyio


class Pool:
    def __init__(self, failing: bool = False) -> None:
        self.closed = 0
        self.failing = failing

    async def close(self) -> None:
        self.closed += 1
        if self.failing:
            raise OSError("no")


async def test_the_same_key_is_the_same_part_over_two_snapshots() -> None:
    keep = Keep()
    old, new = keep.tenure(), keep.tenure()
    pool = old.get(("pool", 1), Pool, Pool.close)
    gone = old.get(("pool", 2), Pool, Pool.close)
    assert new.get(("pool", 1), Pool, Pool.close) is pool
    assert old.get(("pool", 1), Pool, Pool.close) is pool
    old.end()
    await asyncio.sleep(0)
    assert (pool.closed, gone.closed, len(keep)) == (0, 1, 1)
    new.end()
    await keep.close()
    assert (pool.closed, len(keep)) == (1, 0)


async def test_a_part_that_cannot_close_does_not_keep_others() -> None:
    keep = Keep()
    tenure = keep.tenure()
    tenure.get("bad", lambda: Pool(failing=True), Pool.close)
    good = tenure.get("good", Pool, Pool.close)
    await keep.close()
    assert good.closed == 1


def test_a_snapshot_closes_with_its_last_lease() -> None:
    closed: list[Snapshot] = []

    async def handler(request: Request) -> Response:
        return Response(200, [])

    snapshot = Snapshot(handler, 1, closed.append)
    requests = [Request(b"GET", b"/", Headers()) for _ in range(2)]
    for request in requests:
        snapshot.leases += 1
        request.ends.append(snapshot.release)
    snapshot.retire()
    assert closed == []
    for request in requests:
        for end in request.ends:
            end(Ending(200, "ok"))
    assert closed == [snapshot]
    idle = Snapshot(handler, 2, closed.append)
    idle.retire()
    assert closed[-1] is idle
