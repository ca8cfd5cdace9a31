"""A ledger that can be read and takes nothing: accounts begin with all that was spent, or not at all."""

import sqlite3
from asyncio import sleep
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic, time
from typing import Any

import msgspec
import pytest
from tests.fixtures.postgres import Postgres, postgres

from tollhouse.config.parse import parse
from tollhouse.config.spec import Config
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.gateway.budget_accounts import budgets_of
from tollhouse.gateway.late_journals import LateJournals
from tollhouse.gateway.ledger_history import LedgerHistory
from tollhouse.gateway.spending import Spending
from tollhouse.ledger.base import Entry, Ledger, LedgerError
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.postgres import PostgresLedger
from tollhouse.ledger.postgres_place import place_of
from tollhouse.ledger.records import USAGE, UsageRecord
from tollhouse.ledger.ship import Shipper
from tollhouse.ledger.sqlite import SqliteLedger
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.windows import clock_of
from tollhouse.store.base import ADMITTED, Draw, Posting, Window
from tollhouse.store.memory import MemoryCounter, MemoryState
from tollhouse.store.seeding import BEHIND

pytestmark = pytest.mark.anyio

TEXT = """
ledger: sqlite:tollhouse.db
providers: {one: {kind: openai, api_key: k}}
models: [{name: m, targets: [{provider: one}]}]
budgets: [{per: user, usd: 10, window: year}, {per: 'request.headers["x-p"]', usd: 10, window: year}]
"""
CONFIG: Config = parse(TEXT, "t.yaml", {}).config


def draws() -> list[Draw]:
    """Of ada, by the columns of records, and of a project, by what they drew."""
    one, other = budgets_of(CONFIG)
    start, end, earlier = clock_of("year", "UTC").at(time())
    return [
        Draw(one.allowance, "ada", 1, None, Window(start, end), earlier),
        Draw(other.allowance, "p", 1, None, Window(start, end), earlier),
    ]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as one:
        yield one


class Books:
    """A ledger, and how it is kept from taking anything."""

    def __init__(self, make: Callable[[], Ledger], lock: Callable[[], Any], unlock: Callable[[], Any]) -> None:
        self.make = make
        self.lock = lock
        self.unlock = unlock


@pytest.fixture(params=["a locked SQLite", "a PostgreSQL that is only read"])
def books(request: Any, tmp_path: Path) -> Iterator[Books]:
    if "SQLite" in request.param:
        file = tmp_path / "tollhouse.db"
        first = SqliteLedger(file)
        first.open()
        first.close()
        db = sqlite3.connect(file, isolation_level=None)
        yield Books(
            lambda: SqliteLedger(file, busy=0.05),
            lambda: db.execute("BEGIN IMMEDIATE"),
            lambda: db.execute("ROLLBACK"),
        )
        db.close()
        return
    server = request.getfixturevalue("server")
    database = server.fresh()
    postgres = PostgresLedger(place_of(server.url(database)))
    postgres.open()
    postgres.close()

    def only_read(yes: str) -> None:
        server.do("postgres", f'ALTER DATABASE "{database}" SET default_transaction_read_only = {yes}')
        server.do("postgres", f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")

    yield Books(
        lambda: PostgresLedger(place_of(server.url(database))), lambda: only_read("on"), lambda: only_read("off")
    )


class Worker:
    """A journal that is shipped, a counter in memory, and what joins them."""

    def __init__(self, where: Path, books: Books) -> None:
        self.books = books
        self.journal = Journal(where / "j")
        self.journal.open()
        self.shipper = Shipper(self.journal, books.make(), interval=0.02, slowest=0.05)
        self.clock = Clock()
        self.counter = MemoryCounter(self.clock)
        families = Families(Metrics())
        self.spending = Spending(self.counter, books.make(), families, self.clock, self.shipper, patience=1.0)
        self.spending.serves(CONFIG)

    def record(self, cost: int, admitted_at: float = 0.0) -> None:
        at = int((admitted_at or time()) * 1e6)
        drawn = tuple((draw.field, cost) for draw in draws())
        one = UsageRecord(
            admitted_at=at, ended_at=at, outcome="ok", user="ada", model_asked="m", cost_nano=cost, draws=drawn
        )
        self.counter.post(self.journal.id, self.journal.append(one), "", drawn)

    async def spent(self) -> list[int]:
        asked = draws()
        await self.spending.open(asked)
        verdict = self.counter.allowances().admit("look", (), asked)
        self.counter.void("look")
        assert verdict.happened == ADMITTED
        return [used - 1 for used in verdict.used]

    async def shipped(self) -> None:
        while self.shipper.position < self.journal.seq:
            await sleep(0.01)

    async def stuck(self) -> None:
        while not self.shipper.error:
            await sleep(0.01)

    async def end(self, *, ships: bool = True) -> None:
        await self.spending.close()
        await self.counter.close()
        if ships:
            self.shipper.stop()
        self.journal.close()


@asynccontextmanager
async def worker(where: Path, books: Books, *, ships: bool = True) -> AsyncIterator[Worker]:
    one = Worker(where, books)
    if ships:
        one.shipper.start()
    try:
        yield one
    finally:
        await one.end(ships=ships)


async def test_a_new_account_knows_what_the_ledger_does_not_take(tmp_path: Path, books: Books) -> None:
    async with worker(tmp_path, books) as one:
        for _ in range(3):
            one.record(7)
        await one.shipped()
        books.lock()
        for _ in range(4):
            one.record(100)
        await one.stuck()
        began = monotonic()
        assert await one.spent() == [421, 421]
        assert monotonic() - began < 5.0
        one.record(1000)
        assert await one.spent() == [1421, 1421]
        assert (await one.spending.check()).drifts == []
        books.unlock()
        await one.shipped()
        assert (await one.spending.check()).drifts == []
        assert await one.spent() == [1421, 1421]


async def test_what_a_killed_process_left_counts_before_anybody_has_shipped_it(tmp_path: Path, books: Books) -> None:
    async with worker(tmp_path, books) as first:
        first.record(7)
        await first.shipped()
    async with worker(tmp_path, books, ships=False) as killed:
        for _ in range(5):
            killed.record(100)
    books.lock()
    async with worker(tmp_path, books) as one:
        assert await one.spent() == [507, 507]
        one.record(1000)
        books.unlock()
        await one.shipped()
        while not one.shipper.caught_up.is_set():
            await sleep(0.01)
        assert await one.spent() == [1507, 1507]
        one.spending.start()
        assert (await one.spending.check()).drifts == []


@pytest.mark.timed
async def test_records_of_other_gateways_are_waited_for(tmp_path: Path, books: Books) -> None:
    """What they have counted, and the ledger has not got: 503, and at once for those who come next."""
    other = "f" * 32
    field = draws()[0].field
    async with worker(tmp_path, books) as one:
        await one.counter.opening(Draw("usd:else", "x", 1, None, Window(0, 9)), {})
        await one.counter.posted(other, 0, 2, [Posting(2, "", ((field, 50),))])
        one.record(7)
        with pytest.raises(Failure) as caught:
            await one.spent()
        assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, BEHIND, 5.0)
        assert "not known yet" in caught.value.message
        began = monotonic()
        with pytest.raises(Failure):
            await one.spent()
        assert monotonic() - began < 0.9
        # It comes: by another gateway's shipper, to the ledger that both have.
        theirs = one.books.make()
        theirs.open()
        at = int(time() * 1e6)
        two = UsageRecord(
            admitted_at=at, ended_at=at, outcome="ok", user="ada", model_asked="m", cost_nano=50, draws=((field, 50),)
        )
        theirs.ship(other, [Entry(2, USAGE, msgspec.json.encode(two))])
        theirs.close()
        assert await one.spent() == [57, 7]


async def test_a_journal_that_never_comes_is_given_up_where_the_ledger_takes_ours(tmp_path: Path, books: Books) -> None:
    other = "f" * 32
    async with worker(tmp_path, books) as one:
        now = 100.0
        late = LateJournals(LedgerHistory(None, one.shipper), one.shipper, None, lambda: now)
        assert await late.left_out({other: 5}) == set()
        now += 59.0
        assert await late.left_out({other: 5}) == set()
        now += 2.0
        assert await late.left_out({other: 5}) == {other}
        assert await late.left_out_of_comparing({other: 5}) == {other}
        assert await late.left_out({other: 6}) == set()  # it moves
        books.lock()
        one.record(7)
        await one.stuck()
        now += 100.0
        assert await late.left_out({other: 6}) == set()  # nobody's come
        books.unlock()
        await one.shipped()
        # What is closed never comes either, and is whole.
        theirs = one.books.make()
        theirs.open()
        theirs.ship("e" * 32, [Entry(1, USAGE, b"not a record")])
        theirs.forget("e" * 32)
        theirs.close()
        history = LedgerHistory(one.books.make(), one.shipper)
        closed = LateJournals(history, one.shipper, None)
        assert await closed.left_out({"e" * 32: 0, other: 0}) == {"e" * 32}
        assert await closed.left_out_of_comparing({"e" * 32: 0}) == {"e" * 32}
        await history.close()
        # What was never seen here is not what the ledger is right about.
        await late.left_out_of_comparing({other: 0})
        now += 100.0
        assert await late.left_out_of_comparing({other: 0}) == set()
        assert await late.left_out({other: 0}) == set()
        now += 100.0
        assert await late.left_out({other: 0}) == {other}


async def test_gateways_with_another_ledger_are_not_waited_for(tmp_path: Path, books: Books) -> None:
    (tmp_path / "else").mkdir()
    elsewhere = SqliteLedger(tmp_path / "else" / "tollhouse.db")
    state = MemoryState(Clock())
    async with worker(tmp_path, books) as one, worker(tmp_path / "else", books) as theirs:
        ours, history = LedgerHistory(books.make()), LedgerHistory(elsewhere)
        late = LateJournals(ours, one.shipper, state.values)
        for shipper, whose in ((one.shipper, ours), (theirs.shipper, history)):
            await LateJournals(whose, shipper, state.values).tell()
        assert await late.left_out({theirs.journal.id: 0, "e" * 32: 0}) == {theirs.journal.id}
        assert await late.left_out({one.journal.id: 0}) == set()
        with pytest.raises(Failure) as caught:
            await late.left_out_of_comparing({theirs.journal.id: 0})
        assert "another ledger" in caught.value.detail
        assert await ours.identity() != await history.identity() != ""
        await ours.close()
        await history.close()
    await state.close()


async def test_a_ledger_that_cannot_be_read_and_too_much_to_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad.db"
    bad.write_bytes(b"this is no database" * 100)
    history = LedgerHistory(SqliteLedger(bad), None, tmp_path / "j")
    for ask in (history.positions(), history.positions(deep=True), history.identity()):
        with pytest.raises(LedgerError):
            await ask
    await history.close()
