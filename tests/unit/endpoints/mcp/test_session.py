"""Sessions of agents: whose they are, where they are found again, what other workers hear, and their end."""

import asyncio
import base64
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import until
from tests.unit.endpoints.mcp.test_replay import ids, leave, messages, read
from tests.unit.endpoints.mcp.test_stream import Given, Taken

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.http import Response
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.ids import SessionIds, key_of
from tollhouse.endpoints.mcp.in_flight import InFlight
from tollhouse.endpoints.mcp.peers import sign_of
from tollhouse.endpoints.mcp.session import Session, Sessions
from tollhouse.endpoints.mcp.shared import Left, Records
from tollhouse.net.timer import Timer
from tollhouse.store.base import unavailable
from tollhouse.store.memory import MemoryState
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.sealed import Seals

pytestmark = pytest.mark.anyio

KEY, OTHER = b"k" * 32, b"o" * 32
EMPTY: frozenset[str] = frozenset()


class Node(MemoryState):
    """What one worker has of a state that several share."""

    shared = True

    def __init__(self, clock: Clock, others: "Node | None" = None) -> None:
        super().__init__(clock, (KEY,))
        if others is not None:
            self.values.close()
            self.values, self.bus = others.values, others.bus


class World:
    """Two workers that share a state."""

    def __init__(self, clock: Clock, **more: Any) -> None:
        self.clock = clock
        self.counted: list[tuple[str, int]] = []
        self.nodes = [Node(clock)]
        self.nodes.append(Node(clock, self.nodes[0]))
        self.a, self.b = (
            Sessions(
                clock,
                state=node,
                seals=Seals(node.keys),
                count=lambda revision, change: self.counted.append((revision, change)),
                **more,
            )
            for node in self.nodes
        )

    async def quiet(self) -> None:
        """Wait until all that was to be written and said is."""
        for _ in range(50):
            await asyncio.sleep(0)
            if not self.a._tasks and not self.b._tasks and self.a._elsewhere.idle and self.b._elsewhere.idle:  # type: ignore[union-attr]
                return
        raise AssertionError("it goes on and on")

    async def elsewhere(self, session: Session) -> Session:
        """The session as the second worker has it."""
        there = await self.b.load(session.id, "ada", "/mcp")
        assert there is not None
        return there

    async def close(self) -> None:
        await self.a.closed()
        await self.b.closed()


@asynccontextmanager
async def world(**more: Any) -> AsyncIterator[World]:
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    running = World(clock, **more)
    try:
        yield running
    finally:
        await running.close()
        for sessions in (running.a, running.b):
            nothing_is_left(sessions)
        timer.stop()


def nothing_is_left(sessions: Sessions) -> None:
    assert not sessions._open
    assert not sessions._of
    assert not sessions._keys
    assert not sessions._leaving
    assert not sessions._tasks
    assert not sessions._ending
    assert sessions._elsewhere is None or sessions._elsewhere.streams == 0
    assert sessions.rings.size == 0


def opened(sessions: Sessions, who: str = "ada", at: str = "/mcp", **more: Any) -> Session:
    given = {"servers": EMPTY, "revision": "2025-11-25", "profile": 0} | more
    return sessions.open(principal=who, endpoint=at, **given)


def note(n: int) -> bytes:
    return jsonrpc.notification(f"n/{n}")


def notes(taken: Taken) -> list[str]:
    return [jsonrpc.decode(data).method for data in messages(taken) if data]


# ---- ids
def test_an_id_is_its_callers_at_its_endpoint() -> None:
    now = [1_000_000.0]
    ids = SessionIds(Seals([KEY]), clock=lambda: now[0])
    id = ids.mint("ada", "/mcp", "2025-06-18", 37)
    assert id.startswith("s1.")
    assert len(id) < 160
    found = ids.read(id, "ada", "/mcp")
    assert found is not None
    assert (found.revision, found.profile, found.age) == ("2025-06-18", 37, 0.0)
    assert ids.read(id, "bob", "/mcp") is None
    assert ids.read(id, "", "/mcp") is None
    assert ids.read(id, "ada", "/mcp/x") is None
    assert ids.read(id[:-1], "ada", "/mcp") is None
    assert ids.read("x" * 5000, "ada", "/mcp") is None
    assert SessionIds(Seals([OTHER])).read(id, "ada", "/mcp") is None
    assert SessionIds(Seals([OTHER, KEY]), clock=lambda: now[0]).read(id, "ada", "/mcp") is not None
    now[0] += 86_401
    assert ids.read(id, "ada", "/mcp") is None


def test_ids_differ_and_do_not_say_whose_they_are() -> None:
    ids = SessionIds(Seals([KEY]))
    whose = "ada-of-the-analytical-engine"  # so long that no cipher text holds it by chance
    minted = {ids.mint(whose, "/mcp", "2025-11-25", 0) for _ in range(100)}
    assert len(minted) == 100
    assert len({id[:20] for id in minted}) == 100
    boxes = [base64.urlsafe_b64decode(box + "=" * (-len(box) % 4)) for box in (id.partition(".")[2] for id in minted)]
    assert not any(whose.encode() in box for box in boxes)
    assert key_of("a") != key_of("b")


# ---- one worker
async def test_a_session_is_rebuilt_from_its_id_alone() -> None:
    clock = Clock()
    first = Sessions(clock, state=MemoryState(clock, (KEY,)), seals=Seals([KEY]))
    session = opened(first, profile=5)
    restarted = Sessions(clock, state=MemoryState(clock, (KEY,)), seals=Seals([OTHER, KEY]))
    assert restarted.find(session.id, "ada", "/mcp") is None
    assert await restarted.load(session.id, "bob", "/mcp") is None
    assert await restarted.load(session.id, "ada", "/other") is None
    assert await restarted.load(session.id + "A", "ada", "/mcp") is None
    restarted._ids = SessionIds(Seals([OTHER, KEY]), clock=lambda: time.time() + 100)
    found = await restarted.load(session.id, "ada", "/mcp")
    assert found is not None
    assert (found.id, found.revision, found.profile) == (session.id, "2025-11-25", 5)
    assert restarted.find(session.id, "ada", "/mcp") is found
    taken = read(found.listen())
    assert notes(taken) == [f"notifications/{kind}/list_changed" for kind in ("tools", "prompts", "resources")]
    for sessions in (first, restarted):
        await sessions.closed()
        nothing_is_left(sessions)


async def test_an_ended_session_stays_ended() -> None:
    clock = Clock()
    sessions = Sessions(clock, state=MemoryState(clock), seals=Seals())
    session = opened(sessions)
    await sessions.ended(session)
    assert await sessions.load(session.id, "ada", "/mcp") is None
    assert len(sessions) == 0
    nothing_is_left(sessions)


async def test_idle_ones_make_room_and_are_found_again() -> None:
    clock = Clock()
    sessions = Sessions(clock, state=MemoryState(clock), seals=Seals(), limit=3)
    first = opened(sessions)
    first.set_level("error")
    first.subscribe("x:y")
    first.subscribed_to("x:y", True)
    ended: list[int] = []
    first.on_end("key", lambda: ended.append(1))
    for _ in range(3):
        opened(sessions)
        clock.turn()
    assert (len(sessions), ended, first.ended) == (3, [1], False)
    for _ in range(2):
        found = await sessions.load(first.id, "ada", "/mcp")
        assert found is not None
        assert found is not first
        assert (found.level, found.subscribed) == ("error", {"x:y"})
        sessions._let_go(found)
        await asyncio.sleep(0)  # now it is in the store, and not on its way there
        await asyncio.sleep(0)
    busy = [await sessions.load(first.id, "ada", "/mcp")]
    busy += [session for session in sessions._open.values() if session is not busy[0]]
    for session in busy:
        assert session is not None
        session.listen()
    with pytest.raises(Failure, match="too many sessions"):
        opened(sessions)
    await sessions.closed()
    nothing_is_left(sessions)


async def test_a_caller_has_so_many() -> None:
    clock = Clock()
    sessions = Sessions(clock, state=MemoryState(clock), seals=Seals(), limit_each=2)
    first = opened(sessions)
    for _ in range(2):
        clock.turn()
        opened(sessions)
    assert await sessions.load(first.id, "ada", "/mcp") is None
    for _ in range(5):
        opened(sessions, who="")  # nobody in particular
    assert len(sessions) == 7
    await sessions.closed()


async def test_a_session_ends_when_it_is_old_however_busy() -> None:
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    sessions = Sessions(clock, state=MemoryState(clock), seals=Seals(), max_age=0.3, timeout=0.2)
    session = opened(sessions)
    response = session.listen()
    read(response)
    await asyncio.sleep(0.7)
    assert session.open
    leave(response)
    await until(lambda: not session.open)
    assert await sessions.load(session.id, "ada", "/mcp") is None
    timer.stop()
    nothing_is_left(sessions)


async def test_messages_wait_and_what_did_not_fit_is_looked_for_again() -> None:
    clock = Clock()
    sessions = Sessions(clock, seals=Seals())
    session = opened(sessions)
    for n in range(3):
        session.say(note(n))
    response = session.listen()
    taken = read(response)
    assert notes(taken) == ["n/0", "n/1", "n/2"]
    newer = read(session.listen())
    session.say(note(3))
    assert (notes(taken)[3:], notes(newer)) == ([], ["n/3"])
    session.hang_up()
    assert (taken.ended, newer.ended) == (1, 1)
    assert taken.sent[-1] == b"retry: 500\n\n"
    assert not session.busy
    for n in range(65):
        session.say(note(n))
    again = notes(read(session.listen()))
    assert (again[:2], again[63:]) == (
        ["n/1", "n/2"],
        ["n/64", *(f"notifications/{kind}/list_changed" for kind in ("tools", "prompts", "resources"))],
    )
    await sessions.closed()
    nothing_is_left(sessions)


async def test_a_stream_is_read_on() -> None:
    sessions = Sessions(Clock(), seals=Seals())
    session = opened(sessions)
    response = session.listen()
    taken = read(response)
    for n in range(4):
        session.say(note(n))
    leave(response)
    session.say(note(4))
    last = ids(taken)[2].decode()  # of n/1: the first is the empty one
    again = read(await sessions.listen(session, last))
    assert notes(again) == ["n/2", "n/3", "n/4"]
    other = opened(sessions)
    stolen = read(await sessions.listen(other, last))
    assert notes(stolen) == [f"notifications/{kind}/list_changed" for kind in ("tools", "prompts", "resources")]
    for strange in ("", "x", "0.999.1", "other.1.1"):
        assert len(notes(read(await sessions.listen(session, strange)))) in (0, 3), strange
    await sessions.closed()


async def test_a_gap_makes_the_agent_look_again() -> None:
    sessions = Sessions(Clock(), seals=Seals())
    session = opened(sessions)
    session.subscribe("x:y")
    session.subscribed_to("x:y", True)
    response = session.listen()
    taken = read(response)
    for n in range(300):
        session.say(note(n))
    leave(response)
    again = notes(read(await sessions.listen(session, ids(taken)[5].decode())))
    assert again[0] == "n/44"
    assert again[-2:] == ["notifications/resources/list_changed", "notifications/resources/updated"]
    await sessions.closed()


def answering(session: Session, request: bytes = b"7") -> tuple[Any, Response, list[Any]]:
    """A call whose answer streams."""
    ended: list[Any] = []
    given = Given()
    in_flight = session.calls[request] = InFlight(None)

    def over(failure: Failure | None) -> None:
        ended.append(failure)
        session.calls.pop(request, None)

    answer = session.answer(
        Reply(200, [], b"", given),
        None,
        id=request,
        tell=lambda data: data,
        failed=lambda failure: jsonrpc.error(request, -32603, failure.message),
        ended=over,
    )
    in_flight.answer = answer
    return answer, answer.response(), ended


async def test_an_answer_that_is_not_kept_any_more() -> None:
    clock = Clock()
    sessions = Sessions(clock, seals=Seals())
    session = opened(sessions)
    answer, response, _ = answering(session)
    taken = read(response)
    answer.send(note(1))
    leave(response)
    assert session.busy
    answer.send(b'{"x":"%b"}' % (b"x" * (1 << 20)))
    answer.end()
    assert not session.busy
    id = ids(taken)[-1].decode()
    for _ in range(2):  # kept without its last event, and forgotten
        lost = jsonrpc.decode(messages(read(await sessions.listen(session, id)))[0])
        assert (bytes(lost.id), b'"call_lost"' in bytes(lost.error)) == (b"7", True)
        for track in list(session.tracks.values()):
            track.drop()
    await sessions.closed()
    nothing_is_left(sessions)


async def test_the_end_of_a_session_ends_what_runs_in_it() -> None:
    sessions = Sessions(Clock(), seals=Seals())
    session = opened(sessions)
    _, response, ended = answering(session)
    taken = read(response)
    away, response, more = answering(session, b"8")
    read(response)
    away.send(note(1))
    leave(response)
    sessions.end(session)
    assert taken.ended == 1
    assert len(ended) == len(more) == 1
    nothing_is_left(sessions)


async def test_requests_of_servers_have_ids_of_this_worker() -> None:
    sessions = Sessions(Clock(), seals=Seals())
    session = opened(sessions)
    answers: list[bytes] = []
    asked = [jsonrpc.decode(session.ask(jsonrpc.decode(jsonrpc.request(5, "roots/list")), answers.append))]
    reply = jsonrpc.decode(jsonrpc.result(bytes(asked[0].id), b"{}"))
    assert not await sessions.answered(opened(sessions), reply)
    assert await sessions.answered(session, reply)
    assert not await sessions.answered(session, reply)
    assert answers == [b'{"jsonrpc":"2.0","id":5,"result":{}}']
    for n in range(65):
        session.ask(jsonrpc.decode(jsonrpc.request(n, "roots/list")), answers.append)
    assert b"did not answer" in answers[1]
    await sessions.closed()


# ---- two workers
async def test_a_session_is_found_at_another_worker() -> None:
    async with world() as w:
        session = opened(w.a)
        session.set_level("debug")
        session.subscribe("x:y")
        session.subscribed_to("x:y", True)
        await w.quiet()
        assert await w.b.load(session.id, "bob", "/mcp") is None
        there = await w.elsewhere(session)
        assert (there.level, there.subscribed) == ("debug", {"x:y"})
        there.set_level("error")
        there.unsubscribed("x:y", True)
        await w.quiet()
        assert (session.level, session.subscribed) == ("error", set())


async def test_changes_at_both_are_both_kept() -> None:
    async with world() as w:
        session = opened(w.a)
        there = await w.elsewhere(session)
        for n in range(10):
            one = (session, there)[n % 2]
            one.subscribe(f"x:{n}")
            one.subscribed_to(f"x:{n}", True)
        await w.quiet()
        assert session.subscribed == there.subscribed == {f"x:{n}" for n in range(10)}


async def test_ended_here_is_ended_there() -> None:
    async with world() as w:
        session = opened(w.a)
        there = await w.elsewhere(session)
        await w.b.ended(there)
        assert await w.b.load(session.id, "ada", "/mcp") is None
        await w.quiet()
        assert session.ended
        assert not session.open
        assert await w.a.load(session.id, "ada", "/mcp") is None
        assert sorted(w.counted) == [("2025-11-25", -1), ("2025-11-25", -1), ("2025-11-25", 1), ("2025-11-25", 1)]


async def test_who_did_not_hear_of_the_end_finds_out() -> None:
    async with world(timeout=1.0) as w:
        session = opened(w.a)
        await w.quiet()
        assert w.a._records is not None
        await w.a._records.end(session.key, 100)
        await asyncio.sleep(0.3)
        session.touch()
        await w.quiet()
        assert not session.open


async def test_idle_here_and_busy_there() -> None:
    async with world(timeout=1.0) as w:
        session = opened(w.a)
        there = await w.elsewhere(session)
        await w.quiet()
        async with asyncio.timeout(10):
            while session.open:
                there.touch()
                await asyncio.sleep(0.05)
        assert there.open
        assert await w.a.load(session.id, "ada", "/mcp") is not None
        await until(lambda: not len(w.a) and not len(w.b))
        await w.quiet()
        assert await w.a.load(session.id, "ada", "/mcp") is None


async def test_messages_go_where_the_stream_is() -> None:
    async with world() as w:
        session = opened(w.a)
        there = await w.elsewhere(session)
        there.say(note(0))  # kept, until it is known where to
        response = session.listen()
        taken = read(response)
        await w.quiet()
        there.say(note(1))
        session.say(note(2))
        await w.quiet()
        assert sorted(notes(taken)) == ["n/0", "n/1", "n/2"]
        newest = there.listen()
        newer = read(newest)
        await w.quiet()
        session.say(note(3))
        await w.quiet()
        assert notes(newer) == ["n/3"]
        leave(response)
        leave(newest)
        await w.quiet()
        assert session.owner == there.owner == ""


async def test_messages_come_back_from_a_worker_that_is_gone() -> None:
    async with world() as w:
        session = opened(w.a)
        there = await w.elsewhere(session)
        session.owner = there.owner = "gone"
        there.say(note(0))
        there.say(note(1))
        await until(lambda: not w.b._tasks)
        assert notes(read(there.listen())) == ["n/0", "n/1"]


async def test_answers_and_cancels_find_their_worker() -> None:
    async with world() as w:
        session = opened(w.a)
        there = await w.elsewhere(session)
        foreign = opened(w.b)
        answers: list[bytes] = []
        asked = jsonrpc.decode(session.ask(jsonrpc.decode(jsonrpc.request(5, "roots/list")), answers.append))
        reply = jsonrpc.decode(jsonrpc.result(bytes(asked.id), b"{}"))
        assert not await w.b.answered(foreign, reply)
        assert await w.b.answered(there, reply)
        assert not await w.b.answered(there, reply)
        assert len(answers) == 1
        gone = jsonrpc.decode(jsonrpc.result(b'"nobody-1"', b"{}"))
        assert not await w.b.answered(there, gone)
        _, response, ended = answering(session)
        read(response)
        w.b.cancelled(there, b"7")
        await w.quiet()
        assert len(ended) == 1


async def test_a_stream_is_read_on_at_another_worker() -> None:
    async with world() as w:
        session = opened(w.a)
        answer, response, _ = answering(session)
        taken = read(response)
        answer.send(note(1))
        answer.send(note(2))
        leave(response)
        there = await w.elsewhere(session)
        again = read(await w.b.listen(there, ids(taken)[1].decode()))
        await w.quiet()
        answer.send(note(3))
        await w.quiet()
        assert notes(again) == ["n/2", "n/3"]
        answer.end()
        await w.quiet()
        assert again.ended == 1


async def test_a_reader_at_another_worker_leaves() -> None:
    async with world() as w:
        session = opened(w.a)
        answer, response, _ = answering(session)
        taken = read(response)
        answer.send(note(1))
        leave(response)
        there = await w.elsewhere(session)
        relayed = await w.b.listen(there, ids(taken)[0].decode())
        read(relayed)
        await w.quiet()
        leave(relayed)
        await w.quiet()
        assert w.a._elsewhere is not None
        assert w.b._elsewhere is not None
        assert (w.a._elsewhere.streams, w.b._elsewhere.streams) == (0, 0)
        answer.end()


async def test_the_end_of_an_answer_is_found_when_its_worker_is_gone() -> None:
    async with world() as w:
        session = opened(w.a)
        answer, response, _ = answering(session)
        taken = read(response)
        answer.send(note(1))
        leave(response)
        answer.send(note(2))
        answer.end()
        await w.quiet()
        await w.a.closed()
        there = await w.elsewhere(session)
        again = read(await w.b.listen(there, ids(taken)[1].decode()))
        assert (notes(again), again.ended) == (["n/2"], 1)


async def test_a_call_whose_worker_is_gone_is_lost() -> None:
    async with world() as w:
        session = opened(w.a)
        answer, response, _ = answering(session)
        taken = read(response)
        answer.send(note(1))
        await w.a.closed()
        there = await w.elsewhere(session)
        again = read(await w.b.listen(there, ids(taken)[-1].decode()))
        lost = jsonrpc.decode(messages(again)[0])
        assert (bytes(lost.id), b'"call_lost"' in bytes(lost.error)) == (b"7", True)


async def test_who_comes_back_to_two_workers_is_served_by_one() -> None:
    async with world() as w:
        session = opened(w.a)
        there = await w.elsewhere(session)
        await w.quiet()
        for node in w.nodes:
            await node.values.put(sign_of(node.node), b"1", 60.0)
        await Records(w.nodes[0].values).note_call(session.key, "gone.5", Left(b"7", params=b"{}"), 60.0)
        given = Given()
        went: list[Session] = []

        async def go_on(session: Session, left: Left) -> Response:
            went.append(session)
            await asyncio.sleep(0.05)
            reply = Reply(200, [], b"", given)
            return session.answer(
                reply, b"first", id=left.request, tell=lambda data: data, failed=lambda _: b"", ended=lambda _: None
            ).response()

        at = [(w.a, session), (w.b, there), (w.b, there)]
        tasks = [asyncio.ensure_future(sessions.listen(one, "gone.5.3", go_on)) for sessions, one in at]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        quickest = done.pop()
        first = read(quickest.result())
        readers = [read(await task) for task in tasks if task is not quickest]
        assert len(went) == 1
        await until(lambda: any(b"first" in message for reader in (first, *readers) for message in messages(reader)))
        assert given.sink is not None
        given.sink.send(b"last")
        given.sink.end()
        await until(lambda: any(b"last" in message for reader in (first, *readers) for message in messages(reader)))
        session.release()
        there.release()


async def test_what_is_answered_is_in_the_record_before() -> None:
    async with world() as w:
        session = opened(w.a)
        session.set_level("error")
        session.declare(b'{"com.example/x":{}}')
        await w.a.saved(session)
        there = await w.elsewhere(session)
        assert (there.level, there.extensions) == ("error", b'{"com.example/x":{}}')
        session.subscribe("x:y")
        session.subscribed_to("x:y", True)
        await w.a.saved(session)
        record = await Records(w.nodes[1].values).read(session.key)
        assert record is not None
        assert record.subscribed == ["x:y"]


async def test_a_call_that_streams_for_long_is_known_to_others() -> None:
    async with world() as w:
        session = opened(w.a)
        answer, response, _ = answering(session)
        read(response)
        answer.send(note(1))
        name = f"{w.nodes[0].node}.1"
        assert w.a._records is not None
        await until(lambda: f"mcp.c.{session.key}.{name}" in w.nodes[0].values._entries)
        assert await w.a._records.noted_call(session.key, name) == Left(b"7")
        answer.end()


class Broken:
    """A store that cannot be reached, while `down`."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self.down = False

    def __getattr__(self, name: str) -> Any:
        if self.down:
            raise unavailable("it is down", reached=False)
        return getattr(self._values, name)


async def test_sessions_known_here_are_served_while_the_store_is_down() -> None:
    clock = Clock()
    node = Node(clock)
    broken = Broken(node.values)
    node.values = broken  # type: ignore[assignment]
    other = Node(clock, node)
    a, b = (Sessions(clock, state=each, seals=Seals([KEY])) for each in (node, other))
    session = opened(a)
    broken.down = True
    session.set_level("debug")
    await asyncio.sleep(0.01)
    assert a.find(session.id, "ada", "/mcp") is session
    with pytest.raises(Failure) as caught:
        await b.load(session.id, "ada", "/mcp")
    assert caught.value.status == 503
    assert await b.load(session.id, "bob", "/mcp") is None
    broken.down = False
    a.save(session)
    await asyncio.sleep(0.01)
    there = await b.load(session.id, "ada", "/mcp")
    assert there is not None
    assert there.level == "debug"
    await a.closed()
    await b.closed()


async def test_keys_are_rotated_under_load() -> None:
    clock = Clock()
    node = Node(clock)
    keys = [[KEY], [OTHER, KEY], [OTHER]]
    before = Sessions(clock, state=node, seals=Seals(keys[0]))
    old = opened(before)
    during = Sessions(clock, state=Node(clock, node), seals=Seals(keys[1]))
    assert await during.load(old.id, "ada", "/mcp") is not None
    new = opened(during)
    assert await Sessions(clock, state=Node(clock, node), seals=Seals(keys[2])).load(new.id, "ada", "/mcp") is not None
    retired = Sessions(clock, state=Node(clock, node), seals=Seals(keys[2]))
    assert await retired.load(old.id, "ada", "/mcp") is None
    await before.closed()
    await during.closed()


# ---- memory
async def test_five_thousand_sessions() -> None:
    clock = Clock()
    sessions = Sessions(clock, state=MemoryState(clock), seals=Seals())
    opened(sessions)
    gc.collect()
    tracemalloc.start()
    many = [opened(sessions, who=f"user-{n % 500}") for n in range(1000)]
    gc.collect()
    each = tracemalloc.get_traced_memory()[0] / 1000
    tracemalloc.stop()
    assert each < 8_000
    many += [opened(sessions, who=f"user-{n % 500}") for n in range(4000)]
    assert len(sessions) == 5001
    del many
    for session in list(sessions._open.values()):
        sessions.end(session)
    nothing_is_left(sessions)
    assert not any(slot for slot in clock._slices)
