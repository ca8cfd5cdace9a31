"""What one node has learned of texts, and the others know: from the state, without any module of the server's."""

import math
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pytest
from tests.fixtures.valkey import Valkey, valkey
from tests.unit.policies.cache.house import asked, state
from tests.unit.policies.cache.node import Node, nodes
from tests.unit.policies.floor import counted, who

from tollhouse.policies.cache import learned
from tollhouse.policies.cache.agree import Facts, facts_of
from tollhouse.policies.cache.purges import purge
from tollhouse.policies.cache.vectors import Item, Vectors

pytestmark = pytest.mark.anyio

RESET, STEPS = "How do I reset my password?", "What are the steps to reset my password?"
SEMANTIC = {"semantic": {"ttl": "5m", "sample": 0.0}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one


@pytest.fixture(params=[{}, {"encryption_key": "0123456789abcdef0123456789abcdef"}], ids=["plain", "sealed"])
async def two(server: Valkey, request: pytest.FixtureRequest) -> AsyncIterator[list[Node]]:
    async with nodes(server, more=SEMANTIC, **request.param) as made:
        yield made


def meanings(node: Node) -> Vectors:
    found: Vectors = node.shelf.parts[("cache meanings", "local", 20_000)].vectors
    return found


def lists(server: Valkey, node: Node) -> list[bytes]:
    with server.client() as client:
        return sorted(client.scan_iter(f"{node.prefix}:l:*"))


async def test_what_one_has_learned_the_other_knows(two: list[Node], server: Valkey) -> None:
    one, other = two
    first = await one.house.ask(text=RESET)
    await one.written()
    call = asked(STEPS)
    again = await other.house.ask(call)
    assert (again.first, state(again), call.context.cached) == (first.first, "hit", "semantic")
    assert not other.house.upstream.calls
    (name,) = lists(server, one)
    with server.client() as client:
        assert 55_000 < client.pttl(name) <= 60_000  # as long as the answer
        assert (b"password" in client.xrange(name)[0][1][b"v"]) is (one.state.keys[0][:4] != b"0123")
    assert state(await one.house.ask(text="How do I delete my account?")) == "stored"
    await one.written()
    assert state(await other.house.ask(text="What are the steps to delete my account?")) == "hit"
    assert len(meanings(other)) == 2


async def test_it_is_known_in_its_space_alone(two: list[Node], server: Valkey) -> None:
    one, other = two
    await one.house.ask(text=RESET)
    await one.written()
    for changes in ({"principal": who(id="bob", org="acme")}, {"max_tokens": 5}, {"label": "other"}):
        assert state(await other.house.ask(asked(STEPS, **changes))) == "stored"
    assert len(meanings(other)) == 3


async def test_what_was_purged_is_not_given_there_either(two: list[Node]) -> None:
    one, other = two
    await one.house.ask(text=RESET)
    await one.written()
    lines = {"all": await purge(one.state, "user:ada")}
    other.store.purges.apply({"user:ada": lines["all"]})
    assert state(await other.house.ask(text=STEPS)) == "stored"


async def test_one_that_comes_later_knows_what_was_learned(server: Valkey) -> None:
    async with nodes(server, 1, more=SEMANTIC) as (one,):
        texts = [f"What is the price of item {n}?" for n in range(5)]
        for text in texts:
            await one.house.ask(text=text)
            await one.written()
        late = Node(server.url, one.prefix, more=SEMANTIC)
        try:
            await late.ready()
            reply = await late.house.ask(text="Please tell me the price of item 3.")
            assert (reply.first, state(reply)) == (b'{"n":4}', "hit")
            assert len(meanings(late)) == 5
        finally:
            await late.close()


async def test_another_way_of_verifying_is_another_space(server: Valkey) -> None:
    async with nodes(server, 1, more={"semantic": {"ttl": "5m", "sample": 0.0, "verify": "off"}}) as (one,):
        await one.house.ask(text="What is 12 + 5?")
        await one.written()
        strict = Node(server.url, one.prefix, more=SEMANTIC)
        try:
            await strict.ready()
            assert state(await strict.house.ask(text="What is 12 + 5 ?")) == "stored"
        finally:
            await strict.close()


async def test_what_stands_in_a_list_and_is_none_of_ours(server: Valkey) -> None:
    async with nodes(server, more=SEMANTIC) as (one, other):
        await one.house.ask(text=RESET)
        await one.house.ask(asked(RESET, principal=who(id="bob", org="acme")))
        await one.written()
        mine, others = lists(server, one)
        with server.client() as client:
            true = {name: client.xrange(name)[0][1][b"v"] for name in (mine, others)}
            facts = facts_of(STEPS, "names")
            ones = numpy.ones(384, dtype="<f2")
            until = time.time() + 60
            forged = [
                learned._Lesson(b"k" * 20, until, facts, b""),
                learned._Lesson(b"k" * 20, until, facts, b"odd"),
                learned._Lesson(b"k" * 20, until, facts, (ones * math.nan).tobytes()),
                learned._Lesson(b"k" * 20, until, facts, ones.tobytes()),
                learned._Lesson(b"k" * 20, until, facts, (ones[:4] / 2).tobytes()),
                learned._Lesson(b"k" * 20, math.nan, facts, (ones / math.sqrt(384)).tobytes()),
                learned._Lesson(b"k" * 20, math.inf, facts, (ones / math.sqrt(384)).tobytes()),
                learned._Lesson(b"k" * 20, -1.0, facts, (ones / math.sqrt(384)).tobytes()),
            ]
            wrong: list[bytes] = [b"", b"junk", b"\1junk", *(b"\1" + msgspec.msgpack.encode(one) for one in forged)]
            for name in (mine, others):
                for value in wrong:
                    client.xadd(name, {"v": value})
                client.xadd(name, {"other": "x"})
            # Bob's answer, said to be one to Ada's question, and the other way round.
            client.xadd(mine, {"v": true[others]})
            client.xadd(others, {"v": true[mine]})
        for principal, text in ((None, b'{"n":1}'), (who(id="bob", org="acme"), b'{"n":2}')):
            reply = await other.house.ask(asked(STEPS, principal=principal))
            assert (reply.first, state(reply)) == (text, "hit")
        assert counted(other.parts, "cache_state_failures_total")[("read",)] == 2 * 6
        assert not other.house.upstream.calls


async def test_another_one_s_answer_is_not_given_whatever_a_list_says(server: Valkey) -> None:
    async with nodes(server, more=SEMANTIC) as (one, other):
        await one.house.ask(asked(RESET, principal=who(id="bob", org="acme")))
        await one.written()
        (bobs,) = lists(server, one)
        await one.house.ask(text="Hello there, my friend.")
        await one.written()
        (mine,) = set(lists(server, one)) - {bobs}
        with server.client() as client:
            client.xadd(mine, {"v": client.xrange(bobs)[0][1][b"v"]})
        assert state(await other.house.ask(text=STEPS)) == "stored"


async def test_a_list_is_read_in_parts_and_only_on(server: Valkey) -> None:
    async with nodes(server, more=SEMANTIC) as (one, other):
        await one.house.ask(text=RESET)
        await one.written()
        (name,) = lists(server, one)
        with server.client() as client:
            value = client.xrange(name)[0][1][b"v"]
            lesson = learned._decode(value[1:])
            lesson.vector = lesson.vector[100:] + lesson.vector[:100]
            for n in range(700):
                lesson.key = b"%020d" % n
                client.xadd(name, {"v": b"\1" + msgspec.msgpack.encode(lesson)})
        assert state(await other.house.ask(text=STEPS)) == "hit"
        assert len(meanings(other)) > 690
        assert other.done.count("since") == 6
        await other.house.ask(text="What steps reset my password?")
        assert other.done.count("since") == 7


async def test_a_state_that_is_gone_is_as_though_nobody_knew(tmp_path: Path) -> None:
    with valkey(tmp_path) as own:
        async with nodes(own, 1, more=SEMANTIC, timeout="300ms") as (node,):
            await node.house.ask(text=RESET)
            await node.written()
            own.kill()
            assert state(await node.house.ask(text=STEPS)) == "hit"
            assert state(await node.house.ask(text="How do I delete my account?")) == "stored"


# ---- vectors
def row(*values: float) -> Any:
    return numpy.array(values, dtype=numpy.float32)


def item(key: bytes, until: float = 100.0) -> Item:
    return Item(key, Facts(), until)


def test_what_others_know_changes_nothing_of_ones_own() -> None:
    vectors = Vectors(100, numpy)
    vectors.add(b"s", item(b"a", 50.0), row(1, 0))
    vectors.take(b"s", item(b"a", 40.0), row(0, 1))
    vectors.take(b"s", item(b"b"), row(0, 1, 0))  # of another length
    vectors.take(b"s", item(b"c"), row(0, 1))
    vectors.take(b"s", item(b"a", 60.0), row(0, 1))
    items, rows = vectors.view(b"s") or ([], row())
    assert [(one.key, one.until) for one in items] == [(b"a", 60.0), (b"c", 100.0)]
    assert rows.tolist() == [[1, 0], [0, 1]]


def test_where_one_was_is_known_as_long_as_the_space_is() -> None:
    vectors = Vectors(4, numpy)
    assert vectors.position(b"s") == b""
    vectors.move(b"s", b"1-0")
    assert (vectors.position(b"s"), vectors.view(b"s"), len(vectors)) == (b"1-0", None, 0)
    vectors.add(b"s", item(b"a"), row(1, 0))
    vectors.drop(b"s", b"a")
    assert (vectors.position(b"s"), vectors.view(b"s"), len(vectors)) == (b"1-0", None, 0)
    vectors.add(b"s", item(b"a"), row(0, 1))
    assert [one.key for one in (vectors.view(b"s") or ([], None))[0]] == [b"a"]
    for n in range(20):
        vectors.move(b"%d" % n, b"1-0")
    assert len(vectors._spaces) == 4
    assert (vectors.position(b"s"), len(vectors)) == (b"", 0)
