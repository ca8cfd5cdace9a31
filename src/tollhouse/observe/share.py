"""Metrics of several workers.

Rule: each one writes what it has counted to a file, any of them can serve the sum of all, and a new worker starts from
the numbers of the dead one whose place it takes, so that no sum ever goes back.
"""

from collections.abc import Callable
from pathlib import Path
from time import monotonic

import msgspec

from tollhouse.observe.exposition import Dump, Row, Series, decode, render
from tollhouse.observe.metrics import Metrics

__all__ = ["Share", "merged"]


class Share:
    """The numbers of several workers as one: a file for each worker's place in `directory`.

    Only what is in the files is ever shown, the own file being written before each scrape: a counter that was once
    seen is still there after a crash. `turn` writes at most once a period, so other workers' numbers are at most that
    old. The supervisor empties the directory before it starts workers.
    """

    def __init__(self, directory: Path, metrics: Metrics, *, period: float = 1.0) -> None:
        if not metrics.worker:
            raise ValueError("shared metrics need the worker's number")
        self._directory = directory
        self._metrics = metrics
        self._period = period
        self._due = 0.0
        self._path = directory / f"{metrics.worker}.metrics"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            before = self._path.read_bytes()
        except FileNotFoundError:
            return
        try:
            metrics.restore(before)
        except (msgspec.DecodeError, ValueError):
            # Of another version of this program, whose numbers do not go on.
            self._path.unlink(missing_ok=True)

    @staticmethod
    def clear(directory: Path) -> None:
        """Forget all workers (the supervisor, at its start)."""
        for path in directory.glob("*.metrics*"):
            path.unlink(missing_ok=True)

    def turn(self) -> None:
        """For `Clock.every_turn`."""
        now = monotonic()
        if now >= self._due:
            self._due = now + self._period
            try:
                self.flush()
            except OSError:
                pass  # the next period tries again, and a scrape of this worker says what is wrong

    def flush(self) -> None:
        """Write this worker's file, whole or not at all. Raises OSError."""
        fresh = self._path.with_suffix(".metrics~")
        fresh.write_bytes(self._metrics.dump())
        fresh.replace(self._path)

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """The sum of all workers: (content type, body)."""
        self.flush()
        return merged(self._directory, accept)


def merged(directory: Path, accept: str = "") -> tuple[str, bytes]:
    """The sum of all workers that wrote to `directory`; for the supervisor, or any worker: (content type, body)."""
    total: dict[tuple[str, tuple[str, ...]], Series] = {}
    rows: dict[tuple[str, tuple[str, ...]], dict[tuple[str, ...], Row]] = {}
    pids: dict[str, int] = {}
    for path in sorted(directory.glob("*.metrics")):
        try:
            dump = decode(path.read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            continue
        pids[dump.worker] = dump.pid
        for series in dump.families:
            key = (series.name, series.labels)
            total.setdefault(key, series)
            table = rows.setdefault(key, {})
            for row in series.rows:
                have = table.get(row[0])
                if have is None:
                    table[row[0]] = row
                elif len(have[2]) == len(row[2]):
                    counts = [*map(sum, zip(have[2], row[2], strict=True))]
                    table[row[0]] = (row[0], _MERGE[series.merge]((have[1], row[1])), counts)
    families = [
        Series(s.name, s.doc, s.kind, s.labels, s.bounds, s.merge, list(rows[key].values())) for key, s in total.items()
    ]
    return render(Dump(0, "", families), accept, pids)


_MERGE: dict[str, Callable[[tuple[float, float]], float]] = {"sum": sum, "max": max, "min": min}
