"""How much many agents take: thousands of live sessions, each with a session at a server over HTTP, and lists of a
thousand tools. Measured in the gateway's own process."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from tests.fixtures.gateway import Gateway, answer_of, executed, rss, until
from tests.fixtures.http_thread import in_thread

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

HERE = Path(__file__).parents[1]
BOTH = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
OPENING = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
MEBIBYTE = 1 << 20


# ---- sessions
@contextmanager
def many() -> Iterator[str]:
    """The URL of a server that can have thousands of sessions and streams."""
    command = [sys.executable, str(HERE / "fixtures/mcp_many.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def counted(url: str) -> dict[str, int]:
    """What the server has open."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    try:
        connection.request("GET", "/count")
        found: dict[str, int] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()


class Agents:
    """Sessions of agents, on one connection; their streams have one each."""

    def __init__(self, gateway: Gateway) -> None:
        place = urlsplit(gateway.url)
        self._place = (place.hostname or "", place.port)
        self._connection = http.client.HTTPConnection(*self._place)
        self._stack = ExitStack()
        self.ids: list[str] = []
        self.streams: list[http.client.HTTPResponse] = []

    def ask(self, method: str, body: Any, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, bytes]:
        self._connection.request(method, "/mcp", None if body is None else json.dumps(body), headers)
        answer = self._connection.getresponse()
        data = answer.read()
        assert answer.status in (200, 202, 204), (answer.status, data)
        return answer, data

    def of(self, id: str) -> dict[str, str]:
        return BOTH | {"mcp-session-id": id, "mcp-protocol-version": "2025-11-25"}

    def open(self) -> None:
        """One more, used once: its call goes over a session of its own at the server."""
        answer, _ = self.ask("POST", {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": OPENING}, BOTH)
        id = answer.headers["mcp-session-id"]
        self.ids.append(id)
        self.ask("POST", {"jsonrpc": "2.0", "method": "notifications/initialized"}, self.of(id))
        self.call(id)

    def call(self, id: str) -> str:
        """The id of the session at the server."""
        params = {"name": "echo", "arguments": {"message": "hi"}}
        _, data = self.ask("POST", {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": params}, self.of(id))
        said, _, there = answer_of(data)["result"]["content"][0]["text"].partition(" ")
        assert said == "hi"
        return str(there)

    def listen(self, id: str) -> None:
        connection = http.client.HTTPConnection(*self._place, timeout=30)
        self._stack.callback(connection.close)
        connection.request("GET", "/mcp", headers={"accept": "text/event-stream", **self.of(id)})
        stream = connection.getresponse()
        assert stream.status == 200
        self.streams.append(stream)

    def heard(self, method: str) -> None:
        """All that listen are told this."""
        for stream in self.streams:
            while method.encode() not in (line := stream.readline()):
                assert line

    def leave(self) -> None:
        self._stack.close()
        for id in self.ids:
            self.ask("DELETE", None, self.of(id))
        self._connection.close()


@pytest.mark.parametrize("sessions", [1000, pytest.param(5000, marks=pytest.mark.soak)])
async def test_live_sessions(tmp_path: Path, sessions: int) -> None:
    """Each has called through, and every fifth listens; five thousand take less than 200 MB, the program included. They
    hear of a change, go on over the sessions that they had, and leave nothing behind at either side."""
    with many() as url:
        settings: dict[str, Any] = {"prefix": "never", "servers": {"m": {"url": url}}}
        config = {"server": {"listen": "127.0.0.1:0", "metrics": None}, "mcp": settings}
        with Gateway(yaml.safe_dump(config), tmp_path, begin=executed) as gateway:
            began = rss(gateway.pid)
            agents = Agents(gateway)
            for n in range(sessions):
                agents.open()
                if n % 5 == 0:
                    agents.listen(agents.ids[-1])
            await until(lambda: counted(url) == {"sessions": sessions, "streams": sessions})
            full = rss(gateway.pid)
            each = (full - began) / sessions
            print(f"{full / MEBIBYTE:.0f} MB, {each / 1024:.1f} KB a session")
            assert began + 5000 * each < 200 * MEBIBYTE

            there = [agents.call(id) for id in agents.ids[::50]]
            assert len(set(there)) == len(there)
            settings["input_timeout"] = "1m"
            await gateway.change(yaml.safe_dump(config))
            agents.heard("notifications/tools/list_changed")
            assert [agents.call(id) for id in agents.ids[::50]] == there
            assert rss(gateway.pid) < full + 10 * MEBIBYTE

            agents.leave()
            await until(lambda: counted(url) == {"sessions": 0, "streams": 0})
            again = Agents(gateway)
            for _ in range(sessions // 4):
                again.open()
            again.leave()
            assert rss(gateway.pid) < full + 10 * MEBIBYTE  # what they had is used again
            assert "Traceback" not in gateway.text()


# ---- lists
SERVERS, EACH = 20, 50
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
LIST = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}})
HEADERS = BOTH | {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/list"}


class _Tools(BaseHTTPRequestHandler):
    """Stateless servers at /s0, /s1, ..., each with fifty tools."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        schema = {
            "type": "object",
            "properties": {
                f"argument_{n}": {"type": "string", "description": "What it is to be done with, in a few words."}
                for n in range(4)
            },
        }
        about = "Does what is to be done with the thing that it is given, and tells what became of it. "
        tools = [{"name": f"do_{n}", "description": about * 2, "inputSchema": schema} for n in range(EACH)]
        results = {
            "server/discover": {
                "resultType": "complete",
                "supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": self.path[1:], "version": "1"},
            },
            "tools/list": {"resultType": "complete", "ttlMs": 3_600_000, "cacheScope": "public", "tools": tools},
        }
        data = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": results[message["method"]]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def tool_servers() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Tools)
    with in_thread(server):
        yield server.server_address[1]


def cpu_ms(pid: int) -> float:
    """Milliseconds of processor time that the process has had."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((one / "schedstat").read_text().split()[0]) for one in threads) / 1e6


@pytest.mark.parametrize("rules", [False, True])
def test_a_list_of_a_thousand_tools(tmp_path: Path, rules: bool) -> None:
    """Over twenty servers, once they have been read: at most 2 ms of the gateway's time, also where a rule decides
    tool by tool. (On an idle machine 0.2, and 0.6 with a rule; the quietest of three turns counts.)"""
    with tool_servers() as port:
        config: dict[str, Any] = {
            "server": {"listen": "127.0.0.1:0", "metrics": None},
            "mcp": {"servers": {f"s{n}": {"url": f"http://127.0.0.1:{port}/s{n}"} for n in range(SERVERS)}},
        }
        if rules:
            config["authorize"] = {"rules": [{"deny": 'mcp.tool.name == "do_7"'}]}
        with Gateway(yaml.safe_dump(config), tmp_path) as gateway:
            place = urlsplit(gateway.url)
            connection = http.client.HTTPConnection(place.hostname or "", place.port)

            def tools() -> bytes:
                connection.request("POST", "/mcp", LIST, HEADERS)
                return connection.getresponse().read()

            for _ in range(5):
                listed = json.loads(tools())["result"]["tools"]
            assert len(listed) == SERVERS * (EACH - rules)
            turns = []
            for _ in range(3):
                before = cpu_ms(gateway.pid)
                for _ in range(50):
                    tools()
                turns.append((cpu_ms(gateway.pid) - before) / 50)
            connection.close()
            print(f"{min(turns):.2f} ms a list")
            assert min(turns) < 2
