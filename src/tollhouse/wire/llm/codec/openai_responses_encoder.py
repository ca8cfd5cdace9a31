"""OpenAI responses and the neutral model: the stream that is written.

Each thing that ends is said all over again: a text, its part, its item, and in the end the whole answer. A part of ours
is one text of a message, a call, or a whole thought; a message is an item that stays open until another item begins.
"""

from typing import Any

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec.openai_responses_answer import (
    Ids,
    closing,
    finished_item,
    message_item,
    response_form,
    text_form,
)
from tollhouse.wire.llm.codec.openai_responses_items import refusal_content, write_citation
from tollhouse.wire.llm.codec.openai_responses_thoughts import thought_item
from tollhouse.wire.llm.model import (
    ArgumentsDelta,
    Began,
    Citation,
    CitationDelta,
    Ended,
    Event,
    Image,
    LogprobsDelta,
    Opaque,
    Part,
    PartBegan,
    PartEnded,
    Refusal,
    RefusalDelta,
    SignatureDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    Used,
)
from tollhouse.wire.llm.usage import ResponsesUsage
from tollhouse.wire.sse import frame

__all__ = ["ResponsesEncoder"]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_list = msgspec.json.Decoder(list[Raw]).decode


class _Part:
    """A part that is being written. before, after: what stands around a delta's text in its event. pieces: what was
    said. uncited: citations that wait for its end. item: its place in the output."""

    __slots__ = (
        "after", "before", "ended", "id", "item", "logprobs", "number", "pieces", "started", "uncited", "value",
    )  # fmt: skip

    def __init__(self, value: Part, item: int, number: int, id: str) -> None:
        self.value = value
        self.item = item
        self.number = number  # in its message
        self.id = id
        self.pieces: list[str] = []
        self.logprobs: list[Raw] = []
        self.uncited: list[Citation] = []
        self.started = True
        self.ended = False
        self.before = self.after = b""

    def says(self, kind: str, place: dict[str, Any], more: bytes = b"") -> None:
        """Its deltas are events of this kind."""
        self.before = b'event: %b\ndata: {"type":"%b",%b,"delta":' % (
            kind.encode(),
            kind.encode(),
            _encode(place)[1:-1],
        )
        self.after = more + b',"sequence_number":%d}\n\n'


class ResponsesEncoder:
    """StreamEncoder of response events. asked: the request's fields that a response repeats. There is one choice; what
    others say is left out."""

    __slots__ = (
        "_asked",
        "_began",
        "_content",
        "_ended",
        "_ids",
        "_message",
        "_output",
        "_parts",
        "_refused",
        "_sequence",
        "_usage",
    )

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = _encode(asked)[1:]
        self._began: Began | None = None
        self._ids = Ids("")
        self._sequence = -1
        self._parts: dict[int, _Part] = {}
        self._output: list[Any] = []  # the items, None for one that is being said
        self._message = -1  # the message that is open
        self._content: list[Any] = []  # its content, None for what is being said
        self._usage: Usage | None = None
        self._ended: Ended | None = None
        self._refused = False

    def write(self, events: list[Event]) -> bytes:
        out: list[bytes] = []
        last = len(events) - 1
        for n, event in enumerate(events):
            if isinstance(event, (TextDelta, ArgumentsDelta, ThinkingDelta, RefusalDelta)):
                part = self._parts.get(event.part)
                if part is None or part.ended or event.choice:
                    continue
                if not part.started:
                    self._start_summary(part, out)
                part.pieces.append(event.text)
                if n < last and self._logprobs_of(events[n + 1], part) is not None:
                    continue  # they are told together
                self._sequence += 1
                out.append(part.before + _encode(event.text) + part.after % self._sequence)
            elif isinstance(event, LogprobsDelta):
                before = events[n - 1] if n else None
                same = isinstance(before, TextDelta) and before.part == event.part
                self._logprobs(event, before.text if same else "", out)  # type: ignore[union-attr]
            else:
                self._rare(event, out)
        return out[0] if len(out) == 1 else b"".join(out)

    def _say(self, kind: str, form: dict[str, Any], out: list[bytes]) -> None:
        self._sequence += 1
        form = {"type": kind, **form, "sequence_number": self._sequence}
        out.append(frame(_encode(form), kind.encode()))

    def _rare(self, event: Event, out: list[bytes]) -> None:
        if isinstance(event, Began):
            self._start(event, out)
        elif isinstance(event, Used):
            self._usage = event.usage
        elif event.choice:
            return
        elif isinstance(event, PartBegan):
            if self._began is None:
                self._start(Began("", ""), out)
            self._part(event.part, event.value, out)
        elif isinstance(event, Ended):
            self._ended = event
        else:
            part = self._parts.get(event.part)
            if part is None or part.ended:
                return
            value = part.value
            if isinstance(event, PartEnded):
                # Calls may be told side by side: one is over when its arguments are whole.
                if not isinstance(value, ToolCall) or _whole("".join(part.pieces)):
                    self._finish(part, "completed", out)
            elif isinstance(event, SignatureDelta):
                if isinstance(value, (Thinking, ToolCall)):
                    value.signature = (value.signature or "") + event.signature
            elif isinstance(event, CitationDelta) and isinstance(value, Text):
                if event.citation.end is None:
                    part.uncited.append(event.citation)  # it is for the whole text, which may not have come yet
                else:
                    self._cite(part, value, event.citation, event.citation.end, out)

    def _cite(self, part: _Part, value: Text, citation: Citation, size: int, out: list[bytes]) -> None:
        annotation = write_citation(citation, size)
        if annotation is not None:
            value.citations = value.citations or []
            place = {**_place(part), "annotation_index": len(value.citations), "annotation": annotation}
            value.citations.append(citation)
            self._say("response.output_text.annotation.added", place, out)

    # ---- what begins
    def _start(self, began: Began, out: list[bytes]) -> None:
        if self._began is not None:
            return
        self._began = began
        self._ids = Ids(began.id)
        response = self._response("in_progress", [])
        self._say("response.created", {"response": response}, out)
        self._say("response.in_progress", {"response": response}, out)

    def _response(self, status: str, output: list[Any], **more: Any) -> Raw:
        began = self._began or Began("", "")
        form = response_form(began.id, began.model, began.created, status)
        form["output"] = output
        form.update(more)
        return Raw(_encode(form)[:-1] + b"," + self._asked)

    def _part(self, number: int, value: Part, out: list[bytes]) -> None:
        if isinstance(value, (Text, Refusal)):
            self._text(number, value, out)
            return
        self._close_message("completed", out)
        if isinstance(value, (ToolCall, Thinking)):
            self._item(number, value, out)
        elif isinstance(value, (Opaque, Image)):
            item = finished_item(value, self._ids, len(self._output), "completed", True)
            if item is not None:
                place = {"output_index": len(self._output), "item": item}
                self._output.append(item)
                self._say("response.output_item.added", place, out)
                self._say("response.output_item.done", place, out)

    def _text(self, number: int, value: Text | Refusal, out: list[bytes]) -> None:
        if self._message < 0:
            self._message = len(self._output)
            self._content = []
            item = message_item(self._ids.of("msg", self._message), [], "in_progress")
            self._output.append(None)
            self._say("response.output_item.added", {"output_index": self._message, "item": item}, out)
        begun = value.text
        part = _Part(value, self._message, len(self._content), self._ids.of("msg", self._message))
        self._parts[number] = part
        self._content.append(None)
        if isinstance(value, Text):
            part.value = Text("")
            form = text_form(part.value, None, False)
            part.says("response.output_text.delta", _place(part), b',"logprobs":[]')
        else:
            part.value = Refusal("")
            self._refused = True
            form = refusal_content("")
            part.says("response.refusal.delta", _place(part))
        self._say("response.content_part.added", {**_place(part), "part": form}, out)
        if begun:
            self._delta(part, begun, out)

    def _delta(self, part: _Part, text: str, out: list[bytes]) -> None:
        part.pieces.append(text)
        self._sequence += 1
        out.append(part.before + _encode(text) + part.after % self._sequence)

    def _item(self, number: int, value: ToolCall | Thinking, out: list[bytes]) -> None:
        index = len(self._output)
        self._output.append(None)
        form: dict[str, Any]
        if isinstance(value, ToolCall):
            part = _Part(ToolCall(value.id, value.name, "", value.signature), index, 0, self._ids.of("fc", index))
            form = {"type": "function_call", "status": "in_progress", "call_id": value.id, "name": value.name}
            form["arguments"] = ""
            place = {"item_id": part.id, "output_index": index}
            part.says("response.function_call_arguments.delta", place)
            begun = value.arguments
        else:
            part = _Part(Thinking("", value.signature, value.sealed), index, 0, self._ids.of("rs", index))
            part.started = False
            form = thought_item(Thinking(sealed=value.sealed))
            place = {"item_id": part.id, "output_index": index, "summary_index": 0}
            part.says("response.reasoning_summary_text.delta", place)
            begun = value.text
        self._parts[number] = part
        form["id"] = part.id
        self._say("response.output_item.added", {"output_index": index, "item": form}, out)
        if begun:
            if not part.started:
                self._start_summary(part, out)
            self._delta(part, begun, out)

    def _start_summary(self, part: _Part, out: list[bytes]) -> None:
        part.started = True
        place = {"item_id": part.id, "output_index": part.item, "summary_index": 0}
        empty = {"type": "summary_text", "text": ""}
        self._say("response.reasoning_summary_part.added", {**place, "part": empty}, out)

    def _logprobs_of(self, event: Event, part: "_Part | None") -> list[Raw] | None:
        """What an event tells of the log-probs of a part that is a text; None for nothing."""
        if not isinstance(event, LogprobsDelta) or event.choice or part is None or part.ended:
            return None
        if not isinstance(part.value, Text) or self._parts.get(event.part) is not part:
            return None
        try:
            return _list(event.logprobs)
        except UNREADABLE:
            return None

    def _logprobs(self, event: LogprobsDelta, text: str, out: list[bytes]) -> None:
        """A delta with its log-probs; text: what it says, "" when that is told already."""
        part = self._parts.get(event.part)
        logprobs = self._logprobs_of(event, part)
        if part is not None and logprobs is not None:
            part.logprobs += logprobs
            form = {**_place(part), "delta": text, "logprobs": event.logprobs}
            self._say("response.output_text.delta", form, out)

    # ---- what ends
    def _finish(self, part: _Part, status: str, out: list[bytes]) -> None:
        part.ended = True
        text = "".join(part.pieces)
        part.pieces.clear()
        value = part.value
        place = _place(part)
        form: Any
        if isinstance(value, Text):
            for citation in part.uncited:
                self._cite(part, value, citation, len(text), out)
            value.text = text
            logprobs = Raw(_encode(part.logprobs)) if part.logprobs else None
            form = text_form(value, logprobs, False)
            done = {**place, "text": text, "logprobs": form["logprobs"]}
            self._say("response.output_text.done", done, out)
        elif isinstance(value, Refusal):
            form = refusal_content(text)
            self._say("response.refusal.done", {**place, "refusal": text}, out)
        else:
            self._finish_item(part, value, text, status, out)
            return
        self._say("response.content_part.done", {**place, "part": form}, out)
        self._content[part.number] = form

    def _finish_item(self, part: _Part, value: Part, text: str, status: str, out: list[bytes]) -> None:
        place: dict[str, Any] = {"item_id": part.id, "output_index": part.item}
        if isinstance(value, ToolCall):
            value.arguments = text or "{}"
            self._say("response.function_call_arguments.done", {**place, "arguments": value.arguments}, out)
        elif isinstance(value, Thinking):
            value.text = text
            if part.started:
                place["summary_index"] = 0
                self._say("response.reasoning_summary_text.done", {**place, "text": text}, out)
                whole = {"type": "summary_text", "text": text}
                self._say("response.reasoning_summary_part.done", {**place, "part": whole}, out)
        item = finished_item(value, self._ids, part.item, status, False)
        item["id"] = part.id
        self._output[part.item] = item
        self._say("response.output_item.done", {"output_index": part.item, "item": item}, out)

    def _close_message(self, status: str, out: list[bytes]) -> None:
        index = self._message
        if index < 0:
            return
        for part in self._parts.values():
            if part.item == index and not part.ended:
                self._finish(part, status, out)
        self._message = -1
        item = message_item(self._ids.of("msg", index), self._content, status)
        self._output[index] = item
        self._say("response.output_item.done", {"output_index": index, "item": item}, out)

    def end(self) -> bytes:
        out: list[bytes] = []
        if self._began is None:
            self._start(Began("", ""), out)
        stop = self._ended.stop if self._ended is not None else "stop"
        status, incomplete, error = closing(stop, refused=self._refused)
        ended = "completed" if status == "completed" else "incomplete"
        for part in self._parts.values():
            if not part.ended and part.item != self._message:
                self._finish(part, ended, out)
        self._close_message(ended, out)
        usage = None if self._usage is None else ResponsesUsage.form(self._usage)
        response = self._response(status, self._output, usage=usage, incomplete_details=incomplete, error=error)
        self._say(f"response.{status}", {"response": response}, out)
        return b"".join(out)


def _place(part: _Part) -> dict[str, Any]:
    return {"item_id": part.id, "output_index": part.item, "content_index": part.number}


def _whole(arguments: str) -> bool:
    """Whether they are JSON; a call without any may still get some."""
    try:
        msgspec.json.decode(arguments)
    except UNREADABLE:
        return False
    return True
