"""Alternates: when another tool is asked, and what the caller hears."""

import gc
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import pytest

from tollhouse.core.call import Context, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request
from tollhouse.core.reply import Reply
from tollhouse.policies.alternate import Alternate, vouched
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.overrides import Argument, Override, Overrides

pytestmark = pytest.mark.anyio

OK = jsonrpc.result(1, b'{"content":[]}')


def call(*, idempotent: bool) -> ToolCall:
    params = {"name": msgspec.Raw(b'"first"'), "arguments": msgspec.Raw(b'{"a":1}')}
    request = Request(b"POST", b"/mcp", Headers())
    context = Context(server="one", backend="one", tool="first")
    return ToolCall(
        request, context, server="one", method="tools/call", name="first", params=params, idempotent=idempotent
    )


class Chain:
    """answer: a reply's first message, or a failure."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.calls: list[ToolCall] = []

    async def __call__(self, asked: Any) -> Reply:
        self.calls.append(asked)
        if isinstance(self.answer, Failure):
            raise self.answer.copy()
        return Reply(200, [], self.answer)


def lost(*, sent: bool, reason: Reason = Reason.UPSTREAM_FAILURE) -> Failure:
    return Failure(502, reason, "first is down", sent=sent, retry=True)


async def test_what_guards_have_hidden_is_not_asked() -> None:
    async def hidden(asked: ToolCall) -> bool:
        assert (asked.server, asked.name) == ("two", "other")
        return hides

    hides = True
    second = Chain(OK)
    alternate = Alternate("two", "other", second, hidden=hidden)
    asked = call(idempotent=True)
    with pytest.raises(Failure, match="first is down"):
        await alternate.handle(asked, Chain(lost(sent=False)))
    assert not second.calls
    assert (asked.context.server, asked.context.tool) == ("one", "first")
    hides = False
    await alternate.handle(asked, Chain(lost(sent=False)))
    assert len(second.calls) == 1


@pytest.mark.parametrize(
    ("answer", "idempotent", "used"),
    [
        (OK, True, False),
        (lost(sent=False), False, True),
        (lost(sent=True), False, False),
        (lost(sent=True), True, True),
        (lost(sent=True, reason=Reason.TIMEOUT), True, True),
        (lost(sent=False, reason=Reason.AUTHORIZATION), True, False),
        (lost(sent=False, reason=Reason.RATE_LIMIT), True, False),
        (jsonrpc.error(1, jsonrpc.INTERNAL_ERROR, "broken"), True, True),
        (jsonrpc.error(1, jsonrpc.INTERNAL_ERROR, "broken"), False, False),
        (jsonrpc.error(1, jsonrpc.INVALID_PARAMS, "no such thing"), True, False),
        (jsonrpc.result(1, b'{"content":[],"isError":true}'), True, False),
        (jsonrpc.result(1, b'{"content":[{"type":"text","text":"\\"error\\""}]}'), True, False),
    ],
)
async def test_it_is_asked_where_that_does_no_harm(answer: Any, idempotent: bool, used: bool) -> None:
    first, second = Chain(answer), Chain(OK)
    times: list[int] = []
    alternate = Alternate("two", "other", second, lambda: times.append(1))
    asked = call(idempotent=idempotent)
    try:
        reply = await alternate.handle(asked, first)
    except Failure:
        assert not used
        assert second.calls == []
        return
    assert bool(second.calls) is used is bool(times)
    if used:
        (other,) = second.calls
        assert (other.server, other.name) == ("two", "other")
        assert (bytes(other.params["name"]), bytes(other.params["arguments"])) == (b'"other"', b'{"a":1}')
        assert (asked.context.server, asked.context.tool, asked.context.fallback) == ("two", "other", "two__other")
        assert reply.first == OK
        assert bytes(asked.params["name"]) == b'"first"'
    else:
        assert reply.first == answer


async def test_its_operator_says_what_it_is_told() -> None:
    hidden = Override(arguments={"tenant": Argument(hidden=True, default=b'"acme"'), "a": Argument(name="b")})
    second = Chain(OK)
    asked = call(idempotent=True)
    asked.params["arguments"] = msgspec.Raw(b'{"a":1,"tenant":"another"}')
    fitted = partial(Overrides({"other": hidden}).fitted, "other")
    await Alternate("two", "other", second, fitted=fitted).handle(asked, Chain(lost(sent=False)))
    assert msgspec.json.decode(second.calls[0].params["arguments"]) == {"a": 1, "tenant": "acme"}
    assert bytes(asked.params["arguments"]) == b'{"a":1,"tenant":"another"}'
    asked.params["arguments"] = msgspec.Raw(b"[]")
    with pytest.raises(Failure, match="first is down"):
        await Alternate("two", "other", second, fitted=fitted).handle(asked, Chain(lost(sent=False)))
    assert len(second.calls) == 1


@pytest.mark.parametrize("answer", [lost(sent=False), jsonrpc.error(1, jsonrpc.INTERNAL_ERROR, "broken")])
async def test_it_is_not_told_what_the_first_server_said_to_itself(answer: Any) -> None:
    second, asked = Chain(OK), call(idempotent=True)
    asked.params["requestState"] = msgspec.Raw(b'"of the first"')
    asked.round = 1
    with suppress(Failure):
        await Alternate("two", "other", second).handle(asked, Chain(answer))
    assert second.calls == []


async def test_when_it_fails_too_the_first_failure_is_told() -> None:
    second = Failure(503, Reason.UPSTREAM_FAILURE, "second is down", sent=False)
    asked = call(idempotent=True)
    with pytest.raises(Failure) as caught:
        await Alternate("two", "other", Chain(second)).handle(asked, Chain(lost(sent=False)))
    assert caught.value.message == "first is down"
    assert (asked.context.server, asked.context.tool, asked.context.fallback) == ("one", "first", "")


@pytest.mark.parametrize("said", [True, False])
async def test_the_operators_word_counts(said: bool) -> None:
    asked, chain = call(idempotent=not said), Chain(OK)
    await vouched(said)(asked, chain)
    assert chain.calls == [asked]
    assert asked.idempotent is said


async def test_failures_leave_nothing_for_the_collector() -> None:
    asked = call(idempotent=True)
    alternate = Alternate("two", "other", Chain(lost(sent=False)))
    gc.collect()
    for _ in range(10):
        try:
            await alternate.handle(asked, Chain(lost(sent=False)))
        except Failure:
            pass
    assert gc.collect() == 0


async def test_what_guards_do_to_answers_of_the_agent_goes_along() -> None:
    """Guards of the first tool have set it; those of the alternate add theirs; the endpoint reads the first call's."""

    async def second(asked: ToolCall) -> Reply:
        assert asked.outgoing is not None
        before = asked.outgoing
        asked.outgoing = lambda call, data, send: before(call, data, lambda told: send(told + b"2"))
        return Reply(200, [], OK)

    made = call(idempotent=True)
    made.outgoing = lambda call, data, send: send(data + b"1")
    await Alternate("two", "second", second).handle(made, Chain(lost(sent=False)))
    sent: list[bytes] = []
    made.outgoing(made, b"0", sent.append)
    assert sent == [b"012"]
