"""OpenAI chat: golden answers and streams, whole and cut anywhere."""

from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request
from tollhouse.wire.llm import CHAT
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.llm.openai_chat import ChatReader
from tollhouse.wire.sse import Framer

GOLDEN = Path(__file__).parent / "golden"
USAGE = Usage(input=176, output=9, cache_read=1024, reasoning=4)


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def read(data: bytes, places: list[int], *, strip: bool) -> tuple[bytes, ChatReader]:
    """`data` through framing and reader, cut at `places`."""
    framer, reader = Framer(), CHAT.reader(strip=strip)
    at = sorted({p % (len(data) + 1) for p in places} | {0, len(data)})
    out = b""
    for a, b in pairwise(at):
        block = framer.feed(data[a:b])
        if block:
            out += reader.read(block)
    return out + framer.rest(), reader


cuts = st.lists(st.integers(0, 1 << 16), max_size=20)


@given(cuts)
def test_a_stream_passes_byte_for_byte(places: list[int]) -> None:
    data = golden("openai_stream.sse")
    out, reader = read(data, places, strip=False)
    assert out == data
    assert reader.usage == USAGE
    assert reader.counted
    assert reader.finished
    assert reader.model == "gpt-4o-mini-2024-07-18"
    assert reader.text > 0


@given(cuts)
def test_the_usage_chunk_is_taken_out_and_nothing_else(places: list[int]) -> None:
    out, reader = read(golden("openai_stream.sse"), places, strip=True)
    assert out == golden("openai_stream_stripped.sse")
    assert b'"usage":null' in out
    assert reader.usage == USAGE


@given(cuts, st.booleans())
def test_usage_in_chunks_with_choices_stays(places: list[int], strip: bool) -> None:
    data = golden("openai_stream_inline_usage.sse")
    out, reader = read(data, places, strip=strip)
    assert out == data
    assert reader.usage == Usage(7, 3)


@given(cuts)
def test_crlf_comments_empty_choices_and_tool_calls(places: list[int]) -> None:
    data = golden("openai_stream_tools_crlf.sse")
    out, reader = read(data, places, strip=True)
    gone = data.replace(out.split(b"data: [DONE]")[0], b"").removesuffix(b"data: [DONE]\r\n\r\n")
    assert b'"choices":[]' in gone
    assert gone.count(b"data:") == 1
    assert b"prompt_filter_results" in out
    assert reader.usage == USAGE
    assert reader.finished


def test_text_is_counted() -> None:
    _, reader = read(golden("openai_stream.sse"), [], strip=False)
    assert reader.text == len('Toll houses “collect” \\n"tolls"\U0001f6a7 .'.encode())


@pytest.mark.parametrize(
    "delta, size",
    [
        ('{"content":null,"reasoning_content":"why"}', 3),
        ('{"content":"","reasoning":"why"}', 3),
        ('{"refusal":"no"}', 2),
        ('{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\":1}"}},{"index":1}]}', 7),
        ('{"content":"\u00e9\\u00e9"}', 4),
        ('{"content":[{"type":"text","text":"odd"}]}', 3),  # not of the usual form
        ('{"content":[{"type":"text","text":"od\u00e9"}]}', 4),
        ("null", 0),
    ],
)
def test_text_is_counted_alone_and_among_others(delta: str, size: int) -> None:
    block = b'data: {"choices":[{"index":0,"delta":%b}]}\n\n' % delta.encode()
    reader = CHAT.reader(strip=True)
    assert reader.read(block) == block  # the first is looked at more closely
    assert reader.read(block) == block
    assert reader.read(block * 2) == block * 2
    assert reader.began
    assert reader.text == 4 * size


def test_text_of_older_completions_is_counted() -> None:
    reader = CHAT.reader(strip=True)
    block = b'data: {"choices":[{"index":0,"text":"abc"}],"usage":null}\n\n'
    assert reader.read(block) + reader.read(block) == block * 2
    assert reader.text == 6


@pytest.mark.parametrize("choices", [b"[]", b"5", b'[{"delta":{"content":[]}}]'])
def test_usage_and_error_are_seen_whatever_the_choices(choices: bytes) -> None:
    reader = CHAT.reader(strip=False)
    usage = b'data: {"choices":%b,"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n' % choices
    assert reader.read(usage) == usage
    assert reader.usage == (Usage(3, 4) if choices != b"5" else None)


def test_a_comment_is_no_beginning() -> None:
    reader = CHAT.reader(strip=True)
    assert reader.read(b": OPENROUTER PROCESSING\n\n") == b": OPENROUTER PROCESSING\n\n"
    assert not reader.began
    reader.read(b'data: {"choices":[]}\n\n')
    assert reader.began


def test_done_in_the_text_does_not_end_it() -> None:
    reader = CHAT.reader(strip=True)
    block = b'data: {"choices":[{"delta":{"content":"data: [DONE]"}}]}\n\n'
    assert reader.read(block) == block
    assert not reader.finished


def test_usage_and_error_in_the_text_are_text() -> None:
    reader = CHAT.reader(strip=True)
    said = msgspec.json.encode(
        {"choices": [{"delta": {"content": '"usage": {"prompt_tokens": 1}, "error": {"a": 1}'}}]}
    )
    assert reader.read(b"data: %b\n\n" % said) == b"data: %b\n\n" % said
    assert reader.usage is None
    assert reader.failure is None


@pytest.mark.parametrize(
    "error, status",
    [
        (b'{"message":"boom","type":"server_error","code":null}', 502),
        (b'{"message":"slow down","type":"rate_limit_error","code":"rate_limit_exceeded"}', 429),
        (b'{"message":"slow down","code":429}', 429),
        (b'"boom"', 502),
    ],
)
def test_an_error_of_the_upstream_is_kept_as_its_last_words(error: bytes, status: int) -> None:
    reader = CHAT.reader(strip=True)
    before = b'data: {"model":"m","choices":[{"delta":{"content":"a"}}]}\n\n'
    raw = b'data: {"error": %b}\n\n' % error
    assert reader.read(before + raw + b"data: [DONE]\n\n") == before
    assert isinstance(reader.failure, StreamFailure)
    assert reader.failure.status == status
    assert CHAT.last_words(reader.failure) == raw
    assert not reader.finished


@pytest.mark.parametrize("null", [b"null", b"{}"])
def test_no_error_is_no_error(null: bytes) -> None:
    reader = CHAT.reader(strip=True)
    block = b'data: {"model":"m","error":%b,"choices":[]}\n\n' % null
    assert reader.read(block) == block
    assert reader.failure is None


@pytest.mark.parametrize(
    "data", [b'{"usage": {"prompt_tokens": "many"}}', b'{"usage": [1]}', b'{"choices": 5, "usage": {}}']
)
def test_what_cannot_be_read_passes(data: bytes) -> None:
    reader = CHAT.reader(strip=True)
    block = b"data: %b\n\n" % data
    assert reader.read(block) == block
    assert reader.began
    assert reader.usage is None


@given(st.binary(max_size=300))
def test_no_stream_breaks_the_reader(data: bytes) -> None:
    reader = CHAT.reader(strip=True)
    reader.read(b'data: {"usage":' + data + b"\n\n")


def test_answer() -> None:
    assert CHAT.answer(golden("openai_answer.json")) == (USAGE, "gpt-4o-mini-2024-07-18")


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"usage":7}', b"{" * 5000, b"\xff"])
def test_an_answer_that_does_not_say(body: bytes) -> None:
    assert CHAT.answer(body) == (None, "")


def test_negative_counts_are_not_believed() -> None:
    assert CHAT.answer(b'{"usage":{"prompt_tokens":-5,"completion_tokens":1}}') == (None, "")


def test_a_part_is_never_more_than_the_whole() -> None:
    usage, _ = CHAT.answer(b'{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":9}}}')
    assert usage == Usage(0, 0, 5)


def test_decode() -> None:
    body = b'{"model":"smart","stream": true,"messages":[{"role":"user","content":"\\u00e9"}],"new":{"a": [1, 2]}}'
    asked = CHAT.decode(body)
    assert asked.model == "smart"
    assert asked.stream
    assert bytes(asked.fields["new"]) == b'{"a": [1, 2]}'
    assert CHAT.estimate(body, asked.fields) == len(body) // 4 + 1024


@pytest.mark.parametrize(
    "fields, output",
    [
        (b'"max_tokens":7', 7),
        (b'"max_completion_tokens":5,"max_tokens":7', 5),
        (b'"max_tokens":7,"n":3', 21),
        (b'"max_tokens":"7"', 1024),
        (b'"max_tokens":-7', 1024),
        (b'"max_tokens":null', 1024),
    ],
)
def test_output_to_reserve(fields: bytes, output: int) -> None:
    body = b'{"model":"m",%b}' % fields
    assert CHAT.estimate(body, CHAT.decode(body).fields) == len(body) // 4 + output


def test_the_last_of_duplicate_names_counts_and_only_it_is_sent() -> None:
    asked = CHAT.decode(b'{"model":"a","model":"b"}')
    assert asked.model == "b"
    assert msgspec.json.encode(asked.fields) == b'{"model":"b"}'


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"model":"a"', "not valid JSON"),
        (b'{"model":"a"} x', "not valid JSON"),
        (b'{"messages":[]}', '"model" is missing'),
        (b'{"model":7}', '"model" must be a string'),
        (b'{"model":null}', '"model" must be a string'),
        (b'{"model":"\xff"}', '"model" must be a string'),
        (b'{"\xff":1}', "not valid JSON"),
        (b'{"model":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too deeply"),
    ],
)
def test_what_is_no_request(body: bytes, message: str) -> None:
    with pytest.raises(Failure, match=message) as caught:
        CHAT.decode(body)
    assert caught.value.status == 400
    assert caught.value.reason is Reason.INVALID_REQUEST


@given(st.binary(max_size=200))
def test_no_body_breaks_decode(body: bytes) -> None:
    with suppress(Failure):
        CHAT.decode(body)


@pytest.mark.parametrize(
    "options, sent",
    [
        (None, b'{"include_usage":true}'),
        (b"null", b'{"include_usage":true}'),
        (b"{}", b'{"include_usage":true}'),
        (b'{"include_usage":false}', b'{"include_usage":true}'),
        (b'{"include_obfuscation": false}', b'{"include_obfuscation":false,"include_usage":true}'),
        (b'{"include_usage": true}', None),
        (b"7", None),
    ],
)
def test_usage_is_asked_for_where_the_caller_did_not(options: bytes | None, sent: bytes | None) -> None:
    fields = {} if options is None else {"stream_options": msgspec.Raw(options)}
    raw = CHAT.usage_options(fields)
    assert (None if raw is None else bytes(raw)) == sent


def test_error_object() -> None:
    failure = Failure(404, Reason.NOT_FOUND, "no such model", code="model_not_found", retry_after=0.2)
    response = CHAT.render(failure, Request(b"POST", b"/", Headers()))
    assert response.status == 404
    assert msgspec.json.decode(response.body) == {
        "error": {
            "message": "no such model",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    assert response.headers == [(b"retry-after", b"1"), (b"content-type", b"application/json")]


def test_last_words_are_one_event_and_no_done() -> None:
    words = CHAT.last_words(Failure(502, Reason.UPSTREAM_FAILURE, 'it "broke"\n'))
    assert words == (
        b'data: {"error":{"message":"it \\"broke\\"\\n","type":"server_error","param":null,"code":null}}\n\n'
    )
