"""A provider that answers as a test says, the answers of each API, and what a caller is told."""

from collections.abc import Callable
from typing import Any

import msgspec
from tests.unit.backends.calls import call, taken
from tests.unit.backends.tokens import Asked
from tests.unit.net.upstreams import Peer

from tollhouse.backends.llm import LLMBackend
from tollhouse.backends.provider import Provider, Timeouts
from tollhouse.core.call import ModelCall
from tollhouse.core.reply import Reply
from tollhouse.wire.eventstream import frame
from tollhouse.wire.llm.dialect import Dialect

SLOW = Timeouts(total=10.0, first_event=5.0, idle=5.0)
HELLO = [{"role": "user", "content": "hello"}]
JSON = b"content-type: application/json\r\n"


def said(fields: Any, status: int = 200, headers: bytes = JSON) -> bytes:
    body = fields if isinstance(fields, bytes) else msgspec.json.encode(fields)
    return b"HTTP/1.1 %d X\r\n%bcontent-length: %d\r\n\r\n%b" % (status, headers, len(body), body)


def streamed(*events: bytes, kind: bytes = b"text/event-stream") -> bytes:
    body = b"".join(events)
    return said(body, headers=b"content-type: %b\r\n" % kind)


def sse(fields: Any, name: str = "") -> bytes:
    data = fields if isinstance(fields, bytes) else msgspec.json.encode(fields)
    return (b"event: %b\n" % name.encode() if name else b"") + b"data: %b\n\n" % data


CHATTED = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "m-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}  # fmt: skip
CHAT_STREAM = (
    sse({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-1",
         "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi."}, "finish_reason": None}]}),
    sse({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-1",
         "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
    sse({"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": [],
         "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}),
    sse(b"[DONE]"),
)  # fmt: skip
RESPONDED = {
    "id": "r1", "object": "response", "created_at": 1, "status": "completed", "model": "m-1",
    "output": [{"type": "message", "id": "o1", "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": "Hi.", "annotations": []}]}],
    "usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9},
}  # fmt: skip
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m-1", "content": [{"type": "text", "text": "Hi."}],
    "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 7, "output_tokens": 2},
}  # fmt: skip
MESSAGE_STREAM = tuple(
    sse(event, event["type"])
    for event in (
        {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi."}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 2},
        },
        {"type": "message_stop"},
    )
)
GENERATED = {
    "candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": "Hi."}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 2, "totalTokenCount": 9},
    "modelVersion": "m-1", "responseId": "g1",
}  # fmt: skip
CONVERSED = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hi."}]}}, "stopReason": "end_turn",
    "usage": {"inputTokens": 7, "outputTokens": 2, "totalTokens": 9}, "metrics": {"latencyMs": 1},
}  # fmt: skip
CONVERSE_STREAM = tuple(
    frame(name.encode(), msgspec.json.encode(payload))
    for name, payload in (
        ("messageStart", {"role": "assistant"}),
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hi."}}),
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("messageStop", {"stopReason": "end_turn"}),
        ("metadata", {"usage": {"inputTokens": 7, "outputTokens": 2, "totalTokens": 9}, "metrics": {"latencyMs": 1}}),
    )
)
EVENT_STREAM = b"application/vnd.amazon.eventstream"


def script(*answers: bytes) -> tuple[Callable[[Peer], Any], list[Asked]]:
    """One answer after another, over all connections; the last one again and again. With what was asked."""
    asked: list[Asked] = []

    async def play(peer: Peer) -> None:
        while True:
            asked.append(Asked(*await peer.request()))
            await peer.send(answers[min(len(asked), len(answers)) - 1])

    return play, asked


def fields_of(asked: Asked) -> dict[str, Any]:
    found = msgspec.json.decode(asked.body)
    assert isinstance(found, dict)
    return found


async def ask(made: Provider, model: str | None = "m-1", asked: ModelCall | None = None, **fields: Any) -> Reply:
    """Chat with `model`."""
    return await LLMBackend(made, model, SLOW).handle(asked or call({"messages": HELLO, **fields}))


async def text(made: Provider, model: str | None = "m-1", **fields: Any) -> str:
    """What `model` says, as chat completions tell it."""
    told = msgspec.json.decode((await ask(made, model, **fields)).first)
    content = told["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


async def stream_text(made: Provider, model: str | None = "m-1", **fields: Any) -> str:
    """The same of a stream."""
    told, failure = await taken(await ask(made, model, stream=True, **fields))
    assert failure is None
    assert told.endswith(b"data: [DONE]\n\n")
    chunks = [msgspec.json.decode(event[6:]) for event in told.split(b"\n\n") if event[6:7] == b"{"]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def named_by_path(dialect: Dialect, fields: dict[str, Any], model: str, *, stream: bool = False) -> ModelCall:
    """A call of an API whose path names the model."""
    return call(msgspec.json.encode(fields), dialect=dialect, label=model, model=model, stream=stream)
