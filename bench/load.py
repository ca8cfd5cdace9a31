"""Load on a proxy and what it costs: one measurement of one candidate, and the figures of several rounds of them.

Rule: what is compared was measured in turns of a second or two, in the same round, with the cores equally far apart.
"""

import http.client
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import counters
import install
import machine
from candidates import CLIENT_KEY, Candidate, Place, Traffic
from machine import LOAD_CORE, PROXY_CORE, Program, free_port

BENCH = Path(__file__).resolve().parent
WARM_UP_SECONDS = 1
DISTURBED = 0.1
MOVED = 1.5
TRIES = 3
CHAT = "/v1/chat/completions"
SESSION = "Mcp-Session-Id"


@dataclass(frozen=True)
class Case:
    """A kind of load. upstream: a mode of upstream.py, or nginx. whole: what each whole answer holds. turn: seconds
    that one candidate is loaded before the next one is."""

    name: str
    title: str
    traffic: Traffic
    upstream: str
    body: str
    whole: tuple[bytes, ...]
    path: str = CHAT
    connections: int = 32
    turn: int = 1
    slow: bool = False  # an answer takes long enough that those cut off at the end count: by their bytes


STREAM = (b"token0", b"token48", b'"total_tokens"', b"[DONE]")
CASES = (
    Case("unary", "Unary call, 1.1 KB in, 0.7 KB out", "unary", "nginx", "unary.json", (b'"total_tokens"',)),
    Case(
        *("paced", "Stream of 50 events, 5 ms apart", "stream", "paced", "stream.json", STREAM),
        connections=160,
        turn=2,
        slow=True,
    ),
    Case("burst", "Stream of 50 events at once", "stream", "burst", "stream.json", STREAM),
    Case(
        *("translate", "Unary call in OpenAI's form, passed on and translated", "translate", "nginx", "unary.json"),
        (b'"total_tokens"',),
    ),
    Case("mcp", "MCP tools/call", "mcp", "mcp", "mcp.json", (b'"42"',), "/mcp"),
)


@dataclass(frozen=True)
class Row:
    """One turn of one candidate. cpu_us: the proxy's CPU time per answer. full: the part of its core that it took;
    others: that others took. trip_ns: a round trip between the cores, before and after."""

    case: str
    round: int
    turn: int
    candidate: str
    answers: float
    errors: int
    cpu_us: float
    per_second: float
    p50_ms: float
    p99_ms: float
    rss_mb: float
    full: float
    others: float
    trip_ns: tuple[float, float]

    @property
    def moved(self) -> bool:
        """The cores came nearer to each other, or went apart, meanwhile."""
        return max(self.trip_ns) > MOVED * min(self.trip_ns)


@dataclass(frozen=True)
class Counted:
    """Instructions that a candidate executed for one answer, in user mode and in the kernel; of turns not timed."""

    case: str
    round: int
    candidate: str
    user: float
    kernel: float

    @property
    def both(self) -> float:
        return self.user + self.kernel


@dataclass(frozen=True)
class Failed:
    """A measurement that could not be made. The others go on."""

    what: str
    why: str


@contextmanager
def directory() -> Iterator[Path]:
    """A directory on disk, inside the clone, for one run of one program."""
    install.CACHE.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="run-", dir=install.CACHE))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def upstream(mode: str) -> Iterator[int]:
    """The port of a running upstream."""
    with directory() as path:
        port = free_port()
        if mode == "nginx":
            config = Place(path, port, 0, "unary").render("upstream.conf")
            command: list[str | Path] = ["nginx", "-p", path, "-c", config]
        else:
            command = [install.tollhouse() / "python", BENCH / "upstream.py", mode, str(port)]
        with Program(command, core=LOAD_CORE, log=path / "upstream.log") as program:
            program.wait_until_it_listens(port)
            yield port


@contextmanager
def proxy(
    candidate: Candidate, traffic: Traffic, upstream_port: int, files: int = 4096
) -> Iterator[tuple[Program, Place]]:
    """A freshly started candidate in front of an upstream."""
    with directory() as path:
        place = Place(path, free_port(), upstream_port, traffic, files)
        with candidate.start(place) as program:
            program.wait_until_it_listens(place.port, 120)
            yield program, place


def call(port: int, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection of its own: status, headers in lower case, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def raw_call(port: int, path: str, headers: dict[str, str], body: bytes) -> tuple[int, int, bytes]:
    """One request on a connection of its own: status, bytes received, and these bytes (chunked or not)."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(received[9:12] or 0), len(received), received


def headers_for(candidate: Candidate, place: Place) -> dict[str, str]:
    """What each request carries. For MCP a session is opened first."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {CLIENT_KEY}", **candidate.headers(place)}
    if place.traffic == "mcp":
        headers["Accept"] = "application/json, text/event-stream"
        hello = {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "bench", "version": "1"},
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
        status, answered, body = call(place.port, "/mcp", headers, json.dumps(message).encode())
        if status != 200 or SESSION.lower() not in answered:
            raise RuntimeError(f"{candidate.name}: no MCP session: {status} {body[:500]!r}")
        headers[SESSION] = answered[SESSION.lower()]
        headers["MCP-Protocol-Version"] = "2025-11-25"
        call(place.port, "/mcp", headers, b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
    return headers


def verify(candidate: Candidate, case: Case, place: Place, headers: dict[str, str]) -> int:
    """One request answered whole, before anything is measured: its bytes on the wire. Raises RuntimeError."""
    body = (BENCH / "bodies" / case.body).read_bytes().replace(b"@ID@", b"7")
    end = time.monotonic() + 20  # a candidate may still be getting ready
    while True:
        status, size, answer = raw_call(place.port, case.path, headers, body)
        if status == 200 and all(part in answer for part in case.whole):
            return size
        if time.monotonic() > end:
            raise RuntimeError(f"{candidate.name}: no whole answer to {case.name}: {status} {answer[:1000]!r}")
        time.sleep(0.2)


def wrk(case: Case, port: int, headers: dict[str, str], seconds: int) -> dict[str, int]:
    """Load for some seconds: requests, duration, p50, p99 (microseconds), errors."""
    command = [
        *machine.on_core(LOAD_CORE),
        "wrk",
        "-t1",
        f"-c{case.connections}",
        f"-d{seconds}s",
        "--timeout",
        "60s",
        "-s",
        str(BENCH / "load.lua"),
    ]
    command += [f"http://127.0.0.1:{port}{case.path}", "--", str(BENCH / "bodies" / case.body)]
    command += [f"{name}={value}" for name, value in headers.items()]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds + 120,
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, int] = json.loads(line[7:])
            return result
    raise RuntimeError(f"wrk: {done.stdout}{done.stderr}")


@dataclass(frozen=True)
class Runner:
    """A candidate that runs, warm, and is loaded in turns with others. size: bytes of one answer."""

    candidate: Candidate
    case: Case
    program: Program
    port: int
    headers: dict[str, str]
    size: int

    def load(self) -> tuple[dict[str, int], float]:
        """One turn of load: what wrk says, and how many answers it took."""
        result = wrk(self.case, self.port, self.headers, self.case.turn)
        return result, max(result["bytes"] / self.size if self.case.slow else result["requests"], 1)

    def count(self, round: int) -> Counted | None:
        """A turn in which instructions are counted and nothing is timed."""
        with counters.counted(self.program.pids()) as executed:
            _, answers = self.load()
        if executed is None:
            return None
        user, kernel = round_to(executed.user / answers), round_to(executed.kernel / answers)
        return Counted(self.case.name, round, self.candidate.name, user, kernel)

    def measure(self, round: int, turn: int) -> Row:
        """A turn that is timed."""
        trip = machine.round_trip_ns()
        cpu, core = self.program.cpu_seconds(), machine.core_busy_seconds(PROXY_CORE)
        result, answers = self.load()
        spent = self.program.cpu_seconds() - cpu
        others = machine.core_busy_seconds(PROXY_CORE) - core - spent if machine.PINNED else 0.0
        seconds = result["duration"] / 1e6
        return Row(
            case=self.case.name,
            round=round,
            turn=turn,
            candidate=self.candidate.name,
            answers=round_to(answers),
            errors=result["errors"],
            cpu_us=round_to(spent / answers * 1e6),
            per_second=round_to(answers / seconds),
            p50_ms=round_to(result["p50"] / 1000),
            p99_ms=round_to(result["p99"] / 1000),
            rss_mb=round_to(self.program.rss_mb()),
            full=round_to(spent / seconds),
            others=round_to(max(others / seconds, 0.0)),
            trip_ns=(trip, machine.round_trip_ns()),
        )

    def undisturbed(self, round: int, turn: int) -> Row:
        """A turn during which others left the proxy's core alone and the cores stayed where they were, or the least
        disturbed of a few."""
        rows = []
        for _ in range(TRIES):
            rows.append(self.measure(round, turn))
            if rows[-1].others <= DISTURBED and not rows[-1].moved:
                break
        return min(rows, key=lambda row: (row.moved, row.others))


@contextmanager
def runner(candidate: Candidate, case: Case, upstream_port: int) -> Iterator[Runner]:
    """A candidate freshly started, verified and warm."""
    with proxy(candidate, case.traffic, upstream_port) as (program, place):
        headers = headers_for(candidate, place)
        size = verify(candidate, case, place, headers)
        wrk(case, place.port, headers, WARM_UP_SECONDS)
        yield Runner(candidate, case, program, place.port, headers, size)


def round_to(value: float) -> float:
    """Four significant digits: there are no more."""
    return float(f"{value:.4g}")


def rounds(case: Case, candidates: list[Candidate], count: int, turns: int) -> Iterator[Row | Counted | Failed]:
    """In each round all candidates are started and loaded in turns; each round and each turn begin with another one, so
    that none always has the quiet moment."""
    able = [candidate for candidate in candidates if case.traffic in candidate.handles]
    faults = (RuntimeError, OSError, subprocess.TimeoutExpired)
    with upstream(case.upstream) as port:
        for number in range(1, count + 1):
            with ExitStack() as running:
                runners = []
                for candidate in able:
                    try:
                        runners.append(running.enter_context(runner(candidate, case, port)))
                        counted = runners[-1].count(number)
                    except faults as error:
                        yield Failed(f"{case.name} {number} {candidate.name}", str(error))
                    else:
                        if counted is not None:
                            yield counted
                for turn in range(turns):
                    first = (number - 1 + turn) % max(len(runners), 1)
                    for one in runners[first:] + runners[:first]:
                        try:
                            yield one.undisturbed(number, turn + 1)
                        except faults as error:
                            yield Failed(f"{case.name} {number} {one.candidate.name}", str(error))
