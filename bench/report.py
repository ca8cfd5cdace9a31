"""Figures of several rounds made readable: medians, ranges, ratios to nginx of the same round, and what is promised.

Rule: CPU times are compared only where the cores were equally far apart; there may be two such distances in one run.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from load import CASES, DISTURBED, MOVED, Case, Counted, Row
from probes import Figures

Probes = dict[str, dict[str, Figures]]

MODELS = "tollhouse full, 5,000 models"


def number(value: float) -> str:
    """Three digits are enough to read."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))}-{number(max(values))})"


def line(row: Row) -> str:
    """One measurement, as it is printed while the run goes on."""
    errors = f", {row.errors} ERRORS" if row.errors else ""
    figures = f"{row.cpu_us:g} µs, {row.per_second:g}/s, p99 {row.p99_ms:g} ms, {row.rss_mb:g} MB"
    away = "moved" if row.moved else f"{row.trip_ns[0]:.0f} ns"
    return f"{row.candidate}: {figures}, cores {away}{errors}"


class Distances:
    """How far the proxy's core was from that of the load: one distance all the time, or near in some turns and far in
    others, which then are figures of two machines."""

    def __init__(self, rows: Iterable[Row]) -> None:
        trips = sorted(trip for row in rows if not row.moved for trip in row.trip_ns)
        self.trips: dict[str, float] = {}
        if not trips:
            self._border = math.inf
            return
        low, high = (trips[round(part * (len(trips) - 1))] for part in (0.05, 0.95))
        two = high > MOVED * low
        self._border = math.sqrt(low * high) if two else math.inf
        sides = {"near": [t for t in trips if t <= self._border], "far": [t for t in trips if t > self._border]}
        if two:
            self.trips = {name: statistics.median(side) for name, side in sides.items()}
        else:
            self.trips = {"": statistics.median(trips)}

    def of(self, row: Row) -> str | None:
        """The distance during one turn; None when it changed meanwhile."""
        if row.moved:
            return None
        if "" in self.trips:
            return ""
        sides = {trip > self._border for trip in row.trip_ns}
        return None if len(sides) > 1 else "far" if True in sides else "near"

    def describe(self) -> str:
        if not any(self.trips.values()):
            return ""
        if "" in self.trips:
            return f"A round trip from core to core took {self.trips['']:.0f} ns."
        near, far = self.trips["near"], self.trips["far"]
        return (
            f"The two cores were near in some turns and far in others: a round trip took {near:.0f} or {far:.0f} ns. "
            "Each turn is compared with those at its own distance."
        )


class Table:
    """What was found in one case: turns by candidate, and instructions."""

    def __init__(self, case: Case, rows: Iterable[Row], counted: Iterable[Counted], distances: Distances) -> None:
        self.rows: dict[str, list[Row]] = {}
        for row in rows:
            if row.case == case.name:
                self.rows.setdefault(row.candidate, []).append(row)
        self._counted: dict[str, dict[int, Counted]] = {}
        for one in counted:
            if one.case == case.name:
                self._counted.setdefault(one.candidate, {})[one.round] = one
        self._distances = distances

    def cpu(self, candidate: str, distance: str) -> dict[int, float]:
        """The median CPU time per answer at that distance, of each round that has some."""
        turns: dict[int, list[float]] = {}
        for row in self.rows.get(candidate, ()):
            if self._distances.of(row) == distance:
                turns.setdefault(row.round, []).append(row.cpu_us)
        return {number: statistics.median(found) for number, found in turns.items()}

    def ratios(self, candidate: str, to: str) -> dict[str, list[float]]:
        """CPU time of `candidate` over that of `to`, by distance, of each round that has both."""
        found = {}
        for distance in self._distances.trips:
            mine, theirs = self.cpu(candidate, distance), self.cpu(to, distance)
            if both := [mine[number] / theirs[number] for number in mine if theirs.get(number)]:
                found[distance] = both
        return found

    def median(self, candidate: str, of: Callable[[Row], float]) -> float | None:
        rows = self.rows.get(candidate)
        return statistics.median(of(row) for row in rows) if rows else None

    def instructions(self, candidate: str) -> tuple[str, str]:
        """Thousands per answer in user mode and in the kernel, and the ratio to nginx."""
        mine, theirs = self._counted.get(candidate, {}), self._counted.get("nginx", {})
        if not mine:
            return "", ""
        user = statistics.median(one.user for one in mine.values()) / 1000
        kernel = statistics.median(one.kernel for one in mine.values()) / 1000
        ratios = [one.both / theirs[at].both for at, one in mine.items() if at in theirs and theirs[at].both]
        return f"{number(user)} + {number(kernel)}", spread(ratios) if ratios else ""

    def markdown(self) -> Iterable[str]:
        distances = list(self._distances.trips)
        heads = [f"{head}{', ' if at else ''}{at}" for at in distances for head in ("CPU µs per answer", "x nginx")]
        heads += [
            "1,000 instructions, user + kernel",
            "x nginx",
            "core full",
            "answers/s",
            "p50 ms",
            "p99 ms",
            "RSS MB",
        ]
        yield f"| | {' | '.join(heads)} |"
        yield "|---" + "|--:" * len(heads) + "|"
        for name, rows in self.rows.items():
            columns: list[str] = []
            ratios = self.ratios(name, "nginx")
            for distance in distances:
                cpu = list(self.cpu(name, distance).values())
                columns.append(spread(cpu) if cpu else "")
                columns.append(spread(ratios[distance]) if distance in ratios else "")
            columns += [
                *self.instructions(name),
                f"{statistics.median(row.full for row in rows):.0%}",
                spread([row.per_second for row in rows]),
                spread([row.p50_ms for row in rows]),
                spread([row.p99_ms for row in rows]),
                number(max(row.rss_mb for row in rows)),
            ]
            wrong = sum(row.errors for row in rows)
            yield f"| {name}{f' **{wrong} errors**' if wrong else ''} | {' | '.join(columns)} |"


@dataclass(frozen=True)
class Promise:
    """What the project says of itself, and what this run found."""

    text: str
    found: str
    kept: bool


def promises(rows: Sequence[Row], probes: Probes) -> list[Promise]:
    """Those that this run has figures for. What is promised of a ratio holds at each distance."""
    distances = Distances(rows)
    table = {case.name: Table(case, rows, (), distances) for case in CASES}
    found: list[Promise] = []

    def ratio(text: str, values: dict[str, list[float]], most: float, most_of_one: float = math.inf) -> None:
        if values:
            parts = [f"{distance} {spread(of)}".strip() for distance, of in values.items()]
            kept = all(statistics.median(of) <= most and max(of) <= most_of_one for of in values.values())
            found.append(Promise(text, ", ".join(parts), kept))

    def figure(text: str, value: float | str | None, most: float, unit: str = "") -> None:
        if isinstance(value, (int, float)):
            found.append(Promise(text, f"{number(value)}{unit}", value <= most))

    unary = table["unary"]
    ratio("unary, full: at most 3 x nginx, no round over 4", unary.ratios("tollhouse full", "nginx"), 3, 4)
    ratio("unary, full: at most 1.3 x Envoy", unary.ratios("tollhouse full", "envoy"), 1.3)
    ratio("unary, bare: at most 2 x nginx", unary.ratios("tollhouse bare", "nginx"), 2)
    ratio("unary, 5,000 models: at most 1.05 x one model", unary.ratios(MODELS, "tollhouse full"), 1.05)
    one, many = (unary.median(name, lambda row: row.rss_mb) for name in ("tollhouse full", MODELS))
    if one is not None and many is not None:
        figure("5,000 models: under 60 MB more memory", many - one, 60, " MB")
    ratio("paced stream, full: at most 1.5 x nginx", table["paced"].ratios("tollhouse full", "nginx"), 1.5)
    for kind in ("bare", "full"):
        ratio(
            f"translated from OpenAI's form to Anthropic's, {kind}: at most 2.5 x passed on",
            table["translate"].ratios(f"tollhouse {kind}, translating", f"tollhouse {kind}"),
            2.5,
        )
    figure(
        "MCP tools/call, full: at most 120 µs",
        table["mcp"].median("tollhouse full", lambda row: row.cpu_us),
        120,
        " µs",
    )

    def probed(name: str, key: str, candidate: str = "tollhouse full") -> float | str | None:
        return probes.get(name, {}).get(candidate, {}).get(key)

    figure("first event: leaves within 1 ms at p99", probed("first", "p99_ms"), 1, " ms")
    figure("an idle stream: at most 25 KiB", probed("idle", "kib_each"), 25, " KiB")
    figure("one idle worker: under 80 MB", probed("idle", "rss_mb_idle"), 80, " MB")
    on_top = probed("change", "on_top_ms", MODELS)
    if isinstance(on_top, float) and on_top < 0:
        on_top = None  # parsing was disturbed, and nothing follows from it
    figure(
        "a change among 5,000 models: live within 30 ms on top of parsing",
        on_top,
        30,
        " ms",
    )
    for name in probes.get("gc", {}):
        found_by_gc = [value for value in probes["gc"][name].values() if isinstance(value, (int, float))]
        figure(f"{name}: nothing for the garbage collector", sum(found_by_gc), 0)
    return found


_PROBES = {
    "first": "From the upstream's write of an event to its arrival, idle machine",
    "idle": "Open streams on which nothing happens",
    "change": "A change of one model among 5,000",
    "gc": "Objects that a garbage collection finds",
}


def markdown(
    machine: dict[str, str | int],
    versions: dict[str, str],
    rows: Sequence[Row],
    counted: Sequence[Counted],
    probes: Probes,
) -> str:
    """The whole report."""
    distances = Distances(rows)
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['kernel']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        f"The gateway ran on {machine['python']}.",
        f"Pinning: {machine['pinning']}. Median (range) of the rounds; ratios are to nginx of the same round.",
    ]
    if said := distances.describe():
        lines.append(said)
    if any(distances.trips.values()):
        taken = [row.others * 100 for row in rows]
        moved = sum(distances.of(row) is None for row in rows)
        lines.append(
            f"Other programs took {statistics.median(taken):.0f} % of the proxy's core in the median, "
            f"{max(taken):.0f} % at worst. In {moved} of {len(rows)} turns the cores changed their distance: their CPU "
            "time does not count."
        )
        if statistics.median(taken) > DISTURBED * 100:
            lines.append("**That is too much: the machine was not quiet, and the ratios below mean little.**")
    for case in CASES:
        table = Table(case, rows, counted, distances)
        if table.rows:
            of_case = [row for of_one in table.rows.values() for row in of_one]
            count, turns = max(row.round for row in of_case), max(row.turn for row in of_case)
            size = f"{case.connections} connections; rounds: {count}, turns of {case.turn} s in each: {turns}"
            lines += ["", f"**{case.title}** ({size})", "", *table.markdown()]
    for name, title in _PROBES.items():
        if figures := probes.get(name):
            keys = list(dict.fromkeys(key for of_one in figures.values() for key in of_one))
            lines += ["", f"**{title}**", "", f"| | {' | '.join(key.replace('_', ' ') for key in keys)} |"]
            lines.append("|---" + "|--:" * len(keys) + "|")
            for candidate, of_one in figures.items():
                values = [of_one.get(key, "") for key in keys]
                cells = [number(value) if isinstance(value, float) else str(value) for value in values]
                lines.append(f"| {candidate} | {' | '.join(cells)} |")
    promised = promises(rows, probes)
    if promised:
        lines += ["", "| promise | measured | |", "|---|--:|---|"]
        lines += [
            f"| {promise.text} | {promise.found} | {'kept' if promise.kept else '**missed**'} |" for promise in promised
        ]
    return "\n".join(lines) + "\n"
