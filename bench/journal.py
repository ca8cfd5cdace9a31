"""What a record costs until it is in the journal, and what reading the journal and asking the ledger cost.

    python bench/journal.py [--gate] [--directory DIR]

One process, nothing else; files in DIR (the system's place for temporary ones, if it is not said). A record is that of
a model's call, by a key of an organisation; `with draws` it belongs to a run and was posted to four allowances. Written
is as the meter writes: the call's own half encoded, its labels ready. Printed are microseconds and records a second and
core, the best of several turns; CPU of the whole process, of the syncing thread too. Asked is a ledger of 200,000
records and as many hourly sums.
"""

import argparse
import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tollhouse.ledger.base import Entry
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import USAGE, UsageFacts, UsageRecord, labels
from tollhouse.ledger.segment import Reader, segments
from tollhouse.ledger.sqlite import SqliteLedger

TURNS = 5
RECORDS = 50_000
LEAST = 20_000.0
"""Records a second and core that are promised."""
T0 = 1_795_312_800_000_000
DRAWS = tuple(
    (f"usd:top/{per}:month|{per}-of-somebody|1793491200", 1_234_567) for per in ("org", "team", "user", "key")
)


def facts(n: int, drawn: bool) -> UsageFacts:
    made = UsageFacts(
        T0 + n * 20, T0 + n * 20 + 900_000, f"a1b2c3d4e5f6{n:08x}", 812, 164, 0, 0, 0, 4_321_000, 210_000, 900_000,
        880_000, 3_921, 2_204,
    )  # fmt: skip
    if drawn:
        made.run_id, made.draws, made.held_nano = "run-7f3a9c", DRAWS, 9_000_000
    return made


LABELS = labels(
    UsageRecord(
        admitted_at=0, ended_at=0, outcome="ok", status=200, org="platform", user="ada", key="ci", agent="builder",
        route="llm", dialect="openai", operation="chat", model_asked="smart", model_answered="gpt-4o-2024-08-06",
        provider="openai", backend="smart/0", stream=True,
    )
)  # fmt: skip


def write(directory: Path, drawn: bool, fsync: str) -> tuple[float, float]:
    """(CPU, elapsed) seconds for RECORDS records."""
    journal = Journal(directory, fsync="off" if fsync == "off" else "group", fsync_interval=0.002)
    journal.open()
    encode = msgspec.json.Encoder().encode
    made = [facts(n, drawn) for n in range(1000)]
    gc.collect()
    began, cpu = time.perf_counter(), time.process_time()
    for n in range(RECORDS):
        journal.write(encode(made[n % 1000])[:-1] + LABELS)
    journal.seal()
    took = time.process_time() - cpu, time.perf_counter() - began
    journal.close()
    return took


def read(directory: Path) -> list[Entry]:
    reader = Reader(directory, next(directory.glob("*.seg")).name[:32], 0, live=False)
    entries: list[Entry] = []
    while some := reader.read(2000):
        entries += some
    return entries


def best(what: Callable[[Path], tuple[float, float]], place: Path) -> tuple[float, float]:
    took = []
    for _ in range(TURNS):
        shutil.rmtree(place, ignore_errors=True)
        took.append(what(place))
    return min(cpu for cpu, _ in took), min(elapsed for _, elapsed in took)


def ask(directory: Path) -> None:
    ledger = SqliteLedger(directory / "l.db")
    ledger.open()
    encode = msgspec.json.Encoder().encode
    users = [
        labels(UsageRecord(admitted_at=0, ended_at=0, outcome="ok", user=f"u{n}", org=f"o{n % 20}", tool=f"t{n % 7}"))
        for n in range(2000)
    ]
    entries = []
    for n in range(200_000):
        one = UsageFacts(T0 + n * 3_600_000_000 // 2000, T0, f"r{n}", 10, 20, cost_nano=n)
        one.run_id = f"run-{n // 50}"
        entries.append(Entry(n + 1, USAGE, encode(one)[:-1] + users[n % 2000]))
    began = time.perf_counter()
    for n in range(0, len(entries), 2000):
        ledger.ship("ab" * 16, entries[n : n + 2000])
    print(f"{'ship 200,000 records of runs to SQLite':46}{(time.perf_counter() - began) / 0.2:8.1f} us a record")
    upto = {"ab" * 16: 150_000}
    since, until = T0 // 10**6, T0 // 10**6 + 101 * 3600
    for name, question in (
        ("by org and day, of 200,000 hourly sums", lambda: ledger.usage(since, until, ("org", "day"))),
        ("ten users that cost most", lambda: ledger.usage(since, until, ("user",), order="cost_nano", top=10)),
        ("by run, of 200,000 records", lambda: ledger.usage(since, until, ("run",))),
        ("one run", lambda: ledger.usage(since, until, ("user",), where=[("run", "run-77")])),
        ("what a user spent, of 200,000 records", lambda: ledger.spent("usd", 0, 1 << 52, {"user": "u7"}, upto)),
    ):
        began = time.perf_counter()
        question()
        print(f"{name:46}{(time.perf_counter() - began) * 1000:8.1f} ms")
    ledger.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gate", action="store_true", help="exit status 1 when a promise is missed")
    parser.add_argument("--directory", type=Path, help="where files are written")
    arguments = parser.parse_args()
    missed = False
    with tempfile.TemporaryDirectory(dir=arguments.directory) as made:
        place = Path(made, "j")
        for drawn in (False, True):
            for fsync in ("off", "group(2ms)"):
                cpu, elapsed = best(lambda where: write(where, drawn, fsync), place)  # noqa: B023
                size = sum(path.stat().st_size for path in place.glob("*.seg")) / RECORDS
                name = f"write, fsync {fsync}{', with draws' if drawn else ''} ({size:.0f} bytes)"
                rate = RECORDS / cpu
                each = f"{cpu / RECORDS * 1e6:8.1f} us CPU  {elapsed / RECORDS * 1e6:6.1f} us"
                print(f"{name:46}{each}  {rate:9,.0f}/s a core")
                missed |= fsync == "off" and rate < LEAST
        began = time.process_time()
        entries = read(place)
        took = time.process_time() - began
        print(f"{'read again':46}{took / len(entries) * 1e6:8.1f} us CPU")
        assert len(segments(place, next(place.glob("*.seg")).name[:32])) >= 1
        ask(Path(made))
    if arguments.gate and missed:
        raise SystemExit(f"fewer than {LEAST:,.0f} records a second and core")


if __name__ == "__main__":
    main()
