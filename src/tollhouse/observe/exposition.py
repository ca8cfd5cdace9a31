"""What was counted, as data, and as the text that scrapers read (Prometheus' and OpenMetrics').

Rule: it is written here and not by prometheus_client, which takes about 10 us a line: two thousand histograms would
stop the event loop for half a second. Its ProcessCollector gives process_*, and its parsers judge our output in the
tests.
"""

import gc
from collections.abc import Iterator
from functools import partial
from typing import Literal

import msgspec
from prometheus_client.process_collector import ProcessCollector

__all__ = ["Dump", "Kind", "Merge", "Row", "Series", "collector", "decode", "encode", "render"]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Kind = Literal["counter", "gauge", "histogram", "info"]
Merge = Literal["sum", "max", "min"]

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


encode = msgspec.msgpack.Encoder().encode
"""A Dump as bytes."""

decode = msgspec.msgpack.Decoder(Dump).decode
"""Raises msgspec.DecodeError for those of another version."""


def collector(worker: str) -> Iterator[Series]:
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


def render(dump: Dump, accept: str, pids: dict[str, int]) -> tuple[str, bytes]:
    """The text, in the format that `accept` (an Accept header) likes best: (content type, body). pids: of those whose
    process_* is shown, by the worker's number, "" for the only one."""
    openmetrics = _likes_openmetrics(accept)
    out: list[str] = []
    families = sorted([*dump.families, *_process(pids)], key=lambda s: s.name)
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
