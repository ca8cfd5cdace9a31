"""What a provider tells of its usage that is no usage: the stream that it is of goes on, in every API, uncounted.

`wire.llm.usage.uncounted`, and what reads and translates streams with it.
"""

from typing import Any

import msgspec
import pytest

from tollhouse.core.call import Usage
from tollhouse.wire.eventstream import frame as message
from tollhouse.wire.llm import CHAT as OPENAI
from tollhouse.wire.llm import CODECS, CONVERSE, GENERATE, MESSAGES, RESPONSES
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.model import Chat
from tollhouse.wire.llm.translate import Translation
from tollhouse.wire.llm.usage import uncounted
from tollhouse.wire.sse import frame, split

UNREAD = [
    b"[]", b'"none"', b"5", b"true", b'{"#":-9}', b'{"#":9.5}', b'{"#":1e400}', b'{"#":9223372036854775808}',
    b'{"#":4294967296}', b'{"#":[9]}', b'{"#":true}', b'{"#":"many"}',
]  # fmt: skip
UNSAID = [b"null", b"{}"]


def _chat(usage: bytes) -> bytes:
    head = b'{"id":"c","object":"chat.completion.chunk","created":1,"model":"m-1",'
    said = frame(head + b'"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":null}]}')
    # Some servers tell it beside the end.
    last = frame(
        head + b'"choices":[{"index":0,"delta":{"content":" you"},"finish_reason":"stop"}],"usage":%b}' % usage
    )
    return said + last + frame(b"[DONE]")


def _responses(usage: bytes) -> bytes:
    item = b'{"type":"message","id":"i","role":"assistant","status":"%b","content":[%b]}'
    part = b'{"type":"output_text","text":"%b","annotations":[]}'
    place = b'"item_id":"i","output_index":0,"content_index":0'
    whole = item % (b"completed", part % b"Hello you")
    told = b'{"id":"r","object":"response","created_at":1,"model":"m-1","status":"%b","output":[%b]%b}'
    events = [
        (b"response.created", b'"response":' + told % (b"in_progress", b"", b"")),
        (b"response.output_item.added", b'"output_index":0,"item":' + item % (b"in_progress", b"")),
        (b"response.content_part.added", place + b',"part":' + part % b""),
        (b"response.output_text.delta", place + b',"delta":"Hello you"'),
        (b"response.output_item.done", b'"output_index":0,"item":' + whole),
        (b"response.completed", b'"response":' + told % (b"completed", whole, b',"usage":' + usage)),
    ]
    return b"".join(frame(b'{"type":"%b",%b}' % (name, fields), name) for name, fields in events)


def _messages(usage: bytes) -> bytes:
    begun = b'{"id":"m","type":"message","role":"assistant","model":"m-1","content":[],"stop_reason":null,"usage":%b}'
    events = [
        (b"message_start", b'"message":' + begun % usage),
        (b"content_block_start", b'"index":0,"content_block":{"type":"text","text":""}'),
        (b"content_block_delta", b'"index":0,"delta":{"type":"text_delta","text":"Hello you"}'),
        (b"content_block_stop", b'"index":0'),
        (b"message_delta", b'"delta":{"stop_reason":"end_turn"},"usage":' + usage),
        (b"message_stop", b'"x":1'),
    ]
    return b"".join(frame(b'{"type":"%b",%b}' % (name, fields), name) for name, fields in events)


def _generate(usage: bytes) -> bytes:
    candidate = b'{"candidates":[{"index":0,"content":{"role":"model","parts":[{"text":"%b"}]}%b}]'
    told = candidate + b',"modelVersion":"m-1","usageMetadata":%b}'
    return frame(told % (b"Hello", b"", usage)) + frame(told % (b" you", b',"finishReason":"STOP"', usage))


def _converse(usage: bytes) -> bytes:
    events = [
        (b"messageStart", b'{"role":"assistant"}'),
        (b"contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"Hello you"}}'),
        (b"contentBlockStop", b'{"contentBlockIndex":0}'),
        (b"messageStop", b'{"stopReason":"end_turn"}'),
        (b"metadata", b'{"usage":%b,"metrics":{"latencyMs":1}}' % usage),
    ]
    return b"".join(message(name, payload) for name, payload in events)


APIS: dict[str, tuple[Dialect, Any, bytes]] = {
    "chat": (OPENAI, _chat, b"completion_tokens"),
    "responses": (RESPONSES, _responses, b"input_tokens"),
    "messages": (MESSAGES, _messages, b"output_tokens"),
    "generate": (GENERATE, _generate, b"promptTokenCount"),
    "converse": (CONVERSE, _converse, b"inputTokens"),
}


def test_the_apis_are_all_that_can_be_translated() -> None:
    assert {dialect.operation for dialect, _, _ in APIS.values()} <= set(CODECS)


@pytest.mark.parametrize("usage", [*UNREAD, *UNSAID])
@pytest.mark.parametrize("api", APIS)
def test_a_stream_passes_with_a_usage_that_is_none(api: str, usage: bytes) -> None:
    dialect, stream, name = APIS[api]
    data = stream(usage.replace(b"#", name))
    framer, reader = dialect.framer(), dialect.reader(strip=True)
    assert reader.read(framer.feed(data)) + framer.rest() == data
    assert reader.failure is None
    assert (reader.began, reader.finished, reader.text) == (True, True, len("Hello you"))
    assert reader.model == ("" if api == "converse" else "m-1")  # which does not tell it
    assert not (reader.counted and reader.usage is not None)
    assert reader.uncounted == ("" if usage in UNSAID else usage.replace(b"#", name).decode())


@pytest.mark.parametrize("usage", [*UNREAD, *UNSAID])
@pytest.mark.parametrize("api", APIS)
def test_a_stream_is_translated_with_a_usage_that_is_none(api: str, usage: bytes) -> None:
    dialect, stream, name = APIS[api]
    data = stream(usage.replace(b"#", name))
    asker = "messages" if api == "chat" else "chat"
    chat = Chat(asker, "m", [])
    translation = Translation(chat, CODECS[asker], CODECS[dialect.operation], 1)
    reader = translation.reader(dialect)
    out = reader.read(dialect.framer().feed(data))
    assert reader.failure is None
    assert (reader.finished, reader.text, reader.usage) == (True, len("Hello you"), None)
    assert reader.uncounted == ("" if usage in UNSAID else usage.replace(b"#", name).decode())
    assert out.count(b"Hello") == 1
    assert out.endswith(b"data: [DONE]\n\n" if asker == "chat" else b'data: {"type":"message_stop"}\n\n')


def test_what_only_the_gateway_asked_for_is_not_passed_though_it_is_none() -> None:
    event = b'data: {"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":-1}}\n\n'
    for strip in (True, False):
        reader = OPENAI.reader(strip=strip)
        assert reader.read(event) == (b"" if strip else event)
        assert reader.usage is None


def test_a_usage_that_was_told_before_stays() -> None:
    good, bad = b'{"promptTokenCount":5,"candidatesTokenCount":2}', b'{"promptTokenCount":-5}'
    reader = GENERATE.reader(strip=False)
    reader.read(split(_generate(good))[0] + split(_generate(bad))[1])
    assert (reader.usage, reader.finished) == (Usage(5, 2), True)


@pytest.mark.parametrize(
    ("data", "without", "usage"),
    [
        (b'{"a":1,"usage":1e400,"b":[1, 2]}', b'{"a":1,"b":[1, 2]}', "1e400"),
        (b'{"message":{"usage":[],"a":1}}', b'{"message":{"a":1}}', "[]"),
        (b'{"a":1}', b'{"a":1}', ""),
    ],
)
def test_an_event_without_its_usage(data: bytes, without: bytes, usage: str) -> None:
    assert uncounted(bytes, data, ("usage",), ("message", "usage")) == (without, usage)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"usage":NaN}', b'{"message":5}', b'{"a":1} {'])
def test_what_is_no_object_has_none(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        uncounted(bytes, data, ("usage",), ("message", "usage"))
