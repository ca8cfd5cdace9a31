"""Every request of the corpus at every provider, and every provider's answer for every caller: as it was reviewed."""

from typing import Any

import msgspec
import pytest
from tests.golden.llm.apis import APIS
from tests.golden.llm.translations import (
    PAIRS,
    answers,
    decoded,
    expected,
    requests,
    translated_answers,
    translated_requests,
)
from tests.strategies.forms import plain

from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.fold import fold
from tollhouse.wire.llm.model import Answer, Text, ToolCall

EACH_PAIR = pytest.mark.parametrize("source, target", PAIRS)


@EACH_PAIR
def test_requests(source: str, target: str) -> None:
    found = translated_requests(source, target)
    wanted = expected("requests", source, target)
    assert found.keys() == wanted.keys()
    for shape, form in found.items():
        assert form == wanted[shape], shape


@EACH_PAIR
def test_answers(source: str, target: str) -> None:
    found = translated_answers(source, target)
    wanted = expected("answers", source, target)
    assert found.keys() == wanted.keys()
    for shape, form in found.items():
        assert form == wanted[shape], shape


@pytest.mark.parametrize("api", APIS)
def test_requests_lose_nothing_on_their_way_back(api: str) -> None:
    """What is written in the API it came from means what it meant, and nothing of it is lost."""
    codec = APIS[api].codec
    for shape, forms in requests().items():
        if api not in forms:
            continue
        chat = decoded(APIS[api], forms[api])
        lost = Lost()
        fields = codec.encode(chat, lost, model="asked", max_output=9)
        assert lost.places == [], shape
        again = codec.decode(fields, model="asked", stream=chat.stream)
        if again.max_output == 9:
            again.max_output = chat.max_output
        assert plain(again) == plain(chat), shape


def told(answer: Answer) -> Any:
    """An answer without what a stream does not tell."""
    answer.extra = None
    for choice in answer.choices:
        choice.extra = None
        for part in choice.parts:
            if isinstance(part, (Text, ToolCall)):
                part.extra = None
    return plain(answer)


@pytest.mark.parametrize("api", APIS)
def test_streams_add_up_to_the_whole_answers(api: str) -> None:
    form = APIS[api]
    for shape, forms in answers(api).items():
        whole = form.codec.decode_answer(msgspec.json.encode(forms["unary"]))
        decoder = form.codec.decoder()
        stream = b"".join(map(form.framed, forms["stream"]))
        folded = fold([e for name, data in form.events(stream) for e in decoder.read(name, data)], api)
        assert decoder.finished, shape
        form.even(whole)
        assert told(folded) == told(whole), shape


def test_the_corpus_is_large_enough() -> None:
    assert len(requests()) >= 40
    assert all(len(answers(api)) >= 11 for api in APIS)
