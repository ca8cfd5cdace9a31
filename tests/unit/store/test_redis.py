"""The state on Valkey when something is wrong: killed, slow, full, closed to us, another cluster than it was."""

import asyncio
import itertools
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.fixtures.gone import until_gone
from tests.fixtures.valkey import Proxy, Valkey, cluster, valkey

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.store.base import Charge, Rate
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec, StateTLSSpec

pytestmark = pytest.mark.anyio

PREFIXES = (f"p{n}" for n in itertools.count())
RATE = Rate("r", 1000, 1000.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Valkey]:
    """A server to be maltreated."""
    with valkey(tmp_path) as one:
        yield one


@asynccontextmanager
async def state(url: str | Valkey, **settings: Any) -> AsyncIterator[RedisState]:
    settings = {"prefix": next(PREFIXES), "timeout": 5.0, **settings}
    observe = settings.pop("observe", None)
    one = RedisState(StateSpec(url=url if isinstance(url, str) else url.url, **settings), Clock(), observe=observe)
    try:
        yield one
    finally:
        await one.close()


async def fails(work: Any) -> Failure:
    with pytest.raises(Failure) as failure:
        await work
    assert failure.value.status == 503
    assert failure.value.code == "state_unavailable"
    assert "127.0.0.1" not in failure.value.message
    return failure.value


async def works(values: Any, seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await values.put("again", b"x", 60.0)
            except Failure:
                await asyncio.sleep(0.02)


# ---- nobody there


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    async with state("redis://:hunter2@127.0.0.1:1/0") as one:
        began = time.monotonic()
        failure = await fails(one.values.put("k", b"v", 1.0))
        assert not failure.sent
        assert not failure.reached
        assert "redis://127.0.0.1:1" in failure.detail
        for _ in range(20):
            await fails(one.counter.admit("id", [Charge(RATE, "a", 1)]))
            await fails(one.bus.publish("t", b"m"))
        assert time.monotonic() - began < 4.0
        assert caplog.text.count("is not reached") == 2  # one of commands, one of messages
        assert "hunter2" not in caplog.text + failure.detail


async def test_a_server_that_never_answers() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with state(f"redis://127.0.0.1:{port}", timeout=0.2, connections=1) as one:
        began = time.monotonic()
        failures = await asyncio.gather(*(fails(one.values.get(f"k{n}")) for n in range(300)))
        assert time.monotonic() - began < 2.0  # twice the timeout, and a slow machine
        assert any("no answer in 0.2 s" in failure.detail or "Timeout" in failure.detail for failure in failures)
        began = time.monotonic()
        one.bus.subscribe("t", print)
        await fails(one.bus.ready())
        assert time.monotonic() - began < 2.0
    listener.close()


async def test_a_killed_server_comes_back(own: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    async with state(own) as one:
        await one.values.put("k", b"v", 60.0)
        gaps: list[str] = []
        heard: list[bytes] = []
        one.bus.subscribe("t", heard.append, lambda: gaps.append("t"))
        one.bus.subscribe("u", heard.append)
        await one.bus.ready()
        own.kill()
        failure = await fails(one.values.put("k", b"w", 60.0))
        assert not failure.sent  # it had closed before
        own.start()
        await works(one.values)
        assert await one.values.get("k") is None
        await one.bus.ready()
        await one.bus.publish("t", b"after")
        async with asyncio.timeout(10):
            while not heard:
                await asyncio.sleep(0.01)
        assert heard == [b"after"]
        assert gaps == ["t"]
        assert "answers again" in caplog.text
        assert "come again" in caplog.text


async def test_an_idle_connection_that_was_closed_is_nobodys_failure(own: Valkey) -> None:
    async with state(own, connections=2) as one:
        await asyncio.gather(*(one.values.put(f"k{n}", b"v", 60.0) for n in range(400)))
        own.do("CLIENT", "KILL", "TYPE", "normal")
        await asyncio.sleep(0.05)  # for the loop to see it
        for n in range(5):
            assert await one.values.add(f"n{n}", b"v", 60.0) is True


async def test_a_paused_server_makes_nobody_wait_long(own: Valkey) -> None:
    async with state(own, timeout=0.2) as one:
        await one.values.put("k", b"v", 60.0)
        own.pause()
        began = time.monotonic()
        failures = await asyncio.gather(*(fails(one.values.put(f"k{n}", b"w", 60.0)) for n in range(50)))
        assert time.monotonic() - began < 2.0
        assert any(failure.sent for failure in failures)  # whether it will be done, nobody knows
        for _ in range(5):
            await fails(one.values.put("k", b"w", 60.0))
        began = time.monotonic()
        for _ in range(100):
            await fails(one.values.get("k"))
        assert time.monotonic() - began < 2.0
        own.go_on()
        await works(one.values)


async def test_what_may_have_been_done_is_not_done_again(server: Valkey) -> None:
    async with Proxy(server.port) as proxy, state(f"redis://127.0.0.1:{proxy.port}") as one:
        await one.values.put("k", b"v", 60.0)
        for name, work in (
            ("SET", lambda: one.values.put("k", b"1", 60.0)),
            ("SET", lambda: one.values.add("n", b"1", 60.0)),
            ("EVALSHA", lambda: one.values.swap("k", b"1", b"2", 60.0)),
            ("GETDEL", lambda: one.values.take("k")),
            ("UNLINK", lambda: one.values.remove("n")),
            ("PUBLISH", lambda: one.bus.publish("t", b"m")),
        ):
            await one.values.touch("k", 60.0)  # all is well between
            before = len(proxy.taken)
            proxy.swallow = lambda sent, name=name: b"\r\n%b\r\n" % name.encode() in sent
            failure = await fails(work())
            assert failure.sent
            assert sum(b"\r\n%b\r\n" % name.encode() in sent for sent in proxy.taken[before:]) == 1
        # Each was done once.
        assert await one.values.get("k") is None
        assert await one.values.get("n") is None
        # What changes nothing is asked again, and its caller never knows.
        await one.values.put("k", b"v", 60.0)
        await one.bus.publish("t", b"m")
        for name, again in (("GET", lambda: one.values.get("k")), ("PEXPIRE", lambda: one.values.touch("k", 9.0))):
            proxy.swallow = lambda sent, name=name: b"\r\n%b\r\n" % name.encode() in sent
            assert await again() in (b"v", True)
        assert proxy.swallowed == 8


async def test_a_connection_that_is_cut_in_the_middle_of_many(server: Valkey) -> None:
    async with Proxy(server.port) as proxy, state(f"redis://127.0.0.1:{proxy.port}", connections=2) as one:
        for n in range(20):
            await one.values.put(f"k{n}", b"%d" % n, 60.0)

        async def read(n: int) -> None:
            try:
                assert await one.values.get(f"k{n % 20}") == b"%d" % (n % 20)
            except Failure:
                failed.append(n)

        failed: list[int] = []
        for _ in range(20):
            reading = asyncio.gather(*(read(n) for n in range(200)))
            await asyncio.sleep(0.001)
            proxy.cut()
            await reading
        # One that two connections were cut under may fail; nobody ever got another's answer.
        assert len(failed) < 2000
        await works(one.values)


async def test_who_goes_away_leaves_nothing_behind(server: Valkey) -> None:
    async with state(server, connections=1) as one:
        await one.values.put("k", b"v", 60.0)
        for _ in range(50):
            tasks = [asyncio.ensure_future(one.values.get("k")) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(answer == b"v" for answer in answers[1::2])


async def test_connections_have_a_bound(own: Valkey) -> None:
    async with state(own, connections=3) as one:
        one.bus.subscribe("t", print)
        await one.bus.ready()
        for _ in range(5):
            await asyncio.gather(*(one.values.put(f"k{n}", b"v" * 1000, 60.0) for n in range(2000)))
            await one.bus.publish("t", b"")
        ours = [client for client in own.do("CLIENT LIST") if client["name"] == "tollhouse"]
        assert 3 <= len(ours) <= 5  # one publishes, one listens


async def test_too_many_who_wait_are_refused_at_once(own: Valkey) -> None:
    async with state(own, connections=1, timeout=0.5) as one:
        await one.values.put("k", b"v", 60.0)
        own.pause()
        waiting = [asyncio.ensure_future(one.values.get("k")) for _ in range(10_300)]
        await asyncio.sleep(0)
        began = time.monotonic()
        failures = await asyncio.gather(*waiting, return_exceptions=True)
        assert time.monotonic() - began < 5.0
        assert all(isinstance(failure, Failure) for failure in failures)
        assert sum("wait already" in failure.detail for failure in failures if isinstance(failure, Failure)) >= 100
        own.go_on()


# ---- a server that refuses


async def test_a_wrong_password_and_the_right_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with valkey(tmp_path, "--requirepass", "p@ss/word") as own:
        for login in ("", ":hunter2@", "default:hunter2@"):
            async with state(f"redis://{login}127.0.0.1:{own.port}") as one:
                failure = await fails(one.values.put("k", b"v", 1.0))
                assert "hunter2" not in failure.detail
        assert "hunter2" not in caplog.text
        for login in (":p%40ss%2Fword@", "default:p%40ss%2Fword@"):
            async with state(f"redis://{login}127.0.0.1:{own.port}/3") as one:
                await one.values.put("k", b"v", 60.0)
        assert own.do("DBSIZE", password="p@ss/word", db=3) == 2


async def test_a_user_who_may_not(own: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    own.do("ACL", "SETUSER", "gate", "on", ">secret", "+@all", "-set", "~*", "&*")
    async with state(f"redis://gate:secret@127.0.0.1:{own.port}") as one:
        assert await one.values.get("k") is None
        for _ in range(3):
            failure = await fails(one.values.put("k", b"v", 1.0))
            assert not failure.sent
        assert "no permissions" in failure.detail
        assert caplog.text.count("refuses a command") == 1
        assert await one.values.get("k") is None


async def test_a_server_that_is_full(tmp_path: Path) -> None:
    with valkey(tmp_path, "--maxmemory", "4mb") as own:
        async with state(own) as one:
            with pytest.raises(Failure) as failure:
                for n in range(100):
                    await one.values.put(f"k{n}", bytes(200_000), 60.0)
            assert "memory" in failure.value.detail
            assert await one.values.get("k0") == bytes(200_000)


async def test_a_primary_that_becomes_a_replica(own: Valkey, tmp_path: Path) -> None:
    with valkey(tmp_path / "primary") as primary:
        async with state(own) as one:
            await one.values.put("k", b"v", 60.0)
            own.do("REPLICAOF", "127.0.0.1", primary.port)
            failure = await fails(one.values.put("k", b"w", 60.0))
            assert not failure.sent
            await fails(one.values.swap("k", b"v", b"w", 60.0))
            own.do("REPLICAOF", "NO", "ONE")
            await works(one.values)


# ---- TLS


async def test_tls_with_certificates_both_ways(server: Valkey, tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    other.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    client = authority.issue_cert("gateway.example.com")
    client.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED

    async def through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, to = await asyncio.open_connection("127.0.0.1", server.port)

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with until_gone(writer):
                while data := await reader.read(1 << 16):
                    writer.write(data)

        await asyncio.gather(pump(reader, to), pump(back, writer))

    listener = await asyncio.start_server(through, "127.0.0.1", 0, ssl=context)
    url = f"rediss://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    good = {"ca": str(tmp_path / "ca.pem"), "cert": str(tmp_path / "client.pem")}
    async with state(url, tls=good) as one:
        await one.values.put("k", b"v", 60.0)
        heard: list[bytes] = []
        one.bus.subscribe("t", heard.append)
        await one.bus.publish("t", b"m")
        assert await one.values.get("k") == b"v"
    for bad in ({**good, "ca": str(tmp_path / "other.pem")}, {"cert": good["cert"]}, {"ca": good["ca"]}):
        async with state(url, tls=bad, timeout=1.0) as one:
            await fails(one.values.put("k", b"v", 60.0))
    async with state(url, tls={"verify": False, "cert": good["cert"]}) as one:
        await one.values.put("k", b"v", 60.0)
    listener.close()


@pytest.mark.parametrize("wrong", ["ca", "cert"])
def test_tls_files_that_cannot_be_used(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nonsense")
    with pytest.raises(ValueError, match=r"cannot load the .*bad\.pem"):
        StateTLSSpec(**{wrong: str(tmp_path / "bad.pem")}).context()


# ---- clusters


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Valkey]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as made:
        yield made


def slot(node: Valkey, key: str) -> int:
    found: int = node.do("CLUSTER", "KEYSLOT", key)
    return found


def owner(nodes: list[Valkey], asked: Valkey, of: int) -> Valkey:
    for first, last, (_, port, *_), *_ in asked.do("CLUSTER", "SLOTS"):
        if first <= of <= last:
            return next(node for node in nodes if node.port == port)
    raise AssertionError("nobody has it")


async def test_a_cluster_is_found_from_one_node_and_all_of_it_is_used(nodes: list[Valkey]) -> None:
    async with state(f"redis+cluster://127.0.0.1:1,127.0.0.1:{nodes[2].port}") as one:
        await asyncio.gather(*(one.values.put(f"k{n}", b"%d" % n, 60.0) for n in range(300)))
        answers = await asyncio.gather(*(one.values.get(f"k{n}") for n in range(300)))
        assert answers == [b"%d" % n for n in range(300)]
        assert all(node.do("DBSIZE") > 0 for node in nodes)


async def test_slots_that_move_take_nobody_by_surprise(nodes: list[Valkey]) -> None:
    prefix = next(PREFIXES)
    async with state(f"redis+cluster://127.0.0.1:{nodes[0].port}", prefix=prefix) as one:
        await one.values.put("k", b"v", 60.0)
        moving = slot(nodes[0], f"{prefix}:v:k")
        source = owner(nodes, nodes[0], moving)
        target = next(node for node in nodes if node is not source)
        source_id, target_id = source.do("CLUSTER", "MYID").decode(), target.do("CLUSTER", "MYID").decode()
        target.do("CLUSTER", "SETSLOT", moving, "IMPORTING", source_id)
        source.do("CLUSTER", "SETSLOT", moving, "MIGRATING", target_id)
        assert await one.values.get("k") == b"v"  # still there
        source.do("MIGRATE", "127.0.0.1", target.port, f"{prefix}:v:k", 0, 5000)
        assert await one.values.get("k") == b"v"  # ASK
        assert await one.values.swap("k", b"v", b"w", 60.0) is True
        for node in (target, source, *nodes):
            node.do("CLUSTER", "SETSLOT", moving, "NODE", target_id)
        answers = await asyncio.gather(*(one.values.get("k") for _ in range(50)))  # MOVED
        assert answers == [b"w"] * 50
        assert await one.values.take("k") == b"w"


async def test_an_admission_takes_from_several_buckets_of_a_cluster(nodes: list[Valkey]) -> None:
    async with state(f"redis+cluster://127.0.0.1:{nodes[0].port}") as one:
        charges = [Charge(Rate(f"r{n}", 10, 1000.0), "a", 2) for n in range(8)]
        verdict = await one.counter.admit("id", charges)
        assert verdict.behind == pytest.approx([200.0] * 8, abs=0.1)
        one.counter.settle("id", charges, [0] * 8)
        await one.counter.flush()
        verdict = await one.counter.admit("id-2", charges)
        assert verdict.behind == pytest.approx([200.0] * 8, abs=0.1)


async def test_a_node_that_dies_takes_only_its_own_with_it(tmp_path: Path) -> None:
    prefix = next(PREFIXES)
    with cluster(tmp_path) as nodes:
        async with state(f"redis+cluster://127.0.0.1:{nodes[0].port}", timeout=1.0, prefix=prefix) as one:
            heard: list[bytes] = []
            one.bus.subscribe("t", heard.append)
            await one.bus.ready()
            await asyncio.gather(*(one.values.put(f"k{n}", b"v", 60.0) for n in range(50)))
            dead, alive = nodes[0], nodes[1]
            dead.kill()
            names = {n: f"{prefix}:v:k{n}" for n in range(50)}
            theirs = [n for n, name in names.items() if owner(nodes, alive, slot(alive, name)) is not dead]
            assert 0 < len(theirs) < 50
            async with asyncio.timeout(20):
                answers: set[int] = set()
                while len(answers) < len(theirs):
                    for n in theirs:
                        try:
                            if await one.values.get(f"k{n}") == b"v":
                                answers.add(n)
                        except Failure:
                            await asyncio.sleep(0.05)
            async with asyncio.timeout(20):
                while b"after" not in heard:
                    try:
                        await one.bus.publish("t", b"after")
                    except Failure:
                        pass
                    await asyncio.sleep(0.05)


async def test_a_single_server_taken_for_a_cluster(server: Valkey) -> None:
    async with state(f"redis+cluster://127.0.0.1:{server.port}") as one:
        failure = await fails(one.values.put("k", b"v", 1.0))
        assert "cluster support disabled" in failure.detail


# ---- what is told


async def test_operations_are_observed(server: Valkey) -> None:
    told: list[tuple[str, str]] = []
    async with state(server, observe=lambda operation, outcome, seconds: told.append((operation, outcome))) as one:
        await one.values.put("k", b"v", 60.0)
        await one.values.get("k")
        await one.counter.admit("id", [Charge(RATE, "a", 1)])
        await one.bus.publish("t", b"m")
    await fails(one.values.get("k"))
    told = [one for one in told if one[0] != "tick"]
    assert told == [("put", "ok"), ("get", "ok"), ("admit", "ok"), ("publish", "ok"), ("get", "failed")]


async def test_what_is_closed_refuses(server: Valkey) -> None:
    async with state(server) as one:
        await one.values.put("k", b"v", 60.0)
        waiting = asyncio.ensure_future(one.values.get("k"))
        await asyncio.sleep(0)
    assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], (bytes, Failure))
    await fails(one.values.get("k"))
    await fails(one.bus.publish("t", b"m"))
    await one.bus.ready()
