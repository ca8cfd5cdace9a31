"""Measure the gateway beside nginx, Envoy and other gateways: python bench/run.py (see README.md there).

Rule: one command, on any Linux machine with Python 3.11 to 3.13; it installs what it needs, sends traffic to loopback
only, ends by itself, and leaves nothing running.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import candidates
import install
import machine
import probes
import report
from load import CASES, TRIES, Counted, Failed, Row, rounds

RESULTS = Path(__file__).resolve().parent / "results"
PROBES = ("first", "idle", "change", "gc")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the gateway beside nginx, Envoy and other gateways.")
    parser.add_argument("--rounds", type=int, default=4, help="how often each candidate is started (default 4)")
    parser.add_argument("--turns", type=int, default=6, help="how often it is measured in each round (default 6)")
    known = [*(case.name for case in CASES), *PROBES]
    parser.add_argument("--only", default=",".join(known), help=f"comma-separated, of: {', '.join(known)}")
    parser.add_argument("--candidates", help="comma-separated beginnings of names, like nginx,tollhouse; nginx is kept")
    parser.add_argument("--python", type=Path, metavar="PATH", help="the interpreter that runs the gateway")
    parser.add_argument("--peers", action="store_true", help="measure LiteLLM and Portkey too (unary and streams)")
    parser.add_argument("--gate", action="store_true", help="exit with 1 when a promise is not kept")
    parser.add_argument("--dry", action="store_true", help="print only; write nothing to results/")
    chosen = parser.parse_args()
    chosen.only = [word.strip() for word in chosen.only.split(",") if word.strip()]
    if unknown := sorted(set(chosen.only) - set(known)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    if chosen.rounds < 1 or chosen.turns < 1:
        parser.error("at least one round of one turn")
    if chosen.python is not None:
        found = shutil.which(chosen.python)
        if found is None:
            parser.error(f"no program: {chosen.python}")
        chosen.python = Path(found).absolute()  # not resolved: a link into an environment is that environment
    return chosen


def choose(names: str | None, peers: bool, python: Path | None) -> list[candidates.Candidate]:
    """The candidates of this run, installed."""
    makers: dict[str, Callable[[], candidates.Candidate]] = {
        "nginx": candidates.nginx,
        "envoy": candidates.envoy,
        "tollhouse bare": lambda: candidates.tollhouse("bare", python=python),
        "tollhouse full": lambda: candidates.tollhouse("full", python=python),
        "tollhouse bare, translating": lambda: candidates.translating("bare", python),
        "tollhouse full, translating": lambda: candidates.translating("full", python),
        report.MODELS: lambda: candidates.tollhouse("full", candidates.MODELS, python),
    }
    if peers:
        makers |= {"portkey": candidates.portkey, "litellm": candidates.litellm}
    wanted = tuple(word.strip() for word in names.split(",")) if names else ("",)
    return [make() for name, make in makers.items() if name == "nginx" or name.startswith(wanted)]


def probe(name: str, python: Path | None) -> dict[str, probes.Figures]:
    """One probe, of the candidates it is about."""
    full = candidates.tollhouse("full", python=python)
    own = install.tollhouse(python) / "python"
    if name == "first":
        return {
            "no proxy": probes.first_event(None),
            "nginx": probes.first_event(candidates.nginx()),
            full.name: probes.first_event(full),
        }
    if name == "idle":
        return {proxy.name: probes.idle_streams(proxy) for proxy in (candidates.nginx(), full)}
    if name == "change":
        many = candidates.tollhouse("full", candidates.MODELS, python)
        return {many.name: probes.change(many, own)}
    return {f"tollhouse {kind}": probes.cycles(kind, own) for kind in ("bare", "full")}


def readable(figures: dict[str, object]) -> str:
    """JSON with one line for each measurement."""
    parts = []
    for name, value in figures.items():
        if isinstance(value, list) and value:
            parts.append(f'"{name}": [\n ' + ",\n ".join(json.dumps(one) for one in value) + "\n]")
        else:
            parts.append(f'"{name}": {json.dumps(value, indent=1)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def store(text: str, figures: dict[str, object]) -> Path:
    """results/<date>.json and .md, numbered where the day has some already."""
    day = datetime.now(UTC).date().isoformat()
    path, number = RESULTS / f"{day}.json", 1
    while path.exists():
        number += 1
        path = RESULTS / f"{day}-{number}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(readable(figures))
    path.with_suffix(".md").write_text(f"# Measured on {day}\n\n{text}")
    return path


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended on the way out
    install.system_tools()
    measured = choose(options.candidates, options.peers, options.python)
    python = install.interpreter(install.tollhouse(options.python) / "python")
    described = {**machine.describe(), "python": python}
    versions = candidates.versions(measured)
    machine.raise_file_limit(20_000)
    if machine.PINNED:
        os.sched_setaffinity(0, {machine.LOAD_CORE})
    rows: list[Row] = []
    instructions: list[Counted] = []
    failures: list[Failed] = []
    probed: report.Probes = {}
    for case in CASES:
        if case.name in options.only:
            for found in rounds(case, measured, options.rounds, options.turns):
                if isinstance(found, Failed):
                    failures.append(found)
                    print(f"FAILED: {found.what}: {found.why}", flush=True)
                elif isinstance(found, Counted):
                    instructions.append(found)
                else:
                    rows.append(found)
                    print(f"{case.name} {found.round}/{options.rounds} {report.line(found)}", flush=True)
    for name in PROBES:
        if name in options.only:
            print(f"probe: {name}", flush=True)
            try:
                probed[name] = probe(name, options.python)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                failures.append(Failed(name, str(error)))
                print(f"FAILED: {name}: {error}", flush=True)
    text = report.markdown(described, versions, rows, instructions, probed)
    if failures:
        text += "\nNot measured: " + ", ".join(failure.what for failure in failures) + ".\n"
    print(f"\n{text}")
    if not options.dry:
        settings = {
            "rounds": options.rounds,
            "turns": options.turns,
            "tries": TRIES,
            "connections": {case.name: case.connections for case in CASES},
            "seconds": {case.name: case.turn for case in CASES},
        }
        figures: dict[str, object] = {
            "machine": described,
            "versions": versions,
            "settings": settings,
            "rows": [asdict(row) for row in rows],
            "instructions": [asdict(counted) for counted in instructions],
            "probes": probed,
            "failed": [failure.what for failure in failures],
            "promises": [asdict(promise) for promise in report.promises(rows, probed)],
        }
        print(f"stored: {store(text, figures).relative_to(RESULTS.parent.parent)}")
    missed = options.gate and not all(promise.kept for promise in report.promises(rows, probed))
    return 1 if failures or missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except install.Missing as missing:
        print(missing, file=sys.stderr)
        sys.exit(1)
