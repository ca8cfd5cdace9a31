"""Several workers on one port: one that dies comes back, their numbers add up, and no record of an answer is lost."""

import asyncio
import json
import os
import re
import signal
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.provider import provider
from tests.fixtures.wire import Wire, once

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, workers: 2, shutdown: {{min: 0s, max: 5s}}}}
ledger: sqlite:tollhouse.db
providers: {{one: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: k}}}}
models:
  - {{name: smart, targets: [{{provider: one, model: ok}}]}}
"""
UNARY = json.dumps({"model": "smart", "messages": [{"role": "user", "content": "hi"}]}).encode()
STREAM = json.dumps({"model": "smart", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
CHAT = "/v1/chat/completions"


@dataclass
class Load:
    """Clients that ask one thing after another until `stop`. whole: request ids of the answers that came whole."""

    url: str
    whole: list[str] = field(default_factory=list)
    broken: int = 0
    failed: list[tuple[int, bytes]] = field(default_factory=list)
    stop: bool = False

    async def client(self, number: int) -> None:
        while not self.stop:
            try:
                async with Wire(self.url) as wire:
                    while not self.stop:
                        stream = (number + len(self.whole)) % 2
                        answer = await wire.ask("POST", CHAT, STREAM if stream else UNARY)
                        if answer.status == 200 and (not stream or answer.body.endswith(b"data: [DONE]\n\n")):
                            self.whole.append(answer.headers["x-request-id"])
                        else:
                            self.failed.append((answer.status, answer.body[-200:]))
            except (OSError, asyncio.IncompleteReadError):
                self.broken += 1


def usage(where: Path) -> Counter[str]:
    """How many records there are of each request."""
    try:
        with sqlite3.connect(f"file:{where / 'tollhouse.db'}?mode=ro", uri=True, timeout=5) as db:
            return Counter(row[0] for row in db.execute("select request_id from usage"))
    except sqlite3.OperationalError:
        return Counter()


def listening(gateway: Gateway) -> int:
    """How many workers have come so far as to listen."""
    local = f":{int(gateway.url.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(local) and row[3] == "0A" for row in rows)


async def test_no_record_of_an_answer_is_lost_when_workers_are_killed_under_load(tmp_path: Path) -> None:
    async with provider() as upstream, serving(CONFIG.format(port=upstream.port), tmp_path) as gateway:
        load = Load(gateway.url)
        clients = [asyncio.ensure_future(load.client(n)) for n in range(6)]
        for kill in range(4):
            enough = len(load.whole) + 60
            await until(lambda enough=enough: len(load.whole) >= enough)
            await until(lambda: len(gateway.children()) == 2)
            os.kill(gateway.children()[kill % 2], signal.SIGKILL)
        await until(lambda: listening(gateway) == 2)  # whoever starts ships what the dead have left
        enough = len(load.whole) + 60
        await until(lambda: len(load.whole) >= enough)
        load.stop = True
        await asyncio.gather(*clients)
        assert load.broken, "no client noticed a kill: this was no test"
        assert load.failed == []
        wanted = set(load.whole)
        assert len(wanted) == len(load.whole)
        await until(lambda: wanted <= usage(tmp_path).keys(), why=lambda: f"lost: {wanted - usage(tmp_path).keys()}")
        assert await asyncio.to_thread(gateway.stop, signal.SIGTERM) == 0
        records = usage(tmp_path)
        assert {request: n for request, n in records.items() if n != 1} == {}
        assert [*(tmp_path / "tollhouse.db.journal").glob("*.seg")] == []
        # More than the whole answers may be there (cut by the kill after the record), less must not.
        assert len(records) <= len(load.whole) + load.broken


async def test_metrics_of_all_workers_add_up_and_survive_one(tmp_path: Path) -> None:
    async with provider() as upstream, serving(CONFIG.format(port=upstream.port), tmp_path) as gateway:
        used: set[str] = set()
        sent = 0
        while len(used) < 2:  # until both have answered
            answer = await once(gateway.url, "POST", CHAT, UNARY)
            assert answer.status == 200
            used.add(answer.headers["x-request-id"][:12])
            sent += 1
        assert await total(gateway, "tollhouse_requests_total", sent) == sent
        text = await asyncio.to_thread(gateway.metrics)
        pids = sorted(gateway.children())
        assert len(re.findall(r'^process_start_time_seconds\{worker="\d"\}', text, re.MULTILINE)) == 2
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: len(gateway.children()) == 2 and pids[0] not in gateway.children())
        assert await total(gateway, "tollhouse_requests_total", sent) == sent
        assert re.search(rf"worker \d \(pid {pids[0]}\) ended with signal 9; starting it again", gateway.text())


async def total(gateway: Gateway, name: str, expected: int) -> float:
    """The sum over the series of a counter, once it has got so far: another worker's numbers are up to a second old."""
    last = 0.0
    async with asyncio.timeout(10):
        while True:
            try:
                text = await asyncio.to_thread(gateway.metrics)
            except OSError:  # the scrape was at the worker that was killed
                continue
            last = sum(float(value) for value in re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", text, re.MULTILINE))
            if last >= expected:
                return last
            await asyncio.sleep(0.05)


async def test_a_worker_that_comes_back_serves_the_configuration_of_now(tmp_path: Path) -> None:
    async with provider() as upstream:
        config = CONFIG.format(port=upstream.port)
        async with serving(config, tmp_path) as gateway:
            since = gateway.log.stat().st_size
            await gateway.change(config + "  - {name: other, targets: [{provider: one, model: ok}]}\n")
            await until(lambda: gateway.text(since).count("configuration 2 serves") == 2)
            for pid in gateway.children():
                os.kill(pid, signal.SIGKILL)
            since = gateway.log.stat().st_size
            await until(lambda: len(re.findall(r"worker \d listens", gateway.text(since))) == 2)
            asked = UNARY.replace(b"smart", b"other")
            for _ in range(8):
                assert (await once(gateway.url, "POST", CHAT, asked)).status == 200
            assert "serves" not in gateway.text(since)


async def test_what_all_workers_do_is_said_once(tmp_path: Path) -> None:
    async with provider() as upstream, serving(CONFIG.format(port=upstream.port), tmp_path) as gateway:
        await until(lambda: listening(gateway) == 2)
        await until(lambda: len(re.findall(r"worker \d listens", gateway.text())) == 2)
        assert await asyncio.to_thread(gateway.stop, signal.SIGTERM) == 0
        said = [line.split(": ", 1)[1] for line in gateway.text().splitlines()]
        url, metrics = f"listening on {gateway.url}", f"metrics on {gateway.metrics_url}/metrics"
        assert said[0] == f"serving {gateway.config}"
        assert sorted(said[1:]) == sorted([url, metrics, "worker 0 listens", "worker 1 listens", "stopping"])
        assert said[-1] == "stopping"


async def killed_and_back(gateway: Gateway) -> None:
    """Every worker, one after the other: as a rule they do not die together."""
    for pid in sorted(gateway.children()):
        since = gateway.log.stat().st_size
        os.kill(pid, signal.SIGKILL)
        await gateway.logged(r"worker \d listens", since)


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense: [",
        # Read without a mistake, and found wrong only when it is built.
        "routes: [{name: own, exact: /status, to: 'http://127.0.0.1:9'}]",
    ],
)
async def test_a_worker_that_comes_back_to_a_mistake_serves_the_last_good_configuration(
    tmp_path: Path, bad: str
) -> None:
    async with provider() as upstream:
        config = CONFIG.format(port=upstream.port)
        async with serving(config, tmp_path) as gateway:
            for version, name in ((2, "second"), (3, "third")):
                since = gateway.log.stat().st_size
                config += f"  - {{name: {name}, targets: [{{provider: one, model: ok}}]}}\n"
                await gateway.change(config)
                serves = f"configuration {version} serves"
                await until(lambda since=since, serves=serves: gateway.text(since).count(serves) == 2)
            since = gateway.log.stat().st_size
            await gateway.change(f"{config}{bad}\n", "the last good one keeps serving")
            await until(lambda: gateway.text(since).count("is refused") == 2)
            for _ in range(2):  # also by one that never saw it good
                await killed_and_back(gateway)
            for name in ("third", "second", "smart"):
                for _ in range(4):
                    answer = await once(gateway.url, "POST", CHAT, UNARY.replace(b"smart", name.encode()))
                    assert answer.status == 200, (name, answer.body)
            since = gateway.log.stat().st_size
            await gateway.change(config.replace("second", "fourth"))
            await until(lambda: gateway.text(since).count("serves") >= 2)
            answer = await once(gateway.url, "POST", CHAT, UNARY.replace(b"smart", b"fourth"))
            assert answer.status == 200
