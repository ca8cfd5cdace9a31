"""Allowances on a real Valkey: lost answers, servers that die, are full or only replicas, and many callers at once."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.allowances import Records
from tests.fixtures.valkey import Proxy, Valkey, cluster, valkey

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.net.timer import Timer
from tollhouse.store.base import ADMITTED, OPEN, REFUSED, Charge, Draw, Posting, Rate, Window
from tollhouse.store.redis import RedisState, connects
from tollhouse.store.redis_allowances import SCRIPTS
from tollhouse.store.redis_counter import RedisCounter, script
from tollhouse.store.redis_line import Script
from tollhouse.store.redis_server import Server
from tollhouse.store.seeding import catch_up, check, seed
from tollhouse.store.spec import StateSpec, place_of

pytestmark = pytest.mark.anyio

PREFIXES = (f"p{n}" for n in itertools.count())
IDS = (f"id-{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as one:
        yield one


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    one = Clock()
    timer = Timer(one)
    timer.start()
    yield one
    timer.stop()


def window() -> Window:
    start = int(time.time()) // 100_000 * 100_000
    return Window(start, start + 200_000)


def usd(amount: int, limit: int | None = 1000, key: str = "ada") -> Draw:
    return Draw("usd:top/user", key, amount, limit, window())


def at_once(limit: int) -> Draw:
    return Draw("concurrent:top/user", "ada", 1, limit, kept=False)


@asynccontextmanager
async def state(url: str, clock: Clock, prefix: str = "", timeout: float = 5.0) -> AsyncIterator[Any]:
    one = RedisState(StateSpec(url=url, prefix=prefix or next(PREFIXES), timeout=timeout), clock)
    try:
        yield one.counter
    finally:
        await one.close()


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.01)


async def used(counter: Any, draw: Draw) -> int:
    """What is spent and held, looked at by a hold that is voided at once."""
    id = next(IDS)
    verdict = await counter.admit(id, [], [Draw(draw.allowance, draw.key, 1, None, draw.window, kept=draw.kept)])
    assert verdict.happened == ADMITTED, verdict
    counter.void(id)
    await counter.flush()
    return int(verdict.used[0]) - 1


# ---- answers that get lost


async def test_an_admission_whose_answer_is_lost_holds_once(server: Valkey, clock: Clock) -> None:
    async with Proxy(server.port) as proxy, state(f"redis://127.0.0.1:{proxy.port}", clock) as counter:
        await seed(counter, Records(), [usd(1)])
        assert await used(counter, usd(0)) == 0  # the server has the script from now on
        proxy.swallow = lambda sent: b"the-one" in sent
        verdict = await counter.admit("the-one", [Charge(Rate("r", 10, 1000.0), "a", 3)], [usd(60), at_once(5)])
        assert proxy.swallowed == 1
        assert (verdict.happened, verdict.used) == (ADMITTED, [60, 1])
        assert verdict.behind == pytest.approx([300.0], abs=5.0)
        assert await used(counter, usd(0)) == 60


async def test_a_call_with_many_tags_draws_on_all_of_their_accounts(server: Valkey, clock: Clock) -> None:
    now = int(time.time()) // 3600 * 3600
    earlier = tuple(now - 3600 * n for n in range(24, 0, -1))
    span = Window(now, now + 7200)
    async with state(server.url, clock) as counter:
        draws = [Draw("calls:x", f"tag{n}", 1, 9, span, earlier) for n in range(128)]
        await seed(counter, Records(), draws[:1])
        counter.know({"calls:x": 1e6})
        verdict = await counter.admit("many", (), draws)
        assert (verdict.happened, verdict.draw) == (OPEN, 1)  # known after its window began
        assert await seed(counter, Records(), draws) == 127 * 25
        verdict = await counter.admit("many", (), draws)
        assert (verdict.happened, verdict.used) == (ADMITTED, [1] * 128)
        counter.post("j", 1, "many", [(draw.field, 3) for draw in draws])
        await counter.flush()
        verdict = await counter.admit(next(IDS), (), draws)
        assert (verdict.happened, verdict.used) == (ADMITTED, [4] * 128)
        with pytest.raises(ValueError, match="at most 128 draws"):
            await counter.admit(next(IDS), (), [*draws, Draw("calls:x", "more", 1, 9, span)])


async def test_who_does_not_wait_holds_nothing(server: Valkey, clock: Clock) -> None:
    """Nobody knows whether it was admitted, so it is voided, more than once: it may be done after that."""
    async with state(server.url, clock) as counter:
        await seed(counter, Records(), [usd(1)])
        asking = asyncio.ensure_future(counter.admit("the-one", [], [usd(60), at_once(5)]))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await counter.admit("the-one", [], [usd(60), at_once(5)])  # as if it were late

        async def is_void() -> bool:
            return await used(counter, usd(0)) == 0

        await until(is_void)


async def test_a_server_that_stands_still_leaves_no_holds(tmp_path: Path, clock: Clock) -> None:
    with valkey(tmp_path) as server:
        async with state(server.url, clock, timeout=0.3) as counter:
            await seed(counter, Records(), [usd(1)])
            server.pause()
            failures = await asyncio.gather(
                *(counter.admit(next(IDS), [], [usd(5)]) for _ in range(20)), return_exceptions=True
            )
            assert all(isinstance(failure, Failure) and failure.status == 503 for failure in failures)
            server.go_on()  # and does what it was asked

            async def is_void() -> bool:
                try:
                    return await used(counter, usd(0)) == 0
                except Failure:
                    return False

            await until(is_void)


# ---- servers that go


async def test_what_calls_come_to_waits_for_the_server(tmp_path: Path, clock: Clock) -> None:
    server = Valkey(tmp_path)
    server.start()
    records = Records()
    async with state(server.url, clock) as counter:
        counter.follow(records)
        await seed(counter, records, [usd(1)])
        field = usd(0).field
        for n in range(50):
            record = records.add("j", next(IDS), [(field, 2)])
            counter.post("j", record.seq, record.id, record.amounts)
            if n == 20:
                server.kill()
        with pytest.raises(Failure):
            await counter.admit(next(IDS), [], [usd(1)])
        records.ship()
        server.start()  # empty

        async def is_open() -> bool:
            try:
                await seed(counter, records, [usd(1)])
                return (await counter.admit(next(IDS), [], [usd(1)], 0.001)).happened == ADMITTED
            except Failure:
                return False

        await until(is_open)

        async def is_whole() -> bool:
            return await used(counter, usd(0)) == 100

        await until(is_whole)
        assert set((await check(counter, records, [usd(1)])).values()) == {0}
    server.kill()


async def test_a_server_with_older_state_is_told_again_what_it_lost(server: Valkey, clock: Clock) -> None:
    """By itself, within about a second, though nobody has anything to tell."""
    prefix = next(PREFIXES)
    keys = [f"{{{prefix}}}:{key}" for key in "dhxkew"]
    records = Records()
    async with state(server.url, clock, prefix) as counter:
        counter.follow(records)
        await seed(counter, records, [usd(1)])
        before = {key: server.do("DUMP", key) for key in keys}
        for _ in range(700):
            record = records.add("j", "", [(usd(0).field, 3)])
            counter.post("j", record.seq, "", record.amounts)
        await counter.flush()
        assert await used(counter, usd(0)) == 2100
        records.ship()
        for key, value in before.items():
            if value is not None:
                server.do("RESTORE", key, 0, value, "REPLACE")
            else:
                server.do("DEL", key)

        async def is_whole() -> bool:
            return await used(counter, usd(0)) == 2100

        await until(is_whole)


async def test_what_is_too_much_to_keep_is_fetched(server: Valkey, clock: Clock) -> None:
    records = Records()
    async with state(server.url, clock) as counter:
        counter.follow(records)
        await seed(counter, records, [usd(1)])
        for _ in range(20_500):
            record = records.add("j", "", [(usd(0).field, 1)])
            counter.post("j", record.seq, "", record.amounts)
        assert len(counter._draws._journals["j"].waiting) < 1000
        await counter.flush()
        assert await used(counter, usd(0)) < 20_500  # the ledger is behind
        records.ship()
        await counter.flush()
        assert await used(counter, usd(0)) == 20_500


async def test_without_a_ledger_what_is_lost_is_complained_of(
    server: Valkey, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = next(PREFIXES)
    async with state(server.url, clock, prefix) as counter:
        await seed(counter, Records(), [usd(1)])
        counter.post("j", 5, "", [(usd(0).field, 1)])
        await counter.flush()
        server.do("HSET", f"{{{prefix}}}:w", "j", "3")
        counter.post("j", 6, "", [(usd(0).field, 1)])
        await counter.flush()
        await counter.flush()
        assert caplog.text.count("no ledger to have it from") == 1


async def test_half_of_the_state_is_none(server: Valkey, clock: Clock) -> None:
    """Where positions are lost and sums are not, or the other way round, nobody knows what is counted: it is filled."""
    for gone in "dw":
        prefix = next(PREFIXES)
        records = Records()
        async with state(server.url, clock, prefix) as counter:
            counter.follow(records)
            await seed(counter, records, [usd(1)])
            record = records.add("j", "", [(usd(0).field, 7)])
            counter.post("j", record.seq, "", record.amounts)
            await counter.flush()
            records.ship()
            server.do("DEL", f"{{{prefix}}}:{gone}")
            record = records.add("j", "", [(usd(0).field, 5)])
            counter.post("j", record.seq, "", record.amounts)
            await counter.flush()
            assert (await counter.admit(next(IDS), [], [usd(1)])).happened == OPEN
            records.ship()
            await seed(counter, records, [usd(1)])
            assert await used(counter, usd(0)) == 12


@pytest.mark.parametrize("command", [("CONFIG", "SET", "maxmemory", "1"), ("REPLICAOF", "127.0.0.1", "1")])
async def test_a_server_that_is_full_or_a_replica_changes_nothing(
    tmp_path: Path, clock: Clock, command: tuple[str, ...]
) -> None:
    with valkey(tmp_path, "--maxmemory-policy", "noeviction") as server:
        async with state(server.url, clock, timeout=0.5) as counter:
            await seed(counter, Records(), [usd(1)])
            assert await used(counter, usd(0)) == 0
            rate = Rate("r", 10, 1000.0)
            server.do(*command)
            for _ in range(3):
                with pytest.raises(Failure) as failed:
                    await counter.admit(next(IDS), [Charge(rate, "a", 1)], [usd(5)])
                assert failed.value.code == "state_unavailable"
            counter.post("j", 1, "", [(usd(0).field, 30)])
            with pytest.raises(Failure):
                await counter.flush()
            if command[0] == "CONFIG":
                server.do("CONFIG", "SET", "maxmemory", "0")
            else:
                server.do("REPLICAOF", "NO", "ONE")

            async def is_well() -> bool:
                try:
                    await counter.flush()
                    return await used(counter, usd(0)) == 30
                except Failure:
                    return False

            await until(is_well)
            assert (await counter.admit(next(IDS), [Charge(rate, "a", 10)])).behind == pytest.approx([1000.0], abs=5.0)


# ---- many at once


async def test_admissions_of_one_turn_are_one_write(server: Valkey, clock: Clock) -> None:
    async with Proxy(server.port) as proxy, state(f"redis://127.0.0.1:{proxy.port}", clock) as counter:
        await seed(counter, Records(), [usd(1)])
        await counter.admit(next(IDS), [], [usd(1)])
        await counter.flush()
        proxy.taken.clear()
        verdicts = await asyncio.gather(*(counter.admit(next(IDS), [], [usd(1), at_once(100)]) for _ in range(64)))
        assert {verdict.happened for verdict in verdicts} == {ADMITTED}
        assert b"".join(proxy.taken).count(b"EVALSHA") >= 64
        assert proxy.taken[0].count(b"EVALSHA") == 64


async def test_what_is_held_at_once_is_free_at_once(server: Valkey) -> None:
    """By no clock: this one stands still."""
    async with state(server.url, Clock()) as counter:
        for n in range(20):
            id = next(IDS)
            assert (await counter.admit(id, [], [at_once(1)])).happened == ADMITTED
            assert (await counter.admit(next(IDS), [], [at_once(1)])).happened == REFUSED
            if n % 2:
                counter.post("j", n, id, (), True)
            else:
                counter.void(id)

            async def is_free() -> bool:
                id = next(IDS)
                verdict = await counter.admit(id, [], [at_once(1)])
                counter.void(id)
                return bool(verdict.happened == ADMITTED)

            await until(is_free)

            async def is_gone() -> bool:
                return await used(counter, at_once(1)) == 0

            await until(is_gone)


async def test_many_workers_spend_no_more_than_there_is(server: Valkey, clock: Clock) -> None:
    """200 callers of 4 workers, whose answers get lost now and then, spend a budget to its end; what each comes to is
    at most what it held. The sum is that of the records, and within the limit."""
    prefix = next(PREFIXES)
    records = Records()
    limit = 20_000
    chance = random.Random(7)
    admitted = refused = 0
    async with Proxy(server.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        async with (
            state(url, clock, prefix) as a,
            state(url, clock, prefix) as b,
            state(url, clock, prefix) as c,
            state(server.url, clock, prefix) as d,
        ):
            workers = [a, b, c, d]
            for one in workers:
                one.follow(records)
                one.know({usd(1).allowance: 300_000.0})
            await seed(a, records, [usd(1)])

            async def call(n: int) -> None:
                nonlocal admitted, refused
                counter = workers[n % 4]
                for _ in range(5):
                    hold = chance.randint(1, 60)
                    id = next(IDS)
                    if chance.random() < 0.02:
                        proxy.swallow = lambda sent: b"EVALSHA" in sent
                    try:
                        verdict = await counter.admit(id, [], [usd(hold, limit), at_once(500)])
                    except Failure:
                        continue
                    if verdict.happened == REFUSED:
                        refused += 1
                        continue
                    admitted += 1
                    await asyncio.sleep(0)
                    what = chance.random()
                    if what < 0.1:
                        counter.void(id)
                    elif what < 0.95:
                        record = records.add(f"j{n % 4}", id, [(usd(0).field, chance.randint(0, hold))])
                        counter.post(f"j{n % 4}", record.seq, id, record.amounts, True)
                    # else the caller dies: its hold lapses

            await asyncio.gather(*(call(n) for n in range(200)))
            records.ship()
            for one in workers:
                await one.flush()
            await catch_up(d, records)
            everything = sum(posting.amounts[0][1] for one in records.of.values() for posting in one)
            assert set((await check(d, records, [usd(1)])).values()) == {0}
            assert await used(d, usd(0)) >= everything
            assert everything <= limit
            assert admitted > 300


async def test_a_cluster_keeps_all_of_it_in_one_slot(tmp_path: Path, clock: Clock) -> None:
    with cluster(tmp_path) as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port},127.0.0.1:{nodes[1].port}"
        records = Records()
        async with state(url, clock) as counter:
            counter.follow(records)
            draws = [Draw("usd:x", f"key-{n}", 5, 100, window()) for n in range(20)]
            await seed(counter, records, draws)
            charges = [Charge(Rate(f"r{n}", 10, 1000.0), "a", 1) for n in range(4)]
            id = next(IDS)
            assert (await counter.admit(id, charges, draws)).used == [5] * 20
            assert (await counter.top_up(id, draws[:3])).happened == ADMITTED
            assert await counter.renew([id]) == 1
            counter.post("j", 1, id, [(draw.field, 4) for draw in draws])
            counter.know({"usd:x": 300_000.0})
            await counter.flush()
            assert [await used(counter, draw) for draw in draws] == [4] * 20


# ---- what is written


async def test_no_key_or_value_has_names_in_it_and_all_of_it_goes(server: Valkey, clock: Clock) -> None:
    prefix = next(PREFIXES)
    async with state(server.url, clock, prefix) as counter:
        counter.know({usd(1).allowance: 1.0})
        draws = [usd(1, key="ada@example.com"), Draw("concurrent:tool", "gh/secret_tool", 1, 5, kept=False)]
        await seed(counter, Records(), draws)
        id = next(IDS)
        await counter.admit(id, [], draws)
        await counter.flush()
        for key in ("d", "h", "k"):
            stored = b" ".join(b" ".join(pair) for pair in server.do("HGETALL", f"{{{prefix}}}:{key}").items())
            assert stored
            assert b"ada" not in stored
            assert b"tool" not in stored
        counter.post("j", 1, id, [(draws[0].field, 1)])
        await counter.flush()
        assert server.do("HLEN", f"{{{prefix}}}:h") == 0
        assert server.do("ZCARD", f"{{{prefix}}}:x") == 0


@asynccontextmanager
async def bounded(server: Valkey, clock: Clock, bound: str, few: str) -> AsyncIterator[RedisCounter]:
    """A Counter that has room for few."""
    scripts = {}
    for name in SCRIPTS:
        text = script("hold.lua", f"{name}.lua").text.decode()
        assert text.count(bound) == 1
        scripts[name] = Script(text.replace(bound, few))
    place = place_of(server.url)
    line = Server(connects(place, 5.0), place.nodes, name="valkey", timeout=5.0, lines=1)
    counter = RedisCounter(line, clock, prefix=next(PREFIXES), node="n", patience=1.0, draws=scripts)
    yield counter
    await counter.close()
    await line.close()


async def test_slots_of_those_who_are_there_have_a_bound_too(server: Valkey, clock: Clock) -> None:
    async with bounded(server, clock, "= 2000000,", "= 24,") as counter:
        draws = [slots(1, key=f"user-{n}") for n in range(22)]  # one field each, and the epoch
        for draw in draws:
            await seed(counter, Records(), [draw])
        admitted: list[Draw] = []
        with pytest.raises(Failure) as failed:
            for draw in draws:
                assert (await counter.admit(next(IDS), [], [draw])).happened == ADMITTED
                admitted.append(draw)
        assert "more allowances than are kept" in failed.value.detail
        assert 3 <= len(admitted) <= 5  # two fields each: what is spent, and held
        for draw in admitted:
            assert (await counter.admit(next(IDS), [], [draw])).used == [2]  # what is listed goes on


@pytest.mark.parametrize(("bound", "few"), [("= 2000000,", "= 9,"), (", 1000000\n", ", 3\n")])
async def test_what_is_kept_has_a_bound(server: Valkey, clock: Clock, bound: str, few: str) -> None:
    """Of fields and of holds. Beyond it nothing new is admitted, and what is there goes on."""
    async with bounded(server, clock, bound, few) as counter:
        await _has_a_bound(counter, is_of_fields="2000000" in bound)


async def _has_a_bound(counter: RedisCounter, *, is_of_fields: bool) -> None:
    draws = [usd(1, key="a"), usd(1, key="b")]
    await seed(counter, Records(), draws)
    ids = [next(IDS) for _ in range(40)]
    with pytest.raises(Failure) as failed:
        for id in ids:
            await counter.admit(id, [], [*draws, Draw("concurrent:x", id, 1, 1, kept=False)])
    assert "more allowances than are kept" in failed.value.detail
    assert (await counter.admit(ids[0], [], draws)).happened == ADMITTED
    assert (await counter.top_up(ids[0], [usd(5, key="a")])).happened == ADMITTED
    if is_of_fields:
        with pytest.raises(Failure):
            await counter.opening(usd(1, key="c"), {})
        assert len(await counter.opening(usd(1, key="a"), {}, again=True)) == 1
        # What is there goes on: with its own limit, by calls that are new.
        more = [next(IDS) for _ in range(30)]
        for id in more:
            assert (await counter.admit(id, [], draws)).happened == ADMITTED
        assert (await counter.admit(next(IDS), [], [usd(2000, key="a")])).happened == REFUSED
        ids += more
    for id in ids:
        counter.void(id)
    await counter.flush()
    assert (await counter.admit(next(IDS), [], draws)).happened == ADMITTED


# ---- what it takes


def slots(amount: int, key: str = "ada", number: int = 24, back: int = 0) -> Draw:
    """Slots of 150 seconds, of which the last one goes on, so that no test comes to its end. back: slots before it."""
    first = window()
    start = first.start - 150 * back
    last = Window(start, start + 150 if back else first.end)
    return Draw("usd:rolls", key, amount, 1000, last, tuple(start - 150 * n for n in range(number, 0, -1)))


def fields(server: Valkey, prefix: str) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = server.do("HGETALL", f"{{{prefix}}}:d")
    return {name: value for name, value in found.items() if name not in (b"#", b"^")}


async def spend(counter: Any, seq: int, draw: Draw) -> None:
    id = next(IDS)
    assert (await counter.admit(id, [], [draw])).happened == ADMITTED
    counter.post("j", seq, id, [(draw.field, draw.amount)])
    await counter.flush()


async def test_a_window_that_rolls_is_few_fields(server: Valkey, clock: Clock) -> None:
    prefix = next(PREFIXES)
    async with state(server.url, clock, prefix) as counter:
        draw = slots(7)
        assert await seed(counter, Records(), [draw]) == 25
        assert len(fields(server, prefix)) == 1
        assert server.do("ZCARD", f"{{{prefix}}}:e") == 1
        await spend(counter, 1, draw)
        assert min(fields(server, prefix).values(), key=len) == b"7"
        assert len(fields(server, prefix)) == 2
        assert (await counter.admit(next(IDS), [], [slots(1)])).used == [8]
        # A record of an earlier slot counts, and is kept as long as the others.
        other = f"usd:rolls|ada|{draw.earlier[3]}"
        assert await counter.posted("late", 0, 1, [Posting(1, "", ((other, 30),))]) == 1
        assert (await counter.admit(next(IDS), [], [slots(1)])).used == [39]
        with server.client() as client:
            assert len({till for _, till in client.zrange(f"{{{prefix}}}:e", 0, -1, withscores=True)}) == 1
        assert await counter.opening(slots(1), {}) == []


async def test_slots_of_0_are_compared_too(server: Valkey, clock: Clock) -> None:
    prefix = next(PREFIXES)
    async with state(server.url, clock, prefix) as counter:
        draw = slots(0)
        await seed(counter, Records(), [draw])
        records = Records()
        records.add("old", "", [(f"usd:rolls|ada|{draw.earlier[3]}", 40), (f"usd:rolls|ada|{draw.earlier[4]}", 5)])
        records.ship()
        await counter.posted("old", 0, 1, [Posting(1, "", ((f"usd:rolls|ada|{draw.earlier[4]}", 5),))])
        found = await check(counter, records, [draw])
        assert len(found) == 25
        assert {field: by for field, by in found.items() if by} == {f"usd:rolls|ada|{draw.earlier[3]}": -40}
        # The stretch, the two slots, and nothing of what was only compared.
        assert len(fields(server, prefix)) == 3
        assert server.do("ZCARD", f"{{{prefix}}}:e") == 3
        assert (await counter.admit(next(IDS), [], [slots(1)])).used == [46]


async def test_slots_that_were_spent_from_are_filled_beside_the_others(server: Valkey, clock: Clock) -> None:
    prefix = next(PREFIXES)
    async with state(server.url, clock, prefix) as counter:
        draw = slots(0)
        records = Records()
        for n, amount in ((0, 1), (10, 20), (23, 300)):
            records.add("old", "", [(f"usd:rolls|ada|{draw.earlier[n]}", amount)])
        records.ship()
        assert await seed(counter, records, [draw]) == 25
        assert (await counter.admit(next(IDS), [], [slots(1)])).used == [322]
        assert await seed(counter, records, [draw]) == 0
        assert set((await check(counter, records, [draw])).values()) == {0}


async def test_another_filling_is_kept_for_its_own_time(server: Valkey, clock: Clock) -> None:
    """What was filled with an earlier window lapses earlier, and must not be taken for 0 then."""
    prefix = next(PREFIXES)
    async with state(server.url, clock, prefix) as counter:
        assert await seed(counter, Records(), [slots(0, number=3, back=2)]) == 4
        assert await seed(counter, Records(), [slots(0, number=3)]) == 2
        assert len(fields(server, prefix)) == 3  # the first stretch, and two slots by themselves
        assert (await counter.admit(next(IDS), [], [slots(5, number=3)])).used == [5]


async def test_a_record_counts_once_where_the_server_has_evicted_what_says_when_it_lapses(
    server: Valkey, clock: Clock
) -> None:
    prefix = next(PREFIXES)
    async with state(server.url, clock, prefix) as counter:
        draw = slots(1)
        assert await seed(counter, Records(), [draw]) == 25
        server.do("DEL", f"{{{prefix}}}:e")
        other = f"usd:rolls|ada|{draw.earlier[3]}"
        for _ in range(2):
            assert await counter.posted("late", 0, 1, [Posting(1, "", ((other, 30),))]) == 1
        assert (await counter.admit(next(IDS), [], [draw])).used == [31]


async def test_everything_has_an_end(server: Valkey, clock: Clock) -> None:
    prefix = next(PREFIXES)
    async with state(server.url, clock, prefix) as counter:
        counter.know({"usd:rolls": 3960.0})
        await seed(counter, Records(), [slots(0), usd(1)])
        assert (await counter.admit(next(IDS), [Charge(Rate("r", 9, 60.0), "ada", 1)], [slots(1), usd(1)])).behind
        counter.post("j", 1, "nobody", [])

        async def are_told() -> bool:
            with server.client() as client:
                keys = list(client.scan_iter(f"{{{prefix}}}:*", count=10_000))
                return len(keys) == 8 and all(client.ttl(key) >= 0 for key in keys)

        await until(are_told)
