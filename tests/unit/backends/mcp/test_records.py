"""Two workers, one agent: a session that one has opened is the other's too, and is opened again once."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fixtures.mcp_gateway import INFO, until
from tests.fixtures.mcp_raw import Asked, Old, answer, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.records import Record, Records
from tollhouse.backends.mcp.servers import Servers
from tollhouse.backends.mcp.spec import McpServerSpec
from tollhouse.backends.mcp.stdio import StdioServerSpec
from tollhouse.backends.mcp.upstream import Upstream
from tollhouse.core.call import ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.http import Headers, Request
from tollhouse.core.reply import Reply
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer
from tollhouse.store.base import unavailable
from tollhouse.store.memory import MemoryState, MemoryValues
from tollhouse.wire.mcp.sealed import Seals

pytestmark = pytest.mark.anyio

KEYS = (b"k" * 32,)


class Agent:
    """An agent's session as one worker knows it."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.ended = True
        self.profile = 0
        self.level = ""
        self.heard: list[str] = []
        self.ends: dict[Any, Any] = {}

    def deliver(self, server: str, data: bytes, message: Any, tell: Any) -> bool:
        self.heard.append(message.method)
        return True

    def on_end(self, key: Any, callback: Any) -> None:
        self.ends[key] = callback

    def forget(self, key: Any) -> None:
        self.ends.pop(key, None)

    def end(self, *, ended: bool = True) -> None:
        self.ended = ended
        for callback in list(self.ends.values()):
            callback()


class Worker:
    def __init__(self, servers: Servers, upstream: Upstream, agent: Agent) -> None:
        self.servers = servers
        self.upstream = upstream
        self.agent = agent

    async def ask(self, method: str = "tools/call", name: str = "echo", key: str = "name") -> Reply:
        request = Request(b"POST", b"/mcp", Headers())
        call = ToolCall(
            request, request.context, server="u", method=method, name=name,
            params={key: msgspec.Raw(msgspec.json.encode(name))}, session=self.agent, idempotent=True,
        )  # fmt: skip
        return await self.upstream.handle(call)

    @property
    def session(self) -> Any:
        return next(iter(self.upstream.sessions))


@asynccontextmanager
async def workers(spec: McpServerSpec, state: MemoryState | None = None, count: int = 2) -> AsyncIterator[list[Worker]]:
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    client, streams = Client(clock), Client(clock)
    state = state if state is not None else MemoryState(clock, KEYS)
    made = []
    for _ in range(count):
        servers = Servers(
            clock, client, streams, info=INFO, on_change=lambda server, method: None,
            records=Records(state, Seals(state.keys)),
        )  # fmt: skip
        made.append(Worker(servers, servers.get("u", spec), Agent("agent-1")))
    try:
        yield made
    finally:
        for worker in made:
            await worker.servers.close()
        await client.close()
        await streams.close()
        timer.stop()


class Mortal(Old):
    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.known: set[str] = set()

    def __call__(self, asked: Asked) -> Any:
        id = asked.headers.get("mcp-session-id")
        if id is not None and id not in self.known and asked.http == "POST":
            return answer(404)
        if asked.method == "resources/subscribe":
            return result(asked, {})
        said = super().__call__(asked)
        if asked.method == "initialize":
            self.known.add(f"s-{self.sessions}")
            return [asyncio.sleep(0.05), said]
        return said


async def test_one_session_for_all_workers() -> None:
    async with upstream(Mortal()) as server, workers(HttpServerSpec(url=server.url), count=3) as made:
        await asyncio.gather(*(worker.ask() for worker in made))
        assert len(server.calls("initialize")) == 1
        assert {asked.headers["mcp-session-id"] for asked in server.calls("tools/call")} == {"s-1"}
        assert {worker.session.generation for worker in made} == {1}


async def test_two_workers_heal_it_once() -> None:
    script = Mortal()
    async with upstream(script) as server, workers(HttpServerSpec(url=server.url)) as made:
        for worker in made:
            await worker.ask()
        await made[0].ask("resources/subscribe", "x:1", "uri")
        await until(lambda: not made[0].upstream._tasks - made[0].upstream._cut)
        script.known.clear()
        replies = await asyncio.gather(*(worker.ask() for worker in made for _ in range(3)))
        assert all(b"result" in reply.first for reply in replies)
        assert len(server.calls("initialize")) == 2
        assert {worker.session.generation for worker in made} == {2}
        assert len(server.calls("resources/subscribe")) == 2  # the agent's, and the one that was told again


async def test_another_worker_goes_on_where_one_has_gone() -> None:
    """It is not told that the session ends, keeps its subscriptions, and the agent's end ends it."""
    async with upstream(Mortal()) as server, workers(HttpServerSpec(url=server.url)) as made:
        await made[0].ask()
        await made[0].ask("resources/subscribe", "x:1", "uri")
        await until(lambda: not made[0].upstream._tasks - made[0].upstream._cut)
        await made[0].servers.close()
        assert not [asked for asked in server.asked if asked.http == "DELETE"]
        await made[1].ask()
        assert len(server.calls("initialize")) == 1
        assert made[1].session.uris == {"x:1": {made[1].agent}}
        made[1].agent.end()
        await until(lambda: [asked for asked in server.asked if asked.http == "DELETE"])
        await until(lambda: not made[1].upstream._tasks)
        records = made[1].servers._records
        assert records is not None
        assert (await records.turn(made[1].upstream._place_of(("agent", "agent-1", 0, 0)), 0)).record is None


async def test_an_agent_that_is_only_let_go_finds_its_session_again() -> None:
    async with upstream(Mortal()) as server, workers(HttpServerSpec(url=server.url), count=1) as made:
        await made[0].ask()
        made[0].agent.end(ended=False)
        await until(lambda: not list(made[0].upstream.sessions))
        await made[0].ask()
        assert [asked.headers["mcp-session-id"] for asked in server.calls("tools/call")] == ["s-1", "s-1"]
        assert not [asked for asked in server.asked if asked.http == "DELETE"]


async def test_a_child_is_another_workers_own_and_told_the_same() -> None:
    program = str(Path(__file__).parents[3] / "fixtures" / "mcp_child.py")
    spec = StdioServerSpec(command=sys.executable, args=(program,), session="exclusive")
    async with workers(spec) as made:
        made[0].agent.level = "error"
        await made[0].ask()
        await made[0].ask("resources/subscribe", "x:1", "uri")
        await until(lambda: not made[0].upstream._tasks)
        await made[1].ask()
        assert made[1].session.level == "error"
        assert set(made[1].session.uris) == {"x:1"}
        assert "notifications/resources/updated" in made[1].agent.heard


class _Slow:
    """A store that takes its time to write."""

    def __init__(self, values: Any) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        return getattr(self._values, name)

    async def swap(self, *arguments: Any) -> bool:
        await asyncio.sleep(0.05)
        return bool(await self._values.swap(*arguments))


@pytest.mark.parametrize("method, uris", [("resources/subscribe", ["x:1"]), ("resources/unsubscribe", [])])
async def test_what_an_agent_is_told_was_done_is_in_the_record_before(method: str, uris: list[str]) -> None:
    state = MemoryState(Clock(), KEYS)
    state.values = _Slow(state.values)  # type: ignore[assignment]
    async with (
        upstream(Mortal(resources_unsubscribe=lambda asked: result(asked, {}))) as server,
        workers(HttpServerSpec(url=server.url), state) as made,
    ):
        records = made[0].servers._records
        assert records is not None
        await made[0].ask("resources/subscribe", "x:1", "uri")
        await made[0].ask(method, "x:1", "uri")
        record = (await records.turn(made[0].upstream._place_of(("agent", "agent-1", 0, 0)), 0)).record
        assert record is not None
        assert record.uris == uris


class _Away:
    """A store that cannot be reached."""

    def __getattr__(self, name: str) -> Any:
        async def refuse(*arguments: Any) -> Any:
            raise unavailable("it is away")

        return refuse


async def test_without_the_store_a_worker_goes_on() -> None:
    clock = Clock()
    state = MemoryState(clock, KEYS)
    state.values = _Away()  # type: ignore[assignment]
    script = Mortal()
    async with upstream(script) as server, workers(HttpServerSpec(url=server.url), state) as made:
        for worker in made:
            await worker.ask()
        script.known.clear()
        await made[0].ask()
        assert len(server.calls("initialize")) == 3


async def test_a_lock_lasts_as_long_as_its_handshake() -> None:
    """It is a living worker's until it has ended, and nobody else removes it."""
    state = MemoryState(Clock(), KEYS)
    living = {state.node}

    async def lives(node: str) -> bool:
        return node in living

    mine = Records(state, Seals(state.keys), lives=lives)
    other = Records(state, Seals(state.keys), lives=lives)
    other.node = "another"
    turn = await mine.turn("mcp:u:x", 0)
    assert turn.locked
    waiting = asyncio.ensure_future(other.turn("mcp:u:x", 0))
    await asyncio.wait((waiting,), timeout=0.8)
    assert not waiting.done()
    await mine.over("mcp:u:x", turn)
    second = await waiting
    assert second.locked
    await mine.over("mcp:u:x", turn)  # which is over already
    assert await state.values.get("mcp:u:x:opening") == second.lock
    await other.over("mcp:u:x", second)
    assert (await mine.turn("mcp:u:x", 0)).locked


async def test_the_lock_of_a_worker_that_is_gone_is_taken_over() -> None:
    state = MemoryState(Clock(), KEYS)

    async def lives(node: str) -> bool:
        return node != state.node

    gone, other = (Records(state, Seals(state.keys), lives=lives) for _ in range(2))
    other.node = "another"
    left = await gone.turn("mcp:u:x", 0)
    async with asyncio.timeout(5):
        turn = await other.turn("mcp:u:x", 0)
    assert turn.locked
    await gone.over("mcp:u:x", left)
    assert await state.values.get("mcp:u:x:opening") == turn.lock


async def test_records_that_are_not_ours() -> None:
    state = MemoryState(Clock(), KEYS)
    ours, theirs = Records(state, Seals(KEYS)), Records(state, Seals((b"x" * 32,)))
    await theirs.keep(Record("p", 3, id="stolen"))
    turn = await ours.turn("p", 0)
    assert (turn.record, turn.taken, turn.locked) == (None, False, True)
    await ours.over("p", turn)
    await ours.keep(Record("q", 3, id="another's"))
    value = await state.values.get("q")
    assert value is not None
    assert b"another" not in value
    await state.values.put("p", value, 60.0)  # moved to another place
    assert (await ours.turn("p", 0)).record is None


class Late:
    """Values of which the first exchange takes its time."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self.writing, self.goes_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._values, name)

    async def swap(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        if not self.writing.is_set():
            self.writing.set()
            await self.goes_on.wait()
        done: bool = await self._values.swap(key, old, new, ttl)
        return done


async def test_of_two_changes_the_later_one_does_not_put_back_what_was() -> None:
    """The first has read, the second comes and goes, and only then the first writes."""
    state = MemoryState(Clock(), KEYS)
    state.values = late = Late(state.values)  # type: ignore[assignment]
    records = Records(state, Seals(KEYS))
    told = Record("p", 1, id="s-1")
    await records.keep(told)

    def now() -> Record:
        return msgspec.structs.replace(told, uris=list(told.uris))

    told.level = "info"
    first = asyncio.ensure_future(records.change("p", now))
    await late.writing.wait()
    told.uris.append("x:1")
    await records.change("p", now)
    late.goes_on.set()
    await first
    turn = await records.turn("p", 0)
    assert turn.record is not None
    assert (turn.record.level, turn.record.uris) == ("info", ["x:1"])


async def test_a_change_of_an_older_session_is_left_out() -> None:
    records = Records(MemoryState(Clock(), KEYS), Seals(KEYS))
    await records.keep(Record("p", 2, id="s-2", level="info"))
    await records.change("p", lambda: Record("p", 1, id="s-1", level="debug"))
    turn = await records.turn("p", 1)
    assert turn.taken
    assert turn.record is not None
    assert (turn.record.id, turn.record.level) == ("s-2", "info")
    await records.change("p", lambda: Record("p", 2, id="s-2", level="debug"))
    turn = await records.turn("p", 1)
    assert turn.record is not None
    assert turn.record.level == "debug"


class _Late(MemoryValues):
    """Before the first `add` something else happens."""

    before: Callable[[], Awaitable[None]] | None = None

    async def add(self, key: str, value: bytes, ttl: float) -> bool:
        before, self.before = self.before, None
        if before is not None:
            await before()
        return await super().add(key, value, ttl)


async def test_who_gets_the_lock_looks_again_at_what_was_opened_before() -> None:
    """Between his looking and his locking another one has opened the session, told it, and left the lock."""
    state = MemoryState(Clock(), KEYS)
    state.values = values = _Late(Clock())
    mine, other = (Records(state, Seals(state.keys)) for _ in range(2))

    async def opened_meanwhile() -> None:
        theirs = await other.turn("a", 1)
        await other.keep(Record("a", generation=2, node="other", id="s-2"))
        await other.over("a", theirs)

    values.before = opened_meanwhile
    turn = await mine.turn("a", 1)
    assert (turn.taken, turn.locked) == (True, False)
    assert turn.record is not None
    assert turn.record.id == "s-2"
    assert (await other.turn("a", 2)).locked  # the lock was left again
