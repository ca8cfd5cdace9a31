"""wire.llm.usage: each provider's form of usage, as ours; and what must hold of all of them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Usage
from tollhouse.wire.llm.usage import (
    ChatUsage,
    ConverseUsage,
    GeminiUsage,
    MessagesUsage,
    ResponsesUsage,
    counted,
    tier_of,
)

Raw = msgspec.Raw

CHAT: list[tuple[dict[str, Any], Usage]] = [
    ({"prompt_tokens": 12, "completion_tokens": 5, "total_tokens": 17}, Usage(12, 5)),
    (
        {
            "prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 192, "accepted_prediction_tokens": 0},
        },
        Usage(86, 300, 1920, 0, 192),
    ),
    (
        {
            "prompt_tokens": 1000, "completion_tokens": 90,
            "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 200, "audio_tokens": 60},
            "completion_tokens_details": {"audio_tokens": 70},
        },
        Usage(700, 90, 100, 200, audio_input=60, audio_output=70),
    ),
    # xAI: reasoning stands beside the answer, and only the total has it
    (
        {
            "prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135,
            "completion_tokens_details": {"reasoning_tokens": 94},
        },
        Usage(32, 103, reasoning=94),
    ),
    ({"prompt_tokens": 8, "total_tokens": 8}, Usage(8, 0)),
]  # fmt: skip
RESPONSES: list[tuple[dict[str, Any], Usage]] = [
    (
        {
            "input_tokens": 328, "input_tokens_details": {"cached_tokens": 128, "cache_write_tokens": 100},
            "output_tokens": 52, "output_tokens_details": {"reasoning_tokens": 32}, "total_tokens": 380,
        },
        Usage(100, 52, 128, 100, 32),
    ),
    # images: `input_tokens_details` of text and pictures
    (
        {
            "input_tokens": 50, "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            "output_tokens": 1056, "output_tokens_details": {"image_tokens": 1056, "text_tokens": 0},
        },
        Usage(50, 1056, image_input=40, image_output=1056),
    ),
    # transcription and realtime: the other spelling; what was cached of the sound is told apart
    (
        {
            "input_tokens": 120, "output_tokens": 30,
            "input_token_details": {
                "text_tokens": 20, "audio_tokens": 100, "cached_tokens": 64,
                "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 64},
            },
            "output_token_details": {"text_tokens": 10, "audio_tokens": 20},
        },
        Usage(56, 30, 64, audio_input=36, audio_output=20),
    ),
]  # fmt: skip
MESSAGES: list[tuple[dict[str, Any], Usage]] = [
    ({"input_tokens": 10, "output_tokens": 7}, Usage(10, 7)),
    (
        {
            "input_tokens": 21, "cache_creation_input_tokens": 556, "cache_read_input_tokens": 1800,
            "cache_creation": {"ephemeral_5m_input_tokens": 456, "ephemeral_1h_input_tokens": 100},
            "output_tokens": 393, "output_tokens_details": {"thinking_tokens": 200},
        },
        Usage(21, 393, 1800, 556, 200, cache_write_1h=100),
    ),
    (
        {"input_tokens": 1, "output_tokens": 1, "cache_creation": {"ephemeral_5m_input_tokens": 3}},
        Usage(1, 1, cache_write=3),
    ),
]  # fmt: skip
GEMINI: list[tuple[dict[str, Any], Usage]] = [
    (
        {"promptTokenCount": 10, "candidatesTokenCount": 20, "thoughtsTokenCount": 30, "totalTokenCount": 60},
        Usage(10, 50, reasoning=30),
    ),
    (
        {
            "promptTokenCount": 1100, "cachedContentTokenCount": 1000, "candidatesTokenCount": 4,
            "toolUsePromptTokenCount": 50, "totalTokenCount": 1154,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 500}, {"modality": "AUDIO", "tokenCount": 550},
                {"modality": "IMAGE", "tokenCount": 30}, {"modality": "DOCUMENT", "tokenCount": 20},
            ],
            "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 500}, {"modality": "AUDIO", "tokenCount": 500}],
        },
        Usage(150, 4, 1000, audio_input=50, image_input=50),
    ),
    (
        {
            "promptTokenCount": 5, "candidatesTokenCount": 1300, "totalTokenCount": 1305,
            "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1290}],
        },
        Usage(5, 1300, image_output=1290),
    ),
]  # fmt: skip
CONVERSE: list[tuple[dict[str, Any], Usage]] = [
    ({"inputTokens": 30, "outputTokens": 20, "totalTokens": 50}, Usage(30, 20)),
    (
        {
            "inputTokens": 30, "outputTokens": 20, "totalTokens": 1650,
            "cacheReadInputTokens": 1000, "cacheWriteInputTokens": 600,
            "cacheDetails": [{"ttl": "5m", "inputTokens": 500}, {"ttl": "1h", "inputTokens": 100}],
        },
        Usage(30, 20, 1000, 600, cache_write_1h=100),
    ),
]  # fmt: skip

FORMS: list[tuple[Any, list[tuple[dict[str, Any], Usage]]]] = [
    (ChatUsage, CHAT),
    (ResponsesUsage, RESPONSES),
    (MessagesUsage, MESSAGES),
    (GeminiUsage, GEMINI),
    (ConverseUsage, CONVERSE),
]


@pytest.mark.parametrize(
    ("form", "told", "usage"), [(form, told, usage) for form, cases in FORMS for told, usage in cases]
)
def test_a_form_as_ours(form: Any, told: dict[str, Any], usage: Usage) -> None:
    assert msgspec.convert(told, form).normal() == usage


@pytest.mark.parametrize("form", [form for form, _ in FORMS])
def test_no_counts_are_no_usage(form: Any) -> None:
    assert form().normal() is None


@pytest.mark.parametrize("told", [2**32, 10**18, 10**30, -1])
@pytest.mark.parametrize("form, name", [(f, next(iter(cases[0][0]))) for f, cases in FORMS])
def test_a_count_that_no_answer_has_is_none(form: Any, name: str, told: int) -> None:
    """It would fit no column of the ledger, and be charged to somebody."""
    decode = msgspec.json.Decoder(form).decode
    assert counted(decode, Raw(b'{"%b":7}' % name.encode())) is not None
    assert counted(decode, Raw(b'{"%b":%d}' % (name.encode(), told))) is None


@pytest.mark.parametrize(("form", "usage"), [(form, usage) for form, cases in FORMS for _, usage in cases])
def test_ours_as_a_form_and_back(form: Any, usage: Usage) -> None:
    """What the form has words for comes back, and the sums are the same."""
    back = msgspec.convert(form.form(usage), form).normal()
    assert back.input + back.cache_read + back.cache_write == usage.input + usage.cache_read + usage.cache_write
    assert back.output == usage.output
    assert back.cache_read == usage.cache_read


def test_pieces_of_a_stream_add_up_to_the_last_word() -> None:
    usage = Usage()
    first = {"input_tokens": 5, "output_tokens": 1, "cache_creation_input_tokens": 4, "cache_read_input_tokens": 2}
    first_cached = {"ephemeral_1h_input_tokens": 4}
    msgspec.convert({**first, "cache_creation": first_cached}, MessagesUsage).merge(usage)
    assert usage == Usage(5, 1, 2, 4, cache_write_1h=4)
    told = {"output_tokens": 40, "output_tokens_details": {"thinking_tokens": 30}}
    msgspec.convert(told, MessagesUsage).merge(usage)
    assert usage == Usage(5, 40, 2, 4, 30, cache_write_1h=4)


counts = st.none() | st.integers(0, 1 << 30)
details = st.none() | st.lists(
    st.fixed_dictionaries({"modality": st.sampled_from(["TEXT", "AUDIO", "IMAGE", "VIDEO"]), "tokenCount": counts}),
    max_size=4,
)


def structs(type_: Any) -> st.SearchStrategy[Any]:
    """Any form of it, whatever nonsense its counts are."""

    def of(field: msgspec.structs.FieldInfo) -> st.SearchStrategy[Any]:
        text = str(field.type)
        if "_Modality" in text:
            return details
        for name in ("_PromptDetails", "_CompletionDetails", "_CachedDetails", "_CacheCreation", "_ThinkingDetails"):
            if name in text:
                inner = getattr(__import__(type_.__module__, fromlist=[name]), name)
                return st.none() | structs(inner)
        if "_CacheDetail" in text:
            return st.none() | st.lists(
                st.fixed_dictionaries({"ttl": st.sampled_from(["5m", "1h"]), "inputTokens": counts}), max_size=3
            )
        if field.type is msgspec.Raw:
            return st.sampled_from([Raw(b'"flex"'), Raw(b'"default"'), Raw(b"null"), Raw(b"5"), Raw(b'{"type":1}')])
        return counts

    return st.fixed_dictionaries({field.encode_name: of(field) for field in msgspec.structs.fields(type_)})


def whole(form: Any) -> int:
    """The provider's total: what it counts as prompt and as output."""
    match form:
        case ChatUsage():
            apart = form.completion_tokens_details
            counted = (form.prompt_tokens or 0) + (form.completion_tokens or 0)
            beside = (apart.reasoning_tokens or 0) if apart is not None else 0
            return counted + (beside if (form.total_tokens or 0) >= counted + beside else 0)
        case ResponsesUsage():
            return (form.input_tokens or 0) + (form.output_tokens or 0)
        case MessagesUsage():
            made = form.cache_creation
            pieces = (
                0 if made is None else (made.ephemeral_5m_input_tokens or 0) + (made.ephemeral_1h_input_tokens or 0)
            )
            written = pieces if form.cache_creation_input_tokens is None else form.cache_creation_input_tokens
            return (form.input_tokens or 0) + (form.output_tokens or 0) + (form.cache_read_input_tokens or 0) + written
        case GeminiUsage():
            prompt = (form.prompt_token_count or 0) + (form.tool_use_prompt_token_count or 0)
            return prompt + (form.candidates_token_count or 0) + (form.thoughts_token_count or 0)
        case _:
            cached = (form.cache_read_input_tokens or 0) + (form.cache_write_input_tokens or 0)
            return (form.input_tokens or 0) + (form.output_tokens or 0) + cached


@pytest.mark.parametrize("type_", [form for form, _ in FORMS])
@given(data=st.data())
def test_the_kinds_never_exceed_the_total(type_: Any, data: st.DataObject) -> None:
    form = msgspec.convert(data.draw(structs(type_)), type_)
    usage = form.normal()
    if usage is None:
        return
    assert usage.total <= whole(form)
    assert min(getattr(usage, name) for name in Usage.__struct_fields__ if name != "tier") >= 0
    assert usage.audio_input + usage.image_input <= usage.input
    assert usage.reasoning + usage.audio_output + usage.image_output <= usage.output
    assert usage.cache_write_1h <= usage.cache_write


# ---- service tiers
@pytest.mark.parametrize(
    ("told", "tier"),
    [
        (b"", ""), (b"null", ""), (b'"default"', ""), (b'"standard"', ""), (b'"auto"', ""), (b'"on_demand"', ""),
        (b'"ON_DEMAND"', ""), (b'"TRAFFIC_TYPE_UNSPECIFIED"', ""), (b'"unspecified"', ""), (b'{"type":"default"}', ""),
        (b'"flex"', "flex"), (b'"priority"', "priority"), (b'"batch"', "batch"), (b'"FLEX"', "flex"),
        (b'"ON_DEMAND_PRIORITY"', "priority"), (b'"ON_DEMAND_FLEX"', "flex"), (b'"SERVICE_TIER_FLEX"', "flex"),
        (b'"PROVISIONED_THROUGHPUT"', "provisioned_throughput"), (b'{"type":"reserved"}', "reserved"),
        (b"5", ""), (b"{}", ""), (b'{"type":5}', ""), (b"[", ""), (b'"' + b"x" * 99 + b'"', "x" * 32),
    ],
)  # fmt: skip
def test_tiers(told: bytes, tier: str) -> None:
    assert tier_of(Raw(told)) == tier


@pytest.mark.parametrize(
    ("form", "tier"),
    [
        ({"service_tier": "standard", "speed": "standard"}, ""),
        ({"service_tier": "priority"}, "priority"),
        ({"service_tier": "batch", "speed": None}, "batch"),
        ({"service_tier": "standard", "speed": "fast"}, "fast"),
        ({"service_tier": "priority", "speed": "fast"}, "priority+fast"),
    ],
)
def test_tiers_of_anthropic(form: dict[str, Any], tier: str) -> None:
    usage = msgspec.convert(
        {"input_tokens": 1, **{n: Raw(msgspec.json.encode(v)) for n, v in form.items()}}, MessagesUsage
    )
    told = usage.normal()
    assert told is not None
    assert told.tier == tier
    MessagesUsage(output_tokens=5).merge(told)  # what comes later and does not say
    assert told.tier == tier
