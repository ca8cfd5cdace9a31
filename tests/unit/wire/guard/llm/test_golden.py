"""wire.guard.llm: the suite's requests, answers and streams of every API are known forms, and stay what they are."""

import json

import msgspec
import pytest
from tests.golden.llm.apis import APIS
from tests.golden.llm.translations import answers, requests, translated_answers
from tests.unit.wire.guard.llm.driver import Driven

from tollhouse.wire.guard.llm import answer_texts, request_texts
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule, pattern

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
ODD = {
    "stop", "stop_sequences", "stopSequences", "stop_sequence", "user", "metadata", "requestMetadata", "weather",
    "prompt_cache_key", "safety_identifier", "additionalModelRequestFields",
}  # fmt: skip
"""Members that are looked at as what they are: anybody's words, or none."""


@pytest.fixture(scope="module")
def patterns() -> PatternSet:
    return PatternSet([pattern("key", r"\bsk-[A-Za-z0-9]{20,}", secret=True)], max_match=200)


def mask(rule: Rule, text: str) -> str:
    return "<key>"


@pytest.mark.parametrize("api", APIS)
def test_requests(api: str) -> None:
    for shape, forms in requests().items():
        if api not in forms:
            continue
        texts = request_texts(api, _fields(json.dumps(forms[api]).encode()))
        assert texts.replaced({}) == {}
        unknown = [piece.key for piece in texts.pieces if piece.kind == "other" and not ODD & set(piece.key)]
        assert not unknown or shape == "a part nobody knows", (shape, unknown)


@pytest.mark.parametrize("api", APIS)
def test_answers(api: str) -> None:
    for shape, forms in answers(api).items():
        source = json.dumps(forms["unary"]).encode()
        texts = answer_texts(api, source)
        assert texts.replaced({}) is source
        unknown = [piece.key for piece in texts.pieces if piece.kind == "other" and not ODD & set(piece.key)]
        assert not unknown, (shape, unknown)


@pytest.mark.parametrize("api", APIS)
def test_streams(api: str, patterns: PatternSet) -> None:
    for shape, forms in answers(api).items():
        sent = [APIS[api].framed(event) for event in forms["stream"]]
        driven = Driven(api, patterns, mask)
        assert b"".join([driven.read(event) for event in sent]) + driven.finish() == b"".join(sent), shape
        assert "unknown" not in driven.opaque, shape
        assert (
            driven.kinds <= {"text", "reasoning", "arguments", "results", "echo", "beside", "names"}
            or shape == "stopped where it should"
        )


@pytest.mark.parametrize("asked", APIS)
@pytest.mark.parametrize("asker", APIS)
def test_translated_streams(asked: str, asker: str, patterns: PatternSet) -> None:
    """What the gateway itself writes in an API."""
    if asked == asker:
        return
    for shape, told in translated_answers(asked, asker).items():
        events = [event for event in told["stream"] if "refused" not in event]
        driven = Driven(asker, patterns, mask)
        sent = [APIS[asker].framed(event) for event in events]
        assert b"".join([driven.read(event) for event in sent]) + driven.finish() == b"".join(sent), shape
        assert "unknown" not in driven.opaque, shape
        if isinstance(told["unary"], dict) and "refused" not in told["unary"]:
            answer_texts(asker, json.dumps(told["unary"]).encode())
