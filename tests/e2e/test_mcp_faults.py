"""A network that fails between the gateway and an MCP server: the proxy that makes it fail, and what agents see."""

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.fixtures.fault_proxy import Fault, FaultProxy, schedule
from tests.fixtures.gateway import Gateway
from tests.fixtures.mcp_suite import FIXTURE, ROOT, fixture_server
from tests.fixtures.wire import Wire

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 64


# ---- the proxy
@asynccontextmanager
async def talker() -> AsyncIterator[int]:
    """A server that sends DATA for each line it gets, and ends when the client does. Its port."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.readline():
                writer.write(DATA)
                await writer.drain()
        writer.close()

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
            assert loop.time() - start >= 0.08


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
    name: str, arguments: object = None, method: str = "tools/call"
) -> tuple[dict[str, object], dict[str, str]]:
    """The body and the headers of a stateless call; of a list when there is no name."""
    meta = {
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


async def call(gateway: Gateway, name: str, arguments: object = None, server: str = "shaky") -> dict[str, object]:
    """The result or the error of a stateless call."""
    body, headers = request(name, arguments)
    _, _, data = await asyncio.to_thread(gateway.exchange, "POST", f"/mcp/{server}", body, headers)
    return read(data)


async def known(gateway: Gateway, server: str = "shaky") -> None:
    """From now on the gateway knows what the server says of its tools: which may be repeated."""
    body, headers = request("", method="tools/list")
    _, _, data = await asyncio.to_thread(gateway.exchange, "POST", f"/mcp/{server}", body, headers)
    assert b"idempotentHint" in data


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


async def test_garbage_and_silence_end_as_errors(server: str, tmp_path: Path) -> None:
    async with behind(server, tmp_path, "2s") as (proxy, gateway):
        await known(gateway)
        for fault in (Fault("garbage", 0, size=64), Fault("black_hole", 30)):
            proxy.befall([fault])
            proxy.reset()
            said = await asyncio.wait_for(call(gateway, "add_one", {"key": f"{fault.kind}-{tmp_path.name}"}), 10)
            if "error" not in said:  # the fault befell a connection that this call did not need
                assert text(said) == "1"
            proxy.spare()
            assert text(await call(gateway, "echo", {"message": "after"})) == "after"


async def test_a_server_that_comes_back(server: str, tmp_path: Path) -> None:
    async with behind(server, tmp_path) as (proxy, gateway):
        await known(gateway)
        await proxy.down()
        late = asyncio.ensure_future(call(gateway, "echo", {"message": "late"}))
        await asyncio.sleep(0.3)
        await proxy.up()
        assert text(await late) == "late"


# ---- a server that is killed again and again
class Mortal:
    """The fixture server in a process that is killed and started again on the same port."""

    def __init__(self, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.lives = 0
        self._command = [*FIXTURE, "--port", str(self.port), *arguments]
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(*self._command, cwd=ROOT, stdout=-1)
        assert self._process.stdout is not None
        await self._process.stdout.readline()
        self.lives += 1

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


async def worry(gateway: Gateway, mortal: Mortal, agents: int, kills: int, every: float) -> tuple[int, list[str]]:
    """Agents that call one after the other while the server dies: how many calls, and what went wrong."""
    over, calls, wrong = asyncio.Event(), 0, []

    async def agent(number: int) -> None:
        nonlocal calls
        async with Wire(gateway.url) as wire:
            n = 0
            while not over.is_set():
                n += 1
                said = f"{number}-{n}"
                body, headers = request("echo", {"message": said})
                answer = await wire.ask(
                    "POST", "/mcp/mortal", json.dumps(body).encode(), headers | {"host": "127.0.0.1"}
                )
                calls += 1
                found = read(answer.body)
                if "result" not in found or text(found) != said:
                    wrong.append(json.dumps(found))
                await asyncio.sleep(0.05)

    await known(gateway, "mortal")
    work = [asyncio.ensure_future(agent(n)) for n in range(agents)]
    for _ in range(kills):
        await asyncio.sleep(every)
        await mortal.kill()
        await mortal.start()
    await asyncio.sleep(every)
    over.set()
    await asyncio.gather(*work)
    return calls, wrong


@asynccontextmanager
async def mortal_gateway(where: Path, era: str) -> AsyncIterator[tuple[Gateway, Mortal]]:
    mortal = Mortal("--era", era)
    await mortal.start()
    config = f"""
server: {{listen: 127.0.0.1:0, metrics: null}}
mcp:
  servers:
    mortal: {{url: "http://127.0.0.1:{mortal.port}/mcp", timeout: 20s, trust_annotations: true}}
"""
    gateway = Gateway(config, where)
    try:
        await asyncio.to_thread(gateway.start)
        yield gateway, mortal
    finally:
        await mortal.kill()
        await asyncio.to_thread(gateway.stop)


@pytest.mark.parametrize("era", ["old", "new"])
async def test_a_server_that_dies_again_and_again(tmp_path: Path, era: str) -> None:
    async with mortal_gateway(tmp_path, era) as (gateway, mortal):
        calls, wrong = await worry(gateway, mortal, agents=8, kills=2, every=0.5)
        assert wrong == []
        assert calls > 16


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("era", ["old", "new"])
async def test_a_server_that_dies_every_second_for_a_minute(tmp_path: Path, era: str) -> None:
    async with mortal_gateway(tmp_path, era) as (gateway, mortal):
        calls, wrong = await worry(gateway, mortal, agents=50, kills=60, every=1.0)
        assert wrong == []
        assert mortal.lives == 61
        assert calls > 1000
