"""wire.llm.vocabulary: counted as OpenAI counts, for OpenAI's models and no others, and bounded."""

from time import thread_time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.llm.tokens import PICTURE
from tollhouse.wire.llm.vocabulary import Vocabularies


@pytest.fixture(scope="module")
def vocabularies() -> Vocabularies:
    loaded = Vocabularies.load()
    assert loaded is not None
    return loaded


@pytest.mark.parametrize(
    ("model", "text", "tokens"),
    [
        # as the vocabularies' own documentation has them
        ("gpt-4", "tiktoken is great!", 6),
        ("gpt-4o-mini", "tiktoken is great!", 6),
        ("gpt-3.5-turbo", "antidisestablishmentarianism", 6),
        ("gpt-5.2", "", 0),
        ("text-embedding-3-small", "hello world", 2),
    ],
)
def test_texts(vocabularies: Vocabularies, model: str, text: str, tokens: int) -> None:
    count = vocabularies.of(model)
    assert count is not None
    assert count(text) == tokens


def test_which_vocabulary() -> None:
    both = Vocabularies(older=lambda _: 1, newer=lambda _: 2)
    older = ("gpt-4", "gpt-4-turbo", "gpt-4-0613", "GPT-3.5-turbo", "gpt-35-turbo", "text-embedding-ada-002")
    newer = ("gpt-4o", "gpt-4.1-mini", "gpt-5", "o1", "o4-mini", "chatgpt-4o-latest", "openai/gpt-4o", "ft:gpt-4o:us")
    for name in older:
        assert (count := both.of(name)) is not None, name
        assert count("") == 1, name
    for name in newer:
        assert (count := both.of(name)) is not None, name
        assert count("") == 2, name
    for name in ("claude-opus-4-6", "gemini-3-pro", "llama-70b", "", "mistral-large"):
        assert both.of(name) is None, name


def body(**fields: Any) -> bytes:
    return msgspec.json.encode(fields)


def test_a_request(vocabularies: Vocabularies) -> None:
    said = body(model="gpt-4o", temperature=1, messages=[{"role": "user", "content": "hello world"}])
    assert vocabularies.of_request("gpt-4o", said) == 2 + 4
    assert vocabularies.of_request("claude-opus-4-6", said) is None
    assert vocabularies.of_request("gpt-4o", b"<html>") is None
    assert vocabularies.of_request("gpt-4o", b"[]") is None
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9000}}
    parts = [{"type": "text", "text": "hello world"}, picture]
    assert vocabularies.of_request("gpt-4o", body(messages=[{"role": "user", "content": parts}])) == 2 + 4 + PICTURE
    assert vocabularies.of_request("gpt-5", body(input="hello world", instructions="hello world")) == 5 + 4


def test_a_long_request_is_counted_in_part(vocabularies: Vocabularies) -> None:
    text = "the quick brown fox jumps over the lazy dog. " * 40_000  # 1.8 MB
    long = body(messages=[{"role": "user", "content": text}])
    began = thread_time()
    tokens = vocabularies.of_request("gpt-4o", long)
    assert thread_time() - began < 0.1
    assert tokens == pytest.approx(400_000, rel=0.01)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["type", "content", "role"]), inner)))  # fmt: skip # noqa: E501
def test_whatever_is_asked_is_counted(messages: Any) -> None:
    counts = Vocabularies(older=len, newer=len)
    tokens = counts.of_request("gpt-4o", body(messages=messages))
    assert tokens is None or tokens >= 0


def test_a_lone_surrogate_is_counted(vocabularies: Vocabularies) -> None:
    count = vocabularies.of("gpt-4o")
    assert count is not None
    assert count("\ud800") > 0
