"""What shipping costs: records a second into SQLite and PostgreSQL, by one shipper and by several at once.

    python bench/ledger.py [RECORDS] [SHIPPERS]

Each shipper is a process and has a journal of its own, as a gateway's worker has. CPU: of the shippers, and of the
server for PostgreSQL, in microseconds a record; the server is the one that the tests start, on this machine, and syncs
to the disk here.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.fixtures.postgres import Postgres, postgres  # noqa: E402

from tollhouse.ledger.base import Entry, Ledger  # noqa: E402
from tollhouse.ledger.postgres import PostgresLedger  # noqa: E402
from tollhouse.ledger.postgres_place import place_of  # noqa: E402
from tollhouse.ledger.records import USAGE, UsageRecord  # noqa: E402
from tollhouse.ledger.sqlite import SqliteLedger  # noqa: E402

BATCH = 2000
TICK = os.sysconf("SC_CLK_TCK")
AT = int(time.time() * 1e6)
KINDS: dict[str, dict[str, Any]] = {
    "calls": {},
    "calls, cached tokens": {"cache_read": 900, "reasoning": 20},
    "calls, 3 budgets each": {
        "draws": tuple((f"usd:top/{scope}:1d|{scope}-7|1795305600", 1500) for scope in ("org", "team", "user")),
        "held_nano": 2000,
    },
}


def entries(count: int, more: dict[str, Any]) -> list[Entry]:
    """Of 50 users and four models, in the order in which they were admitted."""
    found = []
    for n in range(1, count + 1):
        record = UsageRecord(
            admitted_at=AT + n * 100, ended_at=AT + n * 100 + 800_000, request_id=f"01a2b3c4d5e6f708{n:016x}",
            input=1200 + n % 7, output=300 + n % 11, cost_nano=1500, ttft_us=210_000, total_us=800_000,
            upstream_us=790_000, bytes_in=4000, bytes_out=9000, outcome="ok", status=200, org="platform", team="search",
            user=f"user-{n % 50}", key="ci", agent="builder", route="llm", dialect="openai", operation="chat",
            model_asked=f"model-{n % 4}", model_answered=f"model-{n % 4}", provider="openai", backend="openai",
            stream=True, **more,
        )  # fmt: skip
        found.append(Entry(n, USAGE, msgspec.json.encode(record)))
    return found


def ship(make: Callable[[], Ledger], journal: str, count: int, more: dict[str, Any], begin: Any, done: Any) -> None:
    """A process: one journal, whole."""
    all_of_them = entries(count, more)
    ledger = make()
    ledger.open()
    ledger.ship(journal, entries(1, more))
    begin.wait()
    used, began = time.process_time(), time.perf_counter()
    for first in range(0, count, BATCH):
        ledger.ship(journal, all_of_them[first : first + BATCH])
    done.put((began, time.perf_counter(), time.process_time() - used))
    ledger.close()


def measure(make: Callable[[], Ledger], count: int, shippers: int, more: dict[str, Any]) -> tuple[float, float]:
    """Seconds, and CPU seconds of the shippers."""
    context = multiprocessing.get_context("fork")
    begin, done = context.Barrier(shippers), context.SimpleQueue()
    processes = [
        context.Process(target=ship, args=(make, f"{n + 1:032x}", count // shippers, more, begin, done))
        for n in range(shippers)
    ]
    for process in processes:
        process.start()
    spans = [done.get() for _ in processes]
    for process in processes:
        process.join()
    return max(s[1] for s in spans) - min(s[0] for s in spans), sum(s[2] for s in spans)


def cpu(server: Postgres) -> float:
    """Seconds that the server and all it has started have used, those that have ended included."""
    assert server.process is not None
    pid = server.process.pid
    total = 0.0
    for one in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15] if one == pid else fields[11:13])) / TICK
    return total


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 40_000
    several = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    print(f"{'':<34}{'records/s':>10}{'us shipper':>12}{'us server':>11}")
    with tempfile.TemporaryDirectory() as where, postgres("fsync=on", "full_page_writes=on") as server:
        for kind, more in KINDS.items():
            for shippers in (1, several):
                path = Path(where) / f"{kind}-{shippers}.db"
                seconds, used = measure(lambda path=path: SqliteLedger(path), count, shippers, more)  # type: ignore[misc]
                show(f"SQLite, {shippers}: {kind}", count, seconds, used, None)
                place = place_of(server.url(server.fresh()))
                before = cpu(server)
                seconds, used = measure(lambda place=place: PostgresLedger(place), count, shippers, more)  # type: ignore[misc]
                show(f"PostgreSQL, {shippers}: {kind}", count, seconds, used, cpu(server) - before)


def show(what: str, count: int, seconds: float, used: float, server: float | None) -> None:
    there = "" if server is None else f"{server / count * 1e6:.1f}"
    print(f"{what:<34}{count / seconds:>10,.0f}{used / count * 1e6:>12.1f}{there:>11}")


if __name__ == "__main__":
    main()
