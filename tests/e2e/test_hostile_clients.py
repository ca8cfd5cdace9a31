"""Clients that mean harm, or are broken: the gateway answers them shortly, serves everybody else, and stays small."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.fixtures.gateway import Gateway, rss, serving, until
from tests.fixtures.provider import Provider, provider
from tests.fixtures.service import Service, service
from tests.fixtures.wire import Wire, once, request

pytestmark = pytest.mark.anyio

MIB = 1 << 20
CONFIG = """
server:
  listen: 127.0.0.1:0
  metrics: 127.0.0.1:0
  max_body: 1MiB
  max_connections: 150
  timeouts: {{head: 1s, body: 1s, idle: 30s, write: 1s}}
  shutdown: {{min: 0s, max: 5s}}
ledger: sqlite:tollhouse.db
providers: {{one: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1"}}}}
models: [{{name: "one/*", targets: [{{provider: one, model: "*"}}]}}]
routes: [{{name: plain, path: /plain, to: "{url}", strip_prefix: true}}]
telemetry: {{access_log: {{path: access.log}}}}
"""
CHAT = "/v1/chat/completions"


def chat(model: str = "one/ok", stream: bool = False) -> bytes:
    return json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}).encode()


@dataclass
class Running:
    gateway: Gateway
    provider: Provider
    service: Service

    async def healthy(self) -> None:
        """It serves, and holds nothing of those who are gone."""
        answer = await once(self.gateway.url, "POST", CHAT, chat())
        assert answer.status == 200, answer
        assert (await once(self.gateway.url, "GET", "/ready")).status == 200

    async def connections(self) -> int:
        text = await asyncio.to_thread(self.gateway.metrics)
        lines = [line for line in text.splitlines() if line.startswith("tollhouse_downstream_connections_open{")]
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))

    async def empty(self) -> None:
        async with asyncio.timeout(15):
            while await self.connections():
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(where: Path) -> AsyncIterator[Running]:
    async with (
        provider() as models,
        service() as plain,
        serving(CONFIG.format(port=models.port, url=plain.url), where) as gateway,
    ):
        now = Running(gateway, models, plain)
        yield now
        await now.empty()
        await now.healthy()
        text = gateway.text()
        assert "Traceback" not in text, text


async def test_slow_clients_are_put_out_while_others_are_served(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        url = now.gateway.url
        told: list[bytes] = []

        async def loris(first: bytes, drip: bytes, *, reads: bool = True) -> None:
            async with Wire(url) as wire:
                await wire.send(first)
                ended = asyncio.ensure_future(wire.closed(20) if reads else wait_lost(wire))
                while not ended.done():
                    try:
                        await wire.send(drip)
                    except OSError:
                        pass
                    await asyncio.wait((ended,), timeout=0.1)
                told.append(await ended)

        post = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n"
        kinds = [
            (b"GET / HT", b""),
            (b"GET /plain/echo HTTP/1.1\r\nhost: x\r\n", b"x: y\r\n"),
            (post % CHAT.encode() + b"{", b""),
            (post % b"/plain/echo", b""),
            (b"POST /plain/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", b""),
        ]
        slow = [asyncio.ensure_future(loris(first, drip)) for first, drip in kinds for _ in range(10)]
        # One that asks for much and takes nothing of it.
        async with Wire(url) as deaf:
            deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await deaf.send(b"GET /plain/big/64 HTTP/1.1\r\nhost: x\r\n\r\n")
            for _ in range(10):
                await now.healthy()
            await asyncio.gather(*slow)
            await until(lambda: any(line["path"] == "/plain/big/64" for line in now.gateway.lines()))
        statuses = {answer.split(b" ", 2)[1] for answer in told if answer}
        assert statuses <= {b"408"}, statuses
        assert sum(bool(answer) for answer in told) >= 40


async def wait_lost(wire: Wire) -> bytes:
    await wire.writer.wait_closed()
    return b""


def reset(wire: Wire) -> None:
    """Cut with RST, and not with FIN."""
    sock = wire.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.writer.transport.abort()


async def test_a_body_too_large_is_refused_in_the_dialect_that_was_asked(tmp_path: Path) -> None:
    """Announced or not, the refusal is the endpoint's own, and nobody upstream hears of it."""
    async with running(tmp_path) as now:
        url = now.gateway.url
        seen = len(now.provider.seen)
        big = b'{"x":"' + b"a" * (2 * MIB) + b'"}'
        for path, where in (
            (CHAT, ("error", "message")),
            ("/v1/messages", ("error", "message")),
            ("/plain/echo", ("title",)),
        ):
            for framing in (b"content-length: %d\r\n\r\n" % len(big), b"transfer-encoding: chunked\r\n\r\n200000\r\n"):
                async with Wire(url) as wire:
                    await wire.send(
                        b"POST %b HTTP/1.1\r\nhost: localhost\r\n" % path.encode()
                        + b"content-type: application/json\r\n"
                        + framing
                    )
                    wire.writer.write(big)
                    answer = await wire.answer()
                    assert answer.status == 413, (path, framing)
                    assert answer.headers["connection"] == "close"
                    assert await wire.closed() == b""
                told = answer.json()
                for key in where:
                    told = told[key]
                assert "larger than 1048576 bytes" in told
                request_id = answer.headers["x-request-id"]
                await until(lambda request_id=request_id: any(o["id"] == request_id for o in now.gateway.lines()))
        assert len(now.provider.seen) == seen


async def test_what_is_refused_before_it_is_a_request_has_a_line_and_a_count(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        url = now.gateway.url
        kinds = [
            (b"GET / HTTP/1.1\r\n\r\n", 400, "InvalidRequest", "/"),
            (b"GET /secret?token=not-logged HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400, "InvalidRequest", "/secret"),
            (b"GET / HTTP/9.9\r\nhost: x\r\n\r\n", 505, "InvalidRequest", "/"),
            (b"GET /" + b"a" * 100_000, 414, "InvalidRequest", None),
            (b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000, 431, "InvalidRequest", "/"),
            (b"GET /slow HTTP/1.1\r\n", 408, "Timeout", "/slow"),
        ]
        for wired, status, reason, path in kinds:
            async with Wire(url) as wire:
                await wire.send(wired)
                answer = await wire.answer()
            assert (answer.status, answer.headers["x-tollhouse-reason"]) == (status, reason)
            request_id = answer.headers["x-request-id"]
            await until(lambda request_id=request_id: any(o["id"] == request_id for o in now.gateway.lines()))
            line = next(o for o in now.gateway.lines() if o["id"] == request_id)
            assert (line["status"], line["reason"], line["peer"]) == (status, reason, "127.0.0.1")
            assert line["error"] == answer.json()["title"]
            assert path is None or line["path"] == path
        text = await asyncio.to_thread(now.gateway.metrics)
        for _, status, reason, _ in kinds:
            assert any(
                line.startswith("tollhouse_requests_total{") and f'status="{status}"' in line and f'"{reason}"' in line
                for line in text.splitlines()
            )
        assert "not-logged" not in (tmp_path / "access.log").read_text()


async def test_resets_and_half_closes_in_every_phase(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        url = now.gateway.url
        unary, stream = (request("POST", CHAT, body) for body in (chat(), chat(stream=True)))
        hang = request("POST", CHAT, chat("one/hang"))
        sse = request("GET", "/plain/sse")
        upload = b"POST /plain/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        phases = [
            (b"", False), (b"GE", False), (unary[:60], False), (unary[:-9], False), (unary, False), (unary, True),
            (stream, False), (stream, True), (hang, False), (sse, False), (sse, True), (upload, False),
            (upload + b"5\r\nhel", False), (upload + b"zz\r\n", False), (unary * 5, False),
            (unary + hang + unary, True),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), False), (b"\x00" * 200, False),
            (request("GET", "/plain/big/8"), True), (request("GET", "/plain/half"), True),
        ]  # fmt: skip

        async def one(data: bytes, reads: bool, how: str) -> None:
            async with Wire(url) as wire:
                if how == "eof":
                    wire.writer.write(data)
                    wire.writer.write_eof()
                    await wire.closed()
                    return
                await wire.send(data)
                if reads:
                    await wire.head()
                if how == "reset":
                    reset(wire)

        async with asyncio.timeout(60):
            for how in ("reset", "abort", "eof"):
                await asyncio.gather(*(one(data, reads, how) for data, reads in phases for _ in range(3)))
                await now.healthy()
        await until(lambda: not now.service.streams)
        await now.empty()
        # Nobody is kept busy for those who have left.
        await until(lambda: now.provider.gone >= sum(seen.body["model"] == "hang" for seen in now.provider.seen))


async def test_a_hundred_at_once_and_one_more_than_may_come(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        url = now.gateway.url
        answers = await asyncio.gather(*(once(url, "POST", CHAT, chat(stream=bool(n % 2))) for n in range(100)))
        assert {answer.status for answer in answers} == {200}
        wires = [await Wire(url).__aenter__() for _ in range(150)]
        async with asyncio.timeout(10):
            while await now.connections() < 150:
                await asyncio.sleep(0.02)
        async with Wire(url) as late:
            await late.send(b"GET /status HTTP/1.1\r\nhost: x\r\n\r\n")
            said = await late.closed()
            assert not said or b" 503 " in said, said
        assert (await wires[0].ask("GET", "/status")).status == 200
        for wire in wires:
            wire.writer.transport.abort()


async def test_floods_cost_no_memory(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        url = now.gateway.url
        for _ in range(20):  # what is usual is there already
            await now.healthy()
        before = rss(now.gateway.pid)
        block = b"a" * 65536
        chunked = b"POST %b HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"

        async def flood(start: bytes, part: bytes, size: int) -> None:
            try:
                async with Wire(url) as wire, asyncio.timeout(20):
                    if not start:
                        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
                    wire.writer.write(start)
                    for _ in range(size // len(part)):
                        await wire.send(part)
                    if start:
                        await wire.closed()
                    while not start:  # until it is put out: only writing tells
                        await wire.send(part)
                        await asyncio.sleep(0.01)
            except TimeoutError:
                raise
            except OSError:
                pass

        kinds = [
            (b"GET /", block),  # a target without an end
            (b"GET / HTTP/1.1\r\nx: ", block),  # a field without an end
            (b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 10_000),  # fields without an end
            (chunked % CHAT.encode(), b"10000\r\n" + block + b"\r\n"),
            (chunked % b"/plain/echo", b"1;" + block + b"\r\na\r\n"),
            (b"", request("GET", "/plain/big/1") * 100),  # pipelined, and never read
            (b"", request("GET", "/status") * 1000),
        ]
        await asyncio.gather(*(flood(start, part, 16 * MIB) for start, part in kinds for _ in range(4)))
        await now.healthy()
        grown = rss(now.gateway.pid) - before
        assert grown < 48 * MIB, f"{grown / MIB:.0f} MiB more"
