"""What every store must do, done by memory, by memory kept in a file, by Valkey, with encryption, and by a cluster."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fixtures.valkey import cluster, valkey

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.net.timer import Timer
from tollhouse.store.base import LARGEST, Charge, Rate, State
from tollhouse.store.file import FileState
from tollhouse.store.memory import MemoryState
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec

pytestmark = pytest.mark.anyio

KINDS = ("memory", "file", "sealed file", "valkey", "sealed", "cluster")
KEY = "a secret that has thirty-two bytes or more"
Make = Callable[[], State]
PREFIXES = (f"p{n}" for n in itertools.count())


def of_one_worker(kind: str, clock: Clock, where: Any) -> State | None:
    """The state of a kind that only one worker has; None for the others."""
    if kind == "memory":
        return MemoryState(clock)
    if kind.endswith("file"):
        return FileState(clock, where / next(PREFIXES), ("",), (KEY.encode(),) if kind == "sealed file" else ())
    return None


class Servers:
    """Started when first needed, ended with the module."""

    def __init__(self, where: Any) -> None:
        self.where = where
        self._stack = ExitStack()
        self._urls: dict[str, str] = {}

    def url(self, kind: str) -> str:
        kind = "cluster" if kind == "cluster" else "valkey"
        if kind not in self._urls:
            if kind == "cluster":
                nodes = self._stack.enter_context(cluster(self.where / "cluster"))
                self._urls[kind] = f"redis+cluster://127.0.0.1:{nodes[0].port},127.0.0.1:{nodes[1].port}"
            else:
                self._urls[kind] = self._stack.enter_context(valkey(self.where)).url
        return self._urls[kind]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    made = Servers(tmp_path_factory.mktemp("valkey"))
    yield made
    made.close()


def spec(servers: Servers, kind: str) -> StateSpec:
    keys = {"encryption_key": KEY} if kind == "sealed" else {}
    return StateSpec(url=servers.url(kind), prefix=next(PREFIXES), timeout=5.0, **keys)


@pytest.fixture(params=KINDS)
async def make(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[Make]:
    """Makes the state of one worker after another; all share it."""
    kind = request.param
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    one = of_one_worker(kind, clock, servers.where)
    what = spec(servers, kind) if one is None else None
    made: list[State] = []

    def worker() -> State:
        state: State = one if what is None else RedisState(what, clock)  # type: ignore[assignment]
        made.append(state)
        return state

    yield worker
    for state in set(made):
        await state.close()
    timer.stop()


async def until(condition: Callable[[], Any] | Callable[[], Awaitable[Any]], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if await result if isinstance(result, Awaitable) else result:
                return
            await asyncio.sleep(0.01)


# ---- values


async def test_values_are_put_got_removed_and_taken(make: Make) -> None:
    values = make().values
    assert await values.get("k") is None
    assert await values.put("k", b"one", 60.0) is None
    assert await values.get("k") == b"one"
    await values.put("k", b"two", 60.0)
    assert await values.get("k") == b"two"
    assert await values.remove("k") is True
    assert await values.remove("k") is False
    assert await values.get("k") is None
    await values.put("k", b"", 60.0)
    assert await values.get("k") == b""
    assert await values.take("k") == b""
    assert await values.take("k") is None


async def test_add_is_for_what_is_not_there(make: Make) -> None:
    values = make().values
    assert await values.add("k", b"one", 60.0) is True
    assert await values.add("k", b"two", 60.0) is False
    assert await values.get("k") == b"one"
    await values.remove("k")
    assert await values.add("k", b"two", 60.0) is True


async def test_a_claim_says_what_is_there(make: Make) -> None:
    one, other = make().values, make().values
    assert await one.claim("k", b"one", 60.0) is None
    assert await one.get("k") == b"one"
    assert await other.claim("k", b"two", 60.0) == b"one"
    assert await one.get("k") == b"one"
    await one.remove("k")
    told = await asyncio.gather(*(values.claim("k", b"%d" % n, 60.0) for n, values in enumerate((one, other) * 10)))
    assert told.count(None) == 1
    there = await one.get("k")
    assert {value for value in told if value is not None} == {there}
    await one.remove("k")
    assert await one.claim("k", b"short", 0.1) is None

    async def again() -> bool:
        return await other.claim("k", b"next", 60.0) is None

    await until(again)


async def test_a_list_is_read_on_from_where_one_was(make: Make) -> None:
    one, other = make().logs, make().logs
    if one is None or other is None:
        assert not make().shared
        return
    assert await one.since("l", b"", 10) == (b"", [])
    for n in range(5):
        await (one, other)[n % 2].append("l", b"%d" % n, 60.0, 100)
    at, first = await other.since("l", b"", 3)
    assert first == [b"0", b"1", b"2"]
    at, rest = await other.since("l", at, 3)
    assert rest == [b"3", b"4"]
    assert await other.since("l", at, 3) == (at, [])
    assert await one.since("other", b"", 3) == (b"", [])
    await one.append("l", bytes(range(256)), 0.1, 100)
    assert (await other.since("l", at, 3))[1] == [bytes(range(256))]

    async def gone() -> bool:
        return await one.since("l", b"", 9) == (b"", [])

    await until(gone)
    for n in range(1000):
        await one.append("l", b"%d" % n, 60.0, 100)
    _, kept = await one.since("l", b"", 1000)
    assert 100 <= len(kept) < 400
    assert kept[-1] == b"999"


async def test_swap_is_for_what_is_known(make: Make) -> None:
    values = make().values
    assert await values.swap("k", b"one", b"two", 60.0) is False
    assert await values.get("k") is None
    await values.put("k", b"one", 60.0)
    assert await values.swap("k", b"other", b"two", 60.0) is False
    assert await values.get("k") == b"one"
    assert await values.swap("k", b"one", b"two", 60.0) is True
    assert await values.get("k") == b"two"


async def test_values_are_forgotten_after_their_time(make: Make) -> None:
    values = make().values
    for key in ("put", "add", "swap", "touch", "kept"):
        await values.put(key, b"x", 60.0)
    await values.put("put", b"x", 0.1)
    await values.remove("add")
    await values.add("add", b"x", 0.1)
    await values.swap("swap", b"x", b"y", 0.1)
    assert await values.touch("touch", 0.1) is True
    await values.put("kept", b"x", 0.1)
    assert await values.touch("kept", 60.0) is True
    assert await values.touch("never", 60.0) is False
    for key in ("put", "add", "swap", "touch"):

        async def gone(key: str = key) -> bool:
            return await values.get(key) is None

        await until(gone)
        assert await values.touch(key, 60.0) is False
        assert await values.remove(key) is False
        assert await values.swap(key, b"x", b"z", 60.0) is False
        assert await values.add(key, b"x", 60.0) is True
    assert await values.get("kept") == b"x"


async def test_keys_are_any_text_and_values_any_bytes(make: Make) -> None:
    values = make().values
    everything = bytes(range(256))
    for key in ("a b\r\n", "{x}y", "\0", "ключ", "\udc80", "k" * 512, "*"):
        await values.put(key, everything + key.encode("utf-8", "surrogatepass"), 60.0)
    for key in ("a b\r\n", "{x}y", "\0", "ключ", "\udc80", "k" * 512, "*"):
        assert await values.get(key) == everything + key.encode("utf-8", "surrogatepass")


async def test_a_value_of_the_largest_size_and_a_larger_one(make: Make) -> None:
    values, bus = make().values, make().bus
    large = bytes(LARGEST)
    await values.put("k", large, 60.0)
    assert await values.get("k") == large
    assert await values.swap("k", large, large[:-1] + b"x", 60.0) is True
    for refused in (
        values.put("k", large + b"x", 60.0),
        values.add("n", large + b"x", 60.0),
        values.claim("n", large + b"x", 60.0),
        bus.publish("t", large + b"x"),
    ):
        with pytest.raises(Failure) as failure:
            await refused
        assert failure.value.status == 503
        assert not failure.value.reached
    await values.remove("k")


@pytest.mark.parametrize(
    ("key", "ttl"), [("", 1.0), ("k" * 513, 1.0), ("k", 0.0), ("k", -1.0), ("k", 1e9), ("k", float("nan"))]
)
async def test_a_key_or_time_that_is_none(make: Make, key: str, ttl: float) -> None:
    values = make().values
    for wrong in (
        values.put(key, b"", ttl),
        values.add(key, b"", ttl),
        values.claim(key, b"", ttl),
        values.touch(key, ttl),
        values.swap(key, b"", b"", ttl),
    ):
        with pytest.raises(ValueError, match="has 1 to 512 characters"):
            await wrong


async def test_of_many_who_add_or_take_one_is_told_so(make: Make) -> None:
    one, other = make().values, make().values
    added = await asyncio.gather(*(values.add("k", b"%d" % n, 60.0) for n in range(30) for values in (one, other)))
    assert sum(added) == 1
    taken = await asyncio.gather(*(values.take("k") for _ in range(30) for values in (one, other)))
    assert len([value for value in taken if value is not None]) == 1


async def test_what_many_swap_is_never_lost(make: Make) -> None:
    workers = [make().values, make().values]
    await workers[0].put("n", b"0", 60.0)

    async def count(values: Any) -> None:
        for _ in range(10):
            while True:
                old = await values.get("n")
                if await values.swap("n", old, b"%d" % (int(old) + 1), 60.0):
                    break

    await asyncio.gather(*(count(values) for values in workers for _ in range(3)))
    assert await workers[1].get("n") == b"60"


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["get", "put", "add", "swap", "touch", "remove", "take"]),
        st.sampled_from("abc"),
        st.sampled_from([b"", b"1", b"2"]),
        st.sampled_from([b"", b"1", b"2"]),
        st.integers(0, 1),
    ),
    max_size=40,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_two_workers_see_one_dictionary(
    kind: str, servers: Servers, operations: list[tuple[str, str, bytes, bytes, int]]
) -> None:
    async def run() -> None:
        clock = Clock()
        one = of_one_worker(kind, clock, servers.where)
        if one is not None:
            states: list[State] = [one] * 2
        else:
            what = spec(servers, kind)
            states = [RedisState(what, clock), RedisState(what, clock)]
        model: dict[str, bytes] = {}
        try:
            for name, key, value, other, worker in operations:
                values = states[worker].values
                said: Any
                expected: Any
                if name == "get":
                    said, expected = await values.get(key), model.get(key)
                elif name == "put":
                    said, expected = await values.put(key, value, 100.0), None
                    model[key] = value
                elif name == "add":
                    said, expected = await values.add(key, value, 100.0), key not in model
                    model.setdefault(key, value)
                elif name == "swap":
                    said, expected = await values.swap(key, value, other, 100.0), model.get(key) == value
                    if expected:
                        model[key] = other
                elif name == "touch":
                    said, expected = await values.touch(key, 100.0), key in model
                elif name == "remove":
                    said, expected = await values.remove(key), model.pop(key, None) is not None
                else:
                    said, expected = await values.take(key), model.pop(key, None)
                assert said == expected
        finally:
            for state in set(states):
                await state.close()

    asyncio.run(run())


# ---- messages


async def test_messages_come_in_order_to_all_who_subscribed(make: Make) -> None:
    here, there = make().bus, make().bus
    first: list[bytes] = []
    second: list[bytes] = []
    far: list[bytes] = []
    other: list[bytes] = []
    for bus, topic, heard in ((here, "t", first), (here, "t", second), (there, "t", far), (there, "u", other)):
        bus.subscribe(topic, heard.append)
    await asyncio.gather(here.ready(), there.ready())
    sent = [b"%d" % n for n in range(300)]
    for message in sent:
        await here.publish("t", message)
    await until(lambda: len(first) == len(second) == len(far) == 300)
    assert first == second == far == sent
    assert other == []


async def test_messages_published_together_are_all_delivered(make: Make) -> None:
    here, there = make().bus, make().bus
    heard: list[bytes] = []
    there.subscribe("t", heard.append)
    await there.ready()
    await asyncio.gather(*(here.publish("t", b"%d" % n) for n in range(500)))
    await until(lambda: len(heard) == 500)
    assert heard == [b"%d" % n for n in range(500)]


async def test_who_answers_finds_the_subscription(make: Make) -> None:
    asking, answering = make().bus, make().bus
    loop = asyncio.get_running_loop()
    tasks = set()

    def answer(topic: bytes) -> None:
        task = loop.create_task(answering.publish(topic.decode(), b"answer"))
        tasks.add(task)

    answering.subscribe("questions", answer)
    await answering.ready()
    for n in range(50):
        answered: asyncio.Future[bytes] = loop.create_future()
        end = asking.subscribe(f"reply-{n}", answered.set_result)
        await asking.publish("questions", b"reply-%d" % n)
        assert await asyncio.wait_for(answered, 5.0) == b"answer"
        end()
    await asyncio.gather(*tasks)


async def test_who_has_ended_hears_nothing(make: Make) -> None:
    bus = make().bus
    heard: list[bytes] = []
    ends: list[Callable[[], None]] = []

    def end_both(message: bytes) -> None:
        heard.append(message)
        for end in ends:
            end()
            end()  # twice does nothing

    ends.append(bus.subscribe("t", end_both))
    ends.append(bus.subscribe("t", heard.append))
    marks: list[bytes] = []
    bus.subscribe("marks", marks.append)
    await bus.publish("t", b"1")
    await bus.publish("t", b"2")
    await bus.publish("marks", b"")
    await until(lambda: marks)
    assert heard == [b"1"]


async def test_who_comes_back_hears_again(make: Make) -> None:
    bus = make().bus
    for n in range(20):
        heard: list[bytes] = []
        end = bus.subscribe("t", heard.append)
        if n % 3:
            await bus.publish("t", b"%d" % n)
            await until(lambda heard=heard: heard)
            assert heard == [b"%d" % n]
        end()


async def test_a_subscriber_that_fails_stops_nobody(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    bus = make().bus
    heard: list[bytes] = []

    def fail(message: bytes) -> None:
        raise RuntimeError("mine")

    bus.subscribe("t", fail)
    bus.subscribe("t", heard.append)
    await bus.publish("t", b"1")
    await bus.publish("t", b"2")
    await until(lambda: len(heard) == 2)
    assert "a message on 't' could not be taken" in caplog.text


async def test_nobody_is_there(make: Make) -> None:
    await make().bus.publish("t", b"1")
    await make().bus.ready()


async def test_many_topics(make: Make) -> None:
    bus = make().bus
    heard: list[bytes] = []
    ends = [bus.subscribe(f"t{n}", heard.append) for n in range(1200)]
    await bus.ready()
    for n in (0, 600, 1199):
        await bus.publish(f"t{n}", b"%d" % n)
    await until(lambda: len(heard) == 3)
    for end in ends:
        end()
    assert heard == [b"0", b"600", b"1199"]


# ---- counters (tests/conformance/counter.py has the rest)


async def test_workers_share_counts(make: Make) -> None:
    counters = [make().counter, make().counter]
    rate = Rate("r", 40, 3600.0)
    verdicts = await asyncio.gather(*(counters[n % 2].admit(f"id-{n}", [Charge(rate, "a", 1)]) for n in range(100)))
    assert [verdict.refused for verdict in verdicts].count(-1) == 40


async def test_a_state_says_who_it_is(make: Make) -> None:
    one, other = make(), make()
    assert len(one.node) == 16
    assert all(len(key) >= 32 for key in one.keys)
    if one.shared:
        assert one.node != other.node
    else:
        assert one is other
