"""What is posted of a call is what the ledger makes of its record, however the call ends."""

import asyncio
import contextlib
import gc
import tempfile
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.ledger.test_intents import die
from tests.unit.policies.floor import tool
from tests.unit.policies.test_budgets import NOW, PRICES, House, Past, asked

from tollhouse.core.call import Call, ModelCall, ToolCall, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler, compose
from tollhouse.core.http import Ending, finish
from tollhouse.core.reply import Reply
from tollhouse.gateway.assembly import Scopes
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.prices import Origin, Prices
from tollhouse.ledger.records import INTENT, MOST_NANO, USAGE, Outcome, UsageRecord
from tollhouse.ledger.segment import Reader
from tollhouse.ledger.ship import catch_up
from tollhouse.ledger.sqlite import SqliteLedger
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.budgets import BUDGETS, BudgetSpec
from tollhouse.policies.holds import Growing, Held
from tollhouse.policies.meter import Meter
from tollhouse.store.base import Draw, Window

UNITS = ("usd", "tokens", "input_tokens", "output_tokens", "calls")
GONE, BUG = "gone", "bug"
WAYS = [*Reason, GONE, BUG]


@dataclass(frozen=True)
class Way:
    """How a call goes. kind: model, stream, tool or later (a later round of a tool's). stops: where something ends it:
    early (before it is admitted), admitted, asked; or "" where it is answered, and then `how` is how that ends: None
    for well. status: of the answer. used: whether there is usage."""

    kind: str
    stops: str
    how: str | None
    status: int = 200
    used: bool = True
    cached: bool = False


ways = st.builds(
    Way,
    st.sampled_from(("model", "stream", "tool", "later")),
    st.sampled_from(("early", "admitted", "asked", "")),
    st.sampled_from(WAYS),
    used=st.booleans(),
) | st.builds(
    Way,
    st.sampled_from(("model", "stream", "tool", "later")),
    st.just(""),
    st.sampled_from((None, None, GONE)),
    st.sampled_from((200, 200, 400, 404, 429, 500, 503)),
    st.booleans(),
    st.booleans(),
)


class Begun(Past):
    """A ledger that has all records at once; nothing was drawn before the first call is admitted."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    async def positions(self, deep: bool = False) -> Mapping[str, int]:
        return {self.journal.id: self.journal.seq}


class Stopped(House):
    """A chain whose calls end as they are told to, recorded by a meter, in a journal and then a ledger."""

    def __init__(self, directory: Path) -> None:
        super().__init__(far=False)
        self.journal = Journal(directory)
        self.journal.open()
        quotes = self.parts.quotes
        prices = Prices(None, {"p": Origin("openai")}, PRICES)
        self.meter = Meter(Families(Metrics()), self.journal, prices, self.counter, quotes)
        budgets = tuple(BudgetSpec.model_validate({"per": "user", "window": "year", unit: 10_000}) for unit in UNITS)
        scope = type("Scope", (), {"budgets": budgets})()
        self.admission = Scopes(("top", "", scope)).policies((BUDGETS,), self.parts)
        self.past = Begun(self.journal)
        self.way = Way("model", "", None)
        self.handler = self.composed(self.answer)

    def composed(self, answer: Handler[Call, Reply]) -> Handler[Call, Reply]:
        early, late = self.stop("early"), self.stop("admitted")
        return compose((self.meter.handle, early, *self.admission, late, self.meter.intend), answer)

    def stop(self, where: str) -> Any:
        def policy(call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
            return self.stopped(call) if self.way.stops == where else next(call)

        return policy

    async def stopped(self, call: Call) -> Reply:
        how = self.way.how
        if how == GONE:
            raise asyncio.CancelledError
        if how == BUG or how is None:
            raise RuntimeError("bug")
        raise Failure(503, Reason(how), "no")

    async def answer(self, call: Call) -> Reply:
        context, way = call.context, self.way
        if way.cached:
            context.cached = "exact"
            context.usage = Usage()
            return Reply(way.status, [], b"{}")
        context.attempts = 1
        context.upstream_began = monotonic()
        context.provider, context.backend, context.model_answered = "p", "p", "m"
        if way.used and isinstance(call, ModelCall):
            context.usage = Usage(7, 5, 2)
        if way.stops:
            return await self.stopped(call)
        context.upstream_ended = monotonic()
        return Reply(way.status, [], b"{}")

    async def call(self, way: Way) -> None:
        self.way = way
        call = self.asked(way)
        reply: Reply | None = None
        ending = Ending(way.status, Reason.UPSTREAM, 10)
        try:
            reply = await self.handler(call)
        except Failure as failure:
            ending = Ending(failure.status, failure.reason)
        except asyncio.CancelledError:
            ending = Ending(499, Reason.CLIENT_GONE, 0, None, True)
        except RuntimeError:
            ending = Ending(500, Reason.INTERNAL)
        else:
            if way.how == GONE:
                ending.gone = True
            elif way.how is not None:
                ending.failure = Failure(502, Reason.INTERNAL if way.how == BUG else Reason(way.how), "no")
        ends = call.request.ends[::-1]
        call.request.ends = []
        finish(ends if reply is None else reply.ends + ends, ending)

    @staticmethod
    def asked(way: Way) -> Call:
        if way.kind in ("model", "stream"):
            call = asked(user="ada")
            call.context.stream = call.stream = way.kind == "stream"
            call.context.model_asked = "m"
            return call
        other: ToolCall = tool(user="ada")
        other.context.server, other.context.tool, other.context.mcp_method = other.server, other.name, other.method
        other.round = 1 if way.kind == "later" else 0
        return other

    def posted(self, unit: str) -> int:
        allowance = f"{unit}:top/user:year"
        draws = [Draw(allowance, "ada", 1, None, Window(*YEAR))]
        verdict = self.counter.allowances().admit("?", (), draws, 60.0)
        if verdict.happened == "open":
            return 0
        self.counter.void("?")
        return int(verdict.used[0]) - 1

    def look(self, ledger: SqliteLedger, reader: Reader) -> list[int]:
        """Ship what there is, and compare; the kinds of entries."""
        entries = reader.read(10_000)
        ledger.ship(self.journal.id, entries)
        for unit in UNITS:
            spent = ledger.spent(unit, 0, 1 << 52, {"user": "ada"})
            drawn = ledger.drawn(f"{unit}:top/user:year|ada|")
            assert spent == drawn == self.posted(unit), (self.way, unit, spent, drawn, self.posted(unit))
        return [entry.kind for entry in entries]


YEAR = (1_767_225_600, 1_798_761_600)
assert YEAR[0] < NOW < YEAR[1]


def agree(given: list[Way]) -> None:
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        house = Stopped(Path(place))
        stack.callback(house.journal.close)
        ledger = SqliteLedger(":memory:")
        ledger.open()
        stack.callback(ledger.close)
        reader = Reader(house.journal.directory, house.journal.id, 0, live=True)
        stack.callback(reader.close)
        kinds: list[int] = []

        async def all_of_them() -> None:
            for way in given:
                await house.call(way)
                kinds.extend(house.look(ledger, reader))
            await house.holds.close()

        asyncio.run(all_of_them())
        assert ledger.rejected() == 0
        assert len(house.holds) == 0
        assert house.journal.lost() == [], "a living worker leaves nothing open"
        records = ledger.records(0, 1 << 52, (), 1000)
        assert len(records) == len(given)
        assert all(record.outcome != Outcome.LOST for record in records)
        asked = sum(way.kind in ("model", "stream") and way.stops in ("asked", "") for way in given)
        assert kinds.count(INTENT) == asked


@pytest.mark.parametrize("kind", ["model", "stream", "tool", "later"])
@pytest.mark.parametrize("stops", ["early", "admitted", "asked", ""])
def test_each_ending(kind: str, stops: str) -> None:
    hows: list[str | None] = list(WAYS)
    if not stops:
        hows.append(None)
    agree(
        [Way(kind, stops, how, used=used) for how in hows for used in ((False, True) if kind == "model" else (True,))]
    )


@given(st.lists(ways, max_size=8))
@settings(max_examples=25, deadline=None)
def test_any_endings(given: list[Way]) -> None:
    agree(given)


def told(directory: Path, usage: Usage, *, budgets: bool, raw: str = "", most: int | None = 10, out: int = 10) -> Any:
    """The record of a call whose provider tells that."""

    async def one() -> None:
        house = Stopped(directory)

        async def answer(call: Call) -> Reply:
            reply = await house.answer(call)
            call.context.usage, call.context.raw_usage = usage, raw
            return reply

        handler = house.composed(answer) if budgets else compose((house.meter.handle,), answer)
        call = asked(most=most)
        call.context.model_asked = "m"
        reply = await handler(call)
        ends = call.request.ends[::-1]
        finish(reply.ends + ends, Ending(200, Reason.UPSTREAM, out))
        house.journal.seal()
        await house.holds.close()

    asyncio.run(one())
    (name,) = {path.name[:32] for path in directory.glob("*.seg")}
    entries = [entry for entry in Reader(directory, name, 0, live=True).read(10) if entry.kind == USAGE]
    return msgspec.json.decode(entries[0].body, type=UsageRecord)


@pytest.mark.parametrize("budgets", [False, True])
@pytest.mark.parametrize("usage", [Usage(4_000_000_000, 5), Usage(9, 1 << 31), Usage(0, 0, 1 << 32, 1 << 32)])
def test_usage_that_cannot_be(usage: Usage, budgets: bool, tmp_path: Path) -> None:
    """It is charged at what was to be expected, and kept beside that: with budgets or without."""
    record = told(tmp_path, usage, budgets=budgets)
    assert record.estimated
    assert record.output == 10
    assert 0 < record.input < 1000
    assert record.cost_nano == (record.input + record.output) * 1_000_000
    assert msgspec.json.decode(record.raw_usage, type=Usage) == usage


@pytest.mark.parametrize("budgets", [False, True])
def test_usage_that_may_be(budgets: bool, tmp_path: Path) -> None:
    usage = Usage(500, 400, 20)
    record = told(tmp_path, usage, budgets=budgets, most=None)
    assert (record.estimated, record.raw_usage) == (False, "")
    assert (record.input, record.output, record.cache_read) == (500, 400, 20)


def test_usage_that_was_no_number_is_kept(tmp_path: Path) -> None:
    record = told(tmp_path, Usage(20, 10, estimated=True), budgets=False, raw='{"prompt_tokens":-1}')
    assert (record.estimated, record.raw_usage) == (True, '{"prompt_tokens":-1}')


@pytest.mark.parametrize("budgets", [False, True])
def test_who_answers_at_more_length_than_was_allowed_is_charged_for_what_came(budgets: bool, tmp_path: Path) -> None:
    """A server that does not know the caller's bound, and tells the truth."""
    record = told(tmp_path, Usage(20, 50_000), budgets=budgets, out=200_500)
    assert record.estimated
    assert record.output == 40_000
    record = told(tmp_path / "more", Usage(20, 50_000), budgets=budgets, out=9_000_000)
    assert record.output == 50_000


def test_a_price_that_no_ledger_takes(tmp_path: Path) -> None:
    """Prices are the operator's, and may be anything; a record is taken all the same."""
    call = asked(most=None)
    call.context.model_asked = "m"

    class Dear:
        def cost(self, context: Any) -> int:
            context.cost_nano = 1 << 60
            return 1 << 60

    async def one() -> None:
        journal = Journal(tmp_path / "j")
        journal.open()
        meter = Meter(Families(Metrics()), journal, Dear())  # type: ignore[arg-type]

        async def answer(call: Call) -> Reply:
            call.context.usage = Usage(5, 5)
            call.context.saved_nano = 1 << 60
            return Reply(200, [], b"{}")

        await meter.handle(call, answer)
        finish(call.request.ends[::-1], Ending(200, Reason.UPSTREAM, 10))
        die(journal)

    asyncio.run(one())
    ledger = SqliteLedger(":memory:")
    ledger.open()
    assert catch_up(tmp_path / "j", ledger) == 1
    assert ledger.spent("usd", 0, 1 << 52, {}) == MOST_NANO
    assert ledger.rejected() == 0
    ledger.close()


def test_what_is_due_grows_with_the_hold(tmp_path: Path) -> None:
    """An answer without a bound: what its call holds is in the journal before it is used."""

    async def one() -> Journal:
        house = Stopped(tmp_path)
        call = asked(most=None)
        call.context.model_asked = "m"
        call.stream = call.context.stream = True
        await house.handler(call)
        held = call.hold
        assert isinstance(held, Held)
        growing = Growing(house.holds, held, 1024, -1, lambda tokens: [tokens * 1_000_000, tokens, None, tokens, None])
        for _ in range(3):
            growing.tap(b"x" * 4096)
        assert held.likely[1] > 3000
        await house.holds.close()
        return house.journal

    journal = asyncio.run(one())
    (entry,) = journal.lost()
    due = msgspec.json.decode(entry.body, type=UsageRecord)
    assert due.output > 3000
    assert due.cost_nano == due.held_nano == due.output * 1_000_000
    assert dict(due.draws)["tokens:top/user:year|ada|1767225600"] == due.input + due.output
    assert (due.outcome, due.estimated, due.model_asked, due.user) == ("lost", True, "m", "ada")
    journal.close()


def test_what_is_asked_when_its_call_has_ended_is_not_written_down(tmp_path: Path) -> None:
    """Somebody left before his answer was asked for, and others wait for it: his record is there already."""

    async def one() -> Journal:
        house = Stopped(tmp_path)
        waits, lands = asyncio.Event(), asyncio.Event()

        async def flight(call: Call, next: Handler[Call, Reply]) -> Reply:
            waits.set()
            await lands.wait()
            return await next(call)

        handler = compose((house.meter.handle, *house.admission, flight, house.meter.intend), house.answer)
        call = asked()
        call.context.model_asked = "m"
        task = asyncio.ensure_future(handler(call))
        await waits.wait()
        finish(call.request.ends[::-1], Ending(499, Reason.CLIENT_GONE, 0, None, True))
        lands.set()
        await task
        await house.holds.close()
        return house.journal

    journal = asyncio.run(one())
    assert journal.seq == 1
    assert journal.lost() == []
    journal.close()


def test_no_cycles(tmp_path: Path) -> None:
    """Of what is written down before a model is asked, nothing refers to what refers to it."""

    async def one() -> None:
        house = Stopped(tmp_path)

        async def some() -> None:
            for _ in range(3):
                await house.call(Way("model", "", None))
                await house.call(Way("model", "", GONE))

        await some()
        gc.collect()
        gc.disable()
        try:
            await some()
            assert gc.collect() == 0
        finally:
            gc.enable()
        await house.holds.close()
        house.journal.close()

    asyncio.run(one())
