"""Budgets: held before, posted after, nested, refused in words; whatever the store is."""

import gc
import json
from asyncio import sleep
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.policies.floor import Time, answer, counted, layer, model, request, tool, who
from tests.unit.policies.floor import parts as near_parts

from tollhouse.core.call import Call, ModelCall, ToolCall, Usage
from tollhouse.core.errors import ConfigError, Failure, Reason
from tollhouse.core.handler import Handler, compose
from tollhouse.core.http import Ending, finish
from tollhouse.core.reply import Reply
from tollhouse.gateway.assembly import Scopes
from tollhouse.ledger.prices import Origin, Prices, PriceSpec
from tollhouse.policies.base import Layer, Parts
from tollhouse.policies.budgets import BUDGETS, BudgetSpec, allowance_of
from tollhouse.policies.holds import Holds
from tollhouse.policies.limits import LIMITS, LimitSpec
from tollhouse.policies.quotes import Asked, Changes, Quotes
from tollhouse.store.base import Charge, Counter, Draw, Posting, Rate, Verdict, Window, unavailable
from tollhouse.store.memory import MemoryCounter
from tollhouse.store.seeding import seed
from tollhouse.wire.llm import CHAT

pytestmark = pytest.mark.anyio

NOW = 1_790_000_000.0
PRICES = [
    PriceSpec.model_validate({"model": name, "input": usd, "output": usd}) for name, usd in (("m", 1000), ("free", 0))
]


class Far:
    """A counter as on the network: nothing is here, and every question suspends once."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self.down = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._counter, name)

    def buckets(self, rate: Rate) -> None:
        return None

    def allowances(self) -> None:
        return None

    async def admit(
        self, id: str, charges: Sequence[Charge], draws: Sequence[Draw] = (), lives: float = 60.0
    ) -> Verdict:
        await sleep(0)
        if self.down:
            raise unavailable("nobody there", sent=True)
        return await self._counter.admit(id, charges, draws, lives)


class Past:
    """A History: what each field had before."""

    def __init__(self) -> None:
        self.had: dict[str, int] = {}
        self.asked: list[str] = []
        self.seq = 0

    is_stuck = False

    async def positions(self, deep: bool = False) -> Mapping[str, int]:
        return {"j": self.seq}

    async def posts(self, journal: str, after: int, most: int) -> Sequence[Posting]:
        return []

    async def spent(self, asked: Sequence[tuple[Draw, Window, Mapping[str, int]]]) -> Sequence[int]:
        sums = []
        for draw, window, _ in asked:
            field = f"{draw.allowance}|{draw.key}"
            self.asked.append(field)
            sums.append(self.had.get(field, 0) if window == draw.window else 0)
        return sums


class House:
    """Parts with a counter, holds, and prices; and what records calls."""

    def __init__(self, *, far: bool) -> None:
        self.time = Time()
        self.unix = NOW
        memory = MemoryCounter(self.time.clock, wall=lambda: self.unix)
        self.counter: Any = Far(memory) if far else memory
        self.past = Past()
        self.holds = Holds(self.counter, self.time.clock)
        targets = {name: ([Asked("p", name)], 1, Changes()) for name in ("m", "free", "unknown")}
        self.inside: dict[str, Handler[ModelCall, Reply]] = {}
        quotes = Quotes(Prices(None, {"p": Origin("openai")}, PRICES), targets.get)
        made = near_parts(self.time, entrance="llm", counter=self.counter, holds=self.holds, quotes=quotes)
        self.parts: Parts = replace(made, opens=self.open, inside=self.inside.get)

    async def open(self, draws: Sequence[Draw]) -> None:
        await seed(self.counter, self.past, draws)

    def chain(self, *specs: dict[str, Any], limits: Sequence[dict[str, Any]] = (), level: Any = "top") -> Any:
        scope = type("Scope", (), {})()
        scope.budgets = tuple(BudgetSpec.model_validate({"window": "1d"} | spec) for spec in specs) or None
        scope.limits = tuple(LimitSpec.model_validate(spec) for spec in limits) or None
        policies = Scopes((level, "" if level == "top" else "x", scope)).policies((BUDGETS, LIMITS), self.parts)
        return compose(policies, answer)

    def know(self, *specs: dict[str, Any]) -> None:
        """As a gateway does when a configuration serves."""
        made = [BudgetSpec.model_validate({"window": "1d"} | spec) for spec in specs]
        self.counter.know({allowance_of(spec, "top"): 1e6 for spec in made})

    async def status(self, handler: Handler[Call, Reply], call: Call, usage: Usage | None = None, cost: int = 0) -> int:
        try:
            reply = await handler(call)
        except Failure as failure:
            self.end(None, call, None, None, status=failure.status)
            return failure.status
        self.end(reply, call, usage, cost)
        return 200

    def end(self, reply: Reply | None, call: Call, usage: Usage | None, cost: int | None, status: int = 200) -> Any:
        """What the meter and the server do."""
        call.context.usage = usage
        drawn: Any = ()
        self.past.seq += 1
        if call.hold is not None:
            drawn = call.hold.draws(usage, cost, status < 400)
            call.hold.post("j", self.past.seq)
        ends = call.request.ends if reply is None else reply.ends + call.request.ends
        call.request.ends = []
        finish(ends[::-1], Ending(status, "Upstream"))
        return drawn


@pytest.fixture(params=["near", "far"])
def house(request: pytest.FixtureRequest) -> House:
    return House(far=request.param == "far")


def asked(name: str = "m", most: int | None = 10, text: str = "", user: str = "ada", **more: Any) -> ModelCall:
    made = request(principal=who(id=user, **more))
    body = json.dumps({"messages": text} | ({} if most is None else {"max_tokens": most})).encode()
    fields = CHAT.decode(body, model=name, stream=False).fields
    values: dict[str, Any] = {"operation": "chat", "label": name, "stream": False}
    return ModelCall(made, made.context, dialect=CHAT, model=name, fields=fields, body=body, **values)


async def test_calls_are_counted_and_refused(house: House) -> None:
    handler = house.chain({"per": "user", "calls": 2, "name": "two"})
    assert [await house.status(handler, asked()) for _ in range(3)] == [200, 200, 429]
    assert await house.status(handler, asked(user="bob")) == 200
    call = asked()
    with pytest.raises(Failure) as caught:
        await handler(call)
    failure = caught.value
    assert call.context.limit == "budget two"
    assert (failure.status, failure.reason, failure.code) == (429, Reason.BUDGET, "budget_exceeded")
    end = int(NOW // 86400 + 1) * 86400
    assert dict(failure.headers)[b"x-tollhouse-budget"] == b'"two";unit=calls;left=0;of=2;until=%d' % end
    assert dict(failure.headers)[b"retry-after"] == b"%d" % (end - NOW)
    assert dict(failure.headers)[b"x-should-retry"] == b"false"
    assert "`two` (2 calls in a day) is used up" in failure.message
    assert "ada" not in failure.message
    assert counted(house.parts, "budget_checks_total") == {("two", "admitted"): 3, ("two", "refused"): 2}
    house.unix += 86400
    assert await house.status(handler, asked()) == 200  # another day


async def test_money_is_held_at_its_bound_and_posted_at_its_cost(house: House) -> None:
    handler = house.chain({"per": "org", "usd": 1})
    call = asked(org="o", most=100)
    reply = await handler(call)
    held = call.hold.nano if call.hold is not None else 0
    assert 100_000_000 < held < 300_000_000  # 100 tokens of answer, and the bytes of the body
    assert len(house.holds) == 1
    others = [asked(org="o", most=100) for _ in range(12)]
    statuses = []
    for other in others:
        try:
            await handler(other)
            statuses.append(200)
        except Failure as failure:
            statuses.append(failure.status)
    room = statuses.count(200)
    assert room == (1_000_000_000 - held) // held
    drawn = house.end(reply, call, Usage(9, 6), 15_000_000)
    day = int(NOW // 86400) * 86400
    assert drawn == ((f"usd:top/org:day|o|{day}", 15_000_000),)
    for other in others:
        if other.hold is not None:
            other.hold.release()
    assert len(house.holds) == 0
    before = room + 1
    # What was held is free again, but for what it came to.
    calls = [asked(org="o", most=100) for _ in range(before)]
    assert [await house.status(handler, one) for one in calls] == [200] * before
    assert await used(house, handler) == 15_000_000


async def used(house: House, handler: Handler[Call, Reply]) -> int:
    """What the budget has spent, by what a refusal says."""
    with pytest.raises(Failure) as caught:
        await handler(asked(org="o", most=900_000))
    left = dict(caught.value.headers)[b"x-tollhouse-budget"].split(b"left=")[1].split(b";")[0]
    return 1_000_000_000 - round(float(left) * 1e9)


async def test_all_must_have_room_and_a_refusal_draws_on_none(house: House) -> None:
    handler = house.chain(
        {"per": "org", "calls": 3}, {"per": "team", "calls": 9}, {"per": "user", "calls": 1},
        limits=({"per": "user", "requests": 2, "window": "1h"},),
    )  # fmt: skip
    more: dict[str, Any] = {"org": "o", "team": "t"}
    assert [await house.status(handler, asked(**more)) for _ in range(3)] == [200, 429, 429]
    assert [await house.status(handler, asked(user=user, **more)) for user in ("b", "c", "d")] == [200, 200, 429]


async def test_what_was_spent_before_is_asked_of_the_ledger_once(house: House) -> None:
    house.past.had = {"calls:top/user:day|ada": 3}
    handler = house.chain({"per": "user", "calls": 4})
    assert [await house.status(handler, asked()) for _ in range(2)] == [200, 429]
    assert await house.status(handler, asked(user="bob")) == 200
    assert sorted(set(house.past.asked)) == ["calls:top/user:day|ada", "calls:top/user:day|bob"]
    assert len(house.past.asked) == 2
    # Of a budget that is known since before its window began nobody need be asked.
    house.know({"per": "user", "calls": 4})
    house.unix += 86400
    assert await house.status(handler, asked(user="eve")) == 200
    assert len(house.past.asked) == 2


async def test_a_ledger_that_cannot_be_read(house: House) -> None:
    async def fails(draws: Sequence[Draw]) -> None:
        raise unavailable("locked")

    house.parts = replace(house.parts, opens=fails)
    assert await house.status(house.chain({"per": "user", "calls": 4}), asked()) == 503
    lenient = house.chain({"per": "user", "calls": 4, "name": "l", "on_store_failure": "allow"})
    assert await house.status(lenient, asked()) == 200
    assert counted(house.parts, "budget_checks_total") == {("l", "unasked"): 1}


async def test_a_store_that_is_gone() -> None:
    house = House(far=True)
    strict = house.chain({"per": "user", "calls": 4})
    lenient = house.chain({"per": "user", "calls": 4, "on_store_failure": "allow"})
    house.counter.down = True
    assert await house.status(strict, asked()) == 503
    assert await house.status(lenient, asked()) == 200


async def test_a_store_that_is_gone_and_a_grace() -> None:
    """So much as this worker may let pass by itself, in all chains together; what it came to is counted then."""
    house = House(far=True)
    spec = {"per": "user", "calls": 20, "on_store_failure": "local", "grace": 0.2}
    tokens = {"per": "org", "tokens": 100_000, "on_store_failure": "local", "grace": 1.0}
    first, second = house.chain(spec, tokens), house.chain(spec)
    for chain in (first, second):  # which hears of the counter's clock
        assert await house.status(chain, asked()) == 200
    house.counter.down = True
    assert [await house.status(first, asked()) for _ in range(2)] == [200, 200]
    assert [await house.status(second, asked()) for _ in range(3)] == [200, 200, 503]
    assert await house.status(second, asked(user="bob")) == 200  # another account
    assert await house.status(first, asked(most=100_000, user="eve")) == 503  # more than the other's grace has
    assert [await house.status(second, asked(user="eve")) for _ in range(5)] == [200, 200, 200, 200, 503]
    house.counter.down = False
    day = int(NOW // 86400) * 86400
    name = allowance_of(BudgetSpec.model_validate({"window": "1d"} | spec), "top")
    draw = Draw(name, "ada", 1, None, Window(day, day + 86400))
    verdict = await house.counter.admit("look", [], [draw])
    assert verdict.used == [2 + 4 + 1]
    house.counter.void("look")
    house.counter.down = True
    assert await house.status(second, asked()) == 503  # it has not answered for it yet
    house.counter.down = False
    assert await house.status(second, asked()) == 200
    house.counter.down = True
    assert [await house.status(first, asked()) for _ in range(5)] == [200, 200, 200, 200, 503]


async def test_clocks_that_differ_agree_on_the_window(house: House) -> None:
    day = int(NOW // 86400 + 1) * 86400
    house.unix = day - 1.0  # the store's; ours is the machine's, which is another day altogether
    handler = house.chain({"per": "user", "calls": 1})
    assert [await house.status(handler, asked()) for _ in range(2)] == [200, 429]
    house.unix = day + 1.0
    assert [await house.status(handler, asked()) for _ in range(2)] == [200, 429]
    house.unix = day - 1.0  # backwards
    assert await house.status(handler, asked()) == 429


async def test_warnings(house: House) -> None:
    handler = house.chain(
        {"per": "user", "calls": 10, "soft": 0.8, "name": "hard"},
        {"per": "user", "calls": 1, "on_exceed": "warn", "name": "soft"},
    )
    told, logged = [], []
    for _ in range(10):
        call = asked()
        reply = await handler(call)
        logged.append(call.context.limit)
        told.append([value.partition(b";")[0] for name, value in reply.headers if name == b"x-tollhouse-budget"])
        house.end(reply, call, Usage(1, 1), 1)
    assert told == [[], *[[b'"soft"']] * 7, *[[b'"hard"', b'"soft"']] * 2]
    assert logged == ["", *["budget soft"] * 7, *["budget hard"] * 2]
    assert await house.status(handler, asked()) == 429


async def test_what_a_call_has_no_part_in(house: House) -> None:
    handler = house.chain({"per": "tag", "calls": 1}, {"per": "tool", "calls": 1}, {"per": "model", "tokens": 1000})
    one = tool("search")
    assert [await house.status(handler, tool("search")) for _ in range(2)] == [200, 429]
    assert await house.status(handler, tool("other")) == 200
    assert await house.status(handler, tool("", method="tools/list")) == 200
    assert await house.status(handler, model("")) == 200
    assert isinstance(one, ToolCall)
    tagged = asked()
    tagged.context.tags = ("a", "b")
    assert await house.status(handler, tagged, Usage(1, 1)) == 200
    again = asked()
    again.context.tags = ("b",)
    assert await house.status(handler, again) == 429


async def test_made_up_keys_have_a_bound(house: House) -> None:
    handler = house.chain({"per": "tag", "calls": 1})

    def tagged(*tags: str) -> ModelCall:
        call = asked()
        call.context.tags = tags
        return call

    for n in range(625):
        assert await house.status(handler, tagged(*(f"{n}-{m}" for m in range(16)))) == 200
    assert await house.status(handler, tagged("new", "newer")) == 200
    assert await house.status(handler, tagged("newest")) == 429  # one account for all that come later
    assert await house.status(handler, tagged("3-3")) == 429
    house.unix += 86400
    assert await house.status(handler, tagged("newest")) == 200


async def test_a_call_that_outlives_its_request_counts(house: House) -> None:
    handler = house.chain({"per": "user", "calls": 2})
    call = asked()
    await handler(call)
    ends, call.request.ends = call.request.ends, []
    finish(ends, Ending(200, "Upstream"))  # the request is over, and the call goes on
    assert len(house.holds) == 0
    assert house.end(None, call, None, None)[0][1] == 1
    assert [await house.status(handler, asked()) for _ in range(2)] == [200, 429]


async def test_tokens_of_either_way(house: House) -> None:
    handler = house.chain({"per": "user", "output_tokens": 100}, {"per": "all", "input_tokens": 100_000})
    assert await house.status(handler, asked(most=60), Usage(9, 30)) == 200
    assert await house.status(handler, asked(most=71)) == 429
    call = asked(most=70)
    reply = await handler(call)
    assert [amount for _, amount in house.end(reply, call, Usage(9, 30, cache_read=5), None)] == [30, 14]


async def test_what_costs_nothing_and_what_nobody_knows_the_price_of(house: House) -> None:
    handler = house.chain({"per": "user", "usd": 0.5})
    assert [await house.status(handler, asked("free", most=10**6)) for _ in range(3)] == [200] * 3
    with pytest.raises(Failure, match="price of the model 'unknown' is not known") as caught:
        await handler(asked("unknown"))
    assert (caught.value.status, caught.value.code) == (429, "price_unknown")
    assert (b"x-should-retry", b"false") in caught.value.headers
    lenient = house.chain({"per": "user", "usd": 0.5, "unpriced": "allow", "name": "l"})
    assert await house.status(lenient, asked("unknown"), Usage(9, 9)) == 200


@pytest.mark.parametrize("reserve, more, held", [("estimate", {}, 1024), ("max", {"max_output": 500}, 500)])
async def test_an_answer_without_a_bound(house: House, reserve: str, more: dict[str, int], held: int) -> None:
    handler = house.chain({"per": "user", "output_tokens": 10_000, "reserve": reserve, **more})
    await handler(asked(most=None))
    with pytest.raises(Failure) as caught:
        await handler(asked(most=10_000))
    assert b"left=%d;" % (10_000 - held) in dict(caught.value.headers)[b"x-tollhouse-budget"]


async def test_an_answer_is_shortened_to_what_is_left(house: House) -> None:
    handler = house.chain({"per": "user", "output_tokens": 100, "reserve": "cap"})
    call = asked(most=None)
    reply = await handler(call)
    assert bytes(call.fields["max_completion_tokens"]) == b"99"
    house.end(reply, call, Usage(1, 50), None)
    call = asked(most=80)
    house.end(await handler(call), call, Usage(1, 40), None)
    assert bytes(call.fields["max_tokens"]) == b"49"
    assert await house.status(handler, asked(most=80)) == 429  # less is none


async def test_another_model_once(house: House) -> None:
    handler = house.chain({"per": "user", "usd": 0.000001, "on_exceed": "fallback", "fallback": "free"})
    seen = []

    def inside(call: ModelCall) -> Awaitable[Reply]:
        seen.append((call.model, call.label, call.context.model_asked, call.context.fallback))
        return answer(call)

    house.inside["free"] = inside
    call = asked()
    reply = await handler(call)
    assert seen == [("free", "free", "free", "free")]
    assert (b"x-tollhouse-fallback", b"free") in reply.headers
    house.inside["free"] = handler  # the same budget again, which what is free does not draw on
    assert await house.status(handler, asked()) == 200
    house.inside["free"] = house.chain({"per": "all", "calls": 1, "on_exceed": "fallback", "fallback": "free"})
    assert [await house.status(handler, asked()) for _ in range(2)] == [200, 429]
    del house.inside["free"]
    assert await house.status(handler, asked()) == 429


async def test_usage_that_cannot_be_is_not_believed(house: House) -> None:
    handler = house.chain({"per": "user", "tokens": 10_000})
    call = asked(most=10)
    await handler(call)
    assert call.hold is not None
    fine, absurd = Usage(300, 10), Usage(4_000_000_000, 5)
    assert call.hold.believed(fine) is fine
    believed = call.hold.believed(absurd)
    assert believed.estimated
    assert believed.output == 10
    assert believed.total < 1000
    open_ended = asked(most=None)  # a bound of its own it has none, but no answer is that long
    await handler(open_ended)
    assert open_ended.hold is not None
    long = Usage(300, 300_000)
    assert open_ended.hold.believed(long) is long
    believed = open_ended.hold.believed(Usage(4_000_000_000, 4_000_000_000))
    assert (believed.estimated, believed.output) == (True, 1024)


async def test_limits_do_not_believe_what_budgets_do_not(house: House) -> None:
    limits = [{"per": "user", "tokens": 100_000, "window": "1m"}]
    handler = house.chain({"per": "user", "tokens": 10**12}, limits=limits)
    call = asked()
    assert await house.status(handler, call, Usage(900_000_000, 600_000_000)) == 200
    assert call.context.usage is not None
    assert call.context.usage.estimated
    assert await house.status(handler, asked()) == 200


async def test_no_cycles(house: House) -> None:
    handler = house.chain(
        {"per": "user", "usd": 5}, {"per": "org", "calls": 50, "soft": 0.01},
        limits=({"per": "user", "tokens": 100_000, "window": "1h"}, {"per": "user", "concurrent": 4}),
    )  # fmt: skip

    async def once() -> None:
        assert await house.status(handler, asked(most=None), Usage(1, 1), 5) == 200
        try:
            await handler(asked(most=900_000))
        except Failure as failure:
            failure.__traceback__ = None

    await once()
    gc.collect()
    await once()
    assert gc.collect() == 0


async def test_calls_at_once(house: House) -> None:
    handler = house.chain(limits=({"per": "user", "concurrent": 2, "name": "two", "headers": "draft"},))
    first, second = asked(), asked()
    reply = await handler(first)
    assert dict(reply.headers)[b"ratelimit"] == b'"two";r=1;t=0'
    await handler(second)
    with pytest.raises(Failure) as caught:
        await handler(asked())
    assert (caught.value.status, caught.value.reason) == (429, Reason.RATE_LIMIT)
    assert caught.value.retry_after == 1.0
    assert "`two` (2 at once) is reached" in caught.value.message
    assert await house.status(handler, asked(user="bob")) == 200
    assert house.end(reply, first, Usage(1, 1), 5) == ()  # never in a record
    assert await house.status(handler, asked()) == 200
    assert await house.status(handler, tool("", method="tools/list")) == 200  # is no call


async def test_money_by_the_hour(house: House) -> None:
    handler = house.chain(limits=({"per": "user", "usd": 1, "window": "1h"},))
    assert await house.status(handler, asked(most=10)) == 200
    with pytest.raises(Failure, match=r"needs about .* USD, and the limit `user-usd` \(1 USD in 1 h\)"):
        await handler(asked(most=5000))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"per": "user"}, "exactly one of"),
    ({"per": "user", "usd": 1, "calls": 1}, "exactly one of"),
    ({"per": "usr", "calls": 1}, "neither one of org, team, user"),
    ({"per": "ip", "calls": 1}, "neither one of"),
    ({"per": "user", "usd": 0}, "greater than or equal"),
    ({"per": "user", "usd": "NaN"}, "finite number"),
    ({"per": "user", "calls": 1, "window": "3h"}, "not a window"),
    ({"per": "user", "calls": 1, "window": {"rolling": "10s"}}, "not a duration|greater than or equal"),
    ({"per": "user", "calls": 1, "zone": "Nowhere"}, "no time zone"),
    ({"per": "user", "calls": 1, "window": {"rolling": 3600.0}, "zone": "Europe/Berlin"}, "no effect on a window that"),
    ({"per": "user", "calls": 1, "on_exceed": "fallback"}, "both, or neither"),
    ({"per": "user", "calls": 1, "fallback": "m"}, "both, or neither"),
    ({"per": "user", "calls": 1, "unpriced": "deny"}, "with `usd` alone"),
    ({"per": "user", "calls": 1, "reserve": "max"}, "no effect with `calls`"),
    ({"per": "user", "usd": 1, "on_exceed": "warn", "reserve": "cap"}, "no effect with `on_exceed: warn`"),
    ({"per": "user", "usd": 1, "max_output": 5}, "with `reserve: max` or `cap`"),
    ({"per": "user", "calls": 1, "soft": 1.5}, "less than 1"),
    ({"per": "user", "calls": 1, "grace": 0.1}, "both, or neither"),
    ({"per": "user", "calls": 1, "on_store_failure": "local"}, "both, or neither"),
    ({"per": "user", "calls": 1, "on_exceed": "warn", "on_store_failure": "local", "grace": 0.1}, "needs no `grace`"),
    ({"per": "user", "calls": 1, "on_store_failure": "local", "grace": 1.5}, "less than or equal to 1"),
]


@pytest.mark.parametrize("wrong, said", WRONG)
def test_bad_budgets_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BudgetSpec.model_validate({"window": "1d"} | wrong)


@pytest.mark.parametrize(
    "level, spec, said",
    [
        ("model", {"per": "tool", "calls": 1}, "can have no effect on a model"),
        ("server", {"per": "user", "usd": 1}, "only models cost"),
        ("tool", {"per": "model", "calls": 1}, "can have no effect on a tool"),
        ("tool", {"per": "user", "calls": 1, "on_exceed": "fallback", "fallback": "m"}, "it names a model"),
    ],
)
def test_where_budgets_can_have_no_effect(level: Any, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        House(far=False).chain(spec, level=level)


def test_one_call_draws_on_so_many_accounts() -> None:
    tags = [{"per": "tag", "calls": 1, "name": f"t{n}"} for n in range(7)]
    House(far=False).chain(*tags[:6])
    with pytest.raises(ConfigError, match="more than 100 accounts"):
        House(far=False).chain(*tags)


def test_two_of_the_same_need_names() -> None:
    with pytest.raises(ConfigError, match="give one of them a `name`"):
        House(far=False).chain({"per": "user", "calls": 1}, {"per": "user", "calls": 5})
    made: Layer = layer(None)
    assert made.where == "top"


def test_the_account_is_not_the_amount() -> None:
    def name(**spec: Any) -> str:
        return allowance_of(BudgetSpec.model_validate({"per": "user", "window": "1d"} | spec), "model a|b")

    assert name(calls=1) == name(calls=2) == "calls:model a!b/user:day"
    assert name(calls=1, zone="Europe/Berlin") != name(calls=1)
    assert name(calls=1, window={"rolling": 86400.0}) == "calls:model a!b/user:rolling 86400s"
