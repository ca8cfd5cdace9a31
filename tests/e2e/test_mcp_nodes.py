"""Several gateways and workers with one state on a Valkey server. Agents cannot tell them apart: sessions, questions
and answers go on wherever the next request comes to, also when the one that had them was killed."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from tests.fixtures import mcp_gateway
from tests.fixtures.gateway import Gateway, serving, until
from tests.fixtures.mcp_fixture import http, offer
from tests.fixtures.mcp_fixture.offer import CONFIRM, READS, Tool, text
from tests.fixtures.mcp_fixture.old import OldTurn
from tests.fixtures.mcp_gateway import Answer, Old, Stream
from tests.fixtures.valkey import Valkey, valkey

pytestmark = pytest.mark.anyio

KEY = "0123456789abcdef0123456789abcdef"
OTHER_KEY = "fedcba9876543210fedcba9876543210"
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0, workers: {workers}, shutdown: {{min: {grace}, max: {most}}}}}
state: {{url: "{state}", encryption_key: {keys}, timeout: 500ms}}
authenticate: {{keys: [{{name: ada, key: key-of-ada}}, {{name: bob, key: key-of-bob}}]}}
mcp:
  servers: {{u: {server}}}
"""
ADA = {"authorization": "Bearer key-of-ada"}
BOB = {"authorization": "Bearer key-of-bob"}
ASKABLE: dict[str, Any] = {"elicitation": {"form": {}}}
DECLARED = {"io.modelcontextprotocol/clientCapabilities": ASKABLE}
YES = {"action": "accept", "content": {"ok": True}}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    with valkey(tmp_path / "valkey") as one:
        yield one


# ---- a server that can be looked into
class Server(http.Server):
    """runs: how often each tool has been carried out, to its end. agents: the session of each call."""

    def __init__(self, era: str) -> None:
        super().__init__(era)
        self.runs: dict[str, int] = {}
        self.agents: list[str] = []
        self.answers: list[Any] = []
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.cancelled = 0
        tools = (("erase", {"readOnlyHint": False, "destructiveHint": True}), ("look", READS))
        for name, hints in tools:
            self.offer.tools[f"{name}_asking"] = Tool(f"{name}_asking", "Asks first", self._asking, annotations=hints)
            self.offer.tools[name] = Tool(name, "Takes its time", self._slow, annotations=hints)
        self.offer.tools["who"] = Tool("who", "Whose session it is", self._who, annotations=READS)

    async def _asking(self, offer: offer.Offer, turn: Any, arguments: Any) -> Any:
        self.agents.append(turn._session.id if isinstance(turn, OldTurn) else "")
        answers = await turn.ask({"confirm": CONFIRM})
        self.answers.append(answers["confirm"])
        return await self._slow(offer, turn, arguments)

    async def _slow(self, offer: offer.Offer, turn: Any, arguments: Any) -> Any:
        self.agents.append(turn._session.id if isinstance(turn, OldTurn) else "")
        try:
            await turn.progress(1, 3)
            await self.goes_on.wait()
            await turn.progress(2, 3)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        key = str(arguments.get("key", ""))
        self.runs[key] = self.runs.get(key, 0) + 1
        return text(str(self.runs[key]))

    async def _who(self, offer: offer.Offer, turn: Any, arguments: Any) -> Any:
        return text(turn._session.id)


@asynccontextmanager
async def served(era: str = "old") -> AsyncIterator[tuple[Server, str]]:
    server = Server(era)
    loop = asyncio.get_running_loop()
    connections: list[http.Http] = []

    def made() -> http.Http:
        connections.append(http.Http(server.serve))
        return connections[-1]

    listening = await loop.create_server(made, "127.0.0.1", 0)
    try:
        yield server, f"{{url: 'http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/mcp'}}"
    finally:
        listening.close()
        tasks = [one.task for one in connections if one.task is not None]
        for number in list(server.sessions):
            server._end(number)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


ROOT = Path(__file__).parents[2]
STDIO = (
    f"{{command: '{sys.executable}', args: [-m, tests.fixtures.mcp_fixture, --stdio, --era, old], "
    f"env: {{PYTHONPATH: '{ROOT}'}}}}"
)


# ---- gateways
class Door(mcp_gateway.Gateway):
    """A gateway in a process of its own, and what agents need to speak to it."""

    def __init__(self, process: Gateway) -> None:
        self.process = process
        self.port = int(process.url.rpartition(":")[2])

    def kill(self) -> None:
        assert self.process.process is not None
        self.process.process.kill()
        self.process.process.wait()

    async def stop(self) -> int:
        return await asyncio.to_thread(self.process.stop, signal.SIGTERM)


def config(server: str, own: Valkey, *, workers: int = 1, keys: str = f'"{KEY}"', **more: str) -> str:
    times = {"grace": "0s", "most": "5s", **more}
    return CONFIG.format(server=server, state=own.url, workers=workers, keys=keys, **times)


@asynccontextmanager
async def nodes(text: str, where: Path, names: str = "ab") -> AsyncIterator[list[Door]]:
    async with AsyncExitStack() as stack:
        for name in names:
            (where / name).mkdir(exist_ok=True)
        running = await asyncio.gather(*(stack.enter_async_context(serving(text, where / name)) for name in names))
        yield [Door(one) for one in running]
        for one in running:
            said = one.text()
            assert "Traceback" not in said, said


def at(agent: Old, door: Door) -> Old:
    """The same agent, whose requests go there now."""
    agent.gateway = door
    return agent


async def old(door: Door, capabilities: Any = None, who: dict[str, str] = ADA) -> Old:
    return await _opened(door, capabilities, who)


async def _opened(door: Door, capabilities: Any, who: dict[str, str], revision: str = "2025-11-25") -> Old:
    info = {"name": "test", "version": "1"}
    agent = Old(door, "/mcp", dict(who))
    params = {"protocolVersion": revision, "capabilities": capabilities or {}, "clientInfo": info}
    opening = await agent.ask("initialize", params)
    assert opening.status == 200, opening.body
    agent.headers |= {"mcp-session-id": opening.headers["mcp-session-id"], "mcp-protocol-version": revision}
    assert (await agent.tell("notifications/initialized")).status == 202
    return agent


def new(door: Door, who: dict[str, str] = ADA) -> mcp_gateway.New:
    return mcp_gateway.New(door, "/mcp", dict(who))


def asked(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    result = answer.message["result"]
    assert result["resultType"] == "input_required", result
    return result


async def retry(agent: mcp_gateway.New, name: str, needed: Any, arguments: Any = None, reply: Any = YES) -> Answer:
    return await agent.call(
        name,
        arguments,
        _meta=DECLARED,
        requestState=needed["requestState"],
        inputResponses=dict.fromkeys(needed["inputRequests"], reply),
    )


def reason(answer: Answer) -> str:
    found: str = answer.message["error"]["data"]["reason"]
    return found


async def eventually(condition: Callable[[], Any], seconds: float = 10) -> None:
    await until(condition, seconds)


# ---- agents with sessions
async def test_a_session_goes_on_at_the_server_when_its_gateway_is_killed(tmp_path: Path, own: Valkey) -> None:
    async with served() as (server, spec), nodes(config(spec, own), tmp_path) as (a, b):
        agent = await old(a, ASKABLE)
        assert (await agent.ask("logging/setLevel", {"level": "warning"})).status == 200
        first = (await agent.call("who")).text
        a.kill()
        again = await at(agent, b).call("who")
        assert again.text == first
        assert server.sessions[first].level == "warning"
        assert (await at(agent, b).end()) == 204
        await eventually(lambda: first not in server.sessions)


async def test_a_process_is_started_again_and_told_what_it_was_told(tmp_path: Path, own: Valkey) -> None:
    async with nodes(config(STDIO, own), tmp_path) as (a, b):
        agent = await old(a, ASKABLE)
        uri = next(one["uri"] for one in (await agent.ask("resources/list")).message["result"]["resources"])
        assert (await agent.ask("logging/setLevel", {"level": "info"})).status == 200
        assert "result" in (await agent.ask("resources/subscribe", {"uri": uri})).message
        await agent.call("echo", {"message": "hi"})
        await asyncio.sleep(1.0)  # until the state has it: nobody waits for that
        a.kill()
        stream = await at(agent, b).listen()
        logged = await agent.call("test_tool_with_logging")
        assert "result" in logged.message
        told: list[Any] = []
        while len(told) < 5:  # three of the tool, one of the gateway on the loss, and that the resource may be another
            told.append(await stream.next())
        assert {"method": "notifications/resources/updated", "params": {"uri": uri}, "jsonrpc": "2.0"} in told
        said = [one["params"]["data"] for one in told if one["method"] == "notifications/message"]
        assert said[-3:] == ["Tool execution started", "Tool processing data", "Tool execution completed"]
        await stream.close()


async def test_answers_and_cancels_come_at_another_gateway(tmp_path: Path, own: Valkey) -> None:
    async with served() as (server, spec), nodes(config(spec, own), tmp_path) as (a, b):
        agent = await old(a, ASKABLE)
        call = await agent.start("tools/call", {"name": "erase_asking", "arguments": {}})
        await call.head()
        question = await call.next()
        assert question["method"] == "elicitation/create"
        stranger = await old(b, ASKABLE, BOB)
        assert (await stranger.answer(question["id"], YES)).status == 400
        assert (await at(agent, b).answer(question["id"], YES)).status == 202
        assert (await agent.answer(question["id"], YES)).status == 400
        assert (await call.next())["result"]["content"][0]["text"] == "1"
        server.goes_on.clear()
        call = await at(agent, a).start("tools/call", {"name": "erase", "arguments": {}})
        await eventually(lambda: len(server.agents) == 3)
        cancel = {"requestId": agent.ids, "reason": "no more"}
        assert (await at(agent, b).tell("notifications/cancelled", cancel)).status == 202
        await eventually(lambda: server.cancelled)
        assert server.runs == {"": 1}


async def test_a_session_that_is_ended_is_ended_everywhere(tmp_path: Path, own: Valkey) -> None:
    async with served() as (_, spec), nodes(config(spec, own), tmp_path) as (a, b):
        agent = await old(a)
        assert (await at(agent, b).call("who")).status == 200
        assert (await at(agent, a).end()) == 204
        assert (await agent.call("who")).status == 404
        async with asyncio.timeout(2):
            while (await at(agent, b).call("who")).status != 404:
                await asyncio.sleep(0.02)
        mine = await old(a)
        theirs = Old(b, "/mcp", mine.headers | BOB)
        assert (await theirs.call("who")).status == 404
        assert (await theirs.end()) == 404
        assert (await at(mine, b).call("who")).status == 200


async def test_two_gateways_heal_one_session(tmp_path: Path, own: Valkey) -> None:
    async with served() as (server, spec), nodes(config(spec, own), tmp_path) as (a, b):
        agent = await old(a, ASKABLE)
        there = Old(b, "/mcp", agent.headers)
        first = {(await one.call("who")).text for one in (agent, there)}
        assert len(first) == 1
        for _ in range(3):
            for number in list(server.sessions):
                server._end(number)
            told = await asyncio.gather(*(one.call("who") for one in (agent, there) for _ in range(5)))
            found = {one.text for one in told}
            assert len(found) == 1
            assert not found & first
            first |= found


async def test_keys_are_rotated_under_load(tmp_path: Path, own: Valkey) -> None:
    """One gateway after the other is started with the new key, first to open and then to seal; no session is lost."""
    steps = [f'["{KEY}", "{OTHER_KEY}"]', f'["{OTHER_KEY}", "{KEY}"]', f'["{OTHER_KEY}"]']
    async with served() as (_, spec), nodes(config(spec, own), tmp_path) as doors:
        agents = [await old(door, ASKABLE) for door in doors]
        failed: list[Any] = []
        done = asyncio.Event()
        up = set(doors)

        async def load(agent: Old) -> None:
            n = 0
            while not done.is_set():
                n += 1
                door = doors[n % 2] if doors[n % 2] in up else doors[(n + 1) % 2]
                try:
                    told = await at(agent, door).call("who")
                except (OSError, asyncio.IncompleteReadError):
                    if door in up:
                        failed.append(door)
                    continue
                if told.status != 200 or "result" not in told.message:
                    failed.append((told.status, told.body))
                await asyncio.sleep(0.01)

        loads = [asyncio.create_task(load(agent)) for agent in agents]
        for keys in steps[:2]:
            for door in doors:
                up.discard(door)
                await door.stop()
                door.process.config.write_text(config(spec, own, keys=keys))
                await asyncio.to_thread(door.process.start)
                door.port = int(door.process.url.rpartition(":")[2])
                up.add(door)
                await asyncio.sleep(0.2)
        done.set()
        await asyncio.gather(*loads)
        assert not failed
        late = await old(doors[0])
        for door in doors:  # the old key is retired: what it has sealed is known to nobody
            await door.stop()
            door.process.config.write_text(config(spec, own, keys=steps[2]))
            await asyncio.to_thread(door.process.start)
            door.port = int(door.process.url.rpartition(":")[2])
        assert (await at(agents[0], doors[1]).call("who")).status == 404
        assert (await at(late, doors[1]).call("who")).status == 200


# ---- calls of stateless agents that were asked something
async def test_a_question_is_answered_at_the_other_gateway(tmp_path: Path, own: Valkey) -> None:
    async with served() as (server, spec), nodes(config(spec, own), tmp_path) as (a, b):
        heard: list[bytes] = []
        listening = asyncio.create_task(asyncio.to_thread(overhear, own, heard))
        await eventually(lambda: heard)
        needed = asked(await new(a).call("erase_asking", _meta=DECLARED))
        secret = YES | {"content": {"ok": True, "word": "xyzzy-4711"}}
        told = await asyncio.gather(*(retry(new(door), "erase_asking", needed, reply=secret) for door in (a, b, b)))
        assert sorted(one.status for one in told) == [200, 400, 400]
        assert server.runs == {"": 1}
        assert server.answers == [secret]
        assert (await retry(new(b, BOB), "erase_asking", needed)).status == 400
        # What is said between gateways cannot be read where it passes.
        own.do("PUBLISH", "over", "over")
        await listening
        assert len(heard) > 3
        assert not any(b"xyzzy" in one or b"erase" in one for one in heard)
        keys = own.do("KEYS", "*")
        assert not any(b"erase" in key or "xyzzy" in kept(own, key) for key in keys)


def kept(own: Valkey, key: bytes) -> str:
    """All that is there under a key."""
    asked = {b"string": ("GET", key), b"hash": ("HGETALL", key), b"zset": ("ZRANGE", key, "0", "-1")}
    kind = own.do("TYPE", key)
    return "" if kind == b"none" else repr(own.do(*asked[kind]))


def overhear(own: Valkey, heard: list[bytes]) -> None:
    with own.client() as client, client.pubsub() as channel:  # type: ignore[no-untyped-call]
        channel.psubscribe("*")
        for said in channel.listen():
            heard.append(said["data"] if isinstance(said["data"], bytes) else b"")
            if heard[-1] == b"over":
                return


async def test_a_killed_gateways_call_is_taken_over(tmp_path: Path, own: Valkey) -> None:
    """The server works at it all the while: it runs once, whatever the tool does."""
    async with served() as (server, spec), nodes(config(spec, own), tmp_path) as (a, b):
        await new(b).call("who")
        for name in ("erase_asking", "look_asking"):
            needed = asked(await new(a).call(name, {"key": name}, _meta=DECLARED))
            if name == "look_asking":
                a.kill()
                begun = time.monotonic()
                told = await retry(new(b), name, needed, {"key": name})
                assert told.text == "1"
                assert server.runs == {"erase_asking": 1, "look_asking": 1}
                assert time.monotonic() - begun < 15
                assert (await retry(new(b), name, needed, {"key": name})).status == 400
            else:
                assert (await retry(new(b), name, needed, {"key": name})).text == "1"
        assert server.cancelled == 0
        assert len(server.answers) == 2


async def test_a_destructive_call_is_taken_over_and_asks_again(tmp_path: Path, own: Valkey) -> None:
    """Also when the answer was on its way already, and when only some of the questions are answered."""
    async with served() as (server, spec), nodes(config(spec, own), tmp_path) as (a, b):
        needed = asked(await new(a).call("erase_asking", {"key": "one"}, _meta=DECLARED))
        server.goes_on.clear()
        lost = await new(a).start(
            "tools/call",
            {
                "name": "erase_asking",
                "arguments": {"key": "one"},
                "_meta": DECLARED,
                "requestState": needed["requestState"],
                "inputResponses": dict.fromkeys(needed["inputRequests"], YES),
            },
        )
        await eventually(lambda: server.answers)
        two = asked(await new(a).call("multi_input", _meta=DECLARED))
        a.kill()
        await lost.close()
        retried = asyncio.create_task(retry(new(b), "erase_asking", needed, {"key": "one"}))
        first, second = two["inputRequests"]
        again = asked(
            await new(b).call(
                "multi_input", _meta=DECLARED, requestState=two["requestState"], inputResponses={first: YES}
            )
        )
        assert list(again["inputRequests"].values()) == [two["inputRequests"][second]]
        assert "result" in (await retry(new(b), "multi_input", again)).message
        server.goes_on.set()
        assert (await retried).text == "1"
        assert server.runs == {"one": 1}
        assert server.cancelled == 0


async def test_what_nobody_can_take_over(tmp_path: Path, own: Valkey) -> None:
    """A process died with its gateway: what does no harm begins again, with the answers there are."""
    where = ROOT / "tests" / "fixtures" / "mcp_asking.py"
    counts = tmp_path / "counts"
    counts.write_text("")
    spec = f"{{command: '{sys.executable}', args: ['{where}', '{counts}']}}"
    async with nodes(config(spec, own), tmp_path) as (a, b):
        await new(b).call("erase", _meta=DECLARED)
        counts.write_text("")
        asks = {name: asked(await new(a).call(name, _meta=DECLARED)) for name in ("erase", "look")}
        a.kill()
        lost, found = await asyncio.gather(*(retry(new(b), name, asks[name]) for name in ("erase", "look")))
        assert reason(lost) == "call_lost"
        assert found.text == "look was told accept"
        begun = time.monotonic()
        assert (await retry(new(b), "erase", asks["erase"])).status == 400
        assert time.monotonic() - begun < 2
        assert counts.read_text().split() == ["erase", "look", "look"]


async def test_a_gateway_that_leaves_while_it_holds_calls(tmp_path: Path, own: Valkey) -> None:
    async with served() as (server, spec), nodes(config(spec, own, grace="1s", most="3s"), tmp_path) as (a, b):
        await new(b).call("who")
        during = asked(await new(a).call("erase_asking", {"key": "during"}, _meta=DECLARED))
        after = asked(await new(a).call("erase_asking", {"key": "after"}, _meta=DECLARED))
        await eventually(lambda: len(server.agents) == 2)
        stopping = asyncio.create_task(a.stop())
        await a.process.logged("stopping")
        assert (await retry(new(b), "erase_asking", during, {"key": "during"})).text == "1"
        assert await stopping == 0
        begun = time.monotonic()
        assert (await retry(new(b), "erase_asking", after, {"key": "after"})).text == "1"
        assert time.monotonic() - begun < 4
        assert server.cancelled == 0
        assert server.runs == {"during": 1, "after": 1}


# ---- streams
async def numbered(stream: Stream) -> tuple[str, Any]:
    """The id and message of the next event that has one."""
    async with asyncio.timeout(20):
        while True:
            chunk = await stream.chunk()
            if not chunk:
                raise asyncio.IncompleteReadError(b"", None)
            lines = dict(line.split(b": ", 1) for line in chunk.split(b"\n") if b": " in line)
            if lines.get(b"id"):
                return lines[b"id"].decode(), json.loads(lines[b"data"]) if lines.get(b"data") else None


async def again(agent: Old, door: Door, last: str) -> Stream:
    """A stream that goes on after an event."""
    headers = at(agent, door).headers | {"last-event-id": last}
    stream = await door.open(None, headers, method="GET")
    await stream.head()
    assert stream.status == 200
    return stream


async def test_a_stream_is_read_on_at_the_other_gateway(tmp_path: Path, own: Valkey) -> None:
    async with served() as (server, spec), nodes(config(spec, own), tmp_path) as (a, b):
        agent = await old(a)
        server.goes_on.clear()
        params = {"name": "erase", "arguments": {}, "_meta": {"progressToken": "p"}}
        call = await agent.start("tools/call", params)
        await call.head()
        await numbered(call)
        last, progress = await numbered(call)
        assert progress["params"] == {"progressToken": "p", "progress": 1, "total": 3}
        await call.close()
        stream = await again(agent, b, last)
        server.goes_on.set()
        assert (await numbered(stream))[1]["params"]["progress"] == 2
        last, said = await numbered(stream)
        assert said["result"]["content"][0]["text"] == "1"
        await stream.close()
        parked = await again(agent, b, last.rpartition(".")[0] + ".2")  # it has ended where it was
        assert "result" in (await numbered(parked))[1]
        assert server.runs == {"": 1}


async def test_the_stream_of_a_killed_gateway(tmp_path: Path, own: Valkey) -> None:
    """Its call is taken over where the server still has the answer, or its agent is told that it is lost."""
    async with served() as (server, spec), nodes(config(spec, own), tmp_path) as (a, b):
        agent = await old(a)
        server.goes_on.clear()
        params = {"name": "erase", "arguments": {"key": "k"}, "_meta": {"progressToken": "p"}}
        call = await agent.start("tools/call", params)
        await call.head()
        await numbered(call)
        last, _ = await numbered(call)
        await asyncio.sleep(2.5)  # what lasts so long is known to others
        a.kill()
        stream = await again(agent, b, last)
        server.goes_on.set()
        said = (await numbered(stream))[1]
        while said is None or "method" in said:
            last, said = await numbered(stream)
        assert said["id"] == agent.ids
        assert said["result"]["content"][0]["text"] == "1"
        assert server.runs == {"k": 1}
        await stream.close()
        stream = await again(agent, b, last.rpartition(".")[0] + ".1")  # once more, as any stream of this gateway
        assert (await numbered(stream))[1] == said
        assert (await at(agent, b).call("who")).status == 200


async def test_the_stream_of_a_gateway_that_leaves(tmp_path: Path, own: Valkey) -> None:
    """Its agent reads on elsewhere, while it leaves and after it."""
    async with served() as (server, spec), nodes(config(spec, own, most="2s"), tmp_path) as (a, b):
        agent = await old(a)
        server.goes_on.clear()
        params = {"name": "erase", "arguments": {"key": "k"}, "_meta": {"progressToken": "p"}}
        call = await agent.start("tools/call", params)
        await call.head()
        await numbered(call)
        last, _ = await numbered(call)
        stopping = asyncio.create_task(a.stop())
        await a.process.logged("stopping")
        await call.close()
        stream = await again(agent, b, last)
        assert await stopping == 0
        server.goes_on.set()
        said = None
        while said is None or "method" in said:
            try:
                last, said = await numbered(stream)
            except asyncio.IncompleteReadError:  # it came over the one that has left
                stream = await again(agent, b, last)
        assert said["result"]["content"][0]["text"] == "1"
        assert server.runs == {"k": 1}
        assert server.cancelled == 0


async def test_the_stream_of_a_killed_gateway_whose_server_died_with_it(tmp_path: Path, own: Valkey) -> None:
    """What does no harm is called again, anything else is lost; nothing is left without an answer."""
    where, counts = ROOT / "tests" / "fixtures" / "mcp_asking.py", tmp_path / "counts"
    counts.write_text("")
    spec = f"{{command: '{sys.executable}', args: ['{where}', '{counts}']}}"
    async with nodes(config(spec, own), tmp_path) as (a, b):
        agent = await old(a, ASKABLE)
        assert len((await agent.ask("tools/list")).message["result"]["tools"]) == 2
        last = {}
        for name in ("erase", "look"):
            call = await agent.start("tools/call", {"name": name, "arguments": {}})
            await call.head()
            last[name], question = await numbered(call)
            while question is None:
                last[name], question = await numbered(call)
            await call.close()
        await asyncio.sleep(2.5)  # what lasts so long is known to others
        a.kill()
        lost = await again(agent, b, last["erase"])
        said = (await numbered(lost))[1]
        assert said["id"] == agent.ids - 1
        assert said["error"]["data"] == {"reason": "call_lost", "executed": "unknown"}
        found = await again(agent, b, last["look"])
        question = None
        while question is None:
            _, question = await numbered(found)
        assert (await at(agent, b).answer(question["id"], YES)).status == 202
        said = (await numbered(found))[1]
        assert said["id"] == agent.ids
        assert said["result"]["content"][0]["text"] == "look was told accept"
        assert counts.read_text().split() == ["erase", "look", "look"]


async def test_a_round_of_a_killed_gateway_is_asked_again(tmp_path: Path, own: Valkey) -> None:
    """A stateless server holds nothing: what it wanted to know is asked elsewhere, and it goes on from there."""
    async with served("new") as (server, spec), nodes(config(spec, own), tmp_path) as (a, b):
        agent = await old(a, ASKABLE)
        call = await agent.start("tools/call", {"name": "erase_asking", "arguments": {"key": "k"}})
        await call.head()
        last, question = await numbered(call)
        while question is None:
            last, question = await numbered(call)
        await asyncio.sleep(2.5)  # what lasts so long is known to others
        a.kill()
        await call.close()
        assert len(server.agents) == 1
        stream = await again(agent, b, last)
        asked_again = None
        while asked_again is None:
            _, asked_again = await numbered(stream)
        assert asked_again["params"] == question["params"]
        assert len(server.agents) == 1
        assert (await agent.answer(question["id"], YES)).status == 400
        assert (await agent.answer(asked_again["id"], YES)).status == 202
        said = (await numbered(stream))[1]
        assert said["id"] == agent.ids
        assert said["result"]["content"][0]["text"] == "1"
        assert server.runs == {"k": 1}


# ---- under load
async def test_the_state_is_lost_and_found_under_load(tmp_path: Path, own: Valkey) -> None:
    """Who is known where he asks is served all the while; nobody else gets in, and all is well again after it."""
    async with served() as (_, spec), nodes(config(spec, own), tmp_path) as (a, b):
        known = [await old(door) for door in (a, b) for _ in range(3)]
        elsewhere = Old(b, "/mcp", known[0].headers)  # opened at a, and never seen at b
        thief = Old(b, "/mcp", known[0].headers | BOB)
        held = asked(await new(a).call("erase_asking", _meta=DECLARED))
        done = asyncio.Event()
        wrong: list[Any] = []

        async def load(agent: Old) -> int:
            count = 0
            while not done.is_set():
                told = await agent.call("echo", {"message": "hi"})
                if told.status != 200 or "result" not in told.message:
                    wrong.append(told.body)
                count += 1
            return count

        async def steal() -> None:
            while not done.is_set():
                for one in (thief, Old(a, "/mcp", known[-1].headers | BOB)):
                    told = await one.call("who")
                    if told.status != 404:
                        wrong.append((told.status, told.body))

        loads = [asyncio.create_task(load(agent)) for agent in known]
        thieves = asyncio.create_task(steal())
        await asyncio.sleep(0.5)
        own.kill()
        await asyncio.sleep(0.5)
        assert reason(await elsewhere.call("who")) == "state_unavailable"
        refused = await retry(new(b), "erase_asking", held)
        assert reason(refused) == "state_unavailable"
        opened = await old(a)
        assert (await opened.call("who")).status == 200
        await asyncio.sleep(1.0)
        own.start()
        async with asyncio.timeout(10):
            while (told := await retry(new(b), "erase_asking", held)).status != 200 or "error" in told.message:
                assert reason(told) == "state_unavailable"
                await asyncio.sleep(0.1)
        assert told.text == "1"
        assert (await elsewhere.call("who")).status == 200
        assert (await at(opened, b).call("who")).status == 200
        done.set()
        counts = await asyncio.gather(*loads)
        await thieves
        assert not wrong, wrong[:3]
        assert min(counts) > 20


async def test_two_workers_under_a_mixed_load(tmp_path: Path, own: Valkey) -> None:
    """Agents made with the SDK, of both eras, that are asked things, read resources and come and go: no error."""
    async with served() as (server, spec), nodes(config(spec, own, workers=2), tmp_path, "a") as (a,):
        await eventually(lambda: a.process.text().count("listens") >= 2)
        done = time.monotonic() + 10
        counts = await asyncio.gather(*(agent_of_sdk(a, n, done) for n in range(8)))
        assert sum(counts) > 100
        assert all(counts)
        assert sum(server.runs.values()) == len(server.answers)
        async with asyncio.timeout(10):
            while await asyncio.to_thread(live_sessions, a.process):
                await asyncio.sleep(0.2)


def live_sessions(gateway: Gateway) -> float:
    """Of agents, as the metrics of all workers say."""
    lines = [line for line in gateway.metrics().splitlines() if line.startswith("tollhouse_mcp_sessions{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines if 'side="agent"' in line)


async def agent_of_sdk(door: Door, n: int, until: float) -> int:
    """How many of its rounds went well: all."""

    async def answer(context: Any, params: Any) -> Any:
        return types.ElicitResult(action="accept", content={"ok": True})

    count = 0
    while time.monotonic() < until:
        async with (
            create_mcp_http_client(headers=ADA if n % 2 else BOB) as client,
            streamable_http_client(f"http://127.0.0.1:{door.port}/mcp", http_client=client) as (read, write, *_),
            ClientSession(read, write, elicitation_callback=answer) as session,
        ):
            if n % 4 == 3:
                await session.discover()
            else:
                await session.initialize()
            for _ in range(10):
                if time.monotonic() >= until:
                    break
                assert (await session.list_tools()).tools
                said = await session.call_tool("echo", {"message": str(count)})
                assert f"'{count}'" in str(said.content)
                read_back = await session.read_resource("test://static-text")
                assert read_back.contents
                if n % 4 != 3:
                    asked = await session.call_tool("erase_asking", {"key": f"{n}"})
                    assert not asked.is_error
                count += 1
    return count
