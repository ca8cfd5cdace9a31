"""Metrics: plain slots that the hot path adds to, and an exposition that reads them when it is scraped.

Rule: the hot path holds children, never families. A child is one object with one or two numbers; finding it is
the business of whoever caches it. Every family has a bound on its series: what comes after it is counted on one
child whose label values are all "other", and `<namespace>_metrics_overflow_total` says how often.

The exposition is written here and not by prometheus_client, which takes about 10 us a line: two thousand
histograms would stop the event loop for half a second. Its ProcessCollector gives process_*, and its parsers
judge our output in the tests.

Several workers: each one writes what it has counted to a file (`Share`), any of them can serve the sum of all, and
a new worker starts from the numbers of the dead one whose place it takes, so that no sum ever goes back.
"""

import gc
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Generic, Literal, TypeVar

import msgspec
from prometheus_client.process_collector import ProcessCollector

__all__ = ["OTHER", "Count", "Family", "Gauge", "Metrics", "Share", "Spread"]

OTHER = "other"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_GENERATIONS = 8
"""Label sets one name may have had at a time: a reload may change the extra labels."""

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

Kind = Literal["counter", "gauge", "histogram", "info"]
Merge = Literal["sum", "max", "min"]


class Count:
    """A number that only grows. `base` is what earlier holders of this worker's place had counted."""

    __slots__ = ("base", "read", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.base = 0.0
        self.read: Callable[[], float] | None = None

    def inc(self, n: float = 1) -> None:
        self.value += n

    def get(self) -> float:
        return self.base + (self.value if self.read is None else self.read())


class Gauge:
    """A number that goes up and down."""

    __slots__ = ("read", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.read: Callable[[], float] | None = None

    def set(self, x: float) -> None:
        self.value = x

    def inc(self, n: float = 1) -> None:
        self.value += n

    def dec(self, n: float = 1) -> None:
        self.value -= n

    def get(self) -> float:
        return self.value if self.read is None else self.read()


class Spread:
    """A histogram: how many observations fell at or under each bound, and their sum.

    note: `observe` for the hot path, a sixth of its cost: what is noted is counted when somebody looks, many values at
    a time. Whoever uses it calls `Metrics.count_noted` now and then, which bounds what waits.
    """

    __slots__ = ("_noted", "bounds", "counts", "note", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._noted: list[float] = []
        self.note: Callable[[float], None] = self._noted.append

    def observe(self, x: float) -> None:
        self.counts[bisect_left(self.bounds, x)] += 1
        self.sum += x

    def count_noted(self) -> None:
        """Count what was noted."""
        noted = self._noted
        n = len(noted)
        if not n:
            return
        values = sorted(noted[:n])
        del noted[:n]  # what another thread noted meanwhile stays
        self.sum += sum(values)
        counts, below = self.counts, 0
        for at, bound in enumerate(self.bounds):
            upto = bisect_right(values, bound, below)
            counts[at] += upto - below
            below = upto
        counts[-1] += n - below


C = TypeVar("C", bound=Count | Gauge | Spread)


class Family(Generic[C]):
    """All series of one name with one set of labels. Made by `Metrics.counter`, `gauge`, `histogram`."""

    __slots__ = ("_make", "_overflow", "bounds", "children", "doc", "kind", "labels", "limit", "merge", "name")

    def __init__(
        self,
        name: str,
        doc: str,
        kind: Kind,
        labels: tuple[str, ...],
        make: Callable[[], C],
        *,
        bounds: tuple[float, ...] = (),
        merge: Merge = "sum",
        limit: int,
        overflow: Count,
    ) -> None:
        self.name = name
        self.doc = doc
        self.kind: Kind = kind
        self.labels = labels
        self.bounds = bounds
        self.merge: Merge = merge
        self.limit = limit
        self.children: dict[tuple[str, ...], C] = {}
        self._make: Callable[[], C] = make
        self._overflow = overflow

    def child(self, *values: str) -> C:
        """The series with these label values, in the order of `labels`; always the same object for the same values.

        Above the family's bound it is the one series of "other". Raises ValueError when the number of values is wrong.
        """
        child = self.children.get(values)
        if child is None:
            if len(values) != len(self.labels):
                raise ValueError(f"{self.name} has the labels {self.labels}, but {len(values)} values were given")
            if len(self.children) >= self.limit:
                self._overflow.inc()
                values = (OTHER,) * len(values)
                child = self.children.get(values)
                if child is not None:
                    return child
            child = self.children[values] = self._make()
        return child

    def reads(self, read: Callable[[], float], *values: str) -> None:
        """Let this series be whatever `read` says when it is scraped (counters and gauges). It must not block."""
        child = self.child(*values)
        if isinstance(child, Spread):
            raise ValueError(f"{self.name} is a histogram: it cannot be read from a function")
        child.read = read


Row = tuple[tuple[str, ...], float, list[int]]


class Series(msgspec.Struct, array_like=True):
    """One family in a dump: everything needed to show it where it was never declared. A row is the label values and
    the value, or (histograms) counts and sum."""

    name: str
    doc: str
    kind: Kind
    labels: tuple[str, ...]
    bounds: tuple[float, ...]
    merge: Merge
    rows: list[Row]


class Dump(msgspec.Struct, array_like=True):
    """What one worker has counted."""

    pid: int
    worker: str
    families: list[Series]


class Metrics:
    """All families of one process.

    namespace: put before every name. names: full names that are something else under this namespace (`families.SEED`).
    worker: this worker's number where there are several; it becomes a label of process_* and python_gc_*. limit: series
    a family may have.
    """

    def __init__(
        self, namespace: str = "tollhouse", *, names: dict[str, str] | None = None, worker: str = "", limit: int = 2000
    ) -> None:
        if not _NAME.fullmatch(namespace):
            raise ValueError(f"not a metrics namespace: {namespace!r}; use letters, digits and underscores")
        self.namespace = namespace
        self.names = names or {}
        self.worker = worker
        self.limit = limit
        self._families: dict[str, dict[tuple[str, ...], Family[Any]]] = {}
        self._spare = Count()
        overflow = self.counter(
            "metrics_overflow_total", "Lookups of a series that came after its family was full and went to `other`."
        )
        overflow.children[()] = self._spare

    def counter(self, name: str, doc: str, labels: Iterable[str] = (), *, limit: int | None = None) -> Family[Count]:
        """A family of counters; shown under exactly this name, with `_total` or without."""
        return self._declare(name, doc, "counter", tuple(labels), Count, (), "sum", limit)

    def gauge(
        self, name: str, doc: str, labels: Iterable[str] = (), *, merge: Merge = "sum", limit: int | None = None
    ) -> Family[Gauge]:
        """merge: what the gauges of several workers with the same labels become."""
        return self._declare(name, doc, "gauge", tuple(labels), Gauge, (), merge, limit)

    def histogram(
        self, name: str, doc: str, labels: Iterable[str], buckets: Iterable[float], *, limit: int | None = None
    ) -> Family[Spread]:
        """buckets: upper bounds, rising, without infinity."""
        bounds = tuple(map(float, buckets))
        if list(bounds) != sorted(set(bounds)) or not bounds:
            raise ValueError(f"{name}: the buckets must rise")
        return self._declare(name, doc, "histogram", tuple(labels), partial(Spread, bounds), bounds, "sum", limit)

    def info(self, name: str, doc: str, labels: dict[str, str]) -> None:
        """A constant 1 whose labels say something; `name` ends with `_info`."""
        child = self._declare(name, doc, "info", tuple(labels), Gauge, (), "max", None).child(*labels.values())
        child.set(1)

    def _declare(
        self,
        name: str,
        doc: str,
        kind: Kind,
        labels: tuple[str, ...],
        make: Callable[[], C],
        bounds: tuple[float, ...],
        merge: Merge,
        limit: int | None,
    ) -> Family[C]:
        full = self.names.get(name) or f"{self.namespace}_{name}"
        return self._family(Series(full, doc, kind, labels, bounds, merge, []), make, limit)

    def _family(self, series: Series, make: Callable[[], C], limit: int | None = None) -> Family[C]:
        name, labels = series.name, series.labels
        for word in (name, *labels):
            if not _NAME.fullmatch(word) or word.startswith("__") or word == "le":
                raise ValueError(f"not a metric or label name: {word!r}")
        if len(set(labels)) != len(labels):
            raise ValueError(f"{name}: a label is named twice in {labels}")
        sets = self._families.setdefault(name, {})
        for other in sets.values():
            if other.kind != series.kind or other.bounds != series.bounds:
                raise ValueError(f"{name} is already a {other.kind} with the bounds {other.bounds}")
        family = sets.get(labels)
        if family is None:
            if len(sets) >= _GENERATIONS:
                del sets[next(iter(sets))]
            family = sets[labels] = Family(
                name,
                series.doc,
                series.kind,
                labels,
                make,
                bounds=series.bounds,
                merge=series.merge,
                limit=limit or self.limit,
                overflow=self._spare,
            )
            if not labels:
                family.child()  # its one series is there from the start, at 0
        return family

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """The exposition, in the format that `accept` (an Accept header) likes best: (content type, body)."""
        return _render(self._dump(), accept, _process({self.worker: os.getpid()}))

    def count_noted(self) -> None:
        """Count what was noted in all histograms."""
        for sets in self._families.values():
            for family in sets.values():
                if family.kind == "histogram":
                    for spread in family.children.values():
                        spread.count_noted()

    def dump(self) -> bytes:
        """Everything counted up to now, to be merged elsewhere."""
        return _PACK.encode(self._dump())

    def _dump(self) -> Dump:
        families = []
        # `list(...)` takes each table in one step, so that another thread may scrape.
        for sets in list(self._families.values()):
            for f in list(sets.values()):
                if f.kind == "histogram":
                    for spread in list(f.children.values()):
                        spread.count_noted()
                    rows = [(v, c.sum, c.counts[:]) for v, c in list(f.children.items())]
                else:
                    rows = [(v, c.get(), []) for v, c in list(f.children.items())]
                if rows:
                    families.append(Series(f.name, f.doc, f.kind, f.labels, f.bounds, f.merge, rows))
        families.extend(_collector(self.worker))
        return Dump(os.getpid(), self.worker, families)

    def restore(self, dump: bytes) -> None:
        """Go on counting where a dead worker stopped: its counters and histograms are added to ours, once, at start."""
        for series in _UNPACK.decode(dump).families:
            if series.kind not in ("counter", "histogram") or "worker" in series.labels:
                continue
            if series.name.startswith(("process_", "python_gc_")):
                continue
            if series.kind == "histogram":
                spread = self._family(series, partial(Spread, series.bounds))
                for values, total, counts in series.rows:
                    into = spread.child(*values)
                    into.sum += total
                    into.counts[:] = map(sum, zip(into.counts, counts, strict=True))
            else:
                count = self._family(series, Count)
                for values, total, _ in series.rows:
                    count.child(*values).base += total


_PACK = msgspec.msgpack.Encoder()
_UNPACK = msgspec.msgpack.Decoder(Dump)


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
            dump = _UNPACK.decode(path.read_bytes())
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
    return _render(Dump(0, "", families), accept, _process(pids))


_MERGE: dict[str, Callable[[tuple[float, float]], float]] = {"sum": sum, "max": max, "min": min}


def _collector(worker: str) -> Iterator[Series]:
    """The cycle collector's counters, under the names of the client library."""
    stats = gc.get_stats()
    labels = ("generation", "worker") if worker else ("generation",)
    for name, doc, key in (
        ("python_gc_objects_collected_total", "Objects collected during gc.", "collected"),
        ("python_gc_objects_uncollectable_total", "Uncollectable objects found during gc.", "uncollectable"),
        ("python_gc_collections_total", "Number of times this generation was collected.", "collections"),
    ):
        rows: list[Row] = [((str(n), worker) if worker else (str(n),), float(g[key]), []) for n, g in enumerate(stats)]
        yield Series(name, doc, "counter", labels, (), "sum", rows)


def _process(pids: dict[str, int]) -> list[Series]:
    """process_* of each worker; without the label when there is one process without a number."""
    found: dict[str, Series] = {}
    for worker, pid in pids.items():
        for metric in ProcessCollector(registry=None, pid=partial(int, pid)).collect():
            kind: Kind = "counter" if metric.type == "counter" else "gauge"
            name = metric.name + ("_total" if kind == "counter" else "")
            series = found.get(name)
            if series is None:
                labels = ("worker",) if worker else ()
                series = found[name] = Series(name, metric.documentation, kind, labels, (), "sum", [])
            series.rows.extend(((worker,) if worker else (), s.value, []) for s in metric.samples)
    return list(found.values())


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(x: float) -> str:
    if -1e15 < x < 1e15 and x == int(x):
        return str(int(x))
    text = repr(float(x))
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(text, text)


def _render(dump: Dump, accept: str, more: list[Series]) -> tuple[str, bytes]:
    openmetrics = _likes_openmetrics(accept)
    out: list[str] = []
    families = sorted([*dump.families, *more], key=lambda s: s.name)
    last = ""
    for series in families:
        if series.name != last:
            last = series.name
            out.extend(_preamble(series, openmetrics))
        _samples(series, out)
    if openmetrics:
        out.append("# EOF\n")
    return OPENMETRICS if openmetrics else TEXT, "".join(out).encode()


def _preamble(series: Series, openmetrics: bool) -> Iterator[str]:
    name, kind = series.name, str(series.kind)
    doc = series.doc.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        doc = doc.replace('"', r"\"")
        if kind == "counter":
            # A counter's sample must end with _total there; one that may not is of unknown type, under its own name.
            kind = "counter" if name.endswith("_total") else "unknown"
            name = name.removesuffix("_total")
        elif kind == "info":
            name = name.removesuffix("_info")
    elif kind == "info":
        kind = "gauge"
    yield f"# HELP {name} {doc}\n"
    yield f"# TYPE {name} {kind}\n"


def _samples(series: Series, out: list[str]) -> None:
    name, add = series.name, out.append
    labels = series.labels
    if series.kind != "histogram":
        for values, value, _ in series.rows:
            head = ",".join([f'{n}="{_escape(v)}"' for n, v in zip(labels, values, strict=True)])
            add(f"{name}{{{head}}} {_number(value)}\n" if head else f"{name} {_number(value)}\n")
        return
    bounds = [*map(repr, series.bounds), "+Inf"]  # OpenMetrics wants 1.0 and not 1
    for values, total, counts in series.rows:
        head = ",".join([f'{n}="{_escape(v)}"' for n, v in zip(labels, values, strict=True)])
        comma = "," if head else ""
        start = f'{name}_bucket{{{head}{comma}le="'
        n = 0
        for bound, count in zip(bounds, counts, strict=True):
            n += count
            add(f'{start}{bound}"}} {n}\n')
        tail = f"{{{head}}}" if head else ""
        add(f"{name}_count{tail} {n}\n{name}_sum{tail} {_number(total)}\n")


def _likes_openmetrics(accept: str) -> bool:
    """RFC 9110 section 12.5.1, for the two types there are. Equal weights: OpenMetrics, the more exact one."""
    best = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for item in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        if kind not in best:
            continue
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        best[kind] = max(best[kind], weight)
    return best["application/openmetrics-text"] > 0 and best["application/openmetrics-text"] >= best["text/plain"]
