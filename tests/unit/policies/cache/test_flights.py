"""Any order in which callers come, leave and are answered: each one has what there is, and what was used is paid for
once."""

import asyncio
from random import Random
from typing import Any

import pytest
from tests.unit.policies.cache.house import House, Stream, Sunk, asked, gone, over, streamed

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply

pytestmark = pytest.mark.anyio

USED = Usage(3, 4)
LEFT = Usage(9, 0, estimated=True)  # of a call that was cancelled


class Caller:
    """Somebody who asks, and what was recorded of him at his end."""

    def __init__(self, house: House, *, stream: bool) -> None:
        self.call = asked(stream=stream)
        self.task: asyncio.Task[Reply] = asyncio.ensure_future(house.handler(self.call))
        self.sunk: Sunk | None = None
        self.recorded: Usage | None = None
        self.over = False

    def look(self) -> None:
        """His answer begins, or he has failed."""
        if self.over or self.sunk is not None or not self.task.done():
            return
        if self.task.cancelled() or self.task.exception() is not None:
            self._end(None)
        else:
            self.sunk = Sunk(self.task.result())

    def finish(self) -> None:
        if not self.over and self.sunk is not None and self.sunk.over:
            self._end(self.task.result())

    async def leave(self) -> None:
        if self.over:
            return
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait((self.task,))
            self._end(None)
            return
        self.look()
        if not self.over:
            gone(self.call, self.task.result())
            self._recorded()

    def _end(self, reply: Reply | None) -> None:
        over(self.call, reply)
        self._recorded()

    def _recorded(self) -> None:
        self.over = True
        self.recorded = self.call.context.usage


async def turn(times: int = 4) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def played(seed: int, *, stream: bool) -> None:
    random = Random(seed)
    house = House()
    sources: list[Stream] = []
    failing = random.random() < 0.3
    house.upstream.gate.clear()
    callers = [Caller(house, stream=stream)]
    await turn()
    landed = False
    for _ in range(random.randint(2, 25)):
        what = random.choice(["come", "come", "leave", "land", "look", "say", "end", "finish"])
        if what == "come" and len(callers) < 12:
            if stream:
                reply, source = streamed(b"data: 0\n\n")
                sources.append(source)
                house.upstream.answers.append(reply)
            callers.append(Caller(house, stream=stream))
        elif what == "leave":
            await random.choice(callers).leave()
        elif what == "land" and not landed:
            landed = True
            answers: list[Any] = [Failure(502, Reason.UPSTREAM_FAILURE, "x")] if failing else []
            if stream:
                reply, source = streamed(b"data: 0\n\n")
                sources.append(source)
                answers.append(reply)
            house.upstream.answers[:0] = answers
            house.upstream.gate.set()
        elif what == "say":
            for source in sources:
                if source.sink is not None:
                    source.say(b"data: x\n\n")
        elif what == "end" and random.random() < 0.5:
            for source in sources:
                if source.sink is not None:
                    source.end(Failure(502, Reason.UPSTREAM_FAILURE, "cut") if random.random() < 0.2 else None)
        await turn(random.randint(0, 4))
        for caller in callers:
            caller.look()
            caller.finish()
    house.upstream.gate.set()
    for _ in range(40):
        if stream and len(house.upstream.answers) < 20:
            reply, source = streamed(b"data: 0\n\n")
            sources.append(source)
            house.upstream.answers.append(reply)
        await turn()
        for source in sources:
            if source.sink is not None:
                source.end()
        for caller in callers:
            caller.look()
            caller.finish()
        if all(caller.over for caller in callers):
            break
    assert all(caller.over for caller in callers)  # nobody waits for ever
    paid = [caller.recorded for caller in callers if caller.recorded not in (None, Usage())]
    # Those that failed before there was an answer have used nothing.
    asked_for = len(house.upstream.settled) + house.upstream.cancelled
    assert len(paid) == asked_for, (seed, paid, asked_for)
    assert all(usage in (USED, LEFT) for usage in paid)
    for source in sources:
        assert source.sink is None or source.closed
    store = house.shelf.parts[("cache", 64 << 20)]
    assert not store.flights
    assert not store._tasks
    await house.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_comes_and_leaves_one_pays(stream: bool) -> None:
    for seed in range(250):
        await played(seed, stream=stream)


async def test_the_store_ends_and_who_waits_is_told() -> None:
    house = House()
    house.upstream.gate.clear()
    task = asyncio.ensure_future(house.handler(asked()))
    await turn()
    await house.close()
    with pytest.raises(Failure) as raised:
        await task
    assert raised.value.status == 503
