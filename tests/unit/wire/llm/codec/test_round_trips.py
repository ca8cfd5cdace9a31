"""What holds of every codec: nothing but a Failure, nothing lost of what its API can say, and a stream that adds up to
the whole answer."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.golden.llm.apis import APIS
from tests.strategies.forms import decode, encode, plain, refused
from tests.strategies.llm import answers, chats, said_in_chat, said_in_messages

from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.fold import fold, unfold
from tollhouse.wire.llm.model import Answer, Chat

EACH = pytest.mark.parametrize("api", APIS)
PAIRS = pytest.mark.parametrize("asker, asked", [(a, b) for a in APIS for b in APIS if a != b])
slow = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
quick = settings(slow, max_examples=10)


@given(said_in_chat())
@slow
def test_chat_completions_lose_nothing(chat: Chat) -> None:
    codec = APIS["chat"].codec
    body, lost = encode(codec, chat)
    assert lost == []
    assert plain(decode(codec, body)) == plain(chat)


@given(said_in_messages())
@slow
def test_messages_lose_nothing(chat: Chat) -> None:
    codec = APIS["messages"].codec
    body, lost = encode(codec, chat)
    assert lost == []
    assert plain(decode(codec, body)) == plain(chat)


@EACH
@given(data=st.data())
@slow
def test_what_was_written_loses_nothing(api: str, data: st.DataObject) -> None:
    """Whatever was written for a caller of another API, its own codec reads and says again."""
    codec = APIS[api].codec
    chat = data.draw(chats(data.draw(st.sampled_from([other for other in APIS if other != api]))))
    body: dict[str, Any] = {}
    with refused(400):
        body, _ = encode(codec, chat)
    if not body:
        return
    meant = decode(codec, body)
    again, lost = encode(codec, meant)
    assert lost == []
    assert plain(decode(codec, again)) == plain(meant)


@EACH
@given(data=st.data())
@slow
def test_an_answer_that_was_written_loses_nothing(api: str, data: st.DataObject) -> None:
    codec = APIS[api].codec
    answer = data.draw(answers(choices=APIS[api].choices))
    asked = Chat(api, answer.model, [])
    body = codec.encode_answer(answer, asked)
    again = codec.decode_answer(body)
    assert again.dialect == api
    assert msgspec.json.decode(codec.encode_answer(again, asked)) == msgspec.json.decode(body)


def told(answer: Answer) -> object:
    """An answer without what a stream does not tell."""
    answer.extra = None
    answer.created = 0
    for choice in answer.choices:
        choice.extra = None
    return plain(answer)


@EACH
@given(data=st.data())
@slow
def test_a_stream_adds_up_to_the_whole_answer(api: str, data: st.DataObject) -> None:
    form = APIS[api]
    other = "messages" if api == "chat" else "chat"  # of its own, some fields ride along in an answer only
    answer = data.draw(answers(other, choices=form.choices))
    asked = Chat(api, answer.model, [], stream=True, include_usage=True)
    decoder, encoder = form.codec.decoder(), form.codec.encoder(asked)
    whole = form.codec.decode_answer(form.codec.encode_answer(answer, asked))
    stream = b"".join(encoder.write([event]) for event in unfold(answer)) + encoder.end()
    events = [event for name, told_ in form.events(stream) for event in decoder.read(name, told_)]
    assert decoder.finished
    folded = fold(events, api)
    form.even(whole)
    assert told(folded) == told(whole)


@PAIRS
@given(data=st.data())
@quick
def test_nothing_but_a_failure(asker: str, asked: str, data: st.DataObject) -> None:
    """What one API said is said to any other, and what is lost is named."""
    chat = data.draw(chats(asker))
    lost = Lost(APIS[asker].codec.quiet)
    with refused(400):
        APIS[asked].codec.encode(chat, lost, model="m", max_output=4096)
    assert all(lost.places)
