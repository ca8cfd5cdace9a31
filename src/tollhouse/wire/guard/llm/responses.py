"""Texts of the events of OpenAI responses.

Everything is said several times: in pieces, whole in `.done` events, in the part, in the item, and at last in the
response. What is said again is written as it left (`Event.repeats`), and scanned for itself only where it is not what
the pieces were. That a text is done does not say whether it was cut: it ends with its item, which tells its status.
"""

from collections.abc import Mapping

import msgspec

from tollhouse.wire.guard.llm.citations import renumbered
from tollhouse.wire.guard.llm.events import Ends, Event, SseTexts, every, none
from tollhouse.wire.guard.llm.forms import GOING, OTHER, SKIP, Form, JsonText, Look, New, Opaque, Path, Text
from tollhouse.wire.guard.llm.objects import Object
from tollhouse.wire.guard.llm.responses_forms import ANNOTATION, ANSWER, ITEM, PART
from tollhouse.wire.guard.llm.tokens import LABEL, Tokens, told

__all__ = ["ResponsesTexts"]

Raw = msgspec.Raw

_EVENT: dict[str, Form | None] = {
    "type": SKIP,
    "item_id": SKIP,
    "output_index": SKIP,
    "content_index": SKIP,
    "summary_index": SKIP,
    "annotation_index": SKIP,
    "partial_image_index": SKIP,
    "sequence_number": SKIP,
    "obfuscation": SKIP,
    "name": SKIP,
    "response_id": SKIP,
}
_ANY = Object(_EVENT, rest=GOING)
_STALE = {"logprobs": b"[]"}
_PROOF = Tokens(b"[]")
_PIECE = Object({**_EVENT, "delta": Text(label="delta"), "logprobs": _PROOF}, stale=_STALE)
_ANNOTATED = "response.output_text.annotation.added"

_PIECES: Mapping[str, tuple[str, str, bool]] = {
    "response.output_text.delta": ("text", "text", False),
    "response.refusal.delta": ("refusal", "text", False),
    "response.reasoning_text.delta": ("content", "reasoning", False),
    "response.reasoning_summary_text.delta": ("summary", "reasoning", False),
    "response.function_call_arguments.delta": ("arguments", "arguments", True),
    "response.mcp_call_arguments.delta": ("arguments", "arguments", True),
    "response.custom_tool_call_input.delta": ("input", "arguments", False),
    "response.code_interpreter_call_code.delta": ("code", "arguments", False),
    "response.audio.transcript.delta": ("transcript", "text", False),
}
"""Label and kind of the text that an event is a piece of, and whether it is JSON."""

_OF_ITEM = frozenset(("arguments", "input", "code"))  # labels of texts that are no part of their item

_FORMS: Mapping[str, Object] = {
    "response.output_text.done": Object({**_EVENT, "text": Text(label="text"), "logprobs": _PROOF}, stale=_STALE),
    "response.refusal.done": Object({**_EVENT, "refusal": Text(label="refusal")}),
    "response.reasoning_text.done": Object({**_EVENT, "text": Text("reasoning", label="content")}),
    "response.reasoning_summary_text.done": Object({**_EVENT, "text": Text("reasoning", label="summary")}),
    "response.function_call_arguments.done": Object({**_EVENT, "arguments": JsonText("arguments", label="arguments")}),
    "response.mcp_call_arguments.done": Object({**_EVENT, "arguments": JsonText("arguments", label="arguments")}),
    "response.custom_tool_call_input.done": Object({**_EVENT, "input": Text("arguments", label="input")}),
    "response.code_interpreter_call_code.done": Object({**_EVENT, "code": Text("arguments", label="code")}),
    "response.content_part.added": Object({**_EVENT, "part": PART}),
    "response.content_part.done": Object({**_EVENT, "part": PART}),
    "response.reasoning_summary_part.added": Object({**_EVENT, "part": PART}),
    "response.reasoning_summary_part.done": Object({**_EVENT, "part": PART}),
    "response.output_item.added": Object({**_EVENT, "item": ITEM}),
    "response.output_item.done": Object({**_EVENT, "item": ITEM}),
    _ANNOTATED: Object({**_EVENT, "annotation": ANNOTATION}),
    "response.audio.delta": Object({**_EVENT, "delta": Opaque("audio")}),
    "response.image_generation_call.partial_image": Object(
        {
            **_EVENT,
            "partial_image_b64": Opaque("image"),
            "background": SKIP,
            "output_format": SKIP,
            "quality": SKIP,
            "size": SKIP,
        }
    ),
    "error": Object({**_EVENT, "code": SKIP, "param": SKIP, "message": Text("text"), "error": OTHER}),
}
_RESPONSE = Object({**_EVENT, "response": ANSWER})
_WHOLE = ("response.created", "response.queued", "response.in_progress", "response.completed", "response.incomplete",
          "response.failed", "response.cancelled")  # fmt: skip
_ITEM_EVENTS = ("response.output_item.added", "response.output_item.done")
_ADDED = ("response.content_part.added", "response.output_item.added", "response.reasoning_summary_part.added")


class _Piece(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The usual event."""

    type: str
    delta: str
    output_index: int = 0
    content_index: int = 0
    summary_index: int | None = None
    item_id: str | None = None
    sequence_number: int | None = None
    obfuscation: str | None = None
    logprobs: Raw = Raw()


class _Item(msgspec.Struct, gc=False):
    status: str | None = None


class _Kind(msgspec.Struct, gc=False):
    type: str = ""
    output_index: int = 0
    content_index: int = 0
    summary_index: int | None = None
    item: Raw = Raw()


class _Answer(msgspec.Struct, gc=False):
    id: str = ""


class _Begun(msgspec.Struct, gc=False):
    response: _Answer


_begun = msgspec.json.Decoder(_Begun).decode
_piece = msgspec.json.Decoder(_Piece).decode
_kind = msgspec.json.Decoder(_Kind, strict=False).decode
_item = msgspec.json.Decoder(_Item).decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode
_UNREADABLE = (msgspec.DecodeError, RecursionError)


class ResponsesTexts(SseTexts):
    """A stream of response events."""

    __slots__ = ("_keys", "_sources")

    repeating = True

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[tuple[str, int, int], Path] = {}
        self._sources: dict[Path, list[str]] = {}  # what the pieces were, to know it when it is said again

    def told(self, raw: bytes, name: bytes, data: bytes) -> Event:
        try:
            event = _piece(data)
        except _UNREADABLE:
            return self._any(raw, data)
        kind = event.type
        known = _PIECES.get(kind)
        text = event.delta
        if known is None or not text:
            return self._any(raw, data)
        number = event.content_index if event.summary_index is None else event.summary_index
        key = self._keys.get((kind, event.output_index, number))
        if key is None:
            label, sort, _ = known
            part = () if label in _OF_ITEM else (number,)
            key = self._keys[kind, event.output_index, number] = (event.output_index, *part, label, sort)
        source = self._sources.get(key)
        if source is None:
            self._sources[key] = [text]
        else:
            source.append(text)
        piece = self.piece(raw, data, _PIECE, key, text, json=known[2])
        if len(event.logprobs) > 4:
            self._proved(piece, key, event.logprobs)
        return piece

    def _proved(self, event: Event, key: Path, logprobs: Raw) -> None:
        """A piece with log-probs: they are a text of their own, where they are those of another one."""
        try:
            text = told(logprobs)
        except (msgspec.DecodeError, RecursionError):
            text = bytes(logprobs).decode()
        if text and text != event.texts[0][1]:
            self.beside(event, (*key[:-2], LABEL, "beside"), text, ("logprobs",))

    def _any(self, raw: bytes, data: bytes) -> Event:
        try:
            told = _kind(data)
        except _UNREADABLE:
            return self.unknown(raw, data)
        kind = told.type
        if kind in _PIECES:
            return self.looked(raw, data, _PIECE)  # it has no text, or is not in its form
        if kind in _WHOLE:
            if self.begun is not None:
                self._begun(data)
            if kind == "response.completed":
                return self._again(raw, data, _RESPONSE, (), every, "whole")
            if kind in ("response.incomplete", "response.failed", "response.cancelled"):
                return self._again(raw, data, _RESPONSE, (), every, "cut")
            return self._again(raw, data, _RESPONSE, (), none, "")
        form = _FORMS.get(kind)
        if form is None:
            return self.looked(raw, data, _ANY, name=(told.output_index, kind))
        if kind == "error":
            return self.looked(raw, data, form, ends=every, ending="cut")
        index = told.output_index
        if kind in _ADDED:
            name: Path = (index,)
            if kind in _ITEM_EVENTS:
                event = self.looked(raw, data, form, name=name)
            else:
                number = told.content_index if told.summary_index is None else told.summary_index
                name = (index, number)
                event = self.looked(raw, data, form, name=name, ends=lambda key: key[0] == index and key[1] != number)
            for key, text in event.texts:
                if key[0] != "once":
                    self._sources.setdefault(key, []).append(text)
            return event
        if kind == "response.output_item.done":
            return self._again(raw, data, form, (index,), lambda key: key[0] == index, _status(told.item))
        name = (index, told.content_index if told.summary_index is None else told.summary_index)
        if kind.endswith(("arguments.done", "input.done", "code.done")):
            name = (index,)
        return self._again(raw, data, form, name, none, "")

    def _begun(self, data: bytes) -> None:
        try:
            answer = _begun(data).response.id
        except _UNREADABLE:
            return
        begun, self.begun = self.begun, None
        if begun is not None:
            begun(answer)

    def _again(self, raw: bytes, data: bytes, form: Form, name: Path, ends: Ends, ending: str) -> Event:
        """An event that says texts again."""
        look = Look()
        look.name = name
        form.look(Raw(data), (), look)
        event = Event(raw, data=data, form=form)
        repeats: list[Path] = []
        again: list[Path] = []
        others = []
        for spot in look.spots:
            if spot.name is not None and self._same(spot.name, spot.text):
                repeats.append(spot.name)
                again.append(spot.at)
            else:
                others.append(spot._replace(name=None))
        look.spots = others
        self.fill(event, look)
        event.repeats, event.again = tuple(repeats), tuple(again)
        self.end(event, ends, ending)
        return event

    def _same(self, key: Path, text: str) -> bool:
        source = self._sources.get(key)
        if source is None:
            return False
        if len(source) > 1:
            source[:] = ["".join(source)]
        return source[0] == text

    def encoded(self, event: Event, changed: dict[Path, str]) -> bytes:
        if self._changes and event.form is _FORMS[_ANNOTATED]:
            fields = _fields(event.form.put(Raw(event.data), (), New(changed)))
            told = _kind(event.data)
            moves = self._changes.get((told.output_index, told.content_index, "text", "text"))
            if moves:
                fields["annotation"] = renumbered(fields["annotation"], moves, "start_index", "end_index")
                return self.framed(event, _encode(fields))
        return super().encoded(event, changed)


def _status(item: Raw) -> str:
    """How the texts of an item ended."""
    try:
        return "cut" if _item(item).status == "incomplete" else ""
    except _UNREADABLE:
        return ""
