"""OpenAI chat completions and the neutral model: whole answers.

A turn that has calls ends for them, and one that holds a refusal ends as one, whatever reason the server gave.
"""

from typing import Any

import msgspec

from tollhouse.wire.llm.codec import Lost, misread
from tollhouse.wire.llm.codec.openai_chat_messages import (
    read_call,
    read_part,
    read_thoughts,
    write_call,
    write_thoughts,
)
from tollhouse.wire.llm.codec.openai_chat_stops import FINISH, stop_of
from tollhouse.wire.llm.codec.reading import Fields, restore
from tollhouse.wire.llm.model import (
    Answer,
    Choice,
    Citation,
    Opaque,
    Part,
    Refusal,
    Text,
    Thinking,
    ToolCall,
)
from tollhouse.wire.llm.usage import ChatUsage, counted, tiered

__all__ = ["read_answer", "write_answer"]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_usage = msgspec.json.Decoder(ChatUsage, strict=False).decode

# ---- reading


def read_answer(body: bytes) -> Answer:
    """Raises Failure 502."""
    f = Fields.of(body, "answer.", misread)
    choices = f.children("choices")
    if choices is None:
        f.fail("choices", "is missing")
    answer = Answer("chat", f.text("id") or "", f.text("model") or "", [])
    answer.choices = [_choice(c, answer.id, n) for n, c in enumerate(choices)]
    answer.created = int(f.number("created") or 0)
    usage = f.raw("usage")
    if usage is not None:
        answer.usage = counted(_usage, usage)
    f.raw("object")
    answer.extra = f.rest()
    if answer.extra and "service_tier" in answer.extra:
        tiered(answer.usage, answer.extra["service_tier"])
    return answer


def _choice(f: Fields, id: str, number: int) -> Choice:
    message = f.need_child("message", "an object")
    message.raw("role")
    parts = read_thoughts(message)
    content: list[Part]
    if message.is_text("content"):
        text = message.need_text("content")
        content = [Text(text)] if text else []
    else:
        content = [read_part(p, told=True) for p in message.children("content") or ()]
    annotations = message.children("annotations")
    if annotations:
        first = next((p for p in content if isinstance(p, Text)), None)
        if first is None:
            content.append(first := Text(""))
        first.citations = [_citation(a) for a in annotations]
    parts += content
    refusal = message.text("refusal")
    if refusal is not None:
        parts.append(Refusal(refusal))
    calls = message.children("tool_calls") or []
    parts += [read_call(c, f"call_{id or 'x'}_{number}_{n}") for n, c in enumerate(calls)]
    reason = f.text("finish_reason") or "stop"
    stop = stop_of(reason, calls=bool(calls), refused=refusal is not None)
    logprobs = f.child("logprobs")
    f.raw("index")
    choice = Choice(parts, stop, detail=reason)
    if logprobs is not None:
        choice.logprobs = logprobs.raw("content")
        f.leave("logprobs", logprobs)
    f.leave("message", message)
    choice.extra = f.rest()
    return choice


def _citation(f: Fields) -> Citation:
    """An entry of `annotations`. Of another kind than a URL's, it rides along whole."""
    cited = f.child("url_citation")
    if cited is None:
        return Citation("url", extra=f.rest())
    f.raw("type")
    citation = Citation("url", cited.text("title"), cited.text("url"))
    citation.begin = cited.integer("start_index")
    citation.end = cited.integer("end_index")
    f.leave("url_citation", cited)
    citation.extra = f.rest()
    return citation


# ---- writing


def write_answer(answer: Answer, *, own: bool) -> bytes:
    """A `chat.completion` object. What this API has no field for is not told."""
    form: dict[str, Any] = {
        "id": answer.id,
        "object": "chat.completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [_write_choice(c, n, own) for n, c in enumerate(answer.choices)],
    }
    if answer.usage is not None:
        form["usage"] = ChatUsage.form(answer.usage)
    if own and answer.extra:
        restore(form, answer.extra)
    return _encode(form)


def _write_choice(choice: Choice, index: int, own: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    texts: list[str] = []
    refusals: list[str] = []
    annotations: list[dict[str, Any]] = []
    thoughts: list[Thinking] = []
    calls: list[Any] = []
    begin = 0
    for part in choice.parts:
        if isinstance(part, Text):
            texts.append(part.text)
            annotations += _annotations(part, begin, own)
            begin += len(part.text)
        elif isinstance(part, Thinking):
            thoughts.append(part)
        elif isinstance(part, Refusal):
            refusals.append(part.text)
        elif isinstance(part, ToolCall):
            call = write_call(part, "", own, Lost(), signed=True)
            calls.append(call)
        elif isinstance(part, Opaque) and part.dialect == "chat" and part.kind == "custom":
            calls.append(part.value)
    if begin or not (calls or refusals):
        message["content"] = "".join(texts)
    if refusals:
        message["refusal"] = "".join(refusals)
    if annotations:
        message["annotations"] = annotations
    message.update(write_thoughts(thoughts, own))
    if calls:
        message["tool_calls"] = calls
    reason = choice.detail if own and choice.detail else FINISH[choice.stop]
    logprobs = None if choice.logprobs is None else {"content": choice.logprobs, "refusal": None}
    form: dict[str, Any] = {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}
    if own and choice.extra:
        restore(form, choice.extra)
    return form


def _annotations(part: Text, begin: int, own: bool) -> list[dict[str, Any]]:
    """`annotations` of a text. begin: where the text begins in the whole content."""
    found = []
    for citation in part.citations or ():
        if own and citation.extra and citation.url is None:
            found.append(citation.extra)
        elif citation.url:
            form = annotation(citation, begin, len(part.text))
            if own and citation.extra:
                restore(form, citation.extra)
            found.append(form)
    return found


def annotation(citation: Citation, begin: int, length: int) -> dict[str, Any]:
    """A citation of a URL; begin, length: of the text it belongs to, in the whole content."""
    return {
        "type": "url_citation",
        "url_citation": {
            "url": citation.url,
            "title": citation.title or "",
            "start_index": begin + (citation.begin or 0),
            "end_index": begin + (length if citation.end is None else citation.end),
        },
    }
