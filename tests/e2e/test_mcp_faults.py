"""A network that fails between the gateway and an MCP server: the proxy that makes it fail, and what agents see."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.fixtures.fault_proxy import Fault, FaultProxy, schedule
from tests.fixtures.gateway import Gateway
from tests.fixtures.gone import until_gone
from tests.fixtures.mcp_suite import FIXTURE, ROOT, fixture_server
from tests.fixtures.mortal import Mortal, OverHttp, mortal
from tests.fixtures.wire import Answer, Wire

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 64


# ---- the proxy
@asynccontextmanager
async def talker() -> AsyncIterator[int]:
    """A server that sends DATA for each line it gets, and ends when the client does. Its port."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with until_gone(writer):
            while await reader.readline():
                writer.write(DATA)
                await writer.drain()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def ask(port: int, size: int = len(DATA), seconds: float = 10) -> bytes:
    """What comes back for a line: `size` bytes, or all until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(seconds):
            writer.write(b"?\n")
            return await reader.readexactly(size)
    except asyncio.IncompleteReadError as short:
        return short.partial
    finally:
        writer.close()


async def test_the_proxy_passes_everything_when_nothing_befalls_it() -> None:
    async with talker() as target, FaultProxy(target) as proxy:
        assert await ask(proxy.port) == DATA
        assert (proxy.opened, proxy.struck) == (1, [])


async def test_the_proxy_cuts_after_so_many_bytes() -> None:
    faults = [Fault("cut", 100), Fault("close", 100), Fault("cut", 0, to="server"), None]
    async with talker() as target, FaultProxy(target, faults) as proxy:
        with pytest.raises(ConnectionResetError):
            await ask(proxy.port)
        assert await ask(proxy.port) == DATA[:100]
        with pytest.raises(ConnectionResetError):
            await ask(proxy.port)
        assert await ask(proxy.port) == DATA
        assert proxy.struck == list(enumerate(faults[:3]))


async def test_the_proxy_closes_one_direction() -> None:
    async with talker() as target, FaultProxy(target, [Fault("half_close", 10)]) as proxy:
        assert await ask(proxy.port) == DATA[:10]


async def test_the_proxy_garbles() -> None:
    async def once() -> bytes:
        async with talker() as target, FaultProxy(target, [Fault("garbage", 100, size=8)], seed=3) as proxy:
            return await ask(proxy.port, 108)

    got = await once()
    assert got[:100] == DATA[:100]
    assert got[100:] != DATA[100:108]
    assert got == await once()


async def test_the_proxy_swallows() -> None:
    async with talker() as target, FaultProxy(target, [Fault("black_hole", 50)]) as proxy:
        assert await ask(proxy.port, 50) == DATA[:50]
        proxy.befall([Fault("black_hole")])
        with pytest.raises(TimeoutError):
            await ask(proxy.port, 1, seconds=0.2)


async def test_the_proxy_is_slow() -> None:
    loop = asyncio.get_running_loop()
    faults = [Fault("delay", seconds=0.1), Fault("drip", after=len(DATA) - 5, seconds=0.02)]
    async with talker() as target, FaultProxy(target, faults) as proxy:
        for _ in faults:
            start = loop.time()
            assert await ask(proxy.port) == DATA
            assert loop.time() - start > 0.07  # its clock counts milliseconds


SAID = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("asked", "fault", "spoilt"),
    [
        (b'POST / "tools/call"', Fault("chatter", size=200), b"notifications/message"),
        (b'POST / "tools/call"', Fault("hurry"), b"retry: 0\ndata: \n\n\r\n0\r\n\r\n"),
        (b"GET /\r\nLast-Event-ID: s1-0", Fault("hurry"), b"retry: 0\ndata: \n\n\r\n0\r\n\r\n"),
        (b'POST / "tools/list"', Fault("chatter", size=200), b""),
    ],
)
async def test_the_proxy_spoils_the_streams_of_calls(asked: bytes, fault: Fault, spoilt: bytes) -> None:
    rest = b"a\r\nid: s1-0\n\n\r\n0\r\n\r\n"

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(SAID + rest)
        writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    async with FaultProxy(server.sockets[0].getsockname()[1], [fault]) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(asked)
        got = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    server.close()
    assert got.startswith(SAID)
    assert bool(proxy.struck) == bool(spoilt)
    if fault.kind == "hurry":
        assert got.endswith(b"id: s1-0\n" + spoilt)
    else:
        assert got.endswith(rest)
        assert got.count(b"notifications/message") == (200 if spoilt else 0)


async def test_the_proxy_goes_and_comes_back() -> None:
    async with talker() as target, FaultProxy(target) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"?\n")
        await reader.readexactly(len(DATA))
        await proxy.down()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        with pytest.raises(ConnectionRefusedError):
            await ask(proxy.port)
        await proxy.up()
        assert await ask(proxy.port) == DATA
        writer.close()


def test_a_schedule_is_the_same_for_a_seed() -> None:
    faults = [Fault("cut", 10), Fault("delay", seconds=0.1)]

    def some(seed: int) -> list[Fault | None]:
        return list(itertools.islice(schedule(seed, faults), 50))

    assert some(1) == some(1) != some(2)
    assert None in some(1)


# ---- through the gateway
@pytest.fixture(scope="module", params=["old", "new"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    with fixture_server("--era", request.param) as url:
        yield url


@asynccontextmanager
async def behind(server: str, where: Path, timeout: str = "8s") -> AsyncIterator[tuple[FaultProxy, Gateway]]:
    """A gateway that reaches the server through a proxy, and no other way; beside it one that is whole."""
    async with FaultProxy(urlsplit(server).port or 0) as proxy:
        config = f"""
server: {{listen: 127.0.0.1:0, metrics: null}}
mcp:
  servers:
    shaky: {{url: "http://127.0.0.1:{proxy.port}/mcp", timeout: {timeout}, trust_annotations: true}}
    whole: {{url: "{server}"}}
"""
        gateway = Gateway(config, where)
        await asyncio.to_thread(gateway.start)
        try:
            yield proxy, gateway
        finally:
            await asyncio.to_thread(gateway.stop)


NEW = "2026-07-28"


def request(
    name: str, arguments: object = None, method: str = "tools/call", **meta: object
) -> tuple[dict[str, object], dict[str, str]]:
    """The body and the headers of a stateless call; of a list when there is no name."""
    meta |= {
        "io.modelcontextprotocol/protocolVersion": NEW,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params: dict[str, object] = {"_meta": meta}
    headers = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": NEW,
        "mcp-method": method,
    }
    if name:
        params |= {"name": name, "arguments": arguments or {}}
        headers["mcp-name"] = name
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, headers


def read(data: bytes) -> dict[str, object]:
    """The response of an answer's body, JSON or a stream."""
    lines = [line for line in data.decode().splitlines() if line.startswith(("data: ", "{"))]
    said: dict[str, object] = json.loads(lines[-1].removeprefix("data: "))
    return said


async def call(
    gateway: Gateway, name: str, arguments: object = None, server: str = "shaky", **meta: object
) -> dict[str, object]:
    """The result or the error of a stateless call."""
    body, headers = request(name, arguments, **meta)
    _, _, data = await asyncio.to_thread(gateway.exchange, "POST", f"/mcp/{server}", body, headers)
    return read(data)


async def known(gateway: Gateway, server: str = "shaky", hint: bytes = b"idempotentHint") -> None:
    """From now on the gateway knows what the server says of its tools: which may be repeated."""
    body, headers = request("", method="tools/list")
    _, _, data = await asyncio.to_thread(gateway.exchange, "POST", f"/mcp/{server}", body, headers)
    assert hint in data


def text(said: dict[str, object]) -> str:
    result = said.get("result")
    assert isinstance(result, dict), said
    found: str = result["content"][0]["text"]
    return found


FAULTS = [
    Fault("cut", 0),
    Fault("cut", 60),
    Fault("close", 0),
    Fault("close", 60),
    Fault("half_close", 60),
    Fault("delay", seconds=0.05),
    Fault("drip", 20, seconds=0.0005),
    Fault("cut", 0, to="server"),
    Fault("cut", 200, to="server"),
]


async def test_what_may_be_repeated_succeeds(server: str, tmp_path: Path) -> None:
    async with behind(server, tmp_path) as (proxy, gateway):
        await known(gateway)
        for seed in (1, 2, 3):
            proxy.befall(schedule(seed, FAULTS, 0.4))
            for n in range(8):
                proxy.reset()
                assert text(await call(gateway, "echo", {"message": f"{n}"})) == f"{n}"
        assert len(proxy.struck) > 5


async def test_what_may_not_be_repeated_runs_once_or_not_at_all(server: str, tmp_path: Path) -> None:
    async with behind(server, tmp_path) as (proxy, gateway):
        await known(gateway)
        key = f"{tmp_path.name}-{server}"
        for n in range(8):
            proxy.reset()
            proxy.befall(schedule(n, FAULTS, 0.7))
            said = await call(gateway, "add_one", {"key": f"{key}-{n}"})
            proxy.spare()
            count = int(text(await call(gateway, "get_count", {"key": f"{key}-{n}"}, "whole")))
            assert count <= 1
            if "result" in said:
                assert (text(said), count) == ("1", 1)
            else:
                error = said["error"]
                assert isinstance(error, dict)
                assert error["data"]["reason"] in ("call_lost", "server_unavailable"), said


async def test_a_server_in_a_black_hole_delays_nobody_else(server: str, tmp_path: Path) -> None:
    async with behind(server, tmp_path, "2s") as (proxy, gateway):
        await known(gateway)
        proxy.befall(itertools.repeat(Fault("black_hole")))
        proxy.reset()
        stuck = asyncio.ensure_future(call(gateway, "echo", {"message": "x"}))
        loop = asyncio.get_running_loop()
        for _ in range(5):
            start = loop.time()
            assert text(await call(gateway, "echo", {"message": "y"}, "whole")) == "y"
            assert loop.time() - start < 2
        assert not stuck.done()
        proxy.spare()
        proxy.reset()
        said = await stuck
        assert "result" in said or "error" in said
        assert text(await call(gateway, "echo", {"message": "z"})) == "z"


@pytest.mark.parametrize("fault", [Fault("garbage", 0, size=64), Fault("black_hole", 30)], ids=lambda fault: fault.kind)
async def test_garbage_and_silence_end_as_errors(server: str, tmp_path: Path, fault: Fault) -> None:
    """Whatever connection the call takes, so that none can be answered."""
    async with behind(server, tmp_path, "2s") as (proxy, gateway):
        await known(gateway)
        assert text(await call(gateway, "echo", {"message": "before"})) == "before"
        key = f"{fault.kind}-{tmp_path.name}"
        proxy.befall(itertools.repeat(fault))
        proxy.reset()
        async with asyncio.timeout(20):
            said = await call(gateway, "add_one", {"key": key})
            while not proxy.struck:  # it was left alone, for the connections that had been reset
                said = await call(gateway, "add_one", {"key": key})
        error = said["error"]
        assert isinstance(error, dict)
        assert error["message"].startswith("shaky: ")
        proxy.spare()
        proxy.reset()
        assert int(text(await call(gateway, "get_count", {"key": key}, "whole"))) <= 1
        assert text(await call(gateway, "echo", {"message": "after"})) == "after"


async def test_a_server_that_talks_without_end_before_its_answer(server: str, tmp_path: Path) -> None:
    """The call ends, and is all that does: the server is no other after it, and nobody else waits meanwhile."""
    async with behind(server, tmp_path) as (proxy, gateway):
        await known(gateway)
        tool, token = "test_tool_with_progress", {"progressToken": "p"}  # it answers with a stream in either era
        assert "result" in await call(gateway, tool, **token)
        proxy.befall(itertools.repeat(Fault("chatter", size=60_000)))
        proxy.reset()
        loud = asyncio.ensure_future(call(gateway, tool, **token))
        for _ in range(5):
            assert text(await call(gateway, "echo", {"message": "y"}, "whole")) == "y"
        error = (await loud)["error"]
        assert proxy.struck
        assert isinstance(error, dict)
        assert error["message"] == "shaky: the server says far too much before its answer"
        proxy.spare()
        proxy.reset()
        assert text(await call(gateway, "echo", {"message": "after"})) == "after"


async def test_a_server_that_hangs_up_to_be_asked_again_at_once(tmp_path: Path) -> None:
    """With `retry: 0`, each time: it is asked, but not all the time, and its answer is had at last."""
    with fixture_server("--era", "old") as server:
        async with behind(server, tmp_path, "20s") as (proxy, gateway):
            await known(gateway)
            proxy.befall(itertools.repeat(Fault("hurry")))
            proxy.reset()
            late = asyncio.ensure_future(call(gateway, "add_one", {"key": tmp_path.name}))
            while not proxy.struck:
                await asyncio.sleep(0.01)
            before = len(proxy.struck)
            await asyncio.sleep(1.5)  # the time in which it is counted
            assert 2 <= len(proxy.struck) - before <= 15
            assert not late.done()
            proxy.spare()
            assert text(await asyncio.wait_for(late, 10)) == "1"


async def test_a_server_that_comes_back(server: str, tmp_path: Path) -> None:
    async with behind(server, tmp_path) as (proxy, gateway):
        await known(gateway)
        await proxy.down()
        late = asyncio.ensure_future(call(gateway, "echo", {"message": "late"}))
        await asyncio.sleep(0.3)
        await proxy.up()
        assert text(await late) == "late"


# ---- a server that is killed again and again
class Agents:
    """Half of them have a session, half have none. calls; wrong: what was no result; slowest: seconds of a call."""

    def __init__(self, gateway: Gateway, *, streams: bool) -> None:
        self._tool, self._argument, self._hint = ("read", "say", b"readOnlyHint")
        if streams:
            self._tool, self._argument, self._hint = ("echo", "message", b"idempotentHint")
        self.calls = 0
        self.wrong: list[str] = []
        self.slowest = 0.0
        self._gateway = gateway
        self._over = asyncio.Event()

    async def worry(self, victim: Mortal, agents: int, kills: int, every: float) -> None:
        """They call one after the other while the server dies."""
        await known(self._gateway, "mortal", self._hint)
        async with asyncio.TaskGroup() as group:
            for number in range(agents):
                group.create_task(self._work(number, session=number % 2 == 0))
            for _ in range(kills):
                await asyncio.sleep(every)
                await victim.kill()
            await asyncio.sleep(every)
            self._over.set()

    async def _work(self, number: int, *, session: bool) -> None:
        loop = asyncio.get_running_loop()
        async with Wire(self._gateway.url) as wire:
            opened = await self._open(wire) if session else {}
            n = 0
            while not self._over.is_set():
                n += 1
                said = f"{number}-{n}"
                arguments = {self._argument: said}
                body, headers = request(self._tool, arguments)
                if session:
                    params = {"name": self._tool, "arguments": arguments}
                    body, headers = {"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": params}, opened
                began = loop.time()
                answer = await wire.ask("POST", "/mcp/mortal", json.dumps(body).encode(), headers | HOST)
                while session and (place := unfinished(answer)):  # the gateway hangs up when the server has
                    await asyncio.sleep(0.05)
                    answer = await wire.ask("GET", "/mcp/mortal", None, opened | HOST | {"last-event-id": place})
                self.slowest = max(self.slowest, loop.time() - began)
                self.calls += 1
                found = read(answer.body)
                if "result" not in found or text(found) != said:
                    self.wrong.append(json.dumps(found))
                await asyncio.sleep(0.05)

    async def _open(self, wire: Wire) -> dict[str, str]:
        """The headers of a session."""
        info = {"protocolVersion": OLD, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        headers = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
        body = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": info}
        answer = await wire.ask("POST", "/mcp/mortal", json.dumps(body).encode(), headers | HOST)
        headers |= {"mcp-session-id": answer.headers["mcp-session-id"], "mcp-protocol-version": OLD}
        told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        answer = await wire.ask("POST", "/mcp/mortal", json.dumps(told).encode(), headers | HOST)
        assert answer.status == 202
        return headers


class Streams(OverHttp):
    """The fixture server, which answers calls by streams."""

    def __init__(self, era: str) -> None:
        super().__init__("http", era)
        self._command = (*FIXTURE, "--era", era, "--port")

    async def start(self) -> dict[str, object]:
        self._process = await asyncio.create_subprocess_exec(*self._command, str(self._port), cwd=ROOT, stdout=-1)
        assert self._process.stdout is not None
        url = (await self._process.stdout.readline()).decode().strip()
        self._port = urlsplit(url).port or 0
        return {"url": url}


def unfinished(answer: Answer) -> str:
    """The last event id of a stream that has ended before its answer (2025-11-25, Resumability), "" for any other."""
    lines = answer.body.decode().splitlines()
    if not answer.chunked or any(line.startswith("data: {") and '"id"' in line for line in lines):
        return ""
    return next((line[4:] for line in reversed(lines) if line.startswith("id: ")), "")


OLD = "2025-11-25"
HOST = {"host": "127.0.0.1"}
EVERYWHERE = [
    ("streams", "old"),
    ("streams", "new"),
    ("http", "old"),
    ("http", "new"),
    ("sse", "old"),
    ("stdio", "old"),
    ("stdio", "new"),
]


@asynccontextmanager
async def mortal_gateway(where: Path, transport: str, era: str) -> AsyncIterator[tuple[Gateway, Mortal]]:
    """Nobody says who they are here, so that over stdio the agents must share by the configuration."""
    victim = Streams(era) if transport == "streams" else mortal(transport, era, where)
    how = {**await victim.start(), "timeout": "20s", "trust_annotations": True}
    if transport == "stdio":
        how["session"] = "shared"
    config = f"server: {{listen: 127.0.0.1:0, metrics: null}}\nmcp: {{servers: {{mortal: {json.dumps(how)}}}}}\n"
    gateway = Gateway(config, where)
    try:
        await asyncio.to_thread(gateway.start)
        yield gateway, victim
    finally:
        await victim.end()
        await asyncio.to_thread(gateway.stop)


@pytest.mark.parametrize(("transport", "era"), EVERYWHERE)
async def test_a_server_that_dies_again_and_again(tmp_path: Path, transport: str, era: str) -> None:
    async with mortal_gateway(tmp_path, transport, era) as (gateway, victim):
        agents = Agents(gateway, streams=transport == "streams")
        await agents.worry(victim, agents=8, kills=2, every=0.5)
        assert agents.wrong == []
        assert agents.calls > 16


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("transport", "era"), EVERYWHERE)
async def test_a_server_that_dies_every_second_for_a_minute(
    tmp_path: Path, transport: str, era: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with mortal_gateway(tmp_path, transport, era) as (gateway, victim):
        agents = Agents(gateway, streams=transport == "streams")
        await agents.worry(victim, agents=50, kills=60, every=1.0)
        with capsys.disabled():
            failed, slowest = len(agents.wrong), agents.slowest
            print(f"\n{transport} {era}: {agents.calls} calls, {failed} failed, the slowest took {slowest:.2f} s")
        assert agents.wrong == []
        assert victim.lives == 60
        assert agents.calls > 1000
