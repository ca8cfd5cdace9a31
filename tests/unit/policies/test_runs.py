"""Runs: what names them, whose they are, how long and how deep they may be, and that they can be stopped."""

from time import monotonic
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError
from tests.unit.policies.floor import Time, answer, layer, model, parts, tool, who

from tollhouse.core.call import Actor, Call
from tollhouse.core.errors import Failure, Reason
from tollhouse.policies.runs import RUNS, RunRecord, Runs, RunsSpec, run_table, stopped_run
from tollhouse.store.memory import MemoryState

pytestmark = pytest.mark.anyio


def never(_: str) -> bool:
    return False


class Wall:
    """Unix seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def runs(state: MemoryState | None = None, now: Any = None, stopped: Any = never, **spec: Any) -> Runs:
    return Runs(RunsSpec.model_validate(spec), stopped, None if state is None else state.values, now or Wall())


def named(call: Call, *headers: tuple[bytes, bytes], **meta: str) -> Call:
    """The call with these header fields, and for a tool what `_meta` says of run and parent."""
    call.request.headers.extend(headers)
    if meta:
        call.meta = {f"tollhouse/{k.replace('_', '-')}": msgspec.Raw(msgspec.json.encode(v)) for k, v in meta.items()}  # type: ignore[attr-defined]
    return call


async def name_of(call: Call, **spec: Any) -> str:
    await runs(**spec).handle(call, answer)
    return call.context.run_id


async def failing(policy: Runs, call: Call) -> Failure:
    with pytest.raises(Failure) as caught:
        await policy.handle(call, answer)
    return caught.value


RUN = (b"x-tollhouse-run", b"task-1")
TRACE = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


async def test_a_header_names_it_below_its_caller() -> None:
    assert await name_of(named(model(), RUN)) == "jwt:ada/task-1"
    assert await name_of(named(model(principal=who("key", "ci")), RUN)) == "key:ci/task-1"
    assert await name_of(named(tool(), RUN)) == "jwt:ada/task-1"
    assert await name_of(model()) == ""


async def test_meta_names_it_and_counts_before_the_header() -> None:
    assert await name_of(named(tool(), RUN, run="task-2")) == "jwt:ada/task-2"
    assert await name_of(named(tool(), parent_run="task-0")) == ""


async def test_a_trace_names_it_where_that_is_wished() -> None:
    assert await name_of(named(model(), TRACE)) == ""
    assert await name_of(named(model(), TRACE), trace=True) == "jwt:ada/0af7651916cd43dd8448eb211c80319c"
    assert await name_of(named(model(), TRACE, RUN), trace=True) == "jwt:ada/task-1"
    for nonsense in (b"", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", b"xx", b"00-0AF7-1-1"):
        assert await name_of(named(model(), (b"traceparent", nonsense)), trace=True) == ""


@pytest.mark.parametrize(
    ("of", "expected"),
    [("caller", "jwt:ada/task-1"), ("user", "user:acme:ada/task-1"), ("org", "org:acme/task-1")],
)
async def test_whose_it_is(of: str, expected: str) -> None:
    assert await name_of(named(model(principal=who(org="acme")), RUN), of=of) == expected


async def test_who_has_no_user_has_runs_of_his_own() -> None:
    principal = who("key", "ci", user="", org="")
    assert await name_of(named(model(principal=principal), RUN), of="user") == "key:ci/task-1"
    assert await name_of(named(model(principal=principal), RUN), of="org") == "key:ci/task-1"


@pytest.mark.parametrize("name", [b"", b"a b", b"x" * 129, b"\xff", b"a\x00"])
async def test_a_name_that_is_none_is_refused(name: bytes) -> None:
    failure = await failing(runs(), named(model(), (b"x-tollhouse-run", name)))
    assert (failure.status, failure.code) == (400, "invalid_run")


async def test_a_call_without_a_run_is_refused_where_one_is_required() -> None:
    policy = runs(required=True)
    assert (await failing(policy, model())).status == 400
    assert (await failing(policy, tool())).status == 400
    await policy.handle(tool(method="tools/list"), answer)
    await policy.handle(named(model(), RUN), answer)


async def test_one_that_was_stopped_makes_no_call() -> None:
    policy = runs(stopped=lambda run: run == "jwt:ada/task-1")
    failure = await failing(policy, named(model(), RUN))
    assert (failure.status, failure.reason, failure.code) == (403, Reason.AUTHORIZATION, "run_stopped")
    assert "'task-1'" in failure.message
    assert "jwt:ada" not in failure.message
    await policy.handle(named(model(principal=who(id="bob")), RUN), answer)  # another's
    await policy.handle(named(model(), (b"x-tollhouse-run", b"task-2")), answer)


async def test_it_ends_when_its_time_is_over_on_every_node() -> None:
    time, now = Time(), Wall()
    state = MemoryState(time.clock)
    first, other = (runs(state, now, wall="10m") for _ in range(2))
    call = named(model(), RUN)
    await first.handle(call, answer)
    assert call.context.deadline == pytest.approx(monotonic() + 600.0, abs=5.0)
    now.now += 590.0
    call = named(model(), RUN)
    await other.handle(call, answer)
    assert call.context.deadline == pytest.approx(monotonic() + 10.0, abs=5.0)
    now.now += 11.0
    for policy in (first, other):
        failure = await failing(policy, named(model(), RUN))
        assert (failure.status, failure.reason, failure.code) == (429, Reason.BUDGET, "run_limit_exceeded")
        assert (b"x-should-retry", b"false") in failure.headers
    await first.handle(named(model(), (b"x-tollhouse-run", b"task-2")), answer)


async def test_a_nearer_deadline_stays() -> None:
    state = MemoryState(Time().clock)
    call = named(model(), RUN)
    call.context.deadline = monotonic() + 1.0
    await runs(state, wall="10m").handle(call, answer)
    assert call.context.deadline < monotonic() + 2.0


async def test_a_name_that_is_used_again_when_the_run_does_not_count_any_more_is_a_new_run() -> None:
    time, now = Time(), Wall()
    policy = runs(MemoryState(time.clock), now, wall="30s", life="1h")
    await policy.handle(named(model(), RUN), answer)
    now.now += 3600.0
    time.advance(3600.0)
    assert (await failing(policy, named(model(), RUN))).code == "run_limit_exceeded"
    now.now += 3700.0
    for _ in range(40):
        time.advance(100.0)
    await policy.handle(named(model(), RUN), answer)


async def test_no_two_owners_have_the_same_run() -> None:
    """A slash may stand in the name of a key, or in a token's subject; a colon in that of an organisation."""
    name = (b"x-tollhouse-run", b"a/b")
    assert await name_of(named(model(principal=who("key", "ci")), name)) == "key:ci/a%2Fb"
    assert await name_of(named(model(principal=who("key", "ci/a")), (b"x-tollhouse-run", b"b"))) == "key:ci/a/b"
    one, other = who(id="c", org="a:b"), who(id="b:c", org="a")
    names = [await name_of(named(model(principal=whose), RUN), of="user") for whose in (one, other)]
    assert names == ["user:a%3Ab:c/task-1", "user:a:b:c/task-1"]
    failure = await failing(runs(stopped=lambda run: True), named(model(), name))
    assert "the run 'a/b' was stopped" in failure.message


async def test_all_chains_of_a_configuration_know_the_same_runs() -> None:
    spec = RunsSpec.model_validate({"wall": "1h"})
    made = parts(entrance="llm")
    assert RUNS.make((layer(spec),), made).__self__ is RUNS.make((layer(spec),), made).__self__  # type: ignore[union-attr]


async def test_runs_that_begin_runs_are_bounded() -> None:
    state = MemoryState(Time().clock)
    policy = runs(state, depth=3)

    def asked(name: str, parent: str = "") -> Call:
        headers = [(b"x-tollhouse-run", name.encode())]
        if parent:
            headers.append((b"x-tollhouse-parent-run", parent.encode()))
        return named(model(), *headers)

    await policy.handle(asked("a"), answer)
    await policy.handle(asked("b", "a"), answer)
    await policy.handle(asked("c", "b"), answer)
    failure = await failing(policy, asked("d", "c"))
    assert "is 4 deep" in failure.message
    assert (await failing(policy, asked("d"))).code == "run_limit_exceeded"  # as it was written by its first call
    await policy.handle(asked("e", "unknown"), answer)
    call = asked("c", "a")  # what it was at first counts
    await policy.handle(call, answer)
    assert call.context.parent_id == "jwt:ada/a"
    found = await run_table(state.values).get("jwt:ada/c")
    assert found is not None
    assert found.value == RunRecord(1_700_000_000.0, 3, "jwt:ada/b")


async def test_the_signed_chain_of_actors_counts_whatever_is_said() -> None:
    state = MemoryState(Time().clock)
    policy = runs(state, depth=2)
    actors = tuple(Actor("https://a", f"agent-{n}") for n in range(3))
    assert "is 3 deep" in (await failing(policy, named(model(principal=who(actors=actors)), RUN))).message


async def test_a_run_of_another_is_nobodys_parent() -> None:
    state = MemoryState(Time().clock)
    policy = runs(state, depth=2)
    await policy.handle(named(model(principal=who(id="bob")), RUN), answer)
    call = named(model(), (b"x-tollhouse-run", b"mine"), (b"x-tollhouse-parent-run", b"task-1"))
    await policy.handle(call, answer)
    assert call.context.parent_id == "jwt:ada/task-1"  # his own, which is not there


def test_it_is_built_from_the_configuration() -> None:
    spec = RunsSpec.model_validate({"wall": "1h"})
    assert RUNS.make((layer(spec),), parts(entrance="llm")) is not None
    assert RUNS.make((layer(spec),), parts(entrance="http")) is None


@pytest.mark.parametrize(
    "spec",
    [
        {"header": "authorization"},
        {"header": "a b"},
        {"calls": 0},
        {"usd": -1},
        {"life": "1s"},
        {"of": "everybody"},
        {"same": {"window": "1m"}},
    ],
)
def test_what_cannot_be_meant_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RunsSpec.model_validate(spec)


def test_what_is_told_of_a_run_that_was_stopped() -> None:
    assert "task/1" not in str(stopped_run("key:ci/task-1"))
    assert stopped_run("key:ci/task-1").detail == "run 'key:ci/task-1'"


# ---- a state that has lost what it knew


class Books:
    """What the ledger knows of runs: (unix seconds, parent) of their first call."""

    def __init__(self, **runs: tuple[float, str]) -> None:
        self.runs = {
            f"jwt:ada/{name.replace('_', '-')}": (at, up and f"jwt:ada/{up}") for name, (at, up) in runs.items()
        }
        self.asked: list[str] = []

    async def __call__(self, run: str, since: float) -> tuple[float, str] | None:
        self.asked.append(run)
        found = self.runs.get(run)
        return found if found is not None and found[0] >= since else None


def told(books: Books, state: MemoryState, now: Wall, **spec: Any) -> Runs:
    return Runs(RunsSpec.model_validate(spec), never, state.values, now, history=books)


async def test_a_run_that_the_state_has_forgotten_began_when_the_ledger_says() -> None:
    now, clock = Wall(), Time().clock
    books = Books(task_1=(now.now - 100.0, ""), task_9=(now.now - 90_000.0, ""))
    state = MemoryState(clock)
    policy = told(books, state, now, wall="120s")
    call = named(model(), RUN)
    await policy.handle(call, answer)
    assert call.context.deadline - monotonic() == pytest.approx(20.0, abs=2.0)
    now.now += 21.0
    assert "has had its time" in (await failing(told(books, state, now, wall="120s"), named(model(), RUN))).message
    # One that nobody knows begins now; and one that began before any run counts any more.
    for name in (b"task-2", b"task-9"):
        call = named(model(), (b"x-tollhouse-run", name))
        await policy.handle(call, answer)
        assert call.context.deadline - monotonic() > 100.0
    await state.close()


async def test_the_ledger_is_asked_only_while_the_state_may_have_lost_something() -> None:
    now, clock, books = Wall(), Time().clock, Books()
    state = MemoryState(clock)
    policy = told(books, state, now, wall="60s")
    for n in range(3):
        await policy.handle(named(model(), (b"x-tollhouse-run", b"run-%d" % n)), answer)
    assert len(books.asked) == 3
    now.now += 86400.0 + 3601.0
    await told(books, state, now, wall="60s").handle(named(model(), (b"x-tollhouse-run", b"run-x")), answer)
    assert len(books.asked) == 3
    empty = MemoryState(clock)
    await told(books, empty, now, wall="60s").handle(named(model(), (b"x-tollhouse-run", b"run-y")), answer)
    assert books.asked[3:] == ["jwt:ada/run-y"]
    await state.close()
    await empty.close()


async def test_how_deep_a_run_is_follows_from_the_ledger_as_well() -> None:
    now, clock = Wall(), Time().clock
    at = now.now - 10.0
    books = Books(a=(at, ""), b=(at, "a"), c=(at, "b"), x=(at, "y"), y=(at, "x"))
    state = MemoryState(clock)
    policy = told(books, state, now, depth=3)
    child = (b"x-tollhouse-run", b"d"), (b"x-tollhouse-parent-run", b"c")
    assert "is 4 deep" in (await failing(policy, named(model(), *child))).message
    await policy.handle(named(model(), (b"x-tollhouse-run", b"c")), answer)  # said to have none, now
    assert "is 4 deep" in (await failing(policy, named(model(), *child))).message
    # Runs that began each other.
    await policy.handle(named(model(), (b"x-tollhouse-run", b"x")), answer)
    await state.close()


async def test_a_ledger_that_cannot_be_asked_is_a_state_that_cannot() -> None:
    async def gone(_: str, since: float) -> tuple[float, str] | None:
        raise Failure(503, Reason.OVERLOADED, "not now", code="state_unavailable")

    for on_failure, status in (("deny", 503), ("allow", 200)):
        state = MemoryState(Time().clock)
        spec = RunsSpec.model_validate({"wall": "60s", "on_store_failure": on_failure})
        policy = Runs(spec, never, state.values, Wall(), history=gone)
        if status == 503:
            assert (await failing(policy, named(model(), RUN))).status == 503
        else:
            await policy.handle(named(model(), RUN), answer)
        await state.close()
