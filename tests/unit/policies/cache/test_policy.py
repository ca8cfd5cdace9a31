"""The cache of models' answers: what is kept, for whom, and what is not."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.unit.policies.cache.house import JSON, House, asked, over, state, streamed
from tests.unit.policies.floor import counted, who

from tollhouse.core.call import ModelCall, Principal, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.expr import Expression
from tollhouse.core.reply import Reply

pytestmark = pytest.mark.anyio


@pytest.fixture
async def house() -> AsyncIterator[House]:
    one = House()
    yield one
    await one.close()


async def test_the_same_request_is_answered_again_and_costs_nothing(house: House) -> None:
    first = await house.ask()
    assert state(first) == "stored"
    house.time.advance(7)
    call = asked()
    again = await house.ask(call)
    assert (again.status, again.first, state(again)) == (200, first.first, "hit")
    assert dict(again.headers)[b"age"] == b"7"
    assert len(house.upstream.calls) == 1
    context = call.context
    assert (context.cached, context.usage, context.cost_nano, context.saved_nano) == ("exact", Usage(), 0, 35)
    assert (context.provider, context.model_answered, context.upstream_began) == ("openai", "gpt-x", 0.0)
    found = counted(house.parts, "cache_requests_total")
    assert found == {("exact", "miss", "chat"): 1, ("exact", "hit", "chat"): 1}


async def test_after_its_time_it_is_asked_again(house: House) -> None:
    await house.ask()
    house.time.advance(61)
    assert state(await house.ask()) == "stored"
    assert len(house.upstream.calls) == 2


# ---- whose it is
def person(user: str, org: str, issuer: str) -> Principal:
    return Principal(f"jwt:{issuer}|{org}{user}", source="jwt", user=user, org=org, issuer=issuer)


ADA = person("ada", "acme", "https://one")
PEOPLE = {
    "another user": person("bob", "acme", "https://one"),
    "another org's user of that name": person("ada", "other", "https://one"),
    "another issuer's user of that name": person("ada", "acme", "https://two"),
    "nobody": Principal("anonymous", source="anonymous"),
}


@pytest.mark.parametrize("whom", PEOPLE)
async def test_nobody_gets_another_ones_answer(house: House, whom: str) -> None:
    await house.ask(asked(principal=ADA))
    reply = await house.ask(asked(principal=PEOPLE[whom]))
    assert state(reply) == "stored"
    assert len(house.upstream.calls) == 2
    assert state(await house.ask(asked(principal=ADA))) == "hit"


@pytest.mark.parametrize(
    "scope, shared",
    [
        ("shared", {"another user", "another org's user of that name", "another issuer's user of that name", "nobody"}),
        ("org", {"another user", "another issuer's user of that name"}),
        ("user", set()),
        ("key", set()),
    ],
)
async def test_the_operator_says_whose_an_answer_is(scope: str, shared: set[str]) -> None:
    house = House(scope=scope)
    await house.ask(asked(principal=ADA))
    for whom, principal in PEOPLE.items():
        before = len(house.upstream.calls)
        await house.ask(asked(principal=principal))
        assert (len(house.upstream.calls) == before) is (whom in shared), whom
    await house.close()


async def test_who_has_no_org_shares_with_nobody_of_an_org() -> None:
    house = House(scope="org")
    await house.ask(asked(principal=who(id="ada")))
    assert state(await house.ask(asked(principal=who(id="bob")))) == "stored"
    await house.close()


# ---- what it depends on
@pytest.mark.parametrize(
    "one, other",
    [
        ({"text": "hello"}, {"text": "hello "}),
        ({"text": "\u00e9"}, {"text": "e\u0301"}),
        ({"max_tokens": 1}, {"max_tokens": 2}),
        ({"stream": False}, {"stream": True}),
        ({"tools": []}, {}),
        ({"model": "smart-a"}, {"model": "smart-b"}),
        ({"label": "smart"}, {"label": "other", "model": "smart"}),
        ({"user": "a"}, {"user": "b"}),
        ({"body": b'{"model":"m","messages":1,"x":1}'}, {"body": b'{"model":"m","messages":1,"x":1.0}'}),
        ({"body": b'{"model":"m","messages":1,"x":"a","y":""}'}, {"body": b'{"model":"m","messages":1,"x":"","y":1}'}),
        ({"body": b'{"model":"m","messages":1,"xy":1}'}, {"body": b'{"model":"m","messages":1,"x":"y1"}'}),
        ({"headers": [(b"anthropic-beta", b"a")]}, {}),
    ],
)  # fmt: skip
async def test_another_request_has_another_answer(house: House, one: dict[str, Any], other: dict[str, Any]) -> None:
    for fields in (one, other):
        call = asked(**fields)
        reply = await house.handler(call)
        assert len(house.upstream.calls) == (1 if fields is one else 2)
        over(call, reply)


@pytest.mark.parametrize(
    "one, other",
    [
        (b'{"model":"m","messages":[1],"n":1}', b'{ "n" : 1, "messages": [1] , "model":"m"}'),
        (b'{"model":"m","n":2,"messages":[1],"n":1}', b'{"model":"m","messages":[1],"n":1}'),
    ],
)
async def test_the_order_of_fields_and_what_is_not_sent_make_no_difference(
    house: House, one: bytes, other: bytes
) -> None:
    await house.ask(asked(body=one, label="m"))
    assert state(await house.ask(asked(body=other, label="m"))) == "hit"


async def test_what_is_behind_is_part_of_it(house: House) -> None:
    await house.ask()
    house.behind.fingerprint = b"second"  # the model has another target now, or another guard
    assert state(await house.ask()) == "stored"


async def test_a_target_chosen_by_a_header_is_another_target(house: House) -> None:
    house.behind.conditions = (Expression('request.headers["x-tier"] == "gold"'),)
    await house.ask()
    assert state(await house.ask(asked(headers=[(b"x-tier", b"lead")]))) == "hit"  # it does not hold for either
    assert state(await house.ask(asked(headers=[(b"x-tier", b"gold")]))) == "stored"


async def test_fields_that_make_no_difference_can_be_named() -> None:
    house = House(ignore=["user", "metadata"])
    await house.ask(user="a", metadata={"x": 1})
    assert state(await house.ask(user="b")) == "hit"
    await house.close()


# ---- what is not kept
@pytest.mark.parametrize(
    "answer",
    [
        Failure(502, Reason.UPSTREAM_FAILURE, "x"),
        Reply(400, [], b'{"error":{}}'),
        Reply(201, [], b"{}"),
    ],
)
async def test_what_failed_is_not_kept(house: House, answer: Any) -> None:
    house.upstream.answers.append(answer)
    if isinstance(answer, Failure):
        with pytest.raises(Failure) as raised:
            await house.ask()
        assert raised.value is answer
    else:
        reply = await house.ask()
        assert state(reply) == "miss"
        assert reply.first == answer.first
    assert state(await house.ask()) == "stored"
    assert len(house.upstream.calls) == 2


SAID = {
    "chat": (
        b'{"choices": [{"finish_reason": "%b", "message": {"content": "\\"finish_reason\\": \\"error\\""}}]}',
        {b"stop": True, b"length": True, b"tool_calls": True, b"error": False, b"content_filter": False},
    ),
    "messages": (
        b'{"type": "message", "content": [], "stop_reason": "%b"}',
        {b"end_turn": True, b"max_tokens": True, b"refusal": False},
    ),
    "generate": (
        b'{"candidates": [{"content": {"parts": [{"text": "x"}]}, "finishReason": "%b"}]}',
        {b"STOP": True, b"MAX_TOKENS": True, b"SAFETY": False, b"OTHER": False, b"MALFORMED_FUNCTION_CALL": False},
    ),
    "converse": (
        b'{"output": {}, "stopReason": "%b"}',
        {b"end_turn": True, b"tool_use": True, b"guardrail_intervened": False, b"malformed_tool_use": False},
    ),
    "responses": (
        b'{"object": "response", "status": "%b", "output": []}',
        {b"completed": True, b"incomplete": True, b"failed": False, b"cancelled": False, b"queued": False},
    ),
}


@pytest.mark.parametrize(
    "operation, answer, kept",
    [
        *((name, form % why, kept) for name, (form, whys) in SAID.items() for why, kept in whys.items()),
        ("generate", b'{"promptFeedback":{"blockReason":"OTHER"}}', False),
        ("responses", b'{"status":"incomplete","incomplete_details":{"reason":"content_filter"}}', False),
        ("responses", b'{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}', True),
        ("chat", b'{"choices": []}', False),
        ("chat", b'{"choices":null}', False),
    ],
)
async def test_what_has_failed_though_its_status_is_200_is_not_kept(
    house: House, operation: str, answer: bytes, kept: bool
) -> None:
    house.upstream.answers.append(Reply(200, [JSON], answer))
    for expected in ("stored", "hit") if kept else ("miss", "stored"):
        call = asked()
        call.operation = operation
        assert state(await house.ask(call)) == expected


async def test_a_fallback_s_answer_is_kept_only_where_that_is_wanted() -> None:
    for wanted in (False, True):
        house = House(fallback=wanted)

        async def handle(call: ModelCall, house: House = house) -> Reply:
            call.context.fallback = "local"
            return await house.upstream.handle(call)

        house.handler = house.chain({"exact": {"ttl": "1m", "fallback": wanted}}, last=handle)
        assert state(await house.ask()) == ("stored" if wanted else "miss")
        assert state(await house.ask()) == ("hit" if wanted else "miss")
        await house.close()


async def test_what_is_too_large_passes_and_is_not_kept() -> None:
    house = House(max_size=1024)
    house.upstream.answers += [Reply(200, [], b"x" * 1025), Reply(200, [], b"y" * 1024)]
    assert state(await house.ask()) == "miss"
    assert state(await house.ask()) == "stored"
    assert (await house.ask()).first == b"y" * 1024
    await house.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7},
        {"temperature": 1},
        {"temperature": 1e-9},
        {"temperature": "hot"},
        {"body": b'{"model":"smart","messages":[],"temperature":-0.1}'},
        {"background": True},
        {"conversation": "conv_1"},
        {"store": True},
        {"prompt": {"id": "pmpt_1"}},
        {"container": "c"},
        {"mcp_servers": [{"type": "url", "url": "https://mcp.example.com"}]},
        {"tools": [{"type": "mcp", "server_label": "x"}]},
    ],
)
async def test_what_is_meant_to_differ_is_asked_each_time(house: House, fields: dict[str, Any]) -> None:
    for number in (1, 2):
        assert state(await house.ask(**fields)) == "bypass"
        assert len(house.upstream.calls) == number


@pytest.mark.parametrize("fields", [{"store": False}, {"prompt": "Say this."}, {"tools": [{"type": "web_search"}]}])
async def test_what_makes_no_difference_to_that(house: House, fields: dict[str, Any]) -> None:
    await house.ask(**fields)
    assert state(await house.ask(**fields)) == "hit"


@pytest.mark.parametrize("value", [0, 0.0, -0.0, None])
async def test_a_temperature_of_nothing_is_none(house: House, value: Any) -> None:
    await house.ask(temperature=value)
    assert state(await house.ask(temperature=value)) == "hit"


async def test_any_temperature_where_that_is_wanted() -> None:
    house = House(any_temperature=True)
    await house.ask(temperature=1)
    assert state(await house.ask(temperature=1)) == "hit"
    await house.close()


# ---- what the request says
async def test_no_store_neither_keeps_nor_finds(house: House) -> None:
    headers = [(b"cache-control", b"no-store")]
    assert state(await house.ask(asked(headers=headers))) == "bypass"
    assert state(await house.ask()) == "stored"
    assert state(await house.ask(asked(headers=headers))) == "bypass"


async def test_no_cache_asks_and_keeps_the_new_answer(house: House) -> None:
    await house.ask()
    fresh = await house.ask(asked(headers=[(b"cache-control", b"No-Cache")]))
    assert (state(fresh), fresh.first) == ("stored", b'{"n":2}')
    assert (await house.ask()).first == b'{"n":2}'


async def test_max_age_and_min_fresh_want_a_younger_one(house: House) -> None:
    await house.ask()
    for nothing in (b"max-age=0", b"max-age=soon"):  # not even one of the same moment
        assert state(await house.ask(asked(headers=[(b"cache-control", nothing)]))) == "stored"
    house.time.advance(10)
    assert state(await house.ask(asked(headers=[(b"cache-control", b"max-age=11, min-fresh=40")]))) == "hit"
    assert state(await house.ask(asked(headers=[(b"cache-control", b"max-age=9")]))) == "stored"
    house.time.advance(30)
    assert state(await house.ask(asked(headers=[(b"cache-control", b"min-fresh=31")]))) == "stored"


async def test_only_if_cached_asks_nobody(house: House) -> None:
    headers = [(b"cache-control", b"only-if-cached")]
    with pytest.raises(Failure) as raised:
        await house.ask(asked(headers=headers))
    assert (raised.value.status, raised.value.code) == (504, "not_cached")
    with pytest.raises(Failure):
        await house.ask(asked(headers=headers, temperature=1))
    assert not house.upstream.calls
    await house.ask()
    assert state(await house.ask(asked(headers=headers))) == "hit"


# ---- other operations
async def test_what_is_no_text_is_not_looked_at(house: House) -> None:
    for changes in ({"operation": "images"}, {"operation": "chat", "content_type": b"multipart/form-data"}):
        call = asked()
        for name, value in changes.items():
            setattr(call, name, value)
        reply = await house.ask(call)
        assert b"x-tollhouse-cache" not in dict(reply.headers)


async def test_a_tap_that_was_there_is_in_what_is_kept(house: House) -> None:
    answer = Reply(200, [], b"a secret", taps=[lambda data: data.replace(b"secret", b"[key]")])
    house.upstream.answers.append(answer)
    assert (await house.ask()).first == b"a [key]"
    reply = await house.ask()
    assert (reply.first, state(reply)) == (b"a [key]", "hit")


async def test_a_guard_that_refuses_an_answer_keeps_it_out(house: House) -> None:
    def refuse(_: bytes) -> bytes:
        raise Failure(400, Reason.GUARDRAIL, "no")

    house.upstream.answers.append(Reply(200, [], b"bad", taps=[refuse]))
    with pytest.raises(Failure):
        await house.ask()
    assert house.upstream.settled  # what was due was done
    assert state(await house.ask()) == "stored"


async def test_who_changes_his_answer_changes_nobody_elses(house: House) -> None:
    first = await house.ask()
    first.headers.append((b"x-mine", b"1"))
    again = await house.ask()
    again.headers.append((b"x-mine", b"2"))
    assert b"x-mine" not in dict((await house.ask()).headers)


async def test_what_guards_have_found_in_an_answer_is_told_again(house: House) -> None:
    found = (b"x-tollhouse-guardrails", b"pii")
    house.upstream.answers.append(Reply(200, [found], b"{}"))
    for _ in range(2):
        assert found in (await house.ask()).headers
    assert len(house.upstream.calls) == 1


async def test_header_fields_of_the_moment_are_not_given_again(house: House) -> None:
    headers = [
        (b"x-ratelimit-remaining", b"3"),
        (b"x-upstream-request-id", b"r"),
        (b"content-type", b"application/json"),
    ]
    house.upstream.answers.append(Reply(200, headers, b"{}"))
    await house.ask()
    assert [name for name, _ in (await house.ask()).headers] == [b"content-type", b"x-tollhouse-cache", b"age"]


# ---- one flight
async def begun(house: House, *calls: ModelCall) -> list[asyncio.Task[Reply]]:
    """They ask; the upstream has the first of them."""
    house.upstream.gate.clear()
    tasks = []
    for call in calls:
        tasks.append(asyncio.ensure_future(house.handler(call)))
        await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_the_same_at_once_is_asked_once(house: House) -> None:
    calls = [asked() for _ in range(5)]
    tasks = await begun(house, *calls)
    house.upstream.gate.set()
    replies = await asyncio.gather(*tasks)
    assert len(house.upstream.calls) == 1
    assert {reply.first for reply in replies} == {b'{"n":1}'}
    assert [state(reply) for reply in replies] == ["stored", "hit", "hit", "hit", "hit"]
    for call, reply in zip(calls, replies, strict=True):
        over(call, reply)
    assert [call.context.usage for call in calls] == [Usage(3, 4)] + [Usage()] * 4
    assert [call.context.saved_nano for call in calls] == [0, 35, 35, 35, 35]


async def test_who_wants_a_fresher_one_is_no_part_of_it(house: House) -> None:
    tasks = await begun(house, asked(), asked(headers=[(b"cache-control", b"max-age=5")]))
    house.upstream.gate.set()
    await asyncio.gather(*tasks)
    assert len(house.upstream.calls) == 2


async def test_another_user_is_no_part_of_it(house: House) -> None:
    tasks = await begun(house, asked(principal=ADA), asked(principal=PEOPLE["another user"]))
    house.upstream.gate.set()
    await asyncio.gather(*tasks)
    assert len(house.upstream.calls) == 2


async def test_who_asked_first_leaves_and_the_next_one_pays(house: House) -> None:
    calls = [asked(), asked(), asked()]
    tasks = await begun(house, *calls)
    tasks[0].cancel()
    await asyncio.wait((tasks[0],))
    assert calls[0].context.usage == Usage()  # nothing of what he held is kept from him
    house.upstream.gate.set()
    second, third = await tasks[1], await tasks[2]
    assert not house.upstream.cancelled
    assert len(house.upstream.calls) == 1
    over(calls[1], second)
    over(calls[2], third)
    assert (calls[1].context.usage, calls[1].context.cached) == (Usage(3, 4), "")
    assert calls[1].context.upstream_began == 1.0
    assert (calls[2].context.usage, calls[2].context.cached) == (Usage(), "exact")
    assert len(house.upstream.settled) == 1


async def test_nobody_waits_any_more_and_the_upstream_is_let_go(house: House) -> None:
    calls = [asked(), asked()]
    tasks = await begun(house, *calls)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert house.upstream.cancelled == 1
    assert calls[1].context.usage == Usage(9, 0, estimated=True)  # the last one to leave has had it asked
    house.upstream.gate.set()
    assert state(await house.ask()) == "stored"


async def test_it_fails_and_the_next_one_asks(house: House) -> None:
    house.upstream.answers.append(Failure(502, Reason.UPSTREAM_FAILURE, "x"))
    tasks = await begun(house, *(asked() for _ in range(4)))
    house.upstream.gate.set()
    with pytest.raises(Failure):
        await tasks[0]
    assert [(await task).first for task in tasks[1:]] == [b'{"n":2}'] * 3
    assert len(house.upstream.calls) == 2


async def test_it_always_fails_and_each_one_hears_it_soon(house: House) -> None:
    house.upstream.answers += [Failure(502, Reason.UPSTREAM_FAILURE, "x") for _ in range(9)]
    tasks = await begun(house, *(asked() for _ in range(6)))
    house.upstream.gate.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, Failure) for one in found)
    assert len(house.upstream.calls) == 6


async def test_a_bug_behind_it_is_the_first_ones_alone(house: House) -> None:
    house.upstream.answers.append(ZeroDivisionError())
    tasks = await begun(house, asked(), asked())
    house.upstream.gate.set()
    with pytest.raises(ZeroDivisionError):
        await tasks[0]
    assert (await tasks[1]).first == b'{"n":2}'


async def test_thousands_at_once_are_asked_for_in_thousands(house: House) -> None:
    house.upstream.gate.clear()
    tasks = [asyncio.ensure_future(house.ask()) for _ in range(3500)]
    for _ in range(4):
        await asyncio.sleep(0)
    assert len(house.upstream.calls) == 4
    for task in tasks[::7]:
        task.cancel()
    house.upstream.gate.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(one, Reply) for one in done) == 3000
    assert len(house.upstream.calls) == 4
    store = house.shelf.parts[("cache", 64 << 20)]
    assert not store.flights


async def test_without_single_flight_each_asks() -> None:
    house = House(single_flight=False)
    tasks = await begun(house, asked(), asked())
    house.upstream.gate.set()
    await asyncio.gather(*tasks)
    assert len(house.upstream.calls) == 2
    await house.close()


async def test_many_keys_do_not_take_more_room_than_there_is() -> None:
    house = House(level="top", more={"memory": "1MiB"})
    for number in range(600):
        house.upstream.answers.append(Reply(200, [], b"x" * 8000))
        await house.ask(text=f"flood {number}")
    store = house.shelf.parts[("cache", 1 << 20)]
    assert store.memory.size <= 1 << 20
    assert counted(house.parts, "cache_evictions_total")[()] > 400
    assert state(await house.ask(text="flood 599")) == "hit"
    await house.close()


async def test_a_stream_with_a_status_is_an_answer_too(house: House) -> None:
    reply, source = streamed(b"data: 1\n\n")
    reply.status = 400
    house.upstream.answers.append(reply)
    got = await house.handler(asked(stream=True))
    assert got.source is source
    assert state(got) == "miss"
