"""OpenAI responses and the neutral model: whole answers, and the pieces of an answer that its stream has too.

An answer is a list of items: thoughts, messages and calls. Texts and refusals that follow each other are one message.
Items need ids: they are made from the answer's and their number, so that a stream names them alike all the way.
"""

from typing import Any

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.llm.codec import Lost, misread
from tollhouse.wire.llm.codec.openai_responses_items import (
    call_item,
    read_call,
    read_part,
    refusal_content,
    text_content,
    within,
    write_citation,
)
from tollhouse.wire.llm.codec.openai_responses_thoughts import read_thought, thought_item
from tollhouse.wire.llm.codec.reading import Fields, put_back
from tollhouse.wire.llm.model import (
    Answer,
    Choice,
    Image,
    Opaque,
    Part,
    Refusal,
    Stop,
    Text,
    Thinking,
    ToolCall,
)
from tollhouse.wire.llm.usage import ResponsesUsage, counted, tiered

__all__ = [
    "STOPS",
    "Ids",
    "closing",
    "decode_response",
    "encode_response",
    "finished_item",
    "message_item",
    "response_form",
    "status_of",
    "stopped",
    "text_form",
]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_usage = msgspec.json.Decoder(ResponsesUsage, strict=False).decode

STOPS: dict[str, Stop] = {"max_output_tokens": "length", "content_filter": "content_filter"}
"""`incomplete_details.reason` to ours; others are a pause."""

_INCOMPLETE: dict[Stop, str] = {
    "length": "max_output_tokens",
    "context_window": "max_output_tokens",
    "content_filter": "content_filter",
    "refusal": "content_filter",
}
_LIMITED = "rate_limit_exceeded"
_SUFFIX = 40  # characters of an answer's id in those of its items: they may have 64


def status_of(code: str) -> int:
    """The HTTP status that an error's code stands for."""
    return 429 if code == _LIMITED else 502


class Ids:
    """Ids of an answer's items."""

    __slots__ = ("_suffix",)

    def __init__(self, answer: str) -> None:
        self._suffix = answer.removeprefix("resp_")[-_SUFFIX:] or "0"

    def of(self, kind: str, number: int) -> str:
        """kind: "msg", "fc", "rs" ... number: the item's place in the output."""
        return f"{kind}_{self._suffix}_{number}"


# ---- reading


def decode_response(body: bytes) -> Answer:
    """Raises Failure 502 for what is not a whole response, and for one that has failed (429 for a rate limit)."""
    f = Fields.of(body, "answer.", misread)
    error = f.child("error")
    status = f.text("status") or "completed"
    if error is not None or status in ("failed", "cancelled"):
        code = (error.text("code") if error is not None else None) or status
        told = (error.text("message") if error is not None else None) or ""
        raise Failure(
            status_of(code),
            Reason.UPSTREAM_FAILURE,
            "the provider failed",
            detail=f"{code}: {told}"[:500],
            retry=True,
            sent=True,
        )
    if status not in ("completed", "incomplete"):
        f.fail("status", f"is {status!r}: only an answer that is finished can be given on")
    output = f.children("output")
    if output is None:
        f.fail("output", "is missing")
    choice = Choice([])
    logprobs: list[Raw] = []
    for item in output:
        _read_item(item, choice.parts, logprobs)
    if logprobs:
        choice.logprobs = Raw(_encode(logprobs))
    details = f.raw("incomplete_details")
    reason = None if details is None else Fields.of(details, "answer.incomplete_details.", misread).text("reason")
    choice.stop, choice.detail = stopped(status, reason, choice.parts)
    answer = Answer("responses", f.text("id") or "", f.text("model") or "", [choice])
    answer.created = int(f.number("created_at") or 0)
    usage = f.raw("usage")
    if usage is not None:
        answer.usage = counted(_usage, usage)
    f.raw("object")
    extra = f.rest() or {}
    if "service_tier" in extra:
        tiered(answer.usage, extra["service_tier"])
    if details is not None:
        extra["status"], extra["incomplete_details"] = Raw(_encode(status)), details
    answer.extra = extra or None
    return answer


def stopped(status: str, reason: str | None, parts: list[Part]) -> tuple[Stop, str]:
    """Why an answer ended, and the provider's word for it."""
    if status == "incomplete":
        return STOPS.get(reason, "pause") if reason else "length", reason or status
    if any(isinstance(part, ToolCall) for part in parts):
        return "tool_calls", status
    return ("refusal" if any(isinstance(part, Refusal) for part in parts) else "stop"), status


def _read_item(f: Fields, parts: list[Part], logprobs: list[Raw]) -> None:
    kind = f.need_text("type")
    if kind == "message":
        for content in f.children("content") or ():
            logprobs += content.list("logprobs") or ()
            parts.append(read_part(content))
    elif kind == "function_call":
        parts.append(read_call(f))
    elif kind == "reasoning":
        parts.append(read_thought(f, answered=True))
    else:
        parts.append(Opaque("responses", kind, f.whole(type=kind)))


# ---- writing


def encode_response(answer: Answer, asked: dict[str, Any]) -> bytes:
    """asked: the request's fields that are repeated."""
    own = answer.dialect == "responses"
    choice = answer.choices[0] if answer.choices else Choice([])
    refused = any(isinstance(part, Refusal) for part in choice.parts)
    status, incomplete, error = closing(choice.stop, refused=refused)
    form = response_form(answer.id, answer.model, answer.created, status)
    form["incomplete_details"] = incomplete
    form["error"] = error
    form["output"] = _write_output(choice, Ids(answer.id), status, own)
    form["usage"] = None if answer.usage is None else ResponsesUsage.form(answer.usage)
    form.update(asked)
    if own and answer.extra:
        form.update(answer.extra)
    return _encode(form)


def response_form(id: str, model: str, created: int, status: str) -> dict[str, Any]:
    """A response with nothing in it yet."""
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
    }


def closing(stop: Stop, *, refused: bool) -> tuple[str, dict[str, str] | None, dict[str, str] | None]:
    """`status`, `incomplete_details` and `error`. refused: the answer has the words of a refusal."""
    if stop == "error":
        return "failed", None, {"code": "server_error", "message": "the provider could not finish its answer"}
    reason = _INCOMPLETE.get(stop)
    if reason is None or (refused and stop == "refusal"):
        return "completed", None, None
    return "incomplete", {"reason": reason}, None


def _write_output(choice: Choice, ids: Ids, status: str, own: bool) -> list[Any]:
    output: list[Any] = []
    content: list[Any] | None = None  # of the message that is being written
    logprobs = choice.logprobs
    last = len(choice.parts) - 1
    for n, part in enumerate(choice.parts):
        if isinstance(part, (Text, Refusal)) or (isinstance(part, Opaque) and within(part)):
            if content is None:
                content = []
                output.append(message_item(ids.of("msg", len(output)), content, "completed"))
            if isinstance(part, Text):
                content.append(text_form(part, logprobs, own))
                logprobs = None
            else:
                content.append(refusal_content(part.text) if isinstance(part, Refusal) else part.value)
            if n == last and status != "completed":
                output[-1]["status"] = "incomplete"
            continue
        ended = "completed" if n < last or status == "completed" else "incomplete"
        item = finished_item(part, ids, len(output), ended, own)
        if item is not None:
            content = None
            output.append(item)
    return output


def message_item(id: str, content: list[Any], status: str) -> dict[str, Any]:
    """A `message`."""
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": content}


def text_form(part: Text, logprobs: Raw | None, own: bool) -> dict[str, Any]:
    """A whole `output_text`."""
    annotations: list[Any] = []
    for citation in part.citations or ():
        annotation = write_citation(citation, len(part.text))
        if annotation is not None:
            put_back(annotation, citation.extra, own, Lost(), "")
            annotations.append(annotation)
    form = text_content(part.text, annotations)
    form["logprobs"] = logprobs if logprobs is not None else []
    put_back(form, part.extra, own, Lost(), "")
    return form


def finished_item(part: Part, ids: Ids, number: int, status: str, own: bool) -> Any:
    """The whole item of a part that is one by itself; None for what this API has no item for."""
    item: dict[str, Any]
    if isinstance(part, ToolCall):
        item = {"id": ids.of("fc", number), "status": status, **call_item(part)}
        if part.signature is not None:
            item["extra_content"] = {"google": {"thought_signature": part.signature}}
    elif isinstance(part, Thinking):
        item = {"id": ids.of("rs", number), **thought_item(part)}
    elif isinstance(part, Opaque):
        return part.value if part.dialect == "responses" else None
    elif isinstance(part, Image) and part.media.data:
        id = ids.of("ig", number)
        item = {"id": id, "type": "image_generation_call", "status": "completed", "result": part.media.data}
        kind = part.media.type.removeprefix("image/")
        if kind in ("png", "webp", "jpeg", "gif"):
            item["output_format"] = kind
        return item
    else:
        return None
    put_back(item, part.extra, own, Lost(), "")
    return item
