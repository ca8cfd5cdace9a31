"""Sessions of agents through `tollhouse serve`: over workers, restarts and the loss of a gateway, and how much they
take."""

import asyncio
import http.client
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from mcp.client.session import ClientSession
from mcp.client.sse import sse_client
from tests.fixtures.gateway import Gateway, answer_of, executed, serving, until
from tests.fixtures.valkey import Valkey, valkey

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, workers: {workers}, shutdown: {{min: 0s, max: 5s}}}}
state: {state}
mcp:
  legacy_sse: {legacy}
  servers: {{demo: {{command: "{python}", args: [-m, tollhouse.demo]}}}}
"""
KEY = "0123456789abcdef0123456789abcdef"
BOTH = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


def config(state: str = "memory", *, workers: int = 1, legacy: bool = False) -> str:
    return CONFIG.format(state=state, workers=workers, legacy=str(legacy).lower(), python=sys.executable)


def message(method: str, params: Any = None, id: Any = 1) -> Any:
    body = {"jsonrpc": "2.0", "method": method, "params": params or {}}
    return body if id is None else body | {"id": id}


INITIALIZE = message(
    "initialize",
    {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
)
ECHO = message("tools/call", {"name": "echo", "arguments": {"message": "hi"}})


def opened(gateway: Gateway) -> dict[str, str]:
    """The headers of a new session."""
    status, headers, _ = gateway.exchange("POST", "/mcp", INITIALIZE, BOTH)
    assert status == 200
    return BOTH | {"mcp-session-id": headers["mcp-session-id"], "mcp-protocol-version": "2025-11-25"}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    with valkey(tmp_path / "valkey") as one:
        yield one


async def test_an_sdk_over_http_sse(tmp_path: Path) -> None:
    async with (
        serving(config(legacy=True), tmp_path) as gateway,
        sse_client(f"{gateway.url}/mcp/sse") as (read, write),
        ClientSession(read, write) as session,
    ):
        opening = await session.initialize()
        assert opening.protocol_version == "2024-11-05"
        tools = [tool.name for tool in (await session.list_tools()).tools]
        assert "echo" in tools
        said = await session.call_tool("echo", {"message": "hi"})
        assert "hi" in str(said.content)
        assert gateway.exchange("POST", "/mcp/demo/messages?session_id=x", ECHO, BOTH)[0] == 404


async def test_without_the_option_there_is_no_http_sse(tmp_path: Path) -> None:
    async with serving(config(), tmp_path) as gateway:
        assert gateway.get("/mcp/sse")[0] == 404


async def test_a_session_outlives_a_restart(tmp_path: Path) -> None:
    with Gateway(config(f'{{encryption_key: "{KEY}"}}'), tmp_path) as gateway:
        headers = opened(gateway)
        gateway.stop()
        gateway.start()
        assert gateway.ask("POST", "/mcp", ECHO, headers)[0] == 200
        assert gateway.ask("POST", "/mcp/demo", ECHO, headers)[0] == 404
        assert gateway.ask("DELETE", "/mcp", None, headers)[0] == 204
        assert gateway.ask("POST", "/mcp", ECHO, headers)[0] == 404


async def test_without_a_key_sessions_end_with_the_process(tmp_path: Path) -> None:
    with Gateway(config(), tmp_path) as gateway:
        headers = opened(gateway)
        assert gateway.ask("POST", "/mcp", ECHO, headers)[0] == 200
        gateway.stop()
        gateway.start()
        assert gateway.ask("POST", "/mcp", ECHO, headers)[0] == 404


async def test_a_caller_has_so_many_sessions(tmp_path: Path) -> None:
    text = config().replace("  legacy_sse:", "  sessions_per_caller: 2\n  legacy_sse:")
    text += "authenticate: {keys: [{name: ci, key: agent-secret}, {name: other, key: other-secret}]}\n"
    with Gateway(text, tmp_path) as gateway:

        def open_as(key: str) -> dict[str, str]:
            caller = BOTH | {"authorization": f"Bearer {key}"}
            status, headers, _ = gateway.exchange("POST", "/mcp", INITIALIZE, caller)
            assert status == 200
            return caller | {"mcp-session-id": headers["mcp-session-id"]}

        first, other = open_as("agent-secret"), open_as("other-secret")
        await asyncio.sleep(0.2)  # the clock is coarse
        mine = [open_as("agent-secret") for _ in range(2)]
        assert gateway.ask("POST", "/mcp", ECHO, first)[0] == 404
        assert [gateway.ask("POST", "/mcp", ECHO, one)[0] for one in (other, *mine)] == [200, 200, 200]
        stolen = mine[0] | {"authorization": "Bearer other-secret"}
        assert gateway.ask("POST", "/mcp", ECHO, stolen)[0] == 404


async def test_workers_are_one(tmp_path: Path, own: Valkey) -> None:
    state = f'{{url: "{own.url}", encryption_key: "{KEY}"}}'
    async with serving(config(state, workers=2), tmp_path) as gateway:
        await until(lambda: gateway.text().count("listens") >= 2)
        headers = await asyncio.to_thread(opened, gateway)
        seen = set()
        for _ in range(40):  # each on a connection of its own
            status, told, body = await asyncio.to_thread(gateway.exchange, "POST", "/mcp", ECHO, headers)
            assert (status, answer_of(body)["id"]) == (200, 1)
            seen.add(told["x-request-id"][:12])
        assert len(seen) == 2
        assert (await asyncio.to_thread(gateway.ask, "DELETE", "/mcp", None, headers))[0] == 204
        await asyncio.sleep(0.5)  # the other worker hears of it
        for _ in range(20):
            assert (await asyncio.to_thread(gateway.ask, "POST", "/mcp", ECHO, headers))[0] == 404
    assert KEY.encode() not in b"".join(own.do("KEYS", "*"))


async def test_a_gateway_is_killed(tmp_path: Path, own: Valkey) -> None:
    state = f'{{url: "{own.url}", encryption_key: "{KEY}"}}'
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with Gateway(config(state), tmp_path / "a") as a, Gateway(config(state), tmp_path / "b") as b:
        headers = opened(a)
        level = message("logging/setLevel", {"level": "error"})
        assert a.ask("POST", "/mcp", level, headers)[0] == 200
        assert a.process is not None
        a.process.kill()
        assert b.ask("POST", "/mcp", ECHO, headers)[0] == 200
        assert b.ask("POST", "/mcp", ECHO, headers | {"mcp-session-id": headers["mcp-session-id"][:-1]})[0] == 404


def sessions(gateway: Gateway) -> float:
    """How many agents have one, as the metrics say."""
    lines = [line for line in gateway.metrics().splitlines() if line.startswith("tollhouse_mcp_sessions{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'side="agent"' in line)


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
async def test_five_thousand_sessions_fit_and_end(tmp_path: Path) -> None:
    """Each has been used; all end, and nothing is counted any more."""
    with Gateway(config(), tmp_path, begin=executed) as gateway:
        place = urlsplit(gateway.url)
        connection = http.client.HTTPConnection(place.hostname or "", place.port)

        def ask(method: str, body: Any, headers: dict[str, str]) -> http.client.HTTPResponse:
            connection.request(method, "/mcp", json.dumps(body), headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status in (200, 202, 204)
            return answer

        ids = []
        for _ in range(5000):
            ids.append(ask("POST", INITIALIZE, BOTH).headers["mcp-session-id"])
            ask("POST", message("notifications/initialized", id=None), BOTH | {"mcp-session-id": ids[-1]})
        assert sessions(gateway) == 5000
        assert resident(gateway.pid) < 200 << 20
        for id in ids:
            ask("DELETE", None, BOTH | {"mcp-session-id": id})
        assert sessions(gateway) == 0
        connection.close()
