"""What is revoked is refused by every worker within a second, and nothing that was revoked is forgotten."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fixtures.line import Line
from tests.fixtures.valkey import valkey

from tollhouse.core.call import Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.identity import RevocationView
from tollhouse.store.file import FileState
from tollhouse.store.memory import MemoryState
from tollhouse.store.redis import RedisState
from tollhouse.store.revocation import Kind, Revocation, Revocations, grant_id
from tollhouse.store.spec import StateSpec
from tollhouse.wire.jwt import Minter, Signer, generate

pytestmark = pytest.mark.anyio

ISSUER = "https://auth.example.com"
PREFIXES = (f"rv{n}" for n in itertools.count())


def somebody(**changes: Any) -> Principal:
    said: dict[str, Any] = {
        "source": "jwt", "issuer": ISSUER, "subject": "ada", "client": "agent-1", "jti": "j1", "sid": "s1",
        "family": "g1", "issued": time() - 10, "token": b"a.b.c", **changes,
    }  # fmt: skip
    return Principal("jwt:ada", **said)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with valkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running.url


class Silence:
    """A `store.base.Bus` that loses every message."""

    async def publish(self, topic: str, message: bytes) -> None:
        return

    def subscribe(self, topic: str, deliver: Any, on_gap: Any = None) -> Callable[[], None]:
        return lambda: None

    async def ready(self) -> None:
        return


class Seen:
    """A State as one worker reaches it."""

    shared = True

    def __init__(self, state: Any, is_silent: bool) -> None:
        self.values: Any = Line(state.values)
        self.bus: Any = Silence() if is_silent else state.bus
        self.counter = state.counter
        self.node = state.node
        self.keys = state.keys

    async def close(self) -> None:
        return


class Workers:
    """Workers that share a state of one kind."""

    def __init__(self, kind: str, url: str) -> None:
        self.clock = Clock()
        self._spec = StateSpec(
            url=url, prefix=next(PREFIXES), timeout=5.0, **({"encryption_key": "k" * 32} if kind == "sealed" else {})
        )
        self._one = MemoryState(self.clock) if kind == "memory" else None
        self._made: list[Any] = []

    async def begin(
        self, *, is_silent: bool = False, following: bool = True, every: float = 0.05
    ) -> tuple[Revocations, Seen]:
        state: Any = self._one or RedisState(self._spec, self.clock)
        seen = Seen(state, is_silent)
        revocations = Revocations(seen, self.clock, every=every)
        await revocations.load()
        if following:
            revocations.start()
        await seen.bus.ready()
        self._made += [revocations, state]
        return revocations, seen

    async def close(self) -> None:
        for made in dict.fromkeys(self._made):
            await made.close()


@pytest.fixture(params=["memory", "valkey", "sealed"])
async def workers(request: pytest.FixtureRequest, server: str) -> AsyncIterator[Workers]:
    made = Workers(request.param, server)
    yield made
    await made.close()


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


CASES: list[tuple[Kind, str]] = [
    ("jti", "j1"), ("sid", "s1"), ("gid", "g1"), ("sub", "ada"), ("client", "agent-1"), ("key", "ci"),
    ("agent", "robot"), ("grant", grant_id("agent-1", "ada")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "id"), CASES)
async def test_each_kind_is_refused_here_at_once(kind: Kind, id: str) -> None:
    clock = Clock()
    state = MemoryState(clock)
    revocations = Revocations(state, clock)
    view: RevocationView = revocations
    await revocations.load()
    before = view.epoch
    principal = somebody(key="ci", agent="robot")
    assert not view.revoked(principal)
    await revocations.revoke(kind, id, time() + 60)
    assert view.epoch > before
    assert view.revoked(principal)
    other = somebody(jti="j2", sid="s2", family="g2", subject="bob", client="agent-2", key="other", agent="r2")
    assert not view.revoked(other)
    assert not view.revoked(Principal("anonymous", source="anonymous"))
    await state.close()


async def test_a_run_that_is_stopped_is_nobody() -> None:
    clock = Clock()
    state = MemoryState(clock)
    revocations = Revocations(state, clock)
    view: RevocationView = revocations
    assert not view.stopped("key:ci/1")
    await revocations.revoke("run", "key:ci/1", time() + 60)
    assert view.stopped("key:ci/1")
    assert not view.stopped("key:ci/2")
    assert not view.revoked(somebody(key="ci"))
    await state.close()


async def test_of_users_and_clients_what_is_issued_later_is_good() -> None:
    clock = Clock()
    state = MemoryState(clock)
    revocations = Revocations(state, clock, lambda: 1000.5)
    await revocations.revoke("sub", "ada", 1060.0)
    assert revocations.revoked(somebody(issued=1000.0))
    assert not revocations.revoked(somebody(issued=1001.0))
    await revocations.revoke("jti", "j1", 1060.0)
    assert revocations.revoked(somebody(issued=1001.0))
    await state.close()


async def test_what_another_node_with_a_clock_ahead_has_issued_is_of_before() -> None:
    clock = Clock()
    one = MemoryState(clock)
    revocations = Revocations(Seen(one, True), clock, lambda: 1000.0)
    await revocations.load()
    for kind, id in (("sub", "ada"), ("client", "agent-1"), ("grant", grant_id("agent-1", "ada"))):
        names = {"subject": "", "client": ""} | ({"subject": "ada"} if kind != "client" else {})
        names |= {"client": "agent-1"} if kind != "sub" else {}
        await revocations.revoke(kind, id, 1060.0)  # type: ignore[arg-type]
        assert revocations.revoked(somebody(issued=1005.0, **names))
        assert not revocations.revoked(somebody(issued=1006.0, **names))
    await one.close()


async def test_one_of_another_issuer_with_the_same_name_is_not_meant() -> None:
    clock = Clock()
    state = MemoryState(clock)
    revocations = Revocations(state, clock)
    await revocations.revoke("sub", "ada", time() + 60, ISSUER)
    assert revocations.revoked(somebody())
    assert not revocations.revoked(somebody(issuer="https://idp.example.net"))
    await revocations.revoke("sub", "ada", time() + 60)
    assert revocations.revoked(somebody(issuer="https://idp.example.net"))
    await state.close()


async def test_tokens_of_a_key() -> None:
    clock = Clock()
    state = MemoryState(clock)
    revocations = Revocations(state, clock)
    signer, other = (Signer("ES256", generate("ES256")) for _ in range(2))
    token, fine = (Minter("at+jwt", {"sub": "ada"}).mint(one, 1, 2, "j") for one in (signer, other))
    await revocations.revoke("kid", signer.kid, time() + 60)
    assert revocations.revoked(somebody(token=token))
    assert not revocations.revoked(somebody(token=fine))
    for no_token in (b"", b"opaque", b"..", b"a.b.c.d.e", b"\xff.\xff.\xff"):
        assert not revocations.revoked(somebody(token=no_token))
    assert revocations.has("kid", signer.kid)
    assert revocations.has("sub", "ada", issued=1.0) is False
    await state.close()


async def test_whoever_asks_is_told_of_each_once() -> None:
    clock = Clock()
    state = MemoryState(clock)
    revocations = Revocations(state, clock)
    told: list[Revocation] = []

    def fail(_: Revocation) -> None:
        raise RuntimeError("mine")

    revocations.on_revoked(fail)
    end = revocations.on_revoked(told.append)
    until = time() + 60
    await revocations.revoke("jti", "j1", until)
    epoch = revocations.epoch
    await revocations.load()  # it is in the log as well
    assert [(one.kind, one.id) for one in told] == [("jti", "j1")]
    assert revocations.epoch == epoch
    end()
    end()
    await revocations.revoke("jti", "j2", until)
    assert len(told) == 1
    await state.close()


async def test_what_is_over_is_forgotten() -> None:
    clock = Clock()
    state = MemoryState(clock)
    moment = [time()]
    revocations = Revocations(state, clock, lambda: moment[0])
    await revocations.load()
    revocations.start()
    await revocations.revoke("jti", "past", moment[0] - 1)
    assert len(revocations) == 0
    for number in range(1500):
        await revocations.revoke("jti", f"j{number}", moment[0] + 60)
    await revocations.revoke("jti", "late", moment[0] + 600)
    moment[0] += 61
    for _ in range(10):
        clock.turn()
    assert len(revocations) == 1
    assert revocations.has("jti", "late")
    await revocations.close()
    await state.close()


@pytest.mark.parametrize("id", ["", "x" * 1025])
async def test_a_name_that_is_none(id: str) -> None:
    clock = Clock()
    state = MemoryState(clock)
    with pytest.raises(ValueError, match="1 to 1024"):
        await Revocations(state, clock).revoke("jti", id, time() + 60)
    await state.close()


async def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    for number in range(3):
        clock = Clock()
        state = FileState(clock, tmp_path / "state", ("iss:",))
        revocations = Revocations(state, clock)
        await revocations.load()
        assert len(revocations) == 150 * number
        for one in range(150):
            await revocations.revoke("gid", f"g{number}-{one}", time() + 600)
        assert revocations.lag == 0.0
        await state.close()


# ---- several workers


async def test_another_worker_hears_of_it_at_once(workers: Workers) -> None:
    here, _ = await workers.begin(every=60.0)
    there, _ = await workers.begin(every=60.0)
    principal = somebody()
    assert not there.revoked(principal)
    await here.revoke("jti", "j1", time() + 60)
    await until(partial(there.revoked, principal))


async def test_without_the_push_the_log_tells_within_a_second(workers: Workers) -> None:
    here, _ = await workers.begin(is_silent=True, every=0.5)
    there, _ = await workers.begin(is_silent=True, every=0.5)
    await here.revoke("jti", "j", time() + 60)
    await until(partial(there.has, "jti", "j"), 3.0)  # half a second, on a machine that has time
    await there.revoke("gid", "g", time() + 60)
    await until(partial(here.has, "gid", "g"), 3.0)
    assert there.lag < 3.0


async def test_a_worker_that_starts_knows_all_that_is_in_force(workers: Workers) -> None:
    here, _ = await workers.begin()
    there, _ = await workers.begin()
    await asyncio.gather(
        *(one.revoke("jti", f"{n}-{k}", time() + 60) for n, one in enumerate((here, there)) for k in range(130))
    )
    late, _ = await workers.begin(following=False)
    assert len(late) == 260
    assert all(late.has("jti", f"{n}-{k}") for n in range(2) for k in range(130))


async def test_pages_that_are_over_are_passed_over(workers: Workers) -> None:
    here, _ = await workers.begin(is_silent=True)
    await asyncio.gather(*(here.revoke("jti", f"long-{n}", time() + 600) for n in range(60)))
    for part in range(2):
        await asyncio.gather(*(here.revoke("gid", f"short-{part}-{n}", time() + 0.3) for n in range(140)))
    there, _ = await workers.begin(is_silent=True)
    await asyncio.sleep(0.4)  # the pages with nothing but short ones are gone from the store
    await here.revoke("sid", "s-after", time() + 600)
    await until(lambda: there.has("sid", "s-after"))
    late, _ = await workers.begin(following=False)
    assert late.has("sid", "s-after")
    assert all(late.has("jti", f"long-{n}") for n in range(60))


async def test_what_the_state_has_lost_is_written_again(workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    here, seen = await workers.begin(is_silent=True)
    there, _ = await workers.begin(is_silent=True)
    for number in range(3):
        await here.revoke("jti", f"j{number}", time() + 600)
    await until(lambda: len(there) == 3)
    before = [await seen.values.get(key) for key in ("iss:rv:head", "iss:rv:0")]
    await here.revoke("jti", "j3", time() + 600)
    await until(lambda: there.has("jti", "j3"))
    for head, page in (before, (None, None)):  # a failover that lost the last write; a server that came back empty
        for key, value in (("iss:rv:head", head), ("iss:rv:0", page)):
            await seen.values.remove(key)
            if value is not None:
                await seen.values.put(key, value, 600.0)

        async def is_whole() -> bool:
            late, _ = await workers.begin(following=False)
            return len(late) == 4

        async with asyncio.timeout(10):
            while not await is_whole():
                await asyncio.sleep(0.05)
    assert "are missing in the state; they are written again" in caplog.text


async def test_while_the_state_is_away_what_is_known_holds(workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    here, seen = await workers.begin(is_silent=True)
    there, far = await workers.begin(is_silent=True)
    await here.revoke("jti", "j0", time() + 600)
    await until(lambda: there.has("jti", "j0"))
    seen.values.is_cut = far.values.is_cut = True
    with pytest.raises(Failure):
        await here.revoke("jti", "j1", time() + 600)
    assert here.has("jti", "j1")
    assert there.has("jti", "j0")
    await until(lambda: "revocations cannot be read" in caplog.text)
    await until(lambda: there.lag > 0.2)
    seen.values.is_cut = far.values.is_cut = False
    await until(lambda: there.has("jti", "j1"))  # it was not forgotten


async def test_a_worker_that_starts_without_the_state_reads_all_later(workers: Workers) -> None:
    here, seen = await workers.begin()
    await asyncio.gather(*(here.revoke("jti", f"j{n}", time() + 600) for n in range(250)))
    late = Revocations(seen, workers.clock)
    seen.values.is_cut = True
    with pytest.raises(Failure):
        await late.load()
    seen.values.is_cut = False
    await late._read()
    assert len(late) == 250


async def test_junk_in_the_state_is_left_aside(workers: Workers) -> None:
    here, seen = await workers.begin()
    await seen.values.put("iss:rv:head", b"\xc1", 600.0)
    with pytest.raises(Failure):
        await here.revoke("jti", "j0", time() + 600)
    assert here.has("jti", "j0")
    await seen.values.remove("iss:rv:head")
    await seen.values.put("iss:rv:0", b"\xc1", 600.0)
    await here.revoke("jti", "j1", time() + 600)
    await seen.bus.publish("iss:rv", b"\xc1")
    there, _ = await workers.begin()
    await until(lambda: there.has("jti", "j1") and there.has("jti", "j0"))


STEPS = ("revoke", "restart", "cut", "mend", "poll")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["revoke", "restart", "cut", "mend", "poll"]), st.integers(0, 2), st.integers(1, 130)
        ),
        max_size=25,
    )
)
def test_nothing_that_was_promised_is_lost(steps: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        clock = Clock()
        state = MemoryState(clock)
        nodes: list[tuple[Revocations, Seen]] = []
        for _ in range(3):
            seen = Seen(state, True)
            nodes.append((Revocations(seen, clock), seen))
            await nodes[-1][0].load()
        promised: set[str] = set()
        numbers = itertools.count()
        for step, which, count in steps:
            revocations, seen = nodes[which]
            if step == "revoke":
                for _ in range(count):
                    id = f"j{next(numbers)}"
                    try:
                        await revocations.revoke("jti", id, time() + 600)
                    except Failure:
                        break
                    promised.add(id)
            elif step in ("cut", "mend"):
                seen.values.is_cut = step == "cut"
            elif not seen.values.is_cut:
                if step == "restart":
                    nodes[which] = (Revocations(seen, clock), seen)
                await nodes[which][0].load() if step == "restart" else await nodes[which][0]._read()
        for revocations, seen in nodes:
            seen.values.is_cut = False
            await revocations._read()
        for revocations, _ in nodes:
            await revocations._read()
            assert promised <= {id for id, _ in revocations._known["jti"]}
        await state.close()

    asyncio.run(run())
