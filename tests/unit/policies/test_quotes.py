"""Quotes: a bound is never below what a provider charges; what has none says so."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policies.floor import request, who

from tollhouse.core.call import ModelCall, Usage
from tollhouse.ledger.prices import Origin, Prices, PriceSpec
from tollhouse.policies.quotes import (
    NO_CHANGES,
    Asked,
    Changes,
    Quotes,
    can_shorten,
    output_of,
    several_of,
    shorten,
    spent_of,
    tier_asked,
    worth,
)
from tollhouse.wire.llm import CHAT, COMPLETIONS, CONVERSE, COUNT_TOKENS, EMBEDDINGS, GEMINI, MESSAGES, RESPONSES
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
    PriceSpec.model_validate({"model": "drawing", "input": 1, "output": 4, "image_input": 6, "image_output": 30}),
    PriceSpec.model_validate({"model": "vector", "input": 1}),
    PriceSpec.model_validate({"model": "plain", "tier": "fast", "input": 6, "output": 24}),
    PriceSpec.model_validate({"model": "plain", "tier": "priority+fast", "input": 7, "output": 25}),
    PriceSpec.model_validate({"model": "plain", "tier": "priority", "input": 2, "output": 9}),
]


def quotes(*targets: str, factor: int = 1, changes: Changes = NO_CHANGES) -> Quotes:
    prices = Prices(None, {"p": Origin("openai")}, PRICES)
    return Quotes(
        prices,
        {
            "m": ([Asked("p", target) for target in targets], factor, changes),
            "w/*": ([Asked("p", "*")], 1, Changes()),
        }.get,
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
        (CHAT, {"max_tokens": 10, "n": 5000}, 50_000),
        (CHAT, {"max_tokens": 10, "n": "4"}, 40),  # some servers take it for a number
        (CHAT, {"max_tokens": 10, "n": 4.0}, 40),
        *((CHAT, {"max_tokens": 10, "n": none}, 10) for none in (None, 0, -1, "x", [], {}, True)),
        (COMPLETIONS, {"max_tokens": 10, "prompt": "x"}, 10),
        (COMPLETIONS, {"max_tokens": 10, "prompt": ["x", "y", "z"], "n": 2}, 60),
        (COMPLETIONS, {"max_tokens": 10, "prompt": [[5, 6], [7]], "best_of": 3, "n": 2}, 60),
        (COMPLETIONS, {"max_tokens": 10, "prompt": [5, 6, 7]}, 10),
        (COMPLETIONS, {"max_tokens": 10, "prompt": []}, 10),
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
    given = any(name in asked.fields for name in dialect.output_bounds)
    shorten(asked, 6 * several_of(asked))
    assert asked.bounded == (bool(dialect.output_bounds) and not given)
    assert output_of(asked) == 6 * several_of(asked)


def test_what_is_no_form_bounds_nothing_and_stays_for_the_provider_to_refuse() -> None:
    asked = call(GENERATE, generationConfig=5)
    shorten(asked, 6)
    assert (output_of(asked), bytes(asked.fields["generationConfig"])) == (-1, b"5")


def test_prices_are_those_of_the_dearest_target() -> None:
    assert quotes("plain").of(call()).rates == (10**9, 4 * 10**9, 0)
    assert quotes("plain", "cached").of(call()).rates == (2 * 10**9, 5 * 10**9, 0)  # which its provider may decide
    assert quotes("plain", "cached").of(call(MESSAGES)).rates == (10**9, 5 * 10**9, 0)
    assert quotes("tiered").of(call()).rates == (2 * 10**9, 8 * 10**9, 0)
    assert quotes("plain", factor=2).of(call()).rates == (2 * 10**9, 8 * 10**9, 0)
    message = {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}
    assert quotes("cached").of(call(MESSAGES, messages=[message])).rates == (3 * 10**9, 5 * 10**9, 0)
    assert quotes("loud").of(call()).rates == (10**9, 4 * 10**9, 0)
    assert quotes("loud").of(call(audio={"voice": "x"}, modalities=["audio"])).rates == (9 * 10**9, 20 * 10**9, 0)
    assert quotes("plain").of(call(service_tier="priority")).rates == (2 * 10**9, 9 * 10**9, 0)
    assert quotes().of(call(name="w/plain")).rates == (10**9, 4 * 10**9, 0)


def test_a_price_that_rises_is_held_before_it_does() -> None:
    """A call is priced when it ends."""
    rise = datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    told = [{"model": "m", "input": 1, "output": 4}, {"model": "m", "input": 2, "output": 8, "from": "2027-01-01"}]
    prices = Prices(None, {"p": Origin("openai")}, [PriceSpec.model_validate(one) for one in told])
    named = {"m": ([Asked("p", "m")], 1, NO_CHANGES)}
    rates = []
    for at in (rise - 301, rise - 299, rise + 1):
        made = Quotes(prices, named.get, lambda at=at: at)
        rates.append(made.of(call()).rates)
    assert rates == [(10**9, 4 * 10**9, 0), (2 * 10**9, 8 * 10**9, 0), (2 * 10**9, 8 * 10**9, 0)]


def test_pictures_and_sound_have_their_own_price_in_answers_and_prompts() -> None:
    made = quotes("drawing")
    assert made.of(call()).rates == (10**9, 30 * 10**9, 0)  # what draws may do it unasked
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    assert made.of(call(messages=[{"role": "user", "content": [picture]}])).rates == (6 * 10**9, 30 * 10**9, 0)
    spoken = call(GENERATE, generationConfig={"responseModalities": ["AUDIO"]})
    assert quotes("loud").of(spoken).rates == (9 * 10**9, 20 * 10**9, 0)
    session = call()
    session.dialect, session.reserve = None, 100  # an answer in a realtime session
    assert quotes("loud").of(session).rates == (20 * 10**9, 20 * 10**9, 0)


@pytest.mark.parametrize(
    "dialect, fields, tier",
    [
        (CHAT, {"service_tier": "priority"}, "priority"),
        (CHAT, {"service_tier": "auto"}, ""),
        (CHAT, {"service_tier": "default"}, ""),
        (CHAT, {"service_tier": None}, ""),
        (CHAT, {"service_tier": 5}, ""),
        (CHAT, {"speed": "fast"}, ""),  # no field of this API
        (GENERATE, {"serviceTier": "PRIORITY"}, "priority"),
        (GENERATE, {"serviceTier": "SERVICE_TIER_PRIORITY"}, "priority"),
        (CONVERSE, {"serviceTier": {"type": "priority"}}, "priority"),
        (MESSAGES, {"service_tier": "standard_only"}, ""),
        (MESSAGES, {"speed": "fast"}, "fast"),
        (MESSAGES, {"speed": "standard"}, ""),
        (MESSAGES, {"speed": "fast", "service_tier": "priority"}, "priority+fast"),
    ],
)
def test_the_tier_that_is_asked_for(dialect: Dialect, fields: dict[str, Any], tier: str) -> None:
    asked = call(dialect, **fields)
    assert tier_asked(asked) == tier
    rates = {"": (1, 4), "priority": (2, 9), "fast": (6, 24), "priority+fast": (7, 25)}[tier]
    assert quotes("plain").of(asked).rates == (rates[0] * 10**9, rates[1] * 10**9, 0)


def test_a_tier_or_an_answer_without_a_price_is_not_free() -> None:
    made, asked = quotes("plain"), call(service_tier="flex", max_tokens=5)
    assert made.of(asked).rates is None
    usual = made.at_usual_price(asked, made.of(asked))
    assert (usual.rates, usual.output) == ((10**9, 4 * 10**9, 0), 5)
    assert quotes("vector").of(call(max_tokens=5)).rates is None
    assert quotes("vector").of(call(EMBEDDINGS, input="x")).rates == (10**9, 0, 0)


def test_to_count_tokens_is_free_also_where_no_price_is_known() -> None:
    counting = quotes("other").of(call(COUNT_TOKENS, messages=[]))
    assert (counting.free, counting.input) == (True, 0)


def test_what_transforms_make_of_a_request_is_held_as_well() -> None:
    asked = call(MESSAGES, max_tokens=16)
    plain, changed = (quotes("plain", changes=c).of(asked) for c in (Changes(), Changes(5000, 900, ("fast", "flex"))))
    assert (changed.input, changed.output) == (plain.input + 5000, 900)
    assert changed.rates == (6 * 10**9, 24 * 10**9, 0)
    assert quotes("plain", changes=Changes(0, 9)).of(asked).output == 16
    assert quotes("plain", changes=Changes(0, 90)).of(call(CHAT, max_tokens=16, n=3)).output == 270
    for name in ("candidateCount", "candidate_count"):
        several = call(GENERATE, generationConfig={"maxOutputTokens": 16, name: 3})
        assert quotes("plain", changes=Changes(0, 90)).of(several).output == 270
    assert quotes("plain", changes=Changes(0, -1)).of(asked).output == -1
    assert quotes("plain", changes=Changes(0, 9)).of(call(MESSAGES)).output == -1
    assert quotes("plain", changes=Changes(0, 9)).of(call(EMBEDDINGS, input="x")).output == 0


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


def test_what_is_predicted_is_paid_like_an_answer() -> None:
    asked = call(max_tokens=10, prediction={"type": "content", "content": "x" * 500})
    assert quotes("plain").of(asked).output > 510
    assert output_of(asked) == 10


RATES = st.fixed_dictionaries(
    {"input": st.integers(0, 100), "output": st.integers(0, 100)},
    optional={
        kind: st.integers(0, 200)
        for kind in ("cache_read", "cache_write", "cache_write_1h", "reasoning", "audio_input", "audio_output",
                     "image_input", "image_output", "request")
    },
)  # fmt: skip


@given(RATES, RATES, st.booleans(), st.data())
def test_no_kind_of_tokens_costs_more_than_is_held(
    rates: dict[str, int], others: dict[str, int], rich: bool, data: st.DataObject
) -> None:
    """rich: sound, pictures and a part that is to be kept are in the request, so these kinds may be in its usage."""
    over = {name: usd for name, usd in others.items() if name != "request"}
    spec = PriceSpec.model_validate({"model": "m", **rates, "over": [{"tokens": 20, **over}]})
    picture = {"type": "image_url", "image_url": {"url": "https://x"}, "cache_control": {"type": "ephemeral"}}
    content = [picture, {"type": "input_audio", "input_audio": {}}] if rich else "hello"
    asked = call(messages=[{"role": "user", "content": content}], max_tokens=50)
    named = {"m": ([Asked("p", "m")], 1, NO_CHANGES)}
    quote = Quotes(Prices(None, {"p": Origin("openai")}, [spec]), named.get).of(asked)

    def part(most: int) -> int:
        return data.draw(st.integers(0, most))

    usage = Usage(part(quote.input), part(quote.output))
    usage.cache_read = part(quote.input - usage.input)
    usage.cache_write = part(quote.input - usage.input - usage.cache_read)
    usage.reasoning = part(usage.output)
    usage.image_output = part(usage.output - usage.reasoning)
    if rich:
        usage.cache_write_1h = part(usage.cache_write)
        usage.audio_input = part(usage.input)
        usage.image_input = part(usage.input - usage.audio_input)
        usage.audio_output = part(usage.output - usage.reasoning - usage.image_output)
    cost = spec.schedule().cost(usage)
    assert cost is not None
    assert cost <= quote.cost(quote.input, quote.output)


def test_what_is_not_in_the_body_is_open() -> None:
    assert quotes("plain").of(call(RESPONSES, previous_response_id="r", input="x")).open
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/x.png"}}
    quote = quotes("plain").of(call(messages=[{"role": "user", "content": [picture]}]))
    assert quote.open
    assert quote.input > 4000


LETTERS = "A" * 50_000
URL = f"data:image/png;base64,{LETTERS}=="


@pytest.mark.parametrize(
    "dialect, part",
    [
        (CHAT, {"type": "image_url", "image_url": {"url": URL}}),
        (CHAT, {"type": "input_audio", "input_audio": {"data": LETTERS, "format": "wav"}}),
        (CHAT, {"type": "file", "file": {"file_data": URL}}),
        (RESPONSES, {"type": "input_image", "image_url": URL}),
        (MESSAGES, {"type": "image", "source": {"type": "base64", "data": LETTERS}}),
        (GENERATE, {"inlineData": {"mimeType": "image/png", "data": LETTERS}}),
        (CONVERSE, {"image": {"format": "png", "source": {"bytes": LETTERS}}}),
    ],
)
def test_a_file_is_counted_as_what_it_stands_for(dialect: Dialect, part: Any) -> None:
    quote = quotes("plain").of(call(dialect, messages=[{"role": "user", "content": [part, part]}]))
    assert 8_000 < quote.input < 40_000
    assert quote.open


@pytest.mark.parametrize("text", [LETTERS, URL, f"look: {URL}", f'{{"data":"{LETTERS}"}}', f'"{URL}"'])
def test_letters_without_end_are_as_many_tokens_as_they_may_be(text: str) -> None:
    """A text that looks like a file is read, and paid."""
    parts = [{"type": "text", "text": f"see {text}"}, {"type": "text", "text": text}]
    quote = quotes("plain").of(call(messages=[{"role": "user", "content": parts}]))
    assert quote.input > 100_000
    assert not quote.open


@pytest.mark.parametrize(
    "dialect, fields",
    [
        (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        (MESSAGES, {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}),
        (MESSAGES, {"mcp_servers": [{"type": "url", "name": "x"}]}),
        (RESPONSES, {"tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}),
        (RESPONSES, {"tools": [{"type": "mcp", "server_label": "x"}]}),
        (RESPONSES, {"prompt": {"id": "pmpt_1"}}),
        (CHAT, {"web_search_options": {}}),
        (CHAT, {"tools": [{"type": "browser_search"}]}),
        (GENERATE, {"tools": [{"google_search": {}}]}),
        (GENERATE, {"tools": [{"googleSearch": {}}, {"urlContext": {}}]}),
        (CONVERSE, {"toolConfig": {"tools": [{"systemTool": {"name": "nova_grounding"}}]}}),
    ],
)
def test_what_the_provider_itself_reads_is_open(dialect: Dialect, fields: dict[str, Any]) -> None:
    assert quotes("plain").of(call(dialect, **fields)).open


def test_models_that_search_by_themselves_and_tools_of_the_caller() -> None:
    prices = Prices(None, {}, [])
    named = {name: ([Asked("p", name)], 1, Changes()) for name in ("sonar-pro", "o4-mini-deep-research", "other")}
    opened = [Quotes(prices, named.get).of(call(name=name)).open for name in named]
    assert opened == [True, True, False]
    own = {"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}
    assert not quotes("plain").of(call(tools=[own])).open


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
