"""Metrics: plain slots that the hot path adds to, and that are read when somebody scrapes (`exposition`).

Rule: the hot path holds children, never families. A child is one object with one or two numbers; finding it is
the business of whoever caches it. Every family has a bound on its series: what comes after it is counted on one
child whose label values are all "other", and `<namespace>_metrics_overflow_total` says how often.
"""

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

from tollhouse.observe.exposition import Dump, Kind, Merge, Series, collector, decode, encode, render

__all__ = ["OTHER", "Count", "Family", "Gauge", "Metrics", "Spread"]

OTHER = "other"

_GENERATIONS = 8
"""Label sets one name may have had at a time: a reload may change the extra labels."""

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


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
        return render(self._dump(), accept, {self.worker: os.getpid()})

    def count_noted(self) -> None:
        """Count what was noted in all histograms."""
        for sets in self._families.values():
            for family in sets.values():
                if family.kind == "histogram":
                    for spread in family.children.values():
                        spread.count_noted()

    def dump(self) -> bytes:
        """Everything counted up to now, to be merged elsewhere."""
        return encode(self._dump())

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
        families.extend(collector(self.worker))
        return Dump(os.getpid(), self.worker, families)

    def restore(self, dump: bytes) -> None:
        """Go on counting where a dead worker stopped: its counters and histograms are added to ours, once, at start."""
        for series in decode(dump).families:
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
