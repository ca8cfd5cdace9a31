"""Quotes: a bound is never below what a provider charges; what has none says so."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policies.floor import request, who

from tollhouse.core.call import ModelCall, Usage
from tollhouse.ledger.prices import Origin, Prices, PriceSpec
from tollhouse.policies.quotes import Asked, Quotes, can_shorten, output_of, shorten, spent_of, worth
from tollhouse.wire.llm import CHAT, CONVERSE, GEMINI, MESSAGES, RESPONSES
from tollhouse.wire.llm.dialect import Dialect

GENERATE = next(one for one in GEMINI if one.operation == "generate")
PRICES = [
    PriceSpec.model_validate({"model": "plain", "input": 1, "output": 4}),
    PriceSpec.model_validate(
        {"model": "cached", "input": 1, "output": 4, "cache_write": 2, "cache_write_1h": 3, "reasoning": 5}
    ),
    PriceSpec.model_validate(
        {"model": "tiered", "input": 1, "output": 4, "over": [{"tokens": 10, "input": 2, "output": 8}]}
    ),
    PriceSpec.model_validate({"model": "loud", "input": 1, "output": 4, "audio_input": 9, "audio_output": 20}),
    PriceSpec.model_validate({"model": "nothing", "input": 0, "output": 0}),
    PriceSpec.model_validate({"model": "plain", "tier": "priority", "input": 2, "output": 9}),
]


def quotes(*targets: str, factor: int = 1) -> Quotes:
    prices = Prices(None, {"p": Origin("openai")}, PRICES)
    return Quotes(
        prices, {"m": ([Asked("p", target) for target in targets], factor), "w/*": ([Asked("p", "*")], 1)}.get
    )


def call(dialect: Dialect = CHAT, name: str = "m", **fields: Any) -> ModelCall:
    made = request(principal=who())
    body = json.dumps({"model": name, **fields}).encode()
    read = dialect.decode(body, model=name, stream=False)
    label = "w/*" if name.startswith("w/") else name
    return ModelCall(
        made,
        made.context,
        dialect=dialect,
        operation=dialect.operation,
        model=name,
        label=label,
        stream=False,
        fields=read.fields,
        body=body,
    )


NO_BOUND: tuple[Any, ...] = (None, 0, -1, 0.5, 1e308, "10", [], {}, True)


@pytest.mark.parametrize(
    "dialect, fields, bound",
    [
        (CHAT, {}, -1),
        (CHAT, {"max_tokens": 1024}, 1024),  # also what is reserved without a bound
        (CHAT, {"max_completion_tokens": 7, "n": 3}, 21),
        (CHAT, {"max_completion_tokens": 7, "max_tokens": 900}, 900),  # who knows only one of them
        (CHAT, {"n": 3}, -1),
        *((CHAT, {"max_tokens": none}, -1) for none in NO_BOUND),
        (CHAT, {"max_tokens": 10**30}, 1 << 20),
        (RESPONSES, {"max_output_tokens": None}, -1),
        (GENERATE, {"generationConfig": {"candidateCount": 2}}, -1),
        (GENERATE, {"generationConfig": {"maxOutputTokens": -9, "candidateCount": 2}}, -1),
        (GENERATE, {"generation_config": {"max_output_tokens": 11, "candidateCount": 2}}, 22),
        (CONVERSE, {"inferenceConfig": {"maxTokens": -1}}, -1),
        (RESPONSES, {"max_output_tokens": 9}, 9),
        (MESSAGES, {"max_tokens": 5}, 5),
        (GENERATE, {"generationConfig": {"maxOutputTokens": 11}}, 11),
        (GENERATE, {}, -1),
        (CONVERSE, {"inferenceConfig": {"maxTokens": 12}}, 12),
        (CONVERSE, {"inferenceConfig": {}}, -1),
    ],
)
def test_what_callers_allow(dialect: Dialect, fields: dict[str, Any], bound: int) -> None:
    asked = call(dialect, **fields)
    assert output_of(asked) == bound
    assert can_shorten(asked)
    shorten(asked, 6)
    assert output_of(asked) == 6


def test_what_is_no_form_bounds_nothing_and_stays_for_the_provider_to_refuse() -> None:
    asked = call(GENERATE, generationConfig=5)
    shorten(asked, 6)
    assert (output_of(asked), bytes(asked.fields["generationConfig"])) == (-1, b"5")


def test_prices_are_those_of_the_dearest_target() -> None:
    assert quotes("plain").of(call()).rates == (10**9, 4 * 10**9, 0)
    assert quotes("plain", "cached").of(call()).rates == (10**9, 5 * 10**9, 0)
    assert quotes("tiered").of(call()).rates == (2 * 10**9, 8 * 10**9, 0)
    assert quotes("plain", factor=2).of(call()).rates == (2 * 10**9, 8 * 10**9, 0)
    message = {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
    assert quotes("cached").of(call(MESSAGES, messages=[message])).rates == (3 * 10**9, 5 * 10**9, 0)
    assert quotes("loud").of(call()).rates == (10**9, 4 * 10**9, 0)
    assert quotes("loud").of(call(audio={"voice": "x"}, modalities=["audio"])).rates == (9 * 10**9, 20 * 10**9, 0)
    assert quotes("plain").of(call(service_tier="priority")).rates == (2 * 10**9, 9 * 10**9, 0)
    assert quotes().of(call(name="w/plain")).rates == (10**9, 4 * 10**9, 0)


def test_a_price_that_is_not_known_is_none_and_one_of_nothing_is_free() -> None:
    unknown = quotes("plain", "other").of(call())
    assert (unknown.rates, unknown.free, unknown.cost(10, 10)) == (None, False, 0)
    assert quotes("nothing").of(call()).free
    assert Quotes(None, lambda _: None).of(call()).rates is None


@given(st.text(max_size=400), st.integers(1, 5000), st.lists(st.text(max_size=20), max_size=4))
def test_a_bound_is_a_bound(text: str, output: int, more: list[str]) -> None:
    messages = [{"role": "user", "content": one} for one in (text, *more)]
    quote = quotes("plain").of(call(messages=messages, max_tokens=output))
    letters = sum(len(one.encode("utf-8", "surrogatepass")) for one in (text, *more))
    # In a vocabulary of bytes a token is a byte at least; and what a message's frame may take besides.
    assert quote.input >= letters + 8 * len(messages)
    assert quote.estimate <= quote.input
    assert quote.output == output
    assert not quote.open
    exact = (letters * 10**9 + output * 4 * 10**9) / 10**6
    assert quote.cost(quote.input, quote.output) >= exact
    assert worth("usd", quote, quote.output) == quote.cost(quote.input, output)
    assert worth("tokens", quote, 3) == quote.input + 3


def test_what_is_not_in_the_body_is_open() -> None:
    assert quotes("plain").of(call(RESPONSES, previous_response_id="r", input="x")).open
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    quote = quotes("plain").of(call(messages=[{"role": "user", "content": [picture]}]))
    assert quote.open
    assert quote.input > 4000
    inline = quotes("plain").of(call(messages=[{"role": "user", "content": "A" * 50_000}]))
    assert inline.input < 10_000  # base64 is counted as what it stands for


def test_how_long_answers_are() -> None:
    made = quotes("plain")
    assert made.likely("m") == 1024
    for n in range(1, 301):
        made.note("m", n)
    assert made.likely("m") == 291  # of the last 200
    made.note("m", 0)
    made.note("other", 5)
    assert made.likely("other") == 1024


def test_what_a_record_came_to() -> None:
    usage = Usage(10, 5, cache_read=3, cache_write=2)
    units = {
        unit: spent_of(unit, usage, 77, True) for unit in ("usd", "tokens", "input_tokens", "output_tokens", "calls")
    }
    assert units == {"usd": 77, "tokens": 20, "input_tokens": 15, "output_tokens": 5, "calls": 1}
    assert [spent_of(unit, None, None, False) for unit in ("usd", "tokens", "calls")] == [0, 0, 0]
