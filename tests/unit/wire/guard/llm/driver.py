"""Streams of every API, and what a policy does with them: StreamTexts and one StreamWindow, joined.

A `Scene` is one channel of one API: it says a text in pieces, with an ending, and reads it out of what left.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tollhouse.wire.eventstream import frame as binary
from tollhouse.wire.eventstream import parse as parse_binary
from tollhouse.wire.eventstream import split as split_binary
from tollhouse.wire.guard.channel import Channel, edited
from tollhouse.wire.guard.json_text import JsonChannel
from tollhouse.wire.guard.llm import Event, stream_texts
from tollhouse.wire.guard.llm.forms import Path
from tollhouse.wire.guard.patterns import Mask, PatternSet
from tollhouse.wire.guard.window import Out, StreamWindow
from tollhouse.wire.sse import frame, parse, split

__all__ = ["ENDINGS", "SCENES", "Driven", "Scene", "guarded", "reference", "told"]

ENDINGS = ("normal", "length", "error", "cut")


class Driven:
    """One stream under one set of patterns."""

    def __init__(self, operation: str, patterns: PatternSet, mask: Mask, **bounds: int) -> None:
        self.texts = stream_texts(operation)
        self.window: StreamWindow[Event] = StreamWindow(patterns, mask, keep=1 << 22, **bounds)
        self.changed: set[Path] = set()
        self.ending = ""
        self.opaque: list[str] = []
        self.signed = False
        self.kinds: set[str] = set()

    def read(self, block: bytes) -> bytes:
        return b"".join([self._pushed(event) for event in self.texts.read(block)])

    def finish(self) -> bytes:
        return self._left(self.window.close(whole=self.ending == "whole"))

    def _pushed(self, event: Event) -> bytes:
        out: list[Out[Event]] = []
        self.opaque += event.opaque
        self.ending = event.ending or self.ending
        for key in event.finishes:
            out += self.window.finish(key, whole=event.ending != "cut")
        for key, is_json in event.opens:
            self.window.open(key, json=is_json)
        self.kinds |= {str(key[-1]) for key, _ in event.texts}
        out += self.window.push(event, *event.texts)
        for key in event.closes:
            out += self.window.finish(key)
        return self._left(out)

    def _left(self, out: list[Out[Event]]) -> bytes:
        written = []
        for event, new in out:
            if new is not None:
                numbered = zip(event.texts, new, strict=False)
                keys = {key for (key, text), other in numbered if other is not None and other != text}
                self.changed |= keys
                self.signed = self.signed or not keys.isdisjoint(event.signed)
            if new is None and not event.repeats and not self.texts.altered:
                written.append(event.raw)
            else:
                written.append(self.texts.write(event, new, self._said))
        return b"".join(written)

    def _said(self, key: Path) -> str | None:
        return self.window.said(key) if key in self.changed else None


def guarded(operation: str, patterns: PatternSet, mask: Mask, blocks: Iterable[bytes]) -> bytes:
    """What leaves of a stream."""
    driven = Driven(operation, patterns, mask)
    return b"".join([driven.read(block) for block in blocks]) + driven.finish()


def reference(patterns: PatternSet, mask: Mask, text: str, ending: str, *, is_json: bool) -> str:
    """What the whole text becomes."""
    channel = (JsonChannel if is_json else Channel)(patterns, mask)
    return edited(channel.feed(text)) + edited(channel.finish(whole=ending == "normal"))


def told(operation: str, out: bytes) -> list[Any]:
    """The JSON of each event, of a binary one with its name as `type`."""
    if operation == "converse":
        messages = [parse_binary(raw) for raw in split_binary(out)]
        return [{"type": m.headers.get(":event-type"), **json.loads(m.payload)} for m in messages]
    events = [parse(raw)[1] for raw in split(out)]
    return [json.loads(data) for data in events if data and data != b"[DONE]"]


@dataclass
class Scene:
    """One channel. say: raw events of a text in pieces, with an ending. read: every text of the channel that what left
    tells, whole; `None` of one that does not tell it whole with that ending."""

    operation: str
    name: str
    say: Callable[[list[str], str], list[bytes]]
    read: Callable[[list[Any]], list[str]]
    json: bool = False
    kind: str = "text"

    def __str__(self) -> str:
        return f"{self.operation} {self.name}"


def _data(value: Any) -> bytes:
    return frame(json.dumps(value, ensure_ascii=False).encode())


def _named(value: Any) -> bytes:
    return frame(json.dumps(value, ensure_ascii=False).encode(), value["type"].encode())


def _binary(name: str, value: Any) -> bytes:
    return binary(name.encode(), json.dumps(value, ensure_ascii=False).encode())


# ---- OpenAI chat completions


def _chat(
    place: Callable[[str], Any], *, index: int = 0, beside: Any = None
) -> Callable[[list[str], str], list[bytes]]:
    """place: the delta that says a piece. beside: a delta of the other choice, between any two of them."""

    def chunk(delta: Any, at: int = index, finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": at, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
        return _data({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})

    def say(pieces: list[str], ending: str) -> list[bytes]:
        out = [chunk({"role": "assistant", "content": ""})]
        for piece in pieces:
            out.append(chunk(place(piece)))
            if beside is not None:
                out.append(chunk(beside, 1 - index))
        if ending == "error":
            return [*out, _data({"error": {"message": "it failed"}})]
        if ending == "cut":
            return out
        finish = {"normal": "stop", "length": "length"}[ending]
        if beside is not None:
            out.append(chunk({}, 1 - index, "stop"))
        usage = {"id": "c", "object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 3}}
        return [*out, chunk({}, finish=finish), _data(usage), b"data: [DONE]\n\n"]

    return say


def _chat_read(get: Callable[[Any], Any], index: int = 0) -> Callable[[list[Any]], list[str]]:
    def read(events: list[Any]) -> list[str]:
        said = ""
        for event in events:
            for choice in event.get("choices", ()):
                if choice["index"] == index and choice["delta"]:
                    said += get(choice["delta"]) or ""
        return [said]

    return read


def _call(piece: str) -> Any:
    return {"tool_calls": [{"index": 1, "function": {"arguments": piece}}]}


def _called(name: str, inner: str) -> Callable[[Any], Any]:
    return lambda delta: "".join(call[name][inner] for call in delta.get("tool_calls", ()))


def _field(name: str) -> tuple[Callable[[str], Any], Callable[[Any], Any]]:
    return (lambda piece: {name: piece}), (lambda delta: delta.get(name))


def _chat_scenes() -> list[Scene]:
    scenes = []
    for name, kind in (("content", "text"), ("refusal", "text"), ("reasoning_content", "reasoning"),
                       ("reasoning", "reasoning")):  # fmt: skip
        place, get = _field(name)
        scenes.append(Scene("chat", name, _chat(place), _chat_read(get), kind=kind))
    place, get = _field("content")
    scenes.append(Scene("chat", "two choices", _chat(place, index=1, beside={"content": "sk. "}), _chat_read(get, 1)))
    beside = {"tool_calls": [{"index": 1, "function": {"arguments": '{"a'}}]}
    args = _chat(_call, beside=beside)
    read = _chat_read(_called("function", "arguments"))
    scenes.append(Scene("chat", "arguments", _chat(_call), read, json=True, kind="arguments"))
    scenes.append(Scene("chat", "arguments of two choices", args, read, json=True, kind="arguments"))
    custom = _chat(lambda piece: {"tool_calls": [{"index": 0, "custom": {"input": piece}}]})
    scenes.append(Scene("chat", "input", custom, _chat_read(_called("custom", "input")), kind="arguments"))
    spoken = _chat(lambda piece: {"audio": {"id": "a", "transcript": piece}})
    scenes.append(Scene("chat", "transcript", spoken, _chat_read(lambda d: d.get("audio", {}).get("transcript"))))
    detail = _chat(lambda piece: {"reasoning_details": [{"type": "reasoning.text", "index": 0, "text": piece}]})
    scenes.append(
        Scene(
            "chat",
            "details",
            detail,
            _chat_read(lambda d: "".join(one["text"] for one in d.get("reasoning_details", ()))),
            kind="reasoning",
        )
    )
    parts = _chat(lambda piece: {"content": [{"type": "text", "text": piece}]})
    scenes.append(
        Scene("chat", "parts", parts, _chat_read(lambda d: "".join(p["text"] for p in d.get("content", ()) or ())))
    )
    return scenes


# ---- OpenAI completions


def _completions(pieces: list[str], ending: str) -> list[bytes]:
    def chunk(text: str, finish: str | None) -> bytes:
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": finish}
        return _data({"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})

    out = [chunk(piece, None) for piece in pieces[:-1]]
    if ending == "error":
        return [*out, chunk(pieces[-1], None), _data({"error": {"message": "it failed"}})]
    if ending == "cut":
        return [*out, chunk(pieces[-1], None)]
    # The last piece comes with the reason, as some servers have it.
    return [*out, chunk(pieces[-1], {"normal": "stop", "length": "length"}[ending]), b"data: [DONE]\n\n"]


# ---- Anthropic messages


def _messages(begin: Any, place: Callable[[str], Any]) -> Callable[[list[str], str], list[bytes]]:
    def say(pieces: list[str], ending: str) -> list[bytes]:
        message = {"id": "m", "type": "message", "role": "assistant", "model": "c", "content": [], "usage": {}}
        out = [
            _named({"type": "message_start", "message": {**message, "stop_reason": None, "stop_sequence": None}}),
            _named({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            _named({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "So: sk-"}}),
            _named({"type": "content_block_stop", "index": 0}),
            _named({"type": "content_block_start", "index": 1, "content_block": begin}),
            _named({"type": "ping"}),
        ]
        out += [_named({"type": "content_block_delta", "index": 1, "delta": place(piece)}) for piece in pieces]
        if ending == "error":
            error = {"type": "overloaded_error", "message": "it failed"}
            return [*out, _named({"type": "error", "error": error})]
        if ending == "cut":
            return out
        if begin["type"] == "thinking":
            signature = {"type": "signature_delta", "signature": "U0lH"}
            out.append(_named({"type": "content_block_delta", "index": 1, "delta": signature}))
        stop = {"normal": "end_turn", "length": "max_tokens"}[ending]
        return [
            *out,
            _named({"type": "content_block_stop", "index": 1}),
            _named({"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": {}}),
            _named({"type": "message_stop"}),
        ]

    return say


def _messages_read(name: str) -> Callable[[list[Any]], list[str]]:
    def read(events: list[Any]) -> list[str]:
        pieces = [e["delta"].get(name, "") for e in events if e["type"] == "content_block_delta" and e["index"] == 1]
        return ["".join(pieces)]

    return read


def _messages_scenes() -> list[Scene]:
    text = _messages({"type": "text", "text": ""}, lambda piece: {"type": "text_delta", "text": piece})
    thinking = _messages(
        {"type": "thinking", "thinking": "", "signature": ""},
        lambda piece: {"type": "thinking_delta", "thinking": piece},
    )
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    arguments = _messages(call, lambda piece: {"type": "input_json_delta", "partial_json": piece})
    return [
        Scene("messages", "text", text, _messages_read("text")),
        Scene("messages", "thinking", thinking, _messages_read("thinking"), kind="reasoning"),
        Scene("messages", "input", arguments, _messages_read("partial_json"), json=True, kind="arguments"),
    ]


# ---- OpenAI responses


def _responses(
    delta: str, done: str, member: str, item: Callable[[str], Any], *, part: Callable[[str], Any] | None = None
) -> Callable[[list[str], str], list[bytes]]:
    """delta, done: kinds of events. member: of the second, that has the text. item, part: with a text."""

    def say(pieces: list[str], ending: str) -> list[bytes]:
        whole = "".join(pieces)
        number = 0

        def event(kind: str, **more: Any) -> bytes:
            nonlocal number
            number += 1
            return _named({"type": kind, "sequence_number": number, **more})

        place = {"item_id": "i", "output_index": 0, "content_index": 0}
        echo = {"instructions": "be sk-terse", "tools": [], "metadata": {}}
        status = {"normal": "completed", "length": "incomplete"}.get(ending, "in_progress")
        response = {"id": "r", "object": "response", "status": status, "model": "m", "output": [], **echo}
        out = [event("response.created", response=response)]
        out.append(event("response.output_item.added", output_index=0, item={**item(""), "status": "in_progress"}))
        if part is not None:
            out.append(event("response.content_part.added", **place, part=part("")))
        out += [event(delta, **place, delta=piece, logprobs=[], obfuscation="x") for piece in pieces]
        if ending == "error":
            return [*out, event("error", code="e", message="it failed", param=None)]
        if ending == "cut":
            return out
        out.append(event(done, **place, **{member: whole}))
        if part is not None:
            out.append(event("response.content_part.done", **place, part=part(whole)))
        ended = {**item(whole), "status": status}
        out.append(event("response.output_item.done", output_index=0, item=ended))
        out.append(event(f"response.{status}", response={**response, "output": [ended], "usage": {"total_tokens": 3}}))
        return out

    return say


def _responses_read(delta: str, done: str, member: str, get: Callable[[Any], str]) -> Callable[[list[Any]], list[str]]:
    def read(events: list[Any]) -> list[str]:
        said = ["".join(e["delta"] for e in events if e["type"] == delta)]
        said += [e[member] for e in events if e["type"] == done]
        said += [get(e["item"]) for e in events if e["type"] == "response.output_item.done"]
        last = ("response.completed", "response.incomplete")
        said += [get(e["response"]["output"][0]) for e in events if e["type"] in last]
        for event in events:
            if event["type"] == "response.content_part.done":
                part = event["part"]
                said.append(part["refusal"] if part["type"] == "refusal" else part["text"])
        return said

    return read


def _responses_scenes() -> list[Scene]:
    scenes = []
    forms: list[tuple[str, str, str, str, Callable[[str], Any], Callable[[str], Any] | None, bool, str]] = [
        (
            "text",
            "output_text.delta",
            "output_text.done",
            "text",
            lambda text: {"type": "message", "id": "i", "role": "assistant",
                          "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]},
            lambda text: {"type": "output_text", "text": text, "annotations": [], "logprobs": []},
            False,
            "text",
        ),
        (
            "refusal",
            "refusal.delta",
            "refusal.done",
            "refusal",
            lambda text: {"type": "message", "id": "i", "role": "assistant",
                          "content": [{"type": "refusal", "refusal": text}]},
            lambda text: {"type": "refusal", "refusal": text},
            False,
            "text",
        ),
        (
            "reasoning",
            "reasoning_text.delta",
            "reasoning_text.done",
            "text",
            lambda text: {"type": "reasoning", "id": "i", "summary": [],
                          "content": [{"type": "reasoning_text", "text": text}]},
            lambda text: {"type": "reasoning_text", "text": text},
            False,
            "reasoning",
        ),
        (
            "arguments",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "arguments",
            lambda text: {"type": "function_call", "id": "i", "call_id": "c", "name": "f", "arguments": text},
            None,
            True,
            "arguments",
        ),
        (
            "input",
            "custom_tool_call_input.delta",
            "custom_tool_call_input.done",
            "input",
            lambda text: {"type": "custom_tool_call", "id": "i", "call_id": "c", "name": "f", "input": text},
            None,
            False,
            "arguments",
        ),
        (
            "code",
            "code_interpreter_call_code.delta",
            "code_interpreter_call_code.done",
            "code",
            lambda text: {"type": "code_interpreter_call", "id": "i", "container_id": "c", "code": text,
                          "outputs": None},
            None,
            False,
            "arguments",
        ),
    ]  # fmt: skip

    def getter(member: str) -> Callable[[Any], str]:
        def get(item: Any) -> str:
            if "content" in item:
                return str(item["content"][0][member])
            return str(item[member])

        return get

    for name, delta, done, member, item, part, is_json, kind in forms:
        delta, done = f"response.{delta}", f"response.{done}"
        scenes.append(
            Scene(
                "responses",
                name,
                _responses(delta, done, member, item, part=part),
                _responses_read(delta, done, member, getter(member)),
                json=is_json,
                kind=kind,
            )
        )
    return scenes


# ---- Gemini


def _gemini(place: Callable[[str], Any]) -> Callable[[list[str], str], list[bytes]]:
    def say(pieces: list[str], ending: str) -> list[bytes]:
        def event(piece: str, finish: str | None = None) -> bytes:
            candidate: Any = {"content": {"parts": [place(piece)], "role": "model"}, "index": 0}
            if finish is not None:
                candidate["finishReason"] = finish
            return _data({"candidates": [candidate], "usageMetadata": {"totalTokenCount": 3}, "modelVersion": "g"})

        if ending == "error":
            return [
                *map(event, pieces),
                _data({"error": {"code": 503, "message": "it failed", "status": "UNAVAILABLE"}}),
            ]
        if ending == "cut":
            return [*map(event, pieces)]
        # The last piece comes with the reason.
        return [*map(event, pieces[:-1]), event(pieces[-1], {"normal": "STOP", "length": "MAX_TOKENS"}[ending])]

    return say


def _gemini_read(get: Callable[[Any], str]) -> Callable[[list[Any]], list[str]]:
    def read(events: list[Any]) -> list[str]:
        found = [part for e in events for c in e.get("candidates", ()) for part in c["content"]["parts"]]
        return ["".join(get(part) for part in found)]

    return read


def _argument(piece: str) -> Any:
    return {"functionCall": {"partialArgs": [{"jsonPath": "$.q", "stringValue": piece, "willContinue": True}]}}


def _gemini_scenes() -> list[Scene]:
    return [
        Scene("generate", "text", _gemini(lambda piece: {"text": piece}), _gemini_read(lambda part: part["text"])),
        Scene(
            "generate",
            "thought",
            _gemini(lambda piece: {"text": piece, "thought": True}),
            _gemini_read(lambda part: part["text"]),
            kind="reasoning",
        ),
        Scene(
            "generate",
            "code",
            _gemini(lambda piece: {"executableCode": {"language": "PYTHON", "code": piece}}),
            _gemini_read(lambda part: part["executableCode"]["code"]),
            kind="arguments",
        ),
        Scene(
            "generate",
            "partial arguments",
            _gemini(_argument),
            _gemini_read(lambda part: part["functionCall"]["partialArgs"][0]["stringValue"]),
            kind="arguments",
        ),
    ]


# ---- Bedrock Converse


def _converse(start: Any, place: Callable[[str], Any]) -> Callable[[list[str], str], list[bytes]]:
    def say(pieces: list[str], ending: str) -> list[bytes]:
        out = [
            _binary("messageStart", {"role": "assistant", "p": "abcd"}),
            _binary("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "So: sk-"}, "p": "ab"}),
            _binary("contentBlockStop", {"contentBlockIndex": 0}),
        ]
        if start is not None:
            out.append(_binary("contentBlockStart", {"contentBlockIndex": 1, "start": start}))
        deltas = [{"contentBlockIndex": 1, "delta": place(piece), "p": "abc"} for piece in pieces]
        out += [_binary("contentBlockDelta", delta) for delta in deltas]
        if ending == "error":
            return [*out, binary(b"modelStreamErrorException", b'{"message":"it failed"}', kind=b"exception")]
        if ending == "cut":
            return out
        stop = {"normal": "end_turn", "length": "max_tokens"}[ending]
        return [
            *out,
            _binary("contentBlockStop", {"contentBlockIndex": 1}),
            _binary("messageStop", {"stopReason": stop}),
            _binary("metadata", {"usage": {"totalTokens": 3}, "metrics": {"latencyMs": 1}}),
        ]

    return say


def _converse_read(get: Callable[[Any], str]) -> Callable[[list[Any]], list[str]]:
    def read(events: list[Any]) -> list[str]:
        deltas = [e["delta"] for e in events if e["type"] == "contentBlockDelta" and e["contentBlockIndex"] == 1]
        return ["".join(get(delta) for delta in deltas)]

    return read


def _converse_scenes() -> list[Scene]:
    return [
        Scene("converse", "text", _converse(None, lambda piece: {"text": piece}), _converse_read(lambda d: d["text"])),
        Scene(
            "converse",
            "thought",
            _converse(None, lambda piece: {"reasoningContent": {"text": piece}}),
            _converse_read(lambda d: d["reasoningContent"]["text"]),
            kind="reasoning",
        ),
        Scene(
            "converse",
            "input",
            _converse({"toolUse": {"toolUseId": "t", "name": "f"}}, lambda piece: {"toolUse": {"input": piece}}),
            _converse_read(lambda d: d["toolUse"]["input"]),
            json=True,
            kind="arguments",
        ),
    ]


SCENES = [
    *_chat_scenes(),
    Scene(
        "completions",
        "text",
        _completions,
        lambda events: ["".join(e["choices"][0]["text"] for e in events if "choices" in e)],
    ),
    *_messages_scenes(),
    *_responses_scenes(),
    *_gemini_scenes(),
    *_converse_scenes(),
]
