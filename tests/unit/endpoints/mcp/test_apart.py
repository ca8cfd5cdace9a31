"""Messages that are answered in tasks of their own; over real sockets in test_lapse, test_batch and test_sse."""

import asyncio
import json

import pytest

from tollhouse.core.call import Context
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Holders
from tollhouse.core.http import Headers, Request, Response
from tollhouse.endpoints.mcp.apart import answered

pytestmark = pytest.mark.anyio

STOPPED = Failure(403, Reason.AUTHORIZATION, "the run was stopped", code="run_stopped")


def message(body: bytes = b'{"jsonrpc":"2.0","id":"a","method":"ping"}', run: str = "one") -> Request:
    request = Request(b"POST", b"/mcp", Headers(), body)
    request.context = Context(run_id=run)
    return request


async def never(_: Request) -> Response:
    await asyncio.Event().wait()
    raise AssertionError


async def started(request: Request, holders: Holders) -> "asyncio.Task[Response]":
    task = asyncio.ensure_future(answered(request, never, holders))
    await asyncio.sleep(0)
    assert len(holders) == 1
    return task


@pytest.mark.parametrize(
    ("body", "id"),
    [(b'{"jsonrpc":"2.0","id":7,"method":"ping"}', 7), (b'{"jsonrpc":"2.0","method":"ping"}', None), (b"{", None)],
)
async def test_its_agent_is_told_why_it_was_stopped(body: bytes, id: int | None) -> None:
    holders = Holders(Clock())
    task = await started(message(body), holders)
    holders.end_run("one", STOPPED)
    told = json.loads((await task).body)
    assert (told.get("id"), told["error"]["data"]["reason"]) == (id, "run_stopped")
    assert not holders


async def test_what_ends_by_itself_is_held_no_more() -> None:
    holders = Holders(Clock())

    async def refuses(_: Request) -> Response:
        raise Failure(429, Reason.RATE_LIMIT, "too many")

    assert (await answered(message(), refuses, holders)).status == 429
    assert not holders


async def test_who_is_cancelled_as_well_is_cancelled() -> None:
    """By its agent, in the turn in which its run is stopped."""
    holders = Holders(Clock())
    task = await started(message(), holders)
    holders.end_run("one", STOPPED)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not holders
