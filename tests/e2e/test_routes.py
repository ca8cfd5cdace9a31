"""Plain HTTP services behind one running gateway: which route, what changes on the way, streams, limits, failures."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.gateway import Gateway, free_port, rss, serving, until
from tests.fixtures.service import MIB, Service, service
from tests.fixtures.wire import Answer, Wire, once

pytestmark = pytest.mark.anyio

KEY = "caller-key-0123456789"
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, max_body: 64MiB{server}}}
telemetry: {{access_log: {{path: access.log}}}}
cors: {{origins: ["https://app.test"], expose: [x-secret]}}
routes:
  - {{name: plain, path: /plain, to: "{a}"}}
  - {{name: stripped, path: /stripped/, to: "{a}/base", strip_prefix: true}}
  - name: rewritten
    path: /old
    to: "{a}"
    rewrite: {{prefix: /echo/new, headers: {{x-key: inner}}, query: {{set: {{v: "2"}}, remove: [debug]}}}}
  - {{name: host, path: /where, host: "*.tenant.test", to: "{a}/tenant"}}
  - {{name: query, path: /where, match: {{query: {{beta: "1"}}}}, to: "{a}/beta"}}
  - {{name: header, path: /where, match: {{headers: {{x-canary: true}}}}, to: "{a}/canary"}}
  - {{name: post, path: /where, methods: [POST], to: "{a}/post"}}
  - {{name: where, path: /where, to: "{a}/default"}}
  - {{name: several, path: /several, to: ["{a}", "{dead}", "{b}"], strip_prefix: true}}
  - {{name: down, path: /down, to: "{dead}"}}
  - {{name: late, path: /late, to: "{a}", strip_prefix: true, timeout: {{first_byte: 300ms}}, retry: {{attempts: 1}}}}
  - {{name: total, path: /total, to: "{a}", strip_prefix: true, timeout: {{total: 300ms}}, retry: {{attempts: 1}}}}
  - {{name: host-kept, path: /kept, to: "{a}", preserve_host: true}}
  - name: guarded
    path: /guarded
    to: "{a}"
    authenticate: {{keys: [{{name: ci, key: {key}, user: ada, org: acme}}]}}
    authorize: {{rules: [{{deny: 'request.path.startsWith("/guarded/secret")'}}]}}
  - {{name: limited, path: /limited, to: "{a}", limits: [{{per: ip, requests: 3, window: 1h}}]}}
  - name: ruled
    path: /ruled
    to: "{a}"
    headers:
      request: {{set: {{x-tenant: acme}}, remove: [cookie], add: {{x-more: b}}}}
      response: {{remove: [x-secret], set: {{x-frame-options: DENY}}}}
  - {{name: nowhere, path: /denied, to: "{a}", address: {{allow: [10.0.0.0/8]}}}}
"""


@dataclass
class Running:
    gateway: Gateway
    a: Service
    b: Service

    async def ask(
        self, target: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        return await once(self.gateway.url, method, target, body, headers)

    async def said(self, target: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Any:
        """What the service got."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await self.ask(target, method, body, fields)
        assert answer.status == 200, answer
        said = answer.json()
        said["headers"] = {name.lower(): value for name, value in said["headers"]}
        return said


@asynccontextmanager
async def running(where: Path, server: str = "") -> AsyncIterator[Running]:
    async with service("a") as a, service("b") as b:
        dead = f"http://127.0.0.1:{free_port()}"
        config = CONFIG.format(a=a.url, b=b.url, dead=dead, key=KEY, server=server)
        async with serving(config, where) as gateway:
            yield Running(gateway, a, b)
            assert "Traceback" not in gateway.text()


async def test_which_route_and_what_the_upstream_sees(tmp_path: Path) -> None:
    async with running(tmp_path) as gw:
        said = gw.said
        assert (await said("/plain/echo?a=%20b&c"))["target"] == "/plain/echo?a=%20b&c"
        assert (await said("/stripped/x/y"))["target"] == "/base/x/y"
        assert (await said("/stripped"))["target"] == "/base"
        moved = await said("/old/thing?debug=1&v=1&q=x", x_key="from outside")
        assert (moved["target"], moved["headers"]["x-key"]) == ("/echo/new/thing?q=x&v=2", "inner")
        # One path, told apart by host, query, header and method.
        assert (await said("/where", host="eu.tenant.test"))["target"] == "/tenant/where"
        assert (await said("/where?beta=1"))["target"] == "/beta/where?beta=1"
        assert (await said("/where", x_canary="yes"))["target"] == "/canary/where"
        assert (await said("/where", "POST", b""))["target"] == "/post/where"
        assert (await said("/where?beta=2"))["target"] == "/default/where?beta=2"
        assert (await said("/where/../plain/./echo"))["target"] == "/plain/echo"
        assert (await gw.ask("/wherever")).status == 404
        missing = await gw.ask("/elsewhere")
        assert (missing.status, missing.headers["content-type"]) == (404, "application/problem+json")
        assert missing.headers["x-tollhouse-reason"] == "NotFound"
        head = await gw.ask("/plain/echo", "HEAD")
        assert head.status == 200
        assert int(head.headers["content-length"]) > 0
        assert (await said("/kept/echo", host="front.test"))["headers"]["host"] == "front.test"
        assert (await said("/plain/echo", host="front.test"))["headers"]["host"] == gw.a.url.removeprefix("http://")
        for method in ("TRACE", "CONNECT"):
            assert (await gw.ask("/plain/echo", method)).status in (400, 405)

        # Who came, and what belongs to one connection.
        spoofed = {
            "x-forwarded-for": "8.8.8.8", "forwarded": "for=8.8.8.8", "x-forwarded-proto": "https",
            "x-real-ip": "8.8.8.8", "x_forwarded_for": "8.8.8.8", "x-forwarded-host": "evil.test",
            "connection": "keep-alive, x-hop", "x-hop": "1",
            "te": "trailers", "keep-alive": "timeout=5", "proxy-authorization": "Basic eDp5", "upgrade": "h2c",
            "x-end": "kept", "host": "front.test", "authorization": "Bearer the-callers-own",
        }  # fmt: skip
        answer = await gw.ask("/stripped/echo", headers=spoofed)
        got = answer.json()["headers"]
        assert "8.8.8.8" not in str(got)
        assert "evil.test" not in str(got)
        got = {name.lower(): value for name, value in got}
        assert got["x-forwarded-for"] == "127.0.0.1"
        assert got["forwarded"] == 'for=127.0.0.1;host="front.test";proto=http'
        assert (got["x-forwarded-proto"], got["x-forwarded-host"]) == ("http", "front.test")
        assert got["x-forwarded-prefix"] == "/stripped"
        assert got["x-end"] == "kept"
        assert got.keys() & {"x-hop", "te", "keep-alive", "proxy-authorization", "upgrade", "connection"} == set()
        assert got["authorization"] == "Bearer the-callers-own"  # no policy has taken it: it is for the service
        assert answer.headers["x-request-id"] == got["x-request-id"]


async def test_policies_on_routes(tmp_path: Path) -> None:
    async with running(tmp_path) as gw:
        # Credentials tell who it is, and stay here.
        for name, value in (("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)):
            seen = await gw.said("/guarded/echo", **{name: value})
            assert KEY not in str(seen)
        assert (await gw.ask("/guarded/echo")).status == 401
        assert (await gw.ask("/guarded/echo", headers={"x-api-key": "wrong-key-0123456"})).status == 401
        assert (await gw.ask("/guarded/secret/x", headers={"x-api-key": KEY})).status == 403
        assert (await gw.ask("/guarded/x/../secret", headers={"x-api-key": KEY})).status == 403
        assert (await gw.ask("/denied/echo")).status == 403
        # Header rules both ways.
        answer = await gw.ask("/ruled/echo", headers={"cookie": "a=b", "x-tenant": "evil", "x-more": "a"})
        got = [(name.lower(), value) for name, value in answer.json()["headers"]]
        assert [value for name, value in got if name in ("x-tenant", "cookie")] == ["acme"]
        assert sorted(value for name, value in got if name == "x-more") == ["a", "b"]
        assert "x-secret" not in answer.headers
        assert answer.headers["x-frame-options"] == "DENY"
        # A preflight needs no credential, and a page may read every refusal.
        asked = {"origin": "https://app.test", "access-control-request-method": "PUT"}
        preflight = await gw.ask("/guarded/echo", "OPTIONS", headers=asked)
        assert preflight.status in (200, 204)
        assert preflight.headers["access-control-allow-origin"] == "https://app.test"
        assert "PUT" in preflight.headers["access-control-allow-methods"] or (
            preflight.headers["access-control-allow-methods"] == "*"
        )
        refused = await gw.ask("/guarded/echo", headers={"origin": "https://app.test"})
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://app.test")
        other = await gw.ask("/plain/echo", headers={"origin": "https://evil.test"})
        assert "access-control-allow-origin" not in other.headers
        # Three an hour for each address.
        statuses = [(await gw.ask("/limited/echo")).status for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        over = await gw.ask("/limited/echo")
        assert int(over.headers["retry-after"]) > 60
        assert over.headers["x-tollhouse-reason"] == "RateLimit"
        await until(lambda: sum(line["status"] == 429 for line in gw.gateway.lines()) == 2)
        assert KEY not in (tmp_path / "access.log").read_text() + gw.gateway.text()


async def test_a_trusted_proxy_is_believed(tmp_path: Path) -> None:
    async with running(tmp_path, ", trusted_proxies: [127.0.0.1]") as gw:
        headers = {"x-forwarded-for": "192.0.2.7", "x-forwarded-proto": "https", "x-forwarded-host": "front.test"}
        got = (await gw.said("/plain/echo", **headers))["headers"]
        assert got["x-forwarded-for"] == "192.0.2.7, 127.0.0.1"
        assert (got["x-forwarded-proto"], got["x-forwarded-host"]) == ("https", "front.test")
        assert got["forwarded"].startswith("for=192.0.2.7, for=127.0.0.1")
        # Limits and address rules are about the client, and not about the proxy.
        addresses = ["192.0.2.7"] * 4 + ["192.0.2.8"]
        statuses = [(await gw.ask("/limited/echo", headers={"x-forwarded-for": one})).status for one in addresses]
        assert statuses == [200, 200, 200, 429, 200]
        assert (await gw.ask("/denied/echo", headers={"x-forwarded-for": "10.1.2.3"})).status == 200
        assert (await gw.ask("/denied/echo", headers={"x-forwarded-for": "10.1.2.3, 192.0.2.7"})).status == 403


async def test_a_dead_upstream_among_several_is_not_seen_by_clients(tmp_path: Path) -> None:
    async with running(tmp_path) as gw:
        names = []
        async with Wire(gw.gateway.url) as wire:
            for n in range(30):
                answer = await wire.ask(*(("POST", "/several/echo", b"x") if n % 2 else ("GET", "/several/echo")))
                assert answer.status == 200, answer
                names.append(answer.json()["service"])
        assert set(names) == {"a", "b"}
        down = await gw.ask("/down/echo")
        assert down.status in (502, 503)
        assert down.headers["x-tollhouse-reason"] in ("UpstreamFailure", "NoHealthyBackend")
        assert down.headers["content-type"] == "application/problem+json"
        # One that dies before it answers: another one is asked, where asking twice does no harm.
        gw.b.name = "b2"
        died = await gw.ask("/plain/die")
        assert (died.status, died.headers["x-tollhouse-reason"]) == (502, "UpstreamFailure")
        assert (await gw.ask("/plain/die", "POST", b"x")).status == 502
        tries = [method for method, target, _ in gw.a.requests if target == "/plain/die"]
        # A kept connection that dies is also replaced once, where that does no harm.
        assert tries in (["GET"] * 2 + ["POST"], ["GET"] * 3 + ["POST"])
        # One that dies in its answer: the client sees that.
        async with Wire(gw.gateway.url) as wire:
            await wire.send(b"GET /plain/half HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await wire.head()).headers["content-length"] == "1000"
            assert len(await wire.closed()) < 1000
        assert (await gw.ask("/plain/status/503", "POST", b"")).status == 503


async def test_timeouts_are_504_and_let_the_upstream_go(tmp_path: Path) -> None:
    async with running(tmp_path) as gw:
        for path in ("/late/hang", "/total/hang"):
            began = time.monotonic()
            answer = await gw.ask(path)
            assert (answer.status, answer.headers["x-tollhouse-reason"]) == (504, "Timeout")
            assert 0.25 < time.monotonic() - began < 8
        await until(lambda: gw.a.left == 2)
        async with Wire(gw.gateway.url) as wire:
            await wire.send(b"GET /plain/hang HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: len(gw.a.requests) == 3)
        await until(lambda: gw.a.left == 3)  # the client's leaving is the upstream's as well
        await until(lambda: sum(line["status"] == 499 for line in gw.gateway.lines()) == 1)


async def test_streams_both_ways_and_big_bodies_in_bounded_memory(tmp_path: Path) -> None:
    async with running(tmp_path) as gw:
        # Down: each event when it comes.
        async with Wire(gw.gateway.url) as wire:
            await wire.send(b"GET /plain/sse HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = await wire.head()
            assert (answer.headers["content-type"], answer.chunked) == ("text/event-stream", True)
            for n in range(3):
                assert await wire.chunk() == b"data: %d\n\n" % n
                gw.a.tick()
        await until(lambda: gw.a.left == 1 and not gw.a.streams)
        # Up, chunked: the first bytes are there before the last ones are sent.
        async with Wire(gw.gateway.url) as wire:
            head = b"POST /plain/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            await wire.send(head + b"5\r\nhello\r\n")
            await until(lambda: any(target == "/plain/echo" for _, target, _ in gw.a.requests))
            for _ in range(8):
                await wire.send(b"%x\r\n%b\r\n" % (MIB, bytes(MIB)))
            await wire.send(b"0\r\n\r\n")
            said = (await wire.answer()).json()
            digest = hashlib.sha256(b"hello" + bytes(8 * MIB)).hexdigest()
            assert (said["size"], said["sha256"]) == (8 * MIB + 5, digest)
            # Expect: 100-continue, on the connection that goes on.
            await wire.send(b"PUT /plain/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
            assert (await wire.head()).status == 100
            await wire.send(b"abc")
            assert (await wire.answer()).json()["size"] == 3
        async with Wire(gw.gateway.url) as wire:
            await wire.send(b"POST /plain/echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (64 * MIB + 1))
            assert (await wire.answer()).status == 413
        # Big ones; slow readers and writers make nobody hold them.
        before = rss(gw.gateway.pid)
        peak = [before]

        async def watch() -> None:
            while True:
                peak.append(rss(gw.gateway.pid))
                await asyncio.sleep(0.01)

        watching = asyncio.ensure_future(watch())
        async with Wire(gw.gateway.url) as lazy:
            await lazy.send(b"GET /plain/big/200 HTTP/1.1\r\nhost: x\r\n\r\n")
            await lazy.head()  # and reads no more
            size = 32 * MIB

            async def upload() -> None:
                async with Wire(gw.gateway.url) as wire:
                    await wire.send(b"POST /plain/echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
                    for _ in range(size // MIB):
                        await wire.send(bytes(MIB))
                    assert (await wire.answer()).json()["size"] == size

            async def download() -> None:
                async with Wire(gw.gateway.url) as wire:
                    await wire.send(b"GET /plain/big/32 HTTP/1.1\r\nhost: x\r\n\r\n")
                    left = int((await wire.head()).headers["content-length"])
                    while left:
                        left -= len(await wire.reader.read(MIB))

            await asyncio.gather(upload(), download())
        watching.cancel()
        assert max(peak) - before < 24 * MIB, f"{(max(peak) - before) / MIB:.0f} MiB more"
