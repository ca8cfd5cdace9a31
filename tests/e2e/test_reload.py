"""A configuration that changes while it serves: nobody notices but by what is new, and a mistake changes nothing."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey
from tests.fixtures.gateway import Gateway, free_port, serving, until
from tests.fixtures.mcp_gateway import http_server
from tests.fixtures.provider import Provider, provider
from tests.fixtures.service import Service, service
from tests.fixtures.wire import Answer, Wire, once, request

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
HEAD = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, shutdown: {{min: 0s, max: 5s}}}}
telemetry: {{access_log: {{path: access.log}}}}
providers: {{one: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: "${{file:key.txt}}"}}}}
models:
  - {{name: smart, targets: [{{provider: one, model: ok}}]}}
"""
ROUTES = """
routes:
  - {{name: plain, path: /plain, to: "{url}", strip_prefix: true}}
"""


def chat(model: str = "smart", stream: bool = False) -> bytes:
    return json.dumps({"model": model, "stream": stream, "messages": [{"role": "user", "content": "hi"}]}).encode()


@dataclass
class Running:
    gateway: Gateway
    provider: Provider
    service: Service
    config: str

    async def asked(self, model: str = "smart") -> Answer:
        return await once(self.gateway.url, "POST", CHAT, chat(model))


@asynccontextmanager
async def running(where: Path) -> AsyncIterator[Running]:
    (where / "key.txt").write_text("first-key\n")
    async with provider() as models, service() as plain:
        config = HEAD.format(port=models.port) + "{more}" + ROUTES.format(url=plain.url)
        async with serving(config.replace("{more}", ""), where) as gateway:
            yield Running(gateway, models, plain, config)


@dataclass
class Load:
    """Unary requests without a pause, until `stop`."""

    url: str
    answers: int = 0
    failed: list[str] = field(default_factory=list)
    stop: bool = False

    async def client(self, number: int) -> None:
        async with Wire(self.url) as wire:
            while not self.stop:
                if number % 2:
                    answer = await wire.ask("POST", CHAT, chat(stream=bool(self.answers % 2)))
                else:
                    answer = await wire.ask("GET", "/plain/echo")
                if answer.status != 200:
                    self.failed.append(f"{answer.status} {answer.body!r}")
                    return
                self.answers += 1


async def test_changes_under_load_fail_no_request_and_cut_no_stream(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        gateway = now.gateway
        load = Load(gateway.url)
        streams = []
        clients = [asyncio.ensure_future(load.client(n)) for n in range(4)]
        for change in range(6):
            wire = await Wire(gateway.url).__aenter__()
            await wire.send(b"GET /plain/sse HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await wire.head()).status == 200
            assert await wire.chunk() == b"data: 0\n\n"
            streams.append(wire)
            enough = load.answers + 20
            await until(lambda enough=enough: load.answers >= enough or load.failed)
            # Models, policies, limits of the server and the very route of the streams: each time another.
            more = f"  - {{name: new-{change}, targets: [{{provider: one, model: ok}}]}}\n"
            config = now.config.replace("{more}", more)
            config = config.replace("strip_prefix: true", f"strip_prefix: true, timeout: {{idle: {60 + change}s}}")
            config += f"headers: {{response: {{set: {{x-version: '{change}'}}}}}}\n"
            await gateway.change(config)
            answer = await now.asked(f"new-{change}")
            assert (answer.status, answer.headers["x-version"]) == (200, str(change))
            if change:
                assert (await now.asked(f"new-{change - 1}")).status == 404
        load.stop = True
        await asyncio.gather(*clients)
        assert load.failed == []
        for wire in streams:
            assert not wire.reader.at_eof()
        now.service.tick()
        for wire in streams:
            assert await wire.chunk() == b"data: 1\n\n"
        now.service.release()
        for wire in streams:
            assert await wire.chunk() == b""
            wire.writer.transport.abort()
        assert "Traceback" not in gateway.text()
        text = await asyncio.to_thread(gateway.metrics)
        assert 'tollhouse_config_updates_total{source="file",result="ok"} 6' in text


async def test_a_mistake_is_refused_with_its_place_and_the_old_configuration_serves(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        bad = now.config.replace("{more}", "  - {name: bad, targets: [{provider: nobody}], tiemout: 1s}\n")
        said = await now.gateway.change(bad, "is refused; the last good one keeps serving:\n(.*\n)+.*tiemout")
        assert len(re.findall(r"tollhouse.yaml:7:\d+: ", said)) == 2, said
        assert (await now.asked()).status == 200
        assert (await now.asked("bad")).status == 404
        # What only a restart can change is said as such, with its place.
        moved = now.config.replace("{more}", "").replace("listen: 127.0.0.1:0", f"listen: 127.0.0.1:{free_port()}")
        moved = moved.replace("path: access.log", "path: other.log")
        said = await now.gateway.change(moved, "restart it to apply this(.*\n)+.*restart it to apply this")
        assert re.search(r"tollhouse.yaml:2:\d+: server.listen", said), said
        assert re.search(r"tollhouse.yaml:3:\d+: telemetry.access_log.path", said), said
        assert (await now.asked()).status == 200
        text = await asyncio.to_thread(now.gateway.metrics)
        assert 'tollhouse_config_updates_total{source="file",result="error"} 2' in text
        # And what is right again is taken.
        await now.gateway.change(now.config.replace("{more}", "  - {name: x, targets: [{provider: one, model: ok}]}\n"))
        assert (await now.asked("x")).status == 200


async def test_what_cannot_be_built_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        unbuilt = now.config.replace("{more}", "  - {name: y, targets: [{provider: one, model: ok}]}\n")
        unbuilt = unbuilt.replace("api_key:", "organization: acme, api_key:")
        clash = unbuilt + "  - {name: own, exact: /status, to: http://127.0.0.1:9}\n"
        said = await now.gateway.change(clash, "never be reached")
        assert re.search(r"tollhouse.yaml:\d+:\d+: ", said), said
        assert (await now.asked()).status == 200
        assert (await now.asked("y")).status == 404
        await now.gateway.change(unbuilt)
        assert (await now.asked("y")).status == 200
        assert now.provider.seen[-1].headers["authorization"] == "Bearer first-key"


async def test_a_rotated_secret_takes_effect(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        assert (await now.asked()).status == 200
        assert now.provider.seen[-1].headers["authorization"] == "Bearer first-key"
        since = now.gateway.log.stat().st_size
        (tmp_path / "new").write_text("second-key\n")
        (tmp_path / "new").replace(tmp_path / "key.txt")
        await now.gateway.logged(r"configuration 2 serves", since)
        assert (await now.asked()).status == 200
        assert now.provider.seen[-1].headers["authorization"] == "Bearer second-key"
        # The same where the secret stands in the file itself, and for a route's own header.
        config = now.config.replace("{more}", "").replace("${file:key.txt}", "third-key")
        config = config.replace("strip_prefix: true", "rewrite: {headers: {x-secret: one}}")
        await now.gateway.change(config)
        await once(now.gateway.url, "GET", "/plain")
        await now.gateway.change(config.replace("x-secret: one", "x-secret: two"))
        assert (await now.asked()).status == 200
        assert now.provider.seen[-1].headers["authorization"] == "Bearer third-key"
        await once(now.gateway.url, "GET", "/plain")
        sent = [dict(headers)["x-secret"] for _, _, headers in now.service.requests]
        assert sent == ["one", "two"]
        log = now.gateway.text()
        assert not any(key in log for key in ("first-key", "second-key", "third-key"))


CALLERS = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, trusted_proxies: [{trusted}]}}
authenticate:
  keys: [{{name: ci, key: {key}}}]
  jwt: [{{issuer: "https://idp.test", audiences: [tollhouse], jwks: jwks.json}}]
routes: [{{name: plain, path: /, to: "{url}"}}]
"""


def token(key: ECKey, **claims: object) -> str:
    now = int(time.time())
    body = {"iss": "https://idp.test", "aud": "tollhouse", "sub": "ada", "exp": now + 600, "iat": now, **claims}
    return jwt.encode({"alg": "ES256", "kid": key.kid}, body, key, algorithms=["ES256"])


def write_keys(where: Path, *keys: ECKey) -> None:
    document = {"keys": [key.as_dict(private=False, kid=key.kid) for key in keys]}
    (where / "jwks.new").write_text(json.dumps(document))
    (where / "jwks.new").replace(where / "jwks.json")


async def test_callers_keys_and_an_issuers_keys_come_and_go(tmp_path: Path) -> None:
    first, second = (ECKey.generate_key("P-256", {"kid": name}) for name in ("k1", "k2"))
    write_keys(tmp_path, first)
    async with service() as upstream:
        config = CALLERS.format(url=upstream.url, key="caller-key-one-0123", trusted="")
        async with serving(config, tmp_path) as gateway:

            async def status(credential: str) -> int:
                answer = await once(gateway.url, "GET", "/echo", None, {"authorization": f"Bearer {credential}"})
                return answer.status

            assert await status("caller-key-one-0123") == 200
            assert await status(token(first)) == 200
            assert await status(token(second)) == 401
            await gateway.change(config.replace("caller-key-one-0123", "caller-key-two-0123"))
            assert [await status(key) for key in ("caller-key-one-0123", "caller-key-two-0123")] == [401, 200]
            # The issuer's key file: a new key is known at once, and one that was taken out is refused at once.
            old = token(first)
            assert await status(old) == 200
            since = gateway.log.stat().st_size
            write_keys(tmp_path, second)
            await gateway.logged(r"configuration 3 serves", since)
            assert await status(token(second)) == 200
            assert await status(token(first, sub="eve")) == 401
            assert await status(old) == 401


async def test_trusted_proxies_change_for_routes_that_stay_the_same(tmp_path: Path) -> None:
    write_keys(tmp_path, ECKey.generate_key("P-256", {"kid": "k"}))
    async with service() as upstream:
        config = CALLERS.format(url=upstream.url, key="caller-key-one-0123", trusted="")
        async with serving(config, tmp_path) as gateway:
            headers = {"x-api-key": "caller-key-one-0123", "x-forwarded-for": "192.0.2.7"}

            async def forwarded() -> str:
                answer = await once(gateway.url, "GET", "/echo", None, headers)
                return dict(answer.json()["headers"])["x-forwarded-for"]

            assert await forwarded() == "127.0.0.1"
            await gateway.change(CALLERS.format(url=upstream.url, key="caller-key-one-0123", trusted="127.0.0.0/8"))
            assert await forwarded() == "192.0.2.7, 127.0.0.1"


async def test_metric_labels_change_while_it_serves(tmp_path: Path) -> None:
    async with service() as upstream:
        config = f"""
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0}}
routes: [{{name: plain, path: /, to: "{upstream.url}"}}]
telemetry: {{metrics: {{labels: {{team: 'request.headers["x-team"]'}}}}}}
"""
        async with serving(config, tmp_path) as gateway:
            await once(gateway.url, "GET", "/echo", None, {"x-team": "red"})
            await gateway.change(config.replace("team:", "group:"))
            await once(gateway.url, "GET", "/echo", None, {"x-team": "blue"})
            text = await asyncio.to_thread(gateway.metrics)
            assert re.search(r'tollhouse_requests_total\{[^}]*team="red"[^}]*\} 1', text)
            assert re.search(r'tollhouse_requests_total\{[^}]*group="blue"[^}]*\} 1', text)


async def test_hup_reopens_the_access_log(tmp_path: Path) -> None:
    async with running(tmp_path) as now:
        await now.asked()
        await until(lambda: len(now.gateway.lines()) == 1)
        (tmp_path / "access.log").rename(tmp_path / "access.log.1")
        os.kill(now.gateway.pid, signal.SIGHUP)
        await until((tmp_path / "access.log").exists)
        await now.asked()
        await until(lambda: len(now.gateway.lines()) == 1)
        assert len((tmp_path / "access.log.1").read_text().splitlines()) == 1


MCP = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, shutdown: {{min: 0s, max: 5s}}}}
mcp: {{servers: {{one: {{url: "{url}"}}{more}}}}}
"""


def rpc(id: int, method: str, **params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).encode()


async def test_an_mcp_server_is_added_and_removed_and_its_running_call_ends_well(tmp_path: Path) -> None:
    with http_server() as url:
        async with serving(MCP.format(url=url, more=""), tmp_path) as gateway:
            headers = {
                "content-type": "application/json",
                "accept": "application/json, text/event-stream",
                "mcp-protocol-version": "2025-11-25",
            }
            info = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
            opened = await once(gateway.url, "POST", "/mcp", rpc(1, "initialize", **info), headers)
            assert opened.status == 200, opened.body
            headers["mcp-session-id"] = opened.headers["mcp-session-id"]

            async def tools() -> list[str]:
                answer = await once(gateway.url, "POST", "/mcp", rpc(2, "tools/list"), headers)
                data = answer.body.partition(b"data: ")[2].strip() or answer.body
                return [tool["name"] for tool in json.loads(data)["result"]["tools"]]

            assert "echo" in await tools()
            call = rpc(3, "tools/call", name="wait", arguments={"seconds": 1.0})
            async with Wire(gateway.url) as waiting:
                await waiting.send(request("POST", "/mcp", call, headers))
                await tools()  # read after it, and by the same loop: the call is under way
                await gateway.change(MCP.format(url=url, more=f', two: {{url: "{url}", timeout: 9s}}'))
                assert {"one__echo", "two__echo"} <= set(await tools())
                # Away with the one that is being called.
                await gateway.change(MCP.format(url=url, more="").replace("one:", "three:"))
                answer = await waiting.answer()
            assert answer.status == 200
            assert b"waited" in answer.body, answer.body
            assert "echo" in await tools()


async def test_a_rotated_header_of_an_mcp_server_takes_effect(tmp_path: Path) -> None:
    async with service() as upstream:
        config = MCP.format(url=upstream.url + "/echo", more="").replace('echo"', 'echo", headers: {x-token: "one"}')
        async with serving(config, tmp_path) as gateway:

            async def ask() -> None:
                headers = {
                    "content-type": "application/json",
                    "accept": "application/json, text/event-stream",
                    "mcp-protocol-version": "2026-07-28",
                    "mcp-method": "tools/list",
                }
                meta = {
                    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                    "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "0"},
                    "io.modelcontextprotocol/clientCapabilities": {},
                }
                await once(gateway.url, "POST", "/mcp", rpc(1, "tools/list", _meta=meta), headers)

            await ask()
            await gateway.change(config.replace('"one"', '"two"'))
            await ask()
            sent = [dict(headers).get("x-token") for _, _, headers in upstream.requests]
            assert sent[0] == "one"
            assert sent[-1] == "two"
