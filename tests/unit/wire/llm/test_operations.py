"""The APIs that are only passed on: what of their requests and answers is read, and that the rest keeps its bytes."""

from typing import Any

import msgspec
import pytest

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import (
    COMPLETIONS,
    COUNT_TOKENS,
    GEMINI,
    IMAGE_EDITS,
    IMAGE_VARIATIONS,
    IMAGES,
    MODERATIONS,
    OPENAI_OTHERS,
    RERANK,
    SPEECH,
    TRANSCRIPTIONS,
    TRANSLATIONS,
)
from tollhouse.wire.llm.dialect import Dialect, StreamFailure
from tollhouse.wire.sse import frame

Raw = msgspec.Raw
FORMS = (IMAGE_EDITS, IMAGE_VARIATIONS, TRANSCRIPTIONS, TRANSLATIONS)


def event(value: Any, name: bytes = b"") -> bytes:
    return frame(msgspec.json.encode(value), name)


def form(*parts: tuple[str, bytes], sound: bytes = b"\x00RIFF\xff") -> bytes:
    text = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (n.encode(), v) for n, v in parts
    )
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n' % sound
    return text + file + b"--b--\r\n"


@pytest.mark.parametrize("dialect", [d for d in OPENAI_OTHERS if d not in FORMS], ids=lambda d: d.operation)
def test_a_json_request_keeps_its_values(dialect: Dialect) -> None:
    body = b'{"model":"a", "x":{"y": [1, 2.50]}, "input":"\\u00e9"}'
    asked = dialect.decode(body)
    assert (asked.model, asked.stream, asked.content_type) == ("a", False, b"")
    assert dialect.encode({**asked.fields, "model": Raw(b'"b"')}, body) == (
        b'{"model":"b","x":{"y": [1, 2.50]},"input":"\\u00e9"}'
    )


# ---- completions
def test_completions_are_counted_as_chats_are() -> None:
    answer = b'{"model":"m-1","choices":[{"text":"hi"}],"usage":{"prompt_tokens":5,"completion_tokens":7}}'
    assert COMPLETIONS.answer(answer) == (Usage(5, 7), "m-1")
    asked = COMPLETIONS.decode(b'{"model":"m","prompt":"p","stream":true,"max_tokens":9,"n":2}')
    assert asked.stream
    assert COMPLETIONS.output_bound(asked.fields) == 18
    assert COMPLETIONS.usage_options(asked.fields) is not None


def test_a_stream_of_completions() -> None:
    reader = COMPLETIONS.reader(strip=True)
    said = event({"model": "m-1", "choices": [{"text": "abcd", "index": 0, "finish_reason": None}]})
    usage = event({"model": "m-1", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}})
    assert reader.read(said) == said
    assert reader.text == 4
    assert reader.read(usage) == b""
    assert reader.read(b"data: [DONE]\n\n") == b"data: [DONE]\n\n"
    assert (reader.usage, reader.counted, reader.finished, reader.model) == (Usage(5, 7), True, True, "m-1")


# ---- moderations
@pytest.mark.parametrize(
    "body, model",
    [
        (b'{"input":"x"}', "omni-moderation-latest"),
        (b'{"input":"x","model":"text-moderation-stable"}', "text-moderation-stable"),
    ],
)
def test_a_moderation_need_not_name_its_model(body: bytes, model: str) -> None:
    assert MODERATIONS.decode(body).model == model


def test_moderations_tell_no_usage() -> None:
    assert MODERATIONS.answer(b'{"id":"modr-1","model":"omni-1","results":[]}') == (None, "omni-1")
    assert MODERATIONS.said(b"x" * 1000) == 0
    with pytest.raises(Failure, match='"model" must be a string'):
        MODERATIONS.decode(b'{"input":"x","model":7}')


# ---- images
USAGE = {
    "input_tokens": 50,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
    "output_tokens": 4160,
    "output_tokens_details": {"image_tokens": 4160, "text_tokens": 0},
    "total_tokens": 4210,
}
COUNTED = Usage(50, 4160, image_input=40, image_output=4160)


@pytest.mark.parametrize("dialect", [IMAGES, IMAGE_EDITS], ids=lambda d: d.operation)
def test_pictures_are_counted(dialect: Dialect) -> None:
    answer = msgspec.json.encode({"created": 1, "data": [{"b64_json": "AAAA"}], "usage": USAGE})
    assert dialect.answer(answer) == (COUNTED, "")
    assert dialect.answer(b'{"created":1,"data":[{"url":"https://x"}]}') == (None, "")
    assert dialect.said(answer) == 0


@pytest.mark.parametrize("n, times", [(b"3", 3), (b"0", 1), (b"99", 10), (b"null", 1), (b'"x"', 1)])
def test_each_picture_is_reserved_for(n: bytes, times: int) -> None:
    asked = IMAGES.decode(b'{"model":"m","prompt":"a cat","n":%b}' % n)
    assert IMAGES.output_bound(asked.fields) == 1024 * times


def test_a_stream_of_pictures() -> None:
    reader = IMAGES.reader(strip=False)
    partial = event({"type": "image_generation.partial_image", "b64_json": "A" * 5000, "partial_image_index": 0})
    whole = event(
        {"type": "image_generation.completed", "b64_json": "AAAA", "usage": USAGE}, b"image_generation.completed"
    )
    assert reader.read(partial) == partial
    assert (reader.began, reader.finished, reader.text) == (True, False, 0)
    assert reader.read(whole) == whole
    assert (reader.finished, reader.counted, reader.usage) == (True, True, COUNTED)


@pytest.mark.parametrize("dialect", [IMAGES, IMAGE_EDITS, IMAGE_VARIATIONS])
@pytest.mark.parametrize("details, pictures", [({}, 9), ({"output_tokens_details": {"image_tokens": 7}}, 7)])
def test_what_is_not_told_of_a_picture_is_a_picture(dialect: Any, details: Any, pictures: int) -> None:
    """Some cost three times what text does."""
    usage = {"input_tokens": 5, "output_tokens": 9, **details}
    whole, _ = dialect.answer(msgspec.json.encode({"created": 1, "data": [], "usage": usage}))
    reader = dialect.reader(strip=False)
    reader.read(event({"type": "image_generation.completed", "b64_json": "AAAA", "usage": usage}))
    assert whole == reader.usage == Usage(5, 9, image_output=pictures)


def test_a_picture_is_one_event_however_large() -> None:
    framer = IMAGES.framer()
    picture = event({"type": "image_generation.completed", "b64_json": "A" * (6 << 20)})
    assert framer.feed(picture[: 5 << 20]) == b""
    assert framer.feed(picture[5 << 20 :]) == picture


@pytest.mark.parametrize(
    "said, status",
    [
        ({"type": "error", "error": {"type": "server_error", "message": "no"}}, 502),
        ({"type": "error", "code": "rate_limit_exceeded", "message": "slow"}, 429),
        ({"error": {"code": "insufficient_quota", "message": "pay"}}, 429),
    ],
)
def test_an_error_in_a_stream(said: Any, status: int) -> None:
    reader = IMAGES.reader(strip=False)
    before, error = event({"type": "x.delta", "delta": "ab"}), event(said)
    assert reader.read(before + error) == before
    assert isinstance(reader.failure, StreamFailure)
    assert (reader.failure.status, reader.failure.words) == (status, error)


@pytest.mark.parametrize("data", [b'data: {"delta":{"a":1}}\n\n', b'data: {"usage":[]}\n\n', b": x\n\n"])
def test_what_is_not_understood_passes(data: bytes) -> None:
    reader = IMAGES.reader(strip=False)
    assert reader.read(data) == data
    assert reader.failure is None


# ---- audio
def test_speech() -> None:
    plain = SPEECH.decode(b'{"model":"tts-1","input":"hello","voice":"alloy","stream":true}')
    assert not plain.stream
    assert SPEECH.decode(b'{"model":"tts-1","input":"hello","stream_format":"sse"}').stream
    assert SPEECH.opaque_answer
    assert SPEECH.answer(b"ID3\x04\x00\xff") == (None, "")
    reader = SPEECH.reader(strip=False)
    reader.read(event({"type": "speech.audio.delta", "audio": "AAAA"}))
    reader.read(
        event({"type": "speech.audio.done", "usage": {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115}})
    )
    assert (reader.finished, reader.usage, reader.text) == (True, Usage(14, 101), 0)
    assert SPEECH.unsaid(plain.fields, b"ID3" * 9999) == 9  # what it says, not how it is coded
    assert TRANSCRIPTIONS.unsaid({}, b"Hello there.") == 3
    assert IMAGES.unsaid({}, b"{}") == 0


def test_transcriptions_are_counted() -> None:
    tokens = {
        "text": "hi",
        "usage": {
            "type": "tokens", "input_tokens": 14, "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
            "output_tokens": 45, "total_tokens": 59,
        },
    }  # fmt: skip
    assert TRANSCRIPTIONS.answer(msgspec.json.encode(tokens)) == (Usage(14, 45, audio_input=14), "")
    assert TRANSCRIPTIONS.answer(b'{"text":"hi","usage":{"type":"duration","seconds":3.5}}') == (None, "")
    assert TRANSCRIPTIONS.answer(b"1\n00:00:00,000 --> 00:00:01,000\nhi\n") == (None, "")
    reader = TRANSCRIPTIONS.reader(strip=False)
    reader.read(event({"type": "transcript.text.delta", "delta": "abcd"}))
    assert (reader.began, reader.finished, reader.text) == (True, False, 4)
    reader.read(event({"type": "transcript.text.done", **tokens}))
    assert (reader.finished, reader.usage) == (True, Usage(14, 45, audio_input=14))


# ---- forms
def test_a_form_changes_only_where_its_fields_do() -> None:
    body = form(("model", b"smart"), ("language", b"de"), ("include[]", b"a"), ("include[]", b"b"), ("stream", b"true"))
    asked = TRANSCRIPTIONS.decode(body)
    assert (asked.model, asked.stream) == ("smart", True)
    assert asked.content_type == b"multipart/form-data; boundary=b"
    assert {n: bytes(v) for n, v in asked.fields.items()} == {
        "model": b'"smart"', "language": b'"de"', "stream": b'"true"',
    }  # fmt: skip
    assert TRANSCRIPTIONS.encode(asked.fields, body) == body
    asked.fields["model"] = Raw(b'"whisper-1"')
    assert TRANSCRIPTIONS.encode(asked.fields, body) == body.replace(b"smart", b"whisper-1")
    del asked.fields["language"]
    asked.fields |= {"temperature": Raw(b"0.5"), "prompt": Raw(b'"\\u00fc"'), "gone": Raw(b"null")}
    again = TRANSCRIPTIONS.decode(TRANSCRIPTIONS.encode(asked.fields, body))
    assert {n: msgspec.json.decode(v) for n, v in again.fields.items()} == {
        "model": "whisper-1", "stream": "true", "temperature": "0.5", "prompt": "\u00fc",
    }  # fmt: skip


def test_sound_is_one_item_and_no_text() -> None:
    body = form(("model", b"m"), ("prompt", b"x" * 40), sound=b"\xff" * 100_000)
    asked = TRANSCRIPTIONS.decode(body)
    assert TRANSCRIPTIONS.estimate(body, asked.fields) == 1 + 10 + 1000 + 1024


def test_the_model_of_a_path() -> None:
    body = form(("language", b"de"))
    asked = TRANSCRIPTIONS.decode(body, model="dep")
    assert (asked.model, asked.stream) == ("dep", False)
    asked.fields["model"] = Raw(b'"dep"')
    assert TRANSCRIPTIONS.decode(TRANSCRIPTIONS.encode(asked.fields, body)).model == "dep"


def test_a_form_may_be_json_where_a_server_takes_that() -> None:
    body = b'{"model":"m","file_url":"https://x"}'
    asked = TRANSCRIPTIONS.decode(body)
    assert (asked.model, asked.content_type) == ("m", b"")
    assert TRANSCRIPTIONS.encode(asked.fields, body) == body
    assert TRANSCRIPTIONS.estimate(body, asked.fields) == len(body) // 4 + 1024


@pytest.mark.parametrize(
    "body, said, code",
    [
        (b"", "must be multipart", "invalid_form"),
        (b"model=a", "must be multipart", "invalid_form"),
        (form(("model", b"m"))[:-8], "last boundary", "invalid_form"),
        (form(("language", b"de")), "is missing", "model_required"),
        (form(("model", b"a"), ("model", b"b")), "one part", "ambiguous_field"),
        (form(("model", b"a"), ("Model", b"b")), "differs only by case", "ambiguous_field"),
        (form(("model", b"a"), ("STREAM", b"1")), "differs only by case", "ambiguous_field"),
        (form(("model", b"\xff")), "one part", "ambiguous_field"),
        (form(("model", b"m" * 70_000)), "one part", "ambiguous_field"),
        (form(("model", b"m"), ("stream", b"true"), ("stream", b"false")), "one part", "ambiguous_field"),
        (form(("model", b"m")).replace(b'name="model"', b'name="model"; filename="m"'), "one part", "ambiguous_field"),
        (b'{"model":7}', "must be a string", "model_required"),
    ],
)
def test_hostile_forms(body: bytes, said: str, code: str) -> None:
    with pytest.raises(Failure, match=said) as caught:
        TRANSCRIPTIONS.decode(body)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_a_value_that_holds_the_boundary_is_refused() -> None:
    body = form(("model", b"m"))
    with pytest.raises(Failure, match="cannot be changed"):
        TRANSCRIPTIONS.encode({"model": Raw(b'"x\\r\\n--b--"')}, body)


# ---- rerank
@pytest.mark.parametrize(
    "answer, usage",
    [
        ({"model": "jina-reranker", "usage": {"total_tokens": 38}, "results": []}, Usage(38)),
        ({"usage": {"prompt_tokens": 9, "total_tokens": 9}}, Usage(9)),
        (
            {"meta": {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": 12.0, "output_tokens": 0}}},
            Usage(12),
        ),
        ({"meta": {"billed_units": {"search_units": 1}}}, None),
        ({"usage": {"total_tokens": -1}}, None),
        ({"usage": {"total_tokens": 10**30}}, None),
        ({"meta": {"tokens": {"input_tokens": 1e300}}}, None),
        ({"results": []}, None),
    ],
)
def test_rerank_is_counted(answer: Any, usage: Usage | None) -> None:
    assert RERANK.answer(msgspec.json.encode(answer)) == (usage, answer.get("model", ""))


def test_rerank_reserves_no_output() -> None:
    body = b'{"model":"m","query":"q","documents":["a","b"]}'
    assert RERANK.estimate(body, RERANK.decode(body).fields) == len(body) // 4


# ---- count_tokens
def test_counting_uses_nothing() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
    asked = COUNT_TOKENS.decode(body)
    assert COUNT_TOKENS.estimate(body, asked.fields) == 0
    assert COUNT_TOKENS.answer(b'{"input_tokens":14}') == (Usage(), "")
    assert COUNT_TOKENS.answer(b"<html>") == (None, "")


def counted(**fields: Any) -> int:
    body = msgspec.json.encode({"model": "m", **fields})
    answer = COUNT_TOKENS.here(COUNT_TOKENS.decode(body).fields, "m")
    assert answer is not None
    tokens = msgspec.json.decode(answer)
    assert list(tokens) == ["input_tokens"]
    return int(tokens["input_tokens"])


def test_the_gateway_counts_where_it_knows_the_words() -> None:
    def count(text: str) -> int:
        return len(text.split())

    body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "one two three"}]})
    assert COUNT_TOKENS.here(COUNT_TOKENS.decode(body).fields, "m", count) == b'{"input_tokens":7}'
    body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "word " * 100_000}]})
    assert COUNT_TOKENS.here(COUNT_TOKENS.decode(body).fields, "m", count) == b'{"input_tokens":100010}'
    body = msgspec.json.encode({"model": "m", "messages": []})
    assert COUNT_TOKENS.here(COUNT_TOKENS.decode(body).fields, "m", count) == b'{"input_tokens":0}'


def test_the_gateway_estimates() -> None:
    hello = [{"role": "user", "content": "hello there"}]
    plain = counted(messages=hello)
    assert plain == 4 + 3
    assert counted(messages=hello, system="be good") == plain + 4 + 2
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 4000}}
    assert (
        counted(messages=[{"role": "user", "content": [{"type": "text", "text": "hello there"}, picture]}])
        == plain + 1000
    )
    tool = {"name": "add", "description": "adds", "input_schema": {"type": "object"}}
    assert counted(messages=hello, tools=[tool]) == plain + 4 + 1 + 1 + 5
    turn = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "add", "input": {"a": 1}}]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "12345678"}]}
    assert counted(messages=[*hello, turn, result]) > plain + 4 + 4 + 2


CONTENTS = {"contents": [{"role": "user", "parts": [{"text": "hello there"}]}]}


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        (CONTENTS, 7),
        ({"contents": {"parts": [{"text": "hello there"}]}}, 7),
        ({"generateContentRequest": {"model": "models/m", **CONTENTS}}, 7),
        ({"generate_content_request": {**CONTENTS, "systemInstruction": {"parts": [{"text": "be good"}]}}}, 13),
        ({"contents": [], "generateContentRequest": None}, 0),
        ({"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]}]}, 1004),
    ],
)
def test_the_gateway_estimates_geminis(fields: dict[str, Any], tokens: int) -> None:
    count = GEMINI[-1]
    raw = {name: Raw(msgspec.json.encode(value)) for name, value in fields.items()}
    assert count.here(raw, "m") == b'{"totalTokens":%d}' % tokens
    counted = count.here(raw, "m", lambda text: 100 if text else 0)
    assert counted is not None
    assert ("10" in counted.decode()) == bool(tokens)


@pytest.mark.parametrize("fields", [{}, {"contents": 5}, {"generateContentRequest": 5}, {"contents": [{"parts": 1}]}])
def test_what_of_geminis_cannot_be_counted(fields: dict[str, Any]) -> None:
    with pytest.raises(Failure) as caught:
        GEMINI[-1].here({name: Raw(msgspec.json.encode(value)) for name, value in fields.items()}, "m")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "fields", [b'{"model":"m"}', b'{"model":"m","messages":5}', b'{"model":"m","messages":[{"role":1}]}']
)
def test_what_cannot_be_counted_is_refused(fields: bytes) -> None:
    with pytest.raises(Failure) as caught:
        COUNT_TOKENS.here(COUNT_TOKENS.decode(fields).fields, "m")
    assert caught.value.status == 400
