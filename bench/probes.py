"""What load cannot show: how late an event leaves, what an open stream and a change of configuration cost, and whether
requests leave cycles behind. Each probe returns its figures by name.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import candidates
import load
import machine
from candidates import MODELS, Candidate, Place
from load import BENCH, CHAT, headers_for, proxy, round_to, upstream
from machine import Program

Figures = dict[str, float | str]

_FIRST_EVENTS = 500
_STREAMS = 10_000
_CHANGES = 10
_WRITTEN = re.compile(rb'"fp_(\d+)"')


def _request(headers: dict[str, str], body: bytes) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _read_until(connection: socket.socket, end: bytes, received: bytes = b"") -> bytes:
    while end not in received:
        received += _receive(connection)
    return received


def _receive(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise RuntimeError("the gateway ended a connection that should go on")
    return data


def _stream_body() -> bytes:
    return (BENCH / "bodies" / "stream.json").read_bytes()


def first_event(candidate: Candidate | None) -> Figures:
    """From the upstream's write of an event to its arrival at the client, on an idle machine; without a candidate:
    with no proxy between."""
    delays = []
    with ExitStack() as stack:
        port = stack.enter_context(upstream("first"))
        headers: dict[str, str] = {}
        if candidate is not None:
            _, place = stack.enter_context(proxy(candidate, "stream", port))
            port, headers = place.port, headers_for(candidate, place)
        request = _request(headers, _stream_body())
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        for turn in range(_FIRST_EVENTS + 20):
            connection.sendall(request)
            received = b""
            while not (written := _WRITTEN.search(received)):
                received += _receive(connection)
            arrived = time.monotonic_ns()
            if turn >= 20:
                delays.append((arrived - int(written[1])) / 1e6)
            _read_until(connection, b"\r\n0\r\n\r\n", received)
    cuts = statistics.quantiles(delays, n=100)
    return {"p50_ms": round_to(cuts[49]), "p99_ms": round_to(cuts[98]), "max_ms": round_to(max(delays))}


def idle_streams(candidate: Candidate) -> Figures:
    """Memory and CPU of many open streams on which nothing happens."""
    limit = machine.raise_file_limit(2 * _STREAMS + 400)
    count = min(_STREAMS, (limit - 400) // 2)
    with upstream("hold") as port, proxy(candidate, "stream", port, files=2 * count + 300) as (program, place):
        headers = headers_for(candidate, place)
        idle = program.rss_mb()
        request = _request(headers, _stream_body())
        streams: list[socket.socket] = []

        def open_streams(number: int) -> None:
            for _ in range(number):
                connection = socket.create_connection(("127.0.0.1", place.port), 20)
                streams.append(connection)
                connection.sendall(request)
                _read_until(connection, b'"hi"')

        try:
            open_streams(100)  # what the first streams make once
            time.sleep(0.5)
            before, began = program.rss_mb(), time.monotonic()
            open_streams(count)
            took = time.monotonic() - began
            time.sleep(1)
            full, cpu = program.rss_mb(), program.cpu_seconds()
            time.sleep(5)
            cpu = program.cpu_seconds() - cpu
        finally:
            for connection in streams:
                connection.close()
        time.sleep(3)
        return {
            "streams": count,
            "kib_each": round_to((full - before) * 1e6 / 1024 / count),
            "rss_mb_idle": round_to(idle),
            "rss_mb_open": round_to(full),
            "rss_mb_after": round_to(program.rss_mb()),
            "idle_cpu_percent": round_to(cpu / 5 * 100),
            "opened_in_s": round_to(took),
        }


def _parse_ms(old: Path, new: Path, environment: dict[str, str], python: Path) -> float:
    """What reading and checking one of two files costs a process that has read the other, with nothing made of it: the
    quickest of several."""
    program = (
        "import os, sys, time\n"
        "from tollhouse.config.parse import load\n"
        "times, previous = [], None\n"
        "for path in sys.argv[1:] * 5:\n"
        "    began = time.perf_counter()\n"
        "    previous = load(path, os.environ, previous)\n"
        "    times.append(time.perf_counter() - began)\n"
        "print(min(times) * 1000)\n"
    )
    done = subprocess.run(
        [*machine.on_core(machine.PROXY_CORE), python, "-c", program, old, new],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def change(candidate: Candidate, python: Path) -> Figures:
    """One of 5,000 models gets another name: from the moment the file is in place to the first answer under it."""
    totals, stalls = [], []
    unary = json.loads((BENCH / "bodies" / "unary.json").read_bytes())
    with upstream("nginx") as port, proxy(candidate, "unary", port) as (_, place):
        headers = headers_for(candidate, place)
        file = place.directory / "tollhouse.yaml"
        line = original = candidates.model(MODELS // 2)
        time.sleep(1)
        for number in range(_CHANGES):
            name = f"changed-{number}"
            changed = original.replace(f"model-{MODELS // 2:04}", name)
            text = file.read_text()
            old = file.with_suffix(".old")
            old.write_text(text)
            text = text.replace(line, changed)
            line = changed
            fresh = file.with_suffix(".new")
            fresh.write_text(text)
            request = _request(headers, json.dumps({**unary, "model": name}).encode())
            with socket.create_connection(("127.0.0.1", place.port), 10) as connection:
                began = time.monotonic()
                fresh.replace(file)
                longest, status = 0.0, b""
                while status != b"200":
                    asked = time.monotonic()
                    connection.sendall(request)
                    status = _answer_status(connection)
                    longest = max(longest, time.monotonic() - asked)
                    if asked - began > 20:
                        raise RuntimeError(f"the change of a model is not live after 20 s: {status!r}")
                    time.sleep(0.001)
                totals.append((time.monotonic() - began) * 1000)
                stalls.append(longest * 1000)
            time.sleep(0.5)
        parse = _parse_ms(old, file, candidates.environment(place), python)
    return {
        "total_ms": round_to(statistics.median(totals)),
        "least_ms": round_to(min(totals)),
        "parse_ms": round_to(parse),
        "on_top_ms": round_to(min(totals) - parse),
        "longest_answer_meanwhile_ms": round_to(max(stalls)),
    }


def _answer_status(connection: socket.socket) -> bytes:
    """Read one answer with a length, and return its status."""
    received = _read_until(connection, b"\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)[1])  # type: ignore[index]  # our own server's
    while len(body) < length:
        body += _receive(connection)
    return head[9:12]


def cycles(kind: str, python: Path) -> Figures:
    """What a garbage collection finds after calls, streams, and clients that left in the middle."""
    with upstream("paced") as port, load.directory() as path:
        place = Place(path, machine.free_port(), port, "stream")
        config = candidates.write_config(place, kind)
        control, report = path / "control", path / "report"
        os.mkfifo(control)
        os.mkfifo(report)
        command = [python, BENCH / "gcprobe.py", config, control, report]
        environment = candidates.environment(place)
        with Program(command, core=machine.PROXY_CORE, log=path / "gateway.log", env=environment) as program:
            program.wait_until_it_listens(place.port)
            with control.open("w") as ask, report.open() as answers:

                def collect() -> tuple[int, str]:
                    time.sleep(0.5)  # what is on its way out goes
                    ask.write("collect\n")
                    ask.flush()
                    count, _, kinds = answers.readline().strip().partition(" ")
                    return int(count), kinds

                acts = {"calls": _calls, "streams": _streams, "disconnects": _disconnects}
                for act in acts.values():
                    act(place)
                collect()  # what starting and the first requests leave behind once
                found = {}
                for name, act in acts.items():
                    act(place)
                    found[name] = collect()
        figures: Figures = {name: count for name, (count, _) in found.items()}
        kinds = sorted({kind for _, kinds in found.values() for kind in kinds.split(", ") if kind})
        return figures | ({"kinds": ", ".join(kinds)} if kinds else {})


_HEADERS = {"Content-Type": "application/json", "Authorization": f"Bearer {candidates.CLIENT_KEY}"}


def _calls(place: Place) -> None:
    request = _request(_HEADERS, (BENCH / "bodies" / "unary.json").read_bytes())
    with socket.create_connection(("127.0.0.1", place.port), 10) as connection:
        for _ in range(500):
            connection.sendall(request)
            _answer_status(connection)


def _streams(place: Place) -> None:
    request = _request(_HEADERS, _stream_body())
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", place.port), 10)) for _ in range(50)]
        for connection in connections:
            connection.sendall(request)
        for connection in connections:
            _read_until(connection, b"\r\n0\r\n\r\n")


def _disconnects(place: Place) -> None:
    """Half leave in the middle of a stream, half before its first event."""
    request = _request(_HEADERS, _stream_body())
    for number in range(100):
        with socket.create_connection(("127.0.0.1", place.port), 10) as connection:
            connection.sendall(request)
            if number % 2:
                _read_until(connection, b"token3")
