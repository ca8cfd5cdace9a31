"""Limits: whose bucket, all or nothing, tokens reserved and settled, and what a refusal says."""

import gc
from asyncio import sleep
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from msgspec import Raw
from tests.unit.policies.floor import Time, answer, counted, end, layer, model, request, respond, tool, who
from tests.unit.policies.floor import parts as near_parts

from tollhouse.core.call import Call, Usage
from tollhouse.core.errors import ConfigError, Failure, Reason
from tollhouse.core.handler import Handler, compose
from tollhouse.core.http import Ending, finish
from tollhouse.core.reply import Reply
from tollhouse.ledger.prices import Origin, Prices, PriceSpec
from tollhouse.policies.base import Layer, Parts
from tollhouse.policies.limits import LIMITS, LIMITS_ROUTE, LimitSpec
from tollhouse.policies.quotes import NO_CHANGES, Asked, Quotes
from tollhouse.store.base import Charge, Counter, Draw, Rate, Verdict, unavailable
from tollhouse.wire.llm import CHAT

pytestmark = pytest.mark.anyio


class Far:
    """A counter as on the network: it shows no Buckets, and every admission suspends once."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self.settle = counter.settle

        self.void = counter.void

    def buckets(self, rate: Rate) -> None:
        return None

    def allowances(self) -> None:
        return None

    async def admit(
        self, id: str, charges: Sequence[Charge], draws: Sequence[Draw] = (), lives: float = 60.0
    ) -> Verdict:
        await sleep(0)
        return await self._counter.admit(id, charges, draws, lives)


Make = Callable[..., Parts]


@pytest.fixture(params=["near", "far"])
def parts(request: pytest.FixtureRequest) -> Make:
    """The tests run with a counter in this process, and with one that has to be waited for."""

    def far(*args: Any, **more: Any) -> Parts:
        made = near_parts(*args, **more)
        return replace(made, counter=cast(Any, Far(made.counter)))

    return near_parts if request.param == "near" else far


def limits(*specs: dict[str, Any], level: Any = "top", name: str = "") -> Layer:
    return layer(tuple(LimitSpec.model_validate({"window": "1m"} | spec) for spec in specs), level, name)


def chain(p: Parts, *layers: Layer, backend: Handler[Call, Reply] = answer) -> Handler[Call, Reply]:
    party = LIMITS.make(layers, p)
    assert party is not None
    assert LIMITS.joins is not None
    return compose((LIMITS.joins((party,), p),), backend)


async def outcome(handler: Handler[Call, Reply], call: Call) -> int:
    try:
        reply = await handler(call)
    except Failure as failure:
        end(None, call, status=failure.status)
        return failure.status
    end(reply, call, Usage(1, 1))
    return 200


async def test_requests_per_user(parts: Make) -> None:
    time = Time()
    handler = chain(parts(time, entrance="llm"), limits({"per": "user", "requests": 2}))
    assert [await outcome(handler, model(principal=who(id="ada"))) for _ in range(3)] == [200, 200, 429]
    refused = tool(principal=who(id="ada"))
    assert await outcome(handler, refused) == 429  # one bucket for models and tools
    assert refused.context.limit == "limit user-requests"
    assert await outcome(handler, model(principal=who(id="bob"))) == 200
    time.advance(30.1)
    assert [await outcome(handler, model(principal=who(id="ada"))) for _ in range(2)] == [200, 429]


ONE = who("key", "ci", key="ci", user="u", org="o", agent="a")
KEYS: list[tuple[str, Any, Any, bool]] = [
    ("user", model(principal=ONE), model(principal=who(user="u")), True),
    ("user", model(principal=ONE), model(principal=who(user="v")), False),
    ("user", model(principal=who(id="x", user="")), model(principal=who(id="y", user="")), False),
    ("user", model(principal=who(id="x", user="")), model(principal=who(user="jwt:x")), False),
    ("key", model(principal=ONE), model(principal=who("key", "x", key="ci")), True),
    ("key", model(principal=ONE), model(principal=who("key", "x", key="other")), False),
    ("key", model(principal=who(id="x")), model(principal=who(id="y")), False),
    ("org", model(principal=ONE), model(principal=who(org="o")), True),
    ("org", model(principal=ONE), model(principal=who(org="p")), False),
    ("agent", model(principal=ONE), model(principal=who(agent="a")), True),
    ("agent", model(principal=ONE), model(principal=who(agent="b")), False),
    ("model", model("m"), model("m", who(id="x")), True),
    ("model", model("m"), model("n"), False),
    ("model", model("p/x", label="p/*"), model("p/y", label="p/*"), True),
    ("tool", tool("t"), tool("t", who(id="x")), True),
    ("tool", tool("t"), tool("t", server="other"), False),
    ("server", tool("t"), tool("u"), True),
    ("server", tool("t"), tool("t", server="other"), False),
    ("ip", model(), tool(), True),
    ("principal.org", model(principal=ONE), model(principal=who(org="o")), True),
    ("principal.org", model(principal=ONE), model(principal=who(org="p")), False),
    ('request.headers["x-team"]', model(), model(), True),  # without the header: one bucket for all of them
    ("mcp.arguments.customer", tool(customer=1), tool(customer=1), True),
    ("mcp.arguments.customer", tool(customer=1), tool(customer=2), False),
]


@pytest.mark.parametrize("per, one, other, same", KEYS)
async def test_whose_bucket(parts: Make, per: str, one: Any, other: Any, same: bool) -> None:
    handler = chain(parts(Time(), entrance="mcp"), limits({"per": per, "requests": 1}))
    assert await outcome(handler, one) == 200
    assert await outcome(handler, other) == (429 if same else 200)


@pytest.mark.parametrize(
    "spec, call",
    [
        ({"per": "model", "requests": 1}, tool()),
        ({"per": "tool", "requests": 1}, model()),
        ({"per": "tool", "requests": 1}, tool("", method="tools/list")),
        ({"per": "user", "tokens": 1}, tool()),
        ({"per": "user", "calls": 1}, tool("", method="tools/list")),
        ({"per": "mcp.tool.name", "requests": 1}, model()),
        ({"per": "llm.model", "requests": 1}, tool()),
        # What reaches no model and no server: neither a call nor anybody's bucket.
        ({"per": "user", "calls": 1}, model("")),
        ({"per": "user", "tokens": 1}, model("")),
        ({"per": "model", "requests": 1}, model("")),
        ({"per": "llm.model", "requests": 1}, model("")),
        ({"per": "user", "calls": 1}, tool("guess", server="")),
        ({"per": "tool", "requests": 1}, tool("guess", server="")),
        ({"per": "server", "requests": 1}, tool("guess", server="")),
    ],
)
async def test_what_a_limit_does_not_concern(parts: Make, spec: dict[str, Any], call: Any) -> None:
    handler = chain(parts(Time(), entrance="mcp"), limits(spec))
    assert [await outcome(handler, call) for _ in range(3)] == [200] * 3


async def test_calls_are_of_models_and_tools(parts: Make) -> None:
    handler = chain(parts(Time(), entrance="mcp"), limits({"per": "user", "calls": 1}))
    assert await outcome(handler, tool()) == 200
    assert await outcome(handler, model()) == 429


async def test_limits_of_scopes_add_up_and_a_refusal_takes_from_none(parts: Make) -> None:
    p = parts(Time(), entrance="llm")
    top = limits({"per": "user", "requests": 3})
    one = chain(p, top, limits({"per": "user", "requests": 1}, level="model", name="one"))
    other = chain(p, top)
    assert [await outcome(one, model()) for _ in range(5)] == [200, 429, 429, 429, 429]
    assert [await outcome(other, model()) for _ in range(3)] == [200, 200, 429]  # the top's bucket is one


async def test_tokens_are_reserved_and_settled(parts: Make) -> None:
    p = parts(Time(), entrance="llm")
    handler = chain(p, limits({"per": "user", "tokens": 100}))
    call = model(estimate=60)
    reply = await handler(call)
    assert await outcome(handler, model(estimate=60)) == 429  # under way counts
    end(reply, call, Usage(20, 10, cache_read=5, cache_write=5))
    call = model(estimate=60)
    reply = await handler(call)
    end(reply, call, Usage(100, 60))
    with pytest.raises(Failure) as caught:
        await handler(model(estimate=1))
    assert caught.value.retry_after is not None
    assert 61 <= caught.value.retry_after <= 67.1  # 101 over 100, and up to a tenth


@pytest.mark.parametrize(
    "usage, status, left",
    [(None, 200, 40), (None, 400, 100), (Usage(0, 0), 200, 100), (Usage(4_000_000_000, 5), 200, 40)],
)
async def test_what_nobody_counted(parts: Make, usage: Usage | None, status: int, left: int) -> None:
    handler = chain(parts(Time(), entrance="llm"), limits({"per": "user", "tokens": 100}))
    call = model(estimate=60)
    end(await handler(call), call, usage, status)
    assert await outcome(handler, model(estimate=left + 1)) == 429
    assert await outcome(handler, model(estimate=left)) == 200


@pytest.mark.parametrize("error", [Failure(502, Reason.UPSTREAM_FAILURE, "x"), KeyboardInterrupt(), ValueError()])
async def test_what_was_not_answered_is_given_back(parts: Make, error: BaseException) -> None:
    async def fail(call: Call) -> Reply:
        raise error

    p = parts(Time(), entrance="llm")
    layers = limits({"per": "user", "tokens": 100}, {"per": "user", "requests": 5})
    call = model(estimate=100)
    with pytest.raises(type(error)):
        await chain(p, layers, backend=fail)(call)
    end(None, call, status=getattr(error, "status", 500))
    handler = chain(p, layers)
    assert await outcome(handler, model(estimate=100)) == 200
    assert [await outcome(handler, model(estimate=1)) for _ in range(4)] == [200] * 3 + [429]  # requests stay counted


@pytest.mark.parametrize(
    "began, usage, left",
    [
        (0.0, None, 100),  # nobody was asked
        (1.0, None, 40),  # nobody said what came of it: as reserved
        (1.0, Usage(20, 0, estimated=True), 80),
    ],
)
async def test_who_leaves_pays_for_what_was_asked(parts: Make, began: float, usage: Usage | None, left: int) -> None:
    handler = chain(parts(Time(), entrance="llm"), limits({"per": "user", "tokens": 100}))
    call = model(estimate=60)
    await handler(call)
    call.context.upstream_began = began
    call.context.usage = usage
    ends, call.request.ends = call.request.ends, []
    finish(ends, Ending(499, Reason.CLIENT_GONE, 0, None, True))
    assert await outcome(handler, model(estimate=left + 1)) == 429
    assert await outcome(handler, model(estimate=left)) == 200


async def test_a_refusal_says_what_is_left_and_what_was_needed(parts: Make) -> None:
    handler = chain(parts(Time(), entrance="llm"), limits({"per": "user", "tokens": 40, "name": "few"}))
    await handler(model(estimate=18))
    with pytest.raises(Failure, match=r"`few` \(40 tokens in 1 min\) has 22 tokens left, .* may need 30; try again in"):
        await handler(model(estimate=30))


async def test_what_names_no_model_is_a_request_all_the_same(parts: Make) -> None:
    handler = chain(parts(Time(), entrance="llm"), limits({"per": "ip", "requests": 2}))
    assert [await outcome(handler, model("")) for _ in range(3)] == [200, 200, 429]


async def test_an_estimate_of_nothing_is_one(parts: Make) -> None:
    handler = chain(parts(Time(), entrance="llm"), limits({"per": "user", "tokens": 1}))
    await handler(model(estimate=0))
    with pytest.raises(Failure):
        await handler(model(estimate=0))


async def test_what_a_refusal_says(parts: Make) -> None:
    p = parts(Time(), entrance="llm")
    handler = chain(p, limits({"per": "user", "requests": 1, "name": "user-rpm"}))
    await handler(model())
    with pytest.raises(Failure) as caught:
        await handler(model())
    failure = caught.value
    assert (failure.status, failure.reason, failure.code) == (429, Reason.RATE_LIMIT, "rate_limit_exceeded")
    assert not failure.retry
    headers = dict(failure.headers)
    assert headers[b"ratelimit-policy"] == b'"user-rpm";q=1;w=60'
    assert headers[b"ratelimit"] == b'"user-rpm";r=0;t=60'
    assert 60 <= int(headers[b"retry-after"]) <= 66
    assert failure.retry_after == int(headers[b"retry-after"])
    assert "`user-rpm` (1 requests in 1 min) is used up" in failure.message
    assert "ada" not in failure.message
    assert "ada" in failure.detail
    assert counted(p, "ratelimit_hits_total") == {("user-rpm",): 2}
    assert counted(p, "ratelimit_over_limit_total") == {("user-rpm",): 1}
    assert counted(p, "ratelimit_near_limit_total") == {("user-rpm",): 1}


@pytest.mark.parametrize("tier", [b'"priority"', b'"auto"'])
async def test_a_tier_without_a_price_is_estimated_at_the_usual_one(parts: Make, tier: bytes) -> None:
    prices = Prices(None, {"p": Origin("openai")}, [PriceSpec.model_validate({"model": "*", "input": 1, "output": 4})])
    quotes = Quotes(prices, {"m": ([Asked("p", "m")], 1, NO_CHANGES)}.get)
    handler = chain(parts(Time(), entrance="llm", quotes=quotes), limits({"per": "user", "usd": 1}))
    call = model("m", estimate=500_000)
    call.dialect, call.fields = CHAT, {"max_tokens": Raw(b"200000"), "service_tier": Raw(tier)}
    assert await outcome(handler, call) == 429


async def test_what_never_fits_says_so(parts: Make) -> None:
    handler = chain(parts(Time(), entrance="llm"), limits({"per": "user", "tokens": 100, "burst": 50}))
    with pytest.raises(Failure, match="never allows more than 50 at once") as caught:
        await handler(model(estimate=51))
    assert caught.value.retry_after is None
    assert b"retry-after" not in dict(caught.value.headers)
    assert dict(caught.value.headers)[b"x-should-retry"] == b"false"


@pytest.mark.parametrize("window, final", [("50s", False), ("2m", True)])
async def test_who_would_not_wait_that_long_is_told_not_to_come(parts: Make, window: str, final: bool) -> None:
    handler = chain(parts(Time(), entrance="llm"), limits({"per": "user", "requests": 1, "window": window}))
    await handler(model())
    with pytest.raises(Failure) as caught:
        await handler(model())
    assert ((b"x-should-retry", b"false") in caught.value.headers) is final


async def test_retry_after_is_at_least_a_second(parts: Make) -> None:
    handler = chain(parts(Time(), entrance="llm"), limits({"per": "user", "requests": 10, "window": "1s", "burst": 1}))
    await handler(model())
    with pytest.raises(Failure) as caught:
        await handler(model())
    assert caught.value.retry_after == 1


async def test_answers_say_what_is_left(parts: Make) -> None:
    layers = limits(
        {"per": "user", "requests": 5, "headers": "draft"},
        {"per": "user", "requests": 9, "window": "1h", "headers": "draft"},
        {"per": "org", "requests": 7},
        {"per": "tool", "requests": 7, "headers": "draft"},
    )
    reply = await chain(parts(Time(), entrance="llm"), layers)(model())
    assert dict(reply.headers)[b"ratelimit"] == b'"user-requests";r=4;t=12, "user-requests-2";r=8;t=400'
    quiet = await chain(parts(Time(), entrance="llm"), limits({"per": "org", "requests": 7}))(model())
    assert quiet.headers == [(b"content-type", b"application/json")]


async def test_a_changed_amount_keeps_the_bucket(parts: Make) -> None:
    p = parts(Time(), entrance="llm")
    before = chain(p, limits({"per": "user", "requests": 10}))
    assert [await outcome(before, model()) for _ in range(10)] == [200] * 10
    after = chain(p, limits({"per": "user", "requests": 20}))
    assert await outcome(after, model()) == 429
    assert await outcome(chain(p, limits({"per": "user", "requests": 10, "window": "1h"})), model()) == 200


async def test_scopes_do_not_share(parts: Make) -> None:
    p = parts(Time(), entrance="llm")
    for name in ("a", "b"):
        handler = chain(p, limits({"per": "user", "requests": 1}, level="model", name=name))
        assert await outcome(handler, model()) == 200
    assert set(counted(p, "ratelimit_hits_total")) == {("model:a/user-requests",), ("model:b/user-requests",)}


async def test_plain_routes(parts: Make) -> None:
    p = parts(Time(), entrance="http")
    layers = (
        limits(
            {"per": "ip", "requests": 3, "headers": "draft"},
            {"per": "user", "tokens": 1},
            {"per": "tool", "requests": 1},
        ),
        limits({"per": "request.path", "requests": 1}, level="route", name="r"),
    )
    party = LIMITS_ROUTE.make(layers, p)
    assert party is not None
    assert LIMITS_ROUTE.joins is not None
    handler = compose((LIMITS_ROUTE.joins((party,), p),), respond)
    response = await handler(request(b"GET", b"/a"))
    assert dict(response.headers)[b"ratelimit"].startswith(b'"ip-requests";r=2')
    for target, status in ((b"/a", 429), (b"/b", 200), (b"/c", 200), (b"/d", 429)):
        if status == 429:
            with pytest.raises(Failure):
                await handler(request(b"GET", target))
        else:
            await handler(request(b"GET", target))
    assert LIMITS.make(layers, p) is None
    assert LIMITS_ROUTE.make((limits({"per": "user", "tokens": 1}),), p) is None


@pytest.mark.parametrize(
    "level, spec",
    [
        ("model", {"per": "tool", "requests": 1}),
        ("server", {"per": "model", "requests": 1}),
        ("server", {"per": "user", "tokens": 1}),
        ("tool", {"per": "user", "tokens": 1}),
    ],
)
def test_what_can_have_no_effect_is_an_error(parts: Make, level: str, spec: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="can have no effect"):
        LIMITS.make((limits(spec, level=level, name="x"),), parts(entrance="mcp"))


def test_nor_on_routes(parts: Make) -> None:
    for spec in ({"per": "user", "tokens": 1}, {"per": "user", "calls": 1}, {"per": "model", "requests": 1}):
        with pytest.raises(ConfigError, match=r"route x: limits\[0\]"):
            LIMITS_ROUTE.make((limits(spec, level="route", name="x"),), parts())


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"per": "user"}, "exactly one of"),
        ({"per": "user", "requests": 1, "tokens": 1}, "exactly one of"),
        ({"per": "usr", "requests": 1}, "neither one of user, key, org"),
        ({"per": "user", "requests": 0}, "greater than or equal to 1"),
        ({"per": "user", "requests": 1, "window": "0s"}, "greater than 0"),
        ({"per": "user", "requests": 1, "name": 'a"b'}, "pattern"),
    ],
)
def test_bad_limits_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LimitSpec.model_validate({"window": "1m"} | wrong)


async def test_no_cycles(parts: Make) -> None:
    handler = chain(
        parts(Time(), entrance="llm"), limits({"per": "user", "tokens": 1000}, {"per": "org", "requests": 9})
    )

    async def ask() -> None:
        call = model()
        end(await handler(call), call, Usage(1, 1))
        try:
            await handler(model(estimate=5000))
        except Failure as failure:
            failure.__traceback__ = None

    await ask()
    gc.collect()
    await ask()
    assert gc.collect() == 0


class Gone(Far):
    """One that cannot be asked."""

    async def admit(
        self, id: str, charges: Sequence[Charge], draws: Sequence[Draw] = (), lives: float = 60.0
    ) -> Verdict:
        await sleep(0)
        raise unavailable("nobody there")


ALLOW = {"on_store_failure": "allow"}


def without_state(time: Time) -> Parts:
    made = near_parts(time, entrance="llm")
    return replace(made, counter=cast(Any, Gone(made.counter)))


@pytest.mark.parametrize(
    "first, second, status",
    [
        ({}, {}, 503),
        ({"on_store_failure": "deny"}, {}, 503),
        ({"on_store_failure": "allow"}, {}, 503),
        (ALLOW, ALLOW, 200),
    ],
)
async def test_a_state_that_is_not_available(first: Any, second: Any, status: int) -> None:
    p = without_state(Time())
    specs = ({"per": "user", "requests": 1, **first}, {"per": "user", "tokens": 100, **second})
    handler = chain(p, limits(*specs))
    assert [await outcome(handler, model()) for _ in range(3)] == [status] * 3
    unasked = counted(p, "ratelimit_unasked_total")
    assert unasked == ({("user-requests",): 3, ("user-tokens",): 3} if status == 200 else {})
    assert sum(counted(p, "ratelimit_over_limit_total").values()) == 0


async def test_what_no_limit_concerns_needs_no_state() -> None:
    handler = chain(without_state(Time()), limits({"per": "tool", "calls": 1}))
    assert await outcome(handler, model()) == 200


async def test_every_admission_has_an_id_of_its_own_that_the_caller_cannot_choose() -> None:
    class Noted(Far):
        async def admit(
            self, id: str, charges: Sequence[Charge], draws: Sequence[Draw] = (), lives: float = 60.0
        ) -> Verdict:
            ids.append(id)
            return await super().admit(id, charges, draws, lives)

    ids: list[str] = []
    settled: list[str] = []
    made = near_parts(Time(), entrance="llm")
    counter = Noted(made.counter)
    counter.settle = lambda id, charges, amounts: settled.append(id)
    handler = chain(replace(made, counter=cast(Any, counter)), limits({"per": "user", "tokens": 100}))
    for _ in range(3):  # parts of one request
        assert await outcome(handler, model(estimate=1)) == 200
    assert len(set(ids)) == 3
    assert all(id.startswith("r.") for id in ids)
    assert settled == ids


async def test_a_later_round_of_a_call_is_not_another_call(parts: Make) -> None:
    handler = chain(parts(Time(), entrance="mcp"), limits({"per": "user", "calls": 1}))
    assert await outcome(handler, tool()) == 200
    further = tool()
    further.round = 1
    assert await outcome(handler, further) == 200
    assert await outcome(handler, tool()) == 429


async def test_tokens_of_prompts_and_of_answers(parts: Make) -> None:
    layers = limits({"per": "user", "input_tokens": 100}, {"per": "user", "output_tokens": 50, "name": "out"})
    handler = chain(parts(Time(), entrance="llm"), layers)
    call = model(estimate=60)  # which nobody says the answer's part of
    reply = await handler(call)
    assert await outcome(handler, model(estimate=60)) == 429
    end(reply, call, Usage(20, 49, cache_read=5))
    assert await outcome(handler, model(estimate=75)) == 200
    with pytest.raises(Failure, match=r"`out` .50 output tokens in 1 min. is used up"):
        call = model(estimate=1)
        end(await handler(call), call, Usage(0, 40))
        await handler(model(estimate=1))


async def test_per_team_and_route(parts: Make) -> None:
    handler = chain(parts(Time(), entrance="llm"), limits({"per": "team", "requests": 1}))
    assert await outcome(handler, model(principal=who(org="o", team="t"))) == 200
    assert await outcome(handler, model(principal=who(org="o", team="t", id="x"))) == 429
    assert await outcome(handler, model(principal=who(org="p", team="t"))) == 200  # another organisation's
    assert [await outcome(handler, model(principal=who(id=name))) for name in ("x", "y")] == [200, 429]  # of none
    one = model()
    one.context.route = "chat"
    handler = chain(parts(Time(), entrance="llm"), limits({"per": "route", "requests": 1}))
    assert [await outcome(handler, call) for call in (one, model(), one)] == [200, 200, 429]


async def test_a_dialect_is_answered_in_its_headers(parts: Make) -> None:
    handler = chain(parts(Time(), entrance="llm"), limits({"per": "user", "requests": 2, "headers": "dialect"}))
    call = model()
    call.context.dialect = "openai"
    assert dict((await handler(call)).headers)[b"x-ratelimit-remaining-requests"] == b"1"
    await handler(model())
    refused = model()
    refused.context.dialect = "anthropic"
    with pytest.raises(Failure) as caught:
        await handler(refused)
    headers = dict(caught.value.headers)
    assert headers[b"anthropic-ratelimit-requests-remaining"] == b"0"
    assert b"ratelimit-policy" in headers


async def test_a_share_while_the_state_is_gone() -> None:
    class Apart(Gone):
        def admit_apart(self, id: str, charges: Sequence[Charge]) -> Verdict:
            taken.append(id)
            ahead = [charge.amount * charge.rate.step for charge in charges]
            return Verdict(-1, 0.0, ahead) if len(taken) < 3 else Verdict(0, 7.0, ahead)

    taken: list[str] = []
    made = near_parts(Time(), entrance="llm")
    p = replace(made, counter=cast(Any, Apart(made.counter)))
    handler = chain(p, limits({"per": "user", "requests": 9, "on_store_failure": "local"}))
    assert [await outcome(handler, model()) for _ in range(3)] == [200, 200, 429]
    assert len(set(taken)) == 3
    both = chain(p, limits({"per": "user", "requests": 9, "on_store_failure": "local"}, {"per": "org", "requests": 9}))
    assert await outcome(both, model()) == 503  # one that denies is enough


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"concurrent": 2, "window": "1m"}, "`window` has no effect with `concurrent`"),
        ({"concurrent": 2, "window": None, "burst": 1}, "`burst` has no effect with `concurrent`"),
        ({"concurrent": 2, "window": None, "on_store_failure": "local"}, "has no share"),
        ({"requests": 2, "window": None}, "needs a `window`"),
        ({"usd": 2, "burst": 5}, "`burst` has no effect with `usd`"),
        ({"usd": "inf"}, "finite"),
        ({"requests": 2, "headers": True}, "draft"),
    ],
)
def test_further_bad_limits(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LimitSpec.model_validate({"per": "user", "window": "1m"} | wrong)
