"""Allowances in memory and on Valkey, against the model: long histories with all that may go wrong."""

import asyncio
import itertools
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.conformance.allowance_model import AllowanceModel
from tests.conformance.allowances import NOW
from tests.fixtures.valkey import Proxy, Valkey, valkey
from tests.unit.store.timed import timed

from tollhouse.core.clock import SLICES, Clock
from tollhouse.core.errors import Failure
from tollhouse.store.memory import MemoryCounter
from tollhouse.store.redis import connects
from tollhouse.store.redis_allowances import SCRIPTS, _stored
from tollhouse.store.redis_counter import RedisCounter
from tollhouse.store.redis_server import Server
from tollhouse.store.spec import place_of

T = TypeVar("T")

EXAMPLES = int(os.environ.get("TOLLHOUSE_MODEL_EXAMPLES", "0"))
pytestmark = pytest.mark.timeout(0 if EXAMPLES else 120)
PREFIXES = (f"m{n}" for n in itertools.count())


class MemoryWorld:
    """One worker at a time can have it: the second one of the model is the same."""

    can_fail = False

    def __init__(self) -> None:
        self.now = float(NOW)
        self.clock = Clock(source=lambda: self.now)
        self.counter = MemoryCounter(self.clock, wall=lambda: self.now)

    def worker(self) -> Any:
        return self.counter

    def leave(self, counter: Any) -> None:
        return

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            work.send(None)
        except StopIteration as done:
            value: T = done.value
            return value
        raise AssertionError("it suspended")

    def set_time(self, now: float) -> None:
        self.now = now
        self.clock.turn()

    def flush(self, counter: Any, tick: bool) -> None:
        for _ in range(SLICES if tick else 0):
            self.clock.turn()

    def peek(self, field: str) -> tuple[int | None, int]:
        return self.counter.allowances().peek(field)

    def positions(self) -> dict[str, int]:
        return dict(self.counter.allowances()._positions)

    def lose(self) -> None:
        return

    def wipe(self) -> None:
        raise AssertionError("not here")

    save = restore = wipe  # type: ignore[assignment]

    def close(self) -> None:
        return


class RedisWorld:
    can_fail = True

    def __init__(self, server: Valkey) -> None:
        self.server = server
        self.loop = asyncio.new_event_loop()
        self.prefix = next(PREFIXES)
        self.tag = f"{{{self.prefix}}}"
        self.client = server.client()
        self.raw = self.client.__enter__()
        self.proxy = Proxy(server.port)
        self.run(self.proxy.__aenter__())
        self.set_time(float(NOW))
        self.scripts = {name: timed(f"{self.tag}now", "hold.lua", f"{name}.lua") for name in SCRIPTS}
        self.lines: dict[int, tuple[Server, Clock]] = {}
        self.numbers = itertools.count()

    def worker(self) -> Any:
        place = place_of(f"redis://127.0.0.1:{self.proxy.port}")
        clock = Clock()
        server = Server(connects(place, 20.0), place.nodes, name=str(place), timeout=20.0, lines=1)
        counter = RedisCounter(
            server, clock, prefix=self.prefix, node=f"n{next(self.numbers)}", patience=1.0, draws=self.scripts
        )
        self.lines[id(counter)] = (server, clock)
        return counter

    def leave(self, counter: Any) -> None:
        task = counter._task
        if task is not None:
            task.cancel()
            self.run(asyncio.wait((task,)))
        self.run(self.lines.pop(id(counter))[0].close())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def set_time(self, now: float) -> None:
        self.raw.set(f"{self.tag}now", f"{now:.3f}")

    def flush(self, counter: Any, tick: bool) -> None:
        if tick:
            self.lines[id(counter)][1].now += 1.0
        try:
            self.run(counter.flush())
        except Failure:
            pass  # the next time

    def peek(self, field: str) -> tuple[int | None, int]:
        stored = _stored(field)
        base, start = stored[:25], int(stored[25:])
        spent, held, zeros = self.raw.hmget(f"{self.tag}:d", stored, stored + b"h", base + b"z")
        if spent is None and zeros is not None:
            low, high = map(int, zeros.split())
            spent = b"0" if low <= start < high else None
        return None if spent is None else int(spent), int(held or 0)

    def positions(self) -> dict[str, int]:
        stored = self.raw.hgetall(f"{self.tag}:w")
        return {journal.decode(): int(seq) for journal, seq in stored.items() if journal != b"#"}

    def lose(self) -> None:
        self.proxy.swallow = lambda sent: b"EVAL" in sent

    def wipe(self) -> None:
        self.raw.delete(*(f"{self.tag}:{key}" for key in "dhxkew"))

    def save(self) -> dict[str, bytes | None]:
        return {key: self.raw.dump(f"{self.tag}:{key}") for key in "dhxkew"}

    def restore(self, state: dict[str, bytes | None]) -> None:
        self.wipe()
        for key, value in state.items():
            if value is not None:
                self.raw.restore(f"{self.tag}:{key}", 0, value)

    def close(self) -> None:
        self.wipe()
        self.run(self.proxy.__aexit__())
        for server, _ in self.lines.values():
            self.run(server.close())
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run(asyncio.wait(tasks))
        self.loop.close()
        self.client.__exit__(None, None, None)


def check(machine: type[AllowanceModel], examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=EXAMPLES or examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_memory() -> None:
    class Machine(AllowanceModel):
        def world(self) -> Any:
            return MemoryWorld()

    check(Machine, 80, 50)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one


def test_valkey(server: Valkey) -> None:
    class Machine(AllowanceModel):
        def world(self) -> Any:
            return RedisWorld(server)

    check(Machine, 120, 40)
