"""Realtime: a session's URL, and what its events mean."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm.realtime import Kind, Opening, Realtime, RealtimeReader, Told

REALTIME = Realtime()
USAGE = {
    "input_tokens": 150,
    "output_tokens": 80,
    "input_token_details": {
        "text_tokens": 60,
        "audio_tokens": 90,
        "cached_tokens": 50,
        "cached_tokens_details": {"text_tokens": 20, "audio_tokens": 30},
    },
    "output_token_details": {"text_tokens": 20, "audio_tokens": 60},
}
COUNTED = Usage(100, 80, 50, audio_input=60, audio_output=60)


def read(reader: RealtimeReader, type: str, **fields: Any) -> Told | None:
    return reader.read(json.dumps({"type": type, "event_id": "e", **fields}).encode())


# ---- the URL


def test_what_a_url_asks_for() -> None:
    assert REALTIME.opening(b"model=gpt-realtime") == Opening("gpt-realtime", False)
    assert REALTIME.opening(b"api-version=1&deployment=a%2Fb") == Opening("a/b", False)
    assert REALTIME.opening(b"intent=transcription&model=gpt-4o-transcribe") == Opening("gpt-4o-transcribe", True)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (b"", "model_required"),
        (b"model=", "model_required"),
        (b"model=a&model=b", "model_required"),
        (b"model=a&deployment=b", "model_required"),
        (b"intent=transcription", "model_required"),
        (b"model=a&call_id=rtc_1", "unsupported_operation"),
        (b"model=%ff", None),
        (b"model=\xff", None),
        (b"&".join(b"a=%d" % n for n in range(100)), None),
    ],
)
def test_urls_that_ask_for_nothing(query: bytes, code: str | None) -> None:
    with pytest.raises(Failure) as failure:
        REALTIME.opening(query)
    assert (failure.value.status, failure.value.code) == (400, code)


def test_what_the_provider_is_asked_for() -> None:
    query = b"api-version=2024&deployment=mine&api-key=secret&x=1%262&key=k"
    assert REALTIME.connect("a b/c", query) == b"/realtime?model=a%20b%2Fc&x=1%262"
    dated = Realtime("deployment", "api-version=2025-04-01")
    assert dated.connect("d", b"model=mine") == b"/realtime?api-version=2025-04-01&deployment=d"
    assert REALTIME.connect("d", b"model=x&intent=transcription") == b"/realtime?intent=transcription"
    assert dated.connect("d", b"intent=transcription") == b"/realtime?api-version=2025-04-01&intent=transcription"


@given(st.text(min_size=1))
def test_a_model_s_name_is_one_value_whatever_is_in_it(model: str) -> None:
    try:
        model.encode()
    except UnicodeEncodeError:
        return
    target = REALTIME.connect(model, b"")
    assert target.isascii()
    assert not set(target) & set(b" \r\n#")
    assert REALTIME.opening(target.partition(b"?")[2]).model == model


def test_an_error_in_the_api_s_own_words() -> None:
    failure = Failure(429, Reason.RATE_LIMIT, "too much", code="rate_limit_exceeded")
    event = json.loads(REALTIME.words(failure, "r1"))
    assert (event["type"], event["event_id"]) == ("error", "event_r1")
    assert event["error"] == {
        "type": "rate_limit_error", "code": "rate_limit_exceeded", "message": "too much", "param": None,
        "event_id": None,
    }  # fmt: skip


# ---- events


def test_an_answer_from_its_beginning_to_its_usage() -> None:
    reader = RealtimeReader()
    assert read(reader, "session.created", session={"model": "gpt-realtime-2025"}) == Told(Kind.SESSION)
    assert reader.model == "gpt-realtime-2025"
    assert read(reader, "conversation.item.added", item={}) is None
    began = read(reader, "response.created", response={"id": "r", "usage": None, "max_output_tokens": 300})
    assert began == Told(Kind.BEGAN, "r", output=300)
    assert read(reader, "response.output_text.delta", response_id="r", delta="Hi") == Told(Kind.SPOKE, "r")
    assert read(reader, "response.output_text.delta", response_id="r", delta="!") is None
    ended = read(reader, "response.done", response={"id": "r", "status": "completed", "usage": USAGE})
    assert ended == Told(Kind.ENDED, "r", COUNTED, "completed")
    reader.forget("r")
    assert reader.prompt() == Usage(230, estimated=True)  # all of it is asked again with what comes next


def test_an_answer_that_failed_and_one_without_a_beginning() -> None:
    reader = RealtimeReader()
    details = {"type": "failed", "error": {"code": "overloaded", "message": "too much"}}
    response = {"id": "r", "status": "failed", "status_details": details, "usage": None}
    assert read(reader, "response.done", response=response) == Told(
        Kind.ENDED, "r", None, "failed", detail="overloaded: too much"
    )
    incomplete = {"id": "r", "status": "incomplete", "status_details": {"reason": "max_output_tokens"}, "usage": USAGE}
    assert read(reader, "response.done", response=incomplete) == Told(Kind.ENDED, "r", COUNTED, "incomplete")


def test_what_was_heard() -> None:
    reader = RealtimeReader()
    read(reader, "session.updated", session={"audio": {"input": {"transcription": {"model": "whisper-1"}}}})
    assert reader.transcription == "whisper-1"
    done = "conversation.item.input_audio_transcription.completed"
    details = {"text_tokens": 4, "audio_tokens": 36}
    usage = {"type": "tokens", "input_tokens": 40, "output_tokens": 10, "input_token_details": details}
    assert read(reader, done, usage=usage) == Told(Kind.TRANSCRIBED, usage=Usage(40, 10, audio_input=36))
    assert read(reader, done, usage={"type": "duration", "seconds": 3}) == Told(Kind.TRANSCRIBED)
    assert read(reader, done) == Told(Kind.TRANSCRIBED)
    # The older form.
    read(reader, "transcription_session.updated", session={"input_audio_transcription": {"model": "gpt-4o"}})
    assert reader.transcription == "gpt-4o"


def test_errors_and_what_is_none_of_our_business() -> None:
    reader = RealtimeReader()
    error = {"type": "invalid_request_error", "code": None, "message": "no"}
    assert read(reader, "error", error=error) == Told(Kind.ERROR, detail="invalid_request_error: no")
    assert read(reader, "error", error="odd") == Told(Kind.ERROR, detail="error")
    assert read(reader, "rate_limits.updated", rate_limits=[]) is None
    for odd in (b"", b"[]", b"{", b"\xff", b'{"type":1}', b"[" * 100_000, b'{"type":"response.created","delta":{}}'):
        assert reader.read(odd) is None


def test_what_did_not_end_is_estimated_from_what_was_seen() -> None:
    reader = RealtimeReader()
    reader.sent(400)  # a question
    reader.sent(64_000)  # a second of sound
    read(reader, "response.created", response={"id": "r"})
    reader.sent(4000)  # and more of the next one
    read(reader, "response.output_audio_transcript.delta", response_id="r", delta="é" * 10)
    read(reader, "response.output_audio.delta", response_id="r", delta="A" * 32_000)  # half a second
    assert reader.unfinished("r") == Usage(110, 15, audio_input=10, audio_output=10, estimated=True)
    # Telephones have fewer bytes a second.
    form = {"audio": {"input": {"format": {"type": "audio/pcmu"}}, "output": {"format": {"type": "audio/pcma"}}}}
    read(reader, "session.updated", session=form)
    assert reader.unfinished("r").audio_output == 61
    assert reader.unfinished("unknown") == reader.prompt()


def test_an_answer_that_is_said_to_have_used_nothing_is_estimated() -> None:
    zeros = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    for words, told in (("hello", None), ("", Usage())):
        reader = RealtimeReader()
        read(reader, "response.created", response={"id": "r"})
        if words:
            read(reader, "response.output_text.delta", response_id="r", delta=words)
        ended = read(reader, "response.done", response={"id": "r", "status": "completed", "usage": zeros})
        assert ended is not None
        assert ended.usage == told


def test_an_event_that_is_too_long_to_be_kept() -> None:
    reader = RealtimeReader()
    read(reader, "response.created", response={"id": "resp_1"})
    beginning = b'{"type": "response.done", "event_id": "e", "response": {"id": "resp_1", "output": ["xxx'
    assert reader.read(beginning, whole=False) == Told(Kind.ENDED, "resp_1")
    assert reader.read(b'{"type":"response.done","response":{"output":["x', whole=False) == Told(Kind.ENDED, "resp_1")
    assert reader.read(b'{"type":"conversation.item.retrieved","item":', whole=False) is None


def test_too_many_answers_at_once() -> None:
    reader = RealtimeReader()
    for n in range(64):
        read(reader, "response.created", response={"id": f"r{n}"})
    with pytest.raises(Failure) as failure:
        read(reader, "response.created", response={"id": "one more"})
    assert failure.value.status == 502


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda v: (
            st.lists(v)
            | st.dictionaries(
                st.sampled_from(("type", "response", "session", "id", "usage", "audio", "error", "delta")), v
            )
        ),
    )
)
def test_events_of_any_form_are_read_or_left_alone(value: Any) -> None:
    reader = RealtimeReader()
    for kind in ("response.created", "response.done", "session.updated", "error"):
        fields = {"type": kind, "response": value, "session": value, "error": value, "usage": value}
        reader.read(json.dumps(fields).encode())
