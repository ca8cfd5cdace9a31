"""A whole worker in this process: requests of every kind and end leave nothing to the collector, and nothing open.

The worker runs on this loop, with real sockets on both sides. `gc.DEBUG_SAVEALL` keeps whatever only the collector
could have freed; nothing of ours may be among it.
"""

import asyncio
import gc
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.garbage import collected, ours
from tests.fixtures.mcp_gateway import http_server
from tests.fixtures.provider import Provider, provider
from tests.fixtures.service import Service, frame, read_frame, service
from tests.fixtures.wire import Wire

from tollhouse.config.load import load_config
from tollhouse.gateway.serve import Worker

pytestmark = pytest.mark.anyio

KEY = {"x-api-key": "caller-key-0123456789"}
CHAT = "/v1/chat/completions"
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, shutdown: {{min: 0s, max: 5s}}}}
ledger: sqlite:{where}/tollhouse.db
timeout: {{total: 30s}}
cors: {{origins: ["https://app.test"]}}
providers:
  one: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: k}}
  two: {{kind: anthropic, base_url: "http://127.0.0.1:{port}", api_key: k}}
models:
  - name: one/*
    targets: [{{provider: one, model: "*"}}]
    retry: {{attempts: 2, on: [5xx], backoff: 1ms}}
    timeout: {{total: 300ms, first_event: 200ms}}
  - {{name: "two/*", targets: [{{provider: two, model: "*"}}]}}
  - {{name: rescued, targets: [{{provider: one, model: drop}}], fallback: [{{provider: one, model: ok}}]}}
  - name: scarce
    targets: [{{provider: one, model: ok}}]
    limits: [{{per: user, requests: 1, window: 1h}}, {{per: key, tokens: 20, window: 1h}}]
routes:
  - {{name: plain, path: /plain, to: "{url}", strip_prefix: true, timeout: {{first_byte: 200ms}}}}
{mcp}
authenticate: {{keys: [{{name: ci, key: caller-key-0123456789, user: ada, org: acme}}]}}
authorize: {{rules: [{{deny: 'llm.model == "one/secret"'}}]}}
headers: {{response: {{set: {{x-version: "1"}}}}}}
telemetry:
  metrics: {{labels: {{user: principal.user}}}}
  access_log: {{path: "{where}/access.log", fields: {{who: principal.user}}}}
"""

Play = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def working(where: Path, mcp: str = "") -> AsyncIterator[tuple[Worker, str, Provider, Service]]:
    async with provider() as models, service() as plain:
        config = CONFIG.format(where=where, port=models.port, url=plain.url, mcp=mcp)
        path = where / "tollhouse.yaml"
        path.write_text(config)
        worker = Worker(path, load_config(path))
        running = asyncio.ensure_future(worker.run())
        listening = asyncio.ensure_future(worker.listening.wait())
        await asyncio.wait((running, listening), return_when=asyncio.FIRST_COMPLETED)
        assert worker.drain is not None, running.exception()
        try:
            yield worker, f"http://127.0.0.1:{worker.listeners[0].port}", models, plain
        finally:
            worker.drain.begin(now=True)
            async with asyncio.timeout(15):
                assert await running == 0


def chat(model: str, stream: bool = False, **more: Any) -> bytes:
    return json.dumps(
        {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}], **more}
    ).encode()


async def unary(url: str) -> None:
    async with Wire(url) as wire:
        assert (await wire.ask("POST", CHAT, chat("one/ok"), KEY)).status == 200
        assert (await wire.ask("POST", "/v1/messages", chat("two/ok", max_tokens=9), KEY)).status == 200
        embedding = json.dumps({"model": "one/ok", "input": "x"}).encode()
        assert (await wire.ask("POST", "/v1/embeddings", embedding, KEY)).status == 200
        assert (await wire.ask("GET", "/v1/models", None, KEY)).status == 200
        assert (await wire.ask("POST", CHAT, chat("rescued"), KEY)).status == 200
        assert (await wire.ask("POST", "/plain/echo", b"x" * 100_000, KEY)).status == 200
        assert (await wire.ask("HEAD", "/plain/echo", None, KEY)).status == 200
        preflight = {"origin": "https://app.test", "access-control-request-method": "GET"}
        assert (await wire.ask("OPTIONS", "/plain/echo", None, preflight)).status in (200, 204)
        assert (await wire.ask("GET", "/status")).status == 200
        # Two in one packet.
        await wire.send(2 * b"GET /plain/echo HTTP/1.1\r\nhost: x\r\nx-api-key: caller-key-0123456789\r\n\r\n")
        assert [(await wire.answer()).status for _ in range(2)] == [200, 200]


async def streams(url: str) -> None:
    async with Wire(url) as wire:
        assert (await wire.ask("POST", CHAT, chat("one/ok", True), KEY)).body.endswith(b"[DONE]\n\n")
        assert b"message_stop" in (await wire.ask("POST", "/v1/messages", chat("two/ok", True, max_tokens=9), KEY)).body
        assert len((await wire.ask("GET", "/plain/big/1", None, KEY)).body) == 1 << 20
        head = b"POST /plain/echo HTTP/1.1\r\nhost: x\r\nx-api-key: caller-key-0123456789\r\n"
        await wire.send(head + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.sleep(0)
        await wire.send(b"0\r\n\r\n")
        assert (await wire.answer()).json()["size"] == 5


async def translated(url: str) -> None:
    """Each asks the other's provider: whole, streamed, cut, refused and left."""
    async with Wire(url) as wire:
        for stream in (False, True):
            assert (await wire.ask("POST", CHAT, chat("two/ok", stream, max_tokens=9), KEY)).status == 200
            assert (await wire.ask("POST", "/v1/messages", chat("one/ok", stream, max_tokens=9), KEY)).status == 200
        assert b"error" in (await wire.ask("POST", CHAT, chat("two/cut", True), KEY)).body
        assert b"error" in (await wire.ask("POST", "/v1/messages", chat("one/cut", True, max_tokens=9), KEY)).body
        assert (await wire.ask("POST", CHAT, chat("two/ok", logit_bias={"1": 2}), KEY)).status == 400
        assert (await wire.ask("POST", CHAT, chat("two/ok", temperature="hot"), KEY)).status == 400
        assert (await wire.ask("POST", CHAT, chat("two/500"), KEY)).status == 502
    for model in ("two/ok", "two/hang"):
        async with Wire(url) as wire:
            body = chat(model, True)
            head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: caller-key-0123456789\r\n"
            await wire.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            await asyncio.sleep(0.01)


async def failures(url: str) -> None:
    async with Wire(url) as wire:
        assert (await wire.ask("POST", CHAT, chat("nobody"), KEY)).status == 404
        assert (await wire.ask("POST", CHAT, chat("one/secret"), KEY)).status == 403
        assert (await wire.ask("POST", CHAT, chat("one/ok"))).status == 401
        assert (await wire.ask("POST", CHAT, b'{"model":', KEY)).status == 400
        for mode in ("500", "429", "401", "drop", "garbage"):
            assert (await wire.ask("POST", CHAT, chat(f"one/{mode}"), KEY)).status in (429, 502, 503), mode
        assert (await wire.ask("POST", CHAT, chat("one/hang"), KEY)).status == 504
        assert (await wire.ask("POST", CHAT, chat("scarce"), KEY)).status in (200, 429)
        assert (await wire.ask("POST", CHAT, chat("scarce"), KEY)).status == 429
        assert b"error" in (await wire.ask("POST", CHAT, chat("one/cut", True), KEY)).body
        assert b"error" in (await wire.ask("POST", "/v1/messages", chat("two/cut", True, max_tokens=9), KEY)).body
        assert (await wire.ask("GET", "/nowhere", None, KEY)).status == 404
        assert (await wire.ask("DELETE", CHAT, None, KEY)).status == 405
        assert (await wire.ask("GET", "/plain/die", None, KEY)).status == 502
        assert (await wire.ask("GET", "/plain/hang", None, KEY)).status == 504
        await wire.send(b"GET / HTTP/1.1\r\nbad header: x\r\n\r\n")
        assert (await wire.answer()).status == 400
    async with Wire(url) as wire:
        await wire.send(b"GET /plain/half HTTP/1.1\r\nhost: x\r\nx-api-key: caller-key-0123456789\r\n\r\n")
        await wire.head()
        await wire.closed()


async def leaving(url: str) -> None:
    """Clients that go away at every stage."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-api-key: caller-key-0123456789\r\n".encode()
    hang = chat("one/hang")
    whole = head + b"content-length: %d\r\n\r\n" % len(hang) + hang
    for sent in (b"", head[:20], head, whole[:-5], whole):
        async with Wire(url) as wire:
            await wire.send(sent)
            await asyncio.sleep(0.01)
    for stream in (chat("one/ok", True), chat("one/cut", True)):
        async with Wire(url) as wire:
            await wire.send(head + b"content-length: %d\r\n\r\n" % len(stream) + stream)
            await wire.head()
    async with Wire(url) as wire:
        await wire.send(b"GET /plain/sse HTTP/1.1\r\nhost: x\r\nx-api-key: caller-key-0123456789\r\n\r\n")
        await wire.head()
        await wire.chunk()
    async with Wire(url) as wire:
        await wire.send(b"GET /plain/big/8 HTTP/1.1\r\nhost: x\r\nx-api-key: caller-key-0123456789\r\n\r\n")
        await wire.head()
    async with Wire(url) as wire:
        await wire.send(
            b"POST /plain/echo HTTP/1.1\r\nhost: x\r\nx-api-key: caller-key-0123456789\r\n"
            b"content-length: 1000000\r\n\r\n" + bytes(100_000)
        )
        await asyncio.sleep(0.01)


async def tunnels(url: str) -> None:
    for polite in (True, False):
        async with Wire(url) as wire:
            await wire.send(
                b"GET /plain/ws HTTP/1.1\r\nhost: x\r\nx-api-key: caller-key-0123456789\r\nconnection: upgrade\r\n"
                b"upgrade: websocket\r\nsec-websocket-key: a\r\nsec-websocket-version: 13\r\n\r\n"
            )
            assert (await wire.head()).status == 101
            assert await read_frame(wire.reader) == (1, b"welcome")
            if polite:
                await wire.send(frame(8, b"", b"mask"))
                await wire.closed()


async def idle(worker: Worker) -> None:
    """Until nothing of the load is under way."""
    assert worker.runtime is not None
    async with asyncio.timeout(10):
        while worker.runtime.current.leases or worker.listeners[0].server.connections:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)


async def garbage(worker: Worker, url: str, play: Play, rounds: int = 4) -> list[str]:
    """What of ours only the cycle collector could free after `rounds` times `play`, by type."""
    await play(url)
    await idle(worker)
    with collected() as found:
        for _ in range(rounds):
            await asyncio.gather(*(play(url) for _ in range(2)))
        await idle(worker)
    return [f"{type(one).__name__}: {one!r:.150}" for one in found if ours(one)]


CYCLES = """
from functools import partial

def closure():
    box = []
    box.append(lambda: box)

class Made:
    pass

def instance():
    made = Made()
    made.itself = made

def bound():
    box = []
    box.append(partial(closure, box))

def exception():
    try:
        raise OSError("x")
    except OSError as error:
        error.itself = error

def coroutine():
    box = []
    async def wait(box):
        await box
    box.append(wait(box))
"""


@pytest.mark.parametrize("kind", ["closure", "bound", "exception", "coroutine", "instance"])
@pytest.mark.parametrize("package, expected", [("tollhouse", True), ("elsewhere", False)])
@pytest.mark.filterwarnings("ignore:coroutine")
def test_what_counts_as_ours(kind: str, package: str, expected: bool) -> None:
    """The filter sees each kind of cycle that our code could leave, and none that others leave."""
    names: dict[str, Any] = {"__name__": f"{package}.made"}
    exec(compile(CYCLES, f"/lib/{package}/made.py", "exec"), names)
    with collected() as found:
        names[kind]()
    assert any(map(ours, found)) is expected


@pytest.mark.parametrize(
    "play", [unary, streams, translated, failures, leaving, tunnels], ids=lambda play: play.__name__
)
async def test_requests_leave_nothing_to_the_collector(tmp_path: Path, play: Play) -> None:
    async with working(tmp_path) as (worker, url, _, _):
        left = await garbage(worker, url, play)
        assert left == []
        assert worker.runtime is not None
        assert worker.runtime.current.leases == 0


def rpc(id: int, method: str, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode()


async def test_mcp_calls_leave_nothing_to_the_collector(tmp_path: Path) -> None:
    with http_server() as upstream:
        async with working(tmp_path, f'mcp: {{servers: {{one: {{url: "{upstream}"}}}}}}') as (worker, url, _, _):
            headers = {
                **KEY,
                "content-type": "application/json",
                "accept": "application/json, text/event-stream",
                "mcp-protocol-version": "2025-11-25",
            }
            info = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
            async with Wire(url) as wire:
                opened = await wire.ask("POST", "/mcp", rpc(1, "initialize", **info), headers)
                headers["mcp-session-id"] = opened.headers["mcp-session-id"]

            async def calls(url: str) -> None:
                async with Wire(url) as wire:
                    assert (await wire.ask("POST", "/mcp", rpc(2, "tools/list"), headers)).status == 200
                    for name, arguments in (("echo", {"message": "x"}), ("boom", {}), ("count", {"to": 3})):
                        call = rpc(3, "tools/call", name=name, arguments=arguments, _meta={"progressToken": "t"})
                        answer = await wire.ask("POST", "/mcp", call, headers)
                        assert answer.status == 200, answer
                    assert (await wire.ask("POST", "/mcp", rpc(4, "tools/call", name="none"), headers)).status == 200
                    await wire.ask("POST", "/mcp", b"{", headers)
                async with Wire(url) as wire:  # and one that nobody waits for
                    call = rpc(5, "tools/call", name="wait", arguments={"seconds": 0.05})
                    await wire.send(
                        b"POST /mcp HTTP/1.1\r\nhost: x\r\n"
                        + "".join(f"{n}: {v}\r\n" for n, v in headers.items()).encode()
                        + b"content-length: %d\r\n\r\n%b" % (len(call), call)
                    )
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.1)

            left = await garbage(worker, url, calls, rounds=2)
            assert left == []


async def test_a_worker_takes_along_its_tasks_and_descriptors(tmp_path: Path) -> None:
    async def once() -> None:
        async with working(tmp_path) as (_, url, _, _):
            await asyncio.gather(unary(url), streams(url), failures(url), leaving(url), tunnels(url))

    await once()  # what the process opens once for all
    gc.collect()
    await asyncio.sleep(0.05)
    before, tasks = descriptors(), len(asyncio.all_tasks())
    await once()
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > tasks:
            await asyncio.sleep(0.01)
    assert sorted(descriptors()) == sorted(before)
    assert not [path for path in (tmp_path / "tollhouse.db.journal").iterdir() if path.suffix != ".lock"]


def descriptors() -> list[str]:
    """What this process has open, but for pipes and event queues, which the loop keeps."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        found.append("socket" if target.startswith("socket:") else target if target.startswith("/") else "")
    return [one for one in found if one]


async def test_configurations_that_were_replaced_are_let_go(tmp_path: Path) -> None:
    async with working(tmp_path) as (worker, url, _, plain):
        runtime = worker.runtime
        assert runtime is not None
        path = tmp_path / "tollhouse.yaml"
        text = path.read_text()
        async with Wire(url) as stream:
            await stream.send(b"GET /plain/sse HTTP/1.1\r\nhost: x\r\nx-api-key: caller-key-0123456789\r\n\r\n")
            await stream.head()
            first = runtime.current
            for version in range(2, 6):
                path.write_text(text.replace('x-version: "1"', f'x-version: "{version}"'))
                async with asyncio.timeout(10):
                    while runtime.current.version < version:
                        await asyncio.sleep(0.005)
                await unary(url)
            assert first.leases == 1
            assert len(runtime._tenures) == 2, "replaced configurations without a request are closed at once"
            plain.release()
        async with asyncio.timeout(10):
            while first.leases:
                await asyncio.sleep(0.005)
        assert len(runtime._tenures) == 1
