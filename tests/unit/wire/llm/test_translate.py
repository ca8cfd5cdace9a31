"""A call's way between two APIs: what is refused and what is dropped, and the stream in other words."""

from typing import Any

import msgspec
import pytest

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm import CHAT, CODECS, GENERATE, MESSAGES
from tollhouse.wire.llm.model import Answer, Chat, Choice, Message, Refusal, Text, Thinking, ToolCall
from tollhouse.wire.llm.translate import TranslatedReader, Translation, spoken
from tollhouse.wire.sse import frame

Raw = msgspec.Raw
NOW = 1790000000


def asked(**fields: Any) -> Translation:
    """From chat completions to messages."""
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    raw = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, Raw])
    chat = CODECS["chat"].decode(raw, model="smart", stream=bool(fields.get("stream")))
    return Translation(chat, CODECS["chat"], CODECS["messages"], NOW, id="req-1")


def test_what_can_be_said() -> None:
    fields, lost = asked(store=False).request(model="claude", max_output=100, lossy=False)
    assert lost == []
    assert {name: msgspec.json.decode(value) for name, value in fields.items()} == {
        "model": "claude",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "hi"}],
    }


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(Failure) as raised:
        asked(seed=1, n=2).request(model="claude", max_output=100, lossy=False)
    failure = raised.value
    assert (failure.status, failure.reason, failure.code) == (400, Reason.INVALID_REQUEST, "not_expressible")
    assert failure.message.startswith("what is asked cannot be said to the provider in its API (messages): n, seed; ")


def test_a_long_list_is_cut() -> None:
    wishes = {f"wish{n}": n for n in range(8)}
    with pytest.raises(Failure, match=r"wish0, wish1, wish2, wish3, wish4 and 3 more;"):
        asked(**wishes).request(model="claude", max_output=100, lossy=False)


def test_what_cannot_be_said_is_dropped_where_that_is_wanted() -> None:
    fields, lost = asked(seed=1, n=2).request(model="claude", max_output=100, lossy=True)
    assert lost == ["n", "seed"]
    assert "seed" not in fields


def test_an_answer() -> None:
    body = {
        "id": "msg_1",
        "model": "claude-x",
        "content": [{"type": "text", "text": "Hi"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 1},
    }
    told, usage, model = asked().answer(msgspec.json.encode(body))
    found = msgspec.json.decode(told)
    assert (usage, model) == (Usage(3, 1, 2), "claude-x")
    assert (found["id"], found["created"], found["model"]) == ("msg_1", NOW, "claude-x")
    assert found["usage"]["prompt_tokens"] == 5


def test_an_answer_that_does_not_say_what_it_is() -> None:
    translation = asked()
    translation.request(model="claude", max_output=1, lossy=False)
    told, usage, model = translation.answer(b'{"content":[]}')
    found = msgspec.json.decode(told)
    assert (found["id"], found["model"], usage, model) == ("req-1", "claude", None, "claude")


@pytest.mark.parametrize("body", [b"<html>", b'{"type":"error","error":{"type":"api_error","message":"x"}}'])
def test_no_answer(body: bytes) -> None:
    with pytest.raises(Failure) as raised:
        asked().answer(body)
    assert (raised.value.status, raised.value.retry) == (502, True)


# ---- streams


def reader(asker: str = "chat", **fields: Any) -> TranslatedReader:
    chat = Chat(asker, "smart", [Message("user", [Text("hi")])], stream=True, **fields)
    return Translation(chat, CODECS[asker], CODECS["messages"], NOW, id="req-1").reader(MESSAGES)


def event(kind: str, **fields: Any) -> bytes:
    return frame(msgspec.json.encode({"type": kind, **fields}), kind.encode())


BEGIN = event("message_start", message={"id": "msg_1", "model": "claude-x", "usage": {"input_tokens": 3}})
START = event("content_block_start", index=0, content_block={"type": "text", "text": "H"})
DELTA = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "é"})
STOP = event("content_block_stop", index=0)
END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}) + event("message_stop")


def test_a_stream() -> None:
    told = reader()
    assert told.read(b": comment\n\n") == b""
    assert told.read(event("ping")) == b""
    assert not told.began
    assert told.read(BEGIN) == b""
    assert (told.began, told.finished, told.model) == (True, False, "claude-x")
    found = told.read(START + DELTA)
    assert [c["choices"][0]["delta"] for c in chunks(found)] == [
        {"role": "assistant", "content": "H"},
        {"content": "é"},
    ]
    assert chunks(found)[0]["created"] == NOW
    assert (told.text, told.usage) == (3, Usage(3))
    found = told.read(STOP + END)
    assert found.endswith(b"data: [DONE]\n\n")
    assert (told.finished, told.counted, told.usage, told.failure) == (True, True, Usage(3, 2), None)
    assert told.read(DELTA) == b""


def chunks(block: bytes) -> list[Any]:
    return [msgspec.json.decode(line[6:]) for line in block.split(b"\n\n") if line and line != b"data: [DONE]"]


def test_a_stream_cut_into_blocks_anyhow() -> None:
    whole = reader().read(BEGIN + START + DELTA + STOP + END)
    told = reader()
    assert b"".join(told.read(block) for block in (BEGIN, START + DELTA, STOP, END)) == whole


def test_an_error_is_told_anew() -> None:
    told = reader()
    error = event("error", error={"type": "overloaded_error", "message": "secret words"})
    assert chunks(told.read(BEGIN + START + error + DELTA)) != []
    failure = told.failure
    assert failure is not None
    assert type(failure) is Failure
    assert (failure.status, failure.message, failure.retry) == (503, "the provider failed", True)
    assert failure.detail == "overloaded_error: secret words"
    assert not told.finished


def test_what_is_no_stream() -> None:
    told = reader()
    assert told.read(b"data: <html>\n\n") == b""
    assert told.failure is not None
    assert told.failure.status == 502


def test_a_stream_without_its_end_is_not_finished() -> None:
    told = reader()
    told.read(BEGIN + START + DELTA + STOP)
    assert not told.finished
    assert not told.counted


BROKEN = {
    "candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL", "content": {"parts": []}}],
    "usageMetadata": {"promptTokenCount": 3},
}


def test_a_provider_that_gives_up() -> None:
    """Before it has said anything, another one may do better."""
    translation = Translation(Chat("chat", "m", []), CODECS["chat"], CODECS["generate"], NOW)
    body = msgspec.json.encode(BROKEN)
    with pytest.raises(Failure, match=r"the provider could not answer \(MALFORMED_FUNCTION_CALL\)") as raised:
        translation.answer(body)
    assert (raised.value.status, raised.value.retry) == (502, True)
    told = translation.reader(GENERATE)
    assert told.read(frame(body)) == b""
    assert told.failure is not None
    assert told.failure.status == 502


def test_a_provider_that_gives_up_after_it_has_said_something() -> None:
    translation = Translation(Chat("chat", "m", []), CODECS["chat"], CODECS["generate"], NOW)
    said = {"candidates": [{"content": {"parts": [{"text": "I look"}]}, "finishReason": "OTHER"}]}
    assert (
        msgspec.json.decode(translation.answer(msgspec.json.encode(said))[0])["choices"][0]["finish_reason"] == "stop"
    )
    told = translation.reader(GENERATE)
    told.read(frame(msgspec.json.encode(said)))
    assert told.failure is None
    assert told.finished


def test_the_dialects_of_a_pair_need_not_be_alike() -> None:
    chat = Chat("messages", "m", [], stream=True)
    told = Translation(chat, CODECS["messages"], CODECS["chat"], NOW).reader(CHAT)
    found = told.read(b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n')
    assert found.startswith(b"event: message_start\n")
    assert told.read(b"data: [DONE]\n\n").endswith(b'data: {"type":"message_stop"}\n\n')


def test_what_was_spoken() -> None:
    parts = [Text("aé"), Thinking("bb"), Refusal("c"), ToolCall("i", "f", "{}"), Thinking(sealed="xxx")]
    assert spoken(Answer("chat", "i", "m", [Choice(parts), Choice([Text("d")])])) == 3 + 2 + 1 + 2 + 1
