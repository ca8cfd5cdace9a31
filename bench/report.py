"""Figures of several rounds made readable: medians, ranges, ratios to nginx of the same round, and what is promised."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from load import CASES, DISTURBED, Row
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
    return f"{row.candidate}: {figures}{errors}"


class Table:
    """The rows of one case by candidate and round."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: dict[str, dict[int, Row]] = {}
        for row in rows:
            self.rows.setdefault(row.candidate, {})[row.round] = row

    def ratios(self, candidate: str, to: str, of: Callable[[Row], float] = lambda row: row.cpu_us) -> list[float]:
        """candidate over `to`, of each round that has both."""
        mine, theirs = self.rows.get(candidate, {}), self.rows.get(to, {})
        return [of(mine[number]) / of(theirs[number]) for number in mine if number in theirs and of(theirs[number])]

    def median(self, candidate: str, of: Callable[[Row], float]) -> float | None:
        rows = self.rows.get(candidate)
        return statistics.median(of(row) for row in rows.values()) if rows else None

    def markdown(self) -> Iterable[str]:
        yield "| | CPU µs per answer | x nginx | answers/s, one core | p50 ms | p99 ms | RSS MB |"
        yield "|---|--:|--:|--:|--:|--:|--:|"
        for name, by_round in self.rows.items():
            rows = list(by_round.values())
            ratio = self.ratios(name, "nginx")
            columns = [
                spread([row.cpu_us for row in rows]),
                spread(ratio) if ratio else "",
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
    """Those that this run has figures for."""
    table = {case.name: Table(row for row in rows if row.case == case.name) for case in CASES}
    found: list[Promise] = []

    def median(text: str, values: Sequence[float], most: float, most_of_one: float | None = None) -> None:
        if values:
            kept = statistics.median(values) <= most and (most_of_one is None or max(values) <= most_of_one)
            found.append(Promise(text, spread(values), kept))

    def figure(text: str, value: float | str | None, most: float, unit: str = "") -> None:
        if isinstance(value, (int, float)):
            found.append(Promise(text, f"{number(value)}{unit}", value <= most))

    unary = table["unary"]
    median("unary, full: at most 3 x nginx, no round over 4", unary.ratios("tollhouse full", "nginx"), 3, 4)
    median("unary, full: at most 1.3 x Envoy", unary.ratios("tollhouse full", "envoy"), 1.3)
    median("unary, bare: at most 2 x nginx", unary.ratios("tollhouse bare", "nginx"), 2)
    median("unary, 5,000 models: at most 1.05 x one model", unary.ratios(MODELS, "tollhouse full"), 1.05)
    one, many = (unary.median(name, lambda row: row.rss_mb) for name in ("tollhouse full", MODELS))
    if one is not None and many is not None:
        figure("5,000 models: under 60 MB more memory", many - one, 60, " MB")
    median("paced stream, full: at most 1.5 x nginx", table["paced"].ratios("tollhouse full", "nginx"), 1.5)
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


def markdown(machine: dict[str, str | int], versions: dict[str, str], rows: Sequence[Row], probes: Probes) -> str:
    """The whole report."""
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['kernel']}; "
        f"Python {machine['python']}; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        f"Pinning: {machine['pinning']}. Median (range) of the rounds; ratios are to nginx of the same round.",
    ]
    if rows:
        taken = [row.others * 100 for row in rows]
        lines.append(
            f"Other programs took {statistics.median(taken):.0f} % of the proxy's core in the median, "
            f"{max(taken):.0f} % at worst."
        )
        if statistics.median(taken) > DISTURBED * 100:
            lines.append("**That is too much: the machine was not quiet, and the ratios below mean little.**")
    for case in CASES:
        table = Table(row for row in rows if row.case == case.name)
        if table.rows:
            count = max(len(by_round) for by_round in table.rows.values())
            lines += ["", f"**{case.title}** ({count} round{'s' if count > 1 else ''})", "", *table.markdown()]
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
