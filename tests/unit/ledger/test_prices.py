"""ledger.prices: costs worked out by hand for what each provider says it used, and whose price counts."""

from time import perf_counter
from typing import Any

import msgspec
import pytest
from pydantic import ValidationError

from tollhouse.core.call import Context, Share, Usage
from tollhouse.core.errors import ConfigError
from tollhouse.ledger.catalogue import Catalogue
from tollhouse.ledger.prices import Origin, Prices, PriceSpec
from tollhouse.wire.eventstream import frame as message
from tollhouse.wire.llm import CHAT, CODECS, CONVERSE, GENERATE, MESSAGES, RESPONSES
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.model import Used
from tollhouse.wire.sse import frame

OWN = "https://api.openai.com/v1"
PROVIDERS = {
    "openai": Origin("openai", OWN),
    "claude": Origin("anthropic", "https://api.anthropic.com"),
    "ours": Origin("openai", "http://127.0.0.1:9000/v1"),
    "bedrock": Origin("bedrock"),
    "gemini": Origin("gemini"),
    "azure": Origin("azure", "https://ours.openai.azure.com"),
    "here": Origin("local"),
}
TABLE: list[dict[str, Any]] = [
    {
        "provider": "ours", "model": "gpt-test", "input": 2, "cache_read": 0.5, "cache_write": 2.5, "output": 8,
        "reasoning": 9, "audio_input": 32, "audio_output": 64,
    },
    {
        "provider": "claude", "model": "claude-test", "input": 3, "cache_read": 0.3, "cache_write": 3.75,
        "cache_write_1h": 6, "output": 15,
        "over": [{"tokens": 200_000, "input": 6, "cache_read": 0.6, "cache_write": 7.5, "output": 22.5}],
    },
    {
        "provider": "gemini", "model": "gemini-test", "input": 1.25, "cache_read": 0.125, "output": 10,
        "audio_input": 4,
    },
    {
        "provider": "bedrock", "model": "test.model-v1:0", "input": 1, "cache_read": 0.1, "cache_write": 1.25,
        "cache_write_1h": 2, "output": 5,
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load()


def prices(*overrides: dict[str, Any], catalogue: Catalogue | None = None) -> Prices:
    return Prices(catalogue, PROVIDERS, [PriceSpec.model_validate(spec) for spec in overrides])


def cost(of: Prices, provider: str, model: str, usage: Usage, sent: str = "") -> int | None:
    return of.cost(Context(backend=provider, model_answered=model, model_sent=sent, usage=usage))


CHAT_USAGE = {
    "prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 512, "audio_tokens": 70},
    "completion_tokens_details": {"reasoning_tokens": 192, "audio_tokens": 8},
}  # fmt: skip
# 2006 - 1024 - 512 = 470 of which 70 sound; 300, of which 192 thoughts and 8 sound
CHAT_COST = 400 * 2_000 + 70 * 32_000 + 1024 * 500 + 512 * 2_500 + 100 * 8_000 + 192 * 9_000 + 8 * 64_000

RESPONSES_USAGE = {
    "input_tokens": 328, "input_tokens_details": {"cached_tokens": 128, "cache_write_tokens": 100},
    "output_tokens": 52, "output_tokens_details": {"reasoning_tokens": 32}, "total_tokens": 380,
}  # fmt: skip
RESPONSES_COST = 100 * 2_000 + 128 * 500 + 100 * 2_500 + 20 * 8_000 + 32 * 9_000

MESSAGES_USAGE = {
    "input_tokens": 21, "cache_creation_input_tokens": 556, "cache_read_input_tokens": 1800,
    "cache_creation": {"ephemeral_5m_input_tokens": 456, "ephemeral_1h_input_tokens": 100},
    "output_tokens": 393, "output_tokens_details": {"thinking_tokens": 200},
}  # fmt: skip
MESSAGES_COST = 21 * 3_000 + 456 * 3_750 + 100 * 6_000 + 1800 * 300 + 393 * 15_000

BEGUN = {**MESSAGES_USAGE, "output_tokens": 1, "output_tokens_details": None}

LONG_USAGE = {"input_tokens": 1_000, "cache_read_input_tokens": 199_001, "output_tokens": 10}
LONG_COST = 1_000 * 6_000 + 199_001 * 600 + 10 * 22_500

CONVERSE_USAGE = {
    "inputTokens": 30, "outputTokens": 20, "totalTokens": 1650, "cacheReadInputTokens": 1000,
    "cacheWriteInputTokens": 600,
    "cacheDetails": [{"ttl": "5m", "inputTokens": 500}, {"ttl": "1h", "inputTokens": 100}],
}  # fmt: skip
CONVERSE_COST = 30 * 1_000 + 1000 * 100 + 500 * 1_250 + 100 * 2_000 + 20 * 5_000

GEMINI_USAGE = {
    "promptTokenCount": 1100, "cachedContentTokenCount": 1000, "candidatesTokenCount": 4, "thoughtsTokenCount": 60,
    "toolUsePromptTokenCount": 50, "totalTokenCount": 1214,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1040}, {"modality": "AUDIO", "tokenCount": 60}],
}  # fmt: skip
# 1100 + 50 - 1000 = 150, of which 60 sound; thoughts are paid as output
GEMINI_COST = 90 * 1_250 + 60 * 4_000 + 1000 * 125 + 64 * 10_000


def events(*data: dict[str, Any]) -> list[bytes]:
    return [frame(msgspec.json.encode(d), d["type"].encode()) for d in data]


def chunks(*data: dict[str, Any]) -> list[bytes]:
    return [*(frame(msgspec.json.encode(d)) for d in data), frame(b"[DONE]")]


UNARY: list[tuple[str, str, Dialect, dict[str, Any], int]] = [
    ("ours", "gpt-test", CHAT, {"model": "gpt-test", "choices": [], "usage": CHAT_USAGE}, CHAT_COST),
    ("ours", "gpt-test", RESPONSES, {"model": "gpt-test", "output": [], "usage": RESPONSES_USAGE}, RESPONSES_COST),
    ("claude", "claude-test", MESSAGES, {"model": "claude-test", "usage": MESSAGES_USAGE}, MESSAGES_COST),
    ("claude", "claude-test", MESSAGES, {"model": "claude-test", "usage": LONG_USAGE}, LONG_COST),
    ("bedrock", "test.model-v1:0", CONVERSE, {"stopReason": "end_turn", "usage": CONVERSE_USAGE}, CONVERSE_COST),
    ("gemini", "gemini-test", GENERATE, {"modelVersion": "gemini-test", "usageMetadata": GEMINI_USAGE}, GEMINI_COST),
]
STREAMED: list[tuple[str, str, Dialect, list[bytes], int]] = [
    (
        "ours", "gpt-test", CHAT,
        chunks(
            {"model": "gpt-test", "choices": [{"index": 0, "delta": {"content": "Hi"}}]},
            {"model": "gpt-test", "choices": [], "usage": CHAT_USAGE},
        ),
        CHAT_COST,
    ),
    (
        "ours", "gpt-test", RESPONSES,
        events(
            {"type": "response.created", "response": {"model": "gpt-test", "usage": None}},
            {"type": "response.output_text.delta", "delta": "Hi"},
            {"type": "response.completed", "response": {"model": "gpt-test", "usage": RESPONSES_USAGE}},
        ),
        RESPONSES_COST,
    ),
    (
        "claude", "claude-test", MESSAGES,
        events(
            {"type": "message_start", "message": {"model": "claude-test", "usage": BEGUN}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 393}},
            {"type": "message_stop"},
        ),
        MESSAGES_COST,
    ),
    (
        "bedrock", "test.model-v1:0", CONVERSE,
        [
            message(b"contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"Hi"}}'),
            message(b"messageStop", b'{"stopReason":"end_turn"}'),
            message(b"metadata", msgspec.json.encode({"usage": CONVERSE_USAGE})),
        ],
        CONVERSE_COST,
    ),
    (
        "gemini", "gemini-test", GENERATE,
        chunks(
            {"candidates": [{"index": 0, "content": {"parts": [{"text": "Hi"}]}}], "modelVersion": "gemini-test",
             "usageMetadata": {"promptTokenCount": 1100, "candidatesTokenCount": 1}},
            {"candidates": [{"index": 0, "finishReason": "STOP"}], "usageMetadata": GEMINI_USAGE},
        )[:-1],
        GEMINI_COST,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "model", "dialect", "answer", "expected"), UNARY)
def test_a_whole_answer(provider: str, model: str, dialect: Dialect, answer: dict[str, Any], expected: int) -> None:
    usage, answered = dialect.answer(msgspec.json.encode(answer))
    assert usage is not None
    assert cost(prices(*TABLE), provider, answered, usage, sent=model) == expected


@pytest.mark.parametrize(("provider", "model", "dialect", "blocks", "expected"), STREAMED)
def test_a_stream(provider: str, model: str, dialect: Dialect, blocks: list[bytes], expected: int) -> None:
    reader = dialect.reader(strip=False)
    for block in blocks:
        reader.read(block)
    assert reader.finished
    assert reader.counted
    assert reader.usage is not None
    assert cost(prices(*TABLE), provider, reader.model, reader.usage, sent=model) == expected


# ---- service tiers
TIERS: list[dict[str, Any]] = [
    *TABLE,
    {"provider": "ours", "model": "gpt-test", "tier": "flex", "input": 1, "output": 4},
    {"provider": "claude", "model": "claude-test", "tier": "Priority", "input": 6, "cache_read": 0.6, "output": 30},
    {"provider": "gemini", "model": "gemini-*", "tier": "*", "input": 0.625, "output": 5},
    {"provider": "bedrock", "model": "test.model-v1:0", "tier": "flex", "input": 0.5, "output": 2.5},
]
PLAIN = {"prompt_tokens": 1000, "completion_tokens": 100}
TWO = {"input_tokens": 1000, "output_tokens": 100}
GOOGLE = {"promptTokenCount": 1000, "candidatesTokenCount": 100}
AMAZON = {"inputTokens": 1000, "outputTokens": 100}
TIERED: list[tuple[str, Dialect, dict[str, Any], int | None]] = [
    ("ours", CHAT, {"service_tier": "flex", "usage": PLAIN}, 1000 * 1_000 + 100 * 4_000),
    ("ours", CHAT, {"service_tier": "default", "usage": PLAIN}, 1000 * 2_000 + 100 * 8_000),
    ("ours", CHAT, {"service_tier": None, "usage": PLAIN}, 1000 * 2_000 + 100 * 8_000),
    ("ours", CHAT, {"service_tier": "priority", "usage": PLAIN}, None),
    ("ours", CHAT, {"service_tier": "scale", "usage": PLAIN}, None),
    ("ours", RESPONSES, {"service_tier": "flex", "usage": TWO}, 1000 * 1_000 + 100 * 4_000),
    ("ours", RESPONSES, {"service_tier": "priority", "usage": TWO}, None),
    ("claude", MESSAGES, {"usage": {**TWO, "service_tier": "standard"}}, 1000 * 3_000 + 100 * 15_000),
    (
        "claude", MESSAGES, {"usage": {**TWO, "service_tier": "priority", "cache_read_input_tokens": 500}},
        1000 * 6_000 + 500 * 600 + 100 * 30_000,
    ),
    ("claude", MESSAGES, {"usage": {**TWO, "service_tier": "batch"}}, None),
    ("claude", MESSAGES, {"usage": {**TWO, "service_tier": "standard", "speed": "fast"}}, None),
    ("gemini", GENERATE, {"usageMetadata": {**GOOGLE, "serviceTier": "flex"}}, 1000 * 625 + 100 * 5_000),
    ("gemini", GENERATE, {"usageMetadata": {**GOOGLE, "serviceTier": "standard"}}, 1000 * 1_250 + 100 * 10_000),
    ("bedrock", CONVERSE, {"usage": AMAZON, "serviceTier": {"type": "flex"}}, 1000 * 500 + 100 * 2_500),
    ("bedrock", CONVERSE, {"usage": AMAZON, "serviceTier": {"type": "default"}}, 1000 * 1_000 + 100 * 5_000),
    ("bedrock", CONVERSE, {"usage": AMAZON, "serviceTier": {"type": "reserved"}}, None),
]  # fmt: skip
NAMES = {"ours": "gpt-test", "claude": "claude-test", "gemini": "gemini-test", "bedrock": "test.model-v1:0"}


@pytest.mark.parametrize(("provider", "dialect", "answer", "expected"), TIERED)
def test_the_tier_that_answered(provider: str, dialect: Dialect, answer: dict[str, Any], expected: int | None) -> None:
    usage, _ = dialect.answer(msgspec.json.encode(answer))
    assert usage is not None
    assert cost(prices(*TIERS), provider, "", usage, sent=NAMES[provider]) == expected


@pytest.mark.parametrize(("provider", "dialect", "answer", "expected"), TIERED)
def test_the_tier_that_answered_another_api(
    provider: str, dialect: Dialect, answer: dict[str, Any], expected: int | None
) -> None:
    """The same, where the answer is translated."""
    said = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "output": [] if dialect is RESPONSES else {"message": {"role": "assistant", "content": [{"text": "Hi"}]}},
        "content": [{"type": "text", "text": "Hi"}],
        "candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}],
    }
    read = CODECS[dialect.operation].decode_answer(msgspec.json.encode({**said, **answer}))
    assert cost(prices(*TIERS), provider, "", read.usage, sent=NAMES[provider]) == expected


def test_the_tier_of_a_stream() -> None:
    chunk = {"model": "gpt-test", "service_tier": "flex"}
    told = chunks(
        {**chunk, "choices": [{"index": 0, "delta": {"content": "Hi"}}]}, {**chunk, "choices": [], "usage": PLAIN}
    )
    completed = {"type": "response.completed", "response": {"model": "gpt-test", "service_tier": "flex", "usage": TWO}}
    created = {"type": "response.created", "response": {"model": "gpt-test", "service_tier": "auto", "usage": None}}
    begun = {"type": "message_start", "message": {"model": "m", "usage": {**TWO, "service_tier": "priority"}}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 100}}
    metadata = msgspec.json.encode({"usage": AMAZON, "serviceTier": {"type": "flex"}})
    google = {
        "candidates": [{"index": 0, "finishReason": "STOP"}],
        "usageMetadata": {**GOOGLE, "trafficType": "ON_DEMAND_FLEX"},
    }
    streams: list[tuple[Dialect, list[bytes], str]] = [
        (CHAT, told, "flex"),
        (RESPONSES, events(created, completed), "flex"),
        (MESSAGES, events(begun, delta, {"type": "message_stop"}), "priority"),
        (CONVERSE, [message(b"messageStop", b'{"stopReason":"end_turn"}'), message(b"metadata", metadata)], "flex"),
        (GENERATE, chunks(google)[:-1], "flex"),
    ]
    for dialect, blocks, tier in streams:
        reader = dialect.reader(strip=False)
        for block in blocks:
            reader.read(block)
        assert reader.usage == Usage(1000, 100, tier=tier)
        decoder = CODECS[dialect.operation].decoder()
        used = [
            event.usage
            for block in blocks
            for name, data in dialect.events(block)
            for event in decoder.read(name, data)
            if isinstance(event, Used)
        ]
        assert used[-1] == Usage(1000, 100, tier=tier)


def test_a_stream_that_is_left_has_a_tier() -> None:
    reader = CHAT.reader(strip=False)
    reader.read(chunks({"service_tier": "flex", "choices": [{"index": 0, "delta": {"content": "Hi"}}]})[0])
    assert reader.usage is not None
    assert (reader.usage.tier, reader.counted) == ("flex", False)


def test_whose_tier_counts(catalogue: Catalogue) -> None:
    used = Usage(1000, 100, tier="flex")
    known = prices(catalogue=catalogue)
    at = 1_795_000_000.0  # 18 November 2026
    half, whole = known.rates("openai", "gpt-5", at, "flex"), known.rates("openai", "gpt-5", at)
    assert half is not None
    assert whole is not None
    assert half.cost(used) == 1000 * 625 + 100 * 5_000
    assert whole.cost(used) == 1000 * 1_250 + 100 * 10_000
    assert known.rates("openai", "gpt-5", 1_700_000_000.0, "flex") is None  # the catalogue knows no price of that time
    assert known.rates("openai", "gpt-5", at, "scale") is None
    assert known.rates("openai", "gpt-4o-2024-05-13", at, "flex") is None
    assert cost(prices(), "here", "m", used) == 0
    own = {"provider": "openai", "model": "gpt-5*", "input": 1, "output": 8}
    assert prices(own, catalogue=catalogue).rates("openai", "gpt-5", at, "flex") is None  # a contract of theirs
    like = prices({"provider": "ours", "model": "*", "like": "openai"}, catalogue=catalogue)
    found = like.rates("ours", "gpt-5", at, "flex")
    assert found is not None
    assert found.cost(used) == 1000 * 625 + 100 * 5_000
    any_tier = prices({"provider": "ours", "model": "*", "tier": "*", "input": 1, "output": 1})
    assert cost(any_tier, "ours", "m", used) == cost(any_tier, "ours", "m", Usage(1000, 100)) == 1_100_000
    both = prices(
        {"model": "m", "tier": "*", "input": 1, "output": 1}, {"model": "m", "tier": "flex", "input": 2, "output": 1}
    )
    assert cost(both, "ours", "m", Usage(1, 0, tier="flex")) == 2_000
    assert cost(both, "ours", "m", Usage(1, 0, tier="batch")) == 1_000


# ---- whose price counts
def test_the_catalogue_prices_a_provider_at_its_own_address(catalogue: Catalogue) -> None:
    known = prices(catalogue=catalogue)
    usage = Usage(1000, 100)
    assert cost(known, "openai", "gpt-4o-2024-08-06", usage) == 1000 * 2_500 + 100 * 10_000
    assert cost(known, "openai", "", usage, sent="gpt-4o") == 1000 * 2_500 + 100 * 10_000
    assert cost(known, "azure", "gpt-4o-2024-08-06", usage, sent="our-deployment") == 1000 * 2_500 + 100 * 10_000
    assert cost(known, "ours", "gpt-4o", usage) is None  # who knows what that server has under the name
    assert cost(known, "openai", "our-own-model", usage) is None
    assert cost(known, "bedrock", "", usage, sent="us.anthropic.claude-sonnet-4-5-20250929-v1:0") is not None
    assert cost(known, "gemini", "gemini-3-flash-preview", usage) is not None
    assert cost(known, "nobody", "gpt-4o", usage) is None


def test_what_runs_here_is_free_and_what_is_not_known_is_not() -> None:
    assert cost(prices(), "here", "smollm2", Usage(10, 10)) == 0
    assert cost(prices(), "ours", "gpt-test", Usage(10, 10)) is None
    assert cost(prices({"provider": "here", "model": "*", "input": 1, "output": 1}), "here", "x", Usage(1, 0)) == 1000


def test_before_anything_was_used_there_is_no_cost() -> None:
    assert prices().cost(Context(backend="here")) is None


def test_an_override_wins_over_the_catalogue(catalogue: Catalogue) -> None:
    own = prices({"model": "gpt-4o*", "input": 1, "output": 1}, catalogue=catalogue)
    assert cost(own, "openai", "gpt-4o-2024-08-06", Usage(10, 10)) == 20_000
    assert cost(own, "openai", "o3", Usage(10, 0)) == 20_000  # still the catalogue's


def test_the_narrowest_override_wins() -> None:
    def one(usd: float, **fields: Any) -> dict[str, Any]:
        return {"input": usd, "output": 0, **fields}

    table = [
        one(7, provider="ours", model="gpt-4o-mini"),
        one(6, model="gpt-4o-mini"),
        one(1, model="*"),
        one(2, provider="openai", model="*"),
        one(3, model="gpt-*"),
        one(4, provider="openai", model="gpt-*"),
        one(5, model="*-mini"),
        one(8, provider="claude", model="gpt-4o-mini"),
    ]
    of = prices(*table)
    used = Usage(1, 0)
    assert cost(of, "gemini", "x", used) == 1_000
    assert cost(of, "openai", "x", used) == 2_000
    assert cost(of, "gemini", "gpt-5", used) == 3_000
    assert cost(of, "openai", "gpt-5", used) == 4_000
    assert cost(of, "ours", "gpt-5", used) == 4_000  # `openai` is a kind as well
    assert cost(of, "gemini", "gpt-5-mini", used) == 5_000
    assert cost(of, "gemini", "GPT-4o-mini", used) == 6_000
    assert cost(of, "ours", "gpt-4o-mini", used) == 7_000


def test_the_last_of_equals_wins() -> None:
    of = prices({"model": "m", "input": 1, "output": 1}, {"model": "m", "input": 2, "output": 1})
    assert cost(of, "ours", "m", Usage(1, 0)) == 2_000


def test_dated_prices() -> None:
    of = prices(
        {"model": "m", "input": 1, "output": 1},
        {"model": "m", "input": 3, "output": 1, "from": "2026-06-01"},
        {"model": "m", "input": 2, "output": 1, "from": "2026-01-01"},
    )
    for day, usd in ((1_767_225_599, 1), (1_767_225_600, 2), (1_780_271_999, 2), (1_780_272_000, 3)):
        rates = of.rates("ours", "m", day)
        assert rates is not None
        assert rates.input == usd * 10**9


def test_a_price_is_looked_up_again_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    of = prices({"model": "m", "input": 2, "output": 1, "from": "2026-06-01"})
    now = 1_780_271_999.0
    monkeypatch.setattr("tollhouse.ledger.prices.time", lambda: now)
    assert cost(of, "ours", "m", Usage(1, 0)) is None
    now += 1
    assert cost(of, "ours", "m", Usage(1, 0)) == 2_000


def test_like_a_provider_of_the_catalogue(catalogue: Catalogue) -> None:
    of = prices({"provider": "ours", "model": "*", "like": "openai"}, catalogue=catalogue)
    assert cost(of, "ours", "gpt-4o", Usage(10, 0)) == 25_000
    assert cost(of, "ours", "no-such-model", Usage(10, 0)) is None


def test_a_price_for_each_call() -> None:
    of = prices({"model": "search", "request": 0.005})
    assert cost(of, "ours", "search", Usage(10, 10)) == 5_000_000
    of = prices({"model": "search", "request": 0.005, "input": 1, "output": 1})
    assert cost(of, "ours", "search", Usage(10, 10)) == 5_020_000


def test_a_cost_is_worked_out_once() -> None:
    context = Context(backend="here", usage=Usage(1, 1))
    of = prices({"model": "*", "input": 1, "output": 1})
    context.model_answered = "m"
    assert of.cost(context) == context.cost_nano == 2_000
    context.usage = Usage(5, 5)
    assert of.cost(context) == 2_000


def test_targets_that_shared_a_call_have_each_its_own_price() -> None:
    of = prices(
        {"provider": "ours", "model": "m", "input": 1, "output": 2}, {"model": "dear", "input": 10, "output": 20}
    )

    def shared(*shares: Share) -> int | None:
        return of.cost(Context(backend="ours", model_sent="m", usage=Usage(99, 99), shares=shares))

    cheap = Share("ours", "", "m", Usage(5, 1))
    assert shared(cheap, Share("claude", "dear", "x", Usage(3, 0))) == 7_000 + 30_000
    assert shared(cheap, Share("here", "smollm2", "", Usage(3, 0))) == 7_000
    assert shared(cheap, Share("claude", "", "nobody-knows", Usage(3, 0))) is None  # and not what the known part costs
    assert shared(cheap, Share("claude", "", "nobody-knows", Usage())) == 7_000


def test_names_that_callers_make_up_are_not_all_remembered(catalogue: Catalogue) -> None:
    of = prices(catalogue=catalogue)
    for n in range(12_000):
        cost(of, "ours", f"m{n}", Usage(1, 1))
    cost(of, "ours", "m" * 10_000, Usage(1, 1))
    assert len(of._known) <= 10_000
    assert max(len(name) for key in of._known for name in key) < 300


def test_it_costs_less_than_two_microseconds(catalogue: Catalogue) -> None:
    of = prices(*TABLE, catalogue=catalogue)
    context = Context(backend="openai", model_answered="gpt-4o", usage=Usage(1000, 100, 50, 0, 20))
    best = 1.0
    for _ in range(20):
        began = perf_counter()
        for _ in range(1000):
            context.cost_nano = None
            of.cost(context)
        best = min(best, (perf_counter() - began) / 1000)
    assert best < 2e-6


# ---- configuration
def test_overrides_without_effect_are_told() -> None:
    with pytest.raises(ConfigError) as caught:
        prices(
            {"provider": "opneai", "model": "m", "input": 1},
            {"provider": "bedrock", "model": "m", "input": 1},
            {"model": "m", "like": "nobody"},
        )
    assert [problem.path for problem in caught.value.problems] == ["prices[0].provider", "prices[2].like"]


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"model": "m"}, "no price"),
        ({"model": "m", "cache_read": 1}, "no price"),
        ({"model": "a*b*", "input": 1}, "at most one"),
        ({"model": "", "input": 1}, "at least 1"),
        ({"model": "m", "input": -1}, "greater than or equal"),
        ({"model": "m", "input": float("nan")}, "finite"),
        ({"model": "m", "input": "1e-12"}, "decimal places"),
        ({"model": "m", "input": 1, "like": "openai"}, "like"),
        ({"model": "m", "input": 1, "from": "soon"}, "date"),
        ({"model": "m", "input": 1, "over": [{"tokens": 5}]}, "no price"),
        ({"model": "m", "input": 1, "over": [{"tokens": 5, "input": 1}, {"tokens": 5, "output": 1}]}, "same number"),
        ({"model": "m", "inptu": 1}, "Extra"),
        ({"model": "m", "tier": "flex"}, "no price"),
        ({"model": "m", "tier": "", "input": 1}, "at least 1"),
        ({"model": "m", "tier": "flex", "like": "openai"}, "leave `tier` out"),
    ],
)
def test_what_is_no_price(spec: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        PriceSpec.model_validate(spec)


def test_prices_are_exact() -> None:
    spec = PriceSpec.model_validate({"model": "m", "input": 0.1, "output": "0.000000001"})
    assert spec.schedule().input == 100_000_000
    assert spec.schedule().output == 1
