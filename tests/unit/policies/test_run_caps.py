"""What a run may use up, on a real counter; and when two calls are the same."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policies.floor import Time, answer, end, layer, model, parts, tool, who

from tollhouse.core.call import Call, ModelCall, ToolCall, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler, compose
from tollhouse.core.http import Headers, Request
from tollhouse.core.reply import Reply
from tollhouse.policies.admission import Taking, joined
from tollhouse.policies.holds import Holds
from tollhouse.policies.run_caps import RUN_CAPS, RunCaps
from tollhouse.policies.runs import RunsSpec
from tollhouse.store.base import Draw, Window
from tollhouse.store.seeding import seed

pytestmark = pytest.mark.anyio

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class NoRecords:
    """A ledger that has none."""

    is_stuck = False

    async def positions(self, deep: bool = False) -> dict[str, int]:
        return {}

    async def posts(self, journal: str, after: int, most: int) -> list[Any]:
        return []

    async def spent(self, asked: Sequence[tuple[Draw, Window, Any]]) -> list[int]:
        return [0] * len(asked)


def chain(time: Time | None = None, **spec: Any) -> Handler[Call, Reply]:
    made = parts(time, entrance="llm")

    async def opens(draws: Sequence[Draw]) -> None:
        await seed(made.counter, NoRecords(), draws)

    made = replace(made, opens=opens, holds=Holds(made.counter, made.clock))
    party: Any = RUN_CAPS.make((layer(RunsSpec.model_validate(spec)),), made)
    assert party is not None
    return compose((joined([party], made),), answer)


def of(run: str, call: Call) -> Call:
    call.context.run_id = run
    return call


async def refusal(handler: Handler[Call, Reply], call: Call) -> Failure:
    with pytest.raises(Failure) as caught:
        await handler(call)
    return caught.value


async def test_calls_of_models_and_of_tools_are_counted_apart() -> None:
    handler = chain(calls=2, tools=1)
    for _ in range(2):
        await handler(of("r", model()))
    assert "2 calls of models" in (await refusal(handler, of("r", model()))).message
    await handler(of("r", tool()))
    failure = await refusal(handler, of("r", tool()))
    assert (failure.status, failure.reason) == (429, Reason.BUDGET)
    assert "1 call of tools" in failure.message
    await handler(of("r", tool(method="tools/list")))
    await handler(of("r", tool(method="resources/read")))
    await handler(of("other", model()))
    for _ in range(5):
        await handler(of("", model()))


async def test_a_refused_call_takes_nothing() -> None:
    handler = chain(calls=2, same={"times": 1, "window": "1h"})
    first, second = (of("r", body(model(), word)) for word in (b"{1}", b"{2}"))
    await handler(first)
    for _ in range(5):
        call = of("r", body(model(), b"{1}"))
        assert "in a circle" in (await refusal(handler, call)).message
        assert call.context.limit == "run same"
    await handler(second)
    call = of("r", body(model(), b"{3}"))
    assert "2 calls of models" in (await refusal(handler, call)).message
    assert call.context.limit == "run calls"


def body(call: ModelCall, raw: bytes) -> ModelCall:
    call.body = raw
    return call


async def test_at_once() -> None:
    handler = chain(parallel=1)
    call = of("r", model())
    reply = await handler(call)
    failure = await refusal(handler, of("r", model()))
    assert failure.retry_after == 1.0
    assert "all that it may have at once: 1" in failure.message
    end(reply, call, Usage(1, 1))
    await handler(of("r", tool()))


async def test_tokens_are_held_before_they_are_known() -> None:
    handler = chain(tokens=100)
    await handler(of("r", model(estimate=60)))
    failure = await refusal(handler, of("r", model(estimate=60)))
    assert "100 tokens" in failure.message
    assert "40 tokens left" in failure.message


async def test_what_has_no_price_is_refused_where_money_is_bounded() -> None:
    failure = await refusal(chain(usd=1), of("r", model()))
    assert "nobody knows the price of the model 'smart'" in failure.message


def asked(arguments: bytes, name: str = "look", server: str = "shop") -> ToolCall:
    made = Request(b"POST", b"/mcp", Headers())
    made.context.principal = who()
    raw = {"arguments": msgspec.Raw(arguments)} if arguments else {}
    return ToolCall(made, made.context, server=server, method="tools/call", name=name, params=raw)


def key(call: Call) -> str | None:
    """What is counted as one with others of that key; None for what is not counted."""
    made = parts(entrance="mcp")
    taking = Taking(None, 0.0)
    call.context.run_id = "r"
    RunCaps(RunsSpec.model_validate({"same": {"times": 1}}), made).ask(call, taking)
    return taking.charges[0].key if taking.charges else None


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.randoms())
def test_the_same_arguments_in_whatever_form_are_the_same(arguments: dict[str, Any], random: Any) -> None:
    names = list(arguments)
    random.shuffle(names)
    other = {name: arguments[name] for name in names}
    plain = json.dumps(arguments).encode()
    spaced = json.dumps(other, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert key(asked(plain)) == key(asked(spaced))


@given(VALUES, VALUES)
def test_other_arguments_are_others(one: Any, other: Any) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (key(asked(json.dumps({"a": one}).encode())) == key(asked(json.dumps({"a": other}).encode()))) == same


def test_another_tool_or_server_is_another() -> None:
    keys = {key(asked(b"{}")), key(asked(b"{}", "buy")), key(asked(b"{}", server="bank")), key(asked(b""))}
    assert len(keys) == 4
    assert key(tool(method="tools/list")) is None
    assert key(model()) is None  # a call of no request


@pytest.mark.parametrize("nonsense", [b'{"a":1e999999}', b'"\\ud800"', b"[" * 100_000, b"{", b"\xff"])
def test_nonsense_is_the_same_nonsense(nonsense: bytes) -> None:
    assert key(asked(nonsense)) == key(asked(nonsense))
    assert key(asked(nonsense)) != key(asked(b"{}"))
