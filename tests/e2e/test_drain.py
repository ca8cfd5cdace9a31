"""Ending: new requests for a while, then none; what runs is finished; what does not end is cut. Nothing is left."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.service import Service, service
from tests.fixtures.wire import Wire, once

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, shutdown: {{min: {min}, max: {max}}}, workers: {workers}}}
ledger: sqlite:tollhouse.db
routes: [{{name: a, path: /, to: "{url}"}}]
telemetry: {{access_log: {{path: access.log}}}}
"""


@asynccontextmanager
async def running(
    where: Path, minimum: str = "500ms", maximum: str = "3s", workers: int = 1
) -> AsyncIterator[tuple[Gateway, Service]]:
    async with service() as upstream:
        config = CONFIG.format(url=upstream.url, min=minimum, max=maximum, workers=workers)
        async with serving(config, where) as gateway:
            yield gateway, upstream


async def refused(gateway: Gateway) -> bool:
    try:
        async with Wire(gateway.url):
            return False
    except OSError:
        return True


async def test_term_asks_clients_to_move_then_stops_listening_and_finishes_streams(tmp_path: Path) -> None:
    async with running(tmp_path, maximum="20s") as (gateway, upstream):
        async with Wire(gateway.url) as stream, Wire(gateway.url) as idle, Wire(gateway.url) as fresh:
            await stream.send(b"GET /sse HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await stream.head()).status == 200
            assert await stream.chunk() == b"data: 0\n\n"
            assert not (await idle.ask("GET", "/echo")).closes
            began = time.monotonic()
            os.kill(gateway.pid, signal.SIGTERM)
            await gateway.logged("stopping")
            # Still accepting, on new connections and on old ones; everybody is asked to move.
            answer = await once(gateway.url, "GET", "/status")
            assert (answer.status, answer.json(), answer.closes) == (503, {"status": "draining"}, True)
            answer = await once(gateway.metrics_url, "GET", "/ready")
            assert (answer.status, answer.json()) == (503, {"status": "draining"})
            answer = await once(gateway.url, "POST", "/echo", b"late")
            assert (answer.status, answer.json()["size"], answer.closes) == (200, 4, True)
            assert (await idle.ask("GET", "/echo")).closes
            await idle.closed()
            await fresh.closed()  # never used: closed when the listening ends
            assert time.monotonic() - began > 0.45
            assert await refused(gateway)
            # The stream goes on as long as it likes.
            upstream.tick()
            assert await stream.chunk() == b"data: 1\n\n"
            upstream.release()
            assert await stream.chunk() == b""
            assert await stream.closed() == b""
        assert await gateway.ended() == 0
        assert time.monotonic() - began < 10
        assert "Traceback" not in gateway.text()
        statuses = [line["status"] for line in gateway.lines()]
        assert statuses.count(200) == 4, "the access log lacks the last lines"


async def test_max_is_the_hard_end(tmp_path: Path) -> None:
    async with running(tmp_path, "0s", "1s") as (gateway, upstream):
        async with Wire(gateway.url) as stream, Wire(gateway.url) as hanging:
            await stream.send(b"GET /sse HTTP/1.1\r\nhost: x\r\n\r\n")
            await hanging.send(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n")
            await stream.head()
            assert await stream.chunk() == b"data: 0\n\n"
            await until(lambda: len(upstream.requests) == 2)
            began = time.monotonic()
            os.kill(gateway.pid, signal.SIGTERM)
            assert await stream.closed() == b"", "a stream that was cut must not look finished"
            assert await hanging.closed() == b""
            assert await gateway.ended() == 0
            assert 0.9 < time.monotonic() - began < 4
            await until(lambda: upstream.left == 2 and not upstream.streams)
        assert "Traceback" not in gateway.text()


async def test_a_second_signal_hurries_and_a_third_cuts(tmp_path: Path) -> None:
    async with running(tmp_path, "60s", "120s") as (gateway, _):
        async with Wire(gateway.url) as stream:
            await stream.send(b"GET /sse HTTP/1.1\r\nhost: x\r\n\r\n")
            await stream.head()
            assert await stream.chunk() == b"data: 0\n\n"
            os.kill(gateway.pid, signal.SIGTERM)
            await gateway.logged("stopping")
            assert (await once(gateway.url, "GET", "/status")).status == 503
            os.kill(gateway.pid, signal.SIGTERM)
            await wait_refused(gateway)
            assert not stream.reader.at_eof()
            os.kill(gateway.pid, signal.SIGTERM)
            await stream.closed(5)
        assert await gateway.ended(5) == 0


async def test_int_does_not_wait_for_min_but_finishes_what_runs(tmp_path: Path) -> None:
    async with running(tmp_path, "60s", "120s") as (gateway, upstream):
        async with Wire(gateway.url) as stream:
            await stream.send(b"GET /sse HTTP/1.1\r\nhost: x\r\n\r\n")
            await stream.head()
            assert await stream.chunk() == b"data: 0\n\n"
            os.kill(gateway.pid, signal.SIGINT)
            await wait_refused(gateway)
            upstream.release()
            assert await stream.chunk() == b""
        assert await gateway.ended(5) == 0


async def wait_refused(gateway: Gateway) -> None:
    async with asyncio.timeout(10):
        while not await refused(gateway):
            await asyncio.sleep(0.01)


CHILD = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, shutdown: {{min: 0s, max: 5s}}}}
mcp: {{servers: {{one: {{command: "{python}", args: ["{script}"]}}}}}}
"""
CALL = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}},
}  # fmt: skip


async def test_children_end_with_the_gateway(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "fixtures" / "mcp_child.py"
    async with serving(CHILD.format(python=sys.executable, script=script), tmp_path) as gateway:
        headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        answer = await once(gateway.url, "POST", "/mcp", json.dumps(CALL).encode(), headers)
        assert answer.status == 200, answer.body
        session = answer.headers["mcp-session-id"]
        lists = json.dumps({"jsonrpc": "2.0", "id": 2, "method": "tools/list"}).encode()
        listed = await once(
            gateway.url, "POST", "/mcp", lists,
            {**headers, "mcp-session-id": session, "mcp-protocol-version": "2025-11-25"},
        )  # fmt: skip
        assert listed.status == 200, listed.body
        children = gateway.children()
        assert children
        os.kill(gateway.pid, signal.SIGTERM)
        assert await gateway.ended() == 0
        assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
        assert "Traceback" not in gateway.text()


async def test_workers_end_together_and_int_is_heard_once(tmp_path: Path) -> None:
    async with running(tmp_path, "500ms", "20s", workers=2) as (gateway, upstream):
        workers = gateway.children()
        assert len(workers) == 2
        async with Wire(gateway.url) as stream:
            await stream.send(b"GET /sse HTTP/1.1\r\nhost: x\r\n\r\n")
            await stream.head()
            assert await stream.chunk() == b"data: 0\n\n"
            assert all(os.getpgid(pid) == pid for pid in workers), "a terminal's Ctrl-C would be heard twice"
            os.kill(gateway.pid, signal.SIGTERM)
            await wait_refused(gateway)
            upstream.release()
            assert await stream.chunk() == b""
        assert await gateway.ended() == 0
        assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []


async def test_workers_do_not_outlive_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2) as (gateway, _):
        workers = gateway.children()
        os.kill(gateway.pid, signal.SIGKILL)
        await gateway.ended()
        await until(lambda: not any(alive(pid) for pid in workers))


def alive(pid: int) -> bool:
    """Neither gone nor a zombie that nobody collects."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
