"""Pauses: of the collector, of the reading of a large configuration, and memory that is given back after a peak."""

import asyncio
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import pytest

from tollhouse.config.load import load_config
from tollhouse.core.clock import Clock
from tollhouse.gateway.memory import Memory, system_trim
from tollhouse.gateway.serve import Worker

pytestmark = pytest.mark.anyio

MODELS = 5000


class Trial:
    """A Memory whose time and connections are set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.connections = 0
        self.trims = 0
        self.clock = Clock(source=lambda: self.now)
        self.memory = Memory(self.clock, lambda: self.connections, self.trim)

    def trim(self) -> None:
        self.trims += 1

    def wait(self, seconds: int, connections: int) -> int:
        """How often memory is given back meanwhile."""
        self.connections = connections
        before = self.trims
        for _ in range(seconds * 4):
            self.now += 0.25
            self.clock.turn()
        return self.trims - before


@contextmanager
def trial() -> Iterator[Trial]:
    one = Trial()
    one.memory.start()
    try:
        yield one
    finally:
        one.memory.stop()


def test_what_was_set_for_the_process_is_set_back() -> None:
    gc.unfreeze()  # some interpreters freeze their own
    before = (sys.getswitchinterval(), gc.isenabled(), gc.get_freeze_count(), gc.get_threshold())
    with trial() as one:
        assert sys.getswitchinterval() < before[0]
        assert gc.get_threshold()[0] > before[3][0]
        assert gc.get_freeze_count() > 10_000
        one.memory.reading()
        assert not gc.isenabled()
    assert (sys.getswitchinterval(), gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()) == before


def test_nothing_is_collected_while_a_configuration_is_read_and_a_large_one_is_never_walked() -> None:
    with trial() as one:
        for size, kept in ((100, False), (100_000, True)):
            frozen = gc.get_freeze_count()
            one.memory.reading()
            assert not gc.isenabled()
            read = [[n] for n in range(size)]
            one.clock.turn()
            assert not gc.isenabled()  # not before it is told
            one.memory.read()
            one.clock.turn()
            assert gc.isenabled()
            assert (gc.get_freeze_count() >= frozen + len(read)) == kept


def test_memory_is_given_back_once_when_a_peak_has_gone_for_good() -> None:
    with trial() as one:
        assert one.wait(10, 100) == 0
        assert one.wait(10, 3000) == 0
        assert one.wait(1, 10) == 0  # they may come back at once
        assert one.wait(10, 3000) == 0
        assert one.wait(10, 1500) == 0  # still much in use: it would be asked for again
        assert one.wait(10, 100) == 1
        assert one.wait(100, 100) == 0
        assert one.wait(10, 599) == 0
        assert one.wait(10, 0) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_the_system_takes_memory_back() -> None:
    trim = system_trim()
    if trim is None:
        pytest.skip("not glibc")
    assert trim() in (0, 1)


def large(changed: int) -> str:
    head = """
server: {listen: 127.0.0.1:0, metrics: null}
providers: {one: {kind: openai, base_url: "http://127.0.0.1:9/v1", api_key: k}}
models:
"""
    names = (f"model-{n}" + (f"-{changed}" if n == MODELS // 2 else "") for n in range(MODELS))
    return head + "".join(f"  - {{name: {name}, targets: [{{provider: one, model: x}}]}}\n" for name in names)


async def test_a_change_of_thousands_of_models_does_not_stall_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(large(0))
    worker = Worker(path, load_config(path))
    running = asyncio.ensure_future(worker.run())
    await asyncio.wait_for(worker.listening.wait(), 20)
    assert worker.runtime is not None
    longest = []
    for change in range(1, 5):
        fresh = path.with_suffix(".new")
        fresh.write_text(large(change))
        version = worker.runtime.current.version
        late = 0.0
        fresh.replace(path)
        end = perf_counter() + 20
        while worker.runtime.current.version == version and perf_counter() < end:
            began = perf_counter()
            await asyncio.sleep(0.001)
            late = max(late, perf_counter() - began - 0.001)
        assert worker.runtime.current.version == version + 1
        longest.append(late)
    assert worker.drain is not None
    worker.drain.begin(now=True)
    await running
    assert min(longest) < 0.05, longest  # reading it here takes 0.3; the machine may be busy with something else
