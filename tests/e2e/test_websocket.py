"""WebSocket (RFC 6455) through a running gateway, frame by frame."""

import asyncio
import base64
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.service import Service, frame, read_frame, service
from tests.fixtures.wire import Answer, Wire

pytestmark = pytest.mark.anyio

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, shutdown: {{min: 0s, max: 10s}}}}
telemetry: {{access_log: {{path: access.log}}}}
routes:
  - {{name: chat, path: /chat, to: "{url}", strip_prefix: true}}
  - {{name: idle, path: /idle, to: "{url}", strip_prefix: true, timeout: {{tunnel: 300ms}}}}
  - {{name: closed, path: /closed, to: "{url}", strip_prefix: true, websocket: false}}
  - name: guarded
    path: /guarded
    to: "{url}"
    strip_prefix: true
    authenticate: {{keys: [{{name: ci, key: key-0123456789}}]}}
"""


@asynccontextmanager
async def running(where: Path) -> AsyncIterator[tuple[Gateway, Service]]:
    async with service() as upstream, serving(CONFIG.format(url=upstream.url), where) as gateway:
        yield gateway, upstream
        assert "Traceback" not in gateway.text()


def upgrade(path: str, more: str = "", rest: bytes = b"") -> bytes:
    head = (
        f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
        f"sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\nsec-websocket-protocol: chat\r\n{more}\r\n"
    )
    return head.encode() + rest


async def opened(wire: Wire, path: str = "/chat/ws", more: str = "", rest: bytes = b"") -> Answer:
    await wire.send(upgrade(path, more, rest))
    answer = await wire.head()
    if answer.status == 101:
        async with asyncio.timeout(10):
            assert await read_frame(wire.reader) == (1, b"welcome")
    return answer


async def test_frames_pass_both_ways_with_back_pressure_and_an_end(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, upstream):
        async with Wire(gateway.url) as wire:
            # The first frame comes along with the request.
            answer = await opened(wire, rest=frame(1, b"early", os.urandom(4)))
            accept = base64.b64encode(hashlib.sha1(f"{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
            assert answer.headers["sec-websocket-accept"] == accept.decode()
            assert (answer.headers["upgrade"], answer.headers["connection"].lower()) == ("websocket", "upgrade")
            got = dict(upstream.requests[-1][2])
            assert (got["sec-websocket-protocol"], got["x-forwarded-for"]) == ("chat", "127.0.0.1")
            async with asyncio.timeout(20):
                assert await read_frame(wire.reader) == (1, b"early")
                for size in (0, 1, 125, 126, 65535, 65536, 3_000_000):
                    payload = os.urandom(size)
                    await wire.send(frame(2, payload, os.urandom(4)))
                    assert await read_frame(wire.reader) == (2, payload)
                await wire.send(frame(9, b"ping", os.urandom(4)))
                assert await read_frame(wire.reader) == (9, b"ping")  # the service echoes all alike
                await wire.send(frame(8, b"\x03\xe8", os.urandom(4)))
                assert await read_frame(wire.reader) == (8, b"\x03\xe8")
                assert await wire.closed() == b""
        await until(lambda: not upstream.streams)
        await until(lambda: len(gateway.lines()) == 1)
        assert gateway.lines()[0]["status"] == 101


async def test_a_side_that_leaves_takes_the_other_along(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, upstream):
        async with Wire(gateway.url) as wire:
            await opened(wire)
            assert upstream.streams == 1
        await until(lambda: upstream.left == 1 and not upstream.streams)
        async with Wire(gateway.url) as wire:
            await opened(wire)
            for writer in list(upstream.open):
                writer.transport.abort()
            assert await wire.closed() == b""
        # Nothing said either way for as long as the route allows.
        async with Wire(gateway.url) as wire:
            await opened(wire, "/idle/ws")
            assert await wire.closed(5) == b""
        await until(lambda: not upstream.streams)


async def test_where_it_is_not_let_through(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, upstream):
        async with Wire(gateway.url) as wire:
            await wire.send(upgrade("/closed/echo"))
            answer = await wire.answer()
            assert answer.status == 200
            assert "upgrade" not in dict(upstream.requests[-1][2])
        async with Wire(gateway.url) as wire:
            await wire.send(upgrade("/guarded/ws"))
            assert (await wire.answer()).status == 401
        async with Wire(gateway.url) as wire:
            assert (await opened(wire, "/guarded/ws", "x-api-key: key-0123456789\r\n")).status == 101
            assert "key-0123456789" not in str(upstream.requests[-1])
        async with Wire(gateway.url) as wire:  # an upstream that refuses the upgrade answers as usual
            await wire.send(upgrade("/chat/status/403"))
            assert (await wire.answer()).status == 403


async def test_a_tunnel_outlives_a_change_and_ends_at_the_hard_end(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, upstream):
        async with Wire(gateway.url) as wire:
            await opened(wire)
            changed = CONFIG.format(url=upstream.url).replace("name: chat, path: /chat,", "name: talk, path: /talk,")
            await gateway.change(changed.replace("max: 10s", "max: 1s"))
            async with asyncio.timeout(10):
                await wire.send(frame(1, b"still here", os.urandom(4)))
                assert await read_frame(wire.reader) == (1, b"still here")
            async with Wire(gateway.url) as other:
                await other.send(upgrade("/chat/ws"))
                assert (await other.answer()).status == 404
            os.kill(gateway.pid, signal.SIGTERM)
            assert await wire.closed(8) == b""
        assert await gateway.ended(5) == 0
        await until(lambda: not upstream.streams)
